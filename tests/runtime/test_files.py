import errno
import os
import threading
import time
from types import SimpleNamespace

import pytest

from lt_jax.runtime import distributed, files


@pytest.mark.parametrize("locator", ["../x.png", "a/../../x.png", "/etc/passwd", "", "a\0b"])
def test_locators_outside_the_root_are_refused(tmp_path, locator):
    with pytest.raises(files.LocatorError, match="leads out of"):
        files.inside(tmp_path, locator)


def test_locators_inside_the_root_are_joined(tmp_path):
    assert files.inside(tmp_path, "a/b.png") == tmp_path / "a" / "b.png"
    assert files.inside(tmp_path, "a/../b.png").resolve() == (tmp_path / "b.png").resolve()
    assert files.inside(tmp_path, "..b.png") == tmp_path / "..b.png"


def test_a_symbolic_link_leads_out_of_the_root_only_where_that_is_allowed(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "rootless"  # its name begins alike
    for folder in (root / "a", elsewhere):
        folder.mkdir(parents=True)
        (folder / "x.png").write_bytes(b"")
    (root / "images").symlink_to(elsewhere)
    (root / "one.png").symlink_to(elsewhere / "x.png")
    (root / "same.png").symlink_to("a/x.png")
    (tmp_path / "linked").symlink_to(root)
    for name in ("images/x.png", "one.png", "a/../images/x.png"):
        with pytest.raises(
            files.LocatorError, match=r"symbolic link to .*config\.data\.follow_links"
        ):
            files.inside(root, name)
        assert files.inside(root, name, follow_links=True) == root / name
    assert files.inside(root, "same.png").exists()
    assert files.inside(tmp_path / "linked", "a/x.png").exists()  # the root itself may be one


def test_a_file_appears_only_when_whole(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), files.whole_file(path, "a note") as stream:
        stream.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["x.bin"]
    with files.whole_file(path, "a note") as stream:
        stream.write(b"new")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["x.bin"]


def test_no_space_left_says_where_and_how_much(tmp_path, monkeypatch):
    path = tmp_path / "images.npy"
    told = pytest.raises(OSError, match=r"a note \(3\.0 MiB needed\) to .*images\.npy")
    with told as caught, files.whole_file(path, "a note", 3 * 2**20):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.errno == errno.ENOSPC and not os.listdir(tmp_path)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    with pytest.raises(OSError, match=r"images \(2\.0 MiB needed\)"):
        files.require_space(tmp_path, 2 * 2**20, "the images")
    files.require_space(tmp_path, 2**20, "the images")


def test_other_processes_wait_for_what_the_first_has_written(tmp_path, monkeypatch):
    """Of which their host may still believe that it is not there."""
    path = tmp_path / "artifacts" / "x.json"

    def write():
        path.parent.mkdir()
        path.write_text("{}")

    assert not files.appeared(path)  # the first process itself does not wait
    monkeypatch.setattr(distributed, "_here", distributed._Here(1, 2))
    since = time.monotonic()
    assert not files.appeared(path, 0.2) and 0.2 < time.monotonic() - since < 5
    listed, list_folder = [], os.listdir
    monkeypatch.setattr(os, "listdir", lambda at: listed.append(at) or list_folder(at))
    writer = threading.Timer(0.3, write)
    writer.start()
    assert files.appeared(path) and path.read_text() == "{}"
    writer.join()
    assert tmp_path in listed  # which has the file system ask its server
    listed.clear()
    assert files.appeared(path) and not listed

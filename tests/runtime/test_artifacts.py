"""Artifacts: what a key depends on, when work counts as done, where links lead."""

import dataclasses
import json
import os

import pytest

from lt_jax.runtime import artifacts, faults
from lt_jax.runtime.artifacts import Spec, Store
from lt_jax.runtime.ledger import Ledger

SPEC = Spec("classify/ce/seed0", 1, {"steps": 4, "arm": {"loss": "ce"}}, {"prepare": "f" * 64})


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": 2},
        {"config": {"steps": 5, "arm": {"loss": "ce"}}},
        {"config": {"steps": 4, "arm": {"loss": "focal"}}},
        {"inputs": {"prepare": "e" * 64}},
        {"inputs": {"prepare": "f" * 64, "synthesize": "a" * 64}},
        {"stage": "generator"},
    ],
)
def test_the_key_changes_with_all_that_the_work_is_made_from(changes):
    assert dataclasses.replace(SPEC, **changes).key != SPEC.key


def test_the_key_does_not_change_with_names_and_order():
    assert dataclasses.replace(SPEC, stage="classify/renamed/seed0").key == SPEC.key
    reordered = dataclasses.replace(SPEC, config={"arm": {"loss": "ce"}, "steps": 4})
    assert reordered.key == SPEC.key
    listed = [dataclasses.replace(SPEC, config={"seeds": kind((1, 2))}) for kind in (list, tuple)]
    assert listed[0].key == listed[1].key


def test_unfinished_work_is_not_done_and_is_gone_on_with(tmp_path):
    store = Store(tmp_path)
    assert not store.done(SPEC)
    folder = store.open(SPEC)
    (folder / "half").write_text("work")
    assert not store.done(SPEC)
    assert (store.open(SPEC) / "half").read_text() == "work"
    assert not Store(tmp_path).done(SPEC)


def test_finished_work_is_described_and_its_cost_comes_back(tmp_path):
    store, cost = Store(tmp_path), Ledger(1.5, 20, 3e9, 0.1)
    folder = store.open(SPEC)
    store.finish(SPEC, cost)
    assert Store(tmp_path).done(SPEC)
    assert store.ledger(SPEC) == cost
    description = json.loads((folder / "artifact.json").read_text())
    assert description["stage"] == SPEC.stage
    assert description["key"] == SPEC.key
    assert description["inputs"] == SPEC.inputs
    assert description["config"] == SPEC.config
    assert {"python", "jax", "jaxlib", "flax", "numpy"} <= set(description["versions"])


def finished(store: Store):
    """An artifact with files of every kind."""
    folder = store.open(SPEC)
    for name in ("features.npz", "params/0/state", "checkpoints/4/state", ".lock"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    for name in ("shards/0.array_record", "parts/0.parquet", "events/x"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    store.finish(SPEC, Ledger(1.5, 20, 3e9, 0.1))
    return folder


@pytest.mark.parametrize("name", ["features.npz", "params/0/state", "artifact.json"])
@pytest.mark.parametrize("place", [0, -2])
def test_a_flipped_byte_is_found_when_a_run_first_reads_it(tmp_path, name, place):
    folder = finished(Store(tmp_path))
    assert Store(tmp_path).intact(SPEC) == folder
    raw = bytearray((folder / name).read_bytes())
    raw[place] ^= 2
    (folder / name).write_bytes(raw)
    told = rf"{folder}/{name}.*delete the folder {folder} and run the same command again"
    with pytest.raises(artifacts.ArtifactError, match=told):
        Store(tmp_path).intact(SPEC)


def test_every_byte_of_the_mark_counts(tmp_path):
    """A digit of its ledger, say, would read as well as the right one."""
    folder = finished(Store(tmp_path))
    mark = folder / "artifact.json"
    mark.write_text(mark.read_text().replace('"images": 20', '"images": 21'))
    with pytest.raises(artifacts.ArtifactError, match=r"damaged.*sha256"):
        Store(tmp_path).ledger(SPEC)


def test_a_lost_file_is_named_and_unfinished_or_older_work_is_read_as_it_is(tmp_path):
    store = Store(tmp_path)
    assert store.intact(SPEC) == store.folder(SPEC)
    folder = finished(store)
    (folder / "features.npz").unlink()
    with pytest.raises(artifacts.ArtifactError, match=r"features\.npz is missing"):
        store.intact(SPEC)
    mark = json.loads((folder / "artifact.json").read_text())
    del mark["files"], mark["sha256"]
    (folder / "artifact.json").write_text(json.dumps(mark))
    assert Store(tmp_path).intact(SPEC) == folder


def test_what_has_digests_of_its_own_is_not_read_twice_and_files_once_a_run(tmp_path, monkeypatch):
    store, read = Store(tmp_path), []
    folder = finished(store)
    told = json.loads((folder / "artifact.json").read_text())["files"]
    assert sorted(told) == ["features.npz", "params/0/state"]
    inside = artifacts.files.inside
    note = lambda root, name, **how: read.append(name) or inside(root, name, **how)
    monkeypatch.setattr(artifacts.files, "inside", note)
    for _ in range(3):
        store.intact(SPEC)
    assert sorted(read) == sorted(told)


@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname"])
def test_a_mark_cannot_name_files_outside(tmp_path, name):
    store = Store(tmp_path)
    folder = finished(store)
    mark = json.loads((folder / "artifact.json").read_text())
    del mark["sha256"]
    mark["files"] = {name: "0" * 64}
    (folder / "artifact.json").write_text(json.dumps(mark))
    with pytest.raises(artifacts.files.LocatorError, match="leads out of"):
        store.intact(SPEC)


def test_work_whose_mark_was_interrupted_is_not_done(tmp_path, monkeypatch):
    store = Store(tmp_path)
    folder = store.open(SPEC)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(faults.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            store.finish(SPEC, Ledger())
    assert not store.done(SPEC)
    assert list(folder.iterdir()) == []


def test_the_link_leads_to_the_artifact_of_the_moment(tmp_path):
    store = Store(tmp_path)
    other = dataclasses.replace(SPEC, schema=2)
    for spec in (SPEC, other, SPEC):
        folder = store.open(spec)
        (folder / "which").write_text(spec.key)
        assert (tmp_path / spec.stage / "which").read_text() == spec.key
    assert [p.name for p in (tmp_path / "classify/ce").iterdir()] == ["seed0"]
    assert (store.folder(other) / "which").exists()  # nothing is deleted


def test_the_link_is_there_at_every_moment(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.open(SPEC)
    link, seen = tmp_path / SPEC.stage, []
    symlink_to = type(link).symlink_to

    def watched(self, target):
        symlink_to(self, target)
        seen.append(link.is_symlink() and link.exists())

    monkeypatch.setattr(type(link), "symlink_to", watched)
    store.open(dataclasses.replace(SPEC, schema=2))
    assert seen == [True]


def test_a_workdir_can_be_moved_with_its_artifacts(tmp_path):
    (Store(tmp_path / "a").open(SPEC) / "file").write_text("x")
    (tmp_path / "a").rename(tmp_path / "b")
    assert (tmp_path / "b" / SPEC.stage / "file").read_text() == "x"
    assert not os.readlink(tmp_path / "b" / SPEC.stage).startswith("/")


def test_a_cache_is_shared_by_workdirs_and_by_relative_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = type(tmp_path)
    first = Store(here("runs/a"), here("cache"))
    (first.open(SPEC) / "file").write_text("x")
    first.finish(SPEC, Ledger())
    second = Store(here("runs/b"), here("cache"))
    assert second.done(SPEC)
    second.open(SPEC)
    assert (tmp_path / "runs/b" / SPEC.stage / "file").read_text() == "x"
    assert not (tmp_path / "runs/a/artifacts").exists()


def test_links_lead_right_where_the_workdir_is_reached_through_a_link(tmp_path):
    """Relative links once counted ".." along the path's text, and led nowhere."""
    real = tmp_path / "deep" / "er" / "disk"
    real.mkdir(parents=True)
    (tmp_path / "scratch").symlink_to(real)
    store = Store(tmp_path / "scratch" / "run", tmp_path / "cache")
    (store.open(SPEC) / "file").write_text("x")
    assert (tmp_path / "scratch/run" / SPEC.stage / "file").read_text() == "x"
    artifacts.link(tmp_path / "scratch/run/report.html", tmp_path / "cache" / "report.html")
    (tmp_path / "cache" / "report.html").write_text("r")
    assert (real / "run/report.html").read_text() == "r"


def test_a_folder_in_the_place_of_a_link_is_not_touched(tmp_path):
    (tmp_path / SPEC.stage).mkdir(parents=True)
    (tmp_path / SPEC.stage / "mine").write_text("x")
    with pytest.raises(artifacts.OccupiedError, match=r"seed0 is a folder.*move it"):
        Store(tmp_path).open(SPEC)
    assert (tmp_path / SPEC.stage / "mine").read_text() == "x"
    assert [p.name for p in (tmp_path / "classify/ce").iterdir()] == ["seed0"]

"""A pool whose writing was killed goes on to the same bytes as one that was not."""

import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from lt_jax.data.pool import PoolError, PoolReader, PoolWriter, open_pool, verify
from tests.data.pool.making import INFO, MANIFEST, columns, pixels, write

PARTS = [[0, 1, 2], [3, 4, 5], [6, 7]]
WANTED = (3, 2)
ROOT = pathlib.Path(__file__).parents[3]

# Part 1 and the end of the pool, killed at the n-th flush to disk (the gates, a shard and a table a
# part, then table and description of the pool), or behind the n-th record of a shard.
SCRIPT = f"""
import os, pathlib, signal, sys
from array_record.python import array_record_module
from lt_jax.runtime import files
from tests.data.pool.making import write

folder, at, number = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
Writer, fsync, calls = array_record_module.ArrayRecordWriter, os.fsync, []

def counted():
    calls.append(None)
    if len(calls) == number:
        os.kill(os.getpid(), signal.SIGKILL)

class Dying:
    def __init__(self, *args):
        self.writer = Writer(*args)
        self.close = self.writer.close

    def write(self, record):
        self.writer.write(record)
        counted()

def flush(descriptor):
    if len(calls) + 1 == number:  # half of it is there
        os.truncate(f"/proc/self/fd/{{descriptor}}", os.fstat(descriptor).st_size // 2)
    counted()
    fsync(descriptor)

if at == "record":
    array_record_module.ArrayRecordWriter = Dying
else:
    os.fsync = flush
write(folder, {PARTS}, {WANTED})
"""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The folder of a pool that nothing has happened to."""
    folder = tmp_path_factory.mktemp("unbroken")
    write(folder, PARTS, WANTED)
    return folder


@pytest.mark.parametrize(
    "at, number, done",
    [
        pytest.param("flush", 1, 0, id="half of the gates"),
        pytest.param("record", 5, 1, id="half a shard"),
        pytest.param("flush", 4, 1, id="a shard that has no name yet"),
        pytest.param("flush", 5, 1, id="half a table, its shard whole"),
        pytest.param("flush", 9, 3, id="between the pool's table and its description"),
    ],
)
def test_killed_and_gone_on(tmp_path, unbroken, at, number, done):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), at, str(number)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with pytest.raises(PoolError, match="no finished pool"):
        open_pool(tmp_path)
    with PoolWriter(tmp_path, INFO) as writer:
        found = writer.finished()
        assert [part["index"].tolist() for part in found] == PARTS[:done]
        for part in range(done, len(PARTS)):
            writer.write(part, pixels()[PARTS[part]], columns(PARTS[part]))
        writer.finish(np.array(WANTED))
    assert_same(tmp_path, unbroken)


def test_killed_between_a_shard_and_its_table(tmp_path, unbroken):
    """The shard that has its name is written anew, though its images were others."""
    with PoolWriter(tmp_path, INFO) as writer:
        writer.write(0, pixels()[PARTS[0]], columns(PARTS[0]))
        writer.write(1, pixels()[PARTS[1]][::-1], columns(PARTS[1]))
    (tmp_path / "parts" / "00001.parquet").unlink()
    with PoolWriter(tmp_path, INFO) as writer:
        assert len(writer.finished()) == 1
        for part in (1, 2):
            writer.write(part, pixels()[PARTS[part]], columns(PARTS[part]))
        writer.finish(np.array(WANTED))
    assert_same(tmp_path, unbroken)


def test_killed_behind_finish_finds_its_parts_again(tmp_path, unbroken):
    """`finish` once removed them: all images were generated anew if the kill came then."""
    write(tmp_path, PARTS, WANTED)
    again = PoolWriter(tmp_path, INFO)
    assert [part["index"].tolist() for part in again.finished()] == PARTS
    assert all((part["verdict"] != "surplus").all() for part in again.finished())
    again.finish(np.array(WANTED))
    assert_same(tmp_path, unbroken)


def test_a_damaged_part_is_named(tmp_path):
    write(tmp_path, PARTS, WANTED)
    (tmp_path / "parts" / "00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(PoolError, match=r"00001\.parquet: no readable table"):
        PoolWriter(tmp_path, INFO).finished()


def assert_same(folder, unbroken):
    """The same files of the same bytes, all intact."""
    pools = [open_pool(path) for path in (folder, unbroken)]
    assert list(verify.problems(pools[0], folder)) == []
    names = [
        sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
        for root in (folder, unbroken)
    ]
    assert names[0] == names[1]
    for name in names[0]:
        assert (folder / name).read_bytes() == (unbroken / name).read_bytes(), name
    np.testing.assert_array_equal(PoolReader(folder, MANIFEST)[np.arange(8)], pixels())

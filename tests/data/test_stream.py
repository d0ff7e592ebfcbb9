"""The loader: the right images, the same ones after a resume, and no thread or process left."""

import gc
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from absl import flags

from lt_jax.auditing.accuracy_score import Joined
from lt_jax.data.images import ArrayImages
from lt_jax.data.stream import MixedStream
from tests.data.pool.making import write

WEIGHT, SHARE = np.array([0.6, 0.3, 0.1]), np.array([0.0, 0.25, 0.7])
SIZES = (50, 20, 7, 5, 9, 11)  # real images of the three classes, then synthetic ones


def images(count: int, first: int) -> np.ndarray:
    """Images [count, 2, 2, 1] that can be told apart: pixels hold first + index."""
    values = (first + np.arange(count)).astype(np.uint8)
    return np.broadcast_to(values[:, None, None, None], (count, 2, 2, 1)).copy()


def rows(sizes) -> list[np.ndarray]:
    return np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])


def make(batch_size: int = 16, seed: int = 3, workers: int = 0) -> MixedStream:
    real, synthetic = SIZES[:3], SIZES[3:]
    return MixedStream(
        images(sum(real), 0),
        rows(real),
        images(sum(synthetic), 100),
        rows(synthetic),
        batch_size=batch_size,
        seed=seed,
        workers=workers,
    )


def take(stream: MixedStream, count: int) -> list[dict[str, np.ndarray]]:
    return [next(stream) for _ in range(count)]


def assert_same(left, right) -> None:
    assert len(left) == len(right)
    for i, (a, b) in enumerate(zip(left, right, strict=True)):
        for name in ("image", "label", "synthetic"):
            np.testing.assert_array_equal(a[name], b[name], err_msg=f"{name} of batch {i}")


def prefetchers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("grain-prefetch")]


def wait_for_no_prefetchers() -> list[threading.Thread]:
    end = time.monotonic() + 5
    while prefetchers() and time.monotonic() < end:
        time.sleep(0.01)
    return prefetchers()


class Counted:
    """A store that notes which of its images were asked for."""

    def __init__(self, held: np.ndarray):
        self.held, self.asked = held, []

    def __len__(self) -> int:
        return len(self.held)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        self.asked += np.asarray(indices).tolist()
        return self.held[indices]


@pytest.mark.parametrize("parts", [2, 4])
def test_the_parts_of_all_processes_are_the_batch(parts):
    whole = make()
    whole.set_mixture(WEIGHT, SHARE)
    batches = take(whole, 9)
    shared = [make() for _ in range(parts)]
    found = []
    for part, stream in enumerate(shared):
        stream.restrict(part, parts)
        stream.set_mixture(WEIGHT, SHARE)
        found.append(take(stream, 9))
        stream.seek(5, None)
        assert_same(found[-1][5:7], take(stream, 2))
        stream.close()
    together = [
        {name: np.concatenate([one[name] for one in same]) for name in same[0]}
        for same in zip(*found, strict=True)
    ]
    assert_same(batches, together)
    whole.close()


def test_no_image_is_lost_or_doubled_and_each_process_reads_its_own_alone():
    asked = []
    for part in range(2):
        store = Counted(images(32, 0))
        stream = MixedStream(store, rows((16, 16)), batch_size=8, seed=5)
        stream.restrict(part, 2)
        stream.set_mixture(np.full(2, 0.5), np.zeros(2))
        given = np.concatenate([batch["image"][:, 0, 0, 0] for batch in take(stream, 4)])
        stream.close()
        assert store.asked[:16] == given.tolist()
        asked.append(given)
    assert sorted(np.concatenate(asked).tolist()) == list(range(32))  # an epoch of four batches


def test_a_batch_is_a_function_of_the_plan_and_its_index():
    sequential = make()
    sequential.set_mixture(WEIGHT, SHARE)
    batches = take(sequential, 6)
    jumping = make()
    jumping.set_mixture(WEIGHT, SHARE)
    for i in (4, 0, 5, 2):
        jumping.seek(i, None)
        assert_same([batches[i]], take(jumping, 1))
    jumping.close()
    sequential.close()


def test_images_labels_and_sources_belong_together():
    stream = make()
    stream.set_mixture(WEIGHT, SHARE)
    edges = {False: np.cumsum(SIZES[:3]), True: np.cumsum(SIZES[3:])}
    for batch in take(stream, 20):
        assert batch["image"].dtype == np.uint8
        assert batch["label"].dtype == np.int32
        for pixel, label, synthetic in zip(
            batch["image"][:, 0, 0, 0], batch["label"], batch["synthetic"], strict=True
        ):
            assert (pixel >= 100) == synthetic
            index = int(pixel) - 100 * synthetic
            assert np.searchsorted(edges[bool(synthetic)], index, side="right") == label
    stream.close()


def test_synthetic_indices_beyond_the_real_store_are_read_from_the_synthetic_one():
    """The first image of a batch once told the shape, by its index in the wrong store."""
    stream = MixedStream(
        images(2, 0), [np.arange(2)], images(90, 100), [np.arange(90)], batch_size=8, seed=0
    )
    stream.set_mixture(np.ones(1), np.full(1, 0.9))
    assert sum(batch["synthetic"].sum() for batch in take(stream, 10)) in (71, 72, 73)
    stream.close()


def test_a_batch_of_synthetic_images_alone_reads_no_real_one():
    class Unreadable:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, indices):
            raise AssertionError("read")

    stream = MixedStream(
        Unreadable(), [np.arange(1)], images(9, 100), [np.arange(9)], batch_size=1, seed=0
    )
    stream.set_mixture(np.ones(1), np.full(1, 1 - 1e-6))
    assert next(stream)["synthetic"].all()
    stream.close()


def test_share_zero_equals_the_stream_of_real_images_alone():
    mixed = make()
    mixed.set_mixture(WEIGHT, np.zeros(3))
    real = MixedStream(images(sum(SIZES[:3]), 0), rows(SIZES[:3]), batch_size=16, seed=3)
    real.set_mixture(WEIGHT, np.zeros(3))
    assert_same(take(mixed, 8), take(real, 8))
    mixed.close()
    real.close()


def unbroken(count: int, workers: int = 0) -> list[dict[str, np.ndarray]]:
    stream = make(workers=workers)
    stream.set_mixture(WEIGHT, SHARE)
    batches = take(stream, 5)
    stream.set_mixture(WEIGHT[::-1], SHARE)
    batches += take(stream, count - 5)
    stream.close()
    return batches


@pytest.mark.parametrize("stop", [3, 5, 7])
def test_a_resumed_stream_equals_an_unbroken_one(stop):
    """Stopped within the first round, between the two, and within the second."""
    batches = unbroken(12)
    stream = make()
    stream.set_mixture(WEIGHT, SHARE)
    if stop > 5:
        take(stream, 5)
        stream.set_mixture(WEIGHT[::-1], SHARE)
    state = json.loads(json.dumps(stream.state()))
    stream.close()

    resumed = make()
    resumed.seek(stop, state)
    if stop < 5:
        resumed.set_mixture(WEIGHT, SHARE)  # as a resumed training does: its round's mixture again
        assert_same(take(resumed, 5 - stop), batches[stop:5])
    resumed.set_mixture(WEIGHT[::-1], SHARE)
    assert_same(take(resumed, 12 - max(stop, 5)), batches[max(stop, 5) :])
    assert len(resumed.plan.segments) == 2
    resumed.close()


def test_setting_the_mixture_again_changes_nothing():
    stream = make()
    stream.set_mixture(WEIGHT, SHARE)
    batches = []
    for _ in range(6):
        batches += take(stream, 2)
        stream.set_mixture(WEIGHT, SHARE)
    assert len(stream.plan.segments) == 1
    plain = make()
    plain.set_mixture(WEIGHT, SHARE)
    assert_same(batches, take(plain, 12))
    stream.close()
    plain.close()


def test_a_new_mixture_holds_from_exactly_the_next_batch_in_spite_of_prefetching():
    stream = make()
    stream.set_mixture(np.array([1.0, 0.0, 0.0]), np.zeros(3))
    before = take(stream, 3)
    time.sleep(0.1)  # the thread has prepared two batches more by now
    stream.set_mixture(np.array([0.0, 1.0, 0.0]), np.zeros(3))
    after = take(stream, 3)
    assert all((batch["label"] == 0).all() for batch in before)
    assert all((batch["label"] == 1).all() for batch in after)

    planned = make()  # had both from the beginning
    planned.seek(0, stream.state())
    assert_same(take(planned, 6), before + after)
    stream.close()
    planned.close()


def test_worker_processes_give_the_same_batches_also_after_changes_and_resumes():
    """Outside of absl.app, too: grain reads absl flags, which nobody has parsed there."""
    parsed = flags.FLAGS.is_parsed()
    flags.FLAGS.unparse_flags()
    try:
        batches = unbroken(9, workers=2)
        assert_same(batches, unbroken(9))
        resumed = make(workers=2)
        plan = make()
        plan.set_mixture(WEIGHT, SHARE)
        resumed.seek(3, json.loads(json.dumps(plan.state())))
        assert_same(take(resumed, 2), batches[3:5])
        resumed.close()
        gc.collect()
    finally:
        if parsed:
            flags.FLAGS.mark_as_parsed()


WORKERS = """
import multiprocessing, sys
import numpy as np
from lt_jax.data.stream import MixedStream

if __name__ == "__main__":
    images = np.zeros((9, 2, 2, 1), np.uint8)
    stream = MixedStream(images, [np.arange(9)], batch_size=4, seed=0, workers=1)
    stream.set_mixture(np.ones(1), np.zeros(1))
    next(stream)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    for _ in sys.stdin:
        print(len(next(stream)["label"]), flush=True)
"""


def alive(pid: int) -> bool:
    stat = pathlib.Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_workers_survive_the_trainings_sigterm_and_not_its_death(tmp_path):
    """They once died of a scheduler's SIGTERM before the training had saved, and once they were
    left behind for ever where the training was killed.
    """
    script = tmp_path / "draw.py"
    script.write_text(WORKERS)
    root = pathlib.Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as training:
        assert training.stdin is not None
        assert training.stdout is not None
        workers = [int(pid) for pid in training.stdout.readline().split()]
        try:
            assert len(workers) == 1
            for pid in workers:
                os.kill(pid, signal.SIGTERM)
            for _ in range(5):  # more than have been prepared
                training.stdin.write("next\n")
                training.stdin.flush()
                assert training.stdout.readline() == "4\n"
            training.kill()
            training.wait()
            end = time.monotonic() + 10
            while any(map(alive, workers)) and time.monotonic() < end:
                time.sleep(0.02)
            assert not any(map(alive, workers))
        finally:
            training.kill()
            for pid in filter(alive, workers):
                os.kill(pid, signal.SIGKILL)


def test_threads_end_when_the_mixture_changes_or_the_stream_closes():
    assert not wait_for_no_prefetchers()
    stream = make()
    for weight in (WEIGHT, WEIGHT[::-1], WEIGHT):
        stream.set_mixture(weight, SHARE)
        take(stream, 2)
    stream.seek(1, None)
    assert not wait_for_no_prefetchers()
    take(stream, 1)
    assert len(prefetchers()) == 1
    stream.close()
    assert not wait_for_no_prefetchers()
    assert_same(take(stream, 1), [make_batch(2)])  # a closed stream opens again where it was
    stream.close()


def make_batch(step: int) -> dict[str, np.ndarray]:
    stream = make()
    for i, weight in enumerate((WEIGHT, WEIGHT[::-1], WEIGHT)):
        stream.seek(2 * i, None)
        stream.set_mixture(weight, SHARE)
    stream.seek(step, None)
    batch = next(stream)
    stream.close()
    return batch


def test_a_failed_read_does_not_count_as_a_batch():
    class Broken(np.ndarray):
        broken = True

        def __getitem__(self, indices):
            if Broken.broken:
                raise OSError("unreadable")
            return np.asarray(self)[indices]

    stream = MixedStream(images(9, 0).view(Broken), [np.arange(9)], batch_size=4, seed=0)
    stream.set_mixture(np.ones(1), np.zeros(1))
    with pytest.raises(OSError, match="unreadable"):
        next(stream)
    Broken.broken = False
    stream.close()
    plain = MixedStream(images(9, 0), [np.arange(9)], batch_size=4, seed=0)
    plain.set_mixture(np.ones(1), np.zeros(1))
    assert_same(take(stream, 2), take(plain, 2))
    stream.close()
    plain.close()


def test_describe_names_source_and_row_of_each_image():
    stream = make()
    stream.set_mixture(WEIGHT, SHARE)
    batch = take(stream, 4)[3]
    words = stream.describe(3).split(", ")
    pixels = batch["image"][:, 0, 0, 0].astype(int)
    expected = [
        f"synthetic row {pixel - 100}" if synthetic else f"real row {pixel}"
        for pixel, synthetic in zip(pixels, batch["synthetic"], strict=True)
    ]
    assert words == expected
    stream.close()


def test_describe_says_ids_where_stores_know_them(tmp_path):
    """Also where images are numbers that lie on the devices, or have been decoded from a pool."""
    np.save(tmp_path / "x.npy", images(4, 0))
    ids = [f"ISIC_{i}" for i in range(4)]
    real = ArrayImages(tmp_path / "x.npy", ids)
    pool = write(tmp_path, [range(8)])
    used = np.array([7, 2, 4])
    held = pool.held(used)
    np.testing.assert_array_equal(held[np.array([2, 0])], pool[used[[2, 0]]])
    parts = real, [np.arange(4)], held, [np.arange(3)]
    stream = MixedStream(*parts, batch_size=16, seed=0)
    stream.set_mixture(np.ones(1), np.full(1, 0.5))
    before = stream.describe(0)
    stream.number([np.arange(4), np.arange(3)])
    assert stream.describe(0) == before
    words = set(before.split(", "))
    assert words == {f"real image {one}" for one in ids} | {
        f"synthetic candidate {index}" for index in used
    }
    both = Joined(held, real)
    assert both.names(np.array([3, 1])) == ["image ISIC_0", "candidate 2"]


def test_drawing_before_any_mixture_is_refused():
    stream = make()
    with pytest.raises(ValueError, match="set_mixture"):
        next(stream)


def test_stores_that_do_not_fit_each_other_are_refused():
    with pytest.raises(ValueError, match="synthetic_rows need"):
        MixedStream(images(4, 0), [np.arange(4)], None, [np.arange(4)], batch_size=2, seed=0)
    with pytest.raises(ValueError, match="2 classes of synthetic rows for 1"):
        MixedStream(
            images(4, 0),
            [np.arange(4)],
            images(4, 100),
            [np.arange(2), np.arange(2, 4)],
            batch_size=2,
            seed=0,
        )
    colour = np.zeros((4, 2, 2, 3), np.uint8)
    stream = MixedStream(
        colour, [np.arange(4)], images(4, 100), [np.arange(4)], batch_size=4, seed=0
    )
    stream.set_mixture(np.ones(1), np.full(1, 0.5))
    with pytest.raises(ValueError, match=r"synthetic images are \(2, 2, 1\), real ones"):
        next(stream)
    stream.close()

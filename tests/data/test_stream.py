"""The loader against what was asked of it: counts, order, resume, changes of the mixture."""

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

from lt_jax.data.stream import MixedStream, Plan

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


def counts_of(plan: Plan, batches) -> np.ndarray:
    """Realised counts [n, 2 k] of the cells, from the draws themselves."""
    return np.stack([np.bincount(plan.draws(i)[0], minlength=len(plan.sizes)) for i in batches])


def prefetchers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("grain-prefetch")]


def wait_for_no_prefetchers() -> list[threading.Thread]:
    end = time.monotonic() + 5
    while prefetchers() and time.monotonic() < end:
        time.sleep(0.01)
    return prefetchers()


@pytest.mark.parametrize("batch_size", [1, 16, 37])
def test_each_batch_holds_the_floor_or_ceiling_of_what_was_asked(batch_size):
    plan = Plan(0, batch_size, SIZES).extended(0, WEIGHT, SHARE)
    asked = batch_size * np.concatenate([WEIGHT * (1 - SHARE), WEIGHT * SHARE])
    counts = counts_of(plan, range(300))
    assert (counts.sum(axis=1) == batch_size).all()
    assert (counts >= np.floor(asked - 1e-9)).all()
    assert (counts <= np.ceil(asked + 1e-9)).all()


def test_counts_over_many_batches_stay_within_a_constant_of_the_expectation():
    plan = Plan(0, 16, SIZES).extended(0, WEIGHT, SHARE)
    asked = 16 * np.concatenate([WEIGHT * (1 - SHARE), WEIGHT * SHARE])
    realised = np.cumsum(counts_of(plan, range(2000)), axis=0)
    expected = asked * np.arange(1, 2001)[:, None]
    # Independent draws would be off by sqrt(2000 * 16 * p (1 - p)), about 90 for the first cell.
    assert np.abs(realised - expected).max() < 4


def test_a_class_too_rare_for_every_batch_comes_up_at_its_rate():
    weight = np.array([0.999, 0.001])
    plan = Plan(0, 16, (50, 3, 0, 0)).extended(0, weight, np.zeros(2))
    counts = counts_of(plan, range(3000))[:, 1]
    assert counts.max() == 1
    assert abs(counts.sum() - 16 * 3000 * 0.001) <= 2


def test_rates_hold_over_rounds_of_a_few_batches():
    """The sequence of offsets goes on across segments: begun anew in each, class 1 never came."""
    weights = [np.array([0.98, 0.02]), np.array([0.99, 0.01])]
    plan = Plan(0, 16, (50, 9, 0, 0))
    for start in range(400):
        plan = plan.extended(start, weights[start % 2], np.zeros(2))
    realised = counts_of(plan, range(400))[:, 1].sum()
    assert abs(realised - 400 * 16 * 0.015) <= 4


def test_cells_of_no_weight_are_never_drawn():
    # Sums such as 0.1 + 0.2 + 0.7 fall short of 1 or pass it by a rounding.
    weight, share = np.array([0.1, 0.2, 0.7, 0.0]), np.array([0.3, 0.0, 0.0, 0.0])
    plan = Plan(0, 128, (9, 9, 9, 0, 4, 0, 0, 0)).extended(0, weight, share)
    counts = counts_of(plan, range(500))
    assert not counts[:, [3, 5, 6, 7]].any()


def test_no_image_comes_twice_before_all_came_once():
    plan = Plan(1, 16, SIZES).extended(0, WEIGHT, SHARE)
    plan = plan.extended(11, WEIGHT[::-1], np.zeros(3)).extended(23, WEIGHT, SHARE)
    drawn = [plan.draws(i) for i in range(60)]
    for cell, size in enumerate(SIZES):
        # Within a batch the order is shuffled, so epochs are told apart by how often each came.
        seen = np.zeros(size, int)
        for cells, positions in drawn:
            np.add.at(seen, positions[cells == cell], 1)
            assert seen.max() - seen.min() <= 1, f"cell {cell}: {seen}"


def test_each_epoch_of_a_cell_has_another_order_and_seeds_differ():
    plan = Plan(1, 4, (4, 0)).extended(0, np.ones(1), np.zeros(1))
    orders = [tuple(plan.draws(i)[1]) for i in range(20)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert len(set(orders)) > 10
    other = Plan(2, 4, (4, 0)).extended(0, np.ones(1), np.zeros(1))
    assert orders != [tuple(other.draws(i)[1]) for i in range(20)]


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


def test_far_batches_count_their_blocks_like_the_sum_of_single_batches():
    plan = Plan(0, 8, SIZES).extended(0, WEIGHT, SHARE)
    later = plan.extended(2500, WEIGHT[::-1], np.zeros(3))
    np.testing.assert_array_equal(later.segments[1].drawn, counts_of(plan, range(2500)).sum(axis=0))


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


def test_describe_names_source_and_index_of_each_image():
    stream = make()
    stream.set_mixture(WEIGHT, SHARE)
    batch = take(stream, 4)[3]
    words = stream.describe(3).split(", ")
    pixels = batch["image"][:, 0, 0, 0].astype(int)
    expected = [
        f"synthetic {pixel - 100}" if synthetic else f"real {pixel}"
        for pixel, synthetic in zip(pixels, batch["synthetic"], strict=True)
    ]
    assert words == expected
    stream.close()


@pytest.mark.parametrize(
    ("weight", "share", "message"),
    [
        ([0.5, 0.4], [0.0, 0.0], "sum to 1"),
        ([1.5, -0.5], [0.0, 0.0], "sum to 1"),
        ([np.nan, 1.0], [0.0, 0.0], "sum to 1"),
        ([0.5, 0.5], [1.0, 0.0], r"shares must lie in \[0, 1\)"),
        ([0.5, 0.5], [-0.1, 0.0], r"shares must lie in \[0, 1\)"),
        ([0.5, 0.5], [np.nan, 0.0], r"shares must lie in \[0, 1\)"),
        ([0.5, 0.5], [0.0, 0.2], "class 1 has no synthetic images"),
        ([1.0], [0.0], "2 classes takes 2 weights"),
    ],
)
def test_mixtures_that_cannot_be_drawn_are_refused(weight, share, message):
    plan = Plan(0, 8, (4, 4, 4, 0))
    with pytest.raises(ValueError, match=message):
        plan.extended(0, np.array(weight), np.array(share))


def test_a_class_without_real_images_is_refused_by_name():
    with pytest.raises(ValueError, match="class 1 has no real images"):
        Plan(0, 8, (4, 0, 0, 4)).extended(0, np.array([0.5, 0.5]), np.array([0.0, 0.5]))


def test_drawing_before_any_mixture_is_refused():
    stream = make()
    with pytest.raises(ValueError, match="set_mixture"):
        next(stream)


def test_a_plan_is_only_appended_to():
    plan = Plan(0, 8, SIZES).extended(5, WEIGHT, SHARE)
    with pytest.raises(ValueError, match="before the last segment"):
        plan.extended(4, WEIGHT[::-1], SHARE)
    with pytest.raises(ValueError, match="batch 5 has a mixture already"):
        plan.extended(5, WEIGHT[::-1], SHARE)
    with pytest.raises(ValueError, match="batch 4 lies before the first mixture"):
        plan.draws(4)


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

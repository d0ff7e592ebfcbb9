"""The loader: batches of real and synthetic images, mixed by per-class ratios that may change.

What batch i holds is a pure function of a small plan, never of how the loader came there. The plan
is an append-only list of segments; each says from which batch on which class weights w_k and
synthetic shares s_k hold. One grain element is one global batch.

Counts. The cells of a batch are (real, k) with probability w_k (1 - s_k) and (synthetic, k) with
w_k s_k. Batch i takes the B points (j + u_i) / B, j = 0..B-1, of the unit interval, which the
cells cut into lengths of their probabilities: systematic sampling, so that each cell gets floor or
ceil of B times its probability, B in all, and a class too rare for every batch still comes up at
its rate. The offsets u_i = frac((i + 1) * golden ratio) make realised counts follow the asked ones
over the batches as well (a low-discrepancy sequence, which goes on across segments).

Draws. The n-th draw of a cell takes entry n mod size of its images in the order of permutation
n // size, a fresh one each epoch of the cell: no image comes twice before all came once.
"""

import dataclasses
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from lt_jax.data.images import Images

GOLDEN = (np.sqrt(5.0) - 1.0) / 2.0
_BLOCK = 1024  # batches whose counts are summed once and kept


@dataclasses.dataclass(frozen=True)
class Segment:
    """From batch `start` on: class weights and synthetic shares.

    `drawn` holds the draws of each cell before `start`: [2 k], real cells first.
    """

    start: int
    class_weight: tuple[float, ...]
    share: tuple[float, ...]
    drawn: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What every batch holds.

    Attributes:
      seed: of the permutations.
      batch_size: images a global batch.
      sizes: images in each cell [2 k]: real ones of each class, then synthetic ones.
      segments: in order of their starts.
    """

    seed: int
    batch_size: int
    sizes: tuple[int, ...]
    segments: tuple[Segment, ...] = ()

    def extended(self, start: int, class_weight: np.ndarray, share: np.ndarray) -> "Plan":
        """The plan with a segment from batch `start` on; the same plan if that mixture is in force
        (so a resumed training may set its round's mixture again, wherever it goes on).

        Raises:
          ValueError: weights that do not sum to 1, shares outside [0, 1), a cell that is asked for
            images and has none, a start before the last segment's, or another mixture at its start.
        """
        weight = np.asarray(class_weight, np.float64)
        share = np.asarray(share, np.float64)
        self._check(start, weight, share)
        mixture = tuple(weight.tolist()), tuple(share.tolist())
        drawn = np.zeros(len(self.sizes), np.int64)
        if self.segments:
            last = self.segments[-1]
            if (last.class_weight, last.share) == mixture:
                return self
            if last.start == start:
                raise ValueError(f"batch {start} has a mixture already; draw it first: {last}")
            drawn = last.drawn + _counts_before(last, self.batch_size, start - last.start)
        new = Segment(start, *mixture, drawn=tuple(drawn.tolist()))
        return dataclasses.replace(self, segments=(*self.segments, new))

    def _check(self, start: int, weight: np.ndarray, share: np.ndarray) -> None:
        classes = len(self.sizes) // 2
        if weight.shape != (classes,) or share.shape != (classes,):
            raise ValueError(f"a mixture of {classes} classes takes {classes} weights and shares")
        if not np.isclose(weight.sum(), 1.0) or (weight < 0).any():
            raise ValueError(f"class weights must be >= 0 and sum to 1, got {weight.tolist()}")
        if not ((share >= 0) & (share < 1)).all():  # thus NaN is refused too
            raise ValueError(f"shares must lie in [0, 1), got {share.tolist()}")
        empty = (_cells(weight, share) > 0) & (np.asarray(self.sizes) == 0)
        if empty.any():
            cell = int(np.argmax(empty))
            kind = "real" if cell < classes else "synthetic"
            raise ValueError(
                f"class {cell % classes} has no {kind} images, but its weight asks for some"
            )
        if self.segments and start < self.segments[-1].start:
            raise ValueError(f"batch {start} lies before the last segment's start")

    def draws(self, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """The cell [b] of each image of `batch` and its position [b] in the cell's image list.

        Raises:
          ValueError: `batch` lies before the first segment.
        """
        segment = next((s for s in reversed(self.segments) if s.start <= batch), None)
        if segment is None:
            raise ValueError(f"batch {batch} lies before the first mixture of the plan")
        i = batch - segment.start
        counts = _batch_counts(segment, self.batch_size, np.array([i]))[0]
        first = np.asarray(segment.drawn) + _counts_before(segment, self.batch_size, i)
        cells = np.repeat(np.arange(len(counts)), counts)
        positions = np.concatenate(
            [
                self._positions(cell, int(first[cell]), int(counts[cell]))
                for cell in np.flatnonzero(counts).tolist()
            ]
        )
        # Mixed within the batch, so that every device's part is like every other's.
        order = np.random.default_rng((self.seed, 1, batch)).permutation(self.batch_size)
        return cells[order], positions[order]

    def _positions(self, cell: int, first: int, count: int) -> np.ndarray:
        size = self.sizes[cell]
        n = np.arange(first, first + count)
        epochs = n // size
        return np.concatenate(
            [
                _permutation(self.seed, cell, int(epoch), size)[n[epochs == epoch] % size]
                for epoch in np.unique(epochs)
            ]
        )


def _cells(weight: np.ndarray, share: np.ndarray) -> np.ndarray:
    return np.concatenate([weight * (1.0 - share), weight * share])


def _batch_counts(segment: Segment, batch_size: int, batches: np.ndarray) -> np.ndarray:
    """Counts [n, 2 k] of the cells in batches `batches` [n], numbered from the segment's start."""
    edges = np.cumsum(_cells(np.asarray(segment.class_weight), np.asarray(segment.share)))
    edges = edges / edges[-1] * batch_size
    # Numbered from the plan's start: a sequence begun anew each segment would, with short
    # segments, give the same cells every time.
    offsets = np.mod((segment.start + batches + 1) * GOLDEN, 1.0)
    # Points j + u below edge e: ceil(e - u), all B of them below the last edge. Cells behind that
    # edge are empty, and stay so where e - u is rounded down to B - 1.
    below = np.ceil(edges[None, :-1] - offsets[:, None]).astype(np.int64)
    below = np.clip(np.where(edges[None, :-1] == batch_size, batch_size, below), 0, batch_size)
    full = np.full((len(batches), 1), batch_size)
    return np.diff(np.concatenate([np.zeros_like(full), below, full], axis=1), axis=1)


@functools.lru_cache(maxsize=4096)
def _block_counts(segment: Segment, batch_size: int, block: int) -> np.ndarray:
    """Counts [2 k] in the first `block` blocks of a segment."""
    if block == 0:
        return np.zeros(2 * len(segment.share), np.int64)
    batches = np.arange((block - 1) * _BLOCK, block * _BLOCK)
    before = _block_counts(segment, batch_size, block - 1)
    return before + _batch_counts(segment, batch_size, batches).sum(axis=0)


def _counts_before(segment: Segment, batch_size: int, batch: int) -> np.ndarray:
    """Counts [2 k] in batches 0..batch-1 of a segment."""
    whole = batch // _BLOCK
    for block in range(whole):  # bottom up: a deep recursion would overflow on long trainings
        _block_counts(segment, batch_size, block)
    rest = np.arange(whole * _BLOCK, batch)
    return _block_counts(segment, batch_size, whole) + _batch_counts(segment, batch_size, rest).sum(
        axis=0
    )


@functools.lru_cache(maxsize=1024)
def _permutation(seed: int, cell: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng((seed, 0, cell, epoch)).permutation(size)


class _Assemble:
    """Batch index -> batch, for grain; holds the plan of the moment."""

    def __init__(
        self, plan: Plan, real: Images, synthetic: Images | None, rows: Sequence[np.ndarray]
    ):
        self.plan, self._real, self._synthetic = plan, real, synthetic
        self._rows = np.concatenate(rows).astype(np.int64)
        self._offsets = np.cumsum([0, *(len(row) for row in rows)])
        self._classes = len(rows) // 2

    def __call__(self, batch: int) -> dict[str, np.ndarray]:
        cells, positions = self.plan.draws(int(batch))
        synthetic = cells >= self._classes
        return {
            "image": self._images(self.indices(cells, positions), synthetic),
            "label": (cells % self._classes).astype(np.int32),
            "synthetic": synthetic,
        }

    def indices(self, cells: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return self._rows[self._offsets[cells] + positions]

    def _images(self, index: np.ndarray, synthetic: np.ndarray) -> np.ndarray:
        if self._synthetic is None or not synthetic.any():
            return self._real[index]
        generated = self._synthetic[index[synthetic]]
        if synthetic.all():
            return generated
        real = self._real[index[~synthetic]]
        if real.shape[1:] != generated.shape[1:]:  # else one channel would be spread over three
            raise ValueError(
                f"synthetic images are {generated.shape[1:]}, real ones {real.shape[1:]}; "
                "use a pool of this run's image size and channels"
            )
        images = np.empty((len(index), *real.shape[1:]), np.uint8)
        images[~synthetic], images[synthetic] = real, generated
        return images


def _follow_parent(worker: int, workers: int) -> None:
    """In a worker process: lives exactly as long as the training.

    SIGTERM and Ctrl-C, which schedulers and terminals send to every process, are the training's to
    answer: it still needs its batches until it has saved. Where it is killed, its workers, which
    would wait for it for ever, end with it.
    """
    del worker, workers
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()  # type: ignore[union-attr]
    os._exit(1)


class MixedStream:
    """An endless, resumable stream of global batches (see `lt_jax.runtime.loop.Stream`).

    Batches are dicts: `image` uint8 [b, h, w, c], `label` int32 [b], `synthetic` bool [b].
    """

    def __init__(
        self,
        real: Images,
        real_rows: Sequence[np.ndarray],
        synthetic: Images | None = None,
        synthetic_rows: Sequence[np.ndarray] | None = None,
        *,
        batch_size: int,
        seed: int,
        workers: int = 0,
    ):
        """The images of each class are `real[real_rows[k]]` and `synthetic[synthetic_rows[k]]`.

        Args:
          workers: grain worker processes; with 0, one thread prepares two batches ahead.

        Raises:
          ValueError: synthetic rows without synthetic images, or of another number of classes.
        """
        if synthetic_rows is not None and synthetic is None:
            raise ValueError("synthetic_rows need the images that they point into: `synthetic`")
        if synthetic_rows is not None and len(synthetic_rows) != len(real_rows):
            raise ValueError(
                f"{len(synthetic_rows)} classes of synthetic rows for {len(real_rows)} of real ones"
            )
        empty = [np.zeros(0, np.int64)] * len(real_rows)
        rows = [*real_rows, *(synthetic_rows if synthetic_rows is not None else empty)]
        plan = Plan(seed=seed, batch_size=batch_size, sizes=tuple(len(row) for row in rows))
        self._assemble = _Assemble(plan, real, synthetic, rows)
        self._workers = workers
        self._next = 0
        self._iterator: Any = None

    @property
    def plan(self) -> Plan:
        """What every batch so far was, and is going to be."""
        return self._assemble.plan

    def set_mixture(self, class_weight: np.ndarray, share: np.ndarray) -> None:
        """From the next batch on, draws class k with weight w_k [k] and synthetic share s_k [k]."""
        plan = self.plan.extended(self._next, class_weight, share)
        if plan is not self.plan:
            self._assemble.plan = plan
            self.close()

    def seek(self, step: int, state: Mapping[str, Any] | None) -> None:
        """Continues at batch `step` under the segments in `state` (None: those set so far)."""
        if state is not None:
            segments = tuple(
                Segment(s["start"], tuple(s["class_weight"]), tuple(s["share"]), tuple(s["drawn"]))
                for s in state["segments"]
            )
            self._assemble.plan = dataclasses.replace(self.plan, segments=segments)
        self._next = step
        self.close()

    def state(self) -> dict[str, Any]:
        """The segments, as JSON."""
        return {"segments": [dataclasses.asdict(segment) for segment in self.plan.segments]}

    def describe(self, step: int) -> str:
        """Source and index of each image of batch `step`."""
        cells, positions = self.plan.draws(step)
        names = np.where(cells >= len(self.plan.sizes) // 2, "synthetic", "real")
        indices = self._assemble.indices(cells, positions)
        return ", ".join(f"{name} {i}" for name, i in zip(names, indices, strict=True))

    def __iter__(self) -> "MixedStream":
        """Itself."""
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """The next batch."""
        if not self.plan.segments:
            raise ValueError("set_mixture must be called before the first batch is drawn")
        if self._iterator is None:
            self._iterator = self._open()
        batch = next(self._iterator)
        self._next += 1
        return batch

    def close(self) -> None:
        """Ends the loader's threads and processes; drawing again opens it again."""
        # Batches of the old plan may have been prefetched: a running iterator must be set back.
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None

    def _open(self) -> Any:
        dataset = grain.MapDataset.range(self._next, 2**31 - 1).map(self._assemble)
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        batches = dataset.to_iter_dataset(options)
        if self._workers:
            if not flags.FLAGS.is_parsed():  # grain reads flags of its own, also outside absl.app
                flags.FLAGS.mark_as_parsed()
            batches = batches.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=1),
                worker_init_fn=_follow_parent,
            )
        return iter(batches)

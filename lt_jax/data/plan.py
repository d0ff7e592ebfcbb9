"""The plan: what every batch holds, of which class and source, as a function of its index alone.

The plan is an append-only list of segments; each says from which batch on which class weights w_k
and synthetic shares s_k hold.

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

import numpy as np

GOLDEN = (np.sqrt(5.0) - 1.0) / 2.0
_BLOCK = 32  # batches whose counts are summed once and kept


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


@functools.lru_cache(maxsize=64)
def _known(segment: Segment, batch_size: int) -> dict[int, np.ndarray]:
    """Counts [2 k] in the first n blocks of a segment, by n, as far as they have been asked for.

    It is filled in by whoever asks next, in any thread: each number has one right entry.
    """
    return {0: np.zeros(2 * len(segment.share), np.int64)}


def _counts_before(segment: Segment, batch_size: int, batch: int) -> np.ndarray:
    """Counts [2 k] in batches 0..batch-1 of a segment."""
    known, whole = _known(segment, batch_size), batch // _BLOCK
    last = next(n for n in range(whole, -1, -1) if n in known)
    for n in range(last, whole):
        batches = np.arange(n * _BLOCK, (n + 1) * _BLOCK)
        known[n + 1] = known[n] + _batch_counts(segment, batch_size, batches).sum(axis=0)
    rest = np.arange(whole * _BLOCK, batch)
    return known[whole] + _batch_counts(segment, batch_size, rest).sum(axis=0)


@functools.lru_cache(maxsize=1024)
def _permutation(seed: int, cell: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng((seed, 0, cell, epoch)).permutation(size)

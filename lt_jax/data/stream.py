"""The loader: batches of real and synthetic images, mixed by per-class ratios that may change.

What batch i holds is a pure function of a small plan (`data.plan`), never of how the loader came
there. One grain element is one global batch, or a process's part of it.
"""

import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from lt_jax.data.images import Images, names_of
from lt_jax.data.plan import Plan, Segment


class _Assemble:
    """Batch index -> batch, for grain; holds the plan of the moment.

    `columns` are pairs of stores, real and synthetic, by the name of what they hold; an entry of a
    batch is read from either, image by image.
    """

    def __init__(
        self, plan: Plan, columns: Mapping[str, tuple[Any, Any]], rows: Sequence[np.ndarray]
    ):
        self.plan, self.columns = plan, dict(columns)
        self.part, self.parts = 0, 1
        self._rows = np.concatenate(rows).astype(np.int64)
        self._offsets = np.cumsum([0, *(len(row) for row in rows)])
        self._classes = len(rows) // 2

    def __call__(self, batch: int) -> dict[str, np.ndarray]:
        cells, positions = (self._own(drawn) for drawn in self.plan.draws(int(batch)))
        synthetic = cells >= self._classes
        index = self.indices(cells, positions)
        return {
            "label": (cells % self._classes).astype(np.int32),
            "synthetic": synthetic,
            **{name: _read(*pair, index, synthetic) for name, pair in self.columns.items()},
        }

    def _own(self, drawn: np.ndarray) -> np.ndarray:
        size = len(drawn) // self.parts
        return drawn[self.part * size : (self.part + 1) * size]

    def sources(self) -> list[tuple[Any, np.ndarray]]:
        rows = np.split(self._rows, [self._offsets[self._classes]])
        pairs = zip(self.columns["image"], rows, strict=True)
        return [(store, own) for store, own in pairs if store is not None]

    def indices(self, cells: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return self._rows[self._offsets[cells] + positions]


def _read(real: Any, generated: Any, index: np.ndarray, synthetic: np.ndarray) -> np.ndarray:
    """Entries `index` [b], each of its own store."""
    if generated is None or not synthetic.any():
        return real[index]
    second = generated[index[synthetic]]
    if synthetic.all():
        return second
    first = real[index[~synthetic]]
    if first.shape[1:] != second.shape[1:]:  # else one channel would be spread over three
        raise ValueError(
            f"synthetic images are {second.shape[1:]}, real ones {first.shape[1:]}; "
            "use a pool of this run's image size and channels"
        )
    both = np.empty((len(index), *first.shape[1:]), first.dtype)
    both[~synthetic], both[synthetic] = first, second
    return both


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
    """An endless, resumable stream of global batches (see `lt_jax.runtime.record.Stream`).

    Batches are dicts: `image` uint8 [b, h, w, c], `label` int32 [b], `synthetic` bool [b], and one
    entry a column.
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
        columns: Mapping[str, tuple[Any, Any]] | None = None,
        workers: int = 0,
    ):
        """The images of each class are `real[real_rows[k]]` and `synthetic[synthetic_rows[k]]`.

        Args:
          columns: what else a batch holds, by name: an array or image store with the rows of
            `real`, and one with those of `synthetic` (None where there are none).
          workers: grain worker processes; with 0, one thread prepares four batches ahead.

        Raises:
          ValueError: synthetic rows without synthetic images, or of another number of classes; or
            a column that synthetic images lack.
        """
        columns = {"image": (real, synthetic), **(columns or {})}
        if lacking := [
            n for n, pair in columns.items() if (pair[1] is None) != (synthetic is None)
        ]:
            raise ValueError(f"column {lacking[0]!r} must be known of synthetic images as of real")
        if synthetic_rows is not None and synthetic is None:
            raise ValueError("synthetic_rows need the images that they point into: `synthetic`")
        if synthetic_rows is not None and len(synthetic_rows) != len(real_rows):
            raise ValueError(
                f"{len(synthetic_rows)} classes of synthetic rows for {len(real_rows)} of real ones"
            )
        empty = [np.zeros(0, np.int64)] * len(real_rows)
        rows = [*real_rows, *(synthetic_rows if synthetic_rows is not None else empty)]
        plan = Plan(seed=seed, batch_size=batch_size, sizes=tuple(len(row) for row in rows))
        self._assemble = _Assemble(plan, columns, rows)
        self._stores = real, synthetic  # that know the names, when columns are numbers
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

    def sources(self) -> list[tuple[Any, np.ndarray]]:
        """The image stores, real and, where there is one, synthetic, with the rows drawn from."""
        return self._assemble.sources()

    def number(self, tables: Sequence[np.ndarray]) -> None:
        """From the next batch on, `image` is int32 [b]: tables[i][r] of row r of store i.

        Where images lie on the devices (`runtime.resident`), numbers are all that they need.
        """
        self._assemble.columns["image"] = (tables[0], tables[1] if len(tables) > 1 else None)
        self._workers = 0  # nothing is decoded
        self.close()

    def restrict(self, part: int, parts: int) -> None:
        """From the next batch on, gives and decodes the `part`-th of `parts` equal parts of each.

        Batches stay what they are: the parts of a batch, in order, are the batch.
        """
        if (part, parts) != (self._assemble.part, self._assemble.parts):
            self._assemble.part, self._assemble.parts = part, parts
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
        """Source and name of each image of batch `step`, as its store calls it."""
        cells, positions = self.plan.draws(step)
        synthetic = cells >= len(self.plan.sizes) // 2
        indices = self._assemble.indices(cells, positions)
        words = np.empty(len(cells), object)
        for kind, store, own in zip(
            ("real", "synthetic"), self._stores, (~synthetic, synthetic), strict=True
        ):
            words[own] = [f"{kind} {name}" for name in names_of(store, indices[own])]
        return ", ".join(words)

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
        # Four batches ahead: on few cores the thread waits for a core while devices compute.
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        batches = dataset.to_iter_dataset(options)
        if self._workers:
            if not flags.FLAGS.is_parsed():  # grain reads flags of its own, also outside absl.app
                flags.FLAGS.mark_as_parsed()
            batches = batches.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=1),
                worker_init_fn=_follow_parent,
            )
        return iter(batches)

"""PyTorch's DataLoader over the same image stores as ours: the same decoding and the same crop."""

import dataclasses
from typing import Any

import numpy as np

from experiments.throughput.cases import Case
from experiments.throughput.peers import load
from lt_jax.data.images import Images

data = load("torch.utils.data")


@dataclasses.dataclass(frozen=True)
class Rows:
    """A map-style dataset: an image of a store and its label. Read in worker processes, too."""

    store: Images
    labels: np.ndarray

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        """Image uint8 [h w c] and label."""
        return self.store[np.array([row])][0], int(self.labels[row])


def case(name: str, store: Images, labels: np.ndarray, batch_size: int, workers: int) -> Case:
    """The next batch, of images drawn at random for ever."""
    rows = Rows(store, labels)
    # Worker processes are spawned: a fork of a process with JAX's threads may hang.
    parallel: dict[str, Any] = {"multiprocessing_context": "spawn", "persistent_workers": True}
    loader = data.DataLoader(
        rows, batch_size, num_workers=workers, drop_last=True,
        sampler=data.RandomSampler(rows, replacement=True, num_samples=2**40),
        **(parallel if workers else {}),
    )  # fmt: skip
    batches = iter(loader)

    def close() -> None:
        if workers:
            batches._shutdown_workers()  # type: ignore[attr-defined]

    # Two batches wait in each worker, and one is made; and while these are thrown away, a loader
    # whose turn it was before gets to fill its buffer, which it would else do in this one's turn.
    return Case(
        name, lambda: next(batches), batch_size, drain=8 + 3 * workers, wait=lambda _: None,
        close=close,
    )  # fmt: skip

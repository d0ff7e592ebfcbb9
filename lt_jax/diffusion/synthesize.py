"""Fills a pool: candidates in waves through the fused program, until each class has its images.

Candidate i of a pool has class i mod K, noise from fold_in(key, i), and what it is asked to show
(`requests`) from (seed, i): it depends on these alone. Classes are filled in waves; a wave asks for
what is missing over the rate of acceptance so far, until every class has what it asked for or its
budget of attempts is spent. While the device works on a batch, the one before it is written.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lt_jax.config import SynthesizeConfig
from lt_jax.data.pool import PoolWriter
from lt_jax.data.pool.schema import judgements
from lt_jax.diffusion.program import Cut, Fetched, Judged, cut
from lt_jax.runtime import faults, files, ledger, mesh
from lt_jax.runtime.progress import Progress
from lt_jax.selection.select import Verdict
from lt_jax.shapes import Array, Int

_COSTS = "ledger.json"
Columns = dict[str, Any]
Requested = Callable[[np.ndarray], tuple[Any, Columns]]


def wanted_counts(config: SynthesizeConfig, counts: np.ndarray) -> np.ndarray:
    """Accepted images [k] that each class of `counts` [k] train images should get."""
    if config.counts:
        return np.array(config.counts, np.int64)
    missing = np.maximum((config.fill_to or counts.max()) - counts, 0)
    return np.maximum(missing, np.ceil(config.min_dose * counts)).astype(np.int64)


def next_wave(
    wanted: np.ndarray, accepted: np.ndarray, generated: np.ndarray, max_attempts: float
) -> np.ndarray:
    """Candidates [k] to generate next: what is missing over the acceptance rate, within budget."""
    missing = np.maximum(wanted - accepted, 0)
    rate = np.where(generated > 0, (accepted + 1.0) / (generated + 2.0), 1.0)
    budget = np.ceil(max_attempts * wanted).astype(np.int64) - generated
    return np.where(missing > 0, np.minimum(np.ceil(missing / rate), budget), 0).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where candidates come from.

    Attributes:
      program: (indices [batch_size], their request, its source images) -> a judged batch;
        everything else is bound.
      requests: indices [b] -> their request, and columns of the pool; see `requests.Requests`.
      num_classes: candidate i has class i mod this.
      batch_size: of the program.
      scores: names of the ensemble's members.
      train_ids: manifest ids of the bank's rows.
    """

    program: Callable[[Int[Array, "b"], Any, Any], Judged]
    requests: Requested
    num_classes: int
    batch_size: int
    scores: tuple[str, ...] = ()
    train_ids: Sequence[str] = ()

    def ask(self, indices: np.ndarray) -> tuple[Any, Columns]:
        """What up to `batch_size` candidates are asked for, on host: arguments, and columns."""
        padded = mesh.pad(indices, self.batch_size).astype(np.int32)
        request, asked = self.requests(padded)
        alone = request.replace(source=None)  # donated, and so an argument of its own
        return (jnp.asarray(padded), alone, request.source), asked

    def finish(self, indices: np.ndarray, made: Cut, asked: Columns) -> tuple[Fetched, Columns]:
        """The images that leave, and the columns of all candidates `indices`."""
        fetched, n = made.fetch(), len(indices)
        labels = (indices % self.num_classes).astype(np.int32)
        told = {name: column[:n] for name, column in asked.items()}
        kept = fetched.rows < n
        columns = {"index": indices, "label": labels, **told, **self._judged(fetched.verdict, n)}
        return dataclasses.replace(
            fetched, images=fetched.images[kept], rows=fetched.rows[kept]
        ), columns

    def _judged(self, verdict: Verdict, n: int) -> Columns:
        nearest = verdict.nearest[:n].tolist()
        return {
            "score": verdict.score[:n],
            "scores": [
                json.dumps(dict(zip(self.scores, map(float, row), strict=True)))
                for row in verdict.scores[:n]
            ],
            "label_probability": verdict.label_probability[:n],
            "cosine": verdict.cosine[:n],
            "ms_ssim": verdict.ms_ssim[:n],
            "nearest": ["" if row < 0 else self.train_ids[row] for row in nearest],
            **judgements(~verdict.passed[:n]),
        }


def synthesize(
    source: Source,
    wanted: np.ndarray,
    max_attempts: float,
    writer: PoolWriter,
    *,
    device_mesh: Mesh,
    folder: pathlib.Path,
    flops_per_image: float,
) -> ledger.Ledger:
    """Fills `wanted` [k] images a class into the pool, going on behind parts that are written.

    Args:
      source: of candidates.
      wanted: accepted images a class.
      max_attempts: candidates of a class at most, over `wanted`.
      writer: the pool's; it is not finished here.
      folder: of the stage; the ledger of an interrupted generation is kept there.
    """
    mesh.check_batch(source.batch_size, device_mesh, "config.synthesize.batch_size")
    classes = len(wanted)
    finished = writer.finished()
    costs = _costs_before(folder) if finished else ledger.Ledger()
    clock = ledger.Clock(costs)
    accepted, generated = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    part = 0
    with Progress("synthesize", int(wanted.sum()), "image") as bar:
        while (wave := next_wave(wanted, accepted, generated, max_attempts)).any():
            for columns in _wave(
                source, _chunks(wave, generated, source.batch_size), finished[part:], part, writer
            ):
                costs.images += len(columns["index"])
                costs.flops += flops_per_image * len(columns["index"])
                if part >= len(finished):
                    clock.read()
                    _book(folder, costs)
                    faults.raise_if_stopping(f"synthesize, part {part}")
                kept = columns["label"][np.asarray(columns["verdict"]) == "accepted"]
                accepted += np.bincount(kept, minlength=classes)
                part += 1
                bar.update(int(np.minimum(accepted, wanted).sum()))
            generated += wave
    clock.read()
    return costs


def _costs_before(folder: pathlib.Path) -> ledger.Ledger:
    """Of the runs before this one: seconds only.

    The rest is counted from the parts, since a kill may fall between a part and the ledger's file.
    """
    path = folder / _COSTS
    if not path.exists():
        return ledger.Ledger()
    return ledger.Ledger(seconds=ledger.Ledger.of(json.loads(path.read_text())).seconds)


def _book(folder: pathlib.Path, costs: ledger.Ledger) -> None:
    files.write_atomically(folder / _COSTS, json.dumps(dataclasses.asdict(costs)), "the ledger")


def _chunks(wave: np.ndarray, generated: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """The indices of a wave, `wave` [k] behind the `generated` [k] of each class, in batches."""
    classes = len(wave)
    indices = [(generated[k] + np.arange(wave[k])) * classes + k for k in range(classes)]
    ordered = np.sort(np.concatenate(indices))
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]


def _wave(
    source: Source,
    chunks: list[np.ndarray],
    finished: Sequence[Columns],
    part: int,
    writer: PoolWriter,
) -> Iterator[Columns]:
    """The columns of each chunk; from where `finished` ends they are generated and written."""
    yield from finished[: len(chunks)]
    done = min(len(finished), len(chunks))
    behind: tuple[int, np.ndarray, Judged, Columns] | None = None

    def written(number: int, indices: np.ndarray, made: Cut, asked: Columns) -> Columns:
        fetched, columns = source.finish(indices, made, asked)
        writer.write(number, fetched.images, columns, fetched.rows)
        return columns

    for number in range(done, len(chunks)):
        # In this order: the request is made while the batch before it is on the device, whose
        # images are cut out before the device goes on, and copied and written while it does.
        arguments, asked = source.ask(chunks[number])
        made = cut(behind[2]) if behind else None
        judged = source.program(*arguments)
        if behind and made:
            yield written(behind[0], behind[1], made, behind[3])
        behind = part + number, chunks[number], judged, asked
    if behind:
        yield written(behind[0], behind[1], cut(behind[2]), behind[3])

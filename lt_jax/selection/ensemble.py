"""Several out-of-distribution scores as one: the mean of calibrated ranks.

Scores have different units. Each is turned into its rank among scores of real train images that the
scorer has not seen (cross-fitting; `calibration.held_out_scores`), of which class k has m_k:

  F_k(s) = share of the class's held-out scores below s, equal ones counted half          (1)
  rank_k(s) = c_k F_k(s) + (1 - c_k) F(s),   c_k = m_k / (m_k + pooling)                  (2)
  combined = mean over scores of rank_k                                                   (3)

F is the share of all held-out scores, in which class k weighs c_k in sum, as in the thresholds of
`calibration`: a class of a few images is ranked among all. (3) lies in [0, 1]; it says how unusual
an image is, not how far out, and a score beyond all that real images had counts as 1 however far.

The combined score of a single scorer is its own, without ranks: a threshold on the one is a
threshold on the other. With none, every image has 0 and passes.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.selection import calibration
from lt_jax.selection.scorer import Evidence, FitError, Scorer
from lt_jax.shapes import Array, Float, Int, Labels

SEED = 0  # of the folds; which rows they hold depends on the order of rows alone
CHUNK = 1024  # images that are scored at once: neighbours and ranks take as many rows of n numbers


@flax.struct.dataclass
class Ranks:
    """Held-out scores [n m] and labels [n], an image's weight in its F_k and in F [n], c [k]."""

    scores: Any
    labels: Any
    own: Any
    pooled: Any
    credibility: Any


@flax.struct.dataclass
class EnsembleState:
    """Each member's state, and the ranks; None where there are not two members to combine."""

    members: tuple[Any, ...]
    ranks: Ranks | None


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Equation (3). Hashable; holds no array.

    Attributes:
      members: (name, scorer), in the order of their scores.
      num_classes: labels are in [0, num_classes).
      folds: by which train images are held out for ranks.
      pooling: images at which a class's own ranks weigh half.
    """

    members: tuple[tuple[str, Scorer], ...]
    num_classes: int
    folds: int = 5
    pooling: float = 20.0

    @property
    def names(self) -> tuple[str, ...]:
        """Of the members."""
        return tuple(name for name, _ in self.members)

    def fit(self, evidence: Evidence) -> EnsembleState:
        """From real train images. Runs on host; several members are fitted `folds` + 1 times.

        The same evidence gives the same state.

        Raises:
          FitError: a class has no image, what a member reads is not finite, or not there.
        """
        evidence = jax.tree.map(np.asarray, evidence)
        fitted, labels = self._fit_members(evidence), evidence.labels
        if len(self.members) < 2:
            return EnsembleState(fitted, None)

        def score(rest: np.ndarray, held: np.ndarray) -> np.ndarray:
            state = self._fit_members(jax.tree.map(lambda leaf: leaf[rest], evidence))
            scored = functools.partial(self._scores, state)
            return score_rows(scored, evidence, np.flatnonzero(held), self.largest_fold(labels))

        scores = calibration.held_out_scores(score, labels, self.folds, SEED)
        if np.isnan(scores).all():
            # No class has two images: the fit's own scores stand in for held-out ones.
            scored = functools.partial(self._scores, fitted)
            scores = score_rows(scored, evidence, np.arange(len(labels)))
        return EnsembleState(fitted, _ranks(scores, labels, self))

    @functools.partial(jax.jit, static_argnums=0)
    def score(
        self, state: EnsembleState, evidence: Evidence
    ) -> tuple[Float[Array, "b"], Float[Array, "b m"]]:
        """The combined score, and each member's own; NaN where a member's is.

        Raises:
          FitError: a member reads what the evidence does not have.
        """
        each = self._scores(state.members, evidence)
        if not self.members:
            return jnp.zeros(evidence.labels.shape), each
        if state.ranks is None:
            return each[:, 0], each
        ranks = [
            _rank(state.ranks, i, each[:, i], evidence.labels) for i in range(len(self.members))
        ]
        return jnp.mean(jnp.stack(ranks, axis=1), axis=1), each

    def largest_fold(self, labels: Int[np.ndarray, "n"]) -> int:
        """Rows of the largest of the folds."""
        return -(-len(labels) // self.folds)

    def _fit_members(self, evidence: Evidence) -> tuple[Any, ...]:
        return tuple(
            scorer.fit(_read(name, scorer, evidence), evidence.logits, evidence.labels)
            for name, scorer in self.members
        )

    @functools.partial(jax.jit, static_argnums=0)
    def _scores(self, states: tuple[Any, ...], evidence: Evidence) -> Float[Array, "b m"]:
        found = [
            scorer.score(state, _read(name, scorer, evidence), evidence.logits, evidence.labels)
            for (name, scorer), state in zip(self.members, states, strict=True)
        ]
        return jnp.stack(found, axis=1) if found else jnp.zeros((len(evidence.labels), 0))


def score_rows(
    score: Callable[[Evidence], Array],
    evidence: Evidence,
    rows: Int[np.ndarray, "r"],
    width: int = 0,
) -> Float[np.ndarray, "r ..."]:
    """Scores of these rows of the evidence, on host, at most CHUNK at a time.

    Args:
      score: of evidence of any number of images, each by itself.
      evidence: of n images, in NumPy's arrays.
      rows: whose scores, in order.
      width: in batches as large as if there were so many rows, so that folds of about one size
        share a program; 0: as many as there are.
    """
    if not len(rows):
        return np.zeros(0, np.float32)
    size = min(CHUNK, max(width, len(rows)))
    found = []
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        padded = np.resize(chunk, size)
        taken = jax.tree.map(lambda leaf, at=padded: jnp.asarray(leaf[at]), evidence)
        found.append(np.asarray(score(taken))[: len(chunk)])
    return np.concatenate(found)


def _read(name: str, scorer: Scorer, evidence: Evidence) -> Any:
    found = getattr(evidence, scorer.reads)
    if found is None:
        raise FitError(
            f"the score {name!r} reads {scorer.reads!r}, which was not measured on these images; "
            "measure it, or leave the score out of selection.scores"
        )
    return found


def _ranks(
    scores: Float[np.ndarray, "n m"], labels: Int[np.ndarray, "n"], ensemble: Ensemble
) -> Ranks:
    """The weights of (1) and (2). An image that was not held out, NaN in `scores`, weighs 0."""
    known = np.isfinite(scores.sum(axis=1))
    counts = np.bincount(labels[known], minlength=ensemble.num_classes)
    credibility = calibration.credibility(counts, ensemble.pooling)
    own = np.where(known, 1 / np.maximum(counts, 1)[labels], 0.0)
    pooled = own * credibility[labels]
    as_state = lambda array: jnp.asarray(array, jnp.float32)
    return Ranks(
        scores=as_state(np.where(known[:, None], scores, np.inf)),
        labels=jnp.asarray(labels, jnp.int32),
        own=as_state(own),
        pooled=as_state(pooled / pooled.sum()),
        credibility=as_state(credibility),
    )


def _rank(
    ranks: Ranks, member: int, scores: Float[Array, "b"], labels: Labels
) -> Float[Array, "b"]:
    """Equation (2); NaN for NaN, of which a comparison would make the lowest rank."""
    known, scores_ = ranks.scores[:, member][None], scores[:, None]
    below = (known < scores_) + 0.5 * (known == scores_)
    mine = ranks.labels[None] == labels[:, None]
    own = jnp.sum(jnp.where(mine, below * ranks.own[None], 0.0), axis=1)
    pooled = jnp.sum(below * ranks.pooled[None], axis=1)
    credibility = ranks.credibility[labels]
    rank = credibility * own + (1 - credibility) * pooled
    return jnp.where(jnp.isnan(scores), jnp.nan, rank)

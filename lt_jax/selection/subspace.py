"""Out-of-distribution scores of what the features' principal subspace leaves unexplained.

With mu the mean of all train features and R the directions beside the principal subspace, the
smallest that holds a share `explained` of their variance,

  residual(f) = |(f - mu) R|                                                              (1)
  vim(f) = alpha residual(f) - log sum_j exp(z_j),   alpha = <max_j z_j> / <residual>     (2)

with logits z and < > the mean over train images (Wang et al. 2022, arXiv:2203.10807, section 4): a
"virtual logit" alpha residual, as large as logits are, against the energy of the real ones. Their
softmax of the virtual logit is a rising function of (2). Two things differ from the paper. It
centres at the point of which all logits are 0, which needs the weights behind them; here it is the
mean, as in principal component analysis. And alpha is no less than 0, where logits are negative.

Tail classes have little say in a common subspace, and their images lie further from it: both scores
are standardised by class (`standardize`), which leaves the order within a class as published.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.selection.scorer import check_fit
from lt_jax.selection.standardize import Moments, moments, standardize
from lt_jax.shapes import Array, Features, Float, Int, Labels, Logits


@flax.struct.dataclass
class SubspaceState:
    """mu [d], R [d d] with columns of zeros for principal directions, alpha [], and moments."""

    centre: Any
    beside: Any
    alpha: Any
    moments: Moments


@dataclasses.dataclass(frozen=True)
class Residual:
    """Equation (1), standardised by class.

    The subspace leaves at least one direction out, and an `explained` of 1 leaves out those in
    which train features do not vary.
    """

    num_classes: int
    explained: float = 0.9
    reads: ClassVar[str] = "features"

    def fit(
        self,
        features: Float[np.ndarray | Array, "n d"],
        logits: Float[np.ndarray | Array, "n k"],
        labels: Int[np.ndarray | Array, "n"],
    ) -> SubspaceState:
        """Subspace, alpha and moments by class. See `Scorer.fit`."""
        features, logits = np.asarray(features), np.asarray(logits)
        known = {"features": features, "logits": logits}
        check_fit(known, np.asarray(labels), self.num_classes)
        centre, beside = _beside(features, self.explained)
        distances = np.linalg.norm((features - centre) @ beside, axis=1)
        largest = np.mean(np.max(logits, axis=1), dtype=np.float64)
        alpha = max(largest / distances.mean(), 0.0) if distances.any() else 0.0
        as_state = lambda array: jnp.asarray(array, jnp.float32)
        empty = Moments(jnp.zeros(self.num_classes), jnp.ones(self.num_classes))
        state = SubspaceState(as_state(centre), as_state(beside), as_state(alpha), empty)
        raw = self.raw(state, jnp.asarray(features), jnp.asarray(logits))
        return dataclasses.replace(state, moments=moments(raw, labels, self.num_classes))

    def score(
        self, state: SubspaceState, features: Features, logits: Logits, labels: Labels
    ) -> Float[Array, "b"]:
        """Standard deviations from the class's mean."""
        return standardize(state.moments, self.raw(state, features, logits), labels)

    @functools.partial(jax.jit, static_argnums=0)
    def raw(self, state: SubspaceState, features: Features, logits: Logits) -> Float[Array, "b"]:
        """Equation (1), in units of features; `logits` are not used."""
        del logits
        return _residual(state, features)


@dataclasses.dataclass(frozen=True)
class ViM(Residual):
    """Equation (2), standardised by class; the subspace as of `Residual`."""

    @functools.partial(jax.jit, static_argnums=0)
    def raw(self, state: SubspaceState, features: Features, logits: Logits) -> Float[Array, "b"]:
        """Equation (2), in units of logits."""
        return state.alpha * _residual(state, features) - jax.nn.logsumexp(logits, axis=1)


def _residual(state: SubspaceState, features: Features) -> Float[Array, "b"]:
    multiply = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    return jnp.linalg.norm(multiply(features - state.centre[None], state.beside), axis=1)


def _beside(features: np.ndarray, explained: float) -> tuple[np.ndarray, np.ndarray]:
    """The mean [d] and R [d d], in float64."""
    features = features.astype(np.float64)
    dimension = features.shape[1]
    centre = features.mean(axis=0)
    centred = features - centre
    variances, directions = np.linalg.eigh(centred.T @ centred / len(features))
    variances, directions = np.maximum(variances[::-1], 0), directions[:, ::-1]
    share = np.cumsum(variances) / max(variances.sum(), np.finfo(np.float64).tiny)
    # 1e-9: the last share may fall short of 1 by a rounding.
    principal = int(np.searchsorted(share, explained - 1e-9)) + 1 if explained > 0 else 0
    kept = np.arange(dimension) >= min(principal, dimension - 1)
    return centre, directions * kept

"""Deep nearest neighbours: distance to the k-th nearest train image of the class.

With u(f) = f / |f| (Sun et al. 2022, arXiv:2204.06507, eq. 2), r(f, y) is the distance from u(f) to
its j_y-th nearest among the train images of class y, of which there are n_y:

  r(f, y) = |u(f) - u_(j_y)|,   j_y = min(neighbors, n_y)                                 (1)

Among those of one class, where Sun et al. search all images: a synthetic image is judged by the
class that it is meant to show, and a good image of another class is no neighbour. But r is large
where images are few: the nearest of 5 is further than the nearest of 5000. It is standardised by
mean and variance of what a new image of the class would have,

  score(f, y) = (r(f, y) - M_y) / sqrt(V_y)                                               (2)

which come from real images in the place of the new one. An image of class c has N_c = n_c - 1
others, at distances d_1 <= d_2 <= ...; had there been n of these, drawn at random, the j-th nearest
of them would have been the t-th nearest of all N_c with probability

  P(t) = C(t-1, j-1) C(N_c - t, n - j) / C(N_c, n),   j <= t <= N_c - n + j               (3)

so that moments m_c(n) = sum_t P(t) (d_t, d_t^2), averaged over images of class c, are known for
every n up to N_c without a draw. `pooled(n)` averages mean and variance over the classes with as
many others; where none has, over those with the most. A class's own, at N_y others, are brought to
n_y as the pooled ones change, and shrunk towards these (Buhlmann 1967, ASTIN Bulletin 4, 199-207):

  (M_y, V_y) = c_y own(N_y) pooled(n_y) / pooled(N_y) + (1 - c_y) pooled(n_y)             (4)
  c_y = N_y / (N_y + POOLING)                                                             (5)

A class of one image has c_y = 0: its one neighbour is as far as other classes let expect of one.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.selection.scorer import check_fit
from lt_jax.selection.sphere import unit
from lt_jax.shapes import Array, Features, Float, Int, Labels, Logits

POOLING = 20.0  # other images at which a class's own moments weigh half
ANCHORS = 256  # images of a class, at most, that stand for a new one
PADDING = 128  # rows of a bank come in multiples: folds of about one size share a program


@flax.struct.dataclass
class NeighborsState:
    """Unit features [m d], their labels [m] (-1: no image), j [k], M [k] and sqrt(V) [k]."""

    bank: Any
    labels: Any
    ranks: Any
    means: Any
    spreads: Any


@dataclasses.dataclass(frozen=True)
class KNearest:
    """Equation (2)."""

    num_classes: int
    neighbors: int = 5
    reads: ClassVar[str] = "features"

    def fit(
        self,
        features: Float[np.ndarray | Array, "n d"],
        logits: Float[np.ndarray | Array, "n k"],
        labels: Int[np.ndarray | Array, "n"],
    ) -> NeighborsState:
        """The train images, and moments by class. See `Scorer.fit`; `logits` are not used."""
        del logits
        features, labels = np.asarray(features, np.float32), np.asarray(labels)
        check_fit({"features": features}, labels, self.num_classes)
        directions = np.asarray(unit(features))
        counts = np.bincount(labels, minlength=self.num_classes)
        profiles = [_profile(directions[labels == label]) for label in range(self.num_classes)]
        means, variances = _expected(profiles, counts, self.neighbors)
        missing = -len(labels) % PADDING
        return NeighborsState(
            bank=jnp.asarray(np.pad(directions, ((0, missing), (0, 0)))),
            labels=jnp.asarray(np.pad(labels, (0, missing), constant_values=-1), jnp.int32),
            ranks=jnp.asarray(np.minimum(self.neighbors, counts), jnp.int32),
            means=jnp.asarray(means, jnp.float32),
            spreads=jnp.asarray(np.sqrt(np.where(variances > 0, variances, 1.0)), jnp.float32),
        )

    def score(
        self, state: NeighborsState, features: Features, logits: Logits, labels: Labels
    ) -> Float[Array, "b"]:
        """Equation (2); `logits` are not used."""
        distances = self.raw(state, features, logits, labels)
        return (distances - state.means[labels]) / state.spreads[labels]

    def raw(
        self, state: NeighborsState, features: Features, logits: Logits, labels: Labels
    ) -> Float[Array, "b"]:
        """Equation (1), in [0, 2]; b m numbers at a time, for m train images."""
        del logits
        probes = unit(features)
        likeness = jnp.matmul(probes, state.bank.T, precision=jax.lax.Precision.HIGHEST)
        own = state.labels[None] == labels[:, None]
        count = min(self.neighbors, state.bank.shape[0])
        _, rows = nearest_rows(jnp.where(own, likeness, -jnp.inf), count)
        row = jnp.take_along_axis(rows, state.ranks[labels][:, None] - 1, axis=1)[:, 0]
        # Anew from the difference: 2 - 2 cos has no digits left for what is near.
        return jnp.linalg.norm(probes - state.bank[row], axis=1)


def nearest_rows(
    likeness: Float[Array, "b n"], count: int
) -> tuple[Float[Array, "b p"], Int[Array, "b p"]]:
    """The `count` highest of each row and their places, highest first, the lowest place of equals.

    One by one: `jax.lax.top_k` of an array that is split over devices gathers it on each of them.
    """

    def take(left, _):
        place = jnp.argmax(left, axis=1, keepdims=True)
        value = jnp.take_along_axis(left, place, axis=1)
        taken = jnp.arange(left.shape[1])[None] == place
        return jnp.where(taken, -jnp.inf, left), (value[:, 0], place[:, 0])

    _, (values, places) = jax.lax.scan(take, likeness, length=count)
    return values.T, places.T


def _profile(directions: np.ndarray) -> np.ndarray:
    """Mean over images of one class [n d] of (d_t, d_t^2), t = 1 ... n - 1: [n-1 2]."""
    count = len(directions)
    anchors = np.unique(np.linspace(0, count - 1, ANCHORS).astype(int))
    squares = np.maximum(2 - 2 * directions[anchors].astype(np.float64) @ directions.T, 0.0)
    others = squares[np.arange(count)[None] != anchors[:, None]].reshape(len(anchors), count - 1)
    squares = np.sort(others, axis=1)
    return np.stack([np.sqrt(squares).mean(axis=0), squares.mean(axis=0)], axis=1)


def _expected(
    profiles: list[np.ndarray], counts: np.ndarray, neighbors: int
) -> tuple[np.ndarray, np.ndarray]:
    """Equations (3)-(5): M [k] and V [k]; 0 and 1 where no class has two images."""
    most = int(counts.max()) - 1
    if most == 0:
        return np.zeros(len(counts)), np.ones(len(counts))

    def of_class(label: int, n: int) -> np.ndarray:
        weights = _order_weights(len(profiles[label]), n, min(neighbors, n))
        mean, square = weights @ profiles[label]
        return np.stack([mean, max(square - mean**2, 0.0)])

    @functools.cache
    def pooled(n: int) -> np.ndarray:
        able = np.flatnonzero(counts > min(n, most)).tolist()
        others = counts[able] - 1
        return np.average(
            [of_class(c, min(n, most)) for c in able], axis=0, weights=others / (others + POOLING)
        )

    moments = []
    for label, count in enumerate(counts.tolist()):
        moment = pooled(count)
        if others := count - 1:
            before = pooled(others)
            growth = np.where(before > 0, moment / np.where(before > 0, before, 1.0), 1.0)
            credibility = others / (others + POOLING)
            own = of_class(label, others) * growth
            moment = credibility * own + (1 - credibility) * moment
        moments.append(moment)
    means, variances = np.stack(moments, axis=1)
    return means, variances


def _order_weights(total: int, n: int, j: int) -> np.ndarray:
    """Equation (3) for t = 1 ... total; [total]."""
    from scipy.special import gammaln

    def log_choose(a: Any, b: int) -> Any:
        return gammaln(a + 1) - gammaln(b + 1) - gammaln(a - b + 1)

    weights = np.zeros(total)
    t = np.arange(j, total - n + j + 1)
    weights[t - 1] = np.exp(
        log_choose(t - 1, j - 1) + log_choose(total - t, n - j) - log_choose(total, n)
    )
    return weights

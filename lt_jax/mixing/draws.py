"""Which images a round trains on: class, source and image of every draw, all of them at once.

With n_c real train images and m_c accepted synthetic ones of class c, the shares s and the class
weights w of `environment`, equation (1), and W_k = w_0 + ... + w_k, a draw takes three uniform
numbers u, v, z:

    class       c = min{k: u < W_k}                                                         (1)
    source      synthetic where v < s_c, else real;
    image       floor(z m_c) of the synthetic images of c, or floor(z n_c) of the real ones (2)

Draws are with replacement, and a class's accepted images are all in use, whatever its share. A
change of one class's share leaves the numbers as they are. A loss that corrects for the label
prior is given the images of an imagined train set of which this is the instance sampling,

    N_k = w_k sum_j n_j / (1 - s_j)                                                         (3)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lt_jax.mixing.mixture import EXPONENTS
from lt_jax.mixing.proxy_data import ProxyData
from lt_jax.shapes import Array, Float, PRNGKey


class Draws(NamedTuple):
    """Rows of `ProxyData.features`, labels, and which are synthetic: int32, int32, bool [... b]."""

    rows: Any
    labels: Any
    synthetic: Any


def class_weights(
    counts: Float[Array, "k"], share: Float[Array, "k"], factor: Float[Array, "k"], sampler: str
) -> Float[Array, "k"]:
    """Fraction of all draws that are of each class: `environment`, equation (1)."""
    weight = factor * (counts / (1 - share)) ** EXPONENTS[sampler]
    return weight / weight.sum()


def effective_counts(
    counts: Float[Array, "k"], class_weight: Float[Array, "k"], share: Float[Array, "k"]
) -> Float[Array, "k"]:
    """Equation (3): `classify.train.effective_counts`, on device."""
    return class_weight * (counts / (1 - share)).sum()


def draw(
    data: ProxyData,
    class_weight: Float[Array, "k"],
    share: Float[Array, "k"],
    key: PRNGKey,
    shape: tuple[int, ...],
) -> Draws:
    """Equations (1) and (2), `shape` times; a share needs images to be drawn from."""
    u, v, z = jax.random.uniform(key, (3, *shape))
    upper = jnp.cumsum(class_weight)[:-1]  # the last class takes what rounding leaves
    labels = jnp.searchsorted(upper, u, side="right", method="compare_all").astype(jnp.int32)
    synthetic = v < share[labels]
    source = synthetic.astype(jnp.int32)
    size = data.sizes[source, labels]
    image = jnp.minimum((z * size).astype(jnp.int32), size - 1)
    return Draws(data.starts[source, labels] + image, labels, synthetic)

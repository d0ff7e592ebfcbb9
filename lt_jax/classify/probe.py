"""The linear head behind frozen features: multinomial logistic regression under the label prior.

With x the features of n train images, standardised by their mean m and deviation s, and n_k images
of class k, the head minimises the balanced softmax (Ren et al. 2020, eq. 3, arXiv:2007.10740) with
a penalty on its kernel alone:

  sum_i -log softmax(W^T x_i + b + log n)_(y_i) + |W|^2 / 2,   x = (f - m) / s           (1)

so that W^T x + b is the evidence of a class and leaves out how common it is; a class of five images
is not drowned. The bias being free, (1) is plain logistic regression (scikit-learn's, C = 1) whose
intercept is lowered by log n_k, and thus convex with one minimiser, up to a constant in b. It is
found from zeros with all images at once (L-BFGS, Liu and Nocedal 1989); nothing is drawn.

The standardisation is then folded into what is stored:

  W^T (f - m) / s + b = (W / s)^T f + (b - (W / s)^T m)                                   (2)

A feature that does not vary over the train images is given no weight.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lt_jax.errors import UserError
from lt_jax.shapes import Array, Float, Int, Params

# Deviation of a feature, over the largest of any, from which on it varies: what is below is
# rounding, which standardisation would make as large as the rest.
LEAST_DEVIATION = 1e-5
# Largest slope of the mean loss at which it is taken for minimal; float32 resolves not much less.
TOLERANCE = 1e-6


class ProbeError(UserError, ValueError):
    """Features that no head can be fitted to."""


class Head(NamedTuple):
    """Kernel [d k] and bias [k], float32: logits are f @ kernel + bias."""

    kernel: Any
    bias: Any


class Scale(NamedTuple):
    """Mean m [d] of features, and 1 / s [d]: 0 where a feature does not vary; float64."""

    mean: Any
    inverse: Any


def fit(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, "n"],
    num_classes: int,
    steps: int,
) -> Head:
    """The head for features as they are: equations (1) and (2).

    Args:
      features: of train images.
      labels: theirs, from 0.
      num_classes: k.
      steps: of L-BFGS at most; it ends earlier where the loss is minimal.

    Raises:
      ProbeError: a class has no image, or a feature is not finite.
    """
    counts = np.bincount(labels, minlength=num_classes)
    if empty := np.flatnonzero(counts == 0).tolist():
        raise ProbeError(
            f"linear head: no train image of class {', '.join(map(str, empty))} (by number); every "
            "class needs one: lower imbalance_factor, or drop the class from the data set"
        )
    if not np.isfinite(features).all():
        raise ProbeError(
            "linear head: the features of train images are not finite; the extractor diverged: "
            "lower its learning rate"
        )
    scale = standardisation(features)
    standard = ((features - scale.mean[None]) * scale.inverse[None]).astype(np.float32)
    log_prior = np.log(counts / counts.sum()).astype(np.float32)
    head = _minimise(standard, labels.astype(np.int32), log_prior, np.int32(steps))
    return fold(jax.device_get(head), scale)


def standardisation(features: Float[np.ndarray, "n d"]) -> Scale:
    """Mean and inverse deviation of each feature."""
    exact = features.astype(np.float64)
    deviation = exact.std(axis=0)
    varies = deviation > LEAST_DEVIATION * deviation.max()
    return Scale(exact.mean(axis=0), varies / np.where(varies, deviation, 1.0))


def fold(head: Head, scale: Scale) -> Head:
    """Equation (2): the head of standardised features, made one of features as they are."""
    kernel = np.asarray(head.kernel, np.float64) * scale.inverse[:, None]
    bias = np.asarray(head.bias, np.float64) - scale.mean @ kernel
    return Head(kernel.astype(np.float32), bias.astype(np.float32))


def attach(params: Params, head: Head) -> dict[str, Any]:
    """A classifier's parameters with `head` in the place of its own."""
    old = params["head"]  # type: ignore[index]
    if (old["kernel"].shape, old["bias"].shape) != (head.kernel.shape, head.bias.shape):
        raise ValueError(f"a head of {head.kernel.shape} for a network of {old['kernel'].shape}")
    new = {"kernel": jnp.asarray(head.kernel), "bias": jnp.asarray(head.bias)}
    return {**params, "head": new}  # type: ignore[dict-item]


@jax.jit
def _minimise(
    features: Float[Array, "n d"],
    labels: Int[Array, "n"],
    log_prior: Float[Array, "k"],
    steps: Int[Array, ""],
) -> Head:
    """The minimiser of equation (1), divided by n, for standardised features."""

    def loss(head: Head) -> Array:
        logits = jnp.matmul(features, head.kernel, precision="highest")
        logits = logits + (head.bias + log_prior)[None]
        errors = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
        return errors.mean() + jnp.sum(jnp.square(head.kernel)) / (2 * len(labels))

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def improve(carry: tuple[Head, Any]) -> tuple[Head, Any]:
        head, state = carry
        value, slope = value_and_grad(head, state=state)
        updates, state = solver.update(slope, state, head, value=value, grad=slope, value_fn=loss)
        return optax.apply_updates(head, updates), state  # type: ignore[return-value]

    def unfinished(carry: tuple[Head, Any]) -> Array:
        state = carry[1]
        done = optax.tree.get(state, "count")
        slope = optax.tree.norm(optax.tree.get(state, "grad"))
        return (done == 0) | ((done < steps) & (slope > TOLERANCE))

    zeros = Head(jnp.zeros((features.shape[1], len(log_prior))), jnp.zeros(len(log_prior)))
    return jax.lax.while_loop(unfinished, improve, (zeros, solver.init(zeros)))[0]

"""Optimiser, train state and its update, shared by everything that is trained."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from lt_jax.config import OptimizerConfig
from lt_jax.shapes import Array, Params


@struct.dataclass
class TrainState:
    """All that training changes.

    Fields are typed `Any`: inside JAX's transformations they may be shapes, specs or markers.

    Attributes:
      step: updates made so far, int32 scalar.
      params: float32 parameters.
      ema: exponential moving average of `params`, same shapes; None where none is kept.
      opt_state: the optimiser's own.
    """

    step: Any
    params: Any
    ema: Any
    opt_state: Any


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """AdamW with global-norm clipping; weight decay acts on matrices and kernels only.

    Args:
      config: rates and clipping.
      steps: total number of updates, over which the cosine schedule decays to zero; of a
        training shorter than its warm-up, the last step has the full rate.
    """
    warmup = min(config.warmup_steps, steps - 1)
    if config.schedule == "cosine":
        rate = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, steps)
    elif warmup:
        rate = optax.linear_schedule(0.0, config.learning_rate, warmup)
    else:
        rate = optax.constant_schedule(config.learning_rate)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            rate,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
        ),
    )


def create(params: Params, optimizer: optax.GradientTransformation, ema: bool = True) -> TrainState:
    """A state at step 0, with or without an EMA, which costs a copy of the parameters."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params) if ema else None,  # aliased, donating would fail
        opt_state=optimizer.init(params),
    )


def ema_update(ema: Params, params: Params, step: Array, decay: float) -> Params:
    """Exponential moving average with a warm-up of its length.

    ema_n = d_n ema_{n-1} + (1 - d_n) params_n with d_n = min(decay, (1 + n) / (10 + n)), so that
    early averages do not hold the initial parameters (as in TensorFlow's and ADM's averages).
    """
    n = step.astype(jnp.float32)
    d = jnp.minimum(decay, (1.0 + n) / (10.0 + n))
    return jax.tree.map(lambda old, new: old * d + new * (1.0 - d), ema, params)


def update(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    loss_fn: Callable[[Params], tuple[Array, dict[str, Array]]],
    ema_decay: float = 0.0,
) -> tuple[TrainState, dict[str, Array]]:
    """One optimiser step on `loss_fn(params) -> (scalar loss, metrics)`.

    Returns the new state and the metrics with `loss` and `gradient_norm` added.

    Raises:
      ValueError: a decay for a state without an EMA.
    """
    if state.ema is None and ema_decay > 0:
        raise ValueError(f"ema_decay={ema_decay} for a state without EMA; create it with ema=True")
    (loss, metrics), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = None
    if state.ema is not None:
        ema = ema_update(state.ema, params, state.step + 1, ema_decay)
    new = TrainState(
        step=state.step + 1,
        params=params,
        ema=ema,
        opt_state=opt_state,
    )
    return new, {**metrics, "loss": loss, "gradient_norm": optax.tree.norm(gradients)}

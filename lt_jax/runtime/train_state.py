"""Optimiser, train state and its update, shared by everything that is trained."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from lt_jax.config import OptimizerConfig
from lt_jax.runtime.ema import Exponential, Rule
from lt_jax.shapes import Array, Params


@struct.dataclass
class TrainState:
    """All that training changes.

    Fields are typed `Any`: inside JAX's transformations they may be shapes, specs or markers.

    Attributes:
      step: updates made so far, int32 scalar.
      params: float32 parameters.
      ema: moving average of `params`, of the form that its rule gives it (see `ema.Rule`); None
        where none is kept.
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


def create(
    params: Params, optimizer: optax.GradientTransformation, ema: Rule | bool = True
) -> TrainState:
    """A state at step 0.

    Args:
      params: the initial parameters.
      optimizer: what `update` will be given.
      ema: whose average the state holds; True: that of any `Exponential`; False: none, which
        saves a copy of the parameters.
    """
    rule = Exponential(0.0) if ema is True else ema
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=rule.init(params) if rule else None,
        opt_state=optimizer.init(params),
    )


def update(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    loss_fn: Callable[[Params], tuple[Array, dict[str, Array]]],
    ema: Rule | float = 0.0,
) -> tuple[TrainState, dict[str, Array]]:
    """One optimiser step on `loss_fn(params) -> (scalar loss, metrics)`.

    Args:
      state: what `create` made, with the average that `ema` updates.
      optimizer: see `make_optimizer`.
      loss_fn: the loss of this step's batch.
      ema: the rule of the average; a number: `Exponential` of that decay.

    Returns:
      The new state, and the metrics with `loss` and `gradient_norm` added.

    Raises:
      ValueError: a rule, or a decay, for a state without an EMA.
    """
    if state.ema is None and ema:
        raise ValueError(f"ema={ema} for a state without EMA; create it with the same rule")
    (loss, metrics), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = None
    if state.ema is not None:
        rule = Exponential(ema) if isinstance(ema, int | float) else ema
        average = rule.update(state.ema, params, state.step + 1)
    new = TrainState(
        step=state.step + 1,
        params=params,
        ema=average,
        opt_state=opt_state,
    )
    return new, {**metrics, "loss": loss, "gradient_norm": optax.tree.norm(gradients)}

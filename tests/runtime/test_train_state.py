"""Optimiser and train state: rates, decay, clipping, and the average that a rule keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.config import OptimizerConfig
from lt_jax.runtime import train_state
from lt_jax.runtime.ema import Exponential, Power


def rates(config: OptimizerConfig, steps: int) -> np.ndarray:
    """Rates of updates 0..steps-1, read off parameters: Adam's first-order update of a constant
    gradient is the rate itself.
    """
    optimizer = train_state.make_optimizer(config, steps)
    params = {"w": jnp.zeros(1)}

    def one(carry, _):
        params, opt_state = carry
        updates, opt_state = optimizer.update({"w": jnp.ones(1)}, opt_state, params)
        return (params, opt_state), -updates["w"][0]

    _, values = jax.jit(
        lambda: jax.lax.scan(one, (params, optimizer.init(params)), None, length=steps)
    )()
    return np.asarray(values)


def test_warm_up_is_linear_and_the_cosine_ends_at_zero():
    got = rates(OptimizerConfig(learning_rate=0.1, warmup_steps=10), 50)
    n = np.arange(50)
    expected = np.where(n < 10, 0.1 * n / 10, 0.05 * (1 + np.cos(np.pi * (n - 10) / 40)))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    assert got[0] == 0
    np.testing.assert_allclose(got[10], 0.1, rtol=1e-5)
    assert got[-1] < 0.1 * 0.002  # 50 would be zero


def test_a_constant_rate_stays_after_its_warm_up():
    got = rates(OptimizerConfig(learning_rate=0.1, warmup_steps=4, schedule="constant"), 12)
    np.testing.assert_allclose(got, 0.1 * np.minimum(np.arange(12) / 4, 1), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_without_warm_up_the_first_update_has_the_full_rate(schedule):
    """A constant rate once began with an update of zero."""
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=0, schedule=schedule)
    np.testing.assert_allclose(rates(config, 3)[0], 0.1, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("steps", [1, 5])
def test_a_training_shorter_than_its_warm_up_reaches_the_full_rate(schedule, steps):
    """The cosine schedule once refused it: nothing was left to decay over."""
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=50, schedule=schedule)
    got = rates(config, steps)
    np.testing.assert_allclose(got[-1], 0.1, rtol=1e-5)
    assert (np.diff(got) > 0).all()


def test_weight_decay_acts_on_matrices_and_not_on_vectors():
    config = OptimizerConfig(
        learning_rate=0.1, warmup_steps=0, schedule="constant", weight_decay=0.5
    )
    optimizer = train_state.make_optimizer(config, 10)
    params = {"kernel": jnp.full((2, 3), 4.0), "bias": jnp.full(3, 4.0), "scale": jnp.full(1, 4.0)}
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5 * 4.0, rtol=1e-6)
    assert not updates["bias"].any()
    assert not updates["scale"].any()


def test_gradients_are_clipped_to_their_global_norm():
    """Adam forgets the gradient's scale but for eps, so clipping shows in its first moment."""
    config = OptimizerConfig(warmup_steps=0, clip_norm=1.0)
    optimizer = train_state.make_optimizer(config, 10)
    params = {"a": jnp.zeros(1), "b": jnp.zeros((1, 1))}
    moment = 0.1  # 1 - b1
    for scale, norm in ((100.0, 1.0), (0.01, 0.05)):
        gradients = {"a": jnp.full(1, 3 * scale), "b": jnp.full((1, 1), 4 * scale)}
        _, state = optimizer.update(gradients, optimizer.init(params), params)
        adam = next(
            leaf
            for leaf in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "mu"))
            if hasattr(leaf, "mu")
        )
        np.testing.assert_allclose(adam.mu["a"], moment * 0.6 * norm, rtol=1e-5)
        np.testing.assert_allclose(adam.mu["b"], moment * 0.8 * norm, rtol=1e-5)


def test_without_an_average_none_is_kept_and_nothing_else_changes():
    """A classifier's state once held its parameters twice, for an average of no memory."""
    optimizer = train_state.make_optimizer(OptimizerConfig(warmup_steps=0), 10)
    params = {"w": jnp.array([3.0, 4.0])}

    def loss(params):
        return (params["w"] ** 2).sum(), {}

    step = jax.jit(lambda s: train_state.update(s, optimizer, loss)[0], donate_argnums=0)
    lean = train_state.create(jax.tree.map(jnp.copy, params), optimizer, ema=False)
    full = train_state.create(params, optimizer)
    assert len(jax.tree.leaves(full)) == len(jax.tree.leaves(lean)) + 1
    for _ in range(3):
        lean, full = step(lean), step(full)
    assert lean.ema is None
    np.testing.assert_array_equal(lean.params["w"], full.params["w"])
    for rule in (0.9, Power((0.1,))):
        with pytest.raises(ValueError, match="for a state without EMA; create it with"):
            train_state.update(lean, optimizer, loss, rule)


def test_an_update_counts_averages_and_reports_the_unclipped_gradient():
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=0, schedule="constant", clip_norm=1.0)
    optimizer = train_state.make_optimizer(config, 10)
    state = train_state.create({"w": jnp.array([3.0, 4.0])}, optimizer)

    def loss(params):
        return (params["w"] ** 2).sum() / 2, {"size": params["w"].max()}

    step = jax.jit(lambda s: train_state.update(s, optimizer, loss, 0.5), donate_argnums=0)
    new, metrics = step(state)  # donation fails where the average aliases the parameters
    assert int(new.step) == 1
    np.testing.assert_allclose(metrics["loss"], 12.5)
    np.testing.assert_allclose(metrics["gradient_norm"], 5.0)
    np.testing.assert_allclose(metrics["size"], 4.0)
    np.testing.assert_allclose(new.params["w"], [2.9, 3.9], rtol=1e-5)
    d = 2 / 11  # of the first update, below 0.5
    expected = d * np.array([3.0, 4.0]) + (1 - d) * np.asarray(new.params["w"])
    np.testing.assert_allclose(new.ema["w"], expected, rtol=1e-6)


def test_a_state_keeps_the_average_of_its_rule():
    """A number is the decay of an exponential one; of several lengths each is there, in order."""
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=0, schedule="constant")
    optimizer = train_state.make_optimizer(config, 10)

    def loss(params):
        return (params["w"] ** 2).sum(), {}

    def run(rule, of_state, steps=4):
        step = jax.jit(lambda s: train_state.update(s, optimizer, loss, rule)[0], donate_argnums=0)
        state = train_state.create({"w": jnp.array([3.0, 4.0])}, optimizer, of_state)
        seen = []
        for _ in range(steps):
            state = step(state)
            seen.append(np.asarray(state.params["w"]))
        return state, seen

    number, seen = run(0.9, True)
    rule, _ = run(Exponential(0.9), Exponential(0.9))
    np.testing.assert_array_equal(number.ema["w"], rule.ema["w"])
    power, _ = run(Power((0.05, 0.28)), Power((0.05, 0.28)))
    np.testing.assert_array_equal(power.params["w"], number.params["w"])
    for gamma, got in zip(Power((0.05, 0.28)).gammas, power.ema, strict=True):
        weights = np.diff(np.arange(5) ** (gamma + 1)) / 4 ** (gamma + 1)
        np.testing.assert_allclose(got["w"], weights @ np.stack(seen), rtol=1e-5)


def test_a_state_with_nothing_to_train_steps_and_stays():
    optimizer = train_state.make_optimizer(OptimizerConfig(warmup_steps=0), 10)
    state = train_state.create({}, optimizer)
    new, metrics = train_state.update(state, optimizer, lambda _: (jnp.ones(()), {}), 0.9)
    assert int(new.step) == 1
    assert new.params == new.ema == {}
    assert float(metrics["gradient_norm"]) == 0

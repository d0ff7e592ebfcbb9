"""Programs over a mesh: where parameters lie changes nothing but where they lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.config import OptimizerConfig
from lt_jax.runtime import mesh, spmd, train_state

OPTIMIZER = train_state.make_optimizer(OptimizerConfig(learning_rate=0.1, warmup_steps=1), 9)
ROWS = np.random.default_rng(0).normal(size=(16, 32)).astype(np.float32)


def step(state, batch, key, context):
    noise = 0.1 * jax.random.normal(key, (16, 64))

    def loss(params):
        made = jnp.tanh(batch @ params["w"]) @ params["v"] - context["target"] @ params["v"]
        return (made**2).mean() + (noise**2).mean(), {}

    return train_state.update(state, OPTIMIZER, loss, 0.9)


def fresh():
    draw = np.random.default_rng(1).normal
    params = {"w": draw(size=(32, 64)), "v": draw(size=(64, 48)), "b": np.zeros(7)}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)


def trained(devices, fsdp):
    device_mesh = mesh.make_mesh(devices, fsdp)
    program = spmd.jit_step(step, device_mesh)
    state = mesh.distribute(train_state.create(fresh(), OPTIMIZER), device_mesh)
    context = mesh.distribute({"target": np.ones((16, 64), np.float32)}, device_mesh)
    states = [state]
    for n in range(3):
        key = jax.random.fold_in(jax.random.key(0), n)
        states.append(program(states[-1], mesh.put(ROWS, device_mesh), key, context)[0])
    return states


@pytest.mark.parametrize("fsdp", [1, 4, 8])
def test_eight_devices_in_groups_are_one(fsdp):
    one, eight = trained(1, 1)[-1], trained(8, fsdp)[-1]
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6)


def test_a_state_stays_where_it_lies_and_gives_its_buffers_away():
    first, *_, last = trained(8, 4)
    lies = lambda state: [leaf.sharding.spec for leaf in jax.tree.leaves(state)]
    assert lies(first) == lies(last)
    for kept in (last.params, last.ema, last.opt_state[1][0].mu, last.opt_state[1][0].nu):
        assert kept["w"].addressable_shards[0].data.shape == (32, 16)
        assert kept["v"].addressable_shards[0].data.shape == (16, 48)
        assert kept["b"].sharding.is_fully_replicated
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first.params))


@pytest.mark.parametrize("fsdp", [1, 2])
def test_rows_come_back_in_order_whatever_their_number(fsdp):
    device_mesh = mesh.make_mesh(4, fsdp)
    program = spmd.jit_rows(lambda params, x, n: (x @ params["w"], n), device_mesh)
    rows = np.array([3, 1, 4, 1, 5, 9, 2])
    read = lambda own: (ROWS[own], own)
    found = [*spmd.over_rows(program, fresh(), rows, 4, read)]
    assert [len(part[1]) for part in found] == [4, 3]
    np.testing.assert_array_equal(np.concatenate([part[1] for part in found]), rows)
    made = np.concatenate([part[0] for part in found])
    np.testing.assert_allclose(made, ROWS[rows] @ np.asarray(fresh()["w"]), rtol=1e-4, atol=1e-5)

"""The ledger: sums over parts and restarts, and FLOPs against a count by hand."""

import dataclasses
import time
import types

import jax
import jax.numpy as jnp
import pytest

from lt_jax.config import ConfigError
from lt_jax.runtime import ledger


def test_costs_add_field_by_field_and_survive_json():
    total = ledger.Ledger(1.0, 2, 3.0, 0.5)
    total.add(ledger.Ledger(10.0, 20, 30.0, 0.25))
    assert total == ledger.Ledger(11.0, 22, 33.0, 0.75)
    assert ledger.Ledger.of(dataclasses.asdict(total)) == total


def test_a_clock_books_every_second_once():
    costs = ledger.Ledger(seconds=100.0)
    since = time.perf_counter()
    clock = ledger.Clock(costs)
    for _ in range(5):
        time.sleep(0.01)
        clock.read()
    elapsed = time.perf_counter() - since
    assert 100.05 <= costs.seconds <= 100.0 + elapsed


def test_flops_of_a_matrix_product():
    product = jax.jit(lambda a, b: a @ b)
    counted = ledger.flops(product, jnp.ones((8, 16)), jnp.ones((16, 32)))
    assert counted == pytest.approx(2 * 8 * 16 * 32, rel=0.05)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_a_program_for_any_platform_is_counted_by_the_cpu(platform):
    traced = jax.jit(lambda a, b: jax.nn.softmax(a @ b)).trace(
        jnp.ones((8, 16)), jnp.ones((16, 32))
    )
    counted = ledger.counted(traced.lower(lowering_platforms=(platform,)))
    assert counted == traced.lower().cost_analysis()["flops"]


def test_where_the_cpu_is_left_out_the_error_says_what_to_set(monkeypatch):
    for fine in (None, "", "cpu", "cuda,cpu"):
        monkeypatch.setattr(ledger.jax, "config", types.SimpleNamespace(jax_platforms=fine))
        ledger.check_platforms()
    monkeypatch.setattr(ledger.jax, "config", types.SimpleNamespace(jax_platforms="cuda"))
    with pytest.raises(ConfigError, match=r"JAX_PLATFORMS: got cuda; takes cpu, too.* cuda,cpu"):
        ledger.check_platforms()

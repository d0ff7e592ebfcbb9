"""The algebra of overrides: sizes, order, what cannot be combined, draws that stay."""

import itertools

import numpy as np
import pytest

from lt_jax.config import ConfigError
from lt_jax.sweep.space import Choice, Integers, Uniform, grid, product, random, seeds, zipped

A = {"a.x": (1, 2, 3)}
B = {"b.y": ("u", "v")}


def test_a_grid_is_the_product_of_its_columns():
    both = list(grid({**A, **B}))
    assert both == list(product(grid(A), grid(B)))
    assert len(both) == 6 and both[0] == {"a.x": 1, "b.y": "u"} and both[1]["b.y"] == "v"
    assert list(grid({})) == [{}]  # the neutral element
    assert list(product(grid({}), grid(A))) == list(grid(A))


def test_zipped_columns_go_together():
    assert list(zipped({"a.x": (1, 2), "b.y": (3, 4)})) == [
        {"a.x": 1, "b.y": 3},
        {"a.x": 2, "b.y": 4},
    ]
    with pytest.raises(ConfigError, match=r"zipped: got .*; takes as many values"):
        zipped({"a.x": (1, 2), "b.y": (3,)})


def test_one_value_in_place_of_several_is_named():
    for make in (grid, zipped):
        with pytest.raises(
            ConfigError, match=rf"{make.__name__}: a\.x: got 'focal'; takes several"
        ):
            make({"a.x": "focal"})
    assert len(list(grid({"a.x": np.arange(3)}))) == 3
    with pytest.raises(ConfigError, match=r"space: a\.x: got \(1, 2\); takes Uniform"):
        next(random({"a.x": (1, 2)}, 2))


def test_parts_that_set_one_field_are_refused():
    with pytest.raises(ConfigError, match=r"product: a\.x is set by two"):
        list(product(grid(A), grid(A)))


def test_more_draws_leave_the_first_as_they_are():
    space = {"lr": Uniform(1e-4, 1e-1, log=True), "n": Integers(1, 3), "loss": Choice(("a", "b"))}
    few, many = list(random(space, 5)), list(random(space, 400))
    assert many[:5] == few and list(random(space, 5, seed=1)) != few
    rates = np.log10([one["lr"] for one in many])
    assert ((rates >= -4) & (rates <= -1)).all() and abs(rates.mean() + 2.5) < 0.15
    assert {one["n"] for one in many} == {1, 2, 3} and {one["loss"] for one in many} == {"a", "b"}


def test_seeds_set_one_classifier_each():
    assert list(seeds(2, also=("generator.seed",))) == [
        {"classify.seeds": (0,), "generator.seed": 0},
        {"classify.seeds": (1,), "generator.seed": 1},
    ]
    assert len(list(itertools.chain(product(grid(A), seeds(3)), grid(B)))) == 11


@pytest.mark.parametrize(
    "make", [lambda: Uniform(1, 1), lambda: Uniform(0, 1, log=True), lambda: Integers(3, 2)]
)
def test_empty_intervals_are_refused(make):
    with pytest.raises(ConfigError, match="got the interval"):
        make()

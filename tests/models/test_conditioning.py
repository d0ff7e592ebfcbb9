"""Conditions: null, dropping, and the embedding's rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.models import module
from lt_jax.models.conditioning import (
    NULL,
    Conditions,
    Embedding,
    drop,
    fourier_features,
    null_like,
)


def make(getkey, labels, log_snr=0.0):
    conditions = Conditions(label=jnp.array(labels))
    log_snr = jnp.full((len(labels),), log_snr)
    embedding = Embedding(num_classes=3, width=16)
    params = jax.tree.map(
        lambda leaf: jax.random.normal(getkey(), leaf.shape),
        module.abstract(embedding, log_snr, conditions),
    )
    return embedding, params, log_snr, conditions


def test_drop_is_per_example_and_at_the_asked_rate(getkey):
    n, rate = 20_000, 0.2
    conditions = Conditions(label=jnp.arange(n) % 3)
    dropped = drop(conditions, getkey(), rate).label
    gone = np.asarray(dropped == NULL)
    np.testing.assert_array_equal(dropped[~gone], conditions.label[~gone])
    error = 5 * np.sqrt(rate * (1 - rate) / n)
    assert abs(gone.mean() - rate) < error
    # Neighbours are independent: both gone at rate squared.
    assert abs((gone[1:] & gone[:-1]).mean() - rate**2) < error
    for label in range(3):
        assert abs(gone[label::3].mean() - rate) < 2 * error


@pytest.mark.parametrize(("rate", "expected"), [(0.0, [0, 1, 2]), (1.0, [NULL] * 3)])
def test_drop_at_its_ends(getkey, rate, expected):
    labels = drop(Conditions(label=jnp.arange(3)), getkey(), rate).label
    np.testing.assert_array_equal(labels, expected)


def test_null_reads_one_row_of_its_own(getkey):
    embedding, params, log_snr, conditions = make(getkey, [0, 1, 2, 3])
    apply = lambda c: np.asarray(module.apply(embedding, params, log_snr, c))
    rows, null = apply(conditions), apply(null_like(conditions))
    # The null label and num_classes are the same row, and no class has it.
    np.testing.assert_array_equal(null, np.broadcast_to(rows[3], null.shape))
    assert len(np.unique(rows, axis=0)) == 4


def test_null_condition_reaches_no_class_embedding(getkey):
    embedding, params, log_snr, conditions = make(getkey, [0, 2])
    total = lambda p, c: module.apply(embedding, p, log_snr, c).sum()
    table = jax.grad(total)(params, null_like(conditions))["label"]["embedding"]
    assert np.all(table[:3] == 0)
    assert np.any(table[3] != 0)
    table = jax.grad(total)(params, conditions)["label"]["embedding"]
    assert np.all(table[jnp.array([1, 3])] == 0)
    assert np.all(np.any(table[jnp.array([0, 2])] != 0, axis=1))


def test_label_beyond_the_classes_is_not_read_as_one(getkey):
    embedding, params, log_snr, _ = make(getkey, [0])
    out = module.apply(embedding, params, log_snr, Conditions(label=jnp.array([4])))
    assert np.isnan(out).all()


def test_features_tell_noise_levels_apart_and_lie_on_circles():
    log_snr = jnp.linspace(-20.0, 20.0, 81)
    features = np.asarray(fourier_features(log_snr, 32))
    np.testing.assert_allclose(features[:, :16] ** 2 + features[:, 16:] ** 2, 1.0, rtol=1e-5)
    distances = np.linalg.norm(features[:, None] - features[None], axis=-1)
    assert distances[~np.eye(81, dtype=bool)].min() > 0.5


def test_conditions_survive_transformations_that_hold_no_arrays():
    conditions = Conditions(label=jnp.arange(3))
    assert jax.tree.map(jnp.shape, conditions).label == (3,)
    assert jax.tree.map(lambda _: None, conditions).label is None
    vmapped = jax.vmap(lambda c: c.label + 1, in_axes=(Conditions(label=0),))(conditions)
    np.testing.assert_array_equal(vmapped, [1, 2, 3])

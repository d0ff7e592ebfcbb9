"""The embedding of noise level and conditions: rows, nulls, sets of boxes, BUSGen's mixing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.models import module
from lt_jax.models.conditioning import ConditionError, Conditions, Vocabulary, null_like
from lt_jax.models.embedding import Embedding, corner_features, fourier_features
from tests.models.arrays import jit

FULL = Vocabulary(3, devices=2, attributes=2, max_boxes=3, corners=True, augmentation=6)
BOXES = [[[0.1, 0.2, 0.5, 0.6], [0.3, 0.0, 1.0, 0.4], [0, 0, 0, 0]], [[0, 0, 0, 0]] * 3]


def make(vocabulary, conditions, mode="sum", width=16):
    embedding = Embedding(vocabulary, width, mode)
    log_snr = jnp.zeros((conditions.label.shape[0],))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype),
        module.abstract(embedding, log_snr, conditions),
    )
    return params, jax.jit(lambda p, c: module.apply(embedding, p, log_snr, c))


def full():
    return Conditions(
        label=jnp.array([0, 2]),
        device=jnp.array([1, 0]),
        attributes=jnp.array([[0.3, -1.0], [2.0, jnp.nan]]),
        boxes=jnp.array(BOXES),
        augmentation=jnp.zeros((2, 6)),
    )


def test_null_reads_one_row_of_its_own():
    conditions = Conditions(label=jnp.array([0, 1, 2, 3]))
    params, apply = make(Vocabulary(3), conditions)
    rows, null = np.asarray(apply(params, conditions)), apply(params, null_like(conditions))
    # The null label and num_classes are the same row, and no class has it.
    np.testing.assert_array_equal(null, np.broadcast_to(rows[3], null.shape))
    assert len(np.unique(rows, axis=0)) == 4


@pytest.mark.parametrize("name", ["label", "device"])
@pytest.mark.parametrize("mode", ["sum", "concatenate"])
def test_null_reaches_no_row_of_a_class_or_device(name, mode):
    vocabulary = Vocabulary(3, devices=3)
    conditions = Conditions(label=jnp.array([0, 2]), device=jnp.array([0, 2]))
    params, apply = make(vocabulary, conditions, mode)
    gradient = jit(jax.grad(lambda p, c: apply(p, c).sum()))
    table = lambda c: np.asarray(gradient(params, c)[name]["embedding"])
    null = table(null_like(conditions))
    assert np.all(null[:3] == 0) and np.any(null[3] != 0)
    told = table(conditions)
    assert np.all(told[[1, 3]] == 0)
    assert np.all(np.any(told[[0, 2]] != 0, axis=1))


def test_index_beyond_the_table_is_not_read_as_one_in_it():
    conditions = Conditions(label=jnp.array([4, 1]), device=jnp.array([0, 3]))
    params, apply = make(Vocabulary(3, devices=2), conditions)
    assert np.isnan(apply(params, conditions)).all()


def test_absent_conditions_have_no_influence():
    conditions = full()
    params, apply = make(FULL, conditions)

    @jit
    def gradient(conditions):
        def total(given):
            return jnp.sum(apply(params, dataclasses.replace(conditions, **given)) ** 2)

        return jax.grad(total)(
            {name: getattr(conditions, name) for name in ("attributes", "boxes")}
        )

    for leaf in jax.tree.leaves(gradient(null_like(conditions))):
        assert np.all(np.asarray(leaf) == 0)
    told = jax.tree.map(np.asarray, gradient(conditions))
    # One entry of the attributes is not known, and boxes that are not there have no gradient.
    np.testing.assert_array_equal(told["attributes"] != 0, [[True, True], [True, False]])
    assert np.all(told["boxes"][0, :2] != 0)
    assert np.all(told["boxes"][0, 2] == 0) and np.all(told["boxes"][1] == 0)


def test_known_to_be_empty_is_not_unknown():
    conditions = full()
    params, apply = make(FULL, conditions)
    out = np.asarray(apply(params, conditions))
    for name in ("attributes", "boxes"):
        absent = getattr(null_like(conditions), name)
        gone = np.asarray(apply(params, dataclasses.replace(conditions, **{name: absent})))
        assert np.all(np.abs(gone - out).max(axis=1) > 1e-3), name
    zero = jnp.array([[0.3, -1.0], [2.0, 0.0]])  # an attribute of 0 is not one unknown
    known = apply(params, dataclasses.replace(conditions, attributes=zero))
    assert np.abs(known - out).max() > 1e-3


def test_boxes_are_a_set():
    conditions = full()
    params, apply = make(FULL, conditions)
    out = apply(params, conditions)
    turned = dataclasses.replace(conditions, boxes=conditions.boxes[:, jnp.array([2, 1, 0])])
    np.testing.assert_allclose(apply(params, turned), out, rtol=1e-5, atol=1e-5)
    fewer = dataclasses.replace(conditions, boxes=conditions.boxes[:, :2])
    np.testing.assert_allclose(apply(params, fewer), out, rtol=1e-5, atol=1e-5)


def test_an_image_that_was_not_augmented_gets_nothing_added():
    conditions = full()
    params, apply = make(FULL, conditions)
    plain = dataclasses.replace(FULL, augmentation=0)
    kept = {name: leaf for name, leaf in params.items() if name != "augmentation"}
    without = module.apply(
        Embedding(plain, 16), kept, jnp.zeros(2), dataclasses.replace(conditions, augmentation=None)
    )
    np.testing.assert_array_equal(apply(params, conditions), without)
    moved = dataclasses.replace(conditions, augmentation=jnp.ones((2, 6)))
    assert np.abs(apply(params, moved) - without).max() > 1e-3


def test_a_linear_map_of_the_concatenation_adds_noise_and_mixed_class_and_device():
    conditions = Conditions(label=jnp.array([1, -1]), device=jnp.array([-1, 0]))
    params, apply = make(Vocabulary(3, devices=2), conditions, "concatenate")
    out = apply(params, conditions)
    assert out.shape == (2, 32)
    shapes = jax.tree.map(jnp.shape, params)
    assert shapes["label"]["embedding"] == (4, 4) and shapes["device"]["embedding"] == (3, 4)
    params = jax.tree.map(np.asarray, params)
    silu = lambda x: x / (1 + np.exp(-x))
    dense = lambda name, x: x @ params[name]["kernel"] + params[name]["bias"]
    mlp = lambda name, x: silu(dense(f"{name}_1", silu(dense(f"{name}_0", x))))
    rows = params["label"]["embedding"][[1, 3]], params["device"]["embedding"][[2, 0]]
    features = np.asarray(fourier_features(jnp.zeros(2), 4))
    halves = mlp("log_snr", features), mlp("class", np.concatenate(rows, axis=1))
    expected = np.concatenate(halves, axis=1)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_conditions_of_another_network_are_refused():
    conditions = full()
    _, apply = make(FULL, conditions)
    with pytest.raises(ConditionError, match="attributes, boxes, augmentation, got label;"):
        apply({}, Conditions(label=jnp.array([0, 1])))


def test_features_tell_noise_levels_apart_and_lie_on_circles():
    log_snr = jnp.linspace(-20.0, 20.0, 81)
    features = np.asarray(fourier_features(log_snr, 32))
    np.testing.assert_allclose(features[:, :16] ** 2 + features[:, 16:] ** 2, 1.0, rtol=1e-5)
    distances = np.linalg.norm(features[:, None] - features[None], axis=-1)
    assert distances[~np.eye(81, dtype=bool)].min() > 0.5


def test_corner_features_tell_corners_apart():
    places = jnp.linspace(0.0, 1.0, 129)
    boxes = jnp.stack([places] * 4, axis=-1)[None]
    features = np.asarray(corner_features(boxes))[0]
    distances = np.linalg.norm(features[:, None] - features[None], axis=-1)
    assert distances[~np.eye(129, dtype=bool)].min() > 0.5

"""Adapters: identities of the low-rank update, what is trained and what stays, kept and read."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.config import AdaptConfig, ConfigError, OptimizerConfig
from lt_jax.models import lora, module
from lt_jax.models.lora import Adapter, AdapterError
from lt_jax.runtime import checkpoint, train_state

KERNELS = ("conv/kernel", "dense/kernel")


class Network(nn.Module):
    """A convolution, a class table and a dense layer."""

    classes: int

    @nn.compact
    def __call__(self, images, labels):
        h = nn.Conv(6, (3, 3), name="conv")(images).mean(axis=(1, 2))
        table = nn.Embed(self.classes, 6, name="label")
        return nn.Dense(2, name="dense")(nn.tanh(h + table(labels)))


IMAGES = jax.random.normal(jax.random.key(7), (8, 4, 4, 3))
LABELS = jnp.arange(8) % 3


@functools.cache
def leaves_of(classes, seed):
    shapes = module.abstract(Network(classes), IMAGES, LABELS)
    rng = np.random.default_rng(seed)
    draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)
    return jax.tree.map(draw, shapes)


def params_of(classes=3, seed=0):
    """Parameters without a zero, biases included."""
    return jax.tree.map(lambda leaf: leaf, leaves_of(classes, seed))


@jax.jit
def forward(params, images=IMAGES, labels=LABELS):
    return module.apply(Network(3), params, images, labels)


def random_factors(adapter, seed=1):
    """Factors of the same shapes, none of them zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), adapter)


def loss_of(adapter, frozen, trainable, classes):
    """Squared error against images' first channels, and metrics."""
    params = adapter.merge(frozen, trainable)
    error = module.apply(Network(classes), params, IMAGES, LABELS) - IMAGES[:, 0, 0, :2]
    return jnp.square(error).mean(), {}


def trained(adapter, frozen, trainable, classes=3, steps=5):
    """A donated train state after some steps, and the losses."""
    config = OptimizerConfig(learning_rate=0.03, warmup_steps=0, schedule="constant")
    optimizer = train_state.make_optimizer(config, steps)
    step = jax.jit(
        lambda state, frozen: train_state.update(
            state, optimizer, lambda params: loss_of(adapter, frozen, params, classes), 0.5
        ),
        donate_argnums=0,
    )
    state, losses = train_state.create(trainable, optimizer), []
    for _ in range(steps):
        state, metrics = step(state, frozen)
        losses.append(float(metrics["loss"]))
    return state, losses


def test_an_adapter_starts_as_the_identity_bit_for_bit(getkey):
    base = params_of()
    adapter = lora.init(getkey(), base, ("*",), 2)
    assert sorted(adapter) == ["conv/kernel", "dense/kernel", "label/embedding"]
    merge = lambda base, adapter: lora.merge(base, adapter, 7.0)
    for merged in (merge(base, adapter), jax.jit(merge)(base, adapter)):
        assert checkpoint.digest(merged) == checkpoint.digest(base)
    moved = merge(base, random_factors(adapter))
    for path, leaf in lora.flatten(moved).items():
        assert (np.asarray(leaf) != lora.flatten(base)[path]).all() == (path in adapter), path


def test_the_update_is_the_scaled_product_of_its_factors(getkey):
    base = params_of()
    adapter = random_factors(lora.init(getkey(), base, KERNELS, 2))
    dense, conv = adapter["dense/kernel"], adapter["conv/kernel"]
    merged = lora.merge(base, adapter, 0.5)
    update = np.asarray(merged["dense"]["kernel"]) - base["dense"]["kernel"]
    np.testing.assert_allclose(update, 0.5 * dense["a"] @ dense["b"], atol=1e-5)
    joined = Adapter("lora", rank=2, alpha=1.0)  # alpha / rank is that 0.5
    whole = joined.merge(lora.flatten(base), {"lora": adapter, "full": {}})
    assert checkpoint.digest(whole) == checkpoint.digest(merged)
    assert conv["a"].shape == (3 * 3 * 3, 2)
    assert conv["b"].shape == (2, 6)


@pytest.mark.parametrize(("stride", "padding"), [(1, "SAME"), (2, "VALID")])
def test_a_convolution_is_adapted_by_a_convolution_to_r_channels_and_one_by_one(
    getkey, stride, padding
):
    """Equation (2)."""
    kernel = jax.random.normal(getkey(), (3, 2, 4, 5))
    x = jax.random.normal(getkey(), (2, 7, 6, 4))
    factors = random_factors(lora.init(getkey(), {"conv": {"kernel": kernel}}, ("*/kernel",), 3))
    a, b = factors["conv/kernel"]["a"], factors["conv/kernel"]["b"]

    def convolve(x, kernel, stride, padding):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=dimensions
        )

    narrow = convolve(x, a.reshape(3, 2, 4, 3), stride, padding)
    expected = convolve(x, kernel, stride, padding)
    expected += 0.7 * convolve(narrow, b.reshape(1, 1, 3, 5), 1, "VALID")
    merged = lora.merge({"conv": {"kernel": kernel}}, factors, 0.7)["conv"]["kernel"]
    np.testing.assert_allclose(convolve(x, merged, stride, padding), expected, atol=2e-4)


@pytest.mark.parametrize("rank", [1, 2, 5, 100])
def test_an_update_has_the_rank_asked_for_and_at_most_the_kernels(getkey, rank):
    base = params_of()
    adapter = random_factors(lora.init(getkey(), base, ("*",), rank))
    merged = lora.flatten(lora.merge(base, adapter, 1.0))
    for path, leaf in lora.flatten(base).items():
        if path in adapter:
            update = np.asarray(merged[path] - leaf, np.float64).reshape(-1, leaf.shape[-1])
            most = min(rank, *update.shape)
            assert adapter[path]["a"].shape[1] == most
            assert np.linalg.matrix_rank(update, tol=1e-4) == most, path


def test_gradients_reach_the_adapter_alone(getkey):
    base = params_of()
    adapter = lora.init(getkey(), base, KERNELS, 2)

    @jax.jit
    @jax.grad
    def gradient(parts):
        return jnp.square(forward(lora.merge(parts[0], parts[1], 1.0))).mean()

    of_base, of_adapter = gradient((base, adapter))
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(of_base))
    for factors in of_adapter.values():  # at the start B moves first, A has no influence
        assert np.asarray(factors["b"]).any()
        assert not np.asarray(factors["a"]).any()
    _, later = gradient((base, random_factors(adapter)))
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(later))


def test_training_leaves_the_base_as_it_was(getkey):
    base = params_of()
    before = checkpoint.digest(base)
    adapter = Adapter("lora", 2, 4.0, KERNELS)
    frozen, trainable = adapter.init(getkey(), base, params_of(seed=1))
    assert not trainable["full"]
    state, losses = trained(adapter, frozen, trainable)
    assert losses[-1] < losses[0]
    assert checkpoint.digest(base) == before
    assert checkpoint.digest(frozen) == checkpoint.digest(lora.flatten(base))
    merged = adapter.merge(frozen, state.params)
    assert checkpoint.layout(merged) == checkpoint.layout(base)  # an export is a network's own
    assert float(jnp.square(forward(merged) - IMAGES[:, 0, 0, :2]).mean()) < losses[0]
    np.testing.assert_array_equal(merged["dense"]["bias"], base["dense"]["bias"])


def test_entries_of_a_table_that_are_not_looked_up_keep_their_rows(getkey):
    """Of a long tail's classes those without an image here, and the null label."""
    base = params_of(classes=5)
    adapter = Adapter("lora", 2, 4.0, ("*/embedding",))
    frozen, trainable = adapter.init(getkey(), base, base)
    state, _ = trained(adapter, frozen, trainable, classes=5)
    before = base["label"]["embedding"]
    after = adapter.merge(frozen, state.params)["label"]["embedding"]
    np.testing.assert_array_equal(after[3:], before[3:])
    assert (np.asarray(after[:3]) != before[:3]).all()


def test_stacked_adapters_under_vmap_equal_one_by_one(getkey):
    base = params_of()
    adapters = [random_factors(lora.init(getkey(), base, ("*",), 2), seed) for seed in range(3)]
    one = lambda adapter: module.apply(Network(3), lora.merge(base, adapter, 0.3), IMAGES, LABELS)
    together = jax.jit(jax.vmap(one))(lora.stack(adapters))
    apart = jnp.stack([jax.jit(one)(adapter) for adapter in adapters])
    np.testing.assert_allclose(together, apart, atol=1e-5)
    assert not np.allclose(together[0], together[1])


@pytest.mark.parametrize("ranks", [(), (1, 2)])
def test_adapters_of_different_forms_do_not_stack(getkey, ranks):
    with pytest.raises(AdapterError, match=f"{len(ranks)} adapters do not stack"):
        lora.stack([lora.init(getkey(), params_of(), KERNELS, rank) for rank in ranks])


def test_a_leafs_factors_depend_on_the_key_and_its_path_alone(getkey):
    key, base = getkey(), params_of()
    all_of_them = lora.init(key, base, ("*",), 2)
    one = lora.init(key, params_of(seed=3), ("dense/*",), 2)
    assert list(one) == ["dense/kernel"]  # its bias has no low-rank form
    a = one["dense/kernel"]["a"]
    np.testing.assert_allclose(a, all_of_them["dense/kernel"]["a"], rtol=1e-6)
    other = lora.init(getkey(), base, ("dense/*",), 2)
    assert not np.isclose(a, other["dense/kernel"]["a"], rtol=1e-3).any()
    assert not np.isclose(a[1:], a[:-1], rtol=1e-3).any()


def test_projections_keep_the_scale_of_their_input(getkey):
    """A x has the variance of x's entries, whatever the kernel's size."""
    for rows in (16, 1024):
        a = lora.init(getkey(), {"w": jnp.ones((rows, 64))}, ("w",), 64)["w"]["a"]
        np.testing.assert_allclose(np.var(a) * rows, 1.0, rtol=0.2)


@pytest.mark.parametrize("targets", [("*/weight",), ("*/kernel", "bias"), ()])
def test_a_pattern_that_matches_nothing_is_refused_with_some_paths(getkey, targets):
    with pytest.raises(ConfigError, match=r"matches no kernel .* conv/kernel, dense/kernel"):
        lora.init(getkey(), params_of(), targets, 2)


def test_factors_of_another_network_are_refused(getkey):
    base = params_of()
    adapter = lora.init(getkey(), base, ("*",), 2)
    with pytest.raises(AdapterError, match="the base has no conv/kernel, label/embedding"):
        lora.merge({"dense": base["dense"]}, adapter, 1.0)
    with pytest.raises(AdapterError, match=r"label/embedding make a matrix of 3x6, .*\(5, 6\)"):
        lora.merge(params_of(classes=5), adapter, 1.0)


def test_parts_that_the_base_lacks_are_new_and_trained_in_full(getkey):
    base, fresh = params_of(classes=5), params_of(classes=3, seed=1)
    base["device"] = {"embedding": jnp.ones((2, 6))}  # an input that the new network lacks
    frozen, new = lora.split_base(base, fresh)
    assert list(new) == ["label/embedding"]
    assert sorted([*frozen, *new]) == sorted(lora.flatten(fresh))
    assert frozen["dense/kernel"] is base["dense"]["kernel"]
    assert new["label/embedding"] is fresh["label"]["embedding"]
    half = {**fresh, "dense": jax.tree.map(lambda leaf: leaf.astype("bfloat16"), base["dense"])}
    assert "dense/bias" in lora.split_base(half, fresh)[1]  # another dtype is no fit

    adapter = Adapter("lora", 2, 2.0, ("*/kernel", "label/*"))
    frozen, trainable = adapter.init(getkey(), base, fresh)
    assert sorted(trainable["lora"]) == list(KERNELS)  # none for the table, which is new
    merged = adapter.merge(frozen, trainable)
    expected = {**base, "label": fresh["label"]}
    del expected["device"]
    assert checkpoint.digest(merged) == checkpoint.digest(expected)
    state, _ = trained(adapter, frozen, trainable)
    moved = adapter.merge(frozen, state.params)["label"]["embedding"]
    assert (np.asarray(moved) != fresh["label"]["embedding"]).all()
    assert not fresh["label"]["embedding"].is_deleted()  # donated were copies


def test_full_fine_tuning_starts_from_the_base_and_moves_all_of_it(getkey):
    base, fresh = params_of(), params_of(seed=1)
    adapter = Adapter("full")
    frozen, trainable = adapter.init(getkey(), base, fresh)
    assert (frozen, trainable["lora"]) == ({}, {})
    assert checkpoint.digest(adapter.merge(frozen, trainable)) == checkpoint.digest(base)
    before = checkpoint.digest(base)
    state, losses = trained(adapter, frozen, trainable)
    assert losses[-1] < losses[0]
    for path, leaf in lora.flatten(adapter.merge(frozen, state.params)).items():
        assert (np.asarray(leaf) != lora.flatten(base)[path]).any(), path
    assert checkpoint.digest(base) == before


def test_without_adaptation_new_parts_alone_are_trained(getkey):
    base = params_of(classes=5)
    frozen, trainable = Adapter("none").init(getkey(), base, params_of(classes=3))
    assert list(trainable["full"]) == ["label/embedding"]
    assert not trainable["lora"]
    frozen, trainable = Adapter("none").init(getkey(), base, base)
    assert not jax.tree.leaves(trainable)
    merged = Adapter("none").merge(frozen, trainable)
    assert checkpoint.digest(merged) == checkpoint.digest(base)


def test_a_base_of_another_architecture_is_refused(getkey):
    base = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf], axis=-1), params_of())
    with pytest.raises(AdapterError, match=r"the base gives 0 of the network's 200 parameters"):
        Adapter().init(getkey(), base, params_of())


def test_what_is_trained_is_counted_from_shapes():
    base, fresh = (module.abstract(Network(classes), IMAGES, LABELS) for classes in (5, 3))
    table = 3 * 6
    count = lambda method: Adapter(method, 2, 1.0, KERNELS).count(base, fresh)
    assert count("none") == table
    assert count("lora") == 2 * (27 + 6) + 2 * (6 + 2) + table
    assert count("full") == module.count(fresh)


def test_a_config_names_an_adapter():
    config = AdaptConfig(method="full", rank=3, alpha=6.0, targets=("a", "b"))
    assert lora.make(config) == Adapter("full", 3, 6.0, ("a", "b"))
    assert lora.make(AdaptConfig()) == Adapter()


@pytest.mark.parametrize("method", ["lora", "full", "none"])
def test_an_adapter_is_kept_without_its_base_and_read_back(getkey, tmp_path, method):
    base = params_of(classes=5)
    adapter = Adapter(method, 2, 3.0, KERNELS)
    frozen, trainable = adapter.init(getkey(), base, params_of(classes=3))
    trainable = random_factors(trainable)
    for _ in range(2):  # the second replaces the first
        lora.save(tmp_path / "adapter", adapter, frozen, trainable)
    found, again, weights = lora.load(tmp_path / "adapter", base)
    assert found == adapter
    assert checkpoint.digest(weights) == checkpoint.digest(trainable)
    expected = adapter.merge(frozen, trainable)
    assert checkpoint.digest(found.merge(again, weights)) == checkpoint.digest(expected)


def test_nothing_trained_is_kept_as_well(getkey, tmp_path):
    base, adapter = params_of(), Adapter("none")
    lora.save(tmp_path, adapter, *adapter.init(getkey(), base, base))
    found, frozen, trainable = lora.load(tmp_path, base)
    assert checkpoint.digest(found.merge(frozen, trainable)) == checkpoint.digest(base)


def test_an_adapter_is_refused_on_another_base(getkey, tmp_path):
    base, adapter = params_of(), Adapter("lora", 2, 3.0, KERNELS)
    lora.save(tmp_path, adapter, *adapter.init(getkey(), base, base))
    bias = base["dense"]["bias"]
    others = [
        params_of(seed=1),
        {**base, "dense": {**base["dense"], "bias": bias.at[0].add(1e-6)}},
        {**base, "dense": {**base["dense"], "bias": bias.astype(jnp.bfloat16)}},
        {name: base[name] for name in ("conv", "dense")},
    ]
    for other in others:
        with pytest.raises(AdapterError, match=r"over a base with sha256 .* adapt anew"):
            lora.load(tmp_path, other)
    lora.load(tmp_path, base)


def test_an_unfinished_adapter_and_one_of_another_format_are_refused(getkey, tmp_path):
    with pytest.raises(AdapterError, match="no finished adapter"):
        lora.load(tmp_path, params_of())
    base, adapter = params_of(), Adapter("lora", 2, 3.0, KERNELS)
    lora.save(tmp_path, adapter, *adapter.init(getkey(), base, base))
    path = tmp_path / "adapter.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 9'))
    with pytest.raises(AdapterError, match="of format 9, but this code reads 1"):
        lora.load(tmp_path, base)

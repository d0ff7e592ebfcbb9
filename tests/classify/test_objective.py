"""A step's objective: augmentation, mixed labels, experts, and arms that use none of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.classify import losses, objective, train
from lt_jax.config import (
    AugmentConfig,
    ClassifierConfig,
    ExpertsConfig,
    OptimizerConfig,
    ResNetConfig,
    ViTConfig,
)
from lt_jax.data import augment
from lt_jax.data.batch_mixing import BatchMixing
from lt_jax.data.randaugment import RandAugment
from lt_jax.models import classifier, module
from lt_jax.runtime import keys, ledger, mesh, train_state

PARTS = {
    "vit": ViTConfig(
        variant="custom", width=16, depth=1, heads=2, mlp=16, patch_size=4, dropout=0.1
    ),
    "resnet": ResNetConfig(channels=(4, 8), blocks=(1, 1)),
}
RECIPE = train.Recipe(
    model=ClassifierConfig(**PARTS),
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=2, weight_decay=0.01),
    augment=AugmentConfig(shift=1),
    loss="balanced_softmax",
    tau=1.0,
    steps=8,
    rounds=1,
    batch_size=16,
    seed=0,
)
COUNTS = np.array([37.0, 13.0, 5.0], np.float32)
MIXING = BatchMixing(True, True, 1.0, 1.0)


def batch(seed=0, soft=False):
    rng = np.random.default_rng(seed)
    labels, others = (rng.integers(0, 3, 16).astype(np.int32) for _ in range(2))
    images = rng.integers(0, 60, (16, 8, 8, 1)) + 90 * labels[:, None, None, None]
    made = {"image": images.astype(np.uint8), "label": labels, "synthetic": np.zeros(16, bool)}
    if soft:
        made |= {"other_label": others, "label_weight": rng.random(16).astype(np.float32)}
    return made


def trained(recipe, steps=3, made=None, step=None):
    device_mesh = mesh.make_mesh(1)
    step = step or train.make_step(recipe, 3, device_mesh)
    params = train.init(recipe, 3, (8, 8, 1))
    optimizer = train_state.make_optimizer(recipe.optimizer, recipe.steps)
    state = train_state.create(params, optimizer, ema=False)
    for n in range(steps):
        key = jax.random.fold_in(keys.root(1), n)
        state, values = step(state, batch(n) if made is None else made, key, COUNTS)
    return jax.device_get(state.params), jax.device_get(values)


@pytest.mark.parametrize("soft", [False, True])
def test_an_arm_that_uses_none_of_it_takes_the_plain_step_bit_for_bit(soft):
    """The plain step: one augmentation, one network, a loss or two of them by weight."""
    network = classifier.make(RECIPE.model, 3)
    optimizer = train_state.make_optimizer(RECIPE.optimizer, RECIPE.steps)
    loss = losses.make(RECIPE.loss, tau=RECIPE.tau)

    @jax.jit
    def plain(state, batch, key, context):
        images = augment.augment(batch["image"], keys.stream(key, "augment"), RECIPE.augment)
        progress = state.step / RECIPE.steps

        def loss_fn(params):
            dropout = keys.stream(key, "dropout")
            logits, _ = module.apply(network, params, images, key=dropout, train=True)
            value = loss(logits, batch["label"], context, progress)
            if "label_weight" in batch:
                weight = batch["label_weight"]
                other = loss(logits, batch["other_label"], context, progress)
                value = weight * value + (1 - weight) * other
            return value.mean(), {}

        return train_state.update(state, optimizer, loss_fn)

    made = batch(soft=soft)
    left, right = trained(RECIPE, made=made), trained(RECIPE, made=made, step=plain)
    jax.tree.map(np.testing.assert_array_equal, left[0], right[0])
    assert left[1]["loss"] == right[1]["loss"]


@pytest.mark.parametrize(
    "change",
    [
        {"randaugment": RandAugment(2, 9.0)},
        {"mixing": MIXING},
        {"model": ExpertsConfig(**PARTS, experts=3), "expert_loss": "balpoe"},
        {"model": ExpertsConfig(**PARTS, kind="resnet", experts=2), "expert_loss": "ncl"},
    ],
    ids=["randaugment", "mixing", "balpoe", "ncl"],
)
def test_what_an_arm_adds_trains_and_changes_the_training(change):
    recipe = dataclasses.replace(RECIPE, **change)
    params, values = trained(recipe, steps=5)
    assert all(np.isfinite(value) for value in values.values())
    assert values["gradient_norm"] > 0
    if "model" not in change:
        plain, _ = trained(RECIPE, steps=5)
        leaves = zip(jax.tree.leaves(plain), jax.tree.leaves(params), strict=True)
        assert any((left != right).any() for left, right in leaves)
    other, _ = trained(dataclasses.replace(recipe, seed=1), steps=5)
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(other), strict=True)
    assert any((left != right).any() for left, right in leaves)


@pytest.mark.parametrize("soft", [False, True])
def test_labels_of_a_mixed_image_have_its_parts_weights(getkey, soft):
    made = {name: jnp.asarray(value) for name, value in batch(soft=soft).items()}
    own = objective.targets(made)
    images, targets = objective.mixed(augment.normalize(made["image"]), own, getkey(), MIXING)
    assert images.shape == (16, 8, 8, 1) and len(targets) == (4 if soft else 2)
    total = np.sum([np.asarray(target.weight) for target in targets], axis=0)
    np.testing.assert_allclose(total, 1, atol=1e-6)
    # Together they are the mixture of what both images' own labels said.
    whole = sum(np.eye(3)[t.label] * np.asarray(t.weight)[:, None] for t in targets)
    single = sum(
        np.eye(3)[t.label] * (1.0 if t.weight is None else np.asarray(t.weight)[:, None])
        for t in own
    )
    half = len(targets) // 2
    if not soft:
        partner = np.asarray(targets[half].label)
        weight = np.asarray(targets[0].weight)[:, None]
        np.testing.assert_allclose(whole, weight * single + (1 - weight) * np.eye(3)[partner])
    np.testing.assert_allclose(whole.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_every_loss_takes_mixed_labels_as_the_mixture_of_their_losses(name):
    loss = losses.make(name)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(16, 3)), jnp.float32)
    made = batch(soft=True)
    targets = objective.targets({k: jnp.asarray(v) for k, v in made.items()})
    found = objective.combined(loss, logits, targets, jnp.asarray(COUNTS), 0.5)
    first, second = (loss(logits, t.label, jnp.asarray(COUNTS), 0.5) for t in targets)
    weight = made["label_weight"]
    np.testing.assert_allclose(found, weight * first + (1 - weight) * second, rtol=1e-5)


def test_soft_labels_of_balanced_softmax_are_its_cross_entropy_with_a_distribution():
    logits = np.random.default_rng(0).normal(size=(16, 3))
    made = batch(soft=True)
    targets = objective.targets({k: jnp.asarray(v) for k, v in made.items()})
    loss = losses.make("balanced_softmax")
    found = objective.combined(loss, jnp.asarray(logits, "f4"), targets, jnp.asarray(COUNTS), 0.0)
    shifted = logits + np.log(COUNTS)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    weight = made["label_weight"][:, None]
    q = weight * np.eye(3)[made["label"]] + (1 - weight) * np.eye(3)[made["other_label"]]
    np.testing.assert_allclose(found, -(q * log_p).sum(1), rtol=1e-5)


def test_the_ledger_counts_what_arms_add():
    """FLOPs of a step, as XLA counts the lowered program."""

    def flops(**change):
        recipe = dataclasses.replace(RECIPE, **change)
        step = train.make_step(recipe, 3, mesh.make_mesh(1))
        optimizer = train_state.make_optimizer(recipe.optimizer, recipe.steps)
        state = train_state.create(train.init(recipe, 3, (8, 8, 1)), optimizer, ema=False)
        return ledger.flops(step, state, batch(), keys.root(0), COUNTS)

    alone = flops()
    two, three = (
        flops(model=ExpertsConfig(**PARTS, experts=e), expert_loss="balpoe") for e in (2, 3)
    )
    # All of a network of one block but its patches is an expert's own.
    assert 1.5 * alone < two < 2 * alone and three - two == pytest.approx(two - alone, rel=0.1)
    assert flops(randaugment=RandAugment(2, 9.0)) > alone
    assert flops(mixing=MIXING) > alone

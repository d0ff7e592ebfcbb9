"""Proxies in pixels: the steps they take, real-only training bit for bit, populations, errors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lt_jax.config import (
    AugmentConfig,
    ClassifierConfig,
    ConfigError,
    OptimizerConfig,
    ResNetConfig,
    ViTConfig,
)
from lt_jax.config.mixing import MixingConfig, ProxyConfig, RewardConfig
from lt_jax.data import augment
from lt_jax.mixing import draws, observations, proxy, proxy_data, rollout
from lt_jax.mixing.classifiers import Head, Network, Strategy
from lt_jax.mixing.environment import Environment
from lt_jax.mixing.mixture import MixtureError
from lt_jax.models import classifier, module
from lt_jax.runtime import keys, population, train_state
from tests.mixing import tiny

COUNTS, POOL, SEEN = (9, 4, 2), (5, 0, 3), (3, 2, 2)
VIT = ClassifierConfig(
    vit=ViTConfig(variant="custom", width=8, depth=1, heads=1, mlp=8, patch_size=2, dropout=0.2)
)
ADAMW = OptimizerConfig(learning_rate=0.01, warmup_steps=1, weight_decay=0.1)
AUGMENT = AugmentConfig(shift=1, horizontal_flip=True, brightness=0.3)
NETWORK = Network(VIT, ADAMW, AUGMENT)
CONFIG = MixingConfig(
    levels=(0.0, 0.6),
    rounds=2,
    proxy=ProxyConfig(batch_size=6, minibatches=3, loss="balanced_softmax"),
    reward=RewardConfig(price=0.1),
)
NONE, ONES = jnp.zeros(3), jnp.ones(3)


def arrays(counts=COUNTS, pool=POOL, seen=SEEN, side=4):
    rng = np.random.default_rng(0)
    base = rng.integers(40, 216, (len(counts), side, side, 1))

    def images(sizes):
        labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
        noise = rng.integers(-40, 41, (len(labels), side, side, 1))
        return (base[labels] + noise).astype(np.uint8), labels

    real, synthetic, policy_val = images(counts), images(pool), images(seen)
    classes = [f"class {k}" for k in range(len(counts))]
    return tiny.collected(real, synthetic, policy_val, rng, classes)


def make(given=None, network=NETWORK):
    """Without the trainings that measure the reference."""
    data = proxy_data.collect(**(given or arrays()))
    return proxy.ProxyEnv(data, jnp.zeros((3, data.sizes.shape[-1])), CONFIG, network)


plain = functools.cache(make)
reset = jax.jit(lambda env, key: env.reset(key))
train_round = jax.jit(lambda env, *args: env.train_round(*args))


def equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def close(ours, theirs, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), ours, theirs)


def test_a_round_is_these_steps_of_the_classifier(getkey):
    env, key, given = plain(), getkey(), arrays()
    share = jnp.array([0.5, 0.0, 0.5])
    state = reset(env, key)[1]
    after, _ = train_round(env, state, share, ONES, key)
    weight = draws.class_weights(env.data.counts, share, ONES, "instance")
    drawn = draws.draw(env.data, weight, share, keys.stream(key, "draw"), (3, 6))
    order = [np.argsort(given[name], kind="stable") for name in ("real_labels", "synthetic_labels")]
    images = np.concatenate([given["real"][order[0]], given["synthetic"][order[1]]])
    network = classifier.make(VIT, 3)
    optimizer = train_state.make_optimizer(ADAMW, 6)  # of both rounds
    prior = jnp.log(draws.effective_counts(env.data.counts, weight, share))
    params = module.init(network, keys.stream(key, "init"), jnp.zeros((1, 4, 4, 1)), train=False)
    equal(state.params, params)

    @jax.jit
    def update(params, slots, batch, labels, at):
        moved = augment.augment(batch, keys.stream(at, "augment"), AUGMENT)

        def loss(params):
            logits, _ = module.apply(
                network, params, moved, key=keys.stream(at, "dropout"), train=True
            )
            return optax.losses.softmax_cross_entropy_with_integer_labels(
                logits + prior[None], labels
            ).mean()

        updates, slots = optimizer.update(jax.grad(loss)(params), slots, params)
        return optax.apply_updates(params, updates), slots

    slots = optimizer.init(params)
    for i in range(3):
        at = jax.random.fold_in(keys.stream(key, "steps"), i)
        batch = jnp.asarray(images[np.asarray(drawn.rows[i])])
        params, slots = update(params, slots, batch, drawn.labels[i], at)
    close(after.params, params)
    close(after.optimizer, slots)
    logits, _ = module.apply(network, params, augment.normalize(given["policy_val"]), train=False)
    true = np.asarray(jax.nn.softmax(logits))[np.arange(7), given["policy_val_labels"]]
    recall = np.bincount(given["policy_val_labels"], true) / np.array(SEEN)
    np.testing.assert_allclose(after.track.measured.recall, recall, atol=1e-5)


def test_zero_shares_are_real_images_alone_bit_for_bit(getkey):
    env, key, given = plain(), getkey(), arrays()
    state = reset(env, key)[1]
    ours = train_round(env, state, NONE, ONES, key)
    none = {name: given[name][:0] for name in ("synthetic", "synthetic_labels", "scores")}
    real_only = make({**given, **none})
    theirs = train_round(real_only, state, NONE, ONES, key)
    equal(
        (ours[0].params, ours[0].optimizer, ours[1]),
        (theirs[0].params, theirs[0].optimizer, theirs[1]),
    )
    mixed = train_round(env, state, jnp.array([0.6, 0, 0.6]), ONES, key)
    assert not np.array_equal(mixed[0].params["head"]["kernel"], ours[0].params["head"]["kernel"])


def test_policy_val_is_measured_in_parts_alike(getkey, monkeypatch):
    env = plain()
    params = env.reset(getkey())[1].params
    whole = env._logits(params, env.data.policy_val)
    monkeypatch.setattr(proxy, "MEASURED", 3)  # of seven
    assert "scan[" in str(jax.make_jaxpr(env._logits)(params, env.data.policy_val))
    close(env._logits(params, env.data.policy_val), whole)
    assert len(whole) == 7


def test_fidelity_and_rows_are_the_same_in_parts(monkeypatch):
    given = arrays()
    whole = proxy_data.collect(**given)
    monkeypatch.setattr(proxy_data, "AT_ONCE", 3 * 16)  # three images
    parts = proxy_data.collect(**given)
    np.testing.assert_allclose(parts.fidelity, whole.fidelity, rtol=1e-6)
    equal(parts.features, whole.features)


def test_policy_val_is_never_trained_on(getkey):
    key, given = getkey(), arrays()
    moved = make({**given, "policy_val": 255 - given["policy_val"]})
    state = reset(plain(), key)[1]
    ours, theirs = (train_round(env, state, NONE, ONES, key) for env in (plain(), moved))
    equal(ours[0].params, theirs[0].params)
    assert ours[1] != theirs[1]
    data = plain().data
    assert len(data.features) == sum(COUNTS) + sum(POOL) and len(data.policy_val) == sum(SEEN)
    assert data.features.dtype == data.policy_val.dtype == jnp.uint8
    kept = {image.tobytes() for image in np.asarray(data.features)}
    assert kept == {image.tobytes() for image in (*given["real"], *given["synthetic"])}


def test_populations_are_the_same_however_many_are_trained_at_once(getkey):
    # Not AdamW: the gradient of keys' biases is 0 but for rounding, which it would scale up.
    env, members = make(network=Network(VIT)), jax.random.split(getkey(), 3)
    share = jnp.array([0.6, 0.0, 0.6])

    def run(key):
        after, team = env.train_round(env.reset(key)[1], share, ONES, key)
        return after.params, after.track.measured.recall, team

    alone = jax.jit(run)
    loop = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(alone, members))
    over = jax.jit(functools.partial(population.over, run), static_argnames="together")
    for together in (0, 1):
        close(over(members, together=together), loop)
    assert len(np.unique(loop[2])) == 3
    numbers = jnp.arange(5.0)
    for together in (0, 1, 2, 3, 5, 9):
        squares, (doubled,) = population.over(lambda x: (x**2, (2 * x,)), numbers, together)
        equal((squares, doubled), (numbers**2, 2 * numbers))


def test_permuting_classes_permutes_training_and_observations(getkey):
    order, given, key = np.array([2, 0, 1]), arrays(), getkey()
    moved = {**given, "head": given["head"][np.argsort(order)]}
    for name in ("real_labels", "synthetic_labels", "policy_val_labels"):
        moved[name] = order[given[name]]
    one, other = plain(), make(moved)
    (first, state), (second, their_state) = reset(one, key), reset(other, key)
    np.testing.assert_allclose(second[order], first, atol=1e-6)
    sizes = np.asarray(one.data.sizes)
    labels = np.concatenate([np.repeat(np.arange(3), own) for own in sizes])
    where = np.arange(len(labels)) - np.repeat(np.asarray(one.data.starts).ravel(), sizes.ravel())
    source = (np.arange(len(labels)) >= sizes[0].sum()).astype(int)
    same = np.asarray(other.data.starts)[source, order[labels]] + where  # sorts are stable
    rows = np.asarray(jax.random.randint(key, (3, 6), 0, len(labels)))
    fit = jax.jit(lambda env, *args: env.fit(*args))
    ours = draws.Draws(jnp.asarray(rows), jnp.asarray(labels[rows]), jnp.asarray(source[rows] == 1))
    relabelled = draws.Draws(
        jnp.asarray(same[rows]), jnp.asarray(order[labels[rows]]), ours.synthetic
    )
    params, _, losses = fit(one, state, ours, NONE, key)
    theirs = fit(other, their_state, relabelled, NONE, key)
    np.testing.assert_allclose(
        theirs[0]["head"]["kernel"][:, order], params["head"]["kernel"], atol=1e-5
    )
    np.testing.assert_allclose(theirs[2][:, order], losses, atol=1e-5)
    np.testing.assert_allclose(
        other.measure(theirs[0]).recall[order], one.measure(params).recall, atol=1e-5
    )


def test_two_classes_of_a_residual_network_play_an_episode(getkey):
    given = arrays((6, 3), (3, 2), (2, 2))
    model = ClassifierConfig(kind="resnet", resnet=ResNetConfig(channels=(4,), blocks=(1,)))
    reward = dataclasses.replace(CONFIG.reward, difference=True)
    config = dataclasses.replace(CONFIG, reward=reward)
    data = proxy_data.collect(**given)
    env = proxy.make(data, config, classifier=Network(model), together=1, reference_runs=1)
    assert isinstance(env, Environment) and isinstance(env.classifier, Strategy)
    assert (env.num_agents, env.num_actions, env.rounds) == (2, (2,), 2)
    action = jnp.array([1, 0])
    played = jax.jit(lambda env, key: rollout.play(env, lambda *_: action, key))(env, getkey())
    assert played.observation.shape == (3, 2, len(observations.NAMES))
    assert np.isfinite(played.observation).all() and played.terminated.tolist() == [False, True]
    assert (played.reward[:, 0] != 0).all() and not played.reward[:, 1].any()  # its share is 0
    assert (env.reference[-1] != env.reference[0]).any()


@pytest.mark.parametrize(
    ("kind", "together", "at_once", "without"),
    [("images", 0, 1, 1), ("images", 3, 3, 1), ("features", 0, 0, 0)],
)
def test_in_pixels_classifiers_are_trained_one_by_one_unless_asked(
    kind, together, at_once, without, monkeypatch
):
    """Those that a difference reward compares with always are: episodes may be several at once."""
    given = arrays((6, 3), (3, 2), (2, 2))
    if kind == "features":
        for name in ("real", "synthetic", "policy_val"):
            given[name] = given[name].reshape(-1, 16) / 255.0
    reward = dataclasses.replace(CONFIG.reward, difference=True)
    config, seen = dataclasses.replace(CONFIG, reward=reward), []
    classifier = NETWORK if kind == "images" else Head()
    data, reference = proxy_data.collect(**given), jnp.zeros((config.rounds + 1, 2))
    env = proxy.ProxyEnv(data, reference, config, classifier, together=together)
    over = population.over

    def watched(function, members, together=0, *others):
        seen.append(together)
        return over(function, members, together, *others)

    monkeypatch.setattr(proxy.population, "over", watched)
    key = jax.random.key(0)
    jax.eval_shape(proxy._real_only_recalls, env, jax.random.split(key, 4), None)
    state = jax.eval_shape(env.reset, key)[1]
    jax.eval_shape(env.step, state, jnp.array([1, 0]), key)
    assert seen == [at_once, without] and env.at_once == at_once


def test_what_does_not_fit_together_is_an_error_that_says_what_to_do():
    given = arrays()
    features = {name: given[name].reshape(-1, 16) / 255.0 for name in ("real", "policy_val")}
    features["synthetic"] = given["synthetic"].reshape(-1, 16) / 255.0
    with pytest.raises(proxy_data.ProxyError, match=r"features in the pool and images in train"):
        proxy_data.collect(**{**given, "synthetic": features["synthetic"]})
    with pytest.raises(
        proxy_data.ProxyError, match=r"3x4x1 pixels in policy_val and 4x4x1.*resize"
    ):
        proxy_data.collect(**{**given, "policy_val": given["policy_val"][:, :3]})
    with pytest.raises(proxy_data.ProxyError, match=r"float64 of shape .* in train; takes feat"):
        proxy_data.collect(**{**given, "real": given["real"] / 255.0})
    with pytest.raises(MixtureError, match=r"policy_val has no image of class 2.*raise"):
        labels = np.minimum(given["policy_val_labels"], 1)
        proxy_data.collect(**{**given, "policy_val_labels": labels})
    images, rows = proxy_data.collect(**given), proxy_data.collect(**{**given, **features})
    assert (images.kind, rows.kind) == ("images", "features")
    np.testing.assert_allclose(images.ood, rows.ood, rtol=1e-6)
    with pytest.raises(proxy_data.ProxyError, match="Head reads features, and the data are images"):
        proxy.make(images, CONFIG, classifier=Head())
    with pytest.raises(proxy_data.ProxyError, match="Network reads images, and the data are feat"):
        proxy.make(rows, CONFIG, classifier=NETWORK)
    odd = dataclasses.replace(VIT, vit=dataclasses.replace(VIT.vit, patch_size=3))
    with pytest.raises(ConfigError, match="patch_size = 3 does not divide images of 4x4"):
        proxy.make(images, CONFIG, classifier=Network(odd))
    with pytest.raises(ConfigError, match="together=-1"):
        proxy.make(images, CONFIG, classifier=NETWORK, together=-1)

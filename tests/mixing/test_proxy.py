"""The proxy environment: real-only training bit for bit, populations, rewards, what it refuses."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lt_jax.classify import train
from lt_jax.config import ConfigError
from lt_jax.config.mixing import MixingConfig, ProxyConfig, RewardConfig
from lt_jax.mixing import controllers, draws, observations, proxy, proxy_data
from lt_jax.mixing.environment import Environment
from lt_jax.mixing.mixture import MixtureError
from lt_jax.runtime import keys
from tests.mixing import tiny

COUNTS, POOL, SEEN = (40, 12, 4), (10, 0, 7), (6, 5, 4)
NAMES = ("a", "b", "c")
PROXY = ProxyConfig(batch_size=8, minibatches=4, learning_rate=0.1, hidden=5)
CONFIG = MixingConfig(levels=(0.0, 0.5, 0.8), rounds=3, proxy=PROXY)
REWARD = RewardConfig(price=0.1, head_penalty=2.0, head_tolerance=0.0)


def arrays(counts=COUNTS, pool=POOL, seen=SEEN, width=6):
    rng = np.random.default_rng(0)
    means = rng.normal(size=(len(counts), width))

    def images(sizes, spread):
        labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
        return means[labels] + spread * rng.normal(size=(len(labels), width)), labels

    real, policy_val, synthetic = images(counts, 1.0), images(seen, 1.0), images(pool, 0.5)
    classes = [f"class {k}" for k in range(len(counts))] if len(counts) != 3 else NAMES
    return tiny.collected(real, synthetic, policy_val, rng, classes)


def make(config=CONFIG, given=None, **others):
    return proxy.make(proxy_data.collect(**(given or arrays())), config, reference_runs=2, **others)


@functools.cache
def plain():
    return make(dataclasses.replace(CONFIG, reward=REWARD))


@jax.jit
def episode(env, actions, key):
    start, turns = key, jax.random.split(jax.random.fold_in(key, 1), len(actions))

    def turn(state, each):
        after = env.step(state, *each)
        return after.state, after

    first, state = env.reset(start)
    return first, state, jax.lax.scan(turn, state, (actions, turns))[1]


ACTIONS = jnp.array([[1, 0, 2], [2, 0, 0], [0, 0, 1]])


def test_zero_shares_are_real_images_alone_bit_for_bit(getkey):
    env, key = plain(), getkey()
    none = arrays()
    for name in ("synthetic", "synthetic_labels", "scores"):
        none[name] = none[name][:0]
    real_only = make(dataclasses.replace(CONFIG, reward=REWARD), none)
    zero = jnp.zeros((3, 3), jnp.int32)
    ours, theirs = episode(env, zero, key)[2], episode(real_only, zero, key)[2]
    for one, other in zip(
        jax.tree.leaves((ours.state.params, ours.reward)),
        jax.tree.leaves((theirs.state.params, theirs.reward)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    # An empty pool takes no share, whatever is picked.
    asked = episode(real_only, ACTIONS, key)[2]
    np.testing.assert_array_equal(asked.state.params[0].kernel, theirs.state.params[0].kernel)
    assert not np.array_equal(
        episode(env, ACTIONS, key)[2].state.params[0].kernel, ours.state.params[0].kernel
    )


def test_zero_shares_train_what_a_plain_loop_over_real_images_trains(getkey):
    key, given = getkey(), arrays()
    after = episode(plain(), jnp.zeros((1, 3), jnp.int32), key)[2]
    turn = jax.random.split(jax.random.fold_in(key, 1), 1)[0]
    u, _, z = np.asarray(jax.random.uniform(keys.stream(turn, "draw"), (3, 4, 8)))
    standard = (given["real"] - given["real"].mean(0)) / given["real"].std(0)
    weights = controllers.real_only(np.array(COUNTS), "instance").mixture(()).class_weight
    params = {"w": jnp.zeros((6, 3)), "b": jnp.zeros(3)}
    for step in range(4):
        labels = np.searchsorted(np.cumsum(weights), u[step], side="right")
        rows = [
            np.flatnonzero(given["real_labels"] == label)[int(at * COUNTS[label])]
            for label, at in zip(labels, z[step], strict=True)
        ]

        def loss(params, rows=rows, labels=labels):
            logits = jnp.asarray(standard[rows], jnp.float32) @ params["w"] + params["b"][None]
            return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params))
    np.testing.assert_allclose(after.state.params[0].kernel[0], params["w"], atol=1e-5)
    np.testing.assert_allclose(after.state.params[0].bias[0], params["b"], atol=1e-5)


def test_losses_are_told_without_the_prior_that_training_adds(getkey):
    """As a live policy is told them; fresh heads give log K to every image, whatever the prior."""
    proxied = dataclasses.replace(PROXY, loss="balanced_softmax", minibatches=1)
    env = make(dataclasses.replace(CONFIG, proxy=proxied))
    _, state = env.reset(getkey())
    share = jnp.array([0.5, 0.0, 0.8])
    after, _ = env.train_round(state, share, jnp.ones(3), getkey())
    np.testing.assert_allclose(after.track.losses, 1.0, rtol=1e-6)
    plain = make(dataclasses.replace(CONFIG, proxy=dataclasses.replace(PROXY, minibatches=1)))
    other, _ = plain.train_round(state, share, jnp.ones(3), getkey())
    assert np.abs(after.params[-1].bias - other.params[-1].bias).max() > 1e-3


def test_a_vmapped_population_equals_a_loop(getkey):
    env, runs = plain(), jax.random.split(getkey(), 3)
    together = jax.vmap(episode, (None, None, 0))(env, ACTIONS, runs)[2]
    for n, key in enumerate(runs):
        alone = episode(env, ACTIONS, key)[2]
        np.testing.assert_allclose(together.reward[n], alone.reward, atol=1e-6)
        np.testing.assert_allclose(together.observation[n], alone.observation, atol=1e-5)
    assert not np.allclose(together.reward[0], together.reward[1])


def test_rewards_add_up_to_what_the_classifier_became(getkey):
    env = plain()
    _, start, steps = episode(env, ACTIONS, getkey())
    potential = steps.info["metric"] - 2.0 * steps.info["head_fall"]
    np.testing.assert_allclose(potential, steps.state.potential, atol=1e-6)
    share = np.array(CONFIG.levels)[ACTIONS] * (np.array(POOL) > 0)
    np.testing.assert_allclose(steps.info["share"], share, rtol=1e-6)
    total = potential[-1] - start.potential - 0.1 * share.mean(-1).sum()
    np.testing.assert_allclose(steps.reward.sum(0), np.full(3, total), atol=1e-5)
    np.testing.assert_allclose(start.potential, 1 / 3, rtol=1e-6)  # zeros predict all alike


def test_a_factor_is_paid_for_by_the_images_that_it_draws(getkey):
    """And not where all classes have the same one, which changes no draw."""
    config = dataclasses.replace(CONFIG, reward=RewardConfig(price=0.1), weights=(1.0, 3.0))
    env, key = make(config), getkey()
    free = env.replace(config=dataclasses.replace(config, reward=RewardConfig(price=0.0)))
    state, share = env.reset(key)[1], jnp.array([0.5, 0.0, 0.8])
    team = jax.jit(lambda env, factor: env.train_round(state, share, factor, key)[1])

    def drawn(factor):
        weight = draws.class_weights(env.data.counts, share, factor, "instance")
        return weight / draws.class_weights(env.data.counts, share, jnp.ones(3), "instance")

    for factor in (jnp.ones(3), jnp.full(3, 3.0), jnp.array([1.0, 1.0, 3.0])):
        paid = team(free, factor) - team(env, factor)
        np.testing.assert_allclose(paid, 0.1 * (share * drawn(factor)).mean(), rtol=1e-4)
    assert drawn(jnp.full(3, 3.0))[2] == pytest.approx(1, rel=1e-5) and drawn(factor)[2] > 1.5


def test_the_reference_is_the_recall_of_real_images_alone(getkey):
    env = make(dataclasses.replace(CONFIG, reward=REWARD))
    runs = jax.random.split(keys.stream(keys.root(0), "reference"), 2)
    recalls = []
    for run in runs:
        _, state = env.reset(run)
        turns = jax.random.split(keys.stream(run, "turns"), 3)
        for turn in turns:
            state = env.step(state, jnp.zeros(3, jnp.int32), turn).state
        recalls.append(state.track.measured.recall)
    np.testing.assert_allclose(env.reference[-1], np.mean(recalls, axis=0), atol=1e-5)
    np.testing.assert_allclose(env.reference[0], np.full(3, 1 / 3), rtol=1e-6)


def test_difference_rewards_train_the_round_again_without_a_share(getkey):
    config = dataclasses.replace(CONFIG, reward=dataclasses.replace(REWARD, difference=True))
    env, key = make(config), getkey()
    state = env.reset(key)[1]
    action = jnp.array([1, 2, 2])
    step = jax.jit(env.step)
    after = step(state, action, key)
    for k in (0, 2):
        without = step(state, action.at[k].set(0), key).info["team"]
        np.testing.assert_allclose(after.reward[k], after.info["team"] - without, atol=1e-6)
        assert after.reward[k] != 0
    assert after.reward[1] == 0  # no pool: no share


def test_difference_rewards_rank_an_agent_s_pairs_of_share_and_factor_as_the_team_s(getkey):
    """By the same differences, with the same numbers drawn; 0 at share 0 and factor 1 alone."""
    reward, weights = dataclasses.replace(REWARD, difference=True), (0.5, 1.0, 2.0)
    proxied = dataclasses.replace(PROXY, batch_size=64)
    env = make(dataclasses.replace(CONFIG, reward=reward, weights=weights, proxy=proxied))
    key = getkey()
    state = env.reset(key)[1]
    others = jnp.array([[1, 2], [0, 0], [2, 1]])
    pairs = jnp.array([(level, weight) for level in range(3) for weight in range(3)])
    actions = jax.vmap(lambda pair: others.at[0].set(pair))(pairs)
    steps = jax.jit(jax.vmap(env.step, (None, 0, None)))(state, actions, key)
    own, team = np.asarray(steps.reward[:, 0]), np.asarray(steps.info["team"])
    np.testing.assert_array_equal(np.argsort(own), np.argsort(team))
    np.testing.assert_allclose(own, team - team[1], atol=1e-6)
    assert np.diff(np.sort(team)).min() > 1e-5  # so that ranks are no rounding
    assert own[1] == 0 and (np.delete(own, 1) != 0).all()


def test_policy_val_is_read_by_reward_and_never_trained_on(getkey):
    given, key = arrays(), getkey()
    moved = {**given, "policy_val": given["policy_val"][::-1].copy()}
    config = dataclasses.replace(CONFIG, reward=REWARD)
    ours, theirs = (episode(make(config, each), ACTIONS, key)[2] for each in (given, moved))
    np.testing.assert_array_equal(ours.state.params[0].kernel, theirs.state.params[0].kernel)
    assert not np.allclose(ours.reward, theirs.reward)


def test_there_is_no_way_in_for_test_data():
    taken = set(inspect.signature(proxy_data.collect).parameters)
    assert taken == {*arrays(), "fidelity"}
    images = {"features", "policy_val", "policy_val_labels"}
    numbers = {"starts", "sizes", "head", "ood", "fidelity"}
    assert {field.name for field in dataclasses.fields(proxy_data.ProxyData)} == images | numbers
    assert set(inspect.signature(proxy.make).parameters) == {
        *("data", "config", "classifier", "sampler", "horizon", "together"),
        *("reference_runs", "seed", "device_mesh"),
    }
    data = proxy_data.collect(**arrays())
    assert len(data.features) == sum(COUNTS) + sum(POOL) and len(data.policy_val) == sum(SEEN)


def test_truncation_in_mid_episode_is_no_termination(getkey):
    whole = episode(plain(), ACTIONS, getkey())[2]
    assert whole.terminated.tolist() == [False, False, True] and not whole.truncated.any()
    cut = dataclasses.replace(plain(), horizon=2)
    steps = episode(cut, ACTIONS[:2], getkey())[2]
    assert steps.truncated.tolist() == [False, True] and not steps.terminated.any()
    assert cut.rounds == 2
    equal = episode(dataclasses.replace(plain(), horizon=3), ACTIONS, getkey())[2]
    assert equal.terminated[2] and not equal.truncated.any()
    np.testing.assert_allclose(steps.observation[1, :, observations.NAMES.index("progress")], 2 / 3)


@pytest.mark.parametrize(
    ("classes", "head", "loss", "optimizer", "weights"),
    [
        (2, "linear", "balanced_softmax", "adam", ()),
        (100, "mlp", "cross_entropy", "sgd", (0.5, 1.0)),
    ],
)
def test_few_and_many_classes(getkey, classes, head, loss, optimizer, weights):
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 9, classes)
    given = arrays(counts, rng.integers(0, 4, classes), np.full(classes, 2))
    proxied = dataclasses.replace(
        PROXY, head=head, loss=loss, optimizer=optimizer, minibatches=2, batch_size=64
    )
    config = dataclasses.replace(CONFIG, proxy=proxied, weights=weights, rounds=1)
    env = make(config, given, sampler="square_root")
    assert isinstance(env, Environment)
    assert env.num_actions == ((3, 2) if weights else (3,))
    shape = (1, classes, 2) if weights else (1, classes)
    first, _, steps = episode(env, jnp.ones(shape, jnp.int32), getkey())
    assert first.shape == (classes, len(env.observations))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((first, steps.observation)))
    assert steps.reward.shape == (1, classes) and (steps.reward > 0).all()  # it learns
    assert np.abs(steps.observation).max() < 5


def test_draws_are_of_the_classes_sources_and_images_that_the_mixture_names(getkey):
    data = plain().data
    weight, share = jnp.array([0.5, 0.2, 0.3]), jnp.array([0.25, 0.0, 0.8])
    drawn = draws.draw(data, weight, share, getkey(), (40_000,))
    labels, synthetic, rows = (np.asarray(x) for x in (drawn.labels, drawn.synthetic, drawn.rows))
    np.testing.assert_allclose(np.bincount(labels) / 40_000, weight, atol=0.01)
    for k in range(3):
        own = labels == k
        np.testing.assert_allclose(synthetic[own].mean(), share[k], atol=0.02)
        for source in (0, 1):
            start, size = int(data.starts[source, k]), int(data.sizes[source, k])
            counted = np.bincount(rows[own & (synthetic == source)], minlength=len(data.features))
            assert counted[:start].sum() == counted[start + size :].sum() == 0
            if counted.sum():
                np.testing.assert_allclose(
                    counted[start : start + size] / counted.sum(), 1 / size, rtol=0.35
                )


@pytest.mark.parametrize("sampler", ["instance", "balanced", "square_root"])
def test_weights_and_effective_counts_are_those_of_controllers_and_training(sampler):
    counts = np.array(COUNTS)
    mixture = controllers.Supply(COUNTS, (99, 99, 99), sampler).mix(np.array([10, 0, 12]))
    share = jnp.asarray(mixture.share, jnp.float32)
    weight = draws.class_weights(jnp.asarray(counts, jnp.float32), share, jnp.ones(3), sampler)
    np.testing.assert_allclose(weight, mixture.class_weight, rtol=1e-5)
    ours = draws.effective_counts(jnp.asarray(counts, jnp.float32), weight, share)
    theirs = train.effective_counts(counts, mixture.class_weight, mixture.share)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    tripled = draws.class_weights(
        jnp.asarray(counts, jnp.float32), share, jnp.array([1.0, 3.0, 1.0]), sampler
    )
    odds = (tripled[1] / tripled[0]) / (weight[1] / weight[0])
    np.testing.assert_allclose(odds, 3.0, rtol=1e-5)


def test_permuting_classes_permutes_training_and_observations(getkey):
    order, given = np.array([2, 0, 1]), arrays()
    moved = {**given, "head": given["head"][np.argsort(order)]}
    for name in ("real_labels", "synthetic_labels", "policy_val_labels"):
        moved[name] = order[given[name]]
    one, other = plain(), make(dataclasses.replace(CONFIG, reward=REWARD), moved)
    key = getkey()
    first, state = one.reset(key)
    np.testing.assert_allclose(other.reset(key)[0][order], first, atol=1e-6)
    rows = jax.random.randint(key, (4, 8), 0, len(one.data.features))
    ends = np.cumsum(np.asarray(one.data.sizes).ravel())
    which = np.searchsorted(ends, rows, side="right")
    batches = draws.Draws(rows, jnp.asarray(which % 3), jnp.asarray(which >= 3))
    same = [
        int(np.flatnonzero((np.asarray(other.data.features) == row).all(-1))[0])
        for row in np.asarray(one.data.features)
    ]
    relabelled = draws.Draws(
        jnp.array(same)[rows], jnp.asarray(order)[batches.labels], batches.synthetic
    )
    params, _, losses = one.fit(state, batches, jnp.zeros(3), key)
    theirs, _, their_losses = other.fit(other.reset(key)[1], relabelled, jnp.zeros(3), key)
    np.testing.assert_allclose(theirs[0].kernel[:, order], params[0].kernel, atol=1e-6)
    np.testing.assert_allclose(their_losses[:, order], losses, atol=1e-5)
    np.testing.assert_allclose(
        other.measure(theirs).recall[order], one.measure(params).recall, atol=1e-6
    )


def test_observations_name_what_they_hold(getkey):
    first, _, steps = episode(plain(), ACTIONS, getkey())
    before = dict(zip(observations.NAMES, first.T, strict=True))
    after = dict(zip(observations.NAMES, steps.observation[0].T, strict=True))
    np.testing.assert_allclose(before["log_count"], np.log1p(COUNTS) / 10, rtol=1e-6)
    np.testing.assert_allclose(before["log_pool"], np.log1p(POOL) / 10, rtol=1e-6)
    np.testing.assert_array_equal(before["pool"], [1, 0, 1])
    np.testing.assert_allclose(before["real_loss"], np.full(3, np.log(2)), rtol=1e-6)
    assert not any(np.any(before[n]) for n in ("share", "dose", "progress", "recall_change"))
    np.testing.assert_allclose(after["share"], [0.5, 0, 0.8], rtol=1e-6)
    np.testing.assert_allclose(after["dose"], np.log1p([1, 0, 4]), rtol=1e-5)
    np.testing.assert_allclose(after["recall"], steps.info["recall"][0], rtol=1e-6)
    change = np.tanh(10 * (after["recall"] - before["recall"]))
    np.testing.assert_allclose(after["recall_change"], change, atol=1e-5)
    np.testing.assert_allclose(after["synthetic_loss"][1], np.log(2), rtol=1e-6)  # never drawn
    both = np.array([before["ood"][0], before["ood"][2]])
    np.testing.assert_allclose([both.mean(), both.std(), before["ood"][1]], [0, 1, 0], atol=1e-6)
    assert before["fidelity"][1] == 0 and (before["fidelity"][np.array([0, 2])] > 0.3).all()


def test_fidelity_falls_with_the_distance_of_class_means():
    given = arrays()
    near = proxy_data.collect(**given).fidelity
    far = proxy_data.collect(**{**given, "synthetic": given["synthetic"] + 5.0}).fidelity
    assert (far[np.array([0, 2])] < near[np.array([0, 2])]).all()
    same = {
        "synthetic": given["real"],
        "synthetic_labels": given["real_labels"],
        "scores": np.zeros(len(given["real"])),
    }
    exact = proxy_data.collect(**{**given, **same})
    np.testing.assert_allclose(exact.fidelity, np.ones(3), rtol=1e-6)
    assert not exact.ood.any()


def test_what_cannot_be_trained_or_measured_is_an_error_that_says_what_to_do():
    given = arrays()
    absent = {**given, "policy_val_labels": np.minimum(given["policy_val_labels"], 1)}
    with pytest.raises(MixtureError, match=r"policy_val has no image of c,.*raise config"):
        proxy_data.collect(**absent)
    with pytest.raises(proxy_data.ProxyError, match="train has no image of a"):
        proxy_data.collect(**{**given, "real_labels": np.maximum(given["real_labels"], 1)})
    with pytest.raises(proxy_data.ProxyError, match="takes 0 to 2"):
        proxy_data.collect(**{**given, "synthetic_labels": given["synthetic_labels"] + 1})
    with pytest.raises(proxy_data.ProxyError, match="not finite"):
        proxy_data.collect(**{**given, "real": given["real"] * np.inf})
    with pytest.raises(proxy_data.ProxyError, match="score of the pool"):
        proxy_data.collect(**{**given, "scores": given["scores"] * np.nan})
    with pytest.raises(proxy_data.ProxyError, match="one extractor"):
        proxy_data.collect(**{**given, "policy_val": given["policy_val"][:, 1:]})
    data = proxy_data.collect(**given)
    with pytest.raises(ConfigError, match=r"one is 0\.0"):
        proxy.make(data, dataclasses.replace(CONFIG, levels=(0.2, 0.4)))
    with pytest.raises(ConfigError, match="square_root"):
        proxy.make(data, CONFIG, sampler="tempered")
    with pytest.raises(ConfigError, match="0 or more"):
        proxy.make(data, CONFIG, horizon=-1)

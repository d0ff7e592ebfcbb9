"""The mixing experiments: how policies are judged, and that one and the same episode is timed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.mixing import toy as experiment
from experiments.throughput import devices, mixing
from lt_jax.config import ConfigError
from lt_jax.config.mixing import MixingConfig, PolicyConfig, ProxyConfig
from lt_jax.mixing import toy

SMALL = MixingConfig(rounds=2, proxy=ProxyConfig(batch_size=16, minibatches=3))


@pytest.fixture(scope="module")
def problem():
    return experiment.problem_of(7, 6, 4)


@pytest.fixture(scope="module")
def env():
    return mixing.environment(SMALL)


def test_the_oracle_reaches_beats_and_leaves_and_full_shares_do_not(problem):
    actions, best = toy.oracle(problem)
    others = experiment.rivals(problem, 7)
    full = np.full_like(actions, len(problem.levels) - 1)
    told = experiment.judge(problem, np.stack([full, actions])[:, None], others, best)
    np.testing.assert_allclose(told["curve"][1], 1.0, rtol=1e-6)
    assert told["ratio"] == told["curve"][1] and told["reaches"] and told["beats"]
    assert told["leaves"] and told["harmful_last"] == told["harmful_all"] == 0
    worst = experiment.judge(problem, full[None, None], others, best)
    assert not (worst["reaches"] or worst["beats"] or worst["leaves"])
    np.testing.assert_allclose(worst["harmful_all"], max(problem.levels))
    np.testing.assert_allclose(worst["ratio"] * best, others["fixed 0.8"], rtol=1e-6)
    assert others["fixed 0"] == 0


def test_policies_and_searches_are_played_after_as_many_trainings(problem):
    config = PolicyConfig(algorithm="reinforce", width=4, episodes=4, updates=10)
    points = experiment.points_of(config)
    np.testing.assert_array_equal(points, [1, 2, 4, 7, 10])
    problems = [problem, experiment.problem_of(8, 6, 4)]
    actions, curves = experiment.train(config, problems, [7, 8])
    assert actions.shape == (2, len(points), experiment.PLAYS, 4, 6) and curves[
        "entropy"
    ].shape == (2, 10)
    budgets = (config.episodes * points).tolist()
    found = experiment.search_schedules(problems, [7, 8], budgets)
    for each, schedules in zip(problems, found, strict=True):
        returns = [toy.returns(each, schedule) for schedule in schedules[:, 0]]
        assert (np.diff(returns) >= 0).all() and len(returns) == len(points)  # without noise


def test_policy_fields_are_read_and_unknown_ones_refused():
    config = experiment.policy_config("reinforce", ["learning_rate=0.02", "pooling=attention"])
    assert config.learning_rate == 0.02 and config.pooling == "attention"
    with pytest.raises(ConfigError, match="rate"):
        experiment.policy_config("mappo", ["rate=0.02"])
    with pytest.raises(ConfigError, match=r"--policy: got 'updates'; takes .*updates=400"):
        experiment.policy_config("mappo", ["learning_rate=0.02", "updates"])


def test_random_data_have_the_digits_size():
    data = mixing.random_data()
    assert data.sizes[0].sum() == mixing.TRAIN and data.features.shape == (831, 64)
    assert (data.sizes[1] == mixing.POOL).all() and (np.diff(data.sizes[0]) < 0).all()


def test_every_row_is_timed_and_the_table_tells_it(env):
    result = mixing.measure(env, [1, 3], repetitions=2, seconds=0.0)
    names = [name for name in result["rows"] if name != "PyTorch loop"]
    assert names == ["Python loop", "1 at once", "3 at once"]
    assert all(0 < row["min"] <= row["median"] <= row["max"] for row in result["rows"].values())
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    result["peak_memory"] = {"1": 2**20, "3": 3 * 2**20}
    text = mixing.table(result)
    assert all(f"| {name} |" in text for name in names) and "| 3 |" in text
    assert 2**24 < devices.peak_memory(jax.devices()[0])[0] < 2**37


def test_the_torch_loop_trains_what_the_environment_trains(env, getkey):
    torch = pytest.importorskip("torch")
    share = jnp.asarray(np.linspace(0, 0.8, 10), jnp.float32)
    _, state = env.reset(getkey())
    weight = mixing.proxy.draws.class_weights(env.data.counts, share, share * 0 + 1, env.sampler)
    batches = mixing.proxy.draws.draw(env.data, weight, share, getkey(), (3, 16))
    expected, _, losses = env.fit(state, batches, jnp.zeros(10), getkey())
    rows, labels, source = (torch.from_numpy(np.array(leaf)).long() for leaf in batches)
    params = [torch.zeros(64, 10), torch.zeros(10)]
    features = torch.from_numpy(np.array(env.data.features))
    told = mixing.torch_fit(
        params, features, rows, labels, source, SMALL.proxy.learning_rate
    ) / np.log(10)  # fmt: skip
    np.testing.assert_allclose(params[0].detach(), expected[0].kernel, atol=1e-5)
    seen = ~np.isnan(losses)
    np.testing.assert_allclose(told.numpy()[seen], losses[seen], rtol=1e-5)
    member = torch.nn.functional.one_hot(
        torch.from_numpy(np.array(env.data.policy_val_labels)).long(), 10
    ).float()
    recall = mixing.torch_measure(params, torch.from_numpy(np.array(env.data.policy_val)), member)
    measured = env.measure(expected).recall
    np.testing.assert_allclose(recall, jax.device_get(measured), atol=1e-5)

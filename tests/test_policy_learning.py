"""The stage mixing, tiny: what it writes, what arms make of it, and that it resumes."""

import contextlib
import dataclasses
import json
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax import (
    classification,
    dry_run,
    pipeline,
    policy_learning,
    preflight,
    preflight_arms,
)
from lt_jax import config as config_lib
from lt_jax.config import ConfigError
from lt_jax.context import Context
from lt_jax.data.pool import PoolReader
from lt_jax.mixing import comparison, controllers, costs, learn, learned
from lt_jax.mixing.classifiers import Network
from lt_jax.mixing.mixture import Feedback, MixtureError
from lt_jax.runtime import checkpoint, faults, keys, mesh, metrics
from tests.shrink import shrink
from tests.test_golden_configs import load

ROOT = pathlib.Path(__file__).parents[1]
MADE = ("prepare", "generator", "extractor", "synthesize")
ARMS = {
    "ce": {},
    "live": {"controller": "policy"},
    "replayed": {"controller": "policy_schedule"},
    "searched": {"controller": "random_search"},
    "shuffled": {"controller": "shuffled", "of": "policy"},
    "replay": {"controller": "source_replay", "of": "policy"},
}


def tiny(**mixing):
    config = shrink(load(ROOT / "configs" / "digits.py"), 1)
    with config.unlocked():
        config.data.imbalance_factor = 10.0
        config.mixing.update(mixing)
        config.synthesize.selection.memorization.gate = False  # few train images, fewer pass
        config.classify.arms = config_lib.arms(**ARMS)
    return config


def run_of(folder, cache, **mixing):
    return pipeline.Pipeline(tiny(**mixing), folder, cache, command="test")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def finished(cache, tmp_path_factory):
    """A finished run."""
    run = run_of(tmp_path_factory.mktemp("run"), cache)
    run.run()
    return run


def read(path):
    return json.loads(path.read_text())


def test_every_arm_gets_what_the_policies_say(finished):
    context = finished.context()
    folder = context.folder("mixing")
    offered = PoolReader(context.folder("synthesize"), context.data[0].sha256).counts() > 0
    assert offered.any()
    for seed in (0, 1):
        for arm, rule in (("replayed", "policy_schedule"), ("searched", "random_search")):
            mixture = read(context.folder(f"classify/{arm}/seed{seed}") / "mixture.json")
            schedule = read(folder / "schedules" / f"{rule}_{seed}.json")
            found, given = ([entry["share"] for entry in held] for held in (mixture, schedule))
            np.testing.assert_array_equal(found, np.where(offered, given, 0))
        lived = context.folder(f"classify/live/seed{seed}")
        controller, _ = classification.mixed_data(context, "live", seed)
        assert isinstance(controller, learned.Learned)
        history = [
            Feedback(**{name: np.asarray(value) for name, value in entry.items()})
            for entry in read(lived / "history.json")
        ]
        mixture = [m["share"] for m in read(lived / "mixture.json")]
        assert mixture == [controller.mixture(history[:r]).share.tolist() for r in range(2)]
        assert set(np.ravel(mixture)) <= set(context.config.mixing.levels)


def test_the_report_shows_policies_and_what_they_did(finished):
    report = read(finished.workdir / "report.json")
    assert set(report["mixing"]["returns"]) >= {"policy", "random_search", "fixed 0"}
    arms = {arm["name"]: arm for arm in report["arms"]}
    assert arms["live"]["uses_policy"] and not arms["ce"]["uses_policy"]
    assert np.asarray(arms["live"]["shares_by_seed"]).shape == (2, 2, 10)
    assert "Mixing" in (finished.workdir / "report.html").read_text()


def test_seeds_of_classifiers_take_the_policies_in_turn(finished):
    """Where they have none of their own; these are of the seeds 0 and 1."""
    context = finished.context()
    recipe = dataclasses.replace(context.config.classify, seeds=(0, 1, 5))
    config = dataclasses.replace(context.config, classify=recipe)
    context = dataclasses.replace(context, config=config)
    supply = controllers.Supply(tuple(map(len, context.train_rows)), (5,) * 10)
    made = [policy_learning.controller(context, seed, "policy", supply) for seed in recipe.seeds]
    first, second, third = (np.concatenate([*map(np.ravel, leaves(c))]) for c in made)
    np.testing.assert_array_equal(first, third)
    assert np.any(first != second)


def leaves(controller):
    return jax.tree.leaves(controller.policy)


def test_what_it_tells_of_the_policies(finished):
    config, folder = finished.config.mixing, finished.context().folder("mixing")
    told, curves = read(folder / "proxy.json"), read(folder / "curves.json")
    assert told["seeds"] == curves["seeds"] == [0, 1]
    assert np.asarray(told["importance"]).shape == (2, len(told["observations"]))
    assert np.asarray(curves["curves"]["return_mean"]).shape == (2, config.policy.updates)
    assert np.isfinite(curves["curves"]["return_mean"]).all()
    assert curves["curves"]["trainings"] == [[4.0, 8.0, 12.0]] * 2
    assert told["trainings"] == 12
    fixed = {f"fixed {share:g}" for share in config.levels}
    assert set(told["returns"]) == {"policy", "policy_schedule", "random_search"} | fixed
    spent = finished.store.ledger(finished.context().specs["mixing"])
    episodes = {
        "reference": 1,
        "learning": 2 * 3 * 4,  # seeds x updates x episodes
        "search": 2 * 3 * 4,
        # seeds x (greedy, 32 of the policy and each of seven schedules, an update's)
        "comparison": 2 * (1 + 32 * (1 + 7) + 4),
    }
    assert {name: part["episodes"] for name, part in told["spent"].items()} == episodes
    assert told["spent"]["search"]["images"] == told["spent"]["learning"]["images"]
    for name, number in episodes.items():
        assert told["spent"][name]["images"] == number * 2 * 2 * 8  # rounds x minibatches x batch
    for name in ("images", "flops"):
        parts = sum(part[name] for part in told["spent"].values())
        np.testing.assert_allclose(getattr(spent, name), parts, rtol=1e-6)
    # Of each weight and row a product forward and one backward, and of logits some more.
    weights = 10 * (finished.config.extractor.model.vit.width + 1)
    assert 4 * weights < spent.flops / spent.images < 8 * weights


@pytest.mark.parametrize("stop", [1, 2])
def test_learning_that_is_stopped_ends_as_an_unbroken_one(
    finished, cache, tmp_path, stop, monkeypatch
):
    whole = finished.context().folder("mixing")
    other = tmp_path / "cache"
    other.mkdir()
    for path in cache.iterdir():
        if path.name.split("-")[0] in MADE:
            (other / path.name).symlink_to(path)
    run = run_of(tmp_path / "run", other)
    seen = []

    def stopping():
        seen.append(None)
        return len(seen) > stop

    with monkeypatch.context() as patch:
        patch.setattr(policy_learning.faults, "stopping", stopping)
        with pytest.raises(faults.Preempted):
            run.run(("mixing",))
    run.run(("mixing",))
    again = run.context().folder("mixing")
    assert again != whole
    for name in ("curves.json", "proxy.json", "schedules/policy_schedule_0.json"):
        assert read(again / name) == read(whole / name)
    assert [line["step"] for line in metrics.read(again / "metrics.jsonl")] == [2, 3]


def test_test_and_val_images_are_not_asked_for(finished, monkeypatch):
    """Neither as they are, nor by what the extractor has said of them."""
    context = finished.context()
    manifest, images = context.data
    asked = []
    evidence = Context.evidence

    def watched_evidence(self, split):
        asked.extend(manifest.rows(split).tolist())
        return evidence(self, split)

    monkeypatch.setattr(Context, "evidence", watched_evidence)

    class Watched:
        def __getitem__(self, rows):
            asked.extend(np.ravel(rows).tolist())
            return images[rows]

        def __len__(self):
            return len(images)

    watched = dataclasses.replace(context)
    object.__setattr__(watched, "__dict__", {**watched.__dict__, "data": (manifest, Watched())})
    for environment in ("features", "images"):
        mixing = dataclasses.replace(context.config.mixing, environment=environment)
        object.__setattr__(watched, "config", dataclasses.replace(context.config, mixing=mixing))
        asked.clear()
        policy_learning.proxy_data(watched)
        allowed = {*manifest.rows("train").tolist(), *manifest.rows("policy_val").tolist()}
        assert set(asked) == allowed


def test_policies_are_learned_in_pixels_too(finished, tmp_path):
    """By the network, optimiser and augmentation of the arms, in two updates."""
    context = finished.context()
    mixing = context.config.mixing
    policy = dataclasses.replace(
        mixing.policy, algorithm="reinforce", updates=2, episodes=2, seeds=(0,)
    )
    proxy = dataclasses.replace(mixing.proxy, minibatches=1)
    mixing = dataclasses.replace(mixing, environment="images", policy=policy, proxy=proxy)
    config = dataclasses.replace(context.config, mixing=mixing)
    context = dataclasses.replace(context, config=config, mesh=mesh.make_mesh(1))
    env = policy_learning._environment(context, policy_learning.proxy_data(context), 1)
    recipe = context.config.classify
    assert env.classifier == Network(recipe.model, recipe.optimizer, recipe.augment)
    assert env.data.features.shape[1:] == context.image_shape
    assert np.isfinite(env.reference).all()
    learner = policy_learning._learner(context, env)
    assert (mixing.together, learner.together) == (0, 1)  # one after the other
    fresh = policy_learning._fresh(learner, context.mesh).states
    before = mesh.fetch(jax.vmap(lambda state: state.policy)(fresh)).params
    training, ledger = policy_learning._learn(learner, tmp_path, context)
    assert training.states.updates.tolist() == [2]
    assert np.isfinite(training.curves["return_mean"]).all()
    after = jax.tree.leaves(training.states.actor.params)
    pairs = zip(jax.tree.leaves(before), after, strict=True)
    assert any(np.any(np.asarray(new) != old) for old, new in pairs)
    assert ledger.images == 2 * 2 * 2 * 8  # updates x episodes x rounds x batch
    fresh = jax.eval_shape(env.reset, keys.root(0))[1].params
    weights = sum(leaf.size for leaf in jax.tree.leaves(fresh))
    assert ledger.flops > 6 * weights * ledger.images  # each patch meets the weights of its layers


def test_difference_rewards_cost_a_training_more_for_each_class(finished, monkeypatch):
    """Wherever trainings are counted; random search has as many of another schedule each."""
    context = finished.context()
    mixing = context.config.mixing
    env = policy_learning._environment(context, policy_learning.proxy_data(context), 1)
    reward = dataclasses.replace(env.config.reward, difference=True)
    own = env.replace(config=dataclasses.replace(env.config, reward=reward))
    one, more = costs.episode(env), costs.episode(own)
    assert (more.images, more.flops) == (11 * one.images, 11 * one.flops)
    assert costs.episode(comparison.paying_the_team(own)) == one == costs.training(own)
    learner = policy_learning._learner(context, own)
    spent = comparison.spent(learner, mixing, schedules=3)
    assert learner.trainings == 11 * policy_learning._learner(context, env).trainings == 11 * 12
    assert spent["search"]["images"] == spent["learning"]["images"] == 2 * 12 * more.images
    spending = jax.jit(lambda state: learner.update(state)[1]["trainings"])
    fresh = learner.init(keys.root(0))
    assert spending(fresh) == 11 * 4  # after an update of four episodes

    class Asked(Exception):
        """For a search, of which the test needs no more."""

    def searched(learner, key, trainings):
        raise Asked(learner.environment.config.reward.difference, trainings)

    monkeypatch.setattr(comparison, "greedy_schedule", lambda *_: None)
    monkeypatch.setattr(comparison, "searched_schedule", searched)
    with pytest.raises(Asked) as asked:
        comparison.compare(learner, mixing, fresh.policy, 0)
    assert asked.value.args == (False, 11 * 12)


@pytest.mark.parametrize(("difference", "each"), [(False, 12), (True, 132)])
def test_a_dry_run_counts_trainings(difference, each):
    run = pipeline.Pipeline(tiny(reward={"difference": difference}), pathlib.Path("unused"))
    text = dry_run.describe(run, ["mixing"])
    assert f"mixing: 2 policies, {each} trainings of a proxy each, and as many of random" in text


def test_data_are_no_constants_of_the_program_that_learns(finished):
    context = finished.context()
    env = policy_learning._environment(context, policy_learning.proxy_data(context), 1)

    def text(times):
        many = jnp.tile(env.data.features, (times, 1))
        other = env.replace(data=env.data.replace(features=many))
        learner = learn.Learner(context.config.mixing.policy, other)
        states = policy_learning._fresh(learner, context.mesh).states
        return policy_learning._update(learner, context.mesh).lower(states, other).as_text()

    assert abs(len(text(20)) - len(text(1))) < 1000


def test_what_is_not_finite_names_the_rate_that_trained_it(finished):
    bad = np.array([0.1, np.nan])
    for environment, named in (("features", "mixing.proxy"), ("images", "classify.optimizer")):
        mixing = dataclasses.replace(finished.config.mixing, environment=environment)
        config = dataclasses.replace(finished.config, mixing=mixing)
        rate = rf"update 3 is not finite .* lower config\.{named}\.learning_rate or"
        with pytest.raises(faults.NonFiniteError, match=rate):
            policy_learning._check(bad, 3, config)


def without_threes(manifest):
    """In policy_val."""
    splits = np.array(manifest.splits)
    splits[(splits == "policy_val") & (manifest.labels == 3)] = "val"
    return dataclasses.replace(manifest, splits=tuple(splits.tolist()))


def test_a_class_absent_from_policy_val_is_refused_before_anything_is_trained(
    tmp_path, monkeypatch
):
    whole = Context.data.func
    lacking = lambda self: (without_threes(whole(self)[0]), whole(self)[1])
    monkeypatch.setattr(Context, "data", property(lacking))
    with pytest.raises(MixtureError, match=r"policy_val has no image of 3, .* raise config\.data"):
        run_of(tmp_path, None).run()
    assert [path.parent.name for path in tmp_path.glob("*/artifact.json")] == ["prepare"]


@pytest.mark.parametrize(
    ("arm", "learns"),
    [
        ({"controller": "shuffled", "of": "policy_schedule"}, True),
        ({"controller": "random_search"}, True),
        ({"controller": "accuracy_adaptive"}, True),
        ({"controller": "source_replay", "of": "bandit"}, True),
        ({"controller": "source_replay", "dose": 1.0}, False),
        ({"controller": "schedule"}, False),
    ],
)
def test_who_learns_needs_every_class_in_policy_val(arm, learns, finished):
    arms = config_lib.FrozenDict({"arm": config_lib.ArmConfig(**arm)})
    recipe = dataclasses.replace(finished.config.classify, arms=arms)
    config = dataclasses.replace(finished.config, classify=recipe)
    manifest, _ = finished.context().data
    preflight_arms.check_counts(config, manifest)
    refused = pytest.raises(MixtureError) if learns else contextlib.nullcontext()
    with refused:
        preflight_arms.check_counts(config, without_threes(manifest))


def test_an_empty_pool_is_refused_before_a_policy_is_learned(finished, tmp_path, monkeypatch):
    empty = types.SimpleNamespace(counts=lambda: np.zeros(10, int))
    monkeypatch.setattr(policy_learning, "PoolReader", lambda *_: empty)
    with pytest.raises(MixtureError, match="the pool has no accepted one; loosen synthesize"):
        policy_learning.run(tmp_path, finished.context())
    assert not list(tmp_path.iterdir())


def test_a_loss_that_the_proxy_cannot_have_is_said(capsys):
    config = tiny()
    with config.unlocked():
        config.classify.arms = config_lib.arms(
            ce={},
            focal={"controller": "policy", "loss": "focal"},
            balanced={"controller": "shuffled", "of": "policy", "experts": 2},
            experts={"controller": "policy_schedule", "experts": 2, "expert_loss": "balpoe"},
        )
    config = pipeline.Pipeline(config, pathlib.Path("unused")).config
    preflight.check_stages(config, ["mixing"], preflight.vocabulary(config))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mixing")]
    assert sorted(said) == [
        "mixing: the arm experts trains with balpoe, its policy with cross_entropy",
        "mixing: the arm focal trains with focal, its policy with cross_entropy",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixing": {"levels": (0.2, 0.4)}}, r"mixing\.levels: got \(0\.2, 0\.4\)"),
        ({"mixing": {"levels": (0.0, 0.0, 0.4)}}, r"mixing\.levels: .* that differ"),
        ({"mixing": {"weights": (0.5, 1.0, 0.5)}}, r"mixing\.weights: got .*; .* that differ"),
        (
            {"mixing": {"policy": {"minibatches": 9}}},
            r"policy\.minibatches: got 9, more than the 8 steps of an update",
        ),
        ({"mixing": {"rounds": 3}}, r"classify\.rounds: got 2, .* learned for 3"),
        ({"mixing": {"sampler": "balanced"}}, r"sampler: got instance, .* under balanced"),
        (
            {"mixing": {"proxy": {"loss": "balanced_softmax"}}},
            r"arms\.live\.loss: got cross_entropy, .* balanced_softmax; .*proxy\.loss alike",
        ),
        (
            {"mixing": {"policy": {"seeds": (0, 1, 0)}}},
            r"policy\.seeds: got \(0, 1, 0\); .* differ",
        ),
        ({"mixing": {"policy": {"seeds": ()}}}, r"policy\.seeds: got \(\); .* one or more"),
        ({"data": {"split": {"policy_val": 0.0}}}, r"`policy` learns from the split policy_val"),
    ],
)
def test_what_a_policy_cannot_be_learned_for_is_refused(change, message):
    config = tiny()
    with config.unlocked():
        config.update(change)
    with pytest.raises(ConfigError, match=message):
        pipeline.Pipeline(config, pathlib.Path("unused"))


def test_policies_that_were_saved_for_another_network_are_refused(finished):
    context = finished.context()
    wide = dataclasses.replace(context.config.mixing.policy, width=8)
    mixing = dataclasses.replace(context.config.mixing, policy=wide)
    other = dataclasses.replace(context, config=dataclasses.replace(context.config, mixing=mixing))
    supply = controllers.Supply((5,) * 10, (5,) * 10)
    with pytest.raises(checkpoint.CheckpointError):
        policy_learning.controller(other, 0, "policy", supply)

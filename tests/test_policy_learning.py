"""The stage mixing, tiny: what it writes, what arms make of it, and that it resumes."""

import contextlib
import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from lt_jax import config as config_lib
from lt_jax import pipeline, policy_learning, preflight, stages
from lt_jax.config import ConfigError
from lt_jax.context import Context
from lt_jax.data.pool import PoolReader
from lt_jax.mixing import controllers, learned
from lt_jax.mixing.classifiers import Network
from lt_jax.mixing.mixture import Feedback, MixtureError
from lt_jax.runtime import checkpoint, faults, metrics
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
        controller, _ = stages._mixed_data(context, "live", seed)
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
    context = finished.context()
    supply = controllers.Supply(tuple(map(len, context.train_rows)), (5,) * 10)
    made = [policy_learning.controller(context, seed, "policy", supply) for seed in range(3)]
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
    costs = finished.store.ledger(finished.context().specs["mixing"])
    # seeds x updates x episodes x rounds x minibatches x batch
    assert costs.images == 2 * 3 * 4 * 2 * 2 * 8


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


def test_policies_are_learned_in_pixels_too(finished):
    """By the network, optimiser and augmentation of the arms."""
    context = finished.context()
    mixing = dataclasses.replace(context.config.mixing, environment="images")
    config = dataclasses.replace(context.config, mixing=mixing)
    context = dataclasses.replace(context, config=config)
    env = policy_learning._environment(context, policy_learning.proxy_data(context))
    recipe = config.classify
    assert env.classifier == Network(recipe.model, recipe.optimizer, recipe.augment)
    assert env.data.features.shape[1:] == context.image_shape
    assert np.isfinite(env.reference).all()


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
    preflight.check_counts(config, manifest)
    refused = pytest.raises(MixtureError) if learns else contextlib.nullcontext()
    with refused:
        preflight.check_counts(config, without_threes(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixing": {"levels": (0.2, 0.4)}}, r"mixing\.levels: got \(0\.2, 0\.4\)"),
        ({"mixing": {"levels": (0.0, 0.0, 0.4)}}, r"mixing\.levels: .* that differ"),
        ({"mixing": {"rounds": 3}}, r"classify\.rounds: got 2, .* learned for 3"),
        ({"mixing": {"sampler": "balanced"}}, r"sampler: got instance, .* under balanced"),
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

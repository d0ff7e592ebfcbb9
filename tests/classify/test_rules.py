"""Classifiers under controllers that learn: feedback, replay, and what a kill leaves."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from lt_jax.classify import history, train
from lt_jax.config.mixing import MixingConfig, PolicyConfig
from lt_jax.mixing import adaptive, controllers, learned
from lt_jax.runtime import mesh
from tests.classify import test_train as classifier
from tests.classify.test_train import RECIPE, SUPPLY, assert_equal_trees, fit
from tests.mixing.test_learned import loud_policy

data, mixed = classifier.data, classifier.mixed  # the fixtures
BANDIT = adaptive.Bandit(SUPPLY, (0.0, 0.4, 0.8), seed=1)


@functools.cache
def policy(weights=()):
    """A learned policy that acts live, whose choices depend on all that it sees."""
    levels, config = BANDIT.levels, PolicyConfig(width=8)
    mixing = MixingConfig(levels=levels, weights=weights, rounds=RECIPE.rounds, policy=config)
    standing = learned.Standing(*np.array([[0, 1, -1], [0.5, 0.7, 0.9], [5, 5, 5]], np.float32))
    return learned.Learned(SUPPLY, mixing, loud_policy(mixing, jax.random.key(2)), standing)


RULES = {
    "bandit": lambda: BANDIT,
    "policy": policy,
    "weights": lambda: policy((0.5, 1.0, 2.0)),
}


@pytest.fixture(scope="module")
def lives(mixed, tmp_path_factory):
    """Finished trainings under controllers that learn, by rule: folder and parameters."""

    @functools.cache
    def lived(rule):
        folder = tmp_path_factory.mktemp(rule)
        return folder, fit(mixed, folder, RULES[rule]())[0]

    return lived


@pytest.fixture(scope="module")
def live(lives):
    """That of a bandit."""
    return lives("bandit")


def test_feedback_is_of_policy_val_alone(mixed, live):
    folder, params = live
    forward = train.predict.make_forward(RECIPE.model, 3, mesh.make_mesh(1))
    told = history.measure(forward, params, mixed, RECIPE.batch_size)
    logits, _ = train.predict.predict(forward, params, mixed.real, mixed.policy_rows, 16)
    p = np.exp(logits.astype(float))
    p /= p.sum(axis=1)[:, None]
    for label in range(3):
        own, others = p[5 * label : 5 * label + 5], np.delete(p, label, axis=1)
        rival = others[5 * label : 5 * label + 5].max(axis=1)
        mine = own[:, label]
        expected = [mine.mean(), mine.sum() / p[:, label].sum(), (mine - rival).mean()]
        expected += [-np.log(mine).mean()]
        found = [getattr(told, n)[label] for n in ("recall", "precision", "margin", "loss")]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    last = json.loads((folder / "history.json").read_text())[-1]
    assert last == {name: array.tolist() for name, array in vars(told).items()}
    val = dataclasses.replace(mixed, val_rows=mixed.val_rows[:0], val_labels=mixed.val_labels[:0])
    again = history.measure(forward, params, val, RECIPE.batch_size)
    assert again.recall.tolist() == told.recall.tolist()


def test_a_controller_is_told_the_losses_of_some_train_images(mixed, live, monkeypatch):
    monkeypatch.setattr(history, "LOOKED_AT", 4)
    forward = train.predict.make_forward(RECIPE.model, 3, mesh.make_mesh(1))
    some = dataclasses.replace(mixed, extra_rows=[*mixed.extra_rows[:2], np.zeros(0, int)])
    told = history.measure(forward, live[1], some, RECIPE.batch_size)

    def mean_loss(images, rows, label):
        logits, _ = train.predict.predict(forward, live[1], images, rows, 16)
        return -np.mean(jax.nn.log_softmax(logits)[:, label])

    for label in range(3):
        expected = mean_loss(some.real, some.train_rows[label][:4], label)
        np.testing.assert_allclose(told.real_loss[label], expected, rtol=1e-5)
    for label in range(2):
        expected = mean_loss(some.extra, some.extra_rows[label][:4], label)
        np.testing.assert_allclose(told.synthetic_loss[label], expected, rtol=1e-5)
    assert np.isnan(told.synthetic_loss[2])
    alone = dataclasses.replace(mixed, extra=None, extra_rows=None)
    told = history.measure(forward, live[1], alone, RECIPE.batch_size)
    assert np.isnan(told.synthetic_loss).all() and np.isfinite(told.real_loss).all()


def test_shares_of_zero_in_use_reproduce_the_real_only_run(data, mixed, tmp_path):
    """With a pool at hand, all of whose images are in use, and feedback after each round."""
    alone, _ = fit(data, tmp_path / "alone")
    zero = adaptive.Bandit(SUPPLY, (0.0, 0.0), seed=0)
    offered, _ = fit(mixed, tmp_path / "offered", zero)
    assert_equal_trees(alone, offered)
    assert len(json.loads((tmp_path / "offered/history.json").read_text())) == RECIPE.rounds
    assert not (tmp_path / "alone/history.json").exists()


@pytest.mark.parametrize("rule", RULES)
def test_a_replayed_schedule_equals_the_live_run(mixed, lives, tmp_path, rule):
    folder, params = lives(rule)
    entries = []
    for mixture in history.mixtures(folder, RULES[rule](), mixed, RECIPE.rounds):
        entries.append({"share": mixture.share.tolist()})
        if rule == "weights":
            entries[-1]["factor"] = mixture.factor.tolist()
    for choices in zip(*(entry.values() for entry in entries), strict=True):
        assert len(set(map(tuple, choices))) > 1, "nothing was learned that could be replayed"
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps(entries))
    replayed = controllers.Schedule(SUPPLY, controllers.read_schedule(path))
    again, _ = fit(mixed, tmp_path / "replayed", replayed)
    assert_equal_trees(params, again)
    assert not (tmp_path / "replayed/history.json").exists()


def interrupt(monkeypatch, where, when):
    """Raises KeyboardInterrupt at the `when`-th call of a module's or class's attribute."""
    owner, name = where
    original, calls = getattr(owner, name), []

    def cut(*args, **kwargs):
        calls.append(None)
        if len(calls) == when:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, cut)


CUTS = {
    "early": ((train.MixedStream, "__next__"), 4),  # in the first round, before any feedback
    "mid_round": ((train.MixedStream, "__next__"), 12),  # after a checkpoint there
    "before_feedback": ((history, "measure"), 2),  # at a round's end, before it is told
    "before_history": ((history, "keep"), 2),  # told, not yet written
    # Written, but the checkpoint at the round's end is not: steps 5, 8, 10, 15, then 16.
    "before_checkpoint": ((train.loop.Loop, "save"), 5),
}


@pytest.mark.parametrize(
    ("rule", "cut"),
    [
        *(("bandit", cut) for cut in CUTS),
        ("policy", "mid_round"),
        ("weights", "mid_round"),
        ("weights", "before_checkpoint"),
    ],
)
def test_a_learning_run_that_is_killed_ends_as_an_unbroken_one(
    mixed, lives, tmp_path, monkeypatch, rule, cut
):
    folder, params = lives(rule)
    controller = RULES[rule]()
    with monkeypatch.context() as patch:
        interrupt(patch, *CUTS[cut])
        with pytest.raises(KeyboardInterrupt):
            fit(mixed, tmp_path, controller)
    resumed, _ = fit(mixed, tmp_path, controller)
    assert_equal_trees(params, resumed)
    assert (tmp_path / "history.json").read_text() == (folder / "history.json").read_text()


def test_a_history_without_its_last_round_is_mended_by_the_parameters(
    mixed, live, tmp_path, monkeypatch
):
    folder, params = live
    with monkeypatch.context() as patch:
        interrupt(patch, (train.MixedStream, "__next__"), 17)  # the newest checkpoint is step 16
        with pytest.raises(KeyboardInterrupt):
            fit(mixed, tmp_path, BANDIT)
    path = tmp_path / "history.json"
    held = json.loads(path.read_text())
    assert len(held) == 2
    path.write_text("[]")
    with pytest.raises(controllers.MixtureError, match=r"holds 0 of the 2 rounds .* delete the"):
        fit(mixed, tmp_path, BANDIT)
    path.write_text(json.dumps(held[:1]))
    resumed, _ = fit(mixed, tmp_path, BANDIT)
    assert_equal_trees(params, resumed)
    whole = path.read_text()
    assert whole == (folder / "history.json").read_text()
    path.write_text(json.dumps(json.loads(whole)[:-1]))  # of a training that is through
    fit(mixed, tmp_path, BANDIT)
    assert path.read_text() == whole


def test_only_a_controller_that_learns_asks_for_feedback(mixed, tmp_path, monkeypatch):
    short = dataclasses.replace(RECIPE, steps=4, rounds=2)
    asked = []
    original = train.predict.predict

    def watched(forward, params, images, rows, batch_size):
        asked.append(rows.tolist())
        return original(forward, params, images, rows, batch_size)

    monkeypatch.setattr(train.predict, "predict", watched)
    rules = {
        "fixed": (controllers.FixedShare(SUPPLY, 0.5), 0),
        "replay": (controllers.SourceReplay(controllers.FixedShare(SUPPLY, 0.5), 0), 0),
        "bandit": (BANDIT, 2),
        "learning_replay": (controllers.SourceReplay(BANDIT, 0), 2),
    }
    for name, (controller, times) in rules.items():
        asked.clear()
        fit(mixed, tmp_path / name, controller, short)
        assert asked.count(mixed.policy_rows.tolist()) == times
        assert asked.count(mixed.val_rows.tolist()) == 2
        assert (tmp_path / name / "history.json").exists() == bool(times)


def test_a_controller_that_learns_needs_every_class_in_policy_val(mixed, tmp_path):
    lacking = dataclasses.replace(
        mixed, policy_rows=mixed.policy_rows[:10], policy_labels=mixed.policy_labels[:10]
    )
    with pytest.raises(controllers.MixtureError, match=r"class 2 .*raise config\.data\.split\.pol"):
        fit(lacking, tmp_path, BANDIT)
    many = dataclasses.replace(RECIPE, rounds=25)
    with pytest.raises(controllers.MixtureError, match="25 rounds in 24 steps"):
        fit(mixed, tmp_path, BANDIT, many)
    assert not list(tmp_path.iterdir())

"""Classifiers trained together are those trained one after the other, whatever befalls them."""

import dataclasses
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from lt_jax.classify import train
from lt_jax.config import ConfigError, RuntimeConfig
from lt_jax.mixing import controllers
from lt_jax.runtime import checkpoint, faults, mesh, metrics, training
from lt_jax.runtime.job import Job
from tests.classify import test_train as classifier

RECIPE = dataclasses.replace(classifier.RECIPE, steps=6, rounds=2)
RUNTIME = RuntimeConfig(log_every=2, checkpoint_every=4)
SUPPLY = classifier.SUPPLY
# Seeds and controllers differ: two that learn, one of which has a schedule of shares of its own.
MEMBERS = (
    (controllers.Uniform(SUPPLY, 0.5), 0),
    (controllers.AccuracyAdaptive(SUPPLY, 0.6), 1),
    (controllers.AccuracyAdaptive(SUPPLY, 0.9), 2),
    (controllers.FillToHead(SUPPLY), 0),
)
HOW = ("vmap", "map", "devices")
# Adam divides small gradients by their own size: rounding moves a parameter by parts of a step,
# which is 3e-3 at most here; another seed or batch moves it by steps.
ATOL = 1e-4
data, mixed = classifier.data, classifier.mixed  # the fixtures


def trainings(folder, data, members=range(4), recipe=RECIPE):
    device_mesh = mesh.make_mesh(2)
    found = []
    for i in members:
        controller, seed = MEMBERS[i]
        tags = {"stage": "classify", "arm": f"arm{i}", "seed": seed}
        job = Job(folder / str(i), device_mesh, RUNTIME, tags)
        job.folder.mkdir(parents=True, exist_ok=True)
        own = dataclasses.replace(recipe, seed=seed)
        found.append(train.describe(own, data, controller, job))
    return found


def one_after_the_other(folder, data, members=range(4)):
    found = [training.train(one) for one in trainings(folder, data, members)]
    return [(jax.device_get(state), costs) for state, costs in found]


@pytest.fixture(scope="module")
def alone(mixed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return folder, one_after_the_other(folder, mixed)


@pytest.fixture(scope="module")
def together(mixed, tmp_path_factory):
    found = {}
    for how in HOW:
        folder = tmp_path_factory.mktemp(how)
        found[how] = folder, training.train_together(trainings(folder, mixed), how)
    return found


def assert_close(left, right, atol=ATOL):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), left, right)


def lines(folder, i):
    read = metrics.read(folder / str(i) / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k != "data_wait_fraction"} for line in read]


def recalls(folder, i):
    """Of policy_val after each round, as the controller was told."""
    told = json.loads((folder / str(i) / "history.json").read_text())
    return np.array([feedback["recall"] for feedback in told])


@pytest.mark.parametrize("how", HOW)
def test_a_population_is_its_members_one_after_the_other(alone, together, how):
    """Parameters, lines, feedback, costs; another member's are far away."""
    (apart, singles), (folder, found) = alone, together[how]
    for i, ((one, costs), (other, shared)) in enumerate(zip(singles, found, strict=True)):
        assert_close(one.params, other.params)
        assert int(other.step) == RECIPE.steps
        assert shared.images == costs.images == RECIPE.steps * RECIPE.batch_size
        assert shared.flops == pytest.approx(costs.flops, rel=1e-3)
        left, right = lines(apart, i), lines(folder, i)
        for a, b in zip(left, right, strict=True):
            assert (a.keys(), a.pop("stage"), a.pop("arm")) == (
                b.keys(),
                b.pop("stage"),
                b.pop("arm"),
            )
            assert a == pytest.approx(b, rel=1e-3, abs=1e-4)
        assert (folder / str(i) / "history.json").exists() == MEMBERS[i][0].learns
        if MEMBERS[i][0].learns:
            np.testing.assert_allclose(recalls(folder, i), recalls(apart, i), atol=1e-4)
    seconds = sum(costs.seconds for _, costs in found)
    assert all(costs.seconds == pytest.approx(seconds / 4) for _, costs in found)
    assert np.abs(recalls(folder, 1) - recalls(folder, 2)).max() > 1e-3
    with pytest.raises(AssertionError):
        assert_close(found[1][0].params, found[2][0].params)


def test_one_after_the_other_in_one_program_is_bit_for_bit(alone, together):
    """On a CPU, for this network: XLA makes the same arithmetic of a loop's body."""
    for (one, _), (other, _) in zip(alone[1], together["map"][1], strict=True):
        assert_close(one.params, other.params, atol=0)


def test_a_permuted_population_gives_permuted_results(mixed, together, tmp_path, how="vmap"):
    order = [2, 0, 3, 1]
    found = training.train_together(trainings(tmp_path, mixed, order), how)
    for i, (state, _) in zip(order, found, strict=True):
        assert_close(together[how][1][i][0].params, state.params, atol=1e-6)


class _KillError(Exception):
    pass


def kill_at(patch, step):
    """Kills the population where the last of its members draws batch `step`."""
    original, calls = train.MixedStream.__next__, []

    def cut(stream):
        if stream._next == step:
            calls.append(stream)
            if len(calls) == len(MEMBERS):
                raise _KillError
        return original(stream)

    patch.setattr(train.MixedStream, "__next__", cut)


def test_killed_it_goes_on_in_part_alone_and_in_part_together(mixed, together, tmp_path):
    """As an unbroken one; those that stand at different steps are not taken together."""
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, 5)
        with pytest.raises(_KillError):
            training.train_together(trainings(tmp_path, mixed), "map")
    assert [checkpoint.newest(tmp_path / str(i) / "checkpoints") for i in range(4)] == [4] * 4
    first = one_after_the_other(tmp_path, mixed, [1])
    assert training.train_together(trainings(tmp_path, mixed), "map") == []
    rest = training.train_together(trainings(tmp_path, mixed, [0, 2, 3]), "map")
    found = [rest[0], *first, *rest[1:]]
    for i, ((state, costs), (whole, before)) in enumerate(
        zip(found, together["map"][1], strict=True)
    ):
        assert_close(whole.params, state.params, atol=0)
        assert costs.images == before.images
        assert costs.flops == pytest.approx(before.flops, rel=1e-3)
        assert len(lines(tmp_path, i)) == len(lines(together["map"][0], i))


def test_trainings_killed_singly_go_on_together(mixed, alone, tmp_path):
    for i in range(2):
        shutil.copytree(alone[0] / str(i), tmp_path / str(i))
        shutil.rmtree(tmp_path / str(i) / "checkpoints" / str(RECIPE.steps))
    found = training.train_together(trainings(tmp_path, mixed, [0, 1]), "vmap")
    for (state, _), (whole, _) in zip(found, alone[1][:2], strict=True):
        assert_close(whole.params, state.params)


def test_sigterm_saves_every_member(mixed, together, tmp_path):
    original = train.MixedStream.__next__

    def send(stream):
        if stream._next == 1 and stream.plan.seed == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(stream)

    with pytest.MonkeyPatch.context() as patch, faults.saving_on_sigterm():
        patch.setattr(train.MixedStream, "__next__", send)
        with pytest.raises(faults.Preempted, match="classify arm2 2 and 1 more, step 2"):
            training.train_together(trainings(tmp_path, mixed, [2, 0]), "map")
        faults._stop.clear()
    assert [checkpoint.newest(tmp_path / str(i) / "checkpoints") for i in (2, 0)] == [2, 2]
    found = training.train_together(trainings(tmp_path, mixed, [2, 0]), "map")
    for (state, _), i in zip(found, (2, 0), strict=True):
        assert_close(together["map"][1][i][0].params, state.params, atol=0)


@pytest.mark.parametrize("at", [1, 2], ids=["within_a_round", "at_its_end"])
def test_a_member_that_is_not_finite_is_named_and_the_others_are_saved(
    mixed, together, tmp_path, at
):
    """Rounds end at 3 and 6; what belongs to a round's end is written before it is saved."""
    three = trainings(tmp_path, mixed, [0, 1, 2])
    three[0] = dataclasses.replace(three[0], stream=Poisoned(three[0].stream, at))
    with pytest.raises(faults.NonFiniteError, match=r"classify arm0 0: .*loss.* at step"):
        training.train_together(three, "map")
    newest = [checkpoint.newest(tmp_path / str(i) / "checkpoints") for i in range(3)]
    assert newest == ([0, 2, 2] if at == 1 else [0, 3, 3])
    found = training.train_together(trainings(tmp_path, mixed, [1, 2]), "map")
    for (state, _), (whole, _) in zip(found, together["map"][1][1:3], strict=True):
        assert_close(whole.params, state.params, atol=0)
    for i in (1, 2):
        assert len(lines(tmp_path, i)) == len(lines(together["map"][0], i))


class Poisoned:
    """A stream whose images of one step have a label that no class has, and so no finite loss."""

    def __init__(self, stream, step):
        self._stream, self._step = stream, step

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def __next__(self):
        at = self._stream._next
        batch = next(self._stream)
        return {**batch, "label": batch["label"] + (1000 if at == self._step else 0)}


def test_trainings_that_are_not_alike_are_refused(mixed, tmp_path):
    both = [
        *trainings(tmp_path / "a", mixed, [0]),
        *trainings(tmp_path / "b", mixed, [1], dataclasses.replace(RECIPE, loss="focal")),
    ]
    with pytest.raises(ValueError, match="one step, the same rounds"):
        training.train_together(both, "map")
    with pytest.raises(ValueError, match="3 trainings for 2 devices"):
        training.train_together(trainings(tmp_path, mixed, range(3)), "devices")


def test_a_batch_is_split_where_its_training_is(mixed, tmp_path):
    odd = dataclasses.replace(RECIPE, batch_size=15, steps=2, rounds=1)
    for how in ("vmap", "map"):
        with pytest.raises(ConfigError, match="batch_size of the classifier: got 15"):
            training.train_together(trainings(tmp_path, mixed, [0, 3], odd), how)
    found = training.train_together(trainings(tmp_path, mixed, [0, 3], odd), "devices")
    assert [int(state.step) for state, _ in found] == [2, 2]

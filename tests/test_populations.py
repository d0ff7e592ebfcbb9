"""Which classifiers of a run are trained together, and a run in which they are."""

import json

import pytest

from lt_jax import classification, pipeline, populations
from lt_jax import config as config_lib
from lt_jax.runtime import faults, mesh
from tests.test_pipeline import assert_same_predictions, copied, tiny

ARMS = config_lib.arms(
    ce={},
    balanced={"loss": "balanced_softmax"},
    half={"controller": "fixed_share", "share": 0.5},
    adaptive={"controller": "accuracy_adaptive", "share": 0.5},
    again={},
    retrained={"second_stage": "crt", "second_stage_steps": 0.25},
    experts={"experts": 2},
)
PAIRS = {"classifiers": 2, "population": "map"}


def run_of(folder, arms=ARMS, seeds=(0, 1), runtime=PAIRS):
    config = tiny()
    with config.unlocked():
        config.classify.arms = arms
        config.classify.seeds = seeds
        config.runtime.update(runtime)
    return pipeline.Pipeline(config, folder)


def formed(run, devices=1, order=None):
    context = run.context()
    object.__setattr__(context, "mesh", mesh.make_mesh(devices))
    specs = [spec for spec in run.specs if spec.stage.startswith("classify/")]
    distinct = populations.distinct(specs)
    chunks = populations.chunks(distinct, context, order and order(distinct))
    return [[spec.stage.removeprefix("classify/") for spec in chunk] for chunk in chunks]


def test_equal_recipes_are_grouped_whatever_their_arms_and_others_are_not(tmp_path):
    """Arms come in the order of their names; `ce` is `again` by another one, and its folder."""
    alike = ["adaptive/seed0", "adaptive/seed1", "again/seed0", "again/seed1"]
    alike += ["half/seed0", "half/seed1"]
    others = [[f"{arm}/seed0", f"{arm}/seed1"] for arm in ("balanced", "experts", "retrained")]
    assert formed(run_of(tmp_path, runtime={"classifiers": 9})) == [alike, *others]
    assert formed(run_of(tmp_path, runtime={"classifiers": 4})) == [alike[:4], alike[4:], *others]
    assert formed(run_of(tmp_path, seeds=(0,), runtime={"classifiers": 9})) == [alike[::2]]
    assert formed(run_of(tmp_path, seeds=(0,), runtime={"classifiers": 2})) == [alike[:4:2]]


def test_those_who_stand_at_one_step_are_grouped_and_the_furthest_come_first(tmp_path):
    order = lambda specs: [-2 if spec.stage.endswith("seed1") else 0 for spec in specs]
    arms = {name: ARMS[name] for name in ("ce", "half")}
    assert formed(run_of(tmp_path, arms, runtime={"classifiers": 9}), order=order) == [
        ["ce/seed1", "half/seed1"],
        ["ce/seed0", "half/seed0"],
    ]


def test_devices_take_as_many_each(tmp_path):
    arms = {name: ARMS[name] for name in ("ce", "half", "adaptive")}
    runtime = {"classifiers": 8, "population": "devices"}
    run = run_of(tmp_path, arms, (0, 1, 2), runtime)
    assert [len(chunk) for chunk in formed(run, 4)] == [8]  # the ninth is alone
    assert [len(chunk) for chunk in formed(run_of(tmp_path, arms, (0,), runtime), 4)] == []


@pytest.mark.parametrize(
    ("runtime", "devices"),
    [
        ({"classifiers": 4, "population": "devices"}, 1),
        ({"classifiers": 4, "population": "map"}, 3),
        ({"classifiers": 1, "population": "devices"}, 3),
    ],
)
def test_what_is_left_of_a_population_on_devices_has_whole_batches_too(tmp_path, runtime, devices):
    """One that was killed while its members were saved goes on one by one."""
    context = run_of(tmp_path, runtime=runtime).context()
    assert context.config.classify.batch_size % 3
    object.__setattr__(context, "mesh", mesh.make_mesh(3))
    assert classification.on_its_devices(context).mesh.size == devices
    object.__setattr__(context, "mesh", mesh.make_mesh(2))  # who can share a batch do
    assert classification.on_its_devices(context).mesh.size == 2


def test_a_population_that_devices_do_not_divide_is_refused(tmp_path):
    run = run_of(tmp_path, runtime={"classifiers": 6, "population": "devices"})
    with pytest.raises(config_lib.ConfigError, match=r"classifiers: got 6; .* of the 8 devices"):
        run.run()
    assert not list(tmp_path.rglob("artifact.json"))


RUN = {name: ARMS[name] for name in ("ce", "adaptive", "retrained")}


@pytest.mark.slow
def test_a_run_of_populations_predicts_what_an_ordinary_one_does(tmp_path, capsys):
    """From images to report, a controller that learns and a second stage included."""
    ordinary = run_of(tmp_path / "ordinary", RUN, runtime={"classifiers": 1})
    ordinary.run()
    run = copied(run_of(tmp_path / "run", RUN, runtime={"classifiers": 4}), ordinary)
    assert [spec.key for spec in run.specs] == [spec.key for spec in ordinary.specs]
    run.run()
    said = capsys.readouterr().err
    assert "classify: 6 classifiers in 2 programs of 4, 2 (map)" in said
    assert_same_predictions(run, ordinary)
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert [arm["name"] for arm in report["arms"]] == sorted(RUN)


def test_a_folder_that_another_run_works_on_is_left_out(tmp_path, monkeypatch):
    run = run_of(tmp_path / "run", RUN, runtime={"classifiers": 4})
    specs = [spec for spec in run.specs if spec.stage.startswith("classify/")]
    trained = []
    monkeypatch.setattr(populations, "_train", lambda taken, context: trained.append(taken))
    run.store.open(specs[1])
    with faults.lock(run.store.folder(specs[1])):
        populations.train(specs, run.context())
    assert trained == [[specs[0], *specs[2:4]], specs[4:]]
    for spec in specs:  # and the locks are given back
        assert not faults.held(run.store.folder(spec))

"""Sweep files: trials named by what they override, all checked before anything starts."""

import json
import pathlib

import numpy as np
import pytest

from lt_jax.config import ConfigError
from lt_jax.sweep import definition
from lt_jax.sweep.definition import Search, Sweep
from lt_jax.sweep.space import Choice, Uniform, grid, product, seeds

ROOT = pathlib.Path(__file__).parents[2]
BASE = str(ROOT / "configs/digits.py")
RATE = "classify.optimizer.learning_rate"


def test_trials_are_named_by_their_overrides_and_are_what_the_config_says():
    sweep = Sweep(BASE, product(grid({RATE: (1e-3, 2e-3)}), seeds(2)))
    trials = definition.trials(sweep)
    assert len({trial.name for trial in trials}) == 4
    assert trials[3].config["classify"]["optimizer"]["learning_rate"] == 2e-3
    assert trials[3].config["classify"]["seeds"] == [1]
    again = definition.trials(Sweep(BASE, [dict(reversed(trials[3].overrides.items()))]))
    assert again[0].name == trials[3].name and again[0].config == trials[3].config
    assert json.loads(json.dumps(trials[0].config)) == trials[0].config


def test_equal_overrides_are_one_trial():
    assert len(definition.trials(Sweep(BASE, grid({RATE: (1e-3, 1e-3)})))) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"classify.optimizer.rate": 1.0}, r"config\.classify\.optimizer\.rate: no such field"),
        ({"clasify.steps": 1}, r"config\.clasify: no such section; config has .*classify"),
        ({RATE: "fast"}, r"learning_rate: got 'fast'; takes float"),
        ({"classify.steps": 0}, r"config\.classify\.steps: got 0; takes int in \[1, inf\]"),
        ({"evaluate.baseline": "nobody"}, r"config\.evaluate\.baseline: got 'nobody'"),
        ({"classify.seeds": 3}, r"config\.classify\.seeds: got 3; takes a tuple of int"),
    ],
)
def test_a_trial_that_cannot_be_is_named_before_any_starts(overrides, message):
    sweep = Sweep(BASE, [{}, overrides])
    field = next(iter(overrides)).rpartition(".")[2]
    with pytest.raises(ConfigError, match=rf"trial [0-9a-f]{{10}} \({field}=.*{message}"):
        definition.trials(sweep)


def test_shared_overrides_are_no_part_of_the_name_and_are_set_once():
    plain, shared = (
        definition.trials(Sweep(BASE, grid({RATE: (1e-3,)}), shared=shared))[0]
        for shared in ({}, {"classify.steps": 7})
    )
    assert plain.name == shared.name and shared.config["classify"]["steps"] == 7
    with pytest.raises(ConfigError, match="both shared and varied"):
        definition.trials(Sweep(BASE, grid({RATE: (1e-3,)}), shared={RATE: 1e-2}))


def test_a_field_is_one_field_with_and_without_config_before_it():
    (trial,) = definition.trials(Sweep(BASE, [{"config.classify.steps": 7}, {"classify.steps": 7}]))
    assert trial.overrides == {"classify.steps": 7}
    for shared, overrides in (
        ({"config.classify.steps": 7}, {"classify.steps": 8}),
        ({"classify.steps": 7}, {"config.classify.steps": 8}),
        ({"data.split.val": 0.1}, {"data.split": {"val": 0.2}}),
    ):
        with pytest.raises(ConfigError, match=r"(steps|val) is both shared and varied"):
            definition.trials(Sweep(BASE, [overrides], shared=shared))
    with pytest.raises(ConfigError, match="steps is set twice"):
        definition.trials(Sweep(BASE, [{"classify.steps": 1, "config.classify.steps": 2}]))


def test_numbers_may_be_numpy_s_and_what_json_lacks_is_named():
    values = {
        RATE: np.float32(0.5),
        "classify.steps": np.int64(7),
        "classify.seeds": (np.int64(1),),
    }
    (trial,) = definition.trials(Sweep(BASE, [values], shared={"classify.rounds": np.int32(3)}))
    plain = {RATE: 0.5, "classify.steps": 7, "classify.seeds": (1,)}
    (same,) = definition.trials(Sweep(BASE, [plain], shared={"classify.rounds": 3}))
    assert trial == same and trial.config["classify"]["rounds"] == 3
    for shared, overrides, message in (
        (
            {},
            {"classify.steps": 2, "data.root": pathlib.Path("x")},
            r"trial .*steps=2.*data\.root: got",
        ),
        ({"data.root": {1, 2}}, {}, r"shared .*config\.data\.root: got \{1, 2\}.*set is none"),
    ):
        with pytest.raises(ConfigError, match=message):
            definition.trials(Sweep(BASE, [overrides], shared=shared))


def test_trials_or_a_search_but_not_both():
    space = {RATE: Uniform(0.1, 1.0)}
    wanted = Search(space, "val/ce/balanced_accuracy", 3)
    with pytest.raises(ConfigError, match="has trials and a search"):
        Sweep(BASE, seeds(2), search=wanted)
    with pytest.raises(
        ConfigError, match=r"space: .*learning_rate: got \(0.1, 1.0\); takes Uniform"
    ):
        Search({RATE: (0.1, 1.0)}, "val/ce/balanced_accuracy", 3)


def test_an_arm_may_be_added_by_an_override():
    (trial,) = definition.trials(Sweep(BASE, [{"classify.arms.new": {"loss": "focal"}}]))
    assert trial.config["classify"]["arms"]["new"]["loss"] == "focal"


def test_nothing_is_chosen_on_the_test_set():
    with pytest.raises(ConfigError, match="nothing is chosen on the test set"):
        Search({RATE: Uniform(0.1, 1.0)}, "test/ce/balanced_accuracy", 3)
    with pytest.raises(ConfigError, match="got 'report'; takes some of prepare"):
        Sweep(BASE, stages=("prepare", "report"))
    for wrong in ("val/ce/f2", "val/accuracy", "train/ce/accuracy"):
        with pytest.raises(ConfigError, match="takes <split>/<arm>/<metric>"):
            Search({RATE: Uniform(0.1, 1.0)}, wrong, 3)
    assert Search({RATE: Uniform(0.1, 1.0)}, "val/ce/log_loss", 3).minimize


def test_a_space_is_checked_at_its_ends():
    objective = "val/ce/balanced_accuracy"
    wrong = Search({"classify.arms.ce.loss": Choice(("focal", "fokal"))}, objective, 3)
    with pytest.raises(ConfigError, match=r"trial .*loss: got 'fokal'"):
        definition.check_search(Sweep(BASE), wrong)
    other = Search({RATE: Uniform(0.1, 1.0)}, "val/nobody/balanced_accuracy", 3)
    with pytest.raises(ConfigError, match="got the arm 'nobody'"):
        definition.check_search(Sweep(BASE), other)


def test_files_that_describe_no_sweep_are_named(tmp_path):
    path = tmp_path / "sweep.py"
    with pytest.raises(ConfigError, match="no such file"):
        definition.load(path)
    path.write_text("x = 1\n")
    with pytest.raises(ConfigError, match=r"has no function get_sweep\(\)"):
        definition.load(path)
    path.write_text("def get_sweep():\n    return 3\n")
    with pytest.raises(ConfigError, match="gave int; takes a Sweep"):
        definition.load(path)
    with pytest.raises(ConfigError, match="has no trials and no search"):
        definition.trials(Sweep(BASE))


def test_a_run_s_config_json_can_be_the_base(tmp_path):
    (trial,) = definition.trials(Sweep(BASE, [{}]))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(trial.config))
    assert definition.trials(Sweep(str(path), [{}]))[0].config == trial.config


@pytest.mark.parametrize("path", sorted((ROOT / "configs/sweeps").glob("[!_]*.py")))
def test_sweeps_of_the_tree_are_valid_and_name_their_command(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert f"--sweep=configs/sweeps/{path.name}" in path.read_text()
    sweep = definition.load(path)
    if sweep.search is None:
        assert len(definition.trials(sweep)) > 1
    else:
        definition.check_search(sweep, sweep.search)


def test_fields_have_their_shortest_distinct_endings():
    fields = ("classify.steps", "generator.steps", "data.seed")
    assert list(definition.short(fields).values()) == ["classify.steps", "generator.steps", "seed"]


def test_seeds_are_told_from_settings_that_happen_to_be_equal():
    together = list(seeds(3, also=("generator.seed",)))
    assert definition.seed_fields(together) == {"classify.seeds", "generator.seed"}
    crossed = list(product(grid({"generator.seed": (0, 1)}), seeds(2)))
    assert definition.seed_fields(crossed) == {"classify.seeds"}

"""Configs as JSON: the same config as from Python, refused field by field, and never executed."""

import json
import pathlib
import subprocess
import sys

import pytest

from lt_jax import config as config_lib
from lt_jax import pipeline
from lt_jax.config import ConfigError, json_file
from tests.test_golden_configs import CONFIGS, load

ROOT = pathlib.Path(__file__).parents[1]


def read(folder, values):
    """The config of these values, or of this text."""
    path = folder / "config.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return json_file.read(path, config_lib.Config)


def types(value):
    """Types of all fields of nested dicts."""
    return (
        {name: types(held) for name, held in value.items()} if type(value) is dict else type(value)
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_the_same_as_json(tmp_path, path):
    python = load(path)
    built = config_lib.build(config_lib.Config, python)
    held = read(tmp_path, config_lib.to_dict(built))
    assert config_lib.build(config_lib.Config, held) == built
    assert held.is_locked
    assert types(held.to_dict()) == types(python.to_dict())  # which say how an override is read


def test_fields_left_out_have_their_defaults(tmp_path):
    held = read(
        tmp_path, {"generator": {"steps": 7}, "classify": {"arms": {"a": {"loss": "focal"}}}}
    )
    built = config_lib.build(config_lib.Config, held)
    assert built.generator.steps == 7 and built.data == config_lib.DataConfig()
    assert built.classify.arms["a"].loss == "focal"
    assert held.classify.arms.a.controller == "none"  # there to be overridden


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"generator": {"stepz": 1}}, r"config\.generator\.stepz: no such field"),
        ({"nothing": {}}, r"config\.nothing: no such field"),
        ({"generator": {"steps": "1"}}, r"config\.generator\.steps: got '1'; takes int"),
        ({"generator": {"steps": True}}, r"config\.generator\.steps: got True; takes int"),
        ({"generator": {"steps": None}}, r"config\.generator\.steps: got None; takes int"),
        ({"generator": 3}, r"config\.generator: got 3; takes a section"),
        ({"classify": {"seeds": 1}}, r"config\.classify\.seeds: got 1; takes a tuple"),
        ({"classify": {"seeds": [[1]]}}, r"config\.classify\.seeds\[0\]: got \[1\]; takes int"),
        ({"data": {"channels": 9}}, r"config\.data\.channels: got 9; takes int in \[1, 3\]"),
        ({"data": {"split": {"val": "__import__('os')"}}}, r"config\.data\.split\.val: got"),
        ('{"data": {"imbalance_factor": NaN}}', r"config\.data\.imbalance_factor: got nan"),
        ('{"data": {"imbalance_factor": 1' + "0" * 400 + "}}", "too large"),
        ('{"data": {}, "data": {}}', "field 'data' stands twice"),
        ("[1]", "takes an object of fields"),
        ("def get_config(): pass", "no JSON"),
        ("[" * 100_000, "no JSON"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_values_are_refused_with_their_field(tmp_path, values, told):
    with pytest.raises(ConfigError, match=told):
        read(tmp_path, values)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.json: cannot be read \(No such file"):
        json_file.read(tmp_path / "none.json", config_lib.Config)


def test_what_only_its_reader_may_allow_is_not_taken_from_a_file(tmp_path):
    """Compiled programs of somebody else's folder would run; links would lead out of the data."""
    given = {
        "runtime": {"compilation_cache": "/tmp/x", "log_every": 3},
        "data": {"follow_links": True},
    }
    held = read(tmp_path, given)
    assert held.runtime.compilation_cache == "" and held.runtime.log_every == 3
    assert held.data.follow_links is False


@pytest.mark.parametrize("section", ["classify", "detect"])
@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "..", ".", "", "a\nb", "a\0"])
def test_names_of_arms_which_are_folders_lead_nowhere(tmp_path, section, name):
    python = load(ROOT / "configs/digits.py")
    values = config_lib.to_dict(config_lib.build(config_lib.Config, python))
    values[section]["arms"][name] = {}
    with pytest.raises(ConfigError, match=rf"config\.{section}\.arms: got .*letters, digits"):
        read(tmp_path, values)


@pytest.mark.parametrize("part", ["../x", "/tmp/x"])
def test_parts_of_the_audit_which_are_folders_are_names_of_parts(tmp_path, part):
    with pytest.raises(ConfigError, match=r"config\.audit\.parts\[0\]: got"):
        read(tmp_path, {"audit": {"parts": [part]}})


def test_the_command_line_reads_json_with_overrides(tmp_path):
    python = load(ROOT / "configs/digits.py")
    values = config_lib.to_dict(config_lib.build(config_lib.Config, python))
    read(tmp_path, values)
    command = [sys.executable, "-m", "lt_jax.main", f"--config={tmp_path / 'config.json'}"]
    command += [f"--workdir={tmp_path / 'run'}", "--dry_run"]
    given = ["--config.generator.steps=7", "--config.classify.seeds=(4, 5)"]
    done = subprocess.run([*command, *given], cwd=ROOT, capture_output=True, text=True, check=True)
    with python.unlocked():
        python.generator.steps, python.classify.seeds = 7, (4, 5)
    for spec in pipeline.Pipeline(python, tmp_path / "run").specs:
        assert f"{spec.key[:16]}" in done.stdout, spec.stage
    done = subprocess.run(
        [*command, "--config.generator.stepz=7"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1 and "--config.generator.stepz=7" in done.stderr
    assert "Traceback" not in done.stderr

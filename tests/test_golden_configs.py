"""Every config file, expanded: a review of a default sees each config that it changes."""

import importlib.util
import json
import pathlib

import pytest

from lt_jax import config as config_lib
from lt_jax import specs as specs_lib
from tests import goldens

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("[!_]*.py"))


def load(path):
    """The ConfigDict of a config file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_expanded_config_is_the_golden_one(path, update_goldens):
    built = config_lib.build(config_lib.Config, load(path))
    specs_lib.of(built)  # arms and baseline fit together
    text = json.dumps(config_lib.to_dict(built), indent=1) + "\n"
    goldens.check_text(f"golden_configs/{path.stem}.json", text, update_goldens)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_docstring_gives_the_command(path):
    text = path.read_text()
    assert f"--config=configs/{path.name}" in text
    assert "Takes" in text and "gives" in text, "say how long it takes and what it gives"


def test_no_golden_outlives_its_config():
    held = (goldens.FOLDER / "golden_configs").iterdir()
    assert {path.stem for path in held} <= {path.stem for path in CONFIGS}

"""Tasks of one data set from one generator: the same splits, another label, no image leaked."""

import json
import pathlib

import numpy as np
import pytest

from experiments.tasks import compare
from lt_jax import external_test
from lt_jax.config import ConfigError, DataConfig
from lt_jax.data import manifest as manifest_lib
from lt_jax.evaluate.statistics import tables
from lt_jax.pipeline import Pipeline
from lt_jax.specs import STAGES
from tests.shrink import shrink
from tests.test_golden_configs import load

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The tiny phantom with its generator."""
    config = shrink(load(CONFIGS / "phantom.py"), levels=1)
    with config.unlocked():
        config.data.update(source="phantom:30", imbalance_factor=2.0)
    run = Pipeline(config, tmp_path_factory.mktemp("runs") / "base")
    run.run(["prepare", "generator"])
    return config, run


def task_of(base, name, **changes):
    config, run = base
    options = {"shots": 0, "seeds": 2, "rank": 2, "steps": 2} | changes
    return compare.configure(config, compare.TASKS["phantom"][name], run, **options)


def test_a_task_keeps_the_splits_and_adapts_the_generator(base, tmp_path):
    config = task_of(base, "nodes")
    run = Pipeline(config, tmp_path / "nodes", tmp_path / "cache")
    run.run()
    whole = manifest_lib.load(base[1].context().folder("prepare"))
    made = manifest_lib.load(run.context().folder("prepare"))
    split_of = dict(zip(whole.ids, whole.splits, strict=True))
    assert all(split_of[name] == s for name, s in zip(made.ids, made.splits, strict=True))
    assert made.classes == ("negative", "positive")
    malignant = {
        n for n, known in zip(whole.ids, whole.attributes, strict=True) if "nodes" in known
    }
    assert set(made.ids) == malignant
    told = json.loads((run.context().folder("generator") / "generator.json").read_text())
    of_base = json.loads((base[1].context().folder("generator") / "generator.json").read_text())
    held_out = {h for h, s in zip(whole.image_sha256, whole.splits, strict=True) if s != "train"}
    assert set(told["seen"]) == set(of_base["seen"]) and not set(told["seen"]) & held_out
    assert (run.context().folder("generator") / "adapter").exists()
    report = json.loads((tmp_path / "nodes" / "report.json").read_text())
    text = tables.to_markdown(compare.table({"nodes": report}))
    assert len(text.splitlines()) == 2 + len(compare.ARMS)
    assert text.count("(n=2)") == 4 * len(compare.ARMS) - 2 and text.count("itself") == 2


def test_a_task_on_new_splits_is_refused_by_what_the_generator_has_seen(base, tmp_path):
    config = task_of(base, "dcis")
    with config.unlocked():
        config.data.manifest = ""
    run = Pipeline(config, tmp_path / "leaky")
    with pytest.raises(ConfigError, match=r"was trained on .* images that this run holds out"):
        run.run(["prepare", "generator"])


def test_few_shots_leave_the_other_splits_whole(base, tmp_path):
    run = Pipeline(task_of(base, "diagnosis", shots=3), tmp_path / "few")
    run.run(["prepare"])
    made = manifest_lib.load(run.context().folder("prepare"))
    assert made.counts().tolist() == [3, 3]
    whole = manifest_lib.load(base[1].context().folder("prepare"))
    assert len(made.rows("test")) == len(whole.rows("test"))
    np.testing.assert_array_equal(
        [made.ids[i] for i in made.rows("test")], [whole.ids[i] for i in whole.rows("test")]
    )


@pytest.mark.slow
def test_what_the_base_has_seen_is_no_external_test_of_few_shots(base, tmp_path):
    # Of the base's train images the task keeps three a class. The others are no news to classifiers
    # that learn from the adapted generator's images.
    config = task_of(base, "diagnosis", shots=3)
    with config.unlocked():
        config.classify.arms = {"synthetic": config.classify.arms["synthetic"]}
        config.classify.seeds, config.evaluate.baseline = (0,), "synthetic"
    run = Pipeline(config, tmp_path / "few", tmp_path / "cache")
    run.run([stage for stage in STAGES if stage != "report"])
    column, classes = compare.TASKS["phantom"]["diagnosis"]
    other = DataConfig(source="phantom:40", label=column, classes=classes)
    external_test.run(run, other, tmp_path / "external")
    whole = manifest_lib.load(base[1].context().folder("prepare"))
    made = manifest_lib.load(run.context().folder("prepare"))
    seen = {whole.image_sha256[i] for i in whole.rows("train")}
    held = manifest_lib.load(tmp_path / "external" / "prepare")
    assert len(held) and not set(held.image_sha256) & (seen | set(made.image_sha256))
    told = held.protocol["left_out_as_seen_by_generator"]
    assert told["images"] == len(seen - set(made.image_sha256)) > 0


def test_tasks_that_are_none_are_named():
    with pytest.raises(ConfigError, match="tasks are known of phantom, busi, ham10000"):
        compare.tasks_of("digits", ())
    with pytest.raises(ConfigError, match="got 'nope'; takes diagnosis"):
        compare.tasks_of("phantom:100", ("nope",))
    assert list(compare.tasks_of("busi", ("screening",))) == ["screening"]

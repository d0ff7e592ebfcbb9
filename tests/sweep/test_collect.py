"""From a sweep file to its table, by the command: tiny runs of digits, carried out in process."""

import json
import pathlib

import numpy as np
import pyarrow.parquet as pq
import pytest

from experiments.sweep import __main__ as command_line
from lt_jax.evaluate import metrics
from lt_jax.evaluate.statistics import hypothesis  # noqa: F401
from lt_jax.runtime import mesh
from lt_jax.sweep import collect as collect_lib
from lt_jax.sweep import comparison, definition, measured, states
from lt_jax.sweep.space import Integers
from lt_jax.sweep.states import State, SweepError

BASE = """
from configs import digits
from lt_jax import config as config_lib
from tests.shrink import shrink

def get_config():
    config = shrink(digits.get_config())
    with config.unlocked():
        config.classify.arms = config_lib.arms(ce={}, softmax={"loss": "balanced_softmax"})
    return config
"""
SWEEP = """
from lt_jax.sweep.definition import Sweep
from lt_jax.sweep.space import grid, product, seeds

def get_sweep():
    rates = grid({"classify.optimizer.learning_rate": (1e-3, 1e-2)})
    return Sweep(BASE, product(rates, seeds(2)))
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A finished sweep of four trials, each of two arms."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "base.py").write_text(BASE)
    (folder / "sweep.py").write_text(SWEEP.replace("BASE", repr(str(folder / "base.py"))))
    # Devices are those of the tests.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh, "configure_devices", lambda *_: None)
        arguments = ["run", f"--sweep={folder / 'sweep.py'}", "--executor=debug"]
        command_line.main([*arguments, f"--out={folder / 'out'}"])
    return folder / "out"


def test_stages_are_shared_and_none_opens_the_test_set(out):
    assert len(list(out.glob("cache/prepare-*"))) == 1
    assert len(list(out.glob("cache/classify-*"))) == 8
    assert not list(out.rglob("test_openings.jsonl")) and not list(out.glob("cache/report-*"))


def test_status_and_retry_read_what_is_there(out, capsys):
    command_line.main(["status", f"--out={out}"])
    shown = capsys.readouterr().out
    assert "learning_rate=0.001 seeds=0" in shown and "4 trials: 0 waiting" in shown
    command_line.main(["retry", f"--out={out}"])
    assert "0 of 4 trials wait again" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="holds no trial"):
        command_line.main(["status", f"--out={out / 'nowhere'}"])


def test_collecting_twice_gives_the_same_files(out):
    contents = []
    for _ in range(2):
        command_line.main(["collect", f"--out={out}"])
        files = sorted(path for path in (out / "collected").rglob("*") if path.is_file())
        contents.append({path.name: path.read_bytes() for path in files})
    assert contents[0] == contents[1]
    assert set(contents[0]) == {
        "report.md", "report.json", "table.parquet", "main_effects.png", "main_effects.csv",
        "parallel_coordinates.png", "parallel_coordinates.csv",
    }  # fmt: skip


def test_the_table_has_a_row_a_trial_arm_seed_and_metric(out):
    collect_lib.collect(out)
    table = pq.read_table(out / "collected/table.parquet").to_pylist()
    assert len(table) == 4 * 2 * len(metrics.METRICS)
    keys = {(row["trial"], row["arm"], row["seed"], row["metric"]) for row in table}
    assert len(keys) == len(table) and {row["split"] for row in table} == {"val"}
    for row in table:
        planned = states.read_trial(states.folder_of(out, row["trial"]))
        rate = "classify.optimizer.learning_rate"
        assert row[rate] == planned.trial.overrides[rate]
        assert row["seconds"] > 0 and row["flops"] > 0 and row["stages_seconds"] > 0


def test_arms_are_compared_over_their_seeds_on_val(out):
    report = collect_lib.collect(out)
    assert report["baseline"] == "learning_rate=0.001 / ce" and len(report["arms"]) == 4
    for arm in report["arms"]:
        assert arm["seeds"] == [0, 1] and len(arm["trials"]) == 2
        held = arm["metrics"]["balanced_accuracy"]
        assert held["n"] == 2 and held["std"] is not None and held["ci95"] is not None
        if arm["name"] != report["baseline"]:
            assert arm["paired"]["balanced_accuracy"]["p_holm"] is not None
    planned = states.all_in(out)[0]
    (run,) = [run for run in measured.of(planned, "val") if run.arm == "ce"]
    saved = np.load(planned.workdir / "classify/ce/seed0/predictions.npz")
    right = np.asarray(run.truth.labels) == saved["val_logits"].argmax(axis=1)
    np.testing.assert_allclose(run.values["accuracy"], right.mean())
    text = (out / "collected/report.md").read_text()
    assert "Holm over 3 comparisons" in text and "flattered by being chosen" in text


def test_the_best_on_val_is_the_objective_of_a_search(out):
    planned = states.all_in(out)[0]
    space = {"classify.steps": Integers(1, 3)}
    wanted = definition.Search(space, "val/ce/balanced_accuracy", 1)
    (run,) = [run for run in measured.of(planned, "val") if run.arm == "ce"]
    assert measured.objective(planned, wanted) == run.values["balanced_accuracy"]


def test_a_repeated_seed_and_an_unknown_baseline_are_refused(out):
    runs = [run for one in states.all_in(out) for run in measured.of(one, "val")]
    with pytest.raises(SweepError, match=r"have seeds \[0, 0, 1, 1\]; takes distinct"):
        comparison.arms_of([*runs, *runs])
    with pytest.raises(SweepError, match="--baseline: got 'nobody'; takes one of learning_rate"):
        comparison.compare(runs, "val", "nobody")
    with pytest.raises(SweepError, match="nothing to compare"):
        comparison.compare([], "val")


def test_the_test_set_is_opened_when_asked_and_logged_once_a_trial(out, monkeypatch):
    monkeypatch.setattr(mesh, "configure_devices", lambda *_: None)
    before = (out / "collected/report.json").exists() and json.loads(
        (out / "collected/report.json").read_text()
    )
    for _ in range(2):
        report = collect_lib.collect(out, test=True)
    logs = list(out.rglob("test_openings.jsonl"))
    assert len(logs) == 4 and all(len(log.read_text().splitlines()) == 1 for log in logs)
    table = pq.read_table(out / "collected/table.parquet").to_pylist()
    assert {row["split"] for row in table} == {"val", "test"}
    told = {row["trial"]: row for row in table if row["split"] == "test" and row["arm"] == "ce"
            and row["metric"] == "accuracy"}  # fmt: skip
    for planned in states.all_in(out):
        own = json.loads((planned.workdir / "report.json").read_text())
        (arm,) = [arm for arm in own["arms"] if arm["name"] == "ce"]
        assert told[planned.name]["value"] == arm["metrics"]["accuracy"]["values"][0]
    assert [arm["paired"] for arm in report["test"]["arms"]] == [{}] * 4
    assert not before or "test" not in before
    assert pathlib.Path(out / "collected/report.md").read_text().count("arms on test") == 1
    assert all(states.status(one.folder).state is State.DONE for one in states.all_in(out))

"""From a sweep file to its table, by the command: tiny runs of digits, carried out in process."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from experiments.sweep import __main__ as command_line
from lt_jax.data import manifest as manifest_lib
from lt_jax.evaluate import metrics
from lt_jax.evaluate.statistics import tables
from lt_jax.runtime import arrays as arrays_lib
from lt_jax.runtime import faults, mesh
from lt_jax.sweep import collect as collect_lib
from lt_jax.sweep import comparison, definition, measured, states
from lt_jax.sweep.definition import Trial
from lt_jax.sweep.space import Integers
from lt_jax.sweep.states import State, Status, SweepError

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
        yield folder / "out"


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
    saved = arrays_lib.load(planned.workdir / "classify/ce/seed0/predictions.npz")
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
    runs = runs_of(out)
    with pytest.raises(SweepError, match=r"have seeds \[0, 0, 1, 1\]; takes distinct"):
        comparison.arms_of([*runs, *runs])
    with pytest.raises(SweepError, match="--baseline: got 'nobody'; takes one of learning_rate"):
        compare(runs, baseline="nobody")
    with pytest.raises(SweepError, match="nothing to compare"):
        compare([])


def test_the_test_set_is_opened_for_chosen_arms_alone_and_every_time_logged(out, capsys):
    logs = lambda: list(out.rglob("test_openings.jsonl"))
    chosen = "learning_rate=0.01 / ce"
    for wrong, message in (
        (["--test"], f"takes --arm=NAME.*Arms: .*{chosen}"),
        (["--test", "--arm=nobody"], "got 'nobody'"),
        ([f"--arm={chosen}"], "--arm: takes --test"),
    ):
        with pytest.raises(SystemExit, match=message):
            command_line.main(["collect", f"--out={out}", *wrong])
    assert not logs()
    for _ in range(2):
        command_line.main(["collect", f"--out={out}", "--test", f"--arm={chosen}"])
    (log,) = logs()
    assert log.parent == out
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) == 2
    assert lines[0]["reason"] == (
        f"collect --test: learning_rate=0.001 / ce; {chosen} (2 of 4 arms)"
    )
    told = json.loads((out / "collected/report.json").read_text())["test"]
    assert told["openings"] == lines and [arm["name"] for arm in told["arms"]][1] == chosen
    assert told["arms"][1]["paired"]["balanced_accuracy"]["p_holm"] is not None
    assert told["arms"][1]["metrics"]["accuracy"]["ci95"] is not None
    text = (out / "collected/report.md").read_text()
    assert "2 arms on test" in text and "one a command and split: 2; for 2 arms" in text
    table = pq.read_table(out / "collected/table.parquet").to_pylist()
    on_test = {
        (row["trial"], row["seed"]): row["value"]
        for row in table
        if row["split"] == "test" and row["metric"] == "accuracy"
    }
    assert len(on_test) == 4
    for planned in states.all_in(out):
        manifest = manifest_lib.load(planned.workdir / "prepare")
        (seed,) = planned.trial.overrides["classify.seeds"]
        saved = arrays_lib.load(planned.workdir / f"classify/ce/seed{seed}/predictions.npz")
        right = saved["test_logits"].argmax(axis=1) == manifest.labels[manifest.rows("test")]
        np.testing.assert_allclose(on_test[planned.name, seed], right.mean())
    command_line.main(["collect", f"--out={out}"])
    assert "test" not in json.loads((out / "collected/report.json").read_text())
    assert len(log.read_text().splitlines()) == 2
    log.unlink()


def runs_of(out):
    return [run for one in states.all_in(out) for run in measured.of(one, "val")]


def of_ce(runs, **changed):
    """The runs of one arm of the classifier, with other fields for some."""
    return [
        dataclasses.replace(run, **{k: change(run) for k, change in changed.items()})
        for run in runs
        if run.arm == "ce"
    ]


def fast(run):
    return run.planned.trial.overrides["classify.optimizer.learning_rate"] == 1e-2


def overridden(run, **overrides):
    """The run, of a trial with these overrides alone."""
    trial = dataclasses.replace(run.planned.trial, overrides=overrides)
    return dataclasses.replace(run, planned=dataclasses.replace(run.planned, trial=trial))


def compare(runs, missing=(), **options):
    return comparison.compare(comparison.arms_of(runs, missing), "val", **options)


def test_runs_on_other_images_have_their_own_figures_without_interval_or_test(out):
    """As where the split follows the seed: labels and groups may be alike, the images are not."""
    runs = of_ce(runs_of(out), images=lambda run: f"{run.images}{run.seed * fast(run)}")
    found = compare(runs)
    _, other = found.arms
    assert found.comparisons == {}
    for metric in metrics.METRICS:
        assert found.summaries[other][metric].ci95 is None
        assert found.summaries[other][metric].values == tuple(
            run.values[metric] for run in runs if fast(run)
        )
    assert any("Measured on other val images" in note and other in note for note in found.notes)
    assert "nothing is tested" in comparison.caption(found)
    turned = compare(runs, baseline=other)
    assert turned.comparisons == {} and "Runs of the baseline were" in turned.notes[0]


def test_images_are_told_apart_by_their_ids(out):
    (planned, *_) = states.all_in(out)
    run = measured.pipeline_of(planned)
    manifest = manifest_lib.load(planned.workdir / "prepare").without_test_labels()
    renamed = dataclasses.replace(manifest, ids=tuple(f"{name}x" for name in manifest.ids))
    first, second = (measured.images_of(held, held.rows("val")) for held in (manifest, renamed))
    assert first != second
    assert {one.images for one in measured.of(planned, "val")} == {first}
    assert run.config.data.split.val > 0


def test_recalls_of_head_and_tail_are_by_an_arm_s_own_classes(out):
    def turned(run):
        head, tail = run.truth.class_groups["tail"], run.truth.class_groups["head"]
        groups = {**run.truth.class_groups, "head": head, "tail": tail}
        return dataclasses.replace(run.truth, class_groups=groups) if fast(run) else run.truth

    runs = of_ce(runs_of(out), truth=turned)
    found = compare(runs)
    _, other = found.arms
    own = tuple(run.values["recall_tail"] for run in runs if fast(run))
    assert found.summaries[other]["recall_tail"].values == own
    assert found.summaries[other]["recall_tail"].ci95 is None
    assert "recall_tail" not in found.comparisons[other]
    assert found.comparisons[other]["accuracy"].p_holm is not None
    assert any("recall_tail" in note and other in note for note in found.notes)


def test_arms_are_what_their_overrides_are_and_names_have_the_digits_for_that(out):
    runs = of_ce(runs_of(out))
    rate = "classify.optimizer.learning_rate"
    for values, names in (
        ((0.0010001, 0.0010002), ("learning_rate=0.0010001", "learning_rate=0.0010002")),
        ((0.99995, 0.99999), ("learning_rate=0.99995", "learning_rate=0.99999")),
        ((1e-3, 1e-2), ("learning_rate=0.001", "learning_rate=0.01")),
    ):
        close = [overridden(run, **{rate: values[fast(run)]}) for run in runs]
        close = [overridden(run, **run.planned.trial.overrides, **{"classify.seeds": [run.seed]})
                 for run in close]  # fmt: skip
        found = comparison.arms_of(close)
        assert tuple(found) == names
        assert [arm.seeds for arm in found.values()] == [(0, 1)] * 2
    told = comparison.arms_of([overridden(r, x=str(1) if fast(r) else 1) for r in runs[::2]])
    assert len(told) == 2


def test_seeds_that_are_missing_are_told_and_so_is_an_arm_of_none(out):
    runs = of_ce(runs_of(out))
    lost = [
        measured.Missing(run.planned, run.arm, run.seed, run.key, State.FAILED)
        for run in runs
        if fast(run)
    ]
    found = compare([run for run in runs if not fast(run) or run.seed == 0], lost[1:])
    name = "learning_rate=0.01"
    text = tables.to_text(comparison.table(found))
    assert f"{name} [1 of 2 seeds; failed: 1]" in text
    assert any("seeds 0 from the baseline's over 0, 1" in note for note in found.notes)
    told = comparison.to_json(found)["arms"][1]["missing"]
    assert told == [{"trial": lost[1].planned.name, "seed": 1, "state": "failed"}]
    found = compare([run for run in runs if not fast(run)], lost)
    assert list(found.arms) == ["learning_rate=0.001"]
    assert f"{name} [0 of 2 seeds; failed: 0, 1]" in tables.to_text(comparison.table(found))
    assert [one["seed"] for one in comparison.to_json(found)["without_runs"][name]] == [0, 1]


def test_a_failed_trial_is_told_and_its_stages_are_counted(out):
    whole = collect_lib.collect(out)
    planned = states.all_in(out)[-1]
    before = states.marked(planned.folder)
    states.mark(planned.folder, dataclasses.replace(before, state=State.FAILED, error="x"))
    try:
        found = collect_lib.collect(out)
    finally:
        states.mark(planned.folder, before)
    assert found["compute"] == whole["compute"]
    assert found["arms"][-1]["seeds"] == [0]
    assert found["arms"][-1]["missing"][0]["state"] == "failed"
    assert "1 of 2 seeds; failed: 1" in (out / "collected/report.md").read_text()


def test_arms_of_the_same_classifiers_are_tested_once(out):
    runs = of_ce(runs_of(out))
    slow = [overridden(run, x=1) for run in runs if not fast(run)]
    again = [overridden(run, x=2) for run in runs if not fast(run)]
    fast_ones = [overridden(run, x=3, y=held) for held in (1, 2) for run in runs if fast(run)]
    found = compare([*slow, *again, *fast_ones])
    assert found.same == {"x=2": "x=1", "x=3 y=2": "x=3 y=1"} and found.tested == 1
    held = found.comparisons["x=3 y=2"]["accuracy"]
    assert held.p == held.p_holm == found.comparisons["x=3 y=1"]["accuracy"].p
    text = tables.to_text(comparison.table(found))
    assert "2 arms on val" in text and "x=3 y=2" not in text and "Holm over 1 comp" in text
    assert any(note.startswith("x=1, tested once, is also x=2: no field") for note in found.notes)


def test_a_caption_says_what_was_done_on_its_split(out, tmp_path):
    runs = of_ce(runs_of(out))
    alone = compare([run for run in runs if not fast(run)])
    assert comparison.caption(alone) == "1 arm on val: mean ± deviation over seeds."
    searched = comparison.caption(compare(runs), searched=True)
    assert "A search has chosen these arms on val: intervals, p-values" in searched
    (tmp_path / "journal.log").write_text('{"op_code":0,"study_name":"val/ce/accuracy"}\n{}\n')
    assert collect_lib._searched(tmp_path, "val")
    assert not collect_lib._searched(tmp_path, "policy_val") and not collect_lib._searched(
        out, "val"
    )


def test_collect_takes_the_trials_of_a_sweep_file_alone(out):
    folder = out.parent
    text = (folder / "sweep.py").read_text().replace("(1e-3, 1e-2)", "(1e-2,)")
    (folder / "one.py").write_text(text)
    command_line.main(["collect", f"--sweep={folder / 'one.py'}", f"--out={out}"])
    told = json.loads((out / "collected/report.json").read_text())
    assert told["trials"].startswith("2 trials") and len(told["arms"]) == 2


def test_a_sweep_goes_on_in_its_cache_with_its_base_alone(out, capsys):
    folder = out.parent
    run = lambda *more: command_line.main(
        ["run", f"--sweep={folder / 'sweep.py'}", "--executor=debug", f"--out={out}", *more]
    )
    for _ in range(2):
        run()
    assert {one.cache for one in states.all_in(out)} == {(out / "cache").resolve()}
    with pytest.raises(SystemExit, match=f"--cache: got {folder}.*leave --cache out"):
        run(f"--cache={folder / 'other'}")
    text = (folder / "sweep.py").read_text()
    other = text.replace("seeds(2))", "seeds(2)), shared={'classify.rounds': 3}")
    other = other.replace("(1e-3, 1e-2)", "(5e-3,)")  # no trial of the same name
    (folder / "sweep.py").write_text(other)
    try:
        with pytest.raises(
            SystemExit, match=r"(?s)shared overrides.*classify\.rounds: \d+ there, 3"
        ):
            run()
        free = text.replace("seeds(2))", "seeds(2)), shared={'runtime.resident_mib': 3}")
        (folder / "sweep.py").write_text(free)
        run()
        held = states.all_in(out)
        assert {one.trial.config["runtime"]["resident_mib"] for one in held} == {3}
    finally:
        (folder / "sweep.py").write_text(text)
    run()
    assert len(states.all_in(out)) == 4


def test_trials_that_are_done_wait_again_for_further_stages(tmp_path):
    trial = Trial({"a": 1}, {"x": 1})
    planned = states.write(tmp_path, trial, ("prepare",), tmp_path / "cache")
    states.mark(planned.folder, Status(State.DONE, "", 1, 1))
    states.write(tmp_path, trial, ("prepare",), tmp_path / "cache")
    assert states.status(planned.folder).state is State.DONE
    with faults.lock(planned.folder), pytest.raises(faults.WorkdirInUseError):
        states.write(tmp_path, trial, ("prepare", "classify"), tmp_path / "cache")
    assert states.read_trial(planned.folder).stages == ("prepare",)
    states.write(tmp_path, trial, ("prepare", "classify"), tmp_path / "cache")
    assert states.status(planned.folder) == Status(State.WAITING, "", 1, 1)

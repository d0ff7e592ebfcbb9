"""A sweep's finished trials gathered: one Parquet table, one comparison, its pictures.

Collecting reads what is finished and writes OUT/collected anew: twice gives the same files. Only
with `test` are test labels opened, by the stage `report` of every trial that has not made it yet,
which logs it in that trial's workdir.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from lt_jax import command
from lt_jax.evaluate import report as report_lib
from lt_jax.evaluate.report import picture
from lt_jax.evaluate.statistics import tables
from lt_jax.runtime import files
from lt_jax.sweep import comparison, driver, measured, pictures, states
from lt_jax.sweep.measured import Run
from lt_jax.sweep.states import Planned, State, SweepError

FOLDER = "collected"


def collect(
    out: pathlib.Path, split: str = "val", test: bool = False, baseline: str = ""
) -> dict[str, Any]:
    """Writes table.parquet, report.md, report.json and figures/; returns what report.json holds.

    Args:
      out: the sweep's folder.
      split: val or policy_val, on which arms are compared.
      test: whether to open the test labels, too: report_test.md and rows of the table.
      baseline: see `comparison.compare`.

    Raises:
      SweepError: no trial is done.
    """
    trials = states.all_in(out)
    status = {planned.name: states.status(planned.folder) for planned in trials}
    done = [planned for planned in trials if status[planned.name].state is State.DONE]
    if not done:
        raise SweepError(f"{out}: {driver.counts(status)}; collecting takes one that is done")
    folder = out / FOLDER
    folder.mkdir(exist_ok=True)
    found = comparison.compare(_runs(done, split), split, baseline)
    cost, made, uses = measured.total(done)
    report: dict[str, Any] = {
        **comparison.to_json(found),
        "trials": driver.counts(status),
        "compute": {**dataclasses.asdict(cost), "stages": made, "uses": uses},
    }
    sheets = [comparison.table(found)]
    rows = {split: _runs(done, split)}
    if test:
        rows["test"] = _opened(done)
        of_test = comparison.compare(rows["test"], "test", baseline)
        report["test"] = comparison.to_json(of_test)
        sheets.append(comparison.table(of_test))
    notes = (
        f"{driver.counts(status)}. {made} stages were made and used {uses} times: "
        f"{cost.seconds:.0f} s, {cost.flops:.3g} FLOPs in all."
    )
    drawn = picture.save(pictures.draw(found), folder / "figures")
    shown = [f"![{held.alt}](figures/{held.path.name})" for held in drawn.values()]
    text = "\n\n".join([*map(tables.to_markdown, sheets), notes, *shown])
    files.write_atomically(folder / "report.md", text + "\n", "the sweep's report")
    measured.write_table(rows, folder / "table.parquet")
    plain = json.dumps(report_lib.strict(report), indent=1, allow_nan=False)
    files.write_atomically(folder / "report.json", plain + "\n", "the sweep's report")
    for sheet in sheets:
        print(tables.to_text(sheet), end="\n\n")
    print(f"{notes}\nreport: {folder / 'report.md'}")
    return report


def _runs(done: Sequence[Planned], split: str) -> list[Run]:
    return [run for planned in done for run in measured.of(planned, split)]


def _opened(done: Sequence[Planned]) -> list[Run]:
    """The runs on test, once every trial has its report."""
    first = measured.pipeline_of(done[0])
    command.use_devices(first.config.runtime, done[0].cache)
    for planned in done:
        run = measured.pipeline_of(planned)
        if not all(run.store.done(spec) for spec in run.selected(["report"])):
            run.run(["report"])
    return _runs(done, "test")

"""A sweep's finished trials gathered: one Parquet table, one comparison, its pictures.

Collecting reads what is finished and writes OUT/collected anew: twice gives the same files. Only
with `test` are test labels opened, of the baseline and of chosen arms alone, and every time that is
logged in OUT/test_openings.jsonl.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from lt_jax.evaluate import report as report_lib
from lt_jax.evaluate.report import picture
from lt_jax.evaluate.statistics import tables
from lt_jax.runtime import files
from lt_jax.sweep import comparison, driver, measured, pictures, search, states
from lt_jax.sweep.comparison import Arm, Compared
from lt_jax.sweep.states import Planned, State, SweepError

FOLDER = "collected"
OPENINGS = "test_openings.jsonl"


def collect(
    out: pathlib.Path,
    split: str = "val",
    test: bool = False,
    baseline: str = "",
    chosen: Sequence[str] = (),
    trials: Sequence[Planned] | None = None,
) -> dict[str, Any]:
    """Writes table.parquet, report.md, report.json and figures/; returns what report.json holds.

    Args:
      out: the sweep's folder.
      split: val or policy_val, on which arms are compared.
      test: whether to open the test labels of the baseline and the chosen arms, too, which gives a
        second table in report.md and rows of table.parquet.
      baseline: see `comparison.compare`.
      chosen: arms to open the test labels for, as the table on `split` names them.
      trials: some of the folder's; None: all.

    Raises:
      SweepError: no trial is done, or `test` without such arms.
    """
    trials = states.all_in(out) if trials is None else trials
    status = {planned.name: states.status(planned.folder) for planned in trials}
    done = [planned for planned in trials if status[planned.name].state is State.DONE]
    if not done:
        raise SweepError(f"{out}: {driver.counts(status)}; collecting takes one that is done")
    runs = {planned.name: measured.of(planned, split) for planned in done}
    rows = {split: [run for held in runs.values() for run in held]}
    missing = [
        one
        for planned in trials
        for one in measured.missing(planned, status[planned.name].state, runs.get(planned.name, ()))
    ]
    arms = comparison.arms_of(rows[split], missing)
    compared = [comparison.compare(arms, split, baseline)]
    if test or chosen:
        _check_chosen(chosen, test, compared[0])
    folder = out / FOLDER
    folder.mkdir(exist_ok=True)
    if test:
        opened = _opened(out, arms, [compared[0].baseline, *chosen])
        rows["test"] = [run for arm in opened.values() for run in arm.runs]
        compared.append(comparison.compare(opened, "test", compared[0].baseline))
    return _write(folder, compared, rows, status, measured.total(trials))


def _searched(out: pathlib.Path, split: str) -> bool:
    """Whether a search has chosen the trials on this split; its study is named by the objective."""
    path = out / search.JOURNAL
    if not path.exists():
        return False
    with path.open() as journal:
        return json.loads(next(journal, "{}")).get("study_name", "").startswith(f"{split}/")


def _check_chosen(chosen: Sequence[str], test: bool, found: Compared) -> None:
    """Refuses, before labels are opened, what is no chosen arm."""
    if not test:
        raise SweepError("--arm: takes --test, which opens the test labels of that arm")
    others = [name for name in found.arms if name != found.baseline]
    wrong = [name for name in chosen if name not in others]
    if wrong or not chosen:
        told = f"got {wrong[0]!r}" if wrong else "got none"
        raise SweepError(
            f"--test: {told}; takes --arm=NAME, once or more: the arm that was chosen on "
            f"{found.split}, to be tested against the baseline {found.baseline!r}. Arms: "
            f"{'; '.join(others)}"
        )


def _opened(out: pathlib.Path, arms: Mapping[str, Arm], names: Sequence[str]) -> dict[str, Arm]:
    """Those arms on test, once the opening is logged."""
    held = {name: arms[name] for name in dict.fromkeys(names)}
    runs = [run for arm in held.values() for run in arm.runs]
    reason = f"collect --test: {'; '.join(held)} ({len(held)} of {len(arms)} arms)"
    on_test = iter(measured.on_test(runs, out / OPENINGS, reason))
    return {
        name: dataclasses.replace(arm, runs=tuple(next(on_test) for _ in arm.runs))
        for name, arm in held.items()
    }


def _write(
    folder: pathlib.Path,
    compared: Sequence[Compared],
    rows: Mapping[str, Sequence[measured.Run]],
    status: Mapping[str, states.Status],
    total: tuple[measured.Ledger, int, int],
) -> dict[str, Any]:
    out, (first, *others) = folder.parent, compared
    cost, made, uses = total
    notes = [
        f"{driver.counts(status)}. {made} stages were made, those of trials that are not done "
        f"among them, and used {uses} times: {cost.seconds:.0f} s, {cost.flops:.3g} FLOPs in all."
    ]
    report: dict[str, Any] = {
        **comparison.to_json(first),
        "trials": driver.counts(status),
        "compute": {**dataclasses.asdict(cost), "stages": made, "uses": uses},
    }
    for found in others:
        openings = [json.loads(line) for line in (out / OPENINGS).read_text().splitlines()]
        report["test"] = {**comparison.to_json(found), "openings": openings}
        notes.append(
            f"Openings of this sweep's test labels, one a command and split: {len(openings)}; for "
            f"{len(found.arms)} arms now ({OPENINGS})."
        )
    drawn = picture.save(pictures.draw(first), folder / "figures")
    sheets = [comparison.table(found, _searched(out, found.split)) for found in compared]
    notes += dict.fromkeys(note for found in compared for note in found.notes)
    shown = [f"![{held.alt}](figures/{held.path.name})" for held in drawn.values()]
    text = "\n\n".join([*map(tables.to_markdown, sheets), *notes, *shown])
    files.write_atomically(folder / "report.md", text + "\n", "the sweep's report")
    measured.write_table(rows, folder / "table.parquet")
    plain = json.dumps(report_lib.strict(report), indent=1, allow_nan=False)
    files.write_atomically(folder / "report.json", plain + "\n", "the sweep's report")
    for sheet in sheets:
        print(tables.to_text(sheet), end="\n\n")
    print("\n".join(notes) + f"\nreport: {folder / 'report.md'}")
    return report

r"""Human readers beside a run's classifiers: their points on the ROC curve, with help and without.

    python -m lt_jax.readers --config=configs/busi.py --workdir=runs/busi --positive=malignant \
        --answers=answers.csv --out=runs/busi_readers

`--config`, `--workdir` and `--cache` are those of the finished run. `--answers` is a CSV file with
a row an answer: `reader`; `id`, a test image as in the run's manifest.parquet; `answer`, "positive"
or "negative", or a class of the run; and, where readers saw what a classifier said, `aided`, "yes"
or "no". Readers need not have answered every image. Writes `readers.json` and figures/roc.png with
its numbers into `--out`, and prints how sensitive each arm is at the specificity of each reader and
what help has brought (`lt_jax.evaluate.statistics.reading` has the definitions). The run's test
labels are opened, and the opening is logged.
"""

import csv
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from lt_jax import command, reporting
from lt_jax.config import ConfigError
from lt_jax.context import Context
from lt_jax.data import prepare
from lt_jax.errors import UserError
from lt_jax.evaluate import report
from lt_jax.evaluate.metrics import grouping
from lt_jax.evaluate.report import picture, reader_figures
from lt_jax.evaluate.statistics import curves, reading, tables
from lt_jax.evaluate.statistics.reading import Reading, Study
from lt_jax.evaluate.statistics.results import Share
from lt_jax.pipeline import Pipeline
from lt_jax.runtime import distributed, faults, files

COLUMNS = ("reader", "id", "answer")
INTERVALS = {
    "points": "Wilson",
    "one reader": "percentile bootstrap",
    "all readers": "Student's t of a two-way bootstrap",
}
AIDED = {"": False, "no": False, "yes": True}


class ReadersError(UserError, ValueError):
    """Answers that cannot be scored."""


def load(
    path: pathlib.Path, ids: Sequence[str], classes: Sequence[str], positive: str
) -> list[Reading]:
    """The answers of a CSV file, a `Reading` a reader, by name.

    Args:
      path: of the file.
      ids: of the test images.
      classes: of the run.
      positive: one of them.

    Raises:
      ReadersError: a column is missing, an image or answer is unknown, or one was answered twice;
        the message names the line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            found = _parse(csv.DictReader(stream), path, ids, classes, positive)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ReadersError(f"{path}: cannot be read as a CSV file ({error})") from error
    if not found:
        raise ReadersError(f"{path}: no answers")
    return [found[name] for name in sorted(found)]


def _parse(
    lines: csv.DictReader,
    path: pathlib.Path,
    ids: Sequence[str],
    classes: Sequence[str],
    positive: str,
) -> dict[str, Reading]:
    known = {"positive": 1.0, "negative": 0.0}
    known |= {name: float(name == positive) for name in classes}
    row_of = {name: row for row, name in enumerate(ids)}
    found: dict[str, Reading] = {}
    if missing := [name for name in COLUMNS if name not in (lines.fieldnames or ())]:
        raise ReadersError(
            f"{path}: no column {missing[0]!r}; takes {', '.join(COLUMNS)} and, optionally, aided"
        )
    for line in lines:
        values = {name: (line.get(name) or "").strip() for name in (*COLUMNS, "aided")}
        at = f"{path}, line {lines.line_num}"
        if values["id"] not in row_of:
            raise ReadersError(f"{at}: {values['id']!r} is no test image of this run")
        if values["answer"] not in known:
            raise ReadersError(
                f"{at}: answer {values['answer']!r}; takes one of {', '.join(known)}"
            )
        if not values["reader"] or values["aided"] not in AIDED:
            raise ReadersError(f"{at}: takes a reader's name, and aided yes, no or nothing")
        unread = lambda: np.full(len(ids), np.nan)
        name = values["reader"]
        one = found.setdefault(name, Reading(name, unread(), unread()))
        answers = one.aided if AIDED[values["aided"]] else one.alone
        if not np.isnan(answers[row_of[values["id"]]]):
            raise ReadersError(f"{at}: {name} has answered {values['id']!r} before")
        answers[row_of[values["id"]]] = known[values["answer"]]
    return found


def run(pipeline: Pipeline, answers: pathlib.Path, positive: str, out: pathlib.Path) -> Study:
    """Scores readers beside the arms of a finished run, and writes readers.json and figures.

    Raises:
      ConfigError: the run is not finished, or `positive` is none of its classes.
      ReadersError: see `load`; nothing of test is opened then.
    """
    context = pipeline.finished("classify")
    manifest, _ = context.data
    if positive not in manifest.classes:
        raise ConfigError(
            f"--positive: got {positive!r}; takes one of {', '.join(manifest.classes)}"
        )
    rows = manifest.rows("test")
    ids = tuple(manifest.ids[row] for row in rows)
    readings = load(answers, ids, manifest.classes, positive)
    out.mkdir(parents=True, exist_ok=True)
    with faults.lock(out):
        label = manifest.classes.index(positive)
        evaluate = pipeline.config.evaluate
        truth = _open(context)
        arms = [
            report.predictions_of(reporting.arm_of(name, context, manifest, ids))
            for name in pipeline.config.classify.arms
        ]
        try:
            found = reading.study(
                readings,
                arms,
                label,
                truth,
                evaluate.resamples,
                evaluate.seed,
                evaluate.mcnemar,
            )
        except ValueError as error:
            raise ReadersError(str(error)) from error
        drawn = curves.of_class(arms, label, truth, evaluate.resamples, evaluate.seed)
        if drawn is not None:
            picture.save([reader_figures.roc(positive, drawn, found)], out / "figures")
        head = {"command": context.command, "positive": positive, "intervals": INTERVALS}
        text = json.dumps({**head, **to_json(found)})
        files.write_atomically(out / "readers.json", text + "\n", "the readers' scores")
    return found


def _open(context: Context) -> grouping.Truth:
    """The test labels, once their opening is on record in the run's workdir."""
    manifest, _ = prepare.load(context.folder("prepare"), context.config.data)
    log = context.workdir / "test_openings.jsonl"
    _, labels = manifest.open_test(log, f"readers: {context.command}")
    groups = [manifest.groups[row] for row in manifest.rows("test")]
    return grouping.Truth(labels, grouping.group_codes(groups), {}, len(manifest.classes))


def to_json(found: Study) -> dict[str, Any]:
    """A study as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(found), allow_nan=False))


def text(found: Study) -> str:
    """A study as tables for a terminal."""
    parts = [
        tables.to_text(_points("Reader alone", found.alone)) if found.alone else "",
        tables.to_text(_points("Reader with help", found.aided)) if found.aided else "",
        tables.to_text(_beyond(found)) if found.beyond else "",
        tables.to_text(_help(found)) if found.help else "",
    ]
    return "\n\n".join(part for part in parts if part)


def _points(title: str, points: Mapping[str, reading.Point]) -> tables.Table:
    show = lambda point, name: Share(
        round(point.share[name] * point.n[name]), point.n[name], point.ci95.get(name)
    )
    rows = tuple(
        (name, point.images, *(show(point, metric) for metric in reading.METRICS))
        for name, point in points.items()
    )
    return tables.Table((title, "Images", *(m.capitalize() for m in reading.METRICS)), rows)


def _beyond(found: Study) -> tables.Table:
    readers = list(found.alone)
    rows = tuple(
        (arm, one, *(found.beyond_each[arm][name] for name in readers))
        for arm, one in found.beyond.items()
    )
    caption = (
        "Sensitivity of an arm minus the reader's, at the reader's specificity (n: readers; Holm's "
        "correction of all readers' p over the arms, those of one reader uncorrected)"
    )
    return tables.Table(("Arm", "All readers", *readers), rows, caption)


def _help(found: Study) -> tables.Table:
    readers = list(found.help_each)
    rows: list[tuple[object, ...]] = [
        (metric, one, *(found.help_each[name][metric] for name in readers))
        for metric, one in found.help.items()
    ]
    rows.append(("images right", "", *(found.right[name] for name in readers)))
    caption = (
        "With help minus alone (n: readers; Holm's correction of all readers' p over the metrics, "
        "those of one reader uncorrected; McNemar: with help : alone)"
    )
    return tables.Table(("Metric", "All readers", *readers), tuple(rows), caption)


def main(_: list[str]) -> None:
    """Scores the readers of a run's test images."""
    out = pathlib.Path(flags.FLAGS.out)
    with command.ending():
        line = command.line("lt_jax.readers")
        pipeline = Pipeline(command.config(), command.workdir(), command.cache(), line)
        command.use_devices(pipeline.config.runtime, command.cache() or command.workdir())
        answers, positive = pathlib.Path(flags.FLAGS.answers), flags.FLAGS.positive
        found = distributed.on_first(lambda: run(pipeline, answers, positive, out))
        if found is not None:
            print(text(found))
            print(f"written: {out / 'readers.json'}, {out / 'figures'}")


if __name__ == "__main__":
    flags.DEFINE_string("answers", None, "CSV file of the readers' answers", required=True)
    flags.DEFINE_string("positive", None, "the class that readers look for", required=True)
    flags.DEFINE_string("out", None, "folder of the scores", required=True)
    command.start(main)

"""The command line's room: readers' answers beside a finished run."""

import csv
import json

import numpy as np
import pytest

from lt_jax import readers
from lt_jax.config import ConfigError
from lt_jax.data import prepare
from lt_jax.pipeline import Pipeline
from lt_jax.readers import ReadersError
from tests.test_pipeline import tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The tiny phantom, benign against malignant, with its classifiers."""
    config = tiny("phantom")
    with config.unlocked():
        config.data.update(source="phantom:24", profile="natural", imbalance_factor=1.0)
        config.data.update(label="malignant", classes=("benign", "malignant"))
        config.data.split.update(policy_val=0.1, val=0.1, test=0.3)
        config.classify.arms = {"ce": config.classify.arms["ce"]}
        config.evaluate.baseline = "ce"
        config.evaluate.resamples = 100
        config.evaluate.mcnemar = "exact"
        config.classify.seeds = (0, 1)
    run = Pipeline(config, tmp_path_factory.mktemp("runs") / "own", command="test")
    run.run(["prepare", "classify"])
    return run


def write(path, rows, columns=("reader", "id", "answer", "aided")):
    """A CSV file of answers."""
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])
    return path


def test_answers_become_points_on_the_curve_and_the_opening_is_on_record(finished, tmp_path):
    manifest, _ = prepare.load(finished.context().folder("prepare"), finished.config.data)
    rows = manifest.rows("test")
    labels = manifest.labels[rows]
    generator = np.random.default_rng(0)
    answers = []
    for reader, right in (("ann", 0.6), ("bob", 0.8)):
        for row, label in zip(rows, labels, strict=True):
            alone = label if generator.random() < right else 1 - label
            answers.append((reader, manifest.ids[row], manifest.classes[alone], "no"))
            answers.append((reader, manifest.ids[row], ("negative", "positive")[label], "yes"))
    path = write(tmp_path / "answers.csv", answers)
    found = readers.run(finished, path, "malignant", tmp_path / "out")
    assert found.aided["ann"].share["accuracy"] == 1.0
    assert found.help["accuracy"].difference == pytest.approx(
        1 - np.mean([found.alone[name].share["accuracy"] for name in ("ann", "bob")])
    )
    log = (finished.workdir / "test_openings.jsonl").read_text().splitlines()
    assert len(log) == 1 and "readers" in json.loads(log[0])["reason"]
    written = json.loads((tmp_path / "out" / "readers.json").read_text())
    assert written["beyond"]["ce"]["n"] == 2 and written["positive"] == "malignant"
    assert written["intervals"]["one reader"] == "percentile bootstrap"
    numbers = (tmp_path / "out" / "figures" / "roc.csv").read_text()
    assert "ann,alone," in numbers and "bob,with help," in numbers
    assert written["aided"]["ann"]["n"]["accuracy"] == len(rows)
    text = readers.text(found)
    assert f"{len(rows)}/{len(rows)} = 1.000 [" in text  # of all images, aided
    assert "All readers" in text and "McNemar" in text and "uncorrected (n=1*)" in text
    assert {one["method"] for one in written["right"].values()} == {"exact"}


def test_answers_that_cannot_be_scored_are_refused_with_their_line(finished, tmp_path):
    manifest, _ = finished.context().data
    name = manifest.ids[manifest.rows("test")[0]]
    train = manifest.ids[manifest.rows("train")[0]]
    cases = [
        ([("ann", name)], ("reader", "id"), "no column 'answer'"),
        ([("ann", train, "benign", "")], None, f"line 2: '{train}' is no test image"),
        ([("ann", name, "cat", "")], None, "line 2: answer 'cat'; takes one of positive"),
        ([("ann", name, "benign", "maybe")], None, "line 2: takes a reader's name, and aided"),
        ([("ann", name, "benign", ""), ("ann", name, "malignant", "no")], None, "line 3: ann has"),
        ([], None, "no answers"),
        ([("ann", name, "benign", "")], None, "all 1 images answered are"),
    ]
    for rows, columns, message in cases:
        path = write(tmp_path / "a.csv", rows, *([columns] if columns else []))
        with pytest.raises(ReadersError, match=message):
            readers.run(finished, path, "malignant", tmp_path / "out")
    (tmp_path / "latin.csv").write_bytes(b"reader,id,answer\nJos\xe9,x,benign\n")
    for unreadable in (tmp_path / "latin.csv", tmp_path / "none.csv"):
        with pytest.raises(ReadersError, match="cannot be read as a CSV file"):
            readers.run(finished, unreadable, "malignant", tmp_path / "out")
    with pytest.raises(ConfigError, match="--positive: got 'cat'; takes one of benign, malignant"):
        readers.run(finished, path, "cat", tmp_path / "out")

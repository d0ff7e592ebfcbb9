"""The table writer shows no mean without spread and n."""

import json

import numpy as np
import pytest

from lt_jax.evaluate import statistics, tables
from lt_jax.evaluate.statistics import Comparison, Summary

THREE = statistics.summarise(np.array([0.7, 0.72, 0.74]), np.linspace(0.6, 0.8, 101))
ONE = statistics.summarise(np.array([0.7]))
WRITERS = (tables.to_text, tables.to_markdown, tables.to_latex)


@pytest.mark.parametrize("bare", [0.73, np.float32(0.73), "0.73", "7.3e-1", " +.73", None, True])
def test_a_bare_number_is_refused_with_its_place(bare):
    with pytest.raises(TypeError, match=r"row 1, column 'F1'"):
        tables.Table(("Arm", "F1"), (("ce", THREE), ("bs", bare)))


@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_gives_mean_spread_and_n(writer):
    text = writer(tables.Table(("Arm", "n", "F1"), (("a_b|c", 12, THREE),)))
    assert "0.720" in text and "0.020" in text and "n=3" in text and "12" in text
    assert "one seed" not in text


@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_marks_a_single_seed(writer):
    text = writer(tables.Table(("Arm", "F1"), (("ce", ONE),)))
    assert "n=1" in text and "one seed" in text and "±" not in text


def test_comparisons_show_interval_p_and_holm():
    cell = Comparison(0.021, (0.003, 0.04), 0.0312, 0.0004, 3)
    assert tables.format_cell(cell) == "+0.021 [0.003, 0.040], p=0.031, Holm p<0.001 (n=3)"
    assert tables.format_cell(Comparison(None, None, None, None, 3)) == tables.UNDEFINED
    assert tables.format_cell(Summary(None, None, 3, None, (None,) * 3)) == tables.UNDEFINED


def test_json_keeps_all_numbers():
    (row,) = tables.to_json(tables.Table(("Arm", "F1"), (("ce", THREE),)))
    assert json.loads(json.dumps(row, allow_nan=False))["F1"]["values"] == [0.7, 0.72, 0.74]
    assert row["F1"]["n"] == 3 and len(row["F1"]["ci95"]) == 2


def test_markdown_and_latex_escape():
    table = tables.Table(("Arm",), (("a|b_c",),))
    assert "a\\|b_c" in tables.to_markdown(table)
    assert "a|b\\_c" in tables.to_latex(table)


def test_rows_of_another_length_are_refused():
    with pytest.raises(ValueError, match="row 0"):
        tables.Table(("Arm", "F1"), (("ce",),))

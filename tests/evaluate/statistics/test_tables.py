"""The table writer shows no mean without spread and n."""

import dataclasses
import json

import numpy as np
import pytest

from lt_jax.evaluate import statistics
from lt_jax.evaluate.statistics import Comparison, Summary, hypothesis, tables
from lt_jax.evaluate.statistics.intervals import Proportion
from lt_jax.evaluate.statistics.results import Share

THREE = statistics.summarise(np.array([0.7, 0.72, 0.74]), np.linspace(0.6, 0.8, 101))
ONE = statistics.summarise(np.array([0.7]))
WRITERS = (tables.to_text, tables.to_markdown, tables.to_latex)


@pytest.mark.parametrize(
    "bare", [0.73, np.float32(0.73), "0.73", "7.3e-1", " +.73", "nan", "-Infinity", None, True]
)
def test_a_bare_number_is_refused_with_its_place(bare):
    with pytest.raises(TypeError, match=r"row 1, column 'F1'"):
        tables.Table(("Arm", "F1"), (("ce", THREE), ("bs", bare)))


@pytest.mark.parametrize("name", ["244e230242", "12e5", "0123456789"])
def test_a_hash_that_reads_as_a_number_is_a_name(name):
    assert name in tables.to_text(tables.Table(("Trial", "F1"), ((name, THREE),)))


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
    assert "a\\textbar{}b\\_c" in tables.to_latex(table)


@pytest.mark.parametrize("writer", WRITERS)
def test_tests_and_shares_show_what_they_are_of(writer):
    hits = np.array([True, True, True, False])
    cells = (
        Proportion(45, 50),
        hypothesis.mcnemar(hits, ~hits),
        hypothesis.delong(hits * 1.0, 1.0 - hits, np.array([True, False, True, False])),
        hypothesis.corrected_resampled_t(np.array([0.1, 0.2, 0.4]), 90, 10),
        Share(3, 4, (0.2, 0.9)),
    )
    text = writer(tables.Table(("Share", "McNemar", "DeLong", "Folds", "In groups"), (cells,)))
    for part in (
        "45/50 = 0.900",
        "3/4 = 0.750 [0.200, 0.900]",
        "3 : 1 alone right",
        "odds ratio 3",
        "(n=4)",
        "(n=2+2)",
    ):
        assert part in text
    assert "(n=3 folds)" in text and text.count("p=") == 3 and "one seed" not in text


def test_a_comparison_shows_every_p_and_its_effect():
    cell = Comparison(0.021, (0.003, 0.04), 0.0312, 0.0004, 3, 0.002, 1.25)
    assert tables.format_cell(cell) == (
        "+0.021 [0.003, 0.040], p=0.031, Holm p<0.001 (n=3), BH p=0.002, g_z=+1.25"
    )


def test_folds_show_their_family_and_cells_come_back_from_json():
    found = hypothesis.corrected_resampled_t(np.array([0.1, 0.2, 0.4]), 90, 10)
    found = dataclasses.replace(found, p_holm=0.06, p_bh=0.04)
    text = tables.format_cell(found)
    assert text.startswith("+0.233 [") and text.endswith("Holm p=0.06, BH p=0.04 (n=3 folds)")
    for cell in (found, THREE, Comparison(0.1, (0.0, 0.2), 0.3, 0.3, 3)):
        told = json.loads(json.dumps(tables.cell_to_json(cell)))
        assert tables.cell_from_json(type(cell), told) == cell


def test_test_cells_keep_their_numbers_in_json():
    hits = np.array([True, False, True])
    found = dataclasses.replace(hypothesis.mcnemar(hits, hits), p_holm=1.0)
    assert tables.format_cell(Proportion(0, 0)) == "n/a (n=0)"
    (row,) = tables.to_json(tables.Table(("M", "P"), ((found, Proportion(1, 4)),)))
    assert row["M"]["p_holm"] == 1.0 and row["M"]["odds_ci95"] is None and row["M"]["n"] == 3
    assert (row["P"]["successes"], row["P"]["n"], row["P"]["share"]) == (1, 4, 0.25)
    assert row["P"]["ci95"][0] < 0.25 < row["P"]["ci95"][1]
    json.dumps(row, allow_nan=False)


def test_latex_escapes_every_special_character():
    text = tables.to_latex(tables.Table(("A^B", "n"), (("\\a~b^c_d%e$f#g{h}i&j<k>|", 3),)))
    assert (
        "\\textbackslash{}a\\textasciitilde{}b\\textasciicircum{}c\\_d\\%e\\$f\\#g\\{h\\}i\\&j"
        "\\textless{}k\\textgreater{}\\textbar{} & 3 \\\\"
    ) in text
    assert "A\\textasciicircum{}B" in text
    lower = tables.to_latex(tables.Table(("d",), ((Comparison(-0.1, (-0.2, 0.1), 0.3, 0.3, 3),),)))
    assert "$-$0.100 [$-$0.200, 0.100]" in lower
    # \\ takes a bracket for a length.
    assert "{[b]}" in tables.to_latex(tables.Table(("A",), (("[b]",),)))


def test_the_latex_note_on_single_seeds_is_printed():
    lines = tables.to_latex(tables.Table(("Arm", "F1"), (("ce", ONE),))).splitlines()
    note = next(line for line in lines if tables.ONE_SEED in line)
    assert note.startswith("\\multicolumn{2}{l}") and lines[-1] == "\\end{tabular}"


def test_a_caption_makes_the_latex_table_a_float_with_it():
    table = tables.Table(("Arm", "F1"), (("ce", THREE),), "on a_b, 95% interval")
    lines = tables.to_latex(table).splitlines()
    assert lines[0] == "\\begin{table}" and lines[-1] == "\\end{table}"
    assert "\\caption{on a\\_b, 95\\% interval}" in lines
    assert lines.index("\\end{tabular}") == len(lines) - 2


def test_markdown_keeps_underscores_within_words():
    text = tables.to_markdown(tables.Table(("A",), (("a_b _c_ `d`\n\\e <b>",),)))
    assert "a_b \\_c\\_ \\`d\\` \\\\e \\<b>" in text


def test_rows_of_another_length_are_refused():
    with pytest.raises(ValueError, match="row 0"):
        tables.Table(("Arm", "F1"), (("ce",),))

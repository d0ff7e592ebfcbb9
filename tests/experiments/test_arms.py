"""What experiments share: nothing is opened before all that a comparison needs is there."""

import pytest

from experiments import arms
from lt_jax.config import ConfigError
from lt_jax.evaluate.statistics import tables
from lt_jax.pipeline import Pipeline
from tests.test_pipeline import tiny


def test_a_comparison_without_interval_p_or_difference_has_a_cell():
    told = {"difference": 0.02, "ci95": None, "p": 0.4, "p_holm": 0.5, "n": 3}
    cell = lambda **other: tables.format_cell(
        arms.paired_cell({"paired": {"balanced_accuracy": {**told, **other}}})
    )
    assert cell(ci95=[0.0, 0.04]) == "+0.020 [0.000, 0.040], p=0.4, Holm p=0.5 (n=3)"
    assert cell() == "+0.020 [no interval], p=0.4, Holm p=0.5 (n=3)"
    assert cell(p=None, p_holm=None) == "+0.020 [no interval], no p (n=3)"
    assert cell(difference=None) == "n/a" and arms.paired_cell({"paired": None}) == "itself"


@pytest.mark.parametrize("rival", ["real/ce", "absent/ce"])
def test_labels_stay_closed_where_a_rival_is_not_finished(tmp_path, rival):
    runs = {"real": Pipeline(tiny(), tmp_path / "run", tmp_path / "cache")}
    with pytest.raises(ConfigError, match=f"{rival}.*not finished"):
        arms.collect(runs, tmp_path, "experiment", (rival,))
    assert not (tmp_path / "test_openings.jsonl").exists()

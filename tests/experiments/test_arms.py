"""What experiments share: nothing is opened before all that a comparison needs is there."""

import pytest

from experiments import arms
from lt_jax.config import ConfigError
from lt_jax.pipeline import Pipeline
from tests.test_pipeline import tiny


@pytest.mark.parametrize("rival", ["real/ce", "absent/ce"])
def test_labels_stay_closed_where_a_rival_is_not_finished(tmp_path, rival):
    runs = {"real": Pipeline(tiny(), tmp_path / "run", tmp_path / "cache")}
    with pytest.raises(ConfigError, match=f"{rival}.*not finished"):
        arms.collect(runs, tmp_path, "experiment", (rival,))
    assert not (tmp_path / "test_openings.jsonl").exists()

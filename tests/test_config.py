"""The one edge between ConfigDicts and dataclasses: errors name the field and what it takes."""

import dataclasses

import pytest

from configs import digits
from lt_jax import config as config_lib
from lt_jax.pipeline import Pipeline


def test_defaults_round_trip():
    built = config_lib.build(config_lib.Config, config_lib.defaults())
    assert config_lib.to_dict(built) == config_lib.to_dict(config_lib.Config())
    assert hash(built) == hash(config_lib.build(config_lib.Config, config_lib.defaults()))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"daat": {}}, r"config\.daat: no such field; config takes audit, classify, data"),
        (
            {"data": {"split": {"test": 1.5}}},
            r"config\.data\.split\.test: got 1\.5; takes float in \[0\.01, 0\.9\]",
        ),
        ({"data": {"image_size": "32"}}, r"config\.data\.image_size: got '32'; takes int"),
        ({"data": {"profile": "zipf"}}, r"config\.data\.profile: got 'zipf'; takes one of natural"),
        ({"data": 3}, r"config\.data: got 3; takes a section"),
        ({"classify": {"seeds": 3}}, r"config\.classify\.seeds: got 3; takes a tuple of int"),
        ({"classify": {"seeds": (0, -1)}}, r"config\.classify\.seeds\[1\]: got -1; takes int in"),
        (
            {"classify": {"arms": {"a": {"los": "focal"}}}},
            r"classify\.arms\.a\.los: no such",
        ),
        ({"generator": {"ema_decay": float("nan")}}, r"ema_decay: got nan"),
    ],
)
def test_errors_name_the_field(values, message):
    with pytest.raises(config_lib.ConfigError, match=message):
        config_lib.build(config_lib.Config, values)


def test_fields_that_change_no_result_stay_out_of_keys():
    data = config_lib.DataConfig()
    changed = dataclasses.replace(data, decode_once_mib=1)
    assert config_lib.key_fields(data) == config_lib.key_fields(changed)
    assert config_lib.key_fields(data) != config_lib.key_fields(
        dataclasses.replace(data, image_size=8)
    )
    free = config_lib.free_paths(config_lib.Config())
    assert {"config.data.decode_once_mib", "config.generator.model.remat"} <= free
    assert {path for path in free if path.startswith("config.data.")} == {
        f"config.data.{name}"
        for name in config_lib.to_dict(data).keys() - config_lib.key_fields(data)
    }


def test_a_later_field_enters_keys_only_where_it_is_set():
    split = config_lib.SplitConfig()
    assert "test_where" not in config_lib.key_fields(split)
    assert "test_where" not in config_lib.key_fields(config_lib.DataConfig())["split"]
    named = config_lib.SplitConfig(test_where="official_split=test")
    assert config_lib.key_fields(named)["test_where"] == "official_split=test"


def test_a_workdir_takes_another_value_of_such_a_field_and_of_no_other(tmp_path):
    values = digits.get_config()
    Pipeline(values, tmp_path)._claim(False)
    with values.unlocked():
        values.extractor.model.vit.remat = "blocks"
        values.runtime.log_every = 7
    Pipeline(values, tmp_path)._claim(False)
    with values.unlocked():
        values.extractor.steps = 7
    with pytest.raises(config_lib.ConfigError, match=r"extractor\.steps: \d+ there, 7 here"):
        Pipeline(values, tmp_path)._claim(False)

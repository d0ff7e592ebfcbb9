"""Controllers compared: their arms share all but the rule, and the table says what results hold."""

import pytest

from configs import digits
from experiments import arms as arms_lib
from experiments.mixing import compare
from lt_jax import config as config_lib
from lt_jax import specs as specs_lib
from lt_jax.evaluate.statistics import tables


def test_arms_differ_in_their_rule_alone():
    values = compare.configure(digits.get_config(), "cross_entropy", 5, 300, [])
    config = config_lib.build(config_lib.Config, values)
    arms = config.classify.arms
    assert set(arms) == set(compare.controllers("cross_entropy", 300))
    assert {arm.loss for arm in arms.values()} == {"cross_entropy"} == {config.mixing.proxy.loss}
    assert config.mixing.policy.seeds == config.classify.seeds  # none is shared by classifiers
    assert config.classify.rounds == config.mixing.rounds  # so that a schedule can be replayed
    assert arms["fill_to_head"].fill_to == 300 and len(config.classify.seeds) == 5
    keys = {spec.key for spec in specs_lib.of(config) if spec.stage.startswith("classify/")}
    # `ce` and `real` are the same work where the loss is cross-entropy.
    assert len(keys) == 5 * (len(arms) - 1)


def test_some_arms_keep_the_one_that_others_are_compared_with():
    config = compare.configure(digits.get_config(), "balanced_softmax", 2, 0, ["bandit"])
    assert set(config.classify.arms) == {"real", "bandit"}
    with pytest.raises(config_lib.ConfigError, match=r"chance.*random_search"):
        compare.configure(digits.get_config(), "balanced_softmax", 2, 0, ["chance"])


def test_the_table_has_a_row_an_arm_with_spread_and_gap():
    metric = arms_lib.summary([0.3, 0.7])
    metrics = dict.fromkeys(compare.METRICS, metric)
    arms = [
        {"name": "real/real", "metrics": metrics, "policy_val_minus_test": {**metric, "mean": 0.1}},
        {"name": "real/bandit", "metrics": metrics, "policy_val_minus_test": None},
    ]
    told = {"difference": 0.1, "ci95": [0.0, 0.2], "p": 0.01, "p_holm": 0.03, "n": 2}
    paired = {"real/real": {"real/real": None, "real/bandit": told}}
    text = tables.to_markdown(compare.table({"report": {"arms": arms}, "paired": paired}))
    *_, real, bandit = text.splitlines()
    assert real.startswith("| real | 0.500 ± 0.283 (n=2) |") and "| 0.100 ± 0.283 (n=2) |" in real
    assert real.endswith("| itself |")
    assert bandit.endswith("| none | +0.100 [0.000, 0.200], p=0.01, Holm p=0.03 (n=2) |")

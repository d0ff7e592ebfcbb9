"""What charts show is chosen by val: the baseline, the best of both kinds, then the next."""

import dataclasses

import numpy as np

from lt_jax.evaluate.report import shown
from tests.evaluate.conftest import CLASSES, make_inputs


def with_val(arm, name, right, uses_pool=False):
    """The arm under another name, right on so many of the forty val images."""
    labels = np.tile(np.arange(4), 10)
    guess = np.where(np.arange(40) < right, labels, (labels + 1) % 4)
    runs = tuple(
        dataclasses.replace(run, val_logits=5.0 * np.eye(4, dtype=np.float32)[guess])
        for run in arm.runs
    )
    return dataclasses.replace(arm, name=name, runs=runs, uses_pool=uses_pool)


def made():
    inputs = make_inputs()
    arm = inputs.arms[0]
    arms = (
        with_val(arm, "a", 30, True),
        with_val(arm, "ce", 8),
        with_val(arm, "b", 20),
        with_val(arm, "c", 24, True),
        with_val(arm, "d", 16),
        with_val(arm, "e", 28, True),
    )
    return dataclasses.replace(inputs, arms=arms)


def test_the_best_of_both_kinds_stand_beside_the_baseline_in_the_report_s_order():
    assert shown.arms(made()) == ["a", "ce", "b", "e"]
    assert shown.arms(made(), 2) == ["ce", "b"]
    assert shown.best(made()) == ["ce", "a"]


def test_test_has_no_say():
    inputs = made()
    flipped = tuple(
        dataclasses.replace(
            arm,
            runs=tuple(dataclasses.replace(r, test_logits=-r.test_logits) for r in arm.runs),
        )
        for arm in inputs.arms
    )
    assert shown.arms(dataclasses.replace(inputs, arms=flipped)) == shown.arms(inputs)


def test_without_val_the_first_arms_stand_and_the_baseline_among_them():
    inputs = made()
    blind = tuple(
        dataclasses.replace(
            arm, runs=tuple(dataclasses.replace(r, val_logits=None) for r in arm.runs)
        )
        for arm in inputs.arms
    )
    data = dataclasses.replace(inputs.dataset, val_labels=None)
    changed = dataclasses.replace(inputs, arms=blind[::-1], dataset=data)
    assert shown.arms(changed) == ["e", "d", "c", "ce"] and shown.best(changed) == ["ce"]


def test_classes_are_the_rarest_first():
    assert shown.classes((400, 100, 50, 10)).tolist() == [3, 2, 1, 0]
    assert shown.classes(np.array([5, 5, 1]), 2).tolist() == [2, 0] and len(CLASSES) == 4

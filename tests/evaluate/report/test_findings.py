"""What report.json says class by class, at group level and of paired tests."""

import dataclasses

import numpy as np
import pytest
import sklearn.metrics as sk

from lt_jax.config import EvaluateConfig
from lt_jax.errors import UserError
from lt_jax.evaluate import metrics, report
from lt_jax.evaluate.statistics import hypothesis, multiplicity
from tests.evaluate.conftest import CLASSES, make_inputs


def with_groups(inputs, groups, **evaluate):
    dataset = dataclasses.replace(inputs.dataset, test_groups=groups)
    changed = dataclasses.replace(inputs.evaluate, **evaluate)
    return dataclasses.replace(inputs, dataset=dataset, evaluate=changed)


def two_classes(inputs, **evaluate):
    """The same runs with the last three classes as one."""
    join = lambda x: None if x is None else np.stack([x[:, 0], x[:, 1:].max(axis=1)], axis=1)
    data = inputs.dataset
    few = lambda labels: np.minimum(labels, 1)
    dataset = dataclasses.replace(
        data,
        classes=("benign", "malignant"),
        train_counts=(400, 160),
        groups={"head": (0,), "medium": (), "tail": (1,)},
        test_labels=few(data.test_labels),
        val_labels=few(data.val_labels),
        policy_val_labels=few(data.policy_val_labels),
    )
    arms = []
    for arm in inputs.arms:
        runs = tuple(
            dataclasses.replace(
                run,
                test_logits=join(run.test_logits),
                val_logits=join(run.val_logits),
                policy_val_logits=join(run.policy_val_logits),
                log_prior=np.log([0.6, 0.4]),
                shares=None,
            )
            for run in arm.runs
        )
        arms.append(dataclasses.replace(arm, runs=runs, doses=None, unmet=None))
    config = dataclasses.replace(inputs.evaluate, **evaluate)
    return dataclasses.replace(
        inputs, dataset=dataset, arms=tuple(arms), evaluate=config, pool=None, gallery=None
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def written(folder):
    return report.write(make_inputs(), folder)


def test_the_arms_table_lies_beside_the_report_for_who_writes_of_it(folder, written):
    found = written
    latex, markdown = ((folder / "tables" / f"arms.{kind}").read_text() for kind in ("tex", "md"))
    for text in (latex, markdown):
        assert found["dataset"]["name"] in text and "standard deviation over n seeds" in text
        for arm in found["arms"]:
            assert f"{arm['metrics']['balanced_accuracy']['mean']:.3f}" in text
    assert "\\caption{" in latex and latex.count("\\\\\n") == 1 + len(found["arms"])
    assert "| ce (baseline) |" in markdown


def mean_probabilities(inputs, i):
    runs = sorted(inputs.arms[i].runs, key=lambda run: run.seed)
    return np.mean([metrics.softmax(run.test_logits) for run in runs], axis=0)


def logits_of(name):
    arm = next(arm for arm in make_inputs().arms if arm.name == name)
    return [run.test_logits for run in sorted(arm.runs, key=lambda run: run.seed)]


def test_every_class_has_summaries_and_score_intervals(written):
    labels = make_inputs().dataset.test_labels
    for arm in written["arms"]:
        assert [entry["class"] for entry in arm["per_class"]] == list(CLASSES)
        assert arm["positive"] is None
        for c, entry in enumerate(arm["per_class"]):
            for name in metrics.PER_CLASS:
                cell = entry[name]
                assert cell["n"] == 3 == len(cell["values"]) and cell["std"] is not None
                assert cell["ci95"][0] <= cell["mean"] <= cell["ci95"][1]
            found = [
                sk.f1_score(labels, run.argmax(axis=1), labels=[c], average="macro")
                for run in logits_of(arm["name"])
            ]
            np.testing.assert_allclose(entry["f1"]["values"], found)
            low, high = entry["sensitivity_wilson95"]
            assert low < entry["sensitivity"]["mean"] < high
            np.testing.assert_allclose(
                entry["sensitivity"]["mean"], arm["recall_per_class"]["mean"][c]
            )
            low, high = entry["auroc_score95"]
            assert low < entry["auroc"]["mean"] < high
        labels = make_inputs().dataset.test_labels
        assert [e["images"] for e in arm["per_class"]] == np.bincount(labels).tolist()
        for name, (low, high) in arm["score_intervals"].items():
            assert low < arm["metrics"][name]["mean"] < high


def test_paired_tests_take_probabilities_averaged_over_seeds(written):
    inputs = make_inputs()
    labels, groups = inputs.dataset.test_labels, np.arange(120) // 2
    ce, bs = (mean_probabilities(inputs, i) for i in range(2))
    assert written["arms"][0]["paired_tests"] is None
    found = written["arms"][1]["paired_tests"]
    right = [p.argmax(axis=1) == labels for p in (bs, ce)]
    expected = hypothesis.mcnemar(*right, groups)
    got = found["mcnemar"]
    assert (got["first_only"], got["second_only"]) == (expected.first_only, expected.second_only)
    assert got["method"] == "groups" and got["groups"] == 60
    np.testing.assert_allclose(got["p"], expected.p)
    assert set(found["delong"]) == set(CLASSES)
    for c, name in enumerate(CLASSES):
        expected = hypothesis.delong(bs[:, c], ce[:, c], labels == c, groups)
        np.testing.assert_allclose(found["delong"][name]["p"], expected.p)
        np.testing.assert_allclose(found["delong"][name]["difference"], expected.difference)
    # One family of two arms and four classes.
    tests = [arm["paired_tests"]["delong"] for arm in written["arms"][1:]]
    p = [cell["p"] for test in tests for cell in test.values()]
    for name, adjust in (("p_holm", multiplicity.holm), ("p_bh", multiplicity.benjamini_hochberg)):
        got = [cell[name] for test in tests for cell in test.values()]
        np.testing.assert_allclose(got, adjust(p))


def test_pool_arms_are_tested_against_the_real_arm_too(written):
    assert [arm["paired_real_tests"] is None for arm in written["arms"]] == [True, True, False]
    found = written["arms"][2]["paired_real_tests"]["mcnemar"]
    assert found["p_holm"] == found["p"] == found["p_bh"]  # a family of one


def test_group_level_averages_images_and_leaves_mixed_groups_out(tmp_path):
    inputs = make_inputs()
    labels = inputs.dataset.test_labels
    mixed = sum(labels[2 * g] != labels[2 * g + 1] for g in range(60))
    returned = report.write(inputs, tmp_path)
    assert 0 < mixed < 60
    level = returned["group_level"]
    assert (level["groups"], level["left_out"]) == (60 - mixed, mixed)
    assert len(level["left_out_first"]) == min(5, mixed)
    means = mean_of_pairs(inputs)
    kept = np.array([g for g in range(60) if labels[2 * g] == labels[2 * g + 1]])
    found = returned["arms"][0]["metrics_by_group"]
    assert set(found) == set(metrics.METRICS)
    expected = [(m[kept].argmax(axis=1) == labels[2 * kept]).mean() for m in means]
    np.testing.assert_allclose(found["accuracy"]["values"], expected)
    assert found["accuracy"]["n"] == 3 and found["accuracy"]["ci95"] is not None


def mean_of_pairs(inputs):
    runs = sorted(inputs.arms[0].runs, key=lambda run: run.seed)
    return [metrics.softmax(run.test_logits).reshape(60, 2, -1).mean(axis=1) for run in runs]


def test_mixed_groups_can_be_an_error_before_anything_is_written(tmp_path, inputs):
    strict = with_groups(inputs, inputs.dataset.test_groups, mixed_groups="error")
    with pytest.raises(UserError, match=r"group 'g\d+': its 2 images have the labels"):
        report.write(strict, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_groups_of_one_image_have_no_level_of_their_own(tmp_path, inputs):
    alone = with_groups(inputs, np.arange(120), mcnemar="exact", interval="bca")
    returned = report.write(alone, tmp_path)
    assert returned["group_level"] is None and returned["arms"][0]["metrics_by_group"] is None
    assert returned["arms"][1]["paired_tests"]["mcnemar"]["method"] == "exact"
    assert returned["statistics"] == {
        "interval": "bca",
        "specificity": 0.9,
        "resamples": 200,
        "permutations": 200,
        "mcnemar": "exact",
        "bands": "percentile",
        "positive": None,
    }


def test_two_classes_have_a_positive_one(tmp_path, inputs):
    returned = report.write(two_classes(inputs), tmp_path / "second")
    named = report.write(two_classes(inputs, positive="benign"), tmp_path / "first")
    for found, name in ((returned, "malignant"), (named, "benign")):
        assert found["statistics"]["positive"] == name
        for arm in found["arms"]:
            assert arm["positive"]["class"] == name
            assert arm["positive"] in arm["per_class"]
        assert list(found["arms"][1]["paired_tests"]["delong"]) == [name]
    p = [r["arms"][1]["paired_tests"]["delong"] for r in (returned, named)]
    np.testing.assert_allclose(p[0]["malignant"]["p"], p[1]["benign"]["p"])


def test_a_positive_class_that_is_none_is_refused(tmp_path, inputs):
    with pytest.raises(UserError, match="positive: got 'cyst'; takes one of benign, malignant"):
        report.write(two_classes(inputs, positive="cyst"), tmp_path)
    evaluate = EvaluateConfig(baseline="ce", resamples=200, permutations=200, positive="nv")
    with pytest.raises(UserError, match="positive: got 'nv' with 4 classes"):
        report.write(dataclasses.replace(inputs, evaluate=evaluate), tmp_path)


def test_an_absent_class_one_seed_and_an_arm_alone(tmp_path):
    inputs = make_inputs(seeds=(0,))
    labels = np.where(inputs.dataset.test_labels == 3, 0, inputs.dataset.test_labels)
    dataset = dataclasses.replace(inputs.dataset, test_labels=labels)
    alone = dataclasses.replace(inputs, arms=inputs.arms[:1], dataset=dataset)
    arm = report.write(alone, tmp_path)["arms"][0]
    entry = arm["per_class"][3]
    assert entry["images"] == 0 and entry["auroc"]["mean"] is None
    assert entry["sensitivity_wilson95"] is None and entry["auroc_score95"] is None
    assert arm["per_class"][0]["auroc"]["std"] is None and arm["per_class"][0]["auroc"]["n"] == 1
    assert arm["paired_tests"] is None and arm["score_intervals"]["auroc_macro"] is not None

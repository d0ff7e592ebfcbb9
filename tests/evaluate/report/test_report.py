"""report.json against its schema, report.html against its promises."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest

from lt_jax.config import EvaluateConfig
from lt_jax.errors import UserError
from lt_jax.evaluate import metrics, report
from lt_jax.evaluate.report import compose, sections, summary
from tests.evaluate.conftest import CLASSES, make_inputs

ALWAYS = (
    "summary",
    "data",
    "arms",
    "paired",
    "classes",
    "calibration",
    "confusion",
    "pool",
    "mixing",
    "costs",
    "config",
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    return report.write(make_inputs(), out), out


def refuse_constant(name):
    raise AssertionError(f"{name} in strict JSON")


def test_json_is_strict_and_round_trips(written):
    returned, out = written
    text = (out / "report.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=refuse_constant) == returned
    assert report.read(out / "report.json") == returned
    assert returned["config"]["rate"] is None  # NaN in a config
    assert not list(out.rglob("*.partial"))


def test_json_has_the_schemas_keys(written):
    returned, _ = written
    top = {"version", "command", "config", "environment", "dataset", "pool", "arms"}
    assert top <= set(returned) and returned["version"] == 1
    assert set(returned["dataset"]) == {
        "name",
        "classes",
        "train_counts",
        "groups",
        "manifest_sha256",
        "protocol",
        "test_openings",
    }
    assert returned["dataset"]["groups"]["medium"] == [CLASSES[1], CLASSES[2]]
    assert set(returned["pool"]) == {
        "generated",
        "accepted",
        "rejected",
        "per_class",
        "fidelity",
        "memorization",
    }
    assert returned["pool"]["rejected"] == {"ood": 7, "label": 3, "memorised": 0}
    arm_keys = {
        "name",
        "controller",
        "loss",
        "seeds",
        "metrics",
        "recall_per_class",
        "paired",
        "ledger",
    }
    for arm in returned["arms"]:
        assert arm_keys <= set(arm)
        assert set(arm["metrics"]) == set(metrics.METRICS) == set(arm["metrics_logit_adjusted"])
        for value in arm["metrics"].values():
            assert set(value) == {"mean", "std", "n", "ci95", "values"}
        assert len(arm["recall_per_class"]["mean"]) == len(CLASSES)
        assert {"seconds", "images", "flops"} <= set(arm["ledger"])
    compared = returned["arms"][1]["paired"]
    assert compared["baseline"] == "ce"
    assert set(compared["balanced_accuracy"]) == {
        "difference",
        "ci95",
        "p",
        "p_holm",
        "p_bh",
        "score95",
        "n",
        "effect",
    }
    assert returned["arms"][0]["paired"] == {"baseline": "ce"}


def test_values_follow_the_seeds_in_ascending_order(written):
    returned, _ = written
    inputs = make_inputs()
    by_seed = {run.seed: run for run in inputs.arms[0].runs}
    arm = returned["arms"][0]
    assert arm["seeds"] == [0, 1, 2]
    for seed, value in zip(arm["seeds"], arm["metrics"]["accuracy"]["values"], strict=True):
        hits = by_seed[seed].test_logits.argmax(axis=1) == inputs.dataset.test_labels
        np.testing.assert_allclose(value, hits.mean())


def test_ledger_keeps_own_runs_apart_from_shared_stages(written):
    returned, _ = written
    plain, pooled = returned["arms"][0]["ledger"], returned["arms"][2]["ledger"]
    np.testing.assert_allclose(plain.pop("data_wait"), 1.2)
    assert plain.pop("flops_over_baseline") == 1  # a run's, of the baseline itself
    assert plain == {"seconds": 30.0, "images": 3000, "flops": 3e9, "relies_on": None}
    assert pooled["seconds"] == 30.0
    assert pooled["relies_on"] == {
        "stages": ["generator"],
        "seconds": 100.0,
        "images": 5000,
        "flops": 1e12,
    }


def test_html_is_self_contained_and_whole(written):
    _, out = written
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "http" not in html and "<script" not in html and "@import" not in html
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', html)
    embedded = ("#", "data:image/png;base64,", "data:text/csv;base64,")
    assert sources and all(s.startswith(embedded) for s in sources)
    for section in ALWAYS:
        assert f'<h2 id="{section}">' in html and f'href="#{section}"' in html
    assert html.count("<img") == len(list((out / "figures").glob("*.png"))) == 16
    assert "bkl &amp; &lt;b&gt;" in html and "<b>" not in html
    assert "ISIC_0001.jpg: truncated" in html
    assert "viewport" in html and "color-scheme: light dark" in html


def test_the_summary_says_whether_an_arm_beats_the_baseline(written):
    returned, _ = written
    assert "1 of the 2 other arms beats it significantly" in returned["summary"]
    assert "balanced softmax (balanced_softmax) reaches" in returned["summary"]


def test_the_summary_says_plainly_that_no_arm_does(tmp_path, inputs):
    weak = tuple(arm for arm in inputs.arms if arm.name != "balanced_softmax")
    returned = report.write(dataclasses.replace(inputs, arms=weak), tmp_path)
    assert "The only other arm does not beat it significantly" in returned["summary"]


def test_the_terminal_table_comes_from_the_json(written):
    returned, _ = written
    table = report.text_table(json.loads(json.dumps(returned)))
    assert "balanced_softmax" in table and "(n=3)" in table and "±" in table
    head, _, *rows = table.splitlines()
    assert [row.split()[0] for row in rows[:3]] == ["ce", "balanced_softmax", "synthetic"]
    assert "(baseline)" in rows[0] and "(baseline)" not in table.replace(rows[0], "")
    assert head.endswith("Balanced acc. minus ce")
    paired = returned["arms"][1]["paired"]["balanced_accuracy"]
    low, high = paired["ci95"]
    assert f"{paired['difference']:+.3f} [{low:.3f}, {high:.3f}]" in rows[1]
    assert "Holm p" in rows[1] and "Holm" not in rows[0]
    assert "x FLOPs" not in table  # all take the same


def test_arms_of_other_compute_are_marked_wherever_arms_are_listed(tmp_path, inputs):
    more = lambda arm, times: dataclasses.replace(
        arm, runs=tuple(dataclasses.replace(run, flops=times * run.flops) for run in arm.runs)
    )
    ce, bs, synthetic = inputs.arms
    returned = report.write(
        dataclasses.replace(inputs, arms=(ce, more(bs, 1.5), more(synthetic, 1.04))), tmp_path
    )
    tex, md, html = (
        (tmp_path / name).read_text()
        for name in ("tables/arms.tex", "tables/arms.md", "report.html")
    )
    for text in (tex, md, html, report.text_table(returned)):
        assert "1.5 x FLOPs" in text and "1.04 x FLOPs" not in text
    assert "balanced\\_softmax (1.5 x FLOPs) &" in tex and "where they differ by more" in md
    assert "not one at equal compute" in html


def test_pool_arms_are_compared_with_the_real_arm_that_is_best_on_val(written):
    returned, out = written
    real = {a["name"]: a["val_balanced_accuracy"]["mean"] for a in returned["arms"][:2]}
    assert max(real, key=real.get) == "balanced_softmax"
    assert [("paired_real" in arm) for arm in returned["arms"]] == [False, False, True]
    against = returned["arms"][2]["paired_real"]
    assert against["baseline"] == "balanced_softmax"
    means = [arm["metrics"]["balanced_accuracy"]["mean"] for arm in returned["arms"]]
    np.testing.assert_allclose(against["balanced_accuracy"]["difference"], means[2] - means[1])
    # The only pool arm: a Holm family of one.
    assert against["balanced_accuracy"]["p_holm"] == against["balanced_accuracy"]["p"]
    assert "The only pool arm does not beat balanced_softmax" in returned["summary"]
    assert "Pool arms against balanced_softmax" in (out / "report.html").read_text()


def test_the_real_arm_to_beat_is_not_chosen_by_test(inputs):
    # "ce" is given the better arm's logits on val alone: it is then the one to beat.
    ce, bs, pooled = inputs.arms
    runs = tuple(
        dataclasses.replace(
            run, val_logits=5.0 * np.eye(4, dtype=np.float32)[inputs.dataset.val_labels]
        )
        for run in ce.runs
    )
    changed = dataclasses.replace(inputs, arms=(dataclasses.replace(ce, runs=runs), bs, pooled))
    assert summary.rival(inputs) == ("balanced_softmax", ["synthetic"])
    assert summary.rival(changed) == ("ce", ["synthetic"])
    blind = tuple(dataclasses.replace(run, val_logits=None) for run in ce.runs)
    without = dataclasses.replace(inputs, arms=(dataclasses.replace(ce, runs=blind), bs, pooled))
    assert summary.rival(without)[0] is None
    assert summary.rival(dataclasses.replace(inputs, arms=(ce, bs)))[0] is None


def test_the_page_shows_doses_what_was_lacking_and_the_wait_for_data(written):
    returned, out = written
    html = (out / "report.html").read_text(encoding="utf-8")
    assert returned["arms"][2]["unmet"] == [0, 0, 0, 37]
    assert "1.00<small>share 0.41, 37 lacking</small>" in html  # over rounds and seeds
    assert "0.20<small>share 0.21</small>" in html
    assert html.count("lacking</small>") == 1
    assert html.count("<td>4.0%</td>") == 3


def test_the_protocol_is_a_table_and_skipped_images_are_told_once(tmp_path, inputs):
    protocol = {
        "source": "toy",
        "skipped": ["ISIC_0001.jpg: truncated"],
        "split": {"test": 0.24, "seed": 0},
        "near_duplicates": {"across_splits": [{"ids": ["a", "b"]}], "mode": None},
        "dropped_by_profile": [0, 32],
    }
    dataset = dataclasses.replace(inputs.dataset, protocol=json.dumps(protocol))
    report.write(dataclasses.replace(inputs, dataset=dataset), tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert html.count("ISIC_0001.jpg") == 1 and "{&#34;" not in html and "{'" not in html
    for name, value in (
        ("split: test", "0.24"),
        ("near duplicates: across splits", "ids: a, b"),
        ("near duplicates: mode", "none"),
        ("dropped by profile", "0, 32"),
    ):
        assert f'<th>{name}</th><td class="long">{value}</td>' in html
    assert sections.protocol("grouped by lesion") == []


def test_classes_with_few_test_groups_are_named(tmp_path, inputs):
    labels = np.where(inputs.dataset.test_labels == 3, 0, inputs.dataset.test_labels)
    labels[:4] = 3  # the first four images are of two groups
    dataset = dataclasses.replace(inputs.dataset, test_labels=labels)
    returned = report.write(dataclasses.replace(inputs, dataset=dataset), tmp_path)
    assert returned["test_groups_per_class"][3] == 2
    assert "Few test groups: df (2)." in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_one_seed_without_pool_gallery_curves_or_val(tmp_path):
    inputs = make_inputs(seeds=(0,), pool=None, gallery=None, costs=(), skipped=())
    inputs = dataclasses.replace(
        inputs,
        dataset=dataclasses.replace(inputs.dataset, val_labels=None),
        arms=tuple(
            dataclasses.replace(
                arm,
                runs=tuple(
                    dataclasses.replace(r, curves=(), val_logits=None, flops=None) for r in arm.runs
                ),
            )
            for arm in inputs.arms
        ),
    )
    returned = report.write(inputs, tmp_path)
    arm = returned["arms"][0]
    assert arm["metrics"]["accuracy"]["std"] is None and arm["metrics"]["accuracy"]["n"] == 1
    assert arm["recall_per_class"]["std"] == [None] * len(CLASSES)
    assert arm["ledger"]["flops"] is None and arm["val_balanced_accuracy"] is None
    assert returned["pool"]["generated"] == 0
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "n=1*" in html and "one seed" in html and "The pool is empty" in html
    assert "No curves were recorded" in html and "No images were generated" in html
    assert "(n=1*)" in report.text_table(returned)


def test_an_arm_alone_and_an_absent_class(tmp_path, inputs):
    labels = np.where(inputs.dataset.test_labels == 3, 0, inputs.dataset.test_labels)
    alone = dataclasses.replace(
        inputs,
        arms=inputs.arms[:1],
        dataset=dataclasses.replace(inputs.dataset, test_labels=labels),
    )
    returned = report.write(alone, tmp_path)
    assert returned["absent_test_classes"] == ["df"]
    assert returned["arms"][0]["metrics"]["recall_tail"]["mean"] is None
    assert returned["arms"][0]["recall_per_class"]["mean"][3] is None
    assert "no other arm" in returned["summary"]
    assert "left out of macro averages: df" in (tmp_path / "report.html").read_text()


def test_a_class_missing_from_all_predictions_has_recall_zero(tmp_path, inputs):
    runs = []
    for run in inputs.arms[0].runs:
        logits = run.test_logits.copy()
        logits[:, 3] = -50.0
        runs.append(dataclasses.replace(run, test_logits=logits))
    arm = dataclasses.replace(inputs.arms[0], runs=tuple(runs))
    returned = report.write(dataclasses.replace(inputs, arms=(arm, inputs.arms[1])), tmp_path)
    assert returned["arms"][0]["metrics"]["recall_tail"]["mean"] == 0.0


def test_logit_adjustment_enters_with_tau_and_prior(inputs):
    adjusted = compose._analyse(inputs, tau=1.0, permutations=0)["ce"].summaries["accuracy"]
    arm = inputs.arms[0]
    expected = [
        ((run.test_logits - run.log_prior).argmax(axis=1) == inputs.dataset.test_labels).mean()
        for run in sorted(arm.runs, key=lambda r: r.seed)
    ]
    np.testing.assert_allclose(adjusted.values, expected)


def test_each_run_is_adjusted_by_the_prior_of_its_own_draws(inputs):
    arm = inputs.arms[0]
    tilted = np.array([0.0, 0.0, 0.0, -50.0])  # of one seed alone: all there becomes class 3
    runs = tuple(
        dataclasses.replace(run, log_prior=tilted) if run.seed == 1 else run for run in arm.runs
    )
    changed = dataclasses.replace(
        inputs, arms=(dataclasses.replace(arm, runs=runs), *inputs.arms[1:])
    )
    before, after = (
        compose._analyse(i, tau=1.0, permutations=0)["ce"].summaries["accuracy"].values
        for i in (inputs, changed)
    )
    assert after[1] == (inputs.dataset.test_labels == 3).mean() != before[1]
    assert (after[0], after[2]) == (before[0], before[2])


def test_nan_logits_name_arm_seed_and_row_before_anything_is_written(tmp_path, inputs):
    inputs.arms[1].runs[0].test_logits[7, 0] = math.nan
    with pytest.raises(UserError, match=r"arm 'balanced_softmax', seed 2, row 7"):
        report.write(inputs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: {"evaluate": EvaluateConfig(baseline="nope")}, r"baseline: got 'nope'.*'ce'"),
        (lambda i: {"environment": {"python": "3"}}, "environment: missing jax"),
        (lambda i: {"arms": (i.arms[0], i.arms[0])}, "distinct"),
        (lambda i: {"arms": (dataclasses.replace(i.arms[0], runs=()),)}, "one run or more"),
        (lambda i: {"arms": (dataclasses.replace(i.arms[0], unmet=[1]),)}, "unmet of 1 for 4"),
        (lambda i: {"dataset": dataclasses.replace(i.dataset, train_counts=(1,))}, "train_counts"),
        (lambda i: {"dataset": dataclasses.replace(i.dataset, test_groups=["a"])}, "test_groups"),
        (
            lambda i: {
                "dataset": dataclasses.replace(
                    i.dataset, groups={"head": (0,), "medium": (), "tail": (3,)}
                )
            },
            "each of 0 to 3 once",
        ),
        (
            lambda i: {
                "arms": (
                    dataclasses.replace(
                        i.arms[0],
                        runs=(
                            dataclasses.replace(
                                i.arms[0].runs[0], test_logits=np.zeros((3, 4), np.float32)
                            ),
                        ),
                    ),
                )
            },
            r"arm 'ce', seed 2: test logits \(3, 4\)",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(inputs, change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(inputs, **change(inputs))


def test_a_damaged_or_foreign_report_is_refused(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="not JSON"):
        report.read(path)
    path.write_text('{"version": 9}', encoding="utf-8")
    with pytest.raises(UserError, match="version 9"):
        report.read(path)

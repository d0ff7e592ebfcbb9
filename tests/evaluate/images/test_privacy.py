"""The privacy audit: copies and fresh images, references of each statistic, bad input."""

import json
import math

import numpy as np
import pytest
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score

from lt_jax.evaluate.images import privacy
from lt_jax.evaluate.images.privacy import PrivacyError
from lt_jax.evaluate.statistics import intervals, multiplicity

CLASSES = ("a", "b", "c")
TIMES = (0.1, 0.4, 0.8)


def likeness(seed, n=300, m=60, shift=0.0):
    """Arguments of `nearness`: synthetic images as near to train as val ones, or nearer."""
    rng = np.random.default_rng(seed)
    labels, val_labels = rng.integers(0, 2, n), np.repeat([0, 1], m // 2)
    draw = lambda size, labels: np.clip(0.5 + 0.1 * rng.normal(size=size) + 0.2 * labels, 0, 1)
    synthetic = np.clip(draw(n, labels) + shift, 0, 1)
    val = draw(m, val_labels)
    return {"ms_ssim": synthetic}, labels, {"ms_ssim": val}, val_labels, np.arange(m)


def losses(seed, n=120, gap=0.0):
    """Log-normal losses of members and non-members, members' lower by `gap` at the second time."""
    rng = np.random.default_rng(seed)
    member = np.arange(2 * n) < n
    logs = rng.normal(size=(2 * n, len(TIMES)))
    logs[:, 1] -= gap * member
    return np.exp(logs), member, np.tile(np.arange(n) % 3, 2), np.arange(2 * n)


def chance(k, n, m):
    """That k of n fresh images or more are beyond the greatest of m: the k greatest of all are of
    the n."""
    return math.prod((n - i) / (n + m - i) for i in range(k))


def attack(*arguments, **keywords):
    return privacy.attack(*arguments, TIMES, CLASSES, **keywords)


def test_nearness_has_scipy_s_statistics_class_by_class():
    synthetic, labels, val, val_labels, groups = likeness(0)
    found = privacy.nearness(synthetic, labels, val, val_labels, groups, CLASSES)["ms_ssim"]
    for k in (0, 1):
        entry = found["classes"][k]
        x, y = synthetic["ms_ssim"][labels == k], val["ms_ssim"][val_labels == k]
        reference = ks_2samp(x, y)
        assert entry["ks"]["statistic"] == pytest.approx(reference.statistic)
        assert entry["ks"]["p"] == pytest.approx(reference.pvalue)
        assert entry["synthetic"]["max"] == x.max() and entry["val"]["median"] == np.median(y)
        count = sum(value > max(y) for value in x)  # a naive loop
        assert entry["beyond"]["count"] == count
        assert entry["beyond"]["expected"] == pytest.approx(1 / 31)
        assert entry["beyond"]["p"] == pytest.approx(chance(count, len(x), 30))
        assert entry["beyond"]["p"] <= entry["beyond"]["p_holm"]
        assert sum(entry["synthetic"]["histogram"]) == len(x)
    assert (
        found["classes"][2]["ks"] is None and "0 synthetic" in found["classes"][2]["reasons"]["ks"]
    )
    beyond = [e["beyond"] for e in found["classes"][:2]]
    assert found["overall"]["beyond"]["count"] == sum(b["count"] for b in beyond)
    assert found["overall"]["n"] == found["overall"]["n_val"] == 60  # as many of each class
    json.dumps(found, allow_nan=False)


def test_copies_are_beyond_val_and_fresh_images_are_not():
    fresh = privacy.nearness(*likeness(1), CLASSES)["ms_ssim"]
    assert fresh["overall"]["ks"]["p"] > 0.01
    low, high = fresh["overall"]["beyond"]["expected95"]
    assert low <= fresh["overall"]["beyond"]["share"] <= high
    assert fresh["overall"]["beyond"]["p"] > 0.05
    arguments = likeness(1)
    copies = privacy.nearness({"ms_ssim": np.full(300, 1.0)}, *arguments[1:], CLASSES)["ms_ssim"]
    assert copies["overall"]["beyond"]["share"] == 1 and copies["overall"]["beyond"]["p"] < 1e-12
    assert copies["overall"]["ks"]["statistic"] == 1
    assert copies["classes"][0]["ks"]["p_nearer"] < 1e-10
    assert copies["classes"][0]["ks"]["p"] <= copies["classes"][0]["ks"]["p_holm"]
    further = privacy.nearness(*likeness(1, shift=-0.3), CLASSES)["ms_ssim"]
    assert further["overall"]["ks"]["p"] < 1e-6 < further["overall"]["ks"]["p_nearer"]


def test_a_pool_composed_otherwise_is_not_taken_for_nearer():
    """Class b lies nearer to train; a pool of b mostly is compared with val class by class."""
    rng = np.random.default_rng(2)
    labels, val_labels = (rng.random(1000) < 0.9).astype(int), np.repeat([0, 1], 40)
    values, val = (0.4 * k + 0.1 * rng.random(len(k)) for k in (labels, val_labels))
    measured = {"cosine": values}, labels, {"cosine": val}, val_labels, np.arange(80), CLASSES
    found = privacy.nearness(*measured)["cosine"]
    assert found["overall"]["ks"]["p"] > 0.01 > ks_2samp(values, val).pvalue


def test_images_of_one_patient_count_once():
    synthetic, labels, val, val_labels, _ = likeness(3)
    groups = np.repeat(np.arange(30), 2)  # two images each
    found = privacy.nearness(synthetic, labels, val, val_labels, groups, CLASSES)["ms_ssim"]
    entry = found["classes"][0]
    assert entry["ks"]["n_val"] == entry["beyond"]["n_val"] == 15 and entry["n_val"] == 30
    assert entry["beyond"]["expected"] == pytest.approx(1 / 16)


@pytest.mark.parametrize("a_group", [1, 3])
def test_fresh_images_beyond_val_are_seldom_taken_for_copies(a_group):
    """Of 300 fresh sets; images of a group alike. Wilson's interval misses the expected share in a
    third of them, since all images are held against one and the same val image."""
    rng = np.random.default_rng(8)
    labels, val_labels = np.repeat([0, 1], [50, 70]), np.repeat([0, 1], 12 * a_group)
    groups = np.repeat(np.arange(24), a_group)
    rejected, within, by_wilson = [], [], []
    for _ in range(300):
        val = {"cosine": rng.random(24)[groups]}
        synthetic = {"cosine": rng.random(120)}
        found = privacy.nearness(synthetic, labels, val, val_labels, groups, CLASSES)["cosine"]
        told = [found["overall"]["beyond"], *(found["classes"][k]["beyond"] for k in (0, 1))]
        rejected.append([beyond["p"] < 0.05 for beyond in told])
        low, high = zip(*(beyond["expected95"] for beyond in told), strict=True)
        share = np.array([beyond["share"] for beyond in told])
        within.append((low <= share) & (share <= high))
        ends = intervals.wilson(share[0], 120)
        by_wilson.append(ends[0] <= told[0]["expected"] <= ends[1])
    assert (np.mean(rejected, axis=0) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)).all()
    assert (np.mean(within, axis=0) > 0.95 - 3 * np.sqrt(0.05 * 0.95 / 300)).all()
    assert np.mean(by_wilson) < 0.8


def test_classes_together_add_up_their_counts():
    """By all pairs of counts of two classes."""
    sizes = [(5, 3), (4, 7)]
    chances = [[chance(k, *s) - chance(k + 1, *s) for k in range(s[0] + 1)] for s in sizes]
    for counts in ((0, 0), (2, 1), (5, 4)):
        found = privacy._beyond([(k, *s) for k, s in zip(counts, sizes, strict=True)])
        expected = sum(
            a * b
            for i, a in enumerate(chances[0])
            for j, b in enumerate(chances[1])
            if i + j >= sum(counts)
        )
        assert found["p"] == pytest.approx(expected)
        assert found["expected"] == pytest.approx((5 / 4 + 4 / 8) / 9)


def test_nothing_to_compare_is_an_error():
    synthetic, labels, val, val_labels, groups = likeness(4)
    nothing = {"ms_ssim": np.full(300, np.nan)}
    with pytest.raises(PrivacyError, match="0 synthetic and 60 val"):
        privacy.nearness(nothing, labels, val, val_labels, groups, CLASSES)
    with pytest.raises(PrivacyError, match=r"config\.data\.split\.val"):
        privacy.nearness(
            synthetic, labels, {"ms_ssim": np.zeros(0)}, val_labels[:0], groups[:0], CLASSES
        )


def test_areas_are_scikit_learn_s():
    x, member, labels, groups = losses(0, gap=0.7)
    found = attack(x, member, labels, groups)
    for j, entry in enumerate(found["times"]):
        assert entry["auroc"] == pytest.approx(roc_auc_score(member, -x[:, j]))
        assert entry["median"]["member"] == np.median(x[member, j])
        assert entry["roc"]["fpr"][0] == 0 and entry["roc"]["tpr"][-1] == 1
    logs = np.log(x)
    mean = -((logs - logs.mean(0)) / logs.std(0)).mean(1)
    assert found["mean"]["auroc"] == pytest.approx(roc_auc_score(member, mean))
    own = labels == 1
    assert found["per_class"][1]["auroc"] == pytest.approx(roc_auc_score(member[own], mean[own]))
    assert found["members"] == found["non_members"] == 120
    attackers = [found["mean"], found["calibrated"]]
    for family in (found["times"], attackers, found["per_class"]):
        assert [e["p_holm"] for e in family] == multiplicity.holm([e["p"] for e in family])
    json.dumps(found, allow_nan=False)


def test_who_was_never_seen_is_not_told_apart():
    """Without a difference attackers are at 1/2, in the mean over sets and by their intervals."""
    names = ("mean", "calibrated")
    areas = {name: [] for name in names}
    missed = 0
    for seed in range(5):
        found = attack(*losses(seed, n=50))
        for name in names:
            areas[name].append(found[name]["auroc"])
            missed += not found[name]["ci95"][0] <= 0.5 <= found[name]["ci95"][1]
    for name in names:
        assert abs(np.mean(areas[name]) - 0.5) < 4 * np.std(areas[name]) / np.sqrt(5), name
    assert missed <= 3  # of 10, 5% each


def test_the_learned_attacker_is_judged_fold_by_fold():
    """Its curve has its area; too few non-members in a fold for 1% are told."""
    found = attack(*losses(5, gap=1.0))["calibrated"]
    area = np.trapezoid(found["roc"]["tpr"], found["roc"]["fpr"])
    assert area == pytest.approx(found["auroc"], abs=1e-9)
    assert "24 non-members in a fold" in found["tpr"]["reason"] and not found["tpr"]["resolved"]


def test_the_learned_attacker_trusts_the_time_that_tells():
    """Two times of noise hide it from their mean."""
    found = attack(*losses(5, gap=2.0))
    assert found["calibrated"]["auroc"] > found["mean"]["auroc"] + 0.05
    assert found["calibrated"]["auroc"] > 0.88
    assert found["times"][1]["p_holm"] < 1e-6 and found["times"][0]["p_holm"] > 0.01


def test_few_images_and_classes_without_a_side_are_told():
    x, member, labels, groups = losses(6, n=6)
    labels = np.where(member, labels, 0)  # non-members of the first class alone
    found = attack(x, member, labels, groups)
    assert found["calibrated"] is None and "groups of both kinds" in found["reasons"]["calibrated"]
    assert "0 non-members" in found["per_class"][2]["reason"]
    json.dumps(found, allow_nan=False)


def test_bad_losses_are_refused():
    x, member, labels, groups = losses(7, n=10)
    with pytest.raises(PrivacyError, match="20 members and 0 non-members"):
        attack(x, np.ones(20, bool), labels, groups)
    x[3, 1] = np.nan
    with pytest.raises(PrivacyError, match=r"image 3 at time 0\.4"):
        attack(x, member, labels, groups)
    with pytest.raises(PrivacyError, match="one of each image at each time"):
        attack(x[:, :2], member, labels, groups)

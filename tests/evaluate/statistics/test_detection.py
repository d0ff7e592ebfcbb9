"""Average precision equals pycocotools, repeated images included; intervals, tests, conventions."""

import dataclasses

import numpy as np
import pytest

from lt_jax.config import EvaluateConfig
from lt_jax.errors import UserError
from lt_jax.evaluate.metrics import average_precision as ap
from lt_jax.evaluate.report import detection_page, figures
from lt_jax.evaluate.statistics import detection, tables

N = 30
EVALUATE = EvaluateConfig(resamples=200, permutations=199)


def lesions_of(rng, classes=1):
    """No, one or several lesions in each of N images."""
    lists = []
    for _ in range(N):
        count = rng.choice(3, p=[0.2, 0.6, 0.2])
        low = rng.uniform(0, 0.6, (count, 2))
        held = np.concatenate([low, low + rng.uniform(0.1, 0.4, (count, 2))], -1)
        lists.append([tuple(box) for box in held.tolist()])
    labels = rng.integers(0, classes, N).astype(np.int32)
    return ap.Lesions(lists, labels, classes, 0.05)


def found_of(rng, lesions, skill=0.7, ties=False, most=5):
    """Detections, a part of them near lesions; best first in each image."""
    boxes = np.zeros((N, most, 4), np.float32)
    scores, labels = np.zeros((N, most), np.float32), np.zeros((N, most), np.int32)
    for i in range(N):
        count = rng.integers(0, most + 1)
        drawn = np.sort(rng.permutation(9)[:count] + 1)[::-1] / 10
        scores[i, :count] = drawn if ties else np.sort(rng.random(count))[::-1]
        for j in range(count):
            low = rng.uniform(0, 0.6, 2)
            box = np.concatenate([low, low + rng.uniform(0.1, 0.4, 2)])
            labels[i, j] = rng.integers(lesions.classes)
            if lesions.boxes[i] and rng.random() < skill:
                box = np.array(lesions.boxes[i][rng.integers(len(lesions.boxes[i]))])
                box = np.sort((box + rng.normal(0, 0.03, 4)).reshape(2, 2), axis=0).ravel()
                labels[i, j] = lesions.labels[i]
            boxes[i, j] = box
    return ap.Found(boxes, scores, labels)


def repeated(found, lesions, times):
    rows = np.repeat(np.arange(N), times)
    return (
        ap.Found(found.boxes[rows], found.scores[rows], found.labels[rows]),
        dataclasses.replace(
            lesions, boxes=[lesions.boxes[i] for i in rows], labels=lesions.labels[rows]
        ),
    )


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("classes", [1, 3])
def test_weights_are_repeated_images(classes, ties):
    rng = np.random.default_rng([classes, ties])
    lesions = lesions_of(rng, classes)
    found = found_of(rng, lesions, ties=ties)
    matched, values = ap.match(found, lesions)
    assert 0 < values["ap"] < values["ap50"] < 1 and 0 < values["ap50_small"] < 1
    alone = ap.weighted(matched, np.ones((N, 1)))[:, 0]
    np.testing.assert_allclose(alone, [values[name] for name in ap.METRICS], rtol=1e-12)
    times = rng.integers(0, 4, (N, 4))
    weighed = ap.weighted(matched, times.astype(float))
    for r in range(4):
        copies = ap.match(*repeated(found, lesions, times[:, r]))[1]
        np.testing.assert_allclose(weighed[:, r], [copies[name] for name in ap.METRICS], rtol=1e-12)
    # The size of the weights means nothing, also where they are no whole numbers; but a recall that
    # is one of the 101 points is then reached, which pycocotools leaves to rounding.
    np.testing.assert_allclose(ap.weighted(matched, times * 1.37), weighed, atol=1 / 101)


def test_by_hand():
    """Three lesions; found, missed by a false positive before it, and not at all."""
    lesion = (0.2, 0.2, 0.6, 0.6)
    lesions = ap.Lesions([[lesion]] * 3, np.zeros(3, np.int32), 1, 1.0)
    boxes = np.zeros((3, 2, 4), np.float32)
    boxes[0, 0], boxes[1, 0], boxes[1, 1] = lesion, (0.7, 0.7, 0.9, 0.9), lesion
    scores = np.array([[0.9, 0], [0.8, 0.7], [0, 0]], np.float32)
    matched, values = ap.match(ap.Found(boxes, scores, np.zeros((3, 2), np.int32)), lesions)
    # Precision 1 up to recall 1/3 (34 of 101 points), 2/3 up to 2/3 (33 more), then 0.
    assert values["ap50"] == pytest.approx((34 + 33 * 2 / 3) / 101)
    curve = ap.froc(matched, np.ones((3, 1)))[:, 0]
    # One false positive in three images: below 1/3 an image there is only what comes before it.
    expected = [1 / 3 if most < 1 / 3 else 2 / 3 for most in ap.FALSE_POSITIVES]
    np.testing.assert_allclose(curve, expected)


def test_a_lesion_found_twice_is_a_false_positive():
    lesion = (0.2, 0.2, 0.6, 0.6)
    lesions = ap.Lesions([[lesion]], np.zeros(1, np.int32), 1, 1.0)
    twice = ap.Found(np.float32([[lesion] * 2]), np.float32([[0.9, 0.9]]), np.zeros((1, 2), int))
    matched, values = ap.match(twice, lesions)
    assert matched.all[0].hit[0].tolist() == [True, False] and values["ap50"] > 0.999


def test_small_lesions_leave_larger_ones_out():
    small, large = (0.1, 0.1, 0.2, 0.2), (0.3, 0.3, 0.9, 0.9)
    lesions = ap.Lesions([[small], [large]], np.zeros(2, np.int32), 1, 0.05)
    boxes = np.float32([[small, (0.6, 0.6, 0.7, 0.7)], [large, (0.0, 0.5, 0.9, 0.9)]])
    scores = np.float32([[0.5, 0.1], [0.9, 0.8]])
    values = ap.match(ap.Found(boxes, scores, np.zeros((2, 2), int)), lesions)[1]
    # The large lesion, what meets it, and what is as large and meets none do not count.
    assert values["ap50_small"] > 0.999
    none = dataclasses.replace(lesions, small_area=0.001)
    assert np.isnan(ap.match(ap.Found(boxes, scores, np.zeros((2, 2), int)), none)[1]["ap_small"])


def test_no_detection_no_lesion():
    rng = np.random.default_rng(0)
    lesions = lesions_of(rng)
    nothing = ap.Found(
        np.zeros((N, 4, 4), np.float32), np.zeros((N, 4), np.float32), np.zeros((N, 4), np.int32)
    )
    matched, values = ap.match(nothing, lesions)
    assert values == dict.fromkeys(ap.METRICS, 0.0)
    assert not ap.weighted(matched, np.ones((N, 2))).any()
    assert not ap.froc(matched, np.ones((N, 2))).any()
    healthy = dataclasses.replace(lesions, boxes=[()] * N)
    matched, values = ap.match(found_of(rng, lesions), healthy)
    assert np.isnan(list(values.values())).all()
    assert np.isnan(ap.weighted(matched, np.ones((N, 2)))).all()
    assert np.isnan(ap.froc(matched, np.ones((N, 2)))).all()


def test_a_resample_without_a_classes_lesions_leaves_it_out():
    rng = np.random.default_rng(5)
    lesions = lesions_of(rng, 2)
    matched, _ = ap.match(found_of(rng, lesions), lesions)
    first = (lesions.labels == 0).astype(float)[:, None]
    alone = dataclasses.replace(matched, all=matched.all[:1], small=matched.small[:1])
    np.testing.assert_allclose(ap.weighted(matched, first), ap.weighted(alone, first))


def test_bad_input_is_refused():
    rng = np.random.default_rng(0)
    lesions = lesions_of(rng)
    found = found_of(rng, lesions)
    broken = found.scores.copy()
    broken[3, 0] = np.nan
    with pytest.raises(ap.DetectionError, match="image 3"):
        ap.match(dataclasses.replace(found, scores=broken), lesions)
    fewer = dataclasses.replace(lesions, boxes=lesions.boxes[1:], labels=lesions.labels[1:])
    with pytest.raises(ap.DetectionError, match="same images"):
        ap.match(found, fewer)
    with pytest.raises(ap.DetectionError, match="no box"):
        ap.small_area([(), ()], 0.3)
    assert ap.small_area(
        [((0, 0, 0.1, 0.1),), ((0, 0, 0.2, 0.1), (0, 0, 1, 1))], 0.5
    ) == pytest.approx(0.02)


def test_two_runs_as_one_weigh_like_each():
    rng = np.random.default_rng(2)
    lesions = lesions_of(rng)
    first, second = (ap.match(found_of(rng, lesions, ties=True), lesions)[0] for _ in range(2))
    both = ap.together(first, second)
    weights = rng.integers(0, 3, (N, 3)).astype(float)
    none = np.zeros_like(weights)
    for run, halves in ((first, (weights, none)), (second, (none, weights))):
        np.testing.assert_allclose(
            ap.weighted(both, np.concatenate(halves)), ap.weighted(run, weights), rtol=1e-12
        )


def inputs(skills=(("real", 0.5), ("mixed", 0.95), ("same", 0.5)), seeds=(0, 1, 2)):
    lesions = lesions_of(np.random.default_rng(9))
    arms = []
    for name, skill in skills:
        runs = [
            detection.Run(
                seed,
                found_of(np.random.default_rng([seed, int(skill * 100)]), lesions, skill),
                1.5,
                10,
            )
            for seed in seeds
        ]
        arms.append(detection.Arm(name, "real", tuple(runs)))
    return detection.Detection(
        arms=tuple(arms),
        baseline="real",
        lesions=lesions,
        labels=np.arange(N) % 2,
        groups=[f"g{i // 2 * 2 + i % 2}" for i in range(N)],
        classes=2,
        small_part=0.3,
    )


@pytest.fixture(scope="module")
def written():
    return detection.summary(inputs(), EVALUATE)


def test_summaries_hold_pycocotools_values_with_intervals(written):
    given = inputs()
    for arm, told in zip(given.arms, written["arms"], strict=True):
        values = [ap.match(run.found, given.lesions)[1] for run in arm.runs]
        for metric in ap.METRICS:
            cell = told["metrics"][metric]
            assert cell["values"] == [own[metric] for own in values] and cell["n"] == 3
            low, high = cell["ci95"]
            assert low < cell["mean"] < high
        sensitivities = [cell["mean"] for cell in told["froc"]]
        assert sensitivities == sorted(sensitivities) and len(sensitivities) == 7
        assert told["ledger"] == {"seconds": 4.5, "images": 30, "flops": None}


def test_a_better_arm_is_told_from_chance_and_the_same_one_is_not(written):
    real, mixed, same = written["arms"]
    assert set(real["paired"]) == {"baseline"}
    better = mixed["paired"]["ap50"]
    assert better["difference"] == pytest.approx(
        mixed["metrics"]["ap50"]["mean"] - real["metrics"]["ap50"]["mean"]
    )
    assert better["p"] == 1 / 200 and better["p_holm"] == 2 / 200 and better["ci95"][0] > 0
    equal = same["paired"]["ap50"]
    assert equal["difference"] == 0 and equal["p"] == 1 and equal["ci95"] == [0, 0]


def test_table_section_and_figures_read_the_summary(written):
    text = tables.to_text(detection_page.table(written))
    assert "real (baseline)" in text and "(n=3)" in text
    shown = detection_page.section(written)
    assert len(shown["rows"]) == 3 and len(shown["paired"]) == 2 and not shown["one_seed"]
    drawn = {made.name: made for made in detection_page.pictures(written)}
    assert set(drawn) == {"detection_precision", "detection_froc"}
    froc = drawn["detection_froc"].figure.axes[0]
    for arm in written["arms"]:
        line = next(one for one in froc.lines if arm["name"] in str(one.get_label()))
        np.testing.assert_allclose(line.get_ydata(), [cell["mean"] for cell in arm["froc"]])
        np.testing.assert_allclose(line.get_xdata(), written["false_positives_per_image"])
    assert detection_page.section(None) is None and detection_page.pictures(None) == []
    assert detection.summary(None, EVALUATE) is None


def test_one_seed_is_marked(tmp_path):
    written = detection.summary(inputs((("real", 0.6),), seeds=(4,)), EVALUATE)
    assert "(n=1*)" in tables.to_text(detection_page.table(written))
    shown = detection_page.section(written)
    assert shown["one_seed"] and shown["paired"] == []
    for made in detection_page.pictures(written):
        figures.save(made.figure, tmp_path / f"{made.name}.png")
        assert (tmp_path / f"{made.name}.png").stat().st_size > 1000


def test_folds_are_pooled():
    one, two = inputs(), inputs()
    both = detection.pooled([one, two])
    assert len(both.groups) == 2 * N and len(both.arms[0].runs[0].found.scores) == 2 * N
    assert both.arms[0].runs[0].images == 20
    values = ap.match(both.arms[0].runs[0].found, both.lesions)[1]
    once = ap.match(*repeated(one.arms[0].runs[0].found, one.lesions, 2))[1]
    assert values["ap50"] == pytest.approx(once["ap50"], abs=1e-12)
    assert detection.pooled([one, None]) is None and detection.pooled([None]) is None
    with pytest.raises(UserError, match="other seeds"):
        detection.pooled([one, inputs(seeds=(0, 1))])


def test_arms_that_cannot_be_compared_are_refused():
    with pytest.raises(UserError, match="baseline"):
        dataclasses.replace(inputs(), baseline="none")
    with pytest.raises(UserError, match="ascending"):
        inputs(seeds=(1, 0))

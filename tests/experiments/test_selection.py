"""The selection experiments' pure parts: figures against scikit-learn, outliers, the variants."""

import pathlib

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from experiments import arms
from experiments.selection import outliers, variants
from lt_jax import config as config_lib
from lt_jax import specs as specs_lib
from lt_jax.diffusion import synthesize
from lt_jax.evaluate.statistics import tables
from tests.test_golden_configs import load

DIGITS = pathlib.Path(__file__).parents[2] / "configs/digits.py"
VAL = "balanced_softmax"


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (30, 8, 8, 3)).astype(np.uint8)


@pytest.fixture
def labels():
    return (np.arange(30) % 3).astype(np.int32)


@pytest.fixture(scope="module")
def shared():
    return load(DIGITS)


def build(values):
    return config_lib.build(config_lib.Config, values)


@pytest.mark.parametrize("decimals", [8, 1])  # 1: many ties
def test_figures_are_those_of_scikit_learn(rng, decimals):
    inliers = rng.normal(size=211).round(decimals)
    others = rng.normal(1.0, 2.0, size=97).round(decimals)
    scores = np.concatenate([inliers, others])
    outlying = np.arange(len(scores)) >= len(inliers)
    assert np.isclose(outliers.auroc(inliers, others), roc_auc_score(outlying, scores))
    false, true, _ = roc_curve(~outlying, -scores, drop_intermediate=False)
    assert outliers.false_positive_rate(inliers, others) == false[true >= 0.95].min()
    assert outliers.false_positive_rate(inliers, others, 0.5) == false[true >= 0.5].min()


def test_no_number_is_further_out_than_any(rng):
    inliers = rng.normal(size=50)
    assert outliers.auroc(inliers, np.array([np.nan, np.inf])) == 1.0
    assert outliers.false_positive_rate(inliers, np.full(3, np.nan)) == 0.0
    worst = np.full(50, np.nan)  # nothing known of inliers: what is known of others looks inside
    assert outliers.auroc(worst, inliers) == 0.0
    assert outliers.false_positive_rate(worst, inliers) == 1.0
    assert outliers.false_positive_rate(worst, np.full(3, np.nan)) == 0.0


def test_other_labels_are_other_and_all_of_them():
    labels = np.repeat(np.arange(4), 300)
    other = outliers.other_labels(labels, 4, seed=1)
    table = np.zeros((4, 4))
    np.add.at(table, (labels, other), 1)
    assert (np.diag(table) == 0).all()
    assert (table[~np.eye(4, dtype=bool)] > 70).all()  # 100 expected


def test_a_blend_lies_midway_to_another_class(labels):
    images = np.broadcast_to((labels * 100).astype(np.uint8)[:, None, None, None], (30, 4, 4, 1))
    blended = outliers.blend(images, labels, seed=0)
    values = {label: set(blended[labels == label].ravel().tolist()) for label in range(3)}
    assert values == {0: {50, 100}, 1: {50, 150}, 2: {100, 150}}


def test_shuffled_patches_are_the_same_patches_elsewhere(images):
    shuffled = outliers.shuffle_patches(images, seed=0)

    def patches(image):
        cut = image.reshape(4, 2, 4, 2, 3).swapaxes(1, 2).reshape(16, -1)
        return sorted(map(tuple, cut.tolist()))

    for before, after in zip(images, shuffled, strict=True):
        assert patches(before) == patches(after)
        assert (before != after).any()


def test_blur_leaves_flat_images_and_takes_off_variance(images):
    flat = np.full((2, 8, 8, 1), 77, np.uint8)
    assert (outliers.blur(flat) == flat).all()
    assert outliers.blur(images).std() < 0.6 * images.std()
    one = np.zeros((2, 8, 8, 3), np.uint8)
    one[0] = 255
    assert (outliers.blur(one) == one).all()  # neither across images nor across channels


def test_noise_has_its_deviation():
    gray = np.full((50, 8, 8, 1), 128, np.uint8)
    noisy = outliers.add_noise(gray, seed=0)
    assert abs(noisy.std() - outliers.NOISE) < 4  # less a little by clipping
    assert (noisy == outliers.add_noise(gray, seed=0)).all()


def test_sets_have_an_image_and_a_label_each(images, labels):
    before = images.copy()
    sets = [
        *outliers.of_labels(images, labels, 3, seed=0),
        *outliers.corrupted(images, labels, seed=0),
    ]
    assert len({held.name for held in sets}) == len(sets) == 6
    for held in sets:
        assert held.images.shape == images.shape and held.images.dtype == np.uint8
        assert held.labels is not None and held.labels.shape == labels.shape
        judged_otherwise = (held.labels != labels).any()
        assert judged_otherwise == (held.name == "wrong label")
        assert (held.images != images).any() != judged_otherwise
    assert (images == before).all()


def test_bounds_cut_a_row_into_parts():
    assert outliers.bounds([2, 0, 3]) == [slice(0, 2), slice(2, 2), slice(2, 5)]


def test_tables_hold_mean_and_deviation_of_seeds():
    row = {"objective": "supervised", "score": "knn", "set": "blur", "near": False, "n": 9,
           "auroc": [0.5, 0.7], "fpr95": [0.1, 0.1]}  # fmt: skip
    near = {**row, "set": "blend", "near": True, "score": "vim"}
    text = "\n".join(map(tables.to_markdown, outliers.tables_of({"found": [row, near]})))
    assert "| Score | blend (9 images) | blur (9 images) |" in text
    assert "| knn |  | 0.600 ± 0.141 (n=2) |" in text
    assert "| vim | 0.100 ± 0.000 (n=2) |  |" in text and "supervised, FPR at 95%" in text


def test_variants_share_generator_and_extractor_and_differ_in_pool(shared):
    pools = {}
    makers = set()
    for name in variants.VARIANTS:
        config = build(variants.configure(shared, name, 10.0, [VAL], (3,) * 10))
        specs = {spec.stage: spec.key for spec in specs_lib.of(config)}
        makers.add((specs["generator"], specs["extractor"]))
        pools[name] = specs["synthesize"]
    assert len(makers) == 1
    assert len(set(pools.values())) == len(pools)


def test_real_images_alone_need_no_pool(shared):
    config = build(variants.configure(shared, arms.BASELINE, 10.0, [VAL]))
    assert "synthesize" not in {spec.stage for spec in specs_lib.of(config)}
    assert arms.RIVAL.partition("/")[2] in config.classify.arms


def test_gates_are_the_variants_and_no_others(shared):
    def selection(name):
        return build(variants.configure(shared, name, 10.0, [VAL], (1,) * 10)).synthesize.selection

    for name in ("unselected", "thinned"):
        held = selection(name)
        assert held.scores == () and held.label_probability == 0 and not held.memorization.gate
    assert selection("configured") == build(shared).synthesize.selection
    rates = {name: selection(name).keep_rate for name in variants.KEEP_RATES}
    assert rates == variants.KEEP_RATES
    assert {selection(name).scores for name in rates} == {("mahalanobis",)}
    memorised = selection("mahalanobis_memorised")
    assert memorised.memorization.gate and memorised.scores == ("mahalanobis",)


def test_a_thinned_pool_asks_for_the_counts_that_another_had(shared):
    counts = np.array([0, 5, 7, 1, 2, 3, 4, 5, 6, 90])
    train = np.array([99, 80, 60, 40, 30, 20, 12, 8, 6, 4])
    thinned = build(variants.configure(shared, "thinned", 10.0, [VAL], counts)).synthesize
    assert synthesize.wanted_counts(thinned, train).tolist() == counts.tolist()
    whole = build(variants.configure(shared, "unselected", 10.0, [VAL])).synthesize
    wanted = synthesize.wanted_counts(whole, train)
    assert wanted.tolist() == (99 - train).tolist()
    # `once` has no candidate beyond those of `unselected`.
    once = build(variants.configure(shared, "once", 10.0, [VAL])).synthesize
    nothing = np.zeros_like(wanted)
    wave = synthesize.next_wave(wanted, nothing, nothing, once.max_attempts)
    assert wave.tolist() == wanted.tolist()
    assert not synthesize.next_wave(wanted, wave // 2, wave, once.max_attempts).any()


def test_unknown_variant_is_named(shared):
    with pytest.raises(config_lib.ConfigError, match="--variants: got 'mahalonobis'"):
        variants.configure(shared, "mahalonobis", 10.0, [VAL])

"""Scores equal hand-computed examples and statsmodels; tests and intervals keep their level."""

import itertools
import pathlib

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lt_jax.evaluate.statistics.intervals import Proportion
from lt_jax.evaluate.turing import score as scoring
from lt_jax.evaluate.turing import summary, together
from lt_jax.evaluate.turing.study import Item, Key, Results, StudyError

R, S, NONE = 0, 1, -1


def make_key(synthetic, labels=None):
    labels = np.zeros(len(synthetic), int) if labels is None else labels
    items = tuple(
        Item(f"{i:012x}", bool(s), int(k), str(i))
        for i, (s, k) in enumerate(zip(synthetic, labels, strict=True))
    )
    classes = tuple(f"class {k}" for k in range(max(labels) + 1))
    return Key("0123456789abcdef", 0, "val", "m" * 64, "g" * 64, "p" * 64, classes, items)


def make_results(answers, confidence=None, name="", seconds=None):
    n = len(answers)
    return Results(
        path=pathlib.Path("x.json"),
        token=name,
        name=name,
        years=None,
        answers=np.array(answers),
        confidence=np.zeros(n, int) if confidence is None else np.array(confidence),
        seconds=np.full(n, np.nan) if seconds is None else np.array(seconds, float),
    )


TRUTH = [S, S, S, S, R, R, R, R]
ANNA = [S, S, S, R, R, R, S, S]  # 3 of 4 synthetic ones found, 2 of 4 real ones: 5 of 8
BEN = [S, S, R, R, R, R, R, S]  # 2 and 3: 5 of 8; agrees with Anna on 6 of 8


@pytest.fixture(scope="module")
def two():
    readers = [make_results(ANNA, name="Anna", seconds=range(8)), make_results(BEN, name="Ben")]
    return scoring.score(make_key(TRUTH), readers, resamples=500)


def test_hand_computed_readers(two):
    anna, ben = two.readers
    assert (anna.accuracy.successes, anna.accuracy.n, anna.accuracy.share) == (5, 8, 0.625)
    assert (anna.sensitivity.share, anna.specificity.share) == (0.75, 0.5)
    assert (ben.sensitivity.share, ben.specificity.share) == (0.5, 0.75)
    # P(|X - 4| >= 1) of Binomial(8, 1/2) = 1 - 70 / 256
    assert anna.p == pytest.approx(1 - 70 / 256)
    # H = 3.5 / 5, F = 2.5 / 5: z(0.7) = 0.524401
    assert (anna.d_prime, anna.criterion) == pytest.approx((0.524401, -0.262200), abs=1e-6)
    assert (ben.d_prime, ben.criterion) == pytest.approx((0.524401, 0.262200), abs=1e-6)
    assert (anna.seconds, ben.seconds) == (3.5, None)


def test_hand_computed_agreement(two):
    (pair,) = two.pairs
    # Anna calls 5 of 8 synthetic, Ben 3: p_e = 5/8 3/8 + 3/8 5/8 = 15/32, p_o = 6/8.
    assert pair.readers == ("Anna", "Ben") and pair.agreement == Proportion(6, 8)
    assert pair.kappa.value == pytest.approx((6 / 8 - 15 / 32) / (1 - 15 / 32))
    # Fleiss: half of all answers are synthetic, so p_e = 1/2.
    assert two.fleiss.value == pytest.approx((6 / 8 - 1 / 2) / (1 / 2))
    assert pair.kappa.ci95[0] < pair.kappa.value < pair.kappa.ci95[1]
    assert two.accuracy.mean == 0.625 and two.accuracy.values == (0.625, 0.625)
    assert (two.sensitivity.mean, two.specificity.mean) == (0.625, 0.625)


def test_the_auc_of_confidence_is_scikit_learns_by_class_too():
    rng = np.random.default_rng(0)
    truth, labels = np.arange(60) % 2 == 0, np.arange(60) // 2 % 3
    answers = np.where(rng.random(60) < 0.6, truth, ~truth).astype(int)
    sure = rng.integers(1, 6, 60)
    found = scoring.score(make_key(truth, labels), [make_results(answers, sure)], resamples=200)
    ratings = np.where(answers == S, sure, -sure)
    assert found.readers[0].auc.value == pytest.approx(roc_auc_score(truth, ratings))
    low, high = found.readers[0].auc.ci95
    assert low < found.readers[0].auc.value < high
    for k, own in enumerate(found.classes):
        expected = roc_auc_score(truth[labels == k], ratings[labels == k])
        assert (own.images, own.auc.mean) == (20, pytest.approx(expected))


def test_confidence_of_some_images_counts_these():
    sure = [5, 0, 3, 0, 1, 0, 2, 0]
    found = scoring.score(make_key(TRUTH), [make_results(ANNA, sure)], resamples=200)
    ratings = [5, 3, -1, 2]  # real ones last
    expected = roc_auc_score([1, 1, 0, 0], ratings)
    assert (found.readers[0].auc.n, found.readers[0].auc.value) == (4, expected)
    none = scoring.score(make_key(TRUTH), [make_results(ANNA)], resamples=200)
    assert none.readers[0].auc is None and none.auc is None


def test_one_reader_has_no_agreement_and_is_told_so():
    found = scoring.score(make_key(TRUTH), [make_results(ANNA)], resamples=200)
    assert (found.pairs, found.fleiss) == ((), None)
    assert found.readers[0].name == "reader 1"
    assert (found.accuracy.n, found.accuracy.std) == (1, None)
    text = summary.to_text(found)
    assert "agreement is undefined" in text and "0.625 (n=1*)" in text
    assert summary.to_json(found)["note"] == scoring.ALONE


def test_partial_answers_are_scored_on_what_was_answered():
    part = [S, NONE, S, R, R, NONE, S, NONE]  # 2 of 3 synthetic, 1 of 2 real
    readers = [make_results(part, name="Anna"), make_results(BEN, name="Ben")]
    found = scoring.score(make_key(TRUTH), readers, resamples=200)
    anna = found.readers[0]
    assert (anna.accuracy.successes, anna.accuracy.n, anna.images) == (3, 5, 8)
    assert (anna.sensitivity.n, anna.specificity.n) == (3, 2)
    assert (found.pairs[0].kappa.n, found.fleiss.n) == (5, 5)
    assert found.accuracy.mean == pytest.approx((3 / 5 + 5 / 8) / 2)
    assert "Partial results, scored on what was answered: Anna (5 of 8)" in summary.to_text(found)


def test_readers_without_common_images_or_of_one_kind():
    first, second = [S, S, NONE, NONE] + [NONE] * 4, [NONE] * 4 + [R, S, R, S]
    readers = [make_results(first, name="Anna"), make_results(second, name="Ben")]
    found = scoring.score(make_key(TRUTH), readers, resamples=200)
    assert found.pairs[0].kappa.value is None and found.fleiss.value is None
    assert found.readers[0].specificity.share is None and found.readers[0].d_prime is None
    assert found.sensitivity.n == 1 and found.sensitivity.mean == 1.0
    assert "undefined (n=0)" in summary.to_text(found)


def test_all_right_is_no_certainty():
    readers = [make_results(TRUTH, name="Anna"), make_results(TRUTH, name="Ben")]
    found = scoring.score(make_key(TRUTH), readers, resamples=200)
    assert found.accuracy.mean == 1.0 and found.accuracy.ci95 is None
    assert found.readers[0].accuracy.ci95[0] < 0.7
    always = [make_results([S] * 8, name="Anna"), make_results([S] * 8, name="Ben")]
    found = scoring.score(make_key(TRUTH), always, resamples=200)
    assert found.pairs[0].kappa.value is None and found.p == 1.0


def test_a_class_that_nobody_answered():
    answers = np.array([S, S, R, R, NONE, NONE, NONE, NONE])
    truth, labels = [S, R, S, R] * 2, [0] * 4 + [1] * 4
    found = scoring.score(make_key(truth, labels), [make_results(answers)], resamples=200)
    assert found.classes[1].accuracy.mean is None and found.classes[0].accuracy.mean == 0.5
    assert "n/a" in summary.to_text(found)


def test_one_reader_twice_is_refused():
    one, other = make_results(ANNA, name="Anna"), make_results(BEN, name="anna")
    with pytest.raises(StudyError, match="are of one reader"):
        scoring.score(make_key(TRUTH), [one, other])
    many = scoring.score(make_key(TRUTH), [make_results(ANNA), make_results(ANNA)], resamples=200)
    assert [r.name for r in many.readers] == ["reader 1", "reader 2"]


def test_the_permutation_test_is_that_of_all_shuffles():
    """8 images in two classes have 36 truths; with missing answers and two readers."""
    truth = np.array([S, S, R, R, S, S, R, R], bool)
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    answers = np.array([[S, S, R, R, S, NONE, R, S], [S, S, S, R, R, S, R, NONE]])
    halves = [np.isin(np.arange(4), c) for c in itertools.combinations(range(4), 2)]
    truths = np.array([np.concatenate(pair) for pair in itertools.product(halves, halves)])
    seen = answers != NONE
    right = ((answers[None] == truths[:, None]) & seen).sum(axis=2) / seen.sum(axis=1)
    means = right.mean(axis=1)
    observed = ((answers == truth) & seen).sum(axis=1) / seen.sum(axis=1)
    away = np.abs(means - means.mean()) >= np.abs(observed.mean() - means.mean()) - 1e-9
    found = together.permutation_p(answers, truth, labels, 20_000, 0)
    assert found == pytest.approx(away.mean(), abs=4 * np.sqrt(0.25 / 20_000))


def simulated(rng, m, n, of_readers, of_images, shift=0.0):
    """Whether each of m readers is beyond a threshold on each of n images."""
    shared = of_readers * rng.normal(size=(m, 1)) + of_images * rng.normal(size=(1, n))
    return shift + shared + rng.normal(size=(m, n)) > 0


def test_the_permutation_test_keeps_its_level():
    """Readers who see the same in images that mean nothing: 5% rejections, 1.4% three errors."""
    rng, n = np.random.default_rng(1), 60
    labels, truth = np.arange(n) % 5, np.arange(n) // 5 % 2 == 0
    p = []
    for seed in range(2000):
        answers = simulated(rng, 4, n, 0.5, 1.0, 0.5).astype(int)
        answers[rng.random(answers.shape) < 0.2] = NONE
        p.append(together.permutation_p(answers, truth, labels, 99, seed))
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.0146)


@pytest.mark.parametrize(("of_readers", "of_images"), [(0.0, 0.0), (0.4, 0.4), (0.3, 1.0)])
def test_the_interval_covers_other_readers_and_images(of_readers, of_images):
    from scipy import stats

    rng, n, sims = np.random.default_rng(2), 100, 400
    truth = np.arange(n) % 2 == 0
    expected = stats.norm.cdf(0.25 / np.sqrt(1 + of_readers**2 + of_images**2))
    covered = []
    for seed in range(sims):
        right = simulated(rng, 5, n, of_readers, of_images, 0.25)
        draws = together.Draws.of(truth, 200, seed)
        low, high = together.mean_accuracy(right, np.ones_like(right), draws).ci95
        covered.append(low <= expected <= high)
    assert 0.91 <= np.mean(covered) <= 0.995


def test_the_standard_error_is_that_of_the_analysis_of_variance():
    """SE^2 = (MS_R + MS_I - MS_RI) / (m n), df = (m - 1) (that / MS_R)^2 (Hillis, 2007)."""
    from scipy import stats

    right = simulated(np.random.default_rng(3), 6, 80, 0.7, 1.0)
    m, n = right.shape
    rows, columns, mean = right.mean(axis=1), right.mean(axis=0), right.mean()
    of_readers = n * np.sum((rows - mean) ** 2) / (m - 1)
    of_images = m * np.sum((columns - mean) ** 2) / (n - 1)
    rest = np.sum((right - rows[:, None] - columns + mean) ** 2) / ((m - 1) * (n - 1))
    total = of_readers + of_images - rest
    reach = stats.t.ppf(0.975, (m - 1) * (total / of_readers) ** 2) * np.sqrt(total / (m * n))
    draws = together.Draws.of(np.ones(n, bool), 40_000, 0)
    low, high = together.mean_accuracy(right, np.ones_like(right), draws).ci95
    assert (low, high) == pytest.approx((mean - reach, mean + reach), abs=0.03 * reach)


def test_the_seed_decides_the_draws():
    readers = [make_results(ANNA, name="Anna"), make_results(BEN, name="Ben")]
    one, same, other = (
        scoring.score(make_key(TRUTH), readers, resamples=200, seed=seed) for seed in (0, 0, 1)
    )
    assert summary.to_json(one) == summary.to_json(same)
    assert one.p != other.p

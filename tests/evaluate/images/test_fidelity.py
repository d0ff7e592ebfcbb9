"""Fidelity: closed forms, direct loops, unbiasedness, identical sets, copies, small classes."""

import itertools
import json

import numpy as np
import pytest
import scipy.linalg

from lt_jax.evaluate.images import fidelity
from lt_jax.evaluate.images.fidelity import FidelityError


def normal(seed, n, d=4):
    return np.random.default_rng(seed).normal(size=(n, d))


def exactly(mean, covariance, seed, n=50):
    """n points whose sample mean and covariance are exactly these."""
    x = normal(seed, n, len(mean))
    x -= x.mean(axis=0)
    white = x @ np.linalg.inv(scipy.linalg.cholesky(np.cov(x.T)))
    return white @ scipy.linalg.cholesky(covariance) + mean


def random_covariance(seed, d=4):
    a = normal(seed, d + 2, d)
    return a.T @ a


def test_fd_has_the_closed_form_of_gaussians():
    means = np.array([0.0, 1.0, 0.0, 2.0]), np.array([3.0, 1.0, 0.0, -2.0])
    variances = np.array([1.0, 4.0, 9.0, 0.25]), np.array([1.0, 1.0, 16.0, 4.0])
    first, second = (
        exactly(m, np.diag(v), i, 40 + i)
        for i, (m, v) in enumerate(zip(means, variances, strict=True))
    )
    expected = 9 + 16 + np.square(np.sqrt(variances[0]) - np.sqrt(variances[1])).sum()
    np.testing.assert_allclose(fidelity.frechet(first, second), expected, rtol=1e-9)


def test_fd_of_covariances_that_do_not_commute_and_are_singular():
    """Against the matrix root that it does without."""
    pairs = [
        (
            exactly(np.zeros(4), random_covariance(1), 2),
            exactly(np.ones(4), random_covariance(3), 4),
        ),
        (normal(5, 12, 30), 2 * normal(6, 14, 30) + 1),  # fewer images than dimensions
    ]
    for (first, second), accuracy in zip(pairs, (1e-7, 1e-3), strict=True):
        a, b = np.cov(first.T), np.cov(second.T)
        root = scipy.linalg.sqrtm(a)  # of one positive semi-definite matrix at a time
        cross = np.sqrt(np.clip(np.linalg.eigvalsh(np.real(root @ b @ root)), 0, None)).sum()
        expected = np.square(first.mean(0) - second.mean(0)).sum() + np.trace(a + b) - 2 * cross
        np.testing.assert_allclose(fidelity.frechet(first, second), expected, rtol=accuracy)


def test_fd_is_a_distance_that_no_rotation_or_shift_changes():
    first, second = normal(0, 40), 1.5 * normal(1, 30) + 0.5
    distance = fidelity.frechet(first, second)
    np.testing.assert_allclose(fidelity.frechet(second, first), distance, rtol=1e-9)
    np.testing.assert_allclose(fidelity.frechet(first, first), 0, atol=1e-9)
    turn = np.linalg.qr(normal(2, 4))[0]
    moved = fidelity.frechet(first @ turn + 7, second @ turn + 7)
    np.testing.assert_allclose(moved, distance, rtol=1e-9)


def test_fd_is_biased_by_small_samples_and_kid_is_not():
    """What the docstring says of both, on 200 pairs of sets of one distribution."""
    fds, kids = [], []
    for i in range(200):
        first, second = normal([i, 0], 15), normal([i, 1], 12)
        fds.append(fidelity.frechet(first, second))
        kids.append(fidelity.kid(first, second))
    assert np.mean(fds) > 4 * (1 / 15 + 1 / 12)
    values = np.array([value for value, _ in kids])
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(200)
    errors = np.sqrt(np.mean(np.square([error for _, error in kids])))
    assert 0.8 < errors / values.std() < 2.5
    assert (values < 0).any()  # what an unbiased estimate of zero must do


def test_kid_s_standard_error_where_distributions_differ():
    pairs = [(normal([i, 0], 40), normal([i, 1], 30) + 1) for i in range(100)]
    values, errors = np.array([fidelity.kid(*pair) for pair in pairs]).T
    assert values.mean() > 5 * values.std() / 10
    assert 0.7 < np.sqrt(np.mean(errors**2)) / values.std() < 1.4


def test_kid_and_its_jackknife_against_loops(monkeypatch):
    monkeypatch.setattr(fidelity, "BLOCK", 4)  # several blocks, the last one short
    first, second = normal(0, 9, 3), normal(1, 6, 3) + 0.5

    def direct(x, y):
        k = lambda a, b: (a @ b / 3 + 1) ** 3
        within = lambda z: np.mean([k(a, b) for a, b in itertools.permutations(z, 2)])
        return within(x) + within(y) - 2 * np.mean([k(a, b) for a in x for b in y])

    value, error = fidelity.kid(first, second)
    np.testing.assert_allclose(value, direct(first, second), rtol=1e-10)
    variance = 0.0
    for x, leave in ((first, 0), (second, 1)):
        left = [np.delete(x, i, axis=0) for i in range(len(x))]
        ones = [direct(z, second) if leave == 0 else direct(first, z) for z in left]
        variance += (len(x) - 1) / len(x) * np.square(ones - np.mean(ones)).sum()
    np.testing.assert_allclose(error, np.sqrt(variance), rtol=1e-9)
    assert fidelity.kid(first[:2], second)[1] is None


@pytest.mark.parametrize("k", [1, 3])
def test_a_set_is_wholly_in_its_own_manifold(k):
    x = np.repeat(normal(0, 20), 2, axis=0)  # with twins, whose balls have no width where k = 1
    same = fidelity.compare(fidelity.reference(x, k), x[::-1].copy())
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    np.testing.assert_allclose(same.fd, 0, atol=1e-9)
    assert not same.reasons


def test_manifolds_against_their_definitions(monkeypatch):
    monkeypatch.setattr(fidelity, "BLOCK", 7)
    real, fake, k = normal(0, 30, 2), 0.7 * normal(1, 25, 2) + 0.4, 3
    got = fidelity.compare(fidelity.reference(real, k), fake)
    dist = lambda a, b: float(np.linalg.norm(a - b))
    rim = lambda x: [sorted(dist(a, b) for b in x)[k] for a in x]
    real_rim, fake_rim = rim(real), rim(fake)
    in_real = [[dist(f, r) <= rim for r, rim in zip(real, real_rim, strict=True)] for f in fake]
    in_fake = [[dist(r, f) <= rim for f, rim in zip(fake, fake_rim, strict=True)] for r in real]
    np.testing.assert_allclose(got.precision, np.mean([any(row) for row in in_real]))
    np.testing.assert_allclose(got.recall, np.mean([any(row) for row in in_fake]))
    np.testing.assert_allclose(got.density, np.sum(in_real) / (k * len(fake)))
    np.testing.assert_allclose(got.coverage, np.mean(np.any(in_real, axis=0)))
    assert 0 < got.recall < 1 and 0 < got.precision < 1


def test_a_lost_mode_costs_recall_and_a_strange_one_precision():
    near, far = normal(0, 30), normal(1, 30) + 100
    both = np.concatenate([near, far])
    lost = fidelity.compare(fidelity.reference(both, 3), normal(2, 60) * 0.2)
    assert lost.precision == 1 and lost.recall <= 0.5 and lost.coverage <= 0.5
    strange = fidelity.compare(fidelity.reference(near, 3), both + 1e-6)
    assert strange.precision == 0.5 and strange.recall == 1


def test_nearest_is_zero_for_copies_of_any_brightness_and_one_across():
    train = normal(0, 10)
    copies = 3 * train[[4, 7]]
    np.testing.assert_allclose(fidelity.nearest(copies, train), [0, 0], atol=1e-15)
    axes = np.eye(4)
    np.testing.assert_allclose(fidelity.nearest(axes[:1], axes[1:]), [1.0])
    np.testing.assert_allclose(fidelity.nearest(-axes[:1], axes[:1]), [2.0])
    assert fidelity.nearest(np.zeros((0, 4)), train).shape == (0,)


def sets(seed=0, counts=(60, 30, 4), val=(40, 12, 1), fake=(50, 50, 50)):
    """Classes a unit apart, the last with too few images to speak of."""
    out = []
    for part, numbers in enumerate((counts, val, fake)):
        labels = np.repeat(np.arange(3), numbers)
        out += [normal([seed, part], len(labels)) + 3 * np.eye(4)[labels], labels]
    return out


def test_report_speaks_json_and_says_why_it_is_silent():
    made = fidelity.report(*sets())
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    head, _, tail = made["classes"]
    assert (head["label"], head["n_train"], head["n_val"], head["n_synthetic"]) == (0, 60, 40, 50)
    assert head["matched"]["n"] == head["floor"]["n"] == 40 and head["synthetic"]["n"] == 50
    assert not head["synthetic"]["reasons"]
    # Four train images: no FD, but KID and neighbours; one held-out image: no floor at all.
    assert tail["synthetic"]["fd"] is None and "4 train" in tail["synthetic"]["reasons"]["fd"]
    assert tail["synthetic"]["kid"] is not None and tail["synthetic"]["recall"] is not None
    assert all(tail["floor"][name] is None for name in fidelity.MEASURES)
    assert set(fidelity.MEASURES) <= set(tail["floor"]["reasons"])
    assert tail["nearest"]["closer_than_val"] is None and tail["nearest"]["reasons"]
    macro = made["macro"]["synthetic"]["fd"]
    assert macro["classes"] == 2
    fds = [entry["synthetic"]["fd"] for entry in made["classes"][:2]]
    np.testing.assert_allclose((macro["mean"], macro["std"]), (np.mean(fds), np.std(fds, ddof=1)))
    one = fidelity.macro(made["classes"][:1])["floor"]["kid"]
    assert (one["std"], one["classes"]) == (None, 1)
    assert made["overall"]["n_train"] == 94 and made["overall"]["floor"]["fd"] > 0


def test_matched_and_floor_agree_for_the_real_distribution_and_copies_stand_out():
    data = sets(1, (400, 30, 4), (60, 20, 1), (400, 50, 50))
    head = fidelity.report(*data)["classes"][0]
    # At 400 images FD is much lower than at 60, of one and the same distribution.
    assert head["synthetic"]["fd"] < 0.6 * head["floor"]["fd"]
    assert 0.5 < head["matched"]["fd"] / head["floor"]["fd"] < 2
    assert head["nearest"]["closer_than_val"] < 0.2
    data[4][:400] = data[0][:400]
    copied = fidelity.report(*data)["classes"][0]["nearest"]
    assert copied["closer_than_val"] > 0.99 and copied["synthetic"]["median"] < 1e-12
    assert copied["val"] == head["nearest"]["val"]


def test_report_does_not_depend_on_the_order_of_images():
    data = sets(2)
    made = fidelity.report(*data)["classes"][0]["synthetic"]
    for i in (0, 4):
        order = np.random.default_rng(i).permutation(len(data[i]))
        data[i], data[i + 1] = data[i][order], data[i + 1][order]
    again = fidelity.report(*data)["classes"][0]["synthetic"]
    for name in fidelity.MEASURES:
        np.testing.assert_allclose(again[name], made[name], rtol=1e-9)


def test_a_class_without_synthetic_or_train_images_is_told():
    made = fidelity.report(*sets(0, (60, 30, 0), (40, 12, 1), (50, 0, 9)))
    assert "0 other" in made["classes"][1]["synthetic"]["reasons"]["kid"]
    assert "0 train" in made["classes"][2]["synthetic"]["reasons"]["precision"]
    assert made["classes"][2]["nearest"]["synthetic"]["min"] > 0  # to train images of any class


def test_what_cannot_be_measured_is_refused():
    data = sets()
    data[4][3, 1] = np.nan
    with pytest.raises(FidelityError, match=r"synthetic: .*first: row 3"):
        fidelity.report(*data)
    data = sets()
    data[3][2] = -1
    with pytest.raises(FidelityError, match="val, row 2: got label -1"):
        fidelity.report(*data)
    with pytest.raises(FidelityError, match="no train images"):
        fidelity.report(np.zeros((0, 4)), np.zeros(0, int), *sets()[2:])
    with pytest.raises(FidelityError, match="k=0"):
        fidelity.reference(normal(0, 5), 0)
    for measure in (fidelity.frechet, fidelity.kid):
        with pytest.raises(FidelityError, match="1 and 5 images"):
            measure(normal(0, 1), normal(1, 5))
    with pytest.raises(FidelityError, match="k=5 takes 6"):
        fidelity.radii(normal(0, 5), 5)

import numpy as np
import pytest

from lt_jax.config import ConfigError
from lt_jax.data import longtail

# img_num_per_cls of the CIFAR-10-LT code of Cao et al. (2019), for exp profiles.
PUBLISHED = {
    100.0: [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50],
    10.0: [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500],
}


@pytest.mark.parametrize("factor", PUBLISHED)
def test_exponential_gives_the_published_counts_of_cifar_10_lt(factor):
    counts = longtail.profile_counts(np.full(10, 5000), "exponential", factor, 6.0)
    assert counts.tolist() == PUBLISHED[factor]
    assert factor != 100.0 or counts.sum() == 12406


def test_cifar_100_lt_has_its_published_total():
    assert longtail.profile_counts(np.full(100, 500), "exponential", 100.0, 6.0).sum() == 10847


@pytest.mark.parametrize("profile", ["exponential", "pareto"])
def test_profiles_fall_from_all_to_one_over_the_factor(profile):
    counts = longtail.profile_counts(np.full(50, 4000), profile, 80.0, 6.0)
    assert counts[0] == 4000 and counts[-1] == 50 and (np.diff(counts) <= 0).all()


def test_pareto_follows_the_density_and_tends_to_exponential():
    counts = longtail.profile_counts(np.full(21, 10**6), "pareto", 256.0, 6.0)
    positions = np.linspace(1.0, 256.0 ** (1 / 7), 21)
    np.testing.assert_allclose(counts / 1e6, positions**-7.0, atol=1e-6)
    exponential = longtail.profile_counts(np.full(21, 10**6), "exponential", 256.0, 6.0)
    assert (counts[1:-1] < exponential[1:-1]).all()
    limit = longtail.profile_counts(np.full(21, 10**6), "pareto", 256.0, 1e6)
    np.testing.assert_allclose(limit, exponential, rtol=1e-3)


def test_natural_and_a_factor_of_one_keep_everything():
    counts = np.array([7, 3, 9])
    assert longtail.profile_counts(counts, "natural", 50.0, 6.0).tolist() == [7, 3, 9]
    for profile in ("exponential", "pareto"):
        assert longtail.profile_counts(np.full(3, 7), profile, 1.0, 6.0).tolist() == [7, 7, 7]


def test_no_class_is_asked_for_more_than_it_has_and_the_factor_is_kept():
    at_hand = np.array([110, 90, 104, 5])
    counts = longtail.profile_counts(at_hand, "exponential", 50.0, 6.0)
    assert (counts <= at_hand).all() and counts.tolist() == [110, 29, 8, 2]
    counts = longtail.profile_counts(np.array([1000, 50, 1000]), "exponential", 16.0, 6.0)
    assert counts.tolist() == [200, 50, 12]


@pytest.mark.parametrize("last", [0, 1])
def test_a_class_left_with_nothing_is_an_error(last):
    with pytest.raises(ConfigError, match=r"imbalance_factor: got 50; .*leaves class"):
        longtail.profile_counts(np.array([20, 20, last]), "exponential", 50.0, 6.0)


def test_subsample_takes_the_asked_counts_in_whole_groups():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200).astype(np.int32)
    groups = tuple(f"{label}-{rng.integers(20)}" for label in labels)
    target = np.array([40, 10, 1])
    kept = longtail.subsample(labels, groups, target, seed=5)
    np.testing.assert_array_equal(np.bincount(labels[kept]), target)
    assert (np.diff(kept) > 0).all()
    size = lambda rows, group: sum(groups[i] == group for i in rows)
    for label in range(3):
        held = {groups[i] for i in kept if labels[i] == label}
        cut = [group for group in held if size(kept, group) < size(range(200), group)]
        assert len(cut) <= 1
    np.testing.assert_array_equal(kept, longtail.subsample(labels, groups, target, seed=5))
    assert kept.tolist() != longtail.subsample(labels, groups, target, seed=6).tolist()


def test_subsample_to_all_is_the_identity():
    labels = np.array([0, 1, 1, 0], np.int32)
    kept = longtail.subsample(labels, ("a", "b", "c", "d"), np.array([2, 2]), seed=0)
    assert kept.tolist() == [0, 1, 2, 3]


def test_few_shot_keeps_as_many_of_each_class():
    counts = np.array([50, 9, 5])
    np.testing.assert_array_equal(longtail.profile_counts(counts, "few_shot", shots=5), [5, 5, 5])
    with pytest.raises(ConfigError, match="class 2 has 5"):
        longtail.profile_counts(counts, "few_shot", shots=6)

import numpy as np
import pytest

from lt_jax.config import SplitConfig
from lt_jax.data import splits

CLASSES = ("a", "b", "c")


def example(seed=0):
    """600 images in groups of 1 to 5, classes at 6 : 3 : 1."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, 400)[: np.searchsorted(np.cumsum(rng.integers(1, 6, 400)), 600)]
    labels = np.repeat(rng.choice(3, len(sizes), p=[0.6, 0.3, 0.1]), sizes).astype(np.int32)
    groups = np.repeat([f"g{i}" for i in range(len(sizes))], sizes)
    return labels, groups.tolist()


def groups_in(labels, groups, drawn, label, split):
    return len(
        {g for g, k, s in zip(groups, labels, drawn, strict=True) if (k, s) == (label, split)}
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_group_stands_in_two_splits_and_classes_are_within_one_group_of_their_quota(seed):
    labels, groups = example(seed)
    config = SplitConfig(policy_val=0.1, val=0.15, test=0.2, seed=seed)
    drawn = splits.split_groups(labels, groups, config, CLASSES)
    split_of = {}
    for group, split in zip(groups, drawn, strict=True):
        assert split_of.setdefault(group, split) == split
    fractions = {"train": 0.55, "policy_val": 0.1, "val": 0.15, "test": 0.2}
    for label in range(3):
        total = len({g for g, k in zip(groups, labels, strict=True) if k == label})
        held = {s: groups_in(labels, groups, drawn, label, s) for s in fractions}
        assert sum(held.values()) == total
        for split, fraction in fractions.items():
            assert abs(held[split] - fraction * total) < 1


def test_the_draw_is_fixed_by_seed_and_not_by_row_order():
    labels, groups = example()
    first = splits.split_groups(labels, groups, SplitConfig(seed=3), CLASSES)
    assert first == splits.split_groups(labels, groups, SplitConfig(seed=3), CLASSES)
    assert first != splits.split_groups(labels, groups, SplitConfig(seed=4), CLASSES)
    order = np.random.default_rng(1).permutation(len(groups))
    moved = splits.split_groups(
        labels[order], [groups[i] for i in order], SplitConfig(seed=3), CLASSES
    )
    assert moved == tuple(first[i] for i in order)


def test_one_class_moves_no_other_class():
    labels, groups = example()
    drawn = splits.split_groups(labels, groups, SplitConfig(), CLASSES)
    rows = np.flatnonzero(labels != 1)
    more_of_b = [f"new{i}" for i in range(40)]
    again = splits.split_groups(
        np.concatenate([labels[rows], np.ones(40, np.int32)]),
        [groups[i] for i in rows] + more_of_b, SplitConfig(), CLASSES,
    )  # fmt: skip
    assert again[: len(rows)] == tuple(drawn[i] for i in rows)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_class_with_too_few_groups_is_named(count):
    labels = np.array([0] * 20 + [1] * count, np.int32)
    groups = [f"g{i}" for i in range(20 + count)]
    with pytest.raises(splits.SplitError, match=rf"class 'b' has {count} group.*4 splits"):
        splits.split_groups(labels, groups, SplitConfig(), ("a", "b"))


def test_many_images_of_one_group_do_not_make_a_class_splittable():
    labels = np.array([0] * 20 + [1] * 30, np.int32)
    groups = [f"g{i}" for i in range(20)] + ["one lesion"] * 30
    with pytest.raises(splits.SplitError, match="class 'b' has 1 group"):
        splits.split_groups(labels, groups, SplitConfig(), ("a", "b"))


def test_four_groups_are_enough_for_four_splits_and_two_for_two():
    labels = np.zeros(4, np.int32)
    drawn = splits.split_groups(labels, list("wxyz"), SplitConfig(), ("a",))
    assert sorted(drawn) == sorted(splits.SPLITS)
    config = SplitConfig(policy_val=0.0, val=0.0, test=0.5)
    drawn = splits.split_groups(labels[:2], list("wx"), config, ("a",))
    assert sorted(drawn) == ["test", "train"]


def test_a_group_of_two_labels_stays_whole_and_counts_for_the_rarer_one():
    labels = np.array([0] * 20 + [1] * 4 + [0], np.int32)
    groups = [f"g{i}" for i in range(23)] + ["both", "both"]
    drawn = splits.split_groups(labels, groups, SplitConfig(), ("a", "b"))
    assert drawn[-1] == drawn[-2]
    assert sorted(drawn[20:24]) == sorted(splits.SPLITS)


def test_fractions_that_leave_nothing_for_train_are_refused():
    with pytest.raises(splits.SplitError, match="come to 1"):
        splits.split_groups(
            np.zeros(9, np.int32), list("abcdefghi"),
            SplitConfig(policy_val=0.3, val=0.3, test=0.4), ("a",),
        )  # fmt: skip


def test_named_images_are_test_with_their_groups_and_the_others_are_dealt_out():
    labels, groups = example()
    named = np.random.default_rng(5).random(len(labels)) < 0.05
    config = SplitConfig(policy_val=0.1, val=0.2, test=0.9, test_where="official=test")
    drawn = splits.split_groups(labels, groups, config, CLASSES, named)
    fixed = {group for group, is_named in zip(groups, named, strict=True) if is_named}
    assert [split == "test" for split in drawn] == [group in fixed for group in groups]
    for label in range(3):
        total = len({g for g, k in zip(groups, labels, strict=True) if k == label} - fixed)
        for split, fraction in {"train": 0.7, "policy_val": 0.1, "val": 0.2}.items():
            assert abs(groups_in(labels, groups, drawn, label, split) - fraction * total) < 1


def test_named_images_of_no_class_and_folds_are_refused():
    labels, groups = example()
    config = SplitConfig(test_where="official=test")
    with pytest.raises(splits.SplitError, match="'official=test' names no image of class 'c'"):
        splits.split_groups(labels, groups, config, CLASSES, labels < 2)
    config = SplitConfig(test_where="official=test", folds=3)
    with pytest.raises(splits.SplitError, match="test_where: got 'official=test' with folds = 3"):
        splits.split_groups(labels, groups, config, CLASSES, labels < 3)


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_over_the_folds_every_group_is_test_once_and_each_fold_is_a_split(folds):
    labels, groups = example()
    times = dict.fromkeys(groups, 0)
    for fold in range(folds):
        config = SplitConfig(policy_val=0.1, val=0.15, folds=folds, fold=fold)
        drawn = splits.split_groups(labels, groups, config, CLASSES)
        split_of = dict(zip(groups, drawn, strict=True))
        assert drawn == tuple(split_of[group] for group in groups)
        for group in split_of:
            times[group] += split_of[group] == "test"
        for label in range(3):
            total = len({g for g, k in zip(groups, labels, strict=True) if k == label})
            assert abs(groups_in(labels, groups, drawn, label, "test") - total / folds) < 1
            assert abs(groups_in(labels, groups, drawn, label, "val") - 0.15 * total) <= 1.5
    assert set(times.values()) == {1}


@pytest.mark.parametrize(("folds", "fold"), [(1, 0), (3, 3)])
def test_a_fold_that_is_none_is_refused(folds, fold):
    labels, groups = example()
    with pytest.raises(splits.SplitError, match=rf"fold {fold} of folds = {folds}"):
        splits.split_groups(labels, groups, SplitConfig(folds=folds, fold=fold), CLASSES)


def test_a_class_too_small_for_the_folds_is_named():
    labels = np.array([0] * 30 + [1] * 6, np.int32)
    groups = [f"g{i}" for i in range(36)]
    config = SplitConfig(folds=5)
    splits.split_groups(labels, groups, config, ("a", "b"))  # 6: two test, four for the rest
    with pytest.raises(splits.SplitError, match=r"class 'b' has 4 group.*test split of 5 folds"):
        splits.split_groups(labels[:34], groups[:34], config, ("a", "b"))

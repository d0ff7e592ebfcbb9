import numpy as np
import pytest
from PIL import Image

from lt_jax.data import duplicates


def pictures(n, seed=0):
    """Smooth random pictures, 48 x 64."""
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 6, 8), dtype=np.uint8)
    return [
        np.asarray(Image.fromarray(c).resize((64, 48), Image.Resampling.BICUBIC))[..., None]
        for c in coarse
    ]


def thumbs(images):
    return np.stack([duplicates.thumbnail(image) for image in images])


def test_pairs_equal_the_brute_force_over_correlations_in_any_chunking(monkeypatch):
    x = thumbs(pictures(40))
    x = np.concatenate([x, x[:10] * np.float32(0.8) + np.float32(0.1)])
    r = np.corrcoef(x.reshape(50, -1))
    for distance in (0.01, 0.7):
        expected = [[i, j] for i in range(50) for j in range(i + 1, 50) if 1 - r[i, j] <= distance]
        for chunk in (1024, 7):
            monkeypatch.setattr(duplicates, "_CHUNK", chunk)
            assert duplicates.near_duplicates(x, distance).tolist() == expected
    assert len(duplicates.near_duplicates(x, 0.01)) == 10  # the ten that differ in light alone


def test_copies_are_found_and_strangers_are_not():
    originals = pictures(30)
    darker = (originals[3] * 0.7).astype(np.uint8)
    noisy = (originals[5] + np.random.default_rng(1).integers(0, 9, (48, 64, 1))).clip(0, 255)
    colour = np.repeat(originals[7], 3, axis=-1)
    large = np.asarray(Image.fromarray(originals[9][..., 0]).resize((256, 192)))[..., None]
    x = thumbs([*originals, darker, noisy.astype(np.uint8), colour, large])
    assert duplicates.near_duplicates(x, 0.01).tolist() == [[3, 30], [5, 31], [7, 32], [9, 33]]
    assert [7, 32] in duplicates.near_duplicates(x, 0.0).tolist()


def test_blank_frames_do_not_match_one_another():
    rng = np.random.default_rng(0)
    blank = [np.full((20, 20, 1), level, np.uint8) for level in (0, 0, 128, 255)]
    almost = [blank[2] + rng.integers(0, 2, (20, 20, 1)).astype(np.uint8) for _ in range(3)]
    assert not len(duplicates.near_duplicates(thumbs([*blank, *almost]), 0.5))


def test_a_threshold_that_joins_strangers_is_refused():
    with pytest.raises(duplicates.DuplicateError, match="duplicate_distance: got 1;"):
        duplicates.near_duplicates(thumbs(pictures(300)), 1.0)


def test_groups_are_joined_along_chains():
    groups = ("d", "c", "b", "a", "e", "b")
    pairs = np.array([[0, 1], [1, 2]])
    joined = duplicates.join_groups(groups, pairs)
    assert joined == ("b", "b", "b", "a", "e", "b")
    assert duplicates.join_groups(groups, pairs[:0]) == groups
    assert duplicates.join_groups(groups, pairs[::-1]) == joined
    assert duplicates.pairs_across(joined, pairs).tolist() == []
    assert duplicates.pairs_across(groups, np.array([[2, 5], [2, 3]])).tolist() == [[2, 3]]

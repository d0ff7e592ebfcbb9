"""The score of denoising errors: levels and classes made comparable, order, what it is blind to."""

import numpy as np

from lt_jax.selection.denoising import Denoising
from tests.selection.gaussians import per_class, score

LEVELS = np.asarray([0.01, 0.1, 1.0])


def drawn(seed, counts, factor=1.0, textures=99):
    """Errors that are larger at noisier levels, and in some classes."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    texture = np.exp(np.random.default_rng(textures).normal(size=(len(counts), 1)))
    errors = factor * LEVELS * texture[labels] * np.exp(0.2 * rng.normal(size=(len(labels), 3)))
    logits = np.zeros((len(labels), len(counts)), np.float32)
    return errors.astype(np.float32), logits, labels.astype(np.int32)


def test_images_of_every_class_score_alike_however_few_it_has():
    counts, scorer = [300, 50, 4, 1], Denoising(4)

    def of(seed):
        state = scorer.fit(*drawn(seed, counts, textures=seed))
        return score(scorer, state, *drawn(500 + seed, [10] * 4, textures=seed))

    means, variances = per_class(of, 4, 10, 60)
    np.testing.assert_allclose(means, np.zeros(4), atol=0.25)
    np.testing.assert_allclose(variances, np.ones(4), rtol=0.35)


def test_every_level_weighs_alike_whatever_its_errors():
    scorer = Denoising(2)
    known = drawn(0, [200, 200])
    state = scorer.fit(*known)
    same = np.repeat(known[0][:1], 4, axis=0)
    for level in range(3):
        same[1 + level, level] *= 2.0
    scores = score(scorer, state, same, known[1][:4], known[2][:4])
    np.testing.assert_allclose(
        scores[1:] - scores[0], np.full(3, np.log(2) / 0.2 / np.sqrt(3)), rtol=0.1
    )


def test_larger_errors_are_further_out_and_units_do_not_matter():
    scorer = Denoising(3)
    state = scorer.fit(*drawn(0, [60, 9, 2]))
    plain, doubled = (score(scorer, state, *drawn(1, [5] * 3, by)) for by in (1.0, 2.0))
    assert np.all(doubled > plain + 1)
    other = scorer.fit(*drawn(0, [60, 9, 2], 1e4))
    rescaled = score(scorer, other, *drawn(1, [5] * 3, 1e4))
    np.testing.assert_allclose(rescaled, plain, rtol=1e-3, atol=1e-3)


def test_no_error_at_all_is_the_nearest():
    scorer = Denoising(1)
    state = scorer.fit(*drawn(0, [60]))
    errors = np.stack([np.zeros(3), LEVELS]).astype(np.float32)
    scores = score(scorer, state, errors, np.zeros((2, 1), np.float32), np.zeros(2, np.int32))
    assert np.all(np.isfinite(scores)) and scores[0] < scores[1]

"""Features of Gaussian classes, and shorthands for scorers that every test of a score takes."""

import jax.numpy as jnp
import numpy as np


def gaussian_classes(seed, counts, dimension, scales=None, apart=3.0):
    """Features, logits and labels of Gaussian classes with one covariance times scale^2."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    means = apart * np.random.default_rng(100).normal(size=(len(counts), dimension))
    mix = np.random.default_rng(101).normal(size=(dimension, dimension)) / np.sqrt(dimension)
    noise = generator.normal(size=(len(labels), dimension)) @ mix
    if scales is not None:
        noise *= np.asarray(scales)[labels][:, None]
    features = (means[labels] + noise).astype(np.float32)
    return features, np.zeros((len(labels), len(counts)), np.float32), labels.astype(np.int32)


def score(scorer, state, features, logits, labels):
    return np.asarray(scorer.score(state, *map(jnp.asarray, (features, logits, labels))))


def per_class(score_of, classes, each, repeats):
    """Mean and variance [k] over `repeats` of fits of `each` new images of `classes` classes."""
    scores = np.stack([score_of(seed) for seed in range(repeats)]).reshape(repeats, classes, each)
    return scores.mean(axis=(0, 2)), scores.var(axis=(0, 2))

"""A small finished experiment for the tests of the report."""

import dataclasses

import numpy as np
import pytest

from lt_jax.config import EvaluateConfig
from lt_jax.evaluate import report

CLASSES = ("nv", "mel", "bkl & <b>", "df")
K = len(CLASSES)


def section(html, name):
    """A section of the page, from its heading to the next one."""
    return html[html.index(f'<h2 id="{name}">') :].split("<h2 ")[1]


def laid_out(figure):
    """The images and the words of a sheet of tiles: (x, y, pixels) and (x, y, text), from the top.

    x and y are in inches, of an image's upper left.
    """
    (axes,) = figure.axes
    images = [(*image.get_extent()[::3], np.asarray(image.get_array())) for image in axes.images]
    words = [(*text.get_position(), text.get_text()) for text in axes.texts]
    return images, words


def above(images, words, pixels):
    """The image right above the one of these pixels, and the words right above both."""
    (at,) = [i for i, image in enumerate(images) if np.array_equal(image[2], pixels)]
    x, y, _ = images[at]
    higher = [image for image in images if abs(image[0] - x) < 1e-6 and image[1] < y - 1e-6]
    highest = max(higher, key=lambda image: image[1]) if higher else (x, y, None)
    near = [word for word in words if abs(word[0] - x) < 1e-6 and 0 < y - word[1] < 1.2]
    return highest[2], max(near, key=lambda word: word[1])[2] if near else ""


def make_arm(name, seeds, labels, val_labels, strength, uses_pool=False):
    """Labels of test, of val, and for policy_val half of those of val."""
    runs = []
    log_prior = np.log(np.array([0.6, 0.2, 0.15, 0.05]))
    shares = np.array([[0.0, 0.1, 0.2, 0.5], [0.0, 0.1, 0.2, 0.3]])
    for seed in seeds:
        rng = np.random.default_rng([len(name), seed])
        logits = lambda y, rng=rng: (strength * np.eye(K)[y] + rng.normal(size=(len(y), K))).astype(
            np.float32
        )
        curves = [
            {"step": step, "loss": 1 / (1 + step), "val_balanced_accuracy": step / 200}
            for step in (0, 50, 100)
        ]
        cost = (10.0, 1000, 1e9, 0.4)
        test, val, policy_val = map(logits, (labels, val_labels, val_labels[::2]))
        mixed = shares + 0.01 * seed if uses_pool else None
        run = report.Run(seed, test, log_prior, val, curves, *cost, policy_val, mixed)
        runs.append(run)
    return report.Arm(
        name,
        "uniform" if uses_pool else "none",
        "balanced_softmax" if name == "balanced_softmax" else "cross_entropy",
        tuple(runs),
        doses=[0.0, 0.1, 0.2, 1.0] if uses_pool else None,
        uses_pool=uses_pool,
        unmet=[0, 0, 0, 37] if uses_pool else None,
    )


def make_inputs(seeds=(2, 0, 1), **changes):
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.arange(K), rng.choice(K, 116, p=[0.5, 0.2, 0.2, 0.1])])
    val_labels = np.tile(np.arange(K), 10)
    images = lambda n: rng.integers(0, 256, (n, 8, 8, 3)).astype(np.uint8)
    inputs = report.ReportInputs(
        command="python -m lt_jax.main --config=configs/digits.py",
        config={"data": {"source": "digits"}, "rate": float("nan"), "seeds": (0, 1)},
        environment={
            "python": "3.11",
            "jax": "0.10.2",
            "jaxlib": "0.10.2",
            "flax": "0.12.8",
            "device": "cpu",
            "device_count": 2,
        },
        dataset=report.Dataset(
            "toy",
            CLASSES,
            (400, 100, 50, 10),
            {"head": (0,), "medium": (1, 2), "tail": (3,)},
            "ab" * 32,
            "grouped by lesion",
            1,
            labels,
            [f"g{i // 2}" for i in range(120)],
            val_labels,
            val_labels[::2],
        ),
        arms=(
            make_arm("ce", seeds, labels, val_labels, 1.0),
            make_arm("balanced_softmax", seeds, labels, val_labels, 2.5),
            make_arm("synthetic", seeds, labels, val_labels, 1.0, uses_pool=True),
        ),
        evaluate=EvaluateConfig(baseline="ce", resamples=200, permutations=200),
        pool=report.Pool(
            30,
            20,
            {"ood": 7, "label": 3},
            [{"class": name, "generated": 8, "accepted": 5, "keep": 0.625} for name in CLASSES],
        ),
        gallery=report.Gallery(
            {"nv": images(9), "df": images(3)},
            {"df": (images(7), list(np.linspace(0, 9, 7)))},
            {"df": (images(2), [20.0, 30.0], ["ood", "label"])},
        ),
        costs=(report.StageCost("generator", 100.0, 5000, 1e12),),
        skipped=("ISIC_0001.jpg: truncated",),
    )
    return dataclasses.replace(inputs, **changes)


@pytest.fixture
def inputs():
    return make_inputs()

"""What networks show of themselves: pictures hold the numbers, sums stay sums."""

import dataclasses
import json

import numpy as np
import pytest

from lt_jax.evaluate import report
from lt_jax.evaluate.images import explained, maps
from lt_jax.evaluate.images.explained import Answer, Example, Pictures, Saliency, Strip, Strips
from lt_jax.evaluate.report import explained_figures as charts
from lt_jax.evaluate.report import picture
from lt_jax.runtime.ledger import Ledger
from tests.evaluate.conftest import CLASSES, laid_out, make_inputs, section

N = 30


def make_pictures(rollout=True, examples=8):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (examples, 12, 12, 3)).astype(np.uint8)

    def answer(predicted):
        attribution = rng.normal(size=(12, 12))
        total = float(attribution.sum())
        seen = rng.random((3, 3)) if rollout else None
        return Answer(predicted, 0.75, attribution, total - 0.01, 0.01, seen)

    points = maps.Maps(
        {name: maps.Map(rng.normal(size=(N, 2)), 0.9, 7) for name in ("tsne", "umap")},
        np.arange(N) % 3,
        np.arange(N) % 4,
        tuple(f"image {i}" for i in range(N)),
        {"train": 400, "val": 10, "synthetic": 10},
    )
    held = tuple(
        Example(f"v{i}", i % 4, images[i], (answer(i % 4), answer((i + 1) % 4)))
        for i in range(examples)
    )
    strips = tuple(Strip(k, 10 * k, images[:4], images[3].copy()) for k in (3, 2))
    return Pictures(
        points,
        Saliency((("ce", 0), ("balanced_softmax", 1)), held, 64),
        Strips(np.array([-15.0, -1.0, 0.0, 5.0]), 20, "ddim, 20 steps", strips),
        {"maps": Ledger(3.0, 10), "strips": Ledger(1.5, 80)},
    )


def plain():
    """One arm and seed, and no images: a page of seconds."""
    made = make_inputs(seeds=(0,), gallery=None)
    return dataclasses.replace(made, arms=made.arms[:1])


@pytest.fixture(scope="module")
def drawn():
    return {made.name: made for made in charts.pictures(make_pictures(), make_inputs().dataset)}


def test_every_part_has_its_pictures(drawn, tmp_path):
    assert list(drawn) == ["map_tsne", "map_umap", "saliency_0", "saliency_1", "strips"]
    assert not list(charts.pictures(None, make_inputs().dataset))
    assert not list(charts.pictures(Pictures(), make_inputs().dataset))
    assert len(picture.save(drawn.values(), tmp_path)) == 5


def test_a_map_shows_every_point_once_and_how_far_to_trust_it():
    given = make_pictures()
    (made, _, *_) = charts.pictures(given, make_inputs().dataset)
    axes = made.figure.axes[0]
    drawn = np.concatenate(
        [dots.get_offsets() for dots in axes.collections if len(dots.get_offsets())]
    )
    places = given.maps.maps["tsne"].places
    np.testing.assert_allclose(np.sort(drawn, axis=0), np.sort(places, axis=0))
    assert "trustworthiness 0.900 (k=7, n=30)" in axes.get_title(loc="left")
    assert [row[:3] for row in made.numbers.rows[:2]] == [
        ("image 0", "nv", "train"),
        ("image 1", "mel", "val"),
    ]


@pytest.mark.parametrize("rollout", [True, False])
def test_saliency_shows_the_image_and_every_map(rollout):
    whole = make_pictures(rollout).saliency
    found = dataclasses.replace(whole, examples=whole.examples[:2])
    images, words = laid_out(charts.saliency_sheet(found, CLASSES))
    assert len(images) == 2 * (1 + 2 * (1 + rollout))
    answer = found.examples[0].answers[0]
    for expected in (found.examples[0].image, answer.attribution, answer.rollout):
        shapes = [pixels for *_, pixels in images if expected is not None]
        assert expected is None or any(
            np.array_equal(pixels, expected) for pixels in shapes if pixels.shape == expected.shape
        )
    said = [text for *_, text in words]
    assert "ce: nv (0.75), right" in said and "balanced_softmax: mel (0.75), wrong" in said
    assert ("rollout" in said) == rollout


def test_block_sums_keep_the_total_and_the_completeness_is_told():
    values = np.random.default_rng(0).normal(size=(13, 9))
    for most in (1, 4, 8, 20):
        blocks = charts.blocked(values, most)
        assert blocks.shape == (min(13, most), min(9, most))
        np.testing.assert_allclose(blocks.sum(), values.sum())
    np.testing.assert_array_equal(charts.blocked(values, 13), values)
    told = charts.saliency_numbers(make_pictures().saliency, CLASSES)
    at = {name: i for i, name in enumerate(told.columns)}
    assert len(told.rows) == 8 * 2 * 2
    for row in told.rows:
        sums = np.array(row[at["sums, row by row"]].split(), float)
        if row[at["method"]] == "integrated gradients":
            expected = row[at["logit minus that of black"]] + row[at["gap of the sum"]]
            np.testing.assert_allclose(sums.sum(), expected, atol=0.05)
            assert row[at["blocks"]] == "8x8"
        else:
            assert row[at["blocks"]] == "3x3" and row[at["gap of the sum"]] is None


def test_a_strip_ends_beside_the_pool_s_image():
    found = make_pictures().strips
    images, words = laid_out(charts.strip_sheet(found, CLASSES))
    assert len(images) == 2 * (4 + 1)
    np.testing.assert_array_equal(images[4][2], found.strips[0].kept)
    assert "-15.0" in [text for *_, text in words]
    rows = charts.strip_numbers(found, CLASSES).rows
    assert rows[3][4] == rows[3][5] == 0.0 and rows[0][4] > 0  # RMS to the last, and to the pool's
    np.testing.assert_allclose(rows[2][3], np.sqrt(0.5))  # sigma at equal signal and noise


def test_the_report_keeps_what_can_be_said_and_the_page_says_it(tmp_path):
    given = make_pictures()
    returned = report.write(dataclasses.replace(plain(), pictures=given), tmp_path)
    kept = returned["pictures"]
    assert kept["maps"]["maps"]["umap"] == {"trustworthiness": 0.9, "k": 7}
    assert kept["saliency"]["images"] == 8 and kept["strips"]["classes"] == ["df", CLASSES[2]]
    assert kept["costs"]["maps"] == {"seconds": 3.0, "images": 10}
    json.dumps(kept, allow_nan=False)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    for name, count in (("maps", 2), ("saliency", 2), ("strips", 1)):
        part = section(html, name)
        assert part.count("<img") == part.count("The numbers: ") == count
    assert "10 of 400 train" in section(html, "maps")
    assert "report: strips" in section(html, "costs")


def test_without_pictures_the_page_has_no_such_sections(tmp_path):
    returned = report.write(plain(), tmp_path)
    assert returned["pictures"] is None and explained.summary(None, CLASSES) is None
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not any(f'"#{name}"' in html for name in ("maps", "saliency", "strips"))
    assert explained.summary(Pictures(), CLASSES)["saliency"] is None

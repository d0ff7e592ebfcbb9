"""Charts hold the numbers they were given, draw without warnings and save as PNG."""

import numpy as np
import pytest
from PIL import Image

from lt_jax.evaluate.report import figures, gallery
from tests.evaluate.conftest import laid_out

CLASSES = ("a", "b", "c")
COUNTS = np.array([5, 50, 500])


def saved(figure, tmp_path):
    path = tmp_path / "figure.png"
    figures.save(figure, path)
    with Image.open(path) as image:
        image.load()
        assert image.width == round(figures.WIDTH * figures.DPI)
        assert [p.name for p in tmp_path.iterdir()] == ["figure.png"]
        return np.asarray(image.convert("RGB"))


def test_histogram_bars_are_the_counts_most_frequent_first(tmp_path):
    figure = figures.class_histogram(CLASSES, COUNTS, np.array([30, 20, 0]))
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths == [500, 50, 5, 0, 20, 30]
    assert saved(figure, tmp_path).std() > 0


def test_learning_curves_draw_the_mean_and_a_band_for_several_seeds(tmp_path):
    steps = np.array([0, 10, 20])
    several = np.array([[0.0, 1.0, 2.0], [2.0, 3.0, 4.0]])
    panel = {"ce": (steps, several), "one": (steps, several[:1])}
    figure = figures.learning_curves({"loss": panel})
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [1, 2, 3])
    assert len(axes.collections) == 1  # one seed has no band
    saved(figure, tmp_path)


def test_recall_dots_sort_classes_and_leave_out_undefined_ones(tmp_path):
    recall = np.array([[0.1, 0.5, 0.9], [0.3, 0.5, 0.7]])
    figure = figures.recall_dots(CLASSES, {"ce": recall, "bs": recall[:1] * np.nan}, COUNTS)
    np.testing.assert_allclose(figure.axes[0].lines[0].get_xdata(), [0.8, 0.5, 0.2])
    saved(figure, tmp_path)


def test_forest_and_ledger(tmp_path):
    forest = figures.forest(["x", "y"], [0.1, -0.1], [(0.05, 0.2), None], ["p=1", "p=1"], "title")
    saved(forest, tmp_path)
    ledger = figures.ledger_bars(["x", "y"], np.array([1.0, 2.0]), np.array([0.0, 5.0]))
    assert [bar.get_width() for bar in ledger.axes[0].patches] == [1, 2, 0, 5]
    saved(ledger, tmp_path)


def test_arms_differ_by_more_than_colour():
    looks = [tuple(map(str, figures.style(i).values())) for i in range(40)]
    assert len(set(looks)) == 40
    assert len({figures.style(i)["marker"] for i in range(10)}) == 10


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("n", [0, 1, 30])
def test_galleries_of_any_size_and_channel(tmp_path, n, channels):
    images = np.random.default_rng(0).integers(0, 256, (n, 6, 6, channels)).astype(np.uint8)
    saved(gallery.side_by_side("a", images, images, [1.0] * n), tmp_path)
    saved(gallery.rejected("a", images, [1.0] * n, ["ood"] * n), tmp_path)


def test_a_gallery_shows_the_images_pixels():
    images = np.random.default_rng(0).integers(0, 256, (3, 6, 6, 3)).astype(np.uint8)
    figure = gallery.side_by_side("a", images, images[:0], [])
    shown = [pixels for _, _, pixels in laid_out(figure)[0]]
    np.testing.assert_array_equal(np.stack(shown), images)


def test_scores_that_do_not_match_the_images_are_refused():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="2 images with 1 scores"):
        gallery.side_by_side("a", images, images, [1.0])

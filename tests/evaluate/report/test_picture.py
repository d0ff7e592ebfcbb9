"""No picture without its numbers and its description; what is written is what was given."""

import csv
import io

import numpy as np
import pytest
from PIL import Image

from lt_jax.evaluate.report import figures, picture
from lt_jax.evaluate.report.picture import Numbers, Picture, PictureError, numbers


def made(name="chart", rows=(("a", 1, 0.25), ("b, c", 2, np.nan))):
    figure = figures.new_figure(1.0)
    figure.add_subplot().plot([0, 1], [1, 0])
    return Picture(name, "a line", figure, numbers(("name", "n", "share"), rows))


def test_numbers_are_written_whole_and_shown_in_part():
    held = made().numbers
    assert held.rows == (("a", 1, 0.25), ("b, c", 2, None))  # NaN is no number
    read = list(csv.reader(io.StringIO(held.csv())))
    assert read == [["name", "n", "share"], ["a", "1", "0.25"], ["b, c", "2", ""]]
    long = numbers(("n",), [(np.int64(1000 * i),) for i in range(100)])
    assert len(long.shown()) == picture.SHOWN and long.shown()[2] == ["2,000"]
    assert len(list(csv.reader(io.StringIO(long.csv())))) == 101
    (wide,) = numbers(("text",), [("x" * 500,)]).shown()
    assert len(wide[0]) == picture.WIDE and wide[0].endswith("…")


@pytest.mark.parametrize(
    "build",
    [
        lambda: Numbers((), ()),
        lambda: Numbers(("a",), ()),
        lambda: Numbers(("a", "b"), ((1,),)),
        lambda: made(name="no/name"),
        lambda: Picture("name", " ", figures.new_figure(1.0), made().numbers),
    ],
)
def test_a_picture_without_numbers_a_name_or_words_is_refused(build):
    with pytest.raises(PictureError):
        build()


def test_a_figure_lies_beside_its_numbers(tmp_path):
    drawn = picture.save([made("one"), made("two")], tmp_path)
    assert list(drawn) == ["one", "two"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "one.csv",
        "one.png",
        "two.csv",
        "two.png",
    ]
    assert (tmp_path / "one.csv").read_text() == drawn["one"].numbers.csv()
    with Image.open(drawn["two"].path) as image:
        assert image.size == drawn["two"].size == (5 * figures.DPI, figures.DPI)
    with pytest.raises(PictureError, match="two pictures are called 'one'"):
        picture.save([made("one"), made("one")], tmp_path / "twice")


def test_charts_have_a_palette_that_looks_the_same_and_photographs_their_colours(tmp_path):
    chart = made().figure
    chart.canvas.draw()
    before = np.asarray(chart.canvas.buffer_rgba())[..., :3].astype(int)
    figures.save(chart, tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as image:
        assert image.mode == "P"
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - before).mean() < 0.5
    photograph = figures.new_figure(2.0, layout=None)
    axes = photograph.add_axes((0, 0, 1, 1))
    axes.imshow(np.random.default_rng(0).random((100, 100, 3)))
    figures.save(photograph, tmp_path / "photograph.png")
    with Image.open(tmp_path / "photograph.png") as image:
        assert image.mode == "RGB"

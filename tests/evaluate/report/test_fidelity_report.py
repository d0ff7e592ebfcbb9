"""Fidelity and sources in the report: kept, shown and drawn as measured; told where too few."""

import dataclasses
import json

import numpy as np
import pytest

from lt_jax import reporting
from lt_jax.data.manifest import SplitManifest
from lt_jax.data.pool import PoolInfo, PoolReader, PoolWriter
from lt_jax.evaluate import report
from lt_jax.evaluate.images import fidelity
from lt_jax.evaluate.report import figures, gallery
from tests.evaluate.conftest import CLASSES, above, laid_out, make_inputs, section

# Images a class of train, val and the pool; the last class has too few of val for anything.
COUNTS = {"train": (60, 40, 30, 20), "val": (25, 20, 12, 1), "synthetic": (40, 30, 30, 30)}


@pytest.fixture(scope="module")
def measured():
    """As fidelity.json has it; synthetic images of class 1 lie far off, those of 2 are copies."""
    rng = np.random.default_rng(0)
    sets = {}
    for name, counts in COUNTS.items():
        labels = np.repeat(np.arange(4), counts)
        sets[name] = rng.normal(size=(len(labels), 6)) + 3 * np.eye(4, 6)[labels], labels
    (train, train_labels), (made, made_labels) = sets["train"], sets["synthetic"]
    made[made_labels == 1] += 4
    made[made_labels == 2] = train[train_labels == 2]
    found = fidelity.report(*sets["train"], *sets["val"], made, made_labels)
    return {"class_names": list(CLASSES), **found}


@pytest.fixture(scope="module")
def written(measured, tmp_path_factory):
    inputs = make_inputs(seeds=(0,))
    pool = dataclasses.replace(inputs.pool, fidelity=measured)
    out = tmp_path_factory.mktemp("report")
    return report.write(dataclasses.replace(inputs, pool=pool), out), out


def test_the_json_keeps_matched_floor_and_nearest_of_every_class(measured, written):
    kept = written[0]["pool"]["fidelity"]
    assert [row["class"] for row in kept["per_class"]] == list(CLASSES)
    for row, entry in zip(kept["per_class"], measured["classes"], strict=True):
        for side in ("matched", "floor"):
            assert set(row[side]) == {*fidelity.MEASURES, "kid_std"}
            assert row[side] == {name: entry[side][name] for name in row[side]}
        assert row["nearest"]["closer_than_val"] == entry["nearest"]["closer_than_val"]
        assert row["nearest"]["val_median"] == entry["nearest"]["val"]["median"]
    assert [row["n"] for row in kept["per_class"]] == [25, 20, 12, 1]
    near, far, copies, few = kept["per_class"]
    assert near["reasons"] == {} and far["matched"]["kid"] > 10 * far["floor"]["kid"]
    assert copies["nearest"]["synthetic_median"] == 0 < copies["nearest"]["val_median"]
    assert set(few["matched"].values()) == {None}
    assert set(few["reasons"]) == {*few["matched"], "closer_than_val"}
    assert kept["macro"]["floor"]["recall"] == measured["macro"]["floor"]["recall"]
    json.dumps(kept, allow_nan=False)


def test_without_fidelity_the_json_has_null_and_the_page_no_table(tmp_path):
    returned = report.write(make_inputs(seeds=(0,), gallery=None), tmp_path)
    assert returned["pool"]["fidelity"] is None
    assert "How near the synthetic" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not (tmp_path / "figures" / "fidelity.png").exists()


def test_the_page_sets_floor_below_matched_and_says_where_images_are_too_few(written):
    returned, out = written
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "How near the synthetic images come to train (beside held-out real ones)" in html
    rows = dict(table_rows(html))
    assert list(rows) == ["df", "bkl &amp; &lt;b&gt;", "mel", "nv", "Mean"]  # rarest first
    near = returned["pool"]["fidelity"]["per_class"][0]
    matched, floor = near["matched"]["recall"], near["floor"]["recall"]
    assert f"<td>{matched:.3g}<small>{floor:.3g}</small></td>" in rows["nv"]
    error = near["matched"]["kid_std"]
    assert f"<td>{near['matched']['kid']:.3g} ± {error:.2g}<small>" in rows["nv"]
    assert "60 train, 25 val, 40 synthetic; 25 a side" in rows["nv"] and "few" not in rows["nv"]
    assert rows["df"].count("<td>too few") == 7  # all but the distance to train
    assert rows["Mean"].count("(n=3)") == 12 and rows["Mean"].count(" ± ") == 12
    assert (out / "figures" / "fidelity.png").exists()
    assert html.count("<img") == len(list((out / "figures").glob("*.png")))


def table_rows(html):
    # Behind the table of the figure's numbers.
    part = section(html, "fidelity").split("<tbody>")[2].split("</tbody>")[0]
    for row in part.split("</tr>")[:-1]:
        yield row.split("<th>")[1].split("<small>")[0], row


def test_a_pool_too_small_for_any_measure_has_a_table_and_no_figure(measured, tmp_path):
    few = [entry for entry in measured["classes"] if entry["label"] == 3]
    small = {**measured, "classes": few}
    inputs = make_inputs(seeds=(0,), gallery=None)
    pool = dataclasses.replace(inputs.pool, fidelity=small)
    report.write(dataclasses.replace(inputs, pool=pool), tmp_path)
    assert "too few (n=0)" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not (tmp_path / "figures" / "fidelity.png").exists()


def test_the_marks_are_the_values_and_gaps_are_told(tmp_path):
    kid = np.array([[0.3, np.nan, 0.1], [0.02, np.nan, 0.0]])
    errors = np.array([[0.1, np.nan, np.nan], [0.01, np.nan, np.nan]])
    panels = {"kid": (kid, errors), "recall": (1 - kid, np.full((2, 3), np.nan))}
    figure = figures.fidelity_marks(("a", "b", "c"), panels)
    for axes, expected in zip(figure.axes, (kid, 1 - kid), strict=True):
        drawn = [line.get_xdata() for line in axes.lines]
        np.testing.assert_array_equal(drawn, expected)
        assert [text.get_text() for text in axes.texts] == ["too few images"]
        assert axes.texts[0].get_position()[1] == 1
    ends = figure.axes[0].collections[0].get_segments()[0]
    np.testing.assert_allclose(np.asarray(ends)[:, 0], [0.2, 0.4])
    figures.save(figure, tmp_path / "figure.png")


def pictures(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 6, 6, 3)).astype(np.uint8)


@pytest.mark.parametrize("n", [1, 6, 8, 30])
def test_every_synthetic_image_stands_below_its_source(tmp_path, n):
    real, synthetic = pictures(n), pictures(n, 1)
    sources = [report.Source(image, "a" if i % 2 else "b") for i, image in enumerate(real)]
    if n > 1:
        sources[0] = None
    scores = [i / 8 for i in range(n)]
    figure = gallery.side_by_side("a", real[:3], synthetic, scores, sources)
    images, words = laid_out(figure)
    shown = min(n, 2 * gallery.COLUMNS)
    assert len(images) == min(n, 3) + 2 * shown - (n > 1)
    for i in range(shown):
        made_from, caption = above(images, words, synthetic[i])
        if sources[i] is not None:
            np.testing.assert_array_equal(made_from, sources[i].image)
        assert caption.endswith(f"{i / 8:.2f}")
        assert caption.startswith("from b") == (sources[i] is not None and i % 2 == 0)
    figures.save(figure, tmp_path / "figure.png")


def test_images_made_from_noise_keep_the_plain_gallery():
    figure = gallery.side_by_side("a", pictures(2), pictures(7, 1), [0.0] * 7, [None] * 7)
    images, words = laid_out(figure)
    assert len(images) == 9 and sum(text == "0.00" for *_, text in words) == 7


def test_sources_that_do_not_match_the_images_are_refused():
    source = report.Source(pictures(1)[0], "a")
    with pytest.raises(ValueError, match="a: 2 images with 2 scores and 1 sources"):
        gallery.side_by_side("a", pictures(2), pictures(2), [0.0, 0.0], [source])


def make_pool(folder, notes, **changes):
    """A manifest whose rows are not in the order of its splits, and a pool of two classes.

    Images of candidates that fail as memorised are not kept.
    """
    n = 6
    nothing = ((),) * n
    manifest = SplitManifest(
        ids=tuple(f"image {i}" for i in range(n)),
        images=("",) * n,
        labels=np.array([0, 1, 0, 1, 1, 0]),
        groups=tuple(f"g{i}" for i in range(n)),
        splits=("val", "train", "train", "test", "train", "train"),
        masks=nothing,
        boxes=nothing,
        devices=(None,) * n,
        attributes=({},) * n,
        image_sha256=tuple(f"{i:064x}" for i in range(n)),
        classes=("first", "second"),
    )
    info = PoolInfo("g", "e", manifest.sha256, 0, manifest.classes, 1.0, "ddim", (0.0, 0.0), 0.0)
    m = len(notes)
    columns = {
        "index": np.arange(m),
        "label": np.arange(m) % 2,
        "source_label": np.arange(m) % 2,
        "label_weight": np.ones(m),
        "conditions": [json.dumps(note) for note in notes],
        "score": np.arange(m, dtype=float),
        "scores": ["{}"] * m,
        "label_probability": np.ones(m),
        "cosine": np.linspace(0.5, 0.8, m),
        "ms_ssim": np.linspace(0.4, 0.9, m),
        "nearest": ["image 1"] * m,
        "failed": [""] * m,
        "verdict": ["accepted"] * m,
    }
    columns |= changes
    kept = np.flatnonzero(np.array(columns["failed"]) != "memorised")
    with PoolWriter(folder, info) as writer:
        writer.write(0, pictures(m, 2)[kept], columns, kept)
        writer.finish(np.array([m, m]))
    return manifest, PoolReader(folder, manifest.sha256)


def test_a_run_looks_up_its_sources_and_its_fidelity(tmp_path, measured):
    notes = [{"source": "image 5"}, {"source": "image 2"}, {}, {"source": "image 4"}]
    manifest, pool = make_pool(tmp_path, notes)
    images = pictures(6)
    sources = reporting._gallery(manifest, images, pool).sources
    assert sources["first"][1] is None  # made from noise
    for source, row, label in (
        (sources["first"][0], 5, "first"),
        (sources["second"][0], 2, "first"),  # a source of another class
        (sources["second"][1], 4, "second"),
    ):
        np.testing.assert_array_equal(source.image, images[row])
        assert source.label == label
    assert reporting._pool(pool, tmp_path).fidelity is None
    (tmp_path / "fidelity.json").write_text(json.dumps(measured))
    assert reporting._pool(pool, tmp_path).fidelity == measured

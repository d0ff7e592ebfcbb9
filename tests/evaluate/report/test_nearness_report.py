"""Copies in the report: counted, drawn and shown as the audit found them; nothing without one."""

import copy
import dataclasses
import json

import numpy as np
import pytest

from lt_jax import reporting
from lt_jax.evaluate import report
from lt_jax.evaluate.report import figures, gallery, nearness
from tests.evaluate.conftest import CLASSES, above, laid_out, make_inputs, section
from tests.evaluate.report.test_fidelity_report import make_pool, pictures

EDGES = np.linspace(0.5, 1.0, 11).tolist()


def distribution(n, highest):
    histogram = np.bincount(np.arange(n) % 10, minlength=10).tolist()
    middle = {"p5": 0.55, "median": round(highest - 0.2, 3), "p95": highest - 0.01, "max": highest}
    return {"n": n, **(middle if n else dict.fromkeys(middle)), "histogram": histogram}


def entry(candidates, copies, accepted, val):
    sets = lambda top: {
        "candidates": distribution(candidates, top),
        "accepted": distribution(accepted, top - 0.1),
        "val": distribution(val, top - 0.05),
    }
    counts = {"candidates": candidates, "measured": candidates, "copies": copies}
    return {**counts, "accepted": accepted, "val": val, "cosine": sets(0.95), "ms_ssim": sets(0.9)}


def pair(index, name="nv"):
    likeness = {"cosine": 0.9, "ms_ssim": 0.8}
    return {"index": index, "class": name, "nearest": "image 1", **likeness}


@pytest.fixture(scope="module")
def audited():
    """As audit.json has it; the rarest class has few val images, one class nothing at all."""
    numbers = ((40, 2, 30, 300), (30, 0, 20, 250), (0, 0, 0, 0), (20, 8, 10, 5))
    limits = {"cosine": 0.93, "ms_ssim": 0.88}
    return {
        "similarity": "both",
        "false_alarm": 0.01,
        "least_val": 199,
        "edges": {"cosine": EDGES, "ms_ssim": EDGES},
        "classes": [
            {"class": name, "limits": limits, **entry(*counts)}
            for name, counts in zip(CLASSES, numbers, strict=True)
        ],
        "overall": entry(90, 10, 60, 555),
        "closest": {"accepted": [pair(3)], "copies": [pair(5)]},
    }


def write(audited, out, **closest):
    inputs = make_inputs(seeds=(0,))
    pool = dataclasses.replace(inputs.pool, memorization=audited)
    pictures = dataclasses.replace(inputs.gallery, closest=closest)
    return report.write(dataclasses.replace(inputs, pool=pool, gallery=pictures), out)


def made_pair(seed=0, nearest="nv", label="nv"):
    real, synthetic = pictures(2, seed)
    return report.Pair(synthetic, label, report.Source(real, nearest), 0.91, 0.82)


@pytest.fixture(scope="module")
def written(audited, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    return write(audited, out, accepted=[made_pair()], copies=[made_pair(1)]), out


def test_the_json_keeps_counts_and_quantiles_of_every_class(audited, written):
    kept = written[0]["pool"]["memorization"]
    assert [row["class"] for row in kept["per_class"]] == list(CLASSES)
    for row, source in zip(kept["per_class"], audited["classes"], strict=True):
        assert "histogram" not in json.dumps(row)
        assert row["copies"] == source["copies"] and row["limits"] == source["limits"]
        assert row["ms_ssim"]["val"]["max"] == source["ms_ssim"]["val"]["max"]
    assert kept["overall"] == audited["overall"] and kept["closest"] == audited["closest"]
    assert len(audited["classes"]) == 4  # what was given is left as it is
    json.dumps(kept, allow_nan=False)


def test_the_page_counts_copies_rarest_class_first_and_names_those_with_few_val_images(written):
    html = (written[1] / "report.html").read_text(encoding="utf-8")
    part = section(html, "copies")
    rows = part.split("<tbody>")[2].split("</tbody>")[0].split("</tr>")[:-1]
    names = [row.split("<th>")[1].split("<small>")[0] for row in rows]
    assert names == ["df", "bkl &amp; &lt;b&gt;", "mel", "nv", "All"]
    assert "<td>8<small>40.0%</small></td>" in rows[0]
    assert "20 of 20 candidates compared, 5 val" in rows[0]
    assert "<td>0.700<small>0.650</small></td>" in rows[0]  # MS-SSIM, medians
    assert "<td>0.800<small>0.850; 0.880</small></td>" in rows[0]  # the highest, and the limit
    assert "<td>0<small></small></td>" in rows[1] and "none" in rows[1]
    assert "<td>10<small>11.1%</small></td>" in rows[4] and "0.880" not in rows[4]
    few = part.split("Too few val images")[1].split("</p>")[0]
    assert "(it takes 199): df, bkl &amp; &lt;b&gt;." in few
    for name in ("nearness", "closest_accepted", "closest_copies"):
        assert (written[1] / "figures" / f"{name}.png").exists()
    assert html.count("<img") == len(list((written[1] / "figures").glob("*.png")))
    assert "keep_rejected" not in part


def test_copies_without_an_image_are_told_and_none_is_not(audited, tmp_path):
    write(audited, tmp_path / "some")
    html = (tmp_path / "some" / "report.html").read_text(encoding="utf-8")
    assert "keep_rejected keeps them" in html and "closest" not in html.split("<style>")[0]
    assert not list((tmp_path / "some" / "figures").glob("closest*"))
    clean = copy.deepcopy(audited)
    clean["overall"]["copies"] = 0
    write(clean, tmp_path / "none")
    assert "keep_rejected" not in (tmp_path / "none" / "report.html").read_text(encoding="utf-8")


def test_without_a_gate_the_json_has_null_and_the_page_no_section(tmp_path):
    returned = report.write(make_inputs(seeds=(0,)), tmp_path)
    assert returned["pool"]["memorization"] is None
    assert "Copies of train" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not (tmp_path / "figures" / "nearness.png").exists()


def test_the_histograms_are_the_shares_of_each_set(tmp_path):
    sets = {"real": [1, 3, 0], "candidates": [0, 2, 2], "accepted": [0, 0, 0]}
    figure = nearness.histograms({"likeness": (np.array([0.0, 0.5, 0.8, 1.0]), sets)})
    drawn = [patch.get_data() for patch in figure.axes[0].patches]
    np.testing.assert_allclose([d.values for d in drawn], [[0.25, 0.75, 0], [0, 0.5, 0.5]])
    np.testing.assert_array_equal(drawn[0].edges, [0.0, 0.5, 0.8, 1.0])
    labels = [text.get_text() for text in figure.legends[0].texts]
    assert labels == ["real (n=4)", "candidates (n=4)"]  # and no empty set
    figures.save(figure, tmp_path / "figure.png")


def test_every_synthetic_image_stands_below_its_train_image(tmp_path):
    pairs = [made_pair(seed, "df" if seed == 1 else "nv") for seed in range(8)]
    figure = gallery.closest("pairs", pairs)
    images, words = laid_out(figure)
    for i, shown in enumerate(pairs):
        nearest, caption = above(images, words, shown.image)
        np.testing.assert_array_equal(nearest, shown.nearest.image)
        lines = caption.split("\n")
        assert lines[0] == "nv" and lines[-1] == "0.820, 0.910"
        assert ("near df" in lines) == (i == 1)
    figures.save(figure, tmp_path / "figure.png")


def test_a_run_reads_its_audit_counts_its_copies_and_looks_up_the_pairs(tmp_path, audited):
    failed = {"failed": ["", "memorised", "", ""]}
    failed["verdict"] = [gates or "accepted" for gates in failed["failed"]]
    manifest, reader = make_pool(tmp_path, [{}] * 4, **failed)
    assert reporting._pool(reader, tmp_path).memorization is None
    closest = {"accepted": [pair(3, "second"), pair(0, "first")], "copies": [pair(1, "second")]}
    (tmp_path / "audit.json").write_text(json.dumps({**audited, "closest": closest}))
    counted = reporting._pool(reader, tmp_path)
    assert counted.rejected == {"ood": 0, "label": 0, "memorised": 1}
    assert [row["memorised"] for row in counted.per_class] == [0, 1]
    assert counted.memorization["overall"]["copies"] == 10
    images = pictures(6)
    found = reporting._gallery(manifest, images, reader, counted.memorization)
    assert found.closest["copies"] == []  # its image was not kept
    first, second = found.closest["accepted"]
    np.testing.assert_array_equal(first.image, pictures(4, 2)[3])
    np.testing.assert_array_equal(second.image, pictures(4, 2)[0])
    np.testing.assert_array_equal(first.nearest.image, images[1])
    assert (first.label, first.nearest.label, first.ms_ssim) == ("second", "second", 0.8)
    assert "second" not in found.rejected
    assert reporting._gallery(manifest, images, reader, None).closest == {}


def test_a_limit_that_is_not_in_force_is_not_printed(audited, tmp_path):
    told = copy.deepcopy(audited)
    for row in told["classes"]:
        row["limits"] = {"ms_ssim": 0.88}
    write({**told, "similarity": "ms_ssim"}, tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    part = section(html, "copies")
    assert "0.880" in part and "0.930" not in part


def test_the_page_says_how_copies_are_counted(written):
    html = (written[1] / "report.html").read_text(encoding="utf-8")
    assert "rejected, each by the first gate that it failed: " in html
    assert "counted here whichever other gates it failed" in html

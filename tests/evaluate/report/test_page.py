"""The page: every picture has its numbers, contents and headings agree, and it fits a phone."""

import base64
import dataclasses
import html as html_lib
import re
import shutil

import numpy as np
import pytest

from lt_jax.evaluate import report
from lt_jax.evaluate.report import page, sections
from tests.evaluate.conftest import CLASSES, make_inputs, section
from tests.evaluate.images.test_explained import make_pictures
from tests.evaluate.report.test_mixing_report import make_learning
from tests.evaluate.statistics import test_detection

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FOUND = next(filter(None, map(shutil.which, BROWSERS)), None)


def histogram(n):
    return {"median": 0.5, "histogram": [n, 0, 2 * n]}


def make_audit():
    """As the parts of the audit have it, of two classes."""
    near = {
        "edges": [0.0, 0.4, 0.8, 1.0],
        "overall": {
            "synthetic": histogram(1),
            "val": histogram(2),
            "ks": {"statistic": 0.2, "p": 0.04, "p_nearer": 0.5, "n": 3, "n_val": 6},
            "beyond": {"count": 1, "n": 3, "share": 1 / 3, "n_val": 6, "p": 0.31}
            | {"expected": 0.1, "expected95": [0.0, 0.7]},
        },
    }
    area = {"auroc": 0.6, "ci95": [0.5, 0.7], "p": 0.03, "n_positive": 9, "n_negative": 8}
    area["p_holm"] = 0.06
    guess = {
        **area,
        "tpr": {"tpr": 0.1, "ci95": [0.0, 0.2], "reason": None},
        "roc": {"fpr": [0.0, 0.5, 1.0], "tpr": [0.0, 0.7, 1.0]},
    }
    probe = {"class": "nv", "probe": area, "floor": None, "reasons": {"floor": "1 group"}}
    together = {"class": "all", "probe": {**area, "p_holm": None}, "floor": None, "reasons": {}}
    pairs = {"mean": 0.3, "ci95": [0.2, 0.4], "n": 5, "pairs": 10}
    score = {"mean": 0.5, "std": 0.1, "n": 2, "values": [0.4, 0.6]}
    return {
        "nearness": {"accepted": {"cosine": near, "ms_ssim": near}},
        "membership": {
            "members": 9,
            "non_members": 8,
            "mean": guess,
            "calibrated": None,
            "reasons": {"calibrated": "takes 5 groups"},
            "times": [{**area, "time": 0.1}, {**area, "time": 0.5, "ci95": None}],
        },
        "probe": {"classes": [probe], "overall": together},
        "diversity": {
            "classes": [
                {"class": "nv", "synthetic": pairs, "real": pairs, "difference": 0.0, "ci95": None}
                | {"reasons": {}},
                {"class": "df", "synthetic": None, "real": pairs, "difference": None}
                | {"ci95": None, "reasons": {"difference": "takes both sides"}},
            ]
        },
        "accuracy_score": {
            "seeds": [0, 1],
            "val": {"synthetic": score, "real": score},
            "test": {"synthetic": score, "real": score},
            "cost": {"seconds": 12.0, "images": 3, "flops": 1.0},
        },
    }


def make_everything():
    made = make_inputs()
    return dataclasses.replace(
        made,
        pool=dataclasses.replace(made.pool, audit=make_audit()),
        pictures=make_pictures(),
        learning=make_learning(),
        detection=test_detection.inputs(),
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    report.write(make_everything(), out)
    return out, (out / "report.html").read_text(encoding="utf-8")


def test_contents_and_headings_agree_and_stand_in_order(written):
    _, html = written
    contents = re.findall(r'<li><a href="#(\w+)">([^<]+)</a></li>', html)
    headings = re.findall(r'<h2 id="(\w+)">([^<]+)</h2>', html)
    assert contents == headings
    absent = {"fidelity", "copies"}  # this pool has neither
    assert [name for name, _ in headings] == [n for n in page.SECTIONS if n not in absent]
    names = re.findall(r' id="([^"]+)"', html)
    assert len(names) == len(set(names))
    assert set(re.findall(r'href="#([^"]+)"', html)) - set(names) == {"closed"}


def test_every_picture_has_words_and_its_numbers_one_click_away(written):
    out, html = written
    figures = re.findall(r"<figure>(.*?)</figure>", html, re.DOTALL)
    assert len(figures) == html.count("<img") == len(list((out / "figures").glob("*.png"))) > 25
    for figure in figures:
        assert re.search(r'<img src="data:image/png;base64,[^"]+" alt="[^"]{10,}"', figure)
        assert re.search(r"<details class=.numbers.><summary>The numbers: [\d,]+ rows?<", figure)
        assert figure.count("<tr>") > 1
        name, data = re.search(
            r'download="(\w+)\.csv" href="data:text/csv;base64,([^"]+)"', figure
        ).groups()
        assert base64.b64decode(data) == (out / "figures" / f"{name}.csv").read_bytes()


def test_the_page_is_one_file_without_a_script(written):
    _, html = written
    assert "http" not in html and "<script" not in html and "url(" not in html
    assert not re.search(r'(?:src|href)="(?!#|data:)', html)
    assert "bkl &amp; &lt;b&gt;" in html and "<b>" not in html


def test_p_of_the_audit_are_corrected_or_called_uncorrected(written):
    part = section(written[1], "audit")
    assert "p=0.03, Holm p=0.06 (n=9+8)" in part and "p=0.03, uncorrected (n=9+8)" in part
    assert part.count("p=0.03 ") == 0


def test_class_by_class_has_both_kinds_of_intervals(written):
    _, html = written
    part = section(html, "classes")
    assert part.count("<details open>") == 1 and "ce, class by class" in part
    returned = report.read(written[0] / "report.json")
    entry = returned["arms"][0]["per_class"][3]
    low, high = entry["sensitivity_wilson95"]
    assert f"runs alone [{low:.3f}, {high:.3f}]" in part
    rows = re.findall(r"<tr><th>(.*?)<small>", part)
    assert rows[:4] == [html_lib.escape(name) for name in CLASSES[::-1]]  # rarest first


def test_tests_and_group_level_are_told(written):
    _, html = written
    part = section(html, "tests")
    assert "Against ce" in part and "Against balanced_softmax" in part
    assert "alone right, odds ratio" in part and "DeLong, df" in part
    assert "groups have images of several classes" in section(html, "groups")


def test_two_classes_have_a_positive_one(tmp_path):
    made = make_inputs(seeds=(0,), gallery=None, pool=None)
    made = dataclasses.replace(made, arms=made.arms[:2])
    two = lambda labels: (labels > 0).astype(int)
    merged = lambda x: None if x is None else np.stack([x[:, 0], x[:, 1:].max(axis=1)], axis=1)
    arms = tuple(
        dataclasses.replace(
            arm,
            doses=None,
            unmet=None,
            runs=tuple(
                dataclasses.replace(
                    run,
                    test_logits=merged(run.test_logits),
                    val_logits=merged(run.val_logits),
                    policy_val_logits=merged(run.policy_val_logits),
                    log_prior=run.log_prior[:2],
                    shares=None,
                )
                for run in arm.runs
            ),
        )
        for arm in made.arms
    )
    data = made.dataset
    dataset = dataclasses.replace(
        data,
        classes=("benign", "malignant"),
        train_counts=(400, 160),
        groups={"head": (0,), "medium": (), "tail": (1,)},
        test_labels=two(data.test_labels),
        val_labels=two(data.val_labels),
        policy_val_labels=two(data.policy_val_labels),
    )
    report.write(dataclasses.replace(made, arms=arms, dataset=dataset), tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "malignant, the positive class" in section(html, "classes")
    assert section(html, "curves").count("<img") == 1  # of the positive class alone
    assert (tmp_path / "figures" / "curves_001.csv").exists()


def test_of_many_classes_the_rarest_are_shown(tmp_path):
    k, n = 44, 176
    made = make_inputs(seeds=(0,), gallery=None, pool=None)
    labels, rng = np.arange(n) % k, np.random.default_rng(0)
    counts = tuple(range(100 + k, 100, -1))
    logits = (3 * np.eye(k)[labels] + rng.normal(size=(n, k))).astype(np.float32)
    run = report.Run(0, logits, np.zeros(k), logits, (), 1.0, 1, None)
    images = rng.integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    names = tuple(f"class_{c}" for c in range(k))
    data = dataclasses.replace(
        made.dataset,
        classes=names,
        train_counts=counts,
        groups={"head": tuple(range(k)), "medium": (), "tail": ()},
        test_labels=labels,
        test_groups=np.arange(n),
        val_labels=labels,
        policy_val_labels=None,
    )
    gallery = report.Gallery(dict.fromkeys(names, images), {}, {})
    changed = dataclasses.replace(
        made, arms=(report.Arm("ce", "none", "cross_entropy", (run,)),), dataset=data
    )
    report.write(dataclasses.replace(changed, gallery=gallery), tmp_path)
    drawn = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert {f"curves_{c:03d}" for c in range(k - 10, k)} <= drawn and "curves_000" not in drawn
    assert sum(name.startswith("gallery") for name in drawn) == 12
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "4 more frequent ones are in report.json" in html
    assert '<h2 id="tests">' not in html and '<h2 id="groups">' not in html


def test_values_of_json_that_is_no_object_make_no_protocol():
    assert sections.protocol("[1]") == [] == sections.protocol("by lesion")
    assert sections.number(None) == "" and sections.number(1234) == "1,234"


@pytest.mark.skipif(FOUND is None, reason="no Chromium to open the page in")
def test_a_phone_shows_it_without_scrolling_sideways_and_the_contents_leave_the_place(written):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=FOUND, args=["--no-sandbox"])
        asked = []
        view = browser.new_page(viewport={"width": 390, "height": 844})
        view.on("request", lambda request: asked.append(request.url[:5]))
        view.goto((written[0] / "report.html").as_uri())
        wide = "document.documentElement.scrollWidth"
        assert view.evaluate(wide) == 390
        assert set(asked) <= {"file:", "data:"}
        shown = view.locator("nav ol")
        assert not shown.is_visible()
        view.evaluate("document.getElementById('pool').scrollIntoView()")
        before = view.evaluate("scrollY")
        view.evaluate("document.querySelector('nav .open').click()")
        shown.wait_for(state="visible")
        assert before > 1000 and abs(view.evaluate("scrollY") - before) < 2
        view.evaluate("document.querySelector('nav .close').click()")
        shown.wait_for(state="hidden")
        assert abs(view.evaluate("scrollY") - before) < 2
        view.evaluate("document.querySelector('nav a[href=\"#maps\"]').click()")
        top = view.evaluate("document.getElementById('maps').getBoundingClientRect().top")
        assert 0 <= top < 100
        view.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert view.evaluate(wide) == 390  # tables scroll in boxes of their own
        view.set_viewport_size({"width": 1400, "height": 900})
        assert shown.is_visible() and view.evaluate(wide) == 1400
        browser.close()

"""The page in a real browser: answered by touch and keys, reloaded, downloaded, scored."""

import base64
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from lt_jax.evaluate.turing import draw
from lt_jax.evaluate.turing.__main__ import main
from lt_jax.evaluate.turing.study import load_key
from tests.evaluate.turing.making import run

N = 8
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FOUND = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(
    FOUND is None, reason="no Chromium to open the page in; Debian's package: chromium"
)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=FOUND, args=["--no-sandbox"])
        yield playwright, opened
        opened.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two studies of eight images: plain.html, and sure.html, which asks for confidence."""
    made = tmp_path_factory.mktemp("study")
    run(made / "run")
    for name, more in (("plain", []), ("sure", ["--confidence", "--seed", "1"])):
        out = str(made / f"{name}.html")
        main(["make", "--pool", str(made / "run"), "--n", str(N), "--out", out, *more])
    return made


@pytest.fixture
def visit(browser, folder):
    """Opens pages in windows of their own; whatever a page complains of fails the test."""
    playwright, opened = browser
    windows, complaints = [], []

    def go(name="plain", device=None, **options):
        window = opened.new_context(**(playwright.devices[device] if device else {}), **options)
        windows.append(window)
        page = window.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text))
        page.on("request", lambda asked: complaints.extend(
            [asked.url] * (not asked.url.startswith(("file:", "data:", "blob:")))
        ))  # fmt: skip
        page.goto((folder / f"{name}.html").as_uri())
        return page

    yield go
    for window in windows:
        window.close()
    assert complaints == []


def start(page, name="", years=""):
    page.fill("#name", name)
    page.fill("#years", years)
    page.click("button[type=submit]")
    at(page, 1)


def at(page, number, n=N):
    """Waits until this image is on view and takes an answer."""
    page.wait_for_function(
        "text => document.getElementById('count').textContent === text"
        " && document.getElementById('task').dataset.ready",
        arg=f"Image {number} of {n}",
    )


def pixels(page) -> np.ndarray:
    url = page.evaluate("document.getElementById('image').toDataURL('image/png')")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB"))


def saved(download, folder) -> dict:
    path = folder / download.suggested_filename
    download.save_as(path)
    return json.loads(path.read_text())


def test_by_touch_on_a_phone_with_a_reload_in_the_middle(visit, folder, tmp_path, capsys):
    key = load_key(folder / "plain.key.json")
    page = visit(device="Pixel 5")
    start(page, "Dr. Åsa B/C", "7.5")
    wrong = {2, 5, 6}
    choice = lambda i: "synthetic" if key.items[i].synthetic != (i in wrong) else "real"
    for i in range(5):
        at(page, i + 1)
        page.tap(f"#{choice(i)}")
    at(page, 6)
    page.reload()
    at(page, 6)
    assert page.get_attribute("#progress", "value") == "5"
    for i in range(5, N - 1):
        at(page, i + 1)
        page.tap(f"#{choice(i)}")
    at(page, N)
    with page.expect_download() as waiting:
        page.tap(f"#{choice(N - 1)}")
    results = saved(waiting.value, tmp_path)
    assert waiting.value.suggested_filename == f"turing-{key.study[:8]}-Dr_Åsa_B_C.json"
    assert waiting.value.suggested_filename in page.inner_text("#told")
    assert results["study"] == key.study and results["finished"]
    assert (results["reader"]["name"], results["reader"]["years"]) == ("Dr. Åsa B/C", 7.5)
    assert [a["id"] for a in results["answers"]] == [item.id for item in key.items]
    assert all(200 < a["milliseconds"] < 60_000 for a in results["answers"])
    assert json.loads(page.input_value("#text")) == results
    main(["score", str(tmp_path / waiting.value.suggested_filename), "--key",
          str(folder / "plain.key.json"), "--resamples", "200"])  # fmt: skip
    out = capsys.readouterr().out
    assert "Dr. Åsa B/C" in out and f"{(N - 3) / N:.3f} [" in out and f"{N} of {N}" in out


def test_by_keyboard_with_undo(visit, tmp_path):
    page = visit()
    page.keyboard.press("Tab")  # from the title into the form
    page.keyboard.type("Ben")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    at(page, 1)
    pressed = ["r", "s", "ArrowLeft", "ArrowRight", "R", "S"]
    for i, key in enumerate(pressed):
        at(page, i + 1)
        page.keyboard.press(key)
    at(page, 7)
    page.keyboard.press("u")
    at(page, 6)
    assert page.get_attribute("#synthetic", "aria-pressed") == "true"
    page.keyboard.press("Backspace")
    at(page, 5)
    page.keyboard.press("s")  # was R
    at(page, 6)
    page.keyboard.press("Enter")  # keeps the S
    at(page, 7)
    page.keyboard.press("Enter")  # not answered: stays
    page.keyboard.press("Alt+s")  # the browser's
    assert page.inner_text("#count") == f"Image 7 of {N}"
    page.click("#pause")
    assert f"6 of {N} answered" in page.inner_text("#end-title")
    with page.expect_download() as waiting:
        page.click("#download")
    results = saved(waiting.value, tmp_path)
    given = "real synthetic real synthetic synthetic synthetic"
    assert " ".join(a["answer"] for a in results["answers"]) == given
    assert results["finished"] is None
    page.click("#resume")
    at(page, 7)
    for i in range(6, N):
        at(page, i + 1)
        page.keyboard.press("s")
    page.wait_for_selector("#end:not([hidden])")
    page.click("#resume")
    at(page, N)
    page.keyboard.press("r")
    with page.expect_download() as waiting:
        page.click("#download")
    assert saved(waiting.value, tmp_path)["answers"][-1]["answer"] == "real"


def test_confidence(visit, folder, tmp_path, capsys):
    key = load_key(folder / "sure.key.json")
    page = visit("sure")
    start(page)
    assert page.is_disabled(".confidence button >> nth=0")
    for i, item in enumerate(key.items):
        at(page, i + 1)
        page.keyboard.press("s" if item.synthetic else "r")
        if i == 3:
            page.click("#next")  # without
        elif i % 2:
            page.keyboard.press(str(1 + i % 5))
        else:
            page.click(f".confidence button >> nth={i % 5}")
    with page.expect_download() as waiting:
        page.click("#download")
    answers = saved(waiting.value, tmp_path)["answers"]
    expected = [None if i == 3 else 1 + i % 5 for i in range(N)]
    assert [a["confidence"] for a in answers] == expected
    name = waiting.value.suggested_filename
    main(["score", str(tmp_path / name), "--key", str(folder / "sure.key.json"),
          "--resamples", "200"])  # fmt: skip
    assert f"1.000 [1.000, 1.000] (n={N - 1})" in capsys.readouterr().out


def test_what_is_on_view_is_the_image_in_whole_pixels(visit, folder):
    """At 2.75 screen pixels a CSS pixel, too, each pixel of the image is a square of one colour."""
    images = draw.draw(draw.open_inputs(folder / "run"), N).images
    for device in (None, "Pixel 5"):
        page = visit(device=device)
        start(page)
        for i in range(3):
            at(page, i + 1)
            np.testing.assert_array_equal(pixels(page), images[i])
            page.keyboard.press("r")
        at(page, 4)
        picture = Image.open(io.BytesIO(page.locator("#image").screenshot()))
        shown = np.asarray(picture.convert("RGB"))
        side = shown.shape[0] // 8
        assert side > 20
        middle = shown[side // 2 :: side, side // 2 :: side][:8, :8].astype(int)
        assert np.abs(middle - images[3]).max() <= 2
        near_edge = shown[side // 8 :: side, side // 8 :: side][:8, :8].astype(int)
        assert np.abs(near_edge - images[3]).max() <= 2  # smoothing would have mixed them


@pytest.mark.parametrize("device", ["Pixel 5", "Pixel 5 landscape", None])
def test_all_can_be_reached_and_hit(visit, device):
    page = visit("sure", device)
    width = page.evaluate("document.documentElement.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    start(page)
    page.tap("#real") if device else page.click("#real")
    height = page.evaluate("window.innerHeight")
    for button in page.locator("#task button").all():
        box = button.bounding_box()
        assert box["width"] >= 44 and box["height"] >= 44
        assert box["y"] >= 0 and box["y"] + box["height"] <= height + 1
        assert button.inner_text().strip()
    box = page.locator("#image").bounding_box()
    assert box["y"] >= 0 and box["y"] + box["height"] <= height + 1 and box["height"] > 100
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_two_readers_at_one_computer(visit):
    page = visit()
    start(page, "Anna")
    page.keyboard.press("s")
    at(page, 2)
    page.click("#pause")
    page.click("#leave")
    assert page.inner_text("#sessions") == f"Anna: 1 of {N} answered"
    start(page, "Ben")
    page.click("#pause")
    page.click("#leave")
    page.reload()  # nobody is at it: the first page
    assert page.inner_text("#sessions").splitlines() == [
        f"Anna: 1 of {N} answered",
        f"Ben: 0 of {N} answered",
    ]
    page.fill("#name", " anna ")
    page.click("button[type=submit]")
    at(page, 2)


def test_a_browser_that_keeps_nothing_says_so_and_works(visit, tmp_path):
    page = visit()
    page.evaluate(
        "() => { Storage.prototype.setItem = () => { throw new DOMException('full'); }; }"
    )
    start(page, "Anna")
    assert "leave this page open" in page.inner_text("#trouble")
    for i in range(N):
        at(page, i + 1)
        page.keyboard.press("s")
    page.wait_for_selector("#end:not([hidden])")
    with page.expect_download() as waiting:
        page.click("#download")
    assert len(saved(waiting.value, tmp_path)["answers"]) == N


def test_a_second_tap_belongs_to_the_image_before(visit):
    page = visit(device="Pixel 5")
    start(page)
    page.evaluate(
        "document.getElementById('real').click(); document.getElementById('real').click()"
    )
    at(page, 2)
    assert page.get_attribute("#progress", "value") == "1"


def test_what_a_screen_reader_is_told(visit):
    page = visit("sure")
    assert page.evaluate("document.activeElement.id") == "start-title"
    start(page)
    assert page.evaluate("document.activeElement.id") == "question"
    assert page.get_attribute("#count", "aria-live") == "polite"
    assert page.get_attribute("#image", "aria-label") == f"Image 1 of {N}"
    for box in ("#name", "#years", "#text"):
        assert page.locator(f"label[for={box[1:]}]").count() == 1
    page.click("#pause")
    assert page.evaluate("document.activeElement.id") == "end-title"


def test_dark_and_light(visit):
    grounds = {}
    for scheme in ("dark", "light"):
        page = visit(color_scheme=scheme)
        picture = Image.open(io.BytesIO(page.screenshot())).convert("L")
        grounds[scheme] = picture.getpixel((3, 3))
    assert grounds["dark"] < 60 < 200 < grounds["light"]

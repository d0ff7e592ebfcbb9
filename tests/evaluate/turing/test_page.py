"""The page gives nothing away: no answer, name or size in it, and it needs no network."""

import base64
import hashlib
import inspect
import io
import json
import re
import struct

import numpy as np
import pytest
from PIL import Image

from lt_jax.evaluate.turing import page
from lt_jax.evaluate.turing.__main__ import main
from lt_jax.evaluate.turing.study import load_key
from tests.evaluate.turing.making import CLASSES, run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study of 40 images: its folder, text and key."""
    folder = tmp_path_factory.mktemp("made")
    work = run(folder / "secret_workdir")
    main(["make", "--pool", str(work), "--n", "40", "--out", str(folder / "turing.html")])
    return folder, (folder / "turing.html").read_text(), load_key(folder / "turing.key.json")


def content(text: str) -> dict:
    (found,) = re.findall(r'<script type="application/json" id="study">(.*?)</script>', text)
    return json.loads(found)


def chunks(png: bytes) -> list[bytes]:
    kinds, at = [], 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kinds.append(png[at + 4 : at + 8])
        at += 12 + length
    return kinds


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("n", "side", "places"), [(7, 8, (3, 3)), (10, 700, (2, 2)), (1, 5, (1, 1))]
)
def test_sheets_hold_the_images_in_order_and_nothing_else(n, side, places, channels):
    images = np.random.default_rng(0).integers(0, 256, (n, side, side, channels), np.uint8)
    (columns, rows), files = page.sheets(images)
    assert (columns, rows) == places and len(files) == -(-n // (columns * rows))
    for i, image in enumerate(images):
        sheet = np.asarray(Image.open(io.BytesIO(files[i // (columns * rows)])))
        assert sheet.shape[:2] == (rows * side, columns * side)  # the last one, too
        place = i % (columns * rows)
        y, x = place // columns * side, place % columns * side
        tile = sheet[y : y + side, x : x + side].reshape(image.shape)
        np.testing.assert_array_equal(tile, image)
    for file in files:
        kinds = chunks(file)
        assert (kinds[0], set(kinds[1:-1]), kinds[-1]) == (b"IHDR", {b"IDAT"}, b"IEND")


def test_the_page_is_made_of_pixels_alone():
    """It cannot hold an answer: it is not given any."""
    parameters = inspect.signature(page.render).parameters
    assert list(parameters) == ["images", "confidence", "scale"]
    assert list(inspect.signature(page.image_ids).parameters) == ["study", "n"]


def test_the_page_holds_only_this(made):
    _, text, key = made
    held = content(text)
    assert set(held) == {
        "id", "images", "width", "height", "columns", "rows", "confidence", "scale", "sheets",
    }  # fmt: skip
    assert held["id"] == key.study
    assert held["images"] == [item.id for item in key.items]
    assert held["images"] == [
        hashlib.sha256(f"{key.study}/{i}".encode()).hexdigest()[:12] for i in range(40)
    ]
    assert all(isinstance(held[name], int) for name in ("width", "height", "columns", "rows"))
    # Nothing in the page belongs to one image: its elements are the same for any study.
    blank = page.render(np.zeros((40, 8, 8, 3), np.uint8))[1]
    strip = lambda page_: re.sub(r'(id="study">).*?(</script>)', r"\1\2", page_)
    assert strip(blank) == strip(text)


def test_no_word_of_the_key_is_in_the_page(made):
    folder, text, key = made
    words = {*CLASSES, "ISIC", "lesion", "val", "secret_workdir", str(folder), "accepted", "seed"}
    words |= {key.manifest_sha256, key.generator, key.pool_sha256, key.manifest_sha256[:12]}
    words |= {item.source for item in key.items if not item.synthetic}
    visible = re.sub(r'"sheets":\[.*?\]', "", text)  # in base64 any three letters may stand
    found = {word for word in words if re.search(rf"\b{re.escape(word)}\b", visible)}
    assert not found
    script = re.sub(r"(?s)<style>.*?</style>|<script>.*?</script>", "", visible)
    assert script.count("real") == 3 and script.count('"synthetic"') == 1, "the two buttons, a text"


def test_ids_sizes_and_pixels_of_a_sheet_say_nothing_of_the_kind(made):
    """Sorted by id, both kinds are as mixed as in the order that is shown."""
    _, text, key = made
    kinds = np.array([item.synthetic for item in key.items])
    by_id = kinds[np.argsort([item.id for item in key.items])]
    for order in (kinds, by_id):
        runs = 1 + int((order[1:] != order[:-1]).sum())
        assert 12 <= runs <= 30  # 21 +- 3.1 of a random order (Wald and Wolfowitz)
    assert len(content(text)["sheets"]) == 1


def test_same_seed_same_page(made, tmp_path):
    folder, text, key = made
    again = tmp_path / "again.html"
    pool = str(folder / "secret_workdir")
    main(["make", "--pool", pool, "--n", "40", "--out", str(again)])
    assert again.read_text() == text
    assert (tmp_path / "again.key.json").read_text() == (folder / "turing.key.json").read_text()
    main(["make", "--pool", pool, "--n", "40", "--seed", "1", "--out", str(tmp_path / "b.html")])
    other = load_key(tmp_path / "b.key.json")
    assert other.study != key.study
    assert other.synthetic.tolist() != key.synthetic.tolist()


def test_the_page_needs_no_network_and_lets_nothing_else_run(made):
    _, text, _ = made
    text = re.sub(r'"sheets":\[.*?\]', "", text)
    assert not re.search(r"https?:|//[a-z0-9]+\.|@import|url\(|src=\"|eval\(|innerHTML", text)
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        (inline,) = re.findall(rf"(?s)<{tag}>(.*?)</{tag}>", text)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert " style=" not in text and "onclick" not in text


def test_the_key_of_another_study_is_not_overwritten(made, tmp_path):
    folder, _, _ = made
    out = str(tmp_path / "x.html")
    pool = str(folder / "secret_workdir")
    main(["make", "--pool", pool, "--n", "10", "--out", out])
    main(["make", "--pool", pool, "--n", "10", "--out", out])
    with pytest.raises(SystemExit, match="key of another study"):
        main(["make", "--pool", pool, "--n", "12", "--out", out])
    assert len(load_key(tmp_path / "x.key.json").items) == 10
    with pytest.raises(SystemExit):
        main(["make", "--pool", pool, "--n", "twelve"])
    with pytest.raises(SystemExit, match="no such folder"):
        main(["make", "--pool", str(tmp_path / "nowhere")])

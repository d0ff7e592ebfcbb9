import dataclasses
import errno
import json
import os
import pathlib
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lt_jax.config import ConfigError, DataConfig, SplitConfig
from lt_jax.data import images, manifest, prepare, sources
from lt_jax.data.images import ImageError
from lt_jax.data.manifest import ManifestError
from lt_jax.data.splits import SplitError
from lt_jax.runtime import files

SHARED = pathlib.Path(__file__).parents[2] / "../shared/data"


def draw(seed, size=(20, 16)):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def root(tmp_path):
    """Two classes of 12 pictures, class folders."""
    for label in ("a", "b"):
        (tmp_path / "set" / label).mkdir(parents=True)
        for i in range(12):
            draw(i + 100 * (label == "b")).save(tmp_path / "set" / label / f"{i:02}.png")
    return tmp_path / "set"


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def config(root, **changes):
    fields = {"source": "folder", "root": str(root), "image_size": 8, "duplicate_distance": 0.01}
    return DataConfig(**(fields | changes))


def test_rows_of_manifest_and_images_are_the_same_pictures(root, out):
    data, seen = config(root), []
    made = prepare.prepare(data, out, lambda done, total: seen.append((done, total)))
    held, stored = prepare.load(out, data)
    assert len(held) == len(stored) == 24 and held.sha256 == made.sha256
    assert seen == [(i + 1, 24) for i in range(24)]
    for row, name in enumerate(held.ids):
        original = images.decode(root / held.images[row])
        expected = images.resize(original, 8, 3)
        np.testing.assert_array_equal(stored[np.array([row])][0], expected)
        assert held.classes[held.labels[row]] == name[0]
    assert sorted(os.listdir(out)) == ["images.npy", "manifest.json", "manifest.parquet"]
    assert prepare.load_masks(out) is None


def test_two_channels_are_refused_before_anything_is_decoded(root, out):
    """It once failed in a decoding thread, as no error of the user's."""
    (root / "a" / "00.png").write_bytes(b"not an image")
    with pytest.raises(ConfigError, match=r"config\.data\.channels: got 2; takes 1 .* or 3"):
        prepare.prepare(config(root, channels=2), out)
    assert not os.listdir(out)


def test_two_runs_are_equal_to_the_byte_and_seeds_differ(root, out, tmp_path):
    again = tmp_path / "again"
    again.mkdir()
    first = prepare.prepare(config(root), out)
    prepare.prepare(config(root), again)
    for name in os.listdir(out):
        assert (out / name).read_bytes() == (again / name).read_bytes()
    other = prepare.prepare(config(root, split=SplitConfig(seed=1)), again)
    assert other.sha256 != first.sha256


def test_image_size_moves_no_split(root, out):
    small = prepare.prepare(config(root), out)
    assert prepare.prepare(config(root, image_size=16, channels=1), out).sha256 == small.sha256


def test_sets_over_the_limit_are_decoded_as_they_are_read(root, out):
    made = prepare.prepare(config(root), out)
    stored = prepare.load(out, config(root))[1][np.arange(24)]
    lazy = config(root, decode_once_mib=0)
    assert prepare.prepare(lazy, out).sha256 == made.sha256
    assert sorted(os.listdir(out)) == ["manifest.json", "manifest.parquet"]
    np.testing.assert_array_equal(prepare.load(out, lazy)[1][np.arange(24)], stored)


def test_images_of_another_config_are_refused(root, out):
    prepare.prepare(config(root), out)
    with pytest.raises(ManifestError, match=r"images\.npy is \(24, 8, 8, 3\).*\(24, 16, 16, 3\)"):
        prepare.load(out, config(root, image_size=16))


def cut(path):
    path.write_bytes(path.read_bytes()[:60])


def test_a_bad_image_stops_the_run_or_is_skipped_and_listed(root, out):
    cut(root / "a" / "03.png")
    with pytest.raises(ImageError, match=r"record 3 of 24, id .*a/03\.png.*on_bad_image=skip"):
        prepare.prepare(config(root), out)
    assert not os.listdir(out)
    made = prepare.prepare(config(root, on_bad_image="skip"), out)
    assert len(made) == 23 and "a/03.png" not in made.ids
    (skipped,) = json.loads((out / "manifest.json").read_text())["protocol"]["skipped"]
    assert skipped["id"] == "a/03.png" and "03.png" in skipped["error"]
    stored = prepare.load(out, config(root))[1]
    for row, locator in enumerate(made.images):
        expected = images.resize(images.decode(root / locator), 8, 3)
        np.testing.assert_array_equal(stored[np.array([row])][0], expected)


def test_a_class_that_bad_images_leave_too_small_is_named(root, out):
    for i in range(9):
        cut(root / "b" / f"{i:02}.png")
    with pytest.raises(SplitError, match=r"class 'b' has 3 group"):
        prepare.prepare(config(root, on_bad_image="skip"), out)


@pytest.mark.parametrize("count", [0, 1])
def test_a_class_of_no_or_one_image_is_found_before_decoding(root, out, monkeypatch, count):
    rows = [f"a/{i:02}.png,a,\n" for i in range(12)] + ["b/00.png,b,\n"] * count
    (root / "t.csv").write_text("image,label,age\n" + "".join(rows))
    monkeypatch.setattr(prepare, "decode_all", None)
    if count == 0:
        monkeypatch.setattr(
            sources, "load", lambda data: Declared(("a", "b"), SOURCES_LOAD(data).records())
        )
    with pytest.raises(SplitError, match=rf"class 'b' has {count} group"):
        prepare.prepare(config(root, csv="t.csv"), out)


SOURCES_LOAD = sources.load


@dataclasses.dataclass
class Declared:
    """A source that declares classes of which it holds no image."""

    classes: tuple[str, ...]
    held: list
    name: str = "declared"

    def records(self):
        return self.held

    def decode(self, locator):
        raise AssertionError(locator)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a/00.png,a,,", "id 'a/00.png' stands twice"),
        ("../x.png,a,,", r"'\.\./x\.png' leads out of"),
        ("a/x.png,a,0.5 0 0.5 1,", "image 'a/x.png': box"),
        ("a/x.png,a,nan 0 0.5 1,", "image 'a/x.png': box"),
    ],
)
def test_bad_rows_are_refused_even_where_bad_images_are_skipped(root, out, row, message):
    rows = [f"{c}/{i:02}.png,{c},," for i in range(12) for c in "ab"]
    (root / "t.csv").write_text("\n".join(["image,label,boxes,mask", *rows, row]) + "\n")
    with pytest.raises(ValueError, match=message):
        prepare.prepare(config(root, csv="t.csv", on_bad_image="skip"), out)
    assert not os.listdir(out)


def with_masks(root, size=(20, 16)):
    """Adds a mask to a/00.png: a box of 6 x 4 at (8, 6), so at (6, 6) of the 16-pixel square."""
    mask = np.zeros(size[::-1], np.uint8)
    mask[6:10, 8:14] = 255
    Image.fromarray(mask).save(root / "m.png")
    rows = [f"{c}/{i:02}.png,{c},{'m.png' * (c + str(i) == 'a0')}" for i in range(12) for c in "ab"]
    (root / "t.csv").write_text("\n".join(["image,label,mask", *rows]) + "\n")
    return config(root, csv="t.csv", image_size=16)


def test_masks_are_stored_beside_their_image_and_give_boxes(root, out):
    data = with_masks(root)
    made = prepare.prepare(data, out)
    masks = prepare.load_masks(out)
    assert masks.shape == (24, 16, 16, 1)
    row = made.ids.index("a/00.png")
    expected = np.zeros((16, 16, 1), np.uint8)
    expected[6:10, 6:12] = 255
    np.testing.assert_array_equal(masks[np.array([row])][0], expected)
    assert not masks[np.delete(np.arange(24), row)].any()
    np.testing.assert_allclose(made.boxes[row], [(6 / 16, 6 / 16, 12 / 16, 10 / 16)])
    assert sum(map(len, made.boxes)) == 1
    # A later run without masks leaves none of the old ones.
    prepare.prepare(config(root), out)
    assert prepare.load_masks(out) is None


def test_a_mask_of_another_size_names_image_and_mask(root, out):
    data = with_masks(root, size=(21, 16))
    with pytest.raises(ImageError, match=r"m\.png of image 'a/00\.png': mask of 21 x 16.*20 x 16"):
        prepare.prepare(data, out)
    made = prepare.prepare(dataclasses.replace(data, on_bad_image="skip"), out)
    assert len(made) == 23 and made.protocol["skipped"][0]["id"] == "a/00.png"


def plant(root):
    """Darker copies of a/00..a/05 under new names, two of them under the other label."""
    for i in range(6):
        copy = Image.fromarray((np.asarray(draw(i)) * 0.8).astype(np.uint8))
        copy.save(root / ("b" if i < 2 else "a") / f"copy{i}.png")


def pairs_torn(made, root):
    split_of = dict(zip(made.ids, made.splits, strict=True))
    name = lambda i: f"{'b' if i < 2 else 'a'}/copy{i}.png"
    return sum(split_of[f"a/{i:02}.png"] != split_of[name(i)] for i in range(6))


def test_planted_near_duplicates_end_on_one_side(root, out):
    plant(root)
    torn = []
    for seed in range(5):
        split = SplitConfig(seed=seed)
        moved = prepare.prepare(config(root, split=split), out)
        assert pairs_torn(moved, root) == 0
        scan = moved.protocol["near_duplicates"]
        assert (scan["pairs"], scan["groups_joined"], scan["largest_group"]) == (6, 6, 2)
        assert scan["across_splits"] == []
        told = prepare.prepare(config(root, split=split, near_duplicates="report"), out)
        torn.append(pairs_torn(told, root))
        assert len(told.protocol["near_duplicates"]["across_splits"]) == torn[-1]
        off = prepare.prepare(config(root, split=split, near_duplicates="off"), out)
        assert off.splits == told.splits and off.protocol["near_duplicates"]["pairs"] == 0
    assert sum(torn) > 0  # so that the scan had something to mend


def test_the_long_tail_falls_on_train_alone(root, out):
    plain = prepare.prepare(config(root), out)
    tailed = prepare.prepare(config(root, profile="exponential", imbalance_factor=3.0), out)
    head = plain.counts().tolist()[0]
    assert tailed.counts().tolist() == [head, head // 3]
    assert tailed.protocol["dropped_by_profile"] == [0, plain.counts()[1] - head // 3]
    for split in ("policy_val", "val", "test"):
        assert [tailed.ids[i] for i in tailed.rows(split)] == [
            plain.ids[i] for i in plain.rows(split)
        ]
    assert len(prepare.load(out, config(root))[1]) == len(tailed)


@pytest.mark.parametrize("kind", ["folder", "jsonl"])
def test_a_saved_manifest_gives_the_same_draw_whatever_the_config(root, out, tmp_path, kind):
    first = prepare.prepare(config(root, profile="exponential", imbalance_factor=3.0), out)
    saved = out if kind == "folder" else tmp_path / "m.jsonl"
    first.save_jsonl(tmp_path / "m.jsonl")
    again = tmp_path / "again"
    again.mkdir()
    data = config(root, manifest=str(saved), split=SplitConfig(seed=9), image_size=16)
    second = prepare.prepare(data, again)
    assert second.sha256 == first.sha256 and second.ids == first.ids
    assert second.protocol["reused"] == first.sha256
    assert second.protocol["dropped_by_profile"] == first.protocol["dropped_by_profile"]
    assert manifest.load(again).sha256 == first.sha256
    assert len(prepare.load(again, data)[1]) == len(first)


def test_a_saved_manifest_of_other_data_is_refused(root, out, tmp_path):
    made = prepare.prepare(config(root), out)
    made.save_jsonl(tmp_path / "m.jsonl")
    data = config(root, manifest=str(tmp_path / "m.jsonl"))
    draw(999).save(root / "a" / "03.png")
    with pytest.raises(ManifestError, match=r"image 'a/03\.png' has other pixels"):
        prepare.prepare(data, out)
    (root / "a" / "03.png").unlink()
    with pytest.raises(ManifestError, match=r"1 of its images are not in the source.*'a/03\.png'"):
        prepare.prepare(data, out)
    shutil.copytree(root / "b", root / "c")
    with pytest.raises(ManifestError, match="its classes are a, b; the source has a, b, c"):
        prepare.prepare(data, out)


def graded(root):
    """The two classes again, with a grade that half of each has: low in `a`, high in `b`."""
    rows = [
        f"{c}/{i:02}.png,{c},{grade * (i % 2)}"
        for c, grade in (("a", "low"), ("b", "high"))
        for i in range(12)
    ]
    (root / "t.csv").write_text("\n".join(["image,label,grade", *rows]) + "\n")
    return config(root, csv="t.csv", split=SplitConfig(policy_val=0.0, val=0.2, test=0.3))


def test_a_task_on_saved_splits_moves_no_image_between_them(root, out, tmp_path):
    data = graded(root)
    first = prepare.prepare(data, out)
    (tmp_path / "task").mkdir()
    task = dataclasses.replace(data, manifest=str(out), label="grade")
    made = prepare.prepare(task, tmp_path / "task")
    split_of = dict(zip(first.ids, first.splits, strict=True))
    assert made.classes == ("high", "low") and made.sha256 != first.sha256
    assert set(made.ids) == {name for name in first.ids if int(name[2:4]) % 2}
    assert all(split_of[name] == s for name, s in zip(made.ids, made.splits, strict=True))
    assert all(made.classes[k] == {"a": "low", "b": "high"}[n[0]]
               for n, k in zip(made.ids, made.labels, strict=True))  # fmt: skip
    assert not any("grade" in known for known in made.attributes)
    assert made.protocol["label"] == "grade" and made.protocol["reused"] == first.sha256
    few = prepare.prepare(dataclasses.replace(task, profile="few_shot", shots=1), tmp_path / "task")
    assert few.counts().tolist() == [1, 1] and few.protocol["shots"] == 1
    assert few.counts("test").tolist() == made.counts("test").tolist()


def test_a_task_that_saved_splits_cannot_carry_is_refused(root, out):
    data = graded(root)
    first = prepare.prepare(data, out)
    splits = ["train" if name[0] == "a" else split
              for name, split in zip(first.ids, first.splits, strict=True)]  # fmt: skip
    dataclasses.replace(first, splits=tuple(splits), sha256="").save(out)
    task = dataclasses.replace(data, manifest=str(out), label="grade")
    with pytest.raises(ManifestError, match="split test has no image of class 'low'"):
        prepare.prepare(task, out)


def test_fractions_of_train_are_nested_and_touch_no_other_split(root, out):
    whole = prepare.prepare(config(root), out)
    held = set(whole.ids)
    for fraction in (0.6, 0.3, 0.01):
        part = prepare.prepare(config(root, train_fraction=fraction), out)
        expected = np.maximum(np.round(whole.counts() * fraction), 1)
        np.testing.assert_array_equal(part.counts(), expected)
        assert set(part.ids) < held
        held = set(part.ids)
        for split in ("policy_val", "val", "test"):
            names = [[m.ids[i] for i in m.rows(split)] for m in (part, whole)]
            assert names[0] == names[1]


def test_no_space_left_is_found_before_decoding_where_possible(root, out, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    monkeypatch.setattr(prepare, "decode_all", None)
    with pytest.raises(
        OSError, match=r"no space left.*the images \(0\.0 MiB needed\).*out"
    ) as caught:
        prepare.prepare(config(root), out)
    assert caught.value.errno == errno.ENOSPC


def test_no_space_left_while_writing_leaves_nothing_half_done(root, out, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=r"no space left.*images\.npy"):
        prepare.prepare(config(root), out)
    assert not os.listdir(out)

import json
import pathlib

import pytest

from lt_jax.config import ConfigError, DataConfig
from lt_jax.data import sources
from lt_jax.data.sources import SourceError

BUSI = pathlib.Path(__file__).parents[3] / "../shared/data/busi"


@pytest.fixture
def root(tmp_path, picture, mask):
    folder = tmp_path / "Dataset_BUSI_with_GT"
    for seed, name in enumerate(["benign (2)", "benign (10)", "malignant (1)", "normal (1)"]):
        picture(folder / name.split()[0] / f"{name}.png", seed, "L")
    mask(folder / "benign" / "benign (2)_mask.png", (0, 0, 4, 3))
    mask(folder / "benign" / "benign (2)_mask_1.png", (8, 6, 12, 9))
    mask(folder / "normal" / "normal (1)_mask.png", (0, 0, 0, 0))
    return tmp_path


def test_masks_belong_to_their_image_and_are_no_images(root):
    source = sources.load(DataConfig(source="busi", root=str(root)))
    records = source.records()
    assert [record.id for record in records] == [
        "benign/benign (2)", "benign/benign (10)", "malignant/malignant (1)", "normal/normal (1)",
    ]  # fmt: skip
    assert records[0].masks == ("benign/benign (2)_mask.png", "benign/benign (2)_mask_1.png")
    assert records[1].masks == () and len(records[3].masks) == 1
    assert [source.classes[record.label] for record in records][2:] == ["malignant", "normal"]
    inner = sources.load(DataConfig(source="busi", root=str(root / "Dataset_BUSI_with_GT")))
    assert inner.records() == records


def test_the_box_file_gives_boxes_labels_devices_and_groups(root):
    notes = [
        {"image": "benign/benign (2).png", "label": "malignant", "device": "GE",
         "boxes_xyxy": [[0.1, 0.2, 0.5, 0.9]], "duplicate_group": "g7"},
    ]  # fmt: skip
    others = [
        {"image": f"{name.split()[0]}/{name}.png", "label": name.split()[0], "boxes_xyxy": [],
         "duplicate_group": ""}
        for name in ("benign (10)", "malignant (1)", "normal (1)")
    ]  # fmt: skip
    table = root / "lesion_boxes.json"
    table.write_text(json.dumps(notes + others))
    source = sources.load(DataConfig(source="busi", root=str(root)))
    record, *rest = source.records()
    assert [other.group for other in rest] == [other.id for other in rest]
    assert record.boxes == ((0.1, 0.2, 0.5, 0.9),) and record.device == "GE"
    assert source.classes[record.label] == "malignant" and record.group == "g7"
    assert len(record.masks) == 2 and source.decode(record.image).shape == (12, 16, 1)
    for change, message in (
        ({"label": "odd"}, r"entry 0 \(benign/benign \(2\)\.png\): unknown label 'odd'"),
        ({"boxes_xyxy": [[0, 1]]}, "a box takes x0, y0, x1, y1"),
    ):
        table.write_text(json.dumps([notes[0] | change]))
        with pytest.raises(SourceError, match=message):
            source.records()
    for content, message in (
        ([{"image": "x"}], "entry 0: no field 'boxes_xyxy'"), (notes * 2, "entry 1: .*twice"),
    ):  # fmt: skip
        table.write_text(json.dumps(content))
        with pytest.raises(SourceError, match=message):
            source.records()
    table.write_text("{")
    with pytest.raises(SourceError, match=r"lesion_boxes\.json: cannot be read as JSON"):
        source.records()


def test_images_that_the_box_file_leaves_out_are_named(root):
    """They once vanished without a word."""
    table = root / "lesion_boxes.json"
    table.write_text(
        json.dumps(
            [{"image": "benign/benign (2).png", "label": "benign", "boxes_xyxy": [],
              "duplicate_group": ""}]
        )
    )  # fmt: skip
    source = sources.load(DataConfig(source="busi", root=str(root)))
    with pytest.raises(
        SourceError, match=r"no entry for 3 of 4 images, the first is 'benign/benign \(10\)\.png'"
    ):
        source.records()


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(SourceError, match="no class folder 'benign'"):
        sources.load(DataConfig(source="busi", root=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"config\.data\.root"):
        sources.load(DataConfig(source="busi", root=str(tmp_path / "none")))


@pytest.mark.skipif(not BUSI.is_dir(), reason="BUSI is not at hand")
def test_busi_itself():
    source = sources.load(DataConfig(source="busi", root=str(BUSI)))
    records = source.records()
    assert [sum(r.label == k for r in records) for k in range(3)] == [339, 164, 104]
    assert len({record.group for record in records}) == 474
    assert sum(len(record.boxes) for record in records) == 488 + 2 * 15
    assert source.decode(records[0].image).shape == (256, 256, 1)

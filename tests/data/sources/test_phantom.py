import pickle

import numpy as np
import pytest
from scipy import ndimage

from lt_jax.config import ConfigError, DataConfig
from lt_jax.data import images, phantom, prepare, sources
from lt_jax.data.images import ImageError

SIZE = 32


def load(source, **changes):
    return sources.load(DataConfig(source=source, image_size=SIZE, channels=1, **changes))


def pixels(source, records):
    return np.stack([source.decode(record.image) for record in records])


def test_a_smaller_set_is_the_start_of_a_larger_one_in_any_order():
    few, many = load("phantom:3"), load("phantom:30:0")
    records, others = few.records(), many.records()
    assert len(records) == 18 and len(others) == 180 and records == others[:18]
    assert [record.label for record in records] == list(range(6)) * 3
    last = many.decode(others[-1].image)  # another block comes first
    np.testing.assert_array_equal(pixels(few, records), pixels(many, others[:18]))
    again = pickle.loads(pickle.dumps(many))
    np.testing.assert_array_equal(again.decode(others[-1].image), last)
    np.testing.assert_array_equal(again.decode(others[0].masks[0]), few.decode("00000000/mask"))


def test_another_seed_is_another_set():
    first, second = load("phantom:3"), load("phantom:3:1")
    ids = [{record.id for record in source.records()} for source in (first, second)]
    assert not ids[0] & ids[1]
    a, b = pixels(first, first.records()), pixels(second, second.records())
    assert (np.abs(a.astype(int) - b).mean(axis=(1, 2, 3)) > 5).all()


def test_records_tell_device_and_attributes():
    source = load("phantom:200")
    records = source.records()
    assert len({record.id for record in records}) == len({r.group for r in records}) == 1200
    counts = np.unique([record.device for record in records], return_counts=True)[1]
    assert len(counts) == len(phantom.DEVICES) and counts.min() > 300
    for record in records[:60]:
        spec = phantom.CLASSES[record.label]
        known = dict(record.attributes)
        assert source.classes[record.label] == spec.name
        assert known.pop("malignant") == ("malignant" if spec.malignant else "benign")
        assert ("nodes" in known) == spec.malignant
        assert sorted(set(known) - {"nodes"}) == ["aspect", "depth_mm", "size_mm"]
        assert 2 < known["size_mm"] < 23 and 3 < known["depth_mm"] < 37
    sizes = [record.attributes["size_mm"] for record in records[:60]]
    areas = [(source.decode(record.masks[0]) > 0).mean() for record in records[:60]]
    np.testing.assert_allclose(sizes, 40 * np.sqrt(np.array(areas) * 4 / np.pi), rtol=0.2)


def test_what_is_not_there_is_named():
    for name in (
        "phantom:",
        "phantom:0",
        "phantom:x",
        "phantom:5:",
        "phantom:5:-1",
        "phantom:5:1:1",
    ):
        with pytest.raises(
            ConfigError, match=rf"config\.data\.source: got '{name}'; takes phantom"
        ):
            load(name)
    for locator in ("00000018", "00000018/mask", "0", "00000000/box", "../00000000"):
        with pytest.raises(ImageError, match="takes 00000000 to 00000017"):
            load("phantom:3").decode(locator)


def test_prepare_keeps_masks_boxes_devices_and_attributes(tmp_path):
    data = DataConfig(source="phantom:12", image_size=SIZE, channels=1)
    made = prepare.prepare(data, tmp_path)
    manifest, stored = prepare.load(tmp_path, data)
    masks = prepare.load_masks(tmp_path)
    assert len(made) == len(stored) == len(masks) == 72 and manifest.sha256 == made.sha256
    assert made.protocol["near_duplicates"]["pairs"] == 0
    assert set(made.devices) == {device.name for device in phantom.DEVICES}
    assert (made.counts("train") >= 6).all() and (made.counts("test") >= 2).all()
    source, rows = load("phantom:12"), np.arange(72)
    for row, mask in enumerate(masks[rows]):
        assert made.boxes[row] == (images.mask_box(mask[..., 0] > 0),)
        assert made.attributes[row]["malignant"] in ("benign", "malignant")
        np.testing.assert_array_equal(stored[rows][row], source.decode(made.images[row]))
        np.testing.assert_array_equal(mask, source.decode(made.masks[row][0]))


def test_simple_features_tell_classes_apart_well_above_chance_and_far_from_always():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    source = load("phantom:100")
    records = source.records()
    seen = np.stack([_features(source, record) for record in records])
    labels = np.array([record.label for record in records])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    hits = model.fit(seen[:420], labels[:420]).predict(seen[420:]) == labels[420:]
    assert 0.5 < hits.mean() < 0.9  # chance is 0.17
    recalls = [hits[labels[420:] == label].mean() for label in range(6)]
    assert min(recalls) > 0.2 and min(recalls) < 0.8


def _features(source, record):
    """What a reader would look at: echo, its spread, what lies behind, shape, outline, size."""
    gray = source.decode(record.image)[..., 0] / 255
    mask = source.decode(record.masks[0])[..., 0] > 0
    x0, y0, x1, y1 = (round(SIZE * corner) for corner in images.mask_box(mask))
    behind = gray[y1 : y1 + 6, (3 * x0 + x1) // 4 : (x0 + 3 * x1) // 4 + 1]
    beside = np.delete(gray[y1 : y1 + 6], np.s_[x0:x1], axis=1)
    rim = mask & ~ndimage.binary_erosion(mask)
    return [
        gray[mask].mean() - gray[~mask].mean(), gray[mask].std(), gray[mask].max(),
        behind.mean() - beside.mean(), (y1 - y0) / (x1 - x0),
        mask.sum() / ((y1 - y0) * (x1 - x0)), rim.sum() / np.sqrt(mask.sum()), mask.sum(),
    ]  # fmt: skip


def test_nodes_are_those_of_malignant_lesions_and_more_often_of_large_ones():
    source = load("phantom:300")
    malignant = [r for r in source.records() if r.attributes["malignant"] == "malignant"]
    others = [r for r in source.records() if r.attributes["malignant"] == "benign"]
    assert not any("nodes" in record.attributes for record in others)
    size = np.array([record.attributes["size_mm"] for record in malignant])
    positive = np.array([record.attributes["nodes"] == "positive" for record in malignant])
    rates = [positive[part].mean() for part in (size < 11, (size > 13) & (size < 15), size > 17)]
    assert rates[0] < 0.3 and 0.35 < rates[1] < 0.65 and rates[2] > 0.7

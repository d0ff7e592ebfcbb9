"""A test split that a column of the data set names."""

import numpy as np
import pytest
from PIL import Image

from lt_jax.config import ConfigError, SplitConfig
from lt_jax.data import prepare
from tests.data import test_prepare as pictures
from tests.data.test_prepare import config

root, out = pictures.root, pictures.out  # the fixtures


def official(root, **changes):
    """The set with an official split; its first test image also stands, brighter, in train."""
    other = np.asarray(Image.open(root / "a" / "00.png")).astype(int) + 3
    Image.fromarray(np.clip(other, 0, 255).astype(np.uint8)).save(root / "a" / "copy.png")
    rows = [
        f"{label}/{i:02}.png,{label},{'test' if i < 4 else 'train'}"
        for label in ("a", "b")
        for i in range(12)
    ]
    rows.append("a/copy.png,a,train")
    (root / "t.csv").write_text("\n".join(["image,label,official_split", *rows]) + "\n")
    split = SplitConfig(policy_val=0.2, val=0.2, test_where="official_split=test")
    return config(root, csv="t.csv", **{"split": split, **changes})


def test_an_official_test_split_is_kept_whole_and_its_near_duplicates_train_nothing(root, out):
    made = prepare.prepare(official(root), out)
    told = {made.ids[i] for i in made.rows("test")}
    assert told == {f"{label}/{i:02}.png" for label in ("a", "b") for i in range(4)}
    assert "a/copy.png" not in made.ids and len(made) == 24
    assert made.protocol["dropped_beside_test"] == [1, 0]
    assert made.protocol["split"]["test_where"] == "official_split=test"
    assert not made.protocol["near_duplicates"]["across_splits"]
    for split, count in {"train": 10, "policy_val": 2, "val": 4}.items():  # of the 16 others
        assert abs(len(made.rows(split)) - count) <= 2
    reported = prepare.prepare(official(root, near_duplicates="report"), out)
    assert "a/copy.png" in reported.ids and reported.protocol["dropped_beside_test"] == [0, 0]
    plain = prepare.prepare(official(root, split=SplitConfig()), out)
    assert "test_where" not in plain.protocol["split"]
    assert "dropped_beside_test" not in plain.protocol


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("official_split", 'takes "column=value"'),
        ("official_split=val", "names no image; 'official_split' has test, train"),
        ("official=test", "names no image; 'official' is a column of no image"),
    ],
)
def test_an_official_test_split_that_is_none_is_named(root, out, monkeypatch, where, message):
    monkeypatch.setattr(prepare, "decode_all", None)  # before anything is decoded
    with pytest.raises(ConfigError, match=message):
        prepare.prepare(official(root, split=SplitConfig(test_where=where)), out)

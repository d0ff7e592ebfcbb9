"""Preparation of real sets: near-duplicates by images alone, lesions whole, masks in place."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from lt_jax.config import DataConfig
from lt_jax.data import prepare
from tests.data import test_prepare as pictures
from tests.data.test_prepare import config

SHARED = pathlib.Path(__file__).parents[2] / "../shared/data"
out = pictures.out  # the fixture


def test_digits_keep_their_groups_at_the_default_distance(out):
    data = DataConfig(image_size=8, channels=1, profile="exponential", imbalance_factor=20.0)
    made = prepare.prepare(dataclasses.replace(data, duplicate_distance=0.01), out)
    assert made.protocol["near_duplicates"]["largest_group"] <= 2
    counts = made.counts()
    assert counts[0] == counts[-1] * 20 + counts[0] % 20 and (np.diff(counts) < 0).all()


@pytest.mark.skipif(not (SHARED / "busi").is_dir(), reason="BUSI is not at hand")
def test_busi_duplicates_are_found_without_their_groups(out, tmp_path):
    """Known duplicate groups are hidden, and most known pairs are joined, no strangers."""
    (tmp_path / "busi").mkdir()
    folder = "Dataset_BUSI_with_GT"
    (tmp_path / "busi" / folder).symlink_to((SHARED / "busi" / folder).resolve())
    data = config(tmp_path / "busi", source="busi", channels=1, image_size=8)
    made = prepare.prepare(data, out)
    notes = json.loads((SHARED / "busi" / "lesion_boxes.json").read_text())
    known = {note["image"].removesuffix(".png"): note["duplicate_group"] for note in notes}
    scan = made.protocol["near_duplicates"]
    assert scan["pairs"] == 138 and scan["largest_group"] <= 4
    for group in set(made.groups):
        rows = [i for i, name in enumerate(made.groups) if name == group]
        assert len({known[made.ids[i]] for i in rows}) == 1


@pytest.mark.skipif(not (SHARED / "ham10000").is_dir(), reason="HAM10000 is not at hand")
def test_ham10000_lesions_stay_whole_and_masks_lie_on_their_lesions(out, tmp_path):
    root = tmp_path / "ham"
    root.mkdir()
    for name in ("HAM10000_images", "HAM10000_segmentations_lesion_tschandl"):
        (root / name).symlink_to((SHARED / "ham10000" / name).resolve())
    header, *rows = (SHARED / "ham10000" / "HAM10000_metadata.csv").read_text().splitlines()
    few = [row for row in rows if row.split(",")[2] in ("df", "vasc")]
    for dx in ("akiec", "bcc", "bkl", "mel", "nv"):
        few += [row for row in rows if row.split(",")[2] == dx][:30]
    (root / "HAM10000_metadata.csv").write_text("\n".join([header, *few]) + "\n")
    data = config(root, source="ham10000", image_size=32, follow_links=True)
    made = prepare.prepare(data, out)
    assert len(made) == 80 + 112 + 150 and made.protocol["near_duplicates"]["groups_joined"] == 0
    assert (made.counts("test") > 0).all() and (made.counts("policy_val") > 0).all()
    stored = prepare.load(out, data)[1][np.arange(len(made))].mean(axis=-1)
    masks = prepare.load_masks(out)[np.arange(len(made))][..., 0] > 0
    partly = [row for row in range(len(made)) if 0.05 < masks[row].mean() < 0.6]
    darker = [stored[row][masks[row]].mean() < stored[row][~masks[row]].mean() for row in partly]
    assert len(partly) > 100 and np.mean(darker) > 0.8

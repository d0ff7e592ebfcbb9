"""Conditions from a manifest: learned from train rows alone, null where nothing is known."""

import dataclasses

import numpy as np
import pytest

from lt_jax.config import ConditionsConfig, ConfigError
from lt_jax.data.manifest import SplitManifest
from lt_jax.diffusion.annotations import annotate

BOX, SMALL = (0.1, 0.2, 0.5, 0.6), (0.0, 0.0, 0.1, 0.1)
MANIFEST = SplitManifest(
    ids=("a", "b", "c", "d"),
    images=("a.png", "b.png", "c.png", "d.png"),
    labels=np.array([0, 1, 0, 1]),
    groups=("a", "b", "c", "d"),
    splits=("train", "train", "val", "test"),
    masks=((), ("b_mask.png",), (), ()),
    boxes=((), (SMALL, BOX), (BOX,), ()),
    devices=("x", None, "only in val", "x"),
    attributes=({"age": 30.0}, {"age": 50.0}, {"age": 60.0}, {"age": None, "sex": "f"}),
    image_sha256=("a", "b", "c", "d"),
    classes=("benign", "malignant"),
)
MASKS = np.zeros((4, 8, 8, 1), np.uint8)


def test_devices_are_those_of_the_train_split():
    found = annotate(MANIFEST, None, ConditionsConfig(device="device"), 1)
    assert found.devices == ("x",) and found.vocabulary.devices == 1
    np.testing.assert_array_equal(found.columns["device"], [0, -1, -1, 0])


def test_numbers_are_standardised_by_the_train_split():
    found = annotate(MANIFEST, None, ConditionsConfig(attributes=("age",)), 1)
    np.testing.assert_allclose(found.columns["attributes"][:, 0], [-1, 1, 2, np.nan])
    assert found.means == (40.0,) and found.deviations == (10.0,)


def test_the_largest_boxes_are_kept_and_the_rest_is_empty():
    two = annotate(MANIFEST, None, ConditionsConfig(boxes="channel", max_boxes=2), 1)
    np.testing.assert_allclose(two.columns["boxes"][1], [BOX, SMALL], rtol=1e-6)
    np.testing.assert_array_equal(two.columns["boxes"][0], 0)
    one = annotate(MANIFEST, None, ConditionsConfig(boxes="channel", max_boxes=1), 1)
    np.testing.assert_allclose(one.columns["boxes"][1], [BOX], rtol=1e-6)


def test_masks_are_known_only_where_the_manifest_names_some():
    found = annotate(MANIFEST, MASKS, ConditionsConfig(mask=True), 1)
    np.testing.assert_array_equal(found.columns["mask_given"], [False, True, False, False])
    assert found.vocabulary.mask and not found.vocabulary.inpaint


def test_nothing_asked_for_is_the_class_alone():
    found = annotate(MANIFEST, None, ConditionsConfig(), 3)
    assert not found.columns and found.vocabulary.num_classes == 2


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"device": "site"}, "no train image has a 'site'"),
        ({"attributes": ("sex",)}, "takes columns of numbers"),
        ({"attributes": ("weight",)}, "no train image has a 'weight'"),
        ({"mask": True}, "no decoded lesion masks"),
    ],
)
def test_what_the_set_does_not_hold_is_named(fields, word):
    with pytest.raises(ConfigError, match=word):
        annotate(MANIFEST, None, ConditionsConfig(**fields), 1)


def test_boxes_of_a_set_without_any_are_refused():
    bare = dataclasses.replace(MANIFEST, boxes=((),) * 4, sha256="")
    with pytest.raises(ConfigError, match="neither boxes nor masks"):
        annotate(bare, None, ConditionsConfig(boxes="channel"), 1)

"""Requests: candidate i by (seed, i) alone, from train rows alone; what is asked, and where."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from scipy import ndimage

from lt_jax.config import (
    ConditionsConfig,
    ConfigError,
    GeneratorConfig,
    SketchConfig,
    SynthesizeConfig,
    UNetConfig,
)
from lt_jax.diffusion import annotations, inpaint, placement, priors
from lt_jax.diffusion.generator import Generator
from lt_jax.diffusion.requests import Requests
from lt_jax.models.conditioning import NULL, null_like
from tests.diffusion.lesion_set import (
    ALL,
    EVERYTHING,
    IMAGES,
    MANIFEST,
    MASKS,
    SIZE,
    TRAIN,
    lesions_of,
)

BOXES = ConditionsConfig(boxes="channel", max_boxes=2)
INDICES = np.arange(60)


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Which bandwidth a density has does not matter here, and the search for it takes time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(priors, "choose_bandwidth", lambda u: 0.3)
        yield


def make(conditions=ALL, masks=MASKS, manifest=MANIFEST, sketch="edges", **config):
    known = annotations.annotate(manifest, masks, conditions, 1)
    settings = GeneratorConfig(
        model=UNetConfig(channels=(4,), blocks=1),
        conditions=conditions,
        sketch=SketchConfig(source=sketch),
    )
    generator = Generator(settings, known.vocabulary, (SIZE, SIZE, 1))
    return Requests(SynthesizeConfig(**config), generator, known, manifest, IMAGES)


@pytest.fixture(scope="module")
def inpainting():
    """Mixed sources, so that some have a lesion and some have none."""
    return make(given=EVERYTHING, method="inpaint", source="all")


def notes(columns):
    return [json.loads(note) for note in columns["conditions"]]


def source_rows(columns):
    return np.array([MANIFEST.ids.index(note["source"]) for note in notes(columns)])


def within(maps, radius):
    """What lies within `radius` of a marked pixel; nothing where none is."""
    far = [ndimage.distance_transform_edt(m == 0) if m.any() else np.inf * (m + 1) for m in maps]
    return (np.stack(far) <= radius).astype(np.float32)


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


SETTINGS = [
    {"conditions": BOXES, "masks": None},
    {"method": "inpaint", "source": "all"},
    {"method": "repaint", "source": "all", "shapes": "source"},
    {"conditions": BOXES, "masks": None, "method": "repaint", "source": "all", "boxes": "train"},
    {"method": "translate", "source": "all", "soft_labels": True, "strengths": (0.2, 0.5, 0.9)},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: s.get("method", "generate"))
def test_candidate_i_depends_on_the_seed_and_i_alone(settings):
    """`shapes = "source"` once looked at all sources of a batch before it took one's shape."""
    requests = make(given=EVERYTHING, **settings)
    request, columns = requests(INDICES)
    for rows in np.split(np.random.default_rng(1).permutation(INDICES), [7, 8]):
        part, part_columns = requests(rows)
        assert_same(part, jax.tree.map(lambda leaf, rows=rows: leaf[rows], request))
        for name, column in part_columns.items():
            assert list(column) == [columns[name][row] for row in rows]
    other = make(given=EVERYTHING, seed=1, **settings)(INDICES)[1]
    assert other["conditions"] != columns["conditions"]


def test_classes_take_turns():
    request, columns = make()(np.array([0, 1, 2, 3, 40]))
    assert request.conditions.label.tolist() == [0, 1, 2, 0, 1]
    assert columns["source_label"].tolist() == [0, 1, 2, 0, 1]
    assert columns["label_weight"].tolist() == [1] * 5
    assert request.source is request.hole is request.start is request.drawn is None


def test_devices_are_as_frequent_as_in_train_and_never_from_other_splits():
    device = ConditionsConfig(device="device")
    _, columns = make(device, masks=None, given=("device",))(np.arange(2000))
    found = [note["device"] for note in notes(columns)]
    assert set(found) == {"a", "b", None}
    for name in ("a", "b", None):
        share = MANIFEST.devices[:42].count(name) / 42
        assert found.count(name) / 2000 == pytest.approx(share, abs=4 * np.sqrt(0.25 / 2000))


def test_an_image_that_starts_from_a_real_one_keeps_its_device(inpainting):
    _, columns = inpainting(INDICES)
    devices = [note["device"] for note in notes(columns)]
    assert devices == [MANIFEST.devices[row] for row in source_rows(columns)]
    assert len(set(devices)) == 3


def test_attributes_are_those_of_an_image_of_the_class():
    known = ConditionsConfig(attributes=("age",))
    request, columns = make(known, masks=None)(np.arange(300))
    ages = [note["attributes"]["age"] for note in notes(columns)]
    for label in range(3):
        rows = TRAIN[MANIFEST.labels[TRAIN] == label]
        assert set(ages[label::3]) == {MANIFEST.attributes[row]["age"] for row in rows}
    unknown = np.isnan(request.conditions.attributes[:, 0])
    np.testing.assert_array_equal(unknown, [age is None for age in ages])


def test_boxes_come_from_the_density_or_from_train_images():
    seen = {boxes for boxes in MANIFEST.boxes[:42] if boxes}
    held = {kind: make(BOXES, masks=None, boxes=kind)(INDICES) for kind in ("prior", "train")}
    for kind, (request, columns) in held.items():
        boxes = request.conditions.boxes
        assert not boxes[2::3].any()  # the class of images without a lesion
        known = np.delete(boxes, np.arange(2, 60, 3), axis=0)
        assert known[:, 0].any(axis=1).all() and not known[:, 1].any()
        told = [tuple(map(tuple, note["boxes"])) for note in notes(columns) if note["boxes"]]
        copies = [tuple(boxes) in seen for boxes in told]
        assert all(copies) if kind == "train" else not any(copies)
        wide, tall = known[::2, 0], known[1::2, 0]
        if kind == "train":
            assert (wide[:, 2] - wide[:, 0] > wide[:, 3] - wide[:, 1]).all()
            assert (tall[:, 2] - tall[:, 0] < tall[:, 3] - tall[:, 1]).all()


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"source": "head"}, [{0}] * 3),
        ({"source": "class"}, [{0}, {1}, {2}]),
        ({"source": "all"}, [{0, 1, 2}] * 3),
        ({"source_classes": ("normal", "tall")}, [{1, 2}] * 3),
    ],
    ids=["head", "class", "all", "named"],
)
def test_sources_are_train_images_of_the_classes_asked_for(settings, allowed):
    request, columns = make(method="translate", **settings)(np.arange(1200))
    rows = source_rows(columns)
    np.testing.assert_array_equal(request.source, IMAGES[rows])
    np.testing.assert_array_equal(columns["source_label"], MANIFEST.labels[rows])
    for label in range(3):
        candidates = set(TRAIN[np.isin(MANIFEST.labels[TRAIN], list(allowed[label]))].tolist())
        assert set(rows[label::3].tolist()) == candidates


@pytest.mark.parametrize("shapes", ["class", "all", "source"])
def test_a_hole_holds_the_new_lesion_and_the_old_one_with_a_rim(shapes):
    requests = make(given=EVERYTHING, method="inpaint", source="all", shapes=shapes)
    request, columns = requests(INDICES)
    told, old = request.conditions.mask, lesions_of(source_rows(columns))
    lesioned = request.conditions.label < 2
    assert told[lesioned].any(axis=(1, 2, 3)).all() and not told[~lesioned].any()
    painted = within(np.maximum(told, old), placement.RIM)
    np.testing.assert_array_equal(request.hole[lesioned], painted[lesioned])
    # A class without lesions loses the old one; a source without lesions is painted anew as well.
    assert (request.hole >= painted).all()
    assert request.hole.any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(request.conditions.boxes[:, 0], placement.bounding(told))


def test_shapes_are_those_of_the_class_of_all_or_of_the_source():
    def sides(maps):
        boxes = placement.bounding(maps)
        return boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]

    held = {}
    for shapes in ("class", "all", "source"):
        requests = make(given=EVERYTHING, method="repaint", source="all", shapes=shapes)
        held[shapes] = requests(np.arange(180))
    told = held["class"][0].conditions.mask
    for label, wider in ((0, True), (1, False)):
        width, height = sides(told[label::3])
        assert ((width > height) == wider).all()
    width, height = sides(held["all"][0].conditions.mask[1::3])
    assert 0.2 < (width > height).mean() < 0.95
    request, columns = held["source"]
    old = lesions_of(source_rows(columns))
    same = old.any(axis=(1, 2, 3)) & (request.conditions.label < 2)
    assert same.any() and not same[request.conditions.label < 2].all()
    np.testing.assert_array_equal(request.conditions.mask[same], old[same])


def test_a_lesion_comes_where_the_source_has_one_or_anywhere(inpainting):
    request, columns = inpainting(np.arange(0, 900, 3))
    old = lesions_of(source_rows(columns))
    middle = lambda maps: np.add(*np.split(placement.bounding(maps), 2, axis=1)) / 2
    found = old.any(axis=(1, 2, 3))
    away = np.abs(middle(request.conditions.mask) - middle(old))[found]
    assert away.max() < 0.3 and away.mean() < 0.12  # shifts, and the image's border
    free = middle(request.conditions.mask)[~found]
    assert free.std(axis=0).min() > 0.08  # once all in the middle of the image


def test_sets_with_boxes_alone_get_holes_from_boxes():
    for kind in ("prior", "train"):
        requests = make(BOXES, masks=None, method="repaint", source="all", boxes=kind)
        request, columns = requests(INDICES)
        old = lesions_of(source_rows(columns))
        told = placement.rasterise(request.conditions.boxes, SIZE)
        painted = within(np.maximum(told, old), placement.RIM)
        lesioned = request.conditions.label < 2
        np.testing.assert_array_equal(request.hole[lesioned], painted[lesioned])
        assert not request.conditions.boxes[~lesioned].any()
        assert request.hole.any(axis=(1, 2, 3)).all()
    same = make(BOXES, masks=None, method="repaint", shapes="source")(INDICES)
    kept = [MANIFEST.boxes[row][0] for row in source_rows(same[1])[::3]]
    np.testing.assert_allclose(same[0].conditions.boxes[::3, 0], kept, rtol=1e-6)


def test_a_translated_image_is_told_the_lesion_that_it_has():
    request, columns = make(given=EVERYTHING, method="translate", source="head")(INDICES)
    rows = source_rows(columns)
    lesioned = request.conditions.label < 2
    np.testing.assert_array_equal(request.conditions.mask[lesioned], lesions_of(rows)[lesioned])
    boxes = np.array([MANIFEST.boxes[row][0] for row in rows])
    np.testing.assert_allclose(request.conditions.boxes[lesioned, 0], boxes[lesioned], rtol=1e-6)
    assert not request.conditions.mask[~lesioned].any()
    assert request.hole is None


def test_what_is_not_given_is_null():
    for given in ((), ("label",), ("mask", "device")):
        requests = make(given=given)
        assert set(requests.present) == set(given)
        conditions = requests(INDICES)[0].conditions
        null = null_like(conditions)
        for name in requests._generator.vocabulary.names:
            leaf, nothing = getattr(conditions, name), np.asarray(getattr(null, name))
            told = not np.array_equal(leaf, nothing, equal_nan=leaf.dtype != np.int32)
            assert told == (name in given), name


def test_sketches_are_taken_of_images_of_the_class():
    """A generator of contours was once given edges."""
    edges = make(given=("label", "sketch"))
    request, columns = edges(INDICES)
    rows = [MANIFEST.ids.index(note["sketch_of"]) for note in notes(columns)]
    np.testing.assert_array_equal(request.drawn, IMAGES[rows])
    np.testing.assert_array_equal(MANIFEST.labels[rows], INDICES % 3)
    assert request.drawn_mask is None
    contours = make(given=("sketch",), sketch="mask")
    request, columns = contours(INDICES)
    rows = [MANIFEST.ids.index(note["sketch_of"]) for note in notes(columns)]
    known = np.array([bool(MANIFEST.masks[row]) for row in rows])
    np.testing.assert_array_equal(request.drawn_mask[known], MASKS[rows][known] / 255)
    assert (~known).any() and (request.drawn_mask[~known] == NULL).all()
    both = make(given=("sketch", "mask"), sketch="mask")(INDICES)[0]
    np.testing.assert_array_equal(both.drawn_mask, both.conditions.mask)


@pytest.mark.parametrize("method", ["generate", "repaint", "translate"])
def test_labels_are_soft_only_where_asked_and_translated(method):
    for soft in (False, True):
        requests = make(method=method, soft_labels=soft, strengths=(0.01, 0.4, 1.0))
        request, columns = requests(INDICES)
        weights = columns["label_weight"]
        if method != "translate":
            assert request.start is None
        if not (soft and method == "translate"):
            assert (weights == 1).all()
            continue
        np.testing.assert_array_equal(request.start, np.float32((0.01, 0.4, 1.0))[INDICES % 3])
        schedule = requests._generator.process.schedule
        expected = inpaint.soft_label_weight(schedule, jax.numpy.asarray(request.start))
        np.testing.assert_array_equal(weights, expected)
        assert weights[0] < 0.01 < weights[1] < 0.99 < weights[2]


NOTHING = dataclasses.replace(MANIFEST, masks=((),) * 48, boxes=((),) * 48, sha256="")


@pytest.mark.parametrize(
    ("message", "settings"),
    [
        (r"method: inpaint takes a generator", {"conditions": BOXES, "method": "inpaint"}),
        (
            r"method: repaint takes a data set with lesion masks",
            {"conditions": ConditionsConfig(), "masks": None, "method": "repaint"},
        ),
        (
            r"given: no train image has a mask",
            {"conditions": ConditionsConfig(mask=True), "manifest": NOTHING, "given": ("mask",)},
        ),
        (r"given: no condition 'lable'; takes some of label", {"given": ("lable", "boxes")}),
        (r"strengths: got 2 numbers; takes one a class, 3", {"strengths": (0.1, 0.2)}),
        (
            r"source_classes: no class 'odd'; takes some of wide, tall, normal",
            {"source_classes": ("tall", "odd")},
        ),
    ],
)
def test_what_cannot_be_asked_is_refused(message, settings):
    with pytest.raises(ConfigError, match=f"config.synthesize.{message}"):
        make(**settings)

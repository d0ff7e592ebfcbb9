"""The stage detect: what it is given and writes, cache keys, and what is refused beforehand."""

import json
import pathlib

import numpy as np
import pytest

from lt_jax import config as config_lib
from lt_jax import detection, dry_run, pipeline, preflight
from lt_jax.config import ConfigError
from lt_jax.data import prepare
from lt_jax.data.pool import PoolError
from lt_jax.mixing.mixture import MixtureError
from lt_jax.runtime import arrays as arrays_lib
from lt_jax.runtime import metrics
from tests.shrink import shrink
from tests.test_golden_configs import load

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
STAGES = ("prepare", "detect")


def tiny(**arms):
    config = shrink(load(CONFIGS / "phantom_detect.py"), 1)
    with config.unlocked():
        config.data.source = "phantom:12"
        config.data.imbalance_factor = 2.0
        config.detect.seeds = (0,)
        config.detect.arms = config_lib.detect_arms(**(arms or {"real": {}}))
    return config


def run_of(config, workdir=pathlib.Path("unused")):
    return pipeline.Pipeline(config, workdir, command="test")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished stage on real images alone."""
    run = run_of(tiny(), tmp_path_factory.mktemp("runs") / "detect")
    run.run(STAGES)
    return run


def test_no_stage_sees_where_test_lesions_are(finished):
    context = finished.context()
    whole, _ = prepare.load(context.folder("prepare"), finished.config.data)
    shown, _ = context.data
    assert shown.sha256 == whole.sha256
    test = set(whole.rows("test").tolist())
    for row in range(len(whole)):
        assert whole.boxes[row] and whole.masks[row]  # each of these images has a lesion
        if row in test:
            assert shown.boxes[row] == () == shown.masks[row]
        else:
            assert (shown.boxes[row], shown.masks[row]) == (whole.boxes[row], whole.masks[row])
    columns = context.annotations.columns
    of_test = np.array(sorted(test))
    others = np.setdiff1d(np.arange(len(whole)), of_test)
    assert not columns["boxes"][of_test].any() and columns["boxes"][others].any(axis=(1, 2)).all()
    assert not columns["mask"][of_test].any() and columns["mask"][others].any(axis=(1, 2, 3)).all()
    assert len(columns["mask"]) == len(whole)


def test_predictions_hold_ids_boxes_and_scores_alone(finished):
    held = arrays_lib.load(finished.workdir / "detect/real/seed0" / detection.PREDICTIONS)
    names = ("ids", "boxes", "scores", "labels")
    assert set(held) == {f"{split}_{name}" for split in ("val", "test") for name in names}
    manifest, _ = finished.context().data
    assert held["test_ids"].tolist() == [manifest.ids[row] for row in manifest.rows("test")]
    assert not held["test_labels"].any(), "one class: a lesion"
    curve = metrics.read(finished.workdir / "metrics.jsonl")
    looked = [line for line in curve if "val_ap50" in line]
    assert [line["step"] for line in looked] == [2, 4] and looked[0]["stage"] == "detect"
    mixture = json.loads((finished.workdir / "detect/real/seed0/mixture.json").read_text())
    assert mixture["train_lesions"] == mixture["train_images"] and not any(mixture["share"])


def test_other_images_are_refused_by_the_report(finished):
    context = finished.context()
    whole, _ = prepare.load(context.folder("prepare"), finished.config.data)
    ids = [whole.ids[row] for row in whole.rows("test")]
    joined = detection.gather(context, whole, ids)
    assert joined.lesions.boxes == [whole.boxes[row] for row in whole.rows("test")]
    areas = [box for row in whole.rows("train") for box in whole.boxes[row]]
    below = [(x1 - x0) * (y1 - y0) <= joined.lesions.small_area for x0, y0, x1, y1 in areas]
    assert 0.2 < np.mean(below) < 0.5
    with pytest.raises(ValueError, match="other test images"):
        detection.gather(context, whole, ids[1:])


def test_dry_run_counts_the_detector():
    text = dry_run.describe(run_of(tiny()), STAGES)
    assert "detect/real/seed0" in text and "detect x1" in text


def keys_of(**changes):
    config = tiny()
    with config.unlocked():
        for path, value in changes.items():
            part, _, field = path.rpartition("__")
            owner = config.detect
            for name in filter(None, part.split("__")):
                owner = owner[name]
            owner[field] = value
    return {spec.stage: spec.key for spec in run_of(config).specs}


def test_keys_follow_what_a_run_reads():
    base = keys_of()
    moved = lambda other: {stage for stage in base if base[stage] != other[stage]}
    assert moved(keys_of(steps=5)) == {"detect/real/seed0", "report"}
    assert moved(keys_of(small=0.4)) == {"report"}
    assert moved(keys_of(arms__real__share=0.2)) == set(), "which real images alone do not read"
    off, other = (keys_of(arms={}, steps=steps) for steps in (4, 5))
    assert off == other and not any(stage.startswith("detect") for stage in off)
    assert "synthesize" not in off and "generator" not in base


def test_arms_on_synthetic_images_need_a_pool():
    config = tiny(real={}, synthetic={"data": "synthetic"}, mixed={"data": "mixed"})
    specs = {spec.stage: spec for spec in run_of(config).specs}
    assert "synthesize" not in specs["detect/real/seed0"].inputs
    for name in ("synthetic", "mixed"):
        assert specs[f"detect/{name}/seed0"].inputs["synthesize"] == specs["synthesize"].key
    assert specs["detect/synthetic/seed0"].key != specs["detect/mixed/seed0"].key


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("detect", {"baseline": "other"}, r"config\.detect\.baseline"),
        ("detect", {"seeds": (1, 1)}, r"config\.detect\.seeds"),
        ("detect", {"arms": config_lib.detect_arms(**{"a b": {}})}, "letters, digits"),
        (
            "detect",
            {"arms": config_lib.detect_arms(real={}, mixed={"data": "mixed", "share": 0.0})},
            r"arms\.mixed\.share",
        ),
        ("synthesize", {"given": ("label",)}, r"arms\.synthetic.*config\.generator\.conditions"),
        ("generator.conditions", {"boxes": "none"}, "leave boxes among"),
    ],
)
def test_what_cannot_be_is_refused(section, values, message):
    config = tiny(real={}, synthetic={"data": "synthetic"})
    with config.unlocked():
        owner = config
        for name in section.split("."):
            owner = owner[name]
        owner.update(values)
    with pytest.raises(ConfigError, match=message):
        run_of(config)


def test_a_set_without_lesions_and_a_size_that_does_not_fit_are_refused():
    config = tiny()
    with config.unlocked():
        config.data.source = "digits"
    built = config_lib.build(config_lib.Config, config)
    with pytest.raises(ConfigError, match="digits has neither lesion boxes nor masks"):
        preflight.check_lesions(built)
    config = tiny()
    with config.unlocked():
        config.detect.model.finest = 16
    with pytest.raises(ConfigError, match=r"config\.detect\.model: .*finest"):
        dry_run.describe(run_of(config), STAGES)


def test_boxes_of_synthetic_images_are_what_the_generator_was_told():
    notes = [
        '{"boxes": [[0.0, 0.0, 0.5, 0.5]]}',
        '{"boxes": [[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 1.00001, 0.8]], "device": null}',
        '{"boxes": []}',
    ]
    boxes = detection.told_boxes(notes)
    assert boxes.shape == (3, 2, 4)
    np.testing.assert_allclose(boxes[0], [[0, 0, 0.5, 0.5], [0, 0, 0, 0]])
    np.testing.assert_allclose(boxes[1], [[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 1, 0.8]], atol=1e-6)
    assert not boxes[2].any()
    with pytest.raises(ConfigError, match="not told where"):
        detection.told_boxes(['{"device": "a"}'])
    assert not detection.told_boxes(notes[2:]).any()
    with pytest.raises(PoolError, match="was told the box"):
        detection.told_boxes(['{"boxes": [[0.4, 0.1, 0.4, 0.9]]}'])


def test_classes_are_drawn_as_among_real_images():
    counts, accepted = np.array([60, 30, 10]), np.array([10, 0, 50])
    arm = config_lib.DetectArmConfig
    mixed = detection.mixed(arm(data="mixed", share=0.4), counts, accepted)
    np.testing.assert_allclose(mixed.class_weight, [0.6, 0.3, 0.1])
    np.testing.assert_allclose(mixed.share, [0.4, 0.0, 0.4])
    filled = detection.mixed(arm(data="mixed", mix="fill_to_head"), counts, accepted)
    assert filled.in_use.tolist() == [0, 0, 50]
    np.testing.assert_allclose(filled.class_weight, np.array([60, 30, 60]) / 150)
    full = detection.mixed(arm(data="mixed", mix="fill_to_head"), counts // counts, accepted)
    assert not full.in_use.any(), "there is nothing to fill"
    with pytest.raises(MixtureError, match="the pool has no accepted one"):
        detection.mixed(arm(data="synthetic"), counts, 0 * accepted)

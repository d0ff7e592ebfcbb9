"""An external test: finished classifiers, another source, nothing trained."""

import json

import numpy as np
import pytest
from PIL import Image

from lt_jax import external_test, reporting
from lt_jax.config import ConfigError, DataConfig
from lt_jax.data import draws, duplicates, prepare, sources
from lt_jax.pipeline import Pipeline
from tests.test_pipeline import tiny

NONE = np.zeros((0, duplicates.THUMBNAIL, duplicates.THUMBNAIL), np.float32)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The tiny phantom with its classifiers."""
    config = tiny("phantom")
    with config.unlocked():
        config.data.update(source="phantom:24", profile="natural", imbalance_factor=1.0)
        config.data.near_duplicates = "move"
        config.data.split.update(policy_val=0.1, val=0.1, test=0.3)
        config.classify.arms = {"ce": config.classify.arms["ce"]}
        config.evaluate.baseline = "ce"
        config.classify.seeds = (0, 1)
    run = Pipeline(config, tmp_path_factory.mktemp("runs") / "own", command="test")
    run.run(["prepare", "classify"])
    return run


def test_a_source_of_which_the_run_has_had_every_image_is_refused(finished, tmp_path):
    with pytest.raises(ValueError, match="all 144 images of phantom:24 are among those"):
        external_test.run(finished, DataConfig(source="phantom:24"), tmp_path)


def test_only_new_images_are_tested_and_the_classifiers_are_those_of_the_run(finished, tmp_path):
    inputs = external_test.run(finished, DataConfig(source="phantom:30"), tmp_path)
    own, _ = finished.context().data
    manifest, _ = prepare.load(
        tmp_path / "prepare", DataConfig(source="phantom:30", image_size=8, channels=1)
    )
    assert len(manifest) == 36 and not set(manifest.image_sha256) & set(own.image_sha256)
    assert set(manifest.splits) == {"test"} and manifest.classes == own.classes
    assert manifest.protocol["left_out_as_known"] == 144
    assert manifest.protocol["left_out_as_seen_by_generator"]["images"] == 0
    np.testing.assert_array_equal(inputs.dataset.test_labels, manifest.labels)
    report = json.loads((tmp_path / "report.json").read_text())
    logits = np.stack([run.test_logits for run in inputs.arms[0].runs])
    accuracy = (logits.argmax(-1) == manifest.labels).mean(axis=1)
    np.testing.assert_allclose(report["arms"][0]["metrics"]["accuracy"]["values"], accuracy)
    assert report["dataset"]["test_openings"] == 1
    # The same forward pass gives the run's own test images the logits that the run has kept.
    test = own.rows("test")
    again = external_test._logits(finished.context(), "ce", 1, finished.context().data[1])
    kept = reporting.arm_of("ce", finished.context(), own, tuple(np.array(own.ids)[test]))
    np.testing.assert_allclose(again[test], kept.runs[1].test_logits, rtol=1e-5, atol=1e-6)


def test_near_duplicates_of_the_run_s_images_are_left_out_and_counted(finished, tmp_path):
    source = sources.load(DataConfig(source="phantom:30", image_size=8, channels=1))
    for record in source.records():  # 144 of the run and 36 others, all in other pixels
        folder = tmp_path / "brighter" / source.classes[record.label]
        folder.mkdir(parents=True, exist_ok=True)
        image = np.clip(source.decode(record.image).astype(int) + 3, 0, 255).astype(np.uint8)
        Image.fromarray(image[..., 0]).save(folder / f"{record.id.replace('/', '_')}.png")
    other = DataConfig(source="folder", root=str(tmp_path / "brighter"))
    inputs = external_test.run(finished, other, tmp_path / "out")
    told = json.loads(inputs.dataset.protocol)
    assert told["left_out_as_known"] == 0
    assert told["left_out_as_near_duplicates"] == {"images": 144, "distance": 0.01}
    assert len(inputs.dataset.test_labels) == 36


def test_what_the_base_of_a_generator_has_seen_is_left_out_and_counted_apart(tmp_path):
    data = DataConfig(source="phantom:4", image_size=8, channels=1)
    whole = prepare.prepare(data, tmp_path, known=draws.Known((), NONE))
    own, seen = whole.image_sha256[:3], whole.image_sha256[2:7]  # one is the run's, too
    made = prepare.prepare(data, tmp_path, known=draws.Known(own, NONE, seen))
    assert set(made.image_sha256) == set(whole.image_sha256[7:])
    assert made.protocol["left_out_as_known"] == 3
    told = made.protocol["left_out_as_seen_by_generator"]
    assert told == {"images": 4, "near_duplicates": None}


def test_classes_of_other_names_are_matched_or_refused(finished, tmp_path):
    own, _ = finished.context().data
    known = {"source": "phantom:26:1", "label": "malignant"}
    with pytest.raises(ConfigError, match="no class 'fibroadenoma' in column 'malignant'"):
        external_test.run(finished, DataConfig(**known), tmp_path)
    swapped = (own.classes[1], own.classes[0], *own.classes[2:])
    with pytest.raises(ConfigError, match=r"--classes: got .*takes the run's"):
        external_test.run(finished, DataConfig(source="phantom:4:1", classes=swapped), tmp_path)


def test_an_unfinished_run_is_named(finished, tmp_path):
    config = tiny("phantom")
    other = Pipeline(config, tmp_path / "other")
    with pytest.raises(ConfigError, match=r"--workdir: classify/.* is not finished"):
        external_test.run(other, DataConfig(source="phantom:4:1"), tmp_path / "out")

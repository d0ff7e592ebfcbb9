"""The extractor stage without labels, tiny, through the pipeline; and views that cannot differ."""

import pathlib

import jax
import numpy as np
import pytest

from lt_jax import pipeline, preflight
from lt_jax.classify import predict
from lt_jax.config import AugmentConfig, Config, ConfigError, DataConfig, ExtractorConfig
from lt_jax.models import classifier, module
from lt_jax.runtime import arrays as arrays_lib
from lt_jax.runtime import checkpoint, mesh, metrics
from tests.shrink import shrink
from tests.test_golden_configs import load

ROOT = pathlib.Path(__file__).parents[1]
STAGES = ("prepare", "extractor")


def tiny(objective):
    config = shrink(load(ROOT / "configs/digits.py"), levels=1)
    with config.unlocked():
        config.data.imbalance_factor = 4.0
        config.extractor.objective = objective
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Both objectives' runs, up to the extractor, with the data that they share."""
    runs = {}
    cache = tmp_path_factory.mktemp("cache")
    for objective in ("contrastive", "supervised"):
        workdir = tmp_path_factory.mktemp(objective)
        runs[objective] = pipeline.Pipeline(tiny(objective), workdir, cache)
        runs[objective].run(STAGES)
    return runs


def read(run):
    """Parameters, as those that come after the extractor read them, and `features.npz`."""
    context = run.context()
    network = classifier.make(context.config.extractor.model, len(context.data[0].classes))
    image = jax.ShapeDtypeStruct((1, *context.image_shape), np.float32)
    target = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), module.abstract(network, image, train=False)
    )
    folder = context.folder("extractor")
    return checkpoint.load_tree(folder / "params", target), arrays_lib.load(folder / "features.npz")


def test_it_leaves_what_the_supervised_one_leaves(finished):
    (params, arrays), (_, supervised) = (
        read(finished[name]) for name in ("contrastive", "supervised")
    )
    assert set(arrays) == set(supervised)
    for name in arrays:
        assert arrays[name].shape == supervised[name].shape
        assert arrays[name].dtype == supervised[name].dtype
    context = finished["contrastive"].context()
    manifest, images = context.data
    assert not any((manifest.labels[arrays[n]] < 0).any() for n in arrays if "rows" in n)
    # The head is the probe's, folded: the ordinary classifier says what is stored.
    config = context.config.extractor
    forward = predict.make_forward(config.model, len(manifest.classes), mesh.make_mesh(1))
    rows = arrays["val_rows"]
    logits, features = predict.predict(forward, params, images, rows, 16)
    np.testing.assert_allclose(features, arrays["val_features"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits, arrays["val_logits"], rtol=1e-3, atol=1e-3)
    right = logits.argmax(1) == manifest.labels[rows]
    assert right.mean() > 0.3  # of ten classes, after four steps


def test_the_objectives_are_different_artifacts_and_log_what_is_theirs(finished):
    keys = {
        next(spec.key for spec in run.specs if spec.stage == "extractor")
        for run in finished.values()
    }
    assert len(keys) == 2
    lines = metrics.read(finished["contrastive"].workdir / "metrics.jsonl")
    assert {line["stage"] for line in lines} == {"extractor"}
    assert [line["step"] for line in lines] == [2, 4]
    assert all({"loss", "alignment", "uniformity"} <= set(line) for line in lines)


def views(channels=1, batch_size=16, objective="contrastive", **augment):
    part = ExtractorConfig(
        objective=objective, augment=AugmentConfig(**augment), batch_size=batch_size
    )
    return Config(data=DataConfig(source="digits", image_size=8, channels=channels), extractor=part)


def test_views_that_cannot_differ_are_refused(tmp_path):
    preflight.check_views(views(shift=1))
    preflight.check_views(views(objective="supervised"))
    preflight.check_views(views(channels=3, saturation=0.4))
    for run in (views(), views(saturation=0.4)):  # of grey images, saturation changes none
        with pytest.raises(ConfigError, match=r"config\.extractor\.augment: changes no image"):
            preflight.check_views(run)
    with pytest.raises(ConfigError, match=r"batch_size: got 1; .*at least 2"):
        preflight.check_views(views(shift=1, batch_size=1))
    config = tiny("contrastive")
    with config.unlocked():
        config.extractor.augment.update(shift=0, scale=0.0, rotate=0.0)
    with pytest.raises(ConfigError, match="changes no image"):
        pipeline.Pipeline(config, tmp_path).run(STAGES)
    assert not list(tmp_path.rglob("artifact.json"))

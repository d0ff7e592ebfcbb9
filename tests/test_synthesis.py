"""The stage synthesize: nothing of the test split reaches it; what it writes of its pool."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from lt_jax import pipeline, synthesis
from lt_jax.config import MemorizationConfig, SelectionConfig
from lt_jax.data.pool import PoolError, open_pool, verify
from lt_jax.runtime import arrays as arrays_lib
from tests.shrink import shrink
from tests.test_golden_configs import load


class Guarded:
    """Images of which those of some rows cannot be had."""

    def __init__(self, images, forbidden):
        self._images, self._forbidden = images, set(forbidden.tolist())

    def __len__(self):
        return len(self._images)

    def __getitem__(self, rows):
        assert not self._forbidden & set(np.asarray(rows).tolist()), "a test image was asked for"
        return self._images[rows]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny run of digits up to its extractor."""
    config = shrink(load(pathlib.Path(__file__).parents[1] / "configs/digits.py"), levels=1)
    with config.unlocked():
        config.data.imbalance_factor = 10.0
    run = pipeline.Pipeline(config, tmp_path_factory.mktemp("synthesis") / "run")
    run.run(["prepare", "generator", "extractor"])
    return run.context()


def context_with(trained, selection, images=None):
    """The same run with another selection; `images` in place of its own."""
    config = dataclasses.replace(trained.config.synthesize, selection=selection)
    context = dataclasses.replace(
        trained, config=dataclasses.replace(trained.config, synthesize=config)
    )
    manifest, own = trained.data
    context.__dict__["data"] = manifest, own if images is None else images
    return context


EVERYTHING = SelectionConfig(
    scores=("mahalanobis", "knn", "denoising"),
    held_out="policy_val",
    label_probability=0.0,
    surplus=2.0,
    keep_rate=1.0,
)


def test_no_test_image_or_label_is_asked_for(trained, tmp_path):
    manifest, images = trained.data
    test = manifest.rows("test")
    assert (manifest.labels[test] == -1).all()
    held = arrays_lib.load(trained.folder("extractor") / "features.npz")
    seen = np.concatenate([held[name] for name in held if name.endswith("_rows")])
    assert not np.intersect1d(seen, test).size
    synthesis.run(tmp_path, context_with(trained, EVERYTHING, Guarded(images, test)))
    assert len(open_pool(tmp_path)) > 0
    with pytest.raises(AssertionError, match="a test image"):
        Guarded(images, test)[test[:1]]


def test_every_record_tells_each_gate_s_value(trained, tmp_path):
    synthesis.run(tmp_path, context_with(trained, EVERYTHING))
    pool = open_pool(tmp_path)
    columns = pool.columns
    for scores in columns["scores"]:
        assert list(json.loads(scores)) == ["mahalanobis", "knn", "denoising"]
    for name in ("score", "label_probability", "cosine", "ms_ssim"):
        assert np.isfinite(columns[name]).all(), name
    ids = {trained.data[0].ids[row] for row in trained.data[0].rows("train")}
    assert set(columns["nearest"]) <= ids
    limits = {name: getattr(pool.info, f"{name}_thresholds") for name in ("cosine", "ms_ssim")}
    label = columns["label"]
    copied = np.zeros(len(pool), bool)
    for name, limit in limits.items():
        copied |= columns[name] > np.float32(limit)[label]
    np.testing.assert_array_equal(copied, ["memorised" in failed for failed in columns["failed"]])
    outside = columns["score"] > np.float32(pool.info.thresholds)[label]
    np.testing.assert_array_equal(outside, ["ood" in failed for failed in columns["failed"]])
    audit = json.loads((tmp_path / "audit.json").read_text())
    assert audit["overall"]["candidates"] == len(pool)
    assert audit["overall"]["copies"] == copied.sum()
    assert list(verify.problems(pool, tmp_path)) == []


def test_the_pairs_of_the_audit_have_the_likeness_of_the_two_that_are_shown(trained, tmp_path):
    synthesis.run(tmp_path, context_with(trained, EVERYTHING))
    pool, manifest = open_pool(tmp_path), trained.data[0]
    pairs = json.loads((tmp_path / "audit.json").read_text())["closest"]["accepted"]
    at = np.searchsorted(pool.columns["index"], [pair["index"] for pair in pairs])
    params = trained.classifier_params("extractor", trained.config.extractor.model)
    made = trained.features(params, pool, at)
    held = arrays_lib.load(trained.folder("extractor") / "features.npz")
    place = {manifest.ids[row]: i for i, row in enumerate(held["train_rows"])}
    train = held["train_features"][[place[pair["nearest"]] for pair in pairs]]
    lengths = np.linalg.norm(made, axis=1) * np.linalg.norm(train, axis=1)
    cosines = np.array([pair["cosine"] for pair in pairs])
    np.testing.assert_allclose(cosines, np.sum(made * train, axis=1) / lengths, atol=1e-5)
    highest = pool.columns["cosine"][at]  # over all train images, as it was shown before
    assert np.all(cosines <= highest + 1e-5) and np.any(cosines < highest - 1e-4)


def test_an_interrupted_pool_is_not_gone_on_with_by_other_gates(trained, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(synthesis, "_finish", interrupted)
        synthesis.run(tmp_path, context_with(trained, EVERYTHING))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for change, told in (
        ({"keep_rate": 0.5}, "thresholds of 0"),
        ({"scores": ("knn",)}, r"scores \('mahalanobis', 'knn', 'denoising'\) then"),
        ({"label_probability": 0.2}, "least_label_probability 0.0 then, 0.2 now"),
    ):
        other = context_with(trained, dataclasses.replace(EVERYTHING, **change))
        with pytest.raises(PoolError, match=rf"gates\.json.*judged by other gates.*{told}"):
            synthesis.run(tmp_path, other)
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    synthesis.run(tmp_path, context_with(trained, EVERYTHING))
    assert list(verify.problems(open_pool(tmp_path), tmp_path)) == []


def interrupted(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("similarity", ["both", "cosine", "ms_ssim"])
def test_copies_are_judged_and_told_by_the_limits_of_each_similarity(
    trained, tmp_path, similarity, monkeypatch
):
    everything = lambda values, labels, num_classes, **_: np.full(num_classes, -1.0)
    monkeypatch.setattr(synthesis.memorization, "_limits", everything)
    memorization = MemorizationConfig(similarity=similarity)
    selection = SelectionConfig(
        scores=(), keep_rejected=True, label_probability=0.0, memorization=memorization
    )
    synthesis.run(tmp_path, context_with(trained, selection))
    pool = open_pool(tmp_path)
    assert list(verify.problems(pool, tmp_path)) == []
    assert pool.counts("memorised").sum() == len(pool) > 0
    assert bool(pool.info.cosine_thresholds) == (similarity != "ms_ssim")
    audit = json.loads((tmp_path / "audit.json").read_text())
    assert all(pair["cosine"] is not None for pair in audit["closest"]["copies"])
    told = {f"{measure}_thresholds" for measure in audit["classes"][0]["limits"]}
    assert told == {n for n in ("cosine_thresholds", "ms_ssim_thresholds") if getattr(pool.info, n)}


def test_of_more_accepted_images_than_wanted_varied_ones_stay(trained, tmp_path):
    first = dataclasses.replace(EVERYTHING, surplus=1.0)
    for name, selection in (("first", first), ("varied", EVERYTHING)):
        (tmp_path / name).mkdir()
        synthesis.run(tmp_path / name, context_with(trained, selection))
    pools = {name: open_pool(tmp_path / name) for name in ("first", "varied")}
    wanted = [outcome.wanted for outcome in pools["first"].outcomes]
    assert wanted == [outcome.wanted for outcome in pools["varied"].outcomes]
    surplus = pools["varied"].counts("surplus")
    assert surplus.sum() > 0
    counts = pools["varied"].counts()
    assert (counts[surplus > 0] == np.array(wanted)[surplus > 0]).all()
    indices = {
        n: set(p.columns["index"][p.columns["verdict"] == "accepted"]) for n, p in pools.items()
    }
    assert indices["first"] != indices["varied"]

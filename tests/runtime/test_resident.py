"""Images kept on the devices: the batches of a stream bit for bit, and a rule of sizes."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from lt_jax.classify import train
from lt_jax.config import RuntimeConfig
from lt_jax.data.images import ArrayImages
from lt_jax.data.stream import MixedStream
from lt_jax.runtime import mesh, progress, resident
from lt_jax.runtime.job import Job
from tests.classify import test_rules
from tests.classify import test_train as classifier

WEIGHT, SHARE = np.array([0.6, 0.3, 0.1]), np.array([0.0, 0.25, 0.7])
REAL = np.random.default_rng(0).integers(0, 256, (70, 4, 4, 3), dtype=np.uint8)
EXTRA = np.random.default_rng(1).integers(0, 256, (30, 4, 4, 3), dtype=np.uint8)
DRAWN = 3 * 20 + 3 * 9  # of which images
data = classifier.data  # the fixture


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch):
    monkeypatch.setattr(progress, "_SAID", {})


def make(real=REAL, extra=EXTRA):
    """Rows 5 to 64 of the real store and 2 to 28 of the synthetic one, and a column beside."""
    return MixedStream(
        real,
        np.split(np.arange(5, 65), 3),
        extra,
        np.split(np.arange(2, 29), 3),
        batch_size=16,
        seed=3,
        columns={"number": (np.arange(len(real)), 100 + np.arange(len(extra)))},
    )


def job_of(devices=1, **runtime):
    tags = {"stage": "toy", "seed": 3}
    return Job(pathlib.Path("unused"), mesh.make_mesh(devices), RuntimeConfig(**runtime), tags)


def batches(stream, job, store):
    """Ten batches on the devices, of two mixtures."""
    found = []
    for share in (SHARE, SHARE[::-1]):
        stream.set_mixture(WEIGHT, share)
        for _ in range(5):
            placed = mesh.put(next(stream), job.mesh)
            found.append(resident.images(placed, store, job.mesh, 0))
    stream.close()
    return found


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("stored", ["arrays", "files"])
def test_batches_are_the_streams_own_bit_for_bit(tmp_path, devices, stored):
    real, extra = REAL, EXTRA
    if stored == "files":
        for name, held in (("real", REAL), ("extra", EXTRA)):
            np.save(tmp_path / f"{name}.npy", held)
        real, extra = (ArrayImages(tmp_path / f"{name}.npy") for name in ("real", "extra"))
    job, stream = job_of(devices), make(real, extra)
    store = resident.settle([stream], job)
    assert store is not None and store.shape == (DRAWN, 4, 4, 3) and store.dtype == np.uint8
    assert store.sharding.is_fully_replicated and len(store.sharding.device_set) == devices
    kept, streamed = batches(stream, job, store), batches(make(), job, None)
    for one, other in zip(kept, streamed, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
            assert one[name].sharding == other[name].sharding, name


def test_what_streams_share_is_held_once():
    streams = [make(), make(), make(extra=REAL)]
    store = resident.settle(streams, job_of())
    assert store is not None and len(store) == len(np.arange(2, 65)) + 27
    for stream, extra in zip(streams, (EXTRA, EXTRA, REAL), strict=True):
        for one, other in zip(
            batches(stream, job_of(), store),
            batches(make(extra=extra), job_of(), None),
            strict=True,
        ):
            np.testing.assert_array_equal(one["image"], other["image"])


LARGE = np.zeros((70, 100, 100, 3), np.uint8)


class Lazy:
    """A store that decodes at each access."""

    def __len__(self) -> int:
        return len(REAL)

    def __getitem__(self, indices):
        return REAL[indices]


@pytest.mark.parametrize(
    ("stream", "limit", "line"),
    [
        (make(), 256, "toy 3: images of 0.0 MiB, config.runtime.resident_mib=256: kept on every"),
        (make(), 0, "toy 3: images are streamed by grain (config.runtime.resident_mib=0)"),
        (make(real=Lazy()), 256, "toy 3: images are decoded at each access: streamed by grain"),
        (make(extra=EXTRA[..., :1]), 256, "images of different shapes: streamed by grain"),
        (make(LARGE, LARGE), 1, "of 1.8 MiB, config.runtime.resident_mib=1: streamed by grain"),
    ],
    ids=["kept", "switched_off", "lazy", "shapes", "large"],
)  # fmt: skip
def test_a_line_says_where_images_are_and_why(stream, limit, line, capsys):
    store = resident.settle([stream], job_of(resident_mib=limit))
    assert line in capsys.readouterr().err
    assert (store is not None) == ("kept" in line)


def test_trainings_that_follow_each_other_say_the_same_once(capsys):
    for limit in (256, 256, 0, 256):
        resident.settle([make()], job_of(resident_mib=limit))
    assert capsys.readouterr().err.count("toy 3: ") == 3


def test_cpu_devices_share_a_memory(capsys):
    """What one can keep, eight cannot."""
    assert resident.settle([make(LARGE, LARGE)], job_of(1, resident_mib=3)) is not None
    assert resident.settle([make(LARGE, LARGE)], job_of(8, resident_mib=3)) is None
    line = "8 x images of 1.8 MiB, config.runtime.resident_mib=3: streamed"
    assert line in capsys.readouterr().err


@pytest.mark.parametrize(("devices", "first"), [(1, "kept"), (8, "streamed")])
def test_a_training_is_the_same_bit_for_bit_and_goes_on_either_way(
    data, tmp_path, devices, first, monkeypatch
):
    """Soft labels, synthetic images, mixtures that feedback changes between rounds."""
    soft = classifier.extra_of(data, 0.6)
    recipe = dataclasses.replace(classifier.RECIPE, steps=6, rounds=2)
    limits = {"kept": 1, "streamed": 0}
    original = train.MixedStream.__next__

    def fit(name, how):
        runtime = dataclasses.replace(classifier.RUNTIME, resident_mib=limits[how])
        job = Job(tmp_path / name, mesh.make_mesh(devices), runtime, {"stage": "classify"})
        return jax.device_get(train.train(recipe, soft, test_rules.BANDIT, job)[0])

    def cut(stream):
        if stream._next == 5:
            raise KeyboardInterrupt
        return original(stream)

    kept, streamed = (fit(how, how) for how in limits)
    jax.tree.map(np.testing.assert_array_equal, kept, streamed)
    with monkeypatch.context() as patch:
        patch.setattr(train.MixedStream, "__next__", cut)
        with pytest.raises(KeyboardInterrupt):
            fit("cut", first)
    resumed = fit("cut", "streamed" if first == "kept" else "kept")
    jax.tree.map(np.testing.assert_array_equal, kept, resumed)

"""Synthesis: counts asked and got, independence of the batch, resume without duplicates."""

import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.config import SynthesizeConfig
from lt_jax.data.pool import GATES, PoolInfo, PoolReader, PoolWriter
from lt_jax.diffusion import synthesize
from lt_jax.diffusion.program import Judged
from lt_jax.diffusion.requests import Request
from lt_jax.runtime import mesh
from lt_jax.selection.select import Verdict

CLASSES = 3


def judged(images, reason):
    """A batch on one device, whose accepted images lie in front; `reason` 1 + gate failed, or 0."""
    count = len(reason)
    passed = jnp.stack([reason != 1 + gate for gate in range(len(GATES))], axis=1)
    verdict = Verdict(
        score=jnp.ones(count),
        scores=jnp.ones((count, 1)),
        label_probability=jnp.ones(count),
        cosine=jnp.full(count, 0.5),
        ms_ssim=jnp.full(count, 0.25),
        nearest=jnp.arange(count) % 2,
        passed=passed,
        accepted=reason == 0,
    )
    return Judged(images[jnp.argsort(reason != 0, stable=True)], reason == 0, verdict)


def fake_program(calls=None):
    """Image i is filled with i mod 251; two of three candidates are accepted, by index alone."""

    def program(indices, request=None, source=None):
        if calls is not None:
            calls.extend(np.unique(np.asarray(indices)).tolist())
        images = jnp.broadcast_to((indices % 251)[:, None, None, None], (len(indices), 4, 4, 1))
        reason = jnp.where((indices // CLASSES) % 3 == 0, 1, 0)
        return judged(images.astype(jnp.uint8), reason)

    return program


def asked(indices):
    """Requests that ask for nothing but a class."""
    columns = {
        "source_label": indices % CLASSES,
        "label_weight": np.ones(len(indices), np.float32),
        "conditions": ["{}"] * len(indices),
    }
    return Request(None), columns


def info():
    return PoolInfo(
        generator="g",
        extractor="e",
        manifest_sha256="m",
        seed=0,
        classes=("a", "b", "c"),
        guidance_scale=1.0,
        sampler="ddim",
        thresholds=(1.0, 1.0, 1.0),
        least_label_probability=0.0,
    )


def fill(folder, wanted, batch_size, program=None, max_attempts=3.0):
    folder.mkdir(exist_ok=True)
    source = synthesize.Source(
        program or fake_program(), asked, CLASSES, batch_size, ("mahalanobis",), ("first", "second")
    )
    with PoolWriter(folder, info()) as writer:
        costs = synthesize.synthesize(
            source,
            np.array(wanted),
            max_attempts,
            writer,
            device_mesh=mesh.make_mesh(1),
            folder=folder,
            flops_per_image=2.0,
        )
        writer.finish(np.array(wanted))
    return PoolReader(folder, "m"), costs


def test_every_class_gets_what_it_asked(tmp_path):
    pool, costs = fill(tmp_path, (0, 7, 20), 8)
    assert pool.counts().tolist() == [0, 7, 20]
    index = pool.columns["index"]
    assert len(set(index.tolist())) == len(index)
    assert costs.images == len(index)
    assert costs.flops == 2.0 * len(index)
    assert (pool.columns["label"] == index % CLASSES).all()
    rows = pool.rows(2)
    assert (pool[rows][:, 0, 0, 0] == index[rows] % 251).all()


def test_accepted_set_is_independent_of_the_batch_size(tmp_path):
    accepted = []
    for batch_size in (4, 16):
        pool, _ = fill(tmp_path / str(batch_size), (5, 11, 2), batch_size)
        accepted.append(sorted(pool.columns["index"][pool.columns["verdict"] == "accepted"]))
    assert accepted[0] == accepted[1]


def test_budget_ends_a_class_that_is_never_accepted(tmp_path):
    def never(indices, request, source):
        rejected = jnp.full(len(indices), 2)
        return judged(jnp.zeros((len(indices), 4, 4, 1), jnp.uint8), rejected)

    pool, _ = fill(tmp_path, (4, 4, 4), 4, never, max_attempts=2.0)
    assert pool.counts().tolist() == [0, 0, 0]
    assert pool.counts("label").tolist() == [8, 8, 8]


def test_interrupted_generation_goes_on_without_duplicates(tmp_path):
    calls = []

    def interrupted(indices, request, source):
        if len(calls) >= 16:
            raise KeyboardInterrupt
        return fake_program(calls)(indices)

    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "a", (9, 9, 9), 8, interrupted)
    first = list(calls)
    calls.clear()
    resumed, costs = fill(tmp_path / "a", (9, 9, 9), 8, fake_program(calls))
    assert len(set(first) & set(calls)) <= 8  # the batch on the device when it stopped
    unbroken, whole = fill(tmp_path / "b", (9, 9, 9), 8)
    for name in ("index", "verdict", "sha256"):
        assert resumed.columns[name].tolist() == unbroken.columns[name].tolist()
    assert costs.images == whole.images


def test_ledger_counts_a_part_whose_booking_was_killed(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(synthesize.faults, "raise_if_stopping", killed)
        fill(tmp_path / "a", (9, 9, 9), 8)
    # Part 1 is on disk, the ledger knows of part 0 alone.
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(synthesize.json, "dumps", killed)
        fill(tmp_path / "a", (9, 9, 9), 8)
    _, resumed = fill(tmp_path / "a", (9, 9, 9), 8)
    _, unbroken = fill(tmp_path / "b", (9, 9, 9), 8)
    assert (resumed.images, resumed.flops) == (unbroken.images, unbroken.flops)


def test_waves_ask_for_what_is_missing():
    wave = synthesize.next_wave(
        np.array([10, 10, 10]), np.array([10, 4, 0]), np.array([12, 8, 30]), 3.0
    )
    assert wave[0] == 0  # has all
    assert wave[1] == 12  # 6 missing, 5 of 10 accepted (rule of succession)
    assert wave[2] == 0  # budget spent


def test_wanted_counts():
    config = SynthesizeConfig(fill_to=0, min_dose=0.5)
    assert synthesize.wanted_counts(config, np.array([100, 20, 5])).tolist() == [50, 80, 95]

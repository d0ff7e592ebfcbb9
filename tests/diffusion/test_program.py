"""The compiled program: image i whatever its batch and devices, known pixels, evaluations."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.classify import predict
from lt_jax.config import (
    AugmentConfig,
    ClassifierConfig,
    GeneratorConfig,
    GuidanceConfig,
    MemorizationConfig,
    SelectionConfig,
    SketchConfig,
    SynthesizeConfig,
    UNetConfig,
    ViTConfig,
)
from lt_jax.data import augment
from lt_jax.diffusion import annotations, denoising_error, trained
from lt_jax.diffusion import program as program_lib
from lt_jax.diffusion.generator import Generator
from lt_jax.diffusion.requests import Request, Requests
from lt_jax.models import classifier, conditioning, module
from lt_jax.models.unet import UNet
from lt_jax.runtime import keys, mesh
from lt_jax.selection import memorization, ood, select
from lt_jax.selection.ensemble import EnsembleState
from tests.diffusion.lesion_set import ALL, EVERYTHING, MANIFEST, MASKS, SIZE, TRAIN

SHAPE = (SIZE, SIZE, 1)
KNOWN = annotations.annotate(MANIFEST, MASKS, ALL, 1)
MODEL = UNetConfig(channels=(8,), blocks=1, attention_resolutions=(), embedding=8)
GENERATOR = Generator(
    GeneratorConfig(model=MODEL, conditions=ALL, sketch=SketchConfig(source="mask")),
    KNOWN.vocabulary,
    SHAPE,
)
EXTRACTOR = ClassifierConfig(
    vit=ViTConfig(variant="custom", width=8, depth=1, heads=2, mlp=8, patch_size=8)
)
IMAGES = np.random.default_rng(0).integers(0, 256, (len(MANIFEST), *SHAPE), dtype=np.uint8)
ALL_LEAVE = SelectionConfig(keep_rate=0.6, label_probability=0.3, keep_rejected=True)
CONFIGS = {
    config.method: dataclasses.replace(config, given=EVERYTHING, source="all", selection=ALL_LEAVE)
    for config in (
        SynthesizeConfig(method="generate", steps=2, sampler="ancestral"),
        SynthesizeConfig(
            method="inpaint", steps=2, sampler="heun", guidance=GuidanceConfig(mode="composed")
        ),
        SynthesizeConfig(method="repaint", steps=2, repaint_jump=1, repaint_resamples=2),
        SynthesizeConfig(method="translate", steps=2, sampler="dpmpp_2m_sde", threshold="dynamic"),
    )
}
INDICES = np.arange(8, dtype=np.int32)


def disturbed(params, seed):
    """Parameters of which none is zero, as those that networks begin with are."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: leaf + 0.2 * rng.standard_normal(leaf.shape, np.float32), params
    )


@functools.cache
def parameters():
    """Of the generator and the extractor, and gates that let some images pass."""
    network = classifier.make(EXTRACTOR, 3)
    extractor = disturbed(
        module.init(network, keys.root(1), jnp.zeros((1, *SHAPE)), train=False), 1
    )
    forward = jax.jit(lambda images: module.apply(network, extractor, images, train=False))
    logits, features = forward(augment.normalize(jnp.asarray(IMAGES[TRAIN])))
    train = ood.Evidence(
        features=np.asarray(features), logits=np.asarray(logits), labels=MANIFEST.labels[TRAIN]
    )
    ensemble = ood.make(ALL_LEAVE, 3)
    fitted, limits = select.calibrate(ensemble, train, None, ALL_LEAVE, 0)
    copies = MemorizationConfig(candidates=2)
    rows = np.array(TRAIN)
    bank = memorization.fit(
        copies, IMAGES[rows], train.features, MANIFEST.group_numbers[rows],
        IMAGES[rows][::-1], train.features[::-1], train.labels[::-1], 3, 20.0, AugmentConfig(),
    )  # fmt: skip
    gates = select.Gates(
        ensemble, copies, fitted, jnp.asarray(limits, jnp.float32), jnp.asarray(0.3), bank
    )
    return disturbed(GENERATOR.init(), 0), extractor, gates


def judge(config, indices=INDICES, devices=8, params=None, fsdp=1, **changes):
    """The request of candidates `indices`, and the judged batch on its devices."""
    requests = Requests(config, GENERATOR, KNOWN, MANIFEST, IMAGES)
    networks = program_lib.Networks(GENERATOR, EXTRACTOR, requests.present)
    device_mesh = mesh.make_mesh(devices, fsdp)
    program = program_lib.make_program(config, networks, device_mesh)
    request, _ = requests(indices)
    request = request.replace(**changes)
    unet, extractor, gates = parameters()
    networks = mesh.distribute((unet if params is None else params, extractor), device_mesh)
    held = *networks, *mesh.replicate((gates, keys.root(3)), device_mesh)
    alone = request.replace(source=None)
    return request, program(*held, jnp.asarray(indices), alone, request.source)


def run(config, **settings):
    """The request, and the images and verdict of every candidate."""
    request, judged = judge(config, **settings)
    fetched = program_lib.cut(judged).fetch()
    np.testing.assert_array_equal(fetched.rows, np.arange(len(fetched.rows)))
    return request, fetched.images, fetched.verdict


@functools.cache
def whole(method):
    """Candidates 0 to 7, one on each device."""
    return run(CONFIGS[method])


def test_images_are_equal_bit_for_bit_where_each_device_does_the_same_arithmetic(monkeypatch):
    """One image a device, on eight of them, in groups of four or not; and on one, one by one."""
    config = CONFIGS["generate"]
    _, images, verdict = whole("generate")
    monkeypatch.setattr(mesh, "SMALL", 64)  # so that parameters are split
    parts = mesh.shardings(parameters()[:2], mesh.make_mesh(8, 4))
    for network in parts:
        assert not all(part.is_fully_replicated for part in jax.tree.leaves(network))
    _, grouped, _ = run(config, fsdp=4)
    np.testing.assert_array_equal(images, grouped)
    for i in range(len(images)):
        _, alone, own = run(config, indices=INDICES[i : i + 1], devices=1)
        np.testing.assert_array_equal(images[i], alone[0])
        np.testing.assert_array_equal(verdict.score[i], own.score[0])


@pytest.mark.parametrize("method", CONFIGS)
def test_image_i_is_the_same_in_any_batch_and_on_any_number_of_devices(method):
    """Eight on eight devices, one each, beside four of them, in another order, on one."""
    _, images, verdict = whole(method)
    assert len(np.unique(images.reshape(8, -1), axis=0)) == 8
    rows = np.array([5, 2, 7, 0])
    _, others, other_verdict = run(CONFIGS[method], indices=INDICES[rows], devices=1)
    assert np.abs(images[rows].astype(int) - others).max() <= 1  # rounding falls differently
    np.testing.assert_array_equal(verdict.passed[rows], other_verdict.passed)
    np.testing.assert_array_equal(verdict.accepted[rows], other_verdict.accepted)
    np.testing.assert_allclose(verdict.score[rows], other_verdict.score, rtol=0.05)


def test_accepted_images_alone_leave_and_are_those_of_all():
    """Each of two devices cuts its own; rows tell which candidates they are."""
    config = dataclasses.replace(
        CONFIGS["inpaint"], selection=dataclasses.replace(ALL_LEAVE, keep_rejected=False)
    )
    _, every, verdict = whole("inpaint")
    for devices in (8, 2):
        fetched = program_lib.cut(judge(config, devices=devices)[1]).fetch()
        np.testing.assert_array_equal(fetched.rows, np.flatnonzero(verdict.accepted))
        assert np.abs(fetched.images.astype(int) - every[fetched.rows]).max() <= 1
    assert 0 < len(fetched.rows) < 8


@pytest.mark.parametrize("method", ["generate", "inpaint"])
def test_fused_equals_its_steps_one_by_one(method):
    """Images, features, verdicts and the cut, each a program of its own with the host between."""
    config = dataclasses.replace(
        CONFIGS[method], selection=dataclasses.replace(ALL_LEAVE, keep_rejected=False)
    )
    request, judged = judge(config, devices=1)
    fused = program_lib.cut(judged).fetch()
    unet, extractor, gates = parameters()
    networks = program_lib.Networks(GENERATOR, EXTRACTOR, EVERYTHING)
    sample = jax.jit(functools.partial(program_lib.make_images, config, networks))
    images = np.asarray(sample(unet, keys.root(3), jnp.asarray(INDICES), request))
    forward = predict.make_forward(EXTRACTOR, 3, mesh.make_mesh(1))
    logits, features = jax.device_get(forward(extractor, images))
    told = ood.Evidence(features=features, logits=logits, labels=INDICES % 3)
    own = np.full(8, -1, np.int32) if request.own_group is None else request.own_group
    verdict = jax.device_get(jax.jit(select.judge)(gates, images, told, own))
    np.testing.assert_array_equal(fused.rows, np.flatnonzero(verdict.accepted))
    np.testing.assert_array_equal(fused.images, images[verdict.accepted])
    for name in ("passed", "nearest", "ms_ssim"):
        np.testing.assert_array_equal(getattr(fused.verdict, name), getattr(verdict, name))
    for name in ("score", "scores", "label_probability", "cosine"):
        np.testing.assert_allclose(
            getattr(fused.verdict, name), getattr(verdict, name), rtol=1e-5, err_msg=name
        )


def test_denoising_errors_are_those_of_the_stored_image_its_class_and_its_own_stream():
    selection = dataclasses.replace(ALL_LEAVE, scores=("denoising",))
    config = dataclasses.replace(CONFIGS["generate"], selection=selection)
    unet, extractor, gates = parameters()
    errors = np.exp(np.random.default_rng(0).normal(size=(9, 3))).astype(np.float32)
    known = ood.Evidence(
        np.zeros((9, 1)), np.zeros((9, 3)), np.arange(9, dtype=np.int32) % 3, errors
    )
    ensemble = ood.make(selection, 3)
    fitted = ensemble.fit(known)
    gates = dataclasses.replace(gates, ensemble=ensemble, fitted=fitted, bank=None)
    request, _ = Requests(config, GENERATOR, KNOWN, MANIFEST, IMAGES)(INDICES)
    networks = program_lib.Networks(GENERATOR, EXTRACTOR, EVERYTHING)
    program = program_lib.make_program(config, networks, mesh.make_mesh(1))
    key, labels = keys.root(3), jnp.asarray(INDICES % 3)
    judged = program(unet, extractor, gates, key, jnp.asarray(INDICES), request, None)
    fused = program_lib.cut(judged).fetch()
    streams = program_lib.keys_of(keys.per_example(key, jnp.asarray(INDICES)), "denoising_error")
    measure = jax.jit(
        functools.partial(denoising_error.errors, GENERATOR, times=selection.noise_times)
    )
    found = measure(unet, augment.normalize(jnp.asarray(fused.images)), labels, streams)
    told = ood.Evidence(jnp.zeros((8, 1)), jnp.zeros((8, 3)), labels, found)
    np.testing.assert_allclose(
        fused.verdict.scores, ensemble.score(fitted, told)[1], rtol=1e-4, atol=1e-4
    )


def test_verdicts_differ():
    """So that their being equal above says something."""
    passed = np.concatenate([whole(method)[2].passed for method in CONFIGS])
    assert len(np.unique(passed, axis=0)) > 2


@pytest.mark.parametrize("method", ["inpaint", "repaint"])
def test_pixels_outside_the_hole_are_the_source_s_byte_for_byte(method):
    request, images, _ = whole(method)
    outside = request.hole == 0
    assert 0.05 < outside.mean() < 0.95
    np.testing.assert_array_equal(images[outside], request.source[outside])
    assert (images[~outside] != request.source[~outside]).mean() > 0.9


def test_a_slightly_noised_source_comes_back_and_a_drowned_one_does_not():
    config = CONFIGS["translate"]
    away = {}
    for start in (0.01, 1.0):
        request, images, _ = run(config, start=np.full(8, start, np.float32))
        away[start] = np.abs(images.astype(int) - request.source)
    assert away[0.01].max() <= 32 and away[0.01].mean() < 6
    assert away[1.0].mean() > 40


def test_what_is_told_reaches_the_network():
    """Of images that are generated: each condition by itself changes them."""
    request, images, _ = whole("generate")
    null = conditioning.null_like(request.conditions)
    for name in EVERYTHING:
        if name == "sketch":  # taken from `drawn` on device
            changes = {"drawn": request.drawn[::-1], "drawn_mask": request.drawn_mask[::-1]}
        else:
            changes = {"conditions": request.conditions.replace(**{name: getattr(null, name)})}
        _, other, _ = run(CONFIGS["generate"], **changes)
        assert (other != images).any(), name


def test_images_are_made_from_the_average_that_is_asked_for(tmp_path):
    config = dataclasses.replace(GENERATOR.config, ema="power", ema_lengths=(0.05, 0.2))
    generator = dataclasses.replace(GENERATOR, config=config)
    short, long = parameters()[0], disturbed(GENERATOR.init(), 5)
    trained.save(tmp_path, (short, long))
    _, expected, _ = run(CONFIGS["generate"], params=long)
    _, images, _ = run(CONFIGS["generate"], params=trained.load(tmp_path, generator, 0.2))
    np.testing.assert_array_equal(images, expected)
    _, first, _ = run(CONFIGS["generate"], params=trained.load(tmp_path, generator))
    np.testing.assert_array_equal(first, whole("generate")[1])
    assert (first != images).any()


COMPOSED = GuidanceConfig(mode="composed")
LIMITED = GuidanceConfig(log_snr_low=-3.0, log_snr_high=3.0, rescale=0.5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"sampler": "ddim", "guidance_scale": 1.0}, 3),
        ({"sampler": "ddim", "guidance_scale": 2.0}, 6),
        ({"sampler": "ddim", "guidance_scale": 1.0, "given": ()}, 3),
        ({"sampler": "dpmpp_2m_sde", "guidance": COMPOSED}, 9),
        ({"sampler": "heun", "guidance_scale": 1.0}, 5),
        ({"sampler": "heun", "guidance": COMPOSED}, 15),
        ({"sampler": "ancestral", "guidance_scale": 0.0, "guidance": LIMITED}, 6),
        ({"method": "translate", "sampler": "heun", "guidance_scale": 2.0}, 10),
        ({"method": "repaint", "repaint_jump": 1, "repaint_resamples": 3}, 14),
    ],
)
def test_evaluations_are_the_network_s(settings, expected, monkeypatch):
    """Counted in the running program: images that the network is asked about, a candidate."""
    asked = []

    def apply(network, params, images, *args, **static):
        if not isinstance(network, UNet):
            return jnp.zeros((len(images), 2)), jnp.zeros((len(images), 4))
        jax.debug.callback(lambda count: asked.append(int(count)), len(images))
        return 0.5 * images

    monkeypatch.setattr(module, "apply", apply)
    config = SynthesizeConfig(steps=3, **{"given": ("label", "device"), **settings})
    vocabulary = conditioning.Vocabulary(2, devices=2)
    networks = program_lib.Networks(
        Generator(GeneratorConfig(), vocabulary, (4, 4, 1)), EXTRACTOR, config.given
    )
    # Past the cache: a program that knows nothing of the real network must not stay there.
    program = program_lib.make_program.__wrapped__(config, networks, mesh.make_mesh(1))
    conditions = conditioning.nulls(vocabulary, 2, 4, 4).replace(label=jnp.array([0, 1]))
    request = Request(
        conditions,
        source=np.zeros((2, 4, 4, 1), np.uint8),
        hole=np.ones((2, 4, 4, 1), np.float32),
        start=np.full(2, 0.5, np.float32),
    )
    gates = select.Gates(
        ood.make(SelectionConfig(scores=()), 2),
        MemorizationConfig(),
        EnsembleState((), None),
        jnp.zeros(2),
        jnp.zeros(()),
    )
    alone = request.replace(source=None)
    program((), (), gates, keys.root(0), jnp.arange(2), alone, request.source)
    jax.effects_barrier()
    assert sum(asked) / 2 == expected == program_lib.evaluations(config, networks)

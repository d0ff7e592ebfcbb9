"""Guidance: exact limits, composition of independent parts, independence of the parametrisation."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.config import ConfigError, GuidanceConfig, SynthesizeConfig
from lt_jax.diffusion import guidance
from lt_jax.diffusion.guidance import ClassifierFree, Composed, Limits, denoiser
from lt_jax.diffusion.process import CosineSchedule, VPProcess

PROCESS = VPProcess(CosineSchedule(), "v")
LABELS = jnp.asarray([0, 2, 1, 2, 0])
NULL = jnp.full(5, 3)
LOG_SNR = jnp.asarray([-4.0, -1.0, 0.0, 2.0, 5.0])


class Counting:
    """A small label-conditional network that notes the batch size of each evaluation."""

    def __init__(self, process=PROCESS):
        self.process, self.batches = process, []

    def __call__(self, x_t, log_snr, labels):
        self.batches.append(x_t.shape[0])
        shift = (labels - 1.5)[:, None, None, None]
        x0 = jnp.tanh(x_t + shift) * jax.nn.sigmoid(log_snr)[:, None, None, None]
        return self.process.from_x0(x0, x_t, log_snr)


@flax.struct.dataclass
class Parts:
    """A condition of several parts, as the generator's: integers with -1 for none."""

    label: Any
    device: Any
    context: Any = None


PARTS = Parts(jnp.asarray([0, 1, 2, 1, 0]), jnp.asarray([1, 0, 0, 1, 1]))
NO_PARTS = Parts(jnp.full(5, -1), jnp.full(5, -1))
# Two channels, each a mixture: the label tells the first one's component, the device the second's.
COMPONENTS = (jnp.asarray([-0.6, 0.1, 0.8]), jnp.asarray([-0.4, 0.5]))
SHARES = (jnp.asarray([0.2, 0.5, 0.3]), jnp.asarray([0.7, 0.3]))
SPREAD = 0.2


def mixture_mean(x_t, log_snr, means, shares, component):
    """E[x_0 | x_t, component] [b] for a mixture of normals; component -1: not told."""
    alpha = jnp.sqrt(jax.nn.sigmoid(log_snr))[:, None]
    variance = alpha**2 * SPREAD**2 + jax.nn.sigmoid(-log_snr)[:, None]
    residual = x_t[:, None] - alpha * means[None]
    told = component[:, None] == jnp.arange(len(means))[None]
    prior = jnp.where(component[:, None] < 0, jnp.log(shares)[None], jnp.where(told, 0, -jnp.inf))
    weights = jax.nn.softmax(prior - 0.5 * residual**2 / variance)
    return jnp.sum(weights * (means[None] + alpha * SPREAD**2 / variance * residual), axis=1)


def product_network(x_t, log_snr, parts):
    """The exact prediction for one pixel whose channels are independent mixtures."""
    x0 = [
        mixture_mean(x_t[:, 0, 0, i], log_snr, COMPONENTS[i], SHARES[i], component)
        for i, component in enumerate((parts.label, parts.device))
    ]
    return PROCESS.from_x0(jnp.stack(x0, axis=-1)[:, None, None], x_t, log_snr)


def images(key):
    return jax.random.normal(key, (5, 4, 4, 2))


@pytest.mark.parametrize(("scale", "labels"), [(1.0, LABELS), (0.0, NULL)])
def test_scales_one_and_zero_are_the_two_networks_in_one_evaluation(scale, labels, getkey):
    network = Counting()
    x_t = images(getkey())
    guided = denoiser(PROCESS, network, LABELS, NULL, ClassifierFree(scale))(x_t, LOG_SNR)
    assert network.batches == [5]
    expected = PROCESS.to_x0(network(x_t, LOG_SNR, labels), x_t, LOG_SNR)
    np.testing.assert_array_equal(guided, expected)


@pytest.mark.parametrize("scale", [0.5, 2.8])
def test_other_scales_are_the_line_through_both_in_one_doubled_evaluation(scale, getkey):
    network = Counting()
    x_t = images(getkey())
    guided = ClassifierFree(scale)(network, x_t, LOG_SNR, LABELS, NULL)
    assert network.batches == [10]
    conditional, unconditional = (network(x_t, LOG_SNR, labels) for labels in (LABELS, NULL))
    expected = (1 - scale) * unconditional + scale * conditional
    np.testing.assert_allclose(guided, expected, rtol=1e-5, atol=1e-6)


def test_condition_equal_to_the_null_is_left_alone_by_any_scale(getkey):
    network = Counting()
    x_t = images(getkey())
    guided = ClassifierFree(7.0)(network, x_t, LOG_SNR, NULL, NULL)
    np.testing.assert_allclose(guided, network(x_t, LOG_SNR, NULL), rtol=1e-6)


@pytest.mark.parametrize("scales", [{}, {"label": 2.5, "device": 0.5}])
def test_guidance_gives_one_image_in_every_parametrisation(scales, getkey):
    with jax.enable_x64(True):
        x_t, log_snr = images(getkey()).astype(jnp.float64), LOG_SNR.astype(jnp.float64)
        found = []
        for prediction in ("eps", "v", "x0"):
            process = VPProcess(CosineSchedule(), prediction)
            network, arguments, guide = Counting(process), (LABELS, NULL), ClassifierFree(2.5)
            if scales:
                plain = network
                network = lambda x, s, parts, plain=plain: plain(x, s, parts.label + parts.device)
                arguments, guide = (PARTS, NO_PARTS), Composed(tuple(scales.items()))
            found.append(denoiser(process, network, *arguments, guide)(x_t, log_snr))
        np.testing.assert_allclose(found[1], found[0], atol=1e-10)
        np.testing.assert_allclose(found[2], found[0], atol=1e-10)


def test_conditions_may_be_trees_of_any_rank(getkey):
    """Labels and boxes drawn as a mask, each with its own null."""
    x_t = images(getkey())

    def network(x_t, log_snr, condition):
        return x_t * condition["mask"] + condition["label"][:, None, None, None]

    condition = {"label": jnp.arange(5.0), "mask": images(getkey())}
    null = jax.tree.map(jnp.zeros_like, condition)
    guided = ClassifierFree(3.0)(network, x_t, LOG_SNR, condition, null)
    np.testing.assert_allclose(guided, 3 * network(x_t, LOG_SNR, condition), rtol=1e-5, atol=1e-6)


def test_guided_image_depends_on_its_own_row_only(getkey):
    x_t = images(getkey())
    denoise = denoiser(PROCESS, Counting(), LABELS, NULL, ClassifierFree(2.0))
    gradient = jax.grad(lambda x_t: jnp.sum(denoise(x_t, LOG_SNR)[2]))(x_t)
    others = np.delete(np.asarray(gradient), 2, axis=0)
    np.testing.assert_array_equal(others, np.zeros_like(others))
    assert np.any(np.asarray(gradient[2]) != 0)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_composed_guidance_is_joint_guidance_of_independent_parts(scale, getkey):
    x_t = jax.random.normal(getkey(), (5, 1, 1, 2))
    arguments = (product_network, x_t, LOG_SNR, PARTS, NO_PARTS)
    joint = ClassifierFree(scale)(*arguments)
    composed = Composed((("label", scale), ("device", scale)))(*arguments)
    np.testing.assert_allclose(composed, joint, rtol=1e-5, atol=1e-5)
    assert np.max(np.abs(joint - product_network(x_t, LOG_SNR, NO_PARTS))) > 0.1


def test_each_scale_moves_its_own_part(getkey):
    x_t = jax.random.normal(getkey(), (5, 1, 1, 2))
    arguments = (product_network, x_t, LOG_SNR, PARTS, NO_PARTS)
    composed = Composed((("label", 4.0), ("device", 1.0)))(*arguments)
    label, device = ClassifierFree(4.0)(*arguments), ClassifierFree(1.0)(*arguments)
    np.testing.assert_allclose(composed[..., 0], label[..., 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(composed[..., 1], device[..., 1], rtol=1e-5, atol=1e-5)


def test_dependent_parts_are_composed_to_something_else(getkey):
    """The identity above is one of independence, not of the code."""

    def network(x_t, log_snr, parts):
        told = (parts.label >= 0) & (parts.device >= 0)
        shift = jnp.where(told, 0.5, 0.0)[:, None, None, None]
        return product_network(x_t, log_snr, parts) + shift

    x_t = jax.random.normal(getkey(), (5, 1, 1, 2))
    arguments = (network, x_t, LOG_SNR, PARTS, NO_PARTS)
    joint = ClassifierFree(2.0)(*arguments)
    composed = Composed((("label", 2.0), ("device", 2.0)))(*arguments)
    np.testing.assert_allclose(joint - composed, 1.0, atol=1e-4)


def test_branches_tell_one_part_each_beside_their_context(getkey):
    seen = []

    def network(x_t, log_snr, parts):
        seen.append(parts)
        return x_t

    context = jnp.arange(10.0).reshape(5, 2)
    condition = dataclasses.replace(PARTS, context=context)
    null = dataclasses.replace(NO_PARTS, context=0 * context - 1)
    Composed((("label", 2.0), ("device", 3.0)))(network, images(getkey()), LOG_SNR, condition, null)
    (asked,) = seen
    absent = np.full(5, -1)
    for i, (label, device) in enumerate(
        [(absent, absent), (PARTS.label, absent), (absent, PARTS.device)]
    ):
        np.testing.assert_array_equal(asked.label[i::3], label)
        np.testing.assert_array_equal(asked.device[i::3], device)
        np.testing.assert_array_equal(asked.context[i::3], context)


def test_a_part_with_scale_zero_is_never_told(getkey):
    """Nor asked about: its branch would be multiplied by zero."""
    x_t = images(getkey())
    seen = []

    def network(x_t, log_snr, parts):
        seen.append(parts)
        return Counting()(x_t, log_snr, parts.label + 2 * parts.device)

    rule = Composed((("label", 2.0), ("device", 0.0)))
    found = rule(network, x_t, LOG_SNR, PARTS, NO_PARTS)
    np.testing.assert_array_equal(seen[0].device, np.full(10, -1))
    untold = dataclasses.replace(PARTS, device=NO_PARTS.device)
    alone = Composed((("label", 2.0),))(network, x_t, LOG_SNR, untold, NO_PARTS)
    np.testing.assert_array_equal(found, alone)


RULES = {
    "joint": ClassifierFree(3.0),
    "joint-1": ClassifierFree(1.0),
    "joint-0": ClassifierFree(0.0),
    "joint-0-rescaled": ClassifierFree(0.0, Limits(rescale=0.7)),
    "joint-interval": ClassifierFree(3.0, Limits(-1.0, 2.0)),
    "composed": Composed((("label", 2.0), ("device", 3.0))),
    "composed-limited": Composed((("label", 2.0), ("device", 3.0)), Limits(-1.0, 2.0, 0.7)),
    "composed-of-nothing": Composed((("label", 0.0),), Limits(rescale=0.7)),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_evaluations_are_those_that_are_made(rule, getkey):
    asked = []

    def network(x_t, log_snr, parts):
        asked.append(x_t.shape[0])
        return x_t

    found = rule(network, images(getkey()), LOG_SNR, PARTS, NO_PARTS)
    assert asked == [5 * rule.evaluations]
    assert found.shape == (5, 4, 4, 2)


def composed_of_one(scale, *limits):
    return Composed((("label", scale),), *limits)


def label_network(x_t, log_snr, parts):
    return Counting()(x_t, log_snr, parts.label)


@pytest.mark.parametrize(
    ("rule", "scale"), [(ClassifierFree, 0.0), (ClassifierFree, 4.0), (composed_of_one, 4.0)]
)
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_outside_the_interval_the_network_is_conditional(rule, scale, rescale, getkey):
    """Each image by its own level; the ends belong to the interval."""
    x_t = images(getkey())
    arguments = (label_network, x_t, LOG_SNR, PARTS, NO_PARTS)
    limited = rule(scale, Limits(-1.0, 2.0, rescale))(*arguments)
    everywhere = rule(scale, Limits(rescale=rescale))(*arguments)
    conditional = label_network(x_t, LOG_SNR, PARTS)
    outside = np.asarray([True, False, False, False, True])
    np.testing.assert_array_equal(limited[outside], conditional[outside])
    np.testing.assert_array_equal(limited[~outside], everywhere[~outside])
    assert np.all(np.max(np.abs(everywhere - conditional), axis=(1, 2, 3)) > 1e-4)


def test_composed_guidance_falls_back_on_scales_of_one(getkey):
    x_t = jax.random.normal(getkey(), (5, 1, 1, 2))
    arguments = (product_network, x_t, LOG_SNR, PARTS, NO_PARTS)
    nowhere = Composed((("label", 5.0), ("device", 3.0)), Limits(50.0, 60.0))(*arguments)
    conditional = product_network(x_t, LOG_SNR, PARTS)
    np.testing.assert_allclose(nowhere, conditional, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", [ClassifierFree, composed_of_one])
def test_rescaling_brings_back_the_conditional_spread(rule, getkey):
    x_t = images(getkey())
    arguments = (label_network, x_t, LOG_SNR, PARTS, NO_PARTS)
    guided, conditional = rule(5.0)(*arguments), label_network(x_t, LOG_SNR, PARTS)
    spread = lambda x: np.std(np.asarray(x), axis=(1, 2, 3), keepdims=True)
    assert np.all(np.abs(spread(guided) / spread(conditional) - 1) > 1e-3)
    np.testing.assert_array_equal(rule(5.0, Limits(rescale=0.0))(*arguments), guided)
    whole = rule(5.0, Limits(rescale=1.0))(*arguments)
    np.testing.assert_allclose(spread(whole), spread(conditional), rtol=1e-4)
    expected = guided * spread(conditional) / spread(guided)
    np.testing.assert_allclose(whole, expected, rtol=1e-4, atol=1e-5)
    part = rule(5.0, Limits(rescale=0.7))(*arguments)
    np.testing.assert_allclose(part, 0.7 * expected + 0.3 * guided, rtol=1e-4, atol=1e-5)


def test_a_scale_of_one_is_moved_by_no_limit(getkey):
    x_t = images(getkey())
    found = ClassifierFree(1.0, Limits(-1.0, 2.0, 0.7))(Counting(), x_t, LOG_SNR, LABELS, NULL)
    np.testing.assert_array_equal(found, Counting()(x_t, LOG_SNR, LABELS))


def test_make_follows_the_config():
    def made(present, **fields):
        scale = fields.pop("guidance_scale", 1.5)
        config = SynthesizeConfig(guidance_scale=scale, guidance=GuidanceConfig(**fields))
        return guidance.make(config, present)

    assert made(("label",), guidance_scale=2.0) == ClassifierFree(2.0)
    limited = made(("label",), log_snr_low=-2.0, log_snr_high=3.0, rescale=0.7)
    assert limited == ClassifierFree(1.5, Limits(-2.0, 3.0, 0.7))
    composed = made(("inpaint", "boxes", "label"), mode="composed", boxes=2.0)
    assert composed == Composed((("label", 1.5), ("boxes", 2.0)))
    for mode in ("joint", "composed"):
        assert made(("inpaint",), mode=mode).evaluations == 1
    with pytest.raises(ConfigError, match=r"log_snr_low=3\.0"):
        made(("label",), log_snr_low=3.0, log_snr_high=3.0)
    with pytest.raises(ConfigError, match=r"rescale=1\.5"):
        Limits(rescale=1.5)


def test_every_scale_of_the_config_can_be_composed():
    fields = {field.name for field in dataclasses.fields(GuidanceConfig)}
    limits = {field.name for field in dataclasses.fields(Limits)}
    assert fields - limits - {"mode"} == set(guidance.SCALED)

"""Classifier-free guidance: from a conditional network to a denoiser.

With the network's prediction p_c under a condition and p_0 under the null condition,

  p = p_0 + w (p_c - p_0)                                                                 (1)

where w is `guidance_scale` (Ho and Salimans 2022, arXiv:2207.12598, eq. 6, whose own w is ours
minus one). w = 1 is the conditional network and w = 0 the unconditional one, both exactly, with one
evaluation; w > 1 sharpens towards the condition. A condition of several parts (class, boxes,
device) is guided jointly by (1), or part by part, each told alone and with a scale of its own:

  p = p_0 + sum_i w_i (p_i - p_0)                                                         (2)

(Liu et al. 2022, arXiv:2206.01714, conjunction). Where the parts are independent given x_t, scores
add up, p_c = p_0 + sum_i (p_i - p_0), and (2) with equal scales is (1). The weights of (1) and (2)
add up to one and conversions between eps, v and x0 are affine at a given x_t, so that both give the
same image in every parametrisation: they are applied to what the network predicts, and converted
once.

Two limits may be set on either. Outside an interval of noise levels every scale is 1
(Kynkaanniemi et al. 2024, arXiv:2404.07724, whose interval is in sigma = exp(-lambda / 2)). Inside,
the guided prediction's spread is brought back towards that of the one with scales of 1, called q,

  p <- phi p std(q) / std(p) + (1 - phi) p                                                (3)

(Lin et al. 2024, arXiv:2305.08891, algorithm 2). As there, std is over one image's pixels and
channels of what the network predicts, not of x_0, so (3) does depend on the parametrisation; theirs
is v.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from lt_jax.config import ConfigError, GuidanceConfig, SynthesizeConfig
from lt_jax.diffusion.process import VPProcess
from lt_jax.shapes import Images, LogSNR, PyTree

# (x_t, log_snr, condition) -> prediction; a condition is a pytree of arrays with leading axis b.
ConditionalPredict = Callable[[Images, LogSNR, PyTree], Images]
# (x_t, log_snr) -> the mean of x_0 given x_t, as the network has it.
Denoiser = Callable[[Images, LogSNR], Images]

SCALED = ("label", "boxes", "device", "attributes", "mask", "sketch")  # GuidanceConfig's scales


@runtime_checkable
class Guidance(Protocol):
    """How predictions under a condition and under its null become one."""

    @property
    def evaluations(self) -> int:
        """How often the network is asked about one image for one guided prediction."""
        ...

    def __call__(
        self,
        predict: ConditionalPredict,
        x_t: Images,
        log_snr: LogSNR,
        condition: PyTree,
        null: PyTree,
    ) -> Images:
        """The guided prediction, in the network's own parametrisation."""
        ...


@dataclasses.dataclass(frozen=True)
class Limits:
    """Where guidance acts, in log-SNR, and phi of equation (3). As it stands it limits nothing."""

    log_snr_low: float = GuidanceConfig.log_snr_low
    log_snr_high: float = GuidanceConfig.log_snr_high
    rescale: float = 0.0

    def __post_init__(self) -> None:
        """Raises ConfigError for an empty interval or a phi out of range."""
        if not self.log_snr_low < self.log_snr_high:
            raise ConfigError(
                f"guidance: got log_snr_low={self.log_snr_low}, log_snr_high={self.log_snr_high}; "
                "takes log_snr_low < log_snr_high (for no guidance at all, set the scale to 1)"
            )
        if not 0 <= self.rescale <= 1:
            raise ConfigError(f"guidance: got rescale={self.rescale}; takes a number in [0, 1]")

    def __call__(self, guided: Images, plain: Images, log_snr: LogSNR) -> Images:
        """`guided` after equation (3) inside the interval, each image by its own level; else
        `plain`, the prediction with scales of 1."""
        if self.rescale > 0:
            ratio = _spread(plain) / jnp.maximum(_spread(guided), jnp.finfo(guided.dtype).tiny)
            guided = self.rescale * ratio * guided + (1 - self.rescale) * guided
        if self == Limits(rescale=self.rescale):
            return guided
        inside = (self.log_snr_low <= log_snr) & (log_snr <= self.log_snr_high)
        return jnp.where(inside[:, None, None, None], guided, plain)


@dataclasses.dataclass(frozen=True)
class ClassifierFree:
    """Equation (1): one scale for the whole condition.

    `scale` is a Python number, so that 0 and 1 cost one evaluation at compile time; under limits,
    which compare with the conditional prediction, 0 costs two.
    """

    scale: float
    limits: Limits = Limits()

    @property
    def evaluations(self) -> int:
        """1 or 2."""
        return 1 if self.scale == 1 or (self.scale == 0 and self.limits == Limits()) else 2

    def __call__(
        self,
        predict: ConditionalPredict,
        x_t: Images,
        log_snr: LogSNR,
        condition: PyTree,
        null: PyTree,
    ) -> Images:
        """One call of 2b examples, each image beside its own twin; see `_ask`."""
        if self.evaluations == 1:
            return predict(x_t, log_snr, condition if self.scale == 1 else null)
        conditional, unconditional = _ask(predict, x_t, log_snr, (condition, null))
        guided = unconditional + self.scale * (conditional - unconditional)
        return self.limits(guided, conditional, log_snr)


@dataclasses.dataclass(frozen=True)
class Composed:
    """Equation (2): a scale for each part, in one call of (1 + m) b examples.

    `scales` are pairs (name, w_i) of fields of the condition, a dataclass; m of them are not 0, and
    the rest are never told. Fields without a scale are context, told as they are in every branch:
    known pixels to be inpainted around, for instance. Limits compare with (2) at m scales of 1,
    which is the conditional network itself where m is 1 or the parts are independent.
    """

    scales: tuple[tuple[str, float], ...]
    limits: Limits = Limits()

    @property
    def evaluations(self) -> int:
        """1 + m."""
        return 1 + len(self._told())

    def __call__(
        self,
        predict: ConditionalPredict,
        x_t: Images,
        log_snr: LogSNR,
        condition: Any,
        null: Any,
    ) -> Images:
        """See `Guidance`; `condition` and `null` are dataclasses with the fields of `scales`."""
        untold = {name: getattr(null, name) for name, _ in self.scales}
        base = dataclasses.replace(condition, **untold)
        told = [
            dataclasses.replace(base, **{name: getattr(condition, name)})
            for name, _ in self._told()
        ]
        unconditional, *parts = _ask(predict, x_t, log_snr, (base, *told))
        guided = unconditional
        for (_, scale), part in zip(self._told(), parts, strict=True):
            guided = guided + scale * (part - unconditional)
        if not parts or self.limits == Limits():
            return guided
        # A sum rather than differences from p_0: with one part, it is that part to the last bit.
        plain = sum(parts[1:], parts[0]) - (len(parts) - 1) * unconditional
        return self.limits(guided, plain, log_snr)

    def _told(self) -> tuple[tuple[str, float], ...]:
        return tuple((name, scale) for name, scale in self.scales if scale != 0)


def make(config: SynthesizeConfig, present: tuple[str, ...]) -> Guidance:
    """The guidance that a config describes, for conditions of which some are given.

    Args:
      config: `guidance_scale` is the joint scale, `guidance` holds the rest.
      present: names of the fields of the condition that are given. Those without a scale of their
        own (known pixels, augmentation) are context; see `Composed`. Where none has one, there is
        nothing to guide towards, and the network is asked once.

    Raises:
      ConfigError: the interval is empty.
    """
    settings = config.guidance
    limits = Limits(settings.log_snr_low, settings.log_snr_high, settings.rescale)
    named = tuple(name for name in SCALED if name in present)
    if not named:
        return ClassifierFree(1.0)
    if settings.mode == "composed":
        return Composed(tuple((name, getattr(settings, name)) for name in named), limits)
    return ClassifierFree(config.guidance_scale, limits)


def denoiser(
    process: VPProcess,
    predict: ConditionalPredict,
    condition: PyTree,
    null: PyTree,
    guidance: Guidance,
) -> Denoiser:
    """The guided network as a function of (x_t, log_snr) that returns x_0.

    Args:
      process: tells what the network predicts.
      predict: `(x_t [b h w c], log_snr [b], condition) -> prediction [b h w c]`.
      condition: a pytree of arrays with leading axis b, such as labels [b].
      null: the same tree for "no condition", array by array of the same shape.
      guidance: how the two are combined.
    """

    def denoise(x_t: Images, log_snr: LogSNR) -> Images:
        prediction = guidance(predict, x_t, log_snr, condition, null)
        return process.to_x0(prediction, x_t, log_snr)

    return denoise


def _ask(
    predict: ConditionalPredict, x_t: Images, log_snr: LogSNR, conditions: tuple[PyTree, ...]
) -> list[Images]:
    """The predictions under each condition, from one call.

    One call fills an accelerator better than several of a batch each, at equal FLOPs. An image's
    copies are interleaved rather than the batch appended to itself, so that a batch sharded over
    devices needs no exchange: all copies stay where the image is.
    """
    count = len(conditions)
    answers = predict(
        jnp.repeat(x_t, count, axis=0),
        jnp.repeat(log_snr, count, axis=0),
        jax.tree.map(_interleave, *conditions),
    )
    return [answers[i::count] for i in range(count)]


def _interleave(*arrays: jax.Array) -> jax.Array:
    """n arrays [b ...] as [n b ...], in turns."""
    return jnp.stack(arrays, axis=1).reshape(-1, *arrays[0].shape[1:])


def _spread(images: Images) -> jax.Array:
    """The standard deviation over each image's pixels and channels, [b 1 1 1]."""
    return jnp.std(images, axis=(1, 2, 3), keepdims=True)

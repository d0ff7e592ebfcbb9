"""The generators that are compared, as overrides of one config; each says what it changes."""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from experiments import arms
from experiments.arms import BASELINE
from lt_jax import config as config_lib

Override = Callable[[Any], None]


def plain(config: Any) -> None:
    """The class is all that the generator knows."""
    conditions = config_lib.to_dict(config_lib.ConditionsConfig())
    config.generator.conditions.update(conditions)


def balanced(config: Any) -> None:
    """CBDM's regulariser, and classes drawn by the fourth root of their counts."""
    plain(config)
    config.generator.update(cbdm_weight=1.0, sampler="tempered", temperature=4.0)


def non_leaking(config: Any) -> None:
    """Strong geometry, told to the generator as a condition (Karras et al. 2022)."""
    plain(config)
    config.generator.conditions.augmentation = True
    config.generator.augment.update(horizontal_flip=True, shift=2, scale=0.15, rotate=15.0)


def sketch(config: Any) -> None:
    """The sketch-grounded perception branch; no sketch is given when images are made."""
    plain(config)
    config.generator.conditions.sketch = True
    config.generator.sketch.weight = 0.1


def boxes(config: Any) -> None:
    """BUSGen's conditions: class, lesion box from its prior, device."""
    plain(config)
    config.generator.conditions.update(boxes="channel", max_boxes=1, device="device")


def inpaint(config: Any) -> None:
    """Tail lesions painted into images of the head by a mask-conditioned generator."""
    plain(config)
    config.generator.conditions.update(mask=True, inpaint=True, label_dropout=0.1)
    config.synthesize.update(method="inpaint", given=("label", "mask"))


def inpaint_boxes(config: Any) -> None:
    """Inpainting where lesions have boxes and no masks."""
    plain(config)
    config.generator.conditions.update(
        boxes="channel", max_boxes=1, inpaint=True, label_dropout=0.1
    )
    config.synthesize.update(method="inpaint", given=("label", "boxes"))


def inpaint_open(config: Any) -> None:
    """The same images, whatever class the extractor gives them."""
    inpaint(config)
    config.synthesize.selection.label_probability = 0.0


def repaint(config: Any) -> None:
    """The same with the plain generator, without training for it (RePaint)."""
    plain(config)
    config.synthesize.update(method="repaint", repaint_jump=2, repaint_resamples=3)


def translate(config: Any) -> None:
    """Images of the head, noised to t = 0.7 and denoised as the tail class (SDEdit)."""
    plain(config)
    config.synthesize.update(method="translate", strength=0.7)


def translate_soft(config: Any) -> None:
    """The same with the label that goes with it."""
    translate(config)
    config.synthesize.soft_labels = True


def translate_near(config: Any) -> None:
    """The same from t = 0.4: nearer to the image of the head, with the label that goes with it."""
    translate_soft(config)
    config.synthesize.strength = 0.4


def scratch(config: Any) -> None:
    """For the adapted ones: the same generator, trained on the few images alone."""
    plain(config)


def lora(config: Any) -> None:
    """Low-rank adaptation of a generator that was trained on another set (`--base`)."""
    plain(config)
    config.generator.adapt.update(method="lora", rank=8, alpha=8.0)


def full(config: Any) -> None:
    """Fine-tuning of all its parameters."""
    plain(config)
    config.generator.adapt.method = "full"


def unadapted(config: Any) -> None:
    """Nothing is trained but the table of class names, which the base does not know."""
    plain(config)
    config.generator.adapt.method = "none"


ADAPTED = ("lora", "full", "unadapted")
VARIANTS: dict[str, Override] = {
    function.__name__: function
    for function in (
        plain,
        balanced,
        non_leaking,
        sketch,
        boxes,
        inpaint,
        inpaint_boxes,
        inpaint_open,
        repaint,
        translate,
        translate_soft,
        translate_near,
        scratch,
        lora,
        full,
        unadapted,
    )
}
COMPARED = (BASELINE, *(name for name in VARIANTS if name not in (*ADAPTED, "scratch")))
REAL_ARMS = config_lib.arms(
    ce={}, resample={"sampler": "balanced"}, balanced_softmax={"loss": "balanced_softmax"}
)


def configure(
    shared: ConfigDict,
    variant: str,
    fill_to: int = 0,
    base: str = "",
    losses: tuple[str, ...] = ("cross_entropy", "balanced_softmax"),
) -> ConfigDict:
    """The config of one variant, or of `BASELINE`: real images alone.

    Args:
      shared: what all variants share.
      variant: a name of `VARIANTS`.
      fill_to: train images, real and synthetic, that every class is filled to; 0: the head's.
      base: the trained generator that those of `ADAPTED` start from.
      losses: of the arms that use synthetic images.
    """
    if variant not in (BASELINE, *VARIANTS):
        raise config_lib.ConfigError(
            f"--variants: got {variant!r}; takes some of {BASELINE}, {', '.join(VARIANTS)}"
        )
    config: Any = shared.copy_and_resolve_references()
    pooled = arms.filled(losses, fill_to)
    with config.unlocked():
        config.synthesize.fill_to = fill_to
        config.evaluate.baseline = "balanced_softmax" if variant == BASELINE else next(iter(pooled))
        if variant == BASELINE:
            config.classify.arms = REAL_ARMS
            return config
        VARIANTS[variant](config)
        if variant in ADAPTED:
            if not base:
                raise config_lib.ConfigError(
                    f"--base: {variant} takes a trained generator's folder"
                )
            config.generator.adapt.base = base
        if variant == "plain":  # the control of all: they draw alike
            name, arm = list(pooled.items())[-1]
            pooled[f"replay_{name}"] = {**arm, "controller": "source_replay"}
        config.classify.arms = config_lib.arms(**pooled)
    return config

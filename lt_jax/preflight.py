"""The networks of a run, built as shapes only: misfits are found before the first stage starts."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lt_jax import preflight_arms
from lt_jax.config import (
    ArmConfig,
    AugmentConfig,
    ClassifierConfig,
    Config,
    ConfigError,
    ExpertsConfig,
)
from lt_jax.data import sources
from lt_jax.diffusion import annotations, guidance, program, requests, trained
from lt_jax.diffusion import train as diffusion_train
from lt_jax.diffusion.generator import Generator
from lt_jax.evaluate.report import findings
from lt_jax.models import classifier, detector, module
from lt_jax.models.conditioning import Vocabulary
from lt_jax.runtime import mesh


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of a run: module, example arguments, shapes of its parameters, images trained."""

    module: Any
    example: tuple[Any, ...]
    params: Any
    images: int


def classifier_of(config: ClassifierConfig, arm: ArmConfig) -> ClassifierConfig:
    """The network that an arm trains: the recipe's, of another kind or of experts if it says so."""
    kind = config.kind if arm.network == "default" else arm.network
    if arm.experts > 1:
        return ExpertsConfig(kind=kind, vit=config.vit, resnet=config.resnet, experts=arm.experts)
    return dataclasses.replace(config, kind=kind)


def vocabulary(config: Config) -> Vocabulary:
    """The conditions of the generator, from the source alone: devices of all splits count here.

    Raises ConfigError or SourceError where the data set cannot be read.
    """
    source, conditions = sources.load(config.data), config.generator.conditions
    devices: set[str | None] = set()
    if column := conditions.device:
        devices = {
            annotations.category(column, record.device, record.attributes)
            for record in source.records()
        }
        if not devices - {None}:
            raise ConfigError(
                f"config.generator.conditions.device: no image of this set has a {column!r}; name "
                "another column, or leave it empty"
            )
    return annotations.make_vocabulary(
        conditions, len(source.classes), len(devices - {None}), config.data.channels
    )


def networks(config: Config, stages: Collection[str], known: Vocabulary) -> dict[str, Network]:
    """The networks of the named stages, by name; `classify` has one a kind.

    Raises:
      ConfigError: a network does not fit the images, naming the part of the config; or it is to
        be trained on views that do not differ.
    """
    size, channels, classes = config.data.image_size, config.data.channels, known.num_classes
    image = (jax.ShapeDtypeStruct((1, size, size, channels), np.float32),)
    found = {}
    if "generator" in stages:
        generator = Generator(config.generator, known, (size, size, channels))
        images = config.generator.steps * config.generator.batch_size
        found["generator"] = _network(
            "generator.model", generator.counted, generator.example, images, generator.has_branch
        )
    if "extractor" in stages:
        model = classifier.make(config.extractor.model, classes)
        check_views(config)
        views = 2 if config.extractor.objective == "contrastive" else 1
        images = config.extractor.steps * config.extractor.batch_size * views
        found["extractor"] = _network("extractor.model", model, image, images)
    if "classify" in stages:
        recipe = config.classify
        kinds = [(arm.network, arm.experts) for arm in recipe.arms.values()]
        for kind, experts in sorted(set(kinds)):
            arm = ArmConfig(network=kind, experts=experts)
            model = classifier.make(classifier_of(recipe.model, arm), classes)
            runs = kinds.count((kind, experts)) * len(recipe.seeds)
            images = runs * recipe.steps * recipe.batch_size
            name = f"classify {kind} x{runs}" + (f", {experts} experts" if experts > 1 else "")
            found[name] = _network("classify.model", model, image, images)
    if "detect" in stages and config.detect.arms:
        found |= _detector(config, classes)
    return found


def _detector(config: Config, classes: int) -> dict[str, Network]:
    """The detector, which all arms of detection share."""
    part = config.detect
    size, channels = config.data.image_size, config.data.channels
    image = (jax.ShapeDtypeStruct((1, size, size, channels), np.float32),)
    try:
        model = detector.make(part.model, size, classes if part.classes == "label" else 1)
    except ValueError as error:
        raise ConfigError(f"config.detect.model: {error}") from error
    runs = len(part.arms) * len(part.seeds)
    images = runs * part.steps * part.batch_size
    return {f"detect x{runs}": _network("detect.model", model, image, images)}


def check_detection(config: Config) -> None:
    """Refuses arms of detection that cannot be, from the config alone."""
    part = config.detect
    if not part.arms:
        return
    for name, arm in part.arms.items():
        if arm.data == "mixed" and arm.mix == "share" and arm.share == 0:
            raise ConfigError(
                f"config.detect.arms.{name}.share: got 0.0; `mixed` takes a share above 0"
            )
        told = config.generator.conditions.boxes != "none" and "boxes" in config.synthesize.given
        if arm.data != "real" and not told:
            raise ConfigError(
                f"config.detect.arms.{name}: trains on synthetic images, whose lesions are where "
                "the generator was told to put them; set config.generator.conditions.boxes "
                "(channel, say) and leave boxes among config.synthesize.given"
            )
    if not part.seeds or len(set(part.seeds)) < len(part.seeds):
        raise ConfigError(f"config.detect.seeds: got {part.seeds}; takes seeds that differ")
    if part.baseline not in part.arms:
        raise ConfigError(
            f"config.detect.baseline: got {part.baseline!r}; takes an arm: {', '.join(part.arms)}"
        )


def check_lesions(config: Config) -> None:
    """Refuses detection on a data set of which no lesion is known."""
    records = sources.load(config.data).records()
    if not any(record.boxes or record.masks for record in records):
        raise ConfigError(
            f"config.detect.arms: {config.data.source} has neither lesion boxes nor masks; leave "
            "detection out (config.detect.arms={})"
        )


def check_views(config: Config) -> None:
    """Refuses contrastive training where both views of an image would be equal, or one is alone."""
    part = config.extractor
    if part.objective != "contrastive":
        return
    grey = config.data.channels == 1  # which saturation leaves as it is
    drawn = dataclasses.replace(part.augment, saturation=0.0) if grey else part.augment
    if drawn == AugmentConfig():
        raise ConfigError(
            "config.extractor.augment: changes no image, but contrastive training compares two "
            "augmented views of each; set several of shift, scale, rotate, brightness, contrast, "
            "cutout and the flips, as strong as leave the class recognisable"
        )
    if part.batch_size < 2:
        raise ConfigError(
            "config.extractor.batch_size: got 1; contrastive training compares images with each "
            "other and takes at least 2 (128, say)"
        )


def check_stages(config: Config, stages: Collection[str], known: Vocabulary) -> dict[str, Network]:
    """The networks of the named stages; refuses what these could not do with this data set."""
    found = networks(config, stages, known)
    if "detect" in stages and config.detect.arms:
        check_lesions(config)
    if "classify" in stages:
        preflight_arms.check_schedules(config, known.num_classes)
    if {"generator", "synthesize"} & set(stages):
        check_synthesis(config, known)
    if "audit" in stages:
        check_audit(config)
    if "mixing" in stages:
        preflight_arms.say_losses(config)
    return found


def check_audit(config: Config) -> None:
    """Refuses an audit of no noise level, or without the held-out images that it compares with."""
    parts, data = config.audit.parts, config.data
    held = {"val": data.split.val, "policy_val": data.split.policy_val}
    for part, splits in (
        ("nearness", ("val",)),
        ("accuracy_score", ("val",)),
        ("inception", ("val",)),
        ("membership", ("val", "policy_val")),
        ("probe", ("val", "policy_val")),
    ):
        if part in parts and not data.manifest and not any(held[name] for name in splits):
            raise ConfigError(
                f"config.audit.parts: `{part}` compares with held-out images, and the split "
                f"{' or '.join(splits)} is empty; raise config.data.split.{splits[0]}, or leave "
                "the part out"
            )
    if "membership" in parts and not config.audit.noise_times:
        raise ConfigError(
            "config.audit.noise_times: got none, but `membership` measures losses at these times; "
            "takes one or more in [0, 1]"
        )


def check_synthesis(config: Config, known: Vocabulary) -> None:
    """Refuses a way of synthesis that the generator, or its number of steps, does not allow."""
    part, channels = config.synthesize, config.data.channels
    size = config.data.image_size
    requests.check(part, known, tuple(sources.load(config.data).classes))
    diffusion_train.ema_rule(config.generator)
    trained.check_length(config.generator, part.ema_length)
    alone = part.method == "inpaint" or (
        part.guidance.mode == "composed" and len(set(part.given) & set(known.names)) > 1
    )
    guided = part.guidance.mode == "composed" or part.guidance_scale != 1
    if alone and guided and config.generator.conditions.label_dropout == 0:
        raise ConfigError(
            "config.generator.conditions.label_dropout: got 0.0, but guidance asks the generator "
            "for images with their surroundings, or other conditions, and no label; takes a rate "
            "above 0 (0.1, say), so that it is trained for that"
        )
    if "denoising" in part.selection.scores and not part.selection.noise_times:
        raise ConfigError(
            "config.synthesize.selection.noise_times: got none, but the score denoising measures "
            "errors at these times; takes one or more in [0, 1]"
        )
    for name, split, needed in (
        ("memorization.gate", "val", part.selection.memorization.gate),
        ("held_out", "policy_val", part.selection.held_out == "policy_val"),
    ):
        if needed and not config.data.manifest and not getattr(config.data.split, split):
            raise ConfigError(
                f"config.synthesize.selection.{name}: is calibrated on the split {split}, which is "
                f"empty; raise config.data.split.{split}, or do without"
            )
    guidance.make(part, known.names)
    program.make_sampler(part, Generator(config.generator, known, (size, size, channels)))


def check_positive(config: Config, classes: Sequence[str]) -> None:
    """The positive class of two is a class: EvaluationError before anything is trained for it."""
    if config.evaluate.positive:
        findings.positive_class(config.evaluate.positive, classes)


def check_batches(config: Config, stages: Collection[str], device_mesh: Mesh) -> None:
    """Refuses batch sizes of the named stages that the devices cannot share evenly."""
    for name in ("generator", "extractor", "synthesize", "audit", "classify", "detect"):
        if name in stages:
            size = getattr(config, name).batch_size
            mesh.check_batch(size, device_mesh, f"config.{name}.batch_size")


def _network(
    where: str, network: Any, example: tuple[Any, ...], images: int, perceive: bool = False
) -> Network:
    static = {"perceive": True} if perceive else {}
    try:
        params = module.abstract(network, *example, train=False, **static)
    except ValueError as error:
        raise ConfigError(f"config.{where}: {error}") from error
    return Network(network, example, params, images)

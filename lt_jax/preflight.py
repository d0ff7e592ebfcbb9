"""The networks of a run, built as shapes only: misfits are found before the first stage starts."""

import dataclasses
import pathlib
from collections.abc import Collection
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lt_jax.classify import decoupled
from lt_jax.config import (
    ArmConfig,
    AugmentConfig,
    ClassifierConfig,
    Config,
    ConfigError,
    ExpertsConfig,
)
from lt_jax.config.classify import LEARNED
from lt_jax.config.mixing import PROXY_LOSSES
from lt_jax.data import sources
from lt_jax.data.manifest import SplitManifest
from lt_jax.diffusion import annotations, guidance, program, requests, trained
from lt_jax.diffusion import train as diffusion_train
from lt_jax.diffusion.generator import Generator
from lt_jax.evaluate.report import findings
from lt_jax.mixing import controllers
from lt_jax.models import classifier, detector, module
from lt_jax.models.conditioning import Vocabulary
from lt_jax.runtime import mesh, progress


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
        check_schedules(config, known.num_classes)
    if {"generator", "synthesize"} & set(stages):
        check_synthesis(config, known)
    if "audit" in stages:
        check_audit(config)
    if "mixing" in stages:
        _say_losses(config)
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


def check_arm(config: Config, name: str) -> None:
    """Refuses an arm whose controller cannot do what it is for, from the config alone."""
    arm, where = config.classify.arms[name], f"config.classify.arms.{name}"
    rule = controllers.mirrored(arm)
    for field, rules in (("dose", ("uniform", "inverse")), ("share", ("fixed_share",))):
        if rule in rules and getattr(arm, field) == 0:
            raise ConfigError(f"{where}.{field}: got 0.0; `{rule}` takes a {field} above 0")
    if rule == "accuracy_adaptive" and arm.share == 0:
        raise ConfigError(f"{where}.share: got 0.0; `{rule}` takes a highest share above 0")
    if rule == "bandit" and len(set(arm.levels)) < max(2, len(arm.levels)):
        raise ConfigError(f"{where}.levels: got {arm.levels}; takes two or more that differ")
    _check_controls(config, name)
    if rule in LEARNED:
        _check_policy(config, name)
    elif not controllers.learns(arm):
        return
    if not config.data.manifest and not config.data.split.policy_val:
        raise ConfigError(
            f"{where}.controller: `{rule}` learns from the split policy_val, which is empty; raise "
            "config.data.split.policy_val, or take a controller that does not learn"
        )
    steps = config.classify.steps
    if second := decoupled.of(arm, steps):
        steps -= second.steps
    if config.classify.rounds > steps:
        raise ConfigError(
            f"config.classify.rounds: got {config.classify.rounds} in {steps} "
            f"steps; `{rule}` of the arm {name} takes at least one step a round"
        )


def _check_controls(config: Config, name: str) -> None:
    """Refuses a control, a second stage or an ensemble that an arm cannot have."""
    arm, where = config.classify.arms[name], f"config.classify.arms.{name}"
    if arm.pool_labels == "shuffled" and arm.controller in ("none", "source_replay"):
        raise ConfigError(
            f"{where}.pool_labels: got shuffled, but the arm uses no synthetic image; set its "
            "controller to one that does (fill_to_head, say)"
        )
    if arm.expert_loss != "own" and arm.experts < 2:
        raise ConfigError(
            f"{where}.experts: got {arm.experts}; `{arm.expert_loss}` is for two or more (3, say)"
        )
    if arm.expert_loss != "own" and arm.loss != ArmConfig().loss:
        raise ConfigError(
            f"{where}.loss: got {arm.loss}, but `{arm.expert_loss}` is a loss of its own; leave it "
            f"at {ArmConfig().loss}, or set expert_loss to own"
        )
    second = decoupled.of(arm, config.classify.steps)
    if second is None:
        return
    if arm.experts > 1:
        raise ConfigError(
            f"{where}.second_stage: got {second.kind} with {arm.experts} experts; takes one network"
        )
    if second.kind == "tau_norm":
        if not config.data.manifest and not config.data.split.val:
            raise ConfigError(
                f"{where}.second_stage: tau_norm chooses tau on the split val, which is empty; "
                "raise config.data.split.val, or take crt or lws"
            )
    elif not 0 < second.steps < config.classify.steps:
        raise ConfigError(
            f"{where}.second_stage_steps: got {arm.second_stage_steps}, which is {second.steps} of "
            f"{config.classify.steps} steps; takes a fraction that leaves each stage one or more"
        )


def _check_policy(config: Config, name: str) -> None:
    """Refuses an arm whose rounds, sampler or loss its policy is not learned for."""
    mixing, arm = config.mixing, config.classify.arms[name]
    if 0.0 not in mixing.levels or len(set(mixing.levels)) < max(2, len(mixing.levels)):
        raise ConfigError(
            f"config.mixing.levels: got {mixing.levels}; takes shares that differ, two or more, "
            "and 0.0 among them"
        )
    if config.classify.rounds != mixing.rounds:
        raise ConfigError(
            f"config.classify.rounds: got {config.classify.rounds}, but the policy of the arm "
            f"{name} is learned for {mixing.rounds}; set it and config.mixing.rounds alike"
        )
    if arm.sampler != mixing.sampler:
        raise ConfigError(
            f"config.classify.arms.{name}.sampler: got {arm.sampler}, but its policy is learned "
            f"under {mixing.sampler}; set it and config.mixing.sampler alike"
        )
    if arm.expert_loss == "own" and arm.loss in PROXY_LOSSES and arm.loss != mixing.proxy.loss:
        raise ConfigError(
            f"config.classify.arms.{name}.loss: got {arm.loss}, but its policy is learned with "
            f"{mixing.proxy.loss}; set it and config.mixing.proxy.loss alike"
        )
    seeds = mixing.policy.seeds
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"config.mixing.policy.seeds: got {seeds}; takes seeds that differ, one or more"
        )


def _say_losses(config: Config) -> None:
    """Which arms train with a loss that a proxy classifier cannot have."""
    loss = config.mixing.proxy.loss
    for name, arm in config.classify.arms.items():
        own = arm.loss if arm.expert_loss == "own" else arm.expert_loss
        if controllers.mirrored(arm) in LEARNED and own not in PROXY_LOSSES:
            progress.say(f"mixing: the arm {name} trains with {own}, its policy with {loss}")


def check_schedules(config: Config, num_classes: int) -> None:
    """Refuses schedules that are none, or of other rounds or classes than the run's."""
    for name, arm in config.classify.arms.items():
        if controllers.mirrored(arm) != "schedule":
            continue
        where = f"config.classify.arms.{name}.schedule"
        try:
            rounds = controllers.read_schedule(pathlib.Path(arm.schedule))
        except controllers.MixtureError as error:
            raise ConfigError(f"{where}: {error}") from error
        found, asked = (len(rounds), len(rounds[0].share)), (config.classify.rounds, num_classes)
        if found != asked:
            raise ConfigError(
                f"{where}: {arm.schedule} has {found[0]} rounds of {found[1]} classes, this run "
                f"{asked[0]} of {asked[1]}; set config.classify.rounds to the schedule's, or take "
                "a schedule of this data set"
            )


def check_positive(config: Config, stages: Collection[str]) -> None:
    """The positive class of two is a class, before anything is trained for a report without it.

    Raises:
      EvaluationError: it is none.
    """
    if stages and config.evaluate.positive:
        findings.positive_class(config.evaluate.positive, sources.load(config.data).classes)


def check_counts(config: Config, manifest: SplitManifest) -> None:
    """Refuses controllers that learn where policy_val lacks a class: MixtureError."""
    arms = config.classify.arms.values()
    if any(controllers.learns(arm) or controllers.mirrored(arm) in LEARNED for arm in arms):
        controllers.require_seen(manifest.counts("policy_val"), manifest.classes)


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

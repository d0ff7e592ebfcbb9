"""Arms of classification, before the first stage starts: what cannot be is refused by its field."""

import pathlib

from lt_jax.classify import decoupled
from lt_jax.config import ArmConfig, Config, ConfigError
from lt_jax.config.classify import LEARNED
from lt_jax.config.mixing import PROXY_LOSSES
from lt_jax.data.manifest import SplitManifest
from lt_jax.mixing import controllers, learn
from lt_jax.runtime import progress


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
    """Refuses an arm whose policy is learned for other rounds, sampler or loss, or cannot be."""
    mixing, arm = config.mixing, config.classify.arms[name]
    if 0.0 not in mixing.levels or len(set(mixing.levels)) < max(2, len(mixing.levels)):
        raise ConfigError(
            f"config.mixing.levels: got {mixing.levels}; takes shares that differ, two or more, "
            "and 0.0 among them"
        )
    if len(set(mixing.weights)) < len(mixing.weights):
        raise ConfigError(
            f"config.mixing.weights: got {mixing.weights}; takes factors that differ, or none"
        )
    learn.check(mixing.policy, mixing.rounds)
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


def say_losses(config: Config) -> None:
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


def check_counts(config: Config, manifest: SplitManifest) -> None:
    """Refuses controllers that learn where policy_val lacks a class: MixtureError."""
    if learning(config):
        controllers.require_seen(manifest.counts("policy_val"), manifest.classes)


def learning(config: Config) -> bool:
    """Whether an arm's controller learns, or mirrors one that does."""
    arms = config.classify.arms.values()
    return any(controllers.learns(arm) or controllers.mirrored(arm) in LEARNED for arm in arms)

"""What a run consists of: every stage with the config fields and inputs that decide its artifact.

Two runs share an artifact where these are equal, so that a field which a stage does not read, or a
rule does not look at, stays out of its key.
"""

import hashlib
import json
import pathlib
from typing import Any

from lt_jax import auditing, preflight, preflight_arms
from lt_jax import config as config_lib
from lt_jax.config.classify import LEARNED
from lt_jax.mixing import controllers, learned
from lt_jax.runtime import artifacts

STAGES = (
    "prepare",
    "generator",
    "extractor",
    "synthesize",
    "audit",
    "mixing",
    "classify",
    "detect",
    "report",
)
# Raise a stage's number when its code gives other results from the same config and inputs.
SCHEMAS: dict[str, int] = {
    **dict.fromkeys(STAGES, 1),
    "generator": 2,
    "synthesize": 4,
    "audit": 2,
    "classify": 2,
    "report": 8,
}

# Fields of an arm that only these rules read; they stay out of the keys of others.
_READERS = {
    "share": ("fixed_share", "accuracy_adaptive"),
    "beta": ("effective_number",),
    "levels": ("bandit",),
    "schedule": ("schedule",),
}


def of(config: config_lib.Config) -> list[artifacts.Spec]:
    """Every stage of a run, inputs before their users; one spec an arm and seed of `classify`, and
    of `detect`.

    Without an arm that uses synthetic images there is no generator, extractor or pool; without one
    of a learned rule, no policy; without an arm of detection, none of that. An audit has one spec a
    part, and what it reads is made for it, too.

    Raises:
      ConfigError: the baseline names no arm, there are no arms or seeds, or an arm cannot be.
    """
    _check_arms(config)
    key_fields = config_lib.key_fields
    prepare = _spec("prepare", {**key_fields(config.data), **_file_hashes(config.data)})
    generator = _spec("generator", _generator_fields(config.generator), prepare)
    extractor = _spec("extractor", key_fields(config.extractor), prepare)
    synthesize = _spec("synthesize", key_fields(config.synthesize), prepare, generator, extractor)
    mixing = _spec("mixing", _mixing_fields(config), prepare, extractor, synthesize)
    recipe = key_fields(config.classify)
    tau = recipe.pop("logit_adjustment")
    del recipe["seeds"], recipe["arms"]
    runs = []
    for name, arm in config.classify.arms.items():
        fields = {**recipe, "arm": _arm_fields(name, arm)}
        if arm.loss == "logit_adjusted":
            fields["tau"] = tau
        learned_rule = controllers.mirrored(arm) in LEARNED
        if learned_rule and arm.controller == "shuffled" and config.mixing.weights:
            fields["dealt"] = "share and factor"  # once the share alone was
        used = () if arm.controller == "none" else (synthesize,)
        used += (mixing,) if learned_rule else ()
        for seed in config.classify.seeds:
            own = {**fields, "seed": seed, **(_turn(config, seed) if learned_rule else {})}
            runs.append(_spec(f"classify/{name}/seed{seed}", own, prepare, *used))
    runs += _detect_specs(config.detect, prepare, synthesize)
    rules = {controllers.mirrored(arm) for arm in config.classify.arms.values()}
    pooled = any(arm.data != "real" for arm in config.detect.arms.values())
    pooled = pooled or bool(config.audit.parts)
    made = [synthesize] if rules != {"none"} or pooled else []
    made += [mixing] if rules & set(LEARNED) else []
    reported = {**key_fields(config.evaluate), "tau": tau}
    if config.detect.arms:
        part = config.detect
        reported["detect"] = {"baseline": part.baseline, "small": part.small}
    audits = _audit_specs(config, prepare, generator, extractor, synthesize)
    # Of the networks that pictures are asked of; without a pool there are none.
    shown = {"maps": extractor, "strips": generator}
    asked = [shown[name] for name in shown if made and name in config.evaluate.pictures]
    report = _spec("report", reported, prepare, *made, *asked, *audits, *runs)
    makers = [generator, extractor, *made] if made else []
    return [prepare, *makers, *audits, *runs, report]


def arm_and_seed(spec: artifacts.Spec) -> tuple[str, int]:
    """Of a spec of `classify` or `detect`."""
    _, arm, seed = spec.stage.split("/")
    return arm, int(seed.removeprefix("seed"))


def _audit_specs(config: config_lib.Config, *read: artifacts.Spec) -> list[artifacts.Spec]:
    """One spec a part, of those of `read` that it reads."""
    by_name = {spec.stage: spec for spec in read}
    return [
        _spec(
            f"audit/{part}",
            auditing.fields(config, part),
            *(by_name[name] for name in auditing.INPUTS[part]),
        )
        for part in dict.fromkeys(config.audit.parts)
    ]


def _detect_specs(
    config: config_lib.DetectConfig, prepare: artifacts.Spec, synthesize: artifacts.Spec
) -> list[artifacts.Spec]:
    """One spec an arm and seed of detection."""
    recipe = config_lib.key_fields(config)
    for name in ("seeds", "arms", "baseline", "small"):
        del recipe[name]
    runs = []
    for name, arm in config.arms.items():
        fields = config_lib.key_fields(arm)
        if arm.data != "mixed":
            del fields["mix"]
        if arm.data != "mixed" or arm.mix != "share":
            del fields["share"]
        used = () if arm.data == "real" else (synthesize,)
        runs += [
            _spec(
                f"detect/{name}/seed{seed}",
                {**recipe, "arm": fields, "seed": seed},
                prepare,
                *used,
            )
            for seed in config.seeds
        ]
    return runs


def _generator_fields(config: config_lib.GeneratorConfig) -> dict[str, Any]:
    """What decides the generator: of a base not where it lies, but which it is.

    Raises ConfigError where the base is no finished stage.
    """
    fields = config_lib.key_fields(config)
    if base := config.adapt.base:
        mark = pathlib.Path(base, artifacts.MARK)
        if not mark.is_file():
            raise config_lib.ConfigError(
                f"config.generator.adapt.base: got {base!r}, which is no finished stage "
                f"({artifacts.MARK} is missing); give the folder `generator` of a finished run"
            )
        fields["adapt"]["base"] = artifacts.describe(mark.parent)["key"]
    return fields


def _mixing_fields(config: config_lib.Config) -> dict[str, Any]:
    """What decides the policies: in pixels the network of `classify`, too, and its training."""
    fields = config_lib.key_fields(config.mixing)
    for name in ("head_above", "tail_below", "group_by"):  # whom the policy must not let down
        fields[name] = getattr(config.evaluate, name)
    if config.mixing.weights and config.mixing.reward.price > 0:
        fields["priced"] = "draws"  # shares were, whatever the weights
    if config.mixing.reward.difference:
        fields["searched"] = "as many trainings"  # as many episodes were, each a training
    if config.mixing.weights and config.mixing.reward.difference:
        fields["default"] = "share 0, factor 1"  # the factor was kept once
    if config.mixing.environment == "images":
        recipe = config_lib.key_fields(config.classify)
        fields["classifier"] = {name: recipe[name] for name in ("model", "optimizer", "augment")}
    return fields


def _turn(config: config_lib.Config, seed: int) -> dict[str, int]:
    """Whose policy a classifier takes, where its seed and theirs alone do not say that."""
    policies = config.mixing.policy.seeds
    at = learned.turn(seed, config.classify.seeds, policies)
    return {} if at == seed % len(policies) else {"policy": policies[at]}


def _file_hashes(data: config_lib.DataConfig) -> dict[str, str]:
    """Contents of the files that decide the draw: a rewritten list is another input."""
    named = {
        "csv": pathlib.Path(data.root, data.csv) if data.csv else None,
        "manifest": pathlib.Path(data.manifest) if data.manifest else None,
    }
    hashes = {}
    for name, path in named.items():
        if path is not None and path.is_dir():
            path = path / "manifest.json"  # which holds the sha256 of the manifest
        if path is not None and path.is_file():
            hashes[f"{name}_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return hashes


def _arm_fields(name: str, arm: config_lib.ArmConfig) -> dict[str, Any]:
    """What decides an arm: of its rule what that reads; of a schedule its content, not its place.

    Raises ConfigError where there is no such schedule.
    """
    fields, rule = config_lib.key_fields(arm), controllers.mirrored(arm)
    for field, readers in _READERS.items():
        if rule not in readers:
            del fields[field]
    for field in _unread(arm):
        del fields[field]
    if not (arm.of and rule != arm.controller):
        del fields["of"]
    if rule == "schedule":
        path = pathlib.Path(arm.schedule)
        if not path.is_file():
            raise config_lib.ConfigError(
                f"config.classify.arms.{name}.schedule: got {arm.schedule!r}, which is no file; "
                "takes a JSON list of shares by round, such as mixture.json of a finished arm"
            )
        fields["schedule"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return fields


def _unread(arm: config_lib.ArmConfig) -> set[str]:
    """Fields of strong augmentation, controls, second stages and ensembles that an arm ignores."""
    kinds, unread = arm.strong_augment.split("_"), set()
    if not arm.strong_augment:
        unread |= {"strong_augment"}
    if "randaugment" not in kinds:
        unread |= {"randaugment_ops", "randaugment_magnitude"}
    if not {"mixup", "cutmix"} & set(kinds):
        unread |= {"mix_alpha", "mix_probability"}
    if arm.pool_labels == "own":
        unread |= {"pool_labels"}
    if not arm.second_stage:
        unread |= {"second_stage"}
    if arm.second_stage not in ("crt", "lws"):
        unread |= {"second_stage_steps", "second_stage_rate"}
    if arm.experts == 1:
        unread |= {"experts", "expert_loss"}
    return unread


def _spec(stage: str, config: dict[str, Any], *inputs: artifacts.Spec) -> artifacts.Spec:
    keys = {spec.stage: spec.key for spec in inputs}
    # Through JSON, so that a key does not depend on tuple against list.
    fields = json.loads(json.dumps(config))
    return artifacts.Spec(stage, SCHEMAS[stage.split("/")[0]], fields, keys)


def _check_arms(config: config_lib.Config) -> None:
    preflight.check_detection(config)
    arms = config.classify.arms
    if not arms or not config.classify.seeds:
        raise config_lib.ConfigError("config.classify: takes at least one arm and one seed")
    for name in arms:
        preflight_arms.check_arm(config, name)
    if len(set(config.classify.seeds)) < len(config.classify.seeds):
        raise config_lib.ConfigError(
            f"config.classify.seeds: got {config.classify.seeds}; takes seeds that differ"
        )
    if config.evaluate.baseline not in arms:
        raise config_lib.ConfigError(
            f"config.evaluate.baseline: got {config.evaluate.baseline!r}; takes an arm: "
            f"{', '.join(arms)}"
        )

"""The stages in order, what each reads, and which of them still have to be run.

A run is a list of specs (`runtime.artifacts`), in an order in which every stage follows its
inputs. A stage whose artifact is finished is skipped; an unfinished one goes on where it was.
"""

import hashlib
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from lt_jax import auditing, preflight, reporting, stages
from lt_jax import config as config_lib
from lt_jax.classify import decoupled
from lt_jax.config.classify import LEARNED
from lt_jax.context import Context
from lt_jax.mixing import controllers
from lt_jax.runtime import artifacts, distributed, faults, files, mesh, metrics, progress

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
    "classify": 2,
    "report": 6,
}

# Fields of an arm that only these rules read; they stay out of the keys of others.
_READERS = {
    "share": ("fixed_share", "accuracy_adaptive"),
    "beta": ("effective_number",),
    "levels": ("bandit",),
    "schedule": ("schedule",),
}


def specs(config: config_lib.Config) -> list[artifacts.Spec]:
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
    ranking = ("head_above", "tail_below", "group_by")  # what the policy must not let down
    head = {name: getattr(config.evaluate, name) for name in ranking}
    learnt = {**key_fields(config.mixing), **head}
    mixing = _spec("mixing", learnt, prepare, extractor, synthesize)
    recipe = key_fields(config.classify)
    tau = recipe.pop("logit_adjustment")
    del recipe["seeds"], recipe["arms"]
    runs = []
    for name, arm in config.classify.arms.items():
        fields = {**recipe, "arm": _arm_fields(name, arm)}
        if arm.loss == "logit_adjusted":
            fields["tau"] = tau
        used = () if arm.controller == "none" else (synthesize,)
        used += (mixing,) if controllers.mirrored(arm) in LEARNED else ()
        runs += [
            _spec(f"classify/{name}/seed{seed}", {**fields, "seed": seed}, prepare, *used)
            for seed in config.classify.seeds
        ]
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
        preflight.check_arm(config, name)
    if len(set(config.classify.seeds)) < len(config.classify.seeds):
        raise config_lib.ConfigError(
            f"config.classify.seeds: got {config.classify.seeds}; takes seeds that differ"
        )
    if config.evaluate.baseline not in arms:
        raise config_lib.ConfigError(
            f"config.evaluate.baseline: got {config.evaluate.baseline!r}; takes an arm: "
            f"{', '.join(arms)}"
        )


class Pipeline:
    """One run in one workdir."""

    def __init__(
        self,
        values: ConfigDict,
        workdir: pathlib.Path,
        cache: pathlib.Path | None = None,
        command: str = "",
    ):
        """Reads the config; touches nothing on disk.

        Args:
          values: the resolved ConfigDict.
          workdir: where the run lives.
          cache: a folder of artifacts that several workdirs share; None: the workdir's own.
          command: the exact command line, for the report.
        """
        self.config = config_lib.build(config_lib.Config, values)
        self.workdir = workdir
        self.store = artifacts.Store(workdir, cache)
        self.specs = specs(self.config)
        self._command = command

    def selected(self, names: Sequence[str] = STAGES) -> list[artifacts.Spec]:
        """The specs of the named stages, in order.

        Raises:
          ConfigError: a name that is no stage.
        """
        unknown = [name for name in names if name not in STAGES]
        if unknown:
            raise config_lib.ConfigError(
                f"--stages: got {unknown[0]!r}; takes some of {', '.join(STAGES)}"
            )
        return [spec for spec in self.specs if spec.stage.split("/")[0] in names]

    def run(self, names: Sequence[str] = STAGES, accept_config_change: bool = False) -> None:
        """Runs the named stages; finished ones are skipped.

        Raises:
          ConfigError: the workdir belongs to another config; or an input of a named stage is
            neither finished nor among the named.
          WorkdirInUseError: another run is at work in the workdir.
          DistributedError: the processes of a run have different configs, or no workdir in common.
        """
        selected = self.selected(names)
        self._check_alike("config", self._resolved() + " ".join(spec.stage for spec in selected))
        with faults.lock(self.workdir):
            distributed.on_first(lambda: self._begin(selected, accept_config_change))
            self._check_alike("workdir", str((self.workdir / "config.json").exists()))
            context = self.context()
            self._preflight(selected, context)
            try:
                for spec in selected:
                    self._run_stage(spec, context)
            finally:
                self._collect_metrics()

    def context(self) -> Context:
        """The run as its stages see it, on this process's devices."""
        return Context(
            config=self.config,
            specs={spec.stage: spec for spec in self.specs},
            store=self.store,
            workdir=self.workdir,
            mesh=mesh.make_mesh(fsdp=1 if distributed.alone() else self.config.runtime.fsdp),
            command=self._command,
        )

    def finished(self, name: str) -> Context:
        """The run, of which the stage `name` is needed.

        Raises:
          ConfigError: it is not finished in this workdir.
        """
        for spec in self.selected([name]):
            if not self.store.done(spec):
                raise config_lib.ConfigError(
                    f"--workdir: {spec.stage} is not finished in {self.workdir}; run the pipeline "
                    "there first, with the same config"
                )
        return self.context()

    def _run_stage(self, spec: artifacts.Spec, context: Context) -> None:
        folder = self.store.folder(spec)
        distributed.on_first(lambda: self.store.open(spec))
        # In a cache that runs share, the first one makes it, and the others wait for that.
        with faults.lock(folder, patience=math.inf):
            if distributed.agree(self.store.done(spec)):
                progress.say(f"{spec.stage}: finished before ({spec.key[:16]})")
            else:
                files.sweep(folder)
                costs = stages.run(spec, folder, context)
                distributed.on_first(lambda: self.store.finish(spec, costs))
        if spec.stage == "report":
            distributed.on_first(lambda: reporting.publish(folder, self.workdir))
        faults.raise_if_stopping(spec.stage)

    def _preflight(self, selected: Sequence[artifacts.Spec], context: Context) -> None:
        """Finds what cannot work before the first stage starts."""
        left = [spec.stage.split("/")[0] for spec in selected if not self.store.done(spec)]
        names = set(distributed.agree(left))
        preflight.check_batches(self.config, names, context.mesh)
        if names - {"prepare", "report"}:
            preflight.check_stages(self.config, names, preflight.vocabulary(self.config))

    def _begin(self, selected: Sequence[artifacts.Spec], accept_config_change: bool) -> None:
        # Artifacts have locks of their own: another workdir may use this one's as its cache.
        files.sweep(self.workdir.resolve(), outside=self.store.root)
        self._claim(accept_config_change)
        self._check_inputs(selected)

    def _check_alike(self, what: str, mine: str) -> None:
        if not distributed.alike(mine):
            raise distributed.DistributedError(
                f"--{what}: the processes of this run do not have the same; start all with one "
                "command, in a --workdir (and --cache) on a file system that all hosts share"
            )

    def _resolved(self) -> str:
        return json.dumps(config_lib.to_dict(self.config), indent=1)

    def _claim(self, accept_config_change: bool) -> None:
        """Writes the resolved config into the workdir; refuses a workdir of another config."""
        path = self.workdir / "config.json"
        new = json.loads(self._resolved())
        if path.exists() and not accept_config_change:
            # What changes no result may change between runs.
            free = config_lib.free_paths(self.config)
            changes = [
                line
                for line in differences(json.loads(path.read_text()), new)
                if not line.startswith("config.runtime.") and line.partition(":")[0] not in free
            ]
            if changes:
                raise config_lib.ConfigError(
                    f"{self.workdir} holds a run of another config:\n  "
                    + "\n  ".join(changes[:10])
                    + "\nuse another --workdir (with --cache to share finished stages), or pass "
                    "--accept_config_change: stages that the change touches are run again, "
                    "nothing is deleted"
                )
        files.write_atomically(path, self._resolved(), "the config")

    def _check_inputs(self, selected: Sequence[artifacts.Spec]) -> None:
        names = {spec.stage for spec in selected}
        by_name = {spec.stage: spec for spec in self.specs}
        for spec in selected:
            for name in spec.inputs:
                if name not in names and not self.store.done(by_name[name]):
                    raise config_lib.ConfigError(
                        f"--stages: {spec.stage} needs {name}, which is not finished; add "
                        f"{name.split('/')[0]} to --stages"
                    )

    def _collect_metrics(self) -> None:
        """Joins the stages' metrics, finished or not, into the workdir's `metrics.jsonl`."""
        lines = [
            json.dumps(line)
            for spec in self.specs
            for part in ("", decoupled.FOLDER)  # of a training with a second stage
            for line in metrics.read(self.store.folder(spec) / part / "metrics.jsonl")
        ]
        files.write_atomically(
            self.workdir / "metrics.jsonl", "".join(line + "\n" for line in lines), "metrics"
        )


def differences(old: Any, new: Any, path: str = "config") -> list[str]:
    """Where two nested configs differ, a line a field: `config.a.b: 1 there, 2 here`."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for name in sorted(set(old) | set(new))
            for line in differences(
                old.get(name, "absent"), new.get(name, "absent"), f"{path}.{name}"
            )
        ]
    return [] if old == new else [f"{path}: {old!r} there, {new!r} here"]

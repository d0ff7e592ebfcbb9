"""One run in one workdir: which of its stages still have to be run, and running them.

A run is a list of specs (`lt_jax.specs`), in an order in which every stage follows its inputs.
A stage whose artifact is finished is skipped; an unfinished one goes on where it was.
"""

import json
import math
import pathlib
import socket
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from lt_jax import classification, populations, preflight, preflight_arms, reporting, stages
from lt_jax import config as config_lib
from lt_jax import specs as specs_lib
from lt_jax.classify import decoupled
from lt_jax.context import Context
from lt_jax.data import sources
from lt_jax.runtime import artifacts, distributed, faults, files, mesh, metrics, progress


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
        self.specs = specs_lib.of(self.config)
        self._command = command

    def selected(self, names: Sequence[str] = specs_lib.STAGES) -> list[artifacts.Spec]:
        """The specs of the named stages, in order.

        Raises:
          ConfigError: a name that is no stage.
        """
        unknown = [name for name in names if name not in specs_lib.STAGES]
        if unknown:
            raise config_lib.ConfigError(
                f"--stages: got {unknown[0]!r}; takes some of {', '.join(specs_lib.STAGES)}"
            )
        return [spec for spec in self.specs if spec.stage.split("/")[0] in names]

    def run(
        self, names: Sequence[str] = specs_lib.STAGES, accept_config_change: bool = False
    ) -> None:
        """Runs the named stages; finished ones are skipped.

        Raises:
          ConfigError: the workdir belongs to another config; or an input of a named stage is
            neither finished nor among the named.
          WorkdirInUseError: another run is at work in the workdir.
          DistributedError: the processes of a run have different configs or inputs, or no workdir
            in common.
        """
        selected = self.selected(names)
        self._check_alike("config", self._resolved() + " ".join(spec.stage for spec in selected))
        self._check_keys()
        with faults.lock(self.workdir):
            distributed.on_first(lambda: self._begin(selected, accept_config_change))
            self._check_alike("workdir", str(files.appeared(self.workdir / "config.json", 10.0)))
            context = self.context()
            self._preflight(selected, context)
            try:
                classifiers = [spec for spec in selected if spec.stage.startswith("classify/")]
                for spec in selected:
                    if spec in classifiers[:1]:
                        populations.train(classifiers, context)
                    self._run_stage(spec, context)
            finally:
                self._collect_metrics()

    def context(self) -> Context:
        """The run as its stages see it, on the devices of its processes, all of which call this."""
        fsdp = 1 if distributed.alone() else self.config.runtime.fsdp
        device_mesh = mesh.make_mesh(fsdp=fsdp)
        mesh.meet(device_mesh)
        return Context(
            config=self.config,
            specs={spec.stage: spec for spec in self.specs},
            store=self.store,
            workdir=self.workdir,
            mesh=device_mesh,
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
            if distributed.told(lambda: self.store.done(spec)):
                progress.say(f"{spec.stage}: finished before ({spec.key[:16]})")
            else:
                files.sweep(folder)
                # No costly stage starts for arms that cannot be.
                if spec.stage != "prepare" and preflight_arms.learning(self.config):
                    preflight_arms.check_counts(self.config, context.data[0])
                costs = stages.run(spec, folder, context)
                distributed.on_first(lambda: self.store.finish(spec, costs))
        if spec.stage == "report":
            distributed.on_first(lambda: reporting.publish(folder, self.workdir))
        faults.raise_if_stopping(spec.stage)

    def _preflight(self, selected: Sequence[artifacts.Spec], context: Context) -> None:
        """Finds what cannot work before the first stage starts."""
        done = lambda: [spec.stage for spec in self.specs if self.store.done(spec)]
        finished = distributed.told(done)
        left = [spec.stage for spec in selected if spec.stage not in finished]
        names = {stage.split("/")[0] for stage in left}
        if "classify" in names:
            populations.check(context)
            on = classification.on_its_devices(context).mesh
            preflight.check_batches(self.config, {"classify"}, on)
        preflight.check_batches(self.config, names - {"classify"}, context.mesh)
        if names and self.config.evaluate.positive:
            prepared = "prepare" in finished
            known = context.data[0] if prepared else sources.load(self.config.data)
            preflight.check_positive(self.config, known.classes)
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

    def _check_keys(self) -> None:
        """Keys hold the content of input files, which each process reads on its own host."""
        if distributed.alike(" ".join(spec.key for spec in self.specs)):
            return
        first = next(spec for spec in self.specs if not distributed.alike(spec.key))
        raise distributed.DistributedError(
            f"{first.stage}: the hosts of this run do not read the same inputs (key "
            f"{first.key[:16]} on {socket.gethostname()}); see that config.data.root, .csv, "
            ".manifest, arms' schedules and generator.adapt.base are visible and equal on all"
        )

    def _resolved(self) -> str:
        return json.dumps(config_lib.to_dict(self.config), indent=1)

    def _claim(self, accept_config_change: bool) -> None:
        """Writes the resolved config into the workdir; refuses a workdir of another config."""
        path = self.workdir / "config.json"
        new = json.loads(self._resolved())
        known = path.exists() and not accept_config_change
        if known and (changes := deciding(_written(path), new)):
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


def deciding(old: Any, new: Any) -> list[str]:
    """The `differences` of two configs but for what changes no result, which may always change."""
    free = config_lib.free_paths(config_lib.Config())
    return [
        line
        for line in differences(old, new)
        if not line.startswith("config.runtime.") and line.partition(":")[0] not in free
    ]


def _written(path: pathlib.Path) -> Any:
    """A workdir's config.json; ConfigError where it is damaged."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise config_lib.ConfigError(
            f"{path} is damaged ({error}); delete it: the same command writes it anew, and stages "
            "are known by their own keys"
        ) from error


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

r"""What XLA's flags do to the generator's training step: one process a setting, in turns.

    python -m experiments.throughput.xla_flags [--config=configs/digits.py] [--out=FILE.json]

XLA reads its flags once, when a process starts. So each setting is a process of its own that
compiles the step and then waits to be asked for a turn; all take turns, and ratios are taken within
a turn. Settings are those of the platform, CPU or GPU. `--worker` is such a process: it writes a
line when it is ready and the seconds of a step for each line that it reads.
"""

import contextlib
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags, logging

from experiments.throughput import contests, timing
from experiments.throughput.cases import generator_training
from lt_jax import command
from lt_jax.runtime import mesh

# By name: flags, and how many virtual CPU devices. The first is what the others are compared with.
Settings = Mapping[str, tuple[str, int]]
_YNN = ",".join(f"LIBRARY_FUSION_TYPE_{kind}" for kind in ("DOT", "ELTWISE", "REDUCE"))
CPU: Settings = {
    "none": ("", 1),
    "2 virtual devices": ("", 2),
    "library fusions": (f"--xla_cpu_experimental_ynn_fusion_type={_YNN}", 1),
    "fast math": ("--xla_cpu_enable_fast_math=true", 1),
    "backend optimisation 1": ("--xla_backend_optimization_level=1", 1),
    "backend optimisation 0": ("--xla_backend_optimization_level=0", 1),
}
GPU: Settings = {
    "none": ("", 1),
    "latency hiding": ("--xla_gpu_enable_latency_hiding_scheduler=true", 1),
    "Triton for any product": ("--xla_gpu_triton_gemm_any=true", 1),
    "no autotuning": ("--xla_gpu_autotune_level=0", 1),
    "deterministic": ("--xla_gpu_exclude_nondeterministic_ops=true", 1),
}


class Worker:
    """A process with a setting's flags; `failed` is what it said last, where it has ended."""

    def __init__(self, config: str, setting: tuple[str, int]) -> None:
        """Starts it and waits until it has compiled."""
        xla, cpus = setting
        command = [
            sys.executable, "-m", "experiments.throughput.xla_flags", "--worker",
            f"--config={config}", f"--cpu_devices={cpus}",
        ]  # fmt: skip
        # All live at once: none may take most of a GPU's memory when it starts.
        environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_FLAGS": xla}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (until `close`)
        self._process = subprocess.Popen(
            command, env={**os.environ, **environment}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip
        self.failed: str | None = None
        self.compile_seconds = self._read()

    def seconds(self) -> float | None:
        """Of a step, in a turn; None where it has ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Ends it."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()  # closes what it reads, upon which it ends
        self._errors.close()

    def _read(self) -> float | None:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline().strip():
            return float(line)
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines()
        self.failed = f"failed: {said[-1] if said else f'exit code {self._process.wait()}'}"
        return None


def work(config: str, cpu_devices: int, least: float = 1.0) -> None:
    """A worker: compiles, says so, and answers each line with the seconds of a step."""
    jax.config.update("jax_num_cpu_devices", cpu_devices)
    jax.config.update("jax_enable_compilation_cache", False)
    case = generator_training(contests.load(config), 10, mesh.make_mesh())
    case.wait(case.call())
    print(case.compile_seconds, flush=True)
    for _ in sys.stdin:
        since, calls = time.perf_counter(), 0
        while time.perf_counter() - since < least:
            case.wait(case.call())
            calls += 1
        print((time.perf_counter() - since) / calls, flush=True)


def measure(config: str, settings: Settings, repetitions: int) -> list[dict[str, Any]]:
    """Of each setting, the time without flags over its own; or why there is none."""
    workers = {name: Worker(config, setting) for name, setting in settings.items()}
    turns: dict[str, list[float]] = {name: [] for name in settings}
    for _ in range(repetitions):
        for name, worker in workers.items():
            seconds = None if worker.failed else worker.seconds()
            turns[name] += [] if seconds is None else [seconds]
    for worker in workers.values():
        worker.close()
    first = turns[next(iter(settings))]
    found = []
    for name, (xla, cpus) in settings.items():
        worker, own = workers[name], turns[name]
        row: dict[str, Any] = {"name": name, "flags": xla, "devices": cpus, "times": None,
                               "failed": worker.failed,
                               "compile_seconds": worker.compile_seconds}  # fmt: skip
        if len(own) == len(first) == repetitions:
            faster = [a / b for a, b in zip(first, own, strict=True)]
            row["times"] = dataclasses.asdict(timing.Spread.of(faster))
        found.append(row)
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown."""
    lines = ["| setting | XLA_FLAGS | times as fast | compile, s |", "|---|---|---|---|"]
    for row in rows:
        shown = row["flags"].replace("LIBRARY_FUSION_TYPE_", "")
        told = timing.spread(row["times"]) if row["times"] else row["failed"] or "-"
        lines.append(
            f"| {row['name']} | {f'`{shown}`' if shown else ''} | {told} "
            f"| {timing.number(row['compile_seconds'])} |"
        )
    return "\n".join(lines)


def _main(argv: Sequence[str]) -> None:
    del argv
    values = flags.FLAGS
    logging.set_verbosity(logging.WARNING)
    if values.worker:
        work(values.config, values.cpu_devices)
        return
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # to ask for the platform opens the GPU
    settings = CPU if jax.default_backend() == "cpu" else GPU
    rows = measure(values.config, settings, values.repetitions)
    print(table(rows))
    if values.out:
        timing.save(values.out, {"load_average": list(os.getloadavg()), "rows": rows})


if __name__ == "__main__":
    flags.DEFINE_string("config", "configs/digits.py", "a config file of the repository")
    flags.DEFINE_integer("repetitions", 5, "timed turns", lower_bound=1)
    flags.DEFINE_bool("worker", False, "be one of the processes")
    flags.DEFINE_integer("cpu_devices", 1, "of a worker", lower_bound=1)
    flags.DEFINE_string("out", None, "JSON file to write")
    command.experiment(_main)

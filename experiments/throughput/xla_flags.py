r"""What XLA's flags do to the generator's training step: one process a setting, in turns.

    python -m experiments.throughput.xla_flags [--config=configs/digits.py] [--out=FILE.json]

XLA reads its flags once, when a process starts. So each setting is a process of its own that
compiles the step and then waits to be asked for a turn; all take turns, and ratios are taken within
a turn. `--worker` is such a process: it writes a line when it is ready and the seconds of a step
for each line that it reads.
"""

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags, logging

from experiments.throughput import contests, timing
from experiments.throughput.cases import generator_training
from lt_jax import command
from lt_jax.runtime import mesh

_YNN = ",".join(f"LIBRARY_FUSION_TYPE_{kind}" for kind in ("DOT", "ELTWISE", "REDUCE"))
# By name: flags, and how many virtual CPU devices. The first is what the others are compared with.
SETTINGS: Mapping[str, tuple[str, int]] = {
    "none": ("", 1),
    "2 virtual devices": ("", 2),
    "library fusions": (f"--xla_cpu_experimental_ynn_fusion_type={_YNN}", 1),
    "fast math": ("--xla_cpu_enable_fast_math=true", 1),
    "backend optimisation 1": ("--xla_backend_optimization_level=1", 1),
    "backend optimisation 0": ("--xla_backend_optimization_level=0", 1),
}


class Worker:
    """A process with a setting's flags."""

    def __init__(self, config: str, setting: tuple[str, int]) -> None:
        """Starts it and waits until it has compiled; `failed` says why it has not."""
        xla, cpus = setting
        command = [
            sys.executable, "-m", "experiments.throughput.xla_flags", "--worker",
            f"--config={config}", f"--cpu_devices={cpus}",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command, env={**os.environ, "XLA_FLAGS": xla}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        line = self._read()
        self.compile_seconds = float(line) if line else None

    def seconds(self) -> float:
        """Of a step, in a turn."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        """Ends it."""
        self._process.communicate()  # closes what it reads, upon which it ends

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


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


def measure(config: str, settings: Mapping[str, Any], repetitions: int) -> list[dict[str, Any]]:
    """Of each setting, the time without flags over its own; None where XLA knows no such flag."""
    workers = {name: Worker(config, setting) for name, setting in settings.items()}
    started = {name: w for name, w in workers.items() if w.compile_seconds is not None}
    turns: dict[str, list[float]] = {name: [] for name in started}
    for _ in range(repetitions):
        for name, worker in started.items():
            turns[name].append(worker.seconds())
    for worker in workers.values():
        worker.close()
    first = next(iter(settings))
    found = []
    for name, (xla, cpus) in settings.items():
        row: dict[str, Any] = {"name": name, "flags": xla, "devices": cpus, "times": None,
                               "compile_seconds": workers[name].compile_seconds}  # fmt: skip
        if name in turns:
            faster = [a / b for a, b in zip(turns[first], turns[name], strict=True)]
            row["times"] = dataclasses.asdict(timing.Spread.of(faster))
        found.append(row)
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown."""
    lines = ["| setting | XLA_FLAGS | times as fast | compile, s |", "|---|---|---|---|"]
    for row in rows:
        shown = row["flags"].replace("LIBRARY_FUSION_TYPE_", "")
        told = timing.spread(row["times"]) if row["times"] else "XLA does not know it"
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
    rows = measure(values.config, SETTINGS, values.repetitions)
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

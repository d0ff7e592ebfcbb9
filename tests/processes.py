"""Command lines of one run in several processes on this machine, with explicit flags."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence

ROOT = pathlib.Path(__file__).parents[1]
# Tests are compilation more than arithmetic (see conftest.py).
XLA_FLAGS = "--xla_backend_optimization_level=0"


def free_port() -> int:
    """A port that nobody listens on."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def started(
    command: Sequence[str], count: int, logs: pathlib.Path
) -> Iterator[list[subprocess.Popen]]:
    """`python <command>` in `count` processes, ended on leaving; one alone is told of no other."""
    port, running = free_port(), []
    logs.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "XLA_FLAGS": XLA_FLAGS, "JAX_PLATFORMS": "cpu"}
    try:
        for process in range(count):
            joined = (
                f"--coordinator=127.0.0.1:{port}",
                f"--num_processes={count}",
                f"--process_id={process}",
            )
            with (logs / f"{process}.log").open("wb") as log:
                running.append(
                    subprocess.Popen(
                        [sys.executable, *command, *(joined if count > 1 else ())],
                        cwd=ROOT,
                        env=environment,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()


def finished(
    command: Sequence[str], count: int, logs: pathlib.Path, timeout: float
) -> tuple[list[int], list[str]]:
    """Exit codes and outputs of processes that end by themselves."""
    with started(command, count, logs) as running:
        codes = [process.wait(timeout) for process in running]
    return codes, outputs(logs, count)


def outputs(logs: pathlib.Path, count: int) -> list[str]:
    """What each process has said."""
    return [(logs / f"{process}.log").read_text(errors="replace") for process in range(count)]

r"""Times lt_jax and its peers in turns, on the device at hand; prints a table, writes strict JSON.

    python -m experiments.throughput.compare --suite=cpu [--only=ViT] [--profile=DIR] [--out=FILE]
    python -m experiments.throughput.compare --suite=gpu --out=FILE

A contest (`contests.py`) is built, timed and forgotten before the next one. All of a contest take
turns, and a ratio is taken within a turn. Peers that are not installed are named with the command
that installs them, and left out. `--suite=tiny` sees that all of it runs.
"""

import dataclasses
import gc
import importlib.metadata
import os
import pathlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags, logging
from jax.sharding import Mesh

from experiments.throughput import contests, devices, roofline, timing
from experiments.throughput.cases import Case
from experiments.throughput.peers import PeerMissingError
from lt_jax import command
from lt_jax.runtime import artifacts, mesh

_PEERS = ("torch", "timm", "diffusers")


def cases_of(
    contest: contests.Contest, device_mesh: Mesh, folder: pathlib.Path
) -> tuple[list[Case], list[str]]:
    """Our case first, then all peers'; and why some are missing."""
    found, missing = contest.ours(device_mesh, folder), []
    for make in contest.peers:
        try:
            found += make(device_mesh, folder)
        except PeerMissingError as error:
            missing.append(str(error))
    return found, missing


def measure(
    contest: contests.Contest,
    device_mesh: Mesh,
    limits: devices.Limits,
    *,
    repetitions: int,
    seconds: float,
    profile: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Rates of ours and of each peer, and how many times faster ours is, turn by turn."""
    with tempfile.TemporaryDirectory() as folder:
        cases, missing = cases_of(contest, device_mesh, pathlib.Path(folder))
        with timing.closing(cases):
            timed = timing.time_all(cases, repetitions, seconds)
            if profile and cases[0].devices:
                timing.trace(cases[:1], profile)
    ours, kind = cases[0], device_mesh.devices.flat[0].device_kind
    rates = {ours.name: timed[0]}
    return {
        "stage": contest.stage,
        "unit": contest.unit,
        "missing": missing,
        "load_average": list(os.getloadavg()),
        "rows": [
            _row(case, own, timed[0], kind) for case, own in zip(cases, timed, strict=True)
        ],
        "roofline": roofline.places({ours.name: ours}, rates, limits, device_mesh.size),
    }  # fmt: skip


def _row(
    case: Case, own: Sequence[float], ours: Sequence[float], device_kind: str
) -> dict[str, Any]:
    rate = timing.Spread.of(own)
    peak = devices.peak_flops(device_kind, case.dtype)
    used = None
    if peak and case.flops:
        used = dataclasses.asdict(rate.times(case.flops / case.images / peak / case.devices))
    return {
        "name": case.name,
        "batch": case.images,
        "dtype": case.dtype or None,
        "rate": dataclasses.asdict(rate),
        "utilisation": used,
        "memory_bytes": case.memory or None,
        "compile_seconds": case.compile_seconds,
        "ours_over_it": timing.ratio(case.name, ours, own),
    }


def best(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The peer's fastest row."""
    peers = rows[1:]
    return max(peers, key=lambda row: row["rate"]["median"]) if peers else None


def table(result: Mapping[str, Any]) -> str:
    """Markdown: a row a program, ours first, then the roofline of ours."""
    number, spread = timing.number, timing.spread
    lines = [
        f"{result['device']['count']} x {result['device']['kind']}, n = {result['repetitions']}: "
        "median (least - greatest)",
        "",
        "| stage | program | batch | a second | MFU | MiB | compile, s | lt_jax / it |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for contest in result["contests"]:
        for index, row in enumerate(contest["rows"]):
            stage = f"{contest['stage']} ({contest['unit']})" if index == 0 else ""
            name = f"**lt_jax**, {row['dtype'] or 'host'}" if index == 0 else row["name"]
            used, memory = row["utilisation"], row["memory_bytes"]
            lines.append(
                f"| {stage} | {name} | {row['batch']} | {spread(row['rate'])} "
                f"| {'n/a' if used is None else format(used['median'], '.1%')} "
                f"| {number(memory and memory / 2**20)} | {number(row['compile_seconds'])} "
                f"| {'1' if index == 0 else spread(row['ours_over_it'])} |"
            )
        lines += [f"| | left out: {reason} | | | | | | |" for reason in contest["missing"]]
    places = [
        {**place, "name": contest["stage"]}
        for contest in result["contests"]
        for place in contest["roofline"]
    ]
    return "\n".join([*lines, "", roofline.table(places, result["limits"]["source"])])


def versions() -> dict[str, str]:
    """Ours, and those of the peers that are installed."""
    found = dict(artifacts.versions())
    for name in _PEERS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def run(
    suite: str,
    only: str,
    device_mesh: Mesh,
    *,
    repetitions: int,
    seconds: float,
    profile: pathlib.Path | None = None,
) -> dict[str, Any]:
    """All contests of a suite whose stage has `only` in it."""
    limits = devices.limits(device_mesh)
    found = []
    for contest in contests.SUITES[suite]():
        if only not in contest.stage:
            continue
        told = measure(
            contest, device_mesh, limits, repetitions=repetitions, seconds=seconds, profile=profile
        )
        found.append(told)
        line = f"{contest.stage}: {timing.spread(told['rows'][0]['rate'])} {contest.unit}"
        if fastest := best(told["rows"]):
            line += f"; {timing.spread(fastest['ours_over_it'])} times {fastest['name']}"
        print(line, file=sys.stderr)
        jax.clear_caches()
        gc.collect()
    device = device_mesh.devices.flat[0]
    return {
        "version": 1,
        "suite": suite,
        "device": {"platform": device.platform, "kind": device.device_kind,
                   "count": device_mesh.size},
        "versions": versions(),
        "repetitions": repetitions,
        "limits": dataclasses.asdict(limits),
        "contests": found,
    }  # fmt: skip


def _main(_: list[str]) -> None:
    values = flags.FLAGS
    logging.set_verbosity(logging.WARNING)
    # PyTorch has to find room beside JAX, which else takes most of a GPU when it starts.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    jax.config.update("jax_enable_compilation_cache", False)  # compilation is timed
    # Of several GPUs one, as the peers use; of a CPU all cores, as they do.
    device_mesh = mesh.make_mesh(None if jax.default_backend() == "cpu" else 1)
    result = run(
        values.suite, values.only, device_mesh,
        repetitions=values.repetitions, seconds=values.seconds,
        profile=pathlib.Path(values.profile) if values.profile else None,
    )  # fmt: skip
    print(table(result))
    if values.out:
        timing.save(values.out, result)


if __name__ == "__main__":
    flags.DEFINE_enum("suite", "cpu", sorted(contests.SUITES), "which contests")
    flags.DEFINE_string("only", "", "those whose stage has this in it")
    flags.DEFINE_string("profile", None, "folder for a trace of our programs")
    flags.DEFINE_integer("repetitions", 5, "timed turns of each program", lower_bound=1)
    flags.DEFINE_float("seconds", 1.0, "that a turn of a program lasts, about", lower_bound=0.0)
    flags.DEFINE_string("out", None, "JSON file to write")
    command.experiment(_main)

r"""Times lt_jax and its peers in turns, on the device at hand; prints a table, writes strict JSON.

    python -m experiments.throughput.compare --suite=cpu [--only=ViT,policy] [--profile=DIR]
        [--out=FILE]
    python -m experiments.throughput.compare --suite=gpu --only=BUSGen --out=FILE

A contest (`contests.py`) is built, timed and forgotten before the next one, and the JSON is written
after each. All of a contest take turns, and a ratio is taken within a turn. A program that fails,
or whose library is not installed, is left out and named with the reason. `--suite=tiny` sees that
all of it runs.
"""

import contextlib
import dataclasses
import gc
import importlib.metadata
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import flags, logging
from jax.sharding import Mesh

from experiments.throughput import contests, devices, roofline, timing
from experiments.throughput.cases import Case
from experiments.throughput.peers import PeerMissingError
from lt_jax import command
from lt_jax.errors import UserError
from lt_jax.runtime import artifacts, mesh

_PEERS = ("torch", "timm", "diffusers")


class NoContestError(UserError, ValueError):
    """No stage of the suite has what `--only` asks for."""


@contextlib.contextmanager
def _noted(failed: dict[str, str], name: str) -> Iterator[None]:
    """An error ends this program's part alone; why is kept in `failed`."""
    try:
        yield
    except PeerMissingError as error:
        failed[name] = str(error)
    except Exception as error:  # of a peer, a compiler, a driver: other programs' rows are kept
        lines = str(error).strip().splitlines() or [""]
        failed[name] = f"failed: {type(error).__name__}: {lines[0]}"


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
    failed: dict[str, str] = {}
    guard = lambda case: _noted(failed, case.name)
    cases: list[Case] = []
    with tempfile.TemporaryDirectory() as folder, timing.closing(cases):
        for name, make in {**contest.ours, **contest.peers}.items():
            with _noted(failed, name):
                made = make(device_mesh, pathlib.Path(folder))
                cases.append(dataclasses.replace(made, name=name))
        timed = timing.time_all(cases, repetitions, seconds, guard)
        rates = {case.name: own for case, own in zip(cases, timed, strict=True)}
        done = [case for case in cases if case.name not in failed]
        ours = {case.name: case for case in done if case.name in contest.ours}
        traced = [case for case in ours.values() if case.devices]
        if profile and traced:
            with _noted(failed, "trace"):
                timing.trace(traced, profile)
    kind = device_mesh.devices.flat[0].device_kind
    return {
        "stage": contest.stage,
        "unit": contest.unit,
        "failed": failed,
        "load_average": list(os.getloadavg()),
        "rows": [_row(case, rates, ours, kind) for case in done],
        "roofline": roofline.places(ours, rates, limits, device_mesh.size),
    }  # fmt: skip


def _row(
    case: Case, rates: Mapping[str, Sequence[float]], ours: Mapping[str, Case], device_kind: str
) -> dict[str, Any]:
    own = rates[case.name]
    rate = timing.Spread.of(own)
    counted = next((c for c in (case, *ours.values()) if c.flops), None)
    peak = devices.peak_flops(device_kind, case.dtype)
    used = None
    if peak and counted:
        used = rate.times(counted.flops / counted.images / peak / case.devices)
    compile_ = case.compile_seconds
    return {
        "name": case.name,
        "ours": case.name in ours,
        "batch": case.images,
        "dtype": case.dtype or None,
        "rate": dataclasses.asdict(rate),
        "utilisation": used and dataclasses.asdict(used),
        "memory_bytes": case.memory or None,
        "compile_seconds": compile_ if compile_ is None else compile_ + (case.lower_seconds or 0),
        "ours_over_it": [timing.ratio(name, rates[name], own) for name in ours],
    }


def best(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The fastest row of another library."""
    peers = [row for row in rows if not row["name"].startswith("lt_jax")]
    return max(peers, key=lambda row: row["rate"]["median"]) if peers else None


def table(result: Mapping[str, Any]) -> str:
    """Markdown: a row a program, ours first, then the roofline of ours."""
    number, spread = timing.number, timing.spread
    lines = [
        f"{result['device']['count']} x {result['device']['kind']}, n = {result['repetitions']}: "
        "median (least - greatest). Compile: tracing, lowering and compiling; of PyTorch, what a "
        "first call takes longer than a second. lt_jax / it: of each of ours in turn.",
        "",
        "| stage | program | batch | a second | MFU | MiB | compile, s | lt_jax / it |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for contest in result["contests"]:
        stage = f"{contest['stage']} ({contest['unit']})"
        for row in contest["rows"]:
            name = f"**{row['name']}**, {row['dtype'] or 'host'}" if row["ours"] else row["name"]
            used, memory = row["utilisation"], row["memory_bytes"]
            ratios = (
                "1" if ratio["name"] == row["name"] else spread(ratio)
                for ratio in row["ours_over_it"]
            )
            lines.append(
                f"| {stage} | {name} | {row['batch']} | {spread(row['rate'])} "
                f"| {'n/a' if used is None else format(used['median'], '.1%')} "
                f"| {number(memory and memory / 2**20)} | {number(row['compile_seconds'])} "
                f"| {'; '.join(ratios)} |"
            )
            stage = ""
        for name, reason in contest["failed"].items():
            told = reason.replace("|", "/")
            lines.append(f"| {stage} | {name} | | {told} | | | | |")
            stage = ""
    places = [
        {**place, "name": f"{contest['stage']}: {place['name']}"}
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
    only: Sequence[str],
    device_mesh: Mesh,
    *,
    repetitions: int,
    seconds: float,
    profile: pathlib.Path | None = None,
    out: str | None = None,
) -> dict[str, Any]:
    """All contests of a suite whose stage has one of `only` in it; `out` is written after each.

    Raises:
      NoContestError: there is none.
    """
    every = contests.SUITES[suite]()
    chosen = [c for c in every if not only or any(part in c.stage for part in only)]
    if not chosen:
        stages = "; ".join(contest.stage for contest in every)
        raise NoContestError(f"--only={','.join(only)} is in no stage of {suite}: {stages}")
    limits = devices.limits(device_mesh)
    device = device_mesh.devices.flat[0]
    result: dict[str, Any] = {
        "version": 2,
        "suite": suite,
        "device": {"platform": device.platform, "kind": device.device_kind,
                   "count": device_mesh.size},
        "versions": versions(),
        "repetitions": repetitions,
        "limits": dataclasses.asdict(limits),
        "contests": [],
    }  # fmt: skip
    for contest in chosen:
        told = measure(
            contest, device_mesh, limits, repetitions=repetitions, seconds=seconds, profile=profile
        )
        result["contests"].append(told)
        if out:
            timing.save(out, result)
        print(_line(told), file=sys.stderr)
        _forget()
    return result


def _line(told: Mapping[str, Any]) -> str:
    """What a contest came to."""
    parts = [
        f"{row['name']} {timing.spread(row['rate'])} {told['unit']}"
        for row in told["rows"]
        if row["ours"]
    ]
    if fastest := best(told["rows"]):
        times = " and ".join(timing.spread(ratio) for ratio in fastest["ours_over_it"])
        parts.append(f"{times} times {fastest['name']}")
    return f"{told['stage']}: " + "; ".join([*parts, *map(": ".join, told["failed"].items())])


def _forget() -> None:
    """Gives back what a contest's programs held."""
    jax.clear_caches()
    gc.collect()
    if dynamo := sys.modules.get("torch._dynamo"):
        dynamo.reset()
    if torch := sys.modules.get("torch"):
        torch.cuda.empty_cache()  # of which JAX would else see nothing


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
        profile=pathlib.Path(values.profile) if values.profile else None, out=values.out,
    )  # fmt: skip
    print(table(result))


if __name__ == "__main__":
    flags.DEFINE_enum("suite", "cpu", sorted(contests.SUITES), "which contests")
    flags.DEFINE_list("only", [], "those whose stage has one of these in it")
    flags.DEFINE_string("profile", None, "folder for a trace of our programs")
    flags.DEFINE_integer("repetitions", 3, "timed turns of each program", lower_bound=1)
    flags.DEFINE_float("seconds", 1.0, "that a turn of a program lasts, about", lower_bound=0.0)
    flags.DEFINE_string("out", None, "JSON file, written after each contest")
    command.experiment(_main)

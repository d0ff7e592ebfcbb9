r"""Times every part of a run on the device at hand; prints a table and writes strict JSON.

    python -m experiments.throughput.throughput --config=configs/digits.py [--compare] \
        [--pool=runs/demo/synthesize] [--profile=DIR] [--out=FILE]

Repetitions of all cases are interleaved, and ratios are taken within a repetition, so that a
machine that slows down meanwhile slows both sides of a ratio. Every figure is the median of the
repetitions with the least, the greatest and their number.
"""

import dataclasses
import importlib.metadata
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags, logging
from jax.sharding import Mesh
from ml_collections import config_flags

from experiments.throughput import cases as cases_lib
from experiments.throughput import roofline, sampling, timing
from experiments.throughput.cases import Case
from experiments.throughput.devices import limits, peak_flops, peak_memory
from experiments.throughput.timing import Spread, closing, number, ratio, spread, time_all, trace
from lt_jax import command
from lt_jax import config as config_lib
from lt_jax.data import sources
from lt_jax.data.pool import PoolReader, open_pool
from lt_jax.runtime import artifacts, mesh


def row(case: Case, rates: Sequence[float], device_kind: str) -> dict[str, Any]:
    """A case's figures, JSON-able; None where something is not known or does not apply."""
    rate = Spread.of(rates)
    flops = rate.times(case.flops / case.images) if case.flops else None
    peak = peak_flops(device_kind, case.dtype)
    share = flops.times(1 / (peak * case.devices)) if flops and peak else None
    evaluations = rate.times(case.evaluations / case.images) if case.evaluations else None
    spreads = {
        "images_per_second": rate,
        "image_evaluations_per_second": evaluations,
        "gflops_per_second": flops and flops.times(1e-9),
        "flops_utilisation": share,
    }
    return {
        "name": case.name,
        "batch": case.images,
        "dtype": case.dtype or None,
        "devices": case.devices or None,
        "flops_per_image": case.flops / case.images or None,
        "lower_seconds": case.lower_seconds,
        "compile_seconds": case.compile_seconds,
        "temporary_bytes": case.temporaries or None,
        **{name: found and dataclasses.asdict(found) for name, found in spreads.items()},
    }


def build(
    config: config_lib.Config,
    classes: int,
    device_mesh: Mesh,
    folder: pathlib.Path,
    compare: bool,
    train_images: int,
) -> dict[str, Case]:
    """The cases by name; with `compare`, both trainings also at other precision and on one device.

    Args:
      folder: where the loader's images are put.
      train_images: among which sampling looks for copies.
    """
    made = [
        make(config, classes, device_mesh)
        for make in (
            cases_lib.generator_training,
            cases_lib.extractor_training,
            cases_lib.classifier_training,
            cases_lib.prediction,
        )
    ]
    made += sampling.cases(config, classes, device_mesh, train_images)
    cases = {case.name: case for case in [*made, *cases_lib.loaders(config, classes, folder)]}
    if not compare:
        return cases
    for make in (cases_lib.generator_training, cases_lib.classifier_training):
        variants = {
            dtype: make(cases_lib.with_dtype(config, dtype), classes, device_mesh)
            for dtype in ("float32", "bfloat16")
            if cases_lib.with_dtype(config, dtype) != config
        }
        variants["remat"] = make(cases_lib.with_remat(config), classes, device_mesh)
        if device_mesh.size > 1:
            variants["one device"] = make(config, classes, mesh.make_mesh(1))
        for variant, case in variants.items():
            name = f"{case.name}, {variant}"
            cases[name] = dataclasses.replace(case, name=name)
    return cases


def ratios(rates: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """The comparisons that the timed cases allow."""
    pairs = [
        (f"{name} / classifier training", name, "classifier training")
        for name in rates
        if name.startswith("loader")
    ]
    for other in ("no selection", "separate calls"):
        pairs.append((f"sampling: fused / {other}", "sampling", f"sampling, {other}"))
    part = "sampling: the network's part of the time"  # as many images took it alone, over fused
    pairs.append((part, "sampling", "sampling, network alone"))
    for name in ("generator training", "classifier training"):
        pairs.append((f"{name}: all devices / one", name, f"{name}, one device"))
        pairs.append((f"{name}: blocks rematerialised / kept", f"{name}, remat", name))
        # The config's own precision stands without a suffix.
        low, high = (
            f"{name}, {dtype}" if f"{name}, {dtype}" in rates else name
            for dtype in ("bfloat16", "float32")
        )
        pairs.append((f"{name}: bfloat16 / float32", low, high))
    return [
        ratio(title, rates[above], rates[below])
        for title, above, below in pairs
        if above in rates and below in rates and above != below
    ]


def accepted(rates: Sequence[float], pool: PoolReader) -> list[dict[str, Any]]:
    """Accepted images a second while candidates of a class are generated, and in all.

    Args:
      rates: candidates a second in each repetition, which cost the same in every class.
      pool: whose shares of accepted candidates they are given.
    """
    return [
        {"name": name, "share": share, **dataclasses.asdict(Spread.of(rates).times(share))}
        for name, share in sampling.acceptance(pool).items()
    ]


def measure(
    config: config_lib.Config,
    classes: int,
    device_mesh: Mesh,
    *,
    repetitions: int,
    seconds: float,
    compare: bool,
    train_images: int = 1000,
    pool: PoolReader | None = None,
    profile: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Everything that the JSON holds but the config's name; see `accepted` for the pool.

    Into `profile` goes a trace of what runs on devices: see `timing.trace`.
    """
    device = device_mesh.devices.flat[0]
    with tempfile.TemporaryDirectory() as folder:
        cases = build(config, classes, device_mesh, pathlib.Path(folder), compare, train_images)
        with closing(list(cases.values())):
            timed = time_all(list(cases.values()), repetitions, seconds)
            if profile:
                trace([case for case in cases.values() if case.devices], profile)
    bounds = limits(device_mesh)
    rates = dict(zip(cases, timed, strict=True))
    memory, source = peak_memory(device)
    return {
        "version": 1,
        "device": {"platform": device.platform, "kind": device.device_kind,
                   "count": device_mesh.size},
        "versions": {**artifacts.versions(), "pillow": importlib.metadata.version("pillow")},
        "image_shape": list(cases_lib.shape_of(config)),
        "classes": classes,
        "load_average": list(os.getloadavg()),
        "peak_memory": {"bytes": memory, "of": source},
        "rows": [row(case, rates[name], device.device_kind) for name, case in cases.items()],
        "limits": dataclasses.asdict(bounds),
        "roofline": roofline.places(cases, rates, bounds, device_mesh.size),
        "ratios": ratios(rates),
        "accepted_per_second": [] if pool is None else accepted(rates["sampling"], pool),
    }  # fmt: skip


def table(result: Mapping[str, Any]) -> str:
    """The result as text."""
    device = result["device"]
    lines = [
        f"{result.get('config', '')} on {device['count']} x {device['kind']} "
        f"({device['platform']}), images {result['image_shape']}, n = "
        f"{result['rows'][0]['images_per_second']['n']}: median (least - greatest)",
        f"{'':36s} {'batch':>5s} {'images/s':>30s} {'GFLOP/s':>9s} {'of peak':>8s} "
        f"{'lower s':>8s} {'compile s':>9s}",
    ]
    for entry in result["rows"]:
        rate, flops = entry["images_per_second"], entry["gflops_per_second"]
        share = entry["flops_utilisation"]
        lines.append(
            f"{entry['name']:36s} {entry['batch']:5d} {spread(rate):>30s} "
            f"{number(flops and flops['median']):>9s} "
            f"{'-' if share is None else format(share['median'], '.1%'):>8s} "
            f"{number(entry['lower_seconds']):>8s} {number(entry['compile_seconds']):>9s}"
        )
        if evaluations := entry["image_evaluations_per_second"]:
            name = "  image-evaluations/s"
            lines.append(f"{name:36s} {'':5s} {spread(evaluations):>30s}")
        if temporaries := entry["temporary_bytes"]:
            lines.append(f"{'  temporary memory, MiB':36s} {'':5s} {temporaries / 2**20:30.1f}")
    lines += [f"{entry['name']:60s} {spread(entry)}" for entry in result["ratios"]]
    lines += [
        f"accepted images/s, {entry['name']} ({entry['share']:.1%} of candidates)".ljust(61)
        + spread(entry)
        for entry in result["accepted_per_second"]
    ]
    memory = result["peak_memory"]
    lines.append(roofline.table(result["roofline"], result["limits"]["source"]))
    return "\n".join([*lines, f"peak memory ({memory['of']}): {memory['bytes'] / 2**20:,.0f} MiB"])


def _main(_: list[str]) -> None:
    values = flags.FLAGS
    logging.set_verbosity(logging.WARNING)
    config = config_lib.build(config_lib.Config, values.config)
    jax.config.update("jax_num_cpu_devices", config.runtime.cpu_devices)
    # A program out of the cache would say nothing about compilation.
    jax.config.update("jax_enable_compilation_cache", False)
    pool = open_pool(pathlib.Path(values.pool)) if values.pool else None
    classes = values.classes or len(sources.load(config.data).classes)
    name = config_flags.get_config_filename(values["config"])
    result = {
        "config": name,
        **measure(
            config, classes, mesh.make_mesh(), repetitions=values.repetitions,
            seconds=values.seconds, compare=values.compare, train_images=values.train_images,
            pool=pool, profile=pathlib.Path(values.profile) if values.profile else None,
        ),
    }  # fmt: skip
    print(table(result))
    if values.out:
        timing.save(values.out, result)


if __name__ == "__main__":
    command.define_config("config file")
    flags.DEFINE_string("out", None, "JSON file to write")
    flags.DEFINE_string("profile", None, "folder for a trace of what runs on devices")
    flags.DEFINE_integer("repetitions", 7, "how often each case is timed", lower_bound=1)
    flags.DEFINE_float("seconds", 1.0, "that a repetition of a case lasts, about", lower_bound=0.0)
    flags.DEFINE_bool("compare", False, "also both trainings at other precision, on one device")
    flags.DEFINE_integer("train_images", 1000, "that copies are looked for in", lower_bound=16)
    flags.DEFINE_string("pool", None, "<workdir>/synthesize of a run: accepted images/s by class")
    flags.DEFINE_integer("classes", 0, "where the data set is not at hand to say", lower_bound=0)
    flags.mark_flag_as_required("config")
    command.experiment(_main)

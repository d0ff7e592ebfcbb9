r"""What more images are worth: real ones, generated ones, and the one against the other.

    python -m experiments.scaling.curves --config=configs/digits.py --out=runs/scaling
    python -m experiments.scaling.curves --config=configs/digits.py --out=runs/scaling --collect

Real images: of each class the fractions `--fractions` of its train images, nested, all with the
same policy_val, val and test splits. At each a generator, extractor and pool are trained on that
fraction alone, and two arms: `real` (its images alone) and `synthetic` (filled by `--controller`),
at equal steps. Generated images: at the whole train split arms whose every class has `--doses`
synthetic images a real one, all from one pool. The second command opens the test labels once and
writes curves with intervals (figures/*.png), the crossing point
(`lt_jax.evaluate.statistics.scaling`), the gain of each class by dose, and results.json.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import arms as arms_lib
from experiments.scaling import pictures
from lt_jax import command
from lt_jax import config as config_lib
from lt_jax.data import prepare
from lt_jax.evaluate import metrics, statistics
from lt_jax.evaluate import report as report_lib
from lt_jax.evaluate.statistics import scaling, tables
from lt_jax.pipeline import Pipeline
from lt_jax.runtime import files, mesh
from lt_jax.specs import STAGES

METRICS = ("balanced_accuracy", "auroc_macro", "log_loss")
REAL, SYNTHETIC = "real", "synthetic"  # arms


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is trained: fractions ascending up to 1, doses ascending."""

    fractions: tuple[float, ...]
    doses: tuple[float, ...]
    seeds: int
    loss: str
    controller: str
    dose: float

    def __post_init__(self) -> None:
        """Refuses fractions and doses that make no curve."""
        if len(self.fractions) < 2 or self.fractions[-1] != 1 or not _ascends(self.fractions):
            raise config_lib.ConfigError(
                f"--fractions: got {self.fractions}; takes two or more, ascending, the last is 1"
            )
        if not _ascends(self.doses):
            raise config_lib.ConfigError(f"--doses: got {self.doses}; takes them ascending")


def _ascends(values: Sequence[float]) -> bool:
    return all(a < b for a, b in zip((0.0, *values), values, strict=False))


def name_of(fraction: float) -> str:
    """The workdir of a fraction."""
    return f"fraction_{fraction:g}"


def dose_arm(dose: float) -> str:
    """The arm of a dose."""
    return f"dose_{dose:g}".replace(".", "_")


def configure(shared: ConfigDict, plan: Plan, fraction: float) -> ConfigDict:
    """`shared` at one fraction, with its arms."""
    config: Any = shared.copy_and_resolve_references()
    filled = {"controller": plan.controller, "loss": plan.loss}
    filled |= {"dose": plan.dose} if plan.controller == "uniform" else {}
    arms: dict[str, dict[str, Any]] = {REAL: {"loss": plan.loss}, SYNTHETIC: filled}
    most = 0.0
    if fraction == 1:
        most = max(plan.doses, default=0.0)
        arms |= {
            dose_arm(dose): {"controller": "uniform", "dose": dose, "loss": plan.loss}
            for dose in plan.doses
        }
    with config.unlocked():
        config.data.train_fraction = fraction
        config.synthesize.min_dose = max(config.synthesize.min_dose, most)
        config.classify.seeds = tuple(range(plan.seeds))
        config.classify.arms = config_lib.arms(**arms)
        config.evaluate.baseline = REAL
    return config


def collect(runs: dict[str, Pipeline], plan: Plan, out: pathlib.Path) -> dict[str, Any]:
    """Opens the test labels once: every arm's metrics, crossings, and gains by dose."""
    rival = f"{name_of(1)}/{REAL}"
    inputs = arms_lib.gather(runs, out, "experiments.scaling.curves", rival)
    (out / "report").mkdir(exist_ok=True)
    report = report_lib.write(inputs, out / "report")
    sizes = {
        name: int(prepare.load(run.context().folder("prepare"), run.config.data)[0].counts().sum())
        for name, run in runs.items()
    }
    draws = report_lib.draws(inputs)
    done = [f for f in plan.fractions if f"{name_of(f)}/{SYNTHETIC}" in draws]
    return report_lib.strict(
        {
            "plan": dataclasses.asdict(plan),
            "sizes": sizes,
            "classes": report["dataset"]["classes"],
            "train_counts": report["dataset"]["train_counts"],
            "arms": {arm["name"]: arm for arm in report["arms"]},
            "worth": [_worth(report, draws, sizes, done, fraction) for fraction in done],
            "gains": _gains(inputs, plan.doses),
        }
    )


def _gains(
    inputs: report_lib.ReportInputs, doses: Sequence[float]
) -> list[tuple[float, np.ndarray]]:
    """Dose, and recall [m, k] of each seed and class there over that of real images alone."""
    recall = {}
    for arm in inputs.arms:
        runs = sorted(arm.runs, key=lambda run: run.seed)
        logits = np.stack([run.test_logits for run in runs])
        recall[arm.name] = metrics.recall_per_class(logits, inputs.dataset.test_labels)
    name = lambda arm: f"{name_of(1)}/{arm}"
    return [
        (dose, recall[name(dose_arm(dose))] - recall[name(REAL)])
        for dose in doses
        if name(dose_arm(dose)) in recall
    ]


def _worth(
    report: dict[str, Any],
    draws: dict[str, dict[str, np.ndarray]],
    sizes: dict[str, int],
    fractions: list[float],
    fraction: float,
) -> dict[str, Any]:
    """How many real images do what those of a fraction and its pool do, by balanced accuracy."""
    metric = METRICS[0]
    means = {
        arm["name"]: np.nan if (mean := arm["metrics"][metric]["mean"]) is None else mean
        for arm in report["arms"]
    }
    numbers = np.array([sizes[name_of(f)] for f in fractions])
    names = [f"{name_of(f)}/{REAL}" for f in fractions]
    other = f"{name_of(fraction)}/{SYNTHETIC}"
    found = scaling.crossing(
        numbers, np.array([means[name] for name in names]), np.asarray(means[other])
    )
    resampled = scaling.crossing(
        numbers, np.stack([draws[name][metric] for name in names]), draws[other][metric]
    )
    return {
        "fraction": fraction,
        "real_images": sizes[name_of(fraction)],
        "metric": metric,
        "equivalent": _told(float(found)),
        "ci95": None
        if (limits := scaling.interval(resampled)) is None
        else [_told(limit) for limit in limits],
    }


def _told(number: float) -> float | str:
    """A number of images; what lies beyond the curve in words, which JSON can hold."""
    if np.isnan(number):
        return "unknown"
    if np.isinf(number):
        return "more than the largest"
    return "less than the smallest" if number == 0 else round(number)


def tables_of(results: dict[str, Any]) -> list[tables.Table]:
    """The curve over real images with its crossings, the one over doses, and gains by class and
    dose; n: seeds."""
    arms, sizes = results["arms"], results["sizes"]
    titles = tuple(tables.TITLES[metric] for metric in METRICS)
    measured = lambda name: [arms_lib.mean_cell(arms[name]["metrics"][m]) for m in METRICS]
    rows = []
    for worth in results["worth"]:
        name = name_of(worth["fraction"])
        for arm in (REAL, SYNTHETIC):
            last = "itself" if arm == REAL else _equivalent(worth, results["plan"]["seeds"])
            rows.append((f"{sizes[name]:,}", arm, *measured(f"{name}/{arm}"), last))
    columns = ("Real images", "Arm", *titles, "Equivalent real images")
    found = [tables.Table(columns, tuple(rows))]
    rows = []
    for dose in (0.0, *results["plan"]["doses"]):
        name = f"{name_of(1)}/{dose_arm(dose) if dose else REAL}"
        if name in arms:
            rows.append((f"dose {dose:g}", *measured(name), arms_lib.paired_cell(arms[name])))
    columns = ("Synthetic over real", *titles, f"{titles[0]} minus {REAL}")
    return [*found, tables.Table(columns, tuple(rows)), _by_class(results)]


def _equivalent(worth: dict[str, Any], seeds: int) -> str:
    limits = worth["ci95"]
    spread = "no interval" if limits is None else f"{limits[0]}, {limits[1]}"
    return f"{worth['equivalent']} [{spread}] (n={seeds})"


def _by_class(results: dict[str, Any]) -> tables.Table:
    """Recall of each class at each dose over that of real images alone."""
    gains = [(dose, np.array(values, float)) for dose, values in results["gains"]]
    rows = tuple(
        (
            name,
            results["train_counts"][k],
            *(
                "no test image" if np.isnan(g[:, k]).all() else statistics.summarise(g[:, k])
                for _, g in gains
            ),
        )
        for k, name in enumerate(results["classes"])
    )
    columns = ("Class", "Train images", *(f"Recall gained, dose {dose:g}" for dose, _ in gains))
    return tables.Table(columns, rows)


def main(_: list[str]) -> None:
    """Trains, or collects what is finished."""
    out = pathlib.Path(flags.FLAGS.out)
    plan = Plan(
        tuple(float(text) for text in flags.FLAGS.fractions),
        tuple(float(text) for text in flags.FLAGS.doses),
        flags.FLAGS.seeds,
        flags.FLAGS.loss,
        flags.FLAGS.controller,
        flags.FLAGS.dose,
    )
    mesh.configure_devices(flags.FLAGS.config.runtime.cpu_devices, str(out / ".jax_cache"))
    runs = {
        name_of(fraction): Pipeline(
            configure(flags.FLAGS.config, plan, fraction),
            out / name_of(fraction),
            out / "cache",
            command="experiments.scaling.curves",
        )
        for fraction in plan.fractions
    }
    if not flags.FLAGS.collect:
        for run in runs.values():
            run.run([stage for stage in STAGES if stage != "report"], accept_config_change=True)
        return
    results = collect(runs, plan, out)
    files.write_atomically(out / "results.json", json.dumps(results, indent=1), "the results")
    pictures.draw(results, out / "figures")
    print("\n\n".join(tables.to_markdown(table) for table in tables_of(results)))


if __name__ == "__main__":
    command.define_config("of data, generator and recipe")
    flags.DEFINE_string("out", None, "folder of the workdirs and their cache", required=True)
    flags.DEFINE_list("fractions", ["0.12", "0.25", "0.5", "1"], "of the train images")
    flags.DEFINE_list("doses", ["0.25", "0.5", "1", "2", "4"], "synthetic over real images")
    flags.DEFINE_integer("seeds", 5, "classifiers an arm", lower_bound=2)
    flags.DEFINE_string("loss", "balanced_softmax", "of all arms")
    flags.DEFINE_enum(
        "controller",
        "fill_to_head",
        ["fill_to_head", "uniform", "effective_number"],
        "of `synthetic`",
    )
    flags.DEFINE_float("dose", 1.0, "of `synthetic`, where its controller is uniform")
    flags.DEFINE_bool("collect", False, "make curves of what is finished")
    command.experiment(main)

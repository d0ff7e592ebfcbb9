r"""What is each part of the whole system worth? One is taken away at a time.

    python -m experiments.ablation --config=configs/digits.py --out=runs/ablation
    python -m experiments.ablation --config=configs/digits.py --out=runs/ablation --collect

The full system is the config's, with every part of `PARTS` that it lacks and can have added; what
it cannot have is listed with the reason. Its one arm fills classes as a learned policy says and
trains with balanced softmax. Variants differ in one part and share all stages that it does not
touch (`OUT/cache`), also when several processes work on them (`--parts`). One that fails does not
keep the others from being made; the command then ends with 1. `--collect` opens the test labels
once and writes the table, full minus ablated, to results.json and report/; variants that are not
finished are named there.
"""

import dataclasses
import json
import pathlib
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from experiments import arms as arms_lib
from lt_jax import command
from lt_jax import config as config_lib
from lt_jax.data import sources
from lt_jax.errors import Preempted, UserError
from lt_jax.evaluate import report as report_lib
from lt_jax.evaluate.statistics import Comparison, Summary, tables
from lt_jax.pipeline import Pipeline
from lt_jax.runtime import files, mesh
from lt_jax.runtime.ledger import Ledger
from lt_jax.runtime.progress import say
from lt_jax.specs import STAGES

FULL, ARM = "full", "system"
RULE, LOSS = "fill_to_head", "balanced_softmax"
METRICS = ("balanced_accuracy", "recall_tail", "recall_head")
_BASED = (
    "config.generator.adapt.base was trained with its own conditions; take one that was trained "
    "otherwise"
)


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the system.

    Attributes:
      about: what it is, and what stands in its place.
      add: makes the config have it; returns why it cannot, or "".
      remove: takes it away.
    """

    about: str
    add: Callable[[Any], str]
    remove: Callable[[Any], None]


def _arm(config: Any) -> Any:
    return config.classify.arms[ARM]


def _add_selection(config: Any) -> str:
    chosen = config.synthesize.selection
    if not chosen.scores:
        chosen.scores = config_lib.SelectionConfig().scores
    if not chosen.label_probability:
        chosen.label_probability = config_lib.SelectionConfig().label_probability
    return ""


def _remove_selection(config: Any) -> None:
    config.synthesize.selection.update(scores=(), label_probability=0.0)


def _add_gate(config: Any) -> str:
    if not config.data.manifest and not config.data.split.val:
        return "config.data.split.val is empty, on which copies are calibrated"
    config.synthesize.selection.memorization.gate = True
    return ""


def _remove_gate(config: Any) -> None:
    config.synthesize.selection.memorization.gate = False


def _add_sketch(config: Any) -> str:
    if config.generator.adapt.base:
        return _BASED
    config.generator.conditions.sketch = True
    config.generator.sketch.weight = config.generator.sketch.weight or 0.1
    return ""


def _remove_sketch(config: Any) -> None:
    config.generator.conditions.sketch = False
    config.generator.sketch.weight = 0.0


def _add_inpainting(config: Any) -> str:
    if config.generator.adapt.base:
        return _BASED
    conditions, synthesize = config.generator.conditions, config.synthesize
    if synthesize.method == "inpaint":
        return ""
    records = sources.load(config_lib.build(config_lib.DataConfig, config.data)).records()
    known = {"mask": False, "boxes": False}
    for record in records:
        known = {
            "mask": known["mask"] or bool(record.masks),
            "boxes": known["boxes"] or bool(record.boxes),
        }
    if not any(known.values()):
        return f"{config.data.source} has neither lesion masks nor boxes to paint in"
    told = "mask" if known["mask"] else "boxes"
    # A label that is dropped alone leaves the surroundings: guidance has them on both sides.
    conditions.update(inpaint=True, label_dropout=conditions.label_dropout or 0.1)
    if told == "mask":
        conditions.mask = True
    elif conditions.boxes == "none":
        conditions.boxes = "channel"
    synthesize.update(method="inpaint", given=("label", told))
    return ""


def _remove_inpainting(config: Any) -> None:
    config.generator.conditions.update(inpaint=False, mask=False)
    # All else that the full system is given, so that nothing but the painting differs.
    given = tuple(name for name in config.synthesize.given if name != "mask")
    config.synthesize.update(method="generate", given=given)


def _add_lora(config: Any) -> str:
    if not config.generator.adapt.base:
        return "no trained generator to adapt: --base, or config.generator.adapt.base"
    config.generator.adapt.method = "lora"
    return ""


def _remove_lora(config: Any) -> None:
    config.generator.adapt.base = ""


def _add_policy(config: Any) -> str:
    if not config.data.manifest and not config.data.split.policy_val:
        return "config.data.split.policy_val is empty, from which the policy learns"
    _arm(config).update(controller="policy", sampler=config.mixing.sampler)
    config.classify.rounds = config.mixing.rounds
    return ""


def _remove_policy(config: Any) -> None:
    _arm(config).controller = RULE


def _add_balancing(config: Any) -> str:
    _arm(config).loss = LOSS
    config.mixing.proxy.loss = LOSS  # what the policy learns on trains as the classifier does
    return ""


def _remove_balancing(config: Any) -> None:
    _arm(config).loss = "cross_entropy"
    config.mixing.proxy.loss = "cross_entropy"


def _add_generator_balance(config: Any) -> str:
    if config.generator.sampler == "instance":
        config.generator.sampler = "square_root"
    return ""


def _remove_generator_balance(config: Any) -> None:
    config.generator.update(sampler="instance", cbdm_weight=0.0)


def _remove_synthesis(config: Any) -> None:
    _arm(config).controller = "none"


PARTS: dict[str, Part] = {
    "selection": Part(
        "out-of-distribution and label gates; every image passes", _add_selection, _remove_selection
    ),
    "memorisation_gate": Part("copies are turned away; they stay", _add_gate, _remove_gate),
    "sketch_branch": Part("the perception branch; none", _add_sketch, _remove_sketch),
    "inpainting": Part(
        "lesions painted into images of the head; whole images generated",
        _add_inpainting,
        _remove_inpainting,
    ),
    "lora": Part(
        "a trained generator, adapted; one of the same steps from scratch", _add_lora, _remove_lora
    ),
    "policy": Part("learned shares; every class filled to the head", _add_policy, _remove_policy),
    "balancing": Part(
        "balanced softmax, of classifier and proxy; cross-entropy",
        _add_balancing,
        _remove_balancing,
    ),
    "balanced_generator": Part(
        "rare classes drawn more often in the generator's training, CBDM; as they come",
        _add_generator_balance,
        _remove_generator_balance,
    ),
    "synthesis": Part(
        "all of it; real images alone, with balanced softmax", lambda _: "", _remove_synthesis
    ),
}


def full(shared: ConfigDict, base: str, seeds: int) -> tuple[ConfigDict, dict[str, str]]:
    """The full system, and the parts that it cannot have with the reasons."""
    config: Any = shared.copy_and_resolve_references()
    absent = {}
    with config.unlocked():
        config.generator.adapt.base = base or config.generator.adapt.base
        config.classify.seeds = tuple(range(seeds))
        config.classify.arms = config_lib.arms(**{ARM: {"controller": RULE, "loss": LOSS}})
        config.evaluate.baseline = ARM
        for name, part in PARTS.items():
            if reason := part.add(config):
                absent[name] = reason
    return config, absent


def without(whole: ConfigDict, name: str) -> ConfigDict:
    """The full system less one part."""
    config: Any = whole.copy_and_resolve_references()
    with config.unlocked():
        PARTS[name].remove(config)
    return config


def variants(
    shared: ConfigDict, base: str, seeds: int, some: Sequence[str] = ()
) -> tuple[dict[str, ConfigDict], dict[str, str]]:
    """The configs by variant, the full system first, and the parts that it cannot have.

    Raises ConfigError for a name that is no part.
    """
    if unknown := sorted(set(some) - set(PARTS)):
        raise config_lib.ConfigError(
            f"--parts: got {unknown[0]!r}; takes some of {', '.join(PARTS)}"
        )
    whole, absent = full(shared, base, seeds)
    taken = [name for name in PARTS if name not in absent and (not some or name in some)]
    return {FULL: whole, **{name: without(whole, name) for name in taken}}, absent


def collect(
    runs: Mapping[str, Pipeline], absent: Mapping[str, str], out: pathlib.Path
) -> dict[str, Any]:
    """Opens the test labels once: every variant's metrics, and full minus ablated."""
    left = [name for name in runs if not arms_lib.finished(runs[name].context(), ARM)]
    done = {name: run for name, run in runs.items() if name == FULL or name not in left}
    inputs = arms_lib.gather(done, out, "experiments.ablation", f"{FULL}/{ARM}")
    (out / "report").mkdir(exist_ok=True)
    report = report_lib.write(inputs, out / "report")
    rows = {}
    for arm in report["arms"]:
        name = arm["name"].partition("/")[0]
        rows[name] = {
            "about": PARTS[name].about if name in PARTS else "everything",
            "given": list(runs[name].config.synthesize.given),
            "metrics": {metric: arm["metrics"][metric] for metric in METRICS},
            "full_minus": {
                metric: _negated(arm["paired"][metric]) for metric in METRICS if name != FULL
            },
            "cost": _cost(runs[name], runs[FULL]),
        }
    found = {"variants": rows, "absent": dict(absent), "unfinished": left}
    return report_lib.strict({**found, "comparisons": len(rows) - 1})


def _negated(compared: Mapping[str, Any]) -> dict[str, Any]:
    """Full minus ablated, from ablated minus full."""
    turn = lambda value: None if value is None else -value
    turned = lambda ends: None if ends is None else [-ends[1], -ends[0]]
    return {
        **compared,
        **{name: turn(compared[name]) for name in ("difference", "effect")},
        **{name: turned(compared[name]) for name in ("ci95", "score95")},
    }


def _cost(run: Pipeline, whole: Pipeline) -> dict[str, Any]:
    """FLOPs of all stages of a variant, and of those that the full system does not have."""
    theirs = {spec.key for spec in whole.specs}
    total, own = Ledger(), Ledger()
    for spec in run.specs:
        if spec.stage != "report" and run.store.done(spec):
            total.add(run.store.ledger(spec))
            if spec.key not in theirs:
                own.add(run.store.ledger(spec))
    return {"all": dataclasses.asdict(total), "own": dataclasses.asdict(own)}


def table(results: Mapping[str, Any]) -> tables.Table:
    """A row a variant: its metrics, what the full system has more, and what it costs."""
    rows, told = [], results["variants"][FULL]["given"]
    for name, row in results["variants"].items():
        cells: list[Any] = []
        cells += [tables.cell_from_json(Summary, row["metrics"][metric]) for metric in METRICS]
        for versus in (row["full_minus"].get(metric) for metric in METRICS[:2]):
            cells.append("" if versus is None else tables.cell_from_json(Comparison, versus))
        cost = row["cost"]
        cells.append(f"{cost['all']['flops']:.3g} ({cost['own']['flops']:.3g} of its own)")
        other = "" if row["given"] == told else f" (drawn from {', '.join(row['given'])})"
        rows.append((FULL if name == FULL else f"without {name}{other}", *cells))
    titles = [tables.TITLES[metric] for metric in METRICS]
    versus = [f"Full minus this: {title}" for title in titles[:2]]
    caption = f"Synthetic images are drawn from {', '.join(told)}; Holm over "
    caption += f"{results['comparisons']} comparisons"
    if left := results["unfinished"]:
        caption += f"; not finished, thus in no row and not in the family: {', '.join(left)}"
    return tables.Table(("System", *titles, *versus, "FLOPs"), tuple(rows), f"{caption}.")


def make(runs: Mapping[str, Pipeline]) -> list[str]:
    """Trains one variant after the other; returns those that failed, whose errors are told."""
    failed = []
    for name, run in runs.items():
        try:
            run.run([stage for stage in STAGES if stage != "report"])
        except Preempted:
            raise
        except Exception as error:
            if not isinstance(error, UserError):
                traceback.print_exc()
            say(f"{name}: failed ({error})")
            failed.append(name)
    return failed


def main(_: list[str]) -> None:
    """Trains the variants, or collects what is finished."""
    given = flags.FLAGS
    out = pathlib.Path(given.out)
    # First, since what a system can have is asked of its networks, on a device.
    mesh.configure_devices(given.config.runtime.cpu_devices, str(out / ".jax_cache"))
    configs, absent = variants(given.config, given.base, given.seeds, given.parts)
    runs = {
        name: Pipeline(config, out / name, out / "cache", command=f"experiments.ablation {name}")
        for name, config in configs.items()
    }
    if given.collect:
        results = collect(runs, absent, out)
        files.write_atomically(out / "results.json", json.dumps(results, indent=1), "the results")
        print(tables.to_markdown(table(results)))
    failed = [] if given.collect else make(runs)
    for name, reason in absent.items():
        print(f"{name}: not applicable ({reason})")
    if failed:
        sys.exit(
            f"lt_jax: {', '.join(failed)}: failed, see above; the same command tries them again"
        )


if __name__ == "__main__":
    command.define_config("of the system")
    flags.DEFINE_string("out", None, "folder of the workdirs and their cache", required=True)
    flags.DEFINE_string("base", "", "generator folder that LoRA adapts")
    flags.DEFINE_integer("seeds", 3, "classifiers a variant", lower_bound=2)
    flags.DEFINE_list("parts", [], "some of them, beside the full system; default: all")
    flags.DEFINE_bool("collect", False, "make the table of what is finished")
    command.experiment(main)

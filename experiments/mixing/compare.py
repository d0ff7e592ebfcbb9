r"""Is a learned policy worth more than simple rules? All controllers at equal classifier steps.

    python -m experiments.mixing.compare --config=configs/digits.py --out=runs/mixing
    python -m experiments.mixing.compare --config=configs/digits.py --out=runs/mixing --collect

One generator, extractor and pool; one stage `mixing`, which learns a policy a seed on a proxy that
trains with the arms' loss; then every arm at the same steps, batch size and rounds, and `--seeds`
classifiers each. The first command trains, the second opens the test labels once, compares all
arms with real images alone, with the uniform dose and with filling to the head, and writes
results.json. Arms that mirror the policy: `shuffled` gives each class another one's share,
`replay` has repeated real images in its slots.
"""

import json
import pathlib
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from experiments import arms as arms_lib
from lt_jax import command
from lt_jax import config as config_lib
from lt_jax.evaluate import report as report_lib
from lt_jax.evaluate.statistics import tables
from lt_jax.pipeline import Pipeline
from lt_jax.runtime import files, mesh
from lt_jax.specs import STAGES

REAL = "real"  # its loss is that of all arms
LEVELS = (0.2, 0.4, 0.6, 0.8)
METRICS = ("balanced_accuracy", "recall_tail", "recall_head")
RIVALS = (REAL, "uniform", "fill_to_head")


def controllers(loss: str, fill_to: int) -> dict[str, dict[str, Any]]:
    """The arms by name."""
    rules: dict[str, dict[str, Any]] = {
        REAL: {},
        "uniform": {"controller": "uniform", "dose": 1.0},
        "fill_to_head": {"controller": "fill_to_head", "fill_to": fill_to},
        **{f"fixed_{s:g}": {"controller": "fixed_share", "share": s} for s in LEVELS},
        "inverse": {"controller": "inverse", "dose": 1.0},
        "effective_number": {"controller": "effective_number"},
        "accuracy_adaptive": {"controller": "accuracy_adaptive", "share": LEVELS[-1]},
        "bandit": {"controller": "bandit", "levels": (0.0, *LEVELS)},
        "random_search": {"controller": "random_search"},
        "mixing_policy": {"controller": "policy"},
        "policy_schedule": {"controller": "policy_schedule"},
        "shuffled": {"controller": "shuffled", "of": "policy"},
        "replay": {"controller": "source_replay", "of": "policy"},
    }
    return {
        "ce": {},  # real images alone, uncorrected, whatever the loss
        **{name.replace(".", ""): {**rule, "loss": loss} for name, rule in rules.items()},
    }


def configure(shared: ConfigDict, loss: str, seeds: int, fill_to: int, some: list[str]) -> Any:
    """`shared` with these arms, a proxy of their loss, and as many policies as classifiers."""
    config: Any = shared.copy_and_resolve_references()
    wanted = controllers(loss, fill_to)
    if unknown := set(some) - set(wanted):
        raise config_lib.ConfigError(
            f"--arms: got {', '.join(sorted(unknown))}; takes some of {', '.join(wanted)}"
        )
    with config.unlocked():
        config.mixing.levels = (0.0, *LEVELS)
        config.mixing.proxy.loss = loss
        config.mixing.policy.seeds = tuple(range(seeds))  # each classifier's seed has its own
        config.classify.rounds = config.mixing.rounds
        config.classify.seeds = tuple(range(seeds))
        config.classify.arms = config_lib.arms(
            **{name: arm for name, arm in wanted.items() if not some or name in (REAL, *some)}
        )
        config.evaluate.baseline = REAL
    return config


def table(results: dict[str, Any]) -> tables.Table:
    """Every arm, and its difference to each of the rivals; n: seeds."""
    rivals, rows = list(results["paired"]), []
    for arm in results["report"]["arms"]:
        gap = arm["policy_val_minus_test"]
        cells = [arms_lib.mean_cell(arm["metrics"][name]) for name in METRICS]
        cells += [arms_lib.mean_cell(gap) if gap else "none"]
        cells += [arms_lib.versus_cell(results["paired"][rival][arm["name"]]) for rival in rivals]
        rows.append((arm["name"].partition("/")[2], *cells))
    titles = (*(tables.TITLES[name] for name in METRICS), "policy_val minus test")
    versus = (f"Minus {name.partition('/')[2]}" for name in rivals)
    return tables.Table(("Arm", *titles, *versus), tuple(rows))


def main(_: list[str]) -> None:
    """Trains, or collects what is finished."""
    given = flags.FLAGS
    out = pathlib.Path(given.out)
    mesh.configure_devices(given.config.runtime.cpu_devices, str(out / ".jax_cache"))
    config = configure(given.config, given.loss, given.seeds, given.fill_to, given.arms)
    run = Pipeline(config, out / "run", out / "cache", command="experiments.mixing.compare")
    if not given.collect:
        run.run([stage for stage in STAGES if stage != "report"], accept_config_change=True)
        return
    present = [name for name in RIVALS if name in config.classify.arms]
    rivals = [f"{arms_lib.BASELINE}/{name}" for name in present]
    found = arms_lib.collect(
        {arms_lib.BASELINE: run}, out, "experiments.mixing.compare", tuple(rivals)
    )
    results = report_lib.strict(found)
    files.write_atomically(out / "results.json", json.dumps(results, indent=1), "the results")
    print(tables.to_markdown(table(results)))


if __name__ == "__main__":
    command.define_config("of data, generator and recipe")
    flags.DEFINE_string("out", None, "the workdir's folder, and the cache", required=True)
    losses = ["balanced_softmax", "cross_entropy"]
    flags.DEFINE_enum("loss", losses[0], losses, "of arms and proxy")
    flags.DEFINE_integer("seeds", 5, "classifiers an arm", lower_bound=2)
    flags.DEFINE_integer("fill_to", 0, "images a class is filled to; 0: the head's count")
    flags.DEFINE_list("arms", [], "some of them; default: all")
    flags.DEFINE_bool("collect", False, "make the table of what is finished")
    command.experiment(main)

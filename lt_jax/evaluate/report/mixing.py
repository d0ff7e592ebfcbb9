"""Mixing in the report: shares by class and round, what was learned, and what policy_val flatters.

Whatever learns from policy_val, by feedback or through a policy, may fit it: the reward is measured
there. How far it did is the gap

  g = balanced accuracy on policy_val - balanced accuracy on test                          (1)

of the same run, paired over seeds; an arm that never looked at policy_val says what gap the draw of
the two splits makes by itself. Nothing here but g and the accuracy on test depends on test labels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lt_jax.evaluate import metrics, statistics
from lt_jax.evaluate.metrics import PRIMARY
from lt_jax.evaluate.report import summary
from lt_jax.evaluate.report.inputs import Arm, Dataset, Learning, ReportInputs, sorted_runs
from lt_jax.evaluate.statistics import ArmStatistics, Summary, tables

# Shares no further apart have one colour: the whole images of rules of counts make such a spread.
ALIKE = 0.01
# Columns of a table of shares and rows of one of curves; report.json holds all of them.
ROUNDS = 12
UPDATES = 16
REAL_ONLY = "fixed 0"
# Curves that are shown: name -> title.
CURVES = {
    "return_mean": "Return of the team",
    "entropy": "Entropy (nats an agent)",
    "explained_variance": "Explained variance of the return",
    "kl": "KL of an update (nats an agent)",
}
RULES = {
    "policy": "policy, acting",
    "policy_schedule": "policy, its schedule replayed",
    "random_search": "random search",
    REAL_ONLY: "real images alone",
}


def shares_of(arm: Arm) -> Float[np.ndarray, "s r k"] | None:
    """Synthetic share of each class's draws by seed (ascending) and round; None where unknown."""
    shares = [run.shares for run in sorted_runs(arm) if run.shares is not None]
    return np.stack(shares) if shares else None


def varied(arms: Sequence[Arm]) -> dict[str, Float[np.ndarray, "s r k"]]:
    """Shares of the arms that draw from a pool, in shares that differ between rounds or classes."""
    held = {arm.name: shares_of(arm) for arm in arms if arm.uses_pool}
    return {
        name: shares
        for name, shares in held.items()
        if shares is not None and np.ptp(shares, axis=(1, 2)).max() > ALIKE
    }


def by_count(counts: Sequence[int], most: int) -> Int[np.ndarray, "c"]:
    """Class indices of the `most` rarest classes, the most frequent of them first."""
    rarest = np.sort(np.argsort(counts, kind="stable")[:most])
    return rarest[np.argsort(-np.asarray(counts)[rarest], kind="stable")]


def accuracies(arm: Arm, data: Dataset, test: Summary) -> dict[str, Summary | None]:
    """Balanced accuracy on "policy_val", "val" and "test", and the "gap" of equation (1).

    None where a split is empty, or was not predicted by every run. `test` is over the same runs.
    """
    policy_val = summary.on_policy_val(arm, data)
    gap = None
    if policy_val is not None:
        pairs = np.array([policy_val.values, test.values], float)  # None becomes NaN
        gap = statistics.summarise(pairs[0] - pairs[1])
    return {"policy_val": policy_val, "val": summary.on_val(arm, data), "test": test, "gap": gap}


def learning_summary(found: Learning | None) -> dict[str, Any] | None:
    """What report.json keeps of the stage mixing; None where no policy was learned.

    Returns:
      {"seeds", "trainings": of the classifier that each policy took, "reference_runs",
       "curves": {name: {"mean": [u], "std": [u] or None, "values": [s][u]}},
       "returns": {rule: a summary over seeds, and "episodes": by seed "mean", "std" and "n"},
       "minus_real_only": {rule: a summary of differences, paired over seeds}, empty where the
         return on real images alone is unknown,
       "importance": {observation: a summary over seeds}}
    """
    if found is None:
        return None
    curves = {
        name: {
            "mean": values.mean(axis=0),
            "std": values.std(axis=0, ddof=1) if len(values) > 1 else None,
            "values": values,
        }
        for name, values in found.curves.items()
    }
    returns = {
        rule: {**tables.cell_to_json(cell), "episodes": found.returns[rule]}
        for rule, cell in _returns(found).items()
    }
    gained = {rule: tables.cell_to_json(cell) for rule, cell in _gained(found).items()}
    importance = {name: tables.cell_to_json(cell) for name, cell in _importance(found).items()}
    return {
        "seeds": found.seeds,
        "trainings": found.trainings,
        "reference_runs": found.reference_runs,
        "curves": curves,
        "returns": returns,
        "minus_real_only": gained,
        "importance": importance,
    }


def _returns(found: Learning) -> dict[str, Summary]:
    return {
        rule: statistics.summarise(np.array([entry["mean"] for entry in entries], float))
        for rule, entries in found.returns.items()
    }


def _gained(found: Learning) -> dict[str, Summary]:
    """Each rule's return minus that on real images alone, of the same seed's episodes."""
    values = {rule: np.array(cell.values, float) for rule, cell in _returns(found).items()}
    if REAL_ONLY not in values:
        return {}
    plain = values.pop(REAL_ONLY)
    return {rule: statistics.summarise(own - plain) for rule, own in values.items()}


def _importance(found: Learning) -> dict[str, Summary]:
    """By observation, the most important first; those that are undefined come last."""
    order = np.argsort(-found.importance.mean(axis=0), kind="stable")
    return {found.observations[o]: statistics.summarise(found.importance[:, o]) for o in order}


def section(inputs: ReportInputs, plain: Mapping[str, ArmStatistics], most: int) -> dict[str, Any]:
    """The section's tables as text, of the `most` rarest classes; None or nothing where empty.

    Returns:
      {"shares": {arm: grid}, "learning": {"returns", "episodes", "curves", "importance"} or None,
       "overfitting": grid, "measured": whether policy_val has images, "absent": classes without
       any there}; a grid is {"columns", "rows", "one_seed"}.
    """
    data, found = inputs.dataset, inputs.learning
    order = by_count(data.train_counts, most)
    labels = data.policy_val_labels
    absent = [] if labels is None else metrics.absent_classes(labels, len(data.classes))
    tests = {name: s.summaries[PRIMARY] for name, s in plain.items()}
    return {
        "shares": {
            name: _grid(shares_table(shares[..., order], [data.classes[c] for c in order]))
            for name, shares in varied(inputs.arms).items()
        },
        "learning": None if found is None else _learning(found),
        "overfitting": _grid(overfitting_table(inputs.arms, data, tests)),
        "measured": labels is not None and len(labels) > 0,
        "absent": [data.classes[c] for c in absent],
    }


def _learning(found: Learning) -> dict[str, Any]:
    return {
        "returns": _grid(returns_table(found)),
        "episodes": _grid(episodes_table(found)),
        "curves": _grid(curves_table(found)),
        "importance": _grid(importance_table(found)),
    }


def shares_table(shares: Float[np.ndarray, "s r c"], names: Sequence[str]) -> tables.Table:
    """Classes by rounds, counted from 1: mean and spread over seeds; of many rounds a selection."""
    rounds = _spaced(shares.shape[1], ROUNDS)
    rows = [
        (name, *(statistics.summarise(shares[:, r, c]) for r in rounds))
        for c, name in enumerate(names)
    ]
    return tables.Table(("Class", *(f"Round {r + 1}" for r in rounds)), tuple(rows), digits=2)


def returns_table(found: Learning) -> tables.Table:
    """Rules by return on the proxy, and that minus the return on real images alone."""
    gained = _gained(found)
    rows = [
        (RULES.get(rule, rule), cell, gained.get(rule, ""))
        for rule, cell in _returns(found).items()
    ]
    columns = ("Rule", "Return on the proxy", "Minus real images alone")
    return tables.Table(columns, tuple(rows), digits=4)


def episodes_table(found: Learning) -> tables.Table:
    """Rules by seed: mean and spread over that seed's episodes, and their number."""
    rows = [
        (RULES.get(rule, rule), *(_episodes(entry) for entry in entries))
        for rule, entries in found.returns.items()
    ]
    return tables.Table(("Rule", *(f"Seed {seed}" for seed in found.seeds)), tuple(rows))


def _episodes(entry: Mapping[str, Any]) -> str:
    mean, std = np.array([entry["mean"], entry["std"]], float)  # None becomes NaN
    if np.isnan(mean):
        return tables.UNDEFINED
    spread = "" if np.isnan(std) else f" ± {std:.4f}"
    return f"{mean:.4f}{spread} ({entry['n']} episodes)"


def curves_table(found: Learning) -> tables.Table:
    """Some updates, the last among them, by classifier trainings spent until then."""
    shown = {name: title for name, title in CURVES.items() if name in found.curves}
    spent = found.curves["trainings"].mean(axis=0)
    known = np.flatnonzero(np.isfinite(spent))
    rows = [
        (int(spent[u]), *(statistics.summarise(found.curves[name][:, u]) for name in shown))
        for u in known[_spaced(len(known), UPDATES)]
    ]
    return tables.Table(("Trainings", *shown.values()), tuple(rows), digits=4)


def importance_table(found: Learning) -> tables.Table:
    """Observations by importance, the most important first."""
    rows = tuple(_importance(found).items())
    return tables.Table(("Observation", "Importance (nats an agent)"), rows, digits=4)


def overfitting_table(
    arms: Sequence[Arm], data: Dataset, tests: Mapping[str, Summary]
) -> tables.Table:
    """Arms by balanced accuracy on the three splits, and equation (1)."""
    rows = []
    for arm in arms:
        cells = accuracies(arm, data, tests[arm.name]).values()
        rows.append((arm.name, *(tables.UNDEFINED if cell is None else cell for cell in cells)))
    columns = ("Arm", "policy_val", "val", "test", "policy_val minus test")
    return tables.Table(columns, tuple(rows))


def _spaced(n: int, most: int) -> Int[np.ndarray, "m"]:
    """At most so many of n indices, evenly spread, first and last among them."""
    return np.unique(np.linspace(0, max(n - 1, 0), min(n, most)).round().astype(int))


def _grid(table: tables.Table) -> dict[str, Any]:
    rows = [[tables.format_cell(cell, table.digits) for cell in row] for row in table.rows]
    return {"columns": table.columns, "rows": rows, "one_seed": table.has_single_seed()}


def doses(arms: Sequence[Mapping[str, Any]], data: Dataset, most: int) -> dict[str, Any] | None:
    """Arms with synthetic images (or repeats) by class: dose, mean share and what was lacking.

    Args:
      arms: as in report.json.
      data: class names and counts.
      most: rarest classes to show.
    """
    used = [arm for arm in arms if any(arm["doses"] or ()) or any(arm["unmet"] or ())]
    if not used:
        return None
    rows = []
    for c in np.argsort(data.train_counts, kind="stable")[:most].tolist():
        cells = []
        for arm in used:
            notes = []
            if arm["shares"]:
                notes.append(f"share {np.mean(arm['shares'], axis=0)[c]:.2f}")
            if arm["unmet"] and arm["unmet"][c]:
                notes.append(f"{arm['unmet'][c]:,} lacking")
            cells.append((f"{arm['doses'][c]:.2f}" if arm["doses"] else "", ", ".join(notes)))
        rows.append((data.classes[c], cells))
    return {"arms": [arm["name"] for arm in used], "rows": rows}

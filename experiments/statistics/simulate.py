"""Coverage of the intervals and size of the tests, as tables.

    python -m experiments.statistics.simulate --simulations=1000

Expected time: 5 minutes of one core for 1,000 simulations, 3 of them for differences. Figures are
in README.md.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags

from experiments.statistics import coverage, size
from lt_jax import command
from lt_jax.evaluate.statistics import tables
from lt_jax.evaluate.statistics.intervals import Proportion

_SIMULATIONS = flags.DEFINE_integer("simulations", 1000, "test sets drawn a row", lower_bound=10)
_KINDS = ["coverage", "paired", "size"]
_TABLES = flags.DEFINE_multi_enum("table", _KINDS, _KINDS, "which")
_RESAMPLES = flags.DEFINE_integer("resamples", 1000, "of each bootstrap", lower_bound=100)

# Metrics whose permutation test is followed.
PERMUTED = ("accuracy", "balanced_accuracy", "auroc_macro", "auprc_macro", "brier")


def coverage_table(simulations: int, resamples: int) -> tables.Table:
    """Designs and quantities by method."""
    found = coverage.rows(coverage.DESIGNS, simulations, resamples)
    return _by_method(found, coverage.METHODS, "true value {:.3f}")


def paired_table(simulations: int, resamples: int) -> tables.Table:
    """Designs and quantities by method, of the difference of two arms."""
    found = coverage.paired_rows(coverage.PAIRED_DESIGNS, simulations, resamples)
    return _by_method(found, coverage.METHODS, "true difference {:+.3f}")


def _by_method(found: Iterable[Any], methods: Sequence[str], truth: str) -> tables.Table:
    """A row a design and quantity, of which `truth` words the true value."""
    body = tuple(
        (design, name, truth.format(true), *(by[method] for method in methods))
        for design, name, true, by in found
    )
    return tables.Table(("Test set", "Quantity", "", *methods), body)


def size_table(simulations: int) -> tables.Table:
    """Tests by design; McNemar's are summed exactly and so have no interval."""
    rows: list[tuple[str, str, Proportion | str]] = []
    for positives, negatives in ((25, 25), (10, 40), (2, 48), (10, 190), (100, 100)):
        found = size.delong(positives, negatives, simulations)
        rows.append(("DeLong", f"{positives} positives, {negatives} negatives", found))
    for positives, negatives in ((10, 40), (50, 150)):
        found = size.delong(positives, negatives, simulations, a_group=3)
        rows.append(("DeLong, groups of 3", f"{positives} and {negatives} groups", found))
    for method in ("mid_p", "exact", "chi2"):
        for n, discordant in ((50, 0.1), (50, 0.3), (200, 0.1), (200, 0.3), (1000, 0.1)):
            exactly = size.mcnemar(method, n, discordant)
            design = f"n = {n}, discordant {discordant:.0%}"
            rows.append((f"McNemar, {method}", design, f"{exactly:.2%} (exact)"))
    for n in (50, 200):
        found = size.mcnemar_groups(n, 3, simulations)
        rows.append(("McNemar, groups of 3", f"{n} groups", found))
    for counts in (size.SMALL, size.LARGE):
        design = "classes of " + ", ".join(map(str, counts))
        for metric, found in size.permutations(counts, simulations).items():
            if metric in PERMUTED:
                rows.append((f"Permutation, {metric}", design, found))
    by_folds = ("corrected_10_fold", "corrected_10_fold_thinned", "corrected_3_fold_thinned")
    for test in ("corrected", "uncorrected", *by_folds, "t_5x2", "f_5x2"):
        rows.append((f"Folds, {test}", "n = 200", size.folds(test, simulations)))
    return tables.Table(("Test at 5%", "Design", "Rejected under the null"), tuple(rows))


def main(_: list[str]) -> None:
    """Prints the tables in Markdown."""
    if "coverage" in _TABLES.value:
        print(tables.to_markdown(coverage_table(_SIMULATIONS.value, _RESAMPLES.value)), flush=True)
        print()
    if "paired" in _TABLES.value:
        print(tables.to_markdown(paired_table(_SIMULATIONS.value, _RESAMPLES.value)), flush=True)
        print()
    if "size" in _TABLES.value:
        print(tables.to_markdown(size_table(_SIMULATIONS.value)))


if __name__ == "__main__":
    command.experiment(main)

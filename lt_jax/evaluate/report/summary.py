"""The report in words, and which arm on real images alone the pool arms have to beat.

That arm is chosen by balanced accuracy on val, never on test: the best of several on test would be
flattered by the choice, and the pool arms would be held against luck. Where val is not known of
every arm, or is no split apart (the folds of a cross-validation), none is chosen.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from lt_jax.evaluate import metrics, statistics
from lt_jax.evaluate.metrics import PRIMARY
from lt_jax.evaluate.report.inputs import Arm, Dataset, ReportInputs, sorted_runs
from lt_jax.evaluate.statistics import ArmStatistics, Comparison, Summary, tables


def on_val(arm: Arm, data: Dataset) -> Summary | None:
    """Balanced accuracy on val; None unless every run has its logits there."""
    return _balanced([run.val_logits for run in sorted_runs(arm)], data.val_labels, arm, "val")


def on_policy_val(arm: Arm, data: Dataset) -> Summary | None:
    """Balanced accuracy on policy_val; None unless every run has its logits there."""
    logits = [run.policy_val_logits for run in sorted_runs(arm)]
    return _balanced(logits, data.policy_val_labels, arm, "policy_val")


def _balanced(
    logits: Sequence[np.ndarray | None], labels: np.ndarray | None, arm: Arm, split: str
) -> Summary | None:
    held = [run for run in logits if run is not None]
    if labels is None or len(labels) == 0 or len(held) < len(logits):
        return None
    where = f"{split} predictions of arm {arm.name!r} (runs by ascending seed)"
    probabilities: Float[np.ndarray, "m v k"] = metrics.softmax(np.stack(held), where)
    return statistics.summarise(metrics.balanced_accuracy(probabilities, labels))


def best_on_val(arms: Sequence[Arm], data: Dataset) -> str | None:
    """The arm with the highest mean on val, the first of equals; None unless all are known."""
    means = {arm.name: s.mean for arm in arms if (s := on_val(arm, data)) and s.mean is not None}
    if not arms or len(means) < len(arms):
        return None
    return max(means, key=lambda name: means[name])


def rival(inputs: ReportInputs) -> tuple[str | None, list[str]]:
    """The best arm on real images alone, by val, and the pool arms that are compared with it."""
    pooled = [arm.name for arm in inputs.arms if arm.uses_pool]
    real = [arm for arm in inputs.arms if not arm.uses_pool]
    return (best_on_val(real, inputs.dataset) if pooled else None), pooled


def paragraph(inputs: ReportInputs, plain: dict[str, ArmStatistics]) -> str:
    """What the numbers say of balanced accuracy, in a few sentences."""
    data, baseline = inputs.dataset, inputs.evaluate.baseline
    groups = len(np.unique(np.asarray(data.test_groups)))
    cell = {name: tables.format_cell(s.summaries[PRIMARY]) for name, s in plain.items()}
    sentences = [
        f"On {data.name} ({len(data.classes)} classes, {len(data.test_labels):,} test images in "
        f"{groups:,} groups), the baseline {baseline} reaches a balanced accuracy of "
        f"{cell[baseline]}."
    ]
    compared = {n: s.comparisons[PRIMARY] for n, s in plain.items() if s.comparisons}
    if len(plain) == 1:
        return f"{sentences[0]} There is no other arm to compare it with."
    if compared:
        sentences.append(
            f"{_who_beats(compared, 'it', 'other')} (significantly: 95% interval above zero and "
            "Holm-corrected p below 0.05)."
        )
    sentences += _on_real_images(inputs, plain, cell)
    defined = {n: s.summaries[PRIMARY].mean or 0.0 for n, s in plain.items()}
    best = max(defined, key=lambda name: defined[name])
    sentences.append(
        f"The highest mean is that of {best}, {cell[best]}; the highest of {len(plain)} is "
        "flattered by being chosen."
    )
    if any(s.summaries[PRIMARY].n == 1 for s in plain.values()):
        sentences.append(f"* {tables.ONE_SEED.capitalize()}.")
    return " ".join(sentences)


def _who_beats(compared: dict[str, Comparison], whom: str, kind: str) -> str:
    better = {name: c for name, c in compared.items() if c.better(PRIMARY)}
    arms = f"the {len(compared)} {kind} arm" + "s" * (len(compared) > 1)
    if not better and len(compared) == 1:
        return f"The only {kind} arm does not beat {whom} significantly"
    if not better:
        return f"None of {arms} beats {whom} significantly"
    listed = ", ".join(f"{n} ({tables.comparison_parts(c)[0]})" for n, c in better.items())
    verb = "beats" if len(better) == 1 else "beat"
    return f"{len(better)} of {arms} {verb} {whom} significantly: {listed}"


def _on_real_images(
    inputs: ReportInputs, plain: dict[str, ArmStatistics], cell: dict[str, str]
) -> list[str]:
    """Balanced softmax, the best arm on real images by val, and the pool arms against it."""
    sentences = [
        f"On real images alone, balanced softmax ({arm.name}) reaches {cell[arm.name]}: what "
        "anything with synthetic images has to beat."
        for arm in inputs.arms
        if arm.controller == "none" and arm.loss == "balanced_softmax" and not arm.uses_pool
    ]
    name, pooled = rival(inputs)
    if pooled and name is None:
        sentences.append(
            "There are no predictions on val, apart from test, to say which arm on real images "
            f"alone is the best, so that pool arms are held against {inputs.evaluate.baseline} "
            "alone."
        )
    against = {n: plain[n].against_rival[PRIMARY] for n in pooled if plain[n].against_rival}
    if name is None or not against:
        return sentences
    sentences.append(
        f"Of the arms on real images alone {name} is the best on val, with {cell[name]} on test. "
        f"{_who_beats(against, name, 'pool')}."
    )
    chosen = best_on_val([arm for arm in inputs.arms if arm.uses_pool], inputs.dataset)
    if chosen is not None:
        difference = ", ".join(tables.comparison_parts(against[chosen]))
        sentences.append(
            f"The pool arm that is best on val, {chosen}, differs from it by {difference}."
        )
    return sentences

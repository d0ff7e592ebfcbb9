"""The privacy audit: how near released images come to train, and who was in train, by its losses.

Nearest neighbours, after BUSGen (Yu et al. 2025, arXiv:2501.06869): of each synthetic image the
likeness to the train image most like it, beside that of held-out real images, class by class. In
either the same distribution is meant where the generator has learned its class and copied nothing:

  KS     sup_x |F_synthetic(x) - F_val(x)|, two-sided, and one-sided for "synthetic is nearer" (1)
  beyond number K of n synthetic images more like train than the most alike of m val images:
         K ~ BetaBinomial(n, 1, m), P(K >= k) = prod_{i < k} (n - i) / (n + m - i)            (2)

In (2) a fresh image is beyond with probability 1 / (m + 1), but all n are held against one and the
same val image, so that K varies far more than a binomial: its share has the null's quantiles beside
it, and p, and no interval of independent trials. Both take independent images: one of each group of
val, drawn by seed. For all classes together, (1) takes as many images of each class from both
sides, or it would see that a pool is composed otherwise than val; (2) adds up the classes, each
held against its own val images, as independent.

Membership: an attacker guesses by the generator's loss (`diffusion.membership`) which images were
in train. Members are train images and non-members held-out ones of the same classes, as many of
each class. AUROC is 1/2 where nothing shows; whom the attacker is sure of, the true positive rate
at a false positive rate of 1% says (`roc`).

Three attackers: by the loss at one time; by its mean over times, each log-loss less its mean and
over its deviation over all audited images, which needs no knowledge of who is a member; and one
that has learned from other members and non-members which times to trust (`cross_fitting`), and is
judged fold by fold. The attack is of the plain kind: shadow generators trained with and without an
image see more, so that 1/2 here is no proof, and more than 1/2 is one.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from lt_jax.errors import UserError
from lt_jax.evaluate.images import cross_fitting, roc
from lt_jax.evaluate.images.cross_fitting import Area
from lt_jax.evaluate.statistics import intervals, multiplicity

QUANTILES = {"p5": 0.05, "median": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
BINS = 40


class PrivacyError(UserError, ValueError):
    """Images or losses that nothing can be told from."""


def nearness(
    synthetic: Mapping[str, Float[np.ndarray, "n"]],
    labels: Int[np.ndarray, "n"],
    val: Mapping[str, Float[np.ndarray, "v"]],
    val_labels: Int[np.ndarray, "v"],
    val_groups: Int[np.ndarray, "v"],
    classes: Sequence[str],
    seed: int = 0,
) -> dict[str, Any]:
    """Likeness of synthetic and of held-out images to the nearest train image, compared.

    Args:
      synthetic, val: by measure ("cosine", "ms_ssim"), of each image; higher is more alike, NaN
        where it was not measured.
      labels, val_labels: classes of the images, from 0.
      val_groups: of val images.
      classes: names.
      seed: of the images that stand for a group, and for a class among all.

    Returns:
      JSON-able {measure: {"edges": [BINS + 1], "classes": [{"class", an entry}], "overall": an
      entry of as many images of each class on both sides}}. An entry is {"n", "n_val": images,
      "synthetic" and "val": {*QUANTILES, "histogram": [BINS]}, "ks": {"statistic", "p",
      "p_nearer", "n", "n_val": images of the test} and Holm's "p_holm" over classes, "beyond":
      {"count", "n", "n_val", "share", "expected", "expected95": share and its middle 95% if alike,
      "p": one-sided, of no fewer} and "p_holm", "reasons": {what is None: why}}. In the overall
      entry "beyond" counts images beyond their own class's val maximum.

    Raises:
      PrivacyError: no synthetic or no val image was measured.
    """
    found = {}
    for measure, values in synthetic.items():
        here, there = ~np.isnan(values), ~np.isnan(val[measure])
        if not here.any() or not there.any():
            raise PrivacyError(
                f"audit nearness, {measure}: {here.sum()} synthetic and {there.sum()} val images "
                "were compared with train; takes one at least of both (accepted images in the "
                "pool, and config.data.split.val above 0)"
            )
        found[measure] = _measure(
            _Side(values[here], labels[here], np.arange(int(here.sum()))),
            _Side(val[measure][there], val_labels[there], val_groups[there]),
            classes,
            seed,
        )
    return found


class _Side:
    """Values [n] of some images, their classes and groups [n]."""

    def __init__(self, values: np.ndarray, labels: np.ndarray, groups: np.ndarray):
        self.values, self.labels, self.groups = values.astype(float), labels, groups

    def of(self, rows: np.ndarray) -> "_Side":
        return _Side(self.values[rows], self.labels[rows], self.groups[rows])

    def one_a_group(self, rng: np.random.Generator) -> "_Side":
        order = rng.permutation(len(self.values))
        return self.of(order[np.unique(self.groups[order], return_index=True)[1]])


def _measure(synthetic: _Side, val: _Side, classes: Sequence[str], seed: int) -> dict[str, Any]:
    both = np.concatenate([synthetic.values, val.values])
    edges = np.linspace(min(float(np.quantile(both, 0.005)), 1 - 1e-6), 1.0, BINS + 1)
    entries, matched = [], ([], [])
    for k, name in enumerate(classes):
        rng = np.random.default_rng((seed, k))
        mine, theirs = (side.of(np.flatnonzero(side.labels == k)) for side in (synthetic, val))
        entries.append({"class": name, **_entry(mine, theirs, edges, rng)})
        count = min(len(mine.values), len(theirs.values))
        for side, into in zip((mine, theirs), matched, strict=True):
            into.append(side.of(rng.permutation(len(side.values))[:count]))
    for test in ("ks", "beyond"):
        correct(entry[test] for entry in entries)
    rng = np.random.default_rng((seed, len(classes)))
    overall = _entry(_joined(matched[0]), _joined(matched[1]), edges, rng)
    own = [entry["beyond"] for entry in entries if entry["beyond"]]
    overall["beyond"] = _beyond([(b["count"], b["n"], b["n_val"]) for b in own]) if own else None
    return {"edges": edges.tolist(), "classes": entries, "overall": overall}


def _joined(sides: Sequence[_Side]) -> _Side:
    return _Side(
        *(np.concatenate([getattr(s, n) for s in sides]) for n in ("values", "labels", "groups"))
    )


def _entry(
    synthetic: _Side, val: _Side, edges: Float[np.ndarray, "e"], rng: np.random.Generator
) -> dict[str, Any]:
    n, m = len(synthetic.values), len(val.values)
    entry: dict[str, Any] = {"n": n, "n_val": m, "ks": None, "beyond": None, "reasons": {}}
    for name, side in (("synthetic", synthetic), ("val", val)):
        at = np.quantile(side.values, list(QUANTILES.values())) if len(side.values) else [None] * 5
        counts = np.histogram(np.clip(side.values, edges[0], edges[-1]), edges)[0]
        entry[name] = dict(zip(QUANTILES, at, strict=True)) | {"histogram": counts.tolist()}
    if not n or not m:
        reason = f"{n} synthetic and {m} val images; takes one of both"
        return entry | {"reasons": {"ks": reason, "beyond": reason}}
    from scipy.stats import ks_2samp

    alone = val.one_a_group(rng)
    two_sided = ks_2samp(synthetic.values, alone.values)
    # F_synthetic below F_val: synthetic images have the higher likeness.
    nearer = ks_2samp(synthetic.values, alone.values, alternative="less")
    entry["ks"] = {
        "statistic": float(two_sided.statistic),  # type: ignore[attr-defined]
        "p": float(two_sided.pvalue),  # type: ignore[attr-defined]
        "p_nearer": float(nearer.pvalue),  # type: ignore[attr-defined]
        "n": n,
        "n_val": len(alone.values),
    }
    count = int((synthetic.values > alone.values.max()).sum())
    entry["beyond"] = _beyond([(count, n, len(alone.values))])
    return entry


def _beyond(parts: Sequence[tuple[int, int, int]]) -> dict[str, Any]:
    """Equation (2) of independent parts (count, n, m), whose counts are added up."""
    from scipy.signal import convolve
    from scipy.stats import betabinom

    chances = np.ones(1)  # of each count in all, if alike
    for _, n, m in parts:
        chances = convolve(chances, betabinom.pmf(np.arange(n + 1), n, 1, m))
    below = np.cumsum(chances)
    count, total, val = (sum(own) for own in zip(*parts, strict=True))
    tails = np.searchsorted(below, [(1 - intervals.LEVEL) / 2, (1 + intervals.LEVEL) / 2])
    return {
        "count": count,
        "n": total,
        "n_val": val,
        "share": count / total,
        "expected": sum(n / (m + 1) for _, n, m in parts) / total,
        "expected95": (tails / total).tolist(),
        "p": float(np.clip(chances[count:].sum(), 0.0, 1.0)),
    }


def attack(
    losses: Float[np.ndarray, "n l"],
    member: Bool[np.ndarray, "n"],
    labels: Int[np.ndarray, "n"],
    groups: Int[np.ndarray, "n"],
    times: Sequence[float],
    classes: Sequence[str],
    folds: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """How well membership is guessed from losses, by each attacker.

    Args:
      losses: of the generator at l times, > 0; see `diffusion.membership`.
      member: whether the image was in train.
      labels, groups: of the images; no group has members and non-members.
      times: of the columns.
      classes: names.
      folds, seed: of the attacker that learns.

    Returns:
      JSON-able {"members", "non_members": images, "times": [{"time", an entry, "median": {"member",
      "non_member"} of the loss}], "mean": an entry, "calibrated": an entry or None,
      "per_class": [{"class", an entry by the mean, or "reason"}], "reasons": {what is None: why}}.
      An entry is {"auroc", "ci95", "p" (against 1/2), "p_holm" (over the times, over "mean" and
      "calibrated", or over the classes), numbers of images and groups, "tpr": `roc.tpr_at`, "roc":
      `roc.curve` (not of a class)}.

    Raises:
      PrivacyError: no member, no non-member, or losses that are not above 0 and finite.
    """
    _check(losses, member, times)
    logs = np.log(losses)
    levels = [_judged(-logs[:, j], member, groups) for j in range(len(times))]
    correct(levels)
    for j, (time, entry) in enumerate(zip(times, levels, strict=True)):
        entry["time"] = float(time)
        middle = lambda who, j=j: float(np.median(losses[who, j]))
        entry["median"] = {"member": middle(member), "non_member": middle(~member)}
    spread = logs.std(axis=0)
    standard = (logs - logs.mean(axis=0)[None]) / np.where(spread > 0, spread, 1.0)[None]
    by_mean = -standard.mean(axis=1)
    fitted = cross_fitting.fit(standard, member, groups, folds, seed)
    calibrated, reasons = None, {}
    if fitted is None:
        reasons["calibrated"] = f"takes {cross_fitting.LEAST} groups of both kinds"
    else:
        calibrated = _judged(fitted.scores, member, groups, fitted.fold)
        calibrated |= {"folds": len(fitted.strengths), "strengths": list(fitted.strengths)}
    found = {"mean": _judged(by_mean, member, groups), "calibrated": calibrated}
    own = [
        {"class": name, **_of_class(by_mean, member, groups, labels == k)}
        for k, name in enumerate(classes)
    ]
    correct(found.values())
    correct(own)
    return {
        "members": int(member.sum()),
        "non_members": int((~member).sum()),
        "times": levels,
        **found,
        "per_class": own,
        "reasons": reasons,
    }


def area_entry(found: Area) -> dict[str, Any]:
    """An AUROC as JSON; "p_holm" is None until a family of tests is corrected (`correct`)."""
    return {
        "auroc": found.auroc,
        "ci95": found.ci95,
        "p": found.p,
        "p_holm": None,
        "n_positive": found.positives,
        "n_negative": found.negatives,
        "groups_positive": found.positive_groups,
        "groups_negative": found.negative_groups,
    }


def correct(family: Iterable[dict[str, Any] | None]) -> None:
    """Sets Holm's "p_holm" in a family of tests, which have "p"; what has none is no test."""
    tests = [entry for entry in family if entry is not None and "p" in entry]
    for test, adjusted in zip(tests, multiplicity.holm([t["p"] for t in tests]), strict=True):
        test["p_holm"] = adjusted


def _judged(
    scores: Float[np.ndarray, "n"],
    member: Bool[np.ndarray, "n"],
    groups: Int[np.ndarray, "n"],
    fold: Int[np.ndarray, "n"] | None = None,
) -> dict[str, Any]:
    found = area_entry(cross_fitting.area(scores, member, groups, fold))
    tpr = roc.tpr_at(scores, member, groups, fold)
    return {**found, "tpr": tpr, "roc": roc.curve(scores, member, fold)}


def _of_class(
    scores: Float[np.ndarray, "n"],
    member: Bool[np.ndarray, "n"],
    groups: Int[np.ndarray, "n"],
    own: Bool[np.ndarray, "n"],
) -> dict[str, Any]:
    members, others = int((own & member).sum()), int((own & ~member).sum())
    if not members or not others:
        return {"reason": f"{members} members and {others} non-members; takes one of both"}
    mine = scores[own], member[own], groups[own]
    return {**area_entry(cross_fitting.area(*mine)), "tpr": roc.tpr_at(*mine)}


def _check(
    losses: Float[np.ndarray, "n l"], member: Bool[np.ndarray, "n"], times: Sequence[float]
) -> None:
    if not member.any() or member.all():
        raise PrivacyError(
            f"audit membership: {member.sum()} members and {(~member).sum()} non-members; takes "
            "train and held-out images of the same classes (config.data.split.val above 0)"
        )
    if losses.shape != (len(member), len(times)) or not len(times):
        raise PrivacyError(
            f"audit membership: losses {losses.shape} of {len(member)} images at {len(times)} "
            "times; takes one of each image at each time, and one time at least"
        )
    if not (np.isfinite(losses) & (losses > 0)).all():
        at = np.argwhere(~(np.isfinite(losses) & (losses > 0)))[0].tolist()
        raise PrivacyError(
            f"audit membership: the loss of image {at[0]} at time {times[at[1]]} is "
            f"{losses[at[0], at[1]]}; takes finite ones above 0: the generator diverged, lower its "
            "learning rate"
        )

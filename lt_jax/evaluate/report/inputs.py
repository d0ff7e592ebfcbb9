"""What the report is made from: predictions, data set, pool, pictures and costs, checked once."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from lt_jax.config import EvaluateConfig
from lt_jax.evaluate.errors import EvaluationError
from lt_jax.evaluate.images import fidelity
from lt_jax.evaluate.images.explained import Pictures
from lt_jax.evaluate.images.fidelity import MEASURES
from lt_jax.evaluate.statistics.detection import Detection

GROUPS = ("head", "medium", "tail")
REASONS = ("ood", "label", "memorised")
ENVIRONMENT = ("python", "jax", "jaxlib", "flax", "device", "device_count")


@dataclasses.dataclass(frozen=True)
class Run:
    """One training of one arm.

    test_logits: [n, k]. log_prior: [k], or [n, k] of each test image where folds are one run: log
    of the label distribution that its loss did not already correct for; zeros for balanced
    softmax. val_logits: [v, k] or None. curves: rows such as
    {"step": 50, "loss": 1.2, "val_balanced_accuracy": 0.4}, any value of which may be missing.
    seconds, images (seen in training), flops: its cost; flops is None where unknown. data_wait:
    those of the seconds in which the loop waited for a batch, or None where unknown.
    policy_val_logits: [p, k] or None. shares: synthetic share of each class's draws, by round, or
    None.
    """

    seed: int
    test_logits: Float[np.ndarray, "n k"]
    log_prior: Float[np.ndarray, "*n k"]
    val_logits: Float[np.ndarray, "v k"] | None = None
    curves: Sequence[Mapping[str, Any]] = ()
    seconds: float = 0.0
    images: int = 0
    flops: float | None = None
    data_wait: float | None = None
    policy_val_logits: Float[np.ndarray, "p k"] | None = None
    shares: Float[np.ndarray, "r k"] | None = None


@dataclasses.dataclass(frozen=True)
class Arm:
    """A way to train the classifier, with its runs.

    doses: realised synthetic over real images by class, or None. unmet: images by class that were
    asked for and that the pool lacked, or None.
    uses_pool: whether the costs of generator and selection are part of what it relies on.
    uses_policy: whether those of the stage mixing are, and with them those of the pool.
    """

    name: str
    controller: str
    loss: str
    runs: tuple[Run, ...]
    doses: Sequence[float] | None = None
    uses_pool: bool = False
    unmet: Sequence[int] | None = None
    uses_policy: bool = False


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Classes, counts and the labels of policy_val, val and test.

    groups: class indices of "head", "medium", "tail". test_groups: [n] names or numbers.
    protocol: how the splits came about, a JSON object or a sentence. test_openings: how often the
    test labels have been opened, this time included.
    """

    name: str
    classes: tuple[str, ...]
    train_counts: Sequence[int]
    groups: Mapping[str, Sequence[int]]
    manifest_sha256: str
    protocol: str
    test_openings: int
    test_labels: Int[np.ndarray, "n"]
    test_groups: Sequence[str] | Sequence[int] | np.ndarray
    val_labels: Int[np.ndarray, "v"] | None = None
    policy_val_labels: Int[np.ndarray, "p"] | None = None


@dataclasses.dataclass(frozen=True)
class Pool:
    """Counts of the pool. per_class: a mapping a class, with "class", "generated", "accepted" and
    any further counts, such as the rejections by reason. fidelity: what `fidelity.report` returns,
    and "class_names"; None where it was not measured. memorization: what
    `lt_jax.selection.audit.audit` returns; None where there was no such gate. audit: by part what
    the stage audit has found (`lt_jax.auditing.gather`); None where there was none."""

    generated: int
    accepted: int
    rejected: Mapping[str, int]
    per_class: Sequence[Mapping[str, Any]] = ()
    fidelity: Mapping[str, Any] | None = None
    memorization: Mapping[str, Any] | None = None
    audit: Mapping[str, Mapping[str, Any]] | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """The real train image that a synthetic one was made from, and the name of its class."""

    image: UInt8[np.ndarray, "h w c"]
    label: str


@dataclasses.dataclass(frozen=True)
class Pair:
    """A synthetic image meant to be of class `label`, and the train image it is most like."""

    image: UInt8[np.ndarray, "h w c"]
    label: str
    nearest: Source
    cosine: float
    ms_ssim: float


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Pictures by class name.

    real: train images. accepted: (images, scores). rejected: (images, scores, reasons).
    sources: of each accepted image, None for one made from noise; a class may be missing.
    closest: pairs, most alike first, of "accepted" images and of "copies" that were stopped.
    """

    real: Mapping[str, UInt8[np.ndarray, "_ h w c"]]
    accepted: Mapping[str, tuple[np.ndarray, Sequence[float]]]
    rejected: Mapping[str, tuple[np.ndarray, Sequence[float], Sequence[str]]]
    sources: Mapping[str, Sequence[Source | None]] = dataclasses.field(default_factory=dict)
    closest: Mapping[str, Sequence[Pair]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Learning:
    """How the stage mixing learned its policies, one a seed, and what rules are worth on its proxy.

    curves: by the names of `lt_jax.mixing.learn.Trained`, [s, u] over updates; NaN where undefined.
    trainings: of the classifier, that each policy took. reference_runs: those on real images alone
    beside them. returns: of a rule, by seed, the "mean", "std" and "n" of the team's return over n
    fresh episodes. importance: [s, o] of each observation, in nats an agent.
    """

    seeds: tuple[int, ...]
    observations: tuple[str, ...]
    curves: Mapping[str, Float[np.ndarray, "_ u"]]
    trainings: int
    reference_runs: int
    returns: Mapping[str, Sequence[Mapping[str, Any]]]
    importance: Float[np.ndarray, "_ o"]


@dataclasses.dataclass(frozen=True)
class StageCost:
    """What a stage before the classifier cost."""

    name: str
    seconds: float
    images: int
    flops: float | None = None


@dataclasses.dataclass(frozen=True)
class ReportInputs:
    """Everything the report is made from.

    config: plain nested values. environment: ENVIRONMENT and further versions.
    tau: strength of the post-hoc logit adjustment. costs: stages that arms rely on.
    skipped: images left out because they could not be read, each described.
    learning: of the stage mixing; None where no arm needed it.
    detection: of the stage detect; None where there are no arms of it.
    pictures: what networks show of themselves; None where they were not asked.
    """

    command: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    dataset: Dataset
    arms: tuple[Arm, ...]
    evaluate: EvaluateConfig
    tau: float = 1.0
    pool: Pool | None = None
    gallery: Gallery | None = None
    costs: tuple[StageCost, ...] = ()
    skipped: Sequence[str] = ()
    learning: Learning | None = None
    detection: Detection | None = None
    pictures: Pictures | None = None

    def __post_init__(self) -> None:
        """Checks that the parts fit, so that no figure is drawn before a mistake is found."""
        missing = [name for name in ENVIRONMENT if name not in self.environment]
        if missing:
            raise EvaluationError(f"environment: missing {', '.join(missing)}")
        _check_dataset(self.dataset)
        names = [arm.name for arm in self.arms]
        if len(set(names)) != len(names):
            raise EvaluationError(f"arms: names must be distinct, got {names}")
        if self.evaluate.baseline not in names:
            raise EvaluationError(
                f"config.evaluate.baseline: got {self.evaluate.baseline!r}; "
                f"takes one of the arms {names}"
            )
        for arm in self.arms:
            _check_arm(arm, self.dataset)
        if self.learning is not None:
            _check_learning(self.learning)


def _check_dataset(data: Dataset) -> None:
    k, n = len(data.classes), len(data.test_labels)
    if len(data.train_counts) != k:
        raise EvaluationError(f"train_counts: {len(data.train_counts)} counts for {k} classes")
    if n == 0:
        raise EvaluationError("test_labels: the test split is empty; there is nothing to report")
    if len(data.test_groups) != n:
        raise EvaluationError(f"test_groups: {len(data.test_groups)} groups for {n} test images")
    if set(data.groups) != set(GROUPS):
        raise EvaluationError(f"groups: got {sorted(data.groups)}; takes {', '.join(GROUPS)}")
    members = sorted(c for group in data.groups.values() for c in group)
    if members != list(range(k)):
        raise EvaluationError(f"groups: class indices {members}; takes each of 0 to {k - 1} once")


def _check_arm(arm: Arm, data: Dataset) -> None:
    k, n = len(data.classes), len(data.test_labels)
    seeds = [run.seed for run in arm.runs]
    if not seeds or len(set(seeds)) != len(seeds):
        raise EvaluationError(
            f"arm {arm.name!r}: seeds {seeds}; takes one run or more, seeds distinct"
        )
    for field, row in (("doses", arm.doses), ("unmet", arm.unmet)):
        if row is not None and len(row) != k:
            raise EvaluationError(f"arm {arm.name!r}: {field} of {len(row)} for {k} classes")
    shapes = {None if run.shares is None else run.shares.shape for run in arm.runs}
    if len(shapes) > 1 or any(shape is not None and shape[1:] != (k,) for shape in shapes):
        raise EvaluationError(
            f"arm {arm.name!r}: shares of {shapes}; takes as many rounds of {k} classes of each run"
        )
    for run in arm.runs:
        where = f"arm {arm.name!r}, seed {run.seed}"
        if run.test_logits.shape != (n, k):
            raise EvaluationError(f"{where}: test logits {run.test_logits.shape}; takes {(n, k)}")
        if run.log_prior.shape not in ((k,), (n, k)):
            raise EvaluationError(
                f"{where}: log_prior {run.log_prior.shape}; takes {(k,)}, or {(n, k)} by image"
            )
        for split, labels, logits in (
            ("val", data.val_labels, run.val_logits),
            ("policy_val", data.policy_val_labels, run.policy_val_logits),
        ):
            size = None if labels is None else len(labels)
            if logits is not None and logits.shape != (size, k):
                raise EvaluationError(f"{where}: {split} logits {logits.shape}; takes {(size, k)}")


def _check_learning(found: Learning) -> None:
    s, o = len(found.seeds), len(found.observations)
    rows = {f"curve {name}": len(curve) for name, curve in found.curves.items()}
    rows |= {f"returns of {rule}": len(entries) for rule, entries in found.returns.items()}
    for name, length in rows.items():
        if length != s:
            raise EvaluationError(f"learning: {name} has {length} seeds; takes {s}, {found.seeds}")
    if found.importance.shape != (s, o):
        raise EvaluationError(f"learning: importance {found.importance.shape}; takes {(s, o)}")


def sorted_runs(arm: Arm) -> list[Run]:
    """The runs by ascending seed, the order of every list of values."""
    return sorted(arm.runs, key=lambda run: run.seed)


def total(costs: Sequence[Run] | Sequence[StageCost]) -> dict[str, Any]:
    """Summed cost; FLOPs are None where a part is unknown."""
    flops = [cost.flops for cost in costs]
    return {
        "seconds": sum(cost.seconds for cost in costs),
        "images": sum(cost.images for cost in costs),
        "flops": None if any(f is None for f in flops) else sum(f for f in flops if f is not None),
    }


def ledger(arm: Arm, costs: Sequence[StageCost]) -> dict[str, Any]:
    """An arm's classifier runs, and apart the stages that it relies on and shares with others."""
    relies_on = None
    if arm.uses_pool or arm.uses_policy:
        stages = [cost for cost in costs if cost.name != "mixing" or arm.uses_policy]
        relies_on = {"stages": [cost.name for cost in stages], **total(stages)}
    waits = [run.data_wait for run in arm.runs if run.data_wait is not None]
    wait = sum(waits) if len(waits) == len(arm.runs) else None
    return {**total(arm.runs), "data_wait": wait, "relies_on": relies_on}


def fidelity_summary(pool: Pool | None) -> dict[str, Any] | None:
    """What report.json keeps of a pool's fidelity; None where it was not measured.

    Returns:
      {"k": neighbours of precision, recall, density and coverage,
       "per_class": [{"class", "n_train", "n_val", "n_synthetic": images there are,
         "n": images a side in "matched" and "floor",
         "matched": accepted synthetic images against train, "floor": held-out real ones (val)
           against train, each {"fd", "kid", "kid_std", "precision", "recall", "density",
           "coverage"}, None where the images are too few,
         "nearest": {"synthetic_median", "val_median": cosine distance to the nearest train image,
           "closer_than_val": share of synthetic images nearer than 95% of val, 0.05 if alike},
         "reasons": {name of a None: why}}],
       "macro": {"matched" | "floor": {measure: {"mean", "std" over classes, "classes": how many
         have it}}}}
    """
    if pool is None or pool.fidelity is None:
        return None
    found = pool.fidelity
    per_class = [_class_fidelity(found["class_names"], entry) for entry in found["classes"]]
    # Of the classes, since pools of earlier revisions have no deviation.
    every = fidelity.macro(found["classes"])
    macro = {part: every[part] for part in ("matched", "floor")}
    return {"k": found["k"], "per_class": per_class, "macro": macro}


def _class_fidelity(names: Sequence[str], entry: Mapping[str, Any]) -> dict[str, Any]:
    matched, floor, nearest = entry["matched"], entry["floor"], entry["nearest"]
    measures = (*MEASURES, "kid_std")
    return {
        "class": names[entry["label"]],
        **{name: entry[name] for name in ("n_train", "n_val", "n_synthetic")},
        "n": matched["n"],
        "matched": {name: matched[name] for name in measures},
        "floor": {name: floor[name] for name in measures},
        "nearest": {
            "synthetic_median": nearest["synthetic"]["median"],
            "val_median": nearest["val"]["median"],
            "closer_than_val": nearest["closer_than_val"],
        },
        "reasons": {**matched["reasons"], **floor["reasons"], **nearest["reasons"]},
    }


def memorization_summary(pool: Pool | None) -> dict[str, Any] | None:
    """What report.json keeps of the audit of copies; None where there was no such gate.

    Returns:
      What `lt_jax.selection.audit.audit` returns, with "per_class" for "classes" and there without
      histograms, which many classes would fill the report with.
    """
    if pool is None or pool.memorization is None:
        return None
    found = dict(pool.memorization)
    entries = found.pop("classes")
    return {**found, "per_class": [_without_histograms(entry) for entry in entries]}


def _without_histograms(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {k: _without_histograms(item) for k, item in value.items() if k != "histogram"}

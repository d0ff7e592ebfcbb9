"""The selections that are compared, of one generator's candidates, as overrides of one config."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments import arms
from experiments.arms import BASELINE
from lt_jax import config as config_lib


@dataclasses.dataclass(frozen=True)
class Variant:
    """Gates of a pool; none by default.

    Attributes:
      scores: of the out-of-distribution gate.
      keep_rate: of its thresholds, calibrated on policy_val, which no part of it was fitted to.
      label_probability: the least, of the intended class.
      memorised: whether copies are turned away.
      attempts: candidates at most, over images asked; 0: the experiment's.
      thinned_as: no gate, but as many images of each class as this variant has accepted.
      as_configured: the config's own gates; nothing above counts but `attempts`.
    """

    scores: tuple[str, ...] = ()
    keep_rate: float = 0.9
    label_probability: float = 0.0
    memorised: bool = False
    attempts: float = 0.0
    thinned_as: str = ""
    as_configured: bool = False


# One of each kind, chosen before any figure of them was known.
ENSEMBLE = ("mahalanobis", "knn", "vim", "energy", "denoising")
SCORES: tuple[str, ...] = config_lib.SelectionConfig.__dataclass_fields__["scores"].metadata[
    "choices"
]
_GATE = Variant(("mahalanobis",))
KEEP_RATES = {"keep_0.5": 0.5, "keep_0.7": 0.7, "mahalanobis": 0.9, "keep_0.99": 0.99}
VARIANTS: dict[str, Variant] = {
    "unselected": Variant(),
    # Those of `unselected`'s candidates that pass, and as many at random: quality apart from count.
    "once": dataclasses.replace(_GATE, attempts=1.0),
    "thinned": Variant(thinned_as="once"),
    # From here on candidates are made until the count is that of `unselected`.
    **{name: Variant((name,)) for name in SCORES},
    "ensemble": Variant(ENSEMBLE),
    "label": Variant(label_probability=0.3),
    "mahalanobis_memorised": dataclasses.replace(_GATE, memorised=True),
    "configured": Variant(as_configured=True),
    **{
        name: dataclasses.replace(_GATE, keep_rate=rate)
        for name, rate in KEEP_RATES.items()
        if name not in SCORES
    },
}
UNSELECTED = "unselected"


def configure(
    shared: ConfigDict,
    name: str,
    attempts: float,
    losses: Sequence[str],
    counts: Sequence[int] = (),
) -> ConfigDict:
    """The config of one variant, or of `BASELINE`: real images alone.

    Args:
      shared: what all variants share.
      name: of `VARIANTS`.
      attempts: candidates of a class at most, over images asked.
      losses: of the arms that use synthetic images.
      counts: accepted images a class, of a thinned variant.
    """
    if name not in (BASELINE, *VARIANTS):
        raise config_lib.ConfigError(
            f"--variants: got {name!r}; takes some of {BASELINE}, {', '.join(VARIANTS)}"
        )
    config: Any = shared.copy_and_resolve_references()
    pooled = arms.filled(losses)
    with config.unlocked():
        if name == BASELINE:
            config.classify.arms = config_lib.arms(
                ce={}, balanced_softmax={"loss": "balanced_softmax"}
            )
            config.evaluate.baseline = "balanced_softmax"
            return config
        config.classify.arms = config_lib.arms(**pooled)
        config.evaluate.baseline = next(iter(pooled))
        variant = VARIANTS[name]
        config.synthesize.update(min_dose=0.0, fill_to=0, max_attempts=variant.attempts or attempts)
        if variant.thinned_as:
            config.synthesize.counts = tuple(int(count) for count in counts)
        if not variant.as_configured:
            config.synthesize.selection.update(
                scores=variant.scores,
                keep_rate=variant.keep_rate,
                held_out="policy_val",
                label_probability=variant.label_probability,
            )
            config.synthesize.selection.memorization.gate = variant.memorised
    return config

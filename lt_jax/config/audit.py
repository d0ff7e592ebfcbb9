"""Fields of the audit: what is measured of the generator and of its pool, beyond the selection."""

import dataclasses

from lt_jax.config.fields import bounded, each_of

PARTS = ("nearness", "membership", "probe", "diversity", "accuracy_score", "inception")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """Which audits there are; each is a stage of its own, with the fields that it reads."""

    parts: tuple[str, ...] = each_of((), *PARTS)  # empty: no stage `audit`
    seed: int = bounded(0, 0)
    images: int = bounded(2000, 10)  # a side at most, of `membership` and of a class of `probe`
    folds: int = bounded(5, 2, 50)  # by group, of what is fitted: `probe`, `membership`
    noise_times: tuple[float, ...] = bounded((0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8), 0.0, 1.0)
    draws: int = bounded(8, 1, 10_000)  # `membership`: of noise, an image and time
    batch_size: int = bounded(128, 1)  # images at once on the device
    pairs: int = bounded(2000, 1)  # `diversity`: of a class, at most
    resamples: int = bounded(2000, 100, 1_000_000)  # `diversity`: bootstrap
    inception_weights: str = ""  # `inception`: .npz or .safetensors, see models.inception_weights

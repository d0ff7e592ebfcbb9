"""What sets the mixture of real and synthetic images before each round: interface, simple rules.

With n_k real train images of class k and m_k synthetic ones in use (a rule asks for some, the pool
gives what it has: m_k = min(asked_k, accepted_k)), a rule's mixture is

  share      s_k = m_k / (n_k + m_k)                                                      (1)
  class weight  w_k ~ (n_k + m_k)^q,  q = 1 (instance), 0 (balanced), 1/2 (square_root),
                1/T (tempered, with a temperature T >= 1)                                 (2)

so that under the instance sampler all images, real and synthetic, are drawn alike. The square root
is Mahajan et al. 2018 (arXiv:1805.00932), the names are of Kang et al. 2020 (arXiv:1910.09217).

Rules look at nothing but counts. A learned policy has the same interface and uses the feedback.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np

from lt_jax.config import ArmConfig
from lt_jax.errors import UserError
from lt_jax.shapes import Float, Int


class MixtureError(UserError, ValueError):
    """A mixture that cannot be drawn: a class without images, an empty pool, bad fractions."""


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """How the draws of one round are spread over classes and sources.

    `class_weight` [k] is the fraction of all draws that are of class k, and `share` [k] in [0, 1)
    the fraction of class k's draws that are synthetic. `in_use` [k] says how many images these come
    from: the first so many accepted ones of the class in the pool or, with `replay`, so many
    repeats of real ones (`replay_rows`). `unmet` [k] counts images that were asked for
    and that the pool lacked, for the report.
    """

    class_weight: Float[np.ndarray, "k"]
    share: Float[np.ndarray, "k"]
    in_use: Int[np.ndarray, "k"]
    unmet: Int[np.ndarray, "k"]
    replay: bool = False

    def __post_init__(self) -> None:
        """Raises MixtureError for what a loader cannot draw, whichever policy it comes from."""
        if not (np.all(self.class_weight >= 0) and np.isclose(np.sum(self.class_weight), 1)):
            raise MixtureError(
                f"mixture: class_weight is {self.class_weight}, of sum "
                f"{np.sum(self.class_weight)}; takes fractions >= 0 of sum 1"
            )
        if not np.all((self.share >= 0) & (self.share < 1)):
            raise MixtureError(f"mixture: share is {self.share}; takes fractions in [0, 1)")
        if np.any(empty := (self.share > 0) & (self.in_use == 0)):
            raise MixtureError(
                f"mixture: classes {np.flatnonzero(empty).tolist()} have a share above 0 and no "
                "image to draw it from; set their share to 0"
            )

    @property
    def realised_dose(self) -> Float[np.ndarray, "k"]:
        """Synthetic draws of each class over its real ones: s_k / (1 - s_k) = m_k / n_k."""
        return self.share / (1 - self.share)


@dataclasses.dataclass(frozen=True, eq=False)
class Feedback:
    """What a controller may learn from: the classifier on policy_val after the last round, [k]."""

    recall: Float[np.ndarray, "k"]
    precision: Float[np.ndarray, "k"]
    loss: Float[np.ndarray, "k"]


@runtime_checkable
class Controller(Protocol):
    """Whatever sets the mixture before each round of classifier steps."""

    def mixture(self, round: int, feedback: Feedback | None) -> Mixture:
        """The mixture of round 0, 1, ...; `feedback` is None in round 0."""
        ...


@dataclasses.dataclass(frozen=True)
class Supply:
    """What a rule has to mix: images of each class, real and accepted, and the base sampler.

    Raises MixtureError where a class has no real image.
    """

    counts: tuple[int, ...]
    accepted: tuple[int, ...]
    sampler: str = "instance"
    temperature: float = 1.0  # of "tempered"

    def __post_init__(self) -> None:
        """Refuses counts that no mixture can be made of."""
        if len(self.counts) != len(self.accepted):
            raise MixtureError(
                f"mixing: {len(self.counts)} classes of train images, but {len(self.accepted)} in "
                "the pool; both must be of the same data set"
            )
        if empty := [label for label, count in enumerate(self.counts) if count < 1]:
            raise MixtureError(
                f"mixing: no train image of class {', '.join(map(str, empty))} (by number); "
                "every class needs one"
            )
        if self.sampler not in ("instance", "balanced", "square_root", "tempered"):
            raise MixtureError(
                f"mixing: got sampler={self.sampler!r}; takes instance, balanced, square_root or "
                "tempered"
            )

    def mix(self, asked: Int[np.ndarray, "k"]) -> Mixture:
        """Equations (1) and (2). A class of which the pool has nothing gets share 0.

        Raises MixtureError where images are asked for and the pool is wholly empty.
        """
        counts, accepted = np.asarray(self.counts), np.asarray(self.accepted)
        if np.any(asked > 0) and not np.any(accepted > 0):
            raise MixtureError(
                f"mixing: {int(asked.sum())} synthetic images are asked for, but the pool has no "
                "accepted one; loosen synthesize.selection (keep_rate, label_probability), train "
                "the generator longer, or set the arm's controller to none"
            )
        used = np.minimum(asked, accepted)
        total = counts + used
        exponents = {"instance": 1.0, "balanced": 0.0, "square_root": 0.5}
        weight = total ** exponents.get(self.sampler, 1 / self.temperature)
        return Mixture(weight / weight.sum(), used / total, used, asked - used)


@dataclasses.dataclass(frozen=True)
class NoSynthesis:
    """Real images alone."""

    supply: Supply

    def mixture(self, round: int, feedback: Feedback | None) -> Mixture:
        """The same in every round."""
        return self.supply.mix(np.zeros(len(self.supply.counts), int))


def real_only(counts: Int[np.ndarray, "k"], sampler: str, temperature: float = 1.0) -> NoSynthesis:
    """Real images alone, from train counts [k] and the name of a base sampler."""
    return NoSynthesis(Supply(tuple(counts.tolist()), (0,) * len(counts), sampler, temperature))


@dataclasses.dataclass(frozen=True)
class Uniform:
    """The same dose for every class: dose x n_k images, rounded half up."""

    supply: Supply
    dose: float

    def mixture(self, round: int, feedback: Feedback | None) -> Mixture:
        """The same in every round."""
        return self.supply.mix(
            np.floor(self.dose * np.asarray(self.supply.counts) + 0.5).astype(int)
        )


@dataclasses.dataclass(frozen=True)
class FillToHead:
    """Fills every class up to `fill_to` images, or to the largest class's count where that is 0."""

    supply: Supply
    fill_to: int = 0

    def mixture(self, round: int, feedback: Feedback | None) -> Mixture:
        """The same in every round."""
        counts = np.asarray(self.supply.counts)
        return self.supply.mix(np.maximum((self.fill_to or counts.max()) - counts, 0))


@dataclasses.dataclass(frozen=True)
class SourceReplay:
    """The control of another controller: its weights and shares, with real images in the slots.

    What synthesis adds beyond drawing a class more often is what sets the two arms apart.
    """

    of: Controller
    seed: int

    def mixture(self, round: int, feedback: Feedback | None) -> Mixture:
        """The mirrored controller's mixture, marked as replay."""
        return dataclasses.replace(self.of.mixture(round, feedback), replay=True)


def replay_rows(
    labels: Int[np.ndarray, "n"], in_use: Int[np.ndarray, "k"], seed: int
) -> Int[np.ndarray, "m"]:
    """Rows of train images that stand in for synthetic ones: in_use[k] of class k, class by class.

    Each class's images are repeated equally often, give or take one: its rows in a random order,
    over and over. Class k's rows depend on (seed, k) and its images only.

    Raises:
      MixtureError: images of a class are asked for that has none.
    """
    chosen = []
    for label, wanted in enumerate(in_use.tolist()):
        rows = np.flatnonzero(labels == label)
        if wanted and not len(rows):
            raise MixtureError(f"replay: class {label} (by number) has no train image to repeat")
        order = np.random.default_rng((seed, label)).permutation(rows)
        chosen.append(np.resize(order, wanted))
    return np.concatenate(chosen)


def make(
    config: ArmConfig,
    counts: Int[np.ndarray, "k"],
    accepted: Int[np.ndarray, "k"],
    seed: int,
) -> Controller:
    """The controller of an arm.

    Args:
      config: `source_replay` mirrors `uniform` where its dose is above 0, else `fill_to_head`.
      counts: train images of each class, n_k.
      accepted: accepted synthetic images of each class; zeros where there is no pool.
      seed: decides which real images a replay repeats.

    Raises:
      MixtureError: a class has no train image, or synthesis is asked of an empty pool.
    """
    supply = Supply(tuple(counts.tolist()), tuple(accepted.tolist()), config.sampler)
    if config.controller == "none":
        return NoSynthesis(supply)
    uniform = config.controller == "uniform" or (
        config.controller == "source_replay" and config.dose > 0
    )
    rule = Uniform(supply, config.dose) if uniform else FillToHead(supply, config.fill_to)
    rule.mixture(0, None)  # an empty pool is an error now, not when training has begun
    return SourceReplay(rule, seed) if config.controller == "source_replay" else rule

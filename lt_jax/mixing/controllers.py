"""The controllers of arms: rules of counts and of shares, schedules, controls, and `make`.

The interface and equations (1) to (3) are in `mixture`, rules that learn in `adaptive`. With n_k
train images of class k, n_max those of the largest and N of all, rules of counts ask for

  uniform            m_k = D n_k                                                          (4)
  fill_to_head       m_k = max(F - n_k, 0),  F = n_max or a given count                   (5)
  inverse            m_k = D N (1 - n_k / n_max) / sum_j (1 - n_j / n_max)                (6)
  effective_number   m_k = n_k (E_max / E_k - 1),  E_k = (1 - beta^n_k) / (1 - beta)      (7)

images, rounded half up. By (6) the dose m_k / n_k is proportional to 1 / n_k less what makes it 0
for the largest class, and D is the dose of all classes together, as it is in (4): both cost the
same images. By (7) class k is drawn as often as class-balanced weights 1 / E_k (Cui et al. 2019,
arXiv:1901.05555, equation 2) would make it count: beta = 0 asks for nothing, beta -> 1 is (5). In
a set without a largest class, where all are alike, (5) to (7) ask for nothing. `fixed_share` is the
same s for every class, under equation (3).
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from lt_jax.config import ArmConfig
from lt_jax.mixing.adaptive import AccuracyAdaptive, Bandit
from lt_jax.mixing.mixture import Controller as Controller
from lt_jax.mixing.mixture import Feedback as Feedback
from lt_jax.mixing.mixture import Mixture as Mixture
from lt_jax.mixing.mixture import MixtureError as MixtureError
from lt_jax.mixing.mixture import Supply as Supply
from lt_jax.mixing.mixture import following as following
from lt_jax.mixing.mixture import require_seen as require_seen
from lt_jax.shapes import Float, Int


@dataclasses.dataclass(frozen=True)
class NoSynthesis:
    """Real images alone."""

    supply: Supply
    learns = False

    def mixture(self, history: Sequence[Feedback]) -> Mixture:
        """The same in every round."""
        return self.supply.mix(np.zeros(len(self.supply.counts), int))


def real_only(counts: Int[np.ndarray, "k"], sampler: str, temperature: float = 1.0) -> NoSynthesis:
    """Real images alone, from train counts [k] and the name of a base sampler."""
    return NoSynthesis(Supply(tuple(counts.tolist()), (0,) * len(counts), sampler, temperature))


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Equation (4): the same dose for every class."""

    supply: Supply
    dose: float
    learns = False

    def mixture(self, history: Sequence[Feedback]) -> Mixture:
        """The same in every round."""
        return self.supply.mix(_whole(self.dose * np.asarray(self.supply.counts)))


@dataclasses.dataclass(frozen=True)
class FillToHead:
    """Equation (5), with F = `fill_to`, or the largest class's count where that is 0."""

    supply: Supply
    fill_to: int = 0
    learns = False

    def mixture(self, history: Sequence[Feedback]) -> Mixture:
        """The same in every round."""
        counts = np.asarray(self.supply.counts)
        return self.supply.mix(np.maximum((self.fill_to or counts.max()) - counts, 0))


@dataclasses.dataclass(frozen=True)
class Inverse:
    """Equation (6), with D = `dose`."""

    supply: Supply
    dose: float
    learns = False

    def mixture(self, history: Sequence[Feedback]) -> Mixture:
        """The same in every round."""
        counts = np.asarray(self.supply.counts)
        missing = 1 - counts / counts.max()
        scale = self.dose * counts.sum() / (missing.sum() or 1.0)
        return self.supply.mix(_whole(scale * missing))


@dataclasses.dataclass(frozen=True)
class EffectiveNumber:
    """Equation (7); `beta` in [0, 1)."""

    supply: Supply
    beta: float
    learns = False

    def mixture(self, history: Sequence[Feedback]) -> Mixture:
        """The same in every round."""
        counts = np.asarray(self.supply.counts)
        effective = np.ones(len(counts))
        if self.beta > 0:  # 1 - beta^n as -expm1(n log beta): near beta = 1 no digits are lost
            effective = np.expm1(counts * np.log(self.beta)) / (self.beta - 1)
        return self.supply.mix(_whole(counts * (effective.max() / effective - 1)))


@dataclasses.dataclass(frozen=True)
class FixedShare:
    """The same share, in [0, 1), for every class that the pool has images of."""

    supply: Supply
    share: float
    learns = False

    def mixture(self, history: Sequence[Feedback]) -> Mixture:
        """The same in every round."""
        return self.supply.mix_shares(np.full(len(self.supply.counts), self.share))


@dataclasses.dataclass(frozen=True)
class Round:
    """Of a schedule: shares in [0, 1) and factors above 0, of each class; None: all 1."""

    share: tuple[float, ...]
    factor: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Shares, and factors if any, by round and class: learned elsewhere, or to be drawn again."""

    supply: Supply
    rounds: tuple[Round, ...]
    learns = False

    def mixture(self, history: Sequence[Feedback]) -> Mixture:
        """Those of the round.

        Raises:
          MixtureError: the schedule is of other classes, or has fewer rounds.
        """
        if len(history) >= len(self.rounds):
            raise MixtureError(
                f"schedule: has {len(self.rounds)} rounds, but round {len(history)} is to be "
                "trained (counted from 0); set config.classify.rounds to those of the schedule"
            )
        now = self.rounds[len(history)]
        share = np.asarray(now.share)
        if len(share) != len(self.supply.counts):
            raise MixtureError(
                f"schedule: has {len(share)} classes, the data set {len(self.supply.counts)}; take "
                "a schedule of this data set"
            )
        factor = None if now.factor is None else np.asarray(now.factor)
        return self.supply.mix_shares(share, factor)


@dataclasses.dataclass(frozen=True)
class SourceReplay:
    """The control of another controller: its weights and shares, with real images in the slots.

    What synthesis adds beyond drawing a class more often is what sets the two arms apart.
    """

    of: Controller
    seed: int

    @property
    def learns(self) -> bool:
        """As the mirrored one does, from the feedback of this training."""
        return self.of.learns

    def mixture(self, history: Sequence[Feedback]) -> Mixture:
        """The mirrored controller's mixture, marked as replay."""
        return dataclasses.replace(self.of.mixture(history), replay=True)


@dataclasses.dataclass(frozen=True)
class Shuffled:
    """The other control: another controller's shares and factors, each given to another class.

    The classes with accepted images pass theirs on round a circle, which the seed draws once: none
    of them keeps its own, where there are two. Class weights follow equation (3). A learned policy
    that is shuffled goes on as if its own choices had been drawn: its observations of share, dose
    and losses are of these, recall and precision those of the classifier that had the shuffled.
    """

    of: Controller
    supply: Supply
    seed: int

    @property
    def learns(self) -> bool:
        """As the shuffled one does, from feedback in the classes' true order."""
        return self.of.learns

    def mixture(self, history: Sequence[Feedback]) -> Mixture:
        """The permuted mixture of the round."""
        mixture = self.of.mixture(history)
        circle = np.flatnonzero(self.supply.accepted)
        circle = np.random.default_rng((self.seed, 3)).permutation(circle)
        giver = np.arange(len(mixture.share))
        giver[circle] = np.roll(circle, 1)
        factor = None if mixture.factor is None else mixture.factor[giver]
        return self.supply.mix_shares(mixture.share[giver], factor)


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


def read_schedule(path: pathlib.Path) -> tuple[Round, ...]:
    """Of a JSON list with an object a round: {"share": [s_0, ...]}, and "factor" if there is one.

    `mixture.json` of a finished arm is one; whatever else its objects hold is not read.

    Raises:
      MixtureError: there is no such file, or it is no such list.
    """
    try:
        rounds = tuple(
            Round(
                _numbers(entry["share"]), _numbers(entry["factor"]) if "factor" in entry else None
            )
            for entry in json.loads(path.read_text())
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise MixtureError(
            f"schedule {path}: cannot be read ({error!r}); takes a JSON list with one object a "
            'round, {"share": [one number a class]}, such as mixture.json of a finished arm'
        ) from error
    lengths = {len(values) for now in rounds for values in (now.share, now.factor or now.share)}
    if len(lengths) != 1:
        raise MixtureError(f"schedule {path}: takes rounds, all of the same number of classes")
    for number, now in enumerate(rounds):
        if not all(0 <= share < 1 for share in now.share):
            raise MixtureError(
                f"schedule {path}: shares of round {number} are {list(now.share)}; takes fractions "
                "in [0, 1)"
            )
        if not all(factor > 0 for factor in now.factor or ()):
            raise MixtureError(
                f"schedule {path}: factors of round {number} are {list(now.factor or ())}; takes "
                "numbers above 0"
            )
    return rounds


def _numbers(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def mirrored(config: ArmConfig) -> str:
    """The rule that decides an arm's shares: its controller, or the one which that mirrors."""
    if config.controller not in ("source_replay", "shuffled"):
        return config.controller
    return config.of or ("uniform" if config.dose > 0 else "fill_to_head")


def learns(config: ArmConfig) -> bool:
    """Whether an arm's controller reads feedback on policy_val."""
    return mirrored(config) in ("accuracy_adaptive", "bandit", "policy")


def make(
    config: ArmConfig,
    counts: Int[np.ndarray, "k"],
    accepted: Int[np.ndarray, "k"],
    seed: int,
    learned: Callable[[str, Supply], Controller] | None = None,
) -> Controller:
    """The controller of an arm.

    Args:
      config: `source_replay` and `shuffled` mirror its `of` (see `mirrored`).
      counts: train images of each class, n_k.
      accepted: accepted synthetic images of each class; zeros where there is no pool.
      seed: decides which real images a replay repeats, and what a bandit or a shuffle draws.
      learned: makes a rule of `LEARNED`; only these need it.

    Raises:
      MixtureError: a class has no train image, synthesis is asked of an empty pool, or a schedule
        cannot be read or is of other classes.
    """
    supply = Supply(tuple(counts.tolist()), tuple(accepted.tolist()), config.sampler)
    name = mirrored(config)
    rule = learned(name, supply) if learned else _rule(name, config, supply, seed)
    rule.mixture(())  # an empty pool is an error now, not when training has begun
    if config.controller == "source_replay":
        return SourceReplay(rule, seed)
    return Shuffled(rule, supply, seed) if config.controller == "shuffled" else rule


def _rule(name: str, config: ArmConfig, supply: Supply, seed: int) -> Controller:
    if name == "schedule":
        return Schedule(supply, read_schedule(pathlib.Path(config.schedule)))
    rules = {
        "none": lambda: NoSynthesis(supply),
        "uniform": lambda: Uniform(supply, config.dose),
        "fill_to_head": lambda: FillToHead(supply, config.fill_to),
        "inverse": lambda: Inverse(supply, config.dose),
        "effective_number": lambda: EffectiveNumber(supply, config.beta),
        "fixed_share": lambda: FixedShare(supply, config.share),
        "accuracy_adaptive": lambda: AccuracyAdaptive(supply, config.share),
        "bandit": lambda: Bandit(supply, config.levels, seed),
    }
    return rules[name]()


def _whole(images: Float[np.ndarray, "k"]) -> Int[np.ndarray, "k"]:
    return np.floor(images + 0.5).astype(int)

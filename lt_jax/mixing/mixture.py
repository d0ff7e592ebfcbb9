"""What a controller is: from feedback on past rounds to the mixture of the next, and its maths.

With n_k real train images of class k and m_k synthetic ones in use (a rule of counts asks for
some, the pool gives what it has: m_k = min(asked_k, accepted_k)), its mixture is

  share      s_k = m_k / (n_k + m_k)                                                      (1)
  class weight  w_k ~ (n_k + m_k)^q,  q = 1 (instance), 0 (balanced), 1/2 (square_root),
                1/T (tempered, with a temperature T >= 1)                                 (2)

so that under the instance sampler all images, real and synthetic, are drawn alike. The square root
is Mahajan et al. 2018 (arXiv:1805.00932), the names are of Kang et al. 2020 (arXiv:1910.09217).

A rule of shares says s_k itself, 0 where the pool has nothing of the class. All accepted images
are in use then, each drawn more or less often, and with n_k / (1 - s_k) the images, real and
synthetic, that a set of n_k real ones and this share would have,

  class weight  w_k ~ v_k (n_k / (1 - s_k))^q                                             (3)

which is (2) where s_k is (1) and the factor v_k is 1, as it is for rules that set none. Shares may
thus change from round to round over the same images.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from lt_jax.errors import UserError
from lt_jax.runtime import distributed
from lt_jax.shapes import Float, Int

EXPONENTS = {"instance": 1.0, "balanced": 0.0, "square_root": 0.5}  # q of (2) and (3)


class MixtureError(UserError, ValueError):
    """A mixture that cannot be drawn, or decided: no images, bad fractions, no feedback."""


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """How the draws of one round are spread over classes and sources.

    `class_weight` [k] is the fraction of all draws that are of class k, and `share` [k] in [0, 1)
    the fraction of class k's draws that are synthetic. `in_use` [k] says how many images these come
    from: the first so many accepted ones of the class in the pool or, with `replay`, so many
    repeats of real ones (`controllers.replay_rows`). `unmet` [k] counts images that were asked for
    and that the pool lacked, for the report. `factor` [k] is v_k of equation (3), where one is set.
    """

    class_weight: Float[np.ndarray, "k"]
    share: Float[np.ndarray, "k"]
    in_use: Int[np.ndarray, "k"]
    unmet: Int[np.ndarray, "k"]
    replay: bool = False
    factor: Float[np.ndarray, "k"] | None = None

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


@dataclasses.dataclass(frozen=True, eq=False)
class Feedback:
    """What a controller may learn from: the classifier on policy_val after a round, each [k].

    Recall and precision in [0, 1] and margin in [-1, 1] are soft, of probabilities (equations (2),
    (3) and (5) of `rewards`); losses are mean cross-entropies in nats: of policy_val, and of some
    train images and images in use of the class, NaN where there are none.
    """

    recall: Float[np.ndarray, "k"]
    precision: Float[np.ndarray, "k"]
    margin: Float[np.ndarray, "k"]
    loss: Float[np.ndarray, "k"]
    real_loss: Float[np.ndarray, "k"]
    synthetic_loss: Float[np.ndarray, "k"]

    @classmethod
    def unmeasured(cls, num_classes: int) -> "Feedback":
        """NaN throughout: of a round of which nothing is to be learned."""
        return cls(*(np.full(num_classes, np.nan) for _ in dataclasses.fields(cls)))


@runtime_checkable
class Controller(Protocol):
    """Whatever sets the mixture before each round of classifier steps."""

    @property
    def learns(self) -> bool:
        """Whether it reads feedback; where it does not, none is measured (`unmeasured`)."""
        ...

    def mixture(self, history: Sequence[Feedback]) -> Mixture:
        """The mixture of the next round, after those that `history` has an entry of.

        A pure function: a history is all that a training must keep to go on. `in_use` and `replay`
        are the same in every round.
        """
        ...


def following(controller: Controller, history: Sequence[Feedback]) -> Mixture:
    """The controller's next mixture, checked against its first; in all processes the same.

    What it follows from is measured, and a policy's choice made, by programs that each process has
    compiled for itself: where a last bit turns a choice, that of the first process holds.

    Raises:
      MixtureError: it draws from other images than that of round 0, which are those at hand.
    """
    mixture, first = controller.mixture(history), controller.mixture(())
    if mixture.replay != first.replay or np.any(mixture.in_use != first.in_use):
        raise MixtureError(
            f"mixture of round {len(history)}: in_use is {mixture.in_use.tolist()} (replay: "
            f"{mixture.replay}), in round 0 it was {first.in_use.tolist()} ({first.replay}); a "
            "controller keeps to the same images and changes shares and class weights alone"
        )
    own = {name: held for name, held in vars(mixture).items() if isinstance(held, np.ndarray)}
    told = distributed.agree({name: array.tolist() for name, array in own.items()})
    same = {name: np.asarray(told[name], array.dtype) for name, array in own.items()}
    return dataclasses.replace(mixture, **same)


def require_seen(policy_val: Int[np.ndarray, "k"], classes: Sequence[str]) -> None:
    """Refuses images of policy_val, by class, that not every class has a share in.

    Raises MixtureError: of an absent class neither controller nor policy could be told anything.
    """
    if absent := [classes[label] for label in np.flatnonzero(policy_val == 0).tolist()]:
        raise MixtureError(
            f"policy_val has no image of {', '.join(absent)}, and a controller that learns is told "
            "of every class there: raise config.data.split.policy_val, leave the class out "
            "(config.data.classes), or take controllers that do not learn (fill_to_head, say)"
        )


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
        if self.sampler not in (*EXPONENTS, "tempered"):
            raise MixtureError(
                f"mixing: got sampler={self.sampler!r}; takes instance, balanced, square_root or "
                "tempered"
            )

    def mix(self, asked: Int[np.ndarray, "k"]) -> Mixture:
        """Equations (1) and (2). A class of which the pool has nothing gets share 0.

        Raises MixtureError where images are asked for and the pool is wholly empty.
        """
        counts, accepted = np.asarray(self.counts), np.asarray(self.accepted)
        if np.any(asked > 0):
            self._refuse_empty(f"{int(asked.sum())} synthetic images are asked for")
        used = np.minimum(asked, accepted)
        total = counts + used
        return Mixture(self._weigh(total), used / total, used, asked - used)

    def mix_shares(
        self, share: Float[np.ndarray, "k"], factor: Float[np.ndarray, "k"] | None = None
    ) -> Mixture:
        """Equation (3), all accepted images in use. A class of which the pool has none: share 0.

        Raises MixtureError where the pool is wholly empty: no share could ever be above 0.
        """
        self._refuse_empty("synthetic images are asked for by their share")
        counts, accepted = np.asarray(self.counts), np.asarray(self.accepted)
        share = np.where(accepted > 0, share, 0.0)
        weight = self._weigh(counts / (1 - share), factor)
        return Mixture(weight, share, accepted, np.zeros_like(accepted), factor=factor)

    def _weigh(self, total: np.ndarray, factor: np.ndarray | None = None) -> np.ndarray:
        weight = total ** EXPONENTS.get(self.sampler, 1 / self.temperature)
        weight = weight if factor is None else factor * weight
        return weight / weight.sum()

    def _refuse_empty(self, asked: str) -> None:
        if not any(self.accepted):
            raise MixtureError(
                f"mixing: {asked}, but the pool has no accepted one; loosen synthesize.selection "
                "(keep_rate, label_probability), train the generator longer, or set the arm's "
                "controller to none"
            )

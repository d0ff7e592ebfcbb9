"""Rules that learn while the classifier trains: share by recall, and a bandit for each class.

Both are functions of the feedback so far, on policy_val alone: R_k,r is class k's soft recall after
round r. Classes without accepted images take no part.

**accuracy_adaptive** gives more to classes that are recognised less. That is what Accuracy Adaptive
Sampling of IOIS does (Li et al. 2024, arXiv:2403.08407), from train accuracy; its exact rule is
not public in a form that we could follow, so that the following is our definition. With S the
highest share,

  s_k,r = S (1 - R_k,r-1) / max_j (1 - R_j,r-1)                                           (1)

and S for every class in round 0, when nothing is known. Where all recalls are 1, no share is left.

**bandit** has one arm a level l_a of the share, for each class on its own. What a round pays is the
change of the class's recall: x_k,r = R_k,r - R_k,r-1, from round 1 on; the change in round 0 is
from an untrained network and says little of the level. With n_ka the times that class k was paid
after level a, the next level is drawn by Thompson sampling with Gaussian priors (Agrawal and Goyal
2013, arXiv:1209.3353, algorithm 2),

  theta_ka = sum x_k / (n_ka + 1) + sigma z_ka / sqrt(n_ka + 1),  a_k = argmax theta_ka   (2)

the sum over the rounds of that level, z standard normal by (seed, round). Theirs has sigma = 1 for
payments in [0, 1]; recall moves by hundredths, so that sigma is the root mean square of all
payments so far (1 where all are 0), which makes the choices free of the unit of payment.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lt_jax.mixing.mixture import Feedback, Mixture, Supply
from lt_jax.shapes import Float, Int


@dataclasses.dataclass(frozen=True)
class AccuracyAdaptive:
    """Equation (1), with S = `share` in [0, 1)."""

    supply: Supply
    share: float
    learns = True

    def mixture(self, history: Sequence[Feedback]) -> Mixture:
        """By the recalls after the last round."""
        accepted = np.asarray(self.supply.accepted)
        recall = history[-1].recall if history else np.zeros(len(accepted))
        error = np.where(accepted > 0, 1 - recall, 0.0)
        return self.supply.mix_shares(self.share * error / (error.max() or 1.0))


@dataclasses.dataclass(frozen=True)
class Bandit:
    """Equation (2), over the shares `levels`, each in [0, 1)."""

    supply: Supply
    levels: tuple[float, ...]
    seed: int
    learns = True

    def mixture(self, history: Sequence[Feedback]) -> Mixture:
        """The levels that Thompson sampling draws for the next round."""
        return self.supply.mix_shares(np.asarray(self.levels)[self.choices(history)[-1]])

    def choices(self, history: Sequence[Feedback]) -> Int[np.ndarray, "rounds k"]:
        """Levels by index, of each class in every round so far and in the next."""
        classes, taking = np.arange(len(self.supply.counts)), np.asarray(self.supply.accepted) > 0
        paid = np.zeros((len(classes), len(self.levels)))
        times = np.zeros_like(paid)
        chosen = []
        payments: list[Float[np.ndarray, "k"]] = []
        for r in range(len(history) + 1):
            sigma = np.sqrt(np.mean(np.square(payments))) if payments else 1.0
            noise = np.random.default_rng((self.seed, 2, r)).standard_normal(paid.shape)
            theta = paid / (times + 1) + (sigma or 1.0) * noise / np.sqrt(times + 1)
            chosen.append(theta.argmax(axis=1))
            if 1 <= r < len(history):
                change = history[r].recall - history[r - 1].recall
                payments.append(change[taking])
                paid[classes, chosen[r]] += change
                times[classes, chosen[r]] += 1
        return np.stack(chosen)

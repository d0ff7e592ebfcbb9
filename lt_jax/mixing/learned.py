"""A learned policy as a controller: what it saw of a proxy classifier, it is shown of the real one.

Observations are those of the environment (`observations`), from feedback on past rounds. Three of
them differ by what a real training can show: the first round's are those of equal probabilities,
which a proxy's fresh head gives, too (recall 1 / K, precision |V_k| / |V|, margin 0); losses are
of some train images after a round, and not of the images drawn in it; and dose counts draws, not
batches, whose ratio is the same. What was drawn is taken to be the policy's own choice, also where
a control (`controllers.Shuffled`) gives that to other classes. The policy acts greedily: it is a
function of the history alone, so that a training that was killed goes on as it would have.
"""

import bisect
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.config import MixingConfig
from lt_jax.mixing import networks, observations
from lt_jax.mixing.environment import heads
from lt_jax.mixing.mixture import Feedback, Mixture, MixtureError, Supply
from lt_jax.mixing.networks import Policy
from lt_jax.mixing.observations import Track
from lt_jax.mixing.rewards import Measured
from lt_jax.shapes import Array, Float


@flax.struct.dataclass
class Standing:
    """What agents see that no round changes, float32 [k].

    Attributes:
      ood: mean out-of-distribution score of the accepted, standardised over classes.
      fidelity: of the accepted; policy_val: images of each class there.
    """

    ood: Any
    fidelity: Any
    policy_val: Any


def turn(seed: int, seeds: Sequence[int], policies: Sequence[int]) -> int:
    """Which policy a classifier takes, as a place among their seeds.

    That of its own `seed`; where there is none, policies are taken in turn, by the place of its
    seed among the classifiers' `seeds`, sorted.
    """
    if seed in policies:
        return list(policies).index(seed)
    return bisect.bisect_left(sorted(seeds), seed) % len(policies)


@functools.lru_cache(maxsize=8)
def _actor(config: MixingConfig) -> Any:
    choices = heads(config.levels, config.weights)
    return jax.jit(networks.make_act(config.policy, choices), static_argnums=3)


@dataclasses.dataclass(frozen=True, eq=False)
class Learned:
    """A policy that acts live, over `config.rounds` rounds."""

    supply: Supply
    config: MixingConfig
    policy: Policy
    standing: Standing
    learns = True

    def mixture(self, history: Sequence[Feedback]) -> Mixture:
        """The policy's choice for the next round, having seen all rounds so far.

        Raises:
          MixtureError: there are more rounds than the policy was learned for.
        """
        if len(history) >= self.config.rounds:
            raise MixtureError(
                f"policy: is learned for {self.config.rounds} rounds, but round {len(history)} is "
                "to be trained (counted from 0); set config.classify.rounds and mixing.rounds alike"
            )
        return self._choose(self._track(history), len(history))

    def observation(self, history: Sequence[Feedback]) -> Float[Array, "k o"]:
        """What the agents see before the round that follows `history`."""
        return self._observe(self._track(history), len(history))

    def _track(self, history: Sequence[Feedback]) -> Track:
        track = self._begin()
        for r, feedback in enumerate(history):
            track = self._after(track, self._choose(track, r), feedback)
        return track

    def _begin(self) -> Track:
        classes = len(self.supply.counts)
        seen = jnp.asarray(self.standing.policy_val, jnp.float32)
        equal = jnp.full(classes, 1 / classes)
        precision = seen / seen.sum()
        nothing = jnp.zeros(classes)
        return observations.begin(Measured(equal, precision, nothing, nothing))  # F1 is not seen

    def _observe(self, track: Track, round: int) -> Float[Array, "k o"]:
        return observations.observe(
            track,
            counts=jnp.asarray(self.supply.counts, jnp.float32),
            pool=jnp.asarray(self.supply.accepted, jnp.float32),
            ood=jnp.asarray(self.standing.ood),
            fidelity=jnp.asarray(self.standing.fidelity),
            progress=jnp.asarray(round / self.config.rounds),
        )

    def _choose(self, track: Track, round: int) -> Mixture:
        act = _actor(self.config)
        chosen = np.asarray(act(self.policy, self._observe(track, round), jax.random.key(0), True))
        chosen = chosen.reshape(len(chosen), -1)
        share = np.asarray(self.config.levels)[chosen[:, 0]]
        factor = None
        if self.config.weights:
            factor = np.asarray(self.config.weights)[chosen[:, 1]]
        return self.supply.mix_shares(share, factor)

    def _after(self, track: Track, mixture: Mixture, feedback: Feedback) -> Track:
        """The memory of a round that was trained with `mixture`, of which `feedback` tells."""
        share = jnp.asarray(mixture.share, jnp.float32)
        weight = jnp.asarray(mixture.class_weight, jnp.float32)
        unit = jnp.log(len(mixture.share))
        losses = jnp.stack([feedback.real_loss, feedback.synthetic_loss]).astype(jnp.float32) / unit
        # As in the environment: what was not drawn from is not seen.
        drawn = jnp.stack([weight * (1 - share), weight * share])
        known = (drawn > 0) & ~jnp.isnan(losses)
        recall, precision, margin = (
            jnp.asarray(value, jnp.float32)
            for value in (feedback.recall, feedback.precision, feedback.margin)
        )
        return Track(
            share=share,
            drawn=track.drawn + drawn,
            losses=jnp.where(known, losses, track.losses),
            measured=Measured(recall, precision, jnp.zeros_like(recall), margin),
            before=track.measured,
        )

"""Out-of-distribution scores of logits: how sure the extractor is, of whichever class.

With logits z_j of K classes, higher being further out,

  energy       -log sum_j exp(z_j)                                                        (1)
  max_logit    -max_j z_j                                                                 (2)
  max_softmax  log((1 - p) / p),   p = max_j softmax(z)_j                                 (3)

((1): Liu et al. 2020, arXiv:2010.03759, eq. 4 at temperature 1; (2): Hendrycks et al. 2022,
arXiv:1911.11132; (3): Hendrycks and Gimpel 2017, arXiv:1610.02136, whose score is p.) (3) falls as
p rises, so it orders images as p does, and tells apart those of which p is 1 to the last bit.

None of them asks which class the image is meant to show: that is the gate on the label's
probability. But an extractor is less sure of the images of a rare class, or of a hard one, and the
image's class tells what to expect: each score is standardised by the moments of its class's train
images (`standardize`), which leaves the order within a class as published.
"""

import abc
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.selection.scorer import check_fit
from lt_jax.selection.standardize import Moments, moments, standardize
from lt_jax.shapes import Array, Features, Float, Int, Labels, Logits


@dataclasses.dataclass(frozen=True)
class Confidence(abc.ABC):
    """A score of logits alone, standardised by class."""

    num_classes: int
    reads: ClassVar[str] = "features"

    @staticmethod
    @abc.abstractmethod
    def raw(logits: Logits) -> Float[Array, "b"]:
        """The score as published, before it is standardised."""

    def fit(
        self,
        features: Float[np.ndarray | Array, "n d"],
        logits: Float[np.ndarray | Array, "n k"],
        labels: Int[np.ndarray | Array, "n"],
    ) -> Moments:
        """Moments by class. See `Scorer.fit`; `features` are not used."""
        del features
        check_fit({"logits": np.asarray(logits)}, np.asarray(labels), self.num_classes)
        return moments(jax.jit(self.raw)(jnp.asarray(logits)), labels, self.num_classes)

    def score(
        self, state: Moments, features: Features, logits: Logits, labels: Labels
    ) -> Float[Array, "b"]:
        """Standard deviations from the class's mean; `features` are not used."""
        del features
        return standardize(state, self.raw(logits), labels)


class Energy(Confidence):
    """Equation (1)."""

    @staticmethod
    def raw(logits: Logits) -> Float[Array, "b"]:
        """The energy, in units of logits."""
        return -jax.nn.logsumexp(logits, axis=1)


class MaxLogit(Confidence):
    """Equation (2)."""

    @staticmethod
    def raw(logits: Logits) -> Float[Array, "b"]:
        """The negative of the largest logit."""
        return -jnp.max(logits, axis=1)


class MaxSoftmax(Confidence):
    """Equation (3)."""

    @staticmethod
    def raw(logits: Logits) -> Float[Array, "b"]:
        """Log odds of all other classes against the likeliest; 0 where there is no other."""
        if logits.shape[1] == 1:
            return jnp.zeros(logits.shape[0], logits.dtype)
        first = jnp.argmax(logits, axis=1)
        others = jnp.where(jnp.arange(logits.shape[1])[None] == first[:, None], -jnp.inf, logits)
        return jax.nn.logsumexp(others, axis=1) - jnp.max(logits, axis=1)

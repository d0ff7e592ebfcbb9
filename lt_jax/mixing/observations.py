"""What an agent sees of its class: sixteen named features, nearly all within [-1, 2].

| name | of class k |
|---|---|
| log_count | log(1 + n_k) / 10, n_k real train images |
| log_pool | log(1 + m_k) / 10, m_k accepted synthetic images |
| share | synthetic share s_k of the last round |
| dose | log(1 + synthetic draws over real ones), expected, of all rounds so far |
| recall, precision, margin | on policy_val after the last round (`rewards`, equations 2, 3, 5) |
| recall_change, precision_change, margin_change | tanh(10 x their changes in the last round) |
| real_loss, synthetic_loss | log(1 + mean cross entropy / log K) of draws of the last round |
| ood | mean out-of-distribution score of the accepted, standardised over classes; 0 without any |
| fidelity | of the accepted, higher is better; 0 without any |
| progress | r / R |
| pool | 1 where the class has an accepted image, else 0: a share of the class means nothing then |

A loss is carried on where no image was drawn, and begins at that of equal probabilities. No
feature is of another class: permuting classes permutes the rows.
"""

from typing import Any

import jax.numpy as jnp
from flax import struct

from lt_jax.mixing.rewards import Measured
from lt_jax.shapes import Array, Float

NAMES = (
    "log_count",
    "log_pool",
    "share",
    "dose",
    "recall",
    "precision",
    "margin",
    "recall_change",
    "precision_change",
    "margin_change",
    "real_loss",
    "synthetic_loss",
    "ood",
    "fidelity",
    "progress",
    "pool",
)
CHANGE = 10.0  # most rounds move recall by some hundredths, the first by some tenths


@struct.dataclass
class Track:
    """What an episode remembers for its observations, and the next for its changes.

    Attributes:
      share: s_k of the last round [k].
      drawn: expected draws of each class so far, real and synthetic [2 k], in batches.
      losses: mean cross entropy of what was drawn, real and synthetic [2 k], in units of log K.
      measured: on policy_val after the last round.
      before: the same one round earlier.
    """

    share: Any
    drawn: Any
    losses: Any
    measured: Any
    before: Any


def begin(measured: Measured) -> Track:
    """Before the first round, of fresh parameters."""
    nothing = jnp.zeros_like(measured.recall)
    pair = jnp.stack([nothing, nothing])
    return Track(nothing, pair, jnp.ones_like(pair), measured, measured)


def observe(
    track: Track,
    *,
    counts: Float[Array, "k"],
    pool: Float[Array, "k"],
    ood: Float[Array, "k"],
    fidelity: Float[Array, "k"],
    progress: Float[Array, ""],
) -> Float[Array, "k o"]:
    """The features in the order of NAMES; `ood` standardised, `progress` in [0, 1]."""
    now, before = track.measured, track.before
    real, synthetic = track.drawn
    columns = {
        "log_count": jnp.log1p(counts) / 10,
        "log_pool": jnp.log1p(pool) / 10,
        "share": track.share,
        "dose": jnp.log1p(synthetic / jnp.maximum(real, 1e-6)),
        "recall": now.recall,
        "precision": now.precision,
        "margin": now.margin,
        "recall_change": jnp.tanh(CHANGE * (now.recall - before.recall)),
        "precision_change": jnp.tanh(CHANGE * (now.precision - before.precision)),
        "margin_change": jnp.tanh(CHANGE * (now.margin - before.margin)),
        "real_loss": jnp.log1p(track.losses[0]),
        "synthetic_loss": jnp.log1p(track.losses[1]),
        "ood": ood,
        "fidelity": fidelity,
        "progress": jnp.broadcast_to(progress, counts.shape),
        "pool": (pool > 0).astype(jnp.float32),
    }
    return jnp.stack([columns[name] for name in NAMES], axis=-1)

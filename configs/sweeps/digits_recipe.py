r"""How fast and how strongly regularised should the classifier of the digits learn?

    python -m experiments.sweep run --sweep=configs/sweeps/digits_recipe.py --out=runs/recipe
    python -m experiments.sweep collect --out=runs/recipe

Twelve settings with three seeds each: 36 trials of one classifier on real images, over one split.
"""

from lt_jax import config as config_lib
from lt_jax.sweep.definition import Sweep
from lt_jax.sweep.space import grid, product, seeds

ARM = "balanced_softmax"


def get_sweep() -> Sweep:
    """The grid."""
    return Sweep(
        base="configs/digits.py",
        shared={
            "classify.arms": config_lib.arms(**{ARM: {"loss": ARM}}),
            "evaluate.baseline": ARM,
        },
        trials=product(
            grid(
                {
                    "classify.optimizer.learning_rate": (5e-4, 1e-3, 2e-3, 4e-3),
                    "classify.optimizer.weight_decay": (0.01, 0.05, 0.2),
                }
            ),
            seeds(3),
        ),
    )

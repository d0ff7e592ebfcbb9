r"""Guidance, keep rate and dose for the digits' pool, searched for on val.

    python -m experiments.sweep run --sweep=configs/sweeps/digits_search.py --out=runs/search \
        --search=tpe

Thirty trials of three classifiers each, the first with the base's own values; generator and
extractor are trained once.
"""

from lt_jax import config as config_lib
from lt_jax.sweep.definition import Search, Sweep
from lt_jax.sweep.space import Choice, Uniform

ARM = "synthetic"


def get_sweep() -> Sweep:
    """The search."""
    return Sweep(
        base="configs/digits.py",
        shared={
            "classify.arms": config_lib.arms(
                **{ARM: {"controller": "uniform", "dose": 1.0, "loss": "balanced_softmax"}}
            ),
            "evaluate.baseline": ARM,
        },
        search=Search(
            space={
                "synthesize.guidance_scale": Uniform(0.0, 4.0),
                "synthesize.selection.keep_rate": Choice((0.5, 0.7, 0.9, 0.99)),
                "synthesize.selection.label_probability": Uniform(0.0, 0.8),
                "classify.optimizer.learning_rate": Uniform(3e-4, 1e-2, log=True),
            },
            objective=f"val/{ARM}/balanced_accuracy",
            trials=30,
        ),
    )

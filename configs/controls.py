r"""Every control and every baseline of the long-tail literature on a data set, at equal steps.

    python -m lt_jax.main --config=configs/controls.py --workdir=runs/controls
    python -m lt_jax.main --config=configs/controls.py:phantom --workdir=runs/controls_phantom

Data, networks, generator and recipe are those of the config named behind the colon (`digits` where
none is); what differs is the arms, each with as many steps in all, a second stage's among them (a
fifth). On the digits these are 300 of 128 images.

Takes a quarter of an hour on two idle cores, by the pace of its quickest runs (52 min of stages'
time with six other programs on them); gives (3 seeds) these balanced accuracies and, over those of
cross-entropy, FLOPs:

    ce                          0.530 +- 0.007   1.00
    resample                    0.669 +- 0.027   1.00
    source_replay               0.670 +- 0.018   1.00
    synthetic_fill_to_head      0.651 +- 0.030   1.00
    shuffled_doses              0.435 +- 0.102   1.00
    shuffled_labels             0.379 +- 0.046   1.00
    randaugment                 0.393 +- 0.035   1.01
    mixup                       0.444 +- 0.029   1.00
    cutmix                      0.324 +- 0.027   1.00
    balanced_softmax            0.640 +- 0.063   1.00
    logit_adjusted              0.639 +- 0.067   1.00
    ldam_drw                    0.389 +- 0.048   1.00
    lade                        0.650 +- 0.068   1.00
    crt                         0.494 +- 0.031   0.87
    tau_norm                    0.554 +- 0.014   1.00
    lws                         0.476 +- 0.037   0.87
    balpoe                      0.637 +- 0.018   1.50
    ncl                         0.607 +- 0.041   1.50
    synthetic_balanced_softmax  0.660 +- 0.053   1.00
    synthetic_balpoe            0.672 +- 0.017   1.50

What the controls say here: images without their labels' meaning do harm (shuffled_labels), and real
images repeated as often do as well as synthetic ones (source_replay). What the others say is that
300 steps are few: whatever makes the task harder (strong augmentation, margins) or takes steps away
(second stages) is behind, and equalize finds too few pixels in 8 x 8. They compare machinery, not
methods. ResNet-32 and ResNet-18 are for `cifar10_lt` and its like:

    --config.classify.model.kind=resnet --config.classify.model.resnet.variant=resnet32
"""

import importlib
from typing import Any

from ml_collections import ConfigDict

from lt_jax import config as config_lib


def get_config(of: str = "digits") -> ConfigDict:
    """The locked config: that of `configs/<of>.py` with these arms.

    Raises:
      ConfigError: there is no such config.
    """
    try:
        config: Any = importlib.import_module(f"configs.{of}").get_config()
    except ModuleNotFoundError as error:
        raise config_lib.ConfigError(
            f"configs/controls.py: got {of!r}; takes the name of a file of configs/, such as "
            "digits, phantom or ham10000"
        ) from error
    filled = {"controller": "fill_to_head"}
    with config.unlocked():
        config.classify.arms = config_lib.arms(
            ce={},
            # Controls: the same images more often, real ones in the synthetic ones' place, ...
            resample={"sampler": "balanced"},
            synthetic_fill_to_head=filled,
            source_replay={"controller": "source_replay"},
            # ... doses of other classes, and images that say nothing of their class.
            shuffled_doses={"controller": "shuffled"},
            shuffled_labels={**filled, "pool_labels": "shuffled"},
            # Strong augmentation.
            randaugment={"strong_augment": "randaugment"},
            mixup={"strong_augment": "mixup"},
            cutmix={"strong_augment": "cutmix"},
            # Losses.
            balanced_softmax={"loss": "balanced_softmax"},
            logit_adjusted={"loss": "logit_adjusted"},
            ldam_drw={"loss": "ldam_drw"},
            lade={"loss": "lade"},
            # Decoupled training.
            crt={"second_stage": "crt", "second_stage_steps": 0.2},
            tau_norm={"second_stage": "tau_norm"},
            lws={"second_stage": "lws", "second_stage_steps": 0.2, "second_stage_rate": 10.0},
            # Ensembles, the ceiling; and the strongest with synthetic images.
            balpoe={"experts": 3, "expert_loss": "balpoe"},
            ncl={"experts": 3, "expert_loss": "ncl"},
            synthetic_balanced_softmax={**filled, "loss": "balanced_softmax"},
            synthetic_balpoe={**filled, "experts": 3, "expert_loss": "balpoe"},
        )
    return config

r"""Lesion detection on simulated breast ultrasound at 32 px: real, synthetic and mixed images.

    python -m lt_jax.main --config=configs/phantom_detect.py --workdir=runs/phantom_detect

or, in minutes and without a generator, --config=configs/phantom_detect.py:real.

Nothing is downloaded: images, masks and boxes are those of `configs/phantom.py`, of which each has
one lesion. The generator is told class, lesion box and device, and the boxes of its images are what
it was told. All arms make the same number of steps.

Takes about 15 minutes on two cores; gives an average precision at IoU 0.5 (3 seeds) of 0.662 +-
0.008 on real images alone, 0.671 +- 0.010 filled up, 0.652 +- 0.012 with half of the draws
synthetic and 0.585 +- 0.004 on synthetic images alone (experiments/detection/README.md).
"""

from typing import Any

from ml_collections import ConfigDict

from configs import busi_detect, phantom
from lt_jax import config as config_lib


def get_config(arms: str = "") -> ConfigDict:
    """The locked config: that of `phantom` with detection, and one arm of classification.

    `arms`: those of detection that are run, by name with commas between; empty: all.
    """
    config: Any = phantom.get_config()
    with config.unlocked():
        config.synthesize.min_dose = 1.0
        config.classify.arms = config_lib.arms(ce={})
        busi_detect.detection(config, arms)
    return config

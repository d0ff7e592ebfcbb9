r"""Lesion detection on breast ultrasound (BUSI) at 64 px: real, synthetic and mixed images.

    python -m lt_jax.main --config=configs/busi_detect.py --workdir=runs/busi_detect \
        --config.data.root=DIR

or, in minutes and without a generator, --config=configs/busi_detect.py:real. DIR as of
`configs/busi.py`. The generator is told class, lesion boxes and device, and at least as many images
of each class are asked for as there are real ones: their boxes are what the generator was told, so
that nobody had to draw them. All arms make the same number of steps. Normal images, real or
synthetic, are background.

Takes 40 to 60 minutes on two cores, of which a detector is about one. On real images alone
it gives an average precision at IoU 0.5 of 0.538 +- 0.020 (3 seeds), or 0.517 +- 0.039 on one
device; synthetic ones beside them take from it (experiments/detection/README.md).
"""

from typing import Any

from ml_collections import ConfigDict

from configs import busi
from lt_jax import config as config_lib


def get_config(arms: str = "") -> ConfigDict:
    """The locked config: that of `busi` at 64 px with detection, and one arm of classification.

    `arms`: those of detection that are run, by name with commas between; empty: all.
    """
    config: Any = busi.get_config()
    with config.unlocked():
        config.data.image_size = 64
        config.synthesize.min_dose = 1.0
        config.classify.arms = config_lib.arms(ce={})
        detection(config, arms)
        config.detect.augment.update(shift=4)
    return config


def detection(config: Any, arms: str) -> None:
    """Sets what detection takes besides its data; also for `phantom_detect`."""
    detect = config.detect
    detect.update(steps=600, batch_size=32, looks=4)
    detect.model.update(width=48, head_blocks=1)
    detect.model.resnet.update(channels=(16, 32, 64, 64), blocks=(1, 1, 1, 1))
    detect.optimizer.update(learning_rate=2e-3, warmup_steps=50, weight_decay=0.01)
    detect.augment.update(horizontal_flip=True, shift=2, scale=0.1, brightness=0.1, contrast=0.1)
    every = config_lib.detect_arms(
        real={},
        synthetic={"data": "synthetic"},
        mixed={"data": "mixed", "share": 0.5},
        filled={"data": "mixed", "mix": "fill_to_head"},
    )
    chosen = arms.split(",") if arms else list(every)
    if unknown := set(chosen) - set(every):
        raise config_lib.ConfigError(
            f"configs: no arm {min(unknown)!r} of detection; takes some of {', '.join(every)}"
        )
    detect.arms = {name: every[name] for name in chosen}

r"""Breast ultrasound (BUSI) at 32 px: three classes, lesion boxes and device told to the generator.

    python -m lt_jax.main --config=configs/busi.py --workdir=runs/busi --config.data.root=DIR

DIR holds `Dataset_BUSI_with_GT` and `lesion_boxes.json`, which names the devices. The official set
has masks in its place: boxes are drawn around them, and --config.generator.conditions.device= is
needed. Duplicates and near-duplicates stay on one side of a split.

Takes about 20 minutes on two cores. What it gives is known of its parts (experiments/generators,
3 seeds): a balanced accuracy of 0.473 +- 0.015 with cross-entropy, 0.546 +- 0.019 with balanced
softmax, and 0.516 +- 0.062 with its pool filled to the head and balanced softmax. The set is small:
of 607 of its 780 images, 204, 96 and 67 are to train and 66, 35 and 19 to test, so that a few
points between two arms mean nothing.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import phantom


def get_config() -> ConfigDict:
    """The locked config: that of `phantom`, whose generator fits, with other data and steps."""
    config: Any = phantom.get_config()
    with config.unlocked():
        config.data.update(
            source="busi", profile="natural", imbalance_factor=1.0, near_duplicates="move"
        )
        config.data.split.update(val=0.1, test=0.2)
        # Few images, so that they are moved about, and the generator is told by how much.
        moved = {"horizontal_flip": True, "shift": 2, "scale": 0.1}
        generator = config.generator
        generator.update(steps=600, ema_decay=0.998)
        generator.conditions.update(max_boxes=4, augmentation=True)
        generator.optimizer.update(learning_rate=1e-3, warmup_steps=100)
        generator.augment.update(moved)
        for part in (config.extractor, config.classify):
            part.optimizer.weight_decay = 0.05
            part.augment.update(moved)
        config.evaluate.update(head_above=150, tail_below=75)
    return config

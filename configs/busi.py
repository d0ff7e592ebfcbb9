r"""Breast ultrasound (BUSI) at 32 px: three classes, lesion boxes and device told to the generator.

    python -m lt_jax.main --config=configs/busi.py --workdir=runs/busi --config.data.root=DIR

DIR holds `Dataset_BUSI_with_GT`, and `lesion_boxes.json` if there is one; else boxes are drawn
around the masks of the official set. Duplicates and near-duplicates stay on one side of a split.

Not run yet. Takes, by count of its arithmetic beside that of `ham10000`, about 20 minutes on two
cores; what it gives is not known. The set is small: of 607 of its 780 images, 204, 96 and 67 are
to train and 66, 35 and 19 to test, so that a few points between two arms will mean nothing.
"""

from typing import Any

from ml_collections import ConfigDict

from lt_jax import config as config_lib


def get_config() -> ConfigDict:
    """The locked config."""
    config: Any = config_lib.defaults()
    with config.unlocked():
        config.data.update(
            source="busi",
            image_size=32,
            channels=1,
            profile="natural",
        )
        # Sound comes from above, so that left and right alone may be exchanged.
        moved = {"horizontal_flip": True, "shift": 2, "scale": 0.1}

        generator = config.generator
        generator.update(steps=600, batch_size=128, ema_decay=0.998, sampler="square_root")
        # The network of `phantom`, so that its generator can be adapted.
        generator.model.update(
            channels=(32, 64), blocks=1, attention_resolutions=(4,), patch_size=4
        )
        # Few images, so that they are moved about, and the generator is told by how much.
        generator.conditions.update(boxes="channel", device="device", augmentation=True)
        generator.optimizer.update(learning_rate=1e-3, warmup_steps=100)
        generator.augment.update(moved)

        for part, steps in ((config.extractor, 300), (config.classify, 300)):
            part.update(steps=steps, batch_size=64)
            part.model.kind = "resnet"
            part.model.resnet.update(channels=(16, 32, 64), blocks=(1, 1, 1))
            part.optimizer.update(learning_rate=3e-3, warmup_steps=30, weight_decay=0.05)
            part.augment.update(**moved, brightness=0.1, contrast=0.1)

        config.synthesize.update(
            sampler="dpmpp_2m",
            steps=20,
            guidance_scale=1.5,
            batch_size=128,
        )
        config.classify.arms = config_lib.arms(
            ce={},
            resample={"sampler": "balanced"},
            balanced_softmax={"loss": "balanced_softmax"},
            synthetic_fill_to_head={"controller": "fill_to_head"},
            synthetic_fill_to_head_balanced_softmax={
                "controller": "fill_to_head",
                "loss": "balanced_softmax",
            },
            source_replay={"controller": "source_replay"},
        )
        config.evaluate.update(head_above=150, tail_below=75)
    return config

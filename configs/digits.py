r"""Handwritten digits, made long-tailed: the demo, from images to report in minutes on two cores.

    python -m lt_jax.main --config=configs/digits.py --workdir=runs/demo

Data: scikit-learn's 1,797 digits of 8 x 8 pixels (embedded in its wheel). The train split falls
exponentially from 99 images of "0" to 4 of "9"; the other splits stay balanced.

Takes 7 min 35 s with the install, on two cores; gives (3 seeds) a balanced accuracy of
0.530 +- 0.007 with cross-entropy, 0.640 +- 0.063 with balanced softmax, 0.651 +- 0.030 filled to
the head with synthetic images and 0.670 +- 0.018 with repeated real ones in their place.
"""

from typing import Any

from ml_collections import ConfigDict

from lt_jax import config as config_lib


def get_config() -> ConfigDict:
    """The locked config."""
    config: Any = config_lib.defaults()
    with config.unlocked():
        config.data.update(
            source="digits",
            image_size=8,
            channels=1,
            profile="exponential",
            imbalance_factor=20.0,
            near_duplicates="off",
        )
        config.data.split.update(policy_val=0.1, val=0.1, test=0.24)

        generator = config.generator
        generator.update(steps=900, batch_size=128, ema_decay=0.995, sampler="square_root")
        generator.model.update(channels=(32, 64), blocks=1, attention_resolutions=(4,))
        generator.optimizer.update(learning_rate=2e-3, warmup_steps=50)
        generator.augment.update(shift=1)

        vit = {
            "variant": "custom",
            "width": 64,
            "depth": 4,
            "heads": 4,
            "mlp": 128,
            "patch_size": 2,
        }
        for part, steps in ((config.extractor, 300), (config.classify, 300)):
            part.update(steps=steps, batch_size=128)
            part.model.vit.update(vit)
            part.optimizer.update(learning_rate=2e-3, warmup_steps=30, weight_decay=0.05)
            part.augment.update(shift=1, scale=0.1, rotate=10.0)

        config.synthesize.update(
            sampler="dpmpp_2m",
            steps=20,
            guidance_scale=1.5,
            batch_size=128,
            min_dose=1.0,
        )
        config.classify.arms = config_lib.arms(
            ce={},
            resample={"sampler": "balanced"},
            balanced_softmax={"loss": "balanced_softmax"},
            synthetic_uniform_50={"controller": "uniform", "dose": 0.5},
            synthetic_uniform_100={"controller": "uniform", "dose": 1.0},
            synthetic_fill_to_head={"controller": "fill_to_head"},
            source_replay={"controller": "source_replay"},
        )
        config.evaluate.update(head_above=50, tail_below=20)
        config.runtime.update(log_every=50, checkpoint_every=100)
    return config

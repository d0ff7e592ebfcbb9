r"""ISIC 2019 dermoscopy at 64 px: eight classes, natural long tail (12,875 nevi, 239 DF).

    python -m lt_jax.main --config=configs/isic2019.py --workdir=runs/isic2019 \
        --config.data.root=DIR

DIR holds the official layout: `ISIC_2019_Training_Input`, `ISIC_2019_Training_GroundTruth.csv` and
`ISIC_2019_Training_Metadata.csv`, whose lesion ids keep all images of a lesion on one side of a
split. It needs a GPU.

Not run yet. Takes, by count, 0.22 EFLOPs for the generator (24 M parameters) and 0.20 for the 21
classifiers: an hour or two on an H200, were a tenth of its peak reached; what it gives is not
known. For orientation: with an imbalance of 100 and an ImageNet ResNet-50, published balanced
accuracy is 0.484 where splits respect lesions, and 0.611 where they do not.
"""

from typing import Any

from ml_collections import ConfigDict

from lt_jax import config as config_lib


def get_config() -> ConfigDict:
    """The locked config."""
    config: Any = config_lib.defaults()
    with config.unlocked():
        config.data.update(
            source="isic2019",
            image_size=64,
            channels=3,
            profile="natural",
        )
        # Lesions have no up or down, and neither has dermoscopy.
        symmetric = {"horizontal_flip": True, "vertical_flip": True, "rotate90": True}

        generator = config.generator
        generator.update(steps=40_000, batch_size=128, ema_decay=0.9995, sampler="square_root")
        generator.model.update(
            channels=(64, 128, 192, 256),
            blocks=2,
            attention_resolutions=(16, 8),
            embedding=256,
            dropout=0.1,
            dtype="bfloat16",
        )
        generator.optimizer.update(learning_rate=3e-4, warmup_steps=1_000, b2=0.999)
        generator.augment.update(symmetric)

        for part in (config.extractor, config.classify):
            part.update(steps=6_000, batch_size=128)
            part.model.kind = "resnet"
            part.model.resnet.variant = "resnet18"
            part.model.resnet.dtype = "bfloat16"
            part.optimizer.update(learning_rate=1e-3, warmup_steps=500, weight_decay=0.05)
            part.augment.update(
                **symmetric,
                shift=4,
                scale=0.1,
                brightness=0.1,
                contrast=0.1,
                saturation=0.1,
            )

        config.synthesize.update(
            sampler="dpmpp_2m",
            steps=30,
            guidance_scale=1.5,
            batch_size=256,
            fill_to=2_000,
        )
        filled = {"fill_to": 2_000}
        config.classify.arms = config_lib.arms(
            ce={},
            resample={"sampler": "balanced"},
            balanced_softmax={"loss": "balanced_softmax"},
            ldam_drw={"loss": "ldam_drw"},
            synthetic_fill_to_2000={"controller": "fill_to_head", **filled},
            synthetic_fill_to_2000_balanced_softmax={
                "controller": "fill_to_head",
                "loss": "balanced_softmax",
                **filled,
            },
            source_replay_2000={"controller": "source_replay", **filled},
        )
        config.evaluate.update(head_above=1_500, tail_below=200)
        config.runtime.update(log_every=100, checkpoint_every=2_000)
    return config

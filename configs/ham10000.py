r"""HAM10000 dermoscopy at 32 px: seven classes, natural long tail, the whole pipeline on two cores.

    python -m lt_jax.main --config=configs/ham10000.py --workdir=runs/ham --config.data.root=DIR

DIR holds the official layout: `HAM10000_metadata.csv` and the image folder, and the lesion masks
where they are wanted. Splits keep all images of a lesion on one side.

Takes about 80 minutes on two shared cores; gives (3 seeds, 7,955 of the 10,015 images) a balanced
accuracy of 0.328 +- 0.011 with cross-entropy, 0.545 +- 0.034 with balanced softmax, 0.444 +- 0.023
with synthetic images up to 500 a class, 0.439 +- 0.020 with repeated real ones in their place, and
0.564 +- 0.011 with synthetic images and balanced softmax: see experiments/ham10000/README.md.
"""

from typing import Any

from ml_collections import ConfigDict

from lt_jax import config as config_lib


def get_config() -> ConfigDict:
    """The locked config."""
    config: Any = config_lib.defaults()
    with config.unlocked():
        config.data.update(
            source="ham10000",
            image_size=32,
            channels=3,
            profile="natural",
        )
        # Lesions have no up or down, and neither has dermoscopy.
        symmetric = {"horizontal_flip": True, "vertical_flip": True, "rotate90": True}

        generator = config.generator
        generator.update(steps=900, batch_size=128, ema_decay=0.998, sampler="square_root")
        generator.model.update(
            channels=(32, 64, 64),
            blocks=2,
            attention_resolutions=(8,),
            patch_size=2,
        )
        generator.optimizer.update(learning_rate=1e-3, warmup_steps=100)
        generator.augment.update(symmetric)

        vit = {
            "variant": "custom",
            "width": 64,
            "depth": 4,
            "heads": 1,
            "mlp": 128,
            "patch_size": 4,
        }
        for part, steps in ((config.extractor, 400), (config.classify, 400)):
            part.update(steps=steps, batch_size=128)
            part.model.vit.update(vit)
            part.optimizer.update(learning_rate=2e-3, warmup_steps=50, weight_decay=0.05)
            part.augment.update(
                **symmetric,
                shift=2,
                scale=0.1,
                brightness=0.1,
                contrast=0.1,
                saturation=0.1,
            )

        config.synthesize.update(
            sampler="dpmpp_2m",
            steps=20,
            guidance_scale=1.5,
            batch_size=128,
            fill_to=500,
            min_dose=0.5,
            max_attempts=2.0,
        )
        config.classify.arms = config_lib.arms(
            ce={},
            resample={"sampler": "balanced"},
            balanced_softmax={"loss": "balanced_softmax"},
            synthetic_uniform_50={"controller": "uniform", "dose": 0.5},
            synthetic_fill_to_500={"controller": "fill_to_head", "fill_to": 500},
            synthetic_fill_to_500_balanced_softmax={
                "controller": "fill_to_head",
                "fill_to": 500,
                "loss": "balanced_softmax",
            },
            source_replay_500={"controller": "source_replay", "fill_to": 500},
        )
        config.evaluate.update(head_above=1000, tail_below=100)
    return config

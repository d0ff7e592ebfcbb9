r"""BUSGen's network and recipe (Yu et al. 2025, arXiv:2501.06869) on breast ultrasound (BUSI).

    python -m lt_jax.main --config=configs/busgen.py --workdir=runs/busgen \
        --config.data.root=DIR --stages=prepare,generator,extractor,synthesize

and at the smaller published size with --config.data.image_size=128. DIR holds
`Dataset_BUSI_with_GT`. It needs a GPU. Training it was not run here, and nothing is claimed of its
images.

Takes, by count, 1.1 TFLOPs a forward pass and image at 160 px (0.53 at 128), 2.1 EFLOPs for the
40,000 steps: two to three hours on an H200 at a third of its peak, which was not measured. What it
gives is a network to compare speed and size with like for like: 47.7 M parameters against the
47.8 M published.

As in the released code (github.com/HaojunYu1998/BUSGen): 128 x [1, 2, 2, 2] channels, two blocks a
level, 32 groups, dropout 0.15, single-head attention after every block going down and after the
first middle one, 3x3 + 5x5 convolutions with stride 2 and transposed ones for resampling, class and
device embedded, concatenated and mixed beside the noise level, boxes as a channel, T = 500 with
beta from 1e-4 to 0.028 (T beta = 0.05 to 14 in continuous time), eps prediction with the plain
loss, classes balanced, all conditions dropped together at 0.1, AdamW, clipping at 1, no average of
the parameters, horizontal flips, guidance 2.8 (their w = 1.8), 50 steps.

What differs:
  - the noise level is continuous and read through fixed Fourier features, where they learn a table
    of 500 rows (64,000 parameters); blocks have one bias for both embeddings, where they have two;
  - boxes have a second channel that says whether any were told, where theirs takes "no boxes told"
    and "no lesion" for the same; "normal" is a class of its own;
  - the last convolution of a block and of attention start at zero;
  - compute is in bfloat16, which the fused attention takes, where theirs is in float32;
  - the rate rises from 0 to 1.5625e-5 (2.5 x 6.25e-6) over a tenth of the steps, where theirs
    starts at 6.25e-6; our loss is a mean over pixels, theirs a sum, so that theirs is clipped in
    every step; batch and steps are ours, theirs being 70 passes over data that are not public;
  - shifts and zoom in place of random crops that keep the lesions;
  - DPM-Solver++(2M) in place of the single-step DPM-Solver of order 3.
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
            image_size=160,
            channels=3,
            profile="natural",
        )

        generator = config.generator
        generator.update(
            steps=40_000,
            batch_size=16,
            ema_decay=0.0,
            sampler="balanced",
            condition_dropout=0.1,
        )
        generator.model.update(
            channels=(128, 256, 256, 256),
            blocks=2,
            # Every level, of images of 160 and of 128 pixels.
            attention_resolutions=(160, 128, 80, 64, 40, 32, 20, 16),
            attention="encoder",
            head_channels=256,  # one head a block
            groups=32,
            resample="convolution",
            modulation="shift",
            class_embedding="concatenate",
            embedding=512,
            dropout=0.15,
            dtype="bfloat16",
        )
        generator.process.update(
            schedule="linear",
            beta_min=0.05,
            beta_max=14.0,
            prediction="eps",
            min_snr_gamma=0.0,
        )
        generator.conditions.update(
            boxes="channel",
            device="device",
            boxes_dropout=0.0,
            device_dropout=0.0,
        )
        generator.optimizer.update(
            learning_rate=1.5625e-5,
            warmup_steps=4_000,
            schedule="cosine",
            weight_decay=1e-4,
            b2=0.999,
            clip_norm=1.0,
        )
        generator.augment.update(horizontal_flip=True, shift=8, scale=0.1)

        for part in (config.extractor, config.classify):
            part.update(steps=2_000, batch_size=64)
            part.model.kind = "resnet"
            part.model.resnet.update(channels=(32, 64, 128, 256), blocks=(2, 2, 2, 2))
            part.optimizer.update(learning_rate=1e-3, warmup_steps=200, weight_decay=0.05)
            part.augment.update(horizontal_flip=True, shift=8, scale=0.1)

        config.synthesize.update(
            sampler="dpmpp_2m",
            steps=50,
            guidance_scale=2.8,
            batch_size=32,
        )
        config.classify.arms = config_lib.arms(
            ce={},
            balanced_softmax={"loss": "balanced_softmax"},
            synthetic_fill_to_head={"controller": "fill_to_head"},
        )
        config.runtime.update(log_every=100, checkpoint_every=1_000)
    return config

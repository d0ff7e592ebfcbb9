"""Any config, cut down to a run of seconds: the same stages, arms and options at the least size."""

import ml_collections


def shrink(config: ml_collections.ConfigDict, levels: int = 2) -> ml_collections.ConfigDict:
    """Least steps, networks, images and seeds; else as it is.

    The UNet has one or two `levels`, and attention where it has two.
    """
    with config.unlocked():
        config.data.image_size = 8
        for part in (config.generator, config.extractor, config.classify):
            part.update(steps=4, batch_size=16)
        unet = config.generator.model
        unet.update(
            channels=(8, 16)[:levels],
            blocks=1,
            attention_resolutions=(2,),
            groups=min(unet.groups, 4),
            embedding=16,
            patch_size=2,
        )
        config.generator.ema_snapshots = 2
        vit = {
            "variant": "custom",
            "width": 16,
            "depth": 1,
            "heads": 2,
            "mlp": 16,
            "patch_size": 4,
        }
        for part in (config.extractor, config.classify):
            part.model.vit.update(vit)
            part.model.resnet.update(variant="custom", channels=(8,), blocks=(1,))
        config.classify.update(rounds=2, seeds=(0, 1))
        config.detect.update(steps=4, looks=2, batch_size=16, seeds=(0, 1))
        config.detect.model.update(width=8, head_blocks=0)
        config.detect.model.resnet.update(channels=(8, 8), blocks=(1, 1))
        config.synthesize.update(steps=2, batch_size=16, fill_to=12, min_dose=0.0, max_attempts=1.0)
        config.synthesize.update(repaint_jump=1, repaint_resamples=2)
        # A network of four steps passes no honest gate; this run is about the plumbing.
        config.synthesize.selection.update(scores=(), label_probability=0.0)
        config.mixing.update(rounds=2, reference_runs=1)
        config.mixing.proxy.update(batch_size=8, minibatches=2, hidden=4)
        config.mixing.policy.update(width=4, episodes=4, updates=3, epochs=1, minibatches=1)
        config.mixing.policy.seeds = (0, 1)
        config.evaluate.update(resamples=100, permutations=100, pictures=())
        config.runtime.update(log_every=2, checkpoint_every=2)
    return config

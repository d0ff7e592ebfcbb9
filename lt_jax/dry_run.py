"""What a run is going to be: stages, cache keys, parameter counts, an estimate of the work."""

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax import config as config_lib
from lt_jax.data import sources
from lt_jax.diffusion import synthesize
from lt_jax.diffusion import train as diffusion_train
from lt_jax.models import classifier, module
from lt_jax.pipeline import Pipeline
from lt_jax.runtime import ledger


def describe(run: Pipeline, names: list[str]) -> str:
    """A line a stage: state, cache key; then parameters and the arithmetic of each stage.

    Arithmetic is XLA's count of forward passes on this backend; a training step is taken as three
    of them (forward, and two products backward).
    """
    lines = ["stage                                    state     cache key"]
    for spec in run.selected(names):
        state = "finished" if run.store.done(spec) else "to run"
        lines.append(f"{spec.stage:40s} {state:9s} {spec.key[:16]}")
    try:
        classes = len(sources.load(run.config.data).classes)
    except (OSError, ValueError) as error:
        return "\n".join([*lines, "", f"parameters and work: need the data set ({error})"])
    return "\n".join([*lines, "", *_work(run.config, classes)])


def _work(config: config_lib.Config, classes: int) -> list[str]:
    size, channels = config.data.image_size, config.data.channels
    generator, synthesis = config.generator, config.synthesize
    unet = diffusion_train.make_unet(generator, classes, channels)
    example = diffusion_train.example(size, channels)
    shapes = module.abstract(unet, *example, train=False)
    forward = jax.jit(lambda params, *args: module.apply(unet, params, *args, train=False))
    lines = ["part         parameters      images      TFLOPs"]
    images = generator.steps * generator.batch_size
    flops = 3.0 * images * ledger.flops(forward, shapes, *example)
    lines.append(_line("generator", module.count(shapes), images, flops))
    extractor = config.extractor
    lines.append(
        _classifier_line(
            "extractor",
            extractor.model,
            "default",
            config,
            classes,
            extractor.steps * extractor.batch_size,
        )
    )
    networks = synthesize.Networks(generator, extractor.model, classes, (size, size, channels))
    per_image = synthesize.network_flops(synthesis, networks)
    lines.append(
        f"synthesize: {per_image / 1e9:.3f} GFLOPs an image, at most {synthesis.max_attempts:g} "
        "attempts an image asked for (how many: after prepare)"
    )
    runs = len(config.classify.seeds)
    for network in sorted({arm.network for arm in config.classify.arms.values()}):
        arms = [a for a in config.classify.arms.values() if a.network == network]
        images = len(arms) * runs * config.classify.steps * config.classify.batch_size
        name = f"classify x{len(arms) * runs}"
        lines.append(
            _classifier_line(name, config.classify.model, network, config, classes, images)
        )
    return lines


def _classifier_line(
    name: str,
    model: config_lib.ClassifierConfig,
    kind: str,
    config: config_lib.Config,
    classes: int,
    images: int,
) -> str:
    network = classifier.make(model, classes, kind)
    size = config.data.image_size
    example = jnp.zeros((1, size, size, config.data.channels))
    shapes = module.abstract(network, example, train=False)
    forward = jax.jit(lambda params, x: module.apply(network, params, x, train=False))
    flops = 3.0 * images * ledger.flops(forward, shapes, example)
    return _line(name, module.count(shapes), images, flops)


def _line(name: str, parameters: int, images: int, flops: float) -> str:
    return f"{name:12s} {parameters:10,d} {images:11,d} {np.round(flops / 1e12, 3):11,}"

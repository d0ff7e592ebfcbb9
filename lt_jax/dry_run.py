"""What a run is going to be: stages, cache keys, parameter counts, an estimate of the work."""

import json
from collections.abc import Sequence

import jax

from lt_jax import config as config_lib
from lt_jax import preflight
from lt_jax.diffusion import program
from lt_jax.diffusion.generator import Generator
from lt_jax.mixing import costs
from lt_jax.models import module
from lt_jax.models.conditioning import Vocabulary
from lt_jax.pipeline import Pipeline
from lt_jax.runtime import ledger


def describe(run: Pipeline, names: Sequence[str]) -> str:
    """The resolved config as JSON, the stages with their keys, parameters and arithmetic.

    Arithmetic is XLA's count of forward passes on this backend; a training step is taken as three
    of them (forward, and two products backward).

    Raises:
      ConfigError: a network does not fit the images, or a stage cannot do what it is asked for.
    """
    selected = run.selected(names)
    lines = [json.dumps(config_lib.to_dict(run.config), indent=1), ""]
    lines.append(f"{'stage':40s} {'state':9s} cache key")
    for spec in selected:
        state = "finished" if run.store.done(spec) else "to run"
        lines.append(f"{spec.stage:40s} {state:9s} {spec.key[:16]}")
    try:
        known = preflight.vocabulary(run.config)
    except (OSError, ValueError) as error:
        return "\n".join([*lines, "", f"parameters and work: need the data set ({error})"])
    stages = {spec.stage.split("/")[0] for spec in selected}
    return "\n".join([*lines, "", *_work(run, stages, known)])


def _work(run: Pipeline, stages: set[str], known: Vocabulary) -> list[str]:
    config = run.config
    lines = [f"{'training':24s} {'parameters':>12s} {'images':>12s} {'TFLOPs':>10s}"]
    for name, network in preflight.check_stages(config, stages, known).items():
        forward = jax.jit(
            lambda params, *args, net=network.module: module.apply(net, params, *args, train=False)
        )
        # CBDM asks for a second prediction, under another label, in every step.
        passes = 2.0 if name == "generator" and config.generator.cbdm_weight > 0 else 1.0
        flops = 3.0 * passes * network.images
        flops *= ledger.flops(forward, network.params, *network.example)
        count = module.count(network.params)
        lines.append(f"{name:24s} {count:12,d} {network.images:12,d} {flops / 1e12:10.3f}")
    if "synthesize" in stages:
        size, channels = config.data.image_size, config.data.channels
        generator = Generator(config.generator, known, (size, size, channels))
        present = tuple(name for name in known.names if name in config.synthesize.given)
        networks = program.Networks(generator, config.extractor.model, present)
        flops = program.network_flops(config.synthesize, networks)
        lines.append(
            f"synthesize: {flops / 1e9:.3f} GFLOPs an image, at most "
            f"{config.synthesize.max_attempts:g} attempts an image asked for (how many images: "
            "after prepare)"
        )
    if "audit" in stages and "membership" in config.audit.parts:
        passes = len(config.audit.noise_times) * config.audit.draws
        lines.append(
            f"audit/membership: {passes} passes of the generator over each of at most "
            f"{2 * config.audit.images:,d} images"
        )
    if "audit" in stages and "accuracy_score" in config.audit.parts:
        lines.append(
            f"audit/accuracy_score: 2 or 3 trainings of the classifier for each of "
            f"{len(config.classify.seeds)} seeds, {config.classify.steps:,d} steps each"
        )
    if "mixing" in stages:
        policy = config.mixing.policy
        each = costs.trainings(config.mixing.reward, known.num_classes)
        each *= policy.updates * policy.episodes
        lines.append(
            f"mixing: {len(policy.seeds)} policies, {each:,d} trainings of a proxy each, and as "
            f"many of random search; {config.mixing.rounds} rounds of "
            f"{config.mixing.proxy.minibatches} x {config.mixing.proxy.batch_size} draws a training"
        )
    return lines

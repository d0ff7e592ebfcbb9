"""Generate, score, select: conditions and noise in, judged uint8 images out, in one program.

Candidate i of a pool has class i mod K, noise from fold_in(key, i), and what it is asked to show
(`requests`) from (seed, i): it depends on these alone. Classes are filled in waves; a wave asks for
what is missing over the rate of acceptance so far, until every class has what it asked for or its
budget of attempts is spent.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lt_jax.config import ClassifierConfig, SynthesizeConfig
from lt_jax.data import augment
from lt_jax.data.pool import VERDICTS, PoolWriter
from lt_jax.diffusion import guidance, inpaint, samplers, sketch, thresholds
from lt_jax.diffusion.generator import Generator
from lt_jax.diffusion.placement import HOLED
from lt_jax.diffusion.requests import Request
from lt_jax.models import classifier, conditioning, module
from lt_jax.runtime import faults, files, keys, ledger, mesh
from lt_jax.runtime.progress import Progress
from lt_jax.selection import select
from lt_jax.shapes import Array, Images, Int, Params, PRNGKey, UInt8


@dataclasses.dataclass(frozen=True)
class Networks:
    """What the program is compiled for; `present` are the conditions that guidance strengthens."""

    generator: Generator
    extractor: ClassifierConfig
    present: tuple[str, ...] = ("label",)


Judged = tuple[UInt8[Array, "b h w c"], select.Verdict]
Program = Callable[..., Judged]


@functools.cache
def make_program(config: SynthesizeConfig, networks: Networks, device_mesh: Mesh) -> Program:
    """The compiled program `(unet_params, extractor_params, gates, key, indices [b], request)`."""
    num_classes = networks.generator.vocabulary.num_classes
    extractor = classifier.make(networks.extractor, num_classes)

    def program(
        unet_params: Params,
        extractor_params: Params,
        gates: select.Gates,
        key: PRNGKey,
        indices: Int[Array, "b"],
        request: Request,
    ) -> Judged:
        images = make_images(config, networks, unet_params, key, indices, request)
        # Judged as they are stored: the classifier is going to see the quantised image.
        logits, features = module.apply(
            extractor, extractor_params, augment.normalize(images), train=False
        )
        labels = (indices % num_classes).astype(jnp.int32)
        return images, select.judge(gates, features, logits, labels)

    whole, split = mesh.replicated(device_mesh), mesh.batched(device_mesh)
    return jax.jit(
        program, in_shardings=(whole, whole, whole, whole, split, split), out_shardings=split
    )


def _denoiser(
    config: SynthesizeConfig, networks: Networks, params: Params, request: Request
) -> guidance.Denoiser:
    """The guided network under the request's conditions."""
    generator = networks.generator
    conditions = request.conditions
    if request.drawn is not None:
        drawn = augment.normalize(request.drawn)
        sketches = sketch.sketch(drawn, request.drawn_mask, generator.config.sketch)
        conditions = conditions.replace(sketch=sketches)
    if config.method == "inpaint":
        known = inpaint.as_condition(augment.normalize(request.source), request.hole)
        conditions = conditions.replace(inpaint=known)
    null = conditioning.null_like(conditions)
    if config.method == "inpaint":  # what surrounds the hole is seen with and without guidance
        null = dataclasses.replace(null, inpaint=conditions.inpaint)

    def predict(x_t: Array, log_snr: Array, told: conditioning.Conditions) -> Array:
        return module.apply(generator.unet, params, x_t, log_snr, told, train=False)

    guide = guidance.make(config, networks.present)
    return guidance.denoiser(generator.process, predict, conditions, null, guide)


def make_images(
    config: SynthesizeConfig,
    networks: Networks,
    params: Params,
    key: PRNGKey,
    indices: Int[Array, "b"],
    request: Request,
) -> UInt8[Array, "b h w c"]:
    """The method's images; outside a hole they are the source's, byte for byte (`config.seam`).

    Image i depends on (`key`, i) and its own row of `request` alone. `params` are the generator's.
    """
    generator = networks.generator
    denoise = _denoiser(config, networks, params, request)
    example_keys = keys.per_example(key, indices)
    noise = jax.vmap(lambda k: jax.random.normal(k, generator.image_shape))(
        keys_of(example_keys, "noise")
    )
    step_keys = keys_of(example_keys, "sampler")
    sampler = make_sampler(config, generator)
    if isinstance(sampler, inpaint.RePaint):
        known = augment.normalize(request.source)
        made: Images = sampler.sample(denoise, noise, step_keys, known, request.hole)
    elif config.method == "translate":
        made = inpaint.translate(
            generator.process.schedule,
            sampler,
            denoise,
            augment.normalize(request.source),
            request.start,
            step_keys,
        )
    else:
        made = sampler.sample(denoise, noise, step_keys)
    quantised = augment.quantize(made)
    if config.method in HOLED:
        return inpaint.paste(request.source, quantised, request.hole, config.seam)
    return quantised


def make_sampler(
    config: SynthesizeConfig, generator: Generator
) -> samplers.Sampler | inpaint.RePaint:
    """What turns noise into images."""
    if config.method != "repaint":
        return samplers.make(config, generator.process)
    return inpaint.RePaint(
        generator.process.schedule,
        config.steps,
        config.repaint_jump,
        config.repaint_resamples,
        eta=1.0,
        grid=config.grid,  # type: ignore[arg-type]
        threshold=thresholds.make(config),
    )


def network_flops(config: SynthesizeConfig, networks: Networks) -> float:
    """FLOPs of one generated and judged image, from XLA's count of one network evaluation."""
    unet = networks.generator.counted
    extractor = classifier.make(networks.extractor, networks.generator.vocabulary.num_classes)
    arguments = networks.generator.example
    extractor_params = module.abstract(extractor, arguments[0], train=False)
    evaluate = jax.jit(lambda params, *args: module.apply(unet, params, *args, train=False))
    extract = jax.jit(lambda params, images: module.apply(extractor, params, images, train=False))
    unet_flops = ledger.flops(evaluate, networks.generator.abstract(), *arguments)
    return evaluations(config, networks) * unet_flops + ledger.flops(
        extract, extractor_params, arguments[0]
    )


def evaluations(config: SynthesizeConfig, networks: Networks) -> int:
    """Network evaluations of one generated image: the sampler's times the guidance's."""
    guide = guidance.make(config, networks.present)
    return make_sampler(config, networks.generator).evaluations * guide.evaluations


def keys_of(example_keys: Array, name: str) -> Array:
    """The stream called `name` of each example's key [b]."""
    return jax.vmap(lambda key: keys.stream(key, name))(example_keys)


def wanted_counts(config: SynthesizeConfig, counts: np.ndarray) -> np.ndarray:
    """Accepted images [k] that each class of `counts` [k] train images should get."""
    target = config.fill_to or counts.max()
    return np.maximum(np.maximum(target - counts, 0), np.ceil(config.min_dose * counts)).astype(
        np.int64
    )


def next_wave(
    wanted: np.ndarray, accepted: np.ndarray, generated: np.ndarray, max_attempts: float
) -> np.ndarray:
    """Candidates [k] to generate next: what is missing over the acceptance rate, within budget."""
    missing = np.maximum(wanted - accepted, 0)
    rate = np.where(generated > 0, (accepted + 1.0) / (generated + 2.0), 1.0)
    budget = np.ceil(max_attempts * wanted).astype(np.int64) - generated
    return np.where(missing > 0, np.minimum(np.ceil(missing / rate), budget), 0).astype(np.int64)


def synthesize(
    config: SynthesizeConfig,
    program: Callable[[Int[Array, "b"], Any], Judged],
    requests: Callable[[np.ndarray], tuple[Any, dict[str, Any]]],
    wanted: np.ndarray,
    writer: PoolWriter,
    *,
    device_mesh: Mesh,
    folder: pathlib.Path,
    flops_per_image: float,
) -> ledger.Ledger:
    """Fills `wanted` [k] images a class into the pool, going on behind parts that are written.

    Args:
      program: (indices [config.batch_size], their request) -> images and verdict, everything
        else bound.
      requests: indices [b] -> their request, and columns of the pool; see `requests.Requests`.
      folder: of the stage; the ledger of an interrupted generation is kept there.
    """
    mesh.check_batch(config.batch_size, device_mesh, "config.synthesize.batch_size")
    classes = len(wanted)
    finished = writer.finished()
    costs_path = folder / "ledger.json"
    costs = ledger.Ledger()
    if finished and costs_path.exists():
        # Seconds only; the rest is counted from the parts, since a kill may fall between a part and
        # the ledger's file.
        costs.seconds = ledger.Ledger.of(json.loads(costs_path.read_text())).seconds
    clock = ledger.Clock(costs)
    accepted, generated = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    part = 0
    with Progress("synthesize", int(wanted.sum()), "image") as bar:
        while (wave := next_wave(wanted, accepted, generated, config.max_attempts)).any():
            indices = np.sort(
                np.concatenate(
                    [(generated[k] + np.arange(wave[k])) * classes + k for k in range(classes)]
                )
            )
            for start in range(0, len(indices), config.batch_size):
                chunk = indices[start : start + config.batch_size]
                new = part >= len(finished)
                columns = (
                    _generate(program, requests, chunk, config.batch_size, writer, part, classes)
                    if new
                    else finished[part]
                )
                costs.images += len(chunk)
                costs.flops += flops_per_image * len(chunk)
                if new:
                    clock.read()
                    files.write_atomically(
                        costs_path, json.dumps(dataclasses.asdict(costs)), "the ledger"
                    )
                    faults.raise_if_stopping(f"synthesize, part {part}")
                kept = columns["label"][columns["verdict"] == "accepted"]
                accepted += np.bincount(kept, minlength=classes)
                part += 1
                bar.update(int(np.minimum(accepted, wanted).sum()))
            generated += wave
    writer.finish(wanted)
    clock.read()
    return costs


def _generate(
    program: Callable[[Int[Array, "b"], Any], Judged],
    requests: Callable[[np.ndarray], tuple[Any, dict[str, Any]]],
    chunk: np.ndarray,
    batch_size: int,
    writer: PoolWriter,
    part: int,
    classes: int,
) -> dict[str, np.ndarray]:
    padded = mesh.pad(chunk, batch_size).astype(np.int32)
    request, asked = requests(padded)
    images, verdict = jax.device_get(program(jnp.asarray(padded), request))
    n = len(chunk)
    columns = {
        "index": chunk,
        "label": (chunk % classes).astype(np.int32),
        "score": verdict.scores[:n],
        "label_probability": verdict.label_probability[:n],
        "verdict": np.array(VERDICTS)[verdict.reason[:n]],
        **{name: column[:n] for name, column in asked.items()},
    }
    writer.write(part, images[:n], columns)
    return columns

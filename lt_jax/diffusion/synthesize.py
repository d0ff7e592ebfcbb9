"""Generate, score, select: conditions and noise in, judged uint8 images out, in one program.

Candidate i of a pool has class i mod K and noise from fold_in(key, i): it depends on (seed, i)
alone. Classes are filled in waves; a wave asks for what is missing over the rate of acceptance so
far, until every class has what it asked for or its budget of attempts is spent.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lt_jax.config import ClassifierConfig, GeneratorConfig, SynthesizeConfig
from lt_jax.data import augment
from lt_jax.data.pool import VERDICTS, PoolWriter
from lt_jax.diffusion import guidance, process, samplers
from lt_jax.diffusion.train import example, make_unet
from lt_jax.models import classifier, conditioning, module
from lt_jax.runtime import faults, files, keys, ledger, mesh
from lt_jax.runtime.progress import Progress
from lt_jax.selection import select
from lt_jax.shapes import Array, Int, Params, PRNGKey, UInt8


@dataclasses.dataclass(frozen=True)
class Networks:
    """What the program is compiled for."""

    generator: GeneratorConfig
    extractor: ClassifierConfig
    num_classes: int
    image_shape: tuple[int, int, int]


Program = Callable[..., tuple[UInt8[Array, "b h w c"], select.Verdict]]


@functools.cache
def make_program(config: SynthesizeConfig, networks: Networks, device_mesh: Mesh) -> Program:
    """The compiled program `(unet_params, extractor_params, gates, key, indices [b])`."""
    unet = make_unet(networks.generator, networks.num_classes, networks.image_shape[-1])
    diffusion = process.make(networks.generator.process)
    sampler = samplers.make(config, diffusion)
    extractor = classifier.make(networks.extractor, networks.num_classes)

    def program(
        unet_params: Params,
        extractor_params: Params,
        gates: select.Gates,
        key: PRNGKey,
        indices: Int[Array, "b"],
    ) -> tuple[UInt8[Array, "b h w c"], select.Verdict]:
        labels = (indices % networks.num_classes).astype(jnp.int32)
        example_keys = keys.per_example(key, indices)
        noise = jax.vmap(lambda k: jax.random.normal(k, networks.image_shape))(
            keys_of(example_keys, "noise")
        )

        def predict(x_t: Array, log_snr: Array, conditions: conditioning.Conditions) -> Array:
            return module.apply(unet, unet_params, x_t, log_snr, conditions, train=False)

        conditions = conditioning.Conditions(label=labels)
        denoise = guidance.denoiser(
            diffusion,
            predict,
            conditions,
            conditioning.null_like(conditions),
            guidance.ClassifierFree(config.guidance_scale),
        )
        images = augment.quantize(sampler.sample(denoise, noise, keys_of(example_keys, "sampler")))
        # Judged as they are stored: the classifier is going to see the quantised image.
        logits, features = module.apply(
            extractor, extractor_params, augment.normalize(images), train=False
        )
        return images, select.judge(gates, features, logits, labels)

    whole, split = mesh.replicated(device_mesh), mesh.batched(device_mesh)
    return jax.jit(program, in_shardings=(whole, whole, whole, whole, split), out_shardings=split)


def network_flops(config: SynthesizeConfig, networks: Networks) -> float:
    """FLOPs of one generated and judged image, from XLA's count of one network evaluation."""
    unet = make_unet(networks.generator, networks.num_classes, networks.image_shape[-1])
    extractor = classifier.make(networks.extractor, networks.num_classes)
    size, _, channels = networks.image_shape
    arguments = example(size, channels)
    unet_params = module.abstract(unet, *arguments, train=False)
    extractor_params = module.abstract(extractor, arguments[0], train=False)
    evaluate = jax.jit(lambda params, *args: module.apply(unet, params, *args, train=False))
    extract = jax.jit(lambda params, images: module.apply(extractor, params, images, train=False))
    return evaluations(config) * ledger.flops(evaluate, unet_params, *arguments) + ledger.flops(
        extract, extractor_params, arguments[0]
    )


def evaluations(config: SynthesizeConfig) -> int:
    """Network evaluations of one generated image; guidance makes two of each of the sampler's."""
    return config.steps * (1 if config.guidance_scale in (0.0, 1.0) else 2)


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
    program: Callable[[Int[Array, "b"]], tuple[UInt8[Array, "b h w c"], select.Verdict]],
    wanted: np.ndarray,
    writer: PoolWriter,
    *,
    device_mesh: Mesh,
    folder: pathlib.Path,
    flops_per_image: float,
) -> ledger.Ledger:
    """Fills `wanted` [k] images a class into the pool, going on behind parts that are written.

    Args:
      program: indices [config.batch_size] -> images and verdict, everything else bound.
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
                    _generate(program, chunk, config.batch_size, writer, part, classes)
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
    program: Callable[[Int[Array, "b"]], tuple[UInt8[Array, "b h w c"], select.Verdict]],
    chunk: np.ndarray,
    batch_size: int,
    writer: PoolWriter,
    part: int,
    classes: int,
) -> dict[str, np.ndarray]:
    padded = mesh.pad(chunk, batch_size).astype(np.int32)
    images, verdict = jax.device_get(program(jnp.asarray(padded)))
    n = len(chunk)
    columns = {
        "index": chunk,
        "label": (chunk % classes).astype(np.int32),
        "score": verdict.scores[:n],
        "label_probability": verdict.label_probability[:n],
        "verdict": np.array(VERDICTS)[verdict.reason[:n]],
    }
    writer.write(part, images[:n], columns)
    return columns

"""The fused program: conditions and noise in, accepted uint8 images and all verdicts out.

One compiled call on the mesh samples, quantises, extracts features, scores and gates: nothing comes
back to the host inside. Image i depends on (key, i) and its own row of the request alone, whatever
the batch and the number of devices; but float32 sums round otherwise in a program of another size,
which may move a pixel by one level. Each device moves the images that leave to the front of its
part of the batch, so that the host copies those and not the rest (`cut`); where devices are of
several processes, every host gets the whole batch.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lt_jax.config import ClassifierConfig, SynthesizeConfig
from lt_jax.data import augment
from lt_jax.diffusion import denoising_error, guidance, inpaint, samplers, sketch, thresholds
from lt_jax.diffusion.generator import Generator
from lt_jax.diffusion.placement import HOLED
from lt_jax.diffusion.requests import Request
from lt_jax.models import classifier, conditioning, module
from lt_jax.runtime import keys, ledger, mesh, spmd
from lt_jax.selection import select
from lt_jax.selection.ood import Evidence
from lt_jax.shapes import Array, Bool, Images, Int, Params, PRNGKey, UInt8


@dataclasses.dataclass(frozen=True)
class Networks:
    """What the program is compiled for.

    Attributes:
      present: the conditions that guidance strengthens.
      split: parameters are split over a group of devices, which gather them layer by layer.
    """

    generator: Generator
    extractor: ClassifierConfig
    present: tuple[str, ...] = ("label",)
    split: bool = False


@flax.struct.dataclass
class Judged:
    """A batch on its devices.

    Attributes:
      images: uint8 [b h w c]; in each device's part those that leave come first, in order.
      leaving: [b] bool, in the order of the batch.
      verdict: `select.Verdict`, in the order of the batch.
    """

    images: Any
    leaving: Any
    verdict: Any


@dataclasses.dataclass(frozen=True)
class Fetched:
    """A batch on the host: images uint8 [m h w c] of its rows `rows` [m], and every verdict [b]."""

    images: np.ndarray
    rows: np.ndarray
    verdict: select.Verdict


Program = Callable[..., Judged]


@functools.cache
def make_program(config: SynthesizeConfig, networks: Networks, device_mesh: Mesh) -> Program:
    """The program `(unet_params, extractor_params, gates, key, indices [b], request, source)`.

    Parameters lie as `mesh.distribute` puts them. `source` are the images that the request's method
    changes, or None. Their buffer is donated: what is made of them takes its place.
    """
    networks = dataclasses.replace(networks, split=device_mesh.shape["fsdp"] > 1)
    num_classes = networks.generator.vocabulary.num_classes
    extractor = classifier.make(networks.extractor, num_classes)
    front = jax.shard_map(_front, mesh=device_mesh, in_specs=mesh.ROWS, out_specs=mesh.ROWS)

    def program(
        unet_params: Params,
        extractor_params: Params,
        gates: select.Gates,
        key: PRNGKey,
        indices: Int[Array, "b"],
        request: Request,
        source: UInt8[Array, "b h w c"] | None,
    ) -> Judged:
        request = dataclasses.replace(request, source=source)
        images = make_images(config, networks, unet_params, key, indices, request)
        # Judged as they are stored: the classifier is going to see the quantised image.
        seen = augment.normalize(images)
        logits, features = module.apply(extractor, extractor_params, seen, train=False)
        labels = (indices % num_classes).astype(jnp.int32)
        errors = None
        if "denoising" in gates.ensemble.names:
            errors = denoising_error.errors(
                networks.generator,
                unet_params,
                seen,
                labels,
                keys_of(keys.per_example(key, indices), "denoising_error"),
                config.selection.noise_times,
            )
        evidence = Evidence(features=features, logits=logits, labels=labels, errors=errors)
        no_group = jnp.full(labels.shape, -1, jnp.int32)
        own = no_group if request.own_group is None else request.own_group
        verdict = select.judge(gates, images, evidence, own)
        leaving = verdict.accepted | config.selection.keep_rejected
        return Judged(front(images, leaving), leaving, verdict)

    whole, split = mesh.replicated(device_mesh), mesh.batched(device_mesh)

    def build(unet_params: Params, extractor_params: Params, *others: Any) -> Any:
        del others
        # As in training: networks that are split over a group there need not fit on a device here.
        parted = [mesh.shardings(params, device_mesh) for params in (unet_params, extractor_params)]
        return jax.jit(
            program,
            in_shardings=(*parted, whole, whole, split, split, split),
            out_shardings=split,
            donate_argnums=6,
        )

    return spmd.Program(build, device_mesh, program)


@dataclasses.dataclass(frozen=True)
class Cut:
    """A batch of which what leaves is on its way: see `cut`."""

    parts: tuple[Array | np.ndarray, ...]
    rows: tuple[np.ndarray, ...]
    verdict: select.Verdict
    shape: tuple[int, ...]

    def fetch(self) -> Fetched:
        """Waits for the images."""
        images = [np.asarray(p)[: len(r)] for p, r in zip(self.parts, self.rows, strict=True)]
        none = np.zeros((0, *self.shape), np.uint8)
        return Fetched(
            np.concatenate([none, *images]),
            np.concatenate([np.zeros(0, np.int64), *self.rows]),
            self.verdict,
        )


def cut(judged: Judged) -> Cut:
    """Waits for the verdicts, then has the images that leave cut out on their devices.

    Call it before the next batch is given to the device, or the cut waits behind that. At most
    twice as many images leave as are accepted: sizes are powers of two, so that few programs are
    compiled.
    """
    verdict, leaving = mesh.fetch((judged.verdict, judged.leaving))
    parts, rows = [], []
    for held, images in _device_parts(judged.images):
        kept = held[leaving[held]]
        if len(kept):
            part = images[: min(1 << (len(kept) - 1).bit_length(), len(held))]
            if isinstance(part, jax.Array):
                part.copy_to_host_async()
            parts.append(part)
            rows.append(kept)
    return Cut(tuple(parts), tuple(rows), verdict, judged.images.shape[1:])


def _device_parts(images: Array) -> list[tuple[np.ndarray, Any]]:
    """Rows of the batch and images of each device, in order; those of other processes on host."""
    every = np.arange(len(images))
    if images.is_fully_addressable:
        found = [(every[shard.index[0]], shard.data) for shard in images.addressable_shards]
    else:
        whole = mesh.fetch(images)
        places = images.sharding.devices_indices_map(images.shape).values()
        found = [(every[place[0]], whole[place[0]]) for place in places]
    return sorted(found, key=lambda part: part[0][0])


def _front(images: UInt8[Array, "b h w c"], leaving: Bool[Array, "b"]) -> UInt8[Array, "b h w c"]:
    return images[jnp.argsort(~leaving, stable=True)]


def make_denoiser(
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
        held = params
        if networks.split:  # or XLA would gather all of them before the loop, and hold them whole
            held, x_t = jax.lax.optimization_barrier((params, x_t))
        return module.apply(generator.unet, held, x_t, log_snr, told, train=False)

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
    denoise = make_denoiser(config, networks, params, request)
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
    scored = len(config.selection.noise_times) if "denoising" in config.selection.scores else 0
    return (evaluations(config, networks) + scored) * unet_flops + ledger.flops(
        extract, extractor_params, arguments[0]
    )


def evaluations(config: SynthesizeConfig, networks: Networks) -> int:
    """Network evaluations of one generated image: the sampler's times the guidance's."""
    guide = guidance.make(config, networks.present)
    return make_sampler(config, networks.generator).evaluations * guide.evaluations


def keys_of(example_keys: Array, name: str) -> Array:
    """The stream called `name` of each example's key [b]."""
    return jax.vmap(lambda key: keys.stream(key, name))(example_keys)

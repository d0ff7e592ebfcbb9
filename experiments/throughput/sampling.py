"""Sampling as it runs, fused; without selection; and as separate programs with the host between.

All three make the same images from the same requests, and bring those that leave to the host as
the pool's writer gets them. What selection adds is the first against the second; what fusing saves
is the first against the third, which copies every image to the host and back before it is judged.
A fourth case evaluates the generator's network as often and does nothing else: its part of the time
is the first's rate over its own. Gates let all pass here; how many images a trained generator has
accepted, a class and in all, is read from a pool.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.throughput.cases import (
    Case,
    classifier_params,
    compile_apart,
    generator_of,
    held_bytes,
    init,
    moved_bytes,
    random_batch,
)
from lt_jax.classify import predict
from lt_jax.config import Config
from lt_jax.data import augment
from lt_jax.data.pool import PoolReader
from lt_jax.diffusion import denoising_error
from lt_jax.diffusion import program as program_lib
from lt_jax.diffusion.generator import Generator
from lt_jax.diffusion.placement import HOLED
from lt_jax.diffusion.requests import Request
from lt_jax.models import conditioning
from lt_jax.runtime import keys, mesh
from lt_jax.selection import memorization, ood, select
from lt_jax.selection.ood import Evidence
from lt_jax.shapes import Array


@dataclasses.dataclass(frozen=True)
class _Setup:
    """What the cases share, on the devices; each thing is made when a case first reads it."""

    config: Config
    classes: int
    mesh: Mesh
    train_images: int

    @functools.cached_property
    def networks(self) -> program_lib.Networks:
        """The generator, and the extractor's config."""
        return networks_of(self.config, self.classes)

    @functools.cached_property
    def unet(self) -> Any:
        """The generator's parameters."""
        return jax.device_put(init(self.networks.generator), mesh.replicated(self.mesh))

    @functools.cached_property
    def extractor(self) -> Any:
        """The extractor's parameters."""
        return classifier_params(self.config, self.networks.extractor, self.classes, self.mesh)

    @functools.cached_property
    def gates(self) -> select.Gates:
        """Gates that let all pass."""
        made = _gates(self.config, self.extractor, self.classes, self.mesh, self.train_images)
        return jax.device_put(made, mesh.replicated(self.mesh))

    @functools.cached_property
    def key(self) -> Any:
        """The run's root."""
        return jax.device_put(keys.root(0), mesh.replicated(self.mesh))

    @functools.cached_property
    def indices(self) -> np.ndarray:
        """Of one batch of candidates, on the host."""
        return np.arange(self.config.synthesize.batch_size, dtype=np.int32)

    @functools.cached_property
    def request(self) -> Request:
        """What is asked of each."""
        return random_request(self.config, self.networks.generator)

    @property
    def facts(self) -> dict[str, Any]:
        """Fields of every case."""
        part = self.config.synthesize
        return {
            "images": part.batch_size,
            "evaluations": part.batch_size * program_lib.evaluations(part, self.networks),
            "dtype": self.config.generator.model.dtype,
            "devices": self.mesh.size,
        }

    @functools.cached_property
    def sampler(self) -> tuple[Any, float, float]:
        """As of `compile_apart`: the program that makes the images and no more."""
        sample = jit_images(self.config, self.networks, self.mesh)
        return compile_apart(sample, self.unet, self.key, *self.put(), self.source())

    @property
    def evaluations(self) -> int:
        """Guided evaluations of the network in one call."""
        part, generator = self.config.synthesize, self.networks.generator
        return program_lib.make_sampler(part, generator).evaluations

    @property
    def flops(self) -> float:
        """Of one call."""
        part = self.config.synthesize
        return part.batch_size * program_lib.network_flops(part, self.networks)

    @property
    def moved(self) -> float:
        """Bytes of one call: XLA counts a loop's body once, which is one guided evaluation here.

        What stands before and after the loop is little beside it, and is multiplied, too.
        """
        return self.evaluations * moved_bytes(self.sampler[0]) * self.mesh.size

    def put(self) -> tuple[Any, Any]:
        """Indices and the request, brought to the devices."""
        alone = dataclasses.replace(self.request, source=None)
        return mesh.put((self.indices, alone), self.mesh)

    def source(self) -> Any:
        """The images that are changed, anew each time: they are donated."""
        return mesh.put(self.request.source, self.mesh)


def networks_of(config: Config, classes: int) -> program_lib.Networks:
    """The config's generator, asked as it is there, and the extractor's config."""
    generator, given = generator_of(config, classes), config.synthesize.given
    present = tuple(name for name in generator.vocabulary.names if name in given)
    return program_lib.Networks(generator, config.extractor.model, present)


def jit_images(config: Config, networks: program_lib.Networks, device_mesh: Mesh) -> Any:
    """The program `(unet_params, key, indices [b], request, source)` that makes images, no more."""
    whole, split = mesh.replicated(device_mesh), mesh.batched(device_mesh)
    return jax.jit(
        lambda unet, key, indices, request, source: program_lib.make_images(
            config.synthesize, networks, unet, key, indices,
            dataclasses.replace(request, source=source),
        ),
        in_shardings=(whole, whole, split, split, split),
        out_shardings=split,
    )  # fmt: skip


def cases(config: Config, classes: int, device_mesh: Mesh, train_images: int) -> list[Case]:
    """Fused, images alone, the network alone, and apart.

    Copies are looked for among `train_images`.
    """
    setup = _Setup(config, classes, device_mesh, train_images)
    return [_fused(setup), _alone(setup), _network(setup), _separate(setup)]


def fused(config: Config, classes: int, device_mesh: Mesh, train_images: int) -> Case:
    """Sampling as it runs, alone."""
    return _fused(_Setup(config, classes, device_mesh, train_images))


def images_alone(config: Config, classes: int, device_mesh: Mesh) -> Case:
    """Images without selection, as other libraries make them; with FLOPs and bytes."""
    setup = _Setup(config, classes, device_mesh, train_images=0)
    return dataclasses.replace(_alone(setup), flops=setup.flops, moved=setup.moved)


def _alone(setup: _Setup) -> Case:
    sampled, lower, compile_ = setup.sampler
    return Case(
        "sampling, no selection",
        lambda: np.asarray(sampled(setup.unet, setup.key, *setup.put(), setup.source())),
        lower_seconds=lower, compile_seconds=compile_,
        temporaries=_temporaries(sampled), memory=held_bytes(sampled), **setup.facts,
    )  # fmt: skip


def acceptance(pool: PoolReader) -> dict[str, float]:
    """The share of candidates that passed all gates, of each class that has any and of "all"."""
    passed = {o.name: o.accepted + o.surplus for o in pool.outcomes if o.generated}
    generated = {o.name: o.generated for o in pool.outcomes if o.generated}
    shares = {name: passed[name] / generated[name] for name in generated}
    return {**shares, "all": sum(passed.values()) / max(sum(generated.values()), 1)}


def _fused(setup: _Setup) -> Case:
    """As it runs."""
    part, networks = setup.config.synthesize, setup.networks
    program: Any = program_lib.make_program(part, networks, setup.mesh)
    bound = setup.unet, setup.extractor, setup.gates, setup.key
    fused, lower, compile_ = compile_apart(program, *bound, *setup.put(), setup.source())
    return Case(
        "sampling",
        lambda: program_lib.cut(fused(*bound, *setup.put(), setup.source())).fetch(),
        flops=setup.flops, moved=setup.moved, lower_seconds=lower, compile_seconds=compile_,
        temporaries=_temporaries(fused), memory=held_bytes(fused), **setup.facts,
    )  # fmt: skip


def _network(setup: _Setup) -> Case:
    """As many guided evaluations of the generator's network, each of what the last one gave."""
    part, generator = setup.config.synthesize, setup.networks.generator

    def evaluate(unet: Any, request: Request, source: Any) -> Array:
        asked = dataclasses.replace(request, source=source)
        denoise = program_lib.make_denoiser(part, setup.networks, unet, asked)
        one = lambda x, level: (denoise(x, jnp.full(len(x), level)), None)
        start = jnp.ones((part.batch_size, *generator.image_shape))
        return jax.lax.scan(one, start, jnp.linspace(-5.0, 5.0, setup.evaluations))[0]

    whole, split = mesh.replicated(setup.mesh), mesh.batched(setup.mesh)
    jitted: Any = jax.jit(evaluate, in_shardings=(whole, split, split), out_shardings=split)
    network = jitted.lower(setup.unet, setup.put()[1], setup.source()).compile()
    return Case(
        "sampling, network alone",
        lambda: network(setup.unet, setup.put()[1], setup.source()),
        temporaries=_temporaries(network), **setup.facts,
    )  # fmt: skip


def _separate(setup: _Setup) -> Case:
    """Sampling, extractor and gates as programs of their own."""
    sampled = setup.sampler[0]
    config, bound = setup.config, (setup.unet, setup.extractor, setup.gates, setup.key)
    classes = setup.networks.generator.vocabulary.num_classes
    apart = _Apart(config, setup.networks, setup.mesh, classes)
    drawn = random_batch(config, classes, config.synthesize.batch_size)["image"]
    others = apart.temporaries(*bound, setup.indices, drawn)
    make = lambda: sampled(setup.unet, setup.key, *setup.put(), setup.source())
    return Case(
        "sampling, separate calls",
        lambda: apart(*bound, setup.indices, make()),
        temporaries=max(_temporaries(sampled), others), **setup.facts,
    )  # fmt: skip


class _Apart:
    """The steps behind sampling as programs of their own; images and features visit the host."""

    def __init__(
        self, config: Config, networks: program_lib.Networks, device_mesh: Mesh, classes: int
    ):
        part = config.synthesize
        self._mesh, self._classes = device_mesh, classes
        self._extract = predict.make_forward(networks.extractor, classes, device_mesh)
        self._reads_errors = "denoising" in part.selection.scores
        self._errors = jax.jit(
            lambda unet, images, labels, example_keys: denoising_error.errors(
                networks.generator, unet, augment.normalize(images), labels, example_keys,
                part.selection.noise_times,
            )
        )  # fmt: skip
        self._judge = jax.jit(select.judge)

    def __call__(
        self, unet: Any, extractor: Any, gates: Any, key: Any, indices: np.ndarray, made: Array
    ) -> tuple[np.ndarray, Any]:
        images = np.asarray(made)
        labels = (indices % self._classes).astype(np.int32)
        put = functools.partial(mesh.put, mesh=self._mesh)
        logits, features = jax.device_get(self._extract(extractor, put(images)))
        errors = None
        if self._reads_errors:
            errors = np.asarray(self._errors(unet, *put((images, labels)), _streams(key, indices)))
        told = Evidence(features=features, logits=logits, labels=labels, errors=errors)
        nobody = np.full(len(labels), -1, np.int32)
        verdict = jax.device_get(self._judge(gates, *put((images, told, nobody))))
        return images[verdict.accepted], verdict

    def temporaries(
        self,
        unet: Any,
        extractor: Any,
        gates: Any,
        key: Any,
        indices: np.ndarray,
        images: np.ndarray,
    ) -> int:
        """Of the largest of the programs behind sampling."""
        labels = (indices % self._classes).astype(np.int32)
        logits, features = jax.device_get(self._extract(extractor, images))
        programs, errors = [self._extract.lower(extractor, images)], None
        if self._reads_errors:
            arguments = unet, *mesh.put((images, labels), self._mesh), _streams(key, indices)
            programs.append(self._errors.lower(*arguments))
            errors = np.zeros(jax.eval_shape(self._errors, *arguments).shape, np.float32)
        told = Evidence(features=features, logits=logits, labels=labels, errors=errors)
        nobody = np.full(len(labels), -1, np.int32)
        programs.append(self._judge.lower(gates, *mesh.put((images, told, nobody), self._mesh)))
        return max(_temporaries(program.compile()) for program in programs)


def _streams(key: Any, indices: np.ndarray) -> Array:
    """Of each candidate, that of its denoising errors, as in the fused program."""
    return program_lib.keys_of(keys.per_example(key, jnp.asarray(indices)), "denoising_error")


def _temporaries(compiled: Any) -> int:
    return int(compiled.memory_analysis().temp_size_in_bytes)


def random_request(config: Config, generator: Generator) -> Request:
    """A batch of requests of the config's method, with labels alone."""
    part, (height, width, _) = config.synthesize, generator.image_shape
    size, classes = part.batch_size, generator.vocabulary.num_classes
    told = conditioning.nulls(generator.vocabulary, size, height, width)
    source = random_batch(config, classes, size)["image"]
    hole = np.zeros((size, height, width, 1), np.float32)
    hole[:, height // 4 : -height // 4, width // 4 : -width // 4] = 1
    return Request(
        conditions=dataclasses.replace(told, label=jnp.arange(size) % classes),
        source=None if part.method == "generate" else source,
        hole=hole if part.method in HOLED else None,
        start=np.full(size, part.strength, np.float32) if part.method == "translate" else None,
    )


def _gates(
    config: Config, params: Any, classes: int, device_mesh: Mesh, train_images: int
) -> select.Gates:
    """Gates that let all pass, fitted to an untrained extractor's features of random images.

    All, so that as many images are copied as where there is no selection.
    """
    forward = predict.make_forward(config.extractor.model, classes, device_mesh)
    n, labels = train_images, np.arange(train_images) % classes
    drawn: Any = random_batch(config, classes, n)["image"]
    logits, features = predict.predict(
        forward, params, drawn, np.arange(n), config.extractor.batch_size
    )
    rng = np.random.default_rng(0)  # an untrained network may give features without variance
    features = features + rng.normal(size=features.shape).astype(np.float32)
    selection = config.synthesize.selection
    ensemble = ood.make(selection, classes)
    errors = rng.uniform(size=(n, len(selection.noise_times))).astype(np.float32)
    fitted = ensemble.fit(
        Evidence(features=features, logits=logits, labels=labels.astype(np.int32), errors=errors)
    )
    everything = jnp.full(classes, jnp.inf)
    bank = None
    if selection.memorization.gate:
        val = slice(0, min(n, 256))
        bank = memorization.fit(
            selection.memorization, drawn, features, np.arange(n), drawn[val], features[val],
            labels[val], classes, selection.pooling, config.generator.augment,
        )  # fmt: skip
        bank = dataclasses.replace(bank, cosine_limits=everything, ms_ssim_limits=everything)
    return select.Gates(
        ensemble, selection.memorization, fitted, everything, jnp.asarray(0.0), bank
    )

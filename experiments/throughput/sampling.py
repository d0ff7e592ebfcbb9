"""Sampling as it runs, fused; without selection; and as separate programs with the host between.

All three make the same images from the same requests, and bring those that leave to the host as
the pool's writer gets them. What selection adds is the first against the second; what fusing saves
is the first against the third, which copies every image to the host and back before it is judged.
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
    random_batch,
)
from lt_jax.classify import predict
from lt_jax.config import Config
from lt_jax.data import augment
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


def cases(config: Config, classes: int, device_mesh: Mesh, train_images: int) -> list[Case]:
    """Fused, images alone, and apart; copies are looked for among `train_images`."""
    part, model = config.synthesize, config.extractor.model
    generator = generator_of(config, classes)
    present = tuple(name for name in generator.vocabulary.names if name in part.given)
    networks = program_lib.Networks(generator, model, present)
    whole = mesh.replicated(device_mesh)
    extractor = classifier_params(config, model, classes, device_mesh)
    gates = _gates(config, extractor, classes, device_mesh, train_images)
    unet, gates, key = jax.device_put((generator.init(), gates, keys.root(0)), whole)
    request = random_request(config, generator)
    alone = dataclasses.replace(request, source=None)
    indices = np.arange(part.batch_size, dtype=np.int32)
    put = functools.partial(mesh.put, (indices, alone), device_mesh)
    source = functools.partial(mesh.put, request.source, device_mesh)  # anew: it is donated
    facts: dict[str, Any] = {
        "images": part.batch_size,
        "evaluations": part.batch_size * program_lib.evaluations(part, networks),
        "dtype": config.generator.model.dtype,
        "devices": device_mesh.size,
    }

    program: Any = program_lib.make_program(part, networks, device_mesh)
    fused, lower, compile_ = compile_apart(program, unet, extractor, gates, key, *put(), source())
    flops = part.batch_size * program_lib.network_flops(part, networks)
    made = [
        Case(
            "sampling",
            lambda: program_lib.cut(
                fused(unet, extractor, gates, key, *put(), source())
            ).fetch(),
            flops=flops, lower_seconds=lower, compile_seconds=compile_,
            temporaries=_temporaries(fused), **facts,
        )
    ]  # fmt: skip
    split = mesh.batched(device_mesh)
    sample: Any = jax.jit(
        lambda unet, key, indices, request, source: program_lib.make_images(
            part, networks, unet, key, indices, dataclasses.replace(request, source=source)
        ),
        in_shardings=(whole, whole, split, split, split),
        out_shardings=split,
    )
    sampled = sample.lower(unet, key, *put(), source()).compile()
    made.append(
        Case(
            "sampling, no selection",
            lambda: np.asarray(sampled(unet, key, *put(), source())),
            temporaries=_temporaries(sampled), **facts,
        )
    )  # fmt: skip
    apart = _Apart(config, networks, device_mesh, classes)
    request_images = random_batch(config, classes, part.batch_size)["image"]
    made.append(
        Case(
            "sampling, separate calls",
            lambda: apart(
                unet, extractor, gates, key, indices, sampled(unet, key, *put(), source())
            ),
            temporaries=max(
                _temporaries(sampled), apart.temporaries(extractor, gates, indices, request_images)
            ),
            **facts,
        )
    )
    return made


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
            example_keys = keys.per_example(key, jnp.asarray(indices))
            errors = np.asarray(self._errors(unet, put(images), put(labels), example_keys))
        told = Evidence(features=features, logits=logits, labels=labels, errors=errors)
        nobody = np.full(len(labels), -1, np.int32)
        verdict = jax.device_get(self._judge(gates, *put((images, told, nobody))))
        return images[verdict.accepted], verdict

    def temporaries(
        self, extractor: Any, gates: Any, indices: np.ndarray, images: np.ndarray
    ) -> int:
        """Of the largest of the programs behind sampling."""
        labels = (indices % self._classes).astype(np.int32)
        logits, features = jax.device_get(self._extract(extractor, images))
        errors = np.zeros((len(labels), 1), np.float32) if self._reads_errors else None
        told = Evidence(features=features, logits=logits, labels=labels, errors=errors)
        arguments = mesh.put((images, told, np.full(len(labels), -1, np.int32)), self._mesh)
        programs = self._extract.lower(extractor, images), self._judge.lower(gates, *arguments)
        return max(_temporaries(program.compile()) for program in programs)


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

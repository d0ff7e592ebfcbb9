"""What is timed: the product's own compiled steps and loader, on random images of a config's shape.

A case is one call that may be repeated at will. Steps are compiled ahead of time, on a clock of
their own, and then called as the training loop calls them: a host batch goes to the device, the
state is donated and comes back. Random pixels cost what real ones cost, except for decoding files,
for which smooth images are drawn.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from experiments.throughput.kernels import kernels
from lt_jax.classify import predict
from lt_jax.classify import train as classify_train
from lt_jax.config import ClassifierConfig, Config
from lt_jax.data import images as images_lib
from lt_jax.data.images import ArrayImages, FileImages, Images
from lt_jax.data.pool import PoolInfo, PoolReader, PoolWriter
from lt_jax.data.stream import MixedStream
from lt_jax.diffusion import annotations
from lt_jax.diffusion import train as diffusion_train
from lt_jax.diffusion.generator import Generator
from lt_jax.mixing import controllers
from lt_jax.runtime import ema, ledger, mesh, train_state

ORIGINAL = (450, 600)  # height, width of the JPEG files: those of HAM10000


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to time.

    Attributes:
      name: e.g. "generator training".
      call: does it once; what it returns is waited for.
      images: handled by one call.
      evaluations: network evaluations times images of one call, where these are more.
      flops: arithmetic of one call as XLA counts it, 0 where there is none to speak of.
      moved: bytes to and from memory in one call, as XLA counts them (`roofline`); 0: not known.
      dtype: that the matrix products are in; "" where there are none.
      devices: over which the batch is split; 0 for work on host.
      lower_seconds, compile_seconds: tracing and lowering, and XLA's compilation.
      drain: calls to make, uncounted, before each repetition: batches that a loader has prepared
        while other cases had their turn would look as if they had cost nothing.
      temporaries: bytes that one call's programs need beside their arguments and results.
      memory: bytes that a call holds at most, arguments and results with them; 0: not known.
      wait: for what a call has returned.
      close: ends what works in the background.
    """

    name: str
    call: Callable[[], Any]
    images: int
    evaluations: int = 0
    flops: float = 0.0
    moved: float = 0.0
    dtype: str = ""
    devices: int = 0
    lower_seconds: float | None = None
    compile_seconds: float | None = None
    drain: int = 0
    temporaries: int = 0
    memory: int = 0
    wait: Callable[[Any], Any] = jax.block_until_ready
    close: Callable[[], None] = lambda: None


def compile_apart(function: Any, *args: Any) -> tuple[Any, float, float]:
    """The compiled program of a jitted function; seconds of lowering; seconds of compilation."""
    function.clear_cache()  # another case may have lowered the same step
    since = time.perf_counter()
    lowered = function.lower(*args)
    between = time.perf_counter()
    compiled = lowered.compile()
    return compiled, between - since, time.perf_counter() - between


def moved_bytes(compiled: Any) -> float:
    """That one call of a compiled program moves to and from memory, as XLA counts them.

    Of GPU programs it counts none (`kernels`). A loop's body is counted once.
    """
    if jax.default_backend() == "gpu":
        return float(sum(kernel.moved for kernel in kernels(compiled.as_text() or "")))
    return float((compiled.cost_analysis() or {}).get("bytes accessed", 0.0))


def held_bytes(compiled: Any) -> int:
    """Arguments, results and temporary buffers of a compiled program; donated ones count once."""
    memory = compiled.memory_analysis()
    parts = (
        memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes,
        -memory.alias_size_in_bytes,
    )  # fmt: skip
    return int(sum(parts))


def with_dtype(config: Config, dtype: str) -> Config:
    """The config with every network computing in `dtype`."""
    return with_networks(config, dtype=dtype)


def with_remat(config: Config) -> Config:
    """The config with the blocks of every network rematerialised."""
    return with_networks(config, remat="blocks")


def with_networks(config: Config, **fields: Any) -> Config:
    """The config with these fields of every network."""

    def classifier(model: ClassifierConfig) -> ClassifierConfig:
        return dataclasses.replace(
            model,
            vit=dataclasses.replace(model.vit, **fields),
            resnet=dataclasses.replace(model.resnet, **fields),
        )

    generator, extractor, classify = config.generator, config.extractor, config.classify
    unet = dataclasses.replace(generator.model, **fields)
    return dataclasses.replace(
        config,
        generator=dataclasses.replace(generator, model=unet),
        extractor=dataclasses.replace(extractor, model=classifier(extractor.model)),
        classify=dataclasses.replace(classify, model=classifier(classify.model)),
    )


def dtype_of(model: ClassifierConfig) -> str:
    """What the network that `kind` chooses computes in."""
    return getattr(model, model.kind).dtype


def shape_of(config: Config) -> tuple[int, int, int]:
    """(height, width, channels) of the config's images."""
    return config.data.image_size, config.data.image_size, config.data.channels


def random_batch(config: Config, classes: int, size: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch as the loader gives it: `image` uint8 [size, h, w, c] and `label` int32 [size]."""
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (size, *shape_of(config)), dtype=np.uint8),
        "label": rng.integers(0, classes, size, dtype=np.int32),
        "synthetic": np.zeros(size, bool),
    }


def training(
    name: str,
    step: Any,
    params: Any,
    optimizer: Any,
    batch: dict[str, np.ndarray],
    context: Any,
    dtype: str,
    device_mesh: Mesh,
    average: ema.Rule | bool = True,
) -> Case:
    """A training step: host batch to device, update, new state."""
    whole = mesh.replicated(device_mesh)
    state = jax.device_put(train_state.create(params, optimizer, average), whole)
    key, context = jax.device_put((jax.random.key(0), context), whole)
    arguments = (state, mesh.put(batch, device_mesh), key, context)
    compiled, lower, compile_ = compile_apart(step, *arguments)
    flops = ledger.flops(step, *arguments)
    held = [state]

    def call() -> Any:
        held[0], metrics = compiled(held[0], mesh.put(batch, device_mesh), key, context)
        return metrics

    return Case(
        name, call, len(batch["label"]), flops=flops, moved=_all_devices(compiled, device_mesh),
        dtype=dtype, devices=device_mesh.size, lower_seconds=lower, compile_seconds=compile_,
        temporaries=int(compiled.memory_analysis().temp_size_in_bytes),
        memory=held_bytes(compiled),
    )  # fmt: skip


def _all_devices(compiled: Any, device_mesh: Mesh) -> float:
    """`moved_bytes`; a partitioned program is that of one device."""
    return moved_bytes(compiled) * device_mesh.size


def generator_of(config: Config, classes: int) -> Generator:
    """The config's generator, for a data set of two devices where it asks for devices."""
    channels = config.data.channels
    known = annotations.make_vocabulary(config.generator.conditions, classes, 2, channels)
    return Generator(config.generator, known, shape_of(config))


@functools.cache
def init(generator: Generator) -> Any:
    """Its fresh parameters, on the host: to make them is a program of its own."""
    return jax.device_get(generator.init())


def annotated_batch(config: Config, generator: Generator) -> dict[str, np.ndarray]:
    """A random batch of the loader with what the generator is told of its images."""
    known, size = generator.vocabulary, config.generator.batch_size
    batch = random_batch(config, known.num_classes, size)
    rng = np.random.default_rng(1)
    if known.devices:
        batch["device"] = rng.integers(0, known.devices, size, dtype=np.int32)
    if known.attributes:
        batch["attributes"] = rng.normal(size=(size, known.attributes)).astype(np.float32)
    if known.max_boxes:
        low = rng.uniform(0.0, 0.5, (size, known.max_boxes, 2))
        batch["boxes"] = np.concatenate([low, low + 0.3], axis=-1).astype(np.float32)
    if known.mask or known.inpaint:
        height, width, _ = generator.image_shape
        batch["mask"] = 255 * rng.integers(0, 2, (size, height, width, 1), dtype=np.uint8)
        batch["mask_given"] = np.ones(size, bool)
    return batch


def generator_training(config: Config, classes: int, device_mesh: Mesh) -> Case:
    """One update of the diffusion model."""
    generator = generator_of(config, classes)
    return training(
        "generator training",
        diffusion_train.make_step(generator, (100,) * classes, device_mesh),
        init(generator),
        train_state.make_optimizer(config.generator.optimizer, config.generator.steps),
        annotated_batch(config, generator),
        (),
        config.generator.model.dtype,
        device_mesh,
        diffusion_train.ema_rule(config.generator),
    )


def extractor_training(config: Config, classes: int, device_mesh: Mesh) -> Case:
    """One update of the extractor."""
    part = config.extractor
    return _classifier_training("extractor training", config, part, part.loss, classes, device_mesh)


def classifier_training(config: Config, classes: int, device_mesh: Mesh) -> Case:
    """One update of the first arm's classifier."""
    loss = next(iter(config.classify.arms.values())).loss
    part = config.classify
    return _classifier_training("classifier training", config, part, loss, classes, device_mesh)


def _classifier_training(
    name: str, config: Config, part: Any, loss: str, classes: int, device_mesh: Mesh
) -> Case:
    recipe = classify_train.Recipe(
        model=part.model, optimizer=part.optimizer, augment=part.augment, loss=loss, tau=1.0,
        steps=part.steps, rounds=1, batch_size=part.batch_size, seed=0,
    )  # fmt: skip
    return training(
        name,
        classify_train.make_step(recipe, classes, device_mesh),
        classify_train.init(recipe, classes, shape_of(config)),
        train_state.make_optimizer(part.optimizer, part.steps),
        random_batch(config, classes, part.batch_size),
        np.full(classes, 100.0, np.float32),
        dtype_of(part.model),
        device_mesh,
    )


def prediction(config: Config, classes: int, device_mesh: Mesh) -> Case:
    """Logits and features of one host batch."""
    part = config.classify
    forward: Any = predict.make_forward(part.model, classes, device_mesh)
    params = classifier_params(config, part.model, classes, device_mesh)
    batch = random_batch(config, classes, part.batch_size)["image"]
    put = functools.partial(mesh.put, batch, device_mesh)
    compiled, lower, compile_ = compile_apart(forward, params, put())
    return Case(
        "prediction", lambda: compiled(params, put()), len(batch),
        flops=ledger.flops(forward, params, put()),
        moved=_all_devices(compiled, device_mesh), dtype=dtype_of(part.model),
        devices=device_mesh.size, lower_seconds=lower, compile_seconds=compile_,
        memory=held_bytes(compiled),
    )  # fmt: skip


def classifier_params(
    config: Config, model: ClassifierConfig, classes: int, device_mesh: Mesh
) -> Any:
    """An untrained classifier's parameters, on every device."""
    recipe = classify_train.Recipe(
        model=model, optimizer=config.classify.optimizer, augment=config.classify.augment,
        loss="cross_entropy", tau=1.0, steps=1, rounds=1, batch_size=1, seed=0,
    )  # fmt: skip
    params = classify_train.init(recipe, classes, shape_of(config))
    return jax.device_put(params, mesh.replicated(device_mesh))


def loaders(config: Config, classes: int, folder: pathlib.Path) -> list[Case]:
    """The loader, decode to batch: from memory, from JPEG files, from a pool's PNG records."""
    n = max(4 * classes, 64)
    labels = np.arange(n) % classes
    drawn = random_batch(config, classes, n)["image"]
    np.save(folder / "images.npy", drawn)
    sources: dict[str, Images] = {
        "loader, memory": ArrayImages(folder / "images.npy"),
        "loader, JPEG files": files(config, n, folder),
        "loader, pool": _pool(drawn, labels, classes, folder),
    }
    rows = [np.flatnonzero(labels == k) for k in range(classes)]
    return [_loader(name, config, images, rows) for name, images in sources.items()]


def memory_loader(config: Config, classes: int, folder: pathlib.Path, count: int) -> Case:
    """The loader from the decoded array of `count` images."""
    drawn = np.random.default_rng(0).integers(0, 256, (count, *shape_of(config)), dtype=np.uint8)
    np.save(folder / "images.npy", drawn)
    rows = [np.arange(k, count, classes) for k in range(classes)]
    return _loader("loader, memory", config, ArrayImages(folder / "images.npy"), rows)


def _loader(name: str, config: Config, images: Images, rows: Sequence[np.ndarray]) -> Case:
    size = config.classify.batch_size
    stream = MixedStream(
        images, rows, batch_size=size, seed=0, workers=config.runtime.loader_workers
    )
    mixture = controllers.real_only(np.array([len(r) for r in rows]), "instance").mixture(())
    stream.set_mixture(mixture.class_weight, mixture.share)
    # grain holds four batches, one is under way, and each worker holds and makes one.
    drain = 6 + 2 * config.runtime.loader_workers
    return Case(name, lambda: next(stream), size, drain=drain, close=stream.close)


def files(config: Config, n: int, folder: pathlib.Path) -> FileImages:
    """A store of `n` smooth JPEG files, written into `folder`."""
    rng = np.random.default_rng(0)
    height, width = ORIGINAL
    for i in range(n):
        coarse = rng.integers(0, 256, (height // 15, width // 15, 3), dtype=np.uint8)
        # Noise of every frequency would decode more slowly than any photograph.
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        smooth.save(folder / f"{i}.jpg", quality=90)
    decode = functools.partial(_decode_in, folder)
    names = [f"{i}.jpg" for i in range(n)]
    return FileImages(decode, names, config.data.image_size, config.data.channels)


def _decode_in(folder: pathlib.Path, name: str) -> np.ndarray:
    return images_lib.decode(folder / name)


def _pool(drawn: np.ndarray, labels: np.ndarray, classes: int, folder: pathlib.Path) -> PoolReader:
    info = PoolInfo(
        generator="", extractor="", manifest_sha256="", seed=0, classes=("",) * classes,
        guidance_scale=1.0, sampler="", thresholds=(0.0,) * classes, least_label_probability=0.0,
    )  # fmt: skip
    n = len(drawn)
    columns = {
        "index": np.arange(n), "label": labels.astype(np.int32), "score": np.zeros(n),
        "label_probability": np.ones(n), "verdict": np.full(n, "accepted"),
        "source_label": labels.astype(np.int32), "label_weight": np.ones(n),
        "conditions": ["{}"] * n, "scores": ["{}"] * n, "cosine": np.full(n, np.nan),
        "ms_ssim": np.full(n, np.nan), "nearest": [""] * n, "failed": [""] * n,
    }  # fmt: skip
    writer = PoolWriter(folder / "pool", info)
    writer.write(0, drawn, columns)
    writer.finish(np.full(classes, n))
    return PoolReader(folder / "pool", "")

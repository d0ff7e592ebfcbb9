"""What is timed beside peers: of each stage our program and those that do the same work elsewhere.

A suite is the contests that a device can be asked for in minutes: `gpu` at the sizes that users
have, `cpu` at the demo's and with ViT-S/16 at a batch that two cores can bear, `tiny` to see that
all of it runs.
"""

import dataclasses
import importlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.throughput import cases as cases_lib
from experiments.throughput import mixing, peers, sampling
from experiments.throughput.cases import Case
from experiments.throughput.peers import Mode
from lt_jax import config as config_lib
from lt_jax.config import AugmentConfig, Config, ViTConfig
from lt_jax.config.mixing import MixingConfig, PolicyConfig, ProxyConfig
from lt_jax.data.images import ArrayImages
from lt_jax.mixing.learn import Learner

Make = Callable[[Mesh, pathlib.Path], Case]


@dataclasses.dataclass(frozen=True)
class Contest:
    """Ours against peers, over the same work.

    Attributes:
      stage: what is done, and how large.
      unit: of which so many are done in a second.
      ours: makes our programs, by name, on a mesh; a folder is for files. Each is compared with
        all others.
      peers: makes the others. One that counts no FLOPs has those of our first program.
    """

    stage: str
    unit: str
    ours: Mapping[str, Make]
    peers: Mapping[str, Make]


def _peers(
    name: str, module: str, function: str, modes: Sequence[Mode], *args: Any
) -> dict[str, Make]:
    """A program for each mode; its module is imported when it is made."""

    def make(mode: Mode) -> Make:
        def made(device_mesh: Mesh, folder: pathlib.Path) -> Case:
            found = importlib.import_module(f"experiments.throughput.peers.{module}")
            return getattr(found, function)(*args, mode)

        return made

    return {f"{name}, {mode.name}": make(mode) for mode in modes}


def _ours(make: Callable[..., Case], *args: Any) -> Make:
    return lambda device_mesh, folder: make(*args, device_mesh)


def unet(stage: str, config: Config, classes: int, modes: Sequence[Mode]) -> Contest:
    """Training of the generator; diffusers in the first and last of the modes."""
    ends = modes[0], modes[-1]
    return Contest(
        f"generator training, {stage}", "images/s",
        {"lt_jax": _ours(cases_lib.generator_training, config, classes)},
        _peers("PyTorch", "torch_unet", "case", modes, config, classes)
        | _peers("diffusers", "diffusers_unet", "training", ends, config, classes),
    )  # fmt: skip


def vit(stage: str, config: Config, classes: int, modes: Sequence[Mode]) -> Contest:
    """Training of the classifier."""
    return Contest(
        f"classifier training, {stage}", "images/s",
        {"lt_jax": _ours(cases_lib.classifier_training, config, classes)},
        _peers("timm", "timm_vit", "case", modes, config, classes),
    )  # fmt: skip


def images(stage: str, config: Config, classes: int, modes: Sequence[Mode]) -> Contest:
    """Sampling."""
    return Contest(
        f"sampling, {stage}", "images/s",
        {"lt_jax": _ours(sampling.images_alone, config, classes)},
        _peers("diffusers", "diffusers_unet", "sampling", modes, config, classes),
    )  # fmt: skip


def busgen(stage: str, config: Config, classes: int, modes: Sequence[Mode]) -> Contest:
    """BUSGen as we sample it, against its published settings in diffusers and in our own program.

    The published sampler, a single-step one of order 3, asks the network as often a step as ours;
    for our own row its place is taken by DPM-Solver++(2M), which costs the same. Its float32 is
    XLA's: TF32 on a GPU.
    """
    alone = cases_lib.with_dtype(synthesize(config, steps=50, batch_size=1), "float32")

    def published(device_mesh: Mesh, folder: pathlib.Path) -> Case:
        one = Mesh(device_mesh.devices[:1], device_mesh.axis_names)
        return sampling.images_alone(alone, classes, one)

    return Contest(
        f"sampling, {stage}", "images/s",
        {f"lt_jax, {steps} guided steps": _ours(
            sampling.images_alone, synthesize(config, steps=steps), classes
        ) for steps in (config.synthesize.steps, 20)},
        {"lt_jax, published settings": published}
        | _peers("diffusers", "diffusers_unet", "published", modes, config, classes),
    )  # fmt: skip


def loader(stage: str, config: Config, classes: int, workers: int) -> Contest:
    """The loader from JPEG files and from memory, with as many worker processes as the peer."""
    runtime = dataclasses.replace(config.runtime, loader_workers=workers)
    config = dataclasses.replace(config, runtime=runtime)
    size = config.classify.batch_size
    source = "memory" if "memory" in stage else "JPEG files"

    def ours(device_mesh: Mesh, folder: pathlib.Path) -> Case:
        made = {case.name: case for case in cases_lib.loaders(config, classes, folder)}
        chosen = made.pop(f"loader, {source}")
        for case in made.values():
            case.close()
        return chosen

    def peer(device_mesh: Mesh, folder: pathlib.Path) -> Case:
        module = importlib.import_module("experiments.throughput.peers.torch_loader")
        store: Any = ArrayImages(folder / "images.npy")
        labels = np.arange(len(store)) % classes
        if source != "memory":
            store = cases_lib.files(config, len(store), folder)
        return module.case("DataLoader", store, labels, size, workers)

    return Contest(f"loader, {stage}", "images/s", {"lt_jax": ours}, {"DataLoader": peer})


def policy(stage: str, config: PolicyConfig, mixed: MixingConfig) -> Contest:
    """Learning of the mixing policy: episodes and updates; the peer's on the CPU."""

    def ours(device_mesh: Mesh, folder: pathlib.Path) -> Case:
        learner = Learner(config, mixing.environment(mixed))
        state = jax.jit(learner.init)(jax.random.key(0))
        update, lower, compile_ = cases_lib.compile_apart(jax.jit(learner.update), state)
        held = [state]

        def call() -> Any:
            held[0], told = update(held[0])
            return told

        steps = config.episodes * learner.environment.rounds
        return Case(
            "policy", call, steps, dtype="float32", devices=1, lower_seconds=lower,
            compile_seconds=compile_, memory=cases_lib.held_bytes(update),
        )  # fmt: skip

    def peer(device_mesh: Mesh, folder: pathlib.Path) -> Case:
        module = importlib.import_module("experiments.throughput.peers.torch_ppo")
        return module.case(mixing.environment(mixed), config)

    return Contest(
        f"policy, {stage}", "environment steps/s", {"lt_jax": ours},
        {"Python-loop PPO, on the CPU": peer},
    )  # fmt: skip


def load(path: str) -> Config:
    """A config file of the repository, as a run without overrides has it."""
    name = pathlib.Path(path).stem
    return config_lib.build(
        config_lib.Config, importlib.import_module(f"configs.{name}").get_config()
    )


def synthesize(config: Config, **fields: Any) -> Config:
    """The config with these fields of its sampling."""
    return dataclasses.replace(config, synthesize=dataclasses.replace(config.synthesize, **fields))


def plain(config: Config, batch: int) -> Config:
    """The generator with the plain loss, flips and shifts, and this batch in both trainings."""
    augment = AugmentConfig(shift=1)
    generator = dataclasses.replace(
        config.generator, batch_size=batch, cbdm_weight=0.0, augment=augment
    )
    classify = dataclasses.replace(config.classify, batch_size=batch, augment=augment)
    return dataclasses.replace(config, generator=generator, classify=classify)


def with_vit(config: Config, vit: ViTConfig) -> Config:
    """The config whose classifier is this ViT."""
    model = dataclasses.replace(config.classify.model, kind="vit", vit=vit)
    return dataclasses.replace(config, classify=dataclasses.replace(config.classify, model=model))


def pictures(config: Config, side: int, batch: int) -> Config:
    """The classifier on colour images of `side` pixels, with shifts and flips."""
    augment = AugmentConfig(shift=max(1, side // 16), horizontal_flip=True)
    classify = dataclasses.replace(config.classify, batch_size=batch, augment=augment)
    data = dataclasses.replace(config.data, image_size=side, channels=3)
    return dataclasses.replace(config, data=data, classify=classify)


S16 = ViTConfig(variant="S", patch_size=16, position="learned", pool="token")


def cpu() -> list[Contest]:
    """The demo's networks, ViT-S/16 at a small batch, 64 px JPEG files."""
    digits = plain(load("configs/digits.py"), 128)
    small = dataclasses.replace(digits.classify.model.vit, position="learned", pool="token")
    return [
        unet("digits, 8 px", digits, 10, peers.CONVOLUTIONS),
        images("digits, 8 px, 20 guided steps", digits, 10, peers.CONVOLUTIONS[::4]),
        vit("digits' ViT, 8 px", with_vit(digits, small), 10, peers.TRANSFORMERS),
        vit(
            "ViT-S/16, 224 px", with_vit(pictures(digits, 224, 4), S16), 1000,
            peers.TRANSFORMERS,
        ),
        loader("JPEG files to 64 px", pictures(digits, 64, 32), 10, 0),
        loader("memory, 8 px", digits, 10, 0),
        policy("16 episodes", PolicyConfig(episodes=16), MixingConfig()),
    ]  # fmt: skip


def gpu() -> list[Contest]:
    """The networks of the GPU configs at batches that fill a card, in bfloat16."""
    cifar = plain(load("configs/cifar10_lt.py"), 512)
    small = dataclasses.replace(S16, dtype="bfloat16")
    bus = load("configs/busgen.py")
    modes = peers.GPU_CONVOLUTIONS
    return [
        unet("CIFAR UNet, 32 px", cifar, 10, modes),
        vit(
            "ViT-S/16, 224 px", with_vit(pictures(cifar, 224, 256), small), 1000,
            peers.GPU_TRANSFORMERS,
        ),
        images(
            "CIFAR UNet, 32 px, 50 guided steps", synthesize(cifar, batch_size=512), 10,
            (modes[0], modes[-1]),
        ),
        busgen("BUSGen, 160 px", bus, 3, peers.PUBLISHED),
        loader("JPEG files to 224 px", pictures(cifar, 224, 256), 10, 16),
        loader("memory, 32 px", cifar, 10, 0),
        policy("64 episodes", PolicyConfig(episodes=64), MixingConfig()),
    ]  # fmt: skip


def tiny() -> list[Contest]:
    """Everything at a size of no meaning, PyTorch eager."""
    base = plain(load("configs/digits.py"), 16)
    unet_config = dataclasses.replace(
        base.generator.model, channels=(8,), attention_resolutions=(), embedding=16
    )
    base = dataclasses.replace(
        base, generator=dataclasses.replace(base.generator, model=unet_config)
    )
    base = synthesize(base, steps=2, batch_size=4)
    vit_config = ViTConfig(
        variant="custom", width=16, depth=1, heads=2, mlp=16, patch_size=4, position="learned",
        pool="token",
    )  # fmt: skip
    mixed = MixingConfig(rounds=2, proxy=ProxyConfig(batch_size=8, minibatches=2))
    learner = PolicyConfig(episodes=2, width=4, epochs=1, minibatches=1)
    return [
        unet("8 px", base, 3, (peers.EAGER,)),
        images("8 px", base, 3, (peers.EAGER,)),
        busgen("BUSGen at 8 px", base, 3, peers.PUBLISHED[:2]),
        vit("8 px", with_vit(pictures(base, 8, 4), vit_config), 3, (peers.EAGER,)),
        loader("JPEG files to 8 px", pictures(base, 8, 4), 3, 0),
        loader("memory, 8 px", base, 3, 0),
        policy("2 episodes", learner, mixed),
    ]


SUITES = {"cpu": cpu, "gpu": gpu, "tiny": tiny}

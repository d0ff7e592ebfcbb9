r"""What XLA makes of the programs for a GPU that is not at hand: compiled for it, never run.

    pip install -r requirements-cuda.txt      # its compiler needs no GPU
    python -m experiments.throughput.deviceless [--devices=8] [--only=ViT] [--out=FILE.json]

That a program compiles, which kernels it has, what memory it takes and what it sends between
devices are then known. How fast it runs is not; but a program of F FLOPs in libraries, which move L
bytes, whose other kernels move E, takes on a device of P FLOP/s and W bytes/s at least

  E / W + max(F / P, L / W),                                                              (1)

since kernels run one after the other. F / P over (1) is the MFU that it cannot exceed. Kernels are
those of XLA's own rules: without the device nothing is tuned by trial.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from jax._src import xla_bridge
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.experimental import topologies
from jax.sharding import Mesh

from experiments.throughput import cases, contests, sampling
from experiments.throughput.devices import PEAK
from experiments.throughput.kernels import kernels
from experiments.throughput.timing import number
from lt_jax import command
from lt_jax.classify import train as classify_train
from lt_jax.config import Config
from lt_jax.diffusion import program as program_lib
from lt_jax.diffusion import train as diffusion_train
from lt_jax.runtime import files, ledger, mesh, train_state

KIND = "NVIDIA H200"
# As XLA prints it on such a card; the names are XLA's.
TARGET = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 150000000000
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H200"
"""
# Nothing can be tried out; Triton's products are chosen by trial.
XLA_FLAGS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"


def device_mesh(count: int) -> Mesh:
    """A mesh over `count` cards that are not there.

    Raises:
      RuntimeError: JAX's CUDA plugin is not installed.
    """
    found = topologies.get_topology_desc(
        platform="cuda", target_config=TARGET, topology=f"1x1x{count}"
    )
    return Mesh(np.array(found.devices).reshape(-1, 1), mesh.AXES)


@contextlib.contextmanager
def as_if_present() -> Iterator[None]:
    """JAX answers as it does where the card is; it asks at several places (its issue 23971)."""
    card = SimpleNamespace(
        compute_capability="9.0", client=SimpleNamespace(platform_version="cuda 13000")
    )
    named = xla_bridge.canonicalize_platform
    found = jax.local_devices

    def canonical(platform: str) -> str:
        return "cuda" if platform in ("cuda", "gpu") else named(platform)

    def local(*args: Any, backend: str | None = None, **more: Any) -> Any:
        return [card] if backend == "gpu" else found(*args, backend=backend, **more)

    with contextlib.ExitStack() as stack:
        for owner, name, answer in (
            (xla_bridge, "canonicalize_platform", canonical),
            (jax, "default_backend", lambda: "gpu"),
            (jax, "local_devices", local),
            (cudnn, "check_cudnn_version", lambda: 91200),
            (cudnn, "check_compute_capability", lambda least: True),
            (cudnn, "is_cuda_compute_capability_equal", lambda exactly: exactly == "9.0"),
        ):
            stack.enter_context(mock.patch.object(owner, name, answer))
        yield


def _shapes(tree: Any) -> Any:
    return jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tree))


def _state(init: Callable[[], Any], optimizer: Any, average: Any) -> Any:
    return jax.eval_shape(lambda: train_state.create(init(), optimizer, average))


def classifier(config: Config, classes: int, devices: Mesh) -> jax.stages.Lowered:
    """An update of the classifier."""
    part = config.classify
    recipe = classify_train.Recipe(
        model=part.model, optimizer=part.optimizer, augment=part.augment, loss="cross_entropy",
        tau=1.0, steps=part.steps, rounds=1, batch_size=part.batch_size, seed=0,
    )  # fmt: skip
    init = functools.partial(classify_train.init, recipe, classes, cases.shape_of(config))
    optimizer = train_state.make_optimizer(part.optimizer, part.steps)
    return classify_train.make_step(recipe, classes, devices).lower(
        _state(init, optimizer, True),
        _shapes(cases.random_batch(config, classes, part.batch_size)),
        _shapes(jax.random.key(0)),
        jax.ShapeDtypeStruct((classes,), jnp.float32),
    )


def generator(config: Config, classes: int, devices: Mesh) -> jax.stages.Lowered:
    """An update of the generator."""
    part, made = config.generator, cases.generator_of(config, classes)
    optimizer = train_state.make_optimizer(part.optimizer, part.steps)
    return diffusion_train.make_step(made, (100,) * classes, devices).lower(
        _state(made.init, optimizer, diffusion_train.ema_rule(part)),
        _shapes(cases.annotated_batch(config, made)),
        _shapes(jax.random.key(0)),
        (),
    )


def images(config: Config, classes: int, devices: Mesh) -> jax.stages.Lowered:
    """Sampling without selection."""
    networks = sampling.networks_of(config, classes)
    request = sampling.random_request(config, networks.generator)
    return sampling.jit_images(config, networks, devices).lower(
        jax.eval_shape(networks.generator.init),
        _shapes(jax.random.key(0)),
        jax.ShapeDtypeStruct((config.synthesize.batch_size,), jnp.int32),
        _shapes(dataclasses.replace(request, source=None)),
        _shapes(request.source),
    )


def whole(config: Config) -> Config:
    """The config with attention in one piece: what is in a kernel or loop is not counted."""
    piece = {"attention_chunk": 1 << 30}
    unet = dataclasses.replace(config.generator.model, **piece)
    vit = dataclasses.replace(config.classify.model.vit, **piece)
    config = dataclasses.replace(
        config, generator=dataclasses.replace(config.generator, model=unet)
    )
    return contests.with_vit(config, vit)


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled.

    Attributes:
      lower: traces it, of a config and a number of classes, for a mesh.
      images: of a call.
    """

    lower: Callable[[Config, int, Mesh], jax.stages.Lowered]
    config: Config
    classes: int
    images: int

    def flops(self, devices: Mesh) -> float:
        """Of a call, on all devices."""
        if self.lower is not images:
            return ledger.counted(self.lower(whole(self.config), self.classes, devices))
        part = self.config.synthesize
        return self.images * program_lib.network_flops(
            part, sampling.networks_of(self.config, self.classes)
        )


def programs() -> dict[str, Program]:
    """Those of the GPU suite, by name; all compute in bfloat16."""
    cifar = contests.plain(contests.load("configs/cifar10_lt.py"), 512)
    bus = contests.load("configs/busgen.py")
    pictures = contests.pictures(cifar, 224, 256)

    def vit(**fields: Any) -> Program:
        network = dataclasses.replace(contests.S16, dtype="bfloat16", **fields)
        return Program(classifier, contests.with_vit(pictures, network), 1000, 256)

    def sampled(steps: int) -> Program:
        config = contests.synthesize(bus, steps=steps)
        return Program(images, config, 3, config.synthesize.batch_size)

    return {
        "ViT-S/16, 224 px, batch 256, class token": vit(),
        "ViT-S/16, 224 px, batch 256": vit(pool="gap"),
        "ViT-S/16, 224 px, batch 256, fused attention": vit(pool="gap", attention_chunk=64),
        "CIFAR UNet, 32 px, batch 512": Program(generator, cifar, 10, 512),
        "BUSGen UNet, 160 px": Program(generator, bus, 3, bus.generator.batch_size),
        "BUSGen sampling, 160 px, 50 guided steps": sampled(50),
        "BUSGen sampling, 160 px, 20 guided steps": sampled(20),
    }


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One program, compiled. All numbers are of one device; `flops` of all of them.

    Attributes:
      seconds: that it took to compile.
      memory: bytes of arguments, results and buffers.
      kinds: kernels in a call, by kind.
      own, library: bytes that XLA's kernels and those of libraries move; sent: of collectives.
      least: seconds of a call at least, by (1).
      mfu: at most; images: a second at most, on all devices.
    """

    name: str
    devices: int
    seconds: float
    flops: float
    memory: int
    kinds: Mapping[str, int]
    own: int
    library: int
    sent: int
    least: float
    mfu: float
    images: float


def compiled(name: str, program: Program, devices: Mesh) -> Compiled:
    """Lowers and compiles one program."""
    with as_if_present():
        lowered = program.lower(program.config, program.classes, devices)
        since = time.perf_counter()
        executable = lowered.compile()
        seconds = time.perf_counter() - since
        flops = program.flops(devices)
    found = kernels(executable.as_text() or "")
    kinds: Counter[str] = Counter()
    moved: Counter[str] = Counter()
    for kernel in found:
        kinds[kernel.kind] += kernel.times
        part = "library" if kernel.library else "own" if kernel.kind == "own" else "sent"
        moved[part] += kernel.moved * kernel.times
    peak = PEAK[KIND]
    arithmetic = flops / devices.size / peak["bfloat16"]
    least = moved["own"] / peak["bytes"] + max(arithmetic, moved["library"] / peak["bytes"])
    return Compiled(
        name, devices.size, seconds, flops, cases.held_bytes(executable), dict(kinds),
        moved["own"], moved["library"], moved["sent"], least, arithmetic / least,
        program.images / least,
    )  # fmt: skip


def table(found: Sequence[Compiled]) -> str:
    """Markdown."""
    lines = [
        "| program | devices | compile, s | GiB a device | kernels | of libraries | collectives "
        "| GB moved: own, libraries | TFLOPs | ms at least | images/s at most | MFU at most |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        libraries = sum(n for kind, n in one.kinds.items() if kind.startswith("__cu"))
        sent = ", ".join(
            f"{n} {kind}"
            for kind, n in one.kinds.items()
            if kind not in ("own",) and "__" not in kind
        )
        cells = [
            one.name, str(one.devices), number(one.seconds), number(one.memory / 2**30),
            str(sum(one.kinds.values())), str(libraries), sent or "-",
            f"{number(one.own / 1e9)}, {number(one.library / 1e9)}", number(one.flops / 1e12),
            number(1e3 * one.least), number(one.images), f"{one.mfu:.0%}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _main(argv: Sequence[str]) -> None:
    del argv
    values = flags.FLAGS
    logging.set_verbosity(logging.WARNING)
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {XLA_FLAGS}"
    jax.config.update("jax_platforms", "cpu")
    devices, found = device_mesh(values.devices), []
    for name, program in programs().items():
        if values.only in name:
            found.append(compiled(name, program, devices))
            if values.out:
                told = json.dumps([dataclasses.asdict(one) for one in found], indent=1)
                files.write_atomically(pathlib.Path(values.out), told + "\n", "the table")
    print(table(found))


if __name__ == "__main__":
    flags.DEFINE_integer("devices", 1, "cards to compile for", lower_bound=1)
    flags.DEFINE_string("only", "", "programs whose name has this in it")
    flags.DEFINE_string("out", None, "JSON file to write")
    command.experiment(_main)

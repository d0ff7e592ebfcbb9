r"""Times a round of N independent classifiers in pixels: one by one, mapped, in chunks, vmapped.

    python -m experiments.throughput.populations [--only=NAME] [--out=FILE.json]

A round is a few minibatch steps with augmentation and a look at policy_val, in one program, whose
steps are a loop (`scan`). The reference is a Python loop that calls the program of one classifier N
times. `steps` is a Python loop over single jitted minibatch steps, without any loop in a program.
Rows of a network take turns; ratios are taken within a turn. Random images; nothing is downloaded.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.throughput import timing
from experiments.throughput.timing import Spread
from lt_jax import command
from lt_jax.config import (
    AugmentConfig,
    ClassifierConfig,
    OptimizerConfig,
    ResNetConfig,
    ViTConfig,
)
from lt_jax.config.mixing import MixingConfig, ProxyConfig
from lt_jax.mixing import draws, proxy
from lt_jax.mixing.classifiers import Classifier, Network
from lt_jax.mixing.proxy_data import ProxyData, collect
from lt_jax.runtime import population
from lt_jax.shapes import Array, Float

MEMBERS = (1, 4, 16)
CLASSES, TRAIN, POOL, SEEN = 4, 120, 80, 60
AUGMENT = AugmentConfig(shift=1, horizontal_flip=True)


@dataclasses.dataclass(frozen=True)
class Unfolded(Network):
    """A network whose convolutions are matrix products over shifted images."""

    def make(
        self, config: ProxyConfig, shape: tuple[int, ...], num_classes: int, steps: int
    ) -> Classifier:
        """As of Network, with the same parameters."""
        plain = super().make(config, shape, num_classes, steps)

        def apply(*args: Any) -> Array:
            with nn.intercept_methods(_unfold):
                return plain.apply(*args)

        return plain._replace(apply=apply)


def _unfold(
    call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext
) -> Any:
    conv = context.module
    if not isinstance(conv, nn.Conv) or context.method_name != "__call__":
        return call(*args, **kwargs)
    stride = conv.strides if isinstance(conv.strides, int) else (conv.strides or (1,))[0]
    return convolve(args[0], conv.get_variable("params", "kernel"), stride)


def convolve(
    x: Float[Array, "b h w c"], kernel: Float[Array, "s s c d"], stride: int
) -> Float[Array, "b _h _w d"]:
    """A convolution with `SAME` padding and without bias: one product over s x s shifted images."""
    size, (h, w) = kernel.shape[0], x.shape[1:3]
    out = -(-h // stride), -(-w // stride)
    pads = [max((o - 1) * stride + size - n, 0) for o, n in zip(out, (h, w), strict=True)]
    x = jnp.pad(x, ((0, 0), *((pad // 2, pad - pad // 2) for pad in pads), (0, 0)))
    ends = [(o - 1) * stride + 1 for o in out]
    shifted = [
        x[:, i : i + ends[0] : stride, j : j + ends[1] : stride]
        for i in range(size)
        for j in range(size)
    ]
    columns = jnp.concatenate(shifted, axis=-1)
    return columns @ kernel.reshape(columns.shape[-1], -1)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A network, the images' side, and minibatches a round."""

    name: str
    side: int
    classifier: Network
    minibatches: int

    def environment(self) -> proxy.ProxyEnv:
        """On random images; its reference is left at zero, since the time does not depend on it."""
        config = MixingConfig(
            proxy=ProxyConfig(batch_size=32, minibatches=self.minibatches), rounds=8
        )
        reference = jnp.zeros((config.rounds + 1, CLASSES))
        return proxy.ProxyEnv(random_data(self.side), reference, config, self.classifier)


def problems() -> list[Problem]:
    """The vision transformer, the residual network, and that with unfolded convolutions."""
    vit = ViTConfig(variant="custom", width=32, depth=2, heads=2, mlp=64, patch_size=2)
    resnet = ResNetConfig(channels=(8, 16), blocks=(1, 1))
    optimizer = OptimizerConfig(warmup_steps=2)
    tokens = Network(ClassifierConfig(kind="vit", vit=vit), optimizer, AUGMENT)
    conv = Network(ClassifierConfig(kind="resnet", resnet=resnet), optimizer, AUGMENT)
    unfolded = Unfolded(conv.model, optimizer, AUGMENT)
    return [
        Problem("ViT, 8 px", 8, tokens, 8),
        Problem("ResNet, 8 px", 8, conv, 4),
        Problem("unfolded ResNet, 8 px", 8, unfolded, 4),
        Problem("ResNet, 28 px", 28, conv, 2),
        Problem("unfolded ResNet, 28 px", 28, unfolded, 2),
    ]


def random_data(side: int) -> ProxyData:
    """Noise, with labels in turn."""
    rng = np.random.default_rng(0)
    images = lambda n: rng.integers(0, 256, (n, side, side, 1), np.uint8)
    labels = lambda n: np.arange(n) % CLASSES
    return collect(
        images(TRAIN), labels(TRAIN), images(POOL), labels(POOL), rng.normal(size=POOL),
        images(SEEN), labels(SEEN), classes=[f"class {k}" for k in range(CLASSES)],
        head=np.arange(CLASSES) == 0,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to train N classifiers for a round: `call` does it once."""

    name: str
    members: int
    call: Callable[[], Any]
    compile_seconds: float
    temporary_bytes: int


def compiled(function: Callable, *args: Any) -> tuple[Any, float, int]:
    """The program; seconds of lowering and compilation; bytes beside arguments and results."""
    since = time.perf_counter()
    program = jax.jit(function).lower(*args).compile()
    seconds = time.perf_counter() - since
    memory = program.memory_analysis()
    return program, seconds, memory.temp_size_in_bytes if memory else 0


def rows_of(problem: Problem, members: Sequence[int] = MEMBERS) -> list[Row]:
    """All ways, for each number of members."""
    env = problem.environment()
    share, factor = jnp.full(CLASSES, 0.4), jnp.ones(CLASSES)
    key = jax.random.key(0)
    most = max(members)
    states = jax.jit(jax.vmap(lambda k: env.reset(k)[1]))(jax.random.split(key, most))
    turns = jax.random.split(jax.random.key(1), most)
    each = [jax.tree.map(lambda leaf, n=n: leaf[n], (states, turns)) for n in range(most)]
    round_ = lambda member: env.train_round(member[0], share, factor, member[1])
    one, one_seconds, one_bytes = compiled(round_, each[0])
    step, step_seconds, step_bytes = _single_step(env, each[0], share, factor)
    rows = []
    for count in members:
        some = jax.tree.map(lambda leaf, n=count: leaf[:n], (states, turns))
        loop = lambda n=count: [one(member) for member in each[:n]]
        steps = lambda n=count: [step(member) for member in each[:n]]
        rows += [
            Row("loop of rounds", count, loop, one_seconds, one_bytes),
            Row("loop of steps", count, steps, step_seconds, step_bytes),
        ]
        for name, together in {"map": 1, "chunks of 4": 4, "vmap": 0}.items():
            if count == 1 or (together and together >= count):
                continue
            run = lambda members, t=together: population.over(round_, members, t)
            program, seconds, size = compiled(run, some)
            call = lambda program=program, some=some: program(some)
            rows.append(Row(name, count, call, seconds, size))
    return rows


def _single_step(env: proxy.ProxyEnv, member: Any, share: Array, factor: Array) -> Any:
    """A round as single calls: draws, the fit of each minibatch, and the look at policy_val.

    XLA makes no loop of the one turn that such a fit has.
    """
    proxied = env.config.proxy

    def draw(key: Array) -> Any:
        weight = draws.class_weights(env.data.counts, share, factor, env.sampler)
        shape = proxied.minibatches, proxied.batch_size
        return draws.draw(env.data, weight, share, key, shape)

    def update(state: proxy.State, batch: draws.Draws, key: Array) -> proxy.State:
        params, slots, _ = env.fit(state, batch, jnp.zeros(CLASSES), key)
        return dataclasses.replace(state, params=params, optimizer=slots)

    state, key = member
    drawing, first, _ = compiled(draw, key)
    batch = jax.tree.map(lambda leaf: leaf[:1], drawing(key))
    updating, second, size = compiled(update, state, batch, key)
    looking, third, _ = compiled(env.measure, state.params)

    def call(member: Any) -> Any:
        state, key = member
        drawn = drawing(key)
        for i in range(proxied.minibatches):
            batch = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], drawn)
            state = updating(state, batch, key)
        return state.params, looking(state.params)

    return call, first + second + third, size


def measure(problem: Problem, turns: int, members: Sequence[int] = MEMBERS) -> list[dict[str, Any]]:
    """Figures of all rows; `over_loop` is how many times as fast as the loop of rounds."""
    rows = rows_of(problem, members)
    seconds: list[list[float]] = [[] for _ in rows]
    for turn in range(turns + 1):
        for row, mine in zip(rows, seconds, strict=True):
            since = time.perf_counter()
            jax.block_until_ready(row.call())
            if turn:  # the first one warms up
                mine.append(time.perf_counter() - since)
    loops = {
        row.members: mine
        for row, mine in zip(rows, seconds, strict=True)
        if row.name == "loop of rounds"
    }
    return [
        {
            "problem": problem.name,
            "row": row.name,
            "members": row.members,
            "minibatches": problem.minibatches,
            "milliseconds": dataclasses.asdict(
                Spread.of([1e3 * s / (row.members * problem.minibatches) for s in mine])
            ),
            "over_loop": dataclasses.asdict(
                Spread.of([a / b for a, b in zip(loops[row.members], mine, strict=True)])
            ),
            "compile_seconds": row.compile_seconds,
            "temporary_bytes": row.temporary_bytes,
        }
        for row, mine in zip(rows, seconds, strict=True)
    ]


def line(figures: dict[str, Any]) -> str:
    """A row of the table."""
    time_, ratio = figures["milliseconds"], figures["over_loop"]
    return (
        f"| {figures['problem']} | {figures['members']} | {figures['row']} "
        f"| {time_['median']:.3g} | {ratio['median']:.2f} ({ratio['min']:.2f} - {ratio['max']:.2f})"
        f" | {figures['compile_seconds']:.1f} | {figures['temporary_bytes'] / 2**20:.1f} |"
    )


def main(argv: Sequence[str]) -> None:
    """Measures, prints and writes."""
    del argv
    result = []
    print(
        "| network | N | how | ms a classifier and minibatch | times the loop | compile, s | MiB |"
    )
    print("|---|---|---|---|---|---|---|")
    for problem in problems():
        if flags.FLAGS.only not in problem.name:
            continue
        for figures in measure(problem, flags.FLAGS.turns):
            result.append(figures)
            print(line(figures), flush=True)
    if flags.FLAGS.out:
        device = jax.devices()[0].device_kind
        told = {"device": device, "jax": jax.__version__, "rows": result}
        timing.save(flags.FLAGS.out, told)


if __name__ == "__main__":
    flags.DEFINE_string("only", "", "networks whose name has this in it")
    flags.DEFINE_integer("turns", 3, "timed turns of each row", lower_bound=1)
    flags.DEFINE_string("out", "", "JSON file to write")
    command.experiment(main)

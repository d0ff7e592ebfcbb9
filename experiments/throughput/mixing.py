r"""Times the mixing environment: N classifiers in one program, a Python loop, a PyTorch loop.

    python -m experiments.throughput.mixing [--out=FILE.json]

An episode trains one classifier: R rounds of minibatch steps of a linear head on random features of
the digits' size, with levels drawn at random, a look at policy_val after each round. Compared are

  N at once      one program of N whole episodes: `vmap` over keys, `scan` over rounds
  Python loop    the same environment's step, jitted, called R times for one classifier
  PyTorch loop   the same episode in eager PyTorch on the same cores, one classifier; PyTorch is
                 no dependency, and the row is left out where it is not installed

All rows take turns, and ratios are taken within a turn. On a CPU that is shared, `taskset -c 0` in
front keeps threads from waiting for each other, and is the same for all. Peak memory is that of a
process of its own for each N, and of one that has built the environment and trained nothing.
"""

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.throughput import devices, timing
from experiments.throughput.cases import Case
from lt_jax import command
from lt_jax.config.mixing import MixingConfig
from lt_jax.mixing import proxy
from lt_jax.mixing.proxy import ProxyEnv
from lt_jax.mixing.proxy_data import ProxyData, collect
from lt_jax.mixing.rollout import play
from lt_jax.runtime import keys
from lt_jax.shapes import Array, Int, PRNGKey

CLASSES, FEATURES, TRAIN, POOL, SEEN = 10, 64, 331, 50, 10  # the last two a class
TOGETHER = (1, 4, 16, 64, 256, 1024)


def random_data(seed: int = 0) -> ProxyData:
    """A long tail of classes that overlap, and a pool of the same distribution."""
    rng = np.random.default_rng(seed)
    counts = np.geomspace(100, 5, CLASSES).astype(int)
    counts[0] += TRAIN - counts.sum()
    means = rng.normal(size=(CLASSES, FEATURES))

    def images(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat(np.arange(CLASSES), sizes)
        return means[labels] + 3 * rng.normal(size=(len(labels), FEATURES)), labels

    (real, real_labels), (pool, pool_labels), (seen, seen_labels) = (
        images(sizes) for sizes in (counts, np.full(CLASSES, POOL), np.full(CLASSES, SEEN))
    )
    return collect(
        real, real_labels, pool, pool_labels, rng.normal(size=len(pool)), seen, seen_labels,
        classes=[f"class {k}" for k in range(CLASSES)], head=np.arange(CLASSES) < 3,
    )  # fmt: skip


def environment(config: MixingConfig | None = None) -> ProxyEnv:
    """The default environment on random data."""
    return proxy.make(random_data(), config or MixingConfig(), reference_runs=1)


def choose(env: ProxyEnv, key: PRNGKey) -> Int[Array, "k"]:
    """Levels at random."""
    return jax.random.randint(key, (env.num_agents,), 0, env.num_actions[0])


def at_once(env: ProxyEnv, together: int) -> Callable[[], Array]:
    """Whole episodes of `together` classifiers; returns the team's returns."""

    def episode(key: PRNGKey) -> Array:
        return play(env, lambda _, at: choose(env, at), key).team.sum()

    program = jax.jit(jax.vmap(episode))
    each = jax.random.split(jax.random.key(0), together)
    return lambda: program(each)


def python_loop(env: ProxyEnv) -> Callable[[], Array]:
    """One classifier's episode, a call a round."""
    step = jax.jit(lambda state, key: env.step(state, choose(env, keys.stream(key, "action")), key))
    reset = jax.jit(env.reset)
    turns = list(jax.random.split(jax.random.key(0), env.rounds))

    def episode() -> Array:
        _, state = reset(turns[0])
        total = jnp.zeros(())
        for turn in turns:
            after = step(state, turn)
            state, total = after.state, total + after.info["team"]
        return total

    return episode


def torch_loop(env: ProxyEnv) -> Callable[[], float]:
    """One classifier's episode in eager PyTorch: the same draws, steps and measurements."""
    torch: Any = importlib.import_module("torch")

    proxy_config = env.config.proxy
    data = {
        name: torch.from_numpy(np.array(getattr(env.data, name)))
        for name in ("features", "starts", "sizes", "policy_val", "policy_val_labels")
    }
    levels = torch.tensor(env.config.levels)
    member = torch.nn.functional.one_hot(data["policy_val_labels"].long(), CLASSES).float()

    def episode() -> float:
        params = [torch.zeros(FEATURES, CLASSES), torch.zeros(CLASSES)]
        recall = torch.zeros(())
        for _ in range(env.rounds):
            share = levels[torch.randint(len(levels), (CLASSES,))]
            weight = data["sizes"][0] / (1 - share)
            upper = torch.cumsum(weight / weight.sum(), 0)[:-1]
            shape = 3, proxy_config.minibatches, proxy_config.batch_size
            u, v, z = torch.rand(shape)
            labels = torch.searchsorted(upper, u, right=True)
            source = (v < share[labels]).long()
            size = data["sizes"][source, labels]
            image = torch.minimum((z * size).int(), size - 1)
            rows = data["starts"][source, labels] + image
            torch_fit(params, data["features"], rows, labels, source, proxy_config.learning_rate)
            recall = torch_measure(params, data["policy_val"], member)
        return float(recall.mean())

    return episode


def torch_fit(
    params: list[Any], features: Any, rows: Any, labels: Any, source: Any, rate: float
) -> Any:
    """SGD on minibatches [n b] of rows, in place; mean loss of each class's draws [2 k]."""
    torch: Any = importlib.import_module("torch")

    sums = torch.zeros(2, 2 * CLASSES)
    for each, label, kind in zip(rows, labels, source, strict=True):
        held = [param.requires_grad_() for param in params]
        logits = features[each] @ held[0] + held[1]
        losses = torch.nn.functional.cross_entropy(logits, label, reduction="none")
        slopes = torch.autograd.grad(losses.mean(), held)
        with torch.no_grad():
            for param, slope in zip(params, slopes, strict=True):
                param -= rate * slope
            told = torch.stack([losses, torch.ones_like(losses)])
            sums.index_add_(1, label + CLASSES * kind, told)
    return (sums[0] / sums[1].clamp(min=1)).reshape(2, CLASSES)


def torch_measure(params: Sequence[Any], policy_val: Any, member: Any) -> Any:
    """Soft recall [k], and what the environment measures with it: precision and margin."""
    torch: Any = importlib.import_module("torch")

    with torch.no_grad():
        probabilities = torch.softmax(policy_val @ params[0] + params[1], dim=-1)
        confusion = member.T @ probabilities
        labelled = member.sum(0)
        hits = torch.diagonal(confusion)
        _ = hits / confusion.sum(0).clamp(min=1e-12)
        rival = torch.where(member > 0, -1.0, probabilities).amax(-1)
        _ = (member * ((member * probabilities).sum(-1) - rival)[:, None]).sum(0) / labelled
        return hits / labelled


def case_of(name: str, call: Callable[[], Any], env: ProxyEnv, together: int = 1) -> Case:
    """A case whose `images` are environment steps."""
    return Case(name, call, together * env.rounds)


def cases(env: ProxyEnv, together: Sequence[int]) -> dict[str, Case]:
    """All rows by name."""
    made = [case_of("Python loop", python_loop(env), env)]
    if importlib.util.find_spec("torch"):
        made.append(case_of("PyTorch loop", torch_loop(env), env))
    else:
        print("PyTorch is not installed: its row is left out", file=sys.stderr)
    made += [case_of(f"{n} at once", at_once(env, n), env, n) for n in together]
    return {case.name: case for case in made}


def peak_memory(together: int) -> int:
    """Bytes that a process of its own takes at most; 0 classifiers: the environment alone."""
    command = [sys.executable, "-m", "experiments.throughput.mixing", f"--memory_of={together}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ})
    return int(done.stdout.split()[-1])


def measure(
    env: ProxyEnv, together: Sequence[int], repetitions: int, seconds: float
) -> dict[str, Any]:
    """Environment steps a second of every row, and ratios; without memory."""
    rows = cases(env, together)
    rates = dict(zip(rows, timing.time_all(list(rows.values()), repetitions, seconds), strict=True))
    loops = [name for name in rates if name.endswith("loop")]
    return {
        "rounds": env.rounds,
        "load_average": list(os.getloadavg()),
        "rows": {name: vars(timing.Spread.of(values)) for name, values in rates.items()},
        "ratios": [
            timing.ratio(f"{name} / {loop}", values, rates[loop])
            for loop in loops
            for name, values in rates.items()
            if name != loop
        ],
    }


def table(result: dict[str, Any]) -> str:
    """Markdown: medians, with least and greatest; trainings a minute follow from the rounds."""
    ratios = {entry["name"]: entry for entry in result["ratios"]}

    def cell(entry: dict[str, float] | None, factor: float = 1.0) -> str:
        if entry is None:
            return "-"
        low, mid, high = (f"{entry[key] * factor:,.3g}" for key in ("min", "median", "max"))
        return f"{mid} ({low} - {high})"

    lines = [
        "| | environment steps/s | trainings/min | / Python loop | / PyTorch loop | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in result["rows"].items():
        memory = result.get("peak_memory", {}).get(name.removesuffix(" at once"))
        lines.append(
            f"| {name} | {cell(entry)} | {cell(entry, 60 / result['rounds'])} | "
            f"{cell(ratios.get(f'{name} / Python loop'))} | "
            f"{cell(ratios.get(f'{name} / PyTorch loop'))} | "
            f"{'-' if memory is None else format(memory / 2**20, ',.0f')} |"
        )
    return "\n".join(lines)


def _main(_: list[str]) -> None:
    values = flags.FLAGS
    if values.memory_of >= 0:
        env = environment()
        if values.memory_of:
            jax.block_until_ready(at_once(env, values.memory_of)())
        print(devices.peak_memory(jax.devices()[0])[0])
        return
    together = [int(n) for n in values.together]
    result = measure(environment(), together, values.repetitions, values.seconds)
    result["peak_memory"] = {str(n): peak_memory(n) for n in (0, *together)}
    print(table(result))
    print(f"environment alone: {result['peak_memory']['0'] / 2**20:,.0f} MiB")
    if values.out:
        timing.save(values.out, result)


if __name__ == "__main__":
    flags.DEFINE_list("together", [str(n) for n in TOGETHER], "classifiers in one program")
    flags.DEFINE_integer("repetitions", 5, "timed turns of each row", lower_bound=1)
    flags.DEFINE_float("seconds", 0.5, "that a turn of a row lasts, about", lower_bound=0.0)
    flags.DEFINE_integer("memory_of", -1, "print the peak of N classifiers, and no more")
    flags.DEFINE_string("out", None, "JSON file to write")
    command.experiment(_main)

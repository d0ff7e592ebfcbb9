"""The stage mixing: policies learned on a proxy classifier, and what they are compared with there.

A policy a seed is learned (`mixing.learn`), all seeds in one program, on train and policy_val
images and the pool's accepted ones: on their features, or as they are, by the network of
`classify`. Devices share the seeds or, where seeds do not divide evenly over them, the episodes of
an update.
A policy's greedy episode on the proxy is the schedule that `policy_schedule` replays;
`random_search` has as many trainings of the same proxy, an episode each, and keeps the best of its
random schedules.
Validation and test images are never asked for.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lt_jax.config import Config
from lt_jax.context import Context
from lt_jax.data.pool import PoolReader
from lt_jax.mixing import (
    classifiers,
    comparison,
    controllers,
    costs,
    learn,
    learned,
    networks,
    observations,
    proxy,
)
from lt_jax.mixing.environment import heads
from lt_jax.mixing.networks import Policy
from lt_jax.mixing.proxy_data import ProxyData, collect
from lt_jax.runtime import (
    checkpoint,
    faults,
    files,
    finite,
    keys,
    mesh,
    metrics,
    population,
    progress,
)
from lt_jax.runtime.ledger import Clock, Ledger
from lt_jax.shapes import Float

SAVE_EVERY = 20  # updates


@flax.struct.dataclass
class Training:
    """Where learning stands: states of all seeds [s ...], and their curves [s u], NaN from here."""

    states: Any
    curves: Any


@flax.struct.dataclass
class Learnt:
    """What acting takes: policies [s ...] by seed, and what agents see of the data."""

    policies: Any
    standing: Any


def run(folder: pathlib.Path, context: Context) -> Ledger:
    """Learns, or goes on learning; writes policies, schedules, curves and comparisons."""
    config = context.config.mixing
    total = Ledger()
    clock = Clock(total)
    data = proxy_data(context)
    env = _environment(context, data, config.reference_runs)
    learner = _learner(context, env)
    clock.read()
    training, learning = _learn(learner, folder, context)
    clock = Clock(total)
    policies = jax.vmap(lambda state: state.policy)(mesh.fetch(training.states))
    checkpoint.save_tree(folder / "policies", Learnt(policies, _standing(data)))
    _save(folder / "curves.json", _curves(config.policy.seeds, training))
    found = [
        comparison.compare(learner, config, jax.tree.map(lambda leaf, s=s: leaf[s], policies), seed)
        for s, seed in enumerate(config.policy.seeds)
    ]
    for seed, (schedules, _) in zip(config.policy.seeds, found, strict=True):
        for rule, rounds in schedules.items():
            _save(folder / "schedules" / f"{rule}_{seed}.json", rounds)
    spent = comparison.spent(learner, config, schedules=len(found[0][1]["returns"]) - 1)
    told = {
        "seeds": list(config.policy.seeds),
        "classes": context.data[0].classes,
        "observations": list(env.observations),
        "trainings": learner.trainings,
        "reference_runs": config.reference_runs,
        "spent": spent,
        "returns": _by_name([held["returns"] for _, held in found]),
        "importance": [held["importance"] for _, held in found],
    }
    _save(folder / "proxy.json", told)
    clock.read()
    total.add(learning)
    for part in ("reference", "search", "comparison"):
        total.add(Ledger(images=int(spent[part]["images"]), flops=spent[part]["flops"]))
    return total


def lower(context: Context) -> jax.stages.Lowered:
    """The program of an update of all policies, as it is traced in `run`, of a finished pool.

    Its environment is made by one training of the proxy in place of `config.mixing.reference_runs`.
    """
    env = _environment(context, proxy_data(context), reference_runs=1)
    learner = _learner(context, env)
    states = _fresh(learner, context.mesh).states
    return _update(learner, context.mesh).lower(states, mesh.replicate(env, context.mesh))


def controller(
    context: Context, seed: int, rule: str, supply: controllers.Supply
) -> controllers.Controller:
    """A learned rule, from the finished stage, by the policy whose turn it is (`learned.turn`)."""
    config, folder = context.config.mixing, context.folder("mixing")
    seeds = config.policy.seeds
    at = learned.turn(seed, context.config.classify.seeds, seeds)
    if rule != "policy":
        path = folder / "schedules" / f"{rule}_{seeds[at]}.json"
        return controllers.Schedule(supply, controllers.read_schedule(path))
    classes, features = len(supply.counts), len(observations.NAMES)
    actor = networks.make(config.policy, heads(config.levels, config.weights)).actor
    fresh = functools.partial(networks.init_policy, actor, keys.root(0), classes, features)
    policies = jax.tree.map(
        lambda leaf: np.zeros((len(seeds), *leaf.shape), leaf.dtype), jax.eval_shape(fresh)
    )
    column = np.zeros(classes, np.float32)
    target = Learnt(policies, learned.Standing(column, column, column))
    held = checkpoint.load_tree(folder / "policies", target)
    policy: Policy = jax.tree.map(lambda leaf: jnp.asarray(leaf[at]), held.policies)
    return learned.Learned(supply, config, policy, held.standing)


def proxy_data(context: Context) -> ProxyData:
    """Train, policy_val and accepted synthetic images, as the environment's classifier reads them.

    Raises MixtureError where no image is accepted or policy_val lacks a class, ProxyError where
    features are not finite.
    """
    manifest, _ = context.data
    pool = PoolReader(context.folder("synthesize"), manifest.sha256)
    counts = tuple(len(rows) for rows in context.train_rows)
    supply = controllers.Supply(counts, tuple(pool.counts().tolist()))
    supply.mix_shares(np.zeros(len(counts)))  # of an empty pool no arm could use what is learned
    accepted = np.flatnonzero(pool.columns["verdict"] == "accepted")
    train, labels = _shown(context, "train")
    policy_val, policy_val_labels = _shown(context, "policy_val")
    if context.config.mixing.environment == "images":
        made = np.asarray(pool[accepted])
    else:
        extractor = context.classifier_params("extractor", context.config.extractor.model)
        made = context.features(extractor, pool, accepted)
    evaluate = context.config.evaluate
    groups = manifest.groups_by_count(evaluate.head_above, evaluate.tail_below, evaluate.group_by)
    return collect(
        train,
        labels,
        made,
        pool.columns["label"][accepted],
        pool.columns["score"][accepted],
        policy_val if len(policy_val) else train[:0],
        policy_val_labels,
        classes=manifest.classes,
        head=np.isin(np.arange(len(manifest.classes)), groups["head"]),
    )


def _shown(context: Context, split: str) -> tuple[np.ndarray, np.ndarray]:
    """A split's images, or what the extractor has said of them, as the proxy reads; labels."""
    manifest, images = context.data
    rows = manifest.rows(split)
    told = None
    if context.config.mixing.environment == "features":
        told = context.evidence(split)
    elif len(rows):
        return np.asarray(images[rows]), manifest.labels[rows]
    return (np.zeros(0), manifest.labels[:0]) if told is None else (told.features, told.labels)


def _environment(context: Context, data: ProxyData, reference_runs: int) -> proxy.ProxyEnv:
    config, recipe = context.config.mixing, context.config.classify
    classifier: classifiers.Strategy = classifiers.Head()
    if config.environment == "images":
        classifier = classifiers.Network(recipe.model, recipe.optimizer, recipe.augment)
    return proxy.make(
        data,
        config,
        classifier=classifier,
        sampler=config.sampler,
        together=config.together,
        reference_runs=reference_runs,
        seed=config.policy.seeds[0],
        device_mesh=context.mesh,
    )


def _learner(context: Context, env: proxy.ProxyEnv) -> learn.Learner:
    config = context.config.mixing
    return learn.Learner(config.policy, env, config.reward.difference, env.at_once, context.mesh)


def _standing(data: ProxyData) -> learned.Standing:
    seen = np.bincount(data.policy_val_labels, minlength=len(data.head)).astype(np.float32)
    return learned.Standing(np.asarray(data.ood), np.asarray(data.fidelity), seen)


def _learn(
    learner: learn.Learner, folder: pathlib.Path, context: Context
) -> tuple[Training, Ledger]:
    """All updates of all seeds, from the newest checkpoint on; SIGTERM saves and stops."""
    config = learner.config
    played = len(config.seeds) * config.episodes
    env: Any = learner.environment
    each = costs.times(costs.episode(env), played)
    update, env = _update(learner, context.mesh), mesh.replicate(env, context.mesh)
    with contextlib.closing(checkpoint.Checkpointer(folder / "checkpoints")) as checkpoints:
        start, training, ledger = 0, _fresh(learner, context.mesh), Ledger()
        if held := checkpoints.restore(training):
            start, training, note = held
            ledger = Ledger.of(note["ledger"])
        clock = Clock(ledger)
        with (
            contextlib.closing(metrics.MetricWriter(folder, {"stage": "mixing"}, start)) as writer,
            progress.Progress("mixing", config.updates, "update", start) as bar,
        ):
            for n in range(start, config.updates):
                states, told = update(training.states, env)
                training = Training(states, training.curves)
                for name, values in mesh.fetch(told).items():
                    training.curves[name][:, n] = values
                means = {name: float(v[:, n].mean()) for name, v in training.curves.items()}
                _check(training.curves["return_mean"][:, n], n, context.config)
                ledger.add(each)
                done = n + 1
                bar.update(done, returned=means["return_mean"])
                last = done == config.updates
                if done % context.config.runtime.log_every == 0 or last:
                    writer.write(done, means)
                if done % SAVE_EVERY == 0 or last or faults.stopping():
                    clock.read()
                    finite.require(training.states, f"mixing, update {done}")
                    checkpoints.save(done, training, {"ledger": vars(ledger)})
                    faults.raise_if_stopping(f"mixing, update {done}")
    return training, ledger


def _update(learner: learn.Learner, device_mesh: Mesh) -> Any:
    """An update of all seeds, from their states and the environment.

    Seeds are shared by the devices, or else the episodes of each.
    """
    # One seed after the other where not all classifiers are at once, as in pixels: a vmap over
    # seeds is one over them, too.
    one_by_one = min(learner.together, 1)
    over_devices = None
    if population.splits(len(learner.config.seeds), device_mesh):
        over_devices, learner = device_mesh, dataclasses.replace(learner, device_mesh=None)

    def update(states: Any, env: proxy.ProxyEnv) -> tuple[Any, Any]:
        one = lambda state, env: learner.of(env).update(state)
        return population.over(one, states, one_by_one, over_devices, (env,))

    whole = mesh.replicated(device_mesh)
    return jax.jit(update, in_shardings=whole, out_shardings=whole, donate_argnums=0)


def _fresh(learner: learn.Learner, device_mesh: Mesh) -> Training:
    """The population before its first update."""
    config = learner.config
    roots = jnp.stack([keys.root(seed) for seed in config.seeds])
    states = jax.jit(jax.vmap(learner.init))(roots)
    one = jax.tree.map(lambda leaf: leaf[0], states)
    names = jax.eval_shape(learner.update, one)[1]
    shape = len(config.seeds), config.updates
    states = mesh.replicate(states, device_mesh)
    return Training(states, {name: np.full(shape, np.nan, np.float32) for name in names})


def _check(returned: Float[np.ndarray, "s"], update: int, config: Config) -> None:
    if not np.isfinite(returned).all():
        pixels = config.mixing.environment == "images"
        trains = "classify.optimizer" if pixels else "mixing.proxy"
        raise faults.NonFiniteError(
            f"mixing: the return of update {update} is not finite (by seed: {returned.tolist()}); "
            f"lower config.{trains}.learning_rate or config.mixing.policy.learning_rate"
        )


def _curves(seeds: tuple[int, ...], training: Training) -> dict[str, Any]:
    return {
        "seeds": list(seeds),
        "curves": {name: values.tolist() for name, values in training.curves.items()},
    }


def _by_name(held: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [entry[name] for entry in held] for name in held[0]}


def _save(path: pathlib.Path, found: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    files.write_atomically(path, json.dumps(found, indent=1), path.name)

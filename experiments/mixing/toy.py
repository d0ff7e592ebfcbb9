r"""Do MAPPO and REINFORCE find what is best, where that is known? Toy problems with an oracle.

    python -m experiments.mixing.toy --seeds=10 --out=runs/mixing_toy.json
    python -m experiments.mixing.toy --seeds=10 --retention=0.8 --noise=0.05

Seed i is a problem of its own (`lt_jax.mixing.toy.random_problem`: of the classes a third gain by
synthetic images, up to some dose, a third lose, for the rest they are useless; all cost a price),
and a training from its own key. The seeds of an algorithm are one program and take turns in it.

A policy is played greedily at several points of its training, 16 times (with noise it sees other
things in each), and the mean noiseless return of what it did is divided by the oracle's, which sees
the problem itself. Its rivals: each share fixed for all classes and rounds,
choices drawn anew in each round, and random search (`lt_jax.mixing.search`) over as many schedules
as the policy had classifier trainings, of which the best by its measured return is taken. A policy
`reaches` where it gets 95% of the oracle's return, `beats` where it gets more than every fixed
share, and `leaves` where the last round's share is zero in each class that loses, in all plays.
"""

import ast
import dataclasses
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from lt_jax import command
from lt_jax.config import ConfigError, fields
from lt_jax.config.mixing import PolicyConfig
from lt_jax.evaluate import statistics
from lt_jax.evaluate.statistics import tables
from lt_jax.evaluate.statistics.intervals import Proportion
from lt_jax.mixing import learn, networks, search, toy
from lt_jax.mixing.rollout import play
from lt_jax.runtime import files, keys

ENOUGH = 0.95  # of the oracle's return
RANDOM_PLAYS = 256
PLAYS = 16  # of a policy
POINTS = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)  # of a training's updates


def problem_of(
    seed: int, classes: int, rounds: int, noise: float = 0.0, retention: float = 1.0
) -> toy.Problem:
    """The problem of a seed."""
    key = keys.stream(keys.root(seed), "problem")
    return toy.random_problem(key, classes, rounds=rounds, noise=noise, retention=retention)


def policy_config(algorithm: str, changes: Sequence[str]) -> PolicyConfig:
    """The default with `changes`, of the form name=value; ConfigError where they are none."""
    values = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise ConfigError(
                f"--policy: got {change!r}; takes fields of config.mixing.policy, each with its "
                "value: --policy=updates=400,pooling=attention, say"
            )
        values[name] = _literal(value)
    return fields.build(PolicyConfig, {"algorithm": algorithm, **values}, "policy")


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text  # a name


def points_of(config: PolicyConfig) -> np.ndarray:
    """Updates after which a policy is played, ascending; the last one is the training's."""
    return np.unique([max(1, round(part * config.updates)) for part in POINTS])


def train(
    config: PolicyConfig, problems: Sequence[toy.Problem], seeds: Sequence[int]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A training on each problem.

    Returns:
      Greedy actions [seed point play round class], and curves [seed update].
    """

    def one(each: tuple[toy.Problem, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        problem, key = each
        environment = toy.ToyEnv(problem)
        learner = learn.Learner(config, environment)
        act = networks.make_act(config, environment.num_actions)

        def greedy(policy: networks.Policy, at: jax.Array) -> jax.Array:
            choose = lambda observation, turn: act(policy, observation, turn, True)
            return play(environment, choose, at).action[..., 0]

        def update(state: learn.LearnState, _: None) -> tuple[learn.LearnState, Any]:
            state, metrics = learner.update(state)
            return state, (state.policy, metrics)

        start = learner.init(keys.stream(key, "train"))
        policies, curves = jax.lax.scan(update, start, length=config.updates)[1]
        chosen = jax.tree.map(lambda leaf: leaf[points_of(config) - 1], policies)
        plays = jax.random.split(keys.stream(key, "play"), PLAYS)
        over_plays = lambda policy: jax.vmap(lambda at: greedy(policy, at))(plays)
        return jax.vmap(over_plays)(chosen), curves

    actions, curves = jax.jit(lambda every: jax.lax.map(one, every))(_stacked(problems, seeds))
    return np.asarray(actions), {name: np.asarray(value) for name, value in curves.items()}


def search_schedules(
    problems: Sequence[toy.Problem], seeds: Sequence[int], budgets: Sequence[int]
) -> np.ndarray:
    """The best of as many random schedules as each budget allows: [seed budget 1 round class]."""

    def one(each: tuple[toy.Problem, jax.Array]) -> jax.Array:
        problem, key = each
        environment, key = toy.ToyEnv(problem), keys.stream(key, "search")
        returns = search.random_search(environment, key, max(budgets))[1]
        best = jnp.stack([returns[:budget].argmax() for budget in budgets])
        return jax.vmap(lambda index: search.schedule(environment, key, index))(best)[:, None]

    return np.asarray(jax.jit(lambda every: jax.lax.map(one, every))(_stacked(problems, seeds)))


def _stacked(problems: Sequence[toy.Problem], seeds: Sequence[int]) -> tuple[Any, jax.Array]:
    roots = jnp.stack([keys.root(seed) for seed in seeds])
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems), roots


def rivals(problem: toy.Problem, seed: int) -> dict[str, float]:
    """Returns of the fixed shares, by name, and of random choices."""
    shape = problem.rounds, len(problem.quality)
    found = {
        f"fixed {share:g}": toy.returns(problem, np.full(shape, level))
        for level, share in enumerate(problem.levels)
    }
    draw = np.random.default_rng((seed, 1))
    plays = [draw.integers(len(problem.levels), size=shape) for _ in range(RANDOM_PLAYS)]
    found["random"] = float(np.mean([toy.returns(problem, actions) for actions in plays]))
    return found


def judge(
    problem: toy.Problem, actions: np.ndarray, others: dict[str, float], best: float
) -> dict[str, Any]:
    """One policy on one problem; its actions are [point play round class]."""
    harmful = np.asarray(problem.quality) < 0
    share = np.asarray(problem.levels)[actions[-1]]
    curve = [np.mean([toy.returns(problem, each) for each in plays]) / best for plays in actions]
    fixed = max(value for name, value in others.items() if name.startswith("fixed"))
    return {
        "ratio": float(curve[-1]),
        "reaches": bool(curve[-1] >= ENOUGH),
        "beats": bool(curve[-1] * best > fixed),
        "harmful_last": float(share[:, -1, harmful].mean()),
        "harmful_all": float(share[..., harmful].mean()),
        "leaves": not share[:, -1, harmful].any(),
        "curve": [float(value) for value in curve],
        "share": share[0].tolist(),
    }


def measure(
    seeds: Sequence[int],
    shape: tuple[int, int, float, float],
    algorithms: Sequence[str],
    changes: Sequence[str],
) -> dict[str, Any]:
    """All of it: for each policy a list by seed, curves, seconds; the rivals' ratios.

    Args:
      seeds: of problems and trainings.
      shape: classes, rounds, noise and retention of the problems.
      algorithms: to train, at least one.
      changes: of their config, as `policy_config` takes them.
    """
    problems = [problem_of(seed, *shape) for seed in seeds]
    best = [toy.oracle(problem)[1] for problem in problems]
    others = [rivals(problem, seed) for problem, seed in zip(problems, seeds, strict=True)]
    found: dict[str, Any] = {
        "seeds": list(seeds),
        **dict(zip(("classes", "rounds", "noise", "retention"), shape, strict=True)),
        "oracle": best,
        "rivals": {
            name: [held[name] / top for held, top in zip(others, best, strict=True)]
            for name in others[0]
        },
        "quality": [np.asarray(problem.quality).tolist() for problem in problems],
        "policies": {},
    }

    def record(name: str, actions: np.ndarray, budgets: Sequence[int], since: float) -> Any:
        seconds = time.perf_counter() - since
        rows = [judge(*each) for each in zip(problems, actions, others, best, strict=True)]
        held = {"trainings": list(budgets), "seconds": seconds, "judged": rows}
        found["policies"][name] = held
        return held

    searched: list[int] = []
    for algorithm in algorithms:
        config, since = policy_config(algorithm, changes), time.perf_counter()
        actions, curves = train(config, problems, seeds)
        searched = (config.episodes * points_of(config)).tolist()
        record(algorithm, actions, searched, since).update(
            config=dataclasses.asdict(config),
            curves={name: value.tolist() for name, value in curves.items()},
        )
    since = time.perf_counter()
    record("random search", search_schedules(problems, seeds, searched), searched, since)
    return found


def tables_of(found: dict[str, Any]) -> list[tables.Table]:
    """Policies, their learning curves, and all returns over the oracle's; n: problems."""
    cell = lambda values: statistics.summarise(np.array(values, float))
    count = len(found["seeds"])
    judged: list[tuple[tables.Cell, ...]] = []
    for name, held in found["policies"].items():
        column = lambda field, held=held: [row[field] for row in held["judged"]]
        judged.append(
            (
                name,
                cell(column("ratio")),
                f"least {min(column('ratio')):.3f}",
                *(Proportion(sum(column(f)), count) for f in ("reaches", "beats", "leaves")),
                cell(column("harmful_last")),
                cell(column("harmful_all")),
                held["trainings"][-1],
                f"{held['seconds']:.0f} s",
            )
        )
    columns = ("Policy", "Return / oracle", "", "Reaches", "Beats", "Leaves")
    columns += ("Share of harmful classes, last round", "all rounds", "Trainings", "Took")
    trainings = next(iter(found["policies"].values()))["trainings"]
    learned = [
        (name, *map(cell, zip(*(row["curve"] for row in held["judged"]), strict=True)))
        for name, held in found["policies"].items()
    ]
    best = np.max([v for name, v in found["rivals"].items() if name.startswith("fixed")], axis=0)
    others = [(name, cell(values)) for name, values in found["rivals"].items()]
    others.append(("the best fixed share of each problem", cell(best)))
    return [
        tables.Table(columns, tuple(judged)),
        tables.Table(("Return / oracle after", *(f"{n:,}" for n in trainings)), tuple(learned)),
        tables.Table(("Other", "Return / oracle"), tuple(others)),
    ]


def _main(_: list[str]) -> None:
    values = flags.FLAGS
    seeds = range(values.first_seed, values.first_seed + values.seeds)
    shape = values.classes, values.rounds, values.noise, values.retention
    found = measure(seeds, shape, values.algorithms, values.policy)
    if values.out:
        text = json.dumps(found, indent=1)
        files.write_atomically(pathlib.Path(values.out), text, "the results")
    print("\n\n".join(map(tables.to_markdown, tables_of(found))))


if __name__ == "__main__":
    flags.DEFINE_integer("seeds", 10, "problems, each with a training", lower_bound=2)
    flags.DEFINE_integer("first_seed", 0, "of these", lower_bound=0)
    flags.DEFINE_integer("classes", 9, "of each problem", lower_bound=2)
    flags.DEFINE_integer("rounds", 8, "of an episode", lower_bound=1)
    flags.DEFINE_float("retention", 1.0, "of a dose from round to round")
    flags.DEFINE_float("noise", 0.0, "standard deviation of a measured recall", lower_bound=0.0)
    flags.DEFINE_list("algorithms", ["mappo", "reinforce"], "which")
    flags.DEFINE_list("policy", [], "PolicyConfig fields that differ, name=value,...")
    flags.DEFINE_string("out", None, "JSON file of all that was measured")
    command.experiment(_main)

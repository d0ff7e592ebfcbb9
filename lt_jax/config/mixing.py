"""Fields of the mixing policy: environment, reward, policy, and how it is trained."""

import dataclasses

from lt_jax.config.fields import bounded, choice

PROXY_LOSSES = ("cross_entropy", "balanced_softmax")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProxyConfig:
    """The classifier that an environment trains in each episode, on features or in pixels.

    In pixels network, optimiser and learning rate are those of `classify`, and not these.
    """

    head: str = choice("linear", "mlp")
    hidden: int = bounded(64, 1, 65536)  # of `mlp`
    batch_size: int = bounded(64, 1)
    minibatches: int = bounded(20, 1, 100_000)  # a round
    learning_rate: float = bounded(0.05, 0.0, 100.0)
    loss: str = choice(*PROXY_LOSSES)  # as of the arms that it is for
    optimizer: str = choice("sgd", "adam")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """What the agents are paid together, after each round."""

    metric: str = choice("balanced_accuracy", "macro_f1")  # soft: of probabilities
    head_tolerance: float = bounded(0.02, 0.0, 1.0)  # fall of head recall that costs nothing
    head_penalty: float = bounded(1.0, 0.0, 1000.0)  # of a fall beyond it
    price: float = bounded(0.0, 0.0, 1000.0)  # of a synthetic share of 1 in a class, over classes
    # Each agent's own: less what the team gets in this round with its share at 0 and its factor at
    # 1. Ranks its choices as the team's reward does within a round; over an episode its optimum may
    # be another.
    difference: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """The actor that all agents share, the critic of all, and their training."""

    algorithm: str = choice("mappo", "reinforce")
    pooling: str = choice("mean", "attention")  # over classes
    width: int = bounded(32, 1, 4096)
    episodes: int = bounded(64, 2, 1_000_000)  # in parallel
    updates: int = bounded(200, 1, 1_000_000)
    learning_rate: float = bounded(1e-2, 0.0, 10.0)
    discount: float = bounded(1.0, 0.0, 1.0)
    gae_lambda: float = bounded(0.95, 0.0, 1.0)
    entropy: float = bounded(0.01, 0.0, 10.0)
    clip: float = bounded(0.2, 0.0, 10.0)  # of `mappo`
    epochs: int = bounded(4, 1, 1000)  # of `mappo`
    minibatches: int = bounded(4, 1, 1000)  # of `mappo`
    clip_norm: float = bounded(0.5, 0.0, 1000.0)
    # A policy each. A classifier takes that of its own seed; where there is none they are taken in
    # turn, by the place of its seed among the sorted config.classify.seeds.
    seeds: tuple[int, ...] = bounded((0, 1, 2), 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixingConfig:
    """A learned policy for the synthetic share of each class."""

    environment: str = choice("features", "images")  # images: the classifier of `classify` itself
    # Classifiers in one vmap; 0: all of an update on features, in pixels one after the other.
    together: int = bounded(0, 0)

    levels: tuple[float, ...] = bounded((0.0, 0.2, 0.4, 0.6, 0.8), 0.0, 0.999)  # shares to choose
    weights: tuple[float, ...] = bounded((), 0.01, 100.0)  # of a class's draws; empty: left alone
    rounds: int = bounded(8, 1, 1000)
    sampler: str = choice("instance", "balanced", "square_root")  # as of the arms that it is for
    reference_runs: int = bounded(8, 1, 10_000)  # real images alone: what head recall falls below
    proxy: ProxyConfig = ProxyConfig()
    reward: RewardConfig = RewardConfig()
    policy: PolicyConfig = PolicyConfig()

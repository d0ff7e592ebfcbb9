"""MAPPO as a Python loop in PyTorch: one episode after the other, then epochs of minibatches.

The episode is that of `mixing.torch_loop`, the networks have the sizes of ours (each class by
itself, their mean, both together), and an update has as many episodes, epochs and minibatches. What
an agent sees is its level, recall, class size and the round, filled up with zeros to our width; its
team is paid what recall has gained.
"""

import dataclasses
from typing import Any

import numpy as np

from experiments.throughput.cases import Case
from experiments.throughput.mixing import torch_fit, torch_measure
from experiments.throughput.peers import load
from lt_jax.config.mixing import PolicyConfig
from lt_jax.mixing.proxy import ProxyEnv

torch = load("torch")
nn = torch.nn


class Network(nn.Module):
    """[b k o] -> [b k outputs]: the trunk of our actor and critic with a linear layer."""

    def __init__(self, observations: int, width: int, outputs: int) -> None:
        """Weights shared by all classes."""
        super().__init__()
        layers = nn.Linear(observations, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()
        self.own, self.both = nn.Sequential(*layers), nn.Linear(2 * width, width)
        self.out = nn.Linear(width, outputs)

    def forward(self, x: Any) -> Any:
        """Permuting k permutes the result."""
        h = self.own(x)
        pooled = h.mean(dim=-2, keepdim=True).expand(h.shape)
        return self.out(torch.tanh(self.both(torch.cat([h, pooled], dim=-1))))


def advantages(rewards: Any, values: Any, discount: float, trace: float) -> Any:
    """Generalised advantages [t n] of rewards [t n] and values [t+1 n], episodes cut at the end."""
    deltas = rewards + discount * values[1:] - values[:-1]
    later, found = torch.zeros_like(deltas[0]), []
    for delta in reversed(deltas):
        later = delta + discount * trace * later
        found.append(later)
    return torch.stack(found[::-1])


@dataclasses.dataclass(frozen=True)
class Played:
    """Steps of an episode, stacked: observations [t+1 k o], actions and log pi [t k], pay [t]."""

    observation: Any
    action: Any
    log_prob: Any
    reward: Any


class PPO:
    """A learner whose `update` plays episodes and learns from them."""

    def __init__(self, env: ProxyEnv, config: PolicyConfig) -> None:
        """On the environment's own data, levels, rounds and minibatches."""
        self.env, self.config = env, config
        names = ("features", "starts", "sizes", "policy_val", "policy_val_labels")
        self.data = {name: torch.from_numpy(np.array(getattr(env.data, name))) for name in names}
        self.classes = env.num_agents
        labels = self.data["policy_val_labels"].long()
        self.member = nn.functional.one_hot(labels, self.classes).float()
        self.levels = torch.tensor(env.config.levels)
        self.width = len(env.observations)
        self.actor = Network(self.width, config.width, len(self.levels))
        self.critic = Network(self.width, config.width, 1)
        self.params = [*self.actor.parameters(), *self.critic.parameters()]
        self.adam = torch.optim.Adam(self.params, lr=config.learning_rate, eps=1e-5)

    def update(self) -> dict[str, float]:
        """Episodes, then epochs; returns steps made and the mean return."""
        config = self.config
        played = [self._episode() for _ in range(config.episodes)]
        stacked = lambda name: torch.stack([getattr(p, name) for p in played], dim=1)
        observation, rewards = stacked("observation"), stacked("reward")
        with torch.no_grad():
            values = self.critic(observation).mean(dim=(-2, -1))
        gain = advantages(rewards, values, config.discount, config.gae_lambda)
        flat = lambda x: x.reshape(-1, *x.shape[2:])
        batch = [
            flat(part)
            for part in (
                observation[:-1], stacked("action"), stacked("log_prob"),
                (gain - gain.mean()) / (gain.std() + 1e-6), gain + values[:-1],
            )
        ]  # fmt: skip
        for _ in range(config.epochs):
            order = torch.randperm(len(batch[0]))
            for rows in order.chunk(config.minibatches):
                self._descend(*(part[rows] for part in batch))
        return {"steps": float(rewards.numel()), "return": float(rewards.sum(0).mean())}

    def _descend(self, seen: Any, action: Any, old: Any, gain: Any, target: Any) -> None:
        chosen = torch.distributions.Categorical(logits=self.actor(seen))
        ratio = (chosen.log_prob(action) - old).exp()
        clip = self.config.clip
        gain = gain[:, None]
        surrogate = torch.minimum(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain).mean()
        value = (self.critic(seen).mean(dim=(-2, -1)) - target).square().mean()
        loss = value / 2 - surrogate - self.config.entropy * chosen.entropy().mean()
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.params, self.config.clip_norm)
        self.adam.step()

    def _episode(self) -> Played:
        proxied, data = self.env.config.proxy, self.data
        params = [torch.zeros(data["features"].shape[-1], self.classes), torch.zeros(self.classes)]
        recall = share = torch.zeros(self.classes)
        seen, steps, score = [self._see(share, recall, 0)], [], 1 / self.classes
        for turn in range(self.env.rounds):
            with torch.no_grad():
                chosen = torch.distributions.Categorical(logits=self.actor(seen[-1]))
                action = chosen.sample()
            share = self.levels[action]
            rows, labels, source = self._draw(share, (proxied.minibatches, proxied.batch_size))
            torch_fit(params, data["features"], rows, labels, source, proxied.learning_rate)
            recall = torch_measure(params, data["policy_val"], self.member)
            steps.append((action, chosen.log_prob(action), recall.mean() - score))
            score = recall.mean()
            seen.append(self._see(share, recall, turn + 1))
        action, log_prob, reward = (torch.stack(parts) for parts in zip(*steps, strict=True))
        return Played(torch.stack(seen), action, log_prob, reward)

    def _draw(self, share: Any, shape: tuple[int, int]) -> tuple[Any, Any, Any]:
        """Rows, labels and sources of minibatches [n b], as `draws.draw` has them."""
        sizes = self.data["sizes"]
        weight = sizes[0] / (1 - share)
        upper = torch.cumsum(weight / weight.sum(), 0)[:-1]
        u, v, z = torch.rand(3, *shape)
        labels = torch.searchsorted(upper, u, right=True)
        source = (v < share[labels]).long()
        size = sizes[source, labels]
        image = torch.minimum((z * size).int(), size - 1)
        return self.data["starts"][source, labels] + image, labels, source

    def _see(self, share: Any, recall: Any, turn: int) -> Any:
        known = [share, recall, self.data["sizes"][0].log(), torch.full_like(share, turn)]
        rest = [torch.zeros_like(share)] * (self.width - len(known))
        return torch.stack([part.float() for part in (*known, *rest)], dim=-1)


def case(env: ProxyEnv, config: PolicyConfig) -> Case:
    """Environment steps, learning included; on the CPU, where small operations wait least."""
    learner = PPO(env, config)
    return Case("Python-loop PPO", learner.update, config.episodes * env.rounds)

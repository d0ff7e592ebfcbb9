"""Our UNet in PyTorch: the same layers, sizes and parameter names, for training beside ours.

`copied` takes our parameters over, with which both networks give the same prediction. The noising
process and the loss are those of a config, written out here in PyTorch.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.throughput.cases import Case, generator_of, init, random_batch
from experiments.throughput.peers import Mode, load, torch_network, torch_step
from lt_jax.config import Config
from lt_jax.diffusion.generator import Generator
from lt_jax.diffusion.process import LOG_SNR_LIMIT
from lt_jax.errors import UserError

torch = load("torch")


class UnsupportedError(UserError, ValueError):
    """A config that the PyTorch UNet has no counterpart for."""


def model_of(generator: Generator) -> Any:
    """The PyTorch network of a generator that is told classes alone.

    Raises:
      UnsupportedError: conditions other than the class, or resampling outside blocks.
    """
    known, config = generator.vocabulary, generator.config.model
    if config.resample != "block" or config.class_embedding != "sum":
        raise UnsupportedError(
            "the PyTorch UNet has resampling inside blocks and a sum of embeddings; time a config "
            "with model.resample=block and model.class_embedding=sum"
        )
    if known.names != ("label",) or generator.has_branch:
        raise UnsupportedError(
            f"the PyTorch UNet is told the class alone, this generator {', '.join(known.names)}; "
            "time a config without generator.conditions and generator.sketch"
        )
    side, _, channels = generator.image_shape
    return torch_network.UNet(config, known.num_classes, channels, side)


def copied(model: Any, params: Mapping[str, Any]) -> Any:
    """The model with our parameters."""
    state = model.state_dict()
    for path, leaf in _flat(params):
        *owner, kind = path
        name = {"kernel": "weight", "scale": "weight", "embedding": "weight"}.get(kind, kind)
        value = np.asarray(leaf)
        if kind == "kernel":  # [h w in out] or [in out]
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        state[".".join([*owner, name])] = torch.from_numpy(np.array(value))
    model.load_state_dict(state)
    return model


def _flat(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    found = []
    for name, held in tree.items():
        inside = isinstance(held, Mapping)
        found += _flat(held, (*path, name)) if inside else [((*path, name), held)]
    return found


def make_loss(generator: Generator) -> Any:
    """`(network, images uint8, labels) -> loss`: the process, its weight and dropped labels."""
    config, process = generator.config, generator.config.process

    def log_snr_of(t: Any) -> Any:
        if process.schedule == "cosine":
            return -2 * torch.log(torch.tan(t * math.pi / 2))
        total = process.beta_min * t + (process.beta_max - process.beta_min) * t**2 / 2
        return -torch.log(torch.expm1(total))

    def loss_of(network: Any, images: Any, labels: Any) -> Any:
        x0 = torch_step.augmented(images, config.augment)
        b, where = len(x0), x0.device
        t = (torch.rand(1, device=where) + torch.arange(b, device=where) / b) % 1.0
        log_snr = log_snr_of(t).clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT)
        dropped = torch.rand(b, device=where) < config.condition_dropout
        labels = torch.where(dropped, -1, labels)
        alpha = torch.sigmoid(log_snr).sqrt()[:, None, None, None]
        sigma = torch.sigmoid(-log_snr).sqrt()[:, None, None, None]
        noise = torch.randn_like(x0)
        targets = {"x0": x0, "eps": noise, "v": alpha * noise - sigma * x0}
        prediction = network(alpha * x0 + sigma * noise, log_snr, labels)
        error = (prediction - targets[process.prediction]).square().mean(dim=(1, 2, 3))
        cap = math.log(process.min_snr_gamma) if process.min_snr_gamma > 0 else math.inf
        weight = torch.clamp(log_snr, max=cap)
        if process.prediction == "eps":
            weight = weight - log_snr
        elif process.prediction == "v":
            weight = weight + torch.nn.functional.logsigmoid(-log_snr)
        return (weight.exp() * error).mean()

    return loss_of


def case(config: Config, classes: int, mode: Mode) -> Case:
    """Generator training from our parameters."""
    generator = generator_of(config, classes)
    part = config.generator
    return torch_step.training(
        copied(model_of(generator), init(generator)), make_loss(generator),
        random_batch(config, classes, part.batch_size), part.optimizer, mode, part.ema_decay,
    )  # fmt: skip

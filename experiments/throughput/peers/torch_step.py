"""A training step in PyTorch as one would write it there, in the ways that make it fast.

Everything that our compiled step does is done: host batch to device, augmentation, loss, gradient,
clipping, AdamW, and the average of the parameters where there is one.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.throughput.cases import Case
from experiments.throughput.peers import load
from lt_jax.config import AugmentConfig, OptimizerConfig

torch = load("torch")


@dataclasses.dataclass(frozen=True)
class Mode:
    """How PyTorch runs it: through `torch.compile`, channels last, in bfloat16 by autocast."""

    name: str
    compiled: bool = False
    channels_last: bool = False
    amp: bool = False


MODES = (
    Mode("eager"),
    Mode("channels last", channels_last=True),
    Mode("AMP", amp=True),
    Mode("compiled", compiled=True),
    Mode("compiled, channels last, AMP", compiled=True, channels_last=True, amp=True),
)


def device() -> str:
    """ "cuda" where PyTorch has a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def wait(result: Any) -> None:
    """Until the GPU has done everything that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def placed(model: Any, mode: Mode) -> Any:
    """The model on its device, in the memory format of `mode`; TF32 products, as XLA's default."""
    torch.set_float32_matmul_precision("high")
    memory = torch.channels_last if mode.channels_last else torch.contiguous_format
    return model.to(device(), memory_format=memory)


def autocast(mode: Mode) -> Any:
    """The context of a forward pass."""
    return torch.autocast(device(), dtype=torch.bfloat16, enabled=mode.amp)


def augmented(images: Any, config: AugmentConfig) -> Any:
    """uint8 [b h w c] -> float32 [-1, 1] [b c h w], flipped and shifted by whole pixels."""
    b, h, w, _ = images.shape
    where = images.device
    y, x = torch.arange(h, device=where)[None], torch.arange(w, device=where)[None]
    y, x = y.expand(b, h), x.expand(b, w)
    if config.horizontal_flip:
        x = torch.where(torch.rand(b, 1, device=where) < 0.5, w - 1 - x, x)
    if config.shift:
        most = config.shift
        y = y + torch.randint(-most, most + 1, (b, 1), device=where)
        x = x + torch.randint(-most, most + 1, (b, 1), device=where)
        y, x = y.clamp(0, h - 1), x.clamp(0, w - 1)
    rows = torch.arange(b, device=where)[:, None, None]
    taken = images[rows, y[:, :, None], x[:, None, :]]
    return (taken.permute(0, 3, 1, 2).float() * 2 - 255) / 255


def training(
    name: str,
    model: Any,
    loss_of: Callable[[Callable, Any, Any], Any],
    batch: Mapping[str, np.ndarray],
    optimizer: OptimizerConfig,
    mode: Mode,
    ema_decay: float = 0.0,
) -> Case:
    """A case of one update, called `name, mode`.

    Args:
      name: of the peer.
      model: a `torch.nn.Module`; its parameters are changed.
      loss_of: `(network, images uint8 [b h w c], labels [b]) -> scalar`, where `network` is the
        model as `mode` runs it.
      batch: as of the loader.
      optimizer: rates and clipping; the rate stays as it is.
      mode: how it runs.
      ema_decay: of the parameters' average; 0: none is kept.
    """
    where = device()
    model = placed(model, mode).train()
    network = torch.compile(model) if mode.compiled else model
    params = list(model.parameters())
    average = [param.detach().clone() for param in params] if ema_decay else []
    adamw = torch.optim.AdamW(
        params, lr=optimizer.learning_rate, betas=(0.9, optimizer.b2),
        weight_decay=optimizer.weight_decay, fused=True,
    )  # fmt: skip
    images = torch.from_numpy(batch["image"])
    labels = torch.from_numpy(batch["label"].astype(np.int64))

    def call() -> Any:
        at = images.to(where, non_blocking=True), labels.to(where, non_blocking=True)
        with autocast(mode):
            loss = loss_of(network, *at)
        adamw.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, optimizer.clip_norm)
        adamw.step()
        if average:
            torch._foreach_lerp_(average, [param.detach() for param in params], 1 - ema_decay)
        return loss.detach()

    seconds = first_call(call)
    return Case(
        f"{name}, {mode.name}", call, len(labels), dtype="bfloat16" if mode.amp else "float32",
        devices=1, compile_seconds=seconds if mode.compiled else None, memory=memory(), wait=wait,
    )  # fmt: skip


def first_call(call: Callable[[], Any]) -> float:
    """Seconds of a first call, which compiles."""
    since = time.perf_counter()
    wait(call())
    return time.perf_counter() - since


def memory() -> int:
    """Most bytes on the GPU so far, and forgets them; 0 on a CPU, where PyTorch does not count."""
    if not torch.cuda.is_available():
        return 0
    most = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return int(most)

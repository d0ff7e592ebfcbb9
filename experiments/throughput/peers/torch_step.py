"""A training step in PyTorch as one would write it there, in the ways that make it fast.

Everything that our compiled step does is done: host batch to device, augmentation, loss, gradient,
clipping, AdamW, and the average of the parameters where there is one.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.throughput.cases import Case
from experiments.throughput.peers import Mode, load
from lt_jax.config import AugmentConfig, OptimizerConfig

torch = load("torch")
torch.backends.cudnn.benchmark = True  # shapes stay; without CUDA it does nothing


def device() -> str:
    """ "cuda" where PyTorch has a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def wait(result: Any) -> None:
    """Until the GPU has done everything that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def placed(model: Any, mode: Mode) -> Any:
    """The model on its device, in the memory format of `mode`."""
    memory = torch.channels_last if mode.channels_last else torch.contiguous_format
    return model.to(device(), memory_format=memory)


def compiled(function: Any, mode: Mode) -> Any:
    """A module or function as `mode` runs it."""
    if not mode.compiled:
        return function
    return torch.compile(function, mode="reduce-overhead" if mode.graphs else None)


def running(mode: Mode) -> Any:
    """The context of a forward pass. How float32 products are made is set for the whole process."""
    torch.set_float32_matmul_precision("high" if mode.tf32 else "highest")
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
    model: Any,
    loss_of: Callable[[Callable, Any, Any], Any],
    batch: Mapping[str, np.ndarray],
    optimizer: OptimizerConfig,
    mode: Mode,
    ema_decay: float = 0.0,
    flops: float = 0.0,
) -> Case:
    """A case of one update, called by the mode's name.

    Args:
      model: a `torch.nn.Module`; its parameters are changed.
      loss_of: `(model, images uint8 [b h w c], labels [b]) -> scalar`, compiled with the model.
      batch: as of the loader.
      optimizer: rates and clipping; the rate stays as it is.
      mode: how it runs.
      ema_decay: of the parameters' average; 0: none is kept.
      flops: of one update; 0: those of our network.
    """
    where, before = device(), allocated()
    model = placed(model, mode).train()
    loss_in_mode = compiled(lambda images, labels: loss_of(model, images, labels), mode)
    params = list(model.parameters())
    average = [param.detach().clone() for param in params] if ema_decay else []
    adamw = torch.optim.AdamW(
        params, lr=optimizer.learning_rate, betas=(0.9, optimizer.b2),
        weight_decay=optimizer.weight_decay, fused=True,
    )  # fmt: skip
    images = torch.from_numpy(batch["image"])
    labels = torch.from_numpy(batch["label"].astype(np.int64))
    if where == "cuda":  # from other memory nothing is copied while the host goes on
        images, labels = images.pin_memory(), labels.pin_memory()

    def call() -> Any:
        at = images.to(where, non_blocking=True), labels.to(where, non_blocking=True)
        with running(mode):
            loss = loss_in_mode(*at)
        adamw.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, optimizer.clip_norm)
        adamw.step()
        if average:
            torch._foreach_lerp_(average, [param.detach() for param in params], 1 - ema_decay)
        return loss.detach()

    seconds, memory = first_calls(call, before)
    return Case(
        mode.name, call, len(labels), flops=flops, dtype=mode.dtype, devices=1,
        compile_seconds=seconds if mode.compiled else None, memory=memory, wait=wait,
    )  # fmt: skip


def first_calls(call: Callable[[], Any], before: int) -> tuple[float, int]:
    """Makes two calls.

    Returns:
      Seconds that the first one took longer, for tracing and compiling; and the most bytes that
      the second held on the GPU beyond `before`, 0 on a CPU, where PyTorch does not count.
    """
    first = _seconds(call)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    second = _seconds(call)
    most = torch.cuda.max_memory_allocated() - before if torch.cuda.is_available() else 0
    return max(first - second, 0.0), int(most)


def allocated() -> int:
    """Bytes on the GPU that PyTorch's tensors take now: those of other cases; 0 on a CPU."""
    return int(torch.cuda.memory_allocated()) if torch.cuda.is_available() else 0


def _seconds(call: Callable[[], Any]) -> float:
    since = time.perf_counter()
    wait(call())
    return time.perf_counter() - since

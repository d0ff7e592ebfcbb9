"""Our UNet as a `torch.nn.Module`: the same layers, sizes and parameter names."""

import math
from typing import Any

import numpy as np

from experiments.throughput.peers import load
from lt_jax.config import UNetConfig
from lt_jax.models.blocks import num_groups
from lt_jax.models.embedding import WAVELENGTHS

torch = load("torch")
nn, functional = torch.nn, torch.nn.functional


def norm(config: UNetConfig, width: int) -> Any:
    """A GroupNorm of as many groups as ours."""
    return nn.GroupNorm(config.groups or num_groups(width), width, eps=1e-5)


def space_to_depth(x: Any, patch: int) -> Any:
    """[b c h w] -> [b patch*patch*c h/patch w/patch], channels in the order of ours."""
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 3, 5, 1, 2, 4).reshape(b, -1, h // patch, w // patch)


def depth_to_space(x: Any, patch: int) -> Any:
    """The inverse of `space_to_depth`."""
    b, c, h, w = x.shape
    x = x.reshape(b, patch, patch, -1, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(b, c // patch**2, h * patch, w * patch)


class Residual(nn.Module):
    """`models.blocks.ResidualBlock`."""

    def __init__(
        self, config: UNetConfig, inputs: int, outputs: int, resample: str = "same"
    ) -> None:
        """`resample`: as of ours."""
        super().__init__()
        self.resample, self.shifts_only = resample, config.modulation == "shift"
        self.dropout = config.dropout
        self.norm_0, self.norm_1 = norm(config, inputs), norm(config, outputs)
        self.conv_0 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv_1 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(config.embedding, (2 - self.shifts_only) * outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def _sized(self, x: Any) -> Any:
        if self.resample == "down":
            return functional.avg_pool2d(x, 2)
        if self.resample == "up":
            return functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return x

    def forward(self, x: Any, embedding: Any) -> Any:
        """Shortcut + residual."""
        h = self.conv_0(self._sized(functional.silu(self.norm_0(x))))
        told = self.modulation(embedding)[:, :, None, None]
        if self.shifts_only:
            h = self.norm_1(h + told)
        else:
            scale, shift = told.chunk(2, dim=1)
            h = self.norm_1(h) * (1 + scale) + shift
        h = functional.dropout(functional.silu(h), self.dropout, self.training)
        return self.conv_1(h) + self.shortcut(self._sized(x))


class Attention(nn.Module):
    """`models.blocks.AttentionBlock`, through PyTorch's fused attention."""

    def __init__(self, config: UNetConfig, width: int) -> None:
        """Of `width` channels."""
        super().__init__()
        self.heads = max(1, width // config.head_channels)
        self.norm = norm(config, width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Any) -> Any:
        """The feature map with what its positions have seen of each other."""
        b, c, h, w = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).reshape(b, h * w, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v)
        mixed = self.out(attended.transpose(1, 2).reshape(b, h * w, c))
        return x + mixed.transpose(1, 2).reshape(b, c, h, w)


class Embedding(nn.Module):
    """`models.embedding.Embedding` of a class, summed with the noise level's."""

    def __init__(self, width: int, classes: int) -> None:
        """The table's last row is for no class."""
        super().__init__()
        self.classes = classes
        longest, shortest = math.log(WAVELENGTHS[1]), math.log(WAVELENGTHS[0])
        waves = np.exp(np.linspace(longest, shortest, width // 2, dtype=np.float32))
        self.register_buffer("rates", torch.from_numpy(2 * np.pi / waves).float(), persistent=False)
        self.log_snr_0 = nn.Linear(2 * (width // 2), width)
        self.log_snr_1 = nn.Linear(width, width)
        self.label = nn.Embedding(classes + 1, width)

    def forward(self, log_snr: Any, label: Any) -> Any:
        """[b d]; a negative label is none."""
        angles = log_snr[:, None] * self.rates[None]
        features = torch.cat([angles.sin(), angles.cos()], dim=-1)
        noise = self.log_snr_1(functional.silu(self.log_snr_0(features)))
        return functional.silu(noise + self.label(torch.where(label < 0, self.classes, label)))


class Backbone(nn.Module):
    """`models.unet.Backbone`; gives the finest feature map alone."""

    def __init__(self, config: UNetConfig, classes: int, channels: int, side: int) -> None:
        """Layers are made in the order in which they run, which `_plan` keeps."""
        super().__init__()
        self._config, self._side = config, side // config.patch_size
        self._plan: list[tuple[str, str]] = []  # what is done, and the name of the layer
        widths, everywhere = config.channels, config.attention == "everywhere"
        self.embedding = Embedding(config.embedding, classes)
        self.stem = nn.Conv2d(channels * config.patch_size**2, widths[0], 3, padding=1)
        width, last = widths[0], len(widths) - 1
        skips = [width]
        for level, outputs in enumerate(widths):
            for i in range(config.blocks):
                self._block(f"down_{level}_{i}", width, outputs)
                width = outputs
                self._keep(skips, width)
            if level < last:
                self._add(f"down_{level}_half", Residual(config, width, width, "down"))
                self._keep(skips, width)
                self._side //= 2
        self._block("middle_0", width, width)
        self._block("middle_1", width, width, everywhere)
        for level in range(last, -1, -1):
            outputs = widths[level]
            if level < last:
                self._add(f"up_{level}_double", Residual(config, width, outputs, "up"))
                width, self._side = outputs, self._side * 2
            for i in range(config.blocks + 1):
                self._plan.append(("join", ""))
                self._block(f"up_{level}_{i}", width + skips.pop(), outputs, everywhere)
                width = outputs

    def _add(self, name: str, module: Any, does: str = "block") -> None:
        self.add_module(name, module)
        self._plan.append((does, name))

    def _keep(self, skips: list[int], width: int) -> None:
        skips.append(width)
        self._plan.append(("keep", ""))

    def _block(self, name: str, inputs: int, outputs: int, attends: bool = True) -> None:
        self._add(name, Residual(self._config, inputs, outputs))
        if attends and self._side in self._config.attention_resolutions:
            self._add(f"{name}_attention", Attention(self._config, outputs), "attend")

    def forward(self, x: Any, log_snr: Any, label: Any) -> Any:
        """[b c h w] -> [b d h' w']."""
        embedded = self.embedding(log_snr, label)
        h = self.stem(space_to_depth(x, self._config.patch_size))
        skips = [h]
        for does, name in self._plan:
            if does == "keep":
                skips.append(h)
            elif does == "join":
                h = torch.cat([h, skips.pop()], dim=1)
            elif does == "attend":
                h = getattr(self, name)(h)
            else:
                h = getattr(self, name)(h, embedded)
        return h


class UNet(nn.Module):
    """`models.unet.UNet`: `(x [b c h w], log_snr [b], label [b]) -> prediction`, float32."""

    def __init__(self, config: UNetConfig, classes: int, channels: int, side: int) -> None:
        """Of images of `side` pixels."""
        super().__init__()
        self.backbone = Backbone(config, classes, channels, side)
        self.norm = norm(config, config.channels[0])
        self.out = nn.Conv2d(config.channels[0], channels * config.patch_size**2, 3, padding=1)
        self._patch = config.patch_size

    def forward(self, x: Any, log_snr: Any, label: Any) -> Any:
        """The process's prediction."""
        h = self.out(functional.silu(self.norm(self.backbone(x, log_snr, label))))
        return depth_to_space(h, self._patch).float()

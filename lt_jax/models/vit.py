"""Vision transformer (Dosovitskiy et al. 2021), in the plain form of Beyer et al. 2022.

Pre-norm blocks, sin-cos (Chen, Xie & He 2021, MoCo v3) or learned positions, mean or token
pooling, stochastic depth (Huang et al. 2016) and a head that starts at zero. With a token and
learned positions the parameter counts are the published ones of ViT-Ti, -S and -B.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.config import ConfigError, ViTConfig
from lt_jax.models import remat
from lt_jax.models.attention import attention
from lt_jax.models.blocks import space_to_depth
from lt_jax.shapes import Array, Features, Float, Images, Logits


class Size(NamedTuple):
    """Width of the tokens, number of blocks, heads of a block, width of its MLP."""

    width: int
    depth: int
    heads: int
    mlp: int


VARIANTS = {"Ti": Size(192, 12, 3, 768), "S": Size(384, 12, 6, 1536), "B": Size(768, 12, 12, 3072)}


def size_of(config: ViTConfig) -> Size:
    """The sizes of a variant, or the config's own where the variant is "custom".

    Raises:
      ConfigError: the heads do not divide the width.
    """
    if config.variant != "custom":
        return VARIANTS[config.variant]
    size = Size(config.width, config.depth, config.heads, config.mlp)
    if size.width % size.heads:
        raise ConfigError(
            f"ViT: heads = {size.heads} does not divide width = {size.width}; change either"
        )
    return size


def sincos_positions(height: int, width: int, channels: int) -> np.ndarray:
    """Fixed 2-D positions, [height * width, channels], float32: sin and cos of x, then of y.

    Raises:
      ConfigError: channels is not a multiple of 4, or is 4 (one frequency has no range).
    """
    if channels % 4 or channels < 8:
        raise ConfigError(
            f"sin-cos positions take a width that is a multiple of 4 and at least 8, got "
            f"{channels}; change the width or choose position = 'learned'"
        )
    frequencies = 10_000.0 ** -np.linspace(0.0, 1.0, channels // 4)
    y, x = np.mgrid[:height, :width].reshape(2, -1, 1) * frequencies[None, None, :]
    parts = [np.sin(x), np.cos(x), np.sin(y), np.cos(y)]
    return np.concatenate(parts, axis=-1).astype(np.float32)


class DropPath(nn.Module):
    """Drops an example's whole residual with probability `rate`, and scales the others up."""

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"], *, train: bool) -> Float[Array, "b t d"]:
        """Returns x or, per example, 0 or x / (1 - rate): the expectation is x."""
        if not train or self.rate == 0.0:
            return x
        kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, (x.shape[0], 1, 1))
        return jnp.where(kept, x / (1 - self.rate), jnp.zeros_like(x))


class Block(nn.Module):
    """Attention, then an MLP, each after a LayerNorm and added to the tokens."""

    config: ViTConfig
    drop_path: float

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"], *, train: bool) -> Float[Array, "b t d"]:
        """Returns the tokens after the block."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        (b, t, d), size = x.shape, size_of(config)
        dense = functools.partial(nn.Dense, dtype=dtype)
        norm = functools.partial(nn.LayerNorm, epsilon=1e-6, dtype=dtype)
        # Two axes: of three, XLA lays gradients out anew on GPUs, to sum over them one at a time.
        x = x.reshape(b * t, d)

        def residual(h):
            h = nn.Dropout(config.dropout)(h, deterministic=not train)
            h = DropPath(self.drop_path)(h.reshape(b, t, d), train=train)
            return h.reshape(b * t, d)

        qkv = dense(3 * d, name="qkv")(norm(name="norm_0")(x))
        q, k, v = jnp.moveaxis(qkv.reshape(b, t, 3, size.heads, d // size.heads), 2, 0)
        h = attention(q, k, v, config.attention_chunk).reshape(b * t, d)
        x = x + residual(dense(d, name="out")(h))
        h = dense(size.mlp, name="mlp_0")(norm(name="norm_1")(x))
        # For gradients computed again: what it is made of would be larger than what it gives.
        h = jax.checkpoint(nn.gelu)(h)
        return (x + residual(dense(d, name="mlp_1")(h))).reshape(b, t, d)


class ViT(nn.Module):
    """Images -> (logits, features); features are the pooled tokens that the head reads."""

    config: ViTConfig
    num_classes: int

    @nn.compact
    def __call__(self, images: Images, *, train: bool) -> tuple[Logits, Features]:
        """Returns float32 logits [b k], zero at initialisation, and float32 features [b d].

        Raises:
          ConfigError: the patch does not divide the image, or the sizes do not fit each other.
        """
        x = self.encode(images, train=train)
        features = x.mean(axis=1) if self.config.pool == "gap" else x[:, 0]
        head = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")
        return head(features), features

    def encode(self, images: Images, *, train: bool) -> Float[Array, "b t d"]:
        """The tokens after the last norm, float32, that of the class first where there is one.

        For compact methods, as `__call__` is: layers that it makes are of the caller's module.
        """
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        size = size_of(config)
        x = self._tokens(images.astype(dtype), size.width)
        x = nn.Dropout(config.dropout)(x, deterministic=not train)
        for i, rate in enumerate(np.linspace(0.0, config.drop_path, size.depth)):
            block = Block(config, float(rate), name=f"block_{i}")
            x = remat.run(block, config.remat, x, train=train)
        return nn.LayerNorm(epsilon=1e-6, dtype=dtype, name="norm")(x).astype(jnp.float32)

    def _tokens(self, images: Images, width: int) -> Float[Array, "b t d"]:
        patch = self.config.patch_size
        b, h, w, _ = images.shape
        if h % patch or w % patch:
            raise ConfigError(
                f"ViT: patch_size = {patch} does not divide images of {h}x{w}; "
                "change classifier patch_size or data image_size"
            )
        # Patches as a matrix product: equal to a strided convolution, and cheaper on a CPU.
        x = nn.Dense(width, dtype=images.dtype, name="patches")(space_to_depth(images, patch))
        x = x.reshape(b, -1, width)
        if self.config.position == "sincos":
            positions = sincos_positions(h // patch, w // patch, width)
            x = x + jnp.asarray(positions, x.dtype)[None]
        if self.config.pool == "token":
            token = self.param("token", nn.initializers.zeros, (1, 1, width))
            x = jnp.concatenate([jnp.broadcast_to(token, (b, 1, width)).astype(x.dtype), x], 1)
        if self.config.position == "learned":
            normal = nn.initializers.normal(width**-0.5)
            x = x + self.param("positions", normal, (1, *x.shape[1:])).astype(x.dtype)
        return x

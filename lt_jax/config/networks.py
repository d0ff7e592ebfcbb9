"""Fields of networks and of their optimisers."""

import dataclasses

from lt_jax.config.fields import bounded, choice, choice_not_in_key, in_key_if_set


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with warm-up, then cosine decay to zero or a constant rate."""

    learning_rate: float = bounded(1e-3, 0.0, 10.0)
    warmup_steps: int = bounded(50, 0)
    schedule: str = choice("cosine", "constant")
    weight_decay: float = bounded(0.0, 0.0, 10.0)
    b2: float = bounded(0.99, 0.0, 1.0)
    clip_norm: float = bounded(1.0, 1e-6, 1e6)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """ADM / DDPM++ UNet."""

    channels: tuple[int, ...] = bounded((32, 64), 1, 4096)
    blocks: int = bounded(2, 1, 16)
    attention_resolutions: tuple[int, ...] = (8,)
    attention: str = choice("everywhere", "encoder")  # encoder: going down and once in the middle
    attention_chunk: int = bounded(1024, 1)  # tokens up to which attention is not fused or cut
    head_channels: int = bounded(64, 1, 1024)
    groups: int = bounded(0, 0, 1024)  # of GroupNorm; 0: at most 32, of at least 4 channels
    resample: str = choice("block", "convolution")  # convolution: 5x5 with stride 2 (BUSGen)
    modulation: str = choice("scale_shift", "shift")  # how a block reads the embedding
    class_embedding: str = choice("sum", "concatenate")  # of class and device (BUSGen: the latter)
    embedding: int = bounded(128, 2, 8192)
    dropout: float = bounded(0.0, 0.0, 0.9)
    patch_size: int = bounded(1, 1, 16)  # space-to-depth before the first convolution
    dtype: str = choice("float32", "bfloat16")
    remat: str = choice_not_in_key("none", "blocks", "dots")  # see models/remat.py


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Vision transformer; a variant sets width, depth, heads and MLP, any of which may be given."""

    variant: str = choice("Ti", "S", "B", "custom")
    width: int = bounded(192, 1, 8192)  # read where variant is custom, like the next three
    depth: int = bounded(12, 1, 128)
    heads: int = bounded(3, 1, 128)
    mlp: int = bounded(768, 1, 32768)
    patch_size: int = bounded(4, 1, 64)
    position: str = choice("sincos", "learned")
    pool: str = choice("gap", "token")
    dropout: float = bounded(0.0, 0.0, 0.9)
    drop_path: float = bounded(0.0, 0.0, 0.9)
    attention_chunk: int = in_key_if_set(1024, 1)  # as a UNet's
    dtype: str = choice("float32", "bfloat16")
    remat: str = choice_not_in_key("none", "blocks", "dots")  # see models/remat.py


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Pre-activation-free basic-block residual network with GroupNorm.

    A variant sets channels, blocks and shortcuts: resnet32 is that of CIFAR, with shortcuts that
    have no parameters, resnet18 that of ImageNet.
    """

    variant: str = choice("custom", "resnet32", "resnet18")
    stem: str = choice("3x3", "7x7", "auto")  # 7x7: stride 2, then pooling; auto: from 128 px on
    channels: tuple[int, ...] = bounded((16, 32, 64), 1, 4096)  # read where variant is custom
    blocks: tuple[int, ...] = bounded((2, 2, 2), 1, 64)
    dtype: str = choice("float32", "bfloat16")
    remat: str = choice_not_in_key("none", "blocks", "dots")  # see models/remat.py


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Which network classifies; both descriptions may stand, `kind` chooses."""

    kind: str = choice("vit", "resnet")
    vit: ViTConfig = ViTConfig()
    resnet: ResNetConfig = ResNetConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertsConfig(ClassifierConfig):
    """Several experts on one trunk. It is made of an arm's `experts`; no config file holds it."""

    experts: int = bounded(2, 2, 16)

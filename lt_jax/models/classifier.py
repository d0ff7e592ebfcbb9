"""The classifier that a config describes.

Every classifier has the signature `(images: [b h w c] float32, *, train) -> (logits, features)`.
"""

import flax.linen as nn

from lt_jax.config import ClassifierConfig, ConfigError
from lt_jax.models.resnet import ResNet
from lt_jax.models.vit import ViT


def make(config: ClassifierConfig, num_classes: int, kind: str = "default") -> nn.Module:
    """The network of `config.kind`, or of `kind` where an arm names another.

    Raises:
      ConfigError: `kind` is no known network.
    """
    kind = config.kind if kind == "default" else kind
    if kind == "vit":
        return ViT(config.vit, num_classes)
    if kind == "resnet":
        return ResNet(config.resnet, num_classes)
    raise ConfigError(f"no classifier {kind!r}; takes default, vit or resnet")

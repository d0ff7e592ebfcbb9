"""The classifier that a config describes.

Every classifier has the signature `(images: [b h w c] float32, *, train) -> (logits, features)`.
One of several experts takes `each=True` besides, for the logits of each of them: [b e k].
"""

import flax.linen as nn

from lt_jax.config import ClassifierConfig, ConfigError, ExpertsConfig
from lt_jax.models.experts import ResNetExperts, ViTExperts
from lt_jax.models.resnet import ResNet
from lt_jax.models.vit import ViT


def make(config: ClassifierConfig, num_classes: int, kind: str = "default") -> nn.Module:
    """The network of `config.kind`, or of `kind` where an arm names another.

    Raises:
      ConfigError: `kind` is no known network.
    """
    kind = config.kind if kind == "default" else kind
    if kind not in ("vit", "resnet"):
        raise ConfigError(f"no classifier {kind!r}; takes default, vit or resnet")
    if isinstance(config, ExpertsConfig):
        if kind == "vit":
            return ViTExperts(config.vit, num_classes, config.experts)
        return ResNetExperts(config.resnet, num_classes, config.experts)
    return ViT(config.vit, num_classes) if kind == "vit" else ResNet(config.resnet, num_classes)

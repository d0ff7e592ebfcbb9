"""Small ensembles: experts on one trunk, each with the network's last part and a head of its own.

Of a ViT an expert has the last block, norm and head, of a ResNet the last stage and head: what
RIDE (Wang et al. 2021, arXiv:2010.01809, section 3.1) shares and what it does not. Their widths are
those of the single network, so E experts cost what the single one does and E - 1 times its last
part beside it. The ensemble's logits are the mean of its experts'.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lt_jax.config import ResNetConfig
from lt_jax.models import remat, resnet
from lt_jax.models.vit import Block, ViT, size_of
from lt_jax.shapes import Array, Features, Float, Images, Logits

ExpertLogits = Float[Array, "b e k"]


class ViTExperts(ViT):
    """A ViT up to its last block, then `experts` of what follows."""

    experts: int = 2

    @nn.compact
    def __call__(
        self, images: Images, *, train: bool, each: bool = False
    ) -> tuple[Logits | ExpertLogits, Features]:
        """See `ViT`; the features are those of all experts, one after the other.

        Args:
          each: whether the logits are those of each expert, [b e k], in place of their mean.
        """
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        size = size_of(config)
        rates = np.linspace(0.0, config.drop_path, size.depth).tolist()

        def block(number: int, prefix: str) -> Block:
            return Block(config, rates[number], name=f"{prefix}block_{number}")

        x = self._tokens(images.astype(dtype), size.width)
        x = nn.Dropout(config.dropout)(x, deterministic=not train)
        for i in range(size.depth - 1):
            x = remat.run(block(i, ""), config.remat, x, train=train)
        outputs = []
        for e in range(self.experts):
            own = remat.run(block(size.depth - 1, f"expert_{e}_"), config.remat, x, train=train)
            norm = nn.LayerNorm(epsilon=1e-6, dtype=dtype, name=f"expert_{e}_norm")
            own = norm(own).astype(jnp.float32)
            features = own.mean(axis=1) if config.pool == "gap" else own[:, 0]
            outputs.append(_head(features, self.num_classes, e))
        return _together(outputs, each)


class ResNetExperts(nn.Module):
    """A ResNet up to its last stage, then `experts` of what follows."""

    config: ResNetConfig
    num_classes: int
    experts: int

    @nn.compact
    def __call__(
        self, images: Images, *, train: bool, each: bool = False
    ) -> tuple[Logits | ExpertLogits, Features]:
        """See `ViTExperts`."""
        x = resnet.stem(self.config, images)
        last = len(resnet.size_of(self.config).channels) - 1
        for number in range(last):
            x = resnet.stage(self.config, number, x)
        outputs = []
        for e in range(self.experts):
            own = resnet.stage(self.config, last, x, f"expert_{e}_")
            features = own.astype(jnp.float32).mean(axis=(1, 2))
            outputs.append(_head(features, self.num_classes, e))
        return _together(outputs, each)


def _head(features: Features, num_classes: int, expert: int) -> tuple[Logits, Features]:
    zeros, name = nn.initializers.zeros, f"expert_{expert}_head"
    return nn.Dense(num_classes, kernel_init=zeros, name=name)(features), features


def _together(
    outputs: list[tuple[Logits, Features]], each: bool
) -> tuple[Logits | ExpertLogits, Float[Array, "b _d"]]:
    logits = jnp.stack([own for own, _ in outputs], axis=1)
    features = jnp.concatenate([own for _, own in outputs], axis=-1)
    return logits if each else logits.mean(axis=1), features

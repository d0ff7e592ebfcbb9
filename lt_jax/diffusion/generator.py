"""The generator: its network, its noising process and the images that it makes; holds no array."""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp

from lt_jax.config import GeneratorConfig
from lt_jax.diffusion import process
from lt_jax.models import conditioning, module
from lt_jax.models.unet import UNet
from lt_jax.runtime import keys
from lt_jax.shapes import Params


@dataclasses.dataclass(frozen=True)
class Generator:
    """What a generator's parameters are parameters of. Hashable, so that programs can be cached.

    Attributes:
      config: see `GeneratorConfig`.
      vocabulary: the conditions that it takes.
      image_shape: (height, width, channels); height equals width.
    """

    config: GeneratorConfig
    vocabulary: conditioning.Vocabulary
    image_shape: tuple[int, int, int]

    @functools.cached_property
    def unet(self) -> UNet:
        """The network."""
        channels = self.image_shape[-1]
        return UNet(self.config.model, self.vocabulary, channels, sketch=self.has_branch)

    @functools.cached_property
    def process(self) -> process.VPProcess:
        """The noising process."""
        return process.make(self.config.process)

    @property
    def counted(self) -> UNet:
        """The same network with attention in one piece, for XLA to count: of a loop it counts one
        turn alone. It is only lowered, so that the matrix takes no memory."""
        model = dataclasses.replace(self.config.model, attention_chunk=1 << 30)
        return dataclasses.replace(self.unet, config=model)

    @property
    def has_branch(self) -> bool:
        """Whether the network has the perception branch."""
        return self.config.sketch.weight > 0

    @property
    def example(self) -> tuple[Any, ...]:
        """Arguments of the network of batch 1, for initialisation and shape inference."""
        height, width, _ = self.image_shape
        conditions = conditioning.nulls(self.vocabulary, 1, height, width)
        return jnp.zeros((1, *self.image_shape)), jnp.zeros((1,)), conditions

    def init(self) -> Params:
        """Fresh parameters, by `config.seed`."""
        key = keys.stream(keys.root(self.config.seed), "init")
        return module.init(self.unet, key, *self.example, train=False, perceive=self.has_branch)

    def abstract(self) -> Any:
        """The parameters' shapes and dtypes."""
        return module.abstract(self.unet, *self.example, train=False, perceive=self.has_branch)

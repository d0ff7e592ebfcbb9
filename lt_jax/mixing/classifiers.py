"""What an episode trains: a head on features, or a network on images, with its optimiser.

`Head` and `Network` describe and are hashable; `make` gives the pure functions. A head is affine
layers with ReLUs between, the last of which starts at zero. A network is any of `models`, trained
on augmented images as `classify` trains it, and measured on images as they are; its randomness
(augmentation, dropout, drop path) is that of the step's key alone, whatever the shares are.

**Speed.** Populations want matrix products, and heads and the vision transformer are made of them.
Convolutions are slow in a loop on CPUs, and a round is a loop (jax issue 12868); of a population at
once they become grouped ones, which are slower still (jax issue 26568): in pixels classifiers are
trained one by one, unless `mixing.together` says otherwise.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax

from lt_jax.config import AugmentConfig, ClassifierConfig, OptimizerConfig
from lt_jax.config.mixing import ProxyConfig
from lt_jax.data import augment
from lt_jax.models import classifier, module
from lt_jax.runtime import keys, train_state
from lt_jax.shapes import Array, Float, Params, PRNGKey, UInt8

OPTIMIZERS = {"sgd": optax.sgd, "adam": optax.adam}  # at the proxy's constant rate

Inputs = Float[Array, "b d"] | UInt8[Array, "b h w c"]


class Classifier(NamedTuple):
    """Pure functions.

    Attributes:
      init: key -> parameters.
      apply: parameters, inputs [b ...], key -> logits [b k]; the key is a step's in training, and
        None where the classifier is measured.
      optimizer: of the parameters.
    """

    init: Callable[[PRNGKey], Params]
    apply: Callable[[Params, Inputs, PRNGKey | None], Float[Array, "b k"]]
    optimizer: optax.GradientTransformation


@runtime_checkable
class Strategy(Protocol):
    """Describes a classifier; hashable."""

    @property
    def reads(self) -> str:
        """The kind of data: "features" or "images"."""
        ...

    def make(
        self, config: ProxyConfig, shape: tuple[int, ...], num_classes: int, steps: int
    ) -> Classifier:
        """The classifier of inputs of `shape`, trained for `steps` steps an episode."""
        ...


class Layer(NamedTuple):
    """Kernel [d e] and bias [e]."""

    kernel: Any
    bias: Any


@dataclasses.dataclass(frozen=True)
class Head:
    """On features: linear or with one hidden layer; head and optimiser are those of the config."""

    reads = "features"

    def make(
        self, config: ProxyConfig, shape: tuple[int, ...], num_classes: int, steps: int
    ) -> Classifier:
        """See `Strategy`."""
        return Classifier(
            init=lambda key: init_head(config, shape[0], num_classes, key),
            apply=lambda params, inputs, key: logits_of(params, inputs),
            optimizer=OPTIMIZERS[config.optimizer](config.learning_rate),
        )


@dataclasses.dataclass(frozen=True)
class Network:
    """On images: a network of `models`.

    Attributes:
      model: which, and its sizes.
      optimizer: AdamW as in `classify`, its schedule over the steps of an episode; None is the
        proxy's optimiser and learning rate.
      augment: of train images, in each draw anew.

    Raises ConfigError, in `make`'s functions, where the network does not fit the images.
    """

    model: ClassifierConfig
    optimizer: OptimizerConfig | None = None
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    reads = "images"

    def make(
        self, config: ProxyConfig, shape: tuple[int, ...], num_classes: int, steps: int
    ) -> Classifier:
        """See `Strategy`."""
        network = classifier.make(self.model, num_classes)

        def apply(params: Params, inputs: Inputs, key: PRNGKey | None) -> Array:
            if key is None:
                return module.apply(network, params, augment.normalize(inputs), train=False)[0]
            images = augment.augment(inputs, keys.stream(key, "augment"), self.augment)
            dropout = keys.stream(key, "dropout")
            return module.apply(network, params, images, key=dropout, train=True)[0]

        if self.optimizer is None:
            optimizer = OPTIMIZERS[config.optimizer](config.learning_rate)
        else:
            optimizer = train_state.make_optimizer(self.optimizer, steps)
        example = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        return Classifier(
            init=lambda key: module.init(network, key, example, train=False),
            apply=apply,
            optimizer=optimizer,
        )


def init_head(config: ProxyConfig, width: int, classes: int, key: PRNGKey) -> tuple[Layer, ...]:
    """Fresh parameters: a hidden layer after He et al. (2015), zeros in the last."""
    if config.head == "linear":
        return (Layer(jnp.zeros((width, classes)), jnp.zeros(classes)),)
    kernel = jnp.sqrt(2 / width) * jax.random.normal(key, (width, config.hidden))
    hidden = Layer(kernel, jnp.zeros(config.hidden))
    return hidden, Layer(jnp.zeros((config.hidden, classes)), jnp.zeros(classes))


def logits_of(params: tuple[Layer, ...], features: Float[Array, "b d"]) -> Float[Array, "b k"]:
    """Affine layers with ReLUs between."""
    *hidden, last = params
    for layer in hidden:
        features = jax.nn.relu(features @ layer.kernel + layer.bias[None])
    return features @ last.kernel + last.bias[None]

"""Training of a detector on mixed batches of real and synthetic images, with their boxes.

All arms make the same number of updates on batches of the same size; what differs is which images
are drawn. Now and then the validation split is looked at for the learning curve; the last
parameters are used, and nothing is chosen.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32

from lt_jax.config import (
    AssignConfig,
    AugmentConfig,
    DecodeConfig,
    DetectorConfig,
    OptimizerConfig,
    RuntimeConfig,
)
from lt_jax.data import augment
from lt_jax.data.images import Images
from lt_jax.data.stream import MixedStream
from lt_jax.detect import losses, predict, targets
from lt_jax.detect.decode import Detections
from lt_jax.models import detector, module
from lt_jax.runtime import keys, loop, spmd, train_state, training
from lt_jax.runtime.job import Job
from lt_jax.runtime.ledger import Ledger
from lt_jax.runtime.metrics import MetricWriter
from lt_jax.shapes import Array, Params, PRNGKey

Look = Callable[[Detections], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What decides a detector's training, besides its data.

    `classes` are those of lesions: 1 where a lesion is all that is looked for.
    """

    model: DetectorConfig
    assign: AssignConfig
    decode: DecodeConfig
    optimizer: OptimizerConfig
    augment: AugmentConfig
    classes: int
    steps: int
    looks: int
    batch_size: int
    seed: int


@dataclasses.dataclass(frozen=True, eq=False)
class Store:
    """Images with their lesions.

    Attributes:
      images: the store.
      boxes: float32 [n m 4] of its rows, zeros behind the last box of an image; an image without
        boxes is background.
      rows: of each class [n_k], those that are trained on.
    """

    images: Images
    boxes: Float32[np.ndarray, "n m 4"]
    rows: Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class TrainData:
    """What a training draws from, and how. The test split is no part of it.

    Attributes:
      first: the real images; of an arm on synthetic images alone, those.
      second: synthetic images beside real ones, or None.
      class_weight: of each class [k], the fraction of draws; they sum to 1.
      share: of each class [k] in [0, 1), the fraction of its draws that are of `second`.
      image_shape: (height, width, channels).
      val_rows: rows of `val_images` that are looked at.
      look: from their detections to numbers for the learning curve.
    """

    first: Store
    second: Store | None
    class_weight: np.ndarray
    share: np.ndarray
    image_shape: tuple[int, int, int]
    val_images: Images
    val_rows: np.ndarray
    look: Look | None = None


def network_of(recipe: Recipe, size: int) -> detector.Detector:
    """The detector of images of `size` pixels."""
    return detector.make(recipe.model, size, recipe.classes)


def forward_of(recipe: Recipe, size: int, device_mesh: Mesh) -> predict.Forward:
    """The jitted detector of images of `size` pixels, one for all seeds."""
    return predict.make_forward(recipe.model, size, recipe.classes, recipe.decode, device_mesh)


@functools.cache
def make_step(recipe: Recipe, size: int, device_mesh: Mesh) -> loop.Step:
    """The jitted update; its context is empty."""
    network = network_of(recipe, size)
    optimizer = train_state.make_optimizer(recipe.optimizer, recipe.steps)

    def step(
        state: train_state.TrainState,
        batch: Mapping[str, Array],
        key: PRNGKey,
        context: tuple[()],
    ) -> tuple[train_state.TrainState, dict[str, Array]]:
        del context
        image = batch["image"]
        nothing = jnp.zeros((*image.shape[:3], 0), jnp.float32)
        moved = keys.stream(key, "augment")
        images, _, boxes, _ = augment.augment_annotated(
            image, nothing, batch["boxes"], moved, recipe.augment
        )
        labels = batch["label"] if recipe.classes > 1 else jnp.zeros_like(batch["label"])
        asked = targets.assign(boxes, labels, network.grid, recipe.assign)

        def loss_fn(params: Params) -> tuple[Array, dict[str, Array]]:
            outputs = module.apply(
                network, params, images, key=keys.stream(key, "dropout"), train=True
            )
            return losses.total(outputs, asked, network.grid, recipe.assign)

        return train_state.update(state, optimizer, loss_fn)

    return spmd.jit_step(step, device_mesh)


def init(recipe: Recipe, image_shape: tuple[int, int, int]) -> Params:
    """Fresh parameters, by `recipe.seed`."""
    key = keys.stream(keys.root(recipe.seed), "init")
    network = network_of(recipe, image_shape[0])
    return module.init(network, key, jnp.zeros((1, *image_shape)), train=False)


def train(
    recipe: Recipe,
    data: TrainData,
    job: Job,
) -> tuple[Params, Ledger]:
    """Trains, or goes on training, in `job.folder`; returns the final parameters and the cost.

    Raises:
      ConfigError: a batch that the devices cannot share evenly.
      NonFiniteError, Preempted: see `Loop.run`.
    """
    state, costs = training.train(describe(recipe, data, job))
    return state.params, costs


def describe(recipe: Recipe, data: TrainData, job: Job) -> training.Training:
    """The training of a detector in `job.folder`."""
    optimizer = train_state.make_optimizer(recipe.optimizer, recipe.steps)
    # Everything but the seed: seeds share one compiled step.
    alike = dataclasses.replace(recipe, seed=0)
    size = data.image_shape[0]
    forward = forward_of(recipe, size, job.mesh)
    stream = _stream(recipe, data, job.runtime)
    edges = np.linspace(0, recipe.steps, min(recipe.looks, recipe.steps) + 1).round().astype(int)

    def before(number: int) -> tuple[()]:
        del number
        stream.set_mixture(data.class_weight, data.share)
        return ()

    def after(until: int, state: train_state.TrainState, metrics: MetricWriter) -> None:
        if data.look is not None and len(data.val_rows):
            found = predict.predict(
                forward, state.params, data.val_images, data.val_rows, recipe.batch_size
            )
            metrics.write(until, data.look(found))

    return training.Training(
        step=make_step(alike, size, job.mesh),
        state=train_state.create(init(recipe, data.image_shape), optimizer, ema=False),
        stream=stream,
        key=keys.stream(keys.root(recipe.seed), "train"),
        job=job,
        ends=edges[1:].tolist(),
        batch=(recipe.batch_size, "config.detect.batch_size"),
        before=before,
        after=after,
    )


def _stream(recipe: Recipe, data: TrainData, runtime: RuntimeConfig) -> MixedStream:
    """Boxes of both stores as one column, of as many a row as either has."""
    most = max(store.boxes.shape[1] for store in (data.first, data.second) if store is not None)
    first, second = data.first, data.second
    return MixedStream(
        first.images,
        first.rows,
        None if second is None else second.images,
        None if second is None else second.rows,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        columns={
            "boxes": (
                _widened(first.boxes, most),
                None if second is None else _widened(second.boxes, most),
            )
        },
        workers=runtime.loader_workers,
    )


def _widened(boxes: np.ndarray, most: int) -> np.ndarray:
    behind = np.zeros((len(boxes), most - boxes.shape[1], 4), np.float32)
    return np.concatenate([boxes, behind], axis=1)

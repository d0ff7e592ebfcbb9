"""Training of an extractor without labels: SimCLR, then a linear head on its frozen features.

Each image i of a batch is augmented twice. With f the classifier's network below its head and g a
projection of two layers that is thrown away afterwards (Chen et al. 2020, arXiv:2002.05709,
algorithm 1), the views are compared by the cosine of their projections, over the global batch:

  z = g(f(view)) / |g(f(view))|,    g(h) = W_1 relu(W_0 h + b_0) + b_1                    (1)
  loss of view v = -log( e^(z_v . z_v' / T) / sum_u e^(z_v . z_u / T) )                   (2)

where v' is the other view of v's image and u runs over v' and the views of all other images. Where
a batch holds an image twice, as small classes under a balanced sampler are, the second draw is
left out of the sum: it would push an image away from itself, and those of the tail most often.

What is learned is told by two numbers that need no label (Wang and Isola 2020, arXiv:2005.10242,
eqs. 2-3 with alpha = t = 2), u and v views of different images:

  alignment = mean |z_v - z_v'|^2,    uniformity = log mean e^(-2 |z_u - z_v|^2)          (3)

Why SimCLR and not self-distillation (DINO, Caron et al. 2021): sets of hundreds of images at 32
pixels have no room for crops at several scales, on which DINO rests; there is no momentum teacher
whose centring and temperatures must be set against collapse; and (2) is one loss with a known
optimum (aligned and uniform), which works at batches of 128, since its negatives need only be of
other images.

No label touches the network. Under the `instance` sampler labels are not even read; `balanced` and
`square_root` use them to decide how often an image is drawn, and for nothing else. The head that is
fitted afterwards (`probe`) reads labels and leaves the network as it is.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from lt_jax.classify import predict, probe
from lt_jax.classify.train import TrainData
from lt_jax.config import ExtractorConfig
from lt_jax.data import augment
from lt_jax.data.images import Images
from lt_jax.data.stream import MixedStream
from lt_jax.mixing import controllers
from lt_jax.models import classifier, module
from lt_jax.runtime import keys, loop, spmd, train_state, training
from lt_jax.runtime.job import Job
from lt_jax.runtime.ledger import Clock, Ledger
from lt_jax.shapes import Array, Bool, Features, Float, ImagesU8, Int, Params, PRNGKey


def cosines(embeddings: Float[Array, "v p"]) -> Float[Array, "v v"]:
    """Cosines in [-1, 1] of all pairs of views; an embedding of zeros has cosine 0 with all."""
    squared = jnp.sum(jnp.square(embeddings), axis=1, keepdims=True)
    unit = embeddings * jax.lax.rsqrt(jnp.maximum(squared, 1e-12))
    return jnp.matmul(unit, unit.T, precision="highest")  # (2) divides by a small temperature


def nt_xent(
    cosine: Float[Array, "v v"], ids: Int[Array, "v"], temperature: float
) -> Float[Array, "v"]:
    """Equation (2): one loss a view.

    Not `optax.losses.ntxent`, which holds v v p numbers at once: 1.5 GB at 512 images.

    Args:
      cosine: of all pairs; views 2 i and 2 i + 1 are of one image.
      ids: which image each view shows.
      temperature: T > 0.
    """
    partner = jnp.arange(len(ids)) ^ 1
    is_partner = partner[:, None] == jnp.arange(len(ids))[None, :]
    left_out = _same(ids) & ~is_partner
    logits = jnp.where(left_out, -jnp.inf, cosine / temperature)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, partner)


def spread(cosine: Float[Array, "v v"], ids: Int[Array, "v"]) -> dict[str, Float[Array, ""]]:
    """Equation (3), from |a - b|^2 = 2 - 2 a . b of unit vectors; arguments as of `nt_xent`.

    Alignment is in [0, 4], 0 is best; uniformity in [-8, 0], lower is better, and about -4 for
    vectors spread evenly in many dimensions. Of one image alone, uniformity is 0.
    """
    views = jnp.arange(len(ids))
    others = ~_same(ids)
    kernel = jnp.where(others, jnp.exp(4 * cosine - 4), 0.0)
    count = others.sum()
    mean = jnp.where(count > 0, kernel.sum() / jnp.maximum(count, 1), 1.0)
    return {
        "alignment": (2 - 2 * cosine[views, views ^ 1]).mean(),
        "uniformity": jnp.log(mean),
    }


def two_views(images: ImagesU8, key: PRNGKey, config: ExtractorConfig) -> Float[Array, "v h w c"]:
    """Both views of each image, float32 [-1, 1]: those of image i are 2 i and 2 i + 1."""
    views = [
        augment.augment(images, keys.stream(key, name), config.augment)
        for name in ("first_view", "second_view")
    ]
    # Side by side, not one half after the other: a batch that is split over devices stays so.
    return jnp.stack(views, axis=1).reshape(-1, *images.shape[1:])


def init(config: ExtractorConfig, num_classes: int, image_shape: tuple[int, int, int]) -> Params:
    """Fresh parameters by `config.seed`: `network`, a classifier's, and `projection`, those of g.

    The network starts where the supervised one starts. Its head is not trained here and stays zero.
    """
    network = classifier.make(config.model, num_classes)
    root = keys.root(config.seed)
    params = module.init(
        network, keys.stream(root, "init"), jnp.zeros((1, *image_shape)), train=False
    )
    width, out = params["head"]["kernel"].shape[0], config.contrastive.projection
    first, second = jax.random.split(keys.stream(root, "projection"))
    normal = jax.nn.initializers.he_normal()
    projection = {
        "kernel_0": normal(first, (width, width)),
        "bias_0": jnp.zeros(width),
        "kernel_1": normal(second, (width, out)),
        "bias_1": jnp.zeros(out),
    }
    return {"network": params, "projection": projection}


def project(params: Mapping[str, Array], features: Features) -> Float[Array, "b p"]:
    """g of equation (1)."""
    hidden = jax.nn.relu(features @ params["kernel_0"] + params["bias_0"][None])
    return hidden @ params["kernel_1"] + params["bias_1"][None]


@functools.cache
def make_step(config: ExtractorConfig, num_classes: int, device_mesh: Mesh) -> loop.Step:
    """The jitted update; it takes no context. Of a batch it reads `image` and `row`, no label."""
    network = classifier.make(config.model, num_classes)
    optimizer = train_state.make_optimizer(config.optimizer, config.steps)

    def step(
        state: train_state.TrainState, batch: Mapping[str, Array], key: PRNGKey, context: tuple
    ) -> tuple[train_state.TrainState, dict[str, Array]]:
        del context
        views = two_views(batch["image"], keys.stream(key, "augment"), config)
        ids = jnp.repeat(batch["row"], 2)

        def loss_fn(params: Params) -> tuple[Array, dict[str, Array]]:
            _, features = module.apply(
                network, params["network"], views, key=keys.stream(key, "dropout"), train=True
            )
            cosine = cosines(project(params["projection"], features))
            loss = nt_xent(cosine, ids, config.contrastive.temperature).mean()
            return loss, spread(cosine, ids)

        return train_state.update(state, optimizer, loss_fn)

    # The loss compares all views of the global batch: XLA gathers their projections.
    return spmd.jit_step(step, device_mesh)


def make_stream(
    config: ExtractorConfig, images: Images, rows: Sequence[np.ndarray], workers: int = 0
) -> MixedStream:
    """Batches of train images, with the `row` of each in the image store.

    Under the `instance` sampler all rows are one source, in the order of the store: which images a
    batch holds then depends on no label (and the label that it carries is 0).

    Raises:
      MixtureError: a class has no image.
    """
    counts = np.array([len(r) for r in rows])
    mixture = controllers.real_only(counts, config.sampler).mixture(())
    weight, share = mixture.class_weight, mixture.share
    if config.sampler == "instance":
        rows, weight, share = [np.sort(np.concatenate(rows))], np.ones(1), np.zeros(1)
    stream = MixedStream(
        images,
        rows,
        batch_size=config.batch_size,
        seed=config.seed,
        columns={"row": (np.arange(len(images), dtype=np.int32), None)},
        workers=workers,
    )
    stream.set_mixture(weight, share)
    return stream


def learn(
    config: ExtractorConfig,
    images: Images,
    rows: Sequence[np.ndarray],
    image_shape: tuple[int, int, int],
    job: Job,
) -> tuple[Params, Ledger]:
    """Trains the network without labels, or goes on training it, in `job.folder`.

    Args:
      config: of the extractor.
      images: the image store.
      rows: train rows [n_k] of each class in it, which `config.sampler` weighs.

    Returns:
      Parameters of the classifier's network, its head zero, and the cost. Each image of a batch
      is counted twice, once for each view.
    """
    state, costs = training.train(describe(config, images, rows, image_shape, job))
    costs = dataclasses.replace(costs, images=2 * costs.images)
    return state.params["network"], costs


def describe(
    config: ExtractorConfig,
    images: Images,
    rows: Sequence[np.ndarray],
    image_shape: tuple[int, int, int],
    job: Job,
) -> training.Training:
    """The training of `learn`, whose arguments it takes."""
    optimizer = train_state.make_optimizer(config.optimizer, config.steps)
    return training.Training(
        step=make_step(dataclasses.replace(config, seed=0), len(rows), job.mesh),
        state=train_state.create(init(config, len(rows), image_shape), optimizer, ema=False),
        stream=make_stream(config, images, rows, job.runtime.loader_workers),
        key=keys.stream(keys.root(config.seed), "train"),
        job=job,
        ends=[config.steps],
        batch=(config.batch_size, "config.extractor.batch_size"),
    )


def train(
    config: ExtractorConfig,
    data: TrainData,
    job: Job,
) -> tuple[Params, Ledger]:
    """`learn`, then a head on the features of all train images.

    Returns:
      Parameters of the classifier that `config.model` describes, as supervised training gives
      them, and the cost.

    Raises:
      ProbeError: a class has no train image, or the features are not finite.
    """
    params, costs = learn(config, data.real, data.train_rows, data.image_shape, job)
    clock = Clock(costs)
    forward = predict.make_forward(config.model, len(data.train_rows), job.mesh)
    rows = np.concatenate(data.train_rows)
    _, features = predict.predict(forward, params, data.real, rows, config.batch_size)
    labels = np.repeat(np.arange(len(data.train_rows)), data.counts)
    head = probe.fit(features, labels, len(data.train_rows), config.contrastive.probe_steps)
    clock.read()
    return probe.attach(params, head), costs


def _same(ids: Int[Array, "v"]) -> Bool[Array, "v v"]:
    """Which views show the same image."""
    return ids[:, None] == ids[None, :]

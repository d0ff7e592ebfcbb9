"""Which synthetic images are copies: nearest train images by features and by structure.

An image is a copy if a train image is as near to it as only few held-out real images have one. Two
similarities, each the highest over the train images x_i:

  cosine = max_i u . u_i, u the extractor's features on the unit sphere                   (1)
  ms_ssim = max_i MS-SSIM(T g x, T x_i) over candidates i                                 (2)

with g the symmetry and T what makes two pictures comparable. A generator whose augmentation flips
images, or turns them by quarters, has seen the train images so, and its copies come so: g is one of
these. MS-SSIM compares places and levels, and as such loses sight of a copy that has moved by a
pixel or two and of a dark one that has been brightened. T therefore takes both to gray, aligns them
by the shift of whole pixels at which they correlate most (up to two, or as many as the
augmentation shifts by; a border that wide is cut off), and gives them one mean and standard
deviation. Without T, copies of simulated ultrasound of 32 pixels that have moved by two pixels each
way have an MS-SSIM of 0.36 in the median, fresh images of 0.49; with T, 1.00 and 0.56.
Recompression (JPEG of quality 75) leaves 0.98 either way.

Candidates are the `candidates` nearest by (1), and as many by correlation of pictures of 8 x 8 over
symmetries and shifts: an extractor may have learned to overlook what tells two images of a class
apart, and may know nothing of mirror images. g is that of the highest such correlation. What stays
unseen: other zooms and angles, and a part of an image set into another one, except where features
tell.

An image that was inpainted into or translated from a train image shares its pixels by design: train
images of that one's group (patient, lesion) are left out for it.

Thresholds are calibrated on val, which the generator has not seen: a share of at most `false_alarm`
of a class's images like those of val would be taken for copies (`calibration`, equations 1 to 3).
With two similarities each has half of it, so that the two together keep within it. Few images
cannot vouch for a small share: where m < 1 / share - 1, the threshold is at most the highest
similarity of the m images, which a fresh image exceeds with probability 1 / (m + 1) or more.
Classes lie at different distances from train, so that a pooled threshold may lower a small class's
own and never raises it: the gate errs towards rejecting, which costs attempts and not privacy.
Whatever val holds, near-duplicates of train images too, (2) above `SURELY` is a copy.
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.config import AugmentConfig, ConfigError, MemorizationConfig
from lt_jax.runtime import faults
from lt_jax.selection import calibration, registration, similarity
from lt_jax.selection.neighbors import nearest_rows
from lt_jax.selection.sphere import unit
from lt_jax.shapes import Array, Bool, Features, Float, ImagesU8, Int, Labels, UInt8

SURELY = 0.99
BATCH, CHUNK = 64, 1024  # images that are compared, and prepared, at once


@flax.struct.dataclass
class Nearest:
    """Likeness of each image [b] to the nearest train image, and that one's row in the bank.

    cosine in [-1, 1] and cosine_rows; ms_ssim in [0, 1] and ms_ssim_rows, maybe another image. NaN
    and row -1 for an image that has no train image to be compared with.
    """

    cosine: Any
    cosine_rows: Any
    ms_ssim: Any
    ms_ssim_rows: Any


@flax.struct.dataclass
class Bank:
    """What the gate needs of n train images, of v val images and of the generator.

    Attributes:
      symmetries: names in `registration.SYMMETRIES`; `shift`: the largest one, in pixels.
      images: [n h w] uint8, gray; `spreads` [n f]: of what each shift cuts out of them.
      thumbnails: [n t], of mean 0 and, as features [n d], of length 1.
      groups: [n].
      cosine_limits, ms_ssim_limits: [k], above which an image of a class is a copy.
      val, val_labels: `Nearest` [v] and classes [v], for the audit.
    """

    symmetries: tuple[str, ...] = flax.struct.field(pytree_node=False)
    shift: int = flax.struct.field(pytree_node=False)
    images: Any
    thumbnails: Any
    spreads: Any
    features: Any
    groups: Any
    cosine_limits: Any = None
    ms_ssim_limits: Any = None
    val: Any = None
    val_labels: Any = None


def fit(
    config: MemorizationConfig,
    train_images: UInt8[np.ndarray | Array, "n h w c"],
    train_features: Float[np.ndarray | Array, "n d"],
    train_groups: Int[np.ndarray | Array, "n"],
    val_images: UInt8[np.ndarray | Array, "v h w c"],
    val_features: Float[np.ndarray | Array, "v d"],
    val_labels: Int[np.ndarray | Array, "v"],
    num_classes: int,
    pooling: float,
    augment: AugmentConfig,
) -> Bank:
    """The train images, and thresholds from val images. Runs on host.

    Args:
      config: of the gate.
      train_images, train_features, train_groups: of the images that the generator has seen, in the
        order that rows speak of.
      val_images, val_features, val_labels: of images whose groups have no train image.
      num_classes: that labels are of.
      pooling: val images at which a class's own threshold weighs half.
      augment: of the generator.

    Raises:
      ConfigError: no val image; quarter turns of images that are not square.
    """
    if not len(val_labels):
        raise ConfigError(
            "config.data.split.val: the val split holds no image, and how near a new image comes "
            "to train is calibrated on it; raise config.data.split.val, or give the gate up with "
            "config.synthesize.selection.memorization.gate=False"
        )
    bank = _of_train(train_images, train_features, train_groups, augment)
    val = _nearest_of_all(config, bank, np.asarray(val_images), np.asarray(val_features))
    labels = np.asarray(val_labels)
    limits_of = functools.partial(
        _limits,
        labels=labels,
        num_classes=num_classes,
        keep_rate=1 - share(config),
        pooling=pooling,
    )
    return dataclasses.replace(
        bank,
        cosine_limits=jnp.asarray(limits_of(val.cosine), jnp.float32),
        ms_ssim_limits=jnp.asarray(np.minimum(limits_of(val.ms_ssim), SURELY), jnp.float32),
        val=val,
        val_labels=labels.astype(np.int32),
    )


def nearest(
    config: MemorizationConfig,
    bank: Bank,
    images: ImagesU8,
    features: Features,
    own_groups: Int[Array, "b"],
) -> Nearest:
    """Equations (1) and (2). Pure; image i depends on its own row of each argument alone.

    The largest arrays are [b n], and some maps of [b h w].

    Args:
      config: `candidates` are compared of each kind.
      bank: from `fit`.
      images: as they are stored, of the size of the bank's.
      features: of the extractor that the bank's are of.
      own_groups: group of train images that are left out for each image; -1: none.
    """
    gray = registration.gray(images)
    views = jnp.stack([registration.SYMMETRIES[name](gray) for name in bank.symmetries])
    own = (own_groups[:, None] == bank.groups[None]) & (own_groups >= 0)[:, None]
    leave_out = lambda likeness: jnp.where(own, -jnp.inf, likeness)

    probes = unit(features.astype(jnp.float32))
    cosine = leave_out(jnp.matmul(probes, bank.features.T, precision="highest"))
    correlation, view = _correlate(bank, views)
    count = min(config.candidates, bank.images.shape[0])
    by_features, first = nearest_rows(cosine, count)
    by_pictures, second = nearest_rows(leave_out(correlation), count)

    rows = jnp.concatenate([first, second], axis=1)
    compared = jnp.concatenate([by_features, by_pictures], axis=1) > -jnp.inf
    found = jnp.where(compared, _compare(bank, views, rows, view), -1.0)
    best = jnp.argmax(found, axis=1, keepdims=True)
    ms_ssim = jnp.take_along_axis(found, best, axis=1)[:, 0]
    any_left = ms_ssim >= 0
    pick = lambda values: jnp.take_along_axis(values, best, axis=1)[:, 0]
    return Nearest(
        cosine=jnp.where(any_left, by_features[:, 0], jnp.nan),
        cosine_rows=jnp.where(any_left, first[:, 0], -1),
        ms_ssim=jnp.where(any_left, ms_ssim, jnp.nan),
        ms_ssim_rows=jnp.where(any_left, pick(rows), -1),
    )


def is_copy(
    config: MemorizationConfig, bank: Bank, found: Nearest, labels: Labels
) -> Bool[Array, "b"]:
    """Whether each image, meant to be of class `labels`, is a copy; false where NaN."""
    near = found.cosine > bank.cosine_limits[labels]
    alike = found.ms_ssim > bank.ms_ssim_limits[labels]
    surely = found.ms_ssim > SURELY
    return {"both": near | alike, "cosine": near | surely, "ms_ssim": alike}[config.similarity]


def limits(config: MemorizationConfig, bank: Bank) -> dict[str, Float[np.ndarray, "k"]]:
    """By measure, the limits [k] that `is_copy` goes by; a measure that it ignores is not there."""
    cosine = np.asarray(bank.cosine_limits, np.float64)
    ms_ssim = np.asarray(bank.ms_ssim_limits, np.float64)
    return {
        "both": {"cosine": cosine, "ms_ssim": ms_ssim},
        "cosine": {"cosine": cosine, "ms_ssim": np.full_like(ms_ssim, np.float32(SURELY))},
        "ms_ssim": {"ms_ssim": ms_ssim},
    }[config.similarity]


def _of_train(
    images: UInt8[np.ndarray | Array, "n h w c"],
    features: Float[np.ndarray | Array, "n d"],
    groups: Int[np.ndarray | Array, "n"],
    augment: AugmentConfig,
) -> Bank:
    """A bank without limits."""
    height, width = images.shape[1:3]
    if augment.rotate90 and height != width:
        raise ConfigError(f"augment.rotate90: got images of {height}x{width}; takes square ones")
    shift = registration.reach(augment, height, width)
    gray, thumbnails, spreads = _pictures(images, shift)
    return Bank(
        symmetries=registration.symmetries(augment),
        shift=shift,
        images=gray,
        thumbnails=thumbnails,
        spreads=spreads,
        features=unit(jnp.asarray(features, jnp.float32)),
        groups=jnp.asarray(groups, jnp.int32),
    )


def _limits(
    values: Float[np.ndarray, "v"],
    labels: Int[np.ndarray, "v"],
    num_classes: int,
    keep_rate: float,
    pooling: float,
) -> Float[np.ndarray, "k"]:
    """Thresholds of likeness [k], at most the highest that a class's own val images have."""
    limits = calibration.thresholds(values, labels, num_classes, keep_rate, pooling)
    own = [np.max(values[labels == k], initial=-np.inf) for k in range(num_classes)]
    return np.where(np.isfinite(own), np.minimum(limits, own), limits)


def share(config: MemorizationConfig) -> float:
    """The part of `false_alarm` that each similarity has, so that all together keep within it."""
    return config.false_alarm / (2 if config.similarity == "both" else 1)


def _pictures(
    images: UInt8[np.ndarray | Array, "n h w c"], shift: int
) -> tuple[UInt8[Array, "n h w"], Float[Array, "n t"], Float[Array, "n f"]]:
    """Gray images, thumbnails and spreads; some at a time, or floats would take much room."""
    parts = []
    for start in range(0, len(images), CHUNK):
        faults.check("the bank of train images")
        gray = registration.gray(images[start : start + CHUNK])
        small = registration.thumbnails(gray, shift, (0,))[0]
        spreads = registration.spreads(gray, shift)
        parts.append((gray.astype(jnp.uint8), small, spreads))
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)


def _nearest_of_all(
    config: MemorizationConfig, bank: Bank, images: np.ndarray, features: np.ndarray
) -> Nearest:
    """`nearest` of any number of images, on host, in batches of one size."""
    program = jax.jit(functools.partial(nearest, config))
    found = []
    for start in range(0, len(images), BATCH):
        faults.check("the search for copies")
        rows = np.minimum(start + np.arange(BATCH), len(images) - 1)
        own = np.full(BATCH, -1, np.int32)
        found.append(
            jax.device_get(
                program(bank, images[rows], jnp.asarray(features[rows]), jnp.asarray(own))
            )
        )
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(images)], *found)


def _correlate(
    bank: Bank, views: Float[Array, "s b h w"]
) -> tuple[Float[Array, "b n"], Int[Array, "b n"]]:
    """The highest correlation of thumbnails over symmetries and shifts, and its symmetry."""
    offsets = registration.offsets(bank.shift, min(views.shape[2:]))
    probes = jnp.concatenate([registration.thumbnails(view, bank.shift, offsets) for view in views])
    of_view = jnp.repeat(jnp.arange(len(views), dtype=jnp.int8), len(offsets) ** 2)

    def take(best, probe):
        highest, view = best
        thumbnails, number = probe
        correlation = jnp.matmul(thumbnails, bank.thumbnails.T, precision="highest")
        higher = correlation > highest
        return (jnp.where(higher, correlation, highest), jnp.where(higher, number, view)), None

    shape = views.shape[1], bank.images.shape[0]
    start = jnp.full(shape, -2.0), jnp.zeros(shape, jnp.int8)
    return jax.lax.scan(take, start, (probes, of_view))[0]


def _compare(
    bank: Bank,
    views: Float[Array, "s b h w"],
    rows: Int[Array, "b p"],
    view: Int[Array, "b n"],
) -> Float[Array, "b p"]:
    """MS-SSIM of each image, in the view that fits, with each of its rows; one row at a time."""
    middles = registration.middle(views, bank.shift)
    told = [similarity.describe(registration.stretch(x)) for x in middles]

    def one(pair):
        row, number = pair
        x = _pick(number[:, None, None], *middles)
        train = bank.images[row].astype(jnp.float32)
        y = registration.align(x, train, bank.spreads[row], bank.shift)
        of_x = jax.tree.map(functools.partial(_pick, number[None, :, None]), *told)
        return similarity.compare(of_x, similarity.describe(registration.stretch(y)))

    numbers = jnp.take_along_axis(view, rows, axis=1)
    return jax.lax.map(one, (rows.T, numbers.T)).T


def _pick(number: Int[Array, "..."], *values: Array) -> Array:
    """Of each image the value of its view's number."""
    picked = values[0]
    for i, value in enumerate(values[1:], 1):
        picked = jnp.where(number == i, value, picked)
    return picked

"""Images for the tests of the memorisation gate, a fixed embedding of them, and copies."""

import io

import jax.numpy as jnp
import numpy as np
from PIL import Image

from lt_jax.data import phantom


def phantoms(seed, n, size=32):
    """Simulated ultrasound, uint8 [n size size 1], all classes and devices in turn."""
    indices = jnp.arange(n)
    labels, devices = indices % len(phantom.CLASSES), indices // 7 % len(phantom.DEVICES)
    made = phantom.simulate_batch(phantom.image_keys(seed, indices), labels, devices, size)
    return np.round(255 * np.asarray(made.image)).astype(np.uint8)


def blobs(seed, n, spread, size=16):
    """Smooth random colour images about a common one, from which they differ by `spread` levels."""
    waves = np.random.default_rng((seed, 1)).normal(size=(n, 3, 3, 3))
    common = np.random.default_rng(0).normal(size=(1, 3, 3, 3))
    at = np.cos(np.pi * np.arange(3)[:, None] * (np.arange(size)[None] + 0.5) / size)
    draw = lambda w: np.einsum("nijc,iy,jx->nyxc", w, at, at)
    levels = 128 + 40 * draw(common) + spread * draw(waves)
    noise = np.random.default_rng((seed, 2)).normal(size=levels.shape)
    return np.clip(np.round(levels + 8 * noise), 0, 255).astype(np.uint8)


def embed(images):
    """Random features of a 4 x 4 picture: about as much as an extractor without training sees."""
    n, side = images.shape[:2]
    small = images.astype(np.float32).mean(-1).reshape(n, 4, side // 4, 4, side // 4).mean((2, 4))
    weights = np.random.default_rng(0).normal(size=(16, 32)).astype(np.float32)
    return np.maximum((small.reshape(n, 16) / 128 - 1) @ weights, 0)


def shifted(images, down, across):
    """Moved by whole pixels; the border is the nearest pixel's."""
    h, w = images.shape[1:3]
    rows = np.clip(np.arange(h) - down, 0, h - 1)
    columns = np.clip(np.arange(w) - across, 0, w - 1)
    return images[:, rows][:, :, columns]


def brightened(images, gain, offset=0):
    """Times and plus, cut off at 255."""
    return np.clip(np.round(images * gain + offset), 0, 255).astype(np.uint8)


def recompressed(images, quality=75):
    """As JPEG and back."""
    found = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
            buffer, "JPEG", quality=quality
        )
        found.append(np.asarray(Image.open(buffer)).reshape(image.shape))
    return np.stack(found)


COPIES = {
    "exact": lambda x: x,
    "one pixel": lambda x: shifted(x, 0, 1),
    "two pixels each way": lambda x: shifted(x, -2, 2),
    "mirrored": lambda x: x[:, :, ::-1],
    "recompressed": recompressed,
    "brighter": lambda x: brightened(x, 1.25, 10),
    "darker": lambda x: brightened(x, 0.7),
    "all at once": lambda x: recompressed(brightened(shifted(x, 1, 2), 1.2)[:, :, ::-1]),
}

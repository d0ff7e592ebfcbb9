"""MS-SSIM, and SSIM where it is its only scale: independent implementations, closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.selection.similarity import C1, C2, WEIGHTS, compare, describe, scales


def planes(images):
    """All channels of all images, one behind the other, row by row."""
    levels = jnp.moveaxis(jnp.asarray(images, jnp.float32), -1, 1)
    return jnp.swapaxes(levels.reshape(-1, *levels.shape[2:]), 0, 1)


def ms_ssim(first, second):
    """Of images [b h w c], the mean of the channels."""
    found = compare(describe(planes(first)), describe(planes(second)))
    return found.reshape(-1, first.shape[-1]).mean(axis=1)


def pictures(shape, seed=0, noise=25.0):
    """Smooth uint8 images and noisy versions of them."""
    rng = np.random.default_rng(seed)
    n, h, w, c = shape
    y, x = np.mgrid[:h, :w] / 8
    phases = rng.uniform(0, 6, (n, 1, 1, c))
    first = 128 + 60 * np.sin(y[None, :, :, None] + phases) * np.cos(x[None, :, :, None] - phases)
    second = first + noise * rng.normal(size=shape)
    return tuple(np.clip(np.round(v), 0, 255).astype(np.uint8) for v in (first, second))


def reference(first, second, sides, weights):
    """Wang's definitions, window by window, in float64: (mean of l cs, mean of cs), one channel."""
    first, second = first.astype(float), second.astype(float)
    radius = (sides - 1) / 2
    offset = np.arange(sides) - radius
    kernel = np.exp(-(np.square(offset)[:, None] + np.square(offset)[None, :]) / (2 * 1.5**2))
    kernel /= kernel.sum()

    def at(x, y):
        windows = [np.lib.stride_tricks.sliding_window_view(v, (sides, sides)) for v in (x, y)]
        mean = [np.einsum("ijkl,kl->ij", v, kernel) for v in windows]
        centred = [v - m[:, :, None, None] for v, m in zip(windows, mean, strict=True)]
        s_xx, s_yy, s_xy = (
            np.einsum("ijkl,ijkl,kl->ij", centred[i], centred[j], kernel)
            for i, j in ((0, 0), (1, 1), (0, 1))
        )
        luminance = (2 * mean[0] * mean[1] + 6.5025) / (mean[0] ** 2 + mean[1] ** 2 + 6.5025)
        contrast = 2 * np.sqrt(np.maximum(s_xx * s_yy, 0)) + 58.5225
        contrast /= s_xx + s_yy + 58.5225
        structure = (s_xy + 58.5225 / 2) / (np.sqrt(np.maximum(s_xx * s_yy, 0)) + 58.5225 / 2)
        return np.mean(luminance * contrast * structure), np.mean(contrast * structure)

    value = 1.0
    for scale, weight in enumerate(weights):
        if scale:
            first, second = (
                sum(v[i : i + 2 * (v.shape[0] // 2) : 2, j : j + 2 * (v.shape[1] // 2) : 2]
                    for i in (0, 1) for j in (0, 1)) / 4
                for v in (first[: first.shape[0] // 2 * 2, : first.shape[1] // 2 * 2],
                          second[: second.shape[0] // 2 * 2, : second.shape[1] // 2 * 2])
            )  # fmt: skip
        whole, contrast = at(first, second)
        value *= max(whole if scale == len(weights) - 1 else contrast, 0) ** weight
    return at(first, second)[0] if len(weights) == 1 else value


@pytest.mark.parametrize("size", [(8, 8), (11, 14), (28, 28), (45, 31), (96, 64)])
def test_equal_to_the_definitions_window_by_window(size):
    first, second = pictures((2, *size, 3))
    window, weights = scales(*size)
    expected = [
        np.mean([reference(x[..., c], y[..., c], window, weights) for c in range(3)])
        for x, y in zip(first, second, strict=True)
    ]
    np.testing.assert_allclose(ms_ssim(first, second), expected, atol=2e-5)
    assert 0.1 < expected[0] < 0.98  # neither extreme, or nothing is compared


def test_equal_to_scikit_image():
    metrics = pytest.importorskip(
        "skimage.metrics", reason="needs scikit-image: pip install scikit-image"
    )

    def theirs(x, y, **options):
        return metrics.structural_similarity(
            x, y, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
            **options,
        )  # fmt: skip

    small = pictures((2, 20, 17, 3))  # of one scale: SSIM
    expected = [theirs(x, y, channel_axis=-1) for x, y in zip(*small, strict=True)]
    np.testing.assert_allclose(ms_ssim(*small), expected, atol=1e-5)

    first, second = pictures((2, 64, 48, 3))
    weights = np.array(WEIGHTS[:3]) / sum(WEIGHTS[:3])
    for n, (x, y) in enumerate(zip(first, second, strict=True)):
        channels = []
        for c in range(3):
            u, v, value = x[..., c].astype(float), y[..., c].astype(float), 1.0
            for scale, weight in enumerate(weights):
                # A huge C1 leaves contrast and structure alone.
                value *= theirs(u, v, K1=0.01 if scale == 2 else 1e6) ** weight
                u, v = (a.reshape(a.shape[0] // 2, 2, -1, 2).mean((1, 3)) for a in (u, v))
            channels.append(value)
        np.testing.assert_allclose(ms_ssim(first, second)[n], np.mean(channels), atol=1e-5)


@pytest.mark.parametrize("side", [16, 32])
def test_identities(side):
    measure = ms_ssim
    first, second = pictures((3, side, side, 1))
    np.testing.assert_allclose(measure(first, first), 1, atol=1e-6)
    value = measure(first, second)
    assert np.all((value > 0) & (value < 0.99))
    np.testing.assert_allclose(measure(second, first), value, atol=1e-6)
    for moved in (
        lambda x: x[:, ::-1], lambda x: x[:, :, ::-1], lambda x: np.swapaxes(x, 1, 2)
    ):  # fmt: skip
        np.testing.assert_allclose(measure(moved(first), moved(second)), value, atol=1e-6)
    np.testing.assert_allclose(measure(first[1:2], second[1:2])[0], value[1], atol=1e-6)
    floats = measure(jnp.asarray(first, jnp.float32), jnp.asarray(second, jnp.float32))
    np.testing.assert_array_equal(floats, value)
    noisier = measure(first, pictures((3, side, side, 1), noise=60.0)[1])
    assert np.all(noisier < value)


def test_flat_images_differ_in_luminance_alone():
    """l = (2 a b + C1) / (a^2 + b^2 + C1), cs = 1; only the last scale has l (Wang et al. 2003)."""
    a, b = 60.0, 100.0
    flat = lambda level, side: jnp.full((1, side, side, 1), level)
    expected = (2 * a * b + C1) / (a * a + b * b + C1)
    for side in (8, 32, 64):
        _, weights = scales(side, side)
        power = expected ** weights[-1]
        np.testing.assert_allclose(ms_ssim(flat(a, side), flat(b, side)), power, rtol=1e-5)


def test_an_inverted_image_is_clipped_before_a_power():
    for side in (16, 32):
        _, first = pictures((2, side, side, 1))
        np.testing.assert_array_equal(ms_ssim(first, 255 - first), 0)  # cs is -1 but for C2
    assert C2 == (0.03 * 255) ** 2


def test_what_is_known_of_an_image_is_the_same_in_every_pair():
    """An image described once, among others, is compared as if it were described for the pair."""
    first, second = pictures((4, 32, 28, 1))
    known, others = describe(planes(first)), describe(planes(second))
    for shift in range(4):
        turned = jax.tree.map(lambda leaf, by=shift: jnp.roll(leaf, by, axis=1), others)
        expected = ms_ssim(first, np.roll(second, shift, axis=0))
        np.testing.assert_allclose(compare(known, turned), expected, atol=1e-6)
    alone = describe(planes(second[2:3]))
    for leaf, whole in zip(jax.tree.leaves(alone), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(leaf[:, 0], whole[:, 2], atol=1e-3)  # levels, squared at most


@pytest.mark.parametrize(
    ("side", "window", "count"),
    [(4, 3, 1), (8, 7, 1), (10, 9, 1), (11, 11, 1), (22, 11, 2), (32, 11, 2), (64, 11, 3),
     (160, 11, 4), (175, 11, 4), (176, 11, 5), (1000, 11, 5)],
)  # fmt: skip
def test_scales_are_those_that_leave_room_for_the_window(side, window, count):
    got, weights = scales(side, 3 * side)
    assert (got, len(weights)) == (window, count)
    np.testing.assert_allclose(sum(weights), 1)
    np.testing.assert_allclose(np.divide(weights, weights[0]), np.divide(WEIGHTS, 0.0448)[:count])
    if count == 5:
        np.testing.assert_allclose(weights, np.divide(WEIGHTS, sum(WEIGHTS)))


def test_large_flat_levels_cost_no_digits():
    """Variances are differences of squares; about 0 they keep their digits."""
    first, second = pictures((1, 20, 20, 1), noise=1.0)
    bright = lambda x: jnp.asarray(x, jnp.float32) / 16 + 239
    window, _ = scales(20, 20)
    exact = reference(*(np.asarray(bright(x), float)[0, ..., 0] for x in (first, second)),
                      window, (1.0,))  # fmt: skip
    np.testing.assert_allclose(ms_ssim(bright(first), bright(second))[0], exact, atol=1e-6)


def test_compiles_as_part_of_a_program():
    first, second = pictures((2, 16, 16, 1))
    np.testing.assert_allclose(jax.jit(ms_ssim)(first, second), ms_ssim(first, second), atol=1e-6)

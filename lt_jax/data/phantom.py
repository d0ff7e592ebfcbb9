"""Simulated B-mode ultrasound of breast lesions whose mask, box, contour and device are known.

An image shows 40 x 40 mm, depth z downwards and width x, both in [0, 1]. Scatterers n of unit
variance, one a cell of a grid, are weighed by what the tissue sends back and convolved with a
separable pulse (Bamber and Dickinson, Phys. Med. Biol. 25:463, 1980; Meunier and Bertrand, IEEE
Trans. Biomed. Eng. 42:1161, 1995), whose analytic form makes the envelope a modulus:

  E = |h * (n 10^(G / 20))|,    h(z, x) = exp(-z^2 / 2 s_z^2 - x^2 / 2 s_x^2 + 2 pi i f z)    (1)

f is the device's frequency, s_z half a wavelength and s_x a multiple of one, so that a higher
frequency makes finer speckle. Uniform tissue gives Rayleigh amplitudes, mean / sd = 1.91 (Wagner et
al., IEEE Trans. Sonics Ultrason. 30:156, 1983). The level G, in dB, is that of the tissue's echoes
e less the attenuation a (dB a depth and MHz, there and back) above the place, which the machine
compensates (TGC) as if it were a_0 everywhere; it lifts the receiver's noise N as it does so:

  10^(G / 10) = 10^(S / 10) + 10^((N + f a_0 z) / 10),  S = e - f int_0^z (a - a_0) dz'        (2)

The tissue is skin, fat with septa, gland and muscle with wavy interfaces. The lesion (see
`lt_jax.data.lesions`) sets its own e, with a rim and bright specks, and adds to a, so that (2)
casts its shadow or, where it attenuates less than what is around it, makes the enhancement behind
it. At last the device's log compression, in 256 levels of gray:

  image = clip(0.55 + (20 log10 E + gain) / dynamic range, 0, 1)^gamma                          (3)

E is averaged over three looks, as compounding scanners do; else there would be little to see but
speckle. True wavelengths are shorter than a pixel here: f is scaled down to 85 cycles a depth at
12 MHz, less below 128 pixels, so that speckle shows. Images under 64 pixels are simulated at a
multiple of their size, and E is averaged. All but the speckle is the same at every size.
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Key

from lt_jax.data.lesions import CLASSES as CLASSES
from lt_jax.data.lesions import FIELD_MM, Lesion, distance_outside, of, place_specks
from lt_jax.data.lesions import drawn_lesion as drawn_lesion
from lt_jax.runtime.keys import stream
from lt_jax.shapes import Array, Float, Int, PRNGKey

_FINEST = 64  # pixels of the grid that smaller images are averaged from
_CYCLES, _TOP_MHZ = 85.0, 12.0  # of the carrier over the whole depth, at that frequency
_ATTENUATION = 0.6 * FIELD_MM / 10  # a_0 of (2): 0.3 dB / cm / MHz, there and back
_NOMINAL_MHZ = 10.0  # `posterior_db` is what is seen at this frequency
_LOOKS = 3


@dataclasses.dataclass(frozen=True)
class Device:
    """What gives images their look.

    Attributes:
      frequency_mhz: finer speckle and less penetration as it rises.
      lateral: s_x of (1), in wavelengths.
      dynamic_range_db, gain_db, gamma: of (3).
      noise_db: N of (2), relative to gland.
    """

    name: str
    frequency_mhz: float
    lateral: float
    dynamic_range_db: float
    gain_db: float
    gamma: float
    noise_db: float


DEVICES = (
    Device("linear_7mhz", 7.0, 0.9, 58.0, 4.0, 1.2, -40.0),
    Device("linear_10mhz", 10.0, 0.8, 50.0, 0.0, 1.0, -44.0),
    Device("linear_12mhz", 12.0, 0.6, 42.0, -2.0, 0.8, -46.0),
)


@flax.struct.dataclass
class Phantom:
    """An image and what is known of it; float32, with a leading axis b in batches.

    Attributes:
      image: [h w 1], multiples of 1 / 255 in [0, 1].
      mask: [h w 1], 1 where the lesion covers at least half of a pixel.
      sketch: [h w 1], 1 on the mask's pixels that have a neighbour (of 4) outside it.
      box: [4], (x0, y0, x1, y1) of the mask in [0, 1]; zeros without a lesion.
    """

    image: Any
    mask: Any
    sketch: Any
    box: Any


def image_keys(seed: int | Int[Array, ""], indices: Int[Array, "b"]) -> Key[Array, "b"]:
    """The keys of images `indices` of a set: of (seed, index) alone."""
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(indices)


@functools.partial(jax.jit, static_argnames=("size", "lesion"))
def simulate_batch(
    keys: Key[Array, "b"],
    labels: Int[Array, "b"],
    devices: Int[Array, "b"],
    size: int,
    lesion: bool = True,
) -> Phantom:
    """`simulate` for each key, compiled."""
    one = functools.partial(simulate, size=size, lesion=lesion)
    return jax.vmap(one)(keys, labels, devices)


def simulate(
    key: PRNGKey, label: Int[Array, ""], device: Int[Array, ""], size: int, lesion: bool = True
) -> Phantom:
    """The image of `key`, equations (1)-(3).

    Mask, sketch and box are of (key, label) alone; the device sets the look.

    Args:
      key: of this image.
      label: index into `CLASSES`.
      device: index into `DEVICES`.
      size: side of the image in pixels.
      lesion: whether it is there; without it, tissue and scatterers are the same.
    """
    pooled = -(-_FINEST // size)
    at = _centres(size * pooled)
    drawn = drawn_lesion(key, label)
    distance = distance_outside(drawn, at)
    echo_db, attenuation = _tissue(stream(key, "tissue"), at)
    if lesion:
        echo_db = _lesion_echo(stream(key, "pattern"), drawn, distance, echo_db, at)
        excess = drawn.signs["posterior_db"] / (2 * drawn.half_height * _NOMINAL_MHZ)
        attenuation = attenuation - excess * (distance < 0)
    level_db = received(echo_db, attenuation, at, device)
    amplitude = envelope(stream(key, "speckle"), jnp.exp2(level_db / 6.0206), device, _LOOKS)
    image = _compress(_pool(amplitude, pooled), device)
    covered = _pool((distance < 0).astype(jnp.float32) * lesion, pooled)
    # A lesion between pixels still has the pixel that it covers most.
    mask = (covered > 0) & (covered >= jnp.minimum(0.5, covered.max()))
    return Phantom(
        image[..., None],
        mask.astype(jnp.float32)[..., None],
        _contour(mask).astype(jnp.float32)[..., None],
        _box(mask),
    )


def envelope(
    key: PRNGKey, amplitude: Float[Array, "n n"], device: Int[Array, ""], looks: int = 1
) -> Float[Array, "n n"]:
    """Equation (1) for scatterers of these amplitudes, averaged over independent looks.

    The grid is twice as fine in depth as the image below 256 pixels, for the carrier's sake. With
    one look, the mean of E^2 is that of amplitude^2.
    """
    n = amplitude.shape[0]
    fine = 2 if n < 256 else 1
    # Of all devices, so that a batch computes them once.
    real, imaginary, lateral = (kernel[device] for kernel in _pulses(n, fine))
    scatterers = _scatterers(key, (looks, fine * n, n)) * jnp.repeat(amplitude, fine, axis=0)[None]
    spread = jnp.einsum("lhw,xw->lhx", scatterers, lateral)
    field = [jnp.einsum("zh,lhx->lzx", axial, spread) for axial in (real, imaginary)]
    return jnp.sqrt(jnp.square(field[0]) + jnp.square(field[1])).mean(axis=0)


def _pulses(n: int, fine: int) -> tuple[Float[Array, "d n m"], Float[Array, "d n m"], Array]:
    """h of each device, [d pixels cells]: its axial part as cosine and sine, and its lateral part.

    Each row has unit energy, at the borders too, where the pulse is cut off.
    """
    mhz = jnp.array([device.frequency_mhz for device in DEVICES])[:, None, None]
    wide = jnp.array([device.lateral for device in DEVICES])[:, None, None]
    cycles = min(2 / 3 * n, _CYCLES) / _TOP_MHZ * mhz
    depth = cycles * (_centres(n)[:, None] - _centres(fine * n)[None, :])[None]
    width = cycles * (_centres(n)[:, None] - _centres(n)[None, :])[None]
    axial, lateral = (
        kernel / jnp.sqrt(jnp.square(kernel).sum(axis=-1, keepdims=True))
        for kernel in (_bump(2 * depth), _bump(width / wide))
    )
    phase = 2 * jnp.pi * depth
    return axial * jnp.cos(phase), axial * jnp.sin(phase), lateral


def _scatterers(key: PRNGKey, shape: tuple[int, int, int]) -> Array:
    """Normal to 256 quantiles, of unit variance.

    Four come out of each word of random bits: words of their own would take much of the time.
    """
    *rows, columns = shape
    words = jax.random.bits(key, (*rows, -(-columns // 4)), jnp.uint32)
    steps = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*rows, -1)[..., :columns]
    quantiles = jax.scipy.special.ndtri((jnp.arange(256) + 0.5) / 256)
    return (quantiles / quantiles.std())[steps]


def _tissue(key: PRNGKey, at: Float[Array, "n"]) -> tuple[Float[Array, "n n"], Float[Array, "n n"]]:
    """Echoes e in dB and attenuation a - a_0 of (2), without a lesion."""
    depth_key, wave_key, level_key, coarse_key, fine_key = jax.random.split(key, 5)
    low, high = jnp.array([0.04, 0.14, 0.8]), jnp.array([0.07, 0.4, 1.05])
    ends = low + (high - low) * jax.random.uniform(depth_key, (3,))
    turns = jnp.arange(1.0, 4.0)
    angle = jnp.pi * turns[:, None] * at[None, :]
    cosines, sines = jax.random.normal(wave_key, (2, 3, 3)) / turns[None, None, :]
    waves = cosines @ jnp.cos(angle) + sines @ jnp.sin(angle)
    ends = ends[:, None] + jnp.array([0.004, 0.025, 0.02])[:, None] * waves

    behind = at[None, :, None] - ends[:, None, :]  # [3 n n]: how far below each interface
    below = jax.nn.sigmoid(behind / 0.006)
    of_level, of_loss = jax.random.normal(level_key, (2, 4))
    level = jnp.array([5.0, -9.0, 0.0, -6.0]) + jnp.array([1.5, 2.0, 1.5, 2.0]) * of_level
    loss = jnp.array([0.0, -0.2, 0.1, 0.1]) + 0.12 * of_loss
    fascia = jnp.einsum("i,ihw->hw", jnp.array([4.0, 5.0, 6.0]), _bump(behind / 0.008))
    coarse, fine = _waves(coarse_key, at, 4.0, 2.0), _waves(fine_key, at, 14.0, 6.0)
    in_fat = below[0] - below[1]
    septa = 6 * in_fat * _bump(coarse / 0.15)
    echo_db = _stacked(level, below) + fascia + septa + 1.5 * coarse + 2 * (1 - in_fat) * fine
    return echo_db, _ATTENUATION * _stacked(loss, below)


def _lesion_echo(
    key: PRNGKey,
    lesion: Lesion,
    distance: Float[Array, "n n"],
    tissue_db: Float[Array, "n n"],
    at: Float[Array, "n"],
) -> Float[Array, "n n"]:
    """The tissue's echoes with the lesion's in their place."""
    pattern_key, speck_key = jax.random.split(key)
    signs, pixel = lesion.signs, 1 / at.shape[0]
    inside = jax.nn.sigmoid(-distance / jnp.maximum(0.5 * signs["edge_mm"] / FIELD_MM, pixel / 4))
    pattern = signs["echo_db"] + signs["heterogeneity_db"] * _waves(pattern_key, at, 9.0, 9.0)
    rim = signs["rim_db"] * _bump(distance / max(0.012, pixel))

    x, z, kept = place_specks(speck_key, lesion)
    width = max(0.007, 0.6 * pixel)
    rows = _bump((at[:, None] - z[None, :]) / width) * (20.0 * kept)[None, :]
    specks = rows @ _bump((at[None, :] - x[:, None]) / width)
    return tissue_db + inside * (pattern + specks - tissue_db) + rim


def received(
    echo_db: Float[Array, "n n"],
    attenuation: Float[Array, "n n"],
    at: Float[Array, "n"],
    device: Int[Array, ""],
) -> Float[Array, "n n"]:
    """G of (2)."""
    n = at.shape[0]
    frequency = of(DEVICES, "frequency_mhz", device)
    down_to = (jnp.tri(n) - 0.5 * jnp.eye(n)) / n  # a sum over what lies above, as a matrix product
    signal = echo_db - frequency * (down_to @ attenuation)
    noise = of(DEVICES, "noise_db", device) + frequency * _ATTENUATION * at[:, None]
    return 3.0103 * jnp.logaddexp2(signal / 3.0103, jnp.broadcast_to(noise, (n, n)) / 3.0103)


def _compress(amplitude: Float[Array, "n n"], device: Int[Array, ""]) -> Float[Array, "n n"]:
    """Equation (3)."""
    level_db = 20 * jnp.log10(jnp.maximum(amplitude, 1e-6)) + of(DEVICES, "gain_db", device)
    gray = jnp.clip(0.55 + level_db / of(DEVICES, "dynamic_range_db", device), 0, 1)
    return jnp.round(255 * gray ** of(DEVICES, "gamma", device)) / 255


def _waves(key: PRNGKey, at: Float[Array, "n"], down: float, across: float) -> Float[Array, "n n"]:
    """A Gaussian field of unit variance: 32 plane waves, of about so many cycles an image."""
    z, x, cosines, sines = jax.random.normal(key, (4, 32, 1))
    rows, columns = 2 * jnp.pi * down * z * at[None, :], 2 * jnp.pi * across * x * at[None, :]
    even = cosines * jnp.cos(rows) + sines * jnp.sin(rows)
    odd = sines * jnp.cos(rows) - cosines * jnp.sin(rows)
    return (even.T @ jnp.cos(columns) + odd.T @ jnp.sin(columns)) / 32**0.5


def _stacked(levels: Float[Array, "4"], below: Float[Array, "3 n n"]) -> Float[Array, "n n"]:
    """The layers' values, each from its interface on."""
    return levels[0] + jnp.einsum("i,ihw->hw", jnp.diff(levels), below)


def _contour(mask: Array) -> Array:
    around = jnp.pad(mask, 1)
    inner = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    return mask & ~inner


def _box(mask: Array) -> Float[Array, "4"]:
    columns, rows = mask.any(axis=0), mask.any(axis=1)
    low = jnp.stack([jnp.argmax(columns), jnp.argmax(rows)])
    high = mask.shape[0] - jnp.stack([jnp.argmax(columns[::-1]), jnp.argmax(rows[::-1])])
    corners = jnp.concatenate([low, high]).astype(jnp.float32) / mask.shape[0]
    return jnp.where(mask.any(), corners, 0.0)


def _pool(values: Float[Array, "n n"], factor: int) -> Float[Array, "m m"]:
    m = values.shape[0] // factor
    return values.reshape(m, factor, m, factor).mean(axis=(1, 3))


def _centres(n: int) -> Float[Array, "{n}"]:
    return (jnp.arange(n, dtype=jnp.float32) + 0.5) / n


def _bump(x: Array) -> Array:
    return jnp.exp(-0.5 * jnp.square(x))

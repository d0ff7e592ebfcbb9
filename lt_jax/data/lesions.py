"""Lesions of the simulated ultrasound: what tells the classes apart, and the shape of each lesion.

A lesion has the outline

  |q| < r(phi) = 1 + sum_n A_n cos(n phi) + B_n sin(n phi),    n = 2 .. 12                      (1)

in coordinates q = |q| (cos phi, sin phi) of a tilted ellipse: low n make the margin lobed, high n
spiculate it. Classes differ in the distributions of the signs that radiologists go by (shape,
orientation, margin, echo pattern, posterior features, calcifications; Stavros et al., Radiology
196:123, 1995). The numbers are ours, and overlap.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool

from lt_jax.runtime.keys import stream
from lt_jax.shapes import Array, Float, Int, PRNGKey

FIELD_MM = 40.0  # side of an image
Spread = tuple[float, float]  # mean and standard deviation, before the limits of `_LIMITS`
_ORDERS = range(2, 13)  # n of (1)
_SPECKS = 8


@dataclasses.dataclass(frozen=True)
class PhantomSpec:
    """How the lesions of a class come out: normal distributions, cut off at `_LIMITS`.

    Attributes:
      diameter_mm: of the disc of the same area.
      aspect: height over width of the ellipse in (1); above 1, taller than wide.
      irregularity, spiculation: sizes of the low and of the high orders in (1).
      edge_mm: over which the echoes change at the margin.
      rim_db: of the margin itself.
      echo_db: of the inside, relative to gland: -20 is a cyst's, 0 an isoechoic lesion's.
      heterogeneity_db: standard deviation of the echo pattern inside.
      posterior_db: behind the middle at 10 MHz; below 0 a shadow, above it enhancement.
      specks: probability of each of 8 calcifications.
    """

    name: str
    malignant: bool
    diameter_mm: Spread
    aspect: Spread
    irregularity: Spread
    spiculation: Spread
    edge_mm: Spread
    rim_db: Spread
    echo_db: Spread
    heterogeneity_db: Spread
    posterior_db: Spread
    specks: Spread


# From the most common to the rarest, so that long-tail profiles by class index make sense.
CLASSES = (
    PhantomSpec(
        "fibroadenoma", False, (13, 4), (0.68, 0.13), (0.05, 0.03), (0, 0.01), (0.3, 0.2),
        (3, 2), (-10, 3.5), (1.5, 1), (1, 2.5), (0.02, 0.06),
    ),
    PhantomSpec(
        "cyst", False, (12, 4.5), (0.75, 0.15), (0.04, 0.03), (0, 0.01), (0.2, 0.15),
        (2.5, 1.5), (-20, 6), (1, 1), (4.5, 2.5), (0, 0.03),
    ),
    PhantomSpec(
        "invasive_ductal", True, (13, 4.5), (1.05, 0.25), (0.15, 0.07), (0.08, 0.06), (0.8, 0.4),
        (1.5, 2), (-11, 4), (2.5, 1.2), (-6, 5), (0.1, 0.15),
    ),
    PhantomSpec(
        "lipoma", False, (14, 4.5), (0.55, 0.12), (0.05, 0.03), (0, 0.01), (0.4, 0.2),
        (5, 2), (3, 4), (1.5, 1), (0, 1.5), (0, 0.03),
    ),
    PhantomSpec(
        "dcis", True, (12, 4), (0.75, 0.2), (0.14, 0.06), (0.03, 0.03), (0.9, 0.4),
        (0.5, 1), (-8, 3.5), (3.5, 1.5), (-2, 3), (0.45, 0.25),
    ),
    PhantomSpec(
        "mucinous", True, (15, 4.5), (0.85, 0.18), (0.1, 0.05), (0.01, 0.02), (0.4, 0.25),
        (2, 2), (-6, 4), (4, 1.5), (3, 2.5), (0.05, 0.1),
    ),
)  # fmt: skip
_LIMITS = {
    "diameter_mm": (6, 22), "aspect": (0.4, 1.8), "irregularity": (0, 0.25),
    "spiculation": (0, 0.2), "edge_mm": (0.1, 2), "rim_db": (0, 10), "echo_db": (-32, 10),
    "heterogeneity_db": (0, 8), "posterior_db": (-20, 10), "specks": (0, 1),
}  # fmt: skip


@flax.struct.dataclass
class Lesion:
    """A lesion as drawn; lengths and places in fractions of the image's side.

    Attributes:
      x, z: the middle.
      half_width, half_height: of the ellipse in (1), and `tilt` its angle in radians.
      cosines, sines: A_n and B_n of (1), [11].
      signs: edge_mm, rim_db, echo_db, heterogeneity_db, posterior_db, specks; see `PhantomSpec`.
      size_mm, depth_mm, aspect: diameter of the disc of the same area, depth of the middle, height
        over width of the ellipse.
    """

    x: Any
    z: Any
    half_width: Any
    half_height: Any
    tilt: Any
    cosines: Any
    sines: Any
    signs: dict[str, Any]
    size_mm: Any
    depth_mm: Any
    aspect: Any


def drawn_lesion(key: PRNGKey, label: Int[Array, ""]) -> Lesion:
    """The lesion of class `label` in the image of `key`; all of it lies within, below the skin."""
    sign_key, margin_key, place_key = jax.random.split(stream(key, "lesion"), 3)
    signs = _draw_signs(sign_key, label)
    orders = jnp.array(_ORDERS, jnp.float32)
    scale = signs.pop("irregularity") * (2 / orders) ** 1.5
    scale = scale + signs.pop("spiculation") / 2 * (orders > 6)
    cosines, sines = scale[None, :] * jax.random.normal(margin_key, (2, len(_ORDERS)))
    place_x, place_z, turn = jax.random.uniform(place_key, (3,))
    tilt = 0.35 * (2 * turn - 1)

    angles = jnp.arange(128) * (2 * jnp.pi / 128)
    radius = _radius(jnp.cos(angles), jnp.sin(angles), cosines, sines)
    aspect = signs.pop("aspect")
    mean = signs.pop("diameter_mm") / (2 * FIELD_MM) / jnp.sqrt(jnp.mean(radius**2))
    across = mean / jnp.sqrt(aspect) * radius * jnp.cos(angles)
    down = mean * jnp.sqrt(aspect) * radius * jnp.sin(angles)
    reach_x = jnp.abs(across * jnp.cos(tilt) - down * jnp.sin(tilt)).max()
    reach_z = jnp.abs(across * jnp.sin(tilt) + down * jnp.cos(tilt)).max()
    fit = jnp.minimum(1, jnp.minimum(0.45 / reach_x, 0.36 / reach_z))
    mean, reach_x, reach_z = mean * fit, reach_x * fit, reach_z * fit
    x = 0.03 + reach_x + place_x * (0.94 - 2 * reach_x)
    z = 0.08 + reach_z + place_z * (0.82 - 2 * reach_z)  # room behind it for what it casts
    return Lesion(
        x=x,
        z=z,
        half_width=mean / jnp.sqrt(aspect),
        half_height=mean * jnp.sqrt(aspect),
        tilt=tilt,
        cosines=cosines,
        sines=sines,
        signs=signs,
        size_mm=2 * FIELD_MM * mean * jnp.sqrt(jnp.mean(radius**2)),
        depth_mm=FIELD_MM * z,
        aspect=aspect,
    )


def distance_outside(lesion: Lesion, at: Float[Array, "n"]) -> Float[Array, "n n"]:
    """About how far each pixel lies outside of (1), negative inside; its zero is exact."""
    z, x = at[:, None] - lesion.z, at[None, :] - lesion.x
    cos, sin = jnp.cos(lesion.tilt), jnp.sin(lesion.tilt)
    across = (x * cos + z * sin) / lesion.half_width
    down = (z * cos - x * sin) / lesion.half_height
    length = jnp.maximum(jnp.sqrt(across**2 + down**2), 1e-6)
    radius = _radius(across / length, down / length, lesion.cosines, lesion.sines)
    return (length / radius - 1) * jnp.sqrt(lesion.half_width * lesion.half_height)


def place_specks(
    key: PRNGKey, lesion: Lesion
) -> tuple[Float[Array, "s"], Float[Array, "s"], Bool[Array, "s"]]:
    """Where calcifications may lie (x, z), and which of them are there."""
    radius, angle, chance = jax.random.uniform(key, (3, _SPECKS))
    out, turn = 0.75 * jnp.sqrt(radius), 2 * jnp.pi * angle
    x = lesion.x + lesion.half_width * out * jnp.cos(turn)
    z = lesion.z + lesion.half_height * out * jnp.sin(turn)
    return x, z, chance < lesion.signs["specks"]


def of(table: Sequence[Any], field: str, index: Int[Array, ""]) -> Array:
    """A column of a table of dataclasses, at a traced row; rows outside are the nearest one."""
    return jnp.array([getattr(row, field) for row in table], jnp.float32)[index]


def _draw_signs(key: PRNGKey, label: Int[Array, ""]) -> dict[str, Array]:
    normal = jax.random.normal(key, (len(_LIMITS),))
    signs = {}
    for i, (name, (low, high)) in enumerate(_LIMITS.items()):
        mean, deviation = of(CLASSES, name, label)
        signs[name] = jnp.clip(mean + deviation * normal[i], low, high)
    return signs


def _radius(
    cos: Float[Array, "*s"], sin: Float[Array, "*s"], cosines: Array, sines: Array
) -> Float[Array, "*s"]:
    """Equation (1) in the direction (cos, sin) = (cos phi, sin phi), kept positive."""
    real, imaginary, radius = cos, sin, jnp.ones_like(cos)
    for i in range(len(_ORDERS)):
        real, imaginary = real * cos - imaginary * sin, real * sin + imaginary * cos
        radius = radius + cosines[i] * real + sines[i] * imaginary
    return jnp.clip(radius, 0.4, 1.8)

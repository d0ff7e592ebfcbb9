"""Holes to be inpainted: free-form shapes, and annotated lesions or boxes grown at random.

A hole is float32 [b h w 1], exactly 1 where the image is unknown and exactly 0 elsewhere. A
free-form hole grows out of a few ellipses and a bent stroke. With d_j(x) the distance of pixel x
from shape j's core in units of its size (elliptic from an ellipse's centre; Euclidean from the
stroke, over its width),

  f(x) = min_j d_j(x)                                                                     (1)
  hole = the round(a h w) pixels of smallest f,   a ~ U[0.05, 0.4]                        (2)

so that its area is set, whatever the shapes happen to be. Strokes and blobs are the usual choice
for free-form inpainting (Yu et al. 2019, arXiv:1806.03589); (1) and (2) are ours.
Everything here is computed on device, and hole i depends on key i and its own annotation only.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Key

from lt_jax.shapes import Array, Float, PRNGKey

FREE_FORM_AREA = (0.05, 0.4)  # a of equation (2): share of the image's pixels
INSIDE = 0.5  # masks are cut here

_ELLIPSES = 4
_STROKE_POINTS = 5
_TOLERANCE = 1e-4  # pixels by which a box may overlap one without touching it: float32 rounding

Holes = Float[Array, "b h w 1"]


def free_form_holes(keys: Key[Array, "b"], height: int, width: int) -> Holes:
    """Random free-form holes. Equations (1) and (2).

    Args:
      keys: one an image.
      height, width: of the images, in pixels.

    Returns:
      [b h w 1], 0 or 1. The share of ones lies within `FREE_FORM_AREA`, to the nearest pixel (and
      at least one pixel of an image is inside and one outside).
    """
    return jax.vmap(lambda key: _free_form(key, height, width))(keys)


def choose_holes(
    keys: Key[Array, "b"],
    height: int,
    width: int,
    masks: Float[Array, "b h w 1"] | None = None,
    boxes: Float[Array, "b m 4"] | None = None,
    free_form: float = 1 / 3,
    grow: int = 4,
) -> Holes:
    """Holes to train a mask-conditioned model with: a lesion, one of its boxes, or a free form.

    An image without a lesion that is known, by mask or box, gets a free-form hole; another gets
    one with probability `free_form`, else its mask or one of its boxes, drawn evenly between the
    two kinds where both are known, and evenly among the boxes. Mask and box are grown by a whole
    number of pixels uniform in [0, grow], so that a hole's rim does not give the lesion's away.

    Args:
      keys: one an image.
      height, width: of the images, in pixels.
      masks: of lesions, in [0, 1]; filled with -1 where unknown. None: unknown for all.
      boxes: x0, y0, x1, y1 in [0, 1]; zeros in unused slots, -1 where unknown. None: unknown.
      free_form: in [0, 1]; of images with a known lesion.
      grow: in pixels.

    Returns:
      [b h w 1], 0 or 1, nowhere empty.
    """
    count = keys.shape[0]
    if masks is None:
        masks = jnp.full((count, height, width, 1), -1.0)
    if boxes is None:
        boxes = jnp.full((count, 1, 4), -1.0)

    def choose(key: PRNGKey, mask: Float[Array, "h w 1"], slots: Float[Array, "m 4"]) -> Array:
        shape_key, kind_key, free_key, grow_key, box_key = jax.random.split(key, 5)
        radius = jax.random.randint(grow_key, (), 0, grow + 1)
        lesion = (mask > INSIDE).astype(jnp.float32)
        near = squared_distance(lesion[None], grow)[0] <= jnp.square(radius).astype(jnp.float32)
        used = (slots[:, 2] > slots[:, 0]) & (slots[:, 3] > slots[:, 1])
        slot = jax.random.categorical(box_key, jnp.where(used, 0.0, -jnp.inf))
        touched = _touched(slots[slot], height, width, radius)
        has_mask, has_box = jnp.any(lesion > 0), jnp.any(used)
        use_mask = has_mask & ((jax.random.uniform(kind_key) < 0.5) | ~has_box)
        annotated = jnp.where(use_mask, near, touched)
        free = (jax.random.uniform(free_key) < free_form) | ~(has_mask | has_box)
        return jnp.where(free, _free_form(shape_key, height, width), annotated)

    return jax.vmap(choose)(keys, masks, boxes)


def squared_distance(holes: Holes, radius: int) -> Holes:
    """Squared Euclidean distance of each pixel's centre from that of the nearest hole pixel.

    Args:
      holes: 1 inside (above 0.5), 0 outside.
      radius: in pixels.

    Returns:
      [b h w 1] in squared pixels, whole numbers: 0 inside, exact up to radius^2, and more than
      radius^2 further away. Takes 2 (2 radius + 1) passes over the image.
    """
    beyond = jnp.float32(2 * radius**2 + 1)
    squared = jnp.where(holes > INSIDE, 0.0, beyond)
    for axis in (1, 2):  # the squared distance is a sum over axes, so one is minimised at a time
        squared = _nearest_along(squared, radius, axis, beyond)
    return squared


def _nearest_along(squared: Holes, radius: int, axis: int, beyond: Array) -> Holes:
    """min over offsets o in [-radius, radius] along an axis of `squared` there + o^2."""
    size = squared.shape[axis]
    pads = [(radius, radius) if i == axis else (0, 0) for i in range(squared.ndim)]
    padded = jnp.pad(squared, pads, constant_values=beyond)

    def nearer(step: Array, least: Holes) -> Holes:
        shifted = jax.lax.dynamic_slice_in_dim(padded, step, size, axis)
        return jnp.minimum(least, shifted + jnp.square(step - radius).astype(jnp.float32))

    return jax.lax.fori_loop(0, 2 * radius + 1, nearer, squared)


def _touched(
    box: Float[Array, "4"], height: int, width: int, radius: Array
) -> Float[Array, "h w 1"]:
    """1 in every pixel that the box overlaps, and `radius` pixels further on each side."""
    x0, y0, x1, y1 = box
    rows, columns = jnp.arange(height), jnp.arange(width)

    def overlaps(pixels: Array, low: Array, high: Array, size: int) -> Array:
        first, last = low * size - radius + _TOLERANCE, high * size + radius - _TOLERANCE
        return (pixels + 1 > first) & (pixels < last)

    inside_y, inside_x = overlaps(rows, y0, y1, height), overlaps(columns, x0, x1, width)
    return (inside_y[:, None] & inside_x[None, :])[:, :, None].astype(jnp.float32)


def _free_form(key: PRNGKey, height: int, width: int) -> Float[Array, "h w 1"]:
    ellipse_key, stroke_key, count_key, area_key = jax.random.split(key, 4)
    # One unit of length is the longer side, and (0, 0) the corner.
    longer = max(height, width)
    extent = jnp.asarray([height / longer, width / longer])
    y, x = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    places = (jnp.stack([y, x], axis=-1) + 0.5) / longer
    # The stroke is one kind of shape more; without an ellipse it is always there.
    ellipses = jax.random.randint(count_key, (), 0, _ELLIPSES + 1)
    stroke = (ellipses == 0) | jax.random.bernoulli(jax.random.fold_in(count_key, 1))
    field = jnp.minimum(
        jnp.min(
            jnp.where(
                (jnp.arange(_ELLIPSES) < ellipses)[:, None, None],
                _from_ellipses(ellipse_key, places, extent),
                jnp.inf,
            ),
            axis=0,
        ),
        jnp.where(stroke, _from_stroke(stroke_key, places, extent), jnp.inf),
    )
    low, high = FREE_FORM_AREA
    area = jax.random.uniform(area_key, (), minval=low, maxval=high)
    pixels = height * width
    inside = jnp.clip(jnp.round(area * pixels), 1, pixels - 1)
    # Ranks rather than a threshold, since pixels may be equally far from a shape.
    order = jnp.argsort(field.ravel())
    rank = jnp.zeros(pixels).at[order].set(jnp.arange(pixels, dtype=jnp.float32))
    return (rank < inside).astype(jnp.float32).reshape(height, width, 1)


def _from_ellipses(
    key: PRNGKey, places: Float[Array, "h w 2"], extent: Float[Array, "2"]
) -> Float[Array, "e h w"]:
    """Elliptic distance from each ellipse's centre; 1 on its rim."""
    centre_key, axes_key, angle_key = jax.random.split(key, 3)
    centres = extent[None, :] * jax.random.uniform(centre_key, (_ELLIPSES, 2))
    axes = 0.05 * 4.0 ** jax.random.uniform(axes_key, (_ELLIPSES, 2))  # [0.05, 0.2]
    angles = jnp.pi * jax.random.uniform(angle_key, (_ELLIPSES,))
    cos, sin = jnp.cos(angles)[:, None, None], jnp.sin(angles)[:, None, None]
    away = places[None] - centres[:, None, None, :]
    along = cos * away[..., 0] + sin * away[..., 1]
    across = cos * away[..., 1] - sin * away[..., 0]
    return jnp.hypot(along / axes[:, 0, None, None], across / axes[:, 1, None, None])


def _from_stroke(
    key: PRNGKey, places: Float[Array, "h w 2"], extent: Float[Array, "2"]
) -> Float[Array, "h w"]:
    """Distance from a bent line over its half width; 1 on its rim."""
    start_key, turn_key, length_key, width_key = jax.random.split(key, 4)
    segments = _STROKE_POINTS - 1
    turns = jax.random.normal(turn_key, (segments,)).at[0].multiply(2 * jnp.pi)
    heading = jnp.cumsum(turns)
    lengths = jax.random.uniform(length_key, (segments,), minval=0.05, maxval=0.25)
    moves = lengths[:, None] * jnp.stack([jnp.sin(heading), jnp.cos(heading)], axis=-1)
    start = extent * jax.random.uniform(start_key, (2,))
    ends = start[None, :] + jnp.cumsum(moves, axis=0)
    starts = ends - moves
    away = places[None] - starts[:, None, None, :]
    share = jnp.sum(away * moves[:, None, None, :], axis=-1) / jnp.square(lengths)[:, None, None]
    foot = jnp.clip(share, 0, 1)[..., None] * moves[:, None, None, :]
    distance = jnp.sqrt(jnp.sum(jnp.square(away - foot), axis=-1))
    half_width = jax.random.uniform(width_key, (), minval=0.02, maxval=0.06)
    return jnp.min(distance, axis=0) / half_width

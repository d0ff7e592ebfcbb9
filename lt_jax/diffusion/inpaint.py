"""Inpainting with and without a model trained for it, and translation between classes.

Three ways to make an image of one class out of a real one of another. With x_0 the real image and
m the hole (1 where the image is unknown, 0 where it is kept):

A mask-conditioned model is told (x_0 (1 - m), m) beside the noisy image (`as_condition`; Saharia et
al. 2022, arXiv:2111.05826), and what it makes outside the hole is replaced at the end (`paste`).

RePaint (Lugmayr et al. 2022, arXiv:2201.09865, algorithm 1) needs no such model. A step from level
t to the next cleaner level s puts the noised real image around what equation (1) of samplers.py,
here g(x_t, z), makes of all of x_t:

  x_s = m g(x_t, z) + (1 - m) (alpha_s x_0 + sigma_s z)                                   (1)

One pass harmonises hole and surroundings badly: g sees of x_0 only what noise leaves visible.
Passes are therefore repeated: x_s is noised back to an earlier level r, and (1) brings it down,

  x_r = a x_s + sqrt(1 - a^2) z',    a = alpha_r / alpha_s                                (2)

With the exact denoiser of Gaussian data of covariance C, going back and forth between level r and
a clean image in one step settles at the conditional mean of covariance C + (sigma_r / alpha_r)^2 I.
That is right as r nears the image, and slow to settle there, so a schedule resamples at all levels,
the noisy ones first. Of the two variances that ancestral sampling may have (Ho et al. 2020,
arXiv:2006.11239, section 3.2) eta = 1 is the smaller. Each pass lacks the rest, so that samples
vary too little inside the hole, by a share that falls as 1 / steps but not with resampling.

Translation is SDEdit (Meng et al. 2022, arXiv:2108.01073): the image, noised to time s, is denoised
as another class from there (`translate`). What it keeps of x_0 grows as s falls, and its label
should say so (`soft_label_weight`); the weight is our definition, with alpha^2 the share of x_s's
signal-and-noise power that is signal, scaled so that the ends of the schedule are its ends:

  weight of the target class = 1 - (alpha^2(s) - alpha^2(1)) / (alpha^2(0) - alpha^2(1))  (3)
"""

import dataclasses
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Key

from lt_jax.config import ConfigError
from lt_jax.diffusion.grids import Grid, levels
from lt_jax.diffusion.guidance import Denoiser
from lt_jax.diffusion.holes import INSIDE, squared_distance
from lt_jax.diffusion.process import Schedule, VPProcess
from lt_jax.diffusion.samplers import Coefficients, Sampler, coefficients, step_noise
from lt_jax.diffusion.thresholds import STATIC, Threshold
from lt_jax.runtime import keys as keys_lib
from lt_jax.shapes import Array, Float, Images, ImagesU8


def as_condition(images: Images, holes: Float[Array, "b h w 1"]) -> Float[Array, "b h w d"]:
    """What a mask-conditioned model is told: (image * (1 - hole), hole), d = c + 1 channels.

    Holes are cut at 0.5 first: a soft rim would show the network what it has to paint.
    """
    hole = (holes > INSIDE).astype(images.dtype)
    return jnp.concatenate([jnp.where(hole > 0, 0, images), hole], axis=-1)


def paste(
    known: Images | ImagesU8,
    generated: Images | ImagesU8,
    holes: Float[Array, "b h w 1"],
    seam: int = 0,
) -> Array:
    """The generated image inside the hole, the known one outside.

    With seam = 0 every pixel outside the hole is the known one, bit for bit, and every pixel inside
    (above 0.5) the generated one. With seam > 0 exactly those pixels outside may also change whose
    centre lies at most `seam` pixels (Euclidean) from the centre of a hole's pixel. At distance d
    the generated image has weight u^2 (3 - 2 u), u = 1 - d / (seam + 1); all others are the known
    ones, bit for bit.

    Args:
      known: [b h w c], uint8 or float.
      generated: of the same shape and kind.
      holes: [b h w 1], 1 where the image is unknown.
      seam: in pixels, a Python int.

    Returns:
      [b h w c] of `known`'s dtype; mixed uint8 values are rounded to the nearest.

    Raises:
      TypeError: the images are of different dtypes, so one would not come back as it was.
      ValueError: seam is negative.
    """
    known, generated = jnp.asarray(known), jnp.asarray(generated)
    if known.dtype != generated.dtype:
        raise TypeError(
            f"paste: known is {known.dtype}, generated {generated.dtype}; quantise both or neither"
        )
    if seam < 0:
        raise ValueError(f"paste: got seam={seam}; takes pixels >= 0")
    inside = holes > INSIDE
    if seam == 0:
        return jnp.where(inside, generated, known)
    squared = squared_distance(holes, seam)
    u = 1 - jnp.sqrt(squared) / (seam + 1)
    weight = u**2 * (3 - 2 * u)
    base, top = known.astype(jnp.float32), generated.astype(jnp.float32)
    mixed = base + weight * (top - base)
    if jnp.issubdtype(known.dtype, jnp.integer):
        mixed = jnp.round(mixed)
    blended = jnp.where(squared <= seam**2, mixed.astype(known.dtype), known)
    return jnp.where(inside, generated, blended)


def repaint_schedule(steps: int, jump: int, resamples: int) -> list[int]:
    """The levels that RePaint visits, in order: 0 is pure noise, `steps` the clean image.

    The schedule of the paper and its code (`get_schedule_jump`), whose diffusion time is
    steps - 1 - level. Going down level by level, at every level that is a multiple of `jump` before
    level steps - 1, and no nearer to noise than `jump`, it goes `jump` levels back and down again,
    `resamples` - 1 times. Nothing is resampled after the step to the clean image.

    Returns:
      Neighbours differ by one: + 1 is a step of (1), - 1 one of (2).

    Raises:
      ConfigError: a number below 1, or a jump that no level is far enough from noise for.
    """
    if min(steps, jump, resamples) < 1:
        raise ConfigError(
            f"repaint: got steps={steps}, jump={jump}, resamples={resamples}; takes integers >= 1"
        )
    if resamples > 1 and jump >= steps:
        raise ConfigError(
            f"repaint: a jump of {jump} does not fit into {steps} steps, so nothing would be "
            "resampled; take fewer repaint_jump (a 25th of the steps is the paper's) or more steps"
        )
    visited = []
    for level in range(steps + 1):
        visited.append(level)
        if jump <= level < steps and (steps - 1 - level) % jump == 0:
            back_and_down = [*range(level - 1, level - jump, -1), *range(level - jump, level + 1)]
            visited.extend(back_and_down * (resamples - 1))
    return visited


@dataclasses.dataclass(frozen=True)
class RePaint:
    """Inpainting with any model, by equations (1) and (2) along `repaint_schedule`.

    The paper has 250 steps, jumps of 10 and 10 resamples. With fewer steps take shorter jumps: a
    jump is a share of all noise levels, and a long one resamples where little of the image shows.

    Attributes:
      schedule: gives the noise levels.
      steps: levels from noise to image.
      jump: levels of a jump back.
      resamples: passes over each jump; 1 is plain replacement.
      eta: of equation (1) in samplers.py.
      grid: in what the levels are evenly spaced.
      threshold: holds denoised images in range.
    """

    schedule: Schedule
    steps: int
    jump: int = 10
    resamples: int = 10
    eta: float = 1.0
    grid: Grid = "time"
    threshold: Threshold = STATIC

    def __post_init__(self) -> None:
        """Refuses numbers out of range: see `repaint_schedule`."""
        repaint_schedule(self.steps, self.jump, self.resamples)
        if not 0 <= self.eta <= 1:
            raise ConfigError(f"repaint: got eta={self.eta}; takes a number in [0, 1]")

    @property
    def evaluations(self) -> int:
        """How often one image is denoised."""
        return int(np.sum(np.diff(repaint_schedule(self.steps, self.jump, self.resamples)) > 0))

    def sample(
        self,
        denoise: Denoiser,
        noise: Images,
        keys: Key[Array, "b"],
        known: Images,
        holes: Float[Array, "b h w 1"],
    ) -> Images:
        """Images that are `known` outside their holes, bit for bit.

        Args:
          denoise: `(x_t [b h w c], log_snr [b]) -> x_0 [b h w c]`.
          noise: x_1, standard normal.
          keys: one an image; draw `noise` from others.
          known: images in [-1, 1]; what they show inside the hole is not used.
          holes: 1 (above 0.5) where the image is unknown.

        Returns:
          [b h w c]. Image i depends on row i of each argument only.
        """
        inside = holes > INSIDE

        def step(x: Images, row: tuple[Array, _Transition]) -> tuple[Images, None]:
            index, (up_keep, up_fresh, down, alpha, sigma) = row
            back, z = (step_noise(keys, 2 * index + i, x) for i in range(2))
            x = up_keep * x + up_fresh * back
            x0 = self.threshold(denoise(x, jnp.broadcast_to(down.log_snr, x.shape[:1])))
            # One z for both: no pixel has a part in each.
            return jnp.where(inside, down.advance(x, x0, z), alpha * known + sigma * z), None

        table = jax.tree.map(lambda leaf: leaf.astype(noise.dtype), self._transitions())
        rows = (jnp.arange(self.evaluations), table)
        return paste(known, jax.lax.scan(step, noise, rows)[0], holes)

    def _transitions(self) -> "_Transition":
        """One row a step down, with the way back before it, if any.

        Unit steps back add up to one draw of equation (2), so that a row is one evaluation of the
        network and nothing has to be decided inside the scan.
        """
        visited = repaint_schedule(self.steps, self.jump, self.resamples)
        # The levels between which the path turns, to noise and back; a step down leaves `start`.
        came_from, starts, held = [], [], 0
        for level, following in itertools.pairwise(visited):
            if following > level:
                came_from.append(held)
                starts.append(level)
                held = following
        log_snr = levels(self.schedule, self.steps, self.grid)
        came_from, starts = np.array(came_from), np.array(starts)
        log_alpha_squared = jax.nn.log_sigmoid(log_snr)
        lost = log_alpha_squared[starts] - log_alpha_squared[came_from]
        following = log_snr[starts + 1]
        return _Transition(
            up_keep=jnp.exp(0.5 * lost),
            up_fresh=jnp.sqrt(-jnp.expm1(lost)),
            down=jax.tree.map(lambda leaf: leaf[starts], coefficients(log_snr, self.eta)),
            alpha=jnp.sqrt(jax.nn.sigmoid(following)),
            sigma=jnp.sqrt(jax.nn.sigmoid(-following)),
        )


class _Transition(NamedTuple):
    """Factors of equation (2), of the step down, and of (1)'s known part; [m] each."""

    up_keep: Array
    up_fresh: Array
    down: Coefficients
    alpha: Array
    sigma: Array


def translate(
    schedule: Schedule,
    sampler: Sampler,
    denoise: Denoiser,
    images: Images,
    times: Float[Array, "b"],
    keys: Key[Array, "b"],
) -> Images:
    """Images noised to their own times and denoised from there as whatever `denoise` makes.

    Args:
      schedule: the sampler's.
      sampler: takes each image from its time to 0.
      denoise: conditioned on the class that the images are to become.
      images: of any class, in [-1, 1].
      times: in (0, 1]: near 0 the image comes back, at 1 nothing of it is left.
      keys: one an image; image i depends on its own row of each argument only.

    Returns:
      [b h w c], about [-1, 1].
    """
    draw = lambda key: jax.random.normal(
        keys_lib.stream(key, "translate"), images.shape[1:], images.dtype
    )
    noised = VPProcess(schedule).add_noise(images, jax.vmap(draw)(keys), schedule.log_snr(times))
    return sampler.sample(denoise, noised, keys, start=times)


def soft_label_weight(schedule: Schedule, times: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The target class's weight in the label of a translated image; the source's has the rest.

    Equation (3), our definition: it rises with the time that the image was noised to, from 0 at
    time 0, where the source comes back, to 1 at time 1, where none of it is left.
    """
    clean, noisy, kept = (
        jax.nn.sigmoid(schedule.log_snr(jnp.asarray(t, jnp.float32))) for t in (0.0, 1.0, times)
    )
    return 1 - (kept - noisy) / (clean - noisy)

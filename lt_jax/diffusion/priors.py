"""Where lesions lie: the density of a class's boxes, drawn from and compared with its train boxes.

A box is described by z = (centre x, centre y, log(width / height), log(width height)). Class k with
n_k boxes of mean m_k and covariance V_k is given a Gaussian kernel density, in coordinates whitened
by S_k = c_k V_k + (1 - c_k) V, and shares what it cannot know with the others:

  c_k = n_k / (n_k + pooling)                                                             (1)
  p_k(z) = c_k own_k(z) + (1 - c_k) pooled(z)                                             (2)

(1) is Buhlmann's credibility, as in selection/select.py. `pooled` is the same density of all boxes,
of mean m and covariance V, in which those of class k weigh c_k in sum: classes of many boxes weigh
alike and a class of one hardly counts. A class of five boxes at pooling = 10 draws two thirds of
its boxes from the common density, a class of none all of them. Bandwidths, one each, are those of
the highest cross-validated likelihood (Silverman 1986, section 3.4.4; `choose_bandwidth`).

Boxes are drawn until one lies inside the image and is not too small, so that (2) is cut off at the
image's border; where that does not succeed, the last is clipped. Boxes of one image are drawn
independently. All of this runs on host, and what is drawn for image i depends on (seed, i) only.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lt_jax.errors import UserError
from lt_jax.shapes import Float, Int

BANDWIDTHS = np.geomspace(0.1, 2.0, 20)  # candidates, in standard deviations of the boxes
FOLDS = 10
MOST_SCORED = 400  # boxes that a bandwidth is chosen with; it is scaled to how many there are

_FEWEST_SCORED = 4  # distinct boxes, below which a class takes the pooled bandwidth
_TRIES = 64  # boxes drawn in search of one inside the image
_RIDGE = 1e-4  # added to variances, so that boxes that are all square or alike can be whitened
_STREAM = 0  # of random numbers under (seed, i); shape_prior.py has another


class PriorError(UserError, ValueError):
    """Boxes or masks that no prior can be made of."""


@dataclasses.dataclass(frozen=True, eq=False)
class Density:
    """A Gaussian kernel density of z, in coordinates u where z = mean + spread @ u.

    Attributes:
      centres: [n 4], u of the boxes it was made of.
      weights: [n], with sum 1.
      bandwidth: of the kernel, in u.
      mean, spread: [4] and [4 4].
    """

    centres: np.ndarray
    weights: np.ndarray
    bandwidth: float
    mean: np.ndarray
    spread: np.ndarray

    def draw(self, rng: np.random.Generator, count: int) -> Float[np.ndarray, "_ 4"]:
        """`count` draws of z."""
        chosen = rng.choice(len(self.centres), count, p=self.weights)
        u = self.centres[chosen] + self.bandwidth * rng.standard_normal((count, 4))
        return self.mean + u @ self.spread.T


@dataclasses.dataclass(frozen=True, eq=False)
class BoxPrior:
    """Equation (2) for each class, and how many boxes an image of the class has.

    Attributes:
      own: a density a class; None for a class without boxes.
      pooled: of all classes.
      credibility: [k], equation (1).
      counts: of the boxes of each known image, an array a class.
      max_boxes: slots of a sample.
      min_side: least width and height, in [0, 1) of the image.
    """

    own: tuple[Density | None, ...]
    pooled: Density
    credibility: np.ndarray
    counts: tuple[np.ndarray, ...]
    max_boxes: int
    min_side: float

    @classmethod
    def fit(
        cls,
        boxes: Sequence[Float[np.ndarray, "_ 4"]],
        counts: Sequence[Int[np.ndarray, "_"]],
        pooling: float = 10.0,
        bandwidth: float | None = None,
        max_boxes: int | None = None,
        min_side: float = 0.02,
    ) -> "BoxPrior":
        """The prior of annotated train images; see `by_class` for both lists.

        Args:
          boxes: of each class, x0, y0, x1, y1 in [0, 1] with positive area.
          counts: of each class, boxes in each of its images, 0 for those without a lesion. A class
            without images takes the counts of all.
          pooling: of equation (1), in boxes.
          bandwidth: for all densities, in standard deviations; None: by cross-validation.
          max_boxes: slots of a sample; more boxes than that are not drawn. None: the most seen.
          min_side: least width and height of a box that is drawn, in [0, 1).

        Raises:
          PriorError: there is no box, or one is empty, not finite or outside the image.
        """
        described = [_describe(held, k) for k, held in enumerate(boxes)]
        sizes = np.array([len(z) for z in described])
        if not sizes.any():
            raise PriorError(
                "box prior: no train image has a box; take the boxes off the generator's conditions"
            )
        credibility = sizes / np.maximum(sizes + pooling, 1e-12)
        z = np.concatenate(described)
        weights = np.repeat(credibility / np.maximum(sizes, 1), sizes)
        weights = weights / weights.sum()
        mean = weights @ z
        covariance = _covariance(z, weights)
        pooled = _density(z, weights, mean, covariance, bandwidth, None)
        own = tuple(
            _density(
                held,
                np.full(len(held), 1 / len(held)),
                held.mean(axis=0),
                c * _covariance(held, None) + (1 - c) * covariance,
                bandwidth,
                pooled.bandwidth,
            )
            if len(held)
            else None
            for held, c in zip(described, credibility, strict=True)
        )
        every = np.concatenate([np.asarray(held) for held in counts])
        seen = tuple(np.asarray(held) if len(held) else every for held in counts)
        slots = max(1, int(every.max(initial=1))) if max_boxes is None else max_boxes
        return cls(own, pooled, credibility, seen, slots, min_side)

    def sample(
        self,
        seed: int,
        indices: Int[np.ndarray, "b"],
        labels: Int[np.ndarray, "b"],
        least: int = 0,
    ) -> Float[np.ndarray, "b m 4"]:
        """Boxes of images `indices`, of classes `labels`; at least `least` of them an image.

        Returns:
          float32 [b max_boxes 4], x0, y0, x1, y1 inside the image, the largest first, zeros in
          unused slots; all zeros is an image without a lesion.
        """
        boxes = np.zeros((len(indices), self.max_boxes, 4), np.float32)
        for row, (index, label) in enumerate(zip(indices, labels, strict=True)):
            rng = np.random.default_rng((seed, int(index), _STREAM))
            count = min(max(int(rng.choice(self.counts[label])), least), self.max_boxes)
            drawn = np.array([self._draw(rng, int(label)) for _ in range(count)]).reshape(-1, 4)
            boxes[row, :count] = drawn[np.argsort(-_area(drawn), kind="stable")]
        return boxes

    def _draw(self, rng: np.random.Generator, label: int) -> Float[np.ndarray, "4"]:
        """One box of a class. As many numbers are drawn whatever comes of them."""
        from_own = rng.random(_TRIES) < self.credibility[label]
        common = self.pooled.draw(rng, _TRIES)
        own = self.own[label]
        z = common if own is None else np.where(from_own[:, None], own.draw(rng, _TRIES), common)
        boxes = _to_boxes(z)
        sides = boxes[:, 2:] - boxes[:, :2]
        good = (boxes >= 0).all(1) & (boxes <= 1).all(1) & (sides >= self.min_side).all(1)
        if good.any():
            return boxes[np.argmax(good)]
        side = np.clip(sides[-1], self.min_side, 1)
        centre = np.clip(z[-1, :2], side / 2, 1 - side / 2)
        return np.clip(np.concatenate([centre - side / 2, centre + side / 2]), 0, 1)


def by_class(
    boxes: Float[np.ndarray, "n m 4"], labels: Int[np.ndarray, "n"], num_classes: int
) -> tuple[list[Float[np.ndarray, "_ 4"]], list[Int[np.ndarray, "_"]]]:
    """What `BoxPrior.fit` takes, from images' padded boxes.

    Args:
      boxes: zeros in unused slots; images of which boxes are unknown are filled with -1 and are
        left out.
      labels: of the images.
      num_classes: length of both lists.
    """
    used = _area(boxes) > 0
    known = (boxes >= 0).all(axis=(1, 2))
    rows = [known & (labels == k) for k in range(num_classes)]
    return [boxes[row][used[row]] for row in rows], [used[row].sum(axis=1) for row in rows]


def choose_bandwidth(u: Float[np.ndarray, "n 4"]) -> float:
    """The candidate under which held-out points are likeliest, over `FOLDS` folds or one a point.

    Points that are equal count once, or leaving one out would favour the narrowest kernel; that of
    `BANDWIDTHS` is 0.1, so that no density is a copy of its boxes. Of more than `MOST_SCORED`
    points that many are scored, and what is found is scaled by (MOST_SCORED / n)^(1/8), the rate at
    which the best bandwidth falls in four dimensions.
    """
    from sklearn.model_selection import GridSearchCV, KFold
    from sklearn.neighbors import KernelDensity

    u = np.unique(u, axis=0)
    total = len(u)
    u = np.random.default_rng(0).permutation(u)[:MOST_SCORED]
    search = GridSearchCV(
        KernelDensity(), {"bandwidth": BANDWIDTHS}, cv=KFold(min(FOLDS, len(u))), refit=False
    ).fit(u)
    scale = (len(u) / total) ** (1 / 8)
    return float(max(scale * search.best_params_["bandwidth"], BANDWIDTHS[0]))


@dataclasses.dataclass(frozen=True)
class DistanceReport:
    """How far drawn boxes keep from train boxes. A distance is 1 - IoU, to the nearest box.

    Attributes:
      sampled: median distance of a drawn box from the train boxes.
      train: median distance of a train box from the others.
      near_copies: share of drawn boxes that are nearer to a train box than 95% of train boxes are
        to the others. Fresh boxes of the same distribution have 0.05; copies have 1.
    """

    sampled: float
    train: float
    near_copies: float

    @property
    def ratio(self) -> float:
        """About 1 for fresh boxes of the same distribution; 0 for copies."""
        return self.sampled / self.train


def distance_report(
    sampled: Float[np.ndarray, "_ 4"], train: Float[np.ndarray, "_ 4"]
) -> DistanceReport:
    """Distances of drawn boxes from train boxes, beside those of train boxes from one another.

    Empty slots are left out, and train boxes that are equal count once. Report it by class.

    Raises:
      PriorError: fewer than two distinct train boxes, or nothing drawn.
    """
    sampled = sampled[_area(sampled) > 0]
    train = np.unique(train[_area(train) > 0], axis=0)
    if len(sampled) < 1 or len(train) < 2:
        raise PriorError(
            f"distance report: got {len(sampled)} drawn and {len(train)} distinct train boxes; "
            "takes at least 1 and 2"
        )
    to_train = _nearest(sampled, train, same=False)
    among_train = _nearest(train, train, same=True)
    return DistanceReport(
        float(np.median(to_train)),
        float(np.median(among_train)),
        float(np.mean(to_train < np.quantile(among_train, 0.05))),
    )


def _describe(boxes: np.ndarray, label: int) -> Float[np.ndarray, "_ 4"]:
    """z of each box."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    good = (sides > 0).all(axis=1) & ((boxes > -1e-3) & (boxes < 1 + 1e-3)).all(axis=1)
    if not good.all():
        raise PriorError(
            f"box prior: box {boxes[~good][0].tolist()} of class {label} has no area or leaves the "
            "image; takes x0 < x1 and y0 < y1 in [0, 1]"
        )
    width, height = sides.T
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    return np.column_stack([centre, np.log(width / height), np.log(width * height)])


def _to_boxes(z: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    """The boxes that z describe; they may reach out of the image."""
    half = np.exp(np.column_stack([z[:, 3] + z[:, 2], z[:, 3] - z[:, 2]]) / 2) / 2
    return np.concatenate([z[:, :2] - half, z[:, :2] + half], axis=1)


def _covariance(z: np.ndarray, weights: np.ndarray | None) -> Float[np.ndarray, "4 4"]:
    return np.cov(z.T, aweights=weights, bias=True) + _RIDGE * np.eye(4)


def _density(
    z: np.ndarray,
    weights: np.ndarray,
    mean: np.ndarray,
    covariance: np.ndarray,
    bandwidth: float | None,
    otherwise: float | None,
) -> Density:
    """Whitened by `covariance`; `otherwise` is the bandwidth where too few boxes are distinct."""
    spread = np.linalg.cholesky(covariance)
    u = np.linalg.solve(spread, (z - mean).T).T
    if bandwidth is None:
        few = len(np.unique(z, axis=0)) < _FEWEST_SCORED
        bandwidth = (otherwise or 1.0) if few else choose_bandwidth(u)
    return Density(u, weights, bandwidth, mean, spread)


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _nearest(boxes: np.ndarray, others: np.ndarray, same: bool) -> Float[np.ndarray, "n"]:
    """1 - IoU of each box with the nearest of `others`; of itself not, where both are the same."""
    nearest = np.empty(len(boxes))
    for row, box in enumerate(boxes):
        sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
        shared = np.prod(np.maximum(sides, 0), axis=1)
        overlap = shared / (_area(box[None]) + _area(others) - shared)
        if same:
            overlap[row] = 0
        nearest[row] = 1 - overlap.max()
    return nearest

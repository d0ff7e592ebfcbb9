"""95% intervals: of bootstrap draws (percentile, BCa), and score intervals of shares and AUROCs.

Bootstrap draws t_1..t_r of an estimate t (Efron, JASA 1987):
  percentile  the alpha and 1 - alpha quantiles of the draws                                    (1)
  BCa         their quantiles at Phi(z0 + (z0 + z) / (1 - a (z0 + z))), z = z_alpha, z_{1-alpha}
              z0 = Phi^-1(#{t_b < t} / r), draws equal to t counted half                         (2)
              a  = sum_i l_i^3 / (6 (sum_i l_i^2)^{3/2})                                         (3)
with l_i what group i (within its class) and, where there are several, run i contributes to the
error of t: (3) is the form for several samples of Davison and Hinkley (1997, section 5.3.2). BCa is
withheld where all draws lie on one side of t, where z0 is infinite: ECE, which resampling raises.

Score intervals invert a test, and so hold up where a bootstrap cannot: few groups, or all alike. z
is 1.96, p a share of n independent units, theta an AUROC from m positives and n negatives.
  Wilson      {p : |p^ - p| <= z sqrt(p (1 - p) / n)}  (JASA 1927)                               (4)
  AUROC       {theta : |theta^ - theta| <= z sqrt(V(theta))},
              V = theta (1 - theta) (1 + (N - 1) ((1 - theta) / (2 - theta) + theta / (1 + theta)))
                  / (m n),  N = (m + n) / 2  (Newcombe, Stat Med 2006, method 5)                 (5)
  sum w_c p_c [m - sqrt(l' R l), m + sqrt(u' R u)] about m = sum w_c p_c, l_c = w_c (p_c - low_c),
              u_c = w_c (high_c - p_c) with [low_c, high_c] the interval of p_c, both ends exchanged
              where w_c < 0, and R the correlation of the p_c (MOVER: Zou and Donner, Stat Med
              2008): none between recalls of different classes, that of the components of DeLong's
              covariance between one-vs-rest AUROCs; between arms see `score_intervals`         (6)
They speak of the trained runs alone: training noise is in the bootstrap's, which redraws the runs.
Of images in groups n is an effective number, see `effective_number`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

LEVEL = 0.95
METHODS = ("percentile", "bca")
# An interval is withheld when more resamples than this left the metric without a class.
MAX_UNDEFINED = 0.05

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Proportion:
    """`successes` out of n independent trials, with its Wilson interval; of none, neither."""

    successes: int
    n: int

    def __post_init__(self) -> None:
        """Refuses more successes than trials."""
        if not 0 <= self.successes <= self.n:
            raise ValueError(f"{self.successes} of {self.n}; takes 0 to n")

    @property
    def share(self) -> float | None:
        """In [0, 1]; None of no trials."""
        return self.successes / self.n if self.n else None

    @property
    def ci95(self) -> Interval | None:
        """Wilson's interval; None of no trials."""
        return wilson(self.successes / self.n, self.n) if self.n else None


def percentile(draws: Float[np.ndarray, "q r"]) -> Float[np.ndarray, "q 2"]:
    """(1) of every row; NaN where over MAX_UNDEFINED of its draws are NaN."""
    tail = (1 - LEVEL) / 2
    return _quantiles(draws, np.broadcast_to([tail, 1 - tail], (len(draws), 2)))


def percentile_interval(draws: Float[np.ndarray, "r"]) -> Interval | None:
    """(1) of one quantity; None where over MAX_UNDEFINED of its draws are NaN."""
    ((low, high),) = percentile(draws[None])
    return None if np.isnan(low) else (float(low), float(high))


def _quantiles(
    draws: Float[np.ndarray, "q r"], levels: Float[np.ndarray, "q 2"]
) -> Float[np.ndarray, "q 2"]:
    """Quantiles of each row's defined draws at its own levels, linear between draws."""
    ordered = np.sort(draws, axis=1)  # NaN last
    defined = (~np.isnan(ordered)).sum(axis=1)
    at = levels * (np.maximum(defined, 1) - 1)[:, None]
    known = (defined >= (1 - MAX_UNDEFINED) * draws.shape[1])[:, None] & ~np.isnan(at)
    at = np.where(known, at, 0.0)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, draws.shape[1] - 1)
    take = lambda i: np.take_along_axis(ordered, i, axis=1).astype(np.float64)
    below = take(low)
    step = np.where(at > low, take(high) - below, 0.0)
    return np.where(known, below + (at - low) * step, np.nan)


def acceleration(contributions: Float[np.ndarray, "q g"]) -> Float[np.ndarray, "q"]:
    """(3) of every row; 0 where nothing contributes. NaN entries count nothing."""
    known = np.nan_to_num(np.asarray(contributions, np.float64))
    scale = np.abs(known).max(axis=1, keepdims=True, initial=0.0)
    known = known / np.where(scale > 0, scale, 1.0)  # cubes of small numbers would underflow
    squares, cubes = (known**2).sum(axis=1), (known**3).sum(axis=1)
    return np.divide(cubes, 6 * squares**1.5, out=np.zeros(len(known)), where=squares > 0)


def bca(
    draws: Float[np.ndarray, "q r"],
    estimates: Float[np.ndarray, "q"],
    contributions: Float[np.ndarray, "q g"],
) -> Float[np.ndarray, "q 2"]:
    """(2) of every row; NaN where (1) is, or where all draws lie on one side of the estimate."""
    from scipy.stats import norm

    defined = np.maximum((~np.isnan(draws)).sum(axis=1), 1)
    # Draws are float32 sums: what differs in their last bits is equal.
    near = 1e-6 * np.maximum(np.abs(estimates), 1e-3)[:, None]
    gap = draws - estimates[:, None]
    below = ((gap < -near).sum(axis=1) + 0.5 * (np.abs(gap) <= near).sum(axis=1)) / defined
    z0 = norm.ppf(below)
    z = z0[:, None] + norm.ppf([(1 - LEVEL) / 2, (1 + LEVEL) / 2])[None]
    with np.errstate(invalid="ignore"):
        levels = norm.cdf(z0[:, None] + z / (1 - acceleration(contributions)[:, None] * z))
    one_sided = ~np.isfinite(z0)
    return _quantiles(draws, np.where(one_sided[:, None], np.nan, levels))


def of_draws(
    method: str,
    draws: Float[np.ndarray, "q r"],
    estimates: Float[np.ndarray, "q"],
    contributions: Float[np.ndarray, "q g"] | None,
) -> Float[np.ndarray, "q 2"]:
    """(1) or (2) by name; `contributions` are read by "bca" alone."""
    if method == "bca" and contributions is not None:
        return bca(draws, estimates, contributions)
    if method != "percentile":
        raise ValueError(f"interval: got {method!r}; takes percentile, or bca with contributions")
    return percentile(draws)


def _z() -> float:
    from scipy.stats import norm

    return float(norm.ppf((1 + LEVEL) / 2))


def wilson(share: float, n: float) -> Interval:
    """(4): of a share in [0, 1] of n > 0 units; n need not be whole."""
    if not n > 0 or not 0 <= share <= 1:
        raise ValueError(f"a share of {share} of n = {n}; takes a share in [0, 1] of n > 0")
    z = _z()
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def effective_number(values: Float[np.ndarray, "n"], groups: Int[np.ndarray, "n"]) -> float:
    """How many independent units the mean of values in [0, 1] rests on (Rao and Scott, 1992).

    The images over the design effect, which is the variance of the mean between groups over what it
    would be of independent images; no fewer than the groups and no more than the images. The number
    of groups where all values are alike, which tells nothing of the design effect.
    """
    of = np.unique(groups, return_inverse=True)[1].reshape(-1)
    g, n = int(of.max()) + 1, len(values)
    gaps = values - values.mean()
    alone = n / (n - 1) * float((gaps**2).sum()) if n > 1 else 0.0
    if g in (1, n) or alone <= 1e-12:
        return float(g)
    together = g / (g - 1) * float((np.bincount(of, weights=gaps) ** 2).sum())
    return float(n) if together <= 1e-12 else float(np.clip(n * alone / together, g, n))


def auroc(area: float, positives: float, negatives: float) -> Interval:
    """(5): of an area in [0, 1] from numbers of positives and negatives above 0."""
    if not (positives > 0 and negatives > 0 and 0 <= area <= 1):
        raise ValueError(
            f"an AUROC of {area} of {positives} positives and {negatives} negatives; takes one in "
            "[0, 1] of both"
        )
    from scipy.optimize import brentq

    z, more = _z(), (positives + negatives) / 2 - 1

    def excess(theta: float) -> float:
        spread = (1 - theta) / (2 - theta) + theta / (1 + theta)
        variance = theta * (1 - theta) * (1 + more * spread) / (positives * negatives)
        return (area - theta) ** 2 - z**2 * max(variance, 0.0)

    solve = lambda a, b: float(brentq(excess, a, b, xtol=1e-10))  # type: ignore[arg-type]
    # At an area of 0 or 1 that end is a root of its own; the other root is the end sought.
    low = 0.0 if area == 0 else solve(0.0, min(area, 1 - 1e-9))
    return low, (1.0 if area == 1 else solve(max(area, 1e-9), 1.0))


def combination(
    parts: Sequence[tuple[float, Interval]],
    weights: Float[np.ndarray, "k"],
    correlation: Float[np.ndarray, "k k"],
) -> Interval:
    """(6): of a weighted sum of values, each with its interval."""
    p, ends = np.array([value for value, _ in parts]), np.array([ends for _, ends in parts])
    added, middle = weights > 0, float(weights @ p)
    down, up = p - ends[:, 0], ends[:, 1] - p
    gaps = weights * np.where(added, down, up), weights * np.where(added, up, down)
    below, above = (float(np.sqrt(max(gap @ correlation @ gap, 0.0))) for gap in gaps)
    return middle - below, middle + above


def mean_of(
    parts: Sequence[tuple[float, Interval]],
    correlation: Float[np.ndarray, "k k"] | None = None,
) -> Interval:
    """(6): of the mean of values in [0, 1], each with its interval; None: independent ones."""
    k = len(parts)
    r = np.eye(k) if correlation is None else correlation
    low, high = combination(parts, np.full(k, 1 / k), r)
    return max(0.0, low), min(1.0, high)


def share_of(
    hits: Float[np.ndarray, "n"], groups: Int[np.ndarray, "n"], among: Bool[np.ndarray, "n"]
) -> Interval | None:
    """Wilson's interval of the mean of `hits` in [0, 1] `among` some images; None without any."""
    if not among.any():
        return None
    mine = hits[among]
    return wilson(float(np.clip(mine.mean(), 0, 1)), effective_number(mine, groups[among]))

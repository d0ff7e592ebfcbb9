"""Tests of two classifiers on one test set or on folds, each with its estimate beside its p.

DeLong: with psi(x, y) = [x > y] + [x = y] / 2, the structural components of an AUROC are
  V10_i = mean_j psi(x_i, y_j) over negatives, V01_j = mean_i psi(x_i, y_j) over positives,   (1)
found from midranks without the n^2 comparisons (Sun and Xu, IEEE SPL 2014, equation 17), and
  cov(theta_r, theta_s) = S10_rs / m + S01_rs / n                                              (2)
with their covariances S over the m positives and n negatives (DeLong et al., Biometrics 1988).
Where groups hold several images the sums of (1) over a group's images take the place of (1), and a
group with both kinds adds a third term (Obuchowski, Biometrics 1997):
  D10_g = sum_{i in g} (V10_i - theta), D01_g likewise,
  cov = I10/(I10-1) sum D10 D10' / m^2 + I01/(I01-1) sum D01 D01' / n^2
        + I/(I-1) (sum D10 D01' + sum D01 D10') / (m n)                                        (3)
with I10, I01 and I the groups with positives, with negatives, and all. One image a group is (2).

McNemar: of b images that only the first has right and c that only the second has,
  exact  p = min(1, 2 P(X <= min(b, c))), X ~ Bin(b + c, 1/2)
  mid-p  the same less P(X = b), or 1 - P(X = b) / 2 where b = c (Fagerland et al., BMC Med Res
         Methodol 2013)
  chi2   (|b - c| - 1)^2 / (b + c), Edwards' correction, against chi-square with one degree   (4)
and for groups of several images, with d_g = b_g - c_g, (sum d_g)^2 / sum d_g^2 (Yang, Sun and
Hardin, Biom J 2010), which for one image a group is McNemar's without correction.

Folds: with differences d_j of J train-test splits, sizes n1 (train) and n2 (test),
  corrected resampled t = mean(d) / sqrt((1/J + n2/n1) var(d)), J - 1 degrees of freedom       (5)
(Nadeau and Bengio, Mach Learn 2003), and for five repetitions of two folds, p_i^(j)
  t = p_1^(1) / sqrt(sum_i s_i^2 / 5), 5 degrees (Dietterich, Neural Comput 1998)              (6)
  F = sum_ij (p_i^(j))^2 / (2 sum_i s_i^2), 10 and 5 degrees (Alpaydin, Neural Comput 1999).   (7)
`lt_jax.cross_validation` has (5) of its folds; (6) and (7) are for differences that were made by
five runs of it with `--folds=2` and other `data.split.seed`.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Float, Int

from lt_jax.evaluate.statistics.intervals import LEVEL, Interval

MCNEMAR = ("mid_p", "exact", "chi2")


@dataclasses.dataclass(frozen=True)
class DeLong:
    """Two AUROCs on the same images: first minus second.

    se is None with fewer than two groups of positives or of negatives. p is 1 where the two rank
    alike (difference and se 0), None where a difference has no variance to be held against.
    """

    auroc: tuple[float, float]
    difference: float
    se: float | None
    p: float | None
    ci95: Interval | None
    positives: int
    negatives: int
    groups: int
    p_holm: float | None = None
    p_bh: float | None = None


@dataclasses.dataclass(frozen=True)
class McNemar:
    """Images that one of two classifiers alone has right.

    odds_ratio: first over second, the conditional estimate; None without any of the second.
    odds_ci95: exact, with None for an infinite end; None altogether without discordant images and
    where groups hold several. n: images. groups: of them.
    """

    method: str
    first_only: int
    second_only: int
    odds_ratio: float | None
    odds_ci95: tuple[float, float | None] | None
    p: float
    n: int
    groups: int
    p_holm: float | None = None
    p_bh: float | None = None


@dataclasses.dataclass(frozen=True)
class FoldTest:
    """A test on differences between folds; p is 1 where all of them are 0.

    difference: their mean, but of `paired_t_5x2` the first of them; ci95 is around it. n: of them.
    p_holm, p_bh: corrected over a family, where it is part of one.
    """

    method: str
    difference: float
    statistic: float
    p: float
    ci95: Interval | None
    n: int
    p_holm: float | None = None
    p_bh: float | None = None


def components(
    scores: Float[np.ndarray, "s n"], positive: Bool[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "s"], Float[np.ndarray, "s m"], Float[np.ndarray, "s negatives"]]:
    """AUROC of each score, and its components (1) of positives and of negatives.

    Raises:
      ValueError: no positives, no negatives, or a score that is NaN.
    """
    m, n = int(positive.sum()), int((~positive).sum())
    if m == 0 or n == 0:
        raise ValueError(f"{m} positives and {n} negatives; an AUROC takes both")
    if np.isnan(scores).any():
        at = np.argwhere(np.isnan(scores))[0].tolist()
        raise ValueError(f"scores at {at} are NaN; take them from `metrics.softmax`")
    from scipy.stats import rankdata

    ranks = lambda x: rankdata(x, axis=1)
    together = ranks(scores)
    v10 = (together[:, positive] - ranks(scores[:, positive])) / n
    v01 = 1 - (together[:, ~positive] - ranks(scores[:, ~positive])) / m
    return v10.mean(axis=1), v10, v01


def delong_covariance(
    scores: Float[np.ndarray, "s n"],
    positive: Bool[np.ndarray, "n"],
    groups: Int[np.ndarray, "n"] | None = None,
) -> tuple[Float[np.ndarray, "s"], Float[np.ndarray, "s s"] | None]:
    """AUROCs of several scores of the same images, and their covariance by (2) or (3).

    Args:
      scores: higher for positives.
      positive: which images are.
      groups: codes of the images' groups; None: one image a group.

    Returns:
      AUROCs, and their covariance: None with fewer than two groups of either kind.

    Raises ValueError as `components` does.
    """
    theta, v10, v01 = components(scores, positive)
    m, n = v10.shape[1], v01.shape[1]
    of = np.arange(m + n) if groups is None else groups
    codes, of = np.unique(of, return_inverse=True)
    of_positives, of_negatives = of[positive], of[~positive]
    i10, i01 = len(np.unique(of_positives)), len(np.unique(of_negatives))
    if min(i10, i01) < 2:
        return theta, None
    d10, d01 = (
        np.stack([np.bincount(mine, weights=row, minlength=len(codes)) for row in part])
        for mine, part in (
            (of_positives, v10 - theta[:, None]),
            (of_negatives, v01 - theta[:, None]),
        )
    )
    cross = d10 @ d01.T
    covariance = i10 / (i10 - 1) * (d10 @ d10.T) / m**2 + i01 / (i01 - 1) * (d01 @ d01.T) / n**2
    covariance += len(codes) / (len(codes) - 1) * (cross + cross.T) / (m * n)
    return theta, covariance


def delong(
    first: Float[np.ndarray, "n"],
    second: Float[np.ndarray, "n"],
    positive: Bool[np.ndarray, "n"],
    groups: Int[np.ndarray, "n"] | None = None,
) -> DeLong:
    """Whether two scores of the same images have the same AUROC, two-sided, normal.

    Raises ValueError as `delong_covariance` does.
    """
    from scipy.stats import norm

    theta, covariance = delong_covariance(np.stack([first, second]), positive, groups)
    difference = float(theta[0] - theta[1])
    se = p = interval = None
    if covariance is not None:
        variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
        # What is left of equal components by rounding is no variance.
        se = math.sqrt(variance) if variance > 1e-14 else 0.0
        half = float(norm.ppf((1 + LEVEL) / 2)) * se
        interval = (difference - half, difference + half)
        if se > 0:
            p = float(2 * norm.sf(abs(difference) / se))
        elif abs(difference) < 1e-12:
            p = 1.0
        else:
            interval = None
    return DeLong(
        auroc=(float(theta[0]), float(theta[1])),
        difference=difference,
        se=se,
        p=p,
        ci95=interval,
        positives=int(positive.sum()),
        negatives=int((~positive).sum()),
        groups=len(positive) if groups is None else len(np.unique(groups)),
    )


def mcnemar(
    first: Bool[np.ndarray, "n"],
    second: Bool[np.ndarray, "n"],
    groups: Int[np.ndarray, "n"] | None = None,
    method: str = "mid_p",
) -> McNemar:
    """Whether two classifiers are right equally often on the same images, by (4).

    Args:
      first: which images the first has right.
      second: likewise.
      groups: codes of the images' groups. Where any holds several images the test is that for
        groups, `method` "groups", whatever was asked for.
      method: "mid_p", "exact" or "chi2".

    Returns:
      p is 1 without discordant images.
    """
    if method not in MCNEMAR:
        raise ValueError(f"mcnemar: got {method!r}; takes one of {', '.join(MCNEMAR)}")
    from scipy.stats import binom, chi2

    b, c = int((first & ~second).sum()), int((~first & second).sum())
    units = len(first) if groups is None else len(np.unique(groups))
    if groups is not None and units < len(first):
        method = "groups"
        d = np.bincount(groups, weights=first.astype(float) - second.astype(float))
        squares = float((d**2).sum())
        p = float(chi2.sf(d.sum() ** 2 / squares, 1)) if squares > 0 else 1.0
    elif b + c == 0:
        p = 1.0
    elif method == "chi2":
        p = float(chi2.sf(max(abs(b - c) - 1, 0) ** 2 / (b + c), 1))
    else:
        p = min(1.0, float(2 * binom.cdf(min(b, c), b + c, 0.5)))
        if method == "mid_p":
            p -= float(binom.pmf(b, b + c, 0.5)) * (0.5 if b == c else 1.0)
    odds = b / c if c else None
    ends = _odds(b, c) if b + c and method != "groups" else None
    return McNemar(method, b, c, odds, ends, p, len(first), units)


def _odds(b: int, c: int) -> tuple[float, float | None]:
    """Clopper and Pearson's interval of b / (b + c), as odds."""
    from scipy.stats import beta

    tail = (1 - LEVEL) / 2
    low = float(beta.ppf(tail, b, c + 1)) if b else 0.0
    high = float(beta.ppf(1 - tail, b + 1, c)) if c else 1.0
    return low / (1 - low), (high / (1 - high) if high < 1 else None)


def _student(difference: float, se: float, df: int) -> tuple[float, float, Interval]:
    """Statistic, two-sided p and interval; 0 over 0 is 0, another difference over 0 infinite."""
    from scipy.stats import t

    if se > 0:
        statistic = difference / se
    else:
        statistic = math.copysign(math.inf, difference) if difference else 0.0
    half = float(t.ppf((1 + LEVEL) / 2, df)) * se
    p = float(2 * t.sf(abs(statistic), df))
    return statistic, p, (difference - half, difference + half)


def corrected_resampled_t(
    differences: Float[np.ndarray, "j"], n_train: int, n_test: int
) -> FoldTest:
    """(5), for J random splits, or k folds (n_test / n_train = 1 / (k - 1)), repeated or not.

    Raises ValueError for fewer than two differences, a NaN (a class absent from a fold, say: give
    that fold a metric that is defined, or leave it out for both) or empty splits.
    """
    j = len(differences)
    _check_folds(differences, j >= 2, f"{j} differences; takes two or more")
    if n_train < 1 or n_test < 1:
        raise ValueError(f"n_train = {n_train}, n_test = {n_test}; takes one image or more of each")
    mean = float(differences.mean())
    se = math.sqrt((1 / j + n_test / n_train) * float(differences.var(ddof=1)))
    statistic, p, interval = _student(mean, se, j - 1)
    return FoldTest("corrected_resampled_t", mean, statistic, p, interval, j)


def paired_t_5x2(differences: Float[np.ndarray, "5 2"]) -> FoldTest:
    """(6); the difference, that of the statistic and the interval, is the first fold's alone."""
    _check_folds(differences, differences.shape == (5, 2), "takes five repetitions of two folds")
    variances = differences.var(axis=1, ddof=1)
    se = math.sqrt(float(variances.sum()) / 5)
    statistic, p, interval = _student(float(differences[0, 0]), se, 5)
    return FoldTest("paired_t_5x2", float(differences[0, 0]), statistic, p, interval, 10)


def combined_f_5x2(differences: Float[np.ndarray, "5 2"]) -> FoldTest:
    """(7); one-sided in F, so two-sided in the differences."""
    _check_folds(differences, differences.shape == (5, 2), "takes five repetitions of two folds")
    from scipy.stats import f

    squares, spread = float((differences**2).sum()), float(differences.var(axis=1, ddof=1).sum())
    statistic = squares / (2 * spread) if spread > 0 else (math.inf if squares else 0.0)
    p = float(f.sf(statistic, 10, 5))
    return FoldTest("combined_f_5x2", float(differences.mean()), statistic, p, None, 10)


def _check_folds(differences: np.ndarray, fits: bool, takes: str) -> None:
    if not fits:
        raise ValueError(f"differences of folds: got shape {differences.shape}; {takes}")
    if not np.isfinite(differences).all():
        at = np.argwhere(~np.isfinite(differences))[0].tolist()
        raise ValueError(
            f"differences of folds: that of fold {at} is not finite; was a class absent there?"
        )


def paired_effect(differences: Float[np.ndarray, "m"]) -> float | None:
    """Standardised paired effect: mean over deviation of the differences, times Hedges' factor.

    g_z = J(m - 1) mean(d) / sd(d), J(v) = Gamma(v/2) / (sqrt(v/2) Gamma((v-1)/2)), sd with m - 1 in
    the denominator (Cohen 1988, d_z; Hedges, J Educ Stat 1981). Its unit is the deviation of the
    *difference* between seeds, not of either arm: it says how far training noise is outdone, not
    how much the metric gains.

    Returns:
      None for fewer than three differences (J(1) is 0), a NaN, or no deviation.
    """
    m = len(differences)
    if m < 3 or not np.isfinite(differences).all():
        return None
    mean, deviation = float(differences.mean()), float(differences.std(ddof=1))
    if deviation <= 1e-12 * max(1.0, abs(mean)):
        return None
    v = m - 1
    factor = math.exp(math.lgamma(v / 2) - math.lgamma((v - 1) / 2)) / math.sqrt(v / 2)
    return factor * mean / deviation

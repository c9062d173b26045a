"""Hectares and accuracy of a map from checked pixels, each with a 95 % interval, and how many to check.

The pixels are a stratified random sample. A pixel that was checked stands for the ground of its stratum, so
no count of mapped pixels is taken for an estimate. Shape suffixes: N checked pixels, H strata, U units,
K classes ("none" is the last), R blocks of regions, D bootstrap draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cropray.evaluation.metrics import Counts, bootstrap
from cropray.types import BoolArray, DoubleArray, IndexArray

LEAST_IN_UNIT, LEAST_OF_CLASS = 30, 10
"""Checked pixels in a unit, and those of them that are mapped as a class or bear it, that an estimate needs:
intervals from fewer do not hold."""

# The variance of a stratum is drawn towards the mean of all strata with the weight of this many pixels. A
# stratum whose few pixels all agree would otherwise count as free of error, and intervals would be too short:
# docs/areas.md has the coverage.
_PRIOR_PIXELS = 6
_LEAST_SHARE = 1e-4  # of the land, for the effective number of pixels where an estimate is 0


@dataclass(frozen=True)
class Strata:
    """What there is to sample: pixels (H,) and hectares (H,) on the ellipsoid of each stratum."""

    pixels_h: IndexArray
    hectares_h: DoubleArray


@dataclass(frozen=True)
class Checked:
    """Checked pixels: stratum, hectares, class in the map and class on the ground, each (N,).

    Every stratum has at least two of them, or all of its pixels.
    """

    stratum_n: IndexArray
    hectares_n: DoubleArray
    mapped_n: IndexArray
    truth_n: IndexArray


@dataclass(frozen=True)
class Estimate:
    """Estimates of any shape with standard errors and 95 % intervals of the same shape."""

    value: DoubleArray
    se: DoubleArray
    low: DoubleArray
    high: DoubleArray


def class_hectares(
    checked: Checked, strata: Strata, mapped_uk: DoubleArray, inside_un: BoolArray
) -> tuple[Estimate, BoolArray]:
    """Hectares (U, K) of each class in each unit, and whether enough pixels were checked for each (U, K).

    `mapped_uk` are the mapped hectares, and `inside_un` says which checked pixels lie in which unit. The
    difference estimator adds to the mapped hectares what the sample finds them to be off by (Särndal,
    Swensson & Wretman 1992, Model Assisted Survey Sampling, section 6.3). Where every stratum lies within one
    mapped class, the sum over all land is the stratified estimator of Olofsson et al. (2014, section 4,
    doi:10.1016/j.rse.2014.02.015). It holds for any other map of the same land too, as the strata need not be
    the classes of the map: the values are indicator functions (Stehman 2014,
    doi:10.1080/01431161.2014.930207).
    """
    k = mapped_uk.shape[1]
    truth_nk, mapped_nk = _indicators(checked.truth_n, k), _indicators(checked.mapped_n, k)
    found = [_expand((truth_nk - mapped_nk) * inside_n[:, None], checked, strata) for inside_n in inside_un]
    off_uk, se_uk, t_uk = (np.stack(part) for part in zip(*found, strict=True))
    land_u1 = np.maximum(mapped_uk.sum(axis=1, keepdims=True), np.finfo(float).tiny)  # a unit may have none
    value_uk = np.clip(mapped_uk + off_uk, 0, land_u1)
    about_uk = inside_un.astype(np.intp) @ np.maximum(truth_nk, mapped_nk)
    enough_uk = (about_uk >= LEAST_OF_CLASS) & (inside_un.sum(axis=1, keepdims=True) >= LEAST_IN_UNIT)
    return _with_interval(value_uk, se_uk, t_uk, land_u1), enough_uk


def accuracy(checked: Checked, strata: Strata, n_classes: int) -> dict[str, Estimate]:
    """Overall accuracy (1,), and users' and producers' accuracy (K,); NaN where a class has no pixel.

    Users' accuracy: how much of what is mapped as a class is that class. Producers' accuracy: how much of a
    class is mapped as such. Both are ratios of totals (Stehman 2014, equations 27 and 28).
    """
    truth_nk, mapped_nk = (_indicators(each, n_classes) for each in (checked.truth_n, checked.mapped_n))
    right_nk = truth_nk * mapped_nk
    ones = np.ones((len(truth_nk), 1))
    return {
        "overall": _ratio(right_nk.sum(axis=1, keepdims=True), ones, checked, strata),
        "users": _ratio(right_nk, mapped_nk, checked, strata),
        "producers": _ratio(right_nk, truth_nk, checked, strata),
    }


def confusion_hectares(checked: Checked, strata: Strata, n_classes: int) -> DoubleArray:
    """Estimated hectares (K, K) by mapped class (row) and class on the ground (column)."""
    cell_n = checked.mapped_n * n_classes + checked.truth_n
    total, _, _ = _expand(_indicators(cell_n, n_classes**2), checked, strata)
    return total.reshape(n_classes, n_classes)


def calibrated(mapped_k: DoubleArray, counts_rkk: Counts, *, draws: int, seed: int) -> Estimate:
    """Hectares (K,) without a sample: the mapped ones divided as in the confusion of held-out regions.

    Of what is mapped as class j, class k gets its share of j's column in `counts_rkk` (truth in rows).
    The interval is from a bootstrap of the blocks of regions. It knows nothing of how the mapped land differs
    from those regions, so it is no design-based interval, and may be far too short.
    """
    total_kk = counts_rkk.sum(axis=0)
    values_dk = np.stack([_divided(mapped_k, each) for each in bootstrap(counts_rkk, draws, seed)])
    low_k, high_k = np.quantile(values_dk, [0.025, 0.975], axis=0)
    return Estimate(_divided(mapped_k, total_kk), values_dk.std(axis=0), low_k, high_k)


def plan_sample(
    strata: Strata, rates_hk: DoubleArray, wanted_se_k: DoubleArray, *, least: int, size: int | None = None
) -> tuple[IndexArray, DoubleArray]:
    """How many pixels of each stratum to check (H,), and the standard errors (K,) in hectares to expect.

    `rates_hk` are the shares of the classes that are expected on the ground of a stratum. The number is the
    smallest with no more than the wanted standard errors (inf: of no interest), or `size`. It is divided by
    Neyman's allocation for the sum of the relative variances, with at least `least` pixels a stratum: this is
    equation 13 of Olofsson et al. (2014) for hectares of several classes instead of one accuracy.
    """
    variance_hk = rates_hk * (1 - rates_hk)
    importance_h = strata.hectares_h * np.sqrt((variance_hk / wanted_se_k**2).sum(axis=1))
    share_h = importance_h / importance_h.sum()

    def allocated(number: int) -> IndexArray:
        points_h: IndexArray = np.maximum(np.rint(share_h * number).astype(np.intp), least)
        return np.minimum(points_h, strata.pixels_h)

    def expected(points_h: IndexArray) -> DoubleArray:
        scale_h = strata.hectares_h**2 * (1 - points_h / strata.pixels_h) / points_h
        return np.asarray(np.sqrt(scale_h @ variance_hk))

    if size is not None:
        low, high = 0, size  # what the least of each stratum takes is not left for the others
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if allocated(middle).sum() <= size else (low, middle - 1)
        return allocated(low), expected(allocated(low))
    divided = share_h > 0
    low, high = 0, int((strata.pixels_h[divided] / share_h[divided]).max()) + 1  # with it, every pixel
    while low < high:
        middle = (low + high) // 2
        enough = bool((expected(allocated(middle)) <= wanted_se_k).all())
        low, high = (low, middle) if enough else (middle + 1, high)
    return allocated(low), expected(allocated(low))


def _indicators(values_n: IndexArray, n_values: int) -> DoubleArray:
    return np.eye(n_values)[values_n]


def _expand(
    values_nk: DoubleArray, checked: Checked, strata: Strata
) -> tuple[DoubleArray, DoubleArray, DoubleArray]:
    """Totals (K,) over all land of values per hectare, their standard errors, and Student's t for 95 %.

    Within a stratum the mean is weighted by the hectares of the pixels, which differ a little in most CRSs: a
    ratio estimator with the known hectares of the stratum (Cochran 1977, Sampling Techniques, section 6.11).
    The degrees of freedom are Satterthwaite's (Cochran 1977, equation 5.16).
    """
    from scipy.stats import t as student  # a second, which each process of a prediction would pay

    member_hn = _indicators(checked.stratum_n, len(strata.pixels_h)).T
    n_h, hectares_n = member_hn.sum(axis=1), checked.hectares_n[:, None]
    sampled_h = (member_hn @ hectares_n)[:, 0]
    mean_hk = member_hn @ (hectares_n * values_nk) / sampled_h[:, None]
    typical_n = (sampled_h / n_h)[checked.stratum_n]
    residual_nk = hectares_n / typical_n[:, None] * (values_nk - mean_hk[checked.stratum_n])
    free_h = np.maximum(n_h - 1, 1)[:, None]
    variance_hk = member_hn @ residual_nk**2 / free_h
    pooled_k = strata.hectares_h @ variance_hk / strata.hectares_h.sum()
    variance_hk = (free_h * variance_hk + _PRIOR_PIXELS * pooled_k) / (free_h + _PRIOR_PIXELS)
    scale_h = strata.hectares_h**2 * (1 - n_h / strata.pixels_h) / n_h
    parts_hk = scale_h[:, None] * variance_hk
    total_k, spread_k = strata.hectares_h @ mean_hk, parts_hk.sum(axis=0)
    with np.errstate(invalid="ignore"):
        freedom_k = spread_k**2 / (parts_hk**2 / free_h).sum(axis=0)
    return total_k, np.sqrt(spread_k), student.ppf(0.975, np.nan_to_num(freedom_k, nan=np.inf))


def _ratio(y_nk: DoubleArray, x_nk: DoubleArray, checked: Checked, strata: Strata) -> Estimate:
    """Ratios R (K,) of two totals; the variance is that of the residuals y - R x (Stehman 2014, eq. 28)."""
    y_k, x_k = (_expand(each, checked, strata)[0] for each in (y_nk, x_nk))
    with np.errstate(invalid="ignore", divide="ignore"):
        value_k = y_k / x_k
        _, se_k, t_k = _expand(y_nk - np.nan_to_num(value_k) * x_nk, checked, strata)
        return _with_interval(value_k, se_k / x_k, t_k, np.ones(1))


def _with_interval(value: DoubleArray, se: DoubleArray, t: DoubleArray, most: DoubleArray) -> Estimate:
    """Estimates between 0 and `most` with Wilson's interval for an effective number of pixels.

    A symmetric interval would hold small areas too rarely, since their estimates are skewed (Franco et al.
    2019, doi:10.1093/jssam/smy019).
    """
    p = np.minimum(value / most, 1)
    around = np.clip(p, _LEAST_SHARE, 1 - _LEAST_SHARE)
    n = around * (1 - around) / np.maximum((se / most) ** 2, 1e-12)
    centre, half = p + t**2 / (2 * n), t * np.sqrt(p * (1 - p) / n + t**2 / (4 * n**2))
    low, high = ((centre + side * half) / (1 + t**2 / n) for side in (-1, 1))
    low = np.where(value > t * se, low, 0)  # a difference above 0 may be one of 0
    return Estimate(value, se, low * most, np.minimum(high, 1) * most)


def _divided(mapped_k: DoubleArray, counts_kk: npt.NDArray[np.int64]) -> DoubleArray:
    """Mapped hectares divided among the true classes; a class that the regions never show stays as mapped."""
    seen_k = counts_kk.sum(axis=0)
    shares_kk = np.where(seen_k > 0, counts_kk / np.maximum(seen_k, 1), np.eye(len(seen_k)))
    return np.asarray(shares_kk @ mapped_k)

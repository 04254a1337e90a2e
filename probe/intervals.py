"""Uncertainty of the metrics: cluster bootstrap, DeLong, paired comparisons, permutation tests, Holm.

Patches of one slide are not independent, so whole slides (clusters) are drawn: a resample is a count
for each cluster, `metrics.evaluate` scores all of them at once, and every model and metric sees the same
resamples, which makes the draws of two models paired. A row without a group ("", None, NaN) is its own
cluster. The model and its threshold are given, not refitted: the intervals say how the score would vary
over slides, not over trainings.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from ..errors import InvalidRequest, ProbeError
from .metrics import METRICS, Scale, check_labels, check_names, evaluate

Floats = NDArray[np.float64]
Method = Literal["bca", "percentile", "jackknife"]

METHODS: tuple[Method, ...] = ("bca", "percentile", "jackknife")

_BLOCK_WEIGHTS = 1 << 24  # 128 MiB of float64 weights (resamples x clusters) at once

DEFAULT_METRICS = ("balanced_accuracy", "auroc", "average_precision")


def cluster_codes(groups: ArrayLike | None, n: int) -> NDArray[np.intp]:
    """Integer codes (n,), 0 .. G-1, of the groups in order of first appearance.

    groups : strings, integers or anything pandas can compare, (n,); "", None and NaN stand for a row
        that is its own cluster. None: all rows are.
    """
    if groups is None:
        return np.arange(n)
    column = pd.Series(np.asarray(groups), dtype=object)
    if len(column) != n:
        raise InvalidRequest(f"{len(column)} groups for {n} rows")
    alone = (column.isna() | (column == "")).to_numpy(bool)
    keys = [(True, i) if alone[i] else (False, name) for i, name in enumerate(column)]
    return np.asarray(pd.factorize(pd.Series(keys, dtype=object))[0], np.intp)


def cluster_weights(
    n_clusters: int, *, n_resamples: int = 2000, seed: int | np.random.Generator
) -> NDArray[np.uint16]:
    """Counts (n_resamples, n_clusters) of clusters drawn with replacement, each row summing to n_clusters.

    The draws are those of scipy.stats.bootstrap for the same seed (`rng.integers`, one row a resample). A
    Generator goes on where it stands, so that blocks of resamples are those of one call.
    """
    if n_clusters < 2:
        raise ProbeError(f"{n_clusters} cluster cannot be resampled: an interval needs at least two slides")
    drawn = np.random.default_rng(seed).integers(0, n_clusters, (n_resamples, n_clusters))
    drawn += np.arange(n_resamples)[:, None] * n_clusters
    counts = np.bincount(drawn.ravel(), minlength=n_resamples * n_clusters)
    return counts.reshape(n_resamples, n_clusters).astype(np.uint16)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """One metric of m models with its interval. Arrays are float64 (m,) unless said otherwise."""

    metric: str
    value: Floats
    low: Floats
    high: Floats
    standard_error: Floats
    """Of the method: standard deviation of the defined draws (ddof 1), or the jackknife's."""
    degrees_of_freedom: Floats
    """Of the jackknife's standard error (see `bootstrap`); inf for the other methods."""
    undefined: NDArray[np.intp]
    """Resamples in which the metric is undefined (a class was not drawn); they are left out."""
    method: NDArray[np.str_]
    """The method that was used, which is "percentile" where another is impossible (see `bootstrap`), or
    "none" where the value is undefined."""
    asked: Method
    """The method that was asked for."""
    confidence: float
    draws: Floats
    """(n_resamples, m); NaN where undefined."""
    jackknife: Floats | None
    """(G, m), the metric without each cluster; None if only percentiles were asked for."""


@dataclass(frozen=True, kw_only=True)
class Intervals(Mapping[str, Interval]):
    """Intervals by metric name, and how they were made."""

    intervals: Mapping[str, Interval]
    n_rows: int
    n_clusters: int
    n_resamples: int
    seed: int

    def __getitem__(self, metric: str) -> Interval:
        return self.intervals[metric]

    def __iter__(self) -> Iterator[str]:
        return iter(self.intervals)

    def __len__(self) -> int:
        return len(self.intervals)


def bootstrap(
    y: ArrayLike,
    scores: ArrayLike,
    *,
    groups: ArrayLike | None,
    metrics: Iterable[str] = DEFAULT_METRICS,
    threshold: ArrayLike = 0.5,
    method: Method = "bca",
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int,
) -> Intervals:
    """Cluster bootstrap intervals of several metrics of m models, all on the same resamples.

    y : (n,) 0 or 1; scores : (n,) or (n, m); threshold : one number or (m,), fixed
    groups : (n,) slide of each row, see `cluster_codes`; None: rows are independent
    method : "percentile": quantiles of the draws.
        "bca": bias-corrected and accelerated, the acceleration from the jackknife over clusters (Efron &
        Tibshirani 1993, eq. 14.9-14.15; half of the ties count as below, as in scipy).
        "jackknife": value -+ t x the cluster jackknife's standard error on the metric's `scale` (by the delta
        method), with Satterthwaite's degrees of freedom of that variance, 2 G / (kurtosis of the jackknife
        values - 1) and at most G - 1: few clusters, or some that weigh much more than others, make it wider.
        The draws serve comparisons only.
        Where a metric is undefined without one of the clusters, or all draws lie on one side of the value,
        "bca" and "jackknife" give way to "percentile", and `Interval.method` says so.
    confidence : between 0 and 1, two-sided

    Simulated with 20 to 150 slides of very unequal size (tests/benchmarks/stats_coverage.py), 95 % intervals
    held the truth in .85-.92 (bca), .89-.93 (percentile) and .92-.97 (jackknife) of 400 studies, where
    intervals over rows held it in .61-.84; with 300 independent rows all did in .93-.97.
    A value that no cluster changes, such as a perfect score, has an interval of no width by every method.
    A resample in which a metric is undefined is left out for this metric and counted in
    `Interval.undefined`; the interval then is conditional on both classes being drawn.
    Raises as `metrics.evaluate`, and ProbeError for fewer than two clusters.
    """
    names = check_names(metrics)

    def score(weights: NDArray[Any] | None, codes: NDArray[np.intp]) -> dict[str, Any]:
        return evaluate(y, scores, metrics=names, threshold=threshold, weights=weights, groups=codes)

    return bootstrap_function(
        score,
        scales={name: METRICS[name].scale for name in names},
        n_rows=len(np.asarray(y)),
        groups=groups,
        method=method,
        confidence=confidence,
        n_resamples=n_resamples,
        seed=seed,
    )


def bootstrap_function(
    score: Callable[[NDArray[Any] | None, NDArray[np.intp]], Mapping[str, Any]],
    *,
    n_rows: int,
    groups: ArrayLike | None,
    scales: Mapping[str, Scale] = MappingProxyType({}),
    method: Method = "bca",
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int,
) -> Intervals:
    """`bootstrap` of anything that can be weighted: means over fold models, soft labels, multiclass.

    score : (weights, codes) -> {name: values}; weights None or (B, G), codes int (n_rows,) as the
        arguments `weights` and `groups` of `metrics.evaluate`; values (m,) or (B, m), the m may be absent
    scales : for method "jackknife", name -> scale of its interval; "linear" where there is none
    The rest, and what is raised, as for `bootstrap`.
    """
    if method not in METHODS:
        raise InvalidRequest(f"method is one of {', '.join(METHODS)}, not {method!r}")
    if not 0 < confidence < 1:
        raise InvalidRequest(f"confidence lies between 0 and 1, not {confidence}")
    codes = cluster_codes(groups, n_rows)
    n_clusters = int(codes.max(initial=-1)) + 1
    rng = np.random.default_rng(seed)

    def scored(n: int, weights: Callable[[int, int], NDArray[Any]]) -> dict[str, Floats]:
        """Values (n, m) of n reweightings, of which weights(start, stop) makes a part."""
        step = max(1, _BLOCK_WEIGHTS // max(1, n_clusters))
        parts = [score(weights(i, min(i + step, n)), codes) for i in range(0, n, step)]
        return {
            k: np.concatenate([np.asarray(p[k], np.float64) for p in parts]).reshape(n, -1) for k in parts[0]
        }

    def without_one(start: int, stop: int) -> NDArray[Any]:
        return (np.arange(start, stop)[:, None] != np.arange(n_clusters)).astype(np.float64)

    values = score(None, codes)
    draws = scored(n_resamples, lambda i, j: cluster_weights(n_clusters, n_resamples=j - i, seed=rng))
    jackknife = scored(n_clusters, without_one) if method != "percentile" else {}
    return Intervals(
        intervals={
            name: _interval(
                name,
                np.asarray(value, np.float64).reshape(-1),
                draws[name],
                jackknife.get(name),
                confidence,
                method,
                scales.get(name, "linear"),
            )
            for name, value in values.items()
        },
        n_rows=n_rows,
        n_clusters=n_clusters,
        n_resamples=n_resamples,
        seed=seed,
    )


def _interval(
    metric: str,
    value: Floats,
    draws: Floats,
    jackknife: Floats | None,
    confidence: float,
    method: Method,
    scale: Scale,
) -> Interval:
    low, high, error = (np.full(len(value), np.nan) for _ in range(3))
    freedom = np.full(len(value), np.inf)
    undefined = np.isnan(draws).sum(axis=0)
    methods = np.full(len(value), "none", dtype="<U10")
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    for j in np.flatnonzero(~np.isnan(value)):
        drawn = draws[~np.isnan(draws[:, j]), j]
        if len(drawn) < 2:
            continue
        left_out = np.array([np.nan]) if jackknife is None else jackknife[:, j]
        possible = not np.isnan(left_out).any()
        if method == "jackknife" and possible:
            methods[j] = method
            error[j], freedom[j] = _jackknife_error(left_out)
            half = stats.t.ppf(tails[1], freedom[j]) * error[j]
            low[j], high[j] = _spread(float(value[j]), half, scale)
            continue
        levels = _bca_levels(value[j], drawn, left_out, tails) if method == "bca" and possible else None
        methods[j] = "percentile" if levels is None else "bca"
        low[j], high[j] = np.quantile(drawn, tails if levels is None else levels)
        error[j] = drawn.std(ddof=1)
    return Interval(
        metric=metric,
        value=value,
        low=low,
        high=high,
        standard_error=error,
        degrees_of_freedom=freedom,
        undefined=undefined,
        method=methods,
        asked=method,
        confidence=confidence,
        draws=draws,
        jackknife=jackknife,
    )


def _jackknife_error(left_out: Floats) -> tuple[float, float]:
    """Standard error from the values without each cluster, and the degrees of freedom of its square.

    The relative variance of a variance estimate is (kurtosis - 1) / G, and 2 / df of a chi-square's. The
    kurtosis of few values is too small, hence the bound of the normal case."""
    n = len(left_out)
    influence = left_out - left_out.mean()
    total = float((influence**2).sum())
    if total <= (1e-14 * np.abs(left_out).max()) ** 2 * n:
        return 0.0, n - 1
    excess = n * float((influence**4).sum()) / total**2 - 1
    freedom = n - 1 if excess * (n - 1) <= 2 * n else 2 * n / excess
    return np.sqrt((n - 1) / n * total), freedom


def _spread(value: float, half: float, scale: Scale) -> tuple[float, float]:
    """value -+ half, which is on the value's own scale, made symmetric on another one."""
    if half == 0 or scale == "linear":
        return value - half, value + half
    sides = np.array([-1.0, 1.0])
    if scale == "log":
        low, high = value * np.exp(sides * half / value) if value > 0 else (value, value + half)
    elif scale == "fisher":
        inner = 1 - value**2
        low, high = np.tanh(np.arctanh(value) + sides * half / inner) if inner > 0 else (value, value)
    else:
        inner = value * (1 - value)
        low, high = (
            special.expit(special.logit(value) + sides * half / inner) if inner > 0 else (value, value)
        )
    return float(low), float(high)


def _bca_levels(value: float, drawn: Floats, jackknife: Floats, tails: Floats) -> Floats | None:
    """The two quantile levels; None where the correction is not finite."""
    below = (np.count_nonzero(drawn < value) + np.count_nonzero(drawn <= value)) / (2 * len(drawn))
    if not 0 < below < 1:
        return None
    influence = jackknife.mean() - jackknife
    spread = float((influence**2).sum())
    acceleration = float((influence**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    bias = stats.norm.ppf(below)
    shifted = bias + stats.norm.ppf(tails)
    slope = 1 - acceleration * shifted
    if (slope <= 0).any():
        return None
    return stats.norm.cdf(bias + shifted / slope)


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Paired differences (first minus second) of k pairs of models. Arrays are float64 (k,)."""

    metric: str
    pairs: NDArray[np.intp]
    """(k, 2), columns of `scores`."""
    difference: Floats
    low: Floats
    high: Floats
    standard_error: Floats
    p: Floats
    """Two-sided; how it was made is in `p_method`. NaN where the difference is undefined."""
    p_holm: Floats
    """Adjusted over the k pairs (Holm 1979); NaNs take no part."""
    p_method: str
    undefined: NDArray[np.intp]
    """Draws left out, as in `Interval`."""


def compare(
    interval: Interval,
    *,
    pairs: Iterable[tuple[int, int]] | None = None,
    reference: int | None = None,
    p_value: Literal["shifted", "standard_error"] = "shifted",
) -> Differences:
    """Paired cluster bootstrap of the differences of one metric between models.

    interval : from `bootstrap`, whose draws are paired; method and confidence are taken from it (a
        "jackknife" interval of a difference is on the linear scale)
    pairs : columns (first, second); None: all against `reference` if given, else all pairs i < j
    p_value : "shifted": the draws of the difference, shifted to mean no difference, reach the observed
        one, (1 + #{|d* - d| >= |d|}) / (1 + B) (Efron & Tibshirani 1993, sec. 16.4); it cannot be below
        1 / (1 + B), so k pairs under Holm need B well above 20 k. "standard_error": the difference over its
        standard error, as Student's t with the jackknife's degrees of freedom if the method is "jackknife",
        else as a standard normal; without that floor.
    """
    m = len(interval.value)
    chosen = _pairs(m, pairs, reference)
    first, second = chosen.T
    value = interval.value[first] - interval.value[second]
    draws = interval.draws[:, first] - interval.draws[:, second]
    kept = interval.jackknife
    without = None if kept is None else kept[:, first] - kept[:, second]
    method: Method = "percentile" if kept is None else "jackknife" if interval.asked == "jackknife" else "bca"
    found = _interval(interval.metric, value, draws, without, interval.confidence, method, "linear")
    if p_value == "shifted":
        reached = np.abs(draws - value) >= np.abs(value) - 1e-12  # NaN compares as False
        p = (1 + reached.sum(axis=0)) / (1 + (~np.isnan(draws)).sum(axis=0))
        p = np.where(np.isnan(value), np.nan, p)
        how = "bootstrap, draws shifted to no difference"
    elif p_value == "standard_error":
        p = _tail(value, found.standard_error, found.degrees_of_freedom)
        how = "difference over its standard error, "
        how += "Student's t" if method == "jackknife" else "standard normal"
    else:
        raise InvalidRequest(f"p_value is 'shifted' or 'standard_error', not {p_value!r}")
    return Differences(
        metric=interval.metric,
        pairs=chosen,
        difference=value,
        low=found.low,
        high=found.high,
        standard_error=found.standard_error,
        p=p,
        p_holm=holm(p),
        p_method=how,
        undefined=found.undefined,
    )


def _pairs(m: int, pairs: Iterable[tuple[int, int]] | None, reference: int | None) -> NDArray[np.intp]:
    if pairs is not None:
        chosen = np.array(list(pairs), np.intp).reshape(-1, 2)
    elif reference is not None:
        chosen = np.array([(i, reference) for i in range(m) if i != reference], np.intp).reshape(-1, 2)
    else:
        chosen = np.stack(np.triu_indices(m, 1), axis=1)
    if chosen.size and not (chosen.min() >= 0 and chosen.max() < m):
        raise InvalidRequest(f"pairs are columns 0 .. {m - 1}")
    return chosen


def _tail(difference: Floats, error: Floats, freedom: ArrayLike = np.inf) -> Floats:
    """Two-sided p of Student's t; 1 where nothing varies and nothing differs, 0 where it differs always by
    the same."""
    still = error <= 1e-12
    z = np.divide(difference, error, out=np.where(np.abs(difference) > 1e-12, np.inf, 0.0), where=~still)
    return np.where(np.isnan(difference), np.nan, 2 * stats.t.sf(np.abs(z), freedom))


def holm(p: ArrayLike) -> Floats:
    """Holm's step-down adjusted p-values (Holm 1979), in the order given; NaNs stay and do not count."""
    p = np.asarray(p, np.float64)
    adjusted = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted


@dataclass(frozen=True, kw_only=True)
class DeLong:
    """AUROCs (m,) of m models on the same rows and their covariance (m, m)."""

    auroc: Floats
    covariance: Floats
    clustered: bool

    def interval(
        self, confidence: float = 0.95, *, scale: Literal["logit", "linear"] = "logit"
    ) -> tuple[Floats, Floats]:
        """Low and high (m,): normal on the logit scale (stays in (0, 1)) or linear, clipped to [0, 1].

        An AUROC of exactly 0 or 1 has no estimable variance: the interval is that point, too narrow."""
        z = stats.norm.ppf((1 + confidence) / 2)
        error = np.sqrt(np.diag(self.covariance))
        if scale == "linear":
            return np.clip(self.auroc - z * error, 0, 1), np.clip(self.auroc + z * error, 0, 1)
        if scale != "logit":
            raise InvalidRequest(f"scale is 'logit' or 'linear', not {scale!r}")
        inner = (self.auroc > 0) & (self.auroc < 1)
        a = np.where(inner, self.auroc, 0.5)
        low, high = (special.expit(special.logit(a) + side * error / (a * (1 - a))) for side in (-z, z))
        return np.where(inner, low, self.auroc), np.where(inner, high, self.auroc)

    def compare(
        self,
        *,
        pairs: Iterable[tuple[int, int]] | None = None,
        reference: int | None = None,
        confidence: float = 0.95,
    ) -> Differences:
        """Differences of AUROC with linear normal intervals and DeLong's test; pairs as in `compare`."""
        chosen = _pairs(len(self.auroc), pairs, reference)
        i, j = chosen.T
        c = self.covariance
        value = self.auroc[i] - self.auroc[j]
        error = np.sqrt(np.maximum(c[i, i] + c[j, j] - 2 * c[i, j], 0))
        z = stats.norm.ppf((1 + confidence) / 2)
        p = _tail(value, error)
        return Differences(
            metric="auroc",
            pairs=chosen,
            difference=value,
            low=value - z * error,
            high=value + z * error,
            standard_error=error,
            p=p,
            p_holm=holm(p),
            p_method="DeLong, clustered (Obuchowski 1997)" if self.clustered else "DeLong 1988",
            undefined=np.zeros(len(chosen), np.intp),
        )


def delong(y: ArrayLike, scores: ArrayLike, *, groups: ArrayLike | None = None) -> DeLong:
    """Covariance of correlated AUROCs without resampling, O(m n log n).

    y : (n,) 0 or 1, at least two of each; scores : (n,) or (n, m)
    groups : None: rows are independent (DeLong, DeLong & Clarke-Pearson, Biometrics 1988, by the midranks of
        Sun & Xu, IEEE Signal Processing Letters 2014). (n,): Obuchowski, Biometrics 1997, which adds
        what the rows of one cluster share; see `cluster_codes` for rows without a group. With every row its
        own cluster the two are the same.
    Raises ProbeError with fewer than two rows (clusters) of a class.
    """
    labels = check_labels(y)
    table = np.asarray(scores, np.float64)
    table = table[:, None] if table.ndim == 1 else table
    n_positive = int(labels.sum())
    n_negative = len(labels) - n_positive
    codes = cluster_codes(groups, len(labels))
    n_clusters = int(codes.max()) + 1
    with_positive, with_negative = (len(np.unique(codes[of])) for of in (labels, ~labels))
    if min(with_positive, with_negative) < 2:
        raise ProbeError(
            f"DeLong needs two clusters (rows) of each class: {with_positive} have positives, "
            f"{with_negative} have negatives"
        )
    values = evaluate(labels, table, metrics=["auroc"])["auroc"]  # checks the scores too
    everyone = stats.rankdata(table, axis=0)
    # the share of the other class that a row beats, ties half
    placement = np.empty_like(everyone)
    placement[labels] = (everyone[labels] - stats.rankdata(table[labels], axis=0)) / n_negative
    placement[~labels] = 1 - (everyone[~labels] - stats.rankdata(table[~labels], axis=0)) / n_positive
    centred = placement - values
    sums = np.zeros((2, n_clusters, table.shape[1]))
    np.add.at(sums[1], codes[labels], centred[labels])
    np.add.at(sums[0], codes[~labels], centred[~labels])
    s10 = sums[1].T @ sums[1] * with_positive / (with_positive - 1) / n_positive**2
    s01 = sums[0].T @ sums[0] * with_negative / (with_negative - 1) / n_negative**2
    s11 = sums[1].T @ sums[0] * n_clusters / (n_clusters - 1) / (n_positive * n_negative)
    return DeLong(auroc=values, covariance=s10 + s01 + s11 + s11.T, clustered=groups is not None)


def permutation_test(
    y: ArrayLike,
    scores: ArrayLike,
    *,
    metric: str,
    groups: ArrayLike | None,
    pairs: Sequence[tuple[int, int]] | None = None,
    reference: int | None = None,
    threshold: ArrayLike = 0.5,
    n_permutations: int = 9999,
    seed: int,
) -> Differences:
    """Paired permutation test: under no difference the two models' scores may be swapped in any cluster.

    Arguments as for `bootstrap` and `compare`. What is swapped has to be on one scale: ranks within each
    model for metrics of order, the calls at each model's threshold for metrics of a threshold,
    probabilities as they are. For a mean over clusters this is the sign-flip test.
    p = (1 + #{|d*| >= |d|}) / (1 + n_permutations), or exact over all 2^G swaps if they are no more than
    n_permutations + 1. `low`, `high` are NaN: a test has no interval. `standard_error` is that under the
    hypothesis.
    """
    check_names([metric])
    labels = check_labels(y)
    table = np.asarray(scores, np.float64)
    if table.ndim != 2 or table.shape[0] != len(labels):
        raise InvalidRequest(f"scores {table.shape} for {len(labels)} labels: have to be (n, m), m >= 2")
    observed = evaluate(labels, table, metrics=[metric], threshold=threshold)[metric]
    needs = METRICS[metric].needs
    if needs == "score":
        table = stats.rankdata(table, axis=0)
    elif needs == "threshold":
        table = (table >= np.asarray(threshold)).astype(np.float64)
    codes = cluster_codes(groups, len(labels))
    n_clusters = int(codes.max()) + 1
    exact = n_clusters < 31 and 2**n_clusters <= n_permutations + 1
    if exact:
        swaps = (np.arange(2**n_clusters)[:, None] >> np.arange(n_clusters)) & 1
    else:
        swaps = np.random.default_rng(seed).integers(0, 2, (n_permutations, n_clusters), dtype=np.uint8)
    chosen = _pairs(table.shape[1], pairs, reference)
    p, error = np.full(len(chosen), np.nan), np.full(len(chosen), np.nan)
    difference = observed[chosen[:, 0]] - observed[chosen[:, 1]]
    step = max(1, (1 << 22) // n_clusters)
    for k in np.flatnonzero(~np.isnan(difference)):
        i, j = chosen[k]
        # rows of both models in one sample: a swap is a choice of the clusters' weights 0 and 1
        both = np.concatenate([table[:, [i, j]], table[:, [j, i]]])
        drawn = []
        for start in range(0, len(swaps), step):
            swap = swaps[start : start + step]
            found = evaluate(
                np.tile(labels, 2),
                both,
                metrics=[metric],
                weights=np.concatenate([1 - swap, swap], axis=1),
                groups=np.concatenate([codes, codes + n_clusters]),
            )[metric]
            drawn.append(found[:, 0] - found[:, 1])
        null = np.concatenate(drawn)
        reached = np.count_nonzero(np.abs(null) >= abs(difference[k]) - 1e-12)
        p[k] = reached / len(null) if exact else (1 + reached) / (1 + len(null))
        error[k] = null.std()
    nothing = np.full(len(chosen), np.nan)
    return Differences(
        metric=metric,
        pairs=chosen,
        difference=difference,
        low=nothing,
        high=nothing,
        standard_error=error,
        p=p,
        p_holm=holm(p),
        p_method=f"{'all' if exact else 'random'} {len(swaps)} swaps of clusters",
        undefined=np.zeros(len(chosen), np.intp),  # a swap leaves the labels as they are
    )

"""Uncertainty of the metrics: jackknife and bootstrap over clusters, DeLong, paired comparisons, Holm.

Patches of one slide are not independent, so whole slides (clusters) are left out or drawn, and every model
and metric sees the same ones, which makes two models' values paired. A row without a group ("", None, NaN) is
its own cluster. The model and its threshold are given, not refitted: the intervals say how the score would
vary over slides, not over trainings.

No interval has width zero, and no p is 0: where the data cannot say how a value would vary there is none,
with the reason in words. Two models are compared by `compare_paired`, everywhere.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from ...errors import InvalidRequest, ProbeError
from .metrics import METRICS, Scale, check_labels, check_names, evaluate, leave_one_out, placements

Floats = NDArray[np.float64]
Method = Literal["bca", "percentile", "jackknife"]

METHODS: tuple[Method, ...] = ("bca", "percentile", "jackknife")

_BLOCK_WEIGHTS = 1 << 24  # 128 MiB of float64 weights (resamples x clusters) at once

DEFAULT_METRICS = ("balanced_accuracy", "auroc", "average_precision")
UNDEFINED_DRAWS = 0.01  # share of undefined draws above which a bootstrap has no interval
FEW_CLUSTERS = 10  # with fewer clusters of a class, a comparison's p is by permutation
STILL = "not estimable: no group changes the value"


def cluster_codes(groups: ArrayLike | None, n: int) -> NDArray[np.intp]:
    """Integer codes (n,), 0 .. G-1, of the groups in order of first appearance.

    groups : strings, integers or anything pandas can compare, (n,); "", None and NaN stand for a row
        that is its own cluster. None: all rows are.
    """
    if groups is None:
        return np.arange(n)
    given = np.asarray(groups)
    if given.shape != (n,):
        raise InvalidRequest(f"groups {given.shape} for {n} rows: one a row")
    if given.dtype.kind in "iu":
        return np.asarray(pd.factorize(given)[0], np.intp)
    column = pd.Series(given, dtype=object)
    alone = (column.isna() | (column == "")).to_numpy(bool)
    named = pd.factorize(column.where(~alone))[0]
    return np.asarray(pd.factorize(np.where(alone, n + np.arange(n), named))[0], np.intp)


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
class Clusters:
    """How many independent units stand behind the rows of each class."""

    n: int
    """Clusters in all."""
    rows: tuple[int, int]
    """Rows of the negatives and of the positives."""
    holding: tuple[int, int]
    """Clusters with negatives, clusters with positives."""
    effective: tuple[float, float]
    """Kish's effective number of them, (sum c)^2 / sum c^2 with c the class's rows in each cluster: the
    number of independent rows of the class if all rows of a cluster were one and the same."""
    pairs: int
    """How many pairs of a positive and a negative of different clusters there are, each cluster in one of
    them."""

    @classmethod
    def of(cls, y: NDArray[np.bool_], codes: NDArray[np.intp]) -> "Clusters":
        """Counts of labels (n,) in clusters, codes (n,) 0 .. G-1."""
        n = int(codes.max()) + 1
        counts = np.stack([np.bincount(codes[~y], minlength=n), np.bincount(codes[y], minlength=n)])
        holding = (counts > 0).sum(axis=1)
        pairs = min(int(holding.min()), int(counts.any(axis=0).sum()) // 2)
        total = counts.sum(axis=1)
        effective = total**2 / np.maximum((counts.astype(np.float64) ** 2).sum(axis=1), 1)
        return cls(
            n=n,
            rows=(int(total[0]), int(total[1])),
            holding=(int(holding[0]), int(holding[1])),
            effective=(float(effective[0]), float(effective[1])),
            pairs=pairs,
        )


@dataclass(frozen=True, kw_only=True)
class Interval:
    """One metric of m models with its interval. Arrays are float64 (m,) unless said otherwise."""

    metric: str
    value: Floats
    low: Floats
    """NaN where there is no interval: then `reason` says why."""
    high: Floats
    standard_error: Floats
    """Of the method: the jackknife's, or the standard deviation of the defined draws (ddof 1). NaN where it
    is not estimable (no cluster changes the value)."""
    degrees_of_freedom: Floats
    """Of the jackknife's standard error (see `estimate`); inf for the other methods."""
    design_effect: Floats
    """Squared standard error over clusters by that over single rows; NaN where unknown."""
    undefined: NDArray[np.intp]
    """Resamples in which the metric is undefined (a class was not drawn); 0 where none were drawn."""
    method: NDArray[np.str_]
    """How the interval was made: one of METHODS, or "korn-graubard", "mover", "exact" (see `estimate`), or
    "none"."""
    reason: NDArray[np.str_]
    """Why there is no interval, "" where there is one."""
    asked: Method
    """The method that was asked for."""
    confidence: float
    draws: Floats | None
    """(n_resamples, m), NaN where undefined; None for the jackknife."""
    left_out: Floats | None
    """(G, m), the metric without each cluster; None for percentiles."""
    rows_out: Floats | None
    """(n, m), the metric without each row, from which design effect and degrees of freedom are."""
    made_by: "_Maker" = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Estimates(Mapping[str, Interval]):
    """Intervals by metric name, and how they were made."""

    intervals: Mapping[str, Interval]
    n_rows: int
    n_clusters: int
    clusters: Clusters | None
    """None for functions without labels."""
    n_resamples: int
    """0 for the jackknife, which draws none."""
    seed: int

    def __getitem__(self, metric: str) -> Interval:
        return self.intervals[metric]

    def __iter__(self) -> Iterator[str]:
        return iter(self.intervals)

    def __len__(self) -> int:
        return len(self.intervals)


def estimate(
    y: ArrayLike,
    scores: ArrayLike,
    *,
    groups: ArrayLike | None,
    metrics: Iterable[str] = DEFAULT_METRICS,
    threshold: ArrayLike | None = None,
    logits: bool = False,
    order: ArrayLike | None = None,
    method: Method = "jackknife",
    confidence: float = 0.95,
    inflation: float = 1.0,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Estimates:
    """Values and intervals of several metrics of m models over clusters of rows.

    y, scores, threshold, logits, order : as for `metrics.evaluate`; the threshold is fixed
    groups : (n,) slide of each row, see `cluster_codes`; None: rows are independent
    method : "jackknife" (default): leaves each cluster out once; nothing is drawn, O(n log n). The interval
        is value -+ t x standard error on the metric's `scale` (delta method). Degrees of freedom are the
        least of three: G - 1; Satterthwaite's of that variance, 2 G / (kurtosis of the jackknife values -
        1); and those of a sum of a positives' and a negatives' part, each with Kish's number of its clusters
        less 1 (Welch). Few clusters, or some that weigh much more than others, so make it wider. Exceptions,
        which hold near 0 and 1, where the standard error does not:
        sensitivity and specificity: Clopper-Pearson at the effective number of rows ("korn-graubard", see
        `proportion_interval`); balanced accuracy: the two combined ("mover", see `_mover`); an AUROC of
        exactly 0 or 1: the exact bound of a proportion over disjoint pairs of clusters ("exact").
        "percentile": quantiles of n_resamples draws of whole clusters.
        "bca": bias-corrected and accelerated, the acceleration from the jackknife over clusters (Efron &
        Tibshirani 1993, eq. 14.9-14.15; half of the ties count as below, as in scipy); "percentile" where the
        correction is not finite.
    confidence : between 0 and 1, two-sided
    inflation : factor of the jackknife's variance: a design effect that is assumed where clusters are
        unknown, or what out-of-fold scores need (`scoring.OOF_INFLATION`)

    There is no interval (NaN), and `Interval.reason` says why, where a value is undefined, where there are
    fewer than two clusters, where a metric is undefined without one of them (a class sits in one cluster),
    where more than UNDEFINED_DRAWS of the draws are undefined, and where no cluster changes the value.
    Simulated coverage of 95 % (tests/benchmarks/stats_coverage.py, 150 studies a design, 20 to 300 slides):
    AUROC .92-.99, average precision .91-.98, sensitivity .95-.99, balanced accuracy .97-.99; the lowest are
    with positives in a few of 30 slides and a true AUROC of .994.
    Raises as `metrics.evaluate`.
    """
    names = check_names(metrics)
    parts = [*names, *(p for p in ("sensitivity", "specificity") if p not in names)]
    asked = parts if "balanced_accuracy" in names else names
    labels = check_labels(y)
    about: dict[str, Any] = {"threshold": threshold, "logits": logits, "order": order}

    def score(weights: NDArray[Any] | None, codes: NDArray[np.intp]) -> dict[str, Any]:
        return evaluate(labels, scores, metrics=asked, weights=weights, groups=codes, **about)

    def without(codes: NDArray[np.intp] | None) -> dict[str, Floats]:
        return leave_one_out(labels, scores, metrics=asked, groups=codes, **about)

    found = estimate_function(
        score,
        without=without,
        labels=labels,
        scales={name: METRICS[name].scale for name in asked},
        n_rows=len(labels),
        groups=groups,
        method=method,
        confidence=confidence,
        inflation=inflation,
        n_resamples=n_resamples,
        seed=seed,
    )
    return replace(found, intervals={name: found[name] for name in names})


def estimate_function(
    score: Callable[[NDArray[Any] | None, NDArray[np.intp]], Mapping[str, Any]],
    *,
    n_rows: int,
    groups: ArrayLike | None,
    without: Callable[[NDArray[np.intp] | None], Mapping[str, Floats]] | None = None,
    labels: NDArray[np.bool_] | None = None,
    scales: Mapping[str, Scale] = MappingProxyType({}),
    method: Method = "jackknife",
    confidence: float = 0.95,
    inflation: float = 1.0,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Estimates:
    """`estimate` of anything that can be weighted: means over fold models, experts, soft labels, multiclass.

    score : (weights, codes) -> {name: values}; weights None or (B, G), codes int (n_rows,) as the
        arguments `weights` and `groups` of `metrics.evaluate`; values (m,) or (B, m), the m may be absent
    without : codes -> {name: (G, m)}, the values without each cluster (codes None: without each row). None:
        they are made by `score` under G x G weights, O(n G), and the design effect stays unknown
    labels : bool (n_rows,); needed for the exceptions that `estimate` has for proportions, balanced accuracy
        (with `sensitivity` and `specificity` among the values) and AUROC, which go by these names
    scales : for method "jackknife", name -> scale of its interval; "linear" where there is none
    The rest, and what is raised, as for `estimate`.
    """
    if method not in METHODS:
        raise InvalidRequest(f"method is one of {', '.join(METHODS)}, not {method!r}")
    if not 0 < confidence < 1:
        raise InvalidRequest(f"confidence lies between 0 and 1, not {confidence}")
    if inflation < 1 or (inflation > 1 and method != "jackknife"):
        raise InvalidRequest(f"inflation {inflation}: at least 1, and for method 'jackknife' alone")
    if method != "jackknife" and n_resamples < 2:
        raise InvalidRequest(f"{n_resamples} resamples: an interval needs two or more")
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

    values = {name: np.asarray(v, np.float64).reshape(-1) for name, v in score(None, codes).items()}
    draws: Mapping[str, Floats] = {}
    left_out: Mapping[str, Floats] = {}
    each_row: Mapping[str, Floats] = {}
    if n_clusters > 1:
        if method != "jackknife":
            draws = scored(n_resamples, lambda i, j: cluster_weights(n_clusters, n_resamples=j - i, seed=rng))
        if method != "percentile":
            left_out = without(codes) if without else scored(n_clusters, without_one)
        if method == "jackknife" and without:
            each_row = left_out if n_clusters == n_rows else without(None)
    clusters = None if labels is None else Clusters.of(labels, codes)
    made = _Maker(method, confidence, inflation, codes, labels, clusters)
    found: dict[str, Interval] = {}
    # balanced accuracy last: it is made of the other two
    for name in sorted(values, key=lambda name: name == "balanced_accuracy"):
        found[name] = made.interval(
            name,
            values[name],
            draws.get(name),
            left_out.get(name),
            each_row.get(name),
            scales.get(name, "linear"),
            parts=[found[p] for p in ("sensitivity", "specificity") if p in found],
        )
    return Estimates(
        intervals={name: found[name] for name in values},
        n_rows=n_rows,
        n_clusters=n_clusters,
        clusters=clusters,
        n_resamples=n_resamples if draws else 0,
        seed=seed,
    )


@dataclass(frozen=True)
class _Maker:
    """Intervals of one set of rows, metric by metric."""

    method: Method
    confidence: float
    inflation: float
    codes: NDArray[np.intp]
    labels: NDArray[np.bool_] | None = None
    clusters: Clusters | None = None

    def interval(
        self,
        metric: str,
        value: Floats,
        draws: Floats | None,
        left_out: Floats | None,
        each_row: Floats | None,
        scale: Scale,
        parts: Sequence[Interval] = (),
    ) -> Interval:
        m = len(value)
        found = Interval(
            metric=metric,
            value=value,
            low=np.full(m, np.nan),
            high=np.full(m, np.nan),
            standard_error=np.full(m, np.nan),
            degrees_of_freedom=np.full(m, np.inf),
            design_effect=np.full(m, np.nan),
            undefined=np.zeros(m, np.intp) if draws is None else np.isnan(draws).sum(axis=0),
            method=np.full(m, "none", dtype="<U13"),
            reason=np.full(m, "", dtype=object),
            asked=self.method,
            confidence=self.confidence,
            draws=draws,
            left_out=left_out,
            rows_out=each_row,
            made_by=self,
        )
        for j in range(m):
            reason = self._why_not(found, j)
            if reason:
                found.reason[j] = reason
            elif self.method == "jackknife":
                self._jackknife(found, j, scale, parts)
            else:
                self._bootstrap(found, j)
        return found

    def _why_not(self, found: Interval, j: int) -> str:
        if np.isnan(found.value[j]):
            return "the value is undefined: " + (
                METRICS[found.metric].undefined if found.metric in METRICS else "a class is missing"
            )
        if found.draws is None and found.left_out is None:
            return "all rows are in one group"
        if found.left_out is not None and np.isnan(found.left_out[:, j]).any():
            c = self.clusters
            alone = [] if c is None else [k for k in (1, 0) if c.holding[k] == 1]
            which = " and ".join(("negative", "positive")[k] for k in alone)
            return f"all {which} rows are in one group" if which else "undefined without one of the groups"
        if found.draws is not None and found.undefined[j] > UNDEFINED_DRAWS * len(found.draws):
            share = found.undefined[j] / len(found.draws)
            return f"undefined in {share:.1%} of the resamples: a class sits in too few groups"
        return ""

    def _jackknife(self, found: Interval, j: int, scale: Scale, parts: Sequence[Interval]) -> None:
        assert found.left_out is not None
        error, freedom = _jackknife_error(found.left_out[:, j])
        error *= np.sqrt(self.inflation)
        if found.rows_out is not None and error > 0:
            rows = found.rows_out[:, j]
            by_row = _jackknife_error(rows)[0]
            found.design_effect[j] = error**2 / by_row**2 if by_row > 0 else np.nan
            freedom = min(freedom, self._welch(rows - rows.mean()))
        found.standard_error[j] = error if error > 0 else np.nan
        found.degrees_of_freedom[j] = freedom
        value, tail = float(found.value[j]), (1 - self.confidence) / 2
        counts = self.clusters
        if counts and found.metric in ("sensitivity", "specificity"):
            k = int(found.metric == "sensitivity")
            found.low[j], found.high[j] = proportion_interval(
                value,
                error,
                n=counts.rows[k] / self.inflation,
                n_clustered=counts.effective[k] / self.inflation,
                confidence=self.confidence,
            )
            found.method[j] = "korn-graubard"
        elif found.metric == "balanced_accuracy" and len(parts) == 2:
            found.low[j], found.high[j] = _mover(parts[0], parts[1], j)
            found.method[j] = "mover"
        elif counts and found.metric == "auroc" and value in (0.0, 1.0):
            reach = tail ** (self.inflation / max(counts.pairs, 1))
            found.low[j], found.high[j] = (reach, 1.0) if value else (0.0, 1 - reach)
            found.method[j] = "exact"
        elif error > 0:
            half = float(stats.t.ppf(1 - tail, freedom)) * error
            found.low[j], found.high[j] = _spread(value, half, scale)
            found.method[j] = "jackknife"
        else:
            found.reason[j] = STILL

    def _welch(self, influence: Floats) -> float:
        """Degrees of freedom of the sum of the two classes' parts of a variance (Welch 1947).

        influence : (n,), what each row changes"""
        if self.labels is None or self.clusters is None:
            return np.inf
        total, spread = 0.0, 0.0
        for k, of in enumerate((~self.labels, self.labels)):
            sums = np.bincount(self.codes[of], influence[of], self.clusters.n)
            sums = sums[np.bincount(self.codes[of], minlength=self.clusters.n) > 0]
            variance = float(((sums - sums.mean()) ** 2).sum()) if len(sums) else 0.0
            total += variance
            spread += variance**2 / max(self.clusters.effective[k] - 1, 1.0)
        return total**2 / spread if spread > 0 else np.inf

    def _bootstrap(self, found: Interval, j: int) -> None:
        assert found.draws is not None
        drawn = found.draws[~np.isnan(found.draws[:, j]), j]
        if np.ptp(drawn) <= 1e-12:
            found.reason[j] = STILL
            return
        tails = np.array([(1 - self.confidence) / 2, (1 + self.confidence) / 2])
        levels = None
        if found.left_out is not None and self.method == "bca":
            levels = _bca_levels(float(found.value[j]), drawn, found.left_out[:, j], tails)
        found.method[j] = "percentile" if levels is None else "bca"
        found.low[j], found.high[j] = np.quantile(drawn, tails if levels is None else levels)
        found.standard_error[j] = drawn.std(ddof=1)


def proportion_interval(
    p: float, error: float, *, n: float, n_clustered: float, confidence: float = 0.95
) -> tuple[float, float]:
    """Clopper-Pearson's interval of a proportion over clusters (Korn & Graubard, Survey Methodology 1998).

    p : the proportion of n rows; error : its standard error over clusters
    n_clustered : the effective number of clusters (`Clusters.effective`)
    The effective number of rows is p (1 - p) / error^2, times (t with n - 1 over t with n_clustered - 1
    degrees of freedom)^2, and at most n. Where nothing varies (p is 0 or 1, most often) it is n_clustered:
    the rows of a cluster count as one.
    """
    tail = (1 - confidence) / 2
    effective = n_clustered
    if error > 0:
        narrow, wide = (stats.t.ppf(1 - tail, max(k - 1, 1.0)) for k in (n, n_clustered))
        effective = min(n, p * (1 - p) / error**2 * float(narrow / wide) ** 2)
    hits = p * effective
    low = float(stats.beta.ppf(tail, hits, effective - hits + 1)) if hits > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, hits + 1, effective - hits)) if hits < effective else 1.0
    return low, high


def _mover(first: Interval, second: Interval, j: int) -> tuple[float, float]:
    """Interval of the mean of two estimates from the intervals of each: the method of variance estimates
    recovery, with their correlation over clusters (Zou, Statistics in Medicine 2009, eq. 3-4)."""
    correlation = 0.0
    if first.standard_error[j] > 0 and second.standard_error[j] > 0:
        both = [np.asarray(one.left_out)[:, j] for one in (first, second)]
        correlation = float(np.corrcoef(both)[0, 1])
    middle = float(first.value[j] + second.value[j]) / 2

    def reach(a: float, b: float) -> float:
        return float(np.sqrt(max(a * a + b * b + 2 * correlation * a * b, 0.0))) / 2

    low = middle - reach(first.value[j] - first.low[j], second.value[j] - second.low[j])
    high = middle + reach(first.high[j] - first.value[j], second.high[j] - second.value[j])
    return max(low, 0.0), min(high, 1.0)


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
    return float(np.sqrt((n - 1) / n * total)), freedom


def _spread(value: float, half: float, scale: Scale) -> tuple[float, float]:
    """value -+ half, which is on the value's own scale, made symmetric on another one. Where the value is at
    the end of its range, which has no other scale, it stays linear."""
    sides = np.array([-1.0, 1.0])
    low, high = value + sides * half
    if scale == "log" and value > 0:
        low, high = value * np.exp(sides * half / value)
    elif scale == "fisher" and abs(value) < 1:
        low, high = np.tanh(np.arctanh(value) + sides * half / (1 - value**2))
    elif scale == "logit" and 0 < value < 1:
        low, high = special.expit(special.logit(value) + sides * half / (value * (1 - value)))
    if scale != "linear":
        low = max(low, -1.0 if scale == "fisher" else 0.0)
        high = high if scale == "log" else min(high, 1.0)
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
    """NaN where there is no interval, see `reason`."""
    high: Floats
    standard_error: Floats
    """NaN where no cluster changes the difference."""
    degrees_of_freedom: Floats
    """Of Student's t; inf where p is by draws or permutations."""
    p: Floats
    """Two-sided; how it was made is in `p_method`. NaN where there is no test, see `reason`."""
    p_holm: Floats
    """Adjusted over the k pairs (Holm 1979); NaNs take no part."""
    p_method: NDArray[np.str_]
    """How each p was made, in words."""
    reason: NDArray[np.str_]
    """Why there is no interval, "" where there is one."""


def compare_paired(
    y: ArrayLike,
    scores: ArrayLike,
    *,
    groups: ArrayLike | None,
    metrics: Iterable[str] = ("balanced_accuracy", "auroc"),
    pairs: Iterable[tuple[int, int]] | None = None,
    reference: int | None = None,
    threshold: ArrayLike | None = None,
    logits: bool = False,
    order: ArrayLike | None = None,
    method: Method = "jackknife",
    confidence: float = 0.95,
    inflation: float = 1.0,
    n_resamples: int = 2000,
    seed: int = 0,
    estimates: Mapping[str, Interval] | None = None,
) -> dict[str, Differences]:
    """Do two models differ on the same rows? The one test of this package, for probes and fine-tuned models.

    y : (n,) 0 or 1; scores : (n, m), one column a model, of the same rows; groups : (n,) slide of each row,
        see `cluster_codes` (None: rows are independent)
    pairs : columns (first, second); None: all against `reference` if given, else all pairs i < j
    threshold, logits, order : as for `metrics.evaluate`; pass logits with logits=True
    method, confidence, inflation : as for `estimate`; estimates : what it gave for the same arguments, if it
        is there already

    Per metric: difference, interval and two-sided p from the jackknife of the paired difference over
    clusters, Student's t. p is by the sign-flip permutation test over clusters (`permutation_test`) where no
    cluster changes the difference (standard error 0), and where a class is in fewer than FEW_CLUSTERS
    clusters, too few for t; a difference that no cluster changes has no interval. Holm over the pairs of one
    metric. For methods "bca" and "percentile" p is by the draws, shifted to no difference.
    Returns metric -> Differences, whose pairs are in the order given. Where a class sits in one cluster
    there is neither interval nor p, and `reason` says so.
    """
    names = check_names(metrics)
    about: dict[str, Any] = {"threshold": threshold, "logits": logits, "order": order, "groups": groups}
    if estimates is None:
        estimates = estimate(
            y,
            scores,
            metrics=names,
            method=method,
            confidence=confidence,
            inflation=inflation,
            n_resamples=n_resamples,
            seed=seed,
            **about,
        )
    labels = check_labels(y)
    few = min(Clusters.of(labels, cluster_codes(groups, len(labels))).holding) < FEW_CLUSTERS
    found = {}
    chosen = _pairs(np.shape(scores)[1], pairs, reference)
    for name in names:
        one = compare(estimates[name], pairs=chosen)
        differs, still = np.abs(one.difference) > 1e-12, one.reason == STILL
        again = np.flatnonzero(differs & (still | (few & (one.reason == ""))))
        if method == "jackknife" and len(again):
            swapped = permutation_test(y, scores, metric=name, pairs=chosen[again], seed=seed, **about)
            p, how = one.p.copy(), one.p_method.copy()
            p[again], how[again] = swapped.p, swapped.p_method
            one = replace(one, p=p, p_holm=holm(p), p_method=how)
        found[name] = one
    return found


def compare(
    interval: Interval,
    *,
    pairs: Iterable[tuple[int, int]] | NDArray[np.intp] | None = None,
    reference: int | None = None,
) -> Differences:
    """Paired differences of one metric between models, from their intervals alone; see `compare_paired`,
    which adds the permutation test where this has no p.

    interval : from `estimate`, whose left-out values or draws are paired; method, confidence and inflation
        are those of it (a jackknife interval of a difference is on the linear scale)
    p : jackknife: the difference over its standard error, Student's t. Else the draws of the difference,
        shifted to mean no difference, reach the observed one, (1 + #{|d* - d| >= |d|}) / (1 + B) (Efron &
        Tibshirani 1993, sec. 16.4); it cannot be below 1 / (1 + B), so k pairs under Holm need B well above
        20 k.
    """
    chosen = _pairs(len(interval.value), pairs, reference)

    def apart(values: Floats | None) -> Floats | None:
        return None if values is None else values[..., chosen[:, 0]] - values[..., chosen[:, 1]]

    value = interval.value[chosen[:, 0]] - interval.value[chosen[:, 1]]
    draws = apart(interval.draws)
    found = interval.made_by.interval(
        f"difference of {interval.metric}",
        value,
        draws,
        apart(interval.left_out),
        apart(interval.rows_out),
        "linear",
    )
    if draws is None:
        p, how = (
            _tail(value, found.standard_error, found.degrees_of_freedom),
            "jackknife over groups, Student's t",
        )
    else:
        reached = np.abs(draws - value) >= np.abs(value) - 1e-12  # NaN compares as False
        p = (1 + reached.sum(axis=0)) / (1 + (~np.isnan(draws)).sum(axis=0))
        how = "bootstrap over groups, draws shifted to no difference"
    tested = (found.reason == "") | ((found.reason == STILL) & (np.abs(value) <= 1e-12))
    p = np.where(tested, p, np.nan)
    return Differences(
        metric=interval.metric,
        pairs=chosen,
        difference=value,
        low=found.low,
        high=found.high,
        standard_error=found.standard_error,
        degrees_of_freedom=found.degrees_of_freedom,
        p=p,
        p_holm=holm(p),
        p_method=np.full(len(chosen), how, dtype=object),
        reason=found.reason,
    )


def _pairs(
    m: int, pairs: Iterable[tuple[int, int]] | NDArray[np.intp] | None, reference: int | None
) -> NDArray[np.intp]:
    if pairs is not None:
        chosen = np.array(list(pairs), np.intp).reshape(-1, 2)
    elif reference is not None:
        chosen = np.array([(i, reference) for i in range(m) if i != reference], np.intp).reshape(-1, 2)
    else:
        chosen = np.stack(np.triu_indices(m, 1), axis=1)
    if chosen.size and not (chosen.min() >= 0 and chosen.max() < m):
        raise InvalidRequest(f"pairs are columns 0 .. {m - 1}")
    return chosen


def _tail(difference: Floats, error: Floats, freedom: ArrayLike) -> Floats:
    """Two-sided p of Student's t; where nothing varies 1 if nothing differs, else NaN: no p is 0."""
    moves = error > 1e-12  # NaN compares as False
    t = np.divide(difference, error, out=np.where(np.abs(difference) > 1e-12, np.nan, 0.0), where=moves)
    return 2 * stats.t.sf(np.abs(t), freedom)


def compare_to_zero(interval: Interval) -> Floats:
    """Two-sided p (m,) that the value is 0, Student's t; NaN where there is no standard error."""
    return np.where(
        interval.reason == "",
        _tail(interval.value, interval.standard_error, interval.degrees_of_freedom),
        np.nan,
    )


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
    """AUROCs (m,) of m models on the same rows and their covariance (m, m), the sum of three parts.

    of_positives, of_negatives : (m, m), what the rows of each class add; shared : what they share in clusters
    clusters : of the rows
    """

    auroc: Floats
    of_positives: Floats
    of_negatives: Floats
    shared: Floats
    clustered: bool
    clusters: Clusters

    @property
    def covariance(self) -> Floats:
        return self.of_positives + self.of_negatives + self.shared

    def interval(
        self, confidence: float = 0.95, *, scale: Literal["logit", "linear"] = "logit"
    ) -> tuple[Floats, Floats]:
        """Low and high (m,): normal on the logit scale (stays in (0, 1)) or linear, clipped to [0, 1], as
        DeLong has it. Too narrow with few clusters: `estimate` is what the results are made with. NaN for an
        AUROC of exactly 0 or 1, whose variance cannot be estimated."""
        z = stats.norm.ppf((1 + confidence) / 2)
        inner = (self.auroc > 0) & (self.auroc < 1)
        error = np.where(inner, np.sqrt(np.diag(self.covariance)), np.nan)
        if scale == "linear":
            return np.clip(self.auroc - z * error, 0, 1), np.clip(self.auroc + z * error, 0, 1)
        if scale != "logit":
            raise InvalidRequest(f"scale is 'logit' or 'linear', not {scale!r}")
        a = np.where(inner, self.auroc, 0.5)
        low, high = (special.expit(special.logit(a) + side * error / (a * (1 - a))) for side in (-z, z))
        return low, high

    def compare(
        self,
        *,
        pairs: Iterable[tuple[int, int]] | None = None,
        reference: int | None = None,
        confidence: float = 0.95,
    ) -> Differences:
        """Differences of AUROC with DeLong's standard error, as Student's t; pairs as in `compare`.

        Degrees of freedom: those of the sum of the two classes' parts of the variance, each with its
        effective number of clusters less 1 (Welch). The normal that the paper uses rejects 14 in 100 true
        hypotheses at 5 % with 20 slides."""
        chosen = _pairs(len(self.auroc), pairs, reference)
        i, j = chosen.T

        def apart(c: Floats) -> Floats:
            return np.maximum(c[i, i] + c[j, j] - 2 * c[i, j], 0)

        value = self.auroc[i] - self.auroc[j]
        error = np.sqrt(apart(self.covariance))
        parts = [apart(self.of_negatives), apart(self.of_positives)]
        spread = sum(v**2 / max(k - 1, 1.0) for v, k in zip(parts, self.clusters.effective, strict=True))
        freedom = np.divide(sum(parts) ** 2, spread, out=np.ones_like(value), where=np.asarray(spread) > 0)
        error = np.where(error > 1e-12, error, np.nan)  # no interval has width zero
        half = stats.t.ppf((1 + confidence) / 2, freedom) * error
        p = _tail(value, error, freedom)
        name = "DeLong, clustered (Obuchowski 1997)" if self.clustered else "DeLong 1988"
        return Differences(
            metric="auroc",
            pairs=chosen,
            difference=value,
            low=value - half,
            high=value + half,
            standard_error=error,
            degrees_of_freedom=freedom,
            p=p,
            p_holm=holm(p),
            p_method=np.full(len(chosen), f"{name}, Student's t", dtype=object),
            reason=np.where(np.isnan(error), STILL, "").astype(object),
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
    values = np.atleast_1d(evaluate(labels, scores, metrics=["auroc"])["auroc"])  # checks the scores too
    table = np.asarray(scores, np.float64).reshape(len(labels), -1)
    codes = cluster_codes(groups, len(labels))
    clusters = Clusters.of(labels, codes)
    if min(clusters.holding) < 2:
        raise ProbeError(
            f"DeLong needs two clusters (rows) of each class: {clusters.holding[1]} have positives, "
            f"{clusters.holding[0]} have negatives"
        )
    centred = placements(labels, table) - values
    sums = [
        np.stack([np.bincount(codes[of], one[of], clusters.n) for one in centred.T], axis=1) / of.sum()
        for of in (~labels, labels)
    ]
    of_negatives, of_positives = (
        one.T @ one * k / (k - 1) for one, k in zip(sums, clusters.holding, strict=True)
    )
    shared = sums[1].T @ sums[0] * clusters.n / (clusters.n - 1)
    return DeLong(
        auroc=values,
        of_positives=of_positives,
        of_negatives=of_negatives,
        shared=shared + shared.T,
        clustered=groups is not None,
        clusters=clusters,
    )


def permutation_test(
    y: ArrayLike,
    scores: ArrayLike,
    *,
    metric: str,
    groups: ArrayLike | None,
    pairs: Iterable[tuple[int, int]] | NDArray[np.intp] | None = None,
    reference: int | None = None,
    threshold: ArrayLike | None = None,
    logits: bool = False,
    order: ArrayLike | None = None,
    n_permutations: int = 9999,
    seed: int = 0,
) -> Differences:
    """Paired permutation test: under no difference the two models' scores may be swapped in any cluster.

    Arguments as for `compare_paired`. What is swapped has to be on one scale: ranks within each
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
    if n_permutations < 1:
        raise InvalidRequest(f"{n_permutations} permutations: one or more")
    about: dict[str, Any] = {"threshold": threshold, "logits": logits, "order": order}
    observed = evaluate(labels, table, metrics=[metric], **about)[metric]
    needs = METRICS[metric].needs
    if needs == "score":
        table = stats.rankdata(table if order is None else np.asarray(order, np.float64), axis=0)
    elif needs == "threshold":
        cut = (0.0 if logits else 0.5) if threshold is None else threshold
        table = (table >= np.asarray(cut)).astype(np.float64)
    elif logits:
        table = special.expit(table)
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
        degrees_of_freedom=np.full(len(chosen), np.inf),
        p_method=np.full(
            len(chosen),
            f"permutation, {'all' if exact else 'random'} {len(swaps)} swaps of groups",
            dtype=object,
        ),
        reason=np.full(len(chosen), "a permutation test has no interval", dtype=object),
    )

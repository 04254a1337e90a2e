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
from itertools import combinations
from types import MappingProxyType
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import special

from ...errors import InvalidRequest, ProbeError
from .metrics import METRICS, Scale, check_labels, check_names, evaluate, leave_one_out

Floats = NDArray[np.float64]
Method = Literal["bca", "percentile", "jackknife"]

METHODS: tuple[Method, ...] = ("bca", "percentile", "jackknife")


class Options(TypedDict, total=False):
    """How intervals are made; see `estimate`."""

    method: Method
    confidence: float
    inflation: float
    n_resamples: int
    seed: int


_BLOCK_WEIGHTS = 1 << 24  # 128 MiB of float64 weights (resamples x clusters) at once

DEFAULT_METRICS = ("balanced_accuracy", "auroc", "average_precision")
UNDEFINED_DRAWS = 0.01  # share of undefined draws above which a bootstrap has no interval
STILL = "not estimable: no group changes the value"
BINARY = ("negative", "positive")


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
    rng = np.random.default_rng(seed)
    counts = np.empty((n_resamples, n_clusters), np.uint16)
    for count in counts:
        count[:] = np.bincount(rng.integers(0, n_clusters, n_clusters), minlength=n_clusters)
    return counts


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """How many independent units stand behind the rows of each class."""

    n: int
    """Clusters in all."""
    rows: tuple[int, ...]
    """Rows of each class; of two, those of the negatives and of the positives."""
    holding: tuple[int, ...]
    """Clusters with rows of each class."""
    effective: tuple[float, ...]
    """Kish's effective number of them, (sum c)^2 / sum c^2 with c the class's rows in each cluster: the
    number of independent rows of the class if all rows of a cluster were one and the same."""
    pairs: int
    """How many pairs of rows of two classes and of different clusters there are for every two classes, each
    cluster in one of them."""

    @classmethod
    def of(cls, y: NDArray[Any], codes: NDArray[np.intp], n_classes: int = 2) -> "Clusters":
        """Counts of labels (n,), bool or 0 .. n_classes-1, in clusters, codes (n,) 0 .. G-1."""
        n = int(codes.max()) + 1
        counts = np.stack([np.bincount(codes[y == k], minlength=n) for k in range(n_classes)])
        holding = (counts > 0).sum(axis=1)
        total = counts.sum(axis=1)
        return cls(
            n=n,
            rows=tuple(map(int, total)),
            holding=tuple(map(int, holding)),
            effective=tuple(map(kish, counts)),
            pairs=min(int(holding.min()), int(counts.any(axis=0).sum()) // 2),
        )


def kish(counts: NDArray[Any]) -> float:
    """Kish's effective number of clusters with these numbers of rows, (sum c)^2 / sum c^2."""
    return float(counts.sum() ** 2 / max((counts.astype(np.float64) ** 2).sum(), 1))


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
    made_by: "Maker" = field(repr=False)


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
    classes: tuple[str, str] = BINARY,
    **how: Unpack[Options],
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
    confidence : between 0 and 1, two-sided (0.95); n_resamples : of the bootstrap (2000); seed : of it (0)
    inflation : factor of the jackknife's variance: a design effect that is assumed where clusters are
        unknown, or what out-of-fold scores need (`scoring.OOF_INFLATION`)
    classes : what 0 and 1 are called in reasons

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

    estimates = estimate_function(
        score,
        without=without,
        labels=labels,
        scales={name: METRICS[name].scale for name in asked},
        n_rows=len(labels),
        groups=groups,
        classes=classes,
        **how,
    )
    return replace(estimates, intervals={name: estimates[name] for name in names})


def estimate_function(
    score: Callable[[NDArray[Any] | None, NDArray[np.intp]], Mapping[str, Any]],
    *,
    n_rows: int,
    groups: ArrayLike | None,
    without: Callable[[NDArray[np.intp] | None], Mapping[str, Floats]] | None = None,
    labels: NDArray[Any] | None = None,
    classes: Sequence[str] = BINARY,
    undefined: Mapping[str, str] = MappingProxyType({name: m.undefined for name, m in METRICS.items()}),
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
    labels : bool or int (n_rows,); needed for the exceptions that `estimate` has for proportions, balanced
        accuracy (with `sensitivity` and `specificity` among the values) and AUROC, which go by these names
    classes : what the labels 0, 1, ... are called in reasons
    undefined : name -> when the value is NaN, in words
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
    clusters = None if labels is None else Clusters.of(labels, codes, len(classes))
    made = Maker(method, confidence, inflation, codes, labels, clusters, classes, undefined)
    intervals: dict[str, Interval] = {}
    # balanced accuracy last: it is made of the other two
    for name in sorted(values, key=lambda name: name == "balanced_accuracy"):
        intervals[name] = made.interval(
            name,
            values[name],
            draws.get(name),
            left_out.get(name),
            each_row.get(name),
            scales.get(name, "linear"),
            parts=[intervals[p] for p in ("sensitivity", "specificity") if p in intervals],
        )
    return Estimates(
        intervals={name: intervals[name] for name in values},
        n_rows=n_rows,
        n_clusters=n_clusters,
        clusters=clusters,
        n_resamples=n_resamples if draws else 0,
        seed=seed,
    )


@dataclass(frozen=True)
class Maker:
    """Intervals of one set of rows, metric by metric."""

    method: Method
    confidence: float
    inflation: float
    codes: NDArray[np.intp]
    labels: NDArray[Any] | None
    clusters: Clusters | None
    classes: Sequence[str]
    undefined: Mapping[str, str]

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
        """The interval of a metric of m models.

        value : (m,); draws (n_resamples, m), left_out (G, m), each_row (n, m) : as `Interval` has them
        parts : intervals of what the metric is the mean of, see `estimate`
        """
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

    def _why_not(self, interval: Interval, j: int) -> str:
        if np.isnan(interval.value[j]):
            return f"the value is undefined: {self.undefined.get(interval.metric, 'a class is missing')}"
        if interval.draws is None and interval.left_out is None:
            return "all rows are in one group"
        if interval.left_out is not None and np.isnan(interval.left_out[:, j]).any():
            holding = () if self.clusters is None else self.clusters.holding
            alone = [name for name, k in zip(self.classes, holding, strict=False) if k == 1]
            which = " and ".join(reversed(alone) if len(holding) == 2 else alone)
            return f"all {which} rows are in one group" if which else "undefined without one of the groups"
        if interval.draws is not None and interval.undefined[j] > UNDEFINED_DRAWS * len(interval.draws):
            share = interval.undefined[j] / len(interval.draws)
            return f"undefined in {share:.1%} of the resamples: a class sits in too few groups"
        return ""

    def _jackknife(self, interval: Interval, j: int, scale: Scale, parts: Sequence[Interval]) -> None:
        assert interval.left_out is not None
        error, freedom = _jackknife_error(interval.left_out[:, j])
        error *= np.sqrt(self.inflation)
        if interval.rows_out is not None and error > 0:
            rows = interval.rows_out[:, j]
            by_row = _jackknife_error(rows)[0]
            interval.design_effect[j] = error**2 / by_row**2 if by_row > 0 else np.nan
            freedom = min(freedom, self._welch(rows - rows.mean()))
        interval.standard_error[j] = error if error > 0 else np.nan
        interval.degrees_of_freedom[j] = freedom
        value, tail = float(interval.value[j]), (1 - self.confidence) / 2
        counts = self.clusters
        if counts and interval.metric in ("sensitivity", "specificity", "accuracy"):
            if interval.metric == "accuracy":
                n, effective = len(self.codes), kish(np.bincount(self.codes))
            else:
                k = int(interval.metric == "sensitivity")
                n, effective = counts.rows[k], counts.effective[k]
            interval.low[j], interval.high[j] = proportion_interval(
                value,
                error,
                n=n / self.inflation,
                n_clustered=effective / self.inflation,
                confidence=self.confidence,
            )
            interval.method[j] = "korn-graubard"
        elif interval.metric == "balanced_accuracy" and len(parts) > 1:
            interval.low[j], interval.high[j] = _mover(parts, j)
            interval.method[j] = "mover"
        elif parts and interval.metric == "auroc" and value in (0.0, 1.0):
            interval.low[j], interval.high[j] = (
                float(np.mean([getattr(part, side)[j] for part in parts])) for side in ("low", "high")
            )
            interval.method[j] = "exact"
        elif counts and interval.metric == "auroc" and value in (0.0, 1.0):
            reach = tail ** (self.inflation / max(counts.pairs, 1))
            interval.low[j], interval.high[j] = (reach, 1.0) if value else (0.0, 1 - reach)
            interval.method[j] = "exact"
        elif error > 0:
            half = float(special.stdtrit(freedom, 1 - tail)) * error
            interval.low[j], interval.high[j] = _spread(value, half, scale)
            interval.method[j] = "jackknife"
        else:
            interval.reason[j] = STILL

    def _welch(self, influence: Floats) -> float:
        """Degrees of freedom of the sum of the classes' parts of a variance (Welch 1947).

        influence : (n,), what each row changes
        """
        if self.labels is None or self.clusters is None:
            return np.inf
        total, spread = 0.0, 0.0
        for k in range(len(self.classes)):
            of = self.labels == k
            sums = np.bincount(self.codes[of], influence[of], self.clusters.n)
            sums = sums[np.bincount(self.codes[of], minlength=self.clusters.n) > 0]
            variance = float(((sums - sums.mean()) ** 2).sum()) if len(sums) else 0.0
            total += variance
            spread += variance**2 / max(self.clusters.effective[k] - 1, 1.0)
        return total**2 / spread if spread > 0 else np.inf

    def _bootstrap(self, interval: Interval, j: int) -> None:
        assert interval.draws is not None
        drawn = interval.draws[~np.isnan(interval.draws[:, j]), j]
        if np.ptp(drawn) <= 1e-12:
            interval.reason[j] = STILL
            return
        tails = np.array([(1 - self.confidence) / 2, (1 + self.confidence) / 2])
        levels = None
        if interval.left_out is not None and self.method == "bca":
            levels = _bca_levels(float(interval.value[j]), drawn, interval.left_out[:, j], tails)
        interval.method[j] = "percentile" if levels is None else "bca"
        interval.low[j], interval.high[j] = np.quantile(drawn, tails if levels is None else levels)
        interval.standard_error[j] = drawn.std(ddof=1)


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
        narrow, wide = (special.stdtrit(max(k - 1, 1.0), 1 - tail) for k in (n, n_clustered))
        effective = min(n, p * (1 - p) / error**2 * float(narrow / wide) ** 2)
    hits = p * effective
    low = float(special.betaincinv(hits, effective - hits + 1, tail)) if hits > 0 else 0.0
    high = float(special.betaincinv(hits + 1, effective - hits, 1 - tail)) if hits < effective else 1.0
    return low, high


def _mover(parts: Sequence[Interval], j: int) -> tuple[float, float]:
    """Interval of the mean of several estimates from the intervals of each: the method of variance estimates
    recovery, with their correlations over clusters (Zou, Statistics in Medicine 2009, eq. 3-4).
    """
    n = len(parts)
    middle = sum(float(one.value[j]) for one in parts) / n
    below = [float(part.value[j] - part.low[j]) for part in parts]
    above = [float(summand.high[j] - summand.value[j]) for summand in parts]
    squares = [sum(d * d for d in side) for side in (below, above)]
    for a, b in combinations(range(n), 2):
        correlation = 0.0
        if parts[a].standard_error[j] > 0 and parts[b].standard_error[j] > 0:
            both = [np.asarray(parts[i].left_out)[:, j] for i in (a, b)]
            correlation = float(np.corrcoef(both)[0, 1])
        squares = [
            total + 2 * correlation * side[a] * side[b]
            for total, side in zip(squares, (below, above), strict=True)
        ]
    low, high = (float(np.sqrt(max(total, 0.0))) / n for total in squares)
    return max(middle - low, 0.0), min(middle + high, 1.0)


def _jackknife_error(left_out: Floats) -> tuple[float, float]:
    """Standard error from the values without each cluster, and the degrees of freedom of its square.

    The relative variance of a variance estimate is (kurtosis - 1) / G, and 2 / df of a chi-square's. The
    kurtosis of few values is too small, which is why it is bounded by that of the normal case.
    """
    n = len(left_out)
    squares = (left_out - left_out.mean()) ** 2
    total = float(squares.sum())
    if total <= (1e-14 * np.abs(left_out).max()) ** 2 * n:
        return 0.0, n - 1
    excess = n * float((squares**2).sum()) / total**2 - 1
    freedom = n - 1 if excess * (n - 1) <= 2 * n else 2 * n / excess
    return float(np.sqrt((n - 1) / n * total)), freedom


def _spread(value: float, half: float, scale: Scale) -> tuple[float, float]:
    """value -+ half, which is on the value's own scale, made symmetric on another one. Where the value is at
    the end of its range, which has no other scale, it stays linear.
    """
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
    acceleration = float((influence**2 * influence).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    bias = special.ndtri(below)
    shifted = bias + special.ndtri(tails)
    slope = 1 - acceleration * shifted
    if (slope <= 0).any():
        return None
    return special.ndtr(bias + shifted / slope)

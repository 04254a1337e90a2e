"""Scores of predicted numbers, several targets at once, with intervals over groups and paired comparisons.

`y` float (n, T), T targets; `predictions` float, (n, T) for one model or (n, m, T) for m models. `weights`,
`groups` and the axes of a result are those of `metrics`. A value over all targets is the mean over them, and
is undefined where it is undefined for one of them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import InvalidRequest, ProbeError
from . import metrics as metrics_module
from .comparisons import FEW_CLUSTERS, Differences, compare_or_permute, pairs_of, permute
from .intervals import Estimates, Interval, Options, cluster_codes, estimate_function
from .metrics import Metric
from .weighted import CONSTANT, Floats, Weighted, check_clusters, divide, midranks

# rows x clusters up to which ranks without each cluster are counted afresh, and that are held at once; above,
# what its rows change one by one is added up (an error of second order in the cluster's share)
_CELLS = 1 << 22


@dataclass(frozen=True, kw_only=True)
class _Sample(Weighted):
    """Checked inputs."""

    y: Floats  # (n, T)
    predictions: Floats  # (n, m, T)

    def by_model(self, compute: Callable[[Floats], Floats]) -> Floats:
        """(B, m, T) from what computes (B, T) of one model's predictions (n, T)."""
        models = range(self.predictions.shape[1])
        return np.stack([compute(self.predictions[:, j]) for j in models], axis=1)

    def r2(self, p: Floats) -> Floats:
        """1 - SSE / SST, SST about the mean of the same rows."""
        deviation = self.y.std(axis=0)
        scale = np.where(deviation > 0, deviation, 1.0)
        y, error = (self.y - self.y.mean(axis=0)) / scale, (self.y - p) / scale
        total = self.mean(y * y) - self.mean(y) ** 2
        return 1 - divide(self.mean(error * error), np.where(total > CONSTANT, total, 0.0))

    def spearman(self, p: Floats) -> Floats:
        columns = [
            self._rank_correlation(_Ranking.of(y), _Ranking.of(q)) for y, q in zip(self.y.T, p.T, strict=True)
        ]
        return np.stack(columns, axis=1)

    def _rank_correlation(self, a: "_Ranking", b: "_Ranking") -> Floats:
        """(B,), with midranks of each reweighting."""
        if a.constant or b.constant:
            return np.full(self.n_samples, np.nan)
        if self.weights is None and self.n * self.n_clusters > _CELLS:
            whole, each = _correlation_without_each_row(a.rank, b.rank)
            left = self.n - np.bincount(self.codes, minlength=self.n_clusters)
            changed = whole + np.bincount(self.codes, np.nan_to_num(each - whole), self.n_clusters)
            return np.where(left > 1, np.clip(changed, -1, 1), np.nan)
        return np.concatenate([_weighted_correlation(a, b, w) for w in self.row_weights()])

    def row_weights(self) -> Iterator[Floats]:
        """Blocks (n, b) of the weight of each row, that make (n, B)."""
        step = max(1, _CELLS // self.n)
        for start in range(0, self.n_samples, step):
            if self.weights is not None:
                yield self.weights[start : start + step].T[self.codes]
            else:
                clusters = np.arange(start, min(start + step, self.n_clusters))
                yield np.not_equal.outer(self.codes, clusters).astype(np.float64)


@dataclass(frozen=True)
class _Ranking:
    """The rows of one column in rising order."""

    order: NDArray[np.intp]  # (n,), the rows
    first: NDArray[np.intp]  # (n,), of each row: where its ties begin in the order
    end: NDArray[np.intp]  # (n,), and end

    @classmethod
    def of(cls, values: Floats) -> "_Ranking":
        order = np.argsort(values, kind="stable")
        rising = values[order]
        return cls(order, np.searchsorted(rising, values, "left"), np.searchsorted(rising, values, "right"))

    @property
    def constant(self) -> bool:
        return bool(self.end[self.order[0]] == len(self.order))

    @property
    def rank(self) -> Floats:
        """Midranks (n,), from 0.5 on."""
        return (self.first + self.end) / 2

    def weighted(self, weights: Floats) -> Floats:
        """The same under weights of the rows, (n, b): the weight below, and half of that of the ties."""
        total = np.zeros((len(weights) + 1, weights.shape[1]))
        np.cumsum(weights[self.order], axis=0, out=total[1:])
        return (total[self.first] + total[self.end]) / 2


def _weighted_correlation(a: _Ranking, b: _Ranking, weights: Floats) -> Floats:
    """Of midranks under weights (n, b): (b,), NaN where one is constant."""
    total = weights.sum(axis=0)
    share = divide(weights, total)
    x, y = (variable.weighted(weights) - total / 2 for variable in (a, b))  # their mean is half of the weight
    spread = [(share * z * z).sum(axis=0) for z in (x, y)]
    known = np.minimum(*spread) > CONSTANT * np.maximum(total, 1) ** 2
    root = np.sqrt(np.where(known, spread[0] * spread[1], 1.0))
    return np.where(known, np.clip((share * x * y).sum(axis=0) / root, -1.0, 1.0), np.nan)


def _correlation_without_each_row(a: Floats, b: Floats) -> tuple[float, Floats]:
    """The correlation of midranks a and b (n,), and without each row, (n,).

    Without row j the rank of a row above it falls by 1, of one tied with it by 1/2. What is left out is the
    number of rows that are above in both, which is one part in n of the rest.
    """
    n = len(a)

    def falls(of: Floats, other: Floats) -> tuple[Floats, Floats]:
        """Without each row: how much the sums of other x of and of of^2 fall, beyond its own term."""
        order = np.argsort(of, kind="stable")
        rising = of[order]
        first, end = (np.searchsorted(rising, of, side) for side in ("left", "right"))
        sums = [np.concatenate([[0.0], np.cumsum(z[order])]) for z in (other, of)]
        lost = [
            (total[-1] - total[end]) + (total[end] - total[first] - z) / 2
            for total, z in zip(sums, (other, of), strict=True)
        ]
        return lost[0], 2 * lost[1] - (n - end) - (end - first - 1) / 4

    (ab, aa), (ba, bb) = falls(a, b), falls(b, a)
    mean = (n - 1) / 2  # of the ranks that are left
    cross = a @ b - a * b - ab - ba - (n - 1) * mean**2
    spread = [z @ z - z * z - lost - (n - 1) * mean**2 for z, lost in ((a, aa), (b, bb))]
    known = np.minimum(*spread) > 0
    correlation = np.where(known, cross / np.sqrt(np.where(known, spread[0] * spread[1], 1.0)), np.nan)
    return float(np.corrcoef(a, b)[0, 1]), correlation


_CONSTANT = "a target or its predictions are constant"


def _metric(
    name: str, title: str, definition: str, compute: Callable[[_Sample], Floats], **about: Any
) -> Metric:
    about = {"needs": "value", "higher_is_better": True, "undefined": _CONSTANT, "scale": "fisher"} | about
    return Metric(name=name, title=title, definition=definition, compute=compute, **about)


METRICS: MappingProxyType[str, Metric] = MappingProxyType(
    {
        m.name: m
        for m in (
            _metric(
                "pearson",
                "Pearson",
                "Pearson's correlation of prediction and target",
                lambda s: s.by_model(lambda p: s.correlation(s.y, p)),
            ),
            _metric(
                "spearman",
                "Spearman",
                "Pearson's correlation of their midranks",
                lambda s: s.by_model(s.spearman),
            ),
            _metric(
                "r2",
                "R2",
                "1 - sum (y - prediction)^2 / sum (y - mean y)^2, the mean being that of the same rows",
                lambda s: s.by_model(s.r2),
                undefined="a target is constant",
                scale="linear",
            ),
            _metric(
                "mae",
                "MAE",
                "mean of |y - prediction|, in the unit of the target",
                lambda s: s.by_model(lambda p: s.mean(np.abs(s.y - p))),
                higher_is_better=False,
                undefined="no rows",
                scale="log",
            ),
        )
    }
)
DEFAULT_METRICS = tuple(METRICS)


def evaluate(
    y: ArrayLike,
    predictions: ArrayLike,
    *,
    metrics: Iterable[str] | None = None,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
) -> dict[str, Any]:
    """Several metrics at once, target by target.

    y : float (n, T), finite; predictions : float (n, T) or (n, m, T), finite
    metrics : names of `METRICS`; None: all
    weights, groups : as for `metrics.evaluate`
    Returns {name: float64 array of shape (B, m, T) without the axes B and m where they were not given}; NaN
    where undefined. Raises InvalidRequest (names, shapes) and ProbeError (values that are not finite).
    """
    sample, squeeze = _sample(y, predictions, weights, groups)
    return {name: METRICS[name].compute(sample)[squeeze] for name in check_names(metrics)}


def leave_one_out(
    y: ArrayLike, predictions: ArrayLike, *, metrics: Iterable[str], groups: ArrayLike | None = None
) -> dict[str, Floats]:
    """The metrics without each of the G clusters in turn: {name: float64 (G, m, T)}, NaN where undefined.

    Exact, but for Spearman where rows x clusters exceed 4.2e6 (see `_CELLS`).
    """
    sample, _ = _sample(y, predictions, None, groups)
    sample = replace(sample, weights=None)
    return {name: METRICS[name].compute(sample) for name in check_names(metrics)}


def check_names(names: Iterable[str] | None) -> list[str]:
    """The names as a list; None: all. Raises InvalidRequest if one is no metric of numbers."""
    return metrics_module.check_names(names, METRICS, kind="metric of numbers")


def _sample(
    y: ArrayLike, predictions: ArrayLike, weights: ArrayLike | None, groups: ArrayLike | None
) -> tuple[_Sample, tuple[Any, ...]]:
    """The checked arrays, and the index that takes the axes out again that were not given."""
    targets, table = np.asarray(y, np.float64), np.asarray(predictions, np.float64)
    one_model = table.ndim == 2
    if one_model:
        table = table[:, None, :]
    if targets.ndim != 2 or not targets.size or table.ndim != 3 or table[:, 0].shape != targets.shape:
        raise InvalidRequest(
            f"predictions {np.shape(predictions)} do not fit targets {targets.shape}: (n, T) or (n, models, "
            "T) and (n, T), with at least one row"
        )
    for name, array in (("target", targets[:, None]), ("prediction", table)):
        bad = ~np.isfinite(array).all(axis=(1, 2))
        if bad.any():
            raise ProbeError(
                f"{bad.sum()} rows have a {name} that is not finite, the first is row {bad.argmax()}"
            )
    codes, drawn, axis = check_clusters(len(targets), weights, groups)
    sample = _Sample(n=len(targets), weights=drawn, groups=codes, y=targets, predictions=table)
    return sample, (axis, 0 if one_model else slice(None))


# --- intervals and comparisons


@dataclass(frozen=True, kw_only=True)
class ContinuousEstimates(Estimates):
    """Intervals of the means over targets by metric name, and of each target."""

    targets: tuple[Estimates, ...]
    """T times the same metrics; no design effect, `rows_out` is None."""


def estimate(
    y: ArrayLike,
    predictions: ArrayLike,
    *,
    groups: ArrayLike | None,
    metrics: Iterable[str] | None = None,
    targets: Sequence[str] | None = None,
    **how: Unpack[Options],
) -> ContinuousEstimates:
    """Values and intervals of several metrics of m models over clusters of rows, and of each target.

    y, predictions, metrics : as for `evaluate`; targets : names for reasons (None: "target 0", ...)
    The rest as for `intervals.estimate`, whose jackknife and bootstrap these are (correlations on Fisher's z
    scale).
    """
    names = check_names(metrics)
    sample, _ = _sample(y, predictions, None, None)
    labels = [f"target {t}" for t in range(sample.y.shape[1])] if targets is None else list(targets)
    if len(labels) != sample.y.shape[1]:
        raise InvalidRequest(f"{len(labels)} names for {sample.y.shape[1]} targets")
    values = {name: METRICS[name].compute(sample)[0] for name in names}  # (m, T)
    undefined = dict(_undefined(values, labels))

    def parts(estimated: Mapping[str, Floats]) -> dict[str, Floats]:
        """The mean over targets, and each: (B, m)."""
        means = {name: estimated[name].mean(axis=-1) for name in names}
        return means | {f"{name} {t}": estimated[name][..., t] for name in names for t in range(len(labels))}

    whole = estimate_function(
        lambda weights, codes: parts(
            evaluate(sample.y, sample.predictions, metrics=names, weights=weights, groups=codes)
        ),
        without=lambda codes: parts(leave_one_out(sample.y, sample.predictions, metrics=names, groups=codes)),
        undefined=undefined,
        scales={key: METRICS[key.partition(" ")[0]].scale for key in parts(values)},
        n_rows=sample.n,
        groups=groups,
        **how,
    )
    each = tuple(
        replace(
            whole,
            intervals={name: replace(whole[f"{name} {t}"], metric=name, rows_out=None) for name in names},
        )
        for t in range(len(labels))
    )
    about = {key: getattr(whole, key) for key in ("n_rows", "n_clusters", "clusters", "n_resamples", "seed")}
    return ContinuousEstimates(intervals={name: whole[name] for name in names}, targets=each, **about)


def _undefined(values: Mapping[str, Floats], labels: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Why a value is undefined, for the means and for each target."""
    for name, table in values.items():
        missing = [label for label, column in zip(labels, table.T, strict=True) if np.isnan(column).any()]
        why = METRICS[name].undefined
        yield name, f"{why} ({', '.join(missing[:5])}{', ...' if missing[5:] else ''})"
        yield from ((f"{name} {t}", why) for t in range(len(labels)))


def compare_paired(
    y: ArrayLike,
    predictions: ArrayLike,
    *,
    groups: ArrayLike | None,
    metrics: Iterable[str] = ("pearson", "r2"),
    pairs: Iterable[tuple[int, int]] | None = None,
    reference: int | None = None,
    estimates: Mapping[str, Interval] | None = None,
    **how: Unpack[Options],
) -> dict[str, Differences]:
    """`comparisons.compare_paired` for the means over targets of predictions (n, m, T): the same test."""
    names = check_names(metrics)
    if np.ndim(predictions) != 3:
        raise InvalidRequest(f"predictions {np.shape(predictions)}: (n, models, T), two models or more")
    if estimates is None:
        estimates = estimate(y, predictions, groups=groups, metrics=names, **how)
    chosen = pairs_of(np.shape(predictions)[1], pairs, reference)

    def permuted(name: str, pairs: NDArray[np.intp]) -> Differences:
        seed = how.get("seed", 0)
        return permutation_test(y, predictions, metric=name, pairs=pairs, groups=groups, seed=seed)

    few = int(cluster_codes(groups, len(np.asarray(y))).max()) + 1 < FEW_CLUSTERS
    return {name: compare_or_permute(estimates[name], chosen, few=few, permuted=permuted) for name in names}


def permutation_test(
    y: ArrayLike,
    predictions: ArrayLike,
    *,
    metric: str,
    groups: ArrayLike | None,
    pairs: Iterable[tuple[int, int]] | NDArray[np.intp] | None = None,
    reference: int | None = None,
    n_permutations: int = 9999,
    seed: int = 0,
) -> Differences:
    """`comparisons.permutation_test` for predictions (n, m, T). Swapped are the predictions, for Pearson
    standardised within each model and target, for Spearman their ranks.
    """
    check_names([metric])
    sample, _ = _sample(y, predictions, None, None)
    table = sample.predictions
    if metric == "pearson":
        deviation = table.std(axis=0)
        table = (table - table.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    elif metric == "spearman":
        table = midranks(table)

    def score(i: int, j: int, weights: NDArray[Any], groups: NDArray[np.intp]) -> Floats:
        both = np.concatenate([table[:, [i, j]], table[:, [j, i]]])
        twice = np.concatenate([sample.y, sample.y])
        return evaluate(twice, both, metrics=[metric], weights=weights, groups=groups)[metric].mean(axis=-1)

    return permute(
        score,
        METRICS[metric].compute(sample)[0].mean(axis=-1),
        metric=metric,
        codes=cluster_codes(groups, sample.n),
        pairs=pairs_of(table.shape[1], pairs, reference),
        n_permutations=n_permutations,
        seed=seed,
    )

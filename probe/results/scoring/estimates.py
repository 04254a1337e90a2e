"""Metrics of a model with their intervals: which ones, by which method, and as a result has them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from ...config import ProbeConfig
from ...statistics import metrics as metrics_module
from ...statistics import multiclass
from ...statistics.intervals import (
    DEFAULT_METRICS,
    Estimates,
    Interval,
    Method,
    cluster_codes,
    estimate,
    estimate_function,
)
from ..assess import bare, number
from ..schema import TRAIN_ROLES, Estimate
from .rows import Column, Rows

# at probability 0.5, as the fit gives it
METRICS = (
    "balanced_accuracy",
    "auroc",
    "average_precision",
    "f1",
    "mcc",
    "sensitivity",
    "specificity",
    "brier",
    "ece",
    "log_loss",
)

THRESHOLD_METRICS = ("balanced_accuracy", "f1", "mcc", "sensitivity", "specificity")

CALIBRATION_METRICS = ("brier", "ece", "log_loss")

# of K > 2 classes, for the most probable class
CLASSES_CALIBRATION = ("brier", "ece", "log_loss", "balanced_log_loss")

CLASSES_METRICS = ("accuracy", *DEFAULT_METRICS, "f1", "kappa", *CLASSES_CALIBRATION)

FEW_GROUPS = 20  # below, BCa's correction is itself too uncertain: percentiles are given

# Of the variance of out-of-fold scores. The models of K folds share most of their training rows, and each
# held-out row has trained the others. In 200 simulated studies each of 20 and 40 slides (tests/benchmarks/
# stats_coverage.py), intervals of out-of-fold AUROC hold what the models are worth in .92 to .96 with the
# jackknife's own variance, in .93 to .97 with this factor, which is K / (K - 1) at 5 folds
OOF_INFLATION = 1.25

NO_INTERVALS = "no intervals were asked for"


def metrics_of(config: ProbeConfig, classes: Sequence[str]) -> list[str]:
    """METRICS (of K > 2 classes CLASSES_METRICS), without those of probabilities where scores are no logits
    (margins, distances).
    """
    names, calibration = (CLASSES_METRICS, CLASSES_CALIBRATION) if classes else (METRICS, CALIBRATION_METRICS)
    return [m for m in names if config.probabilistic or m not in calibration]


def inflation_of(columns: Sequence[Column], config: ProbeConfig) -> float:
    """OOF_INFLATION for scores out of fold; 1 for the bootstrap, which has no variance to be multiplied."""
    out_of_fold = any(c.role in TRAIN_ROLES for c in columns)
    return OOF_INFLATION if out_of_fold and config.interval == "jackknife" else 1.0


UNCERTAINTY = ("standard_error", "degrees_of_freedom", "design_effect")


def _uncertainty(interval: Interval, j: int) -> dict[str, Any]:
    numbers = {key: number(getattr(interval, key)[j]) for key in UNCERTAINTY}
    return {**numbers, "method": str(interval.method[j]), "reason": interval.reason[j]}


def measure(
    y: np.ndarray, score: np.ndarray, order: np.ndarray, *about: Any, **options: Any
) -> dict[str, Estimate]:
    """metric -> estimate of one model, scores (n,) or (n, K); arguments as for `measure_models`."""
    return measure_models(y, score[:, None], order[:, None], *about, **options)[0]


def measure_models(
    y: np.ndarray,
    score: np.ndarray,
    order: np.ndarray,
    group: np.ndarray,
    names: Sequence[str],
    config: ProbeConfig,
    *,
    inflation: float = 1.0,
    classes: Sequence[str] = (),
    ordered: bool = False,
) -> list[dict[str, Estimate]]:
    """metric -> estimate of each of m models.

    score : logits (n, m), calls at 0, or (n, m, K), K > 2; order : as score, what ranking metrics are of
    inflation : OOF_INFLATION for scores out of fold, which the jackknife alone uses
    classes, ordered : where there are more than two, as in `Rows`
    """
    inflation = inflation if config.interval == "jackknife" else 1.0
    estimates = None
    if config.bootstrap:
        about = {"classes": classes, "ordered": ordered}
        estimates = intervals_of(y, score, order, group, names, config, inflation, **about)
    codes = cluster_codes(group, len(y))
    size = {"n": len(y), "groups": int(codes.max(initial=-1)) + 1}
    return estimates_of(estimates, y, score, order, names, ordered=ordered, **size)


def evaluate_models(
    y: np.ndarray,
    score: np.ndarray,
    order: np.ndarray | None,
    names: Sequence[str],
    *,
    ordered: bool = False,
    logits: bool = True,
) -> dict[str, np.ndarray]:
    """metric -> values float64 (m,) of m models: scores (n, m), calls at 0, or (n, m, K) of K > 2 classes.

    order : as score, what ranks (None: score); logits : False of calls 0 and 1 of one class
    """
    if score.ndim == 3:
        return multiclass.evaluate(y, score, metrics=names, logits=True, order=order, ordered=ordered)
    return metrics_module.evaluate(y, score, metrics=names, logits=logits, order=order)


def estimates_of(
    estimates: Estimates | None,
    y: np.ndarray,
    score: np.ndarray,
    order: np.ndarray,
    names: Sequence[str],
    *,
    n: int | None = None,
    groups: int | None = None,
    **about: Any,
) -> list[dict[str, Estimate]]:
    """metric -> estimate of each of m models; without intervals where none were asked for (None).

    y, score, order, names, about : as for `evaluate_models`; n, groups : rows and clusters, for the record
    """
    size = {"n": n, "groups": groups}
    if estimates is None:
        values = evaluate_models(y, score, order, names, **about)
        nothing: dict[str, Any] = {"method": "none", "reason": NO_INTERVALS, **size}
        return [
            {name: Estimate(number(values[name][j]), **nothing) for name in names}
            for j in range(score.shape[1])
        ]
    return [{name: estimate_of(estimates[name], j, **size) for name in names} for j in range(score.shape[1])]


def estimate_of(interval: Interval, j: int, **size: Any) -> Estimate:
    """Of model j. size : n and groups."""
    return replace(bare(interval, j), **_uncertainty(interval, j), **size)


def _method(group: np.ndarray, config: ProbeConfig) -> Method:
    method = cast("Method", config.interval)  # one of config.INTERVALS
    few = method == "bca" and int(cluster_codes(group, len(group)).max()) + 1 < FEW_GROUPS
    return "percentile" if few else method


def intervals_of(
    y: np.ndarray,
    score: np.ndarray,
    order: np.ndarray,
    group: np.ndarray,
    names: Sequence[str],
    config: ProbeConfig,
    inflation: float = 1.0,
    *,
    level: float | None = None,
    method: Method | None = None,
    classes: Sequence[str] = (),
    ordered: bool = False,
) -> Estimates:
    """Of scores (n, m), or (n, m, K) of K > 2 classes; level, method : instead of the settings'."""
    options = interval_options(group, config)
    options |= {"method": method or options["method"], "confidence": level or config.level}
    if score.ndim == 3:
        options |= {"classes": classes, "ordered": ordered, "inflation": inflation}
        return multiclass.estimate(y, score, groups=group, metrics=names, logits=True, order=order, **options)
    return estimate(
        y, score, groups=group, metrics=names, logits=True, order=order, inflation=inflation, **options
    )


def interval_options(group: np.ndarray, config: ProbeConfig) -> dict[str, Any]:
    """How intervals are made, for `estimate` and `compare_paired`."""
    return {
        "method": _method(group, config),
        "confidence": config.level,
        "n_resamples": config.bootstrap,
        "seed": config.seed,
    }


def mean_of_models(rows: Rows, scores: np.ndarray, *, config: ProbeConfig) -> dict[str, Estimate]:
    """What published tables report, with an interval: the mean over K models of each one's metric.

    scores : float64 (n, K), logits of the models of K folds; calls at probability 0.5 (of C > 2 classes
        (n, K, C), calls of the most probable class)
    Returns metric -> estimate. All K are scored on the same resamples, so their correlation is in the
    interval; that other trainings would give other models is not.
    """
    of: Any = multiclass if rows.classes else metrics_module
    # of more than two classes the log odds rank, unless scores are no logits
    about = {"order": scores if rows.classes and not config.probabilistic else None, "logits": True}
    names = DEFAULT_METRICS
    if not rows.classes:
        names = (*names, "sensitivity", "specificity")  # of which balanced accuracy's interval is made

    def mean(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: np.mean(values[name], axis=-1, keepdims=True) for name in names}

    def score(weights: np.ndarray | None, codes: np.ndarray | None) -> dict[str, np.ndarray]:
        return mean(of.evaluate(rows.y, scores, metrics=names, weights=weights, groups=codes, **about))

    def without(codes: np.ndarray | None) -> dict[str, np.ndarray]:
        return mean(of.leave_one_out(rows.y, scores, metrics=names, groups=codes, **about))

    if not config.bootstrap:
        values = score(None, None)
        return {
            name: Estimate(number(values[name][0]), method="none", reason=NO_INTERVALS)
            for name in DEFAULT_METRICS
        }
    intervals = estimate_function(
        score,
        without=without,
        labels=rows.y if rows.classes else rows.y == 1,
        classes=rows.classes or ("negative", "positive"),
        n_rows=len(rows),
        groups=rows.group,
        scales={name: of.METRICS[name].scale for name in names},
        **interval_options(rows.group, config),
    )
    return {name: estimate_of(intervals[name], 0) for name in DEFAULT_METRICS}

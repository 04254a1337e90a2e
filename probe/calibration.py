"""Thresholds, temperature and Platt scaling, chosen on out-of-fold scores; reliability curves.

Whatever is fitted here is fitted on out-of-fold scores of the training set and then applied to test
scores as it is. Scores are (n,) or (n, m), one column a model; the results are numbers or (m,) then.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from ..errors import InvalidRequest, ProbeError
from .metrics import BINS, Strategy, bin_edges, bin_of, check_labels

Floats = NDArray[np.float64]
Rule = Literal["balanced_accuracy", "sensitivity", "prior"]


def best_threshold(
    y: ArrayLike, scores: ArrayLike, *, rule: Rule = "balanced_accuracy", sensitivity: float = 0.9
) -> Any:
    """The threshold t of each column of scores; score >= t is called positive.

    y : (n,) 0 or 1, both present; scores : (n,) or (n, m), finite, any unit
    rule : "balanced_accuracy": the highest on these rows, which is also Youden's J; of equals the
        largest t. "sensitivity": the largest t with at least that sensitivity (0 < sensitivity <= 1) on
        these rows. "prior": the share of positives, for probabilities of a probe without class weights
        (Bayes' rule for balanced accuracy if they are calibrated).
    The first two lie midway between two neighbouring scores; t is the lowest score if all are called.
    Returns float, or float64 (m,). Raises ProbeError if a class is missing.
    """
    labels, table, one_model = _two_classes(y, scores)
    if rule == "prior":
        if table.min() < 0 or table.max() > 1:
            raise InvalidRequest("rule 'prior' is for probabilities, and these scores leave [0, 1]")
        found = np.full(table.shape[1], labels.mean())
    elif rule in ("balanced_accuracy", "sensitivity"):
        if not 0 < sensitivity <= 1:
            raise InvalidRequest(f"sensitivity lies in (0, 1], not {sensitivity}")
        target = sensitivity if rule == "sensitivity" else None
        found = np.array([_cut(labels, column, target) for column in table.T])
    else:
        raise InvalidRequest(f"rule is 'balanced_accuracy', 'sensitivity' or 'prior', not {rule!r}")
    return float(found[0]) if one_model else found


def _cut(labels: NDArray[np.bool_], scores: Floats, sensitivity: float | None) -> float:
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))  # cuts fall between distinct scores
    sensitivities = np.cumsum(labels[order])[last] / labels.sum()
    if sensitivity is None:
        false_alarms = np.cumsum(~labels[order])[last] / (~labels).sum()
        # rounded, so that of cuts that are equal on paper the first is taken
        k = int(np.argmax(np.round(sensitivities - false_alarms, 12)))
    else:
        k = int(np.argmax(sensitivities >= sensitivity - 1e-12))
    above = falling[last[k]]
    if k == len(last) - 1:
        return float(above)
    below = falling[last[k] + 1]
    middle = below + (above - below) / 2
    return float(middle if middle > below else above)


def fit_temperature(
    y: ArrayLike, logits: ArrayLike, *, class_weight: Literal["balanced"] | None = None, smooth: bool = True
) -> Any:
    """The T > 0 that minimises the log-loss of sigmoid(logit / T) (Guo et al., ICML 2017).

    y : (n,) 0 or 1, both present; logits : (n,) or (n, m), finite
    class_weight : "balanced" weighs the classes alike. T has no offset: for a probe that was fitted with
        balanced classes it can be calibrated to balanced classes only; `fit_platt` moves the prior too.
    smooth : targets (N1 + 1) / (N1 + 2) and 1 / (N0 + 2) in place of 1 and 0 (Platt 1999), so that T > 0
        where the scores separate the classes. Without it such a column raises ProbeError.
    Exact: Newton's method on 1/T, a convex problem. inf where every positive T is worse than a constant
    probability of one half (the scores point the wrong way). Returns float, or float64 (m,).
    """
    labels, table, one_model = _two_classes(y, logits)
    targets, weights = _targets(labels, smooth, class_weight)
    slopes = np.empty(table.shape[1])
    for j, z in enumerate(table.T):
        if not smooth and (z[labels].min() >= 0 >= z[~labels].max()):
            raise ProbeError(f"column {j}: the scores separate the classes, T would be 0; use smooth=True")
        slopes[j] = max(0.0, _newton(z[:, None], targets, weights)[0])
    with np.errstate(divide="ignore"):
        temperature = 1 / slopes
    return float(temperature[0]) if one_model else temperature


class Platt(NamedTuple):
    """probability = sigmoid(scale * score + offset); floats, or float64 (m,)."""

    scale: Any
    offset: Any

    def probability(self, scores: ArrayLike) -> Any:
        """Calibrated probabilities, in the shape of scores, (n,) or (n, m)."""
        return special.expit(np.asarray(scores, np.float64) * self.scale + self.offset)


def fit_platt(
    y: ArrayLike, scores: ArrayLike, *, class_weight: Literal["balanced"] | None = None, smooth: bool = True
) -> Platt:
    """Platt's logistic regression of y on one score (Platt 1999; Lin, Lin & Weng 2007), by Newton's method.

    Arguments as for `fit_temperature`; scores may be any (distances, margins). smooth=False raises
    ProbeError where the scores separate the classes.
    """
    labels, table, one_model = _two_classes(y, scores)
    targets, weights = _targets(labels, smooth, class_weight)
    found = np.empty((table.shape[1], 2))
    for j, z in enumerate(table.T):
        apart = z[labels].min() >= z[~labels].max() or z[labels].max() <= z[~labels].min()
        if not smooth and apart and z.min() < z.max():
            raise ProbeError(f"column {j}: the scores separate the classes; use smooth=True")
        middle = z.min() / 2 + z.max() / 2  # scores far from 0 would leave the two columns nearly parallel
        slope, level = _newton(np.stack([z - middle, np.ones(len(z))], axis=1), targets, weights)
        found[j] = slope, level - slope * middle
    scale, offset = found.T
    return Platt(float(scale[0]), float(offset[0])) if one_model else Platt(scale, offset)


def _targets(
    labels: NDArray[np.bool_], smooth: bool, class_weight: Literal["balanced"] | None
) -> tuple[Floats, Floats]:
    n1 = int(labels.sum())
    n0 = len(labels) - n1
    targets = labels.astype(np.float64)
    if smooth:
        targets = np.where(labels, (n1 + 1) / (n1 + 2), 1 / (n0 + 2))
    if class_weight not in (None, "balanced"):
        raise InvalidRequest(f"class_weight is None or 'balanced', not {class_weight!r}")
    weights = np.where(labels, 0.5 / n1, 0.5 / n0) if class_weight else np.full(len(labels), 1 / len(labels))
    return targets, weights


def _newton(columns: Floats, targets: Floats, weights: Floats) -> Floats:
    """Weights (k,) of columns (n, k) that minimise the mean log-loss against targets in [0, 1]."""
    scale = np.abs(columns).max(axis=0)
    scale[scale == 0] = 1.0
    x = columns / scale
    w = np.zeros(x.shape[1])

    def loss(w: Floats) -> float:
        z = x @ w
        return float(weights @ (np.logaddexp(0, z) - targets * z))

    value, polished = loss(w), 0
    for _ in range(200):
        p = special.expit(x @ w)
        gradient = x.T @ (weights * (p - targets))
        hessian = (x.T * (weights * p * (1 - p))) @ x
        # lstsq: a constant score leaves a direction without curvature, in which nothing is to be gained
        step = np.linalg.lstsq(hessian, gradient, rcond=1e-14)[0]
        decrement = float(gradient @ step)
        if decrement <= 1e-8 * value:
            # too small to be seen in the loss; Newton's steps square the error, so two more are exact
            w = w - step
            polished += 1
            if polished == 2:
                break
            continue
        length = 1.0
        while (trial := loss(w - length * step)) > value - 1e-4 * length * decrement and length > 1e-8:
            length /= 2
        w, value = w - length * step, trial
    return w / scale


def _two_classes(y: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], Floats, bool]:
    labels = check_labels(y)
    table = np.asarray(scores, np.float64)
    one_model = table.ndim == 1
    table = table[:, None] if one_model else table
    if table.ndim != 2 or len(table) != len(labels):
        raise InvalidRequest(f"scores {np.shape(scores)} for {len(labels)} labels: have to be (n,) or (n, m)")
    if not np.isfinite(table).all():
        raise ProbeError("scores that are not finite cannot be calibrated")
    if labels.all() or not labels.any():
        raise ProbeError("thresholds and calibration need rows of both classes")
    return labels, table, one_model


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """A reliability diagram: arrays (bins,) but for edges (bins + 1,); NaN in empty bins."""

    edges: Floats
    count: NDArray[np.intp]
    mean_probability: Floats
    share_positive: Floats
    low: Floats
    """Wilson interval of the share, for independent rows; too narrow where slides cluster."""
    high: Floats
    calibration_error: float
    """Sum of |share - mean probability| weighted by count: `metrics` "ece" or "ece_mass" at 15 bins."""


def reliability_curve(
    y: ArrayLike,
    probabilities: ArrayLike,
    *,
    bins: int = BINS,
    strategy: Strategy = "width",
    confidence: float = 0.95,
) -> Reliability:
    """Observed share of positives by predicted probability, one model.

    y : (n,) 0 or 1; probabilities : (n,) in [0, 1]; bins (a, b], see `metrics.bin_edges`
    """
    labels = check_labels(y)
    p = np.asarray(probabilities, np.float64)
    if p.shape != labels.shape or not ((p >= 0) & (p <= 1)).all():
        raise InvalidRequest(f"probabilities have to be in [0, 1], one for each of {len(labels)} rows")
    edges = bin_edges(p, bins=bins, strategy=strategy)
    which = bin_of(p, edges)
    count = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):
        share = np.bincount(which, labels, bins) / count
        mean = np.bincount(which, p, bins) / count
        z2 = stats.norm.ppf((1 + confidence) / 2) ** 2
        centre = (share + z2 / (2 * count)) / (1 + z2 / count)
        half = np.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2))) / (1 + z2 / count)
    filled = count > 0
    return Reliability(
        edges=edges,
        count=count,
        mean_probability=mean,
        share_positive=share,
        low=np.where(filled, centre - half, np.nan),
        high=np.where(filled, centre + half, np.nan),
        calibration_error=float(np.sum((count * np.abs(share - mean))[filled]) / len(p)),
    )

"""Thresholds, temperature and Platt scaling, chosen on out-of-fold scores; how calibrated and how useful
probabilities are.

What is chosen here (`best_threshold`, `fit_temperature`, `fit_platt`) is chosen on out-of-fold scores of the
training set and then applied to test scores as it is. Scores are (n,) or (n, m), one column a model; the
results are numbers or (m,) then. `assess_calibration`, `net_benefit` and `predictive_values` describe a set
and choose nothing; they give the values without each cluster too, from which `intervals.estimate_function`
makes intervals.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from ...errors import InvalidRequest, ProbeError
from .metrics import BINS, Scale, Strategy, bin_edges, bin_of, check_labels, check_probabilities, check_scores

Floats = NDArray[np.float64]
Codes = NDArray[np.intp]
Rule = Literal["balanced_accuracy", "sensitivity", "specificity", "prior"]


def best_threshold(
    y: ArrayLike,
    scores: ArrayLike,
    *,
    rule: Rule = "balanced_accuracy",
    sensitivity: float = 0.9,
    specificity: float = 0.9,
) -> Any:
    """The threshold t of each column of scores; score >= t is called positive.

    y : (n,) 0 or 1, both present; scores : (n,) or (n, m), finite, any unit
    rule : "balanced_accuracy": the highest on these rows, which is also Youden's J; of equals the
        largest t. "sensitivity": the largest t with at least that sensitivity (0 < sensitivity <= 1) on
        these rows. "specificity": the smallest t with at least that specificity (0 <= specificity <= 1).
        "prior": the share of positives, for probabilities of a probe without class weights
        (Bayes' rule for balanced accuracy if they are calibrated).
    The first three lie midway between two neighbouring scores; t is the lowest score if all are called, and
    the float above the highest if none is (rule "specificity" alone).
    Returns float, or float64 (m,). Raises ProbeError if a class is missing.
    """
    labels, table, one_model = _two_classes(y, scores)
    if rule == "prior":
        if table.min() < 0 or table.max() > 1:
            raise InvalidRequest("rule 'prior' is for probabilities, and these scores leave [0, 1]")
        thresholds = np.full(table.shape[1], labels.mean())
    elif rule in ("balanced_accuracy", "sensitivity"):
        if not 0 < sensitivity <= 1:
            raise InvalidRequest(f"sensitivity lies in (0, 1], not {sensitivity}")
        target = sensitivity if rule == "sensitivity" else None
        thresholds = np.array([_cut(labels, column, target) for column in table.T])
    elif rule == "specificity":
        if not 0 <= specificity <= 1:
            raise InvalidRequest(f"specificity lies in [0, 1], not {specificity}")
        thresholds = np.array([_cut_above(labels, column, specificity) for column in table.T])
    else:
        raise InvalidRequest(
            f"rule is 'balanced_accuracy', 'sensitivity', 'specificity' or 'prior', not {rule!r}"
        )
    return float(thresholds[0]) if one_model else thresholds


def _cut(labels: NDArray[np.bool_], scores: Floats, sensitivity: float | None) -> float:
    falling, last, sensitivities, false_positives = _rates(labels, scores)
    if sensitivity is None:
        # rounded, so that of cuts that are equal on paper the first is taken
        k = int(np.argmax(np.round(sensitivities - false_positives, 12)))
    else:
        k = int(np.argmax(sensitivities >= sensitivity - 1e-12))
    return _between(falling, last, k)


def _cut_above(labels: NDArray[np.bool_], scores: Floats, specificity: float) -> float:
    """The smallest cut that calls at most 1 - specificity of the negatives."""
    falling, last, _, false_positives = _rates(labels, scores)
    allowed = np.flatnonzero(false_positives <= 1 - specificity + 1e-12)
    return (
        _between(falling, last, int(allowed[-1])) if len(allowed) else float(np.nextafter(falling[0], np.inf))
    )


def _rates(labels: NDArray[np.bool_], scores: Floats) -> tuple[Floats, Codes, Floats, Floats]:
    """Scores falling (n,), the last place of each distinct one (k,), and the sensitivity and false positive
    rate of the calls down to it, each (k,).
    """
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))  # cuts fall between distinct scores
    hits, false = np.cumsum(labels[order])[last], np.cumsum(~labels[order])[last]
    return falling, last, hits / labels.sum(), false / (~labels).sum()


def _between(falling: Floats, last: Codes, k: int) -> float:
    """A cut between the k-th distinct score and the next lower one."""
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
    scalings = np.empty((table.shape[1], 2))
    for j, z in enumerate(table.T):
        apart = z[labels].min() >= z[~labels].max() or z[labels].max() <= z[~labels].min()
        if not smooth and apart and z.min() < z.max():
            raise ProbeError(f"column {j}: the scores separate the classes; use smooth=True")
        middle = z.min() / 2 + z.max() / 2  # scores far from 0 would leave the two columns nearly parallel
        slope, level = _newton(np.stack([z - middle, np.ones(len(z))], axis=1), targets, weights)
        scalings[j] = slope, level - slope * middle
    scale, offset = scalings.T
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

    def loss(w: Floats) -> float:
        z = x @ w
        return float(weights @ (np.logaddexp(0, z) - targets * z))

    def slopes(w: Floats) -> tuple[Floats, Floats]:
        p = special.expit(x @ w)
        return x.T @ (weights * (p - targets)), (x.T * (weights * p * (1 - p))) @ x

    return newton(loss, slopes, np.zeros(x.shape[1])) / scale


def newton(
    loss: Callable[[Floats], float], slopes: Callable[[Floats], tuple[Floats, Floats]], w: Floats
) -> Floats:
    """The minimum (k,) of a convex loss from w on; slopes : w -> gradient (k,) and Hessian (k, k)."""
    value, polished = loss(w), 0
    for _ in range(200):
        gradient, hessian = slopes(w)
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
    return w


def _two_classes(y: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], Floats, bool]:
    labels = check_labels(y)
    table, one_model = check_scores(scores, len(labels))
    if labels.all() or not labels.any():
        raise ProbeError("thresholds and calibration need rows of both classes")
    return labels, table, one_model


def _one_model(y: ArrayLike, probabilities: ArrayLike) -> tuple[NDArray[np.bool_], Floats]:
    labels = check_labels(y)
    p, one_model = check_probabilities(probabilities, len(labels))
    if not one_model:
        raise InvalidRequest(f"probabilities {p.shape}: of one model, ({len(labels)},)")
    return labels, p[:, 0]


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
    labels, p = _one_model(y, probabilities)
    if not 0 < confidence < 1:
        raise InvalidRequest(f"confidence lies between 0 and 1, not {confidence}")
    edges = bin_edges(p, bins=bins, strategy=strategy)
    which = bin_of(p, edges)
    count = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore", divide="ignore"):  # of empty bins
        share = np.bincount(which, labels, bins) / count
        mean = np.bincount(which, p, bins) / count
        z2 = special.ndtri((1 + confidence) / 2) ** 2
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


# --- how calibrated the probabilities of a set are


@dataclass(frozen=True, kw_only=True)
class Assessed:
    """Numbers of m models by name, float64 (m,), and the same without each of G clusters, (G, m)."""

    values: dict[str, Floats]
    left_out: dict[str, Floats]


CALIBRATION_SCALES: dict[str, Scale] = {"slope": "linear", "intercept": "linear", "observed_expected": "log"}


def assess_calibration(y: ArrayLike, logits: ArrayLike, codes: Codes | None = None) -> Assessed:
    """Calibration slope, calibration-in-the-large and observed over expected events (Van Calster et al.,
    Journal of Clinical Epidemiology 2016; TRIPOD+AI).

    y : (n,) 0 or 1; logits : (n, m), finite, of the probabilities; codes : (n,), clusters 0 .. G-1 (None:
        rows)
    slope : of the logistic regression of y on the logit; 1 is calibrated, below 1 the probabilities are too
        extreme
    intercept : of the logistic regression with the logit as offset; 0 is calibrated, below 0 they are too
        high
    observed_expected : positives over the sum of probabilities; 1 is calibrated, below 1 they are too high
    NaN where a class is missing, and for a slope where the scores separate the classes.

    Without a cluster the two regressions are one step of Newton's method from the fit on all, which is exact
    to second order in the cluster's share; observed_expected is exact.
    """
    labels = check_labels(y)
    z, _ = check_scores(logits, len(labels))
    codes = np.arange(len(labels)) if codes is None else codes
    n_clusters = int(codes.max()) + 1

    def sums(values: Floats) -> Floats:
        return np.asarray(np.bincount(codes, values, n_clusters), np.float64)

    m = z.shape[1]
    values = {name: np.full(m, np.nan) for name in CALIBRATION_SCALES}
    left_out = {name: np.full((n_clusters, m), np.nan) for name in CALIBRATION_SCALES}
    positives = sums(labels.astype(np.float64))
    negatives = sums((~labels).astype(np.float64))
    both = (positives < positives.sum()) & (negatives < negatives.sum())  # without this cluster
    if labels.all() or not labels.any():
        return Assessed(values=values, left_out=left_out)
    for j, column in enumerate(z.T):
        p = special.expit(column)
        expected = sums(p)
        values["observed_expected"][j] = labels.sum() / p.sum()
        left_out["observed_expected"][:, j] = (labels.sum() - positives) / (p.sum() - expected)
        ones = np.ones((len(column), 1))
        apart = column[labels].min() >= column[~labels].max() or column[labels].max() <= column[~labels].min()
        designs = {"intercept": (ones, column)}
        if not apart:
            designs["slope"] = (np.hstack([(column - column.mean())[:, None], ones]), np.zeros(len(column)))
        for name, (x, offset) in designs.items():
            w = _logistic(x, labels, offset)
            q = special.expit(x @ w + offset)
            gradient = np.stack([sums(c * (q - labels)) for c in x.T], axis=1)  # (G, k)
            weight = q * (1 - q)
            k = x.shape[1]
            hessian = np.stack([sums(x[:, a] * x[:, b] * weight) for a in range(k) for b in range(k)], axis=1)
            left = (hessian.sum(axis=0) - hessian).reshape(-1, k, k)
            solvable = both & (np.linalg.det(left) > 1e-12 * np.linalg.det(left.mean(axis=0)))
            steps = np.linalg.solve(left[solvable], gradient[solvable][:, :, None])[:, :, 0]
            values[name][j] = w[0]
            left_out[name][solvable, j] = w[0] + steps[:, 0]
    return Assessed(values=values, left_out=left_out)


def _logistic(x: Floats, labels: NDArray[np.bool_], offset: Floats) -> Floats:
    """Weights (k,) of an unpenalised logistic regression with an offset, by Newton's method with halved
    steps.
    """
    w = np.zeros(x.shape[1])

    def loss(w: Floats) -> float:
        z = x @ w + offset
        return float(np.logaddexp(0, np.where(labels, -z, z)).sum())

    value = loss(w)
    for _ in range(200):
        q = special.expit(x @ w + offset)
        gradient = x.T @ (q - labels)
        hessian = (x.T * (q * (1 - q))) @ x
        step = np.linalg.lstsq(hessian, gradient, rcond=1e-14)[0]
        length = 1.0
        while (trial := loss(w - length * step)) > value + 1e-12 * abs(value) and length > 1e-10:
            length /= 2
        w, before, value = w - length * step, value, trial
        if float(gradient @ step) <= 1e-12 * max(abs(value), 1e-300) or before == value:
            break
    return w


class Floor(NamedTuple):
    """Expected calibration error that perfectly calibrated probabilities of these rows would have."""

    mean: float
    high: float
    """The value that 5 in 100 sets of such rows exceed."""
    p: float
    """Share of such sets whose error is at least the observed one (add-one)."""


def calibration_floor(
    y: ArrayLike, probabilities: ArrayLike, *, bins: int = BINS, draws: int = 2000, seed: int = 0
) -> Floor:
    """The floor of `metrics` "ece" for one model: its distribution if every probability were right.

    y : (n,) 0 or 1; probabilities : (n,) in [0, 1]
    The error is a mean of absolute differences and so above 0 by chance alone. In each bin of equal width
    the number of positives is drawn from a binomial of the bin's mean probability; rows count as
    independent, so that with slides the floor is higher still.
    """
    labels, p = _one_model(y, probabilities)
    which = bin_of(p, bin_edges(p, bins=bins))
    count = np.bincount(which, minlength=bins)
    total = np.bincount(which, p, bins)
    mean = np.divide(total, count, out=np.zeros(bins), where=count > 0)
    drawn = np.random.default_rng(seed).binomial(count, np.clip(mean, 0, 1), (draws, bins))
    errors = np.abs(drawn - total).sum(axis=1) / len(p)
    observed = np.abs(np.bincount(which, labels, bins) - total).sum() / len(p)
    reached = np.count_nonzero(errors >= observed - 1e-12)
    return Floor(float(errors.mean()), float(np.quantile(errors, 0.95)), (1 + reached) / (1 + draws))


NET_BENEFIT_AT = tuple(round(0.05 * k, 2) for k in range(1, 20))


def net_benefit(
    y: ArrayLike,
    probabilities: ArrayLike,
    codes: Codes | None = None,
    *,
    at: Sequence[float] = NET_BENEFIT_AT,
) -> Assessed:
    """The decision curve (Vickers & Elkin, Medical Decision Making 2006): tp / n - fp / n x t / (1 - t).

    y : (n,) 0 or 1; probabilities : (n, m) in [0, 1], calibrated; codes : as for `assess_calibration`
    at : threshold probabilities t in (0, 1), the odds at which a false positive is worth a true one
    Names: "T" for each t, and "all T", the net benefit of calling every row positive (which has no model:
    the same in all m columns). That of calling none is 0.
    """
    labels = check_labels(y)
    p, _ = check_probabilities(probabilities, len(labels))
    if not all(0 < t < 1 for t in at):
        raise InvalidRequest(f"threshold probabilities lie between 0 and 1, not {list(at)}")
    codes = np.arange(len(labels)) if codes is None else codes
    n_clusters = int(codes.max()) + 1
    sizes = len(labels) - np.bincount(codes, minlength=n_clusters)
    values, left_out = {}, {}
    for t in at:
        gain = np.where(labels, 1.0, -t / (1 - t))[:, None]
        for name, called in ((f"{t:g}", p >= t), (f"all {t:g}", np.ones_like(p, bool))):
            each = gain * called
            summed = np.stack([np.bincount(codes, column, n_clusters) for column in each.T], axis=1)
            values[name] = each.sum(axis=0) / len(labels)
            left_out[name] = (each.sum(axis=0) - summed) / np.maximum(sizes, 1)[:, None]
    return Assessed(values=values, left_out=left_out)


def predictive_values(sensitivity: Floats, specificity: Floats, prevalence: float) -> tuple[Floats, Floats]:
    """PPV and NPV of these sensitivities and specificities, any shape, at a prevalence in (0, 1) (Bayes).

    NaN where nothing is called positive (PPV) or negative (NPV).
    """
    if not 0 < prevalence < 1:
        raise InvalidRequest(f"a prevalence lies between 0 and 1, not {prevalence}")
    true_positive, true_negative = sensitivity * prevalence, specificity * (1 - prevalence)
    positive = true_positive + (1 - specificity) * (1 - prevalence)
    negative = true_negative + (1 - sensitivity) * prevalence
    with np.errstate(invalid="ignore", divide="ignore"):
        return true_positive / positive, true_negative / negative

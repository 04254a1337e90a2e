"""Scores of classifiers of K classes, with intervals over groups and paired comparisons.

`y` int (n,), 0 .. K-1; `scores` float, (n, K) for one model or (n, m, K) for m models: probabilities, or
logits (`logits=True`: probabilities are their softmax). The call is the class with the highest score, the
first of equals. `weights`, `groups` and the axes of a result are those of `metrics`.

What is known of one class is the binary metric of that class against the rest (CLASS_METRICS): calls are the
calls for it, and rows are ordered by `order`, or by the log odds of its probability. What has "macro" in its
title, balanced accuracy and balanced log-loss are means over all K classes. They are undefined where a class
has no row: a mean over the classes that happen to be there is another quantity.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse, special

from ...errors import InvalidRequest, ProbeError
from . import intervals, metrics
from .comparisons import FEW_CLUSTERS, Differences, compare_or_permute, pairs_of, permute
from .intervals import Clusters, Estimates, Interval, Options, cluster_codes, estimate_function
from .metrics import Metric
from .weighted import Floats, Weighted, check_clusters, divide, midranks

CLASS_METRICS = ("sensitivity", "specificity", "precision", "f1", "auroc", "average_precision")
_BLOCK_CELLS = 1 << 21  # float64 (reweightings x K x K) at once
MOST_CLASSES = 200  # a K x K table of counts and K sorts of all rows: above, labels are hardly classes


@dataclass(frozen=True, kw_only=True)
class _Sample(Weighted):
    """Checked inputs and the sums that several metrics share."""

    y: NDArray[np.intp]  # (n,)
    scores: Floats  # (n, m, K)
    logits: bool
    order: Floats | None  # (n, m, K)
    ordered: bool

    @property
    def n_classes(self) -> int:
        return self.scores.shape[2]

    @cached_property
    def calls(self) -> NDArray[np.intp]:
        """(n, m)."""
        return self.scores.argmax(axis=2)

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """(n, m)."""
        return self.calls == self.y[:, None]

    @cached_property
    def one_hot(self) -> NDArray[np.bool_]:
        """(n, K)."""
        return np.equal.outer(self.y, np.arange(self.n_classes))

    @cached_property
    def class_weights(self) -> Floats:
        """Weight of each class, (B, K)."""
        return self.sums(self.one_hot)

    @property
    def total(self) -> Floats:
        """(B, 1)."""
        return self.class_weights.sum(axis=1, keepdims=True)

    def probabilities(self, j: int) -> Floats:
        """Of model j, (n, K)."""
        return special.softmax(self.scores[:, j], axis=1) if self.logits else self.scores[:, j]

    def rank_by(self, k: int) -> Floats:
        """What class k is ranked by, (n, m)."""
        if self.order is not None:
            return self.order[:, :, k]
        return log_odds(self.scores, k) if self.logits else self.scores[:, :, k]

    @cached_property
    def log_losses(self) -> Floats:
        """-log of the probability of the label, clipped as scikit-learn does: (n, m)."""
        tiny = np.finfo(np.float64).eps
        table = special.log_softmax(self.scores, axis=2) if self.logits else self.scores
        own = np.take_along_axis(table, self.y[:, None, None], axis=2)[:, :, 0]
        if self.logits:
            return -np.clip(own, np.log(tiny), np.log1p(-tiny))
        return -np.log(np.clip(own, tiny, 1 - tiny))

    def by_class(self, values: NDArray[Any]) -> Floats:
        """Mean of values (n, m) over the rows of each class, (B, m, K)."""
        sums = [self.sums(values * self.one_hot[:, [k]]) for k in range(self.n_classes)]
        return divide(np.stack(sums, axis=2), self.class_weights[:, None, :])

    def of_class(self, k: int, name: str) -> Floats:
        """A binary metric of class k against the rest, (B, m)."""
        about: dict[str, Any] = {"metrics": [name], "order": self.rank_by(k), "groups": self.groups}
        labelled, called = self.y == k, self.calls == k
        if self.weights is None:
            return metrics.leave_one_out(labelled, called, **about)[name]
        return metrics.evaluate(labelled, called, weights=self.weights, **about)[name]

    def macro(self, name: str) -> Floats:
        """Mean over the classes of a binary metric, (B, m); NaN where a class has no row."""
        of_classes = [self.of_class(k, name) for k in range(self.n_classes)]
        known = self.class_weights.min(axis=1, keepdims=True) > 0
        return np.where(known, np.mean(of_classes, axis=0), np.nan)

    def tables(self, j: int) -> Iterator[Floats]:
        """Confusion matrices of model j, blocks of (b, K, K) that make (B, K, K): labels x calls."""
        k = self.n_classes
        cells = self.y * k + self.calls[:, j]
        shape = (self.n_clusters, k * k)
        counts = sparse.csr_array((np.ones(self.n), (self.codes, cells)), shape=shape)
        whole, step = np.asarray(counts.sum(axis=0)), max(1, _BLOCK_CELLS // (k * k))
        for start in range(0, self.n_samples, step):
            part = slice(start, start + step)
            if self.weights is None:
                yield (whole - counts[part].toarray()).reshape(-1, k, k)
            else:
                yield np.asarray(self.weights[part] @ counts).reshape(-1, k, k)

    @cached_property
    def kappa(self) -> Floats:
        return np.stack(
            [
                np.concatenate([_kappa(table, ordered=self.ordered) for table in self.tables(j)])
                for j in range(self.scores.shape[1])
            ],
            axis=1,
        )

    def brier(self) -> Floats:
        models = range(self.scores.shape[1])
        rows = [((self.probabilities(j) - self.one_hot) ** 2).sum(axis=1) for j in models]
        return divide(self.sums(np.stack(rows, axis=1)), self.total)

    def calibration_error(self, *, of_classes: bool) -> Floats:
        """Top-label, or the mean over the classes of each class's."""
        errors = []
        for j in range(self.scores.shape[1]):
            p = self.probabilities(j)
            if of_classes:
                each = [self._ece(self.y == k, p[:, k]) for k in range(self.n_classes)]
                errors.append(np.mean(each, axis=0))
            else:
                errors.append(self._ece(self.right[:, j], p.max(axis=1)))
        return np.concatenate(errors, axis=1)

    def _ece(self, y: NDArray[np.bool_], p: Floats) -> Floats:
        """(B, 1)."""
        about: dict[str, Any] = {"metrics": ["ece"], "groups": self.groups}
        p = np.clip(p, 0, 1)[:, None]
        if self.weights is None:
            return metrics.leave_one_out(y, p, **about)["ece"]
        return metrics.evaluate(y, p, weights=self.weights, **about)["ece"]


def log_odds(logits: Floats, k: int) -> Floats:
    """log(p_k / (1 - p_k)) of the softmax of logits (..., K): (...)."""
    return logits[..., k] - np.logaddexp.reduce(np.delete(logits, k, axis=-1), axis=-1)


def _kappa(table: Floats, *, ordered: bool) -> Floats:
    """Cohen's kappa (b,) of confusion matrices (b, K, K), 1 - sum(w observed) / sum(w expected).

    w : 1 off the diagonal (Educational and Psychological Measurement 1960); ordered: the squared distance of
        the classes (Psychological Bulletin 1968). NaN where labels and calls are all of one class.
    """
    rank = np.arange(table.shape[1])
    w = ((rank[:, None] - rank) ** 2 if ordered else rank[:, None] != rank).astype(np.float64)
    observed = (w * table).sum(axis=(1, 2)) * table.sum(axis=(1, 2))
    expected = np.einsum("bi,ij,bj->b", table.sum(axis=2), w, table.sum(axis=1))
    return 1 - divide(observed, expected)


_NO_CLASS = "a class is missing"
_EMPTY = "no rows"


def _metric(
    name: str, title: str, definition: str, compute: Callable[[_Sample], Floats], **about: Any
) -> Metric:
    about = {"needs": "threshold", "higher_is_better": True, "undefined": _NO_CLASS} | about
    return Metric(name=name, title=title, definition=definition, compute=compute, **about)


METRICS: MappingProxyType[str, Metric] = MappingProxyType(
    {
        m.name: m
        for m in (
            _metric(
                "accuracy",
                "Accuracy",
                "share of rows whose call is their label",
                lambda s: divide(s.sums(s.right), s.total),
                undefined=_EMPTY,
            ),
            _metric(
                "balanced_accuracy",
                "Balanced accuracy",
                "mean over the classes of the sensitivity to each",
                lambda s: s.by_class(s.right).mean(axis=2),
            ),
            _metric(
                "auroc",
                "AUROC (macro)",
                "mean over the classes of the AUROC of each against the rest",
                lambda s: s.macro("auroc"),
                needs="score",
            ),
            _metric(
                "average_precision",
                "Average precision (macro)",
                "mean over the classes of the average precision of each against the rest",
                lambda s: s.macro("average_precision"),
                needs="score",
            ),
            _metric(
                "f1",
                "F1 (macro)",
                "mean over the classes of the F1 of each against the rest",
                lambda s: s.macro("f1"),
            ),
            _metric(
                "kappa",
                "Cohen's kappa",
                "agreement of call and label beyond chance; of ordered classes with quadratic weights",
                lambda s: s.kappa,
                undefined="all labels and calls are of one class",
                scale="fisher",
            ),
            _metric(
                "log_loss",
                "Log-loss",
                "mean of -log(probability of the label), clipped at 2.2e-16",
                lambda s: divide(s.sums(s.log_losses), s.total),
                needs="probability",
                higher_is_better=False,
                undefined=_EMPTY,
                scale="log",
            ),
            _metric(
                "balanced_log_loss",
                "Balanced log-loss",
                "mean of the classes' mean log-losses",
                lambda s: s.by_class(s.log_losses).mean(axis=2),
                needs="probability",
                higher_is_better=False,
                scale="log",
            ),
            _metric(
                "brier",
                "Brier score",
                "mean over rows of the sum over the classes of (probability - [label])^2, in [0, 2]",
                lambda s: s.brier(),
                needs="probability",
                higher_is_better=False,
                undefined=_EMPTY,
                scale="log",
            ),
            _metric(
                "ece",
                "ECE (top label)",
                f"expected calibration error of the call's probability, {metrics.BINS} bins of equal width",
                lambda s: s.calibration_error(of_classes=False),
                needs="probability",
                higher_is_better=False,
                undefined=_EMPTY,
            ),
            _metric(
                "ece_classwise",
                "ECE (class-wise)",
                "mean over the classes of the expected calibration error of each one's probability",
                lambda s: s.calibration_error(of_classes=True),
                needs="probability",
                higher_is_better=False,
                undefined=_EMPTY,
            ),
        )
    }
)
DEFAULT_METRICS = ("balanced_accuracy", "auroc", "average_precision")
MACRO = ("balanced_accuracy", "auroc", "average_precision", "f1")  # means of binary metrics of the classes
_OF_CLASS = {name: "sensitivity" if name == "balanced_accuracy" else name for name in MACRO}


def evaluate(
    y: ArrayLike,
    scores: ArrayLike,
    *,
    metrics: Iterable[str] | None = None,
    logits: bool = False,
    order: ArrayLike | None = None,
    ordered: bool = False,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
) -> dict[str, Any]:
    """Several metrics of K classes at once, by name.

    y : int (n,), 0 .. K-1, at least one row; scores : float, (n, K) or (n, m, K), finite: probabilities whose
        rows sum to 1, or logits
    metrics : names of `METRICS`; None: all
    order : as scores; column k ranks the rows for class k, for the ranking metrics alone (None: by the log
        odds of the probability of class k)
    ordered : the classes are grades: kappa has quadratic weights
    weights, groups : as for `metrics.evaluate`

    Returns {name: float64 array of shape (B, m) without the axes that were not given}; NaN where undefined.
    Raises InvalidRequest (names, shapes, no probabilities) and ProbeError (labels, scores not finite).
    """
    sample, squeeze = _sample(y, scores, logits, order, ordered, weights, groups)
    return {name: METRICS[name].compute(sample)[squeeze] for name in check_names(metrics)}


def leave_one_out(
    y: ArrayLike,
    scores: ArrayLike,
    *,
    metrics: Iterable[str],
    logits: bool = False,
    order: ArrayLike | None = None,
    ordered: bool = False,
    groups: ArrayLike | None = None,
) -> dict[str, Floats]:
    """The metrics without each of the G clusters in turn: {name: float64 (G, m)}, NaN where undefined.

    Arguments as for `evaluate`, costs and exactness as for `metrics.leave_one_out`.
    """
    sample, _ = _sample(y, scores, logits, order, ordered, None, groups)
    sample = replace(sample, weights=None)
    return {name: METRICS[name].compute(sample) for name in check_names(metrics)}


def confusion(
    y: ArrayLike,
    scores: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
) -> Floats:
    """Confusion matrices, labels x calls: float64 (B, m, K, K) without the axes that were not given.

    Counts of rows without weights. Row k has the calls of the rows of class k.
    """
    sample, squeeze = _sample(y, scores, True, None, False, weights, groups)
    models = range(sample.scores.shape[1])
    return np.stack([np.concatenate(list(sample.tables(j))) for j in models], axis=1)[squeeze]


def one_hot(labels: ArrayLike, n_classes: int) -> Floats:
    """An expert's labels (n,) as a model that is always certain: float64 (n, n_classes).

    For `estimate` and `compare_paired` beside models, with the metrics of calls: accuracy, balanced accuracy,
    F1, kappa, and of the classes sensitivity, specificity, precision, F1.
    """
    codes = _check_labels(labels, n_classes)
    return np.equal.outer(codes, np.arange(n_classes)).astype(np.float64)


def check_names(names: Iterable[str] | None) -> list[str]:
    """The names as a list; None: all. Raises InvalidRequest if one is no metric of K classes."""
    return metrics.check_names(names, METRICS, kind="metric of several classes")


def _sample(
    y: ArrayLike,
    scores: ArrayLike,
    logits: bool,
    order: ArrayLike | None,
    ordered: bool,
    weights: ArrayLike | None,
    groups: ArrayLike | None,
) -> tuple[_Sample, tuple[Any, ...]]:
    """The checked arrays, and the index that takes the axes out again that were not given."""
    labels, table, one_model = check_scores(y, scores)
    if not logits and (table.min() < 0 or not np.allclose(table.sum(axis=2), 1, atol=1e-4)):
        wrong = ((table < 0).any(axis=2) | ~np.isclose(table.sum(axis=2), 1, atol=1e-4)).any(axis=1)
        raise InvalidRequest(
            f"the probabilities of row {wrong.argmax()} do not sum to 1, or one is below 0: "
            "pass logits with logits=True"
        )
    by = None
    if order is not None:
        by = np.asarray(order, np.float64)
        by = by[:, None, :] if by.ndim == 2 else by
        if by.shape != table.shape or not np.isfinite(by).all():
            raise InvalidRequest(
                f"order {by.shape} and scores {table.shape} have to be of one shape, and finite"
            )
    codes, drawn, axis = check_clusters(len(labels), weights, groups)
    sample = _Sample(
        n=len(labels),
        weights=drawn,
        groups=codes,
        y=labels,
        scores=table,
        logits=logits,
        order=by,
        ordered=ordered,
    )
    return sample, (axis, 0 if one_model else slice(None))


def check_scores(y: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.intp], Floats, bool]:
    """Labels (n,), scores (n, m, K), and whether they were (n, K). Raises InvalidRequest and ProbeError."""
    table = np.asarray(scores, np.float64)
    one_model = table.ndim == 2
    if one_model:
        table = table[:, None, :]
    n = len(np.asarray(y))
    if table.ndim != 3 or len(table) != n or table.shape[2] < 2:
        raise InvalidRequest(
            f"scores {np.shape(scores)} do not fit {n} labels: (n, K) or (n, models, K), K two or more"
        )
    if table.shape[2] > MOST_CLASSES:
        raise InvalidRequest(
            f"{table.shape[2]} classes, at most {MOST_CLASSES}: is the label a name or a path of each patch?"
        )
    labels = _check_labels(y, table.shape[2])
    finite = np.isfinite(table).all(axis=(1, 2))
    if not finite.all():
        raise ProbeError(
            f"{(~finite).sum()} rows have a score that is not finite, the first is row {finite.argmin()}"
        )
    return labels, table, one_model


def _check_labels(y: ArrayLike, n_classes: int) -> NDArray[np.intp]:
    labels = np.asarray(y)
    if labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iub":
        raise ProbeError(f"labels are one column of integers with at least one row, not {labels.shape}")
    outside = (labels < 0) | (labels >= n_classes)
    if outside.any():
        row = int(outside.argmax())
        raise ProbeError(f"labels are integers from 0 to {n_classes - 1}: row {row} has {labels[row]}")
    return labels.astype(np.intp)


# --- intervals and comparisons


@dataclass(frozen=True, kw_only=True)
class MulticlassEstimates(Estimates):
    """Intervals over all classes by metric name, and of each class against the rest."""

    classes: tuple[Estimates, ...]
    """K times CLASS_METRICS. `rows_out` is None there: it would be (n, m) for each metric and class."""


def estimate(
    y: ArrayLike,
    scores: ArrayLike,
    *,
    groups: ArrayLike | None,
    metrics: Iterable[str] = DEFAULT_METRICS,
    logits: bool = False,
    order: ArrayLike | None = None,
    ordered: bool = False,
    classes: Sequence[str] | None = None,
    **how: Unpack[Options],
) -> MulticlassEstimates:
    """Values and intervals of several metrics of m models over clusters of rows, and of each class.

    y, scores, metrics, logits, order, ordered : as for `evaluate`; classes : names for reasons (None: "class
        0", ...); the rest as for `intervals.estimate`

    The jackknife's interval as there; degrees of freedom have a part for each class. Exceptions: accuracy is
    a proportion of all rows ("korn-graubard"); balanced accuracy combines the intervals of the classes'
    sensitivities ("mover"); a macro AUROC of exactly 0 or 1 has the means of the bounds of the classes, as if
    they varied together ("exact").
    """
    names = check_names(metrics)
    sample, _ = _sample(y, scores, logits, order, ordered, None, None)
    if classes is None:
        classes = [f"class {k}" for k in range(sample.n_classes)]
    if len(classes) != sample.n_classes:
        raise InvalidRequest(f"{len(classes)} names for {sample.n_classes} classes")
    macro = [name for name in names if name in MACRO]
    absent = [name for k, name in enumerate(classes) if not (sample.y == k).any()]
    no_class = f"no row of {', '.join(absent)} in the set"
    undefined = {n: no_class if METRICS[n].undefined == _NO_CLASS else METRICS[n].undefined for n in METRICS}
    direct = ["accuracy", *(name for name in names if name not in MACRO and name != "accuracy")]
    of: dict[str, Any] = {"metrics": direct, "logits": logits, "order": order, "ordered": ordered}
    whole = estimate_function(
        lambda weights, codes: evaluate(y, scores, weights=weights, groups=codes, **of),
        without=lambda codes: leave_one_out(y, scores, groups=codes, **of),
        labels=sample.y,
        classes=classes,
        undefined=undefined,
        scales={name: METRICS[name].scale for name in direct},
        n_rows=sample.n,
        groups=groups,
        **how,
    )
    estimated = dict(whole.intervals)
    means: dict[str, _Mean] = {name: _Mean() for name in macro}
    each = []
    for k, name in enumerate(classes):
        against_rest = intervals.estimate(
            sample.y == k,
            sample.calls == k,
            order=sample.rank_by(k),
            metrics=CLASS_METRICS,
            classes=("other", name),
            groups=groups,
            **how,
        )
        for mean_name, mean in means.items():
            mean.add(against_rest[_OF_CLASS[mean_name]], against_rest["sensitivity"])
        each.append(
            replace(against_rest, intervals={n: replace(i, rows_out=None) for n, i in against_rest.items()})
        )
    for name, mean in means.items():
        estimated[name] = mean.interval(
            estimated["accuracy"].made_by, name, [one[_OF_CLASS[name]] for one in each], len(classes)
        )
    return MulticlassEstimates(
        intervals={name: estimated[name] for name in names},
        n_rows=whole.n_rows,
        n_clusters=whole.n_clusters,
        clusters=whole.clusters,
        n_resamples=whole.n_resamples,
        seed=whole.seed,
        classes=tuple(each),
    )


class _Mean:
    """Running sums over the classes of one binary metric: as it is, drawn, and without clusters and rows."""

    PARTS = ("value", "draws", "left_out", "rows_out")

    def __init__(self) -> None:
        self.sums: dict[str, Floats | None] = {}

    def add(self, interval: Interval, sensitivity: Interval) -> None:
        """One class. Its sensitivity is undefined exactly where it has no row."""
        for part in self.PARTS:
            values = getattr(interval, part)
            if values is not None:
                values = np.where(np.isnan(getattr(sensitivity, part)), np.nan, values)
                before = self.sums.get(part)
                values = values if before is None else before + values
            self.sums[part] = values

    def interval(self, made_by: intervals.Maker, name: str, parts: Sequence[Interval], n: int) -> Interval:
        value, draws, left_out, rows = (
            None if (total := self.sums[part]) is None else total / n for part in self.PARTS
        )
        assert value is not None
        return made_by.interval(name, value, draws, left_out, rows, METRICS[name].scale, parts)


def compare_paired(
    y: ArrayLike,
    scores: ArrayLike,
    *,
    groups: ArrayLike | None,
    metrics: Iterable[str] = ("balanced_accuracy", "auroc"),
    pairs: Iterable[tuple[int, int]] | None = None,
    reference: int | None = None,
    logits: bool = False,
    order: ArrayLike | None = None,
    ordered: bool = False,
    estimates: Mapping[str, Interval] | None = None,
    **how: Unpack[Options],
) -> dict[str, Differences]:
    """`comparisons.compare_paired` for scores (n, m, K): the same test, on metrics of K classes."""
    names = check_names(metrics)
    about: dict[str, Any] = {"logits": logits, "order": order, "ordered": ordered, "groups": groups}
    if estimates is None:
        estimates = estimate(y, scores, metrics=names, **about, **how)
    labels, table = np.asarray(y), np.asarray(scores)
    if table.ndim != 3:
        raise InvalidRequest(f"scores {table.shape}: (n, models, K), two models or more")
    chosen = pairs_of(table.shape[1], pairs, reference)
    holding = Clusters.of(labels, cluster_codes(groups, len(labels)), table.shape[2]).holding

    def permuted(name: str, pairs: NDArray[np.intp]) -> Differences:
        return permutation_test(y, scores, metric=name, pairs=pairs, seed=how.get("seed", 0), **about)

    few = min(holding) < FEW_CLUSTERS
    return {name: compare_or_permute(estimates[name], chosen, few=few, permuted=permuted) for name in names}


def permutation_test(
    y: ArrayLike,
    scores: ArrayLike,
    *,
    metric: str,
    groups: ArrayLike | None,
    pairs: Iterable[tuple[int, int]] | NDArray[np.intp] | None = None,
    reference: int | None = None,
    logits: bool = False,
    order: ArrayLike | None = None,
    ordered: bool = False,
    n_permutations: int = 9999,
    seed: int = 0,
) -> Differences:
    """`comparisons.permutation_test` for scores (n, m, K). Swapped are the probabilities, and for metrics of
    order the ranks of the rows within each model, class by class.
    """
    check_names([metric])
    sample, _ = _sample(y, scores, logits, order, ordered, None, None)
    table = sample.scores
    ranked = METRICS[metric].needs == "score"
    if ranked:
        ranks = np.stack([midranks(sample.rank_by(k)) for k in range(sample.n_classes)], axis=2)
    else:
        ranks = table

    def exchanged(of: Floats, i: int, j: int) -> Floats:
        return np.concatenate([of[:, [i, j]], of[:, [j, i]]])

    def score(i: int, j: int, weights: NDArray[Any], groups: NDArray[np.intp]) -> Floats:
        return evaluate(
            np.tile(sample.y, 2),
            exchanged(table, i, j),
            metrics=[metric],
            logits=logits,
            order=exchanged(ranks, i, j) if ranked else None,
            ordered=ordered,
            weights=weights,
            groups=groups,
        )[metric]

    return permute(
        score,
        np.atleast_1d(METRICS[metric].compute(sample)[0]),
        metric=metric,
        codes=cluster_codes(groups, sample.n),
        pairs=pairs_of(table.shape[1], pairs, reference),
        n_permutations=n_permutations,
        seed=seed,
    )

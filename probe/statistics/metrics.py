"""Scores of classifiers: vectorised over models and over bootstrap weights, numpy and scipy only.

Binary metrics take `y` (n,), 1 for the positive (rare) class and 0 else, and `scores`, (n,) for one
model or (n, m) for m models, larger meaning more positive. `weights` None scores the sample as it is;
(B, G) are B reweightings of G clusters (a resample counts how often each cluster was drawn), and
`groups` (n,) are the clusters of the rows, codes 0 .. G-1 (None: every row is its own, G = n). The
result has the shape (B, m), less the axes that were not given.

`leave_one_out` scores the sample without each of its clusters in turn, which the jackknife needs, in
O(n log n): counts and losses are the total less the cluster's own, ranking metrics are moved by what each row
adds to them.

Scores may be logits (`logits=True`): then the order is taken on them as they are, calls are made at a
threshold on them, and only what needs probabilities sees expit(score). expit makes ties of all logits above
36.7, so a ranking metric must not be taken on it.

NaN always means "undefined here", most often because a class is missing; `Metric.undefined` says when.
`intervals.estimate` gives no interval there, and says why.

Two sums carry everything. The counts and losses are one matrix product, weights @ values. The ranking
metrics need the weight of each positive's distinct score and of the negatives between and at these
scores; one sparse product per model gives both for all B at once, and no (B, n) array is ever sorted.
Counts are summed in float64 and so exactly: AUROC and AP do not depend on how the work is cut up.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse, special

from ...errors import InvalidRequest, ProbeError
from .weighted import Floats, Weighted, check_clusters, divide, midranks

Bools = NDArray[np.bool_]
Strategy = Literal["width", "mass"]
Scale = Literal["linear", "logit", "fisher", "log"]

BINS = 15  # of the calibration errors: Guo et al., ICML 2017
# what the ranking metrics hold at once, for the second-level cache: float64 (cuts x resamples). The cuts, on
# which the order of summation depends, are always as many
_BLOCK_CUTS = 256
_BLOCK_RESAMPLES = 256
# positives' distinct scores x clusters up to which AUROC and AP without a cluster of several rows are counted
# afresh; above, what its rows change one by one is added up (an error of second order in the cluster's share)
_EXACT_CELLS = 1 << 24
_TABLE_CELLS = 1 << 17  # positives' distinct scores x clusters up to which they are counted in a table

_Counts = sparse.csr_array | sparse.csc_array | Floats  # (cells, clusters)


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Weights of true positives, false positives, false negatives, true negatives, each (B, m)."""

    tp: Floats
    fp: Floats
    fn: Floats
    tn: Floats


@dataclass(frozen=True, kw_only=True)
class _Sample(Weighted):
    """Checked inputs and the sums that several metrics share, each made when it is first used."""

    y: Bools  # (n,)
    scores: Floats  # (n, m)
    threshold: Floats  # (m,)
    logits: bool = False
    order: Floats | None = None  # (n, m), what ranking metrics are taken on; None: scores

    @cached_property
    def probabilities(self) -> Floats:
        if self.logits:
            return special.expit(self.scores)
        if self.scores.size and (self.scores.min() < 0 or self.scores.max() > 1):
            raise InvalidRequest(
                "this metric needs probabilities in [0, 1], and the scores run from "
                f"{self.scores.min():g} to {self.scores.max():g}: pass probabilities, or logits with "
                "logits=True, or leave the metric out"
            )
        return self.scores

    @cached_property
    def class_weights(self) -> tuple[Floats, Floats]:
        """Weight of the positives and of the negatives, each (B, 1)."""
        both = self.sums(np.stack([self.y, ~self.y], axis=1))
        return both[:, :1], both[:, 1:]

    @cached_property
    def confusion(self) -> Confusion:
        predicted = self.scores >= self.threshold
        positive, negative = self.class_weights
        tp, fp = self.sums(predicted & self.y[:, None]), self.sums(predicted & ~self.y[:, None])
        return Confusion(tp=tp, fp=fp, fn=positive - tp, tn=negative - fp)

    @cached_property
    def log_losses(self) -> tuple[Floats, Floats]:
        """Summed log-loss of the positives and of the negatives, each (B, m)."""
        tiny = np.finfo(np.float64).eps  # scikit-learn's clip
        p = np.clip(self.probabilities, tiny, 1 - tiny)
        loss = np.where(self.y[:, None], -np.log(p), -np.log1p(-p))
        return self.sums(loss * self.y[:, None]), self.sums(loss * ~self.y[:, None])

    def calibration_error(self, strategy: Strategy) -> Floats:
        total = sum(self.class_weights)[:, 0]  # pyright: ignore[reportIndexIssue]
        columns = []
        for model in self.probabilities.T:
            bins = bin_of(model, bin_edges(model, strategy=strategy))
            gaps = self.indicator(bins, len(self.y), BINS).multiply(self.y - model)
            summed = np.abs(self.sums(gaps.T.toarray())).sum(axis=1)  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
            columns.append(divide(summed, total))
        return np.stack(columns, axis=1)

    @cached_property
    def ranking(self) -> tuple[Floats, Floats]:
        """AUROC and average precision, each (B, m)."""
        order = self.scores if self.order is None else self.order
        auroc = np.full((self.n_samples, order.shape[1]), np.nan)
        precision = auroc.copy()
        if self.y.any() and not self.y.all():
            for j, model in enumerate(order.T):
                auroc[:, j], precision[:, j] = self._rank(model)
        return auroc, precision

    @cached_property
    def alone(self) -> bool:
        """Whether every cluster is one row."""
        return self.groups is None or (self.n_clusters == self.n and int(np.bincount(self.groups).max()) == 1)

    def _rank(self, scores: Floats) -> tuple[Floats, Floats]:
        """AUROC and average precision of one model, each (B,)."""
        cuts, position = np.unique(-scores[self.y], return_inverse=True)
        if self.weights is None and (self.alone or len(cuts) * self.n_clusters > _EXACT_CELLS):
            return self._without_rows(scores)
        blocks = self._cells(scores, cuts, position)
        positive, negative = (weight[:, 0] for weight in self.class_weights)
        weighed = self._drawn(blocks) if self.weights is not None else _left_out(blocks)
        # as even as can be: one column alone would be summed in another order than several
        ends = np.linspace(0, self.n_samples, -(-self.n_samples // _BLOCK_RESAMPLES) + 1).astype(int)
        parts = []
        for start, end in pairwise(ends):
            part = slice(start, end)
            parts.append(_areas(weighed(part), positive[part], negative[part]))
        auroc, precision = zip(*parts, strict=True)
        return np.concatenate(auroc), np.concatenate(precision)

    def _cells(
        self, scores: Floats, cuts: Floats, position: NDArray[np.intp]
    ) -> list[tuple[_Counts, _Counts]]:
        """Counts of positives and negatives of every cluster, for `_areas`: (t, G) and (2t, G) a block.

        scores : (n,); cuts : the positives' distinct scores, falling; position : (positives,), their places
        """
        order = np.argsort(-scores[~self.y])  # searching for rising numbers misses no cache
        negatives, codes = -scores[~self.y][order], self.codes[~self.y][order]
        # cell 2k: strictly between cut k-1 and cut k; cell 2k+1: tied with cut k
        cell = np.searchsorted(cuts, negatives, "left") + np.searchsorted(cuts, negatives, "right")
        # of few cells a table; of many reweightings a sparse one is multiplied faster
        dense = (self.weights is None or self.n_samples == 1) and len(cuts) * self.n_clusters < _TABLE_CELLS
        counts = []
        for where, n_cells in (
            ((position, self.codes[self.y]), len(cuts)),
            ((cell, codes), 2 * len(cuts) + 1),
        ):
            shape = (n_cells, self.n_clusters)
            if dense:
                each = np.bincount(np.ravel_multi_index(where, shape), minlength=n_cells * self.n_clusters)
                counts.append(each.reshape(shape).astype(np.float64))
            else:
                counts.append(sparse.csr_array((np.ones(len(where[0])), where), shape=shape))
        edges = [*range(0, len(cuts), _BLOCK_CUTS), len(cuts)]
        return [(counts[0][lo:hi], counts[1][2 * lo : 2 * hi]) for lo, hi in pairwise(edges)]

    def _drawn(self, blocks: Sequence[tuple[_Counts, _Counts]]) -> "_Weighing":
        """What `_areas` takes, of some of the reweightings."""

        def weighed(part: slice) -> Iterator[tuple[Floats, Floats]]:
            assert self.weights is not None
            drawn = np.ascontiguousarray(self.weights[part].T)
            return ((at_cut @ drawn, in_cell @ drawn) for at_cut, in_cell in blocks)

        return weighed

    def _without_rows(self, scores: Floats) -> tuple[Floats, Floats]:
        """`_rank` with each cluster left out, from what each row changes when it alone is left out; exact
        where every cluster is one row.
        """
        (all_rows, precise), auroc, precision = _without_each_row(self.y, scores)
        if self.alone:
            values = np.empty((2, len(self.y)))
            values[:, self.codes] = auroc, precision
            return values[0], values[1]
        positive, negative = self.class_weights
        defined = ((positive > 0) & (negative > 0))[:, 0]
        changes = [
            whole + np.bincount(self.codes, np.nan_to_num(each - whole), self.n_clusters)
            for whole, each in ((all_rows, auroc), (precise, precision))
        ]
        first, second = (np.where(defined, change, np.nan) for change in changes)
        return first, second


_Weighing = Callable[[slice], Iterator[tuple[Floats, Floats]]]


def _left_out(blocks: Sequence[tuple[_Counts, _Counts]]) -> _Weighing:
    """What `_areas` takes, without each of some clusters."""
    columns = [
        [(one if isinstance(one, np.ndarray) else one.tocsc(), one.sum(axis=1)[:, None]) for one in block]
        for block in blocks
    ]

    def table(counts: _Counts) -> Floats:
        return counts if isinstance(counts, np.ndarray) else counts.toarray()

    def weighed(part: slice) -> Iterator[tuple[Floats, Floats]]:
        for (at_cut, positive), (in_cell, negative) in columns:
            yield positive - table(at_cut[:, part]), negative - table(in_cell[:, part])

    return weighed


def _areas(
    blocks: Iterable[tuple[Floats, Floats]], n_positive: Floats, n_negative: Floats
) -> tuple[Floats, Floats]:
    """AUROC and average precision, each (b,), of b reweighted samples.

    blocks : of the positives' distinct scores (cuts), falling: the weight of the positives at each cut,
        (t, b); that of the negatives, (2t, b), strictly between cut k-1 and cut k (2k), and at it (2k + 1)
    n_positive, n_negative : (b,), the weight of all
    """
    u, areas, above, over = (np.zeros(len(n_positive)) for _ in range(4))
    for positive, negative in blocks:
        tied = negative[1::2]
        reached = negative[::2] + tied
        reached[0] += over
        _accumulate(reached)  # negatives at or above each cut
        true = positive.copy()
        true[0] += above
        _accumulate(true)  # positives at or above each cut
        above, over = true[-1].copy(), reached[-1].copy()
        u += (positive * (n_negative - reached + 0.5 * tied)).sum(axis=0)
        reached += true
        reached[positive == 0] = 1.0  # what is nothing divided by nothing
        true *= positive
        true /= reached
        areas += true.sum(axis=0)
    # without negatives every ranking is perfect: no statement, as for AUROC
    return divide(u, n_positive * n_negative), divide(areas, np.where(n_negative > 0, n_positive, 0.0))


def _without_each_row(y: Bools, scores: Floats) -> tuple[tuple[float, float], Floats, Floats]:
    """AUROC and average precision, of all rows and without each, (n,), exactly; NaN without a class's last.

    AUROC loses the row's placement value (the share of the other class that it beats, DeLong 1988). In the
    sum of precision over positives, a row takes 1 from the calls (and a positive 1 from the true ones) of
    every cut at or below its score: two running sums over the cuts.
    """
    n_positive, n_negative = int(y.sum()), int((~y).sum())
    u = _pairs_won(y, scores)
    auroc = divide(
        u[y].sum() - u,
        np.where(y, (n_positive - 1) * n_negative, n_positive * (n_negative - 1)).astype(float),
    )
    cuts, at = np.unique(-scores[y], return_counts=True)  # falling scores
    true = np.cumsum(at)  # positives at or above each cut
    called = true + np.searchsorted(np.sort(-scores[~y]), cuts, "right")
    fewer = np.maximum(called - 1, 1)  # where it is 0, nothing is multiplied by it

    def above(terms: Floats) -> Floats:
        """(T + 1,): the sum over the cuts before each."""
        return np.concatenate([[0.0], np.cumsum(terms)])

    plain, negative, positive = (
        above(t) for t in (at * true / called, at * true / fewer, at * (true - 1) / fewer)
    )
    first = np.searchsorted(cuts, -scores, "left")  # the first cut at or below the row's score
    summed = plain[first] + negative[-1] - negative[first]
    own, after = first[y], first[y] + 1
    summed[y] = plain[own] + ((at - 1) * (true - 1) / fewer)[own] + positive[-1] - positive[after]
    left = np.where(y, n_positive - 1, n_positive if n_negative > 1 else 0).astype(float)
    whole = float(u[y].sum()) / (n_positive * n_negative), float(plain[-1]) / n_positive
    return whole, auroc, divide(summed, left)


def _pairs_won(y: Bools, scores: Floats) -> Floats:
    """Of each row the pairs with the other class that it wins, ties half, (n,): `placements` in pairs."""
    order = np.argsort(scores)
    rising, positive = scores[order], y[order]
    first = np.concatenate([[True], rising[1:] != rising[:-1]])
    start = np.flatnonzero(first)
    tie = np.cumsum(first) - 1  # of each row, among the distinct scores
    negatives = np.concatenate([[0], np.cumsum(~positive)])  # before each place
    ends = np.concatenate([start[1:], [len(y)]])
    below = (negatives[start] + negatives[ends])[tie] / 2
    above = int(y.sum()) - (start + ends - negatives[start] - negatives[ends])[tie] / 2
    won = np.empty(len(y))
    won[order] = np.where(positive, below, above)
    return won


def placements(y: Bools, scores: Floats) -> Floats:
    """Share of pairs with the other class that each row wins, ties half: float64 (n, m).

    Their mean over the rows of either class is the AUROC (DeLong, DeLong & Clarke-Pearson, Biometrics 1988);
    by midranks (Sun & Xu, IEEE Signal Processing Letters 2014).
    """
    ranks = midranks(scores)
    placed = np.empty_like(ranks)
    for of, flip in ((y, False), (~y, True)):
        share = (ranks[of] - midranks(scores[of])) / (~of).sum()
        placed[of] = 1 - share if flip else share
    return placed


def _accumulate(rows: Floats) -> None:
    """np.cumsum(axis=0) in place; row by row, which is several times faster than numpy's column by column."""
    if rows.shape[1] == 1:
        np.cumsum(rows, axis=0, out=rows)
        return
    for above, row in pairwise(rows):
        row += above


def _balanced(s: _Sample) -> Floats:
    positive, negative = s.class_weights
    return (divide(s.confusion.tp, positive) + divide(s.confusion.tn, negative)) / 2


def _f1(s: _Sample) -> Floats:
    c = s.confusion
    return divide(2 * c.tp, 2 * c.tp + c.fp + c.fn)


def _mcc(s: _Sample) -> Floats:
    c = s.confusion
    positive, negative = s.class_weights
    spread = positive * negative * (c.tp + c.fp) * (c.tn + c.fn)
    value = (c.tp * c.tn - c.fp * c.fn) / np.sqrt(np.where(spread > 0, spread, 1.0))
    return np.where((positive > 0) & (negative > 0), np.where(spread > 0, value, 0.0), np.nan)


def _log_loss(s: _Sample) -> Floats:
    return divide(sum(s.log_losses), sum(s.class_weights))  # pyright: ignore[reportArgumentType]


def _balanced_log_loss(s: _Sample) -> Floats:
    return sum(divide(loss, w) for loss, w in zip(s.log_losses, s.class_weights, strict=True)) / 2  # pyright: ignore[reportReturnType]


def _brier(s: _Sample) -> Floats:
    return divide(s.sums((s.probabilities - s.y[:, None]) ** 2), sum(s.class_weights))  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What a metric is called, needs and means."""

    name: str
    title: str
    needs: Literal["score", "probability", "threshold", "value"]
    """score: the order alone; probability: scores in [0, 1]; threshold: calls score >= threshold positive;
    value: predictions in the unit of the target."""
    higher_is_better: bool
    undefined: str
    """When the value is NaN."""
    definition: str
    scale: Scale = "logit"
    """On which symmetric intervals are made: "logit" for [0, 1], "fisher" for [-1, 1], "log" for [0, inf)."""
    compute: Callable[[Any], Floats] = field(repr=False)


_NO_CLASS = "a class is missing"
_EMPTY = "no rows"

METRICS: MappingProxyType[str, Metric] = MappingProxyType(
    {
        m.name: m
        for m in (
            Metric(
                name="balanced_accuracy",
                title="Balanced accuracy",
                needs="threshold",
                higher_is_better=True,
                undefined=_NO_CLASS,
                definition="mean of sensitivity and specificity",
                compute=_balanced,
            ),
            Metric(
                name="auroc",
                title="AUROC",
                needs="score",
                higher_is_better=True,
                undefined=_NO_CLASS,
                definition="P(positive above negative) + P(tie) / 2 (Mann-Whitney)",
                compute=lambda s: s.ranking[0],
            ),
            Metric(
                name="average_precision",
                title="Average precision",
                needs="score",
                higher_is_better=True,
                undefined=_NO_CLASS,
                definition="sum of precision x step of recall over distinct scores, no interpolation",
                compute=lambda s: s.ranking[1],
            ),
            Metric(
                name="f1",
                title="F1",
                needs="threshold",
                higher_is_better=True,
                undefined="no positive row and none called positive",
                definition="2 tp / (2 tp + fp + fn)",
                compute=_f1,
            ),
            Metric(
                name="mcc",
                title="MCC",
                needs="threshold",
                higher_is_better=True,
                undefined=_NO_CLASS,
                definition="correlation of label and call; 0 where all calls are the same",
                scale="fisher",
                compute=_mcc,
            ),
            Metric(
                name="sensitivity",
                title="Sensitivity",
                needs="threshold",
                higher_is_better=True,
                undefined="no positive row",
                definition="tp / (tp + fn)",
                compute=lambda s: divide(s.confusion.tp, s.class_weights[0]),
            ),
            Metric(
                name="specificity",
                title="Specificity",
                needs="threshold",
                higher_is_better=True,
                undefined="no negative row",
                definition="tn / (tn + fp)",
                compute=lambda s: divide(s.confusion.tn, s.class_weights[1]),
            ),
            Metric(
                name="precision",
                title="Precision",
                needs="threshold",
                higher_is_better=True,
                undefined="no row called positive",
                definition="tp / (tp + fp)",
                compute=lambda s: divide(s.confusion.tp, s.confusion.tp + s.confusion.fp),
            ),
            Metric(
                name="brier",
                title="Brier score",
                needs="probability",
                higher_is_better=False,
                undefined=_EMPTY,
                definition="mean of (probability - y)^2",
                compute=_brier,
            ),
            Metric(
                name="log_loss",
                title="Log-loss",
                needs="probability",
                higher_is_better=False,
                undefined=_EMPTY,
                definition="mean of -log(probability of the label), probabilities clipped at 2.2e-16",
                scale="log",
                compute=_log_loss,
            ),
            Metric(
                name="balanced_log_loss",
                title="Balanced log-loss",
                needs="probability",
                higher_is_better=False,
                undefined=_NO_CLASS,
                definition="mean of the two classes' mean log-losses",
                scale="log",
                compute=_balanced_log_loss,
            ),
            Metric(
                name="ece",
                title="ECE (equal width)",
                needs="probability",
                higher_is_better=False,
                undefined=_EMPTY,
                definition=f"expected calibration error, {BINS} bins of equal width",
                compute=lambda s: s.calibration_error("width"),
            ),
            Metric(
                name="ece_mass",
                title="ECE (equal mass)",
                needs="probability",
                higher_is_better=False,
                undefined=_EMPTY,
                definition=f"expected calibration error, {BINS} bins of equal mass in the unweighted sample",
                compute=lambda s: s.calibration_error("mass"),
            ),
        )
    }
)


def evaluate(
    y: ArrayLike,
    scores: ArrayLike,
    *,
    metrics: Iterable[str] | None = None,
    threshold: ArrayLike | None = None,
    logits: bool = False,
    order: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
) -> dict[str, Any]:
    """Several binary metrics at once, by name; what they share is computed once.

    y : int or bool, (n,), 0 or 1; at least one row
    scores : float, (n,) or (n, m), finite
    metrics : names of `METRICS`; None: all that these scores allow (without those that need
        probabilities if a score lies outside [0, 1])
    threshold : float or (m,), in the unit of the scores; score >= threshold is called positive. None: 0.5,
        or 0 for logits
    logits : scores are logits; their probabilities are expit(score)
    order : as scores, taken by the ranking metrics instead of them (None: scores); for scores of several
        models in one column, which are on one scale only after calibration
    weights : (B, G) or (G,), not negative; groups : int, (n,), 0 .. G-1 (see the module's docstring)

    Returns {name: float64 array of shape (B, m) without the axes that were not given}; NaN where
    undefined. Raises InvalidRequest (unknown names, shapes, no probabilities) and ProbeError (labels
    other than 0 and 1, scores that are not finite, no rows).
    """
    sample, squeeze = _sample(y, scores, threshold, weights, groups, logits=logits, order=order)
    if metrics is None:
        outside = not logits and bool((sample.scores < 0).any() or (sample.scores > 1).any())
        names = [m.name for m in METRICS.values() if not (outside and m.needs == "probability")]
    else:
        names = check_names(metrics)
    return {name: METRICS[name].compute(sample)[squeeze] for name in names}


def leave_one_out(
    y: ArrayLike,
    scores: ArrayLike,
    *,
    metrics: Iterable[str],
    threshold: ArrayLike | None = None,
    logits: bool = False,
    order: ArrayLike | None = None,
    groups: ArrayLike | None = None,
) -> dict[str, Floats]:
    """The metrics without each of the G clusters in turn: {name: float64 (G, m)}, NaN where undefined.

    Arguments and errors as for `evaluate`; groups None: each row is a cluster. The same numbers as
    `evaluate` gives for G rows of weights with one 0 in each, in O(n log n) instead of O(n G). Exact, but for
    AUROC and AP of clusters of several rows where positives x clusters exceed 1.7e7 (see `_EXACT_CELLS`).
    """
    sample, _ = _sample(y, scores, threshold, None, groups, logits=logits, order=order)
    sample = replace(sample, weights=None)
    return {name: METRICS[name].compute(sample) for name in check_names(metrics)}


def check_names(
    names: Iterable[str] | None, known: Mapping[str, Metric] = METRICS, *, kind: str = "metric"
) -> list[str]:
    """The names as a list; None: all. Raises InvalidRequest if one is not among the known ones."""
    asked = [names] if isinstance(names, str) else list(known if names is None else names)
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise InvalidRequest(f"no {kind} is called {', '.join(unknown)}; there are: {', '.join(known)}")
    return asked


def confusion(
    y: ArrayLike,
    scores: ArrayLike,
    *,
    threshold: ArrayLike | None = None,
    logits: bool = False,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
) -> Confusion:
    """Counts (or weights) of the four outcomes; arguments, shapes and errors as for `evaluate`."""
    sample, squeeze = _sample(y, scores, threshold, weights, groups, logits=logits)
    c = sample.confusion
    return Confusion(tp=c.tp[squeeze], fp=c.fp[squeeze], fn=c.fn[squeeze], tn=c.tn[squeeze])


def _sample(
    y: ArrayLike,
    scores: ArrayLike,
    threshold: ArrayLike | None,
    weights: ArrayLike | None,
    groups: ArrayLike | None,
    *,
    logits: bool = False,
    order: ArrayLike | None = None,
) -> tuple[_Sample, tuple[Any, ...]]:
    """The checked arrays, and the index that takes the axes out again that were not given."""
    labels = check_labels(y)
    table, one_model = check_scores(scores, len(labels))
    by = None if order is None else check_scores(order, len(labels))[0]
    if by is not None and by.shape != table.shape:
        raise InvalidRequest(f"order {by.shape} and scores {table.shape} have to be of one shape")
    if threshold is None:
        threshold = 0.0 if logits else 0.5
    cut = np.asarray(threshold, np.float64)
    if cut.ndim > 1 or (cut.ndim == 1 and len(cut) != table.shape[1]):
        raise InvalidRequest(f"threshold {cut.shape}: one number, or one for each of {table.shape[1]} models")
    if np.isnan(cut).any():
        raise InvalidRequest("a threshold is NaN: no score reaches it")
    codes, drawn, axis = check_clusters(len(labels), weights, groups)
    sample = _Sample(
        n=len(labels),
        weights=drawn,
        groups=codes,
        y=labels,
        scores=table,
        threshold=np.broadcast_to(cut, table.shape[1:]),
        logits=logits,
        order=by,
    )
    return sample, (axis, 0 if one_model else slice(None))


def check_scores(scores: ArrayLike, n: int) -> tuple[Floats, bool]:
    """Scores of n rows as (n, m), and whether they were (n,). Raises InvalidRequest (shape) and ProbeError
    (not finite).
    """
    table = np.asarray(scores, np.float64)
    one_model = table.ndim == 1
    if one_model:
        table = table[:, None]
    if table.ndim != 2 or len(table) != n:
        raise InvalidRequest(f"scores {np.shape(scores)} do not fit {n} labels: (n,) or (n, models)")
    bad = ~np.isfinite(table).all(axis=1)
    if bad.any():
        raise ProbeError(f"{bad.sum()} rows have a score that is not finite, the first is row {bad.argmax()}")
    return table, one_model


def check_probabilities(probabilities: ArrayLike, n: int) -> tuple[Floats, bool]:
    """`check_scores` of probabilities; InvalidRequest if one lies outside [0, 1]."""
    table, one_model = check_scores(probabilities, n)
    outside = ((table < 0) | (table > 1)).any(axis=1)
    if outside.any():
        row = int(outside.argmax())
        raise InvalidRequest(f"probabilities have to be in [0, 1]: row {row} has {table[row].tolist()}")
    return table, one_model


def check_labels(y: ArrayLike) -> Bools:
    """(n,) labels 0 and 1 as booleans. Raises ProbeError."""
    labels = np.asarray(y)
    if labels.ndim != 1 or not len(labels):
        raise ProbeError(f"labels are one column with at least one row, not {labels.shape}")
    other = labels[~np.isin(labels, (0, 1))]
    if len(other):
        raise ProbeError(f"labels are 0 or 1, not {[*dict.fromkeys(other.tolist())][:5]}")
    return labels.astype(bool)


def bin_edges(p: ArrayLike, *, bins: int = BINS, strategy: Strategy = "width") -> Floats:
    """Edges (bins + 1,) of calibration bins (a, b], the first one closed: equal in width over [0, 1], or
    in mass (quantiles of p, (n,); equal probabilities stay together, so bins may be empty).
    """
    if bins < 1:
        raise InvalidRequest(f"{bins} bins: one or more")
    if strategy == "width":
        return np.linspace(0.0, 1.0, bins + 1)
    if strategy == "mass":
        return np.quantile(np.asarray(p, np.float64), np.linspace(0.0, 1.0, bins + 1))
    raise InvalidRequest(f"bins are equal in 'width' or in 'mass', not {strategy!r}")


def bin_of(p: ArrayLike, edges: Floats) -> NDArray[np.intp]:
    """The bin, 0 .. bins-1, of every p (n,)."""
    return np.searchsorted(edges[1:-1], np.asarray(p, np.float64), "left")


def balanced_accuracy(
    y: ArrayLike, scores: ArrayLike, *, threshold: ArrayLike | None = None, **sample: Any
) -> Any:
    """Mean of sensitivity and specificity; keywords, shapes and errors as for `evaluate`."""
    return evaluate(y, scores, metrics=["balanced_accuracy"], threshold=threshold, **sample)[
        "balanced_accuracy"
    ]


def auroc(y: ArrayLike, scores: ArrayLike, **sample: Any) -> Any:
    """Area under the ROC curve, ties counting half; keywords, shapes and errors as for `evaluate`."""
    return evaluate(y, scores, metrics=["auroc"], **sample)["auroc"]


def average_precision(y: ArrayLike, scores: ArrayLike, **sample: Any) -> Any:
    """Average precision, scikit-learn's definition; keywords, shapes and errors as for `evaluate`."""
    return evaluate(y, scores, metrics=["average_precision"], **sample)["average_precision"]

"""What the experts' votes say: agreement, the human reference line, scores by agreement, soft labels.

A vote is for the positive class (1) or not (0). Manifests keep counts (votes_positive, votes_total);
the leave-one-out line of each expert needs the experts' columns themselves. No row is left out of the human
line unless asked for: where the other experts tie, the row counts half as positive and half as negative.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import special

from ...errors import InvalidRequest, ProbeError
from .metrics import check_labels, check_probabilities, check_scores, evaluate
from .weighted import Weighted, check_clusters, midranks

Floats = NDArray[np.float64]
Counts = NDArray[np.intp]
Ties = Literal["split", "drop"]


def check_votes(positive: ArrayLike, total: ArrayLike) -> tuple[Counts, Counts]:
    """Votes for the positive class and in all, int (n,) each. Raises ProbeError naming the first bad row."""
    columns = [np.asarray(positive, object), np.asarray(total, object)]
    if columns[0].ndim != 1 or columns[0].shape != columns[1].shape or not len(columns[0]):
        raise ProbeError(f"votes {columns[0].shape} of {columns[1].shape}: two columns with at least one row")
    given = pd.DataFrame({"positive": columns[0], "total": columns[1]})
    missing = np.asarray(given.isna()).any(axis=1)
    if missing.any():
        raise ProbeError(f"row {missing.argmax()} has no votes: select the rows that have")
    numbers = given.apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    broken = ~(numbers == np.round(numbers)).all(axis=1) | ~np.isfinite(numbers).all(axis=1)
    if broken.any():
        row = int(broken.argmax())
        raise ProbeError(f"row {row}: votes are whole numbers, not {columns[0][row]} of {columns[1][row]}")
    p, t = numbers.T.astype(np.intp)
    bad = (p < 0) | (p > t) | (t < 1)
    if bad.any():
        row = int(bad.argmax())
        raise ProbeError(f"row {row}: {p[row]} positive of {t[row]} votes")
    return p, t


def fleiss_kappa(counts: ArrayLike) -> float:
    """Fleiss' kappa (Psychological Bulletin 1971): agreement beyond chance of r raters on n subjects.

    counts : int (n, categories), how many raters chose each category; every row sums to r >= 2. For
        binary votes np.stack([positive, total - positive], axis=1).
    Returns at most 1; NaN where all raters chose one category throughout (0 / 0).
    Raises ProbeError if rows have different numbers of raters.
    """
    table = np.asarray(counts, np.float64)
    if table.ndim != 2 or not len(table):
        raise InvalidRequest(f"counts {table.shape} have to be (subjects, categories)")
    if not ((table >= 0) & (table == np.round(table))).all():
        raise ProbeError("counts of raters are whole numbers, 0 or more")
    raters = table.sum(axis=1)
    r = raters[0]
    if r < 2 or (raters != r).any():
        raise ProbeError(
            f"Fleiss' kappa needs the same number (2 or more) of votes in every row, not {np.unique(raters)}"
        )
    observed = float(((table**2).sum(axis=1) - r).mean() / (r * (r - 1)))
    shares = table.sum(axis=0) / table.sum()
    chance = float((shares**2).sum())
    return (observed - chance) / (1 - chance) if chance < 1 else float("nan")


def unanimous_share(positive: ArrayLike, total: ArrayLike) -> float:
    """The share of rows whose votes are all alike."""
    p, t = check_votes(positive, total)
    return float(((p == 0) | (p == t)).mean())


@dataclass(frozen=True, kw_only=True)
class HumanLine:
    """Each expert against the majority of the others. Arrays are (experts,)."""

    balanced_accuracy: Floats
    sensitivity: Floats
    specificity: Floats
    tied: Counts
    """Rows where the others tie. They count half as positive and half as negative (ties "split"), or are
    left out (ties "drop")."""
    rows: Counts
    """Rows that were scored."""

    @property
    def mean(self) -> float:
        """The reference line: the mean over experts of their balanced accuracies."""
        return float(self.balanced_accuracy.mean())


def leave_one_out(votes: ArrayLike, *, ties: Ties = "split") -> HumanLine:
    """The human reference line: balanced accuracy of each expert against the majority of the others.

    votes : (n, experts), 0 or 1, at least three experts
    ties : the rows where the others tie are the hardest. "split": they count half as positive and half as
        negative, so that every expert is scored on every row. "drop": they are left out, which flatters.
    A model that is scored against the majority of all experts has a slightly easier task than an expert
    here (the majority of one vote less is noisier), and no vote of its own in it: `human_line` scores models
    against the same references.
    """
    table = _ballots(votes)
    scores = score_experts(table, ties=ties)
    others = table.sum(axis=1, keepdims=True) - table
    tied = (2 * others == table.shape[1] - 1).sum(axis=0)
    return HumanLine(
        balanced_accuracy=scores["balanced_accuracy"],
        sensitivity=scores["sensitivity"],
        specificity=scores["specificity"],
        tied=tied,
        rows=np.full(len(tied), len(table)) if ties == "split" else len(table) - tied,
    )


def score_experts(
    votes: ArrayLike,
    *,
    ties: Ties = "split",
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
) -> dict[str, Any]:
    """`leave_one_out` under weights, for `intervals.estimate_function`.

    weights, groups : as for `metrics.evaluate`
    Returns balanced_accuracy, sensitivity, specificity ([B,] experts) and mean ([B]) of the first.
    """
    table = _ballots(votes)
    n, n_experts = table.shape
    rows, squeeze = _weighted(n, weights, groups)
    mean = rows.mean
    positive, negative = _reference(table.sum(axis=1, keepdims=True) - table, n_experts - 1, ties)
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivity = mean(positive * table) / mean(positive)
        specificity = mean(negative * (1 - table)) / mean(negative)
    scores = {
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
    }
    found = {name: values[squeeze] for name, values in scores.items()}
    return {**found, "mean": found["balanced_accuracy"].mean(axis=-1)}


def _reference(others: Counts, of: Counts | int, ties: Ties) -> tuple[Floats, Floats]:
    """Weight of a row as positive and as negative, by the majority of the others' votes; any shape."""
    if ties not in ("split", "drop"):
        raise InvalidRequest(f"ties is 'split' or 'drop', not {ties!r}")
    tied = (2 * others == of) * (0.5 if ties == "split" else 0.0)
    return (2 * others > of) + tied, (2 * others < of) + tied


def _weighted(n: int, weights: ArrayLike | None, groups: ArrayLike | None) -> tuple[Weighted, Any]:
    """Sums over rows under weights of clusters, and the index that takes B out again."""
    codes, drawn, axis = check_clusters(n, weights, groups)
    return Weighted(n=n, weights=drawn, groups=codes), axis


def _ballots(votes: ArrayLike) -> Counts:
    table = np.asarray(votes)
    if table.ndim != 2 or not len(table) or table.shape[1] < 3 or not np.isin(table, (0, 1)).all():
        raise InvalidRequest("votes have to be 0 or 1, (n, experts) with at least three experts")
    return table.astype(np.intp)


@dataclass(frozen=True, kw_only=True)
class PooledLine:
    """Experts and m models on the same rows, against the same references (`human_line`)."""

    values: dict[str, Floats]
    """"expert" (1,), "model" (m,): balanced accuracies; "difference" (m,): expert less model."""
    left_out: dict[str, Floats]
    """The same without each cluster: (G, 1) and (G, m)."""
    votes: int
    """(expert, row) pairs that were scored."""
    tied: int
    """Those of them where the other experts tie."""


def human_line(
    positive: ArrayLike,
    total: ArrayLike,
    called: ArrayLike,
    codes: ArrayLike | None = None,
    *,
    ties: Ties = "split",
) -> PooledLine:
    """The human line where only counts of votes are known, and models on the very same rows and references.

    positive, total : int (n,), votes for the positive class and in all, at least three; called : bool (n, m)
    codes : int (n,), clusters 0 .. G-1 (None: rows)
    Every vote is scored against the majority of the row's other votes (ties as in `leave_one_out`), and so
    is the model's call, once for each vote. It weighs experts by their votes and not alike, so the expert's
    value is near `HumanLine.mean` and not equal to it.
    """
    p, t = check_votes(positive, total)
    if t.min() < 3:
        raise ProbeError(f"row {t.argmin()} has {t.min()} votes: the human line needs three or more")
    calls, _ = check_scores(called, len(p))
    if not np.isin(calls, (0, 1)).all():
        raise InvalidRequest("calls are positive or not: a threshold has to be applied to scores")
    where = np.arange(len(p)) if codes is None else np.asarray(codes, np.intp)
    hit = np.zeros((2, len(p)))  # votes that agree with a positive, and with a negative reference
    weight = np.zeros((2, len(p)))
    tied = 0
    # a positive vote leaves p - 1 of t - 1 others, a negative one p of t - 1
    for cast, others, number in ((1, p - 1, p), (0, p, t - p)):
        for side, reference in enumerate(_reference(others, t - 1, ties)):
            weight[side] += number * reference
            hit[side] += number * reference * (cast == 1 - side)
        tied += int(number[2 * others == t - 1].sum())
    of_models = np.stack([weight[0][:, None] * calls, weight[1][:, None] * (1 - calls)])
    parts = np.concatenate([hit[:, :, None], of_models], axis=2)  # (2, n, 1 + m)

    def balanced(hits: Floats, weights: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return (hits / weights).mean(axis=0)

    def by_cluster(values: Floats) -> Floats:
        return np.asarray(np.bincount(where, values, int(where.max()) + 1), np.float64)

    each = np.stack([np.stack([by_cluster(c) for c in side.T], axis=1) for side in parts])  # (2, G, 1 + m)
    weights = np.stack([by_cluster(side) for side in weight])[:, :, None]
    whole = balanced(each.sum(axis=1), weights.sum(axis=1))
    without = balanced(each.sum(axis=1, keepdims=True) - each, weights.sum(axis=1, keepdims=True) - weights)
    return PooledLine(
        values={"expert": whole[:1], "model": whole[1:], "difference": whole[0] - whole[1:]},
        left_out={
            "expert": without[:, :1],
            "model": without[:, 1:],
            "difference": without[:, :1] - without[:, 1:],
        },
        votes=int(t.sum()) - (tied if ties == "drop" else 0),
        tied=tied,
    )


def by_votes(
    scores: ArrayLike, positive: ArrayLike, total: ArrayLike, *, threshold: ArrayLike = 0.5
) -> pd.DataFrame:
    """How the scores rise with the votes: a row for each (votes_positive, votes_total) and model.

    scores : (n,) or (n, m); threshold : one number or (m,); score >= threshold is called positive
    Columns: votes_positive, votes_total, model (column of scores), rows, mean_score, called_positive (share).
    """
    p, t = check_votes(positive, total)
    table, _ = check_scores(scores, len(p))
    called = table >= np.asarray(threshold)
    return pd.DataFrame(
        {
            "votes_positive": v,
            "votes_total": of,
            "model": model,
            "rows": int(rows.sum()),
            "mean_score": table[rows, model].mean(),
            "called_positive": called[rows, model].mean(),
        }
        for of, v in sorted({*zip(t.tolist(), p.tolist(), strict=True)})
        for rows in [(p == v) & (t == of)]
        for model in range(table.shape[1])
    )


def by_agreement(
    y: ArrayLike,
    scores: ArrayLike,
    positive: ArrayLike,
    total: ArrayLike,
    *,
    metrics: Iterable[str] = ("balanced_accuracy", "auroc", "average_precision"),
    threshold: ArrayLike | None = None,
    logits: bool = False,
    order: ArrayLike | None = None,
) -> pd.DataFrame:
    """Metrics by how many votes the winning side has (5 of 5, 4 of 5, 3 of 5): hard cases by themselves.

    y : (n,) 0 or 1; scores : (n,) or (n, m); threshold, logits, order : as for `metrics.evaluate`
    A row for each stratum, highest agreement first, and model. Columns: votes_agreeing, votes_total, model,
    rows, positives, then the metrics (NaN where one class is missing in the stratum).
    """
    p, t = check_votes(positive, total)
    labels = check_labels(y)
    table, _ = check_scores(scores, len(p))
    ranked = table if order is None else check_scores(order, len(p))[0]
    agreeing = np.maximum(p, t - p)
    records = []
    names = list(metrics)
    for of, a in sorted({*zip(t.tolist(), agreeing.tolist(), strict=True)}, reverse=True):
        rows = (agreeing == a) & (t == of)
        values = evaluate(
            labels[rows],
            table[rows],
            metrics=names,
            threshold=threshold,
            logits=logits,
            order=ranked[rows],
        )
        records += [
            {
                "votes_agreeing": a,
                "votes_total": of,
                "model": model,
                "rows": int(rows.sum()),
                "positives": int(labels[rows].sum()),
                **{name: values[name][model] for name in names},
            }
            for model in range(table.shape[1])
        ]
    return pd.DataFrame(records)


SOFT_SCORES = ("soft_brier", "soft_log_loss", "soft_excess_log_loss", "pearson", "spearman")


def soft_scores(
    positive: ArrayLike,
    total: ArrayLike,
    probabilities: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
) -> dict[str, Any]:
    """Scores against the share of positive votes f instead of the majority.

    probabilities : (n,) or (n, m) in [0, 1]; weights, groups and shapes as for `metrics.evaluate`

    soft_brier : mean of (p - f)^2
    soft_log_loss : mean of -f log p - (1 - f) log(1 - p); not 0 even at p = f
    soft_excess_log_loss : the same less the votes' own entropy: mean Kullback-Leibler divergence, 0 at p = f
    pearson, spearman : correlation of p and f; the ranks of spearman are those of the unweighted sample.
        NaN where p or f is constant
    """
    p, t = check_votes(positive, total)
    share = p / t
    table, one_model = check_probabilities(probabilities, len(share))
    rows, drawn_axis = _weighted(len(share), weights, groups)
    mean = rows.mean
    tiny = np.finfo(np.float64).eps
    clipped = np.clip(table, tiny, 1 - tiny)
    f = share[:, None]
    loss = -f * np.log(clipped) - (1 - f) * np.log1p(-clipped)
    excess = loss - (special.entr(f) + special.entr(1 - f))

    scores_of = {
        "soft_brier": mean((table - f) ** 2),
        "soft_log_loss": mean(loss),
        "soft_excess_log_loss": mean(excess),
        "pearson": rows.correlation(table, f),
        "spearman": rows.correlation(midranks(table), midranks(f)),
    }
    squeeze = (drawn_axis, 0 if one_model else slice(None))
    return {name: values[squeeze] for name, values in scores_of.items()}

"""From scores to numbers with intervals: by data set and domain, raw and deduplicated, model by model.

FORMAT.md says what results.json has of them; a number with an interval is [value, low, high].
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from statistics import median
from typing import Any, cast

import numpy as np
import pandas as pd
from scipy.special import expit, stdtrit

from ...errors import ProbeError
from ..config import ProbeConfig
from ..statistics import agreement, multiclass
from ..statistics import metrics as metrics_module
from ..statistics.calibration import best_threshold
from ..statistics.comparisons import compare_paired, compare_to_zero
from ..statistics.delong import delong
from ..statistics.intervals import (
    DEFAULT_METRICS,
    Clusters,
    Estimates,
    Interval,
    Method,
    cluster_codes,
    estimate,
    estimate_function,
)
from .assess import SPECIFICITIES, Assessment, between_domains, number, triple
from .schema import (
    PAIRED,
    SWEEP,
    TRAIN_ROLES,
    BetweenDomains,
    ClassScore,
    Comparison,
    Confused,
    Estimate,
    ExpertScore,
    HumanModel,
    Precision,
    Role,
    Score,
    Votes,
)

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
EXPERT_METRICS = ("accuracy", "balanced_accuracy", "f1", "kappa")  # of calls
MOST_CONFUSED = 10  # pairs of classes that are listed
COMPARED = ("balanced_accuracy", "auroc")
FEW_GROUPS = 20  # below, BCa's correction is itself too uncertain: percentiles are given
# Of the variance of out-of-fold scores. The models of K folds share most of their training rows, and each
# held-out row has trained the others. In 200 simulated studies each of 20 and 40 slides (tests/benchmarks/
# stats_coverage.py), intervals of out-of-fold AUROC hold what the models are worth in .92 to .96 with the
# jackknife's own variance, in .93 to .97 with this factor, which is K / (K - 1) at 5 folds
OOF_INFLATION = 1.25
NO_INTERVALS = "no intervals were asked for"
POWER = 0.8  # of the detectable difference
ALL_PAIRS_UP_TO = 12  # models; above, each is compared with the chosen one only


@dataclass(frozen=True)
class Column:
    """One model's scores of one evaluation set's rows.

    Of K > 2 classes score and ranking are (n, K), the call is the class of the highest score, adjusted is
    (n, 1), 1 / temperature, and there are no cuts.

    score : float64 (n,), logits; a model calls positive what is at or above 0
    adjusted : float64 (n, 4), what was chosen on held-out scores for each row's model, as
        `protocol.adjustment` gives it: threshold on the score, 1 / temperature, Platt's scale and offset
    role : "oof" (train rows, by models that have not seen them), "refit", "ensemble"
    ranking : float64 (n,), scores on one scale where the rows are scored by several models
        (`protocol.ranking`); what AUROC and average precision are taken on. None: one model has scored all
        rows, so `score` itself
    cuts : float64 (n, 2) on the scale of `order`, at or above which a row is called positive at specificity
        .90 and .95 (SPECIFICITIES) of held-out rows; None: none were chosen, see `specificity_cuts`
    """

    features: str
    role: str
    score: np.ndarray
    adjusted: np.ndarray
    ranking: np.ndarray | None = None
    cuts: np.ndarray | None = None

    @property
    def order(self) -> np.ndarray:
        """What the rows are ranked by, float64 (n,)."""
        return self.score if self.ranking is None else self.ranking

    def select(self, mask: np.ndarray) -> "Column":
        """The scores of some of the rows; mask : bool (n,)."""
        return Column(self.features, self.role, **_selected(self, mask))


@dataclass(frozen=True)
class Rows:
    """The labelled rows of one evaluation set.

    group : str (n,), clusters that are resampled as one, `datasets.folds.effective_groups`; "" is a row by
        itself
    groups_known : whether any group is a slide or patient. If not, groups are at most clusters of equal
        content, intervals are too narrow, and no two models are called different
    classes : names of 0 .. K-1 where there are more than two, else (); ordered : whether these are grades
    experts : names of those who read rows of more than two classes; called : int (n, experts), the class that
        each called a row, -1 where it did not read it
    left_out : why -> how many rows of the manifest are not here
    distinct : bool (n,), one row of each content, none of contents with both labels (`leaks.deduplicate`)
    votes_positive, votes_total : int (n,), -1 where they are not known
    path : str (n,), of the image under the manifest's root; content_hash : str (n,), of its pixels, hex
    """

    dataset: str
    patch_id: np.ndarray
    y: np.ndarray
    group: np.ndarray
    domain: np.ndarray
    distinct: np.ndarray
    votes_positive: np.ndarray
    votes_total: np.ndarray
    path: np.ndarray
    content_hash: np.ndarray
    groups_known: bool = True
    left_out: Mapping[str, int] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    ordered: bool = False
    experts: tuple[str, ...] = ()
    called: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.y)

    def select(self, mask: np.ndarray) -> "Rows":
        """Some of the rows; mask : bool (n,)."""
        return replace(self, **_selected(self, mask))

    def vote_share(self) -> np.ndarray:
        """Share of positive votes, float64 (n,), or of votes for each of K > 2 classes, (n, K); NaN without
        votes.
        """
        if self.called is not None:
            votes = (self.called[:, :, None] == np.arange(len(self.classes))).sum(axis=1)
            total = votes.sum(axis=1, keepdims=True)
            return np.where(total > 0, votes / np.maximum(total, 1), np.nan)
        known = self.votes_total > 0
        return np.where(known, self.votes_positive / np.where(known, self.votes_total, 1), np.nan)


def class_codes(labels: pd.Series, classes: Sequence[str]) -> np.ndarray:
    """Labels (n,) as int64 (n,): the place of each name in `classes`; of two, whether it is the second."""
    if len(classes) == 2:
        return (labels == classes[1]).to_numpy().astype(np.int64)
    return labels.map({name: k for k, name in enumerate(classes)}).to_numpy(np.int64)


def _selected(one: "Column | Rows", mask: np.ndarray) -> dict[str, Any]:
    arrays = {f.name: getattr(one, f.name) for f in fields(one)}
    return {name: array[mask] for name, array in arrays.items() if isinstance(array, np.ndarray)}


def without_duplicates(rows: Rows, columns: Sequence[Column]) -> tuple[Rows, list[Column]]:
    """One row of each content, none of contents with both labels."""
    return rows.select(rows.distinct), [column.select(rows.distinct) for column in columns]


def specificity_cuts(y: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The cut on held-out scores (n,) for each of SPECIFICITIES: float64 (2,)."""
    return np.array([best_threshold(y, scores, rule="specificity", specificity=s) for s in SPECIFICITIES])


def out_of_fold_cuts(y: np.ndarray, scores: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """`specificity_cuts` of each row from the rows of the other folds: float64 (n, 2).

    scores : float64 (n,), out of fold and on one scale; folds : int (n,). NaN for the only fold.
    """
    cuts = np.full((len(y), len(SPECIFICITIES)), np.nan)
    for k in np.unique(folds):
        rows = folds == k
        if not rows.all():
            cuts[rows] = specificity_cuts(y[~rows], scores[~rows])
    return cuts


def estimate_set(rows: Rows, columns: Sequence[Column], *, config: ProbeConfig) -> Estimates | None:
    """Intervals of METRICS on all rows at probability 0.5, for scores and comparisons; None: none are asked
    for.
    """
    if not config.bootstrap:
        return None
    return _Subset.of(rows, columns, config).estimates(_metrics(config, rows.classes))


def _tables(
    columns: Sequence[Column], mask: np.ndarray | slice = slice(None)
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and what ranks, float64 (n, m[, K]) each."""
    return (
        np.stack([c.score[mask] for c in columns], axis=1),
        np.stack([c.order[mask] for c in columns], axis=1),
    )


def _metrics(config: ProbeConfig, classes: Sequence[str]) -> list[str]:
    """METRICS (of K > 2 classes CLASSES_METRICS), without those of probabilities where scores are no logits
    (margins, distances).
    """
    names, calibration = (CLASSES_METRICS, CLASSES_CALIBRATION) if classes else (METRICS, CALIBRATION_METRICS)
    return [m for m in names if config.probabilistic or m not in calibration]


def _inflation(columns: Sequence[Column], config: ProbeConfig) -> float:
    """OOF_INFLATION for scores out of fold; 1 for the bootstrap, which has no variance to be multiplied."""
    out_of_fold = any(c.role in TRAIN_ROLES for c in columns)
    return OOF_INFLATION if out_of_fold and config.interval == "jackknife" else 1.0


def score_set(
    rows: Rows,
    columns: Sequence[Column],
    *,
    config: ProbeConfig,
    whole: Estimates | None = None,
) -> list[Score]:
    """One score for each model x subset of the rows: all ("raw"), without repeated content ("dedup", only
    where there is any), and each domain where there are several. FORMAT.md has the keys.

    whole : what `estimate_set` gave for these columns, if it is there already
    """
    scores = _Subset.of(rows, columns, config).scores(full=True, whole=whole)
    distinct = []
    if not rows.distinct.all():
        distinct = _Subset.of(rows, columns, config, mask=rows.distinct, subset="dedup").scores(full=True)
    domains = [d for d in dict.fromkeys(rows.domain) if d]
    if len(domains) < 2:
        return scores + distinct
    parts = {d: _Subset.of(rows, columns, config, mask=rows.domain == d, domain=d) for d in domains}
    estimates = {d: part.estimates(DEFAULT_METRICS) for d, part in parts.items()}
    by_domain = [one for d, part in parts.items() for one in part.scores(full=False, whole=estimates[d])]
    if config.bootstrap:
        level = 1 - (1 - config.level) / len(domains)
        wide = {d: part.estimates(DEFAULT_METRICS, level=level) for d, part in parts.items()}
        for j, score in enumerate(scores):
            between = {
                metric: BetweenDomains.model_validate(
                    between_domains(
                        {d: one[metric] for d, one in estimates.items() if one is not None},
                        {d: one[metric] for d, one in wide.items() if one is not None},
                        j,
                    )
                )
                for metric in DEFAULT_METRICS
            }
            scores[j] = score.model_copy(update={"between_domains": between})
    return scores + distinct + by_domain


class _Subset:
    """Some rows of an evaluation set, and all its columns."""

    @staticmethod
    def of(rows: Rows, columns: Sequence[Column], config: ProbeConfig, **about: Any) -> "_Subset":
        """Of two classes, or of more."""
        return (_ClassesSubset if rows.classes else _Subset)(rows, columns, config, **about)

    def __init__(
        self,
        rows: Rows,
        columns: Sequence[Column],
        config: ProbeConfig,
        *,
        mask: np.ndarray | slice = slice(None),
        subset: str = "raw",
        domain: str = "",
    ) -> None:
        self.rows, self.columns, self.config, self.mask = rows, columns, config, mask
        self.y, self.group = rows.y[mask], rows.group[mask]
        self.score, self.order = _tables(columns, mask)
        self.inflation = _inflation(columns, config)
        self.about: dict[str, Any] = {"dataset": rows.dataset, "domain": domain, "subset": subset}

    def estimates(
        self, names: Sequence[str], *, score: np.ndarray | None = None, level: float | None = None
    ) -> Estimates | None:
        """Intervals of these metrics; score : calls at 0 (None: at probability 0.5)."""
        if not self.config.bootstrap:
            return None
        return self._estimates(names, self.score if score is None else score, self.inflation, level=level)

    def _estimates(
        self, names: Sequence[str], score: np.ndarray, inflation: float, **options: Any
    ) -> Estimates:
        rows = self.rows
        options |= {"classes": rows.classes, "ordered": rows.ordered}
        return _estimate(self.y, score, self.order, self.group, names, self.config, inflation, **options)

    def scores(self, *, full: bool, whole: Estimates | None = None) -> list[Score]:
        """One a model; full : with all that whole sets have."""
        return [Score.model_validate(record) for record in self._records(full=full, whole=whole)]

    def _records(self, *, full: bool, whole: Estimates | None) -> list[dict[str, Any]]:
        names = _metrics(self.config, ()) if full else DEFAULT_METRICS
        scores, kinds = {"metrics": self.score}, {"metrics": names}
        if full:
            adjusted = np.stack([c.adjusted[self.mask] for c in self.columns], axis=1)
            cut, slope, scale, offset = adjusted.transpose(2, 0, 1)
            scores |= {
                "at_threshold": self.score - cut,
                "temperature": self.score * slope,
                "platt": self.score * scale + offset,
            }
            kinds |= {
                "at_threshold": THRESHOLD_METRICS,
                "temperature": CALIBRATION_METRICS,
                "platt": CALIBRATION_METRICS,
            }
        clusters = Clusters.of(self.y == 1, cluster_codes(self.group, len(self.y)))
        about = {
            **self.about,
            "n": len(self.y),
            "n_positive": int(self.y.sum()),
            "n_groups": clusters.n,
            "clusters": {
                "known": self.rows.groups_known,
                "n": clusters.n,
                "with_positive": clusters.holding[1],
                "with_negative": clusters.holding[0],
                "effective_positive": clusters.effective[1],
                "effective_negative": clusters.effective[0],
            },
            "inflation": self.inflation,
        }
        records = [{"features": c.features, "role": c.role, **about, "uncertainty": {}} for c in self.columns]
        for kind, wanted in kinds.items():
            estimates = whole if kind == "metrics" and whole else self.estimates(wanted, score=scores[kind])
            self._put(records, kind, wanted, scores[kind], estimates)
        if not self.rows.groups_known and self.config.bootstrap:
            wide = self._estimates(DEFAULT_METRICS, self.score, 2 * self.inflation, method="jackknife")
            for j, record in enumerate(records):
                record["design_effect_2"] = {name: triple(one, j) for name, one in wide.items()}
        if full:
            self._assess(records, scores)
        return records

    def _put(
        self,
        records: Sequence[dict[str, Any]],
        kind: str,
        names: Sequence[str],
        score: np.ndarray,
        estimates: Estimates | None,
    ) -> None:
        both = _with_uncertainty(estimates, self.y, score, self.order, names)
        for record, (metrics, uncertainty) in zip(records, both, strict=True):
            record[kind], record["uncertainty"][kind] = metrics, uncertainty

    def _assess(self, records: Sequence[dict[str, Any]], scores: Mapping[str, np.ndarray]) -> None:
        level = self.config.level if self.config.bootstrap else None
        made = Assessment(self.y, self.group, level=level, inflation=self.inflation)
        calibrated = {"platt": made.calibration(scores["platt"])}
        if self.config.probabilistic:
            calibrated = {"probability": made.calibration(self.score), **calibrated}
        calls = {kind: made.calls(scores[kind]) for kind in ("metrics", "at_threshold")}
        benefit = made.benefit(scores["platt"])
        for j, record in enumerate(records):
            record["calibration"] = {kind: of_models[j] for kind, of_models in calibrated.items()}
            record["calls"] = {kind: of_models[j] for kind, of_models in calls.items()}
            record["net_benefit"] = benefit[j]
        with_cuts = [
            j for j, c in enumerate(self.columns) if c.cuts is not None and np.isfinite(c.cuts).all()
        ]
        if with_cuts:
            cuts = np.stack([np.asarray(self.columns[j].cuts)[self.mask] for j in with_cuts], axis=1)
            for k, specificity in enumerate(SPECIFICITIES):
                of_models = made.at_cut(self.order[:, with_cuts] - cuts[:, :, k])
                for j, one in zip(with_cuts, of_models, strict=True):
                    records[j].setdefault("at_specificity", {})[f"{specificity:g}"] = one


class _ClassesSubset(_Subset):
    """The same of more than two classes: scores float64 (n, m, K)."""

    def scores(self, *, full: bool, whole: Estimates | None = None) -> list[Score]:
        """One a model; full : with all that whole sets have."""
        classes = self.rows.classes
        counts = np.bincount(self.y, minlength=len(classes))
        names = _metrics(self.config, classes) if full else DEFAULT_METRICS
        whole = whole or self.estimates(names)
        kinds = {"metrics": self._measured(names, self.score, whole)}
        if full:
            scaled = self.score * np.stack([c.adjusted[self.mask] for c in self.columns], axis=1)
            calibrated = self.estimates(CLASSES_CALIBRATION, score=scaled)
            kinds["temperature"] = self._measured(CLASSES_CALIBRATION, scaled, calibrated)
        if not self.rows.groups_known and self.config.bootstrap:
            wide = self._estimates(DEFAULT_METRICS, self.score, 2 * self.inflation, method="jackknife")
            kinds["design_effect_2"] = [
                {name: _bare(one, j) for name, one in wide.items()} for j in range(len(self.columns))
            ]
        by_class = self._by_class(whole) if full else [{}] * len(self.columns)
        return [
            Score(
                features=column.features,
                role=Role(column.role),
                **self.about,
                n=len(self.y),
                n_groups=self.n_groups,
                n_classes=len(classes),
                missing=[name for name, n in zip(classes, counts, strict=True) if not n],
                inflation=self.inflation,
                **{kind: values[j] for kind, values in kinds.items()},
                **by_class[j],
            )
            for j, column in enumerate(self.columns)
        ]

    @cached_property
    def codes(self) -> np.ndarray:
        """Clusters of the rows, int (n,)."""
        return cluster_codes(self.group, len(self.y))

    @property
    def n_groups(self) -> int:
        """How many clusters."""
        return int(self.codes.max()) + 1

    def _measured(
        self, names: Sequence[str], score: np.ndarray, estimates: Estimates | None
    ) -> list[dict[str, Estimate]]:
        about = {"n": len(self.y), "groups": self.n_groups, "ordered": self.rows.ordered}
        return estimates_of(estimates, self.y, score, self.order, names, **about)

    def _by_class(self, whole: Estimates | None) -> list[dict[str, Any]]:
        """classes, confusion and confused of each model."""
        calls, labels = self.score.argmax(axis=2), np.arange(len(self.rows.classes))
        tables = multiclass.confusion(self.y, self.score).astype(int)  # (m, K, K)
        groups = [len(np.unique(self.codes[self.y == k])) for k in labels]
        of_class = [  # [class][model] -> metric -> estimate
            estimates_of(
                whole.classes[k] if isinstance(whole, multiclass.MulticlassEstimates) else None,
                (self.y == k).astype(int),
                (calls == k).astype(np.float64),
                self.order[:, :, k],
                multiclass.CLASS_METRICS,
                logits=False,
                n=int((self.y == k).sum()),
                groups=groups[k],
            )
            for k in labels
        ]
        return [
            {
                "classes": [
                    ClassScore(
                        label=name,
                        n=int(table[k].sum()),
                        n_groups=groups[k],
                        called=int(table[:, k].sum()),
                        metrics=of_class[k][j],
                    )
                    for k, name in enumerate(self.rows.classes)
                ],
                "confusion": table.tolist(),
                "confused": self._confused(table, calls[:, j]),
            }
            for j, table in enumerate(tables)
        ]

    def _confused(self, table: np.ndarray, calls: np.ndarray) -> list[Confused]:
        """The most frequent errors. table : int (K, K), labels x calls; calls : int (n,)."""
        wrong = table * (1 - np.eye(len(table), dtype=int))
        first = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSED]
        pairs = [(k // len(table), k % len(table)) for k in first.tolist()]
        return [
            Confused(
                label=self.rows.classes[a],
                called=self.rows.classes[b],
                rows=int(wrong[a, b]),
                groups=len(np.unique(self.codes[(self.y == a) & (calls == b)])),
                share=float(wrong[a, b] / table[a].sum()),
            )
            for a, b in pairs
            if wrong[a, b]
        ]


UNCERTAINTY = ("standard_error", "degrees_of_freedom", "design_effect")


def _uncertainty(interval: Interval, j: int) -> dict[str, Any]:
    numbers = {key: number(getattr(interval, key)[j]) for key in UNCERTAINTY}
    return {**numbers, "method": str(interval.method[j]), "reason": interval.reason[j]}


def measure(
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
) -> dict[str, Estimate]:
    """metric -> estimate of one model.

    score : logits (n,), calls at 0, or (n, K), K > 2; order : as score, what the ranking metrics are taken on
    inflation : OOF_INFLATION for scores out of fold, which the jackknife alone uses
    classes, ordered : where there are more than two, as in `Rows`
    """
    score, order = score[:, None], order[:, None]
    inflation = inflation if config.interval == "jackknife" else 1.0
    estimates = None
    if config.bootstrap:
        about = {"classes": classes, "ordered": ordered}
        estimates = _estimate(y, score, order, group, names, config, inflation, **about)
    codes = cluster_codes(group, len(y))
    size = {"n": len(y), "groups": int(codes.max(initial=-1)) + 1}
    return estimates_of(estimates, y, score, order, names, ordered=ordered, **size)[0]


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
    return replace(_bare(interval, j), **_uncertainty(interval, j), **size)


def _bare(interval: Interval, j: int) -> Estimate:
    value, low, high = triple(interval, j)
    return Estimate(value, low, high)


def _with_uncertainty(
    estimates: Estimates | None, y: np.ndarray, score: np.ndarray, order: np.ndarray, names: Sequence[str]
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Of each column of scores (n, m), metric -> [value, low, high] and metric -> uncertainty; without
    intervals where none were asked for (None).
    """
    columns = range(score.shape[1])
    if estimates is None:
        values = evaluate_models(y, score, order, names)
        nothing = dict.fromkeys(UNCERTAINTY) | {"method": "none", "reason": NO_INTERVALS}
        return [
            (
                {name: [number(values[name][j]), None, None] for name in names},
                {name: dict(nothing) for name in names},
            )
            for j in columns
        ]
    return [
        (
            {name: triple(estimates[name], j) for name in names},
            {name: _uncertainty(estimates[name], j) for name in names},
        )
        for j in columns
    ]


def _method(group: np.ndarray, config: ProbeConfig) -> Method:
    method = cast("Method", config.interval)  # one of config.INTERVALS
    few = method == "bca" and int(cluster_codes(group, len(group)).max()) + 1 < FEW_GROUPS
    return "percentile" if few else method


def _estimate(
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
    options = _options(group, config)
    options |= {"method": method or options["method"], "confidence": level or config.level}
    if score.ndim == 3:
        options |= {"classes": classes, "ordered": ordered, "inflation": inflation}
        return multiclass.estimate(y, score, groups=group, metrics=names, logits=True, order=order, **options)
    return estimate(
        y, score, groups=group, metrics=names, logits=True, order=order, inflation=inflation, **options
    )


def _options(group: np.ndarray, config: ProbeConfig) -> dict[str, Any]:
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
        **_options(rows.group, config),
    )
    return {name: estimate_of(intervals[name], 0) for name in DEFAULT_METRICS}


def compare_models(
    rows: Rows,
    columns: Sequence[Column],
    *,
    config: ProbeConfig,
    reference: str,
    whole: Estimates | None,
) -> list[Comparison]:
    """Paired differences between the models of one evaluation set that have the same role.

    balanced_accuracy (at 0.5) and auroc by `comparisons.compare_paired`, auroc also by DeLong's test
    (clustered where there are groups). p-values are adjusted by Holm over the pairs of one evaluation set,
    role, metric and test. All pairs up to 12 models, above that each against `reference` (a feature set, the
    one chosen on the folds). The sweep as a whole is left out: it is one of the others, or a mixture of them.

    Repeated content counts once, and content with both labels not at all (`Rows.distinct`), as in the scores
    that lead.

    whole : what `estimate_set` gave for these columns on all rows (None: DeLong only)
    test : PAIRED or "DeLong"; groups_known False: rows were taken as independent and may not be, so that p
        is too small, and no claim is made of it
    """
    comparisons: list[Comparison] = []
    names = [c.features for c in columns]
    if not rows.distinct.all():
        rows, columns = without_duplicates(rows, columns)
        whole = None if whole is None else estimate_set(rows, columns, config=config)
    score, order = _tables(columns)
    for role in dict.fromkeys(c.role for c in columns):
        of_role = [i for i, c in enumerate(columns) if c.role == role and c.features != SWEEP]
        pairs = list(itertools.combinations(of_role, 2))
        if len(of_role) > ALL_PAIRS_UP_TO:
            pairs = [(i, j) for i in of_role for j in of_role if names[j] == reference and i != j]
        if not pairs:
            continue
        tests = []
        inflation = _inflation([columns[i] for i in of_role], config)
        if whole is not None:
            paired = (multiclass.compare_paired if rows.classes else compare_paired)(
                rows.y,
                score,
                groups=rows.group,
                metrics=COMPARED,
                pairs=pairs,
                logits=True,
                order=order,
                estimates=whole,
                **_options(rows.group, config),
            )
            tests += [(PAIRED, differences) for differences in paired.values()]
        if not rows.classes:
            try:
                test = delong(rows.y, order, groups=rows.group)
                tests.append(("DeLong", test.compare(pairs=pairs, confidence=config.level)))
            except ProbeError:  # fewer than two clusters of a class: the paired test says as much
                pass
        for name, differences in tests:
            for k, (i, j) in enumerate(differences.pairs):
                numbers = {key: number(getattr(differences, key)[k]) for key in DIFFERENCE}
                comparisons.append(
                    Comparison(
                        dataset=rows.dataset,
                        role=Role(role),
                        metric=differences.metric,
                        test=name,
                        p_method=differences.p_method[k],
                        a=names[i],
                        b=names[j],
                        **numbers,
                        reason=differences.reason[k],
                        groups_known=rows.groups_known,
                        inflation=inflation if name == PAIRED else 1.0,
                    )
                )
    return comparisons


DIFFERENCE = ("difference", "low", "high", "standard_error", "degrees_of_freedom", "p", "p_holm")


def precision(scores: Sequence[Score], comparisons: Sequence[Comparison], *, level: float) -> list[Precision]:
    """How small a difference each evaluation set can show, for each role and metric that models are compared
    by.

    scores, comparisons : of `score_set` and `compare_models`, of all sets
    half_width : of the interval of a difference. detectable : the true difference that is found at this level
        with a probability of POWER: (t of the level + t of the power) x standard error
    Both from the median standard_error and degrees_of_freedom of the paired differences; basis says of how
    many. With one model the error is that of two models scored on two such sets, usually more: basis
    "unpaired".
    """
    precisions = []
    whole = [one for one in scores if not one.domain]
    for dataset, role, fold in dict.fromkeys((one.dataset, one.role, one.fold) for one in whole):
        of_set = [one for one in whole if (one.dataset, one.role, one.fold) == (dataset, role, fold)]
        leading = any(one.deduplicated for one in of_set)
        of_set = [one for one in of_set if one.deduplicated == leading]
        for metric in COMPARED:
            paired = [
                (c.standard_error, c.degrees_of_freedom)
                for c in comparisons
                if (c.dataset, c.role, c.metric, c.test) == (dataset, role, metric, PAIRED)
                and c.standard_error
            ]
            basis = f"paired, median of {len(paired)}"
            if not paired:
                basis = "unpaired"
                about = [one.estimate(metric) for one in of_set]
                paired = [
                    (math.sqrt(2) * a.standard_error, a.degrees_of_freedom) for a in about if a.standard_error
                ]
            if not paired:
                continue
            error = median(e for e, _ in paired)
            freedom = median(math.inf if f is None else f for _, f in paired)
            reach = float(stdtrit(freedom, (1 + level) / 2))
            precisions.append(
                Precision(
                    dataset=dataset,
                    role=role,
                    metric=metric,
                    n=of_set[0].n,
                    n_groups=of_set[0].n_groups or 0,
                    standard_error=error,
                    degrees_of_freedom=number(freedom),
                    half_width=reach * error,
                    detectable=(reach + float(stdtrit(freedom, POWER))) * error,
                    basis=basis,
                )
            )
    return precisions


def score_votes(rows: Rows, columns: Sequence[Column], *, config: ProbeConfig) -> Votes | None:
    """What the experts' votes say about the models of one evaluation set, at probability 0.5.

    The rows with votes: Fleiss' kappa (None where the number of votes differs), share of unanimous rows,
    `strata`: metrics by how many votes the winning side has; `by_votes`: mean probability by number of
    positive votes; `soft`: scores against the share of positive votes.

    `human_line` : balanced accuracy of an expert against the majority of the others, all votes pooled, rows
        where the others tie counting half each way (None: no row has three votes)
    `human` : the same as value [value, low, high], with standard_error, degrees_of_freedom, reason; n (rows
        with three votes), n_left_out (rows of the set with fewer), n_votes and n_tied (votes of which the
        others tie), without_ties (the line if those were left out, which is higher: they are the hardest);
        models: features, role, value (the model against the same references on the same rows), difference
        (expert less model), p
    None where no row has two votes.
    """
    known = rows.votes_total > 1
    if rows.classes or not known.any():  # votes are for or against one class
        return None
    positive, total, y = rows.votes_positive[known], rows.votes_total[known], rows.y[known]
    score, order = _tables(columns, known)
    p = expit(score)
    names = [{"features": c.features, "role": c.role} for c in columns]
    same = len(np.unique(total)) == 1
    soft = agreement.soft_scores(positive, total, p)

    def records(table: pd.DataFrame) -> list[dict[str, Any]]:
        return [
            {**names[int(row.pop("model"))], **{str(k): _plain(v) for k, v in row.items()}}
            for row in table.to_dict("records")
        ]

    human = _human(rows, columns, config)
    parts = {
        "dataset": rows.dataset,
        "n": int(known.sum()),
        "kappa": number(agreement.fleiss_kappa(np.stack([positive, total - positive], axis=1)))
        if same
        else None,
        "unanimous": agreement.unanimous_share(positive, total),
        "human_line": human["value"][0] if human else None,
        "human": human,
        "strata": records(agreement.by_agreement(y, score, positive, total, logits=True, order=order)),
        "by_votes": records(agreement.by_votes(p, positive, total)),
        "soft": [
            {**name, **{metric: number(values[i]) for metric, values in soft.items()}}
            for i, name in enumerate(names)
        ],
    }
    return Votes.model_validate(parts)


def score_experts(rows: Rows, columns: Sequence[Column], *, config: ProbeConfig) -> list[ExpertScore]:
    """Each expert beside the models, of more than two classes: what it called the rows that it read, against
    the labels; and balanced accuracy of the models on the same rows, paired. The one whose word is the label
    is left out.
    """
    scores: list[ExpertScore] = []
    for e, name in enumerate(rows.experts):
        called = np.asarray(rows.called)[:, e]
        read = called >= 0
        if not read.any() or (called[read] == rows.y[read]).all():
            continue
        y, group = rows.y[read], rows.group[read]
        expert = multiclass.one_hot(called[read], len(rows.classes))
        about: dict[str, Any] = {"classes": rows.classes, "ordered": rows.ordered}
        metrics = measure(y, expert, expert, group, EXPERT_METRICS, config, **about)
        models = []
        if columns and config.bootstrap:
            score = np.concatenate([expert[:, None], _tables(columns, read)[0]], axis=1)
            pairs = [(0, j) for j in range(1, score.shape[1])]
            options: dict[str, Any] = {"groups": group, "logits": True, **_options(group, config)}
            options |= {"metrics": COMPARED[:1], "inflation": _inflation(columns, config)}
            whole = multiclass.estimate(y, score, classes=rows.classes, **options)
            paired = multiclass.compare_paired(y, score, pairs=pairs, estimates=whole, **options)
            of = paired[COMPARED[0]]
            differences = zip(of.difference, of.low, of.high, of.p, strict=True)
            models = [
                HumanModel(
                    features=column.features,
                    role=Role(column.role),
                    value=_bare(whole[COMPARED[0]], j),
                    difference=Estimate(number(difference), number(low), number(high)),
                    p=number(p),
                )
                for j, (column, (difference, low, high, p)) in enumerate(
                    zip(columns, differences, strict=True), start=1
                )
            ]
        scores.append(
            ExpertScore(
                dataset=rows.dataset,
                expert=name,
                n=len(y),
                n_groups=int(cluster_codes(group, len(y)).max()) + 1,
                metrics=metrics,
                models=models,
            )
        )
    return scores


def _human(rows: Rows, columns: Sequence[Column], config: ProbeConfig) -> dict[str, Any] | None:
    voted = rows.votes_total > 2
    if not voted.any():
        return None
    called = np.stack([c.score[voted] >= 0 for c in columns], axis=1)
    codes = cluster_codes(rows.group[voted], int(voted.sum()))
    votes = rows.votes_positive[voted], rows.votes_total[voted], called
    line = agreement.human_line(*votes, codes)
    dropped = agreement.human_line(*votes, codes, ties="drop")
    intervals = estimate_function(
        lambda weights, codes: line.values,
        without=lambda codes: {} if codes is None else line.left_out,
        n_rows=int(voted.sum()),
        groups=rows.group[voted],
        scales={"expert": "logit", "model": "logit"},
        confidence=config.level,
    )
    p = compare_to_zero(intervals["difference"])

    def shown(name: str, j: int) -> list[float | None]:
        return (
            triple(intervals[name], j) if config.bootstrap else [number(intervals[name].value[j]), None, None]
        )

    return {
        "value": shown("expert", 0),
        **{
            key: number(getattr(intervals["expert"], key)[0])
            for key in ("standard_error", "degrees_of_freedom")
        },
        "reason": intervals["expert"].reason[0] if config.bootstrap else NO_INTERVALS,
        "n": int(voted.sum()),
        "n_left_out": len(rows) - int(voted.sum()),
        "n_votes": line.votes,
        "n_tied": line.tied,
        "without_ties": number(dropped.values["expert"][0]),
        "models": [
            {
                "features": c.features,
                "role": c.role,
                "value": shown("model", j),
                "difference": shown("difference", j),
                "p": number(p[j]),
            }
            for j, c in enumerate(columns)
        ],
    }


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, int | np.integer) else number(value)

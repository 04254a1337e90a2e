"""From scores to numbers with intervals: by data set and domain, raw and deduplicated, model by model."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
from scipy.special import expit

from ..errors import ProbeError
from . import agreement
from . import metrics as metrics_module
from .config import PROBABILISTIC, ProbeConfig
from .intervals import (
    DEFAULT_METRICS,
    Interval,
    Method,
    cluster_codes,
    compare_paired,
    delong,
    estimate,
    estimate_function,
)
from .results import SWEEP

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
COMPARED = ("balanced_accuracy", "auroc")
RANKING = ("auroc", "average_precision")  # of the order of the scores alone: taken on logits
PAIRED = "paired over groups"  # the name of that test in results; its p_method says how
FEW_GROUPS = 20  # below, BCa's correction is itself too uncertain: percentiles are given
MEAN_FIELDS = ("value", "low", "high", "standard_error", "degrees_of_freedom")
ALL_PAIRS_UP_TO = 12  # models; above, each is compared with the chosen one only


@dataclass(frozen=True)
class Column:
    """One model's scores of one evaluation set's rows.

    score : float64 (n,), logits; a model calls positive what is at or above 0
    adjusted : float64 (n, 4), what was chosen on held-out scores for each row's model, as
        `protocol.adjustment` gives it: threshold on the score, 1 / temperature, Platt's scale and offset
    role : "oof" (train rows, by models that have not seen them), "refit", "ensemble"
    ranking : float64 (n,), logits that are on one scale where the rows are scored by several models; what
        AUROC and average precision are taken on. None: one model has scored all rows, so `score` itself
    """

    features: str
    role: str
    score: np.ndarray
    adjusted: np.ndarray
    ranking: np.ndarray | None = None

    @property
    def order(self) -> np.ndarray:
        """What the rows are ranked by, float64 (n,)."""
        return self.score if self.ranking is None else self.ranking


@dataclass(frozen=True)
class Rows:
    """The labelled rows of one evaluation set. group "" is a row by itself.

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

    def __len__(self) -> int:
        return len(self.y)

    def vote_share(self) -> np.ndarray:
        """Share of positive votes, float64 (n,); NaN where there are none."""
        known = self.votes_total > 0
        return np.where(known, self.votes_positive / np.where(known, self.votes_total, 1), np.nan)


def bootstrap_set(
    rows: Rows, columns: Sequence[Column], *, config: ProbeConfig
) -> Mapping[str, Interval] | None:
    """Bootstrap of METRICS on all rows at probability 0.5, for scores and comparisons; None: no intervals."""
    if not _can_resample(rows.group, config):
        return None
    score, order = _tables(columns)
    return _bootstrap(rows.y, score, order, rows.group, _metrics(config), config)


def _tables(
    columns: Sequence[Column], mask: np.ndarray | slice = slice(None)
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and what ranks, float64 (n, m) each."""
    return (
        np.stack([c.score[mask] for c in columns], axis=1),
        np.stack([c.order[mask] for c in columns], axis=1),
    )


def _metrics(config: ProbeConfig) -> list[str]:
    """METRICS, without those of probabilities where sigmoid(score) is none (margins, distances)."""
    return [m for m in METRICS if config.probe in PROBABILISTIC or m not in CALIBRATION_METRICS]


def score_set(
    rows: Rows,
    columns: Sequence[Column],
    *,
    config: ProbeConfig,
    whole: Mapping[str, Interval] | None = None,
) -> list[dict[str, Any]]:
    """One record for each model x subset of the rows: all ("raw"), without repeated content ("dedup", only
    where there is any), and each domain where there are several.

    A record has `metrics` (at probability 0.5), and for the whole sets `at_threshold`, `temperature` and
    `platt` (chosen on folds); each value is [value, low, high], None where undefined.
    whole : what `bootstrap_set` gave for these columns, if it is there already
    """
    everything = np.ones(len(rows), bool)
    records = _subset(rows, columns, everything, config, full=True, subset="raw", domain="", whole=whole)
    if not rows.distinct.all():
        records += _subset(rows, columns, rows.distinct, config, full=True, subset="dedup", domain="")
    domains = [d for d in dict.fromkeys(rows.domain) if d]
    if len(domains) > 1:
        for domain in domains:
            records += _subset(
                rows, columns, rows.domain == domain, config, full=False, subset="raw", domain=domain
            )
    return records


def _subset(
    rows: Rows,
    columns: Sequence[Column],
    mask: np.ndarray,
    config: ProbeConfig,
    *,
    full: bool,
    subset: str,
    domain: str,
    whole: Mapping[str, Interval] | None = None,
) -> list[dict[str, Any]]:
    y, group = rows.y[mask], rows.group[mask]
    score, order = _tables(columns, mask)
    names = _metrics(config) if full else DEFAULT_METRICS
    plain = _triples(whole) if whole else intervals_of(y, score, order, group, names, config)
    found = {"metrics": plain}
    if full:
        cut, slope, scale, offset = np.stack([c.adjusted[mask] for c in columns], axis=1).transpose(2, 0, 1)
        found["at_threshold"] = intervals_of(y, score - cut, order, group, THRESHOLD_METRICS, config)
        found["temperature"] = intervals_of(y, score * slope, order, group, CALIBRATION_METRICS, config)
        found["platt"] = intervals_of(y, score * scale + offset, order, group, CALIBRATION_METRICS, config)
    about = {
        "dataset": rows.dataset,
        "domain": domain,
        "subset": subset,
        "n": len(y),
        "n_positive": int(y.sum()),
        "n_groups": int(cluster_codes(group, len(y)).max()) + 1,
    }
    return [
        {
            "features": column.features,
            "role": column.role,
            **about,
            **{
                kind: {name: values[i] for name, values in by_metric.items()}
                for kind, by_metric in found.items()
            },
        }
        for i, column in enumerate(columns)
    ]


def intervals_of(
    y: np.ndarray,
    score: np.ndarray,
    order: np.ndarray,
    group: np.ndarray,
    names: Sequence[str],
    config: ProbeConfig,
) -> dict[str, list[list[float | None]]]:
    """metric -> for each column of scores (n, m) [value, low, high]; None where undefined or where there is
    nothing to resample. score : logits, calls at 0; order : (n, m), what RANKING metrics are taken on."""
    if _can_resample(group, config):
        return _triples(_bootstrap(y, score, order, group, names, config))
    values = metrics_module.evaluate(y, score, metrics=names, logits=True, order=order)
    return {name: [[_number(v), None, None] for v in values[name]] for name in names}


def _triples(found: Mapping[str, Interval]) -> dict[str, list[list[float | None]]]:
    return {
        name: [[_number(v) for v in three] for three in zip(one.value, one.low, one.high, strict=True)]
        for name, one in found.items()
    }


def _can_resample(group: np.ndarray, config: ProbeConfig) -> bool:
    return config.bootstrap > 0 and int(cluster_codes(group, len(group)).max()) > 0


def _method(group: np.ndarray, config: ProbeConfig) -> Method:
    method = cast("Method", config.interval)  # one of config.INTERVALS
    few = method == "bca" and int(cluster_codes(group, len(group)).max()) + 1 < FEW_GROUPS
    return "percentile" if few else method


def _bootstrap(
    y: np.ndarray,
    score: np.ndarray,
    order: np.ndarray,
    group: np.ndarray,
    names: Sequence[str],
    config: ProbeConfig,
) -> Mapping[str, Interval]:
    return estimate(
        y, score, groups=group, metrics=names, logits=True, order=order, **_options(group, config)
    )


def _options(group: np.ndarray, config: ProbeConfig) -> dict[str, Any]:
    """How intervals are made, for `estimate` and `compare_paired`."""
    return {
        "method": _method(group, config),
        "confidence": config.level,
        "n_resamples": config.bootstrap,
        "seed": config.seed,
    }


def mean_of_models(rows: Rows, scores: np.ndarray, *, config: ProbeConfig) -> dict[str, dict[str, Any]]:
    """What published tables report, with an interval: the mean over K models of each one's metric.

    scores : float64 (n, K), logits of the models of K folds; calls at probability 0.5
    Returns metric -> value, low, high, standard_error, degrees_of_freedom, all but the value None without
    groups to resample. All K are scored on the same resamples, so their correlation is in the interval; that
    other trainings would give other models is not.
    """

    names = (*DEFAULT_METRICS, "sensitivity", "specificity")  # of which balanced accuracy's interval is made

    def mean(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: np.mean(values[name], axis=-1, keepdims=True) for name in names}

    def score(weights: np.ndarray | None, codes: np.ndarray | None) -> dict[str, np.ndarray]:
        return mean(
            metrics_module.evaluate(rows.y, scores, metrics=names, logits=True, weights=weights, groups=codes)
        )

    def without(codes: np.ndarray | None) -> dict[str, np.ndarray]:
        return mean(metrics_module.leave_one_out(rows.y, scores, metrics=names, logits=True, groups=codes))

    if not _can_resample(rows.group, config):
        values = score(None, None)
        return {
            name: dict.fromkeys(MEAN_FIELDS) | {"value": _number(values[name][0])} for name in DEFAULT_METRICS
        }
    intervals = estimate_function(
        score,
        without=without,
        labels=rows.y == 1,
        n_rows=len(rows),
        groups=rows.group,
        scales={name: metrics_module.METRICS[name].scale for name in names},
        **_options(rows.group, config),
    )
    return {
        name: {key: _number(getattr(intervals[name], key)[0]) for key in MEAN_FIELDS}
        for name in DEFAULT_METRICS
    }


def compare_models(
    rows: Rows,
    columns: Sequence[Column],
    *,
    config: ProbeConfig,
    reference: str,
    whole: Mapping[str, Interval] | None,
) -> list[dict[str, Any]]:
    """Paired differences between the models of one evaluation set that have the same role.

    balanced_accuracy (at 0.5) and auroc by `intervals.compare_paired`, auroc also by DeLong's test (clustered
    where there are groups). p-values are adjusted by Holm over the pairs of one evaluation set, role, metric
    and test. All pairs up to 12 models, above that each against `reference` (a feature set, the one chosen
    on the folds). The sweep as a whole is left out: it is one of the others, or a mixture of them.

    whole : what `bootstrap_set` gave for these columns (None: DeLong only)
    """
    records: list[dict[str, Any]] = []
    names = [c.features for c in columns]
    score, order = _tables(columns)
    for role in dict.fromkeys(c.role for c in columns):
        mine = [i for i, c in enumerate(columns) if c.role == role and c.features != SWEEP]
        pairs = list(itertools.combinations(mine, 2))
        if len(mine) > ALL_PAIRS_UP_TO:
            pairs = [(i, j) for i in mine for j in mine if names[j] == reference and i != j]
        if not pairs:
            continue
        found = []
        if whole is not None:
            paired = compare_paired(
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
            found += [(PAIRED, differences) for differences in paired.values()]
        try:
            test = delong(rows.y, order, groups=rows.group)
            found.append(("DeLong", test.compare(pairs=pairs, confidence=config.level)))
        except ProbeError:  # fewer than two clusters of a class: no test there, the paired one says as much
            pass
        for test_name, differences in found:
            for k, (i, j) in enumerate(differences.pairs):
                records.append(
                    {
                        "dataset": rows.dataset,
                        "role": role,
                        "metric": differences.metric,
                        "test": test_name,
                        "p_method": differences.p_method[k],
                        "a": names[i],
                        "b": names[j],
                        **{
                            key: _number(getattr(differences, key)[k])
                            for key in (
                                "difference",
                                "low",
                                "high",
                                "standard_error",
                                "degrees_of_freedom",
                                "p",
                                "p_holm",
                            )
                        },
                        "reason": differences.reason[k],
                    }
                )
    return records


def score_votes(rows: Rows, columns: Sequence[Column]) -> dict[str, Any] | None:
    """What the experts' votes say about the models of one evaluation set, at probability 0.5.

    The rows with votes: Fleiss' kappa (None where the number of votes differs), share of unanimous rows, the
    human line (balanced accuracy of an expert against the majority of the others, all votes pooled);
    `strata`: metrics by how many votes the winning side has; `by_votes`: mean probability by number of
    positive votes; `soft`: scores against the share of positive votes. None where no row has two votes.
    """
    known = rows.votes_total > 1
    if not known.any():
        return None
    positive, total, y = rows.votes_positive[known], rows.votes_total[known], rows.y[known]
    p = expit(np.stack([c.score[known] for c in columns], axis=1))
    names = [{"features": c.features, "role": c.role} for c in columns]
    same = len(np.unique(total)) == 1
    soft = agreement.soft_scores(positive, total, p)

    def records(table: pd.DataFrame) -> list[dict[str, Any]]:
        return [
            {**names[int(row.pop("model"))], **{str(k): _plain(v) for k, v in row.items()}}
            for row in table.to_dict("records")
        ]

    return {
        "dataset": rows.dataset,
        "n": int(known.sum()),
        "kappa": _number(agreement.fleiss_kappa(np.stack([positive, total - positive], axis=1)))
        if same
        else None,
        "unanimous": agreement.unanimous_share(positive, total),
        "human_line": _number(agreement.pooled_leave_one_out(positive, total)) if total.min() > 2 else None,
        "strata": records(agreement.by_agreement(y, p, positive, total)),
        "by_votes": records(agreement.by_votes(p, positive, total)),
        "soft": [
            {**name, **{metric: _number(values[i]) for metric, values in soft.items()}}
            for i, name in enumerate(names)
        ],
    }


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, int | np.integer) else _number(value)


def _number(value: Any) -> float | None:
    value = float(value)
    return value if np.isfinite(value) else None

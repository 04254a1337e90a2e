"""Scores by data set and domain, raw and deduplicated, model by model."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ...config import ProbeConfig
from ...statistics import multiclass
from ...statistics.intervals import DEFAULT_METRICS, Clusters, Estimates, cluster_codes
from .. import schema
from ..assess import SPECIFICITIES, Assessment, bare, between_domains
from ..schema import ClassScore, Confused, Estimate, Score, parsed_role
from .estimates import (
    CALIBRATION_METRICS,
    CLASSES_CALIBRATION,
    THRESHOLD_METRICS,
    estimates_of,
    inflation_of,
    intervals_of,
    metrics_of,
)
from .rows import Column, Rows, stacked

MOST_CONFUSED = 10  # pairs of classes that are listed


def estimate_set(rows: Rows, columns: Sequence[Column], *, config: ProbeConfig) -> Estimates | None:
    """Intervals of METRICS on all rows at probability 0.5, for scores and comparisons; None: none are asked
    for.
    """
    if not config.bootstrap:
        return None
    return _Subset.of(rows, columns, config).estimates(metrics_of(config, rows.classes))


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
    by_domain = [
        part_score for d, part in parts.items() for part_score in part.scores(full=False, whole=estimates[d])
    ]
    if config.bootstrap:
        level = 1 - (1 - config.level) / len(domains)
        wide = {d: part.estimates(DEFAULT_METRICS, level=level) for d, part in parts.items()}
        for j, score in enumerate(scores):
            between = {
                metric: between_domains(
                    {d: of_subset[metric] for d, of_subset in estimates.items() if of_subset is not None},
                    {d: one[metric] for d, one in wide.items() if one is not None},
                    j,
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
        self.score, self.order = stacked(columns, mask)
        self.inflation = inflation_of(columns, config)
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
        return intervals_of(self.y, score, self.order, self.group, names, self.config, inflation, **options)

    def scores(self, *, full: bool, whole: Estimates | None = None) -> list[Score]:
        """One a model; full : with all that whole sets have. whole : intervals of the metrics, if at hand."""
        names = metrics_of(self.config, self.rows.classes) if full else DEFAULT_METRICS
        whole = whole or self.estimates(names)
        kinds = {"metrics": self._measured(names, self.score, whole)}
        if full:
            kinds |= self._other_kinds()
        if not self.rows.groups_known and self.config.bootstrap:
            wide = self._estimates(DEFAULT_METRICS, self.score, 2 * self.inflation, method="jackknife")
            kinds["design_effect_2"] = [
                {name: bare(interval, j) for name, interval in wide.items()} for j in range(len(self.columns))
            ]
        about = {**self.about, "n": len(self.y), "n_groups": self.n_groups, "inflation": self.inflation}
        about |= self._counts()
        more = self._more(whole) if full else [{}] * len(self.columns)
        return [
            Score(
                features=column.features,
                **parsed_role(column.role),
                **about,
                **{kind: values[j] for kind, values in kinds.items()},
                **more[j],
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
        self, names: Sequence[str], score: np.ndarray, estimates: Estimates | None = None
    ) -> list[dict[str, Estimate]]:
        about = {"n": len(self.y), "groups": self.n_groups, "ordered": self.rows.ordered}
        estimates = estimates or self.estimates(names, score=score)
        return estimates_of(estimates, self.y, score, self.order, names, **about)

    @property
    def _adjusted(self) -> np.ndarray:
        """What was chosen on held-out scores, float64 (n, m, ...); see `Column.adjusted`."""
        return np.stack([c.adjusted[self.mask] for c in self.columns], axis=1)

    def _other_kinds(self) -> dict[str, list[dict[str, Estimate]]]:
        """kind of calls or probabilities -> metric -> estimate of each model."""
        cut, slope, scale, offset = self._adjusted.transpose(2, 0, 1)
        return {
            "at_threshold": self._measured(THRESHOLD_METRICS, self.score - cut),
            "temperature": self._measured(CALIBRATION_METRICS, self.score * slope),
            "platt": self._measured(CALIBRATION_METRICS, self.score * scale + offset),
        }

    def _counts(self) -> dict[str, Any]:
        """Of the rows of each class."""
        of = Clusters.of(self.y == 1, self.codes)
        clusters = schema.Clusters(
            known=self.rows.groups_known,
            n=of.n,
            with_positive=of.holding[1],
            with_negative=of.holding[0],
            effective_positive=of.effective[1],
            effective_negative=of.effective[0],
        )
        return {"n_positive": int(self.y.sum()), "clusters": clusters}

    def _more(self, whole: Estimates | None) -> list[dict[str, Any]]:
        """calibration, calls, net_benefit and at_specificity of each model."""
        level = self.config.level if self.config.bootstrap else None
        made = Assessment(self.y, self.group, level=level, inflation=self.inflation)
        cut, _, scale, offset = self._adjusted.transpose(2, 0, 1)
        platt = self.score * scale + offset
        calibrated = {"probability": made.calibration(self.score)} if self.config.probabilistic else {}
        calibrated["platt"] = made.calibration(platt)
        calls = {"metrics": made.calls(self.score), "at_threshold": made.calls(self.score - cut)}
        more: list[dict[str, Any]] = [
            {
                "calibration": {kind: of_models[j] for kind, of_models in calibrated.items()},
                "calls": {kind: of_models[j] for kind, of_models in calls.items()},
                "net_benefit": benefit,
                "net_benefit_reasons": reasons,
            }
            for j, (benefit, reasons) in enumerate(made.benefit(platt))
        ]
        with_cuts = [
            j for j, c in enumerate(self.columns) if c.cuts is not None and np.isfinite(c.cuts).all()
        ]
        if with_cuts:
            cuts = np.stack([np.asarray(self.columns[j].cuts)[self.mask] for j in with_cuts], axis=1)
            for k, specificity in enumerate(SPECIFICITIES):
                of_models = made.at_cut(self.order[:, with_cuts] - cuts[:, :, k])
                for j, of_model in zip(with_cuts, of_models, strict=True):
                    more[j].setdefault("at_specificity", {})[f"{specificity:g}"] = of_model
        return more


class _ClassesSubset(_Subset):
    """The same of more than two classes: scores float64 (n, m, K)."""

    def _other_kinds(self) -> dict[str, list[dict[str, Estimate]]]:
        return {"temperature": self._measured(CLASSES_CALIBRATION, self.score * self._adjusted)}

    def _counts(self) -> dict[str, Any]:
        classes = self.rows.classes
        counts = np.bincount(self.y, minlength=len(classes))
        missing = [name for name, n in zip(classes, counts, strict=True) if not n]
        return {"n_classes": len(classes), "missing": missing}

    def _more(self, whole: Estimates | None) -> list[dict[str, Any]]:
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

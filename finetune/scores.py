"""From outputs to what is reported, with the probes' metrics, intervals, thresholds and tables."""

from collections.abc import Mapping
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from ..probe.config import ProbeConfig
from ..probe.data import leak_notes
from ..probe.describe import describe, describe_adjusted, predictions_table, score_fold_models
from ..probe.held_out import OutOfFold, unadjusted
from ..probe.model import mean_logit
from ..probe.protocol import by_class
from ..probe.regression import TargetConfig
from ..probe.results.files import ProbeResult
from ..probe.results.schema import Role
from ..probe.results.scoring import (
    Column,
    Rows,
    mean_of_models,
    precision,
    score_experts,
    score_set,
    score_votes,
)
from ..probe.statistics import continuous, metrics, multiclass
from ..probe.targets import Column as TargetColumn
from ..probe.targets import TargetData, score_columns
from ..probe.targets import predictions_table as table_of_numbers
from ..probe.targets import score_fold_models as score_fold_models_of_numbers
from ..version import provenance
from .data import TrainingData
from .labels import TWO_CLASSES, Labels

OOF = "oof"
CHOSEN_ON_SCORED = (
    "each fold's model chose its epoch on the fold that it is scored on: scores of train rows are a little "
    "too high (choose_on = inner or none has no such optimism); evaluation sets took no part"
)  # a note of results
_VALIDATION = ("balanced_accuracy", "auroc", "average_precision", "balanced_log_loss")


def validation_metrics(y: np.ndarray, outputs: np.ndarray, labels: Labels = TWO_CLASSES) -> dict[str, float]:
    """Metrics of one epoch: calls at 0.5, or of the most probable class; `log_loss` class-balanced.

    y, outputs : float64 logits (n,), (n, K), or numbers (n, T), see `Labels`
    Of numbers r2, pearson and mae (in standard deviations of the rows that train), means over the targets; a
    target that is constant in these rows counts 0.
    """
    if labels.targets:
        y, outputs = labels.standardised(y), labels.standardised(outputs)
        values = continuous.evaluate(y, outputs, metrics=("r2", "pearson", "mae"))
        return {name: float(np.nan_to_num(value).mean()) for name, value in values.items()}
    if labels.binary:
        values = metrics.evaluate(y.astype(int), expit(outputs), metrics=_VALIDATION)
    else:
        names = (*_VALIDATION, "kappa")
        values = multiclass.evaluate(
            y.astype(int), outputs, metrics=names, logits=True, ordered=labels.ordered
        )
    named = {name: float(value) for name, value in values.items()}
    named["log_loss"] = named.pop("balanced_log_loss")
    return named


def monitored(values: Mapping[str, float], monitor: str) -> float:
    """The metric that chooses the epoch, higher is better."""
    return -values["log_loss"] if monitor == "log_loss" else values[monitor]


def assemble(
    data: TrainingData,
    config: ProbeConfig | TargetConfig,
    logits: Mapping[int, Mapping[str, np.ndarray]],
    about: Mapping[str, Any],
    *,
    choose_on: str,
    weighted: bool = True,
) -> ProbeResult:
    """The result of models of single folds, in the form of a probe's.

    logits : fold number -> {OOF: of the fold's rows, evaluation set: of its rows}, float64, in the rows'
        order; of numbers the predictions
    about : goes into the one entry of "models"; choose_on : of the recipe; weighted : see `OutOfFold.of`
    Threshold and calibration of the ensemble come from all out-of-fold scores (`OutOfFold`); single fold
    models on evaluation sets have none.
    """
    numbers = sorted(logits)
    keep = np.isin(data.fold, numbers)
    fold, train = data.fold[keep], _subset(data.study.train, keep)
    study = replace(data.study, train_manifest=data.study.train_manifest.select(keep), train=train)
    oof = np.empty((len(train), *logits[numbers[0]][OOF].shape[1:]))
    for k in numbers:
        oof[fold == k] = logits[k][OOF]
    each = {
        rows.dataset: np.stack([logits[k][rows.dataset] for k in numbers], axis=1) for rows in study.tests
    }
    whole = replace(data, study=study, fold=fold)
    if isinstance(config, TargetConfig):
        parts, predictions = _of_numbers(whole, config, oof, each, about)
    else:
        parts, predictions = _of_classes(whole, config, oof, each, about, weighted=weighted)
    folds = data.folds
    document = {
        "config": config.to_dict(),
        "provenance": provenance(),
        "data": [
            describe(rows, manifest, positive=getattr(config, "target", None))
            for rows, manifest in zip(study.rows, study.manifests, strict=True)
        ],
        "notes": [
            *leak_notes(data.leaks, config),
            *([CHOSEN_ON_SCORED] if choose_on == "fold" else []),
        ],
        "folds": {
            "name": folds.name,
            "n_splits": folds.n_splits,
            "made_with": folds.made_with,
            "trained": numbers,
        },
        "leaks": data.leaks.to_json(),
        "chosen": config.features[0],
        **parts,
        "comparisons": [],
    }
    return ProbeResult(document, predictions)


def _of_classes(
    data: TrainingData,
    config: ProbeConfig,
    oof: np.ndarray,
    each: Mapping[str, np.ndarray],
    about: Mapping[str, Any],
    *,
    weighted: bool,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The parts of the document, and the predictions; oof : (n, ...), each : set -> (n, folds, ...)."""
    study, fold, features = data.study, data.fold, config.features[0]
    held_out = OutOfFold.of(study.train.y, oof, fold, weighted=weighted)
    columns = {study.train.dataset: [held_out.column(features)]}
    for name, scores in each.items():
        columns[name] = [
            *(
                Column(features, f"fold {k}", one, unadjusted(one), by_class(one) if one.ndim == 2 else None)
                for k, one in zip(np.unique(fold), np.moveaxis(scores, 1, 0), strict=True)
            ),
            held_out.column_of(features, "ensemble", mean_logit(scores)),
        ]
    scores = [s for rows in study.rows for s in score_set(rows, columns[rows.dataset], config=config)]
    reported = {
        name: [c for c in of_set if not c.role.startswith(Role.FOLD)] for name, of_set in columns.items()
    }
    votes = [score_votes(rows, reported[rows.dataset], config=config) for rows in study.rows]
    experts = [e for rows in study.rows for e in score_experts(rows, reported[rows.dataset], config=config)]
    parts = {
        "models": [{"features": features, **describe_adjusted(held_out.of_ensemble), **about}],
        "fold_models": {features: score_fold_models(study.tests, each)},
        "fold_means": {
            features: {
                rows.dataset: mean_of_models(rows, each[rows.dataset], config=config) for rows in study.tests
            }
        },
        "scores": scores,
        "precision": precision(scores, [], level=config.level),
        "votes": [one for one in votes if one],
        **({"experts": experts} if experts else {}),
    }
    plan: Any = SimpleNamespace(folds=fold)  # all that the table of predictions asks of a probe's plan
    return parts, predictions_table(study, plan, columns)


def _of_numbers(
    data: TrainingData,
    config: TargetConfig,
    oof: np.ndarray,
    each: Mapping[str, np.ndarray],
    about: Mapping[str, Any],
) -> tuple[dict[str, Any], pd.DataFrame]:
    """As `_of_classes`, of predictions (n, T) and (n, folds, T)."""
    study, fold, features = data.study, data.fold, config.features[0]
    columns = {study.train.dataset: [TargetColumn.out_of_fold(features, oof, study.train.y, fold)]}
    for name, scores in each.items():
        models = zip(np.unique(fold).tolist(), np.moveaxis(scores, 1, 0), strict=True)
        mean = scores.mean(axis=1)
        columns[name] = [
            *(TargetColumn(features, Role.FOLD, one, one, k) for k, one in models),
            TargetColumn(features, Role.ENSEMBLE, mean, mean),
        ]
    assert isinstance(study, TargetData)
    parts = {
        "models": [{"features": features, "temperature": None, **about}],
        "fold_models": {features: score_fold_models_of_numbers(study, oof, each, fold)},
        "scores": [
            score
            for rows in study.rows
            for score in score_columns(rows, columns[rows.dataset], study.targets, config)
        ],
    }
    return parts, table_of_numbers(study, columns, fold)


def _subset(rows: Rows, keep: np.ndarray) -> Rows:
    parts = {f.name: getattr(rows, f.name) for f in fields(rows) if f.name != "dataset"}
    return replace(rows, **{n: v[keep] if isinstance(v, np.ndarray) else v for n, v in parts.items()})

"""From logits to what is reported, with the probes' metrics, intervals, thresholds and tables."""

from collections.abc import Mapping
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy.special import expit

from ..probe.config import ProbeConfig
from ..probe.describe import describe, describe_adjusted, predictions_table, score_fold_models
from ..probe.model import mean_logit
from ..probe.protocol import adjustment, as_ensemble, standardized
from ..probe.results.files import ProbeResult
from ..probe.results.scoring import (
    Column,
    Rows,
    mean_of_models,
    out_of_fold_cuts,
    score_set,
    specificity_cuts,
)
from ..probe.statistics import metrics
from ..version import provenance
from .data import TrainingData

OOF = "oof"
UNADJUSTED = np.array(
    [0.0, 1.0, 1.0, 0.0]
)  # threshold, 1 / temperature, Platt's scale and offset: none chosen
_VALIDATION = ("balanced_accuracy", "auroc", "average_precision", "balanced_log_loss")


def validation_metrics(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Metrics of one epoch: labels (n,) 0 or 1, logits float64 (n,); at 0.5, `log_loss` class-balanced."""
    values = metrics.evaluate(labels.astype(int), expit(logits), metrics=_VALIDATION)
    named = {name: float(value) for name, value in values.items()}
    named["log_loss"] = named.pop("balanced_log_loss")
    return named


def assemble(
    data: TrainingData,
    config: ProbeConfig,
    logits: Mapping[int, Mapping[str, np.ndarray]],
    about: Mapping[str, Any],
) -> ProbeResult:
    """The result of models of single folds, in the form of a probe's.

    logits : fold number -> {OOF: of the fold's rows, evaluation set: of its rows}, float64, in the rows'
        order
    about : goes into the one entry of "models"
    Models of folds have scales of their own: each fold's scores are standardised by their own mean and
    deviation, without labels (`protocol.standardized`), before anything is pooled. Threshold, temperature
    and Platt's scaling of a fold's own rows come from the other folds' out-of-fold scores, put on its scale
    (none with one fold alone); those of the ensemble from all of them; single fold models on evaluation sets
    have none.
    """
    study, features, numbers = data.study, config.features[0], sorted(logits)
    keep = np.isin(data.fold, numbers)
    fold, train = data.fold[keep], _subset(study.train, keep)
    trained = replace(study, train_manifest=study.train_manifest.select(keep), train=train)
    oof = np.empty(len(train))
    for k in numbers:
        oof[fold == k] = logits[k][OOF]
    scales, order = standardized(oof, fold)
    adjusted = np.tile(UNADJUSTED, (len(train), 1))
    if len(numbers) > 1:
        for k, (mean, deviation) in zip(numbers, scales, strict=True):
            others = fold != k  # their scores as fold k's model would give them
            adjusted[~others] = adjustment(train.y[others], order[others] * deviation + mean)
    oof_ensemble = as_ensemble(order, scales)
    of_ensemble = adjustment(train.y, oof_ensemble)
    columns = {
        train.dataset: [Column(features, OOF, oof, adjusted, order, out_of_fold_cuts(train.y, order, fold))]
    }
    cuts = specificity_cuts(train.y, oof_ensemble)
    of_models: dict[str, np.ndarray] = {}
    for rows in study.tests:
        each = of_models[rows.dataset] = np.stack([logits[k][rows.dataset] for k in numbers], axis=1)
        alone = np.tile(UNADJUSTED, (len(rows), 1))
        columns[rows.dataset] = [
            *(Column(features, f"fold {k}", each[:, i], alone) for i, k in enumerate(numbers)),
            Column(
                features,
                "ensemble",
                mean_logit(each),
                np.tile(of_ensemble, (len(rows), 1)),
                cuts=np.tile(cuts, (len(rows), 1)),
            ),
        ]
    sets = zip([train, *study.tests], [trained.train_manifest, *study.test_manifests], strict=True)
    folds = data.folds
    document = {
        "config": config.to_dict(),
        "provenance": provenance(),
        "data": [describe(rows, manifest) for rows, manifest in sets],
        "folds": {
            "name": folds.name,
            "n_splits": folds.n_splits,
            "made_with": folds.made_with,
            "trained": numbers,
        },
        "chosen": features,
        "models": [
            {
                "features": features,
                **describe_adjusted(of_ensemble),
                **about,
            }
        ],
        "fold_models": {features: score_fold_models(study.tests, of_models)},
        "fold_means": {
            features: {
                rows.dataset: mean_of_models(rows, of_models[rows.dataset], config=config)
                for rows in study.tests
            }
        },
        "scores": [
            record
            for rows in [train, *study.tests]
            for record in score_set(rows, columns[rows.dataset], config=config)
        ],
        "comparisons": [],
    }
    plan: Any = SimpleNamespace(folds=fold)  # all that the table of predictions asks of a probe's plan
    return ProbeResult(document, predictions_table(trained, plan, columns))


def _subset(rows: Rows, keep: np.ndarray) -> Rows:
    parts = {f.name: getattr(rows, f.name) for f in fields(rows) if f.name != "dataset"}
    return replace(rows, **{n: v[keep] if isinstance(v, np.ndarray) else v for n, v in parts.items()})

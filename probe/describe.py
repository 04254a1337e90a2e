"""What a probe study hands over: columns of scores, predictions, descriptions of models and data."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from ..datasets.manifest import Manifest
from .config import ProbeConfig, parse_features
from .data import StudyData
from .model import calibrated, mean_logit
from .protocol import Plan, ProtocolRun, adjustment, as_ensemble
from .results.schema import SWEEP
from .results.scoring import Column, Rows, out_of_fold_cuts, specificity_cuts
from .statistics.intervals import DEFAULT_METRICS
from .statistics.metrics import evaluate


def columns_of(
    data: StudyData, plan: Plan, runs: Mapping[str, ProtocolRun]
) -> tuple[str, dict[str, list[Column]]]:
    """The chosen feature set, and the columns to score of each evaluation set.

    With several feature sets the sweep as a whole has columns of its own: for each outer fold the feature set
    that is best on that fold's inner folds.
    """
    names = list(runs)
    chosen = names[int(np.argmax([run.path.max() for run in runs.values()]))]
    all_runs = dict(runs)
    if len(runs) > 1 and runs[chosen].choice:  # first: it is the estimate of what the folds choose
        all_runs = {SWEEP: _sweep(plan, data.train.y, list(runs.values()), runs[chosen]), **runs}
    columns: dict[str, list[Column]] = {data.train.dataset: []}
    y = data.train.y
    for name, run in all_runs.items():
        columns[data.train.dataset].append(
            Column(
                name,
                run.train_role,
                run.oof,
                run.oof_adjusted,
                run.oof_ranking,
                out_of_fold_cuts(y, run.oof_ranking, plan.folds),
            )
        )
        for dataset, scores in run.fold_models.items():
            ensemble = mean_logit(scores)
            mine = columns.setdefault(dataset, [])
            if name != SWEEP and dataset in run.refit:  # the sweep's refit is that of the chosen features
                refit = run.refit[dataset]
                mine.append(_one_model(name, "refit", refit, run.adjusted, specificity_cuts(y, run.oof_flat)))
            cuts = specificity_cuts(y, run.oof_ensemble)
            mine.append(_one_model(name, "ensemble", ensemble, run.ensemble_adjusted, cuts))
    return chosen, columns


def _one_model(name: str, role: str, score: np.ndarray, adjusted: np.ndarray, cuts: np.ndarray) -> Column:
    """The column of one model, which has one `adjustment` (4,) and one set of cuts (2,) for all rows."""
    n = len(score)
    return Column(name, role, score, np.tile(adjusted, (n, 1)), cuts=np.tile(cuts, (n, 1)))


def _sweep(plan: Plan, y: np.ndarray, runs: Sequence[ProtocolRun], chosen: ProtocolRun) -> ProtocolRun:
    """The run of "whatever the folds choose": in fold k the feature set that is best on its inner folds."""
    outer = np.unique(plan.folds)
    pick = [int(np.argmax([run.fold_paths[i].max() for run in runs])) for i in range(len(outer))]
    oof, ranking, adjusted = np.empty(len(y)), np.empty(len(y)), np.empty((len(y), 4))
    for i, k in enumerate(outer):
        rows, run = plan.folds == k, runs[pick[i]]
        oof[rows], adjusted[rows] = run.oof[rows], run.oof_adjusted[rows]
        ranking[rows] = run.oof_ranking[rows]
    scales = np.stack([runs[p].scales[i] for i, p in enumerate(pick)])
    oof_ensemble = as_ensemble(ranking, scales)
    return replace(
        chosen,
        oof=oof,
        oof_ranking=ranking,
        scales=scales,
        oof_adjusted=adjusted,
        oof_ensemble=oof_ensemble,
        ensemble_adjusted=adjustment(y, oof_ensemble),
        fold_models={
            name: np.stack([runs[p].fold_models[name][:, i] for i, p in enumerate(pick)], axis=1)
            for name in chosen.fold_models
        },
    )


def score_fold_models(
    tests: Sequence[Rows], scores: Mapping[str, np.ndarray]
) -> dict[str, dict[str, list[float | None]]]:
    """Evaluation set -> metric -> a value for each outer fold's model, which published tables average.

    scores : evaluation set -> logits float64 (n, K)
    """
    found = {}
    for rows in tests:
        values = evaluate(rows.y, scores[rows.dataset], metrics=DEFAULT_METRICS, threshold=0.0)
        found[rows.dataset] = {name: finite(one) for name, one in values.items()}
    return found


def predictions_table(data: StudyData, plan: Plan, columns: Mapping[str, Sequence[Column]]) -> pd.DataFrame:
    """Every prediction, one row each: patch, feature set and role ("oof", "refit", "ensemble").

    Columns: patch_id, path, content_hash, dataset, domain, group, label (1: positive), fold (outer fold of a
    train row, else 0), features, role; score (logit, as fitted); ranking (the same on one scale over the
    models of the folds, see `protocol.ranking`: what AUROC and average precision are taken on); probability,
    calibrated on folds (Platt); threshold on this probability, chosen on folds; call, int8: probability >=
    threshold.
    """
    frames = []
    for rows in data.rows:
        fold = plan.folds if rows.dataset == data.train.dataset else np.zeros(len(rows), int)
        about = pd.DataFrame(
            {
                "patch_id": rows.patch_id,
                "path": rows.path,
                "content_hash": rows.content_hash,
                "dataset": rows.dataset,
                "domain": rows.domain,
                "group": rows.group,
                "label": rows.y.astype(np.int8),
                "fold": fold.astype(np.int16),
            }
        )
        for column in columns[rows.dataset]:
            probability, threshold = calibrated(column.score, column.adjusted)
            frames.append(
                about.assign(
                    features=column.features,
                    role=column.role,
                    score=column.score,
                    ranking=column.order,
                    probability=probability,
                    threshold=threshold,
                    call=(probability >= threshold).astype(np.int8),
                )
            )
    table = pd.concat(frames, ignore_index=True)
    return table.astype(dict.fromkeys(("path", "dataset", "domain", "features", "role"), "category"))


def describe_run(name: str, run: ProtocolRun) -> dict[str, Any]:
    """One feature set's entry in results.json: what was chosen, on which scores, at what cost."""
    choices: dict[str, Any] = {}
    if run.choice:
        path = [finite(one) for one in run.path]
        choices["choice"] = run.choice.to_dict()
        choices["fold_choices"] = [choice.to_dict() for choice in run.fold_choices]
        own = {run.choice.parameter: run.values.tolist()} if run.choice.parameter else {}
        choices["path"] = {**own, "criterion": path}
    return {
        "features": name,
        "dim": run.fits["dim"],
        "criterion": float(run.path.max()),
        **choices,
        **describe_adjusted(run.adjusted),
        "fits": {key: value for key, value in run.fits.items() if key != "dim"},
        "seconds": run.seconds,
    }


def describe_adjusted(adjusted: np.ndarray) -> dict[str, Any]:
    """What was chosen on held-out scores: `threshold` is of the calibrated probability, `threshold_score` the
    same on the score.
    """
    return {
        "threshold": float(calibrated(np.zeros(1), adjusted)[1][0]),
        "threshold_score": float(adjusted[0]),
        "temperature": finite(1 / adjusted[1] if adjusted[1] else np.inf),
        "platt": adjusted[2:].tolist(),
    }


def describe_stores(bank: Any, config: ProbeConfig) -> dict[str, Any]:
    """Where the columns come from: source -> the store's name, identity and provenance."""
    sources = dict.fromkeys(s for name in config.features for s in parse_features(name).sources)
    found = {}
    for source in sources:
        store = bank.find(source.encoder, view=source.view, tokens=source.tokens)
        found[str(source)] = {
            "store": store.identity.name,
            "identity": store.identity.to_json(),
            "provenance": dict(store.provenance),
        }
    return found


def describe(rows: Rows, manifest: Manifest, *, positive: str | None = None) -> dict[str, Any]:
    """One evaluation set's entry in results.json."""
    header = manifest.header
    return {
        "dataset": rows.dataset,
        "name": header.name,
        "version": header.version,
        "licence": header.licence,
        "source": header.source,
        "group_kind": header.group_kind,
        "positive": positive or header.positive,
        "classes": list(header.classes),
        "rows": rows_digest(manifest),
        "root": str(manifest.root.absolute()),
        "n": len(rows),
        "n_positive": int(rows.y.sum()),
        "groups_known": rows.groups_known,
        "n_groups": int(manifest.table.loc[manifest.table["group"] != "", "group"].nunique()),
        "left_out": dict(rows.left_out),
        "n_distinct": int(rows.distinct.sum()),
        "domains": {d: int((rows.domain == d).sum()) for d in dict.fromkeys(rows.domain) if d},
    }


def rows_digest(manifest: Manifest) -> str:
    """BLAKE2b of ids and labels, in the order of the rows."""
    digest = hashlib.blake2b(digest_size=16)
    for column in ("patch_id", "label"):
        digest.update("".join(f"{len(text)} {text}" for text in map(str, manifest.table[column])).encode())
    return digest.hexdigest()


def finite(value: Any) -> Any:
    """Plain JSON values; None where a number is not finite."""
    if isinstance(value, np.ndarray):
        return [finite(one) for one in value]
    return float(value) if np.isfinite(value) else None


def fit_notes(runs: Mapping[str, ProtocolRun]) -> list[str]:
    """Fits that did not reach the tolerance; the warning of the solver may have been in another process."""
    capped = {name: n for name, run in runs.items() if (n := run.fits["status"].get("capped", 0))}
    return [
        f"{n} of {runs[name].fits['fits']} fits of {name} did not reach the tolerance (status 'capped')"
        for name, n in capped.items()
    ]

"""What a probe study hands over: columns of scores, predictions, descriptions of models and data."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from ..datasets.manifest import Manifest
from .config import ProbeConfig, parse_features
from .data import StudyData
from .model import calibrated, class_probabilities, mean_logit
from .protocol import Plan, ProtocolRun, adjustment, as_ensemble, by_class
from .results.schema import SWEEP
from .results.scoring import Column, Rows, evaluate_models, out_of_fold_cuts, specificity_cuts
from .statistics.intervals import DEFAULT_METRICS


def columns_of(
    data: StudyData, plan: Plan, runs: Mapping[str, ProtocolRun], config: ProbeConfig
) -> tuple[str, dict[str, list[Column]]]:
    """The chosen feature set, and the columns to score of each evaluation set.

    With several feature sets the sweep as a whole has columns of its own: for each outer fold the feature set
    that is best on that fold's inner folds.
    """
    names = list(runs)
    chosen = names[int(np.argmax([run.path.max() for run in runs.values()]))]
    all_runs = dict(runs)
    if len(runs) > 1 and runs[chosen].fold_choices:  # first: it is the estimate of what the folds choose
        all_runs = {SWEEP: _sweep(plan, data.train.y, list(runs.values()), runs[chosen], config), **runs}
    columns: dict[str, list[Column]] = {rows.dataset: [] for rows in data.rows}
    binary = len(data.classes) == 2
    y = next((rows.y for rows in data.tests if rows.dataset == data.choosing), data.train.y)

    def one_model(
        name: str, role: str, score: np.ndarray, adjusted: np.ndarray, held_out: np.ndarray
    ) -> Column:
        """The column of one model, with one adjustment and the same cuts for all rows."""
        about = np.tile(adjusted, (len(score), 1))
        if not binary:
            return Column(name, role, score, about, by_class(score, probabilistic=config.probabilistic))
        return Column(name, role, score, about, cuts=np.tile(specificity_cuts(y, held_out), (len(score), 1)))

    for name, run in all_runs.items():
        if len(run.oof):
            cuts = out_of_fold_cuts(y, run.oof_ranking, plan.folds) if binary else None
            columns[data.train.dataset].append(
                Column(name, run.train_role, run.oof, run.oof_adjusted, run.oof_ranking, cuts)
            )
        for rows in data.tests:
            dataset, of_set = rows.dataset, columns[rows.dataset]
            if name != SWEEP and dataset in run.refit:  # the sweep's refit is that of the chosen features
                role = "validation" if dataset == data.choosing else "refit"
                of_set.append(one_model(name, role, run.refit[dataset], run.adjusted, run.oof_flat))
            if dataset in run.fold_models:
                ensemble = mean_logit(run.fold_models[dataset])
                of_set.append(one_model(name, "ensemble", ensemble, run.ensemble_adjusted, run.oof_ensemble))
    return chosen, columns


def _sweep(
    plan: Plan, y: np.ndarray, runs: Sequence[ProtocolRun], chosen: ProtocolRun, config: ProbeConfig
) -> ProtocolRun:
    """The run of "whatever the folds choose": in fold k the feature set that is best on its inner folds."""
    outer = np.unique(plan.folds)
    pick = [int(np.argmax([run.fold_paths[i].max() for run in runs])) for i in range(len(outer))]
    oof, ranking, adjusted = (
        np.empty_like(like) for like in (chosen.oof, chosen.oof_ranking, chosen.oof_adjusted)
    )
    for i, k in enumerate(outer):
        rows, run = plan.folds == k, runs[pick[i]]
        oof[rows], adjusted[rows] = run.oof[rows], run.oof_adjusted[rows]
        ranking[rows] = run.oof_ranking[rows]
    scales = np.stack([runs[p].scales[i] for i, p in enumerate(pick)])
    oof_ensemble = as_ensemble(ranking, scales, probabilistic=config.probabilistic)
    weighted = chosen.choice is None or chosen.choice.class_weight != "none"
    return replace(
        chosen,
        oof=oof,
        oof_ranking=ranking,
        scales=scales,
        oof_adjusted=adjusted,
        oof_ensemble=oof_ensemble,
        ensemble_adjusted=adjustment(y, oof_ensemble, weighted=weighted),
        fold_models={
            name: np.stack([runs[p].fold_models[name][:, i] for i, p in enumerate(pick)], axis=1)
            for name in chosen.fold_models
        },
    )


def score_fold_models(
    tests: Sequence[Rows], scores: Mapping[str, np.ndarray], *, probabilistic: bool = True
) -> dict[str, dict[str, list[float | None]]]:
    """Evaluation set -> metric -> a value for each outer fold's model, which published tables average.

    scores : evaluation set -> logits float64 (n, K), or (n, K, C) of C > 2 classes
    """
    by_set = {}
    for rows in tests:
        if rows.dataset not in scores:
            continue
        score = scores[rows.dataset]
        order = by_class(score, probabilistic=probabilistic) if rows.classes else None
        values = evaluate_models(rows.y, score, order, DEFAULT_METRICS)
        by_set[rows.dataset] = {name: finite(of_models) for name, of_models in values.items()}
    return by_set


def patch_columns(rows: Rows) -> pd.DataFrame:
    """What says of which patch a prediction is."""
    return pd.DataFrame(
        {
            "patch_id": rows.patch_id,
            "path": rows.path,
            "content_hash": rows.content_hash,
            "dataset": rows.dataset,
            "domain": rows.domain,
            "group": rows.group,
        }
    )


def predictions_table(data: StudyData, plan: Plan, columns: Mapping[str, Sequence[Column]]) -> pd.DataFrame:
    """Every prediction, one row each: patch, feature set and role ("oof", "refit", "ensemble").

    Columns: patch_id, path, content_hash, dataset, domain, group, label (1: positive), fold (outer fold of a
    train row, else 0), features, role; score (logit, as fitted); ranking (the same on one scale over the
    models of the folds, see `protocol.ranking`: what AUROC and average precision are taken on); probability,
    calibrated on folds (Platt); threshold on this probability, chosen on folds; call, int8: probability >=
    threshold. votes_positive, votes_total : experts' votes, -1: none; where any row has them.
    Of more than two classes label and call are names, there is no threshold, and for each class there are
    the columns score_NAME, ranking_NAME and probability_NAME (calibrated on folds by a temperature).
    """
    frames = []
    with_votes = any((rows.votes_total > 0).any() for rows in data.rows)
    for rows in data.rows:
        label = np.array(rows.classes, dtype=object)[rows.y] if rows.classes else rows.y.astype(np.int8)
        fold = plan.folds if rows.dataset == data.train.dataset else np.zeros(len(rows), int)
        about = patch_columns(rows).assign(label=label, fold=fold.astype(np.int16))
        if with_votes:
            about = about.assign(
                votes_positive=rows.votes_positive.astype(np.int16),
                votes_total=rows.votes_total.astype(np.int16),
            )
        for column in columns[rows.dataset]:
            numbers = _class_columns(rows.classes, column) if rows.classes else _binary_columns(column)
            model = {"features": column.features, "role": column.role}
            frames.append(pd.concat([about.assign(**model), pd.DataFrame(numbers)], axis=1))
    table = pd.concat(frames, ignore_index=True)
    words = ["path", "dataset", "domain", "features", "role"]
    words += ["label", "call"] if data.train.classes else []
    return table.astype(dict.fromkeys(words, "category"))


def _binary_columns(column: Column) -> dict[str, np.ndarray]:
    probability, threshold = calibrated(column.score, column.adjusted)
    return {
        "score": column.score,
        "ranking": column.order,
        "probability": probability,
        "threshold": threshold,
        "call": (probability >= threshold).astype(np.int8),
    }


def _class_columns(classes: Sequence[str], column: Column) -> dict[str, np.ndarray]:
    tables = {
        "score": column.score,
        "ranking": column.order,
        "probability": class_probabilities(column.score, column.adjusted),
    }
    columns = {
        f"{kind}_{name}": table[:, k] for kind, table in tables.items() for k, name in enumerate(classes)
    }
    return {**columns, "call": np.array(classes, dtype=object)[column.score.argmax(axis=1)]}


def describe_run(name: str, run: ProtocolRun) -> dict[str, Any]:
    """One feature set's entry in results.json: what was chosen, on which scores, at what cost."""
    choices: dict[str, Any] = {}
    if run.choice:
        path = [finite(scores) for scores in run.path]
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
    same on the score; of more than two classes the temperature alone.
    """
    if len(adjusted) == 1:
        return {"temperature": finite(1 / adjusted[0])}
    return {
        "threshold": float(calibrated(np.zeros(1), adjusted)[1][0]),
        "threshold_score": float(adjusted[0]),
        "temperature": finite(1 / adjusted[1] if adjusted[1] else np.inf),
        "platt": adjusted[2:].tolist(),
    }


def describe_stores(bank: Any, features: Iterable[str]) -> dict[str, Any]:
    """Where the columns come from: source -> the store's name, identity and provenance."""
    sources = dict.fromkeys(s for name in features for s in parse_features(name).sources)
    stores = {}
    for source in sources:
        store = bank.find(source.encoder, view=source.view, tokens=source.tokens)
        stores[str(source)] = {
            "store": store.identity.name,
            "identity": store.identity.to_json(),
            "provenance": dict(store.provenance),
        }
    return stores


def describe(rows: Rows, manifest: Manifest, *, positive: str | None = None) -> dict[str, Any]:
    """One evaluation set's entry in results.json."""
    header = manifest.header
    if header.targets:
        classes: dict[str, Any] = {"positive": "", "targets": list(header.targets)}
    else:
        classes = {
            "positive": positive or header.positive,
            "classes": list(header.classes),
            "n_positive": int(rows.y.sum()),
        }
    if rows.classes:
        counts = np.bincount(rows.y, minlength=len(rows.classes)).tolist()
        classes = {"positive": "", "classes": list(rows.classes), "counts": counts, "ordered": rows.ordered}
    return {
        "dataset": rows.dataset,
        "name": header.name,
        "version": header.version,
        "licence": header.licence,
        "source": header.source,
        "group_kind": header.group_kind,
        **classes,
        "rows": rows_digest(manifest),
        "root": str(manifest.root.absolute()),
        "n": len(rows),
        "groups_known": rows.groups_known,
        "n_groups": int(manifest.table.loc[manifest.table["group"] != "", "group"].nunique()),
        "left_out": dict(rows.left_out),
        "n_distinct": int(rows.distinct.sum()),
        "domains": {d: int((rows.domain == d).sum()) for d in dict.fromkeys(rows.domain) if d},
    }


def rows_digest(manifest: Manifest) -> str:
    """BLAKE2b of ids and labels (or targets), in the order of the rows."""
    digest = hashlib.blake2b(digest_size=16)
    for column in ("patch_id", *(manifest.header.targets or ["label"])):
        digest.update("".join(f"{len(text)} {text}" for text in map(str, manifest.table[column])).encode())
    return digest.hexdigest()


def finite(value: Any) -> Any:
    """Plain JSON values; None where a number is not finite."""
    if isinstance(value, np.ndarray):
        return [finite(item) for item in value]
    return float(value) if np.isfinite(value) else None


def fit_notes(runs: Mapping[str, ProtocolRun]) -> list[str]:
    """Fits that did not reach the tolerance; the warning of the solver may have been in another process."""
    capped = {name: n for name, run in runs.items() if (n := run.fits["status"].get("capped", 0))}
    return [
        f"{n} of {runs[name].fits['fits']} fits of {name} did not reach the tolerance (status 'capped')"
        for name, n in capped.items()
    ]

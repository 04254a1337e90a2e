"""Several systems side by side: results of single sweeps or trainings become one result with a row for each.

A system is what a study names: an encoder with its views and token policies under one probe, or one that was
fine-tuned. Each has a ProbeResult of its own, so that adding a system leaves the others as they are.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ...errors import InvalidRequest
from ...version import provenance
from ..classifiers.grid import sum_facts
from ..config import ProbeConfig
from ..leaks import deduplicate
from .files import ProbeResult, groups_known
from .schema import SWEEP, TEST_ROLES, TRAIN_ROLES
from .scoring import Column, Rows, compare_models, estimate_set, precision, without_duplicates

REPORTED = "refit"  # the role under which a merged result lists what a system reports on evaluation sets


def merge_systems(results: Mapping[str, ProbeResult]) -> ProbeResult:
    """One result, with a feature set called by the system's name for each system.

    results : name of the system -> its own result; at least one. They must have the same train set and
        positive class; evaluation sets may be missing in some.
    Kept of each: on the train rows the nested choice among the system's feature sets, where there are
        several; on evaluation sets the refit of the chosen one (the ensemble where there is no refit, as in
        fine-tuning and published recipes, which is then listed as `REPORTED` too: `reported_by` says which).
    Intervals and scores are those of the single results. Made here: paired comparisons between systems, over
        the rows that both have, and the criterion: AUROC on the folds, which all systems have, and which
        ranks them ("chosen" is the first). Where a recipe chose its epoch on the fold it is too high, and a
        fine-tuned system's is as well (`finetune.run`); test scores have no part in it.
    Raises InvalidRequest if the results cannot be compared.
    """
    if not results:
        raise InvalidRequest("there is no result to merge")
    documents = {name: result.document for name, result in results.items()}
    first = next(iter(documents.values()))
    for name, document in documents.items():
        for key in ("dataset", "positive", "n"):
            if document["data"][0][key] != first["data"][0][key]:
                raise InvalidRequest(
                    f"system {name!r} was trained on {document['data'][0]['dataset']} with {key} "
                    f"{document['data'][0][key]}, the others with {first['data'][0][key]}"
                )
    data = {one["dataset"]: one for document in documents.values() for one in document["data"]}
    frames = {name: _reported(result) for name, result in results.items()}
    criteria = {name: _folds_auroc(result) for name, result in results.items()}
    ranked = sorted(results, key=lambda name: -criteria[name])
    config = ProbeConfig.from_dict(first["config"])
    comparisons = []
    for dataset in data:
        known = groups_known(data[dataset])
        comparisons += _compare(dataset, frames, config, reference=ranked[0], groups_known=known)
    scores = [record for name, result in results.items() for record in _scores(name, result)]
    votes = [one for dataset in data if (one := _votes(dataset, documents))]
    document: dict[str, Any] = {
        "config": {**first["config"], "features": list(results), "select": "auroc"},
        "provenance": provenance(),
        "stores": {k: v for d in documents.values() for k, v in d.get("stores", {}).items()},
        "data": list(data.values()),
        "folds": first["folds"],
        "leaks": _longest([d["leaks"] for d in documents.values() if "leaks" in d]),
        "chosen": ranked[0],
        "models": [_model(name, result, criteria[name]) for name, result in results.items()],
        "scores": scores,
        "notes": _notes(documents),
        "comparisons": comparisons,
        "repeats": _repeats(results),
        "precision": precision(scores, comparisons, level=config.level),
        "votes": votes,
        "seconds": {"all": sum(d.get("seconds", {}).get("all", 0.0) for d in documents.values())},
    }
    for key in ("fold_models", "fold_means", "domains"):
        document[key] = {
            name: d[key][d["chosen"]] for name, d in documents.items() if d["chosen"] in d.get(key, {})
        }
    if not document["leaks"]:
        del document["leaks"]
    table = pd.concat([frame.assign(features=name) for name, frame in frames.items()], ignore_index=True)
    table["role"] = table["role"].where(table["role"].isin(TRAIN_ROLES), REPORTED)
    kinds = dict.fromkeys(("path", "dataset", "domain", "features", "role"), "category")
    return ProbeResult(document, table.astype(kinds))


def reported_by(result: ProbeResult, dataset: str) -> tuple[str, str] | None:
    """(features, role) of the scores that stand for a system on one of its sets; None: it has none there."""
    there = {
        (r["features"], r["role"])
        for r in result.document["scores"]
        if r["dataset"] == dataset and not r["domain"] and r["subset"] == "raw"
    }
    train = dataset == result.document["data"][0]["dataset"]
    wanted = (
        [(SWEEP, "oof"), *((result.chosen, role) for role in TRAIN_ROLES)]
        if train
        else [(result.chosen, role) for role in TEST_ROLES]
    )
    return next((one for one in wanted if one in there), None)


def _reported(result: ProbeResult) -> pd.DataFrame:
    """Predictions of a system, one row a patch."""
    table, parts = result.predictions, []
    for one in result.document["data"]:
        found = reported_by(result, one["dataset"])
        if found is not None:
            mine = (table["dataset"] == one["dataset"]) & (table["features"] == found[0])
            part = table[mine & (table["role"] == found[1])].copy()
            parts.append(part.astype({"features": object, "role": object, "dataset": object}))
    return pd.concat(parts, ignore_index=True)


def _scores(name: str, result: ProbeResult) -> list[dict[str, Any]]:
    found = {one["dataset"]: reported_by(result, one["dataset"]) for one in result.document["data"]}
    train = result.document["data"][0]["dataset"]
    return [
        {**record, "features": name, "role": record["role"] if record["dataset"] == train else REPORTED}
        for record in result.document["scores"]
        if (record["features"], record["role"]) == found[record["dataset"]]
    ]


def _notes(documents: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Each note once, with the systems that it is of unless it is of all."""
    found: dict[str, list[str]] = {}
    for name, document in documents.items():
        for note in dict.fromkeys(document.get("notes", [])):
            found.setdefault(note, []).append(name)
    return [
        note if len(names) == len(documents) else f"{', '.join(names)}: {note}"
        for note, names in found.items()
    ]


def _repeats(results: Mapping[str, ProbeResult]) -> dict[str, Any] | None:
    """Spread over runs with other folds, of the systems that have as many runs as the one with the most."""
    found = {name: one for name, r in results.items() if (one := r.document.get("repeats"))}
    if not found:
        return None
    seeds = max((one["seeds"] for one in found.values()), key=len)
    scores = []
    for name, one in found.items():
        train = results[name].document["data"][0]["dataset"]
        for record in one["scores"] if one["seeds"] == seeds else ():
            if (record["features"], record["role"]) == reported_by(results[name], record["dataset"]):
                role = record["role"] if record["dataset"] == train else REPORTED
                scores.append({**record, "features": name, "role": role})
    return {"seeds": seeds, "scores": scores}


def _folds_auroc(result: ProbeResult) -> float:
    train = result.document["data"][0]["dataset"]
    wanted = reported_by(result, train)
    for record in result.document["scores"]:
        whole = record["dataset"] == train and not record["domain"] and record["subset"] == "raw"
        if whole and (record["features"], record["role"]) == wanted:
            return record["metrics"]["auroc"][0] or 0.0
    return 0.0


def _model(name: str, result: ProbeResult, criterion: float) -> dict[str, Any]:
    models = result.document["models"]
    about = next(m for m in models if m["features"] == result.chosen)
    found = {k: v for k, v in about.items() if k != "path"}  # criteria of the systems are not on one scale
    found |= {"features": name, "criterion": criterion, "chosen": result.chosen}
    if "fits" in about:  # a probe's, over all the feature sets that it chose from
        found["fits"] = sum_facts([m["fits"] for m in models])
        found["seconds"] = {**about["seconds"], "cpu": sum(m["seconds"]["cpu"] for m in models)}
    return found


def _compare(
    dataset: str,
    frames: Mapping[str, pd.DataFrame],
    config: ProbeConfig,
    *,
    reference: str,
    groups_known: bool,
) -> list[dict[str, Any]]:
    """Paired differences between the systems that were scored on this set, on the rows that all have."""
    tables = {name: frame[frame["dataset"] == dataset] for name, frame in frames.items()}
    tables = {name: table.set_index("patch_id") for name, table in tables.items() if len(table)}
    if len(tables) < 2:
        return []
    base = next(iter(tables.values()))
    role = "oof" if (base["role"].isin(TRAIN_ROLES)).all() else REPORTED
    every = from_predictions(dataset, tables, role=role, groups_known=groups_known)
    rows, columns = without_duplicates(*every)
    whole = estimate_set(rows, columns, config=config)
    return compare_models(rows, columns, config=config, reference=reference, whole=whole)


def from_predictions(
    dataset: str, tables: Mapping[str, pd.DataFrame], *, role: str, groups_known: bool = True
) -> tuple[Rows, list[Column]]:
    """What `compare_models` takes, from predictions of several models: the rows that all have.

    tables : name -> predictions, one row a patch, patch_id as index
    role : of the columns; one of TRAIN_ROLES for scores out of fold, whose variance is inflated
    Raises InvalidRequest where they disagree on a label.
    """
    base = next(iter(tables.values()))
    common = [p for p in base.index if all(p in table.index for table in tables.values())]
    base = base.loc[common]
    if any((table.loc[common, "label"] != base["label"]).any() for table in tables.values()):
        raise InvalidRequest(f"{dataset}: the results disagree on the label of a patch")
    about = np.full(len(base), -1)
    rows = Rows(
        dataset=dataset,
        patch_id=base.index.to_numpy(object),
        y=base["label"].to_numpy(np.int64),
        group=base["group"].to_numpy(object),
        domain=base["domain"].to_numpy(object),
        distinct=deduplicate(base.reset_index()).keep,
        votes_positive=about,
        votes_total=about,
        path=base["path"].to_numpy(object),
        content_hash=base["content_hash"].to_numpy(object),
        groups_known=groups_known,
    )
    columns = [
        Column(
            name,
            role,
            table.loc[common, "score"].to_numpy(np.float64),
            np.zeros((len(common), 4)),
            table.loc[common, "ranking"].to_numpy(np.float64),
        )
        for name, table in tables.items()
    ]
    return rows, columns


def _votes(dataset: str, documents: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    merged: dict[str, Any] | None = None
    for name, document in documents.items():
        for one in document.get("votes", []):
            if one["dataset"] != dataset:
                continue
            if merged is None:
                merged = {k: v for k, v in one.items() if not isinstance(v, list)}
                merged |= {k: [] for k, v in one.items() if isinstance(v, list)}
                if one.get("human"):
                    merged["human"] = {**one["human"], "models": []}
            for key in ("strata", "by_votes", "soft"):
                merged[key] += [
                    {**r, "features": name} for r in one[key] if r["features"] == document["chosen"]
                ]
            if merged.get("human") and one.get("human"):
                merged["human"]["models"] += [
                    {**r, "features": name}
                    for r in one["human"]["models"]
                    if r["features"] == document["chosen"]
                ]
    return merged


def _longest(reports: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The leak report over the most rows: systems that were scored on fewer sets have seen less."""
    return max(reports, key=lambda one: sum(one["checked"].values()), default={})

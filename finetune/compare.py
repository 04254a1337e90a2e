"""Two results on the same patches: a fine-tuned model next to the probe of its encoder, paired by patch."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import InvalidRequest
from ..probe.config import ProbeConfig
from ..probe.regression import TargetConfig
from ..probe.results.files import ProbeResult
from ..probe.results.merge import from_predictions, targets_from_predictions
from ..probe.results.schema import PAIRED, Results, Role
from ..probe.results.scoring import compare_models, estimate_set, without_duplicates
from ..probe.statistics.comparisons import holm
from ..probe.targets import compare_columns, mean_values
from .scores import OOF

PREFERRED = (OOF, "ensemble", "refit")  # the role that stands for a model, the first that it has


def compare_results(
    ours: str | Path,
    theirs: str | Path,
    *,
    features: str | None = None,
    fold: int | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Differences (ours minus theirs) on every evaluation set that both have scored, over the same patches.

    ours, theirs : folders of results; features : of theirs (None: the ones that its folds chose)
    fold : compare the out-of-fold scores of this fold only; its rows chose our epoch (see run_finetune)
    Train rows are compared out of fold; evaluation sets by the ensemble, and by the refit where there is none
    (the probe's refit where one fold alone was fine-tuned, which has no ensemble to match).

    One record a set and metric, tested as the probes of one sweep are (`probe.scoring.compare_models`, of
    numbers `probe.targets.compare_columns`, with the settings of `theirs`, repeated content counting once):
    n, ours, theirs, value_ours, value_theirs (at probability 0.5, or of the most probable class), difference,
    low, high, p, p_method, reason (why there is no interval, or ""); p_holm over all records.
    Raises InvalidRequest where the two have no patch in common, or disagree on a label.
    """
    finetuned, other = ProbeResult.load(ours), ProbeResult.load(theirs)
    chosen = features or other.chosen
    a = _by_set(finetuned.predictions, finetuned.chosen, fold)
    b = _by_set(other.predictions, chosen, fold)
    single = len(finetuned.results.folds.trained or ()) == 1
    config = _config(other.results, seed)
    records = []
    for dataset, table in a.items():
        if dataset not in b:
            continue
        each = [_roles(part, single) for part in (table, b[dataset])]
        if not all(each):  # a recipe that chose its epoch on the train rows has no fair score of them
            continue
        roles = [one[0] for one in each]
        tables = {
            name: part[part["role"] == role].set_index("patch_id")
            for name, part, role in zip(("ours", "theirs"), (table, b[dataset]), roles, strict=True)
        }
        about = {
            "dataset": dataset,
            "fold": fold,
            "ours": finetuned.chosen,
            "theirs": chosen,
            "roles": roles,
        }
        # the role decides the variance: out of fold it is inflated
        role = Role.OOF if roles[0] == OOF else Role.REFIT
        records += [about | one for one in _compared(dataset, tables, role, other.results, config)]
    if not records:
        raise InvalidRequest(f"{ours} and {theirs} have no evaluation set in common")
    adjusted = holm([np.nan if r["p"] is None else r["p"] for r in records])
    return [r | {"p_holm": None if np.isnan(p) else float(p)} for r, p in zip(records, adjusted, strict=True)]


def _config(results: Results, seed: int) -> ProbeConfig | TargetConfig:
    """The settings of these results, with intervals."""
    kind: type[ProbeConfig | TargetConfig] = TargetConfig if results.targets else ProbeConfig
    config = kind.from_dict(results.config.to_json())
    return config.replace(seed=seed, bootstrap=config.bootstrap or kind(features=("any",)).bootstrap)


def _compared(
    dataset: str,
    tables: Mapping[str, pd.DataFrame],
    role: Role,
    results: Results,
    config: ProbeConfig | TargetConfig,
) -> Iterator[dict[str, Any]]:
    """The paired differences of the two on one set, each content counting once."""
    known = {"role": role, "groups_known": results.data_set(dataset).grouped}
    if isinstance(config, TargetConfig):
        rows, columns = targets_from_predictions(dataset, tables, results.targets, **known)
        columns, rows = [column.select(rows.distinct) for column in columns], rows.select(rows.distinct)
        values = mean_values(rows, columns) if len(rows) else {}
        comparisons = compare_columns(rows, columns, "theirs", config) if len(rows) else []
    else:
        classes = tuple(results.train.classes) if results.multiclass else ()
        every = from_predictions(dataset, tables, classes=classes, **known)
        rows, of_classes = without_duplicates(*every)
        if not len(rows):
            return
        whole = estimate_set(rows, of_classes, config=config)
        assert whole is not None  # the config asks for intervals
        values = {metric: one.value for metric, one in whole.items()}
        comparisons = compare_models(rows, of_classes, config=config, reference="theirs", whole=whole)
    for one in comparisons:
        if one.test == PAIRED:
            yield {
                "metric": one.metric,
                "n": len(rows),
                "value_ours": float(values[one.metric][0]),
                "value_theirs": float(values[one.metric][1]),
                "difference": one.difference,
                "low": one.low,
                "high": one.high,
                "p": one.p,
                "p_method": one.p_method,
                "reason": one.reason,
            }


def _roles(table: pd.DataFrame, single: bool) -> list[str]:
    """The roles that stand for a model, best first; a single fold is set against one probe, the refit."""
    there = set(table["role"])
    order = (OOF, "refit", "ensemble") if single else PREFERRED
    return [role for role in order if role in there]


def _by_set(predictions: pd.DataFrame, features: str, fold: int | None) -> dict[str, pd.DataFrame]:
    own = predictions[predictions["features"] == features]
    if own.empty:
        there = ", ".join(map(str, predictions["features"].unique()))
        raise InvalidRequest(f"no predictions of {features!r}; available: {there}")
    if fold is not None:
        own = own[(own["role"] != OOF) | (own["fold"] == fold)]
    return {str(name): part for name, part in own.groupby("dataset", observed=True)}

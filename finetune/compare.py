"""Two results on the same patches: a fine-tuned model next to the probe of its encoder, paired by patch."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import InvalidRequest, ProbeError
from ..probe.intervals import compare_paired, delong
from ..probe.metrics import evaluate
from ..probe.results import ProbeResult
from .scores import OOF

METRICS = ("balanced_accuracy", "auroc", "average_precision")
PREFERRED = (OOF, "ensemble", "refit")  # the role that stands for a model, whichever it has first


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

    One record a set and metric: n, ours, theirs (values at probability 0.5), difference, low, high (95 %)
    and p by `probe.intervals.compare_paired`, and for AUROC p_delong (clustered where there are groups).
    Raises InvalidRequest where the two have no patch in common, or disagree on a label.
    """
    mine, other = ProbeResult.load(ours), ProbeResult.load(theirs)
    chosen = features or other.chosen
    a = _by_set(mine.predictions, mine.chosen, fold)
    b = _by_set(other.predictions, chosen, fold)
    single = len(mine.document["folds"].get("trained", [0, 0])) == 1
    records = []
    for dataset, table in a.items():
        if dataset not in b:
            continue
        roles = [_roles(part, single)[0] for part in (table, b[dataset])]
        left, right = (
            t[t["role"] == r].set_index("patch_id") for t, r in zip((table, b[dataset]), roles, strict=True)
        )
        both = left.index.intersection(right.index)
        if not len(both):
            continue
        left, right = left.loc[both], right.loc[both]
        if (left["label"] != right["label"]).any():
            raise InvalidRequest(f"{dataset}: the two results disagree on the label of a patch")
        y = left["label"].to_numpy(int)
        scores = np.stack([left["probability"], right["probability"]], axis=1)
        groups = left["group"].to_numpy(object)
        found = compare_paired(y, scores, groups=groups, metrics=METRICS, seed=seed)
        values = evaluate(y, scores, metrics=METRICS)
        try:
            p_delong = float(delong(y, scores, groups=groups).compare().p[0])
        except ProbeError:  # too few groups of a class
            p_delong = None
        for metric in METRICS:
            difference = found[metric]
            records.append(
                {
                    "dataset": dataset,
                    "fold": fold,
                    "ours": mine.chosen,
                    "theirs": chosen,
                    "roles": roles,
                    "metric": metric,
                    "n": len(both),
                    "value_ours": float(values[metric][0]),
                    "value_theirs": float(values[metric][1]),
                    "difference": float(difference.difference[0]),
                    "low": float(difference.low[0]),
                    "high": float(difference.high[0]),
                    "p": float(difference.p[0]),
                    "p_delong": p_delong if metric == "auroc" else None,
                }
            )
    if not records:
        raise InvalidRequest(f"{ours} and {theirs} have no evaluation set in common")
    return records


def _roles(table: pd.DataFrame, single: bool) -> list[str]:
    """The roles that stand for a model, best first; a single fold is set against one probe, the refit."""
    there = set(table["role"])
    order = (OOF, "refit", "ensemble") if single else PREFERRED
    return [role for role in order if role in there]


def _by_set(predictions: pd.DataFrame, features: str, fold: int | None) -> dict[str, pd.DataFrame]:
    own = predictions[predictions["features"] == features]
    if own.empty:
        there = ", ".join(map(str, predictions["features"].unique()))
        raise InvalidRequest(f"there are no predictions of {features!r}; there are {there}")
    if fold is not None:
        own = own[(own["role"] != OOF) | (own["fold"] == fold)]
    return {str(name): part for name, part in own.groupby("dataset", observed=True)}

"""How much the scores of a study depend on how its folds happened to be made: the protocol run repeatedly."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .results.scoring import Column, Rows
from .statistics.metrics import evaluate

METRICS = ("balanced_accuracy", "auroc", "average_precision")


def spread_over_repeats(
    sets: Sequence[Rows], columns: Sequence[Mapping[str, Sequence[Column]]]
) -> list[dict[str, Any]]:
    """One record for each evaluation set x feature set x role that every repeat has.

    sets : the evaluation sets; columns : for each of R repeats, evaluation set -> scores, as for `score_set`
    A record has for each metric (all rows, calls at 0) `mean`, `sd` (ddof 1) and `values`, in the order of
    the repeats; None where a value is undefined. The deviation is that of the choice of folds (and of the
    seed of probes that have one), with all rows given: it is no interval for new patients.
    """
    records = []
    for rows in sets:
        per_repeat = [{(c.features, c.role): c for c in one[rows.dataset]} for one in columns]
        for features, role in per_repeat[0]:
            mine = [one[features, role] for one in per_repeat if (features, role) in one]
            if len(mine) < len(per_repeat):
                continue
            score, order = (
                np.stack(tables, axis=1) for tables in ([c.score for c in mine], [c.order for c in mine])
            )
            found = evaluate(rows.y, score, metrics=METRICS[:1], threshold=0.0)
            found |= evaluate(rows.y, order, metrics=METRICS[1:])
            record: dict[str, Any] = {"dataset": rows.dataset, "features": features, "role": role}
            for name in METRICS:
                defined = bool(np.isfinite(found[name]).all())
                record[name] = {
                    "mean": float(found[name].mean()) if defined else None,
                    "sd": float(found[name].std(ddof=1)) if defined else None,
                    "values": [float(v) if np.isfinite(v) else None for v in found[name]],
                }
            records.append(record)
    return records

"""How much the scores of a study depend on how its folds happened to be made: the protocol run repeatedly."""

from collections.abc import Mapping, Sequence

import numpy as np

from .results.schema import RepeatScore, Role, Spread
from .results.scoring import Column, Rows, evaluate_models

METRICS = ("balanced_accuracy", "auroc", "average_precision")


def spread_over_repeats(
    sets: Sequence[Rows], columns: Sequence[Mapping[str, Sequence[Column]]]
) -> list[RepeatScore]:
    """One for each evaluation set x feature set x role that every repeat has.

    sets : the evaluation sets; columns : for each of R repeats, evaluation set -> scores, as for `score_set`
    Each metric (all rows, calls at 0) has `mean`, `sd` (ddof 1) and `values`, in the order of the repeats;
    None where a value is undefined. The deviation is that of the choice of folds (and of the
    seed of probes that have one), with all rows given: it is no interval for new patients.
    """
    scores = []
    for rows in sets:
        per_repeat = [{(c.features, c.role): c for c in column[rows.dataset]} for column in columns]
        for features, role in per_repeat[0]:
            same = [of_repeat[features, role] for of_repeat in per_repeat if (features, role) in of_repeat]
            if len(same) < len(per_repeat):
                continue
            score, order = (
                np.stack(tables, axis=1) for tables in ([c.score for c in same], [c.order for c in same])
            )
            values = evaluate_models(rows.y, score, order, METRICS)
            spreads = {name: _spread(values[name]) for name in METRICS}
            scores.append(RepeatScore(dataset=rows.dataset, features=features, role=Role(role), **spreads))
    return scores


def _spread(values: np.ndarray) -> Spread:
    defined = bool(np.isfinite(values).all())
    return Spread(
        mean=float(values.mean()) if defined else None,
        sd=float(values.std(ddof=1)) if defined else None,
        values=[float(v) if np.isfinite(v) else None for v in values],
    )

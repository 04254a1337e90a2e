"""Differences between models on the same rows, and how small a difference a set can show."""

import itertools
import math
from collections.abc import Sequence
from statistics import median

from scipy.special import stdtrit

from ....errors import ProbeError
from ...config import ProbeConfig
from ...statistics import multiclass
from ...statistics.comparisons import Differences, compare_paired
from ...statistics.delong import delong
from ...statistics.intervals import Estimates
from ..assess import number
from ..schema import PAIRED, SWEEP, Comparison, Precision, Role, Score
from .estimates import inflation_of, interval_options
from .rows import Column, Rows, stacked, without_duplicates
from .subsets import estimate_set

COMPARED = ("balanced_accuracy", "auroc")

POWER = 0.8  # of the detectable difference

ALL_PAIRS_UP_TO = 12  # models; above, each is compared with the chosen one only


def compare_models(
    rows: Rows,
    columns: Sequence[Column],
    *,
    config: ProbeConfig,
    reference: str,
    whole: Estimates | None,
) -> list[Comparison]:
    """Paired differences between the models of one evaluation set that have the same role.

    balanced_accuracy (at 0.5) and auroc by `comparisons.compare_paired`, auroc also by DeLong's test
    (clustered where there are groups). p-values are adjusted by Holm over the pairs of one evaluation set,
    role, metric and test. All pairs up to 12 models, above that each against `reference` (a feature set, the
    one chosen on the folds). The sweep as a whole is left out: it is one of the others, or a mixture of them.

    Repeated content counts once, and content with both labels not at all (`Rows.distinct`), as in the scores
    that lead.

    whole : what `estimate_set` gave for these columns on all rows (None: DeLong only)
    test : PAIRED or "DeLong"; groups_known False: rows were taken as independent and may not be, so that p
        is too small, and no claim is made of it
    """
    comparisons: list[Comparison] = []
    names = [column.features for column in columns]
    if not rows.distinct.all():
        rows, columns = without_duplicates(rows, columns)
        whole = None if whole is None else estimate_set(rows, columns, config=config)
    score, order = stacked(columns)
    for role in dict.fromkeys(c.role for c in columns):
        of_role = [i for i, c in enumerate(columns) if c.role == role and c.features != SWEEP]
        pairs = pairs_of([names[i] for i in of_role], reference)
        pairs = [(of_role[i], of_role[j]) for i, j in pairs]
        if not pairs:
            continue
        tests = []
        inflation = inflation_of([columns[i] for i in of_role], config)
        if whole is not None:
            paired = (multiclass.compare_paired if rows.classes else compare_paired)(
                rows.y,
                score,
                groups=rows.group,
                metrics=COMPARED,
                pairs=pairs,
                logits=True,
                order=order,
                estimates=whole,
                **interval_options(rows.group, config),
            )
            tests += [(PAIRED, differences) for differences in paired.values()]
        if not rows.classes:
            try:
                test = delong(rows.y, order, groups=rows.group)
                tests.append(("DeLong", test.compare(pairs=pairs, confidence=config.level)))
            except ProbeError:  # fewer than two clusters of a class: the paired test says as much
                pass
        for name, differences in tests:
            inflated = inflation if name == PAIRED else 1.0
            comparisons += comparisons_of(differences, rows, names, role=role, test=name, inflation=inflated)
    return comparisons


def pairs_of(names: Sequence[str], reference: str) -> list[tuple[int, int]]:
    """Which models are compared, as positions: all pairs, or of many each with the reference."""
    if len(names) <= ALL_PAIRS_UP_TO:
        return list(itertools.combinations(range(len(names)), 2))
    against = [j for j, name in enumerate(names) if name == reference]
    return [(i, j) for i in range(len(names)) for j in against if i != j]


def comparisons_of(
    differences: Differences, rows: Rows, names: Sequence[str], *, role: str, test: str, inflation: float
) -> list[Comparison]:
    """One for each pair; names : of the models whose positions the pairs have."""
    return [
        Comparison(
            dataset=rows.dataset,
            role=Role(role),
            metric=differences.metric,
            test=test,
            p_method=str(differences.p_method[k]),
            a=names[int(i)],
            b=names[int(j)],
            **{key: number(getattr(differences, key)[k]) for key in DIFFERENCE},
            reason=str(differences.reason[k]),
            groups_known=rows.groups_known,
            inflation=inflation,
        )
        for k, (i, j) in enumerate(differences.pairs)
    ]


DIFFERENCE = ("difference", "low", "high", "standard_error", "degrees_of_freedom", "p", "p_holm")


def precision(scores: Sequence[Score], comparisons: Sequence[Comparison], *, level: float) -> list[Precision]:
    """How small a difference each evaluation set can show, for each role and metric that models are compared
    by.

    scores, comparisons : of `score_set` and `compare_models`, of all sets
    half_width : of the interval of a difference. detectable : the true difference that is found at this level
        with a probability of POWER: (t of the level + t of the power) x standard error
    Both from the median standard_error and degrees_of_freedom of the paired differences; basis says of how
    many. With one model the error is that of two models scored on two such sets, usually more: basis
    "unpaired".
    """
    precisions = []
    whole = [score for score in scores if not score.domain]
    for dataset, role, fold in dict.fromkeys((item.dataset, item.role, item.fold) for item in whole):
        of_set = [one for one in whole if (one.dataset, one.role, one.fold) == (dataset, role, fold)]
        leading = any(one.deduplicated for one in of_set)
        of_set = [one for one in of_set if one.deduplicated == leading]
        for metric in COMPARED:
            paired = [
                (c.standard_error, c.degrees_of_freedom)
                for c in comparisons
                if (c.dataset, c.role, c.metric, c.test) == (dataset, role, metric, PAIRED)
                and c.standard_error
            ]
            basis = f"paired, median of {len(paired)}"
            if not paired:
                basis = "unpaired"
                about = [one.estimate(metric) for one in of_set]
                paired = [
                    (math.sqrt(2) * a.standard_error, a.degrees_of_freedom) for a in about if a.standard_error
                ]
            if not paired:
                continue
            error = median(e for e, _ in paired)
            freedom = median(math.inf if f is None else f for _, f in paired)
            reach = float(stdtrit(freedom, (1 + level) / 2))
            precisions.append(
                Precision(
                    dataset=dataset,
                    role=role,
                    metric=metric,
                    n=of_set[0].n,
                    n_groups=of_set[0].n_groups or 0,
                    standard_error=error,
                    degrees_of_freedom=number(freedom),
                    half_width=reach * error,
                    detectable=(reach + float(stdtrit(freedom, POWER))) * error,
                    basis=basis,
                )
            )
    return precisions

"""What the readings of experts say about the labels and the models of one evaluation set."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from ...config import ProbeConfig
from ...statistics import agreement, multiclass
from ...statistics.comparisons import compare_to_zero
from ...statistics.intervals import cluster_codes, estimate_function
from ..assess import bare, number
from ..schema import ByVotes, Estimate, ExpertScore, Human, HumanModel, Role, Soft, Stratum, Votes
from .comparing import COMPARED
from .estimates import NO_INTERVALS, inflation_of, interval_options, measure
from .rows import Column, Rows, stacked

EXPERT_METRICS = ("accuracy", "balanced_accuracy", "f1", "kappa")  # of calls


def score_votes(rows: Rows, columns: Sequence[Column], *, config: ProbeConfig) -> Votes | None:
    """What the experts' votes say about the models of one evaluation set, at probability 0.5.

    The rows with votes: Fleiss' kappa (None where the number of votes differs), share of unanimous rows,
    `strata`: metrics by how many votes the winning side has; `by_votes`: mean probability by number of
    positive votes; `soft`: scores against the share of positive votes.

    `human_line` : balanced accuracy of an expert against the majority of the others, all votes pooled, rows
        where the others tie counting half each way (None: no row has three votes)
    `human` : the same as value [value, low, high], with standard_error, degrees_of_freedom, reason; n (rows
        with three votes), n_left_out (rows of the set with fewer), n_votes and n_tied (votes of which the
        others tie), without_ties (the line if those were left out, which is higher: they are the hardest);
        models: features, role, value (the model against the same references on the same rows), difference
        (expert less model), p
    None where no row has two votes.
    """
    known = rows.votes_total > 1
    if rows.classes or not known.any():  # votes are for or against one class
        return None
    positive, total, y = rows.votes_positive[known], rows.votes_total[known], rows.y[known]
    score, order = stacked(columns, known)
    p = expit(score)
    same = len(np.unique(total)) == 1
    soft = agreement.soft_scores(positive, total, p)
    of_soft: list[dict[str, Any]] = [
        {metric: number(values[i]) for metric, values in soft.items()} for i in range(len(columns))
    ]

    def model(i: int) -> dict[str, Any]:
        return {"features": columns[i].features, "role": Role(columns[i].role)}

    def records(table: pd.DataFrame) -> list[dict[str, Any]]:
        rows = table.to_dict("records")
        return [model(int(row.pop("model"))) | {str(k): _plain(v) for k, v in row.items()} for row in rows]

    human = _human(rows, columns, config)
    kappa = agreement.fleiss_kappa(np.stack([positive, total - positive], axis=1)) if same else np.nan
    strata = agreement.by_agreement(y, score, positive, total, logits=True, order=order)
    return Votes(
        dataset=rows.dataset,
        n=int(known.sum()),
        kappa=number(kappa),
        unanimous=agreement.unanimous_share(positive, total),
        human_line=human.value.value if human else None,
        human=human,
        strata=[Stratum(**record) for record in records(strata)],
        by_votes=[ByVotes(**numbers) for numbers in records(agreement.by_votes(p, positive, total))],
        soft=[Soft(**model(i), **one) for i, one in enumerate(of_soft)],
    )


def score_experts(rows: Rows, columns: Sequence[Column], *, config: ProbeConfig) -> list[ExpertScore]:
    """Each expert beside the models, of more than two classes: what it called the rows that it read, against
    the labels; and balanced accuracy of the models on the same rows, paired. The one whose word is the label
    is left out.
    """
    scores: list[ExpertScore] = []
    for e, name in enumerate(rows.experts):
        called = np.asarray(rows.called)[:, e]
        read = called >= 0
        if not read.any() or (called[read] == rows.y[read]).all():
            continue
        y, group = rows.y[read], rows.group[read]
        expert = multiclass.one_hot(called[read], len(rows.classes))
        about: dict[str, Any] = {"classes": rows.classes, "ordered": rows.ordered}
        metrics = measure(y, expert, expert, group, EXPERT_METRICS, config, **about)
        models = []
        if columns and config.bootstrap:
            score = np.concatenate([expert[:, None], stacked(columns, read)[0]], axis=1)
            pairs = [(0, j) for j in range(1, score.shape[1])]
            options: dict[str, Any] = {"groups": group, "logits": True, **interval_options(group, config)}
            options |= {"metrics": COMPARED[:1], "inflation": inflation_of(columns, config)}
            whole = multiclass.estimate(y, score, classes=rows.classes, **options)
            paired = multiclass.compare_paired(y, score, pairs=pairs, estimates=whole, **options)
            of = paired[COMPARED[0]]
            differences = zip(of.difference, of.low, of.high, of.p, strict=True)
            models = [
                HumanModel(
                    features=column.features,
                    role=Role(column.role),
                    value=bare(whole[COMPARED[0]], j),
                    difference=Estimate(number(difference), number(low), number(high)),
                    p=number(p),
                )
                for j, (column, (difference, low, high, p)) in enumerate(
                    zip(columns, differences, strict=True), start=1
                )
            ]
        scores.append(
            ExpertScore(
                dataset=rows.dataset,
                expert=name,
                n=len(y),
                n_groups=int(cluster_codes(group, len(y)).max()) + 1,
                metrics=metrics,
                models=models,
            )
        )
    return scores


def _human(rows: Rows, columns: Sequence[Column], config: ProbeConfig) -> Human | None:
    voted = rows.votes_total > 2
    if not voted.any():
        return None
    called = np.stack([c.score[voted] >= 0 for c in columns], axis=1)
    codes = cluster_codes(rows.group[voted], int(voted.sum()))
    votes = rows.votes_positive[voted], rows.votes_total[voted], called
    line = agreement.human_line(*votes, codes)
    dropped = agreement.human_line(*votes, codes, ties="drop")
    intervals = estimate_function(
        lambda weights, codes: line.values,
        without=lambda codes: {} if codes is None else line.left_out,
        n_rows=int(voted.sum()),
        groups=rows.group[voted],
        scales={"expert": "logit", "model": "logit"},
        confidence=config.level,
    )
    p = compare_to_zero(intervals["difference"])

    def shown(name: str, j: int) -> Estimate:
        estimate = bare(intervals[name], j)
        return estimate if config.bootstrap else Estimate(estimate.value)

    expert = intervals["expert"]
    return Human(
        value=shown("expert", 0),
        standard_error=number(expert.standard_error[0]),
        degrees_of_freedom=number(expert.degrees_of_freedom[0]),
        reason=expert.reason[0] if config.bootstrap else NO_INTERVALS,
        n=int(voted.sum()),
        n_left_out=len(rows) - int(voted.sum()),
        n_votes=line.votes,
        n_tied=line.tied,
        without_ties=number(dropped.values["expert"][0]),
        models=[
            HumanModel(
                features=column.features,
                role=Role(column.role),
                value=shown("model", j),
                difference=shown("difference", j),
                p=number(p[j]),
            )
            for j, column in enumerate(columns)
        ],
    )


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, int | np.integer) else number(value)

"""Votes of experts: their agreement, and the systems beside them."""

from typing import Any

from ...results.display import SHOWN, TITLES, Table, interval, number, p_value
from ...results.schema import Role
from ..view import View
from . import clinical

EXPERT = ("accuracy", "balanced_accuracy", "f1", "kappa")


def of_classes(view: View) -> list[Any]:
    """Each expert against the labels of more than two classes, beside the chosen system."""
    rows = []
    for expert in view.results.experts:
        role = Role.OOF if expert.dataset == view.train else Role.REFIT
        beside = next((m for m in expert.models if (m.features, m.role) == (view.chosen, role)), None)
        rows.append(
            [
                expert.dataset + view.of_fold(expert.dataset),
                expert.expert,
                expert.n,
                *(interval(expert.estimate(m)) for m in EXPERT),
                *(
                    (interval(beside.value), interval(beside.difference, "+.3f"), p_value(beside.p))
                    if beside
                    else ("-", "-", "-")
                ),
            ]
        )
    if not rows:
        return []
    heads = ["set", "expert", "patches", *(view.titles[m] for m in EXPERT)]
    heads += [f"{view.chosen} (★), balanced accuracy", "expert - ★", "p"]
    return [
        "Calls of each expert against the labels, and the balanced accuracy of the chosen system on the "
        "patches that the expert read; the difference is paired over groups. An expert whose calls are the "
        "labels is left out.",
        Table(heads, rows, left=2),
    ]


def experts(view: View) -> list[Any]:
    """Agreement of the experts on each set, and of the chosen system by that agreement."""
    out: list[Any] = of_classes(view)
    for v in view.results.votes:
        # fine-tuned systems have no strata: then the best on the folds of those that have
        with_strata = {s.features for s in v.strata}
        name = next((n for n in (view.chosen, *view.names) if n in with_strata), "")
        kappa = "" if v.kappa is None else f", Fleiss' kappa {v.kappa:.3f}"
        out.append(f"**{v.dataset}**: {v.n} patches with votes, {v.unanimous:.1%} unanimous{kappa}.")
        out += clinical.human(view, v)
        if not name:
            continue
        out.append(f"{name}{' (★)' if name == view.chosen else ''} by how many experts agree:")
        role = Role.OOF if v.dataset == view.train else Role.REFIT
        strata = [s for s in v.strata if s.features == name]
        rows = [
            [
                f"{s.votes_agreeing} of {s.votes_total}",
                s.rows,
                s.positives,
                *map(number, (s.balanced_accuracy, s.auroc, s.average_precision)),
            ]
            for s in [s for s in strata if s.role == role] or strata
        ]
        heads = ["experts that agree", "patches", view.positive, *(TITLES[m] for m in SHOWN)]
        out.append(Table(heads, rows))
        probability = [s for s in v.by_votes if s.features == name and s.role == role]
        if probability:
            text = "; ".join(
                f"{s.votes_positive} of {s.votes_total}: {s.mean_score:.2f} ({s.rows})" for s in probability
            )
            soft = next((s for s in v.soft if s.features == name and s.role == role), None)
            tail = ""
            if soft and soft.pearson is not None:
                tail = f" Correlation with the share of votes: {soft.pearson:.2f}."
            out.append(f"Mean probability by votes for {view.positive} (patches in brackets): {text}.{tail}")
    return out

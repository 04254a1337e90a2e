"""Scores by domain: held in training, left out of it, trained on one and scored on another."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from markupsafe import Markup

from ...results.display import Table, interval
from ...results.schema import LeftOut, Role, Score
from ...results.scoring import NO_INTERVALS
from ..chart import Matrix
from ..charts import matrices
from ..markup import interval_html, span, tint, whisker
from ..view import View
from . import clinical


def by_domain(view: View) -> list[Any]:
    """The chosen features by domain, and where it was asked for, trained on other domains."""
    left_out, out = _without_domain(view), []
    roles = (Role.OOF, Role.REFIT)
    every = view.results.by_domain(features=view.chosen, roles=roles)
    scale = _domain_scale(view, every)
    for dataset in view.sets:
        scores = [r for r in every if r.dataset == dataset]
        if scores and not (dataset == view.train and left_out):
            out.append(f"**{dataset}**, {view.chosen} (★) by scanner, centre or tumour type.")
            out.append(_domain_table(view, scores, scale))
        elif scores:
            out += domains_left_out(view)
    return out + clinical.between_domains(view) + [part for parts in domain_matrices(view) for part in parts]


def domains_left_out(view: View) -> list[Any]:
    """Domains of the training set, out of fold and left out of training altogether."""
    left_out = _without_domain(view)
    if not left_out:
        return []
    scores = view.results.by_domain(features=view.chosen, dataset=view.train, roles=(Role.OOF,))
    return [
        f"**{view.train}**, {view.chosen} (★) by scanner, centre or tumour type. Out of fold, other "
        "patches of the domain are in training; left out, the model was trained and tuned on the other "
        "domains alone, as if this one were another hospital's.",
        _domain_table(view, scores, _domain_scale(view, scores), left_out),
        *clinical.reasons(
            (
                d.domain,
                {
                    m: why
                    for m in ("balanced_accuracy", "auroc")
                    if (why := d.estimate(m).reason) not in ("", NO_INTERVALS)
                },
            )
            for d in left_out.values()
        ),
    ]


def _without_domain(view: View) -> dict[str, LeftOut]:
    """Domain -> record of the chosen features trained without it; {} where that was not asked for."""
    domains = view.results.domains.get(view.chosen)
    return {d.domain: d for d in domains.leave_one_out} if domains else {}


def _domain_scale(view: View, scores: Sequence[Score]) -> tuple[float, float]:
    return span([score.estimate("auroc") for score in (*scores, *_without_domain(view).values())])


def _domain_table(
    view: View,
    scores: Sequence[Score],
    scale: tuple[float, float],
    left_out: Mapping[str, LeftOut] | None = None,
) -> Table:
    def cells(score: Score | LeftOut | None) -> list[Any]:
        if score is None or not score.metrics:
            return ["-", "-"]
        value = score.estimate("auroc")
        bar = whisker(value, scale, chance=0.5, series=view.series.get(view.chosen, 0))
        return [
            interval(score.estimate("balanced_accuracy")),
            (interval(value), interval_html(value) + bar),
        ]

    heads = ["domain", "patches", *view.positives, "balanced accuracy", view.titles["auroc"]]
    if left_out:
        heads += ["balanced accuracy, left out", f"{view.titles['auroc']}, left out"]
    rows = []
    for r in scores:
        row = [r.domain, r.n, *([] if r.n_positive is None else [r.n_positive]), *cells(r)]
        rows.append(row + cells(left_out.get(r.domain)) if left_out else row)
    return Table(heads, rows, kind="board")


def domain_matrices(view: View) -> list[list[Any]]:
    """Trained on one domain, scored on another: the content of each, the chosen one's first."""
    return [
        [
            f"{matrix.of}: trained on one domain (rows), scored on another (columns), "
            f"{view.titles['auroc']} with its {view.level} % interval over {view.groups}. "
            "Tuned inside the row's domain; framed, the domain itself, out of fold at the setting that the "
            "same folds chose, a little too high. In "
            f"brackets in the heads, {'patches' if view.multiclass else f'{view.positive} of all patches'}.",
            _matrix(view, matrix),
            *clinical.reasons(_matrix_reasons(matrix)),
        ]
        for matrix in matrices(view)
    ]


def _matrix(view: View, matrix: Matrix) -> Table:
    rows = []
    for i, name in enumerate(matrix.rows):
        cells: list[Any] = [name]
        for j, v in enumerate(matrix.values[i].tolist()):
            text, _, around = interval((v, *matrix.intervals[i, j].tolist()), ".2f").partition(" ")
            own = Markup(" class=own") if matrix.own(i, j) else ""
            shown = Markup('<span{} style="{}">{}</span>').format(own, tint(v), text)
            if around:
                shown += Markup("<small>{}</small>").format(around)
            cells.append("-" if np.isnan(v) else (f"{text} {around}".strip(), shown))
        rows.append(cells)
    sets = [view.train if dataset == "train" else dataset for dataset, *_ in matrix.columns]
    over = [("", 1), *((name, len(list(same))) for name, same in groupby(sets))]
    heads = matrix.heads()
    return Table(["trained on", *heads], rows, kind="matrix", over=over)


def _matrix_reasons(matrix: Matrix) -> list[tuple[str, dict[str, str]]]:
    """Why cells have no interval: (trained on, scored on -> reason)."""
    names = [f"scored on {domain or dataset}" for dataset, domain, *_ in matrix.columns]
    return [
        (
            f"trained on {name}",
            {c: why for c, why in zip(names, row, strict=True) if why not in ("", NO_INTERVALS)},
        )
        for name, row in zip(matrix.rows, matrix.reasons, strict=False)
    ]

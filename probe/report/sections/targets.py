"""Predicted numbers: scores of all systems, each target by itself, predicted against measured values."""

from typing import Any

from ...results.display import SHOWN_OF_TARGETS, TITLES, Table, interval, mean_sd
from ...results.schema import Estimate, Score
from .. import charts
from ..markup import interval_html, span, whisker
from ..plots import side_by_side, svg
from ..view import OTHERS, View
from . import clinical
from .scores import notes

_BARS = ("pearson", "spearman", "r2")


def leaderboard(view: View) -> list[Any]:
    """All systems on each set: means over the targets."""
    targets = view.results.targets
    of = f"means over the {len(targets)} targets" if len(targets) > 1 else f"of {targets[0]}"
    out: list[Any] = [
        f"Values are {of}; in brackets {view.level} % intervals over whole {view.groups}. R2 is 1 less the "
        "squared error over that of the set's own mean: 0 for a constant, below 0 for worse. ★ marks what "
        "the folds of the training set chose; no choice of any kind was made on the test sets."
    ]
    records = list(view.records.values())
    for dataset in view.sets:
        on_set = [r for r in records if r.dataset == dataset]
        if on_set:
            how = "scored out of fold" if dataset == view.train else "never used in training or choosing"
            patches = "different patches" if on_set[0].deduplicated else "patches"
            out.append(
                f"**{dataset}**: {on_set[0].n:,} {patches}, {clinical.independence(view, on_set[0])}; {how}."
            )
            out.append(
                _table(view, [(view.cell(r.features), r.features, r.metrics) for r in on_set], dataset)
            )
    return [*out, *clinical.no_interval(view, SHOWN_OF_TARGETS), *notes(view)]


def each(view: View) -> list[Any]:
    """Each target by the chosen system, the best predicted first."""
    out: list[Any] = []
    for r in _leading(view):
        if len(r.targets) > 1:
            ranked = charts.best_first(r)
            rows = [((score.target, score.target), view.chosen, score.metrics) for score in ranked]
            out += [f"**{r.dataset}**{view.of_fold(r.dataset)}", _table(view, rows, r.dataset)]
    if out:
        out.insert(
            0, f"By {view.chosen} (★), the highest Pearson correlation first. MAE is in the target's unit."
        )
    return out


def scatter(view: View) -> list[Any]:
    """Predicted against measured values of the best and the worst predicted targets, by the chosen system."""
    plots = [
        side_by_side(map(svg, charts.scatters(view, r)), head=f"{r.dataset}{view.of_fold(r.dataset)}")
        for r in _leading(view)
    ]
    if not plots:
        return []
    few = len(view.results.targets) <= charts.SCATTERED
    which = "" if few else " The best and the worst predicted targets."
    return [
        f"Each dot is a patch, by {view.chosen} (★); the dashed line is where both are equal.{which}",
        *plots,
    ]


def fold_models(view: View) -> list[Any]:
    """Mean and standard deviation over the folds' models, as cross-validations are published."""
    rows = [
        [dataset, view.starred(name), *(mean_sd(values[m]) for m in SHOWN_OF_TARGETS)]
        for name, sets in view.results.fold_models.items()
        for dataset, values in sets.items()
    ]
    if not rows:
        return []
    return [
        "Mean (standard deviation) over the models of the folds, of the training set each on its own fold's "
        "rows: the form in which cross-validations are published.",
        Table(["set", view.noun, *(TITLES[m] for m in SHOWN_OF_TARGETS)], rows, left=2),
    ]


def _leading(view: View) -> list[Score]:
    return [r for (_, name), r in view.records.items() if name == view.chosen]


def _table(view: View, rows: list[tuple[Any, str, dict[str, Estimate]]], caption: str) -> Table:
    """One line each: a cell that names it, the system whose colour it has, its metrics."""
    scale = {m: span([metrics[m] for _, _, metrics in rows], 0.0) for m in _BARS}
    lines = []
    for cell, name, metrics in rows:
        cells: list[Any] = [cell]
        for m in SHOWN_OF_TARGETS:
            bar = (
                whisker(metrics[m], scale[m], chance=0.0, series=view.series.get(name, OTHERS))
                if m in _BARS
                else ""
            )
            cells.append((interval(metrics[m]), interval_html(metrics[m]) + bar))
        lines.append(cells)
    head = view.noun if rows and rows[0][0][0] in map(view.starred, view.names) else "target"
    return Table([head, *(TITLES[m] for m in SHOWN_OF_TARGETS)], lines, kind="board", caption=caption)

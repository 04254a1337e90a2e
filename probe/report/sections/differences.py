"""Paired differences between systems."""

from typing import Any

from ...results.display import Table, p_value
from .. import charts
from ..plots import legend, side_by_side, svg
from ..view import View

COMPARED = ("auroc", "balanced_accuracy", "kappa")  # the last of more than two classes only


def differences(view: View) -> list[Any]:
    """Every other system minus the chosen one, for each set."""
    if not view.results.comparisons_of(view.chosen):
        return []
    out: list[Any] = [
        f"Each line is another {view.noun} minus {view.chosen} (★) on the same patches: left of zero, ★ "
        f"is better. Bars are {view.level} % intervals of paired differences over whole groups; where an "
        "interval crosses zero, these patches show no significant difference. p-values are "
        "adjusted for the number of comparisons (Holm).",
        legend(view),
    ]
    table = []
    plots = []
    compared = COMPARED if view.multiclass else COMPARED[:2]
    if view.results.targets:
        compared = ("pearson", "r2")
    for dataset in view.sets:
        for metric in compared:
            chart = charts.differences(view, dataset, metric)
            if chart is None:
                continue
            plots.append(svg(chart, height=84 + 22 * len(chart.rows), left=14))
            delong = {c.a: c.p_holm for c in charts.against_chosen(view, dataset, metric, "DeLong")}
            table += [
                [
                    dataset,
                    c.a,
                    view.titles[metric],
                    f"{c.difference:+.3f}",
                    "-" if c.low is None else f"[{c.low:+.3f}, {c.high:+.3f}]",
                    p_value(c.p_holm),
                    p_value(delong.get(c.a)) if metric == "auroc" else "-",
                ]
                for c in charts.against_chosen(view, dataset, metric)
            ]
    if view.ungrouped:
        out.append(
            f"Of {' and '.join(view.ungrouped)} no slides are known: patches are taken as independent "
            "there, p is too small, and no difference is called significant."
        )
    out.append(side_by_side(plots))
    out.append(
        Table(
            ["set", view.noun, "metric", "difference", "interval", "p, groups", "p, DeLong"],
            table,
            left=3,
        )
    )
    return out

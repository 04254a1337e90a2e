"""More than two classes: the confusion matrix, each class against the rest, calibration."""

from typing import Any

import numpy as np
from markupsafe import Markup

from ...results.display import Table, interval, number
from ...results.schema import Score
from ..charts import confusions
from ..markup import interval_html, tint, whisker
from ..view import View

METRICS = ("sensitivity", "specificity", "precision", "f1", "auroc", "average_precision")
CALIBRATION = ("log_loss", "balanced_log_loss", "brier", "ece")
PAIRS = 10  # of confused classes that are listed, most patches first


def _leading(view: View) -> list[Score]:
    """The scores of the chosen system on each set that has a table of classes."""
    return [r for dataset in view.sets if (r := view.records.get((dataset, view.chosen))) and r.classes]


def confusion(view: View) -> list[Any]:
    """Counts and row shares of the chosen system's calls on each set, and the pairs it confuses most."""
    out: list[Any] = []
    for matrix in confusions(view):
        rows = []
        for i, label in enumerate(matrix.classes):
            cells: list[Any] = [label, int(matrix.counts[i].sum())]
            for j, count in enumerate(matrix.counts[i].tolist()):
                share = matrix.shares[i, j]
                text = "-" if np.isnan(share) else f"{share:.0%}"
                own = Markup(" class=own") if i == j else ""
                shown = Markup('<span{} style="{}">{}</span><small>{:,}</small>')
                style = tint(0.0 if np.isnan(share) else share, 0.0, 1.0)
                cells.append((f"{count} ({text})", shown.format(own, style, text, count)))
            rows.append(cells)
        over = [("", 2), ("called", len(matrix.classes))]
        heads = ["label", "patches", *matrix.classes]
        out += [
            f"**{matrix.of}**{view.of_fold(matrix.of)}",
            Table(heads, rows, kind="matrix confusion", over=over, caption=matrix.of),
            *_pairs(view, matrix.of),
        ]
    if out:
        order = " The classes are in their order." if view.results.train.ordered else ""
        out.insert(
            0,
            f"Calls of {view.chosen} (★): rows by label, columns by call; the share of the row's patches, "
            f"below it their number; framed, the right calls.{order}",
        )
    return out


def _pairs(view: View, dataset: str) -> list[Any]:
    """Which classes are called which others, most patches first."""
    pairs = view.records[dataset, view.chosen].confused[:PAIRS]
    if not pairs:
        return []
    heads = ["label", "called", "patches", "of the class", view.groups.partition(" ")[0]]
    rows = [[c.label, c.called, c.rows, f"{c.share:.1%}", c.groups] for c in pairs]
    return ["Confused most often:", Table(heads, rows, left=2)]


def per_class(view: View) -> list[Any]:
    """Each class against the rest, on each set."""
    out: list[Any] = []
    for r in _leading(view):
        rows = []
        for c in r.classes:
            series = view.classes.index(c.label)
            cells: list[Any] = [(c.label, view.class_swatch(series) + c.label), c.n, c.n_groups, c.called]
            for m in METRICS:
                value = c.estimate(m)
                chance = {"auroc": 0.5, "average_precision": c.n / r.n}.get(m)
                bar = whisker(value, (0.0, 1.0), chance=chance, series=series)
                cells.append((interval(value), interval_html(value) + bar))
            rows.append(cells)
        heads = [
            "class",
            "patches",
            view.groups.partition(" ")[0],
            "called",
            *(view.class_titles[m] for m in METRICS),
        ]
        out += [
            f"**{r.dataset}**{view.of_fold(r.dataset)}",
            Table(heads, rows, kind="board classes", caption=r.dataset),
        ]
        if r.missing:
            out.append(
                f"No patch of {r.dataset} is {' or '.join(r.missing)}: means over the classes are "
                "undefined there."
            )
    if out:
        out.insert(
            0,
            f"Each class against the rest, by {view.chosen} (★); the call is the most probable class. Bars "
            "go from 0 to 1, the grey tick is the chance level.",
        )
    return out


def calibration(view: View) -> list[Any]:
    """Losses and calibration error before and after temperature scaling."""
    rows = [
        [
            r.dataset + view.of_fold(r.dataset),
            *(
                f"{number(r.estimate(m).value)} → {number(r.estimate(m, 'temperature').value)}"
                for m in CALIBRATION
            ),
        ]
        for r in _leading(view)
        if r.temperature
    ]
    if not rows:
        return []
    temperature = view.models[view.chosen].temperature
    return [
        f"Probabilities of {view.chosen} (★) as fitted → after scaling with the temperature "
        f"{number(temperature)}, which was chosen on out-of-fold scores of the training set. Lower is "
        "better. ECE: the mean distance of the call's probability from the share of right calls.",
        Table(["set", *(view.titles[m] for m in CALIBRATION)], rows),
    ]

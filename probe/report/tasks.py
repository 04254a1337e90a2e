"""The page of several tasks: average ranks, mean scores, which systems differ, and each task."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from ...texts import prose
from ..results.display import Table, interval, p_value, titles_of
from ..results.tasks import Standing, Task, TaskBoard
from .chart import Chart, Part
from .markup import document, interval_html, marked, render, span, tint, whisker
from .plots import svg

Section = tuple[str, str, list[Any]]


def tasks_html(
    board: TaskBoard | None,
    *,
    title: str,
    about: str,
    missing: Mapping[str, str],
    pages: Mapping[str, str],
    made_by: str,
) -> str:
    """The whole page. missing : task -> why it has no results; pages : task -> address of its own page."""
    lead = Markup('<p class="lead">{}</p>').format(marked(about)) if about else Markup("")
    return document(title, sections_of(board, missing=missing, pages=pages), lead=lead, foot=made_by)


def tasks_markdown(board: TaskBoard | None, *, title: str, about: str, missing: Mapping[str, str]) -> str:
    """The same tables and sentences."""
    out = [f"# {prose(title)}", prose(about)]
    for _, head, parts in sections_of(board, missing=missing, pages={}):
        shown = [
            prose(part) if isinstance(part, str) else part.markdown()
            for part in parts
            if not isinstance(part, Markup)
        ]
        out += [f"## {head}", *shown]
    return "\n\n".join(part for part in out if part) + "\n"


def frame(board: TaskBoard | None) -> pd.DataFrame:
    """One row a system x task, and one a system x ("average rank", "mean score")."""
    records: list[list[Any]] = []
    if board:
        for task in board.tasks:
            for system, estimate in board.values[task.name].items():
                records.append([system, task.name, task.dataset, task.metric, *estimate])
        for standing in board.standings:
            for what, estimate in (("average rank", standing.rank), ("mean score", standing.mean)):
                records.append([standing.system, "", "", what, *estimate])
    return pd.DataFrame(records, columns=["system", "task", "dataset", "metric", "value", "low", "high"])


def show(table: pd.DataFrame, missing: Mapping[str, str], *, title: str) -> None:
    """Print the systems over the tasks on the terminal. table : what `frame` gave."""
    whole = table[table["task"].fillna("") == ""]
    cells = {
        (row["system"], row["metric"]): interval((row["value"], row["low"], row["high"]), form)
        for what, form in (("average rank", ".2f"), ("mean score", ".3f"))
        for row in whole[whole["metric"] == what].to_dict("records")
    }
    systems = list(dict.fromkeys(whole["system"]))
    rows = [[name, cells[name, "mean score"], cells[name, "average rank"]] for name in systems]
    n = table["task"].dropna().replace("", np.nan).nunique()
    caption = f"Over {n} tasks, with intervals over whole groups within each task."
    if missing:
        caption += f"\nTasks without results, and the page says why: {', '.join(missing)}."
    Table(["system", "mean score", "average rank"], rows).show(title=title, caption=caption)


def sections_of(
    board: TaskBoard | None, *, missing: Mapping[str, str], pages: Mapping[str, str]
) -> list[Section]:
    """(anchor, title, content) of each section that has content."""
    sections: list[Section] = []
    if board:
        sections = [
            ("systems", "Systems over all tasks", _systems(board)),
            ("difference", "Critical difference", _difference(board)),
            ("values", "Systems by tasks", [_values(board)]),
            ("tasks", "Each task", _each(board, pages)),
        ]
    reasons = [f"**{task}**: {why}" for task, why in missing.items()]
    sections.append(("missing", "Not run", reasons))
    return [section for section in sections if section[2]]


def _systems(board: TaskBoard) -> list[Any]:
    incomplete = {name for of_task in board.values.values() for name in of_task}
    incomplete -= {standing.system for standing in board.standings}
    out: list[Any] = []
    if board.standings:
        level, n = round(100 * board.level), len(board.tasks)
        out.append(
            f"Over {n} tasks, best mean first. In brackets: {level} % intervals from draws of whole groups "
            "(slides or patients) within each task, the same for all systems: of other patients of the same "
            "tasks, not of other tasks. Average rank: 1 would be the highest on every task. First: "
            "share of the draws in which the system has the highest mean."
        )
        scale = span([standing.mean for standing in board.standings])
        if left_out := [task.name for task in board.tasks if task not in board.averaged]:
            out.append(
                f"Mean scores are over the {len(board.averaged)} tasks whose metrics have one scale; "
                f"{', '.join(left_out)} {'has' if len(left_out) == 1 else 'have'} a part in the ranks alone."
            )
        rows = [
            [
                s.system,
                (interval(s.rank, ".2f"), interval_html(s.rank, ".2f")),
                (interval(s.mean), interval_html(s.mean) + whisker(s.mean, scale, series=0)),
                f"{s.first:.0%}",
            ]
            for s in board.standings
        ]
        heads = ["system", "average rank", "mean score", "first"]
        out += [Table(heads, rows, kind="board"), *_statement(board)]
    if incomplete:
        out.append(f"Without all tasks, so neither ranked nor averaged: {', '.join(sorted(incomplete))}.")
    return out


def _statement(board: TaskBoard) -> list[str]:
    """Which systems differ in their mean score on these tasks."""
    best, *others = board.standings
    if not others:
        return []
    ungrouped = [task.name for task in board.averaged if not task.grouped]
    note = ""
    if ungrouped:
        note = (
            f" Of {', '.join(ungrouped)} no slides or patients are known: patches are taken as independent "
            "there, so the intervals are too narrow, and the tasks have no part in this test."
        )
    if len(ungrouped) == len(board.averaged):
        return [note.strip()]
    worse = [s.system for s in others if best.system in s.below]
    alike = [s.system for s in others if best.system not in s.below]
    alpha = f"{1 - board.level:.2g}"
    how = (
        f"On these tasks, the mean score of **{best.system}** is the highest. Significantly below it (paired "
        f"over groups, Holm-adjusted over all pairs of systems, p < {alpha}): "
    )
    tail = f" Not significantly below: {', '.join(alike)}." if alike else ""
    return [how + (", ".join(worse) or "none") + "." + tail + note]


def _difference(board: TaskBoard) -> list[Any]:
    """Friedman's test and Nemenyi's critical difference of average ranks, over the tasks as a sample."""
    if board.critical_difference is None or board.friedman_p is None:
        return []
    n, k, cd = len(board.tasks), len(board.standings), board.critical_difference
    ranked = sorted(board.standings, key=lambda s: s.rank.value or 0)
    first = ranked[0]
    beyond = [s.system for s in ranked[1:] if (s.rank.value or 0) - (first.rank.value or 0) >= cd]
    alpha = 1 - board.level
    text = (
        f"For other tasks of this kind, the tasks are the sample: {n} tasks, {k} systems. Friedman's test "
        f"(Iman and Davenport's form) of equal average ranks: p {'' if board.friedman_p < 0.001 else '= '}"
        f"{p_value(board.friedman_p)}. Average ranks that differ by less than **{cd:.2f}** do not differ "
        f"significantly (Nemenyi, p < {alpha:.2g}). "
    )
    if board.friedman_p >= alpha:
        text += "These tasks do not show that the systems rank differently on other tasks."
    elif beyond:
        text += f"Ranked significantly worse than {first.system}: {', '.join(beyond)}."
    else:
        text += f"No system is ranked significantly worse than {first.system}."
    if cd > k - 1:
        text += f" With {n} tasks, no difference of ranks among {k} systems can be significant."
    return [
        text,
        "Bars reach half of the critical difference to each side of the average rank: systems differ "
        "significantly where their bars do not overlap.",
        Markup('<div class="row">{}</div>').format(
            svg(_ranks(ranked, cd), height=84 + 22 * k, width=760, left=230)
        ),
    ]


def _ranks(ranked: Sequence[Standing], cd: float) -> Chart:
    values = np.array([s.rank.value for s in ranked], float)
    low, high = float(values.min() - cd / 2), float(values.max() + cd / 2)
    parts = [
        Part(
            x=[value],
            y=[i],
            series=0,
            dots=True,
            line=False,
            thick=True,
            low=np.array([value - cd / 2]),
            high=np.array([value + cd / 2]),
            across=True,
            tips=[f"{s.system}: {value:.2f}"],
        )
        for i, (s, value) in enumerate(zip(ranked, values.tolist(), strict=True))
    ]
    return Chart(
        kind="ranks",
        of="tasks",
        title="average ranks with critical difference",
        xlabel="average rank (1 is best)",
        ylabel="",
        x=(low, high),
        y=(len(ranked) - 0.4, -0.6),
        xticks=range(1, len(ranked) + 1, max(1, len(ranked) // 12)),
        yticks=[],
        rows=[s.system for s in ranked],
        parts=parts,
    )


def _values(board: TaskBoard) -> Table:
    """Every system on every task, tinted from the chance level on."""
    order = [s.system for s in board.standings]
    order += sorted({name for of_task in board.values.values() for name in of_task} - set(order))
    rows = []
    for system in order:
        cells: list[Any] = [system]
        for task in board.tasks:
            estimate = board.values[task.name].get(system)
            if estimate is None or estimate.value is None:
                cells.append("-")
                continue
            style = tint(estimate.value, _chance(task), 1.0)
            text = f"{estimate.value:.3f}"
            cells.append((text, Markup('<span style="{}">{}</span>').format(style, text)))
        rows.append(cells)
    return Table(["system", *(task.name for task in board.tasks)], rows, kind="matrix")


def _chance(task: Task) -> float:
    return min(score.chance(task.metric) for score in task.scores().values())


def _each(board: TaskBoard, pages: Mapping[str, str]) -> list[Any]:
    out: list[Any] = []
    for task in board.tasks:
        results, values = task.result.results, board.values[task.name]
        about = results.data_set(task.dataset)
        title = titles_of(multiclass=results.multiclass, ordered=results.train.ordered)[task.metric]
        where = "out of fold" if task.dataset == results.train.dataset else f"trained on {results.train.name}"
        groups = f"{about.n_groups:,} {about.group_kind}s" if about.grouped else "no known groups"
        kinds = f"{len(results.train.classes)} classes" if results.multiclass else results.train.positive
        if results.train.targets:
            kinds = f"{len(results.train.targets)} numbers"
        out.append(
            f"**{task.name}**: {title} on {task.dataset}, {where}; {about.n:,} patches, {groups}, {kinds}."
        )
        if task.name in pages:
            out.append(render("link.html", address=pages[task.name], text="All results of this task"))
        scale = span(values.values(), _chance(task))
        ordered = sorted(values, key=lambda name: -(values[name].value or 0))
        rows = [
            [
                name,
                (
                    interval(values[name]),
                    interval_html(values[name])
                    + whisker(values[name], scale, chance=_chance(task), series=0),
                ),
            ]
            for name in ordered
        ]
        out.append(Table(["system", title], rows, kind="board", caption=task.name))
    return out


def page_of(folder: Path) -> str:
    """The address of a task's page, seen from the page of all tasks."""
    return f"{folder.name}/report.html"

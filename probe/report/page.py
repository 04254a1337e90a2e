"""The page of a study: everything it found, as one HTML file that needs nothing else.

The sections of a report (sections/) and what only a study has: rows that wait for weights, published
figures, costs, maps, a log. page.js makes the tables sort and the maps speak; without it all but the maps is
there.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ...files import write_text
from ..results.display import Table
from .board import RANKED, Board, cost_table, published_table
from .maps import maps_html
from .markup import content, document, render
from .model import EmbeddingMap, LabelledImage, PublishedRow, StudyPage, SystemRow
from .sections import (
    classes,
    clinical,
    curves,
    data,
    differences,
    domains,
    experts,
    gallery,
    reproduce,
    scores,
    targets,
)
from .sections.robustness import robustness
from .view import View

__all__ = ["EmbeddingMap", "LabelledImage", "PublishedRow", "StudyPage", "SystemRow", "write_page"]

CSS = Path(__file__).with_name("page.css")
SCRIPT = Path(__file__).with_name("page.js")


def write_page(path: Path, page: StudyPage) -> Path:
    """Write the page; `path` then holds the whole file or what it held before. Returns `path`."""
    text = page_html(page)
    write_text(path, text)
    return path


def page_html(page: StudyPage) -> str:
    """The whole file."""
    view = View(page.result, noun="system") if page.result else None
    board = Board(view, page.systems, first=page.primary_set, metric=page.primary_metric)
    sections = [(name, title, parts) for name, title, parts in _sections(page, view, board) if parts]
    lead = render(
        "page_lead.html",
        page=page,
        primary=_primary(page, board) if view and (page.primary_set or page.primary_metric) else "",
        answers=board.answers(),
        facts=_facts(page, view),
    )
    return document(
        page.title,
        sections,
        lead=lead,
        foot=f"patchbank {view.results.made_by if view else ''}".strip(),
        styles=[CSS],
        script=SCRIPT.read_text("utf-8"),
        metric=board.metric,
    )


def _primary(page: StudyPage, board: Board) -> str:
    """What the study file named as its question, before the results were seen."""
    first = page.primary_set
    if first and first not in board.sets:
        return f"The study's primary set, **{first}**, has no scores here; the others are secondary."
    where = f" on **{first}**" if first else ""
    return f"Primary, as the study file says: **{board.titles[board.metric]}**{where}. All else is secondary."


def _facts(page: StudyPage, view: View | None) -> str:
    done = sum(s.state == "done" for s in page.systems)
    parts = [f"{done} of {len(page.systems)} systems finished" if page.systems else ""]
    if view:
        for d in view.results.data:
            groups = f", {d.n_groups} {d.group_kind}s" if d.n_groups else ""
            parts.append(f"{d.dataset}: {d.n:,} patches{groups}")
    return " · ".join(p for p in parts if p)


def _sections(page: StudyPage, view: View | None, board: Board) -> list[tuple[str, str, list[Any]]]:
    """(anchor, title, content), those that have content."""
    sections: list[tuple[str, str, list[Any]]] = [
        ("leaderboard", "Leaderboard", _leaderboard(page, view, board))
    ]
    if view and view.results.targets:
        sections += [
            ("across", "Across data sets", _across(view, board)),
            ("targets", "Targets", targets.each(view)),
            ("scatter", "Predicted and measured", targets.scatter(view)),
            ("folds", "Models of the folds", targets.fold_models(view)),
            ("robustness", "Robustness to domains", robustness(page.robustness) if page.robustness else []),
            ("differences", "Paired differences", differences.differences(view)),
        ]
    elif view and page.result:
        sections += [
            ("across", "Across data sets", _across(view, board)),
            ("repeats", "Repeated with other folds", scores.repeats(view)),
            ("domains", "Domains", _domains(view, board)),
            ("robustness", "Robustness to domains", robustness(page.robustness) if page.robustness else []),
            ("confusion", "Confusion matrix", classes.confusion(view)),
            ("classes", "Classes", classes.per_class(view)),
            ("curves", "Curves", curves.curves(view)),
            ("thresholds", "Threshold", curves.thresholds(view)),
            ("calibration", "Calibration", [*clinical.calibration(view), *classes.calibration(view)]),
            ("operating", "Operating points", clinical.operating_points(view)),
            ("decision", "Decision curve", clinical.decision_curve(view)),
            (
                "differences",
                "Paired differences",
                [*differences.differences(view), *clinical.precision(view)],
            ),
            ("experts", "Agreement of the experts", experts.experts(view)),
        ]
    sections.append(("published", "Beside the published figures", _published(page, view, board)))
    sections.append(("costs", "Costs", _costs(page)))
    if page.maps:
        labels = ["negative", "positive"]
        if view:
            labels = view.classes if view.multiclass else [view.negative, view.positive]
        text = (
            "Each point is a patch, placed by its embedding. Points that are close have similar embeddings."
        )
        sections.append(("maps", "Embedding map", [text, maps_html(page.maps, labels=labels)]))
    if view and not view.results.targets:
        sections.append(("errors", "Most confident errors", gallery.confident_errors(view)))
    sections.append(("contradictions", "Contradictory labels", _contradictions(page.contradictions)))
    if view:
        sections.append(("data", "Data and leaks", data.data(view)))
        sections.append(("provenance", "Provenance", data.provenance(view)))
        parts = [*reproduce.reproduce(view), *reproduce.downloads(view, page.table)]
        sections.append(("reproduce", "How to reproduce", parts))
    sections.append(("log", "Log of the run", _log(page)))
    return sections


def _leaderboard(page: StudyPage, view: View | None, board: Board) -> list[Any]:
    out: list[Any] = []
    if view:
        human = " The dashed line is an expert against the other experts." if view.human else ""
        out.append(
            "Dots are values, bars their intervals, the grey tick the chance level. A hollow dot marks a "
            "system that is significantly below the highest of its column (paired test, Holm-adjusted "
            f"over the column's comparisons, {view.level} %); filled ones may be as good.{human}"
        )
    out.append(board.controls())
    return [*out, *scores.selected_on(view), scores.meaning(view), *scores.notes(view)] if view else out


def _across(view: View, board: Board) -> list[Any]:
    if not board.held_out:
        return []
    text = (
        f"Every system was trained on {view.train} alone; each column is another set that it was scored on, "
        f"best on the folds first. The darker, the further above {board.chance(board.metric):.3g}."
    )
    if len(view.names) >= RANKED:
        text += (
            " The last row says whether the order of the systems on the folds is that on the set: 1 the "
            "same, 0 unrelated."
        )
    if any(s.state == "done" and s.family in ("lora", "full") for s in board.systems):
        text += (
            " Fine-tuned systems chose when to stop on the fold itself, which makes their values out of "
            "fold too high; those on other sets are not touched by it."
        )
    return [
        text,
        board.across(),
    ]


def _domains(view: View, board: Board) -> list[Any]:
    bars = board.domains()
    if not bars:
        return []
    out = [
        "Scanners, centres or tumour types by themselves: one system on all of them, or all systems on one.",
        bars,
    ]
    left_out = domains.domains_left_out(view)
    if left_out:
        out += [Markup("<h3>One domain left out</h3>"), *left_out]
    matrices = domains.domain_matrices(view)
    if matrices:
        out += [Markup("<h3>Trained on one domain, scored on another</h3>"), *matrices[0]]
    if len(matrices) > 1:
        others = len(matrices) - 1
        rest = [part for matrix in matrices[1:] for part in matrix]
        out.append(_details(f"The same for {others} other systems", rest))
    return out


def _published(page: StudyPage, view: View | None, board: Board) -> list[Any]:
    out: list[Any] = []
    if page.published:
        out = [
            "Filled: ours, with its interval. Diamond: the published figure; small dots, the published "
            "values of the single folds. Right, ours minus published: where the interval crosses the tick at "
            "zero, these patches show no significant difference.",
            published_table(page.published, source=page.published_source, metric=board.metric),
        ]
    models = scores.fold_models(view) if view and not view.results.targets else []
    if models and out:
        return [*out, _details("Each fold's model by itself", models)]
    return out


def _costs(page: StudyPage) -> list[Any]:
    table = cost_table(page.systems)
    if not table:
        return []
    done = [s for s in page.systems if s.state == "done"]
    made, saved = sum(s.forwards for s in done), sum(s.forwards_saved for s in done)
    text = (
        "A forward pass is one patch through one encoder. Extraction and training are seconds by the clock "
        "on the device that is named, the probe's are CPU seconds. Each column has its own scale."
    )
    if saved:
        times = (made + saved) / max(made, 1)
        text += (
            " Rows of one encoder share its passes. Saved are those of embedding all again for each fold, "
            f"as scripts without a cache do: that takes {times:,.1f} times as many."
        )
    return [text, table]


def _contradictions(groups: Sequence[Sequence[LabelledImage]]) -> list[Any]:
    if not groups:
        return []
    return [
        "These files hold the same image, pixel for pixel, under different labels. At most one label can "
        "be right; no system can score well on all of them.",
        render("contradictions.html", groups=groups),
    ]


def _details(summary: str, parts: Sequence[Any]) -> Markup:
    """Folded away under a line that says what it is."""
    text = Markup("<details><summary>{}</summary>{}</details>")
    return text.format(summary, content(parts))


def _log(page: StudyPage) -> list[Any]:
    rows = [
        [kind, title, state, "-" if seconds is None else f"{seconds:,.1f}"]
        for kind, title, state, seconds in page.log
    ]
    return [Table(["step", "what", "state", "s"], rows, left=3)] if rows else []

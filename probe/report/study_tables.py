"""The tables of a study, from the data model of its page: for a terminal, as Markdown, as CSV."""

from typing import Any

import pandas as pd

from ...terminal import note
from ...texts import prose
from ..results.display import SHOWN_OF_TARGETS, TITLES, Table, interval
from ..results.files import UNGROUPED
from ..results.schema import Score
from .model import StudyPage
from .write import markdown_report

SHOWN = ("balanced_accuracy", "auroc")


def frame(page: StudyPage) -> pd.DataFrame:
    """One row a system x evaluation set x metric, with the published figure where there is one; one row for a
    system without results, saying why.
    """
    beside = {(p.system, p.dataset, p.metric): p for p in reversed(page.published)}  # the first of several
    records: list[dict[str, Any]] = []
    for row in page.systems:
        about = {"system": row.name, "family": row.family, "encoder": row.encoder, "state": row.state}
        scores = [record for record in _board(page) if record.features == row.name]
        if not scores:
            records.append({**about, "why": row.why})
        for record in scores:
            for metric, (value, low, high) in record.metrics.items():
                cells: dict[str, Any] = {**about, "chosen": row.chosen, "dataset": record.dataset}
                cells |= {"metric": metric, "value": value, "low": low, "high": high}
                published = beside.get((row.name, record.dataset, metric))
                if published is not None:
                    cells |= {"published": published.published, "against": published.against}
                    cells |= {"fold_mean": published.ours.value}
                    cells |= {"difference": published.difference, "difference_low": published.low}
                    cells |= {
                        "difference_high": published.high,
                        "p_holm": published.p_holm,
                        "verdict": published.verdict,
                    }
                records.append(cells)
    return pd.DataFrame(records)


def show(page: StudyPage) -> None:
    """Print the systems on the terminal: the two leading metrics, on each evaluation set."""
    caption = f"{', below it '.join(_titles(page))}, with intervals over whole groups."
    absent = [row.name for row in page.systems if row.state != "done"]
    if absent:
        caption += f"\nNot run, and the page says what is missing: {', '.join(absent)}."
    _table(page, "\n").show(title=page.title, caption=caption)
    for text in [] if page.result is None else page.result.results.notes:
        note(f"Note: {text}.")
    if page.result is not None and page.result.ungrouped:
        note(f"{', '.join(page.result.ungrouped)}: {UNGROUPED}.")


def markdown(page: StudyPage) -> str:
    """Systems, what is missing, published figures, and then the details of the merged result."""
    out = [f"# {prose(page.title)}", prose(page.about)]
    table = _table(page, " / ")
    if table.rows:
        out += [f"{' / '.join(_titles(page))}, with intervals over whole groups.", table.markdown()]
    absent = [row for row in page.systems if row.state != "done"]
    if absent:
        out += [
            "## Not run",
            "\n".join(prose(f"* {row.name}: {row.why} {row.published}") for row in absent),
        ]
    if page.published:
        lines = [
            [
                *(p.system, p.dataset, TITLES[p.metric], interval(p.ours)),
                f"{p.published:.3f} ({p.against})",
                interval((p.difference, p.low, p.high), "+.3f"),
                p.verdict,
            ]
            for p in page.published
        ]
        heads = ["system", "set", "metric", "ours, mean of fold models", "published", "difference", "verdict"]
        table = Table(heads, lines, left=len(heads))
        out += ["## Beside published figures", table.markdown(), prose(page.published_source)]
    if page.result is not None:
        out.append("#" + markdown_report(page.result, robustness=page.robustness).replace("\n#", "\n##"))
    return "\n\n".join(part for part in out if part) + "\n"


def _shown(page: StudyPage) -> tuple[str, ...]:
    """The metrics that lead."""
    return SHOWN_OF_TARGETS[:2] if page.result is not None and page.result.results.targets else SHOWN


def _titles(page: StudyPage) -> list[str]:
    first, *others = (TITLES[metric] for metric in _shown(page))
    return [first[:1].upper() + first[1:], *others]


def _board(page: StudyPage) -> list[Score]:
    return [] if page.result is None else page.result.results.leaderboard()


def _table(page: StudyPage, between: str) -> Table:
    """Finished systems: name, what the folds chose, a cell for each set."""
    sets = list(dict.fromkeys(record.dataset for record in _board(page)))
    by_system = {(record.features, record.dataset): record for record in _board(page)}
    rows = []
    for row in page.systems:
        if row.state == "done":
            scores = [by_system.get((row.name, dataset)) for dataset in sets]
            cells = [
                "-" if m is None else between.join(interval(m.estimate(s)) for s in _shown(page))
                for m in scores
            ]
            rows.append([row.name, row.chosen, *cells])
    return Table(["system", "chosen on the folds", *sets], rows, left=2)

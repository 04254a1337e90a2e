"""The pieces that reports and pages are made of: tables, numbers as text, whiskers, the whole document.

Colours, sizes and the drawing of whiskers are in style.css. Whatever comes from data is escaped here.
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ...texts import markdown_table
from ..results.schema import Spread

STYLE = Path(__file__).with_name("style.css")
Numbers = Iterable[float | None]  # value, low, high: an Estimate is one
SHOWN = ("balanced_accuracy", "auroc", "average_precision")
TITLES = {
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "f1": "F1",
    "mcc": "MCC",
    "brier": "Brier score",
    "ece": "ECE",
    "log_loss": "log-loss",
}


class Table:
    """Column heads and rows of cells; a cell is text, or (text, HTML).

    left : how many columns from the left are words, the others are numbers
    over : a line of heads above the heads, (text, number of columns)
    """

    def __init__(
        self,
        heads: Sequence[str],
        rows: Sequence[Sequence[Any]],
        *,
        left: int = 1,
        kind: str = "",
        over: Sequence[tuple[str, int]] = (),
    ) -> None:
        self.heads, self.rows, self.left, self.kind, self.over = heads, rows, left, kind, over

    def html(self) -> str:
        def cells(row: Sequence[Any], tag: str) -> str:
            out = []
            for i, cell in enumerate(row):
                inner = cell[1] if isinstance(cell, tuple) else escape(str(cell))
                out.append(f"<{tag}{' class=n' if i >= self.left else ''}>{inner}</{tag}>")
            return "<tr>" + "".join(out) + "</tr>"

        over = "".join(f'<th colspan="{span}">{escape(text)}</th>' for text, span in self.over)
        head = (f'<tr class="over">{over}</tr>' if over else "") + cells(self.heads, "th")
        body = "".join(cells(row, "td") for row in self.rows)
        return (
            f'<div class="scroll"><table class="{self.kind}"><thead>{head}</thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    def markdown(self) -> str:
        prefixes = [text for text, span in self.over for _ in range(span)] or [""] * len(self.heads)
        heads = [f"{over}: {head}" if over else head for over, head in zip(prefixes, self.heads, strict=True)]
        rows = [[cell[0] if isinstance(cell, tuple) else cell for cell in row] for row in self.rows]
        return markdown_table(heads, rows, words=self.left)


class Html:
    """Something that only the HTML report has."""

    def __init__(self, text: str) -> None:
        self.text = text


def document(
    title: str, body: str, *, styles: Sequence[str] = (), script: str = "", metric: str = SHOWN[0]
) -> str:
    """A whole HTML file. It may fetch nothing, and no script but `script` runs in it: its policy says so.

    metric : the one that is shown first where a page shows one of several
    body : HTML; styles : style sheets after style.css; script : JavaScript, run when the body is there
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    scripts = f"'sha256-{digest}'" if script else "'none'"
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {scripts}; "
        "base-uri 'none'; form-action 'none'"
    )
    sheets = "\n".join([STYLE.read_text("utf-8"), *styles])
    return (
        f'<!doctype html>\n<html lang="en" data-metric="{metric}"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title>'
        f"<style>{sheets}</style></head><body>{body}"
        + (f"<script>{script}</script>" if script else "")
        + "</body></html>\n"
    )


def content(parts: Sequence[Any]) -> str:
    """Paragraphs (str), tables and HTML of a section, as HTML."""
    return "".join(
        f"<p>{marked(one)}</p>"
        if isinstance(one, str)
        else one.html()
        if isinstance(one, Table)
        else one.text
        for one in parts
    )


def marked(text: str) -> str:
    """**bold** of Markdown as HTML."""
    pieces = escape(text).replace(" %", "\u00a0%").split("**")
    return "".join(f"<b>{p}</b>" if i % 2 else p for i, p in enumerate(pieces))


def interval(value: Numbers) -> str:
    """An Estimate, or (value, low, high)."""
    v, low, high = value
    if v is None:
        return "-"
    return f"{v:.3f}" if low is None or high is None else f"{v:.3f} [{low:.3f}, {high:.3f}]"


def signed(value: Numbers) -> str:
    """A difference [value, low, high], with its sign."""
    v, low, high = value
    if v is None:
        return "-"
    return f"{v:+.3f}" + ("" if low is None or high is None else f" [{low:+.3f}, {high:+.3f}]")


def interval_html(value: Numbers) -> str:
    text, _, rest = interval(value).partition(" ")
    return f"<b>{text}</b> <small>{rest}</small>"


def mean_sd(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{np.mean(known):.3f} ({np.std(known):.3f})" if known else "-"


def mean_and_sd(of: Spread) -> str:
    """Of a metric over repeated runs, see `repeats.spread_over_repeats`."""
    return "-" if of.mean is None else f"{of.mean:.3f} ± {of.sd:.3f}"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def p_value(value: float | None) -> str:
    return "-" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def span(values: Iterable[Numbers]) -> tuple[float, float]:
    """The scale that whiskers of one metric share."""
    known = [v for triple in values for v in triple if v is not None]
    return (min([0.45, *known]), max([0.8, *known]))


def at(x: float, scale: tuple[float, float]) -> str:
    """Per cent of the way along a scale."""
    return f"{100 * min(max((x - scale[0]) / (scale[1] - scale[0]), 0), 1):.1f}"


def whisker(
    value: Numbers,
    scale: tuple[float, float],
    *,
    chance: float | None = None,
    human: float | None = None,
    series: int | None = None,
    hollow: bool = False,
    marks: str = "",
) -> str:
    """A bar of the interval with a dot at the value, the same scale for all rows of a metric.

    chance : a grey tick; human : a dashed one; hollow : the dot; marks : more things on the bar, see `mark`
    """
    v, low, high = value
    if v is None:
        return ""
    known = {
        "v": v,
        "c": chance if chance is not None and scale[0] <= chance <= scale[1] else None,
        "u": human,
    }
    if low is not None and high is not None:
        known |= {"l": low, "h": high}
    places = [f"--{name}:{at(x, scale)}" for name, x in known.items() if x is not None]
    if series is not None:
        places.append(f"--k:var(--s{series})")
    kind = "w o" if hollow else "w"
    return f'<i class="{kind}" style="{";".join(places)}" aria-hidden="true">{marks}</i>'


def mark(x: float, scale: tuple[float, float], kind: str) -> str:
    """One more thing on a whisker; style.css knows the kinds."""
    return f'<b class="{kind}" style="--x:{at(x, scale)}"></b>'


def tint(value: float) -> str:
    """The style of a matrix's cell: nothing at the chance level of 0.5, full at 0.9."""
    share = 55 * min(max((value - 0.5) / 0.4, 0), 1)
    return f"background:color-mix(in srgb,var(--s0) {share:.0f}%,transparent)"


def png_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"

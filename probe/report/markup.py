"""HTML of reports and pages: Jinja2 templates, in which whatever comes from data is escaped.

Colours, sizes and the drawing of whiskers are in style.css.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..results.display import SHOWN, Numbers, Table, interval, p_value

FOLDER = Path(__file__).parent
STYLE = FOLDER / "style.css"


def render(template: str, **about: Any) -> Markup:
    """A template of templates/ with these values."""
    return Markup(ENVIRONMENT.get_template(template).render(about))


def document(
    title: str,
    sections: Sequence[tuple[str, str, Sequence[Any]]],
    *,
    lead: Markup,
    foot: str,
    styles: Sequence[Path] = (),
    script: str = "",
    metric: str = SHOWN[0],
) -> str:
    """A whole HTML file. It may fetch nothing, and no script but `script` runs in it: its policy says so.

    sections : (anchor, title, content) of each; of the content, texts are paragraphs (see `marked`), Tables
        tables, and Markup is inserted unchanged
    lead : between the title and the links to the sections; foot : the last line
    styles : files of style sheets after style.css; script : JavaScript, run when the body is there
    metric : the one that is shown first where a page shows one of several
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return render(
        "document.html",
        title=title,
        sections=sections,
        lead=lead,
        foot=foot,
        sheets=Markup("\n".join(path.read_text("utf-8") for path in (STYLE, *styles))),
        script=Markup(script),
        allowed=Markup(f"'sha256-{digest}'" if script else "'none'"),
        metric=metric,
    )


def content(parts: Iterable[Any], name: str = "table", title: str = "") -> Markup:
    """Texts, Tables and Markup of a section, as HTML.

    name : of the files that its tables download as; title : of the section, for captions
    """
    return render("content.html", parts=parts, name=name, title=title)


def marked(text: str) -> Markup:
    """**bold** of Markdown as HTML; the space before % does not break."""
    pieces = text.replace(" %", "\u00a0%").split("**")
    return Markup("").join(Markup("<b>{}</b>").format(p) if i % 2 else p for i, p in enumerate(pieces))


_COMMAND = re.compile(r"^\s*(?:\$ |(?:pip|patchbank|hf|huggingface-cli|export|python) )")
_PIECES = re.compile(r"`([^`]+)`|(https?://[^\s<>\"'`]*[^\s<>\"'`.,;:!?)\]])")


def prose(text: str) -> Markup:
    """A message as HTML: `commands`, lines that are commands, and addresses stand out; lines stay lines."""
    code, link = Markup("<code>{}</code>"), Markup('<a href="{0}" rel="noreferrer">{0}</a>')
    lines = []
    for line in text.strip().splitlines():
        if _COMMAND.match(line):
            lines.append(code.format(line.strip().removeprefix("$ ")))
            continue
        out, last = Markup(""), 0
        for match in _PIECES.finditer(line):
            out += line[last : match.start()]
            out += code.format(match[1]) if match[1] else link.format(match[2])
            last = match.end()
        lines.append(out + line[last:])
    return Markup("<br>").join(lines)


def grouped(items: Iterable[Any], attribute: str) -> list[tuple[Any, list[Any]]]:
    """(value, items that have it), in the order in which the values first occur."""
    groups: dict[Any, list[Any]] = {}
    for item in items:
        groups.setdefault(getattr(item, attribute), []).append(item)
    return list(groups.items())


def interval_html(value: Numbers, form: str = ".3f") -> Markup:
    """`display.interval` with the value in bold and its interval small."""
    text, _, rest = interval(value, form).partition(" ")
    return Markup("<b>{}</b> <small>{}</small>").format(text, rest)


def span(values: Iterable[Numbers], chance: float = 0.5) -> tuple[float, float]:
    """The scale that whiskers of one metric share; it holds the chance level."""
    known = [v for triple in values for v in triple if v is not None]
    return (min([0.45, chance, *known]), max([0.8, *known]))


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
    marks: Sequence[tuple[float, str]] = (),
) -> Markup:
    """A bar of the interval with a dot at the value, the same scale for all rows of a metric.

    chance : a grey tick; human : a dashed one; hollow : the dot
    marks : more things on the bar, (where, kind); style.css knows the kinds
    """
    v, low, high = value
    if v is None:
        return Markup("")
    known = {
        "v": v,
        "c": chance if chance is not None and scale[0] <= chance <= scale[1] else None,
        "u": human,
    }
    if low is not None and high is not None:
        known |= {"l": low, "h": high}
    properties = [f"--{name}:{at(x, scale)}" for name, x in known.items() if x is not None]
    if series is not None:
        properties.append(f"--k:var(--s{series})")
    inner = Markup("").join(
        Markup('<b class="{}" style="--x:{}"></b>').format(kind, at(x, scale)) for x, kind in marks
    )
    text = Markup('<i class="{}" style="{}" aria-hidden="true">{}</i>')
    return text.format("w o" if hollow else "w", ";".join(properties), inner)


def tint(value: float, low: float = 0.5, high: float = 0.9) -> str:
    """The style of a matrix's cell: nothing at `low`, the chance level, full at `high`."""
    share = 55 * min(max((value - low) / (high - low), 0), 1)
    return f"background:color-mix(in srgb,var(--s0) {share:.0f}%,transparent)"


def data_uri(content: bytes, kind: str) -> str:
    """A file as an address that holds it. kind : its media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


ENVIRONMENT = Environment(
    loader=FileSystemLoader(FOLDER / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters |= {
    "content": content,
    "data_uri": data_uri,
    "grouped": grouped,
    "marked": marked,
    "p_value": p_value,
    "prose": prose,
    "px": "{:.1f}".format,
}
ENVIRONMENT.tests["table"] = lambda part: isinstance(part, Table)
ENVIRONMENT.globals |= {
    "at": at,
    "interval": interval,
    "interval_html": interval_html,
    "tint": tint,
    "whisker": whisker,
}

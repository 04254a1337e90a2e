"""`patchbank probe report`: the results of a study as one self-contained HTML file, or as Markdown."""

import os
from pathlib import Path

from markupsafe import Markup

from ...errors import InvalidRequest
from ...files import write_text
from ...texts import prose
from ..results.files import ProbeResult
from .markup import document, marked
from .sections import Sections


def write_report(
    result: ProbeResult | str | os.PathLike[str], output: str | os.PathLike[str], *, images: bool = True
) -> Path:
    """Write a report of results (or of the folder that has them): .html or .md, by the output's name.

    images : put the most confident errors into the HTML as thumbnails, where the image files are still there
    Raises ProbeError (no results), InvalidRequest (another ending).
    """
    result = result if isinstance(result, ProbeResult) else ProbeResult.load(result)
    output = Path(output)
    if output.suffix.lower() in (".html", ".htm"):
        text = html_report(result, images=images)
    elif output.suffix.lower() in (".md", ".markdown"):
        text = markdown_report(result)
    else:
        raise InvalidRequest(f"{output}: a report is written as .html or .md")
    return write_text(output, text)


def html_report(result: ProbeResult, *, images: bool = True) -> str:
    """The whole page."""
    view = Sections(result)
    sections = [(f"s{i}", *one) for i, one in enumerate(view.sections(images=images))]
    lead = Markup('<p class="lead">{}</p>').format(marked(view.lead))
    return document(view.title, sections, lead=lead, foot=f"patchbank {view.results.made_by}")


def markdown_report(result: ProbeResult) -> str:
    """The same tables and sentences without the plots."""
    view = Sections(result)
    out = [f"# {prose(view.title)}", prose(view.lead)]
    for title, found in view.sections(images=False):
        shown = [
            prose(one) if isinstance(one, str) else one.markdown()
            for one in found
            if not isinstance(one, Markup)
        ]
        if shown:
            out += [f"## {title}", *shown]
    return "\n\n".join(out) + "\n"

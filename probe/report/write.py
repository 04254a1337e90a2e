"""`patchbank probe report`: the results of a study as one self-contained HTML file, or as Markdown."""

import os
import re
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ...errors import InvalidRequest
from ...files import write_text
from ...texts import prose
from ..results.files import ProbeResult
from ..results.robustness import FILE, Robustness
from .markup import document, marked
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
from .sections.robustness import robustness as of_domains
from .view import View

LISTED = 12  # names of classes in the first sentence
Section = tuple[str, list[Any]]  # title, and paragraphs (str), Table, Markup


def write_report(
    result: ProbeResult | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    images: bool = True,
    errors: int = gallery.ERRORS,
    robustness: Robustness | None = None,
) -> Path:
    """Write a report of results (or of the folder that has them): .html or .md, by the output's name.

    images : put the most confident errors into the HTML as thumbnails, where the image files are still there
    errors : how many of each kind
    robustness : of `run_robustness`, for a section of its own; None: what the folder of the results has
    Raises ProbeError (no results), InvalidRequest (another ending).
    """
    if not isinstance(result, ProbeResult):
        if robustness is None and (Path(result) / FILE).is_file():
            robustness = Robustness.load(result)
        result = ProbeResult.load(result)
    output = Path(output)
    if output.suffix.lower() in (".html", ".htm"):
        text = html_report(result, images=images, errors=errors, robustness=robustness)
    elif output.suffix.lower() in (".md", ".markdown"):
        text = markdown_report(result, robustness=robustness)
    else:
        raise InvalidRequest(f"{output}: a report is written as .html or .md")
    return write_text(output, text)


def html_report(
    result: ProbeResult,
    *,
    images: bool = True,
    errors: int = gallery.ERRORS,
    robustness: Robustness | None = None,
) -> str:
    """The whole page."""
    view = View(result)
    shown = sections_of(view, errors=errors if images else 0, robustness=robustness)
    sections = [(re.sub(r"[^a-z]+", "-", title.lower()), title, parts) for title, parts in shown]
    lead = Markup('<p class="lead">{}</p>').format(marked(lead_of(view)))
    return document(title_of(view), sections, lead=lead, foot=f"patchbank {view.results.made_by}")


def markdown_report(result: ProbeResult, *, robustness: Robustness | None = None) -> str:
    """The same tables and sentences without the plots."""
    view = View(result)
    out = [f"# {prose(title_of(view))}", prose(lead_of(view))]
    for title, content in sections_of(view, errors=0, robustness=robustness):
        shown = [
            prose(part) if isinstance(part, str) else part.markdown()
            for part in content
            if not isinstance(part, Markup)
        ]
        if shown:
            out += [f"## {title}", *shown]
    return "\n\n".join(out) + "\n"


def title_of(view: View) -> str:
    """The title of a report."""
    return f"Probe report: {view.results.train.name}"


def lead_of(view: View) -> str:
    """The question of a study and what was trained and tested."""
    train, tests = view.results.train, view.sets[1:]
    groups = f"{train.n_groups} {train.group_kind}s" if train.n_groups else "no known groups"
    systems = f"{len(view.names)} {view.noun}s" if len(view.names) > 1 else f"one {view.noun}"
    sets = " and ".join(part for part in (", ".join(tests[:-1]), *tests[-1:]) if part) or "no other set"
    what = f"probe {view.results.config.probe!r}"
    if view.results.config.probe == "logistic":
        what = "linear classifier on frozen embeddings"
    if view.models[view.chosen].recipe is not None:
        what = "fine-tuned network"
    question = f"tell **{view.positive}** patches from the others"
    if view.multiclass:
        names = ", ".join(view.classes[:LISTED]) + (", ..." if len(view.classes) > LISTED else "")
        question = f"tell {len(view.classes)} classes of patches from each other ({names})"
    if named := view.results.targets:
        question = f"predict {', '.join(named[:LISTED])}{', ...' if named[LISTED:] else ''}"
        what = "ridge regression on frozen embeddings"
    of = "" if train.n_positive is None else f" ({train.n_positive} {view.positive})"
    return (
        f"How well does a {what} {question}? It was trained on "
        f"{train.n} patches{of} from {groups}, for {systems}, and "
        f"tested on {sets}. Chosen on the folds: **{view.chosen}**."
    )


def sections_of(view: View, *, errors: int, robustness: Robustness | None = None) -> list[Section]:
    """The sections of a report that have content, in order. errors : images of each kind of error."""
    if view.results.targets:
        sections = [
            ("Results", targets.leaderboard(view)),
            ("Targets", targets.each(view)),
            ("Predicted and measured", targets.scatter(view)),
            ("Models of the folds", targets.fold_models(view)),
            (f"Differences between {view.noun}s", differences.differences(view)),
            ("Data and leaks", data.data(view)),
            ("Provenance and cost", data.provenance(view)),
            ("How to reproduce", [*reproduce.reproduce(view), *reproduce.downloads(view)]),
        ]
        return [(title, content) for title, content in sections if content]
    sections = [
        ("Results", scores.leaderboard(view)),
        ("Repeated with other folds", scores.repeats(view)),
        ("Confusion matrix", classes.confusion(view)),
        ("Classes", classes.per_class(view)),
        ("Curves", curves.curves(view)),
        ("Threshold", curves.thresholds(view)),
        ("Calibration", [*clinical.calibration(view), *classes.calibration(view)]),
        ("Operating points", clinical.operating_points(view)),
        ("Decision curve", clinical.decision_curve(view)),
        ("How the penalty was chosen", curves.paths(view)),
        ("Models of the folds", scores.fold_models(view)),
        (
            f"Differences between {view.noun}s",
            [*differences.differences(view), *clinical.precision(view)],
        ),
        ("Domains", domains.by_domain(view)),
        ("Robustness to domains", of_domains(robustness) if robustness else []),
        ("Agreement of the experts", experts.experts(view)),
        ("Most confident errors", gallery.confident_errors(view, errors) if errors else []),
        ("Data and leaks", data.data(view)),
        ("Provenance and cost", data.provenance(view)),
        ("How to reproduce", [*reproduce.reproduce(view), *reproduce.downloads(view)]),
    ]
    return [(title, content) for title, content in sections if content]

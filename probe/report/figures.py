"""The plots of a result for papers: PDF, SVG and PNG in the sizes and fonts of print, through matplotlib.

What each shows is what the page shows (charts.py). Widths are of one column (85 mm) or one and a half
(130 mm), texts 7 pt; the colours are those of Okabe and Ito, which readers with any colour vision can
distinguish, and lines differ in their dashes as well, for print without colour.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import InvalidRequest, MissingDependency
from ...files import write_atomically
from ...terminal import printable
from ..results.files import ProbeResult
from .chart import Chart, Confusion, Matrix, Part
from .charts import charts_of, confusions, counted, matrices
from .view import SERIES, View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

FORMATS = ("pdf", "svg", "png")
COLUMN, WIDE = 85.0, 130.0  # mm
LINE = 3.1  # mm a line of text takes
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B6B6B")  # Okabe and Ito 2008
DASHES = ("-", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (6, 2)), (0, (4, 1, 1, 1, 1, 1)), "-")
GREY = "#8A8A8A"
REFERENCES = ((0, (4, 3)), (0, (1, 2)))  # dashes of the first reference line and of others
STYLE: "dict[RcKeyType, Any]" = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same figure everywhere
    "font.size": 7,
    "axes.labelsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "legend.frameon": False,
    "text.parse_math": False,  # a "$" in a name is a "$"
    "pdf.fonttype": 42,  # text stays text
    "svg.fonttype": "none",
    "svg.hashsalt": "patchbank",  # the same bytes each time
    "savefig.dpi": 600,
}
FRAME = np.array([[-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1]]) * 0.47  # of a cell of a matrix
CELL = (13, 8)  # mm
UNDATED = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}


def write_figures(
    result: ProbeResult | str | Path, folder: str | Path, *, formats: Sequence[str] = FORMATS
) -> list[Path]:
    """Write every figure of a result (or of the folder that has it) into a folder.

    ROC, precision-recall and calibration plots, the decision curve, forest plots of the systems and of their
    paired differences for each set; the choice of the parameter; the matrices of domains. Of more than two
    classes the confusion matrices, and curves of each class against the rest.
    formats : any of FORMATS
    Returns the files, named for what they show and of what: "roc-atnorm-br.pdf".
    Raises MissingDependency (no matplotlib), InvalidRequest (another format), ProbeError, OutputError.
    """
    unknown = [f for f in formats if f not in FORMATS]
    if unknown:
        raise InvalidRequest(f"figures are written as {', '.join(FORMATS)}, not as {unknown[0]!r}")
    rc_context = _rc_context()
    view = View(result if isinstance(result, ProbeResult) else ProbeResult.load(result))
    made: dict[str, Callable[[], Figure]] = {}
    for drawn in (*charts_of(view), *confusions(view), *matrices(view)):
        kind = drawn.kind
        stem = name = f"{kind}-{re.sub(r'[^A-Za-z0-9._-]+', '-', drawn.of).strip('-.') or 'set'}"
        again = 1
        while name in made:  # of names that differ in other characters only
            again += 1
            name = f"{stem}-{again}"
        made[name] = partial(_figure_of, view, drawn)
    files = []
    with rc_context(STYLE):
        for name, make in made.items():
            figure = make()
            for form in formats:

                def save(to: Path, figure: "Figure" = figure, form: str = form) -> None:
                    figure.savefig(to, format=form, metadata=UNDATED[form])

                files.append(write_atomically(Path(folder) / f"{name}.{form}", save))
    return files


def _figure_of(view: View, drawn: Chart | Matrix | Confusion) -> "Figure":
    if isinstance(drawn, Matrix):
        return draw_matrix(view, drawn)
    return draw_confusion(view, drawn) if isinstance(drawn, Confusion) else draw(drawn)


def drawn(chart: Chart) -> "Figure":
    """A chart as a figure in the style of `write_figures`. Raises MissingDependency (no matplotlib)."""
    with _rc_context()(STYLE):
        return draw(chart)


def _rc_context() -> Any:
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise MissingDependency("figures need matplotlib: pip install 'patchbank[figures]'") from error
    return rc_context


def draw(chart: Chart) -> "Figure":
    """A chart as a figure, its legend below the axes."""
    width = WIDE if chart.rows else COLUMN
    note = "\n".join(_wrapped(line, width - 3) for line in chart.note.split("\n"))
    labels = [_wrapped(part.label, width - 13) for part in chart.parts if part.label]
    lines = sum(text.count("\n") + 1.15 for text in [*labels, note])
    height = 11 + 4.6 * len(chart.rows) if chart.rows else COLUMN * (0.9 if chart.x == chart.y else 0.7)
    figure, axes = _figure(width, height + LINE * lines + 3)
    axes.set(xlim=chart.x, ylim=chart.y, xlabel=printable(chart.xlabel), ylabel=printable(chart.ylabel))
    axes.set_xticks(list(chart.xticks), [chart.xformat.format(v) for v in chart.xticks])
    if chart.rows:
        axes.set_yticks(range(len(chart.rows)), [_wrapped(row, 0.4 * width) for row in chart.rows])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        for i, value in enumerate(chart.values):
            axes.text(1.02, i, value, va="center", transform=axes.get_yaxis_transform())
    else:
        axes.set_yticks(list(chart.yticks), [f"{v:g}" for v in chart.yticks])
    if chart.x == chart.y:
        axes.set_box_aspect(1)
    handles, references = [], iter([*REFERENCES, *REFERENCES])
    for order, part in enumerate(chart.parts):
        dashes = (
            next(references)
            if part.series is None
            else DASHES[(part.series + part.series // SERIES) % SERIES]
        )
        shown = _part(axes, part, dashes if part.line else "none", zorder=3 - order / len(chart.parts))
        if part.label:
            handles.append(shown)
    figure.legend(
        handles,
        labels,
        title=note,
        loc="outside lower left",
        alignment="left",
        handlelength=2.6,
        borderaxespad=0.2,
        labelspacing=0.3,
    )
    return figure


def _part(axes: "Axes", part: Part, dashes: Any, *, zorder: float) -> Any:
    colour = GREY if part.series is None else COLOURS[part.series % SERIES]
    for where, low, high in part.bars():
        ends = ((low, high), (where, where)) if part.across else ((where, where), (low, high))
        axes.plot(*ends, color=colour, linewidth=1.2 if part.thick else 0.7, zorder=zorder, clip_on=False)
    (line,) = axes.plot(
        part.x,
        part.y,
        color=colour,
        linestyle=dashes,
        linewidth=0.7 if part.series is None else 1.5 if part.thick else 0.9,
        marker="o" if part.dots else "." if part.cloud else "none",
        markersize=3.2,
        markerfacecolor="white" if part.hollow else colour,
        markeredgewidth=0.8,
        zorder=zorder,
        clip_on=False,  # a line along the edge is as wide as elsewhere
    )
    return line


def draw_matrix(view: View, matrix: Matrix) -> "Figure":
    """AUROC of a system by the domain it was trained on and the one it was scored on."""
    rows, columns = matrix.values.shape
    heads = [_wrapped(head, 26) for head in matrix.heads()]
    names = [printable(row) for row in matrix.rows]
    lead, over = (max(map(_width, "\n".join(texts).split("\n"))) for texts in (names, heads))
    width = max(lead + CELL[0] * columns + 4, COLUMN)
    note = _wrapped(
        f"{view.starred(matrix.of)}: {view.titles['auroc']}, trained on the rows, scored on the columns "
        f"({'' if view.multiclass else f'{view.positive} / '}patches), below it the {view.level} % interval "
        f"over {view.groups}; framed: "
        "the domain itself, out of fold. White: 0.5 (chance level) or less",
        width - 3,
    )
    below = LINE * (note.count("\n") + 2)
    figure, axes = _figure(width, over + CELL[1] * rows + below + 7)
    axes.imshow(matrix.values, cmap="Blues", vmin=0.5, vmax=1.05, aspect="auto")
    for i, j in np.argwhere(np.isfinite(matrix.values)):
        value = matrix.values[i, j]
        low, high = matrix.intervals[i, j].tolist()
        around = "" if np.isnan(low) else f"\n{low:.2f}-{high:.2f}"
        ink = "white" if value > 0.82 else "black"
        axes.text(j, i, f"{value:.2f}{around}", ha="center", va="center", color=ink, linespacing=1.05)
        if matrix.own(i, j):
            axes.plot(*np.add([[j], [i]], FRAME), color="black", linewidth=0.9)
    _table_axes(axes, heads, names)
    start = 0
    for dataset, same in groupby(
        view.train if dataset == "train" else dataset for dataset, *_ in matrix.columns
    ):
        end = start + len(list(same))
        ends, transform = (start - 0.42, end - 0.58), axes.get_xaxis_transform()
        axes.plot(ends, (-0.03, -0.03), color=GREY, linewidth=0.7, transform=transform, clip_on=False)
        name = _wrapped(dataset, CELL[0] * (end - start))
        axes.text(sum(ends) / 2, -0.06, name, ha="center", va="top", transform=transform)
        start = end
    figure.supxlabel(note, x=0.01, ha="left", fontsize=7)
    return figure


def _table_axes(axes: "Axes", heads: Sequence[str], names: Sequence[str]) -> None:
    """Names above the columns and left of the rows of cells."""
    axes.set_xticks(range(len(heads)), heads, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)


def draw_confusion(view: View, matrix: Confusion) -> "Figure":
    """Counts and row shares of the calls on a set, rows by label."""
    k = len(matrix.classes)
    names = [_wrapped(name, 40) for name in matrix.classes]
    lead = max(map(_width, "\n".join(names).split("\n")))
    width = max(lead + CELL[0] * k + 4, COLUMN)
    note = _wrapped(
        f"{view.starred(view.chosen)}. {counted(view, matrix.of)}. Rows: label, columns: call; share of the "
        "row, below it the number of patches",
        width - 3,
    )
    below = LINE * (note.count("\n") + 2)
    figure, axes = _figure(width, lead + CELL[1] * k + below + 7)
    axes.imshow(matrix.shares, cmap="Blues", vmin=0, vmax=1.1, aspect="auto")
    for i, j in np.ndindex(k, k):
        share = matrix.shares[i, j]
        text = "-" if np.isnan(share) else f"{share:.0%}\n{matrix.counts[i, j]:,}"
        ink = "white" if share > 0.65 else "black"
        axes.text(j, i, text, ha="center", va="center", color=ink, linespacing=1.05)
        if i == j:
            axes.plot(*np.add([[j], [i]], FRAME), color="black", linewidth=0.9)
    _table_axes(axes, names, names)
    figure.supxlabel(note, x=0.01, ha="left", fontsize=7)
    return figure


def _figure(width: float, height: float) -> "tuple[Figure, Axes]":
    """A figure with one pair of axes; in mm."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 25.4, height / 25.4), layout="constrained")
    return figure, figure.subplots()


def _wrapped(text: str, width: float) -> str:
    """The text in lines of at most so many mm, broken between words where it can be."""
    lines = [""]
    kept = re.sub(r" (?=[%[])|(?<=,) (?=[^[]*\])", "\u00a0", printable(text))  # an interval in one piece
    for word in kept.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and _width(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
        while _width(lines[-1]) > width and len(lines[-1]) > 1:
            fits = max(k for k in range(1, len(lines[-1])) if k == 1 or _width(lines[-1][:k]) <= width)
            lines[-1:] = [lines[-1][:fits], lines[-1][fits:]]
    return "\n".join(lines)


def _width(text: str) -> float:
    """Of a text at 7 pt, in mm."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=STYLE["font.family"], size=STYLE["font.size"])
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] * 25.4 / 72

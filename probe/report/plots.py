"""Charts as inline SVG: their colours are the page's, so they follow light and dark.

Series are numbered; the page's style sheet gives `--s0`, `--s1`, ... their colours.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from .chart import Chart
from .markup import render
from .view import SERIES, View


@dataclass(frozen=True)
class Axes:
    """A pair of axes in pixels: `left` and `right`, `top` and `bottom` are their ends."""

    chart: Chart
    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int

    def x(self, value: float) -> float:
        """Pixels from the left."""
        low, high = self.chart.x
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        low, high = self.chart.y
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)


def svg(
    chart: Chart, *, width: int = 330, height: int = 300, left: int = 46, right: int = 12, bottom: int = 40
) -> Markup:
    """The chart as an element, in pixels. left, right, bottom : margins around the axes."""
    top = 24 if chart.head else 10
    axes = Axes(chart, width, height, left, width - right, top, height - bottom)
    return render("plot.svg", chart=chart, axes=axes, colours=SERIES)


def legend(view: View) -> Markup:
    """The colours of the systems that plots show."""
    return render("legend.html", view=view)


def class_legend(view: View) -> Markup:
    """The colours of the classes."""
    names = enumerate(view.classes)
    spans = (Markup("<span>{}{}</span>").format(view.class_swatch(i), name) for i, name in names)
    return Markup('<div class="legend">{}</div>').format(Markup("").join(spans))


def side_by_side(plots: Iterable[Markup], *, head: str = "") -> Markup:
    """Plots side by side, under a head."""
    title = Markup("<h3>{}</h3>").format(head) if head else Markup("")
    return title + Markup('<div class="row">{}</div>').format(Markup("").join(plots))

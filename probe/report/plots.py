"""Charts as inline SVG, made by hand: their colours are the page's, so they follow light and dark.

Series are numbered; the page's style sheet gives `--s0`, `--s1`, ... their colours.
"""

from html import escape

import numpy as np

from .charts import SERIES, Chart, Part


def svg(
    chart: Chart,
    *,
    width: int = 330,
    height: int = 300,
    left: int = 46,
    right: int = 12,
    bottom: int = 40,
) -> str:
    """The chart as an element, in pixels. left, right, bottom : margins around the axes."""
    return _Axes(chart, width, height, left, right, bottom).svg()


class _Axes:
    def __init__(self, chart: Chart, width: int, height: int, left: int, right: int, bottom: int) -> None:
        self.chart, self.width, self.height = chart, width, height
        self.left, self.right = left, width - right
        self.top, self.bottom = (24 if chart.head else 10), height - bottom

    def px(self, value: float) -> float:
        low, high = self.chart.x
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def py(self, value: float) -> float:
        low, high = self.chart.y
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def svg(self) -> str:
        body = [*self.frame(), *(mark for part in reversed(self.chart.parts) for mark in self.part(part))]
        return (
            f'<svg role="img" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}"><title>{escape(self.chart.title)}</title>{"".join(body)}</svg>'
        )

    def frame(self) -> list[str]:
        """Grid, ticks and labels."""
        chart, out = self.chart, []
        if chart.head:
            out.append(_text(self.left, 14, chart.head, kind="label"))
        for value in chart.xticks:
            at = self.px(value)
            out.append(_line((at, at), (self.top, self.bottom), 'class="grid"'))
            out.append(_text(at, self.bottom + 15, chart.xformat.format(value), anchor="middle"))
        for value in chart.yticks:
            at = self.py(value)
            out.append(_line((self.left, self.right), (at, at), 'class="grid"'))
            out.append(_text(self.left - 6, at + 4, f"{value:g}", anchor="end"))
        middle = (self.left + self.right) / 2
        out.append(_text(middle, self.height - 6, chart.xlabel, anchor="middle", kind="label"))
        if chart.ylabel:
            middle = (self.top + self.bottom) / 2
            out.append(_text(12, middle, chart.ylabel, anchor="middle", kind="label", turn=-90))
        return out

    def part(self, part: Part) -> list[str]:
        """Its line, then its bars, then its dots."""
        colour = "var(--faint)" if part.series is None else f"var(--s{part.series % SERIES})"
        stroke = f'stroke="{colour}" stroke-width="{2.4 if part.thick else 1.5}"'
        points = [
            (self.px(x), self.py(y)) for x, y in zip(np.asarray(part.x), np.asarray(part.y), strict=True)
        ]
        out = []
        if part.line:
            dashes = ' stroke-dasharray="4 4"' if part.series is None else ""
            places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            out.append(f'<polyline points="{places}" fill="none" {stroke} stroke-linejoin="round"{dashes}/>')
        for where, low, high in part.bars():
            if part.across:
                out.append(_line((self.px(low), self.px(high)), (self.py(where),) * 2, stroke))
            else:
                out.append(_line((self.px(where),) * 2, (self.py(low), self.py(high)), stroke))
        if part.dots:
            fill = "var(--paper)" if part.hollow else colour
            for (x, y), tip in zip(points, part.tips or [""] * len(points), strict=True):
                out.append(
                    f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{fill}" stroke="{colour}" '
                    f'stroke-width="1.5"><title>{escape(tip)}</title></circle>'
                )
        return out


def _line(x: tuple[float, ...], y: tuple[float, ...], style: str) -> str:
    return f'<line x1="{x[0]:.1f}" x2="{x[1]:.1f}" y1="{y[0]:.1f}" y2="{y[1]:.1f}" {style}/>'


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", kind: str = "tick", turn: float = 0
) -> str:
    rotate = f' transform="rotate({turn:g} {x:.1f} {y:.1f})"' if turn else ""
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{rotate}>{escape(text)}</text>'
    )

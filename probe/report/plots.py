"""Small plots as inline SVG, made by hand: their colours are the page's, so they follow light and dark.

Series are numbered; the page's style sheet gives `--s0`, `--s1`, ... their colours (see report.py).
"""

from collections.abc import Callable, Iterable, Sequence
from html import escape

import numpy as np

SERIES = 7  # colours there are


class Plot:
    """One pair of axes, in pixels; x and y are data coordinates, y grows upwards."""

    def __init__(
        self,
        *,
        x: tuple[float, float],
        y: tuple[float, float],
        width: int = 330,
        height: int = 300,
        left: int = 46,
        bottom: int = 40,
        top: int = 10,
        right: int = 12,
        title: str,
    ) -> None:
        self.width, self.height, self.title = width, height, title
        self.x, self.y = x, y
        self.left, self.right, self.top, self.bottom = left, width - right, top, height - bottom
        self.body: list[str] = []

    def px(self, value: float) -> float:
        return self.left + (value - self.x[0]) / (self.x[1] - self.x[0]) * (self.right - self.left)

    def py(self, value: float) -> float:
        return self.bottom - (value - self.y[0]) / (self.y[1] - self.y[0]) * (self.bottom - self.top)

    def axes(
        self,
        xlabel: str,
        ylabel: str,
        *,
        xticks: Sequence[float],
        yticks: Sequence[float],
        xformat: Callable[[float], str] = "{:g}".format,
        yformat: Callable[[float], str] = "{:g}".format,
    ) -> None:
        for value in xticks:
            at = self.px(value)
            self.body.append(
                f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{self.top}" y2="{self.bottom}"/>'
            )
            self.text(at, self.bottom + 15, xformat(value), anchor="middle")
        for value in yticks:
            at = self.py(value)
            self.body.append(
                f'<line class="grid" x1="{self.left}" x2="{self.right}" y1="{at:.1f}" y2="{at:.1f}"/>'
            )
            self.text(self.left - 6, at + 4, yformat(value), anchor="end")
        self.text((self.left + self.right) / 2, self.height - 6, xlabel, anchor="middle", kind="label")
        if ylabel:
            middle = (self.top + self.bottom) / 2
            self.text(12, middle, ylabel, anchor="middle", kind="label", turn=-90)

    def text(
        self, x: float, y: float, text: str, *, anchor: str = "start", kind: str = "tick", turn: float = 0
    ) -> None:
        """At pixels, not data coordinates."""
        rotate = f' transform="rotate({turn:g} {x:.1f} {y:.1f})"' if turn else ""
        self.body.append(
            f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{rotate}>'
            f"{escape(text)}</text>"
        )

    def line(
        self,
        x: Iterable[float],
        y: Iterable[float],
        *,
        series: int | None = None,
        dashed: bool = False,
        thick: bool = False,
    ) -> None:
        points = " ".join(f"{self.px(a):.1f},{self.py(b):.1f}" for a, b in zip(x, y, strict=True))
        colour = "var(--faint)" if series is None else f"var(--s{series % SERIES})"
        style = ' stroke-dasharray="4 4"' if dashed else ""
        width = 2.4 if thick else 1.5
        self.body.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}" '
            f'stroke-linejoin="round"{style}/>'
        )

    def dot(
        self, x: float, y: float, *, series: int, radius: float = 3.5, hollow: bool = False, tip: str = ""
    ) -> None:
        fill = "var(--paper)" if hollow else f"var(--s{series % SERIES})"
        note = f"<title>{escape(tip)}</title>" if tip else ""
        self.body.append(
            f'<circle cx="{self.px(x):.1f}" cy="{self.py(y):.1f}" r="{radius}" fill="{fill}" '
            f'stroke="var(--s{series % SERIES})" stroke-width="1.5">{note}</circle>'
        )

    def bar(
        self, x: tuple[float, float], y: tuple[float, float], *, series: int, thick: bool = False
    ) -> None:
        """A straight whisker."""
        width = 2.4 if thick else 1.5
        self.body.append(
            f'<line x1="{self.px(x[0]):.1f}" x2="{self.px(x[1]):.1f}" y1="{self.py(y[0]):.1f}" '
            f'y2="{self.py(y[1]):.1f}" stroke="var(--s{series % SERIES})" stroke-width="{width}"/>'
        )

    def svg(self) -> str:
        return (
            f'<svg role="img" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}"><title>{escape(self.title)}</title>{"".join(self.body)}</svg>'
        )


def unit_ticks(low: float = 0.0, high: float = 1.0) -> list[float]:
    """Round ticks inside [low, high], about five."""
    for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1, 2, 5):
        first = np.ceil(low / step - 1e-9)
        ticks = [float(round(k * step, 6)) + 0.0 for k in np.arange(first, np.floor(high / step + 1e-9) + 1)]
        if len(ticks) <= 6:
            return ticks
    return [low, high]


def roc_points(y: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the ROC curve: (1 - specificity, sensitivity), float64 (k,); y int (n,), p float (n,)."""
    tp, fp = _counts(y, p)
    x, s = np.append(0, fp / fp[-1]), np.append(0, tp / tp[-1])
    corner = np.ones(len(x), bool)  # points on a straight piece say nothing
    corner[1:-1] = np.diff(x[:-1]) * np.diff(s[1:]) != np.diff(x[1:]) * np.diff(s[:-1])
    return x[corner], s[corner]


def pr_points(y: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision over recall as steps, whose area is the average precision: float64 (k,) each."""
    tp, fp = _counts(y, p)
    keep = np.append(True, np.diff(tp) > 0) & (tp > 0)
    recall, precision = tp[keep] / tp[-1], tp[keep] / (tp[keep] + fp[keep])
    left = np.append(0, recall[:-1])
    return np.stack([left, recall], axis=1).ravel(), np.repeat(precision, 2)


def _counts(y: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-p, kind="stable")
    last = np.append(np.diff(p[order]) != 0, True)
    return np.cumsum(y[order])[last].astype(float), np.cumsum(1 - y[order])[last].astype(float)

"""What a plot is, as data: axes and the parts drawn on them; matrices."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

UNIT = (0.0, 1.0)
FIFTHS = (0, 0.2, 0.4, 0.6, 0.8, 1)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Points of one thing: joined, as dots, with bars."""

    x: ArrayLike
    y: ArrayLike
    series: int | None = None
    """Number of its colour. None: a reference, drawn as a dashed line."""
    label: str = ""
    """In the legend of a printed figure."""
    line: bool = True
    dots: bool = False
    cloud: bool = False
    """Many small dots, none of which says what it is."""
    hollow: bool = False
    thick: bool = False
    low: ArrayLike | None = None
    high: ArrayLike | None = None
    """Ends of bars, one for each point; NaN: no bar."""
    across: bool = False
    """Bars go along x, not along y."""
    tips: Sequence[str] = ()

    def points(self) -> list[list[float]]:
        """[x, y] of each point."""
        return np.column_stack([self.x, self.y]).tolist()

    def bars(self) -> Iterator[tuple[float, float, float]]:
        """(where, low, high) of each bar there is."""
        if self.low is None or self.high is None:
            return
        at = np.asarray(self.y if self.across else self.x, float)
        for where, low, high in zip(
            at, np.asarray(self.low, float), np.asarray(self.high, float), strict=True
        ):
            if low == low and high == high:
                yield float(where), float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One pair of axes and what is drawn on them, the parts that matter most first."""

    kind: str
    """What it is, for the name of its file."""
    of: str
    """What it is of, for the name of its file: a set, a system."""
    title: str
    head: str = ""
    """Above the axes on the page, where the title is not seen."""
    note: str = ""
    """What a printed figure says beside its legend: of how many patches it is."""
    xlabel: str
    ylabel: str
    x: tuple[float, float] = UNIT
    y: tuple[float, float] = UNIT
    xticks: Sequence[float] = FIFTHS
    yticks: Sequence[float] = FIFTHS
    xformat: str = "{:g}"
    rows: Sequence[str] = ()
    """Of a forest plot: the names of y = 0, 1, ..., from the top."""
    values: Sequence[str] = ()
    """Of a forest plot: each row's value with its interval."""
    parts: Sequence[Part]


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """AUROC of one system, trained on one domain (rows) and scored on another (columns)."""

    kind: ClassVar[str] = "domain-matrix"
    of: str
    rows: Sequence[str]
    columns: Sequence[tuple[str, str, int | None, int]]
    """Set, domain, positive patches (None of more than two classes), patches."""
    values: np.ndarray
    """float64 (rows, columns); NaN: undefined."""
    intervals: np.ndarray
    """float64 (rows, columns, 2): low and high; NaN: none."""
    reasons: Sequence[Sequence[str]]
    """Why there is no interval, by row and column; "" where there is one. (): not recorded."""

    def heads(self) -> list[str]:
        """Domain and counts of each column."""
        counts = [f"{n}" if p is None else f"{p}/{n}" for _, _, p, n in self.columns]
        return [f"{c[1] or 'all'} ({of})" for c, of in zip(self.columns, counts, strict=True)]

    def own(self, i: int, j: int) -> bool:
        """Whether the column is the row's own domain, out of fold."""
        return self.columns[j][:2] == ("train", self.rows[i])


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Calls of the chosen system on one set."""

    kind: ClassVar[str] = "confusion-matrix"
    of: str
    classes: Sequence[str]
    counts: np.ndarray
    """int (K, K): rows by label, columns by call."""

    @property
    def shares(self) -> np.ndarray:
        """float64 (K, K): of each row; NaN for a class without rows."""
        total = self.counts.sum(axis=1, keepdims=True)
        return np.divide(self.counts, total, out=np.full(self.counts.shape, np.nan), where=total > 0)


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

"""Results as people read them: names of metrics, numbers with their intervals, tables."""

import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ...terminal import print_table
from ...texts import markdown_table, write_csv_rows
from .schema import Spread

Numbers = Iterable[float | None]  # value, low, high: an Estimate is one
SHOWN = ("balanced_accuracy", "auroc", "average_precision")
SHOWN_OF_CLASSES = ("balanced_accuracy", "auroc", "f1")  # of more than two; of grades the last is kappa
SHOWN_OF_TARGETS = ("pearson", "spearman", "r2", "mae")
TITLES = {
    "accuracy": "accuracy",
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
    "balanced_log_loss": "balanced log-loss",
    "kappa": "Cohen's kappa",
    "precision": "precision",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "r2": "R2",
    "mae": "MAE",
}
OF_CLASSES = {"auroc": "macro AUROC", "average_precision": "macro average precision", "f1": "macro F1"}
INTERVAL = re.compile(r"([+-]?\d[\d.]*) \[([+-]?\d[\d.]*), ([+-]?\d[\d.]*)\]")  # what `interval` writes


def titles_of(*, multiclass: bool, ordered: bool = False) -> dict[str, str]:
    """Metric -> its name; of more than two classes the means over classes are called macro."""
    kappa = {"kappa": "kappa, quadratic weights"} if ordered else {}
    return TITLES | OF_CLASSES | kappa if multiclass else TITLES


def shown_of_classes(*, ordered: bool) -> tuple[str, ...]:
    """The metrics that lead where there are more than two classes; of grades kappa instead of F1."""
    return (*SHOWN_OF_CLASSES[:-1], "kappa") if ordered else SHOWN_OF_CLASSES


def interval(value: Numbers, form: str = ".3f") -> str:
    """An Estimate, or (value, low, high), as "0.812 [0.745, 0.867]"; "-" where there is no value.

    form : of each number, as in `format`; "+.3f" for differences
    """
    v, low, high = (None if x is None or x != x else x for x in value)
    if v is None:
        return "-"
    return f"{v:{form}}" + ("" if low is None or high is None else f" [{low:{form}}, {high:{form}}]")


def number(value: float | None) -> str:
    """Three decimals, or "-"."""
    return interval((value, None, None))


def p_value(value: float | None) -> str:
    """Three decimals, or "< 0.001", or "-"."""
    return "< 0.001" if value is not None and value < 0.001 else number(value)


def mean_sd(values: Sequence[float | None]) -> str:
    """Mean and, in brackets, standard deviation (ddof 0) of the values there are."""
    known = [v for v in values if v is not None]
    return f"{np.mean(known):.3f} ({np.std(known):.3f})" if known else "-"


def mean_and_sd(of: Spread) -> str:
    """Of a metric over repeated runs, see `repeats.spread_over_repeats`."""
    return "-" if of.mean is None else f"{of.mean:.3f} ± {of.sd:.3f}"


class Table:
    """Column heads and rows of cells, for a page, Markdown and the terminal.

    A cell is text or a number, or (text, HTML) where the page shows more.
    left : how many columns from the left are words, the others are numbers
    kind : class of the element on a page
    over : a line of heads above the heads, (text, number of columns)
    caption : what the table is of, for screen readers
    """

    def __init__(
        self,
        heads: Sequence[str],
        rows: Sequence[Sequence[Any]],
        *,
        left: int = 1,
        kind: str = "",
        over: Sequence[tuple[str, int]] = (),
        caption: str = "",
    ) -> None:
        self.caption = caption
        self.heads, self.rows, self.left, self.kind, self.over = heads, rows, left, kind, over

    def markdown(self) -> str:
        """A table of Markdown; heads above the heads are put before these."""
        return markdown_table(self._named(), self._texts(), words=self.left)

    def csv(self) -> str:
        """CSV of it, in which no cell is a formula; columns of intervals become value, low and high."""
        heads, columns = self._named(), list(zip(*self._texts(), strict=True))
        out: list[list[Any]] = []
        for head, cells in zip(heads, columns or [()] * len(heads), strict=True):
            parts = [INTERVAL.fullmatch(str(cell)) for cell in cells]
            if any(parts):
                values = [
                    part.groups() if part else (cell, "", "") for part, cell in zip(parts, cells, strict=True)
                ]
                named = zip((head, f"{head}: low", f"{head}: high"), zip(*values, strict=True), strict=True)
                out += [[name, *column] for name, column in named]
            else:
                out.append([head, *cells])
        text = io.StringIO()
        write_csv_rows(text, zip(*out, strict=True))
        return text.getvalue()

    def show(self, *, title: str = "", caption: str = "") -> None:
        """Print it on the terminal; the columns of words name the rows."""
        right = range(self.left, len(self.heads))
        print_table(self.heads, self._texts(), lead=self.left, right=right, title=title, caption=caption)

    def _named(self) -> list[str]:
        prefixes = [text for text, span in self.over for _ in range(span)] or [""] * len(self.heads)
        return [f"{over}: {head}" if over else head for over, head in zip(prefixes, self.heads, strict=True)]

    def _texts(self) -> list[list[Any]]:
        return [[cell[0] if isinstance(cell, tuple) else cell for cell in row] for row in self.rows]

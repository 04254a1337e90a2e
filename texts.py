"""Text of data sets (names, labels, paths) in what people open: Markdown, spreadsheets, terminals.

Whoever makes a data set or a store chooses these texts. Put unchanged where they do not stand for themselves,
they become links and HTML, formulas that run, or commands to the terminal.
"""

import csv
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from .files import write_atomically
from .terminal import printable

if TYPE_CHECKING:
    import pandas as pd

_MARKUP = re.compile(
    r"[\\`*_{}\[\]#|~$]"
    r"|(?P<entity>[<>&@]|:(?=//)|(?<=www)\.)"  # HTML, addresses that become links by themselves
    r"|^[-+=]|(?<=^\d)[.)]|(?<=^\d\d)[.)]"  # a list or a rule, at the start of a line
)


def markdown(text: object) -> str:
    """A text as itself in Markdown: no HTML, no link, no emphasis, no cell of a table, no new line."""
    return _MARKUP.sub(
        lambda match: f"&#{ord(match[0])};" if match["entity"] else f"\\{match[0]}",
        printable(" ".join(str(text).split())),
    )


def prose(text: object) -> str:
    """Sentences with names in them, as one paragraph of Markdown: no HTML, no link, no new line.

    Emphasis stays, the sentences may have it.
    """
    words = printable(" ".join(str(text).split()))
    return words.replace("&", "&amp;").replace("<", "&lt;").replace("](", "]\\(").replace("][", "]\\[")


def markdown_table(
    heads: Sequence[object], rows: Sequence[Sequence[object]], *, words: int | None = None
) -> str:
    """A table of Markdown, its cells as in `prose`; the columns after the first `words` are to the right."""

    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(prose(cell).replace("|", "\\|") for cell in cells) + " |"

    left = len(heads) if words is None else words
    rule = "|" + "|".join("---:" if i >= left else "---" for i in range(len(heads))) + "|"
    return "\n".join([line(heads), rule, *map(line, rows)])


# a formula, to Excel and LibreOffice; not a number, and not a sign that stands alone
_FORMULA = re.compile(r"'*(?:\s*[=+\-@\uff1d\uff0b\uff0d\uff20].|[\t\r\n])(?s:.*)")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


def csv_cell(value: object) -> object:
    """A text that a spreadsheet would take for a formula gets an apostrophe before it; others stay."""
    if isinstance(value, str) and _FORMULA.fullmatch(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def cell_of_csv(value: object) -> object:
    """What `csv_cell` was given."""
    if isinstance(value, str) and value.startswith("'") and _FORMULA.fullmatch(value):
        return value[1:]
    return value


def write_csv(file: str | os.PathLike[str], table: "pd.DataFrame") -> Path:
    """Write a table as CSV, whole or not at all, in which no cell is a formula. Raises OutputError."""
    safe = _mapped(table, csv_cell)
    texts = [column.astype(str) for column in _texts(safe)]
    odd = any("\r" in str(name) for name in safe.columns) or any(t.str.contains("\r").any() for t in texts)
    quoting = csv.QUOTE_NONNUMERIC if odd else csv.QUOTE_MINIMAL  # which takes "\r" for no end of a line
    return write_atomically(
        file,
        lambda to: safe.to_csv(to, index=False, lineterminator="\n", encoding="utf-8", quoting=quoting),
    )


def write_csv_rows(file: TextIO, rows: Iterable[Iterable[object]]) -> None:
    """Write rows of cells to an open text file, in which no cell is a formula."""
    plain = csv.writer(file, lineterminator="\n")
    quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)  # takes "\r" for no end of a line
    for row in rows:
        cells = [csv_cell(cell) for cell in row]
        odd = any(isinstance(cell, str) and "\r" in cell for cell in cells)
        (quoted if odd else plain).writerow(cells)


def cells_of_csv(table: "pd.DataFrame") -> "pd.DataFrame":
    """A table read from what `write_csv` wrote, its cells and names as they were."""
    return _mapped(table, cell_of_csv)


def _texts(table: "pd.DataFrame") -> "list[pd.Series]":
    """The columns that may hold text."""
    return [column for _, column in table.items() if column.dtype.kind not in "iufbcmM"]


def _mapped(table: "pd.DataFrame", of: Callable[[object], object]) -> "pd.DataFrame":
    """The table with `of` of every text in it, the names of the columns too."""
    mapped = table.copy(deep=False)
    for column in _texts(table):
        mapped[column.name] = column.map(of, na_action="ignore")
    return mapped.set_axis([of(name) for name in table.columns], axis=1)


def public_url(url: str) -> str:
    """A URL for messages and files: no user, no password, and of the values in its query digests only.

    Signatures and tokens stand there. URLs that differ only in such a value stay different.
    """
    parts = urlsplit(url)
    values = parse_qsl(parts.query, keep_blank_values=True)
    query = urlencode(
        [(key, value and hashlib.sha256(value.encode()).hexdigest()[:8]) for key, value in values]
    )
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))


def other_file(start: bytes) -> str:
    """What a file is that came under another's name, in words, by its first 512 bytes; "" = not known.

    A pointer of git-lfs and the page of a login or a proxy come under the right name.
    """
    start = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"version https://git-lfs"):
        return (
            "is a git-lfs pointer, a text of three lines that stands for the file. Fix: run `git lfs pull` "
            "in its folder, or download the file itself"
        )
    if start[:64].lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return (
            "is a web page, not the file: a login page or a proxy answered the download. Fix: delete it "
            "and download it again, logged in"
        )
    return "is compressed (gzip). Fix: decompress it first" if start.startswith(b"\x1f\x8b") else ""

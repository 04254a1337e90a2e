"""Tables and texts for a terminal: as wide as it is, and nothing in a name is taken for a command.

A table that does not fit is not squeezed until a column holds one letter a line. It is written with its
leading columns on a line of their own and the other columns below, and where these do not fit either, one
value a line.
"""

import errno
import logging
import os
import re
import shutil
import sys
import traceback
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from tqdm import tqdm

WRAPPED = 16  # columns of text narrower than this are not wrapped
WORD = 24  # longer words (paths, hashes) may be broken
INDENT = 2


def printable(text: object) -> str:
    """The text without control characters: escape sequences of a terminal are shown, not obeyed.

    Line breaks and tabs stay. Bidirectional overrides are shown as well, because they can make a name look
    like another one.
    """

    def shown(char: str) -> str:
        if char in "\n\t":
            return char
        if unicodedata.category(char) not in ("Cc", "Cs") and char not in _OVERRIDES:
            return char
        return f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}"

    return "".join(map(shown, str(text)))


_OVERRIDES = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@dataclass
class Output:
    """How much a command prints; set by -q, --verbose and --log-file.

    quiet : no progress bars, no notes. verbose : what libraries log, and where an error came from
    """

    quiet: bool = False
    verbose: bool = False


OUTPUT = Output()
LOG = logging.getLogger("patchbank")
LIBRARIES = ("huggingface_hub", "timm", "transformers", "ray", "httpx", "fsspec")


def reset() -> None:
    """The end of a command: its log is closed, and the next one of the process starts without its options."""
    OUTPUT.quiet = OUTPUT.verbose = False
    while _shown:
        warnings.showwarning = _shown.pop()
    for name in (LOG.name, *LIBRARIES):
        logger = logging.getLogger(name)
        for handler in [one for one in logger.handlers if one in _handlers]:
            logger.removeHandler(handler)
    while _handlers:
        _handlers.pop().close()


_handlers: list[logging.Handler] = []
_shown: list[Any] = []  # what showed warnings before a log was written


def be_quiet() -> None:
    """No progress bars and no notes from now on."""
    OUTPUT.quiet = True


def be_verbose() -> None:
    """What libraries log goes to stderr from now on, and errors say where they came from."""
    OUTPUT.verbose = True
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    _handlers.append(handler)
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.INFO)
        logging.getLogger(name).addHandler(handler)


class _LogFile(logging.FileHandler):
    """A file that is made with the first thing that is said; the command is its first line."""

    def _open(self) -> Any:
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        stream = super()._open()
        words = [re.sub(r"(?<=://)[^/@\s]*@", "", word) for word in sys.argv]
        command = " ".join(re.sub(r"(://[^?\s]*)\?\S*", r"\1?...", word) for word in words)
        first = LOG.makeRecord(LOG.name, logging.INFO, "", 0, "command: %s", (command,), None)
        stream.write(self.format(first) + self.terminator)
        return stream


def log_to(file: Path) -> None:
    """Add what is printed, warnings and errors to a file, each line with its time.

    Of the command, passwords and signatures in URLs are left out. Raises OSError for a place that cannot be
    written.
    """
    folder = next(parent for parent in Path(file).absolute().parents if parent.exists())
    if not os.access(file if Path(file).exists() else folder, os.W_OK):
        raise PermissionError(errno.EACCES, "the log cannot be written", str(file))
    handler = _LogFile(file, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    _handlers.append(handler)
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    for name in LIBRARIES:
        logging.getLogger(name).addHandler(handler)

    shown = warnings.showwarning
    _shown.append(shown)

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        LOG.warning("%s: %s", category.__name__, message)
        shown(message, category, *where, **more)

    warnings.showwarning = show


def _log(text: object, level: int = logging.INFO) -> None:
    for line in printable(text).splitlines() if LOG.handlers else ():
        LOG.log(level, "%s", line)


def trace(error: BaseException) -> None:
    """Where an error came from: in the log, and on stderr with --verbose."""
    text = "".join(traceback.format_exception(error))
    _log(text, logging.ERROR)
    if OUTPUT.verbose:
        sys.stderr.write(printable(text))


def echo(text: object, *, err: bool = False) -> None:
    """Print a text as it is for a program to read, or a line for a person; nothing in it is obeyed."""
    import click

    _log(text, logging.ERROR if err else logging.INFO)
    click.echo(printable(text), err=err)


def note(text: str, *, err: bool = False) -> None:
    """Print a remark, on stderr if `err`; --quiet leaves it out."""
    _log(text, logging.WARNING)
    if not OUTPUT.quiet:
        _print(text, style="yellow", err=err)


def progress_bar(
    steps: Iterable[Any] | None = None, *, total: float | None = None, shown: bool = True, **about: Any
) -> "tqdm[Any]":
    """A bar on stderr: tqdm's, drawn once a second at most, and not at all where --quiet was given.

    about : unit, desc, ..., as tqdm takes them
    """
    from tqdm import tqdm

    return tqdm(steps, total=total, disable=OUTPUT.quiet or not shown, **{"mininterval": 1, **about})


def plain_warnings() -> None:
    """Until `reset` a UserWarning is a sentence on stderr, without the place in the code."""
    before = warnings.showwarning
    _shown.append(before)

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if category is UserWarning and not OUTPUT.verbose:
            _print(f"Warning: {message}", style="yellow", err=True)
        else:
            before(message, category, *where, **more)

    warnings.showwarning = show


def open_console(*, err: bool = False) -> "Console":
    """Rich's view of the terminal, in its own width: for TERM=dumb, rich would take 80 columns."""
    from rich.console import Console

    dumb = os.environ.get("TERM", "").casefold() in ("dumb", "unknown")
    width, height = shutil.get_terminal_size() if dumb else (None, None)
    return Console(stderr=err, highlight=False, width=width, height=height)


def print_table(
    heads: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    lead: int = 1,
    right: Sequence[int] = (),
    title: str = "",
    caption: str = "",
    boxed: bool = True,
    console: "Console | None" = None,
) -> None:
    """Print rows under their heads in the way that the terminal's width allows.

    heads : names of the columns; rows : cells, one for each head, any text (markup is shown as it is)
    lead : how many of the first columns name the row; equal neighbours in the first of several are
        written once
    right : numbers of the columns that are aligned to the right, beside those of numbers
    boxed : draw lines around the table where it fits
    """
    from rich.text import Text

    console = console or open_console()
    cells = [[printable(cell) for cell in row] for row in rows]
    if any(len(row) != len(heads) for row in cells):
        raise ValueError(f"every row needs {len(heads)} cells")
    for line in (title, *(" | ".join(row) for row in [heads, *cells]), caption) if LOG.handlers else ():
        _log(line)
    if title:
        console.print(Text(printable(title), style="bold"))
    names = [printable(head) for head in heads]
    numbers = {i for i in range(len(heads)) if rows and all(isinstance(row[i], int | float) for row in rows)}
    columns = [
        _column(head, [row[i] for row in cells], i in right or i in numbers) for i, head in enumerate(names)
    ]
    frame = 3 * len(columns) + 1 if boxed else 2 * len(columns)
    aside = INDENT * lead + sum(c.least + 2 for c in columns[lead:]) - 2
    if sum(c.least for c in columns) + frame <= console.width:
        console.print(_table(columns, cells, lead, boxed))
    else:
        _blocks(console, columns, cells, lead, aside=aside <= console.width)
    if caption:
        console.print(Text(printable(caption), style="dim"))


def say(text: str, *, style: str = "", err: bool = False, prose: bool = False) -> None:
    """Print a text, on stderr if `err`; long lines are left to the terminal to break.

    prose : break lines between words, for sentences that hold no path or command to copy
    """
    _log(text)
    _print(text, style=style, err=err, prose=prose)


def _print(text: str, *, style: str, err: bool, prose: bool = False) -> None:
    from rich.text import Text

    console = open_console(err=err)
    console.print(Text(printable(text), style=style), soft_wrap=not prose)


@dataclass(frozen=True)
class _Column:
    head: str
    right: bool
    width: int
    """Cells that its longest line takes."""
    least: int
    """Cells below which it would be hard to read: numbers are not broken, text is broken between words."""


def _column(head: str, cells: Sequence[str], right: bool) -> _Column:
    from rich.cells import cell_len

    lines = [line for text in [head, *cells] for line in text.split("\n")]
    width = max(map(cell_len, lines))
    word = max((cell_len(word) for line in lines for word in line.split()), default=0)
    return _Column(head, right, width, width if right else max(min(width, WRAPPED), min(word, WORD)))


def _table(columns: Sequence[_Column], rows: Sequence[Sequence[str]], lead: int, boxed: bool) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.ROUNDED if boxed else None, pad_edge=boxed)
    for column in columns:
        justify = "right" if column.right else "left"
        table.add_column(Text(column.head), justify=justify, overflow="fold", min_width=column.least)
    sections = lead > 1 and len({row[0] for row in rows}) > 1
    for i, row in enumerate(rows):
        again = sections and i > 0 and rows[i - 1][0] == row[0]
        if sections and i > 0 and not again:
            table.add_section()
        table.add_row(*map(Text, ["" if again else row[0], *row[1:]]))
    return table


def _blocks(
    console: "Console", columns: Sequence[_Column], rows: Sequence[Sequence[str]], lead: int, *, aside: bool
) -> None:
    """A line with the leading cells, the others below: side by side under one head, or else one a line."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    def say(what: Text | Table, depth: int) -> None:
        console.print(Padding(what, (0, 0, 0, INDENT * depth), expand=False))

    below = columns[lead:]
    free = console.width - INDENT * lead - sum(c.least + 2 for c in below) + 2
    widths = []
    for column in below:
        more = max(0, min(free, column.width - column.least))
        widths.append(column.least + more)
        free -= more

    def line(cells: Sequence[str], style: str = "") -> Table:
        grid = Table.grid(padding=(0, 2))
        for column, width in zip(below, widths, strict=True):
            grid.add_column(justify="right" if column.right else "left", width=width, overflow="fold")
        grid.add_row(*(Text(cell, style=style) for cell in cells))
        return grid

    if aside and below:
        say(line([column.head for column in below], "bold"), lead)
    before: Sequence[str] = [""] * len(columns)
    for row in rows:
        new = next((i for i in range(lead) if row[i] != before[i]), lead - 1)
        for i in range(new, lead):
            say(Text(row[i], style="" if aside and i == lead - 1 else "bold"), i)
        if aside and below:
            say(line(row[lead:]), lead)
        elif below:
            grid = Table.grid(padding=(0, 2))
            grid.add_column(no_wrap=True)
            grid.add_column(overflow="fold")
            for column, cell in zip(below, row[lead:], strict=True):
                grid.add_row(Text(column.head), Text(cell))
            say(grid, lead)
        before = row

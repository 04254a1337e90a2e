"""A user's own table, as spreadsheets, R and pandas write it: separators, encodings, blank rows, paths.

What was read in another way than a UTF-8 CSV with commas is reported.
"""

import codecs
import csv
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import pandas as pd

from ..errors import ManifestError
from ..settings import encoding_of
from ..texts import other_file
from .manifest import read_table
from .sources import MARK

Say = Callable[[str], None]
Lose = Callable[[str, str], None]  # (a file of many patches, what is wrong with it)
FAULT = "_fault"  # a column of builders' tables: what is wrong with the row, "" = nothing
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
BLOCK = 1 << 20  # bytes
LOOK = 20  # records by which the separator is found
_DRIVE = re.compile(r"\A(?:[A-Za-z]:)?/*")
_UNNAMED = "\0"  # begins the names of columns that have none


def read_user_table(file: str | os.PathLike[str], *, separator: str = "", say: Say) -> pd.DataFrame:
    """A table of any separator (of `SEPARATORS`) and encoding, or parquet; all cells of a CSV are texts.

    Left out are blank lines before the names and rows at the end, Excel's line "sep=;", and columns without a
    name that are empty or number the rows. separator: "" = found by the first records
    say : called with what was found and is not a UTF-8 CSV with commas

    Raises ManifestError: no such file, not a table (a spreadsheet, a page, a pointer of git-lfs, ...), no
    rows, rows with too few or many cells, a quote that is not closed.
    """
    file = Path(file)
    if file.suffix.lower() in (".parquet", ".pq"):
        return read_table(file, "parquet")
    if not file.is_file():
        raise ManifestError(f"the table {file} does not exist, or is not a regular file.")
    with file.open("rb") as stream:
        head = stream.read(512)
    if head.startswith((b"PK\3\4", b"\xd0\xcf\x11\xe0")):
        raise ManifestError(f"{file} is a spreadsheet or a zip, not a CSV; save the sheet as CSV (UTF-8).")
    if head.startswith(b"PAR1"):
        return read_table(file, "parquet")
    if what := other_file(head):
        raise ManifestError(f"{file} {what}.")
    encoding = _encoding(file, head)
    if encoding not in ("utf-8", "utf-8-sig"):
        say(f"{file.name} is not UTF-8; it was read as {encoding}")
    begin, told = _begin(file, encoding)
    delimiter = separator or told or _separator(file, encoding, begin)
    if delimiter != "," and not separator:
        say(f"{file.name} is separated by {SEPARATORS.get(delimiter, repr(delimiter))}")
    (names, end), *_ = _records(file, encoding, delimiter, begin, 1) or [([], 0)]
    names = [name.strip().strip("\ufeff") for name in names]
    unnamed = [name or f"{_UNNAMED}{i}" for i, name in enumerate(names)]
    table = read_table(file, "csv", separator=delimiter, encoding=encoding, names=unnamed, skip=end)
    if table.empty:
        raise ManifestError(f"{file} has no rows, only the names of columns: {', '.join(names)}.")
    if _unclosed(file, encoding, table):
        raise ManifestError(
            f"{file}: a quote is not closed in row {len(table)} ({table.iloc[-1, 0]!r}, ...); the rows "
            "behind it would be lost."
        )
    return _without_unnamed(_without_blank_end(table, file, say), file, say)


def _begin(file: Path, encoding: str) -> tuple[int, str]:
    """(lines before the names: blank ones and Excel's "sep=;", the separator that it says or "")."""
    told = ""
    with file.open(encoding=encoding) as stream:
        for number, line in enumerate(stream):
            said = re.fullmatch(r"\"?sep=(.)\"?", line.strip("\ufeff\r\n "))
            if said:
                told = said[1]
            elif line.strip():
                return number, told
    return 0, told


def _separator(file: Path, encoding: str, begin: int) -> str:
    """With which the first records have the same number of cells, more than one; else the most names."""

    def fit(separator: str) -> tuple[bool, int]:
        cells = [len(cells) for cells, _ in _records(file, encoding, separator, begin, LOOK)]
        return len({*cells}) == 1 and cells[0] > 1, cells[0] if cells else 0

    return max(SEPARATORS, key=fit)


def _records(file: Path, encoding: str, separator: str, begin: int, most: int) -> list[tuple[list[str], int]]:
    """(cells, lines of the file up to here) of the first records but blank ones."""
    records: list[tuple[list[str], int]] = []
    with file.open(encoding=encoding, newline="") as stream:
        reader = csv.reader(islice(stream, begin, None), delimiter=separator)
        try:
            for cells in reader:
                if cells:
                    records.append((cells, begin + reader.line_num))
                if len(records) == most:
                    break
        except csv.Error as error:
            raise ManifestError(f"{file} cannot be read as CSV: {error}.") from error
    return records


def _unclosed(file: Path, encoding: str, table: pd.DataFrame) -> bool:
    """Whether the last row took what follows its quote to the end of the file."""
    if not any("\n" in cell or "\r" in cell for cell in table.iloc[-1]):
        return False
    with file.open(encoding=encoding, newline="") as stream:
        return sum(block.count('"') for block in iter(lambda: stream.read(BLOCK), "")) % 2 == 1


def _encoding(file: Path, head: bytes) -> str:
    marked = encoding_of(head)
    if marked != "utf-8":
        return marked
    if head[1:4:2] == b"\0\0":
        return "utf-16-le"
    if head[0:4:2] == b"\0\0":
        return "utf-16-be"
    for encoding in ("utf-8", "cp1252"):
        decoder = codecs.getincrementaldecoder(encoding)()
        try:
            with file.open("rb") as stream:
                while block := stream.read(BLOCK):
                    decoder.decode(block)
                decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            continue
        return encoding
    return "latin-1"  # has a character for each byte


def _without_blank_end(table: pd.DataFrame, file: Path, say: Say) -> pd.DataFrame:
    rows = len(table)
    while rows and not any(cell.strip() for cell in table.iloc[rows - 1]):
        rows -= 1
    if rows < len(table):
        say(f"{file.name}: {len(table) - rows} blank rows at the end were left out")
    return table.iloc[:rows]


def _without_unnamed(table: pd.DataFrame, file: Path, say: Say) -> pd.DataFrame:
    """Columns without a name are left out where they are empty, or the first one and number the rows."""
    for number, name in enumerate(table.columns, start=1):
        if not name.startswith(_UNNAMED):
            continue
        values = table[name].str.strip()
        if (values != "").any():
            if number > 1 or not (values.str.fullmatch("[0-9]+").all() and values.is_unique):
                raise ManifestError(
                    f"{file}: column {number} has no name and does not number the rows ({values.iloc[0]!r}, "
                    "...): name it or delete it."
                )
            say(f"{file.name}: column {number}, which has no name and numbers the rows, was left out")
        table = table.drop(columns=name)
    return table


def walk_files(
    root: Path, exclude: re.Pattern[str] | None = None
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """As os.walk, through symbolic links, but into no folder twice; sorted; hidden ones are left out.

    exclude : found in the path of a folder under the root, with a "/" at its end: it is not entered
    Gives (folder, its subfolders, its files).
    """
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        state = os.stat(folder)  # noqa: PTH116
        if (state.st_dev, state.st_ino) in seen:  # a link to a folder above, or a second link
            subfolders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not is_hidden(name))
        if exclude is not None:
            inner = Path(folder).relative_to(root)
            subfolders[:] = [n for n in subfolders if not exclude.search(f"{(inner / n).as_posix()}/")]
        yield Path(folder), list(subfolders), sorted(name for name in files if not is_hidden(name))


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's: .DS_Store, ._a.png, __MACOSX."""
    return name.startswith((".", "__MACOSX"))


def find_files(root: Path, paths: Sequence[str], *, say: Say) -> tuple[list[str], dict[int, str]]:
    """The paths under the root that a table's cells mean, and what is wrong with rows without a file.

    A path that exists as it is stays. Else it is looked for with "/" for "\\", without its drive and first
    folders (at last by the file's name alone), in any Unicode form and case; one file alone must fit.
    paths may end in "::member". Returns (paths, {row: fault}). say : called if paths were changed
    """
    files: dict[str, str] = {}  # what a cell says before "::" -> the file
    index: dict[str, list[str]] | None = None
    for path in dict.fromkeys(path.partition(MARK)[0] for path in paths):
        if path and _exists(root / path):
            files[path] = path
            continue
        if index is None:
            index = _index(root)
        if (match := _look_up(index, path)) is not None:
            files[path] = match
    doubled = {file for file, count in Counter(files.values()).items() if count > 1}
    endings = {os.path.splitext(name)[0]: os.path.splitext(name)[1] for name in index or ()}  # noqa: PTH122
    faults, new = {}, []
    for row, path in enumerate(paths):
        outer, mark, member = path.partition(MARK)
        file = files.get(outer)
        if file is None:
            faults[row] = f"no file under {root}" + _ending_note(outer, endings)
        elif file in doubled and file != outer:
            faults[row] = f"no file of its own under {root}; the file that fits belongs to another row too"
        new.append(f"{outer if file is None else file}{mark}{member}")
    changed = [(old, file) for old, file in files.items() if old != file and file not in doubled]
    if changed:
        old, file = changed[0]
        say(f"{len(changed)} paths do not exist as written and were resolved: {old!r} is read as {file!r}")
    return new, faults


def _ending_note(path: str, endings: Mapping[str, str]) -> str:
    """What to do where files have an ending that the table leaves out; "" where it is something else."""
    ending = endings.get(_key(path))
    return f", but one that ends in {ending}: --path-format '{{COLUMN}}{ending}'" if ending else ""


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long a name, or one with NUL
        return False


def _key(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


def _index(root: Path) -> dict[str, list[str]]:
    """Every file under the root, by its path and all ends of it, in one spelling."""
    index: dict[str, list[str]] = {}
    for folder, _, names in walk_files(root) if root.is_dir() else ():
        for name in names:
            path = (folder / name).relative_to(root).as_posix()
            parts = _key(path).split("/")
            for start in range(len(parts)):
                index.setdefault("/".join(parts[start:]), []).append(path)
    return index


def _look_up(index: dict[str, list[str]], path: str) -> str | None:
    parts = _DRIVE.sub("", path.strip().replace("\\", "/")).split("/")
    parts = [part for part in parts if part not in ("", ".", "..")]
    for start in range(len(parts)):
        files = index.get(_key("/".join(parts[start:])), [])
        if len(files) == 1:
            return files[0]
    return None


def own_names(
    frame: pd.DataFrame, file: Path, taken: Collection[str], wanted: Sequence[str], say: Say
) -> pd.DataFrame:
    """Columns that are called as ours but for case and blanks ("Label", "SPLIT ") get our names.

    taken : ours that the user named himself
    """
    renamed = {}
    for ours in wanted:
        alike = [name for name in frame.columns if str(name).strip().casefold() == ours]
        if ours not in frame.columns and ours not in taken and len(alike) == 1:
            renamed[alike[0]] = ours
    for theirs, ours in renamed.items():
        say(f"{file.name}: the column {theirs!r} is {ours}")
    return frame.rename(columns=renamed)

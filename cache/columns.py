"""Columns of tables in exports: their names and their types.

One rule for names, in every layout and in finalised stores: a name is written as it is, but `%`, control
characters and those that a path cannot have (/ \\ : * ? " < > |) are written as in a URL (%2F), and so is the
first character of a name that the layouts use themselves or that begins with a dot or two underscores, and
the last one of a name that ends in a dot, a space or .npy.
Numbers stay numbers (int64, uint64, float64), truth values bool; a column of a CSV whose cells are all
numbers is a column of numbers, but for those that are names (`NAMES`). Everything else is text, "" where a
cell is empty. Formats without missing numbers (NumPy, HDF5, safetensors) have them as NaN. The document that
goes with an export says where a name or a type was changed, so that an import gives back both.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from ..errors import InvalidRequest
from .narrowing import is_array, is_object

TAKEN = {
    "content_hash",
    "embedding",
    "embeddings",
    "features",
    "feats",
    "coords",
    "patchbank",
    "row_checksum",
    "parts",
    "_index",
    "zarr.json",
}
LONGEST = 200  # bytes of a written name; a folder's name has 255
KINDS = ("bool", "Int64", "UInt64")
NAMES = {"patch_id", "path", "label", "group", "domain", "split", "content_cluster", "slide"}  # never numbers
CATEGORIES = ("label", "domain", "split")
EXACT = 1 << 53  # whole numbers up to here are exact as float64
DIGITS = 17  # of a number that is read from text; more would be lost
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,18}")
_REAL = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f%/\\:*?"<>|\ud800-\udfff]')


def _quoted(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass"))


def written_name(name: str) -> str:
    """The name that a column has in exports; different names stay different."""
    written = _UNSAFE.sub(lambda found: _quoted(found[0]), name)
    if written in TAKEN or written.startswith((".", "__")):
        written = _quoted(written[0]) + written[1:]
    if written.endswith((".npy", ".", " ")):  # NumPy takes x.npy for x, Windows both "x." and "x " for "x"
        written = written[:-1] + _quoted(written[-1])
    if len(written.encode()) > LONGEST:
        raise InvalidRequest(f"the name of a column is too long for an export: {name[:60]!r}...; rename it")
    return written or "%"


def written_columns(table: pd.DataFrame) -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    """The columns of a table but `content_hash`, and what an import has to know: written name -> what.

    A column is a NumPy array (text as str objects, int64, uint64, float64, bool) or, where numbers or truth
    values are missing, a pandas array (Int64, UInt64, boolean).

    Raises InvalidRequest for two columns of one name, and text that no file can hold.
    """
    columns: dict[str, Any] = {}
    changed: dict[str, dict[str, str]] = {}
    for written, name, column in _named(table):
        values = _typed(column, name)
        kind = "bool" if values.dtype in (bool, "boolean") else ""
        if not isinstance(values, np.ndarray) and not kind:
            kind = str(values.dtype)
        columns[written] = values
        about = ({"name": name} if written != name else {}) | ({"kind": kind} if kind else {})
        if about:
            changed[written] = about
    return columns, changed


def text_columns(table: pd.DataFrame) -> dict[str, list[str]]:
    """The columns of a table but `content_hash` as text, by their written names; raises as above."""
    return {written: texts(column, name).tolist() for written, name, column in _named(table)}


def _named(table: pd.DataFrame) -> Iterator[tuple[str, str, pd.Series]]:
    """(written name, name, column) of each column but `content_hash`."""
    names = [str(name) for name in table.columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidRequest(f"the table has two columns {twice[0]!r}; rename one")
    for position, name in enumerate(names):
        if name != "content_hash":
            yield written_name(name), name, table.iloc[:, position]


def _typed(column: pd.Series, name: str) -> Any:
    if pd.api.types.is_bool_dtype(column.dtype):
        return column.astype("boolean").array if column.isna().any() else column.to_numpy(bool)
    if pd.api.types.is_integer_dtype(column.dtype):
        unsigned = str(column.dtype).lower() == "uint64"
        if column.isna().any():
            return column.astype("UInt64" if unsigned else "Int64").array
        return column.to_numpy(np.uint64 if unsigned else np.int64)
    if pd.api.types.is_float_dtype(column.dtype):
        return column.to_numpy(np.float64, na_value=np.nan)
    words = texts(column, name)
    return words if name in NAMES or isinstance(column.dtype, pd.CategoricalDtype) else numbers(words)


def numbers(words: np.ndarray) -> Any:
    """Text as numbers, where every cell that is not empty is one that is written as numbers are ("007" is
    none, nor is a whole number that no column of numbers holds), and different texts are different numbers.
    """
    there = words != ""
    cells = words[there]
    if not len(cells):
        return words
    if all(_WHOLE.fullmatch(word) for word in cells):
        whole = list(map(int, cells))
        if not all(-(2**63) <= number < 2**63 for number in whole):
            return words
        if len(cells) == len(words):
            return np.array(whole, np.int64)
        each = iter(whole)
        return pd.array([next(each) if known else None for known in there], dtype="Int64")
    if all(_REAL.fullmatch(word) and sum(map(str.isdigit, word)) <= DIGITS for word in cells):
        real = cells.astype(np.float64)
        if np.isfinite(real).all() and len({*real}) == len({*cells}):  # not of 1.1 and 1.10, as ids are
            out = np.full(len(words), np.nan)
            out[there] = real
            return out
    return words


def as_text(values: Any) -> np.ndarray:
    """A column as text, "" where a cell is missing."""
    if is_array(values) and values.dtype == object:
        return values
    return pd.Series(values).astype("string").fillna("").to_numpy(dtype=object)


def array_of(values: Any) -> np.ndarray:
    """A column for formats without missing numbers: whole ones as float64 with NaN where that is exact, else
    text.
    """
    if is_array(values):
        return values
    if str(values.dtype) != "boolean" and not (abs(pd.Series(values).dropna()) > EXACT).any():
        return values.to_numpy(np.float64, na_value=np.nan)
    return as_text(values)


def texts(column: pd.Series, name: str) -> np.ndarray:
    """The cells of a column as text, "" where one is empty.

    Raises InvalidRequest at characters that files cannot hold (NUL, halves of surrogate pairs).
    """
    words = column.astype("string").fillna("").to_numpy(dtype=object)
    together = "".join(words)
    try:
        together.encode()
        bad = "\0" in together
    except UnicodeEncodeError:
        bad = True
    for row, word in enumerate(words if bad else ()):  # which
        if "\0" in word or any("\ud800" <= char <= "\udfff" for char in word if char > "\ud7ff"):
            raise InvalidRequest(
                f"row {row} of the column {name!r} has an invalid character: {word[:60]!r}; change it"
            )
    return words


def read_columns(columns: Mapping[str, Any], changed: object) -> dict[str, pd.Series]:
    """The columns as they were before the export. Raises InvalidRequest where `changed` does not fit."""
    if not is_object(changed):
        raise InvalidRequest("the export's description of its columns is not a table of names")
    loaded: dict[str, pd.Series] = {}
    for written, values in columns.items():
        about = changed.get(written, {})
        name, kind = (about.get("name", written), about.get("kind", "")) if is_object(about) else (0, 0)
        if not isinstance(name, str) or kind not in ("", *KINDS) or name in loaded or name == "content_hash":
            raise InvalidRequest(
                f"what the export says about its column {written!r} makes no sense: {about!r}"
            )
        loaded[name] = pd.Series(restored(values, kind, name) if kind else values)
    return loaded


def restored(values: Any, kind: str, name: str) -> Any:
    """Values as they were read, in the type that an export says they had. Raises InvalidRequest."""
    try:
        if kind == "bool":
            cells = [{"True": True, "False": False, "": None}[word] for word in as_text(values)]
            return pd.array(cells, dtype="boolean") if None in cells else np.array(cells, dtype=bool)
        dtype = pd.UInt64Dtype() if kind == "UInt64" else pd.Int64Dtype()
        if is_array(values) and values.dtype.kind == "f":
            cells = [None if cell != cell else int(cell) for cell in values.tolist()]
            if any(cell is not None and cell != value for cell, value in zip(cells, values, strict=True)):
                raise ValueError("a number is not whole")
        else:
            cells = [int(word) if word else None for word in as_text(values)]
        return pd.array(cells, dtype=dtype)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise InvalidRequest(
            f"the column {name!r} is not of the type {kind} that the export names: {error}"
        ) from None

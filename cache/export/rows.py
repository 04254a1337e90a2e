"""What an export is made of: rows, columns, the document that says what they are, and the checksums."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import xxhash

from ...errors import InvalidRequest, VectorRefused
from ..backend import seal
from ..columns import CATEGORIES, as_text, written_columns
from ..narrowing import is_array
from ..store import Store
from ..table import keys_of_table

FORMAT = "patchbank-export"
VERSION = 3  # 1 had no checksums, 2 wrote truth values and whole numbers with gaps as text
STEP = 8192


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a layout may need beside the rows.

    name: of the export. by: the column that says which file a row is written to (slide layouts). dtype: of
    the vectors, "" = as stored. classes: the order of the labels. root: of the paths in the column `path`.
    tile_um, tile_px, mpp: (stamp) edge of a tile in um and in the encoder's pixels; um per pixel of x and y.
    attributes: (trident, qupath) of the coordinates, beside those that the table says.
    """

    name: str = ""
    by: str = ""
    dtype: str = ""
    classes: tuple[str, ...] = ()
    root: str = ""
    tile_um: float | None = None
    tile_px: int | None = None
    mpp: float | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass
class Rows:
    """What an export is made of, or what was read from one.

    about: identity, provenance, licence. keys: uint8, (n, 16). columns: written name -> n values, see
    `columns.written_columns`. vectors(): the (n, dim) rows in order, some at a time.
    """

    about: dict[str, Any]
    keys: np.ndarray
    columns: dict[str, Any]
    vectors: Callable[[], Iterator[np.ndarray]]

    @property
    def document(self) -> dict[str, Any]:
        """What an export says of itself, with the checksums of its columns and its own."""
        sums = {name: column_sum(values) for name, values in self.columns.items()}
        return seal({**self.about, "column_checksums": sums})

    def parts(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Some rows at a time: which, their vectors in C order, and the checksums, uint64, one a row."""
        start = 0
        for vectors in self.vectors():
            part = slice(start, start + len(vectors))
            vectors = self._converted(np.ascontiguousarray(vectors), start)
            yield part, vectors, row_sums(vectors, self.keys[part])
            start += len(vectors)

    def _converted(self, vectors: np.ndarray, start: int) -> np.ndarray:
        """In the export's type. Raises VectorRefused where a number does not fit, naming the row."""
        with np.errstate(over="ignore"):
            out = vectors.astype(self.dtype, copy=False)
        if out.dtype.itemsize < vectors.dtype.itemsize and not np.isfinite(out).all():
            row = start + int(np.flatnonzero(~np.isfinite(out).all(axis=1))[0])
            raise VectorRefused(
                f"row {row} ({self.ids()[row]}) has a number that {out.dtype} does not hold; export as "
                "float32"
            )
        return out

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.keys), int(self.about["identity"]["dim"])

    @property
    def dtype(self) -> np.dtype:
        """Of the vectors in the export."""
        word = self.about.get("dtype", self.about["identity"]["dtype"])
        return np.dtype(word).newbyteorder("<")

    def whole(self) -> tuple[np.ndarray, np.ndarray]:
        """All vectors and all checksums."""
        out, sums = np.empty(self.shape, self.dtype), np.empty(len(self.keys), np.uint64)
        for part, vectors, some in self.parts():
            out[part], sums[part] = vectors, some
        return out, sums

    def hashes(self) -> list[str]:
        return [key.tobytes().hex() for key in self.keys]

    def ids(self) -> list[str]:
        """The patch_ids, or the content hashes without them."""
        ids = self.columns.get("patch_id")
        return self.hashes() if ids is None else [str(name) for name in ids]

    def text(self, name: str) -> np.ndarray | None:
        """A column as text; None: there is none."""
        return None if name not in self.columns else as_text(self.columns[name])

    def frame(self, classes: tuple[str, ...] = ()) -> pd.DataFrame:
        """The columns with their types; label, domain and split are categories, missing where empty.

        classes : the order of the labels
        """
        columns = {name: pd.Series(values) for name, values in self.columns.items()}
        for name in CATEGORIES:
            if name in columns and columns[name].dtype == object:
                words = columns[name]
                known = sorted({*words} - {""})
                order = list(classes) if name == "label" and {*known} <= {*classes} else known
                columns[name] = pd.Series(pd.Categorical(words.where(words != ""), categories=order))
        return pd.DataFrame({**columns, "content_hash": self.hashes()})

    def codes(self, name: str, classes: tuple[str, ...] = ()) -> tuple[np.ndarray, list[str]]:
        """A column as numbers of its values, int64 (n,), -1 where it is empty, and the values in order."""
        column = self.frame(classes)[name]
        return column.cat.codes.to_numpy(np.int64), [str(word) for word in column.cat.categories]

    def subset(self, store: Store, rows: np.ndarray) -> "Rows":
        """Some of the rows, int (m,)."""
        keys = self.keys[rows]
        columns = {column: values[rows] for column, values in self.columns.items()}
        return Rows(self.about, keys, columns, lambda: (part for _, part in store.iter_blocks(keys, STEP)))


def row_sums(vectors: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The checksum of each row: its vector (little endian, C order) and its key -> uint64, (n,)."""
    joined = np.concatenate([vectors.view(np.uint8).reshape(len(vectors), -1), keys], axis=1)
    return np.array([xxhash.xxh3_64_intdigest(row) for row in joined], np.uint64)


def column_sum(values: Any) -> str:
    """The checksum of a column: of its 64-bit numbers, or else of its texts, each ended by a zero byte."""
    if not is_array(values) or values.dtype.kind not in "iuf":
        return xxhash.xxh3_64_hexdigest("".join(f"{value}\0" for value in as_text(values)).encode())
    wide = np.dtype({"i": "<i8", "u": "<u8", "f": "<f8"}[values.dtype.kind])
    plain = values.astype(wide)
    if wide.kind == "f":
        plain[np.isnan(plain)] = np.nan  # there is more than one
    return xxhash.xxh3_64_hexdigest(plain.tobytes())


def rows_of(store: Store, table: pd.DataFrame | None = None, dtype: str = "") -> Rows:
    """The rows of a table, or of the whole store, with vectors of `dtype` ("": as stored).

    Wider vectors are the same numbers, and an import makes them narrow again. Narrower ones are others: the
    identity in the document is of that type then.

    Raises RowsMissing, InvalidRequest (column names, dtype).
    """
    if table is None:
        store.refresh()
        keys = store.keys()
        hashes = np.array([key.tobytes().hex() for key in keys], dtype=object)
        columns, changed = {"patch_id": hashes}, {}
    else:
        keys = keys_of_table(table)
        if "patch_id" not in table.columns:
            raise InvalidRequest("the table has no column patch_id")
        columns, changed = written_columns(table)
    store.require(keys)
    identity = store.identity
    document: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    if dtype and np.dtype(dtype).itemsize < np.dtype(identity.dtype).itemsize:
        identity = replace(identity, dtype=dtype)
    elif dtype and dtype != identity.dtype:
        document["dtype"] = dtype
    document |= {
        "identity": identity.to_json(),
        "provenance": store.provenance,
        "licence": store.provenance.get("licence", "unknown: ask whoever published the encoder's weights"),
        "columns": changed,
    }
    return Rows(document, keys, columns, lambda: (part for _, part in store.iter_blocks(keys, STEP)))

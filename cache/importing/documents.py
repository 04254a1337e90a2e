"""What every export of patchbank carries, in whichever layout: document, columns, checksums; compared."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...errors import InvalidRequest
from ..backend import seal
from ..columns import KINDS, restored
from ..export.rows import FORMAT, STEP, VERSION, Rows, column_sum, row_sums
from ..filesystem import explained
from ..identity import DTYPES, Identity
from ..index import KEY_BYTES
from ..narrowing import is_array, is_object
from ..table import keys_of_table
from ..untrusted import readable

DAMAGED = "the export is damaged, or was edited: copy or export it again"


class NoDocument(InvalidRequest):
    """A file of a layout that is known, but not an export of patchbank."""


@dataclass(frozen=True)
class Vectors:
    """The vectors in an export: their shape and type, and `read`, which gives them STEP rows at a time."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], Iterator[np.ndarray]]


def in_memory(array: Any) -> Vectors:
    """The rows of an array that can be sliced. Raises ValueError for anything else."""
    if not is_array(array):
        raise ValueError(f"the vectors are a {type(array).__name__}")
    steps = range(0, len(array), STEP)
    return Vectors(array.shape, array.dtype, lambda: (array[start : start + STEP] for start in steps))


def from_frame(path: Path, document: dict[str, Any], frame: pd.DataFrame, vectors: Vectors) -> Rows:
    """The rows of an export that has its columns in a table."""
    keys = keys_of_table(frame)
    sums = frame.pop("row_checksum").to_numpy() if "row_checksum" in frame.columns else None
    columns = {str(name): _values(column) for name, column in frame.items() if name != "content_hash"}
    return checked(path, document, keys, columns, vectors, sums)


def _values(column: pd.Series) -> Any:
    if column.dtype.kind in "iufb":
        nullable = pd.api.types.is_extension_array_dtype(column.dtype)
        return column.array if nullable and column.isna().any() else column.to_numpy()
    return column.astype(object).where(column.notna(), "").to_numpy()


def document_of(path: Path, text: Any) -> dict[str, Any]:
    """The JSON that an export carries. Raises InvalidRequest for a file that patchbank did not export."""
    if not text:
        raise NoDocument(
            f"{path} does not say which encoder and patches its vectors are of (no patchbank document): "
            "it is "
            "of another program; name the encoder (--encoder)"
        )
    document = json.loads(text)
    if not is_object(document):
        raise ValueError("its patchbank document is not a JSON object")
    if document.get("format") != FORMAT or document.get("version") not in range(1, VERSION + 1):
        raise InvalidRequest(
            f"{path} is {document.get('format')!r} version {document.get('version')!r}; this patchbank reads "
            f"{FORMAT!r} version {VERSION}; update patchbank"
        )
    if (document["version"] != 1 or "sum" in document) and seal(document)["sum"] != document.get("sum"):
        raise InvalidRequest(f"{path}: its patchbank document is not what was exported; {DAMAGED}")
    if not isinstance(document.get("identity"), dict) or not isinstance(document.get("provenance"), dict):
        raise ValueError("its patchbank document has no identity or no provenance")
    return document


def checked(
    path: Path,
    document: dict[str, Any],
    keys: np.ndarray,
    columns: dict[str, Any],
    vectors: Vectors,
    sums: np.ndarray | None,
) -> Rows:
    """The rows of an export whose parts fit each other. Raises InvalidRequest."""
    identity = Identity.from_json(document["identity"])
    narrow, wanted = np.dtype(identity.dtype), np.dtype(document.get("dtype", identity.dtype))
    if wanted.name not in DTYPES or wanted.itemsize < narrow.itemsize:
        raise InvalidRequest(f"{path}: its document has vectors of {wanted} for an identity of {narrow}")
    if vectors.dtype.newbyteorder("=") != wanted or vectors.shape != (len(keys), identity.dim):
        raise InvalidRequest(
            f"{path} has vectors of {vectors.dtype} {vectors.shape} for {len(keys)} content hashes; its "
            f"document says {wanted}, {identity.dim} each: it was changed after the export"
        )
    if keys.dtype != np.uint8 or keys.shape != (len(keys), KEY_BYTES):
        raise InvalidRequest(f"{path}: content_hash is {keys.dtype} {keys.shape}, not one hash a row")
    changed = document.get("columns", {})
    for name, values in columns.items():
        about = changed.get(name) if is_object(changed) else None
        text = values.dtype == object and all(isinstance(value, str) for value in values)
        if values.shape != (len(keys),) or not (text or values.dtype.kind in "iufb"):
            raise InvalidRequest(f"{path}: the column {name!r} does not have one number or text per row")
        if is_object(about) and about.get("kind") in KINDS:
            columns[name] = restored(values, about["kind"], name)

    wanted_sums = document.get("column_checksums", {})
    if "sum" in document:
        if sums is None or sums.dtype.kind != "u" or sums.shape != (len(keys),):
            raise InvalidRequest(f"{path} does not have one checksum per row; {DAMAGED}")
        if not is_object(wanted_sums) or wanted_sums.keys() != columns.keys():
            raise InvalidRequest(f"{path} has different columns from those exported; {DAMAGED}")
        for name, values in columns.items():
            if column_sum(values) != wanted_sums[name]:
                raise InvalidRequest(f"{path}: the column {name!r} is not what was exported; {DAMAGED}")

    def read() -> Iterator[np.ndarray]:
        start = 0
        with readable(path, "export"), explained("read", path):
            for part in vectors.read():
                if sums is not None and "sum" in document:
                    plain = np.ascontiguousarray(part, wanted.newbyteorder("<"))
                    here = slice(start, start + len(part))
                    bad = np.flatnonzero(row_sums(plain, keys[here]) != sums[here])
                    if len(bad):
                        raise InvalidRequest(
                            f"{path}: row {start + bad[0]} is not what was exported (its vector or its "
                            f"content hash); {DAMAGED}"
                        )
                start += len(part)
                yield part if wanted == narrow else _narrowed(part, narrow, path)
        if start != len(keys):
            raise InvalidRequest(f"{path} has {start} vectors and {len(keys)} content hashes")

    return Rows(document, keys, columns, read)


def _narrowed(part: np.ndarray, dtype: np.dtype, path: Path) -> np.ndarray:
    """The numbers in the type that they were stored in. Raises InvalidRequest where they are others then."""
    with np.errstate(over="ignore"):
        out = part.astype(dtype)
    if not np.array_equal(out.astype(part.dtype), part):
        raise InvalidRequest(f"{path} has numbers that its identity's type {dtype} does not hold; {DAMAGED}")
    return out

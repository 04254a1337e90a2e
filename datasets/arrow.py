"""Columns of texts in Arrow's memory, and what is done with millions of them at once."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

_StringDtype: Any = pd.StringDtype
try:  # texts in Arrow's memory: 8 bytes a row and the letters; compared, they give numpy's bool
    TEXT: Any = _StringDtype("pyarrow", na_value=np.nan)
except TypeError:  # pandas 2.2
    TEXT = _StringDtype("pyarrow_numpy")
_BLOCK = 1 << 14  # texts that are hashed at once


def are_texts(column: pd.Series) -> bool:
    """Whether an object column holds Python strings alone."""
    return column.dtype == object and pd.api.types.infer_dtype(column, skipna=False) == "string"


def in_arrow(column: pd.Series) -> pd.Series:
    """Python strings in Arrow's memory; as they are where one of them is not UTF-8."""
    try:
        return column.astype(TEXT)
    except UnicodeEncodeError:
        return column


def of_arrow(column: pa.Array | pa.ChunkedArray) -> pd.Series:
    """A column (dtype TEXT) of Arrow's texts, not copied."""
    return pd.Series(TEXT.__from_arrow__(column))


def chunks_of(column: pd.Series) -> list[Any]:
    """The Arrow arrays of a column (dtype TEXT)."""
    array: Any = column.array.__arrow_array__()  # pyright: ignore[reportAttributeAccessIssue]
    return list(array.chunks) if isinstance(array, pa.ChunkedArray) else [array]


def hex_hashes(hashes: np.ndarray) -> pd.Series:
    """uint8 (n, w) as texts (dtype TEXT) of 2 w hex digits."""
    n, width = hashes.shape
    digits = np.frombuffer(np.ascontiguousarray(hashes).tobytes().hex().encode(), np.uint8)
    raw = pa.FixedSizeBinaryArray.from_buffers(pa.binary(2 * width), n, [None, pa.py_buffer(digits)])
    return of_arrow(raw.cast(pa.large_binary()).cast(pa.large_string()))


def of_hex(column: pd.Series, width: int = 16) -> np.ndarray:
    """uint8 (n, width) of texts that all have 2 width hex digits. Raises ValueError for others."""
    parts = [np.zeros((0, width), np.uint8)]
    for chunk in chunks_of(column):
        start, data = _bytes_of(chunk)
        if (np.diff(start) != 2 * width).any():
            raise ValueError(f"texts that have not {2 * width} hex digits")
        parts.append(
            np.frombuffer(bytes.fromhex(data.tobytes().decode("ascii")), np.uint8).reshape(-1, width)
        )
    return np.concatenate(parts)


def all_differ(column: pd.Series) -> bool:
    """Whether no text of a column (dtype TEXT) occurs twice; False may, by chance, be wrong.

    Compared are 64-bit hashes, 8 bytes a row: the sum over a text's bytes b_i of (b_i + 1) w_i modulo 2^64,
    with random odd w_i (multilinear hashing, Dietzfelbinger, STACS 1996). Two texts that differ share one
    with a probability of at most 2^-55, as a difference of two bytes has at most eight factors of 2.
    """
    parts = [_bytes_of(chunk) for chunk in chunks_of(column)]
    longest = max((int(np.diff(offsets).max(initial=0)) for offsets, _ in parts), default=0)
    weights = np.random.default_rng(0).integers(0, 2**63, longest, np.uint64) * 2 + 1
    sums = [np.zeros(0, np.uint64)]
    for offsets, data in parts:
        for lo in range(0, len(offsets) - 1, _BLOCK):
            start = offsets[lo : lo + _BLOCK + 1]
            length = np.diff(start)
            place = np.arange(start[-1] - start[0]) - np.repeat(start[:-1] - start[0], length)
            terms = (data[start[0] : start[-1]].astype(np.uint64) + 1) * weights[place]
            # one 0 more, so that a text without letters at the end has a place to begin at
            of_rows = np.add.reduceat(np.append(terms, np.uint64(0)), start[:-1] - start[0])
            sums.append(np.where(length > 0, of_rows, np.uint64(0)))
    hashes = np.sort(np.concatenate(sums))
    return not bool((hashes[1:] == hashes[:-1]).any())


def _bytes_of(chunk: Any) -> tuple[np.ndarray, np.ndarray]:
    """(where each text begins and the last ends, int64 (n + 1,); the bytes of all, uint8) without a copy."""
    kind = np.int64 if pa.types.is_large_string(chunk.type) else np.int32
    _, offsets, data = chunk.buffers()
    if offsets is None or not len(chunk):
        return np.zeros(len(chunk) + 1, np.int64), np.zeros(0, np.uint8)
    start = np.frombuffer(offsets, kind)[chunk.offset : chunk.offset + len(chunk) + 1].astype(np.int64)
    whole = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    return start - start[0], whole[start[0] : start[-1]]

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
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: a product spreads each bit over those above it
_LAST_WORDS = 3  # of 8 bytes, by which most ids differ already


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


def are_hex(column: pd.Series, width: int = 16) -> bool:
    """Whether all texts of a column (dtype TEXT) are 2 width lower-case hex digits or empty."""
    for chunk in chunks_of(column):
        offsets, data = _bytes_of(chunk)
        length = np.diff(offsets)
        if ((length != 2 * width) & (length != 0)).any():
            return False
        for lo in range(0, len(data), 16 * _BLOCK):
            letters = data[lo : lo + 16 * _BLOCK]
            # below "0" and "a" the differences wrap around to large numbers
            if not ((letters - np.uint8(48) < 10) | (letters - np.uint8(97) < 6)).all():
                return False
    return True


def repeated(column: pd.Series) -> np.ndarray:
    """Which texts of a column (dtype TEXT) occur more than once: bool (n,).

    Texts are compared where their 64-bit hashes are equal: first those of their last bytes, which differ in
    most columns of ids, then those of all bytes.
    """
    found = np.zeros(len(column), bool)
    for words in (_LAST_WORDS, None):
        hashes = _hashes_of(column, words)
        ordered = np.sort(hashes)
        shared = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        if not len(shared):
            return found
        at = np.minimum(np.searchsorted(shared, hashes), len(shared) - 1)
        rows = np.flatnonzero(shared[at] == hashes)
        if words is None or len(rows) < len(column) / 8:
            break
    found[rows] = column.iloc[rows].duplicated(keep=False).to_numpy(bool)
    return found


def _hashes_of(column: pd.Series, words: int | None) -> np.ndarray:
    """uint64 (n,), see `_hashes`."""
    hashes = [np.zeros(0, np.uint64)]
    for chunk in chunks_of(column):
        offsets, data = _bytes_of(chunk)
        for lo in range(0, len(chunk), _BLOCK):
            hashes.append(_hashes(offsets[lo : lo + _BLOCK + 1], data, words))
    return np.concatenate(hashes)


def _hashes(offsets: np.ndarray, data: np.ndarray, words: int | None) -> np.ndarray:
    """uint64 (n,) of the length and the last `words` x 8 bytes (None: all) of the texts between offsets.

    8 bytes at a time, the last ones first, are taken in by exclusive or, product and shift, as in FNV and
    MurmurHash.
    """
    length = np.diff(offsets)
    end = offsets[1:] - offsets[0]
    padded = np.zeros(int(end[-1]) + 8, np.uint8)
    padded[8:] = data[offsets[0] : offsets[-1]]
    ending = np.ndarray((len(padded) - 7,), "<u8", padded, strides=(1,))  # ending[i]: 8 bytes before byte i
    hashes = length.astype(np.uint64) * _ODD
    most = int(length.max()) if words is None else min(8 * words, int(length.max()))
    every = min(most, int(length.min())) // 8 * 8
    for at in range(0, every, 8):
        _take_in(hashes, ending[end - at])
    for at in range(every, most, 8):
        some = np.flatnonzero(length > at)
        before = np.uint64(8) * (8 - np.minimum(length[some] - at, 8)).astype(np.uint64)  # bits of others
        of_some = hashes[some]
        _take_in(of_some, ending[end[some] - at] >> before)
        hashes[some] = of_some
    return hashes


def _take_in(hashes: np.ndarray, words: np.ndarray) -> None:
    hashes ^= words
    hashes *= _ODD
    hashes ^= hashes >> np.uint64(29)


def _bytes_of(chunk: Any) -> tuple[np.ndarray, np.ndarray]:
    """(where each text begins and the last ends, int64 (n + 1,); the bytes of all, uint8) without a copy."""
    kind = np.int64 if pa.types.is_large_string(chunk.type) else np.int32
    _, offsets, data = chunk.buffers()
    if offsets is None or not len(chunk):
        return np.zeros(len(chunk) + 1, np.int64), np.zeros(0, np.uint8)
    start = np.frombuffer(offsets, kind)[chunk.offset : chunk.offset + len(chunk) + 1].astype(np.int64)
    whole = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    return start - start[0], whole[start[0] : start[-1]]

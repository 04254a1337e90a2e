"""Finds the rows of content hashes: one sorted array, no dictionary (24 bytes a row)."""

import numpy as np

from ..errors import InvalidRequest

KEY_BYTES = 16


def as_keys(keys: object) -> np.ndarray:
    """Checked content hashes: uint8, (n, 16), C order."""
    array = np.asarray(keys)
    if array.dtype != np.uint8 or array.ndim != 2 or array.shape[1] != KEY_BYTES:
        raise InvalidRequest(f"keys have to be uint8 (n, {KEY_BYTES}); these are {array.dtype} {array.shape}")
    return np.ascontiguousarray(array)


def _halves(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    words = keys.view("<u8")
    return words[:, 0], words[:, 1]


class KeyIndex:
    """From content hash to the number of its first row.

    keys : uint8, (n, 16); the same key may stand in several rows.
    """

    def __init__(self, keys: np.ndarray) -> None:
        high, low = _halves(as_keys(keys))
        rows = np.argsort(high, kind="stable")
        high = high[rows]
        low = low[rows]
        self._ties = False
        if (high[1:] == high[:-1]).any():  # the same key twice, or two keys with equal halves
            order = np.lexsort((rows, low, high))
            high, low, rows = high[order], low[order], rows[order]
            first = np.ones(len(rows), dtype=bool)
            first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
            high, low, rows = high[first], low[first], rows[first]
            self._ties = bool((high[1:] == high[:-1]).any())
        self._high, self._low, self._rows = high, low, rows

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The row of each key, -1 where there is none: int64, (n,)."""
        high, low = _halves(as_keys(keys))
        found = np.full(len(high), -1, dtype=np.int64)
        if not len(self._rows) or not len(high):
            return found
        last = len(self._rows) - 1
        position = np.minimum(np.searchsorted(self._high, high), last)
        hit = (self._high[position] == high) & (self._low[position] == low)
        found[hit] = self._rows[position[hit]]
        if self._ties:
            for i in np.flatnonzero(~hit & (self._high[position] == high)):
                at = position[i]
                while at <= last and self._high[at] == high[i] and self._low[at] != low[i]:
                    at += 1
                if at <= last and self._high[at] == high[i]:
                    found[i] = self._rows[at]
        return found

    def first_rows(self) -> np.ndarray:
        """The rows that are found, ascending: all but repetitions. int64, (len(self),)."""
        return np.sort(self._rows)

"""Finds the rows of content hashes: sorted columns, no dictionary (20 bytes a row, 130 MB for a batch).

The columns lie in pieces of falling length. A new piece is merged with those before it that are not longer,
column by column, so that growing row by row costs n log n, and memory never holds two copies of everything.
"""

import numpy as np

from ..errors import InvalidRequest

KEY_BYTES = 16
NEAR = 1 << 12  # keys that are searched for in the same part of a column
BATCH = 1 << 21  # rows that are sorted, or looked up, at a time; bounds what is needed beside the columns


def as_keys(keys: object) -> np.ndarray:
    """Checked content hashes: uint8, (n, 16), C order."""
    array = np.asarray(keys)
    if array.dtype != np.uint8 or array.ndim != 2 or array.shape[1] != KEY_BYTES:
        raise InvalidRequest(f"keys have to be uint8 (n, {KEY_BYTES}); got {array.dtype} {array.shape}")
    return np.ascontiguousarray(array)


class KeyIndex:
    """From content hash to the number of its first row.

    keys : uint8, (n, 16), of the rows 0 to n - 1; a key may occur in several rows.
    """

    def __init__(self, keys: np.ndarray | None = None) -> None:
        self._pieces: list[_Piece] = []  # no key is in two of them
        if keys is not None:
            self.add(keys, 0)

    def __len__(self) -> int:
        """Distinct keys."""
        return sum(map(len, self._pieces))

    def add(self, keys: np.ndarray, first: int) -> None:
        """Take in rows that come after all others: `first`, first + 1, ...

        Interrupted, the index is spoilt: it has to be rebuilt.
        """
        keys = as_keys(keys)
        for start in range(0, len(keys), BATCH):
            piece = _Piece(keys[start : start + BATCH], first + start)
            piece.keep(self._find(piece.high, piece.low) < 0)
            if not len(piece):
                continue
            while self._pieces and len(self._pieces[-1]) <= len(piece):
                piece.merge(self._pieces.pop())
            self._pieces.append(piece)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The row of each key, -1 if none: int64, (n,)."""
        high, low = _halves(as_keys(keys))
        rows = np.empty(len(high), dtype=np.int64)
        for start in range(0, len(high), BATCH):
            part = slice(start, start + BATCH)
            order = np.argsort(high[part])  # several times as fast: searching ascending keys misses no cache
            rows[start + order] = self._find(high[part][order], low[part][order])
        return rows

    def _find(self, high: np.ndarray, low: np.ndarray) -> np.ndarray:
        rows = np.full(len(high), -1, dtype=np.int64)
        for piece in self._pieces:
            left = np.flatnonzero(rows < 0)
            if not len(left):
                break
            rows[left] = piece.find(high[left], low[left])
        return rows

    def first_rows(self) -> np.ndarray:
        """The rows that are found, ascending: all but repetitions. int64, (len(self),)."""
        rows = np.empty(len(self), dtype=np.int64)
        np.concatenate([np.empty(0, np.int64), *(piece.rows for piece in self._pieces)], out=rows)
        rows.sort()
        return rows


class _Piece:
    """Distinct keys in the order of their first halves: columns `high`, `low` (the halves) and `rows`."""

    def __init__(self, keys: np.ndarray, first: int) -> None:
        high, low = _halves(keys)
        order = np.argsort(high)  # a stable one takes five times as long, and ties are put in order below
        self.high, self.low = high[order], low[order]
        self.rows = (order + first).astype(np.uint32 if first + len(keys) < 1 << 32 else np.int64)
        self._look_for_ties()
        if self._ties:  # the same key twice, or two keys with equal first halves
            order = np.lexsort((self.rows, self.low, self.high))
            self.high, self.low, self.rows = self.high[order], self.low[order], self.rows[order]
            new = (np.diff(self.high) != 0) | (np.diff(self.low) != 0)
            self.keep(np.concatenate([[True], new]))
            self._look_for_ties()

    def __len__(self) -> int:
        return len(self.rows)

    def _look_for_ties(self) -> None:
        self._ties = bool((self.high[1:] == self.high[:-1]).any())

    def keep(self, mask: np.ndarray) -> None:
        if not mask.all():
            self.high, self.low, self.rows = self.high[mask], self.low[mask], self.rows[mask]

    def merge(self, other: "_Piece") -> None:
        """Take in a piece without a key of ours; it is used up, so that its columns go one by one."""
        own_places = _places(other.high, self.high) + np.arange(len(self))
        of_other = np.ones(len(self) + len(other), dtype=bool)
        of_other[own_places] = False
        for name in ("high", "low", "rows"):
            ours, more = getattr(self, name), getattr(other, name)
            merged = np.empty(len(of_other), dtype=np.result_type(ours, more))
            merged[own_places], merged[of_other] = ours, more
            setattr(self, name, merged)
            delattr(other, name)
        self._look_for_ties()

    def find(self, high: np.ndarray, low: np.ndarray) -> np.ndarray:
        """The row of each key given by its halves, the first ones ascending, -1 if none: int64."""
        last = len(self) - 1
        position = _places(self.high, high)
        np.minimum(position, last, out=position)
        same = self.high[position] == high
        hit = same & (self.low[position] == low)
        rows = np.where(hit, self.rows[position].astype(np.int64), -1)
        if self._ties:
            for i in np.flatnonzero(same & ~hit):
                at = position[i]
                while at <= last and self.high[at] == high[i] and self.low[at] != low[i]:
                    at += 1
                if at <= last and self.high[at] == high[i]:
                    rows[i] = self.rows[at]
        return rows


def _places(column: np.ndarray, high: np.ndarray) -> np.ndarray:
    """np.searchsorted of ascending numbers, int64: some at a time, in the short part of the column that they
    fall in, which stays in the processor's cache.
    """
    ends = np.append(np.searchsorted(column, high[::NEAR]), len(column))
    places = np.empty(len(high), np.int64)
    for start, first, end in zip(range(0, len(high), NEAR), ends[:-1], ends[1:], strict=True):
        part = slice(start, start + NEAR)
        places[part] = first + np.searchsorted(column[first:end], high[part])
    return places


def _halves(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    words = keys.view("<u8")
    return words[:, 0], words[:, 1]

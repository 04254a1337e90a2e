"""Features that are larger than memory: rows that stay in a file and are read block by block.

A feature set is kept in memory where that takes no more than the limit (`memory_limit`): NUMBER_BYTES for
each number of all rows that a study asks for. Else its rows are written once, in the order of the manifests
and compared with their checksums, to a file without a name in the bank's folder (in TMPDIR where the bank
cannot be written to), which the system removes with the process. Every pass then reads this file front to
back.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.manifest import Manifest
from ..errors import InvalidRequest, OutputError, ProbeError
from ..files import available_memory
from .config import parse_features
from .features import columns_in, iter_set, load_set, stored_dtype

BLOCK_ROWS = 8192  # that are read, transformed and scored at once
NUMBER_BYTES = 12  # of memory for a number: float32 as loaded, preprocessed, and the solver's own copy
SHARE = 0.5  # of the memory that is free, which features may take
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class FileRows:
    """Rows of a matrix in a file, float32 when read: .shape, .dtype, and [lo:hi] -> array.

    X : (m, d), usually a np.memmap; index : which of its rows, in which order: a range or int (n,)
    """

    def __init__(self, X: np.ndarray, index: range | np.ndarray) -> None:
        self.X, self.index = X, index
        self.shape = (len(index), X.shape[1])
        self.dtype = np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: slice) -> np.ndarray:
        """float32 (rows, d), in memory."""
        index = self.index[rows]
        part = slice(index.start, index.stop) if isinstance(index, range) else index
        return np.asarray(self.X[part], dtype=np.float32)

    def select(self, rows: np.ndarray) -> "FileRows":
        """Some rows: bool (n,), or int (k,) for their numbers. Nothing is read."""
        return FileRows(self.X, np.asarray(self.index)[rows])


Features = np.ndarray | FileRows


def select(X: Any, rows: np.ndarray) -> Any:
    """X[rows], which stay in their file if they are in one; rows : bool (n,) or int (k,)."""
    return X[rows] if isinstance(X, np.ndarray) else X.select(rows)


def stack(X: Features, V: Features) -> Features:
    """The rows of X, then those of V, of one feature set."""
    if isinstance(X, FileRows) and isinstance(V, FileRows) and X.X is V.X:
        return FileRows(X.X, np.concatenate([np.asarray(X.index), np.asarray(V.index)]))
    return np.concatenate([np.asarray(X[:]), np.asarray(V[:])])


def blocks(n: int) -> Iterator[slice]:
    """Consecutive slices of n rows."""
    return (slice(lo, min(n, lo + BLOCK_ROWS)) for lo in range(0, n, BLOCK_ROWS))


def memory_limit(asked: str | float | None = None) -> float:
    """Bytes that the features of a study may take in memory.

    asked : bytes, or a text such as "8GB" or "500 MB" (powers of ten); None: SHARE of what is free now
    Raises InvalidRequest for anything else.
    """
    if asked is None:
        return SHARE * available_memory()
    text = str(asked).strip().upper()
    number = text.rstrip("KMGTB ")
    try:
        size = float(number) * UNITS[text[len(number) :].strip()]
    except (ValueError, KeyError):
        size = -1.0
    if not 0 <= size < float("inf"):
        raise InvalidRequest(f"memory is a size such as 8GB or 500MB, not {asked!r}")
    return size


def size_of(name: str, manifests: Sequence[Manifest], bank: Any) -> int:
    """Bytes of memory that the rows of a feature set would take, all of them at once."""
    return NUMBER_BYTES * sum(map(len, manifests)) * columns_in(name, bank)


def refuse_large(
    features: Sequence[str],
    manifests: Sequence[Manifest],
    bank: Any,
    *,
    limit: float,
    what: str,
    instead: str = "",
) -> None:
    """Raises ProbeError if a feature set does not fit in memory.

    what : needs all rows at once; instead : what else could be done
    """
    rows = sum(map(len, manifests))
    for name in features:
        if (size := size_of(name, manifests, bank)) > limit:
            most = int(limit / size * rows / len(manifests))
            fits = f" (up to {most:,} fit)" if most else ""
            raise ProbeError(
                f"{name}: {rows:,} rows x {columns_in(name, bank):,} columns take {size / 1e9:,.1f} GB of "
                f"memory, more than the {limit / 1e9:,.1f} GB that features may take (--memory), and {what} "
                f"needs all of them at once. Fix: fewer rows of each set, --sample ROWS{fits}; or more "
                f"memory, --memory SIZE{instead}"
            )


def features_of(
    name: str, manifests: Sequence[Manifest], bank: Any, *, memory: float = float("inf")
) -> list[Features]:
    """The features of each manifest's rows: arrays float32 (n, d) if all of them take at most `memory` bytes
    of memory, else `FileRows`. Raises OutputError where the file cannot be written.
    """
    if size_of(name, manifests, bank) <= memory:
        return [load_set(manifest, name, bank=bank) for manifest in manifests]
    lengths = [len(manifest) for manifest in manifests]
    shape = (sum(lengths), columns_in(name, bank))
    X = _written(name, manifests, bank, shape)
    ends = np.cumsum([0, *lengths]).tolist()
    return [FileRows(X, range(lo, hi)) for lo, hi in pairwise(ends)]


def _written(name: str, manifests: Sequence[Manifest], bank: Any, shape: tuple[int, int]) -> np.ndarray:
    """The rows of all manifests as a memory map of a file without a name."""
    features = parse_features(name)
    dtype = stored_dtype(features, bank)
    folder = _folder(bank)
    size = shape[0] * shape[1] * dtype.itemsize
    if (room := shutil.disk_usage(folder).free) < size:
        raise OutputError(
            f"{folder} has room for {room / 1e9:,.1f} GB, and the rows of {name} take {size / 1e9:,.1f} GB: "
            "they are larger than memory, and are read from a file. Fix: make room there, or set --memory "
            "higher if there is more"
        )
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".features-") as file:
            for manifest in manifests:
                for block in iter_set(manifest, features, bank=bank, rows=BLOCK_ROWS, dtype=dtype):
                    file.write(np.ascontiguousarray(block).data)
            file.flush()
            return np.memmap(file, dtype, "r", shape=shape)
    except OSError as error:
        raise OutputError(f"cannot write the rows of {name} to a file in {folder}: {error}") from error


def _folder(bank: Any) -> Path:
    """The bank's folder if it is a local one that can be written to, else that of temporary files."""
    path = getattr(bank, "path", bank)
    if isinstance(path, str | Path) and Path(path).is_dir() and os.access(path, os.W_OK | os.X_OK):
        return Path(path)
    return Path(tempfile.gettempdir())

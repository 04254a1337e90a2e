"""Embeddings of another program into a store: checked, keyed, never mixed with computed ones."""

import hashlib
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ...errors import InvalidRequest
from ..bank import Bank
from ..identity import Identity
from ..index import KEY_BYTES, KeyIndex
from ..store import Store
from .source import Source

ORIGIN = "imported"  # of an identity's encoder; computed ones have none
TOKENS = "imported"  # which output of the encoder it was is not known
CLOSE = 0.02  # of a vector's length: what may differ where one patch was embedded twice


def identity_of(
    encoder: str, dim: int, dtype: str, *, digest: str, revision: str = "", view: str = "full"
) -> Identity:
    """The identity of imported embeddings: the encoder as it was declared, and where they are from.

    digest : of the source (`Source.digest`). revision : the user's word for weights and preprocessing;
    sources of
        one encoder and one revision are one store, others one store each
    """
    told = {"revision": revision} if revision else {"source": digest}
    return Identity(
        encoder={"id": encoder, "origin": ORIGIN, **told},
        preprocess={},
        view=view,
        tokens=TOKENS,
        precision="fp32",
        dtype=dtype,
        dim=dim,
    )


def checked_parts(source: Source, dtype: str) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first row, vectors as they are stored), some at a time.

    Raises InvalidRequest naming file and row: numbers that are missing, infinite or too large for `dtype`,
    rows that the file lacks.
    """
    rows, dim = source.vectors.shape
    start = 0
    for part in source.vectors.read():
        if part.ndim != 2 or part.shape[1] != dim or start + len(part) > rows:
            raise InvalidRequest(f"{source.path} has other vectors than it says, {part.shape} at row {start}")
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(part, np.dtype(dtype).newbyteorder("<"))
        odd = np.flatnonzero(~np.isfinite(stored).all(axis=1))
        if len(odd):
            row = odd[0]
            vector = part[row].astype(np.float64)
            what = (
                f"has {int(np.isnan(vector).sum())} NaN and {int(np.isinf(vector).sum())} infinite numbers"
                if not np.isfinite(vector).all()
                else f"has {np.abs(vector).max():.6g}, which {dtype} does not hold"
                + (" (--dtype float32)" if dtype == "float16" else "")
            )
            more = f" ({len(odd)} such rows among {len(part)})" if len(odd) > 1 else ""
            raise InvalidRequest(f"{source.row(start + int(row))} {what}{more}")
        yield start, stored
        start += len(part)
    if start != rows:
        raise InvalidRequest(f"{source.path} has {start} vectors, and says that it has {rows}")


def vector_keys(vectors: np.ndarray) -> np.ndarray:
    """A key for each vector, the same for equal ones in whichever type: uint8 (n, 16).

    BLAKE2b with 16 bytes of output over `patchbank-vector`, a zero byte, the length (unsigned 32-bit) and the
    numbers as float32, little endian; -0 is 0.
    """
    start = hashlib.blake2b(
        b"patchbank-vector\0" + struct.pack("<I", vectors.shape[1]), digest_size=KEY_BYTES
    )
    wide = vectors.astype("<f4") + np.float32(0)
    out = np.empty((len(wide), KEY_BYTES), np.uint8)
    for i, vector in enumerate(wide):
        digest = start.copy()
        digest.update(vector.data)
        out[i] = np.frombuffer(digest.digest(), np.uint8)
    return out


def scan(source: Source, dtype: str) -> np.ndarray:
    """Reads and checks every vector; their keys, uint8 (n, 16). Raises as `checked_parts`."""
    parts = [vector_keys(vectors) for _, vectors in checked_parts(source, dtype)]
    return np.concatenate(parts) if parts else np.empty((0, KEY_BYTES), np.uint8)


def store_source(
    bank: Bank,
    identity: Identity,
    source: Source,
    keys: np.ndarray,
    seen: np.ndarray,
    *,
    provenance: Mapping[str, Any],
    backend: str = "zarr",
) -> tuple[Store, int]:
    """Writes the rows that the store does not have; returns it and how many they were.

    keys : uint8 (n, 16), of the patches. seen : `scan` of the source: a file that was changed since is
    refused

    Raises InvalidRequest where two rows of one key, or a row and the store's of that key, are of different
    vectors; StoreError.
    """
    first = KeyIndex(keys).first_rows()
    is_first = np.zeros(len(keys), bool)
    is_first[first] = True
    _refuse_contradictions(source, identity, keys)
    store = bank.open_store(identity, create=True, provenance=provenance, backend=backend)
    there = store.contains(keys)
    ids = source.table["patch_id"].tolist()
    added = 0
    with store.writer(name="import") as writer:
        for start, vectors in checked_parts(source, identity.dtype):
            rows = slice(start, start + len(vectors))
            if not np.array_equal(vector_keys(vectors), seen[rows]):
                raise InvalidRequest(f"{source.path} was changed while it was read; import it again")
            known = np.flatnonzero(there[rows])
            if len(known):
                _refuse_others(
                    source, start + known, vectors[known], store.load(keys[start + known]), store.name
                )
            new = np.flatnonzero(is_first[rows] & ~there[rows])
            writer.append(keys[start + new], vectors[new], [ids[start + i] for i in new])
            added += len(new)
    store.refresh()
    return store, added


def _refuse_contradictions(source: Source, identity: Identity, keys: np.ndarray) -> None:
    """Raises InvalidRequest where rows of one key have different vectors."""
    of = KeyIndex(keys).find(keys)
    repeated = {int(first) for first, row in zip(of, range(len(of)), strict=True) if first != row}
    if not repeated:
        return
    kept: dict[int, np.ndarray] = {}
    for start, vectors in checked_parts(source, identity.dtype):
        for i, vector in enumerate(vectors):
            first = int(of[start + i])
            if first in repeated and not _close(vector, kept.setdefault(first, vector)):
                raise InvalidRequest(
                    f"{source.row(start + i)} and {source.row(first)} are of one patch, and their "
                    "embeddings are "
                    "different: are the rows in the order of the table?"
                )


def _refuse_others(
    source: Source, rows: np.ndarray, vectors: np.ndarray, stored: np.ndarray, name: str
) -> None:
    for row, vector, other in zip(rows.tolist(), vectors, stored, strict=True):
        if not _close(vector, other):
            raise InvalidRequest(
                f"{source.row(row)}: the store {name} has another embedding of this patch; declare another "
                "--revision, or remove the store (`patchbank cache rm`)"
            )


def _close(one: np.ndarray, other: np.ndarray) -> bool:
    a, b = one.astype(np.float64), other.astype(np.float64)
    return float(np.linalg.norm(a - b)) <= CLOSE * float(np.linalg.norm(a))

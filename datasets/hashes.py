"""Content hashes: from the manifest where it has them, else from an index of files that were decoded before.

The index is a folder of immutable files, each a NumPy array uint8 (n, 32): 16 bytes that name a file as it
was (path, member, size, modification time), then 16 bytes of content hash. A changed file has another name in
the index, so that it is decoded again. Adding means writing one more file under a temporary name and renaming
it: many processes may add at once, and a crash leaves nothing half.
"""

import hashlib
import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import ManifestError
from ..files import write_atomically
from .manifest import Manifest, load_manifest

SUFFIX = ".hashes1.npy"  # the number is the format's version


def resolve(manifest: Manifest, index: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(hashes uint8 (n, 16), known bool (n,)); rows that are not known are zeros.

    The manifest's content_hash column goes first; rows without are looked up in the folder `index`, if given.
    Raises ManifestError for a damaged index file.
    """
    n = len(manifest)
    hashes, known = np.zeros((n, 16), np.uint8), np.zeros(n, bool)
    if "content_hash" in manifest.table.columns:
        column = manifest.table["content_hash"].to_numpy(dtype=object)
        known = column != ""
        hashes[known] = np.frombuffer(bytes.fromhex("".join(column[known])), np.uint8).reshape(-1, 16)
    open_rows = np.flatnonzero(~known)
    entries = None if index is None or not open_rows.size else _read(Path(index))
    if entries is not None and len(entries):
        names, there = _names(manifest, open_rows)
        stored = np.ascontiguousarray(entries[:, :16]).view("V16").ravel()
        order = np.argsort(stored, kind="stable")
        wanted = names.view("V16").ravel()
        at = np.searchsorted(stored, wanted, sorter=order, side="right") - 1  # the newest of equals
        hit = there & (at >= 0) & (stored[order[at]] == wanted)
        hashes[open_rows[hit]] = entries[order[at[hit]], 16:]
        known[open_rows[hit]] = True
    return hashes, known


def known_hashes(manifest: Path, bank: str) -> list[str]:
    """The content hash of each row of a manifest as 32 hex digits, "" where it is not known.

    Known are those in the manifest, and those that `extract` found with this bank (a local folder).
    """
    loaded = load_manifest(manifest)
    hashes, known = resolve(loaded, None if "://" in bank else Path(bank) / "hashes")
    return [word if there else "" for word, there in zip(hex_hashes(hashes), known, strict=True)]


def record(manifest: Manifest, rows: Sequence[int] | np.ndarray, hashes: np.ndarray, index: Path) -> None:
    """Add the content hashes (uint8, (len(rows), 16)) of these rows to the folder `index`, atomically.

    Rows whose file has disappeared meanwhile are left out.
    """
    rows = np.asarray(rows, dtype=np.intp)
    if hashes.shape != (len(rows), 16) or hashes.dtype != np.uint8:
        raise ValueError(f"hashes must be uint8 ({len(rows)}, 16), not {hashes.dtype} {hashes.shape}")
    if not len(rows):
        return
    names, there = _names(manifest, rows)
    entries = np.concatenate([names, hashes], axis=1)[there]

    def write(to: Path) -> None:
        with to.open("wb") as stream:
            np.save(stream, entries, allow_pickle=False)

    # in the order of time, so that the newest entry of a name is the last
    write_atomically(Path(index) / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}{SUFFIX}", write)


def hex_hashes(hashes: np.ndarray) -> list[str]:
    """uint8 (n, 16) as the 32 hex digits that the manifest's column holds."""
    text = np.ascontiguousarray(hashes).tobytes().hex()
    return [text[i : i + 32] for i in range(0, len(text), 32)]


def _read(index: Path) -> np.ndarray:
    parts = []
    for file in sorted(index.glob(f"*{SUFFIX}")):
        try:
            part = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ManifestError(
                f"{file} is damaged ({error}); delete it: the images it knew are decoded once more."
            ) from error
        if part.dtype != np.uint8 or part.ndim != 2 or part.shape[1] != 32:
            raise ManifestError(
                f"{file} is no hash index (uint8 (n, 32)) but {part.dtype} {part.shape}; delete it."
            )
        parts.append(part)
    return np.concatenate(parts) if parts else np.zeros((0, 32), np.uint8)


def _names(manifest: Manifest, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(names uint8 (m, 16), whether the file is there (m,)); a container is asked for its size only once."""
    root = os.path.abspath(manifest.root)  # noqa: PTH100
    paths = manifest.table["path"].to_numpy(dtype=object)
    states: dict[str, bytes | None] = {}
    names, there = np.zeros((len(rows), 16), np.uint8), np.zeros(len(rows), bool)
    for k, i in enumerate(rows):
        file, _, member = paths[i].partition("::")
        if file not in states:
            path = os.path.join(root, file)  # noqa: PTH118
            try:
                status = os.stat(path)  # noqa: PTH116
                states[file] = f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode()
            except OSError:
                states[file] = None
        state = states[file]
        if state is not None:
            digest = hashlib.blake2b(state + member.encode(), digest_size=16).digest()
            names[k] = np.frombuffer(digest, np.uint8)
            there[k] = True
        if not member:  # an image file: no later row needs it
            del states[file]
    return names, there

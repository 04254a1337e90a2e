"""Content hashes: from the manifest where it has them, else from an index of files that were decoded before.

The index is a folder of immutable files, each a NumPy array uint8 (n, 56): 16 bytes that name a place (path
and member), size, modification and change time of the file when it was decoded (8 bytes each, little endian,
times in nanoseconds), then 16 bytes of content hash. The newest entry of a place counts. A file whose state
is another now is decoded again by `extract`, and not served before that, whether the index or the manifest's
column knows it. (Files of version 1, uint8 (n, 32), hold a name made of path, member, size and time, and the
content hash.)

A state is taken before its file is read. One that is hardly older than the reading cannot tell the file from
one that is written over it within the clock's tick (git's racy entries): such files are read again, later.

Adding means writing one more file under a temporary name and renaming it: many processes may add at once, and
a crash leaves nothing half.
"""

import hashlib
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import ManifestError
from ..files import write_atomically
from .arrow import hex_hashes, of_hex
from .manifest import Manifest, load_manifest

SUFFIX, FIRST_SUFFIX = ".hashes2.npy", ".hashes1.npy"  # the number is the format's version
WIDTH = 56
TICK, COARSE_TICK = 20_000_000, 2_000_000_000  # ns: of a file system's clock; of one that counts seconds


@dataclass(frozen=True)
class Known:
    """What is known of a manifest's rows.

    Attributes
    ----------
    hashes
        uint8 (n, 16), zeros where not known.
    known
        bool (n,).
    changed
        bool (n,): the file is another one than was decoded, or than the manifest's column says.
    entered
        bool (n,): the index has the place.
    states
        int64 (n, 3): size, modification and change time of the files now; -1 where there is none, or
        where nothing had to be compared.
    """

    hashes: np.ndarray
    known: np.ndarray
    changed: np.ndarray
    entered: np.ndarray
    states: np.ndarray


def resolve(manifest: Manifest, index: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(hashes uint8 (n, 16), known bool (n,)), see `look_up`; what has changed is not known."""
    known = look_up(manifest, index)
    return known.hashes, known.known & ~known.changed


def look_up(manifest: Manifest, index: Path | None = None, *, strict: bool = False) -> Known:
    """The content hashes of a manifest's rows, and which files have changed since they were taken.

    The manifest's content_hash column goes first; rows without are looked up in the folder `index`, if given.
    A file that is not here now (a machine without the images) is not taken for changed.

    strict: compare the time of the last change of any kind, too, which a copy of the image does not keep.
    Raises ManifestError for a damaged index file.
    """
    n = len(manifest)
    hashes, known = np.zeros((n, 16), np.uint8), np.zeros(n, bool)
    changed, entered, states = np.zeros(n, bool), np.zeros(n, bool), np.full((n, 3), -1, np.int64)
    given = np.zeros(n, bool)  # by the manifest
    if "content_hash" in manifest.table.columns:
        column = manifest.table["content_hash"]
        given = (column != "").to_numpy(dtype=bool)
        known = given.copy()
        hashes[known] = of_hex(column[known])
    rows = Known(hashes, known, changed, entered, states)
    if index is None:
        return rows
    _look_up_first(manifest, index, hashes, known)
    entries = _read(index, SUFFIX, WIDTH)
    if strict or len(entries):
        states[:] = states_of(manifest, np.arange(n))
    if not len(entries):
        return rows
    at = _newest(entries[:, :16], _places(manifest))
    entered[:] = at >= 0
    then = np.ascontiguousarray(entries[at, 16:40]).view("<i8")
    same = (then == states)[:, : 3 if strict else 2].all(axis=1)
    there = entered & (states[:, 0] >= 0)
    other = given & (entries[at, 40:] != hashes).any(axis=1)
    changed[:] = there & (~same | other)
    take = there & same & ~given
    hashes[take], known[take] = entries[at[take], 40:], True
    known[changed & ~given] = False
    return rows


def _look_up_first(manifest: Manifest, index: Path, hashes: np.ndarray, known: np.ndarray) -> None:
    """Fill in what files of version 1 know."""
    rows = np.flatnonzero(~known)
    entries = _read(index, FIRST_SUFFIX, 32) if rows.size else np.zeros((0, 32), np.uint8)
    if len(entries):
        names, there = _names(manifest, rows)
        at = np.where(there, _newest(entries[:, :16], names), -1)
        hashes[rows[at >= 0]] = entries[at[at >= 0], 16:]
        known[rows[at >= 0]] = True


def _newest(stored: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Of each name uint8 (m, 16) the last of the stored (n, 16) that is equal; -1 where there is none."""
    names = np.ascontiguousarray(stored).view("V16").ravel()
    order = np.argsort(names, kind="stable")
    keys = np.ascontiguousarray(wanted).view("V16").ravel()
    at = np.searchsorted(names, keys, sorter=order, side="right") - 1
    hit = (at >= 0) & (names[order[at]] == keys)
    return np.where(hit, order[at], -1)


def known_hashes(manifest: Path, bank: str) -> list[str]:
    """The content hash of each row of a manifest as 32 hex digits, "" where it is not known.

    Known are those in the manifest, and those that `extract` found with this bank (a local folder).
    """
    loaded = load_manifest(manifest)
    hashes, known = resolve(loaded, None if "://" in bank else Path(bank) / "hashes")
    return hex_hashes(hashes).where(known, "").tolist()


def record(
    manifest: Manifest,
    rows: Sequence[int] | np.ndarray,
    hashes: np.ndarray,
    index: Path,
    states: np.ndarray | None = None,
) -> None:
    """Add the content hashes (uint8, (len(rows), 16)) of these rows to the folder `index`, atomically.

    states : int64 (len(rows), 3) from `state_of`, taken before the rows were read; the states now if None.
        Rows without a file are left out.
    """
    rows = np.asarray(rows, dtype=np.intp)
    if hashes.shape != (len(rows), 16) or hashes.dtype != np.uint8:
        raise ValueError(f"hashes must be uint8 ({len(rows)}, 16), not {hashes.dtype} {hashes.shape}")
    states = states_of(manifest, rows) if states is None else states
    there = states[:, 0] >= 0
    if not there.any():
        return
    as_bytes = np.ascontiguousarray(states.astype("<i8")).view(np.uint8).reshape(len(rows), 24)
    entries = np.concatenate([_places(manifest, rows), as_bytes, hashes], axis=1)[there]

    def write(to: Path) -> None:
        with to.open("wb") as stream:
            np.save(stream, entries, allow_pickle=False)

    # in the order of time, so that the newest entry of a place is the last
    write_atomically(Path(index) / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}{SUFFIX}", write)


def state_of(file: str | os.PathLike[str]) -> tuple[int, int, int]:
    """(size, modification time, change time) of a file, times in ns; (-1, -1, -1) if it does not exist."""
    try:
        status = os.stat(file)  # noqa: PTH116  the hot path
    except (OSError, ValueError):  # ValueError: a name with NUL
        return -1, -1, -1
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def tick_of(state: Sequence[int]) -> int:
    """ns within which the file system may stamp two states with the same time."""
    return COARSE_TICK if state[1] % 1_000_000_000 == 0 else TICK


def is_young(state: Sequence[int], now: int) -> bool:
    """Whether a state, looked at at `now` (ns since 1970), might be that of two different contents."""
    return state[0] >= 0 and now - max(state[1], state[2]) < tick_of(state)


def _read(index: Path, suffix: str, width: int) -> np.ndarray:
    parts = []
    for file in sorted(index.glob(f"*{suffix}")):
        try:
            part = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ManifestError(
                f"{file} is damaged ({error}); delete it: the images in it are decoded again."
            ) from error
        if part.dtype != np.uint8 or part.ndim != 2 or part.shape[1] != width:
            raise ManifestError(
                f"{file} is not a hash index (uint8 (n, {width})) but {part.dtype} {part.shape}; delete it."
            )
        parts.append(part)
    return np.concatenate(parts) if parts else np.zeros((0, width), np.uint8)


def _files(manifest: Manifest, rows: Sequence[int] | np.ndarray) -> list[tuple[str, str]]:
    """(file, member in it) of rows."""
    root = os.path.abspath(manifest.root)  # noqa: PTH100
    paths = manifest.table["path"].to_numpy(dtype=object)
    parts = [paths[i].partition("::") for i in rows]
    return [(os.path.join(root, file), member) for file, _, member in parts]  # noqa: PTH118


def _places(manifest: Manifest, rows: np.ndarray | None = None) -> np.ndarray:
    """uint8 (m, 16): a digest of each row's path and member."""
    rows = np.arange(len(manifest)) if rows is None else rows
    names = [
        hashlib.blake2b(f"{file}\0{member}".encode("utf-8", "surrogateescape"), digest_size=16).digest()
        for file, member in _files(manifest, rows)
    ]
    return np.frombuffer(b"".join(names), np.uint8).reshape(-1, 16)


def states_of(manifest: Manifest, rows: np.ndarray) -> np.ndarray:
    """int64 (m, 3): `state_of` each row's file; a container is looked at once. Without an image: -1."""
    found: dict[str, tuple[int, int, int]] = {}
    states = np.full((len(rows), 3), -1, np.int64)
    for k, (file, member) in enumerate(_files(manifest, rows)):
        if member.startswith("embedding["):
            continue
        if member and file not in found:
            found[file] = state_of(file)
        states[k] = found[file] if member else state_of(file)
    return states


def _names(manifest: Manifest, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of version 1: (names uint8 (m, 16), whether the file exists (m,))."""
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
            except (OSError, ValueError):
                states[file] = None
        state = states[file]
        if state is not None:
            digest = hashlib.blake2b(state + member.encode(), digest_size=16).digest()
            names[k] = np.frombuffer(digest, np.uint8)
            there[k] = True
        if not member:  # an image file: no later row needs it
            del states[file]
    return names, there

"""An embedding store: rows of one identity, keyed by the content hashes of patches.

FORMAT.md has the format on disk in words, with a reader, and the order in which files are written
and removed.
"""

import errno
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import xxhash

from ..errors import InvalidRequest, RowsMissing, StoreError, StoreNotFound, VectorRefused
from ..files import cores
from .backend import (
    BLOCKS,
    FORMAT,
    MAX_BLOCK,
    RUN_BYTES,
    SEGMENT_ROWS,
    VERSION,
    Layout,
    Spot,
    block_name,
    check_description,
    seal,
    segments_of,
    sums_of,
)
from .filesystem import TEMPORARY, Files, LocalFiles, LocalReader, RemoteReader, as_bytes, explained
from .identity import Identity
from .index import BATCH, KEY_BYTES, KeyIndex, as_keys
from .log import FOLDER as LOGS
from .log import Block, Catalog, LogWriter
from .parallel import in_threads

BLOCK_ROWS = 8192
BACKENDS = ("zarr", "hdf5")
READERS = 128  # files that stay open
IN_THREADS = 32 << 20  # bytes from which on blocks are read by several threads
REMOTE_RUN_BYTES = 16 << 20
ROOM = 256 << 20  # bytes that a block may claim beyond those of its files


def layout_class(backend: str) -> type[Layout]:
    """The layout of a backend, "zarr" or "hdf5". Raises InvalidRequest for another."""
    if backend == "zarr":
        from .zarr_backend import ZarrLayout

        return ZarrLayout
    if backend == "hdf5":
        from .hdf5_backend import Hdf5Layout

        return Hdf5Layout
    raise InvalidRequest(f"unknown backend {backend!r}; available: {' and '.join(BACKENDS)}")


def check_block_rows(block_rows: int, identity: Identity, files: Files) -> None:
    """Raises StoreError where a block of so many rows could not be in memory."""
    size = block_rows * identity.dim * np.dtype(identity.dtype).itemsize
    if size > MAX_BLOCK:
        raise StoreError(
            f"{files}: a block of {block_rows:,} rows x {identity.dim:,} would have {size:,} bytes, more "
            f"than {MAX_BLOCK:,}; nothing was touched. Fix: fewer rows a block (block_rows)"
        )


def is_empty(files: Files) -> bool:
    """Whether it is not a store yet: no description (at most its copy, written first), block or log."""
    if any(files.exists(layout_class(backend).descriptions[0]) for backend in BACKENDS):
        return False
    return not (files.names(BLOCKS) or files.names(LOGS))


def read_description(files: Files, *, lenient: bool = False) -> dict[str, Any]:
    """The checked description of the store under `files`; lenient: its copy will do.

    Raises StoreNotFound (no store there), StoreError (damaged, another format, a newer version).
    """
    damage = None
    with explained("read", files):
        for copy in (0, 1) if lenient else (0,):
            for backend in BACKENDS:
                kind = layout_class(backend)
                where = f"{files}/{kind.descriptions[copy]}"
                if not files.exists(kind.descriptions[copy]):
                    continue
                try:
                    document = kind.undescribe(files.read(kind.descriptions[copy]))
                    return check_description({**document}, where, backend)
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    damage = StoreError(
                        f"{where} is not the description of an embedding store (damaged?): {error}; "
                        "`patchbank cache repair` restores it from its copy"
                    )
                except StoreError as error:
                    damage = error
    raise damage or StoreNotFound(f"there is no embedding store at {files}")


class Store:
    """The rows of one identity. Safe to read from several threads; each writer belongs to one thread."""

    def __init__(
        self, files: Files, *, lenient: bool = False, provenance: Mapping[str, Any] | None = None
    ) -> None:
        self._files = files
        self.description = read_description(files, lenient=lenient)
        try:
            self.identity = Identity.from_json(self.description["identity"])
        except InvalidRequest as error:
            raise StoreError(f"{files}: the description of this store is not valid: {error}") from error
        check_block_rows(self.description["block_rows"], self.identity, files)
        self.backend: str = self.description["backend"]
        self.block_rows: int = self.description["block_rows"]
        self.layout = layout_class(self.backend)(
            files, dim=self.identity.dim, dtype=self.identity.dtype, block_rows=self.block_rows
        )
        self.session = dict(provenance or {})  # goes into the logs of this object's writers
        self.catalog = Catalog(files)
        self._lock = threading.RLock()
        self._sound: dict[str, tuple[object, np.ndarray]] = {}
        self._readers: dict[str, LocalReader | RemoteReader] = {}
        self._forget()
        if not lenient:
            self.refresh()

    @classmethod
    def create(
        cls,
        files: Files,
        identity: Identity,
        *,
        provenance: Mapping[str, Any] | None = None,
        backend: str = "zarr",
        block_rows: int = BLOCK_ROWS,
    ) -> Self:
        """Creates the store, or opens it where another process was faster."""
        if block_rows < 1:
            raise InvalidRequest(f"block_rows is {block_rows}; it has to be at least 1")
        check_block_rows(block_rows, identity, files)
        document = {
            "format": FORMAT,
            "version": VERSION,
            "backend": backend,
            "identity": identity.to_json(),
            "digest": identity.digest,
            "block_rows": block_rows,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "provenance": dict(provenance or {}),
        }
        kind = layout_class(backend)
        kind(files, dim=identity.dim, dtype=identity.dtype, block_rows=block_rows)  # HDF5 refuses URLs
        with explained("create a store in", files):
            for folder in ("", LOGS, BLOCKS):
                files.make_folder(folder)
            first, copy = kind.descriptions
            # the copy first: a store is one from the moment that its description is there, with its copy
            if not files.create(copy, kind.describe(seal(document))) and not files.exists(first):
                try:
                    document = read_description(files, lenient=True)
                except StoreError:  # a copy that was cut short by a power failure, of a store without rows
                    files.put({copy: [kind.describe(seal(document))]})
            files.create(first, kind.describe(seal(document)))
        return cls(files, provenance=provenance)

    # --- what it is -----------------------------------------------------------------------------------

    @property
    def path(self) -> Path | str:
        """The folder, or the URL of a remote store."""
        return self._files.root if isinstance(self._files, LocalFiles) else self._files.url

    @property
    def files(self) -> Files:
        return self._files

    @property
    def name(self) -> str:
        return self.identity.name

    @property
    def dim(self) -> int:
        return self.identity.dim

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.identity.dtype)

    @property
    def provenance(self) -> dict[str, Any]:
        """What was said about where the vectors come from when the store was created."""
        return self.description["provenance"]

    def __repr__(self) -> str:
        return f"Store({str(self._files)!r}, {self.backend}, {self.dim} x {self.dtype})"

    def __len__(self) -> int:
        """Distinct keys."""
        self._index()
        return len(self._rows)

    @property
    def published_rows(self) -> int:
        """Rows in the published blocks, from the log alone; repeated keys are counted each time."""
        return sum(block.rows for block in self.catalog.live())

    # --- looking rows up ------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._blocks: list[Block] = []
        self._starts = np.zeros(1, dtype=np.int64)  # first row of each block, and the end
        self._rows = KeyIndex()  # counted over all blocks
        self._version = 0  # of the catalog that all this is made from
        self._readers.clear()
        self._sound.clear()  # block -> (the file as it was, bool a segment: it was compared)

    def refresh(self) -> None:
        """Reads what any process has published since the store was opened."""
        with self._lock:
            self.catalog.read()

    def reopen(self) -> None:
        """`refresh`, with nothing remembered of where rows were."""
        with self._lock:
            self.catalog.read()
            self._forget()

    def _index(self) -> None:
        """Brings the index up to the catalog."""
        with self._lock, explained("read", self._files):
            self._again(self._extend)

    def _again(self, work: Callable[[], Any]) -> Any:
        """Does it, and again where blocks were packed, moved or swept meanwhile."""
        tries = 0
        while True:
            seen = self.state()
            try:
                return work()
            except OSError:
                if not self._look_again(seen, tries):
                    raise
                tries += 1

    def state(self) -> tuple[int, int]:
        """Changes when blocks go somewhere else."""
        return self.catalog.generation, len(self.catalog.retired)

    def _look_again(self, seen: tuple[int, int], tries: int) -> bool:
        """Whether what could not be read in the state `seen` may be somewhere now: once in any case."""
        self._readers.clear()
        self.refresh()
        return tries == 0 or self.state() != seen

    def _extend(self) -> None:
        version = self.catalog.version
        if version == self._version:
            return
        live = self.catalog.live()
        if any(block.id in self.catalog.retired for block in self._blocks):
            self._forget()
        have = {block.id for block in self._blocks}
        new = [block for block in live if block.id not in have]
        if new:
            self._add(new)
        self._version = version

    def _add(self, new: list[Block]) -> None:
        blocks = [*self._blocks, *new]
        starts = np.concatenate([[0], np.cumsum([block.rows for block in blocks])]).astype(np.int64)
        at = len(self._blocks)
        try:
            while at < len(blocks):  # some blocks at a time: neither a sort for each nor two copies of all
                end = max(at + 1, int(np.searchsorted(starts, starts[at] + BATCH, side="right")) - 1)
                self._rows.add(np.concatenate([self.keys_of(b) for b in blocks[at:end]]), int(starts[at]))
                at = end
        except BaseException:
            self._forget()
            raise
        self._blocks, self._starts = blocks, starts

    def contains(self, keys: np.ndarray) -> np.ndarray:
        """Which keys have a row, as of the last `refresh`: uint8 (n, 16) -> bool (n,)."""
        keys = as_keys(keys)
        found = np.empty(len(keys), bool)
        with self._lock:
            self._index()
            for start in range(0, len(keys), BATCH):  # never a row number of 8 bytes for all
                part = slice(start, start + BATCH)
                found[part] = self._rows.find(keys[part]) >= 0
        return found

    def keys(self) -> np.ndarray:
        """Every key once, in the order in which the rows are stored: uint8, (len(self), 16)."""
        with self._lock, explained("read", self._files):
            keys = self._again(self._all_keys)
            rows = np.concatenate(keys) if keys else np.empty((0, KEY_BYTES), np.uint8)
            return rows if len(rows) == len(self._rows) else rows[self._rows.first_rows()]

    def _all_keys(self) -> list[np.ndarray]:
        self._extend()
        return [self.keys_of(block) for block in self._blocks]

    # --- reading --------------------------------------------------------------------------------------

    def spot_of(self, block: Block) -> tuple[Spot, Spot]:
        """Where the vectors and the keys of a block lie now. FileNotFoundError if nowhere."""
        vectors, keys = self._spots(block)
        return self._first(vectors), self._first(keys)

    def _spots(self, block: Block) -> tuple[list[Spot], list[Spot]]:
        return self.layout.spots(block, self.catalog.chunks.get(block.id))

    def _first(self, spots: list[Spot]) -> Spot:
        for spot in spots:
            if self._files.exists(spot.file):
                return spot
        raise FileNotFoundError(2, "no such file", f"{self._files}/{spots[0].file}")

    def _open(self, spots: list[Spot]) -> tuple[Spot, LocalReader | RemoteReader]:
        """The first of these files that is there, open. FileNotFoundError if none is."""
        if self._files.remote and len(spots) > 1:
            spots = [self._first(spots)]
        for spot in spots[:-1]:
            with suppress(FileNotFoundError):
                return spot, self._reader(spot.file)
        return spots[-1], self._reader(spots[-1].file)

    def _reader(self, file: str) -> LocalReader | RemoteReader:
        known = self._readers.get(file)
        if known is None:
            if len(self._readers) >= READERS:
                self._readers.clear()
            known = self._readers[file] = self._files.reader(file)
        return known

    def keys_of(self, block: Block) -> np.ndarray:
        """uint8, (rows, 16)."""
        spot, reader = self._open(self._spots(block)[1])
        content = reader.joined([spot.offset], block.rows * KEY_BYTES)
        if xxhash.xxh3_64_hexdigest(content) != block.keys_sum:
            raise _damaged(f"{self._files}/{spot.file}", "its keys differ from what was written")
        return np.frombuffer(content, np.uint8).reshape(block.rows, KEY_BYTES)

    def read_block(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """Keys, uint8 (rows, 16), and vectors, (rows, dim), all compared with their checksums.

        Raises OSError where the block is not (or no longer) what its record says.
        """
        vectors, _ = self.empty_block(block.rows, self.spot_of(block))
        self._take(block, np.arange(block.rows), vectors, slice(0, block.rows))
        return self.keys_of(block), vectors

    def empty_block(self, rows: int, spots: Iterable[Spot]) -> tuple[np.ndarray, np.ndarray]:
        """Zeros for the vectors and the keys of a block whose files are there. Raises as `check_claim`."""
        self.check_claim(rows, spots)
        return np.zeros((rows, self.dim), self.layout.dtype), np.zeros((rows, KEY_BYTES), np.uint8)

    def check_claim(self, rows: int, spots: Iterable[Spot]) -> None:
        """Raises StoreError for a block far larger than its files (which may have been cut somewhat): such a
        claim would fill the memory.
        """
        claimed = rows * (self.layout.row_bytes + KEY_BYTES)
        if claimed > ROOM:
            files = sorted({spot.file for spot in spots})
            there = sum(self._files.size(file) for file in files)
            if claimed > there + ROOM:
                raise StoreError(
                    f"{self._files}/{files[0]} has {there:,} bytes (all of its block), but the log claims "
                    f"{claimed:,} ({rows:,} rows x {self.dim}): the store was damaged or tampered with"
                )

    def load(self, keys: np.ndarray, *, dtype: str | np.dtype | None = None) -> np.ndarray:
        """The vectors of keys (uint8 (n, 16)), in their order: (n, dim), of the store's dtype unless asked.

        Raises RowsMissing if some are missing (after a check for rows published meanwhile); VectorRefused if
        a number is beyond the dtype that is asked for.
        """
        keys = as_keys(keys)
        out = np.empty((len(keys), self.dim), dtype=dtype or self.dtype)
        with explained("read", self._files):
            seen, tries = self.state(), 0
            failed, error = self._gather(out, self._locate(keys))
            while error is not None:  # of some blocks only: they were packed, moved or swept since
                if not self._look_again(seen, tries):
                    raise error
                seen, tries = self.state(), tries + 1
                part = np.empty((len(failed), self.dim), out.dtype)
                again, error = self._gather(part, self._locate(keys[failed]))
                out[failed] = part
                failed = failed[again]
        if out.dtype.itemsize < self.dtype.itemsize and not all_finite(out):
            raise VectorRefused(
                f"{self._files} holds numbers beyond {out.dtype} (up to {np.finfo(out.dtype).max:g}); "
                f"load it as {self.dtype}"
            )
        return out

    def iter_blocks(
        self, keys: np.ndarray, rows: int = 8192, *, dtype: str | np.dtype | None = None
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """`load` in steps: (which of the keys, their vectors), `rows` at a time, in memory for one step."""
        keys = as_keys(keys)
        self.require(keys)
        for start in range(0, len(keys), rows):
            part = slice(start, min(start + rows, len(keys)))
            yield part, self.load(keys[part], dtype=dtype)

    def require(self, keys: np.ndarray) -> None:
        """Raises RowsMissing unless every key has a row (after a look at what was published meanwhile)."""
        self._locate(as_keys(keys))

    def _locate(self, keys: np.ndarray) -> "_Located":
        with self._lock:
            self._index()
            rows = self._rows.find(keys)
            if (rows < 0).any():
                self.refresh()
                self._index()
                rows = self._rows.find(keys)
            located = _Located(rows, self._blocks, self._starts)
        missing = int((rows < 0).sum())
        if missing:
            raise RowsMissing(
                f"{missing} of {len(keys)} patches have no embedding in {self._files}; "
                f"run `patchbank extract` with the encoder {self.identity.encoder['id']!r} to embed them"
            )
        return located

    def _gather(self, out: np.ndarray, located: "_Located") -> tuple[np.ndarray, OSError | None]:
        """Fills `out`. Returns its rows that could not be read (int64) and why: the first error."""
        rows, blocks, starts = located.rows, located.blocks, located.starts
        failed: list[Any] = [np.empty(0, np.int64)]
        first_error = None
        if len(rows):
            order = None if (rows[1:] > rows[:-1]).all() else np.argsort(rows, kind="stable")
            ordered = rows if order is None else rows[order]
            first, last = np.searchsorted(starts, ordered[[0, -1]], side="right") - 1
            cuts = np.searchsorted(ordered, starts[first : last + 2])

            def take(number: int) -> tuple[np.ndarray, OSError] | None:
                begin, end = int(cuts[number - first]), int(cuts[number - first + 1])
                local = ordered[begin:end] - starts[number]
                into: Any = slice(begin, end) if order is None else order[begin:end]
                if order is not None and _is_run(into):
                    into = slice(int(into[0]), int(into[0]) + len(into))
                try:
                    with np.errstate(over="ignore"):  # `load` looks for what became infinite
                        self._take(blocks[number], local, out, into)
                except OSError as error:
                    return np.arange(begin, end) if order is None else order[begin:end], error
                return None

            numbers = [first + int(i) for i in np.flatnonzero(np.diff(cuts))]
            threads = 1 if self._files.remote or out.nbytes < IN_THREADS else cores()
            for fault in in_threads(take, numbers, threads):
                if fault is not None:
                    failed.append(fault[0])
                    first_error = first_error or fault[1]
        return np.concatenate(failed), first_error

    def _take(self, block: Block, local: np.ndarray, out: np.ndarray, into: Any) -> None:
        """Rows `local` (ascending) of a block to the rows `into` of `out`, none but those that fit.

        Raises OSError: a file is missing, too short, or not what the block's record says.
        """
        vector_spots, key_spots = self._spots(block)
        spot, reader = self._open(vector_spots)
        sound = self._sound_of(block, spot, reader.stamp())
        numbers = local // SEGMENT_ROWS
        if len(local) < SEGMENT_ROWS // 4 and not self._files.remote and sound[numbers].all():
            out[into] = self._read_each(spot, reader, local)  # what is below, for the most frequent case
            return
        segments, at = np.unique(numbers, return_index=True)
        counts = np.diff(np.append(at, len(local)))
        whole = ~sound[segments] | (counts >= SEGMENT_ROWS // (32 if self._files.remote else 4))
        if whole.any():
            keys_at, key_reader = self._open(key_spots)
            spans = [
                (first * SEGMENT_ROWS, min((last + 1) * SEGMENT_ROWS, block.rows))
                for first, last in self._runs(segments[whole].tolist())
            ]
            buffers = [self._buffer_of(local, out, into, begin, end) for begin, end in spans]
            pieces = zip(
                spans,
                buffers,
                reader.pieces(_ranges(spot, spans, self.layout.row_bytes), buffers),
                key_reader.pieces(_ranges(keys_at, spans, KEY_BYTES)),
                strict=True,
            )
            for (begin, end), buffer, vectors, keys in pieces:
                self._compare(block, spot, begin, end, vectors, keys)
                sound[begin // SEGMENT_ROWS : -(-end // SEGMENT_ROWS)] = True
                if buffer is not None:
                    continue
                first, last = np.searchsorted(local, [begin, end])
                some = local[first:last] - begin
                pick = slice(int(some[0]), int(some[-1]) + 1) if _is_run(some) else some
                rows = np.frombuffer(vectors, self.layout.dtype).reshape(end - begin, self.dim)
                out[_part_of(into, slice(int(first), int(last)))] = rows[pick]
        if not whole.all():  # compared before, in this very file
            few = np.flatnonzero(np.repeat(~whole, counts))
            out[_part_of(into, few)] = self._read_each(spot, reader, local[few])

    def _buffer_of(
        self, local: np.ndarray, out: np.ndarray, into: Any, begin: int, end: int
    ) -> memoryview | None:
        """The bytes of `out` that rows `begin` to `end` of a block go to, where they go there as they are.

        What is read there may turn out to be damaged.
        """
        if self._files.remote or not isinstance(into, slice) or out.dtype != self.layout.dtype:
            return None
        first, last = map(int, np.searchsorted(local, [begin, end]))
        if last - first != end - begin or not _is_run(local[first:last]):
            return None
        return as_bytes(out[_part_of(into, slice(first, last))])

    def _read_each(self, spot: Spot, reader: LocalReader | RemoteReader, local: np.ndarray) -> np.ndarray:
        """Rows of a block one by one, without a comparison: (len(local), dim)."""
        width = self.layout.row_bytes
        content = reader.joined((spot.offset + local * width).tolist(), width)
        if len(content) != len(local) * width:
            raise _damaged(f"{self._files}/{spot.file}", "it is shorter than its record says")
        return np.frombuffer(content, self.layout.dtype).reshape(len(local), self.dim)

    def _sound_of(self, block: Block, spot: Spot, stamp: object) -> np.ndarray:
        """Which segments of a block were compared since its file was last changed: bool, (segments,)."""
        if stamp is None and spot.file.startswith(BLOCKS):
            stamp = spot.file  # of an object; a block's own is never replaced
        known = self._sound.get(block.id)
        if known is not None and stamp is not None and known[0] == stamp:
            return known[1]
        fresh = np.zeros(-(-block.rows // SEGMENT_ROWS), dtype=bool)
        self._sound[block.id] = stamp, fresh
        return fresh

    def _runs(self, segments: list[int]) -> Iterator[tuple[int, int]]:
        """The (first, last) of numbers that follow each other, as many as are read at a time."""
        size = REMOTE_RUN_BYTES if self._files.remote else RUN_BYTES
        longest = max(1, size // (SEGMENT_ROWS * self.layout.row_bytes))
        first = last = segments[0]
        for segment in segments[1:]:
            if segment != last + 1 or segment - first >= longest:
                yield first, last
                first = segment
            last = segment
        yield first, last

    def _compare(
        self, block: Block, spot: Spot, begin: int, end: int, vectors: memoryview, keys: memoryview
    ) -> None:
        """Raises OSError unless these are the rows `begin` (the first of a segment) to `end` of a block."""
        where = f"{self._files}/{spot.file}"
        if len(vectors) != (end - begin) * self.layout.row_bytes or len(keys) != (end - begin) * KEY_BYTES:
            raise _damaged(where, "it is shorter than its record says")
        for number, now in enumerate(sums_of(vectors, keys, self.layout.row_bytes), begin // SEGMENT_ROWS):
            if now != block.segments[16 * number : 16 * number + 16]:
                first = number * SEGMENT_ROWS
                last = min(first + SEGMENT_ROWS, block.rows) - 1
                raise _damaged(where, f"rows {first}-{last} of block {block.id} differ from what was written")

    # --- writing --------------------------------------------------------------------------------------

    def writer(self, *, name: str | None = None, block_rows: int | None = None) -> "StoreWriter":
        """A writer with a log of its own; any number may write at once, from any number of machines.

        block_rows: publish after so many rows, the store's block length at most (and by default).
        """
        return StoreWriter(self, name=name, block_rows=block_rows or self.block_rows)


@dataclass(frozen=True)
class _Located:
    """Row numbers (int64, (n,)) and the blocks that they count: a refresh may renumber the rows."""

    rows: np.ndarray
    blocks: list[Block]
    starts: np.ndarray


class StoreWriter:
    """Collects rows and publishes them block by block. Use it in a `with`; it belongs to one thread.

    Leaving the `with` publishes the rest, also after an exception or Ctrl-C: what was appended is good.
    """

    def __init__(self, store: Store, *, name: str | None, block_rows: int) -> None:
        if not 1 <= block_rows <= store.block_rows:
            raise InvalidRequest(f"block_rows is {block_rows}; this store allows 1 to {store.block_rows}")
        self.store = store
        self.block_rows = block_rows
        self.published = 0  # rows
        self._log: LogWriter | None = None
        self.name = name
        self._filled = 0
        self._keys = np.empty((0, KEY_BYTES), np.uint8)
        self._vectors = np.empty((0, store.dim), store.layout.dtype)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, keys: np.ndarray, vectors: np.ndarray, ids: Sequence[str]) -> None:
        """Adds rows; full blocks are published on the way.

        keys : uint8, (n, 16). vectors : floating point, (n, dim). ids : n names, for messages only.

        Raises VectorRefused, and takes nothing of this call, if a vector holds NaN or Inf or does not fit
        the store's dtype; StoreError if a block cannot be written (what was published before is kept, and
        what was not can be published by `flush` once there is room).
        """
        keys = as_keys(keys)
        stored = self._as_stored(vectors, ids)
        if not len(keys) == len(stored) == len(ids):
            raise InvalidRequest(
                f"{len(keys)} keys, {len(stored)} vectors and {len(ids)} ids differ in length"
            )
        done = 0
        while done < len(keys):
            if self._filled == self.block_rows:
                self.flush()
            step = min(self.block_rows - self._filled, len(keys) - done)
            self._make_room(self._filled + step)
            self._keys[self._filled : self._filled + step] = keys[done : done + step]
            self._vectors[self._filled : self._filled + step] = stored[done : done + step]
            self._filled += step  # last: after an interrupt in the lines above these rows were never there
            done += step
        if self._filled == self.block_rows:
            self.flush()

    def _as_stored(self, vectors: np.ndarray, ids: Sequence[str]) -> np.ndarray:
        store = self.store
        array = np.asarray(vectors)
        if array.ndim != 2 or array.shape[1] != store.dim or not np.issubdtype(array.dtype, np.floating):
            raise InvalidRequest(
                f"vectors have to be floats (n, {store.dim}); got {array.dtype} {array.shape}"
            )
        with np.errstate(over="ignore"):
            stored = array.astype(store.layout.dtype, copy=False)
        if all_finite(stored):
            return stored
        bad = np.flatnonzero(~np.isfinite(stored).all(axis=1))
        row = array[bad[0]]
        if np.isnan(row).any():
            what = "holds NaN"
        elif np.isinf(row).any():
            what = "holds Inf"
        else:
            worst = row[np.argmax(np.abs(row))]
            what = f"holds {worst:g}, beyond {store.dtype} (up to {np.finfo(store.dtype).max:g}); use float32"
        name = ids[bad[0]] if bad[0] < len(ids) else f"row {bad[0]}"
        more = f"; so do {len(bad) - 1} more of these {len(array)}" if len(bad) > 1 else ""
        raise VectorRefused(f"the embedding of {name} {what}{more}")

    def _make_room(self, rows: int) -> None:
        if rows > len(self._keys):
            size = min(self.block_rows, max(rows, 2 * len(self._keys), 64))
            keys = np.empty((size, KEY_BYTES), np.uint8)
            vectors = np.empty((size, self.store.dim), self.store.layout.dtype)
            keys[: self._filled] = self._keys[: self._filled]
            vectors[: self._filled] = self._vectors[: self._filled]
            self._keys, self._vectors = keys, vectors

    def flush(self) -> None:
        """Publishes what was appended; when it returns, the rows survive a power failure."""
        if self._filled:
            self.publish(self._vectors[: self._filled], self._keys[: self._filled])
            self._filled = 0

    def publish(self, vectors: np.ndarray, keys: np.ndarray) -> Block:
        """Publishes checked rows, of the store's dtype, as a block (past the rows that wait for `flush`)."""
        log = self.log()
        block = write_block(self.store, vectors, keys, writer=log.name)
        log.append(block.record())
        self.published += len(keys)
        settle(self.store, [block.id])
        return block

    def log(self) -> LogWriter:
        """The log of this writer; it is begun when there is something to say."""
        if self._log is None:
            make_folders(self.store)
            self._log = LogWriter(self.store.files, self.name, {"provenance": self.store.session})
        return self._log

    def close(self) -> None:
        """Publishes the rest and closes the log."""
        try:
            self.flush()
        finally:
            if self._log is not None:
                self._log.close()


def make_folders(store: Store) -> None:
    """What copied the store may not keep empty folders."""
    with explained("write to", store.files):
        for folder in (LOGS, BLOCKS):
            store.files.make_folder(folder)


def write_block(
    store: Store, vectors: np.ndarray, keys: np.ndarray, *, writer: str, padded: bool = False
) -> Block:
    """Makes the files of a block durable, and its record, which the caller has to publish and then `settle`.

    padded: the block ends a finalised array and is filled up to a whole chunk.
    """
    segments = segments_of(vectors, keys)
    name = block_name(secrets.token_hex(6), len(keys), segments)
    with explained("write a block to", store.files):
        store.files.mark(pending(name))
        try:
            extra = store.layout.write_block(name, vectors, keys, padded=padded)
        except BaseException:
            store.files.remove(pending(name))
            raise
    return block_of(name, vectors, keys, segments, writer, extra)


def pending(block: str) -> str:
    """The empty file beside a block until it is published."""
    return f"{BLOCKS}/{TEMPORARY}{block}"


def settle(store: Store, blocks: Iterable[str]) -> None:
    """These blocks are published."""
    with explained("write a block to", store.files):
        for block in blocks:
            store.files.remove(pending(block))


def block_of(
    name: str, vectors: np.ndarray, keys: np.ndarray, segments: str, writer: str, extra: dict[str, Any]
) -> Block:
    """The record of a block whose files are written."""
    sums = [xxhash.xxh3_64_hexdigest(as_bytes(part)) for part in (keys, vectors[0])]
    return Block(name, len(keys), segments, sums[0], sums[1], time.time(), writer, extra)


def _damaged(where: str, what: str) -> OSError:
    """The file differs from the log: it was moved since the log was read, or is damaged."""
    advice = "`patchbank cache verify` says which rows are lost, `patchbank cache repair` takes them out"
    return OSError(errno.EIO, f"{what}; {advice}", where)


def _is_run(rows: np.ndarray) -> bool:
    """Whether these numbers count up one by one."""
    return bool(rows[-1] - rows[0] + 1 == len(rows) and (np.diff(rows) == 1).all())


def _part_of(into: Any, part: Any) -> Any:
    """Rows `part` (a slice, or an array of rows) of what `into` picks, which is one of both too."""
    if not isinstance(into, slice):
        return into[part]
    first: int = cast("slice[int]", into).start
    if not isinstance(part, slice):
        return first + part
    some = cast("slice[int]", part)
    return slice(first + some.start, first + some.stop)


def _ranges(spot: Spot, spans: list[tuple[int, int]], width: int) -> list[tuple[int, int]]:
    """Where the rows from first to last (not included) lie in a file: (start, length)."""
    return [(spot.offset + first * width, (last - first) * width) for first, last in spans]


def all_finite(vectors: np.ndarray) -> bool:
    """No NaN and no Inf, by the bits: several times faster than np.isfinite, which converts float16."""
    bits = np.uint16 if vectors.dtype.itemsize == 2 else np.uint32
    infinite = np.array(np.inf, vectors.dtype).view(bits)
    magnitude = bits(np.iinfo(bits).max >> 1)
    words = vectors.reshape(-1).view(bits)
    step = 1 << 18  # stays in the processor's cache
    return all(
        (words[start : start + step] & magnitude).max() < infinite for start in range(0, len(words), step)
    )

"""An embedding store: rows of one identity, keyed by the content hashes of patches.

Format "patchbank-store", version 1, in words (enough to write a reader in another language):

A store is a folder, BANK/stores/NAME, or a prefix of an object store. Its description is a JSON document
found in `zarr.json` (at attributes.patchbank; backend zarr) or `store.json` (at patchbank; backend hdf5),
with a copy in `parts/`: format, version, backend, identity, block_rows, created, provenance, and `sum`,
the xxh3-64 of the document without it as JSON with sorted keys and no spaces. All checksums are XXH3 in
hexadecimal; numbers in files are little endian.

Rows come in immutable blocks of at most block_rows rows: the vectors, (rows, dim), and the keys, (rows, 16)
bytes, both plain arrays in C order. A block exists when a line of a log in `parts/log/` says so (log.py) and
no line retires it. Where the arrays lie:

  zarr  parts/blocks/BLOCK.vectors and .keys from byte 0 or, where there is no such file, the chunks
        embeddings/c/I/0 and content_hash/c/I/0, I being the block's place in the newest `order` line.
        The last block of the order may be padded with `padding` rows of zeros.
  hdf5  parts/blocks/BLOCK.h5 from the bytes `vectors_at` and `keys_at` of the block's line.

`segments` in the block's line holds a 64-bit checksum of every 256 rows: of their vectors' bytes followed by
their keys' bytes; `keys` is the checksum of all keys and `first` that of the first vector (readers compare
them, since a chunk may hold another block after the arrays were built anew). BLOCK is 12 random hex digits,
"-", and the 128-bit checksum of the text "ROWS:SEGMENTS".
A key may stand in several blocks (two machines embedded the same patch); any of its rows is good, readers
take the first by the time, then the name of the block.

Writing: the files of a block under a temporary name, fsync, rename, fsync of the folder; then the line in
the writer's own log, fsync. So a kill at any moment leaves either the block or some files that nobody sees
and `gc` sweeps after a day; and what a reader sees is what was written.
"""

import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import xxhash

from ..errors import InvalidRequest, RowsMissing, StoreError, StoreNotFound, VectorRefused
from .files import Files, LocalFiles, as_bytes, explained
from .identity import Identity
from .index import BATCH, KEY_BYTES, KeyIndex, as_keys
from .layout import (
    BLOCKS,
    FORMAT,
    VERSION,
    Layout,
    Spot,
    block_name,
    check_description,
    seal,
    segments_of,
)
from .leases import TTL, Claims
from .log import FOLDER as LOGS
from .log import Block, Catalog, LogWriter

BLOCK_ROWS = 8192
BACKENDS = ("zarr", "hdf5")
MAPS = 4096  # memory maps that stay open; Linux allows a process 65,530


def layout_class(backend: str) -> type[Layout]:
    if backend == "zarr":
        from .zarr_layout import ZarrLayout

        return ZarrLayout
    if backend == "hdf5":
        from .hdf5_layout import Hdf5Layout

        return Hdf5Layout
    raise InvalidRequest(f"there is no backend {backend!r}; there are {' and '.join(BACKENDS)}")


def is_empty(files: Files) -> bool:
    """Whether nothing has been written there yet: no description, no block, no log."""
    for backend in BACKENDS:
        if any(files.exists(description) for description in layout_class(backend).descriptions):
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
        self.backend: str = self.description["backend"]
        self.block_rows: int = self.description["block_rows"]
        self.layout = layout_class(self.backend)(
            files, dim=self.identity.dim, dtype=self.identity.dtype, block_rows=self.block_rows
        )
        self.session = dict(provenance or {})  # goes into the logs of this object's writers
        self.catalog = Catalog(files)
        self._lock = threading.RLock()
        self._maps: dict[str, np.ndarray] = {}
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
            raise InvalidRequest(f"block_rows is {block_rows}; a block has at least one row")
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
            files.create(first, kind.describe(seal(document)))
            if not files.exists(copy):
                files.put({copy: [files.read(first)]})
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
        self._maps.clear()
        self._checked: set[str] = set()  # remote blocks that are where the log says

    def refresh(self) -> None:
        """Takes in what was published (by anybody) since the store was opened."""
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
            try:
                self._extend()
            except FileNotFoundError:  # packed by `finalize` and swept by `gc` since the log was read
                self.reopen()
                self._extend()

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
        with self._lock:
            self._index()
            return self._rows.find(keys) >= 0

    def keys(self) -> np.ndarray:
        """Every key once, in the order in which the rows are stored: uint8, (len(self), 16)."""
        with self._lock, explained("read", self._files):
            self._index()
            keys = [self.keys_of(block) for block in self._blocks]
            rows = np.concatenate(keys) if keys else np.empty((0, KEY_BYTES), np.uint8)
            return rows if len(rows) == len(self._rows) else rows[self._rows.first_rows()]

    # --- reading --------------------------------------------------------------------------------------

    def spot_of(self, block: Block) -> tuple[Spot, Spot]:
        """Where the vectors and the keys of a block lie now. FileNotFoundError if nowhere."""
        return self._spot(block, 0), self._spot(block, 1)

    def _spot(self, block: Block, array: int) -> Spot:
        spots = self.layout.spots(block, self.catalog.chunks.get(block.id))[array]
        for spot in spots:
            if len(spots) == 1 or self._files.exists(spot.file):
                return spot
        raise FileNotFoundError(2, "no such file", f"{self._files}/{spots[0].file}")

    def keys_of(self, block: Block) -> np.ndarray:
        """uint8, (rows, 16)."""
        spot = self._spot(block, 1)
        content = self._files.read(spot.file, spot.offset, block.rows * KEY_BYTES)
        if xxhash.xxh3_64_hexdigest(content) != block.keys_sum:
            raise _another_block(f"{self._files}/{spot.file}")
        return np.frombuffer(content, np.uint8).reshape(block.rows, KEY_BYTES)

    def vectors_of(self, block: Block) -> np.ndarray:
        """(rows, dim), read-only: a memory map of a local store, a copy of a remote one."""
        with self._lock:
            known = self._maps.get(block.id)
            if known is not None:
                return known
            if isinstance(self._files, LocalFiles):
                if len(self._maps) >= MAPS:
                    self._maps.clear()
                vectors = self._map(self._files, block)
                return self._maps.setdefault(block.id, vectors)
        return self._read_remote(block, 0, block.rows)

    def _map(self, files: LocalFiles, block: Block) -> np.ndarray:
        spot = self._spot(block, 0)
        if files.size(spot.file) < spot.offset + block.rows * self.layout.row_bytes:
            raise self._cut_short(spot)
        flat = np.frombuffer(files.map(spot.file), self.layout.dtype, block.rows * self.dim, spot.offset)
        vectors = flat.reshape(block.rows, self.dim)
        if xxhash.xxh3_64_hexdigest(as_bytes(vectors[0])) != block.first_sum:
            raise _another_block(f"{self._files}/{spot.file}")
        return vectors  # from here on the map holds the very file, whatever its name becomes

    def _remote_spot(self, block: Block) -> Spot:
        spot = self._spot(block, 0)
        if block.id not in self._checked:
            first = self._files.read(spot.file, spot.offset, self.layout.row_bytes)
            if xxhash.xxh3_64_hexdigest(first) != block.first_sum:
                raise _another_block(f"{self._files}/{spot.file}")
            self._checked.add(block.id)
        return spot

    def _read_remote(self, block: Block, begin: int, rows: int) -> np.ndarray:
        spot, width = self._remote_spot(block), self.layout.row_bytes
        content = self._files.read(spot.file, spot.offset + begin * width, rows * width)
        if len(content) != rows * width:
            raise self._cut_short(spot)
        return np.frombuffer(content, self.layout.dtype).reshape(rows, self.dim)

    def _cut_short(self, spot: Spot) -> StoreError:
        return StoreError(
            f"{self._files}/{spot.file} is shorter than its record says; `patchbank cache verify` says which "
            "rows are lost, `patchbank cache repair` takes them out"
        )

    def load(self, keys: np.ndarray, *, dtype: str | np.dtype | None = None) -> np.ndarray:
        """The vectors of keys (uint8 (n, 16)), in their order: (n, dim), of the store's dtype unless asked.

        Raises RowsMissing if some are not there (after a look at what was published meanwhile).
        """
        keys = as_keys(keys)
        out = np.empty((len(keys), self.dim), dtype=dtype or self.dtype)
        found = self._locate(keys)
        with explained("read", self._files):
            try:
                self._gather(out, found)
            except FileNotFoundError:  # a block was packed, moved or swept since: look again, once
                self.reopen()
                self._gather(out, self._locate(keys))
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

    def scan(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Every block as stored: (keys (rows, 16), vectors (rows, dim)), read-only, no copy on a local disk.

        A key that was embedded twice comes twice.
        """
        for block in self.catalog.live():
            with explained("read", self._files):
                yield self.keys_of(block), self.vectors_of(block)

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
            found = _Located(rows, self._blocks, self._starts)
        missing = int((rows < 0).sum())
        if missing:
            raise RowsMissing(
                f"{missing} of {len(keys)} patches have no embedding in {self._files}; "
                f"run `patchbank extract` with the encoder {self.identity.encoder['id']!r} to embed them"
            )
        return found

    def _gather(self, out: np.ndarray, found: "_Located") -> None:
        rows, blocks, starts = found.rows, found.blocks, found.starts
        if not len(rows):
            return
        order = None if (rows[1:] > rows[:-1]).all() else np.argsort(rows, kind="stable")
        ordered = rows if order is None else rows[order]
        first, last = np.searchsorted(starts, ordered[[0, -1]], side="right") - 1
        cuts = np.searchsorted(ordered, starts[first : last + 2])
        for number in range(first, last + 1):
            begin, end = cuts[number - first], cuts[number - first + 1]
            if begin == end:
                continue
            local = ordered[begin:end] - starts[number]
            into: Any = slice(begin, end) if order is None else order[begin:end]
            if order is not None and into[-1] - into[0] + 1 == len(into) and (np.diff(into) == 1).all():
                into = slice(int(into[0]), int(into[0]) + len(into))
            self._take(blocks[number], local, out, into)

    def _take(self, block: Block, local: np.ndarray, out: np.ndarray, into: Any) -> None:
        """Rows `local` (ascending) of a block to the rows `into` of `out`."""
        begin, span = int(local[0]), int(local[-1]) - int(local[0]) + 1
        solid = span == len(local) and bool((np.diff(local) == 1).all())
        if isinstance(self._files, LocalFiles):
            out[into] = (
                self.vectors_of(block)[begin : begin + span] if solid else self.vectors_of(block)[local]
            )
        elif solid or 4 * len(local) > span:
            rows = self._read_remote(block, begin, span)
            out[into] = rows if solid else rows[local - begin]
        else:
            spot, width = self._remote_spot(block), self.layout.row_bytes
            starts = (spot.offset + local * width).tolist()
            content = b"".join(self._files.read_each(spot.file, starts, width))
            if len(content) != len(local) * width:
                raise self._cut_short(spot)
            out[into] = np.frombuffer(content, self.layout.dtype).reshape(len(local), self.dim)

    # --- writing --------------------------------------------------------------------------------------

    def writer(self, *, name: str | None = None, block_rows: int | None = None) -> "StoreWriter":
        """A writer with a log of its own; any number may write at once, from any number of machines.

        block_rows: publish after so many rows, the store's block length at most (and by default).
        """
        return StoreWriter(self, name=name, block_rows=block_rows or self.block_rows)

    def claim(
        self,
        keys: np.ndarray,
        writer: "StoreWriter",
        *,
        rows: int = BLOCK_ROWS,
        ttl: float = TTL,
        wait: bool = True,
        poll: float = 2.0,
    ) -> Claims:
        """Shares the missing keys out among machines that run the same job at the same time.

            with store.writer() as writer, store.claim(keys, writer) as claims:
                for index in claims:  # positions in `keys` to embed now: int64, at most `rows`
                    writer.append(keys[index], embed(index), ids[index])

        Every machine gives the same keys in the same order; units are runs of `rows` of them. A unit is under
        a lease while its loop body runs and is published before the lease is given back. The leases of dead
        processes and of machines silent for `ttl` seconds are taken over.

        wait: when the rest is under other machines' leases, look every `poll` seconds until it is published
        or given up; otherwise stop.
        """
        return Claims(self, keys, writer, rows=rows, ttl=ttl, wait=wait, poll=poll)


@dataclass(frozen=True)
class _Located:
    """Row numbers (int64, (n,)) and the blocks that they count: a refresh may number the rows anew."""

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
                f"{len(keys)} keys, {len(stored)} vectors and {len(ids)} ids are not one row each"
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
                f"vectors have to be floats (n, {store.dim}); these are {array.dtype} {array.shape}"
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

    def publish(self, vectors: np.ndarray, keys: np.ndarray, *, padded: bool = False) -> Block:
        """Publishes checked rows, of the store's dtype, as one block (past the rows that wait for `flush`).

        padded: the block ends a finalised array and is filled up to a whole chunk.
        """
        store = self.store
        log = self.log()
        segments = segments_of(vectors, keys)
        name = block_name(secrets.token_hex(6), len(keys), segments)
        with explained("write a block to", store.files):
            extra = store.layout.write_block(name, vectors, keys, padded=padded)
        block = block_of(name, vectors, keys, segments, log.name, extra)
        log.append(block.record())
        self.published += len(keys)
        return block

    def log(self) -> LogWriter:
        """This writer's log; it is begun when there is something to say."""
        if self._log is None:
            with explained("write to", self.store.files):
                for folder in (LOGS, BLOCKS):  # what copied the store may not keep empty folders
                    self.store.files.make_folder(folder)
            self._log = LogWriter(self.store.files, self.name, {"provenance": self.store.session})
        return self._log

    def close(self) -> None:
        """Publishes the rest and closes the log."""
        try:
            self.flush()
        finally:
            if self._log is not None:
                self._log.close()


def block_of(
    name: str, vectors: np.ndarray, keys: np.ndarray, segments: str, writer: str, extra: dict[str, Any]
) -> Block:
    """The record of a block whose files are written."""
    sums = [xxhash.xxh3_64_hexdigest(as_bytes(part)) for part in (keys, vectors[0])]
    return Block(name, len(keys), segments, sums[0], sums[1], time.time(), writer, extra)


def _another_block(where: str) -> FileNotFoundError:
    """The arrays were built anew since the log was read, or the file is damaged: look again, then say so."""
    return FileNotFoundError(2, "it is not what the log says; see `patchbank cache verify`", where)


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

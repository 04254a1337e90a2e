"""The HDF5 backend: a block is an HDF5 file, the finalised arrays are virtual datasets over them.

    store.json, parts/store.json   the description and its copy
    parts/blocks/BLOCK.h5          `embeddings` (rows, dim) and `content_hash` (rows, 16), contiguous
    embeddings.h5                  written by `finalize`: virtual datasets of the same names, string columns

h5py's own files are unreadable after a kill in the middle of writing, and its errors do not say that a disk
is full; these are put together in memory and written as any other file is, whole, and readers take the rows
from their offsets, so no HDF5 handle (neither fork- nor thread-safe) is ever open while a store is in use.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import h5py
import numpy as np
import xxhash

from ..errors import InvalidRequest, StoreError
from .backend import BLOCKS, Layout, Spot, pretty
from .filesystem import Buffer, Files, LocalFiles, as_bytes
from .index import KEY_BYTES
from .log import Block
from .records import is_block_id


class Hdf5Layout(Layout):
    """Blocks as raw data sets of HDF5 files."""

    backend = "hdf5"
    descriptions = ("store.json", "parts/store.json")
    arrays = "embeddings.h5"

    def __init__(self, files: Files, *, dim: int, dtype: str, block_rows: int) -> None:
        if not isinstance(files, LocalFiles):
            raise InvalidRequest(f"{files}: HDF5 stores are local only; use the zarr backend for a URL")
        super().__init__(files, dim=dim, dtype=dtype, block_rows=block_rows)
        self.local = files

    @staticmethod
    def describe(document: dict[str, Any]) -> bytes:
        return pretty({"patchbank": document})

    @staticmethod
    def undescribe(content: bytes) -> dict[str, Any]:
        return json.loads(content)["patchbank"]

    def write_block(
        self, name: str, vectors: np.ndarray, keys: np.ndarray, *, padded: bool
    ) -> dict[str, Any]:
        """`padded` means nothing here: a virtual dataset maps blocks of any length."""
        frame = _frame_of(len(keys), self.dim, self.dtype.str)
        pieces = [frame.head, *frame.in_order(vectors, keys), frame.tail]
        self.files.put({f"{BLOCKS}/{name}.h5": pieces})
        extra = {"vectors_at": frame.vectors_at, "keys_at": frame.keys_at}
        return {**extra, "frame": f"{sum(len(as_bytes(p)) for p in pieces)}:{frame.digest}"}

    def _frame(self, file: str, rows: int, extra: dict[str, Any]) -> str:
        """The size and the checksum of all bytes of a block's file that are not rows."""
        if max(extra["vectors_at"], extra["keys_at"]) > self.files.size(file):
            return ""
        digest = xxhash.xxh3_64()
        end = 0
        for start, length in sorted(
            [(extra["vectors_at"], rows * self.row_bytes), (extra["keys_at"], rows * KEY_BYTES)]
        ):
            digest.update(self.files.read(file, end, start - end))
            end = start + length
        digest.update(self.files.read(file, end))
        return f"{self.files.size(file)}:{digest.hexdigest()}"

    def block_of(self, file: str) -> str | None:
        stem, _, kind = file.rpartition(".")
        return stem if kind == "h5" and is_block_id(stem) else None

    def recover(self, name: str) -> list[tuple[int, dict[str, Any]]]:
        try:
            with h5py.File(self.local.path(f"{BLOCKS}/{name}.h5"), "r") as file:
                vectors, keys = _own_dataset(file, "embeddings"), _own_dataset(file, "content_hash")
                if vectors is None or keys is None or len(file) != 2 or vectors.is_virtual or keys.is_virtual:
                    return []
                rows = len(keys)
                extra = {"vectors_at": vectors.id.get_offset(), "keys_at": keys.id.get_offset()}
                if vectors.shape != (rows, self.dim) or None in extra.values():
                    return []
        except (
            OSError,
            KeyError,
            RuntimeError,
            ValueError,
            TypeError,
        ):  # what h5py raises for a file that is damaged
            return []
        return [(rows, {**extra, "frame": self._frame(f"{BLOCKS}/{name}.h5", rows, extra)})]

    def spots(self, block: Block, chunk: int | None) -> tuple[list[Spot], list[Spot]]:
        file = f"{BLOCKS}/{block.id}.h5"
        if not {"vectors_at", "keys_at", "frame"} <= set(block.extra):
            raise StoreError(f"{self.files}: the record of block {block.id} does not say where its rows are")
        return [Spot(file, block.extra["vectors_at"])], [Spot(file, block.extra["keys_at"])]

    def other_bytes(self, block: Block, vectors: Spot, keys: Spot) -> str | None:
        places = {part: block.extra[part] for part in ("vectors_at", "keys_at", "frame")}
        if (block.rows, places) in self.recover(block.id):
            return None
        return f"{vectors.file}: its HDF5 metadata was changed, or its size"

    def view(self, blocks: Sequence[Block], columns: Mapping[str, Sequence[str]]) -> dict[str, bytes]:
        rows = sum(block.rows for block in blocks)
        embeddings = h5py.VirtualLayout(shape=(rows, self.dim), dtype=self.dtype)
        hashes = h5py.VirtualLayout(shape=(rows, KEY_BYTES), dtype=np.uint8)
        start = 0
        for block in blocks:
            source, end = f"{BLOCKS}/{block.id}.h5", start + block.rows
            embeddings[start:end] = h5py.VirtualSource(source, "embeddings", shape=(block.rows, self.dim))
            hashes[start:end] = h5py.VirtualSource(source, "content_hash", shape=(block.rows, KEY_BYTES))
            start = end
        image = io.BytesIO()
        with h5py.File(image, "w", libver="v110") as file:
            # a missing block reads as NaN: never as an embedding
            file.create_virtual_dataset("embeddings", embeddings, fillvalue=np.nan)
            file.create_virtual_dataset("content_hash", hashes)
            for name, values in columns.items():
                file.create_dataset(name, data=list(values), dtype=h5py.string_dtype())
        return {"embeddings.h5": image.getvalue()}

    def foreign(self, view: Mapping[str, bytes], blocks: Sequence[Block]) -> str | None:
        sources = {f"{BLOCKS}/{block.id}.h5" for block in blocks}
        for content in view.values():
            with h5py.File(io.BytesIO(content), "r") as file:
                for name in map(str, file):
                    item = _own_dataset(file, name)
                    if item is None:
                        return f"{name} in embeddings.h5 is a link or in another file"
                    parts: list[Any] = item.virtual_sources() if item.is_virtual else []
                    allowed = sources if name in {"embeddings", "content_hash"} else set[str]()
                    if any(part.file_name not in allowed or part.dset_name != name for part in parts):
                        return f"{name} in embeddings.h5 is made of other files than the blocks"
        return None

    def columns_of(self, view: Mapping[str, bytes]) -> list[str]:
        if not view:
            return []
        with h5py.File(io.BytesIO(view["embeddings.h5"]), "r") as file:
            return sorted(set(file) - {"embeddings", "content_hash"})

    def files_of(self, block: str) -> list[str]:
        return [f"{BLOCKS}/{block}.h5"]

    def chunks(self, block: str, chunk: int) -> list[tuple[str, str]]:
        """The virtual datasets point at the blocks where they are."""
        return []

    def placed(self) -> list[str]:
        return []


def _own_dataset(file: h5py.File, name: str) -> h5py.Dataset | None:
    """A data set of this very file, not behind a link and not in external storage; it may be virtual."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        return None
    item = file[name]
    return item if isinstance(item, h5py.Dataset) and not item.external else None


@dataclass(frozen=True)
class _Frame:
    """The bytes of a block's file before, between and behind its rows, and their checksum."""

    head: bytes
    between: bytes
    tail: bytes
    vectors_at: int
    keys_at: int

    def in_order(self, vectors: np.ndarray, keys: np.ndarray) -> tuple[Buffer, bytes, Buffer]:
        first, second = (vectors, keys) if self.vectors_at < self.keys_at else (keys, vectors)
        return first, self.between, second

    @property
    def digest(self) -> str:
        return xxhash.xxh3_64_hexdigest(self.head + self.between + self.tail)


@lru_cache(maxsize=64)
def _frame_of(rows: int, dim: int, dtype: str) -> _Frame:
    image = io.BytesIO()
    with h5py.File(image, "w", libver=("earliest", "v110")) as file:
        vectors_at = _reserve(file, "embeddings", (rows, dim), np.dtype(dtype))
        keys_at = _reserve(file, "content_hash", (rows, KEY_BYTES), np.dtype(np.uint8))
    content = image.getbuffer()
    (first, end_of_first), (second, end) = sorted(
        [
            (vectors_at, vectors_at + rows * dim * np.dtype(dtype).itemsize),
            (keys_at, keys_at + rows * KEY_BYTES),
        ]
    )
    head, between, tail = (bytes(content[a:b]) for a, b in ((0, first), (end_of_first, second), (end, None)))
    return _Frame(head, between, tail, vectors_at, keys_at)


def _reserve(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Creates a contiguous dataset, allocated and not filled; returns where in the file it starts."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plist.set_obj_track_times(False)
    space = h5py.h5s.create_simple(shape)
    dataset = h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(dtype), space, dcpl=plist)
    return int(dataset.get_offset())

"""The Zarr v3 backend: a store is a Zarr group, a full block is a Zarr chunk.

    zarr.json                          group; attributes["patchbank"] is the description
    parts/zarr.json                    group; its copy
    parts/blocks/BLOCK.vectors, .keys  a block
    embeddings/c/I/0                   the same file once more (a hard link; a copy where there are none):
    content_hash/c/I/0                 the vectors and the keys of the I-th block of the finalised order
    embeddings/zarr.json, ...          written by `finalize`
    patch_id/, label/, ...             string columns, where `finalize` was given a table

The metadata and chunks are written directly: both are simple, the bytes have to be ours (checksums, fsync,
rename), and no second copy is made where the file system has hard links. Nothing that happens to a chunk's
name touches the block. (patchbank 0.1.0 renamed blocks to chunks: those are read where they are, and get
files of their own from the next `finalize` or `repair`.)
"""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .backend import BLOCKS, Layout, Spot, pretty
from .index import KEY_BYTES
from .log import Block
from .records import is_block_id


class ZarrLayout(Layout):
    """Blocks as chunks of a Zarr v3 array."""

    backend = "zarr"
    descriptions = ("zarr.json", "parts/zarr.json")
    arrays = "embeddings/zarr.json"

    @staticmethod
    def describe(document: dict[str, Any]) -> bytes:
        return pretty({"zarr_format": 3, "node_type": "group", "attributes": {"patchbank": document}})

    @staticmethod
    def undescribe(content: bytes) -> dict[str, Any]:
        return json.loads(content)["attributes"]["patchbank"]

    def write_block(
        self, name: str, vectors: np.ndarray, keys: np.ndarray, *, padded: bool
    ) -> dict[str, Any]:
        missing = self.block_rows - len(keys) if padded else 0
        self.files.put(
            {
                f"{BLOCKS}/{name}.vectors": [vectors, bytes(missing * self.row_bytes)],
                f"{BLOCKS}/{name}.keys": [keys, bytes(missing * KEY_BYTES)],
            }
        )
        return {"padding": missing} if missing else {}

    def block_of(self, file: str) -> str | None:
        stem, _, kind = file.rpartition(".")
        return stem if kind in {"vectors", "keys"} and is_block_id(stem) else None

    def recover(self, name: str) -> list[tuple[int, dict[str, Any]]]:
        try:
            keys = np.frombuffer(self.files.read(f"{BLOCKS}/{name}.keys"), np.uint8)
            size = self.files.size(f"{BLOCKS}/{name}.vectors")
        except FileNotFoundError:
            return []
        rows, odd = divmod(len(keys), KEY_BYTES)
        if not rows or odd or size != rows * self.row_bytes:
            return []
        used = -(-(int(np.flatnonzero(keys).max(initial=-1)) + 1) // KEY_BYTES)  # the rest may be padding
        padded = [(used, {"padding": rows - used})] if 0 < used < rows else []
        return [(rows, {}), *padded]

    def spots(self, block: Block, chunk: int | None) -> tuple[list[Spot], list[Spot]]:
        vectors = [Spot(f"{BLOCKS}/{block.id}.vectors", 0)]
        keys = [Spot(f"{BLOCKS}/{block.id}.keys", 0)]
        if chunk is not None:
            vectors.append(Spot(f"embeddings/c/{chunk}/0", 0))
            keys.append(Spot(f"content_hash/c/{chunk}/0", 0))
        return vectors, keys

    def other_bytes(self, block: Block, vectors: Spot, keys: Spot) -> str | None:
        padding = block.extra.get("padding", 0)
        for spot, width in ((vectors, self.row_bytes), (keys, KEY_BYTES)):
            wanted, size = (block.rows + padding) * width, self.files.size(spot.file)
            if size != wanted:
                return f"{spot.file} has {size} bytes, not {wanted}"
            if padding and any(self.files.read(spot.file, block.rows * width)):
                return f"the padding of {spot.file} is not zero"
        return None

    def view(self, blocks: Sequence[Block], columns: Mapping[str, Sequence[str]]) -> dict[str, bytes]:
        rows = sum(block.rows for block in blocks)
        files: dict[str, bytes] = {}
        for name, values in columns.items():
            for chunk, start in enumerate(range(0, rows, self.block_rows)):
                files[f"{name}/c/{chunk}"] = _strings(
                    values[start : start + self.block_rows], self.block_rows
                )
            files[f"{name}/zarr.json"] = self._column(rows)
        shape, chunks = [rows, KEY_BYTES], [self.block_rows, KEY_BYTES]
        files["content_hash/zarr.json"] = _array(shape, chunks, "uint8", 0, [{"name": "bytes"}])
        little = [{"name": "bytes", "configuration": {"endian": "little"}}]
        shape, chunks = [rows, self.dim], [self.block_rows, self.dim]
        # a missing chunk reads as NaN: never as an embedding
        files["embeddings/zarr.json"] = _array(shape, chunks, self.dtype.name, "NaN", little)
        return files

    def _column(self, rows: int) -> bytes:
        return _array([rows], [self.block_rows], "string", "", [{"name": "vlen-utf8"}])

    def foreign(self, view: Mapping[str, bytes], blocks: Sequence[Block]) -> str | None:
        right = self.view(blocks, {})
        column = self._column(sum(block.rows for block in blocks))
        for name, content in view.items():
            if name.endswith("/zarr.json") and content != right.get(name, column):
                return f"{name} does not describe the array that `finalize` makes"
        return None

    def columns_of(self, view: Mapping[str, bytes]) -> list[str]:
        return sorted({name.partition("/")[0] for name in view} - {"embeddings", "content_hash"})

    def files_of(self, block: str) -> list[str]:
        return [f"{BLOCKS}/{block}.vectors", f"{BLOCKS}/{block}.keys"]

    def chunks(self, block: str, chunk: int) -> list[tuple[str, str]]:
        names = [f"{array}/c/{chunk}/0" for array in ("embeddings", "content_hash")]
        return list(zip(self.files_of(block), names, strict=True))

    def placed(self) -> list[str]:
        return [
            f"{array}/c/{chunk}/0"
            for array in ("embeddings", "content_hash")
            for chunk in self.files.names(f"{array}/c")
            if chunk.isdecimal() and (self.files.remote or self.files.exists(f"{array}/c/{chunk}/0"))
        ]


def _array(shape: list[int], chunks: list[int], dtype: str, fill: Any, codecs: list[dict[str, Any]]) -> bytes:
    return pretty(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": shape,
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": fill,
            "codecs": codecs,
            "attributes": {},
            "storage_transformers": [],
        }
    )


def _strings(values: Sequence[str], count: int) -> bytes:
    """A chunk of the vlen-utf8 codec: the count, then each string's length and bytes; padded with ""."""
    pieces = [struct.pack("<I", count)]
    for value in values:
        encoded = value.encode()
        pieces += [struct.pack("<I", len(encoded)), encoded]
    return b"".join(pieces) + bytes(4 * (count - len(values)))

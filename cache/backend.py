"""How a backend lays blocks out in files, and what a finalised store looks like to other software.

A block is one vectors array (rows, dim), little endian, C order, uncompressed, and one keys array
(rows, 16) uint8; where they start in which file is all that readers need, so reading is the same code
for every backend and never goes through a library.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from ..errors import StoreError
from .filesystem import Buffer, Files, as_bytes
from .identity import canonical
from .index import KEY_BYTES
from .log import Block
from .records import MAX_ROWS, SEGMENT_ROWS

FORMAT = "patchbank-store"
VERSION = 1
MAX_BLOCK = 1 << 32  # bytes of the vectors of a block, which are in memory at once
RUN_BYTES = 1 << 20  # read and checked at a time: stays in the processor's cache
BLOCKS = "parts/blocks"


@dataclass(frozen=True)
class Spot:
    """Where an array starts: a file of the store and a byte in it."""

    file: str
    offset: int


class Layout(ABC):
    """One backend. `dim` and `dtype` are those of the store, `block_rows` its chunk length."""

    backend: str
    descriptions: tuple[str, str]  # the file that describes the store, and its copy
    arrays: str  # the file that makes the finalised arrays appear

    def __init__(self, files: Files, *, dim: int, dtype: str, block_rows: int) -> None:
        self.files = files
        self.dim = dim
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.block_rows = block_rows
        self.row_bytes = dim * self.dtype.itemsize

    @staticmethod
    @abstractmethod
    def describe(document: dict[str, Any]) -> bytes:
        """The bytes of a description file that carries `document`."""

    @staticmethod
    @abstractmethod
    def undescribe(content: bytes) -> dict[str, Any]:
        """The document in a description file. ValueError, KeyError, TypeError where there is none."""

    @abstractmethod
    def write_block(
        self, name: str, vectors: np.ndarray, keys: np.ndarray, *, padded: bool
    ) -> dict[str, Any]:
        """Makes the files of a block durable; returns what its record needs beside the common part.

        padded: the block will be the last chunk of a finalised array; fill it up with zeros if need be.
        """

    @abstractmethod
    def block_of(self, file: str) -> str | None:
        """The block whose own file (a name in parts/blocks) this is."""

    @abstractmethod
    def recover(self, name: str) -> list[tuple[int, dict[str, Any]]]:
        """What the record of a block may have said, from its own files alone: (rows, extras) to try."""

    @abstractmethod
    def spots(self, block: Block, chunk: int | None) -> tuple[list[Spot], list[Spot]]:
        """Where the vectors and where the keys may be: look in this order. chunk: place in the order."""

    @abstractmethod
    def other_bytes(self, block: Block, vectors: Spot, keys: Spot) -> str | None:
        """What is wrong with the bytes of a block's files that are not rows, or None."""

    @abstractmethod
    def view(self, blocks: Sequence[Block], columns: Mapping[str, Sequence[str]]) -> dict[str, bytes]:
        """The files, beside the blocks' own, that make blocks in this order plain arrays of the format.

        columns: one string a row. The last file is the one that makes the arrays appear.
        """

    @abstractmethod
    def columns_of(self, view: Mapping[str, bytes]) -> list[str]:
        """The names of the columns in what `view` gave."""

    @abstractmethod
    def foreign(self, view: Mapping[str, bytes], blocks: Sequence[Block]) -> str | None:
        """What in a view's files is not what `view` makes of these blocks, whatever its columns, or None.

        Checksums are not signatures: whoever made the store may have used codecs that run code, or arrays
        that are in other files.
        """

    @abstractmethod
    def files_of(self, block: str) -> list[str]:
        """A block's own files."""

    @abstractmethod
    def chunks(self, block: str, chunk: int) -> list[tuple[str, str]]:
        """A block's own files, each with the name that it has too where the arrays hold the block."""

    @abstractmethod
    def placed(self) -> list[str]:
        """Every file that is there now under a name that `chunks` may give."""


def sums_of(vectors: Buffer, keys: Buffer, row_bytes: int) -> Iterator[str]:
    """The checksum of every 256 rows, 16 hex digits: xxh3-64 of the vectors' bytes, then the keys'."""
    vectors, keys = as_bytes(vectors), as_bytes(keys)
    step, width = SEGMENT_ROWS * row_bytes, SEGMENT_ROWS * KEY_BYTES
    for number in range(-(-len(keys) // width)):
        digest = xxhash.xxh3_64(vectors[number * step : (number + 1) * step])
        digest.update(keys[number * width : (number + 1) * width])
        yield digest.hexdigest()


def segments_of(vectors: np.ndarray, keys: np.ndarray) -> str:
    """`sums_of` one after the other."""
    return "".join(sums_of(vectors, keys, vectors.shape[1] * vectors.dtype.itemsize))


def read_raw(files: Files, spots: tuple[Spot, Spot], vectors: np.ndarray, keys: np.ndarray) -> None:
    """Fills both arrays with what the files hold, right or wrong; what they are too short for stays."""
    for spot, array in zip(spots, (vectors, keys), strict=True):
        files.read_into(spot.file, spot.offset, as_bytes(array))


def bad_segments(block: Block, vectors: np.ndarray, keys: np.ndarray) -> list[int]:
    """Which 256 rows of a block are not what its record says."""
    now = segments_of(vectors, keys)
    return [i // 16 for i in range(0, len(now), 16) if now[i : i + 16] != block.segments[i : i + 16]]


def compared(
    files: Files, spots: tuple[Spot, Spot], block: Block, row_bytes: int
) -> tuple[list[int], np.ndarray]:
    """`bad_segments` of a block that is read piece by piece, and its keys as they are."""
    vectors, keys = spots[0], np.zeros((block.rows, KEY_BYTES), np.uint8)
    files.read_into(spots[1].file, spots[1].offset, as_bytes(keys))
    segments = max(1, RUN_BYTES // (SEGMENT_ROWS * row_bytes))
    step = block.rows if files.remote else min(block.rows, segments * SEGMENT_ROWS)
    scratch = np.empty(step * row_bytes, np.uint8).data
    now: list[str] = []
    for first in range(0, block.rows, step):
        part = keys[first : first + step]
        piece = scratch[: len(part) * row_bytes]
        done = files.read_into(vectors.file, vectors.offset + first * row_bytes, piece)
        piece[done:] = bytes(len(piece) - done)
        now += sums_of(piece, part, row_bytes)
    return [i for i, digest in enumerate(now) if digest != block.segments[16 * i : 16 * i + 16]], keys


def block_name(nonce: str, rows: int, segments: str) -> str:
    """The name of a block proves its content, so that the block can be trusted even if its record is lost."""
    return f"{nonce}-{xxhash.xxh3_128_hexdigest(f'{rows}:{segments}'.encode())}"


def name_fits(name: str, rows: int, segments: str) -> bool:
    """Whether a block of this content has this name."""
    nonce, _, _ = name.partition("-")
    return name == block_name(nonce, rows, segments)


def seal(document: dict[str, Any]) -> dict[str, Any]:
    """The document with its own checksum as the member "sum"."""
    body = {name: value for name, value in document.items() if name != "sum"}
    return {**body, "sum": xxhash.xxh3_64_hexdigest(canonical(body).encode())}


def pretty(document: dict[str, Any]) -> bytes:
    """The document as indented JSON in UTF-8, with a newline at its end."""
    return (json.dumps(document, indent=2) + "\n").encode()


def check_description(document: dict[str, Any], where: str, backend: str) -> dict[str, Any]:
    """The sealed description of a store, of a format that this version reads.

    Raises StoreError: another format, a newer version, a checksum that does not fit.
    """
    if document.get("format") != FORMAT:
        raise StoreError(
            f"{where} is not an embedding store (its format is {document.get('format')!r}, not {FORMAT!r})"
        )
    if document.get("version") != VERSION:
        raise StoreError(
            f"{where}: the store has format version {document.get('version')!r}, this patchbank reads "
            f"version {VERSION}; update patchbank"
        )
    if seal(document)["sum"] != document.get("sum"):
        raise StoreError(
            f"{where}: the description was changed after it was written; `patchbank cache repair` restores "
            "it from its copy"
        )
    rows = document.get("block_rows")
    if not isinstance(rows, int) or isinstance(rows, bool) or not 1 <= rows <= MAX_ROWS:
        raise StoreError(f"{where}: block_rows is {rows!r}, not a number of rows")
    for part, kind in (("identity", dict), ("provenance", dict), ("created", str)):
        if not isinstance(document.get(part), kind):
            raise StoreError(f"{where}: the description has no {part}")
    if document.get("backend") != backend:
        raise StoreError(f"{where}: the backend is {document.get('backend')!r}, in a file of {backend!r}")
    return document

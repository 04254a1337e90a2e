"""Arrays of HDF5 files that may come from anywhere: they lead into no other file and fit into memory."""

import math
import os
import zlib
from itertools import product
from typing import Any

import h5py
import numpy as np

from ..errors import ImageError

CHUNK_BYTES = 1 << 30  # of a chunk, which is read and decompressed as a whole
UNCHECKED_BYTES = 1 << 28  # a chunk that cannot decompress to more is not looked at before it is read
ARRAY_RATIO = 5000  # bytes claimed per byte stored
RATIOS = {h5py.h5z.FILTER_DEFLATE: 1032, h5py.h5z.FILTER_LZF: 88}  # at most, by the formats of the two
SAME_SIZE = {h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
LINKS = 16  # that lead to one array


def hdf5_array(store: h5py.File, key: str, path: str | os.PathLike[str]) -> h5py.Dataset:
    """An array that lies in this file as a whole; read it with `hdf5_rows`.

    Raises ImageError: no such array; one that is read from other files (external links, external storage,
    virtual data sets); one that claims more than its bytes can hold, chunks too large to read, or filters
    whose output has no known size.
    """
    _refuse_external(store, key, path)
    array = store.get(key)
    if not isinstance(array, h5py.Dataset):
        raise ImageError(f"{path}: there is no array {key!r}; the file has {sorted(store)}.")
    if array.is_virtual or array.external:
        raise ImageError(f"{path}: {key!r} is stored in other files, which are not read; copy it into one.")
    stored = array.id.get_storage_size()
    if array.dtype.kind != "O" and array.nbytes > ARRAY_RATIO * max(stored, 1):
        raise ImageError(f"{path}: {key!r} claims {array.nbytes} bytes and holds {stored}.")
    if array.chunks and _chunk_bytes(array) > CHUNK_BYTES:
        raise ImageError(f"{path}: {key!r} has chunks {array.chunks}, too large to read.")
    filters = [(code, name) for code, name in _filters(array) if code not in SAME_SIZE]
    if len(filters) > 1 or any(code not in RATIOS for code, _ in filters):
        names = ", ".join(name for _, name in filters)
        raise ImageError(
            f"{path}: {key!r} is compressed with {names}; only gzip and lzf say in advance how "
            "large a chunk gets. Fix: `h5repack -f GZIP=4` it, if you trust its source."
        )
    return array


def hdf5_rows(
    array: h5py.Dataset, rows: int | slice, path: str | os.PathLike[str], checked: set[Any] | None = None
) -> np.ndarray:
    """Rows of an array that `hdf5_array` returned.

    checked : chunks that need no second look, by array and position; those of this call are added

    Raises ImageError where a chunk decompresses to more than the array's chunks hold: HDF5 itself goes on
    until the memory is full.
    """
    checked = set() if checked is None else checked
    compressor = next((code for code, _ in _filters(array) if code in RATIOS), None)
    if compressor is not None and array.chunks is not None:
        spans = [range(n) for n in array.shape]
        spans[0] = spans[0][rows] if isinstance(rows, slice) else range(rows, rows + 1)
        steps = [range(s.start // c * c, s.stop, c) for s, c in zip(spans, array.chunks, strict=True)]
        for at in product(*steps):
            if (array.name, at) not in checked:
                _check_chunk(array, at, compressor, path)
                checked.add((array.name, at))
    return np.asarray(array[rows if array.shape else ()])


def _check_chunk(
    array: h5py.Dataset, at: tuple[int, ...], compressor: int, path: str | os.PathLike[str]
) -> None:
    stored = array.id.get_chunk_info_by_coord(at).size
    if stored * RATIOS[compressor] <= UNCHECKED_BYTES:
        return
    limit = _chunk_bytes(array)
    if compressor == h5py.h5z.FILTER_DEFLATE:
        _, data = array.id.read_direct_chunk(at)
        try:
            too_large = len(zlib.decompressobj().decompress(data, limit + 1)) > limit
        except zlib.error:  # HDF5 says so too, at the same byte
            return
    else:
        too_large = stored * RATIOS[compressor] > CHUNK_BYTES
    if too_large:
        raise ImageError(
            f"{path}: the chunk of {array.name} at {at} decompresses to more than the {limit} bytes of a "
            "chunk: it is damaged, or made to fill the memory."
        )


def _chunk_bytes(array: h5py.Dataset) -> int:
    return math.prod(array.chunks or ()) * array.dtype.itemsize


def _filters(array: h5py.Dataset) -> list[tuple[int, str]]:
    """(code, name) of the filters that its chunks go through."""
    plist = array.id.get_create_plist()
    filters = [plist.get_filter(i) for i in range(plist.get_nfilters())]
    return [(code, name.decode("utf-8", "replace") or f"filter {code}") for code, _, _, name in filters]


def _refuse_external(store: h5py.File, key: str, path: str | os.PathLike[str]) -> None:
    """Before anything is opened, follow the names to the array: none may lead into another file."""
    parts, done, links = key.strip("/").split("/"), "", 0
    while parts:
        above, done = done, f"{done}/{parts.pop(0)}"
        link = store.get(done, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise ImageError(f"{path}: {key!r} is a link into another file, which is not followed.")
        if isinstance(link, h5py.SoftLink):
            links += 1
            if links > LINKS:
                raise ImageError(f"{path}: {key!r} is a circular link.")
            parts = [*link.path.strip("/").split("/"), *parts]
            done = "" if link.path.startswith("/") else above

"""HDF5: exports of the layouts trident, clam and stamp, and the files of these programs."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..export.rows import STEP, Rows
from ..untrusted import check_hdf5, check_size
from .documents import Vectors, checked, document_of
from .source import Source, chosen, encoder_of, flat, of_slide, single

if TYPE_CHECKING:
    import h5py

STRINGS = 1 << 28  # bytes of text in memory at a time, at the very most


def read_h5(path: Path, name: str) -> Rows:
    """The rows of an export whose vectors are in the data set `name`."""
    import h5py

    with h5py.File(path, "r") as file:
        check_hdf5(file, path, compressed=True)  # first: HDF5 may not return from reading a damaged file
        document = document_of(path, file.attrs.get("patchbank"))
        check_hdf5(file, path)
        data = dataset_in(file, name)
        skip = {name, "coords", "content_hash", "row_checksum"}
        columns = {
            column: column_in(dataset_in(file, column), path)
            for column in map(str, file)
            if column not in skip
        }
        keys = np.asarray(dataset_in(file, "content_hash"))
        sums = np.asarray(dataset_in(file, "row_checksum")) if "row_checksum" in file else None
        shape, dtype = data.shape, data.dtype

    def read() -> Iterator[np.ndarray]:
        with h5py.File(path, "r") as file:
            for start in range(0, shape[0], STEP):
                yield dataset_in(file, name)[start : start + STEP]

    return checked(path, document, keys, columns, Vectors(shape, dtype, read), sums)


def dataset_in(file: "h5py.File", name: str) -> "h5py.Dataset":
    """A data set of the file. Raises ValueError for anything else."""
    import h5py

    item = file[name]
    if not isinstance(item, h5py.Dataset) or item.shape is None or not item.shape:
        raise ValueError(f"{name} is not an array")
    return item


def column_in(data: "h5py.Dataset", path: Path) -> np.ndarray:
    """A column; texts some at a time."""
    import h5py

    if h5py.check_string_dtype(data.dtype) is None:
        return data[:]
    size = path.stat().st_size
    step = max(1, STRINGS // max(size, 1))  # many texts may be one and the same in the file
    words: list[str] = []
    total = 0
    for start in range(0, len(data), step):
        words += np.asarray(data.asstr()[start : start + step]).tolist()
        total += sum(map(len, words[start:]))
        check_size(path, total, size)
    return np.array(words, dtype=object)


def foreign_h5(path: Path, root: Path, key: str) -> Source:
    """A file of TRIDENT, CLAM or STAMP, or any with an array of embeddings; it is one slide."""
    import h5py

    with h5py.File(path, "r") as file:
        check_hdf5(file, path, compressed=True)
        arrays: dict[str, h5py.Dataset] = {}
        for name in map(str, file):
            item = file[name]
            if isinstance(item, h5py.Dataset) and item.shape:
                arrays[name] = item
        floats = {
            name: item.shape for name, item in arrays.items() if item.dtype.kind == "f" and name != "coords"
        }
        name = chosen(path, floats, key)
        data = arrays[name]
        attributes = {**file.attrs, **data.attrs}
        coords = None
        if "coords" in arrays:
            coords = arrays["coords"][()]
            attributes |= dict(arrays["coords"].attrs)
        shape, dtype = data.shape, data.dtype
    squeezed = len(shape) == 3 and shape[0] == 1

    def read() -> Iterator[np.ndarray]:
        with h5py.File(path, "r") as file:
            data = dataset_in(file, name)
            rows = shape[1] if squeezed else shape[0]
            for start in range(0, rows if len(shape) > 1 else 1, STEP):
                part = slice(start, start + STEP)
                yield data[()] if len(shape) == 1 else data[0, part] if squeezed else data[part]

    vectors = flat(Vectors(shape, dtype, read), path)
    columns = of_slide(path, coords, attributes, vectors.shape[0])
    return single(path, root, "stamp" if name == "feats" else "h5", vectors, columns, encoder_of(attributes))

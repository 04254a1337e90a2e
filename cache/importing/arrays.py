"""NumPy's files: .npy with a table, .npz; no pickles."""

import zipfile
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np

from ..export.rows import STEP, Rows
from ..filesystem import LocalFiles
from ..untrusted import check_size, npy_header
from .documents import Vectors, checked, document_of, from_frame, in_memory
from .parquet import table_in


def read_npy(path: Path) -> Rows:
    """The rows of an export."""
    LocalFiles(path).walk()  # refuses links and pipes
    document = document_of(path, (path / "patchbank.json").read_text("utf-8"))
    frame = table_in(path / "metadata/metadata_0.parquet")
    array = path / "embeddings/embeddings_0.npy"
    with array.open("rb") as file:
        shape, dtype = npy_header(file, array)
        start = file.tell()
    if prod(shape) * dtype.itemsize != array.stat().st_size - start:
        raise ValueError(f"{array.name} is not as long as its header says")
    vectors = np.load(array, mmap_mode="r", allow_pickle=False)
    return from_frame(path, document, frame, Vectors(shape, dtype, in_memory(vectors).read))


def read_npz(path: Path) -> Rows:
    """The rows of an export."""
    with zipfile.ZipFile(path) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
        if len(names) != len(archive.namelist()):
            raise ValueError("it has two arrays of the same name")
        shapes = {name: npz_header(archive, name, path) for name in names}
        arrays = {name: npz_array(archive, name, path) for name in names - {"embeddings"}}
    document = document_of(path, str(arrays.pop("patchbank", "")))
    keys, sums = arrays.pop("content_hash"), arrays.pop("row_checksum", None)
    columns = {n: a.astype(object) if a.dtype.kind == "U" else a for n, a in arrays.items()}
    shape, dtype = shapes["embeddings"]

    def read() -> Iterator[np.ndarray]:
        width = prod(shape[1:]) * dtype.itemsize
        with zipfile.ZipFile(path) as archive, archive.open("embeddings.npy") as file:
            npy_header(file, path)
            for start in range(0, shape[0], STEP):
                rows = min(STEP, shape[0] - start)
                yield np.frombuffer(file.read(rows * width), dtype).reshape(rows, *shape[1:])

    return checked(path, document, keys, columns, Vectors(shape, dtype, read), sums)


def npz_header(archive: zipfile.ZipFile, name: str, path: Path) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array, which its stored bytes can hold."""
    with archive.open(f"{name}.npy") as file:
        shape, dtype = npy_header(file, path)
    check_size(path, prod(shape) * dtype.itemsize, archive.getinfo(f"{name}.npy").compress_size)
    return shape, dtype


def npz_array(archive: zipfile.ZipFile, name: str, path: Path) -> np.ndarray:
    """A small array of the archive."""
    with archive.open(f"{name}.npy") as file:
        shape, dtype = npy_header(file, path)
        return np.frombuffer(file.read(prod(shape) * dtype.itemsize), dtype).reshape(shape)

"""NumPy's files: .npy with a table, .npz; no pickles."""

import zipfile
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
import pandas as pd

from ...errors import InvalidRequest
from ..export.rows import STEP, Rows
from ..filesystem import LocalFiles
from ..untrusted import check_size, npy_header
from .documents import Vectors, checked, document_of, from_frame, in_memory
from .parquet import table_in
from .source import Source, by_id, chosen, columns_of, flat, joined, of_slide, single, with_ids


def read_npy(path: Path) -> Rows:
    """The rows of an export."""
    if not (path / "patchbank.json").exists():
        document_of(path, None)
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
        if "patchbank" not in names:
            document_of(path, None)
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


def foreign_npy(path: Path, root: Path, key: str) -> Source:
    """One array; in a folder of them each is a slide."""
    vectors = _npy(path)
    columns = {} if path == root else of_slide(path, None, {}, vectors.shape[0])
    return single(path, root, "npy", vectors, columns)


def _npy(path: Path) -> Vectors:
    with path.open("rb") as file:
        shape, dtype = npy_header(file, path, columns_first=True)  # np.load reads both
        start = file.tell()
    if prod(shape) * dtype.itemsize != path.stat().st_size - start:
        raise ValueError("it is not as long as its header says")
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    whole = flat(Vectors(shape, dtype, lambda: iter(())), path)
    return in_memory(array.reshape(whole.shape))


def foreign_npz(path: Path, root: Path, key: str) -> Source:
    """An archive of arrays: the embeddings, and any others of n values as columns."""
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if len({*names}) != len(names):
            raise ValueError("it has two arrays of the same name")
        shapes = {name: npz_header(archive, name, path) for name in names}
        if not key and all(len(shape) == 1 for shape, _ in shapes.values()):
            source = by_id(path, root, "npz", {name: npz_array(archive, name, path) for name in names})
            if source is not None:
                return source
        name = chosen(path, {n: shape for n, (shape, dtype) in shapes.items() if dtype.kind == "f"}, key)
        vectors = flat(in_memory(npz_array(archive, name, path)), path)
        rows = vectors.shape[0]
        columns = {
            n: npz_array(archive, n, path)
            for n, (shape, dtype) in shapes.items()
            if shape == (rows,) and n != name and dtype.kind in "iufbU"
        }
        coords = npz_array(archive, "coords", path) if "coords" in shapes and name != "coords" else None
    if coords is not None or path != root:
        columns = {**of_slide(path, coords, {}, rows), **columns}
    plain = {
        n: values.astype(object) if values.dtype.kind == "U" else values for n, values in columns.items()
    }
    return single(path, root, "npz", vectors, with_ids(plain))


def foreign_npy_folder(path: Path, root: Path, key: str) -> Source:
    """embedding-reader's folder: embeddings/*.npy and metadata/*.parquet, in the order of their names."""
    arrays = sorted((path / "embeddings").glob("*.npy"))
    tables = sorted((path / "metadata").glob("*.parquet"))
    if tables and len(tables) != len(arrays):
        raise InvalidRequest(f"{path} has {len(arrays)} files of embeddings, and {len(tables)} of metadata")
    parts: list[Source] = []
    for i, array in enumerate(arrays):
        frame = table_in(tables[i]) if tables else pd.DataFrame()
        parts.append(single(array, root, "npy", _npy(array), columns_of(frame)))
    return joined(path, "npy", parts)

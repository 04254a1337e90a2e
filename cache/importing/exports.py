"""Exports back into a store, bit for bit: what export.py wrote, and nothing else.

The file may come from anywhere. All of it is read and compared with its checksums before a store is made, and
the vectors once more on their way there. Exports of patchbank 0.1.0 have no checksums.
"""

import json
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ...errors import InvalidRequest
from ..backend import seal
from ..bank import Bank
from ..columns import read_columns
from ..export.write import (
    FORMAT,
    LAYOUTS,
    SAFETENSORS,
    STEP,
    VERSION,
    Rows,
    anndata_module,
    column_sum,
    row_sums,
)
from ..filesystem import LocalFiles, explained
from ..identity import Identity
from ..index import KEY_BYTES, KeyIndex, as_keys
from ..store import Store
from ..table import keys_of_table
from ..untrusted import (
    check_hdf5,
    check_regular,
    check_size,
    check_zarr,
    npy_header,
    readable,
)

if TYPE_CHECKING:
    import h5py

DAMAGED = "the export is damaged, or was edited: copy or export it again"
STRINGS = 1 << 28  # bytes of text in memory at a time, at the very most


@dataclass(frozen=True)
class Vectors:
    """The vectors in an export: their shape and type, and `read`, which gives them STEP rows at a time."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], Iterator[np.ndarray]]


def _in_memory(array: Any) -> Vectors:
    if not isinstance(array, np.ndarray):
        raise ValueError(f"the vectors are a {type(array).__name__}")
    steps = range(0, len(array), STEP)
    return Vectors(array.shape, array.dtype, lambda: (array[start : start + STEP] for start in steps))


def _read_h5(path: Path, name: str) -> Rows:
    import h5py

    with h5py.File(path, "r") as file:
        check_hdf5(file, path)
        document = _document(path, file.attrs.get("patchbank"))
        data = _dataset(file, name)
        skip = {name, "coords", "content_hash", "row_checksum"}
        columns = {
            column: _h5_column(_dataset(file, column), path)
            for column in map(str, file)
            if column not in skip
        }
        keys = np.asarray(_dataset(file, "content_hash"))
        sums = np.asarray(_dataset(file, "row_checksum")) if "row_checksum" in file else None
        shape, dtype = data.shape, data.dtype

    def read() -> Iterator[np.ndarray]:
        with h5py.File(path, "r") as file:
            for start in range(0, shape[0], STEP):
                yield _dataset(file, name)[start : start + STEP]

    return _checked(path, document, keys, columns, Vectors(shape, dtype, read), sums)


def _dataset(file: "h5py.File", name: str) -> "h5py.Dataset":
    import h5py

    item = file[name]
    if not isinstance(item, h5py.Dataset) or item.shape is None or not item.shape:
        raise ValueError(f"{name} is not an array")
    return item


def _h5_column(data: "h5py.Dataset", path: Path) -> np.ndarray:
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


def _read_npy(path: Path) -> Rows:
    LocalFiles(path).walk()  # refuses links and pipes
    document = _document(path, (path / "patchbank.json").read_text("utf-8"))
    frame = _parquet_table(path / "metadata/metadata_0.parquet")
    array = path / "embeddings/embeddings_0.npy"
    with array.open("rb") as file:
        shape, dtype = npy_header(file, array)
        start = file.tell()
    if prod(shape) * dtype.itemsize != array.stat().st_size - start:
        raise ValueError(f"{array.name} is not as long as its header says")
    vectors = np.load(array, mmap_mode="r", allow_pickle=False)
    return _from_frame(path, document, frame, Vectors(shape, dtype, _in_memory(vectors).read))


def _read_npz(path: Path) -> Rows:
    with zipfile.ZipFile(path) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
        if len(names) != len(archive.namelist()):
            raise ValueError("it has two arrays of the same name")
        shapes = {name: _npz_header(archive, name, path) for name in names}
        arrays = {name: _npz_array(archive, name, path) for name in names - {"embeddings"}}
    document = _document(path, str(arrays.pop("patchbank", "")))
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

    return _checked(path, document, keys, columns, Vectors(shape, dtype, read), sums)


def _npz_header(archive: zipfile.ZipFile, name: str, path: Path) -> tuple[tuple[int, ...], np.dtype]:
    with archive.open(f"{name}.npy") as file:
        shape, dtype = npy_header(file, path)
    check_size(path, prod(shape) * dtype.itemsize, archive.getinfo(f"{name}.npy").compress_size)
    return shape, dtype


def _npz_array(archive: zipfile.ZipFile, name: str, path: Path) -> np.ndarray:
    with archive.open(f"{name}.npy") as file:
        shape, dtype = npy_header(file, path)
        return np.frombuffer(file.read(prod(shape) * dtype.itemsize), dtype).reshape(shape)


def _read_parquet(path: Path) -> Rows:
    import pyarrow.parquet as pq

    schema, rows = pq.read_schema(path), pq.read_metadata(path).num_rows
    document = _document(path, (schema.metadata or {}).get(b"patchbank"))
    kind = schema.field("embedding").type
    shape, dtype = (rows, kind.list_size), np.dtype(kind.value_type.to_pandas_dtype())
    check_size(path, prod(shape) * dtype.itemsize, path.stat().st_size)

    def read() -> Iterator[np.ndarray]:
        for batch in pq.ParquetFile(path).iter_batches(STEP, columns=["embedding"]):
            yield batch.column(0).flatten().to_numpy(zero_copy_only=False).reshape(-1, shape[1])

    return _from_frame(path, document, _parquet_table(path), Vectors(shape, dtype, read))


def _parquet_table(path: Path) -> pd.DataFrame:
    """The columns of a parquet file but the vectors; equal texts are one in memory, as they are on disk."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(path)
    names = [name for name in schema.names if name != "embedding"]
    texts = [name for name in names if pa.types.is_string(schema.field(name).type)]
    file = pq.ParquetFile(path, read_dictionary=texts)
    groups = range(file.metadata.num_row_groups)
    claimed = sum(file.metadata.row_group(i).total_byte_size for i in groups)
    check_size(path, claimed, path.stat().st_size)
    return file.read(columns=names).to_pandas()


def _read_safetensors(path: Path) -> Rows:
    there = path.stat().st_size
    with path.open("rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        if size > there - 8:
            raise ValueError(f"its header would be {size:,} bytes long")
        header = json.loads(file.read(size))
    document = _document(path, header.pop("__metadata__", {}).get("patchbank"))
    arrays = {name: _tensor(path, about, 8 + size, there) for name, about in header.items()}
    columns = {}
    for name, values in arrays.items():
        if name.startswith("column."):
            text = values.dtype == np.uint8
            plain = [bytes(row).rstrip(b"\0").decode() for row in values] if text else np.array(values)
            columns[name.removeprefix("column.")] = np.array(plain, dtype=object if text else None)
    keys, sums = np.array(arrays["content_hash"]), arrays.get("row_checksum")
    return _checked(path, document, keys, columns, _in_memory(arrays["embeddings"]), sums)


def _tensor(path: Path, about: dict[str, Any], start: int, there: int) -> np.ndarray:
    dtype, shape = np.dtype(SAFETENSORS[about["dtype"]]), tuple(map(int, about["shape"]))
    begin, end = map(int, about["data_offsets"])
    if min(shape, default=0) < 0 or begin < 0 or end - begin != prod(shape) * dtype.itemsize:
        raise ValueError("a tensor's shape and offsets do not match")
    if start + end > there:
        raise ValueError("its tensors end beyond the end of the file")
    if end == begin:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype.newbyteorder("<"), "r", start + begin, shape)


def _read_anndata(path: Path) -> Rows:
    import h5py

    anndata = anndata_module()
    if path.is_file():
        with h5py.File(path, "r") as file:
            check_hdf5(file, path)
        data = anndata.read_h5ad(path)
    else:
        check_zarr(path)
        data = anndata.read_zarr(path)
    frame = data.obs.reset_index(names="patch_id")
    return _from_frame(path, _document(path, data.uns.get("patchbank")), frame, _in_memory(data.X))


def _from_frame(path: Path, document: dict[str, Any], frame: pd.DataFrame, vectors: Vectors) -> Rows:
    keys = keys_of_table(frame)
    sums = frame.pop("row_checksum").to_numpy() if "row_checksum" in frame.columns else None
    columns = {
        str(name): column.to_numpy() if column.dtype.kind in "iuf" else column.astype(object).to_numpy()
        for name, column in frame.items()
        if name != "content_hash"
    }
    return _checked(path, document, keys, columns, vectors, sums)


def _document(path: Path, text: Any) -> dict[str, Any]:
    """The JSON that an export carries. Raises InvalidRequest for a file that patchbank did not export."""
    if not text:
        raise InvalidRequest(
            f"{path} does not say which encoder and patches its vectors are of (no patchbank document): "
            "only exports of `patchbank cache export` can be imported"
        )
    document = json.loads(text)
    if not isinstance(document, dict):
        raise ValueError("its patchbank document is not a JSON object")
    if document.get("format") != FORMAT or document.get("version") not in (1, VERSION):
        raise InvalidRequest(
            f"{path} is {document.get('format')!r} version {document.get('version')!r}; this patchbank reads "
            f"{FORMAT!r} version {VERSION}; update patchbank"
        )
    if (document["version"] != 1 or "sum" in document) and seal(document)["sum"] != document.get("sum"):
        raise InvalidRequest(f"{path}: its patchbank document is not what was exported; {DAMAGED}")
    if not isinstance(document.get("identity"), dict) or not isinstance(document.get("provenance"), dict):
        raise ValueError("its patchbank document has no identity or no provenance")
    return document


def _checked(
    path: Path,
    document: dict[str, Any],
    keys: np.ndarray,
    columns: dict[str, np.ndarray],
    vectors: Vectors,
    sums: np.ndarray | None,
) -> Rows:
    """The rows of an export whose parts fit each other. Raises InvalidRequest."""
    identity = Identity.from_json(document["identity"])
    wanted = np.dtype(identity.dtype)
    if vectors.dtype.newbyteorder("=") != wanted or vectors.shape != (len(keys), identity.dim):
        raise InvalidRequest(
            f"{path} has vectors of {vectors.dtype} {vectors.shape} for {len(keys)} content hashes; its "
            f"document says {wanted}, {identity.dim} each: it was changed after the export"
        )
    if keys.dtype != np.uint8 or keys.shape != (len(keys), KEY_BYTES):
        raise InvalidRequest(f"{path}: content_hash is {keys.dtype} {keys.shape}, not one hash a row")
    for name, values in columns.items():
        text = values.dtype == object and all(isinstance(value, str) for value in values)
        if values.shape != (len(keys),) or not (text or values.dtype.kind in "iuf"):
            raise InvalidRequest(f"{path}: the column {name!r} does not have one number or text per row")

    wanted_sums = document.get("column_checksums", {}) if "sum" in document else {}
    if "sum" in document:
        if sums is None or sums.dtype.kind != "u" or sums.shape != (len(keys),):
            raise InvalidRequest(f"{path} does not have one checksum per row; {DAMAGED}")
        if not isinstance(wanted_sums, dict) or wanted_sums.keys() != columns.keys():
            raise InvalidRequest(f"{path} has different columns from those exported; {DAMAGED}")
        for name, values in columns.items():
            if column_sum(values) != wanted_sums[name]:
                raise InvalidRequest(f"{path}: the column {name!r} is not what was exported; {DAMAGED}")

    def read() -> Iterator[np.ndarray]:
        start = 0
        with readable(path, "export"), explained("read", path):
            for part in vectors.read():
                if sums is not None and "sum" in document:
                    plain = np.ascontiguousarray(part, wanted.newbyteorder("<"))
                    here = slice(start, start + len(part))
                    bad = np.flatnonzero(row_sums(plain, keys[here]) != sums[here])
                    if len(bad):
                        raise InvalidRequest(
                            f"{path}: row {start + bad[0]} is not what was exported (its vector or its "
                            f"content hash); {DAMAGED}"
                        )
                yield part
                start += len(part)
        if start != len(keys):
            raise InvalidRequest(f"{path} has {start} vectors and {len(keys)} content hashes")

    return Rows(document, keys, columns, read)


READERS: dict[str, Callable[[Path], Rows]] = {
    "trident": lambda path: _read_h5(path, "features"),
    "stamp": lambda path: _read_h5(path, "feats"),
    "npy": _read_npy,
    "parquet": _read_parquet,
    "h5ad": _read_anndata,
    "zarr": _read_anndata,
    "safetensors": _read_safetensors,
    "npz": _read_npz,
}


def layout_of(path: Path) -> str:
    """Which layout a file or folder has. Raises InvalidRequest."""
    if not path.exists():
        raise InvalidRequest(f"{path} does not exist")
    if not path.is_dir():
        check_regular(path)
    if path.suffix in {".h5", ".hdf5"} and path.is_file():
        import h5py

        with explained("read", path), readable(path, "HDF5"), h5py.File(path, "r") as file:
            for name, layout in (("features", "trident"), ("feats", "stamp")):
                if name in file:
                    return layout
    elif path.is_file() and path.suffix[1:] in LAYOUTS:
        return path.suffix[1:]
    elif (path / "embeddings/embeddings_0.npy").is_file():
        return "npy"
    elif (path / "obs").is_dir() and (path / "X").exists():
        return "zarr"
    raise InvalidRequest(f"{path} has none of the layouts {', '.join(LAYOUTS)}")


def read_export(path: str | Path) -> Rows:
    """What an export holds, whichever layout it has. Raises InvalidRequest, StoreError (unreadable)."""
    path = Path(path)
    layout = layout_of(path)
    with explained("read", path), readable(path, layout):
        return READERS[layout](path)


@dataclass(frozen=True)
class Imported:
    """store: that has the rows now. rows: in the export. added: rows that were new. table: its columns.
    unchecked: files without checksums (of patchbank 0.1.0), whose damage nothing can show.
    """

    store: Store
    rows: int
    added: int
    table: pd.DataFrame
    unchecked: list[Path]


def import_export(bank: Bank, path: str | Path, *, backend: str = "zarr") -> Imported:
    """Brings an export (or a folder of .h5 files, one a group) back into the store of its identity.

    Raises InvalidRequest (not an export of patchbank, damaged), VectorRefused, StoreError.
    """
    path = Path(path)
    files = sorted(path.glob("*.h5")) if path.is_dir() else []
    parts = [read_export(part) for part in files or [path]]  # all are looked at before one is taken in
    tables = []
    for file, part in zip(files or [path], parts, strict=True):
        with readable(file, "export"):
            columns = read_columns(part.columns, part.about.get("columns", {}))
            tables.append(pd.DataFrame({**columns, "content_hash": part.hashes()}))
        for _ in part.vectors():  # all of a damaged export is refused, not what follows the damage
            pass
    stores: dict[Identity, Store] = {}
    added = 0
    for part in parts:
        identity = Identity.from_json(part.about["identity"])
        if identity not in stores:
            stores[identity] = bank.open_store(
                identity, create=True, provenance=part.about["provenance"], backend=backend
            )
        added += _append(stores[identity], part)
    store = list(stores.values())[-1]
    unchecked = [file for file, part in zip(files or [path], parts, strict=True) if "sum" not in part.about]
    table = pd.concat(tables, ignore_index=True)
    return Imported(store, sum(len(part.keys) for part in parts), added, table, unchecked)


def _append(store: Store, rows: Rows) -> int:
    keys = as_keys(rows.keys)
    new = ~store.contains(keys)
    first = np.zeros(len(keys), dtype=bool)
    first[KeyIndex(keys).first_rows()] = True
    new &= first
    ids = rows.columns.get("patch_id")
    names = rows.hashes() if ids is None else [str(name) for name in ids]
    start = 0
    with store.writer(name="import") as writer:
        for part in rows.vectors():
            here = start + np.flatnonzero(new[start : start + len(part)])
            writer.append(keys[here], part[here - start], [names[i] for i in here])
            start += len(part)
    store.refresh()
    return int(new.sum())

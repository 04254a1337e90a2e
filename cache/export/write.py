"""Exports in the layouts that other tools read; importing.py brings them back into a store, bit for bit.

layout        what it is                                                       reads it
------------  ---------------------------------------------------------------  ---------------------------
trident       FILE.h5, or a folder of one a group: `features` (n, d),          TRIDENT, CLAM
              `coords` (n, 2) int64 (-1: not known)
stamp         the same with `feats`, `coords` float32 in um (NaN: not known),  STAMP
              attributes stamp_version, extractor, unit, tile_size_um
npy           folder: embeddings/embeddings_0.npy, metadata/metadata_0.parquet embedding-reader, numpy
parquet       FILE.parquet, `embedding` a FixedSizeList                        Hugging Face datasets, pandas
h5ad, zarr    AnnData: X, obs, uns["patchbank"]                                anndata, scanpy
safetensors   FILE.safetensors: embeddings, content_hash, column.NAME (UTF-8)  safetensors
npz           FILE.npz: embeddings, content_hash, the columns; no pickle       numpy

Rows follow the table (a manifest's, with `content_hash`); without one, the store, with the hash for an id.
Every export carries `content_hash`, the table's columns (see columns.py for their names and types), a JSON
document "patchbank": identity, provenance, the encoder's licence note, and what was changed of the columns,
and checksums, so that no damaged one is imported: `row_checksum`, uint64 (n,), XXH3 of each row's vector as
stored and its 16 bytes of content hash; in the document, `column_checksums` and its own, `sum`.
"""

import json
import secrets
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xxhash

from ...errors import InvalidRequest, MissingDependency
from ...files import make_folder, publish
from ..backend import seal
from ..columns import written_columns, written_name
from ..filesystem import TEMPORARY, explained
from ..identity import safe_name
from ..store import Store
from ..table import keys_of_table

FORMAT = "patchbank-export"
VERSION = 2  # 1 had no checksums
STEP = 8192
SAFETENSORS = {  # its word for a type: NumPy's
    "U8": "uint8",
    "I64": "int64",
    "U64": "uint64",
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
}
STAMP_VERSION = "2.1.0"  # the first whose readers know tile_size_um


@dataclass
class Rows:
    """What an export is made of, or what was read from one.

    about: identity, provenance, licence. keys: uint8, (n, 16). columns: written name -> n values (text as
    str, int64, uint64, float64). vectors(): the (n, dim) rows in order, some at a time.
    """

    about: dict[str, Any]
    keys: np.ndarray
    columns: dict[str, np.ndarray]
    vectors: Callable[[], Iterator[np.ndarray]]

    @property
    def document(self) -> dict[str, Any]:
        """What an export says of itself, with the checksums of its columns and its own."""
        sums = {name: column_sum(values) for name, values in self.columns.items()}
        return seal({**self.about, "column_checksums": sums})

    def parts(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Some rows at a time: which, their vectors in C order, and the checksums, uint64, one a row."""
        start = 0
        for vectors in self.vectors():
            part = slice(start, start + len(vectors))
            vectors = np.ascontiguousarray(vectors, self.dtype)
            yield part, vectors, row_sums(vectors, self.keys[part])
            start += len(vectors)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.keys), int(self.about["identity"]["dim"])

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.about["identity"]["dtype"]).newbyteorder("<")

    def whole(self) -> tuple[np.ndarray, np.ndarray]:
        """All vectors and all checksums."""
        out, sums = np.empty(self.shape, self.dtype), np.empty(len(self.keys), np.uint64)
        for part, vectors, some in self.parts():
            out[part], sums[part] = vectors, some
        return out, sums

    def hashes(self) -> list[str]:
        return [key.tobytes().hex() for key in self.keys]

    def frame(self) -> pd.DataFrame:
        columns = {name: pd.Series(values) for name, values in self.columns.items()}
        return pd.DataFrame({**columns, "content_hash": self.hashes()})


def row_sums(vectors: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The checksum of each row: its vector (little endian, C order) and its key -> uint64, (n,)."""
    joined = np.concatenate([vectors.view(np.uint8).reshape(len(vectors), -1), keys], axis=1)
    return np.array([xxhash.xxh3_64_intdigest(row) for row in joined], np.uint64)


def column_sum(values: np.ndarray) -> str:
    """The checksum of a column: of its texts, each ended by a zero byte, or of its 64-bit numbers."""
    if values.dtype == object:
        return xxhash.xxh3_64_hexdigest("".join(f"{value}\0" for value in values).encode())
    wide = np.dtype({"i": "<i8", "u": "<u8", "f": "<f8"}[values.dtype.kind])
    plain = values.astype(wide)
    if wide.kind == "f":
        plain[np.isnan(plain)] = np.nan  # there is more than one
    return xxhash.xxh3_64_hexdigest(plain.tobytes())


def rows_of(store: Store, table: pd.DataFrame | None = None) -> Rows:
    """The rows of a table, or of the whole store. Raises RowsMissing, InvalidRequest (column names)."""
    if table is None:
        store.refresh()
        keys = store.keys()
        hashes = np.array([key.tobytes().hex() for key in keys], dtype=object)
        columns, changed = {"patch_id": hashes}, {}
    else:
        keys = keys_of_table(table)
        if "patch_id" not in table.columns:
            raise InvalidRequest("the table has no column patch_id")
        columns, changed = written_columns(table)
    store.require(keys)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "identity": store.identity.to_json(),
        "provenance": store.provenance,
        "licence": store.provenance.get("licence", "unknown: ask whoever published the encoder's weights"),
        "columns": changed,
    }
    return Rows(document, keys, columns, lambda: (part for _, part in store.iter_blocks(keys, STEP)))


# --- writing ----------------------------------------------------------------------------------------


def export(
    store: Store,
    path: str | Path,
    layout: str,
    table: pd.DataFrame | None = None,
    *,
    by: str | None = None,
    tile_um: float | None = None,
    mpp: float | None = None,
) -> int:
    """Writes `path` in one of LAYOUTS, whole or not at all; returns the rows written.

    by: (trident, stamp) a folder with one file for each value of this column, "group" for one a slide.
    tile_um, mpp: (stamp) edge of a tile in um, and um per pixel of the table's x and y.

    Raises InvalidRequest (unknown layout, the path exists already, missing options), RowsMissing,
    MissingDependency (AnnData), StoreError (disk full, unwritable).
    """
    path = Path(path)
    if layout not in LAYOUTS:
        raise InvalidRequest(f"unknown layout {layout!r}; available: {', '.join(LAYOUTS)}")
    if path.exists():
        raise InvalidRequest(f"{path} exists already; choose another name or remove it")
    if by is not None and layout not in {"trident", "stamp"}:
        raise InvalidRequest("one file per group is supported by the layouts trident and stamp only")
    if layout == "stamp" and tile_um is None:
        raise InvalidRequest("the STAMP layout needs the edge of a tile in um (tile_um, --tile-um)")
    for name, value in (("tile_um", tile_um), ("mpp", mpp)):
        if value is not None and not 0 < value < float("inf"):
            raise InvalidRequest(f"{name} is {value}; it has to be a length in um")
    rows = rows_of(store, table)
    if layout == "stamp":
        rows.about |= {"tile_um": tile_um, "mpp": mpp}
    interim = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}{path.suffix}")
    with explained("write", path):
        make_folder(path.parent)
        try:
            if by is None:
                LAYOUTS[layout](interim, rows)
            else:
                interim.mkdir()
                for name, part in _grouped(store, rows, by):
                    LAYOUTS[layout](interim / f"{name}.h5", part)
            if path.exists():
                raise InvalidRequest(f"{path} was created by another process meanwhile; choose another name")
            publish(interim, path)
        finally:
            _discard(interim)
    return len(rows.keys)


def _discard(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _grouped(store: Store, rows: Rows, by: str) -> Iterator[tuple[str, Rows]]:
    column = written_name(by)
    if column not in rows.columns:
        raise InvalidRequest(f"the table has no column {by!r}; it has {', '.join(rows.columns)}")
    values = rows.columns[column].astype(str)
    names: dict[str, str] = {}
    for value in dict.fromkeys(values):
        name = safe_name(value, longest=120)
        if name in names:
            raise InvalidRequest(f"{by} {value!r} and {names[name]!r} would both become the file {name}.h5")
        names[name] = value
        here = np.flatnonzero(values == value)
        keys = rows.keys[here]
        columns = {column: array[here] for column, array in rows.columns.items()}
        yield (
            name,
            Rows(rows.about, keys, columns, lambda keys=keys: (p for _, p in store.iter_blocks(keys, STEP))),
        )


def _write_h5(path: Path, rows: Rows, name: str, coords: np.ndarray, attributes: Mapping[str, Any]) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        data = file.create_dataset(name, rows.shape, rows.dtype)
        sums = file.create_dataset("row_checksum", len(rows.keys), np.dtype("<u8"))
        for part, vectors, some in rows.parts():
            data[part], sums[part] = vectors, some
        file["coords"] = coords
        file["content_hash"] = rows.keys
        for column, values in rows.columns.items():
            text = values.dtype == object
            file.create_dataset(column, data=values, dtype=h5py.string_dtype() if text else values.dtype)
        file.attrs["patchbank"] = json.dumps(rows.document)
        file.attrs["licence"] = rows.about["licence"]
        for key, value in attributes.items():
            file.attrs[key] = value


def _coords(rows: Rows) -> np.ndarray | None:
    """x and y of the table in pixels, float64, (n, 2), NaN where a cell is empty; None without them."""
    if not {"x", "y"} <= set(rows.columns):
        return None
    frame = pd.DataFrame({name: rows.columns[name] for name in "xy"})
    return frame.apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)


def _write_trident(path: Path, rows: Rows) -> None:
    found = _coords(rows)
    coords = np.full((len(rows.keys), 2), -1) if found is None else np.nan_to_num(found, nan=-1)
    _write_h5(
        path,
        rows,
        "features",
        coords.astype(np.int64),
        {"encoder": rows.about["identity"]["encoder"]["id"]},
    )


def _write_stamp(path: Path, rows: Rows) -> None:
    found, mpp = _coords(rows), rows.about["mpp"]
    coords = np.full((len(rows.keys), 2), np.nan) if found is None or mpp is None else found * mpp
    about = {
        "stamp_version": STAMP_VERSION,
        "extractor": rows.about["identity"]["encoder"]["id"],
        "unit": "um",
        "tile_size_um": rows.about["tile_um"],
        "feat_type": "tile",
    }
    _write_h5(path, rows, "feats", coords.astype(np.float32), about)


def _write_npy(path: Path, rows: Rows) -> None:
    (path / "embeddings").mkdir(parents=True)
    (path / "metadata").mkdir()
    with (path / "embeddings/embeddings_0.npy").open("wb") as file:
        sums = _write_array(file, rows)
    frame = rows.frame().assign(row_checksum=sums)
    frame.to_parquet(path / "metadata/metadata_0.parquet", index=False)
    (path / "patchbank.json").write_text(json.dumps(rows.document, indent=2) + "\n", "utf-8")


def _write_array(file: Any, rows: Rows) -> np.ndarray:
    """The .npy format, some rows at a time; returns their checksums."""
    about = {"descr": np.lib.format.dtype_to_descr(rows.dtype), "fortran_order": False, "shape": rows.shape}
    np.lib.format.write_array_header_1_0(file, about)
    sums = [np.empty(0, np.uint64)]
    for _, vectors, some in rows.parts():
        file.write(vectors.data)
        sums.append(some)
    return np.concatenate(sums)


def _write_npz(path: Path, rows: Rows) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with archive.open("embeddings.npy", "w", force_zip64=True) as file:
            sums = _write_array(file, rows)
        texts = {
            name: values.astype(str) if values.dtype == object else values
            for name, values in rows.columns.items()
        }
        document = np.array(json.dumps(rows.document))
        small = {"content_hash": rows.keys, "row_checksum": sums, **texts, "patchbank": document}
        for name, values in small.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(values), allow_pickle=False)


def _write_parquet(path: Path, rows: Rows) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    frame = pa.Table.from_pandas(rows.frame(), preserve_index=False)
    vector = pa.list_(pa.from_numpy_dtype(rows.dtype), rows.shape[1])
    schema = frame.schema.append(pa.field("row_checksum", pa.uint64(), nullable=False))
    schema = schema.append(pa.field("embedding", vector, nullable=False))
    schema = schema.with_metadata({"patchbank": json.dumps(rows.document), "licence": rows.about["licence"]})
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for part, vectors, sums in rows.parts():
            flat = pa.array(vectors.reshape(-1))
            arrays = [
                *frame.slice(part.start, len(vectors)).columns,
                pa.array(sums),
                pa.FixedSizeListArray.from_arrays(flat, type=vector),
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _write_safetensors(path: Path, rows: Rows) -> None:
    """8 bytes header length, JSON header, data; written here, so that vectors need not fit in memory."""
    texts = {
        name: _fixed_width(values) if values.dtype == object else values
        for name, values in rows.columns.items()
    }
    sums = np.empty(len(rows.keys), np.dtype("<u8"))  # filled while the vectors are written
    small = {"content_hash": rows.keys, "row_checksum": sums}
    small |= {f"column.{name}": values for name, values in texts.items()}
    kinds = {name: kind for kind, name in SAFETENSORS.items()}
    header: dict[str, Any] = {
        "__metadata__": {"patchbank": json.dumps(rows.document), "licence": rows.about["licence"]}
    }
    end = 0
    for name, dtype, shape in [
        ("embeddings", rows.dtype, rows.shape),
        *((name, values.dtype, values.shape) for name, values in small.items()),
    ]:
        size = int(np.prod(shape)) * dtype.itemsize
        header[name] = {"dtype": kinds[dtype.name], "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for part, vectors, some in rows.parts():
            file.write(vectors.data)
            sums[part] = some
        for values in small.values():
            file.write(np.ascontiguousarray(values).tobytes())


def _fixed_width(values: np.ndarray) -> np.ndarray:
    """Text as UTF-8 padded with zero bytes: uint8, (n, longest)."""
    encoded = [str(value).encode() for value in values]
    width = max([1, *map(len, encoded)])
    return np.frombuffer(b"".join(e.ljust(width, b"\0") for e in encoded), np.uint8).reshape(-1, width)


def anndata_module() -> Any:
    """The package anndata. Raises MissingDependency where it is not installed."""
    try:
        import anndata
    except ImportError as error:
        raise MissingDependency("AnnData files need anndata: pip install 'patchbank[anndata]'") from error
    return anndata


def _annotated(rows: Rows) -> Any:
    """The whole export in memory: AnnData writes nothing piecemeal."""
    frame = rows.frame()
    names = frame.pop("patch_id").astype(str)
    frame.index = pd.Index(names, name="patch_id")
    vectors, frame["row_checksum"] = rows.whole()
    document = {"patchbank": json.dumps(rows.document), "licence": rows.about["licence"]}
    return anndata_module().AnnData(X=vectors, obs=frame, uns=document)


def _write_h5ad(path: Path, rows: Rows) -> None:
    _annotated(rows).write_h5ad(path, convert_strings_to_categoricals=False)


def _write_zarr(path: Path, rows: Rows) -> None:
    settings = anndata_module().settings
    plain = {"auto_shard_zarr_v3": False} if hasattr(settings, "auto_shard_zarr_v3") else {}
    with settings.override(zarr_write_format=3, **plain), warnings.catch_warnings():
        # AnnData's own layout of Zarr 3, of which Zarr warns
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")
        _annotated(rows).write_zarr(path, convert_strings_to_categoricals=False)


LAYOUTS: dict[str, Callable[[Path, Rows], None]] = {
    "trident": _write_trident,
    "stamp": _write_stamp,
    "npy": _write_npy,
    "parquet": _write_parquet,
    "h5ad": _write_h5ad,
    "zarr": _write_zarr,
    "safetensors": _write_safetensors,
    "npz": _write_npz,
}

"""Exports in the layouts that other tools read; importing/exports.py brings them back, bit for bit.

layout        what it is                                                      reads it
------------  --------------------------------------------------------------  --------------------------
trident       FILE.h5, or a folder of one a slide: `features` (n, d),         TRIDENT
              `coords` (n, 2) int64 with patch_size_level0, ...
clam          folder: h5_files/SLIDE.h5, pt_files/SLIDE.pt, float32           CLAM
stamp         as trident with `feats`, `coords` float32 in um, attributes     STAMP
              stamp_version, extractor, unit, tile_size_um, tile_size_px
eva           folder: embeddings/*.pt, float32, manifest.csv                  eva
npy           folder: embeddings/embeddings_0.npy, metadata/*.parquet         embedding-reader, numpy
parquet       FILE.parquet, `embedding` a FixedSizeList                       pandas, DuckDB, polars
huggingface   folder: data/SPLIT-*.parquet, labels as ClassLabel              Hugging Face datasets
h5ad, zarr    AnnData: X, obs, uns["patchbank"]                               anndata, scanpy
safetensors   FILE.safetensors: embeddings, content_hash, columns             safetensors
npz           FILE.npz: embeddings, content_hash, the columns; no pickle      numpy
webdataset    FILE.tar: KEY.npy, KEY.json, KEY.cls                            WebDataset
csv           FILE.csv: the columns, embedding_0, embedding_1, ...            anything
projector     folder: tensors.tsv, metadata.tsv                               TensorBoard's projector
fiftyone      folder: data.json, labels.json, embeddings.npy                  FiftyOne
qupath        FILE.geojson, or a folder of one a slide: where patches lie,    QuPath
              with labels and numbers; no vectors

Rows follow the table (a manifest's, with `content_hash`); without one, the store, with the hash for an id.
Down to npz, every export carries `content_hash`, the table's columns (see columns.py for their names and
types), a JSON document "patchbank": identity, provenance, the encoder's licence note, and what was changed of
the columns, and checksums, so that no damaged one is imported: `row_checksum`, uint64 (n,), XXH3 of each
row's vector as written and its 16 bytes of content hash; in the document, `column_checksums` and its own,
`sum`. The others have no room for that; `cache import` reads those with vectors as it reads any other
program's.
"""

import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...errors import InvalidRequest
from ...files import make_folder, publish
from ..columns import written_name
from ..filesystem import TEMPORARY, explained
from ..identity import DTYPES, safe_name
from ..store import Store
from . import arrays, eva, fiftyone, h5ad, parquet, safetensors, slides, text, webdataset
from .rows import Options, Rows, rows_of

Write = Callable[[Path, Rows, Options], None]
WriteParts = Callable[[Path, Mapping[str, Rows], Options], None]
ONE: dict[str, Write] = {  # all rows into one file or folder
    "eva": eva.write_eva,
    "npy": arrays.write_npy,
    "parquet": parquet.write_parquet,
    "h5ad": h5ad.write_h5ad,
    "zarr": h5ad.write_zarr,
    "safetensors": safetensors.write_safetensors,
    "npz": arrays.write_npz,
    "webdataset": webdataset.write_webdataset,
    "csv": text.write_csv,
    "projector": text.write_projector,
    "fiftyone": fiftyone.write_fiftyone,
}
SLIDES = slides.FILES  # the same, or a folder of one a slide
PARTS: dict[str, WriteParts] = {  # always a folder of parts
    "clam": slides.write_clam,
    "huggingface": parquet.write_huggingface,
}
LAYOUTS = (
    *("trident", "clam", "stamp", "eva", "npy", "parquet", "huggingface", "h5ad", "zarr", "safetensors"),
    *("npz", "webdataset", "csv", "projector", "fiftyone", "qupath"),
)
DOCUMENTED = LAYOUTS[: LAYOUTS.index("npz") + 1]  # that say whose embeddings they are, with checksums
FOLDERS = {"clam", "eva", "huggingface", "npy", "projector", "fiftyone"}
FILE_SUFFIXES = {".npy", ".h5", ".parquet", ".csv", ".tsv", ".pt", ".npz", ".tar", ".json"}


def export(
    store: Store,
    path: str | Path,
    layout: str,
    table: pd.DataFrame | None = None,
    **options: Any,
) -> int:
    """Writes `path` in one of LAYOUTS, whole or not at all; returns the rows written.

    options: those of `Options`, and `by`: (trident, stamp, qupath) a folder with one file for each value of
        this column; of clam, the slide (default: group).

    Raises InvalidRequest (unknown layout, no rows, the path exists already, missing options), RowsMissing,
    VectorRefused (numbers that float16 does not hold), MissingDependency (AnnData, torch), StoreError (disk
    full, unwritable).
    """
    path = Path(path)
    how = _checked(path, layout, table, options)
    rows = rows_of(store, table, how.dtype)
    if not len(rows.keys):
        raise InvalidRequest(
            f"there are no rows to write to {path}: "
            + (f"{store.files} is empty" if table is None else "the table has none (does --where pick any?)")
        )
    interim = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}{path.suffix}")
    with explained("write", path):
        make_folder(path.parent)
        try:
            _write(interim, layout, store, rows, how)
            if path.exists():
                raise InvalidRequest(f"{path} was created by another process meanwhile; choose another name")
            publish(interim, path)
        finally:
            _discard(interim)
    return len(rows.keys)


def _checked(path: Path, layout: str, table: pd.DataFrame | None, options: dict[str, Any]) -> Options:
    if layout not in LAYOUTS:
        raise InvalidRequest(f"unknown layout {layout!r}; available: {', '.join(LAYOUTS)}")
    if path.exists():
        raise InvalidRequest(f"{path} exists already; choose another name or remove it")
    if layout in FOLDERS and path.suffix.lower() in FILE_SUFFIXES:
        single = "; one file of arrays is --format npz" if layout == "npy" else ""
        raise InvalidRequest(
            f"the layout {layout} is a folder of several files, and {path.name} is the name of a file; "
            "name a "
            f"folder{single}"
        )
    given = {name: value for name, value in options.items() if value is not None}
    how = Options(name=path.stem, **given)
    if how.by and layout not in {*SLIDES, "clam"}:
        raise InvalidRequest(
            "one file per group is supported by the layouts trident, clam, stamp and qupath only"
        )
    for name in ("tile_um", "tile_px", "mpp"):
        value = getattr(how, name)
        if value is not None and not 0 < value < float("inf"):
            raise InvalidRequest(f"{name} is {value}; it has to be a length above 0")
    if how.dtype and how.dtype not in DTYPES:
        raise InvalidRequest(f"dtype is {how.dtype!r}; it is {' or '.join(DTYPES)}")
    if layout in ("clam", "eva") and not how.dtype:
        how = replace(how, dtype="float32")  # their models refuse float16
    if table is not None:
        header = table.attrs
        how = replace(
            how,
            classes=how.classes or tuple(header.get("classes", ())),
            root=how.root or str(header.get("root", "")),
        )
    return how


def _write(path: Path, layout: str, store: Store, rows: Rows, options: Options) -> None:
    if layout == "huggingface":
        names = parquet.split_names(rows)
        values = rows.text("split")
        parts = dict(
            _parts(store, rows, np.full(len(rows.keys), "") if values is None else values, names, "split")
        )
        PARTS[layout](path, parts, options)
    elif layout in PARTS or options.by:
        by = options.by or "group"
        parts = dict(_grouped(store, rows, by))
        options = replace(options, name="")  # each file has its own
        if layout in PARTS:
            PARTS[layout](path, parts, options)
            return
        suffix, write = SLIDES[layout]
        path.mkdir()
        for name, part in parts.items():
            write(path / f"{name}{suffix}", part, options)
    else:
        write = ONE[layout] if layout in ONE else SLIDES[layout][1]
        write(path, rows, options)


def _discard(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _grouped(store: Store, rows: Rows, by: str) -> Iterator[tuple[str, Rows]]:
    values = rows.text(written_name(by))
    if values is None:
        raise InvalidRequest(f"the table has no column {by!r}; it has {', '.join(rows.columns)}")
    names = {value: safe_name(value, longest=120) for value in dict.fromkeys(values)}
    return _parts(store, rows, values, names, by)


def _parts(
    store: Store, rows: Rows, values: np.ndarray, names: Mapping[str, str], by: str
) -> Iterator[tuple[str, Rows]]:
    """The rows of each value, under the name of its file. Raises InvalidRequest for two of one name."""
    taken: dict[str, str] = {}
    for value, name in names.items():
        if name in taken:
            raise InvalidRequest(f"{by} {value!r} and {taken[name]!r} would both become the file {name}")
        taken[name] = value
        yield name, rows.subset(store, np.flatnonzero(values == value))

"""Exports back into a store, bit for bit: what export/ wrote with a document, and nothing else.

The file may come from anywhere. All of it is read and compared with its checksums before a store is made, and
the vectors once more on their way there. Exports of patchbank 0.1.0 have no checksums.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ...errors import InvalidRequest
from ..bank import Bank
from ..columns import read_columns
from ..export.rows import Rows
from ..filesystem import explained
from ..identity import Identity
from ..index import KeyIndex, as_keys
from ..store import Store
from ..untrusted import check_regular, readable
from .arrays import read_npy, read_npz
from .documents import NoDocument
from .eva import read_eva
from .h5ad import read_anndata
from .hdf5 import read_h5
from .parquet import read_parquet
from .safetensors import read_safetensors

READERS: dict[str, Callable[[Path], Rows]] = {
    "trident": lambda path: read_h5(path, "features"),
    "stamp": lambda path: read_h5(path, "feats"),
    "npy": read_npy,
    "parquet": read_parquet,
    "h5ad": read_anndata,
    "zarr": read_anndata,
    "safetensors": read_safetensors,
    "npz": read_npz,
    "eva": read_eva,
}
SUFFIXES = {".parquet", ".h5ad", ".safetensors", ".npz"}


def layout_of(path: Path) -> str:
    """Which layout a file or folder has. Raises InvalidRequest, NoDocument where none of them."""
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
    elif path.is_file() and path.suffix in SUFFIXES:
        return path.suffix[1:]
    elif (path / "embeddings/embeddings_0.npy").is_file():
        return "npy"
    elif (path / "manifest.csv").is_file() and (path / "patchbank.json").is_file():
        return "eva"
    elif (path / "obs").is_dir() and (path / "X").exists():
        return "zarr"
    raise NoDocument(f"{path} has none of the layouts of an export: {', '.join(READERS)}")


def read_export(path: str | Path) -> Rows:
    """What an export holds, whichever layout it has. Raises InvalidRequest, StoreError (unreadable)."""
    path = Path(path)
    layout = layout_of(path)
    with explained("read", path), readable(path, layout):
        return READERS[layout](path)


def parts_of(path: Path) -> list[Path]:
    """The files of an export: itself, or those of a folder of one a slide or a split."""
    if not path.is_dir():
        return [path]
    for folder, pattern in (("", "*.h5"), ("h5_files", "*.h5"), ("data", "*.parquet")):
        files = sorted((path / folder).glob(pattern))
        if files:
            return files
    return [path]


def is_export(path: Path) -> bool:
    """Whether patchbank exported a file or folder. Raises InvalidRequest where it does not exist."""
    try:
        read_export(parts_of(path)[0])
    except NoDocument:
        return False
    return True


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
    files = parts_of(path)
    parts = [read_export(part) for part in files]  # all are looked at before one is taken in
    tables: list[pd.DataFrame] = []
    for file, part in zip(files, parts, strict=True):
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
    unchecked = [file for file, part in zip(files, parts, strict=True) if "sum" not in part.about]
    table = pd.concat(tables, ignore_index=True)
    return Imported(store, sum(len(part.keys) for part in parts), added, table, unchecked)


def _append(store: Store, rows: Rows) -> int:
    keys = as_keys(rows.keys)
    new = ~store.contains(keys)
    first = np.zeros(len(keys), dtype=bool)
    first[KeyIndex(keys).first_rows()] = True
    new &= first
    names = rows.ids()
    start = 0
    with store.writer(name="import") as writer:
        for part in rows.vectors():
            here = start + np.flatnonzero(new[start : start + len(part)])
            writer.append(keys[here], part[here - start], [names[i] for i in here])
            start += len(part)
    store.refresh()
    return int(new.sum())

"""AnnData, .h5ad and .zarr."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...errors import InvalidRequest
from ..export.h5ad import anndata_module
from ..export.rows import Rows
from ..narrowing import is_array
from ..untrusted import check_hdf5, check_zarr
from .documents import document_of, from_frame, in_memory
from .source import Source, chosen, columns_of, encoder_of, single


def read_anndata(path: Path) -> Rows:
    """The rows of an export."""
    if not _has_document(path):
        document_of(path, None)
    data = _opened(path)
    frame = data.obs.reset_index(names="patch_id")
    return from_frame(path, document_of(path, data.uns.get("patchbank")), frame, in_memory(data.X))


def _has_document(path: Path) -> bool:
    import h5py

    if not path.is_file():
        return (path / "uns/patchbank").exists()
    with h5py.File(path, "r") as file:
        check_hdf5(file, path, compressed=True)
        uns = file.get("uns")
        return isinstance(uns, h5py.Group) and "patchbank" in uns


def _opened(path: Path, *, compressed: bool = False) -> Any:
    """All of it in memory. Raises InvalidRequest for files that lead to others or claim too much."""
    import h5py

    anndata = anndata_module()
    if path.is_file():
        with h5py.File(path, "r") as file:
            check_hdf5(file, path, compressed=compressed)
        return anndata.read_h5ad(path)
    check_zarr(path)
    return anndata.read_zarr(path)


def foreign_anndata(path: Path, root: Path, key: str) -> Source:
    """X, or `obsm[key]`; obs is the table, its names the ids."""
    data = _opened(path, compressed=True)
    known = {"X": data.X, **dict(data.obsm.items())}
    arrays = {name: array for name, array in known.items() if is_array(array) and array.dtype.kind == "f"}
    if not arrays and key in ("", "X"):
        raise InvalidRequest(
            f"{path}: X is {type(data.X).__name__}, and embeddings are dense floats; take a matrix of obsm "
            f"with --key: {', '.join(map(str, data.obsm)) or 'there is none'}"
        )
    name = key or ("X" if "X" in arrays else chosen(path, {n: a.shape for n, a in arrays.items()}, ""))
    name = chosen(path, {n: a.shape for n, a in arrays.items()}, name)
    columns = columns_of(pd.DataFrame({str(n): pd.Series(np.asarray(data.obs[n])) for n in data.obs.columns}))
    columns.setdefault("patch_id", np.array(data.obs_names.astype(str), dtype=object))
    files = (path,) if path.is_file() else tuple(p for p in sorted(path.rglob("*")) if p.is_file())
    made = single(path, root, "anndata", in_memory(arrays[name]), columns, encoder_of(data.uns))
    return replace(made, files=files)

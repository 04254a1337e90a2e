"""AnnData, .h5ad and .zarr."""

from pathlib import Path

from ..export.h5ad import anndata_module
from ..export.rows import Rows
from ..untrusted import check_hdf5, check_zarr
from .documents import document_of, from_frame, in_memory


def read_anndata(path: Path) -> Rows:
    """The rows of an export."""
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
    return from_frame(path, document_of(path, data.uns.get("patchbank")), frame, in_memory(data.X))

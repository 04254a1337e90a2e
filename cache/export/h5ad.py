"""AnnData, as .h5ad or .zarr: X, obs (label, domain and split as categories), uns["patchbank"]."""

import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

from ...errors import MissingDependency
from .rows import Options, Rows


def anndata_module() -> Any:
    """The package anndata. Raises MissingDependency where it is not installed."""
    try:
        return importlib.import_module("anndata")
    except ImportError as error:
        raise MissingDependency("AnnData files need anndata: pip install 'patchbank[anndata]'") from error


def _annotated(rows: Rows, options: Options) -> Any:
    """The whole export in memory: AnnData writes nothing piecemeal."""
    frame = rows.frame(options.classes)
    names = frame.pop("patch_id").astype(str)
    frame.index = pd.Index(names, name="patch_id")
    vectors, frame["row_checksum"] = rows.whole()
    document = {"patchbank": json.dumps(rows.document), "licence": rows.about["licence"]}
    return anndata_module().AnnData(X=vectors, obs=frame, uns=document)


def write_h5ad(path: Path, rows: Rows, options: Options) -> None:
    """Write one HDF5 file."""
    _annotated(rows, options).write_h5ad(path, convert_strings_to_categoricals=False)


def write_zarr(path: Path, rows: Rows, options: Options) -> None:
    """Write a Zarr v3 group."""
    settings = anndata_module().settings
    plain = {"auto_shard_zarr_v3": False} if hasattr(settings, "auto_shard_zarr_v3") else {}
    with settings.override(zarr_write_format=3, **plain), warnings.catch_warnings():
        # AnnData's own layout of Zarr 3, of which Zarr warns
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")
        _annotated(rows, options).write_zarr(path, convert_strings_to_categoricals=False)

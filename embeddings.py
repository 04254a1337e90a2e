"""Cached embeddings in the form that a notebook wants: `patchbank.load`."""

import os
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import pandas as pd

from .datasets.manifest import Manifest, as_manifest
from .errors import InvalidRequest, MissingDependency
from .probe.features import load as load_array

if TYPE_CHECKING:
    import anndata
    import torch

FORMS = ("array", "frame", "anndata", "torch")


@overload
def load(
    manifest: Manifest | str | os.PathLike[str],
    *,
    encoder: str,
    bank: Any,
    as_: Literal["array"] = ...,
    **store: Any,
) -> np.ndarray: ...
@overload
def load(
    manifest: Manifest | str | os.PathLike[str],
    *,
    encoder: str,
    bank: Any,
    as_: Literal["frame"],
    **store: Any,
) -> pd.DataFrame: ...
@overload
def load(
    manifest: Manifest | str | os.PathLike[str],
    *,
    encoder: str,
    bank: Any,
    as_: Literal["anndata"],
    **store: Any,
) -> "anndata.AnnData": ...
@overload
def load(
    manifest: Manifest | str | os.PathLike[str],
    *,
    encoder: str,
    bank: Any,
    as_: Literal["torch"],
    **store: Any,
) -> "torch.Tensor": ...
def load(
    manifest: Manifest | str | os.PathLike[str],
    *,
    encoder: str,
    bank: Any,
    as_: str = "array",
    **store: Any,
) -> Any:
    """The embeddings of a manifest's patches, one row a patch, in the manifest's order.

    manifest : or its path or name
    encoder, bank, and view, tokens, precision, dtype : the store to read, see `probe.features.load`
    as_ : "array", float32 (n, dim); "frame", a DataFrame of them, indexed by patch_id; "anndata", an AnnData
        with the manifest's table as obs; "torch", a tensor
    Raises StoreNotFound and RowsMissing (patches without an embedding; the message has the command that makes
    them), InvalidRequest (another form), MissingDependency.
    """
    if as_ not in FORMS:
        raise InvalidRequest(f"as_ {as_!r} is not one of {', '.join(FORMS)}")
    rows = as_manifest(manifest)
    X = load_array(rows, encoder=encoder, bank=bank, **store)
    names = [f"{encoder}_{i}" for i in range(X.shape[1])]
    if as_ == "frame":
        return pd.DataFrame(X, index=pd.Index(rows.table["patch_id"], name="patch_id"), columns=names)
    if as_ == "anndata":
        try:
            from anndata import AnnData
        except ImportError as error:
            raise MissingDependency("AnnData needs a package: pip install 'patchbank[anndata]'") from error
        return AnnData(X, obs=rows.table.set_index("patch_id"), var=pd.DataFrame(index=names))
    if as_ == "torch":
        try:
            from torch import from_numpy
        except ImportError as error:
            raise MissingDependency("tensors need torch: pip install 'patchbank[extract]'") from error
        return from_numpy(X)
    return X

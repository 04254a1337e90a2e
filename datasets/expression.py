"""Gene expression of spots as targets: AnnData files (.h5ad) read with h5py, a few genes of each."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy.sparse import csc_array, csr_array

from ..errors import ImageError, ManifestError
from .container import DAMAGE
from .images import open_regular


def read_genes(file: Path) -> list[str]:
    """The names of a JSON list, or of {"genes": [...]}. Raises ManifestError."""
    try:
        named = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ManifestError(f"{file} cannot be read as JSON: {error}.") from error
    genes = named.get("genes") if isinstance(named, dict) else named
    if not isinstance(genes, list) or not genes or not all(isinstance(gene, str) for gene in genes):
        raise ManifestError(f'{file} is neither a list of names nor {{"genes": [...]}}.')
    return genes


def read_expression(file: Path, barcodes: list[str], genes: list[str], *, log1p: bool) -> np.ndarray:
    """float64 (len(barcodes), len(genes)): X of an .h5ad at these spots and genes, log(1 + X) with `log1p`.

    Raises ManifestError: no such file, spots or genes that it does not have, or not AnnData's layout.
    """
    try:
        open_regular(file).close()
        with h5py.File(file, "r") as store:
            rows = _numbers(file, "spots", _names(store["obs"]), barcodes)
            columns = _numbers(file, "genes", _names(store["var"]), genes)
            values = np.asarray(_matrix(store["X"])[rows][:, columns], dtype=np.float64)
    except ManifestError:
        raise
    except ImageError as error:
        raise ManifestError(str(error)) from error
    except DAMAGE as error:
        raise ManifestError(f"{file} cannot be read as AnnData: {' '.join(str(error).split())}.") from error
    if not np.isfinite(values).all() or (log1p and (values < 0).any()):
        raise ManifestError(f"{file}: X has values that are no counts (negative or not finite).")
    return np.log1p(values) if log1p else values


def _names(table: Any) -> list[str]:
    index = table[str(table.attrs.get("_index", "_index"))][()]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in index]


def _numbers(file: Path, what: str, names: list[str], wanted: list[str]) -> np.ndarray:
    at = {name: i for i, name in enumerate(names)}
    lost = [name for name in wanted if name not in at]
    if lost:
        raise ManifestError(f"{file} lacks {len(lost)} of {len(wanted)} {what}: {', '.join(lost[:8])}.")
    return np.array([at[name] for name in wanted], np.intp)


def _matrix(stored: Any) -> Any:
    """X, dense or as AnnData stores sparse ones; dense rows of the chosen genes are cut afterwards."""
    if isinstance(stored, h5py.Dataset):
        return stored[()]
    parts = tuple(stored[key][()] for key in ("data", "indices", "indptr"))
    kind = csc_array if str(stored.attrs["encoding-type"]).startswith("csc") else csr_array
    return kind(parts, shape=tuple(stored.attrs["shape"])).toarray()

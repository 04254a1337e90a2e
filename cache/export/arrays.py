"""NumPy's files: a folder of .npy and parquet, as embedding-reader has it, and one .npz."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ..columns import array_of
from .rows import Options, Rows


def write_npy(path: Path, rows: Rows, options: Options) -> None:
    """Write the vectors as .npy, the table as parquet."""
    (path / "embeddings").mkdir(parents=True)
    with (path / "embeddings/embeddings_0.npy").open("wb") as file:
        sums = write_array(file, rows)
    write_metadata(path, rows, sums, options)


def write_metadata(path: Path, rows: Rows, sums: np.ndarray, options: Options) -> None:
    """metadata/metadata_0.parquet and patchbank.json of a folder."""
    (path / "metadata").mkdir()
    frame = rows.frame(options.classes).assign(row_checksum=sums)
    frame.to_parquet(path / "metadata/metadata_0.parquet", index=False)
    (path / "patchbank.json").write_text(json.dumps(rows.document, indent=2) + "\n", "utf-8")


def write_array(file: Any, rows: Rows) -> np.ndarray:
    """The .npy format, some rows at a time; returns their checksums."""
    about = {"descr": np.lib.format.dtype_to_descr(rows.dtype), "fortran_order": False, "shape": rows.shape}
    np.lib.format.write_array_header_1_0(file, about)
    sums = [np.empty(0, np.uint64)]
    for _, vectors, some in rows.parts():
        file.write(vectors.data)
        sums.append(some)
    return np.concatenate(sums)


def write_npz(path: Path, rows: Rows, options: Options) -> None:
    """Write one uncompressed archive, without pickles."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with archive.open("embeddings.npy", "w", force_zip64=True) as file:
            sums = write_array(file, rows)
        plain = {name: array_of(values) for name, values in rows.columns.items()}
        plain = {
            name: values.astype(str) if values.dtype == object else values for name, values in plain.items()
        }
        document = np.array(json.dumps(rows.document))
        small = {"content_hash": rows.keys, "row_checksum": sums, **plain, "patchbank": document}
        for name, values in small.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(values), allow_pickle=False)

"""eva's folder: a .pt file for each row, manifest.csv."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..export.rows import STEP, Rows
from ..filesystem import LocalFiles
from ..narrowing import is_array
from ..tensors import read_pt
from .documents import Vectors, document_of, from_frame
from .parquet import table_in


def read_eva(path: Path) -> Rows:
    """The rows of an export."""
    LocalFiles(path).walk()  # refuses links and pipes
    document = document_of(path, (path / "patchbank.json").read_text("utf-8"))
    frame = table_in(path / "metadata/metadata_0.parquet")
    identity = document["identity"]
    dtype, dim = np.dtype(document.get("dtype", identity["dtype"])), int(identity["dim"])

    def read() -> Iterator[np.ndarray]:
        for start in range(0, len(frame), STEP):
            yield np.stack([_row(i) for i in range(start, min(start + STEP, len(frame)))])

    def _row(i: int) -> np.ndarray:
        vector = read_pt(path / f"embeddings/{i:09d}.pt")
        if not is_array(vector) or vector.shape != (dim,) or vector.dtype != dtype:
            raise ValueError(f"embeddings/{i:09d}.pt is not one vector of {dim} {dtype}")
        return vector

    return from_frame(path, document, frame, Vectors((len(frame), dim), dtype, read))

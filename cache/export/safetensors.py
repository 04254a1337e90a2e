"""safetensors: the vectors and the columns of numbers as tensors, the columns of text in the header.

`safe_open(file).metadata()["column.patch_id"]` is the JSON list of the ids. A header has 100 MB at most:
columns of text beyond that are tensors of UTF-8, uint8 (n, longest), padded with zero bytes.
"""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from ..columns import array_of
from .rows import Options, Rows

TYPES = {  # its word for a type: NumPy's
    "U8": "uint8",
    "BOOL": "bool",
    "I64": "int64",
    "U64": "uint64",
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
}
HEADER = 50_000_000  # bytes of text in it; the format's limit is 100,000,000


def write_safetensors(path: Path, rows: Rows, options: Options) -> None:
    """8 bytes header length, JSON header, data; written here, so that vectors need not fit in memory."""
    columns = {f"column.{name}": array_of(values) for name, values in rows.columns.items()}
    metadata = {"patchbank": json.dumps(rows.document), "licence": rows.about["licence"]}
    sums = np.empty(len(rows.keys), np.dtype("<u8"))  # filled while the vectors are written
    small = {"content_hash": rows.keys, "row_checksum": sums}
    room = HEADER
    for name, values in columns.items():
        if values.dtype != object:
            small[name] = values
            continue
        text = json.dumps(values.tolist())
        if (room := room - len(text)) >= 0:
            metadata[name] = text
        else:
            small[name] = _fixed_width(values)
    kinds = {name: kind for kind, name in TYPES.items()}
    header: dict[str, Any] = {"__metadata__": metadata}
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

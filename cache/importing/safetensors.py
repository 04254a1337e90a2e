"""safetensors: read here, so that vectors need not fit in memory and nothing is taken that the file lacks."""

import json
import struct
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..export.rows import Rows
from ..export.safetensors import TYPES
from .documents import checked, document_of, in_memory


def read_safetensors(path: Path) -> Rows:
    """The rows of an export."""
    there = path.stat().st_size
    with path.open("rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        if size > there - 8:
            raise ValueError(f"its header would be {size:,} bytes long")
        header = json.loads(file.read(size))
    metadata = header.pop("__metadata__", {})
    document = document_of(path, metadata.get("patchbank"))
    arrays = {name: tensor_in(path, about, 8 + size, there) for name, about in header.items()}
    columns = {}
    for name, values in arrays.items():
        if name.startswith("column."):
            text = values.dtype == np.uint8
            plain = [bytes(row).rstrip(b"\0").decode() for row in values] if text else np.array(values)
            columns[name.removeprefix("column.")] = np.array(plain, dtype=object if text else None)
    for name, words in metadata.items():
        if name.startswith("column."):
            columns[name.removeprefix("column.")] = np.array(json.loads(words), dtype=object)
    keys, sums = np.array(arrays["content_hash"]), arrays.get("row_checksum")
    return checked(path, document, keys, columns, in_memory(arrays["embeddings"]), sums)


def tensor_in(path: Path, about: dict[str, Any], start: int, there: int) -> np.ndarray:
    """A tensor as the file has it, not read yet. Raises ValueError where the file is too short."""
    dtype, shape = np.dtype(TYPES[about["dtype"]]), tuple(map(int, about["shape"]))
    begin, end = map(int, about["data_offsets"])
    if min(shape, default=0) < 0 or begin < 0 or end - begin != prod(shape) * dtype.itemsize:
        raise ValueError("a tensor's shape and offsets do not match")
    if start + end > there:
        raise ValueError("its tensors end beyond the end of the file")
    if end == begin:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype.newbyteorder("<"), "r", start + begin, shape)

"""safetensors: read here, so that vectors need not fit in memory and nothing is taken that the file lacks."""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..export.rows import Rows
from ..export.safetensors import TYPES
from ..narrowing import is_list
from .documents import checked, document_of, in_memory
from .source import Source, by_id, chosen, encoder_of, flat, of_slide, single, with_ids

OTHERS = {"I8": "int8", "I16": "int16", "I32": "int32", "U16": "uint16", "U32": "uint32"}  # than exports have


def read_safetensors(path: Path) -> Rows:
    """The rows of an export."""
    metadata, arrays = _contents(path, lambda metadata: document_of(path, metadata.get("patchbank")))
    document = document_of(path, metadata.get("patchbank"))
    columns: dict[str, Any] = {}
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


def _contents(
    path: Path, check: Callable[[dict[str, Any]], object] | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The metadata, on which `check` is called first, and every tensor."""
    there = path.stat().st_size
    with path.open("rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        if size > there - 8:
            raise ValueError(f"its header would be {size:,} bytes long")
        header = json.loads(file.read(size))
    metadata = header.pop("__metadata__", {})
    if check is not None:
        check(metadata)
    return metadata, {name: tensor_in(path, about, 8 + size, there) for name, about in header.items()}


def tensor_in(path: Path, about: dict[str, Any], start: int, there: int) -> np.ndarray:
    """A tensor as the file has it, not read yet. Raises ValueError where the file is too short."""
    word = about["dtype"]
    dtype, shape = (
        np.dtype("uint16" if word == "BF16" else {**TYPES, **OTHERS}[word]),
        tuple(map(int, about["shape"])),
    )
    begin, end = map(int, about["data_offsets"])
    if min(shape, default=0) < 0 or begin < 0 or end - begin != prod(shape) * dtype.itemsize:
        raise ValueError("a tensor's shape and offsets do not match")
    if start + end > there:
        raise ValueError("its tensors end beyond the end of the file")
    if end == begin:
        return np.zeros(shape, dtype)
    array = np.memmap(path, dtype.newbyteorder("<"), "r", start + begin, shape)
    return (array.astype(np.uint32) << 16).view(np.float32) if word == "BF16" else array


def foreign_safetensors(path: Path, root: Path, key: str) -> Source:
    """A file with a tensor of embeddings; the metadata may have the ids, as a JSON list of n texts."""
    metadata, arrays = _contents(path)
    if not key and (source := by_id(path, root, "safetensors", arrays)):
        return replace(source, encoder=encoder_of(metadata))
    floats = {name: values.shape for name, values in arrays.items() if values.dtype.kind == "f"}
    name = chosen(path, floats, key)
    vectors = flat(in_memory(arrays[name]), path)
    rows = vectors.shape[0]
    columns: dict[str, Any] = {
        other: np.array(values)
        for other, values in arrays.items()
        if other != name and values.shape == (rows,)
    }
    for other, text in metadata.items():
        if str(text).startswith("["):
            words = json.loads(text)
            if is_list(words) and len(words) == rows and all(isinstance(word, str) for word in words):
                columns[other] = np.array(words, dtype=object)
    coords = arrays.get("coords")
    if coords is not None or path != root:
        about = of_slide(path, None if coords is None else np.array(coords), metadata, rows)
        columns = {**about, **columns}
    return single(path, root, "safetensors", vectors, with_ids(columns), encoder_of(metadata))

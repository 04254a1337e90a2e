"""WebDataset's tars: of each key a .npy, and a .json and .cls of what is known of it."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...errors import InvalidRequest
from ..narrowing import is_object
from ..untrusted import npy_header
from .documents import Vectors
from .source import STEP, Source, columns_of, flat, single

JSON = 1 << 20  # bytes of one .json at most


def foreign_webdataset(path: Path, root: Path, key: str) -> Source:
    """One uncompressed tar. key : the ending of the vectors' members (default: npy)"""
    ending = key or "npy"
    records: list[dict[str, Any]] = []
    first: np.ndarray | None = None
    for name, members in _samples(path):
        if ending not in members:
            raise InvalidRequest(f"{path}: the sample {name!r} has no .{ending}; it has {', '.join(members)}")
        first = _array(members[ending], path) if first is None else first
        about: Any = json.loads(members["json"]) if "json" in members else {}
        if not is_object(about):
            raise InvalidRequest(f"{path}: the .json of {name!r} is not an object")
        if "cls" in members and "label" not in about:
            about["label"] = members["cls"].decode().strip()
        records.append({"key": name, **about})
    if first is None:
        raise InvalidRequest(f"{path} has no samples")
    shape, dtype = first.reshape(-1).shape, first.dtype

    def read() -> Iterator[np.ndarray]:
        step: list[np.ndarray] = []
        for name, members in _samples(path):
            vector = _array(members[ending], path).reshape(-1)
            if vector.shape != shape or vector.dtype != dtype:
                raise InvalidRequest(
                    f"{path}: the embedding of {name!r} is {vector.dtype} {vector.shape}, that of the "
                    f"first {dtype} "
                    f"{shape}"
                )
            step.append(vector)
            if len(step) == STEP:
                yield np.stack(step)
                step = []
        if step:
            yield np.stack(step)

    vectors = flat(Vectors((len(records), *shape), dtype, read), path)
    return single(path, root, "webdataset", vectors, columns_of(pd.DataFrame(records)))


def _samples(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key -> its members by their endings; members of one key follow each other."""
    key, members = "", {}
    with tarfile.open(path, "r:") as archive:
        for info in archive:
            if not info.isreg():
                continue
            folder, slash, name = info.name.rpartition("/")
            stem, _, ending = name.partition(".")
            if ending in ("json", "cls") and info.size > JSON:
                raise InvalidRequest(f"{path}: {info.name} is {info.size:,} bytes long")
            if folder + slash + stem != key and members:
                yield key, members
                members = {}
            key = folder + slash + stem
            if ending in ("json", "cls") or ending.endswith("npy"):
                content = archive.extractfile(info)
                members[ending] = content.read() if content is not None else b""
    if members:
        yield key, members


def _array(content: bytes, path: Path) -> np.ndarray:
    stream = io.BytesIO(content)
    shape, dtype = npy_header(stream, path)
    return np.frombuffer(stream.read(), dtype).reshape(shape)

"""Embeddings that another program wrote: what a reader of any format gives."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...errors import InvalidRequest
from ..narrowing import is_array
from .documents import Vectors, in_memory

# names of an array or column of embeddings, in the order in which they are looked for
NAMES = (
    *("features", "feats", "embeddings", "embedding", "tile_embeddings", "patch_embeddings"),
    "vectors",
    *("feature", "emb", "image_embeddings", "X"),
)
IDS = (
    "patch_id",
    "patch_ids",
    "id",
    "ids",
    "uuid",
    "key",
    "image_id",
    "names",
    "name",
    "file_name",
    "filename",
)
COORDS_COLUMNS = (
    "patch_size",
    "patch_size_level0",
    "level0_magnification",
    "target_magnification",
    "overlap",
)
ENCODERS = ("encoder", "encoder_name", "extractor", "model_name", "model")  # attributes that name it
STEP = 8192
SHOWN = 8  # arrays that a message names
_SUFFIX = re.compile(r"\.(coords|coordinates|features|feats|embeddings)$")


@dataclass(frozen=True)
class Source:
    """Embeddings of one or more files.

    path: the file or folder. layout: what it was read as. vectors: (n, dim), floats. table: n rows: `path`
    says where each row lies in the source ("FILE::embedding[ROW]"), and whatever else the source says of it:
    patch_id where it has ids, group where a file is a slide, x, y, label, ... encoder: its name, as the
    source has it, or "". files: what the vectors were read from.
    """

    path: Path
    layout: str
    vectors: Vectors
    table: pd.DataFrame
    encoder: str = ""
    files: tuple[Path, ...] = ()
    content: str = ""

    @property
    def digest(self) -> str:
        """BLAKE2b, 32 hex digits, of the names (below `path`) and contents of the files."""
        if self.content:
            return self.content
        total = hashlib.blake2b(digest_size=16)
        for file in sorted({*self.files}):
            name = file.relative_to(self.path).as_posix() if file != self.path else ""
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
            total.update(f"{name}\0{content}\n".encode())
        return total.hexdigest()

    def with_table(self, table: pd.DataFrame) -> "Source":
        """The same embeddings with another table of as many rows."""
        return replace(self, table=table)

    def take(self, rows: np.ndarray) -> "Source":
        """Some of the rows, int (m,) ascending."""

        def read() -> Iterator[np.ndarray]:
            start = 0
            for part in self.vectors.read():
                here = rows[(rows >= start) & (rows < start + len(part))] - start
                yield part[here]
                start += len(part)

        vectors = replace(self.vectors, shape=(len(rows), self.vectors.shape[1]), read=read)
        return replace(self, vectors=vectors, table=self.table.iloc[rows].reset_index(drop=True))

    def row(self, i: int) -> str:
        """A row as messages name it."""
        place = str(self.table["path"].iloc[i]).partition("::")
        where = self.path if not self.path.is_dir() else self.path / place[0]
        name = f" ({self.table['patch_id'].iloc[i]})" if "patch_id" in self.table.columns else ""
        return f"{where}: row {place[2].removeprefix('embedding[').removesuffix(']')}{name}"


def single(
    path: Path, root: Path, layout: str, vectors: Vectors, columns: Mapping[str, Any], encoder: str = ""
) -> Source:
    """One file; `root` is what its name in the table is relative to."""
    name = path.relative_to(root).as_posix() if path != root else path.name
    vectors = flat(vectors, path)
    table = pd.DataFrame({"path": [f"{name}::embedding[{i}]" for i in range(vectors.shape[0])]})
    for column, values in columns.items():
        if len(values) != len(table):
            raise InvalidRequest(f"{path} has {len(table)} embeddings, and {len(values)} {column}")
        table[column] = values
    return Source(path, layout, vectors, table, encoder, (path,))


def flat(vectors: Vectors, path: Path) -> Vectors:
    """The vectors as (n, dim): of (1, n, dim) and (n, 1, dim) the one alone, of (dim,) one row.

    Raises InvalidRequest for other shapes and for what are no floats.
    """
    shape = vectors.shape
    kept = tuple(size for size in shape[-3:-1] if size != 1) if len(shape) == 3 else shape[:-1]
    if not 1 <= len(shape) <= 3 or len(kept) > 1 or shape[-1] < 1:
        raise InvalidRequest(f"{path}: embeddings are (n, dim), or (1, n, dim); this array is {shape}")
    if vectors.dtype.kind != "f":
        raise InvalidRequest(f"{path}: embeddings are floats; this array is {vectors.dtype} {shape}")
    rows = kept[0] if kept else 1
    if len(shape) == 2:
        return vectors

    def read() -> Iterator[np.ndarray]:
        for part in vectors.read():
            yield part.reshape(-1, shape[-1])

    return replace(vectors, shape=(rows, shape[-1]), read=read)


def joined(path: Path, layout: str, parts: Sequence[Source]) -> Source:
    """The rows of several files, one after the other. Raises InvalidRequest for different dimensions."""
    parts = [part for part in parts if part.vectors.shape[0]]
    if not parts:
        raise InvalidRequest(f"{path} holds no embeddings")
    first = parts[0]
    for part in parts:
        if part.vectors.shape[1] != first.vectors.shape[1]:
            raise InvalidRequest(
                f"{part.path} has embeddings of {part.vectors.shape[1]} numbers, {first.path} of "
                f"{first.vectors.shape[1]}: they are of two encoders; import them one by one"
            )

    def read() -> Iterator[np.ndarray]:
        for part in parts:
            yield from part.vectors.read()

    rows = sum(part.vectors.shape[0] for part in parts)
    dtype = np.result_type(*(part.vectors.dtype for part in parts))
    table = pd.concat([part.table for part in parts], ignore_index=True)
    names = {part.encoder for part in parts} - {""}
    if len(names) > 1:
        raise InvalidRequest(f"{path} has embeddings of several encoders: {', '.join(sorted(names))}")
    files = tuple(file for part in parts for file in part.files)
    vectors = Vectors((rows, first.vectors.shape[1]), dtype, read)
    return Source(path, layout, vectors, table, next(iter(names), ""), files)


def of_slide(
    path: Path, coords: np.ndarray | None, attributes: Mapping[str, Any], rows: int
) -> dict[str, Any]:
    """The columns of a file that is a slide: group, patch_id, x and y (or x_um, y_um) and what it says of
    them.

    coords : (n, 2) or (1, n, 2); pixels of level 0, or um where the attribute `unit` says so
    """
    slide = _SUFFIX.sub("", path.stem)
    columns: dict[str, Any] = {"group": [slide] * rows}
    ids = [f"{slide}/{i}" for i in range(rows)]
    if coords is not None:
        if coords.ndim == 3 and 1 in coords.shape[:2]:
            coords = coords.reshape(-1, coords.shape[2])
        if coords.ndim != 2 or coords.shape[1] < 2 or coords.dtype.kind not in "iuf":
            raise InvalidRequest(
                f"{path}: coords are (n, 2) numbers; this array is {coords.dtype} {coords.shape}"
            )
        if len(coords) != rows:
            raise InvalidRequest(f"{path} has {rows} embeddings, and {len(coords)} coords")
        micro = attributes.get("unit") == "um"
        whole = not micro and bool(np.isfinite(coords).all()) and not (coords % 1).any()
        points = coords[:, :2].astype(np.int64) if whole else coords[:, :2].astype(np.float64)
        names = ("x", "y") if whole else ("x_um", "y_um") if micro else ("coord_x", "coord_y")
        columns |= dict(zip(names, points.T, strict=True))
        if whole and len({*map(tuple, points.tolist())}) == rows:
            ids = [f"{slide}_{x}_{y}" for x, y in points.tolist()]  # as `datasets build wsi` names them
    for name in (*COORDS_COLUMNS, "tile_size_um", "tile_size_px"):
        if name in attributes and np.ndim(attributes[name]) == 0:
            value = attributes[name]
            columns[name] = [value.item() if isinstance(value, np.generic) else value] * rows
    return {"patch_id": ids, **columns}


def columns_of(frame: pd.DataFrame) -> dict[str, Any]:
    """The columns of a table that a source brings along: numbers, truth values and texts.

    `path` becomes source_path (a row's place in the source is its path here), and of the first names of IDS
    whose values are different and not empty, patch_id.
    """
    columns: dict[str, Any] = {}
    for name, column in frame.items():
        if column.dtype.kind in "iufb":
            columns[str(name)] = column.array if column.isna().any() else column.to_numpy()
        elif all(isinstance(value, str | bytes | int | float) or value is None for value in column):
            texts = column.astype(object).where(column.notna(), "")
            columns[str(name)] = texts.map(
                lambda v: v.decode() if isinstance(v, bytes) else str(v)
            ).to_numpy()
    return with_ids(columns)


def with_ids(columns: dict[str, Any]) -> dict[str, Any]:
    """The columns, with `patch_id` where one of them names the rows, and without `path`."""
    if "path" in columns:
        columns["source_path"] = columns.pop("path")
    for name in (*IDS, "source_path"):
        values = columns.get(name)
        if is_array(values) and values.dtype.kind == "O":
            texts = [str(value) for value in values]
            if "" not in texts and len({*texts}) == len(texts):
                return (
                    {"patch_id": np.array(texts, dtype=object), **columns} if name != "patch_id" else columns
                )
    return columns


def encoder_of(attributes: Mapping[str, Any]) -> str:
    """The name of the encoder among attributes, "" without one."""
    for name in ENCODERS:
        value = attributes.get(name)
        value = value.decode(errors="replace") if isinstance(value, bytes) else value
        if isinstance(value, str) and value.strip() and value.lower() != "unknown":
            return value.strip()
    return ""


def chosen(path: Path, known: Mapping[str, tuple[int, ...]], key: str) -> str:
    """Which array or column holds the embeddings: `key`, one of NAMES, or the only one of two axes or more.

    known : name -> shape, of floats. Raises InvalidRequest naming what there is.
    """
    if key:
        if key not in known:
            raise InvalidRequest(f"{path} has no embeddings {key!r}; it has {_listed(known)}")
        return key
    for name in NAMES:
        if name in known:
            return name
    wide = [name for name, shape in known.items() if len(shape) > 1]
    if len(wide) == 1:
        return wide[0]
    raise InvalidRequest(
        f"{path}: which of its arrays are the embeddings? Say it with --key NAME; it has {_listed(known)}"
    )


def _listed(known: Mapping[str, tuple[int, ...]]) -> str:
    words = [name if -1 in shape else f"{name} {shape}" for name, shape in known.items()]
    more = f", and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more or "no array of floats"


def by_id(path: Path, root: Path, layout: str, arrays: Mapping[str, Any]) -> Source | None:
    """A file with a vector a patch, (dim,) or (1, dim), by the patch's id; None where it is no such file."""
    vectors = [
        array.reshape(-1)
        for array in arrays.values()
        if is_array(array) and array.dtype.kind == "f" and 1 < array.size == array.shape[-1]
    ]
    if not 1 < len(vectors) == len(arrays) or len({*map(len, vectors)}) > 1 or arrays.keys() & {*NAMES}:
        return None
    columns, ids = {}, [str(name) for name in arrays]
    if path != root:
        columns = of_slide(path, None, {}, len(ids))
        ids = [f"{slide}/{one}" for slide, one in zip(columns["group"], ids, strict=True)]
    return single(path, root, layout, in_memory(np.stack(vectors)), {**columns, "patch_id": ids})


Read = Callable[[Path, Path, str], Source]  # (file, root, key of the embeddings or "")

"""Parquet: one file, or the folder of Hugging Face's `datasets`; the Arrow files that it saves to disk."""

import json
import re
from collections.abc import Collection, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...errors import InvalidRequest
from ..export.rows import STEP, Rows
from ..untrusted import check_size
from .documents import Vectors, document_of, from_frame
from .source import Source, chosen, columns_of, joined, single
from .text import numbered


def read_parquet(path: Path) -> Rows:
    """The rows of an export."""
    import pyarrow.parquet as pq

    schema, rows = pq.read_schema(path), pq.read_metadata(path).num_rows
    metadata: dict[bytes, bytes] = schema.metadata or {}
    document = document_of(path, metadata.get(b"patchbank"))
    kind = schema.field("embedding").type
    shape, dtype = (rows, kind.list_size), np.dtype(kind.value_type.to_pandas_dtype())
    check_size(path, prod(shape) * dtype.itemsize, path.stat().st_size)

    def read() -> Iterator[np.ndarray]:
        for batch in pq.ParquetFile(path).iter_batches(STEP, columns=["embedding"]):
            yield batch.column(0).flatten().to_numpy(zero_copy_only=False).reshape(-1, shape[1])

    frame = table_in(path)
    labels: dict[str, list[str]] = json.loads(metadata.get(b"patchbank-labels", b"{}"))
    for name, names in labels.items():
        frame[name] = _named(frame[name], names)
    return from_frame(path, document, frame, Vectors(shape, dtype, read))


def _named(codes: pd.Series, names: Sequence[str]) -> pd.Series:
    """The texts that the numbers of a ClassLabel stand for, "" where there is none."""
    numbers = codes.astype("Int64").fillna(-1).astype(int)
    if not numbers.between(-1, len(names) - 1).all():
        raise ValueError(f"the column {codes.name!r} has a number that is no class")
    return numbers.map(dict(enumerate(names))).astype(object).where(numbers >= 0, "")


def table_in(path: Path, *, without: Collection[str] = ("embedding",)) -> pd.DataFrame:
    """The columns of a parquet file but the vectors; equal texts are one in memory, as they are on disk."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(path)
    names = [
        name
        for name in schema.names
        if name not in without and not pa.types.is_nested(schema.field(name).type)
    ]
    texts = [name for name in names if pa.types.is_string(schema.field(name).type)]
    file = pq.ParquetFile(path, read_dictionary=texts)
    groups = range(file.metadata.num_row_groups)
    claimed = sum(file.metadata.row_group(i).total_byte_size for i in groups)
    check_size(path, claimed, path.stat().st_size)
    return file.read(columns=names).to_pandas(types_mapper=_nullable(pa))


def foreign_parquet(path: Path, root: Path, key: str) -> Source:
    """A file with a column of lists of floats, or a column for each number; the others are the table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    schema = file.schema_arrow
    lists = {field.name: (-1, -1) for field in schema if _is_list(field.type)}
    rows = file.metadata.num_rows
    groups = range(file.metadata.num_row_groups)
    claimed = sum(file.metadata.row_group(i).total_byte_size for i in groups)
    check_size(path, claimed, path.stat().st_size)
    if not lists:
        return _wide(path, root, schema, rows, key)
    name = chosen(path, lists, key)
    kind = schema.field(name).type

    def read() -> Iterator[np.ndarray]:
        start = 0
        for batch in pq.ParquetFile(path).iter_batches(STEP, columns=[name]):
            yield matrix_of(batch.column(0), dim, path, start)
            start += len(batch)

    first = next(file.iter_batches(1, columns=[name]), None)
    dim = kind.list_size if pa.types.is_fixed_size_list(kind) else _width(first)
    dtype = np.dtype(kind.value_type.to_pandas_dtype())
    frame = _named_classes(table_in(path, without={*lists}), schema)
    return single(path, root, "parquet", Vectors((rows, dim), dtype, read), columns_of(frame))


def _wide(path: Path, root: Path, schema: Any, rows: int, key: str) -> Source:
    """A file with the columns NAME0, NAME1, ...; a number that is missing is NaN, and refused as that."""
    import pyarrow.parquet as pq

    names = numbered(path, schema.names, key)
    dtype = np.result_type(*(schema.field(name).type.to_pandas_dtype() for name in names))

    def read() -> Iterator[np.ndarray]:
        for batch in pq.ParquetFile(path).iter_batches(STEP, columns=names):
            yield np.column_stack([batch.column(name).to_numpy(zero_copy_only=False) for name in names])

    frame = _named_classes(table_in(path, without=names), schema)
    return single(path, root, "parquet", Vectors((rows, len(names)), dtype, read), columns_of(frame))


def foreign_arrow(path: Path, root: Path, key: str) -> Source:
    """A file of a data set that Hugging Face's `datasets` saved to disk: an Arrow stream."""
    import pyarrow as pa

    def batches() -> Iterator[Any]:
        with pa.memory_map(str(path)) as stream:
            for batch in pa.ipc.open_stream(stream):
                batch.validate(full=True)
                check_size(path, batch.nbytes, path.stat().st_size)  # buffers may be compressed
                yield batch

    with pa.memory_map(str(path)) as stream:
        schema = pa.ipc.open_stream(stream).schema
    lists = {field.name: (-1, -1) for field in schema if _is_list(field.type)}
    name = chosen(path, lists, key)
    kind = schema.field(name).type
    others = [
        field.name for field in schema if field.name not in lists and not pa.types.is_nested(field.type)
    ]
    tables: list[Any] = []
    rows, dim = 0, -1
    for batch in batches():
        tables.append(pa.Table.from_batches([batch]).select(others))
        rows += len(batch)
        dim = max(dim, _width(batch.select([name])))
    frame = pa.concat_tables(tables).to_pandas(types_mapper=_nullable(pa)) if tables else pd.DataFrame()

    def read() -> Iterator[np.ndarray]:
        start = 0
        for batch in batches():
            yield matrix_of(batch.column(name), dim, path, start)
            start += len(batch)

    dtype = np.dtype(kind.value_type.to_pandas_dtype())
    columns = columns_of(_named_classes(frame, schema))
    return single(path, root, "arrow", Vectors((rows, dim), dtype, read), columns)


def foreign_huggingface(path: Path, root: Path, key: str) -> Source:
    """A folder that `datasets` saved to disk (of one data set, or of a split each), or of parquet files.

    The split is that of the folder, or of the file's name (`train-00000-of-00002.parquet`).
    """
    arrow = sorted(path.glob("*.arrow")) or sorted(path.glob("*/*.arrow"))
    files = arrow or sorted(path.glob("*.parquet")) or sorted((path / "data").glob("*.parquet"))
    parts: list[Source] = []
    for file in files:
        part = (foreign_arrow if arrow else foreign_parquet)(file, root, key)
        split = _split_of(file) if not arrow else "" if file.parent == path else file.parent.name
        if split and "split" not in part.table.columns:
            part.table["split"] = split
        parts.append(part)
    return joined(path, "huggingface", parts)


def _split_of(file: Path) -> str:
    match = re.fullmatch(r"(\w+?)-\d+-of-\d+", file.stem)
    return match[1] if match else ""


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and pa.types.is_floating(kind.value_type)


def _width(batch: Any) -> int:
    """Of the first vector."""
    if batch is None or not len(batch):
        return 0
    first = batch.column(0)[0]
    return len(first) if first.is_valid else 0


def matrix_of(column: Any, dim: int, path: Path, start: int) -> np.ndarray:
    """Lists of `dim` floats as an array (n, dim). Raises InvalidRequest at a row that is missing or of
    another length; start : number of the first row.
    """
    lengths = column.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False)
    odd = np.flatnonzero(lengths != dim)
    if len(odd):
        row, length = start + int(odd[0]), int(lengths[odd[0]])
        what = "is missing" if length < 0 else f"has {length} numbers, the first row {dim}"
        raise InvalidRequest(f"{path}: row {row}: the embedding {what}")
    values = column.flatten()
    if values.null_count:
        row = start + int(values.is_null().to_numpy(zero_copy_only=False).argmax()) // dim
        raise InvalidRequest(f"{path}: row {row}: a number of the embedding is missing")
    return values.to_numpy(zero_copy_only=False).reshape(-1, dim)


def _named_classes(frame: pd.DataFrame, schema: Any) -> pd.DataFrame:
    """The names in place of the numbers of ClassLabel columns."""
    try:
        metadata: dict[bytes, bytes] = schema.metadata or {}
        about: dict[str, Any] = json.loads(metadata.get(b"huggingface", b"{}"))
        features: dict[str, dict[str, Any]] = about.get("info", {}).get("features") or {}
        classes: dict[str, list[Any]] = {
            n: f["names"] for n, f in features.items() if f.get("_type") == "ClassLabel"
        }
    except (ValueError, AttributeError, KeyError, TypeError):
        return frame
    for name, names in classes.items():
        if name in frame.columns and pd.api.types.is_integer_dtype(frame[name].dtype):
            frame[name] = _named(frame[name], [str(word) for word in names])
    return frame


def _nullable(pa: Any) -> Any:
    return {pa.int64(): pd.Int64Dtype(), pa.uint64(): pd.UInt64Dtype(), pa.bool_(): pd.BooleanDtype()}.get

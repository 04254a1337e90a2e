"""Parquet: one file, or the folder of Hugging Face's `datasets`."""

import json
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

import numpy as np
import pandas as pd

from ..export.rows import STEP, Rows
from ..untrusted import check_size
from .documents import Vectors, document_of, from_frame


def read_parquet(path: Path) -> Rows:
    """The rows of an export."""
    import pyarrow.parquet as pq

    schema, rows = pq.read_schema(path), pq.read_metadata(path).num_rows
    document = document_of(path, (schema.metadata or {}).get(b"patchbank"))
    kind = schema.field("embedding").type
    shape, dtype = (rows, kind.list_size), np.dtype(kind.value_type.to_pandas_dtype())
    check_size(path, prod(shape) * dtype.itemsize, path.stat().st_size)

    def read() -> Iterator[np.ndarray]:
        for batch in pq.ParquetFile(path).iter_batches(STEP, columns=["embedding"]):
            yield batch.column(0).flatten().to_numpy(zero_copy_only=False).reshape(-1, shape[1])

    frame = table_in(path)
    for name, names in json.loads((schema.metadata or {}).get(b"patchbank-labels", b"{}")).items():
        frame[name] = _named(frame[name], names)
    return from_frame(path, document, frame, Vectors(shape, dtype, read))


def _named(codes: pd.Series, names: Sequence[str]) -> pd.Series:
    """The texts that the numbers of a ClassLabel stand for, "" where there is none."""
    numbers = codes.astype("Int64").fillna(-1).astype(int)
    if not numbers.between(-1, len(names) - 1).all():
        raise ValueError(f"the column {codes.name!r} has a number that is no class")
    return numbers.map(dict(enumerate(names))).astype(object).where(numbers >= 0, "")


def table_in(path: Path) -> pd.DataFrame:
    """The columns of a parquet file but the vectors; equal texts are one in memory, as they are on disk."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(path)
    names = [name for name in schema.names if name != "embedding"]
    texts = [name for name in names if pa.types.is_string(schema.field(name).type)]
    file = pq.ParquetFile(path, read_dictionary=texts)
    groups = range(file.metadata.num_row_groups)
    claimed = sum(file.metadata.row_group(i).total_byte_size for i in groups)
    check_size(path, claimed, path.stat().st_size)
    kinds = {pa.int64(): pd.Int64Dtype(), pa.uint64(): pd.UInt64Dtype(), pa.bool_(): pd.BooleanDtype()}
    return file.read(columns=names).to_pandas(types_mapper=kinds.get)

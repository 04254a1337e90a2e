"""Parquet: one file for pandas, DuckDB and polars, or a folder that Hugging Face's `datasets` loads.

`embedding` is a FixedSizeList. In one file label, domain and split are dictionaries (pandas' categories,
DuckDB's ENUM-like strings). In the folder they are ClassLabel, and each split is a file of its own, as
`load_dataset` and the hub have it; rows without a split are in `train` where no row has one, else in
`unassigned`.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..columns import CATEGORIES
from .rows import Options, Rows


def write_parquet(path: Path, rows: Rows, options: Options) -> None:
    """Write one file, uncompressed."""
    _write(path, rows, options, {})


def write_huggingface(folder: Path, parts: Mapping[str, Rows], options: Options) -> None:
    """`data/SPLIT-00000-of-00001.parquet`, and a README.md with the names of the splits."""
    (folder / "data").mkdir(parents=True)
    encoder = next(iter(parts.values())).about["identity"]["encoder"]["id"]
    labels: dict[str, list[str]] = {}
    for name in CATEGORIES:
        known = [rows.codes(name, options.classes)[1] for rows in parts.values() if _is_text(rows, name)]
        if known:
            order = list(options.classes) if name == "label" else []
            labels[name] = list(dict.fromkeys([*order, *sorted({word for words in known for word in words})]))
    for split, rows in parts.items():
        _write(folder / f"data/{split}-00000-of-00001.parquet", rows, options, labels)
    files = "\n".join(f"  - split: {split}\n    path: data/{split}-*.parquet" for split in parts)
    (folder / "README.md").write_text(
        f"---\npretty_name: {json.dumps(f'embeddings of {encoder}')}\nconfigs:\n- config_name: default\n"
        f"  data_files:\n{files}\n---\n\n"
        f"Embeddings of the encoder {encoder}, written by `patchbank cache export`.\n",
        "utf-8",
    )


def split_names(rows: Rows) -> dict[str, str]:
    """The value of the column `split` -> the name of its file: letters, digits and `_` only."""
    splits = rows.text("split")
    values = [""] if splits is None else sorted({*splits.tolist()})
    if values == [""]:
        return {"": "train"}
    return {value: re.sub(r"\W+", "_", value) if value else "unassigned" for value in values}


def _is_text(rows: Rows, name: str) -> bool:
    return name in rows.columns and rows.columns[name].dtype == object


def _write(path: Path, rows: Rows, options: Options, labels: Mapping[str, list[str]]) -> None:
    """labels : column -> the names of its ClassLabel; of which the file holds the numbers"""
    import pyarrow as pa
    import pyarrow.parquet as pq

    frame = rows.frame(options.classes)
    for name, names in labels.items():
        if name in frame.columns:
            codes = {word: code for code, word in enumerate(names)}
            frame[name] = frame[name].astype(object).map(codes).astype("Int64")
    table = pa.Table.from_pandas(frame, preserve_index=False)
    vector = pa.list_(pa.from_numpy_dtype(rows.dtype), rows.shape[1])
    schema = table.schema.append(pa.field("row_checksum", pa.uint64(), nullable=False))
    schema = schema.append(pa.field("embedding", vector, nullable=False))
    about: dict[str, Any] = {"patchbank": json.dumps(rows.document), "licence": rows.about["licence"]}
    if labels:
        features = {name: {"names": names, "_type": "ClassLabel"} for name, names in labels.items()}
        about |= {"huggingface": json.dumps({"info": {"features": features}})}
        about |= {"patchbank-labels": json.dumps(labels)}
    schema = schema.with_metadata(about)
    counted = [name for name in schema.names if name != "embedding"]  # statistics of it take half of the time
    with pq.ParquetWriter(
        path, schema, compression="none", use_dictionary=False, write_statistics=counted
    ) as writer:
        for part, vectors, sums in rows.parts():
            flat = pa.array(vectors.reshape(-1))
            arrays = [
                *table.slice(part.start, len(vectors)).columns,
                pa.array(sums),
                pa.FixedSizeListArray.from_arrays(flat, type=vector),
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))

"""Tables of patches in arrays and columns: HDF5 (PCam), npz (MedMNIST), parquet (Hugging Face)."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from ..errors import ImageError, ManifestError
from .containers import NpzArrays, open_container
from .layouts import refuse_unknown_columns
from .sources import MARK
from .tables import Say, read_user_table

_SPLIT = re.compile(r"(?P<split>[A-Za-z0-9_]+?)-\d{5}-of-\d{5}|(?P<whole>[A-Za-z_]+)(?:[-_]?\d+)?")


def hdf5_table(
    root: Path,
    *,
    images: Mapping[str, str],
    labels: Mapping[str, str] | None = None,
    meta: Mapping[str, str] | None = None,
    array: str = "x",
    labels_array: str = "y",
    columns: Mapping[str, str] | None = None,
    classes: Sequence[str] = (),
    say: Say,
) -> tuple[pd.DataFrame, Path]:
    """Patches in HDF5 arrays, as PCam has them.

    images: split -> file under the root with `array`, uint8 (n, h, w[, 3]). labels: split -> file with
    `labels_array`, n integers (further axes of length 1); without an entry the images' file is asked for that
    array, and without it the labels are not known. meta: split -> CSV of n rows; `columns` (ours -> its name)
    then says which are group, domain, x, y. classes: the names of the labels 0, 1, ...

    Raises ManifestError: missing files or arrays, row counts that differ, labels without a class.
    """
    parts = []
    for split, name in images.items():
        n = _shape(root / name, array)[0]
        part = pd.DataFrame({"path": [f"{name}{MARK}{array}[{i}]" for i in range(n)], "split": split})
        file = (labels or {}).get(split, name)
        with _open_hdf5(root / file) as store:
            if labels_array in store:
                part["label"] = _named(np.asarray(store[labels_array]), classes, n, root / file)
            elif split in (labels or {}):
                raise ManifestError(
                    f"{root / file}: there is no array {labels_array!r}; it has {sorted(store)}."
                )
        if split in (meta or {}):
            file = root / (meta or {})[split]
            frame = read_user_table(file, say=say)
            refuse_unknown_columns(file, frame, list((columns or {}).values()))
            if len(frame) != n:
                raise ManifestError(f"{file} has {len(frame)} rows for the {n} patches of {name}.")
            part = part.assign(**{ours: frame[theirs] for ours, theirs in (columns or {}).items()})
        part["patch_id"] = [f"{split}/{i}" for i in range(n)]
        parts.append(part)
    return pd.concat(parts, ignore_index=True), root


def npz_table(root: Path, *, classes: Sequence[str] = (), say: Say) -> tuple[pd.DataFrame, Path]:
    """Patches in one npz, as MedMNIST has them.

    Its arrays are SPLIT_images, uint8 (n, h, w[, 3]), and SPLIT_labels, (n, 1) or (n,).

    root: the npz. classes: the names of the labels 0, 1, ... Raises ManifestError as `hdf5_table` does.
    """
    try:
        store = open_container(str(root))
        if not isinstance(store, NpzArrays):
            raise ManifestError(f"{root} is no .npz file.")
        keys = store.keys()
        splits = [key.removesuffix("_images") for key in keys if key.endswith("_images")]
        if not splits:
            raise ManifestError(f"{root} has no array called SPLIT_images; it has {keys}.")
        parts = []
        for split in splits:
            n = store.array(f"{split}_images").shape[0]
            part = pd.DataFrame({"path": [f"{root.name}{MARK}{split}_images[{i}]" for i in range(n)]})
            if f"{split}_labels" in keys:
                part["label"] = _named(store.array(f"{split}_labels"), classes, n, root)
            part["split"], part["patch_id"] = split, [f"{split}/{i}" for i in range(n)]
            parts.append(part)
    except ImageError as error:
        raise ManifestError(str(error)) from error
    return pd.concat(parts, ignore_index=True), root.parent


def parquet_table(
    root: Path,
    *,
    image: str = "",
    columns: Mapping[str, str] | None = None,
    classes: Sequence[str] = (),
    say: Say,
) -> tuple[pd.DataFrame, Path]:
    """Patches in parquet files as Hugging Face's image data sets have them; embedded images only.

    root: one file, or a folder that is searched for *.parquet; the split is the file's name up to
        "-00000-of-".
    image: the column (by default the one that is a struct with `bytes`). columns: ours -> its name, by
    default label = "label"; whole numbers become the names that the file's Hugging Face header gives them,
    or `classes`. Other columns of numbers and texts are kept.

    Raises ManifestError: no files, no image column, columns that are not there, labels without a class.
    """
    files = [root] if root.is_file() else sorted(root.rglob("*.parquet"))
    base = root.parent if root.is_file() else root
    if not files:
        raise ManifestError(f"{root} holds no .parquet file.")
    parts = []
    for file in files:
        try:
            schema = pyarrow.parquet.read_schema(file)
        except (pa.ArrowException, OSError) as error:
            raise ManifestError(f"{file} cannot be read as parquet: {error}.") from error
        column = image or next((field.name for field in schema if _is_image(field.type)), "")
        if column not in schema.names:
            raise ManifestError(
                f"{file} has no image column {column!r}; it has {schema.names}: name it with --image."
            )
        plain = [f.name for f in schema if f.name != column and not pa.types.is_nested(f.type)]
        plain = [name for name in plain if not pa.types.is_binary(schema.field(name).type)]
        frame = pyarrow.parquet.read_table(file, columns=plain).to_pandas()
        n = pyarrow.parquet.read_metadata(file).num_rows
        frame = frame.reindex(range(n))
        wanted = dict(columns or {})
        if "label" in frame.columns:
            wanted.setdefault("label", "label")
        refuse_unknown_columns(file, frame, list(wanted.values()))
        label_column = wanted.get("label", "")
        frame = frame.assign(**{ours: frame[theirs] for ours, theirs in wanted.items()})
        if label_column and pd.api.types.is_integer_dtype(frame["label"].dtype):
            names = classes or _class_names(schema, label_column)
            frame["label"] = _named(frame["label"].to_numpy(), names, n, file)
        relative = file.relative_to(base).as_posix()
        frame["path"] = [f"{relative}{MARK}{column}[{i}]" for i in range(n)]
        if "split" not in frame.columns:
            match = _SPLIT.match(file.stem)
            frame["split"] = (match["split"] or match["whole"]) if match else ""
        if "patch_id" not in frame.columns:
            frame["patch_id"] = [f"{os.path.splitext(relative)[0]}/{i}" for i in range(n)]  # noqa: PTH122
        parts.append(frame)
    return pd.concat(parts, ignore_index=True), base


def _is_image(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0


def _class_names(schema: pa.Schema, column: str) -> list[str]:
    """The names of a ClassLabel in the header that Hugging Face's library writes; [] where there are none."""
    try:
        header = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        return list(header["info"]["features"][column]["names"])
    except (ValueError, KeyError, TypeError):
        return []


def _named(labels: np.ndarray, classes: Sequence[str], n: int, file: Path) -> list[str]:
    """n integer labels, of any shape with n elements, as the names of their classes (or their digits)."""
    if labels.size != n or not np.issubdtype(labels.dtype, np.integer):
        raise ManifestError(
            f"{file}: the labels must be {n} whole numbers, one a patch, not {labels.dtype} {labels.shape}."
        )
    flat = labels.reshape(-1)
    if not classes:
        return [str(int(label)) for label in flat]
    odd = sorted({int(label) for label in flat if not 0 <= label < len(classes)})
    if odd:
        raise ManifestError(
            f"{file}: labels {odd[:8]} have no name; the classes are {list(classes)}, from 0."
        )
    return [classes[int(label)] for label in flat]


def _open_hdf5(file: Path) -> h5py.File:
    try:
        return h5py.File(file, "r")
    except OSError as error:
        raise ManifestError(f"{file} cannot be read as HDF5: {error}.") from error


def _shape(file: Path, array: str) -> tuple[int, ...]:
    with _open_hdf5(file) as store:
        found = store.get(array)
        if not isinstance(found, h5py.Dataset) or found.dtype != np.uint8 or found.ndim not in (3, 4):
            raise ManifestError(
                f"{file}: {array!r} is no array uint8 (n, h, w[, 3]); the file has {sorted(store)}."
            )
        return found.shape

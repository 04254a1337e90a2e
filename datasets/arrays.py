"""Tables of patches in arrays and columns: HDF5 (PCam), npz (MedMNIST), parquet (Hugging Face)."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from ..errors import ImageError, InvalidRequest, ManifestError
from .container import DAMAGE
from .containers import NpzArrays, open_container
from .hdf5 import hdf5_array, hdf5_rows
from .images import open_regular
from .layouts import natural, refuse_unknown_columns
from .manifest import listed
from .sources import MARK
from .tables import Lose, Say, is_hidden, own_names, read_user_table
from .values import COLUMNS, SPLITS

_SPLIT = re.compile(r"(?P<split>[A-Za-z0-9_]+?)-\d{5}-of-\d{5}|(?P<word>[A-Za-z]+)(?:[-_]?\d+)?\Z")
HIDDEN = -1  # a label that Hugging Face's data sets write where it is not known
Files = Mapping[str, str | Sequence[str]]


def hdf5_table(
    root: Path,
    *,
    images: Files,
    labels: Files | None = None,
    meta: Files | None = None,
    array: str = "x",
    labels_array: str = "y",
    columns: Mapping[str, str] | None = None,
    group_by_file: bool = False,
    classes: Sequence[str] = (),
    say: Say,
    lose: Lose,
) -> tuple[pd.DataFrame, Path]:
    """Patches in HDF5 arrays, as PCam has them.

    images: split -> file under the root with `array`, uint8 (n, h, w[, 3]); several files, a folder of them,
    or a pattern ("slides/*.h5"), in the order of their names. labels: split -> as many files with
    `labels_array`, n integers or texts (further axes of length 1); without an entry the images' file is asked
    for that array, and without it the labels are not known. meta: split -> as many CSVs of n rows; `columns`
    (ours -> its name) then says which are group, domain, x, y. group_by_file: each file is a group (a slide),
    named by it. classes: the names of the labels 0, 1, ...; -1 is not known. lose: called with each file
    (of images or labels) that cannot be read, and what is wrong with it; its patches are left out.

    Raises ManifestError: no readable file, row counts that differ, labels without a class.
    """
    if group_by_file and "group" in (columns or {}):
        raise InvalidRequest("a group is either a file or a column: leave out one of them.")
    parts, faults = [], []
    for split, given in images.items():
        names = _files(root, given)
        beside = {
            what: _files(root, (of or {}).get(split, ())) for what, of in (("labels", labels), ("meta", meta))
        }
        for what, found in beside.items():
            if found and len(found) != len(names):
                raise ManifestError(f"{split}: {len(names)} files of images, but {len(found)} of {what}.")
        stems = [os.path.splitext(name)[0] for name in names]  # noqa: PTH122
        for k, name in enumerate(names):
            of_labels = beside["labels"][k] if beside["labels"] else name
            try:
                paths = _rows_of(root / name, name, array)
                found = _labels_of(root / of_labels, labels_array, required=bool(beside["labels"]))
            except _UnreadableError as error:
                faults.append(error)
                continue
            part = pd.DataFrame({"path": paths, "split": split})
            n = len(part)
            prefix = split if len(names) == 1 else f"{split}/{stems[k]}"
            part["patch_id"] = [f"{prefix}/{i}" for i in range(n)]
            if group_by_file:
                part["group"] = stems[k]
            if found is not None:
                part["label"] = _named(found, classes, n, root / of_labels)
            if beside["meta"]:
                part = part.assign(**_columns_beside(root / beside["meta"][k], columns or {}, n, name, say))
            parts.append(part)
    return _together(parts, faults, root, lose), root


def _columns_beside(
    file: Path, columns: Mapping[str, str], n: int, images: str, say: Say
) -> dict[str, pd.Series]:
    """Ours -> the column of a table of n rows beside a file of images."""
    frame = read_user_table(file, say=say)
    refuse_unknown_columns(file, frame, list(columns.values()))
    if len(frame) != n:
        raise ManifestError(f"{file} has {len(frame)} rows for the {n} patches of {images}.")
    return {ours: frame[theirs] for ours, theirs in columns.items()}


class _UnreadableError(ManifestError):
    """One of several files cannot be read; the others can still be used."""

    def __init__(self, file: Path, fault: str) -> None:
        super().__init__(f"{file}: {fault}.")
        self.file, self.fault = file, fault


def _together(
    parts: Sequence[pd.DataFrame], faults: Sequence[_UnreadableError], root: Path, lose: Lose
) -> pd.DataFrame:
    if not parts and faults:
        raise faults[0]
    for error in faults:
        lose(error.file.relative_to(root).as_posix(), error.fault)
    return pd.concat(parts, ignore_index=True)


def _files(root: Path, given: str | Sequence[str]) -> list[str]:
    """The files under the root that names, folders and patterns mean, in natural order within each."""
    files: list[str] = []
    for name in [given] if isinstance(given, str) else given:
        if (root / name).is_dir():
            matches = [p for p in (root / name).iterdir() if p.suffix.lower() in (".h5", ".hdf5", ".csv")]
        elif any(mark in name for mark in "*?[") and not (root / name).exists():
            matches = list(root.glob(name))
        else:
            matches = [root / name]
        if not matches:
            raise ManifestError(f"{root} has no files {name!r}.")
        files += sorted(
            (p.relative_to(root).as_posix() for p in matches if not is_hidden(p.name)), key=natural
        )
    return files


def _rows_of(file: Path, name: str, array: str) -> list[str]:
    with _reading(file, "HDF5"), h5py.File(file, "r") as store:
        images = hdf5_array(store, array, file)
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise _UnreadableError(
                file, f"{array!r} is not an array uint8 (n, h, w[, 3]) but {images.dtype} {images.shape}"
            )
        return [f"{name}{MARK}{array}[{i}]" for i in range(images.shape[0])]


def _labels_of(file: Path, array: str, *, required: bool) -> np.ndarray | None:
    """The labels beside images; None where the file has no such array and needs none."""
    with _reading(file, "HDF5"), h5py.File(file, "r") as store:
        if array not in store and not required:
            return None
        return hdf5_rows(hdf5_array(store, array, file), slice(None), file)


@contextmanager
def _reading(file: Path, kind: str) -> Iterator[None]:
    """Whatever is wrong with a file is said of it."""
    try:
        open_regular(file).close()
        yield
    except _UnreadableError:
        raise
    except ImageError as error:
        raise _UnreadableError(file, str(error).removeprefix(f"{file}: ").rstrip(".")) from error
    except DAMAGE as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise _UnreadableError(file, f"cannot be read as {kind}: {said}") from error


def npz_table(root: Path, *, classes: Sequence[str] = (), say: Say) -> tuple[pd.DataFrame, Path]:
    """Patches in one npz, as MedMNIST has them.

    Its arrays are SPLIT_images, uint8 (n, h, w[, 3]), and SPLIT_labels, (n, 1) or (n,).

    root: the npz. classes: the names of the labels 0, 1, ... Raises ManifestError as `hdf5_table` does.
    """
    try:
        store = open_container(str(root))
        if not isinstance(store, NpzArrays):
            raise ManifestError(f"{root} is not an .npz file.")
        keys = store.keys()
        splits = [key.removesuffix("_images") for key in keys if key.endswith("_images")]
        if not splits:
            raise ManifestError(f"{root} has no array called SPLIT_images; it has {keys}.")
        parts = []
        for split in splits:
            n = store.array(f"{split}_images").shape[0]
            part = pd.DataFrame({"path": [f"{root.name}{MARK}{split}_images[{i}]" for i in range(n)]})
            if f"{split}_labels" not in keys:
                say(f"{root.name}: it has no array {split}_labels, so no label is known; it has {keys}")
            else:
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
    lose: Lose,
) -> tuple[pd.DataFrame, Path]:
    """Patches in parquet files as Hugging Face's image data sets have them; embedded images only.

    root: one file, or a folder that is searched for *.parquet; the split is what a folder or the file's name
        up to "-00000-of-" says ("train", "test", "validation", ...).
    image: the column (by default the one that is a struct with `bytes`). columns: ours -> its name, by
    default label = "label"; whole numbers become the names that a file's Hugging Face header gives them,
    or `classes`; -1 is not known. Other columns of numbers and texts are kept.
    lose: called with each file that cannot be read, and what is wrong with it; its patches are left out.

    Raises ManifestError: no readable files, no image column, columns that do not exist, labels without a
    class, files that name the classes differently.
    """
    files = [root] if root.is_file() else sorted(root.rglob("*.parquet"))
    base = root.parent if root.is_file() else root
    if not files:
        raise ManifestError(f"{root} holds no .parquet file.")
    columns = dict(columns or {})
    wanted = {"label": "label", **columns}
    said: set[str] = set()

    def once(note: str) -> None:
        if note not in said:
            say(note)
        said.add(note)

    schemas, faults = _schemas(files)
    names = classes or _classes_of_headers(schemas, wanted["label"])
    parts: list[pd.DataFrame] = []
    kinds: dict[Path, str] = {}
    for file, schema in schemas.items():
        column = _images_in(file, schema, image)
        plain = _plain_columns(file, schema, column, columns, once)
        try:
            table = _read_columns(file, plain)
        except _UnreadableError as error:
            faults.append(error)
            continue
        n = pyarrow.parquet.read_metadata(file).num_rows
        frame = pd.DataFrame({name: _series(table[name]) for name in plain}, index=range(n))
        frame = own_names(frame, root, columns, (*COLUMNS, "patch_id"), once)
        renamed = {
            ours: theirs for ours, theirs in wanted.items() if ours in columns or theirs in frame.columns
        }
        refuse_unknown_columns(file, frame, list(renamed.values()))
        frame = frame.assign(**{ours: frame[theirs] for ours, theirs in renamed.items()})
        if "label" in frame.columns:
            frame["label"], kinds[file] = _labels_of_column(frame["label"], names, file)
        parts.append(_with_paths(frame, file.relative_to(base).as_posix(), column))
    _refuse_mixed_labels(kinds)
    return _together(parts, faults, base, lose), base


def _with_paths(frame: pd.DataFrame, file: str, column: str) -> pd.DataFrame:
    """With each row's path, and the split and the ids that a file's name says where no column does."""
    rows = range(len(frame))
    frame["path"] = [f"{file}{MARK}{column}[{i}]" for i in rows]
    if "split" not in frame.columns:
        frame["split"] = _split_of(file)
    if "patch_id" not in frame.columns:
        frame["patch_id"] = [f"{os.path.splitext(file)[0]}/{i}" for i in rows]  # noqa: PTH122
    return frame


def _schemas(files: Sequence[Path]) -> tuple[dict[Path, pa.Schema], list[_UnreadableError]]:
    """Of the files that can be read, and what is wrong with the others."""
    schemas, faults = {}, []
    for file in files:
        try:
            schemas[file] = _schema(file)
        except _UnreadableError as error:
            faults.append(error)
    return schemas, faults


def _classes_of_headers(schemas: Mapping[Path, pa.Schema], label: str) -> Sequence[str]:
    """The names that Hugging Face headers give the labels; () without. ManifestError where they differ."""
    named = {file: names for file, schema in schemas.items() if (names := _class_names(schema, label))}
    if len(set(map(tuple, named.values()))) > 1:
        shown = "; ".join(f"{file}: {names}" for file, names in named.items())
        raise ManifestError(f"files name the classes differently: {shown}. Fix: give --classes.")
    return next(iter(named.values()), ())


def _images_in(file: Path, schema: pa.Schema, image: str) -> str:
    """The column of images, `image` or the only one. ManifestError: none, or columns of one name."""
    if repeated := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise ManifestError(f"{file}: columns named twice: {repeated}.")
    column = image or _image_column(schema)
    if column not in schema.names:
        called = f" {column!r}" if column else ""
        raise ManifestError(
            f"{file} has no image column{called}; it has {schema.names}: name it with --image."
        )
    return column


def _plain_columns(
    file: Path, schema: pa.Schema, image: str, columns: Mapping[str, str], say: Say
) -> list[str]:
    """Columns of texts and numbers. ManifestError where one of bytes or lists is wanted or has our name."""
    others = [field for field in schema if field.name != image]
    unread = [field.name for field in others if pa.types.is_nested(field.type) or _is_bytes(field.type)]
    for name in unread:
        if name in columns.values() or name.strip().casefold() in COLUMNS:
            raise ManifestError(
                f"{file}: the column {name!r} holds {schema.field(name).type}, not texts or numbers. "
                f"Fix: convert it, or name another one with --column {name.strip().casefold()}=NAME."
            )
    if unread:
        say(f"{file.name}: columns that hold bytes or lists were left out: {listed(map(repr, unread))}")
    plain = [field.name for field in others if field.name not in unread]
    return [name for name in plain if not name.startswith("__index_level_")]  # what pandas calls it


def _labels_of_column(
    labels: pd.Series, names: Sequence[str], file: Path
) -> tuple[pd.Series | list[str], str]:
    """Labels as texts, and what they were: "numbers" without names, "words", "" where both are possible."""
    if _is_numbers(labels, named=bool(names)):
        labels = labels.astype("boolean") if labels.dtype == object else labels
        values = labels.astype("Float64").to_numpy(dtype=np.float64, na_value=np.nan)
        return _named(values, names, len(labels), file), "" if names else "numbers"
    texts = labels.astype(object).where(labels.notna(), "").map(str)
    digits = texts.str.strip().str.fullmatch(r"([+-]?\d+(\.0+)?)?")
    return texts, "" if digits.all() else "words"


def _refuse_mixed_labels(kinds: dict[Path, str]) -> None:
    """ManifestError: labels that are numbers without names in one file, and words in another."""
    first = {kind: file for file, kind in reversed(kinds.items())}  # of each kind the first file
    if {"numbers", "words"} <= first.keys():
        raise ManifestError(
            f"the labels are numbers in {first['numbers']}, but words in {first['words']}. Fix: --classes "
            "A,B,... names the numbers 0, 1, ..."
        )


def _image_column(schema: pa.Schema) -> str:
    """The first with embedded images, else the only one of bytes; "" if there is none."""
    of_bytes = [field.name for field in schema if _is_bytes(field.type)]
    images = [field.name for field in schema if _is_image(field.type)]
    return images[0] if images else of_bytes[0] if len(of_bytes) == 1 else ""


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or str(kind) == "binary_view"


def _is_numbers(labels: pd.Series, *, named: bool) -> bool:
    """Whether labels are numbers; true and false are only where they have names."""
    kinds = {type(label) for label in labels.dropna()}
    if kinds <= {bool, np.bool_}:
        return named and bool(kinds)
    return pd.api.types.is_numeric_dtype(labels.dtype)


def _schema(file: Path) -> pa.Schema:
    with _reading(file, "parquet"):
        return pyarrow.parquet.read_schema(file)


def _read_columns(file: Path, columns: list[str]) -> pa.Table:
    with _reading(file, "parquet"):
        return pyarrow.parquet.ParquetFile(file).read(columns=columns)


def _series(column: pa.ChunkedArray) -> pd.Series:
    """A column, in which whole numbers stay whole beside missing ones."""
    if pa.types.is_integer(column.type) and column.null_count:
        return pd.Series(column.to_pylist(), dtype="UInt64" if str(column.type).startswith("u") else "Int64")
    return column.to_pandas()


def _split_of(path: str) -> str:
    """What the folders, or else the name, of a file say of its split; "" if nothing."""
    *folders, name = path.split("/")
    match = _SPLIT.match(name.rpartition(".")[0])
    if match and match["split"] and match["split"] != "part":
        return match["split"]
    words = [*folders[::-1], match["word"] if match and match["word"] else ""]
    return next((SPLITS[word.casefold()] for word in words if word.casefold() in SPLITS), "")


def _is_image(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0


def _class_names(schema: pa.Schema, column: str) -> list[str]:
    """The names of a ClassLabel in the header that Hugging Face's library writes; [] where there are none."""
    try:
        header = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = header["info"]["features"]
        alike = [name for name in features if name.strip().casefold() == column.casefold()]
        return list(features[column if column in features else alike[0]]["names"])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return []


def _named(labels: np.ndarray, classes: Sequence[str], n: int, file: Path) -> list[str]:
    """n labels, of any shape with n elements: texts, or whole numbers as the names of their classes.

    Without classes, numbers become their digits. Missing ones (and, with classes, -1) become "".
    """
    if labels.size != n or labels.dtype.kind not in "biufOSU":
        raise ManifestError(
            f"{file}: the labels must be {n} whole numbers, one a patch, not {labels.dtype} {labels.shape}."
        )
    flat = labels.reshape(-1)
    if flat.dtype.kind in "OSU":
        return [_decoded(cell) if isinstance(cell, bytes) else str(cell) for cell in flat]
    missing = np.isnan(flat) if flat.dtype.kind == "f" else np.zeros(n, bool)
    if not np.isfinite(flat[~missing]).all() or (flat[~missing] % 1 != 0).any():
        raise ManifestError(f"{file}: the labels must be {n} whole numbers, one a patch, not {labels.dtype}.")
    numbers = [HIDDEN if lost else int(label) for label, lost in zip(flat, missing, strict=True)]
    if not classes:
        return ["" if lost else str(label) for label, lost in zip(numbers, missing, strict=True)]
    odd = sorted({label for label in numbers if not HIDDEN <= label < len(classes)})
    if odd:
        raise ManifestError(
            f"{file}: labels {odd[:8]} have no name; the classes are {list(classes)}, from 0."
        )
    return ["" if label == HIDDEN else classes[label] for label in numbers]


def _decoded(text: bytes) -> str:
    """UTF-8, or else Latin-1, which has a character for each byte: two labels never become one."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return text.decode("latin-1")

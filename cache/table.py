"""Tables of patches, as cache needs them: any DataFrame, CSV or parquet with a column `content_hash`.

A manifest is one (its TOML names the table file, which is read here as it is; `datasets` knows more about
manifests). Columns: content_hash (32 hex digits), patch_id, and whatever is to travel with the rows:
label, group, domain, split, ...
"""

import re
import tokenize
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import InvalidRequest
from ..settings import read_toml
from ..texts import cells_of_csv
from .columns import NAMES, numbers
from .index import KEY_BYTES, KeyIndex
from .narrowing import is_list, is_object


def read_table(path: str | Path) -> pd.DataFrame:
    """A CSV (everything is text) or parquet file, or the one that a manifest's TOML names.

    Of a manifest, `attrs` has the classes in their order and the root of the paths.
    """
    path = Path(path)
    if not path.exists():
        raise InvalidRequest(f"the table {path} does not exist")
    if path.suffix == ".toml":
        try:
            header = read_toml(path)
        except tomllib.TOMLDecodeError as error:
            raise InvalidRequest(f"{path} is not TOML: {error}") from error
        section = header.get("table")
        if not is_object(section) or not isinstance(section.get("file"), str):
            raise InvalidRequest(
                f"{path} is not a manifest: it has no [table] with a file; give the CSV or parquet"
            )
        table = read_table(path.parent / section["file"])
        about = header.get("dataset")
        if is_object(about) and is_list(about.get("classes")):
            table.attrs["classes"] = tuple(map(str, about["classes"]))
        table.attrs["root"] = str(path.parent / str(section.get("root", ".")))
        return table
    try:
        if path.suffix == ".parquet":
            table = _read_parquet(path)
        else:
            table = cells_of_csv(pd.read_csv(path, dtype=str, keep_default_na=False))
    except (ValueError, OSError) as error:
        raise InvalidRequest(f"{path} cannot be read as a table: {error}") from error
    table.attrs["path"] = str(path)
    return table


def _read_parquet(path: Path) -> pd.DataFrame:
    """A parquet table in which whole numbers stay whole where cells are empty (pandas makes them floats)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    frame = table.to_pandas()
    for name in frame.columns:
        column = table.column(str(name)) if str(name) in table.column_names else None
        if column is not None and column.null_count and pa.types.is_integer(column.type):
            unsigned = pa.types.is_unsigned_integer(column.type)
            frame[name] = pd.array(column.to_pylist(), dtype="UInt64" if unsigned else "Int64")
    return frame


def keys_of_table(table: pd.DataFrame) -> np.ndarray:
    """The content hashes of a table: uint8, (n, 16). Raises InvalidRequest naming the first bad row."""
    if "content_hash" not in table.columns:
        raise InvalidRequest(
            "the table has no column content_hash (`patchbank datasets build` makes manifests that have it)"
        )
    words = table["content_hash"].astype("string").fillna("").astype(str)
    unknown = np.flatnonzero((words == "").to_numpy())
    if len(unknown):
        raise InvalidRequest(
            f"{len(unknown)} of the {len(table)} rows of the table have no content hash (the first is row "
            f"{unknown[0]}): their images were never read. Fix: run `patchbank extract` over them with this "
            "bank first, or choose other rows (--where)"
        )
    good = words.str.fullmatch(r"[0-9a-f]{32}")
    if not good.all():
        row = int(np.flatnonzero(~good.to_numpy())[0])
        raise InvalidRequest(
            f"row {row} of the table: content_hash is {words.iloc[row]!r}, not 32 hex digits"
        )
    return np.frombuffer(bytes.fromhex("".join(words)), np.uint8).reshape(-1, KEY_BYTES)


def with_hash(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table whose content hash is known."""
    if "content_hash" not in table.columns:
        return table
    return table[table["content_hash"].astype("string").fillna("") != ""]


def first_of_key(table: pd.DataFrame, keys: np.ndarray) -> np.ndarray:
    """The first row of the table for each key, -1 if none: int64, (n,)."""
    return KeyIndex(keys_of_table(table)).find(keys)


# what a typing error makes pandas' parser raise
_QUERY_FAULTS = (
    ValueError, TypeError, SyntaxError, LookupError, NameError, AttributeError, NotImplementedError,
    ArithmeticError, RecursionError, tokenize.TokenError, re.error,
)  # fmt: skip


def select(table: pd.DataFrame, where: str | None) -> pd.DataFrame:
    """The rows that a pandas query on the columns picks ("domain == 'x' and age > 60"); None: all.

    Columns of text that are all numbers are numbers where the query fits no text (a CSV has no types).
    """
    if not where:
        return table
    columns = f"columns: {', '.join(map(str, table.columns))}"
    masks: list[pd.Series] = []
    fault = ""
    for typed in (False, True):
        frame = table.apply(_as_numbers) if typed else table
        try:
            mask = frame.eval(where, engine="python")
        except _QUERY_FAULTS as error:
            fault = fault or f"does not fit ({error})"
            continue
        if not (
            isinstance(mask, pd.Series)
            and mask.index.equals(table.index)
            and pd.api.types.is_bool_dtype(mask)
        ):
            fault = fault or "is not true or false of each row"
            continue
        masks.append(mask.fillna(False).astype(bool))
        if masks[-1].any():
            break
    if not masks:
        raise InvalidRequest(f"the query {where!r} {fault}; {columns}")
    return table[masks[-1]].reset_index(drop=True)


def _as_numbers(column: pd.Series) -> pd.Series:
    """A column of a CSV, in which everything is text, as numbers where all of its cells are."""
    if not (column.dtype == object or isinstance(column.dtype, pd.StringDtype)) or column.name in NAMES:
        return column
    values = numbers(column.astype("string").fillna("").to_numpy(object))
    return column if values.dtype == object else pd.Series(values, column.index)

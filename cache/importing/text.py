"""Text: a CSV with a column for each number, and the folder of TensorBoard's projector."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from ...errors import InvalidRequest
from ...texts import cells_of_csv
from .documents import in_memory
from .source import SHOWN, Source, columns_of, single

_NUMBERED = re.compile(r"(?P<stem>.*?)(?P<number>0|[1-9][0-9]*)")


def foreign_csv(path: Path, root: Path, key: str) -> Source:
    """The columns NAME0, NAME1, ... (or NAME1, ...) of numbers are the embedding, the others the table.

    key : NAME, where there are several such families
    """
    separator = "\t" if path.suffix == ".tsv" else ","
    frame = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
    numbers = numbered(path, [*map(str, frame.columns)], key)
    table = cells_of_csv(frame.drop(columns=numbers))
    return single(path, root, "csv", in_memory(_floats(frame[numbers], path)), columns_of(table))


def numbered(path: Path, columns: Sequence[str], key: str) -> list[str]:
    """The columns KEY0, KEY1, ... (or KEY1, ...); without a key those of the longest such family.

    Raises InvalidRequest where there are none.
    """
    families: dict[str, dict[int, str]] = {}
    for name in columns:
        if match := _NUMBERED.fullmatch(name):
            families.setdefault(match["stem"], {})[int(match["number"])] = name
    whole = {
        stem: [names[i] for i in sorted(names)]
        for stem, names in families.items()
        if len(names) > 1 and sorted(names) == [*range(min(names), max(names) + 1)] and min(names) in (0, 1)
    }
    stem = key or max(whole, key=lambda name: len(whole[name]), default="")
    if stem not in whole:
        raise InvalidRequest(
            f"{path}: which columns are the embedding? It has {', '.join(columns[:SHOWN])}, ...; their names "
            "are NAME0, NAME1, ..., and --key NAME says which"
        )
    return whole[stem]


def foreign_projector(path: Path, root: Path, key: str) -> Source:
    """tensors.tsv, with metadata.tsv where there is one (with the names of columns, if it has several)."""
    tensors, metadata = path / "tensors.tsv", path / "metadata.tsv"
    vectors = _floats(_tabbed(tensors, header=None), tensors)
    table = pd.DataFrame()
    if metadata.exists():
        table = _tabbed(metadata)
        if len(table.columns) == 1 and len(table) == len(vectors) - 1:  # the projector's rule
            table = _tabbed(metadata, header=None).set_axis(["label"], axis=1)
    return single(tensors, root, "projector", in_memory(vectors), columns_of(table))


def _tabbed(path: Path, header: Literal[0] | None = 0) -> pd.DataFrame:
    """Cells between tabs, as the text that they are: quotation marks mean nothing."""
    return pd.read_csv(
        path, sep="\t", header=header, dtype=str, keep_default_na=False, quoting=csv.QUOTE_NONE
    )


def _floats(frame: pd.DataFrame, path: Path) -> np.ndarray:
    """The texts as numbers. Raises InvalidRequest at the first that is none."""
    numbers = frame.apply(pd.to_numeric, errors="coerce")
    odd = np.argwhere(numbers.isna().to_numpy())
    if len(odd):
        row, column = odd[0]
        raise InvalidRequest(
            f"{path}: row {row + 1}: {frame.iloc[row, column]!r} in the column {frame.columns[column]} is "
            "no number"
        )
    return numbers.to_numpy(np.float64)

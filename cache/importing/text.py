"""Text: a CSV with a column for each number, and the folder of TensorBoard's projector."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from ...errors import InvalidRequest
from ...texts import cells_of_csv
from .documents import in_memory
from .source import Source, columns_of, single

_NUMBERED = re.compile(r"(?P<stem>.*?)(?P<number>0|[1-9][0-9]*)")


def foreign_csv(path: Path, root: Path, key: str) -> Source:
    """The columns NAME0, NAME1, ... (or NAME1, ...) of numbers are the embedding, the others the table.

    key : NAME, where there are several such families
    """
    separator = "\t" if path.suffix == ".tsv" else ","
    frame = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
    families: dict[str, dict[int, str]] = {}
    for name in map(str, frame.columns):
        if found := _NUMBERED.fullmatch(name):
            families.setdefault(found["stem"], {})[int(found["number"])] = name
    whole = {
        stem: [names[i] for i in sorted(names)]
        for stem, names in families.items()
        if len(names) > 1 and sorted(names) == [*range(min(names), max(names) + 1)] and min(names) in (0, 1)
    }
    stem = key or max(whole, key=lambda name: len(whole[name]), default="")
    if stem not in whole:
        raise InvalidRequest(
            f"{path}: which columns are the embedding? It has {', '.join(map(str, frame.columns[:8]))}, ...; "
            "their names are NAME0, NAME1, ..., and --key NAME says which"
        )
    numbers = whole[stem]
    table = cells_of_csv(frame.drop(columns=numbers))
    return single(path, root, "csv", in_memory(_floats(frame[numbers], path)), columns_of(table))


def foreign_projector(path: Path, root: Path, key: str) -> Source:
    """tensors.tsv, with metadata.tsv where there is one (with the names of columns, if it has several)."""
    tensors, metadata = path / "tensors.tsv", path / "metadata.tsv"
    options = {"sep": "\t", "dtype": str, "keep_default_na": False, "quoting": 3}
    vectors = _floats(pd.read_csv(tensors, header=None, **options), tensors)
    table = pd.DataFrame()
    if metadata.exists():
        table = pd.read_csv(metadata, **options)
        if len(table.columns) == 1 and len(table) == len(vectors) - 1:  # the projector's rule
            table = pd.read_csv(metadata, header=None, names=["label"], **options)
    return single(tensors, root, "projector", in_memory(vectors), columns_of(table))


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

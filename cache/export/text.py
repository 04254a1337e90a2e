"""Text: one CSV, and the folder that TensorBoard's projector loads."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...texts import write_csv_rows
from .rows import Options, Rows

LINES = 256  # rows that are text in memory at a time


def write_csv(path: Path, rows: Rows, options: Options) -> None:
    """The table's columns, then embedding_0, embedding_1, ...: the shortest text of each number."""
    frame = rows.frame()
    with path.open("w", encoding="utf-8", newline="") as file:
        write_csv_rows(file, [[*map(str, frame.columns), *(f"embedding_{i}" for i in range(rows.shape[1]))]])
        for cells, numbers in _lines(rows):
            write_csv_rows(file, ([*row, *vector] for row, vector in zip(cells, numbers, strict=True)))


def write_projector(path: Path, rows: Rows, options: Options) -> None:
    """tensors.tsv (numbers only), metadata.tsv (with names of columns), projector_config.pbtxt.

    The projector knows no quotes: tabs and ends of lines in a text are written as blanks.
    """
    path.mkdir()
    encoder = rows.about["identity"]["encoder"]["id"]
    with (
        (path / "tensors.tsv").open("w", encoding="utf-8", newline="\n") as tensors,
        (path / "metadata.tsv").open("w", encoding="utf-8", newline="\n") as metadata,
    ):
        metadata.write("\t".join(map(_one_line, rows.frame().columns)) + "\n")
        for cells, numbers in _lines(rows):
            for row, vector in zip(cells, numbers, strict=True):
                metadata.write("\t".join(map(_one_line, row)) + "\n")
                tensors.write("\t".join(vector) + "\n")
    (path / "projector_config.pbtxt").write_text(
        "embeddings {\n"
        f'  tensor_name: "{_one_line(encoder)}"\n'
        '  tensor_path: "tensors.tsv"\n'
        '  metadata_path: "metadata.tsv"\n'
        "}\n",
        "utf-8",
    )


def _lines(rows: Rows) -> Iterator[tuple[list[list[Any]], list[list[str]]]]:
    """Some rows at a time: the cells of the table, the numbers as text."""
    frame = rows.frame().astype(object)
    frame = frame.where(frame.notna(), "")
    for part, vectors, _ in rows.parts():
        for start in range(0, len(vectors), LINES):
            first = part.start + start
            some = vectors[start : start + LINES]
            cells = frame.iloc[first : first + len(some)].to_numpy(dtype=object).tolist()
            yield cells, np.asarray(some).astype(str).tolist()


def _one_line(cell: object) -> str:
    return " ".join(str(cell).replace("\t", " ").splitlines()) or ("" if cell == "" else " ")

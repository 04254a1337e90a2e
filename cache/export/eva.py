"""eva: a folder with a .pt file for each row and manifest.csv (origin, embeddings, target, split)."""

from pathlib import Path

import numpy as np

from ...errors import InvalidRequest
from ...texts import write_csv
from ..columns import as_text
from ..tensors import write_pt
from .arrays import write_metadata
from .rows import Options, Rows


def write_eva(path: Path, rows: Rows, options: Options) -> None:
    """`target` is the number of the class; eva's splits are train, val and test."""
    label = rows.text("label")
    lost = np.arange(len(rows.keys)) if label is None else np.flatnonzero(label == "")
    if len(lost):
        raise InvalidRequest(
            f"eva's manifest has a target for each row, and {len(lost)} have no label (the first: "
            f"{rows.ids()[lost[0]]}); leave them out with --where \"label != ''\""
        )
    codes, classes = rows.codes("label", options.classes)
    (path / "embeddings").mkdir(parents=True)
    sums = np.empty(len(rows.keys), np.uint64)
    names = [f"embeddings/{i:09d}.pt" for i in range(len(rows.keys))]
    for part, vectors, some in rows.parts():
        sums[part] = some
        for name, vector in zip(names[part], vectors, strict=True):
            write_pt(path / name, vector)
    frame = rows.frame(options.classes)
    split = as_text(rows.columns["split"]) if "split" in rows.columns else np.full(len(frame), "train")
    manifest = frame[[]].assign(
        origin=rows.ids(), embeddings=names, target=codes, split=np.where(split == "", "train", split)
    )
    manifest["label"] = [classes[code] for code in codes]
    write_csv(path / "manifest.csv", manifest)
    write_metadata(path, rows, sums, options)

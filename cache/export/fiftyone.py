"""FiftyOne: the folder of an image classification data set, and the vectors in the order of its samples.

`fiftyone.types.FiftyOneImageClassificationDataset` reads data.json (key -> image file) and labels.json
(classes, key
-> label); embeddings.npy has the rows in the order of the sorted keys, which is the order of the samples, for
`fiftyone.brain.compute_visualization(dataset, embeddings=...)`.
"""

import json
from pathlib import Path

import numpy as np

from ...errors import InvalidRequest
from .arrays import write_array
from .rows import Options, Rows


def write_fiftyone(path: Path, rows: Rows, options: Options) -> None:
    """The keys are the numbers of the rows. Raises InvalidRequest where a row is not an image file."""
    paths = rows.text("path")
    if paths is None:
        raise InvalidRequest("FiftyOne shows image files: the table has no column path; give a manifest")
    lost = [i for i, word in enumerate(paths) if not word or "::" in word]
    if lost:
        raise InvalidRequest(
            f"FiftyOne shows image files, and {len(lost)} rows are inside of other files or have none (the "
            f"first: {rows.ids()[lost[0]]}, {paths[lost[0]]!r})"
        )
    path.mkdir()
    keys = [f"{i:09d}" for i in range(len(rows.keys))]
    files = [str(Path(options.root, word).absolute()) for word in paths]
    labels: dict[str, int | None] = dict.fromkeys(keys)
    classes: list[str] = []
    if rows.text("label") is not None:
        codes, classes = rows.codes("label", options.classes)
        labels = {key: int(code) if code >= 0 else None for key, code in zip(keys, codes, strict=True)}
    _dump(path / "data.json", dict(zip(keys, files, strict=True)))
    _dump(path / "labels.json", {"classes": classes, "labels": labels})
    with (path / "embeddings.npy").open("wb") as file:
        write_array(file, rows)
    frame = rows.frame(options.classes)
    frame.insert(0, "key", np.array(keys, dtype=object))
    frame.to_parquet(path / "metadata.parquet", index=False)


def _dump(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", "utf-8")

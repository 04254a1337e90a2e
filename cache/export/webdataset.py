"""WebDataset: one tar, a sample a row: KEY.npy (vector), KEY.json (row of the table), KEY.cls (label)."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from .rows import Options, Rows


def write_webdataset(path: Path, rows: Rows, options: Options) -> None:
    """The keys are the numbers of the rows. KEY.cls is the number of the class, of rows with a label."""
    frame = rows.frame(options.classes).astype(object)
    frame = frame.where(frame.notna(), None)
    codes = rows.codes("label", options.classes)[0] if rows.text("label") is not None else None
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for part, vectors, _ in rows.parts():
            records = frame.iloc[part].to_dict("records")
            for i, (record, vector) in enumerate(zip(records, vectors, strict=True), part.start):
                stream = io.BytesIO()
                np.lib.format.write_array(stream, vector, allow_pickle=False)
                _add(archive, f"{i:09d}.npy", stream.getvalue())
                text = json.dumps(record, ensure_ascii=False, default=_plain)
                _add(archive, f"{i:09d}.json", text.encode())
                if codes is not None and codes[i] >= 0:
                    _add(archive, f"{i:09d}.cls", str(codes[i]).encode())


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's, which JSON knows."""
    return value.item()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    about = tarfile.TarInfo(name)
    about.size = len(content)
    archive.addfile(about, io.BytesIO(content))

"""Where a patch's pixels come from: image files, and (with "::") patches inside larger files.

The table's `path` is relative to the manifest's root:

    slides/a.png                      an image file
"""

import os
from pathlib import Path

import numpy as np

from .images import read_image
from .manifest import Manifest


def open_source(manifest: Manifest) -> "PatchSource":
    """The pixels of a manifest's rows; opens nothing yet."""
    return PatchSource(manifest.root, manifest.table["path"].tolist())


class PatchSource:
    """read(i) gives row i. Safe to use from several threads; may be pickled and forked: files are reopened."""

    def __init__(self, root: str | os.PathLike[str], paths: list[str]) -> None:
        self.root = str(Path(root))
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, i: int) -> np.ndarray:
        """Row i's pixels, uint8 (h, w, 3) RGB. Raises ImageError naming the file."""
        return read_image(os.path.join(self.root, self.paths[i]))  # noqa: PTH118

    def close(self) -> None:
        """Close what is open; read() opens it again."""

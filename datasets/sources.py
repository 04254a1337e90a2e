"""Where a patch's pixels come from: image files, and patches inside larger files.

The table's `path` is relative to the manifest's root. A file that holds many patches is followed by "::"
and the patch's place in it:

    slides/a.png                                  an image file
    images.zip::slides/a.png                      a member of a zip, or of an uncompressed tar
    camelyon.h5::x[123]                           row 123 of the array `x`, uint8 (n, h, w[, 3])
    pathmnist.npz::train_images[123]              the same in an npz; never unpickled
    train-00000.parquet::image[123]               a row of an image column (struct with `bytes`, or binary)
    slide.svs::wsi[x,y,w,h,mpp=0.5,border=white]  a region of a whole-slide image; see slides.py
    features.h5::embedding[123]                   an embedding of another program: there is no image

What a path says is all that decides on the pixels, so that a path and a file's state identify an image.
"""

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from ..errors import ImageError
from .container import Container
from .containers import open_container
from .images import read_image
from .manifest import Manifest

MARK = "::"
EMBEDDING = "embedding["  # begins the member of a row that has an embedding only
OPEN_FILES = 64  # containers that stay open in one process


def open_source(manifest: Manifest) -> "PatchSource":
    """The pixels of a manifest's rows; opens nothing yet."""
    return PatchSource(manifest.root, manifest.table["path"].tolist())


class PatchSource:
    """`read(i)` gives row i's pixels; safe to use from several threads.

    May be pickled, and used after a fork: each process opens its own files.
    """

    def __init__(self, root: str | os.PathLike[str], paths: Sequence[str]) -> None:
        self.root = str(Path(root))
        self.paths = paths
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = Lock()
        self._open: OrderedDict[str, Container] = OrderedDict()

    def __len__(self) -> int:
        return len(self.paths)

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "paths": self.paths}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["root"], state["paths"])

    def read(self, i: int) -> np.ndarray:
        """Row i's pixels, uint8 (h, w, 3) RGB. Raises ImageError naming the file and the place in it."""
        file, mark, member = self.paths[i].partition(MARK)
        if member.startswith(EMBEDDING):
            raise ImageError(f"{self.paths[i]}: there is no image; this embedding was imported.")
        file = os.path.join(self.root, file)  # noqa: PTH118
        return self._container(file).read(member) if mark else read_image(file)

    def _container(self, file: str) -> Container:
        if self._process != os.getpid():
            self._reset()
        with self._lock:
            container = self._open.get(file)
            if container is None:
                container = self._open[file] = open_container(file)
                if len(self._open) > OPEN_FILES:
                    # not closed here: a thread may be reading; it closes when the last one lets go
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(file)
            return container

    def close(self) -> None:
        """Let go of the open files; read() opens them again."""
        self._reset()

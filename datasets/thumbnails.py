"""Thumbnails of patches for a page: one sheet with many tiles, or single JPEGs."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath
from typing import Protocol

import numpy as np
from PIL import Image

from ..errors import ImageError, InvalidRequest, MissingDependency
from .images import content_hash as digest_of
from .sources import MARK, PatchSource

GREY = 208  # of a tile whose patch cannot be read
QUALITY = 70  # of a JPEG: 0.8 kB a tile of 48 px of stained tissue, 6 kB at 224 px
THREADS = 4
LARGEST = 65_500  # pixels a side that a JPEG can have


class Source(Protocol):
    """What `open_source` gives."""

    def read(self, i: int) -> np.ndarray: ...


def sprite_sheet(source: Source, rows: Sequence[int], *, tile: int = 48, columns: int = 40) -> bytes:
    """A JPEG with a tile for each row: tile k is at column k % columns, line k // columns.

    rows : row numbers of the source, in the order of the tiles; tile : pixels a side. Patches are reduced to
    squares; those that cannot be read become grey. Multiples of 8 keep the tiles from running
    into each other, as a JPEG codes blocks of 8 pixels. No rows: b"".
    """
    if tile < 1 or columns < 1:
        raise InvalidRequest(f"a sheet has tiles of 1 px or more in 1 column or more, not {tile}, {columns}")
    if not len(rows):
        return b""
    lines = -(-len(rows) // columns)
    if max(lines, columns) * tile > LARGEST:
        raise InvalidRequest(f"{len(rows)} tiles of {tile} px are too many for one JPEG: draw fewer rows")
    sheet = np.full((lines * tile, min(columns, len(rows)) * tile, 3), GREY, np.uint8)

    def put(k: int) -> None:
        try:
            pixels = _square(source.read(int(rows[k])), tile)
        except ImageError:
            return
        top, left = k // columns * tile, k % columns * tile
        sheet[top : top + tile, left : left + tile] = pixels

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(put, range(len(rows))):
            pass
    out = io.BytesIO()
    # colour at full resolution, or it would be smoothed over the edges of the tiles
    Image.fromarray(sheet).save(out, "JPEG", quality=QUALITY, subsampling=0, optimize=True)
    return out.getvalue()


def thumbnail(pixels: np.ndarray, size: int) -> bytes:
    """A JPEG of a patch, its longer side `size` pixels; one that is smaller stays as it is.

    pixels : uint8, (h, w, 3)
    """
    image = Image.fromarray(pixels)
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY, optimize=True)
    return out.getvalue()


def _square(pixels: np.ndarray, side: int) -> np.ndarray:
    image = Image.fromarray(pixels)
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return np.asarray(image)


def thumbnails_of(root: str, images: Sequence[tuple[str, str]], size: int) -> list[bytes | None]:
    """JPEGs of images that were scored: what lies at each path under `root`, if its pixels have this hash.

    images : path as in a manifest (see sources.py), and content hash (32 hex digits)
    None for anything else: a file that is missing, changed, not an image, or outside `root`. Results name the
    files, and may come from elsewhere: what is shown is only what their author had seen.
    """
    source = PatchSource(root, [path for path, _ in images])

    def make(i: int) -> bytes | None:
        path, content_hash = images[i]
        file = PurePath(path.partition(MARK)[0])
        if file.is_absolute() or ".." in file.parts:
            return None
        try:
            pixels = source.read(i)
        except (ImageError, MissingDependency):
            return None
        return thumbnail(pixels, size) if digest_of(pixels).hex() == content_hash else None

    thumbnails = [make(i) for i in range(len(images))]
    source.close()
    return thumbnails

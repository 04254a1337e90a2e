"""Near-identical images, found while a set without known groups is built: they are kept together.

Who does not know the slides can at least know which patches show the same thing: saved again, with another
compression, a bit brighter. `folds.effective_groups` makes one group of them.
"""

import numpy as np
from PIL import Image

SIDE = 128  # pixels a side at which two images are compared
SMALL = 16  # pixels a side at which pairs to compare are looked for
ALIKE = 0.97  # correlation of grey pixels from which two images are near-identical
MOST = 30_000  # rows that are compared with each other: 10 s
BLOCK = 1024  # rows of one matrix product
MOST_PAIRS = 500_000  # that are compared in full
PAIR_BLOCK = 256  # pairs of full thumbnails at once: 32 MiB
FLAT = 1.0  # standard deviation, in grey levels, below which an image shows nothing that could be compared


def small_grey(pixels: np.ndarray) -> np.ndarray:
    """uint8 (16, 16), grey, of uint8 (h, w, 3)."""
    return _grey(pixels, SMALL)


def grey(pixels: np.ndarray) -> np.ndarray:
    """uint8 (128, 128), grey, of uint8 (h, w, 3)."""
    return _grey(pixels, SIDE)


def _grey(pixels: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).convert("L").resize((side, side), Image.Resampling.BOX))


def _unit(greys: np.ndarray) -> np.ndarray:
    """Rows of mean 0 and length 1, float32; zeros where an image is flat."""
    rows = greys.reshape(len(greys), -1).astype(np.float32)
    rows -= rows.mean(1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(length > FLAT * np.sqrt(rows.shape[1]), rows / np.maximum(length, 1e-6), 0)


def candidates(small: np.ndarray, apart: np.ndarray | None = None) -> np.ndarray:
    """int (m, 2), i < j: the pairs whose small thumbnails (uint8, (n, 16, 16)) correlate above ALIKE.

    apart : (n, k); only pairs that differ in at least one of its columns
    Raises TooManyAlikeError.
    """
    unit = _unit(small)
    found, count = [np.zeros((0, 2), np.int64)], 0
    for start in range(0, len(unit), BLOCK):
        alike = unit[start : start + BLOCK] @ unit[start:].T
        pairs = np.argwhere(np.triu(alike, 1) > ALIKE) + start
        if apart is not None:
            pairs = pairs[(apart[pairs[:, 0]] != apart[pairs[:, 1]]).any(axis=1)]
        found.append(pairs)
        count += len(pairs)
        if count > MOST_PAIRS:
            raise TooManyAlikeError
    return np.concatenate(found)


class TooManyAlikeError(Exception):
    """More than MOST_PAIRS pairs of small thumbnails are alike: one background, say, under all of them."""


def confirmed(pairs: np.ndarray, rows: np.ndarray, greys: np.ndarray) -> np.ndarray:
    """Of the pairs (m, 2) those whose thumbnails correlate above ALIKE.

    rows : int, sorted, all that occur in the pairs; greys : uint8, (len(rows), 128, 128), theirs
    """
    unit = _unit(greys)
    alike = np.zeros(len(pairs), np.float32)
    for start in range(0, len(pairs), PAIR_BLOCK):
        part = pairs[start : start + PAIR_BLOCK]
        a, b = (unit[np.searchsorted(rows, part[:, side])] for side in (0, 1))
        alike[start : start + PAIR_BLOCK] = np.einsum("ij,ij->i", a, b)
    return pairs[alike > ALIKE]


def clusters(pairs: np.ndarray, n: int) -> np.ndarray:
    """int64 (n,): the first row of each row's cluster (of rows that pairs connect); itself if it has none."""
    from scipy.sparse import coo_array  # a fifth of a second, for what few commands do
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    _, of = connected_components(graph, directed=False)
    _, first = np.unique(of, return_index=True)
    return first[of]

"""Nearest rows by cosine, in blocks: 1e5 x 1e5 similarities never stand in memory at once."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import InvalidRequest
from .intervals import cluster_codes

Floats32 = NDArray[np.float32]
Indices = NDArray[np.int32]

BLOCK_BYTES = 1 << 27  # of one block of similarities, float32


def unit(features: ArrayLike) -> Floats32:
    """Rows scaled to length 1: float32 (n, d); rows of zeros stay so.

    Raises InvalidRequest for NaN or infinite values.
    """
    rows = np.asarray(features, np.float32)
    if rows.ndim != 2 or not len(rows):
        raise InvalidRequest(f"features have to be (n, d) with n > 0, not {rows.shape}")
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    if not np.isfinite(lengths).all():
        raise InvalidRequest(f"{int((~np.isfinite(lengths)).sum())} rows of the features are not finite")
    return rows / np.maximum(lengths, 1e-30)[:, None].astype(np.float32)


def nearest(
    features: ArrayLike,
    k: int,
    *,
    groups: ArrayLike | None = None,
    queries: ArrayLike | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> tuple[Indices, Floats32]:
    """The k most similar rows of each row (cosine), the most similar first.

    features : float (n, d), need not be of length 1; queries : float (m, d), None: the rows themselves
    groups : (n,), rows of a query's own group are left out ("", None, NaN: a group of its own); None: only
        the row itself is. With `queries` none is left out, unless groups are given (m = n then).
    Returns indices int32 (m, k), -1 where there are fewer than k others, and similarities float32 (m, k),
    -inf there. Equal similarities go by the index. Memory: `block_bytes` and two copies of the features.
    """
    base = unit(features)
    asked = base if queries is None else unit(queries)
    n, m = len(base), len(asked)
    if k < 1:
        raise InvalidRequest(f"k has to be at least 1, not {k}")
    codes = cluster_codes(groups, n) if groups is not None or queries is None else None
    if codes is not None and m != n:
        raise InvalidRequest(f"groups go with as many queries as rows, not {m} for {n}")
    index = np.full((m, k), -1, np.int32)
    similarity = np.full((m, k), -np.inf, np.float32)
    step = max(1, min(m, block_bytes // (4 * n)))
    width = min(k, n)
    for start in range(0, m, step):
        rows = slice(start, min(start + step, m))
        similar = asked[rows] @ base.T
        if codes is not None:
            similar[codes[rows, None] == codes] = -np.inf
        if width < n:  # the k-th largest is the same whatever the order of equals
            near = np.argpartition(similar, n - width, axis=1)[:, n - width :]
            least = np.take_along_axis(similar, near, axis=1).min(axis=1)
            near = _first_of_equals(similar, near, least, width)
        else:
            near = np.broadcast_to(np.arange(n), similar.shape)
        values = np.take_along_axis(similar, near, axis=1)
        order = np.lexsort((near, -values), axis=1)[:, :width]
        values = np.take_along_axis(values, order, axis=1)
        similarity[rows, :width] = values
        index[rows, :width] = np.where(np.isfinite(values), np.take_along_axis(near, order, axis=1), -1)
    return index, similarity


def _first_of_equals(similar: Floats32, near: NDArray[Any], least: Floats32, width: int) -> NDArray[Any]:
    """`near` with the rows of smallest index among those equal to the k-th (partition takes any of them)."""
    more = (similar >= least[:, None]).sum(axis=1)
    for i in np.flatnonzero(more > width):
        above = np.flatnonzero(similar[i] > least[i])
        near[i] = np.concatenate([above, np.flatnonzero(similar[i] == least[i])[: width - len(above)]])
    return near

"""Embeddings as points of a plane, for the eye: a map shows neighbourhoods and proves nothing."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import InvalidRequest, MissingDependency

Projection = Literal["pca", "umap"]


def project(
    vectors: NDArray[np.floating], *, method: Projection = "pca", seed: int = 0
) -> tuple[NDArray[np.float32], tuple[float, ...]]:
    """(points, shares of the variance along the two axes) of vectors (n, dim).

    points : float32, (n, 2). The same vectors give the same points, whatever the machine's threads.
    method : "pca", the two directions of most variance, eigenvectors of the covariance; of the two
        possible signs of an axis that one whose largest loading is positive. "umap", neighbourhoods
        (cosine distance, 15 neighbours); distances between far points mean nothing, and there are no shares.
    Raises InvalidRequest (shape, NaN, an unknown method), MissingDependency (umap-learn).
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or not vectors.size:
        raise InvalidRequest(f"vectors to project are (n, dim), not {vectors.shape}")
    if not np.isfinite(vectors).all():
        raise InvalidRequest("vectors to project hold NaN or Inf")
    if method == "pca":
        return _pca(vectors)
    if method == "umap":
        return _umap(vectors, seed), ()
    raise InvalidRequest(f"a projection is 'pca' or 'umap', not {method!r}")


def _pca(vectors: np.ndarray) -> tuple[np.ndarray, tuple[float, ...]]:
    from scipy.linalg import eigh

    n, dim = vectors.shape
    if (vectors == vectors[0]).all():  # shares of no variance
        return np.zeros((n, 2), np.float32), (0.0, 0.0)
    centred = vectors - vectors.mean(axis=0, dtype=np.float64)
    # the two largest alone: a singular value decomposition of 4,000 x 1,280 takes seconds
    products, size = (centred @ centred.T, n) if n < dim else (centred.T @ centred, dim)
    count = min(2, size)
    values, found = eigh(products, subset_by_index=(size - count, size - 1))
    values, found = values[::-1], found[:, ::-1]
    axes, shares = np.zeros((2, dim)), np.zeros(2)
    for k in np.flatnonzero(values > 1e-14 * values[0]):  # not a direction without variance
        axis = centred.T @ found[:, k] if n < dim else found[:, k]
        axes[k] = axis / np.linalg.norm(axis) * (-1 if axis[np.abs(axis).argmax()] < 0 else 1)
        shares[k] = values[k] / np.trace(products)
    return (centred @ axes.T).astype(np.float32), (float(shares[0]), float(shares[1]))


def _umap(vectors: np.ndarray, seed: int) -> np.ndarray:
    if len(vectors) < 5:  # its spectral start needs more points than that
        raise InvalidRequest(f"UMAP needs 5 vectors or more, not {len(vectors)}: use method='pca'")
    try:
        from umap import UMAP
    except ImportError as error:
        raise MissingDependency("UMAP maps need umap-learn: pip install 'patchbank[map]'") from error
    neighbours = min(15, len(vectors) - 1)
    # one job: with more, the seed decides nothing
    projection = UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1)
    return np.asarray(projection.fit_transform(vectors.astype(np.float32)), np.float32)

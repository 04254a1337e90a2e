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
    method : "pca", the two directions of most variance, by an exact singular value decomposition; of the
        two possible signs of an axis that one whose largest loading is positive. "umap", neighbourhoods
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
    from sklearn.decomposition import PCA

    n, dim = vectors.shape
    count = min(2, n, dim)
    if (vectors == vectors[0]).all():  # shares of no variance
        return np.zeros((n, 2), np.float32), (0.0, 0.0)
    projection = PCA(n_components=count, svd_solver="full").fit(vectors.astype(np.float64))
    axes = np.zeros((2, dim))
    axes[:count] = projection.components_
    # scikit-learn's own convention has changed between its versions
    largest = np.abs(axes).argmax(axis=1)
    signs = np.where(axes[np.arange(2), largest] < 0, -1.0, 1.0)
    points = (vectors - projection.mean_) @ (axes * signs[:, None]).T
    shares = np.zeros(2)
    shares[:count] = projection.explained_variance_ratio_
    return points.astype(np.float32), (float(shares[0]), float(shares[1]))


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

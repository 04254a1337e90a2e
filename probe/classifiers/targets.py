"""Ridge regression of several targets: all penalties, and any number of principal components, from one
decomposition of a training set.

With A (n, d) the training rows less their mean, over their scales, and Y (n, T) less its mean:

    min |A W - Y|^2 + alpha |W|^2  =>  W = V (L + alpha)^-1 V' A' Y,      A'A = V L V'

which is scikit-learn's Ridge with an intercept. The first k columns of V are the principal components of A,
so that ridge regression on k components is the same sum over fewer terms. With fewer rows than columns the
decomposition is that of A A'.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..model import Steps
from .transforms import Scaling

BLOCK_ROWS = 8192  # in float64 at once


@dataclass(frozen=True)
class RidgePath:
    """The fits of one training set at every penalty."""

    mean: np.ndarray  # float64 (d,)
    scale: np.ndarray  # float64 (d,)
    level: np.ndarray  # float64 (T,), means of the targets
    values: np.ndarray  # float64 (r,), L, falling
    vectors: np.ndarray  # float64 (d, r), V
    projected: np.ndarray  # float64 (r, T), V' A' Y

    @classmethod
    def fit(
        cls, X: np.ndarray, Y: np.ndarray, *, standardize: bool = True, components: int | None = None
    ) -> "RidgePath":
        """X : float (n, d); Y : float64 (n, T); standardize : see `transforms.Scaling`

        components : of the principal components, as many as there are at most (None: all)
        """
        scaling = Scaling.fit(X, standardize=standardize)
        mean, scale = X.mean(axis=0, dtype=np.float64), scaling.scale
        level = Y.mean(axis=0)
        n, d = X.shape
        if n < d:
            A = (X - mean) / scale
            values, left = _falling(A @ A.T, max(n, d), components)
            root = np.sqrt(values)
            return cls(mean, scale, level, values, A.T @ left / root, (left.T @ (Y - level)) * root[:, None])
        gram, cross = np.zeros((d, d)), np.zeros((d, Y.shape[1]))
        for rows in _blocks(n):
            block = (X[rows] - mean) / scale
            gram += block.T @ block
            cross += block.T @ (Y[rows] - level)
        values, vectors = _falling(gram, max(n, d), components)
        return cls(mean, scale, level, values, vectors, vectors.T @ cross)

    def predict(self, X: np.ndarray, alphas: Sequence[float]) -> Iterator[np.ndarray]:
        """Predictions float64 (n, T) of each penalty in turn; X : float (n, d)."""
        parts = [((X[rows] - self.mean) / self.scale) @ self.vectors for rows in _blocks(len(X))]
        scores = np.concatenate(parts) if parts else np.zeros((0, len(self.values)))
        for alpha in alphas:
            yield scores @ (self.projected / (self.values + alpha)[:, None]) + self.level

    def steps(self, alpha: np.ndarray) -> Steps:
        """The fit as steps (see `model`); alpha : float64 (T,), the penalty of each target."""
        weight = self.vectors @ (self.projected / (self.values[:, None] + alpha))
        return (
            ("shift", {"value": self.mean}),
            ("scale", {"value": 1 / self.scale}),
            ("affine", {"weight": weight, "bias": self.level}),
        )


def _falling(gram: np.ndarray, size: int, most: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues, falling, that are not rounding errors of a matrix of this size, and their
    vectors in columns.
    """
    values, vectors = np.linalg.eigh(gram)
    kept = np.flatnonzero(values > size * np.finfo(np.float64).eps * values[-1])[::-1][:most]
    return values[kept], vectors[:, kept]


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK_ROWS) for start in range(0, n, BLOCK_ROWS))

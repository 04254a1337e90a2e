"""What is done to features before a probe sees them: one place for all probes.

    standardize  each column less its mean, by its standard deviation
    l2           rows scaled to length 1
    whiten       rotation to uncorrelated columns of variance 1
    none         the features as they are

Means, scales and rotations are learned from training rows alone. Features that are not standardised are
divided by one number, the root of the mean variance of their columns, so that one grid of penalties suits
features of any scale; a cosine does not see it.
"""

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from ..model import Steps, unit
from ..streaming import Features, FileRows, blocks


class Transform(Protocol):
    """float (n, d) -> float (n, k), and the same as steps (see `model`)."""

    def __call__(self, X: np.ndarray) -> np.ndarray: ...

    def steps(self) -> Steps: ...


class Identity:
    """Features as they are."""

    def __call__(self, X: np.ndarray) -> np.ndarray:
        return X

    def steps(self) -> Steps:
        return ()


class Unit:
    """Rows of length 1; zero rows stay."""

    def __call__(self, X: np.ndarray) -> np.ndarray:
        return unit(X)

    def steps(self) -> Steps:
        return (("unit", {}),)


@dataclass
class Whitening:
    """Rotation to uncorrelated columns of variance 1, without directions below 1e-6 of the largest."""

    mean: np.ndarray
    rotation: np.ndarray

    @classmethod
    def fit(cls, X: Features) -> Self:
        d = X.shape[1]
        mean, products = np.zeros(d), np.zeros((d, d))
        for block in blocks(len(X)):
            mean += X[block].sum(0, dtype=np.float64) / len(X)
        for block in blocks(len(X)):
            centred = X[block].astype(np.float64) - mean
            products += centred.T @ centred
        variance, vectors = np.linalg.eigh(products / len(X))
        keep = variance > 1e-6 * variance[-1]
        return cls(mean, (vectors[:, keep] / np.sqrt(variance[keep])).astype(X.dtype))

    def __call__(self, X: np.ndarray) -> np.ndarray:
        return (X - self.mean.astype(X.dtype)) @ self.rotation

    def steps(self) -> Steps:
        rotation = self.rotation.astype(np.float64)
        bias = np.zeros(rotation.shape[1])
        return (("shift", {"value": self.mean}), ("affine", {"weight": rotation, "bias": bias}))


@dataclass
class Scaling:
    """(X - mean) / scale in float64, with the means and scales of training rows.

    standardize : each column's own; constant columns have scale 1. Otherwise no mean is taken off, and the
        scale is one number: the root of the mean variance of the columns
    """

    mean: np.ndarray  # float64 (d,)
    scale: np.ndarray  # float64 (d,)

    @classmethod
    def fit(cls, X: np.ndarray, *, standardize: bool) -> Self:
        mean, variance = X.mean(0, dtype=np.float64), X.var(0, dtype=np.float64)
        if standardize:
            eps, n = np.finfo(np.float64).eps, len(X)  # as in scikit-learn's _is_constant_feature
            constant = variance <= n * eps * variance + (n * mean * eps) ** 2
            return cls(mean, np.where(constant, 1.0, np.sqrt(variance)))
        overall = np.sqrt(variance.mean())
        return cls(np.zeros_like(mean), np.full_like(mean, overall if overall > 0 else 1.0))

    def __call__(self, X: np.ndarray) -> np.ndarray:
        return (X - self.mean) / self.scale

    def steps(self) -> Steps:
        return (("shift", {"value": self.mean}), ("scale", {"value": 1 / self.scale}))


class Transformed:
    """Rows that stay in a file, transformed when read: .shape, .dtype, and [lo:hi] -> float32 array."""

    def __init__(self, X: FileRows, transform: Transform) -> None:
        self.X, self.transform, self.dtype = X, transform, X.dtype
        self.shape = (len(X), transform(X[:1]).shape[1])

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.transform(self.X[rows])

    def select(self, rows: np.ndarray) -> "Transformed":
        """Some rows: bool (n,), or int (k,) for their numbers. Nothing is read."""
        return Transformed(self.X.select(rows), self.transform)


def apply(transform: Transform, X: Features) -> Features | Transformed:
    """transform(X): now, or block by block where the rows are read from a file."""
    return Transformed(X, transform) if isinstance(X, FileRows) else transform(X)


def fit_transform(preprocess: str, X: Features) -> Transform:
    """The part of a preprocessing that may be shared by the inner folds of one outer training set, X.

    "standardize" and "none" change nothing here: `Scaling` is of each training set's own rows.
    """
    if preprocess == "l2":
        return Unit()
    if preprocess == "whiten":
        return Whitening.fit(X)
    if preprocess in ("standardize", "none"):
        return Identity()
    raise ValueError(preprocess)

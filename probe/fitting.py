"""The classifiers behind one interface: many training sets and a whole grid in one call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..errors import ProbeError
from .config import ProbeConfig
from .logistic import fit_logistic


class Models(Protocol):
    """Fitted models: S training sets x L grid values."""

    def scores(self, X: np.ndarray, sets: Sequence[int], value: int | None = None) -> np.ndarray:
        """Scores of rows: float (n, len(sets), L), or (n, len(sets)) at one grid value."""
        ...


@dataclass
class LinearModels:
    """score = X @ coef + intercept; coef (S, L, d), intercept (S, L)."""

    coef: np.ndarray
    intercept: np.ndarray

    def scores(self, X: np.ndarray, sets: Sequence[int], value: int | None = None) -> np.ndarray:
        sets = list(sets)
        coef, intercept = self.coef[sets], self.intercept[sets]
        if value is not None:  # the few models that are kept: in float64
            return X.astype(np.float64) @ coef[:, value].T.astype(np.float64) + intercept[:, value]
        flat = np.ascontiguousarray(coef.reshape(-1, coef.shape[-1]).T, dtype=X.dtype)
        return (X @ flat).reshape(len(X), *intercept.shape) + intercept.astype(X.dtype)


def class_weights(y: np.ndarray, training: np.ndarray, class_weight: str) -> np.ndarray:
    """Sample weights, float64 (n,): 0 outside the training set, inside 1 or ("balanced") n / (2 n_class)."""
    weights = training.astype(np.float64)
    if class_weight == "balanced":
        for label in (0, 1):
            rows = training & (y == label)
            weights[rows] = training.sum() / (2 * rows.sum())
    return weights


# --- preprocessing ----------------------------------------------------------------------------------

Transform = Callable[[np.ndarray], np.ndarray]


def fit_transform_on(preprocess: str, X: np.ndarray, rows: np.ndarray) -> Transform:
    """The transform of a preprocessing whose parameters come from `rows` (bool (n,)) of X alone.

    "standardize" is done inside the fit, from each training set's own rows; here it changes nothing.
    """
    if preprocess in ("standardize", "none"):
        return _identity
    if preprocess == "l2":
        return _unit_rows
    if preprocess == "whiten":
        return _Whitening.fit(X[rows])
    raise ValueError(preprocess)


def learns(preprocess: str) -> bool:
    """Does the transform have parameters that come from rows?"""
    return preprocess == "whiten"


def _identity(X: np.ndarray) -> np.ndarray:
    return X


def _unit_rows(X: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(X, axis=1, keepdims=True)
    return X / np.where(norm > 0, norm, 1)


@dataclass
class _Whitening:
    """Rotation to uncorrelated columns of variance 1, without directions below 1e-6 of the largest."""

    mean: np.ndarray
    rotation: np.ndarray

    @classmethod
    def fit(cls, X: np.ndarray) -> "_Whitening":
        mean = X.mean(0, dtype=np.float64)
        centred = X.astype(np.float64) - mean
        variance, vectors = np.linalg.eigh(centred.T @ centred / len(X))
        keep = variance > 1e-6 * variance[-1]
        return cls(mean, (vectors[:, keep] / np.sqrt(variance[keep])).astype(X.dtype))

    def __call__(self, X: np.ndarray) -> np.ndarray:
        return (X - self.mean.astype(X.dtype)) @ self.rotation


# --- fits ---------------------------------------------------------------------------------------------


def grid_values(config: ProbeConfig) -> np.ndarray:
    """The values of the last axis of the grid, in the order of tie-breaking (strongest penalty first)."""
    if config.probe == "logistic":
        return np.sort(np.asarray(config.C, np.float64))
    raise ProbeError(f"probe {config.probe!r} is not available yet")


def fit_models(
    X: np.ndarray, y: np.ndarray, weights: np.ndarray, preprocess: str, config: ProbeConfig
) -> tuple[Models, dict[str, Any]]:
    """Fit every training set (row of weights, float64 (S, n), 0 = held out) at every grid value.

    With "l2" and "none" the penalty is relative: C is divided by the mean variance of the columns, so that
    one grid suits features of any scale (standardized and whitened columns have variance 1 already).
    Returns the models and facts about the fits (number, statuses, worst gap bound, iterations).
    """
    C = grid_values(config)
    standardize = preprocess == "standardize"
    if preprocess in ("l2", "none"):
        rows = weights.any(0)
        C = C / max(float(X[rows].var(0, dtype=np.float64).mean()), np.finfo(np.float32).tiny)
    fits = fit_logistic(X, y, C=C, weights=weights, standardize=standardize, tol=config.tol)
    status, counts = np.unique(np.asarray(fits.status), return_counts=True)
    facts = {
        "fits": int(np.asarray(fits.status).size),
        "status": {str(s): int(c) for s, c in zip(status, counts, strict=True)},
        "worst_gap_bound": float(np.max(fits.gap_bound)),
        "iterations": float(np.mean(fits.n_iter)),
    }
    return LinearModels(fits.coef, fits.intercept), facts

"""All the logistic regressions of one encoder at once: every set of rows at every strength."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InvalidRequest, ProbeError
from .newton import newton

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class LogisticFits:
    """S sets at L strengths. Scores: `X @ coef + intercept` with the X that was given, not standardised.

    coef : float64 (S, L, d), or (S, L, K, d) for K > 2 classes
    intercept : float64 (S, L) or (S, L, K)
    objective : float64 (S, L), sum of weighted log-losses + 1/(2C) |w|^2, w in the set's standardised units
    gradient_norm : float64 (S, L), Euclidean norm of its gradient, the intercept included
    gap_bound : float64 (S, L), upper bound of (objective - optimum) / objective
    n_iter : int (S, L)
    status : str (S, L), "converged", "polished", "newton" or "capped"
    """

    coef: Array
    intercept: Array
    objective: Array
    gradient_norm: Array
    gap_bound: Array
    n_iter: Array
    status: Array
    C: Array

    def decision(self, X: Array) -> Array:
        """Scores of rows X (n, d): float64 (n, S, L), or (n, S, L, K) for K > 2 classes."""
        d = self.coef.shape[-1]
        if X.ndim != 2 or X.shape[1] != d:
            raise InvalidRequest(f"X has the shape {X.shape}; these fits need (n, {d})")
        scores = np.asarray(X, dtype=np.float64) @ self.coef.reshape(-1, d).T
        return scores.reshape(X.shape[0], *self.intercept.shape) + self.intercept


def fit_logistic(
    X: Array,
    y: Array,
    *,
    C: Sequence[float] | Array,
    weights: Array | None = None,
    standardize: bool = True,
    tol: float = 1e-7,
) -> LogisticFits:
    """Fit every set at every strength.

    X : float16, float32 or float64 (n, d)
    y : int (n,), classes 0..K-1
    C : (L,) inverse strengths, each > 0
    weights : (S, n) >= 0, a row a set; 0 = the row is not in the set. None: one set of all rows, weight 1
    standardize : scale features by each set's own mean and standard deviation (over its rows with
        weight > 0, unweighted, ddof 0; constant columns get scale 1), as a StandardScaler in a pipeline would
    tol : relative distance of the objective to its optimum

    Raises InvalidRequest for shapes and values that make no sense, ProbeError for NaN or Inf in X and for
    a set that lacks a class (it names the set).
    """
    X = np.asarray(X)
    if X.ndim != 2 or not np.issubdtype(X.dtype, np.floating):
        raise InvalidRequest(f"X must be a floating-point matrix (n, d), not {X.dtype} {X.shape}")
    n, d = X.shape
    y = np.asarray(y)
    if y.shape != (n,) or not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
        raise InvalidRequest(f"y must be {n} integers 0..K-1, one a row of X, not {y.dtype} {y.shape}")
    strengths = np.asarray(C, dtype=np.float64)
    if strengths.ndim != 1 or not len(strengths) or not (np.isfinite(strengths) & (strengths > 0)).all():
        raise InvalidRequest("C must be a list of positive numbers")
    v = np.ones((1, n)) if weights is None else np.asarray(weights, dtype=np.float64)
    if v.ndim != 2 or v.shape[1] != n or not np.isfinite(v).all() or (v < 0).any():
        raise InvalidRequest(f"weights must be finite and >= 0, of the shape (sets, {n}), not {v.shape}")
    bad = ~np.isfinite(X).all(axis=1)
    if bad.any():
        raise ProbeError(f"X has NaN or Inf in {bad.sum()} rows, the first is row {np.flatnonzero(bad)[0]}")
    K = int(y.max()) + 1
    for s, row in enumerate(v):
        missing = sorted(set(range(max(K, 2))) - set(y[row > 0].tolist()))
        if missing:
            raise ProbeError(
                f"set {s} has no row of class {missing[0]}: a fit needs every class in every set"
            )

    S, L, m = len(v), len(strengths), 1 if K == 2 else K
    coef, intercept = np.empty((S, L, m, d)), np.empty((S, L, m))
    objective, gradient_norm, gap = np.empty((S, L)), np.empty((S, L)), np.empty((S, L))
    n_iter, status = np.empty((S, L), dtype=int), np.full((S, L), "newton", dtype="<U9")
    for s in range(S):
        rows = v[s] > 0
        A = X[rows].astype(np.float64)
        mean, scale = np.zeros(d), np.ones(d)
        if standardize:
            mean, scale = A.mean(axis=0), A.std(axis=0)
            scale[scale <= 1e-12 * (1 + np.abs(mean))] = 1.0
        A = (A - mean) / scale
        theta = None
        for i in np.argsort(strengths):
            fit = newton(A, y[rows], v[s, rows], strengths[i], n_classes=max(K, 2), start=theta)
            theta = np.concatenate([fit.coef, fit.intercept[:, None]], axis=1)
            coef[s, i] = fit.coef / scale
            intercept[s, i] = fit.intercept - coef[s, i] @ mean
            objective[s, i], n_iter[s, i] = fit.objective, fit.n_iter
            gradient_norm[s, i] = np.linalg.norm(fit.gradient)
            gap[s, i] = np.sum(fit.gradient**2) * strengths[i] / 2 / fit.objective
            if fit.decrement > tol * fit.objective:
                status[s, i] = "capped"
    if m == 1:
        coef, intercept = coef[:, :, 0], intercept[:, :, 0]
    return LogisticFits(coef, intercept, objective, gradient_norm, gap, n_iter, status, strengths)

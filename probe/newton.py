"""One L2 logistic regression by damped Newton steps in float64: the reference, and the last resort.

The batched solver (`logistic.py`) hands over what it could not finish; a handful of fits, so nothing here
is clever. The objective is scikit-learn's, the intercept is not penalised:

    sum_i v_i * logloss_i(X[i] @ w + b)  +  1/(2 C) * |w|^2
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class NewtonFit:
    """coef: (m, d) float64, intercept: (m,), with m = 1 for two classes and m = K for K > 2."""

    coef: Array
    intercept: Array
    objective: float
    gradient: Array  # (m, d + 1), the intercept's entry last
    decrement: float  # g' H^-1 g / 2, the distance to the optimum that the last Newton model saw
    n_iter: int


def newton(
    X: Array,
    y: Array,
    weights: Array,
    C: float,
    *,
    n_classes: int,
    start: Array | None = None,
    tol: float = 1e-12,
    max_iter: int = 200,
) -> NewtonFit:
    """Minimise the objective above for one problem.

    X : float64 (n, d); y : int (n,), 0..n_classes-1; weights : float64 (n,), >= 0
    start : float64 (m, d + 1), coefficients with the intercept last, or None for zeros
    tol : stop when the Newton decrement is below tol * objective

    The Hessian of a multinomial problem has (K (d + 1))^2 entries; it is singular in the direction that
    adds one constant to every intercept, which is taken out by keeping their sum at zero.
    """
    n, d = X.shape
    m = 1 if n_classes == 2 else n_classes
    A = np.concatenate([X, np.ones((n, 1))], axis=1)
    target = (y == 1)[:, None].astype(float) if m == 1 else np.eye(n_classes)[y]
    ridge = np.full(d + 1, 1.0 / C)
    ridge[d] = 0.0
    theta = np.zeros((m, d + 1)) if start is None else start.astype(float)

    def value(theta: Array) -> tuple[float, Array]:
        loss, probability = _loss(A @ theta.T, target)
        return float(weights @ loss + 0.5 * np.sum(ridge * theta**2)), probability

    f, p = value(theta)
    gradient, decrement, k = np.zeros_like(theta), np.inf, 0
    for k in range(max_iter + 1):
        gradient = (weights[:, None] * (p - target)).T @ A + ridge * theta
        step = -_solve(_hessian(A, p, weights, ridge), gradient.ravel()).reshape(m, d + 1)
        decrement = -0.5 * float(np.sum(step * gradient))
        if decrement <= tol * f or k == max_iter:
            break
        t = 1.0
        while True:
            f_trial, p_trial = value(theta + t * step)
            if f_trial <= f - 1e-4 * t * 2 * decrement or t < 1e-10:
                break
            t *= 0.5
        if t < 1e-10:  # at the limit of float64: nothing to gain
            break
        theta, f, p = theta + t * step, f_trial, p_trial
    return NewtonFit(theta[:, :d], theta[:, d], f, gradient, decrement, k)


def _loss(z: Array, target: Array) -> tuple[Array, Array]:
    """Log-loss a row (n,) and probabilities (n, m) of scores z (n, m)."""
    if z.shape[1] == 1:
        margin = np.where(target > 0, z, -z)[:, 0]
        return np.logaddexp(0, -margin), 1 / (1 + np.exp(-np.clip(z, -700, 700)))
    z = z - z.max(axis=1, keepdims=True)
    norm = np.log(np.exp(z).sum(axis=1, keepdims=True))
    return norm[:, 0] - np.sum(z * target, axis=1), np.exp(z - norm)


def _solve(H: Array, g: Array) -> Array:
    """H^-1 g; by least squares where float64 takes H for singular (curvatures underflow far from 0)."""
    try:
        return scipy.linalg.cho_solve(scipy.linalg.cho_factor(H), g)
    except np.linalg.LinAlgError:
        return np.linalg.lstsq(H, g, rcond=None)[0]


def _hessian(A: Array, p: Array, weights: Array, ridge: Array) -> Array:
    """(m (d+1), m (d+1)): sum_i v_i (diag(p_i) - p_i p_i') kron a_i a_i' + ridge."""
    D, m = A.shape[1], p.shape[1]
    if m == 1:
        H = (A * (weights * p[:, 0] * (1 - p[:, 0]))[:, None]).T @ A
        H[np.diag_indices(D)] += ridge
        H[-1, -1] += 1e-300
        return H
    H = np.empty((m, D, m, D))
    for a in range(m):
        for b in range(a, m):
            block = (A * (weights * p[:, a] * ((a == b) - p[:, b]))[:, None]).T @ A
            H[a, :, b, :] = block
            H[b, :, a, :] = block.T
        H[a, :, a, :][np.diag_indices(D)] += ridge
    intercepts = H[:, -1, :, -1]
    intercepts += np.trace(intercepts) / m**2  # pins the sum of the intercepts' steps to zero
    H[:, -1, :, -1] = intercepts
    return H.reshape(m * D, m * D)

"""Fits of few rows and many features, by float64 Newton in the space of the rows.

With Z (n, d) the rows of a set in its standardised units, times the labels' signs s, margins are Z w + s b,
and at the optimum w = Z' alpha: d coefficients are n, and a Newton step is a system of n equations,

    (lam + W K) alpha = v q + W (K alpha_0 + s b_0) - W s b,    s' alpha = 0,    K = Z Z',  W = v q (1 - q)

from the point (alpha_0, b_0), where q is the probability of the wrong class. It is solved in the form of
Rasmussen and Williams (Gaussian Processes for Machine Learning, 2006, eq. 3.26-3.28), with
B = 1 + W^1/2 K W^1/2 / lam, whose eigenvalues are at least 1. A set is solved along its path of strengths,
each start extrapolated from the three before it, which leaves one or two steps.
"""

from typing import Any

import numpy as np
import scipy.linalg

from .lbfgs import Minimum, lagrange
from .objective import Objective

Array = np.ndarray[Any, np.dtype[Any]]
FEW = 100  # n^2 / d up to which some steps of n^3 cost less than the rounds of a descent
STEPS = 40  # Newton's, a strength
SHORTEST = 1e-9  # step


def solve_few(objective: Objective, found: Minimum, *, tol: float) -> Array:
    """Solve the sets that have few rows, in place; problems as in fit_logistic, a set's by ascending C.

    Returns bool (P,): which problems are done.
    """
    design = objective.design
    S = len(design.weights)
    problems = np.arange(len(objective.sets)).reshape(S, -1)
    done = np.zeros(problems.shape, dtype=bool)
    if design.outputs > 1 or not design.in_memory:
        return done.ravel()

    count = (design.weights > 0).sum(axis=1)
    few = np.flatnonzero((count <= design.d) & (count**2 <= FEW * design.d)).tolist()
    solved = objective.share(lambda s: _solve_set(objective, s, objective.lam[problems[s]], tol), few)
    for s, (theta, steps, decrement) in zip(few, solved, strict=True):
        at = objective.exact(problems[s], theta)
        if at.theta is None or at.gap is None or not (decrement <= tol * at.value).all():
            continue  # the descent's turn
        done[s] = yes = np.ones(len(theta), dtype=bool)
        found.put(
            problems[s],
            Minimum(at.theta, at.value, at.gradient, at.curvature, at.gap, decrement, steps, yes, ~yes),
        )
    return done.ravel()


def _solve_set(objective: Objective, s: int, lam: Array, tol: float) -> tuple[Array, Array, Array]:
    """theta (L, 1, d + 1), steps (L,), the last one's g' H^-1 g / 2 (L,)."""
    design = objective.design
    rows = np.flatnonzero(design.weights[s] > 0)
    Z = design.block(0, design.n, np.float64)[rows, :-1] * design.factor[s, :-1]
    K, sign, v = Z @ Z.T, design.sign[rows], design.weights[s, rows]
    points = np.zeros((len(lam), len(rows) + 1))  # alpha and b
    steps, decrement = np.zeros(len(lam), dtype=int), np.zeros(len(lam))
    for k, ridge in enumerate(lam):
        last = slice(max(0, k - 3), k)
        start = np.tensordot(lagrange(np.log(ridge), np.log(lam[last])), points[last], axes=1)  # first: 0
        points[k], steps[k], decrement[k] = _newton(K, sign, v, float(ridge), start, tol)
    theta = np.zeros((len(lam), 1, design.d + 1))
    theta[:, 0, :-1] = points[:, :-1] @ Z
    theta[:, 0, -1] = points[:, -1]
    return theta, steps, decrement


def _newton(
    K: Array, sign: Array, v: Array, ridge: float, start: Array, tol: float
) -> tuple[Array, int, float]:
    """One strength. K (n, n); sign, v (n,); start (n + 1,). Returns alpha and b (n + 1,), steps, decrement.

    It ends with the step whose decrement is at most tol of the objective: what is left is far less.
    """

    def value(alpha: Array, Ka: Array, b: float) -> float:
        return float(v @ np.logaddexp(0, -Ka - sign * b) + ridge / 2 * (alpha @ Ka))

    alpha, b = start[:-1], float(start[-1])
    Ka = K @ alpha
    f, decrement, count = value(alpha, Ka, b), np.inf, 0
    while count < STEPS and decrement > tol * f:
        margin = Ka + sign * b
        q = 1 / (1 + np.exp(margin))
        vq = v * q
        W = vq * (1 - q)
        root = np.sqrt(W)
        B = (K * root) * (root / ridge)[:, None]
        B[np.diag_indices(len(B))] += 1
        right = np.stack([vq + W * margin, W * sign], axis=1)
        factor = scipy.linalg.cho_factor(B, lower=True, overwrite_a=True, check_finite=False)
        solved = scipy.linalg.cho_solve(factor, root[:, None] * (K @ right), check_finite=False)
        right = (right - root[:, None] * (solved / ridge)) / ridge
        db = sign @ right[:, 0] / (sign @ right[:, 1]) - b
        da = right[:, 0] - right[:, 1] * (b + db) - alpha
        dKa = K @ da
        # the gradient in w is Z' (ridge alpha - v q), in b it is -s' v q
        decrement = float((vq - ridge * alpha) @ dKa + (sign @ vq) * db) / 2
        t, trial = 1.0, value(alpha + da, Ka + dKa, b + db)
        while trial > f - 1e-4 * t * decrement + 1e-15 * f and t > SHORTEST:
            t /= 2
            trial = value(alpha + t * da, Ka + t * dKa, b + t * db)
        alpha, Ka, b, f = alpha + t * da, Ka + t * dKa, b + t * db, trial
        count += 1
    return np.append(alpha, b), count, decrement

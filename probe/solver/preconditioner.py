"""Approximate inverse Hessians, the H0 of the descent: what makes a dozen rounds out of hundreds.

The Hessian of a problem, in units of its own curvature h = sum_i v_i p_i (1 - p_i), is

    [ h G + lam   h m ]        G, m: second and first moments of the rows under weights
    [ h m'        h   ]              v_i p_i (1 - p_i) / h, which sum to 1.

The moments are shared: first by all problems (rows weighted as the sets weight them on average: one
eigendecomposition serves every set, strength and step), later, for problems that turn out slow, by those of
one set, or by neighbours in strength, at their current point. What differs exactly, h and lam, is put in
exactly: with G - m m' = V diag(e) V', a solve is two products with V. Few problems take a Cholesky factor
each instead.
"""

# pyright: reportMissingTypeStubs=false

from typing import Any, Protocol

import numpy as np
import scipy.linalg

from .objective import Objective, add_squares, as_columns, no_squares, times, times_transposed

linalg: Any = scipy.linalg  # has no types
Array = np.ndarray[Any, np.dtype[Any]]

FEW = 48  # columns, up to which a product is faster from the left
RIDGES = 30  # powers of ten that are tried until a matrix is definite in float32


class Solver(Protocol):
    """Solves (h (G - mm') + lam) x = b for rows b (P, d) float32, the outputs of each problem together, h and
    lam (P,).
    """

    mean: Array

    def solve(self, b: Array, h: Array, lam: Array) -> Array: ...


class Spectrum:
    """Any number of problems, any h and lam: by the eigenvectors, d x r; r < d where there are fewer rows."""

    def __init__(self, values: Array, vectors: Array, mean: Array) -> None:
        """vectors : (d, r)"""
        self.values, self.rows, self.mean = values, np.ascontiguousarray(vectors.T), mean

    @classmethod
    def of_moments(cls, moments: Array) -> "Spectrum":
        """moments : float32 (d + 1, d + 1), of the rows with a 1 behind; the lower triangle is read."""
        G, mean = _centred(moments)
        values, vectors = linalg.eigh(G, driver="evd", overwrite_a=True, check_finite=False)
        return cls(np.maximum(values, 1e-7 * values[-1]), vectors, mean)

    @classmethod
    def of_rows(cls, A: Array, share: Array) -> "Spectrum":
        """A : float32 (n, d + 1), n < d: the n x n product has the same spectrum."""
        mean = (A[:, :-1].T @ (A[:, -1] * share)).astype(np.float32)
        B = (A[:, :-1] - A[:, -1:] * mean) * np.sqrt(share)[:, None]
        values, U = linalg.eigh(B @ B.T, driver="evd", check_finite=False)
        keep = values > 1e-6 * values[-1]
        return cls(values[keep], (B.T @ U[:, keep]) / np.sqrt(values[keep]), mean)

    def solve(self, b: Array, h: Array, lam: Array) -> Array:
        first = int(np.searchsorted(self.values[:-1], 0.05 * float(np.min(lam / h))))
        if first < 0.3 * b.shape[1]:
            first = 0
        # eigenvalues far below lam / h need no vectors: there the solve is a division by lam, nearly
        rows = self.rows[first:]
        inner = times(rows, as_columns(b))[:, : len(b)].T if len(b) < FEW else b @ rows.T
        scale = h[:, None] * self.values[first:]
        scale += lam[:, None]
        if inner.shape[1] == b.shape[1]:
            return _back(inner / scale, rows)
        each = 1 / (lam[:, None] + (h[:, None] * (self.values[first] / 3) if first else 0))
        return b * each + _back(inner / scale - inner * each, rows)


class Factors:
    """A few problems, neighbours in strength: one Cholesky factor of each output, at their mean h and lam."""

    def __init__(self, moments: Array, h: Array, lam: Array) -> None:
        """moments : lower triangle; h (P, m), lam (P,)"""
        G, self.mean = _centred(moments)
        middle = float(np.exp(np.log(lam).mean()))
        self.factors = [_factor(G, float(h_k), middle) for h_k in h.mean(axis=0)]

    def solve(self, b: Array, h: Array, lam: Array) -> Array:
        m = len(self.factors)
        out = np.empty_like(b)
        for k, factor in enumerate(self.factors):
            out[k::m] = linalg.cho_solve(factor, b[k::m].T, check_finite=False).T
        return out


class Preconditioner:
    """H0 of every problem: the shared spectrum, or what `refine` has put in its place."""

    def __init__(self, objective: Objective) -> None:
        design = objective.design
        self.objective = objective
        share = (design.weights / design.weights.sum(axis=1, keepdims=True)).mean(axis=0).astype(np.float32)
        if design.n < design.d and design.in_memory:
            shared = Spectrum.of_rows(design.block(0, design.n), share)
        else:
            moments = no_squares(design.d + 1)
            for block in design.blocks(1024):
                A = design.block(block.lo, block.hi) * np.sqrt(share[block.lo : block.hi, None])
                moments = add_squares(moments, A)
            shared = Spectrum.of_moments(moments)
        self.solvers: list[Solver] = [shared]
        self.of = np.zeros(len(objective.sets), dtype=int)  # which solver a problem uses

    def cost(self, count: int, *, spectrum: bool) -> float:
        """What `refine` costs for `count` problems, in rounds of one problem (4 n d flops and the rest).

        An eigendecomposition takes about as long as a product of 9 d^3 flops, a Cholesky factor as 0.8 d^3.
        """
        n, d, m = self.objective.design.n, self.objective.design.d, self.objective.design.outputs
        flops = n * d**2 + (9 * d**3 if spectrum else 0.8 * d**3 * m * count)
        return flops / (4.8 * n * d * m)

    def refine(self, ids: Array, theta: Array, curvature: Array, *, spectrum: bool) -> None:
        """Give the problems `ids`, all of one set, the moments of their own points."""
        moments = self.objective.moments(ids, theta, curvature)
        if not (np.isfinite(moments).all() and moments[-1, -1] > 0.5):
            return  # they are 1 there, unless float32 takes all probabilities for 0 or 1
        if spectrum:
            solver: Solver = Spectrum.of_moments(moments)
        else:
            solver = Factors(moments, np.linalg.eigvalsh(np.nan_to_num(curvature)), self.objective.lam[ids])
        self.solvers.append(solver)
        self.of[ids] = len(self.solvers) - 1
        self._drop_unused()

    def release(self, ids: Array) -> None:
        """The problems `ids` have ended."""
        self.of[ids] = 0
        self._drop_unused()

    def _drop_unused(self) -> None:
        used, self.of = np.unique(np.append(self.of, 0), return_inverse=True)
        self.of = self.of[:-1]
        self.solvers = [self.solvers[k] for k in used]

    def __call__(self, g: Array, curvature: Array, ids: Array) -> Array:
        """g : float32 (P, m, d + 1), curvature (P, m, m). Returns H0 g."""
        out = np.empty(g.shape, dtype=np.float32)
        using = self.of[ids]
        for k in np.unique(using):
            part = slice(None) if (using == k).all() else np.flatnonzero(using == k)
            out[part] = self._apply(self.solvers[int(k)], g[part], curvature[part], ids[part])
        return out

    def _apply(self, solver: Solver, g: Array, curvature: Array, ids: Array) -> Array:
        P, m, D = g.shape
        turn = None
        if m == 1:
            h = curvature.reshape(-1)
        else:  # the classes' curvature x the moments (Kronecker): diagonal in the former's eigenvectors
            values, turn = np.linalg.eigh(np.nan_to_num(curvature))
            h = np.maximum(values, 1e-7 * values[:, -1:]).reshape(-1)
            turn = turn.astype(np.float32)
            g = np.matmul(turn.transpose(0, 2, 1), g)
        h = np.maximum(h, 1e-30).astype(np.float32)
        lam = np.repeat(self.objective.lam[ids], m).astype(np.float32)
        flat = g.reshape(-1, D)
        g_b = flat[:, -1:]
        out = np.empty_like(flat)
        out[:, :-1] = solver.solve(flat[:, :-1] - g_b * solver.mean, h, lam)
        out[:, -1] = g_b[:, 0] / h - out[:, :-1] @ solver.mean
        out = out.reshape(P, m, D)
        if turn is not None:
            out[:, 0, -1] = 0  # the same change of every intercept changes nothing
            out = np.matmul(turn, out)
        return out


def _back(inner: Array, rows: Array) -> Array:
    """inner (P, r) @ rows (r, d)"""
    return times_transposed(as_columns(inner), rows)[: len(inner)] if len(inner) < FEW else inner @ rows


def _factor(G: Array, h: float, ridge: float) -> Any:
    """The Cholesky factor of h G + ridge; of a larger ridge where float32 takes that for singular."""
    diagonal = np.diag_indices(len(G))
    ridge = max(ridge, 1e-6 * h * float(np.trace(G)) / len(G), 1e-30)
    for power in range(RIDGES):
        A = np.multiply(G, np.float32(h), order="F")
        A[diagonal] += ridge * 10.0**power
        try:
            return linalg.cho_factor(A, lower=True, overwrite_a=True, check_finite=False)
        except np.linalg.LinAlgError:
            continue
    raise np.linalg.LinAlgError("no ridge makes this matrix definite")


def _centred(moments: Array) -> tuple[Array, Array]:
    """G - m m' and m, of moments scaled so that the weights sum to 1, in the order of Fortran."""
    mean = moments[-1, :-1] / moments[-1, -1]
    centred = np.divide(moments[:-1, :-1], moments[-1, -1], order="F")
    centred -= np.outer(mean, mean).T
    return centred, mean

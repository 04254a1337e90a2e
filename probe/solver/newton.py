"""One L2 logistic regression by Newton steps in float64: what the batched descent could not finish.

The objective is scikit-learn's, the intercept is not penalised:

    sum_i v_i * logloss_i(X[i] @ w + b)  +  lam/2 * |w|^2

Three ways to a step, from the quickest to the most robust. All work on columns scaled so that the Hessian's
diagonal is 1, which makes features of any scale harmless:

1. Cholesky of the Hessian, where it is well conditioned.
2. Conjugate gradients with a Cholesky factor a class, where the Hessian of all classes is large.
3. A QR decomposition of [W^1/2 X; lam^1/2], never of its product with itself, whose condition is the square.

The step is shortened by the slope, not the value: it is exact far below the rounding of the value.
"""

# pyright: reportConstantRedefinition=false, reportMissingTypeStubs=false

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.linalg

linalg: Any = scipy.linalg  # has no types
Array = np.ndarray[Any, np.dtype[Any]]
SMALL = 700  # coefficients, up to which rows fewer than the features get no basis if scales are uneven
EVEN = 1e3
LARGEST = 6000  # coefficients, above which a Hessian of all classes is not formed
LARGEST_QR = 2e11  # flops of step 3
CG_STEPS = 300
CG_LIKELY = 100  # of them, for the choice between steps 1 and 2
WELL_CONDITIONED = 1e-10  # smallest squared diagonal of the Cholesky factor of a Hessian with diagonal 1
STEPS = 200
QUICK = 15  # steps straight to the aim, before the path of penalties
ON_THE_WAY = 1e-4
FLOAT64 = 1e-9  # a decrement, relative, that may be all that rounding allows
IDLE = 5  # steps without a smaller decrement or value: the limit of float64
SHORTEST = 1e-12  # relative to the first trial
FAR = 100.0  # change of a score in the first trial


@dataclass(frozen=True)
class NewtonFit:
    """theta: float64 (m, d + 1), intercepts last, with m = 1 for two classes and m = K for K > 2."""

    theta: Array
    objective: float
    decrement: float  # g' H^-1 g / 2, the distance to the optimum that the last Newton model saw
    n_iter: int
    trusted: bool  # the decrement is that of the Hessian, not of one made positive definite


class Rows:
    """The rows of one set, as the Newton steps read them: whole, or block by block where they are many.

    block(lo, hi) -> float64 (hi - lo, D), the last column 1; y : int (n,), 0..n_classes-1
    weights : float64 (n,), > 0
    bounds : lo and hi of the blocks; none: all rows are one block
    basis : float64 (d, n), orthonormal, of the space of the rows, where these are fewer than the features:
        the optimum's coefficients lie in it, and `block` gives a row's n coordinates; None: no such basis
    """

    def __init__(
        self,
        block: Callable[[int, int], Array],
        y: Array,
        weights: Array,
        *,
        n_classes: int,
        bounds: Sequence[tuple[int, int]] = (),
        basis: Array | None = None,
    ) -> None:
        self.block, self.y, self.weights, self.basis = block, y, weights, basis
        self.bounds = list(bounds) or [(0, len(y))]
        self.n_classes = n_classes
        self.outputs = 1 if n_classes == 2 else n_classes

    @classmethod
    def of(cls, A: Array, y: Array, weights: Array, *, n_classes: int) -> "Rows":
        """A : float64 (n, d)"""
        n, d = A.shape
        norms = np.linalg.norm(A, axis=0)
        norms = norms[norms > 0]
        # columns of very different scales keep them where that can be afforded
        even = len(norms) > 0 and norms.max() < EVEN * norms.min()
        reduce = n < d and (even or (1 if n_classes == 2 else n_classes) * d > SMALL)
        basis = np.linalg.qr(A.T)[0] if reduce else None
        inner = A if basis is None else A @ basis
        kept = np.concatenate([inner, np.ones((len(A), 1))], axis=1)
        return cls(lambda lo, hi: kept[lo:hi], y, weights, n_classes=n_classes, basis=basis)

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        for lo, hi in self.bounds:
            yield slice(lo, hi), self.block(lo, hi)

    def inside(self, theta: Array) -> Array:
        """theta (m, d + 1) in the coordinates of the basis: what is outside of it only costs penalty."""
        if self.basis is None:
            return theta
        return np.concatenate([theta[:, :-1] @ self.basis, theta[:, -1:]], axis=1)

    def outside(self, theta: Array) -> Array:
        if self.basis is None:
            return theta
        return np.concatenate([theta[:, :-1] @ self.basis.T, theta[:, -1:]], axis=1)

    def at(self, theta: Array, lam: float) -> tuple[float, Array, Array]:
        """The objective, its gradient (m, D), and the probabilities (n, K), exact in relative terms."""
        m, K = self.outputs, self.n_classes
        f, g, p = 0.0, np.zeros_like(theta), np.empty((len(self.y), K))
        for part, A in self.blocks():
            z, y = A @ theta.T, self.y[part]
            if m == 1:
                z = np.concatenate([np.zeros_like(z), z], axis=1)
            true = y + np.arange(0, z.size, K)  # places in z.ravel()
            z -= z.take(true)[:, None]  # leads over the true class
            top = z.max(axis=1)
            z -= top[:, None]
            e = np.exp(z, out=z)
            wrong = e.copy()
            wrong.put(true, 0)
            rest = wrong.sum(axis=1)
            f += float(self.weights[part] @ (top + np.log1p(rest + np.expm1(-top))))
            total = rest + np.exp(-top)
            p[part] = e / total[:, None]
            residual = wrong / total[:, None]
            residual.put(true, -rest / total)  # p - 1 without cancellation
            residual *= self.weights[part, None]
            g += residual[:, -m:].T @ A
        g[:, :-1] += lam * theta[:, :-1]
        return f + lam / 2 * float(np.sum(theta[:, :-1] ** 2)), g, p

    def penalised_away(self) -> float:
        """A penalty that leaves of the coefficients nearly nothing."""
        return (
            sum(float(self.weights[part] @ np.sum(A[:, :-1] ** 2, axis=1)) for part, A in self.blocks()) / 4
        )


def solve(rows: Rows, lam: float, starts: list[Array], *, tol: float) -> NewtonFit:
    """Minimise the objective from the best of `starts` (m, d + 1); where that is too far off, along the path
    of penalties: from one so strong that the coefficients are nearly 0 down to lam, a tenth at a time.

    tol : stop with the step whose decrement is at most tol * objective: what is left is far less
    """
    best = _Point.at(rows, rows.inside(starts[0]), lam)
    for start in starts[1:]:
        other = _Point.at(rows, rows.inside(start), lam)
        best = other if other.f < best.f or not np.isfinite(best.f) else best
    zero = np.zeros_like(best.theta)
    fit = newton(
        rows, lam, best if np.isfinite(best.f) else _Point.at(rows, zero, lam), tol=tol, max_iter=QUICK
    )
    if not fit.decrement <= max(tol, FLOAT64) * fit.objective:
        steps, theta = fit.n_iter, zero
        for k in range(int(np.ceil(np.log10(max(rows.penalised_away() / lam, 1)))), 0, -1):
            part = newton(rows, lam * 10.0**k, _Point.at(rows, theta, lam * 10.0**k), tol=ON_THE_WAY)
            theta, steps = part.theta, steps + part.n_iter
        last = newton(rows, lam, _Point.at(rows, theta, lam), tol=tol)
        better = last if last.objective <= fit.objective * (1 + 1e-12) else fit
        fit = replace(better, n_iter=steps + last.n_iter)
    return replace(fit, theta=rows.outside(fit.theta))


@dataclass(frozen=True)
class _Point:
    """theta (m, D) in the rows' coordinates; the objective, its gradient and the probabilities (n, K)."""

    theta: Array
    f: float
    g: Array
    p: Array

    @classmethod
    def at(cls, rows: Rows, theta: Array, lam: float) -> "_Point":
        return cls(theta, *rows.at(theta, lam))


def newton(rows: Rows, lam: float, start: _Point, *, tol: float, max_iter: int = STEPS) -> NewtonFit:
    """Newton steps from start until one with a decrement of at most tol * objective, or until it stops
    falling.
    """
    here, best, k, idle = start, (np.inf, np.inf), 0, 0
    while True:
        system = _System(rows, here.p, lam)
        step, trusted = -system.solve(here.g), system.trusted
        slope = float(np.sum(here.g * step))
        decrement = -slope / 2
        if system.flat or not decrement >= 0:  # not a way down, and no measure of what is left
            decrement, trusted = np.inf, False
            break
        idle = 0 if decrement < 0.5 * best[0] or here.f < (1 - 1e-3) * best[1] else idle + 1
        best = min(best[0], decrement), min(best[1], here.f)
        if k == max_iter or idle > (IDLE if decrement <= FLOAT64 * here.f else 5 * IDLE):
            break
        moved = _line_search(rows, lam, here, step, slope)
        if moved is None:
            break
        done = decrement <= tol * here.f
        here = moved
        k += 1
        if done:
            break
    return NewtonFit(here.theta, here.f, decrement, k, trusted)


def _line_search(rows: Rows, lam: float, here: _Point, step: Array, slope: float) -> _Point | None:
    """The point t steps from here where the slope is a third of what it was, or None where there is none in
    sight. The slope grows with t (convex): its zero is bracketed.
    """
    farthest = max(float(np.abs(A @ step.T).max()) for _, A in rows.blocks())
    # where all probabilities are 0 or 1 the Hessian says nothing
    low, high, at_low, at_high, t = 0.0, np.inf, slope, np.inf, min(1.0, FAR / max(farthest, 1e-300))
    shortest = SHORTEST * t
    for _ in range(60):
        trial = _Point.at(rows, here.theta + t * step, lam)
        there = float(np.sum(trial.g * step))
        # at a kink the slope may be small behind the minimum already, and the value be larger than before
        if abs(there) <= -slope / 3 and trial.f <= here.f * (1 + 1e-12):
            return trial
        if there < 0:
            low, at_low = t, there
        else:  # not a number: far too far
            high, at_high = t, there
        if high == np.inf:
            t *= 3
        else:
            share = at_low / (at_low - at_high) if np.isfinite(at_high) else 0.0
            t = low + (high - low) * min(max(share, 0.1), 0.9)
        if t < shortest:
            return None
    return None


def _others(p: Array) -> Array:
    """1 - p (n, K) without cancellation."""
    return np.stack([np.delete(p, k, axis=1).sum(axis=1) for k in range(p.shape[1])], axis=1)


class _System:
    """The Hessian at probabilities p (n, K): sum_i v_i (diag(p_i) - p_i p_i') kron x_i x_i' + lam.

    With K > 2 classes it is singular where all intercepts change by the same number, which changes nothing;
    such a step is taken out by adding the square of the intercepts' sum.
    """

    def __init__(self, rows: Rows, p: Array, lam: float) -> None:
        self.rows, self.weights = rows, rows.weights
        K = p.shape[1]
        self.p = p[:, 1:] if K == 2 else p
        self.m = self.p.shape[1]
        # p (1 - p) without cancellation
        self.rest = p[:, :1] if K == 2 else _others(p)
        self.own = self.weights[:, None] * self.p * self.rest
        squares = [self.own[part].T @ A**2 for part, A in rows.blocks()]
        diagonal = np.sum(squares, axis=0)
        self.D = diagonal.shape[1]
        self.ridge = np.full(self.D, lam)
        self.ridge[-1] = 0
        diagonal += self.ridge
        self.pin = float(diagonal[:, -1].sum()) / self.m**2 if self.m > 1 else 0.0
        diagonal[:, -1] += max(self.pin, 1e-290)
        self.scale = 1 / np.sqrt(np.maximum(diagonal, 1e-290))
        self.trusted = True  # the last solve was with this Hessian
        self.flat = False  # it found a slope where all curvature is lost, as probabilities are 0 or 1

    def solve(self, g: Array) -> Array:
        """H^-1 g for g (m, D)."""
        b = g * self.scale
        size, n = b.size, len(self.p)
        form = self.m * (self.m + 1) * n * self.D**2 + size**3 / 3
        iterate = self.m * (2 * n * self.D**2 + self.D**3 / 3) + CG_LIKELY * (
            20 * n * size + 8 * size * self.D
        )
        if self.m > 1 and (iterate < form or size > LARGEST):
            x, self.trusted = self._conjugate_gradients(b)
            if self.trusted or size > LARGEST:
                return x * self.scale
        qr_flops = 2 * (n * self.m + size) * size**2
        x = self._cholesky(b, anyhow=qr_flops > LARGEST_QR)
        return (self._least_squares(b) if x is None else x) * self.scale

    def times(self, x: Array) -> Array:
        """The scaled Hessian times x (m, D)."""
        u = x * self.scale
        out = self.ridge * u
        for part, A in self.rows.blocks():
            z = A @ u.T
            t = self.own[part] * z
            if self.m > 1:
                p = self.p[part]
                t = self.weights[part, None] * p * (z - np.sum(p * z, axis=1, keepdims=True))
            out += t.T @ A
        out[:, -1] += self.pin * u[:, -1].sum()
        return out * self.scale

    def _cholesky(self, b: Array, *, anyhow: bool) -> Array | None:
        """None where H is badly conditioned; `anyhow`: then with a larger diagonal, not to be trusted."""
        m, D = self.m, self.D
        H = np.zeros((m, D, m, D))
        for part, A in self.rows.blocks():
            for k in range(m):
                B = A * np.sqrt(self.own[part, k])[:, None]
                H[k, :, k] += B.T @ B  # of one matrix: half of a product's work
                for j in range(k + 1, m):
                    w = -self.weights[part] * self.p[part, k] * self.p[part, j]
                    H[k, :, j] += (A * w[:, None]).T @ A
        for k in range(m):
            for j in range(k, m):
                H[k, :, j] *= self.scale[k][:, None] * self.scale[j]
                H[j, :, k] = H[k, :, j].T
        H[:, -1, :, -1] += self.pin * self.scale[:, -1, None] * self.scale[:, -1]
        H = H.reshape(m * D, m * D)
        H.flat[:: m * D + 1] += (self.ridge * self.scale**2).ravel()
        ridge = 0.0
        while True:
            try:
                factor = linalg.cho_factor(H, lower=True, check_finite=False)
                good = np.diag(factor[0]).min() ** 2 >= WELL_CONDITIONED
            except np.linalg.LinAlgError:
                good = False
            else:
                if good or anyhow:
                    self.trusted = good
                    return linalg.cho_solve(factor, b.ravel(), check_finite=False).reshape(m, D)
            if not anyhow:
                return None
            H.flat[:: m * D + 1] += 9 * ridge + 1e-14
            ridge = 10 * ridge + 1e-14

    def _conjugate_gradients(self, b: Array) -> tuple[Array, bool]:
        """x and whether it is done: its last steps added little."""
        solvers: list[Any] = []
        for k in range(self.m):
            roots = (A * np.sqrt(self.own[part, k])[:, None] for part, A in self.rows.blocks())
            H = sum(B.T @ B for B in roots)
            H *= self.scale[k][:, None] * self.scale[k]
            H[range(self.D), range(self.D)] += self.ridge * self.scale[k] ** 2 + 1e-10
            solvers.append(linalg.cho_factor(H, lower=True, check_finite=False))

        def precondition(r: Array) -> Array:
            return np.stack(
                [linalg.cho_solve(f, row, check_finite=False) for f, row in zip(solvers, r, strict=True)]
            )

        x, r = np.zeros_like(b), b.copy()
        z = precondition(r)
        direction, rz = z, float(np.sum(r * z))
        first, gain = rz, 0.0
        late: list[float] = []
        for _ in range(CG_STEPS):
            if rz <= 1e-300:
                return x, True
            Hd = self.times(direction)
            curvature = float(np.sum(direction * Hd))
            if not curvature > 1e-300:  # none is left: all probabilities are 0 or 1
                break
            alpha = rz / curvature
            x += alpha * direction
            r -= alpha * Hd
            gain += alpha * rz
            late = [*late[-4:], alpha * rz]
            z = precondition(r)
            new = float(np.sum(r * z))
            if new <= 1e-4 * first and sum(late) <= 1e-3 * gain:
                return x, True
            direction = z + new / rz * direction
            rz = new
        return x, False

    def _least_squares(self, b: Array) -> Array:
        """By the R of the QR decomposition of J, J' J = H."""
        m, D = self.m, self.D
        ridge = np.diag((np.sqrt(self.ridge) * self.scale).ravel())
        pin = np.zeros((1, m, D))
        pin[0, :, -1] = np.sqrt(self.pin) * self.scale[:, -1]
        R = np.concatenate([ridge, pin.reshape(1, -1)])
        for part, A in self.rows.blocks():
            if len(R) > m * D + 1:
                R = linalg.qr(R, mode="r", check_finite=False)[0][: m * D]
            R = np.concatenate([self._root(part, A), R])
        R, order = linalg.qr(R, mode="r", pivoting=True, check_finite=False, overwrite_a=True)
        R = R[: m * D]
        diagonal = np.abs(np.diag(R))
        flat, lost = b.ravel()[order], diagonal <= 1e-290
        R[np.diag_indices(m * D)] = np.where(lost, np.inf, np.diag(R))
        self.flat = bool((flat[lost] != 0).any())
        inner = linalg.solve_triangular(R, flat, trans=1, check_finite=False)
        x = np.empty(m * D)
        x[order] = linalg.solve_triangular(R, inner, check_finite=False)
        return x.reshape(m, D)

    def _root(self, part: slice, A: Array) -> Array:
        """J of a block of rows, J' J their share of the Hessian."""
        if self.m == 1:
            return A * np.sqrt(self.own[part]) * self.scale[0]
        # diag(p) - p p' = S' S with S = diag(p)^1/2 (1 - 1 p')
        root = np.sqrt(self.weights[part, None] * self.p[part])
        J = np.empty((len(A), self.m, self.m, self.D))
        for k in range(self.m):
            for j in range(self.m):
                rest = self.rest[part, k] if j == k else -self.p[part, j]
                J[:, k, j] = A * (root[:, k] * rest)[:, None] * self.scale[j]
        return J.reshape(len(A) * self.m, -1)

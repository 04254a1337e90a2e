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

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.linalg

Array = np.ndarray[Any, np.dtype[Any]]
LARGE = 700  # coefficients, above which step 2 is tried before step 1
LARGEST = 6000  # coefficients, above which a Hessian of all classes is not formed
LARGEST_QR = 2e11  # flops of step 3
CG_STEPS = 300
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
    gradient: Array  # (m, d + 1)
    decrement: float  # g' H^-1 g / 2, the distance to the optimum that the last Newton model saw
    n_iter: int
    trusted: bool  # the decrement is that of the Hessian, not of one made positive definite


class Rows:
    """The rows of one set; where they are fewer than the features, with a basis of what they span.

    A : float64 (n, d); y : int (n,), 0..n_classes-1; weights : float64 (n,), > 0
    """

    def __init__(self, A: Array, y: Array, weights: Array, *, n_classes: int) -> None:
        n, d = A.shape
        self.A, self.y, self.weights, self.n_classes = A, y, weights, n_classes
        self.outputs = 1 if n_classes == 2 else n_classes
        # (d, n); without it the columns keep their own scales, which small problems can afford
        reduce = n < d and self.outputs * (d + 1) > LARGE
        self.basis = np.linalg.qr(A.T)[0] if reduce else None
        reduced = A if self.basis is None else A @ self.basis
        self.reduced = np.concatenate([reduced, np.ones((n, 1))], axis=1)
        self.wrong = np.ones((n, n_classes), dtype=bool)
        self.wrong[np.arange(n), y] = False

    def scores(self, theta: Array) -> Array:
        """(n, K); of two classes the first has 0."""
        z = self.A @ theta[:, :-1].T + theta[:, -1]
        return np.concatenate([np.zeros_like(z), z], axis=1) if self.outputs == 1 else z

    def value(self, theta: Array, lam: float) -> float:
        """The objective, exact in relative terms: log(1 + sum of exp of the wrong classes' leads)."""
        z = self.scores(theta)
        lead = np.where(self.wrong, z - z[~self.wrong][:, None], -np.inf)
        top = np.maximum(lead.max(axis=1), 0)
        rest = np.exp(lead - top[:, None]).sum(axis=1)
        loss = top + np.log1p(rest + np.expm1(-top))
        return float(self.weights @ loss + lam / 2 * np.sum(theta[:, :-1] ** 2))

    def gradient(self, theta: Array, lam: float) -> tuple[Array, Array]:
        """(m, d + 1), and the probabilities (n, K)."""
        z = self.scores(theta)
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        residual = np.where(self.wrong, p, 0)
        residual[~self.wrong] = -residual.sum(axis=1)  # p - 1 without cancellation
        residual = (residual * self.weights[:, None])[:, -self.outputs :]
        g = np.concatenate([residual.T @ self.A, residual.sum(axis=0)[:, None]], axis=1)
        g[:, :-1] += lam * theta[:, :-1]
        return g, p

    def step(self, theta: Array, g: Array, p: Array, lam: float) -> tuple[Array, bool]:
        """-H^-1 g (m, d + 1), and whether it is to be trusted.

        Outside the span of the rows H is lam and g is lam theta: the step there is -theta.
        """
        system = _System(self.reduced, self.weights, p, lam)
        if self.basis is None:
            return -system.solve(g), system.trusted
        inside = g[:, :-1] @ self.basis
        outside = theta[:, :-1] - (theta[:, :-1] @ self.basis) @ self.basis.T
        inner = np.concatenate([inside, g[:, -1:]], axis=1)
        d = -system.solve(inner)
        step = np.concatenate([d[:, :-1] @ self.basis.T - outside, d[:, -1:]], axis=1)
        return step, system.trusted


def solve(rows: Rows, lam: float, starts: list[Array], *, tol: float) -> NewtonFit:
    """Minimise the objective from the best of `starts` (m, d + 1); where that is too far off, along the path
    of penalties: from one so strong that the coefficients are nearly 0 down to lam, a tenth at a time.

    tol : stop when the Newton decrement is below tol * objective
    """
    values = [rows.value(theta, lam) for theta in starts]
    start = starts[int(np.argmin(np.nan_to_num(values, nan=np.inf)))]
    fit = newton(rows, lam, start=start, tol=tol, max_iter=QUICK)
    if fit.decrement <= max(tol, FLOAT64) * fit.objective:
        return fit
    steps, theta = fit.n_iter, np.zeros_like(start)
    strongest = float(rows.weights @ np.sum(rows.A**2, axis=1)) / 4
    for k in range(int(np.ceil(np.log10(max(strongest / lam, 1)))), 0, -1):
        part = newton(rows, lam * 10.0**k, start=theta, tol=ON_THE_WAY, max_iter=STEPS)
        theta, steps = part.theta, steps + part.n_iter
    last = newton(rows, lam, start=theta, tol=tol, max_iter=STEPS)
    better = last if last.objective <= fit.objective * (1 + 1e-12) else fit
    return replace(better, n_iter=steps + last.n_iter)


def newton(rows: Rows, lam: float, *, start: Array, tol: float, max_iter: int = STEPS) -> NewtonFit:
    """Newton steps from start (m, d + 1) until the decrement is below tol * objective, or stops falling."""
    theta = start.astype(float)
    g, p = rows.gradient(theta, lam)
    f, best, k, idle = rows.value(theta, lam), (np.inf, np.inf), 0, 0
    while True:
        step, trusted = rows.step(theta, g, p, lam)
        slope = float(np.sum(g * step))
        decrement = -slope / 2
        if not decrement >= 0:  # rounding: not a way down, and no measure of what is left
            decrement, trusted = np.inf, False
            break
        idle = 0 if decrement < 0.5 * best[0] or f < (1 - 1e-3) * best[1] else idle + 1
        best = min(best[0], decrement), min(best[1], f)
        if decrement <= tol * f or k == max_iter:
            break
        if idle > (IDLE if decrement <= FLOAT64 * f else 5 * IDLE):
            break
        moved = _line_search(rows, lam, theta, step, f, slope)
        if moved is None:
            break
        theta, f, g, p = moved
        k += 1
    return NewtonFit(theta, f, g, decrement, k, trusted)


def _line_search(
    rows: Rows, lam: float, theta: Array, step: Array, f: float, slope: float
) -> tuple[Array, float, Array, Array] | None:
    """The point on theta + t step where the slope is a third of what it was: point, value, gradient and
    probabilities; None where there is none in sight. The slope grows with t (convex): its zero is bracketed.
    """
    farthest = float(np.abs(rows.scores(step)).max())
    # where all probabilities are 0 or 1 the Hessian says nothing
    low, high, at_low, at_high, t = 0.0, np.inf, slope, np.inf, min(1.0, FAR / max(farthest, 1e-300))
    shortest = SHORTEST * t
    for _ in range(60):
        trial = theta + t * step
        g, p = rows.gradient(trial, lam)
        there = float(np.sum(g * step))
        value = rows.value(trial, lam)
        # at a kink the slope may be small behind the minimum already, and the value be larger than before
        if abs(there) <= -slope / 3 and value <= f * (1 + 1e-12):
            return trial, value, g, p
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

    def __init__(self, X: Array, weights: Array, p: Array, lam: float) -> None:
        self.X, self.weights, self.lam = X, weights, lam
        K = p.shape[1]
        self.D = X.shape[1]
        self.p = p[:, 1:] if K == 2 else p
        self.m = self.p.shape[1]
        # p (1 - p) without cancellation
        self.rest = p[:, :1] if K == 2 else _others(p)
        self.own = weights[:, None] * self.p * self.rest
        self.ridge = np.full(self.D, lam)
        self.ridge[-1] = 0
        square = X**2
        diagonal = self.own.T @ square + self.ridge
        self.pin = float(diagonal[:, -1].sum()) / self.m**2 if self.m > 1 else 0.0
        diagonal[:, -1] += max(self.pin, 1e-290)
        self.scale = 1 / np.sqrt(np.maximum(diagonal, 1e-290))
        self.trusted = True  # the last solve was with this Hessian

    def solve(self, g: Array) -> Array:
        """H^-1 g for g (m, D)."""
        b = g * self.scale
        size = b.size
        if self.m > 1 and size > LARGE:
            x, self.trusted = self._conjugate_gradients(b)
            if self.trusted or size > LARGEST:
                return x * self.scale
        qr_flops = 2 * (len(self.X) * self.m + size) * size**2
        x = self._cholesky(b, anyhow=qr_flops > LARGEST_QR)
        return (self._least_squares(b) if x is None else x) * self.scale

    def times(self, x: Array) -> Array:
        """The scaled Hessian times x (m, D)."""
        u = x * self.scale
        z = self.X @ u.T
        t = self.own * z
        if self.m > 1:
            z = z - np.sum(self.p * z, axis=1, keepdims=True)
            t = self.weights[:, None] * self.p * z
        out = t.T @ self.X + self.ridge * u
        out[:, -1] += self.pin * u[:, -1].sum()
        return out * self.scale

    def _cholesky(self, b: Array, *, anyhow: bool) -> Array | None:
        """None where H is badly conditioned; `anyhow`: then with a larger diagonal, not to be trusted."""
        m, D = self.m, self.D
        H = np.empty((m, D, m, D))
        for k in range(m):
            for j in range(k, m):
                w = self.own[:, k] if j == k else -self.weights * self.p[:, k] * self.p[:, j]
                block = (self.X * w[:, None]).T @ self.X * (self.scale[k][:, None] * self.scale[j])
                H[k, :, j], H[j, :, k] = block, block.T
        for k in range(m):
            H[k, range(D), k, range(D)] += self.ridge * self.scale[k] ** 2
        H[:, -1, :, -1] += self.pin * self.scale[:, -1, None] * self.scale[:, -1]
        H = H.reshape(m * D, m * D)
        diagonal, ridge = np.diag_indices(m * D), 0.0
        while True:
            try:
                factor = scipy.linalg.cho_factor(H, lower=True, check_finite=False)
                good = np.diag(factor[0]).min() ** 2 >= WELL_CONDITIONED
            except np.linalg.LinAlgError:
                good = False
            else:
                if good or anyhow:
                    self.trusted = good
                    return scipy.linalg.cho_solve(factor, b.ravel(), check_finite=False).reshape(m, D)
            if not anyhow:
                return None
            H[diagonal] += 9 * ridge + 1e-14
            ridge = 10 * ridge + 1e-14

    def _conjugate_gradients(self, b: Array) -> tuple[Array, bool]:
        """x and whether it is done: its last steps added little."""
        solvers = []
        for k in range(self.m):
            H = (self.X * self.own[:, k, None]).T @ self.X * (self.scale[k][:, None] * self.scale[k])
            H[range(self.D), range(self.D)] += self.ridge * self.scale[k] ** 2 + 1e-10
            solvers.append(scipy.linalg.cho_factor(H, lower=True, check_finite=False))

        def precondition(r: Array) -> Array:
            return np.stack(
                [
                    scipy.linalg.cho_solve(f, row, check_finite=False)
                    for f, row in zip(solvers, r, strict=True)
                ]
            )

        x, r = np.zeros_like(b), b.copy()
        z = precondition(r)
        direction, rz = z, float(np.sum(r * z))
        first, gain, late = rz, 0.0, []
        for _ in range(CG_STEPS):
            if rz <= 1e-300:
                return x, True
            Hd = self.times(direction)
            alpha = rz / float(np.sum(direction * Hd))
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
        m, D, n = self.m, self.D, len(self.X)
        if m == 1:
            J = (self.X * np.sqrt(self.own) * self.scale[0])[None]
            J = J.reshape(n, D)
        else:
            # diag(p) - p p' = S' S with S = diag(p)^1/2 (1 - 1 p')
            root = np.sqrt(self.weights[:, None] * self.p)
            J = np.empty((n, m, m, D))
            for k in range(m):
                for j in range(m):
                    rest = self.rest[:, k] if j == k else -self.p[:, j]
                    J[:, k, j] = self.X * (root[:, k] * rest)[:, None] * self.scale[j]
            J = J.reshape(n * m, m * D)
        ridge = np.diag((np.sqrt(self.ridge) * self.scale).ravel())
        pin = np.zeros((1, m, D))
        pin[0, :, -1] = np.sqrt(self.pin) * self.scale[:, -1]
        J = np.concatenate([J, ridge, pin.reshape(1, -1)])
        qr: Any = scipy.linalg.qr  # its stub knows no pivoting
        R, order = qr(J, mode="r", pivoting=True, check_finite=False, overwrite_a=True)
        R = R[: m * D]
        diagonal = np.abs(np.diag(R))
        R[np.diag_indices(m * D)] = np.where(diagonal > 1e-290, np.diag(R), np.inf)
        flat = b.ravel()[order]
        inner = scipy.linalg.solve_triangular(R, flat, trans=1, check_finite=False)
        x = np.empty(m * D)
        x[order] = scipy.linalg.solve_triangular(R, inner, check_finite=False)
        return x.reshape(m, D)

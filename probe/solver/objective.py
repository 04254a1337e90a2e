"""Loss and gradient of many problems in one pass over the rows: two matrix products a block of rows.

A problem is a set of rows (its weights v, its standardisation) and a strength. In the set's standardised
units, with the intercept as the last, unpenalised entry of theta,

    f(theta) = sum_i v_i * logloss_i + lam/2 * |w|^2,        lam = 1/C.

Two evaluations:

`gradients`  float32 products, for the descent. It returns no loss but `sum_i v_i q_i + lam/2 |w|^2`, where
    q_i is the probability of the wrong class: a lower bound of f within a factor 1.4 where q <= 1/2. Descent
    and stopping need no more (see lbfgs.py), it costs no logarithm, and a float32 *gradient* is good to a
    relative gap of 1e-10 or so while a float32 loss is good to 1e-7 only.
`exact`      float64 from X as given, the intercept first moved to its optimum for the given w.
"""

# pyright: reportConstantRedefinition=false, reportMissingTypeStubs=false

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import joblib
import numpy as np
import scipy.linalg.blas

from .design import Design, Segment

blas: Any = scipy.linalg.blas  # has no types
Array = np.ndarray[Any, np.dtype[Any]]
BLOCK_BYTES = 2**20  # scores of one block: they stay in the L2 cache between the two products
PROFILE_STEPS = 50
EVEN = 8  # products of 15 columns take twice the time of 16
NARROW = 16  # columns, up to which a product is best made in pieces small enough for
PIECE = 990_000  # multiplications: there OpenBLAS (AVX-512) reads the rows where they are, without packing
SAFE = 60  # scores up to this size: exp neither overflows nor vanishes in float32
EPS = np.finfo(np.float64).eps
PROFILE_BYTES = 2**21  # of them for which the intercepts are sought at once
EXACT_BYTES = 2**27  # float64 scores kept between the two passes of `exact`


@dataclass
class Evaluation:
    """value (P,), gradient (P, m, d + 1), curvature (P, m, m): sum_i v_i (diag(p_i) - p_i p_i'), the scale
    of the Hessian; with two classes sum_i v_i p_i (1 - p_i).

    `exact` adds theta (the intercept moved) and gap (P,), an upper bound of value - optimum, see `certified`.
    """

    value: Array
    gradient: Array
    curvature: Array
    theta: Array | None = None
    gap: Array | None = None


NUMBERS_A_THREAD = (
    4_000_000  # (2894, 768): a second thread takes 15 % more CPU time for 10 % less by the clock
)


class Objective:
    """The problems (sets[p], lam[p]) over one design. Methods take the problems' numbers `ids` (P,)."""

    def __init__(self, design: Design, sets: Array, lam: Array, *, threads: int = 1) -> None:
        self.design, self.sets, self.lam, self.threads = design, sets, lam, threads
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def close(self) -> None:
        if self._pool:
            self._pool.shutdown()

    def share(self, work: Callable[[Any], Any], parts: Sequence[Any]) -> list[Any]:
        """work(part) of every part, on the threads (the products and ufuncs of numpy release the lock).

        `work` must not share in turn: the threads would wait for each other without end.
        """

        def quiet(part: Any) -> Any:
            # exp of a large margin overflows: the loss is 0; what is not finite is dealt with by minimise
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                return work(part)

        if self._pool is None or len(parts) < 2:
            return [quiet(part) for part in parts]
        return list(self._pool.map(quiet, parts))

    # --- float32 ------------------------------------------------------------------------------------

    def gradients(self, ids: Array, theta: Array) -> Evaluation:
        """theta : float (P, m, d + 1). Returns a float32 gradient; value is the lower bound (see above)."""
        design, sets, lam = self.design, self.sets[ids], self.lam[ids]
        P, m, D = map(int, theta.shape)
        factor = design.factor32[sets][:, None]
        theta32 = theta.astype(np.float32)
        scaled = theta32 * factor
        rows = int(np.clip(BLOCK_BYTES // (4 * P * m), 128, 1024))
        blocks = list(design.blocks(rows))
        everything: Array = np.arange(P)

        def work(part: list[Segment]) -> tuple[Array, Array, Array]:
            G, value, curvature = np.zeros_like(scaled), np.zeros(P), np.zeros((P, m, m))
            columns: dict[int, tuple[Array, Array]] = {}
            for segment, members in _runs(part):
                active: Array = np.flatnonzero(segment.sets[sets])
                if not len(active):
                    continue
                if m == 1 and padded(len(active)) == padded(P):
                    active = everything  # the others have weight 0 there, and cost nothing
                whole = len(active) == P
                # rows x problems: the product of a block with a few columns that is fastest in BLAS
                if whole and P in columns:
                    U, of = columns[P]
                else:
                    U = as_columns((scaled if whole else scaled[active]).reshape(-1, D), even=m == 1)
                    of = np.resize(sets[active], U.shape[1] // m)
                    if whole:
                        columns[P] = U, of
                total, loss = np.zeros((U.shape[1], D), dtype=np.float32), np.zeros(len(of))
                curve = np.zeros((len(of), m, m))
                for lo, hi in members:
                    A = design.block(lo, hi)
                    Z = times(A, U)
                    v = np.take(design.weights32[lo:hi], of, axis=1)
                    if m == 1:
                        _residuals(Z, v, loss, curve)
                    else:
                        _residuals_softmax(Z.reshape(len(Z), -1, m), v, design.y[lo:hi], loss, curve)
                    total += times_transposed(Z, A)
                total = total[: len(active) * m].reshape(-1, m, D)
                if whole:
                    G += total
                    value += loss[:P]
                    curvature += curve[:P]
                else:
                    G[active] += total
                    value[active] += loss[: len(active)]
                    curvature[active] += curve[: len(active)]
            return G, value, curvature

        parts = self.share(work, _deal(blocks, self.threads))
        G, value, curvature = parts[0]
        for other in parts[1:]:
            G += other[0]
            value += other[1]
            curvature += other[2]
        G *= factor
        w = theta32[..., :-1]
        G[..., :-1] += lam.astype(np.float32)[:, None, None] * w
        value += lam / 2 * np.einsum("pmd,pmd->p", w, w)
        return Evaluation(value, G, curvature)

    def moments(self, ids: Array, theta: Array, curvature: Array) -> Array:
        """Second moments of the rows under the weights v p (1 - p) / h, the mean of problems and outputs.

        The problems share one set. float32 (d + 1, d + 1), rows in the set's units with a 1 behind; the lower
        triangle of the matrix, the other one is 0.
        """
        design, s = self.design, self.sets[ids[0]]
        P, m, D = theta.shape
        scaled = (theta.astype(np.float32) * design.factor32[s]).reshape(-1, D)
        share = 1 / np.maximum(np.einsum("pkk->pk", curvature), 1e-30) / (P * m)
        share = share.astype(np.float32)
        blocks = [block for block in design.blocks(1024) if block.sets[s]]

        def work(part: list[Segment]) -> Array:
            total = no_squares(D)
            for block in part:
                A = design.block(block.lo, block.hi)
                Z = (scaled @ A.T).reshape(P, m, -1)
                if m == 1:
                    np.exp(-np.abs(Z), out=Z)
                    Z /= np.square(1 + Z)
                else:
                    Z -= Z.max(axis=1, keepdims=True)
                    np.exp(Z, out=Z)
                    Z /= Z.sum(axis=1, keepdims=True)
                    Z *= 1 - Z
                root = np.sqrt(np.einsum("pmn,pm->n", Z, share) * design.weights32[block.lo : block.hi, s])
                total = add_squares(total, A * root[:, None])
            return total

        total = sum(self.share(work, _deal(blocks, self.threads)))
        total *= design.factor32[s]
        total *= design.factor32[s][:, None]
        return total

    # --- float64 ------------------------------------------------------------------------------------

    def exact(self, ids: Array, theta: Array) -> Evaluation:
        """theta : float64 (P, m, d + 1). Everything in float64, the intercepts at their optimum for w."""
        chunks = self.parts(len(theta))
        if len(chunks) == 1 and 2 * self.threads <= len(theta):
            chunks = np.array_split(chunks[0], self.threads)
        parts = self.share(lambda c: self.certified(ids[c], theta[c]), chunks)
        return Evaluation(
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("value", "gradient", "curvature", "theta", "gap")
            )
        )

    def parts(self, P: int) -> list[Array]:
        """Shares of the numbers 0..P-1 of problems that `certified` has the memory for."""
        share = max(1, int(EXACT_BYTES // (8 * self.design.n * self.design.outputs)))
        return np.array_split(np.arange(P), max(1, -(-P // share)))

    def certified(self, ids: Array, theta: Array) -> Evaluation:
        """The bound is a duality gap. For residuals r_i = v_i (p_i - onehot_i) of any p_i that are
        probabilities, with sum_i r_i = 0 (the intercepts are free),

            f(w, b) - min f  <=  sum_i v_i KL(p_i || softmax_i(w, b))  +  |lam w + sum_i r_i x_i|^2 / (2 lam).

        With the p of the point itself the first sum is 0 and the second term |df/dw|^2 / (2 lam). Where the
        intercepts are not quite at their optimum, the residuals of each class's rows are scaled by factors
        a <= 1 (p moves towards the label) so that they sum to 0; KL is convex, so that costs at most 1 - a of
        the class's loss, and moves the sum of r_i x_i by at most (1 - a) |r| sqrt(sum_i |x_i|^2).
        """
        design, sets, lam = self.design, self.sets[ids], self.lam[ids]
        P, m, D = theta.shape
        theta = theta.copy()
        factor = design.factor[sets][:, None]
        scaled = (theta * factor)[..., :-1]
        margin = np.zeros((P, m, design.n))  # without the intercept; of rows outside the set: 0
        blocks = list(design.blocks(min(1024, design.rows_at_once)))
        for block in blocks:
            active = np.flatnonzero(block.sets[sets])
            if len(active):
                A = design.block(block.lo, block.hi, np.float64)[:, :-1]
                margin[active, :, block.lo : block.hi] = (scaled[active].reshape(-1, D - 1) @ A.T).reshape(
                    len(active), m, -1
                )
        profile = _profile if m == 1 else _profile_softmax
        count = max(1, PROFILE_BYTES // (8 * m * design.n))
        at = _Profile.joined(
            [
                profile(
                    margin[k : k + count],
                    design.weights[sets[k : k + count]],
                    design,
                    theta[k : k + count, :, -1],
                )
                for k in range(0, P, count)
            ]
        )
        gradient = np.zeros_like(theta)
        for block in blocks:
            active = np.flatnonzero(block.sets[sets])
            if len(active):
                A = design.block(block.lo, block.hi, np.float64)[:, :-1]
                R = at.residual[active, :, block.lo : block.hi].reshape(-1, block.hi - block.lo)
                gradient[active, :, :-1] += (R @ A).reshape(len(active), m, -1)
        gradient *= factor
        gradient[..., :-1] += lam[:, None, None] * theta[..., :-1]
        gradient[..., -1] = at.gradient
        value = at.loss + lam / 2 * np.sum(theta[..., :-1] ** 2, axis=(1, 2))
        # |sum_i e_i x_i| <= |e| sqrt(sum_i |x_i|^2): of the rows' scaling, and of the residuals' rounding
        size = np.sqrt(np.einsum("pmn,pmn->p", at.residual, at.residual))
        top = np.maximum(margin.max(axis=(1, 2)), -margin.min(axis=(1, 2)))
        error = (at.shift + EPS * (8 + top) * size) * np.sqrt(design.spread[sets])
        g_w = np.linalg.norm(gradient[..., :-1], axis=(1, 2))
        gap = at.slack + 16 * EPS * value + (g_w + error) ** 2 / (2 * lam)
        # the objective is never negative; a point that is not finite has no other bound
        gap = np.where(np.isfinite(value), np.fmin(gap, value), np.inf)
        return Evaluation(value, gradient, at.curvature, theta, gap)


def padded(count: int) -> int:
    """Columns that a product of `count` columns is made with."""
    return count + (-count % (EVEN if count > NARROW else EVEN // 2) if count > 1 else 0)


def as_columns(rows: Array, *, even: bool = True) -> Array:
    """rows (P, D) of float32 as the columns of a matrix (D, P'), P' = padded(P) if `even`."""
    columns = np.zeros((rows.shape[1], padded(len(rows)) if even else len(rows)), dtype=np.float32)
    columns[:, : len(rows)] = rows.T
    return columns


def no_squares(D: int) -> Array:
    """Zeros (D, D) for `add_squares`."""
    return np.zeros((D, D), dtype=np.float32, order="F")


def add_squares(total: Array, B: Array) -> Array:
    """total + B' B for B (n, D) float32, in place; the lower triangle only."""
    return blas.ssyrk(1, B.T, beta=1, c=total, overwrite_c=True, lower=True)


def times(A: Array, U: Array) -> Array:
    """A (n, D) @ U (D, P), float32."""
    out = np.empty((len(A), U.shape[1]), dtype=np.float32)
    for piece in _pieces(len(A), U.shape[1], len(U)):
        np.matmul(A[piece], U, out=out[piece])
    return out


def times_transposed(Z: Array, A: Array) -> Array:
    """Z' A (P, D) for Z (n, P) and A (n, D), float32."""
    total = np.zeros((Z.shape[1], A.shape[1]), dtype=np.float32)
    for piece in _pieces(len(A), *total.shape):
        total += Z[piece].T @ A[piece]
    return total


def _pieces(rows: int, columns: int, D: int) -> list[slice]:
    """The rows of a product with `columns` columns and an inner or outer dimension D, see NARROW."""
    step = max(8, PIECE // (columns * D)) if columns <= NARROW else rows
    return [slice(lo, lo + step) for lo in range(0, rows, step)]


def default_threads(numbers: int) -> int:
    """The cores of this process, fewer where OMP_NUM_THREADS or OPENBLAS_NUM_THREADS say so (joblib does), or
    where the features are so few numbers (n d) that the threads would mostly wait for each other.
    """
    threads = joblib.cpu_count()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        if os.environ.get(name, "").isdigit():
            threads = min(threads, max(1, int(os.environ[name])))
    return min(threads, max(1, round(numbers / NUMBERS_A_THREAD)))


def _deal(blocks: list[Segment], threads: int) -> list[list[Segment]]:
    """Consecutive shares of about the same number of rows."""
    if threads == 1 or len(blocks) < 2:
        return [blocks]
    work = np.cumsum([(b.hi - b.lo) * b.sets.sum() for b in blocks])
    share = np.minimum((work - work[0] / 2) * threads // max(work[-1], 1), threads - 1)
    return [
        part for t in range(threads) if (part := [b for b, s in zip(blocks, share, strict=True) if s == t])
    ]


def _runs(blocks: list[Segment]) -> list[tuple[Segment, list[tuple[int, int]]]]:
    """Blocks that share their sets, together: their problems' coefficients are gathered once."""
    runs: list[tuple[Segment, list[tuple[int, int]]]] = []
    for block in blocks:
        if not runs or not np.array_equal(runs[-1][0].sets, block.sets):
            runs.append((block, []))
        runs[-1][1].append((block.lo, block.hi))
    return runs


def _residuals(Z: Array, v: Array, loss: Array, curve: Array) -> None:
    """Margins Z (rows, P) become -v q, with q = 1 / (1 + exp(margin)) the wrong class's probability.

    Adds sum v q to loss (P,) and sum v q (1 - q) to curve (P, 1, 1). exp may overflow: then q = 0.
    """
    np.exp(Z, out=Z)
    Z += 1
    np.reciprocal(Z, out=Z)
    v *= Z
    mass = v.sum(axis=0)
    loss += mass
    curve[:, 0, 0] += mass - np.einsum("np,np->p", v, Z)
    np.negative(v, out=Z)


def _residuals_softmax(Z: Array, v: Array, y: Array, loss: Array, curve: Array) -> None:
    """Scores Z (rows, P, K) become v (p - onehot(y)); adds as `_residuals` does, curve (P, K, K)."""
    if not (Z.max() < SAFE and Z.min() > -SAFE):  # the maximum of each row takes far longer
        Z -= Z.max(axis=2, keepdims=True)
    np.exp(Z, out=Z)
    Z /= (Z.reshape(-1, Z.shape[2]) @ np.ones(Z.shape[2], Z.dtype)).reshape(*Z.shape[:2], 1)
    probability = Z.copy()
    Z *= v[:, :, None]
    curve -= np.matmul(Z.transpose(1, 2, 0), probability.transpose(1, 0, 2))
    curve[:, range(Z.shape[2]), range(Z.shape[2])] += Z.sum(axis=0)
    rows = np.arange(len(y))
    loss += (v - Z[rows, :, y]).sum(axis=0)
    Z[rows, :, y] -= v


@dataclass
class _Profile:
    """Losses at the best intercepts for given scores, and how far these are from balance.

    loss (P,), residual (P, m, n), curvature (P, m, m), gradient (P, m): what is left in the intercepts
    slack (P,), shift (P,): what scaling the residuals to a dual feasible point costs, see `certified`
    """

    loss: Array
    residual: Array
    curvature: Array
    gradient: Array
    slack: Array
    shift: Array

    @classmethod
    def joined(cls, parts: "list[_Profile]") -> "_Profile":
        return cls(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(cls)))


def _profile(margin: Array, v: Array, design: Design, b: Array) -> _Profile:
    """Newton on the intercepts b (P, 1), in place. margin (P, 1, n) = sign * (x @ w), v (P, n)."""
    sign, margin = design.sign, margin[:, 0]
    total = v.sum(axis=1)
    step = 0
    while True:
        q = margin + sign * b
        np.exp(q, out=q)
        q += 1
        np.reciprocal(q, out=q)
        vq = v * q
        g = -(vq @ sign)
        h = vq.sum(axis=1) - np.einsum("pn,pn->p", vq, q)
        if (np.abs(g) <= 1e-13 * total).all() or step == PROFILE_STEPS:
            break
        b[:, 0] -= np.clip(g / np.maximum(h, 1e-300), -1, 1) * (np.abs(g) > 1e-13 * total)
        step += 1
    z = margin + sign * b
    each = np.log1p(np.exp(-np.abs(z))) - np.minimum(z, 0)
    loss = np.einsum("pn,pn->p", v, each)
    heavier = (vq.sum(axis=1) + np.abs(g)) / 2  # the mass of the class that has more of it
    scaled = np.divide(np.abs(g), heavier, out=np.zeros_like(g), where=heavier > 0)
    size = np.sqrt(np.einsum("pn,pn->p", vq, vq))
    return _Profile(loss, -vq[:, None], h[:, None, None], g[:, None], scaled * loss, scaled * size)


def _profile_softmax(margin: Array, v: Array, design: Design, b: Array) -> _Profile:
    """The same for K classes: margin (P, K, n), b (P, K); residuals v (p - onehot), curvature (P, K, K)."""
    P, K, n = map(int, margin.shape)
    y, rows = design.y, np.arange(n)
    target = y == np.arange(K)[:, None]
    total = v.sum(axis=1)[:, None]
    b -= b.mean(axis=1, keepdims=True)  # adding one number to every intercept changes nothing
    step, least = np.zeros((P, K)), np.full(P, np.inf)
    count = 0
    while True:
        p = margin + b[:, :, None]
        p -= p.max(axis=1, keepdims=True)
        np.exp(p, out=p)
        p /= p.sum(axis=1, keepdims=True)
        vp = v[:, None] * p
        off = np.where(target, 0, vp)
        residual = off.copy()
        residual[:, y, rows] = -off.sum(axis=1)  # v (p - 1) without cancellation
        g = residual.sum(axis=2)
        H = -(vp @ p.transpose(0, 2, 1))
        H[:, range(K), range(K)] = 0
        H[:, range(K), range(K)] = -H.sum(axis=2)
        norm = np.abs(g).max(axis=1)
        if (norm <= 1e-13 * total[:, 0]).all() or count == PROFILE_STEPS:
            break
        # a step that made it worse is taken back by three quarters, and tried again
        worse = ~(norm <= 2 * least)[:, None]
        # with a diagonal of 1; the step that changes nothing, H 1 = 0, gets a curvature of 1
        scale = 1 / np.sqrt(np.maximum(np.einsum("pkk->pk", H), 1e-290))
        idle = 1 / (scale * np.linalg.norm(1 / scale, axis=1, keepdims=True))
        scaled = H * (scale[:, :, None] * scale[:, None]) + idle[:, :, None] * idle[:, None]
        values, vectors = np.linalg.eigh(np.nan_to_num(scaled))
        turned = np.einsum("pka,pk->pa", vectors, np.nan_to_num(g) * scale)
        new = -scale * np.einsum("pka,pa->pk", vectors, turned / np.maximum(values, 1e-14))
        new = np.clip(new, -1, 1)
        b += np.where(worse, -0.75 * step, new)
        step = np.where(worse, 0.25 * step, new)
        least = np.fmin(least, norm)
        count += 1
    lead = margin + b[:, :, None]
    lead -= lead[:, y, rows][:, None]  # over the true class
    lead[:, y, rows] = -np.inf
    top = np.maximum(lead.max(axis=1), 0)
    rest = np.exp(lead - top[:, None]).sum(axis=1)
    each = top + np.log1p(rest + np.expm1(-top))
    by_class = (v * each) @ target.T
    flow = np.einsum("pjn,cn->pcj", off, target.astype(np.float64))
    size = np.sqrt(np.einsum("pkn,cn->pc", residual**2, target.astype(np.float64)))
    scaled = 1 - _balance(flow)
    slack, shift = (scaled * by_class).sum(axis=1), (scaled * size).sum(axis=1)
    return _Profile(by_class.sum(axis=1), residual, H, g, slack, shift)


def _balance(flow: Array) -> Array:
    """Factors (P, K) in 0..1 of the classes' rows, after which every class loses what it gets.

    flow (P, K, K): sum of v p_j over the rows of class c, 0 for j = c. The factors are the stationary
    distribution of the chain with these rates, by elimination without subtractions (Grassmann, Taksar,
    Heyman 1985, Oper. Res. 33); 0 where there is none.
    """
    P, K, _ = flow.shape
    rates, factors = flow.copy(), np.zeros((P, K))
    with np.errstate(all="ignore"):
        for k in range(K - 1, 0, -1):
            rates[:, :k, k] /= rates[:, k, :k].sum(axis=1, keepdims=True)
            rates[:, :k, :k] += rates[:, :k, k, None] * rates[:, k, None, :k]
        factors[:, 0] = 1
        for k in range(1, K):
            factors[:, k] = np.einsum("pj,pj->p", factors[:, :k], rates[:, :k, k])
        factors /= factors.max(axis=1, keepdims=True)
    factors[~np.isfinite(factors).all(axis=1)] = 0
    return factors

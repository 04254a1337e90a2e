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

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from .design import Design, Segment

Array = np.ndarray[Any, np.dtype[Any]]
BLOCK_BYTES = 2**20  # scores of one block: they stay in the L2 cache between the two products
PROFILE_STEPS = 50
EXACT_BYTES = 2**27  # float64 scores kept between the two passes of `exact`


@dataclass
class Evaluation:
    """value (P,), gradient (P, m, d + 1), curvature (P, m, m): sum_i v_i (diag(p_i) - p_i p_i'), the scale
    of the Hessian; with two classes sum_i v_i p_i (1 - p_i).

    `exact` adds theta (the intercept moved) and gap (P,), an upper bound of value - optimum.
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

        `work` must not share in turn: the threads would wait for each other for ever.
        """

        def quiet(part: Any) -> Any:
            with np.errstate(over="ignore"):  # exp of a large margin: the loss is 0
                return work(part)

        if self._pool is None or len(parts) < 2:
            return [quiet(part) for part in parts]
        return list(self._pool.map(quiet, parts))

    # --- float32 ------------------------------------------------------------------------------------

    def gradients(self, ids: Array, theta: Array) -> Evaluation:
        """theta : float (P, m, d + 1). Returns a float32 gradient; value is the lower bound (see above)."""
        design, sets, lam = self.design, self.sets[ids], self.lam[ids]
        P, m, D = theta.shape
        factor = design.factor32[sets][:, None]
        theta32 = theta.astype(np.float32)
        scaled = theta32 * factor
        rows = int(np.clip(BLOCK_BYTES // (4 * P * m), 128, 1024))
        blocks = list(design.blocks(rows))

        def work(part: list[Segment]) -> tuple[Array, Array, Array]:
            G, value, curvature = np.zeros_like(scaled), np.zeros(P), np.zeros((P, m, m))
            for segment, members in _runs(part):
                active = np.flatnonzero(segment.sets[sets])
                if not len(active):
                    continue
                # rows x problems: the product of a block with a few columns that is fastest in BLAS
                U = np.ascontiguousarray((scaled if len(active) == P else scaled[active]).reshape(-1, D).T)
                of = sets[active]
                total, loss = np.zeros((U.shape[1], D), dtype=np.float32), np.zeros(len(active))
                curve = np.zeros((len(active), m, m))
                for lo, hi in members:
                    A = design.block(lo, hi)
                    Z = A @ U
                    v = np.take(design.weights32[lo:hi], of, axis=1)
                    if m == 1:
                        _residuals(Z, v, loss, curve)
                    else:
                        _residuals_softmax(Z.reshape(len(Z), -1, m), v, design.y[lo:hi], loss, curve)
                    total += Z.T @ A
                if len(active) == P:
                    G += total.reshape(G.shape)
                    value += loss
                    curvature += curve
                else:
                    G[active] += total.reshape(-1, m, D)
                    value[active] += loss
                    curvature[active] += curve
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
        """Second moments of the rows under the weights v p (1 - p) / h, an output each; the problems' mean.

        The problems share one set. float32 (m, d + 1, d + 1), rows in the set's units with a 1 behind.
        """
        design, s = self.design, self.sets[ids[0]]
        P, m, D = theta.shape
        scaled = (theta.astype(np.float32) * design.factor32[s]).reshape(-1, D)
        share = 1 / np.maximum(np.einsum("pkk->pk", curvature), 1e-30) / P
        share = share.astype(np.float32)
        blocks = [block for block in design.blocks(1024) if block.sets[s]]

        def work(part: list[Segment]) -> Array:
            total = np.zeros((m, D, D), dtype=np.float32)
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
                root = np.sqrt(np.einsum("pmn,pm->mn", Z, share) * design.weights32[block.lo : block.hi, s])
                for k in range(m):
                    B = A * root[k, :, None]
                    total[k] += B.T @ B
            return total

        total = sum(self.share(work, _deal(blocks, self.threads)))
        return total * (design.factor32[s][:, None] * design.factor32[s])

    # --- float64 ------------------------------------------------------------------------------------

    def exact(self, ids: Array, theta: Array) -> Evaluation:
        """theta : float64 (P, m, d + 1). Everything in float64, the intercepts at their optimum for w."""
        P, m, _ = theta.shape
        share = max(1, int(EXACT_BYTES // (8 * self.design.n * m)))
        count = -(-P // share)
        if count == 1 and 2 * self.threads <= P:
            count = self.threads
        chunks = [c for c in np.array_split(np.arange(P), count) if len(c)]
        parts = self.share(lambda c: self._exact(ids[c], theta[c]), chunks)
        return Evaluation(
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("value", "gradient", "curvature", "theta", "gap")
            )
        )

    def _exact(self, ids: Array, theta: Array) -> Evaluation:
        design, sets, lam = self.design, self.sets[ids], self.lam[ids]
        P, m, D = theta.shape
        theta = theta.copy()
        factor = design.factor[sets][:, None]
        scaled = (theta * factor)[..., :-1]
        margin = np.zeros((P, m, design.n))  # without the intercept; of rows outside the set: 0
        blocks = list(design.blocks(1024))
        for block in blocks:
            active = np.flatnonzero(block.sets[sets])
            if len(active):
                A = design.block(block.lo, block.hi, np.float64)[:, :-1]
                margin[active, :, block.lo : block.hi] = (scaled[active].reshape(-1, D - 1) @ A.T).reshape(
                    len(active), m, -1
                )
        v = design.weights[sets]
        if m == 1:
            loss, residual, curvature, leftover = _profile(margin[:, 0], v, design.sign, theta[:, 0, -1])
            residual, leftover = residual[:, None], leftover[:, None]
            curvature = curvature[:, None, None]
        else:
            loss, residual, curvature, leftover = _profile_softmax(margin, v, design.y, theta[:, :, -1])
        gradient = np.zeros_like(theta)
        for block in blocks:
            active = np.flatnonzero(block.sets[sets])
            if len(active):
                A = design.block(block.lo, block.hi, np.float64)[:, :-1]
                R = residual[active, :, block.lo : block.hi].reshape(-1, block.hi - block.lo)
                gradient[active, :, :-1] += (R @ A).reshape(len(active), m, -1)
        gradient *= factor
        gradient[..., :-1] += lam[:, None, None] * theta[..., :-1]
        gradient[..., -1] = leftover
        value = loss + lam / 2 * np.sum(theta[..., :-1] ** 2, axis=(1, 2))
        return Evaluation(value, gradient, curvature, theta, self._gap(ids, gradient, curvature))

    def _gap(self, ids: Array, gradient: Array, curvature: Array) -> Array:
        """Upper bound of f(w, b) - min f.

        Let phi(w) = min_b f(w, b); it is lam-strongly convex, so phi(w) - min <= |grad phi|^2 / (2 lam)
        (this is the duality gap at the dual point of the residuals). If the intercept's gradient g_b is not
        quite 0, its optimum is at most delta away, where the curvature h falls by exp(-delta) at most
        (|d log s'(z) / dz| <= 1 for the logistic s): delta <= -log(1 - |g_b| / h). On the way f falls by
        |g_b| delta at most and the gradient in w moves by at most delta * sum_i v_i/4 |x_i|.
        With K > 2 classes h is the least curvature among the intercepts, halved: g_b is below 1e-10
        there, and the halving covers more than such a step can change.
        """
        design, sets, lam = self.design, self.sets[ids], self.lam[ids]
        g_b = np.linalg.norm(gradient[..., -1], axis=1)
        h = curvature[:, 0, 0]
        if gradient.shape[1] > 1:
            h = np.linalg.eigvalsh(curvature)[:, 1] / 2  # the first is 0: the same change of every intercept
        with np.errstate(divide="ignore", invalid="ignore"):
            delta = np.where(g_b == 0, 0.0, -np.log1p(-np.minimum(g_b / h, 1.0)))
        v = design.weights[sets]
        reach = v.max(axis=1) / 4 * np.sqrt((v > 0).sum(axis=1) * design.spread[sets])
        g_w = np.linalg.norm(gradient[..., :-1], axis=(1, 2))
        return g_b * delta + (g_w + delta * reach) ** 2 / (2 * lam)


def default_threads(numbers: int) -> int:
    """The cores of this process, fewer where OMP_NUM_THREADS or OPENBLAS_NUM_THREADS say so (joblib does), or
    where the features are so few numbers (n d) that the threads would mostly wait for each other."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        if os.environ.get(name, "").isdigit():
            cores = min(cores, max(1, int(os.environ[name])))
    return min(cores, max(1, round(numbers / NUMBERS_A_THREAD)))


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
    Z -= Z.max(axis=2, keepdims=True)
    np.exp(Z, out=Z)
    Z /= Z.sum(axis=2, keepdims=True)
    probability = Z.copy()
    Z *= v[:, :, None]
    curve -= np.matmul(Z.transpose(1, 2, 0), probability.transpose(1, 0, 2))
    curve[:, range(Z.shape[2]), range(Z.shape[2])] += Z.sum(axis=0)
    rows = np.arange(len(y))
    loss += (v - Z[rows, :, y]).sum(axis=0)
    Z[rows, :, y] -= v


def _profile(margin: Array, v: Array, sign: Array, b: Array) -> tuple[Array, Array, Array, Array]:
    """Newton on the intercepts b (P,), in place. margin (P, n) = sign * (x @ w).

    Returns sum v logloss (P,), residuals by the sign -v q (P, n), sum v q (1-q) (P,), the gradient left (P,).
    """
    total = v.sum(axis=1)
    step = 0
    while True:
        q = margin + sign * b[:, None]
        np.exp(q, out=q)
        q += 1
        np.reciprocal(q, out=q)
        vq = v * q
        g = -(vq @ sign)
        h = vq.sum(axis=1) - np.einsum("pn,pn->p", vq, q)
        if (np.abs(g) <= 1e-13 * total).all() or step == PROFILE_STEPS:
            break
        b -= np.clip(g / np.maximum(h, 1e-300), -1, 1) * (np.abs(g) > 1e-13 * total)
        step += 1
    z = margin + sign * b[:, None]
    loss = np.log1p(np.exp(-np.abs(z))) - np.minimum(z, 0)
    return np.einsum("pn,pn->p", v, loss), -vq, h, g


def _profile_softmax(margin: Array, v: Array, y: Array, b: Array) -> tuple[Array, Array, Array, Array]:
    """The same for K classes: margin (P, K, n), b (P, K); residuals v (p - onehot), curvature (P, K, K)."""
    _, K, n = margin.shape
    target = (y == np.arange(K)[:, None]).astype(np.float64)
    total = v.sum(axis=1)[:, None]
    pin = np.full((K, K), 1.0 / K)  # adding one number to every intercept changes nothing: pin their sum
    b -= b.mean(axis=1, keepdims=True)
    count = 0
    while True:
        p = margin + b[:, :, None]
        top = p.max(axis=1, keepdims=True)
        p -= top
        np.exp(p, out=p)
        norm = p.sum(axis=1, keepdims=True)
        p /= norm
        vp = v[:, None] * p
        residual = vp - v[:, None] * target
        g = residual.sum(axis=2)
        mass = vp.sum(axis=2)
        H = -(vp @ p.transpose(0, 2, 1))
        H[:, range(K), range(K)] += mass
        h = H.copy()
        if (np.abs(g) <= 1e-13 * total).all() or count == PROFILE_STEPS:
            break
        step = np.linalg.solve(H + pin * mass.sum(axis=1)[:, None, None], g[:, :, None])[:, :, 0]
        b -= np.clip(step, -1, 1)
        count += 1
    z = margin + b[:, :, None] - top
    loss = np.log(norm[:, 0]) - z[:, y, np.arange(n)]
    return np.einsum("pn,pn->p", v, loss), residual, h, g

"""Random hard problems: does the solver crash, is a bound violated, is a status a lie?

    python tests/benchmarks/solver_torture.py                     # 2,000 problems
    python tests/benchmarks/solver_torture.py --problems 200 --first 5000 --verbose

A problem draws: 2-6 classes; fewer rows than features or more; a plain, decaying, low-rank, one-hot, sparse
or embedding-like (off-centre, collinear) matrix; constant, duplicated, shifted or scaled columns (1e-5..1e5);
labels at random, from a noisy linear model, or separable; weights of 1, over 8 orders of magnitude, or with
rows left out; three strengths in 1e-8..1e8; standardised by column, by one number or not; float16, 32 or 64.

The reference is written here, independent of the package: float64 trust-region Newton steps from an
eigendecomposition of the Hessian, on the data as given, started at zero and again at the solver's answer.
The optimum is the lowest objective that anyone found. Fails (exit 1) where the solver raises, where the true
gap exceeds the reported bound, where a status other than "capped" has a true gap above 1e-5, or where the
reported objective is not that of the coefficients.
"""

import argparse
import collections
import sys
import time
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.linalg
from patchbank.probe.solver.logistic import LogisticFits, fit_logistic

Array = np.ndarray[Any, np.dtype[Any]]
HONEST = 1e-5  # the largest true gap, relative to the objective, of what is not called capped
ROUNDING = 1e-12  # of float64 objectives, relative


@dataclass
class Problem:
    X: Array
    y: Array
    weights: Array  # (S, n)
    C: Array
    standardize: bool | Literal["overall"]
    words: str


def draw(seed: int) -> Problem:
    rng = np.random.default_rng(seed)
    K = int(rng.choice([2, 2, 2, 3, 4, 5, 6]))
    n = int(np.exp(rng.uniform(np.log(2 * K), np.log(160))))
    d = int(np.exp(rng.uniform(0, np.log(60 if K > 2 and n > 60 else 120))))
    kind = str(rng.choice(["plain", "decaying", "low rank", "one-hot", "sparse", "embedding"]))
    X = rng.standard_normal((n, d))
    if kind == "decaying":
        X *= np.arange(1, d + 1) ** -1.5
    elif kind == "low rank":
        r = int(rng.integers(1, d + 1))
        X = X[:, :r] @ rng.standard_normal((r, d))
    elif kind == "one-hot":
        X = np.eye(d)[rng.integers(0, d, n)]
    elif kind == "sparse":
        X *= rng.random((n, d)) < 0.1
    elif kind == "embedding":
        X = np.maximum(X @ rng.standard_normal((d, d)) / np.sqrt(d) + 3 * rng.standard_normal(d), 0)
    labels = str(rng.choice(["random", "linear", "separable"]))
    z = X @ rng.standard_normal((d, K))
    z = (z - z.mean(0)) / max(z.std(), 1e-30)
    if labels == "random":
        y = rng.integers(0, K, n)
    else:
        y = np.argmax(z + (labels == "linear") * 0.5 * rng.gumbel(size=(n, K)), axis=1)
    y[:K] = np.arange(K)
    columns = str(rng.choice(["as drawn", "scaled", "constant", "duplicated", "shifted"]))
    if columns == "scaled":
        X = X * 10.0 ** rng.uniform(-5, 5, d)
    elif columns == "constant":
        X[:, rng.random(d) < 0.3] = rng.choice([0.0, 1.0, 7.0])
    elif columns == "duplicated":
        X = X[:, rng.integers(0, d, d)] * rng.choice([1.0, -2.0], d)
    elif columns == "shifted":
        X = X + 10 * rng.standard_normal(d)
    dtype = rng.choice([np.float16, np.float32, np.float64])  # pyright: ignore
    X = np.clip(X, -6e4, 6e4).astype(dtype) if dtype == np.float16 else X.astype(dtype)
    S = int(rng.integers(1, 3))
    weighting = str(rng.choice(["equal", "orders", "folds"]))
    v = np.ones((S, n))
    if weighting == "orders":
        v = 10.0 ** rng.uniform(-4, 4, (S, n))
    elif weighting == "folds":
        v = rng.integers(0, 3, (S, n)).astype(float)
        v[:, :K] = 1
    C = np.sort(10.0 ** rng.uniform(-8, 8, 3))
    standardize: bool | Literal["overall"] = (True, False, "overall")[rng.integers(0, 3)]
    words = (
        f"K={K} n={n} d={d} {kind}, {labels} labels, columns {columns}, {dtype.__name__}, "
        f"weights {weighting}, standardize {standardize}"
    )
    return Problem(X, y, v, C, standardize, words)


# --- the reference ------------------------------------------------------------------------------------


def scores(theta: Array, A: Array) -> Array:
    """(n, K) of theta (m, d + 1), the first class at 0 where m is 1."""
    z = A @ theta.T
    return np.concatenate([np.zeros_like(z), z], axis=1) if z.shape[1] == 1 else z


def losses(z: Array, y: Array) -> Array:
    """log(1 + the other classes' exp of their lead over the true one), accurate where that is tiny."""
    lead = z - z[np.arange(len(y)), y][:, None]
    lead[np.arange(len(y)), y] = -np.inf
    top = np.maximum(lead.max(axis=1), 0)
    rest = np.exp(lead - top[:, None]).sum(axis=1)
    return np.where(top > 0, top + np.log(np.exp(-top) + rest), np.log1p(rest))


def objective(theta: Array, A: Array, y: Array, v: Array, lam: float) -> float:
    return float(v @ losses(scores(theta, A), y) + lam / 2 * np.sum(theta[:, :-1] ** 2))


def derivatives(theta: Array, A: Array, y: Array, v: Array, lam: float) -> tuple[Array, Array]:
    z = scores(theta, A)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    rows, K = np.arange(len(y)), p.shape[1]
    others = p.copy()
    others[rows, y] = 0
    residual = p.copy()
    residual[rows, y] = -others.sum(axis=1)  # p - 1 without cancellation
    m, D = theta.shape
    curve = -p[:, :, None] * p[:, None, :]
    for k in range(K):  # p (1 - p) without cancellation
        curve[:, k, k] = p[:, k] * np.delete(p, k, axis=1).sum(axis=1)
    residual, curve = residual[:, K - m :], curve[:, K - m :, K - m :]
    g = (v[:, None] * residual).T @ A
    g[:, :-1] += lam * theta[:, :-1]
    H = np.einsum("nab,ni,nj->aibj", v[:, None, None] * curve, A, A, optimize=True)
    for k in range(m):
        H[k, range(D - 1), k, range(D - 1)] += lam
    return g.ravel(), H.reshape(m * D, m * D)


def reference(
    A: Array, y: Array, v: Array, lam: float, start: Array, steps: int = 100
) -> tuple[Array, float]:
    """Trust-region Newton; the trust radius is in units of the Hessian's diagonal (columns of any scale)."""
    theta, f = start.copy(), objective(start, A, y, v, lam)
    m, D = theta.shape
    damping = 0.0
    for _ in range(steps):
        g, H = derivatives(theta, A, y, v, lam)
        scale = 1 / np.sqrt(np.maximum(np.diag(H), 1e-290))
        scaled = H * scale[:, None] * scale
        try:
            values, V = scipy.linalg.eigh(scaled, check_finite=False, driver="evd")
        except np.linalg.LinAlgError:  # divide and conquer gives up on a few matrices, QR iterations do not
            values, V = scipy.linalg.eigh(scaled, check_finite=False, driver="ev")
        values = np.maximum(values, 1e-16 * values[-1])
        inner = V.T @ (g * scale)
        moved = False
        for _ in range(60):
            step = (-scale * (V @ (inner / (values + damping)))).reshape(m, D)
            trial = objective(theta + step, A, y, v, lam)
            if trial < f:
                moved, gain = True, f - trial
                theta, f = theta + step, trial
                damping = damping / 10 if damping > 1e-14 else 0.0
                break
            damping = max(10 * damping, 1e-15)
        if not moved or gain <= 1e-15 * f:  # pyright: ignore[reportPossiblyUnboundVariable]
            break
    return theta, f


# --- the judgement ------------------------------------------------------------------------------------


@dataclass
class Verdict:
    status: str
    true_gap: float
    bound: float
    faults: list[str]


def judge(problem: Problem, fits: LogisticFits) -> list[Verdict]:
    verdicts = []
    X, K = problem.X.astype(np.float64), int(problem.y.max()) + 1
    for s, v in enumerate(problem.weights):
        rows = v > 0
        A, mean, scale = X[rows], X[rows].mean(axis=0), np.ones(X.shape[1])
        spread = A.std(axis=0)
        if problem.standardize == "overall":
            scale *= np.sqrt(np.mean(spread**2)) or 1.0
        elif problem.standardize:
            scale = np.where(spread > 1e-12 * np.abs(mean), spread, 1.0)
        A = np.column_stack([(A - mean) / scale, np.ones(len(A))])
        y, v = problem.y[rows], v[rows]
        thetas = np.zeros((1 if K == 2 else K, X.shape[1] + 1))
        for k, C in enumerate(problem.C):
            coef = np.atleast_2d(fits.coef[s, k])
            ours = np.column_stack([coef * scale, np.atleast_1d(fits.intercept[s, k]) + coef @ mean])
            status, bound = str(fits.status[s, k]), float(fits.gap_bound[s, k])
            f = objective(ours, A, y, v, 1 / C)
            thetas, best = rows_only(A, y, v, 1 / C, thetas)
            best = min(best, f, rows_only(A, y, v, 1 / C, ours)[1] if np.isfinite(f) else best)
            gap = (f - best) / f
            faults = []
            if not np.isfinite(f) or not np.isfinite(bound):
                faults.append(f"objective {f}, bound {bound}")
            if gap > bound + ROUNDING:
                faults.append(f"bound {bound:.1e} < true gap {gap:.1e}")
            if status != "capped" and gap > HONEST:
                faults.append(f"{status} with true gap {gap:.1e} (bound {bound:.1e})")
            if abs(fits.objective[s, k] - f) > 1e-6 * f:
                faults.append(f"objective {fits.objective[s, k]:.9g} reported, {f:.9g} found")
            verdicts.append(Verdict(status, gap, bound, [f"C={C:.1e}: {fault}" for fault in faults]))
    return verdicts


def rows_only(A: Array, y: Array, v: Array, lam: float, start: Array) -> tuple[Array, float]:
    """`reference` in the space of the rows where they are fewer: the penalty forbids everything else."""
    n, d = A.shape[0], A.shape[1] - 1
    if n >= d:
        return reference(A, y, v, lam, start)
    Q = np.linalg.qr(A[:, :-1].T)[0]
    inside = np.column_stack([A[:, :-1] @ Q, A[:, -1]])
    reduced = reference(inside, y, v, lam, np.column_stack([start[:, :-1] @ Q, start[:, -1]]))[0]
    theta = np.column_stack([reduced[:, :-1] @ Q.T, reduced[:, -1]])
    return theta, objective(theta, A, y, v, lam)


def check(seed: int) -> tuple[Problem, list[Verdict]]:
    problem = draw(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # a division by zero is a fault as well
        fits = fit_logistic(
            problem.X,
            problem.y,
            C=problem.C,
            weights=problem.weights,
            standardize=problem.standardize,
            threads=1,
        )
    return problem, judge(problem, fits)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--problems", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="the first problem's seed")
    parser.add_argument("--verbose", action="store_true", help="name the capped fits")
    args = parser.parse_args()
    statuses: collections.Counter[str] = collections.Counter()
    worst: dict[str, float] = collections.defaultdict(float)
    faulty, start = 0, time.process_time()
    for seed in range(args.first, args.first + args.problems):
        try:
            problem, verdicts = check(seed)
        except Exception as error:  # noqa: BLE001 - no crash of whatever kind is what is looked for
            print(f"{seed} {draw(seed).words}: {type(error).__name__}: {error}", flush=True)
            faulty += 1
            continue
        for verdict in verdicts:
            statuses[verdict.status] += 1
            worst[verdict.status] = max(worst[verdict.status], verdict.true_gap)
            if verdict.faults or (args.verbose and verdict.status == "capped"):
                print(f"{seed} {problem.words}: {verdict}", flush=True)
            faulty += bool(verdict.faults)
    print(f"{args.problems} problems, {sum(statuses.values())} fits, {time.process_time() - start:.0f} CPU s")
    for status, count in statuses.most_common():
        print(f"  {status:10s} {count:6d}   largest true gap {worst[status]:.1e}")
    print(f"faults: {faulty}")
    return int(faulty > 0)


if __name__ == "__main__":
    sys.exit(main())

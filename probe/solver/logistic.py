"""All the L2 logistic regressions of one encoder at once: every set of rows at every strength.

    fits = fit_logistic(X, y, C=np.logspace(-6, 1, 40), weights=weights)      # weights (S, n): S x 40 fits
    scores = fits.decision(X_test)                                            # (n_test, S, 40)

How: all fits share X, so they are solved together, as columns of one matrix of coefficients. A round of the
descent is two matrix products for all of them (objective.py), the preconditioner is shared
(preconditioner.py), every fit keeps its own pace (lbfgs.py), nothing is copied a set (design.py). Every
result is checked in float64 on X as it was given; what did not converge, and sets of few rows, are solved by
float64 Newton (newton.py).
"""

# pyright: reportMissingTypeStubs=false

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from threadpoolctl import ThreadpoolController

from ...errors import InvalidRequest, ProbeError
from .design import READ_ROWS, Design
from .lbfgs import CERTIFIED, Minimum, lagrange, minimise
from .newton import NewtonFit, Rows, solve
from .objective import Objective, default_threads
from .path import climb, follow, follows, ladder
from .preconditioner import Preconditioner

Array = np.ndarray[Any, np.dtype[Any]]
MAX_ROUNDS = 300  # of the descent, then Newton takes over
SMALL = 2e7  # sets x rows x features: passes are short and best full, so the path begins with more strengths
ROUNDING = 1e-13  # of an objective, relative
MEMORY = 4 * 2**30
FEW = 100  # (n m)^2 / d up to which sets of n rows go to Newton at once; at 300 it takes 2 to 6 times as long
KEPT_ROWS = 2**29  # bytes of a set's float64 rows, above which Newton reads them again in every step


@dataclass(frozen=True)
class LogisticFits:
    """S sets at L strengths. Scores: `X @ coef + intercept` with the X that was given, not standardised.

    coef : float64 (S, L, d), or (S, L, K, d) for K > 2 classes
    intercept : float64 (S, L) or (S, L, K)
    objective : float64 (S, L), sum of weighted log-losses + 1/(2C) |w|^2, w in the set's standardised units
    gradient_norm : float64 (S, L), Euclidean norm of its gradient, the intercept's entry included
    gap_bound : float64 (S, L), upper bound of (objective - optimum) / objective
    n_iter : int (S, L), passes over the rows (rounds of the descent; Newton steps are counted as well)
    status : str (S, L)
        "converged"  the float32 descent ended, and float64 agreed
        "polished"   float64 steps of the descent were needed
        "newton"     float64 Newton: sets of few rows, and what the descent could not finish
        "capped"     the tolerance was not reached; gap_bound says how far off it may be
        What is not capped has a gap_bound of at most 100 tol, or its Newton decrement in float64 is below tol
        (rounding may keep the bound from showing it).
    C : float64 (L,)
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
    X: Any,
    y: Array,
    *,
    C: Sequence[float] | Array,
    weights: Array | None = None,
    standardize: bool | Literal["overall"] = True,
    tol: float = 1e-7,
    max_rounds: int = MAX_ROUNDS,
    memory: float = MEMORY,
    threads: int | None = None,
) -> LogisticFits:
    """Fit every set at every strength.

    X : float16, float32 or float64 (n, d): an array, a np.memmap, or anything with .shape, .dtype and
        X[lo:hi] (HDF5, Zarr)
    y : int (n,), classes 0..K-1
    C : (L,) inverse strengths, each > 0
    weights : (S, n) >= 0, a row a set; 0 = the row is not in the set. None: one set of all rows, weight 1
    standardize : scale features by each set's own mean and standard deviation (over its rows with
        weight > 0, unweighted, ddof 0; constant columns get scale 1), as a StandardScaler in a pipeline
        would; "overall": all features by one number, the root of the mean of these variances
    tol : relative distance of the objective to its optimum at which a fit stops, estimated by g' H g / 2
    max_rounds : rounds of the descent (four times as many with more than two classes), before float64
        Newton takes over
    memory : bytes for a float32 copy of X; if it would take more, X is reread in every round
    threads : default: the cores, or what OMP_NUM_THREADS or threadpoolctl leave to BLAS where that is less;
        one for a few million numbers

    Warns with scikit-learn's ConvergenceWarning where a status is "capped".
    Raises InvalidRequest for shapes and values that make no sense, ProbeError for NaN or Inf in X and for
    a set that lacks a class (it names the set).
    """
    y, strengths, v, K = _checked(X, y, C, weights, tol)
    grid, of = np.unique(strengths, return_inverse=True)
    S, L, m = len(v), len(grid), 1 if K == 2 else K
    sets, lam = np.repeat(np.arange(S), L), np.tile(1 / grid, S)
    # BLAS stays at one thread: the rows are dealt to our own, and BLAS's would spin in between
    controller: Any = ThreadpoolController()
    libraries = controller.select(user_api="blas")
    allowed: int = min((library["num_threads"] for library in libraries.info()), default=1)
    with libraries.limit(limits=1):
        design = Design(X, y, v, n_classes=K, standardize=standardize, memory=memory)
        threads = threads or min(default_threads(design.n * design.d), allowed)
        objective = Objective(design, sets, lam, threads=threads)
        try:
            found = Minimum.nothing(S * L, m, design.d + 1)
            few = np.repeat(_few_rows(design), L)
            if len(ids := np.flatnonzero(~few)):
                H0 = Preconditioner(objective)
                if m == 1:
                    stride = 4 if S * design.n * design.d > SMALL else 2
                    steps = ladder(grid, stride=stride)
                    parents = [[s * L + k for k in of_k] for s in range(len(ids) // L) for of_k in steps]
                    options: dict[str, Any] = {"tol": tol, "max_rounds": max_rounds}
                    part = minimise(objective, H0, ids, parents=parents, defer=follows(H0), **options)
                    found.put(ids, part)
                    follow(objective, H0, found, **options)
                else:  # Newton costs hundreds of rounds: the descent may take them
                    climb(objective, H0, found, ids, tol=tol, max_rounds=4 * max_rounds)
            status = np.where(found.polished, "polished", "converged").astype("<U9")
            done = found.converged & (found.gap <= CERTIFIED * tol * found.value)
            _finish(objective, found, status, np.flatnonzero(~done), tol)
            _warn(status, found.gap / found.value)
        finally:
            objective.close()
    coef, intercept = design.to_raw(found.theta, sets)
    shape = (S, L) if m == 1 else (S, L, m)
    # every strength as it was asked for: in that order, equal ones more than once
    return LogisticFits(
        coef=coef.reshape(*shape, design.d)[:, of],
        intercept=intercept.reshape(shape)[:, of],
        objective=found.value.reshape(S, L)[:, of],
        gradient_norm=np.linalg.norm(found.gradient, axis=(1, 2)).reshape(S, L)[:, of],
        gap_bound=(found.gap / found.value).reshape(S, L)[:, of],
        n_iter=found.rounds.reshape(S, L)[:, of],
        status=status.reshape(S, L)[:, of],
        C=strengths,
    )


def _warn(status: Array, bound: Array) -> None:
    """Say what did not converge, as scikit-learn does."""
    capped = status == "capped"
    if capped.any():
        from sklearn.exceptions import ConvergenceWarning

        warnings.warn(
            f"{capped.sum()} of {len(status)} logistic regressions did not converge (status 'capped'): their "
            f"objectives may be up to {bound[capped].max():.1e} (relative) above the optimum. "
            "Fix: standardize the features, or use a smaller C",
            ConvergenceWarning,
            stacklevel=3,
        )


def _checked(
    X: Any, y: Array, C: Sequence[float] | Array, weights: Array | None, tol: float
) -> tuple[Array, Array, Array, int]:
    """y, C as float64, weights as float64 (S, n), and K; raises what `fit_logistic` says."""
    if len(getattr(X, "shape", ())) != 2 or not np.issubdtype(X.dtype, np.floating):
        raise InvalidRequest("X must be a floating-point matrix (n, d)")
    n = X.shape[0]
    y = np.asarray(y)
    if y.shape != (n,) or not np.issubdtype(y.dtype, np.integer) or not n or y.min() < 0:
        raise InvalidRequest(f"y must be {n} integers 0..K-1, one a row of X, not {y.dtype} {y.shape}")
    strengths = np.asarray(C, dtype=np.float64)
    if strengths.ndim != 1 or not len(strengths) or not (np.isfinite(strengths) & (strengths > 0)).all():
        raise InvalidRequest("C must be a list of positive numbers")
    if not 0 < tol < 1:
        raise InvalidRequest(f"tol is relative, between 0 and 1, not {tol}")
    v = np.ones((1, n)) if weights is None else np.asarray(weights, dtype=np.float64)
    if v.ndim != 2 or v.shape[1] != n or not len(v) or not np.isfinite(v).all() or (v < 0).any():
        raise InvalidRequest(f"weights must be finite and >= 0, of the shape (sets, {n}), not {v.shape}")
    K = max(2, int(y.max()) + 1)
    present = (v > 0).astype(np.float32) @ (y[:, None] == np.arange(K)).astype(np.float32) > 0
    if not present.all():
        s, k = np.argwhere(~present)[0]
        raise ProbeError(f"set {s} has no row of class {k}: a fit needs every class in every set")
    return y, strengths, v, K


def _few_rows(design: Design) -> Array:
    """bool (S,): the sets of few rows and many features, where some Newton steps cost less than a descent."""
    count = (design.weights > 0).sum(axis=1)
    return (count <= design.d) & ((count * design.outputs) ** 2 <= FEW * design.d) & design.in_memory


def _finish(objective: Objective, found: Minimum, status: Array, ids: Array, tol: float) -> None:
    """Newton for the problems `ids`, in place, and their statuses."""
    status[ids] = "capped"
    sets = objective.sets[ids]
    objective.share(
        lambda s: _finish_set(objective, found, status, ids[sets == s], tol), np.unique(sets).tolist()
    )


def _finish_set(objective: Objective, found: Minimum, status: Array, ids: Array, tol: float) -> None:
    """The problems of one set, strong penalties first: each starts from what the descent has left, or from
    the last three solutions carried on in log C.
    """
    design, s = objective.design, int(objective.sets[ids[0]])
    rows = _rows(design, s)
    ids = ids[np.argsort(-objective.lam[ids])]
    fits: list[NewtonFit] = []
    for k, p in enumerate(ids):
        last, lam = [fit.theta for fit in fits[-3:]], objective.lam[ids[max(0, k - 3) : k + 1]]
        starts = [found.theta[p]] if np.isfinite(found.value[p]) or not last else []
        if last:
            starts.append(np.tensordot(lagrange(np.log(lam[-1]), np.log(lam[:-1])), last, axes=1))
        fits.append(solve(rows, float(lam[-1]), starts, tol=tol))
        found.rounds[p] += fits[-1].n_iter
    kept = _record(objective, found, ids, np.stack([fit.theta for fit in fits]))
    sure = [fit.trusted and fit.decrement <= tol * fit.objective for fit in fits]
    certified = found.gap[ids] <= CERTIFIED * tol * found.value[ids]
    status[ids[kept & (sure | certified)]] = "newton"


def _rows(design: Design, s: int) -> Rows:
    """The rows of set s, in its units; kept where they are not too many, else reread in every step."""
    used = np.flatnonzero(design.weights[s] > 0)
    y, v = design.y[used], design.weights[s, used]
    if 8 * len(used) * design.d <= KEPT_ROWS:
        A = design.unsigned(used) * design.factor[s, :-1]
        return Rows.of(A, y, v, n_classes=design.n_classes)
    cuts = [*range(0, design.n, READ_ROWS), design.n]
    places = np.searchsorted(used, cuts)
    bounds = {(int(a), int(b)): cut for a, b, cut in zip(places, places[1:], cuts, strict=False) if a < b}

    def block(lo: int, hi: int) -> Array:
        first = bounds[lo, hi]
        A = design.block(first, min(first + READ_ROWS, design.n), np.float64)[used[lo:hi] - first]
        return A * A[:, -1:] * design.factor[s]  # without the sign of the label

    return Rows(block, y, v, n_classes=design.n_classes, bounds=list(bounds))


def _record(objective: Objective, found: Minimum, ids: Array, theta: Array) -> Array:
    """Evaluate theta (P, m, d + 1) in float64 and keep it for the problems `ids` (P,) unless what is there is
    better. Returns bool (P,): what was kept.
    """
    kept = np.zeros(len(ids), dtype=bool)
    for part in objective.parts(len(ids)):
        at = objective.certified(ids[part], theta[part])
        yes = at.value <= found.value[ids[part]] * (1 + ROUNDING)
        for name in ("theta", "value", "gradient", "curvature", "gap"):
            getattr(found, name)[ids[part][yes]] = getattr(at, name)[yes]
        kept[part] = yes
    return kept

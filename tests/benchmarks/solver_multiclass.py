"""The batched multinomial solver against scikit-learn: CPU seconds, accuracy, peak memory.

    python tests/benchmarks/solver_multiclass.py --npz FEATURES.npz --shape 20000 1024 9 --alone 100000 1536 9
    python tests/benchmarks/solver_multiclass.py --manifest ami-br-phases.toml --split train --bank BANK \\
        --stores dinov2-vits14-112:full dinov2-vits14-112:center:0.5

Each of --npz, --manifest, --shape (n, d, K) and --alone is a problem: 5 folds x 20 C from 1e-6 to --c-max,
class weights "balanced", each fold standardised by itself; --alone is fitted without rivals.

Real features: an npz has X float (n, d), y int (n,) 0..K-1 and perhaps groups (n,), which folds keep
together. --manifest and --bank read the same from a bank, the stores ENCODER[:VIEW] side by side, and
--save NPZ keeps it. Synthetic ones: Gaussian with covariance eigenvalues 1/j^1.5 in a random basis, every
feature scaled to variance 1; y is a draw from a softmax of random directions, classes as uneven as 30:1.

scikit-learn: each of --solvers is fitted with one thread on the standardised float64 rows, at most 5,000
iterations, in the first --folds-timed folds; a smaller tolerance is tried only where the larger was not
accurate. The fastest whose objective is within 1e-6 of the optimum counts, its earlier tries do not; one that
has taken longer than the fastest so far, all its tries together, is stopped. With --every N only every N-th
C (and the last) is timed: seconds between two are interpolated in logarithms. Folds that are not timed count
as those that are.

CPU seconds are of a process with one thread, ours with preparation and float64 check. Memory is what a fit
adds to what the process held before: all of ours at once, the largest of theirs. The optimum is the lowest
objective that anyone found.
"""

import argparse
import multiprocessing
import resource
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import patchbank
from patchbank.probe.solver.logistic import LogisticFits, fit_logistic
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

# in the order in which they are tried, the fastest on most problems first
RIVALS = {"newton-cg": (1e-4, 1e-6, 1e-8), "lbfgs": (1e-4, 1e-6, 1e-8), "newton-cholesky": (1e-4, 1e-6)}
ACCURATE = 1e-6


def synthetic(n: int, d: int, K: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((d, d)))[0].astype(np.float32)
    X = rng.standard_normal((n, d), dtype=np.float32)
    X *= np.arange(1, d + 1, dtype=np.float32) ** -0.75
    X = X @ basis.T
    X /= X.std(axis=0)
    z = X @ rng.standard_normal((d, K))
    z = 1.5 * (z - z.mean(axis=0)) / z.std(axis=0) + np.linspace(0, -3.4, K)
    return X, np.argmax(z + rng.gumbel(size=z.shape), axis=1)


def from_bank(
    manifest: str, split: str | None, bank: str, stores: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X, y and groups of the labelled rows of a manifest."""
    rows = patchbank.load_manifest(manifest)
    rows = rows.select(split) if split else rows
    X = []
    for encoder, _, view in (store.partition(":") for store in stores):
        of_view: dict[str, Any] = {"view": view} if view else {}
        X.append(patchbank.load(rows, encoder=encoder, bank=bank, **of_view))
    y = rows.table["label"].map(list(rows.header.classes).index)
    groups = np.unique(rows.table["group"].astype(str), return_inverse=True)[1]
    return np.concatenate(X, axis=1), y.to_numpy(dtype=int), groups


def fold_weights(y: np.ndarray, groups: np.ndarray, folds: int) -> np.ndarray:
    """(folds, n): 0 for the fold held out, balanced class weights for the rest."""
    weights = np.ones((folds, len(y)))
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    for row, (train, test) in zip(weights, splitter.split(y, y, groups), strict=True):
        count = np.bincount(y[train], minlength=y.max() + 1)
        row[train] = len(train) / len(count) / count[y[train]]
        row[test] = 0
    return weights


def objective(
    A: np.ndarray, y: np.ndarray, v: np.ndarray, coef: np.ndarray, intercept: np.ndarray, C: float
) -> float:
    z = A @ coef.T + intercept
    return float(v @ (np.logaddexp.reduce(z, axis=1) - z[np.arange(len(y)), y]) + np.sum(coef**2) / (2 * C))


def apart(fit: Callable[[], Any], limit: float = np.inf) -> tuple[Any, float, float] | None:
    """What fit() returns, its CPU seconds and MiB added, in its own process; None: stopped at the limit."""

    def work(end: Any) -> None:
        if np.isfinite(limit):
            resource.setrlimit(resource.RLIMIT_CPU, (int(limit) + 1, resource.RLIM_INFINITY))
        held = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        start = time.process_time()
        found = fit()
        used = time.process_time() - start
        resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        end.send((found, used, (peak - held) / 2**20))

    context = multiprocessing.get_context("fork")  # shares the features
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(theirs,))
    process.start()
    theirs.close()
    try:
        found = ours.recv()
    except EOFError:
        found = None
    process.join()
    return found


class Rival:
    """The fastest accurate fit of scikit-learn at one C."""

    def __init__(self, A: np.ndarray, y: np.ndarray, v: np.ndarray, C: float, ours: float) -> None:
        self.seconds, self.name, self.lowest, self.memory = np.inf, "none accurate", np.inf, 0.0
        self.model: Any = None
        self._rows, self._C, self._ours = (A, y, v), C, ours

    def try_solver(self, solver: str) -> None:
        A, y, v = self._rows
        spent = 0.0
        for tol in RIVALS[solver]:
            model = LogisticRegression(C=self._C, solver=solver, tol=tol, max_iter=5000)

            def fit(model: Any = model) -> tuple[np.ndarray, np.ndarray]:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # not converged: then it is not within 1e-6
                    model.fit(A, y, sample_weight=v)
                return model.coef_, np.asarray(model.intercept_)

            done = apart(fit, self.seconds - spent)
            if done is None:
                return
            (coef, intercept), seconds, memory = done
            spent += seconds
            f = objective(A, y, v, coef, intercept, self._C)
            if f < self.lowest:
                self.lowest, self.model = f, (coef, intercept)
            if f <= min(self._ours, self.lowest) * (1 + ACCURATE):
                if seconds < self.seconds:
                    self.seconds, self.name, self.memory = seconds, f"{solver} tol {tol:.0e}", memory
                return
            if spent >= self.seconds:
                return


def compare(
    X: np.ndarray, y: np.ndarray, weights: np.ndarray, C: np.ndarray, fits: LogisticFits, args: Any
) -> tuple[float, float, int, int]:
    """CPU seconds of scikit-learn for all fits, our largest gap, predictions that differ, of how many."""
    picked = sorted({*range(0, len(C), args.every), len(C) - 1})
    spent, worst, differ, memory = [], -np.inf, 0, 0.0
    print("fold         C  fastest accurate of scikit-learn   CPU s   our gap     bound  predictions differ")
    for s in range(args.folds_timed):
        inside = weights[s] > 0
        scaler = StandardScaler().fit(X[inside].astype(np.float64))
        A = np.asarray(scaler.transform(X[inside].astype(np.float64)))
        decision = fits.decision(X)[:, s]
        seconds = []
        for i in picked:
            ours = float(fits.objective[s, i])
            rival = Rival(A, y[inside], weights[s][inside], float(C[i]), ours)
            for solver in args.solvers:
                rival.try_solver(solver)
            coef, intercept = rival.model
            scores = np.asarray(scaler.transform(X.astype(np.float64))) @ coef.T + intercept
            gap = (ours - min(ours, rival.lowest)) / ours
            others = int((scores.argmax(axis=1) != decision[:, i].argmax(axis=1)).sum())
            worst, differ, memory = max(worst, gap), differ + others, max(memory, rival.memory)
            seconds.append(rival.seconds)
            print(
                f"{s:4d} {C[i]:9.2e}  {rival.name:>32s} {rival.seconds:7.2f}  {gap:8.1e}"
                f"  {fits.gap_bound[s, i]:8.1e}  {others}",
                flush=True,
            )
        spent.append(float(np.exp(np.interp(np.log(C), np.log(C[picked]), np.log(seconds))).sum()))
    total = float(np.mean(spent)) * len(weights)
    timed = len(picked) * args.folds_timed
    of = f"{timed} of {len(weights) * len(C)} fits timed"
    print(f"scikit-learn: {total:.0f} CPU s, {of}; at most {memory:.0f} MiB a fit")
    return total, worst, differ, timed * len(X)


def run(X: np.ndarray, y: np.ndarray, groups: np.ndarray, *, rivals: bool, args: Any) -> None:
    n, d, K = *X.shape, int(y.max()) + 1
    weights = fold_weights(y, groups, args.folds)
    C = np.logspace(-6, np.log10(args.c_max), args.strengths)
    count = args.folds * len(C)
    print(f"n {n}, d {d}, K {K}: {args.folds} folds x {len(C)} C in 1e-6..{args.c_max:g} = {count} fits")
    found = apart(lambda: fit_logistic(X, y, C=C, weights=weights, threads=1))
    if found is None:
        raise SystemExit("the process that fits was killed: is there enough memory?")
    fits, cpu, memory = found
    names, counts = np.unique(fits.status, return_counts=True)
    print(
        f"patchbank: {cpu:.1f} CPU s, {memory:.0f} MiB beside the {X.nbytes / 2**20:.0f} MiB of X;"
        f" largest bound {fits.gap_bound.max():.1e}\n"
        f"  {fits.n_iter.mean():.1f} rounds a fit; status: "
        + ", ".join(f"{c} {s}" for s, c in zip(names, counts, strict=True)),
        flush=True,
    )
    if rivals:
        total, worst, differ, rows = compare(X, y, weights, C, fits, args)
        print(f"  our largest gap {worst:.1e}; {differ} of {rows} predictions differ")
        print(f"ratio: {total / cpu:.1f}x in CPU seconds", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--npz", help="a file with X, y and perhaps groups")
    parser.add_argument("--manifest", help="path or name of a manifest, with --bank and --stores")
    parser.add_argument("--split", help="rows of the manifest, such as train")
    parser.add_argument("--bank")
    parser.add_argument("--stores", nargs="+", metavar="ENCODER[:VIEW]")
    parser.add_argument("--save", type=Path, metavar="NPZ", help="keep what --manifest and --bank gave")
    shape: dict[str, Any] = {"nargs": 3, "type": int, "action": "append", "default": []}
    parser.add_argument("--shape", metavar=("N", "D", "K"), **shape)
    parser.add_argument("--alone", metavar=("N", "D", "K"), help="a shape without rivals", **shape)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--strengths", type=int, default=20)
    parser.add_argument("--c-max", type=float, default=10.0)
    parser.add_argument("--every", type=int, default=4, help="time scikit-learn at every N-th C")
    parser.add_argument("--folds-timed", type=int, default=1)
    parser.add_argument("--solvers", nargs="+", choices=list(RIVALS), default=list(RIVALS))
    args = parser.parse_args()
    with threadpool_limits(1):
        if args.npz:
            with np.load(args.npz) as data:
                X, y = data["X"], data["y"].astype(int)
                groups = data.get("groups", np.arange(len(y)))
            run(X, y, groups, rivals=True, args=args)
        if args.manifest:
            X, y, groups = from_bank(args.manifest, args.split, args.bank, args.stores)
            if args.save:
                np.savez(args.save, X=X, y=y, groups=groups)
            run(X, y, groups, rivals=True, args=args)
        for n, d, K in args.shape + args.alone:
            X, y = synthetic(n, d, K)
            run(X, y, np.arange(n), rivals=[n, d, K] in args.shape, args=args)


if __name__ == "__main__":
    main()

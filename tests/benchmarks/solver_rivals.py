"""What others' linear heads cost on the same features and folds, beside the batched solver's whole grid.

    python tests/benchmarks/solver_rivals.py --npz FEATURES.npz        # X (n, d), y (n,) 0/1, fold (n,) 1..5

Without --npz the features are synthetic, as in solver_vs_sklearn.py. All are re-implemented in numpy
(probe/classifiers/recipes.py); every fold is held out once and validates (chooses the epoch and the head)
as in their recipes, so their scores are the best of many looks at it. The batched solver's are its best C's.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from patchbank.probe.classifiers.recipes import fit_eva, fit_paper_sgd, fit_thunder
from patchbank.probe.solver.logistic import fit_logistic
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from solver_vs_sklearn import fold_weights, synthetic
from threadpoolctl import threadpool_limits


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--npz")
    parser.add_argument("--shape", nargs=2, type=int, default=(2894, 768), metavar=("N", "D"))
    args = parser.parse_args()
    if args.npz:
        with np.load(args.npz) as data:
            X, y, fold = data["X"].astype(np.float32), data["y"].astype(int), data["fold"]
    else:
        X, y = synthetic(*args.shape)
        fold = np.random.default_rng(1).integers(0, 5, len(X))
    print(f"n {X.shape[0]}, d {X.shape[1]}, {len(np.unique(fold))} folds, CPU seconds on one thread")
    print(f"{'':46s}   CPU s  heads  balanced accuracy / AUROC, mean over folds")
    with threadpool_limits(1):
        for name, fit, heads in (
            ("published protocol (paper-sgd), re-implemented", fit_paper_sgd, 1),
            ("THUNDER, 9 heads side by side, re-implemented", fit_thunder, 9),
            ("eva, AdamW and cosine, 1 run, re-implemented", fit_eva, 1),
        ):
            start, scores = time.process_time(), []
            for k in np.unique(fold):
                test = fold == k
                head = fit(X[~test], y[~test], X[test], y[test], seed=0)
                z = head.decision(X[test])
                scores.append((balanced_accuracy_score(y[test], z > 0), roc_auc_score(y[test], z)))
            report(name, time.process_time() - start, heads * len(scores), scores)
    start = time.process_time()
    fits = fit_logistic(X, y, C=np.logspace(-6, 1, 40), weights=fold_weights(y, fold), threads=1)
    seconds = time.process_time() - start
    scores = []
    for s, k in enumerate(np.unique(fold)):
        test = fold == k
        z = fits.decision(X[test])[:, s]
        scores.append([(balanced_accuracy_score(y[test], c > 0), roc_auc_score(y[test], c)) for c in z.T])
    best = np.mean(scores, axis=0)[:, 1].argmax()
    report("patchbank, 40 C, all to the optimum", seconds, fits.status.size, [row[best] for row in scores])


def report(name: str, seconds: float, heads: int, scores: list) -> None:
    accuracy, auroc = np.mean(scores, axis=0)
    print(f"{name:46s} {seconds:7.2f} {heads:6d}  {accuracy:.3f} / {auroc:.3f}", flush=True)


if __name__ == "__main__":
    main()

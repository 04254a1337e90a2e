"""How long intervals take: the bootstrap beside scikit-learn's functions in a loop, the jackknife by rows.

    python tests/benchmarks/stats_bootstrap.py [--quick]

2,000 cluster resamples of 5 metrics x 40 models on 2,107 predictions (10.4 % positive, AtNorM-MD's
sizes), with 300 slides and with every row by itself. The loop is timed on some resamples and models and
scaled; it gathers the rows of the drawn slides once a resample and calls scikit-learn's function for each
metric and model. The two have to agree on what both have scored. BCa adds the jackknife over clusters.
Also: DeLong of all models, and 9,999 paired permutations of one pair.

Then the jackknife, which is the default and draws nothing, for 2 models and the same 5 metrics: 2,000 rows by
themselves against the same by weights, O(n^2), with which it has to agree; and 1e4, 1e5 and 1e6 rows, by
themselves and in slides of ten. `ratio` is the CPU time by that of a tenth of the rows: 10 is linear.

Then 2,000 resamples of 1,000 slides at as many rows, of the same 2 models and 5 metrics, beside the loop,
timed on one of them and scaled. (Rows by themselves are what the jackknife is for: drawing a million of them
2,000 times takes minutes, whoever does it.)
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from patchbank.probe.statistics.comparisons import permutation_test
from patchbank.probe.statistics.delong import delong
from patchbank.probe.statistics.intervals import cluster_codes, cluster_weights, estimate, estimate_function
from patchbank.probe.statistics.metrics import evaluate
from sklearn import metrics as sk

LOOP: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "balanced_accuracy": lambda y, p: sk.balanced_accuracy_score(y, p >= 0.5),
    "auroc": sk.roc_auc_score,
    "average_precision": sk.average_precision_score,
    "f1": lambda y, p: sk.f1_score(y, p >= 0.5),
    "brier": sk.brier_score_loss,
}


def predictions(n: int, m: int, n_slides: int | None, seed: int) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.104).astype(int)
    p = 1 / (1 + np.exp(-(rng.normal(size=(n, m)) + y[:, None])))
    return y, p, None if n_slides is None else rng.integers(0, n_slides, n)


def clock(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result, wall seconds, CPU seconds of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def loop(y: np.ndarray, p: np.ndarray, groups: np.ndarray | None, weights: np.ndarray) -> np.ndarray:
    """(resamples, metrics, models) the plain way."""
    if groups is None:
        rows_of = list(np.arange(len(y))[:, None])
    else:
        _, first = np.unique(groups, return_index=True)
        rows_of = [np.flatnonzero(groups == groups[k]) for k in np.sort(first)]  # as cluster_codes counts
    found = []
    for drawn in weights:
        rows = np.concatenate([rows_of[k] for k in np.repeat(np.arange(len(rows_of)), drawn)])
        found.append([[score(y[rows], p[rows, j]) for j in range(p.shape[1])] for score in LOOP.values()])
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of the bootstrap beside a loop over scikit-learn.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, for a check that it runs")
    quick = parser.parse_args().quick
    n, m, n_resamples = (2107, 8, 200) if quick else (2107, 40, 2000)
    looped, models = (2, 4) if quick else (10, 8)
    for n_slides in (300, None):
        y, p, groups = predictions(n, m, n_slides, seed=0)
        options: dict[str, Any] = {
            "groups": groups,
            "metrics": list(LOOP),
            "n_resamples": n_resamples,
            "seed": 1,
        }
        few: dict[str, Any] = {**options, "n_resamples": 10}
        estimate(y, p[:, :2], **few)  # imports and first calls
        found, wall, cpu = clock(lambda o=options, y=y, p=p: estimate(y, p, method="percentile", **o))
        _, wall_bca, cpu_bca = clock(lambda o=options, y=y, p=p: estimate(y, p, method="bca", **o))
        weights = cluster_weights(found.n_clusters, n_resamples=n_resamples, seed=1)[:looped]
        slow, wall_loop, cpu_loop = clock(lambda w=weights, y=y, p=p, g=groups: loop(y, p[:, :models], g, w))
        scale = (n_resamples / looped) * (m / models)
        gap = max(
            float(np.abs(found[name].draws[:looped, :models] - slow[:, k]).max())
            for k, name in enumerate(LOOP)
        )
        assert gap < 1e-12, f"the two disagree by {gap}"
        _, wall_delong, _ = clock(lambda y=y, p=p, g=groups: delong(y, p, groups=g))
        _, wall_swap, _ = clock(
            lambda y=y, p=p, g=groups: permutation_test(
                y, p[:, :2], metric="auroc", groups=g, n_permutations=999 if quick else 9999, seed=0
            )
        )
        print(
            json.dumps(
                {
                    "clusters": found.n_clusters,
                    "values": n_resamples * m * len(LOOP),
                    "percentile_s": round(wall, 2),
                    "percentile_cpu_s": round(cpu, 2),
                    "bca_s": round(wall_bca, 2),
                    "bca_cpu_s": round(cpu_bca, 2),
                    "loop_s_scaled": round(wall_loop * scale, 1),
                    "loop_cpu_s_scaled": round(cpu_loop * scale, 1),
                    "loop_timed": f"{looped} resamples x {models} models",
                    "ratio_wall": round(wall_loop * scale / wall, 1),
                    "ratio_cpu": round(cpu_loop * scale / cpu, 1),
                    "largest_difference": gap,
                    "delong_s": round(wall_delong, 3),
                    "permutation_s": round(wall_swap, 2),
                    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                }
            ),
            flush=True,
        )
    jackknife(quick)
    for rows in (10_000,) if quick else (10_000, 100_000, 1_000_000):
        bootstrap_of_slides(rows, slides=100 if quick else 1000, n_resamples=200 if quick else 2000)


def bootstrap_of_slides(rows: int, *, slides: int, n_resamples: int) -> None:
    y, p, groups = predictions(rows, 2, slides, seed=0)
    codes = cluster_codes(groups, rows)
    options: dict[str, Any] = {"metrics": list(LOOP), "n_resamples": n_resamples, "seed": 1}
    found, wall, cpu = clock(lambda: estimate(y, p, groups=codes, method="percentile", **options))
    weights = cluster_weights(found.n_clusters, n_resamples=1, seed=1)
    slow, _, cpu_loop = clock(lambda: loop(y, p, codes, weights))
    gap = max(float(np.abs(found[name].draws[:1] - slow[:, k]).max()) for k, name in enumerate(LOOP))
    assert gap < 1e-12, f"the two disagree by {gap}"
    print(
        json.dumps(
            {
                "bootstrap_rows": rows,
                "slides": found.n_clusters,
                "resamples": n_resamples,
                "s": round(wall, 2),
                "cpu_s": round(cpu, 2),
                "loop_cpu_s_scaled": round(cpu_loop * n_resamples, 1),
                "largest_difference": gap,
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        ),
        flush=True,
    )


def jackknife(quick: bool) -> None:
    y, p, _ = predictions(2000, 2, None, seed=0)
    options: dict[str, Any] = {"metrics": list(LOOP), "groups": None}
    found, _, cpu = clock(lambda: estimate(y, p, **options))
    slow, _, cpu_slow = clock(
        lambda: estimate_function(
            lambda weights, codes: evaluate(y, p, metrics=list(LOOP), weights=weights, groups=codes),
            n_rows=len(y),
            groups=None,
        )
    )
    gap = max(float(np.abs(found[name].left_out - slow[name].left_out).max()) for name in LOOP)
    assert gap < 1e-12, f"the two disagree by {gap}"
    print(
        json.dumps(
            {
                "jackknife_rows": 2000,
                "cpu_s": round(cpu, 3),
                "by_weights_cpu_s": round(cpu_slow, 2),
                "ratio_by_weights": round(cpu_slow / cpu, 1),
                "largest_difference": gap,
            }
        ),
        flush=True,
    )
    last: dict[str, float] = {}
    for n in (1_000, 10_000) if quick else (10_000, 100_000, 1_000_000):
        for way, slides in (("rows", None), ("slides of 10", n // 10)):
            y, p, groups = predictions(n, 2, slides, seed=0)
            codes = (
                None if groups is None else cluster_codes(groups, n)
            )  # naming clusters is not the jackknife
            _, wall, cpu = clock(lambda y=y, p=p, c=codes: estimate(y, p, metrics=list(LOOP), groups=c))
            print(
                json.dumps(
                    {
                        "jackknife_rows": n,
                        "clusters": way,
                        "s": round(wall, 2),
                        "cpu_s": round(cpu, 2),
                        "ratio": round(cpu / last[way], 1) if way in last else None,
                        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                    }
                ),
                flush=True,
            )
            last[way] = cpu


if __name__ == "__main__":
    main()

"""CPU seconds and memory of `probe robustness` by its parts, on random vectors.

    python tests/benchmarks/robustness_speed.py [--rows 10000 100000] [--dim 1024]

Vectors are random with a class and a domain in them; 4 domains, 2 classes, groups of 50 rows.
"""

import argparse
import resource
import time

import numpy as np
from patchbank.probe import robustness as module
from patchbank.probe.statistics.neighbours import nearest
from patchbank.probe.statistics.robustness import (
    count_neighbours,
    linear_cka,
    mutual_neighbours,
    vote_accuracy,
)


def measure(n: int, dim: int, iterations: int) -> None:
    """Print one line."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, dim), dtype=np.float32)
    group = np.arange(n) // 50
    domain, label = group % 4, rng.integers(0, 2, n)
    X[:, 0] += 2 * label
    X[:, 1] += 2 * domain
    rows = module._LabelledRows(
        label, domain, group.astype(str).astype(object), ("a", "b"), ("w", "x", "y", "z")
    )
    seconds = {}

    def timed(name: str, work: object) -> object:
        started = time.process_time()
        done = work()  # pyright: ignore[reportCallIssue]
        seconds[name] = time.process_time() - started
        return done

    index, _ = timed("neighbours", lambda: nearest(X, module.KS[-1], groups=group))  # pyright: ignore
    timed("counts", lambda: count_neighbours(index, label, domain, module.KS))
    timed("votes", lambda: vote_accuracy(index, label, module.KS))
    timed("domain", lambda: module._domain(X, rows, 0, print))
    timed(f"drop ({iterations} draws)", lambda: module._drop(X, rows, iterations, 0, print))
    timed("clustering (3 runs)", lambda: module._clusters(X, rows, 3, 0))
    timed("CKA", lambda: linear_cka(X, X[:, ::-1]))
    timed("mutual", lambda: mutual_neighbours(index[:, :11], index[::-1, :11]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    parts = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
    print(f"{n:,} x {dim}: {sum(seconds.values()):.0f} CPU s ({parts}); peak {peak:.1f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000])
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--iterations", type=int, default=5)
    given = parser.parse_args()
    for n in given.rows:
        measure(n, given.dim, given.iterations)


if __name__ == "__main__":
    main()

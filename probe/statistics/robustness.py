"""Robustness of embeddings to domains (centre, scanner): PathoROB's measures, retrieval, alignment.

Robustness index and clustering score as defined by PathoROB (Koemen et al., arXiv 2507.17845), the average
performance drop as its reduction of accuracies; linear CKA of Kornblith et al. (ICML 2019), mutual nearest
neighbours of Huh et al. (ICML 2024). Arrays in, numbers out; see METHODS.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from ...errors import InvalidRequest
from .intervals import Estimates, estimate_function
from .neighbours import Indices, unit

Floats = NDArray[np.float64]
Codes = NDArray[np.intp]

_CKA_ROWS = 8192


@dataclass(frozen=True)
class NeighbourCounts:
    """Of each row's k nearest rows of other groups, for every k of `ks`: float64 (n, len(ks)) each.

    same_other : of the same class and another domain (SO); other_same : of another class and the same domain
    (OS); same_class : of the same class; there : how many there are (k, or fewer)
    """

    ks: tuple[int, ...]
    same_other: Floats
    other_same: Floats
    same_class: Floats
    there: Floats


def count_neighbours(
    index: Indices, labels: ArrayLike, domains: ArrayLike, ks: Sequence[int]
) -> NeighbourCounts:
    """index : of `neighbours.nearest`, (n, at least max(ks)); labels, domains : (n,)"""
    label, domain = np.asarray(labels), np.asarray(domains)
    if max(ks) > index.shape[1] or min(ks) < 1:
        raise InvalidRequest(f"k of {min(ks)} to {max(ks)} for {index.shape[1]} neighbours")
    known = index >= 0
    at = np.where(known, index, 0)
    same_class = known & (label[at] == label[:, None])
    same_domain = known & (domain[at] == domain[:, None])
    places = np.asarray(ks) - 1

    def up_to(mask: NDArray[np.bool_]) -> Floats:
        return np.cumsum(mask, axis=1)[:, places].astype(np.float64)

    return NeighbourCounts(
        ks=tuple(ks),
        same_other=up_to(same_class & ~same_domain),
        other_same=up_to(known & ~same_class & same_domain),
        same_class=up_to(same_class),
        there=up_to(known),
    )


def estimate_ratios(
    ratios: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    groups: ArrayLike | None,
    confidence: float = 0.95,
) -> Estimates:
    """Ratios of sums over rows, with jackknife intervals over groups.

    ratios : name -> (numerator (n,), denominator (n,)) of each row
    The neighbours of the rows that stay are not looked for anew where a group is left out.
    """
    rows = {name: (np.asarray(a, np.float64), np.asarray(b, np.float64)) for name, (a, b) in ratios.items()}
    n = len(next(iter(rows.values()))[0])

    def score(weights: Floats | None, codes: Codes) -> dict[str, Floats]:
        out = {}
        for name, (a, b) in rows.items():
            above, below = np.bincount(codes, a), np.bincount(codes, b)
            up, down = (above.sum(), below.sum()) if weights is None else (weights @ above, weights @ below)
            out[name] = _divide(np.asarray(up), np.asarray(down))
        return out

    def without(codes: Codes | None) -> dict[str, Floats]:
        codes = np.arange(n) if codes is None else codes
        sums = {name: (np.bincount(codes, a), np.bincount(codes, b)) for name, (a, b) in rows.items()}
        return {k: _divide(a.sum() - a, b.sum() - b)[:, None] for k, (a, b) in sums.items()}

    undefined = dict.fromkeys(rows, "no row has such a neighbour")
    scales = dict.fromkeys(rows, "logit")
    return estimate_function(
        score,
        n_rows=n,
        groups=groups,
        without=without,
        undefined=undefined,
        scales=scales,  # pyright: ignore[reportArgumentType]
        confidence=confidence,
    )


def vote_accuracy(index: Indices, labels: ArrayLike, ks: Sequence[int]) -> Floats:
    """Balanced accuracy of the majority of the k nearest rows for every k, float64 (len(ks),).

    Of equally many votes the class whose nearest voter is nearest wins.
    """
    classes, y = np.unique(np.asarray(labels), return_inverse=True)
    known = index >= 0
    votes = np.where(known, y[np.where(known, index, 0)], -1)
    out = np.zeros(len(ks))
    for j, k in enumerate(ks):
        counts = np.stack([(votes[:, :k] == c).sum(axis=1) for c in range(len(classes))], axis=1).astype(
            float
        )
        first = np.stack([_first_place(votes[:, :k] == c) for c in range(len(classes))], axis=1)
        called = (counts - first / (2 * k + 2)).argmax(axis=1)
        out[j] = np.mean([(called[y == c] == c).mean() for c in range(len(classes))])
    return out


def _first_place(mask: NDArray[np.bool_]) -> Floats:
    return np.where(mask.any(axis=1), mask.argmax(axis=1), mask.shape[1]).astype(np.float64)


def performance_drop(accuracies: ArrayLike) -> Floats:
    """PathoROB's reduction, a value an iteration: mean over the correlated splits of accuracy / accuracy of
    the balanced split, less 1; 0 no loss, negative a loss.

    accuracies : (splits, iterations), the balanced split first; at least two splits
    """
    values = np.asarray(accuracies, np.float64)
    if values.ndim != 2 or len(values) < 2 or not (values[0] > 0).all():
        raise InvalidRequest("accuracies are (splits, iterations), the first split balanced and above 0")
    return (values[1:] / values[0]).mean(axis=0) - 1


def correlated_cells(n_classes: int, size: int, share: float) -> NDArray[np.intp]:
    """Rows to draw of each class in each of two domains, int (n_classes, 2), for a correlation in [0, 1].

    Every other class (0, 2, ...) has size (1 + share) rows of the first domain and size (1 - share) of the
    second, the others the other way round: at 0 class and domain are independent, at 1 each class has one
    domain. Rows of each class are the same number at every share; with an even number of classes rows of
    each domain are, too.
    """
    more, less = round(size * (1 + share)), 2 * size - round(size * (1 + share))
    return np.array([(more, less) if c % 2 == 0 else (less, more) for c in range(n_classes)], np.intp)


def clustering_score(
    features: ArrayLike,
    labels: ArrayLike,
    domains: ArrayLike,
    *,
    k: int | None = None,
    largest_k: int = 30,
    starts: int = 20,
    trials: int = 50,
    seed: int = 0,
) -> tuple[Floats, int]:
    """Adjusted Rand index with the class less that with the domain of k-means clusters, float64 (trials,).

    On rows of length 1, random starts, 5 a trial; k None: the one of 2 .. largest_k with the highest
    silhouette (cosine, `starts` of them). +1: clusters are classes; -1: clusters are domains. Returns also k.
    """
    from sklearn.metrics import adjusted_rand_score, silhouette_score

    rows = unit(features)
    label, domain = np.asarray(labels), np.asarray(domains)
    if k is None:
        ks = range(2, min(largest_k, len(rows) - 1) + 1)
        scores = []
        for count in ks:
            clusters = _clusters(rows, count, starts=starts, seed=seed)
            several = len(np.unique(clusters)) > 1
            scores.append(silhouette_score(rows, clusters, metric="cosine") if several else -1.0)
        k = ks[int(np.argmax(scores))]
    out = np.zeros(trials)
    for t in range(trials):
        clusters = _clusters(rows, k, starts=5, seed=seed + 1 + t)
        out[t] = adjusted_rand_score(label, clusters) - adjusted_rand_score(domain, clusters)
    return out, k


def _clusters(rows: NDArray[np.float32], k: int, *, starts: int, seed: int) -> NDArray[np.int32]:
    from sklearn.cluster import KMeans

    made: Any = KMeans  # its stubs know no whole number of starts
    few = 1 if rows.size < 4_000_000 else None  # threads that wait for each other cost more than they save
    with threadpool_limits(few):
        return np.asarray(made(k, init="random", n_init=starts, random_state=seed).fit(rows).labels_)


def class_domain_pairs(labels: ArrayLike, domains: ArrayLike) -> list[tuple[object, object, object, object]]:
    """(class, class, domain, domain) for which all four combinations have rows, in order."""
    label, domain = np.asarray(labels), np.asarray(domains)
    there = set(zip(label.tolist(), domain.tolist(), strict=True))
    return [
        (a, b, d, e)
        for a, b in combinations(sorted(set(label.tolist())), 2)
        for d, e in combinations(sorted(set(domain.tolist())), 2)
        if {(a, d), (a, e), (b, d), (b, e)} <= there
    ]


def linear_cka(a: ArrayLike, b: ArrayLike) -> float:
    """Linear centred kernel alignment of two encoders' vectors of the same rows, in [0, 1].

    a : float (n, d); b : float (n, e). |A'B|^2 / (|A'A| |B'B|) with centred columns and Frobenius norms, in
    blocks of rows: no n x n matrix.
    """
    first, second = np.asarray(a), np.asarray(b)
    if len(first) != len(second):
        raise InvalidRequest(f"{len(first)} and {len(second)} rows: alignment is of the same rows")
    means = [x.mean(axis=0, dtype=np.float64) for x in (first, second)]
    products = [
        np.zeros((x.shape[1], y.shape[1])) for x, y in ((first, second), (first, first), (second, second))
    ]
    for start in range(0, len(first), _CKA_ROWS):
        parts = [
            (x[start : start + _CKA_ROWS].astype(np.float64) - mean)
            for x, mean in zip((first, second), means, strict=True)
        ]
        for total, (i, j) in zip(products, ((0, 1), (0, 0), (1, 1)), strict=True):
            total += parts[i].T @ parts[j]
    cross, own, other = (float((total**2).sum()) for total in products)
    return cross / np.sqrt(own * other) if own and other else float("nan")


def mutual_neighbours(a: Indices, b: Indices) -> Floats:
    """Share of the k nearest rows that two encoders have in common, of each row: float64 (n,).

    a, b : indices of `neighbours.nearest` of the same rows, (n, k), -1 where there is none
    """
    if a.shape != b.shape:
        raise InvalidRequest(f"neighbours of shape {a.shape} and {b.shape}")
    first, second = np.sort(a, axis=1), np.sort(b, axis=1)
    out = np.zeros(len(a))
    for i in range(len(a)):
        one, two = first[i][first[i] >= 0], second[i][second[i] >= 0]
        out[i] = len(np.intersect1d(one, two, assume_unique=True)) / max(1, min(len(one), len(two)))
    return out


def _divide(a: Floats, b: Floats) -> Floats:
    return np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b > 0)

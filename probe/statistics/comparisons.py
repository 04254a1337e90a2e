"""Differences of two models on the same rows: paired intervals, p values, Holm's adjustment."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from ...errors import InvalidRequest
from .intervals import STILL, Clusters, Floats, Interval, Options, cluster_codes, estimate
from .metrics import METRICS, check_labels, check_names, evaluate
from .weighted import midranks

# Metrics whose difference of two models is linear in the swaps of clusters. Of means over rows that is plain.
# An AUROC is a sum over pairs of a positive of cluster g and a negative of cluster h, so it is quadratic in
# the swaps z; exchanging the models is z -> 1 - z, and in the difference the second-order terms cancel: with
# D (G, G) the sums of pairs within the first model less those within the second, and E those of the first
# model's positives with the second's negatives less the reverse, it is
# sum D - sum_g z_g (D_g. + D_.g + E_g. - E_.g).
LINEAR = {"accuracy", "balanced_accuracy", "auroc", "sensitivity", "specificity"}
LINEAR |= {"log_loss", "balanced_log_loss", "brier", "r2", "mae"}
FEW_CLUSTERS = 10  # with fewer clusters of a class, a comparison's p is by permutation


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Paired differences (first minus second) of k pairs of models. Arrays are float64 (k,)."""

    metric: str
    pairs: NDArray[np.intp]
    """(k, 2), columns of `scores`."""
    difference: Floats
    low: Floats
    """NaN where there is no interval, see `reason`."""
    high: Floats
    standard_error: Floats
    """NaN where no cluster changes the difference."""
    degrees_of_freedom: Floats
    """Of Student's t; inf where p is by draws or permutations."""
    p: Floats
    """Two-sided; how it was made is in `p_method`. NaN where there is no test, see `reason`."""
    p_holm: Floats
    """Adjusted over the k pairs (Holm 1979); NaNs take no part."""
    p_method: NDArray[np.str_]
    """How each p was made, in words."""
    reason: NDArray[np.str_]
    """Why there is no interval, "" where there is one."""


def compare_paired(
    y: ArrayLike,
    scores: ArrayLike,
    *,
    groups: ArrayLike | None,
    metrics: Iterable[str] = ("balanced_accuracy", "auroc"),
    pairs: Iterable[tuple[int, int]] | None = None,
    reference: int | None = None,
    threshold: ArrayLike | None = None,
    logits: bool = False,
    order: ArrayLike | None = None,
    estimates: Mapping[str, Interval] | None = None,
    **how: Unpack[Options],
) -> dict[str, Differences]:
    """Do two models differ on the same rows? The one test of this package, for probes and fine-tuned models.

    y : (n,) 0 or 1; scores : (n, m), one column a model, of the same rows; groups : (n,) slide of each row,
        see `cluster_codes` (None: rows are independent)
    pairs : columns (first, second); None: all against `reference` if given, else all pairs i < j
    threshold, logits, order : as for `metrics.evaluate`; pass logits with logits=True
    how : as for `estimate`; estimates : what it gave for the same arguments, if it
        is there already

    Per metric: difference, interval and two-sided p from the jackknife of the paired difference over
    clusters, Student's t. p is by the sign-flip permutation test over clusters (`permutation_test`) where no
    cluster changes the difference (standard error 0), and where a class is in fewer than FEW_CLUSTERS
    clusters, too few for t; a difference that no cluster changes has no interval. Holm over the pairs of one
    metric. For methods "bca" and "percentile" p is by the draws, shifted to no difference.
    Returns metric -> Differences, whose pairs are in the order given. Where a class sits in one cluster
    there is neither interval nor p, and `reason` says so.
    """
    names = check_names(metrics)
    about: dict[str, Any] = {"threshold": threshold, "logits": logits, "order": order, "groups": groups}
    if estimates is None:
        estimates = estimate(y, scores, metrics=names, **about, **how)
    labels = check_labels(y)
    chosen = pairs_of(np.shape(scores)[1], pairs, reference)

    def permuted(name: str, pairs: NDArray[np.intp]) -> Differences:
        return permutation_test(y, scores, metric=name, pairs=pairs, seed=how.get("seed", 0), **about)

    few = min(Clusters.of(labels, cluster_codes(groups, len(labels))).holding) < FEW_CLUSTERS
    return {name: compare_or_permute(estimates[name], chosen, few=few, permuted=permuted) for name in names}


def compare_or_permute(
    interval: Interval,
    pairs: NDArray[np.intp],
    *,
    few: bool,
    permuted: Callable[[str, NDArray[np.intp]], Differences],
) -> Differences:
    """`compare`, with p by permutation where Student's t has no standard error or too few clusters.

    few : whether a class is in fewer than FEW_CLUSTERS clusters; permuted : (metric, pairs) -> the test
    """
    differences = compare(interval, pairs=pairs)
    differs, still = np.abs(differences.difference) > 1e-12, differences.reason == STILL
    again = np.flatnonzero(differs & (still | (few & (differences.reason == ""))))
    if interval.asked != "jackknife" or not len(again):
        return differences
    swapped = permuted(interval.metric, pairs[again])
    p, how = differences.p.copy(), differences.p_method.copy()
    p[again], how[again] = swapped.p, swapped.p_method
    return replace(differences, p=p, p_holm=holm(p), p_method=how)


def compare(
    interval: Interval,
    *,
    pairs: Iterable[tuple[int, int]] | NDArray[np.intp] | None = None,
    reference: int | None = None,
) -> Differences:
    """Paired differences of one metric between models, from their intervals alone; see `compare_paired`,
    which adds the permutation test where this has no p.

    interval : from `estimate`, whose left-out values or draws are paired; method, confidence and inflation
        are those of it (a jackknife interval of a difference is on the linear scale)
    p : jackknife: the difference over its standard error, Student's t. Else the draws of the difference,
        shifted to mean no difference, reach the observed one, (1 + #{|d* - d| >= |d|}) / (1 + B) (Efron &
        Tibshirani 1993, sec. 16.4); it cannot be below 1 / (1 + B), so k pairs under Holm need B well above
        20 k.
    """
    chosen = pairs_of(len(interval.value), pairs, reference)

    def apart(values: Floats | None) -> Floats | None:
        return None if values is None else values[..., chosen[:, 0]] - values[..., chosen[:, 1]]

    value = interval.value[chosen[:, 0]] - interval.value[chosen[:, 1]]
    draws = apart(interval.draws)
    differences = interval.made_by.interval(
        f"difference of {interval.metric}",
        value,
        draws,
        apart(interval.left_out),
        apart(interval.rows_out),
        "linear",
    )
    if draws is None:
        p, how = (
            two_sided_p(value, differences.standard_error, differences.degrees_of_freedom),
            "jackknife over groups, Student's t",
        )
    else:
        reached = np.abs(draws - value) >= np.abs(value) - 1e-12  # NaN compares as False
        p = (1 + reached.sum(axis=0)) / (1 + (~np.isnan(draws)).sum(axis=0))
        how = "bootstrap over groups, draws shifted to no difference"
    tested = (differences.reason == "") | ((differences.reason == STILL) & (np.abs(value) <= 1e-12))
    p = np.where(tested, p, np.nan)
    return Differences(
        metric=interval.metric,
        pairs=chosen,
        difference=value,
        low=differences.low,
        high=differences.high,
        standard_error=differences.standard_error,
        degrees_of_freedom=differences.degrees_of_freedom,
        p=p,
        p_holm=holm(p),
        p_method=np.full(len(chosen), how, dtype=object),
        reason=differences.reason,
    )


def pairs_of(
    m: int, pairs: Iterable[tuple[int, int]] | NDArray[np.intp] | None, reference: int | None
) -> NDArray[np.intp]:
    """The pairs of columns to compare, (k, 2): those given, each with `reference`, or all of m."""
    if pairs is not None:
        chosen = np.array(list(pairs), np.intp).reshape(-1, 2)
    elif reference is not None:
        chosen = np.array([(i, reference) for i in range(m) if i != reference], np.intp).reshape(-1, 2)
    else:
        chosen = np.stack(np.triu_indices(m, 1), axis=1)
    if chosen.size and not (chosen.min() >= 0 and chosen.max() < m):
        raise InvalidRequest(f"pairs are columns 0 .. {m - 1}")
    return chosen


def two_sided_p(difference: Floats, error: Floats, freedom: ArrayLike) -> Floats:
    """Two-sided p of Student's t; where nothing varies 1 if nothing differs, else NaN: no p is 0."""
    moves = error > 1e-12  # NaN compares as False
    t = np.divide(difference, error, out=np.where(np.abs(difference) > 1e-12, np.nan, 0.0), where=moves)
    return 2 * special.stdtr(freedom, -np.abs(t))


def compare_to_zero(interval: Interval) -> Floats:
    """Two-sided p (m,) that the value is 0, Student's t; NaN where there is no standard error."""
    return np.where(
        interval.reason == "",
        two_sided_p(interval.value, interval.standard_error, interval.degrees_of_freedom),
        np.nan,
    )


def holm(p: ArrayLike) -> Floats:
    """Holm's step-down adjusted p-values (Holm 1979), in the order given; NaNs stay and do not count."""
    p = np.asarray(p, np.float64)
    adjusted = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted


def permutation_test(
    y: ArrayLike,
    scores: ArrayLike,
    *,
    metric: str,
    groups: ArrayLike | None,
    pairs: Iterable[tuple[int, int]] | NDArray[np.intp] | None = None,
    reference: int | None = None,
    threshold: ArrayLike | None = None,
    logits: bool = False,
    order: ArrayLike | None = None,
    n_permutations: int = 9999,
    seed: int = 0,
) -> Differences:
    """Paired permutation test: under no difference the two models' scores may be swapped in any cluster.

    Arguments as for `compare_paired`. What is swapped has to be on one scale: ranks within each
    model for metrics of order, the calls at each model's threshold for metrics of a threshold,
    probabilities as they are. For a mean over clusters this is the sign-flip test.
    p = (1 + #{|d*| >= |d|}) / (1 + n_permutations), or exact over all 2^G swaps if they are no more than
    n_permutations + 1. `low`, `high` are NaN: a test has no interval. `standard_error` is that under the
    hypothesis.
    """
    check_names([metric])
    labels = check_labels(y)
    table = np.asarray(scores, np.float64)
    if table.ndim != 2 or table.shape[0] != len(labels):
        raise InvalidRequest(f"scores {table.shape} for {len(labels)} labels: have to be (n, m), m >= 2")
    if n_permutations < 1:
        raise InvalidRequest(f"{n_permutations} permutations: one or more")
    about: dict[str, Any] = {"threshold": threshold, "logits": logits, "order": order}
    observed = evaluate(labels, table, metrics=[metric], **about)[metric]
    needs = METRICS[metric].needs
    if needs == "score":
        table = midranks(table if order is None else np.asarray(order, np.float64))
    elif needs == "threshold":
        cut = (0.0 if logits else 0.5) if threshold is None else threshold
        table = (table >= np.asarray(cut)).astype(np.float64)
    elif logits:
        table = special.expit(table)

    def score(i: int, j: int, weights: NDArray[Any], groups: NDArray[np.intp]) -> Floats:
        both = np.concatenate([table[:, [i, j]], table[:, [j, i]]])
        values = evaluate(np.tile(labels, 2), both, metrics=[metric], weights=weights, groups=groups)
        return values[metric]

    return permute(
        score,
        observed,
        metric=metric,
        codes=cluster_codes(groups, len(labels)),
        pairs=pairs_of(table.shape[1], pairs, reference),
        n_permutations=n_permutations,
        seed=seed,
    )


def permute(
    score: Callable[[int, int, NDArray[Any], NDArray[np.intp]], Floats],
    observed: Floats,
    *,
    metric: str,
    codes: NDArray[np.intp],
    pairs: NDArray[np.intp],
    n_permutations: int = 9999,
    seed: int = 0,
) -> Differences:
    """`permutation_test` of any metric.

    score : (i, j, weights (B, 2 G), groups (2 n,)) -> (B, 2), the values of models i and j on their rows
        and, after these, on the same rows with the two exchanged: a swap is a choice of the clusters' weights
        0 and 1, 0 .. G-1 as they are and G .. 2 G-1 exchanged
    observed : (m,), the values as they are; codes : (n,), clusters; pairs : (k, 2)
    """
    n_clusters = int(codes.max()) + 1
    exact = n_clusters < 31 and 2**n_clusters <= n_permutations + 1
    if exact:
        swaps = (np.arange(2**n_clusters)[:, None] >> np.arange(n_clusters)) & 1
    else:
        swaps = np.random.default_rng(seed).integers(0, 2, (n_permutations, n_clusters), dtype=np.uint8)
    p, error = np.full(len(pairs), np.nan), np.full(len(pairs), np.nan)
    difference = observed[pairs[:, 0]] - observed[pairs[:, 1]]
    step = max(1, (1 << 22) // n_clusters)
    linear = metric in LINEAR and len(swaps) > n_clusters

    def apart(i: int, j: int, swaps: NDArray[Any]) -> Floats:
        """The difference after each of the swaps (B, G)."""
        drawn = []
        for start in range(0, len(swaps), step):
            swap = swaps[start : start + step]
            weights = np.concatenate([1 - swap, swap], axis=1)
            values = score(i, j, weights, np.concatenate([codes, codes + n_clusters]))
            drawn.append(values[:, 0] - values[:, 1])
        return np.concatenate(drawn)

    for k in np.flatnonzero(~np.isnan(difference)):
        i, j = pairs[k]
        if linear:
            change = apart(i, j, np.eye(n_clusters)) - difference[k]
            parts = [swaps[start : start + step] @ change for start in range(0, len(swaps), step)]
            null = difference[k] + np.concatenate(parts)
        else:
            null = apart(i, j, swaps)
        reached = np.count_nonzero(np.abs(null) >= abs(difference[k]) - 1e-12)
        p[k] = reached / len(null) if exact else (1 + reached) / (1 + len(null))
        error[k] = null.std()
    nothing = np.full(len(pairs), np.nan)
    return Differences(
        metric=metric,
        pairs=pairs,
        difference=difference,
        low=nothing,
        high=nothing,
        standard_error=error,
        p=p,
        p_holm=holm(p),
        degrees_of_freedom=np.full(len(pairs), np.inf),
        p_method=np.full(
            len(pairs),
            f"permutation, {'all' if exact else 'random'} {len(swaps)} swaps of groups",
            dtype=object,
        ),
        reason=np.full(len(pairs), "a permutation test has no interval", dtype=object),
    )

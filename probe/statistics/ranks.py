"""Several systems over several tasks: average ranks, mean scores, and which of them differ.

Two questions, and a test for each:

* On these tasks, with other slides or patients: intervals by drawing groups with replacement within each
  task, for all systems at once (`draw_scores`); pairs by the jackknife over groups (`compare_means`), as all
  comparisons of this package. (A test by the spread of the draws called equal systems different in 14 of 100
  simulated studies of 40 groups.)
* On other tasks like these: Friedman's test in the form of Iman & Davenport (1980), and Nemenyi's critical
  difference of average ranks (`friedman`, `critical_difference`; Demšar, JMLR 2006, eq. 2.1-2.3).
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import special

from ...errors import InvalidRequest
from .comparisons import holm
from .intervals import UNDEFINED_DRAWS, cluster_weights
from .weighted import midranks

Floats = NDArray[np.float64]
BLOCK = 50  # draws that are scored at once


def draw_scores(
    score: Callable[[NDArray[np.uint16]], Floats], n_groups: int, *, n_resamples: int, seed: int
) -> Floats:
    """Scores of k systems over draws of groups: float64 (n_resamples, k); NaN where undefined.

    score : weights of the groups (b, n_groups) -> scores (b, k). Raises ProbeError for fewer than 2 groups.
    """
    rng = np.random.default_rng(seed)
    sizes = [min(BLOCK, n_resamples - start) for start in range(0, n_resamples, BLOCK)]
    return np.concatenate([score(cluster_weights(n_groups, n_resamples=b, seed=rng)) for b in sizes])


def ranks(scores: Floats) -> Floats:
    """Ranks along the last axis, 1 the highest, equal ones share their mean; NaN where any is NaN.

    scores : float64 (..., k)
    """
    ranked = np.moveaxis(midranks(np.moveaxis(-scores, -1, 0)), 0, -1)
    return np.where(np.isnan(scores).any(axis=-1, keepdims=True), np.nan, ranked)


def percentiles(draws: Floats, confidence: float) -> tuple[Floats, Floats]:
    """Ends of the percentile interval of each column: float64 (k,) twice.

    draws : float64 (B, k). NaN where more than `UNDEFINED_DRAWS` of them are undefined.
    """
    tail = (1 - confidence) / 2
    known = np.isnan(draws).mean(axis=0) <= UNDEFINED_DRAWS
    ends = np.full((2, draws.shape[1]), np.nan)
    if known.any():
        ends[:, known] = np.nanquantile(draws[:, known], [tail, 1 - tail], axis=0)
    return ends[0], ends[1]


def compare_means(
    values: Floats, left_out: Sequence[Floats], *, inflation: Sequence[float] | None = None
) -> Floats:
    """Two-sided p, adjusted by Holm over all pairs, that two systems have equal mean scores on these tasks.

    values : float64 (N, k), scores of k systems on N tasks; left_out : of each task float64 (G, k), the same
        without one group (`leave_one_out`); inflation : factor of each task's variance (None: 1), above 1 for
        out-of-fold scores
    The variance of a difference on a task is the jackknife's over its groups, tasks are independent:
    the variance of the mean is their sum over N^2, its degrees of freedom Satterthwaite's (Biometrics 1946).
    Returns float64 (k, k); NaN where a value is undefined or no group changes the difference.
    """
    n, k = values.shape
    i, j = np.triu_indices(k, 1)
    difference = (values[:, j] - values[:, i]).mean(axis=0)
    variance, over_freedom = np.zeros(len(i)), np.zeros(len(i))
    for without, factor in zip(left_out, inflation or [1.0] * n, strict=True):
        groups = len(without)
        d = without[:, j] - without[:, i]
        of_task = factor * (groups - 1) / groups * ((d - d.mean(axis=0)) ** 2).sum(axis=0) / n**2
        variance += of_task
        over_freedom += of_task**2 / (groups - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(difference) / np.sqrt(variance)
        p = 2 * special.stdtr(variance**2 / over_freedom, -t)
    table = np.full((k, k), np.nan)
    table[i, j] = table[j, i] = holm(np.where(variance > 0, p, np.nan))
    return table


def friedman(scores: Floats) -> tuple[float, float]:
    """Iman & Davenport's F of equal average ranks, and its p; scores : float64 (N tasks, k systems).

    Ties are corrected for, as in scipy.stats.friedmanchisquare. F is infinite and p 0 where all tasks rank
    the systems alike. Raises InvalidRequest for fewer than 2 tasks or systems.
    """
    n, k = scores.shape
    if n < 2 or k < 2:
        raise InvalidRequest(f"ranks are compared over 2 tasks and 2 systems or more, not {n} and {k}")
    ranked = ranks(scores)
    spread = ((ranked - (k + 1) / 2) ** 2).sum()
    if not spread:
        return 0.0, 1.0
    chi2 = n * (k - 1) * ((ranked.mean(axis=0) - (k + 1) / 2) ** 2).sum() * n / spread
    rest = n * (k - 1) - chi2
    if rest <= 1e-12:
        return float("inf"), 0.0
    f = (n - 1) * chi2 / rest
    return float(f), float(special.fdtrc(k - 1, (k - 1) * (n - 1), f))


def critical_difference(k: int, n: int, *, alpha: float) -> float:
    """Nemenyi's: average ranks of k systems over n tasks that differ by less do not differ significantly."""
    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(1 - alpha, k, np.inf)) / np.sqrt(2)
    return q * float(np.sqrt(k * (k + 1) / (6 * n)))

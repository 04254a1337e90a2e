"""Ranks over tasks: published tables, scipy, and how often nothing is called something."""

import numpy as np
import pytest
from patchbank.errors import InvalidRequest, ProbeError
from patchbank.probe.statistics.ranks import (
    compare_means,
    critical_difference,
    draw_scores,
    friedman,
    percentiles,
    ranks,
)
from scipy import stats


def test_critical_values_are_those_of_the_published_table() -> None:
    """Demšar 2006, table 5a: q at 0.05 for 2..10 classifiers; his example: 4 systems, 14 sets, CD 1.25."""
    table = [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]
    for k, q in enumerate(table, start=2):
        assert critical_difference(k, 1, alpha=0.05) / np.sqrt(k * (k + 1) / 6) == pytest.approx(q, abs=1e-3)
    assert critical_difference(4, 14, alpha=0.05) == pytest.approx(1.25, abs=0.01)


def test_friedman_is_scipys_in_the_form_of_iman_and_davenport() -> None:
    scores = np.random.default_rng(0).normal(size=(9, 5)).round(1)
    scores += np.array([0, 0.2, 0.4, 0.4, 1])
    chi2 = stats.friedmanchisquare(*scores.T).statistic
    f, p = friedman(scores)
    assert f == pytest.approx(8 * chi2 / (9 * 4 - chi2))
    assert p == pytest.approx(stats.f.sf(f, 4, 32))
    assert friedman(np.ones((3, 4))) == (0.0, 1.0)
    assert friedman(np.tile([3.0, 2.0, 1.0], (4, 1))) == (float("inf"), 0.0)
    with pytest.raises(InvalidRequest, match="2 tasks and 2 systems or more, not 1 and 4"):
        friedman(np.ones((1, 4)))


def test_ranks_begin_with_the_highest_and_equal_ones_share() -> None:
    assert ranks(np.array([[0.9, 0.7, 0.9, 0.1], [1, 2, 3, np.nan]]))[0].tolist() == [1.5, 3, 1.5, 4]
    assert np.isnan(ranks(np.array([1.0, np.nan]))).all()


def test_draws_are_of_whole_groups_and_the_same_for_all_systems() -> None:
    values = np.random.default_rng(1).normal(size=(12, 3))

    def score(weights: np.ndarray) -> np.ndarray:
        assert (weights.sum(axis=1) == 12).all()
        return weights @ values / 12

    draws = draw_scores(score, 12, n_resamples=2001, seed=3)
    assert draws.shape == (2001, 3)
    assert np.array_equal(draws, draw_scores(score, 12, n_resamples=2001, seed=3))
    assert draws.std(axis=0) == pytest.approx(values.std(axis=0) / np.sqrt(12), rel=0.06)
    low, high = percentiles(draws, 0.95)
    assert (low < values.mean(axis=0)).all()
    assert (values.mean(axis=0) < high).all()
    draws[:30] = np.nan
    assert np.isnan(percentiles(draws, 0.95)).all(), "1.5 % of the draws are undefined"
    with pytest.raises(ProbeError, match="at least two"):
        draw_scores(score, 1, n_resamples=10, seed=0)


def test_equal_systems_are_called_different_in_few_studies_and_other_ones_are_found() -> None:
    rng = np.random.default_rng(2)
    false = 0

    def without(groups: np.ndarray) -> np.ndarray:
        return (groups.sum(axis=0) - groups) / (len(groups) - 1)

    def draw() -> list[np.ndarray]:
        return [rng.normal(size=(n, 6)) for n in (12, 40)]

    for _ in range(400):
        tasks = draw()
        values = np.stack([groups.mean(axis=0) for groups in tasks])
        false += (compare_means(values, [without(groups) for groups in tasks]) < 0.05).any()
    assert 4 <= false <= 32, "Holm over 15 pairs: at most 5 % of the studies; 32 of 400 has p .99"
    tasks = draw()
    tasks[0][:, 0] += 5
    values = np.stack([groups.mean(axis=0) for groups in tasks])
    p = compare_means(values, [without(groups) for groups in tasks])
    assert (p[0, 1:] < 1e-3).all()
    assert np.isnan(np.diag(p)).all()
    assert np.isnan(compare_means(np.ones((2, 2)), [np.ones((5, 2))] * 2)).all(), "nothing varies"


def test_one_task_is_the_paired_t_test() -> None:
    groups = np.random.default_rng(3).normal(size=(15, 2))
    left = (groups.sum(axis=0) - groups) / 14
    p = compare_means(groups.mean(axis=0)[None], [left])
    assert p[0, 1] == pytest.approx(stats.ttest_rel(*groups.T).pvalue)

"""Weighted sums over rows: against rows that are really repeated, left out, or missing."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from patchbank.errors import InvalidRequest
from patchbank.probe.statistics.weighted import Weighted, check_clusters, divide

Floats = NDArray[np.float64]


def sample(n: int = 40, g: int = 8) -> tuple[Floats, NDArray[np.intp]]:
    """Values (n, 3), clusters 0 .. g-1 of unequal size, not in order."""
    rng = np.random.default_rng(0)
    codes = np.concatenate([np.arange(g), rng.integers(0, g // 2, n - g)])
    return rng.normal(size=(n, 3)) * [1, 1e3, 1e-3] + [0, 1e5, 1], rng.permutation(codes)


@pytest.mark.parametrize("clustered", [True, False])
def test_sums_are_those_of_repeated_rows(clustered: bool) -> None:
    values, codes = sample()
    codes = codes if clustered else np.arange(40)
    weights = np.random.default_rng(1).integers(0, 4, (5, codes.max() + 1)).astype(float)
    rows = Weighted(n=40, weights=weights, groups=codes if clustered else None)
    assert (rows.n_samples, rows.n_clusters) == weights.shape
    for b, counts in enumerate(weights):
        again = np.repeat(np.arange(40), counts[codes].astype(int))
        np.testing.assert_allclose(rows.sums(values)[b], values[again].sum(axis=0), rtol=1e-12)
        np.testing.assert_allclose(rows.mean(values)[b], values[again].mean(axis=0), rtol=1e-12)
        found = rows.correlation(values[:, :1], values[:, 1:])[b]
        expected: Any = np.corrcoef(values[again].T)
        np.testing.assert_allclose(found, expected[0, 1:], rtol=1e-9)


@pytest.mark.parametrize("clustered", [True, False])
def test_without_weights_each_cluster_is_left_out_in_turn(clustered: bool) -> None:
    values, codes = sample()
    codes = codes if clustered else np.arange(40)
    rows = Weighted(n=40, weights=None, groups=codes if clustered else None)
    assert rows.n_samples == rows.n_clusters == codes.max() + 1
    for g in range(rows.n_clusters):
        left = values[codes != g]
        np.testing.assert_allclose(rows.sums(values)[g], left.sum(axis=0), rtol=1e-12)
        np.testing.assert_allclose(rows.mean(values)[g], left.mean(axis=0), rtol=1e-12)
    flags = values[:, :2] > values[:, :2].mean(axis=0)
    np.testing.assert_array_equal(rows.sums(flags)[0], flags[codes != 0].sum(axis=0))


def test_what_does_not_vary_has_no_correlation() -> None:
    x = np.array([1.0, 2.0, 3.0, 3.0])[:, None]
    rows = Weighted(
        n=4, weights=np.array([[1.0, 1, 1, 1], [0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]), groups=None
    )
    found = rows.correlation(x, 2 * x + 1)[:, 0]
    assert found[0] == pytest.approx(1)
    assert np.isnan(found[1:]).all(), "equal rows, one row, no row"
    assert np.isnan(rows.correlation(x, np.full_like(x, 0.1))).all()
    assert np.isnan(rows.mean(x)[3])


def test_a_correlation_is_never_beyond_one() -> None:
    x = np.random.default_rng(0).normal(size=(50, 1)) * 1e-9 + 1
    rows = Weighted(n=50, weights=np.ones((1, 50)), groups=None)
    assert abs(rows.correlation(x, -3 * x)[0, 0]) <= 1


def test_division_by_nothing_is_undefined() -> None:
    found = divide(np.array([[1.0, 0.0], [2.0, 3.0]]), np.array([[2.0], [0.0]]))
    np.testing.assert_array_equal(found, [[0.5, 0.0], [np.nan, np.nan]])


def test_the_axis_that_was_not_given_is_taken_out() -> None:
    codes, weights, axis = check_clusters(3, None, None)
    assert (codes, axis) == (None, 0)
    np.testing.assert_array_equal(weights, np.ones((1, 3)))
    codes, weights, axis = check_clusters(3, [1, 2], [0, 1, 1])
    assert codes is not None
    assert (weights.shape, axis) == ((1, 2), 0)
    _, weights, axis = check_clusters(3, [[1, 2, 5], [0, 1, 5]], [0, 1, 1])  # a cluster without rows
    assert (weights.shape, axis) == ((2, 3), slice(None))


@pytest.mark.parametrize(
    ("weights", "groups", "message"),
    [
        (None, [0, -1, 1], "integer codes"),
        (None, [0.0, 1.0, 2.0], "integer codes"),
        (None, [0, 1], "integer codes"),
        ([1, 1], None, r"\(resamples, 3\)"),
        ([1], [0, 1, 1], r"\(resamples, 2\)"),
        ([1, -1, 1], None, "finite and not negative"),
        ([1, np.nan, 1], None, "finite and not negative"),
        ([[[1, 1, 1]]], None, "one column a cluster"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights: Any, groups: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        check_clusters(3, weights, groups)

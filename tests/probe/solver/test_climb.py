"""More than two classes: the climb along the path of strengths."""

import numpy as np
import pytest
from patchbank.probe.solver import path
from patchbank.probe.solver.logistic import fit_logistic

from .test_logistic import compare

C = np.logspace(-4, 1, 6)


def study(kind, seed):
    """X, y, weights (S, n) of one of the awkward kinds."""
    rng = np.random.default_rng(seed)
    K = int(rng.integers(3, 7))
    n, d = int(rng.integers(40, 300)), int(rng.integers(3, 40))
    if kind == "few rows":
        n, d = 8 * K, 60
    X = rng.standard_normal((n, d)) * np.geomspace(1, 0.05, d) + rng.standard_normal(d)
    y = np.argmax(X @ rng.standard_normal((d, K)) * rng.uniform(0.2, 3) + rng.gumbel(size=(n, K)), axis=1)
    y[: 4 * K] = np.arange(4 * K) % K
    v = rng.uniform(0.2, 3, (3, n))
    v[0] = 1
    v[2, 4 * K :: 3] = 0
    if kind == "collinear":
        X = np.concatenate([X, X[:, :2] + X[:, 1:3], X[:, :1]], axis=1)
    if kind == "constant":
        X[:, 0] = 3
        X[v[2] > 0, 1] = -1  # in one set only
    if kind == "class weights":
        v[1] = (1 / np.bincount(y))[y] * n / K
    if kind == "soft labels":  # rows that are divided stand twice, with the shares of their votes
        share = rng.uniform(0.5, 1, n)
        X, y = np.concatenate([X, X]), np.concatenate([y, (y + 1) % K])
        v = np.concatenate([v * share, v * (1 - share)], axis=1)
    return X, y, v


@pytest.mark.parametrize("abreast", [1, 2])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "kind", ["plain", "few rows", "collinear", "constant", "class weights", "soft labels"]
)
def test_the_climb_finds_the_optimum(
    kind: str, seed: int, abreast: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(path, "ABREAST", abreast)
    X, y, v = study(kind, seed)
    fits = fit_logistic(X, y, C=C, weights=v)
    assert (fits.status != "capped").all()
    compare(X, y, v, fits)


def test_strengths_in_any_order_and_twice_are_climbed_in_theirs() -> None:
    X, y, v = study("plain", 3)
    once = fit_logistic(X, y, C=C, weights=v)
    mixed = fit_logistic(X, y, C=np.concatenate([C[::-1], C[:2]]), weights=v)
    np.testing.assert_allclose(mixed.objective[:, :6], once.objective[:, ::-1], rtol=1e-9)
    np.testing.assert_allclose(mixed.objective[:, 6:], once.objective[:, :2], rtol=1e-9)

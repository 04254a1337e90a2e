"""What the optimum has to satisfy, whatever way led to it: its equations, computed from the coefficients that
come out, cases with a solution in closed form, and changes of the data that change it in a known way."""

from typing import Any, Literal

import numpy as np
import pytest
import statsmodels.api as sm
from patchbank.errors import InvalidRequest
from patchbank.probe.solver.logistic import LogisticFits, fit_logistic
from scipy import special, stats

Standardize = bool | Literal["overall"]
STRENGTHS = np.array([1e-3, 0.1, 10.0])


def data(n: int = 90, d: int = 6, k: int = 2, *, seed: int = 0) -> tuple[Any, Any]:
    """X (n, d) with unlike scales and means, y (n,), all classes in it and not separable."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    X = rng.normal(size=(n, d)) + 0.7 * rng.normal(size=(k, d))[y]
    return X * np.linspace(0.5, 3, d) + np.linspace(-1, 2, d), y


def sets(n: int) -> Any:
    """Three sets of weights (3, n): all rows, a subset, uneven ones."""
    rng = np.random.default_rng(1)
    return np.stack([np.ones(n), (np.arange(n) % 5 > 0).astype(float), rng.gamma(2.0, size=n)])


def probabilities(fits: LogisticFits, X: Any) -> Any:
    """(n, S, L, K), the last of K = 2 classes being the positive one."""
    scores = fits.decision(X)
    if fits.coef.ndim == 3:
        positive = special.expit(scores)
        return np.stack([1 - positive, positive], axis=-1)
    return special.softmax(scores, axis=-1)


def scales(X: Any, v: Any, standardize: Standardize) -> Any:
    """What a set's features are divided by, (d,)."""
    deviation = X[v > 0].std(axis=0)
    if standardize == "overall":
        return np.full(X.shape[1], np.sqrt(np.mean(deviation**2)))
    return deviation if standardize else np.ones(X.shape[1])


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("standardize", [True, False, "overall"])
def test_the_equations_of_the_optimum_hold(k: int, standardize: Standardize) -> None:
    """Penalty and residuals are in balance for each feature; residuals of a class sum to 0; the objective is
    the sum of losses and penalty."""
    X, y = data(k=k)
    weights = sets(len(y))
    fits = fit_logistic(X, y, C=STRENGTHS, weights=weights, standardize=standardize, tol=1e-12)
    p = probabilities(fits, X)
    for s, v in enumerate(weights):
        scale = scales(X, v, standardize)
        for j, strength in enumerate(STRENGTHS):
            residual = v[:, None] * (p[:, s, j] - np.eye(k)[y])  # (n, K)
            w = np.atleast_2d(fits.coef[s, j]) * scale  # in standardised units
            if k == 2:
                residual = residual[:, 1:]
            balance = (X / scale).T @ residual + w.T / strength
            size = np.abs(X / scale).T @ np.abs(residual) + 1e-9
            assert (np.abs(balance) < 2e-5 * size).all()
            assert (np.abs(residual.sum(axis=0)) < 1e-6 * v.sum()).all()
            loss = -(v * np.log(p[np.arange(len(y)), s, j, y])).sum()
            assert fits.objective[s, j] == pytest.approx(loss + (w**2).sum() / (2 * strength), rel=1e-9)
    assert (fits.gap_bound <= 1e-9).all()


@pytest.mark.parametrize("k", [2, 4])
def test_a_penalty_without_end_leaves_the_shares_of_the_classes(k: int) -> None:
    X, _ = data(k=k)
    y = np.repeat(np.arange(k), [10, 80] if k == 2 else [10, 20, 25, 35])
    fits = fit_logistic(X, y, C=[1e-12])
    assert np.abs(fits.coef).max() < 1e-8
    np.testing.assert_allclose(probabilities(fits, X)[0, 0, 0], np.bincount(y) / len(y), rtol=1e-6)
    assert fits.objective[0, 0] == pytest.approx(len(y) * stats.entropy(np.bincount(y)), rel=1e-9)


def test_one_yes_or_no_feature_has_the_log_odds_ratio_as_its_coefficient() -> None:
    table = np.array([[30, 10], [15, 45]])  # feature x label
    x = np.repeat([0.0, 0.0, 1.0, 1.0], table.ravel())
    y = np.repeat([0, 1, 0, 1], table.ravel())
    fits = fit_logistic(x[:, None], y, C=[1e8], standardize=False, tol=1e-14)
    assert fits.coef[0, 0, 0] == pytest.approx(np.log(30 * 45 / (10 * 15)), rel=1e-6)
    assert fits.intercept[0, 0] == pytest.approx(np.log(10 / 30), rel=1e-6)


def test_without_a_penalty_it_is_statsmodels_logit() -> None:
    X, y = data()
    fits = fit_logistic(X, y, C=[1e9], tol=1e-14)
    reference = sm.Logit(y, sm.add_constant(X)).fit(disp=0, tol=1e-12)
    np.testing.assert_allclose(fits.coef[0, 0], reference.params[1:], rtol=1e-5)
    assert fits.intercept[0, 0] == pytest.approx(reference.params[0], rel=1e-5)
    assert fits.objective[0, 0] == pytest.approx(-reference.llf, rel=1e-7)


@pytest.mark.parametrize("k", [2, 3])
def test_weaker_penalties_have_longer_weights_and_lower_objectives(k: int) -> None:
    X, y = data(k=k)
    fits = fit_logistic(X, y, C=np.logspace(-4, 3, 8), tol=1e-10)
    w = fits.coef * X.std(axis=0)
    lengths = np.sqrt((w**2).reshape(8, -1).sum(axis=1))
    assert (np.diff(lengths) > 0).all()
    assert (np.diff(fits.objective[0]) < 0).all()
    p = probabilities(fits, X)[np.arange(len(y)), 0, :, y]
    assert (np.diff(-np.log(p).sum(axis=0)) < 0).all(), "the loss alone falls too"


def test_weights_of_the_classes_sum_to_zero() -> None:
    """Adding one vector to all classes changes no probability, and only costs penalty."""
    X, y = data(k=4)
    fits = fit_logistic(X, y, C=STRENGTHS, tol=1e-12)
    assert np.abs(fits.coef.sum(axis=2)).max() < 1e-4 * np.abs(fits.coef).max()


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("factor", [0.25, 8.0])
def test_weights_times_a_factor_are_strengths_times_it(k: int, factor: float) -> None:
    X, y = data(k=k)
    weights = sets(len(y))
    one = fit_logistic(X, y, C=STRENGTHS, weights=factor * weights, tol=1e-12)
    other = fit_logistic(X, y, C=factor * STRENGTHS, weights=weights, tol=1e-12)
    # certified to 1e-10 of the objective, which leaves a score some 1e-5
    np.testing.assert_allclose(one.decision(X), other.decision(X), rtol=1e-4, atol=5e-5)
    np.testing.assert_allclose(one.objective, factor * other.objective, rtol=1e-12)


@pytest.mark.parametrize("k", [2, 3])
def test_standardised_features_may_have_any_unit(k: int) -> None:
    X, y = data(k=k)
    units, shift = np.array([1e-3, 1.0, 25.0, 1e3, 7.0, 0.1]), np.arange(6.0)
    plain = fit_logistic(X, y, C=STRENGTHS, tol=1e-12)
    other = fit_logistic(X * units + shift, y, C=STRENGTHS, tol=1e-12)
    np.testing.assert_allclose(other.coef * units, plain.coef, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(other.decision(X * units + shift), plain.decision(X), atol=1e-4)


@pytest.mark.parametrize("k", [2, 3])
def test_a_rotation_of_features_rotates_the_coefficients(k: int) -> None:
    X, y = data(k=k)
    turn = stats.ortho_group.rvs(6, random_state=0)
    plain = fit_logistic(X, y, C=STRENGTHS, standardize=False, tol=1e-12)
    turned = fit_logistic(X @ turn, y, C=STRENGTHS, standardize=False, tol=1e-12)
    np.testing.assert_allclose(turned.coef @ turn.T, plain.coef, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(turned.objective, plain.objective, rtol=1e-9)


@pytest.mark.parametrize("k", [2, 3])
def test_a_feature_given_twice_shares_its_coefficient(k: int) -> None:
    """Two equal columns with half the coefficient each cost half the penalty: one at twice the strength."""
    X, y = data(d=1, k=k)
    twice = fit_logistic(np.hstack([X, X]), y, C=STRENGTHS, tol=1e-12)
    once = fit_logistic(X, y, C=2 * STRENGTHS, tol=1e-12)
    np.testing.assert_allclose(twice.coef[..., 0], twice.coef[..., 1], rtol=1e-5)
    np.testing.assert_allclose(twice.coef.sum(axis=-1), once.coef[..., 0], rtol=1e-4)


@pytest.mark.parametrize("k", [2, 3])
def test_a_set_in_company_is_the_set_alone(k: int) -> None:
    X, y = data(k=k)
    weights = sets(len(y))
    together = fit_logistic(X, y, C=STRENGTHS, weights=weights, tol=1e-12)
    for s, v in enumerate(weights):
        alone = fit_logistic(X, y, C=STRENGTHS, weights=v[None], tol=1e-12)
        np.testing.assert_allclose(together.coef[s], alone.coef[0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(together.objective[s], alone.objective[0], rtol=1e-10)
        left = fit_logistic(X[v > 0], y[v > 0], C=STRENGTHS, weights=v[None, v > 0], tol=1e-12)
        np.testing.assert_allclose(left.objective[0], alone.objective[0], rtol=1e-10)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_short_floats_are_the_numbers_that_they_hold(dtype: type) -> None:
    X, y = data()
    short = X.astype(dtype)
    one = fit_logistic(short, y, C=STRENGTHS, tol=1e-12)
    other = fit_logistic(short.astype(np.float64), y, C=STRENGTHS, tol=1e-12)
    np.testing.assert_allclose(one.coef, other.coef, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(one.objective, other.objective, rtol=1e-10)


def test_decisions_are_scores_of_rows_with_all_features() -> None:
    X, y = data(k=3)
    fits = fit_logistic(X, y, C=STRENGTHS)
    one = fits.decision(X[:1])
    assert one.shape == (1, 1, 3, 3)
    np.testing.assert_allclose(one[0, 0, 1], fits.coef[0, 1] @ X[0] + fits.intercept[0, 1], rtol=1e-12)
    for wrong in (X[:, :5], X[0], X[:, :, None]):
        with pytest.raises(InvalidRequest, match=r"need \(n, 6\)"):
            fits.decision(wrong)

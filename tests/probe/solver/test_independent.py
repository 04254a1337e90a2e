"""The optimum against a general optimiser on the objective as it is written down, and symmetries of data that
the optimum has to share."""

from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from patchbank.errors import InvalidRequest
from patchbank.probe.solver.logistic import fit_logistic
from scipy import optimize, special

Floats = NDArray[np.float64]


def sample(n: int, d: int, k: int, *, seed: int = 0) -> tuple[Floats, NDArray[np.intp]]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    return rng.normal(size=(n, d)) + rng.normal(size=(k, d))[y], y


def minimum(X: Floats, y: NDArray[np.intp], v: Floats, lam: float, scale: Floats) -> tuple[float, Floats]:
    """Value and class probabilities (n, K) at the least weighted log-loss plus lam / 2 |w|^2, by BFGS."""
    k, d = int(y.max()) + 1, X.shape[1]
    m = 1 if k == 2 else k
    A = (X - X[v > 0].mean(axis=0)) / scale

    def logits(w: Floats) -> Floats:
        z = A @ w[: m * d].reshape(m, d).T + w[m * d :]
        return np.hstack([np.zeros((len(z), 1)), z]) if m == 1 else z

    def objective(w: Floats) -> tuple[float, Floats]:
        log_p = special.log_softmax(logits(w), axis=1)
        residual = v[:, None] * (np.exp(log_p) - np.eye(k)[y])
        residual = residual[:, 1:] if m == 1 else residual
        slope = np.concatenate([(residual.T @ A).ravel() + lam * w[: m * d], residual.sum(axis=0)])
        penalty = lam / 2 * float(w[: m * d] @ w[: m * d])
        return -float(v @ log_p[np.arange(len(y)), y]) + penalty, slope

    start = np.zeros(m * d + m)
    found = optimize.minimize(
        objective, start, jac=True, method="BFGS", options={"gtol": 1e-8, "maxiter": 5000}
    )
    return float(found.fun), special.softmax(logits(found.x), axis=1)


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize(("n", "d"), [(80, 5), (24, 40)])
@pytest.mark.parametrize("standardize", [True, False, "overall"])
def test_a_general_optimiser_finds_nothing_lower(
    k: int, n: int, d: int, standardize: bool | Literal["overall"]
) -> None:
    X, y = sample(n, d, k)
    v = np.random.default_rng(1).gamma(2.0, size=n) * (np.arange(n) % 7 != 6)
    deviation = X[v > 0].std(axis=0)
    scale = deviation if standardize is True else np.ones(d)
    if standardize == "overall":
        scale = np.full(d, np.sqrt(np.mean(deviation**2)))
    fits = fit_logistic(X, y, C=[0.05, 2.0], weights=v[None], standardize=standardize, tol=1e-11)
    scores = fits.decision(X)[:, 0]
    for j, strength in enumerate((0.05, 2.0)):
        value, p = minimum(X, y, v, 1 / strength, scale)
        assert fits.objective[0, j] == pytest.approx(value, rel=1e-9)
        assert fits.objective[0, j] <= value * (1 + 1e-10)
        own = special.expit(scores[:, j])[:, None] if k == 2 else special.softmax(scores[:, j], axis=1)
        np.testing.assert_allclose(own, p[:, 1:] if k == 2 else p, atol=2e-5)


def test_mirrored_classes_have_no_intercept_and_opposite_scores() -> None:
    X, _ = sample(30, 4, 2)
    both, y = np.concatenate([X, -X]), np.repeat([0, 1], 30)
    fits = fit_logistic(both, y, C=[0.1, 10.0], standardize=False, tol=1e-12)
    np.testing.assert_allclose(fits.intercept, 0, atol=5e-6)
    scores = fits.decision(both)
    np.testing.assert_allclose(scores[:30], -scores[30:], atol=5e-5)


def test_classes_in_rotation_have_equal_intercepts_and_rotated_weights() -> None:
    X, _ = sample(40, 3, 3)
    turned = np.concatenate([np.roll(X, k, axis=1) for k in range(3)])
    fits = fit_logistic(turned, np.repeat([0, 1, 2], 40), C=[0.5], standardize=False, tol=1e-12)
    coef = fits.coef[0, 0]
    for k in (1, 2):
        np.testing.assert_allclose(coef[k], np.roll(coef[0], k), atol=5e-6)
    np.testing.assert_allclose(fits.intercept[0, 0], fits.intercept[0, 0, 0], atol=5e-6)


@pytest.mark.parametrize("k", [2, 3])
def test_a_constant_added_to_the_features_moves_the_intercept_alone(k: int) -> None:
    X, y = sample(60, 6, k)
    fits: list[Any] = [
        fit_logistic(Z, y, C=[0.1, 1.0], standardize=False, tol=1e-12) for Z in (X, X + np.arange(6) * 5)
    ]
    np.testing.assert_allclose(fits[0].coef, fits[1].coef, atol=5e-6)
    np.testing.assert_allclose(fits[0].decision(X), fits[1].decision(X + np.arange(6) * 5), atol=1e-5)


@pytest.mark.parametrize("k", [2, 3])
def test_columns_that_the_rows_do_not_span_have_no_weight(k: int) -> None:
    """With fewer rows than columns the weights lie in the span of the centred rows."""
    X, y = sample(18, 50, k)
    fits = fit_logistic(X, y, C=[0.01, 1.0], standardize=False, tol=1e-12)
    _, _, span = np.linalg.svd(X - X.mean(axis=0), full_matrices=True)
    outside = fits.coef.reshape(-1, 50) @ span[17:].T
    np.testing.assert_allclose(outside, 0, atol=1e-6 * np.abs(fits.coef).max())


def test_rows_of_another_width_are_refused() -> None:
    X, y = sample(30, 4, 3)
    fits = fit_logistic(X, y, C=[1.0])
    assert fits.decision(X[:2]).shape == (2, 1, 1, 3)
    for wrong in (X[:, :3], X[0]):
        with pytest.raises(InvalidRequest, match=r"these fits need \(n, 4\)"):
            fits.decision(wrong)

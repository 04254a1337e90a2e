"""Ridge regression of several targets against scikit-learn."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from patchbank.probe.classifiers import targets
from patchbank.probe.classifiers.targets import RidgePath
from patchbank.probe.model import apply
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Floats = NDArray[Any]
ALPHAS = (1e5, 1e2, 1.0, 1e-3)


def sample(n: int, d: int, t: int = 5, *, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    """Correlated columns of unequal scale, targets with an offset, further rows."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(d, d)) * rng.gamma(1.0, size=d)
    X = ((rng.normal(size=(n + 40, d)) @ mixing + rng.normal(size=d)) * rng.gamma(1.0, size=d)).astype("f4")
    Y = X[:n] @ rng.normal(size=(d, t)) / d + rng.normal(size=(n, t)) + 100
    return X[:n], Y, X[n:]


@pytest.mark.parametrize(("n", "d"), [(200, 30), (30, 80), (50, 50)])
def test_every_penalty_is_scikit_learns(n: int, d: int) -> None:
    X, Y, Z = sample(n, d)
    path = RidgePath.fit(X, Y)
    for alpha, found in zip(ALPHAS, path.predict(Z, ALPHAS), strict=True):
        fitted = make_pipeline(StandardScaler(), Ridge(alpha=alpha, solver="svd")).fit(X.astype("f8"), Y)
        expected = fitted.predict(Z.astype("f8"))
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8 * Y.std())


@pytest.mark.parametrize(("n", "d"), [(300, 60), (60, 90)])
@pytest.mark.parametrize("components", [1, 20, 55])
def test_ridge_on_components_is_that_of_a_pipeline(n: int, d: int, components: int) -> None:
    X, Y, Z = sample(n, d)
    path = RidgePath.fit(X, Y, components=components)
    assert path.values.shape == (components,)
    for alpha, found in zip(ALPHAS, path.predict(Z, ALPHAS), strict=True):
        fitted = make_pipeline(
            StandardScaler(), PCA(components, svd_solver="full"), Ridge(alpha=alpha, solver="svd")
        ).fit(X.astype("f8"), Y)
        np.testing.assert_allclose(found, fitted.predict(Z.astype("f8")), rtol=1e-8, atol=1e-8 * Y.std())


def test_the_recipe_of_hest_has_its_predictions_up_to_the_mean() -> None:
    X, Y, Z = sample(300, 60)
    pipeline = make_pipeline(StandardScaler(), PCA(20, svd_solver="full"))
    alpha = 100 / (20 * Y.shape[1])
    fitted = Ridge(alpha=alpha, solver="svd", fit_intercept=False).fit(
        pipeline.fit_transform(X.astype("f8")), Y
    )
    [found] = RidgePath.fit(X, Y, components=20).predict(Z, [alpha])
    expected = fitted.predict(pipeline.transform(Z.astype("f8"))) + Y.mean(axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_leaving_rows_out_chooses_the_penalty_of_ridge_cv() -> None:
    X, Y, _ = sample(60, 10)
    A = StandardScaler().fit_transform(X.astype("f8"))
    fitted = RidgeCV(ALPHAS, alpha_per_target=True).fit(A, Y)
    errors = np.zeros((len(ALPHAS), Y.shape[1]))
    for i in range(60):
        rows = np.arange(60) != i
        path = RidgePath.fit(X[rows], Y[rows])
        for a, found in enumerate(path.predict(X[[i]], ALPHAS)):
            errors[a] += (found[0] - Y[i]) ** 2
    np.testing.assert_array_equal(np.array(ALPHAS)[errors.argmin(axis=0)], fitted.alpha_)


def test_without_scaling_the_penalty_is_of_features_over_one_number() -> None:
    X, Y, Z = sample(100, 20)
    path = RidgePath.fit(X, Y, standardize=False)
    size = np.sqrt(X.astype("f8").var(axis=0).mean())
    fitted = Ridge(alpha=10.0, solver="svd").fit(X.astype("f8") / size, Y)
    [found] = path.predict(Z, [10.0])
    np.testing.assert_allclose(found, fitted.predict(Z.astype("f8") / size), rtol=1e-8)


def test_steps_are_the_fit_with_a_penalty_for_each_target() -> None:
    X, Y, Z = sample(100, 20, 3)
    path = RidgePath.fit(X, Y, components=15)
    found = apply(path.steps(np.array([1e2, 1.0, 1e-3])), Z)
    for t, alpha in enumerate((1e2, 1.0, 1e-3)):
        [one] = path.predict(Z, [alpha])
        np.testing.assert_allclose(found[:, t], one[:, t], rtol=1e-9)


def test_blocks_of_rows_give_the_same_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    X, Y, Z = sample(100, 20)
    whole = list(RidgePath.fit(X, Y).predict(Z, ALPHAS))
    monkeypatch.setattr(targets, "BLOCK_ROWS", 7)
    for found, expected in zip(RidgePath.fit(X, Y).predict(Z, ALPHAS), whole, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert [p.shape for p in RidgePath.fit(X, Y).predict(Z[:0], [1.0])] == [(0, 5)]


def test_constant_columns_and_constant_targets() -> None:
    X, Y, Z = sample(50, 10)
    X[:, 3], Z[:, 3], Y[:, 1] = 7.0, 7.0, 4.0
    [found] = RidgePath.fit(X, Y).predict(Z, [1.0])
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:, 1], 4.0)
    [flat] = RidgePath.fit(np.ones((5, 2)), Y[:5]).predict(np.ones((2, 2)), [1.0])
    np.testing.assert_allclose(flat, np.broadcast_to(Y[:5].mean(axis=0), (2, 5)))

"""The solver against scikit-learn: objective and predictions over the cases that occur."""

import numpy as np
import pytest
from patchbank.errors import InvalidRequest, ProbeError
from patchbank.probe.logistic import fit_logistic
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

C = np.logspace(-4, 1, 4)


def data(n=200, d=12, k=2, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)) * np.geomspace(1, 0.1, d) + rng.standard_normal(d)
    y = np.argmax(X @ rng.standard_normal((d, k)) + rng.gumbel(size=(n, k)), axis=1)
    y[:k] = range(k)
    return X, y


def objective(X, y, w, b, v, c):
    """Written out once more, from the definition."""
    z = X @ np.atleast_2d(w).T + b
    if z.shape[1] == 1:
        z = np.concatenate([np.zeros_like(z), z], axis=1)
    z = z - z.max(axis=1, keepdims=True)
    loss = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y]
    return v @ loss + np.sum(np.square(w)) / (2 * c)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("shape", [(200, 12), (40, 90)])
def test_the_optimum_is_scikit_learns(k, shape):
    X, y = data(*shape, k=k)
    v = np.random.default_rng(1).uniform(0.5, 2, (3, len(X)))
    v[1, ::4] = 0
    v[2] = (y == 0) * 3 + 1
    fits = fit_logistic(X, y, C=C, weights=v)
    for s in range(3):
        rows = v[s] > 0
        scaler = StandardScaler().fit(X[rows])
        for i, c in enumerate(C):
            A = scaler.transform(X[rows])
            ref = LogisticRegression(C=c, solver="newton-cholesky", tol=1e-10).fit(A, y[rows], v[s, rows])
            f = objective(A, y[rows], ref.coef_, ref.intercept_, v[s, rows], c)
            assert abs(fits.objective[s, i] - f) <= 1e-7 * f
            ours = fits.decision(X)[:, s, i]
            theirs = ref.decision_function(scaler.transform(X))
            np.testing.assert_array_equal(
                ours > 0 if k == 2 else ours.argmax(-1), theirs > 0 if k == 2 else theirs.argmax(-1)
            )


def test_a_set_without_a_class_is_named():
    X, y = data()
    v = np.ones((3, len(X)))
    v[2, y == 1] = 0
    with pytest.raises(ProbeError, match="set 2 has no row of class 1"):
        fit_logistic(X, y, C=C, weights=v)


def test_nan_is_refused():
    X, y = data()
    X[7, 3] = np.nan
    with pytest.raises(ProbeError, match="row 7"):
        fit_logistic(X, y, C=C)


def test_senseless_requests_are_refused():
    X, y = data()
    for bad in (
        {"C": [-1]},
        {"C": []},
        {"C": C, "weights": -np.ones((1, len(X)))},
        {"C": C, "weights": np.ones(9)},
    ):
        with pytest.raises(InvalidRequest):
            fit_logistic(X, y, **bad)
    with pytest.raises(InvalidRequest):
        fit_logistic(X, y + 0.5, C=C)

"""The solver against scikit-learn: objective and predictions over the cases that occur; honest statuses."""

from typing import Any

import numpy as np
import pytest
from patchbank.errors import InvalidRequest, ProbeError
from patchbank.probe.solver import logistic
from patchbank.probe.solver.logistic import fit_logistic
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

C = np.logspace(-4, 1, 4)


def data(n=200, d=12, k=2, seed=0):
    """Features with a decaying spectrum, not centred; labels by a random linear model."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)) * np.geomspace(1, 0.1, d) + rng.standard_normal(d)
    y = np.argmax(X @ rng.standard_normal((d, k)) + rng.gumbel(size=(n, k)), axis=1)
    y[: 4 * k] = np.arange(4 * k) % k
    return X, y


def sets(y, seed=1):
    """Three sets: all rows with random weights; without every fourth row, balanced; a random half."""
    rng = np.random.default_rng(seed)
    v = rng.uniform(0.5, 2, (3, len(y)))
    v[1, 9::4] = 0
    v[1] *= (1 / np.bincount(y, weights=v[1] > 0))[y] * len(y)
    v[2] *= rng.random(len(y)) < 0.5
    v[2, : 4 * (y.max() + 1)] = 1
    return v


def objective(A, y, w, b, v, c):
    """Written out once more, from the definition. w (1 or K, d), b (1 or K,)."""
    z = A @ np.atleast_2d(w).T + b
    if z.shape[1] == 1:
        z = np.concatenate([np.zeros_like(z), z], axis=1)
    z = z - z[np.arange(len(y)), y][:, None]  # log(1 + sum of the others): exact where it is tiny
    z[np.arange(len(y)), y] = -np.inf
    loss = np.logaddexp(0, np.logaddexp.reduce(z, axis=1))
    return v @ loss + np.sum(np.square(w)) / (2 * c)


def compare(X, y, v, fits, *, gap=1e-6, standardize=True):
    """Every fit's objective, recomputed from its coefficients, against scikit-learn's; the predictions."""
    everything = X.astype(np.float64)
    decision = fits.decision(X)
    differ = 0
    for s in range(len(v)):
        rows = v[s] > 0
        scaler = StandardScaler(with_mean=standardize, with_std=standardize).fit(everything[rows])
        A = scaler.transform(everything[rows])
        scale = np.ones(X.shape[1]) if scaler.scale_ is None else scaler.scale_
        for i, c in enumerate(fits.C):
            ref = LogisticRegression(C=c, solver="newton-cholesky", tol=1e-10, max_iter=500)
            ref.fit(A, y[rows], v[s, rows])
            best = objective(A, y[rows], ref.coef_, ref.intercept_, v[s, rows], c)
            w = fits.coef[s, i] * scale
            b = fits.intercept[s, i] + (0 if scaler.mean_ is None else fits.coef[s, i] @ scaler.mean_)
            mine = objective(A, y[rows], w, b, v[s, rows], c)
            assert mine - best <= gap * best
            assert fits.objective[s, i] == pytest.approx(mine, rel=1e-9)
            assert mine - best <= fits.gap_bound[s, i] * mine + 1e-12 * mine
            ours = decision[:, s, i]
            theirs = ref.decision_function(scaler.transform(everything))
            if ours.ndim == 1:
                differ += np.sum((ours > 0) != (theirs > 0))
            else:
                differ += np.sum(ours.argmax(-1) != theirs.argmax(-1))
    assert differ <= 1e-3 * decision.size  # scores within the gap of 0


def test_features_that_are_constant_in_one_set_only():
    """Rarely active features of a CNN: 0 in all rows of a set, tiny elsewhere; their variance there is 0."""
    X, y = data(90, 40)
    v = np.ones((3, 90))
    for s in range(3):
        v[s, 10 + s : 90 : 3] = 0
    X[:, 5:35] = 0
    for j in range(5, 35):  # not 0 in a few rows that set j % 3 holds out
        X[[10 + j % 3, 40 + j % 3], j] = [3e-4, 1e-4]
    X = X.astype(np.float16)
    fits = fit_logistic(X, y, C=C, weights=v, tol=1e-8)
    assert set(fits.status.ravel()) <= {"converged", "polished"}
    compare(X, y, v, fits)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("shape", [(200, 12), (40, 90)])
def test_the_optimum_is_scikit_learns(shape, k, dtype):
    X, y = data(*shape, k=k)
    v = sets(y)
    X = X.astype(dtype)
    compare(X, y, v, fit_logistic(X, y, C=C, weights=v))


@pytest.mark.parametrize("seed", range(6))
def test_the_optimum_in_random_cases(seed):
    rng = np.random.default_rng(100 + seed)
    n, d, k = int(rng.integers(30, 400)), int(rng.integers(1, 80)), int(rng.choice([2, 2, 4]))
    X, y = data(n, d, k, seed)
    v = sets(y, seed)
    fits = fit_logistic(X, y, C=np.logspace(-5, 3, 5), weights=v)
    assert (fits.status != "capped").all()
    compare(X, y, v, fits)


def test_one_set_without_weights_and_without_standardisation():
    X, y = data()
    fits = fit_logistic(X, y, C=C, standardize=False)
    assert fits.coef.shape == (1, 4, 12)
    assert fits.intercept.shape == fits.status.shape == (1, 4)
    compare(X, y, np.ones((1, len(X))), fits, standardize=False)


def test_awkward_columns():
    """Constant in all sets, constant in one set only, duplicated, one-hot, and scaled by 1e4."""
    X, y = data(300, 10)
    rng = np.random.default_rng(5)
    hot = np.eye(6)[rng.integers(0, 6, 300)]
    v = sets(y)
    once = (v[1] == 0) * rng.standard_normal(300)
    X = np.column_stack([X, np.full(300, 7.0), once, X[:, 0], hot, hot, 1e4 * X[:, :2] + 1e6])
    fits = fit_logistic(X, y, C=np.logspace(-4, 3, 5), weights=v)
    assert (fits.coef[:, :, 10] == 0).all()
    assert (fits.coef[1, :, 11] == 0).all()
    compare(X, y, v, fits)


def test_badly_scaled_features_end_converged_or_say_so():
    X, y = data(300, 20)
    X *= np.geomspace(1e-3, 1e4, 20)
    fits = fit_logistic(X, y, C=C, standardize=False)
    exact = fit_logistic(X, y, C=C, standardize=False, tol=1e-12)
    fine = fits.status != "capped"
    assert fine.any()
    assert ((fits.objective - exact.objective)[fine] <= 1e-6 * exact.objective[fine]).all()
    assert (fits.objective - exact.objective <= fits.gap_bound * fits.objective).all()


def test_separable_data_at_weak_penalties():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((150, 60))
    y = (X[:, 0] > 0).astype(int)
    v = np.ones((2, 150))
    v[1, ::3] = 0
    fits = fit_logistic(X, y, C=np.logspace(-2, 6, 9), weights=v)
    assert (fits.status != "capped").all()
    compare(X, y, v, fits)


def test_tight_tolerances_reach_the_end_of_float64():
    X, y = data(200, 30)
    fits = fit_logistic(X, y, C=C, weights=sets(y), tol=1e-13)
    assert (fits.gap_bound < 1e-9).all()
    assert (fits.status != "capped").all()


def test_more_fits_than_slots():
    X, y = data(120, 8)
    v = np.random.default_rng(3).integers(1, 4, (40, 120)).astype(float)
    strengths = np.logspace(-4, 1, 10)
    fits = fit_logistic(X, y, C=strengths, weights=v)
    assert (fits.status == "converged").all()
    again = fit_logistic(X, y, C=strengths[3:5], weights=v[[39]])
    np.testing.assert_allclose(fits.objective[39, 3:5], again.objective[0], rtol=1e-6)


@pytest.mark.parametrize("d", [1, 2, 30])
def test_penalties_stronger_than_any_eigenvalue(d):
    X, y = data(60, d)
    v = sets(y)
    compare(X, y, v, fit_logistic(X, y, C=[1e-9, 1e-7], weights=v))


def test_features_that_are_all_constant():
    _, y = data(60, 3)
    for n, d in ((60, 3), (60, 80)):
        fits = fit_logistic(np.ones((n, d)), y, C=C)
        assert (fits.coef == 0).all()
        np.testing.assert_allclose(fits.intercept, np.log(y.mean() / (1 - y.mean())))


def test_few_shot_sets():
    X, y = data(400, 50)
    rng = np.random.default_rng(2)
    v = np.zeros((20, 400))
    for row in v:
        for k in (0, 1):
            row[rng.choice(np.flatnonzero(y == k), 5, replace=False)] = 1
    compare(X, y, v, fit_logistic(X, y, C=C, weights=v))


def test_equal_strengths_and_any_order():
    X, y = data()
    fits = fit_logistic(X, y, C=[10.0, 0.1, 10.0])
    np.testing.assert_allclose(fits.objective[0, 0], fits.objective[0, 2], rtol=1e-7)
    assert fits.objective[0, 1] > fits.objective[0, 0]


def test_threads_change_nothing_that_matters():
    X, y = data(3000, 40)
    v = sets(y)
    one, three = (fit_logistic(X, y, C=C, weights=v, threads=t) for t in (1, 3))
    np.testing.assert_allclose(one.objective, three.objective, rtol=1e-7)


class Rows:
    """Only what a stored array must offer: shape, dtype and consecutive rows; counts what it is asked for."""

    def __init__(self, X):
        self.X, self.shape, self.dtype, self.most = X, X.shape, X.dtype, 0

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        self.most = max(self.most, len(self.X[rows]))
        return self.X[rows]


@pytest.mark.parametrize("k", [2, 3])
def test_streamed_is_the_same(tmp_path, k):
    X, y = data(9000, 16, k)
    v = sets(y)
    v[:, :7] = 0  # rows of no set
    X = X.astype(np.float16)
    file = np.memmap(tmp_path / "X", dtype=np.float16, mode="w+", shape=X.shape)
    file[:] = X
    budget = X.nbytes / 10
    expected = fit_logistic(X, y, C=C, weights=v)
    rows = Rows(X)
    for source, memory in ((file, budget), (rows, budget), (rows, 1e9), (file, 1e9)):
        fits = fit_logistic(source, y, C=C, weights=v, memory=memory)
        np.testing.assert_allclose(fits.objective, expected.objective, rtol=1e-7)
        assert (fits.status != "capped").all()
    assert rows.most <= 4096


@pytest.mark.parametrize("k", [2, 3])
def test_streamed_fits_that_the_descent_does_not_finish_are_finished_by_newton(k):
    """They once ended capped: its rows are reread in every step."""
    X, y = data(5000, 10, k)
    v = sets(y)
    strengths = [1e-2, 1e4]
    fits = fit_logistic(Rows(X), y, C=strengths, weights=v, memory=1e4, max_rounds=3)
    assert (fits.status == "newton").any()
    assert (fits.status != "capped").all()
    np.testing.assert_allclose(
        fits.objective, fit_logistic(X, y, C=strengths, weights=v).objective, rtol=1e-6
    )


def test_gap_bounds_are_bounds_of_rough_fits(monkeypatch):
    """Stopped early, without Newton: the status says so, and the bound holds."""
    monkeypatch.setattr(logistic, "_finish_set", lambda *_: None)
    X, y = data(300, 40)
    v, strengths = sets(y), np.logspace(-3, 2, 6)
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        rough = fit_logistic(X, y, C=strengths, weights=v, max_rounds=4)
    monkeypatch.undo()
    fine = fit_logistic(X, y, C=strengths, weights=v, tol=1e-13)
    gap = (rough.objective - fine.objective) / rough.objective
    assert (gap[rough.status == "capped"] > 1e-7).any()
    assert (gap[rough.status == "converged"] < 1e-6).all()
    assert (gap <= rough.gap_bound + 1e-14).all()
    assert (rough.gap_bound <= 1).all()


def test_newton_finishes_what_is_left():
    X, y = data(300, 40)
    v = sets(y)
    fits = fit_logistic(X, y, C=[1e-3, 1e2], weights=v, max_rounds=3)
    assert (fits.status == "newton").any()
    assert (fits.n_iter > 0).all()
    compare(X, y, v, fits)


def test_a_set_without_a_class_is_named():
    X, y = data()
    v = np.ones((3, len(X)))
    v[2, y == 1] = 0
    with pytest.raises(ProbeError, match="set 2 has no row of class 1"):
        fit_logistic(X, y, C=C, weights=v)
    with pytest.raises(ProbeError, match="set 0 has no row of class 1"):
        fit_logistic(X, np.zeros_like(y), C=C)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(bad):
    X, y = data()
    X[7, 3] = bad
    with pytest.raises(ProbeError, match="row 7"):
        fit_logistic(X, y, C=C)


def test_senseless_requests_are_refused():
    X, y = data()
    n = len(X)
    requests: tuple[dict[str, Any], ...] = (
        {"C": [-1]}, {"C": []}, {"C": [np.nan]}, {"C": C, "weights": -np.ones((1, n))},
        {"C": C, "weights": np.ones(9)}, {"C": C, "weights": np.full((1, n), np.nan)}, {"C": C, "tol": 0},
    )  # fmt: skip
    for bad in requests:
        with pytest.raises(InvalidRequest):
            fit_logistic(X, y, **bad)
    for labels in (y + 0.5, y[:-1], y - 1):
        with pytest.raises(InvalidRequest):
            fit_logistic(X, labels, C=C)
    with pytest.raises(InvalidRequest):
        fit_logistic(X.astype(int), y, C=C)
    with pytest.raises(InvalidRequest, match="need"):
        fit_logistic(X, y, C=C).decision(X[:, 1:])


@pytest.mark.parametrize("k", [2, 3])
def test_sets_of_few_rows_are_solved_by_newton_beside_the_others(monkeypatch, k):
    X, y = data(300, 60, k)
    v = np.zeros((4, 300))
    v[0] = 1
    rng = np.random.default_rng(7)
    for row, n in zip(v[1:], (12, 40, 60), strict=True):
        row[rng.permutation(300)[:n]] = rng.uniform(0.5, 2, n)
        row[: 2 * k] = 1
    strengths = np.logspace(-5, 6, 12)
    monkeypatch.setattr(logistic, "FEW", 1000)
    fits = fit_logistic(X, y, C=strengths, weights=v, threads=2)
    assert (fits.status[1:3] == "newton").all()
    assert (fits.status[0] != "newton").any()
    assert (fits.gap_bound[1:3, strengths < 100] < 1e-8).all()
    compare(X, y, v, fits)
    monkeypatch.setattr(logistic, "FEW", 0)
    assert (fit_logistic(X, y, C=strengths, weights=v).status[1] != "newton").any()


def test_hard_fits_of_many_classes_need_no_newton():
    """A Newton step of 8 classes costs as much as hundreds of rounds: the descent has to get there."""
    rng = np.random.default_rng(4)
    X = rng.standard_normal((480, 80)) * np.arange(1, 81) ** -0.75
    y = np.argmax(4 * X[:, :8] + rng.gumbel(size=(480, 8)), axis=1)
    fold = np.arange(480) % 3
    weights = np.stack([fold != k for k in range(3)]).astype(float)
    fits = fit_logistic(X, y, C=np.logspace(-4, 2, 8), weights=weights, threads=1)
    assert set(fits.status.ravel()) <= {"converged", "polished"}
    assert fits.gap_bound.max() <= 1e-5
    for s in (0, 2):
        inside = weights[s] > 0
        A = StandardScaler().fit_transform(X[inside])
        theirs = LogisticRegression(C=100, tol=1e-8, max_iter=5000).fit(A, y[inside])
        z = A @ theirs.coef_.T + theirs.intercept_
        loss = np.logaddexp.reduce(z, axis=1) - z[np.arange(len(z)), y[inside]]
        best = loss.sum() + np.sum(theirs.coef_**2) / 200
        assert abs(fits.objective[s, -1] / best - 1) < 1e-6
        np.testing.assert_array_equal(fits.decision(X[inside])[:, s, -1].argmax(axis=1), theirs.predict(A))

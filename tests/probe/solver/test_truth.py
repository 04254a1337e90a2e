"""No fit is called converged that is not: the faults that were found, and random hard problems.

The reference is the one of benchmarks/solver_torture.py, which knows nothing of the package's solver.
"""

import runpy
import warnings
from pathlib import Path

import numpy as np
import pytest
from patchbank.probe import estimator
from patchbank.probe.classifiers.grid import fit_logistic_grid
from patchbank.probe.config import ProbeConfig
from patchbank.probe.estimator import BatchedLogisticRegression, BatchedLogisticRegressionCV
from patchbank.probe.solver import logistic, newton
from patchbank.probe.solver.design import Design
from patchbank.probe.solver.logistic import fit_logistic
from patchbank.probe.solver.objective import Objective
from sklearn.exceptions import ConvergenceWarning

TORTURE = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "solver_torture.py"))


def optimum(X, y, C, v=None):
    """The least objective, of features as given."""
    A = np.column_stack([X.astype(np.float64), np.ones(len(X))])
    K = y.max() + 1
    start = np.zeros((1 if K == 2 else K, A.shape[1]))
    theta, f = TORTURE["rows_only"](A, y, np.ones(len(y)) if v is None else v, 1 / C, start)
    return theta, f


@pytest.fixture(autouse=True)
def _no_warnings():
    """Divisions by zero, overflows: none is printed."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("first", range(0, 30, 6))
def test_random_hard_problems(first):
    """No crash, no bound violated, no status that is not true; few are capped."""
    verdicts = [v for seed in range(first, first + 6) for v in TORTURE["check"](seed)[1]]
    assert len(verdicts) >= 18
    assert [fault for v in verdicts for fault in v.faults] == []
    assert sum(v.status == "capped" for v in verdicts) <= 1


@pytest.mark.parametrize("seed", [1014, 1419, 1599])
def test_a_step_that_rounding_turned_uphill_is_no_sign_of_an_optimum(seed, monkeypatch):
    """Its decrement is negative, and so below any tolerance: called newton at a gap of 1."""
    for likely in (newton.CG_LIKELY, 0):  # 0: also the ways of large problems
        monkeypatch.setattr(newton, "CG_LIKELY", likely)
        verdicts = TORTURE["check"](seed)[1]
        assert verdicts
        assert [fault for v in verdicts for fault in v.faults] == []


def test_a_dozen_rows_of_five_classes_at_a_weak_penalty():
    """Called converged with all coefficients 0: 18.5, where the optimum is 4.4e-5."""
    rng = np.random.default_rng(1)
    X, y = rng.standard_normal((12, 80)), np.arange(12) % 5
    fits = fit_logistic(X, y, C=[4e5], standardize=False)
    assert fits.objective[0, 0] == pytest.approx(4.39547301e-5, rel=1e-6)
    assert fits.objective[0, 0] == pytest.approx(optimum(X, y, 4e5)[1], rel=1e-6)
    assert fits.gap_bound[0, 0] < 1e-5
    assert fits.status[0, 0] != "capped"
    assert (fits.decision(X)[:, 0, 0].argmax(axis=1) == y).all()


@pytest.mark.parametrize(("k", "rows", "standardize"), [(3, 300, True), (3, 300, False), (9, 120, True)])
def test_embeddings_of_a_cnn_wider_than_they_are_many(k, rows, standardize):
    """1,280 features of 300 rows that are never negative and mostly small: training accuracy was .38."""
    rng = np.random.default_rng(k)
    y = np.arange(rows) % k
    hidden = rng.standard_normal((k, 40))[y] * 0.5 + rng.standard_normal((rows, 40))
    X = np.maximum(hidden @ rng.standard_normal((40, 1280)) / 6 - 0.5, 0).astype(np.float32)
    fits = fit_logistic(X, y, C=[1e4], standardize=standardize, threads=1)
    assert fits.status[0, 0] != "capped"
    assert (fits.decision(X)[:, 0, 0].argmax(axis=1) == y).all()
    assert fits.gap_bound[0, 0] < 1e-5


@pytest.mark.parametrize("seed", range(3))
def test_few_shot_classes_by_cross_validation_with_its_defaults(seed):
    """9 classes of 8 rows: the softmax Hessian is singular where probabilities are 0 or 1."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(9), 8)
    X = 2 * rng.standard_normal((9, 128))[y] + rng.standard_normal((72, 128))
    X = (10 * X if seed == 1 else np.maximum(X, 0)).astype(np.float32)
    model = BatchedLogisticRegressionCV(threads=1).fit(X, y)
    assert model.status_ != "capped"
    assert model.score(X, y) == 1
    theta, best = optimum(X, y, model.C_)
    ours = np.column_stack([model.coef_, model.intercept_])
    A = np.column_stack([X, np.ones(len(X))])
    assert TORTURE["objective"](ours, A, y, np.ones(72), 1 / model.C_) <= best * (1 + 1e-9)
    scores = A @ theta.T
    shift = scores.mean(axis=1, keepdims=True) - model.decision_function(X).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(model.decision_function(X), scores - shift, atol=1e-3)


@pytest.mark.parametrize("weighted", [False, True])
def test_two_classes_on_columns_of_any_scale(weighted):
    """Of 240 such fits 9 (with weights: 23) were called converged with a gap above 1e-6."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        n, d = int(rng.integers(40, 200)), int(rng.integers(5, 40))
        X = rng.standard_normal((n, d))
        y = (X @ rng.standard_normal(d) + 2 * rng.logistic(size=n) > 0).astype(int)
        X *= 10.0 ** rng.uniform(-5, 5, d)
        v = 10.0 ** rng.uniform(-4, 4, n) if weighted else np.ones(n)
        fits = fit_logistic(X, y, C=np.logspace(-4, 4, 5), weights=v[None], standardize=False)
        assert (fits.status != "capped").all()
        for k, C in enumerate(fits.C):
            theta, best = optimum(X, y, C, v)
            assert fits.objective[0, k] <= best * (1 + 1e-6)
            z = X @ theta[0, :-1] + theta[0, -1]
            p, ours = (1 / (1 + np.exp(-np.clip(s, -500, 500))) for s in (z, fits.decision(X)[:, 0, k]))
            used = v > 1e-3 * v.max()
            np.testing.assert_allclose(ours[used], p[used], atol=0.02)


def test_labels_that_one_feature_gives_away_at_the_weakest_penalty():
    X = np.repeat([-1.0, 1.0], 20)[:, None] * np.array([1.0, 1e5, 1e-5])
    y = np.repeat([0, 1], 20)
    fits = fit_logistic(X, y, C=[1e-8, 1, 1e8], standardize=False)
    assert (fits.status != "capped").all()
    for k, C in enumerate(fits.C):
        assert fits.objective[0, k] == pytest.approx(optimum(X, y, C)[1], rel=1e-6)


def test_what_is_capped_is_said(monkeypatch):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((100, 30)), np.arange(100) % 3
    monkeypatch.setattr(logistic, "_finish_set", lambda *_: None)
    with pytest.warns(ConvergenceWarning, match="1 of 1 logistic regressions did not converge"):
        fits = fit_logistic(X, y, C=[1e3], max_rounds=2)
    assert fits.status[0, 0] == "capped"
    monkeypatch.setattr(estimator, "fit_logistic", lambda *a, **k: fit_logistic(*a, **k, max_rounds=2))
    with pytest.warns(ConvergenceWarning):
        BatchedLogisticRegression(C=1e3).fit(X, y)
    with pytest.warns(ConvergenceWarning):
        BatchedLogisticRegressionCV(Cs=3).fit(X, y)


def test_a_bound_holds_at_any_point(monkeypatch):
    """Also where the intercepts are far from their optimum: the residuals are balanced first."""
    rng = np.random.default_rng(5)
    for k in (2, 3, 5):
        X, y = rng.standard_normal((60, 4)), np.append(np.arange(k), rng.integers(0, k, 60 - k))
        v = 10.0 ** rng.uniform(-3, 3, (2, 60))
        fine = fit_logistic(X, y, C=[0.5], weights=v, standardize=False, tol=1e-13)
        design = Design(X, y, v, n_classes=k, standardize=False, memory=1e9)
        objective = Objective(design, np.arange(2), np.full(2, 2.0))
        for steps in (0, 1, 50):
            monkeypatch.setattr("patchbank.probe.solver.objective.PROFILE_STEPS", steps)
            for size in (1e-3, 0.1, 1, 30):
                theta = size * rng.standard_normal((2, design.outputs, 5))
                at = objective.exact(np.arange(2), theta)
                assert (at.value - fine.objective[:, 0] <= at.gap).all()
                assert (at.gap <= at.value).all()


@pytest.mark.parametrize("preprocess", ["none", "l2", "standardize"])
def test_a_training_set_knows_nothing_of_the_rows_it_holds_out(preprocess):
    """The penalty is relative to the variance of the set's own rows."""
    rng = np.random.default_rng(3)
    X = rng.standard_normal((120, 6)).astype(np.float32)
    y = (X[:, 0] + rng.logistic(size=120) > 0).astype(int)
    v = np.ones((2, 120))
    v[0, :40] = v[1, 80:] = 0
    values, config = np.logspace(-3, 1, 5), ProbeConfig(features=("any",), tol=1e-10)
    before = fit_logistic_grid(X, y, v, values, preprocess, config)[0].scores(X[40:], [0])
    X[:40] = 100 * X[:40] + 7
    after = fit_logistic_grid(X, y, v, values, preprocess, config)[0].scores(X[40:], [0])
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4)
    # and one grid suits features of any scale
    scaled = fit_logistic_grid(1000 * X, y, v, values, preprocess, config)[0].scores(1000 * X[40:], [0])
    np.testing.assert_allclose(scaled, after, rtol=1e-3, atol=1e-4)

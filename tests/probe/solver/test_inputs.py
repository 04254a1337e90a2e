"""Inputs of every kind: the right optimum or a clear refusal, never a silently wrong fit.

The reference is the trust-region Newton of benchmarks/solver_torture.py, which knows nothing of the package.
"""

import runpy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patchbank.errors import InvalidRequest, ProbeError
from patchbank.probe.estimator import BatchedLogisticRegression, BatchedLogisticRegressionCV
from patchbank.probe.solver.logistic import fit_logistic
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, PredefinedSplit

TORTURE = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "solver_torture.py"))
STRENGTHS = np.array([1e-8, 1e-3, 1.0, 1e3, 1e8])


@pytest.fixture(autouse=True)
def _no_warnings():
    """Divisions by zero, overflows, capped fits: none is expected."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def data(n=80, d=6, k=2, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    y = np.argmax(X @ rng.standard_normal((d, k)) + rng.gumbel(size=(n, k)), axis=1)
    y[: 2 * k] = np.arange(2 * k) % k
    return X, y


def is_right(X, y, C: Any = STRENGTHS, v=None, standardize=False):
    """All of what the torture benchmark asks of a fit, and that nothing is capped; returns the fits."""
    weights = np.ones((1, len(y))) if v is None else np.atleast_2d(v)
    fits = fit_logistic(X, y, C=C, weights=weights, standardize=standardize)
    problem = TORTURE["Problem"](X, y, weights, np.asarray(C), standardize, "")
    assert [fault for verdict in TORTURE["judge"](problem, fits) for fault in verdict.faults] == []
    assert (fits.status != "capped").all()
    return fits


@pytest.mark.parametrize("standardize", [True, False, "overall"])
@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_strengths_from_nothing_to_no_penalty(dtype, k, standardize):
    X, y = data(k=k)
    is_right(X.astype(dtype), y, standardize=standardize)


@pytest.mark.parametrize("value", [0.0, 7.0, -1e5])
@pytest.mark.parametrize("standardize", [True, False])
def test_constant_columns_change_nothing(value, standardize):
    X, y = data()
    alone = is_right(X, y, standardize=standardize)
    fits = is_right(np.column_stack([X, np.full(80, value)]), y, standardize=standardize)
    assert (fits.coef[..., -1] == 0).all()
    np.testing.assert_allclose(fits.objective, alone.objective, rtol=1e-5)


@pytest.mark.parametrize("k", [2, 4])
def test_a_row_given_twice_is_a_row_of_weight_two(k):
    X, y = data(k=k)
    twice = np.append(np.arange(80), np.arange(30))
    weights = np.where(np.arange(80) < 30, 2.0, 1.0)
    fits, expected = is_right(X[twice], y[twice]), is_right(X, y, v=weights)
    np.testing.assert_allclose(fits.objective, expected.objective, rtol=1e-5)
    np.testing.assert_allclose(fits.decision(X)[:, 0, :4], expected.decision(X)[:, 0, :4], atol=0.02)


def test_equal_rows_of_different_classes_have_the_share_as_their_probability():
    X = np.repeat([[0.0], [1.0]], 10, axis=0)
    y = np.append([0] * 9 + [1], [0] * 3 + [1] * 7)
    fits = is_right(X, y, C=[1e8])
    p = 1 / (1 + np.exp(-fits.decision(np.array([[0.0], [1.0]]))[:, 0, 0]))
    np.testing.assert_allclose(p, [0.1, 0.7], atol=1e-4)


@pytest.mark.parametrize("k", [2, 3])
def test_a_row_of_weight_zero_is_a_row_left_out(k):
    X, y = data(k=k)
    v = np.ones(80)
    v[40:] = 0
    wild = X.copy()
    wild[40:] = 1e6
    for standardize in (True, False):
        fits = fit_logistic(wild, y, C=[1.0], weights=v[None], standardize=standardize)
        alone = fit_logistic(X[:40], y[:40], C=[1.0], standardize=standardize)
        np.testing.assert_allclose(fits.coef, alone.coef, atol=2e-3)
        assert fits.objective[0, 0] == pytest.approx(alone.objective[0, 0], rel=1e-6)


@pytest.mark.parametrize("k", [2, 3])
def test_features_far_from_zero(k):
    """Mean 1e6, standard deviation 1: the intercept takes the mean, the coefficients do not feel it."""
    X, y = data(k=k)
    offset = 1e6 * np.sign(np.arange(6) - 2.5)
    for standardize in (True, False):
        near = is_right(X, y, C=[1e-3, 1.0, 1e3], standardize=standardize)
        far = fit_logistic(X + offset, y, C=[1e-3, 1.0, 1e3], standardize=standardize)
        np.testing.assert_allclose(far.objective, near.objective, rtol=1e-6)
        np.testing.assert_allclose(far.coef, near.coef, rtol=0, atol=0.02 * np.abs(near.coef).max())
        np.testing.assert_allclose(far.decision(X + offset), near.decision(X), atol=0.05)


def test_weights_of_any_size():
    X, y = data()
    expected = is_right(X, y, C=[1.0])
    for size in (1e-12, 1e12):
        fits = is_right(X, y, C=[1 / size], v=np.full(80, size))
        np.testing.assert_allclose(fits.coef, expected.coef, atol=1e-2)
        np.testing.assert_allclose(fits.objective, size * expected.objective, rtol=1e-6)


def test_labels_are_integers_and_nothing_else():
    X, y = data()
    for labels in (y.astype(bool), y.astype(str), y.astype(float), y[:, None]):
        with pytest.raises(InvalidRequest, match="integers"):
            fit_logistic(X, labels, C=[1.0])
    for integers in (np.int8, np.uint8, np.uint64):
        assert fit_logistic(X, y.astype(integers), C=[1.0]).objective[0, 0] == pytest.approx(
            fit_logistic(X, y, C=[1.0]).objective[0, 0]
        )


@pytest.mark.parametrize(("kind", "k"), [(str, 2), (str, 3), (object, 2), (object, 3), (bool, 2)])
def test_estimators_take_labels_of_any_kind(kind, k):
    X, y = data(k=k)
    names = [False, True] if kind is bool else ["n", "a", "m"]
    labels = np.array(names, dtype=kind if kind in (object, bool) else None)[y]
    model = BatchedLogisticRegression(C=0.5).fit(X, labels)
    theirs = LogisticRegression(C=0.5, solver="newton-cholesky", tol=1e-10).fit(X, labels)
    assert (model.classes_ == theirs.classes_).all()
    np.testing.assert_allclose(model.predict_proba(X), theirs.predict_proba(X), atol=1e-6)
    assert (model.predict(X) == theirs.predict(X)).all()
    assert model.predict(X).dtype == labels.dtype


@pytest.mark.parametrize("Model", [BatchedLogisticRegression, BatchedLogisticRegressionCV])
def test_estimators_refuse_weights_and_numbers_that_make_no_sense(Model):
    X, y = data()
    ones = np.ones(80)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match=r"NaN|infinity"):
            Model().fit(np.where(np.arange(6) == 2, bad, X), y)
    with pytest.raises(ValueError, match=r"[Nn]egative"):
        Model().fit(X, y, np.where(y == 1, -1, ones))
    with pytest.raises(ValueError, match="NaN"):
        Model().fit(X, y, np.where(y == 1, np.nan, ones))
    for class_weight in (None, "balanced"):
        with pytest.raises(InvalidRequest, match="the data have no row of class 'b' with a sample weight"):
            Model(class_weight=class_weight).fit(X, np.array(["a", "b"])[y], 1 - y)
    with pytest.raises(InvalidRequest, match="only one class"):
        Model().fit(X, np.zeros(80))


@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_a_fold_without_a_class_is_named(class_weight):
    X, y = data()
    labels, fold = np.array(["normal", "atypical"])[y], np.where(y == 1, 1, np.arange(80) % 2 * 2)
    model = BatchedLogisticRegressionCV(Cs=3, cv=PredefinedSplit(fold), class_weight=class_weight)
    with pytest.raises(InvalidRequest, match=r"training rows of fold 1 have no row of class 'atypical'"):
        model.fit(X, labels)
    ordered = np.argsort(y)
    with pytest.raises(InvalidRequest, match="Fix: leave the class out, or fewer folds"):
        BatchedLogisticRegressionCV(cv=KFold(2)).fit(X[ordered], np.sort(y))


def test_a_set_whose_class_has_no_weight_is_named():
    X, y = data(k=3)
    v = np.ones((2, 80))
    v[1] = y != 2
    with pytest.raises(ProbeError, match="set 1 has no row of class 2"):
        fit_logistic(X, y, C=[1.0], weights=v)
    with pytest.raises(ProbeError, match="set 0 has no row"):
        fit_logistic(X, y, C=[1.0], weights=np.zeros((1, 80)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_no_number_is_named_by_its_row(bad, dtype):
    X, y = data()
    X[[11, 50], 3] = bad
    with pytest.raises(ProbeError, match="row 11 of X has NaN or Inf"):
        fit_logistic(X.astype(dtype), y, C=[1.0])


def test_more_rows_than_a_block_of_what_is_no_number():
    X, y = data(9000)
    X[8500, 0] = np.nan
    with pytest.raises(ProbeError, match="row 8500"):
        fit_logistic(X, y, C=[1.0])


def test_one_row_a_class_and_one_feature():
    is_right(np.array([[0.5], [1.5]]), np.array([0, 1]))
    is_right(np.array([[0.5], [1.5], [4.0]]), np.array([0, 1, 2]))
    is_right(np.ones((4, 1)), np.array([0, 1, 0, 0]))


@pytest.mark.parametrize("standardize", [True, False])
def test_the_largest_numbers_of_float16(standardize):
    X, y = data()
    X = (X * 6e4 / np.abs(X).max()).astype(np.float16)
    with np.errstate(all="ignore"):
        is_right(X, y, C=[1e-12, 1e-6, 1.0], standardize=standardize)


def test_the_order_of_rows_columns_and_sets_changes_nothing():
    X, y = data(k=3)
    rng = np.random.default_rng(1)
    v = rng.integers(1, 3, (3, 80)).astype(float)
    rows, columns, sets = rng.permutation(80), rng.permutation(6), rng.permutation(3)
    fits = fit_logistic(X, y, C=[0.1, 10], weights=v, tol=1e-12)
    moved = fit_logistic(X[rows][:, columns], y[rows], C=[0.1, 10], weights=v[sets][:, rows], tol=1e-12)
    np.testing.assert_allclose(moved.coef, fits.coef[sets][..., columns], atol=1e-4)
    np.testing.assert_allclose(moved.objective, fits.objective[sets], rtol=1e-9)


def test_renaming_the_classes_renames_the_coefficients():
    X, y = data(k=3)
    fits, turned = (fit_logistic(X, (y + k) % 3, C=[1.0], tol=1e-12) for k in (0, 1))
    np.testing.assert_allclose(np.roll(turned.coef, -1, axis=2), fits.coef, atol=1e-4)
    two, flipped = (fit_logistic(X, (y == 0) ^ k, C=[1.0], tol=1e-12) for k in (np.int64(0), np.int64(1)))
    np.testing.assert_allclose(flipped.coef, -two.coef, atol=1e-4)


def test_a_capped_fit_warns_once_for_all():
    X, y = data(200, 30)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fits = fit_logistic(X, y, C=[1e6, 1e7], tol=1e-20, max_rounds=1)
    capped = (fits.status == "capped").sum()
    assert sum(issubclass(w.category, ConvergenceWarning) for w in said) == (capped > 0)
    assert (fits.gap_bound < 1e-5).all()  # whatever the status says, the optimum is found

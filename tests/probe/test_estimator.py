"""The drop-in estimators: scikit-learn's own checks, and agreement with its estimators."""

import numpy as np
import pytest
from patchbank.probe.estimator import BatchedLogisticRegression, BatchedLogisticRegressionCV
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import GroupKFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

ESTIMATORS = [
    BatchedLogisticRegression(threads=1),
    BatchedLogisticRegressionCV(Cs=3, cv=3, threads=1),
]


def checks():
    for ours in ESTIMATORS:
        for estimator, check in estimator_checks_generator(ours, legacy=True):  # pyright: ignore
            options = ",".join(map(str, check.keywords.values()))  # pyright: ignore
            name = f"{type(ours).__name__}-{check.func.__name__}-{options}"  # pyright: ignore
            yield pytest.param(estimator, check, id=name.removesuffix("-"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("estimator", "check"), list(checks()))
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("load", [load_breast_cancer, load_iris])
def test_the_same_model_as_scikit_learns(load):
    X, y = load(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    ours = BatchedLogisticRegression(C=0.3, class_weight="balanced", tol=1e-12).fit(X, y)
    theirs = LogisticRegression(C=0.3, class_weight="balanced", solver="newton-cholesky", tol=1e-10).fit(X, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-5)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-5)
    assert ours.coef_.shape == theirs.coef_.shape
    assert ours.intercept_.shape == theirs.intercept_.shape


def test_cross_validation_is_scikit_learns():
    X, y = load_breast_cancer(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    folds, strengths = StratifiedKFold(4), np.logspace(-3, 1, 5)
    ours = BatchedLogisticRegressionCV(Cs=strengths, cv=folds, scoring="neg_log_loss", tol=1e-12).fit(X, y)
    theirs = LogisticRegressionCV(
        Cs=strengths, cv=folds, scoring="neg_log_loss", solver="newton-cholesky", tol=1e-8,  # pyright: ignore
        l1_ratios=(0,), use_legacy_attributes=False,  # pyright: ignore[reportArgumentType]
    ).fit(X, y)  # fmt: skip
    assert ours.C_ == theirs.C_
    np.testing.assert_allclose(ours.scores_, np.squeeze(theirs.scores_), atol=1e-6)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))


def test_standardised_inside_is_a_scaler_in_a_pipeline():
    X, y = load_breast_cancer(return_X_y=True)
    ours = BatchedLogisticRegression(C=0.1, standardize=True)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-10, solver="newton-cholesky"))
    np.testing.assert_array_equal(cross_val_score(ours, X, y), cross_val_score(pipeline, X, y))


def test_groups_reach_the_folds():
    X, y = load_breast_cancer(return_X_y=True)
    groups = np.arange(len(y)) // 7
    model = BatchedLogisticRegressionCV(Cs=3, cv=GroupKFold(3), standardize=True).fit(X, y, groups=groups)
    assert model.scores_.shape == (3, 3)
    assert model.status_ in ("converged", "polished", "newton")

"""scikit-learn estimators over the batched solver, to drop into other people's code.

BatchedLogisticRegression(C=0.1)             like LogisticRegression(C=0.1)
BatchedLogisticRegressionCV(Cs=40, cv=5)     like LogisticRegressionCV: all folds and strengths together,
                                             then the refit
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import get_scorer
from sklearn.model_selection import check_cv
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from ..errors import InvalidRequest
from .solver.logistic import LogisticFits, fit_logistic

Array = np.ndarray[Any, np.dtype[Any]]
DTYPES = [np.float64, np.float32, np.float16]
FINAL_TOL = 1e-15  # of a single fit, which costs little: to the end of float64


class _Linear(ClassifierMixin, BaseEstimator):
    """What both share: scores, probabilities and classes from coef_ and intercept_."""

    classes_: Array
    coef_: Array
    intercept_: Array

    def _read(self, X: Any, y: Any, sample_weight: Any, class_weight: Any) -> tuple[Array, Array, Array]:
        """X, the classes' numbers 0..K-1, and weights with the class weights in them."""
        X, y = validate_data(self, X, y, dtype=DTYPES)
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InvalidRequest(
                f"This solver needs samples of at least 2 classes in the data, but the data contains only "
                f"one class: {self.classes_.tolist()[0]!r}"
            )
        v = np.array(_check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True))
        return X, numbers, self._class_weighted(v, numbers, class_weight, "the data")

    def _class_weighted(self, v: Array, numbers: Array, class_weight: Any, rows: str) -> Array:
        """Weights v (n,) of some rows times their classes' weights; refused where they lack a class."""
        count = np.bincount(numbers, weights=v > 0, minlength=len(self.classes_))
        if not count.all():
            lacking = self.classes_.tolist()[int(np.argmin(count))]
            raise InvalidRequest(
                f"{rows} have no row of class {lacking!r} with a sample weight above 0. "
                "Fix: leave the class out, or fewer folds (cv)"
            )
        if class_weight is None:
            return v
        labels = self.classes_[numbers]
        return (
            v * compute_class_weight(class_weight, classes=self.classes_, y=labels, sample_weight=v)[numbers]
        )

    def _keep(self, fits: LogisticFits, at: tuple[int, int]) -> None:
        """Become the fit of this (set, strength), in float64: float32 is too coarse where C is large."""
        self.coef_ = np.atleast_2d(fits.coef[at])
        self.intercept_ = np.atleast_1d(fits.intercept[at])
        self.n_iter_ = np.atleast_1d(fits.n_iter[at])
        self.status_ = str(fits.status[at])
        self.gap_bound_ = float(fits.gap_bound[at])

    def decision_function(self, X: Any) -> Array:
        """Scores (n,) of the second class, or (n, K) for K > 2 classes."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=DTYPES, reset=False)
        scores = X @ self.coef_.T + self.intercept_
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict(self, X: Any) -> Array:
        """Classes (n,)."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)]

    def predict_proba(self, X: Any) -> Array:
        """Probabilities (n, K)."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            scores = np.stack([np.zeros_like(scores), scores], axis=1)
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return scores / scores.sum(axis=1, keepdims=True)

    def predict_log_proba(self, X: Any) -> Array:
        """Their logarithms (n, K)."""
        return np.log(self.predict_proba(X))


class BatchedLogisticRegression(_Linear):
    """L2 logistic regression at one strength, the intercept not penalised.

    C : inverse strength, > 0
    class_weight : None, "balanced" or a dict, as in scikit-learn
    standardize : scale the features inside (coef_ is for the features as given)
    tol : relative distance of the objective to its optimum
    threads : None for all cores

    A fit that did not converge warns with scikit-learn's ConvergenceWarning.

    Attributes: classes_, coef_ (1 or K, d), intercept_, n_iter_, status_, gap_bound_ (see LogisticFits).
    """

    def __init__(
        self,
        *,
        C: float = 1.0,
        class_weight: Any = None,
        standardize: bool = False,
        tol: float = FINAL_TOL,
        threads: int | None = None,
    ) -> None:
        self.C = C
        self.class_weight = class_weight
        self.standardize = standardize
        self.tol = tol
        self.threads = threads

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "BatchedLogisticRegression":
        X, numbers, v = self._read(X, y, sample_weight, self.class_weight)
        fits = fit_logistic(
            X, numbers, C=[self.C], weights=v[None],
            standardize=self.standardize, tol=self.tol, threads=self.threads,
        )  # fmt: skip
        self._keep(fits, (0, 0))
        return self


class BatchedLogisticRegressionCV(_Linear):
    """L2 logistic regression, the strength chosen by cross-validation: all folds x strengths in one go.

    Cs : how many strengths, spread logarithmically over 1e-4..1e4, or the strengths themselves
    cv, scoring : as in scikit-learn's LogisticRegressionCV; scoring is called on a fitted estimator
    class_weight, standardize, threads : as in BatchedLogisticRegression; class weights and scales are each
        fold's own
    tol : of the fits on the folds; the refit goes to the end of float64

    Attributes: those of BatchedLogisticRegression, and Cs_ (L,), scores_ (folds, L), C_ (the strength chosen:
    the best mean score, the strongest regularisation among equals).
    """

    def __init__(
        self,
        *,
        Cs: int | Sequence[float] | Array = 10,
        cv: Any = None,
        scoring: Any = None,
        class_weight: Any = None,
        standardize: bool = False,
        tol: float = 1e-7,
        threads: int | None = None,
    ) -> None:
        self.Cs = Cs
        self.cv = cv
        self.scoring = scoring
        self.class_weight = class_weight
        self.standardize = standardize
        self.tol = tol
        self.threads = threads

    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None
    ) -> "BatchedLogisticRegressionCV":
        X, numbers, v = self._read(X, y, sample_weight, None)
        labels = self.classes_[numbers]
        self.Cs_ = np.logspace(-4, 4, self.Cs) if isinstance(self.Cs, int) else np.sort(np.asarray(self.Cs))
        scorer = get_scorer(self.scoring or "accuracy")
        folds = list(check_cv(self.cv, labels, classifier=True).split(X, labels, groups))  # pyright: ignore[reportAttributeAccessIssue]
        weights = np.zeros((len(folds) + 1, len(X)))  # the last: the refit on all rows
        names = [f"the training rows of fold {f}" for f in range(len(folds))] + ["the data"]
        trains = [train for train, _ in folds] + [np.arange(len(X))]
        for row, train, name in zip(weights, trains, names, strict=True):
            row[train] = self._class_weighted(v[train], numbers[train], self.class_weight, name)
        options = {"standardize": self.standardize, "tol": self.tol, "threads": self.threads}
        fits = fit_logistic(X, numbers, C=self.Cs_, weights=weights[:-1], **options)
        self.scores_ = np.empty((len(folds), len(self.Cs_)))
        for f, (_, test) in enumerate(folds):
            for c in range(len(self.Cs_)):
                self._keep(fits, (f, c))
                self.scores_[f, c] = scorer(self, X[test], labels[test])
        self.C_ = float(self.Cs_[int(np.argmax(self.scores_.mean(axis=0)))])
        options["tol"] = min(self.tol, FINAL_TOL)
        self._keep(fit_logistic(X, numbers, C=[self.C_], weights=weights[-1:], **options), (0, 0))
        return self

"""Out-of-fold scores of models that have scales of their own, and what is chosen on them."""

from dataclasses import dataclass

import numpy as np

from .protocol import adjustment, as_ensemble, by_class, standardized
from .results.schema import Role
from .results.scoring import Column, out_of_fold_cuts, specificity_cuts

UNADJUSTED = np.array([0.0, 1.0, 1.0, 0.0])  # threshold, 1 / temperature, Platt's scale, offset: none chosen


@dataclass(frozen=True)
class OutOfFold:
    """Scores of train rows, each fold's by a model that has not trained on it, without inner folds.

    Each fold's scores are standardised by their own mean and deviation, without labels
    (`protocol.standardized`), before anything is pooled. Threshold, temperature and Platt's scaling of a
    fold's rows come from the other folds' scores, put on its scale (none with one fold alone).

    score : float64 (n,) logits of two classes, or (n, K); order : the same on one scale, what ranks
    adjusted : of each row, as `protocol.adjustment`; ensemble : what the mean of the folds' models would give
        rows that they place alike; of_ensemble : what is chosen on that
    """

    y: np.ndarray
    fold: np.ndarray
    score: np.ndarray
    order: np.ndarray
    adjusted: np.ndarray
    ensemble: np.ndarray
    of_ensemble: np.ndarray

    @classmethod
    def of(cls, y: np.ndarray, score: np.ndarray, fold: np.ndarray, *, weighted: bool = True) -> "OutOfFold":
        """weighted : whether classes weighed alike in the training; of more than two the temperature's loss
        follows it.
        """
        scales, order = standardized(by_class(score), fold)
        adjusted = unadjusted(score)
        numbers = np.unique(fold)
        if len(numbers) > 1:
            for k, scale in zip(numbers, scales, strict=True):
                others = fold != k  # their scores as fold k's model would give them
                of_others = as_ensemble(order[others], scale[None])
                adjusted[~others] = adjustment(y[others], of_others, weighted=weighted)
        ensemble = as_ensemble(order, scales)
        return cls(y, fold, score, order, adjusted, ensemble, adjustment(y, ensemble, weighted=weighted))

    def column(self, features: str) -> Column:
        """Of the train rows."""
        cuts = out_of_fold_cuts(self.y, self.order, self.fold) if self.score.ndim == 1 else None
        return Column(features, Role.OOF, self.score, self.adjusted, self.order, cuts)

    def column_of(self, features: str, role: str, score: np.ndarray) -> Column:
        """Of other rows, with what is chosen here. score : (n,) or (n, K), on the scale of `ensemble`."""
        adjusted = np.tile(self.of_ensemble, (len(score), 1))
        if score.ndim == 2:
            return Column(features, role, score, adjusted, by_class(score))
        cuts = np.tile(specificity_cuts(self.y, self.ensemble), (len(score), 1))
        return Column(features, role, score, adjusted, cuts=cuts)


def unadjusted(score: np.ndarray) -> np.ndarray:
    """The adjustments of rows for whose model nothing was chosen: float64 (n, 4), of (n, K) scores (n, 1)."""
    return np.tile(UNADJUSTED if score.ndim == 1 else np.ones(1), (len(score), 1))

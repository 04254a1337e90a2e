"""What "best on the folds" means: the criteria that choose hyperparameters, many columns at once."""

import numpy as np
from scipy.special import log_softmax

from .statistics.weighted import midranks


def criterion(
    name: str, y: np.ndarray, scores: np.ndarray, folds: np.ndarray, *, ranking: np.ndarray | None = None
) -> np.ndarray:
    """How good each column of held-out scores is; higher is better.

    name : "log_loss" (minus the mean over the classes of the mean log-loss of each; rows of all folds
        pooled), "balanced_accuracy" (of calls at probability 0.5, or of the most probable class; pooled),
        "auroc" (of each fold by itself, since scores of different models need not be on one scale; mean over
        folds, weighted by the number of positive-negative pairs; of K > 2 classes the mean over the classes,
        each against the rest)
    y : int (n,), 0 or 1; scores : float (n, m), logits of class 1; folds : int (n,), the fold that held each
        row out. Of K > 2 classes y : int (n,), 0 .. K-1; scores : float (n, m, K), logits
    ranking : float (n, m, K), what ranks rows by class, for "auroc" of K > 2 classes (None: scores)
    Returns float64 (m,); -inf where a column has scores that are not finite.
    """
    if scores.ndim == 3:
        return _of_classes(name, y, scores, folds, scores if ranking is None else ranking)
    positive = y == 1
    finite = np.isfinite(scores).all(0)
    scores = np.where(finite, scores, 0)
    if name == "log_loss":
        value = -0.5 * (_softplus(-scores[positive]) + _softplus(scores[~positive]))
    elif name == "balanced_accuracy":
        value = 0.5 * ((scores[positive] >= 0).mean(0) + (scores[~positive] < 0).mean(0))
    elif name == "auroc":
        total, pairs = np.zeros(scores.shape[1]), 0
        for fold in np.unique(folds):
            rows = folds == fold
            n1 = int(positive[rows].sum())
            n0 = int(rows.sum()) - n1
            if n1 and n0:
                ranks = midranks(scores[rows])
                total += ranks[positive[rows]].sum(0) - n1 * (n1 + 1) / 2
                pairs += n1 * n0
        value = total / pairs if pairs else np.full(scores.shape[1], np.nan)
    else:
        raise ValueError(f"unknown criterion {name!r}")
    return np.where(finite & np.isfinite(value), value, -np.inf)


def _of_classes(
    name: str, y: np.ndarray, scores: np.ndarray, folds: np.ndarray, ranking: np.ndarray
) -> np.ndarray:
    """`criterion` of more than two classes; of the mean over classes that have rows."""
    if name == "auroc":
        present = [k for k in range(scores.shape[2]) if (y == k).any()]
        each = [criterion("auroc", (y == k).astype(int), ranking[:, :, k], folds) for k in present]
        value = np.mean(each, axis=0)
    elif name in ("log_loss", "balanced_accuracy"):
        value = np.zeros(scores.shape[1])
        present = np.unique(y)
        for k in present:
            rows = scores[y == k]
            if name == "log_loss":
                value += log_softmax(rows.astype(np.float64), axis=2)[:, :, k].mean(axis=0)
            else:
                value += (rows.argmax(axis=2) == k).mean(axis=0)
        value /= len(present)
    else:
        raise ValueError(f"unknown criterion {name!r}")
    finite = np.isfinite(scores).all(axis=(0, 2))
    return np.where(finite & np.isfinite(value), value, -np.inf)


def _softplus(z: np.ndarray) -> np.ndarray:
    """Mean over rows of log(1 + exp(z)), in float64."""
    return np.logaddexp(0, z).mean(0, dtype=np.float64)


def best(values: np.ndarray) -> tuple[int, ...]:
    """Index of the highest value; of equals the first: on an increasing grid the strongest penalty."""
    return tuple(int(i) for i in np.unravel_index(np.argmax(values), values.shape))

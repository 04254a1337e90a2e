"""The training sets of nested cross-validation, each of them once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SHARED = "shared"  # `inner_folds`: the inner folds of an outer fold are the other outer folds
SHARED_AT = range(5, 12)
"""Numbers of outer folds at which they are where nothing is said: with fewer, two of them are too many of the
rows; with more, 5 inner folds of their own take fewer fits.
"""


@dataclass(frozen=True)
class Part:
    """One training set and the rows that its models score.

    models : what it serves: (0,) the refit, (k,) the model of outer fold k, or its choice; (j, k) the choices
        of two outer folds. Parts of the same models share learned transforms
    inner : the inner fold that it leaves out; None: a model that is kept, not its held-out scores alone
    """

    training: np.ndarray  # bool (n,)
    held_out: np.ndarray  # bool (n,)
    models: tuple[int, ...]
    inner: int | None = None


def shared_folds(folds: np.ndarray) -> list[np.ndarray]:
    """The other outer folds as the inner folds of each: K times int (n,), 0 on the fold itself.

    The nested cross-validation of Bates, Hastie & Tibshirani (JASA 2024): the model trained without folds j
    and k scores fold j for the choice of k, and fold k for the choice of j. Nothing of a fold is in its own
    choice.

    folds : int (n,), 1..K
    """
    return [np.where(folds == k, 0, folds) for k in np.unique(folds)]


def can_share(folds: np.ndarray, y: np.ndarray | None = None) -> bool:
    """Whether folds are shared where nothing is said: their number is in SHARED_AT, and whichever two are
    left out, there are rows of every class.

    folds : int (n,); y : int (n,), None where targets are numbers
    """
    of_classes = [] if y is None else [folds[y == k] for k in np.unique(y)]
    return len(np.unique(folds)) in SHARED_AT and all(len(np.unique(of)) > 2 for of in of_classes)


def are_shared(folds: np.ndarray, inner: Sequence[np.ndarray]) -> bool:
    """Whether inner folds are those of `shared_folds`."""
    return all(np.array_equal(*both) for both in zip(inner, shared_folds(folds), strict=True))


def training_sets(folds: np.ndarray, inner: Sequence[np.ndarray]) -> list[Part]:
    """All rows, all but each outer fold, and in these all but each inner fold; shared ones once.

    folds : int (n,), 1..K; inner : K times int (n,), the inner folds of each, 0 outside its training set
    """
    numbers, shared = np.unique(folds), are_shared(folds, inner)
    parts = [Part(np.ones(len(folds), bool), np.zeros(len(folds), bool), (0,))]
    for i, (k, inside) in enumerate(zip(numbers, inner, strict=True), start=1):
        parts.append(Part(folds != k, folds == k, (i,)))
        for j in np.unique(inside[inside > 0]):
            if not shared:
                parts.append(Part((inside > 0) & (inside != j), inside == j, (i,), int(j)))
            elif j > k:
                held_out = (folds == j) | (folds == k)
                parts.append(Part(~held_out, held_out, (i, int(np.searchsorted(numbers, j)) + 1), int(j)))
    return parts

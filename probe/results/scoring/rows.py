"""Rows of an evaluation set, and the scores that models gave them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pandas as pd

from ...statistics.calibration import best_threshold
from ..assess import SPECIFICITIES


@dataclass(frozen=True)
class Column:
    """One model's scores of one evaluation set's rows.

    Of K > 2 classes score and ranking are (n, K), the call is the class of the highest score, adjusted is
    (n, 1), 1 / temperature, and there are no cuts.

    score : float64 (n,), logits; a model calls positive what is at or above 0
    adjusted : float64 (n, 4), what was chosen on held-out scores for each row's model, as
        `protocol.adjustment` gives it: threshold on the score, 1 / temperature, Platt's scale and offset
    role : "oof" (train rows, by models that have not seen them), "refit", "ensemble"
    ranking : float64 (n,), scores on one scale where the rows are scored by several models
        (`protocol.ranking`); what AUROC and average precision are taken on. None: one model has scored all
        rows, so `score` itself
    cuts : float64 (n, 2) on the scale of `order`, at or above which a row is called positive at specificity
        .90 and .95 (SPECIFICITIES) of held-out rows; None: none were chosen, see `specificity_cuts`
    """

    features: str
    role: str
    score: np.ndarray
    adjusted: np.ndarray
    ranking: np.ndarray | None = None
    cuts: np.ndarray | None = None

    @property
    def order(self) -> np.ndarray:
        """What the rows are ranked by, float64 (n,)."""
        return self.score if self.ranking is None else self.ranking

    def select(self, mask: np.ndarray) -> "Column":
        """The scores of some of the rows; mask : bool (n,)."""
        return Column(self.features, self.role, **_selected(self, mask))


@dataclass(frozen=True)
class Rows:
    """The labelled rows of one evaluation set.

    group : str (n,), clusters that are resampled as one, `datasets.folds.effective_groups`; "" is a row by
        itself
    groups_known : whether any group is a slide or patient. If not, groups are at most clusters of equal
        content, intervals are too narrow, and no two models are called different
    classes : names of 0 .. K-1 where there are more than two, else (); ordered : whether these are grades
    experts : names of those who read rows of more than two classes; called : int (n, experts), the class that
        each called a row, -1 where it did not read it
    left_out : why -> how many rows of the manifest are not here
    distinct : bool (n,), one row of each content, none of contents with both labels (`leaks.deduplicate`)
    votes_positive, votes_total : int (n,), -1 where they are not known
    path : str (n,), of the image under the manifest's root; content_hash : str (n,), of its pixels, hex
    """

    dataset: str
    patch_id: np.ndarray
    y: np.ndarray
    group: np.ndarray
    domain: np.ndarray
    distinct: np.ndarray
    votes_positive: np.ndarray
    votes_total: np.ndarray
    path: np.ndarray
    content_hash: np.ndarray
    groups_known: bool = True
    left_out: Mapping[str, int] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    ordered: bool = False
    experts: tuple[str, ...] = ()
    called: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.y)

    def select(self, mask: np.ndarray) -> "Rows":
        """Some of the rows; mask : bool (n,)."""
        return replace(self, **_selected(self, mask))

    def vote_share(self) -> np.ndarray:
        """Share of positive votes, float64 (n,), or of votes for each of K > 2 classes, (n, K); NaN without
        votes.
        """
        if self.called is not None:
            votes = (self.called[:, :, None] == np.arange(len(self.classes))).sum(axis=1)
            total = votes.sum(axis=1, keepdims=True)
            return np.where(total > 0, votes / np.maximum(total, 1), np.nan)
        known = self.votes_total > 0
        return np.where(known, self.votes_positive / np.where(known, self.votes_total, 1), np.nan)


def class_codes(labels: pd.Series, classes: Sequence[str]) -> np.ndarray:
    """Labels (n,) as int64 (n,): the place of each name in `classes`; of two, whether it is the second."""
    if len(classes) == 2:
        return (labels == classes[1]).to_numpy().astype(np.int64)
    return labels.map({name: k for k, name in enumerate(classes)}).to_numpy(np.int64)


def _selected(source: "Column | Rows", mask: np.ndarray) -> dict[str, Any]:
    arrays = {f.name: getattr(source, f.name) for f in fields(source)}
    return {name: array[mask] for name, array in arrays.items() if isinstance(array, np.ndarray)}


def without_duplicates(rows: Rows, columns: Sequence[Column]) -> tuple[Rows, list[Column]]:
    """One row of each content, none of contents with both labels."""
    return rows.select(rows.distinct), [column.select(rows.distinct) for column in columns]


def specificity_cuts(y: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The cut on held-out scores (n,) for each of SPECIFICITIES: float64 (2,)."""
    return np.array([best_threshold(y, scores, rule="specificity", specificity=s) for s in SPECIFICITIES])


def out_of_fold_cuts(y: np.ndarray, scores: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """`specificity_cuts` of each row from the rows of the other folds: float64 (n, 2).

    scores : float64 (n,), out of fold and on one scale; folds : int (n,). NaN for the only fold.
    """
    cuts = np.full((len(y), len(SPECIFICITIES)), np.nan)
    for k in np.unique(folds):
        rows = folds == k
        if not rows.all():
            cuts[rows] = specificity_cuts(y[~rows], scores[~rows])
    return cuts


def stacked(
    columns: Sequence[Column], mask: np.ndarray | slice = slice(None)
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and what ranks, float64 (n, m[, K]) each."""
    return (
        np.stack([c.score[mask] for c in columns], axis=1),
        np.stack([c.order[mask] for c in columns], axis=1),
    )

"""All of a study: settings, stores, data sets, folds, leaks, and the result with its queries."""

import math
from collections.abc import Collection
from typing import Any

from pydantic import field_validator

from .domains import Domains
from .experts import ExpertScore, Votes
from .models import Comparison, Model, Precision, Repeats
from .scores import Score
from .values import SWEEP, Full, Part, Role


class Settings(Part):
    """The settings, as `ProbeConfig` has them and describes them."""

    features: list[str]
    probe: str = "logistic"
    solver: str = "exact"
    preprocess: list[str] = []
    C: list[int | float] | None = None
    k: list[int] | None = None
    alpha: list[int | float] | None = None
    hidden: int | None = None
    metric: str | None = None
    temperature: float | None = None
    class_weight: list[str] = []
    select: str | None = None
    folds: str | int
    inner_folds: str | int | None = None
    repeats: int = 1
    tol: float | None = None
    seed: int = 0
    bootstrap: int = 0
    interval: str
    level: float
    domains: str = "none"
    positive: str | None = None
    one_vs_rest: str | None = None
    select_on: str | None = None
    components: int | None = None
    per_target: bool | None = None
    precision: str | None = None
    dtype: str | None = None
    near_duplicates: str | None = None
    allow_leaks: list[str] = []
    sample: int | None = None

    @property
    def criterion(self) -> str:
        """What chose on the folds."""
        return self.select or ("log_loss" if self.probe in ("logistic", "mlp") else "auroc")

    def grid(self, parameter: str) -> list[Any]:
        """What was tried of a parameter."""
        return (getattr(self, parameter) if parameter else None) or []


class Store(Part):
    """Where a block of columns comes from: the store's name, identity and provenance."""

    store: str
    identity: dict[str, Any]
    provenance: dict[str, Any] = {}

    @property
    def precision(self) -> str:
        """Of the arithmetic."""
        return self.identity["precision"]

    @property
    def dtype(self) -> str:
        """Of what is stored."""
        return self.identity["dtype"]


class DataSet(Part):
    """One evaluation set; the first of a result is the training set. rows : digest of ids and labels.

    positive, n_positive : "" and None where there are more than two classes; counts : then the rows of each,
        in the order of `classes`, and ordered : whether these are grades
    """

    dataset: str
    name: str
    version: str
    licence: str
    source: str
    group_kind: str
    positive: str
    classes: list[str] = []
    ordered: bool = False
    counts: list[int] = []
    targets: list[str] = []
    """Names of the numbers that are predicted instead of classes."""
    rows: str | None = None
    root: str | None = None
    n: int
    n_positive: int | None = None
    groups_known: bool | None = None
    n_groups: int
    left_out: dict[str, int] = {}
    n_distinct: int
    domains: dict[str, int] = {}

    @property
    def grouped(self) -> bool:
        """Whether slides or patients are known, also where that was not recorded."""
        return bool(self.n_groups) if self.groups_known is None else self.groups_known


class FoldsUsed(Part):
    """The outer folds; inner : number of inner folds of each; shared : whether these are the other outer
    folds; trained : which folds fine-tuning trained.
    """

    name: str
    n_splits: int
    inner: list[int] | None = None
    shared: bool | None = None
    made_with: str | None = None
    trained: list[int] | None = None


class FoundLeak(Part):
    """One thing on two sides or with two labels; rows : (patch, side, label)."""

    kind: str
    what: str
    rows: list[tuple[str, str, str]]


class SharedSlides(Part):
    """Slides of one name in train (rows: train) and in an evaluation set of another data set (rows)."""

    dataset: str
    slides: list[str]
    train: int
    rows: int


class Leaks(Part):
    """`LeakReport.to_json()`: counts by kind, and each leak."""

    found: dict[str, int]
    checked: dict[str, int]
    unchecked: dict[str, int]
    leaks: list[FoundLeak]
    near_by: str | None = None
    """How near-duplicates were found; "": they were not looked for; None: not recorded."""
    near: list[list[str]] = []
    slides: list[SharedSlides] = []


class Results(Part):
    """All of a probe study or of a fine-tuning, apart from the predictions.

    fold_models : feature set -> set -> metric -> a value for each fold's model; fold_means : their means with
        intervals (`scoring.mean_of_models`). request : what a study asked for, of which this is the answer.
    not_recorded : what results of an older format lack, in words
    """

    config: Settings
    provenance: dict[str, Any]
    stores: dict[str, Store] = {}
    data: list[DataSet]
    notes: list[str] = []
    folds: FoldsUsed
    leaks: Leaks | None = None
    chosen: str
    models: list[Model]
    fold_models: dict[str, dict[str, dict[str, list[float | None]]]] = {}
    fold_means: dict[str, dict[str, dict[str, Full]]] = {}
    scores: list[Score]
    comparisons: list[Comparison] = []
    repeats: Repeats | None = None
    precision: list[Precision] = []
    votes: list[Votes] = []
    experts: list[ExpertScore] = []
    domains: dict[str, Domains] = {}
    seconds: dict[str, float] = {}
    request: str | None = None
    not_recorded: list[str] = []

    @field_validator("data")
    @classmethod
    def _a_train_set(cls, data: list[DataSet]) -> list[DataSet]:
        if not data:
            raise ValueError("there is no training set")
        return data

    @property
    def made_by(self) -> str:
        """Version of patchbank and time, for a footer."""
        return ", ".join(str(self.provenance[k]) for k in ("patchbank", "finished") if self.provenance.get(k))

    @property
    def train(self) -> DataSet:
        """The set that was trained on."""
        return self.data[0]

    @property
    def multiclass(self) -> bool:
        """Whether there are more than two classes; one of them against the rest is not."""
        return self.train.n_positive is None and not self.targets

    @property
    def targets(self) -> list[str]:
        """Names of the numbers that are predicted; [] of classes."""
        return self.train.targets

    @property
    def sets(self) -> list[str]:
        """Names of the evaluation sets, the training set first."""
        return [about.dataset for about in self.data]

    def data_set(self, name: str) -> DataSet:
        """One evaluation set by its name."""
        return next(about for about in self.data if about.dataset == name)

    @property
    def ungrouped(self) -> list[str]:
        """Evaluation sets of which no slides or patients are known: nothing is significant there."""
        return [about.dataset for about in self.data if not about.grouped]

    @property
    def ranked(self) -> list[Model]:
        """The models, best criterion on the folds first."""
        return sorted(self.models, key=lambda m: -m.criterion)

    def model(self, features: str) -> Model:
        """One feature set."""
        return next(entry for entry in self.models if entry.features == features)

    def whole(
        self,
        *,
        features: str | None = None,
        dataset: str | None = None,
        roles: Collection[Role] | None = None,
        deduplicated: bool = False,
    ) -> list[Score]:
        """Scores of whole sets, on all rows or (deduplicated) with each content once; None: of all."""
        return [
            score
            for score in self.scores
            if not score.domain
            and score.deduplicated == deduplicated
            and _is(score, features, dataset, roles)
        ]

    def by_domain(
        self,
        *,
        features: str | None = None,
        dataset: str | None = None,
        roles: Collection[Role] | None = None,
    ) -> list[Score]:
        """Scores of single domains, on all rows; None: of all."""
        return [score for score in self.scores if score.domain and _is(score, features, dataset, roles)]

    def leaderboard(self) -> list[Score]:
        """Scores that stand for each model on each whole set: training rows out of fold, the others by the
        refit (by the ensemble where there is none), without duplicates where a set has any; in the order of
        the sets, best criterion on the folds first, but the sweep as a whole before all: its score alone has
        the choice of the feature set in it.
        """
        order = {m.features: -m.criterion for m in self.models} | {SWEEP: -math.inf}
        leading: dict[tuple[int, str], Score] = {}
        for role in (Role.ENSEMBLE, Role.REFIT, Role.OOF):  # later ones go first
            for score in self.scores:
                if score.features == SWEEP and role != Role.OOF:
                    continue  # on other sets it is the chosen feature set's refit
                if score.role == role and not score.domain:  # "dedup" comes after "raw"
                    leading[self.sets.index(score.dataset), score.features] = score
        return [leading[key] for key in sorted(leading, key=lambda k: (k[0], order[k[1]]))]

    def comparisons_of(
        self, name: str, *, dataset: str | None = None, roles: Collection[Role] | None = None
    ) -> list[Comparison]:
        """Comparisons with one model, which is turned to be b."""
        return [
            comparison.against(name)
            for comparison in self.comparisons
            if name in (comparison.a, comparison.b) and _is(comparison, None, dataset, roles)
        ]


def _is(part: Any, features: str | None, dataset: str | None, roles: Collection[Role] | None) -> bool:
    return (
        (features is None or part.features == features)
        and (dataset is None or part.dataset == dataset)
        and (roles is None or part.role in roles)
    )

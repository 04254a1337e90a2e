"""Does a probe carry over to another scanner or centre: leave-one-domain-out, train on A and test on B."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from ..datasets.folds import make_folds
from ..errors import InvalidRequest
from .classifiers.grid import Fitted, Part, Setting, fit_parts, sum_facts
from .config import ProbeConfig
from .protocol import MOST_FOLDS, by_class, criterion_path
from .results.schema import Choice, Domains, Estimate, Fits, LeftOut, Matrix
from .results.scoring import OOF_INFLATION, measure_models
from .selection import best
from .statistics.intervals import cluster_codes
from .streaming import Features, select

METRICS = ("balanced_accuracy", "auroc", "average_precision")
_Value = TypeVar("_Value")
NO_MODEL = "no model: the domain's rows, or their folds, lack a class"
GRID = 20  # values of the probe's parameter at most, about
Step = Literal["leave one out", "matrix"]
STEPS: tuple[Step, ...] = get_args(Step)


@dataclass(frozen=True)
class DomainRows:
    """Rows of an evaluation set for the matrix: features float (n, d), or `FileRows`, y int (n,), domain and
    group str (n,).
    """

    X: Features
    y: np.ndarray
    domain: np.ndarray
    group: np.ndarray

    def select(self, mask: np.ndarray) -> "DomainRows":
        """Some of the rows; mask : bool (n,)."""
        return DomainRows(select(self.X, mask), self.y[mask], self.domain[mask], self.group[mask])


@dataclass(frozen=True)
class DomainStep:
    """What one of STEPS has found; matrix : None where the other one makes it."""

    leave_one_out: list[LeftOut]
    matrix: Matrix | None
    facts: list[dict[str, Any]]
    seconds: dict[str, float]


def joined(steps: Sequence[DomainStep | None]) -> Domains | None:
    """The result of all steps of one feature set."""
    made = [step for step in steps if step is not None]
    matrix = next((step.matrix for step in made if step.matrix is not None), None)
    if matrix is None:
        return None
    facts = [fact for step in made for fact in step.facts]
    return Domains(
        leave_one_out=[left_out for step in made for left_out in step.leave_one_out],
        matrix=matrix,
        fits=Fits.model_validate(sum_facts(facts)),
        seconds={key: sum(step.seconds.get(key, 0.0) for step in made) for key in made[0].seconds},
    )


def analyse_step(
    step: Step,
    X: Features,
    y: np.ndarray,
    groups: np.ndarray,
    domain: np.ndarray,
    tests: Mapping[str, DomainRows],
    *,
    config: ProbeConfig,
    votes: np.ndarray | None = None,
    classes: Sequence[str] = (),
    memory: float = float("inf"),
) -> DomainStep | None:
    """Leave-one-domain-out and the train-A/test-B matrix of one feature set.

    Leave one out. Fitted on : train rows outside domain d. Chosen on : for d, every other domain e in turn,
        scored by the model that has seen neither d nor e; with two domains, grouped folds of the one that is
        left. Scored : the rows of d. Nothing about d's labels is in the choice.
    Matrix. Fitted on : the train rows of domain A alone. Chosen on : grouped folds of A. Scored : every other
        domain, of the train rows and of the evaluation sets; the diagonal is A's rows out of fold, at the
        setting that these same folds chose, so it is a little too good.

    X : float (n, d), or `FileRows`; y : int (n,); groups : str (n,)
    domain : str (n,), "" takes part in training only; memory : as for `fit_parts`
    votes : float (n,), see `grid.Targets`; classes : names of 0 .. K-1 where there are more than two
    Domains without rows of every class take part in training only. None where fewer than two have them.
    Intervals are over groups; those of the matrix' diagonal are inflated by OOF_INFLATION.

    The two steps share no fits and can be made at the same time; with two domains the choice for one is made
    by the matrix' models of the other, so the matrix' step makes both.
    """
    n_classes = len(classes) or 2
    names = [d for d in dict.fromkeys(domain) if d and len(np.unique(y[domain == d])) == n_classes]
    if len(names) < 2:
        return None
    if len(config.grid) > GRID:  # half of a fine grid is fine enough for folds as small as these
        coarser = {config.parameter: config.grid[:: len(config.grid) // GRID]}
        config = config.model_copy(update=coarser)
    study = _DomainModels(X, y, groups, domain, names, config, votes, tuple(classes), memory)
    matrix, leaving_out = step == "matrix", (step == "leave one out") == (len(names) > 2)
    if leaving_out:
        study.fit_without()
    if matrix:
        study.fit_inside()
    return DomainStep(
        leave_one_out=[study.left_out(d) for d in names] if leaving_out else [],
        matrix=study.matrix(tests) if matrix else None,
        facts=[fitted.facts for fitted in study.fitted],
        seconds={key: sum(fitted.seconds[key] for fitted in study.fitted) for key in ("fit", "score")},
    )


@dataclass(frozen=True)
class _Model:
    """One training set at all points of the grid; held_out: bool (n,), the rows that it has scored."""

    fitted: Fitted
    part: int
    held_out: np.ndarray

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """Scores of some of the held-out rows: float32 (P, W, L, rows[, K])."""
        return self.fitted.held_out[self.part][:, :, :, rows[self.held_out]]


@dataclass
class _DomainModels:
    """Models by training set: ("out", d[, e]) without one or two domains, ("in", d[, fold]) in one."""

    X: Features
    y: np.ndarray
    groups: np.ndarray
    domain: np.ndarray
    names: list[str]
    config: ProbeConfig
    votes: np.ndarray | None
    classes: tuple[str, ...]
    memory: float
    models: dict[tuple[str, ...], _Model] = field(default_factory=dict)
    fitted: list[Fitted] = field(default_factory=list)

    def fit_without(self) -> None:
        """The models without one or two domains, in one call."""
        everything = np.ones(len(self.y), bool)
        without: dict[tuple[str, ...], np.ndarray] = {}
        for i, d in enumerate(self.names):
            without["out", d] = self.domain == d
            for e in self.names[i + 1 :]:  # serves the choice for d, scored on e, and that for e, scored on d
                without["out", d, e] = (self.domain == d) | (self.domain == e)
        self._fit(everything, {key: (~held, held) for key, held in without.items()})

    def fit_inside(self) -> None:
        """The models of each domain, on its own rows: one call a domain."""
        for d in self.names:
            inside = self.domain == d
            folds = _folds_inside(self.y, self.groups, inside, self.config)
            within: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]]
            within = {("in", d): (inside, np.zeros_like(inside))}
            for j in np.unique(folds[folds > 0]):
                within["in", d, str(j)] = (inside & (folds != j), inside & (folds == j))
            self._fit(inside, within)

    def _fit(self, rows: np.ndarray, sets: Mapping[tuple[str, ...], tuple[np.ndarray, np.ndarray]]) -> None:
        """Fit sets (training, held out: bool (n,)) of these rows; those that lack a class are left out."""
        n_classes = len(self.classes) or 2
        keys = [key for key, (training, _) in sets.items() if len(np.unique(self.y[training])) == n_classes]
        parts = [
            Part(sets[key][0][rows], sets[key][1][rows], (i,), 0 if len(key) == 3 else None)
            for i, key in enumerate(keys)
        ]
        votes = None if self.votes is None else self.votes[rows]
        X, options = select(self.X, rows), {"groups": self.groups[rows], "memory": self.memory}
        fitted = fit_parts(X, self.y[rows], parts, self.config, votes=votes, **options)
        self.fitted.append(fitted)
        self.models |= {key: _Model(fitted, i, sets[key][1]) for i, key in enumerate(keys)}

    def left_out(self, d: str) -> LeftOut:
        """One domain by the model that is fitted and chosen on the others."""
        others = [e for e in self.names if e != d]
        if len(others) > 1:
            keys = [(e, ("out", *sorted((d, e), key=self.names.index))) for e in others]
            held = [(self.models[key], self.domain == e) for e, key in keys if key in self.models]
        else:
            held = self._inside(others[0])
        setting = self._choose(held)
        rows = self.domain == d
        choice, metrics = None, {}
        if setting is not None and ("out", d) in self.models:
            choice = Choice.model_validate(setting.to_dict())
            scores = self.models["out", d].scores(rows)[setting.index].astype(np.float64)
            metrics = self._measure(self.y[rows], scores, self.groups[rows])
        counts = {} if self.classes else {"n_positive": int(self.y[rows].sum())}
        return LeftOut(
            domain=d,
            n=int(rows.sum()),
            n_groups=n_clusters(self.groups[rows]),
            choice=choice,
            metrics=metrics,
            **counts,
        )

    def _measure(
        self, y: np.ndarray, scores: np.ndarray, groups: np.ndarray, inflation: float = 1.0
    ) -> dict[str, Estimate]:
        """Of one model, scores float64 (n[, K])."""
        return self._measure_models(y, scores[:, None], groups, inflation)[0]

    def _measure_models(
        self, y: np.ndarray, scores: np.ndarray, groups: np.ndarray, inflation: float = 1.0
    ) -> list[dict[str, Estimate]]:
        """Of m models, scores float64 (n, m[, K])."""
        order = by_class(scores, probabilistic=self.config.probabilistic) if self.classes else scores
        about = {"inflation": inflation, "classes": self.classes}
        return measure_models(y, scores, order, groups, METRICS, self.config, **about)

    def matrix(self, tests: Mapping[str, DomainRows]) -> Matrix:
        """Rows: the domain trained on; columns: the domains scored on."""
        train = DomainRows(self.X, self.y, self.domain, self.groups)
        columns = {f"train / {d}": train.select(self.domain == d) for d in self.names}
        for name, test in tests.items():
            for d in dict.fromkeys(test.domain):
                columns[f"{name} / {d}" if d else name] = test.select(test.domain == d)
        chosen = {d: self._choose(self._inside(d)) for d in self.names if ("in", d) in self.models}
        by_column = [self._column(chosen, name, rows) for name, rows in columns.items()]
        cells = [[of_column[d] for of_column in by_column] for d in self.names]

        def table(of: Callable[[Estimate], _Value]) -> dict[str, list[list[_Value]]]:
            return {m: [[of(cell[m]) for cell in row] for row in cells] for m in METRICS}

        about: dict[str, Any] = {**table(lambda cell: cell.value)}
        if not self.classes:
            about |= {"n_positive": [int(rows.y.sum()) for rows in columns.values()]}
        return Matrix(
            train=self.names,
            test=list(columns),
            n=[len(rows.y) for rows in columns.values()],
            n_groups=[n_clusters(rows.group) for rows in columns.values()],
            intervals=table(lambda cell: (cell.low, cell.high)),
            reasons=table(lambda cell: cell.reason),
            **about,
        )

    def _column(
        self, chosen: Mapping[str, Setting | None], name: str, rows: DomainRows
    ) -> dict[str, dict[str, Estimate]]:
        """The models of all domains on the rows of a column; the column's own domain out of fold."""
        nothing: dict[str, Estimate] = dict.fromkeys(METRICS, Estimate(reason=NO_MODEL))
        cells = dict.fromkeys(self.names, nothing)
        settings = {d: setting for d, setting in chosen.items() if setting is not None}
        others = [d for d in settings if name != f"train / {d}"]
        models = [self.models["in", d] for d in others]
        if models:
            scores = [
                model.fitted.scorer(rows.X)(model.part, settings[d])
                for d, model in zip(others, models, strict=True)
            ]
            measured = self._measure_models(rows.y, np.stack(scores, axis=1), rows.group)
            cells |= dict(zip(others, measured, strict=True))
        for d in settings.keys() - others:
            held = [(fold.scores(mask)[settings[d].index], mask) for fold, mask in self._inside(d)]
            scores = np.concatenate([score for score, _ in held]).astype(np.float64)
            y, group = (np.concatenate([of[mask] for _, mask in held]) for of in (self.y, self.groups))
            cells[d] = self._measure(y, scores, group, OOF_INFLATION)
        return cells

    def _inside(self, d: str) -> list[tuple[_Model, np.ndarray]]:
        """The models of the folds inside one domain, with the rows that each holds out."""
        models = [model for key, model in self.models.items() if key[:2] == ("in", d) and len(key) == 3]
        return [(model, model.held_out) for model in models]

    def _choose(self, held: Sequence[tuple[_Model, np.ndarray]]) -> Setting | None:
        """The best point of the grid on held-out rows: [(model, bool (n,) of the rows that count)]."""
        if not held:
            return None
        scores = [model.scores(rows) for model, rows in held]
        y = np.concatenate([self.y[rows] for _, rows in held])
        folds = np.repeat(np.arange(1, len(held) + 1), [score.shape[3] for score in scores])
        if len(np.unique(y)) < (len(self.classes) or 2):
            return None
        path = criterion_path(self.config, y, np.concatenate(scores, axis=3), folds)
        return held[0][0].fitted.setting(best(path))


def _folds_inside(y: np.ndarray, groups: np.ndarray, rows: np.ndarray, config: ProbeConfig) -> np.ndarray:
    """Grouped folds of some rows: int (n,), 1..J, 0 elsewhere and everywhere if not even two can be made."""
    folds = np.zeros(len(y), int)
    most = config.inner_folds if isinstance(config.inner_folds, int) else MOST_FOLDS
    for n_splits in range(most, 1, -1):
        try:
            made = make_folds(y[rows], groups[rows], n_splits=n_splits, seed=config.seed)
        except InvalidRequest:  # a class in fewer groups than folds
            continue
        folds[rows] = made.assign(groups[rows])
        break
    return folds


def n_clusters(groups: np.ndarray) -> int:
    """How many clusters intervals are over; a row without a group is one by itself."""
    return int(cluster_codes(groups, len(groups)).max(initial=-1)) + 1

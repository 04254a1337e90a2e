"""The protocol of a probe: nested grouped cross-validation, refit, fold ensemble. Arrays in, arrays out."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from ..datasets.folds import make_folds
from ..errors import InvalidRequest, ProbeError
from .calibration import best_threshold, fit_platt, fit_temperature
from .config import ProbeConfig
from .fitting import Models, Transform, class_weights, fit_models, fit_transform_on, grid_values, learns
from .selection import best, criterion


@dataclass(frozen=True)
class Part:
    """One training set: of the refit (model 0), of outer fold `model`, or of an inner fold of it."""

    training: np.ndarray  # bool (n,)
    held_out: np.ndarray  # bool (n,): the rows that it scores
    model: int
    inner: int | None = None


@dataclass(frozen=True)
class Plan:
    """Who is trained on what: the same for every feature set of a study."""

    folds: np.ndarray  # int (n,), 1..K
    inner: list[np.ndarray]  # K times int (n,): 1..J, and 0 outside the outer training set
    parts: list[Part]


def make_plan(y: np.ndarray, groups: np.ndarray, folds: np.ndarray, *, config: ProbeConfig) -> Plan:
    """Inner folds for every outer training set, grouped and stratified, and the list of all training sets.

    y : int (n,), 0 or 1; groups : str (n,); folds : int (n,), 1..K
    Raises ProbeError where a group is in two folds or a training set has one class only.
    """
    folds_of_group = pd.Series(folds).groupby(np.asarray(groups, dtype=object)).nunique()
    spread = folds_of_group.index[(folds_of_group > 1).to_numpy()].tolist()
    if spread:
        raise ProbeError(
            f"{len(spread)} groups are in more than one fold ({', '.join(map(str, spread[:5]))}): "
            "folds are made of whole groups; `patchbank datasets folds make` makes such folds."
        )
    inner = []
    for k in np.unique(folds):
        training = folds != k
        assigned = np.zeros(len(y), int)
        try:
            made = make_folds(y[training], groups[training], n_splits=config.inner_folds, seed=config.seed)
        except InvalidRequest as error:
            error.add_note(f"while making the {config.inner_folds} inner folds of outer fold {k}")
            raise
        assigned[training] = made.assign(groups[training])
        inner.append(assigned)
    parts = list(_training_sets(folds, inner))
    for part in parts:
        if len(np.unique(y[part.training])) < 2:
            where = "all train rows" if part.model == 0 else f"outer fold {part.model}"
            where += "" if part.inner is None else f", inner fold {part.inner}"
            raise ProbeError(
                f"{where}: the training set has one class only, so nothing can be fitted. Use fewer folds, "
                "or folds that spread the rare class over the groups."
            )
    return Plan(folds, inner, parts)


def _training_sets(folds: np.ndarray, inner: Sequence[np.ndarray]) -> Iterator[Part]:
    yield Part(np.ones(len(folds), bool), np.zeros(len(folds), bool), 0)
    for i, k in enumerate(np.unique(folds)):
        yield Part(folds != k, folds == k, i + 1)
        for j in np.unique(inner[i][inner[i] > 0]):
            yield Part((inner[i] > 0) & (inner[i] != j), inner[i] == j, i + 1, int(j))


@dataclass(frozen=True)
class Setting:
    """One point of the grid. `value` is C for the logistic probe, else what the probe's own strength is."""

    preprocess: str
    class_weight: str
    value: float
    index: tuple[int, int, int]  # (preprocess, class weight, value)

    def to_dict(self) -> dict[str, Any]:
        return {"preprocess": self.preprocess, "class_weight": self.class_weight, "C": self.value}


@dataclass
class ProtocolRun:
    """What the protocol found for one feature set; n train rows, T test sets, K outer folds.

    Scores are logits of the positive class (for probes without probabilities: their decision values).
    """

    values: np.ndarray  # (L,) the C grid
    path: np.ndarray  # (P, W, L) criterion on the outer folds, higher is better: chooses the refit
    fold_paths: (
        np.ndarray
    )  # (K, P, W, L) criterion on each outer fold's inner folds: chooses that fold's model
    choice: Setting
    fold_choices: list[Setting]
    oof: np.ndarray  # float64 (n,) out-of-fold score, each outer fold at the setting its inner folds chose
    oof_flat: (
        np.ndarray
    )  # float64 (n,) out-of-fold score at `choice`: for threshold and calibration, not reported
    oof_adjusted: (
        np.ndarray
    )  # float64 (n, 4) `adjustment` of each row, from the inner folds of its outer fold
    adjusted: np.ndarray  # float64 (4,) of the refit, from oof_flat
    ensemble_adjusted: np.ndarray  # float64 (4,) of the fold ensemble, from oof
    refit: dict[str, np.ndarray]  # evaluation set -> float64 (n_t,)
    fold_models: dict[
        str, np.ndarray
    ]  # evaluation set -> float64 (n_t, K), scores of the outer folds' models
    fits: dict[str, Any] = field(default_factory=dict)  # number, statuses, worst gap, seconds
    seconds: dict[str, float] = field(default_factory=dict)


def run_protocol(
    X: np.ndarray,
    y: np.ndarray,
    plan: "Plan",
    tests: Mapping[str, np.ndarray],
    *,
    config: ProbeConfig,
) -> ProtocolRun:
    """Probe one feature set.

    Fitted on : the train rows only. Every point of the grid (preprocessing x class weight x C) is fitted on
        all of them (the refit), on all but each of the K outer folds, and inside each outer training set on
        all but each of its J inner folds. Folds are made of whole groups (slides). Means and scales are those
        of each fit's own rows.
    Chosen on : folds. The inner folds of outer fold k choose the setting of model k; the outer folds choose
        the setting of the refit. Best is the highest criterion of `config.select`; of equals, the first of
        the grid, so the strongest penalty. Thresholds and temperatures are chosen on the same held-out
        scores.
    Refit : at the chosen setting on all train rows. The fold ensemble is the K outer models as they are.
    Scored : `oof` is every train row's score by the outer model that has seen neither the row nor, when it
        chose its setting, its label. `refit` and `fold_models` are the test rows' scores. Labels of test rows
        are no argument of this function, so nothing that is chosen here can depend on them.

    X : float (n, d); y : int (n,), 0 or 1 (positive); plan : the folds, see `make_plan`
    tests : evaluation set -> float (n_t, d)
    """
    started = time.perf_counter()
    folds, inner, parts = plan.folds, plan.inner, plan.parts
    outer = [int(k) for k in np.unique(folds)]
    values = grid_values(config)
    P, W, L, n, K = len(config.preprocess), len(config.class_weight), len(values), len(y), len(outer)
    flat = np.full((P, W, L, n), np.nan, np.float32)  # held-out scores by the outer models
    nested = np.full((K, P, W, L, n), np.nan, np.float32)  # by the models of each outer fold's inner folds
    kept: dict[
        tuple[int, int], tuple[Transform, Models, list[int]]
    ] = {}  # (preprocessing, model) -> its W sets
    facts: list[dict[str, Any]] = []
    seconds = {"fit": 0.0, "score": 0.0}
    for p, preprocess in enumerate(config.preprocess):
        for transform_rows, members in _share(preprocess, parts):
            transform = fit_transform_on(preprocess, X, transform_rows)
            Z = transform(X)
            weights = np.stack(
                [class_weights(y, part.training, w) for part in members for w in config.class_weight]
            )
            lap = time.perf_counter()
            models, about = fit_models(Z, y, weights, preprocess, config)
            facts.append(about)
            seconds["fit"] += time.perf_counter() - lap
            lap = time.perf_counter()
            for i, part in enumerate(members):
                sets = list(range(i * W, (i + 1) * W))
                if part.held_out.any():
                    scores = np.moveaxis(models.scores(Z[part.held_out], sets), 0, -1)  # (W, L, rows)
                    into = flat[p] if part.inner is None else nested[part.model - 1, p]
                    into[:, :, part.held_out] = scores
                if part.inner is None:
                    kept[p, part.model] = (transform, models, sets)
            seconds["score"] += time.perf_counter() - lap

    lap = time.perf_counter()
    path = _path(config, y, flat, folds)
    fold_paths = np.stack([_path(config, y, nested[i], inner[i]) for i in range(K)])
    choice = _setting(config, values, best(path))
    fold_choices = [_setting(config, values, best(one)) for one in fold_paths]

    oof, oof_flat = np.empty(n), flat[choice.index].astype(np.float64)
    oof_adjusted = np.empty((n, 4))
    for i, k in enumerate(outer):
        rows, chosen = folds == k, fold_choices[i].index
        oof[rows] = flat[chosen][rows]
        seen = ~rows
        oof_adjusted[rows] = adjustment(y[seen], nested[(i, *chosen)][seen])
    seconds["choose"] = time.perf_counter() - lap

    lap = time.perf_counter()
    refit, fold_models = {}, {}
    for name, rows in tests.items():
        cache: dict[int, np.ndarray] = {}
        columns = [
            _score(rows, kept[setting.index[0], model], setting, cache)
            for model, setting in enumerate([choice, *fold_choices])
        ]
        refit[name], fold_models[name] = columns[0], np.stack(columns[1:], axis=1)
    seconds["score"] += time.perf_counter() - lap
    seconds["all"] = time.perf_counter() - started
    return ProtocolRun(
        values=values,
        path=path,
        fold_paths=fold_paths,
        choice=choice,
        fold_choices=fold_choices,
        oof=oof,
        oof_flat=oof_flat,
        oof_adjusted=oof_adjusted,
        adjusted=adjustment(y, oof_flat),
        ensemble_adjusted=adjustment(y, oof),
        refit=refit,
        fold_models=fold_models,
        fits=_sum_facts(facts),
        seconds=seconds,
    )


def adjustment(y: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """What is chosen on held-out scores (n,): threshold (best balanced accuracy), 1 / temperature, and
    Platt's scale and offset: float64 (4,). The temperature keeps probability 0.5 where it is; Platt's offset
    moves the prior too.
    """
    scores = scores.astype(np.float64)
    platt = fit_platt(y, scores)
    return np.array([best_threshold(y, scores), 1 / fit_temperature(y, scores), platt.scale, platt.offset])


def _share(preprocess: str, parts: Sequence[Part]) -> Iterator[tuple[np.ndarray, list[Part]]]:
    """Training sets that can be fitted in one call, with the rows that the transform may learn from.

    A transform that learns nothing serves all. One that learns is fitted on all rows for the refit, and on
    each outer training set for that fold's models; its inner folds share it, so the choice inside a fold has
    seen the features (no labels) of its inner held-out rows, and the outer score has not.
    """
    if not learns(preprocess):
        yield parts[0].training, list(parts)
        return
    for model in sorted({part.model for part in parts}):
        members = [part for part in parts if part.model == model]
        yield members[0].training, members


def _path(config: ProbeConfig, y: np.ndarray, scores: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Criterion of held-out scores (P, W, L, n): float64 (P, W, L), over the rows with folds > 0."""
    rows = folds > 0
    columns = scores[..., rows].reshape(-1, int(rows.sum())).T
    return criterion(config.select, y[rows], columns, folds[rows]).reshape(scores.shape[:-1])


def _setting(config: ProbeConfig, values: np.ndarray, index: tuple[int, ...]) -> Setting:
    p, w, c = index
    return Setting(config.preprocess[p], config.class_weight[w], float(values[c]), (p, w, c))


def _score(
    X: np.ndarray, kept: tuple[Transform, Models, list[int]], setting: Setting, cache: dict[int, np.ndarray]
) -> np.ndarray:
    """Scores of one kept model at one setting: float64 (n,)."""
    transform, models, sets = kept
    if id(transform) not in cache:
        cache[id(transform)] = transform(X)
    _, w, c = setting.index
    return models.scores(cache[id(transform)], [sets[w]], c)[:, 0].astype(np.float64)


def _sum_facts(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    status: dict[str, int] = {}
    for one in facts:
        for name, count in one["status"].items():
            status[name] = status.get(name, 0) + count
    return {
        "fits": sum(one["fits"] for one in facts),
        "calls": len(facts),
        "status": status,
        "worst_gap_bound": max(one["worst_gap_bound"] for one in facts),
    }

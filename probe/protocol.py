"""The protocol of a probe: nested grouped cross-validation, refit, fold ensemble. Arrays in, arrays out."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import log_expit

from ..datasets.folds import Folds, make_folds, too_few
from ..errors import InvalidRequest, ProbeError
from .classifiers.grid import Fitted, Setting, fit_parts
from .classifiers.recipes import fit_eva, fit_paper_sgd, fit_thunder
from .config import ProbeConfig
from .model import ProbeModel, mean_logit
from .selection import best, criterion
from .statistics import multiclass_calibration
from .statistics.calibration import best_threshold, fit_platt, fit_temperature
from .statistics.multiclass import log_odds
from .streaming import Features, stack
from .training_sets import SHARED, Part, are_shared, can_share, shared_folds, training_sets

MOST_FOLDS = 5  # that are made where no number is given
LEAST_SCALE = 1e-6  # of a Platt scaling, times the standard deviation of the scores
RECIPES = {
    "paper-sgd": fit_paper_sgd,
    "paper-sgd-1e-3": partial(fit_paper_sgd, lr=1e-3, weight_decay=1e-4),  # of one encoder, Prov-GigaPath
    "thunder": fit_thunder,
    "eva": fit_eva,
}


@dataclass(frozen=True)
class Plan:
    """Who is trained on what: the same for every feature set of a study."""

    folds: np.ndarray  # int (n,), 1..K
    inner: list[np.ndarray]  # K times int (n,): the inner folds, and 0 outside the outer training set
    parts: list[Part]
    groups: np.ndarray  # str (n,)
    votes: np.ndarray | None = None  # float (n,), share of positive votes, NaN where there are none

    @property
    def inner_folds(self) -> list[int]:
        """How many inner folds each outer training set has."""
        return [len(np.unique(inner[inner > 0])) for inner in self.inner]

    @property
    def shared(self) -> bool:
        """Whether the inner folds are the other outer folds, see `training_sets.shared_folds`."""
        return bool(self.inner) and are_shared(self.folds, self.inner)


def make_plan(
    y: np.ndarray,
    groups: np.ndarray,
    folds: np.ndarray,
    *,
    config: ProbeConfig,
    votes: np.ndarray | None = None,
    classes: Sequence[str] = ("negative", "positive"),
) -> Plan:
    """The inner folds of every outer training set, and the list of all training sets.

    y : int (n,), 0 .. number of classes - 1; groups : str (n,); folds : int (n,), 1..K
    votes : for class weight "votes"; float (n,), share of positive votes, or (n, number of classes), NaN
        where there are none
    classes : names of 0, 1, ... in messages
    `config.inner_folds` "shared": the other outer folds; a number: so many of their own, grouped and
    stratified; None: shared if `training_sets.can_share`, else 5 of their own, or as many as the rarest
    class's groups allow.
    Raises InvalidRequest where the inner folds cannot be made, ProbeError where a group is in two folds, a
    training set lacks a class, or votes are missing.
    """
    if "votes" in config.class_weight and (votes is None or np.isnan(votes).all()):
        columns = "votes_positive and votes_total" if len(classes) == 2 else "expert_1, expert_2, ..."
        raise ProbeError(f"class weight 'votes' needs {columns} in the train manifest")
    folds_of_group = pd.Series(folds).groupby(np.asarray(groups, dtype=object)).nunique()
    spread = [group for group, count in folds_of_group.items() if count > 1]
    if spread:
        raise ProbeError(
            f"{len(spread)} groups are in more than one fold ({', '.join(map(str, spread[:5]))}): "
            "folds are made of whole groups; `patchbank datasets folds make` makes such folds."
        )
    inner = inner_folds(
        folds,
        groups,
        np.asarray(classes, dtype=object)[y],
        wanted=config.inner_folds,
        shared=can_share(folds, y),
        seed=config.seed,
        fix=f"{larger_sample(config)}give fewer inner folds (--inner-folds 2), or fewer folds (--folds 3)"
        + rare_class_fix(classes),
    )
    parts = training_sets(folds, inner)
    for part in parts:
        present = np.unique(y[part.training])
        if len(present) < len(classes):
            where = _name_of(part)
            lacking = [name for k, name in enumerate(classes) if k not in present]
            what = "has one class only" if len(classes) == 2 else f"has no row of {', '.join(lacking)}"
            raise ProbeError(
                f"{where}: the training set {what}, so nothing can be fitted. Use fewer folds, "
                "or folds that spread the rare class over the groups"
                + (", or inner folds of their own (--inner-folds 2)." if len(part.models) > 1 else ".")
            )
    return Plan(folds, inner, parts, np.asarray(groups, dtype=object), votes)


def _name_of(part: Part) -> str:
    first, *others = part.models
    if others:
        return f"outer folds {first} and {others[0]}, left out together by shared inner folds"
    name = f"outer fold {first}" if first else "all train rows"
    return name + ("" if part.inner is None else f", inner fold {part.inner}")


def inner_folds(
    folds: np.ndarray,
    groups: np.ndarray,
    labels: np.ndarray,
    *,
    wanted: int | str | None,
    shared: bool,
    seed: int,
    fix: str,
) -> list[np.ndarray]:
    """The inner folds of each of K outer folds: int (n,), 0 outside its training set.

    wanted : "shared", a number, or None: shared if `shared`, else as many of their own as `folds_of` makes
    labels : object (n,), by which they are balanced. Raises InvalidRequest where they cannot be made.
    """
    numbers = np.unique(folds)
    if wanted == SHARED and len(numbers) < 3:
        raise InvalidRequest(
            f"inner folds that are shared need 3 folds or more, not {len(numbers)}: nothing is left without "
            "two. Fix: give more folds (--folds 5), or inner folds of their own (--inner-folds 5)."
        )
    if wanted == SHARED or (wanted is None and shared):
        return shared_folds(folds)
    inner = []
    for k in numbers:
        training = folds != k
        assigned = np.zeros(len(folds), int)
        made = folds_of(
            labels[training],
            groups[training],
            exactly=None if wanted is None else int(wanted),
            seed=seed,
            what=f"inner folds of outer fold {k}, from the rows of the other folds",
            fix=fix,
        )
        assigned[training] = made.assign(groups[training])
        inner.append(assigned)
    return inner


def larger_sample(config: ProbeConfig) -> str:
    """What helps first where a part of the rows was drawn."""
    return "" if config.sample is None else f"draw more rows than {config.sample} (--sample), "


def rare_class_fix(classes: Sequence[object]) -> str:
    """What else helps where one of more than two classes is in too few groups."""
    if len(classes) <= 2:
        return ""
    return (
        ", leave the class out of the manifest (an empty label) or merge it with another one "
        "(datasets build --map RARE=OTHER), ask for one class against the rest (--one-vs-rest NAME)"
    )


def folds_of(
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    exactly: int | None,
    seed: int,
    what: str,
    fix: str,
    name: str = "balanced",
    dataset: str = "",
) -> Folds:
    """`make_folds` with `exactly` so many folds, or with MOST_FOLDS or as many less as can be made (None).

    A class needs a group for each fold. Raises InvalidRequest, naming `what` is made, classes, groups and the
    fix, where not even two can be made, or not `exactly` so many.
    """
    for n_splits in [exactly] if exactly else range(MOST_FOLDS, 1, -1):
        try:
            return make_folds(labels, groups, n_splits=n_splits, seed=seed, name=name, dataset=dataset)
        except InvalidRequest:
            continue
    wanted = exactly or 2
    why = too_few(labels, groups, wanted)
    raise InvalidRequest(f"{wanted} {what} cannot be made: {why}. Fix: {fix}, or label more groups.")


@dataclass
class ProtocolRun:
    """What the protocol found for one feature set; n train rows, T test sets, K outer folds.

    Scores are logits of the positive class (for probes without probabilities: their decision values). Of
    C > 2 classes they are logits of each class and have an axis more, (C,), at the end; so have rankings and
    scales, and an `adjustment` has one number, not four.
    """

    # the grid: P preprocessings x W class weights x L values
    values: np.ndarray  # (L,)
    path: np.ndarray  # (P, W, L) criterion on the outer folds, higher is better: chooses the refit
    fold_paths: np.ndarray  # (K, P, W, L) criterion on the inner folds of each outer fold: chooses its model
    choice: Setting | None  # None: a published recipe, which chooses no setting
    fold_choices: list[Setting]
    # train rows
    oof: np.ndarray  # float64 (n,) out-of-fold score, each outer fold at the setting its inner folds chose
    oof_adjusted: np.ndarray  # float64 (n, 4) `adjustment` of each row, from its outer fold's inner folds
    oof_ranking: np.ndarray  # float64 (n,) `oof` on one scale over the folds, see `ranking`
    scales: np.ndarray  # float64 (K, 2) mean and deviation of each outer model's scores, see `ranking`
    oof_flat: np.ndarray  # float64 (n,) held-out score at `choice`: for `adjusted` alone, not reported
    adjusted: np.ndarray  # float64 (4,) `adjustment` of the refit, from oof_flat
    oof_ensemble: np.ndarray  # float64 (n,) out of fold on the fold ensemble's scale, see `as_ensemble`
    ensemble_adjusted: np.ndarray  # float64 (4,) of the fold ensemble, from oof_ensemble
    # evaluation sets
    refit: dict[str, np.ndarray]  # float64 (n_t,)
    fold_models: dict[str, np.ndarray]  # float64 (n_t, K), scores of the outer folds' models
    fits: dict[str, Any]  # number of fits and of solver calls, statuses, worst gap bound
    seconds: dict[str, float]
    models: dict[
        str, ProbeModel
    ]  # "refit" (a published recipe has none), "ensemble" of the outer folds' models
    train_role: str = "oof"  # "validation": each fold has chosen the model that scores it


def run_protocol(
    X: Features,
    y: np.ndarray,
    plan: Plan,
    tests: Mapping[str, Features],
    *,
    config: ProbeConfig,
    memory: float = float("inf"),
) -> ProtocolRun:
    """Probe one feature set.

    Fitted on : the train rows only. Every point of the grid (preprocessing x class weight x C) is fitted on
        all of them (the refit), on all but each of the K outer folds, and inside each outer training set on
        all but each of its J inner folds. Where these are the other outer folds, what is fitted without two
        of them serves the choices of both. Folds are made of whole groups (slides). Means and scales are
        those of each fit's own rows.
    Chosen on : folds. The inner folds of outer fold k choose the setting of model k; the outer folds choose
        the setting of the refit. Best is the highest criterion of `config.select`; of equals, the first of
        the grid, so the strongest penalty. Thresholds and temperatures are chosen on the same held-out
        scores.
    Refit : at the chosen setting on all train rows. The fold ensemble is the K outer models as they are.
    Scored : `oof` is every train row's score by the outer model that has seen neither the row nor, when it
        chose its setting, its label. `refit` and `fold_models` are the test rows' scores. Labels of test rows
        are no argument of this function, so nothing that is chosen here can depend on them.

    X : float (n, d), or `FileRows`; y : int (n,), 0 or 1 (positive), or 0 .. C-1; plan : see `make_plan`
    tests : evaluation set -> float (n_t, d), or `FileRows`; memory : as for `fit_parts`
    """
    started = time.perf_counter()
    folds, inner, parts = plan.folds, plan.inner, plan.parts
    fitted = fit_parts(X, y, parts, config, votes=plan.votes, groups=plan.groups, memory=memory)
    shared = sum(len(part.models) > 1 for part in parts) * fitted.facts["fits"] // len(parts)
    flat, nested = _held_out_scores(fitted, plan, len(y))

    lap = time.perf_counter()
    path = criterion_path(config, y, flat, folds)
    fold_paths = np.stack(
        [criterion_path(config, y, scores, of_fold) for scores, of_fold in zip(nested, inner, strict=True)]
    )
    choice = fitted.setting(best(path))
    fold_choices = [fitted.setting(best(fold_path)) for fold_path in fold_paths]
    oof = _out_of_fold(y, folds, flat, nested, fold_choices, probabilistic=config.probabilistic)
    oof_ensemble = as_ensemble(oof.ranking, oof.scales, probabilistic=config.probabilistic)
    oof_flat = flat[choice.index].astype(np.float64)
    weighted = choice.class_weight != "none"
    seconds = {**fitted.seconds, "choose": time.perf_counter() - lap}

    lap = time.perf_counter()
    of_model = {part.models[0]: i for i, part in enumerate(parts) if part.inner is None}
    settings = [choice, *fold_choices]
    refit, fold_models = {}, {}
    for name, rows in tests.items():
        score = fitted.scorer(rows)
        columns = [score(of_model[model], setting) for model, setting in enumerate(settings)]
        refit[name], fold_models[name] = columns[0], np.stack(columns[1:], axis=1)
    adjusted = adjustment(y, oof_flat, weighted=weighted)
    ensemble_adjusted = adjustment(y, oof_ensemble, weighted=weighted)
    models = {"refit": ProbeModel((fitted.steps(of_model[0], choice),), adjusted)}
    if config.probe != "knn":  # whose models of folds are the training rows again, each
        members = tuple(fitted.steps(of_model[k], setting) for k, setting in enumerate(fold_choices, start=1))
        models["ensemble"] = ProbeModel(members, ensemble_adjusted)
    seconds["score tests"] = time.perf_counter() - lap
    seconds["all"] = time.perf_counter() - started
    return ProtocolRun(
        values=fitted.values,
        path=path,
        fold_paths=fold_paths,
        choice=choice,
        fold_choices=fold_choices,
        oof=oof.scores,
        oof_ranking=oof.ranking,
        scales=oof.scales,
        oof_flat=oof_flat,
        oof_adjusted=oof.adjusted,
        adjusted=adjusted,
        oof_ensemble=oof_ensemble,
        ensemble_adjusted=ensemble_adjusted,
        refit=refit,
        fold_models=fold_models,
        fits={**fitted.facts, "shared": shared},
        seconds=seconds,
        models=models,
    )


def _held_out_scores(fitted: Fitted, plan: Plan, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the n train rows at every point of the grid, NaN where no model held a row out.

    By the outer models, float32 (P, W, L, n[, C]); by those of each outer fold's inner folds, (K, P, W, L,
    n[, C]).
    """
    grid, outputs = fitted.held_out[0].shape[:3], fitted.held_out[0].shape[4:]
    flat = np.full((*grid, n, *outputs), np.nan, np.float32)
    nested = np.full((len(plan.inner), *flat.shape), np.nan, np.float32)
    for part, scores in zip(plan.parts, fitted.held_out, strict=True):
        if part.inner is None:
            flat[:, :, :, part.held_out] = scores
            continue
        for inside, into in ((plan.inner[k - 1], nested[k - 1]) for k in part.models):
            rows = part.held_out & (inside > 0)
            into[:, :, :, rows] = scores[:, :, :, rows[part.held_out]]
    return flat, nested


class _OutOfFold(NamedTuple):
    """The fields `oof`, `oof_ranking`, `oof_adjusted` and `scales` of `ProtocolRun`."""

    scores: np.ndarray
    ranking: np.ndarray
    adjusted: np.ndarray
    scales: np.ndarray


def _out_of_fold(
    y: np.ndarray,
    folds: np.ndarray,
    flat: np.ndarray,
    nested: np.ndarray,
    choices: Sequence[Setting],
    *,
    probabilistic: bool,
) -> _OutOfFold:
    """Every train row by its outer fold's model, at the setting that the fold's inner folds chose.

    flat, nested : see `_held_out_scores`
    """
    outputs = flat.shape[4:]
    oof, oof_ranking = np.empty((2, len(y), *outputs))
    adjusted = np.empty((len(y), 1 if outputs else 4))
    scales = np.empty((len(choices), 2, *outputs))
    for i, (k, setting) in enumerate(zip(np.unique(folds), choices, strict=True)):
        rows = folds == k
        oof[rows] = flat[setting.index][rows]
        inner_scores = nested[(i, *setting.index)][~rows]
        adjusted[rows] = adjustment(y[~rows], inner_scores, weighted=setting.class_weight != "none")
        scales[i] = scale_of(by_class(inner_scores, probabilistic=probabilistic))
        oof_ranking[rows] = ranking(by_class(oof[rows], probabilistic=probabilistic), scales[i])
    return _OutOfFold(oof, oof_ranking, adjusted, scales)


def run_published(
    X: np.ndarray,
    y: np.ndarray,
    plan: Plan,
    tests: Mapping[str, np.ndarray],
    *,
    config: ProbeConfig,
) -> ProtocolRun:
    """Probe one feature set by a published recipe (`config.solver`, see `rivals`), for comparison.

    Fitted on : for each outer fold, the other folds; features as they are, one recipe for all.
    Chosen on : the fold itself, whose score picks the epoch (and the head, where there are several). So the
        scores of the folds are no estimate of anything; they are kept as "validation", not as "oof".
    Refit : none. Scored : the test rows by each fold's model (the published numbers are their mean) and by
        the ensemble. Its threshold and calibration come from the validation scores.

    Arguments as for `run_protocol`.
    """
    started = time.perf_counter()
    fit = RECIPES[config.solver]
    validation = np.empty(len(y) if (n_classes := int(y.max()) + 1) == 2 else (len(y), n_classes))
    heads = []
    for k in np.unique(plan.folds):
        rows = plan.folds == k
        heads.append(fit(X[~rows], y[~rows], X[rows], y[rows], seed=config.seed + int(k)))
        validation[rows] = heads[-1].decision(X[rows])
    fitted = time.perf_counter() - started
    path = criterion_path(config, y, validation[None, None, None], plan.folds)
    scales, oof_ranking = standardized(by_class(validation, probabilistic=config.probabilistic), plan.folds)
    oof_ensemble = as_ensemble(oof_ranking, scales, probabilistic=config.probabilistic)
    adjusted = adjustment(y, oof_ensemble, weighted=False)
    return ProtocolRun(
        values=np.zeros(1),
        path=path,
        fold_paths=np.repeat(path[None], len(heads), axis=0),
        choice=None,
        fold_choices=[],
        oof=validation,
        oof_adjusted=np.tile(adjusted, (len(y), 1)),
        oof_ranking=oof_ranking,
        scales=scales,
        oof_flat=validation,
        adjusted=adjusted,
        oof_ensemble=oof_ensemble,
        ensemble_adjusted=adjusted,
        refit={},
        fold_models={
            name: np.stack([head.decision(rows) for head in heads], axis=1).astype(np.float64)
            for name, rows in tests.items()
        },
        fits=_recipe_facts(
            {
                f"fold {k}: best of {head.epochs} epochs was {head.best_epoch}": 1
                for k, head in enumerate(heads, start=1)
            }
        ),
        seconds={"fit": fitted, "all": time.perf_counter() - started},
        models={"ensemble": ProbeModel(tuple(head.steps() for head in heads), adjusted)},
        train_role="validation",
    )


def run_on_split(
    X: Features,
    y: np.ndarray,
    V: Features,
    v: np.ndarray,
    tests: Mapping[str, Features],
    *,
    config: ProbeConfig,
    votes: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    memory: float = float("inf"),
) -> ProtocolRun:
    """Probe one feature set as benchmarks with an official validation split do.

    Fitted on : the train rows, once at every point of the grid. Chosen on : the validation rows, by
        `config.select`; so are threshold and temperature. A published recipe (`config.solver`) chooses its
        epoch there. Refit : none, the model that was chosen is the one that is reported. Scored : the test
        rows; the validation rows too, too high.

    X : float (n, d), y : int (n,) of the train rows; V : float (m, d), v : int (m,) of the validation rows
    tests : evaluation set -> float (n_t, d), the validation rows among them
    votes : float (n,), see `grid.Targets`; groups : (n,), for probes that choose something themselves
    memory : as for `fit_parts`. The probe "logistic" takes `FileRows` for features
    """
    started = time.perf_counter()
    choice, weighted, values = None, False, np.zeros(1)
    if config.solver != "exact":
        head = RECIPES[config.solver](X[:], y, V[:], v, seed=config.seed)
        held_out = head.decision(V).astype(np.float64)
        path = criterion_path(config, v, held_out[None, None, None], np.ones(len(v), int))
        status = {f"best of {head.epochs} epochs was {head.best_epoch}": 1}
        steps, facts = head.steps(), _recipe_facts(status)
        scores = {name: head.decision(rows[:]).astype(np.float64) for name, rows in tests.items()}
    else:
        fitted = _fit_before_validation(X, y, V, v, config, votes=votes, groups=groups, memory=memory)
        path = criterion_path(config, v, fitted.held_out[0], np.ones(len(v), int))
        choice = fitted.setting(best(path))
        weighted, values, facts = choice.class_weight != "none", fitted.values, fitted.facts
        held_out = fitted.held_out[0][choice.index].astype(np.float64)
        steps = fitted.steps(0, choice)
        scores = {name: fitted.scorer(rows)(0, choice) for name, rows in tests.items()}
    adjusted = adjustment(v, held_out, weighted=weighted)
    return ProtocolRun(
        values=values,
        path=path,
        fold_paths=np.empty((0, *path.shape)),
        choice=choice,
        fold_choices=[],
        oof=held_out[:0],
        oof_adjusted=np.empty((0, len(adjusted))),
        oof_ranking=held_out[:0],
        scales=np.empty((0, 2, *held_out.shape[1:])),
        oof_flat=held_out,
        adjusted=adjusted,
        oof_ensemble=held_out[:0],
        ensemble_adjusted=adjusted,
        refit=scores,
        fold_models={},
        fits=facts,
        seconds={"all": time.perf_counter() - started},
        models={"refit": ProbeModel((steps,), adjusted)},
    )


def _fit_before_validation(
    X: Features,
    y: np.ndarray,
    V: Features,
    v: np.ndarray,
    config: ProbeConfig,
    *,
    votes: np.ndarray | None,
    groups: np.ndarray | None,
    memory: float,
) -> Fitted:
    """All of the grid fitted on the train rows X, y; the validation rows V, v are held out."""
    training = np.arange(len(X) + len(V)) < len(X)
    no_votes = np.full((len(V), *(() if votes is None else votes.shape[1:])), np.nan)
    return fit_parts(
        stack(X, V),
        np.concatenate([y, v]),
        [Part(training, ~training, (0,))],
        config,
        votes=None if votes is None else np.concatenate([votes, no_votes]),
        groups=None if groups is None else np.concatenate([groups, np.full(len(V), "", dtype=object)]),
        memory=memory,
    )


def _recipe_facts(status: Mapping[str, int]) -> dict[str, Any]:
    """`ProtocolRun.fits` of a published recipe: one fit for each line of `status`."""
    return {"fits": len(status), "calls": len(status), "status": dict(status), "worst_gap_bound": None}


def adjustment(y: np.ndarray, scores: np.ndarray, *, weighted: bool = True) -> np.ndarray:
    """What is chosen on held-out scores (n,): threshold (best balanced accuracy), 1 / temperature, and
    Platt's scale and offset: float64 (4,). Of scores (n, C), C > 2 classes: 1 / temperature alone, float64
    (1,), by the log-loss in which all classes weigh alike (weighted) or all rows do, as in the fit.

    The temperature keeps probability 0.5 where it is; Platt's offset
    moves the prior too.

    A scale is positive: it puts scores of several models on one scale and turns none around. Where the best
    one is not (a model at chance level), the best that is allowed is none at all, the share of positives for
    every row; a millionth of the scores' spread is left, which keeps their order.
    """
    scores = scores.astype(np.float64)
    if scores.ndim == 2:
        class_weight = "balanced" if weighted else None
        temperature = multiclass_calibration.fit_temperature(y, scores, class_weight=class_weight)
        return np.array([1 / temperature])
    scale, offset = fit_platt(y, scores)
    if scale <= 0:
        scale = LEAST_SCALE / (scores.std() or 1)
        offset = fit_platt(y, np.zeros(len(y))).offset - scale * scores.mean()
    return np.array([best_threshold(y, scores), 1 / fit_temperature(y, scores), scale, offset])


def by_class(scores: np.ndarray, *, probabilistic: bool = True) -> np.ndarray:
    """What rows are ranked by: the score, or for each of C > 2 classes its log odds against the rest.

    scores : float (n,), returned as they are, or (n, ..., C); those of probes without probabilities rank too
    """
    if scores.ndim == 1 or not probabilistic:
        return scores
    return np.stack([log_odds(scores, k) for k in range(scores.shape[-1])], axis=-1)


def scale_of(scores: np.ndarray) -> np.ndarray:
    """Mean and standard deviation (1 where it is 0) of one model's held-out scores (n,) or (n, C), see
    `by_class`: float64 (2,) or (2, C).
    """
    scores = scores.astype(np.float64)
    deviation = scores.std(axis=0)
    return np.array([scores.mean(axis=0), np.where(deviation == 0, 1.0, deviation)])


def ranking(scores: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Scores (n,) of one fold's model on a scale that all folds share: less the mean, over the deviation, of
    scores that the same setting gave held-out rows (`scale_of`, of its inner folds): float64 (n,). Of C > 2
    classes (n, C), each class by itself.

    Fold models that chose another strength or class weight have another scale, so raw scores cannot be
    pooled: their AUROC was .02 to .05 below what the models are worth in simulated studies of 20 slides. No
    label is in the scale. By the fold's own Platt scaling, whose slope is uncertain with few slides, it was
    .01 too low where there is a signal and .02 too high where there is none; by this one, within .007 of it
    (tests/benchmarks/protocol_pooling.py).
    """
    return (scores - scale[0]) / scale[1]


def standardized(scores: np.ndarray, folds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where there are no inner folds: the scale of each fold's model by the fold's own rows, float64 (K, 2),
    and the `ranking` of all rows. scores : float64 (n,), each fold's by its own model (of C > 2 classes
    (n, C), see `by_class`); folds : int (n,).
    """
    numbers, of = np.unique(folds, return_inverse=True)
    scales = np.stack([scale_of(scores[folds == k]) for k in numbers])
    return scales, ranking(scores, np.moveaxis(scales[of], 1, 0))


def as_ensemble(rankings: np.ndarray, scales: np.ndarray, *, probabilistic: bool = True) -> np.ndarray:
    """What the fold ensemble would give rows that all of its models place alike: float64 (n,) or (n, C).

    Threshold and calibration of the ensemble are chosen on these scores: each row has been held out by one
    model only, and the mean probability of models that chose differently is on the scale of none of them.
    rankings : float64 (n,), see `ranking`; scales : float64 (K, 2), of the models of the ensemble
    """
    each = rankings[:, None] * scales[:, 1] + scales[:, 0]
    if each.ndim == 3 and probabilistic:
        each = log_expit(each)  # from log odds to logarithms of probabilities
    return mean_logit(each)


def criterion_path(config: ProbeConfig, y: np.ndarray, scores: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Criterion of held-out scores (P, W, L, n[, C]): float64 (P, W, L), over the rows with folds > 0."""
    rows = folds > 0
    columns = np.moveaxis(scores[:, :, :, rows].reshape(-1, int(rows.sum()), *scores.shape[4:]), 0, 1)
    order = (
        by_class(columns, probabilistic=config.probabilistic)
        if scores.ndim == 5 and config.criterion == "auroc"
        else None
    )
    return criterion(config.criterion, y[rows], columns, folds[rows], ranking=order).reshape(scores.shape[:3])

"""Ensembles over systems: several probes and fine-tuned models as one, weighted on out-of-fold scores.

    two classes   score = sum_m w_m z_m + b, z_m the calibrated log odds of member m, w_m >= 0
    K classes     scores = sum_m w_m log p_m, p_m its calibrated probabilities (n, K)
    numbers       prediction = sum_m w_m prediction_m + b, of each number its b

Weights "folds" are those of the smallest loss on train rows out of fold: the log-loss in which all classes
weigh alike, of numbers squares of errors (each number in standard deviations). They are pulled to 1/M, M
members, by SHRINKAGE times the squared distance, which decides where members are the same. "equal": 1/M.

Test labels take no part. The ensemble's out-of-fold scores of fold k have weights of the other folds' rows;
on evaluation sets they are those of all train rows, with threshold and calibration of the ensemble's own
out-of-fold scores. The optimism that is left: a member's models that scored the other folds were trained on
fold k's rows, as in any stacking (Wolpert 1992); and a fine-tuned member has chosen its epoch on the fold
that it scores, so that its weight is somewhat too large (not where its recipe has another `choose_on`).
Evaluation sets have neither.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, logit, softmax

from ..errors import InvalidRequest
from ..settings import near
from ..version import provenance
from .config import ENSEMBLE_WEIGHTS, ProbeConfig
from .describe import describe_adjusted, predictions_table
from .held_out import OutOfFold
from .regression import TargetConfig
from .results.display import (
    SHOWN,
    SHOWN_OF_CLASSES,
    SHOWN_OF_TARGETS,
    Table,
    interval,
    p_value,
    titles_of,
)
from .results.files import ProbeResult
from .results.merge import (
    from_predictions,
    merge_systems,
    reported_predictions,
    targets_from_predictions,
)
from .results.schema import PAIRED, Results, Role, Score
from .results.scoring import Rows, precision, score_set, score_votes
from .targets import Column as TargetColumn
from .targets import predictions_table as table_of_numbers
from .targets import score_columns

SHRINKAGE = 1e-3
LEAST = 1e-15  # probability: log odds stay finite


def ensemble_systems(
    results: Mapping[str, ProbeResult], *, name: str = "ensemble", weights: str = "folds"
) -> ProbeResult:
    """The members and their ensemble as one result, as `merge.merge_systems` gives it: a row for each, paired
    comparisons of all. Arguments as for `ensemble_of`.
    """
    if name in results:
        raise InvalidRequest(f"a member is called {name!r}: give the ensemble another name")
    return merge_systems({**results, name: ensemble_of(results, name=name, weights=weights)})


def ensemble_of(results: Mapping[str, ProbeResult], *, name: str, weights: str = "folds") -> ProbeResult:
    """The ensemble alone, as a result: what each member reports (`merge.merge_systems`), combined.

    results : member -> its own result, of the same train rows and folds; at least two. Evaluation sets that
        not all have scored are left out, and so are rows of them
    weights : "folds" or "equal", see the module's text; the entry of "models" has them as shares
    Raises InvalidRequest: too few members; other train rows, folds, classes; no out-of-fold scores.
    """
    if weights not in ENSEMBLE_WEIGHTS:
        raise InvalidRequest(f"weights {weights!r} is not one of {', '.join(ENSEMBLE_WEIGHTS)}")
    if len(results) < 2:
        raise InvalidRequest(f"an ensemble needs two members or more, not {len(results)}")
    first = next(iter(results.values())).results
    frames = {member: reported_predictions(result) for member, result in results.items()}
    fold = _fold_of_rows(results, frames)
    kind: Any = TargetConfig if first.targets else ProbeConfig
    config = kind.from_dict(first.config.to_json() | {"features": ["ensemble"]})
    train, *tests = [s for about in first.data if (s := _set_of(about.dataset, frames, first)) is not None]
    chosen = Weighing.of(train, weights)
    of_folds = {int(k): Weighing.of(train.select(fold != k), weights) for k in np.unique(fold)}
    oof = np.empty((len(fold), *train.z.shape[2:]))
    for k, weighing in of_folds.items():
        oof[fold == k] = weighing.apply(train.z[fold == k])
    combine = _numbers if first.targets else _classes
    scores, parts, described, table = combine(name, config, first, [train, *tests], fold, oof, chosen)
    (of_train,) = (one for one in scores if one.role == Role.OOF and not one.domain and one.subset == "raw")
    kept = [one.rows.dataset for one in (train, *tests)]
    about = {
        "features": name,
        "criterion": of_train.estimate("r2" if first.targets else "auroc").value,
        "weights": chosen.shares(results),
        "fold_weights": [one.shares(results) for one in of_folds.values()],
        "offset": np.atleast_1d(chosen.offset).tolist(),
    }
    document = {
        "config": first.config.to_json() | {"features": [name]},
        "provenance": provenance(),
        "data": [one.to_json() for one in first.data if one.dataset in kept],
        "notes": [_caveat(results, weights)],
        "folds": {k: v for k, v in first.folds.to_json().items() if k not in ("inner", "shared")},
        "chosen": name,
        "models": [about | described],
        "scores": scores,
        "comparisons": [],
        **parts,
    }
    return ProbeResult(document, table)


def read_members(texts: Sequence[str]) -> dict[str, ProbeResult]:
    """Results by name, from FOLDER or FOLDER::FEATURES. Raises ProbeError, InvalidRequest."""
    members: dict[str, ProbeResult] = {}
    for text in texts:
        folder, _, features = text.partition("::")
        result = ProbeResult.load(folder)
        name = features or (result.chosen if len(result.results.models) == 1 else Path(folder).resolve().name)
        name = next((one for one in (name, Path(folder).resolve().name) if one not in members), text)
        if name in members:
            raise InvalidRequest(f"{text} is named twice")
        members[name] = alone(result, features) if features else result
    return members


def alone(result: ProbeResult, features: str) -> ProbeResult:
    """One feature set of a sweep by itself. Raises InvalidRequest where there is no such one."""
    known = [model.features for model in result.results.models]
    if features not in known:
        raise InvalidRequest(
            f"there is no feature set {features!r}{near(features, known)} ({', '.join(known)})"
        )
    of = result.results
    kept = {
        "chosen": features,
        "models": [model for model in of.models if model.features == features],
        "scores": [score for score in of.scores if score.features == features],
        "comparisons": [],
        "repeats": None,
    }
    table = result.predictions[result.predictions["features"] == features]
    return ProbeResult(of.model_copy(update=kept), table)


def tables_of(result: ProbeResult, name: str) -> dict[str, Table]:
    """Title -> table of the terminal: weights, scores, difference to the best member."""
    results = result.results
    shares = results.model(name).weights or {}
    titles = titles_of(multiclass=results.multiclass)
    shown = SHOWN_OF_TARGETS if results.targets else SHOWN_OF_CLASSES if results.multiclass else SHOWN
    best = max(shares, key=lambda member: results.model(member).criterion)
    scores = [
        [one.dataset, one.features, one.n, *(interval(one.estimate(m)) for m in shown)]
        for dataset in results.sets
        for one in results.whole(dataset=dataset)
    ]
    differences = [
        [one.dataset, titles[one.metric], interval(one.estimate, "+.3f"), p_value(one.p_holm)]
        for comparison in results.comparisons
        if {comparison.a, comparison.b} == {name, best} and comparison.test == PAIRED
        for one in [comparison.against(best)]
    ]
    return {
        "Weights": Table(["member", "share"], [[m, f"{share:.2f}"] for m, share in shares.items()]),
        "Scores": Table(["scored on", "system", "patches", *(titles[m] for m in shown)], scores, left=2),
        f"{name} less {best}, the best member out of fold": Table(
            ["scored on", "metric", "difference", "p (Holm)"], differences, left=2
        ),
    }


@dataclass(frozen=True)
class _Set:
    """Rows of a set that all members have scored, and what these say: z (n, M), (n, M, K) or (n, M, T), see
    the module's text.
    """

    rows: Rows
    z: np.ndarray

    def select(self, mask: np.ndarray) -> "_Set":
        return replace(self, rows=self.rows.select(mask), z=self.z[mask])


@dataclass(frozen=True)
class Weighing:
    """weights : float64 (M,), >= 0; offset : a number, or float64 (T,)."""

    weights: np.ndarray
    offset: np.ndarray | float

    @classmethod
    def of(cls, rows: _Set, weights: str) -> "Weighing":
        """From rows and their labels."""
        y, z, members = rows.rows.y, rows.z, rows.z.shape[1]
        equal = np.full(members, 1 / members)
        if y.ndim == 2:
            return cls(equal, 0.0) if weights == "equal" else least_squares(y, z)
        if weights == "equal":  # 0 is where classes that weigh alike are even
            return cls(equal, 0.0 if z.ndim == 3 else -float(logit(y.mean())))
        return least_log_loss(y, z)

    def apply(self, z: np.ndarray) -> np.ndarray:
        """(n, M, ...) -> float64 (n, ...)."""
        return np.einsum("m,nm...->n...", self.weights, z) + self.offset

    def shares(self, names: Mapping[str, Any]) -> dict[str, float]:
        """Member -> its part of all weights."""
        return dict(zip(names, (self.weights / (self.weights.sum() or 1.0)).tolist(), strict=True))


def least_log_loss(y: np.ndarray, z: np.ndarray) -> Weighing:
    """y : int (n,); z : float64 (n, M), or (n, M, K)."""
    from scipy.optimize import minimize

    members, binary = z.shape[1], z.ndim == 2
    each = 1 / np.bincount(y)[y]
    each = each / each.sum()

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        weights, offset = x[:members], x[members]
        away = weights - 1 / members
        if binary:
            s = z @ weights + offset
            value = np.logaddexp(0, np.where(y == 1, -s, s))
            residual = each * (expit(s) - y)
            slope = np.append(residual @ z, residual.sum())
        else:
            s = np.einsum("m,nmk->nk", weights, z)
            p = softmax(s, axis=1)
            value = -np.log(np.maximum(p[np.arange(len(y)), y], LEAST))
            p[np.arange(len(y)), y] -= 1
            slope = np.append(np.einsum("n,nk,nmk->m", each, p, z), 0.0)
        slope[:members] += 2 * SHRINKAGE * away
        return float(each @ value + SHRINKAGE * away @ away), slope

    start = np.append(np.full(members, 1 / members), 0.0)
    bounds = [(0, None)] * members + [(None, None) if binary else (0, 0)]
    found = minimize(
        loss, start, jac=True, bounds=bounds, method="L-BFGS-B", options={"ftol": 1e-13, "gtol": 1e-9}
    )
    return Weighing(found.x[:members], float(found.x[members]))


def least_squares(y: np.ndarray, z: np.ndarray) -> Weighing:
    """y : float64 (n, T); z : float64 (n, M, T)."""
    from scipy.optimize import nnls

    members = z.shape[1]
    scale = np.where(y.std(axis=0) > 0, y.std(axis=0), 1.0) * np.sqrt(y.size)
    A = np.moveaxis((z - z.mean(axis=0)) / scale, 1, 2).reshape(-1, members)
    b = ((y - y.mean(axis=0)) / scale).ravel()
    pull = np.sqrt(SHRINKAGE) * np.eye(members)
    weights, _ = nnls(np.concatenate([A, pull]), np.concatenate([b, pull.sum(axis=1) / members]))
    return Weighing(weights, y.mean(axis=0) - np.einsum("m,mt->t", weights, z.mean(axis=0)))


def _fold_of_rows(results: Mapping[str, ProbeResult], frames: Mapping[str, pd.DataFrame]) -> np.ndarray:
    """The folds that all members share, int (n,). Raises InvalidRequest where they do not."""
    members = list(results)
    first, dataset = members[0], results[members[0]].results.train.dataset
    of_first = None
    for member, frame in frames.items():
        rows = frame[frame["dataset"] == dataset].set_index("patch_id")
        if not len(rows) or (rows["role"] != Role.OOF).any():
            raise InvalidRequest(
                f"{member!r} has no out-of-fold scores of {dataset}, on which weights could be chosen (a "
                "published recipe, or a validation split, chose by the very rows that it scores)"
            )
        of_first = rows["fold"] if of_first is None else of_first
        if set(rows.index) != set(of_first.index):
            raise InvalidRequest(
                f"{member!r} has out-of-fold scores of {len(rows)} train rows, {first!r} of {len(of_first)}: "
                "train all folds, on the same rows"
            )
        if (rows["fold"].loc[of_first.index] != of_first).any():
            raise InvalidRequest(f"{member!r} has other folds than {first!r}: give both the same --folds")
    assert of_first is not None
    if of_first.nunique() < 2:
        raise InvalidRequest("weights for a fold come from the others, and there is one fold alone")
    return of_first.to_numpy(int)


def _set_of(dataset: str, frames: Mapping[str, pd.DataFrame], results: Results) -> _Set | None:
    """None where not all members have scored it."""
    tables = {
        name: frame[frame["dataset"] == dataset].set_index("patch_id") for name, frame in frames.items()
    }
    if not all(map(len, tables.values())):
        return None
    known: dict[str, Any] = {"groups_known": results.data_set(dataset).grouped}
    if results.targets:
        rows, columns = targets_from_predictions(dataset, tables, results.targets, role=Role.OOF, **known)
        return _Set(rows, np.stack([column.values for column in columns], axis=1))
    classes = tuple(results.train.classes) if results.multiclass else ()
    rows, _ = from_predictions(dataset, tables, role=Role.OOF, classes=classes, **known)
    first = next(iter(tables.values()))
    if "votes_total" in first:
        votes = {k: first.loc[rows.patch_id, k].to_numpy(np.int64) for k in ("votes_positive", "votes_total")}
        rows = replace(rows, **votes)
    names: Any = [f"probability_{name}" for name in classes] if classes else "probability"
    each = [table.loc[rows.patch_id, names].to_numpy(np.float64) for table in tables.values()]
    p = np.stack(each, axis=1).clip(LEAST, 1 - LEAST)
    return _Set(replace(rows, ordered=results.train.ordered or False), np.log(p) if classes else logit(p))


def _classes(
    name: str,
    config: ProbeConfig,
    results: Results,
    sets: Sequence[_Set],
    fold: np.ndarray,
    oof: np.ndarray,
    chosen: Weighing,
) -> tuple[list[Score], dict[str, Any], dict[str, Any], pd.DataFrame]:
    """Scores, further parts of the document, what is said of the model, and the predictions."""
    train, *tests = sets
    held_out = OutOfFold.of(train.rows.y, oof, fold)
    columns = {train.rows.dataset: [held_out.column(name)]}
    columns |= {s.rows.dataset: [held_out.column_of(name, Role.REFIT, chosen.apply(s.z))] for s in tests}
    scores = [one for s in sets for one in score_set(s.rows, columns[s.rows.dataset], config=config)]
    parts = {
        "precision": precision(scores, [], level=config.level),
        "votes": [v for s in sets if (v := score_votes(s.rows, columns[s.rows.dataset], config=config))],
    }
    data: Any = SimpleNamespace(rows=[s.rows for s in sets], train=train.rows)
    plan: Any = SimpleNamespace(folds=fold)
    return scores, parts, describe_adjusted(held_out.of_ensemble), predictions_table(data, plan, columns)


def _numbers(
    name: str,
    config: TargetConfig,
    results: Results,
    sets: Sequence[_Set],
    fold: np.ndarray,
    oof: np.ndarray,
    chosen: Weighing,
) -> tuple[list[Score], dict[str, Any], dict[str, Any], pd.DataFrame]:
    """As `_classes`."""
    train, *tests = sets
    columns = {train.rows.dataset: [TargetColumn.out_of_fold(name, oof, train.rows.y, fold)]}
    for s in tests:
        values = chosen.apply(s.z)
        columns[s.rows.dataset] = [TargetColumn(name, Role.REFIT, values, values)]
    scores = [
        one for s in sets for one in score_columns(s.rows, columns[s.rows.dataset], results.targets, config)
    ]
    data: Any = SimpleNamespace(rows=[s.rows for s in sets], train=train.rows, targets=results.targets)
    return scores, {}, {"temperature": None}, table_of_numbers(data, columns, fold)


def _caveat(results: Mapping[str, ProbeResult], weights: str) -> str:
    members = ", ".join(results)
    if weights == "equal":
        return f"the mean of {members}, with equal weights"
    recipes = {member: [m.recipe for m in one.results.models if m.recipe] for member, one in results.items()}
    trained = [
        member
        for member, each in recipes.items()
        if any(recipe.get("choose_on", "fold") == "fold" for recipe in each)
    ]
    note = (
        f"weights of {members} chosen on scores of the train rows out of fold, for each fold on the "
        "others; the members that scored those have been trained on the fold"
    )
    if trained:
        note += (
            f"; {', '.join(trained)} chose the epoch on the fold scored, so the weight is a little too large"
        )
    return f"{note}. Evaluation sets took no part"

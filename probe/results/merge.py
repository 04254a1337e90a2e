"""Several systems side by side: results of single sweeps or trainings become one result with a row for each.

A system is what a study names: an encoder with its views and token policies under one probe, or one that was
fine-tuned. Each has a ProbeResult of its own, so that adding a system leaves the others as they are.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from ...errors import InvalidRequest
from ...version import provenance
from ..classifiers.grid import sum_facts
from ..config import ProbeConfig
from ..leaks import deduplicate
from ..regression import TargetConfig
from ..targets import Column as TargetColumn
from ..targets import compare_columns
from .files import ProbeResult
from .schema import (
    SWEEP,
    TEST_ROLES,
    TRAIN_ROLES,
    Comparison,
    DataSet,
    ExpertScore,
    Fits,
    FoldsUsed,
    HumanModel,
    Leaks,
    Model,
    Repeats,
    RepeatScore,
    Results,
    Role,
    Score,
    Votes,
)
from .scoring import Column, Rows, class_codes, compare_models, estimate_set, precision, without_duplicates

_Part = TypeVar("_Part", Score, RepeatScore)
REPORTED = Role.REFIT  # the role under which a merged result lists what a system reports on evaluation sets


def merge_systems(results: Mapping[str, ProbeResult]) -> ProbeResult:
    """One result, with a feature set called by the system's name for each system.

    results : name of the system -> its own result; at least one. They must have the same train set and
        positive class; evaluation sets may be missing in some.
    Kept of each: on the train rows the nested choice among the system's feature sets, where there are
        several; on evaluation sets the refit of the chosen one (the ensemble where there is no refit, as in
        fine-tuning and published recipes, which is then listed as `REPORTED` too: `reported_by` says which).
    Intervals and scores are those of the single results. Made here: paired comparisons between systems, over
        the rows that both have, and the criterion: AUROC on the folds, which all systems have, and which
        ranks them ("chosen" is the first). Where a recipe chose its epoch on the fold it is too high, and a
        fine-tuned system's is as well (`finetune.run`); test scores have no part in it.
    Raises InvalidRequest if the results cannot be compared.
    """
    if not results:
        raise InvalidRequest("there is no result to merge")
    systems = {name: result.results for name, result in results.items()}
    first = next(iter(systems.values()))
    _refuse_other_train_sets(systems, first)
    data = {about.dataset: about for system in systems.values() for about in system.data}
    frames = {name: reported_predictions(result) for name, result in results.items()}
    metric = "r2" if first.train.targets else "auroc"
    criteria = {name: _on_folds(system, metric) for name, system in systems.items()}
    ranked = sorted(results, key=lambda name: -criteria[name])
    config = (TargetConfig if first.train.targets else ProbeConfig).from_dict(first.config.to_json())
    comparisons = [
        comparison
        for about in data.values()
        for comparison in _compare(about, frames, config, reference=ranked[0], train=first.train)
    ]
    scores = [score for name, system in systems.items() for score in _scores(name, system)]
    merged = Results(
        config=first.config.model_copy(update={"features": list(results), "select": metric}),
        provenance=provenance(),
        stores={k: v for system in systems.values() for k, v in system.stores.items()},
        data=list(data.values()),
        notes=_notes(systems),
        folds=_folds(systems),
        chosen=ranked[0],
        models=[_model(name, system, criteria[name]) for name, system in systems.items()],
        scores=scores,
        comparisons=comparisons,
        repeats=_repeats(systems),
        precision=precision(scores, comparisons, level=config.level),
        votes=[votes for dataset in data if (votes := _votes(dataset, systems))],
        experts=_experts(systems),
        seconds={"all": sum(system.seconds.get("all", 0.0) for system in systems.values())},
        **_of_chosen(systems),
    )
    table = pd.concat([frame.assign(features=name) for name, frame in frames.items()], ignore_index=True)
    table["role"] = table["role"].where(table["role"].isin(TRAIN_ROLES), REPORTED)
    kinds = dict.fromkeys(("path", "dataset", "domain", "features", "role"), "category")
    return ProbeResult(merged, table.astype(kinds))


def _folds(systems: Mapping[str, Results]) -> FoldsUsed:
    """Those of the first; its inner folds only where all have the same."""
    first, *others = (system.folds for system in systems.values())
    if all((other.inner, bool(other.shared)) == (first.inner, bool(first.shared)) for other in others):
        return first
    return FoldsUsed(**{k: v for k, v in first.to_json().items() if k not in ("inner", "shared")})


def _refuse_other_train_sets(systems: Mapping[str, Results], first: Results) -> None:
    for name, system in systems.items():
        for key in ("dataset", "positive", "n", "targets", *(("classes",) if first.multiclass else ())):
            if getattr(system.train, key) != getattr(first.train, key):
                raise InvalidRequest(
                    f"system {name!r} was trained on {system.train.dataset} with {key} "
                    f"{getattr(system.train, key)}, the others with {getattr(first.train, key)}"
                )


def _of_chosen(systems: Mapping[str, Results]) -> dict[str, Any]:
    """What is kept of each system's chosen feature set; and leaks and what is not recorded, if any."""
    kept: dict[str, Any] = {}
    for key in ("fold_models", "fold_means", "domains"):
        of_systems = {name: (getattr(system, key), system.chosen) for name, system in systems.items()}
        kept[key] = {
            name: values[chosen] for name, (values, chosen) in of_systems.items() if chosen in values
        }
    if leaks := _longest(systems.values()):
        kept["leaks"] = leaks
    if lacks := list(dict.fromkeys(text for system in systems.values() for text in system.not_recorded)):
        kept["not_recorded"] = lacks
    return kept


def reported_by(results: Results, dataset: str) -> tuple[str, Role] | None:
    """(features, role) of the scores that stand for a system on one of its sets; None: it has none there."""
    chosen, there = results.chosen, {(s.features, s.role) for s in results.whole(dataset=dataset)}
    wanted = [(chosen, role) for role in (*TEST_ROLES, Role.VALIDATION)]
    if dataset == results.train.dataset:
        wanted = [(SWEEP, Role.OOF), *((chosen, role) for role in TRAIN_ROLES)]
    return next((candidate for candidate in wanted if candidate in there), None)


def reported_predictions(result: ProbeResult) -> pd.DataFrame:
    """Predictions of a system, one row a patch."""
    table, parts = result.predictions, []
    for dataset in result.results.sets:
        reported = reported_by(result.results, dataset)
        if reported is not None:
            of_features = (table["dataset"] == dataset) & (table["features"] == reported[0])
            part = table[of_features & (table["role"] == reported[1])].copy()
            parts.append(part.astype({"features": object, "role": object, "dataset": object}))
    return pd.concat(parts, ignore_index=True)


def _named(name: str, part: _Part, results: Results) -> _Part:
    """A score of a system under the system's name and, where nothing was chosen on the set, `REPORTED`."""
    role = {} if part.role in TRAIN_ROLES else {"role": REPORTED}
    return part.model_copy(update={"features": name, **role})


def _scores(name: str, results: Results) -> list[Score]:
    reported = {dataset: reported_by(results, dataset) for dataset in results.sets}
    return [
        _named(name, score, results)
        for score in results.scores
        if (score.features, score.role) == reported[score.dataset]
    ]


def _notes(merged: Mapping[str, Results]) -> list[str]:
    """Each note once, with the systems that it is of unless it is of all."""
    systems: dict[str, list[str]] = {}
    for name, results in merged.items():
        for note in dict.fromkeys(results.notes):
            systems.setdefault(note, []).append(name)
    return [
        note if len(names) == len(merged) else f"{', '.join(names)}: {note}"
        for note, names in systems.items()
    ]


def _repeats(merged: Mapping[str, Results]) -> Repeats | None:
    """Spread over runs with other folds, of the systems that have as many runs as the one with the most."""
    repeated = [(name, results, repeats) for name, results in merged.items() if (repeats := results.repeats)]
    if not repeated:
        return None
    seeds = max((one.seeds for _, _, one in repeated), key=len)
    scores = [
        _named(name, score, results)
        for name, results, of_system in repeated
        for score in of_system.scores
        if of_system.seeds == seeds and (score.features, score.role) == reported_by(results, score.dataset)
    ]
    return Repeats(seeds=seeds, scores=scores)


def _on_folds(results: Results, metric: str) -> float:
    """The metric of the rows that the system was chosen on: of folds, or of a validation split."""
    split = results.config.select_on or "folds"
    of = results.train.dataset if split == "folds" else f"{results.train.name}:{split}"
    wanted = reported_by(results, of)
    for score in results.whole(dataset=of):
        if (score.features, score.role) == wanted:
            return score.estimate(metric).value or 0.0
    return 0.0


def _model(name: str, results: Results, criterion: float) -> Model:
    about = results.model(results.chosen)
    changed: dict[str, Any] = {"features": name, "criterion": criterion, "chosen": results.chosen}
    if about.fits is not None:  # a probe's, over all the feature sets that it chose from
        fits = [model.fits.to_json() for model in results.models if model.fits]
        changed["fits"] = Fits.model_validate(sum_facts(fits))
        cpu = sum(of_model.took("cpu") for of_model in results.models)
        changed["seconds"] = {**about.seconds, "cpu": cpu}
    # without the path: criteria of the systems are not on one scale
    kept = {key: getattr(about, key) for key in about.model_fields_set - {"path"}}
    return Model(**kept | changed)


def _compare(
    about: DataSet,
    frames: Mapping[str, pd.DataFrame],
    config: ProbeConfig | TargetConfig,
    *,
    reference: str,
    train: DataSet,
) -> list[Comparison]:
    """Paired differences between the systems that were scored on this set, on the rows that all have."""
    dataset = about.dataset
    tables = {name: frame[frame["dataset"] == dataset] for name, frame in frames.items()}
    tables = {name: table.set_index("patch_id") for name, table in tables.items() if len(table)}
    if len(tables) < 2:
        return []
    base = next(iter(tables.values()))
    role = Role.OOF if (base["role"].isin(TRAIN_ROLES)).all() else REPORTED
    if isinstance(config, TargetConfig):
        rows, of_targets = targets_from_predictions(
            dataset, tables, train.targets, role=role, groups_known=about.grouped
        )
        return compare_columns(rows, of_targets, reference, config)
    classes = tuple(train.classes) if train.n_positive is None else ()
    every = from_predictions(dataset, tables, role=role, groups_known=about.grouped, classes=classes)
    rows, columns = without_duplicates(*every)
    whole = estimate_set(rows, columns, config=config)
    return compare_models(rows, columns, config=config, reference=reference, whole=whole)


def from_predictions(
    dataset: str,
    tables: Mapping[str, pd.DataFrame],
    *,
    role: str,
    groups_known: bool = True,
    classes: tuple[str, ...] = (),
) -> tuple[Rows, list[Column]]:
    """What `compare_models` takes, from predictions of several models: the rows that all have.

    tables : name -> predictions, one row a patch, patch_id as index
    role : of the columns; one of TRAIN_ROLES for scores out of fold, whose variance is inflated
    classes : where there are more than two
    Raises InvalidRequest where they disagree on a label.
    """
    base, common = _common(tables)
    labels = base["label"].astype(object)
    if any((table.loc[common, "label"].astype(object) != labels).any() for table in tables.values()):
        raise InvalidRequest(f"{dataset}: the results disagree on the label of a patch")
    y = class_codes(labels, classes) if classes else base["label"].to_numpy(np.int64)
    rows = _rows(dataset, base, y, groups_known=groups_known, classes=classes)

    def numbers(table: pd.DataFrame, kind: str) -> np.ndarray:
        names: Any = [f"{kind}_{name}" for name in classes] if classes else kind
        return table.loc[common, names].to_numpy(np.float64)

    unadjusted = np.zeros((len(common), 1 if classes else 4))
    columns = [
        Column(name, role, numbers(table, "score"), unadjusted, numbers(table, "ranking"))
        for name, table in tables.items()
    ]
    return rows, columns


def targets_from_predictions(
    dataset: str,
    tables: Mapping[str, pd.DataFrame],
    targets: Sequence[str],
    *,
    role: Role,
    groups_known: bool = True,
) -> tuple[Rows, list[TargetColumn]]:
    """As `from_predictions`, of predicted numbers."""
    base, common = _common(tables)
    wanted = [f"label_{t}" for t in targets]
    y = base[wanted].to_numpy(np.float64)
    if any((table.loc[common, wanted].to_numpy(np.float64) != y).any() for table in tables.values()):
        raise InvalidRequest(f"{dataset}: the results disagree on the numbers of a patch")

    def numbers(table: pd.DataFrame, kind: str) -> np.ndarray:
        return table.loc[common, [f"{kind}_{t}" for t in targets]].to_numpy(np.float64)

    columns = [
        TargetColumn(name, role, numbers(table, "prediction"), numbers(table, "ranking"))
        for name, table in tables.items()
    ]
    return _rows(dataset, base, y, groups_known=groups_known), columns


def _common(tables: Mapping[str, pd.DataFrame]) -> tuple[pd.DataFrame, list[str]]:
    """The first table's rows that all have, and their patch_ids."""
    base = next(iter(tables.values()))
    common = [p for p in base.index if all(p in table.index for table in tables.values())]
    return base.loc[common], common


def _rows(
    dataset: str,
    base: pd.DataFrame,
    y: np.ndarray,
    *,
    groups_known: bool,
    classes: tuple[str, ...] = (),
) -> Rows:
    table = base.reset_index()
    about = np.full(len(base), -1)
    return Rows(
        dataset=dataset,
        patch_id=table["patch_id"].to_numpy(object),
        y=y,
        group=table["group"].to_numpy(object),
        domain=table["domain"].to_numpy(object),
        distinct=deduplicate(table if "label" in table else table.assign(label="")).keep,
        votes_positive=about,
        votes_total=about,
        path=table["path"].to_numpy(object),
        content_hash=table["content_hash"].to_numpy(object),
        groups_known=groups_known,
        classes=classes,
    )


def _votes(dataset: str, merged: Mapping[str, Results]) -> Votes | None:
    voted = [(name, r.chosen, v) for name, r in merged.items() for v in r.votes if v.dataset == dataset]
    if not voted:
        return None

    def of_systems(records: Callable[[Votes], Sequence[Any]]) -> list[Any]:
        return [
            record.model_copy(update={"features": name})
            for name, chosen, votes in voted
            for record in records(votes)
            if record.features == chosen
        ]

    first = voted[0][2]
    changed: dict[str, Any] = {
        "strata": of_systems(lambda votes: votes.strata),
        "by_votes": of_systems(lambda votes: votes.by_votes),
        "soft": of_systems(lambda votes: votes.soft),
    }
    if first.human:
        models = of_systems(lambda votes: votes.human.models if votes.human else ())
        changed["human"] = first.human.model_copy(update={"models": models})
    return first.model_copy(update=changed)


def _experts(merged: Mapping[str, Results]) -> list[ExpertScore]:
    """Each expert once, beside the chosen model of every system."""
    experts: dict[tuple[str, str], ExpertScore] = {}
    models: dict[tuple[str, str], list[HumanModel]] = {}
    for name, result in merged.items():
        for expert in result.experts:
            key = expert.dataset, expert.expert
            experts.setdefault(key, expert)
            of_system = [m for m in expert.models if m.features == result.chosen]
            models.setdefault(key, []).extend(m.model_copy(update={"features": name}) for m in of_system)
    return [of_expert.model_copy(update={"models": models[key]}) for key, of_expert in experts.items()]


def _longest(merged: Iterable[Results]) -> Leaks | None:
    """The leak report over the most rows: systems that were scored on fewer sets have seen less."""
    reports = [system.leaks for system in merged if system.leaks]
    return max(reports, key=lambda one: sum(one.checked.values()), default=None)

"""A probe study of numbers: ridge regression of the manifest's targets on cached embeddings.

The same rows, folds, audit and intervals as for classes (`run`); what is chosen is the penalty.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from ..datasets.folds import Folds, effective_groups, folds_for
from ..datasets.manifest import Manifest
from ..errors import InvalidRequest, ProbeError
from ..files import cores
from ..version import provenance
from .data import (
    StudyData,
    audit,
    check_embeddings,
    clustered,
    leak_notes,
    pieces_of,
    rows_of,
    sample_notes,
    sampled,
)
from .describe import describe, describe_stores, finite, patch_columns
from .features import load_set
from .model import ProbeModel
from .protocol import folds_of, inner_folds
from .regression import TargetConfig, TargetRun, run_protocol
from .results.files import ProbeResult
from .results.schema import PAIRED, Comparison, Estimate, Role, Score, TargetScore
from .results.scoring import NO_INTERVALS, OOF_INFLATION, UNCERTAINTY, Rows, comparisons_of, pairs_of
from .statistics import continuous
from .statistics.comparisons import Differences
from .statistics.intervals import Interval, cluster_codes
from .streaming import memory_limit, refuse_large
from .training_sets import are_shared, can_share

COMPARED = ("pearson", "r2")


def run_targets(
    train: Manifest,
    tests: Sequence[Manifest],
    bank: Any,
    config: TargetConfig,
    *,
    out: str | os.PathLike[str] | None = None,
    memory: str | float | None = None,
    progress: bool = True,
) -> ProbeResult:
    """Probe cached embeddings for the numbers that the manifest's header names; see `run_protocol`.

    bank : an open Bank; memory : that the features of one set may take. Raises as `run.run_probe`.
    """
    started = time.perf_counter()
    data = gather(train, tests, bank, config)
    limit = memory_limit(memory)
    what = "the ridge regression of numbers"
    refuse_large(config.features, data.manifests, bank, limit=limit, what=what)
    check_embeddings(data, bank, config)
    folds = outer_folds(data.train_manifest, config)
    groups = effective_groups(data.train_manifest)
    fold_of_row = folds.assign(groups)
    leaks = audit(data, fold_of_row, bank, config, memory=limit, progress=progress)
    data = clustered(data, leaks.near)
    inner = _inner_folds(groups, fold_of_row, config)
    prepared = time.perf_counter()
    runs = {}
    with threadpool_limits(cores()):
        for name in config.features:
            X, *others = [load_set(manifest, name, bank=bank) for manifest in data.manifests]
            of_tests = {rows.dataset: Z for rows, Z in zip(data.tests, others, strict=True)}
            runs[name] = run_protocol(X, data.train.y, fold_of_row, inner, of_tests, config=config)
    fitted = time.perf_counter()
    criteria = {name: _criterion(run, config) for name, run in runs.items()}
    chosen = max(runs, key=lambda name: criteria[name])
    columns = {rows.dataset: _columns(rows, data, runs) for rows in data.rows}
    document = {
        "scores": [
            score
            for rows in data.rows
            for score in score_columns(rows, columns[rows.dataset], data.targets, config)
        ],
        "comparisons": [
            comparison
            for rows in data.rows
            for comparison in compare_columns(rows, columns[rows.dataset], chosen, config)
        ],
    }
    done = time.perf_counter()
    document |= {
        "config": config.to_dict(),
        "provenance": provenance(),
        "stores": describe_stores(bank, config.features),
        "data": [describe(rows, manifest) for rows, manifest in zip(data.rows, data.manifests, strict=True)],
        "notes": [*bank.notes.values(), *sample_notes(data), *leak_notes(leaks, config)],
        "folds": {
            "name": folds.name,
            "n_splits": folds.n_splits,
            "inner": [len(np.unique(inside[inside > 0])) for inside in inner],
            "made_with": folds.made_with,
            "shared": are_shared(fold_of_row, inner),
        },
        "leaks": leaks.to_json(),
        "chosen": chosen,
        "models": [_describe_run(name, run, criteria[name], config) for name, run in runs.items()],
        "fold_models": {
            name: score_fold_models(data, run.oof, run.fold_models, fold_of_row) for name, run in runs.items()
        },
        "seconds": {
            "prepare": prepared - started,
            "probe": fitted - prepared,
            "score": done - fitted,
            "all": done - started,
        },
    }
    probes = {
        name: {role: ProbeModel((steps,), np.empty(0)) for role, steps in run.steps.items()}
        for name, run in runs.items()
    }
    result = ProbeResult(document, predictions_table(data, columns, fold_of_row), probes)
    if out is not None:
        result.save(out)
    return result


def _criterion(run: TargetRun, config: TargetConfig) -> float:
    """The best of the folds: one penalty for all targets, or one for each."""
    if config.per_target:
        return float(run.criterion.max(axis=0).mean())
    return float(run.criterion.mean(axis=1).max())


@dataclass(frozen=True)
class TargetData(StudyData):
    """Rows whose `y` is float64 (n, T)."""

    targets: tuple[str, ...] = ()


def gather(train: Manifest, tests: Sequence[Manifest], bank: Any, config: TargetConfig) -> TargetData:
    """Split and check the manifests, as `data.gather`. Raises InvalidRequest where targets do not fit."""
    targets = tuple(train.header.targets)
    for manifest in tests:
        lacking = [name for name in targets if name not in manifest.header.targets]
        if lacking:
            raise InvalidRequest(
                f"{manifest.header.name} lacks the targets {', '.join(lacking)} of {train.header.name}: "
                f"build it with --targets {','.join(targets)}"
            )
    pieces, lost = sampled(pieces_of(train, tests), config)
    rows = [
        rows_of(name, piece, piece.table[list(targets)].to_numpy(np.float64), bank, left_out=lost[name])
        for name, piece in pieces
    ]
    constant = [name for name, y in zip(targets, rows[0].y.T, strict=True) if np.ptp(y) == 0]
    if constant:
        raise ProbeError(
            f"{pieces[0][0]}: the targets {', '.join(constant[:5])} have one value in all train rows, so "
            "nothing can be learned. Fix: leave them out of `targets`"
        )
    manifests = [piece for _, piece in pieces]
    return TargetData(manifests[0], manifests[1:], rows[0], rows[1:], (), targets=targets)


def outer_folds(train: Manifest, config: TargetConfig) -> Folds:
    """Folds of whole groups with equal numbers of rows. Raises InvalidRequest."""
    if not isinstance(config.folds, int) and config.folds != "balanced":
        return folds_for(train, config.folds, seed=config.seed)
    exactly = config.folds if isinstance(config.folds, int) else None
    groups = effective_groups(train)
    return folds_of(
        np.full(len(groups), "any value", dtype=object),
        groups,
        exactly=exactly,
        seed=config.seed if exactly else 0,
        what=f"folds of {train.header.name}",
        fix="give fewer folds (--folds 2)",
        name=f"balanced-{exactly}-seed{config.seed}" if exactly else "balanced",
        dataset=train.header.name,
    )


def _inner_folds(groups: np.ndarray, folds: np.ndarray, config: TargetConfig) -> list[np.ndarray]:
    """For each outer fold int (n,): 1..J, and 0 outside its training set."""
    if not config.chooses:
        return [np.zeros(len(folds), int) for _ in np.unique(folds)]
    return inner_folds(
        folds,
        groups,
        np.full(len(folds), "any value", dtype=object),
        wanted=config.inner_folds,
        shared=can_share(folds),
        seed=config.seed,
        fix="give fewer folds (--folds 2), or one penalty (--alpha 1000)",
    )


@dataclass(frozen=True)
class Column:
    """One model's predictions of one set's rows.

    values : float64 (n, T); ranking : the same as correlations are taken of, see `regression.TargetRun`
    fold : of Role.FOLD, its number
    """

    features: str
    role: Role
    values: np.ndarray
    ranking: np.ndarray
    fold: int | None = None

    @classmethod
    def out_of_fold(cls, features: str, oof: np.ndarray, y: np.ndarray, fold: np.ndarray) -> "Column":
        """Of training rows; the ranking is less the mean of the rows that each fold's model trained on.

        oof, y : float64 (n, T); fold : int (n,)
        """
        ranking = oof.copy()
        for k in np.unique(fold):
            ranking[fold == k] -= y[fold != k].mean(axis=0)
        return cls(features, Role.OOF, oof, ranking)

    @property
    def role_name(self) -> str:
        """As `Score.role_name`."""
        return self.role if self.fold is None else f"{self.role} {self.fold}"

    def select(self, mask: np.ndarray) -> "Column":
        """The predictions of some of the rows; mask : bool (n,)."""
        return replace(self, values=self.values[mask], ranking=self.ranking[mask])


def _columns(rows: Rows, data: StudyData, runs: Mapping[str, TargetRun]) -> list[Column]:
    if rows.dataset == data.train.dataset:
        return [Column(name, Role.OOF, run.oof, run.oof_ranking) for name, run in runs.items()]
    return [
        Column(name, role, values, values)
        for name, run in runs.items()
        for role, values in (
            (Role.REFIT, run.refit[rows.dataset]),
            (Role.ENSEMBLE, run.fold_models[rows.dataset].mean(axis=1)),
        )
    ]


def score_columns(
    rows: Rows, columns: Sequence[Column], targets: Sequence[str], config: TargetConfig
) -> list[Score]:
    """One for each model x subset of the rows: all, without repeated images, and each domain."""
    everything = np.ones(len(rows), bool)
    subsets = [("raw", "", everything)]
    if not rows.distinct.all():
        subsets.append(("dedup", "", rows.distinct))
    domains = [d for d in dict.fromkeys(rows.domain) if d]
    if len(domains) > 1:
        subsets += [("raw", d, rows.domain == d) for d in domains]
    return [
        score
        for subset, domain, mask in subsets
        for score in _subset_scores(rows, columns, targets, config, subset, domain, mask)
    ]


def _subset_scores(
    rows: Rows,
    columns: Sequence[Column],
    targets: Sequence[str],
    config: TargetConfig,
    subset: str,
    domain: str,
    mask: np.ndarray,
) -> list[Score]:
    y, group = rows.y[mask], rows.group[mask]
    n, n_groups = len(y), int(cluster_codes(group, len(y)).max()) + 1
    inflation = _inflation(columns, config)
    about = {"n": n, "groups": n_groups}
    values: list[dict[str, Estimate]] = [{} for _ in columns]
    each: list[list[dict[str, Estimate]]] = [[{} for _ in targets] for _ in columns]
    for metrics, predictions in _tables(columns, mask):
        if config.bootstrap:
            estimates = continuous.estimate(
                y,
                predictions,
                groups=group,
                metrics=metrics,
                targets=targets,
                inflation=inflation,
                **_options(config),
            )
            for j in range(len(columns)):
                values[j] |= _estimates(estimates, j, about)
                for t, one in enumerate(estimates.targets):
                    each[j][t] |= _estimates(one, j, about)
            continue
        for metric, plain in continuous.evaluate(y, predictions, metrics=metrics).items():
            for j, of_model in enumerate(plain):
                values[j] |= _bare({metric: of_model.mean()}, about)
                for t, value in enumerate(of_model):
                    each[j][t] |= _bare({metric: value}, about)
    return [
        Score(
            features=column.features,
            role=column.role,
            fold=column.fold,
            dataset=rows.dataset,
            domain=domain,
            subset=subset,
            n=n,
            n_groups=n_groups,
            inflation=inflation,
            metrics=values[j],
            targets=[]
            if domain
            else [TargetScore(target=t, metrics=m) for t, m in zip(targets, each[j], strict=True)],
        )
        for j, column in enumerate(columns)
    ]


def mean_values(rows: Rows, columns: Sequence[Column]) -> dict[str, np.ndarray]:
    """metric -> float64 (m,), means over the targets of each column, without intervals."""
    return {
        metric: values.mean(axis=-1)
        for metrics, predictions in _tables(columns)
        for metric, values in continuous.evaluate(rows.y, predictions, metrics=metrics).items()
    }


def _tables(
    columns: Sequence[Column], mask: np.ndarray | slice = slice(None)
) -> list[tuple[tuple[str, ...], np.ndarray]]:
    """Metrics, and the predictions float64 (n, m, T) that they are taken of."""
    return [
        (("pearson", "spearman"), np.stack([c.ranking[mask] for c in columns], axis=1)),
        (("r2", "mae"), np.stack([c.values[mask] for c in columns], axis=1)),
    ]


def _inflation(columns: Sequence[Column], config: TargetConfig) -> float:
    out_of_fold = any(column.role == Role.OOF for column in columns)
    return OOF_INFLATION if out_of_fold and config.interval == "jackknife" else 1.0


def _options(config: TargetConfig) -> dict[str, Any]:
    return {
        "method": config.interval,
        "confidence": config.level,
        "n_resamples": config.bootstrap,
        "seed": config.seed,
    }


def _estimates(intervals: Mapping[str, Interval], j: int, about: Mapping[str, Any]) -> dict[str, Estimate]:
    return {
        name: Estimate(
            finite(interval.value[j]),
            finite(interval.low[j]),
            finite(interval.high[j]),
            **{key: finite(getattr(interval, key)[j]) for key in UNCERTAINTY},
            method=str(interval.method[j]),
            reason=str(interval.reason[j]),
            **about,
        )
        for name, interval in intervals.items()
    }


def _bare(values: Mapping[str, float], about: Mapping[str, Any]) -> dict[str, Estimate]:
    return {m: Estimate(finite(v), method="none", reason=NO_INTERVALS, **about) for m, v in values.items()}


def compare_columns(
    rows: Rows, columns: Sequence[Column], reference: str, config: TargetConfig
) -> list[Comparison]:
    """Paired differences of the models of each role on all rows; of many each with the chosen one."""
    comparisons: list[Comparison] = []
    inflation = _inflation(columns, config)
    for role in dict.fromkeys(column.role for column in columns):
        of_role = [column for column in columns if column.role == role]
        names = [column.features for column in of_role]
        pairs = pairs_of(names, reference) if config.bootstrap else []
        if not pairs:
            continue
        compared: dict[str, Differences] = {}
        for metrics, predictions in _tables(of_role):
            compared |= continuous.compare_paired(
                rows.y,
                predictions,
                groups=rows.group,
                metrics=[m for m in metrics if m in COMPARED],
                pairs=pairs,
                inflation=inflation,
                **_options(config),
            )
        for differences in compared.values():
            comparisons += comparisons_of(
                differences, rows, names, role=role, test=PAIRED, inflation=inflation
            )
    if rows.groups_known:
        return comparisons
    return [comparison.model_copy(update={"p": None, "p_holm": None}) for comparison in comparisons]


def _describe_run(name: str, run: TargetRun, criterion: float, config: TargetConfig) -> dict[str, Any]:
    """The feature set's entry in results.json."""

    def choice(alpha: np.ndarray) -> dict[str, Any]:
        shared = len(np.unique(alpha)) == 1
        penalty = {"alpha": float(alpha[0])} if shared else {"alphas": alpha.tolist()}
        kept = {"components": run.components} if run.components else {}
        about = {"preprocess": config.preprocess, "class_weight": "none", "parameter": "alpha"}
        return {**about, **penalty, **kept}

    path = {"alpha": list(run.alphas), "criterion": [[finite(run.criterion.mean(axis=1))]]}
    return {
        "features": name,
        "dim": run.dim,
        "criterion": criterion,
        "choice": choice(run.alpha),
        "fold_choices": [choice(alpha) for alpha in run.fold_alphas],
        "path": path,
        "temperature": None,
        "fits": {"fits": run.fits, "status": {"closed form": run.fits}},
        "seconds": run.seconds,
    }


def score_fold_models(
    data: StudyData, oof: np.ndarray, of_tests: Mapping[str, np.ndarray], folds: np.ndarray
) -> dict[str, dict[str, list[Any]]]:
    """Set -> metric -> the mean over targets of each fold's model; of the train set on the fold's own rows,
    as cross-validations are published. oof : float64 (n, T); of_tests : set -> float64 (n_t, K, T)
    """

    def means(y: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
        return {m: v.mean() for m, v in continuous.evaluate(y, predictions).items()}

    train = [means(data.train.y[folds == k], oof[folds == k]) for k in np.unique(folds)]
    of_sets = {data.train.dataset: train}
    for rows in data.tests:
        each = of_tests[rows.dataset]
        of_sets[rows.dataset] = [means(rows.y, each[:, k]) for k in range(each.shape[1])]
    return {
        name: {m: [finite(of_model[m]) for of_model in of_models] for m in continuous.METRICS}
        for name, of_models in of_sets.items()
    }


def predictions_table(
    data: TargetData, columns: Mapping[str, Sequence[Column]], folds: np.ndarray
) -> pd.DataFrame:
    """One row a prediction: patch_id, path, content_hash, dataset, domain, group, fold, features, role, and
    for each target label_NAME, prediction_NAME and ranking_NAME, which correlations are taken of.
    """
    frames = []
    for rows in data.rows:
        train = rows.dataset == data.train.dataset
        fold = (folds if train else np.zeros(len(rows), int)).astype(np.int16)
        labels = {f"label_{t}": y for t, y in zip(data.targets, rows.y.T, strict=True)}
        about = patch_columns(rows).assign(fold=fold, **labels)
        for column in columns[rows.dataset]:
            tables = {"prediction": column.values, "ranking": column.ranking}
            named = {
                f"{kind}_{t}": values
                for kind, table in tables.items()
                for t, values in zip(data.targets, table.T, strict=True)
            }
            frames.append(about.assign(features=column.features, role=column.role_name, **named))
    table = pd.concat(frames, ignore_index=True)
    return table.astype(dict.fromkeys(["path", "dataset", "domain", "features", "role"], "category"))

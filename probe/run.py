"""A probe study: manifests and cached embeddings in, scores with intervals and every prediction out."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import joblib
import numpy as np
from threadpoolctl import threadpool_limits

from ..datasets.folds import Folds, effective_groups
from ..datasets.manifest import Manifest, as_manifest, as_manifests
from ..errors import InvalidRequest, MissingDependency
from ..files import cores, holding_out
from ..terminal import progress_bar
from ..version import provenance
from .config import BACKENDS, C_GRID, FeatureSet, ProbeConfig, feature_sets
from .data import (
    StudyData,
    audit,
    check_embeddings,
    clustered,
    fold_notes,
    gather,
    leak_notes,
    outer_folds,
    plan_of,
    sample_notes,
)
from .describe import (
    columns_of,
    describe,
    describe_run,
    describe_stores,
    fit_notes,
    predictions_table,
    score_fold_models,
)
from .domains import STEPS, DomainRows, DomainStep, Step, analyse_step, joined
from .features import columns_in, open_bank, resolve_set
from .leaks import LeakReport
from .protocol import Plan, ProtocolRun, run_on_split, run_protocol, run_published
from .regression import TargetConfig
from .repeats import spread_over_repeats
from .results.files import ProbeResult
from .results.schema import Domains
from .results.scoring import (
    Column,
    compare_models,
    estimate_set,
    mean_of_models,
    precision,
    score_experts,
    score_set,
    score_votes,
)
from .sharing import shared
from .streaming import features_of, memory_limit, refuse_large, size_of
from .targets import run_targets


@holding_out
def run_probe(
    *,
    train: Manifest | str | os.PathLike[str],
    tests: Sequence[Manifest | str | os.PathLike[str]] = (),
    bank: Any,
    encoders: Iterable[str] = (),
    views: Iterable[str] = ("full",),
    tokens: Iterable[str | None] | None = None,
    features: Iterable[str | FeatureSet] = (),
    out: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    memory: str | float | None = None,
    backend: str = "loky",
    progress: bool = True,
    config: ProbeConfig | None = None,
    **settings: Any,
) -> ProbeResult:
    """Probe cached embeddings: every encoder x view x token policy, and the sets written out in `features`.

    Fitted on : the rows of `train` whose split is "train" (all of them if it has no splits), labelled ones.
    Chosen on : grouped folds of these rows. Preprocessing, class weight and C per feature set; and, for the
        row "chosen on folds", the feature set too. Nested: what scores a fold was chosen on the other folds.
    Refit : on all train rows at what was chosen; the fold ensemble is the mean probability of the folds'
        models. With `select_on` a split of `train`, everything is chosen there and nothing is refitted.
    Scored : train rows out of fold; the other splits of `train` and all labelled rows of `tests`, which
        nothing was chosen on, by refit and ensemble.
    `protocol.run_protocol` has the details, for one feature set.

    train, tests : manifests, their paths or names (NAME for NAME.toml)
    bank : the folder of the embeddings, or an open Bank
    encoders, views, tokens : as the bank has them; features : feature sets written out
    out : folder of the result, see `ProbeResult.save`; held alone meanwhile (None: nothing is written)
    jobs : feature sets probed at once (None: as many as there are processors); backend : "loky", "threading"
        or "ray" (the joblib backend of a running or local Ray cluster)
    memory : that the features may take, bytes or a text such as "8GB" (None: half of what is free); a feature
        set that takes more is read from a file, see `streaming`
    config : all settings at once; or the same as keywords, see ProbeConfig

    Where the manifest's header names targets, numbers instead of classes, `targets.run_targets` does it, with
    the settings of `TargetConfig`.

    Raises InvalidRequest, ProbeError (one class only, leaks between train and evaluation rows),
    StoreNotFound, RowsMissing; all of them before anything is fitted.
    """
    started = time.perf_counter()
    train, tests = as_manifest(train), as_manifests("tests", tests)
    asked = feature_sets(encoders=encoders, views=views, tokens=tokens, features=features)
    narrow = {key: settings.get(key) for key in ("precision", "dtype")}
    if config is not None:
        narrow = {"precision": config.precision, "dtype": config.dtype}
    bank = open_bank(bank, **narrow, manifests=[train, *tests])
    resolved = list(dict.fromkeys(str(resolve_set(feature_set, bank)) for feature_set in asked))
    if train.header.targets:
        if config is not None:
            raise InvalidRequest(f"{train.header.name} has targets: give the settings one by one")
        of_targets = TargetConfig.from_dict({**settings, "features": resolved})
        return run_targets(train, tests, bank, of_targets, out=out, memory=memory, progress=progress)
    if config is None:
        config = ProbeConfig.from_dict({**settings, "features": resolved})
    elif settings or asked:
        raise InvalidRequest("give either config= or the settings one by one, not both")
    data = gather(train, tests, bank, config)
    if data.train.classes and config.grid == C_GRID:  # K columns a fit: half of the fine grid
        config = config.replace(C=C_GRID[::2])
    how = _How.of(data, bank, config, jobs=jobs, backend=backend, memory=memory)
    study = _prepare(data, bank, config, memory=how.memory, progress=progress)
    seconds = {"prepare": time.perf_counter() - started}
    lap = time.perf_counter()
    runs, *others = _probe_all(study.data, bank, study.repeats, how, progress=progress)
    seconds["probe"] = time.perf_counter() - lap
    lap = time.perf_counter()
    chosen, columns = columns_of(study.data, study.plan, runs, study.config)
    analyses = _started_domains(study, bank, chosen, how)
    scores = _score(study, runs, others, chosen, columns)
    seconds["score"] = time.perf_counter() - lap
    lap = time.perf_counter()
    domains, notes = _domains(study, analyses)
    seconds["domains"] = time.perf_counter() - lap  # what they took longer than the scores
    seconds["all"] = time.perf_counter() - started
    document = {
        **_describe(study, bank, runs, notes),
        **scores,
        "domains": domains,
        "seconds": seconds,
    }
    probes = {name: run.models for name, run in runs.items()}
    result = ProbeResult(document, predictions_table(study.data, study.plan, columns), probes)
    if out is not None:
        result.save(out)
    return result


@dataclass(frozen=True)
class _How:
    """By which means, none of which the numbers depend on.

    jobs : feature sets at once; memory : bytes that the features of one may take
    """

    jobs: int
    backend: str
    memory: float

    @classmethod
    def of(
        cls,
        data: StudyData,
        bank: Any,
        config: ProbeConfig,
        *,
        jobs: int | None,
        backend: str,
        memory: str | float | None,
    ) -> Self:
        """Raises InvalidRequest for an unknown backend or size, ProbeError for rows that do not fit in memory
        and a probe that needs all of them at once.
        """
        if backend not in BACKENDS:
            raise InvalidRequest(f"backend {backend!r} is not one of {', '.join(BACKENDS)}")
        jobs = min(jobs or cores(), len(config.features))
        limit = memory_limit(memory)
        largest = max(size_of(name, data.manifests, bank) for name in config.features)
        if largest <= limit < jobs * largest:  # fewer at once rather than from files
            jobs = int(limit // largest)
        of_each = limit / jobs
        if config.probe != "logistic" or config.solver != "exact":
            own = f"the probe {config.probe!r}"
            what = own if config.solver == "exact" else f"the recipe {config.solver!r}"
            instead = "; or the probe 'logistic' with the solver 'exact', which reads them from a file"
            about = {"limit": of_each, "what": what, "instead": instead}
            refuse_large(config.features, data.manifests, bank, **about)
        return cls(jobs, backend, of_each)

    @property
    def threads(self) -> int:
        """Of each feature set."""
        return max(1, cores() // self.jobs)

    def run(self, tasks: Sequence[Any]) -> Iterator[Any]:
        """The results of delayed calls, in order; the second and those after it are begun at once where there
        is more than one job, see `shared`.
        """
        if self.backend != "ray":
            return shared(tasks, jobs=self.jobs, processes=self.backend == "loky")
        _register_ray()
        with joblib.parallel_config(backend="ray", n_jobs=self.jobs):
            return iter(joblib.Parallel()(tasks))  # which hands everything over at the end


@dataclass(frozen=True)
class _Prepared:
    """What is fixed before anything is fitted; repeats : plan and settings of every run."""

    data: StudyData
    config: ProbeConfig
    folds: Folds | None
    leaks: LeakReport
    repeats: Sequence[tuple[Plan, ProbeConfig]]

    @property
    def plan(self) -> Plan:
        """Of the run that is reported."""
        return self.repeats[0][0]


def _prepare(data: StudyData, bank: Any, config: ProbeConfig, *, memory: float, progress: bool) -> _Prepared:
    check_embeddings(data, bank, config)
    groups = effective_groups(data.train_manifest)
    if data.choosing:
        leaks = audit(data, None, bank, config, memory=memory, progress=progress)
        plan = Plan(np.zeros(len(groups), int), [], [], groups, data.train.vote_share())
        return _Prepared(clustered(data, leaks.near), config, None, leaks, [(plan, config)])
    folds = outer_folds(data.train_manifest, config)
    fold_of_row = folds.assign(groups)
    leaks = audit(data, fold_of_row, bank, config, memory=memory, progress=progress)
    data = clustered(data, leaks.near)
    plan = plan_of(data, fold_of_row, config)
    repeats = _repeats(data, plan, bank, config, n_splits=folds.n_splits)
    return _Prepared(data, config, folds, leaks, repeats)


def _score(
    study: _Prepared,
    runs: Mapping[str, ProtocolRun],
    others: Sequence[Mapping[str, ProtocolRun]],
    chosen: str,
    columns: Mapping[str, Sequence[Column]],
) -> dict[str, Any]:
    """The parts of results.json that scores are made of. chosen, columns : as `columns_of` has them."""
    data, config = study.data, study.config
    scores, comparisons = [], []
    sets = [
        rows for rows in data.rows if columns[rows.dataset]
    ]  # not the train rows, where there are no folds
    for rows in sets:
        of_set = columns[rows.dataset]
        whole = estimate_set(rows, of_set, config=config)
        scores += score_set(rows, of_set, config=config, whole=whole)
        comparisons += compare_models(rows, of_set, config=config, reference=chosen, whole=whole)
    repeats = None
    if others:
        again = [(chosen, columns)]
        for (other_plan, other), other_runs in zip(study.repeats[1:], others, strict=True):
            again.append(columns_of(data, other_plan, other_runs, other))
        repeats = {
            "seeds": [item.seed for _, item in study.repeats],
            "chosen": [name for name, _ in again],
            "scores": spread_over_repeats(data.rows, [one for _, one in again]),
        }
    votes = [score_votes(rows, columns[rows.dataset], config=config) for rows in sets]
    experts = [
        expert for rows in sets for expert in score_experts(rows, columns[rows.dataset], config=config)
    ]
    return {
        "chosen": chosen,
        "fold_models": {
            name: score_fold_models(data.tests, run.fold_models, probabilistic=config.probabilistic)
            for name, run in runs.items()
        },
        "fold_means": {
            name: {
                rows.dataset: mean_of_models(rows, run.fold_models[rows.dataset], config=config)
                for rows in data.tests
                if rows.dataset in run.fold_models
            }
            for name, run in runs.items()
        },
        "scores": scores,
        "comparisons": comparisons,
        "repeats": repeats,
        "precision": precision(scores, comparisons, level=config.level),
        "votes": [vote for vote in votes if vote],
        **({"experts": experts} if experts else {}),
    }


def _describe(
    study: _Prepared, bank: Any, runs: Mapping[str, ProtocolRun], more_notes: Sequence[str]
) -> dict[str, Any]:
    """The parts of results.json that say what was done with what."""
    data, config, folds = study.data, study.config, study.folds
    if folds is None:
        about = {"name": f"split {config.select_on}", "n_splits": 1}
        notes = [f"everything was chosen on {data.choosing}, of which the scores are too high"]
    else:
        about = {"name": folds.name, "n_splits": folds.n_splits}
        about |= {"inner": study.plan.inner_folds, "made_with": folds.made_with, "shared": study.plan.shared}
        notes = fold_notes(folds, study.plan, config)
    return {
        "config": config.to_dict(),
        "provenance": provenance(),
        "stores": describe_stores(bank, config.features),
        "data": [
            describe(rows, manifest, positive=config.target)
            for rows, manifest in zip(data.rows, data.manifests, strict=True)
        ],
        "notes": [
            *config.notes,
            *bank.notes.values(),
            *sample_notes(data),
            *notes,
            *leak_notes(study.leaks, config),
            *fit_notes(runs),
            *more_notes,
        ],
        "folds": about,
        "leaks": study.leaks.to_json(),
        "models": [describe_run(name, run) for name, run in runs.items()],
    }


def _repeats(
    data: StudyData, plan: Plan, bank: Any, config: ProbeConfig, *, n_splits: int
) -> list[tuple[Plan, ProbeConfig]]:
    """The plan and settings of every repeat: the first as they are, the others with folds that are drawn.
    Raises InvalidRequest where folds cannot be made, ProbeError where they leak.
    """
    repeats, y, groups = [(plan, config)], data.train.y, plan.groups
    if config.repeats == 1:
        return repeats
    # make_folds finds nearly the same folds from every seed, the most even ones; these are drawn
    from sklearn.model_selection import StratifiedGroupKFold  # takes a second

    for seed in range(config.seed + 1, config.seed + config.repeats):
        drawn = StratifiedGroupKFold(n_splits, shuffle=True, random_state=seed)
        folds = np.zeros(len(y), int)
        for k, (_, held_out) in enumerate(drawn.split(y, y, groups), start=1):
            folds[held_out] = k
        audit(data, folds, bank, config.replace(near_duplicates="none"))
        other = config.replace(seed=seed)
        repeats.append((plan_of(data, folds, other), other))
    return repeats


def _probe_all(
    data: StudyData,
    bank: Any,
    repeats: Sequence[tuple[Plan, ProbeConfig]],
    how: _How,
    *,
    progress: bool,
) -> list[dict[str, ProtocolRun]]:
    """The protocol for every feature set, in parallel over them; for each repeat name -> run, in the config's
    order.
    """
    features = repeats[0][1].features
    widest = sorted(features, key=lambda name: -columns_in(name, bank))  # first: the others fit beside it
    manifests = data.manifests
    names = [rows.dataset for rows in data.tests]
    choosing = next(((rows.dataset, rows.y) for rows in data.tests if rows.dataset == data.choosing), None)
    about = (bank, manifests, names, data.train.y, repeats, how.threads, choosing, how.memory)
    tasks = [joblib.delayed(_probe_one)(name, *about) for name in widest]
    bar = progress_bar(how.run(tasks), total=len(tasks), shown=progress, desc="probe", unit="set")
    done = dict(zip(widest, bar, strict=True))
    return [{name: done[name][i] for name in features} for i in range(len(repeats))]


def _probe_one(
    name: str,
    bank: Any,
    manifests: Sequence[Manifest],
    test_names: Sequence[str],
    y: np.ndarray,
    repeats: Sequence[tuple[Plan, ProbeConfig]],
    threads: int,
    choosing: tuple[str, np.ndarray] | None,
    memory: float,
) -> list[ProtocolRun]:
    cpu, runs = time.process_time(), []
    with threadpool_limits(threads):
        lap = time.perf_counter()
        X, *others = features_of(name, manifests, bank, memory=memory)
        loaded = time.perf_counter() - lap
        tests = dict(zip(test_names, others, strict=True))
        for plan, config in repeats:
            if choosing is not None:
                of_split, labels = tests[choosing[0]], choosing[1]
                about: dict[str, Any] = {"config": config, "votes": plan.votes, "groups": plan.groups}
                run = run_on_split(X, y, of_split, labels, tests, memory=memory, **about)
            elif config.solver == "exact":
                run = run_protocol(X, y, plan, tests, config=config, memory=memory)
            else:
                of_tests = {dataset: rows[:] for dataset, rows in tests.items()}
                run = run_published(X[:], y, plan, of_tests, config=config)
            run.seconds["load"] = loaded
            run.seconds["cpu"] = (
                time.process_time() - cpu
            )  # of the process: too much if feature sets share it
            run.fits["dim"] = X.shape[1]
            runs.append(run)
            cpu = time.process_time()
    return runs


def _started_domains(
    study: _Prepared, bank: Any, chosen: str, how: _How
) -> Iterator[tuple[str, Domains | None]]:
    """The analyses of the feature sets that the settings ask for; where there are processes, they begin now.

    Where nothing is chosen on folds there are none: they are about that.
    """
    config = study.config
    if config.solver != "exact" or study.data.choosing:
        return iter(())
    asked = {"chosen": (chosen,), "all": config.features, "none": ()}[config.domains]
    about = (bank, study.data, config, how.threads, how.memory)
    tasks = [joblib.delayed(_domain_step)(step, name, *about) for name in asked for step in STEPS]
    made = how.run(tasks)
    return ((name, joined([next(made) for _ in STEPS])) for name in asked)


def _domains(
    study: _Prepared, analyses: Iterator[tuple[str, Domains | None]]
) -> tuple[dict[str, Domains], list[str]]:
    """The analyses that could be made, and a note where some were asked for and none could."""
    made = dict(analyses)
    domains = {name: analysis for name, analysis in made.items() if analysis}
    several = len(set(study.data.train.domain) - {""}) > 1
    if study.data.train.classes and several and made and not domains:
        return {}, ["no analysis of domains: fewer than two have rows of every class"]
    return domains, []


def _domain_step(
    step: Step, name: str, bank: Any, data: StudyData, config: ProbeConfig, threads: int, memory: float
) -> DomainStep | None:
    with threadpool_limits(threads):
        X, *others = features_of(name, data.manifests, bank, memory=memory)
        tests = {
            rows.dataset: DomainRows(Z, rows.y, rows.domain, rows.group)
            for rows, Z in zip(data.tests, others, strict=True)
        }
        return analyse_step(
            step,
            X,
            data.train.y,
            effective_groups(data.train_manifest),
            data.train.domain,
            tests,
            config=config,
            votes=data.train.vote_share(),
            classes=data.train.classes,
            memory=memory,
        )


def _register_ray() -> None:
    try:
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise MissingDependency("the backend 'ray' needs Ray: pip install 'patchbank[ray]'") from error
    register_ray()

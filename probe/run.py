"""A probe study: manifests and cached embeddings in, scores with intervals and every prediction out."""

import hashlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import joblib
import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from ..datasets.folds import Folds, effective_groups, folds_for
from ..datasets.manifest import Manifest
from ..errors import InvalidRequest, MissingDependency, ProbeError
from ..files import cores, holding_out
from ..version import provenance
from .config import BACKENDS, NEAR_BY, FeatureSet, ProbeConfig, feature_sets, parse_features
from .domains import DomainRows, analyse_domains
from .features import check_rows, content_keys, load_set, open_bank, resolve_set
from .leaks import LeakReport, audit_leaks, deduplicate, near_embeddings, read_pairs
from .model import calibrated, mean_logit
from .near import near_images
from .protocol import (
    MOST_FOLDS,
    Plan,
    ProtocolRun,
    adjustment,
    as_ensemble,
    folds_of,
    make_plan,
    run_protocol,
    run_published,
)
from .repeats import spread_over_repeats
from .results.files import ProbeResult
from .results.schema import SWEEP
from .results.scoring import (
    Column,
    Rows,
    compare_models,
    estimate_set,
    mean_of_models,
    out_of_fold_cuts,
    precision,
    score_set,
    score_votes,
    specificity_cuts,
)
from .statistics.intervals import DEFAULT_METRICS
from .statistics.metrics import evaluate


@holding_out
def run_probe(
    *,
    train: Manifest,
    tests: Sequence[Manifest] = (),
    bank: Any,
    encoders: Iterable[str] = (),
    views: Iterable[str] = ("full",),
    tokens: Iterable[str | None] | None = None,
    features: Iterable[str | FeatureSet] = (),
    out: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
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
        models.
    Scored : train rows out of fold; the other splits of `train` and all labelled rows of `tests`, which
        nothing was chosen on, by refit and ensemble.
    `protocol.run_protocol` has the details, for one feature set.

    bank : the folder of the embeddings, or an open Bank
    out : folder of the result, see `ProbeResult.save`; held alone meanwhile (None: nothing is written)
    jobs : feature sets probed at once (None: as many as there are processors); backend : "loky", "threading"
        or "ray" (the joblib backend of a running or local Ray cluster)
    config : all settings at once; or the same as keywords, see ProbeConfig

    Raises InvalidRequest, ProbeError (one class only, leaks between train and evaluation rows),
    StoreNotFound, RowsMissing; all of them before anything is fitted.
    """
    started = time.perf_counter()
    asked = feature_sets(encoders=encoders, views=views, tokens=tokens, features=features)
    narrow = {key: settings.get(key) for key in ("precision", "dtype")}
    if config is not None:
        narrow = {"precision": config.precision, "dtype": config.dtype}
    bank = open_bank(bank, **narrow, manifests=[train, *tests])
    if config is None:
        resolved = [resolve_set(one, bank) for one in asked]
        config = ProbeConfig.from_dict({**settings, "features": list(dict.fromkeys(map(str, resolved)))})
    elif settings or asked:
        raise InvalidRequest("give either config= or the settings one by one, not both")
    data = gather(train, tests, bank, config)
    _check_rows(data, bank, config)
    folds = outer_folds(data.train_manifest, config)
    groups = effective_groups(data.train_manifest)
    fold_of_row = folds.assign(groups)
    leaks = audit(data, fold_of_row, bank, config, progress=progress)
    data = clustered(data, leaks.near)
    plan = plan_of(data, fold_of_row, config)
    repeats = _repeats(data, plan, bank, config, n_splits=folds.n_splits)
    seconds = {"prepare": time.perf_counter() - started}

    lap = time.perf_counter()
    runs, *others = _probe_all(data, bank, repeats, jobs=jobs, backend=backend, progress=progress)
    seconds["probe"] = time.perf_counter() - lap

    lap = time.perf_counter()
    chosen, columns = columns_of(data, plan, runs)
    scores, comparisons = [], []
    for rows in data.rows:
        mine = columns[rows.dataset]
        whole = estimate_set(rows, mine, config=config)
        scores += score_set(rows, mine, config=config, whole=whole)
        comparisons += compare_models(rows, mine, config=config, reference=chosen, whole=whole)
    again = [(chosen, columns), *(columns_of(data, repeats[i + 1][0], one) for i, one in enumerate(others))]
    votes = [
        found for rows in data.rows if (found := score_votes(rows, columns[rows.dataset], config=config))
    ]
    seconds["score"] = time.perf_counter() - lap
    lap = time.perf_counter()
    of_domains = {"chosen": [chosen], "all": list(runs), "none": []}[config.domains]
    if config.solver != "exact":  # the recipes do not choose, and this is about choosing elsewhere
        of_domains = []
    domains = {name: _domains_one(name, bank, data, config) for name in of_domains}
    seconds["domains"] = time.perf_counter() - lap
    seconds["all"] = time.perf_counter() - started

    document = {
        "config": config.to_dict(),
        "provenance": provenance(),
        "stores": describe_stores(bank, config),
        "data": [
            describe(rows, manifest, positive=config.positive)
            for rows, manifest in zip(data.rows, data.manifests, strict=True)
        ],
        "notes": [
            *config.notes,
            *bank.notes.values(),
            *fold_notes(folds, plan, config),
            *leak_notes(leaks, config),
            *fit_notes(runs),
        ],
        "folds": {
            "name": folds.name,
            "n_splits": folds.n_splits,
            "inner": plan.inner_folds,
            "made_with": folds.made_with,
        },
        "leaks": leaks.to_json(),
        "chosen": chosen,
        "models": [describe_run(name, run) for name, run in runs.items()],
        "fold_models": {name: score_fold_models(data.tests, run.fold_models) for name, run in runs.items()},
        "fold_means": {
            name: {
                rows.dataset: mean_of_models(rows, run.fold_models[rows.dataset], config=config)
                for rows in data.tests
            }
            for name, run in runs.items()
        },
        "scores": scores,
        "comparisons": comparisons,
        "repeats": {
            "seeds": [one.seed for _, one in repeats],
            "chosen": [name for name, _ in again],
            "scores": spread_over_repeats(data.rows, [one for _, one in again]),
        }
        if others
        else None,
        "precision": precision(scores, comparisons, level=config.level),
        "votes": votes,
        "domains": {name: found for name, found in domains.items() if found},
        "seconds": seconds,
    }
    probes = {name: run.model for name, run in runs.items()}
    result = ProbeResult(document, predictions_table(data, plan, columns), probes)
    if out is not None:
        result.save(out)
    return result


# --- the data ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StudyData:
    """Train rows and evaluation sets: manifests reduced to their labelled rows, and the same as arrays."""

    train_manifest: Manifest
    test_manifests: list[Manifest]
    train: Rows
    tests: list[Rows]

    @property
    def rows(self) -> list[Rows]:
        """Train rows, then those of the evaluation sets."""
        return [self.train, *self.tests]

    @property
    def manifests(self) -> list[Manifest]:
        """In the order of `rows`."""
        return [self.train_manifest, *self.test_manifests]


def gather(train: Manifest, tests: Sequence[Manifest], bank: Any, config: ProbeConfig) -> StudyData:
    """Split and check the manifests. Evaluation sets are named NAME, or NAME:SPLIT for the other splits of
    `train`.

    Raises InvalidRequest for classes that do not fit together, ProbeError where there is nothing to fit or
    score.
    """
    positive = _positive(train, tests, config)
    split = train.table["split"].to_numpy(dtype=object)
    labelled = train.table["label"].to_numpy(dtype=object) != ""
    is_train = _is_train(split)
    if not (is_train & labelled).any():
        raise ProbeError(
            f"{train.header.name} has no labelled row with split 'train'; it has {sorted(set(split))}. "
            "The manifest that is trained on has to say which rows those are."
        )
    pieces = [(f"{train.header.name}:train", labelled_train_rows(train))]
    pieces += [
        (f"{train.header.name}:{word or 'no split'}", train.select((split == word) & labelled))
        for word in dict.fromkeys(split[~is_train & labelled])
    ]
    for manifest in tests:
        keep = manifest.table["label"].to_numpy(dtype=object) != ""
        if not keep.any():
            raise ProbeError(f"{manifest.header.name} has no labelled rows, so it cannot be scored")
        pieces.append((manifest.header.name, manifest.select(keep)))
    names = [name for name, _ in pieces]
    if len(set(names)) < len(names):
        raise InvalidRequest(f"two evaluation sets have the same name: {', '.join(names)}")
    lost = {train.header.name: int((~labelled).sum())}
    lost |= {m.header.name: int((m.table["label"] == "").sum()) for m in tests}
    rows = [
        _rows(name, piece, positive, bank, {"no label": n} if (n := lost[piece.header.name]) else {})
        for name, piece in pieces
    ]
    for label, one in (("negative", 0), ("positive", 1)):
        if not (rows[0].y == one).any():
            raise ProbeError(
                f"{names[0]} has no {label} row ({positive!r} is positive): nothing can be fitted"
            )
    return StudyData(pieces[0][1], [piece for _, piece in pieces[1:]], rows[0], rows[1:])


def labelled_train_rows(train: Manifest) -> Manifest:
    """The rows of a manifest that a study is trained on."""
    is_train = _is_train(train.table["split"].to_numpy(dtype=object))
    return train.select(is_train & (train.table["label"] != "").to_numpy())


def _is_train(split: np.ndarray) -> np.ndarray:
    return split == "train" if (split != "").any() else np.ones(len(split), bool)


def _positive(train: Manifest, tests: Sequence[Manifest], config: ProbeConfig) -> str:
    header = train.header
    if config.positive is None and len(header.classes) > 2:
        raise InvalidRequest(
            f"{header.name} has {len(header.classes)} classes ({', '.join(header.classes)}); a probe study "
            "has two: name the class to find against the rest, for instance --positive "
            + repr(header.positive)
        )
    positive = config.positive or header.positive
    for manifest in [train, *tests]:
        if positive not in manifest.header.classes:
            raise InvalidRequest(
                f"the positive class {positive!r} is not one of {manifest.header.name}'s: "
                f"{', '.join(manifest.header.classes)}"
            )
        if set(manifest.header.classes) != set(header.classes):
            raise InvalidRequest(
                f"{manifest.header.name} has the classes {sorted(manifest.header.classes)}, {header.name} "
                f"{sorted(header.classes)}: one of the manifests has to be changed"
            )
    return positive


def _rows(name: str, manifest: Manifest, positive: str, bank: Any, left_out: Mapping[str, int]) -> Rows:
    table = hashed(manifest, bank)
    group = manifest.table["group"]
    if (group == "").any():  # rows of equal content are one cluster
        group = pd.Series(effective_groups(Manifest(manifest.header, table, manifest.root)))
    return Rows(
        dataset=name,
        patch_id=table["patch_id"].to_numpy(dtype=object),
        y=(table["label"] == positive).to_numpy().astype(np.int64),
        group=group.to_numpy(dtype=object),
        domain=table["domain"].to_numpy(dtype=object),
        distinct=deduplicate(table).keep,
        votes_positive=_votes(table, "votes_positive"),
        votes_total=_votes(table, "votes_total"),
        path=table["path"].to_numpy(dtype=object),
        content_hash=table["content_hash"].to_numpy(dtype=object),
        groups_known=manifest.groups_known,
        left_out=left_out,
    )


def _votes(table: pd.DataFrame, column: str) -> np.ndarray:
    if column not in table:
        return np.full(len(table), -1)
    return table[column].astype("Int64").fillna(-1).to_numpy(np.int64)


def hashed(manifest: Manifest, bank: Any) -> pd.DataFrame:
    """The manifest's table with the content hash of every row."""
    return manifest.table.assign(content_hash=[key.tobytes().hex() for key in content_keys(manifest, bank)])


def audit(
    data: StudyData,
    folds: np.ndarray | None,
    bank: Any,
    config: ProbeConfig,
    *,
    progress: bool = False,
) -> LeakReport:
    """What is on both sides of a split; refused unless `config.allow_leaks` has its kind.

    Equal images with two labels inside one set are reported, not refused: the deduplicated scores leave them
    out. Near-duplicates of a file of pairs are refused; those that are found here are reported.
    """
    train, *others = (
        manifest.table.assign(content_hash=rows.content_hash)
        for rows, manifest in zip(data.rows, data.manifests, strict=True)
    )
    evaluations = {rows.dataset: table for rows, table in zip(data.tests, others, strict=True)}
    near, by = _near(data, bank, config, progress)
    report = audit_leaks(train, evaluations, folds=folds, near_duplicates=near, near_by=by)
    # of those found here nobody has looked at the pictures: blank patches are alike too
    found_here = () if by == "file" else ("near-duplicate",)
    report.refuse(allow={"labels", *config.allow_leaks, *found_here})
    return report


def _near(
    data: StudyData, bank: Any, config: ProbeConfig, progress: bool
) -> tuple[Sequence[Sequence[str]] | None, str]:
    """Sets of patch_ids that show the same, None where they cannot be looked for; and how they were found."""
    if config.near_duplicates not in (None, *NEAR_BY):
        return read_pairs(str(config.near_duplicates)), "file"
    if config.near_duplicates in (None, "none") or bank is None:
        return (), ""
    contents = [rows.content_hash.astype(str) for rows in data.rows]
    content = np.concatenate(contents)
    patch_id = np.concatenate([rows.patch_id for rows in data.rows])
    if config.near_duplicates == "images":
        pairs = near_images(data.manifests, contents, bank, progress=progress)
        if pairs is not None:
            wanted = {key for pair in pairs for key in pair}
            of: dict[str, list[str]] = {}
            for i in np.flatnonzero(np.isin(content, list(wanted))):
                of.setdefault(str(content[i]), []).append(patch_id[i])
            return [[*of[a], *of[b]] for a, b in pairs], "images"
    source = FeatureSet(parse_features(config.features[0]).sources[:1])
    X = [load_set(one, source, bank=bank) for one in data.manifests]
    found = near_embeddings(np.concatenate(X), len(data.train), content)
    return None if found is None else [patch_id[rows].tolist() for rows in found], "embeddings"


def clustered(data: StudyData, near: Iterable[Sequence[str]]) -> StudyData:
    """Near-duplicates of a set of which no slides are known are one cluster in its intervals, as identical
    images are. near : patch_ids of each set of near-duplicates.
    """
    found = []
    for rows in data.rows:
        group = rows.group.copy()
        if not rows.groups_known:
            at = {patch: i for i, patch in enumerate(rows.patch_id)}
            for ids in near:
                mine = [at[patch] for patch in ids if patch in at]
                for i in mine[1:]:
                    group[group == group[i]] = group[mine[0]]
        found.append(replace(rows, group=group))
    return replace(data, train=found[0], tests=found[1:])


def leak_notes(leaks: LeakReport, config: ProbeConfig) -> list[str]:
    """What is to be said of near-duplicates that nobody has confirmed."""
    if leaks.near_by not in ("images", "embeddings"):
        return []
    how = "by their pixels" if leaks.near_by == "images" else "by their embeddings"
    crossing = [tuple(dict.fromkeys(leak.patch_ids)) for leak in leaks.of("near-duplicate")]
    within = [ids for ids in leaks.near if set(ids) not in map(set, crossing)]
    notes = []
    if crossing:
        check = (
            "Look at them, and give those that are the same picture one group; or list them in a CSV "
            "(patch_a, patch_b): --near-duplicates near.csv then refuses these pairs"
            if leaks.near_by == "images"
            else "`patchbank datasets check MANIFESTS` compares the pixels and names those that are nearly "
            "identical (--near --pairs near.csv finds shifted ones too; --near-duplicates near.csv then "
            "refuses these pairs)"
        )
        notes.append(
            f"near-duplicates on both sides of a split, {how} ({len(crossing)}): {_named(crossing)}. Where "
            f"they show the same picture, scores are too high. {check}"
        )
    if within:
        notes.append(
            f"near-duplicates on one side of every split, {how} ({len(within)}): {_named(within)}. "
            "They flatter no score; where no slides are known they are one cluster in the intervals"
        )
    return notes


def _named(found: Sequence[Sequence[str]]) -> str:
    shown = "; ".join(
        " and ".join(ids[:2]) + (f" and {len(ids) - 2} more" if ids[2:] else "") for ids in found[:3]
    )
    return shown + ("; ..." if found[3:] else "")


def _check_rows(data: StudyData, bank: Any, config: ProbeConfig) -> None:
    """Every embedding that will be needed is there; else RowsMissing, before any work."""
    for source in dict.fromkeys(s for name in config.features for s in parse_features(name).sources):
        for manifest in data.manifests:
            check_rows(manifest, source, bank=bank)


def outer_folds(train: Manifest, config: ProbeConfig) -> Folds:
    """The folds of the train rows. Where none are named and no number is given, as many as can be made, 5 at
    most. Raises InvalidRequest.
    """
    header = train.header
    if not isinstance(config.folds, int) and (config.folds != "balanced" or header.name == "ami-br"):
        return folds_for(train, config.folds, seed=config.seed)
    exactly = config.folds if isinstance(config.folds, int) else None
    labels, groups = train.table["label"].to_numpy(dtype=object), effective_groups(train)
    per_class = [len(set(groups[labels == name])) for name in dict.fromkeys(labels)]
    if exactly is None and len(per_class) > 2 and min(per_class) < MOST_FOLDS:
        positive = config.positive or header.positive  # the rare class is one of the rest
        labels = np.where(labels == positive, positive, f"not {positive}").astype(object)
    return folds_of(
        labels,
        groups,
        exactly=exactly,
        seed=config.seed if exactly else 0,
        what=f"folds of {header.name}",
        fix="give fewer folds (--folds 2)",
        name=f"balanced-{exactly}-seed{config.seed}" if exactly else "balanced",
        dataset=header.name,
    )


def fold_notes(folds: Folds, plan: Plan, config: ProbeConfig) -> list[str]:
    """What is to be said of numbers of folds that were chosen automatically."""
    notes = []
    few = "a class occurs in too few groups for"
    if config.folds == "balanced" and folds.n_splits < MOST_FOLDS:
        notes.append(f"{folds.n_splits} folds: {few} {MOST_FOLDS}")
    if config.inner_folds is None and (least := min(plan.inner_folds)) < MOST_FOLDS:
        most = max(plan.inner_folds)
        notes.append(f"{least}{f' to {most}' if most > least else ''} inner folds: {few} {MOST_FOLDS}")
    return notes


def fit_notes(runs: Mapping[str, ProtocolRun]) -> list[str]:
    """Fits that did not reach the tolerance; the warning of the solver may have been in another process."""
    capped = {name: n for name, run in runs.items() if (n := run.fits["status"].get("capped", 0))}
    return [
        f"{n} of {runs[name].fits['fits']} fits of {name} did not reach the tolerance (status 'capped')"
        for name, n in capped.items()
    ]


def plan_of(data: StudyData, fold_of_row: np.ndarray, config: ProbeConfig) -> Plan:
    """`make_plan` of the train rows."""
    header = data.train_manifest.header
    positive = config.positive or header.positive
    rest = [name for name in header.classes if name != positive]
    return make_plan(
        data.train.y,
        effective_groups(data.train_manifest),
        fold_of_row,
        config=config,
        votes=data.train.vote_share(),
        classes=(rest[0] if len(rest) == 1 else f"not {positive}", positive),
    )


# --- fitting ------------------------------------------------------------------------------------------


def _repeats(
    data: StudyData, plan: Plan, bank: Any, config: ProbeConfig, *, n_splits: int
) -> list[tuple[Plan, ProbeConfig]]:
    """The plan and settings of every repeat: the first as they are, the others with folds that are drawn.
    Raises InvalidRequest where folds cannot be made, ProbeError where they leak.
    """
    # make_folds finds nearly the same folds from every seed, the most even ones; these are drawn
    from sklearn.model_selection import StratifiedGroupKFold

    found, y, groups = [(plan, config)], data.train.y, plan.groups
    for seed in range(config.seed + 1, config.seed + config.repeats):
        drawn = StratifiedGroupKFold(n_splits, shuffle=True, random_state=seed)
        folds = np.zeros(len(y), int)
        for k, (_, held_out) in enumerate(drawn.split(y, y, groups), start=1):
            folds[held_out] = k
        audit(data, folds, bank, config.replace(near_duplicates="none"))
        other = config.replace(seed=seed)
        found.append((plan_of(data, folds, other), other))
    return found


def _probe_all(
    data: StudyData,
    bank: Any,
    repeats: Sequence[tuple[Plan, ProbeConfig]],
    *,
    jobs: int | None,
    backend: str,
    progress: bool,
) -> list[dict[str, ProtocolRun]]:
    """The protocol for every feature set, in parallel over them; for each repeat name -> run, in the config's
    order.
    """
    from tqdm import tqdm

    features = repeats[0][1].features
    jobs = min(jobs or cores(), len(features))
    threads = max(1, cores() // jobs)
    manifests = data.manifests
    names = [rows.dataset for rows in data.tests]
    tasks = [
        joblib.delayed(_probe_one)(name, bank, manifests, names, data.train.y, repeats, threads)
        for name in features
    ]
    if backend == "ray":
        _register_ray()
    elif backend not in BACKENDS:
        raise InvalidRequest(f"backend {backend!r} is not one of {', '.join(BACKENDS)}")
    if jobs == 1 and backend != "ray":
        backend = "sequential"
    found: list[dict[str, ProtocolRun]] = [{} for _ in repeats]
    with joblib.parallel_config(backend=backend, n_jobs=jobs):
        # Ray's backend hands everything over at the end
        results: Any = joblib.Parallel(return_as="list" if backend == "ray" else "generator")(tasks)
        bar = tqdm(results, total=len(tasks), desc="probe", unit="set", mininterval=1, disable=not progress)
        for name, runs in zip(features, bar, strict=True):
            for into, run in zip(found, runs, strict=True):
                into[name] = run
    return found


def _probe_one(
    name: str,
    bank: Any,
    manifests: Sequence[Manifest],
    test_names: Sequence[str],
    y: np.ndarray,
    repeats: Sequence[tuple[Plan, ProbeConfig]],
    threads: int,
) -> list[ProtocolRun]:
    cpu, runs = time.process_time(), []
    with threadpool_limits(threads):
        lap = time.perf_counter()
        X, *others = [load_set(manifest, name, bank=bank) for manifest in manifests]
        loaded = time.perf_counter() - lap
        tests = dict(zip(test_names, others, strict=True))
        for plan, config in repeats:
            protocol = run_protocol if config.solver == "exact" else run_published
            run = protocol(X, y, plan, tests, config=config)
            run.seconds["load"] = loaded
            run.seconds["cpu"] = (
                time.process_time() - cpu
            )  # of the process: too much if feature sets share it
            run.fits["dim"] = X.shape[1]
            runs.append(run)
            cpu = time.process_time()
    return runs


def _domains_one(name: str, bank: Any, data: StudyData, config: ProbeConfig) -> dict[str, Any] | None:
    manifests = data.manifests
    X, *others = [load_set(manifest, name, bank=bank) for manifest in manifests]
    tests = {
        rows.dataset: DomainRows(Z, rows.y, rows.domain, rows.group)
        for rows, Z in zip(data.tests, others, strict=True)
    }
    groups = effective_groups(data.train_manifest)
    votes = data.train.vote_share()
    return analyse_domains(X, data.train.y, groups, data.train.domain, tests, config=config, votes=votes)


def _register_ray() -> None:
    try:
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise MissingDependency("the backend 'ray' needs Ray: pip install 'patchbank[ray]'") from error
    register_ray()


# --- what comes out -----------------------------------------------------------------------------------


def columns_of(
    data: StudyData, plan: Plan, runs: Mapping[str, ProtocolRun]
) -> tuple[str, dict[str, list[Column]]]:
    """The chosen feature set, and the columns to score of each evaluation set.

    With several feature sets the sweep as a whole has columns of its own: for each outer fold the feature set
    that is best on that fold's inner folds.
    """
    names = list(runs)
    chosen = names[int(np.argmax([run.path.max() for run in runs.values()]))]
    all_runs = dict(runs)
    if len(runs) > 1 and runs[chosen].choice:  # first: it is the estimate of what the folds choose
        all_runs = {SWEEP: _sweep(plan, data.train.y, list(runs.values()), runs[chosen]), **runs}
    columns: dict[str, list[Column]] = {data.train.dataset: []}
    y = data.train.y
    for name, run in all_runs.items():
        columns[data.train.dataset].append(
            Column(
                name,
                run.train_role,
                run.oof,
                run.oof_adjusted,
                run.oof_ranking,
                out_of_fold_cuts(y, run.oof_ranking, plan.folds),
            )
        )
        for dataset, scores in run.fold_models.items():
            ensemble = mean_logit(scores)
            mine = columns.setdefault(dataset, [])
            if name != SWEEP and dataset in run.refit:  # the sweep's refit is that of the chosen features
                refit = run.refit[dataset]
                mine.append(_one_model(name, "refit", refit, run.adjusted, specificity_cuts(y, run.oof_flat)))
            cuts = specificity_cuts(y, run.oof_ensemble)
            mine.append(_one_model(name, "ensemble", ensemble, run.ensemble_adjusted, cuts))
    return chosen, columns


def _one_model(name: str, role: str, score: np.ndarray, adjusted: np.ndarray, cuts: np.ndarray) -> Column:
    """The column of one model, which has one `adjustment` (4,) and one set of cuts (2,) for all rows."""
    n = len(score)
    return Column(name, role, score, np.tile(adjusted, (n, 1)), cuts=np.tile(cuts, (n, 1)))


def _sweep(plan: Plan, y: np.ndarray, runs: Sequence[ProtocolRun], chosen: ProtocolRun) -> ProtocolRun:
    """The run of "whatever the folds choose": in fold k the feature set that is best on its inner folds."""
    outer = np.unique(plan.folds)
    pick = [int(np.argmax([run.fold_paths[i].max() for run in runs])) for i in range(len(outer))]
    oof, ranking, adjusted = np.empty(len(y)), np.empty(len(y)), np.empty((len(y), 4))
    for i, k in enumerate(outer):
        rows, run = plan.folds == k, runs[pick[i]]
        oof[rows], adjusted[rows] = run.oof[rows], run.oof_adjusted[rows]
        ranking[rows] = run.oof_ranking[rows]
    scales = np.stack([runs[p].scales[i] for i, p in enumerate(pick)])
    oof_ensemble = as_ensemble(ranking, scales)
    return replace(
        chosen,
        oof=oof,
        oof_ranking=ranking,
        scales=scales,
        oof_adjusted=adjusted,
        oof_ensemble=oof_ensemble,
        ensemble_adjusted=adjustment(y, oof_ensemble),
        fold_models={
            name: np.stack([runs[p].fold_models[name][:, i] for i, p in enumerate(pick)], axis=1)
            for name in chosen.fold_models
        },
    )


def score_fold_models(
    tests: Sequence[Rows], scores: Mapping[str, np.ndarray]
) -> dict[str, dict[str, list[float | None]]]:
    """Evaluation set -> metric -> a value for each outer fold's model, which published tables average.

    scores : evaluation set -> logits float64 (n, K)
    """
    found = {}
    for rows in tests:
        values = evaluate(rows.y, scores[rows.dataset], metrics=DEFAULT_METRICS, threshold=0.0)
        found[rows.dataset] = {name: finite(one) for name, one in values.items()}
    return found


def predictions_table(data: StudyData, plan: Plan, columns: Mapping[str, Sequence[Column]]) -> pd.DataFrame:
    """Every prediction, one row each: patch, feature set and role ("oof", "refit", "ensemble").

    Columns: patch_id, path, content_hash, dataset, domain, group, label (1: positive), fold (outer fold of a
    train row, else 0), features, role; score (logit, as fitted); ranking (the same on one scale over the
    models of the folds, see `protocol.ranking`: what AUROC and average precision are taken on); probability,
    calibrated on folds (Platt); threshold on this probability, chosen on folds; call, int8: probability >=
    threshold.
    """
    frames = []
    for rows in data.rows:
        fold = plan.folds if rows.dataset == data.train.dataset else np.zeros(len(rows), int)
        about = pd.DataFrame(
            {
                "patch_id": rows.patch_id,
                "path": rows.path,
                "content_hash": rows.content_hash,
                "dataset": rows.dataset,
                "domain": rows.domain,
                "group": rows.group,
                "label": rows.y.astype(np.int8),
                "fold": fold.astype(np.int16),
            }
        )
        for column in columns[rows.dataset]:
            probability, threshold = calibrated(column.score, column.adjusted)
            frames.append(
                about.assign(
                    features=column.features,
                    role=column.role,
                    score=column.score,
                    ranking=column.order,
                    probability=probability,
                    threshold=threshold,
                    call=(probability >= threshold).astype(np.int8),
                )
            )
    table = pd.concat(frames, ignore_index=True)
    return table.astype(dict.fromkeys(("path", "dataset", "domain", "features", "role"), "category"))


def describe_run(name: str, run: ProtocolRun) -> dict[str, Any]:
    """One feature set's entry in results.json: what was chosen, on which scores, at what cost."""
    choices: dict[str, Any] = {}
    if run.choice:
        path = [finite(one) for one in run.path]
        choices["choice"] = run.choice.to_dict()
        choices["fold_choices"] = [choice.to_dict() for choice in run.fold_choices]
        own = {run.choice.parameter: run.values.tolist()} if run.choice.parameter else {}
        choices["path"] = {**own, "criterion": path}
    return {
        "features": name,
        "dim": run.fits["dim"],
        "criterion": float(run.path.max()),
        **choices,
        **describe_adjusted(run.adjusted),
        "fits": {key: value for key, value in run.fits.items() if key != "dim"},
        "seconds": run.seconds,
    }


def describe_adjusted(adjusted: np.ndarray) -> dict[str, Any]:
    """What was chosen on held-out scores: `threshold` is of the calibrated probability, `threshold_score` the
    same on the score.
    """
    return {
        "threshold": float(calibrated(np.zeros(1), adjusted)[1][0]),
        "threshold_score": float(adjusted[0]),
        "temperature": finite(1 / adjusted[1] if adjusted[1] else np.inf),
        "platt": adjusted[2:].tolist(),
    }


def describe_stores(bank: Any, config: ProbeConfig) -> dict[str, Any]:
    """Where the columns come from: source -> the store's name, identity and provenance."""
    sources = dict.fromkeys(s for name in config.features for s in parse_features(name).sources)
    found = {}
    for source in sources:
        store = bank.find(source.encoder, view=source.view, tokens=source.tokens)
        found[str(source)] = {
            "store": store.identity.name,
            "identity": store.identity.to_json(),
            "provenance": dict(store.provenance),
        }
    return found


def describe(rows: Rows, manifest: Manifest, *, positive: str | None = None) -> dict[str, Any]:
    """One evaluation set's entry in results.json."""
    header = manifest.header
    return {
        "dataset": rows.dataset,
        "name": header.name,
        "version": header.version,
        "licence": header.licence,
        "source": header.source,
        "group_kind": header.group_kind,
        "positive": positive or header.positive,
        "classes": list(header.classes),
        "rows": rows_digest(manifest),
        "root": str(manifest.root.absolute()),
        "n": len(rows),
        "n_positive": int(rows.y.sum()),
        "groups_known": rows.groups_known,
        "n_groups": int(manifest.table.loc[manifest.table["group"] != "", "group"].nunique()),
        "left_out": dict(rows.left_out),
        "n_distinct": int(rows.distinct.sum()),
        "domains": {d: int((rows.domain == d).sum()) for d in dict.fromkeys(rows.domain) if d},
    }


def rows_digest(manifest: Manifest) -> str:
    """BLAKE2b of ids and labels, in the order of the rows."""
    digest = hashlib.blake2b(digest_size=16)
    for column in ("patch_id", "label"):
        digest.update("".join(f"{len(text)} {text}" for text in map(str, manifest.table[column])).encode())
    return digest.hexdigest()


def finite(value: Any) -> Any:
    """Plain JSON values; None where a number is not finite."""
    if isinstance(value, np.ndarray):
        return [finite(one) for one in value]
    return float(value) if np.isfinite(value) else None

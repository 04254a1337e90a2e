"""The data of a probe study: manifests reduced to labelled rows, folds, the audit for leaks."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pandas as pd

from ..datasets.folds import Folds, effective_groups, folds_for
from ..datasets.hashes import hex_hashes
from ..datasets.manifest import Header, Manifest, listed
from ..datasets.overlaps import placed, same_places, slides_of
from ..datasets.sample import drawn, sample_rows
from ..errors import InvalidRequest, ProbeError
from .config import NEAR_BY, FeatureSet, ProbeConfig, parse_features
from .features import check_rows, columns_in, content_keys, load_set
from .leaks import (
    LeakReport,
    SharedSlides,
    SlideOverlap,
    audit_leaks,
    deduplicate,
    near_embeddings,
    read_pairs,
    too_many_pairs,
)
from .near import near_images
from .protocol import MOST_FOLDS, Plan, folds_of, larger_sample, make_plan, rare_class_fix
from .results.scoring import Rows, class_codes
from .statistics.multiclass import MOST_CLASSES
from .streaming import size_of
from .training_sets import SHARED_AT

NOT_DRAWN = "not in the sample"  # why rows are left out


class AuditSettings(Protocol):
    """Settings of the audit for leaks and duplicates; `config.ProbeConfig` has them."""

    @property
    def features(self) -> tuple[str, ...]: ...
    @property
    def near_duplicates(self) -> str | None: ...
    @property
    def allow_leaks(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class StudyData:
    """Train rows and evaluation sets: manifests reduced to their labelled rows, and the same as arrays."""

    train_manifest: Manifest
    test_manifests: list[Manifest]
    train: Rows
    tests: list[Rows]
    classes: tuple[str, ...]
    """What the codes of `Rows.y` mean; of two the second is the positive class."""
    choosing: str | None = None
    """The evaluation set that all choices are made on; None: folds of the train rows."""

    @property
    def rows(self) -> list[Rows]:
        """Train rows, then those of the evaluation sets."""
        return [self.train, *self.tests]

    @property
    def manifests(self) -> list[Manifest]:
        """In the order of `rows`."""
        return [self.train_manifest, *self.test_manifests]


_Data = TypeVar("_Data", bound=StudyData)


def gather(train: Manifest, tests: Sequence[Manifest], bank: Any, config: ProbeConfig) -> StudyData:
    """Split and check the manifests. Evaluation sets are named NAME, or NAME:SPLIT for the other splits of
    `train`.

    Raises InvalidRequest for classes that do not fit together, ProbeError where there is nothing to fit or
    score.
    """
    classes = class_names(train.header, config)
    for manifest in [train, *tests]:
        _check_classes(manifest, train, classes, config)
    pieces, not_drawn = sampled(pieces_of(train, tests), config)
    names = [name for name, _ in pieces]
    lost = {m.header.name: int((~is_labelled(m)).sum()) for m in [train, *tests]}
    rows = [
        rows_of(
            name,
            piece,
            class_codes(piece.table["label"], classes),
            bank,
            left_out=({"no label": n} if (n := lost[piece.header.name]) else {}) | not_drawn[name],
            classes=classes if len(classes) > 2 else (),
            ordered=train.header.ordered and len(classes) > 2,
        )
        for name, piece in pieces
    ]
    present = np.unique(rows[0].y)
    absent = [name for k, name in enumerate(classes) if k not in present]
    if absent and not_drawn[names[0]]:
        raise ProbeError(
            f"the sample of {len(rows[0]):,} rows of {names[0]} has none of {', '.join(map(repr, absent))}: "
            "nothing can be fitted. Fix: a larger --sample"
        )
    if absent and len(classes) == 2:
        label = "positive" if absent == [classes[1]] else "negative"
        raise ProbeError(f"{names[0]} has no {label} row ({classes[1]!r} is positive): nothing can be fitted")
    if absent:
        raise ProbeError(
            f"{names[0]} has no row of {', '.join(map(repr, absent))}, so these classes cannot be learned. "
            "Fix: take them out of `classes` in the manifest, or move rows of them into the split 'train'."
        )
    choosing = _choosing_set(train.header.name, rows, classes, config)
    return StudyData(pieces[0][1], [piece for _, piece in pieces[1:]], rows[0], rows[1:], classes, choosing)


def _choosing_set(
    name: str, sets: Sequence[Rows], classes: tuple[str, ...], config: ProbeConfig
) -> str | None:
    """The name of the set of `config.select_on`. Raises InvalidRequest, ProbeError where it lacks a class."""
    if config.select_on == "folds":
        return None
    wanted, start = f"{name}:{config.select_on}", f"{name}:"
    for rows in sets[1:]:
        if rows.dataset != wanted:
            continue
        absent = [name for k, name in enumerate(classes) if not (rows.y == k).any()]
        if absent:
            raise ProbeError(f"{wanted} has no row of {', '.join(absent)}, so nothing can be chosen on it")
        return wanted
    others = [rows.dataset.removeprefix(start) for rows in sets[1:] if rows.dataset.startswith(start)]
    raise InvalidRequest(
        f"select_on is {config.select_on!r}; {name} has the splits train"
        f"{''.join(f', {other}' for other in others)}. Fix: name one of its splits, or 'folds'"
    )


def pieces_of(train: Manifest, tests: Sequence[Manifest]) -> list[tuple[str, Manifest]]:
    """Name and labelled rows of each set: the train rows first. Raises InvalidRequest and ProbeError."""
    split, labelled = train.table["split"], is_labelled(train)
    is_train = _is_train(split)
    if not (is_train & labelled).any():
        raise ProbeError(
            f"{train.header.name} has no labelled row with split 'train'; it has {sorted(set(split))}. "
            "The manifest that is trained on has to say which rows those are."
        )
    pieces = [(f"{train.header.name}:train", labelled_train_rows(train))]
    pieces += [
        (f"{train.header.name}:{word or 'no split'}", train.select((split == word).to_numpy(bool) & labelled))
        for word in split[~is_train & labelled].unique()
    ]
    for manifest in tests:
        keep = is_labelled(manifest)
        if not keep.any():
            raise ProbeError(f"{manifest.header.name} has no labelled rows, so it cannot be scored")
        pieces.append((manifest.header.name, manifest.select(keep)))
    names = [name for name, _ in pieces]
    if len(set(names)) < len(names):
        raise InvalidRequest(f"two evaluation sets have the same name: {', '.join(names)}")
    return pieces


class _SampleSettings(Protocol):
    @property
    def sample(self) -> int | None: ...
    @property
    def seed(self) -> int: ...


def sampled(
    pieces: Sequence[tuple[str, Manifest]], config: _SampleSettings
) -> tuple[list[tuple[str, Manifest]], dict[str, dict[str, int]]]:
    """The rows of each set that `config.sample` leaves, and for each name how many it leaves out."""
    if config.sample is None:
        return list(pieces), {name: {} for name, _ in pieces}
    kept = [(name, sample_rows(piece, config.sample, seed=config.seed)) for name, piece in pieces]
    lost = [len(piece) - len(part) for (_, piece), (_, part) in zip(pieces, kept, strict=True)]
    return kept, {name: {NOT_DRAWN: n} if n else {} for (name, _), n in zip(pieces, lost, strict=True)}


def sample_notes(data: StudyData) -> list[str]:
    """Of which sets a part of the rows was drawn."""
    return [
        f"{rows.dataset}: {drawn(len(rows), len(rows) + n)}"
        for rows in data.rows
        if (n := rows.left_out.get(NOT_DRAWN, 0))
    ]


def is_labelled(manifest: Manifest) -> np.ndarray:
    """The rows with a label, bool (n,); all where there are targets, which every row has."""
    if manifest.header.targets:
        return np.ones(len(manifest.table), bool)
    return (manifest.table["label"] != "").to_numpy(bool)


def labelled_train_rows(train: Manifest) -> Manifest:
    """The rows of a manifest that a study is trained on."""
    return train.select(_is_train(train.table["split"]) & is_labelled(train))


def _is_train(split: pd.Series) -> np.ndarray:
    return (split == "train").to_numpy(bool) if (split != "").any() else np.ones(len(split), bool)


def class_names(header: Header, config: ProbeConfig) -> tuple[str, ...]:
    """The classes by code: (negative, positive) of two classes, or of one against the rest; all
    classes in the header's order where there are more than two. Raises InvalidRequest.
    """
    classes, name = tuple(header.classes), header.name
    if header.targets:
        raise InvalidRequest(
            f"{name} has numbers to predict ({', '.join(header.targets[:5])}) and no classes: use "
            "`patchbank probe run`, or build it with labels"
        )
    if not classes:
        raise InvalidRequest(
            f"no row of {name} has a label: build it with labels, or numbers to predict; of a table "
            "--column label=NAME says which of its columns has them"
        )
    if len(classes) == 1:
        raise InvalidRequest(f"{name} has one class alone, {classes[0]!r}: a probe needs two or more")
    if config.target is not None and config.target not in classes:
        which = "positive class" if config.positive else "class"
        raise InvalidRequest(
            f"the {which} {config.target!r} is not one of {name}'s: {', '.join(map(str, classes[:20]))}"
        )
    if len(classes) > 2 and config.positive:
        raise InvalidRequest(
            f"{name} has {len(classes)} classes; a positive class is for two. For all classes leave "
            f"--positive out; for one against the rest give --one-vs-rest {config.positive!r}"
        )
    positive = config.target or header.positive
    if len(classes) > 2 and not config.one_vs_rest:
        return classes
    rest = [name for name in classes if name != positive]
    return (rest[0] if len(rest) == 1 else f"not {positive}", positive)


def _check_classes(
    manifest: Manifest, train: Manifest, classes: tuple[str, ...], config: ProbeConfig
) -> None:
    """Raises InvalidRequest where labels of a manifest are no classes of the training manifest."""
    header, known = manifest.header, train.header.classes
    ours, theirs = (
        [name for name in one if name in {*known} & {*header.classes}] for one in (known, header.classes)
    )
    if len(classes) > 2 and train.header.ordered and header.ordered and ours != theirs:
        raise InvalidRequest(
            f"the grades of {header.name} rise as {', '.join(theirs)}, those of {train.header.name} as "
            f"{', '.join(ours)}. Fix: build one of the manifests with the other's --classes"
        )
    if len(classes) > 2:
        labels = manifest.table["label"].to_numpy(dtype=object)
        if (n := len(classes)) > MOST_CLASSES or n > max(20, (labels != "").sum() / 3):
            raise InvalidRequest(
                f"{header.name} has {n:,} classes in {int((labels != '').sum()):,} labelled rows "
                f"({', '.join(map(repr, classes[:3]))}, ...): is the label a path, an id or a number of each "
                "patch? Build the manifest with the column that has the classes (--label COLUMN)"
            )
        unknown = {name: int((labels == name).sum()) for name in header.classes if name not in known}
        if lacking := {name: rows for name, rows in unknown.items() if rows}:
            counts = ", ".join(f"{name!r} ({rows} rows)" for name, rows in lacking.items())
            raise InvalidRequest(
                f"{header.name} has rows of classes that {train.header.name} lacks: {counts}. It has: "
                f"{', '.join(known)}. Fix: build one of the manifests with the other's names "
                "(datasets build --map OLD=NEW), or leave these rows out (an empty label)."
            )
        return
    if config.target and config.target not in header.classes:
        raise InvalidRequest(
            f"the positive class {config.target!r} is not one of {header.name}'s: {', '.join(header.classes)}"
        )
    if set(header.classes) != set(known):
        raise InvalidRequest(
            f"{header.name} has the classes {sorted(header.classes)}, {train.header.name} "
            f"{sorted(known)}: one of the manifests has to be changed"
        )


def rows_of(
    name: str,
    manifest: Manifest,
    y: np.ndarray,
    bank: Any,
    *,
    left_out: Mapping[str, int],
    classes: tuple[str, ...] = (),
    ordered: bool = False,
) -> Rows:
    """An evaluation set; y : its labels, as `Rows` has them; classes, ordered : of more than two."""
    table = hashed(manifest, bank)
    experts, called = _experts(table, classes)
    group = manifest.table["group"]
    if (group == "").any():  # rows of equal content are one cluster
        group = pd.Series(effective_groups(Manifest(manifest.header, table, manifest.root)))
    return Rows(
        dataset=name,
        patch_id=table["patch_id"].to_numpy(dtype=object),
        y=y,
        group=group.to_numpy(dtype=object),
        domain=table["domain"].to_numpy(dtype=object),
        distinct=deduplicate(table).keep,
        votes_positive=_votes(table, "votes_positive"),
        votes_total=_votes(table, "votes_total"),
        path=table["path"].to_numpy(dtype=object),
        content_hash=table["content_hash"].to_numpy(dtype=object),
        groups_known=manifest.groups_known,
        left_out=left_out,
        classes=classes,
        ordered=ordered,
        experts=experts,
        called=called,
    )


def _experts(table: pd.DataFrame, classes: tuple[str, ...]) -> tuple[tuple[str, ...], np.ndarray | None]:
    """The columns expert_1, expert_2, ... of more than two classes: their names, and each one's class of each
    row, int (n, E), -1 where it was not read. Raises ProbeError for what is no class.
    """
    names = tuple(str(name) for name in table.columns if re.fullmatch(r"expert_\d+", str(name)))
    if not classes or not names:
        return (), None
    codes = {"": -1} | {name: k for k, name in enumerate(classes)}
    called = np.full((len(table), len(names)), -1)
    for e, name in enumerate(names):
        column = table[name].fillna("").astype(object)
        unknown = ~column.isin(list(codes))
        if unknown.any():
            first = table["patch_id"].to_numpy()[int(unknown.to_numpy().argmax())]
            raise ProbeError(
                f"{first}: {name} is {column[unknown].iloc[0]!r}, which is no class; there are "
                f"{', '.join(classes)}"
            )
        called[:, e] = column.map(codes).to_numpy(int)
    return names, called


def _votes(table: pd.DataFrame, column: str) -> np.ndarray:
    if column not in table:
        return np.full(len(table), -1)
    return table[column].astype("Int64").fillna(-1).to_numpy(np.int64)


def hashed(manifest: Manifest, bank: Any) -> pd.DataFrame:
    """The manifest's table with the content hash of every row."""
    return manifest.table.assign(content_hash=hex_hashes(content_keys(manifest, bank)))


def audit(
    data: StudyData,
    folds: np.ndarray | None,
    bank: Any,
    config: AuditSettings,
    *,
    images: Path | None = None,
    memory: float = float("inf"),
    progress: bool = False,
) -> LeakReport:
    """What is on both sides of a split; refused unless `config.allow_leaks` has its kind.

    images : where there is no bank, a folder that remembers which images are nearly the same
    memory : bytes that embeddings may take: of more, near-duplicates are not looked for

    Equal images with two labels inside one set are reported, not refused: the deduplicated scores leave them
    out. Near-duplicates of a file of pairs are refused; those that are found here are reported, and so are
    slides that have one name in two data sets without patches at one place.
    """
    train, *others = (
        manifest.table.assign(content_hash=rows.content_hash)
        for rows, manifest in zip(data.rows, data.manifests, strict=True)
    )
    evaluations = {rows.dataset: table for rows, table in zip(data.tests, others, strict=True)}
    near, by = _near(data, bank, config, images, memory, progress)
    report = audit_leaks(
        train, evaluations, folds=folds, near_duplicates=near, near_by=by, overlap=slide_overlap(data)
    )
    # of those found here nobody has looked at the images: blank patches are similar too
    found_here = () if by == "file" else ("near-duplicate",)
    report.refuse(allow={"labels", *config.allow_leaks, *found_here})
    return report


def slide_overlap(data: StudyData) -> SlideOverlap:
    """Patches of train and of evaluation sets from other data sets that come from one slide."""
    train = data.train_manifest
    known, places, shared = slides_of(train), dict[str, dict[str, None]](), []
    others = [
        (rows.dataset, manifest)
        for rows, manifest in zip(data.tests, data.test_manifests, strict=True)
        if manifest.header.name != train.header.name
    ]
    for dataset, manifest in others:
        slides = slides_of(manifest)
        if names := sorted({*known.index} & {*slides.index}):
            counts = [int(one.loc[names].sum()) for one in (known, slides)]
            shared.append(SharedSlides(dataset=dataset, slides=tuple(names), train=counts[0], rows=counts[1]))
            pairs = same_places([train, manifest])
            for slide, a, b in zip(pairs["slide"], pairs["patch_a"], pairs["patch_b"], strict=True):
                places.setdefault(slide, {}).update({a: None, b: None})
    return SlideOverlap(
        places={slide: list(ids) for slide, ids in places.items()},
        slides=tuple(shared),
        compared=sum(map(placed, [train, *(manifest for _, manifest in others)])) if others else 0,
    )


def _near(
    data: StudyData, bank: Any, config: AuditSettings, images: Path | None, memory: float, progress: bool
) -> tuple[Sequence[Sequence[str]] | None, str]:
    """Sets of patch_ids that show the same, None where they cannot be looked for; and how they were found."""
    if config.near_duplicates not in (None, *NEAR_BY):
        return read_pairs(str(config.near_duplicates)), "file"
    if config.near_duplicates in (None, "none") or (bank is None and images is None):
        return (), ""
    contents = [rows.content_hash.astype(str) for rows in data.rows]
    content = np.concatenate(contents)
    patch_id = np.concatenate([rows.patch_id for rows in data.rows])
    if config.near_duplicates == "images":
        pairs = near_images(data.manifests, contents, images if bank is None else bank, progress=progress)
        if pairs is not None:
            wanted = {key for pair in pairs for key in pair}
            of: dict[str, list[str]] = {}
            for i in np.flatnonzero(np.isin(content, list(wanted))):
                of.setdefault(str(content[i]), []).append(patch_id[i])
            return [[*of[a], *of[b]] for a, b in pairs], "images"
    if bank is None:
        return None, ""
    source = FeatureSet(parse_features(config.features[0]).sources[:1])
    shape = len(content), columns_in(source, bank)
    if too_many_pairs(*shape, len(data.train)) or size_of(str(source), data.manifests, bank) > memory:
        return None, "embeddings"
    X = np.empty(shape, np.float32)
    at = 0
    for manifest in data.manifests:
        X[at : at + len(manifest)] = load_set(manifest, source, bank=bank)
        at += len(manifest)
    sets = near_embeddings(X, len(data.train), content)
    return None if sets is None else [patch_id[rows].tolist() for rows in sets], "embeddings"


def clustered(data: _Data, near: Iterable[Sequence[str]]) -> _Data:
    """Near-duplicates of a set of which no slides are known are one cluster in its intervals, as identical
    images are. near : patch_ids of each set of near-duplicates.
    """
    changed = []
    for rows in data.rows:
        group = rows.group.copy()
        if not rows.groups_known:
            at = {patch: i for i, patch in enumerate(rows.patch_id)}
            for ids in near:
                members = [at[patch] for patch in ids if patch in at]
                for i in members[1:]:
                    group[group == group[i]] = group[members[0]]
        changed.append(replace(rows, group=group))
    return replace(data, train=changed[0], tests=changed[1:])


def leak_notes(leaks: LeakReport, config: AuditSettings) -> list[str]:
    """What is to be said of near-duplicates and shared slides that nobody has confirmed."""
    notes = [
        f"{len(slide.slides)} slides have one name in train ({slide.train:,} rows) and in {slide.dataset} "
        f"({slide.rows:,} rows): {listed(slide.slides)}. If they are the same slides, scores are too high: "
        "leave "
        "them out of one data set. A name is no proof; coordinates (columns x, y) are compared where both "
        "sets have them"
        for slide in leaks.slides
    ]
    if leaks.near_by not in ("images", "embeddings"):
        return notes
    how = "by their pixels" if leaks.near_by == "images" else "by their embeddings"
    crossing = [tuple(dict.fromkeys(leak.patch_ids)) for leak in leaks.of("near-duplicate")]
    within = [ids for ids in leaks.near if set(ids) not in map(set, crossing)]
    if crossing:
        check = (
            "Look at them, and give those that are the same image one group; or list them in a CSV "
            "(patch_a, patch_b): --near-duplicates near.csv then refuses these pairs"
            if leaks.near_by == "images"
            else "`patchbank datasets check MANIFESTS` compares the pixels and names those that are nearly "
            "identical (--near --pairs near.csv finds shifted ones too; --near-duplicates near.csv then "
            "refuses these pairs)"
        )
        notes.append(
            f"near-duplicates on both sides of a split, {how} ({len(crossing)}): {_named(crossing)}. Where "
            f"they show the same image, scores are too high. {check}"
        )
    if within:
        notes.append(
            f"near-duplicates on one side of every split, {how} ({len(within)}): {_named(within)}. "
            "They flatter no score; where no slides are known they are one cluster in the intervals"
        )
    return notes


def _named(sets: Sequence[Sequence[str]]) -> str:
    shown = "; ".join(
        " and ".join(ids[:2]) + (f" and {len(ids) - 2} more" if ids[2:] else "") for ids in sets[:3]
    )
    return shown + ("; ..." if sets[3:] else "")


def check_embeddings(data: StudyData, bank: Any, config: AuditSettings) -> None:
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
    if exactly is None and config.one_vs_rest and min(per_class) < MOST_FOLDS:
        # the rare class is one of the rest
        positive = config.one_vs_rest
        labels = np.where(labels == positive, positive, f"not {positive}").astype(object)
    return folds_of(
        labels,
        groups,
        exactly=exactly,
        seed=config.seed if exactly else 0,
        what=f"folds of {header.name}",
        fix=f"{larger_sample(config)}give fewer folds (--folds 2)"
        + rare_class_fix(() if config.one_vs_rest else per_class),
        name=f"balanced-{exactly}-seed{config.seed}" if exactly else "balanced",
        dataset=header.name,
    )


def fold_notes(folds: Folds, plan: Plan, config: ProbeConfig) -> list[str]:
    """What is to be said of numbers of folds that were chosen automatically."""
    notes = []
    few = "a class occurs in too few groups for"
    if config.folds == "balanced" and folds.n_splits < MOST_FOLDS:
        notes.append(f"{folds.n_splits} folds: {few} {MOST_FOLDS}")
    if config.inner_folds is not None or plan.shared:
        return notes
    if folds.n_splits in SHARED_AT:
        notes.append("inner folds of their own: without two of the folds a class has no rows")
    if (least := min(plan.inner_folds)) < MOST_FOLDS:
        most = max(plan.inner_folds)
        notes.append(f"{least}{f' to {most}' if most > least else ''} inner folds: {few} {MOST_FOLDS}")
    return notes


def plan_of(data: StudyData, fold_of_row: np.ndarray, config: ProbeConfig) -> Plan:
    """`make_plan` of the train rows."""
    return make_plan(
        data.train.y,
        effective_groups(data.train_manifest),
        fold_of_row,
        config=config,
        votes=data.train.vote_share(),
        classes=data.classes,
    )

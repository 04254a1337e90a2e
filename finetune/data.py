"""From manifests to the rows of one fold: the same rows, ids, labels, folds and leak audit as the probes'."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.folds import Folds, effective_groups
from ..datasets.hashes import hex_hashes, resolve
from ..datasets.images import content_hash
from ..datasets.manifest import Manifest
from ..datasets.sources import open_source
from ..errors import InvalidRequest
from ..extract.views import crop_pixels
from ..probe.config import ProbeConfig
from ..probe.data import StudyData, audit, clustered, gather, outer_folds
from ..probe.leaks import LeakReport
from ..probe.protocol import MOST_FOLDS, folds_of
from ..probe.regression import TargetConfig
from ..probe.targets import gather as gather_targets
from ..probe.targets import outer_folds as target_folds
from .labels import Labels
from .recipe import Recipe

IN_MEMORY_BYTES = 2 << 30  # decoded patches up to this size are read once and kept


@dataclass(frozen=True)
class Patches:
    """Rows to train or to score.

    ids : patch ids, (n,)
    labels : float32 (n,), 1 for the positive class, or the class's code, NaN where not known; of numbers
        float64 (n, T)
    read : row number -> uint8 (h, w, 3), the view already cut
    votes : share of the experts' votes for the positive class, (n,), or for each of K > 2, (n, K), NaN where
        there are none; domains : (n,)
    """

    ids: Sequence[str]
    labels: np.ndarray
    read: Callable[[int], np.ndarray]
    votes: np.ndarray | None = None
    domains: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class TrainingData:
    """Labelled rows of the training set with their folds (int (n,), 1..K), the evaluation sets, and what lies
    on both sides of a split.
    """

    study: StudyData
    folds: Folds
    fold: np.ndarray
    leaks: LeakReport


def gather_rows(
    train: Manifest,
    tests: Sequence[Manifest],
    *,
    config: ProbeConfig | TargetConfig,
    remember: Path | None = None,
    progress: bool = False,
) -> TrainingData:
    """Select and check the rows as `run_probe` does: labelled, split "train", grouped folds, no leaks.

    remember : folder whose near/ remembers which images are nearly the same; without one, as with
        `config.near_duplicates` "none", nothing is looked for
    Manifests without content hashes are read once to compute them.
    Raises InvalidRequest, ManifestError, ProbeError as the probe does, before anything is trained.
    """
    train, tests = with_hashes(train), [with_hashes(one) for one in tests]
    if isinstance(config, TargetConfig):
        study: StudyData = gather_targets(train, tests, None, config)
        made = target_folds(study.train_manifest, config)
    else:
        study = gather(train, tests, None, config)
        made = outer_folds(study.train_manifest, config)
    fold = made.assign(effective_groups(study.train_manifest))
    leaks = audit(study, fold, None, config, images=remember, progress=progress)
    return TrainingData(clustered(study, leaks.near), made, fold, leaks)


def use_of_rows(data: TrainingData, fold: int, recipe: Recipe, labels: Labels) -> np.ndarray:
    """What each train row is for in the training of a fold's model: object (n,).

    "training"; "validation", which chooses the epoch; "held out", the fold where an inner fold of the
    training rows chooses (`choose_on = "inner"`: of five, or as many as can be made, of whole groups and
    stratified, the first). Raises InvalidRequest where no inner folds can be made.
    """
    use = np.where(data.fold == fold, "validation", "training").astype(object)
    if recipe.choose_on != "inner":
        return use
    others, y = data.fold != fold, data.study.train.y
    groups = effective_groups(data.study.train_manifest)[others]
    names = np.full(len(groups), "any value") if labels.targets else np.asarray(labels.classes)[y[others]]
    made = folds_of(
        names.astype(object),
        groups,
        exactly=None if labels.classes else min(MOST_FOLDS, len(np.unique(groups))),
        seed=recipe.seed,
        what=f"inner folds of fold {fold}, from the rows of the other folds",
        fix='set choose_on = "fold" or "none"',
    )
    use[~others] = "held out"
    use[np.flatnonzero(others)[made.assign(groups) == 1]] = "validation"
    return use


def config_of(labels: Labels, **settings: Any) -> ProbeConfig | TargetConfig:
    """The settings of rows, folds and intervals, for classes or for numbers."""
    if not labels.targets:
        return ProbeConfig(**settings)
    return TargetConfig(**{k: v for k, v in settings.items() if k not in ("positive", "one_vs_rest")})


def with_hashes(manifest: Manifest) -> Manifest:
    """The manifest with a content hash in every row; images whose hash is not known are read."""
    hashes, known = resolve(manifest)
    if known.all():
        return manifest
    source = open_source(manifest)
    missing = np.flatnonzero(~known)
    with ThreadPoolExecutor(4) as pool:
        digests = pool.map(lambda i: content_hash(source.read(int(i))), missing)
        hashes[missing] = [np.frombuffer(one, np.uint8) for one in digests]
    table = manifest.table.assign(content_hash=hex_hashes(hashes))
    return Manifest(manifest.header, table, manifest.root)


def patches_of(
    manifest: Manifest, labels: np.ndarray | None, *, crop: float = 1.0, votes: np.ndarray | None = None
) -> Patches:
    """The rows of a manifest as the loop reads them; decoded once and kept where they are small enough.

    labels, votes : see `Patches`; labels None where they are not known; crop : central fraction of each side
    """
    source = open_source(manifest)
    ids = manifest.table["patch_id"].tolist()
    values = np.full(len(ids), np.nan, np.float32) if labels is None else labels
    if values.ndim == 1:
        values = values.astype(np.float32)
    patches = Patches(
        ids,
        values,
        lambda i: np.ascontiguousarray(crop_pixels(source.read(i), crop)),
        votes,
        manifest.table["domain"].tolist(),
    )
    if not ids or len(ids) * patches.read(0).nbytes > IN_MEMORY_BYTES:
        return patches
    with ThreadPoolExecutor(4) as pool:
        kept = list(pool.map(patches.read, range(len(ids))))
    return replace(patches, read=kept.__getitem__)


def chosen_folds(folds: Folds, only: Sequence[int] | None) -> list[int]:
    """The fold numbers to train, 1..K. Raises InvalidRequest for one that does not exist."""
    known = list(range(1, folds.n_splits + 1))
    unknown = sorted(set(only or []) - set(known))
    if unknown:
        raise InvalidRequest(f"fold {unknown} does not exist; {folds.name!r} has 1 to {folds.n_splits}")
    return sorted(set(only)) if only else known

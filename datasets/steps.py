"""The data sets of a study: which exist, their manifests, and a digest of their rows."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..errors import InvalidRequest
from ..steps import Step
from .declarations import load_declaration, names
from .hashes import look_up
from .manifest import Manifest, load_manifest

# columns that a result depends on
COLUMNS = ("patch_id", "label", "group", "domain", "split", "content_hash", "votes_positive", "votes_total")


class Sets:
    """The data sets of a study that exist, the training set first; manifests are read once.

    paths : the name that the study has for a data set -> its manifest's file
    train : one of the names
    """

    def __init__(self, paths: Mapping[str, Path], *, train: str) -> None:
        self.paths = {name: path for name, path in paths.items() if path.exists()}
        self.manifests = {name: load_manifest(path) for name, path in self.paths.items()}
        self.train_name = train

    @property
    def train(self) -> Manifest:
        return self.manifests[self.train_name]

    @property
    def tests(self) -> list[Manifest]:
        return [manifest for name, manifest in self.manifests.items() if name != self.train_name]

    def content_hashes(self, bank: Path) -> list[np.ndarray | None]:
        """The content hashes of each data set: uint8 (n, 16); None where some are unknown or out of date."""
        index = None if "://" in str(bank) else bank / "hashes"
        known_rows = [look_up(manifest, index) for manifest in self.manifests.values()]
        return [
            known.hashes if known.known.all() and not known.changed.any() else None for known in known_rows
        ]

    def digest(self, bank: Path) -> str:
        """Of the columns that a result depends on, in all data sets, and of the images as they are now."""
        digest = hashlib.sha256()
        for (name, manifest), hashes in zip(self.manifests.items(), self.content_hashes(bank), strict=True):
            digest.update(name.encode())
            for column in COLUMNS:
                if column in manifest.table:
                    digest.update("\0".join(map(str, manifest.table[column])).encode())
            if hashes is not None:  # None: of a plan, images that nobody has read yet
                digest.update(hashes.tobytes())
        return digest.hexdigest()


def plan_data(paths: Mapping[str, Path], *, train: str, study: str) -> tuple[Sets, list[Step]]:
    """The data sets and a step for each. Raises InvalidRequest where the training set does not exist."""
    absent = {step.title: step for step in absent_data(paths)}
    if train in absent:
        raise InvalidRequest(f"the study {study} trains on {train}: {absent[train].why}")
    sets, steps = Sets(paths, train=train), []
    for name in paths:
        if name in sets.manifests:
            title = f"{name} ({len(sets.manifests[name])} patches)"
            steps.append(Step(kind="data", title=title, state="cached"))
        else:
            steps.append(absent[name])
    return sets, steps


def absent_data(paths: Mapping[str, Path]) -> list[Step]:
    """A blocked step for each data set without a manifest, which says how to get it."""
    return [
        Step(kind="data", title=name, state="blocked", why=f"{path} does not exist{_way(name, path)}")
        for name, path in paths.items()
        if not path.exists()
    ]


def _way(name: str, path: Path) -> str:
    """Size and licence of a declared data set, and what makes its manifest, a line each."""
    if name not in names():
        return f". Fix: correct its path, or: patchbank datasets build BUILDER --out {path}"
    declared = load_declaration(name)
    size = f"{declared.size / 1e9:.3g} GB" if declared.size else "size unknown"
    ways = [f"patchbank datasets fetch {name} --to DIR"] if declared.archives else []
    ways += [declared.access] if declared.access else []
    ways.append(f"patchbank datasets build {name} --root DIR --out {path}")
    return "\n  ".join([f" ({size}; {declared.short_licence}). Fix:", *ways])

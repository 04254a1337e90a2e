"""Folds are data: which fold (1..n_splits) each group belongs to, in a file with a name.

A splitter's result may change with its library's version (StratifiedGroupKFold's did), so patchbank never
stores "the folds of seed 42": it stores the folds. `make_folds` uses nothing but integers and BLAKE2b, so
that it gives the same folds wherever and whenever it runs.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from operator import add, mul, sub
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import InvalidRequest, ManifestError
from ..settings import SHIPPED, Settings, write_toml
from .manifest import Manifest, listed, parsed, read_toml

FORMAT = "patchbank-folds"
FORMAT_VERSION = 1
REFINED_GROUPS = 500  # above this many groups the greedy start is even enough and swaps are slow


class Folds(Settings):
    """fold_of_group: group name -> fold, 1..n_splits. dataset: whose groups they are ("" = anybody's).

    Raises InvalidSettings with every fault.
    """

    name: str
    dataset: str = ""
    made_with: str = ""
    n_splits: int
    fold_of_group: dict[str, int]

    def faults(self) -> Iterable[str]:
        if not {"n_splits", "fold_of_group"} <= self.model_fields_set:
            return
        odd = [group for group, fold in self.fold_of_group.items() if fold not in range(1, self.n_splits + 1)]
        empty = set(range(1, self.n_splits + 1)) - set(self.fold_of_group.values())
        if odd or empty or self.n_splits < 2:
            yield (
                f"the folds must be 1..n_splits (= {self.n_splits}, at least 2) and none may be empty; "
                f"empty: {sorted(empty)}, outside: {odd[:8]}"
            )

    def assign(self, groups: Sequence[str] | np.ndarray | pd.Series) -> np.ndarray:
        """int64, (n,): the fold (1..n_splits) of each row. Raises ManifestError for groups without a fold."""
        column = pd.Series(np.asarray(groups, dtype=object))
        folds = column.map(dict(self.fold_of_group))
        lost = sorted({str(group) for group in column[folds.isna()]})
        if lost:
            raise ManifestError(
                f"folds {self.name!r} do not know {len(lost)} of the groups: {', '.join(map(repr, lost[:8]))}"
                f"{' ...' if len(lost) > 8 else ''}; make folds for this data set with `patchbank "
                "datasets folds make`."
            )
        return folds.to_numpy(dtype=np.int64)

    def save(self, file: str | os.PathLike[str]) -> Path:
        """Write FILE.toml (atomically); returns its path."""
        file = Path(file)
        if file.suffix != ".toml":
            raise ManifestError(f"folds are saved as NAME.toml, not as {file.name!r}.")
        of_group = dict(sorted(self.fold_of_group.items()))
        said = self.model_dump() | {"fold_of_group": of_group}
        return write_toml(file, {"format": FORMAT, "format_version": FORMAT_VERSION, **said})


def effective_groups(manifest: Manifest) -> np.ndarray:
    """object (str), (n,): what is kept together in folds, and resampled as one in intervals.

    A row's group, where it is known. Rows without one are clusters of equal content: those that have the same
    `content_cluster` (near-identical images), else the same content_hash, get the group that another row of
    the cluster has, or the patch_id of the cluster's first row; a row like no other is its own group.
    That is less than what belongs together: `Manifest.groups_known` says whether any group is known.
    """
    table = manifest.table
    codes, names = pd.factorize(table["group"])
    named = np.asarray(names, dtype=object)[codes]  # rows of a group share one string
    unknown = named == ""
    if not unknown.any():
        return named
    key = table["patch_id"]
    for column in ("content_hash", "content_cluster"):  # the last that is known decides
        if column in table.columns:
            key = key.where(table[column] == "", f"{column} " + table[column])
    cluster = pd.Series(pd.factorize(key)[0])
    # of each cluster the first group that is known, else the patch_id of its first row
    first = pd.Series(named).where(~unknown).groupby(cluster).first()
    lead = cluster.drop_duplicates()
    own = pd.Series(table["patch_id"].to_numpy(dtype=object)[lead.index], index=lead.to_numpy())
    of_cluster = first.where(first.notna(), own)
    named[unknown] = of_cluster.to_numpy(dtype=object)[cluster[unknown]]
    return named


def load_folds(name_or_path: str | os.PathLike[str]) -> Folds:
    """Folds by the name of a shipped file ("paper", "balanced") or from a TOML file.

    Raises ManifestError: no such name (the message lists what there is), no fold file, faulty content.
    """
    text = os.fspath(name_or_path)
    path = Path(text)
    if path.suffix != ".toml" and not path.exists():
        shipped = sorted(file.stem for file in (SHIPPED / "folds").glob("*.toml"))
        if text not in shipped:
            raise ManifestError(
                f"no folds are called {text!r}; shipped are {shipped}, or give the path of a .toml."
            )
        path = SHIPPED / "folds" / f"{text}.toml"
    document = read_toml(path, FORMAT, [FORMAT_VERSION], "a fold file")
    del document["format"], document["format_version"]
    return parsed(Folds, {"name": path.stem, **document}, str(path))


def folds_for(
    manifest: Manifest, folds: str | int | os.PathLike[str] = "balanced", *, seed: int = 0
) -> Folds:
    """The folds to use for a manifest's rows: a shipped name, a file, or a number of folds to make.

    "balanced" means `make_folds(..., n_splits=5, seed=0)`, for any data set; for ami-br the result is the
    shipped file, frozen. An int makes that many.

    Raises ManifestError where named folds do not know a group of the manifest.
    """
    if isinstance(folds, int):
        name, n_splits = f"balanced-{folds}-seed{seed}", folds
    elif folds == "balanced" and manifest.header.name != "ami-br":
        name, n_splits = "balanced", 5
    else:
        loaded = load_folds(folds)
        loaded.assign(effective_groups(manifest))  # refuse before any work
        return loaded
    labels, groups = manifest.table["label"].to_numpy(dtype=object), effective_groups(manifest)
    return make_folds(labels, groups, n_splits=n_splits, seed=seed, name=name, dataset=manifest.header.name)


def make_folds(
    labels: Sequence[str] | np.ndarray,
    groups: Sequence[str] | np.ndarray,
    *,
    n_splits: int = 5,
    seed: int = 0,
    name: str = "balanced",
    dataset: str = "",
) -> Folds:
    """Grouped, stratified, seeded folds: no group in two folds, each fold with its share of rows and classes.

    labels, groups : str, (n,); the label "" (unknown) is not a class. Minimises the sum over folds and
    classes of (rows of the class in the fold / rows of the class)^2, and of the same for all rows: a greedy
    start (large groups first, ties in an order that the seed shuffles), then moves and swaps of groups as
    long as one of them helps. All in integers: the result depends on the arguments alone.

    Raises InvalidRequest where a fold would miss a class (a class in fewer groups than folds).
    """
    labels, groups = np.asarray(labels, dtype=object), np.asarray(groups, dtype=object)
    if labels.shape != groups.shape or labels.ndim != 1 or n_splits < 2:
        raise InvalidRequest(
            f"labels {labels.shape} and groups {groups.shape} must be one column each, with n_splits >= 2."
        )
    counts = pd.crosstab(pd.Series(groups, name="group"), pd.Series(labels, name="label"))
    rows_of = counts.sum(axis=1)
    counts = counts.drop(columns="", errors="ignore")
    fewest = min([len(counts), *(counts > 0).sum().tolist()])
    if fewest < n_splits:
        raise _refusal(labels, groups, n_splits, fewest)

    names = [str(group) for group in counts.index]
    # column 0: all rows; then one column a class. Python integers: no overflow, no rounding
    sizes = [
        [rows, *map(int, row)] for rows, row in zip(rows_of.tolist(), counts.to_numpy().tolist(), strict=True)
    ]
    totals = [sum(column) for column in zip(*sizes, strict=True)]
    weights = [(1 << 80) // (total * total) for total in totals]
    weighted = [[w * s for w, s in zip(weights, size, strict=True)] for size in sizes]

    def shuffled(group: str) -> bytes:
        return hashlib.blake2b(f"{seed}\0{group}".encode(), digest_size=16).digest()

    order = sorted(range(len(names)), key=lambda g: (-_dot(weighted[g], sizes[g]), shuffled(names[g])))
    search = _Search(order, sizes, weighted, n_splits)
    if len(names) <= REFINED_GROUPS:
        while search.improve():
            pass
    fold, load = search.fold, search.load
    if not all(all(of_fold) for of_fold in load):
        raise _refusal(labels, groups, n_splits, fewest)
    of_group = {names[g]: fold[g] + 1 for g in range(len(names))}
    made = f"patchbank make_folds, version 1, n_splits={n_splits}, seed={seed}"
    return Folds(name=name, n_splits=n_splits, fold_of_group=of_group, dataset=dataset, made_with=made)


def _refusal(labels: np.ndarray, groups: np.ndarray, n_splits: int, fewest: int) -> InvalidRequest:
    """fewest : groups of the rarest class."""
    possible = min(fewest, n_splits - 1)
    fix = f"make {possible} folds" if possible > 1 else "label more groups"
    return InvalidRequest(
        f"{n_splits} folds cannot be made: {too_few(labels, groups, n_splits)}. Fix: {fix}."
    )


def too_few(labels: np.ndarray, groups: np.ndarray, n_splits: int) -> str:
    """Why so many folds cannot be made: the classes that lie in fewer groups, and these groups."""
    short = [
        f"{label!r} occurs in {len(found)} groups ({listed(map(repr, found))})"
        for label in sorted({*labels} - {""})
        if len(found := sorted({*groups[labels == label]})) < n_splits
    ]
    why = (
        "; ".join(short)
        or f"the {len({*groups})} groups cannot be assigned so that every fold has every class"
    )
    return f"each needs a group of every class, and {why}"


class _Search:
    """Groups in folds; load[f] is the sum of its groups' sizes, in integers."""

    def __init__(
        self, order: list[int], sizes: list[list[int]], weighted: list[list[int]], n_splits: int
    ) -> None:
        self.order, self.sizes, self.weighted = order, sizes, weighted
        self.load = [[0] * len(sizes[0]) for _ in range(n_splits)]
        self.fold = [0] * len(order)
        for g in order:  # (load + size)^2 - load^2 differs between folds by 2 * load * size alone
            best = min(range(n_splits), key=lambda f: (_dot(self.load[f], weighted[g]), self.load[f][0], f))
            self.load[best] = [x + y for x, y in zip(self.load[best], sizes[g], strict=True)]
            self.fold[g] = best

    def improve(self) -> bool:
        """One pass of moves and swaps, each only if the objective falls; whether any did."""
        changed = False
        for i, g in enumerate(self.order):
            for b in range(len(self.load)):
                changed |= b != self.fold[g] and self._shift(b, g, None)
            for h in self.order[i + 1 :]:
                changed |= self.fold[h] != self.fold[g] and self._shift(self.fold[h], g, h)
        return changed

    def _shift(self, b: int, g: int, h: int | None) -> bool:
        """Move g to the fold b, and h (of b) to g's, if that helps."""
        a, size, weight = self.fold[g], self.sizes[g], self.weighted[g]
        if h is not None:
            size = list(map(sub, size, self.sizes[h]))
            weight = list(map(sub, weight, self.weighted[h]))
        # moving `size` from a to b changes the objective by 2 * (load[b] - load[a] + size) * size
        gap = map(add, map(sub, self.load[b], self.load[a]), size)
        if _dot(gap, weight) >= 0:
            return False
        self.load[a] = [x - s for x, s in zip(self.load[a], size, strict=True)]
        self.load[b] = [x + s for x, s in zip(self.load[b], size, strict=True)]
        self.fold[g] = b
        if h is not None:
            self.fold[h] = a
        return True


def _dot(a: Iterable[int], b: Iterable[int]) -> int:
    return sum(map(mul, a, b))

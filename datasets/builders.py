"""From a user's files to a manifest: a builder makes the table, then every image is decoded once.

So unreadable files are known now and not after hours of extraction, and the content hashes are in the
manifest.
"""

import inspect
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import ImageError, InvalidRequest, ManifestError
from ..files import cores
from ..settings import near, nearest, not_one_of
from ..terminal import progress_bar
from .arrays import hdf5_table, npz_table, parquet_table
from .clusters import (
    MOST,
    MOST_PAIRS,
    SIDE,
    SMALL,
    TooManyAlikeError,
    candidates,
    clusters,
    confirmed,
    grey,
    small_grey,
)  # fmt: skip
from .declarations import load_declaration, names
from .declared import build_declared
from .hashes import hex_hashes
from .images import content_hash
from .layouts import SUFFIXES, csv_table, folder_table
from .manifest import KNOWN_COLUMNS, MOST_CLASSES, Header, Manifest, is_text, listed
from .regions import wsi_table
from .sources import open_source
from .tables import FAULT, Say
from .values import SPLITS, read_values, spelling_of

_GROUP_KIND = re.compile("slide|patient|case|subject|donor|specimen|biopsy", re.IGNORECASE)
FEW_CLASSES = 20  # more than these, in fewer than twice as many rows, neither
TOGETHER = 3  # rows with one fault that are named one a line; more are one line
BLOCK = 64  # rows that a thread decodes in one go
# each: (root, *, dataset, options) -> (table, the folder that its paths are relative to)
TABLES: dict[str, Callable[..., tuple[pd.DataFrame, Path]]] = {
    "folder": folder_table,
    "from-csv": csv_table,
    "hdf5": hdf5_table,
    "npz": npz_table,
    "parquet": parquet_table,
    "wsi": wsi_table,
}


@dataclass(frozen=True, kw_only=True)
class Description:
    """What the user says of a data set of their own.

    dataset: its name. positive: of two classes; may be left out otherwise. classes: the order of the labels,
        by default sorted (numbers as numbers). ordered: they are grades; needs `classes`, unless the labels
        are numbers. targets: columns of numbers to be predicted, instead of labels. domain, split: for the
        rows that have none of their own. mapping, strip: see `values.read_values`.
    mpp: micrometres a pixel of the patches, 0: not known; regions of slides are read at it.
    group_kind: what a group is; by default the name of the column that the groups come from, if that is
        "slide" or "patient" (or the like), else "group".
    """

    dataset: str
    positive: str = ""
    classes: Sequence[str] = ()
    ordered: bool = False
    targets: Sequence[str] = ()
    domain: str = ""
    split: str = ""
    licence: str = "not stated"
    source: str = "not stated"
    description: str = ""
    version: str = "1"
    mpp: float = 0.0
    group_kind: str = ""
    mapping: Mapping[str, str] = field(default_factory=dict)
    strip: bool = False


def build_manifest(
    name: str,
    root: str | os.PathLike[str],
    *,
    hashes: bool | None = None,
    on_error: str = "fail",
    on_skip: Callable[[str, str], None] | None = None,
    on_note: Callable[[str], None] | None = None,
    workers: int | None = None,
    progress: bool = True,
    **options: Any,
) -> Manifest:
    """Build a manifest; nothing is saved.

    name: a declared data set (a name of `declarations.names`, or a TOML file), or a way to describe your own:
        folder, from-csv, hdf5, npz, parquet, wsi.
    root: where its files are; the manifest's paths are relative to it.
    hashes: decode every image and fill content_hash; by default yes, but for whole-slide images (extraction
        fills an index then).
    on_error: "fail" raises an ImageError whose notes list all unreadable images; "skip" leaves them out and
        calls on_skip(patch_id, message) for each (or warns).
    on_note: called with a sentence for everything that was read as something else than it says, or is easily
        misunderstood (or warns).
    options: those of `Description`, and of the table's function (`TABLES`); a declared data set has only
        `dataset`, another name.

    Raises InvalidRequest for an unknown name or option (suggesting a near one), ManifestError for faults of
    the files and tables, ImageError for unreadable images.
    """
    if on_error not in ("fail", "skip"):
        raise InvalidRequest(f"on_error = {on_error!r} is not known; it is 'fail' or 'skip'.")
    say = on_note or (lambda note: warnings.warn(note, stacklevel=4))
    if name in TABLES:
        manifest = _of_files(name, Path(root), options, on_error, on_skip, say)
    else:
        manifest = _of_declaration(name, Path(root), options, say)
    if hashes is None:
        hashes = name != "wsi"
    if not hashes:
        return manifest
    small = (
        None if (manifest.table["group"] != "").all() else np.zeros((len(manifest), SMALL, SMALL), np.uint8)
    )
    digests, failures = hash_images(manifest, small=small, workers=workers, progress=progress)
    hashed = _with_hashes(manifest, digests, failures, on_error, on_skip)
    if small is None:
        return hashed
    readable = np.ones(len(small), bool)
    readable[[i for i, _ in failures]] = False
    return _with_clusters(hashed, small[readable], workers, progress, say)


def _of_declaration(name: str, root: Path, options: dict[str, Any], say: Say) -> Manifest:
    if not name.endswith(".toml") and name not in names():
        builders = f"; builders are {', '.join(TABLES)}; `datasets ls` lists sets."
        hint = near(name, [*names(), *TABLES]) or builders
        raise InvalidRequest(f"no builder or data set is called {name!r}{hint}")
    declaration = load_declaration(name)
    _refuse_unknown(name, options, ["dataset"])
    return build_declared(declaration, root, name=options.get("dataset", ""), say=say)


def _of_files(
    name: str,
    root: Path,
    options: dict[str, Any],
    on_error: str,
    on_skip: Callable[[str, str], None] | None,
    say: Say,
) -> Manifest:
    """By a function of `TABLES`, without rows of files that it cannot read."""
    describing = [field.name for field in fields(Description)]
    parameters = inspect.signature(TABLES[name]).parameters
    own = [key for key in parameters if key not in ("root", "say", "lose", "free")]
    _refuse_unknown(name, options, [*describing, *own])
    if not options.get("dataset"):
        raise InvalidRequest(f"building {name!r} needs a name for the data set: dataset=NAME (--name NAME).")
    description = Description(**{key: options[key] for key in describing if key in options})
    given = {key: options[key] for key in own if key in options}
    lost: list[tuple[str, str]] = []
    if "lose" in parameters:
        given["lose"] = lambda file, why: lost.append((file, why))
    table, base = TABLES[name](root, say=say, **given)
    table = _without_faulty(table, lost, description.dataset, on_error, on_skip)
    return describe_table(table, base, description, _group_column(name, table, options), say)


def hash_images(
    manifest: Manifest,
    *,
    small: np.ndarray | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Decode every image. Returns (hashes uint8 (n, 16), failures: (row, message) in the rows' order).

    small : uint8 (n, 16, 16), to be filled with thumbnails for `clusters.candidates`
    """
    hashes = np.zeros((len(manifest), 16), np.uint8)

    def use(i: int, pixels: np.ndarray) -> None:
        hashes[i] = np.frombuffer(content_hash(pixels), np.uint8)
        if small is not None:
            small[i] = small_grey(pixels)

    return hashes, decode_all(manifest, use, workers=workers, progress=progress)


def decode_all(
    manifest: Manifest,
    use: Callable[[int, np.ndarray], None],
    *,
    workers: int | None = None,
    progress: bool = True,
    rows: Iterable[int] | None = None,
) -> list[tuple[int, str]]:
    """Call use(row, pixels) for every row, in several threads; returns (row, message) of unreadable ones."""
    source = open_source(manifest)
    wanted = list(range(len(manifest)) if rows is None else rows)
    failures: list[tuple[int, str]] = []

    def block(part: list[int]) -> int:
        for i in part:
            try:
                use(i, source.read(i))
            except ImageError as error:
                failures.append((i, str(error)))
        return len(part)

    pool = ThreadPoolExecutor(workers or min(16, cores() + 1))
    name = f"decode {manifest.header.name}"
    with progress_bar(total=len(wanted), shown=progress, desc=name, unit="img") as bar:
        try:
            for done in pool.map(block, [wanted[k : k + BLOCK] for k in range(0, len(wanted), BLOCK)]):
                bar.update(done)
        finally:  # after Ctrl-C the blocks that wait are not decoded first
            pool.shutdown(wait=True, cancel_futures=True)
            source.close()
    return sorted(failures)


def _group_column(name: str, table: pd.DataFrame, options: dict[str, Any]) -> str:
    """Where the groups come from: the name of their column, or "slide" for regions that name no others."""
    if name == "wsi" and table["group"].equals(table["slide"].rename("group")):
        return "slide"
    return str(options.get("columns", {}).get("group", ""))


def describe_table(
    table: pd.DataFrame,
    base: Path,
    description: Description,
    group_column: str,
    say: Callable[[str], None],
) -> Manifest:
    """The manifest of a user's own table: defaults filled, ids prefixed with the data set's name."""
    name = description.dataset
    table = read_values(
        table,
        classes=description.classes,
        positive=description.positive,
        mapping=description.mapping,
        strip=description.strip,
        say=say,
    )
    ids = table["patch_id"].astype(str)
    table["patch_id"] = ids.where(ids.str.startswith(f"{name}/"), f"{name}/" + ids)
    for column, value in (("domain", description.domain), ("split", description.split)):
        if value:
            given = table[column] if column in table.columns else pd.Series("", index=table.index)
            table[column] = given.where(given != "", value)
    if "split" in table.columns:
        _tell_splits(set(table["split"]), say)
    if "path" in table.columns and (again := table["path"].duplicated(keep=False)).any():
        say(f"{int(again.sum())} rows name a file that another row names too: {listed(table['path'][again])}")
    if description.targets:
        table = _with_targets(table, description, say)
    others = [name for name in table.columns if name not in (*KNOWN_COLUMNS, FAULT, "slide")]
    if others and "label" not in table.columns and not description.targets:
        say(
            "no row has a label: there is no column 'label'; if it is one of "
            f"{listed(map(repr, others))}: --column label=NAME, or --targets NAME for a number to predict"
        )
    classes = _classes(table, description)
    positive = _positive(classes, table, description, say)
    kind = _GROUP_KIND.search(group_column)
    header = Header(
        name=name,
        version=description.version,
        classes=classes,
        positive=positive,
        ordered=description.ordered,
        targets=tuple(description.targets),
        licence=description.licence,
        source=description.source,
        description=description.description,
        mpp=float(description.mpp or 0),
        group_kind=description.group_kind or (kind[0].lower() if kind else "group"),
    )
    return Manifest(header, table, base)


def _tell_splits(splits: Set[str], say: Callable[[str], None]) -> None:
    """Says which splits are none of ours, and what they may have been meant to be."""
    others = splits - {"", *SPLITS.values()}
    if others and "train" not in splits:
        say(
            f"no split is called 'train', which folds are made of; there are "
            f"{listed(map(repr, sorted(others)))}: rename one with --map split:OLD=train"
        )
    for word in sorted(others):
        alike = nearest(word.casefold(), SPLITS, cutoff=0.7)
        if alike and not word.casefold().startswith(alike):
            meant = SPLITS[alike]
            say(f"the split {word!r} is a set by itself; if {meant!r} is meant: --map split:{word}={meant}")


def _with_targets(table: pd.DataFrame, description: Description, say: Callable[[str], None]) -> pd.DataFrame:
    """The table without labels. Raises ManifestError for targets that it does not have."""
    if description.classes or description.positive or description.ordered:
        raise ManifestError("--targets are numbers; --classes, --positive and --ordered are of labels.")
    columns = [str(name) for name in table.columns]
    if lost := [name for name in description.targets if name not in columns]:
        shown = "; ".join(not_one_of("--targets", name, columns) for name in lost)
        raise ManifestError(f"{description.dataset!r}: {shown}.")
    if "label" in columns and "label" not in description.targets:
        say("labels were left out: the data set has targets")
    return table.drop(columns="label", errors="ignore")


def _classes(table: pd.DataFrame, description: Description) -> tuple[str, ...]:
    """The labels in their order. Raises ManifestError: too many to be classes, no order stated."""
    if description.classes or "label" not in table.columns:
        _refuse_others(table, description)
        return tuple(description.classes)
    rows = table["label"].value_counts().drop("", errors="ignore")
    labels = sorted(str(label) for label in rows.index)
    shown = listed(map(repr, labels[:3]), total=len(labels)) if len(labels) > 3 else ""
    paths = sum("/" in label or label.lower().endswith(SUFFIXES) for label in labels)
    if (
        len(labels) > MOST_CLASSES
        or (len(labels) > FEW_CLASSES and 2 * len(labels) > rows.sum())
        or (len(labels) > 2 and all(label.lower().endswith(SUFFIXES) for label in labels))
    ):
        what = "the labels are paths" if 2 * paths > len(labels) else "the labels look like names or numbers"
        raise ManifestError(
            f"{description.dataset!r} has {len(labels)} classes in {rows.sum()} rows ({shown}): {what}, not "
            "classes. Fix: take another column or folder (--column label=NAME, --layout), or --targets NAME "
            "for a number to predict; if they are classes, list them with --classes."
        )
    numbers = all(label.isdecimal() for label in labels)
    if description.ordered and not numbers:
        raise ManifestError(
            f"--ordered, but the order of {listed(map(repr, labels))} is not stated. Fix: --classes "
            "LOWEST,...,HIGHEST, all of them."
        )
    return tuple(sorted(labels, key=int) if numbers else labels)


def _refuse_others(table: pd.DataFrame, description: Description) -> None:
    """Raises ManifestError for labels that are none of the classes that were stated."""
    if "label" not in table.columns:
        return
    rows = table["label"].value_counts().drop(["", *description.classes], errors="ignore")
    if len(rows):
        shown = listed(f"{label!r} ({count} rows)" for label, count in rows.items())
        first = str(rows.index[0])
        raise ManifestError(
            f"labels outside the classes {list(description.classes)}: {shown}. Fix: add them to --classes, "
            f"join them (--map {first!r}={description.classes[0]!r}), or leave these rows without a label "
            f"(--map {first!r}=)."
        )


def _positive(
    classes: tuple[str, ...], table: pd.DataFrame, description: Description, say: Callable[[str], None]
) -> str:
    """The positive class. Raises ManifestError where there are two classes and it is not stated."""
    positive = description.positive or (classes[0] if len(classes) == 1 else "")
    if positive and not classes:
        raise ManifestError(
            f"--positive {positive!r}, but no row of {description.dataset!r} has a label: say where the "
            f"labels are, for example --column label=NAME or {{label}} in --layout; the columns are "
            f"{list(table.columns)}."
        )
    if len(classes) == 2 and not positive:
        raise ManifestError(
            f"{description.dataset!r} has the classes {list(classes)}: say which is the positive one "
            "(--positive)."
        )
    if positive and positive not in classes:
        alike = [label for label in classes if spelling_of(label) == spelling_of(positive)]
        padded = [label for label in alike if label.strip() == positive.strip()]
        strip = "--strip, or " if padded else ""
        hint = f" Fix: {strip}--positive {(padded or alike)[0]!r}." if alike else ""
        raise ManifestError(f"--positive {positive!r} is not one of the classes {list(classes)}.{hint}")
    if positive and len(classes) > 2:
        rows = table["label"].value_counts()
        rest = ", ".join(f"{c} ({rows.get(c, 0)})" for c in classes if c != positive)
        say(
            f"of more than two classes --positive is only the default of one against the rest: {positive} "
            f"({rows.get(positive, 0)} rows) against {rest}"
        )
    return positive


def _with_hashes(
    manifest: Manifest,
    digests: np.ndarray,
    failures: list[tuple[int, str]],
    on_error: str,
    on_skip: Callable[[str, str], None] | None,
) -> Manifest:
    ids = manifest.table["patch_id"]
    messages = [(str(ids.iat[i]), message) for i, message in failures]
    if messages and (on_error == "fail" or len(messages) == len(manifest)):
        error = ImageError(
            f"{len(messages)} of {len(manifest)} images of {manifest.header.name!r} cannot be read; nothing "
            "was built. Fix or remove them, or leave them out with --on-error skip."
        )
        for line in fault_lines(messages):
            error.add_note(line)
        raise error
    good = np.ones(len(manifest), bool)
    good[[i for i, _ in failures]] = False
    table = manifest.table[good].reset_index(drop=True)
    table["content_hash"] = hex_hashes(digests[good])
    _tell_skipped(messages, on_skip)
    return Manifest(manifest.header, table, manifest.root)


def _with_clusters(
    manifest: Manifest, small: np.ndarray, workers: int | None, progress: bool, say: Callable[[str], None]
) -> Manifest:
    """The manifest with the column content_cluster where near-identical images were found."""
    if len(manifest) > MOST:
        say(f"near-identical images were not looked for: {len(manifest)} rows are more than {MOST}")
        return manifest
    try:
        pairs = candidates(small)
    except TooManyAlikeError:
        say(f"near-identical images were not looked for: more than {MOST_PAIRS} pairs look alike")
        return manifest
    if not len(pairs):
        return manifest
    rows = np.unique(pairs)
    greys = read_greys(manifest, rows, workers=workers, progress=progress)
    first = clusters(confirmed(pairs, rows, greys), len(manifest))
    together = np.bincount(first, minlength=len(first))[first] > 1
    if not together.any():
        return manifest
    ids = manifest.table["patch_id"].to_numpy(dtype=object)
    names = np.where(together, ids[first], "")
    say(
        f"{together.sum()} rows are identical or near-identical to others; their "
        f"{len(set(first[together]))} clusters are kept together in folds"
    )
    return Manifest(manifest.header, manifest.table.assign(content_cluster=names), manifest.root)


def read_greys(
    manifest: Manifest, rows: np.ndarray, *, workers: int | None = None, progress: bool = True
) -> np.ndarray:
    """uint8 (len(rows), 128, 128): `clusters.grey` of each of these rows (sorted); 0 where unreadable."""
    greys = np.zeros((len(rows), SIDE, SIDE), np.uint8)

    def use(i: int, pixels: np.ndarray) -> None:
        greys[np.searchsorted(rows, i)] = grey(pixels)

    decode_all(manifest, use, rows=rows.tolist(), workers=workers, progress=progress)
    return greys


def fault_lines(faults: Sequence[tuple[str, str]]) -> list[str]:
    """A line for each fault of (patch_id, "PATH: what is wrong"); many with the same fault are one line."""
    families: dict[str, list[tuple[str, str]]] = {}
    for patch_id, message in faults:
        families.setdefault(message.partition(": ")[2] or message, []).append((patch_id, message))
    lines = []
    for family in families.values():
        if len(family) > TOGETHER:
            lines.append(f"{len(family)} rows ({listed(name for name, _ in family)}), first: {family[0][1]}")
        else:
            lines += [f"{patch_id}: {message}" for patch_id, message in family]
    return lines


def _tell_skipped(messages: Sequence[tuple[str, str]], on_skip: Callable[[str, str], None] | None) -> None:
    if on_skip is not None:
        for patch_id, message in messages:
            on_skip(patch_id, message)
    elif messages:
        warnings.warn(f"left out: {listed(f'{a}: {b}' for a, b in messages)}", stacklevel=4)


def _without_faulty(
    table: pd.DataFrame,
    lost: Sequence[tuple[str, str]],
    name: str,
    on_error: str,
    on_skip: Callable[[str, str], None] | None,
) -> pd.DataFrame:
    """The rows that can be used. Raises ManifestError where others are not to be left out, naming them.

    lost : (file, fault) of files of many patches, of which the table has no rows
    """
    faults = table[FAULT] if FAULT in table.columns else pd.Series("", index=table.index)
    unwritable = ~(table["path"].map(is_text) & table["patch_id"].map(is_text))
    faults = faults.mask(unwritable, "the name is not UTF-8; rename the file")
    table = table.drop(columns=FAULT, errors="ignore")
    bad = np.flatnonzero(faults != "").tolist()
    if not bad and not lost:
        return table
    if on_error == "fail" or len(bad) == len(table):
        families: dict[str, list[str]] = {}
        for i in bad:
            families.setdefault(str(faults.iat[i]), []).append(f"row {i + 1} ({table['path'].iat[i]!r})")
        messages = [f"{len(rows)} rows: {fault}: {listed(rows)}" for fault, rows in families.items()]
        messages += [f"the file {file!r}: {fault}" for file, fault in lost]
        raise ManifestError(
            f"{name!r}: {'; '.join(messages)}. Fix them, or leave them out with --on-error skip."
        )
    ids = table["patch_id"].astype(str)
    skipped = [(f"{name}/{file}", f"the whole file {file!r}: {fault}") for file, fault in lost]
    skipped += [(f"{name}/{ids.iat[i]}", f"{table['path'].iat[i]!r}: {faults.iat[i]}") for i in bad]
    _tell_skipped(skipped, on_skip)
    return table[(faults == "").to_numpy()].reset_index(drop=True)


def _refuse_unknown(name: str, options: dict[str, Any], known: list[str]) -> None:
    for option in options:
        if option not in known:
            raise InvalidRequest(f"the builder {name!r}: {not_one_of('option', option, known)}.")

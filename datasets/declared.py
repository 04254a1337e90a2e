"""From a declaration and its files to a table: parts are read, tables joined, columns filled, rows chosen."""

import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from ..errors import InvalidRequest, ManifestError
from ..settings import near
from .arrays import hdf5_table, npz_table, parquet_table
from .declarations import (
    OPTIONS,
    Column,
    Declaration,
    Expression,
    Join,
    Part,
    compared,
    doubtful,
    filled,
    named_in,
)
from .expression import read_expression, read_genes
from .layouts import csv_table, folder_table
from .manifest import KNOWN_COLUMNS, Manifest, listed
from .sources import MARK
from .tables import FAULT, Say, is_hidden, read_user_table
from .values import SPLITS

DEPTH = 4  # folders below the root in which a part is looked for; archives unpack to one or two levels
BUILDERS: dict[str, Callable[..., tuple[pd.DataFrame, Path]]] = {
    "folder": folder_table,
    "from-csv": csv_table,
    "hdf5": hdf5_table,
    "npz": npz_table,
    "parquet": parquet_table,
}


def build_declared(declaration: Declaration, root: Path, *, name: str = "", say: Say) -> Manifest:
    """The manifest of a declared data set, without content hashes.

    name : another name for the data set
    say : called with a sentence for all that was read as something else, and for declared numbers that differ

    Raises ManifestError with what is wrong: files and rows that are missing, in no table, or contradict one.
    """
    try:
        return _build(declaration, root, name, say)
    except (ManifestError, InvalidRequest) as error:
        if declaration.access:
            error.add_note(f"What it takes to get {declaration.name}: {declaration.access}")
        raise


def _build(declaration: Declaration, root: Path, name: str, say: Say) -> Manifest:
    if not root.is_dir():
        raise ManifestError(f"the root {root} is not a folder.")
    several = len({part.root for part in declaration.parts}) > 1
    table = pd.concat(
        [
            _part(declaration, part, place, root, several=several, say=say)
            for part in declaration.parts
            if (place := _place(root, part, declaration)) is not None
        ],
        ignore_index=True,
    ).fillna("")
    faults = _refuse_faulty(table)
    tables = []
    for join in declaration.joins:
        file = declaration.folder / join.table if join.beside else _table_file(root, join.table, declaration)
        tables.append(file.name)
        table, found = _joined(table, join, file, say)
        faults += found
    for column, rule in declaration.columns.items():
        table, found = _with_column(table, column, rule)
        faults += found
    table = _only(table, declaration)
    targets: tuple[str, ...] = ()
    if declaration.expression is not None and not faults:
        table, targets = _with_expression(table, declaration, declaration.expression, root)
    for column in declaration.needed:
        lost = table[column] == "" if column in table else pd.Series(True, index=table.index)
        if lost.any() and (column != "label" or declaration.classes):
            where = f" (in none of {listed(tables)})" if tables else ""
            faults.append(f"{lost.sum()} images have no {column}{where}: {listed(table['file_name'][lost])}")
    if declaration.classes and "label" in table:
        odd = table[~table["label"].isin(["", *declaration.classes])]
        faults += [f"label {label!r}, which is none of the classes, in {listed(rows['file_name'])}"
                   for label, rows in odd.groupby("label")]  # fmt: skip
    if faults:
        raise ManifestError(f"{root}: {'; '.join(faults)}.")
    found = () if declaration.classes or "label" not in table else tuple(sorted({*table["label"]} - {""}))
    if declaration.class_count not in (0, len(found)):
        say(f"{len(found)} classes instead of {declaration.class_count} declared: {listed(map(repr, found))}")
    header = declaration.header(name, found, targets)
    ids = table["patch_id"]
    if declaration.patch_id:
        ids = _texts(table, declaration.patch_id)
    table["patch_id"] = f"{header.name}/" + ids.astype(str)
    kept = [*KNOWN_COLUMNS, *declaration.extra, *header.targets]
    if lost := [column for column in declaration.extra if column not in table]:
        raise ManifestError(f"{declaration.name!r}: no column {lost[0]!r}{near(lost[0], table.columns)}.")
    for column in ("split", "label"):
        if column not in table:
            table[column] = ""
    table["split"] = table["split"].map({one: SPLITS.get(one.casefold(), one) for one in {*table["split"]}})
    manifest = Manifest(header, table[[column for column in table if column in kept]], root)
    _tell_differences(declaration, manifest, say)
    return manifest


def _part(
    declaration: Declaration, part: Part, place: Path, root: Path, *, several: bool, say: Say
) -> pd.DataFrame:
    """The rows of one part, all cells texts, with file_name and file_stem; paths are relative to the root."""
    options: dict[str, Any] = {key: getattr(part, key) for key in OPTIONS[part.builder]}
    if part.builder == "folder":
        options["free"] = True
    if part.builder == "from-csv":
        options["table"] = _table_file(place if place.is_dir() else root, part.table, declaration, also=root)
    if part.builder in ("hdf5", "npz", "parquet"):
        options["classes"] = declaration.classes
    lost: list[str] = []
    if part.builder in ("hdf5", "parquet"):
        options["lose"] = lambda file, fault: lost.append(f"the file {file!r}: {fault}")
    table, base = BUILDERS[part.builder](place, say=say, **options)
    if lost:
        raise ManifestError(f"{place}: {'; '.join(lost)}.")
    table = table.reset_index(drop=True)
    for column in table:
        if column not in declaration.targets:
            table[column] = table[column].astype(object).where(table[column].notna(), "").map(str)
    names = [path.partition(MARK)[0].rpartition("/")[2] for path in table["path"]]
    table["file_name"], table["file_stem"] = names, [os.path.splitext(name)[0] for name in names]  # noqa: PTH122
    if several and part.root:
        table["patch_id"] = f"{part.root}/" + table["patch_id"]
    inner = base.relative_to(root).as_posix()
    if inner != ".":
        table["path"] = f"{inner}/" + table["path"]
    for column, value in part.values.items():
        table[column] = value
    return table


def _place(root: Path, part: Part, declaration: Declaration) -> Path | None:
    """Where a part is: under the root as declared, the root itself, or deeper down; None: nowhere."""
    wanted = PurePosixPath(part.root)
    if not wanted.parts or (root / wanted).exists():
        return root / wanted
    if Path(os.path.abspath(root)).parts[-len(wanted.parts) :] == wanted.parts:  # noqa: PTH100
        return root
    for folder, subfolders, files in _walk(root):
        if wanted.parts[0] in (*subfolders, *files) and (folder / wanted).exists():
            return folder / wanted
    if part.optional:
        return None
    raise ManifestError(
        f"{root} holds no {part.root}. Fix: give the folder that holds it as --root"
        + (
            f", or get it with `patchbank datasets fetch {declaration.name}`."
            if declaration.archives
            else "."
        )
    )


def _table_file(folder: Path, table: str, declaration: Declaration, *, also: Path | None = None) -> Path:
    for base in filter(None, (folder, also)):
        if (base / table).is_file():
            return base / table
    for inner, _, files in _walk(also or folder):
        if PurePosixPath(table).name in files and (inner / PurePosixPath(table).name).is_file():
            return inner / PurePosixPath(table).name
    raise ManifestError(
        f"{table} is not under {also or folder}; it belongs to {declaration.name} and comes with its images. "
        "Fix: put it there, or give the folder that holds it as --root."
    )


def _walk(root: Path) -> list[tuple[Path, list[str], list[str]]]:
    """(folder, subfolders, files) to a depth of four, shallow ones first; hidden ones are left out."""
    walked = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        depth = len(Path(folder).relative_to(root).parts)
        subfolders[:] = sorted(name for name in subfolders if not is_hidden(name))
        walked.append((depth, folder, list(subfolders), files))
        if depth >= DEPTH:
            subfolders.clear()
    return [(Path(folder), subfolders, files) for _, folder, subfolders, files in sorted(walked)]


def _refuse_faulty(table: pd.DataFrame) -> list[str]:
    """What is wrong with the files of rows, as sentences."""
    faults = []
    if FAULT in table:
        for fault, rows in table[table[FAULT] != ""].groupby(FAULT):
            faults.append(f"{len(rows)} rows have {fault}: {listed(rows['path'])}")
    outside = table["path"].str.contains(r"\A/|(?:\A|/)\.\.(?:/|\Z)")
    if outside.any():
        faults.append(f"paths that leave the root: {listed(table['path'][outside].map(repr))}")
    return faults


def _joined(table: pd.DataFrame, join: Join, file: Path, say: Say) -> tuple[pd.DataFrame, list[str]]:
    """The table with the columns of the other one where they are empty, and what is wrong with it."""
    other = read_user_table(file, say=say)
    wanted = [*join.columns.values(), *join.agree.values(), *_columns_of(join.on)]
    if lost := [column for column in wanted if column not in other]:
        hint = near(lost[0], other.columns) or f"; it has {list(other.columns)}"
        raise ManifestError(f"{file}: there is no column {lost[0]!r}{hint}.")
    other = other.set_index(_texts(other, join.on).to_numpy())
    twice = other.index[other.index.duplicated()]
    if len(twice):
        raise ManifestError(f"{file} names more than once: {listed(sorted({*map(str, twice)}))}.")
    keys = _texts(table, join.key)
    at = other.index.get_indexer(pd.Index(keys))
    matched = at >= 0
    faults = []
    lost = other.index[~other.index.isin(keys)]
    if join.complete and len(lost):
        faults.append(f"{len(lost)} rows of {file.name} have no image: {listed(map(str, lost))}")
    for ours, name in join.agree.items():
        said = other[name].astype(str).to_numpy()[at]
        wrong = matched & (table[ours].to_numpy() != said)
        items = [f"{key} is {mine!r} by its folder and {its!r} in {file.name}" for key, mine, its in
                 zip(keys[wrong], table[ours][wrong], said[wrong], strict=True)]  # fmt: skip
        faults += [f"contradictions: {listed(items)}"] if items else []
    new = {ours: other[name].astype(str).to_numpy()[at] for ours, name in join.columns.items()}
    for column, value in {**new, **join.values}.items():
        old = table[column] if column in table else pd.Series("", index=table.index)
        table[column] = old.mask(matched & (old == ""), value)
    return table, faults


def _with_column(table: pd.DataFrame, column: str, rule: Column) -> tuple[pd.DataFrame, list[str]]:
    old = table[column].astype(str) if column in table else pd.Series("", index=table.index)
    empty, new, faults = (old == "") | rule.overwrite, old, list[str]()
    if rule.value:
        new = old.mask(empty, rule.value)
    elif rule.count:
        of = table[_known(table, rule.count)]
        hits = (of == rule.equal) if rule.equal is not None else (of != "")
        new = old.mask(empty & (of != "").any(axis=1), hits.sum(axis=1).astype(str))
    elif rule.source or rule.format:
        text = _texts(table, rule.format or f"{{{rule.source}}}")
        meant = {text_: _meaning(text_, rule) for text_ in text[empty].unique()}
        odd = [spelling for spelling, value in meant.items() if value is None]
        if odd:
            faults.append(f"{column}: no pattern fits {listed(map(repr, odd))}")
        new = old.mask(empty, text.map(meant).fillna(""))
    if rule.map:
        new = new.map(lambda value: rule.map.get(str(value), str(value)))
    if rule.add:
        numbers = pd.to_numeric(new, errors="coerce")
        whole = numbers % 1 == 0  # others stay as they are: the manifest names them
        new = new.mask(whole, numbers.where(whole, 0).add(rule.add).astype("int64").astype(str))
    table[column] = new
    return table, faults


def _meaning(text: str, rule: Column) -> str | None:
    """What a rule makes of a text; None where nothing fits."""
    for expression, value in rule.match.items():
        if re.fullmatch(expression, text):
            return value
    if rule.pattern and (match := re.search(rule.pattern, text)):
        return match[1] if match.re.groups else match[0]
    return text if not rule.pattern and not rule.match else rule.default


def _only(table: pd.DataFrame, declaration: Declaration) -> pd.DataFrame:
    for column, values in declaration.only.items():
        table = table[table[_known(table, (column,))[0]].isin(values)]
        if table.empty:
            raise ManifestError(f"{declaration.name!r}: no row has {column} = {' or '.join(values)}.")
    return table.reset_index(drop=True)


def _with_expression(
    table: pd.DataFrame, declaration: Declaration, rule: Expression, root: Path
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The table with a column of numbers for each gene, and the genes."""
    genes = read_genes(_table_file(root, rule.genes, declaration))
    values = np.zeros((len(table), len(genes)))
    files = _texts(table, rule.files)
    spots = table[_known(table, (rule.spot,))[0]].astype(str)
    for name, at in files.groupby(files).indices.items():
        rows = np.asarray(at)
        file = _table_file(root, str(name), declaration)
        values[rows] = read_expression(file, spots.iloc[rows].tolist(), genes, log1p=rule.log1p)
    columns = pd.DataFrame(values, columns=genes, index=table.index)
    return pd.concat([table, columns], axis=1), tuple(genes)


def _texts(table: pd.DataFrame, template: str) -> pd.Series:
    """A template ("{a}_{b}", or a column alone) filled in for every row."""
    columns = _known(table, _columns_of(template))
    if template in columns or template == f"{{{columns[0]}}}":
        return table[columns[0]].astype(str)
    rows = zip(*(table[column].astype(str) for column in columns), strict=True)
    texts = [filled(template, dict(zip(columns, row, strict=True))) for row in rows]
    return pd.Series(texts, index=table.index, dtype=object)


def _columns_of(template: str) -> list[str]:
    return named_in(template) or [template]


def _known(table: pd.DataFrame, columns: list[str] | tuple[str, ...]) -> list[str]:
    for column in columns:
        if column not in table:
            hint = near(column, table.columns) or f"; there are {list(table.columns)}"
            raise ManifestError(f"the declaration names the column {column!r}{hint}.")
    return list(columns)


def _tell_differences(declaration: Declaration, manifest: Manifest, say: Say) -> None:
    """Says which declared numbers differ, and what nobody has verified."""
    checks = compared(declaration, manifest.table)
    differ = checks[checks["expected"] != checks["found"]]
    open_ = np.array([doubtful(declaration, key) for key in differ["key"]], bool)
    for rows, why in (
        (differ[~open_], "is the download complete?"),
        (differ[open_], "the declared numbers were never verified"),
    ):
        shown = [f"{row.fact} {row.found} instead of {row.expected}" for row in rows.itertuples()]
        if shown:
            say(f"not as declared: {listed(shown)}; {why}")
    if declaration.unverified:
        say(f"declared without having been verified: {', '.join(declaration.unverified)}")

"""A manifest: a table with one row a patch, and a header that says what the data set is.

On disk a manifest is two files that lie beside each other, `NAME.toml` (the header) and `NAME.csv` or
`NAME.parquet` (the table). The header names the table file, its format, its row count and the root that
the paths are relative to. Loading is strict: every fault of the table and of the header is found and all
of them are raised as one `ManifestError`.
"""

import csv
import math
import os
import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet

from .. import settings
from ..errors import ManifestError
from ..files import check_writable, write_atomically
from ..settings import InvalidSettings, Settings, listing, near, nearest, not_one_of, write_toml
from ..texts import cells_of_csv, write_csv
from .arrow import TEXT, are_hex, are_texts, in_arrow, repeated

FORMAT = "patchbank-manifest"
FORMAT_VERSIONS = (1, 2)  # 2 is written only where version 1 cannot say it
TEXT_COLUMNS = ("patch_id", "path", "label", "group", "domain", "split")
NUMBER_COLUMNS = ("votes_positive", "votes_total", "x", "y")
KNOWN_COLUMNS = (*TEXT_COLUMNS, "content_hash", "content_cluster", *NUMBER_COLUMNS)
PARQUET_ROWS = 200_000  # from here on a table is saved as parquet unless told otherwise
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_ONE_NUMBER = re.compile(r"\D*(\d+)\D*")
_DECIMAL_COMMA = re.compile(r"\s*[-+]?\d+,\d+\s*")
NO_GROUPS = "none"  # the group_kind of a data set of which no groups are known
FEW_ROWS = 10  # in fewer each may well be of another slide
MOST_CLASSES = 200  # more labels than these were not meant as classes
SHOWN = 8  # rows that a message names before it says "and N more"
_TEXTS = {pa.string(): TEXT, pa.large_string(): TEXT}
_S = TypeVar("_S", bound=Settings)


class Header(Settings):
    """What a data set is.

    name : letters, digits, `.`, `_`, `-`; every patch_id starts with "name/".
    version : the maker's own; counts up when rows or labels change.
    classes : the labels, in the order in which they are numbered from 0; empty without labels.
    positive : of two classes the one that sensitivity, AP etc. refer to. Of more it may be "", and is else
        the default for one against the rest.
    licence, source : of the images; a URL or a sentence.
    group_kind : what a group is ("slide", "patient"), or "none" where no row's group is known (a Manifest
        sets that itself).
    ordered : whether the classes are grades, from the lowest to the highest.
    targets : columns of the table that hold the numbers to be predicted, instead of classes.
    mpp : micrometres a pixel of the patches as they are stored; 0: not known.

    Raises InvalidSettings with every fault.
    """

    name: str
    version: str
    classes: tuple[str, ...] = ()
    positive: str = ""
    licence: str
    source: str
    description: str = ""
    group_kind: str = "slide"
    ordered: bool = False
    targets: tuple[str, ...] = ()
    mpp: float = 0.0

    @property
    def format_version(self) -> int:
        """The lowest version of the manifest format that can say this."""
        return (
            2
            if self.ordered or self.targets or self.mpp or (len(self.classes) > 2 and not self.positive)
            else 1
        )

    def faults(self) -> Iterable[str]:
        if "name" in self.model_fields_set and not NAME.match(self.name):
            yield f"name = {self.name!r} may hold letters, digits, '.', '_' and '-' only"
        for key, names in (("classes", self.classes), ("targets", self.targets)):
            if not all(name.strip() for name in names) or len(set(names)) != len(names):
                yield f"{key} = {list(names)!r} is not a list of different names"
        if self.positive and not self.classes:
            yield f"positive = {self.positive!r}, but there are no classes"
        elif self.positive not in self.classes and (self.positive or len(self.classes) == 2):
            yield not_one_of("positive", self.positive, self.classes)
        if self.classes and self.targets:
            yield "a data set has classes or targets, not both"
        if not 0 <= self.mpp < math.inf:
            yield f"mpp = {self.mpp} is no number of micrometres a pixel; 0 is not known"
        if self.ordered and len(self.classes) < 2:
            yield "ordered = true needs classes, from the lowest to the highest"
        numbers = [_ONE_NUMBER.fullmatch(name) for name in self.classes]
        if self.ordered and all(numbers):
            values = [int(found[1]) for found in numbers if found]
            if sorted(values) not in (values, values[::-1]):
                classes = list(self.classes)
                yield f"ordered = true, but the numbers of {classes!r} go up and down: lowest first"
        if taken := [
            target for target in self.targets if target in KNOWN_COLUMNS and target not in NUMBER_COLUMNS
        ]:
            yield f"targets {taken} are columns with a meaning of their own; rename them"


class _Place(Settings):
    """[table] of a manifest's TOML."""

    file: str
    format: Literal["csv", "parquet"]
    rows: int | None = None
    root: str = "."


class _File(Settings):
    """A manifest's TOML."""

    format_version: int
    dataset: Header
    table: _Place

    def faults(self) -> Iterable[str]:
        if isinstance(self.dataset, Header) and self.dataset.format_version > self.format_version:
            yield (
                f"format_version = {self.format_version} has no mpp, ordered classes or targets, and no more "
                "than two classes without a positive one: write format_version = "
                f"{self.dataset.format_version}"
            )


class Manifest:
    """A header, a table and the root that the table's paths are relative to.

    header : Header
    table : pandas.DataFrame with a RangeIndex, one row a patch. Text columns (dtype TEXT) patch_id, path,
        label, group, domain, split ("" = not known); where they are known also content_hash (32 hex digits
        or ""), content_cluster (rows with near-identical images share it; "" = no other is like it),
        votes_positive, votes_total, x, y (Int64, pixels of the slide at full resolution). All further
        columns are the user's and are kept as they are.
    root : Path

    Raises ManifestError with every fault of the table. A manifest is not changed after it was made. Where no
    row has a group, header.group_kind becomes "none", whatever was given.
    """

    def __init__(self, header: Header, table: pd.DataFrame, root: str | os.PathLike[str]) -> None:
        where = f"the table of {header.name!r}"
        self.root = Path(root)
        self.table = _normalised(header, table, where=where)
        self.header = _with_group_kind(header, self.table, where)

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return f"Manifest({self.header.name!r}, {len(self)} patches, root={str(self.root)!r})"

    @property
    def groups_known(self) -> bool:
        """Whether any of these rows says which slide or patient it comes from.

        Where none does, patches cannot be taken as independent, and cannot be grouped either: intervals are
        too narrow, and folds may share a slide. `folds.effective_groups` then holds clusters of content.
        """
        return bool((self.table["group"] != "").any())

    def counts(self) -> pd.DataFrame:
        """Columns split, label, rows and, where groups are known, groups (distinct ones)."""
        of = self.table.groupby(["split", "label"], sort=True)
        counts = pd.DataFrame({"rows": of.size()})
        if self.groups_known:
            counts["groups"] = of["group"].agg(lambda group: group[group != ""].nunique())
        return counts.reset_index()

    def path(self, i: int) -> str:
        """Row i's path under the root; of a patch inside a container with its "::member" (see sources.py)."""
        return os.path.join(self.root, str(self.table["path"].iat[i]))  # noqa: PTH118  "a::b" is no Path

    def select(self, which: str | Sequence[bool] | Sequence[int] | np.ndarray | pd.Series) -> "Manifest":
        """The rows of a split (its name), of a mask (bool, (n,)) or with these numbers (int, (m,)).

        Raises ManifestError for a split that does not occur.
        """
        if isinstance(which, str):
            mask = (self.table["split"] == which).to_numpy(dtype=bool)
            if not mask.any():
                there = sorted(set(self.table["split"]))
                raise ManifestError(f"{self.header.name!r} has no split {which!r}; it has {there}.")
            rows = np.flatnonzero(mask)
        else:
            rows = np.asarray(which)
            if rows.dtype == bool:
                if rows.shape != (len(self),):
                    raise ManifestError(f"a mask of shape {rows.shape} does not fit {len(self)} rows.")
                rows = np.flatnonzero(rows)
        part = object.__new__(Manifest)  # the rows were checked when this manifest was made
        part.header, part.root = self.header, self.root
        rows = rows.astype(np.intp)
        if len(rows) and (np.diff(rows) == 1).all() and rows[0] >= 0:  # texts in Arrow are not copied then
            part.table = self.table.iloc[rows[0] : rows[-1] + 1].reset_index(drop=True)
        else:
            part.table = self.table.take(rows).reset_index(drop=True)
        return part

    def save(self, file: str | os.PathLike[str], *, table_format: str | None = None) -> Path:
        """Write FILE.toml and, beside it, FILE.csv or FILE.parquet; returns the path of the TOML.

        table_format: "csv" or "parquet"; by default csv up to 200,000 rows. The root is written relative to
        the TOML's folder where it lies in that folder (the folder can then be moved), else absolute.
        Both files are written under temporary names and renamed.

        Raises ManifestError where a table file of this name exists that belongs to no manifest of this name
        (it might be the CSV that the manifest was made from).
        """
        file = Path(file)
        form = table_format or ("parquet" if len(self) > PARQUET_ROWS else "csv")
        table_file = check_place(file, form)
        root = Path(os.path.abspath(self.root))  # noqa: PTH100  resolve() would follow the user's links
        folder = Path(os.path.abspath(file.parent))  # noqa: PTH100
        inside = root.is_relative_to(folder)
        version = self.header.format_version
        new = {"ordered", "targets", "mpp"} if version == 1 else set()
        document = {
            "format": FORMAT,
            "format_version": version,
            "dataset": self.header.model_dump(exclude=new),
            "table": {
                "file": table_file.name,
                "format": form,
                "rows": len(self),
                "root": root.relative_to(folder).as_posix() if inside else str(root),
            },
        }
        if form == "csv":
            write_csv(table_file, self.table)
        else:
            rows = pa.Table.from_pandas(self.table, preserve_index=False)
            write_atomically(table_file, lambda to: pyarrow.parquet.write_table(rows, to, compression="zstd"))
        return write_toml(file, document)


def check_place(file: Path, form: str) -> Path:
    """The table file beside a manifest that is to be saved. Raises ManifestError, OutputError: see `save`."""
    if file.suffix != ".toml":
        raise ManifestError(f"a manifest is saved as NAME.toml, not as {file.name!r}.")
    if form not in ("csv", "parquet"):
        raise ManifestError(f"table format {form!r} is not known; it is 'csv' or 'parquet'.")
    table_file = file.with_suffix(f".{form}")
    if table_file.exists() and not _owns(file, table_file):
        raise ManifestError(
            f"{table_file} exists and is not the table of {file}: choose another name, or move it away."
        )
    check_writable(file)
    return table_file


def as_manifest(manifest: "Manifest | str | os.PathLike[str]") -> Manifest:
    """A manifest as it is, or the one at a path; of NAME alone NAME.toml. Raises ManifestError."""
    if isinstance(manifest, Manifest):
        return manifest
    path = Path(manifest)
    named = not path.suffix and not path.exists()
    return load_manifest(path.with_name(f"{path.name}.toml") if named else path)


def as_manifests(argument: str, manifests: "Iterable[Manifest | str | os.PathLike[str]]") -> list[Manifest]:
    """A list of what `as_manifest` takes. Raises InvalidRequest for one that stands alone."""
    return [as_manifest(one) for one in listing(argument, manifests, alone=(Manifest,))]


def load_manifest(path: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None) -> Manifest:
    """Read FILE.toml and its table.

    root: use this instead of the one that the TOML names.

    Raises ManifestError: no such file, no TOML, an unknown format version, unknown or missing keys (a near
    name is suggested), a table that is missing or has another row count, and all faults of the rows.
    """
    path = Path(path)
    where = str(path)
    if path.suffix in (".csv", ".parquet"):
        raise ManifestError(
            f"{where} is a table; load the manifest {path.with_suffix('.toml').name} beside it."
        )
    document = read_toml(path, FORMAT, FORMAT_VERSIONS, "a manifest")
    said = parsed(_File, {key: value for key, value in document.items() if key != "format"}, where)
    table_file = path.parent / said.table.file
    table = read_table(table_file, said.table.format)
    if said.table.format == "csv":
        table = cells_of_csv(table)
    if said.table.rows not in (None, len(table)):
        raise ManifestError(
            f"{table_file} has {len(table)} rows, but {path.name} says rows = {said.table.rows}: the table "
            "was cut off or edited; correct the number in the TOML if the table is right."
        )
    manifest = object.__new__(Manifest)
    manifest.root = Path(root) if root is not None else path.parent / said.table.root
    manifest.table = _normalised(said.dataset, table, where=str(table_file))
    manifest.header = _with_group_kind(said.dataset, manifest.table, where)
    return manifest


def _pool() -> pa.MemoryPool:
    """Of Arrow's allocators the one for which the kernel clears the fewest pages: a third of mimalloc's."""
    try:
        return pa.jemalloc_memory_pool()
    except NotImplementedError:  # not in every build
        return pa.default_memory_pool()


def _read_parquet(file: Path) -> pd.DataFrame:
    import pyarrow.dataset as arrow_dataset  # takes 0.3 s, which no CSV needs

    try:
        rows = arrow_dataset.dataset(file, format="parquet").to_table(memory_pool=_pool())
        table = rows.to_pandas(ignore_metadata=True, types_mapper=_TEXTS.get)
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(f"{file} cannot be read as parquet: {error}") from error
    # an index is a column of its own
    return table[[name for name in table.columns if not str(name).startswith("__index_level_")]]


def read_table(
    file: Path,
    form: str,
    *,
    separator: str = ",",
    encoding: str = "utf-8-sig",
    names: Sequence[str] | None = None,
    skip: int = 1,
) -> pd.DataFrame:
    """A CSV (all cells as text, "" stays "") or parquet file as a frame. Raises ManifestError naming rows.

    names: of a CSV's columns, instead of those in its first line; skip: lines before its rows
    """
    if not file.is_file():
        raise ManifestError(f"the table {file} does not exist.")
    if form == "parquet":
        return _read_parquet(file)
    try:
        if names is None:
            with file.open(encoding=encoding, newline="") as stream:
                names = next(csv.reader(stream, delimiter=separator), [])
    except UnicodeDecodeError as error:
        raise ManifestError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start}).") from error
    repeated = sorted({name for name in names if names.count(name) > 1})
    if not names or repeated:
        fault = f"columns named twice: {repeated}." if repeated else "it is empty."
        raise ManifestError(f"{file}: {fault}")
    bad: list[str] = []

    def refuse(row: arrow_csv.InvalidRow) -> str:
        number = "" if row.number is None else f"line {row.number}: "
        bad.append(
            f"{number}{row.actual_columns} cells instead of {row.expected_columns} ({row.text[:60]!r})"
        )
        return "skip"

    try:
        table = arrow_csv.read_csv(
            file,
            read_options=arrow_csv.ReadOptions(
                use_threads=False,
                column_names=names,
                skip_rows=skip,
                encoding=encoding.removesuffix("-sig"),
            ),
            parse_options=arrow_csv.ParseOptions(
                delimiter=separator, newlines_in_values=True, invalid_row_handler=refuse
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        if str(error).startswith("Could not skip"):  # there is nothing behind the names
            return pd.DataFrame(columns=list(names), dtype=object)
        raise ManifestError(f"{file} cannot be read as CSV: {error}") from error
    if bad:
        raise ManifestError(fault_sentence(str(file), [listed(bad)]))
    return table.to_pandas(types_mapper=_TEXTS.get)


def read_toml(path: Path, form: str, versions: Collection[int], what: str) -> dict[str, Any]:
    """A TOML file of ours; refuses another format and an unknown version by name (ManifestError)."""
    try:
        document = settings.read_toml(path)
    except FileNotFoundError:
        raise ManifestError(f"{path} does not exist.") from None
    except IsADirectoryError:
        raise ManifestError(f"{path} is a folder, not {what} (a .toml file).") from None
    except tomllib.TOMLDecodeError as error:
        raise ManifestError(f"{path} is not TOML: {error}.") from error
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror or error}.") from error
    if document.get("format") != form:
        raise ManifestError(f'{path} is not {what}: it has no line format = "{form}".')
    if document.get("format_version") not in versions:
        raise ManifestError(
            f"{path} has format_version {document.get('format_version')!r}; this patchbank reads "
            f"{' and '.join(map(str, versions))}: upgrade patchbank."
        )
    return document


def parsed(kind: type[_S], values: Mapping[str, Any], where: str) -> _S:
    """Settings from a file of ours. Raises ManifestError with all faults."""
    try:
        return kind.read(values, where=where)
    except InvalidSettings as error:
        raise ManifestError(f"{error}.") from None


def _normalised(header: Header, table: pd.DataFrame, where: str) -> pd.DataFrame:
    """The table with all text columns, right types and a RangeIndex. Raises ManifestError with all faults."""
    table = table.reset_index(drop=True)
    table.columns = [str(name) for name in table.columns]
    if faults := list(_column_faults(header, table)):
        raise ManifestError(fault_sentence(where, faults))
    for name in TEXT_COLUMNS:
        if name not in table.columns:
            table[name] = pd.Series("", index=table.index, dtype=TEXT)
    text = [name for name in KNOWN_COLUMNS if name in table.columns and name not in NUMBER_COLUMNS]
    columns = [str(name) for name in table.keys()]  # noqa: SIM118  a frame
    others = [name for name in columns if name not in KNOWN_COLUMNS and name not in header.targets]
    for name in text:
        table[name] = _text(table[name])
    for name in others:
        if are_texts(table[name]):
            table[name] = in_arrow(table[name])
    rows = _FaultyRows(table)
    faults = list(_text_faults(header, table, text, rows))
    faults += _as_numbers(header, table, rows)
    if {"votes_positive", "votes_total"} <= set(table.columns):
        positive, total = table["votes_positive"], table["votes_total"]
        odd = ((positive < 0) | (positive > total)).fillna(False) | (positive.isna() != total.isna())
        if odd.any():
            faults.append(f"votes_positive does not lie in 0..votes_total: {rows.named(odd)}")
    if faults:
        raise ManifestError(fault_sentence(where, faults))
    have = list(table.columns)
    rest = [name for name in have if name not in KNOWN_COLUMNS]
    return table[[name for name in KNOWN_COLUMNS if name in have] + rest]


def _column_faults(header: Header, table: pd.DataFrame) -> Iterator[str]:
    """Names of columns that are nearly known ones, columns that are missing, no rows."""
    for name in table.columns:
        if name in KNOWN_COLUMNS or name in header.targets:
            continue
        alike = nearest(name.lower(), KNOWN_COLUMNS, cutoff=0.75)
        if alike and alike not in table.columns:
            yield (
                f"column {name!r} is not known; did you mean {alike!r}? Fix: rename it, or build with "
                f"--column {alike}={name}"
            )
    for name in ("patch_id", "path", *header.targets):
        if name not in table.columns:
            yield f"the column {name!r} is missing{near(name, table.columns)}"
    if not len(table):
        yield "it has no rows"


class _FaultyRows:
    """Names rows of a table in messages: number and id."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.table, self._ids = table, table["patch_id"]

    def row(self, i: int) -> str:
        return f"row {i + 1} ({self._ids.iat[i]!r})"

    def named(self, mask: np.ndarray | pd.Series, show: Callable[[int], str] | None = None) -> str:
        """The first rows of the mask, and how many there are."""
        at = np.flatnonzero(np.asarray(mask, dtype=bool))
        return listed([(show or self.row)(int(i)) for i in at[:SHOWN]], total=len(at))

    def with_values(self, mask: np.ndarray | pd.Series, column: str) -> str:
        values = self.table[column]
        return self.named(mask, lambda i: f"{self.row(i)} has {values.iat[i]!r}")


def _text_faults(
    header: Header, table: pd.DataFrame, text: Sequence[str], rows: _FaultyRows
) -> Iterator[str]:
    """Faults of the columns of texts; text : those of the format that the table has."""
    for name in text:
        if table[name].dtype == object:
            odd = ~table[name].map(is_text).astype(bool)
            yield f"{name} is not UTF-8 in {rows.named(odd)}: rename the file"
    ids = table["patch_id"]
    empty = ids == ""
    if empty.any():
        yield f"patch_id is empty in {rows.named(empty, lambda i: f'row {i + 1}')}"
    stray = ~empty & ~ids.str.startswith(f"{header.name}/")
    if stray.any():
        yield f"patch_id must start with '{header.name}/': {rows.named(stray)}"
    if (again := _repeated(ids) & ~empty).any():
        yield f"patch_id occurs more than once: {rows.named(again)}"
    lost = table["path"] == ""
    if lost.any():
        yield f"path is empty in {rows.named(lost)}"
    wrong = ~table["label"].isin(["", *header.classes])
    if wrong.any():
        yield f"label outside the classes {list(header.classes)}: {rows.with_values(wrong, 'label')}"
    if "content_hash" in table.columns and not _are_hashes(table["content_hash"]):
        odd = ~table["content_hash"].str.fullmatch(r"(?:[0-9a-f]{32})?")
        if odd.any():
            yield f"content_hash is not 32 hex digits in {rows.named(odd)}"


def _as_numbers(header: Header, table: pd.DataFrame, rows: _FaultyRows) -> Iterator[str]:
    """Make the columns of numbers numbers, in place. Yields the faults of those that are none."""
    for name in NUMBER_COLUMNS:
        if name in table.columns:
            numbers, odd = _whole_numbers(table[name])
            if odd.any():
                yield f"{name} is not a whole number: {rows.with_values(odd, name)}"
            table[name] = numbers
    for name in header.targets:
        numbers = _numbers(table[name])
        odd = ~np.isfinite(numbers)
        if odd.any():
            texts = table[name].astype(str)
            shown = rows.named(odd, lambda i, texts=texts: f"{rows.row(i)} has {texts.iat[i]!r}")
            comma = texts[odd].str.fullmatch(_DECIMAL_COMMA).any()
            fix = "write 1.5 for 1,5" if comma else "leave these rows out"
            yield f"the target {name!r} is not a number in {shown}: {fix}"
        table[name] = numbers


def _with_group_kind(header: Header, table: pd.DataFrame, where: str) -> Header:
    """The header, saying "none" where the table has no groups. Raises ManifestError: "none", and groups."""
    known = int((table["group"] != "").sum())
    if not known:
        return header.replace(group_kind=NO_GROUPS)
    if header.group_kind == NO_GROUPS:
        raise ManifestError(
            f"{where}: group_kind is {NO_GROUPS!r}, but {known} rows have a group; say what a group is, for "
            'example group_kind = "slide" or "patient".'
        )
    return header


def groups_note(manifest: Manifest) -> str:
    """What a reader must know where groups are missing, as one clause; "" where every row has a group."""
    lost = int((manifest.table["group"] == "").sum())
    if not manifest.groups_known:
        return "no slides or patients are known: intervals are too narrow, folds may leak"
    if lost:
        kind = manifest.header.group_kind
        return f"{lost} of {len(manifest)} rows have no {kind}: intervals may be too narrow"
    return ""


def lone_rows_note(manifest: Manifest) -> str:
    """A clause where every row is a group by itself, as when a file's name was taken for its slide; or ""."""
    groups = manifest.table["group"]
    if len(groups) < FEW_ROWS or (groups == "").any() or _repeated(groups).any():
        return ""
    return (
        "every row has a group of its own, so rows count as independent: is the group the slide or patient?"
    )


def classes_note(manifest: Manifest) -> str:
    """What a reader must know of the classes, as one clause; "" where there is nothing.

    Classes without a row, or without one in train; with no more than one group in a split (they can be in one
    fold only, and an interval over groups does not exist); so many that they cannot be classes.
    """
    classes, table = manifest.header.classes, manifest.table
    rows = pd.crosstab(table["label"], table["split"]).reindex(list(classes), fill_value=0)
    notes = [
        f"the target {name!r} is {table[name].iat[0]:g} in all rows, so there is nothing to predict"
        for name in manifest.header.targets
        if len(table) > 1 and (table[name] == table[name].iat[0]).all()
    ]
    if len(classes) == 1:
        notes.append(f"one class only ({classes[0]!r}), so there is nothing to tell apart")
    if len(classes) > MOST_CLASSES:
        notes.append(f"{len(classes)} classes in {len(table)} rows: is the label a path, an id or a number?")
    if empty := [name for name, count in rows.sum(axis=1).items() if not count]:
        notes.append(f"classes without any row: {listed(map(repr, empty))}")
    if "train" in rows.columns and (rows["train"] > 0).any():
        lost = rows[(rows["train"] == 0) & (rows.sum(axis=1) > 0)]
        of_rows = [f"{name!r} ({n} rows)" for name, n in lost.sum(axis=1).items()]
        if of_rows:
            notes.append(f"classes without a row in train, which cannot be learned: {listed(of_rows)}")
    if manifest.groups_known:
        known = table[(table["group"] != "") & (table["label"] != "")]
        groups = known.groupby(["split", "label"], sort=True)["group"].agg(["nunique", "first"])
        few = [
            f"{label!r}{f' of {split}' if split else ''} ({first!r})"
            for (split, label), count, first in groups.itertuples()
            if count == 1
        ]
        if few:
            kind = manifest.header.group_kind
            notes.append(f"classes with one {kind}, so no interval and no folds: {listed(few)}")
    return "; ".join(notes)


def _text(column: pd.Series) -> pd.Series:
    """As texts; missing values become ""."""
    if column.dtype == TEXT:
        return column.fillna("") if column.isna().any() else column
    if not are_texts(column):
        if column.dtype.kind == "f" and not (column.dropna() % 1).any():  # whole numbers, with gaps
            column = column.astype("Int64")
        column = column.astype(object).where(column.notna(), "").map(str).astype(object)
    return in_arrow(column)


def _repeated(texts: pd.Series) -> np.ndarray:
    """Which occur more than once: bool (n,)."""
    return repeated(texts) if texts.dtype == TEXT else texts.duplicated(keep=False).to_numpy(bool)


def _are_hashes(hashes: pd.Series) -> bool:
    """False: some may not be."""
    return hashes.dtype == TEXT and are_hex(hashes)


def is_text(value: object) -> bool:
    """Whether a value can be written as UTF-8; a file's name need not be (Python keeps its odd bytes)."""
    try:
        str(value).encode()
    except UnicodeEncodeError:
        return False
    return True


def _numbers(column: pd.Series) -> np.ndarray:
    """float64, NaN for what is not a number; texts are read exactly, which pandas' own parser does not."""
    if column.dtype == object or column.dtype == TEXT:
        texts = column.astype(object).where(column.notna(), "").map(str).str.strip()
        try:
            return pa.array(texts, pa.string()).cast(pa.float64()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid:  # some are no numbers: which
            column = texts
    numbers = pd.to_numeric(column, errors="coerce").astype("Float64")
    return numbers.to_numpy(np.float64, na_value=np.nan)


def _whole_numbers(column: pd.Series) -> tuple[pd.Series, pd.Series]:
    """(Int64 with NA for "", mask of what is not a whole number)."""
    if pd.api.types.is_integer_dtype(column.dtype):
        return column.astype("Int64"), pd.Series(False, index=column.index)
    given = column.notna() & (column.astype(str).str.strip() != "")
    numbers = pd.to_numeric(column.where(given), errors="coerce")
    odd = given & (numbers.isna() | (numbers % 1 != 0) | np.isinf(numbers))
    return numbers.where(~odd).astype("Int64"), odd


def listed(items: Iterable[str], total: int | None = None) -> str:
    """The first eight and how many more; `total` where `items` are already cut."""
    items = list(items)
    total = len(items) if total is None else total
    more = f" and {total - SHOWN} more" if total > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more


def fault_sentence(where: str, faults: Sequence[str]) -> str:
    """All faults of one thing in one message."""
    return f"{where}: " + "; ".join(faults) + "."


def _owns(file: Path, table_file: Path) -> bool:
    try:
        document = settings.read_toml(file)
    except (OSError, ValueError):
        return False
    return document.get("format") == FORMAT and document.get("table", {}).get("file") == table_file.name

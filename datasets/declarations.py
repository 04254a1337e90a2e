"""Public data sets as declarations: manifests/datasets/NAME.toml, or a TOML file of the user's own.

What a set is (classes, licence, source), where its archives are, how its files become the rows of a manifest
(parts, joins, columns), and what is known of the result (counts, groups, digests). DECLARATIONS.md explains
the format; `declared.build_declared` follows it.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pandas as pd
from pydantic import Field, PrivateAttr

from ..errors import ManifestError
from ..settings import SHIPPED, Settings, near, not_one_of
from .manifest import Header, parsed, read_toml

FORMAT = "patchbank-dataset"
FORMAT_VERSION = 2
UNPINNED = "unpinned"
ALL = "all"  # in `rows` and `groups`: of all splits together
OPTIONS = {  # of a part, beside root, values and columns: those of its builder
    "folder": ("pattern", "layout", "exclude", "suffixes"),
    "from-csv": ("table", "path_format", "columns"),
    "hdf5": ("images", "labels", "meta", "array", "labels_array", "columns", "group_by_file"),
    "npz": (),
    "parquet": ("image", "columns"),
}
REQUIRED = {"from-csv": "table", "hdf5": "images"}


class Archive(Settings):
    """A file to download.

    size : bytes
    sha256 : hex digits, or "unpinned": not known
    md5 : hex digits, where the publisher states one
    unpack : the folder that it is unpacked to; by default its name without suffixes
    file : a file that is no zip or tar is kept under this name; .gz is decompressed
    skip : regular expression, found in the names of members that are not unpacked
    """

    url: str
    size: int | None = None
    sha256: str = UNPINNED
    md5: str = ""
    unpack: str = ""
    file: str = ""
    skip: str = ""

    @property
    def place(self) -> str:
        """The folder or file that it becomes."""
        name = PurePosixPath(self.url.partition("?")[0].partition("#")[0]).name
        return self.file or self.unpack or re.sub(r"(\.tar)?\.\w+\Z", "", name)

    def faults(self) -> Iterable[str]:
        if "url" in self.model_fields_set and not self.url.startswith(("https://", "http://")):
            yield f"url = {self.url!r} is neither https nor http"
        if self.sha256 != UNPINNED and not re.fullmatch("[0-9a-f]{64}", self.sha256):
            yield f"sha256 = {self.sha256!r} is neither 64 hex digits nor {UNPINNED!r}"
        if self.md5 and not re.fullmatch("[0-9a-f]{32}", self.md5):
            yield f"md5 = {self.md5!r} is not 32 hex digits"
        yield from (f"{key}: {why}" for key in ("unpack", "file") if (why := _outside(getattr(self, key))))
        if fault := _not_regex("skip", self.skip):
            yield fault


class Part(Settings):
    """Files that one builder reads; the rows of all parts are one table.

    root : folder or file under the root of the data set; it is looked for, also deeper and at the root itself
    values : column -> its value in all rows of this part
    optional : may be missing
    exclude : regular expression of paths under `root` that are left out
    All others: the options of `patchbank datasets build BUILDER`; a `pattern` may name columns of any name.
    """

    builder: Literal["folder", "from-csv", "hdf5", "npz", "parquet"]
    root: str = ""
    optional: bool = False
    values: dict[str, str] = Field(default_factory=dict)
    columns: dict[str, str] = Field(default_factory=dict)
    pattern: str = ""
    layout: str = ""
    exclude: str = ""
    suffixes: tuple[str, ...] = ()
    table: str = ""
    path_format: str = ""
    images: dict[str, str] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)
    meta: dict[str, str] = Field(default_factory=dict)
    array: str = "x"
    labels_array: str = "y"
    group_by_file: bool = False
    image: str = ""

    def faults(self) -> Iterable[str]:
        given = self.model_fields_set & {*sum(OPTIONS.values(), ())}
        if "builder" in self.model_fields_set:
            allowed = OPTIONS[self.builder]
            yield from (not_one_of(f"the option of {self.builder}", key, allowed) for key in sorted(given)
                        if key not in allowed)  # fmt: skip
            needed = REQUIRED.get(self.builder, "")
            if needed and not getattr(self, needed):
                yield f"{needed} is missing"
        yield from (fault for key in ("pattern", "exclude") if (fault := _not_regex(key, getattr(self, key))))
        files = (self.root, self.table, *self.images.values(), *self.labels.values(), *self.meta.values())
        yield from (why for file in files if (why := _outside(file)))


class Join(Settings):
    """Columns of a second table, for the rows that do not have them yet.

    table : a CSV or parquet file, looked for under the root; beside the declaration where `beside` is true
    key, on : what a row and a line of the table have in common: "{column}_{column}", or a column alone
    columns : column -> its name in the table
    values : column -> its value in the rows that the table has
    agree : column -> name in the table of what must be the same
    complete : every line of the table must have a row
    """

    table: str
    beside: bool = False
    key: str
    on: str
    columns: dict[str, str] = Field(default_factory=dict)
    values: dict[str, str] = Field(default_factory=dict)
    agree: dict[str, str] = Field(default_factory=dict)
    complete: bool = False

    def faults(self) -> Iterable[str]:
        if why := _outside(self.table):
            yield why


class Expression(Settings):
    """Gene expression as targets: X of .h5ad files.

    files : "adata/{group}.h5ad", of columns
    spot : a column with the names of the spots
    genes : a JSON file under the root with the names of the genes
    log1p : take log(1 + X)
    """

    files: str
    spot: str
    genes: str
    log1p: bool = True

    def faults(self) -> Iterable[str]:
        yield from (why for file in (self.files, self.genes) if (why := _outside(file)))


class Column(Settings):
    """How a column is filled, in the rows where it is empty.

    value : the same in all rows
    format : of other columns, "{Tumor}, {Scanner}"
    source : another column (`from`)
    pattern : regular expression, found in `format` or `source`; its first group is the value
    match : regular expression that all of `format` or `source` fits -> value
    count : how many of these columns have the value `equal`, or any; none where all are empty
    map : value -> other value, in all rows
    add : a whole number to be added, in all rows
    default : where no pattern fits; without it that is an error
    overwrite : fill it in all rows
    """

    value: str = ""
    format: str = ""
    source: str = Field("", alias="from")
    pattern: str = ""
    match: dict[str, str] = Field(default_factory=dict)
    count: tuple[str, ...] = ()
    equal: str | None = None
    map: dict[str, str] = Field(default_factory=dict)
    add: int = 0
    default: str | None = None
    overwrite: bool = False

    def faults(self) -> Iterable[str]:
        ways = [key for key in ("value", "format", "source", "count") if getattr(self, key)]
        if len(ways) > 1:
            yield f"{' and '.join(ways)} exclude each other"
        if (self.pattern or self.match) and not (self.format or self.source):
            yield "pattern and match need `from` or `format`"
        expressions = [("pattern", self.pattern), *(("match", one) for one in self.match)]
        yield from (fault for key, text in expressions if (fault := _not_regex(key, text)))


class Declaration(Settings):
    """A data set.

    class_count, target_count : how many classes or targets the files have, where their names are not declared
    expression : gene expression as targets
    access : what it takes to get the files, where a download alone is not enough
    gigabytes, gigabytes_source : the size of the download, where not all archives have theirs; who states it
    parts, joins, columns : how its files become rows, in this order
    only : column -> the values of the rows that are kept
    needed : columns that no row may lack
    extra : columns that the manifest keeps beside those that it knows
    patch_id : "{file_stem}"; by default the path without its suffix
    rows, groups : split, or "all" -> number of rows, of known groups
    counts : split -> class -> rows. domains : domain -> rows. image_size : height, width
    duplicates : {"groups", "files", "contradictions"} of pixel-identical images
    files : name of a file that comes with the images -> SHA-256 or MD5
    contents : SHA-256 as `contents_digest` makes it, "" = not known
    known_faults : sentences for whoever uses the set
    unverified : keys of this file that come from memory or from another publication; compared at each build
    """

    name: str
    version: str = "1"
    description: str = ""
    classes: tuple[str, ...] = ()
    positive: str = ""
    class_count: int = 0
    target_count: int = 0
    expression: Expression | None = None
    ordered: bool = False
    targets: tuple[str, ...] = ()
    licence: str
    source: str
    paper: str = ""
    access: str = ""
    gigabytes: float = 0.0
    gigabytes_source: str = ""
    group_kind: str = "slide"
    mpp: float = 0.0
    archives: tuple[Archive, ...] = ()
    parts: tuple[Part, ...]
    joins: tuple[Join, ...] = ()
    columns: dict[str, Column] = Field(default_factory=dict)
    only: dict[str, list[str]] = Field(default_factory=dict)
    needed: tuple[str, ...] = ("label",)
    extra: tuple[str, ...] = ()
    patch_id: str = ""
    rows: dict[str, int] = Field(default_factory=dict)
    counts: dict[str, dict[str, int]] = Field(default_factory=dict)
    groups: dict[str, int] = Field(default_factory=dict)
    domains: dict[str, int] = Field(default_factory=dict)
    image_size: tuple[int, ...] = ()
    duplicates: dict[str, int] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)
    contents: str = ""
    known_faults: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()
    _folder: Path = PrivateAttr(default=SHIPPED / "datasets")

    def faults(self) -> Iterable[str]:
        known = Header.model_fields.keys() & self.model_fields_set
        if {"name", "licence", "source"} <= known:
            values = {key: getattr(self, key) for key in known}
            yield from Header.model_construct(_fields_set=known, **values).faults()
        for key in ("archives", "parts"):
            if key in self.model_fields_set and not (getattr(self, key) or key == "archives"):
                yield f"{key} is empty"
        if bool(self.gigabytes) != bool(self.gigabytes_source):
            yield "gigabytes and gigabytes_source belong together: who states the size"
        odd = [key for key in self.unverified if key.partition(".")[0] not in type(self).model_fields]
        yield from (f"unverified: no key {key!r}{near(key, type(self).model_fields)}" for key in odd)
        labels = {label for of_split in self.counts.values() for label in of_split}
        yield from (not_one_of("counts: the class", label, self.classes)
                    for label in sorted(labels - {*self.classes}))  # fmt: skip

    @property
    def total(self) -> int:
        """Rows that are declared, 0 = not known."""
        by_split = {split: sum(classes.values()) for split, classes in self.counts.items()} | self.rows
        return by_split.get(ALL) or sum(by_split.values())

    @property
    def size(self) -> int:
        """Bytes to download, 0 = not known."""
        sizes = [archive.size or 0 for archive in self.archives]
        return sum(sizes) if sizes and all(sizes) else round(self.gigabytes * 1e9)

    @property
    def short_licence(self) -> str:
        """The licence's name alone, where more is said."""
        return self.licence.partition(";")[0].partition(" (")[0]

    @property
    def folder(self) -> Path:
        """Where the declaration is, and the tables that come with it."""
        return self._folder

    def header(self, name: str = "", classes: tuple[str, ...] = (), targets: tuple[str, ...] = ()) -> Header:
        """The manifest's header; under another name, with other classes or targets, if they are given."""
        values: dict[str, Any] = {key: getattr(self, key) for key in Header.model_fields}
        return Header(
            **{
                **values,
                "name": name or self.name,
                "classes": classes or self.classes,
                "targets": targets or self.targets,
            }
        )


def names() -> list[str]:
    """The data sets that are shipped."""
    return sorted(file.stem for file in (SHIPPED / "datasets").glob("*.toml"))


def load_declaration(name_or_path: str | Path) -> Declaration:
    """By the name of a shipped one, or a TOML file.

    Raises ManifestError for an unknown name (suggesting a near one) or a faulty file.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        if str(name_or_path) not in names():
            hint = near(str(name_or_path), names()) or "; `patchbank datasets ls` lists them."
            raise ManifestError(f"no data set is called {str(name_or_path)!r}{hint}")
        path = SHIPPED / "datasets" / f"{name_or_path}.toml"
    document = read_toml(path, FORMAT, [FORMAT_VERSION], "the declaration of a data set")
    del document["format"], document["format_version"]
    declaration = parsed(Declaration, document, str(path))
    declaration._folder = path.parent
    return declaration


def compared(declaration: Declaration, table: pd.DataFrame) -> pd.DataFrame:
    """What is declared of the rows beside what they are: columns key, fact, expected, found."""
    split, label = table["split"], table["label"]
    checks: list[tuple[str, str, int, int]] = []

    def of(name: str) -> pd.Series:
        return split.eq(name) | (name == ALL)

    if declaration.total:
        key = "rows" if ALL in declaration.rows or not declaration.counts else "counts"
        checks.append((key, "rows", declaration.total, len(table)))
    for name, expected in declaration.rows.items():
        if name != ALL:
            checks.append((f"rows.{name}", f"{name} rows", expected, int(of(name).sum())))
    for name, classes in declaration.counts.items():
        for one, expected in classes.items():
            checks.append(("counts", f"{name} {one}", expected, int((of(name) & (label == one)).sum())))
    for name, expected in declaration.groups.items():
        seen = table["group"][of(name) & (table["group"] != "")]
        checks.append((f"groups.{name}", f"{name} groups", expected, int(seen.nunique())))
    for name, expected in declaration.domains.items():
        checks.append(("domains", f"domain {name}", expected, int((table["domain"] == name).sum())))
    return pd.DataFrame(checks, columns=["key", "fact", "expected", "found"])


def doubtful(declaration: Declaration, key: str) -> bool:
    """Whether what is declared under a key was never verified; `rows` is so for `rows.train` too."""
    return key in declaration.unverified or key.partition(".")[0] in declaration.unverified


def _outside(path: str) -> str:
    """Why this is no path under a root; "" if it is one."""
    parts = PurePosixPath(path).parts
    if path.startswith("/") or "\\" in path or ".." in parts or ":" in (parts or ("",))[0] or "\0" in path:
        return f"{path!r} is not a relative path with '/', without '..'"
    return ""


def _not_regex(key: str, text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        return f"{key} = {text!r} is not a regular expression: {error}"
    return ""


def filled(template: str, row: Mapping[str, object]) -> str:
    """A template with its {columns} filled in. Raises KeyError for an unknown one."""
    return re.sub(r"\{([^{}]+)\}", lambda found: str(row[found[1]]), template)


def named_in(template: str) -> list[str]:
    """The columns that a template names."""
    return re.findall(r"\{([^{}]+)\}", template)

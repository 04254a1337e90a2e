"""Tables of image files: by what the folders' names say, or by a CSV."""

import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath

import pandas as pd

from ..errors import InvalidRequest, ManifestError
from ..settings import near
from .containers import TarImages, ZipImages, open_container
from .manifest import fault_sentence, listed
from .sources import MARK
from .tables import FAULT, Say, find_files, is_hidden, own_names, read_user_table, walk_files
from .values import SPLITS

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
FIELDS = ("label", "group", "domain", "split")
_NUMBER = re.compile(r"\d+")
_FIELD = re.compile(r"\{([^{}]+)\}")


def folder_table(
    root: Path,
    *,
    layout: str = "",
    pattern: str = "",
    suffixes: Sequence[str] = (),
    exclude: str = "",
    free: bool = False,
    say: Say,
) -> tuple[pd.DataFrame, Path]:
    """The images of a folder, a zip or an uncompressed tar; their folders' names say what they are.

    layout: what the folders' names mean, from the root: "{label}" (the default), "{split}/{label}/{group}",
    "*/{label}"; fields are label, group, domain and split, "*" means nothing. Deeper folders do not matter.
    pattern: instead of the layout, a regular expression that must match the path from its start, with named
    groups of those fields, such as `(?P<label>[^/]+)/(?P<group>[^_/]+)_`.
    suffixes: of files that are images too, beside `SUFFIXES`. exclude: a regular expression, found in the
    paths of folders ("a/b/") and files that are left out in silence. free: the pattern may name any columns.
    say: called with what was left out.

    Raises InvalidRequest for a faulty layout or pattern, ManifestError where there are no images or some of
    them do not fit.
    """
    expression = _expression(layout or "{label}", pattern, free=free)
    prefix, base, files = _files(root, exclude)
    known = tuple(f".{suffix.lower().lstrip('.')}" for suffix in (*SUFFIXES, *suffixes))
    paths = sorted((file for file in files if file.lower().endswith(known)), key=natural)
    left_out = set(files).difference(paths)
    others = Counter(PurePosixPath(file).suffix.lower() or "no suffix" for file in left_out)
    left = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
    if not paths:
        raise ManifestError(
            f"{root} holds no images ({', '.join(known)}) among its {len(files)} files{left and f': {left}'}."
        )
    if left:
        say(f"files that were left out: {left}; --suffixes takes those that are images")
    if empty := _empty_folders(root, {path.rpartition("/")[0] for path in paths}):
        say(f"folders without images: {listed(map(repr, empty))}")
    first = list(dict.fromkeys(path.partition("/")[0] for path in paths if "/" in path))
    if first and not layout and not pattern and {name.casefold() for name in first} <= {*SPLITS}:
        raise ManifestError(
            f"{root}: the folders {', '.join(first)} look like splits, not classes. "
            'Fix: --layout "{split}/{label}" (or --layout "{label}" if they are the classes).'
        )
    if not layout and not pattern:
        _refuse_inner_splits(root, {path.rpartition("/")[0] for path in paths})
        if len(first) == 1 and any(path.count("/") > 1 for path in paths):
            say(
                f"all images have the label {first[0]!r}, the first folder; "
                '--layout "*/{label}" takes the next'
            )
    matches = [expression.match(path) for path in paths]
    odd = [path for path, match in zip(paths, matches, strict=True) if match is None]
    if odd:
        what = f"the pattern {pattern!r}" if pattern else f"the layout {layout or '{label}'!r}"
        hint = "" if pattern else _hint(odd)
        raise ManifestError(f"{root}: {len(odd)} images do not fit {what}: {listed(map(repr, odd))}.{hint}")
    fields = {name: [match.group(name) or "" for match in matches if match] for name in expression.groupindex}
    about = {"path": [prefix + path for path in paths], "patch_id": _ids(paths)}
    return pd.DataFrame({**fields, **about}), base


def _refuse_inner_splits(root: Path, full: Collection[str]) -> None:
    """Raises ManifestError where all folders of one depth below the first are called as splits are.

    full : paths of the folders that hold images
    """
    folders = [path.split("/") for path in full if path]
    for depth in range(1, max(map(len, folders), default=0)):
        here = {names[depth] for names in folders if len(names) > depth}
        if len({SPLITS.get(name.casefold(), "") for name in here}) < 2 or not {
            name.casefold() for name in here
        } <= {*SPLITS}:
            continue
        parts = [
            "*" if len({names[k] for names in folders if len(names) > k}) == 1 else "{label}"
            for k in range(depth)
        ]
        parts = [part if parts.index(part) == k or part == "*" else "*" for k, part in enumerate(parts)]
        layout = "/".join([*parts, "{split}", *([] if "{label}" in parts else ["{label}"])])
        raise ManifestError(
            f"{root}: the folders {', '.join(sorted(here))} below other folders look like splits. "
            f'Fix: --layout "{layout}" (or --layout "{{label}}" if the first folders are the classes and '
            "these mean nothing)."
        )


def _hint(odd: Sequence[str]) -> str:
    """How labels in the names of files are read, where there are no folders."""
    name = next((path for path in odd if "/" not in path), "")
    start = re.match(r"([^\W\d_]+)([-_. ]|\d)", name)
    if not name:
        return ""
    if start is None:
        return " Fix: put each class into a folder, or list the labels in a table (build from-csv)."
    word, mark = start.groups()
    example = "(?P<label>[A-Za-z]+)" if mark.isdigit() else f"(?P<label>[^{mark}]+){re.escape(mark)}"
    return f" Fix, if the names say the labels ({word!r} in {name!r}): --pattern {example!r}."


def _empty_folders(root: Path, full: Collection[str]) -> list[str]:
    """Folders under the root in which no image lies, at any depth; not those inside of another such one.

    full : paths of the folders that hold images
    """
    if not root.is_dir():
        return []
    full = {str(parent) for path in full for parent in (PurePosixPath(path), *PurePosixPath(path).parents)}
    names = [folder.relative_to(root).as_posix() for folder, _, _ in walk_files(root)]
    empty = [name for name in names if name not in full]
    return [name for name in empty if str(PurePosixPath(name).parent) not in empty]


def csv_table(
    root: Path,
    *,
    table: str | os.PathLike[str],
    columns: Mapping[str, str] | None = None,
    path_format: str = "",
    separator: str = "",
    say: Say,
) -> tuple[pd.DataFrame, Path]:
    """The rows of a CSV or parquet table.

    table: the file. columns: our name -> its name, such as {"label": "final_label", "group": "slide"}; those
    that have our names already need none, and all columns are kept. path_format: how a path under the root is
    made of a row, such as "Train/{final_label}/{dataset_uid}". Without a patch_id column the id is the path
    without its suffix. separator: see `tables.read_user_table`; paths are found as `tables.find_files` does.

    Raises ManifestError: columns that the table does not have (suggesting near names). Rows whose file does
    not exist have a message in the column FAULT.
    """
    file = Path(table)
    frame = read_user_table(file, separator=separator, say=say)
    frame = own_names(frame, file, columns or (), ("patch_id", "path", *FIELDS), say)
    paths = pd.Series(path_format, index=frame.index)
    refuse_unknown_columns(file, frame, [*(columns or {}).values(), *_FIELD.findall(path_format)])
    for name in _FIELD.findall(path_format):
        paths = pd.Series(
            [path.replace(f"{{{name}}}", str(value)) for path, value in zip(paths, frame[name], strict=True)],
            index=frame.index,
        )
    frame = frame.assign(**{ours: frame[theirs] for ours, theirs in (columns or {}).items()})
    if path_format:
        frame["path"] = paths
    if "path" not in frame.columns:
        headless = any(str(name).lower().endswith(SUFFIXES) for name in frame.columns)
        lost = " Its first line must name the columns." if headless else ""
        raise ManifestError(
            f"{file}: which column is the path? Give --column path=NAME or --path-format; it has "
            f"{list(frame.columns)}.{lost}"
        )
    texts = frame["path"].where(frame["path"].notna(), "").astype(str)
    frame["path"], faults = find_files(root, texts.tolist(), say=say)
    frame[FAULT] = [faults.get(row, "") for row in range(len(frame))]
    if "patch_id" not in frame.columns:
        frame["patch_id"] = _ids(frame["path"].tolist())
    return frame, root


def refuse_unknown_columns(file: Path, frame: pd.DataFrame, names: list[str]) -> None:
    """Raises ManifestError for the names that the frame does not have, with near ones."""
    faults = []
    for name in names:
        if name not in frame.columns:
            hint = near(name, frame.columns) or f"; it has {list(frame.columns)}"
            faults.append(f"there is no column {name!r}{hint}")
    if faults:
        raise ManifestError(fault_sentence(str(file), faults))


def _expression(layout: str, pattern: str, *, free: bool) -> re.Pattern[str]:
    if pattern:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise InvalidRequest(f"the pattern {pattern!r} is not a regular expression: {error}.") from None
    else:
        parts = []
        for part in layout.strip("/").split("/"):
            field = _FIELD.fullmatch(part)
            if part != "*" and field is None:
                raise InvalidRequest(
                    f"the layout {layout!r} has the part {part!r}; a part is {{FIELD}} or *."
                )
            parts.append(f"(?P<{field[1]}>[^/]+)/" if field else "[^/]+/")
        try:
            expression = re.compile("".join(parts))
        except re.error as error:
            raise InvalidRequest(f"the layout {layout!r}: {error}.") from None
    odd = [] if free else sorted(set(expression.groupindex) - set(FIELDS))
    if odd or not expression.groupindex:
        raise InvalidRequest(f"{pattern or layout!r} must name some of the fields {FIELDS}; unknown: {odd}.")
    return expression


def _files(root: Path, exclude: str = "") -> tuple[str, Path, list[str]]:
    """(what goes before a path in the table, the manifest's root, the paths of all files but hidden ones)."""
    left_out = re.compile(exclude or r"(?!)")
    if root.is_dir():
        files = []
        for folder, _, names in walk_files(root, left_out):
            inner = folder.relative_to(root).as_posix()
            files += names if inner == "." else [f"{inner}/{name}" for name in names]
        files = [file for file in files if not left_out.search(file)]
        marked = [file for file in files if MARK in file]
        if marked:
            raise ManifestError(f"{root}: file names may not hold '{MARK}': {listed(map(repr, marked))}.")
        return "", root, files
    if root.suffix.lower() in (".zip", ".tar") and root.is_file():
        container = open_container(str(root))
        assert isinstance(container, ZipImages | TarImages)
        files = [name for name in container.members() if not left_out.search(name)]
        if leaving := [name for name in files if ".." in name.split("/")]:
            raise ManifestError(
                f"{root}: members that lie outside of it: {listed(map(repr, leaving))}. Fix: pack it anew."
            )
        files = [name for name in files if not any(map(is_hidden, name.split("/")))]
        return f"{root.name}{MARK}", root.parent, files
    raise ManifestError(f"{root} is not a folder, zip or uncompressed tar.")


def natural(path: str) -> str:
    """Key of the order that puts 2.png before 10.png.

    One text, three times as fast as a list of parts: a number is its length, then its digits.
    """
    return _NUMBER.sub(_key_of_number, path)


def _key_of_number(found: re.Match[str]) -> str:
    digits = str(int(found[0]))
    return f"\0{chr(len(digits))}{digits}{found[0]}\0"


def _ids(paths: list[str]) -> list[str]:
    """The paths without their suffix, unless two of them would be the same then."""
    stems = [os.path.splitext(path)[0] for path in paths]  # noqa: PTH122
    return stems if len(set(stems)) == len(stems) else list(paths)

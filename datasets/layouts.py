"""Tables of image files: by what the folders' names say, or by a CSV."""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from ..errors import InvalidRequest, ManifestError
from .containers import TarImages, ZipImages, open_container
from .manifest import fault_sentence, listed, read_table
from .sources import MARK

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
FIELDS = ("label", "group", "domain", "split")
_FIELD = re.compile(r"\{(\w+)\}")


def folder_table(root: Path, *, layout: str = "{label}", pattern: str = "") -> tuple[pd.DataFrame, Path]:
    """The images of a folder, a zip or an uncompressed tar; their folders' names say what they are.

    layout: what the folders' names mean, from the root: "{label}", "{split}/{label}/{group}", "*/{label}";
    fields are label, group, domain and split, "*" means nothing. Deeper folders do not matter.
    pattern: instead of the layout, a regular expression that must match the path from its start, with named
    groups of those fields, such as `(?P<label>[^/]+)/(?P<group>[^_/]+)_`.

    Raises InvalidRequest for a faulty layout or pattern, ManifestError where there are no images or some of
    them do not fit.
    """
    expression = _expression(layout, pattern)
    prefix, base, paths = _image_paths(root)
    matches = [expression.match(path) for path in paths]
    odd = [path for path, match in zip(paths, matches, strict=True) if match is None]
    if odd:
        what = f"the pattern {pattern!r}" if pattern else f"the layout {layout!r}"
        raise ManifestError(f"{root}: {len(odd)} images do not fit {what}: {listed(odd)}.")
    table = pd.DataFrame([match.groupdict(default="") for match in matches if match])
    table["path"] = [prefix + path for path in paths]
    table["patch_id"] = _ids(paths)
    return table, base


def csv_table(
    root: Path,
    *,
    table: str | os.PathLike[str],
    columns: Mapping[str, str] | None = None,
    path_format: str = "",
) -> tuple[pd.DataFrame, Path]:
    """The rows of a CSV or parquet table.

    table: the file. columns: our name -> its name, such as {"label": "final_label", "group": "slide"}; those
    that have our names already need none, and all columns are kept. path_format: how a path under the root is
    made of a row, such as "Train/{final_label}/{dataset_uid}". Without a patch_id column the id is the path
    without its suffix.

    Raises ManifestError: columns that the table does not have (suggesting near names), and rows whose file
    does not exist.
    """
    file = Path(table)
    frame = read_table(file, "parquet" if file.suffix == ".parquet" else "csv")
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
        raise ManifestError(f"{file}: which column is the path? Give --column path=NAME or --path-format.")
    frame["path"] = frame["path"].astype(str)
    _refuse_lost_files(file, root, frame["path"])
    if "patch_id" not in frame.columns:
        frame["patch_id"] = _ids(frame["path"].tolist())
    return frame, root


def refuse_unknown_columns(file: Path, frame: pd.DataFrame, names: list[str]) -> None:
    """Raises ManifestError for the names that the frame does not have, with near ones."""
    faults = []
    for name in names:
        if name not in frame.columns:
            near = difflib.get_close_matches(name, [str(column) for column in frame.columns], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {list(frame.columns)}"
            faults.append(f"there is no column {name!r}; {hint}")
    if faults:
        raise ManifestError(fault_sentence(str(file), faults))


def _expression(layout: str, pattern: str) -> re.Pattern[str]:
    if pattern:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise InvalidRequest(f"the pattern {pattern!r} is no regular expression: {error}.") from None
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
    odd = sorted(set(expression.groupindex) - set(FIELDS))
    if odd or not expression.groupindex:
        raise InvalidRequest(f"{pattern or layout!r} must name some of the fields {FIELDS}; unknown: {odd}.")
    return expression


def _image_paths(root: Path) -> tuple[str, Path, list[str]]:
    """(what goes before a path in the table, the manifest's root, the images' paths in natural order)."""
    if root.is_dir():
        prefix, base = "", root
        files = [
            (Path(folder) / name).relative_to(root).as_posix()
            for folder, _, names in os.walk(root, followlinks=True)
            for name in names
        ]
        marked = [file for file in files if MARK in file]
        if marked:
            raise ManifestError(f"{root}: file names may not hold '{MARK}': {listed(marked)}.")
    elif root.suffix.lower() in (".zip", ".tar") and root.is_file():
        container = open_container(str(root))
        assert isinstance(container, ZipImages | TarImages)
        prefix, base, files = f"{root.name}{MARK}", root.parent, container.members()
    else:
        raise ManifestError(f"{root} is no folder, zip or uncompressed tar.")
    images = [
        file
        for file in files
        if file.lower().endswith(SUFFIXES)
        and not any(part.startswith((".", "__MACOSX")) for part in file.split("/"))
    ]
    if not images:
        raise ManifestError(f"{root} holds no images ({', '.join(SUFFIXES)}) among its {len(files)} files.")
    return prefix, base, sorted(images, key=_natural)


def _natural(path: str) -> tuple[list[tuple[bool, int, str]], str]:
    """Order that puts 2.png before 10.png."""
    parts = re.split(r"(\d+)", path)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts], path


def _ids(paths: list[str]) -> list[str]:
    """The paths without their suffix, unless two of them would be the same then."""
    stems = [os.path.splitext(path)[0] for path in paths]  # noqa: PTH122
    return stems if len(set(stems)) == len(stems) else list(paths)


def _refuse_lost_files(file: Path, root: Path, paths: pd.Series) -> None:
    there: dict[str, bool] = {}
    lost = []
    for row, path in enumerate(paths, start=1):
        place = path.partition(MARK)[0]
        if place not in there:
            there[place] = bool(place) and (root / place).exists()
        if not there[place]:
            lost.append(f"row {row} ({path!r})")
    if lost:
        raise ManifestError(f"{file}: {len(lost)} rows have no file under {root}: {listed(lost)}.")

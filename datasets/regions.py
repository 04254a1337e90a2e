"""Tables of regions of whole-slide images; coordinates from a CSV, or from TRIDENT's or CLAM's HDF5 files."""

import math
import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from ..errors import ImageError, InvalidRequest, ManifestError, MissingDependency
from .hdf5 import hdf5_array, hdf5_rows
from .images import open_regular
from .layouts import refuse_unknown_columns
from .manifest import listed
from .sources import MARK
from .tables import FAULT, Lose, Say, is_hidden, read_user_table, walk_files

_USUAL = {  # our name -> the names that other tools give the column
    "slide": {"slide", "slide_id", "slide_name", "wsi", "wsi_id", "wsi_name"},
    "x": {"x", "coord_x", "x_coord", "coordx", "xcoord", "left", "xmin", "x_min", "x_start", "start_x"},
    "y": {"y", "coord_y", "y_coord", "coordy", "ycoord", "top", "ymin", "y_min", "y_start", "start_y"},
}
_FARTHEST = 1 << 31  # level-0 pixels: no slide is larger
_PLACE = r"wsi\[-?[0-9]+,-?[0-9]+,"
SUFFIXES = (
    *(".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm"),
    *(".isyntax", ".czi"),
)


def wsi_table(
    root: Path,
    *,
    coordinates: str | os.PathLike[str],
    size: int = 0,
    level: int | None = None,
    mpp: float | None = None,
    mpp0: float | None = None,
    border: str = "white",
    columns: Mapping[str, str] | None = None,
    slides: str | os.PathLike[str] = "",
    say: Say,
    lose: Lose,
) -> tuple[pd.DataFrame, Path]:
    """Square regions of the slides under the root; slides.py says how they are read.

    coordinates: a CSV with the columns slide, x, y (upper left corner, pixels of level 0; usual other names
        are taken, more through `columns`, ours -> its; further columns are kept), one .h5 of TRIDENT or CLAM,
        or a folder of them.
    size, level, mpp, border: of all regions: pixels returned a side; the pyramid's level or the micrometres a
        pixel; what lies outside of the slide. With .h5 files, size and resolution are theirs, unless they do
        not say their size.
    mpp0: micrometres a level-0 pixel, of slides that do not say it; or a column of `slides`.
    slides: a CSV with a column slide, and label, group (such as the patient), domain, split, mpp0 of each
        slide.

    The group is the slide where nothing else is said. A slide is named by its file, with or without suffix.

    Raises ManifestError: coordinates that are no numbers, missing columns, .h5 files that do not say what
    they must. Rows of slides without a file (or with several, or that cannot be opened), and regions that lie
    beside their slide, have a message in the column FAULT. `say` is called with empty .h5 files, and `lose`
    with those among several that cannot be used; both are left out.
    """
    place = Path(coordinates)
    if level is not None and mpp is not None:
        raise InvalidRequest("give level or mpp, not both.")
    scale = f",level={level}" if level else f",mpp={mpp}" if mpp is not None else ""
    if place.is_dir() or place.suffix.lower() in (".h5", ".hdf5"):
        table = _h5_table(place, size, scale, say, lose)
    else:
        if size < 1:
            raise InvalidRequest("regions from a CSV need the size of a patch in pixels (--size).")
        table = _csv_regions(place, columns or {}, say)
        table["_size"], table["_scale"] = size, scale
    files, faults, read = _slide_files(root, sorted(set(table["slide"])), say)
    table[FAULT] = table["slide"].map(faults).fillna("")
    table["_file"] = table["slide"].map(files).fillna("")
    first: dict[str, str] = {}  # all names of one file are one slide, and one group
    names = {name: first.setdefault(file, _bare(_last(file) if name in read else name))
             for name, file in files.items()}  # fmt: skip
    table["slide"] = [names.get(name, _bare(name)) for name in table["slide"]]
    if "patch_id" not in table.columns:
        table["patch_id"] = table["slide"] + "_" + table["x"].astype(str) + "_" + table["y"].astype(str)
    if slides:
        table = _join_slides(Path(slides), table, say)
    native = pd.Series("" if mpp0 is None else str(mpp0), index=table.index)
    if "mpp0" in table.columns:
        native = _resolutions(Path(slides or place), table["mpp0"], native)
    tail = "" if border == "white" else f",border={border}"
    table["_scale"] += [
        f",mpp0={of}" if of and "mpp" in scale else ""
        for of, scale in zip(native, table["_scale"], strict=True)
    ]
    table["path"] = [
        f"{file or slide}{MARK}wsi[{x},{y},{side},{side}{scale}{tail}]"
        for slide, file, x, y, side, scale in zip(
            *(table[key] for key in ("slide", "_file", "x", "y", "_size", "_scale")), strict=True
        )
    ]
    _check_regions(root, table, say)
    again = table["path"].duplicated() & (table[FAULT] == "")
    table.loc[again, FAULT] = "the same region as an earlier row"
    if "label" in table.columns:
        other = again & (table["label"] != table.groupby("path")["label"].transform("first"))
        table.loc[other, FAULT] += ", with another label"
    if "group" not in table.columns:
        table["group"] = table["slide"]
    return table.drop(columns=["_size", "_scale", "_file"]), root


def _csv_regions(file: Path, columns: Mapping[str, str], say: Say) -> pd.DataFrame:
    """slide, x, y under these names, and the other columns."""
    table = read_user_table(file, say=say)
    refuse_unknown_columns(file, table, list(columns.values()))
    wanted = dict(columns)
    for ours, known in _USUAL.items():
        found = [name for name in table.columns if name.strip().casefold() in known]
        if ours not in table.columns and ours not in wanted and found:
            if len(found) > 1:
                raise ManifestError(
                    f"{file}: which column is {ours}? Give --column {ours}=NAME, one of {found}."
                )
            wanted[ours] = found[0]
            say(f"{file.name}: the column {found[0]!r} is {ours}")
    others = {ours: theirs for ours, theirs in wanted.items() if ours not in _USUAL}
    table = table.assign(**{ours: table[theirs] for ours, theirs in others.items()})
    places = {ours: table[theirs] for ours, theirs in wanted.items() if ours in _USUAL}
    table = table.drop(columns=[name for ours, name in wanted.items() if ours in _USUAL]).assign(**places)
    if lost := [ours for ours in _USUAL if ours not in table.columns]:
        raise ManifestError(
            f"{file}: which column is {' and which is '.join(lost)}? Give --column {lost[0]}=NAME; it has "
            f"{list(table.columns)}. x and y are the upper left corner, in pixels of level 0."
        )
    numbers = table[["x", "y"]].apply(pd.to_numeric, errors="coerce")
    odd = numbers.isna().any(axis=1) | (numbers % 1 != 0).any(axis=1) | (abs(numbers) > _FARTHEST).any(axis=1)
    if odd.any():
        at = np.flatnonzero(odd).tolist()
        rows = [f"row {i + 1} ({table['x'].iat[i]!r}, {table['y'].iat[i]!r})" for i in at]
        raise ManifestError(f"{file}: x and y must be whole numbers of pixels: {listed(rows)}.")
    table[["x", "y"]] = numbers.astype("int64")
    return table


def _resolutions(file: Path, column: pd.Series, default: pd.Series) -> pd.Series:
    texts = column.where(column.notna(), "").astype(str).str.strip()
    numbers = pd.to_numeric(texts.where(texts != ""), errors="coerce")
    odd = (texts != "") & ~(numbers > 0)
    if odd.any():
        raise ManifestError(f"{file}: mpp0 must be micrometres a pixel: {listed(sorted(set(texts[odd])))}.")
    return texts.where(texts != "", default)


def _check_regions(root: Path, table: pd.DataFrame, say: Say) -> None:
    """Fill FAULT where a slide cannot be opened, does not say its resolution, or a region lies beside it."""
    try:
        from .slides import Slide, covered, parse_region
    except MissingDependency as error:
        say(f"the regions were not compared with their slides: {error}")
        return
    open_rows = table[table[FAULT] == ""]
    fault = table[FAULT].to_numpy(dtype=object, copy=True)
    for file, of_slide in open_rows.groupby("_file"):
        try:
            slide = Slide(str(root / str(file)))
        except (ImageError, OSError) as error:
            fault[of_slide.index] = str(error).partition(": ")[2].rstrip(".") or str(error)
            continue
        # all rows of one size and scale are compared at once
        keys = of_slide["path"].str.replace(_PLACE, "wsi[0,0,", n=1, regex=True)
        for _, rows in of_slide.groupby(keys):
            region = parse_region(str(rows["path"].iat[0]).partition(MARK)[2], str(file))
            try:
                steps = slide.scale(region, "")
            except ImageError as error:
                fault[rows.index] = str(error).removeprefix(": ").rstrip(".")
                continue
            inside = np.ones(len(rows), bool)
            for axis, length, step, limit in zip(
                "xy", (region.width, region.height), steps, slide.dimensions, strict=True
            ):
                inside &= covered(rows[axis].to_numpy(np.float64), length, step, limit) >= 1
            width, height = slide.dimensions
            swapped = np.ones(len(rows), bool)
            for axis, length, step, limit in zip(
                "yx", (region.width, region.height), steps, slide.dimensions, strict=True
            ):
                swapped &= covered(rows[axis].to_numpy(np.float64), length, step, limit) >= 1
            hint = "; are x and y swapped?" if swapped.all() and (~inside).sum() > 1 else ""
            fault[rows.index[~inside]] = (
                f"the region lies outside the slide, which is {width} x {height} pixels{hint}"
            )
    table[FAULT] = fault


def _h5_table(place: Path, size: int, scale: str, say: Say, lose: Lose) -> pd.DataFrame:
    """The regions of one .h5 file or of all in a folder. Raises ManifestError where no file has any."""
    files = (
        sorted(file for file in place.glob("*.h5") if not is_hidden(file.name)) if place.is_dir() else [place]
    )
    if not files:
        raise ManifestError(f"{place} holds no .h5 file with coordinates.")
    parts, empty, faults = [], [], {}
    for file in files:
        try:
            part = _h5_regions(file, size, scale)
        except ManifestError as error:
            reason = str(error).removeprefix(f"{file}").lstrip(": ").rstrip(".")
            faults.setdefault(reason, []).append(file.name)
            continue
        if len(part):
            parts.append(part)
        else:
            empty.append(file.name)
    if faults and not parts:
        found = [f"{reason} ({len(names)} files: {listed(names)})" for reason, names in faults.items()]
        raise ManifestError(f"{place}: {'; '.join(found)}.")
    if not parts:
        raise ManifestError(f"{place}: no file holds a region ({listed(empty)}).")
    for reason, names in faults.items():
        for name in names:
            lose(name, reason)
    if empty:
        say(f"files without regions were left out: {listed(empty)}")
    return pd.concat(parts, ignore_index=True)


def _h5_regions(file: Path, size: int, scale: str) -> pd.DataFrame:
    """`coords` (n, 2) with the attributes that TRIDENT or CLAM write; the slide is named by the file.

    size, scale: of files that do not say them
    """
    slide = file.stem.removesuffix("_patches")
    if file.is_file() and not file.stat().st_size:
        return pd.DataFrame({"slide": [], "x": [], "y": []})
    try:
        open_regular(file).close()
        with h5py.File(file, "r") as store:
            coords = hdf5_array(store, "coords", file)
            attributes: dict[str, Any] = {**store.attrs, **coords.attrs}
            points = hdf5_rows(coords, slice(None), file)
    except (ImageError, OSError) as error:
        raise ManifestError(str(error) if isinstance(error, ImageError) else f"{file}: {error}.") from error
    if points.ndim == 3 and 1 in points.shape[:2]:  # (1, n, 2), as some loaders of batches write it
        points = points.reshape(-1, points.shape[2])
    if points.size == 0:
        return pd.DataFrame({"slide": [], "x": [], "y": []})
    if points.ndim != 2 or points.shape[1] != 2 or points.dtype.kind not in "iuf" or (points % 1 != 0).any():
        raise ManifestError(
            f"{file}: coords must be whole numbers (n, 2), not {points.dtype} {points.shape}."
        )
    side, side0, level = (
        _attribute(file, attributes, key) for key in ("patch_size", "patch_size_level0", "patch_level")
    )
    if side is None:
        if not size:
            raise ManifestError(
                f"{file}: coords has no attribute patch_size; give --size (and --level or --mpp)."
            )
        side = size
    elif size or scale:
        raise InvalidRequest("size, level and mpp are those of the .h5 files; leave them out.")
    elif side0 is not None:  # TRIDENT: patch_size at the target magnification
        down = side0 / side
        scale = "" if down == 1 else f",down={down!r}"
    else:  # CLAM: patch_size at patch_level
        scale = f",level={level}" if level else ""
    points = points.astype(np.int64)
    table = pd.DataFrame({"slide": slide, "x": points[:, 0], "y": points[:, 1]})
    table["_size"], table["_scale"] = side, scale
    for key in ("level0_magnification", "target_magnification", "overlap"):  # exports write them again
        if key in attributes and np.ndim(attributes[key]) == 0:
            table[key] = attributes[key]
    return table


def _attribute(file: Path, attributes: Mapping[str, Any], key: str) -> int | None:
    """A whole number, however it was written: a scalar, an array of one, a text."""
    if key not in attributes:
        return None
    try:
        value = np.asarray(attributes[key]).reshape(-1)[0]
        number = float(value)
    except (TypeError, ValueError, IndexError):
        number = math.nan
    if not number >= 0 or number % 1 or (key != "patch_level" and not number):
        raise ManifestError(f"{file}: the attribute {key} is not a size: {attributes[key]!r}.")
    return int(number)


def _slide_files(root: Path, names: list[str], say: Say) -> tuple[dict[str, str], dict[str, str], set[str]]:
    """({slide: its path under the root}, {slide: what is wrong}, slides found under another name).

    Names are with or without suffix. One that no file has is looked for in another case and Unicode form,
    with another suffix, and without its folders.
    """
    found: dict[str, list[str]] = {}
    alike: dict[str, list[str]] = {}
    read: set[str] = set()
    for folder, _, files in walk_files(root):
        for name in files:
            if name.lower().endswith(SUFFIXES):
                relative = (folder / name).relative_to(root).as_posix()
                for key in {name, _bare(name), relative}:
                    found.setdefault(key, []).append(relative)
                alike.setdefault(_plain(name), []).append(relative)
    for name in names:
        if name not in found and len(files := alike.get(_plain(name), [])) == 1:
            found[name] = files
            read.add(name)
    if read:
        example = min(read)
        say(
            f"{len(read)} slides do not exist as written and were resolved: "
            f"{example!r} is read as {found[example][0]!r}"
        )
    faults = {name: f"no slide of this name under {root}" for name in names if name not in found}
    faults |= {
        name: f"several files: {', '.join(found[name])}" for name in names if len(found.get(name, ())) > 1
    }
    return {name: found[name][0] for name in names if name not in faults}, faults, read


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", _bare(_last(name))).casefold()


def _last(path: str) -> str:
    """The file's name of a path of any system."""
    return path.strip().replace("\\", "/").rpartition("/")[2]


def _join_slides(file: Path, table: pd.DataFrame, say: Say) -> pd.DataFrame:
    of_slide = read_user_table(file, say=say)
    refuse_unknown_columns(file, of_slide, ["slide"])
    named = {_plain(name): name for name in table["slide"]}
    known = set(table["slide"])
    of_slide["slide"] = [
        name if name in known else named.get(_plain(name), name) for name in of_slide["slide"].map(_bare)
    ]
    double = of_slide["slide"][of_slide["slide"].duplicated()]
    lost = sorted(set(table["slide"]) - set(of_slide["slide"]))
    if len(double) or lost:
        raise ManifestError(
            f"{file}: slides named twice: {listed(double)}; slides without a row: {listed(lost)}."
        )
    new = [name for name in of_slide.columns if name == "slide" or name not in table.columns]
    return table.merge(of_slide[new], on="slide", how="left", validate="many_to_one")


def _bare(name: str) -> str:
    """A slide's name without the suffix; other dots belong to the name."""
    suffix = next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]

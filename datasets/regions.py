"""Tables of regions of whole-slide images; coordinates from a CSV, or from TRIDENT's or CLAM's HDF5 files."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from ..errors import InvalidRequest, ManifestError
from .layouts import refuse_unknown_columns
from .manifest import listed
from .sources import MARK
from .tables import Say, read_user_table

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
    border: str = "white",
    columns: Mapping[str, str] | None = None,
    slides: str | os.PathLike[str] = "",
    say: Say,
) -> tuple[pd.DataFrame, Path]:
    """Square regions of the slides under the root; slides.py says how they are read.

    coordinates: a CSV with the columns slide, x, y (upper left corner, pixels of level 0; other names through
        `columns`, ours -> its; further columns are kept), one .h5 of TRIDENT or CLAM, or a folder of them.
    size, level, mpp, border: of all regions: pixels returned a side; the pyramid's level or the micrometres a
        pixel; what lies outside of the slide. With .h5 files, size and resolution are theirs.
    slides: a CSV with a column slide, and label, group (such as the patient), domain or split of each slide.

    The group is the slide where nothing else is said. A slide is named by its file, with or without suffix.

    Raises ManifestError: slides without a file (or with several), coordinates that are no numbers, missing
    columns.
    """
    place = Path(coordinates)
    if place.is_dir() or place.suffix.lower() in (".h5", ".hdf5"):
        if size or level is not None or mpp is not None:
            raise InvalidRequest("size, level and mpp are those of the .h5 files; leave them out.")
        files = sorted(place.glob("*.h5")) if place.is_dir() else [place]
        if not files:
            raise ManifestError(f"{place} holds no .h5 file with coordinates.")
        table = pd.concat([_h5_regions(file) for file in files], ignore_index=True)
    else:
        if size < 1 or (level is not None and mpp is not None):
            raise InvalidRequest("regions from a CSV need size, and at most one of level and mpp.")
        table = read_user_table(place, say=say)
        refuse_unknown_columns(place, table, list((columns or {}).values()))
        table = table.assign(**{ours: table[theirs] for ours, theirs in (columns or {}).items()})
        refuse_unknown_columns(place, table, ["slide", "x", "y"])
        numbers = table[["x", "y"]].apply(pd.to_numeric, errors="coerce")
        odd = numbers.isna().any(axis=1) | (numbers % 1 != 0).any(axis=1)
        if odd.any():
            at = np.flatnonzero(odd).tolist()
            rows = [f"row {i + 1} ({table['x'].iat[i]!r}, {table['y'].iat[i]!r})" for i in at]
            raise ManifestError(f"{place}: x and y must be whole numbers: {listed(rows)}.")
        table[["x", "y"]] = numbers.astype("int64")
        scale = f",level={level}" if level else f",mpp={mpp}" if mpp is not None else ""
        table["_size"], table["_scale"] = size, scale
    files = _slide_files(root, sorted(set(table["slide"])))
    tail = "" if border == "white" else f",border={border}"
    table["path"] = [
        f"{files[slide]}{MARK}wsi[{x},{y},{side},{side}{scale}{tail}]"
        for slide, x, y, side, scale in zip(
            table["slide"], table["x"], table["y"], table["_size"], table["_scale"], strict=True
        )
    ]
    table["slide"] = table["slide"].map(_bare)
    table = table.drop(columns=["_size", "_scale"])
    if "patch_id" not in table.columns:
        table["patch_id"] = table["slide"] + "_" + table["x"].astype(str) + "_" + table["y"].astype(str)
    if slides:
        table = _join_slides(Path(slides), table, say)
    if "group" not in table.columns:
        table["group"] = table["slide"]
    return table, root


def _h5_regions(file: Path) -> pd.DataFrame:
    """`coords` (n, 2) with the attributes that TRIDENT or CLAM write; the slide is named by the file."""
    try:
        with h5py.File(file, "r") as store:
            coords = store.get("coords")
            if not isinstance(coords, h5py.Dataset) or coords.ndim != 2 or coords.shape[1] != 2:
                raise ManifestError(f"{file}: there is no array coords (n, 2); the file has {sorted(store)}.")
            attributes: dict[str, Any] = {**store.attrs, **coords.attrs}
            points = np.asarray(coords[()], dtype=np.int64)
    except OSError as error:
        raise ManifestError(f"{file} cannot be read as HDF5: {error}.") from error
    if "patch_size" not in attributes:
        raise ManifestError(f"{file}: coords has no attribute patch_size, as TRIDENT and CLAM write it.")
    side = int(attributes["patch_size"])
    if "patch_size_level0" in attributes:  # TRIDENT: patch_size at the target magnification
        down = int(attributes["patch_size_level0"]) / side
        scale = "" if down == 1 else f",down={down!r}"
    else:  # CLAM: patch_size at patch_level
        level = int(attributes.get("patch_level", 0))
        scale = f",level={level}" if level else ""
    slide = file.stem.removesuffix("_patches")
    table = pd.DataFrame({"slide": slide, "x": points[:, 0], "y": points[:, 1]})
    table["_size"], table["_scale"] = side, scale
    return table


def _slide_files(root: Path, names: list[str]) -> dict[str, str]:
    """Slide name, with or without suffix -> its path under the root. Raises ManifestError with all faults."""
    found: dict[str, list[str]] = {}
    for folder, _, files in os.walk(root, followlinks=True):
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES):
                relative = (Path(folder) / name).relative_to(root).as_posix()
                for key in {name, _bare(name), relative}:
                    found.setdefault(key, []).append(relative)
    lost = [name for name in names if name not in found]
    double = [f"{name} ({', '.join(found[name])})" for name in names if len(found.get(name, [])) > 1]
    faults = [f"slides without a file: {listed(lost)}"] if lost else []
    faults += [f"slides with several files: {listed(double)}"] if double else []
    if faults:
        raise ManifestError(f"{root}: {'; '.join(faults)}.")
    return {name: found[name][0] for name in names}


def _join_slides(file: Path, table: pd.DataFrame, say: Say) -> pd.DataFrame:
    of_slide = read_user_table(file, say=say)
    refuse_unknown_columns(file, of_slide, ["slide"])
    of_slide["slide"] = of_slide["slide"].map(_bare)
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

"""Slide layouts: HDF5 files of TRIDENT, CLAM and STAMP, one a slide; QuPath's GeoJSON of where patches lie.

Of a patch they say where it lies, so that rows without coordinates are refused: x and y of the table, upper
left corner in pixels of level 0.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...errors import InvalidRequest
from ..columns import array_of, as_text
from ..tensors import write_pt
from .geojson import write_geojson
from .rows import Options, Rows

# attributes of TRIDENT's `coords`, which its slide encoders read
COORDS_ATTRIBUTES = (
    "patch_size",
    "patch_size_level0",
    "level0_magnification",
    "target_magnification",
    "overlap",
)
STAMP_VERSION = "2.1.0"  # the first whose readers know tile_size_um
STAMP_EXTRACTORS = {  # encoder id: STAMP's name for it
    "conch": "mahmood-conch",
    "h-optimus-0": "h-optimus-0",
    "h-optimus-1": "h-optimus-1",
    "mstar": "mstar",
    "plip": "plip",
    "prov-gigapath": "gigapath",
    "uni": "mahmood-uni",
    "uni2-h": "mahmood-uni2",
    "virchow": "virchow",
    "virchow2": "virchow2",
}
# a region of a slide, as `path` has it (datasets/MANIFEST.md)
_REGION = re.compile(r"::wsi\[-?\d+,-?\d+,(\d+),\d+((?:,\w+=[^,\]]+)*)\]$")


def write_trident(path: Path, rows: Rows, options: Options) -> None:
    """Write `features` and `coords`, which has TRIDENT's attributes as far as they are known."""
    about = _attributes(rows, options, options.name or path.stem)
    encoder = {"encoder": rows.about["identity"]["encoder"]["id"]}
    _write_h5(path, rows, "features", coordinates(rows).astype(np.int64), encoder, about)


def write_clam(folder: Path, parts: Mapping[str, Rows], options: Options) -> None:
    """`h5_files/SLIDE.h5` and `pt_files/SLIDE.pt` of each slide, as CLAM's data sets read them."""
    for name in ("h5_files", "pt_files"):
        (folder / name).mkdir(parents=True)
    for slide, rows in parts.items():
        write_trident(folder / "h5_files" / f"{slide}.h5", rows, options)
        write_pt(folder / "pt_files" / f"{slide}.pt", rows.whole()[0])


def write_stamp(path: Path, rows: Rows, options: Options) -> None:
    """Write `feats` and `coords` in um. Raises InvalidRequest where a length is not known."""
    edge = options.tile_um or _one(rows, "tile_size_um", options.name or path.stem)
    pixels = options.tile_px or _one(rows, "tile_size_px", options.name or path.stem)
    missing = [
        f"{what} ({name}, --{name.replace('_', '-')})"
        for what, name, value in (
            ("the edge of a tile in um", "tile_um", edge),
            ("its edge in pixels, as the encoder saw it", "tile_px", pixels),
        )
        if value is None
    ]
    if missing:
        raise InvalidRequest(f"the STAMP layout needs {' and '.join(missing)}")
    if {"x_um", "y_um"} <= set(rows.columns):
        coords = coordinates(rows, ("x_um", "y_um"))
    elif options.mpp is None:
        raise InvalidRequest(
            "the STAMP layout has coordinates in um: it needs um per pixel of x and y (--mpp)"
        )
    else:
        coords = coordinates(rows) * options.mpp
    encoder = rows.about["identity"]["encoder"]["id"]
    about = {
        "stamp_version": STAMP_VERSION,
        "extractor": STAMP_EXTRACTORS.get(encoder, encoder),
        "unit": "um",
        "tile_size_um": float(edge),
        "tile_size_px": int(pixels),
        "feat_type": "tile",
    }
    _write_h5(path, rows, "feats", coords.astype(np.float32), about, {})


def write_qupath(path: Path, rows: Rows, options: Options) -> None:
    """One FeatureCollection: a tile a patch, its label as the classification, its numbers as measurements."""
    about = _attributes(rows, options, options.name or path.stem)
    size = about.get("patch_size_level0")
    if not size:
        raise InvalidRequest(
            "QuPath draws patches: their edge in pixels of level 0 is not known; say it with --attribute "
            "patch_size_level0=N"
        )
    boxes = np.column_stack([coordinates(rows), np.full((len(rows.keys), 2), float(size))])
    numbers = {
        name: array_of(values)
        for name, values in rows.columns.items()
        if array_of(values).dtype.kind in "iuf" and name not in {"x", "y", *COORDS_ATTRIBUTES}
    }
    label = rows.text("label")
    write_geojson(
        path,
        boxes,
        ids=rows.ids(),
        names=rows.ids(),
        classes=None if label is None else label.tolist(),
        measurements=numbers,
    )


def coordinates(rows: Rows, names: tuple[str, str] = ("x", "y")) -> np.ndarray:
    """Where each patch lies, float64 (n, 2). Raises InvalidRequest at the first row that does not say it."""
    if not set(names) <= set(rows.columns):
        raise InvalidRequest(
            "slide layouts say where each patch lies, and the table has no columns x and y; take a layout "
            "without coordinates (parquet, npz, eva, ...)"
        )
    frame = pd.DataFrame({name: array_of(rows.columns[name]) for name in names})
    numbers = frame.apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    lost = np.flatnonzero(~np.isfinite(numbers).all(axis=1))
    if len(lost):
        raise InvalidRequest(
            f"{len(lost)} of {len(numbers)} rows have no coordinates x and y (the first: "
            f"{rows.ids()[lost[0]]}); leave them out with --where, or take a layout without coordinates"
        )
    return numbers


def _attributes(rows: Rows, options: Options, name: str) -> dict[str, Any]:
    """What a TRIDENT file says of its coordinates: of the options, the table's columns, or the regions that
    the paths name.
    """
    attributes = {key: _one(rows, key, name) for key in COORDS_ATTRIBUTES}
    about = _of_regions(rows) | {key: value for key, value in attributes.items() if value is not None}
    return about | dict(options.attributes) | {"name": name}


def _of_regions(rows: Rows) -> dict[str, Any]:
    """patch_size, and patch_size_level0 where the path says the scale relative to level 0."""
    paths = rows.text("path")
    regions = {match.groups() for word in (() if paths is None else paths) if (match := _REGION.search(word))}
    if len(regions) != 1:
        return {}
    size, settings = next(iter(regions))
    scale = dict(part.split("=") for part in settings.split(",") if part)
    if "level" in scale:
        return {"patch_size": int(size)}
    down = float(scale.get("down", 1))
    if "mpp" in scale:
        if "mpp0" not in scale:
            return {"patch_size": int(size)}
        down = float(scale["mpp"]) / float(scale["mpp0"])
    return {"patch_size": int(size), "patch_size_level0": round(int(size) * down)}


def _one(rows: Rows, name: str, file: str) -> Any:
    """The one value of a column, as a number where it is one; None without it. Raises InvalidRequest where
    there are several: they are of a file as a whole.
    """
    if name not in rows.columns:
        return None
    column = pd.Series(array_of(rows.columns[name])).dropna()
    values = column[column != ""].unique()
    if len(values) > 1:
        raise InvalidRequest(
            f"{file}: {name} is {values[0]} in some rows and {values[1]} in others, and a file has one; "
            "write "
            "a file a slide (--by group), or choose rows (--where)"
        )
    if not len(values):
        return None
    value = values[0].item() if isinstance(values[0], np.generic) else values[0]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _write_h5(
    path: Path,
    rows: Rows,
    name: str,
    coords: np.ndarray,
    attributes: Mapping[str, Any],
    of_coords: Mapping[str, Any],
) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        data = file.create_dataset(name, rows.shape, rows.dtype)
        sums = file.create_dataset("row_checksum", len(rows.keys), np.dtype("<u8"))
        for part, vectors, some in rows.parts():
            data[part], sums[part] = vectors, some
        file["coords"] = coords
        file["content_hash"] = rows.keys
        for column, values in rows.columns.items():
            plain = array_of(values)
            text = plain.dtype == object
            kind = h5py.string_dtype() if text else plain.dtype
            file.create_dataset(column, data=as_text(plain) if text else plain, dtype=kind)
        file.attrs["patchbank"] = json.dumps(rows.document)
        file.attrs["licence"] = rows.about["licence"]
        for key, value in attributes.items():
            file.attrs[key] = value
        for key, value in of_coords.items():
            file["coords"].attrs[key] = value


FILES: dict[str, tuple[str, Callable[[Path, Rows, Options], None]]] = {  # layout -> suffix of a file, writer
    "trident": (".h5", write_trident),
    "stamp": (".h5", write_stamp),
    "qupath": (".geojson", write_qupath),
}

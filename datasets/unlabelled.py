"""Any images as a manifest without labels: what a fitted model is to be applied to."""

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import InvalidRequest, ManifestError
from .arrays import hdf5_table, npz_table, parquet_table
from .layouts import SUFFIXES, folder_table
from .manifest import Header, Manifest, listed, load_manifest
from .regions import SUFFIXES as SLIDES
from .regions import wsi_table
from .tables import FAULT, Say

ARCHIVES = (".zip", ".tar")
COLUMNS = ("path", "group", "domain", "x", "y")  # that are kept; labels are not


def manifest_of(
    source: Manifest | str | os.PathLike[str],
    *,
    coordinates: str | os.PathLike[str] | None = None,
    size: int = 0,
    level: int | None = None,
    mpp: float | None = None,
    mpp0: float | None = None,
    suffixes: Sequence[str] = (),
    on_note: Callable[[str], None] | None = None,
) -> Manifest:
    """The patches of a source, as a manifest; of a manifest itself all rows, as they are.

    source : a folder of images (at any depth), a zip or tar of them; one image; a manifest (NAME.toml); a
        file with arrays or a column of images (.h5, .npz, .parquet); with `coordinates` a slide, or a folder
        of slides
    coordinates : a CSV with the columns slide, x, y, or .h5 files of TRIDENT or CLAM; see
        `regions.wsi_table`, also for size, level, mpp and mpp0
    mpp : of images, the micrometres a pixel that they have
    suffixes : of files that are images too, beside `layouts.SUFFIXES`
    on_note : called with a sentence for what was left out (or warns)
    Raises InvalidRequest where it holds no images, or slides come without coordinates; ManifestError for a
    faulty manifest or table of coordinates.
    """
    if isinstance(source, Manifest):
        return source
    say = on_note or (lambda note: warnings.warn(note, stacklevel=3))
    root = Path(source)
    if coordinates is not None:
        regions = {"size": size, "level": level, "mpp": mpp, "mpp0": mpp0}
        return _regions(root, coordinates, regions, say)
    if size or level is not None or mpp0 is not None:
        raise InvalidRequest("size, level and mpp0 are of regions of slides: give coordinates too")
    if root.suffix.lower() == ".toml":
        return load_manifest(root)
    if not root.exists():
        raise InvalidRequest(f"{root} does not exist")
    known = (*SUFFIXES, *(f".{suffix.lower().lstrip('.')}" for suffix in suffixes))
    try:
        if root.is_file() and root.suffix.lower() in known:
            table, base = pd.DataFrame({"path": [root.name]}), root.parent
        elif root.is_file() and root.suffix.lower() in SLIDES:
            raise InvalidRequest(
                f"{root} is a slide: which patches of it? Fix: --coordinates FILE (a CSV with slide, x, y "
                "and --size, or TRIDENT's or CLAM's .h5)"
            )
        else:
            table, base = _images(root, suffixes, say)
    except ManifestError as error:
        raise InvalidRequest(str(error)) from error
    return _manifest(table, base, root, mpp)


def _images(root: Path, suffixes: Sequence[str], say: Say) -> tuple[pd.DataFrame, Path]:
    def lose(name: str, why: str) -> None:
        raise ManifestError(f"{name}: {why}")

    kind = root.suffix.lower() if root.is_file() else ""
    if kind in (".h5", ".hdf5"):
        return hdf5_table(root.parent, images={"": root.name}, say=say, lose=lose)
    if kind == ".npz":
        return npz_table(root, say=lambda _: None)
    if kind == ".parquet":
        return parquet_table(root, say=lambda _: None, lose=lose)
    if kind and kind not in ARCHIVES:
        raise InvalidRequest(
            f"{root} is not an image, slide, manifest or container: {', '.join((*SUFFIXES, *ARCHIVES))}, "
            ".toml, .h5, .npz, .parquet. If it is an image, --suffixes takes it"
        )
    # any path; no labels
    return folder_table(root, pattern="(?P<label>)", suffixes=suffixes, say=say)


def _regions(root: Path, coordinates: str | os.PathLike[str], regions: dict[str, Any], say: Say) -> Manifest:
    def lose(name: str, why: str) -> None:
        say(f"{name}: {why}")

    folder = root if root.is_dir() else root.parent
    table, base = wsi_table(folder, coordinates=coordinates, say=say, lose=lose, **regions)
    if not root.is_dir():
        of_slide = table["path"].str.partition("::")[0] == root.name
        if not of_slide.any():
            there = sorted(set(table["slide"].astype(str)))
            raise InvalidRequest(
                f"{coordinates} has no patches of {root.name}; it has those of {listed(there)}"
            )
        table = table[of_slide].reset_index(drop=True)
    odd = table[table[FAULT] != ""]
    if len(odd):
        faults = [f"{path}: {why}" for path, why in zip(odd["path"], odd[FAULT], strict=True)]
        raise ManifestError(f"{len(odd)} of {len(table)} patches cannot be read: {listed(faults)}.")
    return _manifest(table, base, root, regions["mpp"])


def _manifest(table: pd.DataFrame, base: Path, root: Path, mpp: float | None) -> Manifest:
    table = table[[name for name in COLUMNS if name in table.columns]]
    header = Header(name="images", version="1", licence="unknown", source=str(root), mpp=mpp or 0.0)
    return Manifest(header, table.assign(patch_id="images/" + table["path"]), base)

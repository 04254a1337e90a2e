"""PyTorch's .pt: a tensor, or a dictionary of them; one file a slide (CLAM, slide2vec) or a row (eva)."""

import json
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...errors import InvalidRequest
from ...texts import cells_of_csv
from ..narrowing import is_array, is_list, is_object
from ..tensors import read_pt
from ..untrusted import check_regular, npy_header
from .arrays import foreign_npz, npz_array
from .documents import Vectors
from .hdf5 import foreign_h5
from .source import STEP, Source, by_id, chosen, encoder_of, flat, joined, of_slide, single


def foreign_pt(path: Path, root: Path, key: str) -> Source:
    """One slide; or a vector a patch, under its id."""
    content = _content(path)
    if not key and (source := by_id(path, root, "pt", content)):
        return source
    name = _name(path, content, key)
    array = content[name]

    def read() -> Iterator[np.ndarray]:  # again, when they are needed
        yield _content(path)[name]

    vectors = flat(Vectors(array.shape, array.dtype, read), path)
    coords = content.get("coords")
    columns = of_slide(path, coords if is_array(coords) else None, content, vectors.shape[0])
    return single(path, root, "pt", vectors, columns, encoder_of(content))


def _content(path: Path) -> dict[str, Any]:
    """What the file has by its names; a tensor alone, and a list of vectors, has the name "".

    Raises InvalidRequest for anything else.
    """
    content = read_pt(path)
    if is_object(content):
        return {str(name): value for name, value in content.items()}
    if is_list(content) and content and all(map(is_array, content)):
        content = np.stack([value.reshape(-1) for value in content])
    if not is_array(content):
        raise InvalidRequest(f"{path} holds a {type(content).__name__}; embeddings are a tensor (n, dim)")
    return {"": content}


def _name(path: Path, content: dict[str, Any], key: str) -> str:
    """Of the embeddings among what a file has."""
    if content.keys() == {""}:
        return ""
    arrays = {name: value for name, value in content.items() if is_array(value)}
    return chosen(path, {name: array.shape for name, array in arrays.items() if array.dtype.kind == "f"}, key)


def foreign_clam(path: Path, root: Path, key: str) -> Source:
    """CLAM's folder: h5_files (which have the coordinates) or, without it, pt_files."""
    files = sorted((path / "h5_files").glob("*.h5"))
    read = foreign_h5 if files else foreign_pt
    return joined(
        path, "clam", [read(file, root, key) for file in files or sorted((path / "pt_files").glob("*.pt"))]
    )


def foreign_slide2vec(path: Path, root: Path, key: str) -> Source:
    """slide2vec's folder: tile_embeddings/SLIDE.pt or .npz, with the coordinates of tiles/ where they are.

    Of older versions: features/SLIDE.pt, coordinates/SLIDE.npy.
    """
    folder = path / ("tile_embeddings" if (path / "tile_embeddings").is_dir() else "features")
    parts: list[Source] = []
    for file in sorted((*folder.glob("*.pt"), *folder.glob("*.npz"))):
        part = (foreign_npz if file.suffix == ".npz" else foreign_pt)(file, root, key)
        coords = _coordinates(path, file.stem)
        if coords is not None:
            for name, values in of_slide(file, coords, {}, part.vectors.shape[0]).items():
                part.table[name] = values
        about = file.with_suffix(".meta.json")
        told: Any = json.loads(about.read_text("utf-8")) if about.is_file() else None
        parts.append(replace(part, encoder=part.encoder or encoder_of(told if is_object(told) else {})))
    return joined(path, "slide2vec", parts)


def _coordinates(path: Path, slide: str) -> np.ndarray | None:
    file = path / "tiles" / f"{slide}.coordinates.npz"
    if file.exists():
        check_regular(file)
        with zipfile.ZipFile(file) as archive:
            return np.column_stack([npz_array(archive, name, file) for name in "xy"])
    file = path / "coordinates" / f"{slide}.npy"
    if not file.exists():
        return None
    check_regular(file)
    with file.open("rb") as stream:
        npy_header(stream, file, columns_first=True)  # refuses objects
    coordinates = np.load(file, allow_pickle=False)
    return np.column_stack([coordinates["x"], coordinates["y"]]) if coordinates.dtype.names else coordinates


def foreign_eva(path: Path, root: Path, key: str) -> Source:
    """eva's folder: manifest.csv names a .pt file for each row, and its target and split.

    A file of several vectors (of a slide) is as many rows, with wsi_id or the file's name as their group.
    """
    manifest = cells_of_csv(pd.read_csv(path / "manifest.csv", dtype=str, keep_default_na=False))
    files: list[Path] = []
    arrays: list[Vectors] = []
    for row, name in enumerate(manifest["embeddings"], start=1):
        file = path / name
        if Path(name).is_absolute() or ".." in Path(name).parts or not file.is_file():
            raise InvalidRequest(
                f"{path / 'manifest.csv'}: row {row}: there is no file {name!r} in this folder"
            )
        files.append(file)
        arrays.append(flat(_vectors(file, key), file))
    rows = [vectors.shape[0] for vectors in arrays]
    dims = {vectors.shape[1] for vectors in arrays}
    if len(dims) != 1:
        raise InvalidRequest(
            f"{path}: its embeddings have {', '.join(map(str, sorted(dims)))} numbers, not one number"
        )

    def read() -> Iterator[np.ndarray]:
        step: list[np.ndarray] = []
        for file in files:
            step += [part.reshape(-1, next(iter(dims))) for part in _vectors(file, key).read()]
            if sum(map(len, step)) >= STEP:
                yield np.concatenate(step)
                step = []
        if step:
            yield np.concatenate(step)

    table = manifest.loc[manifest.index.repeat(rows)].reset_index(drop=True)
    table = table.rename(columns={"target": "label", "wsi_id": "group"})
    number = np.concatenate([np.arange(count) for count in rows])
    table["path"] = [
        f"{name}::embedding[{i}]" for name, i in zip(table.pop("embeddings"), number, strict=True)
    ]
    origin = table.pop("origin") if "origin" in table.columns else table["path"].str.partition("::")[0]
    several = max(rows) > 1
    table["patch_id"] = origin + "/" + pd.Series(number).astype(str) if several else origin
    if table["patch_id"].duplicated().any():  # one image in several splits, or several of one slide
        files_of = table["path"].str.partition("::")[0]
        table["patch_id"] = files_of + "/" + pd.Series(number).astype(str) if several else files_of
    dtype = np.result_type(*(vectors.dtype for vectors in arrays))
    vectors = Vectors((sum(rows), next(iter(dims))), dtype, read)
    return Source(path, "eva", vectors, table, "", (*files, path / "manifest.csv"))


def _vectors(file: Path, key: str) -> Vectors:
    content = _content(file)
    array = content[_name(file, content, key)]
    return Vectors(array.shape, array.dtype, lambda: iter([array]))

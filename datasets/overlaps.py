"""Data sets that show the same figures of the same slides, by slide and coordinate.

Sets are cut from one another's slides under other file names, at other sizes and with other compression:
pixels then differ, and names do not show it.
"""

from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from .manifest import Manifest

WITHIN = 64  # pixels of level 0, each way: half a patch of 128; one figure in two crops is closer


def slide_key(group: str) -> str:
    """The name by which a slide is compared: without folder and suffix, in small letters."""
    return PurePosixPath(group.replace("\\", "/")).stem.casefold()


def same_places(manifests: Sequence[Manifest], *, within: int = WITHIN) -> pd.DataFrame:
    """Patches of two data sets at one place of one slide.

    Rows with x, y and a slide are compared: of the column slide, else the group where groups are slides
    (group_kind).
    within : largest difference of x and of y, pixels of level 0

    Returns a table, a row a pair: slide, patch_a, patch_b, label_a, label_b, split_a, split_b, set_a, set_b,
    and distance (the larger of both differences).
    """
    from scipy.spatial import KDTree

    rows = _of_slides(manifests)
    columns = ["patch_id", "label", "split", "set"]
    if "x" not in rows.columns or "y" not in rows.columns:
        rows = rows.iloc[:0].assign(x=0, y=0)
    rows = rows[rows["x"].notna() & rows["y"].notna()]
    rows = rows[rows.groupby("slide")["set"].transform("nunique") > 1].reset_index(drop=True)
    rows_of: list[np.ndarray] = [np.zeros((0, 2), np.intp)]
    for at in rows.groupby("slide").indices.values():
        points = rows[["x", "y"]].iloc[at].to_numpy(np.float64)
        near = KDTree(points).query_pairs(within, p=np.inf, output_type="ndarray")
        rows_of.append(np.asarray(at)[near])
    pairs = np.concatenate(rows_of)
    number = pd.factorize(rows["set"])[0]
    pairs = pairs[number[pairs[:, 0]] != number[pairs[:, 1]]]
    points = rows[["x", "y"]].to_numpy(np.float64)
    a, b = pairs.T
    table = {"slide": rows["name"].to_numpy()[a]}
    for column in columns:
        for side, at in (("a", a), ("b", b)):
            table[f"{column.removesuffix('_id')}_{side}"] = rows[column].to_numpy()[at]
    distance = np.abs(points[a] - points[b]).max(axis=1, initial=0).astype(np.int64)
    return pd.DataFrame({**table, "distance": distance}).sort_values(
        ["set_a", "set_b", "patch_a", "patch_b"], ignore_index=True
    )


def shared_slides(manifests: Sequence[Manifest]) -> pd.DataFrame:
    """Slides whose name occurs in several data sets: slide, sets, rows.

    A name is no proof: slides "1" of two sets may be two slides. `same_places` is one, given x and y.
    """
    rows = _of_slides(manifests)
    of = rows.groupby("slide", sort=True)
    slides = pd.DataFrame({"sets": of["set"].agg(lambda s: ", ".join(sorted({*s}))), "rows": of.size()})
    return slides[of["set"].nunique() > 1].reset_index()


def slides_of(manifest: Manifest) -> pd.Series:
    """Rows of each slide that is known, by its `slide_key`."""
    return _of_slides([manifest])["slide"].value_counts()


def placed(manifest: Manifest) -> int:
    """Rows whose slide and coordinates are known."""
    rows = _of_slides([manifest])
    return int(rows[["x", "y"]].notna().all(axis=1).sum()) if {"x", "y"} <= {*rows.columns} else 0


def _of_slides(manifests: Sequence[Manifest]) -> pd.DataFrame:
    """The rows with a known slide: those of a manifest, set, name (of the slide) and slide (`slide_key`)."""
    wanted = ["patch_id", "label", "split", "x", "y"]
    parts = []
    for manifest in manifests:
        column = "slide" if "slide" in manifest.table.columns else "group"
        if column == "group" and manifest.header.group_kind != "slide":
            continue
        table = manifest.table[[column for column in wanted if column in manifest.table.columns]]
        name = manifest.table[column].fillna("").astype(str)
        keys = {one: slide_key(one) for one in name.unique()}
        table = table.assign(set=manifest.header.name, name=name, slide=name.map(keys))
        parts.append(table[(name != "").to_numpy(dtype=bool)])
    empty = pd.DataFrame({column: pd.Series(dtype=object) for column in (*wanted, "set", "name", "slide")})
    return pd.concat(parts, ignore_index=True) if parts else empty

"""The leak audit that runs before a probe, and which rows to score when images occur twice.

Tables are pandas, as `Manifest.table`: columns patch_id, and where known content_hash, group, label
("" or missing: not known, and then it cannot leak as far as this audit can see: `LeakReport.unchecked`
says so). A side is what a row is used for: fold k of training, or one evaluation set.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ..datasets.arrow import TEXT, repeated
from ..errors import InvalidRequest, ProbeError
from ..texts import cells_of_csv

KINDS = ("content", "group", "place", "near-duplicate", "labels", "reused")
NEAR = 0.15  # of the median distance between nearest neighbours: closer embeddings are of one image
NEAR_DIM = 16  # columns, below which neighbours come that close by chance
NEAR_WORK = 2e12  # multiplications, above which not all pairs are compared (minutes)
_NEAR_SAMPLE, _NEAR_BLOCK = 1000, 512
_NEAR_ROWS = 8192  # that are standardised at once, in float64
_SHOWN = 5  # rows that a message names; the report holds all


@dataclass(frozen=True, kw_only=True)
class Leak:
    """One thing that sits on two sides (or has two labels), with all its rows."""

    kind: Literal["content", "group", "place", "near-duplicate", "labels", "reused"]
    what: str
    """The content hash, the group, the slide, the pair or the patch."""
    patch_ids: tuple[str, ...]
    sides: tuple[str, ...]
    """One a patch: "train" or "train fold 3", or the name of the evaluation set."""
    labels: tuple[str, ...]


_MEANING = {
    "content": "the same image on both sides of a split",
    "group": "one group (slide) on both sides of a split",
    "place": "patches at one place of a slide on both sides of a split",
    "near-duplicate": "near-duplicate images on both sides of a split",
    "labels": "the same image with contradictory labels",
    "reused": "rows that chose the model are also reported on",
}
_WAY_OUT = {
    "content": "remove one side's rows, or make folds that keep equal images together",
    "group": "make folds by group (`make_folds`), or move whole groups",
    "place": "leave these slides out of one data set (an empty label), or score another one; slides that "
    "share no more than their names are no leak",
    "near-duplicate": "put both images into one group",
    "labels": "correct or drop them (`deduplicate`)",
    "reused": "report on other rows: the scores of these are part of the choice",
}


@dataclass(frozen=True, kw_only=True)
class SharedSlides:
    """Slides of one name in train and in an evaluation set of another data set; a name is no proof."""

    dataset: str
    """The evaluation set."""
    slides: tuple[str, ...]
    train: int
    """Rows of train on these slides."""
    rows: int
    """Rows of the evaluation set on them."""


@dataclass(frozen=True, kw_only=True)
class SlideOverlap:
    """What train and evaluation sets of other data sets have in common by the names of slides."""

    places: Mapping[str, Sequence[str]]
    """Slide -> patch_ids of both at the same places of it."""
    slides: tuple[SharedSlides, ...]
    compared: int
    """Rows whose slide and coordinates are known."""


@dataclass(frozen=True, kw_only=True)
class LeakReport:
    """What `audit_leaks` found."""

    leaks: tuple[Leak, ...]
    checked: Mapping[str, int]
    """Kind -> how many rows (for near-duplicates: pairs) could be checked."""
    unchecked: Mapping[str, int]
    """Kind -> rows without the content hash, group or label that the check needs."""
    near: tuple[tuple[str, ...], ...] = ()
    """patch_ids of each set of near-duplicates among these rows, on one side or on several."""
    near_by: str = ""
    """What they were found by: "images", "embeddings", "file"; "": nobody has looked."""
    slides: tuple[SharedSlides, ...] = ()

    def of(self, kind: str) -> tuple[Leak, ...]:
        return tuple(leak for leak in self.leaks if leak.kind == kind)

    def refuse(self, *, allow: Collection[str] = ("labels",)) -> None:
        """Raise ProbeError naming rows for every kind of leak found, except those in `allow`.

        allow : kinds of `KINDS`, "all" for every one of them. Contradictory labels are allowed unless
            `allow` is given without them: they blur a score and do not flatter it.
        """
        unknown = set(allow) - {*KINDS, "all"}
        if unknown:
            raise InvalidRequest(
                f"leaks to allow are {', '.join(KINDS)} or all, not {', '.join(sorted(unknown))}"
            )
        parts = []
        for kind in KINDS:
            leaks = self.of(kind)
            if not leaks or kind in allow or "all" in allow:
                continue
            named = "; ".join(_describe(leak) for leak in leaks[:_SHOWN])
            more = f"; and {len(leaks) - _SHOWN} more" if len(leaks) > _SHOWN else ""
            parts.append(f"{_MEANING[kind]} ({len(leaks)}): {named}{more}. Fix: {_WAY_OUT[kind]}.")
        if parts:
            kinds = sorted({leak.kind for leak in self.leaks} - set(allow))
            allowed = " ".join(f"--allow-leaks {kind}" for kind in kinds)
            parts.append(f"To go on all the same: {allowed} (`allow_leaks` in a study and in Python).")
            raise ProbeError("the data leak. " + " ".join(part[0].upper() + part[1:] for part in parts))

    def to_json(self) -> dict[str, Any]:
        """For results.json: counts, and every leak with its rows."""
        return {
            "found": {kind: len(self.of(kind)) for kind in KINDS},
            "checked": dict(self.checked),
            "unchecked": dict(self.unchecked),
            "near_by": self.near_by,
            "near": [list(ids) for ids in self.near],
            "slides": [{**vars(slide), "slides": list(slide.slides)} for slide in self.slides],
            "leaks": [
                {
                    "kind": leak.kind,
                    "what": leak.what,
                    "rows": [list(row) for row in zip(leak.patch_ids, leak.sides, leak.labels, strict=True)],
                }
                for leak in self.leaks
            ],
        }


def _describe(leak: Leak) -> str:
    rows = [f"{p} [{s}]" for p, s in zip(leak.patch_ids, leak.sides, strict=True)]
    if leak.kind == "labels":
        rows = [f"{p} = {label}" for p, label in zip(leak.patch_ids, leak.labels, strict=True)]
    if leak.kind in ("group", "place"):  # a slide may have hundreds of rows: one of each side says it
        sides = dict.fromkeys(leak.sides)
        rows = [f"{leak.sides.count(s)} in {s} (e.g. {leak.patch_ids[leak.sides.index(s)]})" for s in sides]
        return f"{leak.what}: {', '.join(rows)}"
    shown = ", ".join(rows[:_SHOWN])
    return shown + (f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else "")


def read_pairs(file: str | Path) -> list[tuple[str, str]]:
    """Pairs of patch_ids from a CSV with the columns patch_a and patch_b, as `datasets check --pairs` writes.

    Raises InvalidRequest where the file cannot be read or has other columns.
    """
    try:
        table = cells_of_csv(pd.read_csv(file, dtype=str, keep_default_na=False))
        return list(zip(table["patch_a"], table["patch_b"], strict=True))
    except (OSError, ValueError, KeyError) as error:
        raise InvalidRequest(
            f"{file} is not a list of near-duplicates (columns patch_a, patch_b): {error}. "
            f"`patchbank datasets check MANIFESTS --near --pairs {file}` writes one"
        ) from error


def too_many_pairs(n: int, d: int, trained: int) -> bool:
    """Whether `near_embeddings` would give None: for fewer than 16 columns, or too many rows."""
    return d < NEAR_DIM or float(trained) * n * d > NEAR_WORK


def near_embeddings(X: NDArray[Any], trained: int, content: ArrayLike) -> list[list[int]] | None:
    """Rows whose embeddings are nearly the same, training rows among them: a list for each set of such rows.

    X : float (n, d), training rows first; trained : how many; content : (n,), content hashes; rows of equal
        content alone are not reported
    Compared are standardised columns, scaled to length 1. Two rows are near if they are closer than 0.15 of
    the median distance of rows to their nearest neighbour. On AMi-Br and AtNorM-Br (10 million pairs) no two
    different images are closer than 0.31 of it (DINOv2 ViT-S/14; EfficientNet-Lite0: 0.46), so none is
    reported; of 32 copies with one bit changed, and of 32 brighter by 2 of 255, all are. Copies that are
    shifted, turned or encoded again as JPEG can be farther away than other images: those are found in the
    pixels alone, by `patchbank datasets check --near`. Blank patches are near-duplicates of each other.
    None: not compared, since there are fewer than 16 columns or too many rows.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n, d = X.shape
    if too_many_pairs(n, d, trained):
        return None
    blocks = [slice(lo, lo + _NEAR_ROWS) for lo in range(0, n, _NEAR_ROWS)]
    mean = X.mean(axis=0, dtype=np.float64)
    spread = np.sqrt(sum(((X[rows] - mean) ** 2).sum(axis=0) for rows in blocks) / n)
    used = spread > 1e-3 * np.median(spread)  # of a dead column the rounding would count
    Z = np.empty((n, int(used.sum())), np.float32)
    for rows in blocks:
        Z[rows] = (X[rows][:, used] - mean[used]) / spread[used]
    Z /= np.maximum(np.linalg.norm(Z, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    _, key = np.unique(np.asarray(content), return_inverse=True)
    sample = np.linspace(0, n - 1, min(n, _NEAR_SAMPLE)).astype(int)
    cosine = Z[sample] @ Z.T
    cosine[key[sample][:, None] == key] = -1
    limit = 1 - NEAR**2 * (1 - float(np.median(cosine.max(axis=1))))  # distance^2 is 2 (1 - cosine)
    family = np.arange(n)
    for lo in range(0, trained, _NEAR_BLOCK):
        rows = slice(lo, min(trained, lo + _NEAR_BLOCK))
        a, b = np.nonzero((Z[rows] @ Z.T > limit) & (key[rows, None] != key))
        if len(a):
            edges = (np.append(a + lo, np.arange(n)), np.append(b, family))
            graph = coo_array((np.ones(len(edges[0]), bool), edges), shape=(n, n))
            _, label = connected_components(graph, directed=False)
            family = np.unique(label, return_index=True)[1][label]  # the first row of each
    order = np.argsort(family, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(family[order])) + 1)
    return [rows.tolist() for rows in members if len(rows) > 1]


def audit_leaks(
    train: pd.DataFrame,
    evaluations: Mapping[str, pd.DataFrame],
    *,
    folds: ArrayLike | None = None,
    near_duplicates: Iterable[Sequence[str]] | None = (),
    near_by: str = "",
    overlap: SlideOverlap | None = None,
) -> LeakReport:
    """Look for rows that make a score too good.

    train : the rows that are fitted or chosen on; evaluations : name -> rows that are reported on
    folds : int (len(train),), the fold that holds a row out; two folds are two sides. None: all of
        train is one side
    near_duplicates : pairs, or larger sets, of patch_ids that show the same thing (datasets.audit and
        `near_embeddings` find them); None: nobody has looked; near_by : how they were found
    overlap : of slides of other data sets (datasets.overlaps finds it); None: nobody has looked

    Checked, between train and every evaluation set and between folds (not between evaluation sets, which
    nothing is fitted on): equal content hashes; equal groups, within one data set, whose name is
    the patch_id up to "/" (slide 7 of another data set is another slide, unless patches of both are at one
    place of it); near-duplicates; and rows of train that are reported on as evaluation rows ("reused").
    Anywhere: equal content under different labels.
    """
    alike = list(near_duplicates or ())
    parts = [_rows(train, _sides(len(train), folds), trained=True)]
    for name, table in evaluations.items():
        parts.append(_rows(table, np.full(len(table), name, dtype=object), trained=False))
    rows = pd.concat(parts, ignore_index=True)
    known = {
        "content": int((rows["content"] != "").sum()),
        "group": int((rows["group"] != "").sum()),
        "labels": int(((rows["content"] != "") & (rows["label"] != "")).sum()),
    }
    places = overlap.places if overlap else {}
    named = [*alike, *places.values()]
    few = rows[rows["patch_id"].isin(list({patch for ids in named for patch in ids}))]
    at = few.groupby("patch_id").indices
    studied = [ids for ids in alike if all(patch in at for patch in ids)]
    near = {" ~ ".join(ids[:2]): ids for ids in studied}
    leaks = [
        *_crossing("content", rows, "content"),
        *_crossing("group", rows, "group"),
        *_crossing("place", _listed(few, at, places), "family"),
        *_crossing("near-duplicate", _listed(few, at, near), "family"),
        *_families("labels", rows, "content", _contradictory(rows)),
        *_families("reused", rows, "patch_id", _differing(rows, "patch_id", "trained")),
    ]
    return LeakReport(
        leaks=tuple(leaks),
        checked={**known, "near-duplicate": len(alike), "reused": len(rows)}
        | ({"place": overlap.compared} if overlap else {}),
        unchecked={kind: len(rows) - count for kind, count in known.items()}
        | ({"near-duplicate": len(rows)} if near_duplicates is None else {}),
        near=tuple(tuple(dict.fromkeys(ids)) for ids in studied),
        near_by="" if near_duplicates is None else near_by,
        slides=overlap.slides if overlap else (),
    )


def _sides(n: int, folds: ArrayLike | None) -> np.ndarray:
    """The side of each of n training rows."""
    if folds is None:
        return np.full(n, "train", dtype=object)
    numbers = np.asarray(folds)
    if numbers.shape != (n,):
        raise InvalidRequest(f"folds {numbers.shape} for {n} training rows")
    names = {k: f"train fold {k}" for k in np.unique(numbers).tolist()}
    return np.array([names[k] for k in numbers.tolist()], dtype=object)


def _rows(table: pd.DataFrame, sides: np.ndarray, *, trained: bool) -> pd.DataFrame:
    """Texts patch_id, content, group (with its data set's name), label; side; bool trained."""
    ids, group = _texts(table, "patch_id"), _texts(table, "group")
    return pd.DataFrame(
        {
            "patch_id": ids,
            "content": _texts(table, "content_hash"),
            "group": (ids.str.replace("(?s)/.*", "", regex=True) + ": " + group).where(group != "", ""),
            "label": _texts(table, "label"),
            "side": sides,
            "trained": trained,
        }
    )


def _texts(table: pd.DataFrame, name: str) -> pd.Series:
    """A column as text, numbered from 0; "" where it or its value is missing."""
    if name not in table:
        return pd.Series("", index=range(len(table)), dtype=TEXT)
    values = table[name].reset_index(drop=True)
    if values.dtype != TEXT:
        values = values.astype(object).where(values.notna(), "").astype(str).astype(TEXT)
    return values.fillna("")


def _listed(rows: pd.DataFrame, at: Mapping[Any, Any], families: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """The rows of each family of patch_ids, in their order, with the column family."""
    members = [
        (key, row)
        for key, ids in families.items()
        for patch in dict.fromkeys(ids)
        for row in at.get(patch, ())
    ]
    listed = rows.iloc[[row for _, row in members]]
    return listed.assign(family=pd.Series([key for key, _ in members], index=listed.index, dtype=TEXT))


def _differing(rows: pd.DataFrame, key: str, column: str) -> set[str]:
    """The keys whose rows differ in a column; "" is no key."""
    rows = rows[rows[key] != ""]
    codes, names = pd.factorize(rows[key])
    values = pd.factorize(rows[column])[0]
    first = np.unique(codes, return_index=True)[1]
    apart = np.unique(codes[values != values[first[codes]]]) if len(codes) else codes
    return set(names[apart])


def _contradictory(rows: pd.DataFrame) -> set[str]:
    """The contents with more than one label."""
    return _differing(rows[rows["label"] != ""], "content", "label")


def _families(kind: Any, rows: pd.DataFrame, key: str, names: Collection[str]) -> list[Leak]:
    """A leak of all rows of each of these keys, in the order of the rows."""
    if not names:
        return []
    members = rows[rows[key].isin(list(names))]
    columns = [members[name].to_numpy(dtype=object) for name in ("patch_id", "side", "label")]
    codes, what = pd.factorize(members[key])
    order = np.argsort(codes, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
    return [
        Leak(kind=kind, what=str(name), **dict(zip(("patch_ids", "sides", "labels"), values, strict=True)))
        for name, part in zip(what, parts, strict=True)
        for values in [[tuple(column[part].tolist()) for column in columns]]
    ]


def _crossing(kind: Any, rows: pd.DataFrame, key: str) -> list[Leak]:
    """Families of different patches of which one is trained on while another, on another side, is not."""
    names = _differing(rows, key, "side") & _differing(rows, key, "patch_id")  # one patch twice is "reused"
    return _families(kind, rows, key, names & set(rows[key][rows["trained"]]))


@dataclass(frozen=True, kw_only=True)
class Deduplication:
    """Which rows of a table to score."""

    keep: NDArray[np.bool_]
    """(n,)"""
    repeats: tuple[str, ...]
    """patch_ids left out because an earlier row has the same content and label."""
    contradictory: tuple[tuple[str, ...], ...]
    """patch_ids of each group of equal content with more than one label."""


def deduplicate(table: pd.DataFrame) -> Deduplication:
    """Keep the first row of every content.

    Of equal images with different labels none is kept: no label is known to be right. Rows without a
    content hash are kept; rows without a label count as rows, not as a contradiction.
    """
    content = _texts(table, "content_hash")
    known = (content != "").to_numpy(dtype=bool)
    shared = np.flatnonzero(known & repeated(content))
    rows = pd.DataFrame({name: _texts(table.iloc[shared], name) for name in ("patch_id", "label")})
    rows["content"] = content.iloc[shared].to_numpy()
    disagreeing = rows["content"].isin(list(_contradictory(rows))).to_numpy(dtype=bool)
    again = rows["content"].duplicated().to_numpy(dtype=bool) & ~disagreeing
    keep = np.ones(len(table), bool)
    keep[shared] = ~again & ~disagreeing
    contradictory = rows[disagreeing].groupby("content", sort=False)["patch_id"]
    return Deduplication(
        keep=keep,
        repeats=tuple(rows["patch_id"][again].tolist()),
        contradictory=tuple(tuple(members.tolist()) for _, members in contradictory),
    )

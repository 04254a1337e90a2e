"""Which row of a user's table belongs to which embedding of another program."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..cache.importing.source import IDS, Source
from ..datasets.manifest import listed
from ..datasets.tables import own_names, read_user_table
from ..errors import InvalidRequest
from ..settings import not_one_of

Say = Callable[[str], None]
SLIDE_COLUMNS = (
    "group",
    "slide",
    "slide_id",
    "slide_name",
    "wsi",
    "wsi_id",
    "sample_id",
    "filename",
    "file",
    "name",
)
OURS = ("patch_id", "label", "group", "domain", "split", "x", "y", "content_hash")
_PLACE = "slide, x, y"
_SUFFIX = r"\.(svs|tiff?|ndpi|mrxs|scn|bif|vms|vmu|svslide|dcm|isyntax|czi|h5|pt|npy|png|jpe?g|bmp|webp)$"


def joined(
    source: Source,
    table: str | os.PathLike[str] | pd.DataFrame | None,
    columns: dict[str, str],
    join: str,
    unmatched: str,
    say: Say,
) -> Source:
    """The source with the columns of the table, in the source's order."""
    if table is None:
        frame = _renamed(source.table, source.path, columns, say)
        return _identified(source, frame)
    name = "the table" if isinstance(table, pd.DataFrame) else str(table)
    right = (
        table.reset_index(drop=True) if isinstance(table, pd.DataFrame) else read_user_table(table, say=say)
    )
    right = _renamed(right.rename(columns={"path": "image_path"}), Path(name), columns, say)
    left = source.table
    ours, right_column = _join_columns(source, right, name, join, say)
    if (
        ours == "group"
        and {"x", "y"} <= {*left.columns} & {*right.columns}
        and right[right_column].duplicated().any()
    ):
        say(f"{Path(name).name} has a row a patch: rows are joined on slide, x and y")
        left = left.assign(**{_PLACE: _places(left, ours)})
        right = right.assign(**{_PLACE: _places(right, right_column)}).drop(columns=["x", "y"])
        ours = right_column = _PLACE
    if not ours:
        if len(left) != len(right):
            raise InvalidRequest(
                f"{name} has {len(right)} rows, and {source.path} {len(left)} embeddings: they are joined "
                "by their order, unless both have ids (--join OURS=THEIRS)"
            )
        if not join:
            left = left.drop(columns=["patch_id", "group"] if "patch_id" in left.columns else [])
            check_order(left, right, source, name)
        say(f"rows of {Path(name).name} and {source.path.name} belong together by their order")
        at, rows = np.arange(len(left)), np.arange(len(left))
    else:
        names, other = _names(left[ours], right[right_column], ours == "group")
        at = partners(names, other, source, name, right_column, unique=ours != "group")
        rows = matched(at, source, right, name, right_column, unmatched, say)
        at = at[rows]
    more = right.iloc[at].reset_index(drop=True)
    kept = left.iloc[rows].reset_index(drop=True)
    twice = [column for column in more.columns if column in kept.columns and column != right_column]
    kept = kept.drop(columns=twice)
    frame = pd.concat(
        [kept, more.drop(columns=[column for column in (right_column,) if column in kept.columns])], axis=1
    )
    return _identified(rows_of(source, rows), frame.drop(columns=_PLACE, errors="ignore"))


def _places(frame: pd.DataFrame, slide: str) -> list[str]:
    """Slide, x and y of each row as one text."""
    numbers = frame[["x", "y"]].apply(pd.to_numeric, errors="coerce").astype(float)
    points = zip(frame[slide], numbers["x"], numbers["y"], strict=True)
    return [f"{_bare(name)}: {x}, {y}" for name, x, y in points]


def _renamed(frame: pd.DataFrame, file: Path, columns: Mapping[str, str], say: Say) -> pd.DataFrame:
    """The frame with our names for its columns; those of `columns` that it does not have are left."""
    frame = own_names(frame, file, columns, OURS, say)
    lost = [column for column in columns.values() if column not in frame.columns]
    if lost:
        shown = not_one_of("--column", lost[0], [str(name) for name in frame.columns])
        raise InvalidRequest(f"{file}: {shown}")
    return frame.assign(**{ours: frame[its] for ours, its in columns.items()})


def _join_columns(source: Source, right: pd.DataFrame, name: str, join: str, say: Say) -> tuple[str, str]:
    """(ours, theirs); "", "" = by the order. Raises InvalidRequest for columns that do not exist."""
    left = source.table
    if join == "row":
        return "", ""
    if join:
        ours, equals, right_column = join.partition("=")
        right_column = right_column if equals else ours
        for what, column, there in ((source.path, ours, left), (name, right_column, right)):
            if column not in there.columns:
                shown = not_one_of("--join", column, [str(known) for known in there.columns])
                raise InvalidRequest(f"{what}: {shown}")
        return ours, right_column
    if "patch_id" in left.columns and "patch_id" in right.columns:
        return "patch_id", "patch_id"
    if "group" in left.columns:
        slides = {*map(_bare, left["group"])}
        fits = [
            str(column)
            for column in right.columns
            if str(column).strip().casefold() in SLIDE_COLUMNS and slides & {*map(_bare, right[column])}
        ] or [str(column) for column in right.columns if slides <= {*map(_bare, right[column])}]
        if fits:
            say(f"rows are joined on the slide, {fits[0]!r} of {Path(name).name}")
            return "group", fits[0]
    if "patch_id" in left.columns:
        ids = {*left["patch_id"].astype(str)}
        fits = [str(column) for column in right.columns if ids & {*right[column].astype(str)}]
        numbered = "group" in left.columns and left["patch_id"].tolist() == [
            f"{slide}/{i}" for slide, i in zip(left["group"], left.groupby("group").cumcount(), strict=True)
        ]
        if not fits and not numbered:  # the same names with and without folder and suffix
            bare = {*map(_bare, ids)}
            fits = [str(column) for column in right.columns if bare & {*map(_bare, right[column])}]
        if not fits and numbered and len(source.files) == 1 and len(left) == len(right):
            return "", ""  # one file that is no slide of the table: its rows have no names
        if len(fits) == 1:
            say(f"rows are joined on {fits[0]!r} of {Path(name).name}")
            return "patch_id", fits[0]
        raise InvalidRequest(
            f"{name}: which of its columns names the rows of {source.path}? Give --join patch_id=NAME (or "
            "--join group=NAME for slides, --join row for the order); it has "
            f"{listed(map(str, right.columns))}"
        )
    return "", ""


def check_order(left: pd.DataFrame, right: pd.DataFrame, source: Source, name: str) -> None:
    """Raise InvalidRequest where rows that would be joined by their order have names, and these differ.

    Names of the source are no ids where some are repeated, or where they are numbers.
    """
    for ours in (column for column in IDS if column in left.columns):
        for right_column in map(str, right.columns):
            left_names, other = _names(left[ours], right[right_column], False)
            alike = (
                {*left_names} == {*other}
                if left[ours].dtype.kind in "iuf"
                else not {*left_names}.isdisjoint(other)
            )
            row = next((i for i, (a, b) in enumerate(zip(left_names, other, strict=True)) if a != b), -1)
            if alike and row >= 0:
                raise InvalidRequest(
                    f"{source.row(row)} is {left_names[row]!r} ({ours}), and row {row + 1} of {name} is "
                    f"{other[row]!r} ({right_column}): they cannot be joined by their order. Fix: --join "
                    f"{ours}={right_column}, for which every name has to be there once; --join row, if the "
                    "order is right all the same"
                )


def _names(left: pd.Series, right: pd.Series, slides: bool) -> tuple[list[str], list[str]]:
    """What is compared of both columns: names of slides, and ids of which none is the same as it stands,
    without folder and suffix, unless two ids of the source would be one then.
    """
    left_names, other = left.astype(str).tolist(), right.astype(str).tolist()
    bare = [_bare(name) for name in left_names]
    if slides or (not {*left_names} & {*other} and len({*bare}) == len(bare)):
        return bare, [_bare(name) for name in other]
    return left_names, other


def _bare(path: object) -> str:
    """The name of a slide or an image without folder and suffix."""
    name = str(path).strip().replace("\\", "/").rpartition("/")[2]
    return re.sub(_SUFFIX, "", name, flags=re.I)


def partners(
    left: Sequence[str],
    right: Sequence[str],
    source: Source,
    name: str,
    column: str,
    *,
    unique: bool = True,
) -> np.ndarray:
    """The row of the table for each of the source, -1 where there is none. Raises for two rows of one name.

    unique : whether the names of the source are ids, not slides
    """
    of: dict[str, int] = {}
    for row, text in enumerate(right):
        if text in of:
            raise InvalidRequest(
                f"{name}: rows {of[text] + 1} and {row + 1} are both of {text!r} ({column}); keep one of them"
            )
        of[text] = row
    first: dict[str, int] = {}
    for row, value in enumerate(left if unique else ()):
        if value in first:
            raise InvalidRequest(
                f"{source.row(first[value])} and {source.row(row)} have the same id {value!r}"
            )
        first[value] = row
    return np.array([of.get(value, -1) for value in left])


def matched(
    at: np.ndarray, source: Source, right: pd.DataFrame, name: str, column: str, unmatched: str, say: Say
) -> np.ndarray:
    """The rows of the source that have a partner. Raises InvalidRequest where some have none."""
    alone = np.flatnonzero(at < 0)
    lost = sorted({*range(len(right))} - {*at.tolist()})
    faults = []
    if len(alone):
        faults.append(
            f"{len(alone)} of {len(at)} embeddings have no row in {name} (the first: "
            f"{source.row(int(alone[0]))})"
        )
    if lost:
        faults.append(
            f"{len(lost)} of {len(right)} rows of {name} have no embedding in {source.path} (the first: row "
            f"{lost[0] + 1}, {right[column].iloc[lost[0]]!r})"
        )
    if faults and (unmatched == "fail" or len(alone) == len(at)):
        raise InvalidRequest(
            f"{'; '.join(faults)}. Fix: --join OURS=THEIRS, or --unmatched drop leaves them out"
        )
    for fault in faults:
        say(f"left out: {fault}")
    return np.flatnonzero(at >= 0)


def rows_of(source: Source, rows: np.ndarray) -> Source:
    """Some rows of a source, int (m,) ascending."""
    if len(rows) == source.vectors.shape[0]:
        return source
    return source.take(rows)


def _identified(source: Source, frame: pd.DataFrame) -> Source:
    """The source with this table, in which every row has an id of its own."""
    if "patch_id" not in frame.columns:
        ids = next((name for name in IDS if name in frame.columns and _names_rows(frame[name])), "")
        stem = source.path.stem or "row"
        named = frame[ids].astype(str) if ids else [f"{stem}/{i}" for i in range(len(frame))]
        frame = frame.assign(patch_id=named)
    ids = frame["patch_id"].astype(str)
    made = source.with_table(frame.assign(patch_id=ids))
    empty = np.flatnonzero((ids.str.strip() == "").to_numpy())
    if len(empty):
        raise InvalidRequest(f"{made.row(int(empty[0]))} has an empty patch_id")
    twice = np.flatnonzero(ids.duplicated().to_numpy())
    if len(twice):
        first = int(np.flatnonzero((ids == ids.iloc[twice[0]]).to_numpy())[0])
        raise InvalidRequest(
            f"{made.row(first)} and {made.row(int(twice[0]))} have the same id ({len(twice)} such rows)"
        )
    return made


def _names_rows(column: pd.Series) -> bool:
    """Whether the values are texts, none of them empty or twice."""
    texts = column.astype(str)
    return (
        pd.api.types.is_string_dtype(column) and bool(texts.is_unique) and not (texts.str.strip() == "").any()
    )

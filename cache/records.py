"""What the lines of a log may hold. Whoever made a store can seal any line, so each is checked before use.

Names in a line become names of files: a block id is 12 and 32 hex digits, and the arrays' files are the few
that `finalize` writes.
"""

import math
import re
from collections.abc import Callable
from typing import Any

from .narrowing import is_list, is_object

SEGMENT_ROWS = 256
MAX_ROWS = 1 << 31  # of a block
_BLOCK_ID = re.compile(r"[0-9a-f]{12}-[0-9a-f]{32}")
_SUM = re.compile(r"[0-9a-f]{16}")
_SUMS = re.compile(r"(?:[0-9a-f]{16})+")
_FRAME = re.compile(r"[0-9]{1,18}:[0-9a-f]{16}")
# embeddings.h5, ARRAY/zarr.json, and the chunks of string columns; never a block, a chunk of one, or a log
_VIEW = re.compile(
    r"embeddings\.h5|(?!parts/)(?!\.)[^/\\:\0]+/zarr\.json|"
    r"(?!(?:parts|embeddings|content_hash)/)(?!\.)[^/\\:\0]+/c/(?:0|[1-9][0-9]{0,9})"
)


def is_block_id(word: object) -> bool:
    """Whether this is the name of a block as `block_name` makes them, and so of files in parts/blocks."""
    return isinstance(word, str) and _BLOCK_ID.fullmatch(word) is not None


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _rows(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_ROWS


def _time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: object) -> bool:
    return isinstance(value, str)


def _texts(value: object) -> bool:
    return is_list(value) and all(isinstance(item, str) for item in value)


def _ids(value: object) -> bool:
    return is_list(value) and all(map(is_block_id, value)) and len(set(value)) == len(value)


def _like(pattern: re.Pattern[str]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _view(value: object) -> bool:
    return is_object(value) and all(map(_like(_VIEW), value)) and all(map(_like(_SUM), value.values()))


_MEMBERS: dict[str, dict[str, Callable[[object], bool]]] = {
    "writer": {"writer": _text, "time": _time},
    "block": {
        "block": is_block_id,
        "rows": _rows,
        "segments": _like(_SUMS),
        "keys": _like(_SUM),
        "first": _like(_SUM),
        "time": _time,
        "writer": _text,
    },
    "retire": {"blocks": _ids},
    "order": {"generation": _count, "blocks": _ids, "view": _view, "time": _time},
    "excuse": {"lines": _texts},
}
_ADVICE = "another version of patchbank wrote the store, or it was tampered with: nothing was touched"
_MAY: dict[str, dict[str, Callable[[object], bool]]] = {
    "writer": {"lines": _count},
    "retire": {"time": _time},
    # where a backend's rows are in its files
    "block": {"padding": _count, "vectors_at": _count, "keys_at": _count, "frame": _like(_FRAME)},
}


def check_record(record: dict[str, Any]) -> str | None:
    """What is wrong with a record of a log, or None."""
    kind = record.get("type")
    if not isinstance(kind, str) or kind not in _MEMBERS:
        return f"is of the type {kind!r}, which this patchbank does not know; update patchbank"
    members = {"n": _count, **_MEMBERS[kind]}
    missing = members.keys() - record.keys()
    if missing:
        return f"has no {', '.join(map(repr, sorted(missing)))}; {_ADVICE}"
    members |= {name: good for name, good in _MAY.get(kind, {}).items() if name in record}
    wrong = [name for name, good in members.items() if not good(record[name])]
    if not wrong and kind == "block" and len(record["segments"]) != 16 * -(-record["rows"] // SEGMENT_ROWS):
        wrong = ["segments"]
    if wrong:
        return f"says {wrong[0]!r} is {str(record[wrong[0]])[:60]!r}, which is not possible; {_ADVICE}"
    return None

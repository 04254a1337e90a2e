"""What the cells of a user's own table mean: missing values, numbers, spellings, the names of splits.

Tables that were typed or exported write one thing in several ways. What is certain is read as what it means
and reported; what is not (two spellings of one class, or two classes?) is refused by name.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import pandas as pd

from ..errors import InvalidRequest, ManifestError
from ..settings import near
from .arrow import TEXT, in_arrow
from .manifest import listed

COLUMNS = ("label", "group", "domain", "split")
HIDDEN = "-1"  # beside labels that count from 0: not known
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "val": "val",
          "valid": "val", "validation": "val"}  # fmt: skip
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u2060\ufeff]")  # of no width, between or around letters
_CONTROL = re.compile("[\\x00-\\x08\\x0e-\\x1f\\x7f]")
_INSIDE = re.compile(r"(?<=[^\W\d_]) (?=[^\W\d_])")  # a blank between letters
_QUOTED = re.compile(r"""(['"`])(.+)\1\Z""")
_BETWEEN = re.compile(r"(?<=[^\W\d_])[-_./ ]+(?=[^\W\d_])")  # marks between letters
_PLURAL = re.compile(r"\b([^\W\d_]{4,}(?<![sui]))s\b")  # not of necrosis, mucus, mass
_BRITISH = (("(?<=[a-z]{2})our", "or"), ("[ao]e", "e"), ("(?<=[bt])re\\b", "er"), ("grey", "gray"))
# letters that look the same: Cyrillic capitals and small letters, Greek capitals and omicron -> Latin
_LOOK_ALIKE = str.maketrans(
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0423\u0425\u0406\u0408\u0405"
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u0501\u051b\u051d"
    "\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7\u03bf",
    "ABEKMHOPCTYXIJS" + "aeopcyxijsdqw" + "ABEZHIKMNOPTYXo",
) | dict.fromkeys((*range(0x2010, 0x2016), 0x2212), "-")
_PADDED = re.compile(r"(?<![\d.,])0+(?=\d)")  # the zeros of "007"
_WHOLE = re.compile(r"([+-]?[0-9]+)(\.0+)?\Z")  # "1.0": pandas writes whole numbers with gaps so


def key_of(value: str) -> str:
    """The same for values that look the same: case, width, blanks, characters of no width, other scripts."""
    seen = "".join(
        letter
        for letter in unicodedata.normalize("NFKC", value).translate(_LOOK_ALIKE)
        if letter.isspace() or unicodedata.category(letter) not in ("Cf", "Cc")
    )
    return _INSIDE.sub("", " ".join(seen.casefold().split()))


def spelling_of(label: str) -> str:
    """The same for labels that are one class in several spellings.

    Beside `key_of`: quotes, accents, punctuation between and after words ("non-tumor", "tumor."), plural and
    British English, leading zeros. Signs and numbers stay: "HER2+" and "HER2-", "<5" and ">5", "1.5" and "15"
    differ.
    """
    key = _QUOTED.sub(r"\2", key_of(label)).strip(" .,;:!?_")
    letters = unicodedata.normalize("NFD", _BETWEEN.sub("", _PLURAL.sub(r"\1", key)))
    key = "".join(letter for letter in letters if not "\u0300" <= letter <= "\u036f")
    for british, american in _BRITISH:
        key = re.sub(british, american, key)
    return _PADDED.sub("", _WHOLE.sub(r"\1", key))


def spellings(labels: Collection[str]) -> list[list[str]]:
    """The labels that may be one class, together; only those that have others beside them."""
    families: dict[str, list[str]] = {}
    for label in dict.fromkeys(labels):
        if label:
            families.setdefault(spelling_of(label), []).append(label)
    return [family for family in families.values() if len(family) > 1]


def spellings_note(labels: Collection[str]) -> str:
    """A sentence without an end about labels that may be one class; "" where there are none."""
    pairs = [" and ".join(_shown(label, family) for label in family) for family in spellings(labels)]
    return f"labels that may be one class in several spellings: {listed(pairs)}" if pairs else ""


def _shown(value: str, family: Sequence[str]) -> str:
    """The value in quotes; as code points where it looks like another of them."""
    seen = unicodedata.normalize("NFC", value).translate(_LOOK_ALIKE)
    others = [
        unicodedata.normalize("NFC", other).translate(_LOOK_ALIKE) for other in family if other != value
    ]
    return ascii(value) if seen in others else repr(value)


# pandas' own list, what spreadsheets, databases, R and people add; compared by `key_of`
_WORDS = (
    *("", "na", "n/a", "n.a.", "n.a", "na.", "nan", "-nan", "none", "null", "nil", "nat", "<na>"),
    *("(null)", "[null]", "<null>", "(none)", "<none>", "(na)", "[na]", "(blank)", "(empty)"),
    *("#na", "#n/a", "#n/a n/a", "#ref!", "#value!", "#div/0!", "#name?", "#null!", "#num!", "\\n"),
    *("1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan", "?", "??", "???", ".", "..", "...", "_", "/"),
    *("missing", "unknown", "not known", "not available", "notavailable"),
    *("undefined", "unspecified", "not specified", "unlabeled", "unlabelled", "not labeled"),
    *("not labelled", "no label", "unannotated", "not annotated", "tbd", "to be determined"),
)
MISSING = frozenset(map(key_of, _WORDS))
DASHES = frozenset(("-", "--", "---", "\u2013", "\u2014"))  # missing too, but not beside "+"


def read_values(
    table: pd.DataFrame,
    *,
    classes: Sequence[str] = (),
    positive: str = "",
    mapping: Mapping[str, str] | None = None,
    strip: bool = False,
    say: Callable[[str], None],
) -> pd.DataFrame:
    """The table with the columns label, group, domain and split as texts, "" where a value is missing.

    Words for missing ("NA", "nan", "None", "unknown", "?", "-", ..., and "-1" beside labels that count from
    0) become "", but for `classes` and `positive`; numbers like "1.0" become "1" where the column holds whole
    numbers only; "Training" becomes the split "train".
    mapping : old -> new value of a label, or "group:old", "domain:old", "split:old" -> new; "" = missing
    strip : remove blanks around values and characters of no width, and write Unicode composed (NFC)
    say : called with a sentence without an end for everything that was changed

    Raises ManifestError for labels, groups, ... that differ in blanks, case or Unicode form only, and labels
    that differ in their spelling only (`spelling_of`), unless each of them is named in `mapping`;
    InvalidRequest where `mapping` names a value that does not occur.
    """
    table = table.copy()
    wanted = _by_column(mapping or {})
    for column in COLUMNS:
        if column not in table.columns:
            if wanted[column]:
                raise InvalidRequest(f"--map names the {column}, and the data have none.")
            continue
        kept = {*classes, *filter(None, [positive])} if column == "label" else set()
        cells = table[column]
        if cells.dtype != TEXT:
            cells = cells.astype(object).where(cells.notna(), "").map(str)
        codes, cells_found = pd.factorize(cells.fillna(""))
        values = [str(value) for value in cells_found]
        counts = Counter(dict(zip(values, np.bincount(codes, minlength=len(values)).tolist(), strict=True)))
        if broken := sorted(value for value in counts if "\n" in value.strip()):
            raise ManifestError(f"a {column} holds a line break ({broken[0][:60]!r}): is a quote not closed?")
        if broken := sorted(value for value in counts if _CONTROL.search(value.strip())):
            raise ManifestError(
                f"a {column} holds a control character ({broken[0][:60]!r}). Fix: remove it from the table."
            )
        new = _meanings(column, counts, wanted[column], kept, strip, say)
        _refuse_spellings(column, counts, new, wanted[column], classes if column == "label" else ())
        meant = in_arrow(pd.Series([new[value] for value in values], dtype=object))
        table[column] = meant.take(codes).set_axis(table.index)
    return table


def _by_column(mapping: Mapping[str, str]) -> dict[str, dict[str, str]]:
    mappings: dict[str, dict[str, str]] = {column: {} for column in COLUMNS}
    for old, new in mapping.items():
        column, mark, rest = old.partition(":")
        if mark and column in COLUMNS:
            mappings[column][rest] = new
        else:
            mappings["label"][old] = new
    return mappings


def _meanings(
    column: str,
    counts: Counter[str],
    wanted: Mapping[str, str],
    kept: Collection[str],
    strip: bool,
    say: Callable[[str], None],
) -> dict[str, str]:
    """What each value that occurs becomes."""
    new = {value: _stripped(value) if strip else value for value in counts}
    words = MISSING if any("+" in value for value in counts) else MISSING | DASHES
    missing = [value for value in counts if key_of(value) in words and value.strip() not in kept]
    numbers = {_WHOLE.sub(r"\1", value.strip()) for value in counts}
    if column == "label" and "0" in numbers and HIDDEN in numbers and HIDDEN not in kept:
        missing += [value for value in counts if _WHOLE.sub(r"\1", value.strip()) == HIDDEN]
    new |= dict.fromkeys(missing, "")
    if all(_WHOLE.match(value) for value in new.values() if value):
        new = {old: _WHOLE.sub(r"\1", value) for old, value in new.items()}
    if column == "split":
        known = {old: SPLITS.get(value.strip().casefold(), value) for old, value in new.items()}
        if renamed := {old: word for old, word in known.items() if new[old] != word}:
            say("splits: " + listed(f"{old!r} is taken as {word!r}" for old, word in sorted(renamed.items())))
        new = known
    for old in wanted:
        if old not in counts and old not in new.values():
            hint = near(old, counts) or f"; there are {listed(map(repr, sorted(counts)))}."
            raise InvalidRequest(f"--map: no {column} is {old!r}{hint}")
    new = {old: wanted.get(old, wanted.get(value, value)) for old, value in new.items()}
    lost = sorted(value for value in missing if not new[value])
    rows = sum(counts[value] for value in lost)
    words = [repr(value) for value in lost if value.strip()]
    if words or (column == "label" and 0 < rows < counts.total()):
        read = f": {listed(words)} read as missing" if words else ""
        hint = "; if that is a class, name it with --classes" if words and column == "label" else ""
        say(f"{rows} of {counts.total()} rows have no {column}{read}{hint}")
    return new


def _refuse_spellings(
    column: str,
    counts: Counter[str],
    new: Mapping[str, str],
    wanted: Mapping[str, str],
    classes: Sequence[str],
) -> None:
    rows: Counter[str] = Counter(dict.fromkeys(classes, 0))
    for old, value in new.items():
        if value:
            rows[value] += counts[old]
    families: dict[str, list[str]] = {}
    for value in rows:
        key = _WHOLE.sub(r"\1", _QUOTED.sub(r"\2", key_of(value)))
        families.setdefault(_PADDED.sub("", key) if column == "group" else key, []).append(value)
    meant = {*wanted.values()}
    found = spellings(rows) if column == "label" else families.values()
    split = [family for family in found if len(family) > 1 and not set(family) <= meant]
    if not split:
        return
    shown = [
        " and ".join(f"{_shown(value, family)} ({rows[value]} rows)" for value in family) for family in split
    ]
    how = "punctuation, plural, British English, " if column == "label" else ""
    how += "leading zeros, " if column in ("label", "group") else ""
    how = f"blanks, case, quotes, {how}look-alike letters or Unicode form"
    first = sorted(split[0], key=lambda value: -rows[value])
    raise ManifestError(
        f"{column}s that differ in {how} only: {listed(shown)}. Fix: --strip "
        f"removes blanks and characters of no width; --map {_key(column, first[1])!r}={first[0]!r} joins "
        "two; mapping each to itself keeps them apart."
    )


def _stripped(value: str) -> str:
    return unicodedata.normalize("NFC", _INVISIBLE.sub("", value).strip())


def _key(column: str, value: str) -> str:
    return value if column == "label" else f"{column}:{value}"

"""Settings: frozen models that name every fault at once, and TOML files as editors write them.

class Rule(Settings):
    metric: Literal["auroc", "balanced_accuracy"] = "auroc"
    target: float = 0.9

Rule.read({"metrik": "auroc", "target": "high"}, where="plan.toml")
InvalidRequest: plan.toml: unknown key 'metrik', did you mean 'metric'?; target = 'high' has to be a number
"""

import codecs
import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from .errors import InvalidRequest
from .files import write_text

_MARKS = (  # the 32-bit mark begins as the 16-bit one does
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


SHIPPED = Path(__file__).resolve().parent / "manifests"  # what comes with the package, a folder a kind


class Settings(BaseModel):
    """Base of settings: frozen, no unknown keys, no values of another type.

    A whole number is taken for a number, a list for a tuple. Raises InvalidRequest with every fault, also
    those of nested settings.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    SINGLE: ClassVar[bool] = False
    """Whether one value stands for a list of one."""

    def __init__(self, /, **values: Any) -> None:
        fields = {field.alias or name: field for name, field in type(self).model_fields.items()}
        given = {key: self._listed(fields[key], v) if key in fields else v for key, v in values.items()}
        draft, faults = self, []
        try:
            super().__init__(**given)
        except ValidationError as error:
            wrong = set()
            listed = error.errors(include_url=False)
            for one in sorted(listed, key=lambda one: one["type"] != "extra_forbidden"):
                key = str(one["loc"][0])
                faults += [fault for fault in _sentences(key, one, given, fields) if fault not in faults]
                if not _is_nested(one):
                    wrong.add(key)
            good = {key: value for key, value in given.items() if key not in wrong}
            empty = {key: _empty(field) for key, field in fields.items() if field.is_required()}
            draft = self.model_construct(_fields_set=set(good), **(empty | good))
        faults += draft.faults()
        if faults:
            raise InvalidSettings(faults)
        vars(self).update(self.resolved())

    def faults(self) -> Iterable[str]:
        """What is wrong between values, or with their size: a sentence each.

        Called also where other values are missing or of the wrong type: those have their default here, or are
        empty, and are not in `model_fields_set`; nested settings may be plain dicts then.
        """
        return ()

    def resolved(self) -> Mapping[str, Any]:
        """The values that take effect, where those given are None or cannot matter."""
        return {}

    @classmethod
    def read(cls, values: Mapping[str, Any], *, where: str) -> Self:
        """From a table of a file; `where` names it in the error."""
        try:
            return cls(**values)
        except InvalidSettings as error:
            raise InvalidSettings(error.faults, where=where) from None

    def replace(self, **changes: Any) -> Self:
        """The same with other values, checked as any."""
        fields = type(self).model_fields.items()
        return type(self)(**{field.alias or name: getattr(self, name) for name, field in fields} | changes)

    @classmethod
    def _listed(cls, field: FieldInfo, value: Any) -> Any:
        """A list as the tuple that the field is."""
        if all(get_origin(option) is not tuple for option in _options(field.annotation)):
            return value
        if isinstance(value, list):
            return tuple(value)
        return (value,) if cls.SINGLE and value is not None and not isinstance(value, tuple) else value


class InvalidSettings(InvalidRequest):
    """Settings with faults: a sentence each."""

    def __init__(self, faults: Iterable[str], *, where: str = "") -> None:
        self.faults = list(faults)
        super().__init__((f"{where}: " if where else "") + "; ".join(self.faults))


def _sentences(key: str, error: Any, values: Mapping[str, Any], fields: Mapping[str, FieldInfo]) -> list[str]:
    """An error of pydantic in words."""
    if key not in fields:
        return [f"unknown key {key!r}{near(key, fields)}"]
    if error["type"] == "missing":
        return [f"{key} is missing"]
    if _is_nested(error):
        where = key if len(error["loc"]) == 1 else _element(key, error["loc"][1], error["input"])
        return [f"{where}: {fault}" for fault in error["ctx"]["error"].faults]
    value, wanted = values[key], fields[key].annotation
    if isinstance(value, str) and get_origin(wanted) is tuple:
        return [f"{key} is a list, as [{value!r}]"]
    options = _options(wanted)
    if len(options) == 1 and get_origin(options[0]) is Literal:
        return [not_one_of(key, value, get_args(options[0]))]
    shown = list(value) if isinstance(value, tuple) else value
    return [f"{key} = {shown!r} has to be {' or '.join(_kind(one, key) for one in options)}"]


def near(word: str, known: Iterable[str]) -> str:
    """`, did you mean 'NAME'?` where a known name is like the word, else ""."""
    candidates = nearest(word, known)
    return f", did you mean {candidates!r}?" if candidates else ""


def nearest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """The known name that is most like the word, "" if none is (see difflib.get_close_matches)."""
    return next(iter(alike(word, known, n=1, cutoff=cutoff)), "")


def alike(word: str, known: Iterable[str], *, n: int = 3, cutoff: float = 0.6) -> list[str]:
    """The known names that are most like the word, at most n of them (see difflib.get_close_matches)."""
    return difflib.get_close_matches(word, [str(name) for name in known], n=n, cutoff=cutoff)


def not_one_of(key: str, value: Any, allowed: Iterable[Any]) -> str:
    """The sentence for a value that is not one of those allowed, with the one that is like it."""
    words = [str(name) for name in allowed]
    return f"{key} {value!r} is not one of {', '.join(words)}{near(str(value), words)}"


def _options(wanted: Any) -> list[Any]:
    """The types of a union, None left out; the type itself where it is none."""
    if get_origin(wanted) in (Union, UnionType):
        return [kind for kind in get_args(wanted) if kind is not NoneType]
    return [wanted]


def _empty(field: FieldInfo) -> Any:
    kind = get_origin(field.annotation) or field.annotation
    return kind() if kind in (str, bool, int, float, tuple) else {}


def _is_nested(error: Any) -> bool:
    return isinstance(error.get("ctx", {}).get("error"), InvalidSettings)


def _element(key: str, index: int | str, value: Any) -> str:
    """Where a fault is in a table of tables, or in a list: its number, and the name that it has."""
    if isinstance(index, str):
        return f"{key}.{index}"
    named = value if isinstance(value, Mapping) else {}
    name = next((named[key] for key in ("name", "encoder") if key in named), "without a name")
    return f"{key} {index + 1} ({name})"


_KINDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
_PLURAL = {str: "texts", int: "whole numbers", float: "numbers"}


def _kind(wanted: Any, key: str) -> str:
    """A type in words."""
    if get_origin(wanted) is Literal:
        return "one of " + ", ".join(map(str, get_args(wanted)))
    if get_origin(wanted) is tuple:
        inner = get_args(wanted)[0]
        return (
            f"a list of {_PLURAL[inner]}" if inner in _PLURAL else f"a list of tables, each under [[{key}]]"
        )
    return _KINDS.get(wanted, "a table")


@cache
def _encoder_names() -> dict[str, str]:
    others: dict[str, str] = {}
    for file in sorted((SHIPPED / "encoders").glob("*.toml")):
        card = read_toml(file)
        used = [name for names in card.get("used_by", {}).values() for name in names]
        others |= {name.lower(): file.stem for name in (*card.get("aliases", ()), *used)}
    return others


def encoder_id(name: str) -> str:
    """The id of the shipped encoder that other tools call so; the name itself where there is none."""
    return _encoder_names().get(name.lower(), name)


def encoding_of(head: bytes) -> str:
    """The encoding of a text that starts with these bytes: what its byte order mark says, else UTF-8."""
    return next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")


def read_toml(path: str | Path) -> dict[str, Any]:
    """A TOML file. Raises OSError where it cannot be read, tomllib.TOMLDecodeError where it is not TOML."""
    return tomllib.loads(toml_text(path))


def read_table(path: str | Path, what: str) -> dict[str, Any]:
    """A TOML file that a user names; `what` it is. Raises InvalidRequest where it cannot be read."""
    try:
        return read_toml(path)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidRequest(f"{what} {path} cannot be read: {error}") from error


def write_toml(file: str | Path, document: Mapping[str, Any], *, remark: str = "") -> Path:
    """Write TOML, whole or not at all; values that are None are left out. remark : a comment at its top."""
    text = tomli_w.dumps(_without_none(document))
    return write_text(file, "".join(f"# {line}\n" for line in remark.splitlines()) + text)


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(one) for one in value] if isinstance(value, list | tuple) else value


def toml_text(path: str | Path) -> str:
    """The text of a TOML file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark (Windows' editors).

    Raises OSError where it cannot be read, tomllib.TOMLDecodeError where it is not text.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(f"{path} is a pipe or device, not a file")
    data = path.read_bytes()
    encoding = encoding_of(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise tomllib.TOMLDecodeError(
            f"it is not {encoding.upper()} text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    if "\0" in text:
        raise tomllib.TOMLDecodeError("it holds NUL characters; save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


_ITEM = TypeVar("_ITEM")


def listing(argument: str, values: Iterable[_ITEM], *, alone: tuple[type, ...] = ()) -> list[_ITEM]:
    """The values of an argument that takes several.

    Raises InvalidRequest where one stands alone: a text would be read letter by letter.

    alone : other types of which a single one is refused
    """
    if isinstance(values, (str, os.PathLike, *alone)):
        shown = repr(values) if isinstance(values, str | os.PathLike) else argument.removesuffix("s")
        raise InvalidRequest(f"{argument} takes a list: write {argument}=[{shown}]")
    return list(values)

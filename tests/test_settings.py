"""Every reader of TOML files takes them as editors write them, and says what it cannot read."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytest
from patchbank.cache.table import read_table
from patchbank.datasets.declarations import load_declaration
from patchbank.datasets.folds import load_folds
from patchbank.datasets.manifest import Header, Manifest, load_manifest
from patchbank.errors import PatchbankError
from patchbank.extract.cards import read_card
from patchbank.finetune.plan import FinetunePlan, Rule, load_plan
from patchbank.finetune.recipe import load_recipe
from patchbank.probe.config import read_settings
from patchbank.probe.report.published import load_published
from patchbank.settings import InvalidSettings, Settings, read_toml, write_toml
from patchbank.study_file import load_study
from pydantic import Field

SHIPPED = Path(__file__).resolve().parent.parent / "manifests"
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"]
MARKS = {"utf-16-be": b"\xfe\xff"}


def manifest(folder: Path) -> str:
    header = Header(name="toy", version="1", classes=(), positive="", licence="Ü", source="日本")
    table = pd.DataFrame({"patch_id": ["toy/1"], "path": ["1.png"], "content_hash": ["ab" * 16]})
    return Manifest(header, table, folder).save(folder / "made.toml").read_text("utf-8")


def plan(folder: Path) -> str:
    made = FinetunePlan(train="t.toml", tests=(), encoders=(), rule=Rule())
    return made.save(folder / "plan.toml").read_text("utf-8")


def of(name: str) -> Callable[[Path], str]:
    return lambda folder: (SHIPPED / name).read_text("utf-8")


READERS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], str]]] = {
    "manifest": (lambda path: load_manifest(path).header, manifest),
    "table": (lambda path: read_table(path)["patch_id"].tolist(), manifest),
    "folds": (load_folds, of("folds/paper.toml")),
    "declaration": (load_declaration, of("datasets/ami-br.toml")),
    "card": (lambda path: read_card(path).id, of("encoders/uni.toml")),
    "recipe": (load_recipe, of("recipes/lora.toml")),
    "plan": (load_plan, plan),
    "settings": (read_settings, lambda folder: '[probe]\nmetrics = ["auroc"]\n'),
    "published": (lambda path: load_published(str(path)), of("studies/published-2506.21444.toml")),
    "study": (load_study, of("studies/ami-br.toml")),
}


@pytest.mark.parametrize("name", READERS)
def test_readers_take_what_editors_write(name: str, tmp_path: Path) -> None:
    read, text = READERS[name]
    source = text(tmp_path)
    file = tmp_path / "file.toml"
    found = []
    for encoding in ENCODINGS:
        for end in ("\n", "\r\n", "\r"):
            file.write_bytes(MARKS.get(encoding, b"") + source.replace("\n", end).encode(encoding))
            found.append(read(file))
    assert all(one == found[0] for one in found)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "data",
    [
        "a = 1\n".encode("utf-16-le"),
        b"a = '\xfc'\n",
        b"\xff\xfea",
        b"<!DOCTYPE html>\n<html>",
        b"a = [1, 2",
        b"\x89PNG\r\n\x1a\n\0\0",
        b"",
    ],
    ids=["no mark", "latin-1", "cut UTF-16", "page", "cut", "picture", "empty"],
)
def test_readers_say_what_they_cannot_read(name: str, data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "file.toml"
    file.write_bytes(data)
    if name == "recipe" and not data:
        return  # all of a recipe has defaults
    with pytest.raises(PatchbankError, match=r"file\.toml"):
        READERS[name][0](file)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.toml")
    with pytest.raises(OSError, match="a pipe or device"):
        read_toml(tmp_path / "a.toml")


class Part(Settings):
    name: str
    size: float = 1.0
    kind: Literal["flat", "deep"] = "flat"

    def faults(self) -> Iterable[str]:
        if self.size < 0:
            yield f"size has to be 0 or more, not {self.size}"


class Whole(Settings):
    title: str
    folds: str | int = "balanced"
    words: tuple[str, ...] = ()
    extra: Mapping[str, Any] = {}
    flag: bool = False
    parts: tuple[Part, ...] = Field(default=(), alias="part")

    def faults(self) -> Iterable[str]:
        if self.flag and not self.words:
            yield "flag needs words"


GOOD = {"title": "a", "folds": 3, "words": ["x"], "part": [{"name": "p", "size": 2}], "extra": {"a": 1}}


def test_settings_are_typed_and_frozen() -> None:
    whole = Whole.read(GOOD, where="file")
    assert (whole.words, whole.parts) == (("x",), (Part(name="p", size=2.0),))
    assert type(whole.parts[0].size) is float
    assert whole.replace(folds="paper").folds == "paper"
    assert whole.replace(folds="paper").parts == whole.parts
    with pytest.raises(ValueError, match="frozen"):
        whole.title = "b"  # type: ignore[misc]
    with pytest.raises(InvalidSettings, match="title = 3 has to be a text"):
        whole.replace(title=3)


@pytest.mark.parametrize(
    ("changes", "faults"),
    [
        ({"titel": "b"}, ["unknown key 'titel', did you mean 'title'?"]),
        ({"title": 5}, ["title = 5 has to be a text"]),
        ({"folds": True}, ["folds = True has to be a text or a whole number"]),
        ({"folds": 1.5}, ["folds = 1.5 has to be a text or a whole number"]),
        ({"words": "x"}, ["words is a list, as ['x']"]),
        ({"words": [1, 2]}, ["words = [1, 2] has to be a list of texts"]),
        ({"extra": [1]}, ["extra = [1] has to be a table"]),
        ({"flag": "yes"}, ["flag = 'yes' has to be true or false"]),
        ({"flag": True, "words": []}, ["flag needs words"]),
        ({"part": {"name": "p"}}, ["part = {'name': 'p'} has to be a list of tables, each under [[part]]"]),
        ({"parts": []}, ["unknown key 'parts', did you mean 'part'?"]),
        (
            {"part": [{"name": "p"}, {"name": "q", "kind": "dep", "size": -1}, {"size": "big"}], "titel": 1},
            [
                "unknown key 'titel', did you mean 'title'?",
                "part 2 (q): kind 'dep' is not one of flat, deep, did you mean 'deep'?",
                "part 2 (q): size has to be 0 or more, not -1",
                "part 3 (without a name): name is missing",
                "part 3 (without a name): size = 'big' has to be a number",
            ],
        ),
    ],
)
def test_every_fault_of_settings_is_named_at_once(changes: dict[str, Any], faults: list[str]) -> None:
    with pytest.raises(InvalidSettings) as error:
        Whole.read(GOOD | changes, where="a.toml")
    assert error.value.faults == faults
    assert str(error.value) == "a.toml: " + "; ".join(faults)


def test_toml_is_written_as_it_is_read(tmp_path: Path) -> None:
    odd = {"a": 'x"\\\n\t\u001b', "b": [1, 2.5, True], "none": None, "t": {"k.l": "ü"}}
    odd |= {"s": [{"x": None, "y": 1}]}
    file = write_toml(tmp_path / "a.toml", odd, remark="by hand\nor not")
    assert file.read_text("utf-8").startswith("# by hand\n# or not\n")
    assert read_toml(file) == {k: v for k, v in odd.items() if k not in ("none", "s")} | {"s": [{"y": 1}]}


def test_there_is_one_reader() -> None:
    """Other modules parse texts that are no files: a card in memory, a value of an option."""
    files = [path for path in SHIPPED.parent.rglob("*.py") if not {"tests", "build"} & set(path.parts)]
    assert len(files) > 80
    found = {
        path.relative_to(SHIPPED.parent).as_posix() for path in files if "tomllib.load" in path.read_text()
    }
    assert found == {"settings.py", "extract/cards.py", "finetune/cli.py"}

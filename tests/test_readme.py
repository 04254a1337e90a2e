"""README is true: its commands parse, its Python runs, its transcript and tables are what the code says."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from patchbank import cli

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def commands() -> Iterator[list[str]]:
    """Every `patchbank ...` of the shell blocks, as words."""
    for block in blocks("sh"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split("&&"):
                words = shlex.split(part.partition(" > ")[0], comments=True)
                if words[:1] == ["patchbank"]:
                    yield words[1:]


def test_two_commands_do_all_the_set_up() -> None:
    first, second = blocks("sh")[0].splitlines()
    assert first == 'pip install -e ".[extract]" && patchbank quickstart'
    assert second.startswith('pip install -e ".[test]" && pytest')
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert {"extract", "test"} <= set(extras)
    assert "README.md" in (ROOT / ".ci" / "run").read_text("utf-8")


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_commands_parse(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for word in words:  # what the command before has made
        if word.endswith((".toml", ".csv", ".png")):
            (tmp_path / word).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / word).touch()
    for folder in ("data", "results", "bank", "images"):
        (tmp_path / folder).mkdir()
    command: click.Command = cli.patchbank
    context = click.Context(command)
    while isinstance(command, click.Group):
        found = command.get_command(context, words[0])
        assert found is not None, words
        command, words = found, words[1:]
    command.make_context("patchbank", list(words), parent=context)


def test_at_least_the_main_commands_are_shown() -> None:
    shown = {words[0] for words in commands()}
    assert {"quickstart", "datasets", "extract", "probe", "cache"} <= shown


@pytest.mark.xdist_group("quickstart")
def test_the_python_runs_on_the_quickstart(quickstart_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(quickstart_folder.parent)
    assert quickstart_folder.name == "patchbank-quickstart"
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
    assert blocks("python")


def test_the_table_of_folders_is_the_tree() -> None:
    listed = set(re.findall(r"^\| `(\w+)/` \|", TEXT, re.MULTILINE))
    there = {p.parent.name for p in ROOT.glob("*/*.py")} | {"manifests", "tests"}
    assert listed == there - {"build", "dist"}

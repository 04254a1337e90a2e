"""README is true: its commands parse, its Python runs, its transcript and tables are what the code says."""

import itertools
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from patchbank import cli
from PIL import Image

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


# what of the shell blocks is not run here, and why; everything else is
NOT_RUN = {
    ("datasets", "fetch"): "the network",
    ("run", "ami-br"): "an hour",
    ("finetune",): "GPU hours",
    ("predict",): "the models of those GPU hours",
    ("extract", "ami-br.toml"): "weights of your own",
}
REAL = ("datasets build ami-br", "datasets build atnorm-br")


def runs(words: list[str]) -> bool:
    skipped = [key for key in NOT_RUN if tuple(words[: len(key)]) == key]
    return not skipped or "--dry-run" in words


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, quickstart_folder: Path) -> Path:
    """What a reader has who follows README: the quickstart's folder, the study, images and a table."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(quickstart_folder, folder / quickstart_folder.name)
    (study,) = blocks("toml")
    (folder / quickstart_folder.name / "mine.toml").write_text(study)
    table = ["file,diagnosis,patient"]
    for number, (split, label) in enumerate(itertools.product(["train", "test"], ["tumor", "normal"] * 2)):
        place = folder / "images" / split / label / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place)
        table.append(f"{place.relative_to(folder / 'images')},{label},p{number}")
    (folder / "labels.csv").write_text("\n".join(table))
    return folder


@pytest.mark.xdist_group("quickstart")
@pytest.mark.parametrize("block", blocks("sh")[1:], ids=lambda block: block.splitlines()[0])
def test_shell_blocks_run(
    block: str, workplace: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other in one folder, as a reader would."""
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("HF_HOME", str(workplace / "hub"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if any(command in block for command in REAL):
        (workplace / "data").symlink_to(request.getfixturevalue("shared") / "data")
    for line in block.replace("\\\n", " ").splitlines():
        command, _, output = line.partition(" > ")
        words = shlex.split(command, comments=True)
        if words[:1] == ["cd"]:
            monkeypatch.chdir(words[1])
        elif words[:1] == ["patchbank"] and runs(words[1:]):
            done = CliRunner().invoke(cli.patchbank, words[1:])
            assert done.exit_code == 0, (line, done.output, done.exception)
            if output:
                Path(output.strip()).write_text(done.stdout)


@pytest.mark.parametrize("words", [words for words in commands() if not runs(words)], ids=" ".join)
def test_the_others_parse(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for word in words:  # what the command before has made
        if word.endswith((".toml", ".csv", ".png")):
            (tmp_path / word).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / word).touch()
    for folder in ("data", "results", "bank", "images"):
        (tmp_path / folder).mkdir(exist_ok=True)
    command: click.Command = cli.patchbank
    context = click.Context(command)
    while isinstance(command, click.Group):
        found = command.get_command(context, words[0])
        assert found is not None, words
        command, words = found, words[1:]
    command.make_context("patchbank", list(words), parent=context)


def test_what_is_not_run_is_in_readme() -> None:
    left = [words for words in commands() if not runs(words)]
    for key in NOT_RUN:
        assert any(tuple(words[: len(key)]) == key for words in left), f"{key} is no longer shown"


def test_at_least_the_main_commands_are_shown() -> None:
    shown = {words[0] for words in commands()}
    assert set(cli.COMMANDS) - {"doctor"} <= shown  # that one is in the text


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

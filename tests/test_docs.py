"""README and the site are true: each block of code runs here as a reader would run it, or says why not.

A block with a title (```toml title="mine.toml") is a file that the blocks after it use. A block under a
comment `<!-- not run: WHY -->` is not run; the patchbank commands in it have to parse all the same. Under
`<!-- runs with PATCHBANK_SHARED -->` it runs where the real data are. All blocks of a page run one after the
other, in a folder that has the quickstart's result, a folder of images and a table of labels.
"""

import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pytest
from click.testing import CliRunner
from patchbank import cli

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / ".docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(SITE.rglob("*.md"))]
FOLDERS = ("cache", "datasets", "extract", "finetune", "manifests", "probe", "tests")
HELD_BY_OTHERS = (
    "FORMAT.md",
    "MANIFEST.md",
    "DECLARATIONS.md",
)  # tests/cache/test_format.py, tests/datasets/test_manifest_format.py, tests/datasets/test_declared.py
SHARED = "runs with PATCHBANK_SHARED"
SLOW = ("benchmark.md",)  # decodes and compares 4,466 images
QUICK_TO_READ = 130  # lines of README
_BLOCK = re.compile(
    r"^(?:<!-- (?P<comment>(?:not run: |runs with )[^\n]+?) -->\n)?"
    r"^(?P<indent> *)```(?P<language>\w*)(?P<about>[^\n]*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
LANGUAGES = {"sh", "python", "toml", "csv", "text"}  # text: what is printed


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its file name ("": none), and the comment above it ("": none)."""

    language: str
    title: str
    comment: str
    text: str

    @property
    def runs(self) -> bool:
        return not self.comment.startswith("not run: ")

    @property
    def lines(self) -> list[str]:
        return [line for line in self.text.replace("\\\n", " ").splitlines() if line.strip()]

    @property
    def commands(self) -> Iterator[list[str]]:
        """Every `patchbank ...`, as words."""
        for line in self.lines if self.language == "sh" else ():
            for part in re.split(r"&&|;", line.partition(" > ")[0]):
                words = shlex.split(part, comments=True)
                while words and (re.match(r"[A-Z_]+=", words[0]) or words[0] in ("srun", "export")):
                    words = words[1:]
                if words[:1] == ["patchbank"]:
                    yield words[1:]


def blocks_of(page: Path) -> list[Block]:
    found = []
    for match in _BLOCK.finditer(page.read_text("utf-8")):
        title = re.search(r'title="([^"]+)"', match["about"])
        found.append(
            Block(match["language"], title[1] if title else "", match["comment"] or "", match["text"])
        )
    return found


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


RUN = [
    pytest.param(page, id=name_of(page), marks=[pytest.mark.slow] if page.name in SLOW else [])
    for page in PAGES
    if any(block.runs for block in blocks_of(page))
]


@pytest.fixture
def workplace(tmp_path: Path, quickstart_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a reader has who follows a page: the quickstart's folder, and images of their own with a table."""
    shutil.copytree(quickstart_folder, tmp_path / "patchbank-quickstart")
    table = pd.read_csv(quickstart_folder / "data" / "synthetic-mitoses.csv", dtype=str)
    chosen = table.groupby(["split", "group", "label"]).head(2)
    rows = []
    for row in chosen.itertuples():
        label = {"Atypical": "tumor", "Normal": "normal"}[str(row.label)]
        file = Path(str(row.split), label, str(row.group), Path(str(row.path)).name)
        (tmp_path / "images" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(quickstart_folder / "data" / str(row.path), tmp_path / "images" / file)
        rows.append({"file": file.as_posix(), "diagnosis": label, "patient": row.group, "set": row.split})
    pd.DataFrame(rows).to_csv(tmp_path / "labels.csv", index=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path


@pytest.mark.xdist_group("quickstart")
@pytest.mark.parametrize("page", RUN)
def test_the_blocks_run(
    page: Path, workplace: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks_of(page):
        if not block.runs:
            continue
        if block.comment == SHARED and not (workplace / "data").exists():
            (workplace / "data").symlink_to(request.getfixturevalue("shared") / "data")
        if block.title:
            Path(block.title).write_text(block.text)
        elif block.language == "python":
            exec(compile(block.text, name_of(page), "exec"), names)
        elif block.language == "sh":
            run_shell(block, monkeypatch)
        if block.language == "toml":
            tomllib.loads(block.text)


def run_shell(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line by itself, in this process: `cd`, `export` and `patchbank`; anything else is a mistake."""
    before = Path.cwd()
    for line in block.lines:
        command, _, output = line.partition(" > ")
        words = shlex.split(command, comments=True)
        if words[:1] == ["cd"]:
            monkeypatch.chdir(words[1])
        elif words[:1] == ["export"]:
            name, value = words[1].split("=", 1)
            monkeypatch.setenv(name, value)
            if name == "PYTHONPATH":
                monkeypatch.syspath_prepend(Path(value).resolve())
        elif words[:1] == ["patchbank"]:
            done = CliRunner().invoke(cli.patchbank, words[1:])
            assert done.exit_code == 0, (line, done.output, done.exception)
            if output:
                Path(output.strip()).write_text(done.stdout)
        else:
            assert not words, f"{line!r} is not run: say why above the block"
    monkeypatch.chdir(before)


LEFT = [
    (page, words) for page in PAGES for block in blocks_of(page) if not block.runs for words in block.commands
]


@pytest.mark.parametrize(("page", "words"), LEFT, ids=[f"{name_of(p)}: {' '.join(w)}" for p, w in LEFT])
def test_the_others_parse(
    page: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # --log-file begins its file when it is read
    monkeypatch.setattr(click.Path, "convert", lambda self, value, *_: self.coerce_path_result(value))
    command: click.Command = cli.patchbank
    context = click.Context(command)
    while isinstance(command, click.Group):
        known = command.get_command(context, words[0])
        assert known is not None, (name_of(page), words)
        command, words = known, words[1:]
    command.make_context("patchbank", list(words), parent=context)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_has_a_known_language(page: Path) -> None:
    text = page.read_text("utf-8")
    found = blocks_of(page)
    assert text.count("```") == 2 * len(found)
    assert {block.language for block in found} <= LANGUAGES


def test_most_blocks_run() -> None:
    found = [block for page in PAGES for block in blocks_of(page) if block.language in ("sh", "python")]
    assert sum(block.runs for block in found) > 15


# --- README ---------------------------------------------------------------------------------------------


def test_readme_is_short_and_shows_the_page() -> None:
    text = README.read_text("utf-8")
    assert len(text.splitlines()) <= QUICK_TO_READ
    (picture,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert 20_000 < (ROOT / picture).stat().st_size < 200_000
    (encoders,) = re.findall(r"lists (\d+) encoders", text)
    assert int(encoders) == len(list((ROOT / "manifests" / "encoders").glob("*.toml")))


def test_two_commands_do_all_the_set_up() -> None:
    first, second = blocks_of(README)[0].lines
    assert first == 'pip install -e ".[extract]" && patchbank quickstart'
    assert second.startswith('pip install -e ".[test]" && pytest')
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert {"extract", "test", "docs"} <= set(extras)
    assert "README.md" in (ROOT / ".ci" / "run").read_text("utf-8")


@pytest.mark.xdist_group("quickstart")
def test_the_transcript_is_what_the_quickstart_prints(quickstart_folder: Path) -> None:
    """But for times, and the last digits, which are the processor's."""
    (transcript,) = [
        block.text for block in blocks_of(README) if block.text.startswith("$ patchbank quickstart")
    ]
    scores = pd.read_csv(quickstart_folder / "results" / "results.csv", keep_default_na=False)
    scores = scores[(scores["kind"] == "metrics") & (scores["domain"] == "") & (scores["subset"] == "raw")]
    shown = re.findall(r"^(synthetic-\S+)\n  (\S+) \*\n +(\d+)  (.*)$", transcript, re.MULTILINE)
    assert len(shown) == 3
    for dataset, features, patches, numbers in shown:
        role = "oof" if dataset.endswith(":train") else "refit"
        of = scores[(scores[["dataset", "features", "role"]] == [dataset, features, role]).all(axis=1)]
        assert set(of["n"]) == {int(patches)}
        rows = of.set_index("metric").loc[["balanced_accuracy", "auroc", "average_precision"]]
        wanted = rows[["value", "low", "high"]].astype(float).to_numpy().ravel()
        assert [float(n) for n in re.findall(r"\d\.\d+", numbers)] == pytest.approx(wanted, abs=0.015), (
            dataset
        )


def test_every_command_is_shown_somewhere() -> None:
    shown = {words[0] for page in PAGES for block in blocks_of(page) for words in block.commands}
    assert set(cli.COMMANDS) <= shown


def test_links_lead_to_files() -> None:
    pages = [*PAGES, *(ROOT / folder / "README.md" for folder in FOLDERS), *(ROOT / ".github").glob("*.md")]
    links = [
        (page, link)
        for page in pages
        for link in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text("utf-8"))
    ]
    assert len(links) > 20
    assert [(name_of(p), link) for p, link in links if not (p.parent / link).exists()] == []


def test_the_table_of_folders_is_the_tree() -> None:
    listed = set(re.findall(r"^\| \[`(\w+)/`\]", README.read_text("utf-8"), re.MULTILINE))
    there = {p.parent.name for p in ROOT.glob("[!.]*/*.py")} | {"manifests", "tests"}
    assert listed == there - {"build", "dist"}
    assert sorted(listed) == list(FOLDERS)


# --- the folders' own READMEs -----------------------------------------------------------------------------


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_says_what_comes_in_and_out_and_how_to_add_one(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text("utf-8")
    assert len(text.splitlines()) < 60
    for part in ("**In**", "**Out**", "add"):
        assert part.casefold() in text.casefold(), part
    assert_rooms_are_the_tree(text, ROOT / folder, tests=folder == "tests")


def test_the_root_modules_are_named_in_contributing() -> None:
    assert_rooms_are_the_tree((ROOT / ".github" / "CONTRIBUTING.md").read_text("utf-8"), ROOT, folders=False)


def assert_rooms_are_the_tree(text: str, folder: Path, *, folders: bool = True, tests: bool = False) -> None:
    """The first cells of its tables name every module and every folder, and nothing that does not exist.

    tests : files of tests need not be named
    """
    cells = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    rooms = {room for cell in cells for room in re.findall(r"`([^`]+)`", cell)}
    there = {path.name for path in folder.glob("*.py") if not tests or path.name in rooms}
    if folders:
        there -= {"__init__.py"}
        there |= {
            f"{path.name}/" for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"
        }
    assert rooms == there

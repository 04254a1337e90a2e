"""The command line as a whole: help that costs nothing, examples everywhere, errors in one sentence."""

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner
from patchbank import __version__, cli
from patchbank.errors import PatchbankError

HEAVY = (
    "torch",
    "timm",
    "transformers",
    "zarr",
    "h5py",
    "numpy",
    "pandas",
    "sklearn",
    "scipy",
    "PIL",
    "pyarrow",
)


def commands(
    command: click.Command, name: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None, child
            yield from commands(found, (*name, child))


ALL = dict(commands(cli.patchbank))


def test_all_commands_are_found() -> None:
    assert len(ALL) > len(cli.COMMANDS)
    assert {name[0] for name in ALL if name} == set(cli.COMMANDS)


def test_help_of_every_command_imports_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from patchbank.cli import patchbank\n"
        f"for name in {list(ALL)!r}:\n"
        "    result = CliRunner().invoke(patchbank, [*name, '--help'])\n"
        "    assert result.exit_code == 0, (name, result.output, result.exception)\n"
        f"    loaded = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "    assert not loaded, (name, loaded)\n"
        "print('checked', len(sys.argv))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "checked" in done.stdout


@pytest.mark.parametrize("name", [n for n, c in ALL.items() if not isinstance(c, click.Group)], ids=" ".join)
def test_every_command_shows_examples(name: tuple[str, ...]) -> None:
    text = CliRunner().invoke(cli.patchbank, [*name, "--help"]).output
    assert "Examples:" in text
    assert f"patchbank {' '.join(name)}" in text.split("Examples:")[1]


def test_a_letter_means_one_thing_and_an_option_has_the_same_letter_everywhere() -> None:
    letters: dict[str, set[str]] = {}
    names: dict[str, set[str]] = {}
    for command in ALL.values():
        for option in command.params:
            if isinstance(option, click.Option):
                (name,) = [n for n in option.opts if n.startswith("--")] or option.opts
                short = {n for n in option.opts if not n.startswith("--")} - {name}
                names.setdefault(name, set()).update(short or {""})
                for letter in short:
                    letters.setdefault(letter, set()).add(name)
    assert len(names) > 100
    assert {letter: name for letter, name in letters.items() if len(name) > 1} == {}
    assert {name: short for name, short in names.items() if len(short) > 1} == {}
    assert letters.items() >= {
        "-b": {"--bank"}, "-e": {"--encoder"}, "-v": {"--view"}, "-t": {"--tokens"}, "-o": {"--out"},
    }.items()  # fmt: skip


def test_every_bank_is_read_from_the_environment_too() -> None:
    banks = [
        option for command in ALL.values() for option in command.params if option.name == "bank"
    ]  # fmt: skip
    assert len(banks) > 15
    assert {option.envvar for option in banks} == {"PATCHBANK_BANK"}


def test_version() -> None:
    assert __version__ in CliRunner().invoke(cli.patchbank, ["--version"]).output


def test_a_misspelt_command_is_answered_with_the_near_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["extrct"])
    assert stop.value.code == 2
    assert "Did you mean 'extract'?" in capsys.readouterr().err


def test_an_error_is_its_message_its_notes_and_its_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        error = PatchbankError("the sentence")
        error.add_note("patch 'a/b'")
        raise error

    monkeypatch.setattr(cli.patchbank, "main", fail)
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == 1
    assert capsys.readouterr().err == "Error: the sentence\n  patch 'a/b'\n"


@pytest.mark.parametrize(
    "command",
    [
        ["extract", "a\0b.toml", "-e", "x", "-b", "bank"],
        ["run", "a\0b.toml"],
        ["probe", "run", "a\0b.toml", "-e", "x", "-b", "bank"],
        ["probe", "report", "a\0b"],
        ["cache", "ls", "-b", "a\0b"],
        ["predict", "a\0b"],
        ["datasets", "check", "a\0b"],
    ],
    ids=" ".join,
)
def test_a_name_with_nul_is_a_sentence(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(command)
    assert stop.value.code in (1, 2)
    assert capsys.readouterr().err.splitlines()[-1].startswith("Error: ")


def test_ctrl_c_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(**_: object) -> None:
        raise click.exceptions.Abort

    monkeypatch.setattr(cli.patchbank, "main", interrupt)
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == 130
    assert "What was committed is kept" in capsys.readouterr().err

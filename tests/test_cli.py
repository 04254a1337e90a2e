"""The command line as a whole: help that costs nothing, examples everywhere, errors in one sentence."""

import json
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from patchbank import __version__, cli, terminal
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
    helps: dict[str, set[str]] = {}
    for command in ALL.values():
        for option in command.params:
            if isinstance(option, click.Option):
                (name,) = [n for n in option.opts if n.startswith("--")] or option.opts
                short = {n for n in option.opts if not n.startswith("--")} - {name}
                names.setdefault(name, set()).update(short or {""})
                helps.setdefault(name, set()).add(option.help or "")
                for letter in short:
                    letters.setdefault(letter, set()).add(name)
    assert len(names) > 100
    assert {letter: name for letter, name in letters.items() if len(name) > 1} == {}
    assert {name: short for name, short in names.items() if len(short) > 1} == {}
    assert {name for name, texts in helps.items() if "" in texts} == set()
    one_meaning = {"--on-error", "--weights-dir", "--trust-code", "--trust-remote-code", "--one-vs-rest"}
    one_meaning |= {
        "--near-duplicates",
        "--allow-leaks",
        "--column",
        "--map",
        "--mpp0",
        "--quiet",
        "--log-file",
    }
    assert {name: helps[name] for name in one_meaning if len(helps[name]) > 1} == {}
    assert letters.items() >= {
        "-b": {"--bank"}, "-e": {"--encoder"}, "-v": {"--view"}, "-t": {"--tokens"}, "-o": {"--out"},
    }.items()  # fmt: skip


def test_every_bank_is_read_from_the_environment_too() -> None:
    banks = [
        option for command in ALL.values() for option in command.params if option.name == "bank"
    ]  # fmt: skip
    assert len(banks) > 15
    assert {option.envvar for option in banks} == {"PATCHBANK_BANK"}


OUTPUT = ("quiet", "verbose", "log_file")


def test_every_command_has_the_same_options_for_its_output() -> None:
    for name, command in ALL.items():
        mine = [option for option in command.params if option.name in OUTPUT]
        assert [option.name for option in mine] == list(OUTPUT), name


@pytest.fixture
def fresh_output() -> Iterator[None]:
    yield
    terminal.reset()


def test_a_command_closes_its_log_and_leaves_its_options_to_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def handlers() -> list[logging.Handler]:
        return [one for name in terminal.LIBRARIES for one in logging.getLogger(name).handlers]

    before, theirs, seen = warnings.showwarning, handlers(), []
    monkeypatch.setattr(
        terminal, "_log", lambda *_: seen.append((terminal.OUTPUT.quiet, terminal.OUTPUT.verbose))
    )
    words = ["-q", "--verbose", "--log-file", str(tmp_path / "a.log"), "encoders", "ls", "--json"]
    commands = [words, [*words, "--no-such-option"], [*words[:4], "cache", "ls", "-b", str(tmp_path / "0")]]
    for command in (None, *commands):
        if command is None:
            CliRunner().invoke(cli.patchbank, words)
        else:
            with pytest.raises(SystemExit):
                cli.main(command)
        assert terminal.Output() == terminal.OUTPUT
        assert warnings.showwarning is before
        assert not terminal.LOG.handlers
        assert handlers() == theirs
    assert set(seen) == {(True, True)}


def test_a_warning_is_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def warn(**_: object) -> None:
        warnings.warn("the patches have 0.25 micrometres a pixel", stacklevel=1)

    monkeypatch.setattr(cli.patchbank, "main", warn)
    with warnings.catch_warnings(action="always"), pytest.raises(SystemExit):
        cli.main(["encoders", "ls"])
    assert capsys.readouterr().err == "Warning: the patches have 0.25 micrometres a pixel\n"


@pytest.mark.parametrize("after", [False, True])
def test_quiet_leaves_notes_and_bars_out(
    after: bool, fresh_output: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["encoders", "ls", "--json"]
    cli.patchbank.main([*words, "-q"] if after else ["-q", *words], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)
    terminal.note("a remark")
    with terminal.progress_bar(total=3, unit="patch") as bar:
        bar.update()
    assert capsys.readouterr() == ("", "")
    terminal.echo("a result")
    assert capsys.readouterr().out == "a result\n"


def test_a_log_file_has_command_output_notes_warnings_and_errors(
    tmp_path: Path, fresh_output: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "logs" / "run.log"
    monkeypatch.setattr(
        sys, "argv", ["patchbank", "cache", "ls", "--bank", "s3://key:word@host/b?sign=secret"]
    )
    with pytest.raises(SystemExit):
        cli.main(["--log-file", str(file), "cache", "verify", "--bank", str(tmp_path / "none")])
    terminal.log_to(file)
    warnings.showwarning("careful", UserWarning, "file.py", 1)
    terminal.note("a remark")
    terminal.print_table(("name", "n"), [("a", 1)], title="A table")
    assert "there is no bank" in capsys.readouterr().err
    lines = file.read_text("utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} ", line) for line in lines)
    text = [line.split(" ", 1)[1] for line in lines]
    assert text[0] == "INFO command: patchbank cache ls --bank s3://host/b?..."
    assert text[1] == "ERROR Traceback (most recent call last):"
    assert any(line.startswith("ERROR Error: there is no bank") for line in text)
    assert {
        "WARNING UserWarning: careful",
        "WARNING a remark",
        "INFO A table",
        "INFO name | n",
        "INFO a | 1",
    } <= set(text)
    assert "secret" not in file.read_text()


def test_verbose_shows_where_an_error_came_from(
    fresh_output: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, expected in ([], False), (["--verbose"], True):
        with pytest.raises(SystemExit):
            cli.main(["cache", "verify", "--bank", str(tmp_path / "none"), *words])
        assert ("Traceback" in capsys.readouterr().err) == expected


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        (["extract", "-e"], "virchow", ["virchow", "virchow2"]),
        (["encoders", "show"], "h-optimus-1", ["h-optimus-1"]),
        (["probe", "run", "a.toml", "--bank", "BANK", "-e"], "my-", ["my-vit"]),
        (["cache", "info", "--bank", "BANK"], "my-", ["my-vit.full.cls.0123"]),
        (["cache", "verify"], "my-", ["my-vit.full.cls.0123"]),
        (["datasets", "fetch"], "atnorm-b", ["atnorm-br"]),
        (["run"], "ami", ["ami-br", "ami-br-2025"]),
        (["extract"], "--log", ["--log-file"]),
    ],
    ids=str,
)
def test_a_shell_completes_names(
    words: list[str], incomplete: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stores" / "my-vit.full.cls.0123").mkdir(parents=True)
    monkeypatch.setenv("PATCHBANK_BANK", str(tmp_path))
    complete = ShellComplete(cli.patchbank, {}, "patchbank", "_PATCHBANK_COMPLETE")
    words = [str(tmp_path) if word == "BANK" else word for word in words]
    found = sorted(item.value for item in complete.get_completions(words, incomplete) if item.type == "plain")
    assert found == expected


def test_the_letter_v_alone_is_answered_with_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["-v", "doctor"], ["doctor", "-v"]):
        with pytest.raises(SystemExit):
            cli.main(words)
        assert "--verbose" in capsys.readouterr().err


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

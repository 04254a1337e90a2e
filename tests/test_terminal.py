"""Tables at the width of a real terminal, and names that would be commands to it."""

import fcntl
import io
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from patchbank.cache.bank import Bank
from patchbank.cache.identity import Identity
from patchbank.cli import patchbank
from patchbank.errors import PatchbankError
from patchbank.terminal import print_table, printable
from rich.cells import cell_len
from rich.console import Console

SCRIPT = """
import sys
from patchbank.terminal import print_table
value = "0.813 [0.757, 0.859]"
rows = [
    (name, features, 306, value, value, value)
    for name in ("synthetic-mitoses:train", "synthetic-external")
    for features in ("efficientnet-lite0/full/pooled *", "dinov2-s/center:0.5+d4:mean/cls+mean")
]
heads = ("scored on", "features", "patches", "balanced accuracy", "AUROC", "average precision")
print_table(heads, rows, lead=2, right=(2, 3, 4, 5), title="Probe results", caption="In brackets: intervals.")
"""


def in_terminal(script: str, columns: int, **environment: str) -> str:
    """What a command prints into a pseudo-terminal of so many columns."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    known = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=child,
        stdout=child,
        stderr=child,
        env={**known, "TERM": "xterm-256color", **environment},
    )
    os.close(child)
    out = b""
    while True:
        try:
            part = os.read(parent, 65536)
        except OSError:  # the child's end is closed
            break
        if not part:
            break
        out += part
    os.close(parent)
    assert process.wait() == 0, out.decode()
    return out.decode().replace("\r\n", "\n")


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.parametrize(
    ("columns", "environment"),
    [(160, {}), (80, {}), (60, {}), (46, {}), (60, {"TERM": "dumb"}), (60, {"NO_COLOR": "1"})],
)
def test_a_table_is_readable_at_every_width(columns: int, environment: dict[str, str]) -> None:
    text = plain(in_terminal(SCRIPT, columns, **environment))
    lines = text.splitlines()
    assert max(map(len, lines)) <= columns
    assert text.count("0.813 [0.757, 0.859]") == 12  # no value is broken
    for name in ("dinov2-s/center:0.5+d4:mean/cls+mean", "balanced accuracy", "average precision"):
        assert name in text, f"{name} is broken at {columns} columns"
    assert not [line for line in lines if 0 < len(line.strip(" │╭╰╮╯")) < 3]  # one letter a line


@pytest.mark.parametrize("width", [40, 60, 80])
@pytest.mark.parametrize("seed", range(12))
def test_no_line_is_longer_than_the_terminal_and_nothing_is_lost(width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    words = [
        "0.813 [0.757, 0.859]",
        "a/very/long/path/" * 6,
        "-",
        "f" * 64,
        "two words",
        "\u6f22\u5b57" * 9,
        "",
    ]
    rows = [[str(random.choice(words)) for _ in range(2 + seed % 7)] for _ in range(4)]
    heads = [f"head {i} {'x' * int(random.integers(12))}" for i in range(len(rows[0]))]
    out = io.StringIO()
    print_table(heads, rows, boxed=bool(seed % 2), console=Console(file=out, width=width))
    assert max(map(cell_len, out.getvalue().splitlines())) <= width
    shown = Counter("".join(out.getvalue().split()))
    for text in ["".join(row) for row in [heads[1:], *rows]]:
        assert not Counter("".join(text.split())) - shown
    lost = Counter("".join("".join(row) for row in rows).replace(" ", "")) - shown
    assert not lost, lost


def test_at_80_columns_the_values_of_a_row_stand_side_by_side() -> None:
    lines = plain(in_terminal(SCRIPT, 80)).splitlines()
    assert lines[0] == "Probe results"
    assert lines[1].split() == ["patches", "balanced", "accuracy", "AUROC", "average", "precision"]
    assert lines[2] == "synthetic-mitoses:train"
    assert lines[3].strip() == "efficientnet-lite0/full/pooled *"
    assert lines[4].count("0.813 [0.757, 0.859]") == 3


def test_colours_are_left_out_where_the_user_says_so() -> None:
    coloured = "from patchbank.terminal import say; say('no groups are known', style='yellow')"
    assert "\x1b[33m" in in_terminal(coloured, 80)
    assert "\x1b[33m" not in in_terminal(coloured, 80, NO_COLOR="1")
    assert "no groups are known" in in_terminal(coloured, 80, NO_COLOR="1")


@pytest.mark.parametrize("width", [200, 50, 20])
def test_names_are_text_and_no_commands(width: int) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False)
    rows = [["[/grade]", "[red]x[/b]"], ["\x1b[2Jgone", "caf\udce9"], ["safe\u202egnp.exe", ":smile:"]]
    print_table(["[bold]class", "group[/]"], rows, title="[/title]", caption="[/caption]", console=console)
    text = out.getvalue().replace("\n", "")
    for shown in ("[/grade]", "[red]x[/b]", "\\x1b[2Jgone", "caf\\udce9", "\\u202e", ":smile:", "[/title]"):
        assert shown in text
    assert "\x1b" not in text


def test_printable_keeps_what_is_text() -> None:
    assert printable("Größe 9 µm ✓ ★\n\tb") == "Größe 9 µm ✓ ★\n\tb"
    assert printable("\x07\x9b0m\u2066") == "\\x07\\x9b0m\\u2066"
    assert printable(3) == "3"


def test_a_row_with_another_number_of_cells_is_refused() -> None:
    with pytest.raises(ValueError, match="2 cells"):
        print_table(["a", "b"], [["x"]])


def test_everything_is_printed_through_one_door() -> None:
    """What is printed past it could hold commands to the terminal: names are chosen by others."""
    root = Path(__file__).parent.parent
    files = [path for path in root.glob("**/cli.py") if "tests" not in path.parts]
    assert len(files) >= 6
    for path in files:
        text = path.read_text("utf-8")
        assert not re.search(r"click\.(s?echo|secho)\(|(?<![\w.])print\(", text), path


def test_what_commands_print_of_names_is_not_obeyed(tmp_path: Path) -> None:
    """Of a bank, a store's folder, its encoder, licence and writers."""
    evil = "\x1b[31mred\x1b]0;title\x07\x9b2J\rover\u202e"
    parts: dict[str, Any] = {"view": evil, "tokens": "cls", "precision": "fp32", "dtype": "float16", "dim": 4}
    identity = Identity(encoder={"id": evil}, preprocess={}, **parts)
    bank = tmp_path / f"bank{evil}"
    store = Bank(bank).open_store(identity, create=True, provenance={"licence": evil})
    with store.writer(name=evil) as writer:
        writer.append(np.zeros((1, 16), np.uint8), np.ones((1, 4), np.float16), ["x"])
    shutil.copytree(store.path, bank / "stores" / f"other{evil}")
    out = str(tmp_path / f"{evil}.npz")
    commands = [
        ["ls"], ["info", "31m"], ["verify"], ["gc"], ["finalize", "31m"], ["repair", "31m"], ["rm", "other"],
        ["export", "31m", out, "-f", "npz"], ["import", out], ["diff", "31m", "other"],
        ["subset", "31m", "-t", "t.csv", "--to", f"{bank}2"], ["merge", str(bank), "--into", f"{bank}3"],
    ]  # fmt: skip
    (tmp_path / "t.csv").write_text(f"patch_id,content_hash\nx,{'00' * 16}\n")
    printed = 0
    for command in commands:
        words = [str(tmp_path / word) if word == "t.csv" else word for word in command]
        option = [] if command[0] == "merge" else ["-b", str(bank)]
        done = CliRunner().invoke(patchbank, ["cache", *words, *option], color=True, input="n\n")
        assert done.exception is None or isinstance(done.exception, PatchbankError | SystemExit), command
        commands_of = ("\x1b", "\x07", "\x9b", "\rover", "\u202e")
        assert not [bad for bad in commands_of if bad in done.output], command
        printed += "red" in done.output
    assert printed >= 8

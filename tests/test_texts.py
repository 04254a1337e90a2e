"""Names that somebody chose, in spreadsheets, Markdown and URLs."""

import ast
import csv
import io
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from patchbank.cache.table import read_table
from patchbank.datasets.manifest import Header, Manifest, load_manifest
from patchbank.texts import (
    cell_of_csv,
    cells_of_csv,
    csv_cell,
    markdown,
    markdown_table,
    prose,
    public_url,
    write_csv,
    write_csv_rows,
)

ROOT = Path(__file__).parent.parent
FORMULAS = [
    "=1+1", "+1+1", "-1+1", "@SUM(A1)", "=cmd|' /C calc'!A0", '=HYPERLINK("http://x/?"&A1)', "\t=1", "\r=1",
    "\n=1", " =1+1", "  @x", "＝1+1", "＋1", "－1", "＠x", "-a.png", "+a", "'=1+1", "''-x", "=",
    "-2+3+cmd|' /C calc'!A0",
]  # fmt: skip
HARMLESS = ["", "a", "-1", "+1.5", "-1e-5", "-", "+", "1=2", "a-b", "'", "'a", "''", "é", "-.5", "a@b", "0x"]


def starts_a_formula(cell: str) -> bool:
    number = re.fullmatch(r"[+-]?[0-9.]+(e[+-]?[0-9]+)?", cell)
    return bool(re.match(r"\s*[=+\-@＝＋－＠]", cell)) and not number and len(cell) > 1


@pytest.mark.parametrize("text", [*FORMULAS, *HARMLESS])
def test_cells_come_back_and_are_no_formulas(text: str) -> None:
    written = csv_cell(text)
    assert not starts_a_formula(str(written))
    assert cell_of_csv(written) == text
    assert (written == text) == (text in [*HARMLESS, "="])


def test_written_tables_come_back(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"patch_id": FORMULAS, "=name": "x", "number": -1.5, "label": pd.Categorical(FORMULAS)}
    )
    table["missing"] = pd.array([None, *FORMULAS[1:]], dtype="string")
    before = table.copy()
    write_csv(tmp_path / "t.csv", table)
    pd.testing.assert_frame_equal(table, before)
    raw = pd.read_csv(tmp_path / "t.csv", dtype=str, keep_default_na=False)
    cells = [*raw.columns, *raw.to_numpy().ravel()]
    assert not [cell for cell in cells if starts_a_formula(cell)]
    for back in (cells_of_csv(raw), read_table(tmp_path / "t.csv")):
        assert back["patch_id"].tolist() == FORMULAS
        assert back["label"].tolist() == FORMULAS
        assert back["=name"].tolist() == ["x"] * len(FORMULAS)
        assert back["number"].tolist() == ["-1.5"] * len(FORMULAS)
        assert back["missing"].tolist() == ["", *FORMULAS[1:]]


def test_a_manifest_keeps_names_that_look_like_formulas(tmp_path: Path) -> None:
    header = Header(name="x", version="1", classes=("=a", "-b"), positive="=a", licence="", source="here")
    table = pd.DataFrame({"patch_id": ["x/1", "x/2"], "path": ["-1+1.png", "=2.png"], "label": ["=a", "-b"]})
    table = table.assign(group=["@g", "+h1"], domain="", split="test", mine=["=1+1", "b"])
    manifest = Manifest(header, table, tmp_path)
    manifest.save(tmp_path / "x.toml", table_format="csv")
    text = (tmp_path / "x.csv").read_text("utf-8")
    assert not [cell for line in text.splitlines() for cell in line.split(",") if starts_a_formula(cell)]
    pd.testing.assert_frame_equal(load_manifest(tmp_path / "x.toml").table, manifest.table)


def test_all_csv_files_are_written_by_one_function() -> None:
    found = []
    files = [path for path in ROOT.rglob("*.py") if not {"tests", ".venv", "build"} & set(path.parts)]
    assert len(files) > 100
    for path in files:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in {"to_csv", "DictWriter"}:
                found.append(path.relative_to(ROOT).as_posix())
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "csv.writer":
                found.append(path.relative_to(ROOT).as_posix())
    assert set(found) == {"texts.py"}


def test_rows_that_are_written_one_by_one_read_back_as_they_were() -> None:
    text = io.StringIO()
    rows = [["a\rb", "=1+1", "-0.5"], ["c", 'd"e', ""], ["-x", "f\ng", "h,i"]]
    write_csv_rows(text, rows)
    read = list(csv.reader(io.StringIO(text.getvalue(), newline="")))
    assert read == [["a\rb", "'=1+1", "-0.5"], ["c", 'd"e', ""], ["'-x", "f\ng", "h,i"]]


EVIL = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a\n\n# Heading\n<b>",
    "[click](javascript:alert(1))",
    "![](http://x/y.png)",
    "a | b",
    "&lt;b&gt;",
    "\x1b[31mred\x07",
    "[a][b]",
    "<http://x>",
]


@pytest.mark.parametrize("text", EVIL)
@pytest.mark.parametrize("of", [markdown, prose, lambda text: markdown_table(["a", text], [[text, 1]])])
def test_markdown_holds_no_html_links_or_commands(text: str, of: Any) -> None:
    shown = of(text)
    assert "<" not in shown
    assert not re.search(r"(?<!\\)\][(\[]", shown)
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "\n#" not in shown
    assert len(shown.splitlines()) == (3 if of not in (markdown, prose) else 1)


def test_tables_of_markdown() -> None:
    assert markdown_table(["a", "b"], [["x|y", 1]], words=1) == "| a | b |\n|---|---:|\n| x\\|y | 1 |"
    assert prose("**0.693** [0.638, 0.743] < 5 %") == "**0.693** [0.638, 0.743] &lt; 5 %"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<b>", "&#60;b&#62;"),
        ("[x](http://e)", "\\[x\\](http&#58;//e)"),
        ("1. x", "1\\. x"),
        ("- x", "\\- x"),
        ("a_b*c*", "a\\_b\\*c\\*"),
        ("a\n# b", "a \\# b"),
        ("&#60;", "&#38;\\#60;"),
        ("www.x.y", "www&#46;x.y"),
        ("fake:noise, UNI-2", "fake:noise, UNI-2"),
        ("", ""),
    ],
)
def test_a_text_stands_for_itself_in_markdown(text: str, shown: str) -> None:
    assert markdown(text) == shown


def test_urls_without_secrets() -> None:
    assert public_url("https://a:b@h:80/p#f") == "https://h:80/p"
    assert public_url("s3://bucket/x") == "s3://bucket/x"
    one, two = (public_url(f"https://h/p?id={i}&token=secret") for i in (1, 2))
    assert one != two
    assert "secret" not in one + two
    assert public_url("https://h/p?id=1&token=secret") == one

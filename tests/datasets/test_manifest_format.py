"""datasets/MANIFEST.md is true: its example loads, its tables are complete, its hash is the one of images."""

import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patchbank.datasets.images import content_hash
from patchbank.datasets.manifest import KNOWN_COLUMNS, NO_GROUPS, Header, load_manifest
from patchbank.datasets.values import MISSING, SPLITS, key_of
from patchbank.errors import ManifestError

TEXT = (Path(__file__).resolve().parents[2] / "datasets" / "MANIFEST.md").read_text("utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    return found


@pytest.fixture
def example(tmp_path: Path) -> Path:
    (tmp_path / "mine.csv").write_text(block("csv"))
    (tmp_path / "mine.toml").write_text(block("toml"))
    return tmp_path / "mine.toml"


def test_the_example_loads_and_is_written_again_as_it_is(example: Path, tmp_path: Path) -> None:
    manifest = load_manifest(example)
    assert len(manifest) == 4
    assert manifest.header.positive == "tumor"
    assert manifest.path(2) == str(tmp_path / "images" / "b.zip::1.png")
    assert manifest.table["votes_positive"].isna().tolist() == [False, False, False, True]
    assert manifest.table["site"].tolist() == ["colon", "colon", "lung", "lung"]
    again = load_manifest(manifest.save(tmp_path / "again.toml"))
    assert again.table.equals(manifest.table)
    assert again.header == manifest.header
    written = tomllib.loads((tmp_path / "again.toml").read_text())
    assert written.keys() == tomllib.loads(block("toml")).keys()
    assert written["dataset"] == tomllib.loads(block("toml"))["dataset"]


def test_every_key_and_column_is_explained() -> None:
    rows = set(re.findall(r"^\| (`.*?`) \|", TEXT, re.MULTILINE))
    words = {word for row in rows for word in re.findall(r"`(\w+)`", row)}
    assert {*Header.model_fields} | {
        *KNOWN_COLUMNS,
        "file",
        "format",
        "rows",
        "root",
    } <= words


def test_the_words_for_missing_values_and_splits_are_all_there() -> None:
    section = TEXT.partition("## Missing values")[2].partition("##")[0]
    listed = {key_of(word) for word in re.findall(r"`([^`]+)`", section)}
    assert MISSING - {""} <= listed
    spelled = set(re.findall(r"`(\w+)`", TEXT.partition("## Splits")[2].partition("##")[0]))
    assert {*SPLITS, *SPLITS.values()} <= spelled


def test_what_it_says_is_refused_is_refused(example: Path) -> None:
    table, header = example.with_suffix(".csv"), example.read_text()
    example.write_text(header.replace("rows = 4", "rows = 5"))
    with pytest.raises(ManifestError, match="rows = 5"):
        load_manifest(example)
    example.write_text(header)
    table.write_text(block("csv").replace(",label,", ",lable,"))
    with pytest.raises(ManifestError, match="did you mean 'label'"):
        load_manifest(example)


def test_without_groups_the_kind_is_none_and_formulas_come_back(example: Path) -> None:
    table = example.with_suffix(".csv")
    table.write_text(block("csv").replace(",a,", ",,").replace(",b,", ",,").replace("colon", "'=1+1"))
    manifest = load_manifest(example)
    assert manifest.header.group_kind == NO_GROUPS == "none"
    assert manifest.table["site"].iat[0] == "=1+1"


def test_the_content_hash_is_the_one_in_words() -> None:
    names: dict[str, Any] = {}
    exec(compile(block("python"), "datasets/MANIFEST.md", "exec"), names)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert names["content_hash"](pixels) == content_hash(pixels).hex()

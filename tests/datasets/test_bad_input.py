"""What is wrong with labels, groups and targets is said at each door: build, check, probe, Python."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from patchbank.datasets.builders import Description, build_manifest, describe_table
from patchbank.datasets.cli import datasets_group
from patchbank.datasets.manifest import Header, Manifest, classes_note, load_manifest
from patchbank.errors import ManifestError, PatchbankError
from patchbank.settings import InvalidSettings

WriteImages = Callable[[Path, dict[str, int]], None]
ROWS = 12


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(datasets_group, [str(one) for one in arguments])


@pytest.fixture
def build(tmp_path: Path, write_images: WriteImages) -> Callable[..., tuple[Manifest, list[str]]]:
    """A manifest of a table with the columns that are given, 12 rows of different images."""
    write_images(tmp_path / "images", {f"{k}.png": k for k in range(ROWS)})

    def run(columns: dict[str, Any], encoding: str = "utf-8", **options: Any) -> tuple[Manifest, list[str]]:
        table = pd.DataFrame({"path": [f"{k}.png" for k in range(ROWS)], **columns})
        file = tmp_path / "t.csv"
        table.to_csv(file, index=False, encoding=encoding)
        notes: list[str] = []
        asked = {"dataset": "toy", "table": file, "progress": False, **options}
        return build_manifest("from-csv", tmp_path / "images", on_note=notes.append, **asked), notes

    return run


def header(**change: Any) -> Header:
    about = {"name": "toy", "version": "1", "classes": ("a", "b", "c"), "licence": "-", "source": "-"}
    return Header(**{**about, **change})


def manifest_of(columns: dict[str, Any], **change: Any) -> Manifest:
    n = len(next(iter(columns.values())))
    ids = {"patch_id": [f"toy/{k}" for k in range(n)], "path": [f"{k}.png" for k in range(n)]}
    return Manifest(header(**change), pd.DataFrame({**ids, **columns}), ".")


def test_a_class_of_test_that_train_lacks(build: Any, tmp_path: Path) -> None:
    labels = ["a", "b"] * 5 + ["c", "c"]
    columns = {"label": labels, "split": ["train"] * 10 + ["test"] * 2, "group": [f"g{k}" for k in range(12)]}
    manifest, _ = build(columns)
    said = "classes without a row in train, which cannot be learned: 'c' (2 rows)"
    assert said in classes_note(manifest)
    file = manifest.save(tmp_path / "toy.toml")
    shown = invoke("check", file)
    assert said in " ".join(shown.output.split()), "in check too"
    options = ("--root", tmp_path / "images", "--table", tmp_path / "t.csv", "--name", "toy")
    built = invoke("build", "from-csv", *options, "--out", tmp_path / "again.toml", "--json")
    assert any(said in note for note in json.loads(built.stdout)["notes"])


def test_a_class_with_one_group_and_a_class_without_rows(build: Any) -> None:
    groups = [f"g{k}" for k in range(10)] + ["only", "only"]
    manifest, _ = build({"label": ["a", "b"] * 5 + ["c", "c"], "group": groups}, classes=("a", "b", "c", "d"))
    note = classes_note(manifest)
    assert "classes with one group, so no interval and no folds: 'c' ('only')" in note
    assert "classes without any row: 'd'" in note


def test_grades_whose_order_is_not_that_of_their_numbers(build: Any) -> None:
    labels = ["grade 1", "grade 2", "grade 3"] * 4
    with pytest.raises(ManifestError, match=r"--ordered, but the order of .* is not stated. Fix: --classes"):
        build({"label": labels}, ordered=True)
    wrong = ("grade 3", "grade 1", "grade 2")
    with pytest.raises(InvalidSettings, match="go up and down: lowest first"):
        build({"label": labels}, ordered=True, classes=wrong)
    with pytest.raises(InvalidSettings, match="go up and down"):
        header(classes=wrong, ordered=True)
    rising = ("grade 1", "grade 2", "grade 3")
    assert build({"label": labels}, ordered=True, classes=rising)[0].header.ordered
    assert header(classes=wrong).classes == wrong, "without an order any order is right"
    assert header(classes=("low", "3 mid", "2 high"), ordered=True).ordered, "one has no number"


@pytest.mark.parametrize(
    ("value", "fix"),
    [("", "leave these rows out"), ("nan", "leave these rows out"), ("1,5", "write 1.5 for 1,5")],
)
def test_targets_that_are_no_numbers(build: Any, value: str, fix: str) -> None:
    values = [str(k) for k in range(11)] + [value]
    with pytest.raises(ManifestError, match=rf"target 'gene' is not a number in row 12.*{fix}"):
        build({"gene": values}, targets=("gene",))
    with pytest.raises(ManifestError, match=rf"row 12 \('toy/11'\).*{fix}"):
        manifest_of({"gene": values}, classes=(), targets=("gene",))


def test_a_column_of_paths_or_ids_is_no_label() -> None:
    ids = [f"{k}" for k in range(1000)]
    labels = [f"patient {k}/x.png" for k in range(1000)]
    table = pd.DataFrame({"path": ids, "patch_id": ids, "label": labels})
    with pytest.raises(
        ManifestError, match=r"1000 classes in 1000 rows .*paths, not classes. Fix: take another"
    ):
        describe_table(table, Path(), Description(dataset="toy"), "", print)
    many = tuple(f"class {k}" for k in range(1000))
    note = classes_note(manifest_of({"label": list(many) * 2}, classes=many))
    assert "1000 classes in 2000 rows: is the label a path, an id or a number?" in note


@pytest.mark.parametrize(
    ("labels", "named"),
    [(("tumor", "tumor "), "'tumor'.* and 'tumor '"), (("Tumor", "tumor"), "'Tumor' .* and 'tumor'"),
     (("Tumor", "tumor "), "--strip")],
)  # fmt: skip
def test_one_class_in_two_spellings(build: Any, labels: tuple[str, str], named: str) -> None:
    with pytest.raises(ManifestError, match=named):
        build({"label": [*labels, "normal"] * 4}, positive="normal")
    joined, _ = build(
        {"label": [*labels, "normal"] * 4}, positive="normal", mapping={labels[1]: labels[0]}
    )  # fmt: skip
    assert joined.header.classes == tuple(sorted(("normal", labels[0])))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_letter(build: Any, encoding: str) -> None:
    manifest, _ = build({"label": ["a", "b"] * 6}, encoding=encoding, positive="a")
    assert manifest.table["path"].tolist() == [f"{k}.png" for k in range(ROWS)]


def test_groups_that_differ_in_leading_zeros(build: Any) -> None:
    labels = ["a", "b"] * 6
    with pytest.raises(
        ManifestError, match=r"groups that differ in .*leading zeros.*'1' .*'01' .*'001'.*--map"
    ):
        build({"label": labels, "group": ["1", "01", "001", "10"] * 3}, positive="a")
    with pytest.raises(ManifestError, match="leading zeros"):
        build({"label": labels, "group": ["slide 7", "slide 07", "slide 8"] * 4}, positive="a")
    apart = {"group:1": "1", "group:01": "01"}
    kept, _ = build({"label": labels, "group": ["1", "01"] * 6}, positive="a", mapping=apart)
    assert set(kept.table["group"]) == {"1", "01"}
    others, _ = build({"label": labels, "group": ["1", "10", "100", "0.5", "0.05", "a0b1"] * 2}, positive="a")
    assert others.table["group"].nunique() == 6


def test_files_that_two_rows_name(build: Any) -> None:
    with pytest.raises(ManifestError, match=r"patch_id occurs more than once: row 1 .*row 12"):
        build({"path": [f"{k}.png" for k in range(11)] + ["0.png"], "label": ["a", "b"] * 6}, positive="a")
    columns = {"path": [f"{k}.png" for k in range(11)] + ["0.png"], "label": ["a", "b"] * 6}
    _, notes = build({**columns, "patch_id": [f"p{k}" for k in range(12)]}, positive="a")
    assert any("2 rows name a file that another row names too: 0.png, 0.png" in note for note in notes)


def test_paths_of_windows(build: Any) -> None:
    manifest, notes = build(
        {"path": [f"C:\\data\\{k}.png" for k in range(12)], "label": ["a", "b"] * 6}, positive="a"
    )
    assert manifest.table["path"].tolist() == [f"{k}.png" for k in range(ROWS)]
    assert any("12 paths do not exist as written and were resolved" in note for note in notes)


def test_columns_of_several_types() -> None:
    """As frames have them: whole numbers with gaps become texts of whole numbers."""
    manifest = manifest_of(
        {"label": pd.array([0, 1, None], "Int64"), "group": [7.0, np.nan, 8.0], "domain": ["x", None, 3]},
        classes=("0", "1"), positive="1",
    )  # fmt: skip
    assert manifest.table["label"].tolist() == ["0", "1", ""]
    assert manifest.table["group"].tolist() == ["7", "", "8"]
    assert manifest.table["domain"].tolist() == ["x", "", "3"]
    with pytest.raises(ManifestError, match=r"label outside the classes.*row 1 .* has '0.5'"):
        manifest_of({"label": [0.5, 1.0, 2.0]}, classes=("0", "1"), positive="1")
    with pytest.raises(ManifestError, match=r"x is not a whole number: row 2 .* has '7,0'"):
        manifest_of({"x": ["5", "7,0"]})


def test_each_fault_of_a_file_is_named_at_once(tmp_path: Path) -> None:
    good = manifest_of({"label": ["a", "b", "c"], "votes_positive": [0, 1, 2], "votes_total": [2, 2, 2]})
    file = good.save(tmp_path / "toy.toml")
    table = (tmp_path / "toy.csv").read_text()
    (tmp_path / "toy.csv").write_text(
        table.replace("toy/1,", "other/1,").replace(",c,", ",d,").replace(",1,2", ",3,2")
    )
    with pytest.raises(ManifestError) as caught:
        load_manifest(file)
    words = str(caught.value)
    for part in (
        "toy.csv",
        "patch_id must start with 'toy/': row 2",
        "row 3 ('toy/2') has 'd'",
        "0..votes_total: row 2",
    ):
        assert part in words
    assert issubclass(ManifestError, PatchbankError)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"label": ["1", "01"] * 6}, {}, r"leading zeros.*'1' \(6 rows\) and '01' \(6 rows\)"),
        ({"label": ["grade 2", "grade 02"] * 6}, {}, r"leading zeros.*--map 'grade 02'='grade 2'"),
        ({"label": ["a\0", "b"] * 6}, {"positive": "b"}, r"control character \('a\\x00'\)"),
        ({"label": [f"{k}.png" for k in range(12)]}, {}, "has 12 classes in 12 rows.*the labels are paths"),
        (
            {"label": ["low", "mid", "high"] * 4},
            {"classes": ("low", "high")},
            r"labels outside the classes \['low', 'high'\]: 'mid' \(4 rows\).*--map 'mid'='low'.*'mid'=\)",
        ),
        ({"label": ["low", "mid", "high"] * 4}, {"ordered": True}, "Fix: --classes LOWEST,...,HIGHEST"),
        (
            {"path": [str(k) for k in range(12)], "label": "a"},
            {},
            r"no file under .*, but one that ends in .png: --path-format '{COLUMN}.png'",
        ),
    ],
)
def test_labels_and_paths_that_cannot_be_meant(
    build: Any, columns: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ManifestError, match=message):
        build(columns, **options)


def test_what_can_be_meant_but_seldom_is_said(build: Any, tmp_path: Path) -> None:
    _, notes = build({"label": ["a"] * 12, "split": ["train"] * 6 + ["tset", "test1"] * 3})
    assert notes == ["the split 'tset' is a set by itself; if 'test' is meant: --map split:tset=test"]
    same, _ = build({"age": ["3"] * 12}, targets=("age",))
    assert classes_note(same) == "the target 'age' is 3 in all rows, so there is nothing to predict"
    table = tmp_path / "t.csv"
    pd.DataFrame({"path": [f"{k}.png" for k in range(ROWS)], "label": "a"}).to_csv(table, index=False)
    command = ("build", "from-csv", "--root", tmp_path / "images", "--table", table, "--name", "toy")
    shown = invoke(*command, "--column", "group=path", "--out", tmp_path / "toy.toml")
    assert shown.exit_code == 0, shown.output
    assert "toy: every row has a group of its own, so rows count as independent" in shown.output
    assert "toy: one class only ('a'), so there is nothing to tell apart" in shown.output

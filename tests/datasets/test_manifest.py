"""The table and its header: what is kept, what is refused, and that all faults are named at once."""

import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from patchbank.datasets.manifest import NO_GROUPS, Header, Manifest, classes_note, groups_note, load_manifest
from patchbank.errors import ManifestError, OutputError
from patchbank.settings import InvalidSettings


def rows(**columns: object) -> pd.DataFrame:
    return pd.DataFrame({"patch_id": ["toy/a", "toy/b"], "path": ["a.png", "b.png"], **columns})


def test_missing_columns_become_unknown(header: Header) -> None:
    manifest = Manifest(header, rows(), "/images")
    assert list(manifest.table.columns) == ["patch_id", "path", "label", "group", "domain", "split"]
    assert (manifest.table[["label", "group", "domain", "split"]] == "").all(axis=None)
    assert manifest.path(1) == "/images/b.png"
    assert len(manifest) == 2


@pytest.mark.parametrize("table_format", ["csv", "parquet"])
def test_a_saved_manifest_comes_back_as_it_was(header: Header, tmp_path: Path, table_format: str) -> None:
    table = rows(
        label=["bad", ""],
        group=["007", '1,5 "x"'],
        domain=["Wien\nMitte", "ü"],
        votes_positive=[2, None],
        votes_total=[3, None],
        x=[-5, 10],
        content_hash=["0" * 32, ""],
        note=["NA", "null"],
    )
    saved = Manifest(header, table, tmp_path)
    loaded = load_manifest(saved.save(tmp_path / "toy.toml", table_format=table_format))
    pd.testing.assert_frame_equal(loaded.table, saved.table)
    assert loaded.header == header
    assert loaded.table["x"].dtype == "Int64"
    assert loaded.table["note"].tolist() == ["NA", "null"]  # words, not missing values


def test_a_root_inside_the_folder_moves_with_it(toy: Manifest, tmp_path: Path) -> None:
    toy.save(tmp_path / "toy.toml")
    moved = tmp_path.parent / "moved"
    tmp_path.rename(moved)
    assert Path(load_manifest(moved / "toy.toml").path(0)).is_file()
    tmp_path.mkdir()


def test_a_root_elsewhere_is_kept_and_may_be_replaced(toy: Manifest, tmp_path: Path) -> None:
    file = toy.save(tmp_path / "deep" / "down" / "toy.toml")
    assert load_manifest(file).root == toy.root
    assert load_manifest(file, root="/elsewhere").path(0) == "/elsewhere/0.png"


def test_saving_again_replaces(toy: Manifest, tmp_path: Path) -> None:
    toy.save(tmp_path / "toy.toml")
    toy.select("test").save(tmp_path / "toy.toml")
    assert len(load_manifest(tmp_path / "toy.toml")) == 2
    assert sorted(p.name for p in tmp_path.glob("toy*")) == ["toy.csv", "toy.toml"]
    assert not list(tmp_path.glob(".*"))


def test_saving_never_overwrites_somebody_elses_table(toy: Manifest, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("file,label\na.png,bad\n")
    with pytest.raises(ManifestError, match="is not the table of"):
        toy.save(tmp_path / "labels.toml")
    assert labels.read_text().startswith("file,label")
    assert not (tmp_path / "labels.toml").exists()


def test_a_place_that_cannot_be_written(
    toy: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        OutputError, match=r"toy\.(csv|toml) cannot be written: (Not a directory|File exists)"
    ):
        toy.save(tmp_path / "file" / "toy.toml")
    toy.save(tmp_path / "toy.toml")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match=r"toy\.csv cannot be written: No space left on device"):
        toy.select("test").save(tmp_path / "toy.toml")
    assert len(load_manifest(tmp_path / "toy.toml")) == 8  # the old one is whole
    assert not list(tmp_path.glob(".*"))


def test_select(toy: Manifest) -> None:
    assert toy.select("test").table["patch_id"].tolist() == ["toy/6", "toy/7"]
    assert toy.select(np.array([3, 1])).table["patch_id"].tolist() == ["toy/3", "toy/1"]
    assert toy.select(np.array([3, 4])).table["patch_id"].tolist() == ["toy/3", "toy/4"]
    assert not len(toy.select(np.zeros(8, bool)))
    mask = toy.table["label"] == "bad"
    assert len(toy.select(mask)) == 4
    assert toy.select(mask).table.index.tolist() == [0, 1, 2, 3]
    with pytest.raises(ManifestError, match=r"no split 'tset'; it has \['test', 'train'\]"):
        toy.select("tset")
    with pytest.raises(ManifestError, match="does not fit 8 rows"):
        toy.select([True, False])


def test_the_given_table_is_not_changed(header: Header) -> None:
    table = rows(x=["1", "2"])
    before = table.copy()
    Manifest(header, table, ".")
    pd.testing.assert_frame_equal(table, before)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"label": ["bad", "Good"]},
            r"label outside the classes \['bad', 'good'\]: row 2 \('toy/b'\) has 'Good'",
        ),
        ({"patch_id": ["toy/a", "toy/a"]}, r"patch_id occurs more than once: row 1 \('toy/a'\), row 2"),
        ({"patch_id": ["toy/a", "other/b"]}, r"patch_id must start with 'toy/': row 2 \('other/b'\)"),
        ({"patch_id": ["toy/a", ""]}, "patch_id is empty in row 2"),
        ({"path": ["a.png", ""]}, r"path is empty in row 2 \('toy/b'\)"),
        ({"lable": ["bad", "good"]}, "column 'lable' is not known; did you mean 'label'"),
        ({"Group": ["1", "2"]}, "column 'Group' is not known; did you mean 'group'"),
        ({"content_hash": ["0" * 32, "xyz"]}, "content_hash is not 32 hex digits in row 2"),
        ({"x": ["1", "left"]}, r"x is not a whole number: row 2 \('toy/b'\) has 'left'"),
        ({"y": [1.5, 2]}, "y is not a whole number: row 1"),
        ({"votes_positive": [4, 0], "votes_total": [3, 3]}, r"does not lie in 0..votes_total: row 1"),
        ({"votes_positive": [1, 0], "votes_total": [3, None]}, r"does not lie in 0..votes_total: row 2"),
    ],
)
def test_faults_of_rows(header: Header, columns: dict[str, Any], message: str) -> None:
    table = rows().assign(**columns)
    with pytest.raises(ManifestError, match=message):
        Manifest(header, table, ".")


def test_all_faults_are_in_one_error(header: Header) -> None:
    table = rows(label=["Bad", "good"], content_hash=["1", ""], x=["?", "2"]).assign(path=["", "b.png"])
    with pytest.raises(ManifestError) as caught:
        Manifest(header, table, ".")
    for part in ("label outside", "path is empty", "content_hash", "x is not a whole number"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_many_faulty_rows_are_counted(header: Header) -> None:
    n = 100
    table = pd.DataFrame({"patch_id": [f"toy/{i}" for i in range(n)], "path": "a", "label": "what"})
    with pytest.raises(ManifestError, match=r"row 8 .* and 92 more"):
        Manifest(header, table, ".")


def test_no_rows_and_no_columns(header: Header) -> None:
    with pytest.raises(ManifestError, match="it has no rows"):
        Manifest(header, rows().iloc[:0], ".")
    with pytest.raises(ManifestError, match="the column 'path' is missing"):
        Manifest(header, rows().drop(columns="path"), ".")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "a b"}, "may hold letters"),
        ({"positive": "ugly"}, "positive 'ugly' is not one of bad, good"),
        ({"positive": ""}, "positive '' is not one of bad, good"),
        ({"classes": ("a", "b", "c")}, "positive 'bad' is not one of a, b, c"),
        ({"targets": ("x",)}, "classes or targets, not both"),
        ({"classes": (), "positive": "", "targets": ("label",)}, r"targets \['label'\] are columns"),
        ({"classes": ("bad",), "ordered": True}, "from the lowest to the highest"),
        ({"ordered": 1}, "ordered = 1 has to be true or false"),
        ({"classes": ("bad", "bad")}, "not a list of different names"),
        ({"classes": "bad"}, r"classes is a list, as \['bad'\]"),
        ({"classes": (), "positive": "bad"}, "but there are no classes"),
        ({"licence": 3}, "licence = 3 has to be a text"),
    ],
)
def test_header_faults(change: dict[str, object], message: str) -> None:
    good = {
        "name": "toy",
        "version": "1",
        "classes": ("bad", "good"),
        "positive": "bad",
        "licence": "",
        "source": "",
    }
    with pytest.raises(InvalidSettings, match=message):
        Header(**{**good, **change})  # pyright: ignore[reportArgumentType]


def test_without_labels_there_are_no_classes() -> None:
    header = Header(name="toy", version="1", classes=(), positive="", licence="", source="")
    assert len(Manifest(header, rows(), ".")) == 2


def edited(toy: Manifest, folder: Path, old: str, new: str) -> Path:
    file = toy.save(folder / "toy.toml")
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    return file


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('format = "patchbank-manifest"', 'format = "other"', "is not a manifest"),
        (
            "format_version = 1",
            "format_version = 7",
            "format_version 7; this patchbank reads 1 and 2",
        ),
        (
            "licence = ",
            "license = ",
            r"dataset: unknown key 'license', did you mean 'licence'\?; dataset: licence is missing",
        ),
        ("[table]", "[tabel]", r"unknown key 'tabel', did you mean 'table'\?; table is missing"),
        ("rows = 8", "rows = 9", r"has 8 rows, but toy.toml says rows = 9"),
        ('format = "csv"', 'format = "xls"', "table: format 'xls' is not one of csv, parquet"),
        ('file = "toy.csv"', 'file = "lost.csv"', "lost.csv does not exist"),
        ("[dataset]", "[dataset", "is not TOML"),
    ],
)
def test_faults_of_the_toml(toy: Manifest, tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        load_manifest(edited(toy, tmp_path, old, new))


def test_what_is_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="does not exist"):
        load_manifest(tmp_path / "lost.toml")
    with pytest.raises(ManifestError, match="is a folder"):
        load_manifest(tmp_path)
    with pytest.raises(ManifestError, match=r"is a table; load the manifest labels.toml"):
        load_manifest(tmp_path / "labels.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "patch_id,path\ntoy/a,a.png\ntoy/b\ntoy/c,c.png,1,2\n",
            r"1 cells instead of 2 \('toy/b'\), .*4 cells",
        ),
        ("patch_id,path,path\ntoy/a,a.png,b.png\n", r"columns named twice: \['path'\]"),
        ("", "it is empty"),
        (b"patch_id,path\ntoy/\xe4,a.png\n", "not UTF-8|invalid UTF8"),
    ],
)
def test_faults_of_the_csv(toy: Manifest, tmp_path: Path, text: str | bytes, message: str) -> None:
    file = toy.save(tmp_path / "toy.toml")
    (tmp_path / "toy.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ManifestError, match=message):
        load_manifest(file)


def test_a_damaged_parquet_table(toy: Manifest, tmp_path: Path) -> None:
    file = toy.save(tmp_path / "toy.toml", table_format="parquet")
    table = tmp_path / "toy.parquet"
    table.write_bytes(table.read_bytes()[:200])
    with pytest.raises(ManifestError, match="cannot be read as parquet"):
        load_manifest(file)


def test_a_byte_order_mark_and_windows_lines(toy: Manifest, tmp_path: Path) -> None:
    file = toy.save(tmp_path / "toy.toml")
    table = tmp_path / "toy.csv"
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes().replace(b"\n", b"\r\n"))
    pd.testing.assert_frame_equal(load_manifest(file).table, toy.table)


def test_a_large_table_is_parquet_and_loads_fast(header: Header, tmp_path: Path) -> None:
    n = 300_000
    table = pd.DataFrame(
        {
            "patch_id": [f"toy/{i}" for i in range(n)],
            "path": [f"slide{i % 50}.svs::wsi[{i},{i},256,256]" for i in range(n)],
            "label": ["bad", "good", "good"] * (n // 3),
        }
    )
    file = Manifest(header, table, tmp_path).save(tmp_path / "toy.toml")
    assert (tmp_path / "toy.parquet").is_file()
    start = time.process_time()
    assert len(load_manifest(file)) == n
    assert time.process_time() - start < 30  # about 1 s; this says only that nothing loops over cells


def test_a_manifest_says_that_no_groups_are_known(toy: Manifest, tmp_path: Path) -> None:
    assert toy.groups_known
    assert groups_note(toy) == ""
    unknown = Manifest(toy.header, toy.table.assign(group=""), toy.root)
    assert unknown.header.group_kind == NO_GROUPS
    assert not unknown.groups_known
    assert "intervals are too narrow" in groups_note(unknown)
    assert "groups" not in unknown.counts().columns
    assert load_manifest(unknown.save(tmp_path / "u.toml")).header == unknown.header
    with pytest.raises(ManifestError, match="group_kind is 'none', but 8 rows have a group"):
        Manifest(unknown.header, toy.table, toy.root)


def test_a_manifest_counts_the_rows_without_a_group(toy: Manifest) -> None:
    some = Manifest(toy.header, toy.table.assign(group=["a", *[""] * 7]), toy.root)
    assert some.header.group_kind == "slide"
    assert groups_note(some) == "7 of 8 rows have no slide: intervals may be too narrow"
    assert some.counts()["groups"].tolist() == [0, 0, 1, 0], "known ones"


def test_an_old_manifest_that_says_slide_and_has_none(toy: Manifest, tmp_path: Path) -> None:
    file = Manifest(toy.header, toy.table.assign(group=""), toy.root).save(tmp_path / "u.toml")
    file.write_text(file.read_text().replace('group_kind = "none"', 'group_kind = "slide"'))
    assert load_manifest(file).header.group_kind == NO_GROUPS


def test_the_kinds_of_labels(header: Header) -> None:
    many = header.replace(classes=("a", "b", "c"), positive="")
    assert header.format_version == 1
    assert many.format_version == 2
    assert many.replace(positive="c").format_version == 1, "as manifests of before have it"
    assert many.replace(ordered=True, positive="c").format_version == 2


@pytest.mark.parametrize("change", [{}, {"ordered": True}, {"classes": ("bad", "good", "x"), "positive": ""}])
def test_version_2_is_written_where_a_new_key_is_used(
    header: Header, tmp_path: Path, change: dict[str, Any]
) -> None:
    manifest = Manifest(header.replace(**change), rows(label=["bad", "good"]), tmp_path)
    file = manifest.save(tmp_path / "toy.toml")
    assert load_manifest(file).header == manifest.header
    written = tomllib.loads(file.read_text())
    assert written["format_version"] == (2 if change else 1)
    assert ("ordered" in written["dataset"]) == bool(change)
    file.write_text(file.read_text().replace("format_version = 2", "format_version = 1"))
    if change:
        with pytest.raises(ManifestError, match="write format_version = 2"):
            load_manifest(file)


@pytest.mark.parametrize("table_format", ["csv", "parquet"])
def test_targets_are_numbers(header: Header, tmp_path: Path, table_format: str) -> None:
    header = header.replace(classes=(), positive="", targets=("GATA3", "x"))
    table = rows(GATA3=["0.5", "-1e3"], x=[1, 2])
    manifest = Manifest(header, table, tmp_path)
    assert manifest.table["GATA3"].tolist() == [0.5, -1000.0]
    assert manifest.table[["GATA3", "x"]].dtypes.tolist() == [np.float64, np.float64]
    loaded = load_manifest(manifest.save(tmp_path / "toy.toml", table_format=table_format))
    pd.testing.assert_frame_equal(loaded.table, manifest.table)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"gene": ["0.5", "high"]},
            r"the target 'gene' is not a number in row 2 \('toy/b'\) has 'high': leave these rows out",
        ),
        ({"gene": [np.nan, 1.0]}, r"the target 'gene' is not a number in row 1 \('toy/a'\) has 'nan'"),
        ({"gene": ["", "inf"]}, r"row 1 \('toy/a'\) has '', row 2 \('toy/b'\) has 'inf'"),
        ({"gen": [1, 2]}, "the column 'gene' is missing, did you mean 'gen'"),
        ({"gene": [1, 2], "label": ["a", ""]}, "label outside the classes"),
    ],
)
def test_targets_that_are_no_numbers(header: Header, columns: dict[str, Any], message: str) -> None:
    header = header.replace(classes=(), positive="", targets=("gene",))
    with pytest.raises(ManifestError, match=message):
        Manifest(header, rows(**columns), ".")


def test_a_class_with_one_group_is_named(toy: Manifest) -> None:
    assert classes_note(toy) == (
        "classes with one slide, so no interval and no folds: 'bad' of test ('g3'), 'good' of test ('g3')"
    )
    assert classes_note(toy.select("train")) == ""
    assert classes_note(Manifest(toy.header, toy.table.assign(group=""), toy.root)) == ""


def test_targets_come_back_exactly(header: Header, tmp_path: Path) -> None:
    values = np.log1p(np.arange(1, 2001, dtype=np.float64))
    header = header.replace(classes=(), positive="", targets=("gene",))
    table = pd.DataFrame({"patch_id": [f"toy/{i}" for i in range(2000)], "path": "a.png", "gene": values})
    loaded = load_manifest(Manifest(header, table, tmp_path).save(tmp_path / "toy.toml", table_format="csv"))
    np.testing.assert_array_equal(loaded.table["gene"], values)

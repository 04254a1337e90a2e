"""Tables as spreadsheets, R and pandas write them, and folders as people have them."""

import gzip
import os
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from patchbank.datasets.builders import build_manifest
from patchbank.datasets.manifest import Header, Manifest, load_manifest
from patchbank.datasets.tables import find_files, read_user_table, walk_files
from patchbank.errors import ManifestError

WriteImages = Callable[..., None]
ROWS = [("a.png", "tumör", "s1"), ("b.png", "normal", "s2")]


def read(file: Path, **options: str) -> tuple[pd.DataFrame, list[str]]:
    said: list[str] = []
    return read_user_table(file, say=said.append, **options), said


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["unix", "windows", "mac"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "cp1252", "latin-1", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
def test_separators_encodings_line_ends(tmp_path: Path, encoding: str, separator: str, end: str) -> None:
    text = end.join(separator.join(row) for row in [("path", "label", "group"), *ROWS, ("", "")[:1]])
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    table, said = read(tmp_path / "t.csv")
    assert table.columns.tolist() == ["path", "label", "group"]
    assert [tuple(row) for row in table.to_numpy()] == ROWS
    assert any("separated by" in note for note in said) == (separator != ",")
    assert any("not UTF-8; it was read as" in note for note in said) == (not encoding.startswith("utf-8"))


def test_the_separator_may_be_given(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path;note,label\na.png;x,y\n")
    assert read(tmp_path / "t.csv", separator=";")[0].columns.tolist() == ["path", "note,label"]
    assert read(tmp_path / "t.csv", separator=",")[0].columns.tolist() == ["path;note", "label"]


def test_blank_rows_trailing_commas_and_blanks_around_names(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(" path , label,,\na.png,x,,\nb.png,y,,\n,,,\n , ,,\n\n\n")
    table, said = read(tmp_path / "t.csv")
    assert table.columns.tolist() == ["path", "label"]
    assert table["path"].tolist() == ["a.png", "b.png"]
    assert said == ["t.csv: 2 blank rows at the end were left out"]


def test_a_blank_row_inside_is_kept(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,label\na.png,x\n,\nb.png,y\n")
    assert read(tmp_path / "t.csv")[0]["path"].tolist() == ["a.png", "", "b.png"]


@pytest.mark.parametrize("first", [0, 1])
def test_an_index_without_a_name_is_left_out(tmp_path: Path, first: int) -> None:
    frame = pd.DataFrame(ROWS, columns=["path", "label", "group"])
    frame.set_axis(range(first, first + 2)).to_csv(tmp_path / "t.csv")
    table, said = read(tmp_path / "t.csv")
    assert table.columns.tolist() == ["path", "label", "group"]
    assert said == ["t.csv: column 1, which has no name and numbers the rows, was left out"]


def test_what_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "unnamed.csv").write_text("path,\na.png,tumor\n")
    with pytest.raises(ManifestError, match=r"column 2 has no name and does not number the rows \('tumor'"):
        read(tmp_path / "unnamed.csv")
    with zipfile.ZipFile(tmp_path / "t.csv", "w") as archive:
        archive.writestr("xl/workbook.xml", "")
    with pytest.raises(ManifestError, match="a spreadsheet or a zip"):
        read(tmp_path / "t.csv")
    (tmp_path / "twice.csv").write_text("path,a,a\nx,1,2\n")
    with pytest.raises(ManifestError, match="columns named twice: \\['a'\\]"):
        read(tmp_path / "twice.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ManifestError, match="it is empty"):
        read(tmp_path / "empty.csv")
    (tmp_path / "ragged.csv").write_text("a,b\n1,2,3\n4,5\n")
    with pytest.raises(ManifestError, match=r"line 2: 3 cells instead of 2 \('1,2,3'\)"):
        read(tmp_path / "ragged.csv")
    with pytest.raises(ManifestError, match="does not exist"):
        read(tmp_path / "lost.csv")


def found(root: Path, *paths: str) -> tuple[list[str], dict[int, str], list[str]]:
    said: list[str] = []
    new, faults = find_files(root, paths, say=said.append)
    return new, faults, said


COMPOSED = "s\u00e9/\u00e9.png"


@pytest.mark.parametrize(
    ("cell", "file"),
    [
        ("x\\a.png", "x/a.png"),
        ("C:\\data\\set\\x\\a.png", "x/a.png"),
        ("D:/x/a.png", "x/a.png"),
        ("\\\\server\\share\\x\\a.png", "x/a.png"),
        ("/mnt/old/x/a.png", "x/a.png"),
        ("elsewhere/b.png", "deep/er/b.png"),
        ("er\\b.png", "deep/er/b.png"),
        ("X/A.PNG", "x/a.png"),
        (" x/a.png ", "x/a.png"),
        (unicodedata.normalize("NFD", COMPOSED), COMPOSED),
        ("x\\a.png::m", "x/a.png::m"),
    ],
)
def test_paths_of_other_systems(tmp_path: Path, write_images: WriteImages, cell: str, file: str) -> None:
    write_images(tmp_path, {"x/a.png": 1, "deep/er/b.png": 2, COMPOSED: 3})
    new, faults, said = found(tmp_path, cell)
    assert (new, faults) == ([file], {})
    assert len(said) == 1
    assert said[0].startswith("1 paths do not exist as written and were resolved: ")


def test_paths_that_are_there_stay(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, {"x/a.png": 1})
    whole = str(tmp_path / "x" / "a.png")
    assert found(tmp_path, "x/a.png", whole) == (["x/a.png", whole], {}, [])


def test_paths_that_could_be_several_files_are_lost(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, {"x/a.png": 1, "y/a.png": 2, "z/b.png": 3})
    _, faults, _ = found(
        tmp_path, "q/a.png", "x\\a.png", "x/a.png", "p\\b.png", "q\\b.png", "", "\0", "a" * 5000
    )
    assert set(faults) == {0, 1, 3, 4, 5, 6, 7}, "row 1 means row 2's file; 3 and 4 mean one file"
    assert faults[0] == f"no file under {tmp_path}"
    assert "no file of its own" in faults[3]


def build(kind: str, root: Path, **options: Any) -> tuple[Manifest, list[str]]:
    said: list[str] = []
    options = {"dataset": "toy", "progress": False, "on_note": said.append} | options
    return build_manifest(kind, root, **options), said


def test_rows_without_a_file_are_left_out_if_asked(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, {"a.png": 1})
    (tmp_path / "t.csv").write_text("path,label\na.png,x\nlost.png,y\n")
    with pytest.raises(
        ManifestError, match=r"1 rows: no file under .*: row 2 \('lost.png'\).*--on-error skip"
    ):
        build("from-csv", tmp_path, table=tmp_path / "t.csv")
    skipped: list[tuple[str, str]] = []
    built, _ = build("from-csv", tmp_path, table=tmp_path / "t.csv", on_error="skip", positive="x",
                     on_skip=lambda *item: skipped.append(item))  # fmt: skip
    assert built.table["patch_id"].tolist() == ["toy/a"]
    assert skipped == [("toy/lost", f"'lost.png': no file under {tmp_path}")]
    with pytest.warns(UserWarning, match=r"left out: toy/lost"):
        build("from-csv", tmp_path, table=tmp_path / "t.csv", on_error="skip", positive="x")
    (tmp_path / "a.png").unlink()
    with pytest.raises(ManifestError, match="2 rows: no file"):
        build("from-csv", tmp_path, table=tmp_path / "t.csv", on_error="skip")


@pytest.mark.parametrize(
    "splits", [("train", "test"), ("Training", "Testing"), ("train", "valid"), ("TRAIN",)]
)
def test_folders_of_splits_are_proposed(
    tmp_path: Path, write_images: WriteImages, splits: tuple[str, ...]
) -> None:
    write_images(
        tmp_path, {f"{split}/{label}/{k}.png": k for split in splits for label in "ab" for k in (1, 2)}
    )
    with pytest.raises(ManifestError, match=r'look like splits.*--layout "\{split\}/\{label\}"'):
        build("folder", tmp_path, positive="a")
    built, said = build("folder", tmp_path, positive="a", layout="{split}/{label}")
    assert set(built.table["split"]) <= {"train", "test", "val"}
    assert any(note.startswith("splits: ") for note in said) == (splits != ("train", "test"))
    assert build("folder", tmp_path, layout="{label}", positive=splits[0])[0].header.positive == splits[0]


@pytest.mark.parametrize(
    ("form", "layout"),
    [
        ("data/{split}/{label}/1.png", "*/{split}/{label}"),
        ("{label}/{split}/1.png", "{label}/{split}"),
        ("crc/{label}/x/{split}/1.png", "*/{label}/*/{split}"),
        ("data/{split}/{label}/deep/er/1.png", "*/{split}/{label}"),
    ],
)
def test_splits_below_other_folders_are_proposed(
    tmp_path: Path, write_images: WriteImages, form: str, layout: str
) -> None:
    names = [(split, label) for split in ("train", "VAL", "test") for label in ("a", "b")]
    write_images(tmp_path, {form.format(split=s, label=one): k for k, (s, one) in enumerate(names)})
    with pytest.raises(ManifestError, match="below other folders look like splits") as caught:
        build("folder", tmp_path, positive="a")
    assert f'--layout "{layout}" ' in str(caught.value)
    built, _ = build("folder", tmp_path, positive="a", layout=layout)
    assert set(built.table["split"]) == {"train", "val", "test"}
    assert built.header.classes == ("a", "b")


def test_one_folder_above_the_classes_is_said(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, {"images/a/1.png": 1, "images/b/2.png": 2})
    built, said = build("folder", tmp_path)
    assert built.header.classes == ("images",)
    assert said[0].startswith("all images have the label 'images', the first folder; --layout")


def test_suffixes_in_capitals_blanks_and_unicode_forms(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, {"a b/1 x.png": 1, "a b/\u00e4.png": 2, "c/a\u0308.png": 3})
    (tmp_path / "a b" / "1 x.png").rename(tmp_path / "a b" / "1 x.PNG")
    built, _ = build("folder", tmp_path, positive="c")
    assert set(built.table["patch_id"]) == {"toy/a b/1 x", "toy/a b/\u00e4", "toy/c/a\u0308"}
    write_images(tmp_path, {"gro\u0308\u00dfe/1.png": 4, "gr\u00f6\u00dfe/1.png": 5})
    with pytest.raises(ManifestError, match=r"'gro\\u0308\\xdfe' \(1 rows\) and 'gr\\xf6\\xdfe'"):
        build("folder", tmp_path, positive="c")


def test_what_a_folder_holds_besides_is_said(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, {"a/1.png": 1, "b/deep/2.png": 2})
    others = ["a/1.jp2", "a/2.jp2", "a/x.gif", "b/note.txt", "b/Makefile"]
    for name in (*others, "a/._1.png", "__MACOSX/a/._1.png", ".git/config"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "none" / "below").mkdir(parents=True)
    built, said = build("folder", tmp_path, positive="a")
    assert built.table["path"].tolist() == ["a/1.png", "b/deep/2.png"]
    assert said == [
        "files that were left out: 1 .gif, 2 .jp2, 1 .txt, 1 no suffix; "
        "--suffixes takes those that are images",
        "folders without images: 'none'",
    ]
    taken = build("folder", tmp_path, positive="a", suffixes=("jp2", ".GIF"), hashes=False)[0]
    assert len(taken) == 5


def test_flat_folders_get_an_example_of_a_pattern(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, {"tumor_01.png": 1, "normal_02.png": 2})
    with pytest.raises(ManifestError, match=r"2 images do not fit.*--pattern '(.*)'\.") as caught:
        build("folder", tmp_path, positive="tumor")
    pattern = str(caught.value).split("--pattern ")[1].strip("'.")
    assert build("folder", tmp_path, pattern=pattern, positive="tumor")[0].header.classes == (
        "normal",
        "tumor",
    )


def test_flat_folders_of_numbers_get_another_fix(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, {"1.png": 1, "2.png": 2})
    with pytest.raises(
        ManifestError, match=r"Fix: put each class into a folder, or list the labels in a table"
    ):
        build("folder", tmp_path, positive="tumor")


def test_links_are_followed_once(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path / "elsewhere", {"c/3.png": 3})
    write_images(tmp_path / "root", {"a/1.png": 1})
    (tmp_path / "root" / "a" / "loop").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "b").symlink_to(tmp_path / "elsewhere")
    assert [f.name for f, _, _ in walk_files(tmp_path / "root")] == ["root", "a", "b", "c"]
    built, _ = build("folder", tmp_path / "root", positive="a")
    assert built.table["path"].tolist() == ["a/1.png", "b/c/3.png"]


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_a_name_that_is_not_utf8(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, {"a/1.png": 1, "a/2.png": 2})
    os.rename(tmp_path / "a" / "2.png", os.fsencode(tmp_path / "a") + b"/\xff.png")  # noqa: PTH104
    with pytest.raises(
        ManifestError, match=r"1 rows: the name is not UTF-8; rename the file: row 2 \('a/\\udcff.png'\)"
    ):
        build("folder", tmp_path)
    skipped: list[str] = []
    built, _ = build("folder", tmp_path, on_error="skip", on_skip=lambda *item: skipped.append(item[1]))
    assert len(built) == 1
    assert len(skipped) == 1
    header = Header(name="t", version="1", classes=(), positive="", licence="x", source="x")
    with pytest.raises(ManifestError, match=r"path is not UTF-8 in row 1 \('t/1'\): rename the file"):
        Manifest(header, pd.DataFrame({"patch_id": ["t/1"], "path": ["\udcff.png"]}), tmp_path)


# what was right before is right after --------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    "\ufeffpath,label\na.png,x\nb.png,y\n",
    "path,label\r\na.png,x\r\nb.png,y\r\n",
    "path,label\ra.png,x\rb.png,y\r",
    "path,label,\na.png,x,\nb.png,y,\n",
    "path,label\n{root}/a.png,x\nb.png,y\n",
    'path,label\n"a.png","x"\nb.png,y',
])  # fmt: skip
def test_tables_that_always_worked(tmp_path: Path, write_images: WriteImages, text: str) -> None:
    write_images(tmp_path, {"a.png": 1, "b.png": 2})
    (tmp_path / "t.csv").write_bytes(text.format(root=tmp_path).encode())
    built, said = build("from-csv", tmp_path, table=tmp_path / "t.csv", positive="x")
    assert built.table["label"].tolist() == ["x", "y"]
    assert said == []
    again = load_manifest(built.save(tmp_path / "toy.toml"))
    pd.testing.assert_frame_equal(again.table, built.table)


def test_boolean_labels(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, {"a.png": 1, "b.png": 2})
    pd.DataFrame({"path": ["a.png", "b.png"], "label": [True, False]}).to_parquet(tmp_path / "t.parquet")
    built, said = build("from-csv", tmp_path, table=tmp_path / "t.parquet", positive="True")
    assert built.header.classes == ("False", "True")
    assert said == []
    with pytest.raises(ManifestError, match="'yes' is not one of the classes"):
        build("from-csv", tmp_path, table=tmp_path / "t.parquet", positive="yes")


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("sep=;\npath;label\na.png;x\nb.png;y\n", "y"),
        ('"sep=;"\r\npath;label\r\na.png;x\r\nb.png;y\r\n', "y"),
        ("\n\npath,label\na.png,x\nb.png,y\n", "y"),
        ("\ufeff\ufeffpath,label\na.png,x\nb.png,y\n", "y"),
        ('path,label,"a;b;c;d"\na.png,x,1\nb.png,y,2\n', "y"),
        ("path;label;age\na.png;x;1,5\nb.png;y;2,5\n", "y"),
        ("path;label;note\na.png;x;a, b, c\nb.png;y;d, e\n", "y"),
        ('path,label,"a\nname"\na.png,x,1\nb.png,y,2\n', "y"),
        ('path,label,note\na.png,x,"two\nlines"\nb.png,y,"3"" nail"\n', "y"),
        ("path,label\r\na.png,x\nb.png,y\r", "y"),
        (",path,label\n7,a.png,x\n12,b.png,y\n", "y"),
    ],
)
def test_tables_of_other_habits(tmp_path: Path, text: str, label: str) -> None:
    (tmp_path / "t.csv").write_bytes(text.encode())
    table, _ = read(tmp_path / "t.csv")
    assert table["path"].tolist() == ["a.png", "b.png"]
    assert table["label"].iat[1] == label
    assert all(table.columns)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"path,label\n", "has no rows, only the names of columns: path, label"),
        (b"path,label", "has no rows"),
        (b'path,label,note\na.png,x,"big\nb.png,y,small\nc.png,y,z\n', "a quote is not closed in row 1 "),
        (b"<!DOCTYPE html><html></html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git lfs pull"),
        (gzip.compress(b"path,label\na.png,x\n", mtime=0), "decompress it first"),
        (b"path,label,label\na.png,x,y\n", r"columns named twice: \['label'\]"),
        (b",path,label\nq,a.png,x\nq,b.png,y\n", "column 1 has no name and does not number the rows"),
    ],
)  # fmt: skip
def test_what_would_lose_rows_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(ManifestError, match=message):
        read(tmp_path / "t.csv")


def test_names_of_columns_in_another_case(tmp_path: Path, write_images: WriteImages) -> None:
    """A split column that is not taken would put test rows into the folds."""
    write_images(tmp_path, {f"{i}.png": i for i in range(4)})
    (tmp_path / "t.csv").write_text(
        "Path,Label,SPLIT ,Group\n0.png,a,Train,g\n1.png,b,TRAIN ,g\n2.png,a, test,h\n3.png,b,Testing,h\n"
    )
    said: list[str] = []
    built = build_manifest(
        "from-csv", tmp_path, dataset="t", table=tmp_path / "t.csv", positive="a", progress=False,
        on_note=said.append,
    )  # fmt: skip
    assert built.table["split"].tolist() == ["train", "train", "test", "test"]
    assert built.table["group"].tolist() == ["g", "g", "h", "h"]
    assert "t.csv: the column 'Label' is label" in said
    for columns, word in (
        ("path,label\n0.png,a \n1.png,b \n", "--strip"),
        ("0.png,a\n1.png,b\n", "first line must name"),
    ):
        (tmp_path / "t.csv").write_text(columns)
        with pytest.raises(ManifestError, match=word):
            build_manifest(
                "from-csv", tmp_path, dataset="t", table=tmp_path / "t.csv", positive="a", progress=False,
                on_note=said.append,
            )  # fmt: skip


def test_splits_without_train_are_said(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, {f"{i}.png": i for i in range(4)})
    (tmp_path / "t.csv").write_text("path,label,split\n0.png,a,0\n1.png,b,0\n2.png,a,1\n3.png,b,1\n")
    options = {"dataset": "t", "table": tmp_path / "t.csv", "positive": "a", "progress": False}
    said: list[str] = []
    build_manifest("from-csv", tmp_path, on_note=said.append, **options)
    assert "no split is called 'train', which folds are made of; there are '0', '1'" in " ".join(said)
    named = {"split:0": "train", "split:1": "test"}
    built = build_manifest("from-csv", tmp_path, mapping=named, on_note=lambda note: None, **options)
    assert built.table["split"].tolist() == ["train", "train", "test", "test"]

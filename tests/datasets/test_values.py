"""What the cells of a user's table mean: missing values, numbers, spellings, splits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from patchbank.datasets.audit import audit
from patchbank.datasets.builders import Description, _classes, build_manifest
from patchbank.datasets.manifest import Manifest
from patchbank.datasets.values import DASHES, MISSING, read_values, spellings
from patchbank.errors import InvalidRequest, ManifestError

WriteImages = Callable[..., None]


def read(column: str, values: list[Any], **options: Any) -> tuple[list[str], list[str]]:
    said: list[str] = []
    table = pd.DataFrame({column: pd.Series(values, dtype=object)})
    return read_values(table, say=said.append, **options)[column].tolist(), said


@pytest.mark.parametrize("column", ["label", "group", "domain", "split"])
@pytest.mark.parametrize(
    "word",
    [
        *sorted(MISSING),
        *sorted(DASHES),
        "\u200b",
        "Ｎ／Ａ",
        "\u00a0",
        "Not  Known",
        "\ufeff",
        "NA",
        "NaN",
        "None",
        " nan ",
        "<NA>",
        None,
        np.nan,
        pd.NA,
    ],
    ids=ascii,
)
def test_words_for_missing(column: str, word: object) -> None:
    values, said = read(column, ["a", word, "b"])
    assert values == ["a", "", "b"]
    if isinstance(word, str) and word.strip():
        assert said[0].startswith(f"1 of 3 rows have no {column}: {word!r} read as missing")
    else:
        assert said == (["1 of 3 rows have no label"] if column == "label" else [])


def test_a_word_for_missing_may_be_a_class() -> None:
    assert read("label", ["None", "x", "NA"], classes=("x", "None"))[0] == ["None", "x", ""]
    assert read("label", ["none", "x"], mapping={"none": "benign"}) == (["benign", "x"], [])
    assert read("label", ["unknown", "x"], positive="unknown") == (["unknown", "x"], [])
    assert read("label", ["unknown", "x"], mapping={"unknown": "unknown"}) == (["unknown", "x"], [])


def test_a_dash_beside_a_plus_is_a_finding() -> None:
    assert read("label", ["+", "-", "+"]) == (["+", "-", "+"], [])
    assert read("label", ["1+", "-", "3+"]) == (["1+", "-", "3+"], [])
    assert read("label", ["high", "-", "low"])[0] == ["high", "", "low"]


def test_minus_one_beside_labels_from_0_is_not_known() -> None:
    assert read("label", ["0", "1", "-1"])[0] == ["0", "1", ""]
    assert read("label", [0.0, 1.0, -1.0, np.nan])[0] == ["0", "1", "", ""]
    assert read("label", ["0", "1", "-1"])[1][0].startswith("1 of 3 rows have no label: '-1' read as missing")
    assert read("label", ["0", "1", "-1"], classes=("-1", "0", "1")) == (["0", "1", "-1"], [])
    assert read("label", ["1", "-1"]) == (["1", "-1"], [])
    assert read("group", ["0", "-1"]) == (["0", "-1"], [])


@pytest.mark.parametrize("column", ["label", "group", "domain", "split"])
@pytest.mark.parametrize(
    "other",
    [
        *("tumor ", " tumor", "Tumor", "TUMOR", "tumor\t", "tumor\u00a0", "ｔumor", "tumor\r", "tu mor"),
        *("tu\u200bmor", "\ufefftumor", "tumor\u2060", "tu\u00admor", "'tumor'", '"tumor"', "ＴＵＭＯＲ"),
    ],
)
def test_one_class_in_two_spellings_is_refused(column: str, other: str) -> None:
    with pytest.raises(ManifestError, match=r"'tumor' \(2 rows\) and .* \(1 rows\)") as caught:
        read(column, ["tumor", "tumor", other, "stroma"])
    assert "--strip" in str(caught.value)
    key = other if column == "label" else f"{column}:{other}"
    assert f"--map {key!r}='tumor'" in str(caught.value)
    assert read(column, ["tumor", other], mapping={key: "tumor"})[0] == ["tumor", "tumor"]
    apart = {key: other, **({"tumor": "tumor"} if column == "label" else {f"{column}:tumor": "tumor"})}
    assert read(column, ["tumor", other], mapping=apart)[0] == ["tumor", other]


def test_strip() -> None:
    assert read("label", ["tu\u200bmor", "tumor\u00a0", "\ufefftumor"], strip=True)[0] == ["tumor"] * 3
    composed, parts = "\u00e9", "e\u0301"
    assert read("label", ["a ", "a", "\ta"], strip=True)[0] == ["a", "a", "a"]
    assert read("group", [composed, parts], strip=True)[0] == [composed, composed]
    with pytest.raises(ManifestError, match="Unicode form"):
        read("group", [composed, parts])
    with pytest.raises(ManifestError, match=r"'A' .* and 'a'"):
        read("label", ["A ", "a"], strip=True)
    with pytest.raises(ManifestError, match=r"'Tumor' \(0 rows\) and 'tumor' \(1 rows\)"):
        read("label", ["tumor"], classes=("Tumor", "Normal"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([1.0, np.nan, 0.0], ["1", "", "0"]),
        (["1.0", "1", "0"], ["1", "1", "0"]),
        ([1, 0, None], ["1", "0", ""]),
        ([True, False, None], ["True", "False", ""]),
        (["-1", "1.0"], ["-1", "1"]),
        ([0.5, 1.0], ["0.5", "1.0"]),
        (["007", "7a"], ["007", "7a"]),
        (["007", "012"], ["007", "012"]),
    ],
)
def test_numbers_as_labels_and_groups(given: list[object], expected: list[str]) -> None:
    assert read("label", given)[0] == expected
    assert read("group", given)[0] == expected


def test_a_number_in_two_spellings_beside_words() -> None:
    with pytest.raises(ManifestError, match=r"'1' .* and '1.0'"):
        read("label", ["1", "1.0", "x"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [("Training", "train"), ("TRAIN", "train"), ("Testing", "test"), ("valid", "val"), ("validation", "val"),
     ("train", "train"), ("site 3", "site 3")],
)  # fmt: skip
def test_names_of_splits(given: str, expected: str) -> None:
    values, said = read("split", [given])
    assert values == [expected]
    assert said == ([] if given == expected else [f"splits: {given!r} is taken as {expected!r}"])


def test_map() -> None:
    assert read("split", [0, 1], mapping={"split:0": "train", "split:1": "test"})[0] == ["train", "test"]
    assert read("label", ["0.0", "1.0"], mapping={"1": "tumor", "0": "normal"})[0] == ["normal", "tumor"]
    assert read("label", ["a", "b"], mapping={"b": ""}) == (["a", ""], [])
    with pytest.raises(InvalidRequest, match="no label is 'tumr', did you mean 'tumor'"):
        read("label", ["tumor"], mapping={"tumr": "x"})
    with pytest.raises(InvalidRequest, match="names the split, and the data have none"):
        read("label", ["tumor"], mapping={"split:0": "train"})


def build(folder: Path, labels: list[str], **options: Any) -> tuple[Manifest, list[str]]:
    said: list[str] = []
    paths = [f"{i}.png" for i in range(len(labels))]
    pd.DataFrame({"path": paths, "label": labels}).to_csv(folder / "t.csv", index=False)
    options = {
        "dataset": "toy",
        "table": folder / "t.csv",
        "progress": False,
        "on_note": said.append,
    } | options
    return build_manifest("from-csv", folder, **options), said


def test_missing_labels_are_no_class(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, {f"{i}.png": i for i in range(4)})
    built, said = build(tmp_path, ["tumor", "NA", "benign", "nan"], positive="tumor")
    assert built.header.classes == ("benign", "tumor")
    assert built.table["label"].tolist() == ["tumor", "", "benign", ""]
    assert said[0].startswith("2 of 4 rows have no label: 'NA', 'nan' read as missing; if that is a class")


def test_the_classes_of_the_rest_are_said(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, {f"{i}.png": i for i in range(4)})
    _, said = build(tmp_path, ["tumor", "fat", "benign", "fat"], positive="tumor")
    assert said == [
        "of more than two classes --positive is only the default of one against the rest: tumor (1 rows) "
        "against benign (1), fat (2)"
    ]


def test_grades_need_an_order(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, {f"{i}.png": i for i in range(4)})
    grades = ["low", "high", "mid", "mid"]
    with pytest.raises(ManifestError, match=r"'high', 'low', 'mid' is not stated.*--classes LOWEST"):
        build(tmp_path, grades, ordered=True)
    built, _ = build(tmp_path, grades, ordered=True, classes=("low", "mid", "high"))
    assert (built.header.classes, built.header.ordered) == (("low", "mid", "high"), True)
    built, _ = build(tmp_path, ["10", "2", "3", "2"], ordered=True)
    assert built.header.classes == ("2", "3", "10"), "numbers have an order"


def test_targets_instead_of_labels(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, {f"{i}.png": i for i in range(2)})
    built, said = build(tmp_path, ["0.5", "2"], targets=("gene",), columns={"gene": "label"})
    assert built.header.targets == ("gene",)
    assert built.table["gene"].tolist() == [0.5, 2.0]
    assert said == ["labels were left out: the data set has targets"]
    with pytest.raises(ManifestError, match=r"--targets 'gen' is not one of .*, did you mean 'gene'"):
        build(tmp_path, ["0.5", "2"], targets=("gen",), columns={"gene": "label"})
    with pytest.raises(ManifestError, match="--positive and --ordered are of labels"):
        build(tmp_path, ["0.5", "2"], targets=("gene",), columns={"gene": "label"}, positive="2")


def test_a_column_of_paths_is_no_label(tmp_path: Path, write_images: WriteImages) -> None:
    with pytest.raises(ManifestError, match=r"has 1000 classes in 1000 rows .*labels are paths, not classes"):
        _classes(pd.DataFrame({"label": [f"a/{i}.png" for i in range(1000)]}), Description(dataset="toy"))
    with pytest.raises(ManifestError, match=r"30 classes in 31 rows .*look like names or numbers"):
        _classes(pd.DataFrame({"label": [f"s{min(i, 29)}" for i in range(31)]}), Description(dataset="toy"))
    many = pd.DataFrame({"label": [f"organ {i % 32}" for i in range(100)]})
    assert len(_classes(many, Description(dataset="toy"))) == 32
    listed = tuple(f"{i}" for i in range(1000))
    assert _classes(pd.DataFrame({"label": listed}), Description(dataset="toy", classes=listed)) == listed


def test_positive_without_labels(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, {"0.png": 0})
    with pytest.raises(ManifestError, match=r"no row of 'toy' has a label.*--column label=NAME.*'path'"):
        build(tmp_path, [""], positive="1")


@pytest.mark.parametrize(
    "other",
    [
        *("tumour", "Tumour", "tumors", "tumours", "tumor.", "tumor_", "tum-or", "t\u00famor"),
        *("tum\u043er", "\u0422umor", "t\u057dmor".replace("\u057d", "u\u0301"), "\u03a4umor"),
    ],
    ids=ascii,
)
def test_one_label_in_other_spellings_is_refused(other: str) -> None:
    with pytest.raises(ManifestError, match=r"labels that differ in .*'tumor' \(2 rows\) and .* \(1 rows\)"):
        read("label", ["tumor", "tumor", other, "stroma"])
    assert read("label", ["tumor", other], mapping={other: "tumor"})[0] == ["tumor", "tumor"]
    assert read("label", ["tumor", other], mapping={other: other, "tumor": "tumor"})[0] == ["tumor", other]


@pytest.mark.parametrize(
    "family",
    [
        ("non-tumor", "non_tumor", "non tumor", "nontumor"), ("low/grade", "low-grade"),
        ("oesophagus", "esophagus"), ("haematoma", "hematoma"), ("grey matter", "gray matter"),
        ("fibre", "fiber"), ("gr\u00f6\u00dfe", "gro\u0308\u00dfe"), ("HER2\u2212", "HER2-"),
    ],
    ids=ascii,
)  # fmt: skip
def test_labels_of_one_spelling(family: tuple[str, ...]) -> None:
    assert spellings([*family, "stroma"]) == [list(family)]


def test_labels_that_differ() -> None:
    labels = [
        *("HER2+", "HER2-", "<5", ">5", "1.5", "15", "1-5", "3+4", "4+3", "G1", "G2", "grade 1", "grade 2"),
        *("typical", "atypical", "normal", "abnormal", "MUS", "MUC", "ADI", "adipose", "T1", "T1a", "T1b"),
        *("MSI", "MSS", "mucus", "mucosa", "necrosis", "mass", "mast", "benign", "malignant", "LGG", "HGG"),
        *("in situ", "invasive", "IDC", "ILC", "0", "1", "10", "01x", "CD3+", "CD3", "a", "b"),
    ]
    assert spellings(labels) == []
    assert read("label", labels)[0] == labels


def test_look_alikes_are_shown_as_code_points() -> None:
    with pytest.raises(ManifestError, match=r"'tumor' \(1 rows\) and 'tum\\u043er' \(1 rows\)"):
        read("label", ["tumor", "tum\u043er"])
    with pytest.raises(ManifestError, match=r"groups that differ in .*'slide A' .* and 'slide \\u0410'"):
        read("group", ["slide A", "slide \u0410"])


def test_check_names_labels_in_two_spellings(tmp_path: Path, write_images: WriteImages) -> None:
    """A manifest that was written by hand, or keeps both on purpose."""
    write_images(tmp_path, {f"{i}.png": i for i in range(3)})
    both = {"tumor": "tumor", "tumour": "tumour"}
    built, _ = build(tmp_path, ["tumor", "tumour", "fat"], positive="tumor", mapping=both)
    assert audit(built, progress=False).note.endswith(
        "labels that may be one class in several spellings: 'tumor' and 'tumour'"
    )
    with pytest.raises(ManifestError, match="--positive 'tumor'"):
        build(tmp_path, ["tumour", "fat", "fat"], positive="tumor")


@pytest.mark.parametrize("name", ["class", "target"])
def test_a_table_without_labels_says_which_column_could_hold_them(
    tmp_path: Path, write_images: WriteImages, name: str
) -> None:
    write_images(tmp_path, {"0.png": 0})
    (tmp_path / "t.csv").write_text(f"path,{name}\n0.png,a\n")
    _, said = build_as_is(tmp_path)
    assert said == [
        f"no row has a label: there is no column 'label'; if it is one of {name!r}: --column label=NAME, "
        "or --targets NAME for a number to predict"
    ]
    (tmp_path / "t.csv").write_text("path,labels\n0.png,a\n")
    with pytest.raises(ManifestError, match=r"'labels' is not known.*--column label=labels"):
        build_as_is(tmp_path)


def build_as_is(folder: Path) -> tuple[Manifest, list[str]]:
    said: list[str] = []
    built = build_manifest(
        "from-csv", folder, dataset="toy", table=folder / "t.csv", progress=False, on_note=said.append
    )
    return built, said

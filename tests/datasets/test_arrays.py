"""Labels and splits of parquet, HDF5 and npz files as they are found: gaps, numbers, texts, many files."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from patchbank.datasets.builders import build_manifest
from patchbank.datasets.cli import datasets_group
from patchbank.datasets.manifest import Manifest, load_manifest
from patchbank.errors import InvalidRequest, ManifestError
from PIL import Image

Pixels = Callable[..., np.ndarray]


def build(kind: str, root: Path, **options: Any) -> tuple[Manifest, list[str]]:
    said: list[str] = []
    options = {"dataset": "toy", "progress": False, "on_note": said.append} | options
    return build_manifest(kind, root, **options), said


def parquet(file: Path, labels: list[Any], names: list[str] | None = None, **more: list[Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    images = []
    for i in range(len(labels)):
        stream = io.BytesIO()
        colour = hash((str(file), i)) % 200
        Image.new("RGB", (4, 4), (colour, i, 7)).save(stream, "PNG")
        images.append({"bytes": stream.getvalue(), "path": None})
    table = pa.table({"image": images, "label": labels, **more})
    if names:
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pyarrow.parquet.write_table(table, file)


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train/0000.parquet", "train"),
        ("test/part-0.parquet", "test"),
        ("data/Training/x.parquet", "train"),
        ("train-00000-of-00002.parquet", "train"),
        ("data/validation-00000-of-00001.parquet", "val"),
        ("fold1-00000-of-00001.parquet", "fold1"),
        ("test/part-00000-of-00004.parquet", "test"),
        ("train.parquet", "train"),
        ("test_3.parquet", "test"),
        ("part-00000.parquet", ""),
        ("mine.parquet", ""),
    ],
)
def test_splits_of_parquet(tmp_path: Path, path: str, split: str) -> None:
    parquet(tmp_path / path, ["a", "b"])
    assert set(build("parquet", tmp_path, positive="a")[0].table["split"]) == {split}


def test_a_class_label_with_gaps(tmp_path: Path) -> None:
    names = ["normal", "tumor"]
    parquet(tmp_path / "train.parquet", [0, None, 1, -1], names)
    parquet(tmp_path / "test.parquet", [1, 0], names)
    built, said = build("parquet", tmp_path, positive="tumor")
    assert built.table["label"].tolist() == ["tumor", "normal", "normal", "", "tumor", ""]
    assert built.header.classes == ("normal", "tumor")
    assert said == ["2 of 6 rows have no label"]


def test_a_header_of_one_file_names_the_classes_of_all(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", [0.0, 1.0, float("nan")])
    parquet(tmp_path / "b.parquet", [1, 0], ["normal", "tumor"])
    built, _ = build("parquet", tmp_path, positive="tumor")
    assert built.table["label"].tolist() == ["normal", "tumor", "", "tumor", "normal"]
    parquet(tmp_path / "c.parquet", [1, 0], ["tumor", "normal"])
    with pytest.raises(ManifestError, match=r"files name the classes differently: .*a?.parquet.*--classes"):
        build("parquet", tmp_path, positive="tumor")


def test_floats_and_ints_are_one_label(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", [0.0, 1.0])
    parquet(tmp_path / "b.parquet", [1, 0])
    parquet(tmp_path / "c.parquet", ["1", "1.0"])
    built, _ = build("parquet", tmp_path, positive="1")
    assert built.table["label"].tolist() == ["0", "1", "1", "0", "1", "1"]
    parquet(tmp_path / "d.parquet", [0.5, 1.0])
    with pytest.raises(ManifestError, match=r"d\.parquet: the labels must be 2 whole numbers"):
        build("parquet", tmp_path, positive="1")


def test_columns_of_whole_numbers_stay_whole(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", ["x", "y"], age=[50, None], big=pa.array([2**63 + 5, 1], pa.uint64()))
    built, _ = build("parquet", tmp_path, positive="x")
    again = load_manifest(built.save(tmp_path / "toy.toml"))
    assert again.table["age"].tolist() == ["50", ""]
    assert again.table["big"].tolist() == [str(2**63 + 5), "1"]


def test_an_index_that_pandas_kept(tmp_path: Path) -> None:
    """A filtered frame: rows 5 and 7 of another one."""
    parquet(tmp_path / "a.parquet", ["x", "y"])
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pandas().set_axis([5, 7])
    table.to_parquet(tmp_path / "a.parquet")
    built, _ = build("parquet", tmp_path, positive="x")
    assert built.table["label"].tolist() == ["x", "y"]
    assert not [name for name in built.table.columns if "index" in name]


@pytest.fixture
def slides(tmp_path: Path, pixels: Pixels) -> Path:
    """A file a slide: train/s1.h5, train/s2.h5, train/s10.h5 and test/s3.h5, labels inside."""
    for k, name in enumerate(("train/s1", "train/s2", "train/s10", "test/s3")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["x"] = np.stack([pixels(10 * k + i) for i in range(2 + k)])
            file["y"] = np.arange(2 + k) % 2
    return tmp_path


@pytest.mark.parametrize("train", ["train", "train/*.h5", ["train/s1.h5", "train/s2.h5", "train/s10.h5"]])
def test_several_files_of_one_split(slides: Path, train: str | list[str]) -> None:
    built, _ = build(
        "hdf5", slides, images={"train": train, "test": "test/s3.h5"}, positive="1", group_by_file=True
    )
    table = built.table
    assert (
        table["group"].tolist() == ["train/s1"] * 2 + ["train/s2"] * 3 + ["train/s10"] * 4 + ["test/s3"] * 5
    )
    assert table["split"].tolist() == ["train"] * 9 + ["test"] * 5
    assert table["patch_id"].tolist()[:3] == [
        "toy/train/train/s1/0",
        "toy/train/train/s1/1",
        "toy/train/train/s2/0",
    ]
    assert table["path"].iat[4] == "train/s2.h5::x[2]"
    assert table["label"].tolist()[:5] == ["0", "1", "0", "1", "0"]


def test_labels_and_tables_beside_several_files(slides: Path) -> None:
    for name in ("s1", "s2", "s10"):
        with (
            h5py.File(slides / "train" / f"{name}.h5", "a") as file,
            h5py.File(slides / f"{name}_y.h5", "w") as other,
        ):
            n = len(np.asarray(file["y"]))
            other["y"] = np.array(["tumor", "normal"] * 2, dtype="S")[:n]
            pd.DataFrame({"p": [name] * n}).to_csv(slides / f"{name}.csv", index=False)
    options: dict[str, Any] = {"images": {"train": "train"}, "columns": {"group": "p"}, "positive": "tumor"}
    labels = {"train": ["s1_y.h5", "s2_y.h5", "s10_y.h5"]}
    meta = {"train": ["s1.csv", "s2.csv", "s10.csv"]}
    built, _ = build("hdf5", slides, labels=labels, meta=meta, **options)
    assert built.table["group"].tolist() == ["s1"] * 2 + ["s2"] * 3 + ["s10"] * 4
    assert built.table["label"].tolist() == [["tumor", "normal"][i % 2] for n in (2, 3, 4) for i in range(n)]
    with pytest.raises(ManifestError, match="train: 3 files of images, but 1 of labels"):
        build("hdf5", slides, labels={"train": "s1_y.h5"}, **options)
    with pytest.raises(ManifestError, match=r"s2\.csv has 3 rows for the 2 patches of train/s1\.h5"):
        build("hdf5", slides, meta={"train": ["s2.csv", "s1.csv", "s10.csv"]}, **options)
    with pytest.raises(ManifestError, match="has no files 'lost/"):
        build("hdf5", slides, images={"train": "lost/*.h5"})
    with pytest.raises(InvalidRequest, match="either a file or a column"):
        build("hdf5", slides, group_by_file=True, **options)


def test_several_files_on_the_command_line(slides: Path) -> None:
    out = slides / "toy.toml"
    args = ["build", "hdf5", "--root", slides, "--name", "toy", "--images", "train=train/s1.h5", "--images",
            "train=train/s2.h5", "--images", "test=test", "--group-by-file", "--positive", "1",
            "--out", out]  # fmt: skip
    result = CliRunner().invoke(datasets_group, list(map(str, args)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert load_manifest(out).table["group"].nunique() == 3


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.array([0, 1, -1]), ["bad", "good", ""]),
        (np.array([[0.0], [1.0], [np.nan]]), ["bad", "good", ""]),
        (np.array([True, False, True]), ["good", "bad", "good"]),
        (np.array(["good", "bad", "NA"], dtype="S"), ["good", "bad", ""]),
    ],
)
def test_labels_of_arrays(tmp_path: Path, pixels: Pixels, labels: np.ndarray, expected: list[str]) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"], file["y"] = np.stack([pixels(i) for i in range(3)]), labels
    options: dict[str, Any] = {"classes": ("bad", "good"), "positive": "bad"}
    assert build("hdf5", tmp_path, images={"train": "x.h5"}, **options)[0].table["label"].tolist() == expected
    np.savez(tmp_path / "m.npz", val_images=np.stack([pixels(i) for i in range(3)]), val_labels=labels)
    assert build("npz", tmp_path / "m.npz", **options)[0].table["label"].tolist() == expected

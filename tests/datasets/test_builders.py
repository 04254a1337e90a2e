"""Manifests of a user's own images: folders, archives, tables, arrays, parquet, regions."""

import io
import json
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from patchbank.datasets import hashes
from patchbank.datasets.builders import build_manifest
from patchbank.datasets.images import content_hash
from patchbank.datasets.layouts import natural
from patchbank.datasets.manifest import Manifest, load_manifest
from patchbank.datasets.sources import open_source
from patchbank.errors import ImageError, InvalidRequest, ManifestError
from PIL import Image

WriteImages = Callable[..., None]
Pixels = Callable[..., np.ndarray]
TREE = {"train/bad/s1/1.png": 1, "train/bad/s1/10.png": 2, "train/good/s2/2.png": 3, "test/good/s3/3.png": 4}


def encode(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def build(name: str, root: Path, **options: object) -> Manifest:
    return build_manifest(name, root, progress=False, **{"dataset": "toy", "positive": "bad", **options})


class TestFolder:
    layout = "{split}/{label}/{group}"

    def test_the_layout_says_what_folders_mean(
        self, tmp_path: Path, write_images: WriteImages, pixels: Pixels
    ) -> None:
        write_images(tmp_path, TREE)
        (tmp_path / "notes.txt").write_text("no image")
        (tmp_path / "train" / "._1.png").write_text("a Mac's")
        with pytest.warns(UserWarning, match=r"left out: 1 \.txt"):
            manifest = build("folder", tmp_path, layout=self.layout)
        table = manifest.table
        assert table["patch_id"].tolist() == [
            "toy/test/good/s3/3",
            "toy/train/bad/s1/1",
            "toy/train/bad/s1/10",
            "toy/train/good/s2/2",
        ]
        assert table["label"].tolist() == ["good", "bad", "bad", "good"]
        assert table["group"].tolist() == ["s3", "s1", "s1", "s2"]
        assert table["split"].tolist() == ["test", "train", "train", "train"]
        assert manifest.header.classes == ("bad", "good")
        found, known = hashes.resolve(manifest)
        assert known.all()
        assert found[1].tobytes() == content_hash(pixels(1))

    @pytest.mark.parametrize(("kind", "before"), [("zip", ""), ("zip", "./"), ("tar", "")])
    def test_an_archive_is_a_folder(
        self, tmp_path: Path, write_images: WriteImages, kind: str, before: str
    ) -> None:
        write_images(tmp_path / "in", TREE)
        if kind == "zip":
            with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
                for name in TREE:
                    archive.writestr(before + name, (tmp_path / "in" / name).read_bytes())
        else:
            with tarfile.open(tmp_path / "a.tar", "w") as archive:
                archive.add(tmp_path / "in", ".")
        packed = build("folder", tmp_path / f"a.{kind}", layout=self.layout)
        plain = build("folder", tmp_path / "in", layout=self.layout)
        assert packed.table["path"].str.startswith(f"a.{kind}::").all()
        for column in ("label", "group", "split", "content_hash"):
            assert packed.table[column].tolist() == plain.table[column].tolist()

    def test_a_pattern(self, tmp_path: Path, write_images: WriteImages) -> None:
        write_images(tmp_path, {"bad/TCGA-A1-B2-x.png": 1, "good/TCGA-A1-C3-y.png": 2})
        pattern = r"(?P<label>[^/]+)/(?P<group>TCGA-..-..)"
        table = build("folder", tmp_path, pattern=pattern, split="test", domain="TCGA").table
        assert table["group"].tolist() == ["TCGA-A1-B2", "TCGA-A1-C3"]
        assert set(table["split"]) == {"test"}
        assert set(table["domain"]) == {"TCGA"}

    def test_names_that_differ_in_their_suffix_alone(self, tmp_path: Path, write_images: WriteImages) -> None:
        write_images(tmp_path, {"bad/a.png": 1, "bad/a.bmp": 2, "good/b.png": 3})
        assert build("folder", tmp_path).table["patch_id"].tolist() == [
            "toy/bad/a.bmp",
            "toy/bad/a.png",
            "toy/good/b.png",
        ]

    def test_numbers_as_labels_are_in_the_order_of_numbers(
        self, tmp_path: Path, write_images: WriteImages
    ) -> None:
        write_images(tmp_path, {f"{k}/a.png": k for k in (10, 9, 2)})
        with pytest.warns(UserWarning, match=r"10 \(1 rows\)"):
            manifest = build("folder", tmp_path, positive="10")
        assert manifest.header.classes == ("2", "9", "10")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"positive": ""}, r"classes \['bad', 'good'\]: say which is the positive one"),
            ({"positive": "ugly"}, "'ugly' is not one of the classes"),
            (
                {"classes": ("bad", "fine")},
                r"labels outside the classes \['bad', 'fine'\]: 'good' \(2 rows\)",
            ),
            (
                {"layout": "{split}/{label}/{group}/{domain}"},
                r"4 images do not fit the layout .*test/good/s3/3.png",
            ),
            (
                {"pattern": r"train/(?P<label>\w+)/"},
                r"1 images do not fit the pattern .*: 'test/good/s3/3.png'",
            ),
        ],
    )
    def test_faults(
        self, tmp_path: Path, write_images: WriteImages, options: dict[str, object], message: str
    ) -> None:
        write_images(tmp_path, TREE)
        with pytest.raises(ManifestError, match=message):
            build("folder", tmp_path, **{"layout": self.layout, **options})

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"layout": "{slide}/{label}"}, r"unknown: \['slide'\]"),
            ({"layout": "*/x"}, "has the part 'x'"),
            ({"layout": "*"}, "must name some of the fields"),
            ({"layout": "{label}/{label}"}, "redefinition"),
            ({"pattern": "(?P<label>"}, "not a regular expression"),
            ({"on_error": "skp"}, "it is 'fail' or 'skip'"),
            ({"layuot": "{label}"}, "option 'layuot' is not one of .*, did you mean 'layout'"),
            ({"dataset": ""}, "needs a name"),
        ],
    )
    def test_requests_that_make_no_sense(
        self, tmp_path: Path, write_images: WriteImages, options: dict[str, object], message: str
    ) -> None:
        write_images(tmp_path, TREE)
        with pytest.raises(InvalidRequest, match=message):
            build("folder", tmp_path, **options)

    def test_a_folder_without_images(self, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match="holds no images"):
            build("folder", tmp_path)
        with pytest.raises(ManifestError, match="is not a folder, zip or"):
            build("folder", tmp_path / "lost")


def test_unknown_builders_are_suggested(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidRequest, match="no builder or data set is called 'amibr', did you mean 'ami-br'"
    ):
        build_manifest("amibr", tmp_path)


class TestUnreadable:
    @pytest.fixture
    def root(self, tmp_path: Path, write_images: WriteImages) -> Path:
        write_images(tmp_path, {f"{label}/{k}.png": k for label in ("bad", "good") for k in range(5)})
        half = (tmp_path / "bad" / "2.png").read_bytes()
        (tmp_path / "bad" / "2.png").write_bytes(half[: len(half) // 2])
        (tmp_path / "good" / "4.png").write_text("hello")
        return tmp_path

    def test_all_of_them_are_listed(self, root: Path) -> None:
        with pytest.raises(
            ImageError, match="2 of 10 images of 'toy' cannot be read; nothing was built"
        ) as caught:
            build("folder", root)
        notes = caught.value.__notes__
        assert len(notes) == 2
        assert notes[0].startswith("toy/bad/2: ")
        assert "truncated" in notes[0]
        assert "starts with b'hello'" in notes[1]

    def test_or_left_out_and_listed(self, root: Path) -> None:
        skipped: list[str] = []
        with pytest.warns(UserWarning, match="6 rows are identical or near-identical"):
            manifest = build(
                "folder", root, on_error="skip", on_skip=lambda patch_id, message: skipped.append(patch_id)
            )
        assert skipped == ["toy/bad/2", "toy/good/4"]
        assert len(manifest) == 8
        assert "toy/bad/2" not in set(manifest.table["patch_id"])
        with (
            pytest.warns(UserWarning, match="identical or near-identical"),
            pytest.warns(UserWarning, match="left out: toy/bad/2: .*, toy/good/4"),
        ):
            build("folder", root, on_error="skip")

    def test_without_hashes_nothing_is_decoded(self, root: Path) -> None:
        manifest = build("folder", root, hashes=False)
        assert len(manifest) == 10
        assert "content_hash" not in manifest.table.columns

    def test_if_nothing_is_left_it_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "bad").mkdir()
        (tmp_path / "bad" / "a.png").write_text("hello")
        with pytest.raises(ImageError, match="1 of 1"):
            build("folder", tmp_path, on_error="skip")


class TestCsv:
    @pytest.fixture
    def root(self, tmp_path: Path, write_images: WriteImages) -> Path:
        write_images(tmp_path / "in", {"bad/a.png": 1, "good/b.png": 2, "good/c.png": 3})
        rows = "uid,diagnosis,slide,age\na,bad,s1,50\nb,good,s1,60\nc,good,s2,\n"
        (tmp_path / "labels.csv").write_text(rows)
        return tmp_path

    def options(self, root: Path) -> dict[str, object]:
        return {
            "table": root / "labels.csv",
            "columns": {"label": "diagnosis", "group": "slide"},
            "path_format": "{diagnosis}/{uid}.png",
        }

    def test_columns_are_named_by_the_user_and_the_rest_is_kept(self, root: Path) -> None:
        manifest = build("from-csv", root / "in", **self.options(root))
        table = manifest.table
        assert table["patch_id"].tolist() == ["toy/bad/a", "toy/good/b", "toy/good/c"]
        assert table["label"].tolist() == ["bad", "good", "good"]
        assert table["group"].tolist() == ["s1", "s1", "s2"]
        assert table["age"].tolist() == ["50", "60", ""]
        assert table["diagnosis"].tolist() == table["label"].tolist()  # nothing is lost
        file = manifest.save(root / "toy.toml")
        pd.testing.assert_frame_equal(load_manifest(file).table, table)

    def test_parquet_and_our_own_names(self, root: Path) -> None:
        frame = pd.DataFrame(
            {"path": ["bad/a.png", "good/b.png"], "label": ["bad", "good"], "patch_id": ["x", "toy/y"]}
        )
        frame.to_parquet(root / "t.parquet")
        assert build("from-csv", root / "in", table=root / "t.parquet").table["patch_id"].tolist() == [
            "toy/x",
            "toy/y",
        ]

    def test_rows_without_a_file_are_all_named(self, root: Path) -> None:
        (root / "in" / "good" / "b.png").unlink()
        (root / "in" / "bad" / "a.png").unlink()
        with pytest.raises(
            ManifestError, match=r"2 rows: no file under .*row 1 \('bad/a.png'\), row 2 \('good/b.png'\)"
        ):
            build("from-csv", root / "in", **self.options(root))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"columns": {"label": "diagnosys"}}, "no column 'diagnosys', did you mean 'diagnosis'"),
            ({"path_format": "{uuid}.png"}, "no column 'uuid', did you mean 'uid'"),
            ({"path_format": ""}, "which column is the path"),
            (
                {"columns": {"patch_id": "slide", "label": "diagnosis"}},
                r"occurs more than once: row 1 \('toy/s1'\), row 2",
            ),
            ({"table": "lost.csv"}, "lost.csv does not exist"),
        ],
    )
    def test_faults(self, root: Path, change: dict[str, object], message: str) -> None:
        with pytest.raises(ManifestError, match=message):
            build("from-csv", root / "in", **{**self.options(root), **change})

    def test_one_column_may_serve_twice(self, root: Path) -> None:
        options = self.options(root) | {
            "columns": {"label": "diagnosis", "group": "slide", "domain": "slide"}
        }
        table = build("from-csv", root / "in", **options).table
        assert table["group"].tolist() == table["domain"].tolist()


class TestHdf5:
    @pytest.fixture
    def root(self, tmp_path: Path, pixels: Pixels) -> Path:
        for split, n in (("train", 6), ("test", 3)):
            with h5py.File(tmp_path / f"{split}_x.h5", "w") as file:
                file["x"] = np.stack([pixels(i) for i in range(n)])
            with h5py.File(tmp_path / f"{split}_y.h5", "w") as file:
                file["y"] = (np.arange(n) % 2).astype(np.uint8).reshape(n, 1, 1, 1)
            meta = pd.DataFrame({"wsi": [f"slide_{i // 2}" for i in range(n)], "coord_x": range(n)})
            meta.to_csv(tmp_path / f"{split}_meta.csv")
        return tmp_path

    def options(self) -> dict[str, object]:
        return {
            **{
                key: {split: f"{split}_{tail}" for split in ("train", "test")}
                for key, tail in (("images", "x.h5"), ("labels", "y.h5"), ("meta", "meta.csv"))
            },
            "columns": {"group": "wsi", "x": "coord_x"},
            "classes": ("good", "bad"),
        }

    def test_pcams_layout(self, root: Path, pixels: Pixels) -> None:
        with (
            pytest.warns(UserWarning, match="train_meta.csv: column 1, which has no name"),
            pytest.warns(UserWarning, match="test_meta.csv: column 1, which has no name"),
        ):
            manifest = build("hdf5", root, **self.options())
        table = manifest.table
        assert table["split"].value_counts().to_dict() == {"train": 6, "test": 3}
        assert table["label"].tolist()[:3] == ["good", "bad", "good"]
        assert table["group"].tolist()[4] == "slide_2"
        assert table["x"].tolist()[5] == 5
        assert manifest.header.classes == ("good", "bad")
        np.testing.assert_array_equal(open_source(manifest).read(7), pixels(1))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"array": "z"}, r"there is no array 'z'; the file has \['x'\]"),
            ({"labels": {"train": "test_y.h5"}}, "labels must be 6 whole numbers"),
            ({"labels": {"train": "train_x.h5"}}, "there is no array 'y'"),
            ({"meta": {"train": "test_meta.csv"}}, "has 3 rows for the 6 patches"),
            ({"classes": ("bad",)}, r"labels \[1\] have no name"),
            ({"images": {"train": "lost.h5"}}, "lost.h5: no such file"),
            ({"columns": {"group": "slide"}}, "no column 'slide'"),
        ],
    )
    @pytest.mark.filterwarnings("default:.*_meta.csv. column 1, which has no name:UserWarning")
    def test_faults(self, root: Path, change: dict[str, object], message: str) -> None:
        with pytest.raises(ManifestError, match=message):
            build("hdf5", root, **{**self.options(), **change})

    def test_without_labels(self, root: Path) -> None:
        manifest = build("hdf5", root, images={"train": "train_x.h5"}, positive="")
        assert manifest.header.classes == ()
        assert set(manifest.table["label"]) == {""}


class TestNpz:
    @pytest.fixture
    def file(self, tmp_path: Path, pixels: Pixels) -> Path:
        arrays = {}
        for split, n in (("train", 5), ("val", 2), ("test", 3)):
            arrays[f"{split}_images"] = np.stack([pixels(i)[..., 0] for i in range(n)])
            arrays[f"{split}_labels"] = (np.arange(n) % 2).reshape(n, 1).astype(np.uint8)
        np.savez_compressed(tmp_path / "m.npz", **arrays)
        return tmp_path / "m.npz"

    def test_medmnists_layout(self, file: Path, pixels: Pixels) -> None:
        repeated = "8 rows are identical or near-identical"
        with pytest.warns(UserWarning, match=repeated):
            manifest = build("npz", file, classes=("bad", "good"))
        assert manifest.table["split"].value_counts().to_dict() == {"train": 5, "test": 3, "val": 2}
        assert manifest.table["label"].tolist()[:2] == ["bad", "good"]
        np.testing.assert_array_equal(open_source(manifest).read(1)[..., 2], pixels(1)[..., 0])
        with pytest.warns(UserWarning, match=repeated):
            assert build("npz", file, positive="1").header.classes == ("0", "1")

    def test_faults(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x=np.zeros(3))
        with pytest.raises(ManifestError, match="no array called SPLIT_images"):
            build("npz", tmp_path / "a.npz")
        np.savez(tmp_path / "b.npz", train_images=np.array([{}], dtype=object))
        with pytest.raises(ManifestError, match="never unpickled"):
            build("npz", tmp_path / "b.npz")
        np.savez(
            tmp_path / "c.npz",
            train_images=np.zeros((2, 4, 4), np.uint8),
            train_labels=np.zeros((2, 3), np.uint8),
        )
        with pytest.raises(
            ManifestError, match=r"labels must be 2 whole numbers, one a patch, not uint8 \(2, 3\)"
        ):
            build("npz", tmp_path / "c.npz")
        (tmp_path / "d.npz").write_text("hello")
        with pytest.raises(ManifestError, match="cannot be opened"):
            build("npz", tmp_path / "d.npz")


class TestParquet:
    @pytest.fixture
    def root(self, tmp_path: Path, pixels: Pixels, write_images: WriteImages) -> Path:
        write_images(tmp_path / "in", {f"{i}.png": i for i in range(6)})
        features = {"info": {"features": {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}}}}
        for k, (split, rows) in enumerate((("train", range(4)), ("test", range(4, 6)))):
            table = pa.table(
                {
                    "image": [
                        {"bytes": (tmp_path / "in" / f"{i}.png").read_bytes(), "path": f"{i}.png"}
                        for i in rows
                    ],
                    "label": [i % 2 for i in rows],
                    "patient": [f"p{i}" for i in rows],
                    "tags": [["a"] for _ in rows],
                }
            ).replace_schema_metadata({"huggingface": json.dumps(features)})
            (tmp_path / "data").mkdir(exist_ok=True)
            pyarrow.parquet.write_table(table, tmp_path / "data" / f"{split}-0000{k}-of-00002.parquet")
        return tmp_path

    def test_hugging_faces_layout(self, root: Path, pixels: Pixels) -> None:
        with pytest.warns(UserWarning, match="bytes or lists were left out: 'tags'"):
            manifest = build("parquet", root / "data", columns={"group": "patient"})
        table = manifest.table
        assert table["split"].tolist() == ["test", "test", "train", "train", "train", "train"]
        assert table["label"].tolist() == ["bad", "good", "bad", "good", "bad", "good"]
        assert table["group"].tolist()[0] == "p4"
        assert "tags" not in table.columns
        np.testing.assert_array_equal(open_source(manifest).read(0), pixels(4))

    def test_what_hugging_faces_own_library_writes(self, tmp_path: Path, pixels: Pixels) -> None:
        hub = pytest.importorskip("datasets")
        if not hasattr(hub, "Dataset"):
            pytest.skip("`datasets` is this checkout's folder here, not Hugging Face's library")
        from PIL import Image

        features = hub.Features({"image": hub.Image(), "label": hub.ClassLabel(names=["bad", "good"])})
        rows = {"image": [Image.fromarray(pixels(i)) for i in range(3)], "label": [0, 1, 1]}
        hub.Dataset.from_dict(rows, features=features).to_parquet(
            tmp_path / "validation-00000-of-00001.parquet"
        )
        with pytest.warns(UserWarning, match="'validation' is taken as 'val'"):
            manifest = build("parquet", tmp_path)
        assert manifest.table["label"].tolist() == ["bad", "good", "good"]
        assert set(manifest.table["split"]) == {"val"}
        np.testing.assert_array_equal(open_source(manifest).read(2), pixels(2))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"image": "picture"}, "no image column 'picture'"),
            ({"columns": {"group": "patent"}}, "no column 'patent', did you mean 'patient'"),
            ({"classes": ("bad",)}, r"labels \[1\] have no name"),
        ],
    )
    def test_faults(self, root: Path, options: dict[str, object], message: str) -> None:
        with pytest.raises(ManifestError, match=message):
            build("parquet", root / "data", **options, on_note=lambda note: None)

    @pytest.mark.parametrize(
        ("labels", "names", "expected"),
        [
            (pa.array(["bad", "good", None, "bad"]).dictionary_encode(), [], ["bad", "good", "", "bad"]),
            (pa.array(["bad", "good", "bad", "bad"], pa.large_string()), [], ["bad", "good", "bad", "bad"]),
            (pa.array([1, 0, -1, 1], pa.int8()), [], ["1", "0", "", "1"]),
            (pa.array([1, 0, None, 1], pa.uint64()), [], ["1", "0", "", "1"]),
            (pa.array([1.0, 0.0, float("nan"), 1.0]), [], ["1", "0", "", "1"]),
            (pa.array([1, 0, 1, 1]).dictionary_encode(), [], ["1", "0", "1", "1"]),
            (pa.array([1, 0, None, -1]), ["bad", "good"], ["good", "bad", "", ""]),
            (pa.array([True, False, True, True]), [], ["True", "False", "True", "True"]),
            (pa.array([True, None, False, True]), [], ["True", "", "False", "True"]),
            (pa.array([True, None, False, True]), ["bad", "good"], ["good", "", "bad", "good"]),
        ],
    )
    @pytest.mark.parametrize("column", ["label", "Label"])
    def test_labels_of_every_type(
        self,
        tmp_path: Path,
        pixels: Pixels,
        labels: pa.Array,
        names: list[str],
        expected: list[str],
        column: str,
    ) -> None:
        encoded = [{"bytes": encode(pixels(i)), "path": ""} for i in range(4)]
        features = {"info": {"features": {column: {"names": names, "_type": "ClassLabel"}}}}
        table = pa.table({"image": encoded, column: labels, "Split": ["Train", "TRAIN ", "test", "test"]})
        if names:
            table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
        built = build("parquet", tmp_path, positive=next(filter(None, expected)), on_note=lambda note: None)
        assert built.table["label"].tolist() == expected
        assert built.table["split"].tolist() == ["train", "train", "test", "test"]

    def test_images_as_plain_bytes(self, tmp_path: Path, pixels: Pixels) -> None:
        for kind in (pa.binary(), pa.large_binary()):
            column = pa.array([encode(pixels(i)) for i in range(2)], kind)
            pyarrow.parquet.write_table(
                pa.table({"jpg": column, "label": ["bad", "good"]}), tmp_path / "a.parquet"
            )
            np.testing.assert_array_equal(open_source(build("parquet", tmp_path)).read(1), pixels(1))

    @pytest.mark.parametrize(
        ("labels", "kind"),
        [([b"bad", b"good"], "binary"), ([[0], [1]], "list"), ([{"a": 1}, {"a": 2}], "struct")],
    )
    @pytest.mark.parametrize("column", ["label", "Label", "split"])
    def test_columns_of_bytes_and_lists_are_no_labels(
        self, tmp_path: Path, pixels: Pixels, labels: list[object], kind: str, column: str
    ) -> None:
        encoded = [{"bytes": encode(pixels(i)), "path": ""} for i in range(2)]
        pyarrow.parquet.write_table(
            pa.table({"image": encoded, column: labels, "class": ["bad", "good"]}), tmp_path / "a.parquet"
        )
        name = column.lower()
        with pytest.raises(ManifestError, match=f"'{column}' holds {kind}.*--column {name}=NAME"):
            build("parquet", tmp_path)

    def test_columns_that_are_left_out_are_said(self, tmp_path: Path, pixels: Pixels) -> None:
        encoded = [{"bytes": encode(pixels(i)), "path": ""} for i in range(2)]
        pyarrow.parquet.write_table(
            pa.table({"image": encoded, "votes": [[1], [2]], "class": ["bad", "good"]}),
            tmp_path / "a.parquet",
        )
        said: list[str] = []
        built = build("parquet", tmp_path, columns={"label": "class"}, on_note=said.append)
        assert built.table["label"].tolist() == ["bad", "good"]
        assert said == ["a.parquet: columns that hold bytes or lists were left out: 'votes'"]

    def test_files_that_do_not_fit_together(self, tmp_path: Path, pixels: Pixels) -> None:
        encoded = [{"bytes": encode(pixels(i)), "path": ""} for i in range(2)]
        pyarrow.parquet.write_table(
            pa.table({"image": encoded, "label": ["bad", "good"]}), tmp_path / "a.parquet"
        )
        pyarrow.parquet.write_table(pa.table({"image": encoded, "label": [0, 1]}), tmp_path / "b.parquet")
        with pytest.raises(ManifestError, match=r"numbers in .*b\.parquet, but words in .*a\.parquet"):
            build("parquet", tmp_path)
        built = build("parquet", tmp_path, classes=("bad", "good"), on_note=lambda note: None)
        assert built.table["label"].tolist() == ["bad", "good"] * 2
        twice = pa.Table.from_arrays(
            [pa.array(encoded), *[pa.array(["a", "b"])] * 2], ["image", "label", "label"]
        )
        pyarrow.parquet.write_table(twice, tmp_path / "b.parquet")
        with pytest.raises(ManifestError, match=r"columns named twice: \['label'\]"):
            build("parquet", tmp_path)

    def test_no_files(self, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match=r"holds no \.parquet file"):
            build("parquet", tmp_path)


class TestRegions:
    @pytest.fixture
    def root(self, tmp_path: Path, write_slide: Callable[..., None]) -> Path:
        (tmp_path / "slides").mkdir()
        for k, name in enumerate(("one.v1.tiff", "two.tiff")):
            random = np.random.default_rng(k)
            write_slide(tmp_path / "slides" / name, random.integers(0, 256, (256, 320, 3), dtype=np.uint8))
        (tmp_path / "c.csv").write_text(
            "slide,x,y,label\none.v1,0,0,bad\none.v1.tiff,64,0,good\ntwo,-8,250,good\n"
        )
        return tmp_path

    def test_from_a_csv(self, root: Path) -> None:
        manifest = build("wsi", root / "slides", coordinates=root / "c.csv", size=32, mpp=0.5)
        table = manifest.table
        assert table["path"].tolist() == [
            "one.v1.tiff::wsi[0,0,32,32,mpp=0.5]",
            "one.v1.tiff::wsi[64,0,32,32,mpp=0.5]",
            "two.tiff::wsi[-8,250,32,32,mpp=0.5]",
        ]
        assert table["patch_id"].tolist() == ["toy/one.v1_0_0", "toy/one.v1_64_0", "toy/two_-8_250"]
        assert table["group"].tolist() == ["one.v1", "one.v1", "two"]
        assert table["x"].tolist() == [0, 64, -8]
        assert "content_hash" not in table.columns  # millions of regions are not read twice
        assert all(open_source(manifest).read(i).shape == (32, 32, 3) for i in range(3))
        assert (
            "content_hash"
            in build("wsi", root / "slides", coordinates=root / "c.csv", size=32, hashes=True).table.columns
        )

    def test_facts_of_slides_are_joined(self, root: Path) -> None:
        (root / "s.csv").write_text("slide,group,domain\none.v1.tiff,patient-1,Wien\ntwo,patient-1,Berlin\n")
        table = build(
            "wsi", root / "slides", coordinates=root / "c.csv", size=32, slides=root / "s.csv"
        ).table
        assert table["group"].tolist() == ["patient-1"] * 3
        assert table["domain"].tolist() == ["Wien", "Wien", "Berlin"]
        (root / "s.csv").write_text("slide,group\none.v1,patient-1\n")
        with pytest.raises(ManifestError, match="slides without a row: two"):
            build("wsi", root / "slides", coordinates=root / "c.csv", size=32, slides=root / "s.csv")

    def test_one_column_may_serve_as_slide_and_as_another(self, root: Path) -> None:
        options = {"coordinates": root / "c.csv", "size": 32, "columns": {"domain": "slide"}}
        table = build("wsi", root / "slides", **options).table
        assert table["domain"].tolist() == ["one.v1", "one.v1.tiff", "two"]
        assert table["slide"].tolist() == ["one.v1", "one.v1", "two"]

    def test_tridents_coordinates(self, root: Path) -> None:
        (root / "patches").mkdir()
        with h5py.File(root / "patches" / "two_patches.h5", "w") as file:
            file["coords"] = np.array([[0, 0], [128, 64]])
            file["coords"].attrs.update(
                {
                    "patch_size": 32,
                    "patch_size_level0": 64,
                    "target_magnification": 20,
                    "level0_magnification": 40,
                }
            )
        with pytest.warns(UserWarning, match="no row has a label"):
            manifest = build("wsi", root / "slides", coordinates=root / "patches", positive="")
        assert manifest.table["path"].tolist() == [
            "two.tiff::wsi[0,0,32,32,down=2.0]",
            "two.tiff::wsi[128,64,32,32,down=2.0]",
        ]
        plain = build(
            "wsi", root / "slides", coordinates=_csv(root, "two,128,64"), size=32, level=1, positive=""
        )
        np.testing.assert_array_equal(open_source(manifest).read(1), open_source(plain).read(0))

    def test_clams_coordinates(self, root: Path) -> None:
        with h5py.File(root / "one.v1.h5", "w") as file:
            file["coords"] = np.array([[64, 0]])
            file["coords"].attrs.update({"patch_size": 32, "patch_level": 1})
        manifest = build("wsi", root / "slides", coordinates=root / "one.v1.h5", positive="")
        assert manifest.table["path"].tolist() == ["one.v1.tiff::wsi[64,0,32,32,level=1]"]
        with pytest.raises(InvalidRequest, match=r"those of the \.h5 files"):
            build("wsi", root / "slides", coordinates=root / "one.v1.h5", size=32)

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ("three,0,0", "1 rows: no slide of this name under"),
            ("one.v1,left,0\ntwo,0,1.5", r"must be whole numbers of pixels: row 1 \('left', '0'\), row 2"),
            ("one.v1,0,0\none.v1,0,0", "the same region as an earlier row"),
        ],
    )
    def test_faults(self, root: Path, rows: str, message: str) -> None:
        with pytest.raises(ManifestError, match=message):
            build("wsi", root / "slides", coordinates=_csv(root, rows), size=32, positive="")

    def test_more_faults(self, root: Path) -> None:
        with pytest.raises(InvalidRequest, match="need the size of a patch"):
            build("wsi", root / "slides", coordinates=root / "c.csv")
        with h5py.File(root / "two.h5", "w") as file:
            file["features"] = np.zeros(3)
        with pytest.raises(ManifestError, match="there is no array 'coords'"):
            build("wsi", root / "slides", coordinates=root / "two.h5")
        (root / "slides" / "copy").mkdir()
        (root / "slides" / "copy" / "two.tiff").write_bytes(b"")
        with pytest.raises(ManifestError, match=r"several files: two\.tiff, copy/two\.tiff"):
            build("wsi", root / "slides", coordinates=root / "c.csv", size=32)


def _csv(root: Path, rows: str) -> Path:
    (root / "d.csv").write_text(f"slide,x,y\n{rows}\n")
    return root / "d.csv"


@pytest.mark.parametrize(
    ("columns", "asked", "kind"),
    [({"group": "Patient_ID"}, "", "patient"), ({"group": "block"}, "", "group"),
     ({"group": "block"}, "centre", "centre"), ({}, "patient", "none")],
)  # fmt: skip
def test_what_a_group_is(
    tmp_path: Path, write_images: WriteImages, columns: dict[str, str], asked: str, kind: str
) -> None:
    write_images(tmp_path, {"a.png": 1, "b.png": 2})
    table = pd.DataFrame({"path": ["a.png", "b.png"], "Patient_ID": ["p", "q"], "block": ["x", "x"]})
    table.to_csv(tmp_path / "t.csv", index=False)
    with pytest.warns(UserWarning, match="no row has a label"):
        built = build_manifest("from-csv", tmp_path, dataset="toy", table=tmp_path / "t.csv",
                               columns=columns, group_kind=asked, progress=False)  # fmt: skip
    assert built.header.group_kind == kind


def test_natural_order() -> None:
    def parts(path: str) -> tuple[list[tuple[bool, int, str]], str]:
        split = re.split(r"(\d+)", path)
        return [(one.isdigit(), int(one) if one.isdigit() else 0, one) for one in split], path

    rng = np.random.default_rng(0)
    paths = ["".join(rng.choice(list("0012ab-./_"), rng.integers(1, 9))) for _ in range(3000)]
    assert sorted({*paths}, key=natural) == sorted({*paths}, key=parts)
    assert sorted(["10.png", "2.png", "a/1", "a-1", "a1", "٣"], key=natural)[:2] == ["2.png", "٣"]


def test_a_member_outside_of_its_zip_is_refused(tmp_path: Path) -> None:
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "PNG")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("tumor/1.png", "../../x.png"):
            archive.writestr(name, image.getvalue())
    with pytest.raises(ManifestError, match=r"a\.zip: members that lie outside of it: '\.\./\.\./x\.png'"):
        build("folder", tmp_path / "a.zip", layout="{label}")

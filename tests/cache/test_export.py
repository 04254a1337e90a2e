"""Exports: opened with the libraries that people use, and back into a store bit for bit."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
from patchbank.cache.bank import Bank
from patchbank.cache.columns import TAKEN, written_name
from patchbank.cache.export.write import DOCUMENTED, FOLDERS, LAYOUTS, export
from patchbank.cache.finalize import finalize
from patchbank.cache.importing.exports import import_export
from patchbank.cache.store import Store
from patchbank.cache.table import first_of_key, keys_of_table, read_table, select
from patchbank.cache.verify import verify
from patchbank.errors import InvalidRequest, RowsMissing, StoreError, VectorRefused

NAMES = {"trident": "x.h5", "stamp": "x.h5", "npy": "x", "zarr": "x.zarr", "webdataset": "x.tar"}
NAMES |= {"qupath": "x.geojson", "csv": "x.csv"} | dict.fromkeys(FOLDERS, "x")
STAMP_ATTRIBUTES = ("unit", "tile_size_um", "tile_size_px", "extractor", "stamp_version", "feat_type")
SLIDES = {"trident", "clam", "stamp", "qupath"}
WORDS = ("patch_id", "label", "group", "domain", "split")


@pytest.fixture(params=["float16", "float32"])
def filled(
    request: pytest.FixtureRequest, tmp_path: Path, identity: Any, make_rows: Any
) -> tuple[Store, Any]:
    store = Bank(tmp_path / "bank").open_store(
        identity(dtype=request.param),
        create=True,
        block_rows=64,
        provenance={"licence": "CC-BY-NC-4.0", "made": 1},
    )
    rows = make_rows(150, dtype=request.param)
    with store.writer() as writer:
        writer.append(*rows[:])
    store.refresh()
    return store, rows


@pytest.fixture
def table(filled: tuple[Store, Any]) -> pd.DataFrame:
    """The rows shuffled, with three patches that are the same image as others."""
    plain = filled[1].table()
    twins = plain.iloc[[5, 7, 5]].assign(patch_id=["twin 0", "twin 1", "twin 2"])
    return pd.concat([plain.sample(frac=1, random_state=0), twins], ignore_index=True)


@pytest.fixture
def wanted(filled: tuple[Store, Any], table: pd.DataFrame) -> np.ndarray:
    rows = filled[1]
    place = {key.tobytes().hex(): i for i, key in enumerate(rows.keys)}
    return rows.vectors[[place[word] for word in table["content_hash"]]]


def write(
    filled: tuple[Store, Any], table: pd.DataFrame | None, tmp_path: Path, layout: str, **options: Any
) -> Path:
    path = tmp_path / "out" / NAMES.get(layout, f"x.{layout}")
    if layout == "stamp":
        options = {"tile_um": 112.0, "tile_px": 224, "mpp": 0.5} | options
    if layout == "eva" and table is not None:
        table = table.assign(label=table["label"].replace("", "normal"))
    rows = export(filled[0], path, layout, table, **options)
    assert rows == len(filled[1].keys if table is None else table)
    assert [item.name for item in path.parent.iterdir()] == [path.name]
    return path


@pytest.mark.parametrize("layout", DOCUMENTED)
def test_round_trip(filled: tuple[Store, Any], table: pd.DataFrame, tmp_path: Path, layout: str) -> None:
    store, rows = filled
    path = write(filled, table, tmp_path, layout)
    bank = Bank(tmp_path / "back")
    done = import_export(bank, path)
    assert (done.rows, done.added) == (153, 150)
    assert done.store.identity == store.identity
    assert done.store.provenance == store.provenance
    assert done.store.load(rows.keys).tobytes() == rows.vectors.tobytes()
    if layout == "eva":
        table = table.assign(label=table["label"].replace("", "normal"))
    back, wanted = (
        each.set_index("patch_id").loc[table["patch_id"], table.columns[1:]] for each in (done.table, table)
    )
    assert (back.astype(str).to_numpy() == wanted.astype(str).to_numpy()).all()
    assert back["x"].dtype == np.int64
    if layout not in ("clam", "huggingface"):  # in the order of their files
        assert done.table["patch_id"].tolist() == table["patch_id"].tolist()
    assert import_export(bank, path).added == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_whole_store_without_a_table(filled: tuple[Store, Any], tmp_path: Path, layout: str) -> None:
    if layout in {*SLIDES, "eva", "fiftyone"}:
        with pytest.raises(
            InvalidRequest, match=r"coordinates|column path|have no label|column 'group'|level 0"
        ):
            write(filled, None, tmp_path, layout)
        return
    path = write(filled, None, tmp_path, layout)
    if layout in DOCUMENTED:
        done = import_export(Bank(tmp_path / "back"), path, backend="hdf5")
        assert done.store.load(filled[1].keys).tobytes() == filled[1].vectors.tobytes()


HARD_NAMES = [
    "Tumor/Stroma ratio", "a", "a/b", "a%2Fb", "%", "100%", "", "features", "feats", "coords", "embeddings",
    "embedding", "patchbank", "_index", "index", "zarr.json", "parts", "obs", ".", "..", "__categories",
    "x.npy", "x.npy.npy", "label ", "label.", "A", "size (µm)", "a\\b", "a\nb", "a:b", "column.a", "\udce4",
    "[bold]", "level_0",
]  # fmt: skip


@pytest.mark.parametrize("layout", DOCUMENTED)
@pytest.mark.parametrize("filled", ["float16"], indirect=True)
def test_names_of_columns_come_back(
    filled: tuple[Store, Any], table: pd.DataFrame, tmp_path: Path, layout: str
) -> None:
    named = table.assign(**{name: [f"v{i}" for i in range(153)] for name in HARD_NAMES})
    path = write(filled, named, tmp_path, layout)
    done = import_export(Bank(tmp_path / "back"), path)
    assert sorted(done.table.columns) == sorted(named.columns)
    back = done.table.set_index("patch_id").loc[table["patch_id"]]
    for name in HARD_NAMES:
        assert back[name].tolist() == named[name].tolist(), name


def test_the_rule_for_names_is_reversible() -> None:
    from urllib.parse import unquote

    written = {name: written_name(name) for name in [*HARD_NAMES, *TAKEN]}
    assert len(set(written.values())) == len(written)
    for name, word in written.items():
        assert unquote(word, errors="surrogatepass") == name or (name, word) == ("", "%")
        assert not TAKEN & {word}
        assert not set('/\\:*?"<>|\0') & set(word)
    for name in ("label", "a b", "größe", "Tumor (x)"):
        assert written_name(name) == name
    assert written_name("Tumor/Stroma ratio") == "Tumor%2FStroma ratio"
    assert written_name("features") == "%66eatures"


TYPES = {
    "big": pd.Series([2**63 + 5, 1, 2**64 - 1] * 51, dtype=np.uint64),
    "signed": pd.Series([-(2**63), 2**63 - 1, 0] * 51, dtype=np.int64),
    "small": pd.Series([1, 2, 255] * 51, dtype=np.uint8),
    "maybe": pd.array([1, None, 2**53 + 1] * 51, dtype="Int64"),
    "maybe_big": pd.array([2**64 - 1, None, 1] * 51, dtype="UInt64"),
    "whole": pd.array([1, 2, 100] * 51, dtype="Int64"),
    "yes": pd.Series([True, False, True] * 51),
    "perhaps": pd.array([True, None, False] * 51, dtype="boolean"),
    "real": pd.Series([0.1, np.nan, -np.inf] * 51),
    "nullable real": pd.array([0.5, None, 2.0] * 51, dtype="Float64"),
    "word": pd.array(["a", None, "1.0"] * 51, dtype="string"),
    "kind": pd.Categorical(["x", None, "y"] * 51),
    "huge": pd.Series([2**70, 1, None] * 51, dtype=object),
}


@pytest.mark.parametrize("layout", DOCUMENTED)
@pytest.mark.parametrize("filled", ["float16"], indirect=True)
def test_types_of_columns_come_back(
    filled: tuple[Store, Any], table: pd.DataFrame, tmp_path: Path, layout: str
) -> None:
    path = write(filled, table.assign(**TYPES), tmp_path, layout)
    back = import_export(Bank(tmp_path / "back"), path).table
    back = back.set_index("patch_id").loc[table["patch_id"]].reset_index()
    assert back["big"].tolist() == TYPES["big"].tolist()
    assert back["big"].dtype == np.uint64
    for name in ("signed", "small", "whole"):
        assert back[name].tolist() == list(TYPES[name])
        assert back[name].dtype == np.int64
    for name in ("maybe", "maybe_big", "perhaps"):
        assert back[name].equals(pd.Series(TYPES[name])), name
    assert back["yes"].tolist() == [True, False, True] * 51
    assert back["yes"].dtype == bool
    assert back["real"].equals(TYPES["real"])
    assert back["nullable real"].astype(str).tolist() == ["0.5", "nan", "2.0"] * 51
    assert back["word"].tolist() == ["a", "", "1.0"] * 51
    assert back["kind"].tolist() == ["x", "", "y"] * 51
    assert back["huge"].tolist() == [str(2**70), "1", ""] * 51


def test_whole_numbers_with_empty_cells_stay_whole(
    filled: tuple[Store, Any], table: pd.DataFrame, tmp_path: Path
) -> None:
    """From a parquet table to an export, and into the columns of a finalised store."""
    table.assign(age=TYPES["maybe"]).to_parquet(tmp_path / "t.parquet")
    read = read_table(tmp_path / "t.parquet")
    path = write(filled, read, tmp_path, "npz")
    with np.load(path) as archive:
        assert archive["age"].dtype.kind == "U"  # 2^53 + 1 is no float64
        assert set(archive["age"].tolist()) == {"1", "", str(2**53 + 1)}
    assert import_export(Bank(tmp_path / "back"), path).table["age"].equals(pd.Series(TYPES["maybe"]))
    finalize(filled[0], read)
    import zarr

    words = np.asarray(zarr.open_group(str(filled[0].path), mode="r")["age"]).tolist()
    assert set(words) == {"1", "", str(2**53 + 1)}


@pytest.mark.parametrize("backend", ["zarr", "hdf5"])
def test_a_finalised_store_takes_any_name(
    tmp_path: Path, identity: Any, make_rows: Any, backend: str
) -> None:
    rows = make_rows(20)
    store = Bank(tmp_path / "bank").open_store(identity(), create=True, block_rows=8, backend=backend)
    with store.writer() as writer:
        writer.append(*rows[:])
    finalize(store, rows.table().assign(**dict.fromkeys(HARD_NAMES, "word")))
    again = Store(store.files)
    view = {name: store.files.read(name) for name in again.catalog.order_record["view"]}
    assert {written_name(name) for name in HARD_NAMES} <= set(store.layout.columns_of(view))
    assert verify(again).good
    finalize(again)  # and lets them go
    assert verify(Store(store.files)).good


def about(document: Any) -> None:
    parts = json.loads(document)
    assert parts["licence"] == "CC-BY-NC-4.0"
    assert parts["identity"]["encoder"]["id"] == "fake:noise"
    assert parts["provenance"]["made"] == 1


def test_trident(filled: tuple[Store, Any], table: pd.DataFrame, wanted: np.ndarray, tmp_path: Path) -> None:
    with h5py.File(write(filled, table, tmp_path, "trident")) as file:
        assert np.asarray(file["features"]).tobytes() == wanted.tobytes()
        coords = np.asarray(file["coords"])
        assert coords.dtype == np.int64
        assert coords.tolist() == table[["x", "y"]].to_numpy().tolist()
        for name in WORDS:
            assert [word.decode() for word in np.asarray(file[name])] == table[name].tolist()
        about(file.attrs["patchbank"])


def test_one_file_a_slide(filled: tuple[Store, Any], table: pd.DataFrame, tmp_path: Path) -> None:
    folder = tmp_path / "slides"
    of_slide = table.assign(patch_size_level0=table["group"].map({f"slide {i}": 400 + i for i in range(4)}))
    assert export(filled[0], folder, "trident", of_slide, by="group", attributes={"overlap": 0}) == 153
    assert sorted(p.name for p in folder.iterdir()) == [f"slide-{i}.h5" for i in range(4)]
    with h5py.File(folder / "slide-2.h5") as file:
        assert {word.decode() for word in np.asarray(file["group"])} == {"slide 2"}
        assert dict(file["coords"].attrs) == {"patch_size_level0": 402, "overlap": 0, "name": "slide-2"}
        assert len(np.asarray(file["features"])) == (table["group"] == "slide 2").sum()
    done = import_export(Bank(tmp_path / "back"), folder)
    assert (done.rows, done.added, len(done.table)) == (153, 150, 153)
    with pytest.raises(InvalidRequest, match=r"patch_size_level0 is 40. in some rows and 40. in others"):
        export(filled[0], tmp_path / "no.h5", "trident", of_slide)
    twice = table.assign(group=["a b", "a-b"] + ["c"] * 151)
    with pytest.raises(InvalidRequest, match=r"would both become the file a-b"):
        export(filled[0], tmp_path / "no", "trident", twice, by="group")
    assert not (tmp_path / "no").exists()


def test_regions_of_slides_say_the_size_of_a_patch(
    filled: tuple[Store, Any], table: pd.DataFrame, tmp_path: Path
) -> None:
    for scale, wanted in (
        ("", {"patch_size": 256, "patch_size_level0": 256}),
        (",down=2", {"patch_size": 256, "patch_size_level0": 512}),
        (",mpp=0.5,mpp0=0.25", {"patch_size": 256, "patch_size_level0": 512}),
        (",mpp=0.5", {"patch_size": 256}),
        (",level=1,border=crop", {"patch_size": 256}),
    ):
        path = tmp_path / f"{len(scale)}.h5"
        regions = [f"a.svs::wsi[{x},7,256,256{scale}]" for x in table["x"]]
        export(filled[0], path, "trident", table.assign(path=regions))
        with h5py.File(path) as file:
            assert dict(file["coords"].attrs) == wanted | {"name": path.stem}, scale


@pytest.mark.parametrize("layout", sorted(SLIDES))
def test_slide_layouts_refuse_rows_without_coordinates(
    filled: tuple[Store, Any], table: pd.DataFrame, tmp_path: Path, layout: str
) -> None:
    options = {"tile_um": 112.0, "tile_px": 224, "mpp": 0.5, "attributes": {"patch_size_level0": 512}}
    table.loc[3, "y"] = pd.NA
    with pytest.raises(InvalidRequest, match=rf"1 of \d+ rows have no coord.*{table['patch_id'][3]}"):
        export(filled[0], tmp_path / "out", layout, table, **options)
    with pytest.raises(InvalidRequest, match="has no columns x and y"):
        export(filled[0], tmp_path / "out", layout, table.drop(columns="y"), **options)
    assert not (tmp_path / "out").exists()


def test_clam_reads_its_folder(filled: tuple[Store, Any], table: pd.DataFrame, tmp_path: Path) -> None:
    """As CLAM's Generic_MIL_Dataset does: torch.load of pt_files, or features and coords of h5_files."""
    torch = pytest.importorskip("torch")
    path = write(filled, table, tmp_path, "clam")
    for i in range(4):
        of_slide = table[table["group"] == f"slide {i}"]
        features = torch.load(path / f"pt_files/slide-{i}.pt")
        assert features.dtype == torch.float32
        with h5py.File(path / f"h5_files/slide-{i}.h5") as file:
            assert np.asarray(file["features"]).tobytes() == features.numpy().tobytes()
            assert np.asarray(file["coords"]).tolist() == of_slide[["x", "y"]].to_numpy().tolist()
        assert torch.nn.Linear(8, 2)(features).shape == (len(of_slide), 2)


def test_stamp(filled: tuple[Store, Any], table: pd.DataFrame, wanted: np.ndarray, tmp_path: Path) -> None:
    with h5py.File(write(filled, table, tmp_path, "stamp")) as file:
        assert np.asarray(file["feats"]).tobytes() == wanted.tobytes()
        assert np.asarray(file["coords"]).tolist() == (table[["x", "y"]].to_numpy() * 0.5).tolist()
        assert {name: file.attrs[name] for name in STAMP_ATTRIBUTES} == {
            "unit": "um",
            "tile_size_um": 112.0,
            "tile_size_px": 224,
            "feat_type": "tile",
            "extractor": "fake:noise",
            "stamp_version": "2.1.0",
        }


def test_npy(filled: tuple[Store, Any], table: pd.DataFrame, wanted: np.ndarray, tmp_path: Path) -> None:
    path = write(filled, table, tmp_path, "npy")
    assert np.load(path / "embeddings/embeddings_0.npy").tobytes() == wanted.tobytes()
    frame = pd.read_parquet(path / "metadata/metadata_0.parquet")
    assert frame["patch_id"].tolist() == table["patch_id"].tolist()
    about((path / "patchbank.json").read_text())


def test_npz(filled: tuple[Store, Any], table: pd.DataFrame, wanted: np.ndarray, tmp_path: Path) -> None:
    with np.load(write(filled, table, tmp_path, "npz"), allow_pickle=False) as file:
        assert file["embeddings"].tobytes() == wanted.tobytes()
        for name in WORDS:
            assert file[name].tolist() == table[name].tolist()
        about(str(file["patchbank"]))


def test_parquet_loads_with_datasets(
    filled: tuple[Store, Any], table: pd.DataFrame, wanted: np.ndarray, tmp_path: Path
) -> None:
    path = write(filled, table, tmp_path, "parquet")
    schema = pyarrow.parquet.read_schema(path)
    assert str(schema.field("embedding").type).startswith("fixed_size_list")
    about(schema.metadata[b"patchbank"])
    datasets = pytest.importorskip("datasets")
    loaded = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    assert loaded["patch_id"][:] == table["patch_id"].tolist()
    assert loaded.features["embedding"].length == 8
    vectors = np.asarray(loaded.with_format("numpy")[:]["embedding"], dtype=wanted.dtype)
    assert vectors.tobytes() == wanted.tobytes()


@pytest.fixture
def typed(table: pd.DataFrame) -> pd.DataFrame:
    """The table as a CSV gives it: all text, numbers with gaps, ids that look like numbers."""
    gaps = ["" if i % 5 == 0 else str(i) for i in range(153)]
    more = {
        "age": gaps,
        "mpp": [f"0.{i + 101}" for i in range(153)],
        "code": [f"{i:03d}" for i in range(153)],
    }
    return table.astype({"x": str, "y": str}).assign(**more, group=[str(i % 4) for i in range(153)])


def test_pandas_and_duckdb_see_types(filled: tuple[Store, Any], typed: pd.DataFrame, tmp_path: Path) -> None:
    path = write(filled, typed, tmp_path, "parquet")
    frame = pd.read_parquet(path)
    assert [str(frame[name].dtype) for name in ("label", "domain", "split")] == ["category"] * 3
    assert frame["label"].isna().tolist() == (typed["label"] == "").tolist()
    assert [frame[name].dtype.kind for name in ("x", "age", "mpp", "code", "group")] == list("iffOO")
    duckdb = pytest.importorskip("duckdb")
    kinds = dict(
        duckdb.sql(f"select column_name, column_type from (describe select * from '{path}')").fetchall()
    )
    assert [kinds[name] for name in ("x", "age", "mpp", "code", "group")] == [
        *("BIGINT", "BIGINT", "DOUBLE", "VARCHAR", "VARCHAR")
    ]
    if filled[0].identity.dtype == "float32":
        assert kinds["embedding"].startswith("FLOAT[")
    (total,) = duckdb.sql(f"select sum(x) from '{path}' where label = 'atypical'").fetchall()[0]
    assert total == typed["x"].astype(int)[typed["label"] == "atypical"].sum()


def test_datasets_has_splits_and_class_labels(
    filled: tuple[Store, Any], typed: pd.DataFrame, tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    path = write(filled, typed, tmp_path, "huggingface", classes=("normal", "atypical"))
    loaded = datasets.load_dataset(str(path), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "test"}
    for split, part in loaded.items():
        of_split = typed[typed["split"] == split].reset_index(drop=True)
        assert part["patch_id"][:] == of_split["patch_id"].tolist()
        assert part.features["label"].names == ["normal", "atypical"]
        assert part.features["domain"].names == ["scänner"]
        names = [None if code is None else part.features["label"].int2str(code) for code in part["label"][:]]
        assert names == [label or None for label in of_split["label"]]
        assert part.features["x"].dtype == "int64"
        store, rows = filled
        vectors = np.asarray(part.with_format("numpy")[:]["embedding"], dtype=store.identity.dtype)
        place = {key.tobytes().hex(): i for i, key in enumerate(rows.keys)}
        assert vectors.tobytes() == rows.vectors[[place[word] for word in of_split["content_hash"]]].tobytes()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset closes no tar
def test_webdataset(
    filled: tuple[Store, Any], typed: pd.DataFrame, wanted: np.ndarray, tmp_path: Path
) -> None:
    wds = pytest.importorskip("webdataset")
    path = write(filled, typed, tmp_path, "webdataset", classes=("normal", "atypical"))
    samples = list(wds.WebDataset(str(path), shardshuffle=False).decode())
    assert len(samples) == 153
    assert np.stack([sample["npy"] for sample in samples]).tobytes() == wanted.tobytes()
    assert [sample["json"]["patch_id"] for sample in samples] == typed["patch_id"].tolist()
    assert [sample["json"]["x"] for sample in samples] == typed["x"].astype(int).tolist()
    assert [sample.get("cls", -1) for sample in samples] == [1 if label else -1 for label in typed["label"]]


def test_eva_reads_its_folder(
    filled: tuple[Store, Any], table: pd.DataFrame, wanted: np.ndarray, tmp_path: Path
) -> None:
    """As its EmbeddingsClassificationDataset does: manifest.csv, torch.load, int targets."""
    torch = pytest.importorskip("torch")
    path = write(filled, table, tmp_path, "eva")
    manifest = pd.read_csv(path / "manifest.csv")
    assert list(manifest.columns[:4]) == ["origin", "embeddings", "target", "split"]
    vectors = torch.stack(
        [torch.load(path / name, map_location="cpu").squeeze(0) for name in manifest["embeddings"]]
    )
    assert vectors.dtype == torch.float32  # of its heads
    assert np.array_equal(vectors.numpy(), wanted)
    assert np.asarray(manifest["target"], np.int64).tolist() == [0 if x else 1 for x in table["label"]]
    assert manifest["split"].tolist() == table["split"].tolist()


def test_csv_and_projector(
    filled: tuple[Store, Any], typed: pd.DataFrame, wanted: np.ndarray, tmp_path: Path
) -> None:
    typed = typed.assign(note="a\tb\nc")
    frame = pd.read_csv(write(filled, typed, tmp_path, "csv"), dtype={"group": str}, keep_default_na=False)
    numbers = frame[[f"embedding_{i}" for i in range(8)]].to_numpy(wanted.dtype)
    assert numbers.tobytes() == wanted.tobytes()
    assert frame["patch_id"].tolist() == typed["patch_id"].tolist()
    assert frame["note"].tolist() == typed["note"].tolist()
    folder = tmp_path / "projector"
    export(filled[0], folder, "projector", typed)
    tensors = [line.split("\t") for line in (folder / "tensors.tsv").read_text().splitlines()]
    assert np.array(tensors, np.float64).astype(wanted.dtype).tobytes() == wanted.tobytes()
    lines = [line.split("\t") for line in (folder / "metadata.tsv").read_text().splitlines()]
    assert lines[0] == [*typed.drop(columns="content_hash").columns, "content_hash"]
    assert [line[0] for line in lines[1:]] == typed["patch_id"].tolist()
    assert {len(line) for line in lines} == {len(typed.columns)}
    assert 'tensor_path: "tensors.tsv"' in (folder / "projector_config.pbtxt").read_text()


def test_fiftyone_reads_its_folder(
    filled: tuple[Store, Any], table: pd.DataFrame, wanted: np.ndarray, tmp_path: Path
) -> None:
    """As its FiftyOneImageClassificationDataset does: key -> file, key -> number of the class or nothing."""
    table = table.assign(path=[f"a/{i}.png" for i in range(153)])
    path = write(filled, table, tmp_path, "fiftyone", root="/data")
    files, labels = (json.loads((path / f"{name}.json").read_text()) for name in ("data", "labels"))
    assert sorted(files) == list(files) == list(labels["labels"])
    assert list(files.values()) == [f"/data/a/{i}.png" for i in range(153)]
    named = [None if code is None else labels["classes"][code] for code in labels["labels"].values()]
    assert named == [label or None for label in table["label"]]
    assert np.load(path / "embeddings.npy").tobytes() == wanted.tobytes()


def test_qupath(filled: tuple[Store, Any], table: pd.DataFrame, tmp_path: Path) -> None:
    path = write(filled, table.assign(score=0.5), tmp_path, "qupath", attributes={"patch_size_level0": 512})
    found = json.loads(path.read_text())["features"]
    assert [one["properties"]["name"] for one in found] == table["patch_id"].tolist()
    assert [one["geometry"]["coordinates"][0][2] for one in found] == [[x + 512, 519] for x in table["x"]]
    assert found[0]["properties"]["measurements"] == {"score": 0.5}
    named = [one["properties"].get("classification", {}).get("name", "") for one in found]
    assert named == table["label"].tolist()


@pytest.mark.parametrize("layout", DOCUMENTED)
def test_vectors_in_another_type(
    filled: tuple[Store, Any], table: pd.DataFrame, tmp_path: Path, layout: str
) -> None:
    """Wider ones come back as they were stored; narrower ones are another identity's."""
    store, rows = filled
    wide = import_export(Bank(tmp_path / "wide"), write(filled, table, tmp_path, layout, dtype="float32"))
    assert wide.store.identity == store.identity
    assert wide.store.load(rows.keys).tobytes() == rows.vectors.tobytes()
    shutil.rmtree(tmp_path / "out")
    narrow = import_export(Bank(tmp_path / "narrow"), write(filled, table, tmp_path, layout, dtype="float16"))
    assert narrow.store.identity.dtype == "float16"
    assert narrow.store.load(rows.keys).tobytes() == rows.vectors.astype("float16").tobytes()


def test_numbers_that_float16_does_not_hold(tmp_path: Path, identity: Any, make_rows: Any) -> None:
    store = Bank(tmp_path / "bank").open_store(identity(dtype="float32"), create=True)
    rows = make_rows(9, dtype="float32")
    rows.vectors[5, 2] = 1e6
    with store.writer() as writer:
        writer.append(*rows[:])
    store.refresh()
    with pytest.raises(VectorRefused, match=r"row 5 \(set/0-5\) has a number that float16 does not hold"):
        export(store, tmp_path / "x.npz", "npz", rows.table(), dtype="float16")
    assert not (tmp_path / "x.npz").exists()


@pytest.mark.parametrize("layout", ["h5ad", "zarr"])
def test_anndata(
    filled: tuple[Store, Any], table: pd.DataFrame, wanted: np.ndarray, tmp_path: Path, layout: str
) -> None:
    anndata = pytest.importorskip("anndata")
    path = write(filled, table, tmp_path, layout)
    data = (anndata.read_h5ad if layout == "h5ad" else anndata.read_zarr)(path)
    assert np.asarray(data.X).tobytes() == wanted.tobytes()
    assert data.obs_names.tolist() == table["patch_id"].tolist()
    assert data.obs["domain"].tolist() == table["domain"].tolist()
    assert [str(data.obs[name].dtype) for name in ("label", "domain", "split")] == ["category"] * 3
    about(data.uns["patchbank"])
    assert data.uns["licence"] == "CC-BY-NC-4.0"


def test_safetensors(
    filled: tuple[Store, Any], table: pd.DataFrame, wanted: np.ndarray, tmp_path: Path
) -> None:
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(write(filled, table, tmp_path, "safetensors"), "numpy") as file:
        assert file.get_tensor("embeddings").tobytes() == wanted.tobytes()
        about(file.metadata()["patchbank"])
        for name in ("patch_id", "domain"):
            assert json.loads(file.metadata()[f"column.{name}"]) == table[name].tolist()
        assert file.get_tensor("column.x").tolist() == table["x"].tolist()


def test_safetensors_whose_header_would_be_too_long(
    filled: tuple[Store, Any], table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("patchbank.cache.export.safetensors.HEADER", 4000)
    safetensors = pytest.importorskip("safetensors")
    path = write(filled, table, tmp_path, "safetensors")
    with safetensors.safe_open(path, "numpy") as file:
        words = [bytes(word).rstrip(b"\0").decode() for word in file.get_tensor("column.domain")]
        assert words == table["domain"].tolist()
    back = import_export(Bank(tmp_path / "back"), path).table
    assert back[["patch_id", "domain"]].equals(table[["patch_id", "domain"]])


def test_requests_that_make_no_sense(filled: tuple[Store, Any], table: pd.DataFrame, tmp_path: Path) -> None:
    store, _ = filled
    out = tmp_path / "x.npz"

    def refused(
        why: str, layout: str = "npz", frame: pd.DataFrame = table, error: Any = InvalidRequest, **o: Any
    ) -> None:
        with pytest.raises(error, match=why):
            export(store, out, layout, frame, **o)
        assert not [p for p in tmp_path.iterdir() if p.name != "bank"]

    refused("unknown layout 'xlsx'", "xlsx")
    refused("dtype is 'float64'", dtype="float64")
    refused("no column content_hash", frame=table.drop(columns="content_hash"))
    refused("no column patch_id", frame=table.drop(columns="patch_id"))
    refused("two columns 'x'", frame=pd.concat([table, table[["x"]]], axis=1))
    refused(r"row 0 of the column 'label'.*invalid character", frame=table.assign(label="a\0b"))
    refused(r"row 0 of the column 'label'.*invalid character", frame=table.assign(label="\udce4"))
    refused(r"too long", frame=table.assign(**{"ä" * 120: 1}))
    refused(
        r"1 of the 153 rows .*first is row 3",
        frame=table.assign(content_hash=["0" * 32] * 3 + [""] + ["0" * 32] * 149),
    )
    refused("153 of 153 patches", frame=table.assign(content_hash="0" * 32), error=RowsMissing)
    refused("trident, clam, stamp and qupath", by="group")
    refused("no column 'slide'", "trident", by="slide")
    refused("tile_um.* and .*tile_px", "stamp")
    refused("um per pixel", "stamp", tile_um=112.0, tile_px=224)
    refused("level 0", "qupath")
    out = tmp_path / "x"
    refused("have no label .*the first: set/", "eva")
    refused("no column path", "fiftyone")
    refused(r"inside of other files .*a\.zip::1\.png", "fiftyone", table.assign(path="a.zip::1.png"))
    out = tmp_path / "x.npz"
    for size in (0.0, -1.0, float("nan"), float("inf")):
        refused("tile_um is", "stamp", tile_um=size)
        refused("mpp is", "stamp", tile_um=112.0, mpp=size)
    for layout in FOLDERS:  # a folder that is called f.npy misleads whoever finds it
        with pytest.raises(InvalidRequest, match=rf"{layout} is a folder .*f\.npy is the name of a file"):
            export(store, tmp_path / "f.npy", layout, table)
    out.write_text("mine")
    with pytest.raises(InvalidRequest, match="exists already"):
        export(store, out, "npz", table)
    with pytest.raises(StoreError, match="cannot write"):
        export(store, out / "below" / "x.npz", "npz", table)


def test_imports_of_other_things(tmp_path: Path, filled: tuple[Store, Any]) -> None:
    bank = Bank(tmp_path / "back")
    foreign = tmp_path / "slide.h5"
    with h5py.File(foreign, "w") as file:
        file["features"] = np.zeros((3, 8))
    with pytest.raises(InvalidRequest, match="does not say which encoder"):
        import_export(bank, foreign)
    with pytest.raises(InvalidRequest, match="does not exist"):
        import_export(bank, tmp_path / "nothing")
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(InvalidRequest, match="none of the layouts"):
        import_export(bank, tmp_path / "x.txt")
    path = write(filled, None, tmp_path, "npy")
    text = (path / "patchbank.json").read_text()
    (path / "patchbank.json").write_text(text.replace('"version": 3', '"version": 4'))
    with pytest.raises(InvalidRequest, match=r"version 4; .* update patchbank"):
        import_export(bank, path)
    assert bank.names() == []


def test_tables(tmp_path: Path, filled: tuple[Store, Any], table: pd.DataFrame) -> None:
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.toml").write_text('format = "patchbank-manifest"\n[table]\nfile = "t.csv"\n')
    reads: list[Callable[[], pd.DataFrame]] = [
        lambda e=e: read_table(tmp_path / f"t.{e}") for e in ("csv", "parquet", "toml")
    ]
    for read in reads:
        assert read()["label"].tolist() == table["label"].tolist()
        assert keys_of_table(read()).tobytes() == keys_of_table(table).tobytes()
    assert first_of_key(table, filled[1].keys[:1])[0] == table["content_hash"].tolist().index(
        filled[1].keys[0].tobytes().hex()
    )
    assert len(select(table, "group == 'slide 1' and split == 'train'")) == 38 + 2
    assert select(table, None) is table
    for query in ("domain ==", "nothing == 1", "patch_id + 1"):
        with pytest.raises(InvalidRequest, match="columns: patch_id"):
            select(table, query)
    (tmp_path / "bad.toml").write_text("[table]\n")
    (tmp_path / "worse.toml").write_text("[")
    (tmp_path / "bad.parquet").write_text("no")
    for name in ("bad.toml", "worse.toml", "bad.parquet", "none.csv"):
        with pytest.raises(InvalidRequest, match=name):
            read_table(tmp_path / name)


@pytest.mark.parametrize("layout", ["trident", "npy", "parquet", "safetensors", "npz"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_an_export_appears_durably_or_not_at_all(
    tmp_path: Path, identity: Any, make_rows: Any, monkeypatch: pytest.MonkeyPatch, layout: str, number: int
) -> None:
    """Each fsync and each rename fails, one after the other."""
    store = Bank(tmp_path / "bank").open_store(identity(), create=True)
    rows = make_rows(20)
    with store.writer() as writer:
        writer.append(*rows[:])
    target = tmp_path / "out" / NAMES.get(layout, f"x.{layout}")
    target.parent.mkdir()
    fsync, replace = os.fsync, Path.replace
    failed, at = 0, 1
    while not target.exists():
        count = 0

        def once(*arguments: Any, work: Callable[..., Any]) -> Any:
            nonlocal count
            count += 1
            if count == at:  # noqa: B023
                raise OSError(number, os.strerror(number))
            return work(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda fd: once(fd, work=fsync))
            patch.setattr(Path, "replace", lambda a, b: once(a, b, work=replace))
            try:
                export(store, target, layout, rows.table())
            except StoreError as error:
                assert str(target) in str(error)  # noqa: PT017
                failed += 1
        if count < at:
            break
        assert [path for path in target.parent.iterdir() if path != target] == []
        at += 1
    assert failed >= 2  # the file, the name; of a folder each file in it
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    export(store, target, layout, rows.table())
    assert import_export(Bank(tmp_path / "back"), target).rows == 20

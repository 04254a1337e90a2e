"""Embeddings as other programs write them: read as they are meant, refused where they are damaged."""

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from patchbank.cache.importing.documents import in_memory
from patchbank.cache.importing.foreign import FILES, read_source
from patchbank.cache.importing.source import Source, columns_of, encoder_of, joined, of_slide, single
from patchbank.errors import InvalidRequest, MissingDependency, PatchbankError

ROWS, DIM = 12, 8
X = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
IDS = [f"p{i}" for i in range(ROWS)]
COORDS = np.stack([np.arange(ROWS) * 512, np.arange(ROWS) % 3], axis=1)


def vectors_of(source: Source) -> np.ndarray:
    return np.concatenate(list(source.vectors.read()))


def holds(source: Source, wanted: np.ndarray = X) -> Source:
    """The source, whose vectors are those wanted, each time they are read."""
    for _ in range(2):
        assert np.array_equal(vectors_of(source), wanted)
    assert source.vectors.shape == wanted.shape
    assert len(source.table) == len(wanted)
    assert source.table["path"].is_unique
    return source


def slides(folder: Path, write: Callable[[Path, slice], object], suffix: str) -> Path:
    """Three files of four rows each, s0, s1, s2."""
    folder.mkdir(parents=True)
    for i in range(3):
        write(folder / f"s{i}{suffix}", slice(4 * i, 4 * i + 4))
    return folder


def write_trident(path: Path, rows: slice, *, batched: bool = False, **options: Any) -> None:
    with h5py.File(path, "w") as file:
        data = X[rows][None] if batched else X[rows]
        file.create_dataset("features", data=data, **options)
        coords = file.create_dataset("coords", data=COORDS[rows])
        coords.attrs.update(
            patch_size=256, patch_size_level0=512, level0_magnification=40, overlap=0, name=path.stem
        )


# --- read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_npy(tmp_path: Path, kind: Any) -> None:
    np.save(tmp_path / "f.npy", X.astype(kind))
    source = holds(read_source(tmp_path / "f.npy"), X.astype(kind))
    assert source.table["path"].tolist() == [f"f.npy::embedding[{i}]" for i in range(ROWS)]
    assert "patch_id" not in source.table.columns
    np.save(tmp_path / "f.npy", X[None])
    holds(read_source(tmp_path / "f.npy"))
    folder = slides(tmp_path / "each", lambda path, rows: np.save(path, X[rows]), ".npy")
    source = holds(read_source(folder))
    assert source.table["group"].tolist() == [f"s{i // 4}" for i in range(ROWS)]
    assert source.table["path"][5] == "s1.npy::embedding[1]"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "f.npz", features=X, ids=np.array(IDS), label=np.arange(ROWS), other=np.zeros(3))
    source = holds(read_source(tmp_path / "f.npz"))
    assert source.table["patch_id"].tolist() == IDS
    assert source.table["label"].tolist() == list(range(ROWS))
    assert "other" not in source.table.columns
    save(tmp_path / "f.npz", a=X, b=X + 1)
    with pytest.raises(
        InvalidRequest, match=r"f\.npz: which of its arrays .*--key NAME; it has a \(12, 8\), b"
    ):
        read_source(tmp_path / "f.npz")
    holds(read_source(tmp_path / "f.npz", "b"), X + 1)
    with pytest.raises(InvalidRequest, match=r"no embeddings 'c'"):
        read_source(tmp_path / "f.npz", "c")


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}, {"compression": "lzf", "shuffle": True}])
def test_trident(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = slides(tmp_path / "features_x", lambda path, rows: write_trident(path, rows, **options), ".h5")
    source = holds(read_source(folder))
    assert source.encoder == "x"
    table = source.table
    assert table["group"].tolist() == [f"s{i // 4}" for i in range(ROWS)]
    assert table["patch_id"].tolist() == [f"s{i // 4}_{x}_{y}" for i, (x, y) in enumerate(COORDS.tolist())]
    assert table[["x", "y"]].to_numpy().tolist() == COORDS.tolist()
    assert set(table["patch_size_level0"]) == {512}
    assert set(table["level0_magnification"]) == {40}


def test_clam(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    slides(tmp_path / "c/pt_files", lambda path, rows: torch.save(torch.from_numpy(X[rows]), path), ".pt")
    source = holds(read_source(tmp_path / "c"))
    assert source.layout == "clam"
    assert source.table["path"][4] == "pt_files/s1.pt::embedding[0]"
    slides(tmp_path / "c/h5_files", lambda path, rows: write_trident(path, rows, batched=True), ".h5")
    assert holds(read_source(tmp_path / "c")).table["x"].tolist() == COORDS[:, 0].tolist()
    one = tmp_path / "one.pt"
    torch.save(torch.from_numpy(X)[None], one)
    holds(read_source(one))
    torch.save(
        {"feats": torch.from_numpy(X).bfloat16(), "coords": torch.from_numpy(COORDS), "encoder": "uni"}, one
    )
    source = holds(read_source(one), torch.from_numpy(X).bfloat16().float().numpy())
    assert source.encoder == "uni"
    assert source.table["y"].tolist() == COORDS[:, 1].tolist()


def test_stamp(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["feats"] = X.astype(np.float16)
        file["coords"] = COORDS * 0.25
        file.attrs.update(extractor="mahmood-uni", unit="um", tile_size_um=112.0, tile_size_px=224)
    source = holds(read_source(tmp_path / "s.h5"), X.astype(np.float16))
    assert (source.layout, source.encoder) == ("stamp", "mahmood-uni")
    assert source.table["x_um"].tolist() == (COORDS[:, 0] * 0.25).tolist()
    assert set(source.table["tile_size_um"]) == {112.0}
    assert set(source.table["tile_size_px"]) == {224}


def test_eva(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    rows = []
    for i in range(ROWS):
        vector = torch.from_numpy(X[i])
        torch.save(vector[None] if i % 2 else vector, tmp_path / f"{i}.pt")
        rows.append({"origin": f"a/{i}.png", "embeddings": f"{i}.pt", "target": i % 2, "split": "train"})
    pd.DataFrame(rows).to_csv(tmp_path / "manifest.csv", index=False)
    table = holds(read_source(tmp_path)).table
    assert table["label"].tolist() == ["0", "1"] * 6
    assert table["patch_id"].tolist() == [f"a/{i}.png" for i in range(ROWS)]
    assert table["path"][3] == "3.pt::embedding[0]"
    rows[5]["embeddings"] = "../../etc/5.pt"
    pd.DataFrame(rows).to_csv(tmp_path / "manifest.csv", index=False)
    with pytest.raises(InvalidRequest, match=r"manifest\.csv: row 6: there is no file '\.\./\.\./etc/5\.pt'"):
        read_source(tmp_path)


def test_eva_with_several_vectors_a_file(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    slides(tmp_path / "e", lambda path, rows: torch.save(list(torch.from_numpy(X[rows])), path), ".pt")
    rows = [
        {"origin": f"s{i}.svs", "embeddings": f"s{i}.pt", "target": 0, "split": "val", "wsi_id": i}
        for i in range(3)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "e/manifest.csv", index=False)
    table = holds(read_source(tmp_path / "e")).table
    assert table["patch_id"].tolist() == [f"s{i // 4}.svs/{i % 4}" for i in range(ROWS)]
    assert table["group"].tolist() == [str(i // 4) for i in range(ROWS)]


@pytest.mark.parametrize("several", [True, False])
def test_eva_with_an_image_in_two_splits(tmp_path: Path, several: bool) -> None:
    """Its ids are then of the files, each row its own."""
    torch = pytest.importorskip("torch")
    each = 2 if several else 1
    rows = []
    for i in range(ROWS // each):
        torch.save(torch.from_numpy(X[each * i : each * i + each]), tmp_path / f"{i}.pt")
        rows.append({"origin": "one.png", "embeddings": f"{i}.pt", "target": 0, "split": "train"})
    pd.DataFrame(rows).to_csv(tmp_path / "manifest.csv", index=False)
    table = holds(read_source(tmp_path)).table
    wanted = [f"{i // 2}.pt/{i % 2}" if several else f"{i}.pt" for i in range(ROWS)]
    assert table["patch_id"].tolist() == wanted


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_tensors_of_every_type(tmp_path: Path, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(X).to(getattr(torch, dtype))
    torch.save(
        {"features": tensor.requires_grad_(), "note": "kept", 7: "a number for a name"}, tmp_path / "x.pt"
    )
    holds(read_source(tmp_path / "x.pt"), tensor.detach().float().numpy().astype(X.dtype))
    torch.save(list(tensor.detach()), tmp_path / "list.pt")
    holds(read_source(tmp_path / "list.pt"), tensor.detach().float().numpy().astype(X.dtype))


def test_tensors_that_are_no_embeddings(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pt"
    for content, why in (
        (torch.from_numpy(X).to_sparse(), "it is not read"),
        (torch.zeros(1).expand(1 << 20, 1 << 12), "claims 17,179,869,184 bytes"),  # one number, shown as many
        ([], "holds a list"),
        ("text", "holds a str"),
        ({"a": torch.zeros(3, 2), "b": torch.zeros(3, 2)}, "Say it with --key NAME; it has a"),
        ({"label": 1}, "no array of floats"),
    ):
        torch.save(content, path)
        with pytest.raises(InvalidRequest, match=why):
            read_source(path)
    torch.save({"a": torch.zeros(3, 2), "b": torch.zeros(3, 2)}, path)
    with pytest.raises(InvalidRequest, match=r"no embeddings 'c'; it has a \(3, 2\), b \(3, 2\)"):
        read_source(path, "c")


def test_arrays_in_fortran_order(tmp_path: Path) -> None:
    """As np.save writes a transposed array: a file alone is read as it is, inside others it is refused."""
    turned = np.asfortranarray(X)
    assert not turned.flags.c_contiguous
    np.save(tmp_path / "x.npy", turned)
    holds(read_source(tmp_path / "x.npy"))
    np.save(tmp_path / "x.npy", np.asfortranarray(X[None]))
    holds(read_source(tmp_path / "x.npy"))
    np.savez(tmp_path / "x.npz", features=turned)
    with pytest.raises(
        InvalidRequest, match=r"x\.npz holds an array in Fortran order .*np\.ascontiguousarray"
    ):
        read_source(tmp_path / "x.npz")


@pytest.mark.parametrize("new", [True, False])
def test_slide2vec(tmp_path: Path, new: bool) -> None:
    torch = pytest.importorskip("torch")
    for i in range(3):
        rows = slice(4 * i, 4 * i + 4)
        points = COORDS[rows]
        if new:
            (tmp_path / "tile_embeddings").mkdir(exist_ok=True)
            (tmp_path / "tiles").mkdir(exist_ok=True)
            torch.save(torch.from_numpy(X[rows]), tmp_path / f"tile_embeddings/s{i}.pt")
            (tmp_path / f"tile_embeddings/s{i}.meta.json").write_text('{"encoder_name": "uni2"}')
            about = {"tile_index": np.arange(4), "x": points[:, 0], "y": points[:, 1]}
            np.savez_compressed(tmp_path / f"tiles/s{i}.coordinates.npz", **about)
        else:
            (tmp_path / "features").mkdir(exist_ok=True)
            (tmp_path / "coordinates").mkdir(exist_ok=True)
            torch.save(torch.from_numpy(X[rows]), tmp_path / f"features/s{i}.pt")
            kind = [("x", int), ("y", int), ("tile_size_resized", int)]
            np.save(
                tmp_path / f"coordinates/s{i}.npy", np.array([(x, y, 224) for x, y in points], dtype=kind)
            )
    source = holds(read_source(tmp_path))
    assert source.encoder == ("uni2" if new else "")
    table = source.table
    assert table[["x", "y"]].to_numpy().tolist() == COORDS.tolist()
    assert table["group"].tolist() == [f"s{i // 4}" for i in range(ROWS)]


def frame() -> pd.DataFrame:
    return pd.DataFrame({"id": IDS, "label": ["a", "b"] * 6, "age": range(ROWS), "embedding": list(X)})


def test_parquet(tmp_path: Path) -> None:
    frame().to_parquet(tmp_path / "f.parquet")
    table = holds(read_source(tmp_path / "f.parquet")).table
    assert table["patch_id"].tolist() == IDS
    assert table["label"].tolist() == ["a", "b"] * 6
    assert table["age"].dtype.kind == "i"
    for i, what in ((3, "is missing"), (5, "has 7 numbers, the first row 8")):
        spoilt = frame()
        spoilt.at[i, "embedding"] = None if i == 3 else X[i][:7]
        spoilt.to_parquet(tmp_path / "f.parquet")
        with pytest.raises(InvalidRequest, match=rf"f\.parquet: row {i}: the embedding {what}"):
            vectors_of(read_source(tmp_path / "f.parquet"))


def test_datasets_on_disk_and_as_parquet(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        id=datasets.Value("string"),
        label=datasets.ClassLabel(names=["normal", "tumor"]),
        embedding=datasets.Sequence(datasets.Value("float32"), length=DIM),
    )
    rows = {"id": IDS, "label": [0, 1] * 6, "embedding": X.tolist()}
    whole = datasets.Dataset.from_dict(rows, features=features)
    parts = datasets.DatasetDict(test=whole.select(range(4)), train=whole.select(range(4, ROWS)))
    parts.save_to_disk(str(tmp_path / "disk"))
    for split, part in parts.items():
        (tmp_path / "hub/data").mkdir(parents=True, exist_ok=True)
        part.to_parquet(str(tmp_path / f"hub/data/{split}-00000-of-00001.parquet"))
    whole.save_to_disk(str(tmp_path / "one"))
    for place, splits in (("disk", True), ("hub", True), ("one", False)):
        table = holds(read_source(tmp_path / place)).table
        assert table["label"].tolist() == ["normal", "tumor"] * 6
        assert table["patch_id"].tolist() == IDS
        assert not splits or table["split"].tolist() == ["test"] * 4 + ["train"] * 8
        assert splits or "split" not in table.columns


# anndata 0.12 writes Zarr 2 and warns that its successors will not
@pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning")
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_anndata(tmp_path: Path, suffix: str) -> None:
    anndata = pytest.importorskip("anndata")
    obs = pd.DataFrame({"label": pd.Categorical(["a", "b", None] * 4), "age": range(ROWS)}, index=IDS)
    data = anndata.AnnData(X=np.zeros((ROWS, 2), np.float32), obs=obs, obsm={"uni": X})
    path = tmp_path / f"x{suffix}"
    if suffix == ".zarr":
        data.write_zarr(path)
    else:
        data.write_h5ad(path, compression="gzip")
    table = holds(read_source(path, "uni")).table
    assert table["patch_id"].tolist() == IDS
    assert table["label"].tolist() == ["a", "b", ""] * 4
    holds(read_source(path), np.zeros((ROWS, 2), np.float32))


def test_safetensors(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    ids = json.dumps(IDS)
    numpy.save_file(
        {"features": X, "age": np.arange(ROWS)}, tmp_path / "f.safetensors", {"ids": ids, "encoder": "uni"}
    )
    source = holds(read_source(tmp_path / "f.safetensors"))
    assert source.encoder == "uni"
    assert source.table["patch_id"].tolist() == IDS
    assert source.table["age"].tolist() == list(range(ROWS))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pt"])
def test_a_vector_a_patch_under_its_id(tmp_path: Path, suffix: str) -> None:
    arrays = dict(zip(IDS, X, strict=True))
    if suffix == ".npz":
        np.savez(tmp_path / "f.npz", **arrays)
    elif suffix == ".safetensors":
        pytest.importorskip("safetensors.numpy").save_file(arrays, tmp_path / "f.safetensors")
    else:
        torch = pytest.importorskip("torch")
        torch.save({name: torch.tensor(vector)[None] for name, vector in arrays.items()}, tmp_path / "f.pt")
    source = read_source(tmp_path / f"f{suffix}")
    table = source.table
    order = [IDS.index(name) for name in table["patch_id"]]
    holds(source, X[order])
    assert sorted(order) == list(range(ROWS))
    assert "group" not in table.columns  # the file is no slide
    assert read_source(tmp_path).table["patch_id"].str.startswith("f/").all()  # in a folder it is


def test_vectors_under_ids_of_other_lengths(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", **{f"p{i}": X[i][: 5 + i // 11] for i in range(ROWS)})
    assert "p7 (5,), and 4 more" in refused(tmp_path / "f.npz", "which of its arrays are the embeddings")


def test_csv_and_projector(tmp_path: Path) -> None:
    wide = pd.DataFrame(X, columns=[f"feat_{i}" for i in range(DIM)])
    pd.concat([frame()[["id", "label"]], wide], axis=1).to_csv(tmp_path / "f.csv", index=False)
    pd.concat([frame()[["id", "label"]], wide], axis=1).to_parquet(tmp_path / "f.parquet")
    for name in ("f.csv", "f.parquet"):
        source = read_source(tmp_path / name)
        assert np.array_equal(vectors_of(source).astype(np.float32), X)
        assert source.table["patch_id"].tolist() == IDS
        assert source.table["label"].tolist() == ["a", "b"] * 6
        refused(tmp_path / name, "which columns are the embedding", key="other_")
    text = (tmp_path / "f.csv").read_text().replace(str(wide.iloc[2, 3]), "n/a")
    (tmp_path / "f.csv").write_text(text)
    with pytest.raises(InvalidRequest, match=r"f\.csv: row 3: 'n/a' in the column feat_3 is no number"):
        read_source(tmp_path / "f.csv")
    folder = tmp_path / "projector"
    folder.mkdir()
    wide.to_csv(folder / "tensors.tsv", sep="\t", index=False, header=False)
    (folder / "metadata.tsv").write_text("\n".join(["a", "b"] * 6) + "\n")
    source = read_source(folder)
    assert np.array_equal(vectors_of(source).astype(np.float32), X)
    assert source.table["label"].tolist() == ["a", "b"] * 6


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))


def npy_bytes(array: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, **options)
    return stream.getvalue()


def test_webdataset(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for i in range(ROWS):
        members |= {f"a/{i}.npy": npy_bytes(X[i]), f"a/{i}.json": b'{"age": %d}' % i, f"a/{i}.cls": b"1"}
    write_tar(tmp_path / "f.tar", members)
    table = holds(read_source(tmp_path / "f.tar")).table
    assert table["patch_id"].tolist() == [f"a/{i}" for i in range(ROWS)]
    assert table["age"].tolist() == list(range(ROWS))
    assert set(table["label"]) == {"1"}
    write_tar(tmp_path / "f.tar", members | {"a/3.npy": npy_bytes(X[3][:5])})
    with pytest.raises(InvalidRequest, match=r"the embedding of 'a/3' is float32 \(5,\)"):
        vectors_of(read_source(tmp_path / "f.tar"))


def test_the_npy_folder_of_embedding_reader(tmp_path: Path) -> None:
    for part in range(2):
        for kind in ("embeddings", "metadata"):
            (tmp_path / kind).mkdir(exist_ok=True)
        rows = slice(6 * part, 6 * part + 6)
        np.save(tmp_path / f"embeddings/img_emb_{part}.npy", X[rows])
        frame().drop(columns="embedding")[rows].to_parquet(tmp_path / f"metadata/metadata_{part}.parquet")
    table = holds(read_source(tmp_path)).table
    assert table["patch_id"].tolist() == IDS
    assert table["path"][7] == "embeddings/img_emb_1.npy::embedding[1]"


# --- refused ------------------------------------------------------------------------------------------


def refused(path: Path, why: str = "", key: str = "") -> str:
    """Refused in one sentence that names the file, before or while its vectors are read."""
    with pytest.raises(PatchbankError, match=why or None) as caught:
        vectors_of(read_source(path, key))
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 2, 2, 2), ()])
def test_shapes_that_are_no_matrix(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "f.npy", np.ones(shape, np.float32))
    refused(tmp_path / "f.npy", r"embeddings are \(n, dim\)|no embeddings|is not a whole")


def test_numbers_that_are_no_floats(tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", np.ones((4, 3), np.int64))
    refused(tmp_path / "f.npy", "embeddings are floats; this array is int64")


def test_files_of_two_encoders(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", X)
    np.save(tmp_path / "b.npy", X[:, :5])
    with pytest.raises(InvalidRequest, match=r"b\.npy has embeddings of 5 numbers, .*a\.npy of 8"):
        read_source(tmp_path)


def test_coords_of_other_rows(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["features"], file["coords"] = X, COORDS[:5]
    refused(tmp_path / "f.h5", "has 12 embeddings, and 5 coords")


@pytest.mark.parametrize("suffix", sorted(FILES))
@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"version https://git-lfs.github.com/spec/v1\n", b"\x00" * 999, b"{}" * 9]
)
def test_files_that_are_something_else(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"f{suffix}"
    path.write_bytes(content)
    try:
        refused(path)
    except MissingDependency:
        pytest.skip("torch is not installed")


def test_folders_without_embeddings(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="has no embeddings in it"):
        read_source(tmp_path)
    slides(tmp_path / "20x/features_uni_v1", write_trident, ".h5")
    slides(tmp_path / "20x/features_conch", write_trident, ".h5")
    with pytest.raises(
        InvalidRequest, match=r"name one of the folders below: .*features_conch, .*features_uni_v1"
    ):
        read_source(tmp_path)
    (tmp_path / "f.xlsx").write_bytes(b"x")
    refused(tmp_path / "f.xlsx", "is of no format that embeddings are read from")


class Payload:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    mark = tmp_path / "run"
    objects = npy_bytes(np.array([Payload(mark)], dtype=object), allow_pickle=True)
    (tmp_path / "f.npy").write_bytes(objects)
    refused(tmp_path / "f.npy", "Python objects")
    with zipfile.ZipFile(tmp_path / "f.npz", "w") as archive:
        archive.writestr("features.npy", npy_bytes(X))
        archive.writestr("ids.npy", objects)
    refused(tmp_path / "f.npz", "Python objects")
    write_tar(tmp_path / "f.tar", {"0.npy": objects})
    refused(tmp_path / "f.tar", "Python objects")
    torch = pytest.importorskip("torch")
    torch.save({"features": torch.from_numpy(X), "evil": Payload(mark)}, tmp_path / "f.pt")
    refused(tmp_path / "f.pt", "a pickle.*could run code")
    (tmp_path / "g.pt").write_bytes(pickle.dumps(Payload(mark)))
    refused(tmp_path / "g.pt")
    assert not mark.exists()


def header(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def test_claims_that_would_fill_the_memory(tmp_path: Path) -> None:
    huge = (10**12, 8)
    (tmp_path / "f.npy").write_bytes(header(huge))
    refused(tmp_path / "f.npy", "not as long as its header says")
    with zipfile.ZipFile(tmp_path / "f.npz", "w") as archive:
        archive.writestr("features.npy", header(huge))
    refused(tmp_path / "f.npz", r"claims [\d,]+ bytes")
    write_tar(tmp_path / "f.tar", {"0.npy": header(huge)})
    refused(tmp_path / "f.tar")
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.create_dataset("features", (10**10, 8), "f4", chunks=(1024, 8))
    refused(tmp_path / "f.h5", r"claims [\d,]+ bytes")
    about = json.dumps(
        {"features": {"dtype": "F32", "shape": list(huge), "data_offsets": [0, 32 * 10**12]}}
    ).encode()
    (tmp_path / "f.safetensors").write_bytes(struct.pack("<Q", len(about)) + about)
    refused(tmp_path / "f.safetensors")
    torch = pytest.importorskip("torch")
    torch.save(torch.zeros(1).expand(10**10, 8), tmp_path / "f.pt")
    refused(tmp_path / "f.pt", r"claims [\d,]+ bytes")


def test_compressed_chunks_that_unpack_to_more(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    write_trident(path, slice(0, 12), compression="gzip", chunks=(12, 8))
    with h5py.File(path, "r+") as file:
        file["features"].id.write_direct_chunk((0, 0), zlib.compress(bytes(1 << 26)))
    refused(path, "a chunk unpacks to more than the 384 bytes that it claims")
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=X, scaleoffset=3)
    refused(path, "is compressed .*h5repack")


@pytest.mark.parametrize("kind", ["external link", "soft link", "virtual", "external"])
def test_hdf5_that_leads_elsewhere(tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["data"] = X
    (tmp_path / "secret.raw").write_bytes(X.tobytes())
    with h5py.File(tmp_path / "f.h5", "w") as file:
        match kind:
            case "external link":
                file["features"] = h5py.ExternalLink(str(secret), "data")
            case "soft link":
                file["other"], file["features"] = X, h5py.SoftLink("/other")
            case "virtual":
                whole = h5py.VirtualLayout(X.shape, X.dtype)
                whole[:] = h5py.VirtualSource(str(secret), "data", X.shape)
                file.create_virtual_dataset("features", whole)
            case "external":
                file.create_dataset(
                    "features", X.shape, X.dtype, external=[(str(tmp_path / "secret.raw"), 0, X.nbytes)]
                )
    refused(tmp_path / "f.h5", "not followed|not read")


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    for suffix in FILES:
        os.mkfifo(tmp_path / f"f{suffix}")
        with pytest.raises(InvalidRequest, match=r"is of no format|not a regular file"):
            read_source(tmp_path / f"f{suffix}")
    with pytest.raises(InvalidRequest, match="is not a regular file"):
        read_source(tmp_path)


# --- the parts of a source ------------------------------------------------------------------------------


def array_source(path: Path, root: Path, vectors: np.ndarray, encoder: str = "", **columns: Any) -> Source:
    return single(path, root, "npy", in_memory(vectors), columns, encoder)


def test_some_rows_of_a_source(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(40_000, dtype=np.float32).reshape(20_000, 2))
    source = read_source(tmp_path / "x.npy")  # is read in three steps
    assert len(list(source.vectors.read())) == 3
    for rows in (np.arange(0, 20_000, 7), np.array([0, 8191, 8192, 19_999]), np.array([], np.int64)):
        part = source.take(rows)
        assert part.vectors.shape == (len(rows), 2)
        assert vectors_of(part)[:, 0].tolist() == (2.0 * rows).tolist()
        assert part.table["path"].tolist() == [f"x.npy::embedding[{i}]" for i in rows]
    assert source.take(np.array([8192])).row(0) == f"{tmp_path / 'x.npy'}: row 8192"


def test_the_digest_is_of_names_and_contents(tmp_path: Path) -> None:
    folder = slides(tmp_path / "one", lambda path, rows: np.save(path, X[rows]), ".npy")
    digest = read_source(folder).digest
    assert len(digest) == 32
    moved = folder.rename(tmp_path / "two")
    assert read_source(moved).digest == digest
    (moved / "s0.npy").rename(moved / "t0.npy")
    renamed = read_source(moved).digest
    assert renamed != digest
    (moved / "t0.npy").rename(moved / "s0.npy")
    np.save(moved / "s1.npy", X[:4])
    assert read_source(moved).digest not in (digest, renamed)


def test_files_are_joined_in_order(tmp_path: Path) -> None:
    parts = [
        array_source(
            tmp_path / f"{i}.npy", tmp_path, X[4 * i : 4 * i + 4].astype(kind), "uni", group=["g"] * 4
        )
        for i, kind in enumerate((np.float16, np.float32, np.float16))
    ]
    empty = array_source(tmp_path / "none.npy", tmp_path, np.empty((0, 99), np.float32), "other")
    source = joined(tmp_path, "npy", [empty, *parts])
    assert source.vectors.shape == (12, DIM)
    assert source.vectors.dtype == np.float32
    assert source.encoder == "uni"
    assert source.table["path"].tolist() == [f"{i // 4}.npy::embedding[{i % 4}]" for i in range(12)]
    with pytest.raises(InvalidRequest, match="holds no embeddings"):
        joined(tmp_path, "npy", [empty])
    wide = array_source(tmp_path / "wide.npy", tmp_path, np.zeros((1, 9), np.float32))
    with pytest.raises(InvalidRequest, match=r"wide\.npy has embeddings of 9 numbers, .*0\.npy of 8"):
        joined(tmp_path, "npy", [*parts, wide])
    other = array_source(tmp_path / "o.npy", tmp_path, X[:1], "gigapath")
    with pytest.raises(InvalidRequest, match="several encoders: gigapath, uni"):
        joined(tmp_path, "npy", [*parts, other])
    with pytest.raises(InvalidRequest, match="has 12 embeddings, and 3 label"):
        array_source(tmp_path / "x.npy", tmp_path, X, label=["a"] * 3)


@pytest.mark.parametrize(
    ("coords", "attributes", "names", "first"),
    [
        (COORDS, {}, ("x", "y"), "s_0_0"),
        (COORDS[None], {}, ("x", "y"), "s_0_0"),
        (COORDS.astype(np.float32), {}, ("x", "y"), "s_0_0"),
        (COORDS + 0.5, {}, ("coord_x", "coord_y"), "s/0"),
        (COORDS.astype(np.float64), {"unit": "um"}, ("x_um", "y_um"), "s/0"),
        (COORDS * 0, {}, ("x", "y"), "s/0"),  # all at one place: the places name no patch
        (np.where(COORDS == 0, np.nan, COORDS), {}, ("coord_x", "coord_y"), "s/0"),
    ],
)
def test_columns_of_a_slide(
    coords: np.ndarray, attributes: dict[str, Any], names: tuple[str, str], first: str
) -> None:
    about = {
        "patch_size": np.int64(256),
        "tile_size_um": 112.0,
        "other": "no",
        "overlap": [1, 2],
        **attributes,
    }
    columns = of_slide(Path("a/s.coords.h5"), coords, about, ROWS)
    assert columns["group"] == ["s"] * ROWS
    assert columns["patch_id"][0] == first
    assert len({*columns["patch_id"]}) == ROWS
    points = np.stack([columns[name] for name in names], axis=1)
    assert np.array_equal(points, coords.reshape(-1, 2), equal_nan=True)
    assert columns["tile_size_um"] == [112.0] * ROWS
    assert columns["patch_size"] == [256] * ROWS
    assert not {"other", "overlap", "unit"} & columns.keys()


@pytest.mark.parametrize(
    ("coords", "why"),
    [
        (np.zeros((ROWS, 1)), r"coords are \(n, 2\) numbers; this array is float64 \(12, 1\)"),
        (np.zeros((ROWS, 2), "U3"), r"coords are \(n, 2\) numbers"),
        (np.zeros((3, 2)), "12 embeddings, and 3 coords"),
    ],
)
def test_coords_that_make_no_sense(coords: np.ndarray, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        of_slide(Path("s.h5"), coords, {}, ROWS)


def test_which_column_names_the_rows() -> None:
    frame = pd.DataFrame({"path": ["a", "b"], "n": [1, 2], "b": [b"x", b"y"], "list": [[1], [2]]})
    columns = columns_of(frame)
    assert columns["patch_id"].tolist() == ["a", "b"]  # of the paths, as nothing else is an id
    assert columns["source_path"].tolist() == ["a", "b"]
    assert columns["b"].tolist() == ["x", "y"]
    assert "list" not in columns
    assert "path" not in columns
    for ids in (["a", "a"], ["a", ""]):
        assert "patch_id" not in columns_of(pd.DataFrame({"path": ids}))
    missing = columns_of(pd.DataFrame({"age": pd.array([1, None], "Int64"), "who": ["a", None]}))
    assert missing["age"].isna().tolist() == [False, True]
    assert missing["who"].tolist() == ["a", ""]


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        ({"encoder": "uni"}, "uni"),
        ({"encoder": b"uni"}, "uni"),
        ({"encoder": " uni "}, "uni"),
        ({"encoder": "Unknown", "model_name": "conch"}, "conch"),
        ({"encoder": "", "extractor": 3}, ""),
        ({"model": "virchow", "encoder": "uni"}, "uni"),  # the more telling name first
        ({}, ""),
    ],
)
def test_the_encoder_among_attributes(attributes: dict[str, Any], name: str) -> None:
    assert encoder_of(attributes) == name


def test_samples_of_a_tar_that_make_no_sense(tmp_path: Path) -> None:
    def tar(members: dict[str, bytes]) -> Path:
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return tmp_path / "x.tar"

    def npy(array: np.ndarray) -> bytes:
        stream = io.BytesIO()
        np.save(stream, array)
        return stream.getvalue()

    good = npy(X[0])
    for members, why in (
        ({}, "has no samples"),
        ({"a.json": b"{}"}, r"the sample 'a' has no \.npy; it has json"),
        ({"a.npy": good, "a.json": b"[]"}, r"the \.json of 'a' is not an object"),
        ({"a.npy": good, "a.json": b" " * (1 << 20) + b"{}"}, r"a\.json is 1,048,578 bytes long"),
        ({"a.npy": npy(np.array([None]))}, "Python objects"),
        ({"a.npy": good[:-4]}, "x.tar"),
    ):
        with pytest.raises(InvalidRequest, match=why):
            read_source(tar(members))
    source = read_source(tar({"a.npy": good, "b.npy": npy(X[1][:3])}))
    with pytest.raises(InvalidRequest, match=r"the embedding of 'b' is float32 \(3,\), that of the first"):
        list(source.vectors.read())
    source = read_source(
        tar({"d/a.npy": good, "d/a.cls": b"1\n", "d.e/a.npy": good, "d.e/a.json": b'{"label": 2}'})
    )
    assert source.table["label"].tolist() == ["1", "2"]
    assert source.table["patch_id"].tolist() == ["d/a", "d.e/a"]

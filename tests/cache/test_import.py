"""`cache import` of files that are cut short, changed, something else, or made to do harm."""

import io
import json
import os
import pickle
import random
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from patchbank.cache.backend import seal
from patchbank.cache.bank import Bank
from patchbank.cache.export.write import DOCUMENTED, FOLDERS, export
from patchbank.cache.importing.exports import import_export
from patchbank.cli import patchbank
from patchbank.errors import InvalidRequest, PatchbankError, StoreError

NAMES = {"trident": "x.h5", "stamp": "x.h5", "zarr": "x.zarr"} | dict.fromkeys(FOLDERS, "x")
FILES = [layout for layout in DOCUMENTED if layout not in {"zarr", *FOLDERS}]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory, identity: Any, make_rows: Any) -> Path:
    """One small export in each layout, LAYOUT/NAME."""
    pytest.importorskip("anndata")
    folder = tmp_path_factory.mktemp("exports")
    rows = make_rows(40)
    store = Bank(folder / "bank").open_store(identity(), create=True)
    with store.writer() as writer:
        writer.append(*rows[:])
    for layout in DOCUMENTED:
        options: dict[str, Any] = {"tile_um": 112.0, "tile_px": 224, "mpp": 0.5} if layout == "stamp" else {}
        table = rows.table()
        if layout == "eva":
            table = table.assign(label=table["label"].replace("", "normal"))
        export(store, folder / layout / NAMES.get(layout, f"x.{layout}"), layout, table, **options)
    return folder


@pytest.fixture
def fresh(exports: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of an export, to be spoilt."""

    def copy(layout: str) -> Path:
        shutil.rmtree(tmp_path / layout, ignore_errors=True)
        shutil.copytree(exports / layout, tmp_path / layout)
        return next((tmp_path / layout).iterdir())

    return copy


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    return Bank(tmp_path / "bank")


def refused(bank: Bank, path: Path, why: str = "") -> str:
    """Imports, and sees that it is refused in one sentence that names the file, before anything is made."""
    with pytest.raises((InvalidRequest, StoreError), match=why or None) as caught:
        import_export(bank, path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert bank.names() == []
    return str(caught.value)


@pytest.mark.parametrize("layout", FILES)
def test_a_file_that_is_cut_anywhere(fresh: Any, bank: Bank, layout: str) -> None:
    path = fresh(layout)
    whole = path.read_bytes()
    for end in (0, 1, 7, 8, 9, 100, len(whole) // 3, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        path.write_bytes(whole[:end])
        refused(bank, path)


@pytest.mark.parametrize("layout", ["npy", "zarr"])
def test_a_folder_that_lacks_a_file_or_has_a_cut_one(fresh: Any, bank: Bank, layout: str) -> None:
    tried = 0
    root = fresh(layout)
    names = [p.relative_to(root) for p in sorted(root.rglob("*")) if p.is_file()]
    names = [name for name in names if layout == "npy" or "label" in name.parts or "obs" not in name.parts]
    for name in names:
        spoilt = fresh(layout) / name
        whole = spoilt.read_bytes()
        essential = "X" in name.parts or "embeddings" in name.parts or name.suffix == ".parquet"
        for content in (b"", whole[: len(whole) // 2], b"<html>", None):
            if content is None:
                spoilt.unlink()
            else:
                spoilt.write_bytes(content)
            try:
                import_export(Bank(f"{bank.path}/{tried}"), spoilt.parents[len(name.parts) - 1])
            except PatchbankError as error:
                assert "\n" not in str(error)  # noqa: PT017
            else:
                assert not essential or content is None, name  # a chunk that does not exist is the fill value
            tried += 1
    assert tried >= 12


@pytest.mark.parametrize("layout", DOCUMENTED)
def test_bytes_that_were_changed_are_never_imported(fresh: Any, tmp_path: Path, layout: str) -> None:
    """Each is refused in a sentence, or says nothing: then rows and table are those that were exported."""
    dice = random.Random(0)
    path = fresh(layout)
    files = [p for p in sorted([path, *path.rglob("*")]) if p.is_file()]
    right = import_export(Bank(tmp_path / "right"), path)
    keys = right.store.keys()
    found = 0
    turns = 12 if layout == "eva" else 60  # 40 files are read at each
    for turn in range(turns):
        file = dice.choice(files)
        whole = file.read_bytes()
        spoilt = bytearray(whole)
        for _ in range(dice.choice([1, 1, 8])):
            spoilt[dice.randrange(len(spoilt))] ^= 1 << dice.randrange(8)
        file.write_bytes(spoilt)
        bank = Bank(tmp_path / f"back{turn}")
        try:
            done = import_export(bank, path)
        except PatchbankError as error:
            assert "\n" not in str(error)  # noqa: PT017
            assert bank.names() == []
            found += 1
        else:
            assert done.store.identity == right.store.identity
            assert done.store.keys().tobytes() == keys.tobytes()
            assert done.store.load(keys).tobytes() == right.store.load(keys).tobytes()
            pd.testing.assert_frame_equal(done.table, right.table)
        file.write_bytes(whole)
    assert found > turns / (6 if layout == "clam" else 3)  # pt_files are for CLAM, and not read


def _as_of_0_1(path: Path) -> None:
    """What patchbank 0.1.0 wrote: no checksums."""
    with h5py.File(path, "r+") as file:
        document = json.loads(str(file.attrs["patchbank"]))
        del document["sum"], document["column_checksums"], file["row_checksum"]
        file.attrs["patchbank"] = json.dumps(document | {"version": 1})


def test_swapped_and_changed_rows_of_an_export_are_named(fresh: Any, bank: Bank) -> None:
    for name, row, why in (
        ("features", 7, "row 7 is not what was exported"),
        ("content_hash", 9, "row 9 is not what was exported"),
        ("row_checksum", 11, "row 11 is not what was exported"),
        ("label", 12, "the column 'label' is not what was exported"),
        ("x", 15, "the column 'x' is not what was exported"),
    ):
        path = fresh("trident")
        with h5py.File(path, "r+") as file:
            data: Any = file[name]
            rows = data[:]
            rows[[row, row + 1]] = rows[[row + 1, row]]
            data[:] = rows
        refused(bank, path, why)
    for name in ("row_checksum", "label"):
        path = fresh("trident")
        with h5py.File(path, "r+") as file:
            del file[name]
        refused(bank, path, "not have one checksum per row|different columns from those exported")


def test_an_export_of_patchbank_0_1_0(fresh: Any, bank: Bank, tmp_path: Path) -> None:
    path = fresh("trident")
    right = import_export(Bank(tmp_path / "right"), path)
    _as_of_0_1(path)
    done = import_export(bank, path)
    assert done.store.load(done.store.keys()).tobytes() == right.store.load(done.store.keys()).tobytes()
    pd.testing.assert_frame_equal(done.table, right.table)
    assert (right.unchecked, done.unchecked) == ([], [path])
    for file, lines in ((fresh("trident"), 0), (path, 1)):
        if lines:
            _as_of_0_1(path)
        said = CliRunner().invoke(patchbank, ["cache", "import", str(file), "-b", str(tmp_path / "told")])
        assert said.exit_code == 0
        assert said.stderr.count("\n") == lines
        assert said.stderr.count("no checksums (exported by patchbank 0.1.0)") == lines


@pytest.mark.parametrize("layout", FILES)
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "is a web page"),
        (b"  \n<HTML>\n", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "pointer of git-lfs"),
        (b"", "is empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), ""),
        (b"PK\x03\x04" + bytes(100), ""),
        (b"PAR1" + bytes(100) + b"PAR1", ""),
        (b"\xff" * 8 + b"{}", ""),
        (struct.pack("<Q", 2) + b"[]", ""),
        (struct.pack("<Q", 20) + b'{"__metadata__": []}', ""),
        (b"\x89HDF\r\n\x1a\n" + bytes(200), ""),
        (b"{" * 100_000, ""),
    ],
)
def test_files_that_are_something_else(fresh: Any, bank: Bank, layout: str, content: bytes, why: str) -> None:
    path = fresh(layout)
    path.write_bytes(content)
    refused(bank, path, why)


def test_a_pipe_does_not_hang(bank: Bank, tmp_path: Path) -> None:
    for name in ("x.h5", "x.npz", "x.parquet", "x.safetensors", "x.h5ad"):
        os.mkfifo(tmp_path / name)
        refused(bank, tmp_path / name, "not a regular file")


class Payload:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_pickles_are_not_loaded(fresh: Any, bank: Bank, tmp_path: Path) -> None:
    mark = tmp_path / "run"
    payload = pickle.dumps(Payload(mark))
    objects = io.BytesIO()
    np.lib.format.write_array(objects, np.array([Payload(mark)], dtype=object), allow_pickle=True)

    path = fresh("npz")
    for name in ("embeddings", "content_hash", "label", "patchbank", "evil"):
        _replace_member(fresh("npz"), f"{name}.npy", objects.getvalue())
        refused(bank, path, "Python objects")
    path = fresh("npy")
    (path / "embeddings/embeddings_0.npy").write_bytes(objects.getvalue())
    refused(bank, path, "Python objects")

    for codecs in ([{"name": "numcodecs.pickle"}], [{"name": "pickle"}], ["numcodecs.pickle"]):
        path = fresh("zarr")
        file = path / "obs/group/zarr.json"
        document = json.loads(file.read_text())
        file.write_text(json.dumps(document | {"codecs": codecs}))
        refused(bank, path, r"codec '(numcodecs\.)?pickle'.*runs code")
    for nested in ("codecs", "index_codecs"):
        path = fresh("zarr")
        file = path / "obs/group/zarr.json"
        inside = [{"name": "sharding_indexed", "configuration": {nested: [{"name": "numcodecs.pickle"}]}}]
        file.write_text(json.dumps(json.loads(file.read_text()) | {"codecs": inside}))
        refused(bank, path, "pickle")
    for dtype, filters in (("|O", [{"id": "pickle"}]), ("|O", []), ("|O", None), ([["a", "|O"]], [])):
        path = fresh("zarr")
        (path / "obs/group/zarr.json").unlink()
        about = {"zarr_format": 2, "shape": [40], "chunks": [40], "dtype": dtype, "filters": filters}
        (path / "obs/group/.zarray").write_text(
            json.dumps(about | {"compressor": None, "fill_value": None, "order": "C"})
        )
        (path / "obs/group/0").write_bytes(payload)
        refused(bank, path)
    path = fresh("zarr")
    file = path / "zarr.json"
    document = json.loads(file.read_text())
    entries = document["consolidated_metadata"]["metadata"]
    entries["obs/group"]["codecs"] = [{"name": "numcodecs.pickle"}]
    file.write_text(json.dumps(document))
    refused(bank, path, "pickle")
    assert not mark.exists()


def _replace_member(path: Path, name: str, content: bytes, **options: Any) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    members[name] = content
    with zipfile.ZipFile(path, "w", **options) as archive:
        for member, data in members.items():
            archive.writestr(member, data)


def _header(shape: tuple[int, ...], dtype: str) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def test_claims_that_would_fill_the_memory(fresh: Any, bank: Bank) -> None:
    path = fresh("npz")
    for name, shape, dtype in (
        ("embeddings", (10**12, 8), "<f2"),
        ("content_hash", (10**12, 16), "|u1"),
        ("label", (10**10,), "<U100"),
        ("label", (40,), "<U500000000"),
        ("x", (2**62,), "<i8"),
    ):
        _replace_member(fresh("npz"), f"{name}.npy", _header(shape, dtype))
        refused(bank, path, r"claims .* bytes")
    bomb = _header((40, 10**7), "<f2") + bytes(8 * 10**8 // 10)
    _replace_member(fresh("npz"), "embeddings.npy", bomb, compression=zipfile.ZIP_DEFLATED)
    refused(bank, path, r"claims .* bytes")

    path = fresh("npy")
    (path / "embeddings/embeddings_0.npy").write_bytes(_header((10**12, 8), "<f2"))
    refused(bank, path)

    for layout, name in (("trident", "features"), ("stamp", "feats"), ("trident", "label"), ("h5ad", "X")):
        path = fresh(layout)
        with h5py.File(path, "r+") as file:
            del file[name]
            file.create_dataset(name, (10**10, 8), "f2", chunks=(1024, 8))
        refused(bank, path, r"claims .* bytes")

    path = fresh("zarr")
    file = path / "X/zarr.json"
    document = json.loads(file.read_text())
    file.write_text(json.dumps(document | {"shape": [10**12, 8]}))
    refused(bank, path, r"claims .* bytes")

    path = fresh("safetensors")
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    for change in (
        {"shape": [10**12, 8]},
        {"shape": [40, 8], "data_offsets": [0, 10**15]},
        {"shape": [-40, -8]},
        {"data_offsets": [-640, 0]},
        {"dtype": "BF16"},
        {"dtype": "object"},
    ):
        changed = json.dumps({**header, "embeddings": {**header["embeddings"], **change}}).encode()
        path.write_bytes(struct.pack("<Q", len(changed)) + changed + content[8 + size :])
        refused(bank, path)
    path.write_bytes(struct.pack("<Q", 2**62) + content[8:])
    refused(bank, path)


def _small_bomb(codec: str, size: int) -> bytes:
    """Zeros, compressed to a few kilobytes."""
    import numcodecs

    encoder: Any = numcodecs.get_codec({"id": codec})
    return bytes(encoder.encode(np.zeros(size, np.uint8)))


@pytest.mark.parametrize("codec", ["zstd", "blosc"])
def test_a_chunk_that_unpacks_to_more_than_it_may(fresh: Any, bank: Bank, codec: str) -> None:
    """The array's shape is as it was; only the chunk is another one."""
    codecs: dict[str, Any] = {
        "zstd": {"name": "zstd", "configuration": {"level": 0, "checksum": False}},
        "blosc": {
            "name": "blosc",
            "configuration": {
                "cname": "zstd",
                "clevel": 5,
                "shuffle": "noshuffle",
                "typesize": 1,
                "blocksize": 0,
            },
        },
    }
    for array, chunk in (("X", "c/0/0"), ("obs/x", "c/0"), ("obs/group", "c/0")):
        path = fresh("zarr")
        file = path / array / "zarr.json"
        document = json.loads(file.read_text())
        document["codecs"][-1] = codecs[codec]
        file.write_text(json.dumps(document))
        (path / array / chunk).write_bytes(_small_bomb(codec, 1 << 28))
        refused(bank, path, r"claims [\d,]+ bytes")
    if codec == "zstd":  # a frame without its length is unpacked for as long as it goes on
        bomb = _small_bomb(codec, 1 << 28)
        assert bomb[4] >> 6 == 2
        streamed = bomb[:4] + bytes([bomb[4] & 0b00011111, 0x58]) + bomb[9:]
        (path / array / chunk).write_bytes(streamed)
        refused(bank, path, "does not declare its decompressed size")
    path = fresh("zarr")
    document = json.loads((path / "X/zarr.json").read_text())
    document["chunk_grid"]["configuration"]["chunk_shape"] = [10**12, 8]
    (path / "X/zarr.json").write_text(json.dumps(document))
    refused(bank, path, r"claims [\d,]+ bytes")
    for other in ("gzip", "lz4", "sharding_indexed", "numcodecs.lzma"):
        document["codecs"][-1] = {"name": other, "configuration": {}}
        (path / "X/zarr.json").write_text(json.dumps(document))
        refused(bank, path, f"codec '{other}'")


@pytest.mark.parametrize("layout", ["trident", "stamp", "h5ad"])
def test_compressed_hdf5_is_not_unpacked(fresh: Any, bank: Bank, layout: str) -> None:
    name = {"trident": "features", "stamp": "feats", "h5ad": "X"}[layout]
    for kind in ("gzip", "lzf"):
        path = fresh(layout)
        with h5py.File(path, "r+") as file:
            rows = np.asarray(file[name])
            del file[name]
            data = file.create_dataset(name, data=rows, compression=kind, chunks=rows.shape)
            if kind == "gzip":
                data.id.write_direct_chunk((0, 0), zlib.compress(bytes(1 << 26)))
        refused(bank, path, r"is compressed|unpacks to more than")
    path = fresh(layout)
    with h5py.File(path, "r+") as file:
        del file[name]
        file.create_dataset(name, (40, 8), "f2", chunks=(10**7, 8), maxshape=(None, 8))
    refused(bank, path, r"claims [\d,]+ bytes")


def test_one_text_for_every_row_does_not_fill_the_memory(fresh: Any, bank: Bank) -> None:
    """A megabyte that is in the file once and in the table ten thousand times."""
    path = fresh("trident")
    with h5py.File(path, "r+") as file:
        kind = h5py.string_dtype()
        texts = file.create_dataset("evil", (40,), kind)
        texts[:] = "x"
        texts[0] = "x" * 10**6
        size = path.stat().st_size
    _as_of_0_1(path)
    content = path.read_bytes()
    with h5py.File(path, "r") as file:
        at = file["evil"].id.get_offset()
    first = content[at : at + 16]  # length, and where in the heap
    path.write_bytes(content[:at] + first * 40 + content[at + 16 * 40 :])
    assert path.stat().st_size >= size
    done = import_export(bank, path)  # 40 MB of 1 MB: allowed
    assert done.table["evil"].str.len().tolist() == [10**6] * 40


@pytest.mark.parametrize("layout", ["trident", "stamp", "h5ad"])
@pytest.mark.parametrize(
    "kind", ["external link", "soft link", "loop", "virtual", "external", "scalar", "group"]
)
def test_hdf5_that_leads_elsewhere(fresh: Any, bank: Bank, tmp_path: Path, layout: str, kind: str) -> None:
    name = {"trident": "features", "stamp": "feats", "h5ad": "X"}[layout]
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["data"] = np.ones((40, 8), np.float16)
    (tmp_path / "secret.raw").write_bytes(bytes(40 * 16))
    path = fresh(layout)
    with h5py.File(path, "r+") as file:
        del file[name]
        match kind:
            case "external link":
                file[name] = h5py.ExternalLink(str(secret), "data")
            case "soft link":
                file[name] = h5py.SoftLink("/content_hash")
            case "loop":
                file[name] = file["/"]
            case "virtual":
                whole = h5py.VirtualLayout((40, 8), np.float16)
                whole[:] = h5py.VirtualSource(str(secret), "data", (40, 8))
                file.create_virtual_dataset(name, whole)
            case "external":
                file.create_dataset(
                    name, (40, 8), np.float16, external=[(str(tmp_path / "secret.raw"), 0, 640)]
                )
            case "scalar":
                file[name] = 5.0
            case "group":
                file.create_group(name)
    refused(bank, path)


def test_columns_of_other_shapes_and_types(fresh: Any, bank: Bank) -> None:
    for name, value in (
        ("label", np.zeros((40, 2))),
        ("label", np.zeros(39)),
        ("label", np.zeros(40, dtype=[("a", "i4")])),
        ("label", np.zeros(40, dtype="V5")),
        ("label", 1.0),
        ("content_hash", np.zeros((40, 15), np.uint8)),
        ("content_hash", np.zeros((40, 16), np.int64)),
        ("content_hash", np.zeros((39, 16), np.uint8)),
        ("features", np.zeros((40, 8), np.float32)),
        ("features", np.zeros((40, 7), np.float16)),
        ("features", np.zeros((41, 8), np.float16)),
    ):
        path = fresh("trident")
        with h5py.File(path, "r+") as file:
            del file[name]
            file[name] = value
        refused(bank, path)


@pytest.mark.parametrize("layout", ["trident", "npy"])
def test_documents_that_make_no_sense(fresh: Any, bank: Bank, layout: str) -> None:
    def changed(change: Callable[[dict[str, Any]], Any], text: str) -> str:
        document = change(json.loads(text))
        return json.dumps(seal(document) if isinstance(document, dict) else document)

    def spoil(change: Callable[[dict[str, Any]], Any]) -> Path:
        path = fresh(layout)
        if layout == "trident":
            with h5py.File(path, "r+") as file:
                file.attrs["patchbank"] = changed(change, str(file.attrs["patchbank"]))
        else:
            file = path / "patchbank.json"
            file.write_text(changed(change, file.read_text()))
        return path

    changes: list[Callable[[dict[str, Any]], Any]] = [
        lambda d: [],
        lambda d: "x",
        lambda d: d | {"identity": None},
        lambda d: d | {"identity": {}},
        lambda d: d | {"identity": d["identity"] | {"dim": 10**12}},
        lambda d: d | {"identity": d["identity"] | {"dim": 7}},
        lambda d: d | {"identity": d["identity"] | {"dtype": "object"}},
        lambda d: d | {"identity": d["identity"] | {"encoder": []}},
        lambda d: d | {"provenance": []},
        lambda d: d | {"column_checksums": []},
        lambda d: d | {"column_checksums": {}},
        lambda d: d | {"column_checksums": {**d["column_checksums"], "label": 5}},
        lambda d: d | {"columns": []},
        lambda d: d | {"columns": {"label": []}},
        lambda d: d | {"columns": {"label": {"name": 5}}},
        lambda d: d | {"columns": {"label": {"name": "group"}}},
        lambda d: d | {"columns": {"label": {"name": "content_hash"}}},
        lambda d: d | {"columns": {"label": {"kind": "object"}}},
        lambda d: d | {"columns": {"label": {"kind": "Int64"}}},
        lambda d: d | {"columns": {"label": {"kind": "bool"}}},
        lambda d: d | {"version": 4},
        lambda d: d | {"format": ["x"]},
    ]
    for number, change in enumerate(changes):
        assert refused(bank, spoil(change)), number


def test_links_in_folders_are_not_followed(fresh: Any, bank: Bank, tmp_path: Path) -> None:
    for layout in ("npy", "zarr"):
        path = fresh(layout)
        file = next(p for p in sorted(path.rglob("*")) if p.is_file() and p.stat().st_size > 300)
        file.rename(tmp_path / f"{layout}-moved")
        file.symlink_to(tmp_path / f"{layout}-moved")
        with pytest.raises(StoreError, match="symbolic link"):
            import_export(bank, path)


def test_nothing_is_taken_in_where_one_file_of_several_is_bad(fresh: Any, bank: Bank) -> None:
    path = fresh("trident")
    shutil.copy(path, path.with_name("y.h5"))
    path.with_name("z.h5").write_bytes(b"<html>")
    with pytest.raises(InvalidRequest, match=r"z\.h5 is a web page"):
        import_export(bank, path.parent)
    assert bank.names() == []
    path.with_name("z.h5").unlink()
    done = import_export(bank, path.parent)
    assert (done.rows, done.added) == (80, 40)
    assert isinstance(done.table, pd.DataFrame)

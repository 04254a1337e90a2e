"""Files that are damaged, or made to do harm: a sentence that names the patch, and the others are read."""

import io
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from patchbank.datasets.builders import build_manifest
from patchbank.datasets.containers import open_container
from patchbank.datasets.sources import PatchSource
from patchbank.errors import ImageError, ManifestError
from PIL import Image

Pixels = Callable[..., np.ndarray]
N = 32


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def read_all(source: PatchSource) -> tuple[dict[int, np.ndarray], dict[int, str]]:
    """What can be read, and the message of each that cannot; in several threads, twice."""
    good: dict[int, np.ndarray] = {}
    bad: dict[int, str] = {}

    def read(i: int) -> None:
        try:
            good[i] = source.read(i)
        except ImageError as error:
            bad[i] = str(error)

    for threads in (1, 4):
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(read, range(len(source))))
    assert not set(good) & set(bad)
    return good, bad


def flip(file: Path, at: int, count: int = 1) -> None:
    data = bytearray(file.read_bytes())
    for k in range(at, at + count):
        data[k] ^= 0xFF
    file.write_bytes(data)


def test_one_damaged_tile_of_a_slide(tmp_path: Path, write_slide: Callable[..., None]) -> None:
    tifffile = pytest.importorskip("tifffile")
    pixels = np.random.default_rng(0).integers(0, 256, (256, 512, 3), dtype=np.uint8)
    with tifffile.TiffWriter(tmp_path / "s.tiff") as writer:
        writer.write(pixels, tile=(64, 64), photometric="rgb", compression="zlib")
    with tifffile.TiffFile(tmp_path / "s.tiff") as file:
        damaged = file.pages[0].dataoffsets[5]
    flip(tmp_path / "s.tiff", damaged, 40)
    places = [(x, y) for y in range(0, 256, 64) for x in range(0, 512, 64)]
    source = PatchSource(tmp_path, [f"s.tiff::wsi[{x},{y},64,64]" for x, y in places])
    good, bad = read_all(source)
    assert list(bad) == [5]
    assert "s.tiff::wsi[320,0,64,64]: OpenSlide cannot read the region" in bad[5]
    for i, read in good.items():
        x, y = places[i]
        np.testing.assert_array_equal(read, pixels[y : y + 64, x : x + 64])
    built = pd.DataFrame({"slide": "s", "x": [x for x, _ in places], "y": [y for _, y in places]})
    built.to_csv(tmp_path / "c.csv", index=False)
    options = {
        "dataset": "w",
        "coordinates": tmp_path / "c.csv",
        "size": 64,
        "hashes": True,
        "progress": False,
    }
    manifest = build_manifest("wsi", tmp_path, on_error="skip", on_skip=lambda *item: None, **options)
    assert len(manifest) == N - 1


def test_one_damaged_chunk_of_hdf5(tmp_path: Path, pixels: Pixels) -> None:
    images = [pixels(i) for i in range(N)]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        array = file.create_dataset("x", data=np.stack(images), chunks=(1, 16, 16, 3), compression="gzip")
        at = array.id.get_chunk_info(7).byte_offset
    flip(tmp_path / "x.h5", at, 30)
    good, bad = read_all(PatchSource(tmp_path, [f"x.h5::x[{i}]" for i in range(N)]))
    assert list(bad) == [7]
    assert "x.h5::x[7]: cannot be read: " in bad[7]
    for i, read in good.items():
        np.testing.assert_array_equal(read, images[i])


@pytest.mark.parametrize("compression", ["snappy", "none", "zstd", "gzip"])
def test_a_damaged_row_group_of_parquet(tmp_path: Path, pixels: Pixels, compression: str) -> None:
    table = pa.table({"image": [{"bytes": png(pixels(i)), "path": ""} for i in range(N)]})
    file = tmp_path / "t.parquet"
    pq.write_table(table, file, row_group_size=4, compression=compression)
    column = pq.ParquetFile(file).metadata.row_group(2).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    flip(file, start + column.total_compressed_size // 2, 20)
    good, bad = read_all(PatchSource(tmp_path, [f"t.parquet::image[{i}]" for i in range(N)]))
    assert bad
    assert set(bad) <= {8, 9, 10, 11}
    assert all("t.parquet::image[" in message for message in bad.values())
    for i, read in good.items():
        np.testing.assert_array_equal(read, pixels(i))


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_one_damaged_member(tmp_path: Path, pixels: Pixels, kind: str) -> None:
    file = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for i in range(N):
                archive.writestr(f"{i}.png", png(pixels(i)))
    else:
        with tarfile.open(file, "w") as archive:
            for i in range(N):
                info = tarfile.TarInfo(f"{i}.png")
                info.size = len(png(pixels(i)))
                archive.addfile(info, io.BytesIO(png(pixels(i))))
    at = file.read_bytes().index(png(pixels(9))[30:60] if kind == "tar" else b"9.png") + 40
    flip(file, at, 20)
    good, bad = read_all(PatchSource(tmp_path, [f"a.{kind}::{i}.png" for i in range(N)]))
    assert list(bad) == [9]
    assert len(good) == N - 1


def test_a_tar_whose_table_is_damaged_is_no_shorter_tar(tmp_path: Path, pixels: Pixels) -> None:
    file = tmp_path / "a.tar"
    with tarfile.open(file, "w") as archive:
        for i in range(5):
            info = tarfile.TarInfo(f"{i}.png")
            info.size = len(png(pixels(i)))
            archive.addfile(info, io.BytesIO(png(pixels(i))))
    flip(file, file.read_bytes().index(b"3.png"))
    with pytest.raises(
        ImageError, match=r"a\.tar: cannot be opened: its table is damaged at byte \d+, behind 3 files"
    ):
        open_container(str(file))


def pax(size: int) -> bytes:
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, size
    return info.tobuf(tarfile.USTAR_FORMAT)


def test_a_tar_with_a_header_of_gigabytes(tmp_path: Path) -> None:
    with (tmp_path / "a.tar").open("wb") as stream:
        stream.write(pax(1 << 32))
        stream.truncate(1 << 33)  # sparse: takes no room
    with pytest.raises(ImageError, match="a header of 4294967296 bytes is too large"):
        open_container(str(tmp_path / "a.tar"))


@pytest.fixture
def linked(tmp_path: Path, pixels: Pixels) -> Path:
    """A file whose arrays lie in other files, in every way that HDF5 knows, and two harmless links."""
    stack = np.stack([pixels(i) for i in range(3)])
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = stack
    stack.tofile(tmp_path / "secret.bin")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["plain"] = stack
        file["soft"] = h5py.SoftLink("/group/inner")
        file["group/inner"] = h5py.SoftLink("deeper")
        file["group/deeper"] = stack
        file["link"] = h5py.ExternalLink("secret.h5", "/x")
        file["folder"] = h5py.ExternalLink("secret.h5", "/")
        file["hidden"] = h5py.SoftLink("/folder/x")
        file["circle"] = h5py.SoftLink("/circle")
        layout = h5py.VirtualLayout(stack.shape, np.uint8)
        layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "x", stack.shape)
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset(
            "external", stack.shape, np.uint8, external=[(str(tmp_path / "secret.bin"), 0, stack.nbytes)]
        )
        file.create_dataset("huge", (1 << 40, 64, 64, 3), np.uint8, chunks=(1, 64, 64, 3))
    return tmp_path


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("link", "a link into another file"),
        ("folder/x", "a link into another file"),
        ("hidden", "a link into another file"),
        ("circle", "is a circular link"),
        ("virtual", "is stored in other files"),
        ("external", "is stored in other files"),
        ("huge", "claims 13510798882111488 bytes and holds 0"),
    ],
)
def test_hdf5_arrays_of_other_files_are_not_read(linked: Path, key: str, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        PatchSource(linked, [f"a.h5::{key}[0]"]).read(0)
    with pytest.raises(ManifestError, match=message):
        build_manifest("hdf5", linked, dataset="t", images={"train": "a.h5"}, array=key, progress=False)
    with pytest.raises(ManifestError, match=message):
        build_manifest("hdf5", linked, dataset="t", images={"train": "a.h5"}, array="plain", labels_array=key,
                       labels={"train": "a.h5"}, progress=False)  # fmt: skip


def test_hdf5_links_inside_a_file_are_followed(linked: Path, pixels: Pixels) -> None:
    for key in ("plain", "soft", "group/inner", "/group/deeper"):
        np.testing.assert_array_equal(PatchSource(linked, [f"a.h5::{key}[1]"]).read(0), pixels(1))


def npz(shape: Sequence[int], data: bytes) -> bytes:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {tuple(shape)}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("shape", [(1 << 40, 64, 64, 3), (3, 4, 4), (1, 4, 4)])
def test_npz_that_claims_another_shape_than_it_holds(
    tmp_path: Path, how: int, shape: tuple[int, ...]
) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", how) as archive:
        archive.writestr("x.npy", npz(shape, bytes(32)))
    with pytest.raises(ImageError, match=r"'x' claims [0-9]+ bytes and holds 32"):
        PatchSource(tmp_path, ["a.npz::x[0]"]).read(0)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.h5", "a.npz", "a.parquet", "a.svs"])
def test_pipes_are_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ImageError, match="a pipe or device"):
        open_container(str(tmp_path / name))


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.h5", "a.npz", "a.parquet"])
@pytest.mark.parametrize("cut", [0, 1, 7, 100, 0.5, 0.99])
def test_cut_files_are_refused_in_a_sentence(tmp_path: Path, pixels: Pixels, name: str, cut: float) -> None:
    file, many = tmp_path / name, np.stack([pixels(0)] * 9)
    if name == "a.zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("x.png", png(pixels(0)))
    elif name == "a.tar":
        with tarfile.open(file, "w") as tar:
            tar.add(__file__, "x.png")
    elif name == "a.h5":
        with h5py.File(file, "w") as h5:
            h5["x"] = many
    elif name == "a.npz":
        np.savez_compressed(file, x=many)
    else:
        pq.write_table(pa.table({"image": [png(pixels(0))]}), file)
    data = file.read_bytes()
    file.write_bytes(data[: int(cut * len(data)) if cut < 1 else int(cut)])
    member = {"a.zip": "x.png", "a.tar": "x.png", "a.h5": "x[8]", "a.npz": "x[8]", "a.parquet": "image[0]"}[
        name
    ]
    with pytest.raises(ImageError, match=name) as caught:
        PatchSource(tmp_path, [f"{name}::{member}"]).read(0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["images", "labels", "chunk of labels", "parquet", "coordinates"])
def test_one_damaged_file_of_several_is_left_out_and_named(
    tmp_path: Path, pixels: Pixels, write_slide: Callable[..., None], kind: str
) -> None:
    for k, name in enumerate("abc"):
        if kind == "parquet":
            rows = [{"bytes": png(pixels(4 * k + i)), "path": ""} for i in range(4)]
            table = pa.table({"image": rows, "label": ["t", "n"] * 2, "age": [40, 41, 42, 43]})
            pq.write_table(table, tmp_path / f"{name}.parquet")
        elif kind == "coordinates":
            write_slide(tmp_path / f"{name}.tiff", np.full((128, 128, 3), 9 + k, np.uint8))
            with h5py.File(tmp_path / f"{name}.h5", "w") as file:
                file.create_dataset("coords", data=[[0, 0], [64, 0], [0, 64], [64, 64]])
        else:
            with h5py.File(tmp_path / f"{name}.h5", "w") as file:
                file["x"] = np.stack([pixels(4 * k + i) for i in range(4)])
            with h5py.File(tmp_path / f"{name}.y.h5", "w") as file:
                file.create_dataset("y", data=[0, 1, 0, 1], chunks=(4,), compression="gzip")
    damaged = tmp_path / {"parquet": "b.parquet", "images": "b.h5", "coordinates": "b.h5"}.get(kind, "b.y.h5")
    if kind == "chunk of labels":
        with h5py.File(damaged) as file:
            at = file["y"].id.get_chunk_info(0).byte_offset
        flip(damaged, at, 8)
    else:
        damaged.write_bytes(damaged.read_bytes()[:-200])
    how, options = "hdf5", {"images": {"train": "?.h5"}, "labels": {"train": "*.y.h5"}, "positive": "1"}
    if kind == "parquet":
        how, options = "parquet", {"positive": "t"}
    elif kind == "coordinates":
        how, options = "wsi", {"coordinates": tmp_path, "size": 32, "hashes": True}
    options = {"dataset": "toy", "progress": False, "on_note": lambda note: None, **options}
    with pytest.raises(ManifestError, match=rf"the file '{damaged.name}': .*--on-error skip"):
        build_manifest(how, tmp_path, **options)
    skipped: list[tuple[str, str]] = []
    built = build_manifest(
        how, tmp_path, on_error="skip", on_skip=lambda *one: skipped.append(one), **options
    )
    assert [name for name, _ in skipped] == [f"toy/{damaged.name}"]
    assert len(built) == 8
    assert {str(path)[0] for path in built.table["path"]} == {"a", "c"}
    if kind == "parquet":
        assert built.table["age"].tolist() == [40, 41, 42, 43] * 2  # whole numbers, with nothing missing


def replaced_chunk(file: Path, compression: str, content: bytes, **options: object) -> None:
    """`file` with an array x of four patches in two chunks, of which the second is `content`."""
    with h5py.File(file, "w") as store:
        array = store.create_dataset(
            "x", data=np.ones((4, 16, 16, 3), np.uint8), chunks=(2, 16, 16, 3), compression=compression,
            **options,
        )  # fmt: skip
        store["y"] = np.array([0, 1, 0, 1])
        array.id.write_direct_chunk((2, 0, 0, 0), content)


@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"fletcher32": True}], ids=str)
def test_a_gzip_chunk_that_decompresses_to_more_than_a_chunk(tmp_path: Path, options: dict) -> None:
    """400 kB that would be 400 MB; its neighbours are read."""
    replaced_chunk(tmp_path / "a.h5", "gzip", zlib.compress(bytes(400 << 20), 1), **options)
    good, bad = read_all(PatchSource(tmp_path, [f"a.h5::x[{i}]" for i in range(4)]))
    assert sorted(good) == [0, 1]
    assert sorted(bad) == [2, 3]
    assert "decompresses to more than the 1536 bytes of a chunk" in bad[2]
    build = {"dataset": "t", "images": {"train": "a.h5"}, "array": "x", "progress": False}
    with pytest.raises(ManifestError, match="decompresses to more than"):
        build_manifest("hdf5", tmp_path, labels_array="x", labels={"train": "a.h5"}, **build)


def test_an_lzf_chunk_that_might_fill_the_memory(tmp_path: Path) -> None:
    replaced_chunk(tmp_path / "a.h5", "lzf", bytes(13 << 20))
    good, bad = read_all(PatchSource(tmp_path, [f"a.h5::x[{i}]" for i in range(4)]))
    assert (sorted(good), sorted(bad)) == ([0, 1], [2, 3])
    assert "decompresses to more than" in bad[2]


def test_filters_whose_output_has_no_known_size_are_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as store:
        store.create_dataset("x", data=np.ones((4, 16, 16, 3), np.uint8), scaleoffset=0)
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((2, 16, 16, 3))
        plist.set_deflate(1)
        plist.set_deflate(1)
        space = h5py.h5s.create_simple((4, 16, 16, 3))
        h5py.h5d.create(store.id, b"twice", h5py.h5t.NATIVE_UINT8, space, plist)
        h5py.Dataset(h5py.h5d.open(store.id, b"twice"))[:] = 1
    for key, message in (("x", "compressed with scaleoffset"), ("twice", "deflate, deflate")):
        with pytest.raises(ImageError, match=rf"{message}.*Fix: `h5repack -f GZIP=4`"):
            PatchSource(tmp_path, [f"a.h5::{key}[0]"]).read(0)


@pytest.mark.parametrize("compression", ["gzip", "lzf", None])
@pytest.mark.parametrize("chunks", [(1, 600, 600, 3), (4, 600, 600, 3), (3, 256, 599, 2)], ids=str)
def test_large_compressed_chunks_are_read(
    tmp_path: Path, compression: str | None, chunks: tuple[int, ...]
) -> None:
    """Chunks of noise, so large that each is looked at before it is read."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 600, 600, 3), dtype=np.uint8)
    with h5py.File(tmp_path / "a.h5", "w") as store:
        store.create_dataset("x", data=pixels, chunks=chunks, compression=compression)
    source = PatchSource(tmp_path, [f"a.h5::x[{i}]" for i in range(5)])
    for i in (4, 0, 2):
        np.testing.assert_array_equal(source.read(i), pixels[i])

"""Every kind of file that patches can lie in: one contract, a file that the test makes for each."""

import io
import multiprocessing
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from patchbank.datasets import sources
from patchbank.datasets.manifest import Header, Manifest
from patchbank.datasets.sources import PatchSource, open_source
from patchbank.errors import ImageError
from PIL import Image

N = 40
Pixels = Callable[..., np.ndarray]


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def read_all(source: PatchSource) -> list[np.ndarray]:
    return [source.read(i) for i in range(len(source))]


class SourceTests:
    """What every source must do; a subclass makes the files and says where the patches are."""

    def make(self, folder: Path, images: list[np.ndarray]) -> list[str]:
        """Write the images and return their paths."""
        raise NotImplementedError

    bad: tuple[tuple[str, str], ...] = ()  # (path, what the error must say)

    @pytest.fixture
    def images(self, pixels: Pixels) -> list[np.ndarray]:
        return [pixels(i) for i in range(N)]

    @pytest.fixture
    def source(self, tmp_path: Path, images: list[np.ndarray], header: Header) -> PatchSource:
        paths = self.make(tmp_path, images)
        table = pd.DataFrame({"patch_id": [f"toy/{i}" for i in range(len(paths))], "path": paths})
        return open_source(Manifest(header, table, tmp_path))

    def test_reads_every_patch(self, source: PatchSource, images: list[np.ndarray]) -> None:
        assert len(source) == N
        for i in range(N):
            read = source.read(i)
            assert read.dtype == np.uint8
            np.testing.assert_array_equal(read, images[i])

    def test_patches_are_the_callers_own(self, source: PatchSource, images: list[np.ndarray]) -> None:
        source.read(3)[:] = 0
        np.testing.assert_array_equal(source.read(3), images[3])

    def test_from_many_threads(self, source: PatchSource, images: list[np.ndarray]) -> None:
        order = np.random.default_rng(0).integers(0, N, 400).tolist()
        with ThreadPoolExecutor(8) as pool:
            for i, read in zip(order, pool.map(source.read, order), strict=True):
                np.testing.assert_array_equal(read, images[i])

    def test_pickled_after_use(self, source: PatchSource, images: list[np.ndarray]) -> None:
        source.read(0)
        copy = pickle.loads(pickle.dumps(source))
        np.testing.assert_array_equal(copy.read(5), images[5])

    def test_in_another_process(self, source: PatchSource, images: list[np.ndarray]) -> None:
        source.read(0)
        for method in ("fork", "spawn"):
            with multiprocessing.get_context(method).Pool(1) as pool:
                read = pool.apply_async(source.read, (7,)).get(timeout=300)
            np.testing.assert_array_equal(read, images[7])
        np.testing.assert_array_equal(source.read(7), images[7])

    def test_closed_and_read_again(self, source: PatchSource, images: list[np.ndarray]) -> None:
        source.read(0)
        source.close()
        np.testing.assert_array_equal(source.read(1), images[1])

    def test_bad_places_are_named(self, source: PatchSource, tmp_path: Path) -> None:
        assert self.bad
        for path, message in self.bad:
            with pytest.raises(ImageError, match=message) as caught:
                PatchSource(tmp_path, [path]).read(0)
            assert path.partition("::")[0] in str(caught.value)

    def test_a_missing_file(self, tmp_path: Path, source: PatchSource) -> None:
        path = source.paths[0]
        file = path.partition("::")[0]
        (tmp_path / file).unlink()
        with pytest.raises(ImageError, match="no such file"):
            PatchSource(tmp_path, [path]).read(0)


class TestFiles(SourceTests):
    bad = (("lost.png", "no such file"),)

    def make(self, folder: Path, images: list[np.ndarray]) -> list[str]:
        for i, image in enumerate(images):
            (folder / f"{i}.png").write_bytes(png(image))
        return [f"{i}.png" for i in range(len(images))]


class TestZip(SourceTests):
    bad = (
        ("images.zip::lost.png", "no such member"),
        ("images.zip::labels.csv", "not an image that Pillow can read"),
        ("text.zip::a.png", "cannot be opened"),
    )

    def make(self, folder: Path, images: list[np.ndarray]) -> list[str]:
        with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for i, image in enumerate(images):
                how = zipfile.ZIP_STORED if i % 2 else zipfile.ZIP_DEFLATED
                archive.writestr(f"a/ü {i}.png", png(image), how)
            archive.writestr("labels.csv", "a,b\n")
        (folder / "text.zip").write_text("not a zip")
        return [f"images.zip::a/ü {i}.png" for i in range(len(images))]

    def test_damaged_bytes_are_found(self, source: PatchSource, tmp_path: Path) -> None:
        file = tmp_path / "images.zip"
        data = bytearray(file.read_bytes())
        data[data.index(b"IDAT") + 30] ^= 0xFF
        file.write_bytes(bytes(data))
        with pytest.raises(ImageError, match=r"images\.zip::a/ü"):
            read_all(source)


class TestTar(SourceTests):
    bad = (
        ("images.tar::lost.png", "no such member"),
        ("images.tar::link.png", "no such member"),  # links lead nowhere
        ("text.tar::a.png", "cannot be opened"),
        ("images.tar.gz::a.png", "decompress it to a .tar first"),
    )

    def make(self, folder: Path, images: list[np.ndarray]) -> list[str]:
        with tarfile.open(folder / "images.tar", "w") as archive:
            for i, image in enumerate(images):
                info = tarfile.TarInfo(f"a/{i}.png")
                info.size = len(png(image))
                archive.addfile(info, io.BytesIO(png(image)))
            link = tarfile.TarInfo("link.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
        (folder / "text.tar").write_text("not a tar")
        (folder / "images.tar.gz").write_text("")
        return [f"images.tar::a/{i}.png" for i in range(len(images))]


class TestHdf5(SourceTests):
    """PCam's layout: x, uint8 (n, h, w, 3), in chunks of several patches."""

    bad = (
        ("x.h5::x[40]", "only 40 rows"),
        ("x.h5::y[0]", "there is no array 'y'"),
        ("x.h5::x", "is written as NAME"),
        ("x.h5::x[-1]", "is written as NAME"),
        ("x.h5::float[0]", r"must be uint8 \(h, w\[, 3\]\), this is float64"),
        ("text.h5::x[0]", "cannot be opened"),
    )

    def make(self, folder: Path, images: list[np.ndarray]) -> list[str]:
        with h5py.File(folder / "x.h5", "w") as file:
            file.create_dataset("x", data=np.stack(images), chunks=(8, 16, 16, 3), compression="gzip")
            file["float"] = np.zeros((2, 4, 4))
        (folder / "text.h5").write_text("not HDF5")
        return [f"x.h5::x[{i}]" for i in range(len(images))]


class TestNpzCompressed(SourceTests):
    """MedMNIST's layout; the whole array is decompressed once."""

    save = staticmethod(np.savez_compressed)
    bad = (
        ("m.npz::train_images[40]", "only 40 rows"),
        ("m.npz::test_images[0]", "there is no array 'test_images'"),
        ("m.npz::objects[0]", "never unpickled"),
        ("text.npz::train_images[0]", "cannot be opened"),
    )

    def make(self, folder: Path, images: list[np.ndarray]) -> list[str]:
        arrays: dict[str, Any] = {
            "train_images": np.stack(images),
            "objects": np.array([{"a": 1}, None], dtype=object),
        }
        self.save(folder / "m.npz", **arrays)
        (folder / "text.npz").write_text("not a zip")
        return [f"m.npz::train_images[{i}]" for i in range(len(images))]


class TestNpzStored(TestNpzCompressed):
    """Not compressed: mapped, not loaded."""

    save = staticmethod(np.savez)


class TestParquet(SourceTests):
    """Hugging Face's layout: a struct of bytes and path, in row groups."""

    bad = (
        ("t.parquet::image[40]", "only 40 rows"),
        ("t.parquet::picture[0]", "there is no column 'picture'"),
        ("t.parquet::elsewhere[0]", "holds no image bytes"),
        ("t.parquet::label[0]", "holds no image bytes"),
        ("text.parquet::image[0]", "cannot be opened"),
    )

    def make(self, folder: Path, images: list[np.ndarray]) -> list[str]:
        table = pa.table(
            {
                "image": [{"bytes": png(image), "path": f"{i}.png"} for i, image in enumerate(images)],
                "elsewhere": pa.array([{"bytes": None, "path": "a.png"}] * len(images)).cast(
                    pa.struct({"bytes": pa.binary(), "path": pa.string()})
                ),
                "label": list(range(len(images))),
                "plain": [png(image) for image in images],
            }
        )
        pyarrow.parquet.write_table(table, folder / "t.parquet", row_group_size=7)
        (folder / "text.parquet").write_text("not parquet")
        return [f"t.parquet::image[{i}]" for i in range(len(images))]

    def test_a_plain_binary_column(
        self, source: PatchSource, tmp_path: Path, images: list[np.ndarray]
    ) -> None:
        np.testing.assert_array_equal(PatchSource(tmp_path, ["t.parquet::plain[39]"]).read(0), images[39])


class TestSlides(SourceTests):
    """Regions of a whole-slide image; what a region is, is in test_slides.py."""

    bad = (
        ("slide.tiff::wsi[0,0,16]", "a region is written as"),
        ("text.svs::wsi[0,0,16,16]", "OpenSlide cannot open it"),
    )

    @pytest.fixture
    def source(
        self, tmp_path: Path, images: list[np.ndarray], write_slide: Callable[..., None]
    ) -> PatchSource:
        rows = [np.concatenate(images[k : k + 8], axis=1) for k in range(0, N, 8)]
        write_slide(tmp_path / "slide.tiff", np.concatenate(rows))
        (tmp_path / "text.svs").write_text("not a slide")
        places = [(16 * (i % 8), 16 * (i // 8)) for i in range(N)]
        return PatchSource(tmp_path, [f"slide.tiff::wsi[{x},{y},16,16]" for x, y in places])


def test_grey_arrays_become_rgb(tmp_path: Path, pixels: Pixels) -> None:
    grey = pixels(0)[..., 0]
    np.savez(tmp_path / "m.npz", flat=grey[None], one=grey[None, ..., None])
    for key in ("flat", "one"):
        read = PatchSource(tmp_path, [f"m.npz::{key}[0]"]).read(0)
        np.testing.assert_array_equal(read, np.repeat(grey[..., None], 3, axis=2))


def test_files_stay_open_only_so_many(
    tmp_path: Path, pixels: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "OPEN_FILES", 3)
    for k in range(10):
        with zipfile.ZipFile(tmp_path / f"{k}.zip", "w") as archive:
            archive.writestr("a.png", png(pixels(k)))
    source = PatchSource(tmp_path, [f"{k % 10}.zip::a.png" for k in range(200)])
    with ThreadPoolExecutor(8) as pool:  # evicted while others read
        for k, read in enumerate(pool.map(source.read, range(200))):
            np.testing.assert_array_equal(read, pixels(k % 10))
    assert len(source._open) <= 3


def test_a_mixed_manifest(tmp_path: Path, pixels: Pixels) -> None:
    (tmp_path / "a.png").write_bytes(png(pixels(0)))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("b.png", png(pixels(1)))
    source = PatchSource(tmp_path, ["b.zip::b.png", "a.png"])
    np.testing.assert_array_equal(source.read(0), pixels(1))
    np.testing.assert_array_equal(source.read(1), pixels(0))

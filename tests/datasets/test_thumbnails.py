"""Sheets and thumbnails: every patch at its place, what cannot be read is grey, sizes stay small."""

import io
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from patchbank.datasets.images import content_hash
from patchbank.datasets.manifest import Header, Manifest
from patchbank.datasets.sources import PatchSource, open_source
from patchbank.datasets.thumbnails import GREY, sprite_sheet, thumbnail, thumbnails_of
from patchbank.errors import InvalidRequest
from PIL import Image


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Seven patches, each of one colour and another size; the fifth is not an image, the sixth is missing."""
    import pandas as pd

    for k in range(7):
        pixels = np.full((40 + 10 * k, 60, 3), colour(k), np.uint8)
        if k != 5:
            Image.fromarray(pixels).save(tmp_path / f"{k}.png")
    (tmp_path / "4.png").write_bytes(b"no image")
    columns = {c: [""] * 7 for c in ("label", "group", "domain", "split")}
    table = pd.DataFrame(
        {"patch_id": [f"set/{k}" for k in range(7)], "path": [f"{k}.png" for k in range(7)], **columns}
    )
    header = Header(name="set", version="1", classes=("a", "b"), positive="b", licence="-", source="a test")
    return Manifest(header, table, tmp_path)


def colour(k: int) -> tuple[int, int, int]:
    return (30 * k, 200 - 20 * k, 90)


def tiles(sheet: bytes, tile: int) -> np.ndarray:
    """int (lines, columns, tile, tile, 3)."""
    pixels = np.asarray(Image.open(io.BytesIO(sheet))).astype(int)
    lines, columns = pixels.shape[0] // tile, pixels.shape[1] // tile
    return pixels.reshape(lines, tile, columns, tile, 3).swapaxes(1, 2)


def test_every_tile_is_at_its_place(manifest: Manifest) -> None:
    rows = [6, 0, 3, 2, 1]
    sheet = sprite_sheet(open_source(manifest), rows, tile=16, columns=2)
    found = tiles(sheet, 16)
    assert found.shape[:2] == (3, 2)
    for k, row in enumerate(rows):
        assert np.abs(found[k // 2, k % 2] - colour(row)).max() < 12
    assert np.abs(found[2, 1] - GREY).max() < 12  # no sixth row
    assert sheet == sprite_sheet(open_source(manifest), rows, tile=16, columns=2)


def test_what_cannot_be_read_is_grey(manifest: Manifest) -> None:
    found = tiles(sprite_sheet(open_source(manifest), range(7), tile=48), 48)
    assert found.shape[:2] == (1, 7)  # not wider than it has tiles
    for k in range(7):
        wanted = (GREY,) * 3 if k in (4, 5) else colour(k)
        assert np.abs(found[0, k] - wanted).max() < 12


def test_no_rows_make_no_sheet_and_too_many_are_refused(manifest: Manifest) -> None:
    source = open_source(manifest)
    assert sprite_sheet(source, []) == b""
    with pytest.raises(InvalidRequest, match="fewer rows"):
        sprite_sheet(source, [0] * 100_000, columns=10)
    for wrong in ({"tile": 0}, {"columns": 0}):
        with pytest.raises(InvalidRequest, match="1 px or more"):
            sprite_sheet(source, [0], **wrong)


def test_a_map_of_1500_points_stays_small() -> None:
    """Noise is the worst case of a JPEG; stained tissue takes about a third of it."""

    class Noise:
        def read(self, i: int) -> np.ndarray:
            return np.random.default_rng(i % 50).integers(0, 256, (64, 64, 3), np.uint8)

    assert len(sprite_sheet(Noise(), range(1500))) < 3_000_000


def test_a_thumbnail_keeps_its_shape(manifest: Manifest) -> None:
    pixels = open_source(manifest).read(6)  # 100 x 60
    small = np.asarray(Image.open(io.BytesIO(thumbnail(pixels, 50))))
    assert small.shape == (50, 30, 3)
    assert np.abs(small.astype(int) - colour(6)).max() <= 1
    same = np.asarray(Image.open(io.BytesIO(thumbnail(pixels, 500))))
    np.testing.assert_array_equal(same, pixels)


def test_every_source_gives_a_small_thumbnail(tmp_path: Path, write_slide: Any) -> None:
    """Files, archives, arrays and slides through one reader; a patch of 512 px becomes a few kB."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "a.png")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = pixels[None]
    np.savez(tmp_path / "a.npz", x=pixels[None])
    column = pa.array([{"bytes": (tmp_path / "a.png").read_bytes()}])
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
    write_slide(tmp_path / "slide.tiff", pixels)
    inside = ("images.zip::a.png", "a.h5::x[0]", "a.npz::x[0]", "a.parquet::image[0]")
    paths = ["a.png", "a.tif", *inside, "slide.tiff::wsi[0,0,512,512,mpp=0.25]"]
    wanted = content_hash(pixels).hex()
    hashes = [wanted] * 6 + [content_hash(PatchSource(tmp_path, paths).read(6)).hex()]
    for jpeg, path in zip(
        thumbnails_of(str(tmp_path), list(zip(paths, hashes, strict=True)), 224), paths, strict=True
    ):
        assert jpeg is not None, path
        image = Image.open(io.BytesIO(jpeg))
        assert (image.format, image.size) == ("JPEG", (224, 224)), path
        assert len(jpeg) < 30_000, path
    changed = thumbnails_of(str(tmp_path), [(path, "0" * 32) for path in [*paths, "../a.png", "b.png"]], 224)
    assert changed == [None] * 9

"""Regions of a slide that the test makes: level, resolution, borders."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patchbank.errors import ImageError, MissingDependency
from PIL import Image

pytest.importorskip("openslide")

from patchbank.datasets.slides import Region, Slide, parse_region

WIDTH, HEIGHT = 512, 384


@pytest.fixture
def pixels_of_slide() -> np.ndarray:
    """Smooth colours that say where they are, uint8 (384, 512, 3)."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x // 2, y // 2, (x + y) // 4], axis=2).astype(np.uint8)


@pytest.fixture
def slide(tmp_path: Path, pixels_of_slide: np.ndarray, write_slide: Callable[..., None]) -> Slide:
    write_slide(tmp_path / "a.tiff", pixels_of_slide)
    return Slide(str(tmp_path / "a.tiff"))


def test_what_the_slide_says(slide: Slide) -> None:
    assert slide.dimensions == (WIDTH, HEIGHT)
    mpp = slide.mpp()
    assert mpp is not None
    np.testing.assert_allclose(mpp, 0.25, rtol=1e-4)


def test_level_0(slide: Slide, pixels_of_slide: np.ndarray) -> None:
    np.testing.assert_array_equal(slide.read("wsi[100,50,64,32]"), pixels_of_slide[50:82, 100:164])


def test_another_level_starts_at_level_0_pixels(slide: Slide, pixels_of_slide: np.ndarray) -> None:
    expected = pixels_of_slide[::2, ::2][40:72, 60:92]
    np.testing.assert_array_equal(slide.read("wsi[120,80,32,32,level=1]"), expected)
    np.testing.assert_array_equal(slide.read("wsi[120,80,32,32,down=2]"), expected)
    np.testing.assert_array_equal(
        slide.read("wsi[120,80,32,32,mpp=0.5]"), expected
    )  # no resize: it is a level


def test_between_levels_it_is_resized_from_the_finer_one(slide: Slide, pixels_of_slide: np.ndarray) -> None:
    read = slide.read("wsi[128,64,40,40,mpp=0.75]")  # three level-0 pixels a pixel: 60 x 60 of level 1
    part = Image.fromarray(pixels_of_slide[::2, ::2][32:92, 64:124])
    np.testing.assert_array_equal(read, np.asarray(part.resize((40, 40), Image.Resampling.BICUBIC)))


def test_finer_than_the_slide_is_enlarged(slide: Slide, pixels_of_slide: np.ndarray) -> None:
    read = slide.read("wsi[128,64,80,80,mpp=0.125]")
    part = Image.fromarray(pixels_of_slide[64:104, 128:168])
    np.testing.assert_array_equal(read, np.asarray(part.resize((80, 80), Image.Resampling.BICUBIC)))


def test_the_resolution_may_be_said(
    tmp_path: Path, pixels_of_slide: np.ndarray, write_slide: Callable[..., None]
) -> None:
    write_slide(tmp_path / "b.tiff", pixels_of_slide, mpp=None)
    slide = Slide(str(tmp_path / "b.tiff"))
    with pytest.raises(ImageError, match="give --mpp0 or a column mpp0 of --slides"):
        slide.read("wsi[0,0,16,16,mpp=0.5]")
    read = slide.read("wsi[0,0,16,16,mpp=0.5,mpp0=0.25]")
    np.testing.assert_array_equal(read, pixels_of_slide[:32:2, :32:2])


@pytest.mark.parametrize(("border", "colour"), [("white", 255), ("black", 0), ("8080ff", (128, 128, 255))])
def test_outside_is_filled(slide: Slide, pixels_of_slide: np.ndarray, border: str, colour: Any) -> None:
    tail = "" if border == "white" else f",border={border}"
    read = slide.read(f"wsi[-10,-20,40,40{tail}]")
    expected = np.empty((40, 40, 3), np.uint8)
    expected[:] = colour
    expected[20:, 10:] = pixels_of_slide[:20, :30]
    np.testing.assert_array_equal(read, expected)
    read = slide.read(f"wsi[{WIDTH - 8},{HEIGHT - 4},16,16{tail}]")
    np.testing.assert_array_equal(read[:4, :8], pixels_of_slide[-4:, -8:])
    assert (read[4:] == np.array(colour)).all()


def test_cropped_at_the_border(slide: Slide, pixels_of_slide: np.ndarray) -> None:
    read = slide.read("wsi[-10,-20,40,40,border=crop]")
    np.testing.assert_array_equal(read, pixels_of_slide[:20, :30])
    read = slide.read(f"wsi[{WIDTH - 8},{HEIGHT - 4},16,16,border=crop]")
    np.testing.assert_array_equal(read, pixels_of_slide[-4:, -8:])
    assert slide.read(f"wsi[{WIDTH - 32},0,32,32,mpp=0.5,border=crop]").shape == (32, 16, 3)
    with pytest.raises(ImageError, match="outside the slide"):
        slide.read(f"wsi[{WIDTH + 5},0,16,16,border=crop]")


@pytest.mark.parametrize(
    "member",
    [
        "wsi[0,0,16,16]",
        "wsi[-5,12,256,128,level=2]",
        "wsi[0,0,256,256,mpp=0.5,mpp0=0.2527,border=crop]",
        "wsi[0,0,256,256,down=1.9788,border=8080ff]",
    ],
)
def test_a_region_is_written_as_it_was_read(member: str) -> None:
    assert str(parse_region(member, "a.svs")) == member


def test_a_region_keeps_all_digits() -> None:
    region = Region(x=1, y=2, width=3, height=4, down=512 / 259)
    assert parse_region(str(region), "a.svs") == region


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("a.png", "a region is written as"),
        ("wsi[1.5,0,16,16]", "a region is written as"),
        ("wsi[0,0,16,16,level=-1]", "positive scale"),
        ("wsi[0,0,0,16]", "must have a size"),
        ("wsi[0,0,16,16,zoom=2]", "known options"),
        ("wsi[0,0,16,16,level=1,mpp=0.5]", "at most one"),
        ("wsi[0,0,16,16,mpp=0]", "positive scale"),
        ("wsi[0,0,16,16,mpp=nan]", "positive scale"),
        ("wsi[0,0,16,16,mpp=fine]", "could not convert"),
        ("wsi[0,0,16,16,border=pink]", "is not white, black, crop"),
        ("wsi[0,0,16,16,level=9]", "only the levels 0 to 2"),
    ],
)
def test_faulty_regions_are_named(slide: Slide, member: str, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        slide.read(member)
    assert "a.tiff" in str(caught.value)


def test_without_openslide_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from patchbank.datasets.sources import PatchSource

    monkeypatch.setitem(sys.modules, "openslide", None)
    monkeypatch.delitem(sys.modules, "patchbank.datasets.slides")
    (tmp_path / "a.svs").write_bytes(b"")
    with pytest.raises(MissingDependency, match="pip install openslide-python openslide-bin"):
        PatchSource(tmp_path, ["a.svs::wsi[0,0,16,16]"]).read(0)

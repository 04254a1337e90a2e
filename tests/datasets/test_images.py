"""Decoding, and the content hash that keys every embedding."""

import hashlib
import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from patchbank.datasets.images import MAX_PIXELS, _is_deep, content_hash, decode_image, read_image
from patchbank.errors import ImageError
from PIL import Image


def test_an_rgb_image_comes_back(tmp_path: Path, pixels: Callable[..., np.ndarray]) -> None:
    Image.fromarray(pixels(1)).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, pixels(1))
    read[0, 0] = 0  # the caller's own, and writable


def test_other_modes_become_rgb(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for name, image in {
        "grey.png": Image.fromarray(grey),
        "palette.png": Image.fromarray(grey).convert("P"),
        "alpha.png": Image.merge("RGBA", [Image.fromarray(g) for g in (grey, grey, grey, 255 - grey)]),
        "bits.png": Image.fromarray(grey).convert("1"),
    }.items():
        image.save(tmp_path / name)
        read = read_image(tmp_path / name)
        assert read.shape == (16, 16, 3), name
        if name != "bits.png":
            np.testing.assert_array_equal(read, np.repeat(grey[..., None], 3, axis=2), err_msg=name)


def test_the_hash_is_the_documented_one(pixels: Callable[..., np.ndarray]) -> None:
    image = pixels(2)[:5]
    plain = hashlib.blake2b(b"patchbank-rgb8\0" + struct.pack("<II", 5, 16) + image.tobytes(), digest_size=16)
    assert content_hash(image) == plain.digest()
    assert content_hash(image[:, ::-1][:, ::-1]) == plain.digest()  # not contiguous
    zeros = np.zeros((4, 8, 3), np.uint8)
    assert content_hash(zeros) != content_hash(zeros.reshape(8, 4, 3))


def test_the_hash_never_changes() -> None:
    ramp = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    assert content_hash(ramp).hex() == "71d0b6a1f6dccdf916eb6baa7b67585b"


def test_the_file_does_not_matter_only_the_pixels(tmp_path: Path, pixels: Callable[..., np.ndarray]) -> None:
    image = Image.fromarray(pixels(3))
    image.save(tmp_path / "a.png", compress_level=0)
    image.save(tmp_path / "b.bmp")
    assert content_hash(read_image(tmp_path / "a.png")) == content_hash(read_image(tmp_path / "b.bmp"))


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8)]
)
def test_only_rgb_bytes_are_hashed(bad: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"must be uint8 \(h, w, 3\)"):
        content_hash(bad)


def broken(name: str, folder: Path) -> Path:
    file = folder / "x.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file)
    good = file.read_bytes()
    if name == "truncated":
        file.write_bytes(good[: len(good) // 2])
    elif name == "header only":
        file.write_bytes(good[:20])
    elif name == "text":
        file.write_text("patch,label\n")
    elif name == "empty":
        file.write_bytes(b"")
    elif name == "damaged":
        file.write_bytes(good[:200] + bytes(50) + good[250:])
    elif name == "16 bit":
        Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(file)
    elif name == "missing":
        file.unlink()
    elif name == "folder":
        file.unlink()
        file.mkdir()
    return file


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("truncated", "cannot be decoded: .*truncated"),
        ("header only", "no image|cannot be decoded"),
        ("text", "not an image that Pillow can read .*starts with b'patch,label"),
        ("empty", "is empty"),
        ("damaged", "cannot be decoded"),
        ("16 bit", "more than 8 bits a channel"),
        ("missing", "no such file"),
        ("folder", "directory"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, message: str) -> None:
    file = broken(name, tmp_path)
    with pytest.raises(ImageError, match=message) as caught:
        read_image(file)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_bytes_in_memory_are_named_too() -> None:
    with pytest.raises(ImageError, match=r"images\.zip::a\.png"):
        decode_image(b"hello, world", "images.zip::a.png")


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def png(
    colour: int, depth: int, width: int = 4, height: int = 4, *, value: int = 255, rows: int = 0
) -> bytes:
    """A PNG of one value, of a colour type (0 grey, 2 RGB, 4 grey + alpha, 6 RGBA); rows: that it has."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    line = b"\0" + value.to_bytes(depth // 8, "big") * channels * (1 if rows else width)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(line * (rows or height)))
        + chunk(b"IEND", b"")
    )


def tiff(dtype: str, channels: int, **options: object) -> bytes:
    tifffile = pytest.importorskip("tifffile")
    stream = io.BytesIO()
    shape = (16, 16, channels) if channels > 1 else (16, 16)
    photometric = "rgb" if channels > 1 else "minisblack"
    tifffile.imwrite(stream, np.full(shape, 4095, dtype), photometric=photometric, **options)
    return stream.getvalue()


def deep_jp2() -> bytes:
    data = bytearray(encoded(Image.new("RGB", (16, 16)), "JPEG2000"))
    data[data.index(b"\xff\x4f\xff\x51") + 42] = 11  # 12 bits
    return bytes(data)


@pytest.mark.parametrize("colour", [0, 2, 4, 6])
def test_png_of_16_bits_is_refused_and_of_8_read(colour: int) -> None:
    with pytest.raises(ImageError, match=r"a\.png: it has more than 8 bits a channel"):
        decode_image(png(colour, 16), "a.png")
    assert (decode_image(png(colour, 8, value=216), "a.png") == 216).all()


@pytest.mark.parametrize(
    ("dtype", "channels", "options"),
    [
        ("uint16", 3, {}),
        ("uint16", 3, {"compression": "zlib"}),
        ("uint16", 3, {"byteorder": ">"}),
        ("uint16", 3, {"tile": (16, 16)}),
        ("uint16", 4, {"extrasamples": [2]}),
        ("uint16", 1, {}),
        ("uint16", 3, {"planarconfig": "separate"}),
        ("float32", 1, {}),
        ("float32", 3, {}),
        ("uint32", 3, {}),
    ],
)
def test_deep_tiff_is_refused(dtype: str, channels: int, options: dict[str, object]) -> None:
    with pytest.raises(
        ImageError, match=r"more than 8 bits a channel|TIFF of a kind that Pillow does not read"
    ):
        decode_image(tiff(dtype, channels, **options), "a.tif")


@pytest.mark.parametrize(
    "data",
    [
        b"P6 2 2 65535\n" + bytes(24),
        b"P6 2 2 4095\n" + bytes(24),
        b"P3 1 1 4095\n1 2 3",
        b"P5 2 2 65535\n" + bytes(8),
    ],
    ids=["16 bit", "12 bit", "plain", "grey"],
)
def test_deep_ppm_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="more than 8 bits a channel"):
        decode_image(data, "a.ppm")


def test_deep_jp2_and_avif_are_refused() -> None:
    with pytest.raises(ImageError, match="more than 8 bits a channel"):
        decode_image(deep_jp2(), "a")
    data = encoded(Image.new("RGB", (16, 16)), "AVIF")
    image = Image.open(io.BytesIO(data))
    assert not _is_deep(image, io.BytesIO(data))
    deep = bytearray(data)
    deep[data.index(b"av1C") + 6] |= 0x40  # 10 bits; the decoder compares it with its stream, so ask before
    assert _is_deep(image, io.BytesIO(deep))


@pytest.mark.parametrize(
    "form", ["PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "JPEG2000", "AVIF", "PPM", "MPO"]
)
def test_eight_bits_are_read_in_every_format(form: str) -> None:
    read = decode_image(encoded(Image.new("RGB", (16, 16), (200, 100, 50)), form), "a")
    assert np.abs(read.astype(int) - (200, 100, 50)).max() <= 8
    assert decode_image(b"P6 1 1 100\n" + bytes([100, 50, 0]), "a").tolist() == [[[255, 128, 0]]]


@pytest.mark.parametrize(
    ("mode", "form"), [("CMYK", "TIFF"), ("CMYK", "JPEG"), ("LAB", "TIFF"), ("CMYK", "JPEG2000")]
)
def test_colours_that_need_a_profile_are_refused(mode: str, form: str) -> None:
    with pytest.raises(ImageError, match=f"its colours are {mode}; convert it to RGB first"):
        decode_image(encoded(Image.new(mode, (8, 8)), form), "a")


def test_ycbcr_is_converted_as_jpeg_is() -> None:
    image = Image.new("RGB", (8, 8), (200, 100, 50))
    read = decode_image(encoded(image.convert("YCbCr"), "TIFF"), "a")
    assert np.abs(read.astype(int) - (200, 100, 50)).max() <= 2


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_a_palette_with_transparency_is_its_colours(form: str) -> None:
    image = Image.new("P", (8, 8), 3)
    image.putpalette([0, 0, 0, 9, 9, 9, 7, 7, 7, 200, 100, 50])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for transparency in (3, bytes([255, 128, 0, 0])):
            if form == "GIF" and not isinstance(transparency, int):
                continue
            read = decode_image(encoded(image, form, transparency=transparency), "a")
            assert (read == (200, 100, 50)).all()


def test_alpha_is_dropped_and_hides_nothing() -> None:
    assert (
        decode_image(encoded(Image.new("RGBA", (8, 8), (200, 100, 50, 0)), "PNG"), "a") == (200, 100, 50)
    ).all()
    assert (decode_image(encoded(Image.new("LA", (8, 8), (200, 0)), "PNG"), "a") == 200).all()


def test_exif_orientation_is_ignored() -> None:
    exif = Image.Exif()
    exif[274] = 6  # rotate by 90 degrees to look at it
    ramp = Image.fromarray(np.arange(6 * 9 * 3, dtype=np.uint8).reshape(6, 9, 3))
    assert decode_image(encoded(ramp, "PNG", exif=exif), "a").shape == (6, 9, 3)
    np.testing.assert_array_equal(decode_image(encoded(ramp, "PNG", exif=exif), "a"), np.asarray(ramp))


def test_pages() -> None:
    first, second = Image.new("RGB", (16, 16), 5), Image.new("RGB", (16, 16), 9)
    small = Image.new("RGB", (8, 8), 9)
    pyramid = encoded(first, "TIFF", save_all=True, append_images=[small])
    assert (decode_image(pyramid, "a") == np.asarray(first)).all()
    stack = encoded(first, "TIFF", save_all=True, append_images=[small, second])
    with pytest.raises(ImageError, match="3 pages, of which several are 16 x 16; save each as a file"):
        decode_image(stack, "a")
    for form in ("GIF", "PNG", "WEBP"):
        film = encoded(
            first,
            form,
            save_all=True,
            append_images=[second],
            **({"lossless": True} if form == "WEBP" else {}),
        )
        assert (decode_image(film, "a") == np.asarray(first)).all(), form


def test_an_image_that_claims_too_many_pixels_is_not_decoded() -> None:
    side = 1 << 13
    assert side * side == MAX_PIXELS
    for width in (side + 1, 40_000, 2_000_000_000):
        with pytest.raises(ImageError, match="too many for a patch"):
            decode_image(png(2, 8, width, side, rows=1), "a")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ImageError, match="a pipe or device, not a regular file"):
        read_image(tmp_path / "a.png")
    with pytest.raises(ImageError, match="null"):
        read_image("a\0b.png")


@pytest.mark.parametrize("value", range(1, 9))
def test_orientation_is_as_pillow_loads_it(tmp_path: Path, value: int) -> None:
    """EXIF is ignored; the tag of a TIFF is followed by Pillow itself: training scripts saw it too."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = value
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(pixels).save(tmp_path / "a.webp", exif=exif, lossless=True)
    Image.fromarray(pixels).save(tmp_path / "a.tiff", tiffinfo={274: value})
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pixels)
    np.testing.assert_array_equal(read_image(tmp_path / "a.webp"), pixels)
    turned = [
        lambda a: a, np.fliplr, lambda a: np.rot90(a, 2), np.flipud, lambda a: a.swapaxes(0, 1),
        lambda a: np.rot90(a, -1), lambda a: np.rot90(a, 2).swapaxes(0, 1), np.rot90,
    ][value - 1]  # fmt: skip
    np.testing.assert_array_equal(read_image(tmp_path / "a.tiff"), turned(pixels))


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (np.zeros((4, 4), np.int8), {}, "signed"),
        (np.zeros((64, 64, 5), np.uint8), {"photometric": "rgb"}, "5 channels"),
        (np.zeros((4, 4), np.float32), {}, "more than 8 bits"),
        (np.zeros((4, 4), np.float16), {}, "does not read"),
        (np.zeros((4, 4, 3), np.uint16), {"photometric": "rgb", "byteorder": ">"}, "more than 8 bits"),
        (np.zeros((3, 4, 4), np.uint8), {"photometric": "minisblack"}, "3 pages"),
    ],
)
def test_tiffs_that_are_no_patch(
    tmp_path: Path, array: np.ndarray, options: dict[str, str], message: str
) -> None:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    with pytest.raises(ImageError, match=message):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    "options",
    [
        {"byteorder": ">"}, {"tile": (16, 16)}, {"planarconfig": "separate"}, {"bigtiff": True},
        {"planarconfig": "separate", "tile": (16, 16), "compression": "zlib"},
        {"compression": "zlib", "predictor": True},
    ],
)  # fmt: skip
def test_tiffs_of_every_layout(tmp_path: Path, options: dict[str, object]) -> None:
    tifffile = pytest.importorskip("tifffile")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    stored = np.moveaxis(pixels, -1, 0) if "planarconfig" in options else pixels
    tifffile.imwrite(tmp_path / "a.tif", np.ascontiguousarray(stored), photometric="rgb", **options)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), pixels)


def test_postscript_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args, **more: pytest.fail("it was run"))
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    with pytest.raises(ImageError, match="not an image that Pillow can read"):
        read_image(tmp_path / "a.png")


def test_jpeg_of_12_bits_is_refused() -> None:
    """Made by its header: Pillow has no encoder for it."""
    data = bytearray(encoded(Image.new("RGB", (16, 16)), "JPEG"))
    frame = data.find(b"\xff\xc0")
    data[frame + 4] = 12
    for marker in (0xC0, 0xC1):
        data[frame + 1] = marker
        with pytest.raises(ImageError, match="a: is a JPEG of 12 bits a channel; convert it to 8-bit RGB"):
            decode_image(bytes(data), "a")


def test_jpeg_of_12_bits_in_tiff_is_refused() -> None:
    data = encoded(Image.new("RGB", (16, 16)), "TIFF", compression="jpeg")
    bits = np.array([8, 8, 8], "<u2").tobytes()
    assert data.count(bits) == 1
    with pytest.raises(ImageError, match=r"a TIFF of a kind that Pillow does not read.*12-bit JPEG"):
        decode_image(data.replace(bits, np.array([12, 12, 12], "<u2").tobytes()), "a")


def test_adobe_jpeg_of_four_channels_is_refused() -> None:
    """CMYK and YCCK: Photoshop's are inverted and belong to a printer's profile."""
    data = encoded(Image.new("CMYK", (16, 16), (10, 20, 30, 40)), "JPEG")
    assert b"Adobe" in data
    place = data.find(b"Adobe") + 11
    for transform in (0, 2):  # CMYK, YCCK
        adobe = data[:place] + bytes([transform]) + data[place + 1 :]
        with pytest.raises(ImageError, match="its colours are CMYK; convert it to RGB first"):
            decode_image(adobe, "a")

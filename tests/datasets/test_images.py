"""Decoding, and the content hash that keys every embedding."""

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from patchbank.datasets.images import content_hash, decode_image, read_image
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
        ("text", "no image that Pillow knows .*starts with b'patch,label"),
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

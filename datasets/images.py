"""Reading one image: to RGB pixels, and from pixels to the content hash that keys every embedding."""

import hashlib
import io
import os
import re
import stat
import struct
from functools import cache
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from ..errors import ImageError
from ..texts import other_file

MAX_PIXELS = 1 << 26  # 8192 x 8192; a compressed file of 500 kB may claim a hundred times that
# what Pillow decodes by itself; it would run Ghostscript on a file that is EPS inside
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "GIF", "WEBP", "PPM", "JPEG2000", "AVIF", "MPO", "ICO", "TGA",
           "PCX", "DDS", "SGI", "SUN", "MSP", "XBM", "PSD", "QOI")  # fmt: skip
HEAD = 1 << 16  # bytes in which a JPEG 2000 or AVIF file says its bit depth
_PREFIX = b"patchbank-rgb8\0"
_COLOURS = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr"}
_DEEP = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N"}
# Pillow's raw modes of more than 8 bits a channel; BGR;15 and BGR;16 are 5 or 6 bits a channel
_DEEP_RAW = re.compile(r"(?!BGR).*;(?:10|12|14|16|24|32|64)")


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """An image file as uint8 (h, w, 3) RGB.

    Grey, black-and-white and palette images are expanded, YCbCr is converted (JFIF); an alpha channel is
    dropped, whatever the pixels under it are. An orientation is taken as Pillow's loading does, and with it
    every training script of the field: that of EXIF is ignored, a TIFF's own tag is followed. Of an animation
    the first frame is taken, of a TIFF with smaller pages (a pyramid) the first page.

    Raises ImageError, naming the file: missing, not a regular file, truncated, not an image; more than 8 bits
    a channel in the file (which Pillow may hide: it opens 16-bit RGB as 8-bit); CMYK, LAB and other colours
    that become RGB only by a colour profile; a TIFF with several pages of one size, signed samples or more
    than four channels; more than MAX_PIXELS pixels.
    """
    with open_regular(path) as stream:
        return _decode(stream, os.fspath(path))


def decode_image(data: bytes, name: str) -> np.ndarray:
    """The same for an encoded image in memory; `name` is what an error calls it."""
    return _decode(io.BytesIO(data), name)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """A file opened for reading. Raises ImageError: missing, unreadable, a folder, a pipe, a device."""
    name = os.fspath(path)
    try:  # without O_NONBLOCK, opening a pipe would wait for its writer
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file.") from None
    except (OSError, ValueError) as error:  # ValueError: a name with NUL
        raise ImageError(f"{name}: {getattr(error, 'strerror', None) or error}.") from error
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    what = "a directory" if stat.S_ISDIR(mode) else "a pipe or device, not a regular file"
    raise ImageError(f"{name}: it is {what}.")


def _decode(stream: BinaryIO, name: str) -> np.ndarray:
    try:
        with Image.open(stream, formats=_formats()) as image:
            if fault := _fault(image, stream):
                raise ImageError(f"{name}: {fault}.")
            image.load()
            image.info.pop("transparency", None)  # dropped like any alpha; convert() would warn of it
            return np.array(image.convert("RGB"))
    except UnidentifiedImageError:
        stream.seek(0)
        start = stream.read(HEAD)
        what = (
            "is empty"
            if not start
            else f"is not an image that Pillow can read (it starts with {start[:12]!r})"
        )
        what = other_file(start) or what
        if (depth := _jpeg_depth(start)) > 8:
            what = f"is a JPEG of {depth} bits a channel; convert it to 8-bit RGB first"
        if start.startswith((b"II*\0", b"MM\0*")):
            what = "is a TIFF of a kind that Pillow does not read (such as float, 12-bit JPEG or 32-bit RGB)"
        raise ImageError(f"{name}: {what}.") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: {_too_many('its header claims')}.") from None
    except (OSError, SyntaxError, ValueError, struct.error, EOFError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name}: cannot be decoded: {error}.") from error  # Pillow: "truncated", "broken"


@cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _too_many(what: str) -> str:
    return f"{what} more than {MAX_PIXELS} pixels, too many for a patch; give regions of it (build wsi)"


def _fault(image: Image.Image, stream: BinaryIO) -> str:
    """Why an opened, not yet decoded image cannot be a patch; "" if it can."""
    if image.width * image.height > MAX_PIXELS:
        return _too_many(f"{image.width} x {image.height} pixels are")
    if image.mode in _DEEP or _is_deep(image, stream):
        return "it has more than 8 bits a channel; convert it to 8-bit RGB first"
    if image.mode not in _COLOURS:
        return f"its colours are {image.mode}; convert it to RGB first, with its colour profile"
    if isinstance(image, TiffImageFile):
        if image.tag_v2.get(277, 1) > 4:  # SamplesPerPixel
            return f"it has {image.tag_v2[277]} channels; save the three that are red, green and blue"
        if {*image.tag_v2.get(339, (1,))} & {2, 5, 6}:  # SampleFormat
            return "its samples are signed or complex numbers; convert it to 8-bit RGB first"
    if image.format == "TIFF" and (pages := getattr(image, "n_frames", 1)) > 1:
        size = image.size
        for page in range(1, pages):
            image.seek(page)
            if image.size == size:
                return (
                    f"it has {pages} pages, of which several are {size[0]} x {size[1]}; save each as a file"
                )
        image.seek(0)
    return ""


def _is_deep(image: Image.Image, stream: BinaryIO) -> bool:
    """Whether the file has more than 8 bits a channel, whatever mode Pillow opens it in."""
    raw = [tile.args if isinstance(tile.args, tuple) else (tile.args,) for tile in getattr(image, "tile", ())]
    if any(isinstance(arg, str) and _DEEP_RAW.match(arg) for args in raw for arg in args):
        return True
    if isinstance(image, TiffImageFile):
        return max(image.tag_v2.get(258, (1,))) > 8  # BitsPerSample
    if image.format == "PPM":
        return any(isinstance(arg, int) and arg > 255 for args in raw for arg in args)  # the largest value
    if image.format in ("JPEG2000", "AVIF"):
        at = stream.tell()
        stream.seek(0)
        head = stream.read(HEAD)
        stream.seek(at)
        if image.format == "AVIF":  # av1C: high_bitdepth is bit 6 of its third byte
            offset = head.find(b"av1C") + 6
            return offset > 6 and bool(head[offset] & 0x40)
        offset = head.find(b"\xff\x4f\xff\x51") + 42  # SIZ: the first component's depth - 1
        return 42 <= offset < len(head) and (head[offset] & 0x7F) + 1 > 8
    return False


def _jpeg_depth(start: bytes) -> int:
    """Bits a channel that the frame header of a JPEG says; 0 where there is none."""
    at = 2 if start.startswith(b"\xff\xd8") else len(start)
    while at + 4 < len(start) and start[at] == 0xFF:
        marker = start[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # SOF, but not DHT, JPG, DAC
            return start[at + 4]
        at += 2 + int.from_bytes(start[at + 2 : at + 4], "big")
    return 0


def content_hash(pixels: np.ndarray) -> bytes:
    """16 bytes: BLAKE2b-128 of b"patchbank-rgb8\\0", height and width (uint32, little endian), the RGB bytes.

    pixels : uint8, (h, w, 3). It is the pixels that are hashed, not the file: two files with the same image
    have one embedding. Raises ImageError for another dtype or shape.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ImageError(f"pixels must be uint8 (h, w, 3), not {pixels.dtype} {pixels.shape}.")
    digest = hashlib.blake2b(_PREFIX, digest_size=16)
    digest.update(struct.pack("<II", pixels.shape[0], pixels.shape[1]))
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()

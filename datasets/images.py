"""Reading one image: to RGB pixels, and from pixels to the content hash that keys every embedding."""

import hashlib
import io
import os
import struct
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import ImageError

_PREFIX = b"patchbank-rgb8\0"
# what convert("RGB") would clip or scale in silence
_DEEP = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N"}


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """An image file as uint8 (h, w, 3) RGB.

    Grey and palette images are expanded; an alpha channel is dropped; the first frame of several is taken;
    EXIF orientation is ignored (as every training script of the field does). Raises ImageError, naming the
    file: missing, truncated, no image, or more than 8 bits a channel.
    """
    try:
        with open(path, "rb") as stream:  # noqa: PTH123  `path` may be a string; this is the hot path
            return _decode(stream, os.fspath(path))
    except FileNotFoundError:
        raise ImageError(f"{os.fspath(path)}: no such file.") from None
    except (IsADirectoryError, PermissionError) as error:
        raise ImageError(f"{os.fspath(path)}: {error.strerror}.") from error


def decode_image(data: bytes, name: str) -> np.ndarray:
    """The same for an encoded image in memory; `name` is what an error calls it."""
    return _decode(io.BytesIO(data), name)


def _decode(stream: BinaryIO, name: str) -> np.ndarray:
    try:
        with Image.open(stream) as image:
            if image.mode in _DEEP:
                raise ImageError(
                    f"{name}: mode {image.mode} has more than 8 bits a channel; convert it to 8-bit RGB "
                    "first."
                )
            return np.array(image.convert("RGB"))
    except UnidentifiedImageError:
        stream.seek(0)
        start = stream.read(12)
        what = "is empty" if not start else f"is no image that Pillow knows (it starts with {start!r})"
        raise ImageError(f"{name}: {what}.") from None
    except (OSError, SyntaxError, ValueError, struct.error, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name}: cannot be decoded: {error}.") from error  # Pillow: "truncated", "broken"


def content_hash(pixels: np.ndarray) -> bytes:
    """16 bytes: BLAKE2b-128 of b"patchbank-rgb8\\0", height and width (uint32, little endian), the RGB bytes.

    pixels : uint8, (h, w, 3). It is the pixels that are hashed, not the file: two files with the same picture
    have one embedding. Raises ImageError for another dtype or shape.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ImageError(f"pixels must be uint8 (h, w, 3), not {pixels.dtype} {pixels.shape}.")
    digest = hashlib.blake2b(_PREFIX, digest_size=16)
    digest.update(struct.pack("<II", pixels.shape[0], pixels.shape[1]))
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()

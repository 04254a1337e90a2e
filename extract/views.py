"""Views of a patch and the resize that brings them to an encoder's input size.

    full           the whole patch
    center:F       the central fraction F of each side, 0 < F < 1, as in center:0.5
    d4:K           K = 1..7 of the 8 flips and rotations (0 is the patch itself, which is called full)
    d4:mean        the mean of the 8 vectors
    d4             short for all of these: the patch itself, d4:1 ... d4:7 and d4:mean
    center:F+d4:K  a crop, then the flip or rotation

K = 4 * flip + turns: a left-right flip first, then `turns` quarter turns counter-clockwise.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..errors import EncoderError, ImageError, InvalidRequest
from .cards import Transform

if TYPE_CHECKING:
    from torch import Tensor

MEAN = -1  # orientation of a view that averages all eight
_CROP = re.compile(r"center:(0?\.[0-9]+|1(?:\.0*)?)")
_TURN = re.compile(r"d4(?::([0-7]|mean))?")


@dataclass(frozen=True, order=True)
class View:
    """A crop fraction in (0, 1] and an orientation 0..7, or MEAN."""

    crop: float = 1.0
    orientation: int = 0

    @property
    def name(self) -> str:
        """The canonical name: part of the identity of an embedding."""
        crop = f"center:{self.crop:g}" if self.crop < 1 else ""
        turn = "d4:mean" if self.orientation == MEAN else f"d4:{self.orientation}" if self.orientation else ""
        return "+".join(part for part in (crop, turn) if part) or "full"

    @property
    def orientations(self) -> tuple[int, ...]:
        """The forward passes that it takes."""
        return tuple(range(8)) if self.orientation == MEAN else (self.orientation,)


def parse_views(names: str | Iterable[str]) -> list[View]:
    """Views by name, short names written out, duplicates removed, in the order given.

    Raises
    ------
    InvalidRequest
        a name that is not a view.
    """
    views: list[View] = []
    for name in [names] if isinstance(names, str) else names:
        crop, turns = 1.0, [0]
        for number, part in enumerate(name.split("+")):
            cut, turn = _CROP.fullmatch(part), _TURN.fullmatch(part)
            if cut and number == 0 and float(cut[1]) > 0:
                crop = float(cut[1])
            elif turn and turns == [0]:
                turns = (
                    [*range(8), MEAN] if turn[1] is None else [MEAN if turn[1] == "mean" else int(turn[1])]
                )
            elif part != "full" or number:
                raise InvalidRequest(
                    f"unknown view {name!r}: full, center:F (as in center:0.5), d4, d4:K, d4:mean, "
                    "or a crop and a turn as in center:0.5+d4:mean"
                )
        views += [View(crop, turn) for turn in turns]
    if not views:
        raise InvalidRequest("no view was asked for; the whole patch is called full")
    return list(dict.fromkeys(views))


def orient(batch: "Tensor", orientation: int) -> "Tensor":
    """Flip and turn images (b, h, w, 3): left-right if orientation >= 4, then quarter turns."""
    flip, turns = divmod(orientation, 4)
    batch = batch.flip(2) if flip else batch
    return batch.rot90(turns, (1, 2)) if turns else batch


def crop_pixels(pixels: np.ndarray, fraction: float) -> np.ndarray:
    """The central fraction of each side (h, w, ...), at least one pixel; an odd pixel is lost at the end."""
    if fraction >= 1:
        return pixels
    height, width = pixels.shape[:2]
    h, w = max(1, round(height * fraction)), max(1, round(width * fraction))
    top, left = (height - h) // 2, (width - w) // 2
    return pixels[top : top + h, left : left + w]


def resized_shape(height: int, width: int, transform: Transform) -> tuple[int, int]:
    """(height, width) of a patch after the transform's resize, before its centre crop."""
    side = transform.resize
    if transform.mode == "squash":
        return side, side
    if transform.mode == "border":
        ratio = max(height, width) / side
        return round(height / ratio), round(width / ratio)
    if height <= width:  # the longer side is rounded down, as in torchvision
        return side, int(side * width / height)
    return int(side * height / width), side


def prepare(pixels: np.ndarray, transform: Transform, crop: float = 1.0) -> np.ndarray:
    """Crop, resize and centre-crop one patch: the reference implementation, PIL.

    Parameters
    ----------
    pixels
        uint8, (h, w, 3), RGB.
    transform
        the encoder's.
    crop
        central fraction of each side that is kept.

    Returns
    -------
    np.ndarray
        uint8, (size, size, 3); of a transform with a function float32, normalised.

    Raises
    ------
    ImageError
        not a uint8 RGB array.
    EncoderError
        the transform's function gives something else than float (3, size, size).
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ImageError(f"a patch is uint8 (height, width, 3); this one is {pixels.dtype} {pixels.shape}")
    pixels = crop_pixels(pixels, crop)
    if transform.function is not None:
        return _by_function(pixels, transform)
    height, width = resized_shape(pixels.shape[0], pixels.shape[1], transform)
    if (height, width) != pixels.shape[:2]:
        image = Image.fromarray(np.ascontiguousarray(pixels))
        pixels = np.asarray(image.resize((width, height), Image.Resampling[transform.interpolation.upper()]))
    size = transform.size
    if pixels.shape[:2] == (size, size):
        return pixels
    if min(height, width) < size:  # mode "border"; an odd pixel goes to the bottom and the right, as in timm
        border = [(max(size - side, 0) // 2, (max(size - side, 0) + 1) // 2) for side in (height, width)]
        framed = np.empty((height + sum(border[0]), width + sum(border[1]), 3), np.uint8)
        framed[:] = transform.fill
        framed[border[0][0] : border[0][0] + height, border[1][0] : border[1][0] + width] = pixels
        pixels, (height, width) = framed, framed.shape[:2]
    # torchvision's CenterCrop rounds half to even
    top, left = round((height - size) / 2), round((width - size) / 2)
    return pixels[top : top + size, left : left + size]


def _by_function(pixels: np.ndarray, transform: Transform) -> np.ndarray:
    assert transform.function is not None
    found = np.asarray(transform.function(Image.fromarray(np.ascontiguousarray(pixels))))
    if found.shape != (3, transform.size, transform.size) or found.dtype.kind != "f":
        raise EncoderError(
            f"the transform {transform.function_name} gave {found.dtype} {found.shape} for a patch of "
            f"{pixels.shape[:2]} pixels, and float (3, {transform.size}, {transform.size}) for another one"
        )
    return np.ascontiguousarray(found.transpose(1, 2, 0), np.float32)

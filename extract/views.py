"""Views of a patch and the resize that brings them to an encoder's input size.

    full           the whole patch
    center:F       the central fraction F of each side, 0 < F < 1, as in center:0.5
    mpp:M@S        resampled from S micrometres a pixel to M, the centre kept; what is too small for the input
                   gets a border of the mean's colour. mpp:M takes S of the manifest's header
    stain:METHOD   macenko or reinhard: in the colours of a target; jitter1 to jitter4 (stain:jitter is all
                   four): stains stronger and weaker; see stains.py
    d4:K           K = 1..7 of the 8 flips and rotations (0 is the patch itself, which is called full)
    d4:mean        the mean of the 8 vectors
    d4             short for all of these: the patch itself, d4:1 ... d4:7 and d4:mean
    several in a row, in the order stain, center, mpp, d4, as in stain:macenko+center:0.5+d4:mean

K = 4 * flip + turns: a left-right flip first, then `turns` quarter turns counter-clockwise.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..errors import EncoderError, ImageError, InvalidRequest
from .cards import Transform
from .stains import JITTERS, METHODS, with_stain

if TYPE_CHECKING:
    from torch import Tensor

MEAN = -1  # orientation of a view that averages all eight
_CROP = re.compile(r"center:(0?\.[0-9]+|1(?:\.0*)?)")
_TURN = re.compile(r"d4(?::([0-7]|mean))?")
_SCALE = re.compile(r"mpp:([0-9]*\.?[0-9]+)(?:@([0-9]*\.?[0-9]+))?")
_STAIN = re.compile(rf"stain:({'|'.join(METHODS)}|jitter)")


@dataclass(frozen=True, order=True)
class View:
    """What is done to a patch before the encoder's own transform.

    Attributes
    ----------
    crop
        central fraction of each side, in (0, 1].
    orientation
        0..7, or MEAN.
    mpp, source
        micrometres a pixel that it is resampled to, and those that it has; 0: it is not.
    stain
        one of stains.METHODS, or "".
    """

    crop: float = 1.0
    orientation: int = 0
    mpp: float = 0.0
    source: float = 0.0
    stain: str = ""

    @property
    def name(self) -> str:
        """The canonical name: part of the identity of an embedding."""
        crop = f"center:{self.crop:g}" if self.crop < 1 else ""
        turn = "d4:mean" if self.orientation == MEAN else f"d4:{self.orientation}" if self.orientation else ""
        scale = f"mpp:{self.mpp:g}@{self.source:g}" if self.mpp else ""
        stain = f"stain:{self.stain}" if self.stain else ""
        return "+".join(part for part in (stain, crop, scale, turn) if part) or "full"

    @property
    def pixels(self) -> "View":
        """The same without its orientation: views that agree in it share the pixels that are turned."""
        return replace(self, orientation=0)

    @property
    def orientations(self) -> tuple[int, ...]:
        """The forward passes that it takes."""
        return tuple(range(8)) if self.orientation == MEAN else (self.orientation,)


def parse_views(names: str | Iterable[str], *, mpp: float = 0.0) -> list[View]:
    """Views by name, short names written out, duplicates removed, in the order given.

    Parameters
    ----------
    mpp
        micrometres a pixel of the patches, for names as mpp:0.5; 0: not known.

    Raises
    ------
    InvalidRequest
        a name that is not a view, or mpp:M where the patches' resolution is not known.
    """
    views: list[View] = []
    for name in [names] if isinstance(names, str) else names:
        view, turns, stains = View(), [0], [""]
        last = 0  # the place of the last part in their order
        for part in name.split("+"):
            stain, cut, scale = _STAIN.fullmatch(part), _CROP.fullmatch(part), _SCALE.fullmatch(part)
            turn = _TURN.fullmatch(part)
            position = 1 if stain else 2 if cut else 3 if scale else 4 if turn else 0
            if part == "full" and name == part:
                continue
            if position <= last or (cut and float(cut[1]) <= 0) or (scale and float(scale[1]) <= 0):
                raise InvalidRequest(
                    f"unknown view {name!r}: full, center:F (as in center:0.5), mpp:M@S, stain:METHOD "
                    f"({', '.join(METHODS)}), d4, d4:K, d4:mean, or several in the order stain, center, mpp, "
                    "d4, as in center:0.5+d4:mean"
                )
            last = position
            if stain:
                stains = [*JITTERS] if stain[1] == "jitter" else [stain[1]]
            elif cut:
                view = replace(view, crop=float(cut[1]))
            elif scale:
                source = float(scale[2] or mpp)
                if source <= 0:
                    raise InvalidRequest(
                        f"view {name!r}: the micrometres a pixel of the patches are not known. Fix: say "
                        f"them, {part}@0.25, or set mpp in the manifest's header"
                    )
                view = replace(view, mpp=float(scale[1]), source=source)
            elif turn:
                turns = (
                    [*range(8), MEAN] if turn[1] is None else [MEAN if turn[1] == "mean" else int(turn[1])]
                )
        views += [replace(view, stain=stain, orientation=turn) for stain in stains for turn in turns]
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


def viewed(pixels: np.ndarray, view: View) -> np.ndarray:
    """The patch stained and cropped as the view says, not yet resampled. Raises ImageError."""
    if view.stain:
        pixels = with_stain(pixels, view.stain)
    return crop_pixels(pixels, view.crop)


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


def prepare(pixels: np.ndarray, transform: Transform, view: View | None = None) -> np.ndarray:
    """View, resize and centre-crop one patch: the reference implementation, PIL.

    Parameters
    ----------
    pixels
        uint8, (h, w, 3), RGB.
    transform
        the encoder's.
    view
        what is done first; its orientation is not applied.

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
    view = view or View()
    pixels = viewed(pixels, view)
    if transform.function is not None:
        return _by_function(pixels, transform)
    height, width = resized_shape(pixels.shape[0], pixels.shape[1], transform)
    if view.mpp:
        factor = view.source / view.mpp
        height, width = (max(1, round(side * factor)) for side in pixels.shape[:2])
    if (height, width) != pixels.shape[:2]:
        image = Image.fromarray(np.ascontiguousarray(pixels))
        pixels = np.asarray(image.resize((width, height), Image.Resampling[transform.interpolation.upper()]))
    size = transform.size
    if pixels.shape[:2] == (size, size):
        return pixels
    if min(height, width) < size:  # of mode "border" and mpp; an odd pixel goes to the bottom and the right
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
    resized = np.asarray(transform.function(Image.fromarray(np.ascontiguousarray(pixels))))
    if resized.shape != (3, transform.size, transform.size) or resized.dtype.kind != "f":
        raise EncoderError(
            f"the transform {transform.function_name} gave {resized.dtype} {resized.shape} for a patch of "
            f"{pixels.shape[:2]} pixels, and float (3, {transform.size}, {transform.size}) for another one"
        )
    return np.ascontiguousarray(resized.transpose(1, 2, 0), np.float32)

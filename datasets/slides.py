"""Regions of whole-slide images, through OpenSlide (`pip install patchbank[wsi]`).

A patch is written as `slide.svs::wsi[x,y,w,h,OPTIONS]`:

    x, y        its upper left corner, in pixels of level 0 (may lie outside of the slide)
    w, h        its size in pixels as it is returned
    level=K     read at the pyramid's level K (default 0), or instead
    mpp=M       read at M micrometres a pixel, or
    down=D      read at D level-0 pixels a pixel: from the nearest level that is at least as fine, then
                resized (Pillow's bicubic, which averages when it shrinks)
    mpp0=M      take this as the slide's resolution where the file does not say it, or says it wrongly
    border=C    what lies outside of the slide: "white" (default), "black", six hex digits RRGGBB, or "crop"
                (the patch is cut at the slide's border and then smaller)
"""

import math
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..errors import ImageError, MissingDependency
from .container import Container
from .images import MAX_PIXELS

try:
    import openslide
except ImportError as error:
    raise MissingDependency(
        "whole-slide images need OpenSlide: pip install openslide-python openslide-bin (or patchbank[wsi])"
    ) from error

COLOURS = {"white": "ffffff", "black": "000000"}
_REGION = re.compile(r"wsi\[(-?[0-9]+),(-?[0-9]+),([0-9]+),([0-9]+)((?:,[a-z0-9]+=[^,\]]+)*)\]\Z")
_EQUAL = 1e-3  # scales nearer than this are one: no resize for the 0.2527 that a scanner calls 0.25


@dataclass(frozen=True, kw_only=True)
class Region:
    """x, y: level-0 pixels; width, height: pixels returned. At most one of level, mpp, down is not None."""

    x: int
    y: int
    width: int
    height: int
    level: int | None = None
    mpp: float | None = None
    down: float | None = None
    mpp0: float | None = None
    border: str = "white"

    def __str__(self) -> str:
        options = [
            f",{key}={value}"
            for key in ("level", "mpp", "down", "mpp0", "border")
            if (value := getattr(self, key)) not in (None, "white")
        ]
        return f"wsi[{self.x},{self.y},{self.width},{self.height}{''.join(options)}]"


def parse_region(member: str, name: str) -> Region:
    """The region that "wsi[...]" describes. Raises ImageError; `name` is what it calls the patch."""
    match = _REGION.match(member)
    if match is None:
        raise ImageError(
            f"{name}: a region is written as wsi[x,y,w,h] or wsi[x,y,w,h,mpp=0.5,border=white], not "
            f"{member!r}."
        )
    x, y, width, height = (int(match[k]) for k in range(1, 5))
    options = dict(pair.split("=", 1) for pair in match[5].split(",")[1:])
    try:
        region = Region(
            x=x,
            y=y,
            width=width,
            height=height,
            level=int(options.pop("level")) if "level" in options else None,
            mpp=float(options.pop("mpp")) if "mpp" in options else None,
            down=float(options.pop("down")) if "down" in options else None,
            mpp0=float(options.pop("mpp0")) if "mpp0" in options else None,
            border=options.pop("border", "white"),
        )
    except ValueError as error:
        raise ImageError(f"{name}: {error}.") from None
    scales = [value for value in (region.level, region.mpp, region.down) if value is not None]
    given = [value for value in (region.mpp, region.down, region.mpp0) if value is not None]
    positive = all(v > 0 and math.isfinite(v) for v in given) and (region.level or 0) >= 0
    colour = COLOURS.get(region.border, region.border)
    if options or len(scales) > 1 or not positive or not width or not height:
        raise ImageError(
            f"{name}: {member!r} must have a size, known options (level, mpp, down, mpp0, border) and at "
            "most one positive scale."
        )
    if colour != "crop" and not re.fullmatch(r"[0-9a-fA-F]{6}", colour):
        raise ImageError(f"{name}: border={region.border} is not white, black, crop or six hex digits.")
    return region


def covered(at: np.ndarray, length: int, step: float, limit: int) -> np.ndarray:
    """How many whole pixels of patches lie on the slide along one axis; none or fewer: it lies beside it.

    at : level-0 pixels, any shape; length : of a patch, in its pixels; step : level-0 pixels a pixel of
    it; limit : of the slide, level-0 pixels
    """
    return np.floor((np.minimum(at + length * step, limit) - np.maximum(at, 0)) / step + _EQUAL)


class Slide(Container):
    """One whole-slide image. OpenSlide's handles may be used from several threads."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._slide = self._open()
        # asked now: a handle that met damage answers nothing any more
        self._properties = dict(self._slide.properties)
        self._downsamples = self._slide.level_downsamples
        self.dimensions: tuple[int, int] = self._slide.dimensions
        """Width and height of level 0, pixels."""

    def _open(self) -> openslide.OpenSlide:
        try:
            return openslide.OpenSlide(self.path)
        except openslide.OpenSlideError as error:
            raise ImageError(
                f"{self.path}: OpenSlide cannot open it: {error or 'no slide format that it knows'}."
            ) from error

    def _region(self, at: tuple[int, int], level: int, size: tuple[int, int], name: str) -> Image.Image:
        """RGBA pixels of a level. A handle that met damage always fails, for all its threads: reopen it."""
        handle = self._slide
        try:
            return handle.read_region(at, level, size)
        except openslide.OpenSlideError:
            fresh = self._open()
        try:  # was it this region, or another thread's before?
            return fresh.read_region(at, level, size)
        except openslide.OpenSlideError as error:
            fresh = self._open()
            raise ImageError(f"{name}: OpenSlide cannot read the region: {error}.") from error
        finally:
            self._slide = fresh

    def mpp(self) -> tuple[float, float] | None:
        """Micrometres a level-0 pixel, across and down; None where the file does not say."""
        properties = self._properties
        try:
            across, down = (float(properties[f"openslide.mpp-{axis}"]) for axis in "xy")
        except (KeyError, ValueError):
            return None
        return (across, down) if min(across, down) > 0 else None

    def _read(self, member: str, name: str) -> np.ndarray:
        region = parse_region(member, name)
        scale = self.scale(region, name)  # level-0 pixels per returned pixel, across and down
        levels = self._downsamples
        if region.level is not None:
            level = region.level
        else:
            fine = [k for k, down in enumerate(levels) if down <= min(scale) * (1 + _EQUAL)]
            level = max(fine, key=lambda k: levels[k], default=0)
        width, height = region.width, region.height
        inside = self._inside(region, scale, name)
        if region.border == "crop":
            width, height = inside
        x, y = (max(at, 0) if region.border == "crop" else at for at in (region.x, region.y))
        exact = (width * scale[0] / levels[level], height * scale[1] / levels[level])  # pixels of the level
        same = all(abs(e / n - 1) < _EQUAL for e, n in zip(exact, (width, height), strict=True))
        size = (width, height) if same else (math.ceil(exact[0]), math.ceil(exact[1]))
        if math.prod(size) > MAX_PIXELS:
            raise ImageError(f"{name}: {size[0]} x {size[1]} pixels of the slide are too many for a patch.")
        pixels = self._region((x, y), level, size, name)
        colour = "ffffff" if region.border == "crop" else COLOURS.get(region.border, region.border)
        ground = Image.new("RGBA", pixels.size, f"#{colour}")
        rgb = Image.alpha_composite(ground, pixels).convert("RGB")
        if not same:
            rgb = rgb.resize((width, height), Image.Resampling.BICUBIC, box=(0, 0, *exact))
        return np.array(rgb)

    def scale(self, region: Region, name: str) -> tuple[float, float]:
        """Level-0 pixels a returned pixel, across and down. Raises ImageError: no such level, or unknown."""
        if region.down is not None:
            return region.down, region.down
        if region.mpp is not None:
            native = (region.mpp0, region.mpp0) if region.mpp0 is not None else self.mpp()
            if native is None:
                raise ImageError(
                    f"{name}: the slide does not say its resolution; give --mpp0 or a column mpp0 of --slides"
                )
            return region.mpp / native[0], region.mpp / native[1]
        level = region.level or 0
        if level >= len(self._downsamples):
            raise ImageError(f"{name}: the slide has only the levels 0 to {len(self._downsamples) - 1}.")
        down = self._downsamples[level]
        return down, down

    def thumbnail(self, side: int) -> np.ndarray:
        """The whole slide, uint8 (h, w, 3), its longer side at most `side` pixels.

        Raises ImageError where the file has no level that is small enough to be read at once.
        """
        scale = max(self.dimensions) / side
        level = self._slide.get_best_level_for_downsample(scale)
        size = self._slide.level_dimensions[level]
        if math.prod(size) > MAX_PIXELS:
            raise ImageError(
                f"{self.path}: its smallest level, {size[0]} x {size[1]}, is too large for a thumbnail."
            )
        pixels = self._region((0, 0), level, size, self.path)
        ground = Image.new("RGBA", pixels.size, "white")
        small = Image.alpha_composite(ground, pixels).convert("RGB")
        small.thumbnail((side, side))
        return np.array(small)

    def _inside(self, region: Region, scale: tuple[float, float], name: str) -> tuple[int, int]:
        """The patch's size after it was cut at the slide's border, in returned pixels."""
        size = []
        for at, length, limit, step in zip(
            (region.x, region.y), (region.width, region.height), self.dimensions, scale, strict=True
        ):
            size.append(int(covered(np.array(at), length, step, limit)))
        if min(size) < 1:
            raise ImageError(f"{name}: the region lies outside the slide, which is {self.dimensions} pixels.")
        return size[0], size[1]

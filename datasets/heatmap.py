"""A heat map of a slide: the values of its patches over its thumbnail."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from ..errors import ImageError
from .sources import MARK

if TYPE_CHECKING:
    from .slides import Slide

SIDE = 1024  # pixels of the longer side of a heat map
ALPHA = 0.55
LEGEND = 22  # pixels
LOW, MIDDLE, HIGH = (33, 102, 172), (247, 247, 247), (178, 24, 43)  # ColorBrewer's RdBu: 0, 0.5, 1
COLOURS = (  # of classes: Okabe and Ito 2008
    (213, 94, 0),
    (0, 114, 178),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
    (240, 228, 66),
    (107, 107, 107),
)


def boxes_of(slide: "Slide", paths: Iterable[str]) -> np.ndarray:
    """The regions that paths name: float64 (n, 4), x, y, width, height in pixels of level 0."""
    from .slides import parse_region

    def boxes() -> Iterator[tuple[float, float, float, float]]:
        for path in paths:
            region = parse_region(path.partition(MARK)[2], path)
            across, down = slide.scale(region, path)
            yield region.x, region.y, region.width * across, region.height * down

    return np.array(list(boxes()), np.float64).reshape(-1, 4)


def heat_map(
    slide: "Slide",
    boxes: np.ndarray,
    values: np.ndarray,
    classes: Sequence[str],
    *,
    title: str,
    ends: tuple[str, str] = ("0", "1"),
) -> Image.Image:
    """The thumbnail under the values of its patches, with a legend below.

    values : float64 (n, 1), in 0..1, called `title` from ends[0] to ends[1]; or (n, K), one column a class
    """
    width, height = slide.dimensions
    try:
        ground = slide.thumbnail(SIDE)
    except ImageError:  # no small level: the map alone
        longer = max(width, height) / SIDE
        ground = np.full((max(1, round(height / longer)), max(1, round(width / longer)), 3), 255, np.uint8)
    shape = ground.shape[:2]
    scale = np.array([shape[1] / width, shape[0] / height] * 2)
    total, count = np.zeros((*shape, values.shape[1]), np.float32), np.zeros(shape, np.float32)
    edges = boxes * scale
    first = np.floor(edges[:, :2]).astype(int)
    last = np.maximum(np.ceil(edges[:, :2] + edges[:, 2:]).astype(int), first + 1)
    for (left, top), (right, bottom), value in zip(first.clip(0), last.clip(0), values, strict=True):
        total[top:bottom, left:right] += value
        count[top:bottom, left:right] += 1
    mean = total / np.maximum(count, 1)[..., None]
    if values.shape[1] == 1:
        colour = _gradient(mean[..., 0])
        strip, words = _gradient(np.linspace(0, 1, 120)[None]), [f"{title}: {ends[0]}", ends[1]]
    else:
        palette = np.array([COLOURS[k % len(COLOURS)] for k in range(values.shape[1])], np.float32)
        colour = palette[mean.argmax(axis=2)]
        strip, words = np.repeat(palette, 12, axis=0)[None], [", ".join(classes), ""]
    weight = ALPHA * (count > 0)[..., None]
    picture = (ground * (1 - weight) + colour * weight).round().astype(np.uint8)
    return _with_legend(Image.fromarray(picture), strip, words)


def _gradient(p: np.ndarray) -> np.ndarray:
    """Probabilities (...,) -> float32 (..., 3), 0..255."""
    return np.stack(
        [np.interp(p, (0, 0.5, 1), ends) for ends in zip(LOW, MIDDLE, HIGH, strict=True)], axis=-1
    ).astype(np.float32)


def _with_legend(picture: Image.Image, strip: np.ndarray, words: list[str]) -> Image.Image:
    bar = Image.fromarray(strip.round().astype(np.uint8)).resize((strip.shape[1], LEGEND - 10))
    whole = Image.new("RGB", (max(picture.width, 420), picture.height + LEGEND), "white")
    whole.paste(picture, (0, 0))
    draw, at = ImageDraw.Draw(whole), picture.height + 5
    draw.text((4, at), words[0], fill="black")
    left = 10 + int(draw.textlength(words[0]))
    whole.paste(bar, (left, at))
    draw.text((left + bar.width + 6, at), words[1], fill="black")
    return whole

"""Predictions of the patches of slides: GeoJSON for QuPath, a heat map, and numbers for each slide."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from .cache.export.geojson import write_geojson
from .cache.identity import safe_name
from .datasets.sources import MARK
from .errors import ImageError
from .files import write_atomically
from .prediction import Predictions
from .texts import write_csv

if TYPE_CHECKING:
    from .datasets.slides import Slide

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


def slide_files(predictions: Predictions) -> pd.Series:
    """The file of each patch that is a region of a slide, under the manifest's root; "" of other images."""
    path = predictions.manifest.table["path"].astype(str)
    return path.str.partition(MARK)[0].where(path.str.contains(f"{MARK}wsi[", regex=False), "")


def by_slide(predictions: Predictions) -> pd.DataFrame:
    """One row a slide: slide, patches, and of each class (of two: of the positive one) the number of patches
    called so, their share, and the mean probability: called_CLASS, share_CLASS, mean_probability_CLASS. Of
    numbers mean_TARGET.
    """
    model, rows = predictions.model, []
    binary = "probability" in predictions.table
    for slide, part in predictions.table.groupby(slide_files(predictions).to_numpy(), sort=False):
        row: dict[str, object] = {"slide": slide, "patches": len(part)}
        row |= {f"mean_{target}": part[f"prediction_{target}"].mean() for target in model.about.targets}
        for name in (model.about.positive,) if binary else model.classes:
            called = part["prediction"] == name
            row |= {f"called_{name}": int(called.sum()), f"share_{name}": called.mean()}
            row[f"mean_probability_{name}"] = part["probability" if binary else f"probability_{name}"].mean()
        rows.append(row)
    return pd.DataFrame(rows)


def write_slides(predictions: Predictions, folder: str | Path) -> list[Path]:
    """Write slides.csv (`by_slide`) and, of each slide, NAME.geojson and NAME.png into a folder.

    Patches in the GeoJSON are tiles with the prediction as class and the probabilities (or the predicted
    numbers) as measurements. The heat map is the slide's thumbnail under the probability of the positive
    class, blue to red (of several classes: the colour of the most probable one; of numbers: the first, from
    the lowest to the highest of all slides), mean over patches that overlap.
    Returns the files. Raises MissingDependency (OpenSlide), ImageError, OutputError.
    """
    from .datasets.slides import Slide

    files = slide_files(predictions)
    written = [write_csv(Path(folder) / "slides.csv", by_slide(predictions))]
    model = predictions.model
    columns = [name for name in predictions.table if re.fullmatch("probability(_.*)?", str(name))]
    columns += [f"prediction_{target}" for target in model.about.targets]
    shown = predictions.table[columns].to_numpy(np.float64)
    ends = ("0", "1")
    if model.about.targets:
        low, high = shown[:, 0].min(), shown[:, 0].max()
        shown, ends = (shown[:, :1] - low) / ((high - low) or 1.0), (f"{low:.3g}", f"{high:.3g}")
    classes = list(model.classes)
    if "probability" in columns:  # the positive class first
        classes.sort(key=lambda name: name != model.about.positive)
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(classes)}
    for file, name in zip(names := [f for f in files.unique() if f], _names(names), strict=True):
        rows = np.flatnonzero(files == file)
        table = predictions.table.iloc[rows]
        slide = Slide(str(predictions.manifest.root / file))
        boxes = boxes_of(slide, predictions.manifest.table["path"].iloc[rows])
        written.append(
            write_geojson(
                Path(folder) / f"{name}.geojson",
                boxes,
                ids=predictions.manifest.table["patch_id"].iloc[rows].tolist(),
                classes=None if model.about.targets else table["prediction"].astype(str).tolist(),
                colours=colours,
                measurements={str(column): table[column].to_numpy() for column in columns},
            )
        )
        what = [model.about.targets[0]] if model.about.targets else classes
        title = what[0] if model.about.targets else f"probability of {what[0]}"
        picture = heat_map(slide, boxes, shown[rows], what, title=title, ends=ends)
        written.append(
            write_atomically(Path(folder) / f"{name}.png", lambda to, p=picture: p.save(to, "PNG"))
        )
    return written


def boxes_of(slide: "Slide", paths: pd.Series) -> np.ndarray:
    """The regions that paths name: float64 (n, 4), x, y, width, height in pixels of level 0."""
    from .datasets.slides import parse_region

    def boxes() -> Iterator[tuple[float, float, float, float]]:
        for path in paths:
            region = parse_region(str(path).partition(MARK)[2], str(path))
            across, down = slide.scale(region, str(path))
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


def _names(files: list[str]) -> list[str]:
    """A file name for each slide: without folders and suffix, numbered where two would be the same."""
    found: list[str] = []
    for file in files:
        stem = name = safe_name(Path(file).stem)
        again = 1
        while name in found:
            again += 1
            name = f"{stem}-{again}"
        found.append(name)
    return found

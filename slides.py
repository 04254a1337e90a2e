"""Predictions of the patches of slides: GeoJSON for QuPath, a heat map, and numbers for each slide."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from .cache.export.geojson import write_geojson
from .cache.identity import safe_name
from .datasets.heatmap import COLOURS, boxes_of, heat_map
from .datasets.sources import MARK
from .files import write_atomically
from .prediction import Predictions
from .texts import write_csv


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
        if model.threshold is not None:
            title += f" (called from {model.threshold:.2f})"
        picture = heat_map(slide, boxes, shown[rows], what, title=title, ends=ends)
        written.append(
            write_atomically(Path(folder) / f"{name}.png", lambda to, p=picture: p.save(to, "PNG"))
        )
    return written


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

"""The embedding maps of a page: their points as JSON that page.js draws, their thumbnails as images."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from .markup import render
from .model import EmbeddingMap

GRID = 9999  # points are whole numbers of 0...GRID of the larger side


def maps_html(maps: Sequence[EmbeddingMap], *, labels: Sequence[str]) -> Markup:
    """Controls, canvas and data of the maps. labels : the classes, by code; of two, the positive one last."""
    data, sprites = _data(maps, labels)
    return render(
        "maps.html", maps=maps, sprites=sprites, caption=caption, data=json_script("map-data", data)
    )


def caption(picture: EmbeddingMap) -> str:
    """What is drawn, and how much of it."""
    drawn = f"All {picture.total:,} patches"
    if len(picture.points) < picture.total:
        drawn = f"{len(picture.points):,} of {picture.total:,} patches"
    text = f"{drawn}. {picture.method} of {picture.title}"
    if picture.explained:
        shares = " and ".join(f"{share:.1%}" for share in picture.explained)
        return f"{text}; its axes hold {shares} of the variance, the remaining variance is not shown."
    return f"{text}; neighbouring points are similar, but larger distances carry no meaning."


def json_script(name: str, data: Any) -> Markup:
    """JSON in a page, for `JSON.parse`: nothing in it can end the element or start another."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(f'<script type="application/json" id="{name}">{text}</script>')


def _data(maps: Sequence[EmbeddingMap], labels: Sequence[str]) -> tuple[dict[str, Any], list[bytes]]:
    """Maps of the same patches share their rows and their sprite."""
    rows: list[dict[str, Any]] = []
    sprites: list[bytes] = []
    drawn = []
    for picture in maps:
        datasets, domains = list(dict.fromkeys(picture.dataset)), list(dict.fromkeys(picture.domain))
        row = {
            "id": [str(p) for p in picture.patch_id],
            "label": [int(v) for v in picture.label],
            "dataset": [datasets.index(d) for d in picture.dataset],
            "domain": [domains.index(d) for d in picture.domain],
            "datasets": [str(d) for d in datasets],
            "domains": [str(d) or "not known" for d in domains],
        }
        if row not in rows:
            rows.append(row)
        if picture.sprite and picture.sprite not in sprites:
            sprites.append(picture.sprite)
        points = np.asarray(picture.points, np.float64)
        low, high = points.min(axis=0), points.max(axis=0)
        scaled = (points - low) / (float((high - low).max()) or 1.0) * GRID
        drawn.append(
            {
                "title": picture.title,
                "rows": rows.index(row),
                "x": np.rint(scaled[:, 0]).astype(int).tolist(),
                "y": np.rint(scaled[:, 1]).astype(int).tolist(),
                "sprite": sprites.index(picture.sprite) if picture.sprite else -1,
                "tile": picture.tile,
                "columns": picture.columns,
            }
        )
    return {"maps": drawn, "rows": rows, "labels": list(labels)}, sprites

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


def caption(one: EmbeddingMap) -> str:
    """What is drawn, and how much of it."""
    drawn = f"All {one.total:,} patches"
    if len(one.points) < one.total:
        drawn = f"{len(one.points):,} of {one.total:,} patches"
    text = f"{drawn}. {one.method} of {one.title}"
    if one.explained:
        shares = " and ".join(f"{share:.1%}" for share in one.explained)
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
    for one in maps:
        datasets, domains = list(dict.fromkeys(one.dataset)), list(dict.fromkeys(one.domain))
        row = {
            "id": [str(p) for p in one.patch_id],
            "label": [int(v) for v in one.label],
            "dataset": [datasets.index(d) for d in one.dataset],
            "domain": [domains.index(d) for d in one.domain],
            "datasets": [str(d) for d in datasets],
            "domains": [str(d) or "not known" for d in domains],
        }
        if row not in rows:
            rows.append(row)
        if one.sprite and one.sprite not in sprites:
            sprites.append(one.sprite)
        points = np.asarray(one.points, np.float64)
        low, high = points.min(axis=0), points.max(axis=0)
        scaled = (points - low) / (float((high - low).max()) or 1.0) * GRID
        drawn.append(
            {
                "title": one.title,
                "rows": rows.index(row),
                "x": np.rint(scaled[:, 0]).astype(int).tolist(),
                "y": np.rint(scaled[:, 1]).astype(int).tolist(),
                "sprite": sprites.index(one.sprite) if one.sprite else -1,
                "tile": one.tile,
                "columns": one.columns,
            }
        )
    return {"maps": drawn, "rows": rows, "labels": list(labels)}, sprites

"""The embedding maps of a page: their points as JSON that page.js draws, their thumbnails as images."""

import base64
import json
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from .model import EmbeddingMap

GRID = 9999  # points are whole numbers of 0...GRID of the larger side


def maps_html(maps: Sequence[EmbeddingMap], *, positive: str) -> str:
    """Controls, canvas and data of the maps. positive : what a label of 1 is called."""
    data, sprites = _data(maps, positive)
    options = "".join(
        f'<option value="{i}">{escape(f"{one.method} of {one.title}")}</option>' for i, one in enumerate(maps)
    )
    pick = f'<label>Map <select id="which">{options}</select></label>' if len(maps) > 1 else ""
    colours = "".join(
        f'<button type="button" data-colour="{key}" aria-pressed="{"true" if key == "label" else "false"}">'
        f"{text}</button>"
        for key, text in (("label", "Label"), ("dataset", "Data set"), ("domain", "Domain"))
    )
    images = "".join(
        f'<img hidden alt="" id="sprite{k}" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'
        for k, jpeg in enumerate(sprites)
    )
    captions = "".join(
        f'<p class="caption" data-map="{i}"{" hidden" if i else ""}>{escape(caption(one))}</p>'
        for i, one in enumerate(maps)
    )
    keys = (
        "Point, touch, or use the keys: ← → go through the points from left to right, ↑ ↓ from bottom to "
        "top, Home and End to the ends, Esc closes. A click on an entry of the legend shows it alone."
    )
    return (
        f'<div class="controls js">{pick}<span class="colours" role="group" aria-label="Colour">{colours}'
        '</span></div><div class="maps"><div id="map" class="js" tabindex="0" role="application" '
        'aria-label="Map of patches" aria-describedby="map-help"><canvas></canvas><div id="tip" hidden>'
        '<canvas width="96" height="96"></canvas><div></div></div></div>'
        f'<div class="aside"><div id="legend" class="legend js"></div>{captions}'
        f'<p id="map-help" class="js"><small>{keys}</small></p></div></div>'
        '<p id="map-live" class="unseen" role="status" aria-live="polite"></p>'
        "<noscript><p>The maps are drawn by JavaScript.</p></noscript>"
        f"{images}{json_script('map-data', data)}"
    )


def caption(one: EmbeddingMap) -> str:
    """What is drawn, and how much of it."""
    drawn = f"{len(one.points):,} of {one.total:,} patches" if len(one.points) < one.total else "All patches"
    if len(one.points) >= one.total:
        drawn = f"All {one.total:,} patches"
    text = f"{drawn}. {one.method} of {one.title}"
    if one.explained:
        shares = " and ".join(f"{share:.1%}" for share in one.explained)
        return f"{text}; its axes hold {shares} of the variance, all the rest is not to be seen here."
    return f"{text}; neighbours are near each other, but distances between far points mean nothing."


def json_script(name: str, data: Any) -> str:
    """JSON in a page, for `JSON.parse`: nothing in it can end the element or start another."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{name}">{text}</script>'


def _data(maps: Sequence[EmbeddingMap], positive: str) -> tuple[dict[str, Any], list[bytes]]:
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
    return {"maps": drawn, "rows": rows, "labels": [f"not {positive}", positive]}, sprites

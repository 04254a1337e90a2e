"""Rectangles of a slide as GeoJSON that QuPath opens (File > Import objects from file).

One FeatureCollection a slide; each patch is a Feature with a closed Polygon in pixels of level 0, origin at
the upper left (RFC 7946). QuPath reads of its properties the `objectType`, a `classification` with name and
colour, and `measurements`, numbers by their names (https://qupath.readthedocs.io, "GeoJSON").
"""

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InvalidRequest
from ...files import write_atomically

if TYPE_CHECKING:
    import numpy as np

OBJECT_TYPES = ("tile", "detection", "annotation")


def write_geojson(
    file: str | os.PathLike[str],
    boxes: "np.ndarray",
    *,
    ids: Sequence[str],
    names: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    colours: Mapping[str, tuple[int, int, int]] | None = None,
    measurements: "Mapping[str, np.ndarray] | None" = None,
    object_type: str = "tile",
) -> Path:
    """Write patches as one FeatureCollection, a feature a line.

    boxes : float (n, 4), x, y, width, height in pixels of level 0
    ids : n texts, different ones; a feature's UUID is made of its text, so that the same patch has the same
    names, classes : n texts (""  = none) shown as an object's name and its classification
    colours : class -> red, green, blue, 0..255
    measurements : name -> float (n,); a NaN is left out
    object_type : one of OBJECT_TYPES
    Returns the file. Raises InvalidRequest (columns of another length, a box that is not finite or has no
    area, another type), OutputError.
    """
    columns = {"ids": ids, "names": names, "classes": classes, **(measurements or {})}
    odd = [name for name, column in columns.items() if column is not None and len(column) != len(boxes)]
    if odd or boxes.ndim != 2 or boxes.shape[1:] != (4,):
        raise InvalidRequest(
            f"boxes {boxes.shape} must be (n, 4), with one entry a box in {', '.join(odd) or 'each column'}"
        )
    wrong = [name for name, box in zip(ids, boxes.tolist(), strict=True) if not _has_area(*box)]
    if wrong:
        raise InvalidRequest(f"{len(wrong)} boxes have no area or are not finite; the first is of {wrong[0]}")
    if object_type not in OBJECT_TYPES:
        raise InvalidRequest(f"object_type {object_type!r} is not one of {', '.join(OBJECT_TYPES)}")

    def properties_of(i: int) -> dict[str, Any]:
        properties: dict[str, Any] = {"objectType": object_type}
        if names is not None and names[i]:
            properties["name"] = names[i]
        if classes is not None and classes[i]:
            colour = {"color": list(colours[classes[i]])} if colours and classes[i] in colours else {}
            properties["classification"] = {"name": classes[i], **colour}
        values = {name: float(column[i]) for name, column in (measurements or {}).items()}
        values = {name: value for name, value in values.items() if value == value}
        if values:
            properties["measurements"] = values
        return properties

    def write(to: Path) -> None:
        with to.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write('{"type": "FeatureCollection", "features": [\n')
            for i in range(len(boxes)):
                feature = _feature(ids[i], boxes[i].tolist(), properties_of(i))
                line = json.dumps(feature, ensure_ascii=False, allow_nan=False)
                stream.write(line + (",\n" if i + 1 < len(boxes) else "\n"))
            stream.write("]}\n")

    return write_atomically(file, write)


def _feature(name: str, box: Sequence[float], properties: Mapping[str, Any]) -> dict[str, Any]:
    x, y, width, height = map(_whole, box)
    right, bottom = x + width, y + height
    ring = [[x, y], [right, y], [right, bottom], [x, bottom], [x, y]]
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"patchbank:{name}")),
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": properties,
    }


def _has_area(x: float, y: float, width: float, height: float) -> bool:
    return abs(x + y + width + height) < 1e12 and width > 0 < height


def _whole(value: float) -> int | float:
    """Pixels without a ".0"."""
    return int(value) if value == int(value) else value

"""GeoJSON for QuPath: what its documentation says an importable object is, over all of a file."""

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patchbank.cache.export.geojson import OBJECT_TYPES, write_geojson
from patchbank.errors import InvalidRequest

BOXES = np.array([[0, 0, 256, 256], [256, 0, 256, 256], [10.5, 20, 100, 50]], float)
IDS = ["a/1", "a/2", "a/ü"]


def check(document: dict[str, Any]) -> None:
    """RFC 7946, and the properties that QuPath reads."""
    assert document["type"] == "FeatureCollection"
    for feature in document["features"]:
        assert feature["type"] == "Feature"
        uuid.UUID(feature["id"])
        assert feature["geometry"]["type"] == "Polygon"
        (ring,) = feature["geometry"]["coordinates"]
        assert len(ring) >= 4
        assert ring[0] == ring[-1]
        assert all(len(point) == 2 for point in ring)
        about = feature["properties"]
        assert set(about) <= {"objectType", "name", "classification", "measurements", "isLocked"}
        assert about["objectType"] in OBJECT_TYPES
        if "classification" in about:
            assert about["classification"]["name"]
            colour = about["classification"].get("color", [0, 0, 0])
            assert len(colour) == 3
            assert all(isinstance(part, int) and 0 <= part <= 255 for part in colour)
        assert all(isinstance(value, float) for value in about.get("measurements", {}).values())
    assert len({feature["id"] for feature in document["features"]}) == len(document["features"])


def test_a_slide(tmp_path: Path) -> None:
    file = write_geojson(
        tmp_path / "a.geojson",
        BOXES,
        ids=IDS,
        classes=["tumor", "normal", ""],
        colours={"tumor": (255, 0, 0)},
        measurements={"p": np.array([0.9, 0.25, np.nan])},
    )
    document = json.loads(file.read_text("utf-8"))
    check(document)
    first, second, third = document["features"]
    assert first["geometry"]["coordinates"] == [[[0, 0], [256, 0], [256, 256], [0, 256], [0, 0]]]
    assert first["properties"]["classification"] == {"name": "tumor", "color": [255, 0, 0]}
    assert second["properties"]["measurements"] == {"p": 0.25}
    assert third["properties"] == {"objectType": "tile"}
    assert third["geometry"]["coordinates"][0][2] == [110.5, 70]
    again = write_geojson(tmp_path / "b.geojson", BOXES[1:], ids=IDS[1:])
    assert json.loads(again.read_text("utf-8"))["features"][0]["id"] == second["id"]


def test_no_patches_are_an_empty_collection(tmp_path: Path) -> None:
    document = json.loads(write_geojson(tmp_path / "a.geojson", np.empty((0, 4)), ids=[]).read_text())
    assert document == {"type": "FeatureCollection", "features": []}


def test_what_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.geojson"
    with pytest.raises(InvalidRequest, match="one entry a box in classes"):
        write_geojson(file, BOXES, ids=IDS, classes=["a"])
    with pytest.raises(InvalidRequest, match=r"must be \(n, 4\)"):
        write_geojson(file, BOXES[:, :3], ids=IDS)
    for value in (np.nan, np.inf, 0.0, -1.0):
        boxes = BOXES.copy()
        boxes[1, 2] = value
        with pytest.raises(
            InvalidRequest, match="1 boxes have no area or are not finite; the first is of a/2"
        ):
            write_geojson(file, boxes, ids=IDS)
    with pytest.raises(InvalidRequest, match="not one of tile"):
        write_geojson(file, BOXES, ids=IDS, object_type="cell")
    assert not file.exists()

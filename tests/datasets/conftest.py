"""Small images and manifests that these tests share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from patchbank.datasets.manifest import Header, Manifest
from PIL import Image

TOY: dict[str, Any] = {"name": "toy", "version": "1", "classes": ("bad", "good"), "positive": "bad"}


def picture(number: int, size: int = 16) -> np.ndarray:
    """uint8 (size, size, 3), another one for each number."""
    return np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)


@pytest.fixture
def pixels() -> Callable[..., np.ndarray]:
    return picture


@pytest.fixture
def write_images() -> Callable[..., None]:
    """write_images(folder, {"a/b.png": 7}): picture 7 as folder/a/b.png."""

    def write(folder: Path, numbers: dict[str, int], size: int = 16) -> None:
        for name, number in numbers.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(number, size)).save(file)

    return write


@pytest.fixture
def header() -> Header:
    return Header(**TOY, licence="CC0-1.0", source="made here")


@pytest.fixture
def toy(tmp_path: Path, header: Header, write_images: Callable[..., None]) -> Manifest:
    """Eight images of four groups, six in "train"."""
    names = [f"{i}.png" for i in range(8)]
    write_images(tmp_path / "images", {name: i for i, name in enumerate(names)})
    table = pd.DataFrame(
        {
            "patch_id": [f"toy/{i}" for i in range(8)],
            "path": names,
            "label": ["bad", "good"] * 4,
            "group": [f"g{i // 2}" for i in range(8)],
            "domain": "here",
            "split": ["train"] * 6 + ["test"] * 2,
        }
    )
    return Manifest(header, table, tmp_path / "images")


@pytest.fixture
def write_slide() -> Callable[..., None]:
    """write_slide(file, pixels): a tiled TIFF with levels at 1, 1/2 and 1/4 (every second pixel)."""
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("openslide")

    def write(file: Path, pixels: np.ndarray, mpp: float | None = 0.25) -> None:
        with tifffile.TiffWriter(file) as writer:
            for level in range(3):
                resolution = (
                    {}
                    if mpp is None
                    else {
                        "resolution": (10_000 / mpp / 2**level,) * 2,
                        "resolutionunit": "CENTIMETER",
                    }
                )
                writer.write(
                    np.ascontiguousarray(pixels[:: 2**level, :: 2**level]),
                    tile=(64, 64),
                    photometric="rgb",
                    subfiletype=int(level > 0),
                    **resolution,
                )

    return write

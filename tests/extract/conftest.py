"""Encoders whose vectors can be computed by hand, and pictures on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from patchbank.datasets.images import content_hash
from patchbank.datasets.manifest import Header, Manifest
from patchbank.extract.cards import Card, Transform
from PIL import Image

SIDE = 16


class MeanRGB:
    """The mean of every channel, 0..255 (mean 0, std 1/255 undo the scaling). Counts its forward passes."""

    def __init__(self) -> None:
        self.seen = 0
        self.before: Callable[[torch.Tensor], None] = lambda batch: None

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        self.before(batch)
        self.seen += len(batch)
        return batch.mean(dim=(2, 3))


def python_card(name: str, function: Any, transform: Transform) -> Card:
    """A card of a function of batches to (n, 3)."""
    about: dict[str, Any] = {"kind": "python", "model": f"tests:{name}", "revision": "1", "tokens": "pooled"}
    return Card(id=name, **about, dim=3, transform=transform, factory=lambda: function)


def _rgb_card(function: Any, **changes: Any) -> Card:
    shape = Transform(size=SIDE, mean=(0, 0, 0), std=(1 / 255, 1 / 255, 1 / 255))
    return python_card("mean-rgb", function, shape).replace(**changes)


@pytest.fixture
def rgb() -> MeanRGB:
    return MeanRGB()


@pytest.fixture
def make_manifest(tmp_path: Path) -> Callable[..., Manifest]:
    """make(n, name=..., hashed=..., first=...) writes n different PNGs and gives their manifest."""

    def make(n: int, *, name: str = "toy", hashed: bool = True, first: int = 0, side: int = SIDE) -> Manifest:
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        rows = []
        for number in range(first, first + n):
            pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"{number}.png")
            rows.append(
                {
                    "patch_id": f"{name}/{number}",
                    "path": f"{number}.png",
                    "label": "a" if number % 2 else "b",
                    "group": "",
                    "domain": "",
                    "split": "train",
                    "content_hash": content_hash(pixels).hex() if hashed else "",
                }
            )
        header = Header(
            name=name, version="1", classes=("a", "b"), positive="a", licence="none", source="test"
        )
        manifest = Manifest(header=header, table=pd.DataFrame(rows), root=root)
        manifest.save(tmp_path / f"{name}.toml")
        return manifest

    return make


@pytest.fixture
def rgb_card(rgb: MeanRGB) -> Callable[..., Card]:
    """rgb_card(**changes) is the card of the fixture `rgb`; function=... takes another callable."""
    return lambda function=rgb, **changes: _rgb_card(function, **changes)


@pytest.fixture
def expected_rgb() -> Callable[[Manifest], np.ndarray]:
    """What MeanRGB gives for every row, float64, (n, 3)."""

    def expect(manifest: Manifest) -> np.ndarray:
        rows = [np.asarray(Image.open(manifest.path(i))) for i in range(len(manifest))]
        return np.stack([row.reshape(-1, 3).mean(axis=0) for row in rows])

    return expect


@pytest.fixture
def keys_of() -> Callable[[Manifest], np.ndarray]:
    """Content hashes of all rows, uint8, (n, 16)."""

    def keys(manifest: Manifest) -> np.ndarray:
        rows = [content_hash(np.asarray(Image.open(manifest.path(i)))) for i in range(len(manifest))]
        return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 16)

    return keys

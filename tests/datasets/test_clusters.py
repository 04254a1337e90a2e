"""Near-identical images of sets without known groups are kept together."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from patchbank.datasets import builders
from patchbank.datasets.builders import build_manifest
from patchbank.datasets.clusters import candidates, clusters
from patchbank.datasets.folds import effective_groups
from patchbank.datasets.manifest import Manifest, load_manifest
from patchbank.datasets.synthetic import Stain, draw_patch
from PIL import Image

WriteImages = Callable[..., None]


STAIN = Stain(1.00, 0.55, (0.00, 0.00, 0.00), 0.6, (1.00, 1.00, 1.00))


def tissue(seed: int) -> Image.Image:
    """One patch, 128 x 128, as the synthetic sets have it."""
    return Image.fromarray(draw_patch(0.3, STAIN, np.random.default_rng(seed)))


def near(image: Image.Image, how: str) -> Image.Image:
    pixels = np.asarray(image).astype(float)
    if how == "one bit":
        changed = np.asarray(image).copy()
        changed[5, 5, 0] ^= 1
        return Image.fromarray(changed)
    if how == "jpeg":
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=60)
        return Image.open(stream)
    if how == "resized":
        return image.resize((160, 160), Image.Resampling.BICUBIC)
    return Image.fromarray(np.clip(pixels * 0.9 + 12, 0, 255).astype(np.uint8))  # brighter


def build(folder: Path, images: list[Image.Image], **columns: list[str]) -> tuple[Manifest, list[str]]:
    for i, image in enumerate(images):
        image.save(folder / f"{i}.png")
    names = {"path": [f"{i}.png" for i in range(len(images))], **columns}
    pd.DataFrame(names).to_csv(folder / "t.csv", index=False)
    said: list[str] = []
    built = build_manifest(
        "from-csv", folder, dataset="t", table=folder / "t.csv", progress=False, on_note=said.append
    )
    return built, said


@pytest.mark.parametrize("how", ["one bit", "jpeg", "resized", "brighter"])
def test_near_identical_images_are_one_cluster(tmp_path: Path, how: str) -> None:
    images = [tissue(i) for i in range(30)]
    built, said = build(
        tmp_path, [*images, near(images[3], how), near(near(images[3], how), "one bit"), images[9]]
    )
    groups = effective_groups(built)
    assert groups[[3, 30, 31]].tolist() == ["t/3"] * 3
    assert groups[[9, 32]].tolist() == ["t/9"] * 2
    assert len(set(groups)) == 30
    assert said == [
        "5 rows are identical or near-identical to others; their 2 clusters are kept together in folds"
    ]
    again = load_manifest(built.save(tmp_path / "made.toml"))
    assert effective_groups(again).tolist() == groups.tolist()
    assert not again.groups_known


def test_different_images_and_flat_ones_are_not(tmp_path: Path) -> None:
    flat = [Image.new("RGB", (64, 64), (v, v, v)) for v in (240, 241, 242)]
    built, said = build(tmp_path, [*(tissue(i) for i in range(30)), *flat])
    assert len(set(effective_groups(built))) == 33
    assert "content_cluster" not in built.table.columns
    assert said == []


def test_sets_whose_groups_are_known_are_not_searched(tmp_path: Path) -> None:
    images = [tissue(0), near(tissue(0), "one bit"), tissue(1)]
    built, _ = build(tmp_path, images, group=["s1", "s2", "s3"])
    assert "content_cluster" not in built.table.columns
    built, _ = build(tmp_path, images, group=["s1", "", "s3"])
    assert effective_groups(built).tolist() == ["s1", "s1", "s3"], "the group that the cluster has"


def test_too_many_rows_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builders, "MOST", 2)
    assert build(tmp_path, [tissue(i) for i in range(3)])[1] == [
        "near-identical images were not looked for: 3 rows are more than 2"
    ]


def test_pairs_over_blocks_and_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (50, 16, 16), dtype=np.uint8)
    small[[40, 49]] = small[3]
    monkeypatch.setattr("patchbank.datasets.clusters.BLOCK", 7)
    assert candidates(small).tolist() == [[3, 40], [3, 49], [40, 49]]
    assert clusters(np.array([[3, 40], [40, 49]]), 50)[[3, 40, 49, 0]].tolist() == [3, 3, 3, 0]
    assert clusters(np.zeros((0, 2), int), 3).tolist() == [0, 1, 2]


@pytest.mark.shared
def test_atnorm_br(shared: Path) -> None:
    """62 files of 27 groups are identical; no other two are alike."""
    said: list[str] = []
    built = build_manifest("atnorm-br", shared / "data", progress=False, on_note=said.append)
    assert not built.groups_known
    assert len(set(effective_groups(built))) == 711

"""Tiny transformers and patches whose label can be seen, shared by the tests of fine-tuning."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from patchbank.datasets.manifest import Header, Manifest
from patchbank.extract.cards import Card, parse_card
from patchbank.extract.models.network import TimmNetwork
from patchbank.finetune.labels import TWO_CLASSES
from patchbank.finetune.model import classifier
from patchbank.finetune.recipe import Recipe, load_recipe
from patchbank.finetune.train import Patches
from patchbank.probe.config import ProbeConfig
from patchbank.probe.results.files import ProbeResult
from PIL import Image
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

CARD = (Path(__file__).resolve().parents[1] / "data" / "tiny-vit.toml").read_text("utf-8")
TINY = parse_card(CARD, origin="tiny-vit.toml")


def tiny_vit(card: Card = TINY, _: object = None) -> TimmNetwork:
    """Dim 32, depth 2, 16 patch tokens of 8 px, LayerScale; the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = VisionTransformer(
            img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0, init_values=0.5
        )
        return TimmNetwork(model, card)


def tiny_patches(n: int, *, seed: int, name: str = "tiny") -> Patches:
    """uint8 (40, 40, 3): a third of them have a bluer square in the middle, with noise all over."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % 3 == 0).astype(np.float32)
    pixels = rng.integers(90, 200, (n, 40, 40, 3)).astype(np.float64)
    pixels[labels == 1, 10:30, 10:30] += (-40, -20, 30)
    pixels = pixels.clip(0, 255).astype(np.uint8)
    return Patches([f"{name}/{i}" for i in range(n)], labels, lambda i: pixels[i])


def tiny_recipe(**changes: object) -> Recipe:
    small = {
        "epochs": 4,
        "batch_size": 8,
        "lr": 5e-3,
        "warmup": 0.5,
        "rank": 4,
        "patience": 4,
        "dropout": 0.2,
    }
    return load_recipe("lora", **{**small, "weight_decay": 0.0, **changes})


@pytest.fixture(scope="session")
def whole_results() -> Callable[..., dict[str, Any]]:
    """results.json of given sets, with the least of all that it has to have."""

    def make(data: list[dict[str, Any]], **about: Any) -> dict[str, Any]:
        words = dict.fromkeys(("name", "version", "licence", "source", "positive"), "any")
        numbers = {"n": 200, "n_positive": 100, "n_groups": 20, "n_distinct": 200}
        return {
            "config": ProbeConfig(features=("any",)).to_dict(),
            "provenance": {},
            "data": [{**words, "group_kind": "slide", **numbers, **one} for one in data],
            "folds": {"name": "any", "n_splits": 5},
            "chosen": "any",
            "models": [],
            "scores": [],
            **about,
        }

    return make


@pytest.fixture
def results(whole_results: Callable[..., dict[str, Any]]) -> Callable[..., ProbeResult]:
    return partial(_results, whole_results)


def _results(
    whole_results: Callable[..., dict[str, Any]],
    values: dict[str, tuple[float, float, float]],
    p_holm: float = 0.001,
) -> ProbeResult:
    """What the rule reads of a probe's results: two feature sets an encoder, the first a little better."""
    names = list(values)
    best = max(values, key=lambda e: values[e][0])
    models, scores = [], []
    for encoder, (v, low, high) in values.items():
        for view, less in (("center:0.5", 0.0), ("full", 0.05)):
            features = f"{encoder}/{view}/cls"
            about = {"threshold": 0.5, "temperature": 1.0, "platt": [1.0, 0.0]}
            models.append({"features": features, "criterion": v - less, **about})
            cell = [v - less, low - less, high - less]
            record: dict[str, Any] = {"features": features, "role": "oof", "subset": "raw", "domain": ""}
            record |= {"n": 1000, "n_positive": 300}
            scores.append(
                {**record, "dataset": "set:train", "metrics": {"auroc": cell, "balanced_accuracy": cell}}
            )
    comparisons = [
        {
            "dataset": "set:train",
            "role": "oof",
            "metric": "auroc",
            "test": "paired over groups",
            "a": f"{encoder}/center:0.5/cls",
            "b": f"{best}/center:0.5/cls",
            "difference": values[encoder][0] - values[best][0],
            "low": values[encoder][0] - values[best][0] - 0.02,
            "high": values[encoder][0] - values[best][0] + 0.02,
            "p": p_holm,
            "p_holm": p_holm,
        }
        for encoder in names
        if encoder != best
    ]
    document = whole_results(
        [{"dataset": "set:train", "n": 1000}, {"dataset": "other", "n": 500}],
        models=models,
        scores=scores,
        comparisons=comparisons,
    )
    return ProbeResult(document, pd.DataFrame())


def tiny_manifest(folder: Path, *, n: int = 60, seed: int = 0, name: str = "tiny", test: int = 0) -> Manifest:
    """The patches as PNG files, ten groups; the last `test` rows are the split "test", other groups."""
    patches = tiny_patches(n, seed=seed, name=name)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.fromarray(patches.read(i)).save(folder / f"{i}.png")
    is_test = np.arange(n) >= n - test
    table = pd.DataFrame(
        {
            "patch_id": patches.ids,
            "path": [f"{i}.png" for i in range(n)],
            "label": np.where(patches.labels == 1, "odd", "plain"),
            "group": [f"{'t' if held else 'g'}{i % 10}" for i, held in enumerate(is_test)],
            "domain": "",
            "split": np.where(is_test, "test", "train"),
        }
    )
    header = Header(
        name=name,
        version="1",
        classes=("plain", "odd"),
        positive="odd",
        licence="CC0",
        source="made by a test",
    )
    return Manifest(header, table, folder)


GRADES = ("low", "middle", "high")


def tiny_grades(n: int, *, seed: int, name: str = "grades") -> tuple[Patches, np.ndarray]:
    """As `tiny_patches`, the square bluer by grade 0, 1 or 2; and how blue it is, (n,), 0 .. 2.5."""
    rng = np.random.default_rng(seed)
    grades = np.arange(n) % 3
    blue = grades + rng.uniform(0, 0.5, n)
    pixels = rng.integers(90, 170, (n, 40, 40, 3)).astype(np.float64)
    pixels[:, 8:32, 8:32] += blue[:, None, None, None] * np.array([-35.0, -20.0, 30.0])
    pixels = pixels.clip(0, 255).astype(np.uint8)
    return Patches([f"{name}/{i}" for i in range(n)], grades, lambda i: pixels[i]), blue


def tiny_labelled(
    folder: Path, kind: str, *, n: int = 60, seed: int = 0, name: str = "grades", test: int = 0
) -> Manifest:
    """`tiny_grades` as PNG files in twelve groups. kind : "classes", "grades" or "numbers": blue (as it is)
    and dark (-200 x it + 5).
    """
    patches, blue = tiny_grades(n, seed=seed, name=name)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.fromarray(patches.read(i)).save(folder / f"{i}.png")
    is_test = np.arange(n) >= n - test
    about: dict[str, Any] = {"classes": GRADES, "ordered": kind == "grades"}
    columns: dict[str, Any] = {"label": np.array(GRADES, dtype=object)[patches.labels]}
    if kind == "numbers":
        about, columns = {"targets": ("blue", "dark")}, {"label": "", "blue": blue, "dark": -200 * blue + 5}
    table = pd.DataFrame(
        {
            "patch_id": patches.ids,
            "path": [f"{i}.png" for i in range(n)],
            **columns,
            "group": [f"{'t' if held else 'g'}{i % 12}" for i, held in enumerate(is_test)],
            "domain": np.where(np.arange(n) % 2, "a", "b"),
            "split": np.where(is_test, "test", "train"),
        }
    )
    header = Header(name=name, version="1", licence="CC0", source="made by a test", **about)
    return Manifest(header, table, folder)


@pytest.fixture
def tiny_encoder(tmp_path: Path) -> tuple[str, Path]:
    """A card and the file of its weights, those of tiny_vit()."""
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "tiny-vit.toml").write_text(CARD)
    save_file(tiny_vit().model.state_dict(), folder / "weights.safetensors")
    return str(folder / "tiny-vit.toml"), folder / "weights.safetensors"


@pytest.fixture
def tiny() -> Iterator[SimpleNamespace]:
    """card, vit(), patches(n, seed=), manifest(folder), recipe(**changes), network(recipe); one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield SimpleNamespace(
        card=TINY,
        vit=tiny_vit,
        patches=tiny_patches,
        manifest=tiny_manifest,
        recipe=tiny_recipe,
        grades=tiny_grades,
        labelled=tiny_labelled,
        network=lambda recipe, labels=TWO_CLASSES: classifier(
            TINY, recipe, weights=None, labels=labels, build=tiny_vit
        )[0],
    )
    torch.set_num_threads(threads)

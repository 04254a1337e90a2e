"""Tiny transformers and patches whose label can be seen, shared by the tests of fine-tuning."""

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from patchbank.extract.cards import Card, Transform
from patchbank.finetune.model import classifier
from patchbank.finetune.recipe import Recipe, load_recipe
from patchbank.finetune.train import Patches
from timm.models.vision_transformer import VisionTransformer

TINY = Card(
    id="tiny-vit",
    model="vit_tiny_patch16_224",
    dim=32,
    grid=16,
    prefix=1,
    tokens="cls",
    precision="fp32",
    transform=Transform(size=32),
)


def tiny_vit(_: Card | None = None) -> VisionTransformer:
    """Dim 32, depth 2, 16 patch tokens of 8 px, LayerScale; the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return VisionTransformer(
            img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0, init_values=0.5
        )


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


@pytest.fixture
def tiny() -> Iterator[SimpleNamespace]:
    """card, vit(), patches(n, seed=), recipe(**changes), network(recipe); one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield SimpleNamespace(
        card=TINY,
        vit=tiny_vit,
        patches=tiny_patches,
        recipe=tiny_recipe,
        network=lambda recipe: classifier(TINY, recipe, build=tiny_vit)[0],
    )
    torch.set_num_threads(threads)

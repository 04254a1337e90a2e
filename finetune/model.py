"""The network that is trained: an encoder's backbone, a token policy and one linear layer."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import EncoderError, InvalidRequest
from ..extract.cards import Card, Transform
from ..extract.tokens import parse_policy, select, vector_dim
from ..extract.views import crop_box, parse_views, prepare
from .lora import add_lora
from .recipe import STATISTICS, Recipe


class Classifier(nn.Module):
    """backbone -> tokens -> vector -> logit of the positive class.

    backbone : a timm model without a head (`forward_features`; `forward_head` for the policy "pooled")
    transform : of the input; what `prepare` does
    prefix : tokens before the patch tokens
    pooling : "cls", "mean", "cls+mean" or "pooled"; dim : width of that vector
    """

    def __init__(
        self, backbone: nn.Module, *, transform: Transform, prefix: int, pooling: str, dim: int, seed: int
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.transform, self.prefix, self.pooling, self.dim = transform, prefix, pooling, dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = nn.Linear(dim, 1)
        self._mean = np.asarray(transform.mean, np.float32)
        self._std = np.asarray(transform.std, np.float32)

    def prepare(self, pixels: np.ndarray, *, sized: bool = False) -> Tensor:
        """uint8 (h, w, 3) -> float32 (3, size, size), normalised; `sized` pixels are not resized or cropped again."""
        size = self.transform.size
        if not sized:
            pixels = prepare(pixels, self.transform)
        if pixels.shape != (size, size, 3):
            raise InvalidRequest(
                f"the augmentation makes {pixels.shape[1]} x {pixels.shape[0]} pixels, and the encoder's input is {size} x "
                f"{size}: set the step's size to {size}, or the recipe's input_size"
            )
        values = (pixels.astype(np.float32) / 255 - self._mean) / self._std
        return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))

    def embed(self, batch: Tensor) -> Tensor:
        """float (b, 3, s, s) -> float32 (b, dim)."""
        features: Any = self.backbone.forward_features(batch)  # pyright: ignore[reportCallIssue]
        if self.pooling == "pooled":
            return self.backbone.forward_head(features, pre_logits=True).float()  # pyright: ignore[reportCallIssue]
        return select(features, self.prefix, self.pooling)

    def forward(self, batch: Tensor) -> Tensor:
        """float (b, 3, s, s) -> logits (b,)."""
        return self.head(self.embed(batch)).squeeze(-1)


def classifier(
    card: Card, recipe: Recipe, *, build: Callable[[Card], nn.Module], seed: int | None = None
) -> tuple[Classifier, list[str]]:
    """The network of a recipe, ready to train: (it, names of the adapted layers within the backbone).

    card : as `card_for` made it; build : gives the backbone of a card, with its weights
    """
    seed = recipe.seed if seed is None else seed
    policy = policy_of(card, recipe)
    parsed = parse_policy(policy)
    backbone = build(card)
    if recipe.checkpointing:
        if not hasattr(backbone, "set_grad_checkpointing"):
            raise EncoderError(f"{card.id} cannot recompute activations: set checkpointing = false")
        backbone.set_grad_checkpointing(True)  # pyright: ignore[reportCallIssue]
    names: list[str] = []
    if recipe.method == "lora":
        names = add_lora(backbone, recipe, seed=seed)
    else:
        backbone.requires_grad_(True)
    network = Classifier(
        backbone,
        transform=card.transform,
        prefix=card.prefix,
        pooling=parsed.pooling,
        dim=vector_dim(card, parsed),
        seed=seed,
    )
    return network, names


def policy_of(card: Card, recipe: Recipe) -> str:
    """The token policy of a recipe on this card. Raises InvalidRequest for one that cannot be trained on."""
    policy = card.tokens if recipe.tokens == "card" else recipe.tokens
    if policy not in ("cls", "mean", "cls+mean", "pooled"):
        raise InvalidRequest(f"tokens {policy!r}: fine-tuning knows cls, mean, cls+mean and pooled")
    vector_dim(card, parse_policy(policy))  # refuses what this encoder has not
    return policy


def card_for(card: Card, recipe: Recipe) -> Card:
    """The card with the recipe's input size and, where it repeats a publication's quirk, its normalisation."""
    shape = card.transform
    if recipe.input_size and (recipe.input_size, recipe.input_size) != (shape.size, shape.resize):
        size = recipe.input_size
        grid, arguments = card.grid, dict(card.arguments)
        if card.grid and size != shape.size:
            side = round(card.grid**0.5) * size / shape.size
            if side != int(side):
                raise InvalidRequest(
                    f"input_size {size} does not fit {card.id}: its patches need a multiple of "
                    f"{shape.size // round(card.grid**0.5)} pixels"
                )
            grid, arguments["img_size"] = int(side) ** 2, size
        card = replace(card, grid=grid, arguments=arguments, transform=replace(shape, size=size, resize=size))
    if recipe.normalize != "encoder":
        mean, std = STATISTICS[recipe.normalize]
        card = replace(card, transform=replace(card.transform, mean=mean, std=std))
    return card


def crop_of(recipe: Recipe) -> float:
    """The central fraction of the recipe's view, in (0, 1]. Raises InvalidRequest for a turned view."""
    views = parse_views(recipe.view)
    if len(views) != 1 or views[0].orientation:
        raise InvalidRequest(
            f"view {recipe.view!r}: fine-tuning takes full or center:F; flips and rotations are the augmentation's"
        )
    return views[0].crop


def cut(pixels: np.ndarray, fraction: float) -> np.ndarray:
    """The central fraction of a patch, uint8 (h, w, 3)."""
    if fraction == 1:
        return pixels
    top, left, bottom, right = crop_box(*pixels.shape[:2], fraction)
    return np.ascontiguousarray(pixels[top:bottom, left:right])

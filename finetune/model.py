"""The network that is trained: an encoder's backbone, a token policy and one linear layer."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import EncoderError, InvalidRequest, UnknownEncoder
from ..extract.cards import Card, Transform, at_size
from ..extract.models.build import build_network
from ..extract.models.network import Network
from ..extract.registry import load_card
from ..extract.tokens import last_tokens, parse_policy, select, vector_dim
from ..extract.views import View, parse_views, prepare
from ..extract.weights import Weights
from .labels import TWO_CLASSES, Labels
from .lora import add_lora
from .recipe import STATISTICS, Recipe


class Classifier(nn.Module):
    """backbone -> tokens -> vector -> the outputs of `labels` (of two classes the logit of the positive one).

    backbone : an adapter of extract.models; transform : of its input, what `prepare` does
    prefix : tokens before the patch tokens
    pooling : "cls", "mean", "cls+mean" or "pooled"; dim : width of that vector
    """

    def __init__(
        self,
        backbone: Network,
        *,
        transform: Transform,
        prefix: int,
        pooling: str,
        dim: int,
        seed: int,
        labels: Labels = TWO_CLASSES,
    ) -> None:
        super().__init__()
        self.labels = labels
        self.backbone = backbone
        self.transform, self.prefix, self.pooling, self.dim = transform, prefix, pooling, dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = nn.Linear(dim, labels.outputs)
        self._mean = np.asarray(transform.mean, np.float32)
        self._std = np.asarray(transform.std, np.float32)

    def prepare(self, pixels: np.ndarray, *, sized: bool = False) -> Tensor:
        """uint8 (h, w, 3) -> float32 (3, size, size), normalised; `sized` pixels are only normalised."""
        size = self.transform.size
        if not sized:
            pixels = prepare(pixels, self.transform)
        if pixels.shape != (size, size, 3):
            raise InvalidRequest(
                f"the augmentation returns {pixels.shape[1]} x {pixels.shape[0]} pixels, and the encoder's "
                f"input is {size} x {size}: set the step's size to {size}, or the recipe's input_size"
            )
        values = (pixels.astype(np.float32) / 255 - self._mean) / self._std
        return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))

    def embed(self, batch: Tensor) -> Tensor:
        """float (b, 3, s, s) -> float32 (b, dim)."""
        # all tokens in training, as dropout of adapters is drawn for each, and below fp32, as `extract` does:
        # what is trained and scored stays the same from version to version
        whole = torch.is_grad_enabled() or torch.is_autocast_enabled(batch.device.type)
        last = "all" if whole else last_tokens([parse_policy(self.pooling)])
        features = self.backbone.features(batch, pooled=self.pooling == "pooled", last=last)
        if features.class_token is not None:
            return features.class_token.float()
        if self.pooling == "pooled":
            if features.pooled is None:
                raise EncoderError("this encoder does not pool its tokens; set tokens to cls or mean")
            return features.pooled.float()
        if features.tokens is None:
            raise EncoderError("this encoder returns no tokens; set tokens to pooled")
        return select(features.tokens, self.prefix, self.pooling)

    def forward(self, batch: Tensor) -> Tensor:
        """float (b, 3, s, s) -> logits (b,) of two classes, else (b, outputs)."""
        vectors = self.embed(batch)
        with torch.autocast(vectors.device.type, enabled=False):  # bf16 logits have 8 bits: scores would tie
            outputs = self.head(vectors)
        return outputs.squeeze(-1) if self.labels.binary else outputs

    @property
    def inner(self) -> nn.Module:
        """The timm or transformers model itself; adapters are named as it names its layers."""
        model = getattr(self.backbone, "model", None)
        return model if isinstance(model, nn.Module) else self.backbone


def classifier(
    card: Card,
    recipe: Recipe,
    *,
    weights: Weights | None,
    labels: Labels = TWO_CLASSES,
    build: Callable[..., Network] = build_network,
) -> tuple[Classifier, list[str]]:
    """The network of a recipe, ready to train: (it, names of the adapted layers within the encoder's model).

    card : as `card_for` made it; weights : of its encoder, None for random ones
    labels : what it learns
    """
    policy = parse_policy(policy_of(card, recipe))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)  # decides the weights that are not read from anywhere
        backbone = build(card, weights)
    network = Classifier(
        backbone,
        transform=card.transform,
        prefix=card.prefix,
        pooling=policy.pooling,
        dim=vector_dim(card, policy),
        seed=recipe.seed,
        labels=labels,
    )
    if recipe.checkpointing:
        switch = getattr(network.inner, "set_grad_checkpointing", None)
        if switch is None:
            raise EncoderError(f"{card.id} cannot recompute activations: set checkpointing = false")
        switch(True)
    names: list[str] = []
    if recipe.method == "lora":
        backbone.requires_grad_(False)
        names = add_lora(network.inner, recipe, seed=recipe.seed, declared=card.lora.targets)
    else:
        backbone.requires_grad_(True)
    return network, names


def base_card(spec: str, recipe: Recipe, *, trust_code: bool = False) -> Card:
    """The card of an encoder to train. With `random_weights`, also of a timm model that has no weights."""
    if not (recipe.random_weights and spec.startswith("timm:")):
        return card_for(load_card(spec, trust_code=trust_code), recipe)
    import timm

    name = spec.removeprefix("timm:")
    if not timm.is_model(name):
        raise UnknownEncoder(f"timm {timm.__version__} has no model {name!r}")
    size = recipe.input_size or 224
    with torch.device("meta"), torch.no_grad():
        model: Any = timm.create_model(name, pretrained=False, num_classes=0).eval()
        dim = model.forward_head(
            model.forward_features(torch.empty(1, 3, size, size)), pre_logits=True
        ).shape[-1]
    card = Card(
        id=f"timm-{name}-random",
        model=name,
        dim=int(dim),
        tokens="pooled",
        arguments={"num_classes": 0},
        transform=Transform(size=size),
        note="random initialisation",
    )
    return card_for(card, recipe)


def policy_of(card: Card, recipe: Recipe) -> str:
    """The token policy of a recipe on this card. Raises InvalidRequest for one that cannot be trained on."""
    policy = card.tokens if recipe.tokens == "card" else recipe.tokens
    if policy not in ("cls", "mean", "cls+mean", "pooled"):
        raise InvalidRequest(f"tokens {policy!r}: fine-tuning supports cls, mean, cls+mean and pooled")
    vector_dim(card, parse_policy(policy))  # refuses what this encoder has not
    return policy


def card_for(card: Card, recipe: Recipe) -> Card:
    """The card with the recipe's input size and, for a publication's quirk, its normalisation."""
    if recipe.input_size:
        card = at_size(card, recipe.input_size)
    if recipe.normalize != "encoder":
        mean, std = STATISTICS[recipe.normalize]
        card = card.replace(transform=card.transform.replace(mean=mean, std=std))
    return card


def crop_of(recipe: Recipe) -> float:
    """The central fraction of the recipe's view, in (0, 1]. Raises InvalidRequest for a turned view."""
    views = parse_views(recipe.view)
    if len(views) != 1 or views[0] != View(crop=views[0].crop):
        raise InvalidRequest(
            f"view {recipe.view!r}: fine-tuning supports full or center:F; flips, rotations and stains are "
            "the augmentation's"
        )
    return views[0].crop

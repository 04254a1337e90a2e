"""timm models: built from a card's arguments, filled from a file that was found before."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import EncoderError, InvalidRequest, MissingDependency, UnknownEncoder
from .cards import Card, Transform
from .checkpoints import load_file_into
from .weights import INSTALL, Weights

try:
    import timm
    from timm.data import resolve_data_config  # pyright: ignore[reportPrivateImportUsage]
    from timm.layers import SwiGLUPacked  # pyright: ignore[reportPrivateImportUsage]
except ImportError as missing:
    raise MissingDependency(f"timm is not installed: {INSTALL}") from missing

# what a card's arguments may name; TOML cannot hold a class
_CLASSES: dict[str, Any] = {"SwiGLUPacked": SwiGLUPacked, "SiLU": nn.SiLU}


def create(card: Card) -> nn.Module:
    """The architecture with timm's random weights. Raises InvalidRequest for arguments it does not take."""
    arguments = {
        key: _CLASSES.get(value, value) if isinstance(value, str) else value
        for key, value in card.arguments.items()
    }
    try:
        model = timm.create_model(card.model, pretrained=False, **arguments)
    except (TypeError, RuntimeError, ValueError) as error:
        raise InvalidRequest(f"timm cannot build {card.model!r} for {card.id}: {error}") from error
    return model.eval()


def build_timm(card: Card, weights: Weights | None) -> tuple[nn.Module, str]:
    """The model in float32 on the CPU, weights loaded by key, or random where `weights` is None.

    Returns:
        The model, and where in the file its tensors were (see `checkpoints.load_file_into`).
    """
    if weights is None:
        return create(card), ""
    with torch.device("meta"):  # no time spent on random numbers that are overwritten
        model = create(card)
    path = weights.path
    if path is None or not path.is_file():
        raise EncoderError(f"{card.id} wants one file of weights, not {path}")
    origin = _fill(model, card, path)
    left = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if left:  # buffers that no checkpoint holds: build once more, for real, and fill that
        model = create(card)
        _fill(model, card, path)
    return model.requires_grad_(False), origin


def _fill(model: nn.Module, card: Card, path: Path) -> str:
    """With timm's own conversion for the family (position grids, old names), the classifier left out."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    heads = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    return load_file_into(model, path, card, convert=convert, heads=heads)


def card_of_timm(name: str) -> Card:
    """A card for any timm model with pretrained weights, from timm's own configuration.

    Raises:
        UnknownEncoder: timm has no such model, or no weights for it; suggests near names.
    """
    import difflib

    known = timm.list_models(pretrained=True)
    config = timm.get_pretrained_cfg(name, allow_unregistered=False) if timm.is_model(name) else None
    if config is None or not config.has_weights:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(f'timm:{one}' for one in near)}?" if near else ""
        raise UnknownEncoder(f"timm {timm.__version__} has no weights for {name!r}{hint}")
    data = resolve_data_config({}, pretrained_cfg=config.to_dict())
    size = data["input_size"][1]
    interpolation = (
        data["interpolation"] if data["interpolation"] in ("bilinear", "bicubic", "nearest") else "bicubic"
    )
    with torch.device("meta"):
        model: Any = timm.create_model(name, pretrained=False, num_classes=0).eval()
        with torch.no_grad():
            features = model.forward_features(torch.empty(1, 3, size, size))
            dim = model.forward_head(features, pre_logits=True).shape[-1]
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    grid = features.shape[1] - prefix if features.ndim == 3 else 0
    tag = f".{config.tag}" if config.tag else ""
    hub = config.hf_hub_id or ""
    if hub.endswith("/"):
        hub = f"{hub}{config.architecture}{tag}"
    return Card(
        id=f"timm:{name}",
        model=str(config.architecture),
        hub=hub,
        licence=config.license or "unknown",
        source=f"timm {timm.__version__}",
        dim=int(features.shape[-1] if grid else dim),
        grid=int(grid),
        prefix=prefix if grid else 0,
        tokens="cls" if grid and prefix else "pooled",
        arguments={"num_classes": 0},
        transform=Transform(
            size=size,
            resize=round(size / data["crop_pct"]) if data["crop_pct"] <= 1 else size,
            interpolation=interpolation,
            mean=data["mean"],
            std=data["std"],
        ),
    )

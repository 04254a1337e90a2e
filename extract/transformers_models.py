"""transformers models: a hub repository, a folder with config.json, or a configuration in the card."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import EncoderError, InvalidRequest, MissingDependency
from .cards import Card, Transform
from .checkpoints import refuse_not_finite
from .weights import Weights, locate

try:
    import transformers
except ImportError as missing:
    raise MissingDependency(
        "transformers is not installed: pip install 'patchbank[transformers]'"
    ) from missing

# from_pretrained arguments; all other arguments of a card are its configuration
_LOADING = ("add_pooling_layer",)
_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL's numbers, as the hub stores them


def build_transformers(card: Card, weights: Weights | None, *, remote_code: bool = False) -> nn.Module:
    """The model in float32 on the CPU.

    Without weights the architecture is built from the card's arguments ("model_type" and its configuration).

    Raises:
        InvalidRequest: the card needs code from the hub repository and that is not allowed.
        EncoderError: the folder cannot be loaded, or tensors are missing from it.
    """
    loading = {key: value for key, value in card.arguments.items() if key in _LOADING}
    if weights is None:
        settings = {key: value for key, value in card.arguments.items() if key not in _LOADING}
        if "model_type" not in settings:
            raise InvalidRequest(
                f"the card of {card.id} holds no configuration, so it cannot be built without weights"
            )
        config = transformers.AutoConfig.for_model(**settings)
        return transformers.AutoModel.from_config(config, **loading).eval()
    if card.remote_code and not remote_code:
        raise InvalidRequest(
            f"{card.id} runs Python code from {card.hub}: read it, then allow it with --trust-remote-code"
        )
    if weights.path is None or not weights.path.is_dir():
        raise EncoderError(
            f"{card.id} wants a folder with config.json and model.safetensors, not {weights.path}"
        )
    try:
        model, report = transformers.AutoModel.from_pretrained(
            weights.path,
            trust_remote_code=card.remote_code and remote_code,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
            **loading,
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise EncoderError(f"transformers cannot load {card.id} from {weights.path}: {error}") from error
    # a pooling layer that the checkpoint lacks would be random; nothing else may be missing
    missing = [name for name in report["missing_keys"] if not name.startswith("pooler.")]
    if missing:
        raise EncoderError(f"{weights.path} lacks {len(missing)} tensors of {card.id}, first {missing[0]}")
    refuse_not_finite(model.state_dict(), str(weights.path))
    return model.eval()


def card_of_hub(hub: str) -> Card:
    """A card for any vision model of transformers, on the hub or in a folder, from its configuration.

    Raises:
        InvalidRequest: not ORG/NAME, or not a vision model.
        EncoderError, GatedEncoder: the configuration cannot be had.
    """
    folder = Path(hub)
    local = (folder / "config.json").is_file()
    if not local and hub.count("/") != 1:
        raise InvalidRequest(f"hf:{hub} should be hf:ORG/NAME, or a folder with a config.json")
    probe = Card(id=f"hf:{hub}", kind="transformers", hub=hub, dim=1)
    if not local:
        path = locate(probe).path
        if path is None:
            raise EncoderError(f"{hub} has no files")
        folder = path
    config = json.loads((folder / "config.json").read_text("utf-8"))
    if "auto_map" in config:
        raise InvalidRequest(
            f"{hub} needs code of its own (auto_map in its config.json), and its layout cannot be known "
            "without running it: write a card with remote_code = true (see `patchbank encoders show hibou-b`)"
        )
    config = config.get("vision_config") or config
    width, patch = config.get("hidden_size"), config.get("patch_size")
    if not isinstance(width, int) or not isinstance(patch, int):
        raise InvalidRequest(
            f"{hub} is no vision transformer (its configuration has no hidden_size and patch_size)"
        )
    shape = _transform(folder, int(config.get("image_size") or 224), str(config.get("model_type", "")))
    no_cls = str(config.get("model_type", "")).startswith("siglip")
    prefix = 0 if no_cls else 1 + int(config.get("num_register_tokens") or 0)
    return Card(
        id=f"hf:{folder.name if local else hub}",
        kind="transformers",
        hub=hub,
        source=f"{hub}, config.json",
        dim=width,
        grid=(shape.size // patch) ** 2,
        prefix=prefix,
        tokens="cls" if prefix else "mean",
        transform=shape,
    )


def _transform(folder: Path, trained: int, family: str) -> Transform:
    """The input from preprocessor_config.json; DINOv2 takes any size, so its 518 px become 224."""
    path = folder / "preprocessor_config.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    size = trained
    if family.startswith("dinov2"):
        size = _side(found.get("crop_size")) or 224
    resize = _side(found.get("size")) or size
    return Transform(
        size=size,
        resize=max(size, resize),
        interpolation=_FILTERS.get(found.get("resample", 3), "bicubic"),
        mean=tuple(found.get("image_mean", (0.485, 0.456, 0.406))),
        std=tuple(found.get("image_std", (0.229, 0.224, 0.225))),
    )


def _side(value: Any) -> int:
    """224, {"height": 224, "width": 224} or {"shortest_edge": 224}."""
    if isinstance(value, dict):
        value = value.get("shortest_edge") or value.get("height") or 0
    return value if isinstance(value, int) else 0

"""transformers models: a hub repository, a folder with config.json, or a configuration in the card."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import EncoderError, InvalidRequest, MissingDependency
from ..cards import Card, Interpolation, Transform
from ..weights import Weights, locate, not_a_model
from .state import refuse_not_finite

try:
    import transformers
except ImportError as missing:
    raise MissingDependency(
        "transformers is not installed: pip install 'patchbank[transformers]'"
    ) from missing

# from_pretrained arguments; all other arguments of a card are its configuration
_LOADING = ("add_pooling_layer",)
_FILTERS: dict[Any, Interpolation] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
}  # PIL's numbers, as the hub stores them


def build_transformers(card: Card, weights: Weights | None, *, remote_code: bool = False) -> nn.Module:
    """The model in float32 on the CPU.

    Without weights the architecture is built from the card's arguments ("model_type" and its configuration).

    Raises
    ------
    InvalidRequest
        the card needs code from the hub repository and that is not allowed.
    EncoderError
        the folder cannot be loaded, or tensors are missing from it.
    """
    loading = {key: value for key, value in card.arguments.items() if key in _LOADING}
    if weights is None:
        settings = {key: value for key, value in card.arguments.items() if key not in _LOADING}
        if "model_type" not in settings:
            raise InvalidRequest(
                f"the card of {card.id} holds no configuration, so it cannot be built without weights"
            )
        config: Any = transformers.AutoConfig.for_model(**settings)
        if card.projection:
            config.projection_dim = card.projection
            return transformers.CLIPVisionModelWithProjection(config).eval()
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
        kind: Any = transformers.CLIPVisionModelWithProjection if card.projection else transformers.AutoModel
        model, report = kind.from_pretrained(
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
    _same_statistics(card, model.config)
    return model.eval()


def _same_statistics(card: Card, config: Any) -> None:
    """Raises EncoderError where a configuration states other statistics of the pixels than the card."""
    for ours, name in ((card.transform.mean, "pixel_mean"), (card.transform.std, "pixel_std")):
        stated = getattr(config, name, None)
        if stated and any(abs(a - b) > 1e-3 for a, b in zip(ours, stated, strict=True)):
            raise EncoderError(
                f"the configuration of {card.hub} says {name} {list(stated)}, the card of {card.id} "
                f"{list(ours)}. Fix: `patchbank encoders show {card.id} > mine.toml`, correct it there"
            )


def card_of_hub(hub: str) -> Card:
    """A card for any vision model of transformers, on the hub or in a folder, from its configuration.

    Raises
    ------
    InvalidRequest
        not ORG/NAME, or not a vision model.
    EncoderError, GatedEncoder
        the configuration is unavailable.
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
    config = _table(folder / "config.json")
    if "auto_map" in config:
        raise InvalidRequest(
            f"{hub} needs code of its own (auto_map in its config.json), and its layout cannot be known "
            "without running it: write a card with remote_code = true (see `patchbank encoders show hibou-b`)"
        )
    clip = str(config.get("model_type", "")).startswith("clip")  # its tokens are those before its last norm
    vision = config.get("vision_config")
    config = vision if isinstance(vision, dict) and vision else config
    width, patch = config.get("hidden_size"), config.get("patch_size")
    if not isinstance(width, int) or not isinstance(patch, int):
        raise InvalidRequest(
            f"{hub} is not a vision transformer (its configuration has no hidden_size and patch_size)"
        )
    shape = _transform(folder, _side(config.get("image_size")) or 224, str(config.get("model_type", "")))
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
        tokens="pooled" if clip else "cls" if prefix else "mean",
        transform=shape,
    )


def _table(path: Path) -> dict[str, Any]:
    """A JSON object. Raises EncoderError for a file that is none."""
    other = not_a_model(path)
    if other:
        raise EncoderError(f"{path} {other}")
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise EncoderError(f"{path} is not JSON ({error}). Fix: delete it and download it again") from error
    if not isinstance(values, dict):
        raise EncoderError(f"{path} holds a {type(values).__name__}, not the settings of a model")
    return values


def _transform(folder: Path, trained: int, family: str) -> Transform:
    """The input from preprocessor_config.json; DINOv2 takes any size, so its 518 px become 224.

    Raises EncoderError for steps that are not reproduced here.
    """
    path = folder / "preprocessor_config.json"
    settings = _table(path) if path.is_file() else {}
    wanted = settings.get("size")
    crop = settings.get("crop_size") if settings.get("do_center_crop", "crop_size" in settings) else None
    size = trained
    if family.startswith("dinov2"):
        size = _side(crop) or 224
    elif (_side(crop) or _side(wanted) or size) != size:
        raise EncoderError(
            f"{path} makes images of {_side(crop) or _side(wanted)} pixels, and the model takes {size}"
        )
    # a processor that does not crop resizes both sides, unless it names the shorter one
    squash = not crop and not (isinstance(wanted, dict) and "shortest_edge" in wanted)
    resample = settings.get("resample", 3)
    faults = []
    if resample not in _FILTERS:
        faults.append(f"resample = {resample!r}")
    if settings.get("do_rescale") is False or not math.isclose(
        settings.get("rescale_factor", 1 / 255), 1 / 255
    ):
        faults.append("values that are not scaled to 0..1")
    if faults:
        raise EncoderError(f"{path} asks for {' and '.join(faults)}, which is not reproduced here")
    plain = settings.get("do_normalize") is False
    mean: Any = [0, 0, 0] if plain else settings.get("image_mean") or (0.485, 0.456, 0.406)
    std: Any = [1, 1, 1] if plain else settings.get("image_std") or (0.229, 0.224, 0.225)
    return Transform(
        size=size,
        resize=max(size, _side(wanted) or size),
        mode="squash" if squash and wanted else "center",
        interpolation=_FILTERS[resample],
        mean=tuple(mean),
        std=tuple(std),
    )


def _side(value: Any) -> int:
    """224, {"height": 224, "width": 224} or {"shortest_edge": 224}."""
    if isinstance(value, dict):
        value = value.get("shortest_edge") or value.get("height") or 0
    return value if isinstance(value, int) else 0

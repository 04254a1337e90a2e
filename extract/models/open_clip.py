"""Image towers of open_clip: built from the repository's own configuration, its text tower left out."""

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import EncoderError, InvalidRequest, MissingDependency
from ..cards import Card
from ..weights import Weights, not_a_model
from .network import Features, Network
from .state import load_file_into

CONFIG = "open_clip_config.json"


class OpenClipTower(Network):
    """The tower under the names of its checkpoint; `pooled` is its projected vector, before normalisation."""

    def __init__(self, visual: torch.nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def features(
        self, batch: Tensor, *, layers: Sequence[int] = (), pooled: bool = False, last: str = "all"
    ) -> Features:
        if layers:
            raise InvalidRequest("a tower of open_clip gives its pooled vector only")
        return Features(pooled=self.visual(batch))


def build_open_clip(card: Card, weights: Weights | None) -> OpenClipTower:
    """The tower in float32 on the CPU; without weights from open_clip's own configuration `card.model`.

    Raises
    ------
    MissingDependency
        open_clip is not installed.
    EncoderError
        the folder holds no configuration, or weights that do not fit it.
    """
    try:
        open_clip: Any = import_module("open_clip")
        build_tower: Any = import_module("open_clip.model")._build_vision_tower
    except ImportError as error:
        raise MissingDependency("open_clip is not installed: pip install 'patchbank[open-clip]'") from error
    if weights is None:
        config: Any = open_clip.get_model_config(card.model)
        if config is None:
            raise InvalidRequest(f"open_clip {open_clip.__version__} has no architecture {card.model!r}")
        settings: Any = dict(config)
        settings["vision_cfg"] = {**settings["vision_cfg"], "timm_model_pretrained": False}
    else:
        settings = _configuration(weights.path)
    vision: Any = settings["vision_cfg"]
    visual = build_tower(settings["embed_dim"], vision, quick_gelu=bool(settings.get("quick_gelu", False)))
    tower = OpenClipTower(visual).eval()
    if weights is not None and weights.path is not None:
        file = next((weights.path / name for name in card.files if (weights.path / name).is_file()), None)
        if file is None:
            raise EncoderError(f"{weights.path} holds none of {', '.join(card.files)}")
        tower.origin = load_file_into(tower, file, card, only=("visual.",))
    return tower


def _configuration(folder: Path | None) -> dict[str, Any]:
    file = (folder or Path()) / CONFIG
    if folder is None or not file.is_file():
        raise EncoderError(f"{folder} wants to be a folder with {CONFIG} and a file of weights")
    other = not_a_model(file)
    if other:
        raise EncoderError(f"{file} {other}")
    try:
        settings = json.loads(file.read_text("utf-8"))["model_cfg"]
        return settings | {"vision_cfg": {**settings["vision_cfg"], "timm_model_pretrained": False}}
    except (ValueError, KeyError, TypeError) as error:
        raise EncoderError(f"{file} is no configuration of open_clip ({error})") from error

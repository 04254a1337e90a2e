"""timm models: built from a card's arguments, filled from a file that was found before."""

import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import EncoderError, InvalidRequest, MissingDependency, UnknownEncoder
from ...settings import alike
from ..cards import INTERPOLATIONS, MODES, Card, Transform
from ..weights import INSTALL, Weights
from .imports import WithoutValues, without_compiler
from .state import State, load_file_into

try:
    with without_compiler():
        import timm
        from timm.data import resolve_data_config  # pyright: ignore[reportPrivateImportUsage]
        from timm.layers import SwiGLUPacked, to_2tuple  # pyright: ignore[reportPrivateImportUsage]
except ImportError as missing:
    raise MissingDependency(f"timm is not installed: {INSTALL}") from missing


class ConvStem(nn.Module):
    """CTransPath's patch embedding under the names of its checkpoint: three convolutions, then a norm.

    Written after its description (Wang et al., Medical Image Analysis 2022): 3 x 3 with stride 2 twice, from
    dim / 8 to dim / 4 channels, then 1 x 1 to dim.
    """

    def __init__(
        self, img_size: Any = 224, patch_size: int = 4, in_chans: int = 3, embed_dim: int = 96, **options: Any
    ) -> None:
        super().__init__()
        if patch_size != 4:
            raise ValueError(f"ConvStem has patches of 4 pixels, not {patch_size}")
        self.img_size: Any = to_2tuple(img_size)
        self.patch_size = (4, 4)
        self.grid_size = (self.img_size[0] // 4, self.img_size[1] // 4)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        narrow, wide = embed_dim // 8, embed_dim // 4
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, narrow, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(narrow),
            nn.ReLU(inplace=True),
            nn.Conv2d(narrow, wide, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(inplace=True),
            nn.Conv2d(wide, embed_dim, 1),
        )
        norm = options.get("norm_layer")
        self.norm = norm(embed_dim) if norm else nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(b, 3, h, w) -> (b, h / 4, w / 4, dim)."""
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


# what a card's arguments may name; TOML cannot hold a class
_CLASSES: dict[str, Any] = {"SwiGLUPacked": SwiGLUPacked, "SiLU": nn.SiLU, "ConvStem": ConvStem}


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

    Returns
    -------
    tuple[nn.Module, str]
        The model, and where in the file its tensors were (see `checkpoints.load_file_into`).
    """
    if weights is None:
        return create(card), ""
    with torch.device("meta"), WithoutValues():  # the weights are assigned
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
    family = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)

    def convert(state: State, model: nn.Module) -> State:
        converted = state if family is None else family(state, model)
        # timm leaves the last norm of a whole BEiT-3 (MUSK) under its own name
        return {re.sub(r"^layer_norm\.", "norm.", name): value for name, value in converted.items()}

    heads = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    return load_file_into(model, path, card, convert=convert, heads=heads)


def card_of_timm(name: str) -> Card:
    """A card for any timm model with pretrained weights, from timm's own configuration and flags.

    Raises
    ------
    UnknownEncoder
        timm has no such model, or no weights for it; suggests near names.
    EncoderError
        its input or its output is none that a card can describe; says which.
    """
    config = _configuration(name)
    data = resolve_data_config({}, pretrained_cfg=config.to_dict())
    transform = _transform(name, data)
    arguments: dict[str, Any] = {"num_classes": 0}
    refuse = f"timm:{name} cannot be used as an encoder: "
    try:
        with torch.device("meta"):
            model = _sized(str(config.architecture), arguments, transform.size)
            with torch.no_grad():
                features: Any = model.forward_features(torch.empty(1, 3, transform.size, transform.size))
                pooled: Any = model.forward_head(features, pre_logits=True)
    except Exception as error:  # timm's models fail in any way: asserts, missing methods, other arguments
        reason = str(error).strip().split("\n")[0]
        raise EncoderError(
            f"{refuse}it does not run on 3 x {transform.size} x {transform.size} pixels without a classifier "
            f"({type(error).__name__}{f': {reason}' if reason else ''})"
        ) from error
    if not isinstance(pooled, torch.Tensor) or pooled.ndim != 2:
        got = (
            f"a {type(pooled).__name__}" if not isinstance(pooled, torch.Tensor) else f"{tuple(pooled.shape)}"
        )
        raise EncoderError(f"{refuse}its pooled output is {got}, not one vector a patch")
    grid, prefix, class_token = _layout(model, features)
    hub, files = _place(config)
    return Card(
        id=f"timm:{name}",
        model=str(config.architecture),
        hub=hub,
        files=files,
        licence=config.license or "unknown",
        source=f"timm {timm.__version__}",
        dim=int(features.shape[-1] if grid else pooled.shape[-1]),
        grid=grid,
        prefix=prefix,
        class_token=class_token,
        tokens="cls" if grid and prefix and class_token else "pooled",
        arguments=arguments,
        transform=transform,
    )


def _configuration(name: str) -> Any:
    """timm's configuration of a name with or without a tag. Raises UnknownEncoder."""
    architecture, _, tag = name.partition(".")
    if timm.is_model(architecture):
        tags = [one.partition(".")[2] for one in timm.list_pretrained(f"{architecture}.*")]
        if tag in tags or (not tag and tags):
            return timm.get_pretrained_cfg(name, allow_unregistered=False)
        if tags:
            raise UnknownEncoder(
                f"timm {timm.__version__} has no weights {tag!r} of {architecture}; "
                f"there are {', '.join(f'timm:{architecture}.{one}' for one in tags)}"
            )
    known = timm.list_models(pretrained=True)
    near = alike(architecture, known, cutoff=0.5)
    hint = f"; did you mean {', '.join(f'timm:{one}' for one in near)}?" if near else ""
    raise UnknownEncoder(f"timm {timm.__version__} has no weights for {name!r}{hint}")


def _transform(name: str, data: Mapping[str, Any]) -> Transform:
    """timm's own evaluation transform (timm.data.transforms_imagenet_eval). Raises EncoderError."""
    (channels, height, width), crop = data["input_size"], data["crop_pct"]
    fault = ""
    if channels != 3 or len(data["mean"]) != 3:
        fault = f"it takes {channels} channels"
    elif height != width:
        fault = f"its input is {height} x {width}, and only square ones are supported"
    elif crop > 1:
        fault = f"its crop_pct of {crop} puts a frame around the patch, which is not supported"
    elif data["interpolation"] not in INTERPOLATIONS:
        fault = f"its interpolation {data['interpolation']!r} is not supported"
    elif data["crop_mode"] not in MODES:
        fault = f"its crop_mode {data['crop_mode']!r} is not supported"
    if fault:
        raise EncoderError(f"timm:{name} cannot be used as an encoder: {fault}")
    return Transform(
        size=height,
        resize=math.floor(height / crop),
        mode=data["crop_mode"],
        interpolation=data["interpolation"],
        mean=data["mean"],
        std=data["std"],
    )


def _sized(architecture: str, arguments: dict[str, Any], size: int) -> Any:
    """The architecture for this input; `arguments` gains img_size where it is built for another one."""
    model = timm.create_model(architecture, pretrained=False, **arguments).eval()
    built_for = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if built_for is not None and tuple(built_for) != (size, size):
        arguments["img_size"] = size
        model = timm.create_model(architecture, pretrained=False, **arguments).eval()
    return model


def _layout(model: Any, features: Any) -> tuple[int, int, bool]:
    """(patch tokens, tokens before them, whether the first of those is a CLS token), by the model's flags.

    (0, 0, True) where it gives no tokens, or none whose place the flags tell.
    """
    if not isinstance(features, torch.Tensor) or features.ndim != 3:
        return 0, 0, True
    prefix = getattr(model, "num_prefix_tokens", 0)
    named = {name.rpartition(".")[2] for name, _ in model.named_parameters()}
    # CoaT and others have class tokens and no flag that counts them: their patch tokens cannot be identified
    has_class = any(name.startswith(("cls_token", "class_token")) for name in named)
    registers = int(getattr(model, "num_reg_tokens", 0) or 0)
    grid = features.shape[1] - prefix
    if grid < 1 or (has_class and prefix < 1) or (not has_class and prefix != registers):
        return 0, 0, True
    return int(grid), int(prefix), has_class or not prefix


def _place(config: Any) -> tuple[str, tuple[str, ...]]:
    """The hub repository of the weights, and the names that their file may have there."""
    hub = config.hf_hub_id or ""
    if hub.endswith("/"):
        hub = f"{hub}{config.architecture}{f'.{config.tag}' if config.tag else ''}"
    names = ("model.safetensors", "pytorch_model.bin")
    named = getattr(config, "hf_hub_filename", None)
    if named:  # a safetensors file of the same name is preferred, as timm does
        safe = {"open_clip_pytorch_model.bin": "open_clip_model.safetensors"}
        names = (safe.get(named, f"{named.rpartition('.')[0]}.safetensors"), named)
    return hub, tuple(dict.fromkeys(names))

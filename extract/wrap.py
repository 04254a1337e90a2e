"""A network that is at hand in Python, as an encoder."""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..errors import InvalidRequest
from .cards import Card, Transform

if TYPE_CHECKING:
    from torch import nn

SAMPLE = 224  # pixels a side of the image that the network is tried with


def wrap_encoder(
    network: "nn.Module",
    transform: Callable[[Any], Any],
    *,
    name: str,
    revision: str,
    prefix: int = 0,
    class_token: bool = True,
    tokens: str | None = None,
    licence: str = "unknown",
) -> Card:
    """A card of a torch module, for `encoder=` of `run_extract` and `predict`.

    network : float32 (b, 3, s, s) -> (b, dim), or (b, prefix + patches, dim) with tokens; a copy is used
    transform : a PIL image (RGB) -> float tensor or array (3, s, s), as torchvision's and timm's are
    name, revision : the identity of its embeddings: nothing else distinguishes two networks or transforms, so
        give another revision where weights or preprocessing change
    prefix, class_token : tokens before those of patches, and whether the first is a class token; see `Card`
    tokens : the policy when none is asked for (None: the class token, else the mean, else what it gives)
    licence : of the weights, kept with the embeddings
    Raises InvalidRequest where the two do not fit together.
    """
    import torch

    image = torch.as_tensor(transform(Image.new("RGB", (SAMPLE, SAMPLE))))
    if image.ndim != 3 or image.shape[0] != 3 or image.shape[1] != image.shape[2]:
        raise InvalidRequest(f"the transform gives {tuple(image.shape)} for an image, not (3, s, s)")
    frozen = copy.deepcopy(network).cpu().eval().requires_grad_(False)
    with torch.inference_mode():
        output = frozen(image[None].float())
    if not isinstance(output, torch.Tensor) or output.ndim not in (2, 3):
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise InvalidRequest(f"the network gives {shape}, not (b, dim) or (b, tokens, dim)")
    grid = output.shape[1] - prefix if output.ndim == 3 else 0
    default = ("cls" if prefix and class_token else "mean") if grid else "pooled"
    return Card(
        id=name,
        kind="python",
        model=f"{type(network).__module__}:{type(network).__qualname__}",
        revision=revision,
        dim=output.shape[-1],
        grid=grid,
        prefix=prefix,
        class_token=class_token,
        tokens=tokens or default,
        precision="fp32",
        licence=licence,
        transform=Transform(size=image.shape[1], function=transform, function_name=f"{name}@{revision}"),
        factory=lambda: copy.deepcopy(frozen),
    )

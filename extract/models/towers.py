"""Image towers that no library builds: a trunk of timm or transformers and what its owners put above it.

Each is written after its owner's description, under the names of its checkpoint, and gives one vector:
`pooled`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn
from torch.nn.functional import normalize, scaled_dot_product_attention

from ...errors import EncoderError, InvalidRequest, MissingDependency
from ..cards import Card
from ..weights import Weights
from .network import Features, Network
from .state import State, load_file_into
from .timm import create


class Tower(Network):
    """Base: `vector` is what the owner calls the embedding. NAMES : how the checkpoint's names begin."""

    NAMES: tuple[str, ...] = ()

    def vector(self, batch: Tensor) -> Tensor:
        """(b, 3, s, s) -> (b, dim)."""
        raise NotImplementedError

    def features(
        self, batch: Tensor, *, layers: Sequence[int] = (), pooled: bool = False, last: str = "all"
    ) -> Features:
        if layers:
            raise InvalidRequest(f"{type(self).__name__} gives its pooled vector only")
        return Features(pooled=self.vector(batch))


class _Pooler(nn.Module):
    """(b, tokens, context) -> (b, dim): one learned query of eight heads, products without a bias."""

    HEADS = 8

    def __init__(self, dim: int, context: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, dim))
        self.ln_k, self.ln_q = nn.LayerNorm(context), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(context, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.to_q(self.ln_q(self.query)).expand(len(tokens), 1, -1)
        key, value = self.to_kv(self.ln_k(tokens)).chunk(2, dim=-1)
        heads = [t.unflatten(-1, (self.HEADS, -1)).transpose(1, 2) for t in (query, key, value)]
        return self.to_out(scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))[:, 0]


class Conch15(Tower):
    """CONCH v1.5: ViT-L/16 at 448 px, attention pooling over all of its tokens, a layer norm."""

    NAMES = ("trunk.", "attn_pool_contrast.", "ln_contrast.")

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.trunk: Any = create(card.replace(kind="timm", model="vit_large_patch16_224"))
        self.attn_pool_contrast = _Pooler(card.dim, int(self.trunk.num_features))
        self.ln_contrast = nn.LayerNorm(card.dim)

    def vector(self, batch: Tensor) -> Tensor:
        return self.ln_contrast(self.attn_pool_contrast(self.trunk.forward_features(batch)))


class Keep(Tower):
    """KEEP: UNI's ViT-L/16, two linear layers, length 1."""

    NAMES = ("visual.", "visual_head.")

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.visual: Any = create(card.replace(kind="timm", model="vit_large_patch16_224"))
        width = int(self.visual.num_features)
        self.visual_head = nn.Sequential(nn.Linear(width, card.dim), nn.GELU(), nn.Linear(card.dim, card.dim))

    def vector(self, batch: Tensor) -> Tensor:
        return normalize(self.visual_head(self.visual(batch)), dim=-1)


class ISight(Tower):
    """iSight: CLIP's ViT-L/14 at 336 px before its last norm, a linear layer, the mean over all tokens."""

    NAMES = ("patch_encoder.vision_model.", "visual_token_projection.")

    def __init__(self, card: Card) -> None:
        super().__init__()
        try:
            from transformers import CLIPVisionConfig, CLIPVisionModel
        except ImportError as error:
            raise MissingDependency(
                "transformers is not installed: pip install 'patchbank[transformers]'"
            ) from error
        model: Any = CLIPVisionModel(CLIPVisionConfig(**card.arguments))
        vision: Any = getattr(model, "vision_model", model)
        self.patch_encoder = nn.ModuleDict({"vision_model": vision})
        self.visual_token_projection = nn.Linear(card.dim, card.dim)

    def vector(self, batch: Tensor) -> Tensor:
        out = self.patch_encoder["vision_model"](pixel_values=batch, return_dict=True)
        return self.visual_token_projection(out.last_hidden_state).mean(dim=1)


TOWERS: dict[str, type[Any]] = {"conch-v1.5": Conch15, "keep": Keep, "isight": ISight}


def build_tower(card: Card, weights: Weights | None) -> Tower:
    """The tower in float32 on the CPU; text towers and other heads of the checkpoint are left out.

    Raises
    ------
    EncoderError
        the file holds no such tower.
    """
    tower = TOWERS[card.model](card).eval()
    if weights is None:
        return tower
    if weights.path is None or not weights.path.is_file():
        raise EncoderError(f"{card.id} wants one file of weights, not {weights.path}")
    tower.origin = load_file_into(tower, weights.path, card, only=tower.NAMES, convert=_resampled)
    return tower


def _resampled(state: State, tower: Any) -> State:
    """The state with timm's own conversion of its trunk: position grids of another size are resampled."""
    for name in ("trunk", "visual"):
        if hasattr(tower, name):
            trunk = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
            state = {k: v for k, v in state.items() if not k.startswith(f"{name}.")}
            converted = checkpoint_filter_fn(trunk, getattr(tower, name))
            state |= {f"{name}.{k}": v for k, v in converted.items()}
    return state

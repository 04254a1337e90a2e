"""CONCH's image tower: a timm ViT and the attention pooling above it, under the names of its checkpoint.

Written after the published description (Lu et al., Nature Medicine 2024) and the tensor names of the
checkpoint: one learned query attends over all tokens of the ViT (CLS too), then a layer norm.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...errors import EncoderError, InvalidRequest
from ..cards import Card
from ..weights import Weights
from .network import Features, Network
from .state import load_file_into
from .timm import create

POOL_DIM, POOL_HEADS = 512, 8
_OTHERS = (
    "attn_pool_caption",
    "ln_caption",
    "proj_contrast",
)  # of the tensors under "visual.": not used here


class AttentionPool(nn.Module):
    """(b, tokens, context) -> (b, dim): one learned query, multi-head attention over normalised tokens."""

    def __init__(self, dim: int, context: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, dim))
        self.attn = nn.MultiheadAttention(dim, heads, kdim=context, vdim=context, batch_first=True)
        self.ln_q, self.ln_k = nn.LayerNorm(dim), nn.LayerNorm(context)

    def forward(self, tokens: Tensor) -> Tensor:
        context = self.ln_k(tokens)
        query = self.ln_q(self.query).expand(len(tokens), 1, -1)
        return self.attn(query, context, context, need_weights=False)[0][:, 0]


class ConchTower(Network):
    """The tower; `features` gives the pooled vector only."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.attn_pool_contrast = AttentionPool(POOL_DIM, int(trunk.num_features), POOL_HEADS)  # pyright: ignore[reportArgumentType]
        self.ln_contrast = nn.LayerNorm(POOL_DIM)

    def features(
        self, batch: Tensor, *, layers: Sequence[int] = (), pooled: bool = False, last: str = "all"
    ) -> Features:
        if layers:
            raise InvalidRequest("conch gives its pooled vector only")
        tokens = self.trunk.forward_features(batch)  # pyright: ignore[reportCallIssue]
        return Features(pooled=self.ln_contrast(self.attn_pool_contrast(tokens)))


def build_conch(card: Card, weights: Weights | None) -> ConchTower:
    """The image tower in float32 on the CPU; the text tower of the checkpoint is left out.

    Raises
    ------
    EncoderError
        the file holds no such tower.
    """
    tower = ConchTower(create(card))
    if weights is None:
        return tower
    if weights.path is None or not weights.path.is_file():
        raise EncoderError(f"{card.id} wants one file of weights, not {weights.path}")
    tower.origin = load_file_into(tower, weights.path, card, inside="visual.", heads=_OTHERS)
    return tower

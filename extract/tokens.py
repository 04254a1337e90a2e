"""Token policies: which numbers of a forward pass become the embedding.

    cls        the CLS token                                    (dim,)
    mean       mean of the patch tokens, prefix tokens left out (dim,)
    cls+mean   both, concatenated                               (2 dim,)
    registers  the register tokens, concatenated                (registers dim,)
    patches    all patch tokens, row by row                     (grid dim,)
    pooled     what the network itself pools: the global average of a CNN, the head's input elsewhere (dim,)
    projected  the pooled vector after the network's own projection, as CLIP's image embedding (projection,)
    POLICY@K   cls, mean or cls+mean after block K = 1... (the final norm applied), as in cls@8

An encoder's name implies none of them, so the policy is part of every embedding's identity.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InvalidRequest
from .cards import Card

if TYPE_CHECKING:
    import torch

POLICIES = ("cls", "mean", "cls+mean", "registers", "patches", "pooled", "projected")
_LAYERED = re.compile(r"(cls|mean|cls\+mean)@([1-9][0-9]*)")


@dataclass(frozen=True)
class Policy:
    """One parsed policy. `layer` is 1 for the first block, None for the model's output."""

    name: str
    pooling: str
    layer: int | None = None


def parse_policy(name: str) -> Policy:
    """Raises InvalidRequest for a name that is not a policy."""
    if name in POLICIES:
        return Policy(name, name)
    match = _LAYERED.fullmatch(name)
    if match:
        return Policy(name, match[1], int(match[2]))
    raise InvalidRequest(
        f"unknown token policy {name!r}: {', '.join(POLICIES)}, or after a block as in cls@8, cls+mean@20"
    )


def vector_dim(card: Card, policy: Policy) -> int:
    """Length of the vector that a policy makes of this encoder. Raises InvalidRequest if it cannot."""
    name = policy.pooling
    if name == "projected":
        if not card.projection:
            raise InvalidRequest(f"{card.id} has no projection; use pooled")
        return card.projection
    unpooled = card.arguments.get("global_pool") == "" or card.arguments.get("add_pooling_layer") is False
    if name == "pooled" and unpooled and card.kind in ("timm", "transformers"):
        raise InvalidRequest(f"{card.id} pools nothing itself; use cls, mean or cls+mean")
    if not card.grid and name != "pooled":
        raise InvalidRequest(f"{card.id} has no tokens, so {policy.name!r} is unavailable; use pooled")
    class_token = card.class_token and card.prefix > 0
    if not class_token and name in ("cls", "cls+mean"):
        raise InvalidRequest(f"{card.id} has no CLS token; use mean or pooled")
    registers = card.prefix - class_token
    if name == "registers" and not registers:
        raise InvalidRequest(f"{card.id} has no register tokens")
    factor = {"cls+mean": 2, "registers": registers, "patches": card.grid}.get(name, 1)
    return factor * card.dim


def select(tokens: "torch.Tensor", prefix: int, pooling: str, *, class_token: bool = True) -> "torch.Tensor":
    """Apply a policy to tokens.

    Parameters
    ----------
    tokens
        (b, prefix + n, dim), CLS first, then the registers, then the patch tokens.
    prefix
        number of tokens that are not patches.
    class_token
        the first token is the CLS token; else the registers begin there.

    Returns
    -------
    torch.Tensor
        (b, length of the vector), float32; sums are taken in float32 whatever the tokens' dtype.
    """
    import torch

    if pooling == "cls":
        return tokens[:, 0].float()
    if pooling == "mean":
        return tokens[:, prefix:].float().mean(dim=1)
    if pooling == "cls+mean":
        return torch.cat([tokens[:, 0].float(), tokens[:, prefix:].float().mean(dim=1)], dim=1)
    if pooling == "registers":
        return tokens[:, int(class_token) : prefix].float().flatten(1)
    return tokens[:, prefix:].float().flatten(1)


def layers_of(policies: Sequence[Policy]) -> tuple[int, ...]:
    """The intermediate blocks that these policies need, ascending."""
    return tuple(sorted({policy.layer for policy in policies if policy.layer is not None}))


def last_tokens(policies: Sequence[Policy]) -> str:
    """Which tokens of the model's output these policies read: "all", "cls" or "none"."""
    read = {policy.pooling for policy in policies if policy.layer is None} - {"pooled", "projected"}
    return "none" if not read else "cls" if read == {"cls"} else "all"

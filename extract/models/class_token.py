"""The CLS token after a timm block, without the rows of the other tokens.

Of the last block the CLS token needs the keys and values of all tokens, while query, projection and MLP are
of one row. Where nothing but the CLS token is read, that saves three quarters of the block: a sixteenth of a
ViT-S/14. The numbers are those of the whole block but for rounding.
"""

from typing import Any

from timm.models import vision_transformer
from torch import Tensor, nn
from torch.nn import functional

# the parts whose order is written down here; a block with others is left alone
_OF_BLOCK = {"norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2"}
_OF_ATTENTION = {"qkv", "q_norm", "k_norm", "attn_drop", "norm", "proj", "proj_drop"}


def has_plain_last_block(model: Any) -> bool:
    """Is this timm's own vision transformer, a CLS token in front, its last block one that is known here?"""
    whole: Any = vision_transformer.VisionTransformer
    methods = ("forward_features", "forward_intermediates")
    if not isinstance(model, whole) or any(
        getattr(type(model), name) is not getattr(whole, name) for name in methods
    ):
        return False
    block: Any = model.blocks[-1]
    attention: Any = getattr(block, "attn", None)
    return (
        len(model.blocks) > 1
        and model.cls_token is not None
        and type(block) is vision_transformer.Block
        and type(attention) is vision_transformer.Attention  # pyright: ignore[reportPrivateImportUsage]
        and _parts(block) == _OF_BLOCK
        and _parts(attention) == _OF_ATTENTION
    )


def _parts(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


def class_token_after(block: Any, tokens: Tensor) -> Tensor:
    """(b, n, dim), what goes into the block, CLS first -> (b, 1, dim), the CLS token after it."""
    attention, (size, count, _) = block.attn, tokens.shape
    qkv = attention.qkv(block.norm1(tokens)).reshape(size, count, 3, attention.num_heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    mixed = functional.scaled_dot_product_attention(
        attention.q_norm(q[:, :, :1]),
        attention.k_norm(k),
        v,
        dropout_p=attention.attn_drop.p if attention.training else 0.0,
    )
    mixed = attention.proj(attention.norm(mixed.transpose(1, 2).reshape(size, 1, -1)))
    token = tokens[:, :1] + block.drop_path1(block.ls1(attention.proj_drop(mixed)))
    return token + block.drop_path2(block.ls2(block.mlp(block.norm2(token))))

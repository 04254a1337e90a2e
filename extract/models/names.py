"""Other names of a vision transformer's tensors, brought to timm's, which most cards have.

Wrappers that training puts around single modules (FSDP, activation checkpoints, compiled blocks); ViT, DINOv2
and DINOv3 of transformers; attention in three products, SwiGLU in three; layer scales; files of DINOv2
without the mask token. Numbers stay: products are stacked, and biases without effect are left out where the
architecture has none.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

_WRAPPERS = re.compile(r"(?<=\.)(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
_PATCHES = re.compile(r"(^|\.)embeddings\.patch_embeddings\.(projection\.)?weight$")  # of transformers
_TRANSFORMERS = tuple(
    (re.compile(old), new)
    for old, new in (
        (r"(^|\.)embeddings\.patch_embeddings\.(projection\.)?", r"\1patch_embed.proj."),
        (r"(^|\.)embeddings\.position_embeddings$", r"\1pos_embed"),
        (r"(^|\.)embeddings\.(cls_token|mask_token|register_tokens)$", r"\1\2"),
        (r"(^|\.)(encoder\.|model\.)?layer\.(\d+)\.", r"\1blocks.\3."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.attention\.(attention\.)?(query|key|value|[qkv]_proj)\.", r".attn.\2."),
        (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"(?<!attention)\.output\.dense\.", ".mlp.fc2."),
        (r"\.mlp\.weights_in\.", ".mlp.w12."),
        (r"\.mlp\.weights_out\.", ".mlp.w3."),
        (r"\.mlp\.gate_proj\.", ".mlp.fc1_g."),
        (r"\.mlp\.down_proj\.", ".mlp.fc2."),
        (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
        (r"(^|\.)layernorm\.", r"\1norm."),
    )
)
_GATE = re.compile(r"(.*\.mlp\.)w1\.weight")
_THIRD = re.compile(r"(.*\.attn\.)(q|query|k|key|v|value)(?:_proj)?\.(weight|bias)")


def with_timms_names(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state under timm's names if `own`, of the architecture, has them; prefixes before them stay."""
    state = _renamed(state, _WRAPPERS, "")
    if not any(name.endswith("blocks.0.attn.qkv.weight") for name in own):
        return state
    eva = any(name.endswith("blocks.0.gamma_1") for name in own)  # timm's class of DINOv3
    if any(_PATCHES.search(name) for name in state):
        gated = any(".mlp.gate_proj." in name for name in state)
        for old, new in _TRANSFORMERS:
            state = _renamed(state, old, new)
        state = _renamed(state, re.compile(r"\.mlp\.up_proj\."), ".mlp.fc1_x." if gated else ".mlp.fc1.")
        if eva:  # a mask token says "EVA's own pretraining" to timm
            state = {name: value for name, value in state.items() if not name.endswith("mask_token")}
            state = _renamed(state, re.compile(r"(^|\.)register_tokens$"), r"\1reg_token")
    state = _without_idle_biases(_stacked(state), own)
    if eva:
        return _renamed(state, re.compile(r"\.ls([12])\.gamma$"), r".gamma_\1")
    if any(name.endswith("blocks.0.ls1.gamma") for name in own):
        state = _renamed(state, re.compile(r"\.gamma_([12])$"), r".ls\1.gamma")
    return _of_dinov2(state)


def _renamed(state: Mapping[str, Tensor], old: re.Pattern[str], new: str) -> dict[str, Tensor]:
    """Left as it is where two tensors would take one name."""
    renamed = {old.sub(new, name): value for name, value in state.items()}
    return renamed if len(renamed) == len(state) else dict(state)


def _stacked(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Products of query, key and value as one, where all three are there and alike."""
    parts: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for name in state:
        if match := _THIRD.fullmatch(name):
            parts[match[1], match[3]][match[2][0]] = name
    stacked = dict(state)
    for (block, kind), names in parts.items():
        three = [state[names[which]] for which in "qkv" if which in names]
        if len(three) == 3 and len({value.shape for value in three}) == 1:
            stacked[f"{block}qkv.{kind}"] = torch.cat(three)
            for name in names.values():
                del stacked[name]
    return stacked


def _with_w12(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """SwiGLU's w1 and w2 stacked, where it is w3(silu(w1 x) * w2 x), as in DINOv3 and EVA.

    LLaMA's w2(silu(w1 x) * w3 x) has other shapes; that, and what the shapes do not tell, is left as it is.
    """
    stacked = dict(state)
    for stem in (match[1] for match in map(_GATE.fullmatch, state) if match):
        gate, other, out = (state.get(f"{stem}w{number}.weight", torch.empty(0)) for number in "123")
        square = gate.shape == gate.shape[::-1]
        if square or not gate.shape == other.shape == out.shape[::-1]:
            continue
        for kind in ("weight", "bias"):
            halves = [f"{stem}w{number}.{kind}" for number in "12"]
            if all(name in state for name in halves):
                stacked[f"{stem}w12.{kind}"] = torch.cat([stacked.pop(name) for name in halves])
    return stacked


def _without_idle_biases(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without biases of attention that the architecture lacks: those that are 0, and the key's (softmax).

    DINOv3 was trained with biases of query and value that came out as 0, and timm builds it without.
    """
    if any(name.endswith(("attn.qkv.bias", "attn.q_bias")) for name in own):
        return dict(state)
    kept = {}
    for name, value in state.items():
        third = _THIRD.fullmatch(name)
        if name.endswith("attn.qkv.bias"):
            query, _, values = value.chunk(3)
            idle = not query.any() and not values.any()
        else:
            idle = third is not None and third[3] == "bias" and (third[2][0] == "k" or not value.any())
        if not idle:
            kept[name] = value
    return kept


def _of_dinov2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of DINOv2's files, which timm knows by their mask token only."""
    renamed = _renamed(_with_w12(state), re.compile(r"\.mlp\.w12\."), ".mlp.fc1.")
    renamed = _renamed(renamed, re.compile(r"\.mlp\.w3\."), ".mlp.fc2.")
    for name in [name for name in renamed if name.rpartition(".")[2] == "register_tokens"]:
        stem = name.removesuffix("register_tokens")
        positions = renamed.get(f"{stem}pos_embed")
        if f"{stem}mask_token" in renamed or positions is None or positions.ndim != 3:
            continue
        if math.isqrt(positions.shape[1] - 1) ** 2 == positions.shape[1] - 1:  # one is of the CLS token
            renamed[f"{stem}mask_token"] = torch.zeros(1, positions.shape[2])
        else:
            renamed[f"{stem}reg_token"] = renamed.pop(name)
    return renamed

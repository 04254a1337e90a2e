"""LoRA on the attention blocks of any vision transformer, through PEFT.

Which layers are adapted is decided here and handed to PEFT by full name, because PEFT's own rule matches the
end of a name over the whole model: "proj" then also takes `patch_embed.proj`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import EncoderError, InvalidRequest, MissingDependency
from .recipe import Recipe

_ATTENTION = ("attn", "attention", "self_attn", "self_attention")
# The linear layers of an attention block by family: timm and CONCH; transformers 5 and 4 (ViT, DINOv2, CLIP);
# EVA. Of each list the first whose names are all there is taken.
_FAMILIES = (
    (
        ("qkv", "proj"),
        ("q_proj", "k_proj", "v_proj", "o_proj"),
        ("q_proj", "k_proj", "v_proj", "out_proj"),
        ("q_proj", "k_proj", "v_proj", "proj"),
        ("query", "key", "value", "attention.output.dense"),
    ),
    (
        ("gate_proj", "up_proj", "down_proj"),
        ("up_proj", "down_proj"),
        ("fc1_g", "fc1_x", "fc2"),
        ("fc1", "fc2"),
        ("weights_in", "weights_out"),
        ("w12", "w3"),
        ("intermediate.dense", "output.dense"),
    ),
)
_PEFT_PREFIX = (
    "base_model.model."  # what PeftModel.from_pretrained expects before every name of an adapter file
)


def attention_blocks(model: nn.Module) -> list[str]:
    """Names of the outermost modules that have an attention layer as a direct child ("blocks.0", ...).

    Attention pooling, which comes after the blocks, is none of them.
    """
    blocks: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{block}.") for block in blocks)
        pooling = "pool" in f"{name.rpartition('.')[2]} {type(module).__name__}".lower()
        attends = any(child in _ATTENTION for child, _ in module.named_children())
        if name and attends and not inside and not pooling:
            blocks.append(name)
    return blocks


def family_targets(model: nn.Module) -> tuple[str, ...]:
    """Patterns of all linear layers of its attention blocks, by the family's names; () if unknown."""
    blocks = tuple(f"{block}." for block in attention_blocks(model))
    there = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith(blocks)]
    chosen: list[str] = []
    for family in _FAMILIES if blocks else ():
        found = (names for names in family if all(any(n.endswith(f".{p}") for n in there) for p in names))
        chosen += next(found, ())
    return tuple(chosen)


def chosen_targets(model: nn.Module, recipe: Recipe, declared: Sequence[str] = ()) -> tuple[str, ...]:
    """The recipe's targets; where it leaves them at the default, those of the card, else of the family.

    declared : the card's `lora.targets`
    """
    if recipe.suffix_match or recipe.targets != Recipe.model_fields["targets"].default:
        return recipe.targets
    return tuple(declared) or family_targets(model) or recipe.targets


def target_layers(
    model: nn.Module, patterns: Sequence[str], *, suffix_match: bool = False, last_blocks: int = 0
) -> list[str]:
    """Full names of the layers that the patterns choose.

    patterns : fnmatch patterns of a linear or convolutional layer's name inside its block ("attn.qkv",
        "mlp.*") or of its last part ("qkv"). Every pattern has to match a layer. Convolutions in groups
        are left out.
    suffix_match : PEFT's rule instead (see Recipe.suffix_match): such layers of the whole model
    Raises InvalidRequest that lists what there is.
    """
    linear = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    # PEFT has no adapter for a convolution in groups (PVTv2's mlp.dwconv) but for ranks that they divide
    grouped = [n for n, m in linear if isinstance(m, nn.Conv2d) and m.groups > 1]
    layers = [n for n, _ in linear if n not in grouped]
    if suffix_match:
        inside = {n: n for n in layers}
        chosen = {p: [n for n in layers if n == p or n.endswith(f".{p}")] for p in patterns}
    else:
        inside = _inside_blocks(model, layers, last_blocks)
        chosen = {
            p: [
                n
                for n, short in inside.items()
                if fnmatchcase(short, p) or fnmatchcase(short.split(".")[-1], p)
            ]
            for p in patterns
        }
    if empty := [p for p in patterns if not chosen[p]]:
        raise _no_match(empty, inside, layers, grouped)
    wanted = {n for names in chosen.values() for n in names}
    return [n for n in layers if n in wanted]


def _inside_blocks(model: nn.Module, layers: Sequence[str], last_blocks: int) -> dict[str, str]:
    """Full name -> name within its block, of the layers of the last attention blocks (0: of all)."""
    blocks = attention_blocks(model)
    if not blocks:
        raise InvalidRequest(
            f"{type(model).__name__} has no attention blocks, so LoRA has no layers to adapt; "
            "train all of it with --recipe full"
        )
    if last_blocks > len(blocks):
        raise InvalidRequest(
            f"last_blocks is {last_blocks}, but the model has {len(blocks)} attention blocks"
        )
    inside = {}
    for name in layers:
        block = next((b for b in blocks[-last_blocks:] if name.startswith(f"{b}.")), None)
        if block is not None:
            inside[name] = name[len(block) + 1 :]
    return inside


def _no_match(
    empty: Sequence[str], inside: Mapping[str, str], layers: Sequence[str], grouped: Sequence[str]
) -> InvalidRequest:
    """What to say of patterns that no layer has: which layers there are, and which are never adapted."""
    there = ", ".join(f"{short} (x{count})" for short, count in Counter(inside.values()).items())
    outside = [n for n in layers if n not in inside and any(fnmatchcase(n, f"*{p}") for p in empty)]
    in_groups = [n for n in grouped if any(fnmatchcase(n, f"*{p}") for p in empty)]
    text = f"targets {empty} match no layer. The attention blocks contain: {there}"
    if outside:
        text += f". Outside the blocks, and never adapted: {', '.join(outside)}"
    if in_groups:
        text += f". Grouped convolutions, which are never adapted: {', '.join(in_groups[:3])}"
        text += f" and {len(in_groups) - 3} more" if len(in_groups) > 3 else ""
    return InvalidRequest(text)


def add_lora(model: nn.Module, recipe: Recipe, *, seed: int, declared: Sequence[str] = ()) -> list[str]:
    """Wrap the recipe's layers in place; freeze everything else. Returns the names of the adapted layers.

    declared : the targets of the encoder's card (see `chosen_targets`)
    The first output of the adapted model is the base model's (B starts at 0). `seed` decides A. PEFT is asked
    for the layers by name, and what it wrapped is compared with what was wanted.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingDependency("LoRA needs PEFT: pip install 'patchbank[finetune]'") from error
    targets = chosen_targets(model, recipe, declared)
    names = target_layers(model, targets, suffix_match=recipe.suffix_match, last_blocks=recipe.last_blocks)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # pyright: ignore[reportArgumentType]  (a ratio; PEFT only divides it)
        lora_dropout=recipe.dropout,
        target_modules=names,
        bias="none",
        use_rslora=recipe.rslora,
        use_dora=recipe.dora,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    wrapped = [n for n, m in model.named_modules() if _is_adapter(m)]
    if sorted(wrapped) != sorted(names):
        raise EncoderError(
            f"PEFT adapted {sorted(set(wrapped) ^ set(names))} contrary to the request; report this with "
            "the PEFT version"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return names


def adapters(model: nn.Module) -> dict[str, nn.Module]:
    """The adapted layers by full name (PEFT's LoraLayer)."""
    return {n: m for n, m in model.named_modules() if _is_adapter(m)}


def merge(model: nn.Module) -> None:
    """Add every adapter into its base weight, in place: no cost at inference, up to float32 rounding."""
    for module in adapters(model).values():
        module.merge(safe_merge=True)  # pyright: ignore[reportCallIssue]


def unmerge(model: nn.Module) -> None:
    """Undo merge, up to float32 rounding."""
    for module in adapters(model).values():
        module.unmerge()  # pyright: ignore[reportCallIssue]


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' tensors, named as PEFT's files do: "base_model.model.blocks.0.attn.qkv.lora_A.weight"."""
    return {
        _PEFT_PREFIX + name.replace(".default", ""): tensor.detach()
        for name, tensor in model.state_dict().items()
        if "lora_" in name
    }


def load_adapter_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the result of adapter_state into a model prepared by add_lora; names and shapes must agree."""
    own = {_PEFT_PREFIX + n.replace(".default", ""): t for n, t in model.state_dict().items() if "lora_" in n}
    wrong = sorted(set(own) ^ set(state)) or [n for n in own if own[n].shape != state[n].shape]
    if wrong:
        raise EncoderError(
            f"the adapter does not match this encoder: {len(wrong)} tensors differ, first {wrong[0]}"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])


def adapter_config(recipe: Recipe, names: Sequence[str]) -> dict[str, Any]:
    """PEFT's adapter_config.json of these adapters, so that PeftModel.from_pretrained reads them too."""
    from peft import LoraConfig

    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=recipe.dropout,
        target_modules=list(names),
        bias="none",
        use_rslora=recipe.rslora,
        use_dora=recipe.dora,
        inference_mode=True,
    )
    return {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}


def require_gradients(model: nn.Module, recipe: Recipe) -> None:
    """After a backward pass: every adapter has a gradient; of a backbone that trains as a whole, some tensor.

    Raises EncoderError naming a tensor without. A layer whose weight is used past its `forward` has none.
    Where all weights train, a few rightly have none: mask tokens, projections that the head does not see.
    """
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad and not n.startswith("head.")]
    idle = [n for n, p in trained if p.grad is None]
    if idle and (recipe.method == "lora" or len(idle) == len(trained)):
        raise EncoderError(
            f"{len(idle)} trained tensors do not affect the output, first {idle[0]}: this "
            "architecture does not call that layer. Leave it out of targets"
        )


def _is_adapter(module: nn.Module) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(module, BaseTunerLayer)

"""Files under other names than timm's: the same tokens as the network that saved them, or a refusal."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from patchbank.errors import EncoderError
from patchbank.extract.cards import Card, Transform
from patchbank.extract.encoders import build_encoder
from safetensors.torch import load_file, save_file
from torch.nn import functional

State = dict[str, torch.Tensor]


def card(model: str, width: int, side: int = 32, **arguments: Any) -> Card:
    arguments = {
        "img_size": side,
        "depth": 2,
        "num_classes": 0,
        "embed_dim": width,
        "num_heads": 2,
    } | arguments
    registers = 4 if "reg4" in model or "dinov3" in model else 0
    shape = Transform(size=side)
    return Card(
        id="small", model=model, dim=width, grid=4, prefix=1 + registers, arguments=arguments, transform=shape
    )


VIT = card("vit_tiny_patch16_224", 16)
DINOV2 = card("vit_small_patch14_dinov2", 16, 28)
REGISTERS = card("vit_small_patch14_reg4_dinov2", 16, 28)
GATED = card("vit_giant_patch14_reg4_dinov2", 48, 28, mlp_ratio=5.33334)
DINOV3 = card("vit_small_patch16_dinov3", 32, mlp_ratio=2.0)
DINOV3_GATED = card("vit_huge_plus_patch16_dinov3", 32, mlp_ratio=2.0, swiglu_align_to=1)


def own(of: Card) -> State:
    torch.manual_seed(0)
    network: Any = build_encoder(of, device="cpu", random_weights=True).network
    return dict(network.model.state_dict())


def each(state: State, pattern: str, new: str) -> State:
    return {re.sub(pattern, new, name): value for name, value in state.items()}


def thirds(state: State, names: tuple[str, str, str]) -> State:
    found = {}
    for name, value in state.items():
        if "attn.qkv" in name:
            found |= {name.replace("qkv", n): v for n, v in zip(names, value.chunk(3), strict=True)}
        else:
            found[name] = value
    return found


def as_dinov2(state: State, gated: bool, positions_of_cls: bool, mask: bool) -> State:
    """As dinov2_*_reg4_pretrain.pth: register_tokens, w12 and w3, a position for the CLS token."""
    state = each(state, r"^reg_token$", "register_tokens")
    if gated:
        state = each(each(state, r"mlp\.fc1\.", "mlp.w12."), r"mlp\.fc2\.", "mlp.w3.")
    width = state["cls_token"].shape[-1]
    if positions_of_cls:
        zero = torch.zeros(1, 1, width)
        state = state | {"pos_embed": torch.cat([zero, state["pos_embed"]], dim=1)}
    return state | ({"mask_token": torch.zeros(1, width)} if mask else {})


BLOCK = r"(blocks\.\d\.)"


def as_dinov3(state: State) -> State:
    """As dinov3_*_pretrain.pth: storage_tokens, biases that are 0 under a mask, periods of the positions."""
    state = each(each(state, r"^reg_token$", "storage_tokens"), r"gamma_([12])$", r"ls\1.gamma")
    for block in range(2):
        state[f"blocks.{block}.attn.qkv.bias"] = torch.zeros(96)
        state[f"blocks.{block}.attn.qkv.bias_mask"] = torch.full((96,), torch.nan)
    return state | {"mask_token": torch.zeros(1, 32), "rope_embed.periods": torch.ones(8)}


def as_w123(state: State) -> State:
    for old, new in (("fc1_g", "w1"), ("fc1_x", "w2"), ("fc2", "w3")):
        state = each(state, rf"mlp\.{old}\.", f"mlp.{new}.")
    return state


CHANGES: dict[str, tuple[Card, Callable[[State], State]]] = {
    "FSDP": (VIT, lambda s: each(each(s, BLOCK, r"\1_fsdp_wrapped_module."), r"^", "_fsdp_wrapped_module.")),
    "activation checkpoints": (VIT, lambda s: each(s, BLOCK, r"\1_checkpoint_wrapped_module.")),
    "compiled blocks": (VIT, lambda s: each(each(s, BLOCK, r"\1_orig_mod."), r"^", "model.")),
    "nested wrappers": (VIT, lambda s: each(s, r"^", "model.module.module.")),
    "q_proj k_proj v_proj": (VIT, lambda s: thirds(s, ("q_proj", "k_proj", "v_proj"))),
    "q k v": (VIT, lambda s: each(thirds(s, ("q", "k", "v")), r"^", "backbone.")),
    "gamma_1": (DINOV2, lambda s: each(s, r"ls([12])\.gamma", r"gamma_\1")),
    "iBOT": (VIT, lambda s: s | {"masked_embed": torch.zeros(1, 16)}),
    "DINOv2 reg": (REGISTERS, lambda s: as_dinov2(s, False, True, True)),
    "DINOv2 reg, no mask token": (REGISTERS, lambda s: as_dinov2(s, False, True, False)),
    "DINOv2 giant reg, no mask token": (GATED, lambda s: as_dinov2(s, True, True, False)),
    "registers without a position of CLS": (GATED, lambda s: as_dinov2(s, True, False, False)),
    "DINOv3": (DINOV3, as_dinov3),
    "DINOv3 H+": (DINOV3_GATED, lambda s: as_w123(as_dinov3(s))),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_tensor_is_found_under_other_names(tmp_path: Path, name: str) -> None:
    of, change = CHANGES[name]
    state = own(of)
    torch.save({"state_dict": change(state)}, tmp_path / "other.pth")
    loaded: Any = build_encoder(of, device="cpu", checkpoint=tmp_path / "other.pth").network
    found = loaded.model.state_dict()
    assert all(torch.equal(found[n], value) for n, value in state.items())


def in_three(state: State, names: tuple[str, str, str]) -> State:
    """SwiGLU not packed: the gate, the other half, the output."""
    gate, other, out = names
    found = {}
    for name, value in state.items():
        if "mlp.fc1." in name:
            halves = zip((gate, other), value.chunk(2), strict=True)
            found |= {name.replace("fc1", half): part.clone() for half, part in halves}
        else:
            found[name.replace("mlp.fc2.", f"mlp.{out}.")] = value
    return found


def test_swiglu_that_is_not_packed(tmp_path: Path) -> None:
    state = in_three(own(GATED), ("w1", "w2", "w3"))
    torch.save(state, tmp_path / "three.pth")
    network: Any = build_encoder(
        GATED, device="cpu", checkpoint=tmp_path / "three.pth", precision="fp32"
    ).network
    tokens = torch.randn(2, 9, 48)

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, *(state[f"blocks.1.mlp.{name}.{kind}"] for kind in ("weight", "bias")))

    wanted = linear("w3", functional.silu(linear("w1", tokens)) * linear("w2", tokens))
    torch.testing.assert_close(network.model.blocks[1].mlp(tokens), wanted)
    torch.save(in_three(own(GATED), ("w1", "w3", "w2")), tmp_path / "llama.pth")
    with pytest.raises(EncoderError, match=r"not known|lacks"):
        build_encoder(GATED, device="cpu", checkpoint=tmp_path / "llama.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_and_metadata(tmp_path: Path, dtype: torch.dtype) -> None:
    state = own(VIT)
    save_file(
        {n: v.to(dtype) for n, v in state.items()}, tmp_path / "x.safetensors", metadata={"format": "pt"}
    )
    loaded: Any = build_encoder(VIT, device="cpu", checkpoint=tmp_path / "x.safetensors", precision="fp32")
    found = loaded.network.model.state_dict()
    assert all(torch.equal(found[n], v.to(dtype).float()) for n, v in state.items())


def of_transformers(kind: str) -> tuple[Card, Any]:
    """A card of timm and a network of transformers with the same architecture, every weight random."""
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28}
    shape |= {"patch_size": 14}
    wide = shape | {"image_size": 32, "patch_size": 16, "intermediate_size": 64}
    dinov3 = wide | {"hidden_size": 32, "num_register_tokens": 4}
    of, family, settings = {
        "ViT": (VIT, "ViT", wide | {"layer_norm_eps": 1e-6}),
        "DINOv2": (DINOV2, "Dinov2", shape),
        "DINOv2 reg": (REGISTERS, "Dinov2WithRegisters", shape),
        "DINOv2 giant": (GATED, "Dinov2WithRegisters", shape | {"hidden_size": 48, "use_swiglu_ffn": True}),
        "DINOv3": (DINOV3, "DINOv3ViT", dinov3),
        "DINOv3 H+": (DINOV3_GATED, "DINOv3ViT", dinov3 | {"use_gated_mlp": True, "hidden_act": "silu"}),
    }[kind]
    build, config = (getattr(transformers, f"{family}{part}") for part in ("Model", "Config"))
    torch.manual_seed(1)
    model: Any = build(config(**settings)).eval()
    for name, value in model.named_parameters():
        idle = "DINOv3" in kind and name.endswith(("q_proj.bias", "v_proj.bias"))
        torch.nn.init.zeros_(value) if idle else torch.nn.init.normal_(value, std=0.1)
    return of, model


@pytest.mark.parametrize("kind", ["ViT", "DINOv2", "DINOv2 reg", "DINOv2 giant", "DINOv3", "DINOv3 H+"])
@pytest.mark.parametrize("prefix", ["", "model.backbone."])
def test_files_of_transformers_give_the_same_tokens(tmp_path: Path, kind: str, prefix: str) -> None:
    of, model = of_transformers(kind)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    if prefix:
        save_file(each(load_file(file), r"^", prefix) | {"classifier.weight": torch.ones(2, 2)}, file)
    encoder = build_encoder(of, device="cpu", checkpoint=file, precision="fp32")
    images = torch.randn(2, 3, of.transform.size, of.transform.size)
    with torch.no_grad():
        tokens = encoder.network.features(images).tokens
        torch.testing.assert_close(tokens, model(images).last_hidden_state, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("names", ["transformers", "its own"])
def test_biases_that_timm_would_leave_out_are_refused_unless_zero(tmp_path: Path, names: str) -> None:
    if names == "transformers":
        _, model = of_transformers("DINOv3")
        torch.nn.init.ones_(model.get_parameter("model.layer.1.attention.q_proj.bias"))
        model.save_pretrained(tmp_path)
        file, wanted = tmp_path / "model.safetensors", "blocks.1.attn.q_proj.bias"
    else:
        state = CHANGES["DINOv3"][1](own(DINOV3))
        file, wanted = tmp_path / "meta.pth", "blocks.1.attn.qkv.bias"
        state[wanted] = torch.ones(96)
        torch.save(state, file)
    with pytest.raises(EncoderError, match=rf"tensors 1 not known \({re.escape(wanted)}\)"):
        build_encoder(DINOV3, device="cpu", checkpoint=file)


def test_half_of_a_file_and_two_thirds_of_attention_are_refused(tmp_path: Path) -> None:
    state = own(VIT)
    torch.save(dict(list(state.items())[:15]), tmp_path / "half.pth")
    with pytest.raises(EncoderError, match=r"15 of 30 tensors fit; tensors 15 missing"):
        build_encoder(VIT, device="cpu", checkpoint=tmp_path / "half.pth")
    cut = {n: v for n, v in thirds(state, ("q_proj", "k_proj", "v_proj")).items() if "v_proj" not in n}
    torch.save(cut, tmp_path / "thirds.pth")
    with pytest.raises(
        EncoderError, match=r"missing \(blocks\.0\.attn\.qkv\.weight.*not known \(blocks\.0\.attn\.q_proj"
    ):
        build_encoder(VIT, device="cpu", checkpoint=tmp_path / "thirds.pth")


def under(state: State, prefix: str, add: float = 0.0) -> State:
    return {f"{prefix}{name}": value + add for name, value in state.items()}


TRAINED: dict[str, tuple[Callable[[State], object], str]] = {
    "Lightning's callback of averages": (
        lambda s: {
            "state_dict": under(s, "model.", 1),
            "callbacks": {"EMA": {"ema_state_dict": under(s, "model.")}},
        },
        "key 'callbacks/EMA/ema_state_dict' and prefix 'model.'",
    ),
    "torch's AveragedModel": (lambda s: under(s, "module.") | {"n_averaged": torch.tensor(3)}, "'module.'"),
    "DeepSpeed": (lambda s: {"module": under(s, "backbone."), "ds_config": {"a": 1}}, "key 'module'"),
    "MAE": (
        lambda s: {"model": s | {"decoder_pos_embed": torch.zeros(1, 5, 8), "mask_token": torch.ones(1)}},
        "key 'model'",
    ),
    "two towers": (
        lambda s: under(s, "module.visual.trunk.") | {"module.text.w": torch.ones(2)},
        "prefix 'module.visual.trunk.'",
    ),
    "DINOv2 in one state": (
        lambda s: {
            "model": under(s, "teacher.backbone.")
            | under(s, "student.backbone.", 1)
            | {"dino_loss.center": torch.zeros(1, 2)}
        },
        "prefix 'teacher.backbone.'",
    ),
    "wrappers in either order": (lambda s: under(s, "_orig_mod.module.backbone."), "prefix"),
    "PEFT": (lambda s: under(s, "base_model.model."), "prefix 'base_model.model.'"),
    "timm's averages": (
        lambda s: {"state_dict": under(s, "", 1), "state_dict_ema": s},
        "key 'state_dict_ema'",
    ),
    "averages of a trainer": (
        lambda s: {"state_dict": under(s, "model.", 1), "ema": {"module": s, "decay": 0.99}},
        "key 'ema/module'",
    ),
    "averages in one state": (
        lambda s: under(s, "online_model.", 1) | under(s, "ema_model.") | {"step": torch.tensor(3)},
        "prefix 'ema_model.'",
    ),
    "MoCo": (
        lambda s: under(s, "module.base_encoder.") | under(s, "module.momentum_encoder.", 1),
        "prefix 'module.base_encoder.'",
    ),
    "DINO's training": (
        lambda s: {
            "student": under(s, "module.backbone.", 1) | {"module.head.mlp.0.weight": torch.ones(3, 3)},
            "teacher": under(s, "backbone.") | {"head.mlp.0.weight": torch.ones(3, 3)},
            "optimizer": {"state": {}, "param_groups": []},
            "epoch": 3,
        },
        "key 'teacher' and prefix 'backbone.'",
    ),
    "parameters and a tied head": (
        lambda s: (
            {n: torch.nn.Parameter(v) for n, v in s.items()}
            | dict.fromkeys(("head.weight", "classifier.weight"), torch.ones(3, 16))
        ),
        "",
    ),
}


@pytest.mark.parametrize("name", TRAINED)
def test_checkpoints_as_training_leaves_them(tmp_path: Path, name: str) -> None:
    wrap, origin = TRAINED[name]
    state = own(VIT)
    torch.save(wrap(state), tmp_path / "trained.pth")
    network: Any = build_encoder(VIT, device="cpu", checkpoint=tmp_path / "trained.pth").network
    assert origin in network.origin
    assert all(torch.equal(network.model.state_dict()[n], value) for n, value in state.items())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s | {"blocks.0.attn.qkv.lora_A.weight": torch.ones(2, 16)}, r"30 of 30 .* 1 not known"),
        (lambda s: each(s, r"blocks\.1\.", "blocks.2.") | s, "12 not known"),
        (lambda s: each(s, r"^norm\.weight$", "norm.weight_g"), r"1 missing \(norm.weight\)"),
        (
            lambda s: {n: v.T.contiguous() if v.ndim == 2 else v for n, v in s.items()},
            r"attn.qkv.weight \(16, 48\) for \(48, 16\)",
        ),
        (lambda s: s | {"pos_embed": torch.zeros(1, 7, 16)}, r"pos_embed \(1, 7, 16\) for \(1, 5, 16\)"),
        (lambda s: each(s, r"attn\.qkv\.", "attn.qkv.base_layer."), r"26 of 30 .* 4 missing"),
        (
            lambda s: under(s, "online.") | under(s, "target.", 1),
            r"several backbones .*'online.'; .*'target.'",
        ),
        (lambda s: [s], "holds no state dict"),
        (
            lambda s: {f"{'ab'[i % 2]}.{n}": v for i, (n, v) in enumerate(s.items())},
            r"15 of 30 tensors fit; tensors 15 missing",
        ),
        (
            lambda s: s | {"pos_embed": s["pos_embed"][:, 1:]},
            r"29 of 30 .*\(pos_embed \(1, 4, 16\) for \(1, 5, 16\)",
        ),
        (lambda s: each(s, r"^norm\.", "fc_norm."), r"2 missing .*2 not known \(fc_norm.weight"),
        (
            lambda s: {n: v for n, v in s.items() if "blocks.1" not in n},
            r"18 of 30 .* 12 missing \(blocks.1.norm1",
        ),
    ],
)
def test_what_is_not_quite_the_network_is_refused(
    tmp_path: Path, change: Callable[[State], object], says: str
) -> None:
    torch.save(change(own(VIT)), tmp_path / "other.pth")
    with pytest.raises(EncoderError, match=says):
        build_encoder(VIT, device="cpu", checkpoint=tmp_path / "other.pth")

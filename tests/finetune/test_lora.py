"""Which layers are adapted: those that were named, inside the blocks, and no others."""

from types import SimpleNamespace

import pytest
import timm
import torch
from patchbank.errors import EncoderError, InvalidRequest
from patchbank.finetune.lora import (
    adapter_state,
    adapters,
    add_lora,
    attention_blocks,
    load_adapter_state,
    merge,
    require_gradients,
    target_layers,
    unmerge,
)


def test_a_wrong_pattern_is_refused_with_what_exists(tiny: SimpleNamespace) -> None:
    model = tiny.vit().model
    with pytest.raises(
        InvalidRequest, match=r"\['qvk'\].*attn.qkv \(x2\), attn.proj \(x2\), mlp.fc1 \(x2\), mlp.fc2"
    ):
        target_layers(model, ["fc1", "qvk"])
    with pytest.raises(InvalidRequest, match=r"never adapted: patch_embed.proj"):
        target_layers(model, ["patch_embed.proj"])
    with pytest.raises(InvalidRequest, match="last_blocks is 3, but the model has 2"):
        target_layers(model, ["qkv"], last_blocks=3)


def test_patterns_stay_inside_the_blocks_and_pefts_own_rule_does_not(tiny: SimpleNamespace) -> None:
    model = tiny.vit().model
    assert target_layers(model, ["proj"]) == ["blocks.0.attn.proj", "blocks.1.attn.proj"]
    assert target_layers(model, ["attn.*", "mlp.fc?"], last_blocks=1) == [
        "blocks.1.attn.qkv", "blocks.1.attn.proj", "blocks.1.mlp.fc1", "blocks.1.mlp.fc2",
    ]  # fmt: skip
    assert "patch_embed.proj" in target_layers(model, ["proj"], suffix_match=True)
    add_lora(model, tiny.recipe(targets=("proj",), suffix_match=True), seed=0)
    assert list(adapters(model)) == ["patch_embed.proj", "blocks.0.attn.proj", "blocks.1.attn.proj"]


@pytest.mark.parametrize(
    ("name", "options", "blocks"),
    [
        (
            "swin_tiny_patch4_window7_224",
            {"depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 1, 1, 1)},
            4,
        ),
        ("eva02_tiny_patch14_224", {"depth": 2, "embed_dim": 32, "num_heads": 2}, 2),
        ("vit_tiny_patch16_224", {"depth": 3, "embed_dim": 32, "num_heads": 2}, 3),
    ],
)
def test_other_architectures(name: str, options: dict, blocks: int, tiny: SimpleNamespace) -> None:
    model = timm.create_model(name, pretrained=False, num_classes=0, **options)
    assert len(attention_blocks(model)) == blocks
    names = add_lora(model, tiny.recipe(targets=("qkv", "proj")), seed=0)
    assert len(names) == 2 * blocks


def test_convolutions_in_groups_are_never_adapted(tiny: SimpleNamespace) -> None:
    """PEFT raises for them, whatever it is that asks: "mlp.*" of a PVT has one in every block."""
    model = timm.create_model("pvt_v2_b0", pretrained=False, num_classes=0)
    named = target_layers(model, ["mlp.*"])
    assert named
    assert not [name for name in named if "dwconv" in name]
    add_lora(model, tiny.recipe(targets=("mlp.*",), rank=3), seed=0)
    assert sorted(adapters(model)) == sorted(named)
    with pytest.raises(
        InvalidRequest, match=r"Grouped convolutions, which are never adapted: \S+dwconv\S*, .* and \d+ more"
    ):
        target_layers(model, ["dwconv"])


def test_a_network_without_attention_is_told_to_train_fully(tiny: SimpleNamespace) -> None:
    with pytest.raises(InvalidRequest, match="--recipe full"):
        add_lora(timm.create_model("resnet10t", pretrained=False), tiny.recipe(), seed=0)


def test_a_layer_that_is_not_called_is_noticed(tiny: SimpleNamespace) -> None:
    class Bypassed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = torch.nn.Linear(4, 4)
            self.attn.qkv = torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(x, self.attn.get_submodule("qkv").weight)  # pyright: ignore  # past the layer's forward

    model = torch.nn.Sequential(Bypassed(), torch.nn.Linear(4, 1))
    add_lora(model, tiny.recipe(targets=("qkv",)), seed=0)
    model[1].requires_grad_(True)
    model(torch.randn(2, 4)).sum().backward()
    with pytest.raises(EncoderError, match="Leave it out of targets"):
        require_gradients(model)


@pytest.mark.parametrize("options", [{}, {"rslora": True}, {"dora": True}], ids=str)
def test_merge_unmerge_and_reload(options: dict, tiny: SimpleNamespace) -> None:
    recipe = tiny.recipe(**options)
    batch = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model = tiny.vit().model.eval()
    plain = model(batch)
    add_lora(model, recipe, seed=0)
    model.eval()
    assert torch.allclose(model(batch), plain, atol=1e-6)  # B is 0
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(2))
    adapted = model(batch)
    assert not torch.allclose(adapted, plain, atol=1e-2)
    twin = tiny.vit().model.eval()
    add_lora(twin, recipe, seed=99)
    load_adapter_state(twin, adapter_state(model))
    assert torch.equal(twin.eval()(batch), adapted)
    merge(model)
    scale = adapted.abs().max()
    assert (model(batch) - adapted).abs().max() <= 1e-5 * scale
    unmerge(model)
    assert (model(batch) - adapted).abs().max() <= 1e-5 * scale
    with pytest.raises(EncoderError, match="does not match"):
        load_adapter_state(twin, {"base_model.model.other": torch.zeros(1)})

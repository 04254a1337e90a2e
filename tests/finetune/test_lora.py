"""Which layers are adapted: those that were named, inside the blocks, and no others."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from patchbank.errors import EncoderError, InvalidRequest
from patchbank.extract.cards import Card, at_size
from patchbank.extract.registry import load_card
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
from patchbank.finetune.model import classifier
from patchbank.finetune.recipe import Recipe
from patchbank.finetune.train import training_mode


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
        require_gradients(model, tiny.recipe())


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


FAMILIES = {  # card -> layers adapted in each block
    "uni": 4,  # timm: qkv, proj, fc1, fc2
    "virchow2": 4,  # SwiGLU, packed in fc1
    "dinov3-s": 4,
    "dinov3-hplus": 5,  # gated
    "musk": 4,
    "swin-b": 4,
    "ctranspath": 4,
    "conch": 4,
    "conch-v1.5": 4,
    "keep": 4,
    "isight": 6,  # CLIP of transformers
    "plip": 6,
    "phikon": 6,  # ViT of transformers
    "hibou-b": 7,  # DINOv2 of transformers, gated units
    "phikon-v2": 6,
}


def small(card: Card) -> Card:
    """The card's own architecture, one block deep, and narrow where its arguments say how wide it is."""
    arguments: dict[str, Any] = {"depth": 1}
    if card.kind == "transformers" or card.model == "isight":
        arguments = {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 4}
        arguments |= {"intermediate_size": 128} if "intermediate_size" in card.arguments else {}
    elif card.model.startswith("swin"):
        arguments = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
        return card.replace(dim=128, arguments={**card.arguments, **arguments})
    elif card.kind == "timm" and not card.model.startswith("beit3"):
        arguments |= {"embed_dim": 160, "num_heads": 4}
    dim = arguments.get("embed_dim") or arguments.get("hidden_size") or card.dim
    return card.replace(arguments={**card.arguments, **arguments}, dim=dim)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_layers_of_every_family_are_trained_and_merged(name: str) -> None:
    """Two steps of the default recipe at the targets that the card or its family has."""
    recipe = Recipe(dropout=0.0)
    card = small(load_card(name))
    if name in ("musk", "conch", "conch-v1.5", "keep"):  # as wide as the real ones
        card = at_size(card, 112)
    network, names = classifier(card, recipe, weights=None)
    for tensor, parameter in network.named_parameters():
        if re.search(r"gamma|lambda1", tensor):  # LayerScale begins near 0, and hides what a block does
            torch.nn.init.ones_(parameter)
    blocks = attention_blocks(network.inner)
    assert len(names) == FAMILIES[name] * len(blocks)
    start = {n: p.detach().clone() for n, p in network.named_parameters()}
    size = network.transform.size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    training_mode(network, recipe)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-2)
    first = network(images).detach()
    for _ in range(2):
        optimizer.zero_grad()
        (network(images) - torch.tensor([1.0, -1.0])).square().sum().backward()
        require_gradients(network, recipe)
        optimizer.step()
    changed = {n for n, p in network.named_parameters() if not torch.equal(p, start[n])}
    prefix = next(n for n, m in network.named_modules() if m is network.inner)
    tensors = {f"{prefix}.{n}.lora_{t}.default.weight" for n in names for t in "AB"}
    assert changed == tensors | {"head.weight", "head.bias"}
    network.eval()
    with torch.no_grad():
        adapted = network.embed(images)
        merge(network.inner)
        merged = network.embed(images)
        unmerge(network.inner)
        for adapter in adapters(network).values():
            adapter.enable_adapters(False)  # pyright: ignore[reportCallIssue]
        base = network.embed(images)
    scale = adapted.abs().max()
    assert (adapted - merged).abs().max() <= 2e-5 * scale
    assert (adapted - base).abs().max() > 1e-3 * scale, "the adapters do something"
    assert not torch.allclose(network(images), first, atol=1e-3)


def test_pooling_after_the_blocks_is_no_block() -> None:
    card = small(load_card("conch"))
    network, names = classifier(card, Recipe(last_blocks=1), weights=None)
    assert any("attn_pool" in n for n, _ in network.named_modules())
    assert attention_blocks(network.inner) == ["trunk.blocks.0"]
    assert all(n.startswith("trunk.blocks.0.") for n in names)


def test_all_weights_train_where_a_few_are_not_used() -> None:
    """DINOv2 of transformers has a mask token, which only its pre-training sees."""
    recipe = Recipe(method="full")
    network, _ = classifier(small(load_card("hibou-b")), recipe, weights=None)
    size = network.transform.size
    network(torch.zeros(1, 3, size, size)).sum().backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None]
    assert any("mask_token" in n for n in idle)
    require_gradients(network, recipe)
    for parameter in network.backbone.parameters():
        parameter.grad = None
    with pytest.raises(EncoderError, match="do not affect the output"):
        require_gradients(network, recipe)

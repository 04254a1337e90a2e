"""MUSK's vision half in timm's BEiT-3 against its definition written out, from a checkpoint of its names."""

from pathlib import Path

import pytest
import torch
from patchbank.errors import EncoderError
from patchbank.extract.cards import Card, Transform
from patchbank.extract.encoders import build_encoder
from patchbank.extract.registry import load_card
from torch.nn.functional import conv2d, gelu, layer_norm, linear, softmax

DIM, HEADS, PATCH, SIDE, DEPTH = 32, 4, 16, 32, 2
GRID = (SIDE // PATCH) ** 2


def small() -> Card:
    card = load_card("musk")
    shape = {"embed_dim": DIM, "num_heads": HEADS, "depth": DEPTH, "img_size": SIDE}
    return card.replace(
        dim=DIM, grid=GRID, arguments={**card.arguments, **shape}, transform=Transform(size=SIDE)
    )


def checkpoint(seed: int = 0) -> dict[str, torch.Tensor]:
    """Names as torchscale's BEiT3 in MUSK saves them: both branches, text, mask token, heads."""
    torch.manual_seed(seed)
    state: dict[str, torch.Tensor] = {}

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = (
            1 + 0.1 * torch.randn(width),
            0.1 * torch.randn(width),
        )

    def product(name: str, wide: int, narrow: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = 0.2 * torch.randn(wide, narrow), torch.randn(wide)

    state["beit3.text_embed.weight"] = torch.randn(7, DIM)
    state["beit3.vision_embed.mask_token"] = torch.randn(1, 1, DIM)
    state["beit3.vision_embed.cls_token"] = torch.randn(1, 1, DIM)
    state["beit3.vision_embed.proj.weight"] = 0.05 * torch.randn(DIM, 3, PATCH, PATCH)
    state["beit3.vision_embed.proj.bias"] = torch.randn(DIM)
    state["beit3.encoder.embed_positions.A.weight"] = torch.randn(GRID + 3, DIM)
    state["beit3.encoder.embed_positions.B.weight"] = torch.randn(9, DIM)
    for branch in "AB":
        for k in range(DEPTH):
            layer = f"beit3.encoder.layers.{k}"
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                product(f"{layer}.self_attn.{part}.{branch}", DIM, DIM)
            norm(f"{layer}.self_attn.inner_attn_ln.{branch}", DIM)
            norm(f"{layer}.self_attn_layer_norm.{branch}", DIM)
            norm(f"{layer}.final_layer_norm.{branch}", DIM)
            product(f"{layer}.ffn.{branch}.fc1", 4 * DIM, DIM)
            product(f"{layer}.ffn.{branch}.fc2", DIM, 4 * DIM)
            norm(f"{layer}.ffn.{branch}.ffn_layernorm", 4 * DIM)
        norm(f"beit3.encoder.layer_norm.{branch}", DIM)
    state["vision_head.weight"] = torch.randn(DIM, DIM)
    state["language_head.weight"] = torch.randn(DIM, DIM)
    state["logit_scale"] = torch.ones(())
    return state


def by_definition(state: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """BEiT-3's vision branch (sub-LN, pre-norm): tokens (b, 1 + GRID, DIM)."""

    def at(name: str) -> torch.Tensor:
        return state[f"beit3.{name}"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return layer_norm(x, x.shape[-1:], at(f"{name}.weight"), at(f"{name}.bias"), eps=1e-5)

    def product(x: torch.Tensor, name: str) -> torch.Tensor:
        return linear(x, at(f"{name}.weight"), at(f"{name}.bias"))

    patches = conv2d(images, at("vision_embed.proj.weight"), at("vision_embed.proj.bias"), stride=PATCH)
    x = torch.cat([at("vision_embed.cls_token").expand(len(images), 1, DIM), patches.flatten(2).mT], dim=1)
    x = x + at("encoder.embed_positions.A.weight")[2:]  # positions begin at 2
    for k in range(DEPTH):
        layer = f"encoder.layers.{k}"
        seen = norm(x, f"{layer}.self_attn_layer_norm.A")
        q, key, v = (
            product(seen, f"{layer}.self_attn.{n}_proj.A").unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for n in "qkv"
        )
        weights = softmax(q @ key.mT / (DIM // HEADS) ** 0.5, dim=-1)
        mixed = norm((weights @ v).transpose(1, 2).flatten(2), f"{layer}.self_attn.inner_attn_ln.A")
        x = x + product(mixed, f"{layer}.self_attn.out_proj.A")
        seen = gelu(product(norm(x, f"{layer}.final_layer_norm.A"), f"{layer}.ffn.A.fc1"))
        x = x + product(norm(seen, f"{layer}.ffn.A.ffn_layernorm"), f"{layer}.ffn.A.fc2")
    return norm(x, "encoder.layer_norm.A")


@pytest.mark.parametrize("key", ["", "module", "model"])
def test_it_gives_the_tokens_of_the_definition(tmp_path: Path, key: str) -> None:
    state = checkpoint()
    torch.save({key: state} if key else state, tmp_path / "musk.pth")
    encoder = build_encoder(small(), device="cpu", checkpoint=tmp_path / "musk.pth", precision="fp32")
    images = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        tokens = encoder.network.features(images).tokens
        assert tokens is not None
        torch.testing.assert_close(tokens, by_definition(state, images), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(encoder.embed(images)["cls"], tokens[:, 0], rtol=1e-4, atol=1e-4)


def test_a_checkpoint_without_a_layer_is_refused(tmp_path: Path) -> None:
    state = {n: v for n, v in checkpoint().items() if "layers.1.self_attn.v_proj.A" not in n}
    torch.save(state, tmp_path / "musk.pth")
    with pytest.raises(EncoderError, match=r"does not fit musk .*2 missing \(blocks\.1\.attn\.qkv\.weight"):
        build_encoder(small(), device="cpu", checkpoint=tmp_path / "musk.pth")

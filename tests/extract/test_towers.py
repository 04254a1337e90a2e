"""Image towers: CONCH v1.5, KEEP, iSight, CTransPath, open_clip, CLIP's projection."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from patchbank.errors import EncoderError, InvalidRequest
from patchbank.extract.cards import Card, Transform
from patchbank.extract.encoders import build_encoder
from patchbank.extract.registry import load_card
from patchbank.extract.tokens import parse_policy, vector_dim


def shallow(name: str) -> Card:
    """The card with one block and an input of 32 or 28 pixels."""
    card = load_card(name)
    if name == "isight":
        return card.replace(
            arguments={**card.arguments, "image_size": 28, "num_hidden_layers": 1},
            transform=Transform(size=28),
        )
    return card.replace(
        arguments={**card.arguments, "img_size": 32, "depth": 1}, transform=Transform(size=32)
    )


@pytest.mark.parametrize("name", ["conch-v1.5", "keep", "isight"])
def test_a_tower_takes_its_own_tensors_of_a_checkpoint_with_more(name: str, tmp_path: Path) -> None:
    card = shallow(name)
    torch.manual_seed(0)
    encoder = build_encoder(card, device="cpu", random_weights=True, precision="fp32")
    state = dict(encoder.network.state_dict())
    others = {"text.embeddings.weight": torch.zeros(2), "logit_scale": torch.zeros(())}
    torch.save({"model_state_dict": state | others, "epoch": 3}, tmp_path / "whole.pth")
    loaded = build_encoder(card, device="cpu", checkpoint=tmp_path / "whole.pth", precision="fp32")
    batch = torch.randn(2, 3, card.transform.size, card.transform.size)
    vectors = loaded.embed(batch)["pooled"]
    torch.testing.assert_close(vectors, encoder.embed(batch)["pooled"])
    assert vectors.shape == (2, card.dim)
    assert loaded.network.origin == "key 'model_state_dict'"
    with pytest.raises(InvalidRequest, match="its pooled vector only"):
        encoder.network.features(batch, layers=(1,))
    torch.save(dict(list(state.items())[:-1]), tmp_path / "cut.pth")
    with pytest.raises(EncoderError, match=rf"does not fit {name} .* tensors 1 missing"):
        build_encoder(card, device="cpu", checkpoint=tmp_path / "cut.pth", precision="fp32")


def test_towers_against_their_description_written_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    batch = torch.randn(2, 3, 32, 32)
    keep: Any = build_encoder(shallow("keep"), device="cpu", random_weights=True, precision="fp32").network
    with torch.no_grad():
        cls = keep.visual.forward_features(batch)[:, 0]
        hidden = torch.nn.functional.gelu(cls @ keep.visual_head[0].weight.T + keep.visual_head[0].bias)
        out = hidden @ keep.visual_head[2].weight.T + keep.visual_head[2].bias
        torch.testing.assert_close(keep.vector(batch), out / out.norm(dim=1, keepdim=True))
        conch: Any = build_encoder(
            shallow("conch-v1.5"), device="cpu", random_weights=True, precision="fp32"
        ).network
        pool, tokens = conch.attn_pool_contrast, conch.trunk.forward_features(batch)
        key, value = (pool.ln_k(tokens) @ pool.to_kv.weight.T).chunk(2, dim=-1)
        query = pool.ln_q(pool.query) @ pool.to_q.weight.T
        heads = []
        for h in range(8):
            part = slice(96 * h, 96 * (h + 1))
            attention = torch.softmax(query[:, part] @ key[..., part].transpose(1, 2) / 96**0.5, dim=-1)
            heads.append(attention @ value[..., part])
        pooled = torch.cat(heads, dim=-1)[:, 0] @ pool.to_out.weight.T
        torch.testing.assert_close(conch.vector(batch), conch.ln_contrast(pooled), rtol=1e-4, atol=1e-5)


def test_a_position_grid_of_a_towers_trunk_is_resampled(tmp_path: Path) -> None:
    card = shallow("keep")
    larger = card.replace(arguments={**card.arguments, "img_size": 64})
    state = build_encoder(larger, device="cpu", random_weights=True).network.state_dict()
    torch.save(state, tmp_path / "large.pth")
    built: Any = build_encoder(card, device="cpu", checkpoint=tmp_path / "large.pth").network
    assert built.visual.pos_embed.shape == (1, 5, 1024)


def test_ctranspath_under_the_names_of_its_own_fork(tmp_path: Path) -> None:
    """timm_ctp downsamples at the end of a stage, and keeps masks and indices as buffers."""
    card = load_card("ctranspath")
    torch.manual_seed(0)
    encoder: Any = build_encoder(card, device="cpu", random_weights=True, precision="fp32")
    state = {}
    for name, value in encoder.network.model.state_dict().items():
        stage = re.match(r"layers\.(\d)\.downsample\.", name)
        old = f"layers.{int(stage[1]) - 1}.downsample.{name[stage.end() :]}" if stage else name
        state[old] = value
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    torch.save({"model": state}, tmp_path / "ctranspath.pth")
    loaded: Any = build_encoder(card, device="cpu", checkpoint=tmp_path / "ctranspath.pth", precision="fp32")
    own = encoder.network.model.state_dict()
    assert all(torch.equal(own[n], v) for n, v in loaded.network.model.state_dict().items())
    assert loaded.network.model.patch_embed(torch.zeros(1, 3, 224, 224)).shape == (1, 56, 56, 96)


def test_open_clip_builds_what_the_configuration_says(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16}
    config = {
        "model_cfg": {"embed_dim": 16, "quick_gelu": True, "vision_cfg": vision, "text_cfg": {"layers": 1}}
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    text = {"layers": 1, "width": 32, "heads": 2, "vocab_size": 10}
    model: Any = open_clip.CLIP(16, vision, text, quick_gelu=True).eval()
    torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    card = load_card("quiltnet-b32").replace(dim=16, transform=Transform(size=32))
    encoder = build_encoder(card, device="cpu", checkpoint=tmp_path, precision="fp32")
    batch = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(encoder.embed(batch)["pooled"], model.encode_image(batch))
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(EncoderError, match="is no configuration of open_clip"):
        build_encoder(card, device="cpu", checkpoint=tmp_path, precision="fp32")


def test_plip_projects_as_clip_does(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    card = load_card("plip")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.CLIPVisionConfig(**sizes, patch_size=16, image_size=32, projection_dim=8)
    torch.manual_seed(0)
    model = transformers.CLIPVisionModelWithProjection(config).eval()
    model.save_pretrained(tmp_path)
    card = card.replace(dim=32, grid=4, projection=8, transform=Transform(size=32))
    encoder = build_encoder(card, device="cpu", checkpoint=tmp_path, precision="fp32")
    batch = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            encoder.embed(batch, ["projected"])["projected"], model(batch).image_embeds
        )
    with pytest.raises(InvalidRequest, match="uni has no projection; use pooled"):
        vector_dim(load_card("uni"), parse_policy("projected"))


def test_other_statistics_in_the_configuration_are_refused(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.ViTConfig(**sizes, patch_size=16, image_size=32, pixel_mean=[0.485, 0.456, 0.406])
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    card = load_card("phikon").replace(dim=32, grid=4, transform=Transform(size=32))
    build_encoder(card, device="cpu", checkpoint=tmp_path)
    other = card.replace(transform=Transform(size=32, mean=(0.5, 0.5, 0.5)))
    with pytest.raises(EncoderError, match=r"says pixel_mean \[0.485.*the card of phikon \[0.5"):
        build_encoder(other, device="cpu", checkpoint=tmp_path)

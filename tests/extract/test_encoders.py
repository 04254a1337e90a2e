"""Encoders: precision, layers, promises of a card that are not kept, transformers models, CONCH."""

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from patchbank.errors import EncoderError, InvalidRequest, UntrustedCode
from patchbank.extract import precision
from patchbank.extract.batch_size import batch_size_for
from patchbank.extract.cards import Card, Transform
from patchbank.extract.check import check_encoder
from patchbank.extract.devices import compute_threads, resolve_devices, single_threaded
from patchbank.extract.encoders import build_encoder
from patchbank.extract.models.build import build_network
from patchbank.extract.models.class_token import has_plain_last_block
from patchbank.extract.registry import load_card
from patchbank.extract.views import View
from patchbank.extract.work import Lane
from torch import nn

SMALL = {"img_size": 32, "depth": 3, "num_classes": 0}


def small(**changes: Any) -> Card:
    """A shallow ViT with registers."""
    values: dict[str, Any] = {
        "id": "small",
        "model": "vit_small_patch14_reg4_dinov2",
        "hub": "lab/small",
        "dim": 384,
        "grid": 4,
        "prefix": 5,
        "arguments": SMALL | {"img_size": 28},
        "transform": Transform(size=28),
    }
    return Card(**values | changes)


def test_policies_against_the_network_itself() -> None:
    torch.manual_seed(0)
    encoder = build_encoder(small(), device="cpu", random_weights=True, precision="fp32")
    batch = torch.randn(2, 3, 28, 28)
    found = encoder.embed(
        batch, ["cls", "mean", "cls+mean", "registers", "patches", "cls@2", "mean@3", "cls@3"]
    )
    model: Any = encoder.network.model  # pyright: ignore
    with torch.inference_mode():
        tokens = model.forward_features(batch)
        inner = model.norm(
            model.forward_intermediates(batch, indices=[1], output_fmt="NLC", return_prefix_tokens=True)[1][
                0
            ][1]
        )
    close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(found["cls"], tokens[:, 0], **close)
    torch.testing.assert_close(found["mean"], tokens[:, 5:].mean(1), **close)
    torch.testing.assert_close(found["registers"], tokens[:, 1:5].flatten(1), **close)
    torch.testing.assert_close(found["patches"], tokens[:, 5:].flatten(1), **close)
    torch.testing.assert_close(found["cls@2"], inner[:, 0], **close)
    torch.testing.assert_close(found["cls@3"], found["cls"], **close)  # the last block is the output
    torch.testing.assert_close(found["mean@3"], found["mean"], **close)
    with pytest.raises(InvalidRequest, match="has 3 blocks to take tokens from, not 4"):
        encoder.embed(batch, ["cls@4"])


GIANT = SMALL | {"img_size": 28, "embed_dim": 64, "num_heads": 4, "mlp_ratio": 2.0}
# LayerScale and registers; SwiGLU; norms before the blocks, of queries and keys, after the attention
SHORTENED = {
    "dinov2": small(),
    "giant": small(
        model="vit_giant_patch14_dinov2",
        dim=64,
        prefix=1,
        arguments=GIANT,
    ),
    "pre-norm": small(
        arguments=SMALL | {"img_size": 28, "pre_norm": True, "qk_norm": True, "scale_attn_norm": True}
    ),
}


@pytest.mark.parametrize("kind", SHORTENED)
def test_a_class_token_alone_is_the_one_beside_others(kind: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(SHORTENED[kind], device="cpu", random_weights=True, precision="fp32")
    for name, parameter in encoder.network.named_parameters():
        if name.endswith((".gamma", ".bias")):  # as weights begin, they would hide a part left out
            nn.init.normal_(parameter)
    batch = torch.randn(3, 3, 28, 28)
    rows: list[int] = []
    last: Any = encoder.network.model.blocks[-1]  # pyright: ignore
    last.mlp.register_forward_hook(lambda _module, _given, out: rows.append(out.shape[1]))
    alone, both = encoder.embed(batch, ["cls"])["cls"], encoder.embed(batch, ["cls", "mean"])["cls"]
    assert rows == [1, 4 + SHORTENED[kind].prefix]
    assert ((alone - both).norm(dim=1) / both.norm(dim=1)).max() < 1e-5


def test_blocks_behind_the_last_that_is_read_are_not_computed() -> None:
    encoder = build_encoder(small(), device="cpu", random_weights=True, precision="fp32")
    calls: list[int] = []
    for number, block in enumerate(encoder.network.model.blocks, start=1):  # pyright: ignore
        block.register_forward_hook(lambda *_, number=number: calls.append(number))
    batch = torch.randn(1, 3, 28, 28)
    alone = encoder.embed(batch, ["cls@1", "mean@2"])
    assert calls == [1, 2]
    both = encoder.embed(batch, ["cls@1", "mean@2", "cls"])
    assert calls == [1, 2, 1, 2, 3]
    assert all(torch.equal(alone[name], both[name]) for name in alone)


def test_a_block_with_parts_that_are_not_known_is_computed_whole() -> None:
    network: Any = build_encoder(small(), device="cpu", random_weights=True).network
    assert has_plain_last_block(network.model)
    network.model.blocks[-1].attn.gate = nn.Linear(384, 384)
    assert not has_plain_last_block(network.model)
    for name in ("vit_small_patch16_dinov3", "beit_base_patch16_224", "swin_tiny_patch4_window7_224"):
        with torch.device("meta"):
            assert not has_plain_last_block(timm.create_model(name, pretrained=False))


def test_uint8_pictures_and_transformed_ones_are_the_same() -> None:
    encoder = build_encoder(small(), device="cpu", random_weights=True, precision="fp32")
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    one = encoder.embed(torch.from_numpy(pixels)[None])["cls"]
    two = encoder.embed(encoder.transform(pixels)[None])["cls"]
    torch.testing.assert_close(one, two)


def test_stored_weights_in_low_precision_are_what_autocast_does() -> None:
    torch.manual_seed(0)
    full = build_encoder(small(), device="cpu", random_weights=True, precision="fp32")
    torch.manual_seed(0)
    low = build_encoder(small(), device="cpu", random_weights=True, precision="bf16")
    batch = torch.randn(3, 3, 28, 28)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        want = full.network.features(batch).tokens
    assert want is not None
    found = low.embed(batch, ["cls"])["cls"]
    assert torch.equal(found, want[:, 0].float())
    reference = full.embed(batch, ["cls"])["cls"]
    assert 0 < ((found - reference).norm() / reference.norm()).item() < 0.05
    assert low.network.model.norm.weight.dtype == torch.float32  # pyright: ignore


def test_precision_is_chosen_by_card_and_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    vit, cnn = load_card("virchow2"), load_card("efficientnet-lite0")
    choose = precision.choose_precision
    for native in (True, False):
        monkeypatch.setattr(precision, "cpu_has_bf16", lambda native=native: native)
        assert choose(vit, "cpu") == ("bf16" if native else "fp32")
        assert choose(cnn, "cpu") == "fp32"
        assert choose(vit, "cuda") == "fp16"
        assert choose(vit, "cuda", "fp32") == "fp32"


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"grid": 9}, "5 prefix and 9 patch tokens"), ({"dim": 383}, "gave .*384.* its card says .*383")],
)
def test_a_card_that_promises_something_else(changes: dict[str, Any], says: str) -> None:
    encoder = build_encoder(small(**changes), device="cpu", random_weights=True)
    with pytest.raises(EncoderError, match=says):
        encoder.embed(torch.zeros(1, 3, 28, 28), ["cls"])


def test_arguments_that_the_architecture_does_not_take() -> None:
    with pytest.raises(InvalidRequest, match="timm cannot build"):
        build_encoder(small(arguments={"window_size": 1}), device="cpu", random_weights=True)


@pytest.mark.parametrize(
    ("function", "says"),
    [(lambda x: x.mean(), "a tensor of 2 dimensions"), (lambda _: 3, "gave int"), (None, "cannot be called")],
)
def test_callables_that_break_their_promise(function: Any, says: str) -> None:
    card = Card(
        id="mine", kind="python", model="a:b", revision="1", dim=3, factory=lambda: function, tokens="pooled"
    )
    with pytest.raises(EncoderError, match=says):
        build_encoder(card, device="cpu").embed(torch.zeros(1, 3, 224, 224))


def test_a_factory_by_name() -> None:
    card = Card(id="mine", kind="python", model="torch.nn:Flatten", revision="1", dim=12, tokens="pooled")
    card = card.replace(transform=Transform(size=2))
    with pytest.raises(UntrustedCode, match=r"'torch\.nn:Flatten' is imported and called"):
        build_encoder(card, device="cpu")
    with pytest.raises(UntrustedCode):
        build_network(card, None)  # not by another way either
    mine = pickle.loads(pickle.dumps(load_card(card, trust_code=True)))  # as Ray sends it around
    assert build_encoder(mine, device="cpu").embed(torch.ones(2, 3, 2, 2))["pooled"].shape == (2, 12)
    nothing = load_card(card.replace(model="torch.nn:Nothing"), trust_code=True)
    with pytest.raises(EncoderError, match=r"'torch\.nn:Nothing' of mine cannot be imported"):
        build_encoder(nothing, device="cpu")


# --- transformers -------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny DINOv2 with registers, saved as a hub repository would hold it."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        patch_size=14,
        image_size=28,
        num_register_tokens=4,
    )
    torch.manual_seed(0)
    place = tmp_path / "tiny-dino"
    transformers.Dinov2WithRegistersModel(config).save_pretrained(place)
    (place / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "crop_size": {"height": 28, "width": 28},
                "size": {"shortest_edge": 32},
                "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3,
                "resample": 2,
            }
        )
    )
    return place


def test_a_transformers_folder_makes_a_card(folder: Path) -> None:
    card = load_card(f"hf:{folder}")
    assert (card.dim, card.grid, card.prefix, card.id) == (24, 4, 5, "hf:tiny-dino")
    assert (card.transform.size, card.transform.resize, card.transform.interpolation) == (28, 32, "bilinear")
    encoder = build_encoder(card, device="cpu", checkpoint=folder, precision="fp32")
    batch = torch.randn(2, 3, 28, 28)
    found = encoder.embed(batch, ["cls", "mean", "cls@2", "cls@1", "pooled"])
    with torch.inference_mode():
        states = encoder.network.model(batch, output_hidden_states=True)  # pyright: ignore
    torch.testing.assert_close(found["cls"], states.last_hidden_state[:, 0])
    torch.testing.assert_close(found["mean"], states.last_hidden_state[:, 5:].mean(1))
    torch.testing.assert_close(found["cls@2"], found["cls"], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found["cls@1"], found["cls"])


def test_transformers_folders_that_do_not_do(folder: Path, tmp_path: Path) -> None:
    card = load_card(f"hf:{folder}")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(EncoderError, match=r"lacks \d+ tensors of hf:tiny-dino"):
        build_encoder(card, device="cpu", checkpoint=folder)
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "code.Model"}}))
    with pytest.raises(InvalidRequest, match="needs code of its own"):
        load_card(f"hf:{folder}")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 3}))
    with pytest.raises(InvalidRequest, match="not a vision transformer"):
        load_card(f"hf:{folder}")
    with pytest.raises(InvalidRequest, match="should be hf:ORG/NAME"):
        load_card("hf:nothing")
    with pytest.raises(EncoderError, match=r"wants a folder with config\.json"):
        build_encoder(card, device="cpu", checkpoint=folder / "config.json")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "config.json is empty"),
        ("[]", "config.json holds a list, not the settings of a model"),
        ("null", "config.json holds a NoneType"),
        ("{}", "is not a vision transformer"),
        ('{"vision_config": []}', "is not a vision transformer"),
        ("<!DOCTYPE html><html></html>", "config.json is a web page"),
        ("version https://git-lfs.github.com/spec/v1\n", "config.json is a git-lfs pointer"),
        ("{", "config.json is not JSON"),
    ],
)
def test_configurations_that_are_none(folder: Path, content: str, says: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises((EncoderError, InvalidRequest), match=says):
        load_card(f"hf:{folder}")


def test_clip_of_the_hub_gives_its_pooled_token(folder: Path) -> None:
    """The CLS token after CLIP's last norm, which transformers applies to no other token."""
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    vision = shape | {"patch_size": 14, "image_size": 28}
    config = transformers.CLIPConfig(text_config=shape | {"vocab_size": 99}, vision_config=vision)
    model: Any = transformers.CLIPModel(config).eval()
    model.save_pretrained(folder)
    card = load_card(f"hf:{folder}")
    assert (card.tokens, card.dim, card.grid, card.prefix) == ("pooled", 16, 4, 1)
    encoder = build_encoder(card, device="cpu", checkpoint=folder, precision="fp32")
    images = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        wanted = model.vision_model(pixel_values=images).pooler_output
    torch.testing.assert_close(encoder.embed(images)["pooled"], wanted)


@pytest.mark.parametrize(
    ("processor", "wanted"),
    [
        ({"size": {"shortest_edge": 32}, "crop_size": 28}, (28, 32, "center")),
        ({"size": {"height": 28, "width": 28}}, (28, 28, "squash")),  # ViTImageProcessor
        ({"size": 28}, (28, 28, "squash")),
        ({"size": {"shortest_edge": 28}, "crop_size": 28, "do_center_crop": False}, (28, 28, "center")),
        ({}, (28, 28, "center")),
        ({"resample": 5}, "resample = 5"),
        ({"rescale_factor": 1 / 127.5}, "not scaled to 0..1"),
        ({"size": {"height": 32, "width": 32}}, "makes images of 32 pixels, and the model takes 28"),
    ],
)
def test_the_processors_of_transformers(tmp_path: Path, processor: dict, wanted: Any) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "vit", "hidden_size": 24, "patch_size": 14, "image_size": 28})
    )
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    if isinstance(wanted, str):
        with pytest.raises(EncoderError, match=wanted):
            load_card(f"hf:{tmp_path}")
        return
    shape = load_card(f"hf:{tmp_path}").transform
    assert (shape.size, shape.resize, shape.mode) == wanted


def test_code_from_the_hub_needs_a_yes(folder: Path) -> None:
    card = load_card("hibou-b")
    with pytest.raises(InvalidRequest, match="--trust-remote-code"):
        build_encoder(card, device="cpu", checkpoint=folder)


# --- CONCH --------------------------------------------------------------------------------------------


def test_conch_takes_the_image_tower_of_its_checkpoint(tmp_path: Path) -> None:
    """Against torch's attention written out; the text tower and the caption pooling are left out."""
    card = load_card("conch")
    card = card.replace(
        arguments={**card.arguments, "img_size": 32, "depth": 1}, transform=Transform(size=32)
    )
    torch.manual_seed(0)
    encoder = build_encoder(card, device="cpu", random_weights=True, precision="fp32")
    tower: Any = encoder.network
    state = {f"visual.{name}": value for name, value in tower.state_dict().items()}
    state |= {"visual.proj_contrast": torch.zeros(2), "text.positional_embedding": torch.zeros(2)}
    torch.save(state, tmp_path / "pytorch_model.bin")
    loaded = build_encoder(card, device="cpu", checkpoint=tmp_path / "pytorch_model.bin", precision="fp32")
    batch = torch.randn(2, 3, 32, 32)
    found = loaded.embed(batch)["pooled"]
    torch.testing.assert_close(found, encoder.embed(batch)["pooled"])
    pool = tower.attn_pool_contrast
    with torch.inference_mode():
        tokens = pool.ln_k(tower.trunk.forward_features(batch))
        a = pool.attn
        query = torch.nn.functional.linear(pool.ln_q(pool.query), a.q_proj_weight, a.in_proj_bias[:512])
        key = torch.nn.functional.linear(tokens, a.k_proj_weight, a.in_proj_bias[512:1024])
        value = torch.nn.functional.linear(tokens, a.v_proj_weight, a.in_proj_bias[1024:])
        heads = [
            torch.softmax(query[:, s] @ key[:, :, s].transpose(1, 2) / 8, dim=-1) @ value[:, :, s]
            for s in (slice(h * 64, h * 64 + 64) for h in range(8))
        ]
        want = tower.ln_contrast(a.out_proj(torch.cat(heads, dim=-1)))[:, 0]
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)
    del state["visual.ln_contrast.weight"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(EncoderError, match=r"ln_contrast\.weight"):
        build_encoder(card, device="cpu", checkpoint=tmp_path / "pytorch_model.bin")


# --- devices ------------------------------------------------------------------------------------------


def test_devices_by_name() -> None:
    cpu = torch.device("cpu")
    assert resolve_devices("cpu,cpu") == [cpu, cpu]
    assert compute_threads([cpu]) == [cpu] * torch.get_num_threads()
    assert compute_threads([cpu, cpu]) == [cpu, cpu]
    before = torch.get_num_threads()
    with single_threaded([cpu]):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    encoder = build_encoder(small(), device="cpu", random_weights=True)
    assert batch_size_for([[encoder]], [], default_cpu=7) == 7


class Timed:
    """An encoder whose batch takes `cost(size)` seconds of a clock of its own."""

    def __init__(self, cost: Callable[[int], float]) -> None:
        self.cost, self.now, self.sizes = cost, 0.0, []
        self.device, self.card = torch.device("cpu"), small()

    def embed(self, batch: torch.Tensor, policies: object) -> None:
        self.sizes.append(len(batch))
        self.now += self.cost(len(batch))


@pytest.mark.parametrize(
    ("cost", "passes", "wanted", "tried"),
    [
        (lambda size: size * 1.0, 100_000, 8, {8, 16, 4}),  # all the same: the default
        (lambda size: size + 10.0, 1_000_000, 256, {8, 16, 32, 64, 128, 256, 512}),
        (lambda size: size * (1.0 if size <= 16 else 1.5) + 1, 100_000, 16, {8, 16, 32}),
        (lambda size: size**1.5, 100_000, 1, {8, 16, 4, 2, 1}),
        (lambda size: size + 10.0, 1000, 8, set()),  # too few patches to spend time on it
        (lambda size: size + 10.0, 3000, 16, {8, 16}),  # and none for 32
    ],
)
def test_the_fastest_of_a_few_timed_batches_on_a_cpu(
    cost: Callable[[int], float], passes: int, wanted: int, tried: set[int]
) -> None:
    encoder: Any = Timed(cost)
    lanes = [Lane(0, View(), Transform(), [])]
    size = batch_size_for(
        [[encoder]], lanes, default_cpu=8, passes=passes, clock=lambda encoder=encoder: encoder.now
    )
    assert size == wanted
    assert set(encoder.sizes) == tried
    assert encoder.now <= max(0.02 * passes * cost(8) / 8, 0) + 1e-9


def test_check_finds_what_a_card_promises() -> None:
    found = check_encoder("efficientnet-lite0")
    assert found["dims"] == {"pooled": 1280}
    assert found["parameters"] == 4652008


def test_channels_last_changes_nothing_but_rounding() -> None:
    card = load_card("efficientnet-lite0")
    batch = torch.randn(2, 3, 64, 64)
    first = build_encoder(card, device="cpu", channels_last=False).embed(batch)["pooled"]
    last = build_encoder(card, device="cpu", channels_last=True).embed(batch)["pooled"]
    assert ((first - last).norm() / first.norm()).item() < 1e-5


@pytest.mark.shared
def test_the_real_dinov2(shared: Path) -> None:
    """Real weights at 224 px: the grid is resampled, and pictures of one kind are nearer than noise."""
    path = shared / "weights" / "vit_small_patch14_dinov2.fp16.safetensors"
    encoder = build_encoder("dinov2-s", device="cpu", checkpoint=path, precision="fp32")
    rng = np.random.default_rng(0)
    flat = np.full((128, 128, 3), (220, 150, 200), np.uint8)
    noisy = np.clip(flat + rng.normal(0, 4, flat.shape), 0, 255).astype(np.uint8)
    noise = rng.integers(0, 256, flat.shape, dtype=np.uint8)
    vectors = encoder.embed(torch.stack([encoder.transform(p) for p in (flat, noisy, noise)]))["cls"]
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(vectors[0], vectors[1], dim=0) > cosine(vectors[0], vectors[2], dim=0)


def test_the_code_of_a_card_is_found_beside_it(tmp_path: Path) -> None:
    """Whatever is installed under its name, and with the modules beside it; two folders do not mix."""
    for folder, number in (("one", 1.0), ("two", 2.0)):
        place = tmp_path / folder
        place.mkdir()
        (place / "card.toml").write_text(
            'id = "x"\nkind = "python"\nmodel = "json:build"\nrevision = "1"\ndim = 2\ntokens = "pooled"\n'
            "[transform]\nsize = 8\n"
        )
        (place / "json.py").write_text(
            "import torch\nfrom patchbank_test_sibling import NUMBER\n\n"
            "def build():\n    return lambda batch: torch.full((len(batch), 2), NUMBER)\n"
        )
        (place / "patchbank_test_sibling.py").write_text(f"NUMBER = {number}\n")
        before = list(sys.path)
        with pytest.raises(UntrustedCode):
            load_card(place / "card.toml")
        assert "patchbank_test_sibling" not in sys.modules
        card = load_card(place / "card.toml", trust_code=True)
        sys.modules.pop("patchbank_test_sibling", None)
        built = build_encoder(card, device="cpu")
        assert sys.path == before
        found = built.embed(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))["pooled"]
        assert found.tolist() == [[number, number]]
        sys.modules.pop("patchbank_test_sibling")
    assert hasattr(json, "loads")

"""Every card against the architecture it names, on torch's meta device: shapes without memory or time."""

import importlib.metadata
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from patchbank.errors import EncoderError, InvalidRequest, UnknownEncoder, UntrustedCode, WeightsNotHere
from patchbank.extract import cards as module
from patchbank.extract.cards import Card, Transform, at_size, read_card
from patchbank.extract.encoders import build_encoder
from patchbank.extract.listing import describe, policies_of, to_toml
from patchbank.extract.models.build import build_network
from patchbank.extract.registry import load_card, named_card, plugged_cards, shipped_cards
from patchbank.extract.tokens import parse_policy, select, vector_dim
from patchbank.extract.views import prepare
from patchbank.extract.weights import locate
from patchbank.finetune.lora import attention_blocks, chosen_targets, target_layers
from patchbank.finetune.recipe import Recipe
from PIL import Image
from torchvision import transforms  # comes with timm

CARDS = shipped_cards()
PAPER = {  # published parameters in millions
    "uni": 303,
    "uni2-h": 681,
    "virchow": 631,
    "virchow2": 631,
    "prov-gigapath": 1135,
    "h-optimus-0": 1135,
    "h-optimus-1": 1135,
}
PREFIX = {  # CLS + registers, from the models' own descriptions
    "virchow2": 5,
    "uni2-h": 9,
    "h-optimus-0": 5,
    "h-optimus-1": 5,
    "h0-mini": 5,
    "hibou-b": 5,
    "hibou-l": 5,
    **{f"dinov2-reg-{size}": 5 for size in "sblg"},
    **{f"dinov3-{size}": 5 for size in ("s", "b", "l", "hplus")},
    "kaiko-l14": 5,
    "openmidnight-1.1": 5,
    "openmidnight": 5,
}
CODE = {"genbio-pathfm", "mascaret", "phaet", "rudolfv2", "rudolfv2-b", "rudolfv2-s"}  # of the hub: no twin
TWINS = [name for name in CARDS if name not in CODE]
WHOLE = {  # networks without attention blocks: LoRA has nothing to adapt
    "convnextv2-b",
    "efficientnet-lite0",
    "lunit-resnet50-bt",
    "lunit-resnet50-mocov2",
    "lunit-resnet50-swav",
    "resnet50",
    "tf-efficientnetv2-m",
}
NAMES = {  # kind or card -> names of tensors that its checkpoints have
    "timm": ("cls_token", "pos_embed", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight"),
    "dinov3": ("cls_token", "reg_token", "blocks.0.attn.qkv.weight", "blocks.0.gamma_1"),
    "vit": ("embeddings.cls_token", "embeddings.patch_embeddings.projection.weight"),
    "dinov2": ("embeddings.cls_token", "embeddings.mask_token", "layernorm.weight"),
    "dinov2_with_registers": ("embeddings.register_tokens", "layernorm.weight"),
    "clip_vision_model": ("embeddings.class_embedding", "pre_layrnorm.weight", "post_layernorm.bias"),
    "conch": ("trunk.blocks.0.attn.qkv.weight", "attn_pool_contrast.attn.in_proj_bias", "ln_contrast.weight"),
    "conch-v1.5": ("trunk.blocks.0.ls1.gamma", "attn_pool_contrast.to_kv.weight", "ln_contrast.weight"),
    "keep": ("visual.blocks.0.ls1.gamma", "visual_head.0.weight", "visual_head.2.bias"),
    "isight": ("patch_encoder.vision_model.embeddings.class_embedding", "visual_token_projection.weight"),
    "ctranspath": ("patch_embed.proj.4.running_mean", "patch_embed.norm.weight"),
    "open_clip": (
        "visual.class_embedding",
        "visual.proj",
        "visual.transformer.resblocks.0.attn.in_proj_bias",
    ),
}


def shallow(card: Card) -> Card:
    """Two blocks instead of all: the same widths, tokens and prefix."""
    if not card.grid and card.kind not in ("conch", "tower"):
        return card
    hub = card.kind == "transformers" or card.model == "isight"
    return card.replace(arguments={**card.arguments, "num_hidden_layers" if hub else "depth": 2})


def build_small(card: Card) -> Any:
    """The network of a shallow card without weights, on torch's meta device."""
    if card.kind == "open_clip":
        pytest.importorskip("open_clip")
    with torch.device("meta"):
        return build_network(shallow(card), None).eval()


@cache
def twin(name: str) -> Any:
    return build_small(CARDS[name])


def test_the_listed_encoders_are_there() -> None:
    wanted = {*PAPER, *PREFIX, "midnight-12k", "phikon", "phikon-v2", "lunit-vits8", "gpfm", "conch"}
    wanted |= {
        "tf-efficientnetv2-m",
        "swin-b",
        "vit-l16",
        "efficientnet-lite0",
        *(f"dinov2-{s}" for s in "sblg"),
    }
    assert wanted <= set(CARDS)


@pytest.mark.parametrize("name", TWINS)
def test_card_against_its_architecture(name: str) -> None:
    card, network, side = CARDS[name], twin(name), CARDS[name].transform.size
    pooled = "pooled" in policies_of(card)
    with torch.device("meta"), torch.no_grad():
        features = network.features(torch.empty(2, 3, side, side), pooled=pooled)
    if card.grid:
        assert features.tokens.shape == (2, card.prefix + card.grid, card.dim)
        if card.kind == "timm":
            assert network.model.num_prefix_tokens == card.prefix
        else:
            assert 1 + getattr(network.model.config, "num_register_tokens", 0) == card.prefix
        assert card.prefix == PREFIX.get(name, 1)
        for policy, dim in policies_of(card).items():
            if policy not in ("pooled", "projected"):
                assert select(features.tokens, card.prefix, policy).shape == (2, dim)
    if pooled:
        assert features.pooled.shape == (2, card.dim)
    if card.projection:
        assert features.projected.shape == (2, card.projection)


@pytest.mark.parametrize("name", ["dinov2-reg-s", "hibou-b"])
def test_registers_that_the_card_forgets_are_refused(name: str) -> None:
    """The number of all tokens fits, and the mean would hold four registers."""
    card = CARDS[name].replace(prefix=1, grid=260)
    with pytest.raises(EncoderError, match=r"says prefix = 1, and its network has 5 tokens"):
        build_small(card)


def test_every_card_has_a_twin_but_those_of_code_from_the_hub() -> None:
    assert len(CARDS) >= 65
    assert {name for name, card in CARDS.items() if card.remote_code and not card.arguments} == CODE
    assert len(TWINS) == len(CARDS) - len(CODE)


@pytest.mark.parametrize("name", CARDS)
def test_a_card_says_what_users_ask(name: str) -> None:
    card = CARDS[name]
    assert card.licence
    assert card.source.startswith("https://")
    assert card.package or card.hub
    assert card.family
    assert len(card.family) <= 20
    assert card.tokens_reason
    assert vector_dim(card, parse_policy(card.tokens)) >= card.dim
    assert card.mpp or "atural images" in card.note or name in ("biomedclip",)
    assert card.revision in ("unpinned", "0.1.0") or len(card.revision) == 40
    assert (
        not card.remote_code or card.revision != "unpinned" or name in ("genbio-pathfm", "hibou-b", "hibou-l")
    )


@pytest.mark.parametrize("name", TWINS)
def test_lora_finds_all_linear_layers_of_the_blocks(name: str) -> None:
    """By the default recipe, in every family; PEFT is asked for them by full name."""
    network = twin(name)
    model = getattr(network, "model", network)
    targets = chosen_targets(model, Recipe(), CARDS[name].lora.targets)
    if name in WHOLE or CARDS[name].kind == "open_clip":
        with pytest.raises(InvalidRequest, match=r"no attention blocks|match no layer"):
            target_layers(model, targets)
        return
    found = target_layers(model, targets)
    blocks = attention_blocks(model)
    linear = [
        n
        for n, m in model.named_modules()
        if isinstance(m, torch.nn.Linear) and any(n.startswith(f"{b}.") for b in blocks) and "pool" not in n
    ]
    assert set(linear) == set(found)
    assert len(found) >= 4 * min(2, len(blocks))


@pytest.mark.parametrize("name", TWINS)
def test_names_of_the_tensors_are_those_of_the_checkpoints(name: str) -> None:
    card, network = CARDS[name], twin(name)
    names = {n.removeprefix("model.") for n in network.state_dict()}
    if name in NAMES:
        wanted = NAMES[name]
    elif card.kind == "timm" and card.grid:
        wanted = NAMES["dinov3" if "dinov3" in name else "timm"]
    elif card.kind == "transformers":
        wanted = NAMES[card.arguments["model_type"]]
    elif card.kind == "open_clip" and name != "biomedclip":
        wanted = NAMES["open_clip"]
    else:  # CNNs and Swin: timm's own names; BiomedCLIP's tower is of its hub configuration
        assert name in {*WHOLE, "swin-b", "biomedclip"}
        return
    assert set(wanted) <= names, set(wanted) - names


def test_other_names_lead_to_one_card() -> None:
    """Those of TRIDENT, STAMP and thunder, as their registries list them."""
    trident = (
        "conch_v1 conch_v15 uni_v1 uni_v2 digepath ctranspath phikon phikon_v2 resnet50 keep gigapath "
        "gigapath-flash virchow virchow2 hoptimus0 hoptimus1 h0-mini phaet mascaret openmidnight gpfm "
        "hibou_l kaiko-vitb8 kaiko-vitb16 kaiko-vits8 kaiko-vits16 kaiko-vitl14 lunit-vits8 "
        "genbio-pathfm midnight12k"
    )
    stamp = (
        "ctranspath chief-ctranspath conch conch1_5 mahmood-conch mahmood-uni mahmood-uni2 uni uni2 gigapath "
        "h-optimus-0 h-optimus-1 virchow virchow-full virchow2 mstar plip keep musk"
    )
    thunder = (
        "hiboub hiboul hoptimus0 hoptimus1 midnight phikon phikon2 uni uni2h virchow virchow2 conch titan "
        "musk keep plip quiltnetb32 dinov2base dinov2large"
    )
    for name in f"{trident} {stamp} {thunder}".split():
        assert load_card(name).id in CARDS
    assert load_card("UNI2h").id == load_card("uni_v2").id == "uni2-h"
    names = [name.lower() for card in CARDS.values() for name in card.other_names]
    assert len(set(names)) == len(names)
    assert not set(names) & set(CARDS)
    for tool, used in (("TRIDENT", trident), ("STAMP", stamp), ("thunder", thunder)):
        carried = {name for card in CARDS.values() for name in card.used_by.get(tool, ())}
        assert set(used.split()) <= carried


def test_code_of_the_hub_runs_at_a_commit_only() -> None:
    for name in ("genbio-pathfm", "hibou-b"):
        with pytest.raises(
            InvalidRequest, match=f"{name} runs Python code .* pins no commit.*--revision COMMIT"
        ):
            locate(CARDS[name], download=False)
    with pytest.raises(WeightsNotHere):
        locate(CARDS["hibou-b"].replace(revision="a" * 40, gated=False), download=False)


@pytest.mark.parametrize("name", PAPER)
def test_parameters_of_the_papers_encoders(name: str) -> None:
    with torch.device("meta"):
        network = build_network(CARDS[name], None)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == PAPER[name]


GEOMETRIES = {card.transform.geometry: name for name, card in CARDS.items()}


@pytest.mark.parametrize("name", GEOMETRIES.values())
@pytest.mark.parametrize("shape", [(64, 64), (128, 128), (96, 150), (300, 257)])
def test_transform_is_torchvisions(name: str, shape: tuple[int, int]) -> None:
    card = CARDS[name]
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    want = card.transform
    reference = transforms.Compose(
        [
            transforms.Resize(
                (want.resize, want.resize) if want.mode == "squash" else want.resize,
                transforms.InterpolationMode(want.interpolation),
            ),
            transforms.CenterCrop(want.size),
        ]
    )
    resized = np.asarray(reference(Image.fromarray(pixels)))
    np.testing.assert_array_equal(prepare(pixels, want), resized)


def test_what_the_owners_do_with_other_shapes_and_filters() -> None:
    assert {name: CARDS[name].transform.mode for name in ("gpfm", "phikon", "phikon-v2", "uni")} == {
        "gpfm": "squash", "phikon": "squash", "phikon-v2": "center", "uni": "center",
    }  # fmt: skip
    filters = {name: CARDS[name].transform.interpolation for name in ("gpfm", "midnight-12k", "kaiko-b8")}
    assert filters == {"gpfm": "bicubic", "midnight-12k": "bilinear", "kaiko-b8": "bilinear"}


def test_the_random_twin_of_hibou_has_its_gated_units() -> None:
    with torch.device("meta"):
        names = dict(build_network(shallow(CARDS["hibou-l"]), None).named_parameters())
    assert any("mlp.gate_proj" in name or "mlp.weights_in" in name for name in names)


def test_normalisation_is_torchvisions() -> None:
    encoder = build_encoder("dinov2-s", device="cpu", random_weights=True)
    card = CARDS["dinov2-s"]
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    reference = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(card.transform.mean, card.transform.std)]
    )(Image.fromarray(pixels))
    torch.testing.assert_close(encoder.transform(pixels), reference, rtol=1e-5, atol=1e-5)


def test_gigapath_sees_the_inner_part_only() -> None:
    card = CARDS["prov-gigapath"]
    pixels = np.zeros((128, 128, 3), np.uint8)
    pixels[:7] = 255  # the outermost 8 pixels of 128 are cut off
    assert prepare(pixels, card.transform).max() == 0
    assert prepare(pixels, CARDS["uni"].transform).max() == 255


@pytest.mark.parametrize("name", CARDS)
def test_toml_round_trip(name: str, tmp_path: Path) -> None:
    path = tmp_path / "card.toml"
    text = to_toml(CARDS[name])
    path.write_text(text, "utf-8")
    assert read_card(path) == CARDS[name]
    assert max(map(len, text.splitlines())) <= 80
    assert json.loads(json.dumps(describe(CARDS[name])))["id"] == name


@pytest.mark.parametrize(
    "note",
    [
        "a" * 200,
        "one  two   " * 30,
        "\\" * 90 + '"' * 90,
        'end = "x" ' * 20,
        "é\t\x01\n" * 40,
        " " * 99,
        " x" * 60,
    ],
)
def test_long_texts_are_read_back_as_they_were(note: str, tmp_path: Path) -> None:
    path = tmp_path / "card.toml"
    path.write_text(to_toml(CARDS["uni"].replace(note=note, hub="lab/" + "x" * 90)), "utf-8")
    assert (read_card(path).note, read_card(path).hub) == (note, "lab/" + "x" * 90)


def test_policies_of_a_card() -> None:
    assert policies_of(CARDS["virchow2"]) == {
        "cls": 1280,
        "mean": 1280,
        "cls+mean": 2560,
        "registers": 4 * 1280,
        "patches": 256 * 1280,
    }
    with pytest.raises(InvalidRequest, match=r"virchow2 pools nothing itself; use cls, mean or cls\+mean"):
        vector_dim(CARDS["virchow2"], parse_policy("pooled"))
    assert policies_of(CARDS["efficientnet-lite0"]) == {"pooled": 1280}


# --- reading ----------------------------------------------------------------------------------------

HUB = 'id = "mine"\nkind = "transformers"\nhub = "lab/mine"\ndim = 8\n'
GOOD = 'id = "mine"\nmodel = "resnet18"\ndim = 512\ntokens = "pooled"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GOOD + "tokenz = 'cls'", "unknown key 'tokenz', did you mean 'tokens'?"),
        (GOOD.replace("512", '"512"'), "dim = '512' has to be a whole number"),
        (GOOD + "[transform]\nsiez = 3", "transform: unknown key 'siez', did you mean 'size'?"),
        (
            GOOD + "[transform]\nsize = 300\nresize = 224",
            "size 300 has to be positive and at most resize",
        ),
        (GOOD + 'precision = "fp8"', "precision 'fp8' is not one of fp32, bf16, fp16"),
        (GOOD + "prefix = 4", "grid = 0 and prefix = 4 do not fit together"),
        ('model = "x"', "id is missing; dim is missing"),
        ("id = ", "is not TOML"),
        (
            'id = "a"\ndim = 3\nkind = "python"\nmodel = "x:y"',
            "revision has to name the version of the weights",
        ),
        ('id = "a"\ndim = 3\nkind = "python"\nmodel = "x"\nrevision = "1"', "package.module:attribute"),
        (GOOD + "[transform]\nmean = [1.0, 2.0]", "mean and std are three numbers each"),
        (
            GOOD + "[arguments]\ncheckpoint_path = 'x.pth'",
            "arguments: checkpoint_path: a card sets the shape",
        ),
        (GOOD + "[arguments.pretrained_cfg]\nurl = 'http://x'", "arguments: pretrained_cfg: a card sets"),
        (GOOD + "[arguments.num_classes]\na = 1", "num_classes = {'a': 1} has to be a word, a number"),
        (GOOD + "[arguments]\nimg_siez = 3", "did you mean 'img_size'?"),
        (
            GOOD.replace("resnet18", "hf-hub:lab/x"),
            "'hf-hub:lab/x' has to be the name of a timm",
        ),
        (GOOD.replace("resnet18", "local-dir:/x"), "has to be the name of a timm architecture"),
        (GOOD + 'files = ["../../x.bin"]', "leads out of the folder of the weights"),
        (GOOD + 'files = ["/etc/x.bin"]', "leads out of the folder of the weights"),
        (GOOD.replace('"mine"', '"../mine"'), "leads out of the folder of the weights"),
        (GOOD + 'hub = "../x"', "hub = '../x' has to be ORG/NAME"),
        (HUB + "[arguments]\nattn_implementation = 'kernels-community/x'", "arguments: attn_implementation:"),
        (HUB + "[arguments.auto_map]\nAutoModel = 'x.y'", "arguments: auto_map:"),
        (GOOD + 'package = "x"\nfiles = ["a.b/c.bin"]', "files of a package begin with the name"),
    ],
)
def test_faults_of_a_card_are_named(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InvalidRequest) as error:
        read_card(path)
    assert says in str(error.value)
    assert "mine.toml" in str(error.value)


def test_a_card_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot read the encoder card"):
        load_card(str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("uni2hh", "uni2-h"),
        ("Virchow-2", "virchow2"),
        ("dinov2_s", "dinov2-s"),
        ("hoptimus_0", "h-optimus-0"),
        ("virchow-2", "virchow2"),
        ("hf-hub:someone/UNI2", "uni2-h"),
    ],
)
def test_an_unknown_encoder_gets_near_names(typed: str, near: str) -> None:
    with pytest.raises(UnknownEncoder) as error:
        load_card(typed)
    assert near in str(error.value).partition("?")[0]


def test_timm_names() -> None:
    card = load_card("timm:vit_tiny_patch16_224")
    assert (card.dim, card.grid, card.prefix, card.tokens) == (192, 196, 1, "cls")
    assert card.hub == "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert card.id == "timm:vit_tiny_patch16_224"
    assert (card.transform.size, card.transform.resize) == (224, 248)  # crop_pct 0.9, rounded down
    with pytest.raises(UnknownEncoder, match="timm:resnet50"):
        load_card("timm:resnet5O")


@pytest.mark.parametrize(
    ("typed", "card"),
    [
        ("MahmoodLab/UNI", "uni"),
        ("hf-hub:MahmoodLab/UNI2-h", "uni2-h"),
        ("hf_hub:bioptimus/H-optimus-0", "h-optimus-0"),
        ("hf:paige-ai/Virchow2", "virchow2"),
        ("prov-gigapath/prov-gigapath", "prov-gigapath"),
        ("owkin/phikon-v2", "phikon-v2"),
        ("bioptimus/H-optimus-1", "h-optimus-1"),
        (" uni ", "uni"),
        ("mahmoodlab/uni/", "uni"),
    ],
)
def test_names_as_model_cards_write_them(typed: str, card: str) -> None:
    assert load_card(typed).id == card
    if typed == typed.strip(" /"):
        assert named_card(typed, named_by="F").id == card


def test_the_address_of_a_model_is_its_name() -> None:
    assert load_card("https://huggingface.co/MahmoodLab/UNI2-h").id == "uni2-h"


def test_another_input_size_is_a_card_of_its_own() -> None:
    card, small = load_card("dinov2-s"), load_card("dinov2-s@112")
    assert (small.id, small.model, small.hub) == ("dinov2-s@112", card.model, card.hub)
    assert (small.grid, small.transform.size, small.transform.resize) == (64, 112, 112)
    assert small.arguments == {**card.arguments, "img_size": 112}
    network = load_card("efficientnet-lite0@128")
    assert (network.grid, network.transform.size, network.transform.resize) == (0, 128, 128)
    assert load_card("timm:vit_tiny_patch16_224@96").grid == 36
    assert named_card("dinov2-s@112", named_by="F") == load_card("dinov2small@112") == small


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("dinov2-s@100", "multiple of 14 pixels"),
        ("dinov2-s@0", "multiple of 14 pixels"),
        ("phikon@448", "takes its own input size only, 224 pixels"),
        ("isight@112", "takes its own input size only, 336 pixels"),
        ("conch@100", "multiple of 16 pixels"),
    ],
)
def test_an_input_size_that_does_not_fit_is_refused(typed: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        load_card(typed)


OWN_SIZE = {"isight", *(n for n, card in CARDS.items() if card.kind in ("transformers", "open_clip"))}


@pytest.mark.parametrize("name", CARDS)
def test_cards_at_half_their_input_size(name: str) -> None:
    """Those of transformers and open_clip and iSight refuse; all others give as many tokens as they say."""
    if name in OWN_SIZE:
        with pytest.raises(InvalidRequest, match="takes its own input size only"):
            at_size(CARDS[name], 112)
        return
    card = at_size(CARDS[name], 112)
    network: Any = build_small(card)
    with torch.device("meta"), torch.no_grad():
        features = network.features(torch.empty(1, 3, 112, 112), pooled=not card.grid)
    if card.grid:
        assert features.tokens.shape == (1, card.prefix + card.grid, card.dim)
    else:
        assert features.pooled.shape == (1, card.dim)


def test_the_windows_of_a_swin_are_laid_out_for_its_input() -> None:
    """At twice the side, 256 windows under a mask of 64 would run, and be masked at the wrong places."""
    for name in ("swin-b", "ctranspath"):
        network: Any = build_small(at_size(CARDS[name], 448))
        assert network.model.layers[0].blocks[1].attn_mask.shape[0] == 256


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("H-optimus-0", "did you mean h-optimus-0?"),
        ("Virchow2", "did you mean virchow2?"),
        ("UNI", "did you mean uni?"),
        ("UNI 2", "did you mean uni"),
        ("Phikon v2", "did you mean phikon-v2?"),
        ("CONCH v1.5", "did you mean conch-v1.5?"),
        ("timm/vit_small_patch16_224.augreg_in21k", "A model of timm is timm:vit_small_patch16_224."),
        ("vit_small_patch16_224", "If it is an architecture of timm: timm:vit_small_patch16_224."),
        ("Atlas 2", "no encoder is called 'Atlas 2': `patchbank encoders ls`"),
    ],
)
def test_names_that_are_nearly_one_lead_to_it(typed: str, says: str) -> None:
    with pytest.raises(UnknownEncoder) as error:
        load_card(typed)
    assert says in str(error.value)


@pytest.mark.parametrize("spec", ["x.toml", "finetuned:/x", "/x/y", "hf:/", "other:x"])
def test_files_from_elsewhere_name_no_files(spec: str) -> None:
    with pytest.raises(UntrustedCode, match="the model folder F names the encoder"):
        named_card(spec, named_by="the model folder F")
    assert named_card("uni", named_by="the model folder F") == CARDS["uni"]
    assert named_card("timm:resnet18", named_by="F").dim == 512


def test_cards_pickle() -> None:
    import pickle

    card = CARDS["uni2-h"]
    assert pickle.loads(pickle.dumps(card)) == card


class Point:
    """An entry point as importlib.metadata gives it."""

    def __init__(self, name: str, target: Any) -> None:
        self.name, self.target = name, target
        self.dist = type("Dist", (), {"name": "lab-encoders"})

    def load(self) -> Any:
        if isinstance(self.target, Exception):
            raise self.target
        return self.target


def test_entry_points_bring_cards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = Card(id="mine", model="resnet18", dim=512, tokens="pooled", hub="lab/mine")
    path = tmp_path / "filed.toml"
    path.write_text(GOOD.replace("mine", "filed"))

    def points(targets: dict[str, Any]) -> None:
        found = [Point(name, target) for name, target in targets.items()]
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: found)

    points({"mine": mine, "filed": path})
    assert set(plugged_cards()) == {"mine", "filed"}
    assert load_card("mine") is mine
    points({"mine": lambda: mine})
    assert plugged_cards()["mine"] is mine
    points({"uni": mine.replace(id="uni")})
    with pytest.raises(EncoderError, match=r"lab-encoders brings an encoder 'uni', a name that is taken"):
        plugged_cards()
    points({"bad": ImportError("no module")})
    with pytest.raises(EncoderError, match="lab-encoders does not load"):
        plugged_cards()
    points({"bad": lambda: 3})
    with pytest.raises(EncoderError, match="gave a int, not a Card"):
        plugged_cards()


def test_a_transform_fills_in_resize() -> None:
    assert Transform(size=100).resize == 100
    assert module.with_revision(CARDS["uni"], "a" * 40).revision == "a" * 40

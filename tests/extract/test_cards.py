"""Every card against the architecture it names, on torch's meta device: shapes without memory or time."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from patchbank.errors import EncoderError, InvalidRequest, UnknownEncoder, UntrustedCode
from patchbank.extract import cards as module
from patchbank.extract.cards import Card, Transform, read_card
from patchbank.extract.encoders import build_encoder
from patchbank.extract.listing import describe, policies_of, to_toml
from patchbank.extract.models.build import build_network
from patchbank.extract.registry import load_card, named_card, plugged_cards, shipped_cards
from patchbank.extract.tokens import parse_policy, vector_dim
from patchbank.extract.views import prepare
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
}


def shallow(card: Card) -> Card:
    """Two blocks in place of all: the same widths, tokens and prefix."""
    if not card.grid:
        return card
    depth = {"timm": {"depth": 2}, "transformers": {"num_hidden_layers": 2}}[card.kind]
    return card.replace(arguments={**card.arguments, **depth})


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


@pytest.mark.parametrize("name", CARDS)
def test_card_against_its_architecture(name: str) -> None:
    card = shallow(CARDS[name])
    with torch.device("meta"), torch.no_grad():
        network = build_network(card, None)
        side = card.transform.size
        features = network.features(torch.empty(2, 3, side, side), pooled=not card.grid)
    if card.grid:
        assert features.tokens is not None
        assert features.tokens.shape == (2, card.prefix + card.grid, card.dim)
        inner: Any = network.model
        if card.kind == "timm":
            assert inner.num_prefix_tokens == card.prefix
        else:
            assert 1 + getattr(inner.config, "num_register_tokens", 0) == card.prefix
        assert card.prefix == PREFIX.get(name, 1)
    else:
        assert features.pooled is not None
        assert features.pooled.shape == (2, card.dim)
    assert vector_dim(card, parse_policy(card.tokens)) in (card.dim, 2 * card.dim)
    assert card.licence
    assert card.source.startswith("https://")
    assert card.package or card.hub


@pytest.mark.parametrize("name", PAPER)
def test_parameters_of_the_papers_encoders(name: str) -> None:
    with torch.device("meta"):
        network = build_network(CARDS[name], None)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == PAPER[name]


@pytest.mark.parametrize("name", CARDS)
@pytest.mark.parametrize("shape", [(128, 128), (96, 150), (300, 257)])
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
    path.write_text(to_toml(CARDS[name]), "utf-8")
    assert read_card(path) == CARDS[name]
    assert json.loads(json.dumps(describe(CARDS[name])))["id"] == name


def test_policies_of_a_card() -> None:
    assert policies_of(CARDS["virchow2"]) == {
        "cls": 1280,
        "mean": 1280,
        "cls+mean": 2560,
        "registers": 4 * 1280,
        "patches": 256 * 1280,
        "pooled": 1280,
    }
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
        ("uni2h", "uni2-h"),
        ("Virchow-2", "virchow2"),
        ("dinov2_s", "dinov2-s"),
        ("hoptimus0", "h-optimus-0"),
        ("gigapath", "prov-gigapath"),
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


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("gigapath", "did you mean prov-gigapath?"),
        ("H-optimus-0", "did you mean h-optimus-0?"),
        ("Virchow2", "did you mean virchow2?"),
        ("UNI", "did you mean uni?"),
        ("UNI 2", "did you mean uni"),
        ("Phikon v2", "did you mean phikon-v2?"),
        ("CONCH v1.5", "did you mean conch?"),
        ("timm/vit_small_patch16_224.augreg_in21k", "A model of timm is timm:vit_small_patch16_224."),
        ("vit_small_patch16_224", "If it is an architecture of timm: timm:vit_small_patch16_224."),
        ("CTransPath", "no encoder is called 'CTransPath': `patchbank encoders ls`"),
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

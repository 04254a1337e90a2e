"""Cards beside facts that were written down from the owners' and other tools' code, not from the cards."""

from typing import Any

import pytest
from patchbank.extract.cards import Card, Transform
from patchbank.extract.registry import shipped_cards
from patchbank.extract.tokens import parse_policy, vector_dim

CARDS = shipped_cards()
STATISTICS = {
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "CLIP": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "H-optimus": ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)),
    "Hibou": ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816)),
    "Lunit": ((0.7032, 0.5361, 0.6610), (0.2172, 0.2608, 0.2072)),
    "GenBio": ((0.697, 0.575, 0.728), (0.188, 0.24, 0.187)),
    "RudolfV": ((0.7072, 0.5787, 0.7036), (0.2119, 0.2301, 0.1775)),
}
# id, hub, length and policy of the default vector, prefix tokens, input (resize > crop), which side is
# resized, filter, statistics, precision, access; ? where no source was found
FACTS = """
uni               MahmoodLab/uni                1024 cls       1 224      center bilinear ImageNet  fp16 gated
uni2-h            MahmoodLab/UNI2-h             1536 cls       9 224      center bilinear ImageNet  bf16 gated
conch             MahmoodLab/CONCH              512  pooled    0 448      center bicubic  CLIP      fp32 gated
conch-v1.5        MahmoodLab/conchv1_5          768  pooled    0 448      center ?        ImageNet  fp16 gated
virchow           paige-ai/Virchow              2560 cls+mean  1 224      center bicubic  ImageNet  fp16 gated
virchow2          paige-ai/Virchow2             2560 cls+mean  5 224      center bicubic  ImageNet  fp16 gated
prov-gigapath     prov-gigapath/prov-gigapath   1536 cls       1 256>224  center bicubic  ImageNet  fp16 gated
h-optimus-0       bioptimus/H-optimus-0         1536 cls       5 224      center bicubic  H-optimus fp16 ?
h-optimus-1       bioptimus/H-optimus-1         1536 cls       5 224      center bicubic  H-optimus fp16 gated
h0-mini           bioptimus/H0-mini             768  cls       5 224      center ?        H-optimus fp16 gated
gpfm              majiabo/GPFM                  1024 cls       1 224      squash bicubic  ImageNet  fp32 open
midnight-12k      kaiko-ai/midnight             3072 cls+mean  1 224      center bilinear half      fp16 open
phikon            owkin/phikon                  768  cls       1 224      squash bilinear ImageNet  fp32 open
phikon-v2         owkin/phikon-v2               1024 cls       1 224      center bicubic  ImageNet  fp32 open
hibou-b           histai/hibou-b                768  cls       5 224      center bicubic  Hibou     fp32 ?
hibou-l           histai/hibou-L                1024 cls       5 224      center bicubic  Hibou     fp32 ?
musk              xiangjx/musk                  1024 cls       1 384      center bicubic  half      fp16 gated
keep              Astaxanthin/KEEP              768  pooled    0 224      center bicubic  ImageNet  fp16 open
ctranspath        jamesdolezal/CTransPath       768  pooled    0 224      center bilinear ImageNet  fp32 open
openmidnight      SophontAI/OpenMidnight        1536 cls       5 224      squash bilinear ImageNet  fp16 open
openmidnight-1.1  medarc/OpenMidnight-1.1       1536 cls       ? 224      center bicubic  ImageNet  fp16 open
genbio-pathfm     genbio-ai/genbio-pathfm       4608 pooled    0 224      squash bilinear GenBio    fp32 open
rudolfv2          Aignostics/RudolfV-2          3072 cls+mean  9 224      squash bicubic  RudolfV   fp32 gated
rudolfv2-b        Aignostics/RudolfV-2-B        1536 cls+mean  9 224      squash bicubic  RudolfV   fp32 gated
rudolfv2-s        Aignostics/RudolfV-2-S        768  cls+mean  9 224      squash bicubic  RudolfV   fp32 gated
mstar             Wangyh/mSTAR                  1024 cls       1 224      center bilinear ImageNet  fp32 gated
phaet             wearewaiv/phaet               1024 cls       1 224      center bilinear ?         fp32 ?
mascaret          wearewaiv/mascaret            1536 cls       1 224      center bilinear ?         fp32 ?
pathorchestra     AI4Pathology/PathOrchestra    1024 cls       1 224      ?      bilinear ImageNet  fp32 gated
prost40m          waticlems/Prost40M            384  ?         ? 224      ?      ?        ?         fp32 open
plip              vinid/plip                    768  pooled    1 224      center bicubic  CLIP      fp32 open
quiltnet-b32      wisdomik/QuiltNet-B-32        512  pooled    0 224      center ?        CLIP      fp32 open
quiltnet-b16      wisdomik/QuiltNet-B-16        512  pooled    0 224      center ?        CLIP      fp32 open
isight            nirschl-lab/iSight            1024 pooled    0 336      center bicubic  CLIP      fp16 open
dinov2-s          timm/vit_small_patch14_dinov2.lvd142m      384  cls 1 224 center bicubic ImageNet ? open
dinov2-b          timm/vit_base_patch14_dinov2.lvd142m       768  cls 1 224 center bicubic ImageNet ? open
dinov2-l          timm/vit_large_patch14_dinov2.lvd142m      1024 cls 1 224 center bicubic ImageNet ? open
dinov2-g          timm/vit_giant_patch14_dinov2.lvd142m      1536 cls 1 224 center bicubic ImageNet ? open
dinov2-reg-s      timm/vit_small_patch14_reg4_dinov2.lvd142m 384  cls 5 224 center bicubic ImageNet ? open
dinov2-reg-b      timm/vit_base_patch14_reg4_dinov2.lvd142m  768  cls 5 224 center bicubic ImageNet ? open
dinov2-reg-l      timm/vit_large_patch14_reg4_dinov2.lvd142m 1024 cls 5 224 center bicubic ImageNet ? open
dinov2-reg-g      timm/vit_giant_patch14_reg4_dinov2.lvd142m 1536 cls 5 224 center bicubic ImageNet ? open
dinov3-s          timm/vit_small_patch16_dinov3.lvd1689m      384  cls 5 224 ? ? ImageNet bf16 open
dinov3-b          timm/vit_base_patch16_dinov3.lvd1689m       768  cls 5 224 ? ? ImageNet bf16 open
dinov3-l          timm/vit_large_patch16_dinov3.lvd1689m      1024 cls 5 224 ? ? ImageNet bf16 open
dinov3-hplus      timm/vit_huge_plus_patch16_dinov3.lvd1689m  1280 cls 5 224 ? ? ImageNet bf16 open
lunit-vits16      1aurent/vit_small_patch16_224.lunit_dino    384  cls 1 224 ? ? Lunit fp32 open
lunit-vits8       1aurent/vit_small_patch8_224.lunit_dino     384  cls 1 224 ? ? Lunit fp32 open
lunit-resnet50-bt     1aurent/resnet50.lunit_bt               2048 pooled 0 224 ? ? Lunit fp32 open
lunit-resnet50-mocov2 1aurent/resnet50.lunit_mocov2           2048 pooled 0 224 ? ? Lunit fp32 open
lunit-resnet50-swav   1aurent/resnet50.lunit_swav             2048 pooled 0 224 ? ? Lunit fp32 open
resnet50          timm/resnet50.tv_in1k                       2048 pooled 0 224 center bilinear ImageNet fp32 open
convnextv2-b      timm/convnextv2_base.fcmae_ft_in22k_in1k    1024 pooled 0 224 center bicubic  ImageNet fp32 open
kaiko-s16 1aurent/vit_small_patch16_224.kaiko_ai_towards_large_pathology_fms 384 cls 1 224 center bilinear half fp32 open
kaiko-s8  1aurent/vit_small_patch8_224.kaiko_ai_towards_large_pathology_fms  384 cls 1 224 center bilinear half fp32 open
kaiko-b16 1aurent/vit_base_patch16_224.kaiko_ai_towards_large_pathology_fms  768 cls 1 224 center bilinear half fp32 open
kaiko-b8  1aurent/vit_base_patch8_224.kaiko_ai_towards_large_pathology_fms   768 cls 1 224 center bilinear half fp32 open
kaiko-l14 1aurent/vit_large_patch14_reg4_dinov2.kaiko_ai_towards_large_pathology_fms 1024 cls 5 224 center bilinear half fp32 open
biomedclip microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224 512 pooled 0 224 center ? CLIP fp32 open
"""  # noqa: E501
REVISIONS = {  # as slide2vec pins them
    "rudolfv2": "482d9519c6a10fc22fbe5bcd6a87d5daf056643c",
    "rudolfv2-b": "b2cb55c8fff8aaaf9cc16fda6d09bfb21dfc6db8",
    "rudolfv2-s": "76abacd512a98c72a6db6192af9fc98313c3bd78",
    "phaet": "e0ce6e0ee248470bd8604823e412ca64048a2495",
    "mascaret": "e95e7ea15e039e78d74def101415e19d9a67ba80",
}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "uni": {"init_values": 1e-5, "dynamic_img_size": True},
    "uni2-h": {
        "patch_size": 14, "depth": 24, "num_heads": 24, "init_values": 1e-5, "embed_dim": 1536,
        "mlp_ratio": 5.33334, "no_embed_class": True, "mlp_layer": "SwiGLUPacked", "act_layer": "SiLU",
        "reg_tokens": 8,
    },
    "virchow": {"init_values": 1e-5, "mlp_ratio": 5.3375, "mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"},
    "virchow2": {"reg_tokens": 4, "mlp_ratio": 5.3375, "mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"},
    "prov-gigapath": {"patch_size": 16, "embed_dim": 1536, "depth": 40, "num_heads": 24},
    "h-optimus-0": {"init_values": 1e-5, "dynamic_img_size": False},
    "h-optimus-1": {"init_values": 1e-5, "dynamic_img_size": False},
    "h0-mini": {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"},
    "gpfm": {"init_values": 1e-5},
    "hibou-b": {"use_swiglu_ffn": True, "num_register_tokens": 4},
    "hibou-l": {"use_swiglu_ffn": True, "num_register_tokens": 4},
    "midnight-12k": {"use_swiglu_ffn": True, "num_hidden_layers": 40},
    "phikon": {"add_pooling_layer": False},
    "mstar": {"init_values": 1e-5, "dynamic_img_size": True},
    "pathorchestra": {"init_values": 1e-5},
    "ctranspath": {"embed_layer": "ConvStem"},
}  # fmt: skip
UNVERIFIED = {  # what no file confirmed is said in the card
    "h0-mini": "third-party code",
    "lunit-vits8": "not read",
    "lunit-vits16": "not read",
    "lunit-resnet50-bt": "not read",
    "prost40m": "not verified",
    "ctranspath": "not verified",
    "genbio-pathfm": "not read",
    "gpfm": "MIT according to slide2vec",
    **{f"kaiko-{size}": "not verified" for size in ("s16", "s8", "b16", "b8", "l14")},
    **dict.fromkeys(("keep", "mstar", "openmidnight", "quiltnet-b16", "quiltnet-b32"), "not verified"),
    **dict.fromkeys(("plip", "isight", "rudolfv2", "digepath", "gigapath-flash"), "unverified"),
}
ROWS = {row.split()[0]: row.split()[1:] for row in FACTS.strip().splitlines()}


def apart(shape: Transform, name: str) -> float:
    return max(abs(a - b) for a, b in zip((*shape.mean, *shape.std), sum(STATISTICS[name], ()), strict=True))


def of_card(card: Card) -> list[str]:
    shape = card.transform
    side = str(shape.size) if shape.resize == shape.size else f"{shape.resize}>{shape.size}"
    near = min(STATISTICS, key=lambda name: apart(shape, name))
    assert apart(shape, near) < 1e-4
    dim = vector_dim(card, parse_policy(card.tokens))
    words = [card.hub, dim, card.tokens, card.prefix, side, shape.mode, shape.interpolation]
    return [*map(str, words), near, card.precision, "gated" if card.gated else "open"]


@pytest.mark.parametrize("name", ROWS)
def test_a_card_states_what_is_known(name: str) -> None:
    stated = ROWS[name]
    card = [given if known != "?" else "?" for given, known in zip(of_card(CARDS[name]), stated, strict=True)]
    assert card == stated


def test_what_has_no_row_is_of_natural_images_or_of_one_tool() -> None:
    left = set(CARDS) - set(ROWS)
    assert left == {
        "efficientnet-lite0",
        "swin-b",
        "vit-l16",
        "tf-efficientnetv2-m",
        "digepath",
        "gigapath-flash",
    }


def test_arguments_and_commits() -> None:
    for name, wanted in ARGUMENTS.items():
        assert wanted.items() <= CARDS[name].arguments.items(), name
    for name, commit in REVISIONS.items():
        assert CARDS[name].revision == commit
    gigapath_flash = CARDS["gigapath-flash"].transform
    assert (gigapath_flash.resize, gigapath_flash.size) == (256, 224)


@pytest.mark.parametrize("name", UNVERIFIED)
def test_what_was_not_verified_is_said(name: str) -> None:
    assert UNVERIFIED[name] in f"{CARDS[name].note} {CARDS[name].licence}"


def test_names_that_mean_several_lengths_say_so() -> None:
    for name in ("virchow", "virchow2", "h0-mini", "midnight-12k", "musk"):
        assert "-d" in CARDS[name].note
    assert "cls+mean" in CARDS["h0-mini"].note
    assert CARDS["plip"].projection == 512

"""timm:NAME is timm's own model and input; what cannot be is refused in a sentence."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from patchbank.errors import EncoderError, InvalidRequest, UnknownEncoder
from patchbank.extract.cards import Transform
from patchbank.extract.encoders import build_encoder
from patchbank.extract.models.timm import _transform
from patchbank.extract.registry import load_card
from patchbank.extract.views import prepare
from PIL import Image
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform


def config_of(name: str) -> dict[str, Any]:
    """What timm says of the input of a model."""
    about = timm.get_pretrained_cfg(name)
    assert about is not None, name
    return resolve_data_config({}, pretrained_cfg=about.to_dict())


def test_the_pixels_are_timms() -> None:
    """A sample over the registry, all crop modes in it; benchmarks/extract_timm.py compares them all."""
    distinct: dict[str, tuple[str, dict]] = {}
    for name in timm.list_models(pretrained=True):
        data = config_of(name)
        distinct.setdefault(repr(sorted(data.items())), (name, data))
    sample = [found for number, found in enumerate(distinct.values()) if not number % 12]
    for mode in ("squash", "border"):
        sample += [found for found in distinct.values() if found[1]["crop_mode"] == mode][:3]
    compared, modes = 0, set()
    for name, data in sample:
        try:
            ours = _transform(name, data)
        except EncoderError:
            continue
        for shape in ((96, 96), (130, 97), (300, 512)):
            pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
            mine = (prepare(pixels, ours).astype(np.float32) / 255 - ours.mean) / ours.std
            transform: Any = create_transform(**data)
            theirs = transform(Image.fromarray(pixels)).numpy().transpose(1, 2, 0)
            np.testing.assert_allclose(mine, theirs, atol=1e-5, err_msg=name)
        compared += 1
        modes.add(ours.mode)
    assert compared >= 15
    assert modes == {"center", "squash", "border"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"input_size": (3, 256, 128)}, "its input is 256 x 128, and only square ones"),
        ({"input_size": (4, 224, 224)}, "it takes 4 channels"),
        ({"crop_pct": 1.2}, "crop_pct of 1.2 puts a frame around the patch"),
        ({"crop_mode": "other"}, "crop_mode 'other' is not supported"),
        ({"interpolation": "random"}, "interpolation 'random' is not supported"),
    ],
)
def test_inputs_that_cannot_be_reproduced_are_refused(changes: dict, says: str) -> None:
    data = config_of("resnet18")
    with pytest.raises(EncoderError, match=says):
        _transform("resnet18", data | changes)


def test_registers_without_a_class_token_are_no_class_token() -> None:
    card = load_card("timm:vit_wee_patch16_reg1_gap_256")
    assert (card.prefix, card.class_token, card.tokens) == (1, False, "pooled")
    encoder = build_encoder(card, device="cpu", precision="fp32", random_weights=True)
    found = encoder.embed(torch.zeros(2, 256, 256, 3, dtype=torch.uint8), ["registers", "mean"])
    tokens = encoder.network.features(
        encoder.normalise(torch.zeros(2, 256, 256, 3, dtype=torch.uint8))
    ).tokens
    assert tokens is not None
    torch.testing.assert_close(found["registers"], tokens[:, 0], rtol=0, atol=1e-4)  # of another pass
    torch.testing.assert_close(found["mean"], tokens[:, 1:].mean(dim=1), rtol=0, atol=1e-4)
    with pytest.raises(InvalidRequest, match="has no CLS token"):
        encoder.embed(torch.zeros(2, 256, 256, 3, dtype=torch.uint8), ["cls"])


def test_identities_of_the_old_transforms_stay() -> None:
    shape = Transform(size=224, resize=256)
    assert "mode" not in shape.identity
    assert shape.replace(mode="squash").identity["mode"] == "squash"


def test_a_tag_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(
        UnknownEncoder, match=r"no weights 'a9_in1k' of resnet18; there are .*timm:resnet18\.a1_in1k"
    ):
        load_card("timm:resnet18.a9_in1k")


def test_class_tokens_that_no_flag_counts_leave_the_pooled_vector_only() -> None:
    card = load_card("timm:coat_lite_tiny")  # 49 patch tokens and a class token among its features
    assert (card.grid, card.prefix, card.tokens) == (0, 0, "pooled")


def test_features_that_are_a_list_are_pooled() -> None:
    card = load_card("timm:crossvit_tiny_240")
    vectors = build_encoder(card, device="cpu", precision="fp32", random_weights=True).embed(
        torch.zeros(1, 240, 240, 3, dtype=torch.uint8)
    )
    assert vectors["pooled"].shape == (1, card.dim)

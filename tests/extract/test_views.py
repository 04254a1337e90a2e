"""Views and token policies against arithmetic by hand."""

import numpy as np
import pytest
import torch
from patchbank.errors import ImageError, InvalidRequest
from patchbank.extract.cards import Transform
from patchbank.extract.registry import shipped_cards
from patchbank.extract.tokens import layers_of, parse_policy, select, vector_dim
from patchbank.extract.views import View, crop_pixels, orient, parse_views, prepare


def test_names_are_canonical() -> None:
    for name in ("full", "center:0.5", "d4:3", "d4:mean", "center:0.75+d4:mean", "center:0.5+d4:7"):
        assert [view.name for view in parse_views(name)] == [name]
    assert parse_views("center:.50") == parse_views("center:0.5")
    assert parse_views(["full", "center:1", "center:1.0", "d4:0"]) == [View()]
    assert [view.name for view in parse_views("d4")] == ["full", *(f"d4:{k}" for k in range(1, 8)), "d4:mean"]
    assert parse_views("center:0.5+d4")[0].name == "center:0.5"
    assert len(parse_views(["full", "d4"])) == 9


@pytest.mark.parametrize(
    "name", ["", "centre:0.5", "center:0", "center:1.5", "center:-1", "d4:8", "d4+center:0.5", "d4+d4"]
)
def test_what_is_no_view(name: str) -> None:
    with pytest.raises(InvalidRequest, match="unknown view"):
        parse_views(name)
    with pytest.raises(InvalidRequest, match="no view"):
        parse_views([])


def test_the_eight_orientations_are_all_different() -> None:
    picture = torch.arange(2 * 3 * 3 * 3).reshape(2, 3, 3, 3).to(torch.uint8)
    seen = [orient(picture, k) for k in range(8)]
    assert len({tuple(turned.flatten().tolist()) for turned in seen}) == 8
    assert torch.equal(seen[0], picture)
    assert torch.equal(seen[4], picture.flip(2))
    assert torch.equal(seen[1], torch.rot90(picture, 1, (1, 2)))
    for turned in seen:  # images stay whole: every channel keeps its values
        assert torch.equal(
            turned[0, ..., 1].flatten().sort().values, picture[0, ..., 1].flatten().sort().values
        )


def test_crops_are_central() -> None:
    pixels = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)
    np.testing.assert_array_equal(crop_pixels(pixels, 0.5), pixels[2:6, 1:4])
    assert crop_pixels(pixels, 1) is pixels
    assert crop_pixels(pixels, 0.01).shape == (1, 1, 3)


def test_prepare_refuses_what_is_no_picture() -> None:
    for bad in (
        np.zeros((4, 4)),
        np.zeros((4, 4, 3)),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ):
        with pytest.raises(ImageError, match="a patch is uint8"):
            prepare(bad, Transform(size=4))


def test_prepare_keeps_pixels_that_fit() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    assert prepare(pixels, Transform(size=4)) is pixels
    np.testing.assert_array_equal(prepare(pixels, Transform(size=2, resize=4)), pixels[1:3, 1:3])


# --- tokens -----------------------------------------------------------------------------------------


def test_pooling_picks_the_right_tokens() -> None:
    """CLS is 100, registers are 1000s, patches 1, 2, 3: a register in the mean would show."""
    tokens = torch.tensor([100.0, 1000, 2000, 3000, 4000, 1, 2, 3])[None, :, None].repeat(2, 1, 2)
    assert select(tokens, 5, "cls").tolist() == [[100, 100]] * 2
    assert select(tokens, 5, "mean").tolist() == [[2, 2]] * 2
    assert select(tokens, 5, "cls+mean").tolist() == [[100, 100, 2, 2]] * 2
    assert select(tokens, 5, "registers").tolist() == [[1000, 1000, 2000, 2000, 3000, 3000, 4000, 4000]] * 2
    assert select(tokens, 5, "patches").tolist() == [[1, 1, 2, 2, 3, 3]] * 2


def test_means_are_taken_in_float32() -> None:
    tokens = torch.full((1, 1001, 1), 2048.0, dtype=torch.float16)
    assert select(tokens, 1, "mean").item() == 2048.0
    assert select(tokens, 1, "mean").dtype == torch.float32


def test_policies_by_name() -> None:
    assert parse_policy("cls+mean@12").layer == 12
    assert layers_of([parse_policy(name) for name in ("cls@8", "mean@3", "cls", "mean@8")]) == (3, 8)
    for bad in ("CLS", "cls@0", "cls@-1", "patches@3", "mean@", "token"):
        with pytest.raises(InvalidRequest, match="unknown token policy"):
            parse_policy(bad)


def test_what_an_encoder_cannot_give() -> None:
    cards = shipped_cards()
    with pytest.raises(InvalidRequest, match=r"efficientnet-lite0 has no tokens.*use pooled"):
        vector_dim(cards["efficientnet-lite0"], parse_policy("cls"))
    with pytest.raises(InvalidRequest, match="virchow has no register tokens"):
        vector_dim(cards["virchow"], parse_policy("registers"))

"""Views and token policies against arithmetic by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from patchbank.errors import ImageError, InvalidRequest
from patchbank.extract import stains
from patchbank.extract.cards import Transform
from patchbank.extract.registry import shipped_cards
from patchbank.extract.tokens import layers_of, parse_policy, select, vector_dim
from patchbank.extract.views import View, crop_pixels, orient, parse_views, prepare, viewed


def test_names_are_canonical() -> None:
    whole = "stain:macenko+center:0.5+mpp:0.5@0.25+d4:7"
    for name in ("full", "center:0.5", "d4:3", "d4:mean", "center:0.75+d4:mean", "center:0.5+d4:7", whole):
        assert [view.name for view in parse_views(name)] == [name]
    assert parse_views("center:.50") == parse_views("center:0.5")
    assert parse_views(["full", "center:1", "center:1.0", "d4:0"]) == [View()]
    assert [view.name for view in parse_views("d4")] == ["full", *(f"d4:{k}" for k in range(1, 8)), "d4:mean"]
    assert parse_views("center:0.5+d4")[0].name == "center:0.5"
    assert len(parse_views(["full", "d4"])) == 9


@pytest.mark.parametrize(
    "name",
    [
        "",
        "centre:0.5",
        "center:0",
        "center:1.5",
        "center:-1",
        "d4:8",
        "d4+center:0.5",
        "d4+d4",
        "full+d4",
        "mpp:0@0.5",
        "mpp:x",
        "mpp:0.5@0.25+center:0.5",
        "stain:none",
        "center:0.5+stain:macenko",
    ],
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


def test_a_resolution_comes_from_the_name_or_from_the_manifest() -> None:
    assert parse_views("mpp:0.5", mpp=0.25) == parse_views("mpp:0.5@0.25") == [View(mpp=0.5, source=0.25)]
    assert parse_views("mpp:.50@0.250")[0].name == "mpp:0.5@0.25"
    assert parse_views("mpp:0.5@0.25", mpp=1.0)[0].source == 0.25
    with pytest.raises(
        InvalidRequest, match=r"not known. Fix: say them, mpp:0.5@0.25, or set mpp in the man"
    ):
        parse_views("mpp:0.5")


def test_resampling_keeps_the_scale_whatever_the_size() -> None:
    """A patch of 8 px at 0.25 is one of 4 px at 0.5: it stands in the middle of 6 px, framed by the mean."""
    shape = Transform(size=6, interpolation="nearest", mean=(0.2, 0.4, 0.6), std=(1.0, 1.0, 1.0))
    pixels = np.kron(np.arange(16, dtype=np.uint8).reshape(4, 4), np.ones((2, 2), np.uint8))
    pixels = np.repeat(pixels[..., None], 3, axis=2)
    (view,) = parse_views("mpp:0.5@0.25")
    seen = prepare(pixels, shape, view)
    assert seen.shape == (6, 6, 3)
    np.testing.assert_array_equal(seen[1:5, 1:5, 0], np.arange(16).reshape(4, 4))
    assert seen[0, 0].tolist() == [51, 102, 153]
    (wide,) = parse_views("mpp:0.25@0.5")  # 16 px, of which the middle is kept
    np.testing.assert_array_equal(prepare(pixels, shape, wide), np.asarray(_twice(pixels))[5:11, 5:11])
    assert prepare(pixels, Transform(size=4), view).shape == (4, 4, 3)


def _twice(pixels: np.ndarray) -> np.ndarray:
    return pixels.repeat(2, axis=0).repeat(2, axis=1)


def stained(seed: int = 0) -> np.ndarray:
    """Two stains in random amounts, with noise: uint8 (32, 32, 3)."""
    rng = np.random.default_rng(seed)
    stains = np.array([[0.65, 0.70, 0.29], [0.27, 0.85, 0.45]])
    amounts = rng.gamma(2.0, 0.25, (32 * 32, 2))
    density = amounts @ stains + 0.2 + rng.normal(0, 0.01, (32 * 32, 3))
    return np.clip(240 * np.exp(-density), 0, 255).astype(np.uint8).reshape(32, 32, 3)


def test_stains_become_those_of_the_target() -> None:
    normalizers = pytest.importorskip("torchstain.numpy.normalizers")

    pixels = stained()
    macenko = viewed(pixels, parse_views("stain:macenko")[0])
    np.testing.assert_array_equal(
        macenko, normalizers.NumpyMacenkoNormalizer().normalize(pixels, stains=False)[0]
    )
    assert np.abs(macenko.astype(int) - pixels).mean() > 3
    again = viewed(macenko, View(stain="macenko"))
    assert np.abs(again.astype(int) - macenko).mean() < 6, (
        "what has the target's stains stays nearly as it is"
    )
    reinhard: Any = normalizers.NumpyReinhardNormalizer()
    reinhard.fit(viewed(pixels, View(stain="reinhard")))
    np.testing.assert_allclose(reinhard.target_means, stains.LAB_MEAN, atol=2.5)
    np.testing.assert_allclose(reinhard.target_stds, stains.LAB_STD, atol=3)
    cropped = prepare(pixels, Transform(size=16), View(stain="macenko", crop=0.5))
    np.testing.assert_array_equal(cropped, macenko[8:24, 8:24])


FACTORS = [(0.8, 0.8), (0.8, 1.25), (1.25, 0.8), (1.25, 1.25)]


def test_jitter_scales_the_stains_by_constants() -> None:
    """Amounts of the stains, unmixed again, are those of the patch times the view's factors."""
    rng = np.random.default_rng(0)
    amounts = rng.uniform(0.05, 0.6, (32 * 32, 2))
    density = amounts @ stains._STAINS[:2]
    pixels = np.rint(256 * np.exp(-density) - 1).astype(np.uint8).reshape(32, 32, 3)
    assert [view.name for view in parse_views("stain:jitter")] == [f"stain:jitter{k}" for k in range(1, 5)]
    assert [v.name for v in parse_views("stain:jitter+center:0.5")][3] == "stain:jitter4+center:0.5"
    for view, factors in zip(parse_views("stain:jitter"), FACTORS, strict=True):
        seen = viewed(pixels, view).reshape(-1, 3)
        found = -np.log((seen + 1.0) / 256) @ stains._UNMIX
        np.testing.assert_allclose(found[:, :2], amounts * factors, atol=0.02)
        np.testing.assert_allclose(found[:, 2], 0, atol=0.02)
    white = np.full((4, 4, 3), 255, np.uint8)
    np.testing.assert_array_equal(viewed(white, View(stain="jitter4")), white)


def test_patches_without_stains_are_refused() -> None:
    pytest.importorskip("torchstain")
    white, grey = np.full((16, 16, 3), 255, np.uint8), np.full((16, 16, 3), 90, np.uint8)
    with pytest.raises(ImageError, match=r"stain:macenko: 0.0% of the patch is stained, and 0.5% is needed"):
        viewed(white, View(stain="macenko"))
    with pytest.raises(ImageError, match="stain:macenko finds no two stains"):
        viewed(grey, View(stain="macenko"))
    with pytest.raises(ImageError, match="one value only in a channel"):
        viewed(grey, View(stain="reinhard"))


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

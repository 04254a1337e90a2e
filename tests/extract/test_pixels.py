"""From files of every kind to an encoder's input, against the owners' steps: PIL's RGB, torchvision, timm."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patchbank.datasets.images import read_image
from patchbank.errors import ImageError
from patchbank.extract.cards import Transform
from patchbank.extract.registry import shipped_cards
from patchbank.extract.views import prepare
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_eval
from torchvision import transforms

SHAPES = [(64, 64), (97, 150), (300, 211)]
SOURCES = [
    "RGB",
    "RGBA",
    "L",
    "LA",
    "P",
    "P transparent",
    "1",
    "EXIF",
    "JPEG",
    "16-bit grey",
    "16-bit RGB",
    "CMYK",
]
REFUSED = {"16-bit grey": "more than 8 bits", "16-bit RGB": "more than 8 bits", "CMYK": "colours are CMYK"}


def saved(kind: str, shape: tuple[int, int], folder: Path) -> Path:
    """An image file of a kind, random colours in soft patches."""
    rng = np.random.default_rng(sum(shape))
    coarse = rng.integers(0, 256, (shape[0] // 8 + 1, shape[1] // 8 + 1, 4), dtype=np.uint8)
    image = Image.fromarray(coarse, "RGBA").resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    options: dict[str, Any] = {}
    path = folder / "patch.png"
    if kind == "16-bit grey":
        image = Image.fromarray(rng.integers(0, 65536, shape, dtype=np.uint16))
    elif kind == "16-bit RGB":
        path = folder / "patch.ppm"
        data = rng.integers(0, 65536, (*shape, 3), dtype=np.uint16).astype(">u2").tobytes()
        path.write_bytes(f"P6 {shape[1]} {shape[0]} 65535\n".encode() + data)
        return path
    elif kind == "P transparent":
        image, options = image.convert("RGB").quantize(32), {"transparency": 3}
    elif kind in ("EXIF", "JPEG", "CMYK"):
        path = folder / "patch.jpg"
        image = image.convert("CMYK" if kind == "CMYK" else "RGB")
        if kind == "EXIF":
            exif = Image.Exif()
            exif[0x0112] = 6  # to be turned by 90 degrees: loading does not
            options = {"exif": exif}
    elif kind == "P":
        image = image.convert("RGB").quantize(32)
    else:
        image = image.convert(kind)
    image.save(path, **options)
    return path


def owners(shape: Transform) -> Any:
    """Resize and crop as torchvision or timm do it: a PIL image to another."""
    if shape.mode == "border":  # timm's own, of which the last two steps make a tensor
        made: Any = transforms_imagenet_eval(
            img_size=shape.size,
            crop_pct=shape.size / shape.resize,
            crop_mode="border",
            interpolation=shape.interpolation,
            mean=shape.mean,
        )
        return transforms.Compose(made.transforms[:2])
    side: Any = (shape.resize, shape.resize) if shape.mode == "squash" else shape.resize
    filters = transforms.InterpolationMode(shape.interpolation)
    return transforms.Compose([transforms.Resize(side, filters), transforms.CenterCrop(shape.size)])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # of the owners' convert, not of ours
def test_pixels_are_the_owners(kind: str, mode: Any, interpolation: Any, tmp_path: Path) -> None:
    wanted = Transform(size=56, resize=56 if mode == "border" else 64, mode=mode, interpolation=interpolation)
    for size in SHAPES:
        path = saved(kind, size, tmp_path)
        if kind in REFUSED:
            with pytest.raises(ImageError, match=REFUSED[kind]):
                read_image(path)
            continue
        with Image.open(path) as image:
            theirs = np.asarray(owners(wanted)(image.convert("RGB")))
        found = prepare(read_image(path), wanted)
        assert found.shape == (56, 56, 3)
        np.testing.assert_array_equal(found, theirs)


def test_non_square_patches_are_squeezed_or_cropped_as_their_owners_do() -> None:
    """A white frame at the left and the right of a wide patch: squeezed it stays, cropped it is gone."""
    wide = np.zeros((100, 200, 3), np.uint8)
    wide[:, :20] = wide[:, 180:] = 255
    seen = {name: prepare(wide, card.transform).max() > 0 for name, card in shipped_cards().items()}
    squeezed = {name for name, there in seen.items() if there}
    assert {"gpfm", "phikon"} <= squeezed
    assert squeezed == {name for name, card in shipped_cards().items() if card.transform.mode == "squash"}
    assert not squeezed & {"uni", "virchow2", "conch", "prov-gigapath", "midnight-12k", "dinov2-s"}

"""Augmentation of one patch, drawn from a seed of its own, so that a resumed epoch sees the same pixels.

A recipe lists steps, done in this order:

    {step = "d4"}                                           one of the 8 flips and quarter turns
    {step = "hflip", p = 0.5}
    {step = "rotation", degrees = 15}                       uniform in +-degrees, corners black
    {step = "color_jitter", brightness, contrast, saturation, hue}   torchvision's ranges, in random order
    {step = "stain_jitter", sigma = 0.1, bias = 0.02}       each stain scaled and shifted
    {step = "resize", size = 224}                           bilinear, to a square
    {step = "random_resized_crop", size = 224, scale = [0.8, 1.0], ratio = [0.75, 1.3333]}

An image that `resize` or `random_resized_crop` has brought to its size is normalised as it is; every other
one goes through the encoder's own resize and crop.
"""

import difflib
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

_REQUIRED = object()
STEPS: dict[str, dict[str, Any]] = {
    "d4": {},
    "hflip": {"p": 0.5},
    "rotation": {"degrees": _REQUIRED},
    "color_jitter": {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0},
    "stain_jitter": {"sigma": 0.1, "bias": 0.02},
    "resize": {"size": _REQUIRED},
    "random_resized_crop": {"size": _REQUIRED, "scale": (0.8, 1.0), "ratio": (3 / 4, 4 / 3)},
}
# Optical densities of haematoxylin, eosin and DAB in red, green, blue: Ruifrok and Johnston 2001
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_STAINS = _STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True)
_UNMIX = np.linalg.inv(_STAINS)


def draw(*key: Any) -> np.random.Generator:
    """A generator that depends only on `key` (seed, epoch, place in the epoch, patch id)."""
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def augment(
    pixels: np.ndarray, steps: Sequence[Mapping[str, Any]], rng: np.random.Generator
) -> tuple[np.ndarray, bool]:
    """Apply the steps to one patch.

    pixels : uint8 (h, w, 3), not changed
    Returns uint8 (h', w', 3), and whether a step has brought it to the input size already.
    """
    sized = False
    for step in steps:
        options = {**STEPS[step["step"]], **{k: v for k, v in step.items() if k != "step"}}
        pixels = _DO[step["step"]](pixels, rng, **options)
        sized = sized or "size" in options
    return np.ascontiguousarray(pixels), sized


def d4(pixels: np.ndarray, k: int) -> np.ndarray:
    """Symmetry k = 0..7 of the square, numbered as extract's views: mirrored if k >= 4, then k % 4 turns."""
    flip, turns = divmod(k, 4)
    return np.ascontiguousarray(np.rot90(pixels[:, ::-1] if flip else pixels, turns))


def step_faults(step: Any) -> Iterable[str]:
    """The faults of one step of a recipe, as text."""
    if not isinstance(step, Mapping) or "step" not in step:
        yield f"augment: {step!r} is not a table with a key 'step'"
        return
    name = step["step"]
    if name not in STEPS:
        near = difflib.get_close_matches(str(name), STEPS, n=1)
        yield f"augment: unknown step {name!r}" + (
            f", did you mean {near[0]!r}?" if near else f" ({', '.join(STEPS)})"
        )
        return
    for key, value in step.items():
        if key == "step":
            continue
        if key not in STEPS[name]:
            known = ", ".join(STEPS[name]) or "none"
            yield f"augment: step {name!r} has no option {key!r} (it has: {known})"
        elif key in ("scale", "ratio"):
            if not (isinstance(value, list | tuple) and len(value) == 2 and 0 < value[0] <= value[1]):
                yield f"augment: {name} {key} has to be [low, high] with 0 < low <= high, not {value!r}"
        elif not isinstance(value, int | float) or not (value >= 0 and math.isfinite(value)):
            yield f"augment: {name} {key} has to be a number >= 0, not {value!r}"
    for key, default in STEPS[name].items():
        if default is _REQUIRED and key not in step:
            yield f"augment: step {name!r} needs {key!r}"


def _d4(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return d4(pixels, int(rng.integers(8)))


def _hflip(pixels: np.ndarray, rng: np.random.Generator, *, p: float) -> np.ndarray:
    return pixels[:, ::-1] if rng.random() < p else pixels


def _rotation(pixels: np.ndarray, rng: np.random.Generator, *, degrees: float) -> np.ndarray:
    from PIL import Image

    angle = rng.uniform(-degrees, degrees)
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).rotate(angle, Image.Resampling.NEAREST))


def _color_jitter(pixels: np.ndarray, rng: np.random.Generator, **strengths: float) -> np.ndarray:
    # the ranges, the random order and the PIL arithmetic of torchvision.transforms.ColorJitter
    from PIL import Image
    from torchvision.transforms import functional

    change = {
        "brightness": functional.adjust_brightness,
        "contrast": functional.adjust_contrast,
        "saturation": functional.adjust_saturation,
        "hue": functional.adjust_hue,
    }
    image = Image.fromarray(np.ascontiguousarray(pixels))
    order = rng.permutation(list(change))
    factors = {
        name: rng.uniform(-s, s) if name == "hue" else rng.uniform(max(0.0, 1 - s), 1 + s)
        for name, s in strengths.items()
    }
    for name in order:
        if strengths[name]:
            image = change[name](image, factors[name])
    return np.asarray(image)


def _stain_jitter(pixels: np.ndarray, rng: np.random.Generator, *, sigma: float, bias: float) -> np.ndarray:
    # stain' = stain * alpha + beta: Tellez et al. 2018, IEEE TMI 37, "Whole-slide mitosis detection in H&E"
    density = -np.log((pixels.astype(np.float32) + 1) / 256)
    alpha = rng.uniform(1 - sigma, 1 + sigma, 3)
    beta = rng.uniform(-bias, bias, 3)
    mixed = (_UNMIX * alpha) @ _STAINS
    density = density @ mixed.astype(np.float32) + (beta @ _STAINS).astype(np.float32)
    return np.clip(np.rint(np.exp(-density) * 256 - 1), 0, 255).astype(np.uint8)


def _resize(pixels: np.ndarray, rng: np.random.Generator, *, size: int) -> np.ndarray:
    from PIL import Image

    if pixels.shape[:2] == (size, size):
        return pixels
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((int(size), int(size)), Image.Resampling.BILINEAR))


def _random_resized_crop(
    pixels: np.ndarray,
    rng: np.random.Generator,
    *,
    size: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> np.ndarray:
    # the search of torchvision.transforms.RandomResizedCrop: ten tries, then a centred crop
    from PIL import Image

    height, width = pixels.shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
            break
    else:
        aspect = min(max(width / height, ratio[0]), ratio[1])
        w = min(width, round(height * aspect))
        h = min(height, round(width / aspect))
        top, left = (height - h) // 2, (width - w) // 2
    image = Image.fromarray(np.ascontiguousarray(pixels)).crop((left, top, left + w, top + h))
    return np.asarray(image.resize((int(size), int(size)), Image.Resampling.BILINEAR))


_DO = {
    "d4": _d4,
    "hflip": _hflip,
    "rotation": _rotation,
    "color_jitter": _color_jitter,
    "stain_jitter": _stain_jitter,
    "resize": _resize,
    "random_resized_crop": _random_resized_crop,
}

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

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..extract.stains import scale_stains
from ..settings import InvalidSettings, Settings, not_one_of


def draw(*key: Any) -> np.random.Generator:
    """A generator that depends only on `key` (seed, epoch, place in the epoch, patch id)."""
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def augment(pixels: np.ndarray, steps: Sequence["Step"], rng: np.random.Generator) -> tuple[np.ndarray, bool]:
    """Apply the steps to one patch.

    pixels : uint8 (h, w, 3), not changed; steps : of `read_steps`
    Returns uint8 (h', w', 3), and whether a step has brought it to the input size already.
    """
    for step in steps:
        pixels = step(pixels, rng)
    return np.ascontiguousarray(pixels), any(hasattr(step, "size") for step in steps)


def d4(pixels: np.ndarray, k: int) -> np.ndarray:
    """Symmetry k = 0..7 of the square, numbered as extract's views: mirrored if k >= 4, then k % 4 turns."""
    flip, turns = divmod(k, 4)
    return np.ascontiguousarray(np.rot90(pixels[:, ::-1] if flip else pixels, turns))


_MOST = {"p": 1.0, "hue": 0.5, "sigma": 1.0}  # hue: torchvision's; sigma: a stain is not turned round


class Step(Settings):
    """One step of a recipe; its options are its fields, numbers >= 0."""

    def faults(self) -> Iterable[str]:
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, tuple):
                if len(value) != 2 or not 0 < value[0] <= value[1]:
                    yield f"{name} has to be [low, high] with 0 < low <= high, not {list(value)}"
            elif isinstance(value, int | float) and not (value >= 0 and math.isfinite(value)):
                yield f"{name} has to be a number >= 0, not {value!r}"
            elif (most := _MOST.get(name)) is not None and value > most:
                yield f"{name} has to be at most {most:g}, not {value!r}"
            elif name == "size" and value < 1:
                yield f"size has to be at least 1, not {value!r}"

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """uint8 (h, w, 3) -> uint8 (h', w', 3)."""
        raise NotImplementedError


class _D4(Step):
    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return d4(pixels, int(rng.integers(8)))


class _HFlip(Step):
    p: float = 0.5

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return pixels[:, ::-1] if rng.random() < self.p else pixels


class _Rotation(Step):
    degrees: float

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        from PIL import Image

        image = Image.fromarray(np.ascontiguousarray(pixels))
        return np.asarray(image.rotate(rng.uniform(-self.degrees, self.degrees), Image.Resampling.NEAREST))


class _ColorJitter(Step):
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        # the ranges, the random order and the PIL arithmetic of torchvision.transforms.ColorJitter
        from PIL import Image
        from torchvision.transforms import functional

        change = {
            "brightness": functional.adjust_brightness,
            "contrast": functional.adjust_contrast,
            "saturation": functional.adjust_saturation,
            "hue": functional.adjust_hue,
        }
        strengths = self.model_dump()
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


class _StainJitter(Step):
    sigma: float = 0.1
    bias: float = 0.02

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        factors = rng.uniform(1 - self.sigma, 1 + self.sigma, 3)
        return scale_stains(pixels, factors, rng.uniform(-self.bias, self.bias, 3))


class _Resize(Step):
    size: int

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        from PIL import Image

        if pixels.shape[:2] == (self.size, self.size):
            return pixels
        image = Image.fromarray(np.ascontiguousarray(pixels))
        return np.asarray(image.resize((self.size, self.size), Image.Resampling.BILINEAR))


class _RandomResizedCrop(Step):
    size: int
    scale: tuple[float, ...] = (0.8, 1.0)
    ratio: tuple[float, ...] = (3 / 4, 4 / 3)

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        # the search of torchvision.transforms.RandomResizedCrop: ten tries, then a centred crop
        from PIL import Image

        low, high = self.ratio
        height, width = pixels.shape[:2]
        for _ in range(10):
            area = height * width * rng.uniform(self.scale[0], self.scale[1])
            aspect = math.exp(rng.uniform(math.log(low), math.log(high)))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
                break
        else:
            aspect = min(max(width / height, low), high)
            w = min(width, round(height * aspect))
            h = min(height, round(width / aspect))
            top, left = (height - h) // 2, (width - w) // 2
        image = Image.fromarray(np.ascontiguousarray(pixels)).crop((left, top, left + w, top + h))
        return np.asarray(image.resize((self.size, self.size), Image.Resampling.BILINEAR))


STEPS: dict[str, type[Step]] = {
    "d4": _D4,
    "hflip": _HFlip,
    "rotation": _Rotation,
    "color_jitter": _ColorJitter,
    "stain_jitter": _StainJitter,
    "resize": _Resize,
    "random_resized_crop": _RandomResizedCrop,
}


def read_steps(steps: Iterable[Any]) -> list[Step]:
    """Steps from the tables of a recipe. Raises InvalidSettings with the faults of all of them."""
    made, faults = [], []
    for step in steps:
        name = step.get("step") if isinstance(step, Mapping) else None
        if name is None:
            faults.append(f"augment: {step!r} is not a table with a key 'step'")
        elif name not in STEPS:
            faults.append(f"augment: {not_one_of('step', name, STEPS)}")
        else:
            try:
                made.append(STEPS[name](**{key: value for key, value in step.items() if key != "step"}))
            except InvalidSettings as error:
                faults += [f"augment: {name}: {fault}" for fault in error.faults]
    if faults:
        raise InvalidSettings(faults)
    return made

"""timm:NAME against timm itself, for every pretrained configuration of its registry.

Pixels: `prepare` and the normalisation beside timm's own `create_transform`, on patches of several shapes.
Models (--models, minutes): every architecture gives a card or a sentence, never a traceback.

    python tests/benchmarks/extract_timm.py
    python tests/benchmarks/extract_timm.py --models
"""

import argparse
from collections import Counter
from typing import Any

import numpy as np
import timm
from patchbank.errors import EncoderError, PatchbankError
from patchbank.extract.models.timm import _transform
from patchbank.extract.registry import load_card
from patchbank.extract.views import prepare
from PIL import Image
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform

SHAPES = ((96, 96), (256, 256), (130, 97), (300, 512))


def compare_pixels(names: list[str]) -> tuple[Counter[str], float]:
    """How many names give timm's very input, are refused, or differ; and the largest difference (in std)."""
    rng = np.random.default_rng(0)
    patches = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in SHAPES]
    known: dict[str, tuple[str, float]] = {}
    counts: Counter[str] = Counter()
    worst = 0.0
    for name in names:
        about = timm.get_pretrained_cfg(name)
        assert about is not None, name
        data = resolve_data_config({}, pretrained_cfg=about.to_dict())
        key = repr(sorted(data.items()))
        if key not in known:
            known[key] = _compare(name, data, patches)
        state, difference = known[key]
        counts[state] += 1
        worst = max(worst, difference)
        if state == "different":
            print(f"{name}: {difference:.2g}")
    counts["distinct transforms"] = len(known)
    return counts, worst


def _compare(name: str, data: dict, patches: list[np.ndarray]) -> tuple[str, float]:
    try:
        ours = _transform(name, data)
    except EncoderError:
        return "refused", 0.0
    theirs: Any = create_transform(**data)
    worst = 0.0
    for pixels in patches:
        mine = (prepare(pixels, ours).astype(np.float32) / 255 - ours.mean) / ours.std
        wanted = theirs(Image.fromarray(pixels)).numpy().transpose(1, 2, 0)
        worst = max(worst, float(np.abs(mine - wanted).max()) if mine.shape == wanted.shape else np.inf)
    return ("same" if worst < 1e-5 else "different"), worst


def build_models(names: list[str]) -> Counter[str]:
    """How many architectures give a card, and how many a sentence that says why not."""
    counts: Counter[str] = Counter()
    for architecture in sorted({name.partition(".")[0] for name in names}):
        try:
            load_card(f"timm:{architecture}")
            counts["card"] += 1
        except PatchbankError as error:
            counts["refused"] += 1
            print(error)
        except Exception as error:  # noqa: BLE001  counted
            counts["traceback"] += 1
            print(f"TRACEBACK {architecture}: {type(error).__name__}: {error}")
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", action="store_true")
    wanted = timm.list_models(pretrained=True)
    if parser.parse_args().models:
        print(f"{dict(build_models(wanted))}, timm {timm.__version__}")
    else:
        found, largest = compare_pixels(wanted)
        print(f"{len(wanted)} configurations: {dict(found)}; largest difference {largest:.1e} std")

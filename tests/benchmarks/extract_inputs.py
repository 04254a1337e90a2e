"""Pictures, weights and clocks for the extract benchmarks."""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from patchbank.datasets.images import content_hash, read_image
from patchbank.datasets.manifest import Header, Manifest
from PIL import Image


@dataclass
class Cost:
    """Seconds by the clock and of all CPUs; the second is what to compare on a machine with other work."""

    wall: float
    cpu: float

    def per(self, n: int) -> str:
        return f"{n / self.wall:8.1f} images/s {1e3 * self.cpu / n:8.2f} CPU ms/image"


def parser_for(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the script's docstring."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def timed(function: Callable[[], object]) -> Cost:
    """The cost of one call, child processes included."""
    wall, cpu = time.perf_counter(), _cpu()
    function()
    return Cost(time.perf_counter() - wall, _cpu() - cpu)


def _cpu() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def manifest_of(folder: Path, n: int, images: str | None, *, suffix: str = "png") -> Manifest:
    """n images under `folder`: the first of `images` (a folder, searched), else noise of 128 x 128 pixels."""
    options: dict[str, Any] = {"compress_level": 1} if suffix == "png" else {"quality": 90}
    place = folder / "images"
    place.mkdir(parents=True)
    found = sorted(Path(images).rglob("*.png"))[:n] if images else []
    hashes = []
    for number in range(n):
        if found:
            # a pixel is changed where pictures have to be used again, so that each is embedded
            pixels = np.array(Image.open(found[number % len(found)]).convert("RGB"))
            pixels[0, 0, 0] = number // len(found) or pixels[0, 0, 0]
        else:
            pixels = np.random.default_rng(number).integers(0, 256, (128, 128, 3), dtype=np.uint8)
        path = place / f"{number}.{suffix}"
        Image.fromarray(pixels).save(path, **options)
        hashes.append(content_hash(pixels if suffix == "png" else read_image(path)).hex())
    table = table_of(hashes)
    return Manifest(HEADER, table.assign(path=[f"{i}.{suffix}" for i in range(n)]), place)


HEADER = Header(name="bench", version="1", classes=("x",), positive="x", licence="none", source="benchmark")


def table_of(hashes: list[str]) -> pd.DataFrame:
    """The table of a manifest: row i is i.png."""
    table = pd.DataFrame({"patch_id": [f"bench/{i}" for i in range(len(hashes))], "content_hash": hashes})
    table["path"] = [f"{i}.png" for i in range(len(hashes))]
    return table.assign(label="x", group="", domain="", split="train")


def default_images() -> str | None:
    """The real patches, where PATCHBANK_SHARED names them."""
    shared = os.environ.get("PATCHBANK_SHARED")
    return str(Path(shared) / "data") if shared else None


@contextmanager
def workspace() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="patchbank-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def random_checkpoint(card_id: str, path: Path) -> Path:
    """A file of random weights of a card's architecture: speed does not depend on their values."""
    from patchbank.extract.encoders import build_encoder
    from safetensors.torch import save_file

    network = build_encoder(card_id, device="cpu", precision="fp32", random_weights=True).network
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {name.removeprefix("model."): value.contiguous() for name, value in network.state_dict().items()},
        path,
    )
    return path

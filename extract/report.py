"""What an extraction did, for programs and for people."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Self

from ..cache.identity import Identity

KEPT = "patches were embedded and are kept; the same command goes on from there."  # of a run that stopped


@dataclass
class StoreReport:
    """One store of a run: its name and folder ("": not made yet), and what its identity says."""

    name: str
    path: str
    encoder: str
    view: str
    tokens: str
    precision: str
    dtype: str
    dim: int
    weights: str

    @classmethod
    def of(cls, identity: Identity, path: str) -> Self:
        return cls(
            name=identity.name,
            path=path,
            encoder=str(identity.encoder["id"]),
            view=identity.view,
            tokens=identity.tokens,
            precision=identity.precision,
            dtype=identity.dtype,
            dim=identity.dim,
            weights=str(identity.encoder.get("weights", "")),
        )


@dataclass
class ExtractReport:
    """What a run did.

    Attributes
    ----------
    patches
        rows of the manifests.
    unique
        distinct images among them, as far as known: unreadable ones count as different.
    cached
        images that every store had already; they were not decoded.
    embedded
        images that were embedded now.
    elsewhere
        images that another run embedded meanwhile.
    failed
        (patch id, message) of those that could not be read or stored.
    forwards
        forward passes of single patches; forwards_avoided: those that the cache saved, against one
        for every row of the manifests.
    planned
        images still to embed, with planned_forwards passes and planned_bytes of vectors; what a
        dry run is asked for. Rows never read before count as different.
    seconds
        "total" by the clock; "load" (models); "decode", "compute", "write": busy, over all threads.
    origins
        where in a file of weights the backbone was found, where that is not its top.
    images_per_second
        embedded images by the time without loading models.
    peak_memory
        the most that a process of the run has held in memory, in bytes; 0 where that is unknown.
    """

    patches: int = 0
    unique: int = 0
    cached: int = 0
    embedded: int = 0
    elsewhere: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    forwards: int = 0
    forwards_avoided: int = 0
    planned: int = 0
    planned_forwards: int = 0
    planned_bytes: int = 0
    dry_run: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    images_per_second: float = 0.0
    batch_size: int = 0
    workers: int = 0
    devices: list[str] = field(default_factory=list)
    actors_lost: int = 0
    model_loaded: bool = False
    origins: list[str] = field(default_factory=list)
    peak_memory: int = 0
    stores: list[StoreReport] = field(default_factory=list)

    def close(self, passes: int) -> None:
        """What follows from the rest; passes: forward passes of a patch that no store has."""
        wanted = (self.patches - len(self.failed)) * passes
        self.forwards_avoided = max(0, wanted - self.forwards)
        running = max(self.seconds["total"] - self.seconds["load"], 1e-9)
        self.images_per_second = self.embedded / running

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def summary(self) -> str:
        """The lines that the command prints at its end."""
        if self.dry_run:
            return (
                f"{self.patches} patches, {self.unique} different: {self.cached} cached, "
                f"{self.planned} to embed ({self.planned_forwards} forward passes, "
                f"{self.planned_bytes / 1e6:.1f} MB of vectors); nothing was done"
            )
        seconds = self.seconds
        total = seconds.get("total", 0.0)
        lines = [
            f"{self.patches} patches, {self.unique} different: {self.cached} cached, {self.embedded} embedded"
            + (f", {self.elsewhere} embedded meanwhile by another run" if self.elsewhere else "")
            + (f", {len(self.failed)} failed" if self.failed else "")
            + f"; {self.forwards} forward passes done, {self.forwards_avoided} avoided",
            *self.origins,
        ]
        if not self.model_loaded:
            lines.append(f"{total:.1f} s; everything was cached, so no model was loaded")
            return "\n".join(lines)
        running = max(total - seconds["load"], 1e-9)
        share = {
            "decode": seconds["decode"] / (running * max(self.workers, 1)),
            "compute": seconds["compute"] / (running * max(len(self.devices), 1)),
            "write": seconds["write"] / running,
        }
        busy = ", ".join(f"{stage} {part:.0%}" for stage, part in share.items())
        lines.append(
            f"{total:.1f} s ({seconds['load']:.1f} s to load), {self.images_per_second:.1f} images/s on "
            f"{_counted(self.devices)} (batch {self.batch_size}, {self.workers} decoding threads); "
            f"utilization: {busy}"
            + (f"; peak memory {self.peak_memory / 2**30:.1f} GiB" if self.peak_memory else "")
        )
        return "\n".join(lines)


def _counted(devices: Sequence[str]) -> str:
    """["cpu", "cpu"] -> "2 x cpu"."""
    counts = {name: devices.count(name) for name in dict.fromkeys(devices)}
    return ", ".join(f"{count} x {name}" if count > 1 else name for name, count in counts.items())

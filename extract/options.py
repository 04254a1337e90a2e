"""What an extraction can be asked for: one list for Python, the command line and the actors of a cluster."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from ..errors import InvalidRequest

RESIZERS = {"pil": "pil", "device": "torch-antialias"}  # `resize` -> what an identity says
CHOICES = {"on_error": ("fail", "skip"), "resize": tuple(RESIZERS), "engine": ("local", "ray")}


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """Everything beside manifests, encoders and bank (frozen).

    view             names, see views.py
    tokens           names, see tokens.py; each encoder's own by default. Every combination of encoder, view
                     and token policy is a store of its own; one forward pass fills all token policies
    device           "auto", "cpu", "cuda" (all GPUs), "cuda:1", "cuda:0,cuda:2", "mps"
    precision        "auto", "fp32", "bf16", "fp16"
    dtype            of the stored vectors, "float16" or "float32"
    batch_size       found by itself on a GPU, 32 on a CPU; halved where memory runs out
    workers          decoding threads
    on_error         "fail" stops at the first patch that cannot be read, after publishing what was embedded;
                     "skip" goes on and lists them in the report
    checkpoint       a file of weights for the (one) encoder
    weights_dir      folder of weights, no network
    revision         commit of the hub repository of the (one) encoder
    resize           "pil" on the CPU, or "device"
    backend          of new stores: "zarr" or "hdf5"
    channels_last    memory layout; by default for networks without tokens (CNNs)
    compile          torch.compile the encoder
    remote_code      allow code from the encoder's hub repository
    trust_code       allow the Python code that a card of kind "python" names
    engine, actors   "local", or "ray" for a cluster (ray_engine.py) of so many actors
    shift            fraction of the work to begin after; for runs that are known to go on at once
    """

    view: str | Sequence[str] = "full"
    tokens: str | Sequence[str] | None = None
    device: str = "auto"
    precision: str | None = "auto"
    dtype: str = "float16"
    batch_size: int | None = None
    workers: int | None = None
    on_error: str = "fail"
    checkpoint: str | Path | None = None
    weights_dir: str | Path | None = None
    revision: str | None = None
    resize: str = "pil"
    backend: str = "zarr"
    channels_last: bool | None = None
    compile: bool = False
    remote_code: bool = False
    trust_code: bool = False
    engine: str = "local"
    actors: int | None = None
    shift: float = 0.0

    def __post_init__(self) -> None:
        faults = list(self._faults())
        if faults:
            raise InvalidRequest("; ".join(faults))

    def _faults(self) -> Iterator[str]:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                yield f"{name} is {getattr(self, name)!r}; it has to be {' or '.join(allowed)}"
        for name in ("batch_size", "workers", "actors"):
            number = getattr(self, name)
            if number is not None and number < 1:
                yield f"{name} is {number}; it has to be at least 1"

    @classmethod
    def of(cls, **options: Any) -> Self:
        """Unknown names are refused, with the near one."""
        known = [field.name for field in fields(cls)]
        faults = []
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                faults.append(
                    f"there is no option {name!r}" + (f", did you mean {near[0]!r}?" if near else "")
                )
        if faults:
            raise InvalidRequest("; ".join(faults) + f" (there are {', '.join(known)})")
        return cls(**options)

    @property
    def policies(self) -> tuple[str, ...]:
        """The token policies that are asked for; none: each encoder's own."""
        return (self.tokens,) if isinstance(self.tokens, str) else tuple(self.tokens or ())

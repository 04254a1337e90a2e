"""What an extraction can be asked for: one list for Python, the command line and the actors of a cluster."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from ..settings import Settings

RESIZERS = {"pil": "pil", "device": "torch-antialias"}  # `resize` -> what an identity says


class ExtractOptions(Settings):
    """Everything beside manifests, encoders and bank (frozen).

    view             names, see views.py
    tokens           names, see tokens.py; each encoder's own by default. Every combination of encoder, view
                     and token policy is a store of its own; one forward pass fills all token policies
    device           "auto", "cpu", "cuda" (all GPUs), "cuda:1", "cuda:0,cuda:2", "mps"
    precision        "auto", "fp32", "bf16", "fp16"
    dtype            of the stored vectors, "float16" or "float32"
    batch_size       by memory on a GPU, by a few timed batches on a CPU; halved where memory runs out
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

    view: str | tuple[str, ...] = "full"
    tokens: str | tuple[str, ...] | None = None
    device: str = "auto"
    precision: str | None = "auto"
    dtype: str = "float16"
    batch_size: int | None = None
    workers: int | None = None
    on_error: Literal["fail", "skip"] = "fail"
    checkpoint: str | Path | None = None
    weights_dir: str | Path | None = None
    revision: str | None = None
    resize: Literal["pil", "device"] = "pil"
    backend: str = "zarr"
    channels_last: bool | None = None
    compile: bool = False
    remote_code: bool = False
    trust_code: bool = False
    engine: Literal["local", "ray"] = "local"
    actors: int | None = None
    shift: float = 0.0

    def faults(self) -> Iterable[str]:
        for name in ("batch_size", "workers", "actors"):
            number = getattr(self, name)
            if number is not None and number < 1:
                yield f"{name} has to be at least 1, not {number}"

    @property
    def policies(self) -> tuple[str, ...]:
        """The token policies that are asked for; none: each encoder's own."""
        return (self.tokens,) if isinstance(self.tokens, str) else tuple(self.tokens or ())

"""Devices by name, and the batch size that fits on them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from ..errors import InvalidRequest
from .engine import Lane

if TYPE_CHECKING:
    from .encoders import Encoder

LARGEST_BATCH = 512  # no encoder gets faster beyond; latency and memory only grow
SHARE = 0.7  # of the free memory that a batch may take


def resolve_devices(request: str) -> list[torch.device]:
    """The devices of a request, one replica of the encoders each.

    Args:
        request: "auto" (all CUDA GPUs, else Apple's, else the CPU), "cuda" (all), or names with commas
            between, as in "cuda:0,cuda:2"; a name that stands twice gets two replicas.

    Raises:
        InvalidRequest: a device that this machine, or this build of torch, does not have.
    """
    if request == "auto":
        if torch.cuda.is_available():
            request = "cuda"
        else:
            request = "mps" if torch.backends.mps.is_available() else "cpu"
    devices: list[torch.device] = []
    for name in request.split(","):
        try:
            device = torch.device(name.strip())
        except RuntimeError as error:
            raise InvalidRequest(f"unknown device {name!r}: auto, cpu, cuda, cuda:N or mps") from error
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if device.type == "cuda" and (device.index or 0) >= count:
            raise InvalidRequest(
                f"there is no device {name}: torch {torch.__version__} sees {count} CUDA GPUs"
            )
        if device.type == "mps" and not torch.backends.mps.is_available():
            raise InvalidRequest("there is no device mps here")
        if device.type == "cuda" and device.index is None:
            devices += [torch.device("cuda", index) for index in range(count)]
        else:
            devices.append(device)
    return devices


def compute_threads(devices: Sequence[torch.device]) -> list[torch.device]:
    """One entry a computing thread: each GPU has one, a CPU asked for once as many as torch would use.

    Threads with batches of their own meet at no barrier after every operation: on two cores shared with other
    work that was 4 times as fast as two threads on one batch, and a decoding thread that takes a core for a
    moment delays one batch, not both halves of every operation.
    """
    if [device.type for device in devices] == ["cpu"]:
        return [devices[0]] * torch.get_num_threads()
    return list(devices)


@contextmanager
def single_threaded(devices: Sequence[torch.device]) -> Iterator[None]:
    """While CPU threads work on batches of their own, torch starts no threads inside an operation."""
    threads = torch.get_num_threads()
    if devices[0].type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def batch_size_for(
    encoders: Sequence[Sequence["Encoder"]], lanes: Sequence[Lane], *, default_cpu: int
) -> int:
    """A batch that fits: on CUDA from the memory that a small one takes, elsewhere the default.

    Two batches may be on the device at once; the engine halves the size where memory runs out all the same.
    """
    if encoders[0][0].device.type != "cuda":
        return default_cpu
    sizes: list[int] = []
    for replicas in encoders:
        device = replicas[0].device
        for number in {lane.encoder for lane in lanes}:
            encoder = replicas[number]
            policies = list(
                {
                    t.policy.name: t.policy for lane in lanes if lane.encoder == number for t in lane.targets
                }.values()
            )
            side = encoder.card.transform.size
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            probe = 8
            encoder.embed(torch.zeros(probe, side, side, 3, dtype=torch.uint8), policies or None)
            torch.cuda.synchronize(device)
            each = max(1, (torch.cuda.max_memory_allocated(device) - before) // probe)
            free, _ = torch.cuda.mem_get_info(device)
            sizes.append(int(free * SHARE / each))
    fitting = max(1, min([*sizes, LARGEST_BATCH]))
    return 1 << (fitting.bit_length() - 1)  # a power of two

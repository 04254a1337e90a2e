"""Devices by name, and their computing threads."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from ..errors import InvalidRequest


def resolve_devices(request: str) -> list[torch.device]:
    """The devices of a request, one replica of the encoders each.

    Parameters
    ----------
    request
        "auto" (all CUDA GPUs, else Apple's, else the CPU), "cuda" (all), or names with commas
        between, as in "cuda:0,cuda:2"; a name that occurs twice gets two replicas.

    Raises
    ------
    InvalidRequest
        a device that this machine, or this build of torch, does not have.
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
            raise InvalidRequest("the device mps does not exist here")
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

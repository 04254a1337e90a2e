"""What to compute in, chosen without torch: the choice is part of an embedding's identity."""

import platform
from functools import cache
from pathlib import Path

from ..errors import InvalidRequest
from .cards import PRECISIONS, Card


@cache
def cpu_has_bf16() -> bool:
    """Does this processor multiply bfloat16 natively (avx512_bf16 or AMX)? Else bf16 is slower than fp32."""
    try:
        flags = Path("/proc/cpuinfo").read_text("ascii", "ignore")
    except OSError:  # not Linux
        return False
    return platform.machine() in ("x86_64", "AMD64") and ("avx512_bf16" in flags or "amx_bf16" in flags)


def choose_precision(card: Card, device_type: str, asked: str | None = None) -> str:
    """What is computed in: what was asked for, else the card's on a GPU, on a CPU bf16 where it is native.

    Networks without tokens (CNNs) stay in fp32 on a CPU: their small convolutions gain nothing from bf16.

    Raises
    ------
    InvalidRequest
        an unknown precision, or fp16 on a CPU.
    """
    if asked not in (None, "auto", *PRECISIONS):
        raise InvalidRequest(f"unknown precision {asked!r}: auto, {', '.join(PRECISIONS)}")
    if asked == "fp16" and device_type == "cpu":
        raise InvalidRequest("fp16 is not computed on a CPU; use fp32 or bf16")
    if asked not in (None, "auto"):
        return str(asked)
    if card.kind == "python":
        return "fp32"
    if device_type == "cpu":
        return "bf16" if card.grid and cpu_has_bf16() else "fp32"
    return card.precision

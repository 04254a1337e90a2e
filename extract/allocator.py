"""glibc's allocator, set to keep its pages.

A forward pass on a CPU frees and asks for the same large arrays again and again. glibc maps each of them anew
and gives it back at once, and the kernel fills every page with zeros once more: a sixth of the CPU time of a
ViT-S/14, a third of an EfficientNet-Lite0's. With large thresholds, freed memory stays with the process; the
price is that its peak is not given back before it ends.

Threads other than the first have arenas of their own, of pieces of 64 MB that are given back whatever the
thresholds say; so there is one arena for all. That has to be said before a second thread asks for memory.
"""

import ctypes
import sys
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # mallopt(3)
KEPT = 1 << 30  # bytes
LARGEST_BEFORE = 32 << 20  # that M_MMAP_THRESHOLD may be before glibc 2.35


def peak_memory() -> int:
    """The most that this process has held in memory, in bytes; 0 where that is unknown (Windows)."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@cache
def keep_pages() -> bool:
    """Let this process keep freed memory from now on, of all threads if called before there is a second one.

    False where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    thresholds = mallopt(M_TRIM_THRESHOLD, KEPT) and (
        mallopt(M_MMAP_THRESHOLD, KEPT) or mallopt(M_MMAP_THRESHOLD, LARGEST_BEFORE)
    )
    return bool(thresholds and mallopt(M_ARENA_MAX, 1))

"""Memory that is freed stays with the process, in every thread; in a new process, as mallopt is for good."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import resource, sys, threading
import numpy as np
from patchbank.extract.allocator import keep_pages, peak_memory

assert keep_pages() or not sys.argv[1:]
found = []

def work():
    for turn in range(3):
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        arrays = [np.ones(size << 20, np.uint8) for size in (1, 20, 80)]  # beyond an arena's 64 MB, too
        del arrays
        found.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)

thread = threading.Thread(target=work)
thread.start()
thread.join()
assert peak_memory() > 101 << 20
print(*found)
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="glibc's allocator is on Linux")
def test_pages_are_kept_in_threads_too() -> None:
    if "libc.so.6" not in Path("/proc/self/maps").read_text():
        pytest.skip("not glibc")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "glibc"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, *later = map(int, done.stdout.split())
    assert first > 10
    assert max(later) <= first / 10, "the same arrays again ask the kernel for nothing"

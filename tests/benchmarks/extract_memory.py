"""Memory of the engine from 10,000 to 1,000,000 patches.

    python tests/benchmarks/extract_memory.py [--quick]

Patches of 8 x 8 pixels are made as they are read, the encoder is the mean colour (plus noise up to 384
numbers), so that nothing but the engine, its queues and the store is at work. Each size runs in a process of
its own. What a run has to know about every patch (key, flags, unit: about 30 bytes) is allocated before the
measurement begins; the store's index grows by 16 to 32 bytes a patch as well.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from extract_inputs import workspace

DIM = 384


def child(n: int, folder: str) -> None:
    import torch
    from patchbank.cache.bank import Bank
    from patchbank.cache.identity import Identity
    from patchbank.datasets.images import content_hash
    from patchbank.extract.cards import Card, Transform
    from patchbank.extract.encoders import build_encoder
    from patchbank.extract.engine import Lane, Pipeline, Target, Work
    from patchbank.extract.tokens import Policy
    from patchbank.extract.views import View

    def read(i: int) -> np.ndarray:
        pixels = np.zeros((8, 8, 3), np.uint8)
        pixels[0, 0] = (i & 255, i >> 8 & 255, i >> 16)
        return pixels

    def forward(batch: torch.Tensor) -> torch.Tensor:
        return batch.mean(dim=(2, 3)).repeat(1, DIM // 3)

    shape = Transform(size=8)
    card = Card(id="colour", kind="python", model="a:b", revision="1", dim=DIM, tokens="pooled",
                transform=shape, factory=lambda: forward)  # fmt: skip
    parts = {"view": "full", "tokens": "pooled", "precision": "fp32", "dtype": "float16", "dim": DIM}
    identity = Identity(encoder={"id": "colour"}, preprocess={}, **parts)
    store = Bank(folder).open_store(identity, create=True)
    keys = np.frombuffer(b"".join(content_hash(read(i)) for i in range(n)), np.uint8).reshape(-1, 16).copy()
    work = Work(
        read=read,
        name=str,
        keys=keys,
        known=np.ones(n, bool),
        todo=np.ones((n, 1), bool),
        unit=np.arange(n) // 8192,
        unit_name=lambda unit: f"unit{unit}",
    )
    encoder = build_encoder(card, device="cpu")
    target = Target(identity, View(), Policy("pooled", "pooled"), opened=store)
    pipeline = Pipeline(work, [Lane(0, 1.0, shape, [target])], [[encoder]], batch_size=256, workers=1)
    torch.set_num_threads(1)
    encoder.embed(torch.zeros(256, 8, 8, 3, dtype=torch.uint8))
    before = resident()
    started = time.perf_counter()
    outcome = pipeline.run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"n": n, "before": before, "peak": peak, "seconds": time.perf_counter() - started,
                      "embedded": outcome.embedded}))  # fmt: skip


def resident() -> float:
    """MiB now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="10,000 and 50,000 patches")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(int(options.child[0]), options.child[1])
        return
    sizes = (10_000, 50_000) if options.quick else (10_000, 100_000, 1_000_000)
    for n in sizes:
        with workspace() as folder:
            command = [sys.executable, __file__, "--child", str(n), str(folder / "bank")]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        grown = found["peak"] - found["before"]
        print(
            f"{n:>9} patches: {found['before']:6.0f} MiB before, {found['peak']:6.0f} MiB at the peak, "
            f"{grown:5.0f} MiB for the run ({grown * 2**20 / n:7.1f} bytes a patch), "
            f"{found['embedded'] / found['seconds']:6.0f} patches/s",
            flush=True,
        )


if __name__ == "__main__":
    main()

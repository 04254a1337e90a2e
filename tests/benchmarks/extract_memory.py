"""Memory of the engine from 10,000 to 1,000,000 patches.

    python tests/benchmarks/extract_memory.py [--quick] [--unhashed]

Patches of 8 x 8 pixels are made as they are read, the encoder is the mean colour (repeated up to 384
numbers), so that nothing but the engine, its queues and the store is at work. Each size runs in a process of
its own. What a run is given about every patch is allocated before the measurement begins: key, flags, unit,
26 bytes. What it adds are 2 bytes, with --unhashed (no key known before) 10, and the store's index, 20 bytes
a row and up to 11 more while two pieces of it are merged; the rest has to be the same at every size.

Anonymous memory and pages of files are reported separately (the second can be dropped by the system at any
time), both sampled 100 times a second; the peak of the sum is the kernel's own (VmHWM, reset before the run).
"""

import argparse
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from extract_inputs import parser_for, workspace

DIM = 384


def child(n: int, folder: str, hashed: bool) -> None:
    import torch
    from patchbank.cache.bank import Bank
    from patchbank.cache.identity import Identity
    from patchbank.datasets.images import content_hash
    from patchbank.extract.cards import Card, Transform
    from patchbank.extract.encoders import build_encoder
    from patchbank.extract.engine import Pipeline
    from patchbank.extract.tokens import Policy
    from patchbank.extract.views import View
    from patchbank.extract.work import Lane, Target, Work

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
    keys = np.empty((n, 16), np.uint8)
    keys.fill(0)  # np.zeros would take the memory page by page, as the run fills it
    for i in range(n if hashed else 0):
        keys[i] = np.frombuffer(content_hash(read(i)), np.uint8)
    work = Work(
        read=read,
        name=str,
        keys=keys,
        known=np.full(n, hashed),
        todo=np.ones((n, 1), bool),
        unit=np.repeat(np.arange(n // 8192 + 1), 8192)[:n],
        unit_name=lambda unit: f"unit{unit}",
    )
    encoder = build_encoder(card, device="cpu")
    target = Target(identity, View(), Policy("pooled", "pooled"), opened=store)
    pipeline = Pipeline(work, [Lane(0, View(), shape, [target])], [[encoder]], batch_size=256, workers=1)
    torch.set_num_threads(1)
    encoder.embed(torch.zeros(256, 8, 8, 3, dtype=torch.uint8))
    Path("/proc/self/clear_refs").write_text("5")  # the peak is the present
    before, peak = resident(), resident()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            for name, value in resident().items():
                peak[name] = max(peak[name], value)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    outcome = pipeline.run()
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    peak["VmHWM"] = resident()["VmHWM"]
    assert outcome.embedded == n
    grown = {name: peak[name] - before[name] for name in peak}
    print(json.dumps({"n": n, "before": before["VmHWM"], "seconds": seconds, **grown}))


def resident() -> dict[str, float]:
    """MiB now: RssAnon, RssFile; VmHWM is the peak of their sum."""
    text = Path("/proc/self/status").read_text()
    return {name: int(kib) / 1024 for name, kib in re.findall(r"(RssAnon|RssFile|VmHWM):\s+(\d+)", text)}


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--quick", action="store_true", help="10,000 and 50,000 patches")
    parser.add_argument("--unhashed", action="store_true", help="no content hash is known before")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(int(options.child[0]), options.child[1], not options.unhashed)
        return
    first = None
    for n in (10_000, 50_000) if options.quick else (10_000, 100_000, 1_000_000):
        with workspace() as folder:
            command = [sys.executable, __file__, "--child", str(n), str(folder / "bank")]
            command += ["--unhashed"] * options.unhashed
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        first = first or found
        more = (found["VmHWM"] - first["VmHWM"]) * 2**20 / max(n - first["n"], 1)
        print(
            f"{n:>9} patches: {found['before']:4.0f} MiB before; the run {found['VmHWM']:5.1f} MiB at most "
            f"({found['RssAnon']:5.1f} anonymous, {found['RssFile']:4.1f} of files), "
            f"{more:5.1f} bytes for each patch beyond {first['n']}; {n / found['seconds']:6.0f} patches/s",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""The L2 probe on features that are larger than memory: fitted from a memory map, block by block.

    python tests/benchmarks/probe_streaming.py [--rows 1e6] [--dim 1536] [--strengths 20] [--folder DIR]

A float16 file of rows x dim is written to DIR, read once from front to back as fast as the disk gives it (its
pages are dropped from the cache before: the peak), and then fitted with no copy in memory: the moments, the
shared Gram matrix of the preconditioner, and every pass of the descent, which all strengths share, read the
file again. Printed: passes, bytes a second and their share of the peak, CPU seconds, the memory of the
process beside the file's pages, the worst bound of the distance to the optimum; and, on the first rows
(--check), the largest difference of decision values to the same fit in memory.

    python tests/benchmarks/probe_streaming.py --study [--rows 1e5] [--dim 1536] [--strengths 20]

is a whole `probe run` of a store (nested folds, no domains) with --memory 0: the features stay in their file.
"""

import argparse
import json
import os
import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from patchbank.cache.bank import Bank
from patchbank.cache.identity import Identity
from patchbank.datasets.manifest import Header, Manifest
from patchbank.files import cores
from patchbank.probe import streaming
from patchbank.probe.run import run_probe
from patchbank.probe.solver.logistic import LogisticFits, fit_logistic

BLOCK = 8192  # rows that are written, or read, at once


def made(n: int, dim: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Features of 64 directions of falling variance, and noise: float16 (rows, dim), labels bool (rows,)."""
    random = np.random.default_rng(0)
    directions = random.standard_normal((64, dim), dtype=np.float32) / 8
    directions *= np.linspace(3, 0.3, 64, dtype=np.float32)[:, None]
    truth = random.standard_normal(dim) / np.sqrt(dim)
    for lo in range(0, n, BLOCK):
        rows = min(n, lo + BLOCK) - lo
        block = random.standard_normal((rows, 64), dtype=np.float32) @ directions
        block += random.standard_normal((rows, dim), dtype=np.float32)
        yield block.astype(np.float16), block @ truth + 2 * random.standard_normal(rows) > 1


def written(file: Path, n: int, dim: int) -> np.ndarray:
    """A file of such features: labels int (n,)."""
    labels = []
    with file.open("wb") as stream:
        for block, of_block in made(n, dim):
            stream.write(block.tobytes())
            labels.append(of_block.astype(int))
        stream.flush()
        os.fsync(stream.fileno())
    return np.concatenate(labels)


def stored(folder: Path, n: int, dim: int) -> Manifest:
    """A bank of such features in `folder`, as `patchbank extract` leaves it, and a manifest of their rows."""
    parts: dict[str, Any] = {"view": "full", "tokens": "cls", "precision": "fp32", "dtype": "float16"}
    identity = Identity(encoder={"id": "made"}, preprocess={}, dim=dim, **parts)
    ids, labels = [f"made/{i:08d}" for i in range(n)], []
    keys = np.random.default_rng(1).integers(0, 256, (n, 16), np.uint8)
    with Bank(folder).open_store(identity, create=True).writer() as writer:
        for block, of_block in made(n, dim):
            rows = slice(sum(map(len, labels)), sum(map(len, labels)) + len(block))
            writer.append(keys[rows], block, ids[rows])
            labels.append(np.where(of_block, "tumor", "normal"))
    table = pd.DataFrame({"patch_id": ids, "path": ids, "label": np.concatenate(labels), "split": ""})
    table["group"] = [f"slide{i % (n // 100 + 1)}" for i in range(n)]
    table["domain"], table["content_hash"] = "", [key.tobytes().hex() for key in keys]
    header = Header(
        name="made", version="1", classes=("normal", "tumor"), positive="tumor", licence="", source=""
    )
    return Manifest(header, table, folder)


def whole_study(n: int, dim: int, strengths: int, folder: Path | None) -> dict[str, Any]:
    """A `probe run` whose features stay in a file."""
    nbytes = [0]
    read = streaming.FileRows.__getitem__

    def counted(self: streaming.FileRows, rows: slice) -> np.ndarray:
        block = read(self, rows)
        nbytes[0] += block.nbytes // 2  # float16 in the file
        return block

    streaming.FileRows.__getitem__ = counted
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        manifest = stored(Path(temporary), n, dim)
        about: dict[str, Any] = {"domains": "none", "bootstrap": 0, "near_duplicates": "none", "jobs": 1}
        cpu, started = time.process_time(), time.perf_counter()
        with Watched() as watched:
            result = run_probe(
                train=manifest, bank=temporary, encoders=["made"], memory=0, progress=False,
                C=np.logspace(-6, 1, strengths).tolist(), **about,
            )  # fmt: skip
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {
        "rows": n,
        "dim": dim,
        "fits": result.document["models"][0]["fits"]["fits"],
        "file_gb": round(n * dim * 2 / 1e9, 2),
        "s": round(seconds, 1),
        "cpu_s": round(cpu, 1),
        "passes": round(nbytes[0] / (2 * n * dim), 1),
        "read_gb_s": round(nbytes[0] / seconds / 1e9, 2),
        "memory_mib": watched.most,
        "memory_before_mib": watched.start,
        "kib_a_row": round((watched.most - watched.start) * 1024 / n, 1),
        "worst_gap_bound": result.document["models"][0]["fits"]["worst_gap_bound"],
    }


def forget(file: Path) -> None:
    """Drop the file's pages from the cache."""
    with file.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def peak_of_disk(file: Path) -> float:
    """Bytes a second of reading the file once from front to back."""
    forget(file)
    started = time.perf_counter()
    with file.open("rb", buffering=0) as stream:
        while stream.read(1 << 24):
            pass
    return file.stat().st_size / (time.perf_counter() - started)


class Counted:
    """Rows of a memory map, and how many bytes of it were asked for."""

    def __init__(self, X: np.ndarray) -> None:
        self.X, self.shape, self.dtype, self.nbytes = X, X.shape, X.dtype, 0

    def __getitem__(self, rows: Any) -> np.ndarray:
        block = self.X[rows]
        self.nbytes += block.nbytes
        return block


class Watched:
    """The largest memory of this process that is no file's, in MiB, while it goes on."""

    def __enter__(self) -> "Watched":
        self.start = self.most = self._now()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            self.most = max(self.most, self._now())

    @staticmethod
    def _now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) // 1024


def fitted(X: Any, y: np.ndarray, strengths: int, *, memory: float) -> LogisticFits:
    return fit_logistic(X, y, C=np.logspace(-6, 1, strengths), memory=memory)


def main() -> None:
    parser = argparse.ArgumentParser(description="The L2 probe from a memory map.")
    parser.add_argument("--study", action="store_true", help="a whole probe run, of a store")
    parser.add_argument("--rows", type=float, help="default: 1e6, with --study 1e5")
    parser.add_argument("--dim", type=int, default=1536)
    parser.add_argument("--strengths", type=int, default=20)
    parser.add_argument("--check", type=float, default=20_000, help="rows that are fitted in memory as well")
    parser.add_argument("--folder", type=Path, help="of the file; default: the temporary folder")
    args = parser.parse_args()
    n, dim = int(args.rows or (1e5 if args.study else 1e6)), args.dim
    if args.study:
        print(json.dumps(whole_study(n, dim, args.strengths, args.folder), indent=1), flush=True)
        return
    few = int(min(args.check, n))
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        file = Path(folder) / "X"
        y = written(file, n, dim)
        peak = peak_of_disk(file)
        X = np.memmap(file, np.float16, "r", shape=(n, dim))
        part = np.array(X[:few])
        streamed, whole = (fitted(Counted(part), y[:few], args.strengths, memory=size) for size in (0, 2**40))
        gap = np.abs(streamed.decision(part[:1000]) - whole.decision(part[:1000])).max()
        forget(file)
        rows, cpu, started = Counted(X), time.process_time(), time.perf_counter()
        with Watched() as watched:
            fits = fitted(rows, y, args.strengths, memory=0)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    found = {
        "rows": n,
        "dim": dim,
        "strengths": args.strengths,
        "cores": cores(),
        "file_gb": round(n * dim * 2 / 1e9, 2),
        "s": round(seconds, 1),
        "cpu_s": round(cpu, 1),
        "passes": round(rows.nbytes / (2 * n * dim), 1),
        "read_gb_s": round(rows.nbytes / seconds / 1e9, 2),
        "disk_peak_gb_s": round(peak / 1e9, 2),
        "share_of_peak": round(rows.nbytes / seconds / peak, 2),
        "memory_mib": watched.most,
        "memory_before_mib": watched.start,
        "peak_with_pages_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "worst_gap_bound": float(fits.gap_bound.max()),
        "capped": int((fits.status == "capped").sum()),
        "difference_to_in_memory": float(gap),
    }
    print(json.dumps(found, indent=1), flush=True)


if __name__ == "__main__":
    main()

"""How fast is a store, beside one raw file on the same disk in the same run?

    python tests/benchmarks/cache_speed.py [--quick] [--folder DIR]

Prints seconds (median of three) and ratios: writing with fsync against one raw file, loading everything
against np.load (with every row compared with its checksum, again, and as if nothing was compared), 256
random rows against np.memmap; streaming in random order with the memory that it takes; and, for a store of
many rows, opening it and finding what is missing for a manifest of as many, with the peak memory of a fresh
process.
Wanted: write <= 2, load <= 1.2, random rows in a millisecond or two, opening in seconds.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
from patchbank.cache.bank import Bank
from patchbank.cache.identity import Identity
from patchbank.cache.store import Store

BATCH = 1024


def identity(dim: int) -> Identity:
    parts = {"view": "full", "tokens": "cls", "precision": "fp32", "dtype": "float16"}
    return Identity(encoder={"id": "noise"}, preprocess={}, dim=dim, **parts)


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def write_raw(path: Path, vectors: np.ndarray) -> None:
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(vectors), BATCH):
            file.write(vectors[start : start + BATCH].data)
        os.fsync(file.fileno())


def write_store(store: Store, keys: np.ndarray, vectors: np.ndarray) -> None:
    with store.writer() as writer:
        for start in range(0, len(keys), BATCH):
            part = slice(start, start + BATCH)
            writer.append(keys[part], vectors[part], range(start, start + len(keys[part])))  # type: ignore


def speed(folder: Path, rows: int, dim: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    random = np.random.default_rng(0)
    keys = random.integers(0, 256, (rows, 16), dtype=np.uint8)
    vectors = random.integers(0, 0x7000, (rows, dim), dtype=np.uint16).view(np.float16)
    some = random.choice(rows, 256, replace=False)
    seconds: dict[str, dict[str, list[float]]] = {}

    def note(what: str, who: str, work: Callable[[], object]) -> None:
        seconds.setdefault(what, {}).setdefault(who, []).append(timed(work))

    for turn in range(rounds):
        raw = folder / "raw"
        os.sync()
        note("write + fsync", "raw", lambda raw=raw: write_raw(raw, vectors))
        for backend in ("zarr", "hdf5"):
            place = folder / f"{backend}{turn}"
            store = Bank(place).open_store(identity(dim), create=True, backend=backend)
            os.sync()
            note("write + fsync", backend, lambda store=store: write_store(store, keys, vectors))
        np.save(folder / "all.npy", vectors)
        for _ in range(2):  # the first brings the files into memory
            note("load all", "raw", lambda: np.load(folder / "all.npy"))
            for backend in ("zarr", "hdf5"):
                store = Bank(folder / f"{backend}{turn}").find("noise")
                store.contains(keys[:1])
                note("load all", backend, lambda store=store: store.load(keys))
                note("load all", f"{backend} again", lambda store=store: store.load(keys))
                store = Bank(folder / f"{backend}{turn}").find("noise")
                store.contains(keys[:1])
                with patch.object(Store, "_compare"):  # as if nothing was compared with its checksum
                    note("load all", f"{backend} unchecked", lambda store=store: store.load(keys))
                assert np.array_equal(store.load(keys[some]).view("u2"), vectors[some].view("u2"))
        mapped = np.load(folder / "all.npy", mmap_mode="r")
        for _ in range(20):
            note("256 random rows", "raw", lambda mapped=mapped: np.array(mapped[some]))
        for backend in ("zarr", "hdf5"):
            store = Bank(folder / f"{backend}{turn}").find("noise")
            store.load(keys[some])
            for _ in range(20):
                note("256 random rows", backend, lambda store=store: store.load(keys[some]))
            if turn < rounds - 1:
                shutil.rmtree(folder / f"{backend}{turn}")
        raw.unlink()
        (folder / "all.npy").unlink()
    return seconds


def opening(folder: Path, rows: int) -> None:
    """A store of many narrow rows; a fresh process opens it and says what a manifest of as many lacks."""
    random = np.random.default_rng(1)
    keys = random.integers(0, 256, (rows, 16), dtype=np.uint8)
    store = Bank(folder).open_store(identity(8), create=True)
    with store.writer() as writer:
        writer.append(keys, np.zeros((rows, 8), np.float16), range(rows))  # type: ignore
    wanted = keys.copy()
    wanted[::10] ^= 255  # every tenth is missing
    random.shuffle(wanted)
    np.save(folder / "wanted.npy", wanted)
    script = [sys.executable, __file__, "--open", str(folder)]
    figures = json.loads(subprocess.run(script, check=True, capture_output=True, text=True).stdout)
    print(
        f"{rows} rows, {figures['blocks']} blocks: open {figures['open']:.2f} s, what is missing "
        f"({figures['missing']}) {figures['contains']:.2f} s, memory beyond the imports and the manifest's "
        f"keys {figures['memory']:.0f} MB"
    )


def status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def peak() -> float:
    """Peak resident memory in MB (ru_maxrss would begin with the parent's)."""
    return status("VmHWM")


def anonymous() -> float:
    """Resident memory in MB without mapped files, which the kernel takes back whenever it likes."""
    return status("RssAnon")


def streaming(folder: Path) -> None:
    """Reads a store in a random order, in a fresh process, 8192 rows at a time."""
    script = [sys.executable, __file__, "--stream", str(folder)]
    figures = json.loads(subprocess.run(script, check=True, capture_output=True, text=True).stdout)
    print(
        f"streaming {figures['size']:.0f} MB in random order: {figures['seconds']:.1f} s, memory of the "
        f"process itself +{figures['memory']:.0f} MB (a step is {figures['step']:.0f} MB)"
    )


def stream_alone(folder: Path) -> None:
    store = Bank(folder).find("noise")
    keys = np.random.default_rng(0).permutation(store.keys())
    before, most, step, start = anonymous(), 0.0, 0.0, time.perf_counter()
    for _, vectors in store.iter_blocks(keys):
        most, step = max(most, anonymous() - before), max(step, vectors.nbytes / 2**20)
    figures = {"seconds": time.perf_counter() - start, "memory": most, "step": step}
    figures["size"] = len(keys) * store.layout.row_bytes / 2**20
    print(json.dumps(figures))


def open_alone(folder: Path) -> None:
    wanted = np.load(folder / "wanted.npy")
    before = peak()
    start = time.perf_counter()
    store = Bank(folder).find("noise")
    middle = time.perf_counter()
    missing = int((~store.contains(wanted)).sum())
    figures = {"open": middle - start, "contains": time.perf_counter() - middle, "missing": missing}
    figures |= {"blocks": len(store.catalog.live())}
    figures["memory"] = peak() - before
    print(json.dumps(figures))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="20,000 rows of 256 instead of 200,000 of 1024")
    parser.add_argument("--folder", type=Path, help="where to write (default: the temporary folder)")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--stream", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        return open_alone(options.open)
    if options.stream:
        return stream_alone(options.stream)
    rows, dim, many = (20_000, 256, 100_000) if options.quick else (200_000, 1024, 1_000_000)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        print(f"{rows} x {dim} float16, {rows * dim * 2 / 2**20:.0f} MB")
        for what, parts in speed(Path(name), rows, dim, 1 if options.quick else 3).items():
            raw = statistics.median(parts["raw"])
            middle = {who: statistics.median(seconds) for who, seconds in parts.items()}
            print(f"{what:16}", "  ".join(f"{who} {s:.5f} s ({s / raw:.2f})" for who, s in middle.items()))
            for who in ("zarr", "hdf5") if what == "load all" else ():
                least, without = min(parts[who]), min(parts[f"{who} unchecked"])
                print(
                    f"  {who}: comparing with checksums costs {100 * (least / without - 1):+.0f} % of a load"
                )
        streaming(next(Path(name).glob("zarr*")))
        opening(Path(name) / "many", many)


if __name__ == "__main__":
    main()

"""How fast is a store, beside one raw file and other engines on the same disk in the same run?

    python tests/benchmarks/cache_speed.py [--quick] [--folder DIR] [--engines zarr hdf5 lance ...]

One table, a row an engine: seconds (median of three rounds, in turn) and ratios to one raw file, for

    write      all rows on the disk: fsync of every file, by the engine or by this program
    load       all rows, files in the page cache; ours are asked for by key and compared with checksums, the
               others are read in their own order
    256 rows   at random places: ours by key, the others by row number
    missing    a newly opened store says how many of as many keys as it has rows it lacks
    flipped    one byte of the largest file is changed: what reading all rows says; "named" are the rows

Engines of `cache_rivals.py` write 8192 rows a transaction, as ours. Then: what checksums cost; `verify` by
one thread and by one a processor; streaming in random order with the memory that it takes; for a store of
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
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
from cache_rivals import BLOCK, Rival, installed, sync_files
from patchbank.cache.bank import Bank
from patchbank.cache.identity import Identity
from patchbank.cache.store import Store
from patchbank.cache.verify import verify
from patchbank.errors import PatchbankError
from patchbank.files import cores

BATCH = 1024
OURS = ("zarr", "hdf5")
MEASURED = ("write", "load", "256 rows", "missing")


def identity(dim: int) -> Identity:
    parts = {"view": "full", "tokens": "cls", "precision": "fp32", "dtype": "float16"}
    return Identity(encoder={"id": "noise"}, preprocess={}, dim=dim, **parts)


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Raw(Rival):
    """One file of vectors and one of keys, and np.load."""

    name = "raw"

    def open(self) -> None:
        pass

    def write(self, keys: np.ndarray, vectors: np.ndarray) -> None:
        for name, array in (("keys", keys), ("vectors", vectors)):
            with (self.folder / f"{name}.npy").open("wb", buffering=0) as file:
                shape = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
                np.lib.format.write_array_header_1_0(file, shape)
                for start in range(0, len(array), BATCH):
                    file.write(array[start : start + BATCH].data)
                os.fsync(file.fileno())

    def keys(self) -> np.ndarray:
        return np.load(self.folder / "keys.npy")

    def load(self) -> np.ndarray:
        return np.load(self.folder / "vectors.npy")

    def rows(self, index: np.ndarray) -> np.ndarray:
        return np.array(np.load(self.folder / "vectors.npy", mmap_mode="r")[index])


class Ours(Rival):
    """A store of a bank; `order` are the keys of its rows."""

    backend: str
    order: np.ndarray

    def create(self) -> None:
        Bank(self.folder).open_store(identity(self.dim), create=True, backend=self.backend)

    def open(self) -> None:
        self.store = Bank(self.folder).find("noise")

    def write(self, keys: np.ndarray, vectors: np.ndarray) -> None:
        with self.store.writer() as writer:
            for start in range(0, len(keys), BATCH):
                part = slice(start, start + BATCH)
                writer.append(keys[part], vectors[part], range(start, start + len(keys[part])))  # type: ignore

    def load(self) -> np.ndarray:
        return self.store.load(self.order)

    def rows(self, index: np.ndarray) -> np.ndarray:
        return self.store.load(self.order[index])

    def missing(self, wanted: np.ndarray) -> int:
        return int((~self.store.contains(wanted)).sum())


def write(table: Rival, keys: np.ndarray, vectors: np.ndarray) -> None:
    """All rows into an empty table, and on the disk."""
    if isinstance(table, Raw | Ours):
        table.write(keys, vectors)
        return
    for start in range(0, len(keys), BLOCK):
        table.append(keys[start : start + BLOCK], vectors[start : start + BLOCK])
    sync_files(table.folder)


def speed(
    folder: Path, engines: Sequence[type[Rival]], rows: int, dim: int, rounds: int
) -> tuple[dict[str, dict[str, list[float]]], dict[str, str]]:
    """Seconds by engine and what was measured; what reading says of a changed byte. Leaves the last zarr."""
    random = np.random.default_rng(0)
    keys = random.integers(0, 256, (rows, 16), dtype=np.uint8)
    vectors = random.integers(0, 0x7000, (rows, dim), dtype=np.uint16).view(np.float16)
    some = random.choice(rows, 256, replace=False)
    wanted = random.permutation(keys)
    wanted[::10] ^= 255
    lacking = len(range(0, rows, 10))
    Ours.order = keys
    seconds: dict[str, dict[str, list[float]]] = {kind.name: {} for kind in engines}
    flipped: dict[str, str] = {}
    for turn in range(rounds):
        for kind in engines:
            place = folder / f"{kind.name}{turn}"

            def note(what: str, work: Callable[[], object], who: str = kind.name) -> None:
                seconds[who].setdefault(what, []).append(timed(work))

            table = kind(place, dim, create=True)
            os.sync()
            note("write", lambda table=table: write(table, keys, vectors))
            for attempt in range(2):  # the first brings the files into memory
                table = kind(place, dim)
                found: list[np.ndarray] = []
                note("load" if attempt else "first load", lambda: found.append(table.load()))  # noqa: B023
                assert np.array_equal(found.pop().view("u2"), vectors.view("u2")), kind.name
            if isinstance(table, Ours):
                note("load again", table.load)
                with patch.object(Store, "_compare"):  # as if nothing was compared with its checksum
                    table.open()
                    note("load unchecked", table.load)
                    table.open()
            assert np.array_equal(table.rows(some).view("u2"), vectors[some].view("u2")), kind.name
            for _ in range(20):
                note("256 rows", lambda table=table: table.rows(some))
            lacks: list[int] = []
            note("missing", lambda: lacks.append(kind(place, dim).missing(wanted)))  # noqa: B023
            assert lacks == [lacking], kind.name
            last = turn == rounds - 1
            if last and kind.name == "zarr":
                shutil.copytree(place, folder / "kept")
            if last:
                flipped[kind.name] = changed(kind, place, dim, vectors)
            shutil.rmtree(place)
    return seconds, flipped


def changed(kind: type[Rival], place: Path, dim: int, vectors: np.ndarray) -> str:
    """What reading all rows says after one byte of the largest file was changed."""
    largest = max((path for path in place.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    with largest.open("r+b") as file:
        file.seek(largest.stat().st_size // 4)  # in a last chunk, the rest may be empty
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    try:
        found = kind(place, dim).load()
    except PatchbankError:
        return "named"  # the message says which rows, and what to do
    except Exception as error:  # noqa: BLE001  each engine has errors of its own
        return type(error).__name__
    return "not in rows" if np.array_equal(found.view("u2"), vectors.view("u2")) else "unseen"


def show(seconds: dict[str, dict[str, list[float]]], flipped: dict[str, str]) -> None:
    """The table, 80 columns wide, and what comparing with checksums costs."""
    middle = {who: {w: statistics.median(s) for w, s in parts.items()} for who, parts in seconds.items()}
    print(f"{'':12}" + "".join(f"{what:>14}" for what in MEASURED) + f"{'flipped':>12}")
    for who, parts in middle.items():
        cells = [cell(parts[what], parts[what] / middle["raw"][what]) for what in MEASURED]
        print(f"{who:12}" + "".join(f"{one:>14}" for one in cells) + f"{flipped[who]:>12}")
    for who in OURS:
        if who in seconds:
            least, without = min(seconds[who]["load"]), min(seconds[who]["load unchecked"])
            print(f"{who}: comparing with checksums costs {100 * (least / without - 1):+.0f} % of a load")


def cell(seconds: float, ratio: float) -> str:
    time_of = f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
    return f"{time_of} {ratio:.{2 if ratio < 0.995 else 1 if ratio < 10 else 0}f}x"


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


def verifying(folder: Path, rounds: int) -> None:
    """`cache verify` by one thread and by one a processor, in turn."""
    seconds: dict[int, list[float]] = {1: [], cores(): []}
    size = 0.0
    for jobs in [*seconds] * rounds:
        store = Bank(folder).find("noise")
        start = time.perf_counter()
        report = verify(store, jobs=jobs)
        seconds[jobs].append(time.perf_counter() - start)
        assert report.good
        size = report.bytes / 1e9
    print(
        f"verify, {size:.2f} GB: "
        + ", ".join(
            f"--jobs {jobs} {statistics.median(times):.2f} s ({size / statistics.median(times):.1f} GB/s)"
            for jobs, times in seconds.items()
        )
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
    parser.add_argument("--engines", nargs="*", help="only these, beside the raw file (default: all)")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--stream", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        return open_alone(options.open)
    if options.stream:
        return stream_alone(options.stream)
    rows, dim, many = (20_000, 256, 100_000) if options.quick else (200_000, 1024, 1_000_000)
    ours = [type(name, (Ours,), {"name": name, "backend": name}) for name in OURS]
    engines = [*ours, *installed()]
    engines = [kind for kind in engines if kind.name in (options.engines or [kind.name])]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        print(f"{rows} x {dim} float16, {rows * dim * 2 / 2**20:.0f} MB")
        show(*speed(folder, [Raw, *engines], rows, dim, 1 if options.quick else 3))
        if (folder / "kept").exists():
            verifying(folder / "kept", 1 if options.quick else 5)
            streaming(folder / "kept")
            opening(folder / "many", many)


if __name__ == "__main__":
    main()

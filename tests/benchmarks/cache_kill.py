"""kill -9 at random moments, in the middle of writing: what is lost, what is garbage?

    python tests/benchmarks/cache_kill.py [--kills 200] [--quick] [--folder DIR] [--seed 0] [--rivals]

A quarter of the kills each: Zarr and HDF5, with 1 and with 4 writers at once. Every vector follows from its
key, so a reader can tell garbage; every writer reports what was acknowledged (published) and what was
appended. After each kill the store is opened again and read whole. The next writers resume where the store
ends. Exit code 1 unless: no store unreadable, no acknowledged row lost, no row visible that is not what was
written, and at most a block in flight to be computed again for each writer.

--rivals kills writers of the engines of `cache_rivals.py` instead, as many of each, and prints the same. What
kill -9 leaves in the page cache, a power cut takes unless it was fsynced; that is not tried here.
"""

import argparse
import hashlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from ctypes import c_int64
from pathlib import Path

import numpy as np
from cache_rivals import Rival, installed
from patchbank.cache.bank import Bank
from patchbank.cache.identity import Identity
from patchbank.cache.verify import verify
from patchbank.errors import StoreError

DIM = 32
BLOCK_ROWS = 256
ROUNDS = 25  # kills before a fresh store


def identity() -> Identity:
    parts = {"view": "full", "tokens": "cls", "precision": "fp32", "dtype": "float16"}
    return Identity(encoder={"id": "hash"}, preprocess={}, dim=DIM, **parts)


def keys_of(worker: int, start: int, count: int) -> np.ndarray:
    digests = [
        hashlib.blake2b(f"{worker}/{i}".encode(), digest_size=16).digest()
        for i in range(start, start + count)
    ]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(count, 16)


def vectors_of(keys: np.ndarray) -> np.ndarray:
    digests = b"".join(hashlib.blake2b(key.tobytes(), digest_size=2 * DIM).digest() for key in keys)
    return (np.frombuffer(digests, np.uint16) & 0x3FFF).view(np.float16).reshape(len(keys), DIM)


def write(folder: Path, worker: int, seed: int, counts) -> None:
    """Appends rows that the store lacks until it is killed; counts: rows appended, rows acknowledged."""
    dice = random.Random(seed)
    store = Bank(folder).find("hash")
    start = done = 0
    with store.writer(name=f"w{worker}", block_rows=BLOCK_ROWS) as writer:
        while True:
            keys = keys_of(worker, start, dice.randint(1, 100))
            start += len(keys)
            keys = keys[~store.contains(keys)]
            vectors = vectors_of(keys)
            counts[0] += len(keys)  # before, so that it is never too small
            writer.append(keys, vectors, [str(worker)] * len(keys))
            if dice.random() < 0.1:
                writer.flush()
            done, counts[1] = writer.published, writer.published
            if done > 20_000:
                time.sleep(60)


def check(folder: Path, acknowledged: dict[bytes, None]) -> str:
    """What is wrong with the store, or nothing."""
    try:
        store = Bank(folder).find("hash")
        seen = {}
        every = store.keys()
        for part, vectors in store.iter_blocks(every, BLOCK_ROWS):
            keys = every[part]
            if not np.array_equal(vectors.view(np.uint16), vectors_of(keys).view(np.uint16)):
                return "garbage visible"
            seen |= dict.fromkeys(map(bytes, keys))
        found = verify(store)
    except StoreError as error:
        return f"unreadable: {error}"
    if not found.good:
        return f"damaged: {found.damage[0]}"
    lost = len(acknowledged.keys() - seen.keys())
    return f"{lost} acknowledged rows lost" if lost else ""


def run(folder: Path, backend: str, writers: int, kills: int, seed: int) -> tuple[Counter, int]:
    """Faults by kind, and the most rows that one killed writer had to compute again."""
    dice = random.Random(f"{seed}/{backend}/{writers}")
    fork = multiprocessing.get_context("fork")
    faults: Counter[str] = Counter()
    again = 0
    here, before = folder, [0] * writers
    for turn in range(kills):
        if turn % ROUNDS == 0:
            here, before = folder / f"{backend}{writers}-{turn}", [0] * writers
            Bank(here).open_store(identity(), create=True, backend=backend, block_rows=BLOCK_ROWS)
        counts = [fork.Array(c_int64, 2, lock=False) for _ in range(writers)]
        arguments = [(here, w, dice.random(), counts[w]) for w in range(writers)]
        processes = [fork.Process(target=write, args=a) for a in arguments]
        for process in processes:
            process.start()
        time.sleep(dice.uniform(0.0, 0.25))
        for process in dice.sample(processes, writers):
            os.kill(process.pid or 0, signal.SIGKILL)
        for process in processes:
            process.join()
            faults["not killed"] += process.exitcode != -signal.SIGKILL
        acknowledged: dict[bytes, None] = {}
        for worker in range(writers):
            acknowledged |= dict.fromkeys(map(bytes, keys_of(worker, 0, before[worker] + counts[worker][1])))
        wrong = check(here, acknowledged)
        faults[wrong] += bool(wrong)
        store = Bank(here).find("hash")
        for worker in range(writers):
            appended = before[worker] + counts[worker][0]
            visible = int(store.contains(keys_of(worker, 0, appended)).sum())
            again = max(again, appended - visible)
            before[worker] = visible
    return +faults, again


def write_rival(kind: type[Rival], folder: Path, worker: int, seed: int, counts) -> None:
    """`write` for another engine; counts: rows appended, rows acknowledged, 1 once it runs."""
    table = kind(folder, DIM, block=BLOCK_ROWS)
    there = set(map(bytes, table.keys()))
    start, counts[2] = 0, 1
    while True:
        keys = keys_of(worker, start, BLOCK_ROWS)
        start += BLOCK_ROWS
        keys = keys[[bytes(key) not in there for key in keys]]
        if len(keys):
            counts[0] += len(keys)
            table.append(keys, vectors_of(keys))
        counts[1] = start


def check_rival(kind: type[Rival], folder: Path, answers) -> None:
    """Puts the keys that the table has, and what is wrong with it."""
    try:
        table = kind(folder, DIM, block=BLOCK_ROWS)
        keys, vectors = table.keys(), table.load()
    except Exception as error:  # noqa: BLE001  each engine has errors of its own
        answers.put((set(), f"unreadable: {type(error).__name__}: {str(error)[:200]}"))
        return
    wrong = ""
    if len(keys) != len(vectors):
        wrong = "columns of different lengths"
    elif not np.array_equal(vectors.view(np.uint16), vectors_of(keys).view(np.uint16)):
        wrong = "garbage visible"
    elif len(seen := set(map(bytes, keys))) != len(keys):
        wrong = f"{len(keys) - len(seen)} rows twice"
    answers.put((set(map(bytes, keys)), wrong))


def run_rival(
    folder: Path, kind: type[Rival], writers: int, kills: int, seed: int
) -> tuple[Counter[str], int]:
    """As `run`. This process never starts an engine: their threads would not survive a fork."""
    dice = random.Random(f"{seed}/{kind.name}/{writers}")
    fork = multiprocessing.get_context("fork")
    faults: Counter[str] = Counter()
    again, here, acknowledged, wrong = 0, folder, [0] * writers, ""
    for turn in range(kills):
        if turn % ROUNDS == 0 or wrong:  # a damage counts once
            here, acknowledged = folder / f"{kind.name}{writers}-{turn}", [0] * writers
            made = fork.Process(target=kind, args=(here, DIM), kwargs={"create": True, "block": BLOCK_ROWS})
            made.start()
            made.join()
        counts = [fork.Array(c_int64, 3, lock=False) for _ in range(writers)]
        arguments = [(kind, here, w, dice.random(), counts[w]) for w in range(writers)]
        processes = [fork.Process(target=write_rival, args=a) for a in arguments]
        for process in processes:
            process.start()
        while not all(count[2] for count in counts) and all(process.is_alive() for process in processes):
            time.sleep(0.005)
        time.sleep(dice.uniform(0.0, 0.25))
        for process in dice.sample(processes, writers):
            process.kill()
        for process in processes:
            process.join()
            faults["not killed"] += process.exitcode != -signal.SIGKILL
        answers = fork.SimpleQueue()
        checking = fork.Process(target=check_rival, args=(kind, here, answers))
        checking.start()
        seen, wrong = answers.get()
        checking.join()
        for worker, count in enumerate(counts):
            acknowledged[worker] = max(acknowledged[worker], count[1])
            promised = set(map(bytes, keys_of(worker, 0, acknowledged[worker])))
            faults["acknowledged rows lost"] += len(promised - seen)
            begun = set(map(bytes, keys_of(worker, 0, max(count[1] + BLOCK_ROWS, acknowledged[worker]))))
            again = max(again, len(begun - seen) if count[0] else 0)
        faults[wrong] += bool(wrong)
    return +faults, again


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="8 kills")
    parser.add_argument("--folder", type=Path, help="where to write (default: the temporary folder)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rivals", action="store_true", help="other engines instead")
    options = parser.parse_args()
    kills = 8 if options.quick else options.kills
    bad = False
    if options.rivals:
        each = -(-kills // 4)
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            for kind in installed():
                for writers in (1, 4) if kind.several_writers else (1,):
                    faults, again = run_rival(Path(name), kind, writers, each, options.seed)
                    print(
                        f"{kind.name}, {writers} at once: {each} kills, faults {dict(faults) or 0}, at most "
                        f"{again} rows of a writer again (transactions of {BLOCK_ROWS})"
                    )
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        for backend in ("zarr", "hdf5"):
            for writers in (1, 4):
                faults, again = run(Path(name), backend, writers, -(-kills // 4), options.seed)
                limit = BLOCK_ROWS + 100  # a full block being written, and the rows being appended
                bad |= bool(faults) or again > limit
                print(
                    f"{backend}, {writers} at once: {-(-kills // 4)} kills, faults {dict(faults) or 0}, "
                    f"at most {again} rows of a writer again (blocks of {BLOCK_ROWS}, batches up to 100)"
                )
    sys.exit(bad)


if __name__ == "__main__":
    main()

"""One flipped bit somewhere under a store, many times over: is it found, and what does it cost?

    python tests/benchmarks/cache_flip.py [--flips 100] [--quick] [--seed 0]

Half of the flips each on a Zarr and an HDF5 store that is finalised (with a table) and has newer blocks
beside that. Half of the flips hit a byte of the store, the other half a byte of a file, chosen at random.
After each: `verify` has to find it, `repair` to take it out, and embedding only the missing rows to bring
every byte back. Exit code 1 unless all are found and repaired.
"""

import argparse
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from patchbank.cache.bank import Bank
from patchbank.cache.finalize import finalize
from patchbank.cache.identity import Identity
from patchbank.cache.verify import gc, repair, verify

DIM = 32
ROWS = 3000
BLOCK_ROWS = 1024


def make(folder: Path, backend: str) -> tuple[Bank, np.ndarray, np.ndarray, pd.DataFrame]:
    dice = np.random.default_rng(0)
    keys = dice.integers(0, 256, (ROWS, 16), dtype=np.uint8)
    vectors = dice.normal(size=(ROWS, DIM)).astype(np.float16)
    hashes = [key.tobytes().hex() for key in keys]
    table = pd.DataFrame({"patch_id": [f"p{i}" for i in range(ROWS)], "label": "x", "content_hash": hashes})
    parts = {"view": "full", "tokens": "cls", "precision": "fp32", "dtype": "float16"}
    identity = Identity(encoder={"id": "noise"}, preprocess={}, dim=DIM, **parts)
    bank = Bank(folder)
    store = bank.open_store(identity, create=True, backend=backend, block_rows=BLOCK_ROWS)
    half = ROWS // 2 + 300
    with store.writer() as writer:
        writer.append(keys[:half], vectors[:half], hashes[:half])
    finalize(store, table)
    with store.writer() as writer:
        writer.append(keys[half:], vectors[half:], hashes[half:])
    gc(store, grace=0)
    return bank, keys, vectors, table


def flip(store: Path, dice: random.Random) -> str:
    files = [p for p in sorted(store.rglob("*")) if p.is_file() and p.stat().st_size]
    weights = [p.stat().st_size for p in files] if dice.random() < 0.5 else None
    (path,) = dice.choices(files, weights)
    content = bytearray(path.read_bytes())
    at = dice.randrange(len(content))
    content[at] ^= 1 << dice.randrange(8)
    path.write_bytes(content)
    return f"{path.relative_to(store)} at {at}"


def kind(place: str) -> str:
    name = place.split(" at ")[0]
    for word, what in (
        ("log/", "log"),
        ("zarr.json", "metadata"),
        ("store.json", "metadata"),
        ("blocks/", "block"),
    ):
        if word in name:
            return what
    return "block" if name.startswith(("embeddings/c", "content_hash/c")) else "arrays"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flips", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="12 flips")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    flips = 12 if options.quick else options.flips
    missed = broken = 0
    hit: Counter[str] = Counter()
    again: list[int] = []
    for backend in ("zarr", "hdf5"):
        dice = random.Random(f"{options.seed}/{backend}")
        with tempfile.TemporaryDirectory() as name:
            bank, keys, vectors, table = make(Path(name), backend)
            (store_name,) = bank.names()
            for _ in range(flips // 2):
                place = flip(Path(name) / "stores" / store_name, dice)
                hit[f"{backend} {kind(place)}"] += 1
                if verify(bank.open_name(store_name, lenient=True)).good:
                    missed += 1
                    print(f"not found: {backend} {place}")
                repair(bank.open_name(store_name, lenient=True))
                store = bank.open_name(store_name)
                gone = ~store.contains(keys)
                again.append(int(gone.sum()))
                with store.writer() as writer:  # what extract does: embed what is missing, nothing else
                    writer.append(keys[gone], vectors[gone], ["again"] * int(gone.sum()))
                store.refresh()
                same = np.array_equal(store.load(keys).view(np.uint16), vectors.view(np.uint16))
                left = verify(store).damage
                if not same or left:
                    broken += 1
                    print(f"not repaired: {backend} {place}: {'; '.join(map(str, left)) or 'other vectors'}")
                if dice.random() < 0.3:
                    finalize(store, table)
                gc(store, grace=0)
    total, where = sum(hit.values()), dict(sorted(hit.items()))
    print(f"{total} flips: {missed} not found, {broken} not repaired; hit: {where}")
    print(f"rows embedded again a flip: median {np.median(again):.0f}, largest {max(again)} (of {ROWS})")
    sys.exit(bool(missed or broken))


if __name__ == "__main__":
    main()

"""Attacks on stores: what is lost, what is wrong, what does a reader get that was never written?

    python tests/benchmarks/cache_attack.py [--takeovers 100] [--quick] [--seed 0]

    steps      every operation on a file of create, write, finalize, repair and gc: it fails (full disk), or
               another process finalises or repairs right before it, and the slower one goes on after that
    takeovers  processes that finalise or repair are stopped (SIGSTOP) at random moments, another one takes
               over and gets to its end, the stopped one wakes up and goes on
    skew       time stamps of leases five minutes off, in both directions
    damage     flips, zeroed halves, swapped rows, in blocks that finalize, merge, subset or load then read
    logs       cut at a line, cut inside one, emptied, deleted; then verify, repair, gc
    hostile    stores, archives, studies and cards made to do harm: what they run, what they touch outside
    readers    load, iter_blocks and verify beside processes that write, finalise and sweep

After each: every row that was published is loaded and compared, the files are read once more by their
format alone, and Zarr arrays are compared pair by pair. Exit code 1 unless all counts of faults are 0.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from patchbank.cache import finalize as finish
from patchbank.cache import leases
from patchbank.cache.bank import Bank
from patchbank.cache.filesystem import LocalFiles
from patchbank.cache.finalize import finalize
from patchbank.cache.identity import Identity
from patchbank.cache.leases import FOLDER as LEASES
from patchbank.cache.merge import merge, subset
from patchbank.cache.store import Store
from patchbank.cache.verify import gc, repair, verify
from patchbank.errors import RowsMissing, StoreError

DIM = 8
BLOCK_ROWS = 512
CHANGES = ("put", "create", "move", "duplicate", "remove", "mark", "sync", "make_folder")
FORK = multiprocessing.get_context("fork")


def rows(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    dice = np.random.default_rng(seed)
    keys = dice.integers(0, 256, (count, 16), dtype=np.uint8)
    return keys, dice.integers(0, 0x7000, (count, DIM), dtype=np.uint16).view(np.float16)


def make(folder: Path, backend: str) -> Store:
    parts = {"view": "full", "tokens": "cls", "precision": "fp32", "dtype": "float16"}
    identity = Identity(encoder={"id": "noise"}, preprocess={}, dim=DIM, **parts)
    return Bank(folder).open_store(identity, create=True, backend=backend, block_rows=BLOCK_ROWS)


def write(store: Store, keys: np.ndarray, vectors: np.ndarray, step: int = 300) -> None:
    with store.writer() as writer:
        for start in range(0, len(keys), step):
            part = slice(start, start + step)
            writer.append(keys[part], vectors[part], ["x"] * len(keys[part]))
            writer.flush()
    store.refresh()


def again(store: Store, *, lenient: bool = False) -> Store:
    return Store(store.files, lenient=lenient)


def faults(store: Store, keys: np.ndarray, vectors: np.ndarray, *, lost: int = 0) -> Counter[str]:
    """What is wrong with a store that has to hold all but `lost` of these rows."""
    found: Counter[str] = Counter()
    try:
        found.update(of_reader(again(store), keys, vectors, lost=lost))
        pairs = wrong_pairs(store, keys, vectors)
        found["pairs wrong"] += pairs if pairs > (lost > 0) else 0  # the damaged row itself, until `repair`
    except StoreError as error:
        found[f"unreadable: {str(error)[-80:]}"] += 1
    return +found


def of_reader(reader: Store, keys: np.ndarray, vectors: np.ndarray, *, lost: int = 0) -> Counter[str]:
    """What is wrong with the rows that a store (which may have been opened long ago) gives."""
    found: Counter[str] = Counter()
    step = 50 if lost else len(keys)  # what is damaged is refused, and must not hide the rest
    for start in range(0, len(keys), step):
        part = slice(start, start + step)
        here = np.flatnonzero(reader.contains(keys[part])) + start
        found["rows lost"] += len(keys[part]) - len(here)
        try:
            got = reader.load(keys[here])
            found["rows wrong"] += int((got.view("u2") != vectors[here].view("u2")).any(axis=1).sum())
        except RowsMissing:
            found["rows lost"] += len(here)
        except StoreError:
            if not lost:
                raise
            found["rows lost"] += len(here)
    allowed = lost + step if lost else 0
    found["rows lost"] = found["rows lost"] - lost if found["rows lost"] > allowed else 0
    return +found


def wrong_pairs(store: Store, keys: np.ndarray, vectors: np.ndarray) -> int:
    """Rows of the finalised Zarr arrays whose vector is not that of their key, as Zarr reads them."""
    root = Path(store.path)
    if not all((root / name / "zarr.json").exists() for name in ("embeddings", "content_hash")):
        return 0
    import zarr

    group = zarr.open_group(root, mode="r")
    hashes, values = np.asarray(group["content_hash"]), np.asarray(group["embeddings"])
    right = {key.tobytes(): vector.tobytes() for key, vector in zip(keys, vectors, strict=True)}
    pairs = zip(hashes[: len(values)], values, strict=True)
    return sum(right.get(key.tobytes(), b"") != value.tobytes() for key, value in pairs)


class Interfered:
    """Runs something right before the n-th change of a file, once, or lets that change fail."""

    def __init__(self, at: int, act: Callable[[], object] | None) -> None:
        self.at, self.act, self.count, self.inside = at, act, 0, False

    def __enter__(self) -> "Interfered":
        self._kept = {name: getattr(LocalFiles, name) for name in CHANGES}
        for name, method in self._kept.items():
            setattr(LocalFiles, name, self._version_of(method))
        return self

    def __exit__(self, *_: object) -> None:
        for name, method in self._kept.items():
            setattr(LocalFiles, name, method)

    def _version_of(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if not self.inside and LEASES not in str(arguments[1:]):
                self.count += 1
                if self.act is None and self.count >= self.at:
                    raise OSError(28, "No space left on device")
                if self.act is not None and self.count == self.at:
                    self.inside = True
                    try:
                        self.act()
                    finally:
                        self.inside = False
            return method(*arguments, **options)

        return call


def half_done(folder: Path, backend: str, *, damaged: bool) -> tuple[Store, np.ndarray, np.ndarray]:
    """1,100 rows, finalised, and 700 newer ones in short blocks; damaged: a bit of the first chunk."""
    store = make(folder, backend)
    keys, vectors = rows(1800, 1)
    write(store, keys[:1100], vectors[:1100])
    finalize(store)
    gc(store, grace=0)
    write(store, keys[1100:], vectors[1100:])
    if damaged:
        spot, _ = store.spot_of(store.catalog.published[store.catalog.order[0]])
        flip(Path(store.path) / spot.file, spot.offset + 5)
    return store, keys, vectors


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def taken_over(store: Store, work: Callable[[Store], object]) -> None:
    """What a successor does, who saw the lease of the one before it silent for its time to live."""
    for name in store.files.names(LEASES):
        store.files.remove(f"{LEASES}/{name}")
    work(again(store, lenient=True))


WORKS: dict[str, Callable[[Store], object]] = {
    "finalize": finalize,
    "repair": repair,
    "gc": lambda store: gc(store, grace=0),
}


def steps(folder: Path, stride: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for backend in ("zarr", "hdf5"):
        for work, other in product(WORKS, (None, "finalize", "repair")):
            if work != "gc" or other is None:
                found.update(steps_of(folder / f"{backend}-{work}-{other}", backend, work, other, stride))
        found.update(steps_of_create(folder / f"{backend}-create", backend))
    return found


def steps_of(folder: Path, backend: str, work: str, other: str | None, stride: int) -> Counter[str]:
    """Each change of a file that `work` makes, one by one: it fails, or `other` is done right before it."""
    found: Counter[str] = Counter()
    damaged = "repair" in (work, other)
    lost = 256 * damaged
    at, more = 1, True
    while more:
        store, keys, vectors = half_done(folder / str(at), backend, damaged=damaged)
        reader = again(store)
        act = None if other is None else lambda store=store: taken_over(store, WORKS[other])
        with Interfered(at, act) as interfered:
            try:
                WORKS[work](again(store, lenient=True))
            except StoreError:
                found["stopped with an error"] += 1
        more = interfered.count >= at
        found["steps"] += 1
        wrong = faults(store, keys, vectors, lost=lost)
        repair(again(store, lenient=True))  # after anything, this has to end well
        finalize(again(store))
        gc(again(store), grace=0)
        wrong["not good afterwards"] += not verify(again(store)).good
        wrong.update(faults(store, keys, vectors, lost=lost))
        wrong.update(of_reader(reader, keys, vectors, lost=lost))
        if +wrong:
            print(f"  {backend}, {work}, change {at}, {other or 'fails'}: {dict(+wrong)}", flush=True)
        found.update(+wrong)
        at += stride
    return found


def steps_of_create(folder: Path, backend: str) -> Counter[str]:
    """A store whose making stopped anywhere is made by the next one, verifies, and stands in nobody's way."""
    found: Counter[str] = Counter()
    at, more = 1, True
    keys, vectors = rows(100, 2)
    while more:
        place = folder / str(at)
        with Interfered(at, None) as interfered:
            try:
                write(make(place, backend), keys, vectors)
            except StoreError:
                found["stopped with an error"] += 1
        more = interfered.count >= at
        found["steps"] += 1
        try:
            known = [again(store) for store in Bank(place).stores()] if place.exists() else []
            found["not good afterwards"] += sum(not verify(store).good for store in known)
            store = make(place, backend)
            write(store, keys, vectors)
            found["not good afterwards"] += not verify(store).good
            found.update(faults(store, keys, vectors))
        except StoreError as error:
            found[f"unreadable: {str(error)[-80:]}"] += 1
        at += 1
    return found


def work_slowly(store: Store, work: str, seed: int, taken: Any) -> None:
    """In a process of its own; sleeps at its changes, so that a random moment is one of all of them.

    taken: is raised when it gets the lease of one that had not given it back.
    """
    dice = random.Random(seed)
    leases.machine = lambda: ""  # as on another machine: its death cannot be seen from here
    acquire = leases.Lease.acquire

    def note(*arguments: Any, **options: Any) -> leases.Lease | None:
        lease = acquire(*arguments, **options)
        taken.value += lease is not None and lease._number > 0
        return lease

    leases.Lease.acquire = note

    def pause(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if dice.random() < 0.5:
                time.sleep(0.004)
            return method(*arguments, **options)

        return call

    for name in CHANGES:
        setattr(LocalFiles, name, pause(getattr(LocalFiles, name)))
    try:
        WORKS[work](again(store, lenient=True))
    except StoreError:
        os._exit(3)
    os._exit(0)


def tell(process: Any, what: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it has come to its end
        os.kill(process.pid, what)


def takeovers(folder: Path, count: int, seed: int) -> Counter[str]:
    """The first is stopped, the second takes over after the time to live, the first wakes up."""
    found: Counter[str] = Counter()
    dice = random.Random(seed)
    finish.LEASE = 0.4
    leases.machine = lambda: ""
    turn = 0
    taken = FORK.Value("i", 0)
    while found["taken over"] < count:
        turn += 1
        found["tries"] += 1
        backend = ("zarr", "hdf5")[turn % 2]
        first, second = dice.choice(["finalize", "repair"]), dice.choice(["finalize", "repair"])
        damaged = "repair" in (first, second) and dice.random() < 0.5
        store, keys, vectors = half_done(folder / f"{turn}", backend, damaged=damaged)
        lost = 256 * damaged
        before = taken.value
        process = FORK.Process(target=work_slowly, args=(store, first, dice.random(), taken))
        process.start()
        while leases.holder(store.files, "finalize") is None and process.is_alive():
            time.sleep(0.001)
        time.sleep(dice.uniform(0.0, 0.15))
        tell(process, signal.SIGSTOP)
        other = FORK.Process(target=work_slowly, args=(store, second, dice.random(), taken))
        other.start()
        if dice.random() < 0.5:
            other.join(60)
        else:  # it wakes up while its successor is at it
            time.sleep(dice.uniform(0.45, 1.0))
        tell(process, signal.SIGCONT)
        for one in (other, process):
            one.join(60)
            found["hung"] += one.exitcode is None
            found["stopped with an error"] += one.exitcode == 3
            found["crashed"] += one.exitcode not in (0, 3, None)
        found["taken over"] += taken.value > before
        found.update(faults(store, keys, vectors, lost=lost))
        repair(again(store, lenient=True))
        finalize(again(store))
        gc(again(store), grace=0)
        found["not good afterwards"] += not verify(again(store)).good
        found.update(faults(store, keys, vectors, lost=lost))
    return found


def skew(folder: Path) -> Counter[str]:
    """A live holder keeps its lease whatever its stamps say, a silent one loses it in a time to live."""
    found: Counter[str] = Counter()
    kept, leases.machine = leases.machine, lambda: ""
    for number, seconds in enumerate((-3600, -300, 0, 300, 3600)):
        files = make(folder / str(number), "zarr").files
        clock = [1000.0]
        watch = leases.Watch(lambda clock=clock: clock[0])
        holder = leases.Lease.acquire(files, "unit", ttl=60, watch=watch)
        assert holder is not None
        (name,) = files.names(LEASES)
        path = files.path(f"{LEASES}/{name}")
        for _ in range(20):  # half an hour in which it gives signs of life
            os.utime(path, (time.time() + seconds, time.time() + seconds))
            files.rewrite(f"{LEASES}/{name}", holder._start, leases._next_beat)
            os.utime(path, (time.time() + seconds, time.time() + seconds))
            clock[0] += 90 if seconds == 0 else 15
            holder._renewed = clock[0]
            other = leases.Lease.acquire(files, "unit", ttl=60, watch=watch)
            found["two holders"] += other is not None
            found["looks"] += 1
        for wait in (0, 30, 31):
            clock[0] += wait
            other = leases.Lease.acquire(files, "unit", ttl=60, watch=watch)
        found["not taken over"] += other is None
        found["a lost lease that its holder believes in"] += holder.is_held()
        holder.release()
        found["a successor's lease removed"] += leases.holder(files, "unit") is None
        if other is not None:
            other.release()
    leases.machine = kept
    return found


def damage(folder: Path, stride: int = 1) -> Counter[str]:
    """A damaged row is given by nothing, copied by nothing, and named by verify after anything."""
    found: Counter[str] = Counter()
    keys, vectors = rows(1500, 3)
    copies = ("load", "rows", "blocks", "finalize", "merge", "subset", "reader")
    cases = list(product(("zarr", "hdf5"), ("flip", "zeros", "swap"), copies))
    for turn, (backend, how, copy) in enumerate(cases[::stride]):
        store = make(folder / f"{turn}", backend)
        write(store, keys, vectors)
        reader = again(store)
        reader.load(keys)
        spoil(store, how)
        found["stores"] += 1
        try:
            use(
                reader if copy == "reader" else again(store),
                copy,
                keys,
                vectors,
                folder / f"{turn}-to",
                found,
            )
            found["damage not noticed"] += 1
        except StoreError:
            pass
        found["damage that verify does not see"] += verify(again(store, lenient=True)).good
        done = repair(again(store, lenient=True))
        found["not good afterwards"] += not verify(again(store)).good
        found.update(faults(store, keys, vectors, lost=done.lost))
        found["rows lost"] += max(0, done.lost - 256)
    return found


def spoil(store: Store, how: str) -> None:
    """Rows of the third block, the keys 600 to 899."""
    spot, _ = store.spot_of(store.catalog.live()[2])
    path = Path(store.path) / spot.file
    content = bytearray(path.read_bytes())
    width, at = DIM * 2, spot.offset
    if how == "flip":
        content[at + 40] ^= 8
    elif how == "zeros":
        content[at : at + 100 * width] = bytes(100 * width)
    else:
        one, two = slice(at, at + width), slice(at + 9 * width, at + 10 * width)
        content[one], content[two] = content[two], content[one]
    path.write_bytes(content)


def use(store: Store, how: str, keys: np.ndarray, vectors: np.ndarray, to: Path, found: Counter[str]) -> None:
    """Reads or copies all rows."""
    if how in ("load", "reader"):
        found["rows wrong"] += int((store.load(keys).view("u2") != vectors.view("u2")).any(axis=1).sum())
    elif how == "rows":
        for i in range(600, 900, 7):
            found["rows wrong"] += store.load(keys[i : i + 1]).tobytes() != vectors[i].tobytes()
    elif how == "blocks":
        list(store.iter_blocks(keys, 400))
    elif how == "finalize":
        finalize(store)
    elif how == "merge":
        merge(make(to, "zarr"), [store])
    else:
        subset(store, keys[500:], Bank(to))


def logs(folder: Path, stride: int = 1) -> Counter[str]:
    """What a shortened log says no more is in the blocks: verify names it, repair and gc bring it back."""
    found: Counter[str] = Counter()
    keys, vectors = rows(1500, 4)
    states = ("written", "finalised", "swept")
    hows = ("cut at a line", "cut inside a line", "emptied", "deleted")
    cases = list(product(("zarr", "hdf5"), states, hows, ("first", "finalize", "all"), ("repair", "gc")))
    for turn, (backend, state, how, which, cure) in enumerate(cases[::stride]):
        store = make(folder / f"{turn}", backend)
        write(store, keys, vectors)
        if state != "written":
            finalize(store)
        if state == "swept":
            gc(store, grace=0)
        found["stores"] += 1
        for log in sorted((Path(store.path) / "parts/log").iterdir()):
            if which == "all" or log.name.startswith("finalize") == (which == "finalize"):
                shorten(log, how)
        told = not verify(again(store, lenient=True)).good
        try:
            gone = ~again(store).contains(keys)
            found["loss that verify does not see"] += bool(gone.any()) and not told
            refused = False
        except StoreError:
            refused = True
        if cure == "gc" and not refused:
            gc(again(store), grace=0)
        else:
            repair(again(store, lenient=True))
        found.update(faults(store, keys, vectors))
        repair(again(store, lenient=True))
        found["not good afterwards"] += not verify(again(store)).good
        found.update(faults(store, keys, vectors))
    return found


def shorten(log: Path, how: str) -> None:
    content = log.read_bytes()
    lines = content.splitlines(keepends=True)
    if how == "cut at a line":
        log.write_bytes(b"".join(lines[:-1]))
    elif how == "cut inside a line":
        log.write_bytes(content[:-20])
    elif how == "emptied":
        log.write_bytes(b"")
    else:
        log.unlink()


def readers(folder: Path, seconds: float) -> Counter[str]:
    """Load, iter_blocks and verify while others write, finalise and sweep without grace."""
    found: Counter[str] = Counter()
    for backend in ("zarr", "hdf5"):
        store = make(folder / backend, backend)
        keys, vectors = rows(1500, 5)
        write(store, keys, vectors, 100)
        end = time.time() + seconds
        writer = FORK.Process(target=keep_busy, args=(store, end))
        writer.start()
        reader = again(store)
        while time.time() < end:
            for what in ("load", "blocks", "verify"):
                found[what] += 1
                try:
                    if what == "load":
                        got = reader.load(keys)
                        found["rows wrong (load)"] += int((got.view("u2") != vectors.view("u2")).any(1).sum())
                    elif what == "blocks":
                        every = reader.keys()
                        seen = {
                            every[i].tobytes(): v.tobytes()
                            for part, vs in reader.iter_blocks(every, 200)
                            for i, v in zip(range(part.start, part.stop), vs, strict=True)
                        }
                        missed = [k for k in keys if k.tobytes() not in seen]
                        found["rows missed (blocks)"] += len(missed)
                        found["rows wrong (blocks)"] += sum(
                            seen.get(k.tobytes(), v.tobytes()) != v.tobytes()
                            for k, v in zip(keys, vectors, strict=True)
                        )
                    else:
                        found.update(f"damage that is none: {d}"[:150] for d in verify(again(store)).damage)
                except StoreError as error:
                    found[f"{what} refused: {str(error)[-100:]}"] += 1
        writer.join(60)
        found["crashed"] += writer.exitcode != 0
        reader.refresh()
        seed = 100
        while reader.contains((more := rows(130, seed))[0]).any():
            keys, vectors = np.concatenate([keys, more[0]]), np.concatenate([vectors, more[1]])
            seed += 1
        found.update(faults(store, keys, vectors))
    return found


def keep_busy(store: Store, end: float) -> None:
    seed = 100
    while time.time() < end:
        write(again(store), *rows(130, seed))
        finalize(again(store))
        gc(again(store), grace=0)
        seed += 1


def of_tests(name: str) -> Any:
    """A file of the tests, whose makers of hostile things are used here."""
    path = Path(__file__).parent.parent / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hostile(folder: Path) -> Counter[str]:
    """Stores, archives and studies that somebody made to do harm; what they touch outside, what they run."""
    found: Counter[str] = Counter()
    for backend in ("zarr", "hdf5"):
        found.update(hostile_stores(folder / backend, backend))
    found.update(hostile_archives(folder / "archives"))
    found.update(hostile_studies(folder / "studies"))
    return found


def hostile_stores(folder: Path, backend: str) -> Counter[str]:
    """Block ids and names of arrays that lead out of the store, links instead of files, pipes."""
    found: Counter[str] = Counter()
    module, shared = of_tests("cache/test_hostile.py"), of_tests("cache/conftest.py")
    module.Attack.prepare(folder / "template", shared.make_identity(), shared.Rows(20), backend)

    def line(record: dict[str, Any]) -> Callable[[Any], None]:
        return lambda attack: attack.add_line(record)

    def link(name: str, to: str) -> Callable[[Any], None]:
        def make(attack: Any) -> None:
            path = attack.root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            path.symlink_to(attack.victim / to)

        return make

    makers: list[Callable[[Any], None]] = []
    for word in module.OUT:
        block = {**module.BLOCK, **module.EXTRAS, "block": word}
        retire = {"type": "retire", "blocks": [word], "reason": "", "time": 1.0}
        makers += [line(block), line(retire), line({**module.ORDER, "blocks": [word]})]
        makers.append(line({**module.ORDER, "view": {word: module.SUM}}))
    for name in (
        "zarr.json",
        "store.json",
        "parts",
        "parts/log",
        "parts/blocks",
        "parts/leases",
        "embeddings",
    ):
        makers += [link(name, to) for to in ("file", "folder", "nothing")]
    for make in makers:
        place = folder / f"{found['hostile stores']}"
        shutil.copytree(folder / "template", place)
        attack = module.Attack(place)
        make(attack)
        found["hostile stores"] += 1
        try:
            found["refusals"] += len(attack.try_everything())
        except AssertionError:
            found["outside touched"] += 1
        found["outside touched"] += (attack.victim / "nothing").exists()
    return found


def hostile_archives(folder: Path) -> Counter[str]:
    """Members that lead out of the folder, links, devices, pipes, bombs."""
    from patchbank.datasets.fetch import unpack
    from patchbank.errors import FetchError

    found: Counter[str] = Counter()
    module = of_tests("datasets/test_fetch.py")
    makers = {name: make for name, (make, _) in module.MALICIOUS.items()}
    makers["tar pipe"] = lambda: module.tarred(module.tar_member("a", kind=tarfile.FIFOTYPE))
    for number, make in enumerate(makers.values()):
        place = folder / f"{number}/in"
        place.mkdir(parents=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (place / "x.part").write_bytes(make())
        found["hostile archives"] += 1
        try:
            unpack(place / "x.part", place / "out", progress=False)
            found["archives unpacked"] += 1
        except FetchError:
            found["refusals"] += 1
        here = [path for path in (folder / f"{number}").rglob("*") if path not in (place, place / "x.part")]
        found["outside touched"] += len(here)
    return found


def filled(shape: Any) -> Any:
    """Something of that shape."""
    return {key: filled(kind) for key, kind in shape.items()} if isinstance(shape, dict) else shape()


def hostile_studies(folder: Path) -> Counter[str]:
    """Studies, cards and model folders that name Python code: it must not be imported."""
    from patchbank.datasets.synthetic import generate_manifests
    from patchbank.finetune.checkpoint import FORMAT, FORMAT_VERSION, SHAPE

    found: Counter[str] = Counter()
    folder.mkdir(parents=True)
    mark = folder / "ran"
    (folder / "hostile.py").write_text(f"open({str(mark)!r}, 'w').close()\nmake = None\n")
    card = 'id = "evil"\nkind = "python"\nmodel = "hostile:make"\nrevision = "1"\ndim = 3\n'
    (folder / "evil.toml").write_text(card)
    (folder / "finetuned.toml").write_text(card.replace('"python"', '"finetuned"'))
    paths = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    patchbank = [sys.executable, "-m", "patchbank"]
    generate_manifests(folder / "data", n=80)
    data = str(next(folder.glob("data/synthetic-mitoses.toml")))
    head = f'name = "s"\ntitle = "S"\ntrain = "{data}"\ntests = []\nfolds = 3\n'
    bank = ["--bank", str(folder / "bank")]
    commands = [
        ["extract", data, "--card", str(folder / "evil.toml"), *bank],
        ["extract", data, "-e", str(folder / "evil.toml"), *bank, "--dry-run"],
        ["encoders", "check", str(folder / "evil.toml")],
        ["finetune", "run", data, "-e", str(folder / "evil.toml"), "--out", str(folder / "out")],
    ]
    for encoder in ("evil.toml", "./evil.toml", str(folder / "evil.toml")):
        file = folder / f"study-{len(commands)}.toml"
        file.write_text(f'{head}[[system]]\nname = "E"\nencoder = "{encoder}"\n')
        for more in ([], ["--dry-run"], ["--dry-run", "--json"]):
            commands.append(["run", str(file), *bank, "--out", str(folder / "out"), *more])
    evil = {"id": "evil", "kind": "python", "model": "hostile:make", "revision": "1", "dim": 3}
    named = [{"spec": spec} for spec in ("evil.toml", str(folder / "evil.toml"), f"finetuned:{folder}")]
    for change in ({"card": evil}, *named):
        model = folder / f"model-{len(commands)}"
        model.mkdir()
        whole = {**filled(SHAPE), "format": FORMAT, "format_version": FORMAT_VERSION}
        whole["encoder"] |= change
        (model / "card.json").write_text(json.dumps(whole))
        commands.append(["predict", str(model), str(folder / "data"), "-o", str(folder / "table.csv")])
    for command in commands:
        done = subprocess.run(
            [*patchbank, *command],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": paths},
            check=False,
        )
        found["hostile studies, cards and model folders"] += 1
        found["refusals"] += "--trust-code" in done.stdout + done.stderr
        if "--trust-code" not in done.stdout + done.stderr:
            print("  not refused:", *command, done.stdout[-200:], done.stderr[-300:], flush=True)
        found["not refused"] += "--trust-code" not in done.stdout + done.stderr
        found["code run"] += mark.exists()
        mark.unlink(missing_ok=True)
    return found


HARMLESS = {
    "hostile stores",
    "hostile archives",
    "hostile studies, cards and model folders",
    "refusals",
    "steps",
    "stores",
    "stopped with an error",
    "tries",
    "taken over",
    "looks",
    "load",
    "blocks",
    "verify",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--takeovers", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="every 29th step, 4 takeovers, 2 s of reading")
    parser.add_argument("--only", help="one of the attacks, by name")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    quick = options.quick
    attacks: dict[str, Callable[[Path], Counter[str]]] = {
        "steps": lambda folder: steps(folder, 29 if quick else 1),
        "skew": skew,
        "damage": lambda folder: damage(folder, 5 if quick else 1),
        "logs": lambda folder: logs(folder, 7 if quick else 1),
        "readers": lambda folder: readers(folder, 1 if quick else 10),
        "hostile": hostile,
        "takeovers": lambda folder: takeovers(folder, 4 if quick else options.takeovers, options.seed),
    }
    bad = 0
    for name, attack in attacks.items():
        if options.only not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = +attack(Path(folder))
        wrong = {what: count for what, count in found.items() if what not in HARMLESS}
        bad += sum(wrong.values())
        counts = ", ".join(f"{count} {what}" for what, count in found.items() if what in HARMLESS)
        print(f"{name}: {counts}; faults: {json.dumps(wrong) if wrong else 0}", flush=True)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()

"""Whatever is done to a store, and in whichever order: a dictionary says what has to be in it."""

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patchbank.cache.bank import Bank
from patchbank.cache.finalize import finalize
from patchbank.cache.merge import merge, subset
from patchbank.cache.store import Store
from patchbank.cache.verify import gc, repair, verify
from patchbank.errors import RowsMissing

DIM = 4
ROUNDS = 2  # of all that can be done, each in an order of its own


def vectors_of(keys: np.ndarray) -> np.ndarray:
    """The vector of a key, whoever embeds it: made of its bytes."""
    return np.ascontiguousarray(keys[:, :DIM].astype(np.float16) / 8)


class Model:
    """A store beside the dictionary of its rows; every method is one thing that people or machines do."""

    def __init__(self, bank: Bank, identity: Any, backend: str, seed: int, place: Path) -> None:
        self.dice = np.random.default_rng(seed)
        self.bank, self.identity, self.place = bank, identity, place
        self.store = bank.open_store(identity, create=True, block_rows=8, backend=backend)
        self.rows: dict[bytes, bytes] = {}
        self.done: list[str] = []

    def some_keys(self) -> np.ndarray:
        """New keys, and some that are known."""
        keys = self.dice.integers(0, 256, (int(self.dice.integers(1, 30)), 16), dtype=np.uint8)
        if self.rows and self.dice.random() < 0.5:
            known = np.frombuffer(b"".join(self.rows), np.uint8).reshape(-1, 16)
            keys = np.concatenate([keys, known[self.dice.integers(0, len(known), 5)]])
        return keys

    def taken_in(self, keys: np.ndarray) -> None:
        vectors = vectors_of(keys)
        self.rows |= {k.tobytes(): v.tobytes() for k, v in zip(keys, vectors, strict=True)}

    def append(self) -> None:
        keys = self.some_keys()
        with self.store.writer() as writer:
            for start in range(0, len(keys), 7):
                part = keys[start : start + 7]
                writer.append(part, vectors_of(part), [key.tobytes().hex() for key in part])
                if self.dice.random() < 0.3:
                    writer.flush()
        self.taken_in(keys)
        self.store.refresh()

    def two_writers(self) -> None:
        """Two machines embed the same patches."""
        keys = self.some_keys()
        other = Store(self.store.files)
        with self.store.writer() as one, other.writer() as two:
            for writer in (one, two):
                writer.append(keys, vectors_of(keys), [key.tobytes().hex() for key in keys])
        self.taken_in(keys)
        self.store.refresh()

    def finalize(self) -> None:
        if self.rows:
            finalize(self.store)

    def sweep(self) -> None:
        gc(self.store, grace=0.0)

    def repair(self) -> None:
        assert repair(self.store).lost == 0

    def reopen(self) -> None:
        self.store = Store(self.store.files)

    def merged(self) -> None:
        """Rows come from another bank of the same encoder."""
        other = Bank(self.place / f"other-{len(self.done)}").open_store(
            self.identity, create=True, block_rows=5
        )
        keys = self.some_keys()
        with other.writer() as writer:
            writer.append(keys, vectors_of(keys), [key.tobytes().hex() for key in keys])
        new = len({key.tobytes() for key in keys} - self.rows.keys())
        assert merge(self.store, [other]) == new
        self.taken_in(keys)

    def subset(self) -> None:
        keys = self.all_keys()
        part = keys[self.dice.random(len(keys)) < 0.5]
        small = subset(self.store, part, Bank(self.place / f"small-{len(self.done)}"))
        assert {key.tobytes() for key in small.keys()} == {key.tobytes() for key in part}  # noqa: SIM118
        assert small.load(part).tobytes() == vectors_of(part).tobytes()

    def damaged(self) -> None:
        """A byte of a block flips: nobody reads it, repair takes it out, and it is embedded again."""
        blocks = [block for block in self.store.catalog.live() if block.rows]
        if not blocks or not isinstance(self.store.path, Path):
            return
        block = blocks[int(self.dice.integers(0, len(blocks)))]
        spot, _ = self.store.spot_of(block)
        file = self.store.path / spot.file
        content = bytearray(file.read_bytes())
        content[spot.offset + int(self.dice.integers(0, block.rows * 2 * DIM))] ^= 1 << int(
            self.dice.integers(0, 8)
        )
        file.write_bytes(content)
        self.store = Store(self.store.files)
        assert not verify(self.store).good
        done = repair(self.store)
        keys = self.all_keys()
        lost = keys[~self.store.contains(keys)]
        assert len(lost) == done.lost <= block.rows
        if len(lost):
            with pytest.raises(RowsMissing):
                self.store.load(lost)
            with self.store.writer() as writer:
                writer.append(lost, vectors_of(lost), [key.tobytes().hex() for key in lost])
            self.store.refresh()

    def all_keys(self) -> np.ndarray:
        return np.frombuffer(b"".join(self.rows), np.uint8).reshape(-1, 16)

    def check(self) -> None:
        keys = self.all_keys()
        assert len(self.store) == len(self.rows), self.done
        assert {key.tobytes() for key in self.store.keys()} == self.rows.keys(), self.done  # noqa: SIM118
        some = keys[self.dice.permutation(len(keys))[:40]]
        assert self.store.load(some).tobytes() == vectors_of(some).tobytes(), self.done
        strangers = self.dice.integers(0, 256, (5, 16), dtype=np.uint8)
        assert not self.store.contains(strangers).any()


ACTS = (
    "append",
    "append",
    "two_writers",
    "finalize",
    "sweep",
    "repair",
    "reopen",
    "merged",
    "subset",
    "damaged",
)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", ["zarr", "hdf5", "memory"])
def test_any_sequence_leaves_what_was_put_in(tmp_path: Path, identity: Any, kind: str, seed: int) -> None:
    if kind == "memory":
        pytest.importorskip("fsspec")
    bank = Bank(f"memory://{uuid.uuid4()}" if kind == "memory" else tmp_path / "bank")
    model = Model(bank, identity(dim=DIM), "hdf5" if kind == "hdf5" else "zarr", seed, tmp_path)
    for act in [act for _ in range(ROUNDS) for act in model.dice.permutation(np.array(ACTS))]:
        model.done.append(str(act))
        getattr(model, str(act))()
        model.check()
    assert verify(model.store).good
    assert verify(Store(model.store.files)).good


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("backend", ["zarr", "hdf5"])
def test_a_writer_that_is_killed_keeps_what_it_acknowledged(
    tmp_path: Path, identity: Any, faults: Any, backend: str, seed: int
) -> None:
    """At a change of files that the seed draws, some steps after the writer began."""
    dice = np.random.default_rng([seed, 7])
    bank = Bank(tmp_path / "bank")
    store = bank.open_store(identity(dim=DIM), create=True, block_rows=8, backend=backend)
    keys = dice.integers(0, 256, (64, 16), dtype=np.uint8)
    acknowledged: list[int] = []

    def write() -> None:
        with Store(store.files).writer() as writer:
            for start in range(0, 64, 8):
                part = keys[start : start + 8]
                writer.append(part, vectors_of(part), [str(i) for i in range(8)])
                writer.flush()
                acknowledged.append(start)

    with faults.kill(tmp_path, at=int(dice.integers(2, 40))):
        write()
    again = Store(store.files)
    there = again.contains(keys)
    for start in acknowledged:
        assert there[start : start + 8].all()
    assert again.load(keys[there]).tobytes() == vectors_of(keys[there]).tobytes()
    assert (
        there.reshape(8, 8).all(axis=1).tolist() == there.reshape(8, 8).any(axis=1).tolist()
    )  # whole blocks
    write()  # the run is started again
    again.refresh()
    assert again.load(keys).tobytes() == vectors_of(keys).tobytes()
    repair(again)
    gc(again, grace=0.0)
    assert verify(Store(store.files)).good
    assert len(Store(store.files)) == 64

"""What a run keeps of every patch is a few bytes in arrays, all else is bounded: large data sets fit."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from patchbank.cache.bank import Bank
from patchbank.cache.identity import Identity
from patchbank.datasets.images import content_hash
from patchbank.extract.cards import Transform
from patchbank.extract.encoders import build_encoder
from patchbank.extract.engine import Pipeline
from patchbank.extract.tokens import Policy
from patchbank.extract.views import View
from patchbank.extract.work import Lane, Target, Work

from .conftest import python_card

FEW, MANY = 10_000, 40_000
CONSTANT = 100_000  # bytes: queues that are fuller in one run than in the other
INDEX = 20 + 11  # bytes a row: at rest, and while the largest pieces are merged
WAITS, SEEN = 2, 8  # bytes a patch: lanes it waits for; the table that finds duplicates


@pytest.mark.parametrize("hashed", [True, False])
def test_memory_does_not_grow_with_the_patches(tmp_path: Path, hashed: bool) -> None:
    _peak(tmp_path / "warm", 300, hashed)  # what is imported on the way
    few, many = (_peak(tmp_path / str(n), n, hashed) for n in (FEW, MANY))
    allowed = INDEX + WAITS + (0 if hashed else SEEN)
    assert many - few < allowed * (MANY - FEW) + CONSTANT
    assert many > 20 * MANY, "the index is in what was measured"


def _peak(folder: Path, n: int, hashed: bool) -> int:
    """Bytes that a run over n patches takes beyond what it is given."""

    def read(i: int) -> np.ndarray:
        return np.frombuffer(i.to_bytes(12, "little"), np.uint8).reshape(2, 2, 3)

    shape = Transform(size=2)
    card = python_card("colour", lambda batch: batch.mean(dim=(2, 3)), shape)
    parts = {"view": "full", "tokens": "pooled", "precision": "fp32", "dtype": "float32", "dim": 3}
    store = Bank(folder).open_store(Identity(encoder={"id": "colour"}, preprocess={}, **parts), create=True)
    keys = np.zeros((n, 16), np.uint8)
    for i in range(n if hashed else 0):
        keys[i] = np.frombuffer(content_hash(read(i)), np.uint8)
    work = Work(
        read=read,
        name=str,
        keys=keys,
        known=np.full(n, hashed),
        todo=np.ones((n, 1), bool),
        unit=np.arange(n) // 2048,
        unit_name=str,
    )
    target = Target(store.identity, View(), Policy("pooled", "pooled"), opened=store)
    encoder = build_encoder(card, device="cpu")
    encoder.embed(torch.zeros(1, 2, 2, 3, dtype=torch.uint8))
    tracemalloc.start()
    try:
        lane = Lane(0, View(), shape, [target])
        assert Pipeline(work, [lane], [[encoder]], batch_size=256, workers=1).run().embedded == n
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

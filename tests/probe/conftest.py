"""A small study without images: manifests with content hashes, and a bank of vectors with a real signal."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from patchbank.cache.bank import Bank
from patchbank.cache.identity import Identity
from patchbank.datasets.manifest import Header, Manifest
from patchbank.probe.results.files import ProbeResult
from patchbank.probe.run import run_probe


def make_manifest(
    name: str,
    n: int,
    *,
    seed: int,
    slides: int = 24,
    domains: int = 3,
    splits: tuple[str, ...] = ("train", "test"),
    classes: tuple[str, ...] = ("Normal", "Atypical"),
) -> Manifest:
    """Slides lie in one domain and one split each; a third of the rows is positive; five votes a row."""
    rng = np.random.default_rng(seed)
    slide = rng.integers(0, slides, n)
    label = (rng.random(n) < 1 / 3).astype(int)
    votes = np.where(label, rng.integers(3, 6, n), rng.integers(0, 3, n))
    table = pd.DataFrame(
        {
            "patch_id": [f"{name}/{i:05d}" for i in range(n)],
            "path": [f"{i:05d}.png" for i in range(n)],
            "label": np.array(classes, dtype=object)[label],
            "group": [f"slide{s:03d}" for s in slide],
            "domain": [f"scanner {'ABCDEF'[s % domains]}" for s in slide],
            "split": [splits[int((s // domains) % 4 == 3 and len(splits) > 1)] for s in slide],
            "content_hash": [rng.bytes(16).hex() for _ in range(n)],
            "votes_positive": votes,
            "votes_total": 5,
        }
    )
    header = Header(
        name=name, version="1", classes=classes, positive="Atypical", licence="made up", source="a test"
    )
    return Manifest(header, table, Path())


def keys_of(manifest: Manifest) -> np.ndarray:
    """uint8 (n, 16)."""
    text = "".join(manifest.table["content_hash"])
    return np.frombuffer(bytes.fromhex(text), np.uint8).reshape(-1, 16)


def identity_of(encoder: str, dim: int, view: str = "full") -> Identity:
    parts = {"view": view, "tokens": "cls", "precision": "fp32", "dtype": "float32"}
    return Identity(encoder={"id": encoder}, preprocess={}, dim=dim, **parts)


def fill(
    bank: Path, encoder: str, manifests: list[Manifest], *, dim: int, signal: float, view: str = "full"
) -> None:
    """Vectors: noise with a decaying spectrum, and `signal` times the label along the first column."""
    identity = identity_of(encoder, dim, view)
    rng = np.random.default_rng(len(encoder) + len(view))
    with Bank(bank).open_store(identity, create=True).writer() as writer:
        for manifest in manifests:
            X = rng.standard_normal((len(manifest), dim)) / np.sqrt(1 + np.arange(dim))
            X[:, 0] += signal * (manifest.table["label"] == manifest.header.positive)
            keys, first = np.unique(keys_of(manifest), axis=0, return_index=True)
            writer.append(keys, X[first], manifest.table["patch_id"].iloc[first].tolist())


def fill_with_classes(
    bank: Path, encoder: str, manifests: list[Manifest], *, dim: int, signal: float
) -> None:
    """Vectors: noise, and `signal` times each class along a column of its own."""
    identity = identity_of(encoder, dim)
    rng = np.random.default_rng(len(encoder))
    with Bank(bank).open_store(identity, create=True).writer() as writer:
        for manifest in manifests:
            X = rng.standard_normal((len(manifest), dim))
            for k, name in enumerate(sorted(manifest.header.classes)):
                X[:, k] += signal * (manifest.table["label"] == name)
            keys, first = np.unique(keys_of(manifest), axis=0, return_index=True)
            writer.append(keys, X[first], manifest.table["patch_id"].iloc[first].tolist())


def probe_two(train: Manifest, tests: list[Manifest], bank: Path) -> ProbeResult:
    """A quick study of two encoders, of which one is good; the bank is filled for it."""
    for encoder, signal in (("good", 1.5), ("poor", 0.3)):
        fill(bank, encoder, [train, *tests], dim=12, signal=signal)
    quick: dict[str, Any] = {"C": [1e-3, 1e-2, 1e-1], "folds": 3, "inner_folds": 3, "bootstrap": 100}
    quick |= {"jobs": 1, "progress": False}
    return run_probe(train=train, tests=tests, bank=bank, encoders=["good", "poor"], **quick)


@dataclass
class Study:
    """A train manifest with a test split, an external set, and a bank with three stores of two encoders."""

    train: Manifest
    external: Manifest
    bank: Path


@pytest.fixture(scope="session")
def fill_bank() -> Callable[..., None]:
    return fill


@pytest.fixture(scope="session")
def fill_classes() -> Callable[..., None]:
    return fill_with_classes


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    bank = tmp_path_factory.mktemp("bank")
    train = make_manifest("inner", 400, seed=1)
    external = make_manifest("outer", 160, seed=2, splits=("",), slides=12)
    for encoder, view, signal in (("good", "full", 1.5), ("good", "center:0.5", 2.0), ("poor", "full", 0.3)):
        fill(bank, encoder, [train, external], dim=12, signal=signal, view=view)
    return Study(train, external, bank)

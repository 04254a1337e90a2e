"""`--compile`, by a real compiler. A process of its own: what torch keeps of a compilation stays there."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from patchbank.cache.bank import Bank
from patchbank.extract.encoders import build_encoder
from patchbank.extract.registry import load_card
from safetensors.torch import save_file

CARD = """
id = "tiny"
kind = "timm"
model = "vit_tiny_patch16_224"
revision = "1"
dim = 192
grid = 4
prefix = 1
tokens = "cls"

[arguments]
img_size = 32
depth = 1
num_classes = 0

[transform]
size = 32
"""
COMPILER = os.environ.get("CXX", "g++")


def extract(folder: Path, bank: str, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "patchbank", "extract", str(folder / "toy.toml"), "--bank"]
    command += [str(folder / bank), "--card", str(folder / "tiny.toml"), "--checkpoint"]
    command += [str(folder / "tiny.safetensors"), "--device", "cpu", "--precision", "fp32", "--batch-size"]
    command += ["16", "--dtype", "float32", "--no-progress", *more]
    environment |= {"TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled"), "TORCH_LOGS": "recompiles"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=1800, env={**os.environ, **environment}
    )


@pytest.fixture
def folder(tmp_path: Path, make_manifest: Callable[..., Any]) -> Path:
    """A manifest of 39 patches (two batches and a rest), a card and its random weights."""
    make_manifest(39)
    (tmp_path / "tiny.toml").write_text(CARD)
    torch.manual_seed(0)
    network: Any = build_encoder(load_card(tmp_path / "tiny.toml"), device="cpu", random_weights=True).network
    save_file(network.model.state_dict(), tmp_path / "tiny.safetensors")
    return tmp_path


@pytest.mark.skipif(
    not shutil.which(COMPILER), reason=f"--compile needs a C++ compiler on a CPU: no {COMPILER}"
)
def test_a_compiled_encoder_gives_the_same_vectors(folder: Path) -> None:
    for bank, options in (("plain", []), ("compiled-bank", ["--compile"])):
        done = extract(folder, bank, *options)
        assert done.returncode == 0, done.stderr
        assert "Recompiling" not in done.stderr, (
            "the rest of a batch is filled up: one shape, one compilation"
        )
    plain, compiled = (Bank(folder / bank).find("tiny") for bank in ("plain", "compiled-bank"))
    keys = plain.keys()
    assert len(keys) == len(compiled) == 39
    expected, found = plain.load(keys), compiled.load(keys)
    assert np.linalg.norm(found - expected, axis=1).max() <= 1e-5 * np.linalg.norm(expected, axis=1).min()
    assert list((folder / "compiled").rglob("*.so")), "it was compiled"


def test_without_a_compiler_the_error_says_so(folder: Path) -> None:
    done = extract(folder, "bank", "--compile", CXX="/no/such/compiler")
    assert done.returncode == 1
    assert "tiny cannot be compiled for cpu" in done.stderr
    assert "leave --compile out" in done.stderr
    assert "Traceback" not in done.stderr

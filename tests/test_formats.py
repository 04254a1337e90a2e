"""Small files of every versioned format, as they were written: each is read, with the values that it has.

tests/data: cache-v1.zip (stores), results-v1.zip and results-v2.zip (probe results) have their tests beside
those of the cache and of probe/results; formats-v1.zip has the rest. Whoever changes a format leaves these as
they are and adds files of the new version.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from patchbank.datasets.folds import load_folds
from patchbank.datasets.hashes import FIRST_SUFFIX, SUFFIX, WIDTH, hex_hashes, look_up, resolve
from patchbank.datasets.hashes import _read as read_index
from patchbank.datasets.manifest import load_manifest
from patchbank.finetune.checkpoint import check_files, read_card
from patchbank.finetune.listing import describe_card, list_models
from patchbank.finetune.plan import load_plan
from patchbank.steps import State

HASHES = ["01" * 16, "02" * 16, "03" * 16]


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("formats")
    shutil.unpack_archive(Path(__file__).parent / "data/formats-v1.zip", folder)
    return folder


def test_a_plan(formats: Path, tmp_path: Path) -> None:
    plan = load_plan(formats / "plan.toml")
    assert (plan.train, plan.tests, plan.folds) == ("/data/a.toml", ("/data/b.toml",), 3)
    assert [(e.encoder, e.train, e.recipe) for e in plan.entries] == [
        ("good", True, "lora"),
        ("poor", True, "lora"),
    ]
    assert (plan.rule.target, plan.entries[0].value, plan.entries[1].gap) == (0.9, 0.8878, 0.4269)
    again = plan.save(tmp_path / "plan.toml")
    assert load_plan(again) == plan


def test_a_fine_tuned_model(formats: Path) -> None:
    card = read_card(formats / "finetuned")
    check_files(formats / "finetuned", card)
    assert card["encoder"]["id"] == "tiny-vit"
    assert card["data"]["fold"] == 1
    text = describe_card(formats / "finetuned", card)
    assert "tiny-vit fine-tuned with recipe 'lora'" in text
    [row] = list_models(formats / "finetuned")
    assert (row["state"], row["encoder"], row["epoch"]) == ("finished", "tiny-vit", 3)


def test_folds_and_a_manifest(formats: Path) -> None:
    folds = load_folds(formats / "folds.toml")
    assert (folds.name, folds.n_splits, len(folds.fold_of_group)) == ("balanced", 3, 10)
    assert folds.fold_of_group["slide 1"] == 1
    manifest = load_manifest(formats / "manifest.toml")
    assert manifest.table["label"].tolist() == ["a", "b", "a"]
    assert str(manifest.root) == "/data/images"


def test_the_state_of_a_study(formats: Path) -> None:
    state = State(formats / "state.json")
    assert state.get("extract", "tiny") == {"seconds": 1.25, "forwards": 96, "device": "cpu"}
    assert state.get("finetune", "Tiny, LoRA")["folder"] == "tiny-vit_lora"
    assert state.get("report", "digest") == "cd" * 32


def test_indexes_of_content_hashes(formats: Path) -> None:
    """Version 2 knows a place by its path; version 1 by path, size and time of a file that has to exist."""
    manifest = load_manifest(formats / "manifest.toml")
    second = read_index(formats / "hashes", SUFFIX, WIDTH)
    assert hex_hashes(second[:, 40:]).tolist() == HASHES
    assert np.ascontiguousarray(second[:, 16:24]).view("<i8").ravel().tolist() == [100, 101, 102]
    found = look_up(manifest, formats / "hashes")
    assert found.entered.all()
    assert not found.changed.any(), "files that are not here are not taken for changed"
    first = read_index(formats / "hashes", FIRST_SUFFIX, 32)
    assert hex_hashes(first[:, 16:]).tolist() == HASHES
    hashes, known = resolve(manifest, formats / "hashes")
    assert not known.any(), "nothing says that the files are those that were decoded"
    assert not hashes.any()

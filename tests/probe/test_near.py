"""Near-duplicates by their pixels: found by a study wherever its images are, once; named, and clustered."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from patchbank.datasets import audit as datasets_audit
from patchbank.datasets.images import content_hash
from patchbank.datasets.manifest import Header, Manifest
from patchbank.errors import ProbeError
from patchbank.probe import near
from patchbank.probe.report.write import html_report
from patchbank.probe.run import run_probe
from PIL import Image

QUICK: dict[str, Any] = {
    "C": [1e-3, 1e-1], "bootstrap": 100, "jobs": 1, "progress": False, "domains": "none", "folds": 2,
    "inner_folds": 2,
}  # fmt: skip


def picture(rng: np.random.Generator, side: int = 80) -> np.ndarray:
    """Blobs of a few pixels, as texture has them: uint8 (side, side, 3)."""
    coarse = rng.integers(0, 256, (side // 5, side // 5), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).convert("RGB"))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, fill_bank: Any) -> tuple[Manifest, Manifest, Path]:
    """40 training rows in 10 slides and 30 test rows of unknown slides; test/0 is train/5 shifted, test/3 is
    test/2 shifted."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("near")
    large = {"train/5": picture(rng), "test/2": picture(rng)}
    copies = {"test/0": "train/5", "test/3": "test/2"}
    manifests = []
    for name, n in (("train", 40), ("test", 30)):
        rows = []
        (folder / name).mkdir()
        for i in range(n):
            patch = f"{name}/{i}"
            source = large.get(copies.get(patch, patch))
            at = 3 if patch in copies else 0  # of 64 pixels
            pixels = picture(rng)[:64, :64] if source is None else source[at : at + 64, at : at + 64]
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
            rows.append([patch, f"{i}.png", ("no", "yes")[i % 2], f"s{i // 4}" if name == "train" else "",
                         content_hash(pixels).hex()])  # fmt: skip
        table = pd.DataFrame(rows, columns=["patch_id", "path", "label", "group", "content_hash"])
        header = Header(
            name=name, version="1", classes=("no", "yes"), positive="yes", licence="x", source="x"
        )
        manifests.append(Manifest(header, table.assign(domain="", split=""), folder / name))
    fill_bank(folder / "bank", "good", manifests, dim=20, signal=2.0)
    return manifests[0], manifests[1], folder / "bank"


def test_shifted_copies_are_named_and_compared_once(
    sets: tuple[Manifest, Manifest, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test, bank = sets
    common: dict[str, Any] = {"train": train, "tests": [test], "bank": bank, "encoders": ["good"], **QUICK}
    by_embeddings = run_probe(near_duplicates="embeddings", **common)
    assert by_embeddings.document["leaks"]["found"]["near-duplicate"] == 0, "they do not look alike to it"
    found = run_probe(**common)
    leaks = found.document["leaks"]
    assert leaks["near_by"] == "images"
    assert sorted(map(sorted, leaks["near"])) == [["test/0", "train/5"], ["test/2", "test/3"]]
    [leak] = leaks["leaks"]
    assert {row[0] for row in leak["rows"]} == {"train/5", "test/0"}
    across, within = (next(n for n in found.document["notes"] if word in n) for word in ("both", "one side"))
    assert {"train/5", "test/0"} <= set(re.findall(r"\w+/\d+", across))
    assert "scores are too high" in across
    assert {"test/2", "test/3"} <= set(re.findall(r"\w+/\d+", within))
    page = html_report(found, images=False)
    assert "near-duplicates looked for in the pixels" in page
    assert "test/2 and test/3" in page or "test/3 and test/2" in page

    def groups(result: Any) -> int:
        return next(r["n_groups"] for r in result.document["scores"] if r["dataset"] == "test")

    assert groups(by_embeddings) == 30
    assert groups(found) == 29, "a near-duplicate pair is one cluster where no slides are known"

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("images were compared again")

    monkeypatch.setattr(datasets_audit, "near_duplicates", never)
    again = run_probe(**common)
    assert again.document["leaks"] == leaks
    [remembered] = (bank / "near").iterdir()
    remembered.write_text("{")  # damaged
    with pytest.raises(AssertionError, match="again"):
        run_probe(**common)
    pairs = bank.parent / "near.csv"
    pairs.write_text("patch_a,patch_b\ntrain/5,test/0\n")
    with pytest.raises(ProbeError, match="Near-duplicate"):
        run_probe(near_duplicates=str(pairs), **common)


def test_without_images_the_embeddings_are_compared(
    sets: tuple[Manifest, Manifest, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test, bank = sets
    content = [one.table["content_hash"].to_numpy(dtype=str) for one in (train, test)]
    moved = Manifest(test.header, test.table, tmp_path)
    assert near.near_images([train, moved], content, None, progress=False) is None
    elsewhere = near.near_images([train, test], content, None, progress=False)
    assert len(elsewhere or []) == 2, "no bank to remember it in"
    common: dict[str, Any] = {"train": train, "bank": bank, "encoders": ["good"], **QUICK}
    bank_of_moved = tmp_path / "bank"
    shutil.copytree(bank, bank_of_moved, ignore=shutil.ignore_patterns("near"))
    common["bank"] = bank_of_moved
    assert run_probe(tests=[moved], **common).document["leaks"]["near_by"] == "embeddings"
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(near, "MOST_IMAGES", 69)
    assert near.near_images([train, test], content, tmp_path / "empty", progress=False) is None
    monkeypatch.setattr(near, "MOST_IMAGES", 70)
    monkeypatch.setattr(near, "MOST_ALIKE", 0)
    assert near.near_images([train, test], content, tmp_path / "empty", progress=False) is None
    assert not list((tmp_path / "empty").iterdir())

"""The audit finds what was planted, and says nothing where nothing is."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from patchbank.datasets import clusters
from patchbank.datasets.audit import _best_shift, audit, near_duplicates, near_identical
from patchbank.datasets.builders import build_manifest
from patchbank.datasets.cli import datasets_group
from patchbank.datasets.declarations import Declaration, Part
from patchbank.datasets.manifest import Header, Manifest
from patchbank.errors import ImageError
from PIL import Image
from scipy.ndimage import gaussian_filter

from .conftest import TOY

WriteImages = Callable[..., None]


def hashed(manifest: Manifest) -> Manifest:
    from patchbank.datasets.builders import hash_images
    from patchbank.datasets.hashes import hex_hashes

    digests, _ = hash_images(manifest, progress=False)
    return Manifest(manifest.header, manifest.table.assign(content_hash=hex_hashes(digests)), manifest.root)


def test_nothing_is_wrong(toy: Manifest) -> None:
    found = audit(hashed(toy), progress=False)
    assert found.ok
    assert found.unique == 8
    for table in (found.unreadable, found.changed, found.duplicates, found.contradictions, found.group_leaks):
        assert table.empty
    assert found.counts["rows"].sum() == 8
    assert found.sizes.to_dict(orient="records") == [{"height": 16, "width": 16, "rows": 8}]


def test_missing_broken_and_changed_files(toy: Manifest, write_images: WriteImages) -> None:
    manifest = hashed(toy)
    Path(toy.path(0)).unlink()
    Path(toy.path(1)).write_text("hello")
    write_images(toy.root, {"2.png": 99})
    found = audit(manifest, progress=False)
    assert not found.ok
    assert found.unreadable["patch_id"].tolist() == ["toy/0", "toy/1"]
    assert "no such file" in found.unreadable["message"][0]
    assert found.changed["patch_id"].tolist() == ["toy/2"]
    assert found.unique == 6


def test_duplicates_contradictions_and_leaks(toy: Manifest, write_images: WriteImages) -> None:
    write_images(toy.root, {"2.png": 0, "3.png": 1, "5.png": 0, "7.png": 1})  # 0 = 2 = 5; 1 = 3 = 7
    found = audit(toy, progress=False)
    assert found.duplicate_groups == 2
    assert found.duplicates["patch_id"].tolist() == ["toy/0", "toy/2", "toy/5", "toy/1", "toy/3", "toy/7"]
    assert found.contradictions["patch_id"].tolist() == ["toy/0", "toy/2", "toy/5"]
    assert found.contradictory_groups == 1
    assert found.unique == 4
    assert found.duplicate_leaks.to_dict(orient="records") == [
        {"duplicate": 2, "splits": "test, train", "rows": 3}
    ]
    assert not found.ok


def test_an_unlabelled_copy_contradicts_nobody(toy: Manifest, write_images: WriteImages) -> None:
    write_images(toy.root, {"1.png": 0})
    table = toy.table.assign(label=["bad", ""] + ["good"] * 6)
    found = audit(Manifest(toy.header, table, toy.root), progress=False)
    assert found.duplicate_groups == 1
    assert found.contradictions.empty


def test_embeddings_without_a_known_content_are_no_duplicates(toy: Manifest) -> None:
    paths = [f"all.npy::embedding[{i}]" for i in range(len(toy))]
    imported = Manifest(toy.header, toy.table.assign(path=paths), toy.root)
    found = audit(imported, progress=False)
    assert (found.duplicate_groups, found.unique) == (0, len(toy))
    twice = imported.table.assign(content_hash=["ab" * 16] * 2 + [""] * (len(toy) - 2))
    assert audit(Manifest(toy.header, twice, toy.root), progress=False).duplicate_groups == 1


def test_groups_that_cross_splits(toy: Manifest) -> None:
    table = toy.table.assign(group=["a", "b", "c", "a", "", "", "a", ""])
    found = audit(Manifest(toy.header, table, toy.root), progress=False)
    assert found.group_leaks.to_dict(orient="records") == [{"group": "a", "splits": "test, train", "rows": 3}]
    assert not found.ok


def test_facts_are_compared(toy: Manifest) -> None:
    facts = Declaration(
        parts=(Part(builder="folder"),),
        **TOY,
        licence="",
        source="",
        image_size=(16, 16),
        contents="0" * 64,
        counts={"train": {"bad": 3, "good": 3}, "test": {"bad": 1, "good": 2}},
        groups={"train": 3, "test": 1},
        domains={"here": 8, "there": 1},
        duplicates={"groups": 0, "files": 0, "contradictions": 0},
    )
    found = audit(toy, facts=facts, progress=False)
    wrong = found.facts[~found.facts["ok"]].set_index("fact")
    assert wrong.index.tolist() == ["rows", "test good", "domain there", "contents (sha256)"]
    assert wrong.loc["rows", "expected"] == 9
    assert wrong.loc["rows", "found"] == 8
    assert not found.ok


def test_json(toy: Manifest) -> None:
    found = json.loads(json.dumps(audit(toy, progress=False).to_json()))
    assert found["ok"] is True
    assert found["unreadable"] == []
    assert sum(row["rows"] for row in found["counts"]) == 8


# --- near-duplicates --------------------------------------------------------------------------------


def scene(seed: int, size: int = 200) -> np.ndarray:
    """A picture with structure at several scales, uint8 (size, size, 3)."""
    random = np.random.default_rng(seed)
    scales = [gaussian_filter(random.standard_normal((size, size, 3)), (s, s, 0)) * s for s in (2, 6, 15)]
    field = np.sum(scales, axis=0)
    field = (field - field.min()) / (field.max() - field.min())
    return (field * 255).astype(np.uint8)


@pytest.fixture
def scenes(tmp_path: Path, header: Header) -> Callable[[dict[str, np.ndarray]], Manifest]:
    def write(pictures: dict[str, np.ndarray]) -> Manifest:
        for name, picture in pictures.items():
            Image.fromarray(picture).save(tmp_path / f"{name}.png")
        table = pd.DataFrame(
            {"patch_id": [f"toy/{n}" for n in pictures], "path": [f"{n}.png" for n in pictures]}
        )
        return Manifest(header, table, tmp_path)

    return write


@pytest.mark.parametrize("shift", [(0, 0), (3, 3), (-7, 2), (5, -8), (0, 6), (8, 8)])
def test_a_shifted_copy_is_found_with_its_shift(
    scenes: Callable[[dict[str, np.ndarray]], Manifest], shift: tuple[int, int]
) -> None:
    down, right = shift
    pictures = {f"other{k}": scene(100 + k)[:128, :128] for k in range(20)}
    pictures["a"] = scene(0)[20:148, 20:148]
    pictures["b"] = scene(0)[20 - down : 148 - down, 20 - right : 148 - right]
    pairs = near_duplicates(scenes(pictures), progress=False)
    assert pairs[["patch_a", "patch_b", "shift_y", "shift_x"]].to_numpy().tolist() == [
        ["toy/a", "toy/b", down, right]
    ]
    assert pairs["score"][0] > 0.999
    assert pairs["identical"][0] == (shift == (0, 0))


@pytest.mark.parametrize("seed", range(12))
def test_the_best_shift_is_the_one_of_the_definition(seed: int) -> None:
    """Of all shifts around the given one within the frame; noisy copies, strangers, the same, flat images."""
    rng = np.random.default_rng(seed)
    picture = scene(seed)[..., 0]
    y, x = rng.integers(-8, 9, 2)
    a, b = picture[20:148, 20:148], picture[20 - y : 148 - y, 20 - x : 148 - x]
    b = [b, np.clip(b + rng.normal(0, 20, b.shape), 0, 255).astype(np.uint8), a, np.full_like(a, 9)][seed % 4]
    down, right = rng.choice([-5, 0, 5], 2).tolist()
    expected = (-1.0, 0, 0)
    for dy in range(max(down - 5, -8), min(down + 5, 8) + 1):
        for dx in range(max(right - 5, -8), min(right + 5, 8) + 1):
            p = a[max(0, -dy) : 128 - max(0, dy), max(0, -dx) : 128 - max(0, dx)].ravel()
            q = b[max(0, dy) : 128 - max(0, -dy), max(0, dx) : 128 - max(0, -dx)].ravel()
            score = float(np.corrcoef(p, q)[0, 1]) if np.ptp(q) else 0.0
            expected = max(expected, (score, dy, dx))
    score, *shift = _best_shift(a, b, down, right)
    assert tuple(shift) == expected[1:]
    assert score == pytest.approx(expected[0], abs=1e-9)


def test_recompressed_and_restained_copies_are_found(
    scenes: Callable[[dict[str, np.ndarray]], Manifest], tmp_path: Path
) -> None:
    original = scene(1)[:128, :128]
    Image.fromarray(original).save(tmp_path / "x.jpg", quality=70)
    pictures = {
        "a": original,
        "jpeg": np.asarray(Image.open(tmp_path / "x.jpg")),
        "darker": (original * np.array([0.8, 0.7, 0.9])).astype(np.uint8),
        "half": np.asarray(Image.fromarray(original).resize((64, 64), Image.Resampling.BOX)),
        "other": scene(2)[:128, :128],
    }
    pairs = near_duplicates(scenes(pictures), progress=False)
    partners = {frozenset(pair) for pair in pairs[["patch_a", "patch_b"]].to_numpy().tolist()}
    assert {frozenset({"toy/a", f"toy/{x}"}) for x in ("jpeg", "darker")} <= partners
    assert not any("toy/other" in pair for pair in partners)
    assert not pairs["identical"].any()


def test_neighbouring_crops_and_strangers_are_no_duplicates(
    scenes: Callable[[dict[str, np.ndarray]], Manifest],
) -> None:
    pictures = {f"crop{k}": scene(3)[k * 24 : k * 24 + 128, :128] for k in range(4)}
    pictures |= {f"flat{k}": np.full((128, 128, 3), 40 * k, np.uint8) for k in range(3)}
    pairs = near_duplicates(scenes(pictures), progress=False)
    assert pairs.empty
    assert list(pairs.columns)[:4] == ["patch_a", "patch_b", "label_a", "label_b"]
    assert pairs[~pairs["identical"]].empty


def test_across_manifests(scenes: Callable[[dict[str, np.ndarray]], Manifest]) -> None:
    manifest = scenes({"a": scene(0)[:128, :128], "x": scene(5)[:128, :128], "b": scene(0)[4:132, :128]})
    pairs = near_duplicates(
        [manifest.select(np.array([0, 1])), manifest.select(np.array([2]))], progress=False
    )
    assert pairs[["patch_a", "patch_b"]].to_numpy().tolist() == [["toy/a", "toy/b"]]


def test_unreadable_images_are_an_error(
    scenes: Callable[[dict[str, np.ndarray]], Manifest], tmp_path: Path
) -> None:
    manifest = scenes({"a": scene(0), "b": scene(1)})
    (tmp_path / "b.png").unlink()
    with pytest.raises(ImageError, match="1 of 2 images"):
        near_duplicates(manifest, progress=False)


def test_the_known_near_duplicates_of_atnorm_br(shared: Path) -> None:
    manifest = build_manifest("atnorm-br", shared / "data", progress=False, hashes=False)
    pairs = near_duplicates(manifest, progress=False)
    near = pairs[~pairs["identical"]]
    assert near[["patch_a", "patch_b", "shift_y", "shift_x"]].to_numpy().tolist() == [
        ["atnorm-br/504", "atnorm-br/501", 3, 3],  # contradictory labels
        ["atnorm-br/697", "atnorm-br/700", -2, -6],
    ]
    # 27 groups of identical images give 46 pairs
    assert int(pairs["identical"].sum()) == 46


# --- near-identical images on two sides -------------------------------------------------------------


def lightly_changed(pixels: np.ndarray) -> np.ndarray:
    return np.clip(pixels.astype(float) * 0.9 + 12, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("splits", {"split": ["train", "test"]}),
        ("labels", {"label": ["bad", "good"]}),
        ("groups", {"group": ["s1", "s2"]}),
        ("splits", {"split": ["train", "test"], "label": ["bad", "good"], "group": ["s1", "s2"]}),
        ("", {"split": ["train", "train"], "label": ["bad", "bad"], "group": ["s1", "s1"]}),
        ("", {"split": ["train", ""], "label": ["bad", ""], "group": ["s1", ""]}),
    ],
)
def test_near_identical_images_on_two_sides_are_named(
    scenes: Callable[[dict[str, np.ndarray]], Manifest],
    tmp_path: Path,
    kind: str,
    changes: dict[str, list[str]],
) -> None:
    pictures = {f"other{k}": scene(100 + k)[:128, :128] for k in range(4)}
    pictures |= {"a": scene(0)[:128, :128], "b": lightly_changed(scene(0)[:128, :128])}
    manifest = scenes(pictures)
    table = manifest.table.assign(**{column: ["", "", "", "", *values] for column, values in changes.items()})
    manifest = Manifest(manifest.header.replace(group_kind="slide"), table, manifest.root)
    pairs = near_identical([manifest], [audit(manifest, progress=False)], progress=False)
    found = pairs[["patch_a", "patch_b", "between", "identical"]].to_numpy().tolist()
    assert found == ([["toy/a", "toy/b", kind, False]] if kind else [])
    out = manifest.save(tmp_path / "toy.toml")
    result = CliRunner().invoke(datasets_group, ["check", str(out)], catch_exceptions=False)
    said = " ".join(result.output.split())
    assert (f"1 pairs of nearly identical images in two {kind}:" in said) == bool(kind)
    assert result.exit_code == 0


def test_identical_and_near_identical_images_of_two_sets(
    scenes: Callable[[dict[str, np.ndarray]], Manifest], tmp_path: Path
) -> None:
    """Blank ones are identical too; `probe` refuses equal images beside training rows only."""
    pictures = {f"{k}": scene(k)[:128, :128] for k in range(3)} | {
        "blank": np.full((128, 128, 3), 240, np.uint8)
    }
    first = scenes(pictures)
    others = {"x": pictures["1"], "y": pictures["blank"], "z": lightly_changed(pictures["2"])}
    table = scenes(others).table.assign(patch_id=[f"more/{name}" for name in others])
    for split, status in (("", 1), ("train", 1), ("test", 0)):
        train = Manifest(first.header, first.table.assign(split=split), first.root)
        test = Manifest(first.header.replace(name="more"), table.assign(split="test"), first.root)
        pairs = near_identical(
            [train, test], [audit(one, progress=False) for one in (train, test)], progress=False
        )
        found = {
            (a, b): same for a, b, same in pairs[["patch_a", "patch_b", "identical"]].to_numpy().tolist()
        }
        assert found == {
            ("toy/1", "more/x"): True, ("toy/blank", "more/y"): True, ("toy/2", "more/z"): False,
        }  # fmt: skip
        files = [str(one.save(tmp_path / f"{one.header.name}.toml")) for one in (train, test)]
        result = CliRunner().invoke(datasets_group, ["check", *files], catch_exceptions=False)
        assert "2 pairs of identical images in two" in " ".join(result.output.split())
        assert result.exit_code == status
        for file in tmp_path.glob("*.csv"):
            file.unlink()


def test_images_that_are_all_alike_fill_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    small = np.tile(np.arange(256, dtype=np.uint8).reshape(16, 16), (3000, 1, 1))
    monkeypatch.setattr(clusters, "MOST_PAIRS", 1000)
    with pytest.raises(clusters.TooManyAlikeError):
        clusters.candidates(small)
    assert len(clusters.candidates(small, np.zeros((3000, 1)))) == 0

"""Folds: whole groups, even, and the same ones always."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from patchbank.datasets.builders import build_manifest
from patchbank.datasets.folds import Folds, effective_groups, folds_for, load_folds, make_folds
from patchbank.datasets.manifest import Manifest
from patchbank.errors import InvalidRequest, ManifestError


def clustered(n_groups: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and groups of very different sizes and prevalences."""
    random = np.random.default_rng(seed)
    sizes = np.ceil(random.pareto(1.0, n_groups) * 4).clip(1, 120).astype(int)
    groups = np.repeat([f"slide-{g}" for g in range(n_groups)], sizes)
    share = np.repeat(random.beta(1, 3, n_groups), sizes)
    return np.where(random.random(len(groups)) < share, "bad", "good"), groups


def test_no_group_is_in_two_folds_and_all_are_even() -> None:
    labels, groups = clustered(140)
    folds = make_folds(labels, groups, n_splits=5).assign(groups)
    assert folds.dtype == np.int64
    table = pd.DataFrame({"fold": folds, "group": groups, "label": labels})
    assert (table.groupby("group")["fold"].nunique() == 1).all()
    counts = pd.crosstab(table["fold"], table["label"])
    assert counts.index.tolist() == [1, 2, 3, 4, 5]
    assert (counts.max() - counts.min()).max() <= 3  # of several hundred; a shuffle has dozens


def test_the_seed_and_the_order_of_rows() -> None:
    labels, groups = clustered(60)
    one = make_folds(labels, groups)
    turned = np.random.default_rng(1).permutation(len(labels))
    assert make_folds(labels[turned], groups[turned]).fold_of_group == one.fold_of_group
    assert make_folds(labels, groups, seed=1).fold_of_group != one.fold_of_group


def test_the_algorithm_is_frozen() -> None:
    """A changed digest means that folds made by an older patchbank cannot be made again: never change it."""
    labels = ["bad" if i % 7 == 0 or i % 11 == 3 else "good" for i in range(500)]
    groups = [f"g{(i * i) % 83}" for i in range(500)]
    made = make_folds(labels, groups, n_splits=4, seed=7)
    text = json.dumps(dict(sorted(made.fold_of_group.items())))
    assert (
        hashlib.sha256(text.encode()).hexdigest()
        == "82c0e40a67edb3b313570cb6fb5063b34027c5c72e258efbec91020143994e56"
    )
    many = make_folds([labels[i % 500] for i in range(3000)], [f"p{i}" for i in range(3000)])  # greedy alone
    text = json.dumps(dict(sorted(many.fold_of_group.items())))
    assert (
        hashlib.sha256(text.encode()).hexdigest()
        == "be1344aff7fe42b76a40d311a4af60015d7b4358592647e0313a1e7516551414"
    )


def test_rows_without_a_label_follow_their_group() -> None:
    labels = ["bad", "good"] * 10 + [""] * 5
    groups = [f"g{i // 2}" for i in range(20)] + ["g0"] * 3 + ["lone"] * 2
    made = make_folds(labels, groups, n_splits=5)
    assert set(made.fold_of_group) == set(groups)


@pytest.mark.parametrize(
    ("labels", "groups", "message"),
    [
        (["bad"] * 4 + ["good"] * 6, ["a"] * 4 + list("bcdefg"), "'bad' occurs in 1 groups"),
        (["bad"] * 3, list("abc"), "'bad' occurs in 3 groups"),
        (["bad"] * 6, list("abcde"), "must be one column each"),
    ],
)
def test_impossible_folds_are_refused(labels: list[str], groups: list[str], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        make_folds(labels, groups, n_splits=5)


def test_a_fold_file_comes_back(tmp_path: Path) -> None:
    labels, groups = clustered(30)
    made = make_folds(labels, groups, name="mine", dataset="toy")
    file = made.save(tmp_path / "mine.toml")
    assert load_folds(file) == made
    assert load_folds(str(file)) == made


def test_strange_group_names_survive(tmp_path: Path) -> None:
    folds = Folds(name="odd", n_splits=2, fold_of_group={'a "b"': 1, "ü\\n.x = 3\n\x7f": 2, "": 1})
    assert load_folds(folds.save(tmp_path / "odd.toml")).fold_of_group == folds.fold_of_group


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("a = 1", "a = 3", r"outside: \['a'\]"),
        ("a = 1", "a = 2", r"empty: \[1\]"),
        ("a = 1", 'a = "1"', "fold_of_group = .* has to be"),
        ("n_splits", "n_split", "did you mean 'n_splits'"),
        ("format_version = 1", "format_version = 2", "upgrade patchbank"),
        ("patchbank-folds", "patchbank-manifest", "is not a fold file"),
    ],
)
def test_faulty_fold_files(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = Folds(name="f", n_splits=2, fold_of_group={"a": 1, "b": 2}).save(tmp_path / "f.toml")
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ManifestError, match=message):
        load_folds(file)


def test_unknown_names_and_groups() -> None:
    with pytest.raises(
        ManifestError, match=r"no folds are called 'papre'; shipped are \['balanced', 'paper'\]"
    ):
        load_folds("papre")
    with pytest.raises(ManifestError, match="do not know 1 of the groups: 'x'"):
        load_folds("paper").assign(["002.tiff", "x"])


def test_rows_without_a_group_are_clusters_of_content(toy: Manifest) -> None:
    a, b, c = "a" * 32, "b" * 32, "c" * 32
    hashes = [a, b, a, c, c, b, "", ""]
    clusters = ["", "", "", "k", "", "", "k", ""]
    of_hashes = Manifest(toy.header, toy.table.assign(group="", content_hash=hashes), toy.root)
    assert not of_hashes.groups_known
    assert effective_groups(of_hashes).tolist() == [f"toy/{i}" for i in (0, 1, 0, 3, 3, 1, 6, 7)]
    near = of_hashes.table.assign(content_cluster=clusters)
    assert effective_groups(Manifest(toy.header, near, toy.root))[[3, 6]].tolist() == ["toy/3", "toy/3"]
    some = near.assign(group=["", "", "s1", "", "", "", "s2", ""])
    found = effective_groups(Manifest(toy.header, some, toy.root)).tolist()
    assert found == ["s1", "toy/1", "s1", "s2", "toy/4", "toy/1", "s2", "toy/7"]


def test_rows_without_a_group_are_their_own(toy: Manifest) -> None:
    table = toy.table.assign(group=["a", "a", "", "", "b", "b", "", ""])
    manifest = Manifest(toy.header, table, toy.root)
    assert effective_groups(manifest).tolist() == ["a", "a", "toy/2", "toy/3", "b", "b", "toy/6", "toy/7"]


def test_the_class_its_groups_and_the_fix_are_named() -> None:
    labels = np.array(["[/bad]", "good", "[/bad]", "good", "good", "[/bad]"], dtype=object)
    groups = np.array(["s1", "s2", "s3", "s4", "s5", "s3"], dtype=object)
    with pytest.raises(InvalidRequest) as caught:
        make_folds(labels, groups, n_splits=5)
    assert str(caught.value) == (
        "5 folds cannot be made: each needs a group of every class, and '[/bad]' occurs in 2 groups "
        "('s1', 's3'); 'good' occurs in 3 groups ('s2', 's4', 's5'). Fix: make 2 folds."
    )
    assert make_folds(labels, groups, n_splits=2).n_splits == 2
    with pytest.raises(InvalidRequest, match=r"'bad' occurs in 1 groups \('x'\). Fix: label more groups"):
        make_folds(["bad", "good", "good"], ["x", "x", "y"], n_splits=2)


def test_folds_for(toy: Manifest, tmp_path: Path) -> None:
    assert folds_for(toy, 3).n_splits == 3
    file = make_folds(toy.table["label"].to_numpy(), effective_groups(toy), n_splits=2).save(
        tmp_path / "f.toml"
    )
    assert folds_for(toy, file).n_splits == 2
    with pytest.raises(InvalidRequest, match="occurs in 4 groups"):
        folds_for(toy)  # "balanced" is five folds, for any data set but ami-br
    with pytest.raises(ManifestError, match="do not know"):
        folds_for(toy, "paper")


def test_the_papers_folds(shared: Path) -> None:
    reference = json.loads((shared / "reference" / "paper_folds.json").read_text())
    assert dict(load_folds("paper").fold_of_group) == reference["fold_of_slide"]
    train = build_manifest("ami-br", shared / "data", hashes=False).select("train")
    folds = load_folds("paper").assign(train.table["group"])
    assert np.bincount(folds)[1:].tolist() == [592, 805, 451, 379, 667]


def test_our_folds_are_the_shipped_ones(shared: Path) -> None:
    train = build_manifest("ami-br", shared / "data", hashes=False).select("train")
    labels, groups = train.table["label"].to_numpy(), effective_groups(train)
    made = make_folds(labels, groups, n_splits=5, seed=0, name="balanced", dataset="ami-br")
    assert made == load_folds("balanced") == folds_for(train)
    counts = pd.crosstab(made.assign(groups), labels)
    assert counts.to_numpy().tolist() == [[130, 449], [130, 449], [129, 450], [129, 449], [130, 449]]

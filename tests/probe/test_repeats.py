"""Runs with other folds; numbers of folds chosen automatically; the row that leads; near-duplicates."""

import re
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from patchbank.cache.bank import Bank
from patchbank.cache.identity import Identity
from patchbank.datasets.manifest import Header, Manifest
from patchbank.errors import InvalidRequest, ProbeError
from patchbank.probe.describe import fit_notes
from patchbank.probe.fewshot import run_few_shot
from patchbank.probe.leaks import near_embeddings
from patchbank.probe.report.page import StudyPage, SystemRow, page_html
from patchbank.probe.report.write import html_report, markdown_report
from patchbank.probe.results.files import OPTIMISM, SWEEP, ProbeResult
from patchbank.probe.results.merge import merge_systems
from patchbank.probe.run import run_probe

QUICK: dict[str, Any] = {
    "C": [1e-3, 1e-1], "bootstrap": 0, "jobs": 1, "progress": False, "domains": "none"
}  # fmt: skip


def test_repeats_are_runs_with_other_folds(study: Any) -> None:
    common = {"train": study.train, "tests": [study.external], "bank": study.bank, "inner_folds": 3, **QUICK}
    found = run_probe(encoders=["good", "poor"], folds=3, repeats=3, seed=5, **common)
    repeats = found.document["repeats"]
    assert repeats["seeds"] == [5, 6, 7]
    alone = run_probe(encoders=["good", "poor"], folds=3, seed=5, **common)
    assert alone.document["repeats"] is None
    assert repeats["chosen"][0] == alone.chosen
    first = {
        (r["dataset"], r["features"], r["role"]): r["metrics"]
        for r in alone.document["scores"]
        if not r["domain"] and r["subset"] == "raw"
    }
    assert len(repeats["scores"]) == len(first)
    for record in repeats["scores"]:
        for metric in ("balanced_accuracy", "auroc", "average_precision"):
            value = first[record["dataset"], record["features"], record["role"]][metric][0]
            assert record[metric]["values"][0] == pytest.approx(value, abs=2e-3)
            assert record[metric]["sd"] == pytest.approx(np.std(record[metric]["values"], ddof=1))
            if record["role"] == "oof":
                assert len(set(record[metric]["values"])) == 3, "other folds, other scores"


def test_the_nested_row_leads_and_the_star_is_said_to_be_optimistic(
    study: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run_probe(train=study.train, bank=study.bank, encoders=["good", "poor"], **QUICK, out=tmp_path)
    board = [r.features for r in found.results.leaderboard() if r.dataset == "inner:train"]
    criterion = {m["features"]: m["criterion"] for m in found.document["models"]}
    assert board == [SWEEP, *sorted(criterion, key=lambda name: -criterion[name])]
    assert board[1] == found.chosen
    assert pd.read_csv(tmp_path / "results.csv")["features"][0] == SWEEP
    found.show()
    assert "too high by .05 to .13" in " ".join(capsys.readouterr().out.split())
    alone = run_probe(train=study.train, bank=study.bank, encoders=["good"], **QUICK)
    alone.show()
    assert alone.optimism() == ""
    assert OPTIMISM[:20] not in capsys.readouterr().out


def few_groups(study: Any, slides: int) -> Manifest:
    """The train manifest with positive rows of so many slides alone."""
    table = study.train.table
    table = table[table["split"] == "train"]
    names = sorted(set(table["group"][table["label"] == "Atypical"]))[:slides]
    keep = (study.train.table["split"] == "train") & (
        (study.train.table["label"] == "Normal") | study.train.table["group"].isin(names)
    )
    return study.train.select(keep.to_numpy())


def test_as_many_folds_as_a_class_has_groups(study: Any) -> None:
    train = few_groups(study, 3)
    common: dict[str, Any] = {"train": train, "bank": study.bank, "encoders": ["good"], **QUICK}
    found = run_probe(**common)
    assert (found.document["folds"]["n_splits"], found.document["folds"]["inner"]) == (3, [2, 2, 2])
    assert found.document["notes"] == [
        "3 folds: a class occurs in too few groups for 5",
        "2 inner folds: a class occurs in too few groups for 5",
    ]
    with pytest.raises(
        InvalidRequest, match=r"4 folds of inner .*'Atypical' occurs in 3 groups \('slide\d+', .*--folds 2"
    ):
        run_probe(folds=4, **common)
    with pytest.raises(
        InvalidRequest,
        match=r"3 inner folds of outer fold 1.*'Atypical' occurs in 2 groups \(.*--inner-folds 2",
    ):
        run_probe(inner_folds=3, **common)
    with pytest.raises(
        InvalidRequest, match=r"2 folds of inner .*'Atypical' occurs in 1 groups? \('slide\d+'\)"
    ):
        run_probe(**{**common, "train": few_groups(study, 1)})
    with pytest.raises(InvalidRequest, match=r"2 inner folds.*'Atypical' occurs in 1 .*label more groups"):
        run_probe(**{**common, "train": few_groups(study, 2)})


def near_bank(bank: Path, changed: float) -> tuple[Manifest, Manifest]:
    """80 + 40 rows of 24 columns; test row 7 is training row 3, `changed` of a standard deviation off."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((120, 24)) * np.geomspace(0.1, 10, 24) + 3
    X[87] = X[3] + changed * np.geomspace(0.1, 10, 24) * rng.standard_normal(24)
    manifests = []
    for name, rows in (("train", range(80)), ("test", range(80, 120))):
        table = pd.DataFrame(
            {"patch_id": [f"{name}/{i}" for i in rows], "path": "x", "domain": "", "split": ""}
        )
        table["label"] = np.array(["no", "yes"], dtype=object)[np.arange(len(rows)) % 2]
        table["group"] = [f"g{i // 4}" for i in rows]
        table["content_hash"] = [rng.bytes(16).hex() for _ in rows]
        header = Header(
            name=name, version="1", classes=("no", "yes"), positive="yes", licence="made up", source="a test"
        )
        manifests.append(Manifest(header, table, Path()))
    keys = np.frombuffer(
        bytes.fromhex("".join("".join(m.table["content_hash"]) for m in manifests)), np.uint8
    )
    identity = Identity(
        encoder={"id": "e"},
        preprocess={},
        view="full",
        tokens="cls",
        precision="fp32",
        dtype="float32",
        dim=24,
    )
    with Bank(bank).open_store(identity, create=True).writer() as writer:
        writer.append(keys.reshape(-1, 16), X, [i for m in manifests for i in m.table["patch_id"]])
    return manifests[0], manifests[1]


@pytest.mark.parametrize(("changed", "found"), [(0.01, 1), (0.5, 0)])
def test_near_duplicates_are_seen_in_the_embeddings(tmp_path: Path, changed: float, found: int) -> None:
    train, test = near_bank(tmp_path, changed)
    common: dict[str, Any] = {"train": train, "tests": [test], "bank": tmp_path, "encoders": ["e"], **QUICK}
    result = run_probe(**common)
    leaks = result.document["leaks"]
    assert leaks["found"]["near-duplicate"] == found
    if found:
        assert [row[0] for row in leaks["leaks"][0]["rows"]] == ["train/3", "test/87"]
        assert "train/3 and test/87" in result.document["notes"][0]
        assert run_probe(near_duplicates="none", **common).document["notes"] == []
        pairs = tmp_path / "near.csv"
        pairs.write_text("patch_a,patch_b\ntrain/3,test/87\n")
        with pytest.raises(ProbeError, match="Near-duplicate"):
            run_probe(near_duplicates=str(pairs), **common)
    else:
        assert result.document["notes"] == []
    few: dict[str, Any] = {key: common[key] for key in ("train", "tests", "bank", "encoders")}
    notes: list[str] = []
    run_few_shot(**few, shots=[1], repeats=1, on_note=notes.append)
    assert [note.count("train/3 and test/87") for note in notes] == [1] * found
    if found:
        with pytest.raises(ProbeError, match="Near-duplicate"):
            run_few_shot(**few, near_duplicates=str(tmp_path / "near.csv"))


def test_near_embeddings_are_sets_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchbank.probe.leaks._NEAR_ROWS", 37)  # blocks, and a last one that is shorter
    rng = np.random.default_rng(1)
    X = rng.standard_normal((300, 32)).astype(np.float32)
    X[[250, 260]] = X[7] + 1e-3  # two copies of a training row
    X[270] = X[7]  # the same content: a leak of another kind
    X[290] = X[280] + 1e-3  # neither is trained on
    content = np.arange(300).astype(str)
    content[270] = content[7]
    assert near_embeddings(X, 200, content) == [[7, 250, 260]]
    X[:, 5] = 1.0  # a dead column
    assert near_embeddings(X, 200, content) == [[7, 250, 260]]
    assert near_embeddings(X[:, :15], 200, content) is None, "so few columns are near by chance"
    assert near_embeddings(rng.standard_normal((2000, 16)), 1500, np.arange(2000)) == []


def test_results_that_are_read_back_have_their_notes(study: Any, tmp_path: Path) -> None:
    run_probe(
        train=study.train, bank=study.bank, encoders=["good"], select="auroc", class_weight=["none", "votes"],
        repeats=2, out=tmp_path, **QUICK,
    )  # fmt: skip
    found = ProbeResult.load(tmp_path)
    assert "cannot tell class weights apart" in found.document["notes"][0]
    assert found.document["models"][0]["choice"]["class_weight"] == "none"
    assert np.shape(found.document["models"][0]["path"]["criterion"]) == (1, 1, 2)


@pytest.mark.parametrize(
    ("probe", "words"), [("knn", "k, the number of neighbours"), ("centroid", "no parameter")]
)
def test_the_report_names_what_was_swept(study: Any, probe: str, words: str) -> None:
    settings = {**QUICK, "C": None, "k": [5, 20] if probe == "knn" else None}
    found = run_probe(
        train=study.train, tests=[study.external], bank=study.bank, encoders=["good"], probe=probe, **settings
    )
    text = html_report(found, images=False)
    assert words in text
    assert "Grid of C" not in text
    assert "inverse penalty" not in text
    assert ("Grid of k: 2 from 5 to 20" in text) == (probe == "knn")


def test_the_report_shows_notes_repeats_and_the_optimism_of_the_star(study: Any) -> None:
    """In the report of a sweep, and on the page of a study, where the chosen one is a system."""
    common = {"train": study.train, "tests": [study.external], "bank": study.bank, "folds": 2, **QUICK}
    both = run_probe(encoders=["good", "poor"], repeats=2, select="auroc", class_weight=["none", "balanced"],
                     **common)  # fmt: skip
    merged = merge_systems(
        {"Good": both, "Poor": run_probe(encoders=["poor"], repeats=2, class_weight=["none"], **common)}
    )
    record = next(r for r in merged.document["repeats"]["scores"] if r["features"] == "Good")
    assert record == {
        **next(r for r in both.document["repeats"]["scores"] if r["features"] == SWEEP), "features": "Good"
    }  # fmt: skip
    shown = f"{record['auroc']['mean']:.3f} ± {record['auroc']['sd']:.3f}"
    rows = tuple(SystemRow(name=n, encoder="x", family="probe", state="done") for n in ("Good", "Poor"))
    pages = {
        "report": html_report(both, images=False),
        "markdown": markdown_report(both),
        "page": page_html(StudyPage(title="A study", about="", result=merged, systems=rows)),
    }
    for name, text in pages.items():
        plain = " ".join(re.sub("<[^>]+>", " ", text).split())
        assert "AUROC, which chooses, cannot tell class weights apart" in unescape(plain), name
        assert "over 2 runs of the whole protocol" in plain, name
        assert shown in plain, name
        assert "Out of fold, the score of ★ is that of the winner" in plain, name
        assert ("is the estimate of what was chosen" in plain) == (name != "page"), name
    first, slides = merged.document["notes"]
    assert first == f"Good: {both.document['notes'][0]}"
    assert slides.startswith("9 slides have one name in train (139 rows) and in outer (121 rows)")
    note = run_probe(encoders=["poor"], repeats=1, **common)
    alone = html_report(note, images=False)
    assert "Repeated with other folds" not in alone
    assert "intervals of this kind held the truth in .90 to .99 of studies" in alone
    assert "winner of a comparison" not in alone
    assert alone.count("Note:") == 1, "that of slides"


def test_fits_that_did_not_converge_are_said(study: Any) -> None:
    common = {"train": study.train, "bank": study.bank, "encoders": ["good"], "folds": 2, **QUICK}
    fine = run_probe(**common)
    assert fine.document["notes"] == []
    page = html_report(fine, images=False)
    status = fine.document["models"][0]["fits"]["status"]
    assert sum(status.values()) == fine.document["models"][0]["fits"]["fits"]
    assert ", ".join(f"{n} {name}" for name, n in status.items()) in page
    assert "the bound may be near 1 for a right fit" in page
    run = SimpleNamespace(fits={"fits": 40, "status": {"newton": 37, "capped": 3}})
    assert fit_notes({"good": run}) == [  # pyright: ignore[reportArgumentType]
        "3 of 40 fits of good did not reach the tolerance (status 'capped')"
    ]

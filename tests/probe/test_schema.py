"""results.json as classes: exact both ways, described in FORMAT.md, and readable when it is old."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patchbank.errors import ProbeError
from patchbank.probe.report.write import html_report, markdown_report
from patchbank.probe.results import schema
from patchbank.probe.results.files import ProbeResult, read_document
from patchbank.probe.results.schema import SWEEP, Estimate, Part, Results, Role, Score
from pydantic import BaseModel

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests/data"
WRITTEN = {"Estimate", "Part"}  # not parts of the file by themselves


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Format version -> a folder that a run of its time wrote: the same small study."""
    root = tmp_path_factory.mktemp("results")
    for version in (1, 2):
        shutil.unpack_archive(DATA / f"results-v{version}.zip", root / str(version))
    return {version: root / str(version) for version in (1, 2)}


def parts(value: Any) -> Iterator[Part]:
    """Every part of a result, at any depth."""
    if isinstance(value, Part):
        yield value
        yield from parts([getattr(value, name) for name in type(value).model_fields])
    elif isinstance(value, dict):
        yield from parts(list(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from parts(one)


def test_reading_and_writing_changes_nothing(folders: dict[int, Path], tmp_path: Path) -> None:
    document = read_document(folders[2])
    del document["files"]
    results = Results.model_validate(document)
    assert json.dumps(results.to_json()) == json.dumps(document), "values, and the order of keys"
    assert not [part for part in parts(results) if part.model_extra], "every key that is written has a field"
    assert {type(part) for part in parts(results)} >= {Score, schema.Calls, schema.Human, schema.Matrix}
    ProbeResult.load(folders[2]).save(tmp_path)
    again, before = (
        {
            k: v
            for k, v in json.loads((f / "results.json").read_text()).items()
            if k not in ("files", "digest")
        }
        for f in (tmp_path, folders[2])  # whose probes are a probes.npz
    )
    assert again == before


def test_keys_of_a_later_version_are_kept(folders: dict[int, Path]) -> None:
    document = read_document(folders[2])
    document["scores"][0]["sharpness"] = {"auroc": [0.5, None, None]}
    assert Results.model_validate(document).to_json() == document


def test_format_md_names_every_key() -> None:
    text = (ROOT / "probe/results/FORMAT.md").read_text()
    named = set(re.findall(r"`(\w+)`", text))
    classes = [c for c in vars(schema).values() if isinstance(c, type) and issubclass(c, BaseModel)]
    assert len(classes) > 25
    inside = {"fold", "net_benefit_reasons"}  # of the class; in the file the role and net_benefit have them
    for one in classes:
        missing = set(one.model_fields) - named - inside
        assert not missing, f"FORMAT.md does not name {one.__name__}: {', '.join(sorted(missing))}"
    assert all(f'"{role}' in text for role in Role)


def test_an_estimate_has_all_that_was_recorded(folders: dict[int, Path]) -> None:
    document, results = read_document(folders[2]), ProbeResult.load(folders[2]).results
    record, score = document["scores"][0], results.scores[0]
    assert (score.features, score.role) == (SWEEP, Role.OOF)
    for metric in ("auroc", "sensitivity", "brier"):
        found, about = score.estimate(metric), record["uncertainty"]["metrics"][metric]
        value, low, high = found
        assert [value, low, high] == record["metrics"][metric]
        assert found.standard_error == about["standard_error"] > 0
        assert (found.degrees_of_freedom, found.method) == (about["degrees_of_freedom"], about["method"])
        assert (found.n, found.groups) == (record["n"], record["n_groups"])
    platt = score.estimate("ece", "platt")
    assert platt.standard_error == record["uncertainty"]["platt"]["ece"]["standard_error"]
    assert score.estimate("unheard of") == Estimate()


def test_queries(folders: dict[int, Path]) -> None:
    results = ProbeResult.load(folders[2]).results
    every = [s for s in results.scores if s.subset == "raw" and s.domain == ""]
    assert results.whole() == every
    assert results.by_domain() == [s for s in results.scores if s.domain]
    assert results.whole(deduplicated=True) == []
    one = results.whole(features="good/full/cls", dataset="outer", roles=(Role.REFIT,))
    assert [(s.features, s.dataset, s.role) for s in one] == [("good/full/cls", "outer", "refit")]
    assert results.train.dataset == "inner:train"
    assert results.sets == ["inner:train", "inner:test", "outer"]
    assert [m.features for m in results.ranked] == ["good/full/cls", "poor/full/cls"]
    assert results.model("poor/full/cls").choice == results.models[1].choice
    assert results.models[1].choice is not None
    assert results.models[1].choice.value == results.models[1].choice.C
    board = results.leaderboard()
    assert [(s.dataset, s.role) for s in board] == [("inner:train", Role.OOF)] * 3 + [
        (name, Role.REFIT) for name in ("inner:test", "outer") for _ in range(2)
    ]
    assert board[0].features == SWEEP
    given = results.comparisons[0]
    assert given.against(given.b) is given
    turned = given.against(given.a)
    assert (turned.a, turned.b) == (given.b, given.a)
    assert given.difference is not None
    assert given.low is not None
    assert (turned.difference, turned.high) == (-given.difference, -given.low)
    assert turned.standard_error == given.standard_error
    assert {c.b for c in results.comparisons_of("poor/full/cls")} == {"poor/full/cls"}


def test_the_model_of_one_fold_has_its_number() -> None:
    record = {"features": "a", "role": "fold 3", "dataset": "s", "domain": "", "subset": "raw", "n": 4}
    record |= {"n_positive": 1, "metrics": {"auroc": [0.5, None, None]}}
    score = Score.model_validate(record)
    assert (score.role, score.fold, score.share) == (Role.FOLD, 3, 0.25)
    assert score.model_dump(mode="json", exclude_unset=True) == record


def test_a_score_of_three_classes_has_them_one_by_one() -> None:
    about = {"standard_error": 0.1, "degrees_of_freedom": 5.0, "design_effect": 1.0, "method": "jackknife"}
    about["reason"] = ""
    one = {"label": "G3", "n": 4, "n_groups": 2, "called": 5, "metrics": {"f1": [0.5, 0.3, 0.7]}}
    record = {"features": "a", "role": "refit", "dataset": "s", "domain": "", "subset": "raw", "n": 9}
    record |= {"metrics": {"auroc": [0.5, None, None]}, "classes": [one | {"uncertainty": {"f1": about}}]}
    record |= {"confusion": [[4, 0, 0], [1, 3, 0], [0, 1, 0]], "n_classes": 3, "missing": []}
    record |= {"confused": [{"label": "G4", "called": "G3", "rows": 1, "groups": 1, "share": 0.25}]}
    score = Score.model_validate(record)
    f1 = score.classes[0].estimate("f1")
    assert (f1.value, f1.standard_error, f1.n, f1.groups) == (0.5, 0.1, 4, 2)
    assert score.classes[0].estimate("auroc") == Estimate()
    assert [score.chance(m) for m in ("balanced_accuracy", "auroc", "kappa")] == [1 / 3, 0.5, 0.0]
    assert score.model_dump(mode="json", exclude_unset=True) == record


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"metrics": {"auroc": [0.5, None]}}, "scores.0: .*metrics: .* is not .value, low, high."),
        ({"metrics": {"auroc": [0.5, "high", None]}}, "metrics: 'high' is not"),
        ({"role": "teacher"}, "role"),
        ({"n": "many"}, r"scores\.0\.n"),
    ],
)
def test_what_is_no_result_is_refused_with_its_place(
    folders: dict[int, Path], change: dict[str, Any], said: str
) -> None:
    document = read_document(folders[2])
    document["scores"][0] |= change
    with pytest.raises(ProbeError, match=said):
        ProbeResult(document, ProbeResult.load(folders[2]).predictions).results  # noqa: B018
    with pytest.raises(ProbeError, match="data"):
        ProbeResult({**document, "data": []}, ProbeResult.load(folders[2]).predictions).results  # noqa: B018


def test_version_1_says_the_same_in_the_form_of_today(folders: dict[int, Path]) -> None:
    """The same study by the programs of both formats: scores agree, thresholds are on one scale."""
    old, new = (ProbeResult.load(folders[version]) for version in (1, 2))
    written = json.loads((folders[1] / "results.json").read_text())
    assert old.results.not_recorded
    assert "standard errors of the scores" in old.results.not_recorded
    assert old.results.scores[0].estimate("auroc").standard_error is None
    assert old.results.scores[0].metrics == {
        m: Estimate(*v, n=92, groups=written["scores"][0]["n_groups"])
        for m, v in written["scores"][0]["metrics"].items()
    }
    for a, b in zip(old.results.ranked, new.results.ranked, strict=True):
        assert a.features == b.features
        assert a.threshold == pytest.approx(b.threshold, abs=1e-3)
        assert a.threshold_score == pytest.approx(b.threshold_score, abs=1e-3)
    keys = ["patch_id", "dataset", "features", "role"]
    both = old.predictions.merge(new.predictions, on=keys, suffixes=("_old", "_new"))
    good = both[both["features"] == "good/full/cls"]
    assert len(good) > 100
    for column in ("score", "probability", "threshold"):
        assert np.allclose(good[f"{column}_old"], good[f"{column}_new"], atol=2e-3), column
    assert (good["call_old"] == good["call_new"]).mean() > 0.99
    table = old.predictions
    assert ((table["probability"] >= table["threshold"]) == (table["call"] == 1)).all()


def test_version_1_is_shown_and_saved_as_version_2(
    folders: dict[int, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = ProbeResult.load(folders[1])
    old.show()
    assert "Not recorded: " in capsys.readouterr().out
    text = markdown_report(old)
    assert "standard errors of the scores" in text
    assert f"{old.results.leaderboard()[0].estimate('auroc').value:.3f}" in text
    assert "good/full/cls" in html_report(old, images=False)
    old.save(tmp_path)
    again = ProbeResult.load(tmp_path)
    assert again.results == old.results
    assert again.results.not_recorded == old.results.not_recorded


def test_a_damaged_version_1_is_a_sentence(folders: dict[int, Path], tmp_path: Path) -> None:
    document = json.loads((folders[1] / "results.json").read_text())
    del document["models"]
    (tmp_path / "results.json").write_text(json.dumps(document))
    with pytest.raises(ProbeError, match="version 1"):
        ProbeResult.load(tmp_path)
    (tmp_path / "results.json").write_text((folders[1] / "results.json").read_text())
    with pytest.raises(ProbeError, match=r"predictions\.parquet is missing"):
        ProbeResult.load(tmp_path)

"""Sections that a reader needs before using a model, on a set with duplicates and without known slides."""

import copy
import dataclasses
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from patchbank.datasets.manifest import Manifest
from patchbank.errors import InvalidRequest
from patchbank.probe.report.board import Board
from patchbank.probe.report.model import StudyPage, SystemRow
from patchbank.probe.report.page import page_html
from patchbank.probe.report.sections import clinical
from patchbank.probe.report.view import View
from patchbank.probe.report.write import html_report, markdown_report
from patchbank.probe.results.files import ProbeResult
from patchbank.probe.results.merge import from_predictions, merge_systems
from patchbank.probe.run import run_probe
from patchbank.study_file import load_study

from .conftest import probe_two


def number(value: float | None) -> float:
    assert value is not None
    return value


@pytest.fixture(scope="module")
def result(study: Any, tmp_path_factory: pytest.TempPathFactory) -> ProbeResult:
    """The external set has no groups; ten rows repeat the content of others, two with another label."""
    table = study.external.table.assign(group="").reset_index(drop=True)
    table.loc[150:, "content_hash"] = table.loc[:9, "content_hash"].to_numpy()
    table.loc[150:, "label"] = table.loc[:9, "label"].to_numpy()
    table.loc[150:151, "label"] = ["Atypical" if one == "Normal" else "Normal" for one in table["label"][:2]]
    external = Manifest(study.external.header.replace(group_kind="none"), table, study.external.root)
    bank = tmp_path_factory.mktemp("clinical-bank")
    return probe_two(study.train, [external], bank)


def tables(parts: list[Any]) -> list[list[dict[str, Any]]]:
    """The tables of a section as rows by head."""
    return [
        [dict(zip(part.heads, row, strict=True)) for row in part.rows]
        for part in parts
        if hasattr(part, "heads")
    ]


def test_scores_without_duplicates_lead(result: ProbeResult) -> None:
    outer = [r for r in result.results.leaderboard() if r.dataset == "outer"]
    assert {(r.subset, r.n) for r in outer} == {("dedup", 148)}  # 150 contents, 2 with both labels
    assert {r.subset for r in result.results.leaderboard() if r.dataset != "outer"} == {"raw"}
    text = markdown_report(result)
    assert "**outer**: 148 different patches" in text
    assert "| outer | 160 | 148 |" in text  # all files beside


def test_models_are_compared_on_what_their_scores_are_of(result: ProbeResult) -> None:
    lead = {(r.dataset, r.features): r for r in result.results.leaderboard()}
    compared = [c for c in result.document["comparisons"] if c["role"] in ("refit", "oof")]
    assert {c["dataset"] for c in compared} == {"inner:train", "inner:test", "outer"}
    for c in compared:
        a, b = (number(lead[c["dataset"], c[side]].estimate(c["metric"]).value) for side in "ab")
        assert c["difference"] == pytest.approx(a - b, abs=1e-12), (c["dataset"], c["metric"], c["test"])
    merged = merge_systems({"one": result, "two": result})
    assert {p["n"] for p in result.document["precision"] if p["dataset"] == "outer"} == {148}
    tables = {
        role: result.predictions[
            (result.predictions["dataset"] == "outer")
            & (result.predictions["role"] == role)
            & (result.predictions["features"] == result.chosen)
        ].set_index("patch_id")
        for role in ("refit", "ensemble")
    }
    rows, _ = from_predictions("outer", tables, role="both")
    assert (len(rows), int(rows.distinct.sum())) == (160, 148)
    assert merged.document["comparisons"]


def test_nothing_is_claimed_where_no_slides_are_known(result: ProbeResult) -> None:
    assert result.ungrouped == ["outer"]
    text = markdown_report(result)
    assert "slides unknown (the intervals take patches as independent and are too narrow)" in text
    assert "Of outer no slides are known" in text
    assert not re.search(r"outer[^\n]*independent groups", text)
    view = View(result)
    [rows] = tables(
        clinical.if_clustered(
            view, [r for r in result.results.leaderboard() if r.dataset == "outer"], ["auroc"]
        )
    )
    assert len(rows) == 2
    for row, record in zip(
        rows, (r for r in result.results.leaderboard() if r.dataset == "outer"), strict=True
    ):
        value, low, high = map(float, re.findall(r"\d\.\d+", row["AUROC"]))
        leading = record.estimate("auroc")
        assert value == pytest.approx(leading.value, abs=6e-4)
        assert low < number(leading.low) - 0.01
        assert high > number(leading.high)
    precision = tables(clinical.precision(view))[0]
    assert {row["groups"] for row in precision if row["set"] == "outer"} == {"unknown"}


def test_counts_of_calls_are_those_of_the_predictions(result: ProbeResult) -> None:
    counts = tables(clinical.operating_points(View(result)))[0]
    rows = result.predictions
    rows = rows[
        (rows["dataset"] == "inner:test") & (rows["features"] == result.chosen) & (rows["role"] == "refit")
    ]
    shown = next(r for r in counts if (r["set"], r["called at"]) == ("inner:test", "threshold of the folds"))
    for label, call, head in (
        (1, 1, "Atypical, found"),
        (1, 0, "Atypical, missed"),
        (0, 1, "Normal, called Atypical"),
        (0, 0, "Normal, right"),
    ):
        assert shown[head] == int(((rows["label"] == label) & (rows["call"] == call)).sum()), head


def test_predictive_values_follow_bayes(result: ProbeResult) -> None:
    _, cuts, values = tables(clinical.operating_points(View(result)))
    record = next(
        r for r in result.results.leaderboard() if r.dataset == "inner:test" and r.features == result.chosen
    )
    sensitivity, specificity = (
        number(record.estimate(m, "at_threshold").value) for m in ("sensitivity", "specificity")
    )
    row = next(r for r in values if r["set"] == "inner:test" and r["prevalence of Atypical"] == "10%")
    expected = 0.1 * sensitivity / (0.1 * sensitivity + 0.9 * (1 - specificity))
    assert float(row["PPV"][:5]) == pytest.approx(expected, abs=6e-4)
    assert {r["required specificity"] for r in cuts} == {"0.90", "0.95"}
    of_train = [r for r in cuts if r["set"].startswith("inner:train")]
    for r in of_train:  # where the cut was fixed, it has what was required
        assert float(r["specificity"][:5]) >= float(r["required specificity"]) - 0.03


def test_a_calibration_error_stands_beside_its_floor(result: ProbeResult) -> None:
    [rows] = tables(clinical.calibration(View(result)))
    assert len(rows) == 6  # three sets, as fitted and calibrated
    record = next(
        r for r in result.results.leaderboard() if r.dataset == "outer" and r.features == result.chosen
    )
    row = next(r for r in rows if r["set"] == "outer" and r["probabilities"].startswith("calibrated"))
    assert float(row["ECE"]) == pytest.approx(record.platt["ece"].value, abs=6e-4)
    floor = record.calibration["platt"].ece_floor
    assert floor
    assert row["floor of the ECE"] == f"{floor.mean:.3f}, up to {floor.high:.3f}"
    assert float(row["slope"].split()[0]) == pytest.approx(record.calibration["platt"].slope.value, abs=6e-4)


def test_experts_and_models_are_scored_on_the_same_rows(result: ProbeResult) -> None:
    votes = result.results.votes[0]
    parts = clinical.human(View(result), votes)
    [rows] = tables(parts)
    line = votes.human
    assert line
    model = next(m for m in line.models if m.features == result.chosen)
    row = next(r for r in rows if r["feature set"] == result.chosen)
    assert float(row["balanced accuracy"][:5]) == pytest.approx(model.value.value, abs=6e-4)
    assert float(row["difference"].split()[0]) == pytest.approx(
        number(line.value.value) - number(model.value.value), abs=2e-3
    )
    assert f"{line.n_votes:,} votes on {line.n:,} patches" in parts[0]
    tied = f"{line.n_tied / line.n_votes:.1%} of the votes" in parts[0]
    assert tied == (line.n_tied > 0)


def test_a_value_without_interval_says_why(result: ProbeResult) -> None:
    changed = copy.deepcopy(result.document)
    for record in changed["scores"]:
        if record["dataset"] == "inner:test" and record["role"] == "refit":
            value = record["metrics"]["auroc"][0]
            record["metrics"]["auroc"] = [value, None, None]
            record["uncertainty"]["metrics"]["auroc"]["reason"] = "all Atypical rows are of one slide"
    text = markdown_report(ProbeResult(changed, result.predictions))
    line = next(one for one in text.splitlines() if one.startswith("No interval"))
    assert line.startswith("No interval (all Atypical rows are of one slide): inner:test, ")
    assert "auroc" in line


def test_the_page_leads_with_what_the_study_named(result: ProbeResult) -> None:
    systems = [
        SystemRow(name=m["features"], encoder="x", family="probe", state="done", chosen=m["features"])
        for m in result.document["models"]
    ]
    page = StudyPage(title="A study", about="", result=result, systems=tuple(systems))
    assert Board(View(result), systems).sets[0] == "inner:test"
    assert 'data-metric="balanced_accuracy"><head>' in page_html(page)
    named = page_html(dataclasses.replace(page, primary_set="outer", primary_metric="auroc"))
    assert 'data-metric="auroc"><head>' in named
    assert re.search(r'data-metric="auroc" aria-pressed="true"', named)
    assert not re.search(r'data-metric="balanced_accuracy" aria-pressed="true"', named)
    assert "Primary, as the study file says: <b>AUROC</b> on <b>outer</b>" in named
    heads = re.findall(r'<th scope="col"[^>]*><button type="button">([^<]+)</button>', named)
    assert heads[2] == "outer"
    # the rows are sorted by it
    scores = (r for r in result.results.leaderboard() if r.dataset == "outer")
    value = {r.features: number(r.estimate("auroc").value) for r in scores}
    order = re.findall(r'<tr data-family="probe" data-state="done"><th scope="row">([^ <]+)', named)
    assert order == sorted(order, key=lambda n: -value[n])
    assert "has no scores here" in page_html(dataclasses.replace(page, primary_set="atnorm-md"))


def test_a_primary_set_or_metric_that_is_none_is_refused(tmp_path: Any) -> None:
    file = tmp_path / "study.toml"
    start = 'name = "s"\ntitle = "S"\ntrain = "ami-br"\ntests = ["atnorm-br"]\n'
    system = '[[system]]\nname = "a"\nencoder = "uni"\n'
    file.write_text(start + 'primary_set = "atnorm-md"\nprimary_metric = "auc"\n' + system)
    with pytest.raises(InvalidRequest, match="did you mean 'auroc'") as error:
        load_study(file)
    assert "primary_set 'atnorm-md' is of none of the study's data sets (ami-br, atnorm-br)" in str(
        error.value
    )
    file.write_text(start + 'primary_set = "ami-br:test"\nprimary_metric = "auroc"\n' + system)
    assert load_study(file).primary_set == "ami-br:test"


def test_results_without_these_records_have_no_such_sections(result: ProbeResult) -> None:
    """As fine-tuned models, and results of an older version."""
    document = copy.deepcopy(result.document)
    for record in document["scores"]:
        for key in (
            "calibration",
            "calls",
            "at_specificity",
            "net_benefit",
            "between_domains",
            "uncertainty",
        ):
            record.pop(key, None)
    for votes in document["votes"]:
        votes.pop("human", None)
    document.pop("precision")
    view = View(ProbeResult(document, result.predictions))
    for section in (
        clinical.calibration,
        clinical.operating_points,
        clinical.decision_curve,
        clinical.precision,
        clinical.between_domains,
    ):
        assert section(view) == []
    assert clinical.human(view, view.results.votes[0]) == []
    assert isinstance(markdown_report(view.result), str)
    assert np.isfinite(pd.DataFrame(view.result.scores())["value"].astype(float)).any()


def one_class(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["label"] == "Normal"]


def one_domain_with_both(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table["domain"] == table["domain"].iloc[0]) | (table["label"] == "Normal")]


def two_rows(table: pd.DataFrame) -> pd.DataFrame:
    return table.groupby("label").head(1)


def one_slide_of_the_rare_class(table: pd.DataFrame) -> pd.DataFrame:
    slide = table.loc[table["label"] == "Atypical", "group"].iloc[0]
    return table[(table["label"] == "Normal") | (table["group"] == slide)]


@pytest.mark.parametrize("bootstrap", [100, 0])
@pytest.mark.parametrize("rows", [one_class, one_domain_with_both, two_rows, one_slide_of_the_rare_class])
def test_sets_that_say_little_are_shown(study: Any, rows: Any, bootstrap: int) -> None:
    """Where a number is undefined, the table has a dash; nothing fails, and no interval is made up."""
    external = Manifest(study.external.header, rows(study.external.table), study.external.root)
    result = run_probe(
        train=study.train,
        tests=[external],
        bank=study.bank,
        encoders=["good", "poor"],
        C=[1e-2],
        folds=3,
        inner_folds=3,
        bootstrap=bootstrap,
        jobs=1,
        progress=False,
    )
    text = markdown_report(result)
    html = html_report(result)
    assert "nan" not in re.sub(r"[a-z]*nan[a-z]+|[a-z]+nan[a-z]*", "", text.lower())
    assert ">nan" not in html.lower()
    assert ">None<" not in html
    assert "| None" not in text
    for record in result.results.leaderboard():
        if record.dataset == "outer" and record.estimate("auroc").value is None:
            assert list(record.estimate("auroc")) == [None, None, None]
    if bootstrap == 0:
        assert all(r.estimate("auroc").low is None for r in result.results.leaderboard())

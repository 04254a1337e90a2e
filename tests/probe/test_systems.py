"""A merged result says what the single ones say, and compares systems by paired tests."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from patchbank.errors import InvalidRequest
from patchbank.probe.report.model import StudyPage, SystemRow
from patchbank.probe.report.published import beside_published, load_published
from patchbank.probe.report.study_tables import frame, markdown
from patchbank.probe.report.write import html_report
from patchbank.probe.results.files import SWEEP, ProbeResult
from patchbank.probe.results.merge import merge_systems
from patchbank.probe.results.scoring import Rows, mean_of_models
from patchbank.probe.run import run_probe
from scipy import stats
from scipy.special import expit
from sklearn.metrics import roc_auc_score

GRID = {"C": (1e-3, 1e-1), "folds": 3, "inner_folds": 2, "bootstrap": 200, "progress": False}


@pytest.fixture(scope="module")
def results(study) -> dict[str, ProbeResult]:  # type: ignore[no-untyped-def]
    common = {"train": study.train, "tests": [study.external], "bank": study.bank, **GRID}
    return {
        "Good": run_probe(features=["good/full/cls", "good/center:0.5/cls"], **common),
        "Poor": run_probe(features=["poor/full/cls"], **common),
        "Old": run_probe(features=["poor/full/cls"], solver="paper-sgd", **common),
        "Both": run_probe(features=["good/center:0.5/cls", "poor/full/cls"], **common),
    }


def scores_of(result: ProbeResult, features: str, role: str) -> list[dict[str, object]]:
    found = [r for r in result.document["scores"] if (r["features"], r["role"]) == (features, role)]
    return [{k: v for k, v in r.items() if k not in ("features", "role")} for r in found]


def test_the_scores_are_those_of_the_single_results(results: dict[str, ProbeResult]) -> None:
    merged = merge_systems({name: results[name] for name in ("Good", "Poor", "Old")})
    good = results["Good"]
    assert scores_of(merged, "Good", "oof") == scores_of(good, SWEEP, "oof"), "the nested choice"
    assert scores_of(merged, "Good", "refit") == scores_of(good, good.chosen, "refit")
    assert scores_of(merged, "Poor", "oof") == scores_of(results["Poor"], "poor/full/cls", "oof")
    assert scores_of(merged, "Old", "refit") == scores_of(results["Old"], "poor/full/cls", "ensemble")
    assert scores_of(merged, "Old", "validation")
    table = merged.predictions
    assert set(table["role"]) == {"oof", "refit", "validation"}
    assert not table.duplicated(["patch_id", "features"]).any()
    model = next(m for m in merged.document["models"] if m["features"] == "Good")
    assert model["chosen"] == good.chosen
    assert model["fits"]["fits"] == sum(m["fits"]["fits"] for m in good.document["models"])
    assert merged.document["fold_means"]["Good"] == good.document["fold_means"][good.chosen]
    board = merged.results.leaderboard()
    assert {r.features for r in board if r.dataset == "outer"} == {"Good", "Poor", "Old"}


def test_paired_differences_are_those_of_one_sweep_over_both(results: dict[str, ProbeResult]) -> None:
    both = results["Both"]
    good = results["Good"]
    assert good.chosen == "good/center:0.5/cls", "the view with the stronger signal"
    merged = merge_systems({"Good": good, "Poor": results["Poor"]})

    def pairs(result: ProbeResult, a: str, b: str) -> list[dict[str, object]]:
        kept = ("dataset", "metric", "test", "difference", "low", "high", "p", "p_holm")
        found = [c for c in result.document["comparisons"] if (c["a"], c["b"], c["role"]) == (a, b, "refit")]
        return [{k: c[k] for k in kept} for c in found]

    ours = pairs(merged, "Good", "Poor")
    theirs = pairs(both, "good/center:0.5/cls", "poor/full/cls")
    assert len(ours) == 6, "two sets: paired on two metrics, and DeLong"
    for one, other in zip(ours, theirs, strict=True):
        for key, value in one.items():
            wanted = other[key] if isinstance(value, str) else pytest.approx(other[key], abs=1e-9)
            assert value == wanted, key


def test_the_best_on_the_folds_is_chosen_and_the_report_has_all(results: dict[str, ProbeResult]) -> None:
    merged = merge_systems({name: results[name] for name in ("Poor", "Good")})
    assert merged.chosen == "Good"
    page = html_report(merged, images=False)
    assert "Poor" in page


def test_a_merged_result_is_saved_and_read_like_any_other(
    results: dict[str, ProbeResult], tmp_path: Path
) -> None:
    merged = merge_systems({"Good": results["Good"], "Poor": results["Poor"]})
    again = ProbeResult.load(merged.save(tmp_path))
    assert again.document == merged.document


def test_an_evaluation_set_may_be_missing_in_one_system(study, results: dict[str, ProbeResult]) -> None:  # type: ignore[no-untyped-def]
    less = run_probe(train=study.train, bank=study.bank, features=["poor/full/cls"], **GRID)
    merged = merge_systems({"Good": results["Good"], "Less": less})
    assert {r.features for r in merged.results.leaderboard() if r.dataset == "outer"} == {"Good"}
    assert not [c for c in merged.document["comparisons"] if c["dataset"] == "outer"]
    assert [c for c in merged.document["comparisons"] if c["dataset"] == "inner:test"]


def test_results_that_cannot_be_compared_are_refused(study, results: dict[str, ProbeResult]) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidRequest, match="no result"):
        merge_systems({})
    other = run_probe(train=study.external, bank=study.bank, features=["poor/full/cls"], **GRID)
    with pytest.raises(InvalidRequest, match="'Other' was trained on outer"):
        merge_systems({"Good": results["Good"], "Other": other})


# --- the mean over fold models


def make_rows(seed: int, n: int = 240, slides: int = 30) -> tuple[Rows, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.4).astype(int)
    about = np.full(n, -1)
    group = rng.integers(0, slides, n).astype(str).astype(object)
    ids = np.arange(n).astype(str).astype(object)
    empty = np.full(n, "", object)
    rows = Rows("set", ids, y, group, empty, np.ones(n, bool), about, about, empty, empty)
    return rows, rng.standard_normal((n, 3)) + 0.8 * y[:, None]


def test_the_mean_of_fold_models_has_the_jackknife_error_of_the_mean(study, results) -> None:  # type: ignore[no-untyped-def]
    from patchbank.probe.config import ProbeConfig

    rows, scores = make_rows(0)
    config = ProbeConfig(features=("a",), bootstrap=200)
    found = mean_of_models(rows, scores, config=config)["auroc"]

    def mean_auroc(keep: np.ndarray) -> float:
        return float(np.mean([roc_auc_score(rows.y[keep], scores[keep, k]) for k in range(3)]))

    slides = np.unique(rows.group)
    left_out = np.array([mean_auroc(rows.group != slide) for slide in slides])
    g = len(slides)
    error = np.sqrt((g - 1) / g * ((left_out - left_out.mean()) ** 2).sum())
    value, low, high = np.array(list(found), float)
    assert value == pytest.approx(mean_auroc(np.ones(len(rows), bool)))
    assert found.standard_error == pytest.approx(error)
    # symmetric on the scale of the logit
    half = stats.t.ppf(0.975, found.degrees_of_freedom) * error / (value * (1 - value))
    middle = np.log(value / (1 - value))
    assert low == pytest.approx(expit(middle - half))
    assert high == pytest.approx(expit(middle + half))


def test_without_groups_to_resample_the_mean_has_no_interval() -> None:
    from patchbank.probe.config import ProbeConfig

    rows, scores = make_rows(1)
    found = mean_of_models(rows, scores, config=ProbeConfig(features=("a",), bootstrap=0))["auroc"]
    assert found.value is not None
    assert found.low is found.standard_error is None


# --- beside published figures


def published_entry(values: list[float], **about: str) -> dict[str, object]:
    place = {"system": "Theirs", "family": "probe", "dataset": "outer", **about}
    return {**place, "balanced_accuracy": values, "auroc": values}


def test_the_difference_to_a_published_figure_is_that_of_the_formula(results: dict[str, ProbeResult]) -> None:
    merged = merge_systems({"Old": results["Old"], "Good": results["Good"]})
    folds = [0.60, 0.62, 0.58, 0.61, 0.59]
    rows = beside_published(
        merged, [published_entry(folds)], {"Old": [("Theirs", "probe")], "Good": [("Nobody", "probe")]},
        datasets={"outer": "outer", "inner:test": "inner"},
    )  # fmt: skip
    assert [(r.system, r.dataset, r.metric) for r in rows] == [
        ("Old", "outer", "balanced_accuracy"),
        ("Old", "outer", "auroc"),
    ]
    row = rows[1]
    mean = merged.document["fold_means"]["Old"]["outer"]["auroc"]
    models = merged.document["fold_models"]["Old"]["outer"]["auroc"]
    q, p, s = mean["value"], np.mean(folds), mean["standard_error"]
    error = np.sqrt(
        s**2 * (1 + p * (1 - p) / (q * (1 - q)))
        + np.var(folds, ddof=1) / 5
        + np.var(models, ddof=1) / len(models)
    )
    assert row.refit is None  # a published recipe has models of folds only
    assert tuple(row.ours) == (mean["value"], mean["low"], mean["high"])
    assert row.published == pytest.approx(0.6)
    assert row.against == "Theirs, probe"
    assert row.difference == pytest.approx(q - p)
    half = stats.t.ppf(0.975, mean["degrees_of_freedom"]) * error
    assert (row.low, row.high) == pytest.approx((q - p - half, q - p + half))
    raw = []
    for metric in ("balanced_accuracy", "auroc"):
        mean = merged.document["fold_means"]["Old"]["outer"][metric]
        spread = np.var(merged.document["fold_models"]["Old"]["outer"][metric], ddof=1) / len(models)
        q, s = mean["value"], mean["standard_error"]
        error = np.sqrt(s**2 * (1 + p * (1 - p) / (q * (1 - q))) + np.var(folds, ddof=1) / 5 + spread)
        raw.append(2 * stats.t.sf(abs(q - p) / error, mean["degrees_of_freedom"]))
    # Holm over both metrics as one family: twice the smaller, and the larger not below it
    smaller = min(1, 2 * min(raw))
    expected = [smaller if p == min(raw) else max(smaller, p) for p in raw]
    assert [r.p_holm for r in rows] == pytest.approx(expected)
    for r in rows:
        assert r.p_holm is not None
        assert r.verdict == (
            "not significant" if r.p_holm >= 0.05 else "higher" if r.difference > 0 else "lower"
        )


@pytest.mark.parametrize(("value", "verdict"), [(0.05, "higher"), (0.999, "lower")])
def test_what_lies_far_apart_is_distinguished(
    results: dict[str, ProbeResult], value: float, verdict: str
) -> None:
    merged = merge_systems({"Good": results["Good"]})
    found = beside_published(
        merged, [published_entry([value] * 5)], {"Good": [("Theirs", "probe")]}, datasets={"outer": "outer"}
    )
    assert [row.verdict for row in found] == [verdict] * 2
    mean = merged.document["fold_means"]["Good"]["outer"]["auroc"]
    assert tuple(found[1].ours) == (mean["value"], mean["low"], mean["high"])  # like with like
    refit = next(r for r in results["Good"].results.leaderboard() if r.dataset == "outer")
    assert found[1].refit == refit.estimate("auroc")


def test_nothing_is_called_significant_where_no_slides_are_known(results: dict[str, ProbeResult]) -> None:
    document = merge_systems({"Good": results["Good"]}).document
    for entry in document["data"]:
        entry["groups_known"] = entry["dataset"] != "outer"
    merged = ProbeResult(document, pd.DataFrame())
    found = beside_published(
        merged, [published_entry([0.05] * 5)], {"Good": [("Theirs", "probe")]}, datasets={"outer": "outer"}
    )
    assert [row.verdict for row in found] == ["not assessed: slides unknown"] * 2
    assert all(row.p_holm is not None and row.p_holm < 0.05 for row in found)  # the p is shown, with no claim


def test_a_figure_without_a_standard_error_is_shown_without_a_verdict(
    results: dict[str, ProbeResult],
) -> None:
    document = merge_systems({"Good": results["Good"]}).document
    document["fold_means"]["Good"]["outer"]["auroc"] |= dict.fromkeys(("standard_error", "low", "high"))
    merged = ProbeResult(document, pd.DataFrame())
    entries = [published_entry([0.05] * 5)]
    found = beside_published(merged, entries, {"Good": [("Theirs", "probe")]}, datasets={"outer": "outer"})
    assert [row.verdict for row in found] == ["higher", "not assessed: no standard error"]
    assert found[1].p_holm is None
    assert found[1].low is None


def test_published_files_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "figures.toml"
    for text, message in (
        ("", "no \\[\\[published\\]\\] entry"),
        ("[[published]]\nsystem = 'a'\n", "entry 1 lacks auroc, balanced_accuracy, dataset, family"),
        (
            "[[published]]\nsystem='a'\nfamily='probe'\ndataset='b'\nauroc=[1.2]\nbalanced_accuracy=[0.5]\n",
            "entry 1, auroc: values between 0 and 1",
        ),
        ("a = None", "cannot be read"),
    ):
        file.write_text(text)
        with pytest.raises(InvalidRequest, match=message):
            load_published(str(file))
    with pytest.raises(InvalidRequest, match="cannot be read"):
        load_published("nobody-2020")


# --- tables


def test_the_tables_of_a_study_have_every_system(results: dict[str, ProbeResult]) -> None:
    merged = merge_systems({"Good": results["Good"], "Old": results["Old"]})
    figures = beside_published(
        merged, [published_entry([0.6] * 5)], {"Old": [("Theirs", "probe")]}, datasets={"outer": "outer"}
    )
    systems = (
        SystemRow(name="Good", encoder="good", family="probe", state="done", chosen="good/full/cls"),
        SystemRow(name="Old", encoder="poor", family="probe", state="done", chosen="poor/full/cls"),
        SystemRow(
            name="Gated", encoder="uni", family="lora", state="blocked", why="no login\n$ hf auth login"
        ),
    )
    page = StudyPage(
        title="A | study", about="About.", result=merged, systems=systems, published=tuple(figures)
    )
    table = frame(page)
    assert set(table["system"]) == {"Good", "Old", "Gated"}
    assert table.loc[table["system"] == "Gated", "why"].tolist() == ["no login\n$ hf auth login"]
    beside = table[table["published"].notna()]
    assert set(beside["metric"]) == {"auroc", "balanced_accuracy"}
    assert set(beside["system"]) == {"Old"}
    whole = {(r.features, r.dataset): r.estimate("auroc").value for r in merged.results.leaderboard()}
    for _, row in table[table["metric"] == "auroc"].iterrows():
        assert row["value"] == whole[row["system"], row["dataset"]]
    text = markdown(page)
    assert "* Gated: no login $ hf auth login" in text
    assert "| Old | outer | AUROC |" in text
    assert text.count("\n## ") >= 3
    empty = StudyPage(title="None", about="", result=None, systems=systems[2:])
    assert "Gated" in markdown(empty)
    assert pd.isna(frame(empty).iloc[0].get("value", np.nan))

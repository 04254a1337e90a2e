"""Systems over tasks: values are those of the results, intervals hold them, the page says what it may."""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest
from patchbank.errors import InvalidRequest
from patchbank.probe.report.tasks import frame, tasks_html, tasks_markdown
from patchbank.probe.results.files import ProbeResult
from patchbank.probe.results.tasks import Task, TaskBoard, board_of
from sklearn.metrics import cohen_kappa_score


@pytest.fixture(scope="module")
def tasks(make_class_result: Any) -> list[Task]:
    grades = make_class_result(["benign", "low", "high"], n=150)
    tissues = make_class_result([f"tissue {i}" for i in range(4)], ordered=False, n=150)
    about = {"grades": (grades, "elsewhere", "kappa"), "tissues": (tissues, "elsewhere", "balanced_accuracy")}
    about["folds"] = (tissues, "grades", "auroc")
    return [Task(name=k, result=r, dataset=d, metric=m) for k, (r, d, m) in about.items()]


@pytest.fixture(scope="module")
def board(tasks: list[Task]) -> TaskBoard:
    return board_of(tasks, n_resamples=200)


def test_values_ranks_and_means_are_those_of_the_results(board: TaskBoard, tasks: list[Task]) -> None:
    kappa = board.values["grades"]["good/full/cls"].value
    rows = tasks[0].result.predictions
    rows = rows[(rows["dataset"] == "elsewhere") & (rows["features"] == "good/full/cls")]
    codes = [rows[c].astype(str).map({"benign": 0, "low": 1, "high": 2}) for c in ("label", "call")]
    assert kappa == pytest.approx(cohen_kappa_score(*codes, weights="quadratic"))
    for standing in board.standings:
        values = [board.values[task.name][standing.system].value for task in tasks[1:]]  # kappa is no share
        assert standing.mean.value == pytest.approx(np.mean(np.array(values, float)))
        value, low, high = np.array(list(standing.mean), float)
        assert low < value < high
    assert [s.system for s in board.standings] == ["good/full/cls", "poor/full/cls"]
    assert [s.rank.value for s in board.standings] == [1, 2]
    assert [s.first for s in board.standings] == [1, 0]
    assert board.standings[1].below == ("good/full/cls",)
    assert board.critical_difference == pytest.approx(1.960 * np.sqrt(6 / 18), abs=1e-3)
    assert board.friedman_p == 0


def test_a_system_without_a_task_has_values_and_no_rank(tasks: list[Task]) -> None:
    results = tasks[1].result.results
    scores = [s for s in results.scores if s.features == "good/full/cls"]
    lacking = ProbeResult(results.model_copy(update={"scores": scores}), tasks[1].result.predictions)
    board = board_of([tasks[0], dataclasses.replace(tasks[1], result=lacking)], n_resamples=50)
    assert [s.system for s in board.standings] == ["good/full/cls"]
    assert "poor/full/cls" in board.values["grades"]
    assert board.critical_difference is None
    text = tasks_markdown(board, title="t", about="", missing={})
    assert "Without all tasks, so neither ranked nor averaged: poor/full/cls." in text


def test_scores_of_different_patches_are_refused_by_name(tasks: list[Task]) -> None:
    table = tasks[0].result.predictions
    cut = table[(table["features"] != "poor/full/cls") | (table["patch_id"] != "elsewhere/000")]
    task = dataclasses.replace(tasks[0], result=ProbeResult(tasks[0].result.results, cut))
    with pytest.raises(InvalidRequest, match=r"task 'grades': .* scored on different patches of elsewhere"):
        board_of([task], n_resamples=10)
    with pytest.raises(InvalidRequest, match="no task with results"):
        board_of([])


def test_the_page_says_what_differs_on_these_tasks_and_on_others(board: TaskBoard) -> None:
    missing = {"third <b>": "the data set is missing"}
    page = tasks_html(
        board, title="T", about="Which?", missing=missing, pages={"grades": "grades/report.html"}, made_by="p"
    )
    for title in (
        "Systems over all tasks",
        "Critical difference",
        "Systems by tasks",
        "Each task",
        "Not run",
    ):
        assert f"<h2>{title}</h2>" in page
    assert "third &lt;b&gt;" in page
    assert '<a href="grades/report.html">' in page
    assert "Significantly below it (paired over groups" in page
    assert "over the 2 tasks whose metrics have one scale; grades has a part in the ranks alone" in page
    assert "Friedman&#39;s test" in page
    assert "Ranked significantly worse than good/full/cls" not in page, "CD is 1.13 with three tasks"
    assert "No difference" not in page
    assert "With 3 tasks, no difference of ranks among 2 systems can be significant." in page
    empty = tasks_html(None, title="T", about="", missing=missing, pages={}, made_by="p")
    assert "the data set is missing" in empty


def test_the_table_has_every_value(board: TaskBoard) -> None:
    table = frame(board)
    assert len(table) == 2 * 3 + 2 * 2
    one = table[(table["system"] == "poor/full/cls") & (table["task"] == "folds")].iloc[0]
    assert (one["metric"], one["value"]) == ("auroc", board.values["folds"]["poor/full/cls"].value)
    pd.testing.assert_index_equal(frame(None).columns, table.columns)

"""Pages and figures of more than two classes: they show the result's numbers, in the order of the classes."""

import base64
import csv
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from patchbank.probe.report import charts
from patchbank.probe.report.page import StudyPage, SystemRow, page_html
from patchbank.probe.report.sections import classes, gallery
from patchbank.probe.report.view import View
from patchbank.probe.report.write import html_report, markdown_report
from patchbank.probe.results.display import Table
from patchbank.probe.results.files import ProbeResult
from sklearn.metrics import auc, average_precision_score, confusion_matrix, roc_auc_score

GRADES = ["benign", "grade 1", "grade 2", "grade 3", "grade 4"]


@pytest.fixture(scope="module")
def result(make_class_result: Any, tmp_path_factory: pytest.TempPathFactory) -> ProbeResult:
    return make_class_result(GRADES, root=tmp_path_factory.mktemp("images"))


def test_the_confusion_matrix_is_that_of_the_predictions_in_the_order_of_the_classes(
    result: ProbeResult,
) -> None:
    view = View(result)
    for matrix in charts.confusions(view):
        rows = view.predicted(matrix.of, view.chosen)
        assert list(matrix.classes) == GRADES
        assert (matrix.counts == confusion_matrix(rows["label"], rows["call"], labels=GRADES)).all()
        assert np.allclose(np.nansum(matrix.shares, axis=1), 1)
    tables = [part for part in classes.confusion(view) if isinstance(part, Table)]
    assert tables[0].heads == ["label", "patches", *GRADES]
    rows = view.predicted("grades", view.chosen)
    right = int(((rows["label"] == "grade 2") & (rows["call"] == "grade 2")).sum())
    assert str(tables[0].rows[2][4][0]).startswith(f"{right} (")


def test_curves_have_the_areas_that_the_table_of_classes_says(result: ProbeResult) -> None:
    view = View(result)
    for dataset in view.sets:
        rows, record = view.scored(dataset, view.chosen), view.records[dataset, view.chosen]
        roc, pr = charts.class_roc(view, dataset), charts.class_precision_recall(view, dataset)
        for i, one in enumerate(record.classes):
            y = rows["label"] == one.label
            ranking = rows[f"ranking_{one.label}"]
            assert auc(*map(np.asarray, (roc.parts[i].x, roc.parts[i].y))) == pytest.approx(
                roc_auc_score(y, ranking)
            )
            assert one.estimate("auroc").value == pytest.approx(roc_auc_score(y, ranking))
            x, precision = np.asarray(pr.parts[i].x), np.asarray(pr.parts[i].y)
            area = float((np.diff(x) * precision[1:]).sum())
            assert area == pytest.approx(average_precision_score(y, ranking))
            assert f"{one.label}: AUROC" in roc.parts[i].label
            assert roc.parts[i].series == GRADES.index(one.label)


def test_the_page_names_what_two_classes_have_only_where_there_are_two(result: ProbeResult) -> None:
    page, text = html_report(result), markdown_report(result)
    for title in ("Confusion matrix", "Classes", "Curves", "Calibration", "Domains", "Most confident errors"):
        assert f"<h2>{title}</h2>" in page, title
    for title in ("Threshold", "Operating points", "Decision curve"):
        assert f"<h2>{title}</h2>" not in page, title
    assert "tell 5 classes of patches from each other (benign, grade 1" in text
    assert "chance level is 0.200" in text
    assert "kappa, quadratic weights" in text
    assert "The classes are in their order." in text
    assert "macro AUROC" in page
    assert "None" not in re.sub(r'href="[^"]+"', "", page)


def test_a_class_that_a_set_lacks_is_said(make_class_result: Any) -> None:
    result = make_class_result([f"class {i}" for i in range(9)], ordered=False, lacking="class 3")
    text = markdown_report(result)
    assert "No patch of elsewhere is class 3: means over the classes are undefined there." in text
    assert "quadratic" not in text
    view = View(result)
    assert view.records["elsewhere", view.chosen].estimate("balanced_accuracy").value is None
    drawn = [part.series for part in charts.class_roc(view, "elsewhere").parts]
    assert drawn == [0, 1, 2, 4, 5, 6, 7, 8, None]
    systems = tuple(
        SystemRow(name=m.features, encoder="e", family="probe", state="done") for m in result.results.models
    )
    page = page_html(StudyPage(title="t", about="", result=result, systems=systems, primary_metric="kappa"))
    assert 'data-metric="kappa"' in page
    assert 'class="swatch s1"' in page, "the eighth class has the first colour in another shape"


def test_confused_patches_are_shown_by_pair_with_the_probability_of_the_call(result: ProbeResult) -> None:
    view = View(result)
    rows = view.predicted("grades", view.chosen)
    first = view.records["grades", view.chosen].confused[0]
    html = "".join(map(str, gallery.confident_errors(view)))
    title = f"{first.label}, called {first.called}"
    cards = re.search(rf"<h4>{title}</h4>(.*?)<h[34]", html, re.DOTALL)
    assert cards
    names = re.findall(r"<br>(\d{3})<br>", cards[1])
    assert len(names) == first.rows
    shown = rows[rows["patch_id"].str[-3:].isin(names)]
    assert set(shown["label"]) == {first.label}
    assert set(shown["call"]) == {first.called}
    p = [float(v) for v in re.findall(r"p = ([\d.]+)", cards[1])]
    assert p == sorted(p, reverse=True)
    assert p[0] == pytest.approx(shown[f"probability_{first.called}"].max(), abs=0.006)
    assert html.count("data:image/jpeg") == len(re.findall("<figure", html))


def test_tables_download_as_csv_with_numbers_apart_and_no_formula(result: ProbeResult) -> None:
    page = html_report(result)
    files = re.findall(r'download="([\w-]+\.csv)" href="data:text/csv;base64,([^"]+)"', page)
    assert len({name for name, _ in files}) == len(files) > 8
    content = dict(files)
    rows = list(csv.reader(io.StringIO(base64.b64decode(content["results-1.csv"]).decode())))
    at = rows[0].index("macro AUROC")
    assert rows[0][at : at + 3] == ["macro AUROC", "macro AUROC: low", "macro AUROC: high"]
    values = [float(v) for v in rows[1][at : at + 3]]
    estimate = result.results.leaderboard()[0].estimate("auroc")
    assert values == pytest.approx([v for v in estimate if v is not None], abs=5e-4)
    assert Table(["=a", "b"], [["@x", "1.0 [0.5, 2.0]"]]).csv() == "'=a,b,b: low,b: high\n'@x,1.0,0.5,2.0\n"
    assert Table(["a", "b"], []).csv() == "a,b\n"


def test_predictions_and_settings_are_in_the_page(result: ProbeResult) -> None:
    page = html_report(result)
    (content,) = re.findall(r'download="predictions.parquet" href="data:[^,]+,([^"]+)"', page)
    table = pd.read_parquet(io.BytesIO(base64.b64decode(content)))
    pd.testing.assert_frame_equal(table, result.predictions)
    assert "@software{patchbank," in page
    assert 'download="settings.toml"' in page


def test_figures_of_classes(result: ProbeResult, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from patchbank.probe.report.figures import write_figures

    names = {file.stem for file in write_figures(result, tmp_path, formats=["svg"])}
    for dataset in ("grades", "elsewhere"):
        for kind in ("confusion-matrix", "roc", "precision-recall", "calibration", "systems-kappa"):
            assert f"{kind}-{dataset}" in names
    assert not any(name.startswith("decision") for name in names)
    text = (tmp_path / "confusion-matrix-grades.svg").read_text()
    for name in GRADES:
        assert text.count(f">{name}<") == 2


def test_experts_stand_beside_the_chosen_system(result: ProbeResult) -> None:
    model = {"role": "oof", "value": [0.6, 0.5, 0.7], "p": 0.0004}
    models = [
        model | {"features": "good/full/cls", "difference": [-0.1, -0.2, -0.01]},
        model | {"features": "poor/full/cls", "difference": [0.3, 0.1, 0.4]},
    ]
    expert = {"dataset": "grades", "expert": "expert_2", "n": 200, "n_groups": 12, "models": models}
    expert |= {"metrics": {"kappa": [0.7, 0.6, 0.8], "balanced_accuracy": [0.5, 0.4, 0.6]}}
    changed = ProbeResult({**result.document, "experts": [expert]}, result.predictions)
    text = markdown_report(changed)
    assert "## Agreement of the experts" in text
    row = next(line for line in text.splitlines() if line.startswith("| grades, out of fold | expert_2"))
    assert "0.700 [0.600, 0.800] | 0.600 [0.500, 0.700] | -0.100 [-0.200, -0.010] | < 0.001" in row.replace(
        "&lt;", "<"
    )
    assert "## Agreement of the experts" not in markdown_report(result)


def test_a_choice_on_the_validation_split_is_said(result: ProbeResult) -> None:
    config = result.document["config"] | {"select_on": "val"}
    text = markdown_report(ProbeResult({**result.document, "config": config}, result.predictions))
    assert "chosen on the split 'val' of grades, not on folds" in text
    folds = result.document["config"] | {"select_on": "folds"}
    text = markdown_report(ProbeResult({**result.document, "config": folds}, result.predictions))
    assert "not on folds" not in text

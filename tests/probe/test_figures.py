"""Figures for papers: which there are, that they show the result's numbers, that no name does harm."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from patchbank.errors import InvalidRequest, MissingDependency, OutputError
from patchbank.probe.cli import probe_group
from patchbank.probe.report import charts
from patchbank.probe.report.figures import STYLE, draw, draw_matrix, write_figures
from patchbank.probe.report.view import View
from patchbank.probe.results.files import ProbeResult
from patchbank.probe.run import run_probe
from PIL import Image
from sklearn.metrics import auc

matplotlib = pytest.importorskip("matplotlib")

PER_SET = ("roc", "precision-recall", "calibration", "decision-curve")
PER_METRIC = ("auroc", "average-precision", "balanced-accuracy")


@pytest.fixture(scope="module")
def result(study: Any, tmp_path_factory: pytest.TempPathFactory) -> ProbeResult:
    """Two systems; of the external set two images are there twice, so that its figures are of fewer rows."""
    table = study.external.table.copy()
    table.loc[table.index[:2], "content_hash"] = table["content_hash"].iloc[2:4].to_numpy()
    external = type(study.external)(study.external.header, table, study.external.root)
    return run_probe(
        train=study.train,
        tests=[external],
        bank=study.bank,
        features=["good/full/cls", "poor/full/cls"],
        C=[1e-3, 1e-2, 1e-1],
        folds=3,
        inner_folds=3,
        domains="chosen",
        jobs=1,
        progress=False,
    )


def test_a_result_in_a_notebook(result: ProbeResult) -> None:
    board = result.leaderboard()
    assert list(board.columns[:4]) == ["dataset", "features", "role", "n"]
    lead = {(r.dataset, r.features): r.estimate("auroc") for r in result.results.leaderboard()}
    rows: Any = board.itertuples()
    for row in rows:
        assert (row.auroc, row.auroc_low, row.auroc_high) == tuple(lead[row.dataset, row.features])
    html = result._repr_html_()
    assert f"{board['auroc'][0]:.3f}" in html
    assert result.model.about.features == result.chosen


def test_the_figures_as_axes(result: ProbeResult) -> None:
    chart = charts.roc(View(result), "inner:test")
    axes = result.plot.roc("inner:test")
    assert axes.get_xlabel() == chart.xlabel
    drawn = [line.get_xydata().tolist() for line in axes.lines]
    assert all(np.column_stack([part.x, part.y]).tolist() in drawn for part in chart.parts)
    assert result.plot.roc().figure is not axes.figure
    plots = result.plot
    axes = [
        plots.precision_recall(),
        plots.calibration(),
        plots.decision(),
        plots.forest(),
        plots.differences("balanced_accuracy", "outer"),
        plots.choice(),
    ]
    assert all(isinstance(one, matplotlib.axes.Axes) and one.lines for one in axes)
    with pytest.raises(InvalidRequest, match="has no set 'x'; it has inner:train, inner:test, outer"):
        plots.roc("x")


def test_every_figure_is_written_and_named_for_what_it_shows(result: ProbeResult, tmp_path: Path) -> None:
    result.save(tmp_path / "results")
    run = CliRunner().invoke(
        probe_group,
        ["report", str(tmp_path / "results"), "--figures", str(tmp_path / "figures"), "--format", "svg"],
    )
    assert run.exit_code == 0, run.output
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    for of in ("inner-train", "inner-test", "outer"):
        assert {f"{kind}-{of}" for kind in PER_SET} <= names
        assert {f"systems-{metric}-{of}" for metric in PER_METRIC} <= names
        assert f"differences-auroc-{of}" in names
    assert {"choice-C", "domain-matrix-good-full-cls"} <= names
    assert f"Wrote {len(names)} files" in run.output


def test_a_picture_has_the_size_of_a_column_and_colours(result: ProbeResult, tmp_path: Path) -> None:
    with matplotlib.rc_context(STYLE):
        draw(charts.roc(View(result), "outer")).savefig(tmp_path / "roc.png")
    with Image.open(tmp_path / "roc.png") as image:
        assert image.width == int(85 / 25.4 * 600)  # 85 mm at 600 dpi
        assert np.asarray(image.convert("RGB").reduce(4)).std(axis=2).max() > 50


@pytest.mark.parametrize(
    ("form", "start", "text"), [("pdf", b"%PDF-", b"/FontFile2"), ("svg", b"<?xml", b"AUROC")]
)
def test_files_are_the_same_each_time_and_text_stays_text(
    result: ProbeResult, tmp_path: Path, form: str, start: bytes, text: bytes
) -> None:
    view = View(result)
    chart = charts.roc(view, "outer")
    made = []
    for _ in range(2):
        with matplotlib.rc_context(STYLE):
            draw(chart).savefig(tmp_path / "x", format=form, metadata=dict.fromkeys(_dates(form)))
        made.append((tmp_path / "x").read_bytes())
    assert made[0] == made[1]
    assert made[0].startswith(start)
    assert text in made[0]


def _dates(form: str) -> list[str]:
    return ["CreationDate"] if form == "pdf" else ["Date"]


def test_curves_are_of_the_rows_that_their_legend_is_of(result: ProbeResult) -> None:
    view = View(result)
    assert view.records["outer", "good/full/cls"].deduplicated
    for dataset in view.sets:
        chart = charts.roc(view, dataset)
        for part, name in zip(chart.parts[:-1], view.series, strict=True):
            value = view.records[dataset, name].estimate("auroc").value
            assert auc(np.asarray(part.x), np.asarray(part.y)) == pytest.approx(value, abs=1e-12)
            assert f"AUROC {value:.3f} [" in part.label
        assert f"{view.records[dataset, view.chosen].n:,} patches" in chart.note


def test_a_figure_draws_what_the_chart_says(result: ProbeResult) -> None:
    view = View(result)
    with matplotlib.rc_context(STYLE):
        for chart in charts.charts_of(view):
            axes = draw(chart).axes[0]
            drawn = [np.asarray(line.get_xydata()) for line in axes.lines]
            for part in chart.parts:
                points = np.column_stack([part.x, part.y])
                assert any(len(d) == len(points) and np.allclose(d, points) for d in drawn), chart.kind
            assert axes.get_xlim() == pytest.approx(chart.x)
            assert axes.get_ylim() == pytest.approx(chart.y)
        (matrix,) = charts.matrices(view)
        shown = [text.get_text() for text in draw_matrix(view, matrix).axes[0].texts]
    found = result.document["domains"]["good/full/cls"]["matrix"]
    values = [
        f"{v:.2f}" + (f"\n{low:.2f}-{high:.2f}" if low is not None else "")
        for row, ends in zip(found["auroc"], found["intervals"]["auroc"], strict=True)
        for v, (low, high) in zip(row, ends, strict=True)
        if v is not None
    ]
    assert "\n" in "".join(values)
    assert shown[: len(values)] == values
    assert shown[len(values) :] == ["inner:train", "inner:test", "outer"]


def test_long_names_are_wrapped_not_cut(result: ProbeResult) -> None:
    chart = charts.roc(View(result), "outer")
    for name in ("dinov2-s/center:0.5/cls+mean ★: AUROC 0.785 [0.738, 0.825]", "W" * 120, "W " * 60):
        parts = [dataclasses.replace(part, label=name) for part in chart.parts]
        with matplotlib.rc_context(STYLE):
            figure = draw(dataclasses.replace(chart, parts=parts, note=name))
            figure.set_dpi(STYLE["savefig.dpi"])
            figure.draw_without_rendering()
        (legend,) = figure.legends
        assert "".join(legend.texts[0].get_text().split()) == "".join(name.split())
        assert legend.get_window_extent().x1 <= figure.bbox.x1
        assert legend.get_window_extent().y0 >= 0
        assert figure.axes[0].get_window_extent().height > figure.bbox.width / 2


def test_names_do_no_harm(result: ProbeResult, tmp_path: Path) -> None:
    """No path, no formula, no two sets in one file, no control character."""
    swap = {"outer": "../a$\\frac{1}{0}$", "inner:test": "../a/$\\frac{1}{0}$", "poor/full/cls": "x\x1b[1m$_"}

    def changed(value: Any) -> Any:
        if isinstance(value, dict):
            return {changed(k): changed(v) for k, v in value.items()}
        if isinstance(value, list):
            return [changed(v) for v in value]
        return swap.get(value, value) if isinstance(value, str) else value

    table = result.predictions.copy()
    for column in ("dataset", "features"):
        table[column] = table[column].astype(object).map(changed)
    files = write_figures(ProbeResult(changed(result.document), table), tmp_path / "out", formats=["svg"])
    assert {path.parent for path in files} == {tmp_path / "out"}
    assert len(set(files)) == len(files) == 3 * (len(PER_SET) + len(PER_METRIC) + 2) + 2
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+\.svg", path.name) for path in files)
    assert "$\\frac{1}{0}$" in "".join(path.read_text() for path in files)


def test_what_cannot_be_done_is_a_sentence(
    result: ProbeResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidRequest, match="pdf, svg, png, not as 'eps'"):
        write_figures(result, tmp_path, formats=["eps"])
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_figures(result, tmp_path / "file", formats=["svg"])
    for arguments, message in ((["r"], "--figures"), (["r", "-o", "x.md", "--format", "pdf"], "--figures")):
        run = CliRunner().invoke(probe_group, ["report", *arguments])
        assert run.exit_code == 2
        assert message in run.output
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingDependency, match=r"pip install 'patchbank\[figures\]'"):
        write_figures(result, tmp_path)

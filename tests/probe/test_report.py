"""Reports: every section is there, the file needs nothing else, chromium shows it without a complaint."""

import errno
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from patchbank.datasets.images import content_hash
from patchbank.datasets.manifest import Manifest
from patchbank.datasets.thumbnails import thumbnails_of
from patchbank.errors import InvalidRequest, OutputError, ProbeError
from patchbank.probe.cli import probe_group
from patchbank.probe.report.charts import Chart, Part, pr_points, roc_points, unit_ticks
from patchbank.probe.report.plots import svg
from patchbank.probe.report.write import html_report, markdown_report, write_report
from patchbank.probe.results.files import ProbeResult
from patchbank.probe.run import run_probe
from PIL import Image
from sklearn.metrics import auc, average_precision_score, roc_auc_score

from .conftest import probe_two

SECTIONS = (
    "Results",
    "Curves",
    "Threshold",
    "Calibration",
    "Operating points",
    "Decision curve",
    "How the penalty was chosen",
    "Models of the folds",
    "Differences between feature sets",
    "Domains",
    "Agreement of the experts",
    "Most confident errors",
    "Data and leaks",
    "Provenance and cost",
    "How to reproduce",
)


@pytest.fixture(scope="module")
def result(study: Any, tmp_path_factory: pytest.TempPathFactory) -> ProbeResult:
    """A study whose images are there for the train manifest and not for the external one."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    hashes = []
    for path in study.train.table["path"]:
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / path)
        hashes.append(content_hash(pixels).hex())
    train = Manifest(study.train.header, study.train.table.assign(content_hash=hashes), root)
    bank = tmp_path_factory.mktemp("report-bank")
    return probe_two(train, [study.external], bank)


def test_html_needs_nothing_else_and_has_every_section(result: ProbeResult) -> None:
    page = html_report(result)
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert "<script" not in page
    for title in SECTIONS:
        assert f"<h2>{title}</h2>" in page
    assert "data:image/jpeg;base64," in page
    assert "images could not be shown" in page  # those of the external set
    assert re.search(r"<span class=own[^>]*>0?\.\d\d</span><small>\[0\.\d\d, [01]\.\d\d\]</small>", page)
    assert "prefers-color-scheme:dark" in page
    assert html_report(result, images=False).count("data:image") == 0


def test_only_images_that_were_scored_are_embedded(result: ProbeResult, tmp_path: Path) -> None:
    """Results from elsewhere may name any file; what is shown has the pixels that the rows were scored on."""
    private = np.full((8, 8, 3), 7, np.uint8)
    Image.fromarray(private).save(tmp_path / "private.png")
    root = Path(result.document["data"][0]["root"])
    for path in ("private.png", "../private.png", str(tmp_path / "private.png")):
        table = result.predictions.assign(path=path)
        data = [{**one, "root": str(tmp_path)} for one in result.document["data"]]
        assert "data:image" not in html_report(ProbeResult({**result.document, "data": data}, table)), path
    known = result.predictions.iloc[0]
    assert thumbnails_of(str(root), [(known["path"], known["content_hash"])], 8) != [None]
    for path in (f"../{root.name}/{known['path']}", str(root / known["path"])):
        assert thumbnails_of(str(root), [(path, known["content_hash"])], 8) == [None], (
            "outside, whatever it is"
        )


def test_a_threshold_stands_beside_a_probability_of_its_scale(result: ProbeResult) -> None:
    page = html_report(result)
    table = result.predictions
    shown = 0
    for title, called in (("Atypical, called Normal", 0), ("Normal, called Atypical", 1)):
        for block in re.findall(rf"<h4>{title}</h4>(.*?)<h[234]", page, re.DOTALL):
            for p, name in re.findall(r"<b>p = ([\d.]+)</b><br>(\d+)<br>", block):
                rows = table[(table["patch_id"].str.endswith(name)) & (table["features"] == result.chosen)]
                near = rows[(rows["probability"] - float(p)).abs() < 0.006]
                assert (near["call"] == called).any()
                assert ((near["probability"] >= near["threshold"]) == (near["call"] == 1)).all()
                shown += 1
    assert shown >= 6


def test_names_are_escaped(result: ProbeResult) -> None:
    changed = ProbeResult(
        {**result.document, "folds": {"name": "<b>x", "n_splits": 3, "made_with": ""}}, result.predictions
    )
    assert "<b>x" not in html_report(changed)
    assert "&lt;b&gt;x" in html_report(changed)


def test_markdown_has_the_same_numbers(result: ProbeResult) -> None:
    text = markdown_report(result)
    for title in SECTIONS:
        assert (f"## {title}" in text) == (title != "Most confident errors")
    for record in result.results.leaderboard():
        assert f"{record.estimate('auroc').value:.3f}" in text
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|---")]
    assert len(widths) >= 8
    assert "<" not in text.replace("< 0.001", "")


def test_the_command_writes_both_kinds_and_refuses_others(result: ProbeResult, tmp_path: Path) -> None:
    result.save(tmp_path / "out")
    for name in ("report.html", "report.md"):
        run = CliRunner().invoke(probe_group, ["report", str(tmp_path / "out"), "-o", str(tmp_path / name)])
        assert run.exit_code == 0, run.output
        assert (tmp_path / name).stat().st_size > 3000
    with pytest.raises(InvalidRequest, match=r"\.html or \.md"):
        write_report(result, tmp_path / "report.pdf")


def test_results_that_were_changed_or_mixed_are_a_sentence(result: ProbeResult, tmp_path: Path) -> None:
    folder = result.save(tmp_path / "out")
    file = folder / "results.json"
    whole = json.loads(file.read_text())
    old = write_report(folder, tmp_path / "report.html").read_bytes()

    def refused(message: str) -> None:
        with pytest.raises(ProbeError, match=message):
            write_report(folder, tmp_path / "report.html")
        assert (tmp_path / "report.html").read_bytes() == old

    changed = [
        {**whole, key: value} for key in whole for value in (3, None, "x", [], {}) if whole[key] != value
    ]
    changed += [{k: v for k, v in whole.items() if k != key} for key in whole]
    for document in [*changed, [], 3]:
        file.write_text(json.dumps(document))
        refused(r"results\.json")
    assert len(changed) > 60
    for text in ("", "{", "[" * 100_000, json.dumps(whole).replace("0.", "NaN, 0.", 1)):
        file.write_text(text)
        refused(r"results\.json")
    file.write_text(json.dumps(whole))
    other = ProbeResult(result.document, result.predictions.iloc[1:], result.probes).save(tmp_path / "other")
    for name in ("predictions.parquet", "probe.json", "probe.safetensors"):
        mine = (folder / name).read_bytes()
        (folder / name).write_bytes(b"x" + (other / name).read_bytes())
        refused(rf"{name} is not the one that results\.json was written with")
        (folder / name).write_bytes(mine)
    assert write_report(folder, tmp_path / "report.html").read_bytes() == old


def test_a_report_that_cannot_be_written_leaves_the_old_one(
    result: ProbeResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_report(result, tmp_path / "report.html")
    old = file.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match=r"report\.html cannot be written: No space left on device"):
            write_report(result, file)
    assert file.read_bytes() == old
    with pytest.raises(OutputError, match="cannot be written"):
        write_report(result, file / "below" / "report.html")


def test_one_feature_set_without_intervals_is_enough(study: Any) -> None:
    alone = run_probe(
        train=study.external, bank=study.bank, encoders=["good"], C=[0.1], folds=3, inner_folds=3,
        bootstrap=0, jobs=1, progress=False,
    )  # fmt: skip
    page = html_report(alone)
    assert "<h2>Results</h2>" in page
    assert "Differences" not in page


def test_curves_have_the_areas_of_the_scores() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(200) < 0.3).astype(int)
    p = np.round(rng.random(200) + 0.3 * y, 1)  # with ties
    assert auc(*roc_points(y, p)) == pytest.approx(roc_auc_score(y, p))
    recall, precision = pr_points(y, p)
    assert np.sum(np.diff(recall) * precision[1:]) == pytest.approx(average_precision_score(y, p))


def test_plot_coordinates() -> None:
    line = Part(x=(0, 10), y=(0, 1), series=0, low=(0.5, np.nan), high=(1, np.nan))
    chart = Chart(kind="k", of="o", title="a & b", xlabel="x", ylabel="y", x=(0, 10), parts=[line])
    drawn = svg(chart, width=120, height=110, left=10, right=10, bottom=20)
    assert 'points="10.0,90.0 110.0,10.0"' in drawn
    assert '<line x1="10.0" x2="10.0" y1="50.0" y2="10.0" stroke="var(--s0)"' in drawn
    assert drawn.count('stroke="var(--s0)"') == 2  # no bar where there is no interval
    assert "a &amp; b" in drawn
    assert unit_ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert unit_ticks(-0.013, 0.021) == [-0.01, 0, 0.01, 0.02]


def test_chromium_shows_it(result: ProbeResult, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("needs chromium")
    page = write_report(result, tmp_path / "report.html")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--enable-logging=stderr",
    ]
    base = [browser, *flags, f"--user-data-dir={tmp_path / 'profile'}"]
    dom = subprocess.run([*base, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=600)
    assert dom.stdout.count("<h2>") == len(SECTIONS)
    assert dom.stdout.count("<svg") > 12
    assert dom.stdout.count('<i class="w"') > 20
    assert "CONSOLE" not in dom.stderr
    shot = tmp_path / "shot.png"
    subprocess.run(
        [*base, f"--screenshot={shot}", "--window-size=1180,3000", page.as_uri()],
        capture_output=True,
        timeout=600,
        check=True,
    )
    assert shot.stat().st_size > 50_000

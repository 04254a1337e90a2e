"""Studies of several tasks: planned, run, run again, with a data set missing."""

import json
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from patchbank.cli import patchbank
from patchbank.datasets.declarations import load_declaration, names
from patchbank.datasets.synthetic import generate_manifests
from patchbank.errors import InvalidRequest
from patchbank.extract.registry import shipped_cards
from patchbank.probe.results.files import ProbeResult
from patchbank.steps import Places
from patchbank.study_file import OF_TARGETS, load_study
from patchbank.study_tasks import plan_tasks, run_tasks

CARD = (
    'id = "flat{0}"\nkind = "python"\nmodel = "torch.nn:Flatten"\nrevision = "1"\ndim = {1}\n'
    'tokens = "pooled"\nprecision = "fp32"\n[transform]\nsize = {0}\n'
)
STUDY = """
name = "tasks"
title = "Two sizes over tasks"
folds = 3
[probe]
C = [1e-4, 1e-2]
inner_folds = 2
bootstrap = 200
[[system]]
name = "Flat 8"
encoder = "flat8.toml"
[[system]]
name = "Flat 4"
encoder = "flat4.toml"
[[task]]
name = "elsewhere"
train = "data/synthetic-mitoses.toml"
tests = ["data/synthetic-external.toml"]
on = "synthetic-external"
metric = "auroc"
[[task]]
name = "own test"
train = "data/synthetic-mitoses.toml"
[[task]]
name = "nowhere"
train = "data/synthetic-mitoses.toml"
on = "synthetic-mitoses:val"
[[task]]
name = "absent"
train = "bach"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    generate_manifests(tmp_path / "data", n=160)
    for size in (8, 4):
        (tmp_path / f"flat{size}.toml").write_text(CARD.format(size, 3 * size * size))
    (tmp_path / "tasks.toml").write_text(STUDY)
    return tmp_path / "tasks.toml"


def test_tasks_run_rank_and_a_second_run_does_nothing(file: Path) -> None:
    study, folder = load_study(file), file.parent
    where = Places(data=folder, bank=folder / "bank", out=folder / "out", trust_code=True, progress=False)
    plan = plan_tasks(study, where)
    assert not (folder / "out").exists()
    assert {step.title.partition(":")[0] for step in plan} == {"elsewhere", "own test", "nowhere", "absent"}
    assert [step.state for step in plan if step.title == "absent: bach"] == ["blocked"]

    lines: list[str] = []
    done = run_tasks(study, where, say=lines.append)
    assert not done.failed
    assert list(done.missing) == ["nowhere", "absent"]
    assert "bach" in done.missing["absent"]
    assert "task own test" in lines
    assert done.missing["nowhere"].startswith("on = 'synthetic-mitoses:val' is none of its evaluation sets")
    result = ProbeResult.load(folder / "out/elsewhere")
    wanted = {
        r.features: r.estimate("auroc").value
        for r in result.results.leaderboard()
        if r.dataset == "synthetic-external"
    }
    of_task = done.table[done.table["task"] == "elsewhere"].set_index("system")
    assert of_task["value"].to_dict() == pytest.approx(wanted)
    assert set(done.table[done.table["task"] == "own test"]["dataset"]) == {"synthetic-mitoses:test"}
    page = (folder / "out/report.html").read_text()
    assert '<a href="elsewhere/report.html">' in page
    assert "<b>absent</b>" in page
    assert (folder / "out/own-test/report.html").exists()

    again = run_tasks(study, where, say=lines.append)
    assert again.idle
    pd.testing.assert_frame_equal(again.table, done.table)
    command = ["run", str(file), "--data", str(folder), "--bank", str(where.bank), "-o", str(where.out)]
    answer = CliRunner().invoke(patchbank, [*command, "--trust-code"])
    assert answer.exit_code == 0, answer.output
    assert "Everything was cached" in answer.output
    assert "Tasks without results, and the page says why: nowhere, absent." in answer.output
    listed = CliRunner().invoke(patchbank, [*command, "--trust-code", "--json"])
    assert len(json.loads(listed.stdout)["results"]) == len(done.table)


def test_faults_of_tasks_are_told_at_once(tmp_path: Path) -> None:
    text = STUDY.replace('title = "Two', 'train = "bach"\ntitle = "Two').replace('"own test"', '"elsewhere"')
    text = text.replace('metric = "auroc"', 'metric = "aurok"\nsettings = { Q = 1 }')
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(InvalidRequest) as error:
        load_study(tmp_path / "s.toml")
    for fault in ("train: the study has [[task]]", "two tasks are called 'elsewhere'", "did you mean", "'Q'"):
        assert fault in str(error.value), fault
    (tmp_path / "s.toml").write_text(STUDY[: STUDY.index("[[task]]")])
    with pytest.raises(InvalidRequest, match="train is missing: name the data set"):
        load_study(tmp_path / "s.toml")


def test_a_plan_without_data_says_what_each_set_needs(tmp_path: Path) -> None:
    command = ["run", "patch-benchmarks", "--dry-run", "--data", str(tmp_path)]
    answer = CliRunner().invoke(patchbank, command)
    assert answer.exit_code == 0, answer.output
    for name in names():
        assert answer.output.count(f"patchbank datasets build {name} --root DIR") >= 1, name
        declared = load_declaration(name)
        assert declared.archives or declared.access, name
        if declared.archives:
            assert f"patchbank datasets fetch {name} --to DIR" in answer.output
        if declared.access:
            assert declared.access in answer.output
        assert declared.short_licence in answer.output
    assert f"blocked  data      bach: {tmp_path}/bach.toml does not exist (10.4 GB; CC-BY" in answer.output


def test_the_shipped_benchmarks_name_every_declared_set_and_every_card() -> None:
    study = load_study("patch-benchmarks")
    assert {system.encoder for system in study.systems} == set(shipped_cards())
    used = {name for task in study.tasks for name in (task.train, *task.tests)}
    assert used == set(names())
    of_numbers = {name for name in names() if load_declaration(name).target_count}
    assert {task.train for task in study.tasks if task.metric in OF_TARGETS} == of_numbers
    small = load_study("patch-benchmarks-small")
    assert {task.train for task in small.tasks} < used
    assert 3 <= len(small.tasks) <= 8
    assert {system.encoder for system in small.systems} < set(shipped_cards())

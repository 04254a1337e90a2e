"""Studies of several tasks: planned, run, run again, with a data set missing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from patchbank.cli import patchbank
from patchbank.datasets.declarations import load_declaration, names
from patchbank.datasets.manifest import Manifest
from patchbank.datasets.synthetic import generate_manifests
from patchbank.errors import InvalidRequest
from patchbank.extract.registry import shipped_cards
from patchbank.probe.results.files import ProbeResult
from patchbank.steps import Places
from patchbank.study_file import OF_TARGETS, load_study
from patchbank.study_tasks import plan_tasks, run_tasks
from PIL import Image
from scipy import stats
from sklearn import metrics

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


KINDS = """
name = "kinds"
title = "Two classes, three, grades, numbers"
folds = 2
[probe]
C = [1e-3, 1e-1]
components = 5
inner_folds = 2
bootstrap = 200
[[system]]
name = "Flat 8"
encoder = "flat8.toml"
[[system]]
name = "Flat 2"
encoder = "flat2.toml"
"""
METRICS = {"two": "auroc", "three": "balanced_accuracy", "grades": "kappa", "numbers": "pearson"}


@pytest.fixture
def kinds(tmp_path: Path) -> Path:
    """A study of the same images with four kinds of labels, all of them of the images' darkness."""
    whole = generate_manifests(tmp_path / "data", n=240)[0]
    random = np.random.default_rng(0)
    pixels = [np.asarray(Image.open(whole.path(i)).convert("L"), float) for i in range(len(whole))]
    darkness = np.array([-image.mean() for image in pixels])
    darkness += random.normal(0, darkness.std() / 2, len(darkness))
    bare = {"positive": "", "classes": ()}
    columns = ["patch_id", "path", "group", "split", "content_hash"]
    labels: dict[str, tuple[dict[str, Any], list[str]]] = {
        "two": ({"classes": ("pale", "dark"), "positive": "dark"}, ["pale", "dark"]),
        "three": ({"classes": ("dark", "middle", "pale")}, ["pale", "middle", "dark"]),
        "grades": ({"classes": ("1", "2", "3"), "ordered": True}, ["1", "2", "3"]),
        "numbers": ({"targets": ("darkness", "square")}, []),
    }
    text = KINDS
    for name, (about, of) in labels.items():
        table = whole.table[columns].copy()
        table["patch_id"] = table["patch_id"].str.replace(whole.header.name, name)
        if of:
            table["label"] = np.array(of)[pd.qcut(darkness, len(of), labels=False)]
        else:
            table["darkness"], table["square"] = darkness, darkness**2
        header = whole.header.replace(**{**bare, **about, "name": name})
        Manifest(header, table, whole.root).save(tmp_path / f"data/{name}.toml")
        text += f'[[task]]\nname = "{name}"\ntrain = "data/{name}.toml"\non = "{name}:test"\n'
        text += f'metric = "{METRICS[name]}"\n'
    for size in (8, 2):
        (tmp_path / f"flat{size}.toml").write_text(CARD.format(size, 3 * size * size))
    (tmp_path / "kinds.toml").write_text(text)
    return tmp_path / "kinds.toml"


def by_scikit_learn(task: str, rows: pd.DataFrame) -> float:
    """The metric of a task from a table of predictions."""
    if task == "two":
        return metrics.roc_auc_score(rows["label"].astype(int), rows["score"])
    if task == "numbers":
        pairs = [(f"label_{name}", f"prediction_{name}") for name in ("darkness", "square")]
        return float(np.mean([np.corrcoef(rows[a], rows[b])[0, 1] for a, b in pairs]))
    if task == "three":
        sensitive = [(rows["call"] == one)[rows["label"] == one].mean() for one in ("dark", "middle", "pale")]
        return float(np.mean(sensitive))
    return metrics.cohen_kappa_score(rows["label"], rows["call"], weights="quadratic")


@pytest.mark.slow
def test_tasks_of_all_kinds_of_labels_are_ranked_as_an_independent_computation(kinds: Path) -> None:
    study, folder = load_study(kinds), kinds.parent
    where = Places(data=folder, bank=folder / "bank", out=folder / "out", trust_code=True, progress=False)
    done = run_tasks(study, where, say=lambda _: None)
    assert not done.failed
    assert not done.missing
    systems, draws, random = ["Flat 8", "Flat 2"], 300, np.random.default_rng(5)
    values, drawn = np.empty((4, 2)), np.empty((draws, 4, 2))
    for i, task in enumerate(METRICS):
        table = ProbeResult.load(folder / "out" / task).predictions
        table = table[(table["dataset"] == f"{task}:test") & (table["role"] == "refit")]
        tables = [table[table["features"] == name].reset_index(drop=True) for name in systems]
        values[i] = [by_scikit_learn(task, rows) for rows in tables]
        of_group = list(tables[0].groupby("group", observed=True).indices.values())
        for b in range(draws):
            at = np.concatenate([of_group[k] for k in random.integers(0, len(of_group), len(of_group))])
            drawn[b, i] = [by_scikit_learn(task, rows.iloc[at]) for rows in tables]
    of_task = done.table.dropna(subset=["task"]).query("task != ''")
    for i, task in enumerate(METRICS):
        found = of_task[of_task["task"] == task].set_index("system")["value"]
        assert found[systems].tolist() == pytest.approx(values[i]), task

    one_scale = [i for i, metric in enumerate(METRICS.values()) if metric in ("auroc", "balanced_accuracy")]
    shown = done.table[done.table["task"].fillna("") == ""].set_index(["metric", "system"])
    for what, of in (
        ("average rank", lambda scores: stats.rankdata(-scores, axis=-1).mean(axis=-2)),
        ("mean score", lambda scores: scores[..., one_scale, :].mean(axis=-2)),
    ):
        whole = shown.loc[what].loc[systems]
        assert whole["value"].tolist() == pytest.approx(of(values)), what
        known = drawn[~np.isnan(drawn).any(axis=(1, 2))]
        ends = np.quantile(of(known), [0.025, 0.975], axis=0)
        spread = of(known).std(axis=0)
        assert np.abs(whole["low"] - ends[0]).to_numpy() == pytest.approx(0, abs=float(0.8 * spread.max()))
        assert np.abs(whole["high"] - ends[1]).to_numpy() == pytest.approx(0, abs=float(0.8 * spread.max()))
    page = (folder / "out/report.html").read_text()
    assert "over the 2 tasks whose metrics have one scale" in page
    assert "<h2>Critical difference</h2>" in page
    cd = stats.studentized_range.ppf(0.95, 2, np.inf) / np.sqrt(2) * np.sqrt(2 * 3 / (6 * 4))
    assert f"{cd:.2f}" in page
    assert all(f'href="{task}/report.html"' in page for task in METRICS)
    of_numbers = (folder / "out/numbers/report.html").read_text()
    for title in ("Leaderboard", "Targets", "Predicted and measured", "Models of the folds"):
        assert f"<h2>{title}</h2>" in of_numbers
    assert '<html lang="en" data-metric="pearson">' in of_numbers
    value = of_task.set_index(["task", "system"]).loc[("numbers", "Flat 2"), "value"]
    assert f"{value:.3f}" in of_numbers
    assert "Pearson / Spearman, with intervals" in (folder / "out/numbers/report.md").read_text()


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

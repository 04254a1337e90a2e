"""The command: it parses, calls, prints."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from patchbank.errors import InvalidRequest
from patchbank.probe.cli import probe_group


@pytest.fixture(scope="module")
def files(study: Any, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("manifests")
    return [str(m.save(folder / f"{m.header.name}.toml")) for m in (study.train, study.external)]


def run(*arguments: Any) -> Any:
    return CliRunner(env={"COLUMNS": "160"}).invoke(
        probe_group, list(map(str, arguments)), catch_exceptions=False
    )


QUICK = ("-C", "1e-3,1e-1", "--folds", 3, "--inner-folds", 3, "--bootstrap", 100, "--jobs", 1)


def test_a_run_prints_a_table_and_writes_its_files(study: Any, files: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("run", *files, "--bank", study.bank, "--encoder", "good", "-o", out, *QUICK)
    assert result.exit_code == 0, result.output
    for text in ("inner:train", "inner:test", "outer", "good/full/cls", "patchbank probe report"):
        assert text in result.output
    written = {path.name for path in (tmp_path / "out").iterdir()} - {".lock"}
    assert written == {
        "predictions.parquet",
        "probe.json",
        "probe.safetensors",
        "results.csv",
        "results.json",
    }


def test_json_is_the_whole_document(study: Any, files: list[str]) -> None:
    result = run("run", *files, "--bank", study.bank, "--encoder", "good", "--json", *QUICK)
    document = json.loads(result.stdout)
    assert (document["format"], document["version"]) == ("patchbank-probe-results", 2)
    assert document["config"]["C"] == [1e-3, 1e-1]


def test_settings_come_from_toml_and_options_go_before_them(
    study: Any, files: list[str], tmp_path: Path
) -> None:
    (tmp_path / "probe.toml").write_text(
        '[probe]\nfeatures = ["good"]\nC = [0.1]\nbootstrap = 0\nfolds = 3\n'
    )
    arguments = (
        "run",
        *files,
        "--bank",
        study.bank,
        "--config",
        tmp_path / "probe.toml",
        "--jobs",
        1,
        "--json",
    )
    document = json.loads(run(*arguments, "-C", "0.01").stdout)
    assert document["config"]["C"] == [0.01]
    assert document["config"]["features"] == ["good/full/cls"]
    (tmp_path / "probe.toml").write_text('[probe]\nfeatures = ["good"]\nfold = 3\n')
    with pytest.raises(InvalidRequest, match="did you mean 'folds'"):
        run(*arguments)


def test_few_shot_curves_rise(study: Any, files: list[str], tmp_path: Path) -> None:
    arguments = (
        "few-shot",
        *files,
        "--bank",
        study.bank,
        "--encoder",
        "good",
        "--shots",
        "1,32",
        "--repeats",
        5,
    )
    rows = json.loads(run(*arguments, "--json", "-o", tmp_path / "shots.csv").stdout)
    for evaluation in ("inner:test", "outer"):
        one, many = (
            next(
                r["mean"]
                for r in rows
                if (r["evaluation"], r["metric"], r["shots"]) == (evaluation, "auroc", k)
            )
            for k in (1, 32)
        )
        assert many > max(one, 0.7)
    assert len((tmp_path / "shots.csv").read_text().splitlines()) == 1 + 2 * 5 * 2 * 2
    assert "±" in run(*arguments).output


@pytest.mark.parametrize("command", ["run", "few-shot", "report"])
def test_help_has_examples(command: str) -> None:
    assert "Examples:" in run(command, "--help").output

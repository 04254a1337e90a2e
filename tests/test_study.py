"""Studies: planned, run, run again, changed, interrupted; with encoders that cost nothing."""

import base64
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from patchbank import study_page
from patchbank.cli import patchbank
from patchbank.datasets.folds import folds_for
from patchbank.datasets.manifest import load_manifest
from patchbank.datasets.synthetic import generate_manifests
from patchbank.errors import InvalidRequest, OutputError
from patchbank.files import locked
from patchbank.probe.cli import probe_group
from patchbank.probe.results.files import ProbeResult
from patchbank.probe.results.robustness import Robustness
from patchbank.steps import Places, Step
from patchbank.study import StudyResult, plan_study, run_study
from patchbank.study_file import load_study, shipped_studies

PROBE = "[probe]\nC = [1e-4, 1e-2]\nclass_weight = ['balanced']\ninner_folds = 2\nbootstrap = 200\n"


def card(name: str, size: int) -> str:
    """The pixels themselves, made small: an encoder without weights."""
    return (
        f'id = "{name}"\nkind = "python"\nmodel = "torch.nn:Flatten"\nrevision = "1"\n'
        f'dim = {3 * size * size}\ntokens = "pooled"\nprecision = "fp32"\n[transform]\nsize = {size}\n'
    )


def system(name: str, encoder: str, **values: str) -> str:
    lines = [f'name = "{name}"', f'encoder = "{encoder}"', *(f"{k} = {v}" for k, v in values.items())]
    return "[[system]]\n" + "\n".join(lines) + "\n"


def write_study(folder: Path, systems: Sequence[str], *, tests: str = "[]", probe: str = PROBE) -> Path:
    train = "data/synthetic-mitoses.toml"
    head = f'name = "small"\ntitle = "Small"\ntrain = "{train}"\ntests = {tests}\nfolds = 3\n'
    file = folder / "small.toml"
    file.write_text("\n".join([head, probe, *systems]))
    return file


FLAT8 = system("Flat 8", "flat8.toml")
FLAT4 = system("Flat 4", "flat4.toml", views='["full", "center:0.5"]')
GATED = system("UNI", "uni")
EXTERNAL = '["data/synthetic-external.toml"]'


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "data"
    generate_manifests(folder, n=200)
    return folder


@pytest.fixture
def place(tmp_path: Path, sample: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data and two cards, and no login to the hub."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    for name in ("HF_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "data").symlink_to(sample)
    for size in (8, 4):
        (tmp_path / f"flat{size}.toml").write_text(card(f"flat{size}", size))
    return tmp_path


def run(file: Path, *, lines: list[str] | None = None, **options: object) -> StudyResult:
    values = {"bank": file.parent / "bank", "out": file.parent / "out", "data": file.parent, **options}
    where = Places(**values, progress=False, trust_code=True)  # type: ignore[arg-type]
    return run_study(load_study(file), where, say=(lines if lines is not None else []).append)


def states(steps: Sequence[Step]) -> dict[tuple[str, str], str]:
    return {(step.kind, step.title): step.state for step in steps if step.kind != "data"}


def table_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open() as lines:
        return list(csv.DictReader(lines))


# --- the whole way


def test_a_study_runs_and_a_second_run_does_nothing(place: Path) -> None:
    file = write_study(place, [FLAT8, FLAT4, GATED], tests=EXTERNAL)
    where = Places(data=place, bank=place / "bank", out=place / "out", trust_code=True)
    planned = plan_study(load_study(file), where)
    assert not (place / "out").exists()
    assert not (place / "bank").exists()
    extract = {step.title: step for step in planned if step.kind == "extract"}
    n = len(load_manifest(place / "data/synthetic-mitoses.toml"))
    n += len(load_manifest(place / "data/synthetic-external.toml"))
    assert extract["flat8.toml full"].patches == n == 200
    assert extract["flat4.toml full center:0.5"].forwards == 2 * n
    assert extract["flat4.toml full center:0.5"].nbytes == 2 * n * 48 * 2
    assert extract["uni full"].state == "blocked"

    first = run(file)
    assert states(first.steps) == {
        ("extract", "flat8.toml full"): "done",
        ("extract", "flat4.toml full center:0.5"): "done",
        ("extract", "uni full"): "blocked",
        ("probe", "Flat 8"): "done",
        ("probe", "Flat 4"): "done",
        ("report", str(place / "out/report.html")): "done",
    }
    rows = {row.name: row for row in first.page.systems}
    assert rows["UNI"].state == "blocked"
    assert "hf auth login" in rows["UNI"].why
    assert "huggingface.co/MahmoodLab/uni" in rows["UNI"].why
    assert rows["Flat 4"].chosen in ("flat4/full/pooled", "flat4/center:0.5/pooled")
    assert rows["Flat 4"].forwards == 400
    assert rows["Flat 4"].forwards_saved == 800, "three folds, embedded once"
    page = (place / "out/report.html").read_text()
    assert "hf auth login" in page
    assert "Flat 8" in page
    assert "hf auth login" in (place / "out/report.md").read_text()
    table = table_of(place / "out")
    assert {row["dataset"] for row in table if row["system"] == "Flat 8"} == {
        "synthetic-mitoses:train",
        "synthetic-mitoses:test",
        "synthetic-external",
    }
    single = ProbeResult.load(place / "out/probe/Flat-8")
    auroc = (
        next(r for r in single.results.leaderboard() if r.dataset == "synthetic-external")
        .estimate("auroc")
        .value
    )
    shown = next(
        r
        for r in table
        if (r["system"], r["dataset"], r["metric"]) == ("Flat 8", "synthetic-external", "auroc")
    )
    assert float(shown["value"]) == pytest.approx(auroc)

    stamp = (place / "out/report.html").stat().st_mtime_ns
    second = run(file)
    assert second.idle
    assert set(states(second.steps).values()) == {"cached", "blocked"}
    assert (place / "out/report.html").stat().st_mtime_ns == stamp
    planned = plan_study(load_study(file), where)
    assert {step.state for step in planned} == {"cached", "blocked"}


def test_robustness_is_a_step_and_a_section_where_the_study_asks_for_it(place: Path) -> None:
    asked = "sample = 30\n[robustness]\nk = 5\niterations = 1\ntrials = 0\nsample = 40\n"
    study = load_study(write_study(place, [FLAT4], probe=PROBE + asked))
    where = Places(data=place, bank=place / "bank", out=place / "out", progress=False, trust_code=True)
    result = run_study(study, where, say=lambda _: None)
    assert not result.failed
    assert [s.state for s in result.steps if s.kind == "robustness"] == ["done"]
    found = Robustness.load(where.out)
    assert [one.features for one in found.sets] == ["flat4/full/pooled", "flat4/center:0.5/pooled"]
    assert (found.k, found.rows, result.page.robustness) == (5, 40, found)
    assert result.page.result is not None
    assert [one["n"] for one in result.page.result.document["data"]] == [30, 30]
    assert "Robustness to domains" in (where.out / "report.html").read_text()
    assert "robustness index" in (where.out / "report.md").read_text()
    again = run_study(study, where, say=lambda _: None)
    assert again.idle
    assert [s.state for s in again.steps if s.kind == "robustness"] == ["cached"]
    other = load_study(write_study(place, [FLAT4], probe=PROBE + asked.replace("k = 5", "k = 7")))
    assert [s.state for s in plan_study(other, where) if s.kind in ("robustness", "report")] == ["to do"] * 2
    plain = load_study(write_study(place, [FLAT4]))
    assert not [s for s in plan_study(plain, where) if s.kind == "robustness"]
    with pytest.raises(
        InvalidRequest, match=r"robustness: unknown key 'iteration', did you mean 'iterations'"
    ):
        load_study(write_study(place, [FLAT4], probe=PROBE + "[robustness]\niteration = 3\n"))


def test_the_page_is_written_again_when_its_code_changes_and_the_merged_result_is_kept(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_study(place, [FLAT8, FLAT4], tests=EXTERNAL)
    done = run(file)
    assert done.page.result is not None
    kept = ProbeResult.load(place / "out")
    assert kept.to_json() == done.page.result.to_json()
    assert [m.features for m in kept.results.models] == ["Flat 8", "Flat 4"]
    page = (place / "out/report.html").read_text()
    (content,) = re.findall(r'download="table.csv" href="data:text/csv;base64,([^"]+)"', page)
    assert base64.b64decode(content) == (place / "out/table.csv").read_bytes()
    command = ["report", str(place / "out"), "--figures", str(place / "figures"), "-f", "svg"]
    answer = CliRunner().invoke(probe_group, command)
    assert answer.exit_code == 0, answer.output
    assert "Flat 4" in (place / "figures/systems-auroc-synthetic-external.svg").read_text()

    assert run(file).idle
    monkeypatch.setattr(study_page, "code_of_page", lambda: "other code")
    again = states(run(file).steps)
    assert again.pop(("report", str(place / "out/report.html"))) == "done"
    assert set(again.values()) == {"cached"}, "nothing but the page is made again"


def test_a_changed_grid_probes_again_and_extracts_nothing(place: Path) -> None:
    run(write_study(place, [FLAT8]))
    file = write_study(place, [FLAT8], probe=PROBE.replace("1e-2", "1e-2, 1e-1, 1"))
    found = states(run(file).steps)
    assert found[("extract", "flat8.toml full")] == "cached"
    assert found[("probe", "Flat 8")] == "done"
    assert found[("report", str(place / "out/report.html"))] == "done"


def test_a_new_system_leaves_the_others_as_they_are(place: Path) -> None:
    run(write_study(place, [FLAT8]))
    results = place / "out/probe/Flat-8/results.json"
    stamp = results.stat().st_mtime_ns
    found = states(run(write_study(place, [FLAT8, FLAT4])).steps)
    assert found[("extract", "flat8.toml full")] == "cached"
    assert found[("probe", "Flat 8")] == "cached"
    assert found[("probe", "Flat 4")] == "done"
    assert results.stat().st_mtime_ns == stamp


def test_a_new_data_set_embeds_only_its_patches(place: Path) -> None:
    run(write_study(place, [FLAT8]))
    done = run(write_study(place, [FLAT8], tests=EXTERNAL))
    step = next(step for step in done.steps if step.kind == "extract")
    external = len(load_manifest(place / "data/synthetic-external.toml"))
    assert (step.patches, step.cached) == (external, 200 - external)
    assert next(step for step in done.steps if step.kind == "probe").state == "done"


def test_an_encoder_that_was_measured_has_an_estimate(place: Path) -> None:
    run(write_study(place, [FLAT8]))
    file = write_study(place, [FLAT8], tests=EXTERNAL)
    steps = plan_study(
        load_study(file), Places(data=place, bank=place / "bank", out=place / "out", trust_code=True)
    )
    step = next(step for step in steps if step.kind == "extract")
    assert step.seconds is not None
    assert step.seconds > 0
    assert "about" in step.line()


def test_an_encoder_that_was_not_is_measured_for_the_plan(place: Path) -> None:
    file = write_study(place, [system("Lite", "efficientnet-lite0"), GATED, FLAT8])
    where = Places(data=place, bank=place / "bank", out=place / "out", trust_code=True)
    plain, measured = plan_study(load_study(file), where), plan_study(load_study(file), where, measure=True)
    assert [s.seconds for s in plain if s.kind == "extract"] == [None, None, None]
    seconds = [s.seconds for s in measured if s.kind == "extract"]
    assert seconds[0] is not None
    assert seconds[0] > 0
    assert seconds[1] is None, "nothing is measured for what cannot run"
    assert seconds[2] is None, "nobody's code runs for a plan"
    assert not (place / "bank").exists()


def test_a_data_set_that_is_not_there_is_named_and_the_rest_runs(place: Path) -> None:
    file = write_study(place, [FLAT8], tests='["data/synthetic-external.toml", "atnorm-md"]')
    lines: list[str] = []
    done = run(file, lines=lines)
    assert any("datasets build atnorm-md" in line for line in lines)
    assert done.page.result is not None
    assert [d["dataset"] for d in done.page.result.document["data"]][-1] == "synthetic-external"


def test_a_training_set_that_is_not_there_stops_everything(place: Path) -> None:
    file = write_study(place, [FLAT8])
    file.write_text(file.read_text().replace("data/synthetic-mitoses.toml", "ami-br"))
    with pytest.raises(InvalidRequest, match=r"datasets build ami-br --root DIR --out .*ami-br\.toml"):
        run(file)


def test_nothing_can_run_and_the_page_says_so(place: Path) -> None:
    file = write_study(place, [GATED], probe='published = "published-2506.21444"\n' + PROBE)
    done = run(file)
    assert "ami-br 0.634 / 0.695" in done.page.systems[0].published
    assert "ami-br 0.634 / 0.695" in (place / "out/report.html").read_text()
    assert done.page.result is None
    assert "hf auth login" in (place / "out/report.html").read_text()
    assert "hf auth login" in (place / "out/report.md").read_text()


def test_a_step_that_fails_does_not_stop_the_others(place: Path) -> None:
    """Votes as labels need votes; the other system does without."""
    bad = system("Bad", "flat8.toml", settings='{ positive = "tumour" }')
    done = run(write_study(place, [bad, FLAT4]))
    assert [step.title for step in done.failed] == ["Bad"]
    assert "tumour" in next(row for row in done.page.systems if row.name == "Bad").why
    assert next(row for row in done.page.systems if row.name == "Flat 4").state == "done"


def test_a_damaged_state_is_refused_by_name(place: Path) -> None:
    file = write_study(place, [FLAT8])
    (place / "out").mkdir()
    (place / "out/state.json").write_text("{")
    with pytest.raises(InvalidRequest, match=r"state\.json is damaged"):
        run(file)
    (place / "out/state.json").write_text('{"format": "patchbank-study", "version": 99}')
    with pytest.raises(InvalidRequest, match="version 1"):
        run(file)


# --- weights

TINY = (Path(__file__).resolve().parent / "data" / "tiny-vit.toml").read_text("utf-8")
TINY = TINY.replace('id = "tiny-vit"', 'id = "tiny"')
SHAPE: dict[str, Any] = tomllib.loads(TINY)["arguments"]


def tiny_weights(file: Path) -> Path:
    import timm
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(timm.create_model("vit_tiny_patch16_224", **SHAPE).state_dict(), file)
    return file


def test_weights_of_the_hub_are_downloaded_by_the_run_not_by_the_plan(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's client is replaced by a folder in the form of its cache."""
    (place / "tiny.toml").write_text('hub = "someone/tiny"\nfiles = ["model.safetensors"]\n' + TINY)
    file = write_study(place, [system("Tiny", "tiny.toml")])
    where = Places(data=place, bank=place / "bank", out=place / "out", trust_code=True)
    for asked in ("get_hf_file_metadata", "hf_hub_download"):
        monkeypatch.setattr(f"huggingface_hub.{asked}", no_network)
    planned = {step.kind: step for step in plan_study(load_study(file), where)}
    assert planned["extract"].state == planned["probe"].state == "to do"
    assert "a run downloads them" in planned["extract"].line()
    offline = run(file)
    assert next(row for row in offline.page.systems).state == "blocked"
    assert "--weights-dir DIR" in offline.page.systems[0].why

    commit = "0123456789abcdef0123456789abcdef01234567"
    weights = tiny_weights(place / "models--someone--tiny" / "snapshots" / commit / "model.safetensors")
    seen = SimpleNamespace(commit_hash=commit)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *_, **__: seen)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(weights))
    online = run(file)
    assert not online.failed
    assert online.page.systems[0].state == "done"
    store = next((place / "bank/stores").iterdir())
    assert commit in (store / "zarr.json").read_text()


def no_network(*_: object, **__: object) -> str:
    raise OSError("no network")


def test_a_bank_made_elsewhere_is_enough(place: Path) -> None:
    """Extracted once where weights and a GPU are; probed where neither is."""
    (place / "tiny.toml").write_text(TINY)
    file = write_study(place, [system("Tiny", "tiny.toml", tokens='["cls", "mean"]')])
    there = run(file, checkpoints={"tiny.toml": tiny_weights(place / "weights.safetensors")})
    assert there.page.systems[0].state == "done"
    here = run(file, out=place / "other")
    assert next(step for step in here.steps if step.kind == "extract").state == "cached"
    assert next(step for step in here.steps if step.kind == "probe").state == "done"
    assert there.page.result is not None
    assert here.page.result is not None
    assert here.page.result.document["scores"] == there.page.result.document["scores"]
    more = write_study(place, [system("Tiny", "tiny.toml", tokens='["cls", "mean"]')], tests=EXTERNAL)
    short = run(more, out=place / "third")
    assert short.page.systems[0].state == "blocked", (
        "the bank lacks the new set, and the weights are not here"
    )


def test_embeddings_of_another_precision_are_taken_as_they_are(place: Path) -> None:
    run(write_study(place, [system("Flat 8", "flat8.toml", precision='"bf16"')]))
    again = run(write_study(place, [FLAT8]))
    assert next(step for step in again.steps if step.kind == "extract").state == "cached"
    assert next(step for step in again.steps if step.kind == "probe").state == "cached", "the same stores"
    asked = run(write_study(place, [system("Flat 8", "flat8.toml", precision='"fp32"')]))
    assert next(step for step in asked.steps if step.kind == "extract").state == "done"
    assert not asked.failed, (
        "the map is of the embeddings that were probed, where the bank has two precisions"
    )


def test_feature_sets_written_out_join_views_and_encoders(place: Path) -> None:
    """Candidates of two encoders and of two side by side, one of which the folds choose."""
    (place / "tiny.toml").write_text(TINY)
    weights = {"tiny.toml": tiny_weights(place / "weights.safetensors")}
    both = "flat4.toml/full/pooled + tiny.toml/center:0.5/cls"
    sets = f'["{both}", "flat4.toml/full/pooled + flat4.toml/center:0.50/pooled", "tiny.toml/full/mean"]'
    named = f'[[system]]\nname = "Joined"\nfeatures = {sets}\n'
    result = run(write_study(place, [named, FLAT4]), checkpoints=weights)
    assert not result.failed
    assert not result.blocked
    assert result.page.result is not None
    probed = ProbeResult.load(place / "out" / "probe" / "Joined").results
    dims = {model.features: model.dim for model in probed.models}
    assert dims == {
        "flat4/full/pooled + tiny/center:0.5/cls": 48 + 32,
        "flat4/full/pooled + flat4/center:0.5/pooled": 96,
        "tiny/full/mean": 32,
    }
    row, other = result.page.systems
    assert row.encoder == "flat4.toml + tiny.toml"
    assert row.chosen in dims
    assert row.forwards > other.forwards
    assert run(write_study(place, [named, FLAT4]), checkpoints=weights).idle
    fewer = named.replace(f'"{both}", ', "")
    states_of = states(run(write_study(place, [fewer, FLAT4]), checkpoints=weights).steps)
    assert states_of["probe", "Joined"] == "done"
    assert states_of["probe", "Flat 4"] == "cached"


# --- interrupted

SLOW = """
import time

import torch

class Slow(torch.nn.Flatten):
    def forward(self, batch):
        time.sleep(0.15)
        return super().forward(batch)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is POSIX")
def test_kill_9_at_any_moment_and_the_same_command_goes_on(place: Path, until: Any) -> None:
    (place / "slow_encoder.py").write_text(SLOW)
    slow = card("slow", 4).replace("torch.nn:Flatten", "slow_encoder:Slow")
    (place / "slow.toml").write_text(slow)
    file = write_study(place, [FLAT8, system("Slow", "slow.toml")], tests=EXTERNAL)
    command = [sys.executable, "-m", "patchbank", "run", str(file), "--data", str(place), "--trust-code"]
    environment = os.environ | {"PYTHONPATH": f"{place}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}

    def start(out: str) -> subprocess.Popen[bytes]:
        more = ["--bank", str(place / f"{out}-bank"), "-o", str(place / out)]
        return subprocess.Popen(
            [*command, *more], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    calm = start("calm")
    output, _ = calm.communicate(timeout=300)
    assert calm.returncode == 0, output.decode()
    moments = [
        lambda: any((place / "killed-bank").glob("stores/slow*")),
        lambda: (place / "killed/probe/Flat-8/results.json").exists(),
        lambda: (place / "killed/report.html").exists(),
    ]
    for moment in moments:
        process = start("killed")
        until(lambda moment=moment, process=process: moment() or process.poll() is not None)
        came_so_far = moment()
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
        assert came_so_far, output.decode()
    last = start("killed")
    output, _ = last.communicate(timeout=300)
    assert last.returncode == 0, output.decode()
    assert table_of(place / "killed") == table_of(place / "calm")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe of the same settings is computed once, and the page is short: what is left are the files."""
    import patchbank.probe.report.page
    import patchbank.probe.steps
    import patchbank.study_page

    real, known = patchbank.probe.steps.run_probe, {}

    def run_probe(**settings: Any) -> ProbeResult:
        key = repr(sorted((k, v) for k, v in settings.items() if k not in ("train", "tests", "bank")))
        one = known[key] = known.get(key) or real(**settings)
        return ProbeResult({**one.document}, one.predictions, one.probes)

    monkeypatch.setattr(patchbank.probe.steps, "run_probe", run_probe)
    monkeypatch.setattr(patchbank.probe.report.page, "page_html", lambda page: page.title)
    monkeypatch.setattr(patchbank.study_page, "markdown", lambda page: page.title)
    monkeypatch.setattr(patchbank.study_page, "embedding_maps", lambda *_, **__: ())
    monkeypatch.setattr(patchbank.study_page, "contradictions", lambda *_: ())


def content(out: Path) -> tuple[Any, ...]:
    """What an OUT serves: seed, scores, predictions and the table on the page."""
    result = ProbeResult.load(out / "probe/Flat-8")
    return (
        result.document["config"]["seed"],
        json.dumps(result.document["scores"]),
        result.predictions["score"].tolist(),
        result.model.members[0][-1][1]["bias"].tolist(),
        (out / "table.csv").read_text(),
    )


def test_no_results_of_other_settings_after_a_kill_at_any_file_operation(
    place: Path, quick: None, faults: Any
) -> None:
    """Seed 5 is killed over the results of seed 0; then seed 0 is asked for, and then seed 5."""
    truth = {}
    for seed in (0, 5):
        file = write_study(place, [FLAT8], probe=PROBE + f"seed = {seed}\n")
        run(file, out=place / f"seed{seed}", jobs=1)
        truth[seed] = content(place / f"seed{seed}")
    assert truth[0] != truth[5]
    studies = {seed: place / f"study{seed}.toml" for seed in (0, 5)}
    for seed, file in studies.items():
        file.write_text(write_study(place, [FLAT8], probe=PROBE + f"seed = {seed}\n").read_text())

    def killed(at: int) -> int:
        shutil.rmtree(place / "out", ignore_errors=True)
        shutil.copytree(place / "seed0", place / "out")
        with faults.kill(place / "out", at):
            run(studies[5], jobs=1)
        return faults.count

    moments = killed(0)
    assert moments >= 20
    for at in range(1, moments + 1, 3):  # what lies on the disk changes at every fourth at most: the renames
        assert killed(at) >= at
        seed = 5 if at % 5 == 1 else 0  # back to the old settings, or on with the new ones
        assert not run(studies[seed], jobs=1).failed
        assert content(place / "out") == truth[seed], f"seed {seed} after a kill at {at} of {moments}"


def test_an_out_is_used_by_one_run_at_a_time(place: Path) -> None:
    file = write_study(place, [FLAT8])
    with locked(place / "out"), pytest.raises(OutputError, match="out is in use by another run"):
        run(file)
    (place / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        run(file, out=place / "file" / "out")
    assert not (place / "bank").exists(), "told before the work"


def test_two_studies_in_one_out_keep_each_other_results(place: Path) -> None:
    run(write_study(place, [FLAT8]))
    other = run(write_study(place, [FLAT4, FLAT8], probe=PROBE + "seed = 5\n"))
    assert states(other.steps)["probe", "Flat 8"] == "done", "of other settings: never served"
    run(write_study(place, [FLAT4], probe=PROBE + "seed = 5\n"))
    again = run(write_study(place, [FLAT4, FLAT8], probe=PROBE + "seed = 5\n"))
    assert {state for (kind, _), state in states(again.steps).items() if kind == "probe"} == {"cached"}


def test_changed_files_that_a_study_names_are_other_settings(place: Path) -> None:
    folds = make_folds_file(place / "folds.toml", seed=0)
    file = write_study(place, [FLAT8]).read_text().replace("folds = 3", 'folds = "folds.toml"')
    (place / "small.toml").write_text(file)
    run(place / "small.toml")
    assert states(run(place / "small.toml").steps)["probe", "Flat 8"] == "cached"
    make_folds_file(folds, seed=1)
    assert states(run(place / "small.toml").steps)["probe", "Flat 8"] == "done"


def make_folds_file(file: Path, *, seed: int) -> Path:
    train = load_manifest(file.parent / "data/synthetic-mitoses.toml")
    return folds_for(train, 3, seed=seed).save(file)


# --- fine-tuning


@pytest.mark.parametrize("mode", ["none", "plan", "all"])
def test_fine_tuned_systems_run_when_asked_for(place: Path, mode: str) -> None:
    (place / "tiny.toml").write_text(TINY)
    weights = tiny_weights(place / "tiny.safetensors")
    settings = "{ epochs = 2, batch_size = 32, bootstrap = 200 }"
    lora = system("Tiny, LoRA", "tiny.toml", stage='"lora"', settings=settings)
    file = write_study(place, [system("Tiny", "tiny.toml"), lora])
    done = run(file, finetune=mode, checkpoints={"tiny.toml": weights})
    row = next(row for row in done.page.systems if row.name == "Tiny, LoRA")
    if mode == "none":
        assert row.state == "blocked"
        assert "--finetune all" in row.why
        return
    assert not done.failed
    assert row.state == "done", row.why
    assert row.family == "lora"
    assert row.train_seconds > 0
    assert done.page.result is not None
    scored = {
        r.features for r in done.page.result.results.leaderboard() if r.dataset == "synthetic-mitoses:test"
    }
    assert scored == {"Tiny", "Tiny, LoRA"}
    pairs = {(c["a"], c["b"]) for c in done.page.result.document["comparisons"]}
    assert {"Tiny", "Tiny, LoRA"} in [set(pair) for pair in pairs]
    again = run(file, finetune=mode, checkpoints={"tiny.toml": weights})
    assert again.idle
    if mode == "plan":
        plan = place / "out/plan.toml"
        plan.write_text(plan.read_text().replace("train = true", "train = false"))
        (place / "out/state.json").unlink()
        row = next(
            r
            for r in run(file, finetune=mode, checkpoints={"tiny.toml": weights}).page.systems
            if "LoRA" in r.name
        )
        assert "the plan excludes it" in row.why, "an edited plan is followed"


BOTH = '[[system]]\nname = "Both"\nstage = "ensemble"\nmembers = ["Flat 8", "Flat 4"]\n'


def test_an_ensemble_is_a_system_that_is_compared_with_its_members(place: Path) -> None:
    file = write_study(place, [FLAT8, FLAT4, BOTH], tests=EXTERNAL)
    done = run(file)
    assert not done.failed
    row = next(row for row in done.page.systems if row.name == "Both")
    assert (row.state, row.family) == ("done", "ensemble")
    assert "Flat 8" in row.chosen
    assert "Flat 4" in row.chosen
    assert done.page.result is not None
    results = done.page.result.results
    pairs = {frozenset((c.a, c.b)) for c in results.comparisons if c.dataset == "synthetic-external"}
    assert {frozenset(("Both", "Flat 8")), frozenset(("Both", "Flat 4"))} < pairs
    shares = results.model("Both").weights
    assert shares is not None
    assert sum(shares.values()) == pytest.approx(1)
    assert run(file).idle
    again = run(write_study(place, [FLAT8, FLAT4, BOTH], tests=EXTERNAL, probe=PROBE + "seed = 5\n"))
    assert states(again.steps)["ensemble", "Both"] == "done", "its members have changed"


def test_an_ensemble_without_a_member_says_so_and_faults_are_told(place: Path) -> None:
    gated = BOTH.replace('"Flat 4"', '"UNI"')
    done = run(write_study(place, [FLAT8, GATED, gated]))
    row = next(row for row in done.page.systems if row.name == "Both")
    assert row.state == "blocked"
    assert "members have no results: UNI" in row.why
    for wrong, says in [
        (BOTH.replace('"Flat 4"', '"Flat 44"'), "did you mean 'Flat 4'"),
        (BOTH.replace(', "Flat 4"', ""), "needs two members"),
        (BOTH + 'settings = { weights = "best" }\n', "weights 'best' is not one of folds, equal"),
        (BOTH + 'encoder = "uni"\n', "encoder is none of an ensemble's"),
        (BOTH.replace('stage = "ensemble"\n', 'encoder = "uni"\n'), 'say stage = "ensemble"'),
    ]:
        with pytest.raises(InvalidRequest, match=says):
            load_study(write_study(place, [FLAT8, FLAT4, wrong]))


# --- the file


def test_all_faults_of_a_study_file_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(
        'name = "bad"\ntittle = "Bad"\ntests = "a"\nmap = "tsne"\n'
        '[extract]\ndevice = "cpu"\n[probe]\nprobes = "knn"\n'
        '[[system]]\nname = "a"\nencoder = "uni"\nstage = "linear"\n'
        '[[system]]\nname = "a"\nencoder = "uni"\n[[system]]\nname = "b"\n'
        '[[system]]\nname = "x+y z"\nencoder = "uni"\n[[system]]\nname = "x+y, z"\nencoder = "uni"\n'
        '[[system]]\nname = "c"\nencoder = "uni"\nfeatures = ["uni/full", "uni/full/cls + uni/full/cls"]\n'
        '[[system]]\nname = "rank 8"\nencoder = "uni"\nstage = "lora"\nsettings = { rank = 8 }\n'
        '[[system]]\nname = "rank 16"\nencoder = "uni"\nstage = "lora"\nsettings = { rank = 16 }\n'
    )
    with pytest.raises(InvalidRequest) as error:
        load_study(file)
    text = str(error.value)
    for part in (
        "[extract] device: the study, its systems or the command set that",
        "map 'tsne' is not one of pca, umap",
        "unknown key 'tittle', did you mean 'title'?",
        "tests is a list",
        "train is missing",
        "stage 'linear' is not one of probe, lora, full",
        "two systems are called 'a'",
        "'x+y z' and 'x+y, z' differ in punctuation or case only",
        "'rank 8' and 'rank 16' fine-tune 'uni' with the recipe 'lora', and models go to folders by encoder",
        "system 3 (b): encoder is missing",
        "system 6 (c): encoder: the features name it",
        "system 6 (c): features 'uni/full': a study names ENCODER/VIEW/TOKENS, all three",
        "the same block of columns is named twice",
        "unknown key 'probes', did you mean 'probe'?",
        str(file),
    ):
        assert part in text, part


def test_values_of_another_kind_and_names_that_are_not_text_are_named(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    good = 'name = "a"\ntitle = "A"\ntrain = "t"\n[[system]]\nname = "s"\nencoder = "uni"\n'
    file.write_text(good)
    load_study(file)
    changes = {
        'name = "a"': ("name = 5", "name = 5 has to be a text"),
        'title = "A"': (
            'title = "A"\ntests = [1]',
            "tests = [1] has to be a list of texts",
        ),
        'train = "t"': ("train = true", "train = True has to be a text"),
        'name = "s"': ('name = "\\u001b[31m"', "is empty or holds control characters"),
        'encoder = "uni"': (
            'encoder = "uni"\nsettings = 3',
            "settings = 3 has to be a table",
        ),
        "[[system]]": ("[system]", "each under [[system]]"),
    }
    for old, (new, message) in changes.items():
        file.write_text(good.replace(old, new))
        with pytest.raises(InvalidRequest, match=re.escape(message)):
            load_study(file)
    file.write_text(good + 'stage = "lora"\nsettings = { trust_code = true, out = "/" }\n')
    with pytest.raises(InvalidRequest, match="settings trust_code: the study, its systems or the"):
        load_study(file)


def test_a_studys_name_leads_nowhere(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names become folders, HTML, Markdown, CSV and lines of a terminal."""
    hostile = system("../../x <script>alert(1)</script> [/b]", "flat8.toml")
    file = write_study(place, [hostile])
    file.write_text(file.read_text().replace('name = "small"', 'name = "../../up"'))
    here = place / "a" / "b" / "c"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    command = ["run", str(file), "--data", str(place), "--bank", str(place / "bank"), "--trust-code"]
    done = CliRunner().invoke(patchbank, command)
    assert done.exit_code == 0, done.output
    assert [p.name for p in here.iterdir()] == ["up"]
    assert [p.name for p in (here / "up/probe").iterdir()] == ["x-script-alert-1-script-b"]
    assert sorted(p.name for p in (place / "a").iterdir()) == ["b"]
    assert "<script>alert" not in (here / "up/report.html").read_text()
    assert "[/b]" in done.output


def test_options_of_the_extraction_are_the_studys(place: Path) -> None:
    file = write_study(place, [FLAT8], probe="[extract]\ndtype = 'float32'\nbackend = 'hdf5'\n" + PROBE)
    done = run(file)
    assert next(step for step in done.steps if step.kind == "probe").state == "done"
    assert list((place / "bank").rglob("*.h5"))
    file.write_text(file.read_text().replace("dtype", "dtypo"))
    with pytest.raises(InvalidRequest, match="unknown key 'dtypo', did you mean 'dtype'"):
        run(file)


def test_the_map_can_be_of_neighbourhoods(place: Path) -> None:
    pytest.importorskip("umap", reason="the extra `map` is not installed")
    run(write_study(place, [FLAT4], probe='map = "umap"\n' + PROBE))
    assert "UMAP" in (place / "out/report.html").read_text()


def test_the_map_of_very_many_patches_is_of_some(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_page, "MAP_ROWS", 30)
    assert not run(write_study(place, [FLAT4], tests=EXTERNAL)).failed
    page = (place / "out/report.html").read_text()
    assert re.search(r"30 of \d+ patches\. PCA \(of 30 patches\) of flat4", page)


def test_unknown_studies_and_systems_are_answered_with_the_near_name() -> None:
    with pytest.raises(InvalidRequest, match="did you mean 'ami-br'"):
        load_study("ami-bt")
    with pytest.raises(InvalidRequest, match="did you mean 'Virchow2, LoRA'"):
        load_study("ami-br").only(["Virchow2, lora"])
    assert [s.name for s in load_study("ami-br").only(["UNI"]).systems] == ["UNI"]


def test_the_shipped_studies_have_every_published_system() -> None:
    from patchbank.extract.registry import load_card
    from patchbank.finetune.recipe import load_recipe
    from patchbank.probe.report.published import load_published

    assert {"ami-br", "ami-br-2025"} <= set(shipped_studies())
    entries = load_published("published-2506.21444")["published"]
    published = {(e["system"], e["family"]) for e in entries}
    assert len(published) == 17
    for name in ("ami-br", "ami-br-2025"):
        study = load_study(name)
        ours = {(name, s.stage) for s in study.systems for name in s.published or (s.name,)}
        assert published <= ours, name
        for one in study.systems:
            for encoder in one.encoders:
                if encoder != "timm:efficientnetv2_m":  # no weights: the publication began from random ones
                    load_card(encoder)
            if one.stage not in ("probe", "ensemble"):
                changes = {k: v for k, v in one.settings.items() if k != "bootstrap"}
                recipe = load_recipe(one.recipe or one.stage, encoder=one.encoder, **changes)
                assert recipe.method == one.stage
    paper = load_study("ami-br-2025")
    assert paper.folds == "paper"
    assert len(paper.systems) == 17
    assert paper.systems[4].settings == {"solver": "paper-sgd-1e-3"}


def test_the_published_figures_are_those_of_the_reference(shared: Path) -> None:
    from patchbank.probe.report.published import load_published

    reference = json.loads((shared / "reference/paper_numbers.json").read_text())
    families = {"probe": "LP", "lora": "LoRA", "full": "E2E"}
    sets = {"ami-br": "AMi-Br", "atnorm-br": "AtNorM-Br", "atnorm-md": "AtNorM-MD"}
    entries = load_published("published-2506.21444")["published"]
    assert len(entries) == sum(len(v) for v in reference.values())
    for entry in entries:
        theirs = reference[f"{families[entry['family']]}/{entry['system']}"][sets[entry["dataset"]]]["main"]
        folds = theirs["folds_ba_auroc_apNormal"]
        assert entry["balanced_accuracy"] == [fold[0] for fold in folds]
        assert entry["auroc"] == [fold[1] for fold in folds]


# --- the command


def test_the_command_plans_runs_and_prints(place: Path) -> None:
    file = write_study(place, [FLAT8, GATED])
    options = [str(file), "--data", str(place), "--bank", str(place / "bank"), "-o", str(place / "out")]
    wary = CliRunner().invoke(patchbank, ["run", *options, "--dry-run"])
    assert "blocked  extract   flat8.toml full: the card of flat8 runs Python code" in wary.output
    options.append("--trust-code")
    planned = CliRunner().invoke(patchbank, ["run", *options, "--dry-run"])
    assert planned.exit_code == 0, planned.output
    assert re.search(r"to do +extract +flat8\.toml full: 0 cached, \d+ patches to embed", planned.output)
    assert "blocked  extract   uni" in planned.output
    as_json = CliRunner().invoke(patchbank, ["run", *options, "--dry-run", "--json"])
    assert {s["kind"] for s in json.loads(as_json.stdout)["steps"]} == {"data", "extract", "probe", "report"}
    done = CliRunner().invoke(patchbank, ["run", *options])
    assert done.exit_code == 0, done.output
    assert "Flat 8" in done.output
    assert f"Wrote {place}/out/report.html" in done.output
    again = CliRunner().invoke(patchbank, ["run", *options, "--json"])
    assert {row["state"] for row in json.loads(again.stdout)["results"]} == {"done", "blocked"}
    assert "Everything was cached" in CliRunner().invoke(patchbank, ["run", *options]).output
    for more in ([], ["--dry-run"]):
        assert CliRunner().invoke(patchbank, ["run", *options, *more, "--strict"]).exit_code == 1
    bad = CliRunner().invoke(patchbank, ["run", *options, "--checkpoint", "uni"])
    assert bad.exit_code == 2
    assert "is not ENCODER=FILE" in bad.output

"""The rule decides as it says, and the plan survives being edited."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from patchbank.errors import InvalidRequest
from patchbank.finetune import plan as plan_module
from patchbank.finetune.cli import finetune_group
from patchbank.finetune.cost import Cost, measure_cost
from patchbank.finetune.plan import Candidate, Rule, fitting_recipe, load_plan, make_plan
from patchbank.finetune.run import run_plan
from patchbank.probe.results.files import ProbeResult

SLOW = Cost(1.0, 2.0, 10, "a slow machine")
FAST = Cost(1000.0, 3000.0, 10, "a fast machine")


VALUES = {"poor": (0.70, 0.66, 0.74), "good": (0.93, 0.91, 0.95), "fair": (0.90, 0.87, 0.93)}


def _decide(
    results: Callable[..., ProbeResult], rule: Rule, cost: Cost = FAST, **change: Any
) -> dict[str, bool]:
    plan = make_plan(results(VALUES, **change), train="a.toml", rule=rule, costs=dict.fromkeys(VALUES, cost))
    assert [e.encoder for e in plan.entries] == ["good", "fair", "poor"]
    assert all(e.features.endswith("center:0.5/cls") for e in plan.entries)
    assert all(e.why for e in plan.entries)
    return {e.encoder: e.train for e in plan.entries}


def test_each_part_of_the_rule(results: Callable[..., ProbeResult]) -> None:
    decide = partial(_decide, results)
    assert decide(Rule(target=0.9)) == {"good": False, "fair": True, "poor": True}
    assert decide(Rule(target=0.5)) == {"good": False, "fair": True, "poor": True}  # behind the best
    assert decide(Rule(target=0.5), p_holm=0.2) == {"good": False, "fair": False, "poor": False}
    assert decide(Rule(target=0.5, min_gap=0.1)) == {"good": False, "fair": False, "poor": True}
    assert decide(Rule(target=0.9, keep_within=0.1)) == {"good": False, "fair": True, "poor": False}
    assert decide(Rule(target=0.9, max_hours=1), SLOW) == dict.fromkeys(VALUES, False)
    # fair: gain 0.03, poor: gain 0.09, for 12.5 hours each
    hours = SLOW.hours(1000, 500, 5)
    between = 0.05 / hours
    assert decide(Rule(target=0.9, gain_per_hour=between), SLOW) == {
        "good": False,
        "fair": False,
        "poor": True,
    }


def test_the_hours_are_those_of_all_folds() -> None:
    # 5 folds: 10 epochs of 800 patches at 1 a second, of 200 at 2 a second, then these and 500 more
    assert SLOW.hours(1000, 500, 5) == pytest.approx(5 * (8000 + (2000 + 700) / 2) / 3600)
    turned = replace(SLOW, symmetries=8, epoch_size=100)
    assert turned.hours(1000, 500, 5) == pytest.approx(5 * (1000 + (2000 + 8 * 700) / 2) / 3600)


def test_a_plan_is_a_file_to_edit(tmp_path: Path, results: Callable[..., ProbeResult]) -> None:
    plan = make_plan(results(VALUES), train="a.toml", tests=["b.toml"], costs=dict.fromkeys(VALUES, FAST))
    file = plan.save(tmp_path / "plan.toml")
    assert load_plan(file) == plan
    text = file.read_text().replace("\ntrain = true", "\ntrain = false", 1)
    file.write_text(text)
    assert len(load_plan(file).chosen) == len(plan.chosen) - 1
    file.write_text(text.replace("max_hours", "max_huors").replace("why =", "whyy ="))
    with pytest.raises(InvalidRequest, match=r"did you mean 'max_hours'.*did you mean 'why'"):
        load_plan(file)
    (tmp_path / "other.toml").write_text("a = 1\n")
    with pytest.raises(InvalidRequest, match="not a plan"):
        load_plan(tmp_path / "other.toml")


def test_what_is_proposed_also_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: Callable[..., ProbeResult]
) -> None:
    """LoRA cannot adapt a CNN, nor a transformer whose layers have other names than the recipe's targets."""
    cnn, vit = "efficientnet-lite0", "dinov2-s"
    probed = results({cnn: (0.7, 0.6, 0.8), vit: (0.72, 0.62, 0.82)})
    measured = {}
    monkeypatch.setattr(
        plan_module,
        "measure_cost",
        lambda encoder, *, recipe, **_: measured.setdefault(encoder, recipe) and FAST,
    )
    make_plan(probed, train="a.toml")
    assert measured == {cnn: "full", vit: "lora"}
    plan = make_plan(probed, train="a.toml", measure=False)
    chosen = {entry.encoder: entry for entry in plan.entries}
    assert (chosen[cnn].recipe, chosen[cnn].train) == ("full", True)
    assert "no attention blocks" in chosen[cnn].why
    assert (chosen[vit].recipe, chosen[vit].train) == ("lora", True)
    (tmp_path / "odd.toml").write_text('method = "lora"\ntargets = ["q_proj"]\n')
    plan = make_plan(probed, train="a.toml", recipe=str(tmp_path / "odd.toml"), measure=False)
    odd = next(entry for entry in plan.entries if entry.encoder == vit)
    assert not odd.train
    assert "attn.qkv" in odd.why, "the names that there are"
    assert fitting_recipe("poor", "lora") == ("lora", ""), "an encoder that nobody knows is left to the run"
    assert fitting_recipe(cnn, "full") == ("full", "")


def test_two_systems_of_one_encoder_are_two_rows(results: Callable[..., ProbeResult]) -> None:
    costs = {("lora", 8): FAST, ("full", 8): replace(SLOW, measured="3 steps"), ("lora", 4): FAST}
    timed = []

    def measure(encoder: str, *, recipe: str, rank: int = 8, **_: Any) -> Cost:
        timed.append((encoder, recipe, rank))
        return costs[recipe, rank]

    candidates = [
        Candidate("dinov2-s", "lora", {}, "DINOv2 LoRA"),
        Candidate("dinov2-s", "full", {}, "DINOv2 full"),
        Candidate("dinov2-s", "lora", {"rank": 4}, "DINOv2 LoRA 4"),
        Candidate("dinov2-s", "lora", {"name": "again"}, "the same, other name"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "measure_cost", measure)
        plan = make_plan(results({"dinov2-s": (0.7, 0.6, 0.8)}), train="a.toml", candidates=candidates)
    heads, rows = plan.table()
    assert heads == ["system", "encoder", "recipe", "train", "hours", "why", "measured"]
    told = {row[0]: dict(zip(heads, row, strict=True)) for row in rows}
    assert [one["recipe"] for one in told.values()] == ["lora", "full", "lora, rank=4", "lora, name=again"]
    assert told["DINOv2 full"]["hours"] == f"{SLOW.hours(1000, 500, 5):.2f}"
    assert told["DINOv2 LoRA"]["hours"] == f"{FAST.hours(1000, 500, 5):.2f}"
    assert told["DINOv2 full"]["measured"] == (
        "1.0 patches/s in training, 2.0 in scoring, 10 epochs; 3 steps"
    )
    assert timed == [("dinov2-s", "lora", 8), ("dinov2-s", "full", 8), ("dinov2-s", "lora", 4)], "once each"


def test_a_gpu_that_was_not_timed_has_no_hours(
    monkeypatch: pytest.MonkeyPatch, results: Callable[..., ProbeResult]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    probed = results({"dinov2-s": (0.7, 0.6, 0.8)})
    (entry,) = make_plan(probed, train="a.toml", device="cuda").entries
    assert entry.hours is None
    assert "could not be measured" in entry.cost


def test_results_without_intervals_are_refused(results: Callable[..., ProbeResult]) -> None:
    document = results(VALUES).document
    for record in document["scores"]:
        record["metrics"]["auroc"] = [0.8, None, None]
    without = ProbeResult(document, pd.DataFrame())
    with pytest.raises(InvalidRequest, match="--bootstrap"):
        make_plan(without, train="a.toml", measure=False)


def test_the_cost_is_measured_and_a_plan_is_run(
    tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path], results: Callable[..., ProbeResult]
) -> None:
    cost = measure_cost(tiny_encoder[0], recipe="lora", device="cpu", steps=1)
    assert cost.train_rate > 1
    assert cost.score_rate > 1
    assert measure_cost("timm:no_such_model", recipe="lora", steps=1).note.startswith("could not be measured")

    manifest = tiny.manifest(tmp_path / "images", n=60)
    manifest.save(tmp_path / "images" / "tiny.toml")
    results({"tiny-vit": (0.7, 0.6, 0.8)}).save(tmp_path / "results")
    file = tmp_path / "plan.toml"
    words = ["plan", tmp_path / "results", tmp_path / "images" / "tiny.toml", "--no-measure", "--out", file]
    asked = [*map(str, words), "--encoder", f"tiny-vit={tiny_encoder[0]}"]
    wide = CliRunner(env={"COLUMNS": "400"})
    shown = wide.invoke(finetune_group, [*asked, "--recipe", "lora", "--recipe", "full"])
    assert shown.exit_code == 0, shown.output
    assert shown.output.count("nothing was measured") == 2
    assert f"finetune run --plan {file} --out models" in shown.output
    both = [
        entry["recipe"]
        for entry in json.loads(
            CliRunner()
            .invoke(finetune_group, [*asked, "--recipe", "lora", "--recipe", "full", "--json"])
            .output
        )["entries"]
    ]
    assert both == ["lora", "full"]
    odd = CliRunner().invoke(finetune_group, [*map(str, words), "--encoder", "tiny-vitt=x"])
    assert "did you mean 'tiny-vit'" in str(odd.exception)
    CliRunner().invoke(finetune_group, asked)
    file.write_text(file.read_text().replace('folds = "balanced"', "folds = 3"))
    (result,) = run_plan(
        file,
        out=tmp_path / "out",
        checkpoint=tiny_encoder[1],
        device="cpu",
        bootstrap=0,
        progress=False,
        near_duplicates="none",
        epochs=1,
        warmup=0.0,
    )
    assert set(result.predictions["role"]) == {"oof"}
    file.write_text(file.read_text().replace("\ntrain = true", "\ntrain = false"))
    with pytest.raises(InvalidRequest, match="selects no encoder"):
        run_plan(file, out=tmp_path / "out")

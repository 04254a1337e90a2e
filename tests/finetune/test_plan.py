"""The rule decides as it says, and the plan survives being edited."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from patchbank.errors import InvalidRequest
from patchbank.finetune import plan as plan_module
from patchbank.finetune.plan import Cost, Rule, fitting_recipe, load_plan, make_plan, measure_cost
from patchbank.finetune.run import run_plan
from patchbank.probe.results.files import ProbeResult

SLOW = Cost(1.0, 2.0, 10, "a slow machine")
FAST = Cost(1000.0, 3000.0, 10, "a fast machine")


@pytest.fixture
def results(whole_results: Callable[..., dict[str, Any]]) -> Callable[..., ProbeResult]:
    return partial(_results, whole_results)


def _results(
    whole_results: Callable[..., dict[str, Any]],
    values: dict[str, tuple[float, float, float]],
    p_holm: float = 0.001,
) -> ProbeResult:
    """What the rule reads of a probe's results: two feature sets an encoder, the first a little better."""
    names = list(values)
    best = max(values, key=lambda e: values[e][0])
    models, scores = [], []
    for encoder, (v, low, high) in values.items():
        for view, less in (("center:0.5", 0.0), ("full", 0.05)):
            features = f"{encoder}/{view}/cls"
            about = {"threshold": 0.5, "temperature": 1.0, "platt": [1.0, 0.0]}
            models.append({"features": features, "criterion": v - less, **about})
            cell = [v - less, low - less, high - less]
            record: dict[str, Any] = {"features": features, "role": "oof", "subset": "raw", "domain": ""}
            record |= {"n": 1000, "n_positive": 300}
            scores.append(
                {**record, "dataset": "set:train", "metrics": {"auroc": cell, "balanced_accuracy": cell}}
            )
    comparisons = [
        {
            "dataset": "set:train",
            "role": "oof",
            "metric": "auroc",
            "test": "paired over groups",
            "a": f"{encoder}/center:0.5/cls",
            "b": f"{best}/center:0.5/cls",
            "difference": values[encoder][0] - values[best][0],
            "low": values[encoder][0] - values[best][0] - 0.02,
            "high": values[encoder][0] - values[best][0] + 0.02,
            "p": p_holm,
            "p_holm": p_holm,
        }
        for encoder in names
        if encoder != best
    ]
    document = whole_results(
        [{"dataset": "set:train", "n": 1000}, {"dataset": "other", "n": 500}],
        models=models,
        scores=scores,
        comparisons=comparisons,
    )
    return ProbeResult(document, pd.DataFrame())


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
    # 5 folds: 10 epochs of 800 patches at 1 a second, of 200 at 2 a second, then 500 more
    assert SLOW.hours(1000, 500, 5) == pytest.approx(5 * (8000 + (2000 + 500) / 2) / 3600)


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
    plan = make_plan(
        results({tiny_encoder[0].replace("/", "|"): (0.7, 0.6, 0.8)}),
        train=tmp_path / "images" / "tiny.toml",
        measure=False,
        rule=Rule(),
    )
    file = plan.save(tmp_path / "plan.toml")
    text = file.read_text().replace(tiny_encoder[0].replace("/", "|"), tiny_encoder[0])
    file.write_text(text.replace('folds = "balanced"', "folds = 3"))
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

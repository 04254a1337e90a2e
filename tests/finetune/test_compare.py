"""A fine-tuned model next to a probe, patch by patch."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from patchbank.errors import InvalidRequest
from patchbank.finetune.compare import compare_results
from patchbank.probe import metrics


def saved(folder: Path, features: str, strength: float, *, roles: dict[str, str], n: int = 200) -> Path:
    """Scores that follow the label with this strength; 20 groups, folds 1 and 2."""
    rng = np.random.default_rng(int(strength * 10))
    frames = []
    for dataset, role in roles.items():
        y = np.arange(n) % 2
        score = strength * (y - 0.5) + rng.normal(size=n)
        frames.append(
            pd.DataFrame(
                {
                    "patch_id": [f"{dataset}/{i}" for i in range(n)],
                    "dataset": dataset,
                    "group": [f"g{i % 20}" for i in range(n)],
                    "label": y,
                    "fold": 1 + np.arange(n) % 2 if role == "oof" else 0,
                    "features": features,
                    "role": role,
                    "probability": 1 / (1 + np.exp(-score)),
                }
            )
        )
    document = {"chosen": features, "folds": {"n_splits": 2}}
    folder.mkdir()
    pd.concat(frames, ignore_index=True).to_parquet(folder / "predictions.parquet")
    (folder / "results.json").write_text(
        json.dumps({"format": "patchbank-probe-results", "version": 1, **document}), "utf-8"
    )
    return folder


def test_differences_are_paired_by_patch(tmp_path: Path) -> None:
    ours = saved(tmp_path / "a", "tuned", 3.0, roles={"set": "oof", "test": "ensemble", "only": "ensemble"})
    theirs = saved(tmp_path / "b", "probe", 1.0, roles={"set": "oof", "test": "refit"})
    records = compare_results(ours, theirs)
    assert {r["dataset"] for r in records} == {"set", "test"}
    by = {(r["dataset"], r["metric"]): r for r in records}
    one = by["test", "auroc"]
    assert one["roles"] == ["ensemble", "refit"]
    table = pd.read_parquet(ours / "predictions.parquet").query("dataset == 'test'")
    assert one["value_ours"] == pytest.approx(metrics.auroc(table["label"], table["probability"]))
    assert one["difference"] == pytest.approx(one["value_ours"] - one["value_theirs"])
    assert 0 < one["low"] < one["difference"] < one["high"]
    assert one["p_delong"] < 0.01
    assert by["test", "balanced_accuracy"]["p_delong"] is None
    assert {r["n"] for r in compare_results(ours, theirs, fold=1) if r["dataset"] == "set"} == {100}


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    ours = saved(tmp_path / "a", "tuned", 3.0, roles={"set": "oof"})
    other = saved(tmp_path / "b", "probe", 1.0, roles={"another": "oof"})
    with pytest.raises(InvalidRequest, match="no evaluation set in common"):
        compare_results(ours, other)
    with pytest.raises(InvalidRequest, match="there are probe"):
        compare_results(ours, other, features="prob")
    wrong = saved(tmp_path / "c", "probe", 1.0, roles={"set": "oof"})
    table = pd.read_parquet(wrong / "predictions.parquet")
    table.assign(label=1 - table["label"]).to_parquet(wrong / "predictions.parquet")
    with pytest.raises(InvalidRequest, match="disagree on the label"):
        compare_results(ours, wrong)

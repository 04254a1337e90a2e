"""A fine-tuned model next to a probe, patch by patch."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from patchbank.errors import InvalidRequest
from patchbank.finetune.compare import compare_results
from patchbank.probe.config import ProbeConfig
from patchbank.probe.results.files import ProbeResult
from patchbank.probe.results.merge import from_predictions
from patchbank.probe.results.schema import PAIRED
from patchbank.probe.results.scoring import compare_models, estimate_set
from patchbank.probe.statistics import metrics
from patchbank.probe.statistics.comparisons import holm


@pytest.fixture
def saved(whole_results: Callable[..., dict[str, Any]]) -> Callable[..., Path]:
    return partial(_saved, whole_results)


def _saved(
    whole_results: Callable[..., dict[str, Any]],
    folder: Path,
    features: str,
    strength: float,
    *,
    roles: dict[str, str],
    n: int = 200,
    flipped: bool = False,
) -> Path:
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
                    "path": "",
                    "content_hash": "",
                    "dataset": dataset,
                    "domain": "",
                    "group": [f"g{i % 20}" for i in range(n)],
                    "label": (1 - y) if flipped else y,
                    "fold": 1 + np.arange(n) % 2 if role == "oof" else 0,
                    "features": features,
                    "role": role,
                    "score": score,
                    "ranking": score,
                }
            )
        )
    document = whole_results(
        [{"dataset": dataset, "n_groups": 20, "groups_known": True} for dataset in roles],
        config=ProbeConfig.from_dict({"features": [features]}).to_dict(),
        chosen=features,
    )
    return ProbeResult(document, pd.concat(frames, ignore_index=True)).save(folder)


def test_differences_are_paired_by_patch(tmp_path: Path, saved: Callable[..., Path]) -> None:
    ours = saved(tmp_path / "a", "tuned", 3.0, roles={"set": "oof", "test": "ensemble", "only": "ensemble"})
    theirs = saved(tmp_path / "b", "probe", 1.0, roles={"set": "oof", "test": "refit"})
    records = compare_results(ours, theirs)
    assert {r["dataset"] for r in records} == {"set", "test"}
    by = {(r["dataset"], r["metric"]): r for r in records}
    one = by["test", "auroc"]
    assert one["roles"] == ["ensemble", "refit"]
    table = pd.read_parquet(ours / "predictions.parquet").query("dataset == 'test'")
    assert one["value_ours"] == pytest.approx(metrics.auroc(table["label"], table["score"]))
    assert one["difference"] == pytest.approx(one["value_ours"] - one["value_theirs"])
    assert 0 < one["low"] < one["difference"] < one["high"]
    assert set(one) >= {"p", "p_holm", "p_method"}
    assert {r["n"] for r in compare_results(ours, theirs, fold=1) if r["dataset"] == "set"} == {100}


def test_the_test_is_the_one_of_the_probes_with_holm_over_all_that_is_asked(
    tmp_path: Path, saved: Callable[..., Path]
) -> None:
    """The same two models as feature sets of one probe result have the same difference, interval and p."""
    roles = {"set": "oof", "test": "refit", "third": "refit"}
    ours = saved(tmp_path / "a", "tuned", 1.4, roles=roles)
    theirs = saved(tmp_path / "b", "probe", 1.0, roles=roles)
    records = compare_results(ours, theirs)
    loaded = {"ours": ProbeResult.load(ours), "theirs": ProbeResult.load(theirs)}
    config = ProbeConfig.from_dict(loaded["theirs"].results.config.to_json())
    assert config.interval == "jackknife"
    for dataset, role in roles.items():
        frames = {name: result.predictions for name, result in loaded.items()}
        tables = {n: frame[frame["dataset"] == dataset].set_index("patch_id") for n, frame in frames.items()}
        rows, columns = from_predictions(dataset, tables, role=role)
        whole = estimate_set(rows, columns, config=config)
        expected = compare_models(rows, columns, config=config, reference="theirs", whole=whole)
        for one in (r for r in expected if r.test == PAIRED):
            (mine,) = [r for r in records if (r["dataset"], r["metric"]) == (dataset, one.metric)]
            for key in ("difference", "low", "high", "p", "p_method"):
                assert mine[key] == getattr(one, key), key
    assert len(records) == 6
    assert [r["p_holm"] for r in records] == pytest.approx(holm([r["p"] for r in records]))


def test_train_rows_that_a_recipe_chose_its_epoch_on_are_left_out(
    tmp_path: Path, saved: Callable[..., Path]
) -> None:
    ours = saved(tmp_path / "a", "recipe", 3.0, roles={"set": "validation", "test": "ensemble"})
    theirs = saved(tmp_path / "b", "probe", 1.0, roles={"set": "oof", "test": "ensemble"})
    assert {r["dataset"] for r in compare_results(ours, theirs)} == {"test"}


def test_what_cannot_be_compared_is_refused(tmp_path: Path, saved: Callable[..., Path]) -> None:
    ours = saved(tmp_path / "a", "tuned", 3.0, roles={"set": "oof"})
    other = saved(tmp_path / "b", "probe", 1.0, roles={"another": "oof"})
    with pytest.raises(InvalidRequest, match="no evaluation set in common"):
        compare_results(ours, other)
    with pytest.raises(InvalidRequest, match="available: probe"):
        compare_results(ours, other, features="prob")
    wrong = saved(tmp_path / "c", "probe", 1.0, roles={"set": "oof"}, flipped=True)
    with pytest.raises(InvalidRequest, match="disagree on the label"):
        compare_results(ours, wrong)

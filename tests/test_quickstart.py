"""The main job from end to end, on the embedded sample."""

import json
from pathlib import Path

import numpy as np
import pytest
from patchbank.probe.results.files import ProbeResult

pytestmark = pytest.mark.xdist_group("quickstart")


def test_the_quickstart_leaves_data_bank_and_results(quickstart_folder: Path) -> None:
    assert sorted(p.name for p in (quickstart_folder / "data").glob("*.toml")) == [
        "synthetic-external.toml",
        "synthetic-mitoses.toml",
    ]
    result = ProbeResult.load(quickstart_folder / "results")
    scored = {score.dataset: score.estimate("auroc") for score in result.results.leaderboard()}
    assert set(scored) == {"synthetic-mitoses:train", "synthetic-mitoses:test", "synthetic-external"}
    for dataset, estimate in scored.items():
        value, low, high = np.array(list(estimate), float)
        assert low <= value <= high, dataset
        assert value > 0.6, f"{dataset}: the sample has a signal"


def test_the_second_extraction_makes_no_forward_pass(quickstart_output: dict[str, object]) -> None:
    assert quickstart_output["first"]["embedded"] > 500  # type: ignore[index]
    assert quickstart_output["second"]["forwards"] == 0  # type: ignore[index]
    assert quickstart_output["second"]["model_loaded"] is False  # type: ignore[index]
    assert json.dumps(quickstart_output["results"])

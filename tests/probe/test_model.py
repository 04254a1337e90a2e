"""Probes as plain numbers: the scores of the refit, written, read, refused where the file is not one."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patchbank.datasets.folds import make_folds
from patchbank.errors import InvalidRequest, ProbeError
from patchbank.probe.config import ProbeConfig
from patchbank.probe.model import ProbeModel, apply, calibrated, load_probes, mean_logit, save_probes
from patchbank.probe.protocol import ProtocolRun, make_plan, run_protocol, run_published
from scipy.special import expit, logit


def fitted(**settings: Any) -> tuple[ProtocolRun, np.ndarray]:
    """A run on a small set whose columns have other scales and levels, and its test rows."""
    rng = np.random.default_rng(3)
    n, d = 240, 7
    groups = np.array([f"s{i % 24}" for i in range(n)], dtype=object)
    y = (rng.random(n) < 0.4).astype(int)
    X = (rng.standard_normal((n, d)) * np.arange(1, d + 1) + 5).astype(np.float32)
    X[:, 2] += 3 * y
    folds = make_folds(y.astype(str), groups, n_splits=3, seed=0).assign(groups)
    config = ProbeConfig.from_dict(
        {"features": ["any"], "C": [1e-2, 1.0], "inner_folds": 2, "bootstrap": 0, **settings}
    )
    votes = np.where(y == 1, rng.uniform(0.5, 1, n), rng.uniform(0, 0.5, n))
    plan = make_plan(y, groups, folds, config=config, votes=votes)
    T = (rng.standard_normal((90, d)) * 3 + 5).astype(np.float32)
    run = run_protocol if config.solver == "exact" else run_published
    return run(X, y, plan, {"test": T}, config=config), T


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"preprocess": ["none"]},
        {"preprocess": ["l2"]},
        {"preprocess": ["whiten"]},
        {"class_weight": ["votes"]},
        {"probe": "knn"},
        {"probe": "centroid"},
        {"probe": "ridge"},
        {"probe": "svm"},
        {"probe": "mlp"},
        {"probe": "knn", "preprocess": ["whiten"]},
        {"solver": "paper-sgd"},
    ],
    ids=str,
)
def test_the_stored_numbers_give_the_scores_of_the_run(settings: dict[str, Any], tmp_path: Path) -> None:
    run, T = fitted(**settings)
    save_probes(tmp_path / "probes.npz", {"a/full/cls + b/full/cls": run.model})
    (name, probe), *others = load_probes(tmp_path / "probes.npz").items()
    assert name == "a/full/cls + b/full/cls"
    assert not others
    expected = run.refit["test"] if run.refit else mean_logit(run.fold_models["test"])
    np.testing.assert_allclose(probe.score(T), expected, rtol=2e-4, atol=2e-4)
    assert np.array_equal(probe.adjusted, run.adjusted)
    assert probe.dim == T.shape[1]
    with pytest.raises(InvalidRequest, match="probe on 7 columns"):
        probe.score(T[:, :5])


def test_steps_by_hand() -> None:
    X = np.array([[3.0, 4.0], [0.0, 0.0]])
    shift, unit = ("shift", {"value": np.array([0.0, 8.0])}), ("unit", {})
    affine = ("affine", {"weight": np.array([[1.0], [-1.0]]), "bias": np.array([0.5])})
    assert apply((shift, unit, affine), X) == pytest.approx([3 / 5 + 4 / 5 + 0.5, 1.5])
    assert apply((unit, affine, ("relu", {})), X) == pytest.approx([0.3, 0.5])
    assert apply((("scale", {"value": np.array([2.0, 0.0])}), affine), X) == pytest.approx([6.5, 0.5])


def test_the_mean_probability_keeps_its_order_where_probabilities_saturate() -> None:
    each = np.array([[0.2, -1.0], [45.0, 50.0], [60.0, 60.0], [-80.0, -80.0], [-90.0, -80.0]])
    found = mean_logit(each)
    assert found[0] == pytest.approx(logit(expit(each[0]).mean()))
    assert found[1] == pytest.approx(-np.log((np.exp(-45) + np.exp(-50)) / 2))
    assert found[2] == pytest.approx(60)
    assert found[4] < found[3] < found[0] < found[1] < found[2]


def test_probability_threshold_and_call_are_of_one_scale() -> None:
    rng = np.random.default_rng(0)
    score = rng.standard_normal(500) * 4
    for scale, offset in ((0.5, -1.0), (2.0, 0.3), (1e-7, -0.4)):
        p, t = calibrated(score, np.array([0.7, 1.0, scale, offset]))
        assert np.array_equal(p >= t, score >= 0.7), "the calls are those of the score"
        assert (np.argsort(p, kind="stable") == np.argsort(score, kind="stable")).all()
    p, t = calibrated(score, np.array([0.7, 1.0, 0.5, -1.0]))
    np.testing.assert_allclose(p, expit(0.5 * score - 1))
    np.testing.assert_allclose(t, expit(0.5 * 0.7 - 1))


def test_a_file_that_is_no_probe_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "probes.npz"
    step = ("affine", {"weight": np.ones((2, 1)), "bias": np.zeros(1)})
    save_probes(file, {"a": ProbeModel(((step,),), np.array([0.0, 1.0, 1.0, 0.0]))})
    whole = file.read_bytes()
    refused = 0
    for damaged in (b"", b"PK", whole[:100], whole[:-30], b"<html>", np.random.default_rng(0).bytes(500)):
        file.write_bytes(damaged)
        with pytest.raises(ProbeError, match=r"probes\.npz cannot be read"):
            load_probes(file)
        refused += 1
    assert refused == 6
    for about in (
        "{",
        "[]",
        "{}",
        '{"format": "patchbank-probes", "version": 1, "probes": {"a": [["exec"]]}}',
    ):
        np.savez(file, about=np.array(about))
        with pytest.raises(ProbeError, match=r"probes\.npz cannot be read"):
            load_probes(file)
    np.savez(file, about=np.array(json.dumps({"format": "patchbank-probes", "version": 2, "probes": {}})))
    with pytest.raises(ProbeError, match="version 2; this patchbank reads"):
        load_probes(file)
    np.savez(file, about=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert zipfile.is_zipfile(file)
    with pytest.raises(ProbeError, match="cannot be read"):
        load_probes(file)

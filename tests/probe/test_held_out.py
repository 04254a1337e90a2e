"""What is held out plays no part: not by its labels, not by its features, for any probe and preprocessing."""

import itertools
from typing import Any

import numpy as np
import pytest
from patchbank.errors import InvalidRequest
from patchbank.probe.classifiers import simple as others
from patchbank.probe.classifiers.transforms import Scaling, fit_transform
from patchbank.probe.config import PARAMETERS, PREPROCESSING, ProbeConfig
from patchbank.probe.model import apply
from patchbank.probe.protocol import ProtocolRun, make_plan, run_protocol
from sklearn.linear_model import LogisticRegression

GRIDS: dict[str, dict[str, Any]] = {
    "logistic": {"C": [1e-3, 1e-1, 10]},
    "knn": {"k": [5, 15, 40]},
    "centroid": {},
    "ridge": {"alpha": [1, 100, 1e4]},
    "svm": {"C": [1e-4, 1e-2]},
    "mlp": {"alpha": [1e-2], "hidden": 4},
}
COMBINATIONS = list(itertools.product(GRIDS, PREPROCESSING))


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    slide = np.repeat(np.arange(12), 10)
    y = (rng.random(120) < 0.4).astype(int)
    X = rng.standard_normal((120, 8)) * np.geomspace(0.1, 10, 8) + 1
    X[:, 3] += 1.5 * y
    return {
        "X": X.astype(np.float32),
        "y": y,
        "groups": slide.astype(str).astype(object),
        "folds": 1 + slide % 3,
        "T": (rng.standard_normal((30, 8)) * np.geomspace(0.1, 10, 8) + 1).astype(np.float32),
    }


def run(data: dict[str, np.ndarray], probe: str, preprocess: str, **changed: np.ndarray) -> ProtocolRun:
    settings = {"features": ["any"], "probe": probe, "preprocess": [preprocess], "inner_folds": 3}
    config = ProbeConfig.from_dict({**settings, **GRIDS[probe], "tol": 1e-9})
    data = {**data, **changed}
    plan = make_plan(data["y"], data["groups"], data["folds"], config=config)
    return run_protocol(data["X"], data["y"], plan, {"T": data["T"]}, config=config)


@pytest.mark.parametrize(("probe", "preprocess"), COMBINATIONS)
def test_features_and_labels_of_a_fold_change_nothing_of_its_model(
    data: dict[str, np.ndarray], probe: str, preprocess: str
) -> None:
    """Rows of fold 1 become others a hundred times larger, with other labels: the model of fold 1, all that
    chose it and its calibration stay. Those of fold 2 do not, so the test can see a change."""
    rng = np.random.default_rng(4)
    held = data["folds"] == 1
    X, y = data["X"].copy(), data["y"].copy()
    X[held] = 100 * rng.standard_normal((held.sum(), 8)) + 50
    y[held] = rng.permutation(y[held])
    before, after = run(data, probe, preprocess), run(data, probe, preprocess, X=X, y=y)
    close: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-3}  # the solver's tolerance
    assert before.fold_choices[0] == after.fold_choices[0]
    np.testing.assert_allclose(before.fold_paths[0], after.fold_paths[0], **close)
    np.testing.assert_allclose(before.fold_models["T"][:, 0], after.fold_models["T"][:, 0], **close)
    np.testing.assert_allclose(before.oof_adjusted[held], after.oof_adjusted[held], rtol=0.02, atol=1e-3)
    assert not np.allclose(before.fold_models["T"][:, 1], after.fold_models["T"][:, 1], **close)


@pytest.mark.parametrize(("probe", "preprocess"), COMBINATIONS)
def test_features_of_test_rows_change_nothing(
    data: dict[str, np.ndarray], probe: str, preprocess: str
) -> None:
    before = run(data, probe, preprocess)
    T = np.concatenate([data["T"][:5], 1e3 + data["T"]])
    after = run(data, probe, preprocess, T=T)
    np.testing.assert_array_equal(before.oof, after.oof)
    np.testing.assert_allclose(before.refit["T"][:5], after.refit["T"][:5], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("probe", [name for name in GRIDS if name != "centroid"])
def test_preprocessing_acts_on_every_probe(data: dict[str, np.ndarray], probe: str) -> None:
    scores = {preprocess: run(data, probe, preprocess).oof for preprocess in PREPROCESSING}
    if probe == "knn":
        np.testing.assert_array_equal(scores.pop("l2"), scores["none"], "a cosine is one of unit rows")
    for a, b in itertools.combinations(scores.values(), 2):
        order = np.argsort(a, kind="stable")
        assert (np.diff(b[order]) < 0).any(), "another transform, another order"


@pytest.mark.parametrize(("probe", "preprocess"), COMBINATIONS)
def test_a_protocol_is_the_probe_on_transformed_rows(
    data: dict[str, np.ndarray], probe: str, preprocess: str
) -> None:
    """The refit, by hand: transform and scale from the training rows, fit, apply; and its stored steps."""
    found = run(data, probe, preprocess)
    choice = found.choice
    assert choice is not None
    transform = fit_transform(preprocess, data["X"])
    scaling = Scaling.fit(transform(data["X"]), standardize=preprocess == "standardize")
    Z, T = (scaling(transform(rows)) for rows in (data["X"], data["T"]))
    weight = np.where(data["y"] == 1, 0.5 / data["y"].mean(), 0.5 / (1 - data["y"].mean()))
    if probe == "logistic":
        model = LogisticRegression(C=choice.value, class_weight="balanced", tol=1e-10, max_iter=10_000)
        expected = model.fit(Z, data["y"]).decision_function(T)
    else:
        varied = {"alphas": (choice.value,)} if probe == "ridge" else {}
        if choice.parameter and probe != "ridge":
            varied = {choice.parameter: int(choice.value) if probe == "knn" else choice.value}
        varied |= {"hidden": 4} if probe == "mlp" else {}
        by_hand = others.make_probe(probe, **varied).fit(Z, data["y"], sample_weight=weight)
        expected = by_hand.decision(T) - by_hand.threshold
    np.testing.assert_allclose(found.refit["T"], expected, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(
        apply(found.models["refit"].members[0], data["T"]), found.refit["T"], rtol=1e-3, atol=1e-3
    )


def test_the_parameter_has_its_own_name_and_grid(data: dict[str, np.ndarray]) -> None:
    for probe, settings in GRIDS.items():
        found = run(data, probe, "none")
        assert found.choice is not None
        own = PARAMETERS[probe][0]
        told = found.choice.to_dict()
        assert told["parameter"] == own
        if own:
            assert told[own] in settings[own]
            assert sorted(found.values.tolist()) == sorted(settings[own])
        assert set(told) == {"preprocess", "class_weight", "parameter", *([own] if own else [])}
    with pytest.raises(InvalidRequest, match="k is a setting of the probe knn, not of 'ridge'"):
        ProbeConfig.from_dict({"features": ["any"], "probe": "ridge", "k": [5]})
    config = ProbeConfig(features=("any",), probe="knn", k=(500,), inner_folds=3)
    plan = make_plan(data["y"], data["groups"], data["folds"], config=config)
    with pytest.raises(InvalidRequest, match=r"k is 500, and the smallest training set .* has 50 rows"):
        run_protocol(data["X"], data["y"], plan, {}, config=config)


def test_knn_takes_its_metric_and_temperature(data: dict[str, np.ndarray]) -> None:
    plan_of = {"features": ["any"], "probe": "knn", "k": [10], "inner_folds": 3}
    for_knn: tuple[dict[str, Any], ...] = ({"metric": "euclidean"}, {"temperature": 0.05}, {})
    for options in for_knn:
        config = ProbeConfig.from_dict({**plan_of, **options})
        plan = make_plan(data["y"], data["groups"], data["folds"], config=config)
        found = run_protocol(data["X"], data["y"], plan, {"T": data["T"]}, config=config)
        weight = np.where(data["y"] == 1, 0.5 / data["y"].mean(), 0.5 / (1 - data["y"].mean()))
        by_hand = others.KNN(k=10, **options).fit(data["X"], data["y"], sample_weight=weight)
        np.testing.assert_allclose(found.refit["T"], by_hand.decision(data["T"]) - 0.5, atol=1e-9)
    assert ProbeConfig.from_dict(plan_of).to_dict()["metric"] == "cosine"
    with pytest.raises(InvalidRequest, match="temperature is a positive number and goes with metric cosine"):
        ProbeConfig.from_dict({**plan_of, "metric": "euclidean", "temperature": 0.1})


@pytest.mark.parametrize("probe", list(GRIDS))
def test_probes_are_given_the_groups_of_their_own_rows(
    data: dict[str, np.ndarray], probe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if probe == "logistic":
        pytest.skip("chooses nothing itself")
    seen = []
    kind = others.PROBES[probe]
    fit = kind.fit

    def spy(self: Any, X: Any, y: Any, *, sample_weight: Any = None, groups: Any = None) -> Any:
        seen.append((len(X), set(groups)))
        return fit(self, X, y, sample_weight=sample_weight, groups=groups)

    monkeypatch.setattr(kind, "fit", spy)
    run(data, probe, "standardize")
    slides = set(data["groups"])
    outer = [slides - set(data["groups"][data["folds"] == k]) for k in (1, 2, 3)]
    assert {n for n, _ in seen} >= {120, 80}
    for n, groups in seen:
        assert n == 10 * len(groups)
        assert groups in ([slides] if n == 120 else outer) or n < 80


def test_few_shots_of_ridge_leave_out_slides(data: dict[str, np.ndarray]) -> None:
    """With the groups of the rows that were drawn; rows where all come from one slide."""
    args = {"shots": (6,), "repeats": 2, "seed": 0, "preprocess": "standardize"}
    curve = others.few_shot_curve(
        others.Ridge, data["X"], data["y"], {"T": (data["X"], data["y"])}, groups=data["groups"], **args
    )
    for _, repeat, rows in others.few_shot_rows(
        data["y"], shots=(6,), repeats=2, groups=data["groups"], seed=0
    ):
        scaling = Scaling.fit(data["X"][rows], standardize=True)
        by_hand = others.Ridge().fit(scaling(data["X"][rows]), data["y"][rows], groups=data["groups"][rows])
        score = by_hand.decision(scaling(data["X"]))
        positive = score[data["y"] == 1][:, None] > score[data["y"] == 0]
        mine = curve[(curve["repeat"] == repeat) & (curve["metric"] == "auroc")]["value"].item()
        assert mine == pytest.approx(positive.mean())
    one = np.full(len(data["y"]), "one", dtype=object)
    assert len(others.few_shot_curve(others.Ridge, data["X"], data["y"], {}, groups=one, **args)) == 0


def test_settings_that_cannot_matter_are_no_axis_and_it_is_said() -> None:
    both = {"features": ["any"], "class_weight": ["none", "balanced"]}
    config = ProbeConfig.from_dict({**both, "select": "auroc"})
    assert config.class_weight == ("none",)
    assert config.notes == (
        "AUROC, which chooses, cannot tell class weights apart: all models have the first given, 'none'",
    )
    assert ProbeConfig.from_dict(config.to_dict()) == config
    for select in ("log_loss", "balanced_accuracy"):
        assert ProbeConfig.from_dict({**both, "select": select}).class_weight == ("none", "balanced")
    assert ProbeConfig.from_dict({**both, "probe": "centroid", "select": "balanced_accuracy"}).notes
    assert ProbeConfig.from_dict({"features": ["any"]}).class_weight == ("balanced",)
    recipe = ProbeConfig.from_dict({**both, "solver": "paper-sgd", "preprocess": ["l2"], "C": [1]})
    assert (recipe.preprocess, recipe.class_weight, recipe.C) == (("none",), (), None)
    assert len(recipe.notes) == 2

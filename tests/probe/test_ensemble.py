"""Ensembles over systems: weights against other programs; no fold and no test set has a part in its own."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from patchbank.errors import InvalidRequest
from patchbank.prediction import predict
from patchbank.probe.cli import probe_group
from patchbank.probe.ensemble import (
    SHRINKAGE,
    alone,
    ensemble_of,
    ensemble_systems,
    least_log_loss,
    least_squares,
    read_members,
)
from patchbank.probe.results.files import ProbeResult
from patchbank.probe.run import run_probe
from scipy.special import expit, logit, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

GRID: dict[str, Any] = {"C": (1e-3, 1e-1), "folds": 3, "inner_folds": 2, "bootstrap": 200, "progress": False}


def test_weights_of_two_classes_are_scikit_learns_where_all_are_positive() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(400) < 0.2).astype(int)
    z = rng.normal(size=(400, 3)) + np.outer(y, [1.5, 1.0, 0.5]) - [3, 0, 1]
    # the same loss: mean over classes that weigh alike, and SHRINKAGE x squared distance from 1/3
    away = z.mean(axis=1)
    theirs = LogisticRegression(
        class_weight="balanced", C=1 / (2 * SHRINKAGE * 400), tol=1e-10, max_iter=1000
    )
    found = least_log_loss(y, z)
    objective = lambda w, b: _loss(y, z @ w + b) + SHRINKAGE * ((w - 1 / 3) ** 2).sum()  # noqa: E731
    theirs.fit(z, y)
    assert found.weights == pytest.approx(theirs.coef_[0], abs=0.01), "the pull is to 1/3 there, to 0 here"
    best = objective(found.weights, found.offset)
    for i in range(4):
        for step in (-1e-3, 1e-3):
            moved = np.append(found.weights, found.offset)
            moved[i] += step
            assert objective(moved[:3], moved[3]) > best
    assert len(away) == 400


def _loss(y: np.ndarray, s: np.ndarray) -> float:
    each = np.logaddexp(0, np.where(y == 1, -s, s))
    return float((each[y == 1].mean() + each[y == 0].mean()) / 2)


def test_a_member_that_knows_nothing_weighs_nothing_and_twins_share() -> None:
    rng = np.random.default_rng(1)
    y = np.arange(600) % 2
    good = rng.normal(size=600) + 2 * y
    noise = rng.normal(size=600) - 0.3 * y  # worse than nothing
    found = least_log_loss(y, np.stack([good, good, noise], axis=1))
    assert found.weights[2] == 0
    assert found.weights[0] == pytest.approx(found.weights[1], rel=1e-3)
    assert sum(found.shares({"a": 0, "b": 0, "c": 0}).values()) == pytest.approx(1)


def test_weights_of_three_classes_minimise_the_balanced_log_loss() -> None:
    rng = np.random.default_rng(2)
    y = rng.choice(3, 500, p=[0.6, 0.3, 0.1])
    eye = np.eye(3)[y]
    z = np.log(softmax(np.stack([rng.normal(size=(500, 3)) + k * eye for k in (2.0, 0.7)], axis=1), axis=2))
    found = least_log_loss(y, z)

    def loss(weights: Sequence[float]) -> float:
        p = softmax(np.einsum("m,nmk->nk", weights, z), axis=1)[np.arange(500), y]
        of_classes = np.mean([-np.log(p[y == k]).mean() for k in range(3)])
        return float(of_classes + SHRINKAGE * ((np.array(weights) - 0.5) ** 2).sum())

    a, b = found.weights
    assert a > b > 0
    assert all(
        loss((a + da, b + db)) > loss((a, b)) for da, db in [(0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01)]
    )
    np.testing.assert_allclose(found.apply(z), a * z[:, 0] + b * z[:, 1])


def test_weights_of_numbers_are_least_squares_and_do_not_depend_on_units() -> None:
    rng = np.random.default_rng(3)
    y = rng.normal(size=(300, 2)) * [1, 500] + [3, -40]
    z = np.stack([y + rng.normal(size=(300, 2)) * s * [1, 500] for s in (0.5, 1.0)], axis=1)
    found = least_squares(y, z)
    # two independent errors: weights go as their inverse variances, shrunk as the spread of y asks
    assert found.weights[0] / found.weights[1] == pytest.approx(4, rel=0.15)
    again = least_squares(y * [1, 1e-3], z * [1, 1e-3])
    np.testing.assert_allclose(again.weights, found.weights, rtol=1e-6)
    residual = y - found.apply(z)
    np.testing.assert_allclose(residual.mean(axis=0), 0, atol=1e-9)
    assert (residual.std(axis=0) < (y - z[:, 0]).std(axis=0)).all()


@pytest.fixture(scope="module")
def members(study: SimpleNamespace) -> dict[str, ProbeResult]:
    common = {"train": study.train, "tests": [study.external], "bank": study.bank, **GRID}
    return {
        "good": run_probe(features=["good/full/cls"], **common),
        "centre": run_probe(features=["good/center:0.5/cls", "poor/full/cls"], **common),
    }


def test_an_ensemble_is_the_weighted_sum_of_calibrated_log_odds(members: dict[str, ProbeResult]) -> None:
    merged = ensemble_systems(members, name="both")
    model = merged.results.model("both")
    assert model.weights is not None
    assert model.offset is not None
    assert model.fold_weights is not None
    assert sum(model.weights.values()) == pytest.approx(1)
    assert len(model.fold_weights) == 3
    table = merged.predictions
    wide = table[table["dataset"] == "outer"].pivot(
        index="patch_id", columns="features", values="probability"
    )
    score = table[(table["dataset"] == "outer") & (table["features"] == "both")].set_index("patch_id")[
        "score"
    ]
    z = logit(wide[["good", "centre"]]).to_numpy()
    slope = np.linalg.lstsq(np.c_[z, np.ones(len(z))], score.loc[wide.index].to_numpy(), rcond=None)[0]
    assert slope[2] == pytest.approx(model.offset[0])
    assert slope[0] / slope[:2].sum() == pytest.approx(model.weights["good"])
    (of_test,) = (s for s in merged.results.whole(dataset="outer", features="both"))
    labels = table[(table["dataset"] == "outer") & (table["features"] == "both")]
    assert of_test.estimate("auroc").value == pytest.approx(roc_auc_score(labels["label"], labels["score"]))
    compared = {frozenset((c.a, c.b)) for c in merged.results.comparisons}
    assert compared == {frozenset(p) for p in (("both", "good"), ("both", "centre"), ("good", "centre"))}
    assert any("never" in n or "took no part" in n for n in merged.results.notes)


def test_a_fold_has_no_part_in_its_own_weights_nor_tests_in_any(members: dict[str, ProbeResult]) -> None:
    before = ensemble_of(members, name="both")
    changed = {}
    for name, result in members.items():  # labels of fold 1, and of all test rows, turned round
        table = result.predictions.copy()
        turn = (table["fold"] == 1) | (table["dataset"] != "inner:train")
        table["label"] = np.where(turn, 1 - table["label"], table["label"]).astype(np.int8)
        changed[name] = ProbeResult(result.results, table)
    after = ensemble_of(changed, name="both")
    assert before.results.models[0].fold_weights is not None
    assert after.results.models[0].fold_weights is not None
    one, other = before.results.models[0].fold_weights[0], after.results.models[0].fold_weights[0]
    assert one == pytest.approx(other, abs=1e-12)
    a, b = (
        t[(t["role"] == "oof") & (t["fold"] == 1)]["score"] for t in (before.predictions, after.predictions)
    )
    np.testing.assert_allclose(a, b)
    turned = {}
    for name, result in members.items():
        table = result.predictions.copy()
        tests = table["dataset"] != "inner:train"
        table["label"] = np.where(tests, 1 - table["label"], table["label"]).astype(np.int8)
        turned[name] = ProbeResult(result.results, table)
    again = ensemble_of(turned, name="both")
    assert again.results.models[0].weights == before.results.models[0].weights
    np.testing.assert_array_equal(again.predictions["score"], before.predictions["score"])
    np.testing.assert_array_equal(again.predictions["threshold"], before.predictions["threshold"])


def test_equal_weights_are_the_mean_of_log_odds(members: dict[str, ProbeResult]) -> None:
    merged = ensemble_systems(members, weights="equal")
    assert merged.results.model("ensemble").weights == {"good": 0.5, "centre": 0.5}
    table = merged.predictions[merged.predictions["dataset"] == "outer"]
    wide = table.pivot(index="patch_id", columns="features", values="probability")
    score = table[table["features"] == "ensemble"].set_index("patch_id")["score"].loc[wide.index]
    away = score - logit(wide[["good", "centre"]]).mean(axis=1)
    train = merged.results.train
    assert train.n_positive is not None
    np.testing.assert_allclose(away, -logit(train.n_positive / train.n))
    assert expit(score).between(0, 1).all()


def test_what_cannot_be_combined_is_refused(study: SimpleNamespace, members: dict[str, ProbeResult]) -> None:
    common = {"train": study.train, "tests": [study.external], "bank": study.bank, **GRID}
    old = run_probe(features=["poor/full/cls"], solver="paper-sgd", **common)
    folds = run_probe(features=["poor/full/cls"], **{**common, "folds": 2, "bootstrap": 0})
    cases = [
        ({"good": members["good"]}, "needs two members"),
        ({**members, "old": old}, "'old' has no out-of-fold scores"),
        ({**members, "two": folds}, "'two' has other folds than 'good'"),
    ]
    for results, message in cases:
        with pytest.raises(InvalidRequest, match=message):
            ensemble_of(results, name="any")
    with pytest.raises(InvalidRequest, match="weights 'best' is not one of folds, equal"):
        ensemble_of(members, name="any", weights="best")
    with pytest.raises(InvalidRequest, match="a member is called 'good'"):
        ensemble_systems(members, name="good")
    with pytest.raises(InvalidRequest, match="did you mean 'poor/full/cls'"):
        alone(members["centre"], "poor/full/cl")


def test_the_command_prints_weights_scores_and_the_best_members_difference(
    members: dict[str, ProbeResult], tmp_path: Path
) -> None:
    for name, result in members.items():
        result.save(tmp_path / name)
    words = [str(tmp_path / "good"), f"{tmp_path / 'centre'}::poor/full/cls", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(probe_group, ["ensemble", *words, "--name", "both"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "best member out of fold" in done.output
    again = ProbeResult.load(tmp_path / "out").results
    assert {m.features for m in again.models} == {"good/full/cls", "poor/full/cls", "both"}
    assert set(read_members([str(tmp_path / "good"), str(tmp_path / "centre")])) == {
        "good/full/cls",
        "centre",
    }
    (note,) = [n for n in again.notes if "weights of" in n]
    assert note.startswith("both: weights of good/full/cls")
    page = CliRunner().invoke(probe_group, ["report", str(tmp_path / "out"), "-o", str(tmp_path / "r.html")])
    assert page.exit_code == 0, page.output
    (tmp_path / "image.png").touch()
    for place in (tmp_path / "out", tmp_path / "out" / "results.json"):
        with pytest.raises(InvalidRequest, match=r"compares 3 systems .* none of their models. Fix: "):
            predict(place, tmp_path / "image.png")

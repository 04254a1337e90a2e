"""Scores of several models on one scale: what is pooled, and what ranks rows."""

from typing import Any

import numpy as np
import pytest
from patchbank.probe.config import ProbeConfig
from patchbank.probe.model import mean_logit
from patchbank.probe.protocol import adjustment, as_ensemble, make_plan, run_protocol, standardized
from patchbank.probe.results.scoring import Column, Rows, compare_models, mean_of_models, score_set
from patchbank.probe.selection import criterion
from scipy.special import expit
from sklearn.metrics import average_precision_score, roc_auc_score

QUICK = ProbeConfig(features=("any",), bootstrap=0)


def make_rows(y: np.ndarray, **columns: Any) -> Rows:
    none = np.full(len(y), "", dtype=object)
    return Rows(
        **{
            "dataset": "set",
            "patch_id": none,
            "y": y,
            "group": none,
            "domain": none,
            "distinct": np.ones(len(y), bool),
            "votes_positive": np.full(len(y), -1),
            "votes_total": np.full(len(y), -1),
            "path": none,
            "content_hash": none,
            **columns,
        }
    )


def test_pooled_auroc_does_not_depend_on_the_scales_of_the_folds() -> None:
    """Five models of one quality whose scores differ by factors up to 1000 and by an offset."""
    rng = np.random.default_rng(0)
    y, fold = (rng.random(3000) < 0.3).astype(int), np.repeat(np.arange(5), 600)
    good = rng.standard_normal(3000) + 1.5 * y
    factor, shift = np.array([1e-2, 0.1, 1, 3, 10]), np.array([-1, 0, 2, 0.5, -3])
    score = (factor * good.reshape(5, -1).T).T.ravel() + np.repeat(shift, 600)
    adjusted = np.empty((3000, 4))
    for k in range(5):
        held = rng.standard_normal(2000) + 1.5 * (np.arange(2000) < 600)  # the inner folds' held-out rows
        adjusted[fold == k] = adjustment((np.arange(2000) < 600).astype(int), held * factor[k] + shift[k])
    ranking = adjusted[:, 2] * score + adjusted[:, 3]
    truth = roc_auc_score(y, good)
    assert roc_auc_score(y, score) < truth - 0.1
    assert roc_auc_score(y, ranking) == pytest.approx(truth, abs=0.005)

    [found] = score_set(make_rows(y), [Column("any", "oof", score, adjusted, ranking)], config=QUICK)
    assert found.estimate("auroc").value == pytest.approx(roc_auc_score(y, ranking))
    assert found.estimate("average_precision").value == pytest.approx(average_precision_score(y, ranking))
    assert found.estimate("sensitivity").value == pytest.approx((score[y == 1] >= 0).mean()), "own calls"
    assert found.estimate("brier", "platt").value == pytest.approx(np.mean((expit(ranking) - y) ** 2))


def test_a_fold_at_chance_level_is_put_at_the_share_of_positives_in_its_own_order() -> None:
    rng = np.random.default_rng(1)
    y = (rng.random(400) < 0.25).astype(int)
    for score in (rng.standard_normal(400) - y, -1e-6 * y + 5, 1e5 * (rng.random(400) - y), np.zeros(400)):
        found = adjustment(y, score.astype(np.float32))
        calibrated = found[2] * score.astype(np.float32).astype(np.float64) + found[3]
        assert found[2] > 0
        np.testing.assert_array_equal(np.argsort(calibrated, kind="stable"), np.argsort(score, kind="stable"))
        np.testing.assert_allclose(expit(calibrated), y.mean(), atol=0.005)


def test_logits_are_ranked_not_their_probabilities() -> None:
    """Above 36.7 every probability is 1."""
    rng = np.random.default_rng(2)
    y = (rng.random(500) < 0.4).astype(int)
    score = 60 + 8 * (rng.standard_normal(500) + y)
    truth = roc_auc_score(y, score)
    assert roc_auc_score(y, expit(score)) < truth - 0.1
    columns = [Column(name, "refit", score, np.tile([60.0, 1, 1, -60], (500, 1))) for name in "ab"]
    rows = make_rows(y)
    assert score_set(rows, columns, config=QUICK)[0].estimate("auroc").value == pytest.approx(truth)
    assert mean_of_models(rows, score[:, None], config=QUICK)["auroc"].value == pytest.approx(truth)
    other = Column("c", "refit", 100 * score, columns[0].adjusted)
    [delong] = compare_models(rows, [columns[0], other], config=QUICK, reference="a", whole=None)
    assert (delong.difference, delong.p) == (0, 1), "the same order is the same AUROC"


def test_out_of_fold_is_not_below_what_the_models_are_worth() -> None:
    """Folds choose other strengths and class weights. Pooled as they are, their scores give .03 too little
    (tests/benchmarks/protocol_pooling.py has more draws and designs)."""
    raw, pooled, truth = np.mean([_out_of_fold(seed) for seed in range(6)], axis=0)
    assert raw < truth - 0.02
    assert pooled == pytest.approx(truth, abs=0.015)


def test_the_ensemble_is_calibrated_on_scores_of_its_own_scale() -> None:
    """Models of one quality whose scores differ by factors and offsets: rows that each was held out for say
    where the mean probability of all has to be cut, once they are mapped to its scale, and not before."""
    rng = np.random.default_rng(3)
    n, K = 4000, 5
    y, fold = (rng.random(n) < 0.3).astype(int), np.arange(n) % K + 1
    quality = rng.standard_normal(n) + 1.5 * y
    factor, shift = np.array([0.1, 0.3, 1, 3, 10]), np.array([-1, 0, 2, 0.5, -3])
    held_out = quality * factor[fold - 1] + shift[fold - 1]
    scales, order = standardized(held_out, fold)
    np.testing.assert_allclose(scales[:, 1] / factor, scales[0, 1] / factor[0], rtol=0.1)
    assert roc_auc_score(y, order) == pytest.approx(roc_auc_score(y, quality), abs=0.002)
    assert roc_auc_score(y, held_out) < roc_auc_score(y, quality) - 0.05

    labels = (rng.random(n) < 0.3).astype(int)
    new = mean_logit((rng.standard_normal(n) + 1.5 * labels)[:, None] * factor + shift)  # the ensemble

    def accuracy(threshold: float) -> float:
        return ((new >= threshold) == labels)[labels == 1].mean() + ((new >= threshold) == labels)[
            labels == 0
        ].mean()

    best = adjustment(labels, new)
    found = adjustment(y, as_ensemble(order, scales))
    pooled = adjustment(y, held_out)
    assert accuracy(found[0]) == pytest.approx(accuracy(best[0]), abs=0.02)
    assert accuracy(pooled[0]) < accuracy(best[0]) - 0.05

    def log_loss(of: np.ndarray) -> float:
        return float(np.logaddexp(0, (1 - 2 * labels) * (of[2] * new + of[3])).mean())

    assert log_loss(found) == pytest.approx(log_loss(best), abs=0.01)
    assert log_loss(pooled) > log_loss(best) + 0.02


def test_without_a_signal_the_folds_prevalences_are_none() -> None:
    """A scale with labels in it has the share of positives of the other folds in it: by the offset of a
    fold's Platt scaling, folds of many positives would be put below the others (AUROC .43 where there is
    nothing to find)."""
    _, pooled, _ = np.mean([_out_of_fold(seed, signal=0) for seed in range(12)], axis=0)
    assert pooled == pytest.approx(0.5, abs=0.04)


def _out_of_fold(seed: int, signal: float = 2) -> tuple[float, float, float]:
    """AUROC of 20 slides' rows out of fold, raw and on one scale, and of its models on new ones."""
    rng = np.random.default_rng(seed)
    effect = rng.standard_normal(60)
    effect *= signal / np.linalg.norm(effect)

    def draw(slides: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        slide = np.repeat(np.arange(slides), 15)
        y = (rng.random(len(slide)) < 0.2).astype(int)
        X = rng.standard_normal((len(slide), 60)) + 0.5 * rng.standard_normal((slides, 60))[slide]
        return (X + np.outer(y, effect)).astype(np.float32), y, slide.astype(str).astype(object)

    X, y, groups = draw(20)
    new, labels, _ = draw(200)
    folds = 1 + groups.astype(int) % 5
    config = ProbeConfig(
        features=("any",),
        C=tuple(10.0**k for k in range(-6, 2)),
        select="balanced_accuracy",
        class_weight=("balanced", "none"),
        inner_folds=4,
    )
    run = run_protocol(X, y, make_plan(y, groups, folds, config=config), {"new": new}, config=config)
    worth = criterion("auroc", labels, run.fold_models["new"], np.ones(len(labels))).mean()
    return roc_auc_score(y, run.oof), roc_auc_score(y, run.oof_ranking), float(worth)

"""Votes: published kappas, the real votes of two data sets, statsmodels, and counting by hand."""

import numpy as np
import pandas as pd
import pytest
from patchbank.errors import InvalidRequest, ProbeError
from patchbank.probe.statistics import agreement, intervals, metrics
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, log_loss
from statsmodels.stats.inter_rater import fleiss_kappa as reference_kappa


def ballots(n=300, experts=5, seed=0):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=n)[:, None]
    return (hidden + rng.normal(size=(n, experts)) * np.linspace(0.3, 1.5, experts) > 0.8).astype(int)


def read_votes(shared):
    """0/1 votes of AMi-Br's training rows (3 experts) and of AtNorM-MD (5)."""
    ami = pd.read_csv(shared / "data" / "amibr_train_split.csv")
    md = pd.read_csv(shared / "data" / "AtNorM-MD_expert_votes.csv")
    return (
        ami[[f"expert{i}_atypical" for i in (1, 2, 3)]].to_numpy(int),
        (md[[f"Expert_{i}" for i in range(1, 6)]] == "Atypical").to_numpy(int),
    )


def counts(votes):
    return votes.sum(axis=1), np.full(len(votes), votes.shape[1])


def test_fleiss_kappa_on_a_published_example():
    """14 raters, 10 subjects, 5 categories: kappa .210 (the worked example of Wikipedia's article)."""
    table = [
        [0, 0, 0, 0, 14],
        [0, 2, 6, 4, 2],
        [0, 0, 3, 5, 6],
        [0, 3, 9, 2, 0],
        [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0],
        [2, 5, 3, 2, 2],
        [6, 5, 2, 1, 0],
        [0, 2, 2, 3, 7],
    ]
    assert agreement.fleiss_kappa(table) == pytest.approx(0.210, abs=5e-4)
    assert agreement.fleiss_kappa(table) == pytest.approx(reference_kappa(np.array(table)), rel=1e-12)


def test_fleiss_kappa_of_odd_cases():
    assert agreement.fleiss_kappa([[3, 0], [0, 3]]) == 1
    assert np.isnan(agreement.fleiss_kappa([[3, 0], [3, 0]]))
    with pytest.raises(ProbeError, match="same number"):
        agreement.fleiss_kappa([[3, 0], [1, 1]])
    with pytest.raises(InvalidRequest, match="subjects, categories"):
        agreement.fleiss_kappa([1, 2])


@pytest.mark.shared
def test_agreement_of_the_real_votes(shared):
    ami, md = read_votes(shared)
    for votes, kappa in ((ami, 0.572), (md, 0.407)):
        p, t = counts(votes)
        table = np.stack([p, t - p], axis=1)
        assert agreement.fleiss_kappa(table) == pytest.approx(kappa, abs=5e-4)
        assert agreement.fleiss_kappa(table) == pytest.approx(reference_kappa(table), rel=1e-12)
    assert agreement.unanimous_share(*counts(md)) == pytest.approx(0.696, abs=5e-4)


@pytest.mark.shared
def test_human_line_of_the_real_votes(shared):
    """.829 on AtNorM-MD and .847 on AMi-Br are of the rows where the others do not tie; the others are
    hard."""
    ami, md = read_votes(shared)
    dropped = agreement.leave_one_out(md, ties="drop")
    assert dropped.mean == pytest.approx(0.829, abs=5e-4)
    assert dropped.rows.tolist() == [1974, 2002, 2006, 1989, 1964]
    line = agreement.leave_one_out(md)
    assert (line.rows == len(md)).all()
    assert (line.tied + dropped.rows == len(md)).all()
    assert line.mean < dropped.mean - 0.01
    found = intervals.estimate_function(
        lambda weights, codes: agreement.score_experts(md, weights=weights, groups=codes),
        n_rows=len(md),
        groups=None,
    )
    assert found["mean"].value[0] == pytest.approx(line.mean)
    assert line.mean - 0.03 < found["mean"].low[0] < line.mean < found["mean"].high[0] < line.mean + 0.03

    nobody = np.zeros((len(ami), 1), bool)
    split, drop = (agreement.human_line(*counts(ami), nobody, ties=ties) for ties in ("split", "drop"))
    assert drop.values["expert"][0] == pytest.approx(0.847, abs=5e-4)
    assert split.values["expert"][0] == pytest.approx(0.786, abs=5e-4), "all votes pooled"
    by_expert = (agreement.leave_one_out(ami, ties=ties).mean for ties in ("split", "drop"))
    assert tuple(by_expert) == pytest.approx((0.798, 0.864), abs=5e-4), "mean over the three experts"
    assert 0.13 < split.tied / split.votes < 0.17
    assert split.votes == 3 * len(ami)
    assert split.values["model"][0] == 0.5, "a constant call is at chance level on the same references"


def scored(reference, called, weights=None):
    return balanced_accuracy_score(reference, called, sample_weight=weights)


def test_each_expert_is_compared_with_the_majority_of_the_others():
    votes = ballots()
    line, dropped = agreement.leave_one_out(votes), agreement.leave_one_out(votes, ties="drop")
    split, drop = [], []
    for k in range(5):
        others = np.delete(votes, k, axis=1).sum(axis=1)
        decided = others != 2
        assert dropped.rows[k] == decided.sum() == len(votes) - line.tied[k]
        drop.append(scored(others[decided] > 2, votes[decided, k]))
        # a tied row twice, once with each label, at half the weight
        rows = np.r_[np.flatnonzero(decided), np.repeat(np.flatnonzero(~decided), 2)]
        labels = np.r_[others[decided] > 2, np.tile([True, False], (~decided).sum())]
        weights = np.r_[np.ones(decided.sum()), np.full(2 * (~decided).sum(), 0.5)]
        split.append(scored(labels, votes[rows, k], weights))
    np.testing.assert_allclose(dropped.balanced_accuracy, drop, rtol=1e-12)
    np.testing.assert_allclose(line.balanced_accuracy, split, rtol=1e-12)
    np.testing.assert_allclose((line.sensitivity + line.specificity) / 2, split, rtol=1e-12)
    assert line.mean == pytest.approx(np.mean(split))
    with pytest.raises(InvalidRequest, match="at least three"):
        agreement.leave_one_out(votes[:, :2])
    with pytest.raises(InvalidRequest, match="'split' or 'drop'"):
        agreement.leave_one_out(votes, ties="half")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("ties", ["split", "drop"])
def test_experts_and_models_are_scored_on_the_same_rows_and_references(ties):
    votes = ballots(n=120)
    called = np.random.default_rng(3).random((120, 2)) < 0.4
    codes = np.arange(120) // 4

    def by_hand(rows):
        labels, weights, experts, models = [], [], [], []
        for i in rows:
            for k in range(5):
                others = np.delete(votes[i], k).sum()
                for label, weight in {0: [(0, 1)], 1: [(0, 1)], 2: [(0, 0.5), (1, 0.5)]}.get(
                    others, [(1, 1)]
                ):
                    if ties == "split" or weight == 1:
                        labels.append(label)
                        weights.append(weight)
                        experts.append(votes[i, k])
                        models.append(called[i])
        columns = np.column_stack([experts, models])
        return [scored(labels, column, weights) for column in columns.T]

    found = agreement.human_line(*counts(votes), called, codes, ties=ties)
    expected = by_hand(range(120))
    assert found.values["expert"] == pytest.approx(expected[:1])
    assert found.values["model"] == pytest.approx(expected[1:])
    assert found.values["difference"] == pytest.approx([expected[0] - v for v in expected[1:]])
    without = by_hand([i for i in range(120) if codes[i] != 7])
    assert found.left_out["expert"][7] == pytest.approx(without[:1])
    assert found.left_out["model"][7] == pytest.approx(without[1:])
    with pytest.raises(ProbeError, match="three or more"):
        agreement.human_line([1, 2], [2, 3], called[:2])


def test_experts_under_weights_are_repeated_rows():
    votes = ballots()
    groups = np.arange(len(votes)) // 4
    weights = np.random.default_rng(0).integers(0, 3, (4, groups.max() + 1))
    found = agreement.score_experts(votes, weights=weights, groups=groups)
    for b, w in enumerate(weights):
        repeated = agreement.leave_one_out(np.repeat(votes, w[groups], axis=0))
        np.testing.assert_allclose(found["balanced_accuracy"][b], repeated.balanced_accuracy, rtol=1e-12)
        assert found["mean"][b] == pytest.approx(repeated.mean)


def test_strata_by_votes_and_by_agreement():
    votes = ballots()
    p, t = counts(votes)
    y = (2 * p > t).astype(int)
    rng = np.random.default_rng(1)
    scores = 1 / (1 + np.exp(-(p[:, None] - 2.5 + 1.5 * rng.normal(size=(len(p), 2)))))
    table = agreement.by_votes(scores, p, t, threshold=[0.5, 0.3])
    assert table.groupby("model")["rows"].sum().tolist() == [300, 300]
    row = table[(table.votes_positive == 2) & (table.model == 1)].iloc[0]
    assert row.mean_score == pytest.approx(scores[p == 2, 1].mean())
    assert row.called_positive == pytest.approx((scores[p == 2, 1] >= 0.3).mean())

    strata = agreement.by_agreement(y, scores, p, t, threshold=[0.5, 0.3])
    assert strata[strata.model == 0].votes_agreeing.tolist() == [5, 4, 3]
    assert strata[strata.model == 0].rows.sum() == 300
    split = (p == 2) | (p == 3)
    row = strata[(strata.votes_agreeing == 3) & (strata.model == 1)].iloc[0]
    assert row.positives == y[split].sum()
    assert row.auroc == pytest.approx(metrics.auroc(y[split], scores[split, 1]))
    assert row.balanced_accuracy == pytest.approx(balanced_accuracy_score(y[split], scores[split, 1] >= 0.3))


def test_strata_rank_logits_that_saturate_and_scores_of_several_models():
    """Probabilities of logits above 36.7 are all 1; scores of several folds are ranked on one scale."""
    y = np.array([0, 1] * 20)
    p, t = np.where(y, 5, 0), np.full(40, 5)
    logits = 40.0 + np.arange(40)
    expected = metrics.auroc(y, logits)
    assert metrics.auroc(y, 1 / (1 + np.exp(-logits))) == 0.5
    [row] = agreement.by_agreement(y, logits, p, t, logits=True).to_dict("records")
    assert row["auroc"] == pytest.approx(expected)
    assert expected > 0.5
    assert row["balanced_accuracy"] == 0.5  # all are called positive
    order = np.where(y, 1.0, 0.0)
    [row] = agreement.by_agreement(y, logits, p, t, logits=True, order=order).to_dict("records")
    assert row["auroc"] == 1
    assert row["balanced_accuracy"] == 0.5


def test_soft_scores():
    votes = ballots()
    p, t = counts(votes)
    share = p / t
    rng = np.random.default_rng(1)
    q = np.clip(share[:, None] + 0.2 * rng.normal(size=(len(p), 2)), 0.01, 0.99)
    found = agreement.soft_scores(p, t, q)
    assert set(found) == set(agreement.SOFT_SCORES)
    for j in range(2):
        assert found["soft_brier"][j] == pytest.approx(np.mean((q[:, j] - share) ** 2))
        # a row with v of r votes is r rows with v positive labels
        expanded = log_loss(votes.ravel(), np.repeat(q[:, j], votes.shape[1]))
        assert found["soft_log_loss"][j] == pytest.approx(expanded, rel=1e-12)
        divergences = stats.entropy([share, 1 - share], [q[:, j], 1 - q[:, j]])
        assert found["soft_excess_log_loss"][j] == pytest.approx(divergences.mean(), rel=1e-10)
        assert found["pearson"][j] == pytest.approx(stats.pearsonr(q[:, j], share)[0], rel=1e-12)
        assert found["spearman"][j] == pytest.approx(stats.spearmanr(q[:, j], share)[0], rel=1e-12)
    exact = agreement.soft_scores(p, t, share)
    assert exact["soft_brier"] == 0
    assert exact["soft_excess_log_loss"] == pytest.approx(0, abs=1e-12)
    assert exact["pearson"] == pytest.approx(1)
    constant = agreement.soft_scores(p, t, np.full(len(p), 0.3))
    assert np.isnan(constant["pearson"])
    assert np.isnan(constant["spearman"])


def test_soft_scores_under_weights_are_repeated_rows():
    votes = ballots()
    p, t = counts(votes)
    q = np.random.default_rng(0).random((len(p), 2))
    groups = np.arange(len(p)) // 3
    weights = np.random.default_rng(1).integers(0, 3, (4, groups.max() + 1))
    found = agreement.soft_scores(p, t, q, weights=weights, groups=groups)
    for b, w in enumerate(weights):
        rows = np.repeat(np.arange(len(p)), w[groups])
        repeated = agreement.soft_scores(p[rows], t[rows], q[rows])
        for name in agreement.SOFT_SCORES:
            if name != "spearman":  # its ranks stay those of the sample
                np.testing.assert_allclose(found[name][b], repeated[name], rtol=1e-10, err_msg=name)


def test_bad_votes_are_named():
    with pytest.raises(ProbeError, match="row 1: 4 positive of 3"):
        agreement.unanimous_share([1, 4], [3, 3])
    nullable = pd.array([1, None], dtype="Int64")
    with pytest.raises(ProbeError, match="row 1 has no votes"):
        agreement.unanimous_share(nullable, [3, 3])
    p, t = agreement.check_votes(pd.Series([0, 2], dtype="Int64"), pd.Series([3, 3], dtype="Int64"))
    assert (p.tolist(), t.tolist()) == ([0, 2], [3, 3])

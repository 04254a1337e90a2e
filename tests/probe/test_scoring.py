"""What a record of scores says, against brute force over the rows that are left without each slide."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from patchbank.probe.config import ProbeConfig
from patchbank.probe.results import scoring
from patchbank.probe.results.files import scores_table
from patchbank.probe.results.schema import PAIRED, Comparison, Score
from patchbank.probe.results.scoring import Column, Rows
from patchbank.probe.statistics import agreement, intervals, metrics
from scipy import special, stats

CONFIG = ProbeConfig(features=("a",))


def make(seed: int = 0, *, slides: int = 40, rows: int = 10, shift: float = 1.5) -> tuple[Rows, np.ndarray]:
    """Rows of slides in three domains with three votes a row, and logits of two models."""
    rng = np.random.default_rng(seed)
    slide = np.repeat(np.arange(slides), rng.integers(4, 2 * rows, slides))
    y = (rng.random(len(slide)) < 0.3).astype(int)
    votes = rng.binomial(3, np.where(y == 1, 0.85, 0.15))
    lean = 0.6 * rng.normal(size=slides)[slide]
    logits = shift * (y - 0.5)[:, None] + lean[:, None] + rng.normal(size=(len(y), 2)) * [1.0, 2.0]
    text = np.arange(len(y)).astype(str).astype(object)
    return Rows(
        dataset="set",
        patch_id=text,
        y=y,
        group=np.array([f"slide {k}" for k in slide], object),
        domain=np.array(["ABC"[k % 3] for k in slide], object),
        distinct=np.arange(len(y)) % 20 > 0,
        votes_positive=votes,
        votes_total=np.where(np.arange(len(y)) % 10 > 0, 3, -1),
        path=text,
        content_hash=text,
        left_out={"no label": 7},
    ), logits


def columns(rows: Rows, logits: np.ndarray, role: str = "refit") -> list[Column]:
    adjusted = np.tile([0.4, 0.8, 0.9, -0.3], (len(rows), 1))
    cuts = np.tile([0.9, 1.4], (len(rows), 1))
    return [Column(name, role, z, adjusted, cuts=cuts) for name, z in zip("ab", logits.T, strict=False)]


def score_set(*given: Any, **options: Any) -> list[dict[str, Any]]:
    """As written."""
    return [one.to_json() for one in scoring.score_set(*given, **options)]


def compare_models(*given: Any, **options: Any) -> list[dict[str, Any]]:
    """As written."""
    return [one.to_json() for one in scoring.compare_models(*given, **options)]


def without_each(rows: Rows, statistic: Any) -> np.ndarray:
    return np.array([statistic(rows.group != g) for g in pd.unique(rows.group)])


def jackknife(left_out: np.ndarray) -> float:
    g = len(left_out)
    return float(np.sqrt((g - 1) / g * ((left_out - left_out.mean()) ** 2).sum()))


def test_every_score_has_its_error_and_the_clusters_behind_it() -> None:
    rows, logits = make()
    records = score_set(rows, columns(rows, logits), config=CONFIG)
    assert [(r["subset"], r["domain"]) for r in records[::2]] == [
        ("raw", ""),
        ("dedup", ""),
        *(("raw", d) for d in "ABC"),
    ]
    for record in records:
        mask = rows.distinct if record["subset"] == "dedup" else np.ones(len(rows), bool)
        mask &= np.isin(rows.domain, list(record["domain"] or "ABC"))
        group = rows.group[mask]
        z = logits[mask, "ab".index(record["features"])]
        found = intervals.estimate(rows.y[mask], z, groups=group, logits=True)
        for name, one in found.items():
            assert record["metrics"][name] == pytest.approx([one.value[0], one.low[0], one.high[0]])
            unsure = record["uncertainty"]["metrics"][name]
            assert unsure["standard_error"] == pytest.approx(one.standard_error[0])
            assert unsure["degrees_of_freedom"] == pytest.approx(one.degrees_of_freedom[0])
            assert unsure["design_effect"] == pytest.approx(one.design_effect[0])
            assert unsure["reason"] == ""
        clusters = record["clusters"]
        assert clusters["n"] == record["n_groups"] == len(set(group))
        assert clusters["with_positive"] == len(set(group[rows.y[mask] == 1]))
        assert 1 < clusters["effective_positive"] <= clusters["with_positive"]
        assert clusters["known"]
        assert "design_effect_2" not in record
    json.dumps(records, allow_nan=False)


def test_out_of_fold_scores_have_a_larger_variance() -> None:
    rows, logits = make()
    refit, oof = (score_set(rows, columns(rows, logits, role), config=CONFIG)[0] for role in ("refit", "oof"))
    assert (refit["inflation"], oof["inflation"]) == (1, scoring.OOF_INFLATION)
    for name in ("auroc", "balanced_accuracy", "brier"):
        errors = [r["uncertainty"]["metrics"][name]["standard_error"] for r in (refit, oof)]
        assert errors[1] == pytest.approx(errors[0] * scoring.OOF_INFLATION**0.5)
        assert oof["metrics"][name][0] == refit["metrics"][name][0]
    one, other = (
        compare_models(
            rows,
            columns(rows, logits, role),
            config=CONFIG,
            reference="a",
            whole=scoring.estimate_set(rows, columns(rows, logits, role), config=CONFIG),
        )
        for role in ("refit", "oof")
    )
    for a, b in zip(one, other, strict=True):
        factor = scoring.OOF_INFLATION if a["test"] == PAIRED else 1
        assert b["standard_error"] == pytest.approx(a["standard_error"] * factor**0.5)
        assert b["inflation"] == factor


def test_sets_without_groups_say_what_a_design_effect_of_2_would_do() -> None:
    rows, logits = make()
    rows = replace(rows, group=np.full(len(rows), "", object), groups_known=False)
    record = score_set(rows, columns(rows, logits), config=CONFIG)[0]
    assert not record["clusters"]["known"]
    assert record["n_groups"] == len(rows)
    for name, (value, low, high) in record["design_effect_2"].items():
        plain = record["metrics"][name]
        assert value == plain[0]
        assert low < plain[1] < plain[2] < high
    whole = scoring.estimate_set(rows, columns(rows, logits), config=CONFIG)
    found = compare_models(rows, columns(rows, logits), config=CONFIG, reference="a", whole=whole)
    assert found
    assert not any(one["groups_known"] for one in found)


def test_calls_and_predictive_values_by_brute_force() -> None:
    rows, logits = make()
    record = score_set(rows, columns(rows, logits), config=CONFIG)[0]
    z = logits[:, 0]
    for kind, cut in (("metrics", 0.0), ("at_threshold", 0.4)):
        found = record["calls"][kind]
        table = pd.crosstab(rows.y, z >= cut)
        assert found["confusion"] == {
            "tp": table.loc[1, True],
            "fp": table.loc[0, True],
            "fn": table.loc[1, False],
            "tn": table.loc[0, False],
        }

        def ppv(keep: np.ndarray, cut: float = cut) -> float:
            y, called = rows.y[keep], z[keep] >= cut
            sensitivity, one_minus = called[y == 1].mean(), called[y == 0].mean()
            return sensitivity * 0.1 / (sensitivity * 0.1 + one_minus * 0.9)

        value, low, high = found["predictive_values"]["0.1"]["ppv"]
        assert value == pytest.approx(ppv(np.ones(len(rows), bool)))
        half = (special.logit(high) - special.logit(low)) / 2 * value * (1 - value)
        left_out = without_each(rows, ppv)
        freedom = min(39, 80 / (stats.kurtosis(left_out, fisher=False) - 1))
        assert half / stats.t.ppf(0.975, freedom) == pytest.approx(jackknife(left_out))
        unsure = found["uncertainty"]["predictive_values.0.1.ppv"]
        assert unsure["standard_error"] == pytest.approx(jackknife(left_out))
        assert unsure["degrees_of_freedom"] == pytest.approx(freedom)
        observed = found["predictive_values"]["observed"]["npv"][0]
        assert observed == pytest.approx(((rows.y == 0) & (z < cut)).sum() / (z < cut).sum())
        assert found["reasons"] == {}
    for specificity, cut in (("0.9", 0.9), ("0.95", 1.4)):
        at = record["at_specificity"][specificity]
        expected = intervals.estimate(
            rows.y, z, groups=rows.group, metrics=["sensitivity"], threshold=cut, logits=True
        )["sensitivity"]
        assert at["sensitivity"] == pytest.approx([expected.value[0], expected.low[0], expected.high[0]])
        assert at["specificity"][0] == pytest.approx((z[rows.y == 0] < cut).mean())


def test_calibration_and_net_benefit_have_intervals() -> None:
    rows, logits = make()
    record = score_set(rows, columns(rows, logits), config=CONFIG)[0]
    platt = 0.9 * logits[:, 0] - 0.3
    value, low, high = record["calibration"]["platt"]["observed_expected"]
    assert value == pytest.approx(rows.y.sum() / special.expit(platt).sum())
    left_out = without_each(rows, lambda keep: rows.y[keep].sum() / special.expit(platt[keep]).sum())
    freedom = min(39, 80 / (stats.kurtosis(left_out, fisher=False) - 1))
    assert np.log(high / low) / 2 * value == pytest.approx(stats.t.ppf(0.975, freedom) * jackknife(left_out))
    ratio = Score.model_validate(record).calibration["platt"].observed_expected
    assert ratio.standard_error == pytest.approx(jackknife(left_out))
    assert ratio.degrees_of_freedom == pytest.approx(freedom)
    for kind in ("probability", "platt"):
        one = record["calibration"][kind]
        for name in ("slope", "intercept"):
            assert one[name][1] < one[name][0] < one[name][2]
        assert 0 < one["ece_floor"]["mean"] < one["ece_floor"]["high"]
    benefit = record["net_benefit"]
    assert len(benefit) == 20, "19 thresholds and the reasons"
    for t in ("0.05", "0.3"):
        assert benefit[t]["model"][1] < benefit[t]["model"][0] < benefit[t]["model"][2]
        assert benefit[t]["all"][0] == pytest.approx(
            rows.y.mean() - (1 - rows.y.mean()) * float(t) / (1 - float(t))
        )
    no_calls = benefit["reasons"]
    assert all(benefit[place.removeprefix("all ")] for place in no_calls)


def test_the_spread_between_domains() -> None:
    rows, logits = make(slides=60)
    records = score_set(rows, columns(rows, logits), config=CONFIG)
    found = records[0]["between_domains"]["auroc"]
    of_domain = {r["domain"]: r for r in records if r["features"] == "a" and r["domain"]}
    values = {d: r["metrics"]["auroc"][0] for d, r in of_domain.items()}
    worst = min(values, key=lambda d: values[d])
    assert found["worst"]["domain"] == worst
    assert found["worst"]["value"] == values[worst]
    single = of_domain[worst]["metrics"]["auroc"]
    assert found["worst"]["low"] < single[1] < single[2] < found["worst"]["high"], (
        "holds for all three at once"
    )
    x = special.logit([values[d] for d in "ABC"])
    se = [of_domain[d]["uncertainty"]["metrics"]["auroc"]["standard_error"] for d in "ABC"]
    w = np.array([(v * (1 - v) / e) ** 2 for v, e in zip(values.values(), se, strict=True)])
    q = (w * (x - (w @ x) / w.sum()) ** 2).sum()
    assert found["q"] == pytest.approx(q)
    assert found["p"] == pytest.approx(stats.chi2.sf(q, 2))
    assert found["k"] == 3
    assert found["sd"][1] <= found["sd"][0] <= found["sd"][2]

    perfect = np.where(rows.domain == "B", 20.0 * (rows.y - 0.5), logits[:, 0])
    one = score_set(rows, columns(rows, perfect[:, None]), config=CONFIG)[0]["between_domains"]["auroc"]
    assert list(one["left_out"]) == ["B"]
    assert one["k"] == 2


def test_precision_is_the_difference_found_four_times_in_five() -> None:
    rows, logits = make()
    both = columns(rows, logits)
    records = score_set(rows, both, config=CONFIG)
    whole = scoring.estimate_set(rows, both, config=CONFIG)
    compared = compare_models(rows, both, config=CONFIG, reference="a", whole=whole)
    made = (
        [Score.model_validate(one) for one in records],
        [Comparison.model_validate(one) for one in compared],
    )
    found = [one.to_json() for one in scoring.precision(*made, level=0.95)]
    assert {(one["metric"], one["basis"]) for one in found} == {
        ("balanced_accuracy", "paired, median of 1"),
        ("auroc", "paired, median of 1"),
    }
    for one in found:
        paired = next(c for c in compared if (c["metric"], c["test"]) == (one["metric"], PAIRED))
        assert one["half_width"] == pytest.approx((paired["high"] - paired["low"]) / 2)
        df, error = one["degrees_of_freedom"], one["standard_error"]
        power = stats.nct.sf(stats.t.ppf(0.975, df), df, one["detectable"] / error)
        assert power == pytest.approx(0.8, abs=0.02)
    single = scoring.score_set(rows, both[:1], config=CONFIG)
    alone = [one.to_json() for one in scoring.precision(single, [], level=0.95)]
    assert {one["basis"] for one in alone} == {"unpaired"}
    leading = next(r for r in records if (r["subset"], r["domain"]) == ("dedup", ""))
    about = leading["uncertainty"]["metrics"]["auroc"]
    t = stats.t.ppf(0.975, about["degrees_of_freedom"])
    assert alone[1]["half_width"] == pytest.approx(t * 2**0.5 * about["standard_error"])


def test_the_human_line_has_an_interval_and_says_what_it_leaves_out() -> None:
    rows, logits = make()
    votes = scoring.score_votes(rows, columns(rows, logits), config=CONFIG)
    assert votes is not None
    found = votes.to_json()
    human = found["human"]
    voted = rows.votes_total == 3
    line = agreement.human_line(rows.votes_positive[voted], rows.votes_total[voted], logits[voted] >= 0)
    assert found["human_line"] == human["value"][0] == pytest.approx(line.values["expert"][0])
    assert human["value"][1] < human["value"][0] < human["value"][2]
    assert human["without_ties"] > human["value"][0]
    assert human["n"] + human["n_left_out"] == len(rows)
    assert (human["n_votes"], human["n_tied"]) == (3 * voted.sum(), line.tied)

    def difference(keep: np.ndarray) -> float:
        mine = voted & keep
        one = agreement.human_line(rows.votes_positive[mine], rows.votes_total[mine], logits[mine] >= 0)
        return one.values["difference"][1]

    model = human["models"][1]
    value, low, high = model["difference"]
    assert value == pytest.approx(difference(np.ones(len(rows), bool)))
    left_out = without_each(rows, difference)
    freedom = min(39, 80 / (stats.kurtosis(left_out, fisher=False) - 1))
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, freedom) * jackknife(left_out))
    assert model["p"] == pytest.approx(2 * stats.t.sf(abs(value) / jackknife(left_out), freedom))


def test_without_intervals_there_are_values_and_a_reason() -> None:
    rows, logits = make()
    config = CONFIG.replace(bootstrap=0)
    assert scoring.estimate_set(rows, columns(rows, logits), config=config) is None
    record = score_set(rows, columns(rows, logits), config=config)[0]
    assert record["metrics"]["auroc"][0] == pytest.approx(metrics.auroc(rows.y, logits[:, 0]))
    assert record["metrics"]["auroc"][1:] == [None, None]
    assert record["uncertainty"]["metrics"]["auroc"]["reason"] == scoring.NO_INTERVALS
    assert record["calibration"]["platt"]["slope"][1] is None
    assert "between_domains" not in record


def test_results_are_tables_with_errors_and_older_ones_are_read() -> None:
    rows, logits = make()
    records = score_set(rows, columns(rows, logits), config=CONFIG)
    table = scores_table([Score.model_validate(one) for one in records])
    assert set(table["kind"]) == {"metrics", "at_threshold", "temperature", "platt"}
    one = table[(table["metric"] == "auroc") & (table["kind"] == "metrics")].iloc[0]
    assert one["standard_error"] == records[0]["uncertainty"]["metrics"]["auroc"]["standard_error"]
    lacking = ("uncertainty", "clusters", "inflation", "calls", "calibration", "net_benefit", "n_groups")
    old = [{k: v for k, v in r.items() if k not in lacking} for r in records]
    assert len(scores_table([Score.model_validate(one) for one in old])) == len(table)


def test_cuts_come_from_the_other_folds() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(500) < 0.3).astype(int)
    scores, folds = rng.normal(size=500) + y, rng.integers(1, 4, 500)
    cuts = scoring.out_of_fold_cuts(y, scores, folds)
    for k in (1, 2, 3):
        other = (folds != k) & (y == 0)
        for j, specificity in enumerate((0.9, 0.95)):
            cut = cuts[folds == k, j][0]
            assert (cuts[folds == k, j] == cut).all()
            assert specificity <= (scores[other] < cut).mean() < specificity + 2 / other.sum()
    assert np.isnan(scoring.out_of_fold_cuts(y, scores, np.ones(500, int))).all()

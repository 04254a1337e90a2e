"""The protocol against scikit-learn, done by hand: folds, choice, refit, scores."""

from typing import Any

import numpy as np
import pytest
from patchbank.datasets.folds import make_folds
from patchbank.errors import InvalidRequest, ProbeError
from patchbank.probe.config import ProbeConfig, feature_sets, parse_features
from patchbank.probe.domains import STEPS, DomainRows, analyse_step, joined
from patchbank.probe.protocol import make_plan, run_protocol
from patchbank.probe.results.schema import Domains
from patchbank.probe.selection import best, criterion
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, log_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

C = (1e-3, 1e-2, 1e-1, 1.0)


def analyse_domains(*rows: Any, **settings: Any) -> Domains | None:
    return joined([analyse_step(step, *rows, **settings) for step in STEPS])


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    n, d = 360, 6
    groups = np.array([f"s{i}" for i in rng.integers(0, 30, n)], dtype=object)
    y = (rng.random(n) < 0.35).astype(int)
    X = (rng.standard_normal((n, d)) * np.arange(1, d + 1)).astype(np.float32)
    X[:, 2] += 3 * y
    domain = np.array([f"d{int(g[1:]) % 4}" for g in groups], dtype=object)
    folds = make_folds(y.astype(str), groups, n_splits=4, seed=0).assign(groups)
    return {
        "X": X,
        "y": y,
        "groups": groups,
        "domain": domain,
        "folds": folds,
        "T": rng.standard_normal((50, d)).astype(np.float32) * 3,
    }


def config(**settings: Any) -> ProbeConfig:
    return ProbeConfig.from_dict(
        {"features": ["any"], "C": list(C), "inner_folds": 3, "bootstrap": 0}
        | {"class_weight": ["balanced", "none"], **settings}
    )


def sklearn_fit(X: np.ndarray, y: np.ndarray, c: float, weight: str) -> Any:
    class_weight = None if weight == "none" else weight
    model = LogisticRegression(C=c, class_weight=class_weight, solver="newton-cholesky", tol=1e-8)
    return make_pipeline(StandardScaler(), model).fit(X.astype(np.float64), y)


def balanced_log_loss(y: np.ndarray, score: np.ndarray) -> float:
    return log_loss(y, expit(score), sample_weight=np.where(y == 1, 0.5 / y.mean(), 0.5 / (1 - y.mean())))


def by_hand(
    X: np.ndarray, y: np.ndarray, folds: np.ndarray, grid: list[tuple[str, float]]
) -> tuple[str, float]:
    """The point of the grid with the least balanced log-loss over held-out rows."""
    losses = []
    for weight, c in grid:
        score = np.empty(len(y))
        for k in np.unique(folds):
            out = folds == k
            score[out] = sklearn_fit(X[~out], y[~out], c, weight).decision_function(X[out])
        losses.append(balanced_log_loss(y, score))
    return grid[int(np.argmin(losses))]


def test_nested_choice_refit_and_scores_are_scikit_learns(data: dict[str, Any]) -> None:
    X, y, folds = data["X"], data["y"], data["folds"]
    plan = make_plan(y, data["groups"], folds, config=config())
    run = run_protocol(X, y, plan, {"T": data["T"]}, config=config())

    grid = [(weight, c) for weight in ("balanced", "none") for c in C]
    weight, c = by_hand(X, y, folds, grid)
    assert run.choice is not None
    assert (run.choice.class_weight, run.choice.value) == (weight, c)
    np.testing.assert_allclose(
        run.refit["T"], sklearn_fit(X, y, c, weight).decision_function(data["T"]), rtol=2e-3, atol=2e-3
    )
    for i, k in enumerate(np.unique(folds)):
        out = folds == k
        inner = make_folds(y[~out], data["groups"][~out], n_splits=3, seed=0).assign(data["groups"][~out])
        weight, c = by_hand(X[~out], y[~out], inner, grid)
        choice = run.fold_choices[i]
        assert (choice.class_weight, choice.value) == (weight, c)
        model = sklearn_fit(X[~out], y[~out], c, weight)
        np.testing.assert_allclose(run.oof[out], model.decision_function(X[out]), rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(
            run.fold_models["T"][:, i], model.decision_function(data["T"]), rtol=2e-3, atol=2e-3
        )
    fits = run.fits
    assert fits["calls"] == 1
    assert fits["fits"] == (1 + 4 + 4 * 3) * 2 * len(C)
    assert not set(fits["status"]) & {"capped"}


def test_no_group_is_on_both_sides_of_any_fold(data: dict[str, Any]) -> None:
    plan = make_plan(data["y"], data["groups"], data["folds"], config=config())
    assert len(plan.parts) == 1 + 4 + 4 * 3
    for part in plan.parts:
        assert not set(data["groups"][part.training]) & set(data["groups"][part.held_out])
        if part.inner is not None:
            outer = data["folds"] == part.models[0]
            assert not (part.training & outer).any()
            assert not (part.held_out & outer).any()


def test_groups_in_two_folds_and_folds_of_one_class_are_refused(data: dict[str, Any]) -> None:
    torn = data["folds"].copy()
    torn[0] = torn[0] % 4 + 1
    with pytest.raises(ProbeError, match=data["groups"][0]):
        make_plan(data["y"], data["groups"], torn, config=config())
    y = (data["groups"] == "s1").astype(int)
    with pytest.raises(InvalidRequest, match="fewer folds"):
        make_plan(y, data["groups"], data["folds"], config=config())


@pytest.mark.parametrize("preprocess", ["standardize", "l2", "whiten", "none"])
def test_every_preprocessing_finds_the_signal(data: dict[str, Any], preprocess: str) -> None:
    settings = config(preprocess=[preprocess], class_weight=["balanced"])
    plan = make_plan(data["y"], data["groups"], data["folds"], config=settings)
    run = run_protocol(data["X"], data["y"], plan, {}, config=settings)
    assert roc_auc_score(data["y"], run.oof) > 0.65
    assert run.fits["calls"] == (5 if preprocess == "whiten" else 1)


def test_preprocessing_is_an_axis_of_the_grid(data: dict[str, Any]) -> None:
    settings = config(preprocess=["l2", "standardize"])
    plan = make_plan(data["y"], data["groups"], data["folds"], config=settings)
    both = run_protocol(data["X"], data["y"], plan, {"T": data["T"]}, config=settings)
    assert both.path.shape == (2, 2, len(C))
    alone = [
        run_protocol(data["X"], data["y"], plan, {"T": data["T"]}, config=config(preprocess=[one]))
        for one in ("l2", "standardize")
    ]
    winner = max(alone, key=lambda run: run.path.max())
    assert both.choice is not None
    assert winner.choice is not None
    assert both.choice.preprocess == winner.choice.preprocess
    np.testing.assert_allclose(both.refit["T"], winner.refit["T"], rtol=1e-5, atol=1e-5)


def test_unit_length_features_are_normalizers(data: dict[str, Any]) -> None:
    """With "l2" the penalty is relative to the mean variance: C of scikit-learn is C / variance."""
    settings = config(preprocess=["l2"], C=[0.1], class_weight=["none"])
    plan = make_plan(data["y"], data["groups"], data["folds"], config=settings)
    run = run_protocol(data["X"], data["y"], plan, {"T": data["T"]}, config=settings)
    U = np.asarray(Normalizer().transform(data["X"]))
    model = LogisticRegression(C=0.1 / U.var(axis=0).mean(), tol=1e-10, max_iter=5000).fit(U, data["y"])
    expected = model.decision_function(Normalizer().transform(data["T"]))
    np.testing.assert_allclose(run.refit["T"], expected, rtol=2e-3, atol=2e-3)


def test_votes_are_soft_labels(data: dict[str, Any]) -> None:
    """It is the fit of scikit-learn with every row twice, weighted by its votes for either label."""
    X, y = data["X"], data["y"]
    votes = np.where(y == 1, 2 / 3, 0.0)
    votes[:40] = np.where(y[:40] == 1, 1.0, 1 / 3)
    votes[40:60] = np.nan
    settings = config(preprocess=["none"], class_weight=["votes"], C=[0.01])
    plan = make_plan(y, data["groups"], data["folds"], config=settings, votes=votes)
    run = run_protocol(X, y, plan, {"T": data["T"]}, config=settings)
    share = np.where(np.isnan(votes), y, votes)
    weight = np.concatenate([share / share.sum(), (1 - share) / (1 - share).sum()]) * len(y) / 2
    label = np.repeat([1, 0], len(y))
    model = LogisticRegression(C=0.01 / X[run_rows(y, votes)].var(axis=0).mean(), tol=1e-10, max_iter=5000)
    model.fit(np.concatenate([X, X]), label, sample_weight=weight)
    np.testing.assert_allclose(run.refit["T"], model.decision_function(data["T"]), rtol=2e-3, atol=2e-3)
    with pytest.raises(ProbeError, match="votes_positive"):
        make_plan(y, data["groups"], data["folds"], config=settings)


def run_rows(y: np.ndarray, votes: np.ndarray) -> np.ndarray:
    """The rows of the fit: all, and those on which the experts are divided once more."""
    return np.concatenate([np.arange(len(y)), np.flatnonzero((votes > 0) & (votes < 1))])


@pytest.mark.parametrize("probe", ["knn", "centroid", "ridge", "svm"])
def test_other_probes_go_through_the_same_protocol(data: dict[str, Any], probe: str) -> None:
    settings = config(probe=probe, class_weight=["balanced"])
    assert settings.criterion == "auroc"
    plan = make_plan(data["y"], data["groups"], data["folds"], config=settings)
    run = run_protocol(data["X"], data["y"], plan, {"T": data["T"]}, config=settings)
    assert roc_auc_score(data["y"], run.oof) > 0.65
    assert run.refit["T"].shape == (50,)
    with pytest.raises(InvalidRequest, match="no probabilities"):
        config(probe=probe, select="log_loss")


def test_criteria(data: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    y, folds = data["y"], data["folds"]
    scores = rng.standard_normal((len(y), 3)) + y[:, None] * [0, 1, 2]
    scores[:, 2] = np.round(scores[:, 2])  # ties
    expected = [-balanced_log_loss(y, s) for s in scores.T]
    np.testing.assert_allclose(criterion("log_loss", y, scores, folds), expected)
    expected = [balanced_accuracy_score(y, s >= 0) for s in scores.T]
    np.testing.assert_allclose(criterion("balanced_accuracy", y, scores, folds), expected)
    pairs = np.array([y[folds == k].sum() * (1 - y[folds == k]).sum() for k in range(1, 5)])
    aurocs = [[roc_auc_score(y[folds == k], s[folds == k]) for k in range(1, 5)] for s in scores.T]
    np.testing.assert_allclose(
        criterion("auroc", y, scores, folds), np.average(aurocs, axis=1, weights=pairs)
    )
    scores[3, 1] = np.nan
    assert criterion("log_loss", y, scores, folds)[1] == -np.inf
    assert best(np.array([[0.1, 0.7], [0.7, 0.2]])) == (0, 1)


T_SLIDES = np.repeat([f"t{i}" for i in range(10)], 5).astype(object)


def check_intervals_of_domains(found: Domains, domain: np.ndarray, groups: np.ndarray) -> None:
    """Every value has an interval over groups, or a reason."""
    for one in found.leave_one_out:
        assert one.n_groups == len(set(groups[domain == one.domain]))
        assert one.metrics is not None
        for found_one in one.metrics.values():
            value, low, high = found_one
            assert bool(found_one.reason) == (low is None), "an interval, or why there is none"
            if low is not None and found_one.method == "jackknife":
                assert value is not None
                assert high is not None
                assert low < value < high
                assert (found_one.degrees_of_freedom or 0) <= (one.n_groups or 0) - 1
    matrix, intervals = found.matrix, 0
    assert matrix.n_groups[-1] == 10
    for metric in ("balanced_accuracy", "auroc", "average_precision"):
        for i, row in enumerate(matrix.intervals[metric]):
            for j, (low, high) in enumerate(row):
                assert bool(matrix.reasons[metric][i][j]) == (low is None)
                if low is not None:
                    intervals += 1
                    assert low <= getattr(matrix, metric)[i][j] <= high
    assert intervals > 30


def test_leave_one_domain_out_is_fitted_and_chosen_on_the_others(data: dict[str, Any]) -> None:
    X, y, domain = data["X"], data["y"], data["domain"]
    tests = {"T": DomainRows(data["T"], np.arange(50) % 2, np.full(50, "x", dtype=object), T_SLIDES)}
    found = analyse_domains(X, y, data["groups"], domain, tests, config=config(class_weight=["balanced"]))
    assert found is not None
    for one in found.leave_one_out:
        rest = domain != one.domain
        _, c = by_hand(X[rest], y[rest], domain[rest], [("balanced", c) for c in C])
        assert one.choice is not None
        assert c == one.choice.C
        score = sklearn_fit(X[rest], y[rest], c, "balanced").decision_function(X[~rest])
        assert one.estimate("auroc").value == pytest.approx(roc_auc_score(y[~rest], score), abs=1e-3)
    matrix = found.matrix
    assert matrix.train == list(dict.fromkeys(domain))
    assert matrix.test == [*(f"train / {d}" for d in matrix.train), "T / x"]
    assert np.array(matrix.auroc).shape == (4, 5)
    bare = {reason for row in matrix.reasons["auroc"] for reason in row}
    assert bare == {"no intervals were asked for"}
    with_intervals = analyse_domains(
        X, y, data["groups"], domain, tests, config=config(class_weight=["balanced"], bootstrap=100)
    )
    assert with_intervals is not None
    assert with_intervals.matrix.auroc == matrix.auroc
    check_intervals_of_domains(with_intervals, domain, data["groups"])

    changed = y.copy()  # labels of one domain do not matter for what is chosen for it
    first = domain == matrix.train[0]
    changed[first] = np.random.default_rng(0).permutation(y[first])
    again = analyse_domains(X, changed, data["groups"], domain, {}, config=config(class_weight=["balanced"]))
    assert again is not None
    assert again.leave_one_out[0].choice == found.leave_one_out[0].choice


def test_one_domain_is_no_domain_analysis(data: dict[str, Any]) -> None:
    arguments = (data["X"], data["y"], data["groups"], np.full(len(data["y"]), "a", dtype=object), {})
    assert analyse_domains(*arguments, config=config()) is None


def test_feature_sets_are_read_and_named() -> None:
    assert str(parse_features("a")) == "a/full"
    assert (
        str(parse_features("hf:org/name/full/cls+mean + b/center:0.5"))
        == "hf:org/name/full/cls+mean + b/center:0.5"
    )
    names = [
        str(f)
        for f in feature_sets(encoders=["a", "b"], views=["full", "d4:1"], features=["a", "a/full + b"])
    ]
    assert names == ["a/full", "a/d4:1", "b/full", "b/d4:1", "a/full + b/full"]
    for wrong in ("", "a//cls", "a + a"):
        with pytest.raises(InvalidRequest, match="features"):
            parse_features(wrong)


def test_all_faults_are_in_one_message() -> None:
    with pytest.raises(InvalidRequest) as error:
        ProbeConfig(features=(), C=(0.0,), class_weight=("balance",), folds=1)
    for text in ("no features", "positive numbers", "did you mean 'balanced'", "2 or more"):
        assert text in str(error.value)
    settings = config(C=[0.5], folds="paper")
    assert ProbeConfig.from_dict(settings.to_dict()) == settings

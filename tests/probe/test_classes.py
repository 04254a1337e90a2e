"""More than two classes: the protocol against scikit-learn done by hand, and studies from manifests."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from patchbank.datasets.folds import make_folds
from patchbank.datasets.manifest import Header, Manifest
from patchbank.errors import InvalidRequest, ProbeError
from patchbank.probe import protocol
from patchbank.probe.config import ProbeConfig
from patchbank.probe.features import load_set
from patchbank.probe.fewshot import run_few_shot
from patchbank.probe.model import ProbeModel
from patchbank.probe.protocol import as_ensemble, by_class, make_plan, run_protocol, standardized
from patchbank.probe.results.files import ProbeResult
from patchbank.probe.results.merge import merge_systems
from patchbank.probe.results.schema import Role
from patchbank.probe.run import run_probe
from patchbank.probe.selection import criterion
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    f1_score,
    log_loss,
    recall_score,
    roc_auc_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

C = (1e-3, 1e-1)
CLASSES = ("Grade 1", "Grade 2", "Grade 3", "Other")


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    n, d = 240, 5
    groups = np.array([f"s{i}" for i in rng.integers(0, 24, n)], dtype=object)
    y = rng.choice(3, n, p=[0.5, 0.3, 0.2])
    X = (rng.standard_normal((n, d)) * np.arange(1, d + 1)).astype(np.float32)
    X[:, 1] += 3 * (y == 1)
    X[:, 2] += 4 * (y == 2)
    folds = make_folds(y.astype(str), groups, n_splits=3, seed=0).assign(groups)
    test = (rng.standard_normal((40, d)) * np.arange(1, d + 1)).astype(np.float32)
    return {"X": X, "y": y, "groups": groups, "folds": folds, "T": test}


def config(**settings: Any) -> ProbeConfig:
    base = {"features": ["any"], "C": list(C), "inner_folds": 2, "bootstrap": 0}
    return ProbeConfig.from_dict(base | {"class_weight": ["balanced", "none"], **settings})


def sklearn_fit(X: np.ndarray, y: np.ndarray, c: float, weight: str) -> Any:
    class_weight = None if weight == "none" else weight
    model = LogisticRegression(C=c, class_weight=class_weight, tol=1e-10, max_iter=5000)
    return make_pipeline(StandardScaler(), model).fit(X.astype(np.float64), y)


def balanced_loss(y: np.ndarray, score: np.ndarray) -> float:
    own = log_softmax(score, axis=1)[np.arange(len(y)), y]
    return -float(np.mean([own[y == k].mean() for k in np.unique(y)]))


def by_hand(X: np.ndarray, y: np.ndarray, folds: np.ndarray) -> tuple[str, float]:
    """The point of the grid with the least balanced log-loss over held-out rows."""
    grid = [(weight, c) for weight in ("balanced", "none") for c in C]
    losses = []
    for weight, c in grid:
        score = np.empty((len(y), 3))
        for k in np.unique(folds):
            out = folds == k
            score[out] = sklearn_fit(X[~out], y[~out], c, weight).decision_function(X[out])
        losses.append(balanced_loss(y, score))
    return grid[int(np.argmin(losses))]


def test_nested_choice_refit_and_scores_are_scikit_learns(data: dict[str, Any]) -> None:
    X, y, folds = data["X"], data["y"], data["folds"]
    plan = make_plan(y, data["groups"], folds, config=config(), classes=("a", "b", "c"))
    run = run_protocol(X, y, plan, {"T": data["T"]}, config=config())
    assert run.choice is not None
    weight, c = by_hand(X, y, folds)
    assert (run.choice.class_weight, run.choice.value) == (weight, c)
    model = sklearn_fit(X, y, c, weight)
    probabilities = model.predict_proba(data["T"])
    np.testing.assert_allclose(softmax(run.refit["T"], axis=1), probabilities, atol=1e-3)
    for i, k in enumerate(np.unique(folds)):
        out = folds == k
        inner = make_folds(y[~out].astype(str), data["groups"][~out], n_splits=2, seed=0)
        weight, c = by_hand(X[~out], y[~out], inner.assign(data["groups"][~out]))
        assert (run.fold_choices[i].class_weight, run.fold_choices[i].value) == (weight, c)
        model = sklearn_fit(X[~out], y[~out], c, weight)
        np.testing.assert_allclose(softmax(run.oof[out], axis=1), model.predict_proba(X[out]), atol=1e-3)
        folded = softmax(run.fold_models["T"][:, i], axis=1)
        np.testing.assert_allclose(folded, model.predict_proba(data["T"]), atol=1e-3)
    assert run.fits["calls"] == 1
    assert run.fits["fits"] == (1 + 3 + 3 * 2) * 2 * len(C)
    assert run.adjusted.shape == (1,)
    probe = run.models["refit"]
    np.testing.assert_allclose(probe.score(data["T"]), run.refit["T"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("probe", ["knn", "centroid", "ridge", "svm", "mlp"])
def test_other_probes_go_through_the_same_protocol(data: dict[str, Any], probe: str) -> None:
    few = {"mlp": {"alpha": [1e-2], "hidden": 512}, "knn": {"k": [5, 20]}}.get(probe, {})
    settings = config(probe=probe, class_weight=["balanced"], C=None, **few)
    plan = make_plan(data["y"], data["groups"], data["folds"], config=settings, classes=("a", "b", "c"))
    run = run_protocol(data["X"], data["y"], plan, {"T": data["T"]}, config=settings)
    assert balanced_accuracy_score(data["y"], run.oof.argmax(axis=1)) > 0.45, "chance level is .33"
    for model in run.models.values():
        assert model.score(data["T"]).shape == (40, 3)
    np.testing.assert_allclose(run.models["refit"].score(data["T"]), run.refit["T"], rtol=1e-5, atol=1e-6)


def test_criteria(data: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    y, folds = data["y"], data["folds"]
    scores = rng.standard_normal((len(y), 4, 3))
    scores[np.arange(len(y)), :, y] += np.arange(4)
    scores[:, 3] = np.round(scores[:, 3])  # ties
    columns = [scores[:, m] for m in range(4)]
    found = criterion("log_loss", y, scores, folds)
    np.testing.assert_allclose(found, [-balanced_loss(y, s) for s in columns])
    found = criterion("balanced_accuracy", y, scores, folds)
    np.testing.assert_allclose(found, [balanced_accuracy_score(y, s.argmax(axis=1)) for s in columns])

    def macro(score: np.ndarray) -> float:
        means = []
        for k in range(3):
            pairs = [(y[folds == f] == k).sum() * (y[folds == f] != k).sum() for f in np.unique(folds)]
            of_fold = [roc_auc_score(y[folds == f] == k, score[folds == f, k]) for f in np.unique(folds)]
            means.append(np.average(of_fold, weights=pairs))
        return float(np.mean(means))

    np.testing.assert_allclose(criterion("auroc", y, scores, folds), [macro(s) for s in columns])
    scores[3, 1, 2] = np.nan
    assert criterion("log_loss", y, scores, folds)[1] == -np.inf


def test_fold_models_of_other_scales_rank_alike_and_the_ensemble_is_on_its_scale() -> None:
    """The same model at other temperatures: on one scale they are one."""
    rng = np.random.default_rng(2)
    logits = rng.standard_normal((3000, 3)) * [1.0, 2.0, 1.5]
    fold = np.repeat([1, 2, 3], 1000)
    factor = np.array([0.5, 1.0, 3.0])
    scores = logits * factor[fold - 1][:, None]
    scales, ranking = standardized(by_class(scores), fold)
    _, alone = standardized(by_class(logits), np.ones(3000, int))
    for k in range(3):
        order = np.argsort(np.argsort(alone[:, k])), np.argsort(np.argsort(ranking[:, k]))
        assert np.corrcoef(*order)[0, 1] > 0.99
    ensemble = as_ensemble(ranking, scales)
    assert ensemble.shape == (3000, 3)
    np.testing.assert_allclose(np.exp(ensemble).sum(axis=1), 1)
    same = as_ensemble(alone, np.stack([standardized(by_class(logits), np.ones(3000, int))[0][0]] * 2))
    np.testing.assert_allclose(same, log_softmax(logits, axis=1), atol=1e-9)


# --- studies


@dataclass
class Study:
    train: Manifest
    external: Manifest
    bank: Path


def make_manifest(name: str, n: int, *, seed: int, slides: int, order: tuple[str, ...] = CLASSES) -> Manifest:
    rng = np.random.default_rng(seed)
    slide = rng.integers(0, slides, n)
    table = pd.DataFrame(
        {
            "patch_id": [f"{name}/{i:05d}" for i in range(n)],
            "path": [f"{i:05d}.png" for i in range(n)],
            "label": np.array(CLASSES, dtype=object)[rng.choice(4, n, p=[0.4, 0.3, 0.2, 0.1])],
            "group": [f"{name}-{s:03d}" for s in slide],
            "domain": [f"scanner {'AB'[s % 2]}" for s in slide],
            "split": [("train", "train", "train", "test")[(s // 2) % 4] for s in slide],
            "content_hash": [rng.bytes(16).hex() for _ in range(n)],
        }
    )
    header = Header(name=name, version="1", classes=order, positive="", licence="-", source="a test")
    return Manifest(header, table, Path())


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, fill_classes: Callable[..., None]) -> Study:
    bank = tmp_path_factory.mktemp("bank")
    train = make_manifest("inner", 360, seed=1, slides=30)
    external = make_manifest("outer", 150, seed=2, slides=14)
    for encoder, signal in (("good", 2.0), ("poor", 0.5)):
        fill_classes(bank, encoder, [train, external], dim=6, signal=signal)
    return Study(train, external, bank)


@pytest.fixture(scope="module")
def result(study: Study) -> ProbeResult:
    return probe_study(study)


def probe_study(study: Study, **settings: Any) -> ProbeResult:
    about = {"encoders": ["good", "poor"], "C": C, "folds": 3, "inner_folds": 2, "progress": False, "jobs": 1}
    data = {"train": study.train, "tests": [study.external], "bank": study.bank}
    return run_probe(**data, **about | settings)


def of_class(table: pd.DataFrame, kind: str) -> np.ndarray:
    return table[[f"{kind}_{name}" for name in CLASSES]].to_numpy(np.float64)


def test_scores_are_scikit_learns(result: ProbeResult) -> None:
    results, table = result.results, result.predictions
    assert results.multiclass
    assert results.train.classes == list(CLASSES)
    assert sum(results.train.counts) == results.train.n
    seen = 0
    for score in results.whole():
        if score.features == "chosen on folds":
            continue
        mask = (table["dataset"] == score.dataset) & (table["features"] == score.features)
        rows = table[mask & (table["role"] == score.role)]
        y = pd.Categorical(rows["label"], categories=CLASSES).codes.astype(int)
        call = pd.Categorical(rows["call"], categories=CLASSES).codes.astype(int)
        logits, calibrated = of_class(rows, "score"), of_class(rows, "probability")
        np.testing.assert_allclose(calibrated.sum(axis=1), 1)
        assert (calibrated.argmax(axis=1) == call).all()
        one_hot = np.eye(4)[y]
        ranked = of_class(rows, "ranking")
        expected = {
            "accuracy": accuracy_score(y, call),
            "balanced_accuracy": balanced_accuracy_score(y, call),
            "f1": f1_score(y, call, average="macro"),
            "kappa": cohen_kappa_score(y, call),
            "log_loss": log_loss(y, softmax(logits, axis=1)),
            "balanced_log_loss": balanced_loss(y, logits),
            "auroc": np.mean([roc_auc_score(one_hot[:, k], ranked[:, k]) for k in range(4)]),
            "average_precision": average_precision_score(one_hot, ranked, average="macro"),
        }
        for name, value in expected.items():
            assert score.estimate(name).value == pytest.approx(value, abs=1e-9), (score.features, name)
        if score.role != Role.OOF:  # one model: its probabilities rank as the log odds do
            macro = roc_auc_score(y, softmax(logits, axis=1), multi_class="ovr")
            assert score.estimate("auroc").value == pytest.approx(macro, abs=1e-9)
        scaled = score.estimate("log_loss", "temperature").value
        assert scaled == pytest.approx(log_loss(y, calibrated), abs=1e-9)
        assert score.confusion == confusion_matrix(y, call, labels=range(4)).tolist()
        recalls = [recall_score(y == k, call == k) for k in range(4)]
        assert [c.estimate("sensitivity").value for c in score.classes] == pytest.approx(recalls)
        assert [c.n for c in score.classes] == np.bincount(y).tolist()
        worst = score.confused[0]
        a, b = (CLASSES.index(name) for name in (worst.label, worst.called))
        wrong = np.array(score.confusion) - np.diag(np.diag(score.confusion))
        assert worst.rows == wrong.max() == score.confusion[a][b]
        value, low, high = (number or np.nan for number in score.estimate("auroc"))
        assert low < value < high
        seen += 1
    assert seen == 2 * (1 + 2 * 2)
    board = result.results.leaderboard()
    assert board[0].features == "chosen on folds"
    by_name = {(s.dataset, s.features): s.estimate("balanced_accuracy").value or 0.0 for s in board}
    assert by_name["outer", "good/full/cls"] > by_name["outer", "poor/full/cls"] + 0.1
    compared = [c for c in results.comparisons if c.dataset == "outer" and c.role == Role.REFIT]
    assert {(c.metric, c.test) for c in compared} == {
        ("balanced_accuracy", "paired over groups"), ("auroc", "paired over groups")
    }  # fmt: skip
    assert all(c.p is not None and c.p < 0.05 for c in compared)


def test_results_are_read_back_and_probes_predict(
    study: Study, result: ProbeResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = result.save(tmp_path / "results")
    document = json.loads((folder / "results.json").read_text())
    assert document["version"] == 3
    again = ProbeResult.load(folder)
    assert again.results.to_json() == result.results.to_json()
    assert (again.results.scores, again.results.domains) == (result.results.scores, result.results.domains)
    pd.testing.assert_frame_equal(again.predictions, result.predictions)
    model = ProbeModel.load(folder)
    assert model.classes == CLASSES
    table = result.predictions
    rows = table[
        (table["dataset"] == "outer") & (table["features"] == result.chosen) & (table["role"] == "refit")
    ]
    X = load_set(study.external, result.chosen, bank=study.bank)
    np.testing.assert_allclose(model.predict_proba(X), of_class(rows, "probability"), atol=1e-6)
    assert model.predict(X).tolist() == rows["call"].tolist()
    result.show()
    printed = capsys.readouterr().out
    assert "means over the 4 classes" in " ".join(printed.split())


QUICK = {"encoders": ["good"], "domains": "none", "C": [0.1], "bootstrap": 0}


def test_classes_go_by_name_whatever_their_order(study: Study) -> None:
    def turned(manifest: Manifest) -> Manifest:
        return Manifest(manifest.header.replace(classes=CLASSES[::-1]), manifest.table, Path())

    straight = probe_study(study, **QUICK).results
    same = probe_study(Study(study.train, turned(study.external), study.bank), **QUICK).results
    assert same.scores == straight.scores
    assert same.data[-1].classes == list(CLASSES)
    other = probe_study(Study(turned(study.train), study.external, study.bank), **QUICK).results
    assert other.train.classes == list(CLASSES[::-1])
    for one, two in zip(straight.scores, other.scores, strict=True):
        for metric in ("balanced_accuracy", "auroc", "log_loss"):
            value = one.estimate(metric).value
            assert value is None or two.estimate(metric).value == pytest.approx(value, abs=1e-4)
        if not one.domain:
            assert np.array_equal(np.array(two.confusion)[::-1, ::-1], one.confusion)


def test_grades_have_quadratic_kappa(study: Study) -> None:
    graded = study.train.header.replace(ordered=True)
    train = Manifest(graded, study.train.table, Path())
    result = probe_study(Study(train, study.external, study.bank), **QUICK | {"C": None})
    assert result.results.models[0].path is not None
    assert len(result.results.models[0].path.C) == 20, "half of the grid of two classes"
    assert result.results.train.ordered
    score = next(s for s in result.results.whole(dataset="inner:train"))
    table = result.predictions[result.predictions["dataset"] == "inner:train"]
    code = [pd.Categorical(table[c], categories=CLASSES).codes for c in ("label", "call")]
    assert score.estimate("kappa").value == pytest.approx(cohen_kappa_score(*code, weights="quadratic"))
    assert score.estimate("kappa").reason == "no intervals were asked for"
    table = result.predictions[
        (result.predictions["dataset"] == "outer") & (result.predictions["role"] == "refit")
    ]
    code = [pd.Categorical(table[c], categories=CLASSES).codes for c in ("label", "call")]
    outer = next(s for s in result.results.whole(dataset="outer") if s.role == Role.REFIT)
    quadratic = cohen_kappa_score(*code, weights="quadratic")
    assert outer.estimate("kappa").value == pytest.approx(quadratic), (
        "the train set says that these are grades"
    )


def test_domains_repeats_and_few_shot(study: Study) -> None:
    result = probe_study(study, encoders=["good"], repeats=2, C=[0.1])
    domains = result.results.domains["good/full/cls"]
    assert [one.domain for one in domains.leave_one_out] == ["scanner A", "scanner B"]
    for one in domains.leave_one_out:
        assert one.n_positive is None
        assert 0.5 < (one.estimate("auroc").value or 0) < 1
    assert domains.matrix.test[:2] == ["train / scanner A", "train / scanner B"]
    assert np.array(domains.matrix.auroc, float).min() > 0.5
    repeats = result.results.repeats
    assert repeats is not None
    assert len(repeats.scores[0].auroc.values) == 2
    about = {"train": study.train, "tests": [study.external], "bank": study.bank, "encoders": ["good"]}
    curve = run_few_shot(**about, shots=[1, 8], repeats=4, seed=0)
    mean = curve[curve["metric"] == "auroc"].groupby("shots")["value"].mean()
    assert 0.5 < mean[1] < mean[8] < 1
    with pytest.raises(ProbeError, match=r"400 shots a class: there are .* Other"):
        run_few_shot(**about, shots=[400])


def test_domains_without_every_class_are_said(study: Study) -> None:
    table = study.train.table
    kept = (table["domain"] == "scanner A") | (table["label"] != "Other")
    train = Manifest(study.train.header, table[kept].reset_index(drop=True), Path())
    result = probe_study(Study(train, study.external, study.bank), **QUICK | {"domains": "chosen"})
    assert result.results.domains == {}
    assert any("fewer than two have rows of every class" in note for note in result.results.notes)
    score = result.results.by_domain(dataset="inner:train")[1]
    assert (score.domain, score.missing) == ("scanner B", ["Other"])
    assert score.estimate("balanced_accuracy").value is None


def test_one_class_against_the_rest_is_a_binary_study(study: Study) -> None:
    result = probe_study(study, **QUICK, one_vs_rest="Grade 3")
    assert not result.results.multiclass
    assert result.results.train.positive == "Grade 3"
    assert set(result.predictions["label"]) == {0, 1}
    with pytest.raises(InvalidRequest, match="--one-vs-rest 'Grade 3'"):
        probe_study(study, positive="Grade 3")
    with pytest.raises(InvalidRequest, match="'Grade 9' is not one of inner's"):
        probe_study(study, one_vs_rest="Grade 9")
    with pytest.raises(InvalidRequest, match="not both"):
        probe_study(study, one_vs_rest="Grade 3", positive="Grade 3")


def relabelled(manifest: Manifest, labels: list[str], classes: tuple[str, ...]) -> Manifest:
    header = manifest.header.replace(classes=classes)
    return Manifest(header, manifest.table.assign(label=labels), Path())


def test_faults_of_classes_are_sentences(study: Study) -> None:
    labels = study.external.table["label"].tolist()
    unknown = relabelled(study.external, ["Necrosis", *labels[1:]], (*CLASSES, "Necrosis"))
    with pytest.raises(
        InvalidRequest, match=r"outer has rows of classes that inner lacks: 'Necrosis' \(1 rows\)"
    ):
        probe_study(Study(study.train, unknown, study.bank))
    rows = study.train.table
    several = [
        label if label != "Other" or s == "test" else "Grade 1"
        for label, s in zip(rows["label"], rows["split"], strict=True)
    ]
    absent = relabelled(study.train, several, CLASSES)
    with pytest.raises(ProbeError, match="has no row of 'Other', so these classes cannot be learned"):
        probe_study(Study(absent, study.external, study.bank))
    first = rows.index[rows["split"] == "train"][0]
    alone = [label if i != first else "Other" for i, label in enumerate(several)]
    with pytest.raises(
        InvalidRequest, match=r"'Other' occurs in 1 groups .*leave the class out .*--one-vs-rest"
    ):
        probe_study(Study(relabelled(study.train, alone, CLASSES), study.external, study.bank))
    graded, turned = (
        Manifest(one.header.replace(ordered=True, classes=order), one.table, Path())
        for one, order in ((study.train, CLASSES), (study.external, CLASSES[::-1]))
    )
    with pytest.raises(
        InvalidRequest, match=r"the grades of outer rise as .*Fix: build one of the manifests"
    ):
        probe_study(Study(graded, turned, study.bank))
    paths = rows["path"].tolist()
    with pytest.raises(InvalidRequest, match="is the label a path"):
        probe_study(Study(relabelled(study.train, paths, tuple(paths)), study.external, study.bank))


def test_systems_of_one_study_are_compared_over_all_classes(study: Study, result: ProbeResult) -> None:
    single = {name: probe_study(study, encoders=[name], domains="none") for name in ("good", "poor")}
    merged = merge_systems(single)
    assert merged.chosen == "good"
    found = next(c for c in merged.results.comparisons if c.dataset == "outer" and c.metric == "auroc")
    both = next(
        c
        for c in result.results.comparisons
        if (c.dataset, c.metric, c.role) == ("outer", "auroc", Role.REFIT)
    )
    assert found.difference == pytest.approx(both.difference)
    assert found.p == pytest.approx(both.p)
    whole = merged.results.whole(features="good", dataset="outer")[0]
    assert whole.confusion == result.results.whole(features="good/full/cls", dataset="outer")[0].confusion
    assert merged.results.multiclass


@pytest.fixture(scope="module")
def split(study: Study) -> Study:
    """The same with a validation split of the train manifest."""
    table = study.train.table
    chosen = (table["split"] == "train") & table["group"].str[-1].isin(list("048"))
    with_val = Manifest(study.train.header, table.assign(split=table["split"].mask(chosen, "val")), Path())
    return Study(with_val, study.external, study.bank)


def test_the_stored_probe_gives_the_predictions(study: Study, result: ProbeResult, tmp_path: Path) -> None:
    result.save(tmp_path)
    probe = ProbeModel.load(tmp_path)
    assert probe.classes == CLASSES
    table = result.predictions
    table = table[
        (table["features"] == result.chosen) & (table["role"] == "refit") & (table["dataset"] == "outer")
    ]
    X = load_set(study.external, result.chosen, bank=study.bank)
    np.testing.assert_allclose(probe.predict_proba(X), of_class(table, "probability"), atol=1e-5)
    assert list(probe.predict(X)) == list(table["call"])
    np.testing.assert_allclose(
        probe.to_sklearn().predict_proba(X.astype(float)), probe.predict_proba(X), atol=1e-9
    )


def test_an_official_validation_split_chooses(split: Study) -> None:
    result = probe_study(split, select_on="val", bootstrap=100, class_weight=["balanced", "none"])
    name = "good/full/cls"
    assert result.chosen == name
    X = load_set(split.train, name, bank=split.bank).astype(np.float64)
    table = split.train.table
    y = pd.Categorical(table["label"], categories=CLASSES).codes.astype(int)
    train, val, test = ((table["split"] == part).to_numpy() for part in ("train", "val", "test"))
    grid = [(weight, c) for weight in ("balanced", "none") for c in C]
    models = {one: sklearn_fit(X[train], y[train], one[1], one[0]) for one in grid}
    losses = [balanced_loss(y[val], models[one].decision_function(X[val])) for one in grid]
    weight, c = grid[int(np.argmin(losses))]
    choice = result.results.model(name).choice
    assert choice is not None
    assert (choice.class_weight, choice.value) == (weight, c)
    assert result.results.model(name).criterion == pytest.approx(-min(losses), abs=1e-4)
    expected = models[weight, c].predict_proba(X[test])
    roles = {(s.dataset, s.role) for s in result.results.whole()}
    assert roles == {
        ("inner:val", Role.VALIDATION), ("inner:test", Role.REFIT), ("outer", Role.REFIT)
    }  # fmt: skip
    score = result.results.whole(features=name, dataset="inner:test")[0]
    macro = roc_auc_score(y[test], expected, multi_class="ovr")
    assert score.estimate("auroc").value == pytest.approx(macro, abs=2e-3)
    accuracy = balanced_accuracy_score(y[test], expected.argmax(axis=1))
    assert score.estimate("balanced_accuracy").value == pytest.approx(accuracy)
    assert {one.dataset for one in result.results.leaderboard()} == {"inner:test", "outer"}
    assert any("everything was chosen on inner:val" in note for note in result.results.notes)
    assert result.results.folds.name == "split val"
    merged = merge_systems({"good": result, "poor": probe_study(split, encoders=["poor"], select_on="val")})
    assert merged.chosen == "good"
    assert merged.results.whole(dataset="inner:val")[0].role == Role.VALIDATION


@pytest.mark.parametrize("recipe", ["thunder", "eva"])
def test_published_recipes_run_as_published(
    split: Study, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained on train, the epoch chosen on val, scored on test, all classes at once."""
    limit = {"thunder": {"epochs": 60, "batch": 16}, "eva": {"max_steps": 6000, "batch": 16}}[recipe]
    run = protocol.RECIPES[recipe]
    monkeypatch.setitem(protocol.RECIPES, recipe, lambda *a, **k: run(*a, **k, **limit))
    result = probe_study(
        split, encoders=["good"], C=None, select_on="val", solver=recipe, bootstrap=0, backend="threading"
    )
    score = result.results.whole(dataset="outer")[0]
    assert score.role == Role.REFIT
    assert (score.estimate("auroc").value or 0) > 0.8
    assert score.estimate("balanced_accuracy").value is not None
    with pytest.raises(InvalidRequest, match="'paper-sgd' is for two classes"):
        probe_study(split, encoders=["good"], C=None, select_on="val", solver="paper-sgd")


def test_faults_of_the_choosing_split_are_sentences(split: Study) -> None:
    with pytest.raises(
        InvalidRequest, match=r"inner has the splits train, .*val.* Fix: name one of its splits"
    ):
        probe_study(split, select_on="dev")
    with pytest.raises(InvalidRequest, match="repeats are of folds"):
        probe_study(split, select_on="val", repeats=2)
    table = split.train.table
    lacking = table["label"].mask((table["split"] == "val") & (table["label"] == "Other"), "")
    with pytest.raises(ProbeError, match="inner:val has no row of Other, so nothing can be chosen"):
        probe_study(
            Study(
                Manifest(split.train.header, table.assign(label=lacking), Path()), split.external, split.bank
            ),
            select_on="val",
        )


def test_experts_are_scored_beside_the_models_and_vote(study: Study) -> None:
    rng = np.random.default_rng(5)
    rows = study.train.table
    second = rows["label"].where(rng.random(len(rows)) < 0.7, "Grade 1").mask(rows.index % 9 == 0, "")
    read = Manifest(study.train.header, rows.assign(expert_1=rows["label"], expert_2=second), Path())
    voted = Study(read, study.external, study.bank)
    settings = QUICK | {"bootstrap": 100, "class_weight": ["balanced", "votes"]}
    result = probe_study(voted, **settings)
    assert [(one.dataset, one.expert) for one in result.results.experts] == [
        ("inner:train", "expert_2"), ("inner:test", "expert_2")
    ]  # fmt: skip
    one = result.results.experts[0]
    kept = (rows["split"] == "train") & (second != "")
    assert one.n == kept.sum()
    expected = balanced_accuracy_score(rows["label"][kept], second[kept])
    assert one.estimate("balanced_accuracy").value == pytest.approx(expected)
    assert one.estimate("kappa").value == pytest.approx(cohen_kappa_score(rows["label"][kept], second[kept]))
    [model] = one.models
    table = result.predictions[result.predictions["dataset"] == "inner:train"]
    of_read = table[table["patch_id"].isin(rows["patch_id"][kept])].astype({"label": object, "call": object})
    value = balanced_accuracy_score(of_read["label"], of_read["call"])
    assert model.value.value == pytest.approx(value)
    assert model.difference.value == pytest.approx(expected - value)
    wrong = read.table.assign(expert_2=second.mask(second.index == 3, "Grade 7"))
    with pytest.raises(ProbeError, match="inner/00003: expert_2 is 'Grade 7', which is no class"):
        probe_study(Study(Manifest(read.header, wrong, Path()), study.external, study.bank), **QUICK)
    with pytest.raises(ProbeError, match="needs expert_1, expert_2"):
        probe_study(study, **settings)


def test_votes_for_several_classes_are_soft_labels(data: dict[str, Any]) -> None:
    """It is the fit of scikit-learn with every row three times, weighted by its votes for each class."""
    X, y = data["X"].astype(np.float64), data["y"]
    votes = np.eye(3)[y]
    votes[:50] = votes[:50] * 0.5 + np.roll(votes[:50], 1, axis=1) * 0.5
    votes[50:60] = np.nan
    settings = config(preprocess=["none"], class_weight=["votes"], C=[0.01])
    plan = make_plan(y, data["groups"], data["folds"], config=settings, votes=votes, classes=("a", "b", "c"))
    run = run_protocol(data["X"], y, plan, {"T": data["T"]}, config=settings)
    share = np.where(np.isnan(votes), np.eye(3)[y], votes)
    weight = (share / share.sum(axis=0) * len(y) / 3).T.ravel()
    rows = np.concatenate([np.arange(len(y)), np.nonzero(share * (np.eye(3)[y] == 0))[0]])
    model = LogisticRegression(C=0.01 / X[rows].var(axis=0).mean(), tol=1e-10, max_iter=5000)
    model.fit(np.tile(X, (3, 1)), np.repeat([0, 1, 2], len(y)), sample_weight=weight)
    expected = model.predict_proba(data["T"])
    np.testing.assert_allclose(softmax(run.refit["T"], axis=1), expected, atol=2e-3)

"""K classes, grades and numbers: learned, scored, kept, predicted and compared as the probes' are."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from patchbank.datasets.manifest import Manifest
from patchbank.errors import InvalidRequest, TrainingError
from patchbank.extract.run import run_extract
from patchbank.finetune import checkpoint
from patchbank.finetune.adapted import load_model
from patchbank.finetune.compare import compare_results
from patchbank.finetune.data import Patches
from patchbank.finetune.labels import Labels, labels_of, labels_of_card
from patchbank.finetune.recipe import Recipe
from patchbank.finetune.run import run_finetune
from patchbank.finetune.scores import monitored
from patchbank.finetune.train import fit, predict_logits
from patchbank.prediction import predict
from patchbank.probe.results.files import ProbeResult
from patchbank.probe.results.merge import merge_systems
from patchbank.probe.run import run_probe
from scipy.special import softmax
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, r2_score, roc_auc_score

CLASSES = Labels(classes=("low", "middle", "high"))
GRADES = Labels(classes=("low", "middle", "high"), ordered=True)
NUMBERS = Labels(classes=(), targets=("blue", "dark"))


def learn(tiny: SimpleNamespace, folder: Path, labels: Labels, **changes: Any) -> tuple[Any, Any, Patches]:
    """A network that has learned the toy, its progress, and new patches with their labels."""
    parts = []
    for n, seed, name in ((60, 1, "train"), (30, 2, "held"), (45, 3, "new")):
        patches, blue = tiny.grades(n, seed=seed, name=name)
        y = np.stack([blue, -200 * blue + 5], axis=1) if labels.targets else patches.labels
        parts.append(Patches(patches.ids, y, patches.read))
    labels = labels.fitted(parts[0].labels)
    small = {
        "epochs": 8,
        "patience": 8,
        "dropout": 0.0,
        "method": "full",
        "lr": 3e-3,
        "augment": (),
        **changes,
    }
    recipe = tiny.recipe(of=labels, **small)
    network = tiny.network(recipe, labels)
    at = fit(network, recipe, *parts[:2], folder=folder, run_key={"a": 1}, progress=False)
    return network, at, parts[2]


@pytest.mark.parametrize(
    ("labels", "changes"),
    [
        (CLASSES, {"monitor": "log_loss"}),
        (CLASSES, {"loss": "focal", "balance": "weights"}),
        (GRADES, {"loss": "ranked", "epochs": 12, "patience": 12}),
    ],
    ids=["classes", "focal", "ranked"],
)
def test_three_classes_are_learned(
    tiny: SimpleNamespace, tmp_path: Path, labels: Labels, changes: dict[str, Any]
) -> None:
    network, at, new = learn(tiny, tmp_path, labels, **changes)
    scores = predict_logits(network, new)
    assert scores.shape == (45, 3)
    assert balanced_accuracy_score(new.labels, scores.argmax(axis=1)) > 0.9
    assert at.history[-1]["loss"] < 0.5 * at.history[0]["loss"]
    assert set(at.history[0]) == {
        "epoch", "loss", "lr", "balanced_accuracy", "auroc", "average_precision", "log_loss", "kappa"
    }  # fmt: skip
    monitor = changes.get("monitor", "kappa" if labels.ordered else "auroc")
    best = max(at.history, key=lambda e: monitored(e, monitor))
    assert at.best_epoch == best["epoch"]


def test_two_numbers_of_other_units_are_learned_alike(tiny: SimpleNamespace, tmp_path: Path) -> None:
    network, at, new = learn(tiny, tmp_path, NUMBERS, epochs=12, patience=12)
    found = predict_logits(network, new)
    each = np.atleast_1d(r2_score(new.labels, found, multioutput="raw_values"))
    assert min(each) > 0.85
    assert abs(each[0] - each[1]) < 0.05, "one is -200 times the other: standardised they weigh alike"
    assert found[:, 1].std() > 50, "in its own unit"
    assert at.best_epoch == max(at.history, key=lambda e: e["r2"])["epoch"]


def test_the_metrics_of_an_epoch_are_scikit_learns(tiny: SimpleNamespace) -> None:
    from patchbank.finetune.scores import validation_metrics

    rng = np.random.default_rng(0)
    y, logits = np.arange(60) % 3, rng.normal(size=(60, 3))
    p, called = softmax(logits, axis=1), logits.argmax(axis=1)
    for labels, weights in ((CLASSES, None), (GRADES, "quadratic")):
        found = validation_metrics(y, logits, labels)
        assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y, called))
        assert found["kappa"] == pytest.approx(cohen_kappa_score(y, called, weights=weights))
        assert found["log_loss"] == pytest.approx(-np.log(p[np.arange(60), y]).mean())  # classes are even
    numbers = Labels(classes=(), targets=("a", "b")).fitted(rng.normal(size=(30, 2)) * [1, 50] + 3)
    y, wrong = rng.normal(size=(40, 2)), rng.normal(size=(40, 2))
    found = validation_metrics(y, wrong, numbers)
    assert found["r2"] == pytest.approx(r2_score(y, wrong))
    assert found["pearson"] == pytest.approx(
        np.mean([np.corrcoef(y[:, i], wrong[:, i])[0, 1] for i in (0, 1)])
    )
    flat = validation_metrics(np.c_[y[:, 0], np.ones(40)], wrong, numbers)
    assert flat["pearson"] == pytest.approx(np.corrcoef(y[:, 0], wrong[:, 0])[0, 1] / 2)


def test_units_are_of_the_rows_that_train() -> None:
    y = np.array([[1.0, 5.0], [3.0, 5.0], [8.0, 5.0]])
    labels = NUMBERS.fitted(y)
    assert labels.units == ((4.0, 5.0), (pytest.approx(np.std([1, 3, 8])), 1.0))
    np.testing.assert_allclose(labels.in_units(labels.standardised(y)), y)
    again = labels_of_card(json.loads(json.dumps(labels.to_card())))
    assert again == labels
    assert CLASSES.fitted(np.arange(3)) is CLASSES
    assert labels_of_card({"classes": ["plain", "odd"], "positive": "odd"}).binary


def study(
    tiny: SimpleNamespace, folder: Path, encoder: tuple[str, Path], kind: str, **changes: Any
) -> tuple[dict[str, Any], ProbeResult]:
    """Two of three folds, fine-tuned on 48 rows and scored on 24."""
    manifest = tiny.labelled(folder / "images", kind, n=72, test=24)
    given = {
        "train": manifest,
        "encoder": encoder[0],
        "checkpoint": encoder[1],
        "recipe": tiny.recipe(epochs=2, name="lora", of=labels_of(manifest.header)),
        "out": folder / "out",
        "folds": 3,
        "device": "cpu",
        "bootstrap": 100,
        "progress": False,
        "near_duplicates": "none",
        **changes,
    }
    return given, run_finetune(**given)


def beside_a_probe(given: dict[str, Any], folder: Path, **settings: Any) -> ProbeResult:
    """A probe of the same encoder on the same rows and folds."""
    options: dict[str, Any] = {"bank": folder / "bank", "progress": False}
    run_extract(
        [given["train"]], encoder=given["encoder"], checkpoint=given["checkpoint"], device="cpu", **options
    )
    small = {"folds": 3, "inner_folds": 2, "bootstrap": 100, "jobs": 1, **settings}
    return run_probe(train=given["train"], encoders=["tiny-vit"], out=folder / "probe", **options, **small)


def test_a_study_of_three_classes(
    tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path]
) -> None:
    given, result = study(tiny, tmp_path, tiny_encoder, "grades")
    table, folder = result.predictions, tmp_path / "out" / "tiny-vit+lora"
    test = table[(table["dataset"] == "grades:test") & (table["role"] == "ensemble")].set_index("patch_id")
    assert set(test["label"]) == {"low", "middle", "high"}
    p = test[[f"probability_{name}" for name in CLASSES.classes]].to_numpy()
    np.testing.assert_allclose(p.sum(axis=1), 1)
    of_folds = [
        softmax(
            table[(table["dataset"] == "grades:test") & (table["role"] == f"fold {k}")]
            .set_index("patch_id")
            .loc[test.index, [f"score_{name}" for name in CLASSES.classes]],
            axis=1,
        )
        for k in (1, 2, 3)
    ]
    mean = np.mean(of_folds, axis=0)
    logits = test[[f"score_{name}" for name in CLASSES.classes]].to_numpy()
    np.testing.assert_allclose(softmax(logits, axis=1), mean, atol=1e-9)
    whole = {one.role_name: one for one in result.results.whole(dataset="grades:test")}
    y = test["label"].map({name: k for k, name in enumerate(CLASSES.classes)}).to_numpy()
    assert whole["ensemble"].estimate("auroc").value == pytest.approx(
        roc_auc_score(y, mean, multi_class="ovr", average="macro"), abs=1e-6
    )
    assert whole["ensemble"].estimate("kappa").value == pytest.approx(
        cohen_kappa_score(y, mean.argmax(axis=1), weights="quadratic")
    )
    (model,) = result.results.models
    assert model.threshold is None
    assert model.temperature is not None
    assert model.temperature > 0

    card = checkpoint.read_card(folder / "fold-1")
    assert (card["format_version"], card["data"]["kind"], card["data"]["ordered"]) == (2, "classes", True)
    assert card["recipe"]["monitor"] == "kappa", "what the shipped recipe leaves to grades"
    assert sum(card["data"]["training_counts"]) == card["data"]["training_rows"]
    network, _ = load_model(folder / "fold-1")
    assert network.head.weight.shape == (3, 32)
    pd.testing.assert_frame_equal(run_finetune(**given).predictions, table)  # nothing is trained twice

    found = predict(folder, given["train"].select("test"), device="cpu", progress=False).table
    found = found.set_index("patch_id").loc[test.index]
    for name in CLASSES.classes:
        np.testing.assert_allclose(found[f"probability_{name}"], test[f"probability_{name}"], atol=1e-5)
    assert (found["prediction"] == test["call"].astype(object)).all()
    assert f"score_fold_2_{CLASSES.classes[0]}" in found

    probe = beside_a_probe(given, tmp_path, C=(1e-2, 1.0))
    merged = merge_systems({"LoRA": result, "probe": probe}).results
    assert {(c.dataset, c.metric) for c in merged.comparisons if {c.a, c.b} == {"LoRA", "probe"}} == {
        (dataset, metric)
        for dataset in ("grades:train", "grades:test")
        for metric in ("auroc", "balanced_accuracy")
    }
    records = compare_results(folder, tmp_path / "probe")
    assert {(r["dataset"], r["metric"]) for r in records} == {
        (c.dataset, c.metric) for c in merged.comparisons
    }
    one = next(r for r in records if r["dataset"] == "grades:test" and r["metric"] == "auroc")
    assert one["value_ours"] == pytest.approx(whole["ensemble"].estimate("auroc").value)
    assert one["difference"] == pytest.approx(one["value_ours"] - one["value_theirs"])


def test_a_study_of_numbers(tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path]) -> None:
    given, result = study(tiny, tmp_path, tiny_encoder, "numbers")
    table, folder = result.predictions, tmp_path / "out" / "tiny-vit+lora"
    test = table[(table["dataset"] == "grades:test") & (table["role"] == "ensemble")].set_index("patch_id")
    oof = table[table["role"] == "oof"].set_index("patch_id")
    assert len(oof) == 48
    cards = [checkpoint.read_card(folder / f"fold-{k}") for k in (1, 2, 3)]
    for k, card in enumerate(cards, start=1):  # the units are of the other folds' rows
        others = oof[oof["fold"] != k]
        assert card["data"]["means"] == pytest.approx(others[["label_blue", "label_dark"]].mean().tolist())
        np.testing.assert_allclose(
            oof.loc[oof["fold"] == k, "prediction_dark"] - oof.loc[oof["fold"] == k, "ranking_dark"],
            others["label_dark"].mean(),
        )
    whole = {one.role_name: one for one in result.results.whole(dataset="grades:test")}
    assert set(whole) == {"fold 1", "fold 2", "fold 3", "ensemble"}
    wanted = r2_score(test[["label_blue", "label_dark"]], test[["prediction_blue", "prediction_dark"]])
    assert whole["ensemble"].estimate("r2").value == pytest.approx(wanted)
    pd.testing.assert_frame_equal(ProbeResult.load(folder).predictions, table)

    found = predict(folder, given["train"].select("test"), device="cpu", progress=False).table
    found = found.set_index("patch_id").loc[test.index]
    np.testing.assert_allclose(found["prediction_dark"], test["prediction_dark"], rtol=1e-4)
    each = found[[f"prediction_fold_{k}_blue" for k in (1, 2, 3)]]
    np.testing.assert_allclose(each.mean(axis=1), found["prediction_blue"])
    assert not {"probability", "prediction", "threshold"} & set(found)

    probe = beside_a_probe(given, tmp_path)
    merged = merge_systems({"LoRA": result, "probe": probe})
    assert {c.metric for c in merged.results.comparisons} == {"r2", "pearson"}
    assert merged.results.chosen == "probe", "two epochs are no match for it"
    assert merged.results.targets == ["blue", "dark"]
    records = compare_results(folder, tmp_path / "probe")
    one = next(r for r in records if r["dataset"] == "grades:test" and r["metric"] == "r2")
    assert one["value_ours"] == pytest.approx(wanted)
    assert one["difference"] == pytest.approx(one["value_ours"] - one["value_theirs"])
    merged.save(tmp_path / "merged")
    assert ProbeResult.load(tmp_path / "merged").results.comparisons == merged.results.comparisons


def test_one_number_alone_is_trained_scored_and_predicted(
    tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path]
) -> None:
    both = tiny.labelled(tmp_path / "images", "numbers", n=48, test=12)
    table = both.table.drop(columns="dark")
    one = Manifest(both.header.model_copy(update={"targets": ("blue",)}), table, both.root)
    result = run_finetune(
        train=one,
        encoder=tiny_encoder[0],
        checkpoint=tiny_encoder[1],
        recipe=Recipe(epochs=2, batch_size=8, warmup=0.0),
        out=tmp_path / "out",
        folds=2,
        device="cpu",
        bootstrap=0,
        progress=False,
        near_duplicates="none",
    )
    known = result.predictions[result.predictions["role"] == "ensemble"].set_index("patch_id")
    folder = tmp_path / "out" / "tiny-vit+lora"
    found = predict(folder, one.select("test"), device="cpu", progress=False).table.set_index("patch_id")
    np.testing.assert_allclose(found["prediction_blue"], known.loc[found.index, "prediction_blue"], rtol=1e-4)
    assert list(found.filter(like="prediction")) == [
        "prediction_blue",
        "prediction_fold_1_blue",
        "prediction_fold_2_blue",
    ]


def test_one_class_against_the_rest_is_two_classes(
    tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path]
) -> None:
    given, result = study(
        tiny, tmp_path, tiny_encoder, "classes", one_vs_rest="high", only_folds=[1], bootstrap=0
    )
    card = checkpoint.read_card(tmp_path / "out" / "tiny-vit+lora" / "fold-1")
    assert (card["format_version"], card["data"]["positive"]) == (1, "high")
    assert result.results.train.positive == "high"
    table = predict(
        tmp_path / "out" / "tiny-vit+lora", given["train"].select("test"), device="cpu", progress=False
    ).table
    assert set(table["prediction"]) <= {"high", "not high"}


def test_what_does_not_fit_the_labels_is_refused(
    tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path]
) -> None:
    cases = [
        ("numbers", {"recipe": tiny.recipe(balance="sampler")}, r"'sampler' is for classes.*\"none\""),
        ("numbers", {"monitor": "auroc"}, "monitor 'auroc' is for classes; for numbers it has to be \"r2\""),
        ("numbers", {"loss": "focal", "labels": "votes"}, "loss 'focal'.*labels 'votes'"),
        ("numbers", {"smoothing": 0.1}, "smoothing 0.1"),
        ("numbers", {"positive": "high"}, "numbers to predict"),
        ("classes", {"loss": "ranked"}, "say ordered = true in the manifest"),
        ("classes", {"loss": "squared_error"}, "'squared_error' is for numbers"),
        ("classes", {"monitor": "r2"}, "'r2' is for numbers"),
        ("classes", {"positive": "high"}, "--one-vs-rest 'high'"),
        ("classes", {"labels": "votes", "only_folds": [1]}, "no training row has votes"),
    ]  # fmt: skip
    for kind, changes, message in cases:
        with pytest.raises(InvalidRequest, match=message):
            study(tiny, tmp_path / kind, tiny_encoder, kind, **changes)
    with pytest.raises(InvalidRequest, match="'kappa' is for more than two classes"):
        tiny.recipe(of=Labels(), monitor="kappa")
    patches, blue = tiny.grades(12, seed=0)
    two = Patches(patches.ids, patches.labels % 2, patches.read)
    held = Patches([f"held/{i}" for i in range(12)], patches.labels, patches.read)
    with pytest.raises(InvalidRequest, match="need all 3 classes"):
        fit(
            tiny.network(tiny.recipe(), CLASSES), tiny.recipe(), two, held, folder=tmp_path, run_key={},
            progress=False,
        )  # fmt: skip
    numbers = NUMBERS.fitted(np.c_[blue, blue])
    gap = Patches(patches.ids, np.c_[blue, np.where(blue > 1, np.nan, blue)], patches.read)
    with pytest.raises(InvalidRequest, match="finite numbers"):
        fit(
            tiny.network(tiny.recipe(), numbers), tiny.recipe(of=numbers), gap, held, folder=tmp_path,
            run_key={}, progress=False,
        )  # fmt: skip


def test_a_recipe_of_ones_own_leaves_the_rest_to_the_labels(tmp_path: Path) -> None:
    from patchbank.finetune.recipe import load_recipe

    file = tmp_path / "mine.toml"
    file.write_text("rank = 4\n")
    mine = load_recipe(file, of=NUMBERS)
    assert (mine.monitor, mine.loss, mine.balance) == ("r2", "squared_error", "none")
    assert load_recipe(file, of=NUMBERS, monitor="pearson").monitor == "pearson"
    assert load_recipe("midog25", of=NUMBERS).smoothing == 0
    assert load_recipe("midog25", of=CLASSES) == load_recipe("midog25") == load_recipe("midog25", of=Labels())
    assert load_recipe("lora", of=GRADES).monitor == "kappa"
    file.write_text('monitor = "log_loss"\n')
    assert load_recipe(file, of=GRADES).monitor == "log_loss"
    with pytest.raises(InvalidRequest, match=r"recipe 'mine'.*'log_loss' is for classes"):
        load_recipe(file, of=NUMBERS)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "ranks"}, "neither 'classes' nor 'targets'"),
        ({"kind": "classes"}, "data.ordered is missing"),
        ({"kind": "targets", "targets": ["a"], "means": [], "deviations": [1.0]}, "not of one length"),
        ({"kind": "targets", "targets": ["a"]}, "data.means is missing"),
    ],
)
def test_a_damaged_card_of_labels_is_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    data = {"name": "x", "positive": "", "classes": ["a", "b", "c"], "fold": 1, **change}
    encoder = {"spec": "x", "id": "x", "weights": "x", "dim": 2, "tokens": "cls", "view": "full"}
    card = {
        "format": "patchbank-finetuned", "format_version": 2, "name": "x", "run_key": {}, "encoder": encoder,
        "base_weights": {}, "recipe": {}, "data": data, "training": {}, "validation": {}, "files": {},
    }  # fmt: skip
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(TrainingError, match=says):
        checkpoint.read_card(tmp_path)

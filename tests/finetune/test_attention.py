"""Attention pooling finds the one token that carries the label, which the mean of the tokens hides."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from patchbank.datasets.folds import Folds
from patchbank.datasets.manifest import Manifest
from patchbank.errors import InvalidRequest, RowsMissing, StoreNotFound
from patchbank.extract.run import run_extract
from patchbank.finetune.attention import (
    AttentionProbe,
    AttentionSettings,
    attention_logits,
    fit_attention,
    run_attention,
)
from patchbank.finetune.labels import Labels
from patchbank.finetune.scores import CHOSEN_ON_SCORED, validation_metrics
from patchbank.probe.statistics import metrics
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import r2_score


def hidden(n: int, *, tokens: int = 25, dim: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """One token of each patch is marked by its first number; the sign of its second is the label."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, tokens, dim)), np.arange(n) % 2
    at = rng.integers(tokens, size=n)
    x[np.arange(n), at, 0] = 8
    x[np.arange(n), at, 1] = np.where(y == 1, 3, -3)
    return x.astype(np.float16), y


def test_it_finds_what_the_mean_hides() -> None:
    x, y = hidden(900)
    train = np.arange(900) < 600
    model, history = fit_attention(
        x, y, train=train, validation=~train, settings=AttentionSettings(lr=2e-2, epochs=30, dropout=0.0)
    )
    attention = metrics.auroc(y[~train], attention_logits(model, x[~train]))
    means = x.astype(np.float64).mean(axis=1)
    mean = metrics.auroc(
        y[~train],
        LogisticRegression(max_iter=1000).fit(means[train], y[train]).decision_function(means[~train]),
    )
    assert attention > 0.97
    assert attention > mean + 0.1
    assert history[-1]["loss"] < history[0]["loss"]
    weights = model.pool(torch.from_numpy(x[:50]))[1]
    assert weights.shape == (50, 4, 25)
    assert torch.allclose(weights.sum(-1), torch.ones(50, 4), atol=1e-5)


def test_it_starts_as_the_mean_and_repeats() -> None:
    x, y = hidden(60)
    model = AttentionProbe(16, heads=2, dropout=0.0, seed=0)
    pooled, _ = model.pool(torch.from_numpy(x))
    mean = model.norm(torch.from_numpy(x).float()).mean(1)
    assert torch.allclose(pooled, mean.repeat(1, 2), atol=1e-5)
    train = np.arange(60) < 40
    runs = [
        fit_attention(x, y, train=train, validation=~train, settings=AttentionSettings(epochs=3))
        for _ in range(2)
    ]
    assert runs[0][1] == runs[1][1]


def test_what_cannot_be_fitted_is_refused() -> None:
    x, y = hidden(20)
    half = np.arange(20) < 10
    with pytest.raises(InvalidRequest, match="must be"):
        fit_attention(x.reshape(20, -1), y, train=half, validation=~half)
    with pytest.raises(InvalidRequest, match=r"in training and validation"):
        fit_attention(x, y, train=half, validation=half)
    with pytest.raises(InvalidRequest, match="need both classes"):
        fit_attention(x, np.zeros(20, int), train=half, validation=~half)


def test_from_cached_tokens_to_one_table(
    tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path]
) -> None:
    manifest = tiny.manifest(tmp_path / "images", n=90, test=30)
    options = {
        "train": manifest,
        "encoder": "tiny-vit",
        "bank": tmp_path / "bank",
        "token_dim": 32,
        "folds": 3,
        "bootstrap": 100,
        "near_duplicates": "none",
        "settings": {"epochs": 15, "lr": 1e-2},
    }
    with pytest.raises(StoreNotFound):
        run_attention(**options)
    half = manifest.select(np.arange(90) < 45)
    extract = {
        "encoder": tiny_encoder[0],
        "checkpoint": tiny_encoder[1],
        "bank": tmp_path / "bank",
        "tokens": "patches",
        "device": "cpu",
        "progress": False,
    }
    run_extract([half], **extract)
    with pytest.raises(RowsMissing, match="patchbank extract"):
        run_attention(**options)
    run_extract([manifest], **extract)
    result = run_attention(**options, out=tmp_path / "out")
    oof = next(s for s in result.document["scores"] if s["role"] == "oof")
    assert oof["n"] == 60
    assert oof["metrics"]["auroc"][0] > 0.7
    assert (tmp_path / "out" / "tiny-vit+attention" / "fold-3.safetensors").exists()
    assert CHOSEN_ON_SCORED in result.results.notes

    # the labels of fold 1 neither train nor choose its model, where an inner fold or nothing chooses
    of_group = {f"g{i}": 1 + i % 3 for i in range(10)}
    folds = Folds(name="three", dataset="tiny", n_splits=3, fold_of_group=of_group)
    options |= {"folds": str(folds.save(tmp_path / "folds.toml")), "only_folds": [1]}
    in_fold, label = manifest.table["group"].map(of_group) == 1, manifest.table["label"]
    turned = label.where(~in_fold, label.map({"odd": "plain", "plain": "odd"}))
    other = Manifest(manifest.header, manifest.table.assign(label=turned), manifest.root)
    for choose_on, same in (("inner", True), ("none", True), ("fold", False)):
        options["settings"] = {"epochs": 12, "lr": 1e-2, "choose_on": choose_on}
        both = [run_attention(**{**options, "train": one}) for one in (manifest, other)]
        assert [CHOSEN_ON_SCORED in one.results.notes for one in both] == [choose_on == "fold"] * 2
        scores = [one.predictions["score"].to_numpy() for one in both]
        assert np.array_equal(*scores) == same, choose_on


def test_without_a_choice_the_last_epoch_is_kept() -> None:
    x, y = hidden(90)
    half = np.arange(90) < 60
    settings = AttentionSettings(epochs=4, patience=1, lr=5e-2, choose_on="none")
    model, history = fit_attention(x, y, train=half, validation=~half, settings=settings)
    assert len(history) == 4, "patience has no say"
    outputs = attention_logits(model, x[~half])
    assert validation_metrics(y[~half], outputs)["auroc"] == history[-1]["auroc"]
    with pytest.raises(InvalidRequest, match="did you mean 'inner'"):
        AttentionSettings(choose_on="iner")


@pytest.mark.parametrize("numbers", [False, True])
def test_three_classes_and_numbers_are_pooled_too(numbers: bool) -> None:
    """One token of nine says the class, by its place in another dimension; numbers are linear in it."""
    rng = np.random.default_rng(0)
    n, level = 180, np.arange(180) % 3
    x = rng.normal(0, 0.3, (n, 9, 8)).astype(np.float32)
    x[np.arange(n), rng.integers(0, 9, n), 0] += 3
    x[:, :, 1] += level[:, None] - 1
    y = np.stack([level * 100.0 + 7, -level * 0.01], axis=1) if numbers else level
    labels = Labels(classes=(), targets=("a", "b")) if numbers else Labels(classes=("x", "y", "z"))
    half = np.arange(n) < 120
    monitor = "r2" if numbers else "log_loss"
    settings = AttentionSettings(heads=2, lr=2e-2, epochs=15, dropout=0.0, monitor=monitor)
    model, history = fit_attention(x, y, train=half, validation=~half, settings=settings, labels=labels)
    found = attention_logits(model, x[~half])
    assert found.shape == (60, 2 if numbers else 3)
    if numbers:
        assert np.min(r2_score(y[~half], found, multioutput="raw_values")) > 0.8
        assert max(e["r2"] for e in history) > 0.8
    else:
        assert (found.argmax(axis=1) == level[~half]).mean() > 0.9
        assert {"auroc", "kappa"} <= set(history[0])
    with pytest.raises(InvalidRequest, match=r"monitor '(kappa|r2)'"):
        AttentionSettings(monitor="kappa" if numbers else "r2").recipe(labels)

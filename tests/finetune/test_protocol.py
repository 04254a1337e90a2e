"""Which rows do what in a fold: who trains, who chooses the epoch, who is only scored; what a kill leaves."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from patchbank.datasets.folds import Folds
from patchbank.datasets.manifest import Manifest
from patchbank.errors import InvalidRequest, ProbeError
from patchbank.finetune import checkpoint
from patchbank.finetune.adapted import unseen
from patchbank.finetune.data import use_of_rows
from patchbank.finetune.fold import train_fold
from patchbank.finetune.jobs import FoldJob, Request, prepare
from patchbank.finetune.run import run_finetune
from PIL import Image
from scipy.special import expit, logit
from sklearn.metrics import balanced_accuracy_score


def settings(
    tiny: SimpleNamespace, folder: Path, encoder: tuple[str, Path], **changes: Any
) -> dict[str, Any]:
    """Of 60 train and 30 test rows in three folds, which a file holds: labels do not move them."""
    given = {
        "train": tiny.manifest(folder / "images", n=90, test=30),
        "encoder": encoder[0],
        "checkpoint": encoder[1],
        "recipe": tiny.recipe(epochs=2, patience=2, warmup=0.5),
        "out": folder / "out",
        "folds": str(three_folds(folder)),
        "device": "cpu",
        "bootstrap": 0,
        "progress": False,
        "near_duplicates": "none",
        **changes,
    }
    return given


def three_folds(folder: Path, of_group: dict[str, int] | None = None) -> Path:
    of_group = of_group or {f"g{i}": 1 + i % 3 for i in range(10)}
    folds = Folds(name="three", dataset="tiny", n_splits=3, fold_of_group=of_group)
    return folds.save(folder / "folds.toml")


def with_columns(manifest: Manifest, **columns: Any) -> Manifest:
    return Manifest(manifest.header, manifest.table.assign(**columns), manifest.root)


def trained(given: dict[str, Any], fold: int = 1) -> tuple[FoldJob, dict[str, torch.Tensor]]:
    """A fold's job, and the adapters and the head that its training gives."""
    (job,) = prepare(Request.of(**given, only_folds=[fold])).jobs
    train_fold(job)
    files = ("adapter_model.safetensors", "head.safetensors")
    return job, {n: t for file in files for n, t in checkpoint.load_tensors(job.folder / file).items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_an_inner_fold_of_whole_groups_chooses(
    tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path], kind: str
) -> None:
    train = tiny.labelled(tmp_path / "images", kind, n=72)
    recipe = tiny.recipe(choose_on="inner", monitor="r2" if kind == "numbers" else "auroc", **(
        {"loss": "squared_error", "balance": "none"} if kind == "numbers" else {}
    ))  # fmt: skip
    prepared = prepare(
        Request.of(
            train=train, encoder=tiny_encoder[0], checkpoint=tiny_encoder[1], recipe=recipe, folds=3,
            out=tmp_path / "out", device="cpu", near_duplicates="none", progress=False,
        )
    )  # fmt: skip
    data, labels = prepared.data, prepared.jobs[0].labels
    groups = data.study.train_manifest.table["group"].to_numpy()
    for job in prepared.jobs:
        assert ((job.use == "held out") == (data.fold == job.fold_number)).all()
        sets = {what: set(groups[job.use == what]) for what in ("training", "validation", "held out")}
        assert sum(map(len, sets.values())) == len(set(groups)), "no group is in two of them"
        share = (job.use == "validation").sum() / (data.fold != job.fold_number).sum()
        assert 0.1 < share <= 0.5
        if kind == "classes":
            assert set(data.study.train.y[job.use == "validation"]) == {0, 1, 2}
        again = use_of_rows(data, job.fold_number, recipe, labels)
        assert (again == job.use).all()
    plain = use_of_rows(data, 2, tiny.recipe(), labels)
    assert set(plain[data.fold == 2]) == {"validation"}
    assert set(plain[data.fold != 2]) == {"training"}


@pytest.mark.parametrize("choose_on", ["inner", "none"])
def test_labels_of_the_fold_that_is_scored_change_nothing(
    tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path], choose_on: str
) -> None:
    """The model of fold 1 is the same when all labels of fold 1 are exchanged: its score is honest."""
    given = settings(tiny, tmp_path, tiny_encoder)
    given["recipe"] = tiny.recipe(epochs=3, patience=3, choose_on=choose_on)
    job, tensors = trained(given)
    table = given["train"].table
    in_fold = table["group"].map({f"g{i}": 1 + i % 3 for i in range(10)}) == 1
    exchanged = table["label"].where(~in_fold, table["label"].map({"odd": "plain", "plain": "odd"}))
    assert (exchanged != table["label"]).sum() == (job.fold == 1).sum()
    other = {**given, "train": with_columns(given["train"], label=exchanged), "out": tmp_path / "other"}
    assert equal(tensors, trained(other)[1])
    card = checkpoint.read_card(job.folder)
    rows = pd.read_parquet(job.folder / "rows.parquet")
    assert card["data"]["training_rows"] == (rows["role"] == "training").sum()
    assert card["data"]["validation_rows"] == (rows["role"] == "validation").sum()
    if choose_on == "none":
        assert (card["training"]["best_epoch"], card["training"]["epochs"]) == (3, 3)
    else:
        assert (rows["role"] == "held out").sum() == (job.fold == 1).sum()
        kept = unseen(job.folder, given["train"])
        assert set(rows.loc[rows["role"] != "training", "patch_id"]) <= set(kept.table["patch_id"])
        assert not set(rows.loc[rows["role"] == "training", "patch_id"]) & set(kept.table["patch_id"])


def test_without_a_choice_patience_and_the_plateau_have_no_say(tiny: SimpleNamespace) -> None:
    with pytest.raises(InvalidRequest, match="follows the validation rows: set choose_on"):
        tiny.recipe(choose_on="none", schedule="plateau", warmup=0.0)
    with pytest.raises(InvalidRequest, match=r"'iner'.*did you mean 'inner'"):
        tiny.recipe(choose_on="iner")
    assert tiny.recipe(choose_on="fold").digest == tiny.recipe().digest


def test_the_threshold_is_chosen_on_the_other_folds(
    tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path]
) -> None:
    """Each fold's is the best one on the others' scores, put on its scale; the ensemble's that of all."""
    result = run_finetune(**settings(tiny, tmp_path, tiny_encoder))
    table = result.predictions
    oof = table[table["role"] == "oof"]
    y, fold, score = oof["label"].to_numpy(int), oof["fold"].to_numpy(), oof["score"].to_numpy()
    z = np.empty(len(oof))
    scale = {k: (score[fold == k].mean(), score[fold == k].std()) for k in (1, 2, 3)}
    for k, (mean, deviation) in scale.items():
        z[fold == k] = (score[fold == k] - mean) / deviation

    def cut_of(rows: pd.DataFrame) -> float:
        """The one threshold of these rows as a score: probabilities are Platt's, linear in it."""
        slope, offset = np.polyfit(rows["score"], logit(rows["probability"]), 1)
        (cut,) = set(rows["threshold"])
        assert ((rows["probability"] >= cut) == (rows["call"] == 1)).all()
        return (logit(cut) - offset) / slope

    def best(labels: np.ndarray, scores: np.ndarray) -> float:
        return max(balanced_accuracy_score(labels, scores >= cut) for cut in scores)

    for k, (mean, deviation) in scale.items():
        others = z[fold != k] * deviation + mean
        found = balanced_accuracy_score(y[fold != k], others >= cut_of(oof[fold == k]))
        assert found == pytest.approx(best(y[fold != k], others))
    test = table[(table["dataset"] == "tiny:test") & (table["role"] == "ensemble")]
    of_all = logit(np.mean([expit(z * deviation + mean) for mean, deviation in scale.values()], axis=0))
    assert balanced_accuracy_score(y, of_all >= cut_of(test)) == pytest.approx(best(y, of_all))


@pytest.mark.slow
def test_a_run_that_is_killed_anywhere_ends_with_the_same_files(
    tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path], faults: Any
) -> None:
    """Averages, MixUp, soft labels, a plateau; killed at changes of the disk, and continued."""
    recipe = tiny.recipe(
        epochs=2, patience=2, ema=0.9, mixup=0.3, labels="votes", schedule="plateau", warmup=0.0,
        augment=({"step": "d4"}, {"step": "stain_jitter"}),
    )  # fmt: skip
    given = settings(tiny, tmp_path, tiny_encoder, recipe=recipe, only_folds=[2])
    odd = given["train"].table["label"] == "odd"
    given["train"] = with_columns(given["train"], votes_positive=odd.map({True: 3, False: 1}), votes_total=4)

    def run(out: Path, at: int) -> int:
        with faults.kill(out, at):
            run_finetune(**{**given, "out": out})
        return faults.count

    whole = tmp_path / "whole"
    changes = run(whole, 0)
    assert changes >= 10
    truth = checkpoint.read_card(whole / "tiny-vit+lora" / "fold-2")
    scores = pd.read_parquet(whole / "tiny-vit+lora" / "predictions.parquet")
    for at in range(3, changes + 1, changes // 6):
        out = tmp_path / f"killed-{at}"
        assert run(out, at) >= at
        run_finetune(**{**given, "out": out})
        folder = out / "tiny-vit+lora"
        card = checkpoint.read_card(folder / "fold-2")
        assert card["files"] == truth["files"], f"killed at change {at} of {changes}"
        assert card["training"]["best_epoch"] == truth["training"]["best_epoch"]
        pd.testing.assert_frame_equal(pd.read_parquet(folder / "predictions.parquet"), scores)
        assert not list(folder.rglob(".tmp-*"))
        assert not list(folder.rglob("state*"))


def test_what_no_fold_could_train_on_is_refused_before_the_first(
    tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path]
) -> None:
    given = settings(tiny, tmp_path, tiny_encoder)
    train = given["train"]
    table = train.table
    in_third = table["group"].map({f"g{i}": 1 + i % 3 for i in range(10)}) == 3
    one_class = with_columns(train, label=table["label"].where(~in_third, "plain"))
    one_group = with_columns(train, group=table["group"].where(table["split"] == "test", "g0"))
    voted = (table["group"] == "t0").astype(int)  # test rows alone
    no_votes = with_columns(train, votes_positive=voted, votes_total=3 * voted)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"train": one_class}, r"fold 3: the validation rows need both classes.*0: 18"),
        ({"train": one_group, "folds": 3}, r"3 folds of tiny cannot be made: .*occurs in 1 groups"),
        ({"train": no_votes, "labels": "votes"}, "no training row has votes"),
        ({"balance_domains": True}, "rows without a domain"),
        ({"augment": [{"step": "color_jitter", "hue": 0.7}]}, "hue has to be at most 0.5"),
        ({"augment": [{"step": "hflip", "p": 50}]}, "p has to be at most 1"),
        ({"augment": [{"step": "resize", "size": 0}]}, "size has to be at least 1"),
        ({"alpha": 0.0}, "alpha has to be more than 0"),
    ]  # fmt: skip
    for changes, message in cases:
        with pytest.raises(InvalidRequest, match=message):
            run_finetune(**{**given, **changes})
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    for known, message in ((3, ""), (2, r"inner folds of fold 1.*choose_on = \"fold\" or \"none\"")):
        groups = {f"g{i}": f"g{min(i, known - 1)}" for i in range(10)}
        folds = Folds(name="few", n_splits=known, fold_of_group={f"g{k}": k + 1 for k in range(known)})
        few = {**given, "choose_on": "inner", "folds": str(folds.save(tmp_path / f"{known}.toml"))}
        few["train"] = with_columns(train, group=table["group"].replace(groups))
        if not message:
            assert set(prepare(Request.of(**few)).jobs[0].use) == {"held out", "training", "validation"}
            continue
        with pytest.raises(InvalidRequest, match=message):
            run_finetune(**few)


def test_other_votes_or_domains_are_another_run(
    tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path]
) -> None:
    """Where the recipe uses them, and where both runs say them: older ones did not."""
    given = settings(tiny, tmp_path, tiny_encoder, labels="votes", balance_domains=True)
    domains = np.where(np.arange(90) % 2, "a", "b")
    train = with_columns(given["train"], votes_positive=1, votes_total=3, domain=domains)

    def key(manifest: Manifest, **changes: Any) -> dict[str, Any]:
        return prepare(Request.of(**{**given, "train": manifest, **changes})).jobs[0].run_key

    known = key(train)
    assert checkpoint.differences(known, key(train)) == []
    assert checkpoint.differences(known, key(with_columns(train, votes_positive=2))) == ["votes"]
    assert checkpoint.differences(known, key(with_columns(train, domain=domains[::-1]))) == ["domains"]
    before = {name: value for name, value in known.items() if name not in ("votes", "domains")}
    assert checkpoint.differences(before, known) == []
    assert key(train, labels="majority", balance_domains=False).keys() == before.keys()
    assert checkpoint.differences({**known, "fold": 2}, known) == ["fold"]


def test_an_evaluation_image_that_has_changed_is_scored_again(
    tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path]
) -> None:
    given = settings(tiny, tmp_path, tiny_encoder, only_folds=[1])
    other = tiny.manifest(tmp_path / "other", n=30, seed=5, name="other")

    def scores() -> pd.Series:
        table = run_finetune(**given, tests=[other]).predictions
        chosen = table[(table["dataset"] == "other") & (table["role"] == "ensemble")]
        return chosen.set_index("patch_id")["score"]

    first = scores()
    card = (tmp_path / "out" / "tiny-vit+lora" / "fold-1" / "card.json").read_text()
    Image.new("RGB", (40, 40), "pink").save(tmp_path / "other" / "3.png")
    second = scores()
    assert list(first.index[first != second.loc[first.index]]) == ["other/3"]
    assert (tmp_path / "out" / "tiny-vit+lora" / "fold-1" / "card.json").read_text() == card, "not trained"
    file = tmp_path / "out" / "tiny-vit+lora" / "fold-1" / checkpoint.SCORES
    older = pd.read_parquet(file).drop(columns="content_hash")
    older.to_parquet(file, index=False)
    pd.testing.assert_series_equal(scores(), second)


def test_a_leak_is_refused_by_name(
    tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path]
) -> None:
    given = settings(tiny, tmp_path, tiny_encoder)
    leaking = given["train"].table["group"].replace({"t0": "g0"})
    given["train"] = with_columns(given["train"], group=leaking)
    with pytest.raises(ProbeError, match="leak"):
        run_finetune(**given)
    result = run_finetune(**given, allow_leaks=["group"], only_folds=[1], epochs=1)
    assert result.document["leaks"]

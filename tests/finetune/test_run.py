"""All folds of one encoder: the same rows, folds and columns as the probes, and files that fit together."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from patchbank.datasets.manifest import Header, Manifest
from patchbank.errors import InvalidRequest, ProbeError, TrainingError, UnknownEncoder
from patchbank.files import LOCK
from patchbank.finetune import checkpoint
from patchbank.finetune.data import gather_rows
from patchbank.finetune.fold import train_fold
from patchbank.finetune.jobs import Request, prepare
from patchbank.finetune.run import run_finetune
from patchbank.probe.config import ProbeConfig
from patchbank.probe.data import leak_notes
from patchbank.probe.results.files import ProbeResult
from PIL import Image
from scipy.special import expit


def settings(tiny: SimpleNamespace, tmp_path: Path, encoder: tuple[str, Path], **changes: object) -> dict:
    manifest = tiny.manifest(tmp_path / "images", n=90, test=30)
    other = tiny.manifest(tmp_path / "other", n=30, seed=5, name="other")
    return {
        "train": manifest,
        "tests": [other],
        "encoder": encoder[0],
        "checkpoint": encoder[1],
        "recipe": tiny.recipe(epochs=3, patience=3),
        "out": tmp_path / "out",
        "folds": 3,
        "device": "cpu",
        "bootstrap": 100,
        "progress": False,
        "near_duplicates": "none",
        **changes,
    }


def test_all_folds_give_one_table(
    tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path]
) -> None:
    given = settings(tiny, tmp_path, tiny_encoder)
    result = run_finetune(**given)
    folder = tmp_path / "out" / "tiny-vit+lora"
    table = result.predictions
    named = {"patch_id", "dataset", "domain", "group", "label", "features", "role", "score", "probability"}
    assert named <= set(table.columns)
    oof = table[table["role"] == "oof"]
    assert sorted(oof["patch_id"]) == sorted(f"tiny/{i}" for i in range(60))
    assert ((oof["probability"] >= oof["threshold"]) == (oof["call"] == 1)).all()
    for name in ("tiny:test", "other"):
        part = table[table["dataset"] == name]
        assert set(part["role"]) == {"fold 1", "fold 2", "fold 3", "ensemble"}
        wide = part.pivot(index="patch_id", columns="role", values="score").map(expit)
        assert np.allclose(wide["ensemble"], wide[["fold 1", "fold 2", "fold 3"]].mean(axis=1))
    again = ProbeResult.load(folder)
    pd.testing.assert_frame_equal(again.predictions, table)
    ensemble = next(
        s for s in again.document["scores"] if s["dataset"] == "other" and s["role"] == "ensemble"
    )
    assert ensemble["metrics"]["auroc"][0] > 0.8

    card = checkpoint.read_card(folder / "fold-1")
    checkpoint.check_files(folder / "fold-1", card)
    assert set(card["files"]) == {
        "adapter_model.safetensors",
        "head.safetensors",
        "rows.parquet",
    }
    assert card["run_key"]["weights"].startswith("sha256:")
    assert sorted(p.name for p in (folder / "fold-1").iterdir()) == sorted(
        [*card["files"], "adapter_config.json", "card.json", "scores.parquet", LOCK]
    )
    rows = pd.read_parquet(folder / "fold-1" / "rows.parquet")
    fold = oof.set_index("patch_id")["fold"]
    assert (rows["role"] == np.where(fold.loc[rows["patch_id"]] == 1, "validation", "training")).all()

    before = (folder / "fold-1" / "card.json").stat().st_mtime_ns
    run_finetune(**given)  # nothing is trained twice
    assert (folder / "fold-1" / "card.json").stat().st_mtime_ns == before
    third = tiny.manifest(tmp_path / "third", n=24, seed=6, name="third")
    more = run_finetune(**{**given, "tests": [given["tests"][0], third]})
    assert set(more.predictions["dataset"]) == {"tiny:train", "tiny:test", "other", "third"}
    kept = more.predictions[more.predictions["dataset"] != "third"].reset_index(drop=True)
    assert np.array_equal(kept["score"], table["score"])
    checkpoint.check_files(folder / "fold-1", card)
    with pytest.raises(InvalidRequest, match="another recipe"):
        run_finetune(**{**given, "recipe": tiny.recipe(epochs=2)})


def test_one_fold_alone_and_what_a_cut_run_says(
    tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path]
) -> None:
    given = settings(tiny, tmp_path, tiny_encoder, only_folds=[2])
    bootstrap = given.pop("bootstrap")
    jobs = prepare(Request.of(**given, bootstrap=bootstrap)).jobs
    assert [job.fold_number for job in jobs] == [2]
    assert train_fold(jobs[0], max_epochs=1) is None
    with pytest.raises(TrainingError, match="not finished: run the same command again"):
        checkpoint.read_card(jobs[0].folder)
    result = run_finetune(**given, bootstrap=bootstrap)
    assert set(result.predictions["role"]) == {"oof", "fold 2", "ensemble"}
    assert result.document["folds"]["trained"] == [2]
    again = run_finetune(**{**given, "only_folds": [1]}, bootstrap=bootstrap)
    assert again.document["folds"]["trained"] == [1, 2]
    assert len(again.predictions[again.predictions["role"] == "oof"]) == 42


def test_test_rows_do_not_change_the_model(
    tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path]
) -> None:
    heads = []
    for name, tests in (("with", True), ("without", False)):
        given = settings(tiny, tmp_path, tiny_encoder, only_folds=[1], out=tmp_path / name)
        train = given["train"] if tests else given["train"].select("train")
        jobs = prepare(Request.of(**{**given, "train": train, "tests": given["tests"] if tests else []})).jobs
        train_fold(jobs[0])
        heads.append(checkpoint.load_tensors(jobs[0].folder / "head.safetensors")["weight"])
    assert torch.equal(*heads)


def test_full_training_and_peft_reads_the_adapter(
    tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path]
) -> None:
    given = settings(tiny, tmp_path, tiny_encoder, only_folds=[1])
    run_finetune(**{**given, "recipe": tiny.recipe(method="full", epochs=1, name="full")})
    card = checkpoint.read_card(tmp_path / "out" / "tiny-vit+full" / "fold-1")
    assert "model.safetensors" in card["files"]

    from patchbank.finetune.lora import adapters
    from peft import PeftModel

    run_finetune(**given)
    folder = tmp_path / "out" / "tiny-vit+lora" / "fold-1"
    theirs = PeftModel.from_pretrained(tiny.vit().model, str(folder))
    a = {n.removeprefix("base_model.model."): m for n, m in adapters(theirs).items()}
    saved = checkpoint.load_tensors(folder / "adapter_model.safetensors")
    assert len(a) == 8
    assert torch.equal(
        a["blocks.1.mlp.fc2"].get_parameter("lora_B.default.weight"),
        saved["base_model.model.blocks.1.mlp.fc2.lora_B.weight"],
    )


def test_what_is_refused_before_any_work(
    tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path]
) -> None:
    given = settings(tiny, tmp_path, tiny_encoder)
    leaking = given["train"].table.copy()
    leaking.loc[leaking.index[-1], "path"] = "0.png"
    cases = [
        ({"only_folds": [4]}, InvalidRequest, "1 to 3"),
        ({"encoder": "no-such-encoder", "checkpoint": None}, UnknownEncoder, "no encoder is called"),
        ({"recipe": "lorra"}, InvalidRequest, "did you mean 'lora'"),
        ({"recipe": "paper"}, InvalidRequest, "does not cover"),
        ({"recipe": tiny.recipe(targets=("qvk",))}, InvalidRequest, r"attn.qkv \(x2\)"),
        (
            {"recipe": tiny.recipe(view="d4:3")},
            InvalidRequest,
            "flips, rotations and stains are the augmentation's",
        ),
        ({"recipe": tiny.recipe(input_size=33)}, InvalidRequest, "multiple of 8 pixels"),
        (
            {"train": type(given["train"])(given["train"].header, leaking, given["train"].root)},
            ProbeError,
            "leak",
        ),
    ]
    for change, kind, message in cases:
        with pytest.raises(kind, match=message):
            run_finetune(**{**given, **change})
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("state*"))


def test_a_changed_file_is_noticed(
    tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path]
) -> None:
    given = settings(tiny, tmp_path, tiny_encoder, only_folds=[1], recipe=tiny.recipe(epochs=1))
    run_finetune(**given)
    folder = tmp_path / "out" / "tiny-vit+lora" / "fold-1"
    head = checkpoint.load_tensors(folder / "head.safetensors")
    checkpoint.save_tensors(folder / "head.safetensors", {n: t + 1 for n, t in head.items()})
    with pytest.raises(TrainingError, match="differs from its card"):
        checkpoint.check_files(folder, checkpoint.read_card(folder))
    (folder / "card.json").write_text(json.dumps({"format": "patchbank-finetuned", "format_version": 99}))
    with pytest.raises(TrainingError, match="version 99"):
        checkpoint.read_card(folder)


def test_a_job_travels(tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path]) -> None:
    import pickle

    jobs = prepare(Request.of(**settings(tiny, tmp_path, tiny_encoder))).jobs
    copy = pickle.loads(pickle.dumps(jobs[0]))
    assert copy.run_key == jobs[0].run_key != replace(jobs[0], fold_number=2).run_key


def test_train_and_test_images_that_are_nearly_the_same_are_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [
        np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((16, 16, 1))).astype(np.uint8) for _ in range(15)
    ]
    images[14] = (images[3] * 0.9 + 10).astype(np.uint8)  # a test image is a train image, recoloured
    for i, pixels in enumerate(images):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    table = pd.DataFrame(
        {
            "patch_id": [f"tiny/{i}" for i in range(15)],
            "path": [f"{i}.png" for i in range(15)],
            "label": ["plain", "odd"] * 7 + ["odd"],
            "group": [f"g{i}" for i in range(15)],
            "split": ["train"] * 12 + ["test"] * 3,
        }
    )
    header = Header(
        name="tiny", version="1", classes=("plain", "odd"), positive="odd", licence="CC0", source="a test"
    )
    manifest = Manifest(header, table, tmp_path)
    config = ProbeConfig(features=("any",), folds=2)
    found = gather_rows(manifest, [], config=config, remember=tmp_path / "out")
    (leak,) = found.leaks.of("near-duplicate")
    assert set(leak.patch_ids) == {"tiny/3", "tiny/14"}
    assert list((tmp_path / "out" / "near").glob("*.json"))
    assert "near-duplicates on both sides" in " ".join(leak_notes(found.leaks, config))
    without = config.replace(near_duplicates="none")
    assert not gather_rows(manifest, [], config=without, remember=tmp_path / "out").leaks.of("near-duplicate")
    pairs = tmp_path / "near.csv"
    pairs.write_text("patch_a,patch_b\ntiny/3,tiny/14\n")
    with pytest.raises(ProbeError, match="tiny/14"):  # somebody has looked: refused
        gather_rows(manifest, [], config=config.replace(near_duplicates=str(pairs)))

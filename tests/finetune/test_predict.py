"""From models to a CSV; the command line; folds on a Ray cluster."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from patchbank.datasets.manifest import Manifest
from patchbank.errors import InvalidRequest
from patchbank.extract.run import run_extract
from patchbank.finetune.cli import finetune_group, predict_command
from patchbank.finetune.predict import predict_finetuned, predict_probe
from patchbank.finetune.run import run_finetune
from patchbank.probe.run import run_probe
from patchbank.texts import write_csv
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.special import expit


def trained(tiny: SimpleNamespace, tmp_path: Path, encoder: tuple[str, Path], **changes: object) -> Path:
    run_finetune(
        **{
            "train": tiny.manifest(tmp_path / "images", n=90, test=30),
            "encoder": encoder[0],
            "checkpoint": encoder[1],
            "recipe": tiny.recipe(epochs=2),
            "out": tmp_path / "out",
            "folds": 3,
            "only_folds": [1, 2],
            "device": "cpu",
            "bootstrap": 0,
            "progress": False,
            **changes,
        }
    )
    return tmp_path / "out" / "tiny-vit+lora"


def test_predictions_are_the_scores_of_training(
    tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path]
) -> None:
    folder = trained(tiny, tmp_path, tiny_encoder)
    options = {"device": "cpu", "progress": False}
    table = predict_finetuned(folder, tmp_path / "images", **options)
    assert len(table) == 90
    known = pd.read_parquet(folder / "predictions.parquet")
    test = known[(known["dataset"] == "tiny:test") & (known["role"] == "ensemble")].set_index("patch_id")
    mine = table.assign(patch_id="tiny/" + table["path"].str.removesuffix(".png")).set_index("patch_id")
    mine = mine.loc[test.index]
    for column in ("score", "probability", "threshold"):
        assert np.allclose(mine[column], test[column], atol=1e-5), column
    each = expit(mine[["score_fold_1", "score_fold_2"]].to_numpy())
    assert np.allclose(expit(mine["score"]), each.mean(axis=1))
    assert set(table["prediction"]) <= {"odd", "plain"}
    assert ((table["probability"] >= table["threshold"]) == (table["prediction"] == "odd")).all()

    one = predict_finetuned(folder / "fold-1", tmp_path / "images", **options)
    assert np.allclose(one["score"], table["score_fold_1"])
    assert (one["threshold"] == 0.5).all()
    turned = predict_finetuned(folder / "fold-1", tmp_path / "images", tta=True, **options)
    assert not np.allclose(one["score"], turned["score"])
    file = write_csv(tmp_path / "csv" / "out.csv", table)
    assert np.allclose(pd.read_csv(file)["score"], table["score"])
    with pytest.raises(InvalidRequest, match="holds no images"):
        predict_finetuned(folder, tmp_path / "csv", **options)


def probed(
    tiny: SimpleNamespace, tmp_path: Path, encoder: tuple[str, Path], **settings: object
) -> tuple[Manifest, Path]:
    """A probe on 90 rows, 30 more held out, with three votes a row; its manifest and results."""
    manifest = tiny.manifest(tmp_path / "images", n=120, test=30)
    positive = (manifest.table["label"] == "odd").to_numpy()
    votes = np.where(positive, 2 + np.arange(120) % 2, np.arange(120) % 2)
    table = manifest.table.assign(votes_positive=votes, votes_total=3)
    manifest = Manifest(manifest.header, table, manifest.root)
    options = {"bank": tmp_path / "bank", "progress": False}
    run_extract([manifest], encoder=encoder[0], checkpoint=encoder[1], device="cpu", **options)
    small = {"folds": 3, "inner_folds": 2, "bootstrap": 0, "jobs": 1, "C": (1e-3, 1e-2, 1e-1), **settings}
    run_probe(train=manifest, encoders=["tiny-vit"], out=tmp_path / "results", **options, **small)
    return manifest, tmp_path / "results"


def held_out(tmp_path: Path) -> Path:
    """The held-out images in a folder of their own, with what macOS leaves beside them."""
    new = tmp_path / "new"
    (new / "__MACOSX").mkdir(parents=True)
    for i in range(90, 120):
        shutil.copy(tmp_path / "images" / f"{i}.png", new / f"{i}.png")
        (new / f"._{i}.png").write_bytes(b"\0\5\26\7")
        (new / "__MACOSX" / f"{i}.png").write_bytes(b"\0\5\26\7")
    return new


@pytest.mark.parametrize("weight", ["votes", "balanced"])
def test_a_probe_predicts_what_it_scored(
    tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path], weight: str
) -> None:
    """Also in a bank that has none of the training rows: nothing is fitted again."""
    manifest, results = probed(tiny, tmp_path, tiny_encoder, class_weight=[weight])
    # the card's id finds the store; its file is where the encoder is loaded from
    options = {
        "encoder_specs": {"tiny-vit": tiny_encoder[0]},
        "checkpoint": tiny_encoder[1],
        "device": "cpu",
        "progress": False,
    }
    new = held_out(tmp_path)
    table = predict_probe(results, new, bank=tmp_path / "empty", **options)
    known = pd.read_parquet(results / "predictions.parquet")
    refit = known[(known["dataset"] == "tiny:test") & (known["role"] == "refit")].set_index("patch_id")
    assert len(table) == len(refit) == 30
    mine = (
        table.assign(patch_id="tiny/" + table["path"].str.removesuffix(".png"))
        .set_index("patch_id")
        .loc[refit.index]
    )
    for column in ("score", "probability", "threshold"):
        assert np.allclose(mine[column], refit[column], atol=1e-3), column
    assert ((mine["prediction"] == "odd") == (refit["call"] == 1)).all()
    again = predict_probe(results, new, bank=tmp_path / "bank", train=manifest, **options)
    assert np.allclose(again["score"], table["score"], atol=1e-6)
    file = pd.read_csv(write_csv(tmp_path / "p.csv", table), float_precision="round_trip")
    assert ((file["probability"] >= file["threshold"]) == (file["prediction"] == "odd")).all()


def test_a_probe_is_applied_to_its_own_embeddings_and_beside_its_own_rows_only(
    tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path]
) -> None:
    manifest, results = probed(tiny, tmp_path, tiny_encoder)
    options = {
        "encoder_specs": {"tiny-vit": tiny_encoder[0]},
        "checkpoint": tiny_encoder[1],
        "device": "cpu",
        "progress": False,
        "bank": tmp_path / "bank",
    }
    new = held_out(tmp_path)
    flipped = manifest.table.assign(label=manifest.table["label"].map({"odd": "plain", "plain": "odd"}))
    fewer = manifest.table.iloc[1:]
    for table in (flipped, fewer):
        with pytest.raises(InvalidRequest, match="ids or labels of its training rows differ"):
            predict_probe(results, new, train=Manifest(manifest.header, table, manifest.root), **options)
    other = {n: t + 0.1 for n, t in load_file(tiny_encoder[1]).items()}
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(InvalidRequest, match="weights or preprocessing differ"):
        predict_probe(results, new, **{**options, "checkpoint": tmp_path / "other.safetensors"})
    with pytest.raises(InvalidRequest, match="has no probe on 'x'; it has tiny-vit/full/cls"):
        predict_probe(results, new, features="x", **options)


def test_the_command_line(tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path]) -> None:
    manifest = tiny.manifest(tmp_path / "images", n=60)
    toml = manifest.save(tmp_path / "images" / "tiny.toml")

    def call(command: object, *words: object) -> str:
        result = CliRunner().invoke(command, [str(w) for w in words], catch_exceptions=False)  # pyright: ignore[reportArgumentType]
        assert result.exit_code == 0, result.output
        return result.output

    out = tmp_path / "out"
    text = call(
        finetune_group, "run", toml, "-e", tiny_encoder[0], "--checkpoint", tiny_encoder[1], "-o", out,
        "--folds", 3, "--fold", 1, "--bootstrap", 0, "--device", "cpu",
        "--set", "epochs=1", "--set", "warmup=0.0", "--set", "batch_size=8", "--set", 'targets=["qkv"]',
    )  # fmt: skip
    assert "tiny:train" in text
    fold = out / "tiny-vit+lora" / "fold-1"
    assert "finished" in call(finetune_group, "ls", out)
    assert "patchbank extract unseen.toml -e finetuned:" in call(finetune_group, "show", fold)
    assert "24 of 60 patches" in call(
        finetune_group, "unseen", fold, toml, "-o", tmp_path / "images" / "unseen.toml"
    )
    assert "60 images" in call(
        predict_command, fold, tmp_path / "images", "-o", tmp_path / "p.csv", "--device", "cpu"
    )
    (tmp_path / "more").mkdir()
    for name in ("a.png", "b.ppm"):
        Image.new("RGB", (32, 32), "pink").save(tmp_path / "more" / name)
    words = (predict_command, fold, tmp_path / "more", "-o", tmp_path / "p.csv", "--device", "cpu")
    said = " ".join(call(*words).split())
    assert "left out: 1 .ppm; --suffixes takes those that are images." in said
    assert "1 images" in said
    assert "2 images" in call(*words, "--suffixes", ".ppm")
    with pytest.raises(InvalidRequest, match="KEY=VALUE"):
        call(finetune_group, "run", toml, "-e", "x", "-o", out, "--set", "epochs")
    with pytest.raises(InvalidRequest, match="or a --plan"):
        call(finetune_group, "run", "-o", out)


@pytest.mark.xdist_group("ray")
def test_a_fold_on_a_ray_cluster_is_the_local_one(
    tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        trained(tiny, tmp_path, tiny_encoder, engine="ray", out=tmp_path / "ray", threads=1, only_folds=[1])
    finally:
        ray.shutdown()
    here = trained(tiny, tmp_path, tiny_encoder, threads=1, only_folds=[1])
    a = pd.read_parquet(tmp_path / "ray" / "tiny-vit+lora" / "predictions.parquet")
    b = pd.read_parquet(here / "predictions.parquet")
    pd.testing.assert_frame_equal(a, b)

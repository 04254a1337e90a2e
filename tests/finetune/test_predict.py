"""From models to a CSV; the command line; folds on a Ray cluster."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from patchbank.errors import InvalidRequest
from patchbank.extract.run import run_extract
from patchbank.finetune.cli import finetune_group, predict_command
from patchbank.finetune.predict import predict_finetuned, predict_probe, write_csv
from patchbank.finetune.run import run_finetune
from patchbank.probe.run import run_probe
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
    for column in ("score", "probability", "threshold", "probability_platt"):
        assert np.allclose(mine[column], test[column], atol=1e-5), column
    assert np.allclose(mine["probability"], mine[["probability_fold_1", "probability_fold_2"]].mean(axis=1))
    assert set(table["prediction"]) <= {"odd", "plain"}
    assert ((table["probability"] >= table["threshold"]) == (table["prediction"] == "odd")).all()

    one = predict_finetuned(folder / "fold-1", tmp_path / "images", **options)
    assert one["probability_platt"].isna().all()
    assert np.allclose(one["probability"], table["probability_fold_1"])
    turned = predict_finetuned(folder / "fold-1", tmp_path / "images", tta=True, **options)
    assert not np.allclose(one["score"], turned["score"])
    file = write_csv(table, tmp_path / "csv" / "out.csv")
    assert np.allclose(pd.read_csv(file)["score"], table["score"])
    with pytest.raises(InvalidRequest, match="holds no images"):
        predict_finetuned(folder, tmp_path / "csv", **options)


def test_a_probe_predicts_what_it_scored(
    tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path]
) -> None:
    import shutil

    manifest = tiny.manifest(tmp_path / "images", n=120, test=30)
    bank = tmp_path / "bank"
    run_extract(
        [manifest],
        encoder=tiny_encoder[0],
        checkpoint=tiny_encoder[1],
        bank=bank,
        device="cpu",
        progress=False,
    )
    run_probe(
        train=manifest,
        encoders=["tiny-vit"],
        bank=bank,
        out=tmp_path / "results",
        folds=3,
        inner_folds=2,
        bootstrap=0,
        progress=False,
        jobs=1,
        C=(1e-3, 1e-2, 1e-1),
    )
    # the card's id finds the store; its file is where the encoder is loaded from
    new = tmp_path / "new"
    new.mkdir()
    for i in range(90, 120):
        shutil.copy(tmp_path / "images" / f"{i}.png", new / f"{i}.png")
    table = predict_probe(
        tmp_path / "results",
        new,
        train=manifest,
        bank=bank,
        encoder_specs={"tiny-vit": tiny_encoder[0]},
        checkpoint=tiny_encoder[1],
        device="cpu",
        progress=False,
    )
    known = pd.read_parquet(tmp_path / "results" / "predictions.parquet")
    refit = known[(known["dataset"] == "tiny:test") & (known["role"] == "refit")].set_index("patch_id")
    mine = (
        table.assign(patch_id="tiny/" + table["path"].str.removesuffix(".png"))
        .set_index("patch_id")
        .loc[refit.index]
    )
    assert np.allclose(mine["score"], refit["score"], atol=1e-2)
    assert np.allclose(mine["threshold"], refit["threshold"], atol=1e-2)
    assert np.allclose(mine["probability"], expit(mine["score"]))


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

"""From models to a CSV; the command line; folds on a Ray cluster."""

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from patchbank.cli import predict_command
from patchbank.datasets.manifest import Manifest
from patchbank.errors import ImageError, InvalidRequest
from patchbank.extract.external import import_embeddings
from patchbank.extract.run import run_extract
from patchbank.finetune import checkpoint
from patchbank.finetune.cli import finetune_group
from patchbank.finetune.run import run_finetune
from patchbank.prediction import CARD, STATE, predict
from patchbank.probe.model import About, ProbeModel
from patchbank.probe.run import run_probe
from patchbank.slides import write_slides
from patchbank.texts import write_csv
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.special import expit
from scipy.stats import spearmanr


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
            "near_duplicates": "none",
            **changes,
        }
    )
    return tmp_path / "out" / "tiny-vit+lora"


def test_predictions_are_the_scores_of_training(
    tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path]
) -> None:
    folder = trained(tiny, tmp_path, tiny_encoder)
    options = {"device": "cpu", "progress": False}
    table = predict(folder, tmp_path / "images", **options).table
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

    one = predict(folder / "fold-1", tmp_path / "images", **options).table
    assert np.allclose(one["score"], table["score_fold_1"])
    assert (one["threshold"] == 0.5).all()
    turned = predict(folder / "fold-1", tmp_path / "images", tta=True, **options).table
    assert not np.allclose(one["score"], turned["score"])
    file = write_csv(tmp_path / "csv" / "out.csv", table)
    assert np.allclose(pd.read_csv(file)["score"], table["score"])
    with pytest.raises(InvalidRequest, match="holds no images"):
        predict(folder, tmp_path / "csv", **options)


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


def loading(tiny_encoder: tuple[str, Path]) -> dict[str, Any]:
    """How the tiny encoder of a probe is loaded."""
    encoders = {"tiny-vit": tiny_encoder[0]}
    return {"encoders": encoders, "checkpoint": tiny_encoder[1], "device": "cpu", "progress": False}


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
    """Its two files alone, and images of which no bank has an embedding."""
    _, results = probed(tiny, tmp_path, tiny_encoder, class_weight=[weight])
    # the card's id finds the store; its file is where the encoder is loaded from
    options = {
        "encoders": {"tiny-vit": tiny_encoder[0]},
        "checkpoint": tiny_encoder[1],
        "device": "cpu",
        "progress": False,
    }
    new, taken = held_out(tmp_path), tmp_path / "taken"
    taken.mkdir()
    for name in ("probe.json", "probe.safetensors"):
        shutil.copy(results / name, taken / name)
    known = pd.read_parquet(results / "predictions.parquet")
    for role in ("refit", "ensemble"):
        found = predict(taken, new, role=role, **options)
        table = found.table
        scored = known[(known["dataset"] == "tiny:test") & (known["role"] == role)].set_index("patch_id")
        assert len(table) == len(scored) == 30
        mine = (
            table.assign(patch_id="tiny/" + table["path"].str.removesuffix(".png"))
            .set_index("patch_id")
            .loc[scored.index]
        )
        for column in ("score", "probability", "threshold"):
            assert np.allclose(mine[column], scored[column], atol=1e-3), column
        assert ((mine["prediction"] == "odd") == (scored["call"] == 1)).all()
        assert set(found.seconds) == {"encoder", "images", "model", "all"}
    again = predict(ProbeModel.load(taken, role=role), new, bank=tmp_path / "bank", **options).table
    assert np.allclose(again["score"], table["score"], atol=1e-6)
    file = pd.read_csv(write_csv(tmp_path / "p.csv", table), float_precision="round_trip")
    assert ((file["probability"] >= file["threshold"]) == (file["prediction"] == "odd")).all()


def test_sources_of_images(tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path]) -> None:
    """One image, a folder, a manifest, a zip, HDF5 and npz: the same images, the same predictions."""
    manifest, results = probed(tiny, tmp_path, tiny_encoder)
    options = {
        "encoders": {"tiny-vit": tiny_encoder[0]}, "checkpoint": tiny_encoder[1], "device": "cpu",
        "progress": False, "bank": tmp_path / "bank",
    }  # fmt: skip
    new = held_out(tmp_path)
    expected = predict(results, new, **options).table
    files = [new / name for name in expected["path"]]
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    with zipfile.ZipFile(tmp_path / "new.zip", "w") as archive:
        for file in files:
            archive.write(file, file.name)
    with h5py.File(tmp_path / "new.h5", "w") as store:
        store["x"] = pixels
    np.savez(tmp_path / "new.npz", test_images=pixels, test_labels=np.zeros(30, int))
    table = manifest.table.assign(path=[f"{Path(p).name}" for p in manifest.table["path"]])
    toml = Manifest(manifest.header, table, manifest.root).select("test").save(tmp_path / "images/test.toml")
    for source in ("new.zip", "new.h5", "new.npz", toml):
        found = predict(results, tmp_path / source, **options).table
        assert sorted(found["score"]) == pytest.approx(sorted(expected["score"]), abs=1e-6), source
        assert ("label" in found) == (source == toml)
    assert list(found["label"]) == list(manifest.select("test").table["label"])
    one = predict(results, files[3], **options)
    assert one.table["score"].tolist() == [pytest.approx(expected["score"][3], abs=1e-6)]
    assert "<table" in one._repr_html_()


def test_an_unreadable_image_stops_or_is_left_out(
    tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path]
) -> None:
    _, results = probed(tiny, tmp_path, tiny_encoder)
    options = loading(tiny_encoder)
    new = held_out(tmp_path)
    (new / "bad.png").write_bytes(b"\x89PNG no")
    with pytest.raises(ImageError, match=r"bad\.png") as stop:
        predict(results, new, **options)
    nothing = "Nothing was kept: --bank FOLDER keeps the embeddings."
    assert stop.value.__notes__ == [nothing, "--on-error skip leaves out images that cannot be read."]
    with pytest.raises(ImageError, match=r"bad\.png") as stop:
        predict(results, new, bank=tmp_path / "kept", **options)
    assert "are kept; the same command" in stop.value.__notes__[0]
    found = predict(results, new, on_error="skip", **options)
    assert len(found) == 30
    assert [name for name, _ in found.skipped] == ["images/bad.png"]
    with pytest.raises(InvalidRequest, match="no image could be read"):
        predict(results, new / "bad.png", on_error="skip", **options)


def test_a_probe_is_applied_to_its_own_embeddings_only(
    tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path]
) -> None:
    _, results = probed(tiny, tmp_path, tiny_encoder)
    options = loading(tiny_encoder)
    new = held_out(tmp_path)
    other = {n: t + 0.1 for n, t in load_file(tiny_encoder[1]).items()}
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(InvalidRequest, match="with another encoder: weights or preprocessing differ"):
        predict(results, new, **{**options, "checkpoint": tmp_path / "other.safetensors"})
    with pytest.raises(InvalidRequest, match="has no probe on 'x'; it has tiny-vit/full/cls"):
        predict(results, new, features="x", **options)
    with pytest.raises(InvalidRequest, match="instead of --tta"):
        predict(results, new, tta=True, **options)
    with pytest.raises(InvalidRequest, match="give coordinates too"):
        predict(results, new, size=32, **options)
    about = replace(ProbeModel.load(results).about, features="tiny-vit/mpp:0.5@0.25/cls")
    resampled = replace(ProbeModel.load(results), about=about)
    with pytest.raises(
        InvalidRequest, match=r"resamples patches of 0.25 micrometres a pixel, and these have 0.5"
    ):
        predict(resampled, new, mpp=0.5, **options)
    (tmp_path / "a.svs").write_bytes(b"slide")
    with pytest.raises(InvalidRequest, match="which patches of it"):
        predict(results, tmp_path / "a.svs", **options)
    (tmp_path / "a.doc").write_bytes(b"text")
    with pytest.raises(InvalidRequest, match="is not an image, slide, manifest or container"):
        predict(results, tmp_path / "a.doc", **options)
    assert (CARD, STATE) == (checkpoint.CARD, checkpoint.STATE)
    with pytest.raises(InvalidRequest, match=r"new holds no model: neither probe\.json, .* nor card\.json"):
        predict(new, new)
    (tmp_path / CARD).write_text("{}")
    with pytest.raises(InvalidRequest, match="belong to a probe, and"):
        predict(tmp_path, new, bank="bank")
    with pytest.raises(InvalidRequest, match="nothing does not exist"):
        predict(results, tmp_path / "nothing", **options)
    with pytest.raises(InvalidRequest, match="hf: names no repository"):
        predict("hf:", new)


def test_a_probe_on_features_of_another_program_takes_such(tmp_path: Path) -> None:
    X = np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32)
    labels = np.where(X[:, 0] > 0, "odd", "plain")
    table = pd.DataFrame({"label": labels, "group": [f"g{i // 4}" for i in range(80)]})
    bank = tmp_path / "bank"
    made = import_embeddings(
        X[:60], table=table[:60], bank=bank, encoder="uni", positive="odd", on_note=lambda _: None
    )
    small: dict[str, Any] = {"folds": 3, "inner_folds": 2, "bootstrap": 0, "jobs": 1, "C": (1e-2, 1.0)}
    run_probe(
        train=made.manifest, encoders=["uni"], bank=bank, out=tmp_path / "results", progress=False, **small
    )
    names = [f"n{i}" for i in range(20)]
    np.savez(tmp_path / "new features.npz", features=X[60:], ids=np.array(names))
    out = tmp_path / "p.csv"
    words = [str(tmp_path / "results"), str(tmp_path / "new features.npz"), "-o", str(out)]
    done = CliRunner().invoke(predict_command, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    rows = pd.read_csv(out)
    assert np.allclose(
        rows["probability"], ProbeModel.load(tmp_path / "results").predict_proba(X[60:])[:, 0], atol=1e-12
    )
    assert (rows["prediction"] == labels[60:]).mean() > 0.8
    assert [path.partition("::")[2] for path in rows["path"][:2]] == ["embedding[0]", "embedding[1]"]
    for name, array, why in (
        ("wide.npy", X[:, :5], "embeddings of 5 numbers; the model was fitted on 6 of 'uni'"),
        ("nan.npy", np.full_like(X, np.nan), "row 0 has 6 NaN"),
    ):
        np.save(tmp_path / name, array)
        with pytest.raises(InvalidRequest, match=why):
            predict(tmp_path / "results", tmp_path / name)
    for source in (tmp_path / "a.png", made.manifest):
        with pytest.raises(InvalidRequest, match="that another program made, and takes such"):
            predict(tmp_path / "results", source)


def test_slides_get_geojson_a_heat_map_and_numbers(
    tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path]
) -> None:
    """A tiled TIFF of tiny patches in a grid, by one command; a region is the patch that it was made of."""
    pytest.importorskip("openslide")
    tifffile = pytest.importorskip("tifffile")
    _, results = probed(tiny, tmp_path, tiny_encoder)
    patches = tiny.patches(24, seed=5)
    grid = np.concatenate(
        [np.concatenate([patches.read(6 * r + c) for c in range(6)], axis=1) for r in range(4)]
    )
    for name in ("one.tiff", "other.tiff"):
        with tifffile.TiffWriter(tmp_path / name) as writer:
            writer.write(grid, tile=(64, 64), photometric="rgb", compression=None)
    rows = [("one", 40 * c, 40 * r) for r in range(4) for c in range(6)] + [("other.tiff", 0, 0)]
    pd.DataFrame(rows, columns=["slide", "x", "y"]).to_csv(tmp_path / "patches.csv", index=False)
    out = tmp_path / "predictions"
    done = CliRunner().invoke(
        predict_command,
        [str(results), str(tmp_path / "one.tiff"), "--coordinates", str(tmp_path / "patches.csv"),
         "--size", "40",
         "-e", f"tiny-vit={tiny_encoder[0]}", "--checkpoint", str(tiny_encoder[1]), "--device", "cpu",
         "-o", str(out)],
        catch_exceptions=False,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert {file.name for file in out.iterdir()} == {
        "predictions.csv",
        "slides.csv",
        "one.geojson",
        "one.png",
    }
    table = pd.read_csv(out / "predictions.csv")
    folder = tmp_path / "files"
    folder.mkdir()
    for i in range(24):
        Image.fromarray(patches.read(i)).save(folder / f"{i}.png")
    alone = predict(
        results, folder, encoders={"tiny-vit": tiny_encoder[0]}, checkpoint=tiny_encoder[1], device="cpu",
        progress=False,
    ).table  # fmt: skip
    assert np.allclose(table["probability"], alone["probability"], atol=1e-6)
    features = json.loads((out / "one.geojson").read_text("utf-8"))["features"]
    assert len(features) == 24
    for i, feature in enumerate(features):
        (ring,) = feature["geometry"]["coordinates"]
        assert (ring[0], ring[2]) == ([rows[i][1], rows[i][2]], [rows[i][1] + 40, rows[i][2] + 40])
        assert feature["properties"]["classification"]["name"] == table["prediction"][i]
        assert feature["properties"]["measurements"] == {
            "probability": pytest.approx(table["probability"][i])
        }
    (slide,) = pd.read_csv(out / "slides.csv").to_dict("records")
    called = int((table["prediction"] == "odd").sum())
    assert slide == {
        "slide": "one.tiff", "patches": 24, "called_odd": called, "share_odd": pytest.approx(called / 24),
        "mean_probability_odd": pytest.approx(table["probability"].mean()),
    }  # fmt: skip
    with Image.open(out / "one.png") as image:
        picture = np.asarray(image).astype(float)
    assert picture.shape == (4 * 40 + 22, 420, 3)
    # redder where the probability is higher
    red = [picture[40 * r : 40 * r + 40, 40 * c : 40 * c + 40] for r in range(4) for c in range(6)]
    excess = np.array([part[..., 0].mean() - part[..., 2].mean() for part in red])
    plain = np.array([patches.read(i)[..., 0].mean() - patches.read(i)[..., 2].mean() for i in range(24)])
    found: Any = spearmanr(excess - 0.45 * plain, table["probability"])
    assert found.statistic > 0.95


@pytest.mark.parametrize("kind", ["classes", "targets"])
def test_several_classes_and_numbers_on_slides(
    tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path], kind: str
) -> None:
    """Probes by hand: columns for each class or number, in the table, the GeoJSON and the sums."""
    pytest.importorskip("openslide")
    tifffile = pytest.importorskip("tifffile")
    rng = np.random.default_rng(1)
    affine = ("affine", {"weight": rng.standard_normal((32, 3)), "bias": np.zeros(3)})
    names = ("low", "middle", "high")
    labels: dict[str, Any] = {kind: names}
    about = About(features="tiny-vit/full/cls", **labels)
    probe = ProbeModel(((affine,),), np.array([0.5] if kind == "classes" else []), about)
    pixels = np.concatenate([tiny.patches(6, seed=5).read(i) for i in range(6)], axis=1)
    with tifffile.TiffWriter(tmp_path / "one.tiff") as writer:
        writer.write(np.concatenate([pixels, pixels[:, ::-1]]), tile=(64, 64), photometric="rgb")
    rows = [("one", 40 * c, 40 * r) for r in range(2) for c in range(6)]
    pd.DataFrame(rows, columns=["slide", "x", "y"]).to_csv(tmp_path / "patches.csv", index=False)
    found = predict(
        probe, tmp_path / "one.tiff", coordinates=tmp_path / "patches.csv", size=40, device="cpu",
        encoders={"tiny-vit": tiny_encoder[0]}, checkpoint=tiny_encoder[1], progress=False,
    )  # fmt: skip
    out = tmp_path / "out"
    assert {file.name for file in write_slides(found, out)} == {"slides.csv", "one.geojson", "one.png"}
    (slide,) = pd.read_csv(out / "slides.csv").to_dict("records")
    features = json.loads((out / "one.geojson").read_text("utf-8"))["features"]
    if kind == "classes":
        columns = [f"probability_{name}" for name in names]
        assert np.allclose(found.table[columns].sum(axis=1), 1)
        best = found.table[columns].to_numpy().argmax(axis=1)
        assert list(found.table["prediction"]) == [names[i] for i in best]
        assert sum(slide[f"called_{name}"] for name in names) == 12
        assert features[0]["properties"]["classification"]["name"] == names[best[0]]
    else:
        columns = [f"prediction_{name}" for name in names]
        assert slide["mean_high"] == pytest.approx(found.table["prediction_high"].mean())
        assert "classification" not in features[0]["properties"]
    assert set(features[3]["properties"]["measurements"]) == set(columns)
    assert features[3]["properties"]["measurements"][columns[0]] == pytest.approx(found.table[columns[0]][3])


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
        "--folds", 3, "--fold", 1, "--bootstrap", 0, "--device", "cpu", "--near-duplicates", "none",
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
    assert "1 image in" in said
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

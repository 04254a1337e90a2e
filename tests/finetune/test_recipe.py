"""Recipes: strict, frozen, and the publication's exactly as published."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from patchbank.errors import InvalidRequest
from patchbank.finetune.augment import augment, d4, draw, read_steps
from patchbank.finetune.cli import finetune_group
from patchbank.finetune.recipe import (
    Recipe,
    load_recipe,
    meanings,
    options_table,
    paper_models,
    recipe_from,
    shipped_recipes,
)
from patchbank.texts import markdown_table

LORA = ["virchow", "virchow2", "uni", "uni2-h", "prov-gigapath", "h-optimus-0", "h-optimus-1"]
FULL = [
    "timm:efficientnetv2_m",
    "timm:swin_base_patch4_window7_224",
    "timm:vit_large_patch16_224",
    "swin-b",
    "vit-l16",
]


def steps(recipe: Recipe) -> list[str]:
    return [step["step"] for step in recipe.augment]


def test_the_models_of_the_paper_are_there() -> None:
    assert paper_models() == sorted(LORA + FULL)
    assert shipped_recipes() == ["full", "lora", "midog25", "paper"]


@pytest.mark.parametrize("model", LORA)
def test_papers_lora(model: str) -> None:
    r = load_recipe("paper", encoder=model)
    assert r.name == "paper"
    assert (r.method, r.rank, r.alpha, r.dropout, r.targets) == (
        "lora",
        8,
        16,
        0.3,
        ("qkv", "proj", "fc1", "fc2"),
    )
    assert r.suffix_match  # patch_embed.proj too
    assert not r.rslora
    assert not r.dora
    assert (r.optimizer, r.lr, r.weight_decay, r.batch_size, r.precision) == ("adam", 5e-5, 1e-5, 8, "fp32")
    assert (r.schedule, r.plateau_factor, r.plateau_patience, r.min_lr) == ("plateau", 0.5, 3, 1e-7)
    assert (r.epochs, r.patience, r.monitor, r.balance) == (100, 10, "balanced_accuracy", "sampler")
    assert (r.tokens, r.view, r.clip, r.accumulate) == ("cls", "full", 0, 1)


@pytest.mark.parametrize("model", FULL)
def test_papers_baselines(model: str) -> None:
    r = load_recipe("paper", encoder=model)
    assert (r.method, r.optimizer, r.lr, r.weight_decay, r.batch_size) == ("full", "adam", 5e-5, 1e-5, 8)
    assert (r.epochs, r.patience, r.normalize, r.input_size) == (100, 15, "imagenet", 224)
    assert steps(r) == ["resize", "hflip", "rotation", "color_jitter", "random_resized_crop"]
    assert r.random_weights == ("efficientnet" in model)


def test_papers_quirks_by_model() -> None:
    recipe = {model: load_recipe("paper", encoder=model) for model in LORA}
    assert [m for m in LORA if recipe[m].normalize == "half"] == ["virchow", "virchow2"]
    assert "contradict" in recipe["virchow"].remark
    assert steps(recipe["virchow2"]) == ["random_resized_crop", "hflip", "color_jitter"]
    assert recipe["virchow"].augment[0]["scale"] == [0.8, 1.0]
    for model in ("uni", "prov-gigapath", "h-optimus-0"):
        assert steps(recipe[model]) == ["random_resized_crop", "hflip", "rotation", "color_jitter"]
        assert recipe[model].augment[0]["scale"] == [0.08, 1.0]
        assert recipe[model].augment[2]["degrees"] == 15
    assert steps(recipe["h-optimus-1"]) == ["resize", "hflip", "rotation", "color_jitter"]
    assert recipe["h-optimus-0"].eval_precision == "fp16"
    assert not recipe["uni2-h"].augment


def test_faults_are_named_together_with_near_names(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidRequest, match=r"unknown key 'rnak', did you mean 'rank'.*lr = .fast. has to be a number"
    ):
        recipe_from({"rnak": 8, "lr": "fast"})
    with pytest.raises(
        InvalidRequest, match=r"optimizer 'adamx'.*did you mean 'adam'.*epochs has to be at least 1"
    ):
        load_recipe("lora", optimizer="adamx", epochs=0)
    odd: dict[str, Any] = {
        "clip": float("nan"),
        "warmup": float("inf"),
        "weight_decay": float("nan"),
        "last_blocks": -1,
    }
    with pytest.raises(InvalidRequest) as caught:
        load_recipe("lora", **odd)
    for name in ("clip", "warmup", "weight_decay"):
        assert f"{name} has to be a finite number" in str(caught.value)
    assert "last_blocks must not be negative" in str(caught.value)
    for key, alike in (("out", ""), ("epoch", "did you mean 'epochs'")):
        words = ["run", "no.toml", "-e", "dinov2-s", "-o", "no", "--set", f"{key}=1"]
        done = CliRunner().invoke(finetune_group, words)
        assert f"--set {key}: no option of a recipe" in str(done.exception)
        assert alike in str(done.exception)
    for step, message in [
        ({"step": "rotate"}, "did you mean 'rotation'"),
        ({"step": "rotation"}, "rotation: degrees is missing"),
        ({"step": "d4", "p": 1}, "d4: unknown key 'p'"),
        ({"step": "random_resized_crop", "size": 8, "scale": [1, 0]}, "low <= high"),
    ]:
        with pytest.raises(InvalidRequest, match=message):
            load_recipe("lora", augment=(step,))
    with pytest.raises(InvalidRequest, match=r"does not cover 'dinov2-s'.*--recipe lora or full"):
        load_recipe("paper", encoder="dinov2-s")
    file = tmp_path / "mine.toml"
    file.write_text('rank = 4\naugment = [{ step = "d4" }]\n')
    mine = load_recipe(file)
    assert (mine.name, mine.rank) == ("mine", 4)
    assert recipe_from(mine.to_dict()) == mine
    assert recipe_from({**mine.to_dict(), "remark": "other"}).digest == mine.digest
    assert load_recipe(file, rank=5).digest != mine.digest


@pytest.mark.parametrize("name", ["lora", "full", "paper"])
def test_augmentation_depends_on_its_key_alone(name: str) -> None:
    recipe = load_recipe(name, encoder="uni")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    before = pixels.copy()
    first, sized = augment(pixels, read_steps(recipe.augment), draw("augment", 0, 3, 17, "a/1"))
    again, _ = augment(pixels, read_steps(recipe.augment), draw("augment", 0, 3, 17, "a/1"))
    others = [
        augment(pixels, read_steps(recipe.augment), draw("augment", 0, 3, i, "a/1"))[0] for i in range(8)
    ]
    assert np.array_equal(first, again)
    assert any(not np.array_equal(first, other) for other in others)
    assert first.dtype == np.uint8
    assert sized == (name == "paper")
    assert first.shape == ((224, 224, 3) if sized else (40, 40, 3))
    assert np.array_equal(pixels, before)


def test_the_eight_symmetries_are_extracts() -> None:
    import torch
    from patchbank.extract.views import orient

    pixels = np.arange(5 * 5 * 3, dtype=np.uint8).reshape(5, 5, 3)
    turned = [d4(pixels, k) for k in range(8)]
    assert len({t.tobytes() for t in turned}) == 8
    for k in range(8):
        assert np.array_equal(turned[k], orient(torch.from_numpy(pixels)[None], k)[0].numpy())


def test_stain_jitter_of_nothing_is_nothing_and_moves_colours_a_little() -> None:
    pixels = np.random.default_rng(0).integers(20, 250, (32, 32, 3), dtype=np.uint8)
    still, _ = augment(pixels, read_steps([{"step": "stain_jitter", "sigma": 0.0, "bias": 0.0}]), draw(0))
    assert np.array_equal(still, pixels)
    moved = augment(pixels, read_steps([{"step": "stain_jitter", "sigma": 0.1, "bias": 0.02}]), draw(0))[0]
    change = np.abs(moved.astype(int) - pixels).mean()
    assert 0.5 < change < 40


def shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_every_option_has_a_meaning_and_stands_in_the_docs() -> None:
    text = meanings()
    assert set(text) == set(Recipe.model_fields)
    assert all(text.values())
    assert len(set(text.values())) == len(text), "each its own"
    heads, rows = options_table()
    assert {row[0]: row[1] for row in rows} == {n: shown(v) for n, v in Recipe().to_dict().items()}
    page = (Path(__file__).resolve().parents[2] / ".docs" / "reference" / "recipes.md").read_text("utf-8")
    assert markdown_table(heads, rows, words=len(heads)) in page, "patchbank finetune recipe --markdown"


def test_the_recipe_of_midog_is_whole() -> None:
    recipe = load_recipe("midog25")
    assert (recipe.symmetries, recipe.labels, recipe.balance_domains) == (8, "votes", True)
    own = {row[0]: row[2] for row in options_table(recipe)[1] if row[2]}
    assert own["ema"] == "0.999"
    assert own["augment"] == "d4, rotation, color_jitter, stain_jitter"
    faults: list[tuple[dict[str, Any], str]] = [
        ({"ema": 1.0}, r"ema has to be in \[0, 1\)"),
        ({"layer_decay": 0.0}, "layer_decay has to be in"),
        ({"symmetries": 4}, "symmetries 4 is not one of 1, 8"),
        ({"loss": "focall"}, "did you mean 'focal'"),
        ({"labels": "soft"}, "labels 'soft' is not one of majority, votes"),
    ]
    for wrong, says in faults:
        with pytest.raises(InvalidRequest, match=says):
            load_recipe("midog25", **wrong)

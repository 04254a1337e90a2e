"""The shipped recipes by the commands that a user types (plan, run, predict), on two tiny encoders."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from patchbank.cli import predict_command
from patchbank.datasets.manifest import Manifest
from patchbank.extract.cards import parse_card
from patchbank.extract.models.build import build_network
from patchbank.finetune import checkpoint
from patchbank.finetune.cli import finetune_group
from patchbank.finetune.recipe import load_recipe
from patchbank.probe.results.files import ProbeResult
from patchbank.settings import SHIPPED
from safetensors.torch import save_file

ENCODERS = {
    "tiny-dinov3": """
        id = "tiny-dinov3"
        model = "vit_small_patch16_dinov3"
        dim = 32
        grid = 4
        prefix = 5
        tokens = "cls"
        [arguments]
        img_size = 32
        embed_dim = 32
        depth = 2
        num_heads = 2
        num_classes = 0
        init_values = 0.5  # of its own 1e-5 all patches of a random network come out alike
        [transform]
        size = 32
    """,
    "tiny-convnext": """
        id = "tiny-convnext"
        model = "convnext_atto"
        dim = 32
        tokens = "pooled"
        [arguments]
        depths = [1, 1, 1, 1]
        dims = [8, 16, 24, 32]
        ls_init_value = 0.5
        num_classes = 0
        [transform]
        size = 32
    """,
}
OWN = "midog25-full.toml"  # midog25, but that all weights train


def commands(*words: Any) -> str:
    """What `patchbank finetune ...` or `patchbank predict ...` prints."""
    first, *rest = map(str, words)
    command = predict_command if first == "predict" else finetune_group
    done = CliRunner().invoke(command, rest if first == "predict" else [first, *rest])
    assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
    return done.output


@pytest.fixture
def study(tmp_path: Path, tiny: Any) -> Path:
    """A folder: manifests with votes and domains, cards with weights, a recipe of its own."""
    for name, seed in (("tiny", 0), ("other", 5)):
        made = tiny.manifest(tmp_path / name, n=60 if name == "tiny" else 24, seed=seed, name=name)
        n = len(made)
        positive = (made.table["label"] == "odd").to_numpy()
        votes = np.where(positive, 2 + np.arange(n) % 2, np.arange(n) % 2)
        domains = np.where(np.arange(n) // 10 % 2, "scanner a", "scanner b")
        table = made.table.assign(votes_positive=votes, votes_total=3, domain=domains)
        Manifest(made.header, table, made.root).save(tmp_path / name / f"{name}.toml")
    for name, text in ENCODERS.items():
        card = parse_card(text, origin=name)
        (tmp_path / f"{name}.toml").write_text(text)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            model: Any = build_network(card, None)
        save_file(model.model.state_dict(), tmp_path / f"{name}.safetensors")
    shipped = (SHIPPED / "recipes" / "midog25.toml").read_text("utf-8")
    (tmp_path / OWN).write_text(shipped.replace('method = "lora"', 'method = "full"'))
    return tmp_path


@pytest.mark.parametrize(
    ("encoder", "recipe", "trained"),
    [
        ("tiny-dinov3", "lora", "lora"),
        ("tiny-dinov3", "full", "full"),
        ("tiny-dinov3", "midog25", "midog25"),
        ("tiny-convnext", "lora", "full"),  # no attention blocks
        ("tiny-convnext", "full", "full"),
        ("tiny-convnext", OWN, "midog25-full"),
    ],
)
def test_a_recipe_from_plan_to_predictions(
    study: Path, results: Any, encoder: str, recipe: str, trained: str
) -> None:
    results({encoder: (0.7, 0.6, 0.8)}).save(study / "results")
    asked = recipe if recipe in ("lora", "full", "midog25") else study / recipe
    files = [study / name / f"{name}.toml" for name in ("tiny", "other")]
    words = ["--recipe", asked, "-e", f"{encoder}={study / encoder}.toml", "-o", study / "plan.toml"]
    commands("plan", study / "results", *files, *words, "--no-measure")
    plan = (study / "plan.toml").read_text()
    (study / "plan.toml").write_text(plan.replace('folds = "balanced"', "folds = 2"))
    options = ["--out", study / "models", "--checkpoint", study / f"{encoder}.safetensors"]
    options += ["--device", "cpu", "--bootstrap", "0", "--near-duplicates", "none"]
    commands("run", "--plan", study / "plan.toml", *options, "--set", "epochs=3")

    folder = study / "models" / f"{encoder}+{trained}"
    cards = [checkpoint.read_card(folder / f"fold-{k}") for k in (1, 2)]
    source = study / OWN if trained == "midog25-full" else trained
    wanted = load_recipe(source, epochs=3)
    for card in cards:
        assert card["recipe"] == wanted.to_dict()
        history = card["training"]["history"]
        assert len(history) == card["training"]["epochs"] == 3
        best = max(history, key=lambda epoch: epoch[wanted.monitor])
        assert card["training"]["best_epoch"] == best["epoch"]
        assert card["validation"][wanted.monitor] == best[wanted.monitor]
    result = ProbeResult.load(folder)
    (model,) = result.results.models
    known = result.predictions[result.predictions["dataset"] == "other"]
    commands("predict", folder, files[1], "-o", study / "predicted.csv", "--device", "cpu")
    found = pd.read_csv(study / "predicted.csv").set_index("patch_id")
    of: Any = {
        role: part.set_index("patch_id").loc[found.index]
        for role, part in known.groupby("role", observed=True)
    }
    for k in (1, 2):
        assert np.allclose(found[f"score_fold_{k}"], of[f"fold {k}"]["score"], atol=1e-5)
    for column in ("score", "probability", "threshold"):
        assert np.allclose(found[column], of["ensemble"][column], atol=1e-5), column
    assert found["threshold"].to_numpy() == pytest.approx(model.threshold)
    called = (of["ensemble"]["call"] == 1).map({True: "odd", False: "plain"})
    assert (found["prediction"] == called).all()
    assert found["score"].std() > 1e-2, "scores that are all alike would agree as well"

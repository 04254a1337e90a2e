"""A fine-tuned model is an encoder: identity, merged and unmerged, and what its store must never hold."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from patchbank.cache.bank import Bank
from patchbank.cli import patchbank
from patchbank.errors import (
    EncoderError,
    InvalidRequest,
    LeakRefused,
    RowsMissing,
    TrainingError,
    UntrustedCode,
)
from patchbank.extract.encoders import build_encoder
from patchbank.extract.registry import load_card
from patchbank.extract.run import run_extract
from patchbank.finetune.adapted import admit, card_of, load_model, unseen
from patchbank.finetune.cli import finetune_group
from patchbank.finetune.run import run_finetune
from patchbank.prediction import predict
from patchbank.probe.features import load

PYTHON_ENCODER = """
import torch

def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 16))
"""


@pytest.fixture
def trained(tiny: SimpleNamespace, tmp_path: Path, tiny_encoder: tuple[str, Path]) -> SimpleNamespace:
    """Fold 1 of 3 of a set of 60 train and 30 test rows, and another set."""
    manifest = tiny.manifest(tmp_path / "images", n=90, test=30)
    other = tiny.manifest(tmp_path / "other", n=24, seed=5, name="other")
    run_finetune(
        train=manifest,
        encoder=tiny_encoder[0],
        checkpoint=tiny_encoder[1],
        recipe=tiny.recipe(epochs=2, lr=2e-2),
        out=tmp_path / "out",
        folds=3,
        only_folds=[1],
        device="cpu",
        bootstrap=100,
        progress=False,
        near_duplicates="none",
    )
    return SimpleNamespace(
        folder=tmp_path / "out" / "tiny-vit+lora" / "fold-1",
        manifest=manifest,
        other=other,
        bank=tmp_path / "bank",
    )


def test_merged_and_unmerged_are_the_same_encoder(trained: SimpleNamespace) -> None:
    batch = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    vectors = {}
    for merged in (True, False):
        card = card_of(trained.folder, merged=merged)
        vectors[merged] = build_encoder(card, device="cpu").embed(batch)["cls"]
    largest = vectors[True].abs().max()
    assert (vectors[True] - vectors[False]).abs().max() <= 1e-5 * largest
    assert card_of(trained.folder, merged=True).revision == card_of(trained.folder, merged=False).revision
    base = build_encoder(
        load_card(load_model(trained.folder)[1]["encoder"]["spec"]), device="cpu", random_weights=True
    )
    assert base.card.dim == vectors[True].shape[1]


def test_the_encoder_gives_what_the_head_was_trained_on(
    trained: SimpleNamespace, tiny: SimpleNamespace
) -> None:
    network, _ = load_model(trained.folder)
    encoder = build_encoder(card_of(trained.folder), device="cpu")
    pixels = tiny.patches(4, seed=3).read(1)
    mine, theirs = network.prepare(pixels), encoder.transform(pixels)
    assert torch.allclose(mine, theirs, atol=1e-5)
    assert torch.allclose(network.embed(mine[None]), encoder.embed(theirs[None])["cls"], atol=1e-4)


def test_extract_stores_the_rows_that_were_not_seen(trained: SimpleNamespace) -> None:
    spec = f"finetuned:{trained.folder}"
    options = {"bank": trained.bank, "device": "cpu", "progress": False, "dtype": "float32"}
    with pytest.raises(LeakRefused, match=r"36 of 90 patches of tiny trained this model .*finetune unseen"):
        run_extract([trained.manifest], encoder=spec, **options)
    allowed = unseen(trained.folder, trained.manifest)
    assert len(allowed) == 54
    assert (allowed.table["split"] == "test").sum() == 30
    report = run_extract([allowed, trained.other], encoder=spec, **options)
    assert report.embedded == 78
    (store,) = Bank(trained.bank).stores()
    card = card_of(trained.folder)
    assert store.identity.encoder["id"] == card.id
    assert "sha256:" in store.identity.encoder["weights"]
    X = load(allowed, encoder=card.id, bank=trained.bank)
    assert X.shape == (54, 32)
    with pytest.raises(RowsMissing):
        load(trained.manifest.select("train"), encoder=card.id, bank=trained.bank)


def test_the_rule_goes_by_content_and_by_group(
    trained: SimpleNamespace, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    renamed = tiny.manifest(
        tmp_path / "copy", n=90, test=30, name="copy"
    )  # the same pixels under other names
    with pytest.raises(LeakRefused, match="36 of 90"):
        admit(trained.folder, renamed)
    neighbours = tiny.manifest(tmp_path / "near", n=90, seed=9, test=30)  # other pixels of the same slides
    with pytest.raises(LeakRefused, match="36 of 90"):
        admit(trained.folder, neighbours)
    admit(trained.folder, trained.other)
    with pytest.raises(LeakRefused, match="every patch"):
        unseen(trained.folder, trained.manifest.select(np.isin(np.arange(90), _training(trained))))


def _training(trained: SimpleNamespace) -> list[int]:
    import pandas as pd

    rows = pd.read_parquet(trained.folder / "rows.parquet")
    return [int(i.split("/")[1]) for i in rows["patch_id"][rows["role"] == "training"]]


def test_a_folder_of_folds_is_no_encoder_and_other_base_weights_are_refused(
    trained: SimpleNamespace, tiny_encoder: tuple[str, Path], tiny: SimpleNamespace
) -> None:
    with pytest.raises(InvalidRequest, match="name one, as in finetuned:"):
        load_card(f"finetuned:{trained.folder.parent}")
    with pytest.raises(TrainingError, match="no fine-tuned model"):
        load_card("finetuned:/no/such/folder")
    from safetensors.torch import save_file

    changed = {n: t + 1 for n, t in tiny.vit().model.state_dict().items()}
    save_file(changed, tiny_encoder[1])
    with pytest.raises(EncoderError, match="was trained on sha256"):
        load_model(trained.folder)


def test_a_model_folder_from_elsewhere_runs_no_code_and_reads_no_card_file(
    trained: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its card names as the base encoder; trained here, the folder needs no card file any longer."""
    (tmp_path / "encoder" / "tiny-vit.toml").unlink()
    assert load_model(trained.folder)[0].dim == 32, "the base is declared in the model's own card"
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nmake = None\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    evil = {"id": "evil", "kind": "python", "model": "evil_module:make", "revision": "1", "dim": 32}
    toml = tmp_path / "evil.toml"
    toml.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in evil.items()))
    file = trained.folder / "card.json"
    card = json.loads(file.read_text())
    declared = card["encoder"].pop("card")
    named = [{"spec": str(toml)}, {"spec": "evil.toml"}, {"spec": f"finetuned:{tmp_path}"}]
    for change in ({"card": evil}, *named):
        file.write_text(json.dumps({**card, "encoder": {**card["encoder"], **change}}))
        for use in (load_model, card_of, lambda folder: predict(folder, tmp_path / "images")):
            with pytest.raises(UntrustedCode, match="--trust-code"):
                use(trained.folder)
    reading = {**declared, "arguments": {**declared["arguments"], "checkpoint_path": "/etc/passwd"}}
    file.write_text(json.dumps({**card, "encoder": {**card["encoder"], "card": reading}}))
    with pytest.raises(InvalidRequest, match="checkpoint_path"):
        load_model(trained.folder)
    assert not (tmp_path / "ran").exists()


def test_a_python_card_is_trained_with_consent_only(tiny: SimpleNamespace, tmp_path: Path) -> None:
    card = tmp_path / "mine.toml"
    card.write_text('id = "mine"\nkind = "python"\nmodel = "no_such_module:make"\nrevision = "1"\ndim = 8\n')
    with pytest.raises(UntrustedCode, match="--trust-code"):
        run_finetune(
            train=tiny.manifest(tmp_path / "images"), encoder=str(card), out=tmp_path / "out", folds=3
        )
    assert not (tmp_path / "out").exists()


def test_a_python_card_on_the_command_line(
    tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused without --trust-code, before its module is imported; with it, trained and used."""
    (tmp_path / "own_encoder.py").write_text(PYTHON_ENCODER)
    monkeypatch.syspath_prepend(tmp_path)
    card = tmp_path / "own.toml"
    card.write_text(
        'id = "own"\nkind = "python"\nmodel = "own_encoder:make"\nrevision = "1"\ndim = 16\n'
        'tokens = "pooled"\n[transform]\nsize = 32\nmean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\n'
    )
    manifest = tiny.manifest(tmp_path / "images", n=60).save(tmp_path / "images" / "tiny.toml")
    out = tmp_path / "out"
    words = [
        "run", manifest, "-e", card, "-o", out, "--recipe", "full", "--folds", 3, "--fold", 1,
        "--bootstrap", 0, "--device", "cpu", "--near-duplicates", "none", "--set", "epochs=1",
        "--set", "warmup=0.0", "--set", "batch_size=8",
    ]  # fmt: skip
    refused = CliRunner().invoke(finetune_group, [str(word) for word in words])
    assert isinstance(refused.exception, UntrustedCode)
    assert "own_encoder" not in sys.modules
    assert not out.exists()
    done = CliRunner().invoke(
        finetune_group, [str(word) for word in [*words, "--trust-code"]], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    fold = next(out.glob("*/fold-1"))
    ask = [
        str(word)
        for word in ("predict", fold, tmp_path / "images", "-o", tmp_path / "p.csv", "--device", "cpu")
    ]
    refused = CliRunner().invoke(patchbank, ask)
    assert isinstance(refused.exception, UntrustedCode)
    done = CliRunner().invoke(patchbank, [*ask, "--trust-code"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 61


def test_a_card_of_wrong_types_is_a_sentence(trained: SimpleNamespace) -> None:
    file = trained.folder / "card.json"
    whole = json.loads(file.read_text())
    changes: list[object] = [[], {**whole, "format": 3}]
    for key in ("name", "run_key", "encoder", "base_weights", "recipe", "data", "training", "files"):
        changes += [{**whole, key: 3}, {k: v for k, v in whole.items() if k != key}]
    changes += [
        {**whole, key: {**whole[key], name: None}}
        for key in ("encoder", "data")
        for name in whole[key]
        if (key, name) in {("encoder", "spec"), ("encoder", "weights"), ("data", "classes")}
    ]
    changes += [
        {**whole, "files": {"../../secret": {"bytes": 1, "sha256": ""}}},
        {**whole, "files": {"a": 1}},
    ]
    for change in changes:
        file.write_text(json.dumps(change))
        with pytest.raises(TrainingError, match=r"card\.json"):
            load_model(trained.folder)
    assert len(changes) > 20

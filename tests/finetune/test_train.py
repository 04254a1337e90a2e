"""The loop: only what should change does, the loss falls, a killed run ends with the same bits."""

import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from patchbank.errors import InvalidRequest, TrainingError
from patchbank.finetune.checkpoint import STATE, load_tensors
from patchbank.finetune.train import (
    Patches,
    Progress,
    _plateau,
    _Run,
    epoch_rows,
    fit,
    lr_factor,
    predict_logits,
    scoring_batch,
)

KEY = {"run": "test"}


def train(tiny: SimpleNamespace, recipe, folder: Path, *, n: int = 48, max_epochs: int | None = None):
    network = tiny.network(recipe)
    at = fit(
        network,
        recipe,
        tiny.patches(n, seed=1),
        tiny.patches(30, seed=2, name="val"),
        folder=folder,
        run_key=KEY,
        max_epochs=max_epochs,
        progress=False,
    )
    return network, at


def test_lora_changes_adapters_and_head_only(tiny: SimpleNamespace, tmp_path: Path) -> None:
    recipe = tiny.recipe(epochs=2)
    before = {n: t.clone() for n, t in tiny.network(recipe).state_dict().items()}
    network, at = train(tiny, recipe, tmp_path)
    assert at.steps == 12
    changed = {n for n, t in network.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {n for n in before if "lora_" in n or n.startswith("head.")}
    assert len(changed) == 2 * 4 * 2 + 2


def test_full_changes_everything(tiny: SimpleNamespace, tmp_path: Path) -> None:
    recipe = tiny.recipe(method="full", epochs=1)
    before = {n: t.clone() for n, t in tiny.network(recipe).state_dict().items()}
    network, _ = train(tiny, recipe, tmp_path)
    assert all(not torch.equal(t, before[n]) for n, t in network.state_dict().items())


@pytest.mark.parametrize(
    "changes", [{}, {"method": "full", "lr": 1e-3}, {"schedule": "plateau", "warmup": 0.0}], ids=str
)
def test_the_loss_falls_and_validation_rises(tiny: SimpleNamespace, tmp_path: Path, changes: dict) -> None:
    _, at = train(
        tiny, tiny.recipe(epochs=5, patience=5, augment=({"step": "d4"},), **changes), tmp_path, n=96
    )
    losses = [epoch["loss"] for epoch in at.history]
    assert losses[-1] < 0.6 * losses[0]
    assert at.history[at.best_epoch - 1]["auroc"] > 0.9


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_in_pieces_has_the_same_bits(tiny: SimpleNamespace, tmp_path: Path, method: str) -> None:
    recipe = tiny.recipe(method=method, accumulate=2)
    train(tiny, recipe, tmp_path / "whole")
    for _ in range(4):
        train(tiny, recipe, tmp_path / "pieces", max_epochs=1)
    a, b = load_tensors(tmp_path / "whole" / STATE), load_tensors(tmp_path / "pieces" / STATE)
    assert a.keys() == b.keys()
    assert any(n.startswith("optimizer.") for n in a)
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert len(list((tmp_path / "pieces").glob("best-*"))) == 1


SCRIPT = """
import importlib.util, sys, time, torch
from pathlib import Path
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("tiny", {conftest!r})
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)
from patchbank.finetune.model import classifier
from patchbank.finetune.checkpoint import STATE
from patchbank.finetune.train import fit
from torch.optim.optimizer import register_optimizer_step_post_hook

def hang(*_):  # in the second epoch, until the process is killed
    if (Path({folder!r}) / STATE).exists():
        time.sleep(600)

register_optimizer_step_post_hook(hang)
recipe = tiny.tiny_recipe(epochs=5, patience=5)
network, _ = classifier(tiny.TINY, recipe, weights=None, build=tiny.tiny_vit)
fit(network, recipe, tiny.tiny_patches(48, seed=1), tiny.tiny_patches(30, seed=2, name="val"),
    folder=Path({folder!r}), run_key={{"run": "test"}}, progress=False)
"""


@pytest.mark.slow
def test_kill_9_and_resume_ends_with_the_same_bits(tiny: SimpleNamespace, tmp_path: Path, until: Any) -> None:
    folder = tmp_path / "killed"
    script = SCRIPT.format(conftest=str(Path(__file__).with_name("conftest.py")), folder=str(folder))
    child = subprocess.Popen([sys.executable, "-c", script])
    until(lambda: (folder / STATE).exists() or child.poll() is not None)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    recipe = tiny.recipe(epochs=5, patience=5)
    left = load_tensors(folder / STATE)
    _, at = train(tiny, recipe, folder)
    assert at.epoch == 5
    assert not list(folder.glob(".tmp-*"))
    _, whole = train(tiny, recipe, tmp_path / "whole")
    a, b = load_tensors(folder / STATE), load_tensors(tmp_path / "whole" / STATE)
    assert all(torch.equal(a[n], b[n]) for n in b)
    assert any(not torch.equal(a[n], left[n]) for n in left)
    assert [e["auroc"] for e in at.history] == [e["auroc"] for e in whole.history]


def test_a_state_of_another_run_is_refused(tiny: SimpleNamespace, tmp_path: Path) -> None:
    recipe = tiny.recipe(epochs=2)
    train(tiny, recipe, tmp_path, max_epochs=1)
    with pytest.raises(InvalidRequest, match="another run"):
        fit(
            tiny.network(recipe),
            recipe,
            tiny.patches(48, seed=1),
            tiny.patches(30, seed=2, name="val"),
            folder=tmp_path,
            run_key={"run": "other"},
            progress=False,
        )


def test_early_stopping_keeps_the_best_epoch(tiny: SimpleNamespace, tmp_path: Path) -> None:
    recipe = tiny.recipe(
        epochs=30, patience=2, lr=1e-7, warmup=0.0, schedule="constant", monitor="balanced_accuracy"
    )
    network, at = train(tiny, recipe, tmp_path)
    assert at.epoch == at.best_epoch + 2 < 30
    best = load_tensors(tmp_path / f"best-{at.best_epoch:04d}.safetensors")
    last = load_tensors(tmp_path / STATE)
    own = network.state_dict()
    assert all(torch.equal(own[n], t) for n, t in best.items())
    assert not torch.equal(own["head.weight"], last["network.head.weight"])


def test_recomputed_activations_give_the_same_gradients(tiny: SimpleNamespace) -> None:
    batch = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    gradients = []
    for checkpointing in (False, True):
        network = tiny.network(tiny.recipe(checkpointing=checkpointing, dropout=0.0))
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(parameter, 0.01)
        network(batch).sum().backward()
        gradients.append({n: p.grad for n, p in network.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(gradients[0][n], gradients[1][n], atol=1e-6) for n in gradients[0])


def test_accumulated_passes_are_one_large_batch(tiny: SimpleNamespace, tmp_path: Path) -> None:
    states = []
    for size, accumulate in ((16, 1), (4, 4)):
        recipe = tiny.recipe(batch_size=size, accumulate=accumulate, dropout=0.0, epochs=1, warmup=0.5)
        network, at = train(tiny, recipe, tmp_path / str(size), n=40)
        assert at.steps == 3
        states.append(network.head.weight.detach())
    assert torch.allclose(*states, atol=1e-5)


def test_workers_do_not_change_the_result(tiny: SimpleNamespace, tmp_path: Path) -> None:
    recipe = tiny.recipe(epochs=1, dropout=0.0)
    heads = []
    for workers in (0, 2):
        network = tiny.network(recipe)
        fit(
            network,
            recipe,
            tiny.patches(24, seed=1),
            tiny.patches(12, seed=2, name="val"),
            folder=tmp_path / str(workers),
            run_key=KEY,
            workers=workers,
            progress=False,
        )
        heads.append(network.head.weight.detach())
    assert torch.equal(*heads)


def test_the_sampler_balances_and_the_weights_do(tiny: SimpleNamespace) -> None:
    labels = (np.arange(3000) % 10 == 0).astype(np.float32)
    rows = epoch_rows(labels, tiny.recipe(), 0)
    assert len(rows) == 3000
    assert 0.45 < labels[rows].mean() < 0.55
    assert not np.array_equal(rows, epoch_rows(labels, tiny.recipe(), 1))
    permuted = epoch_rows(labels, tiny.recipe(balance="weights"), 0)
    assert np.array_equal(np.sort(permuted), np.arange(3000))


def test_the_plateau_is_torchs(tiny: SimpleNamespace) -> None:
    recipe = tiny.recipe(schedule="plateau", warmup=0.0, lr=5e-5, plateau_patience=3, min_lr=1e-7)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([weight], lr=recipe.lr)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.5, patience=3, min_lr=1e-7
    )
    at = Progress()
    for score in np.random.default_rng(0).normal(0.7, 0.05, 80):
        theirs.step(score)
        _plateau(recipe, at, float(score))
        assert recipe.lr * at.lr_scale == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12, abs=2e-8)
    assert at.lr_scale < 0.01


def test_the_learning_rate_warms_up_and_falls(tiny: SimpleNamespace) -> None:
    recipe = tiny.recipe(warmup=1.0, epochs=4)
    factors = [lr_factor(recipe, step, 10) for step in range(40)]
    assert factors[0] < factors[9] < factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert 0 < factors[-1] < 0.01


def test_what_cannot_be_trained_is_refused(tiny: SimpleNamespace, tmp_path: Path) -> None:
    both = tiny.patches(12, seed=0)
    one_class = Patches(both.ids, np.zeros(12, np.float32), both.read)
    validation = tiny.patches(12, seed=1, name="val")
    cases = [
        (tiny.recipe(), one_class, validation, "both classes"),
        (tiny.recipe(precision="fp16"), both, validation, "fp16 trains on a GPU"),
        (tiny.recipe(), both, both, "in training and validation"),
    ]
    for recipe, rows, held_out, message in cases:
        with pytest.raises(InvalidRequest, match=message):
            fit(tiny.network(recipe), recipe, rows, held_out, folder=tmp_path, run_key=KEY, progress=False)
    recipe = tiny.recipe(lr=1e20, head_lr=1e20, warmup=0.0, clip=0.0)
    with pytest.raises(TrainingError, match="lower lr"):
        fit(tiny.network(recipe), recipe, both, validation, folder=tmp_path, run_key=KEY, progress=False)


def test_threads_with_batches_of_their_own_give_the_same_scores(tiny: SimpleNamespace) -> None:
    network, patches = tiny.network(tiny.recipe()), tiny.patches(21, seed=4)
    threads, seen = [], set()
    original = network.forward

    def forward(batch: torch.Tensor) -> torch.Tensor:
        assert torch.get_num_threads() == 1, "no threads inside an operation"
        assert not torch.is_grad_enabled()
        seen.add(threading.get_ident())
        return original(batch)

    network.forward = forward
    for count in (1, 3):
        torch.set_num_threads(count)
        threads.append(predict_logits(network, patches, batch_size=4, symmetries=8))
        assert torch.get_num_threads() == count
    assert np.array_equal(*threads)
    assert len(seen) > 2
    assert scoring_batch(tiny.recipe(batch_size=8), "cpu") == 8
    assert scoring_batch(tiny.recipe(batch_size=8), "cuda:0") == 32


def test_scoring_in_fp32_computes_one_row_of_the_last_block_and_training_all(tiny: SimpleNamespace) -> None:
    network = tiny.network(tiny.recipe(tokens="cls")).eval()
    rows: list[int] = []
    network.inner.blocks[-1].mlp.register_forward_hook(lambda _module, _in, out: rows.append(out.shape[1]))
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    trained = network(images)
    with torch.no_grad():
        scored = network(images)
        with torch.autocast("cpu", torch.bfloat16):
            network(images)
    assert rows == [17, 1, 17]
    torch.testing.assert_close(scored, trained.detach(), rtol=1e-5, atol=1e-5)


def test_a_step_that_the_scaler_skips_is_none(tiny: SimpleNamespace, tmp_path: Path) -> None:
    """torch's own scaler, at a scale where gradients overflow at first and which then falls in one step."""
    recipe = tiny.recipe(method="full", ema=0.5)
    run = _Run(tiny.network(recipe), recipe, tmp_path, {}, device="cpu", workers=0, progress=False)
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126, backoff_factor=2.0**-120)  # pyright: ignore[reportPrivateImportUsage]
    weights, averaged, steps = [], [], []
    for number in range(3):
        run._pass(
            1e3 * torch.ones(8, 3, 32, 32),
            torch.zeros(8),
            1e6 * torch.ones(8),
            number=number,
            in_group=8,
        )
        run._step(1.0)
        steps.append(run.at.steps)
        weights.append(run.network.head.weight.detach().clone())
        assert run.average is not None
        averaged.append(run.average.tensors["head.weight"].clone())
    assert steps == [0, 1, 2]
    assert torch.equal(weights[0], tiny.network(recipe).head.weight)
    assert torch.equal(averaged[0], weights[0])
    assert not torch.equal(weights[1], weights[0])


def test_bf16_trains(tiny: SimpleNamespace, tmp_path: Path) -> None:
    network, at = train(tiny, tiny.recipe(epochs=1).replace(precision="bf16"), tmp_path)
    assert np.isfinite(at.history[0]["loss"])
    assert all(p.dtype == torch.float32 for p in network.parameters())
    logits = predict_logits(network, tiny.patches(30, seed=4), precision="bf16")
    assert not np.array_equal(
        logits, torch.tensor(logits).bfloat16().double().numpy()
    )  # the head is not rounded

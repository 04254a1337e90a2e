"""Images a second, CPU time and peak memory of a LoRA step and of scoring, for several settings.

    python tests/benchmarks/finetune_speed.py --encoder uni --device cuda [--steps 20]
    python tests/benchmarks/finetune_speed.py --encoder dinov2-s --device cpu --steps 3
    python tests/benchmarks/finetune_speed.py --encoder dinov2-s --scoring --rounds 3

Training: random weights (they cost the same), one batch on the device again and again: the network's part
alone, without reading and augmenting. Scoring, on a CPU: `predict_logits` of patches in memory. Every setting
runs in a process of its own, so that peaks do not add up and the allocator is as it says; the settings of a
round take turns, the median of the rounds counts.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext

from patchbank.errors import InvalidRequest
from patchbank.extract.devices import resolve_devices

GPU = {
    "published loop: fp32, batch 8": {"precision": "fp32", "batch_size": 8},
    "bf16, batch 8": {"precision": "bf16", "batch_size": 8},
    "bf16, batch 64": {"precision": "bf16", "batch_size": 64},
    "bf16, batch 64, activations recomputed": {"precision": "bf16", "batch_size": 64, "checkpointing": True},
    "bf16, batch 64, last 4 blocks": {"precision": "bf16", "batch_size": 64, "last_blocks": 4},
}
GIVEN_BACK = "pages given back"  # to the system after each use, as the C library does by itself
CPU = {
    f"fp32, batch 8, {GIVEN_BACK}": {"batch_size": 8},
    "fp32, batch 8": {"batch_size": 8},
    f"fp32, batch 32, {GIVEN_BACK}": {"batch_size": 32},
    "fp32, batch 32": {"batch_size": 32},
    "fp32, batch 32, last 4 blocks": {"batch_size": 32, "last_blocks": 4},
}
SCORING = {
    f"one batch of 64 on all threads, {GIVEN_BACK}": {"batch_size": 64, "lanes": 1},
    "one batch of 64 on all threads": {"batch_size": 64, "lanes": 1},
    "a batch of 64 a thread": {"batch_size": 64},
    "a batch of 8 a thread": {"batch_size": 8},
}


def measure(encoder: str, device: str, steps: int, changes: dict) -> dict[str, float]:
    import torch
    from patchbank.finetune.model import base_card, classifier
    from patchbank.finetune.recipe import load_recipe
    from patchbank.finetune.train import autocast, training_mode

    recipe = load_recipe("lora", **changes)
    card = base_card(encoder, recipe)
    network, _ = classifier(card, recipe, weights=None)
    network.to(device)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-4)
    side = card.transform.size
    batch = torch.randn(recipe.batch_size, 3, side, side, device=device)
    labels = (torch.arange(recipe.batch_size, device=device) % 2).float()
    training_mode(network, recipe)
    started, spent = time.perf_counter(), time.process_time()
    for step in range(steps + 3):
        if step == 3:  # the first steps compile and allocate
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            started, spent = time.perf_counter(), time.process_time()
        with autocast(device, recipe.precision):
            logits = network(batch)
        torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return cost(started, spent, steps * recipe.batch_size, device)


def cost(started: float, spent: float, images: int, device: str) -> dict[str, float]:
    from patchbank.finetune.train import peak_memory_bytes

    return {
        "images_per_second": images / (time.perf_counter() - started),
        "cpu_ms": (time.process_time() - spent) / images * 1e3,
        "peak_gib": peak_memory_bytes(device) / 2**30,
    }


def score(encoder: str, steps: int, changes: dict) -> dict[str, float]:
    """Of 64 patches a step; lanes 1: without threads that have batches of their own."""
    import numpy as np
    import torch
    from patchbank.finetune import train
    from patchbank.finetune.data import Patches
    from patchbank.finetune.model import base_card, classifier
    from patchbank.finetune.recipe import load_recipe

    recipe = load_recipe("lora")
    network, _ = classifier(base_card(encoder, recipe), recipe, weights=None)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 224, 224, 3)).astype(np.uint8)
    n = 64 * steps
    patches = Patches([str(i) for i in range(n)], np.zeros(n, np.float32), lambda i: pixels[i % 64])
    if changes.get("lanes") == 1:
        train.single_threaded = lambda _: nullcontext()
        train.compute_threads = lambda devices: devices
    torch.manual_seed(0)
    predict = functools.partial(
        train.predict_logits, network, batch_size=changes["batch_size"], progress=False
    )
    predict(Patches(patches.ids[:16], patches.labels[:16], patches.read))
    started, spent = time.perf_counter(), time.process_time()
    predict(patches)
    return cost(started, spent, n, "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="dinov2-s")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--scoring", action="store_true", help="of a trained model on a CPU")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--give-back", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        changes = json.loads(given.one)
        if given.device == "cpu":
            from patchbank.finetune import train

            if given.give_back:
                train.keep_pages = lambda: False
            train.keep_pages()
        measured = (
            score(given.encoder, given.steps, changes)
            if given.scoring
            else measure(given.encoder, given.device, given.steps, changes)
        )
        return print(json.dumps(measured))
    try:
        resolve_devices(given.device)
    except InvalidRequest as error:
        raise SystemExit(f"{error}: nothing was measured") from None
    settings = SCORING if given.scoring else CPU if given.device == "cpu" else GPU
    found: dict[str, list[dict[str, float]]] = {name: [] for name in settings}
    for _ in range(given.rounds):
        for name, changes in settings.items():
            words = [sys.executable, __file__, "--encoder", given.encoder, "--device", given.device]
            words += ["--steps", str(given.steps), "--one", json.dumps(changes)]
            words += ["--scoring"] * given.scoring + ["--give-back"] * (GIVEN_BACK in name)
            done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
            found[name].append(json.loads(done.stdout))
    for name, rounds in found.items():
        speed, cpu, peak = (statistics.median(one[key] for one in rounds) for key in rounds[0])
        print(f"{name:50} {speed:7.1f} images/s {cpu:7.1f} CPU ms {peak:6.2f} GiB")


if __name__ == "__main__":
    main()

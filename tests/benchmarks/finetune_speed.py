"""Images a second and peak memory of a LoRA step: the published loop (fp32, batch 8) against faster settings.

    python tests/benchmarks/finetune_speed.py --encoder uni --device cuda [--steps 20]

Random weights (they cost the same), one batch on the device again and again: the network's part alone,
without reading and augmenting. Every setting runs in a process of its own, so that peaks do not add up.
"""

import argparse
import json
import subprocess
import sys
import time

from patchbank.errors import InvalidRequest
from patchbank.extract.devices import resolve_devices

SETTINGS = {
    "published loop: fp32, batch 8": {"precision": "fp32", "batch_size": 8},
    "bf16, batch 8": {"precision": "bf16", "batch_size": 8},
    "bf16, batch 64": {"precision": "bf16", "batch_size": 64},
    "bf16, batch 64, activations recomputed": {"precision": "bf16", "batch_size": 64, "checkpointing": True},
    "bf16, batch 64, last 4 blocks": {"precision": "bf16", "batch_size": 64, "last_blocks": 4},
}


def measure(encoder: str, device: str, steps: int, changes: dict) -> dict[str, float]:
    import torch
    from patchbank.finetune.model import base_card, classifier
    from patchbank.finetune.recipe import load_recipe
    from patchbank.finetune.train import autocast, peak_memory_bytes, training_mode

    recipe = load_recipe("lora", **changes)
    card = base_card(encoder, recipe)
    network, _ = classifier(card, recipe, weights=None)
    network.to(device)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-4)
    side = card.transform.size
    batch = torch.randn(recipe.batch_size, 3, side, side, device=device)
    labels = (torch.arange(recipe.batch_size, device=device) % 2).float()
    training_mode(network, recipe)
    started = time.perf_counter()
    for step in range(steps + 3):
        if step == 3:  # the first steps compile and allocate
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            started = time.perf_counter()
        with autocast(device, recipe.precision):
            logits = network(batch)
        torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    return {
        "images_per_second": steps * recipe.batch_size / seconds,
        "peak_gib": peak_memory_bytes(device) / 2**30,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="dinov2-s")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        return print(json.dumps(measure(given.encoder, given.device, given.steps, json.loads(given.one))))
    try:
        resolve_devices(given.device)
    except InvalidRequest as error:
        raise SystemExit(f"{error}: nothing was measured") from None
    for name, changes in SETTINGS.items():
        words = [sys.executable, __file__, "--encoder", given.encoder, "--device", given.device]
        words += ["--steps", str(given.steps), "--one", json.dumps(changes)]
        found = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
        print(
            f"{name:42} {found['images_per_second']:8.1f} images/s {found['peak_gib']:6.2f} GiB", flush=True
        )


if __name__ == "__main__":
    main()

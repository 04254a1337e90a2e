"""`patchbank encoders check`: does a network do what its card says?"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import EncoderError
from .encoders import build_encoder
from .listing import policies_of
from .registry import load_card

SPEED_BATCH_CPU, SPEED_BATCH = 8, 64


def forward_seconds(encoder: str, *, device: str = "auto", precision: str | None = None) -> float:
    """Seconds that one patch takes in a forward pass here: what a plan multiplies, measured in seconds.

    Random weights, which take the same time; one small batch to warm up, then the faster of two. Decoding and
    writing come on top, and run beside it. A card that names Python code is refused, not run: a plan runs
    nobody's code.
    Raises what `build_encoder` raises.
    """
    built = build_encoder(load_card(encoder), device=device, precision=precision, random_weights=True)
    size = SPEED_BATCH_CPU if built.device.type == "cpu" else SPEED_BATCH
    image = np.zeros((32, 32, 3), np.uint8)
    batch = torch.stack([built.transform(image)] * size)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        for vectors in built.embed(batch).values():
            vectors.cpu()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:]) / size


def _relative(vector: torch.Tensor, other: torch.Tensor) -> float:
    """Norm of the difference over the norm of the first."""
    return float((vector - other).norm() / vector.norm().clamp_min(1e-12))


def check_encoder(
    encoder: str,
    *,
    checkpoint: str | Path | None = None,
    weights_dir: str | Path | None = None,
    random_weights: bool = False,
    device: str = "cpu",
    remote_code: bool = False,
    trust_code: bool = False,
) -> dict[str, Any]:
    """Build an encoder in float32, embed an image alone and in a batch, under every token policy.

    Returns
    -------
    dict[str, Any]
        What was found: parameters, weights, dims by policy, the largest difference between the image's
        vector alone and in a batch, seconds.

    Raises
    ------
    EncoderError
        tokens, dims or values are not what the card says, besides what `build_encoder` raises.
    """
    card = load_card(encoder, trust_code=trust_code)
    started = time.perf_counter()
    built = build_encoder(
        card,
        device=device,
        precision="fp32",
        checkpoint=checkpoint,
        weights_dir=weights_dir,
        random_weights=random_weights,
        remote_code=remote_code,
    )
    loaded = time.perf_counter()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 128, 128, 3), dtype=np.uint8)
    batch = torch.stack([built.transform(image) for image in images])
    policies = policies_of(card)
    if card.kind == "transformers" or (card.kind == "python" and card.grid):
        policies.pop("pooled", None)  # not every one has it
    together = built.embed(batch, list(policies))
    alone = built.embed(batch[:1], list(policies))
    for name, dim in policies.items():
        if together[name].shape != (3, dim) or not torch.isfinite(together[name]).all():
            raise EncoderError(
                f"{card.id}, {name}: {tuple(together[name].shape)} or values that are not finite"
            )
    difference = max(_relative(together[name][:1], alone[name]) for name in policies)
    if difference > 1e-3:
        raise EncoderError(
            f"{card.id}: the vector of an image changes by {difference:.1e} with the batch around it"
        )
    return {
        "encoder": card.id,
        "weights": built.weights.identity if built.weights else "random",
        "parameters": sum(p.numel() for p in built.network.parameters()),
        "input": f"{tuple(batch.shape[1:])}, mean {batch.mean():.3f}",
        "tokens": f"{card.prefix} prefix + {card.grid} patch",
        "dims": policies,
        "batch effect": f"{difference:.1e} (relative)",
        "load seconds": round(loaded - started, 2),
        "run seconds": round(time.perf_counter() - loaded, 2),
    }

"""An encoder ready to run: network, transform, precision and device behind `transform` and `embed`."""

import platform
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import EncoderError, InvalidRequest
from .cards import PRECISIONS, Card, load_card
from .models import Features, build_network
from .tokens import Policy, layers_of, parse_policy, select, vector_dim
from .views import prepare
from .weights import Weights, locate

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@cache
def cpu_has_bf16() -> bool:
    """Does this processor multiply bfloat16 natively (avx512_bf16 or AMX)? Else bf16 is slower than fp32."""
    try:
        flags = Path("/proc/cpuinfo").read_text("ascii", "ignore")
    except OSError:  # not Linux
        return False
    return platform.machine() in ("x86_64", "AMD64") and ("avx512_bf16" in flags or "amx_bf16" in flags)


def choose_precision(card: Card, device_type: str, asked: str | None = None) -> str:
    """What is computed in: what was asked for, else the card's on a GPU, on a CPU bf16 where it is native.

    Networks without tokens (CNNs) stay in fp32 on a CPU: their small convolutions gain nothing from bf16.

    Raises:
        InvalidRequest: an unknown precision, or fp16 on a CPU.
    """
    if asked not in (None, "auto", *PRECISIONS):
        raise InvalidRequest(f"unknown precision {asked!r}: auto, {', '.join(PRECISIONS)}")
    if asked == "fp16" and device_type == "cpu":
        raise InvalidRequest("fp16 is not computed on a CPU; use fp32 or bf16")
    if asked not in (None, "auto"):
        return str(asked)
    if card.kind == "python":
        return "fp32"
    if device_type == "cpu":
        return "bf16" if card.grid and cpu_has_bf16() else "fp32"
    return card.precision


class Encoder:
    """One encoder on one device.

    Attributes:
        card, weights, precision ("fp32" | "bf16" | "fp16"), device.
    """

    def __init__(
        self,
        card: Card,
        weights: Weights | None,
        *,
        device: torch.device,
        precision: str,
        channels_last: bool = False,
        compile: bool = False,
        remote_code: bool = False,
    ) -> None:
        self.card, self.weights, self.precision, self.device = card, weights, precision, device
        network = build_network(card, weights, remote_code=remote_code).eval().requires_grad_(False)
        if precision != "fp32":
            _cast_products(network, DTYPES[precision])
        if channels_last:
            network = network.to(memory_format=torch.channels_last)
        self.network = network.to(device)
        self._channels_last = channels_last
        mean = torch.tensor(card.transform.mean, dtype=torch.float32, device=device).view(3, 1, 1)
        std = torch.tensor(card.transform.std, dtype=torch.float32, device=device).view(3, 1, 1)
        # (x / 255 - mean) / std as one multiplication and one addition
        self._scale, self._shift = 1 / (255 * std), -mean / std
        self._features = torch.compile(self.network.features) if compile else self.network.features

    def transform(self, pixels: np.ndarray) -> Tensor:
        """One patch as the network sees it.

        Args:
            pixels: uint8, (h, w, 3), RGB.

        Returns:
            float32, (3, size, size), normalised, on the CPU.
        """
        batch = torch.from_numpy(np.array(prepare(pixels, self.card.transform))[None])
        return self.normalise(batch.to(self.device))[0].cpu()

    def normalise(self, batch: Tensor) -> Tensor:
        """uint8 (b, s, s, 3) on this device -> float32 (b, 3, s, s), normalised."""
        batch = torch.addcmul(self._shift, batch.permute(0, 3, 1, 2).float(), self._scale)
        return batch.contiguous(
            memory_format=torch.channels_last if self._channels_last else torch.contiguous_format
        )

    @torch.inference_mode()
    def embed(self, batch: Tensor, policies: Sequence[str | Policy] | None = None) -> dict[str, Tensor]:
        """Embed a batch: one forward pass, any number of policies.

        Args:
            batch: uint8 (b, s, s, 3) as `prepare` gives it, or float (b, 3, s, s) already normalised; b >= 1.
            policies: names or parsed; the card's own by default.

        Returns:
            {policy: float32 (b, length)} on the encoder's device.

        Raises:
            InvalidRequest: the encoder cannot give this policy.
            EncoderError: the network does not give the tokens that its card promises.
        """
        wanted = [p if isinstance(p, Policy) else parse_policy(p) for p in policies or (self.card.tokens,)]
        dims = {policy.name: vector_dim(self.card, policy) for policy in wanted}
        layers = layers_of(wanted)
        if layers and layers[-1] > self.network.depth:
            raise InvalidRequest(
                f"{self.card.id} has {self.network.depth} blocks to take tokens from, not {layers[-1]}"
            )
        batch = batch.to(self.device, non_blocking=True)
        if batch.dtype == torch.uint8:
            batch = self.normalise(batch)
        pooled = any(policy.pooling == "pooled" for policy in wanted)
        low = self.precision != "fp32"
        with torch.autocast(self.device.type, dtype=DTYPES[self.precision] if low else None, enabled=low):
            features = self._features(batch, layers=layers, pooled=pooled)
        vectors = {policy.name: self._vector(features, policy) for policy in wanted}
        for name, vector in vectors.items():
            if vector.shape != (len(batch), dims[name]):
                raise EncoderError(
                    f"{self.card.id} gave {tuple(vector.shape)} for {name}; "
                    f"its card says ({len(batch)}, {dims[name]})"
                )
        return vectors

    def _vector(self, features: Features, policy: Policy) -> Tensor:
        card = self.card
        if policy.pooling == "pooled":
            if features.pooled is None:
                raise InvalidRequest(f"{card.id} pools nothing by itself; use cls or mean")
            return features.pooled.float()
        tokens = features.layers[policy.layer] if policy.layer is not None else features.tokens
        if tokens is None or tokens.ndim != 3 or tokens.shape[1] != card.prefix + card.grid:
            got = "no tokens" if tokens is None else f"tokens of shape {tuple(tokens.shape)}"
            raise EncoderError(
                f"{card.id} gave {got}; its card says {card.prefix} prefix and {card.grid} patch tokens"
            )
        return select(tokens, card.prefix, policy.pooling)


def _cast_products(network: nn.Module, dtype: torch.dtype) -> None:
    """Store the weights of linear and convolution layers in the autocast dtype.

    Autocast would cast them in every forward pass, to the same numbers: this halves the memory and saves the
    cast. Norms and layer scales stay in float32, where autocast computes them.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """ "auto" is the first GPU if there is one (CUDA, then Apple's), else the CPU.

    Raises:
        InvalidRequest: a device that this machine or this build of torch does not have.
    """
    if str(device) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InvalidRequest(f"unknown device {device!r}: auto, cpu, cuda, cuda:N or mps") from error
    if chosen.type == "cuda" and (
        not torch.cuda.is_available() or (chosen.index or 0) >= torch.cuda.device_count()
    ):
        raise InvalidRequest(
            f"no device {device}: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA GPUs here"
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise InvalidRequest("no device mps here")
    return chosen


def build_encoder(
    card: Card | str,
    *,
    device: str | torch.device = "auto",
    precision: str | None = None,
    checkpoint: str | Path | None = None,
    weights_dir: str | Path | None = None,
    weights: Weights | None = None,
    random_weights: bool = False,
    channels_last: bool = False,
    compile: bool = False,
    remote_code: bool = False,
) -> Encoder:
    """Build an encoder and load its weights.

    Args:
        card: a card, or anything `load_card` takes.
        precision: None or "auto" chooses by `choose_precision`.
        weights: found before with `weights.locate`; else they are looked for now.
        random_weights: load none (checks, tests, speed measurements).

    Raises:
        UnknownEncoder, GatedEncoder, EncoderError, MissingDependency, InvalidRequest: as the parts do.
    """
    card = load_card(card)
    place = resolve_device(device)
    if weights is None and not random_weights:
        weights = locate(card, checkpoint=checkpoint, weights_dir=weights_dir)
    return Encoder(
        card,
        None if random_weights else weights,
        device=place,
        precision=choose_precision(card, place.type, precision),
        channels_last=channels_last,
        compile=compile,
        remote_code=remote_code,
    )

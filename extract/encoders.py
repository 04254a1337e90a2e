"""An encoder ready to run: network, transform, precision and device behind `transform` and `embed`."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import EncoderError, InvalidRequest
from .allocator import keep_pages
from .cards import Card
from .devices import resolve_devices
from .models.build import build_network
from .models.network import Features
from .precision import choose_precision
from .registry import load_card
from .tokens import Policy, last_tokens, layers_of, parse_policy, select, vector_dim
from .views import prepare, resized_shape
from .weights import Weights, locate

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Encoder:
    """One encoder on one device.

    Attributes
    ----------
    card, weights, device
        what it was built from, and where
    precision
        "fp32", "bf16" or "fp16"
    """

    def __init__(
        self,
        card: Card,
        weights: Weights | None,
        *,
        device: torch.device,
        precision: str,
        channels_last: bool | None = None,
        compile: bool = False,
        remote_code: bool = False,
    ) -> None:
        self.card, self.weights, self.precision, self.device = card, weights, precision, device
        if device.type == "cpu":
            keep_pages()
        network = build_network(card, weights, remote_code=remote_code).eval().requires_grad_(False)
        if precision != "fp32":
            _cast_products(network, DTYPES[precision])
        # a CNN runs 1.7 times as fast with its channels last (measured on a CPU); a transformer does not care
        self._channels_last = not card.grid if channels_last is None else channels_last
        if self._channels_last:
            network = network.to(memory_format=torch.channels_last)
        self.network = network.to(device)
        mean = torch.tensor(card.transform.mean, dtype=torch.float32, device=device).view(3, 1, 1)
        std = torch.tensor(card.transform.std, dtype=torch.float32, device=device).view(3, 1, 1)
        # (x / 255 - mean) / std as one multiplication and one addition
        self._scale, self._shift = 1 / (255 * std), -mean / std
        self._features = torch.compile(self.network.features) if compile else self.network.features
        self._padded = 0 if compile else None  # the largest batch so far: smaller ones are filled up to it
        self._compiled: set[tuple[object, ...]] = set()  # what it was compiled for
        self._compiler = threading.Lock()

    def transform(self, pixels: np.ndarray) -> Tensor:
        """One patch as the network sees it.

        Parameters
        ----------
        pixels
            uint8, (h, w, 3), RGB.

        Returns
        -------
        Tensor
            float32, (3, size, size), normalised, on the CPU.
        """
        batch = torch.from_numpy(np.array(prepare(pixels, self.card.transform))[None])
        return self.normalise(batch.to(self.device))[0].cpu()

    def normalise(self, batch: Tensor) -> Tensor:
        """What `prepare` gives, (b, s, s, 3) on this device -> float32 (b, 3, s, s), normalised."""
        images = batch.permute(0, 3, 1, 2)
        batch = (
            torch.addcmul(self._shift, images.float(), self._scale) if batch.dtype == torch.uint8 else images
        )
        return batch.contiguous(
            memory_format=torch.channels_last if self._channels_last else torch.contiguous_format
        )

    def resize(self, batch: Tensor) -> Tensor:
        """Resize on the device: uint8 (b, h, w, 3) -> uint8 (b, size, size, 3).

        Antialiased interpolation in float32, rounded once; PIL rounds after each of its two passes, so that
        single values differ by one or two of 255.
        """
        shape = self.card.transform
        if shape.function is not None:
            raise InvalidRequest(f"{self.card.id} has a transform of its own: leave --resize out")
        height, width = resized_shape(batch.shape[1], batch.shape[2], shape)
        if min(height, width) < shape.size:
            raise InvalidRequest(f"{self.card.id} puts a border around patches: leave --resize out")
        images = batch.permute(0, 3, 1, 2)
        if (height, width) != tuple(images.shape[2:]):
            if shape.interpolation not in ("bilinear", "bicubic"):
                raise InvalidRequest(f"{shape.interpolation} is resized by PIL only; leave --resize out")
            images = functional.interpolate(
                images.float(), (height, width), mode=shape.interpolation, antialias=True
            )
            images = images.round_().clamp_(0, 255).to(torch.uint8)
        top, left = round((height - shape.size) / 2), round((width - shape.size) / 2)
        return images[:, :, top : top + shape.size, left : left + shape.size].permute(0, 2, 3, 1)

    @torch.inference_mode()
    def embed(self, batch: Tensor, policies: Sequence[str | Policy] | None = None) -> dict[str, Tensor]:
        """Embed a batch: one forward pass, any number of policies.

        Parameters
        ----------
        batch
            (b, s, s, 3) as `prepare` gives it, or float (b, 3, s, s) already normalised; b >= 1.
        policies
            names or parsed; the card's own by default.

        Returns
        -------
        dict[str, Tensor]
            {policy: float32 (b, length)} on the encoder's device.

        Raises
        ------
        InvalidRequest
            the encoder cannot give this policy.
        EncoderError
            the network does not give the tokens that its card promises, or cannot be compiled.
        """
        wanted = [p if isinstance(p, Policy) else parse_policy(p) for p in policies or (self.card.tokens,)]
        dims = {policy.name: vector_dim(self.card, policy) for policy in wanted}
        layers = layers_of(wanted)
        if layers and layers[-1] > self.network.depth:
            raise InvalidRequest(
                f"{self.card.id} has {self.network.depth} blocks to take tokens from, not {layers[-1]}"
            )
        batch = batch.to(self.device, non_blocking=True)
        if batch.shape[-1] == 3:  # as `prepare` gives it; no network takes images three pixels wide
            batch = self.normalise(batch)
        pooled = any(policy.pooling in ("pooled", "projected") for policy in wanted)
        size, low = len(batch), self.precision != "fp32"
        last = last_tokens(wanted)
        if low and last == "cls":  # alone it would be rounded differently from one beside others
            last = "all"
        if self._padded is not None:  # a compiled network is compiled again for another shape
            padded = self._padded = max(self._padded, size)  # another thread may set it meanwhile
            batch = torch.cat([batch, batch[:1].expand(padded - size, -1, -1, -1)])
        autocast = torch.autocast(
            self.device.type, dtype=DTYPES[self.precision] if low else None, enabled=low
        )
        with autocast, self._compiling(batch.shape, *layers, pooled, last):
            features = self._features(batch, layers=layers, pooled=pooled, last=last)
        vectors = {policy.name: self._vector(features, policy)[:size] for policy in wanted}
        for name, vector in vectors.items():
            if vector.shape != (size, dims[name]):
                raise EncoderError(
                    f"{self.card.id} gave {tuple(vector.shape)} for {name}; "
                    f"its card says ({size}, {dims[name]})"
                )
        return vectors

    @contextmanager
    def _compiling(self, *key: object) -> Iterator[None]:
        """The first call of its kind compiles: one thread at a time, or each would compile the same."""
        if self._padded is None or key in self._compiled:
            yield
            return
        from torch._dynamo.exc import TorchDynamoException

        with self._compiler:
            try:
                yield
            except TorchDynamoException as error:
                raise EncoderError(
                    f"{self.card.id} cannot be compiled for {self.device}: {str(error).splitlines()[0]}; "
                    "leave --compile out, or install the compiler that is missing (on Linux g++)"
                ) from error
            self._compiled.add(key)

    def _vector(self, features: Features, policy: Policy) -> Tensor:
        card = self.card
        if policy.pooling in ("pooled", "projected"):
            vector = features.pooled if policy.pooling == "pooled" else features.projected
            if vector is None:
                raise InvalidRequest(f"{card.id} gives no {policy.pooling} vector by itself; use cls or mean")
            return vector.float()
        if features.class_token is not None:
            return features.class_token.float()
        tokens = features.layers[policy.layer] if policy.layer is not None else features.tokens
        if tokens is None or tokens.ndim != 3 or tokens.shape[1] != card.prefix + card.grid:
            got = "no tokens" if tokens is None else f"tokens of shape {tuple(tokens.shape)}"
            raise EncoderError(
                f"{card.id} gave {got}; its card says {card.prefix} prefix and {card.grid} patch tokens"
            )
        return select(tokens, card.prefix, policy.pooling, class_token=card.class_token)


def _cast_products(network: nn.Module, dtype: torch.dtype) -> None:
    """Store the weights of linear and convolution layers in the autocast dtype.

    Autocast would cast them in every forward pass, to the same numbers: this halves the memory and saves the
    cast. Norms and layer scales stay in float32, where autocast computes them.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)


def build_encoder(
    card: Card | str,
    *,
    device: str | torch.device = "auto",
    precision: str | None = None,
    checkpoint: str | Path | None = None,
    weights_dir: str | Path | None = None,
    weights: Weights | None = None,
    random_weights: bool = False,
    channels_last: bool | None = None,
    compile: bool = False,
    remote_code: bool = False,
) -> Encoder:
    """Build an encoder and load its weights.

    Parameters
    ----------
    card
        a card, or anything `load_card` takes.
    precision
        None or "auto" chooses by `choose_precision`.
    weights
        found before with `weights.locate`; else they are looked for now.
    random_weights
        load none (checks, tests, speed measurements).

    Raises
    ------
    UnknownEncoder, GatedEncoder, EncoderError, MissingDependency, InvalidRequest
        as the parts do.
    """
    card = load_card(card)
    torch_device = resolve_devices(str(device))[0]
    if weights is None and not random_weights:
        weights = locate(card, checkpoint=checkpoint, weights_dir=weights_dir)
    return Encoder(
        card,
        None if random_weights else weights,
        device=torch_device,
        precision=choose_precision(card, torch_device.type, precision),
        channels_last=channels_last,
        compile=compile,
        remote_code=remote_code,
    )

"""Networks behind one interface: an image batch in, tokens and pooled vectors out.

Each kind of card has one adapter class. All of them answer with `Features`; token policies, autocast and
views are applied above, in one place for all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import EncoderError, InvalidRequest
from ..cards import Card


@dataclass
class Features:
    """What one forward pass gave.

    Attributes
    ----------
    tokens
        (b, prefix + grid, dim) after the final norm (CLIP of transformers: before it), CLS first, then
        registers; None without tokens, or where `class_token` is all that was asked for.
    class_token
        (b, dim): the first of them alone, where the others were not computed.
    pooled
        (b, dim) of the network's own pooling; None if not requested or unavailable.
    projected
        (b, projection): that after its own projection; None where it has none.
    layers
        the same as `tokens` after block K, final norm applied, by K = 1...
    """

    tokens: Tensor | None = None
    class_token: Tensor | None = None
    pooled: Tensor | None = None
    projected: Tensor | None = None
    layers: dict[int, Tensor] = field(default_factory=dict)


class Network(nn.Module):
    """Base of the adapters.

    Attributes
    ----------
    depth
        the number of blocks that intermediate layers may name, 0 for none.
    origin
        where in its file the weights were found, in words; "" for the top.
    """

    depth: int = 0
    origin: str = ""

    def features(
        self, batch: Tensor, *, layers: Sequence[int] = (), pooled: bool = False, last: str = "all"
    ) -> Features:
        """Run the network on (b, 3, s, s), normalised.

        layers : blocks whose tokens are asked for too, from 1, ascending
        last : which tokens of the end are: "all", "cls" (`class_token` or `tokens` is given) or "none"; a
            network may give more
        """
        raise NotImplementedError


def _refuse_other_prefix(card: Card, prefix: int | None) -> None:
    """Raises EncoderError where a network says how many tokens stand before the patches, and the card another
    number: registers would enter the mean.
    """
    if card.grid and prefix is not None and prefix != card.prefix:
        raise EncoderError(
            f"the card of {card.id} says prefix = {card.prefix}, and its network has {prefix} tokens (CLS, "
            f"registers) before those of the patches: set prefix = {prefix}, and grid to the rest"
        )


class TimmNetwork(Network):
    """Any timm model: `forward_features` gives tokens, `forward_head(pre_logits=True)` the pooled vector."""

    def __init__(self, model: nn.Module, card: Card) -> None:
        from .class_token import has_plain_last_block  # imports timm, as who built the model has

        super().__init__()
        self.model = model
        self.has_tokens = card.grid > 0
        self.depth = len(model.blocks) if self.has_tokens and hasattr(model, "blocks") else 0  # pyright: ignore[reportArgumentType]
        self._shortens = self.has_tokens and card.class_token and has_plain_last_block(model)
        self._tokens = card.prefix + card.grid
        _refuse_other_prefix(card, getattr(model, "num_prefix_tokens", None))

    def features(
        self, batch: Tensor, *, layers: Sequence[int] = (), pooled: bool = False, last: str = "all"
    ) -> Features:
        model: Any = self.model
        if last == "cls" and self._shortens and not layers and not pooled:
            token = self._class_token(batch)
            if token is not None:
                return Features(class_token=token)
        if layers:
            ends, outputs = self._after(batch, layers, ended=last == "none" and not pooled)
        else:
            ends, outputs = model.forward_features(batch), {}
        return Features(
            tokens=ends if self.has_tokens else None,
            pooled=model.forward_head(ends, pre_logits=True) if pooled else None,
            layers=outputs,
        )

    def _class_token(self, batch: Tensor) -> Tensor | None:
        """(b, dim), the CLS token by the short way; None where the card has another number of tokens."""
        from .class_token import class_token_after

        model: Any = self.model
        _, before = self._after(batch, [self.depth - 1], ended=True, norm=False)
        tokens = before[self.depth - 1]
        if tokens.shape[1] != self._tokens:
            return None
        return model.norm(class_token_after(model.blocks[-1], tokens))[:, 0]

    def _after(
        self, batch: Tensor, layers: Sequence[int], *, ended: bool, norm: bool = True
    ) -> tuple[Tensor | None, dict[int, Tensor]]:
        """The tokens of the end (`ended`: not computed, None), and those after each of these blocks."""
        model: Any = self.model
        found = model.forward_intermediates(
            batch,
            indices=[layer - 1 for layer in layers],
            return_prefix_tokens=True,
            norm=norm,
            stop_early=ended,
            output_fmt="NLC",
            intermediates_only=ended,
        )
        ends, blocks = (None, found) if ended else found
        outputs: dict[int, Tensor] = {}
        for layer, block in zip(layers, blocks, strict=True):
            patches, prefix = block if isinstance(block, tuple) else (block, block[:, :0])
            outputs[layer] = torch.cat([prefix, patches], dim=1)
        return ends, outputs


class TransformersNetwork(Network):
    """A transformers vision model, or the vision tower of a two-tower one."""

    def __init__(self, model: nn.Module, card: Card) -> None:
        super().__init__()
        self.model: Any = getattr(model, "vision_model", model)
        self.projection: Any = getattr(model, "visual_projection", None)
        self.has_tokens, self.card_id = card.grid > 0, card.id
        self.norm = next(
            (
                getattr(self.model, name)
                for name in ("layernorm", "post_layernorm", "norm")
                if hasattr(self.model, name)
            ),
            nn.Identity(),
        )
        config = self.model.config
        registers = getattr(config, "num_register_tokens", None)
        _refuse_other_prefix(card, 1 + registers if isinstance(registers, int) else None)
        self.depth = int(getattr(config, "num_hidden_layers", 0))

    def features(
        self, batch: Tensor, *, layers: Sequence[int] = (), pooled: bool = False, last: str = "all"
    ) -> Features:
        if not self.has_tokens:  # code of the repository that answers with one vector
            vectors = self.model(batch)
            if not isinstance(vectors, Tensor) or vectors.ndim != 2:
                raise EncoderError(f"the code of {self.card_id} gave a {type(vectors).__name__}, not vectors")
            return Features(pooled=vectors)
        out = self.model(pixel_values=batch, output_hidden_states=bool(layers), return_dict=True)
        states = out.hidden_states if layers else ()
        pooled_output = getattr(out, "pooler_output", None) if pooled else None
        if pooled and pooled_output is None:
            raise InvalidRequest("this transformers model has no pooled output; use cls or mean")
        return Features(
            tokens=out.last_hidden_state,
            pooled=pooled_output,
            projected=self.projection(pooled_output) if self.projection is not None and pooled else None,
            layers={layer: self.norm(states[layer]) for layer in layers},
        )


class CallableNetwork(Network):
    """A user's callable: float32 (b, 3, s, s) in, (b, dim) out, or (b, prefix + grid, dim) with a grid."""

    def __init__(self, function: Callable[..., Any], card: Card) -> None:
        super().__init__()
        self.function = function  # registered as a submodule by torch if it is one
        self.card_id, self.has_tokens = card.id, card.grid > 0

    def features(
        self, batch: Tensor, *, layers: Sequence[int] = (), pooled: bool = False, last: str = "all"
    ) -> Features:
        if layers:
            raise InvalidRequest(f"{self.card_id} is a Python callable and has no intermediate layers")
        out = self.function(batch)
        wanted = 3 if self.has_tokens else 2
        if not isinstance(out, Tensor) or out.ndim != wanted:
            got = f"{tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise EncoderError(
                f"the callable of {self.card_id} gave {got}; its card says a tensor of {wanted} dimensions"
            )
        if self.has_tokens:
            return Features(tokens=out, pooled=out.mean(dim=1) if pooled else None)
        return Features(pooled=out)

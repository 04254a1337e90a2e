"""A network from a card: who builds it, by the card's kind."""

from ...errors import EncoderError
from ..cards import Card, untrusted
from ..weights import Weights
from .network import CallableNetwork, Network, TimmNetwork, TransformersNetwork


def build_network(card: Card, weights: Weights | None, *, remote_code: bool = False) -> Network:
    """Build a card's network in float32 on the CPU and load its weights.

    Parameters
    ----------
    weights
        None builds the architecture with random weights (checks and tests).
    remote_code
        run code from the hub repository where the card needs it.

    Raises
    ------
    EncoderError
        the weights do not fit the architecture.
    MissingDependency
        timm or transformers is not installed.
    InvalidRequest
        the card needs code from its hub repository and `remote_code` is False.
    UntrustedCode
        the card names Python code that nobody trusted (`load_card`).
    """
    if card.kind == "timm":
        from .timm import build_timm

        model, origin = build_timm(card, weights)
        network = TimmNetwork(model, card)
        network.origin = origin
        return network
    if card.kind == "transformers":
        from .transformers import build_transformers

        return TransformersNetwork(build_transformers(card, weights, remote_code=remote_code), card)
    if card.kind == "conch":
        from .conch import build_conch

        return build_conch(card, weights)
    if card.kind == "tower":
        from .towers import build_tower

        return build_tower(card, weights)
    if card.kind == "open_clip":
        from .open_clip import build_open_clip

        return build_open_clip(card, weights)
    if card.factory is None:
        raise untrusted(card, "the card")
    function = card.factory(**card.arguments)
    if not callable(function):
        raise EncoderError(
            f"the factory of {card.id} gave a {type(function).__name__}, which cannot be called"
        )
    return CallableNetwork(function, card)

"""What to say where the hub does not give the weights of a card. No token is ever in a message."""

from collections.abc import Sequence

from ..errors import EncoderError, GatedEncoder
from ..hub import has_token, reason
from .cards import Card


def explained(
    card: Card, revision: str | None, wanted: Sequence[str], error: Exception
) -> EncoderError | None:
    """What went wrong with the hub and what to do; None for an error that is not about the hub."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError) or (
        card.gated and isinstance(error, errors.RepositoryNotFoundError)
    ):  # without a login the hub denies that a private repository exists
        return gated(card, logged_in=has_token())
    elsewhere = f"or take the files from elsewhere: --weights-dir DIR (DIR/{card.id}/), --checkpoint FILE"
    text = reason(error, card.hub, files=", ".join(wanted), revision=revision, elsewhere=elsewhere)
    return None if text is None else EncoderError(text)


def gated(card: Card, *, logged_in: bool) -> GatedEncoder:
    """The error that explains how to get at gated weights. Never holds a token."""
    page = f"https://huggingface.co/{card.hub}"
    login = (
        "You are logged in, so the licence is not accepted yet, or the request is still waiting"
        if logged_in
        else "Then log in once with `hf auth login` (or set HF_TOKEN)"
    )
    return GatedEncoder(
        f"the weights of {card.id} are gated ({card.licence}). Fix: accept the licence at {page}. {login}. "
        f"Where there is no network: --weights-dir DIR (files in DIR/{card.id}/), or --checkpoint FILE."
    )

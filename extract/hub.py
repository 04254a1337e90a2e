"""What the hub answers where it does not give the weights: each refusal has its own reason and its own fix.

No token is ever in a message, nor what stands before the host in HF_ENDPOINT.
"""

import os
import socket
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from ..errors import EncoderError, GatedEncoder
from .cards import Card


class NotTheHubError(OSError):
    """Something answered in the hub's place, without the hub's headers."""


def explained(
    card: Card, revision: str | None, wanted: Sequence[str], error: Exception
) -> EncoderError | None:
    """What went wrong with the hub and what to do; None for an error that is not about the hub."""
    import huggingface_hub as hub
    from huggingface_hub import constants, errors

    page, token = f"https://huggingface.co/{card.hub}", hub.get_token() is not None
    elsewhere = f"or take the files from elsewhere: --weights-dir DIR (DIR/{card.id}/), --checkpoint FILE"
    status = _status_of(error)
    if isinstance(error, errors.GatedRepoError) or (
        card.gated and isinstance(error, errors.RepositoryNotFoundError)
    ):  # without a login the hub denies that a private repository exists
        return gated(card, logged_in=token)
    if status == 401 and token:
        return EncoderError(
            "the hub refuses this machine's token (401): it is mistyped, expired or revoked. "
            "Fix: `hf auth login` with a new one, or correct HF_TOKEN"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return EncoderError(f"the hub has no model {card.hub} (or it is private: `hf auth login`): {page}")
    if isinstance(error, errors.RevisionNotFoundError):
        return EncoderError(f"{card.hub} has no revision {revision}: see {page}/commits/main")
    if isinstance(error, errors.EntryNotFoundError) and status == 404:
        return EncoderError(f"{card.hub} has none of the files {', '.join(wanted)}: see {page}/tree/main")
    if status == 401:
        return EncoderError(
            f"the hub wants a login for {card.hub} (401). Fix: `hf auth login`, or set HF_TOKEN"
        )
    if status == 403:
        return EncoderError(
            f"the hub forbids this machine's token to read {card.hub} (403). Fix: give the token the right "
            "to read it (https://huggingface.co/settings/tokens; for gated models the right to read public "
            "gated repositories), or log in with another one"
        )
    if status == 404:
        return EncoderError(
            f"there is no {card.hub} at {endpoint()} (404). Fix: correct the name, or HF_ENDPOINT"
        )
    if status == 429:
        return EncoderError(
            f"the hub has had too many requests from here (429). Fix: wait some minutes, log in "
            f"(`hf auth login` raises the limit), {elsewhere}"
        )
    if status is not None and status >= 500:
        return EncoderError(
            f"the hub itself fails ({status}, see https://status.huggingface.co). Fix: try again later, "
            f"{elsewhere}"
        )
    if status is not None:
        return EncoderError(f"the hub answers {status} for {card.hub}. Fix: try again later, {elsewhere}")
    causes = [*_causes(error)]
    if any(isinstance(one, NotTheHubError | errors.FileMetadataError) for one in causes):
        return EncoderError(
            f"what answers at {endpoint()} is not the hub, but a proxy or a login page. Fix: log in to the "
            f"network, correct HTTPS_PROXY or HF_ENDPOINT, {elsewhere}"
        )
    unreachable = [one for one in causes if _is_of_network(one)]
    if unreachable or isinstance(error, errors.LocalEntryNotFoundError):
        return EncoderError(
            f"the hub cannot be reached for {card.hub} ({endpoint()}). Fix: look at the network and "
            f"at HTTPS_PROXY, {elsewhere}"
        )
    if isinstance(error, OSError):
        why = error.strerror or str(error) or type(error).__name__
        return EncoderError(
            f"{card.hub} cannot be kept in the hub's cache {constants.HF_HUB_CACHE}: {why}. Fix: set "
            f"HF_HOME to a folder with room that you can write to, {elsewhere}"
        )
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it came from."""
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or one.__context__


def _status_of(error: BaseException) -> int | None:
    """The HTTP status that the hub answered with; the client wraps it in what it says of its cache."""
    found = (getattr(getattr(one, "response", None), "status_code", None) for one in _causes(error))
    return next((status for status in found if isinstance(status, int)), None)


def _is_of_network(error: BaseException) -> bool:
    """Whether an error is the HTTP library's (which one it is depends on the client's release)."""
    library = type(error).__module__.partition(".")[0]
    of_http = library.startswith(("httpx", "httpcore", "requests", "urllib3"))
    return of_http or isinstance(error, ConnectionError | TimeoutError | socket.gaierror)


def endpoint() -> str:
    """Where the hub is asked, without a name or password that may stand in the address."""
    from huggingface_hub import constants

    parts = urlsplit(constants.ENDPOINT)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"


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


def has_token() -> bool:
    """Is there a hub token on this machine? Its value is never read into a message."""
    if os.environ.get("HF_TOKEN"):
        return True
    try:
        import huggingface_hub as hub
    except ImportError:
        return False
    return hub.get_token() is not None

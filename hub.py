"""What the Hugging Face hub answers where it does not do what it was asked for: a reason and a fix each.

No token is ever in a sentence, nor what stands before the host in HF_ENDPOINT.
"""

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .errors import MissingDependency, PatchbankError
from .files import reason as why_not_written

_SIZES = re.compile(r"should be of size (\d+) but has size (\d+)")  # of the client's check of a download


class NotTheHubError(OSError):
    """Something other than the hub answered, without the hub's headers."""


def client(endpoint: str | None = None, token: str | None = None) -> Any:
    """The hub's client. Raises MissingDependency."""
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise MissingDependency("push and pull need huggingface_hub: pip install 'patchbank[hub]'") from error
    return HfApi(endpoint=endpoint, token=token)


@contextmanager
def explained(what: str, repo: str, *, as_error: type[PatchbankError], **details: Any) -> Iterator[None]:
    """Turns what the hub's client raises into one error: what failed, why, and what to do.

    details : see `reason`
    """
    try:
        yield
    except PatchbankError:
        raise
    except Exception as error:
        why = reason(error, repo, **details)
        if why is None:
            raise
        raise as_error(f"{what}: {why}") from error


def reason(
    error: BaseException,
    repo: str,
    *,
    kind: str = "model",
    act: str = "read",
    files: str = "",
    revision: str | None = None,
    elsewhere: str = "",
    url: str | None = None,
    token: bool = False,
    into: Path | None = None,
) -> str | None:
    """What went wrong and what to do, in one sentence; None for an error that is not about the hub.

    kind : "model" or "data set"; act : what was to be done to it, "read" or "write"
    files : which were asked for; elsewhere : another way to get them, for the end of a fix
    url : of the hub, unless it is the environment's; token : whether one was given beside the environment's
    into : where the files were to go, unless that is the hub's cache
    """
    from huggingface_hub import errors

    root = f"https://huggingface.co/{'datasets/' if kind == 'data set' else ''}{repo}"
    at, elsewhere = endpoint(url), elsewhere and f", {elsewhere}"
    status = _status_of(error)
    if status == 401 and (token or has_token()):
        return (
            "the hub refuses this machine's token (401): it is mistyped, expired or revoked. "
            "Fix: `hf auth login` with a new one, or correct HF_TOKEN"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has no {kind} {repo} (or it is private: `hf auth login`): {root}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no revision {revision}: see {root}/commits/main"
    if isinstance(error, errors.EntryNotFoundError) and status == 404:
        return f"{repo} has none of the files {files}: see {root}/tree/main"
    if isinstance(error, errors.HFValidationError):
        return f"{repo!r} is not a name of a {kind} on the hub. Fix: give it as NAME or ORGANISATION/NAME"
    if status is not None:
        return _refused(status, repo, act, at, elsewhere)
    causes = [*_causes(error)]
    strange = (NotTheHubError, errors.FileMetadataError, json.JSONDecodeError)
    if any(isinstance(cause, strange) or type(cause).__name__ == "JSONDecodeError" for cause in causes):
        return (
            f"{at} is answered by a proxy or a login page instead of the hub. Fix: log in to the network, "
            f"correct HTTPS_PROXY or HF_ENDPOINT{elsewhere}"
        )
    if any(map(_is_of_network, causes)) or isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"the hub cannot be reached for {repo} ({at}). Fix: look at the network and at "
            f"HTTPS_PROXY{elsewhere}"
        )
    if isinstance(error, OSError) and (sizes := _SIZES.search(str(error))):
        return (
            f"a file of {repo} has {sizes[1]} bytes on the hub, and {sizes[2]} came from {at}. "
            f"Fix: try again, look at the network and at HTTPS_PROXY{elsewhere}"
        )
    if isinstance(error, OSError):
        return _not_written(error, repo, into, elsewhere)
    return None


def _not_written(error: OSError, repo: str, into: Path | None, elsewhere: str) -> str:
    """The folder that files were to go to, or the hub's cache, cannot be written to."""
    from huggingface_hub import constants

    if into is not None and not str(error.filename or "").startswith(constants.HF_HOME):
        return f"{repo} cannot be written to {into}: {why_not_written(error)}"
    why = error.strerror or " ".join(str(error).split()) or type(error).__name__
    return (
        f"{repo} cannot be kept in the hub's cache {constants.HF_HUB_CACHE}: {why}. Fix: set HF_HOME to "
        f"a folder with room that you can write to{elsewhere}"
    )


def _refused(status: int, repo: str, act: str, at: str, elsewhere: str) -> str:
    if status == 401:
        return f"the hub requires a login for {repo} (401). Fix: `hf auth login`, or set HF_TOKEN"
    if status == 403:
        gated = "; for gated models the right to read public gated repositories" if act == "read" else ""
        return (
            f"the hub forbids this machine's token to {act} {repo} (403). Fix: give the token the right to "
            f"{act} it (https://huggingface.co/settings/tokens{gated}), or log in with another one"
        )
    if status == 404:
        return f"there is no {repo} at {at} (404). Fix: correct the name, or HF_ENDPOINT"
    if status == 429:
        return (
            "too many requests to the hub (429). Fix: wait some minutes, log in "
            f"(`hf auth login` raises the limit){elsewhere}"
        )
    if status >= 500:
        return (
            f"the hub reports a server error ({status}, see https://status.huggingface.co). Fix: try again "
            f"later{elsewhere}"
        )
    return f"the hub answers {status} for {repo}. Fix: try again later{elsewhere}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it came from."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _status_of(error: BaseException) -> int | None:
    """The HTTP status that the hub answered with; the client wraps it in what it says of its cache."""
    statuses = (getattr(getattr(cause, "response", None), "status_code", None) for cause in _causes(error))
    return next((status for status in statuses if isinstance(status, int) and status >= 300), None)


def _is_of_network(error: BaseException) -> bool:
    """Whether an error is the HTTP library's (which one it is depends on the client's release)."""
    library = type(error).__module__.partition(".")[0]
    of_http = library.startswith(("httpx", "httpcore", "requests", "urllib3"))
    return of_http or isinstance(error, ConnectionError | TimeoutError | socket.gaierror)


def endpoint(url: str | None = None) -> str:
    """Where the hub is asked, without a name or password that may stand in the address."""
    from huggingface_hub import constants

    parts = urlsplit(url or constants.ENDPOINT)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"


def has_token() -> bool:
    """Is there a hub token on this machine? Its value is never read into a message."""
    if os.environ.get("HF_TOKEN"):
        return True
    try:
        import huggingface_hub as hub
    except ImportError:
        return False
    return hub.get_token() is not None

"""Stores on the Hugging Face hub, in data set repositories: `push` with a data card, `pull` with a check.

A repository holds stores/NAME/ as it is on disk (blocks, logs, description), one or more, and README.md.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest, MissingDependency, StoreError, StoreNotFound
from .bank import STORES, Bank
from .check import verify
from .files import TEMPORARY, LocalFiles, explained
from .identity import safe_name
from .leases import FOLDER as LEASES
from .store import Store

CARD = """---
license: other
license_name: {licence_name}
pretty_name: {pretty}
tags:
- patchbank
- embeddings
- pathology
- feature-extraction
---

# {pretty}

{rows} patch embeddings of **{encoder}**: {dim} x {dtype}, view `{view}`, tokens `{tokens}`, computed in
{precision}. Rows are keyed by the content hash of the decoded pixels; there are no images, labels or
patient data in here.

Licence note of the encoder: {licence}

## Use

```
patchbank cache pull {repo} --bank bank --store {name}
patchbank cache verify --bank bank {name}
```

## Identity

Two stores hold comparable vectors only if all of this is equal (digest `{digest}`).

```json
{identity}
```

## Provenance

```json
{provenance}
```
"""


def data_card(store: Store, repo: str) -> str:
    """README.md of a repository that holds a store: what, under which licence, how to read it."""
    identity = store.identity
    licence = str(store.provenance.get("licence", "unknown: ask whoever published the encoder's weights"))
    return CARD.format(
        licence_name=safe_name(licence, longest=60).lower(),
        pretty=f"{identity.encoder['id']} embeddings ({identity.view}, {identity.tokens})".replace(":", " "),
        rows=len(store),
        encoder=identity.encoder["id"],
        dim=identity.dim,
        dtype=identity.dtype,
        view=identity.view,
        tokens=identity.tokens,
        precision=identity.precision,
        licence=licence,
        repo=repo,
        name=store.name,
        digest=identity.digest,
        identity=json.dumps(identity.to_json(), indent=2),
        provenance=json.dumps(store.provenance, indent=2),
    )


def _api(endpoint: str | None, token: str | None) -> Any:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise MissingDependency("push and pull need huggingface_hub: pip install 'patchbank[hub]'") from error
    return HfApi(endpoint=endpoint, token=token)


def hub_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises: its own errors and those of the HTTP library below it."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    return (*(base for base in HfHubHTTPError.__bases__ if base is not OSError), HFValidationError, OSError)


def _failed(what: str, error: Exception) -> StoreError:
    words = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return StoreError(
        f"{what}: {words}. Log in with `hf auth login`, check the repository's name and the network"
    )


def push(
    store: Store,
    repo: str,
    *,
    private: bool = True,
    endpoint: str | None = None,
    token: str | None = None,
) -> str:
    """Uploads a local store to a data set repository (made if need be); returns its URL.

    Files that are there already are not sent again. Check the encoder's licence before making it public.
    Raises StoreError (refused, no network), InvalidRequest (a remote store).
    """
    if not isinstance(store.files, LocalFiles):
        raise InvalidRequest(f"{store.files} is not local; pull it or `cache subset` it into a folder first")
    api = _api(endpoint, token)
    try:
        url = api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            repo_type="dataset",
            folder_path=store.files.root,
            path_in_repo=f"{STORES}/{store.name}",
            ignore_patterns=[f"{LEASES}/*", f"**/{TEMPORARY}*", f"{TEMPORARY}*"],
            commit_message=f"{store.name}: {len(store)} rows",
        )
        api.upload_file(
            repo_id=repo,
            repo_type="dataset",
            path_or_fileobj=data_card(store, repo).encode(),
            path_in_repo="README.md",
            commit_message=f"Data card of {store.name}",
        )
    except hub_errors() as error:
        raise _failed(f"{store.name} was not pushed to {repo}", error) from error
    return str(url)


def pull(
    repo: str,
    bank: Bank,
    *,
    name: str | None = None,
    revision: str | None = None,
    endpoint: str | None = None,
    token: str | None = None,
    progress: bool = False,
) -> Store:
    """Downloads a store of a data set repository into a local bank and verifies every byte.

    name: of the store (its beginning will do), where the repository holds several. An interrupted download
    goes on where it was. Raises StoreNotFound, StoreError (damaged, no network), InvalidRequest (the bank
    has the store already: pull into another folder and `cache merge`).
    """
    if not isinstance(bank.files, LocalFiles):
        raise InvalidRequest(f"{bank.path} is not a local folder")
    api = _api(endpoint, token)
    interim = bank.files.path(f"{TEMPORARY}pull-{safe_name(repo)}")
    try:
        listing = api.list_repo_files(repo, repo_type="dataset", revision=revision)
        names = sorted({parts[1] for f in listing if len(parts := f.split("/")) > 2 and parts[0] == STORES})
        near = [known for known in names if known == name] or [n for n in names if n.startswith(name or "")]
        if len(near) != 1:
            raise StoreNotFound(f"{repo} holds {', '.join(names) or 'no store'}; name one with --store")
        target = bank.files.path(f"{STORES}/{near[0]}")
        if target.exists():
            raise InvalidRequest(
                f"{target} exists already; pull into another bank, then `patchbank cache merge`"
            )
        api.snapshot_download(
            repo,
            repo_type="dataset",
            revision=revision,
            allow_patterns=[f"{STORES}/{near[0]}/*"],
            local_dir=interim,
        )
    except hub_errors() as error:
        if isinstance(error, StoreError | InvalidRequest):
            raise
        raise _failed(f"{repo} was not pulled", error) from error
    with explained("write", target):
        found = verify(Store(LocalFiles(interim / STORES / near[0]), lenient=True), progress=progress)
        if not found.good:
            raise StoreError(f"{repo} is damaged ({found.damage[0]}); nothing was added to {bank.path}")
        bank.files.make_folder(STORES)
        Path(interim / STORES / near[0]).rename(target)
        bank.files.sync(STORES)
        shutil.rmtree(interim)
    return bank.open_name(near[0])

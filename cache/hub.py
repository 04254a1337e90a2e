"""Stores on the Hugging Face hub, in data set repositories: `push` with a data card, `pull` with a check.

A repository holds stores/NAME/ of one or more stores, and README.md. What is pushed of a store is put
reassembled: its description, the files of its published blocks, the arrays of a finalised one, and a single
log that names neither machines nor what was taken back. The columns of a table (patch names, labels, groups)
stay here unless asked for.
"""

import json
import re
import shutil
import tempfile
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from ..errors import InvalidRequest, StoreError, StoreNotFound
from ..files import publish
from ..hub import client
from ..hub import explained as explained_hub
from ..texts import markdown
from .bank import STORES, Bank
from .filesystem import TEMPORARY, LocalFiles, explained, parts_of
from .identity import safe_name
from .log import FOLDER as LOGS
from .log import Catalog, encode
from .store import Store
from .verify import verify

CARD = """---
license: other
license_name: {licence_name}
pretty_name: {yaml_title}
tags:
- patchbank
- embeddings
- pathology
- feature-extraction
---

# {title}

{rows} patch embeddings of {encoder}: {dim} x {dtype}, view {view}, tokens {tokens}, computed in {precision}.
Rows are keyed by the content hash of the decoded pixels; images are not included. {table}

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


NAME = re.compile(r"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+){3}")  # as Identity.name makes them
WITHOUT_TABLE = "Table columns (patch names, labels, groups) are not included."
WITH_TABLE = "**Table columns are included: {columns}.** They may reveal which patches belong to one patient."


@dataclass(frozen=True)
class Pushed:
    """url: of the repository. left_out: columns that stayed here. removed: files of earlier pushes (the
    repository's history keeps them).
    """

    url: str
    left_out: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


def data_card(store: Store, repo: str, columns: list[str] | None = None) -> str:
    """README.md of a repository that holds a store: what, under which licence, how to read it.

    columns: of the table that is pushed with it.
    """
    identity = store.identity
    licence = str(store.provenance.get("licence", "unknown: ask whoever published the encoder's weights"))
    title = f"{identity.encoder['id']} embeddings ({identity.view}, {identity.tokens})"
    listed = ", ".join(markdown(name) for name in columns or [])
    return CARD.format(
        licence_name=safe_name(licence, longest=60).lower(),
        yaml_title=json.dumps(title),  # JSON is YAML
        title=markdown(title),
        rows=len(store),
        encoder=markdown(identity.encoder["id"]),
        dim=identity.dim,
        dtype=identity.dtype,
        view=markdown(identity.view),
        tokens=markdown(identity.tokens),
        precision=identity.precision,
        table=WITH_TABLE.format(columns=listed) if columns else WITHOUT_TABLE,
        licence=markdown(licence),
        repo=repo,
        name=store.name,
        digest=identity.digest,
        identity=json.dumps(identity.to_json(), indent=2),
        provenance=json.dumps(store.provenance, indent=2),
    )


def contents(store: Store, *, with_table: bool, host_names: bool) -> dict[str, Path | bytes]:
    """What is pushed of a local store: name -> file, or bytes. The same again for the same store.

    Raises StoreError (damaged, a link in it), InvalidRequest (it has no columns to push).
    """
    store.refresh()
    catalog, layout, files = store.catalog, store.layout, store.files
    assert isinstance(files, LocalFiles)
    live = {block.id: block for block in catalog.live()}
    if any(name not in live for name in catalog.order):
        raise StoreError(f"{files} is damaged: `patchbank cache repair {store.name}` first")
    files_of: dict[str, Path | bytes] = {name: files.path(name) for name in layout.descriptions}
    for block in live.values():
        spots = store.spot_of(block)
        names = [spot.file for spot in spots]
        if block.id in catalog.chunks:  # once, under the names that other software reads
            names = [name for _, name in layout.chunks(block.id, catalog.chunks[block.id])] or names
        files_of |= {name: files.path(spot.file) for name, spot in zip(names, spots, strict=True)}
    view: dict[str, bytes] = {}
    if catalog.order and not with_table:
        view = layout.view([live[name] for name in catalog.order], {})
    elif catalog.order:
        view = {name: files.read(name) for name in catalog.order_record["view"]}
    if with_table and not layout.columns_of(view):
        raise InvalidRequest(
            f"{store.name} has no columns of a table: `patchbank cache finalize {store.name} --table TABLE` "
            "first, or push without --with-table"
        )
    log = _one_log(store, view, host_names=host_names)
    return {**files_of, **view, f"{LOGS}/pushed-{xxhash.xxh3_64_hexdigest(log)[:8]}.jsonl": log}


def _one_log(store: Store, view: dict[str, bytes], *, host_names: bool) -> bytes:
    """The log of a store as one writer would have written it, without retracted records."""
    catalog = store.catalog
    sessions = catalog.sessions
    # the name of a writer is its machine's, unless it was given one
    names = {s["writer"]: s["writer"] if host_names else f"writer-{n}" for n, s in enumerate(sessions)}
    records = [
        {"type": "writer", **{part: s[part] for part in ("time", "provenance") if part in s}}
        | {"writer": names[s["writer"]]}
        for s in sessions
    ]
    records += [
        block.record() | {"writer": names.get(block.writer, "writer")}
        for block in sorted(catalog.live(), key=lambda block: (block.time, block.id))
    ]
    if catalog.order:
        sums = {name: xxhash.xxh3_64_hexdigest(content) for name, content in view.items()}
        order = {part: catalog.order_record[part] for part in ("type", "generation", "blocks", "time")}
        records += [order | {"view": sums}] * 2  # twice, as `finalize` does
    return b"".join(encode({**record, "n": n}) + b"\n" for n, record in enumerate(records))


def _asking(what: str, repo: str, **details: Any) -> AbstractContextManager[None]:
    return explained_hub(what, repo, as_error=StoreError, kind="data set", **details)


def push(
    store: Store,
    repo: str,
    *,
    private: bool = True,
    with_table: bool = False,
    host_names: bool = False,
    replace: bool = False,
    endpoint: str | None = None,
    token: str | None = None,
) -> Pushed:
    """Uploads a local store to a data set repository (created if missing), as one commit.

    Files that the repository has already are not sent again; files of an earlier push that are no longer part
    of the store are removed. Check the encoder's licence before making it public.

    with_table: send the columns of the table that the store was finalised with, too (patch names, labels,
        groups of patients); the data card says so. host_names: keep the names of the machines in the log.
    replace: remove rows that the repository has of this store and this bank has not.

    Raises StoreError (refused, no network, damaged), InvalidRequest (a remote store; nothing to send; rows in
    the repository that are not here).
    """
    if not isinstance(store.files, LocalFiles):
        raise InvalidRequest(f"{store.files} is not local; pull it or `cache subset` it into a folder first")
    with explained("read", store.files):
        sent = contents(store, with_table=with_table, host_names=host_names)
        columns = _columns(store)
    if not len(store):
        raise InvalidRequest(f"{store.files} has no rows yet: nothing to push")
    api = client(endpoint, token)
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    folder = f"{STORES}/{store.name}"
    asked = {"act": "write", "url": endpoint, "token": token is not None}
    with _asking(f"{store.name} was not pushed to {repo}", repo, **asked):
        url = api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        there = api.list_repo_files(repo, repo_type="dataset")
        if not replace:
            _refuse_to_remove(
                store, repo, [name for name in there if name.startswith(f"{folder}/{LOGS}/")], api
            )
        gone = sorted(n for n in there if n.startswith(f"{folder}/") and n[len(folder) + 1 :] not in sent)
        card = data_card(store, repo, columns if with_table else None).encode()
        api.create_commit(
            repo,
            [
                *(CommitOperationDelete(name, is_folder=False) for name in gone),
                *(CommitOperationAdd(f"{folder}/{name}", content) for name, content in sent.items()),
                CommitOperationAdd("README.md", card),
            ],
            repo_type="dataset",
            commit_message=f"{store.name}: {len(store)} rows",
        )
    return Pushed(str(url), [] if with_table else columns, gone)


def _columns(store: Store) -> list[str]:
    """The columns that a store was finalised with."""
    names = store.catalog.order_record.get("view", {})
    return store.layout.columns_of({name: store.files.read(name) for name in names})


def _refuse_to_remove(store: Store, repo: str, logs: list[str], api: Any) -> None:
    """Raises InvalidRequest where the repository has blocks that this store has never had."""
    if not logs:
        return
    with tempfile.TemporaryDirectory() as folder:
        api.snapshot_download(repo, repo_type="dataset", allow_patterns=logs, local_dir=folder)
        catalog = Catalog(LocalFiles(Path(folder) / STORES / store.name))
        catalog.read(strict=False)
    foreign = [block for block in catalog.live() if block.id not in store.catalog.published]
    if foreign:
        raise InvalidRequest(
            f"{repo} has {sum(block.rows for block in foreign)} rows of {store.name} in blocks that are not "
            f"here. To keep them: `patchbank cache pull {repo}` into another bank, `cache merge` that into "
            "this one, then push with --replace. To remove them: push with --replace"
        )


def _store_in(repo: str, listing: list[str], name: str) -> str:
    """The store whose name begins so; names of its files are checked. Raises StoreNotFound, StoreError."""
    names = sorted({parts[1] for f in listing if len(parts := f.split("/")) > 2 and parts[0] == STORES})
    names = [known for known in names if NAME.fullmatch(known)]
    fitting = [known for known in names if known == name] or [n for n in names if n.startswith(name)]
    if len(fitting) != 1:
        raise StoreNotFound(f"{repo} holds {', '.join(names) or 'no store'}; name one with --store")
    for file in listing:
        if file.startswith(f"{STORES}/{fitting[0]}/"):
            parts_of(file)  # refuses what would leave the folder
    return fitting[0]


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

    name: of the store (a unique prefix is enough), where the repository holds several. An interrupted
    download is continued. Raises StoreNotFound, StoreError (damaged, no network), InvalidRequest (the bank
    has the store already: pull into another folder and `cache merge`).
    """
    if not isinstance(bank.files, LocalFiles):
        raise InvalidRequest(f"{bank.path} is not a local folder")
    api = client(endpoint, token)
    interim = bank.files.path(f"{TEMPORARY}pull-{safe_name(repo)}")
    asked = {
        "files": f"{STORES}/{name or ''}",
        "revision": revision,
        "url": endpoint,
        "into": bank.files.root,
    }
    with _asking(f"{repo} was not pulled", repo, token=token is not None, **asked):
        listing = api.list_repo_files(repo, repo_type="dataset", revision=revision)
        chosen = _store_in(repo, listing, name or "")
        target = bank.files.path(f"{STORES}/{chosen}")
        if target.exists():
            raise InvalidRequest(
                f"{target} exists already; pull into another bank, then `patchbank cache merge`"
            )
        api.snapshot_download(
            repo,
            repo_type="dataset",
            revision=revision,
            allow_patterns=[f"{STORES}/{chosen}/*"],
            local_dir=interim,
        )
    with explained("write", target):
        store = Store(LocalFiles(interim / STORES / chosen), lenient=True)
        if store.name != chosen:
            raise StoreError(
                f"{repo} has a store named {chosen} whose name must be {store.name}; nothing was added"
            )
        store.files.walk()  # refuses links
        report = verify(store, progress=progress)
        if not report.good:
            raise StoreError(f"{repo} is damaged ({report.damage[0]}); nothing was added to {bank.path}")
        bank.files.make_folder(STORES)
        publish(interim / STORES / chosen, target)
        shutil.rmtree(interim)
    return bank.open_name(chosen)

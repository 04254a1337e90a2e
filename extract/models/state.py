"""Files of weights: read without running their code, the backbone found under whatever it was saved.

Training frameworks save a backbone under keys ("state_dict", "teacher", "model_state_dict", ...) and prefixes
("module.", "teacher.backbone.", "_orig_mod.", ...) of their own. No list of them is complete, so the place is
found by fit: every dictionary of tensors in the file, under every prefix of its names, is compared with the
names and shapes of the architecture, and the one that fills all of it is taken. Where several do (a student
beside its teacher), the one that ORDER names first is; where ORDER does not tell, the file is refused.
"""

import argparse
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import EncoderError, MissingDependency
from ..cards import Card
from ..weights import INSTALL, may_be_index, not_a_model, shards
from .names import with_timms_names

State = dict[str, Tensor]
# of equally good fits: averaged weights, the teacher's, those without such a word, the student's, MoCo's keys
ORDER = ("ema", "teacher", "", "student", "momentum", "k")
# what may be left over beside a backbone, by the first part of its name
_HEADS = re.compile(
    r"(fc|head|heads|head_dist|classifier|last_linear|logits|linear|pooler|mask_token|masked_embed|prototypes"
    r"|queue\w*|predictor|projector|projection\w*|dino_head|ibot_head|decoder\w*|vision_head|language_head"
    r"|dino_loss|ibot_patch_loss|logit_scale|criterion)"
)
_CHUNKED = re.compile(r"^blocks\.\d+\.(\d+)\.")  # DINOv2's training saves blocks in chunks: blocks.0.3.
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")  # model-00001-of-00002.safetensors
_DEEPEST = 4  # dictionaries inside each other
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # others come with scales of their own


@dataclass
class _Fit:
    """One place in the file: what it gives under the architecture's names, and what is wrong with it."""

    place: str
    prefix: str
    state: State
    missing: list[str]
    shapes: list[str]
    extra: list[str]
    matched: int

    @property
    def whole(self) -> bool:
        return not (self.missing or self.shapes or self.extra)

    @property
    def name(self) -> str:
        parts = [
            f"key {self.place!r}" if self.place else "",
            f"prefix {self.prefix!r}" if self.prefix else "",
        ]
        return " and ".join(part for part in parts if part)

    @property
    def rank(self) -> int:
        words = re.split(r"[._/]", f"{self.place}.{self.prefix}".lower())
        known = [ORDER.index(word) for word in words if word and word in ORDER]
        return min(known, default=ORDER.index(""))

    def fault(self) -> str:
        parts = [
            f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for what, names in (
                ("missing", self.missing),
                ("not known", self.extra),
                ("of another shape", self.shapes),
            )
            if names
        ]
        return "; ".join(parts)


def read_file(path: Path) -> Any:
    """What a .safetensors, .pth, .pt or .bin file holds. Nothing is unpickled but tensors and plain values.

    Raises
    ------
    EncoderError
        not such a file, or one with other Python objects in it, which are named.
    """
    other = not_a_model(path)
    if other:
        raise EncoderError(f"{path} {other}")
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith((b"{", b"[")) and start[8:] != b"{":
        if not may_be_index(path):
            raise EncoderError(f"{path} is JSON, but no index of shards, which is called NAME.index.json")
        return _read_shards(path)
    try:
        if start[8:] == b"{":  # by content: such files are found under names of the other kind, too
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise MissingDependency(f"safetensors is not installed: {INSTALL}") from error
    except Exception as error:  # zip, pickle and safetensors errors have no common root
        raise EncoderError(
            f"{path} is not a file of weights that can be read safely: {_why(path, error)}"
        ) from (error)


def _read_shards(index: Path) -> State:
    """The tensors of all shards that an index names."""
    state: State = {}
    for shard in shards(index):
        part = read_file(shard)
        if not isinstance(part, Mapping) or not all(isinstance(value, Tensor) for value in part.values()):
            raise EncoderError(f"{shard} is a shard that holds more than tensors")
        if twice := sorted({*state} & {*part}):
            raise EncoderError(f"{index}: the tensor {twice[0]} stands in two shards")
        state |= part
    return state


def _harmless() -> list[Any]:
    """Classes that checkpoints hold beside their tensors, and that do nothing: options and NumPy numbers."""
    multiarray: Any = np._core.multiarray  # pyright: ignore[reportAttributeAccessIssue]
    kinds = {type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)}
    return [argparse.Namespace, np.dtype, multiarray.scalar, *kinds]


def _why(path: Path, error: Exception) -> str:
    """One line, without torch's page of advice."""
    listing = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", None)
    try:
        objects = [] if listing is None else listing(path)
    except Exception:  # noqa: BLE001  not a zip file: then torch's own first line has to do
        objects = []
    with torch.serialization.safe_globals(_harmless()):
        known = {f"{c.__module__}.{c.__qualname__}" for c in torch.serialization.get_safe_globals()}  # pyright: ignore
    objects = [name for name in objects if name not in known]
    if objects:
        return (
            f"it holds Python objects ({', '.join(objects[:3])}), which could run code. Fix: where you trust "
            "it, save its state dict alone (torch.save(model.state_dict(), FILE))"
        )
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    if "TorchScript" in text:
        return (
            "it is a TorchScript archive, which holds code. Fix: where you trust it, save its state dict "
            "alone (torch.save(torch.jit.load(FILE).state_dict(), OTHER))"
        )
    with path.open("rb") as file:
        if not file.read(2).startswith((b"\x80", b"PK")):
            return "it begins like no file of PyTorch or safetensors"
    if "weights_only" in text:
        named = re.search(r"GLOBAL (\S+) ", text)
        return (
            f"it is a pickle of more than tensors{f' ({named[1]})' if named else ''}, which could run code. "
            "Fix: where you trust it, save its state dict alone (torch.save(model.state_dict(), FILE))"
        )
    return text.split("\n")[0][:200] or type(error).__name__


def load_file_into(
    model: nn.Module,
    path: Path,
    card: Card,
    *,
    convert: Callable[[State, nn.Module], State] | None = None,
    heads: Collection[str] = (),
    inside: str = "",
    only: tuple[str, ...] = (),
) -> str:
    """Fill a model, each tensor into its place, as float32.

    Parameters
    ----------
    convert
        the family's own renaming of a state dict (timm's checkpoint_filter_fn).
    heads
        names of modules that the file may hold and the model lacks (classifiers).
    inside
        the tensors wanted stand under this prefix, whatever else is beside it.
    only
        of a file that holds more (a text tower), the names that begin so; none: all.

    Returns
    -------
    str
        Where in the file the tensors were found, in words; "" for its top.

    Raises
    ------
    EncoderError
        no place in the file gives every tensor; the nearest one and its faults are named. Or
        several do, or a tensor holds NaN or infinity.
    """
    own = model.state_dict()
    places = list(_places(read_file(path)))
    if only:
        places = [(at, {k: v for k, v in state.items() if k.startswith(only)}) for at, state in places]
        places = [(at, state) for at, state in places if state]
    if not places:
        raise EncoderError(f"{path} holds no state dict (names of tensors and tensors)")
    if card.load == "strict":
        places = [(at, with_timms_names(state, own)) for at, state in places]
    if card.load == "ordered":
        fits = [_in_order(where, state, own, card, path) for where, state in places[:1]]
    else:
        fits = [
            _fit(place, prefix, state, own, model, convert, heads)
            for place, state in places
            for prefix in _prefixes(state, own, inside)
        ]
    best = _choose(fits, path, card, len(own))
    state = {name: best.state[name].detach() for name in own}  # files may hold parameters
    _refuse_other_numbers(state, own, path)
    refuse_not_finite(state, str(path))
    model.load_state_dict(
        {name: value.float() if value.is_floating_point() else value for name, value in state.items()},
        strict=True,
        assign=True,
    )
    return best.name


def _refuse_other_numbers(state: State, own: Mapping[str, Tensor], path: Path) -> None:
    """Raises EncoderError for a tensor that is quantised, sparse, without data, or no floats."""
    for name, value in state.items():
        kind = str(value.dtype).removeprefix("torch.")
        if value.is_meta:
            kind = "a tensor without data (of the device meta)"
        elif value.layout != torch.strided:
            kind = "sparse"
        elif own[name].is_floating_point() == (value.dtype in FLOATS):
            continue
        wanted = " or ".join(map(str, FLOATS[:3])) if own[name].is_floating_point() else own[name].dtype
        raise EncoderError(
            f"{path}: the tensor {name} is {kind}, the architecture wants {wanted}. Fix: take the checkpoint "
            "that was not quantised or converted"
        )


def refuse_not_finite(state: Mapping[str, Tensor], where: str) -> None:
    """Raises EncoderError naming the first tensor with NaN or infinity: training broke down before it."""
    for name, value in state.items():
        # the sum of finite numbers is finite in float64, and takes no second copy of the tensor
        if value.is_floating_point() and not math.isfinite(float(value.detach().sum(dtype=torch.float64))):
            count = int((~torch.isfinite(value)).sum())
            raise EncoderError(
                f"{where}: the tensor {name} holds {count} NaN or infinite values of {value.numel()}, which "
                "makes every embedding NaN. Fix: take a checkpoint from before the training diverged"
            )


def _places(content: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, State]]:
    """Every dictionary of tensors, and the keys that lead to it."""
    if not isinstance(content, Mapping) or depth > _DEEPEST:
        return
    state = {
        key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)
    }
    if state:
        yield name, state
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Mapping):
            yield from _places(value, f"{name}/{key}" if name else key, depth + 1)


def _prefixes(state: State, own: Mapping[str, Tensor], inside: str) -> list[str]:
    """Prefixes worth a try: under which most names are the architecture's, the common one, and none."""
    counts: Counter[str] = Counter()
    for name in state:
        plain = _CHUNKED.sub(r"blocks.\1.", name)
        starts = [0, *(dot.end() for dot in re.finditer(r"\.", name))]
        for start in starts:
            rest = name[start:]
            if rest in own or _CHUNKED.sub(r"blocks.\1.", rest) in own or plain in own:
                counts[name[:start]] += 1
    most = max(counts.values(), default=0)
    prefixes = [prefix for prefix, count in counts.items() if count == most]
    parts = [name.split(".")[:-1] for name in state]
    shared = []
    for words in zip(*parts, strict=False):
        if len(set(words)) > 1:
            break
        shared.append(words[0])
        prefixes.append("".join(f"{word}." for word in shared))
    prefixes = list(dict.fromkeys([*prefixes, ""]))
    return [f for f in prefixes if f.endswith(inside)] if inside else prefixes


def _fit(
    place: str,
    prefix: str,
    state: State,
    own: Mapping[str, Tensor],
    model: nn.Module,
    convert: Callable[[State, nn.Module], State] | None,
    heads: Collection[str],
) -> _Fit:
    given = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not any(_CHUNKED.match(name) for name in own):
        chunked = {_CHUNKED.sub(r"blocks.\1.", name): value for name, value in given.items()}
        given = chunked if len(chunked) == len(given) else given
    changed = given
    if convert is not None:
        try:
            changed = convert(dict(given), model)
        except Exception:  # noqa: BLE001  written for the family's own files; any other breaks it in any way
            changed = given
    misfits = [name for name, value in changed.items() if name in own and value.shape != own[name].shape]
    as_saved = {
        name: value for name, value in given.items() if name in own and value.shape != own[name].shape
    }
    shapes = [  # of the file, where the family's own conversion made another one of it
        f"{name} {tuple(as_saved.get(name, changed[name]).shape)} for {tuple(own[name].shape)}"
        for name in misfits
    ]
    # timm resamples a patch embedding, as it does a position grid: another patch size is another network
    shapes += [
        f"{name} {tuple(value.shape)} for {tuple(own[name].shape)}"
        for name, value in given.items()
        if name.endswith("patch_embed.proj.weight") and name in own and value.shape != own[name].shape
    ]
    # timm leaves out biases of DINOv3's attention where its architecture has none, whatever they are
    lost = [
        name for name in given if name.endswith("attn.qkv.bias") and name not in changed and name not in own
    ]
    lost = [n for n in lost if n.replace("qkv.bias", "q_bias") not in changed]
    extra = lost + [
        name
        for name in changed
        if name not in own
        and not _HEADS.fullmatch(name.partition(".")[0])
        and not any(name == head or name.startswith(f"{head}.") for head in heads)
    ]
    return _Fit(
        place=place,
        prefix=prefix,
        state=changed,
        missing=[name for name in own if name not in changed],
        shapes=list(dict.fromkeys(shapes)),
        extra=extra,
        matched=sum(name in own and value.shape == own[name].shape for name, value in changed.items()),
    )


def _in_order(where: str, state: State, own: Mapping[str, Tensor], card: Card, path: Path) -> _Fit:
    if len(own) != len(state):
        raise EncoderError(f"{path} holds {len(state)} tensors, {card.model} has {len(own)}")
    state = dict(zip(own, state.values(), strict=True))
    shapes = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if state[name].shape != own[name].shape
    ]
    return _Fit(where, "", state, [], shapes, [], len(own) - len(shapes))


def _choose(fits: list[_Fit], path: Path, card: Card, total: int) -> _Fit:
    whole = [fit for fit in fits if fit.whole]
    if not whole:
        near = max(fits, key=lambda fit: (fit.matched, -len(fit.extra)))
        where = f" nearest under {near.name}:" if near.name else ""
        shard = _SHARD.search(path.name)
        hint = (
            f". It is shard {int(shard[1])} of {int(shard[2])}. Fix: name the index beside the shards "
            f"({path.name[: shard.start()]}{path.suffix}.index.json)"
            if shard
            else ""
        )
        raise EncoderError(
            f"{path} does not fit {card.id} ({card.model}):{where} {near.matched} of {total} tensors fit; "
            f"tensors {near.fault()}{hint}"
        )
    first = min(fit.rank for fit in whole)
    best = [fit for fit in whole if fit.rank == first]
    others = [fit for fit in best[1:] if not _same(fit.state, best[0].state)]
    if others:
        raise EncoderError(
            f"{path} holds several backbones that fit {card.id}, and nothing says which is meant: "
            f"{'; '.join(fit.name or 'the top' for fit in [best[0], *others][:4])}. "
            "Fix: save the one that you want in a file of its own"
        )
    return best[0]


def _same(first: State, other: State) -> bool:
    return all(name in other and torch.equal(value, other[name]) for name, value in first.items())

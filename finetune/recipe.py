"""What one training run does: a frozen recipe, the same from Python, TOML or the command line."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest
from ..settings import SHIPPED, InvalidSettings, Settings, near, not_one_of, read_table
from .augment import read_steps
from .labels import Labels

METHODS = ("lora", "full")
OPTIMIZERS = ("adam", "adamw")
SCHEDULES = ("cosine", "plateau", "constant")
MONITORS = ("balanced_accuracy", "auroc", "log_loss", "kappa", "r2", "pearson")
OF_NUMBERS = ("r2", "pearson")  # monitors
PRECISIONS = ("fp32", "bf16", "fp16")
BALANCE = ("sampler", "weights", "none")
LOSSES = ("cross_entropy", "focal", "ranked", "squared_error")
DECAY_ON = ("weights", "all")
CHOOSE_ON = ("fold", "inner", "none")
LABELS = ("majority", "votes")
NORMALIZE = ("encoder", "half", "imagenet")
BEFORE = {"decay_on": "all"}  # what runs did before a field said it, where its default is another
STATISTICS = {  # what `normalize` uses instead of the encoder's own mean and standard deviation
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class Recipe(Settings):
    """Everything that decides a training run apart from the encoder, the data and the fold.

    name             for people: of the folder; no part of the recipe's identity
    remark           for people; no part of the recipe's identity
    method           "lora" (base weights frozen, adapters and head train) or "full" (everything trains)
    rank             of the adapters: the width of A and B
    alpha            of the adapters: their output counts alpha / rank
    dropout          of the adapters' input, in training
    targets          fnmatch patterns of linear layers inside the attention blocks: "qkv", "attn.*", "mlp.*";
                     by default all of them, by the names that the encoder's card or family has for them
    suffix_match     PEFT's own rule instead of ours: any module of the whole model whose name ends so,
                     which takes `patch_embed.proj` for "proj". Only there to repeat a publication
    last_blocks      adapt only so many blocks, from the output backwards: the backward pass ends there; 0:
                     all
    rslora           adapters count alpha / sqrt(rank) (Kalajdzievski 2023)
    dora             adapters turn weights and learn their lengths apart (Liu et al. 2024)
    tokens           token policy that the head sees: "card" (the card's default), "cls", "mean", "cls+mean",
                     "pooled"
    view             what is cut from the patch first, as in extract: "full", "center:0.5"
    input_size       side of the square input in pixels, to which the whole view is resized; 0: the card's own
                     size, resize and centre crop
    optimizer        "adamw", or "adam", whose weight decay is a penalty in the gradient
    lr               full learning rate
    head_lr          of the linear layer on top; 0: lr
    weight_decay     of what `decay_on` says
    decay_on         "weights" (matrices and kernels, LoRA's too: no biases, norms, layer scales, tokens or
                     position embeddings) or "all" (every trained tensor)
    schedule         "cosine" (per step, to 0), "plateau" (per epoch, on `monitor`) or "constant"
    warmup           epochs of linear warm-up from 0, may be a fraction; not with "plateau"
    plateau_factor   of "plateau": what the learning rate is multiplied by
    plateau_patience of "plateau": epochs without a better one before that
    min_lr           of "plateau": floor of the learning rate
    epochs           at most
    epoch_size       patches drawn in an epoch; 0: as many as there are training rows
    monitor          the validation metric that chooses the epoch: "auroc" and "balanced_accuracy" (means over
                     the classes), "log_loss" (all classes alike), of more than two classes "kappa" (with
                     quadratic weights for grades); of numbers "r2" or "pearson" (means over the targets)
    patience         epochs without a better one that end the run
    choose_on        the rows that choose the epoch: "fold" (the fold that the model is scored on, so that its
                     out-of-fold score is a little too high), "inner" (an inner fold of the training rows,
                     whole groups, on which the model is not trained) or "none" (all epochs, the last weights)
    batch_size       patches in a forward pass
    accumulate       forward passes in an optimizer step
    balance          "sampler" (patches drawn with replacement, 1 / class count, as many as there are),
                     "weights" (class weights in the loss) or "none", as numbers have to have it
    balance_domains  rows weigh so that the domains (scanners, centres) of a class count the same in the
                     loss; of numbers, so that all domains do
    loss             "cross_entropy"; "focal": rows that are right already count less; "ranked": of ordered
                     classes, the ranked probability score; "squared_error": of numbers, each standardised by
                     the rows that train
    focal_gamma      of "focal": the larger, the less right rows count
    labels           "majority" (the manifest's labels), or "votes": the shares of the experts' votes as label
    smoothing        how far targets are moved towards 1/2 (of K classes 1/K), in [0, 1)
    mixup            alpha of MixUp, pairs of images mixed by a share drawn from Beta(alpha, alpha); 0: none
    layer_decay      factor of the learning rate from one block to the one below it, in (0, 1]
    ema              decay of the moving average of the weights, which is scored and kept, in [0, 1); 0: none
    symmetries       8: scores are means of the logits over the flips and quarter turns of a patch, before
                     folds are averaged (by probability); 1: of the patch alone, as when the epoch is chosen
    precision        of the training passes; weights and optimizer stay float32
    eval_precision   of the passes after training, which give the reported scores; "" is as `precision`
    checkpointing    recompute the blocks' activations in the backward pass: less memory, about a third more
                     time
    clip             largest gradient norm; 0: no clipping
    augment          steps in this order, each {step = NAME, ...}; see finetune/augment.py
    normalize        "encoder" (its own mean and std, as everywhere in patchbank); "half" and "imagenet" only
                     repeat what a publication did
    random_weights   train from random weights instead of the encoder's own
    seed             of everything that is drawn
    """

    name: str = "lora"
    remark: str = ""
    method: str = "lora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.1
    targets: tuple[str, ...] = ("qkv", "proj", "fc1", "fc2")
    suffix_match: bool = False
    last_blocks: int = 0
    rslora: bool = False
    dora: bool = False
    tokens: str = "card"
    view: str = "full"
    input_size: int = 0
    optimizer: str = "adamw"
    lr: float = 5e-4
    head_lr: float = 0.0
    weight_decay: float = 1e-2
    decay_on: str = "weights"
    schedule: str = "cosine"
    warmup: float = 1.0
    plateau_factor: float = 0.5
    plateau_patience: int = 3
    min_lr: float = 1e-7
    epochs: int = 20
    epoch_size: int = 0
    monitor: str = "auroc"
    patience: int = 5
    choose_on: str = "fold"
    batch_size: int = 32
    accumulate: int = 1
    balance: str = "sampler"
    balance_domains: bool = False
    loss: str = "cross_entropy"
    focal_gamma: float = 2.0
    labels: str = "majority"
    smoothing: float = 0.0
    mixup: float = 0.0
    layer_decay: float = 1.0
    ema: float = 0.0
    symmetries: int = 1
    precision: str = "fp32"
    eval_precision: str = ""
    checkpointing: bool = False
    clip: float = 1.0
    augment: tuple[Mapping[str, Any], ...] = ()
    normalize: str = "encoder"
    random_weights: bool = False
    seed: int = 0

    def faults(self) -> Iterable[str]:
        return _faults(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a card; `recipe_of_card` reads them back."""
        values = self.model_dump()
        values["targets"] = list(self.targets)
        values["augment"] = [dict(step) for step in self.augment]
        return values

    @property
    def digest(self) -> str:
        """16 hex digits of everything but the name and the remark.

        Of what differs from the defaults above, or from BEFORE: a field that a later version adds leaves old
        digests as they are. So these defaults never change; the shipped TOML files may.
        """
        plain = {**Recipe().to_dict(), **BEFORE}
        values = {k: v for k, v in self.to_dict().items() if k not in {"name", "remark"} and v != plain[k]}
        return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()


def meanings() -> dict[str, str]:
    """Field -> what it means, from the docstring of Recipe."""
    found: dict[str, str] = {}
    name = ""
    for line in (Recipe.__doc__ or "").splitlines()[2:]:
        head, text = line[4:21].strip(), line[21:].strip()
        name = head or name
        if name:
            found[name] = f"{found.get(name, '')} {text}".strip()
    return found


def options_table(recipe: Recipe | None = None) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of all options: name, default, the recipe's own value, meaning."""
    plain, text = Recipe().to_dict(), meanings()
    heads = ["option", "default", *([f"in {recipe.name}"] if recipe else []), "meaning"]
    rows = []
    for name in plain:
        shown = [_shown(plain[name])]
        if recipe is not None:
            value = recipe.to_dict()[name]
            shown.append("" if value == plain[name] else _shown(value))
        rows.append([name, *shown, text[name]])
    return heads, rows


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(str(one["step"] if isinstance(one, dict) else one) for one in value) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def recipe_from(values: Mapping[str, Any], *, where: str = "recipe") -> Recipe:
    """A Recipe from plain values. Raises InvalidRequest with every fault; `where` names the values in it."""
    return Recipe.read(values, where=where)


def recipe_of_card(card: Mapping[str, Any], *, where: str) -> Recipe:
    """The recipe in a model's card, which an earlier version may have written."""
    return recipe_from({**BEFORE, **card["recipe"]}, where=where)


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with patchbank."""
    return sorted(path.stem for path in (SHIPPED / "recipes").glob("*.toml"))


def paper_models() -> list[str]:
    """Encoders for which `paper` says what was done."""
    return sorted(read_table(SHIPPED / "recipes" / "paper.toml", "the recipe")["models"])


def load_recipe(
    spec: str | Path | Recipe, *, encoder: str = "", of: Labels | None = None, **overrides: Any
) -> Recipe:
    """A recipe by name ("lora", "full", "paper") or from a TOML file, with single values overridden.

    encoder : id of the card; "paper" is another recipe for every model and refuses models that were not in it
    of : what is learned. Shipped recipes are written for classes: what they say of these is left to
        `OWN` where numbers are learned (of grades the monitor), and so is what others do not say
    Raises InvalidRequest with what there is, or what does not fit the labels.
    """
    if isinstance(spec, Recipe):
        given = {**{k: getattr(spec, k) for k in spec.model_fields_set}, **overrides}
        recipe = spec.replace(**overrides) if overrides else spec
    else:
        values, where = _values_of(spec, encoder)
        given = overrides if str(spec) in shipped_recipes() else {**values, **overrides}
        recipe = recipe_from({**values, **overrides}, where=where)
    if of is None:
        return recipe
    own = {k: v for k, v in OWN.get(_kind(of), {}).items() if k not in given}
    recipe = recipe.replace(**own) if own else recipe
    if faults := list(_faults_of_labels(recipe, of)):
        raise InvalidRequest(f"recipe {recipe.name!r}: {'; '.join(faults)}")
    return recipe


def _values_of(spec: str | Path, encoder: str) -> tuple[dict[str, Any], str]:
    """The values of a recipe by name or file, and what to call them in messages."""
    path = Path(spec)
    if path.suffix == ".toml":
        values, where = read_table(path, "the recipe"), str(path)
    elif str(spec) in shipped_recipes():
        values, where = read_table(SHIPPED / "recipes" / f"{spec}.toml", "the recipe"), f"recipe {spec!r}"
    else:
        known = shipped_recipes()
        raise InvalidRequest(
            f"there is no recipe {str(spec)!r}{near(str(spec), known)} (FILE.toml, or {', '.join(known)})"
        )
    if "models" in values:
        models = values["models"]
        if encoder not in models:
            raise InvalidRequest(
                f"{where} does not cover {encoder!r}; it reproduces the training of "
                f"{', '.join(sorted(models))}. Use --recipe lora or full for others"
            )
        base = dict(values[models[encoder]["base"]])
        own = {k: v for k, v in models[encoder].items() if k != "base"}
        values = {"name": path.stem, **base, **own}
    else:
        values = {"name": path.stem, **values}
    return values, where


# what fits other labels than two classes, where the recipe does not say otherwise
OWN: dict[str, dict[str, Any]] = {
    "grades": {"monitor": "kappa"},
    "numbers": {
        "monitor": "r2",
        "loss": "squared_error",
        "balance": "none",
        "labels": "majority",
        "smoothing": 0.0,
    },
}


def _kind(labels: Labels) -> str:
    if labels.targets:
        return "numbers"
    return "grades" if labels.ordered else "two classes" if labels.binary else "classes"


def _faults_of_labels(recipe: Recipe, labels: Labels) -> Iterable[str]:
    """What cannot be done with these labels, and what can."""
    if labels.targets:
        for name, values in [
            ("monitor", OF_NUMBERS),
            ("loss", ("squared_error",)),
            ("balance", ("none",)),
            ("labels", ("majority",)),
            ("smoothing", (0.0,)),
        ]:
            if getattr(recipe, name) not in values:
                told = " or ".join(f'"{v}"' if isinstance(v, str) else str(v) for v in values)
                yield f"{name} {getattr(recipe, name)!r} is for classes; for numbers it has to be {told}"
        return
    if recipe.monitor in OF_NUMBERS:
        yield f"monitor {recipe.monitor!r} is for numbers; for classes: balanced_accuracy, auroc or log_loss"
    if recipe.monitor == "kappa" and labels.binary:
        yield "monitor 'kappa' is for more than two classes: use balanced_accuracy"
    if recipe.loss == "squared_error":
        yield "loss 'squared_error' is for numbers; for classes: cross_entropy or focal"
    if recipe.loss == "ranked" and not labels.ordered:
        yield (
            "loss 'ranked' is for grades: say ordered = true in the manifest if the classes have an order, "
            "or use cross_entropy"
        )


def _faults(recipe: Recipe) -> Iterable[str]:
    yield from _faults_of_words(recipe)
    for name, value in recipe:
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{name} has to be a finite number, not {value}"
    for name, least in [("rank", 1), ("epochs", 1), ("patience", 1), ("batch_size", 1), ("accumulate", 1)]:
        if getattr(recipe, name) < least:
            yield f"{name} has to be at least {least}, not {getattr(recipe, name)}"
    for name in (
        "input_size",
        "last_blocks",
        "epoch_size",
        "head_lr",
        "weight_decay",
        "warmup",
        "plateau_patience",
        "min_lr",
        "clip",
        "seed",
        "mixup",
        "focal_gamma",
    ):
        if getattr(recipe, name) < 0:
            yield f"{name} must not be negative"
    if recipe.lr <= 0:
        yield f"lr has to be positive, not {recipe.lr}"
    for name in ("smoothing", "ema"):
        if not 0 <= getattr(recipe, name) < 1:
            yield f"{name} has to be in [0, 1), not {getattr(recipe, name)}"
    if not 0 < recipe.layer_decay <= 1:
        yield f"layer_decay has to be in (0, 1], not {recipe.layer_decay}"
    if not 0 <= recipe.dropout < 1:
        yield f"dropout has to be in [0, 1), not {recipe.dropout}"
    if recipe.alpha <= 0:
        yield f"alpha has to be more than 0, not {recipe.alpha}"
    if recipe.schedule == "plateau" and not 0 < recipe.plateau_factor < 1:
        yield f"plateau_factor has to be in (0, 1), not {recipe.plateau_factor}"
    if recipe.method == "lora" and not recipe.targets:
        yield "targets is empty: name the layers to adapt, for example qkv, proj"
    if recipe.schedule == "plateau" and recipe.warmup:
        yield "warmup does not go with schedule 'plateau': set warmup = 0"
    if recipe.schedule == "plateau" and recipe.choose_on == "none":
        yield 'schedule \'plateau\' follows the validation rows: set choose_on = "inner" or "fold"'
    if recipe.schedule == "cosine" and recipe.warmup >= recipe.epochs:
        yield f"warmup ({recipe.warmup} epochs) has to be shorter than epochs ({recipe.epochs})"
    try:
        read_steps(recipe.augment)
    except InvalidSettings as error:
        yield from error.faults


def _faults_of_words(recipe: Recipe) -> Iterable[str]:
    for name, value, allowed in [
        ("method", recipe.method, METHODS),
        ("optimizer", recipe.optimizer, OPTIMIZERS),
        ("schedule", recipe.schedule, SCHEDULES),
        ("monitor", recipe.monitor, MONITORS),
        ("choose_on", recipe.choose_on, CHOOSE_ON),
        ("decay_on", recipe.decay_on, DECAY_ON),
        ("balance", recipe.balance, BALANCE),
        ("loss", recipe.loss, LOSSES),
        ("labels", recipe.labels, LABELS),
        ("symmetries", recipe.symmetries, (1, 8)),
        ("precision", recipe.precision, PRECISIONS),
        ("eval_precision", recipe.eval_precision, ("", *PRECISIONS)),
        ("normalize", recipe.normalize, NORMALIZE),
    ]:
        if value not in allowed:
            yield not_one_of(name, value, allowed)

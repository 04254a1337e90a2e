"""Which encoders to fine-tune, and why: a rule over a probe's results, a measured cost, an editable file.

The rule, for every encoder of the probe's results (its best feature set by the criterion on the folds), on
the metric's out-of-fold value with its interval [low, high] and the paired difference to the best encoder:

    weak        low < target
    behind      the difference to the best encoder excludes 0 (p adjusted by Holm < alpha) and is at least
                min_gap
    gain        recovery * (1 - value): the share of the missing metric that training is expected to recover.
                An assumption, not a measurement; replace it by your own experience
    worth it    gain / hours >= gain_per_hour
    affordable  hours <= max_hours
    hopeless    high < best encoder's low - keep_within: too far behind to be worth training (keep_within 1:
                never)

    train = (weak or behind) and worth it and affordable and not hopeless

Hours come from steps that were timed on the device that is asked for, and from nothing else: `cost` says
which, and without them an encoder has none.

What is proposed also runs: where a LoRA recipe finds no attention block (a CNN), the recipe is `full`; where
it finds blocks and none of its targets in them, the encoder is not trained, and the reason says what to name.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ..cache.identity import safe_name
from ..errors import InvalidRequest, PatchbankError
from ..probe.config import parse_features
from ..probe.results.files import ProbeResult
from ..probe.results.schema import PAIRED, Comparison, Results, Role
from ..settings import Settings, near, read_table, write_toml
from .cost import Cost, measure_cost

OF_NUMBERS = ("r2", "pearson")  # metrics
FORMAT = "patchbank-finetune-plan"
FORMAT_VERSION = 1
REMARK = "Read by `patchbank finetune run --plan`. Set train = true or false; recipe: a name or a file."


class Rule(Settings):
    """Thresholds of the rule; metric: one with paired differences, of numbers "r2" or "pearson"."""

    metric: Literal["auroc", "balanced_accuracy", "r2", "pearson"] = "auroc"
    target: float = 0.9
    alpha: float = 0.05
    min_gap: float = 0.01
    recovery: float = 0.3
    gain_per_hour: float = 0.0
    max_hours: float = 48.0
    keep_within: float = 1.0

    def faults(self) -> Iterable[str]:
        for name in ("target", "alpha", "min_gap", "recovery", "keep_within"):
            if not 0 <= getattr(self, name) <= 1:
                yield f"{name} has to be in [0, 1], not {getattr(self, name)}"
        if not self.gain_per_hour >= 0:
            yield f"gain_per_hour has to be 0 or more, not {self.gain_per_hour}"
        if not self.max_hours > 0:
            yield f"max_hours has to be more than 0, not {self.max_hours}"


class Entry(Settings):
    """One encoder of a plan, with one recipe. `train` decides; all after `changes` says why, and is not used.

    encoder : as `extract.registry.load_card` takes it; system : of a study
    changes : values of the recipe that are other than in it
    """

    encoder: str
    train: bool
    recipe: str = "lora"
    system: str = ""
    changes: Mapping[str, Any] = {}
    why: str = ""
    features: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    gap: float | None = None
    hours: float | None = None
    cost: str = ""


class FinetunePlan(Settings):
    """train, tests : paths of manifests; folds : as in the probe; entries : the best encoder first."""

    train: str
    tests: tuple[str, ...] = ()
    folds: str | int = "balanced"
    positive: str = ""
    rule: Rule = Rule()
    entries: tuple[Entry, ...] = Field(default=(), alias="encoders")

    @property
    def chosen(self) -> list[Entry]:
        """The encoders that will be trained."""
        return [entry for entry in self.entries if entry.train]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Heads and rows of what is planned: an entry a row, its recipe, hours, reasons, what was timed."""
        heads = ["encoder", "recipe", "train", "hours", "why", "measured"]
        rows = [
            [
                one.encoder,
                ", ".join([one.recipe, *(f"{name}={value}" for name, value in one.changes.items())]),
                "yes" if one.train else "no",
                "-" if one.hours is None else f"{one.hours:.2f}",
                one.why,
                one.cost,
            ]
            for one in self.entries
        ]
        if any(one.system for one in self.entries):
            heads.insert(0, "system")
            rows = [[one.system, *row] for one, row in zip(self.entries, rows, strict=True)]
        return heads, rows

    def save(self, file: str | Path) -> Path:
        """Write the plan as TOML; change `train` and `recipe` by hand as you like."""
        head = {"format": FORMAT, "format_version": FORMAT_VERSION}
        document = self.model_dump(by_alias=True)
        for entry in document["encoders"]:  # of a study only
            entry |= {"changes": dict(entry["changes"])}
            for name in ("system", "changes"):
                if not entry[name]:
                    del entry[name]
        return write_toml(file, head | document, remark=REMARK)


def load_plan(file: str | Path) -> FinetunePlan:
    """Read a plan. Raises InvalidRequest: no plan, a newer one, unknown keys (with the near name)."""
    document = read_table(file, "the plan")
    if document.pop("format", None) != FORMAT or document.pop("format_version", None) != FORMAT_VERSION:
        raise InvalidRequest(f"{file} is not a plan of `patchbank finetune plan`, version {FORMAT_VERSION}")
    return FinetunePlan.read(document, where=str(file))


@dataclass(frozen=True)
class Candidate:
    """A way to train an encoder: recipe, values of it that are changed, and the system of a study.

    encoder : id, as the results have it; spec : what `load_card` takes, "" for the id
    """

    encoder: str
    recipe: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""
    spec: str = ""


def make_plan(
    results: str | Path | ProbeResult,
    *,
    train: str | Path,
    tests: Sequence[str | Path] = (),
    recipe: str | Sequence[str] = "lora",
    encoders: Mapping[str, str] | None = None,
    candidates: Sequence[Candidate] = (),
    rule: Rule | None = None,
    costs: Mapping[str, Cost] | None = None,
    measure: bool = True,
    device: str = "auto",
    steps: int = 3,
) -> FinetunePlan:
    """Apply the rule to the results of `run_probe`.

    train, tests : manifests that the plan will train and score on (their paths go into the plan)
    recipe : one or several, of encoders without a candidate; encoders : id -> what `load_card` takes, where
        the id is not enough (a card file)
    candidates : how others would be trained, as the systems of a study have it; an encoder with several has
        as many entries
    rule : None: `Rule()`, of numbers with the metric R2
    costs : what is known of an encoder's cost by id; measure : time `steps` steps of the others here, with
        random weights, which cost the same time. Without a cost the rule counts an encoder as affordable.
    Raises InvalidRequest where the results have no intervals or no out-of-fold scores of the metric, or lack
    one of `encoders`.
    """
    found = results if isinstance(results, ProbeResult) else ProbeResult.load(results)
    results_of = found.results
    rule = _rule_of(results_of, rule)
    best_set = _best_set_of_each_encoder(results_of)
    values = _values(results_of, best_set, rule)
    if unknown := sorted(set(encoders or {}) - values.keys()):
        raise InvalidRequest(
            f"the results have no encoder {unknown[0]!r}{near(unknown[0], values)} "
            f"(there are {', '.join(values)})"
        )
    cost_of = partial(_cost, dict(costs or {}), {}, measure=measure, device=device, steps=steps)
    recipes, entries = [recipe] if isinstance(recipe, str) else list(recipe), []
    for encoder, judged in _judges(results_of, best_set, values, rule).items():
        spec = (encoders or {}).get(encoder, "")
        own = [one for one in candidates if one.encoder == encoder]
        for candidate, refusal in _fitting(own or [Candidate(encoder, one, spec=spec) for one in recipes]):
            entries.append(judged(candidate, cost=cost_of(candidate), refusal=refusal))
    return FinetunePlan(
        train=str(Path(train).absolute()),
        tests=tuple(str(Path(one).absolute()) for one in tests),
        folds=results_of.config.folds,
        positive=results_of.config.positive or "",
        rule=rule,
        encoders=tuple(entries),
    )


def _rule_of(results: Results, rule: Rule | None) -> Rule:
    """The rule, or that of what the results score. Raises InvalidRequest for a metric of other labels."""
    rule = rule or Rule(metric="r2" if results.targets else "auroc")
    if (rule.metric in OF_NUMBERS) != bool(results.targets):
        wanted = "r2 or pearson" if results.targets else "auroc or balanced_accuracy"
        raise InvalidRequest(f"the metric is {rule.metric}, and the results have {wanted}: --metric {wanted}")
    return rule


def _judges(
    results: Results,
    best_set: Mapping[str, str],
    values: Mapping[str, tuple[float, float, float]],
    rule: Rule,
) -> dict[str, Callable[..., Entry]]:
    """`_judge` of every encoder, the best first; what it still takes is the candidate's."""
    order = sorted(values, key=lambda encoder: -values[encoder][0])
    trained = results.train.n
    return {
        encoder: partial(
            _judge,
            features=best_set[encoder],
            value=values[encoder],
            best=(order[0], values[order[0]]),
            gap=_gap(results, best_set[order[0]], best_set[encoder], rule),
            rows=(trained, sum(one.n for one in results.data) - trained, results.folds.n_splits),
            rule=rule,
        )
        for encoder in order
    }


def _fitting(candidates: Sequence[Candidate]) -> list[tuple[Candidate, str]]:
    """Each candidate with a recipe that can train it (see `fitting_recipe`; a file by its whole path), and
    why it is not the one that was asked for; two that both fall back on `full` once.
    """
    found: dict[str, tuple[Candidate, str]] = {}
    for one in candidates:
        spec, recipe = (
            str(Path(name).absolute()) if name.endswith(".toml") else name
            for name in (one.spec or one.encoder, one.recipe)
        )
        fitting, refusal = fitting_recipe(spec, recipe, **one.changes)
        fitted = replace(one, spec=spec, recipe=fitting)
        found.setdefault(repr(fitted), (fitted, refusal))
    return list(found.values())


def _values(
    results: Results, best_set: Mapping[str, str], rule: Rule
) -> dict[str, tuple[float, float, float]]:
    """Encoder -> the metric of its best feature set out of fold, with its interval. Raises InvalidRequest."""
    records = {one.features: one for one in results.whole(roles=(Role.OOF,))}
    values = {}
    for encoder, features in best_set.items():
        cell: Any = tuple(records[features].estimate(rule.metric)) if features in records else (None,)
        if None in cell:
            raise InvalidRequest(
                f"the results have no interval of the out-of-fold {rule.metric} of {features}: "
                "run the probe with --bootstrap 2000"
            )
        values[encoder] = cell
    if not values:
        raise InvalidRequest("the results have no feature set of a single encoder")
    return values


def _cost(
    known: Mapping[str, Cost],
    measured: dict[tuple[str, str, str], Cost],
    candidate: Candidate,
    *,
    measure: bool,
    device: str,
    steps: int,
) -> Cost | None:
    """What is known of the encoder's cost, else what was measured with this recipe, once each."""
    if candidate.encoder in known or not measure:
        return known.get(candidate.encoder)
    changes = {name: value for name, value in candidate.changes.items() if name not in ("name", "remark")}
    key = (candidate.spec, candidate.recipe, repr(sorted(changes.items())))
    if key not in measured:
        measured[key] = measure_cost(
            candidate.spec, recipe=candidate.recipe, device=device, steps=steps, **changes
        )
    return measured[key]


def names_of_recipes(trainings: Sequence[tuple[str, str, str]]) -> list[str]:
    """A name for the recipe of each (encoder, recipe, system) whose folder another one would have as well; ""
    for the others.
    """
    folders = [(encoder, Path(recipe).stem) for encoder, recipe, _ in trainings]
    return [
        f"{folder[1]}-{safe_name(system)}" if folders.count(folder) > 1 and system else ""
        for folder, (*_, system) in zip(folders, trainings, strict=True)
    ]


def fitting_recipe(encoder: str, recipe: str, **changes: Any) -> tuple[str, str]:
    """(the recipe that can train this encoder, why the one that was asked for cannot, or "").

    Decided from the architecture alone, built without memory or weights. An encoder that cannot be built
    here, or is a Python function, is left to the run.
    """
    import torch

    from ..extract.models.build import build_network
    from .lora import attention_blocks, chosen_targets, target_layers
    from .model import base_card
    from .recipe import load_recipe

    try:
        chosen = load_recipe(recipe, encoder=encoder, **changes)
        card = base_card(encoder, chosen)
        if chosen.method != "lora" or card.kind == "python":
            return recipe, ""
        with torch.device("meta"):
            network: Any = build_network(card, None)
    except PatchbankError:
        return recipe, ""
    model = getattr(network, "model", network)
    try:
        targets = chosen_targets(model, chosen, card.lora.targets)
        target_layers(model, targets, suffix_match=chosen.suffix_match, last_blocks=chosen.last_blocks)
    except InvalidRequest as error:
        if not attention_blocks(model):
            return "full", "no attention blocks for LoRA to adapt, so all of it is trained"
        return recipe, f"not trainable with the recipe {recipe}: {error}"
    return recipe, ""


def _judge(
    candidate: Candidate,
    *,
    features: str,
    value: tuple[float, float, float],
    best: tuple[str, tuple[float, float, float]],
    gap: Comparison | None,
    cost: Cost | None,
    rows: tuple[int, int, int],
    refusal: str,
    rule: Rule,
) -> Entry:
    """The rule of the module's text for one encoder, with the sentence that says which part decided."""
    v, low, high = value
    hours = cost.hours(*rows) if cost is not None and cost.train_rate == cost.train_rate else None
    weak = low < rule.target
    behind = gap is not None and (gap.p_holm or 0) < rule.alpha and (gap.difference or 0) >= rule.min_gap
    gain = rule.recovery * (1 - v)
    worth = hours is None or gain >= rule.gain_per_hour * hours
    affordable = hours is None or hours <= rule.max_hours
    hopeless = high < best[1][1] - rule.keep_within
    runs = candidate.recipe == "full" or not refusal
    train = (weak or behind) and worth and affordable and not hopeless and runs
    reasons = [
        f"{rule.metric} {v:.3f} [{low:.3f}, {high:.3f}]: lower bound "
        f"{'below' if weak else 'at or above'} {rule.target:g}"
    ]
    if gap is not None:
        reasons.append(
            f"{gap.difference:.3f} [{gap.low:.3f}, {gap.high:.3f}] behind {best[0]}, "
            f"adjusted p {gap.p_holm:.2g}"
            + ("" if behind else f": not significant or below {rule.min_gap:g}")
        )
    if hours is not None:
        text = f"expected gain {gain:.3f} for {hours:.2f} h on {cost.device}"  # pyright: ignore[reportOptionalMemberAccess]
        text += "" if worth else f", less than {rule.gain_per_hour:g} an hour"
        text += "" if affordable else f", more than {rule.max_hours:g} h"
        reasons.append(text)
    if hopeless:
        reasons.append(f"upper bound more than {rule.keep_within:g} below {best[0]}'s lower bound")
    if refusal:
        reasons.append(refusal)
    return Entry(
        encoder=candidate.spec or candidate.encoder,
        train=train,
        recipe=candidate.recipe,
        system=candidate.system,
        changes=candidate.changes,
        why="; ".join(reasons),
        features=features,
        value=round(v, 4),
        low=round(low, 4),
        high=round(high, 4),
        gap=None if gap is None else round(gap.difference or 0.0, 4),
        hours=None if hours is None else round(hours, 3),
        cost="nothing was measured" if cost is None else str(cost),
    )


def _best_set_of_each_encoder(results: Results) -> dict[str, str]:
    """Encoder -> its feature set with the highest criterion; sets of several encoders are left out."""
    best: dict[str, tuple[float, str]] = {}
    for model in results.models:
        encoders = {source.encoder for source in parse_features(model.features).sources}
        if len(encoders) == 1:
            (encoder,) = encoders
            best[encoder] = max(best.get(encoder, (-float("inf"), "")), (model.criterion, model.features))
    return {encoder: features for encoder, (_, features) in best.items()}


def _gap(results: Results, best: str, other: str, rule: Rule) -> Comparison | None:
    """How far `other` is behind `best` out of fold: paired over groups, DeLong where there is none."""
    found = [
        one
        for one in results.comparisons_of(other, roles=(Role.OOF,))
        if one.a == best and one.metric == rule.metric and None not in (one.difference, one.p_holm, one.low)
    ]
    return min(found, key=lambda one: one.test != PAIRED, default=None)

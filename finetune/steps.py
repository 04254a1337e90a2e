"""The plan of fine-tuning, and each training, as steps of a study."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from ..cache.identity import safe_name
from ..datasets.steps import Sets
from ..errors import (
    EncoderError,
    InvalidRequest,
    MissingDependency,
    UnknownEncoder,
    UntrustedCode,
    WeightsNotHere,
)
from ..extract.registry import load_card
from ..extract.weights import locate
from ..probe.results.files import ProbeResult, complete_for
from ..probe.results.merge import merge_systems
from ..steps import Places, State, Step, contents, digest
from .plan import Candidate, load_plan, make_plan, names_of_recipes
from .recipe import Recipe, load_recipe

MODES = ("none", "plan", "all")


@dataclass(frozen=True, kw_only=True)
class Training:
    """One system that trains its encoder.

    encoder : as the study names it; card : the same as `load_card` takes it
    recipe : of `load_recipe`; folds : a name, a file or a number
    options : of `run_finetune`, the study's and the system's
    name : of the recipe in the folder's name, where several systems would share one; "": the recipe's own
    """

    system: str
    encoder: str
    card: str
    recipe: str
    folds: str | int
    options: Mapping[str, Any]
    name: str = ""


def in_folders_of_their_own(trainings: Sequence[Training]) -> list[Training]:
    """The same, with names for the recipes of those that would share a folder."""
    names = names_of_recipes([(one.encoder, one.recipe, one.system) for one in trainings])
    return [replace(one, name=name) for one, name in zip(trainings, names, strict=True)]


def plan_file(where: Places) -> Path:
    """The plan of the study, which may be edited."""
    return where.out / "plan.toml"


def plan_plan(
    probes: Sequence[Step],
    trainings: Sequence[Training],
    sets: Sets,
    rows: str,
    where: Places,
    state: State,
) -> Step:
    """Making the plan from the probes' results, once: an edited plan is followed, not overwritten.

    trainings : the study's systems, each of which gets an entry with its own recipe
    """
    file = plan_file(where)
    step = Step(kind="plan", title=str(file))
    step.request = digest(rows, {step.title: step.request for step in probes if step.finished})
    if file.exists():
        step.state = "cached"
        complete = not any(step.state == "to do" for step in probes)
        if complete and state.get("plan", "digest") != step.request:
            step.why = "made from other results than the current ones; delete it to have it made again"
        return step

    def plan() -> None:
        loaded = [ProbeResult.load(step.folder) for step in probes if step.finished and step.folder]
        if not loaded:
            raise InvalidRequest("the plan needs the result of at least one probe")
        merged = merge_systems({result.chosen: result for result in loaded})
        tests = [path for name, path in sets.paths.items() if name != sets.train_name]
        train = sets.paths[sets.train_name]
        candidates = _candidates(trainings, where)
        make_plan(merged, train=train, tests=tests, candidates=candidates, device=where.device).save(file)
        state.remember("plan", "digest", step.request)

    step.action = plan
    return step


def _candidates(trainings: Sequence[Training], where: Places) -> list[Candidate]:
    """The systems whose encoder is known here, by its card's id, with what each changes of its recipe."""
    candidates = []
    for one in trainings:
        changes = {k: v for k, v in one.options.items() if k in Recipe.model_fields}
        with suppress(EncoderError, UnknownEncoder, MissingDependency, UntrustedCode):
            encoder = load_card(one.card, trust_code=where.trust_code).id
            candidates.append(Candidate(encoder, one.recipe, changes, one.system, one.card))
    return candidates


def plan_training(one: Training, sets: Sets, rows: str, where: Places, state: State) -> Step:
    """The step of one system; its result is in a folder of OUT/finetune that the state names.

    Blocked : weights or packages are missing, `where.finetune` is "none", or the plan does not choose it.
    """
    step = Step(kind="finetune", title=one.system, systems=(one.system,))
    known = state.get("finetune", one.system, {})
    step.seconds = known.get("seconds")
    step.request = _request(one, rows, where)
    out = where.out / "finetune"
    folder = out / Path(known.get("folder", "none")).name
    if complete_for(folder, step.request):
        step.state, step.folder = "cached", folder
        return step
    step.why = _why_not_trained(one, where)
    if step.why:
        step.state = "blocked"
        return step

    def finetune() -> None:
        from .run import run_finetune  # needs torch

        started = perf_counter()
        result = run_finetune(
            train=sets.train,
            tests=sets.tests,
            encoder=one.card,
            recipe=one.recipe,
            out=out,
            folds=one.folds,
            device=where.device,
            checkpoint=where.checkpoint(one.encoder),
            weights_dir=where.weights_dir,
            trust_code=where.trust_code,
            remember=where.bank,
            progress=where.progress,
            **({"name": one.name} if one.name else {}),
            **one.options,
        )
        step.folder = out / safe_name(result.chosen.rsplit("/", 2)[0])
        result.save(step.folder, request=step.request)
        values = {"folder": step.folder.name, "seconds": perf_counter() - started}
        state.remember("finetune", one.system, values)

    step.action = finetune
    return step


def _request(one: Training, rows: str, where: Places) -> str:
    """Of recipe, card, file of weights and rows; card and recipe by what is in them."""
    parts: list[Any] = [one.encoder, one.recipe, one.options, one.folds, contents({"folds": one.folds})]
    file = where.checkpoint(one.encoder)
    if file is not None and file.exists():
        parts.append([file.stat().st_size, file.stat().st_mtime_ns])
    with suppress(EncoderError, UnknownEncoder, MissingDependency, InvalidRequest):
        parts.append(load_recipe(one.recipe, encoder=one.card).digest)
        card = load_card(one.card, trust_code=where.trust_code)
        parts.append([card.id, card.model, dict(card.arguments), repr(card.transform)])
    return digest(rows, *parts)


def _why_not_trained(one: Training, where: Places) -> str:
    """Why it cannot be trained now; "" if it can."""
    try:
        if not load_recipe(one.recipe, encoder=one.card).random_weights:
            card = load_card(one.card, trust_code=where.trust_code)
            checkpoint = where.checkpoint(one.encoder)
            locate(card, checkpoint=checkpoint, weights_dir=where.weights_dir, download=False)
    except WeightsNotHere:
        pass  # the training downloads them
    except (EncoderError, UnknownEncoder, MissingDependency, UntrustedCode) as error:
        return str(error)
    if where.finetune == "none":
        return "not trained: it trains the network itself, one model a fold; add --finetune all (or plan)"
    if where.finetune == "plan" and plan_file(where).exists():
        return _why_not_planned(one, where)
    return ""


def _why_not_planned(one: Training, where: Places) -> str:
    plan = load_plan(plan_file(where))
    try:
        encoder = load_card(one.card, trust_code=where.trust_code).id
    except UnknownEncoder as error:
        return str(error)
    names = {encoder, one.card, str(Path(one.card).absolute())}  # a card file is planned by its path
    entries = [entry for entry in plan.entries if entry.encoder in names]
    own = [entry for entry in entries if entry.system == one.system]
    entry = next(iter(own or [entry for entry in entries if not entry.system]), None)
    if entry is None:
        return "not trained: the plan has no probe of this encoder; add --finetune all to train it"
    if not entry.train:
        return f"not trained: the plan excludes it ({entry.why}); set train = true in plan.toml to train it"
    return ""

"""Probing as steps of a study: a probe runs again when its settings, stores or rows have changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from ..cache.identity import safe_name
from ..datasets.steps import Sets
from ..files import sha256
from ..steps import Places, State, Step, contents, digest
from .config import RobustnessConfig
from .results.files import ProbeResult, complete_for
from .results.robustness import FILE
from .robustness import run_robustness
from .run import run_probe


@dataclass(frozen=True, kw_only=True)
class Probing:
    """One probed system.

    settings : of `run_probe`, precision and dtype of the stores included
    stores : names of those that it may choose from; None: not known yet, the weights are still to be
        downloaded
    features : the feature sets that it may choose from
    """

    system: str
    settings: Mapping[str, Any]
    stores: Sequence[str] | None
    features: Sequence[str] = ()


def plan_probe(probing: Probing, sets: Sets, rows: str, where: Places, state: State) -> Step:
    """The step of one system; its result is in OUT/probe/NAME. rows : digest of the rows, `Sets.digest`."""
    step = Step(kind="probe", title=probing.system, systems=(probing.system,))
    step.seconds = state.get("probe", probing.system, {}).get("seconds")
    if probing.stores is None:
        return step
    folder = step.folder = where.out / "probe" / safe_name(probing.system)
    joined = [text for text in probing.features if " + " in text]
    # stated where it is not given: earlier results of such a request had other inner folds
    asked = {"inner_folds": None, **probing.settings}
    step.request = digest(rows, asked, contents(probing.settings), list(probing.stores), *joined)
    if complete_for(folder, step.request):
        step.state = "cached"
        return step

    def probe() -> None:
        started = perf_counter()
        result = run_probe(
            train=sets.train,
            tests=sets.tests,
            bank=where.bank,
            features=probing.features,
            jobs=where.jobs,
            memory=where.memory,
            progress=where.progress,
            **probing.settings,
        )
        result.save(folder, request=step.request)
        state.remember("probe", probing.system, {"seconds": perf_counter() - started})

    step.action = probe
    return step


def plan_robustness(
    config: RobustnessConfig, probes: Sequence[Probing], sets: Sets, rows: str, where: Places, state: State
) -> Step:
    """The step that measures the embeddings of probed systems over the training rows: OUT/robustness.json.

    rows : digest of the rows, `Sets.digest`
    """
    step = Step(kind="robustness", title="of the embeddings to domains")
    step.seconds = state.get("robustness", "train", {}).get("seconds")
    if any(probe.stores is None for probe in probes):  # weights are still to be downloaded
        return step
    features = list(dict.fromkeys(text for one in probes for text in one.features))
    as_stored = {name: {probing.settings.get(name) for probing in probes} for name in ("precision", "dtype")}
    stored: dict[str, Any] = {name: values.pop() for name, values in as_stored.items() if len(values) == 1}
    asked = config.model_dump(exclude=set() if config.sample else {"sample"})  # as before it had one
    step.request = digest(rows, asked, features, stored)
    file = where.out / FILE
    if state.get("robustness", "train", {}).get("request") == step.request and file.is_file():
        step.state = "cached"
        return step

    def measure() -> None:
        started = perf_counter()
        state.forget("robustness", "train")
        settings: dict[str, Any] = config.model_dump()
        result = run_robustness(
            sets.train, bank=where.bank, features=features, memory=where.memory, **settings, **stored
        )
        result.save(where.out)
        seconds = perf_counter() - started
        state.remember("robustness", "train", {"request": step.request, "seconds": seconds})

    step.action = measure
    return step


def plan_ensemble(
    system: str, members: Mapping[str, Step], weights: str, rows: str, where: Places, state: State
) -> Step:
    """The step of an ensemble over systems; its result is in OUT/ensemble/NAME.

    members : system -> the step that gives its result. Blocked where one has none.
    """
    step = Step(kind="ensemble", title=system, systems=(system,))
    step.seconds = state.get("ensemble", system, {}).get("seconds")
    lacking = [f"{name} ({one.why})" for name, one in members.items() if one.state in ("blocked", "failed")]
    if lacking:
        step.state, step.why = "blocked", f"members have no results: {', '.join(lacking)}"
        return step
    if not all(member.finished for member in members.values()):
        return step
    folders = {name: one.folder for name, one in members.items() if one.folder is not None}
    folder = step.folder = where.out / "ensemble" / safe_name(system)
    versions = {name: sha256(one / "results.json") for name, one in folders.items()}
    step.request = digest(rows, weights, versions)
    if complete_for(folder, step.request):
        step.state = "cached"
        return step

    def ensemble() -> None:
        from .ensemble import ensemble_of

        started = perf_counter()
        results = {name: ProbeResult.load(one) for name, one in folders.items()}
        ensemble_of(results, name=system, weights=weights).save(folder, request=step.request)
        state.remember("ensemble", system, {"seconds": perf_counter() - started})

    step.action = ensemble
    return step

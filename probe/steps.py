"""Probing as steps of a study: a probe runs again when its settings, stores or rows have changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from ..cache.identity import safe_name
from ..datasets.steps import Sets
from ..steps import Places, State, Step, contents, digest
from .results.files import complete_for
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


def plan_probe(one: Probing, sets: Sets, rows: str, where: Places, state: State) -> Step:
    """The step of one system; its result is in OUT/probe/NAME. rows : digest of the rows, `Sets.digest`."""
    step = Step(kind="probe", title=one.system, systems=(one.system,))
    step.seconds = state.get("probe", one.system, {}).get("seconds")
    if one.stores is None:
        return step
    folder = step.folder = where.out / "probe" / safe_name(one.system)
    joined = [text for text in one.features if " + " in text]
    step.request = digest(rows, one.settings, contents(one.settings), list(one.stores), *joined)
    if complete_for(folder, step.request):
        step.state = "cached"
        return step

    def probe() -> None:
        started = perf_counter()
        result = run_probe(
            train=sets.train,
            tests=sets.tests,
            bank=where.bank,
            features=one.features,
            jobs=where.jobs,
            progress=where.progress,
            **one.settings,
        )
        result.save(folder, request=step.request)
        state.remember("probe", one.system, {"seconds": perf_counter() - started})

    step.action = probe
    return step

"""Extraction as steps of a study: what the bank holds, what must be embedded, and what that takes."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ..cache.bank import Bank
from ..cache.store import Store
from ..datasets.steps import Sets
from ..errors import EncoderError, MissingDependency, UnknownEncoder, UntrustedCode, WeightsNotHere
from ..steps import Places, State, Step
from .registry import load_card
from .report import StoreReport
from .run import run_extract
from .tokens import parse_policy
from .views import parse_views


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """One encoder, precision and list of token policies, for the views of all systems that use them.

    encoder : as the study names it; card : the same as `load_card` takes it
    views : system -> the views that it may choose from
    tokens : () is the encoder's own
    options : of `ExtractOptions`, for all extractions of the study
    """

    encoder: str
    card: str
    views: Mapping[str, tuple[str, ...]]
    tokens: tuple[str, ...] = ()
    precision: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def all_views(self) -> list[str]:
        return list(dict.fromkeys(view for views in self.views.values() for view in views))

    def request(self, where: Places) -> dict[str, Any]:
        """Keywords of `run_extract`. A study file cannot grant itself trust: only the command can."""
        trusted = where.trust_code
        return {
            **self.options,
            "encoder": self.card,
            "bank": where.bank,
            "view": self.all_views,
            "tokens": list(self.tokens) or None,
            "precision": self.precision,
            "checkpoint": where.checkpoint(self.encoder),
            "weights_dir": where.weights_dir,
            "device": where.device,
            "trust_code": trusted,
            "remote_code": trusted and self.options.get("remote_code", False),
        }


@dataclass(kw_only=True)
class ExtractStep(Step):
    """stores : that it fills; None until they are known (weights are still to be downloaded)."""

    extraction: Extraction
    stores: list[StoreReport] | None = None

    def stores_of(self, system: str) -> list[StoreReport] | None:
        """What a system may choose from."""
        if self.stores is None:
            return None
        wanted = [view.name for view in parse_views(self.extraction.views[system])]
        return [store for store in self.stores if store.view in wanted]


def plan_extract(extraction: Extraction, sets: Sets, where: Places, state: State) -> ExtractStep:
    """The step of one extraction; loads no model, downloads and writes nothing.

    Cached : the bank holds every patch; also where another precision or weights that are not here made it.
    Blocked : no weights, no card, a missing package, or code that is not trusted.
    """
    manifests = list(sets.manifests.values())
    request = extraction.request(where)
    title = " ".join([extraction.encoder, *extraction.all_views])
    step = ExtractStep(kind="extract", title=title, systems=tuple(extraction.views), extraction=extraction)
    planned, problem = None, ""
    try:
        planned = run_extract(manifests, **request, dry_run=True)
    except (EncoderError, UnknownEncoder, MissingDependency, UntrustedCode) as error:
        problem = str(error)
        step.why = problem if isinstance(error, WeightsNotHere) else ""
    if planned is None or planned.planned:
        stores = _complete_stores(extraction, sets, where)
        if stores:  # made elsewhere: on a GPU in another precision, or with weights that are not here
            step.state, step.why, step.stores = "cached", "", stores
            step.cached = sum(len(manifest) for manifest in manifests)
            return step
    if planned is not None:
        step.stores = planned.stores
        step.cached, step.patches = planned.cached, planned.planned
        step.forwards, step.nbytes = planned.planned_forwards, planned.planned_bytes
        if not planned.planned:
            step.state = "cached"
            return step
    elif not step.why:
        step.state, step.why = "blocked", problem
        return step
    before = state.get("extract", extraction.encoder, {"seconds": 0.0, "forwards": 0})
    if before["forwards"]:
        step.seconds = step.forwards * before["seconds"] / before["forwards"]

    def extract() -> None:
        report = run_extract(manifests, **request, progress=where.progress)
        step.stores = report.stores
        spent = {
            "seconds": before["seconds"] + report.seconds["total"],
            "forwards": before["forwards"] + report.forwards,
            "device": ", ".join(dict.fromkeys(report.devices)),
        }
        state.remember("extract", extraction.encoder, spent)

    step.action = extract
    return step


def measure(step: ExtractStep, *, device: str) -> None:
    """Time a forward pass (random weights) where the step has work and no estimate of its time."""
    from .check import forward_seconds

    if step.state == "to do" and step.seconds is None:
        extraction = step.extraction
        with suppress(UntrustedCode):  # nobody's code runs for an estimate
            seconds = forward_seconds(extraction.card, device=device, precision=extraction.precision)
            step.seconds = step.forwards * seconds


def _complete_stores(extraction: Extraction, sets: Sets, where: Places) -> list[StoreReport]:
    """Stores of the bank that hold every patch under all views and token policies, and differ in these only;
    [] where there are none.
    """
    try:
        card = load_card(extraction.card, trust_code=where.trust_code)
    except (UnknownEncoder, EncoderError, MissingDependency, UntrustedCode):
        return []
    keys = [known for known in sets.content_hashes(where.bank) if known is not None]
    if len(keys) < len(sets.manifests):
        return []
    policies = [parse_policy(name).name for name in extraction.tokens or (card.tokens,)]
    wanted = {(view.name, policy) for view in parse_views(extraction.all_views) for policy in policies}
    groups: dict[str, dict[tuple[str, str], Store]] = {}
    for store in Bank(where.bank).stores():
        identity = store.identity
        key = (identity.view, identity.tokens)
        if (
            identity.encoder["id"] == card.id
            and key in wanted
            and extraction.precision in (None, identity.precision)
        ):
            rest = {k: v for k, v in identity.to_json().items() if k not in ("view", "tokens", "dim")}
            groups.setdefault(json.dumps(rest, sort_keys=True), {})[key] = store
    for group in groups.values():
        stores: Sequence[Store] = list(group.values())
        if set(group) == wanted and all(store.contains(known).all() for store in stores for known in keys):
            return [StoreReport.of(store.identity, str(store.path)) for store in stores]
    return []

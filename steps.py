"""Steps of a study: what there is to do, in which state it is, and what the folder of results remembers.

Each stage plans its own steps (datasets/steps.py, extract/steps.py, probe/steps.py, finetune/steps.py);
study.py puts them in order and runs them.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from .errors import EncoderError, InvalidRequest, MissingDependency, PatchbankError
from .files import sha256, write_text
from .version import __version__

STATE_FORMAT, STATE_VERSION = "patchbank-study", 1
KINDS = (
    "extract",
    "probe",
    "robustness",
    "plan",
    "finetune",
    "ensemble",
    "report",
)  # of steps that the state has entries of
SHOWN = ("kind", "title", "state", "why", "patches", "cached", "forwards", "nbytes", "seconds", "systems")


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a study finds and leaves things, and what it may use.

    data : folder with NAME.toml of every data set. bank : folder of the embeddings. out : of results
    checkpoints : encoder -> file of weights; weights_dir : folder of weights, for machines without a network
    finetune : "none", "plan" (the encoders that `finetune plan` chooses on the probes' results) or "all"
    jobs, memory : feature sets probed at once, and what features may take, see `probe.run.run_probe`
    trust_code : run the Python code that the study's encoder cards name; without it such encoders are blocked
    """

    data: Path
    bank: Path
    out: Path
    checkpoints: Mapping[str, Path] = field(default_factory=dict)
    weights_dir: Path | None = None
    device: str = "auto"
    finetune: str = "none"
    jobs: int | None = None
    memory: str | None = None
    trust_code: bool = False
    progress: bool = True

    def checkpoint(self, encoder: str) -> Path | None:
        """The file of an encoder's weights, if one was given; NAME@PIXELS has that of NAME."""
        return self.checkpoints.get(encoder) or self.checkpoints.get(encoder.rpartition("@")[0])


@dataclass(kw_only=True)
class Step:
    """One thing that a study does.

    kind : "data", "extract", "probe", "robustness", "plan", "finetune", "ensemble", "report"
    state : "cached" (nothing to do), "to do", "blocked" (`why` says what is missing); after a run also "done"
        and "failed"
    patches, cached : to embed, and embedded already; forwards : passes that it takes, nbytes : of disk
    seconds : estimated from what was measured, None where nothing was; after a run, what it took
    systems : names of the systems that need it
    request : digest of all that the result depends on; folder : of the result, where there is one
    action : does it; None where there is nothing to do
    """

    kind: str
    title: str
    state: Literal["cached", "to do", "blocked", "done", "failed"] = "to do"
    why: str = ""
    patches: int = 0
    cached: int = 0
    forwards: int = 0
    nbytes: int = 0
    seconds: float | None = None
    systems: tuple[str, ...] = ()
    request: str = ""
    folder: Path | None = None
    action: Callable[[], None] | None = field(default=None, repr=False)

    @property
    def finished(self) -> bool:
        """Its result exists."""
        return self.state in ("cached", "done")

    def run(self, say: Callable[[str], None]) -> None:
        """Do it, if there is something to do. An error of patchbank ends this step, not the study."""
        say(self.line())
        if self.action is None:
            return
        started = perf_counter()
        try:
            self.action()
        except PatchbankError as error:
            self.state = "blocked" if isinstance(error, EncoderError | MissingDependency) else "failed"
            self.why = "\n".join([str(error), *getattr(error, "__notes__", [])])
        else:
            self.state, self.seconds = "done", perf_counter() - started
        say(self.line())

    def to_json(self) -> dict[str, Any]:
        """Plain values, for programs."""
        return {name: getattr(self, name) for name in SHOWN}

    def line(self) -> str:
        """As the terminal shows it."""
        what = f"{self.state:8} {self.kind:9} {self.title}"
        if self.state == "blocked" or self.state == "failed":
            return f"{what}: {self.why}"
        about = []
        if self.patches or self.cached:
            about.append(f"{self.cached} cached")
        if self.patches:
            about.append(f"{self.patches} patches to embed")
        if self.forwards:
            about.append(f"{self.forwards} forward passes, {self.nbytes / 1e6:.0f} MB")
        if self.why:
            about.append(self.why)
        elif self.state == "to do" and self.kind == "extract" and self.seconds is None:
            about.append("time not known yet")
        elif self.seconds is not None:
            about.append(("about " if self.state == "to do" else "") + _clock(self.seconds))
        return what + (": " + ", ".join(about) if about else "")


@dataclass
class Outcome:
    """The steps of a study as they ended."""

    steps: list[Step]

    @property
    def blocked(self) -> list[Step]:
        """Steps that could not start, because something is missing."""
        return [step for step in self.steps if step.state == "blocked"]

    @property
    def failed(self) -> list[Step]:
        """The steps that ended with an error."""
        return [step for step in self.steps if step.state == "failed"]

    @property
    def idle(self) -> bool:
        """Nothing had to be done."""
        return not any(step.state in ("done", "failed") for step in self.steps)


class State:
    """OUT/state.json: what steps took, and what the plan and the report were made of.

    It does not say which results there are: each result names the request that it answers. Nothing is written
    before the first `remember` or `forget`.
    Raises InvalidRequest for a damaged file and for another format or version.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._entries = _read(file)

    def get(self, kind: str, name: str, default: Any = None) -> Any:
        return self._entries[kind].get(name, default)

    def forget(self, kind: str, name: str) -> None:
        """To be called before a step replaces what the entry is about, so that a kill leaves no wrong one."""
        if self._entries[kind].pop(name, None) is not None:
            self._save()

    def remember(self, kind: str, name: str, values: Any) -> None:
        self._entries[kind][name] = values
        self._save()

    def _save(self) -> None:
        write_text(self.file, json.dumps(self._entries, indent=1))


def digest(*parts: Any) -> str:
    """SHA-256 of what a result depends on, the version of patchbank included."""
    text = json.dumps([__version__, *parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def contents(settings: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the files that settings name: of their content, not of their names."""
    files = {key: Path(str(settings.get(key, ""))) for key in ("folds", "near_duplicates")}
    return {key: sha256(file) for key, file in files.items() if file.is_file()}


def _read(file: Path) -> dict[str, Any]:
    empty: dict[str, Any] = {"format": STATE_FORMAT, "version": STATE_VERSION, **{kind: {} for kind in KINDS}}
    if not file.exists():
        return empty
    try:
        state = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise InvalidRequest(
            f"{file} is damaged ({error}): delete it; results are then made again"
        ) from error
    if not isinstance(state, dict) or {k: state.get(k) for k in ("format", "version")} != {
        "format": STATE_FORMAT,
        "version": STATE_VERSION,
    }:
        raise InvalidRequest(
            f"{file} is not a state of {STATE_FORMAT}, version {STATE_VERSION}: choose another out"
        )
    return empty | state


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

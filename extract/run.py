"""`patchbank extract`: from manifests to embedding stores.

What happens, in order:
1. The weights of every encoder are found and their identity taken; the stores of all encoders, views and
   token policies are opened. Nothing that defines a vector is left out of a store's identity.
2. Patches are told apart by the hash of their pixels: those that every store has already are not decoded,
   the same picture twice is embedded once. If nothing is left, no model is loaded and torch not imported.
3. The rest runs through the engine (engine.py) and is published in blocks as it comes.
"""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..cache.bank import Bank
from ..cache.identity import Identity, safe_name
from ..datasets.hashes import record, resolve
from ..datasets.manifest import Manifest, load_manifest
from ..datasets.sources import open_source
from ..errors import EncoderError, ImageError, InvalidRequest, PatchbankError, StoreNotFound
from .cards import UNPINNED, Card, load_card, with_revision
from .engine import Lane, Outcome, Pipeline, Target, Work
from .tokens import parse_policy, vector_dim
from .views import View, parse_views
from .weights import Weights, locate

RESIZERS = {"pil": "pil", "device": "torch-antialias"}  # --resize -> what an identity says
BATCH_SIZE_CPU = 32
SMALLEST_UNIT, LARGEST_UNIT = 256, 8192  # patches that are leased and published together


@dataclass
class StoreReport:
    """One store of a run: its name, folder and identity, and how many rows the run added."""

    name: str
    path: str
    encoder: str
    view: str
    tokens: str
    precision: str
    dim: int
    weights: str


@dataclass
class ExtractReport:
    """What a run did.

    Attributes:
        patches: rows of the manifests.
        unique: different pictures among them, as far as known: unreadable ones count as different.
        cached: pictures that every store had already; they were not decoded.
        embedded: pictures that were embedded now.
        elsewhere: pictures that another run embedded meanwhile.
        failed: (patch id, message) of those that could not be read or stored.
        forwards: forward passes of single patches; forwards_avoided: those that the cache saved, against one
            for every row of the manifests.
        planned: pictures still to embed, with planned_forwards passes and planned_bytes of vectors; what a
            dry run is asked for. Rows never read before count as different.
        seconds: "total" by the clock; "load" (models); "decode", "compute", "write": busy, over all threads.
        images_per_second: embedded pictures by the time without loading models.
    """

    patches: int = 0
    unique: int = 0
    cached: int = 0
    embedded: int = 0
    elsewhere: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    forwards: int = 0
    forwards_avoided: int = 0
    planned: int = 0
    planned_forwards: int = 0
    planned_bytes: int = 0
    dry_run: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    images_per_second: float = 0.0
    batch_size: int = 0
    workers: int = 0
    devices: list[str] = field(default_factory=list)
    actors_lost: int = 0
    model_loaded: bool = False
    stores: list[StoreReport] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def summary(self) -> str:
        """The lines that the command prints at its end."""
        if self.dry_run:
            return (
                f"{self.patches} patches, {self.unique} different: {self.cached} cached, "
                f"{self.planned} to embed ({self.planned_forwards} forward passes, "
                f"{self.planned_bytes / 1e6:.1f} MB of vectors); nothing was done"
            )
        seconds = self.seconds
        total = seconds.get("total", 0.0)
        lines = [
            f"{self.patches} patches, {self.unique} different: {self.cached} cached, {self.embedded} embedded"
            + (f", {self.elsewhere} embedded meanwhile by another run" if self.elsewhere else "")
            + (f", {len(self.failed)} failed" if self.failed else "")
            + f"; {self.forwards} forward passes done, {self.forwards_avoided} avoided"
        ]
        if not self.model_loaded:
            lines.append(f"{total:.1f} s; everything was there, so no model was loaded")
            return "\n".join(lines)
        running = max(total - seconds["load"], 1e-9)
        share = {
            "decode": seconds["decode"] / (running * max(self.workers, 1)),
            "compute": seconds["compute"] / (running * max(len(self.devices), 1)),
            "write": seconds["write"] / running,
        }
        busy = ", ".join(f"{stage} {part:.0%}" for stage, part in share.items())
        lines.append(
            f"{total:.1f} s ({seconds['load']:.1f} s to load), {self.images_per_second:.1f} images/s on "
            f"{_counted(self.devices)} (batch {self.batch_size}, {self.workers} decoding threads); "
            f"busy of this time: {busy}"
        )
        return "\n".join(lines)


def run_extract(
    manifests: Manifest | str | Path | Sequence[Manifest | str | Path],
    *,
    encoder: str | Path | Card | Sequence[str | Path | Card],
    bank: str | Path,
    view: str | Sequence[str] = "full",
    tokens: str | Sequence[str] | None = None,
    device: str = "auto",
    precision: str | None = None,
    dtype: str = "float16",
    batch_size: int | None = None,
    workers: int | None = None,
    on_error: str = "fail",
    checkpoint: str | Path | None = None,
    weights_dir: str | Path | None = None,
    revision: str | None = None,
    resize: str = "pil",
    backend: str = "zarr",
    channels_last: bool | None = None,
    compile: bool = False,
    remote_code: bool = False,
    engine: str = "local",
    actors: int | None = None,
    shift: float = 0.0,
    dry_run: bool = False,
    progress: bool = True,
) -> ExtractReport:
    """Embed the patches of manifests that a bank does not hold yet.

    Args:
        manifests: loaded, or paths of their TOML files.
        encoder: ids, "timm:NAME", "hf:ORG/NAME", card files, or Cards; several share the decoding.
        bank: folder of the stores; made if it is not there.
        view: see views.py. tokens: see tokens.py; each encoder's own by default. Every combination of
            encoder, view and token policy is a store of its own; one forward pass fills all token policies.
        device: "auto", "cpu", "cuda" (all GPUs), "cuda:1", "cuda:0,cuda:2", "mps".
        precision: "auto", "fp32", "bf16", "fp16". dtype: of the stored vectors, "float16" or "float32".
        batch_size: found by itself on a GPU, 32 on a CPU; halved where memory runs out.
        workers: decoding threads.
        on_error: "fail" stops at the first patch that cannot be read, after publishing what was embedded;
            "skip" goes on and lists them in the report.
        checkpoint: a file of weights for the (one) encoder. weights_dir: folder of weights, no network.
        revision: commit of the hub repository of the (one) encoder.
        resize: "pil" on the CPU, or "device".
        channels_last: memory layout; by default for networks without tokens (CNNs).
        remote_code: allow code from the encoder's hub repository.
        engine: "local", or "ray" for a cluster (ray_engine.py) of so many `actors`.
        shift: fraction of the work to begin after; for runs that are known to go on at once.
        dry_run: only say what would be done: no store is made, no weights are downloaded, no model is loaded.

    Raises:
        InvalidRequest, UnknownEncoder, GatedEncoder, EncoderError, MissingDependency: before any work.
        ImageError: a patch cannot be read and on_error is "fail".
        VectorRefused, StoreError: an embedding cannot be stored; what was written before is kept.
        KeyboardInterrupt: after publishing what was computed; the note says how much that is.
    """
    started = time.perf_counter()
    for name, value, allowed in (
        ("on_error", on_error, ("fail", "skip")),
        ("resize", resize, tuple(RESIZERS)),
        ("engine", engine, ("local", "ray")),
    ):
        if value not in allowed:
            raise InvalidRequest(f"{name} is {value!r}; it has to be {' or '.join(allowed)}")
    for name, number in (("batch_size", batch_size), ("workers", workers)):
        if number is not None and number < 1:
            raise InvalidRequest(f"{name} is {number}; it has to be at least 1")
    listed = [manifests] if isinstance(manifests, Manifest | str | Path) else list(manifests)
    tables = [m if isinstance(m, Manifest) else load_manifest(m) for m in listed]
    specs = [encoder] if isinstance(encoder, str | Path | Card) else list(encoder)
    if not tables or not specs:
        raise InvalidRequest("at least one manifest and one encoder are needed")
    if len(specs) > 1 and (checkpoint or revision):
        raise InvalidRequest(
            "a checkpoint or a revision belongs to one encoder; run several encoders in several runs"
        )
    cards = [with_revision(load_card(spec), revision) for spec in specs]
    for card in cards:
        if card.admit is not None:
            for table in tables:
                card.admit(table)
    weights = [
        locate(card, checkpoint=checkpoint, weights_dir=weights_dir, download=not dry_run) for card in cards
    ]
    if engine == "ray" and device == "auto":
        from .ray_engine import device_of_cluster

        device = device_of_cluster()
    devices = _devices(device)
    lanes = _open_lanes(
        Bank(bank),
        cards,
        weights,
        views=parse_views(view),
        tokens=[tokens] if isinstance(tokens, str) else tokens,
        precisions=[_precision(card, devices, precision) for card in cards],
        dtype=dtype,
        resize=resize,
        backend=backend,
        pinned=revision is not None or checkpoint is not None,
        create=not dry_run,
    )
    index = Path(bank) / "hashes" if "://" not in str(bank) else None
    work, where, report = _plan(tables, lanes, index)
    for lane in lanes:
        for target in lane.targets:
            report.stores.append(_describe(target))
    passes = sum(len(lane.orientations) for lane in lanes)
    if dry_run:
        _count(report, work, lanes)
        report.seconds = {"total": time.perf_counter() - started}
        return report
    if not len(work):
        report.seconds = {"total": time.perf_counter() - started}
        report.forwards_avoided = report.patches * passes
        return report

    if engine == "ray":
        return _run_ray(
            tables,
            cards,
            bank,
            lanes,
            report,
            started,
            actors=actors,
            progress=progress,
            options={
                "view": view,
                "tokens": tokens,
                "device": device,
                "precision": precision,
                "dtype": dtype,
                "batch_size": batch_size,
                "workers": workers,
                "on_error": on_error,
                "checkpoint": checkpoint,
                "weights_dir": weights_dir,
                "resize": resize,
                "channels_last": channels_last,
                "compile": compile,
                "remote_code": remote_code,
            },
        )

    from .devices import batch_size_for, compute_threads, resolve_devices, single_threaded
    from .encoders import Encoder

    places = compute_threads(resolve_devices(devices))
    built = {
        place: [
            Encoder(
                card,
                found,
                device=place,
                precision=_precision(card, devices, precision),
                channels_last=channels_last,
                compile=compile,
                remote_code=remote_code,
            )
            for card, found in zip(cards, weights, strict=True)
        ]
        for place in dict.fromkeys(places)
    }
    encoders = [built[place] for place in places]
    report.seconds["load"] = time.perf_counter() - started
    report.model_loaded = True
    report.devices = [str(place) for place in places]
    report.workers = workers or _default_workers(places[0].type)
    from tqdm import tqdm

    bar = tqdm(total=len(work), unit="patch", disable=not progress, mininterval=1, desc=_title(cards))
    with bar, single_threaded(places):
        pipeline = Pipeline(
            work,
            lanes,
            encoders,
            batch_size=batch_size or batch_size_for(encoders, lanes, default_cpu=BATCH_SIZE_CPU),
            workers=report.workers,
            on_error=on_error,
            resize=resize,
            shift=shift,
            advance=bar.update,
        )
        try:
            pipeline.run()
        except (KeyboardInterrupt, PatchbankError) as error:
            error.add_note(
                f"{pipeline.outcome.embedded} patches were embedded and are kept; "
                "the same command goes on from there."
                + (" --on-error skip goes on past bad patches." if isinstance(error, ImageError) else "")
            )
            raise
        finally:
            if index is not None:
                _remember(tables, work, where, index)
    _finish(report, pipeline.outcome, started, passes)
    return report


def _run_ray(
    tables: Sequence[Manifest],
    cards: Sequence[Card],
    bank: str | Path,
    lanes: Sequence[Lane],
    report: ExtractReport,
    started: float,
    *,
    actors: int | None,
    progress: bool,
    options: dict[str, Any],
) -> ExtractReport:
    """The same through the actors of a cluster; the report adds theirs up."""
    from tqdm import tqdm

    from .ray_engine import run_actors

    stores = [target.store for lane in lanes for target in lane.targets]
    before = sum(store.published_rows for store in stores)

    def look() -> None:
        for store in stores:
            store.refresh()
        bar.update(sum(store.published_rows for store in stores) - before - bar.n)

    missing = (report.unique - report.cached) * len(stores)
    with tqdm(total=missing, unit="row", disable=not progress, mininterval=1, desc=_title(cards)) as bar:
        parts, report.actors_lost = run_actors(tables, cards, bank, actors=actors, options=options, look=look)
    report.model_loaded = True
    report.embedded = sum(part.embedded for part in parts)
    report.forwards = sum(part.forwards for part in parts)
    report.failed = sorted(
        {name: (name, message) for part in parts for name, message in part.failed}.values()
    )
    report.devices = [device for part in parts for device in part.devices]
    report.workers = sum(part.workers for part in parts)
    report.batch_size = min((part.batch_size for part in parts if part.batch_size), default=0)
    for stage in ("decode", "compute", "write"):
        report.seconds[stage] = sum(part.seconds.get(stage, 0.0) for part in parts)
    report.seconds["load"] = max((part.seconds.get("load", 0.0) for part in parts), default=0.0)
    passes = sum(len(lane.orientations) for lane in lanes)
    _close(report, started, passes)
    return report


def _counted(devices: Sequence[str]) -> str:
    """["cpu", "cpu"] -> "2 x cpu"."""
    counts = {name: devices.count(name) for name in dict.fromkeys(devices)}
    return ", ".join(f"{count} x {name}" if count > 1 else name for name, count in counts.items())


def _title(cards: Sequence[Card]) -> str:
    return cards[0].id if len(cards) == 1 else f"{len(cards)} encoders"


def _default_workers(device_type: str) -> int:
    """On a CPU the model needs the cores, and few threads decode fast enough; a GPU needs every core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 32) if device_type != "cpu" else max(1, cores // 4)


def _devices(device: str) -> str:
    """The request, "auto" answered with "cpu" where there can be no GPU, so that torch need not be asked."""
    if device != "auto":
        return device
    nvidia = any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))
    return "auto" if nvidia or os.name == "nt" or Path("/System/Library").exists() else "cpu"


def _precision(card: Card, devices: str, asked: str | None) -> str:
    from .precision import choose_precision

    kind = devices.partition(":")[0].partition(",")[0]
    if kind == "auto":
        from .devices import resolve_devices

        kind = resolve_devices(devices)[0].type
    return choose_precision(card, kind, asked)


def _open_lanes(
    bank: Bank,
    cards: Sequence[Card],
    weights: Sequence[Weights],
    *,
    views: Sequence[View],
    tokens: Sequence[str] | None,
    precisions: Sequence[str],
    dtype: str,
    resize: str,
    backend: str,
    pinned: bool,
    create: bool,
) -> list[Lane]:
    """One lane an encoder and crop, its stores open; none is created before all are known to make sense.

    create: make the stores that are not there; else their targets have no store.
    """
    lanes: list[Lane] = []
    wanted: list[tuple[Target, Identity, dict[str, Any]]] = []
    for number, (card, found, precision) in enumerate(zip(cards, weights, precisions, strict=True)):
        policies = [parse_policy(name) for name in dict.fromkeys(tokens or (card.tokens,))]
        for crop in dict.fromkeys(view.crop for view in views):
            lane = Lane(number, crop, card.transform, [])
            for view in views:
                for policy in policies if view.crop == crop else ():
                    identity = Identity(
                        encoder={"id": card.id, "weights": found.identity, **card.architecture},
                        preprocess=asdict(card.transform) | {"crop": "center", "resizer": RESIZERS[resize]},
                        view=view.name,
                        tokens=policy.name,
                        precision=precision,
                        dtype=dtype,
                        dim=vector_dim(card, policy),
                    )
                    target = Target(identity, view, policy, len(wanted))
                    lane.targets.append(target)
                    wanted.append((target, identity, _provenance(card, found)))
                    if not pinned and found.commit and card.revision == UNPINNED:
                        _same_commit(bank, identity)
            lanes.append(lane)
    doubles = [identity.name for _, identity, _ in wanted]
    if len(set(doubles)) < len(doubles):
        raise InvalidRequest("the same encoder is asked for twice")
    for target, identity, provenance in wanted:
        try:
            target.opened = bank.open_store(identity, create=create, provenance=provenance, backend=backend)
        except StoreNotFound:
            if create:
                raise
    return lanes


def _count(report: ExtractReport, work: Work, lanes: Sequence[Lane]) -> None:
    report.dry_run, report.planned = True, len(work)
    for lane in lanes:
        for target in lane.targets:
            identity = target.identity
            rows = int(work.todo[:, target.number].sum())
            report.planned_bytes += rows * identity.dim * np.dtype(identity.dtype).itemsize
        for orientation in lane.orientations:
            wanted = [t.number for t in lane.targets if orientation in t.view.orientations]
            report.planned_forwards += int(work.todo[:, wanted].any(axis=1).sum())


def _same_commit(bank: Bank, identity: Identity) -> None:
    """A card that is not pinned goes on with the commit that the bank holds, or stops."""
    ours = identity.to_json()
    for name in bank.names():
        if not name.startswith(safe_name(identity.encoder["id"]) + "."):
            continue
        theirs = bank.open_name(name).identity.to_json()
        old, new = str(theirs["encoder"].get("weights")), str(ours["encoder"]["weights"])
        same = theirs | {"encoder": theirs["encoder"] | {"weights": new}} == ours
        if same and old != new and old.startswith("hub:"):
            raise EncoderError(
                f"the bank holds {identity.encoder['id']} embeddings made with {old}, "
                f"and the weights here are {new}: "
                f"add --revision {old.rpartition('@')[2]} to go on with the old ones, "
                f"or --revision {new.rpartition('@')[2]} to start another store"
            )


def _provenance(card: Card, weights: Weights) -> dict[str, Any]:
    """What does not change the numbers, and is good to know later."""
    from importlib import metadata

    versions: dict[str, str] = {}
    for name in ("patchbank", "torch", "timm", "transformers", "pillow"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "licence": card.licence,
        "gated": card.gated,
        "hub": card.hub,
        "commit": weights.commit,
        "source": card.source,
        "versions": versions,
    }


def _describe(target: Target) -> StoreReport:
    identity = target.identity
    return StoreReport(
        name=identity.name,
        path="" if target.opened is None else str(target.opened.path),
        encoder=str(identity.encoder["id"]),
        view=identity.view,
        tokens=identity.tokens,
        precision=identity.precision,
        dim=identity.dim,
        weights=str(identity.encoder["weights"]),
    )


def _plan(
    tables: Sequence[Manifest], lanes: Sequence[Lane], index: Path | None
) -> tuple[Work, tuple[np.ndarray, np.ndarray], ExtractReport]:
    """Which rows are left to do: (work, (manifest, row) of each, report with the counts so far)."""
    resolved = [resolve(table, index) for table in tables]
    keys = np.concatenate([hashes for hashes, _ in resolved])
    known = np.concatenate([there for _, there in resolved])
    manifest = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    row = np.concatenate([np.arange(len(table)) for table in tables]) if tables else np.empty(0, int)
    first = ~known
    places = np.flatnonzero(known)
    _, firsts = np.unique(np.ascontiguousarray(keys[places]).view("V16").ravel(), return_index=True)
    first[places[firsts]] = True
    units: list[tuple[int, int, int]] = []  # manifest, first row, end
    for number, table in enumerate(tables):
        step = min(LARGEST_UNIT, max(SMALLEST_UNIT, len(table) // 8))
        units += [(number, start, min(start + step, len(table))) for start in range(0, len(table), step)]
    unit = np.repeat(np.arange(len(units)), [end - start for _, start, end in units])
    targets = [target for lane in lanes for target in lane.targets]
    todo = np.ones((len(keys), len(targets)), bool)
    unique_known = np.flatnonzero(first & known)
    for target in targets:
        if target.opened is not None:
            todo[unique_known, target.number] = ~target.opened.contains(keys[unique_known])
    chosen = np.flatnonzero(first & todo.any(axis=1))
    sources = [open_source(table) for table in tables]
    names = [table.table["patch_id"] for table in tables]
    manifest, row = manifest[chosen], row[chosen]
    work = Work(
        read=lambda i: sources[manifest[i]].read(int(row[i])),
        name=lambda i: str(names[manifest[i]].iat[row[i]]),
        keys=keys[chosen],
        known=known[chosen],
        todo=todo[chosen],
        unit=unit[chosen],
        unit_name=lambda u: _unit_name(tables, units[u]),
    )
    report = ExtractReport(
        patches=len(keys), unique=int(first.sum()), cached=len(unique_known) - int(known[chosen].sum())
    )
    return work, (manifest, row), report


def _unit_name(tables: Sequence[Manifest], unit: tuple[int, int, int]) -> str:
    """The same in every run over the same rows, whatever is cached already."""
    number, start, end = unit
    ids = "\n".join(tables[number].table["patch_id"].iloc[start:end])
    return hashlib.blake2b(ids.encode(), digest_size=12).hexdigest()


def _remember(
    tables: Sequence[Manifest], work: Work, where: tuple[np.ndarray, np.ndarray], index: Path
) -> None:
    """Hashes that were taken on the way go to the bank's index: the next run need not decode for them."""
    manifest, row = where
    hashed = np.flatnonzero(~work.known & work.keys.any(axis=1))
    for number, table in enumerate(tables):
        rows = hashed[manifest[hashed] == number]
        if len(rows):
            record(table, row[rows], work.keys[rows], index)


def _finish(report: ExtractReport, outcome: Outcome, started: float, passes: int) -> None:
    report.embedded, report.elsewhere = outcome.embedded, outcome.elsewhere
    report.failed = outcome.failed
    # pictures whose hash was not known before, and that turned out to be doubles or cached
    report.unique -= outcome.doubles
    report.cached += outcome.found_cached
    report.forwards = outcome.forwards
    report.batch_size = outcome.batch_size
    report.seconds |= outcome.seconds
    _close(report, started, passes)


def _close(report: ExtractReport, started: float, passes: int) -> None:
    """What follows from the rest."""
    report.forwards_avoided = max(0, (report.patches - len(report.failed)) * passes - report.forwards)
    report.seconds["total"] = time.perf_counter() - started
    running = max(report.seconds["total"] - report.seconds["load"], 1e-9)
    report.images_per_second = report.embedded / running

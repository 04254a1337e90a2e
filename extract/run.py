"""`patchbank extract`: from manifests to embedding stores.

What happens, in order:
1. The weights of every encoder are found and their identity taken; the stores of all encoders, views and
   token policies are opened. Nothing that defines a vector is left out of a store's identity.
2. Patches are identified by the hash of their pixels: those that every store has already are not decoded,
   a repeated image is embedded once. If nothing is left, no model is loaded and torch not imported.
3. The rest runs through the engine (engine.py) and is published in blocks as it comes.
"""

import math
import os
import re
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cache.bank import Bank
from ..datasets.manifest import Manifest, as_manifest
from ..errors import ImageError, InvalidRequest, PatchbankError
from ..files import cores
from ..terminal import progress_bar
from .allocator import keep_pages, peak_memory
from .cards import Card, with_revision
from .engine import Pipeline
from .options import ExtractOptions
from .planning import Plan, open_lanes, plan_work
from .registry import load_card
from .report import KEPT, ExtractReport
from .views import parse_views
from .weights import Weights, locate

if TYPE_CHECKING:
    from .encoders import Encoder

BATCH_SIZE_CPU = 8  # where nothing was timed: activations of larger batches leave the caches of most CPUs

APART = 1.5  # resolutions that differ by more get a warning


def run_extract(
    manifests: Manifest | str | Path | Sequence[Manifest | str | Path],
    *,
    encoder: str | Path | Card | Sequence[str | Path | Card],
    bank: str | Path,
    dry_run: bool = False,
    progress: bool = True,
    options: ExtractOptions | None = None,
    **settings: Any,
) -> ExtractReport:
    """Embed the patches of manifests that a bank does not hold yet.

    Parameters
    ----------
    manifests
        loaded, or paths or names of their TOML files (NAME for NAME.toml).
    encoder
        ids, "timm:NAME", "hf:ORG/NAME", card files, or Cards (`wrap_encoder` makes one of a torch module);
        several share the decoding.
    bank
        folder of the stores; created if it does not exist.
    dry_run
        only say what would be done: no store is made, no weights are downloaded, no model is loaded.
    options
        all the rest at once; or the same as keywords: view, tokens, device, precision, dtype,
        batch_size, workers, on_error, checkpoint and more, see `ExtractOptions`.

    Raises
    ------
    InvalidRequest, UnknownEncoder, GatedEncoder, EncoderError, MissingDependency
        before any work.
    ImageError
        a patch cannot be read and on_error is "fail".
    VectorRefused, StoreError
        an embedding cannot be stored; what was written before is kept.
    KeyboardInterrupt
        after publishing what was computed; the note says how much that is.
    """
    started = time.perf_counter()
    if options is None:
        options = ExtractOptions(**settings)
    elif settings:
        raise InvalidRequest("give either options= or the settings one by one, not both")
    if not dry_run and options.engine == "local" and _device(options) == "cpu":
        keep_pages()  # before tables are read in threads
    listed = [manifests] if isinstance(manifests, Manifest | str | Path) else list(manifests)
    tables = [as_manifest(manifest) for manifest in listed]
    cards = _cards(encoder, tables, options)
    weights = [
        locate(
            card,
            checkpoint=options.checkpoint,
            weights_dir=options.weights_dir,
            download=not dry_run,
        )
        for card in cards
    ]
    mpp = _resolution(tables, cards, options)
    options = options.replace(device=_device(options))
    precisions = [_precision(card, options) for card in cards]
    lanes = open_lanes(Bank(bank), cards, weights, precisions, options, dry_run=dry_run, mpp=mpp)
    index = Path(bank) / "hashes" if "://" not in str(bank) else None
    plan = plan_work(tables, lanes, index)
    report = plan.report()
    try:
        if dry_run:
            plan.forecast(report)
        elif not len(plan.work):
            report.forwards_avoided = report.patches * plan.passes
        elif options.engine == "ray":
            _run_ray(plan, report, cards, str(bank), options, progress=progress)
        else:
            encoders = _build(report, cards, weights, precisions, options)
            _remember_origins(report, plan, cards, encoders[0])
            report.seconds["load"] = time.perf_counter() - started
            _run_here(plan, report, cards, encoders, options, progress=progress)
    finally:
        if index is not None and not dry_run:
            plan.remember(index)
    report.stores = plan.stores()
    report.seconds["total"] = time.perf_counter() - started
    if report.model_loaded:
        report.close(plan.passes)
    return report


def _cards(
    encoder: str | Path | Card | Sequence[str | Path | Card],
    tables: Sequence[Manifest],
    options: ExtractOptions,
) -> list[Card]:
    """The cards of the encoders, each of which admits the manifests. Raises InvalidRequest."""
    if callable(encoder):
        raise InvalidRequest(
            "a network has no name and no preprocessing: encoder=wrap_encoder(network, transform, name=..., "
            "revision=...)"
        )
    specs = [encoder] if isinstance(encoder, str | Path | Card) else list(encoder)
    if not tables or not specs:
        raise InvalidRequest("at least one manifest and one encoder are needed")
    if len(specs) > 1 and (options.checkpoint or options.revision):
        raise InvalidRequest(
            "a checkpoint or a revision belongs to one encoder; run several encoders in several runs"
        )
    cards = [
        with_revision(load_card(spec, trust_code=options.trust_code), options.revision) for spec in specs
    ]
    for card in cards:
        if card.admit is not None:
            for table in tables:
                card.admit(table)
    return cards


def _resolution(tables: Sequence[Manifest], cards: Sequence[Card], options: ExtractOptions) -> float:
    """The micrometres a pixel of the manifests' patches, 0 where they are not known.

    Warns of encoders trained at a resolution more than APART times as high or low, and of views that say
    another resolution of the patches than their manifest.

    Raises
    ------
    InvalidRequest
        a view asks for the manifests' resolution, and they have several, or some do not say theirs.
    """
    of_sets = sorted({(table.header.name, table.header.mpp) for table in tables})
    known = {mpp for _, mpp in of_sets if mpp}
    names = [options.view] if isinstance(options.view, str) else options.view
    if len({mpp for _, mpp in of_sets}) > 1 and any(re.search(r"mpp:[^+@]+(\+|$)", name) for name in names):
        stated = ", ".join(f"{name} {f'{mpp:g}' if mpp else 'not known'}" for name, mpp in of_sets)
        raise InvalidRequest(
            f"the manifests differ in micrometres a pixel ({stated}), and the view takes one: run them one "
            "by one, or say it, as in mpp:0.5@0.25"
        )
    for view in parse_views(names, mpp=min(known, default=1.0)):
        for name, mpp in of_sets:
            if view.mpp and mpp and not math.isclose(view.source, mpp, rel_tol=0.01):
                warnings.warn(
                    f"the view {view.name} takes the patches of {name} as {view.source:g} micrometres a "
                    f"pixel; their manifest says {mpp:g}",
                    stacklevel=3,
                )
    plain = any("mpp:" not in name for name in names)
    for card in cards if plain else ():
        for mpp in sorted(known):
            if (apart := card.apart(mpp)) > APART * (1 + 1e-9):  # 0.45 / 0.3 is a little more than 1.5
                warnings.warn(
                    f"{card.id} was trained at {' or '.join(f'{one:g}' for one in card.mpp)} micrometres a "
                    f"pixel, and these patches have {mpp:g}: {apart:.1f} times apart. The view "
                    f"mpp:{card.nearest_mpp(mpp):g} resamples them",
                    stacklevel=3,
                )
    return min(known) if len(known) == 1 else 0.0


def _build(
    report: ExtractReport,
    cards: Sequence[Card],
    weights: Sequence[Weights],
    precisions: Sequence[str],
    options: ExtractOptions,
) -> list[list["Encoder"]]:
    """The encoders for every computing thread: those of one device share them."""
    from .devices import compute_threads, resolve_devices
    from .encoders import Encoder

    places = compute_threads(resolve_devices(options.device))
    built = {
        place: [
            Encoder(
                card,
                found,
                device=place,
                precision=precision,
                channels_last=options.channels_last,
                compile=options.compile,
                remote_code=options.remote_code,
            )
            for card, found, precision in zip(cards, weights, precisions, strict=True)
        ]
        for place in dict.fromkeys(places)
    }
    report.model_loaded = True
    report.devices = [str(place) for place in places]
    report.workers = options.workers or _default_workers(places[0].type)
    return [built[place] for place in places]


def _remember_origins(
    report: ExtractReport, plan: Plan, cards: Sequence[Card], encoders: Sequence["Encoder"]
) -> None:
    """Where in its file each encoder's weights were: in the report, and in the stores' provenance."""
    for number, (card, encoder) in enumerate(zip(cards, encoders, strict=True)):
        origin = encoder.network.origin
        if not origin:
            continue
        report.origins.append(f"{card.id}: weights found under {origin}")
        for target in plan.targets:
            if any(target in lane.targets for lane in plan.lanes if lane.encoder == number):
                target.provenance["weights_found_under"] = origin
                if target.opened is not None:
                    target.opened.session["weights_found_under"] = origin


def _run_here(
    plan: Plan,
    report: ExtractReport,
    cards: Sequence[Card],
    encoders: Sequence[Sequence["Encoder"]],
    options: ExtractOptions,
    *,
    progress: bool,
) -> None:
    """Through the engine of this process."""
    from .batch_size import batch_size_for
    from .devices import single_threaded

    # forward passes, not patches: of d4:mean a patch takes eight, and a batch of them minutes on a CPU
    passes, unit = int(plan.work.passes(plan.lanes).sum()), "patch" if plan.passes == 1 else "pass"
    bar = progress_bar(total=passes, shown=progress, unit=unit, desc=_title(cards))
    with bar, single_threaded([each[0].device for each in encoders]):
        batch_size = options.batch_size or batch_size_for(
            encoders, plan.lanes, default_cpu=BATCH_SIZE_CPU, passes=passes
        )
        pipeline = Pipeline(
            plan.work,
            plan.lanes,
            encoders,
            batch_size=batch_size,
            workers=report.workers,
            on_error=options.on_error,
            resize=options.resize,
            shift=options.shift,
            advance=bar.update,
        )
        try:
            outcome = pipeline.run()
        except (KeyboardInterrupt, PatchbankError) as error:
            error.add_note(
                f"{pipeline.outcome.embedded} {KEPT}"
                + (" --on-error skip goes on past bad patches." if isinstance(error, ImageError) else "")
            )
            raise
    report.embedded, report.elsewhere = outcome.embedded, outcome.elsewhere
    report.failed = outcome.failed
    # images whose hash was unknown before, and that turned out to be duplicates or cached
    report.unique -= outcome.duplicates
    report.cached += outcome.found_cached
    report.forwards = outcome.forwards
    report.batch_size = outcome.batch_size
    report.peak_memory = peak_memory()
    report.seconds |= outcome.seconds


def _run_ray(
    plan: Plan,
    report: ExtractReport,
    cards: Sequence[Card],
    bank: str,
    options: ExtractOptions,
    *,
    progress: bool,
) -> None:
    """Through the actors of a cluster; the report adds theirs up."""
    from .ray_engine import run_actors

    def rows() -> int:
        found = [target.look() for target in plan.targets]
        return sum(store.published_rows for store in found if store is not None)

    before = rows()

    def look() -> None:
        bar.update(rows() - before - bar.n)

    missing = (report.unique - report.cached) * len(plan.targets)
    with progress_bar(total=missing, shown=progress, unit="row", desc=_title(cards)) as bar:
        parts, report.actors_lost = run_actors(
            plan.manifests, cards, bank, options, extract=run_extract, look=look
        )
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
    report.peak_memory = max((part.peak_memory for part in parts), default=0)
    report.seconds["load"] = max((part.seconds.get("load", 0.0) for part in parts), default=0.0)


def _title(cards: Sequence[Card]) -> str:
    return cards[0].id if len(cards) == 1 else f"{len(cards)} encoders"


def _default_workers(device_type: str) -> int:
    """On a CPU the model needs the cores, and few threads decode fast enough; a GPU needs every core."""
    return min(cores(), 32) if device_type != "cpu" else max(1, cores() // 4)


def _device(options: ExtractOptions) -> str:
    """The request, "auto" answered with "cpu" where there can be no GPU, so that torch need not be asked."""
    if options.device != "auto":
        return options.device
    if options.engine == "ray":
        from .ray_engine import device_of_cluster

        return device_of_cluster()
    nvidia = any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))
    return "auto" if nvidia or os.name == "nt" or Path("/System/Library").exists() else "cpu"


def _precision(card: Card, options: ExtractOptions) -> str:
    from .precision import choose_precision

    kind = options.device.partition(":")[0].partition(",")[0]
    if kind == "auto":
        from .devices import resolve_devices

        kind = resolve_devices(options.device)[0].type
    return choose_precision(card, kind, options.precision)

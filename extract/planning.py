"""Before anything is embedded: which stores a run fills, and which patches they lack."""

import hashlib
import os
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..cache.bank import Bank
from ..cache.identity import Identity, safe_name
from ..cache.index import KeyIndex
from ..datasets.hashes import Known, is_young, look_up, record, state_of, tick_of
from ..datasets.images import content_hash
from ..datasets.manifest import Manifest
from ..datasets.sources import MARK, open_source
from ..errors import EncoderError, ImageError, InvalidRequest
from ..version import versions
from .cards import UNPINNED, Card
from .options import RESIZERS, ExtractOptions
from .report import ExtractReport, StoreReport
from .tokens import parse_policy, vector_dim
from .views import parse_views
from .weights import Weights
from .work import Lane, Target, Work

SMALLEST_UNIT, LARGEST_UNIT = 256, 8192  # patches that are leased and published together


@dataclass
class Plan:
    """What there is to do.

    Attributes
    ----------
    lanes
        of all encoders.
    work
        the patches that some store lacks, each image once as far as is known.
    rows
        int64 (len(work),): their rows, counted over all manifests.
    patches, unique, cached
        as in the report.
    states, young
        int64 (., 3), bool: of the work: the state of a file before it was read (see
        datasets/hashes.py), and whether that was too young to tell.
    pixels
        the images of the work.
    unentered
        of each manifest the rows whose hash it gives itself and the index has not, with those
        hashes and the states of their files.
    """

    manifests: Sequence[Manifest]
    lanes: Sequence[Lane]
    work: Work
    rows: np.ndarray
    patches: int
    unique: int
    cached: int
    states: np.ndarray
    young: np.ndarray
    pixels: "_Pixels"
    unentered: Sequence[tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]]

    @property
    def passes(self) -> int:
        """Forward passes of a patch that no store has."""
        return sum(len(lane.orientations) for lane in self.lanes)

    def report(self) -> ExtractReport:
        """With what is known before the run."""
        return ExtractReport(
            patches=self.patches, unique=self.unique, cached=self.cached, stores=self.stores()
        )

    def stores(self) -> list[StoreReport]:
        """The stores as they are now; those that are not made yet have no path."""
        return [
            StoreReport.of(t.identity, "" if t.opened is None else str(t.opened.path)) for t in self.targets
        ]

    @property
    def targets(self) -> list[Target]:
        return [target for lane in self.lanes for target in lane.targets]

    def forecast(self, report: ExtractReport) -> None:
        """What a run would do."""
        todo = self.work.todo
        report.dry_run, report.planned = True, len(self.work)
        report.planned_forwards = int(self.work.passes(self.lanes).sum())
        for lane in self.lanes:
            for target in lane.targets:
                identity = target.identity
                vector = identity.dim * np.dtype(identity.dtype).itemsize
                report.planned_bytes += int(todo[:, target.number].sum()) * vector

    def remember(self, index: Path) -> None:
        """What was decoded goes to the bank's index: its hash, and the state of its file before that.

        The next run need not decode for it, and a file that changes later is noticed. States too young to
        tell are looked at once more, when they are old enough, and with them the pixels.
        """
        keys, decoded = self.work.keys.copy(), self.work.decoded.copy()
        for i, key in self.work.contradicted.items():
            keys[i], decoded[i] = np.frombuffer(key, np.uint8), True
        hashed = np.flatnonzero(decoded)
        rows, keys, states = self.rows[hashed], keys[hashed], self.states[hashed]
        young = np.flatnonzero(self.young[hashed])
        if len(young):
            time.sleep(max(tick_of(state) for state in states[young]) / 1e9)
            self.pixels.reopen()
        for k in young.tolist():
            states[k] = -1  # not entered where it cannot be read any more, or was written once more
            with suppress(ImageError):
                (before, again), image = self.pixels.state(int(hashed[k])), self.pixels.read(int(hashed[k]))
                if not again:
                    keys[k], states[k] = np.frombuffer(content_hash(image), np.uint8), before
        start = 0
        for manifest, (entered, there) in zip(self.manifests, self.unentered, strict=True):
            of_manifest = (rows >= start) & (rows < start + len(manifest))
            record(manifest, rows[of_manifest] - start, keys[of_manifest], index, states[of_manifest])
            # rows of the manifest's hashes that were not decoded: from now on a change is noticed
            worked = np.isin(entered, self.rows - start)
            record(manifest, entered[~worked], there[0][~worked], index, there[1][~worked])
            start += len(manifest)


def open_lanes(
    bank: Bank,
    cards: Sequence[Card],
    weights: Sequence[Weights],
    precisions: Sequence[str],
    options: ExtractOptions,
    *,
    dry_run: bool,
    mpp: float = 0.0,
) -> list[Lane]:
    """One lane an encoder and view but for its orientation, with those of its stores open that there are.

    dry_run: whether missing stores could be created is not checked; mpp: micrometres a pixel of the patches.
    """
    views = parse_views(options.view, mpp=mpp)
    if options.resize == "device" and any(view.mpp for view in views):
        raise InvalidRequest("a view with mpp is resampled by PIL only; leave --resize out")
    if any(view.mpp for view in views) and (own := [c.id for c in cards if c.transform.function is not None]):
        raise InvalidRequest(f"{own[0]} resizes with a function of its own, so a view with mpp has no effect")
    pinned = options.revision is not None or options.checkpoint is not None
    lanes: list[Lane] = []
    wanted: list[Target] = []
    for number, (card, located, precision) in enumerate(zip(cards, weights, precisions, strict=True)):
        policies = [parse_policy(name) for name in dict.fromkeys(options.policies or (card.tokens,))]
        for pixels in dict.fromkeys(view.pixels for view in views):
            lane = Lane(number, pixels, card.transform, [])
            for view in views:
                for policy in policies if view.pixels == pixels else ():
                    resizer = {"crop": "center", "resizer": RESIZERS[options.resize]}
                    identity = Identity(
                        encoder={"id": card.id, "weights": located.identity, **card.architecture},
                        preprocess=card.transform.identity | resizer,
                        view=view.name,
                        tokens=policy.name,
                        precision=precision,
                        dtype=options.dtype,
                        dim=vector_dim(card, policy),
                    )
                    target = Target(
                        identity,
                        view,
                        policy,
                        len(wanted),
                        bank=bank,
                        backend=options.backend,
                        provenance=_provenance(card, located),
                    )
                    lane.targets.append(target)
                    wanted.append(target)
                    if not pinned and located.commit and card.revision == UNPINNED:
                        _same_commit(bank, identity)
            lanes.append(lane)
    names = [target.identity.name for target in wanted]
    if len(set(names)) < len(names):
        raise InvalidRequest("the same encoder is given twice")
    for target in wanted:
        if target.look() is None and not dry_run:
            bank.check_new(target.identity, options.backend)
    return lanes


def plan_work(manifests: Sequence[Manifest], lanes: Sequence[Lane], index: Path | None) -> Plan:
    """Which rows of the manifests are left to do; index: folder of the hashes that the bank remembers.

    Rows whose file has changed since its hash was taken are read again, and refused where the hash is the
    manifest's own and the pixels are others.
    """
    known_rows = [look_up(manifest, index, strict=True) for manifest in manifests]
    keys = np.concatenate([part.hashes for part in known_rows])
    known = np.concatenate([part.known & ~part.changed for part in known_rows])
    claimed = set(np.flatnonzero(np.concatenate([part.known & part.changed for part in known_rows])).tolist())
    unentered = [_unentered(part) for part in known_rows]
    del known_rows
    places = np.flatnonzero(known)
    unique = places[KeyIndex(keys[places]).first_rows()]
    targets = [target for lane in lanes for target in lane.targets]
    todo = np.zeros((len(keys), len(targets)), bool)
    todo[unique] = todo[~known] = True
    for target in targets:
        todo[unique, target.number] = target.lacks(keys[unique])
    rows = np.flatnonzero(todo.any(axis=1))
    units = _units(manifests)
    pixels = _Pixels(manifests, rows)
    begins = np.array([pixels.starts[number] + start for number, start, _ in units])
    young = np.zeros(len(rows), bool)
    states = np.full((len(rows), 3), -1, np.int64)

    def read(i: int) -> np.ndarray:
        states[i], young[i] = pixels.state(i)
        image = pixels.read(i)
        if int(rows[i]) in claimed and (key := content_hash(image)) != keys[rows[i]].tobytes():
            raise work.contradict(i, key)
        return image

    work = Work(
        read=read,
        name=pixels.name,
        keys=keys[rows],
        known=known[rows],
        todo=todo[rows],
        unit=(np.searchsorted(begins, rows, side="right") - 1).astype(np.int32),
        unit_name=_unit_names(manifests, units),
    )
    left = int(work.known.sum())
    return Plan(
        manifests=manifests,
        lanes=lanes,
        work=work,
        rows=rows,
        patches=len(keys),
        unique=len(unique) + len(keys) - len(places),
        cached=len(unique) - left,
        states=states,
        young=young,
        pixels=pixels,
        unentered=unentered,
    )


class _Pixels:
    """The images of the work: row `rows[i]` of all manifests, one after the other.

    starts : the first row of each manifest, and the number of all rows
    """

    def __init__(self, manifests: Sequence[Manifest], rows: np.ndarray) -> None:
        self.starts: list[int] = np.cumsum([0, *map(len, manifests)]).tolist()
        self._rows = rows
        self._sources = [open_source(manifest) for manifest in manifests]
        self._names = [manifest.table["patch_id"] for manifest in manifests]
        # open since their first patch: state and age are of then
        self._containers: dict[str, tuple[tuple[int, int, int], bool]] = {}

    def _at(self, i: int) -> tuple[int, int]:
        """The manifest of a patch of the work, and its row there."""
        number = bisect_right(self.starts, row := int(self._rows[i])) - 1
        return number, row - self.starts[number]

    def name(self, i: int) -> str:
        number, row = self._at(i)
        return str(self._names[number].iat[row])

    def state(self, i: int) -> tuple[tuple[int, int, int], bool]:
        """The state of the file, and whether it is too young to tell (of a container: when it was opened)."""
        number, row = self._at(i)
        file, mark, _ = self._sources[number].paths[row].partition(MARK)
        file = os.path.join(self._sources[number].root, file)  # noqa: PTH118
        if mark and file in self._containers:
            return self._containers[file]
        state = state_of(file)
        answer = state, is_young(state, time.time_ns())
        return self._containers.setdefault(file, answer) if mark else answer

    def read(self, i: int) -> np.ndarray:
        """uint8 (h, w, 3)."""
        number, row = self._at(i)
        return self._sources[number].read(row)

    def reopen(self) -> None:
        """Containers are looked at again."""
        self._containers.clear()
        for source in self._sources:
            source.close()


def _units(manifests: Sequence[Manifest]) -> list[tuple[int, int, int]]:
    """Parts of manifests that are leased as one: manifest, first row, end."""
    units: list[tuple[int, int, int]] = []
    for number, manifest in enumerate(manifests):
        n = len(manifest)
        step = min(LARGEST_UNIT, max(SMALLEST_UNIT, n // 8))
        units += [(number, start, min(start + step, n)) for start in range(0, n, step)]
    return units


def _unentered(part: Known) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    rows = np.flatnonzero(part.known & ~part.entered)
    return rows, (part.hashes[rows], part.states[rows])


def _unit_names(manifests: Sequence[Manifest], units: Sequence[tuple[int, int, int]]) -> Callable[[int], str]:
    """The same in every run over the same rows, whatever is cached already."""

    def name(unit: int) -> str:
        number, start, end = units[unit]
        ids = "\n".join(manifests[number].table["patch_id"].iloc[start:end])
        return hashlib.blake2b(ids.encode(), digest_size=12).hexdigest()

    return name


def _same_commit(bank: Bank, identity: Identity) -> None:
    """A card that is not pinned goes on with the commit that the bank holds, or stops."""
    ours = identity.to_json()
    for name in bank.names():
        if not name.startswith(safe_name(identity.encoder["id"]) + "."):
            continue
        stored = bank.open_name(name).identity.to_json()
        old, new = str(stored["encoder"].get("weights")), str(ours["encoder"]["weights"])
        same = stored | {"encoder": stored["encoder"] | {"weights": new}} == ours
        if same and old != new and old.startswith("hub:"):
            raise EncoderError(
                f"the bank holds {identity.encoder['id']} embeddings made with {old}, "
                f"and the weights here are {new}: "
                f"add --revision {old.rpartition('@')[2]} to go on with the old ones, "
                f"or --revision {new.rpartition('@')[2]} to start another store"
            )


def _provenance(card: Card, weights: Weights) -> dict[str, Any]:
    """What does not change the numbers, and is good to know later."""
    return {
        "licence": card.licence,
        "gated": card.gated,
        "hub": card.hub,
        "commit": weights.commit,
        "source": card.source,
        "versions": versions(("patchbank", "torch", "timm", "transformers", "pillow", "torchstain")),
    }

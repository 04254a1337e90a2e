"""The engine: decode in threads, compute on the devices, write behind both, in bounded queues.

    decode pool  -> main thread -> device threads -> writer thread -> stores
    read, check     make batches   forward passes    check, append
    the hash,       of one shape   of every lane's   and publish
    resize                         targets           (writing.py)
                                   (compute.py)

A lane is one encoder at one crop of the patch; its targets are the stores that one forward pass (or eight,
for flips and rotations) fills. Everything between two stages is bounded, so memory does not grow with the
number of patches. A thread that fails keeps emptying its queue, so that nobody waits for it, and the main
thread raises its error.

Patches are decoded in threads, not processes: Pillow's decoder and resizer and the hash run outside the
interpreter's lock, while a process has to send every decoded patch (150 kB at 224 px) through a pipe. On real
PNGs of 128 and 64 px the best rounds of threads were 1.2 to 1.4 times as fast as those of processes, and two
threads on two free cores 1.7 times as fast as one (two cores shared with other work; not measured on more;
tests/benchmarks/extract_cpu.py --decode).

What is kept of every patch are a few bytes in arrays: key, flags, unit and waits here, 20 bytes in the index
of each store (tests/extract/test_memory.py).

The work is cut into units of patches, each embedded under a lease in the first store, published when it is
complete, then given back. So runs that go on at once, on one machine or many, share the work; what a killed
run held is taken over.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cache.leases import Lease
from ..datasets.images import content_hash
from ..errors import ImageError, StoreError
from .compute import Device
from .progress import Batch, Outcome, Progress
from .views import prepare, viewed
from .work import Lane, Work
from .writing import Writing

if TYPE_CHECKING:
    from .encoders import Encoder

LEASE = 120.0  # seconds without a sign of life after which another run takes a unit over
POLL = 1.0  # seconds between two looks at units that others hold
LOOK = 0.02  # seconds between two looks at whether the work is over
PATIENCE = 10  # times that a lease's folder may vanish under us before that is an error
CHUNK = 8  # patches a decoding task


class _Seen:
    """Finds repeated images: a hash table of row numbers, 8 bytes a patch (a set takes 120)."""

    def __init__(self, keys: np.ndarray, rows: np.ndarray) -> None:
        self._keys = keys
        self._slots = np.full(2 * len(keys) + 1, -1, np.int32 if len(keys) < 1 << 31 else np.int64)
        for row in rows.tolist():
            self.add(row)

    def add(self, row: int) -> bool:
        """False where another row has the same key."""
        key = self._keys[row].tobytes()
        slot = int.from_bytes(key[:8], "little") % len(self._slots)
        while (other := int(self._slots[slot])) >= 0:
            if self._keys[other].tobytes() == key:
                return False
            slot = (slot + 1) % len(self._slots)
        self._slots[slot] = row
        return True


@dataclass
class _Decoded:
    index: int
    key: bytes = b""
    inputs: dict[int, np.ndarray] = field(default_factory=dict)  # lane number -> pixels
    error: ImageError | None = None


class Pipeline:
    """Runs the work of one process through its lanes. Use it once."""

    def __init__(
        self,
        work: Work,
        lanes: Sequence[Lane],
        encoders: Sequence[Sequence["Encoder"]],
        *,
        batch_size: int,
        workers: int,
        on_error: str = "fail",
        resize: str = "pil",
        shift: float = 0.0,
        advance: Callable[[int], object] = lambda _: None,
    ) -> None:
        """
        Parameters
        ----------
        encoders
            encoders[device][number of the encoder].
        shift
            fraction of the units to begin after, so that many workers begin at different places.
        advance
            called with the number of forward passes (see `Work.passes`) that became done or needless.
        """
        self.work, self.lanes, self.encoders = work, list(lanes), encoders
        self.batch_size, self.workers = batch_size, workers
        self.on_error, self.resize, self.shift = on_error, resize, shift
        self.progress = Progress(work, self.lanes, batch_size=batch_size, advance=advance)
        self.targets = [target for lane in self.lanes for target in lane.targets]
        self._vanished = 0
        # two batches a device: one computed, one ready
        self._ready: queue.Queue[Batch | None] = queue.Queue(maxsize=len(encoders))
        self._done: queue.Queue[Batch | None] = queue.Queue(maxsize=2 * len(encoders))

    @property
    def outcome(self) -> Outcome:
        return self.progress.outcome

    def run(self) -> Outcome:
        """Embed everything that is to do and publish it.

        All of it happens in threads of its own, and this one only waits: an exception that a signal raises in
        the middle of a queue's lock would leave the lock taken, and everybody waiting for it. So the first
        Ctrl-C becomes the error of the run, after which what was computed is published; at the second this
        thread leaves at once, whatever the others do. They are daemons, and no process waits for them.

        Raises
        ------
        ImageError
            with on_error "fail", at the first patch that cannot be read, after what was embedded
            before it is published.
        VectorRefused, StoreError, EncoderError
            from the stages; what was written before is published.
        KeyboardInterrupt
            after publishing.
        """
        whole = threading.Thread(target=self._run, name="patchbank-run", daemon=True)
        try:
            whole.start()
            while whole.is_alive():
                time.sleep(LOOK)
        except KeyboardInterrupt as interrupt:
            self.progress.error = self.progress.error or interrupt
            while whole.is_alive():
                time.sleep(LOOK)
        if self.progress.error is not None:
            raise self.progress.error
        return self.outcome

    def _run(self) -> None:
        with self.progress.kept():
            self._run_all()

    def _run_all(self) -> None:
        writing = Writing(self.progress, self._done, on_error=self.on_error)
        writer = threading.Thread(target=writing.run, name="patchbank-write", daemon=True)
        devices = []
        for number, encoders in enumerate(self.encoders):
            device = Device(encoders, self.progress, self._ready, self._done, resize=self.resize)
            devices.append(
                threading.Thread(target=device.run, name=f"patchbank-compute-{number}", daemon=True)
            )
        for thread in (writer, *devices):
            thread.start()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="patchbank-decode")
        with self.progress.kept():
            self._feed(pool)
        pool.shutdown(wait=True, cancel_futures=True)
        for _ in devices:
            self._ready.put(None)
        for thread in devices:
            thread.join()
        self._done.put(None)
        writer.join()
        for lease in self.progress.leases.values():
            with self.progress.kept():
                lease.release()
        for target in self.targets:
            with self.progress.kept():
                target.clean()

    def _feed(self, pool: ThreadPoolExecutor) -> None:
        pending: deque[Future[list[_Decoded]]] = deque()
        tasks = self._tasks()
        ahead = 2 * self.workers + (len(self.encoders) + 1) * self.batch_size // CHUNK
        seen = None if self.work.known.all() else _Seen(self.work.keys, np.flatnonzero(self.work.known))
        more = True
        while pending or more:
            while more and len(pending) < ahead:
                task = next(tasks, None)
                if task is None:
                    more = False
                elif len(task):
                    pending.append(pool.submit(self._decode_all, task))
                elif pending:
                    break  # others hold the rest: finish what is begun first
                else:
                    self._flush()
                    self.progress.check()
                    time.sleep(POLL)
            if pending:
                patch = pending.popleft().result()
                self._learn(patch)
                for decoded in patch:
                    self._place(decoded, seen)
            self.progress.check()
        self._flush()

    def _flush(self) -> None:
        """Send off batches that are not full."""
        for lane in self.lanes:
            for shape in list(lane.waiting):
                self._dispatch(lane, shape)

    def _tasks(self) -> Iterator[np.ndarray]:
        """Patches to decode, a few at a time; an empty array where others hold every unit that is left."""
        units = np.arange(self.work.unit[-1] + 2)
        bounds = np.searchsorted(self.work.unit, units).tolist()  # it ascends; nothing of its length is made
        left = [part for part in zip(units.tolist(), bounds, bounds[1:], strict=False) if part[1] < part[2]]
        first = int(self.shift * len(left))
        left = left[first:] + left[:first]
        while left:
            held = []
            for unit, start, end in left:
                rows = self._begin(unit, np.arange(start, end))
                if rows is None:
                    held.append((unit, start, end))
                    continue
                for at in range(0, len(rows), CHUNK):
                    yield rows[at : at + CHUNK]
            if len(held) == len(left):
                yield np.empty(0, np.intp)
            left = held

    def _begin(self, unit: int, rows: np.ndarray) -> np.ndarray | None:
        """Lease a unit: its patches that are still to do, or None while another run holds it."""
        to_do = self._missing(rows)
        if len(to_do):
            lease = self._lease(self.work.unit_name(unit))
            if lease is None:
                return None
            self.progress.leases[unit] = lease
            to_do = self._missing(to_do)  # the last holder published, then gave back
            self.progress.opened[unit] = len(to_do)
            if not len(to_do):
                self.progress.leases.pop(unit).release()
        if len(to_do) < len(rows):
            self.outcome.elsewhere += len(rows) - len(to_do)
            done = np.setdiff1d(rows, to_do, assume_unique=True)
            self.progress.skip(done)
        return to_do

    def _lease(self, name: str) -> Lease | None:
        """None while another run holds it, or where `gc` swept the folder at this very moment."""
        try:
            lease = Lease.acquire(self.targets[0].files, name, ttl=LEASE, owner="extract")
        except StoreError as error:
            self._vanished += 1
            if not isinstance(error.__cause__, FileNotFoundError) or self._vanished > PATIENCE:
                raise
            return None
        self._vanished = 0
        return lease

    def _missing(self, rows: np.ndarray) -> np.ndarray:
        """Those of these patches that some store lacks now. Patches without a known hash count as missing."""
        work = self.work
        known = rows[work.known[rows]]
        for target in self.targets:
            target.look()
            missing = work.todo[known, target.number]
            work.todo[known, target.number] = missing & target.lacks(work.keys[known])
        return rows[work.todo[rows].any(axis=1)]

    def _decode_all(self, rows: np.ndarray) -> list[_Decoded]:
        started = time.perf_counter()
        decoded = [self._decode(index) for index in rows.tolist()]
        self.progress.busy("decode", time.perf_counter() - started)
        return decoded

    def _decode(self, index: int) -> _Decoded:
        work = self.work
        try:
            pixels = work.read(index)
            key = content_hash(pixels)
            if work.known[index] and key != work.keys[index].tobytes():
                raise work.contradict(index, key)
            decoded = _Decoded(index, key)
            shared: dict[Any, np.ndarray] = {}  # encoders with the same geometry share one resize
            for number, lane in enumerate(self.lanes):
                if not any(work.todo[index, target.number] for target in lane.targets):
                    continue
                shape = lane.transform
                geometry = (lane.view, *shape.geometry, *(shape.fill if lane.view.mpp else ()))
                if self.resize != "pil":
                    geometry = (lane.view,)
                if geometry not in shared:
                    shared[geometry] = (
                        prepare(pixels, shape, lane.view)
                        if self.resize == "pil"
                        else viewed(pixels, lane.view)
                    )
                decoded.inputs[number] = shared[geometry]
            return decoded
        except ImageError as error:
            return _Decoded(index, error=error)

    def _learn(self, decoded: list[_Decoded]) -> None:
        """Take down the keys that were not known before, and which stores have them."""
        work = self.work
        new = [patch for patch in decoded if patch.error is None and not work.known[patch.index]]
        if new:
            rows = np.array([one.index for one in new])
            work.keys[rows] = np.frombuffer(b"".join(one.key for one in new), np.uint8).reshape(-1, 16)
            for target in self.targets:
                work.todo[rows, target.number] = target.lacks(work.keys[rows])
        work.decoded[[known.index for known in decoded if known.error is None]] = True

    def _place(self, decoded: _Decoded, seen: "_Seen | None") -> None:
        work, index = self.work, decoded.index
        if decoded.error is not None:
            if self.on_error == "fail":
                raise decoded.error
            self.outcome.failed.append((work.name(index), str(decoded.error)))
            self._settle(np.array([index]))
            return
        if not work.known[index]:
            assert seen is not None
            if not seen.add(index):
                self.outcome.duplicates += 1
                self._settle(np.array([index]))
                return
        placed = 0
        for number, pixels in decoded.inputs.items():
            lane = self.lanes[number]
            if not any(work.todo[index, target.number] for target in lane.targets):
                continue
            placed += 1
            self.progress.waits[index] += 1
            lane.waiting.setdefault(pixels.shape, []).append((index, pixels))
        if not placed:
            self.outcome.found_cached += 1
            self._settle(np.array([index]))
        for number in decoded.inputs:
            lane = self.lanes[number]
            for shape, waiting in list(lane.waiting.items()):
                if len(waiting) >= self.batch_size:
                    self._dispatch(lane, shape)

    def _dispatch(self, lane: Lane, shape: tuple[int, ...]) -> None:
        waiting = lane.waiting.pop(shape)
        rows = np.array([index for index, _ in waiting])
        pixels = np.stack([pixels for _, pixels in waiting])
        self._ready.put(Batch(lane, rows, pixels))

    def _settle(self, rows: np.ndarray) -> None:
        """These patches need no batch; where that completes a unit, the writer is woken to publish it."""
        if self.progress.settle(rows):
            self._done.put(Batch(self.lanes[0], np.empty(0, np.intp), np.empty(0)))

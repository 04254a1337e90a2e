"""The engine: decode in threads, compute on the devices, write behind both, in bounded queues.

    decode pool  -> main thread -> device threads -> writer thread -> stores
    read, check     make batches   forward passes    check, append
    the hash,       of one shape   of every lane's   and publish
    resize                         targets

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
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cache.leases import Lease
from ..cache.store import StoreWriter
from ..datasets.images import content_hash
from ..errors import ImageError, StoreError, VectorRefused
from .tokens import Policy
from .views import MEAN, orient, prepare, viewed
from .work import Lane, Target, Work

if TYPE_CHECKING:
    import torch

    from .encoders import Encoder

PUBLISH_EVERY = 60.0  # seconds; what a power cut may cost where a unit takes longer
LEASE = 120.0  # seconds without a sign of life after which another run takes a unit over
POLL = 1.0  # seconds between two looks at units that others hold
LOOK = 0.02  # seconds between two looks at whether the work is over
PATIENCE = 10  # times that a lease's folder may vanish under us before that is an error
CHUNK = 8  # patches a decoding task


@dataclass
class Outcome:
    """What a pipeline did.

    Attributes
    ----------
    embedded
        patches of which every row that was lacking is published.
    seconds
        busy seconds of each stage, over all of its threads.
    """

    embedded: int = 0
    forwards: int = 0
    elsewhere: int = 0
    duplicates: int = 0
    found_cached: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("decode", "compute", "write"), 0.0)
    )
    batch_size: int = 0


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


@dataclass
class _Batch:
    lane: Lane
    rows: np.ndarray
    pixels: np.ndarray
    vectors: dict[Target, "torch.Tensor"] = field(default_factory=dict)
    begun: Any = None  # CUDA events around the forward passes
    ready: Any = None


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
        self.on_error, self.resize, self.shift, self.advance = on_error, resize, shift, advance
        self.outcome = Outcome(batch_size=batch_size)
        self.targets = [target for lane in self.lanes for target in lane.targets]
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._passes = work.passes(lanes)  # of each patch, not reported yet
        self._waits = np.zeros(len(work), np.int16)  # lanes that a patch still waits for
        self._unpublished = np.zeros(len(work), np.int16)  # rows of it that were appended, not published
        self._refused: set[int] = set()  # patches with a vector that cannot be stored
        self._open: dict[int, int] = {}  # unit -> patches that are not settled
        self._leases: dict[int, Lease] = {}
        self._vanished = 0
        self._complete: list[int] = []  # units that are to be published
        # two batches a device: one computed, one ready
        self._ready: queue.Queue[_Batch | None] = queue.Queue(maxsize=len(encoders))
        self._done: queue.Queue[_Batch | None] = queue.Queue(maxsize=2 * len(encoders))

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
            self._error = self._error or interrupt
            while whole.is_alive():
                time.sleep(LOOK)
        if self._error is not None:
            raise self._error
        return self.outcome

    def _run(self) -> None:
        with self._kept():
            self._run_all()

    def _run_all(self) -> None:
        self._writer = writer = threading.Thread(target=self._write_all, name="patchbank-write", daemon=True)
        devices = [
            threading.Thread(
                target=self._compute_all, args=(encoders,), name=f"patchbank-compute-{number}", daemon=True
            )
            for number, encoders in enumerate(self.encoders)
        ]
        for thread in (writer, *devices):
            thread.start()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="patchbank-decode")
        with self._kept():
            self._feed(pool)
        pool.shutdown(wait=True, cancel_futures=True)
        for _ in devices:
            self._ready.put(None)
        for thread in devices:
            thread.join()
        self._done.put(None)
        writer.join()
        for lease in self._leases.values():
            with self._kept():
                lease.release()
        for target in self.targets:
            with self._kept():
                target.clean()

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Keeps an error for the end of `run`; from then on batches that wait are dropped, not computed."""
        try:
            yield
        except BaseException as error:  # noqa: BLE001  `run` raises it
            with self._lock:
                self._error = self._error or error

    # --- main thread: from patches to batches ----------------------------------------------------------

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
                    self._check()
                    time.sleep(POLL)
            if pending:
                patch = pending.popleft().result()
                self._learn(patch)
                for decoded in patch:
                    self._place(decoded, seen)
            self._check()
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
            self._leases[unit] = lease
            to_do = self._missing(to_do)  # the last holder published, then gave back
            self._open[unit] = len(to_do)
            if not len(to_do):
                self._leases.pop(unit).release()
        if len(to_do) < len(rows):
            self.outcome.elsewhere += len(rows) - len(to_do)
            done = np.setdiff1d(rows, to_do, assume_unique=True)
            with self._lock:
                left = int(self._passes[done].sum())
                self._passes[done] = 0
            self.advance(left)
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

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _decode_all(self, rows: np.ndarray) -> list[_Decoded]:
        started = time.perf_counter()
        decoded = [self._decode(index) for index in rows.tolist()]
        with self._lock:
            self.outcome.seconds["decode"] += time.perf_counter() - started
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
            self._waits[index] += 1
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
        self._ready.put(_Batch(lane, rows, pixels))

    def _settle(self, rows: np.ndarray) -> None:
        """These patches are through, embedded or not; a unit without others is to be published."""
        complete = False
        with self._lock:
            for unit, count in zip(*np.unique(self.work.unit[rows], return_counts=True), strict=True):
                self._open[int(unit)] -= int(count)
                if not self._open[int(unit)]:
                    self._complete.append(int(unit))
                    complete = True
            left = int(self._passes[rows].sum())
            self._passes[rows] = 0
        self.advance(left)
        if complete and threading.current_thread() is not self._writer:
            self._done.put(_Batch(self.lanes[0], np.empty(0, np.intp), np.empty(0)))  # wakes the writer

    # --- device threads: from batches to vectors -------------------------------------------------------

    def _compute_all(self, encoders: Sequence["Encoder"]) -> None:
        import torch

        uploads = None
        if encoders[0].device.type == "cuda":
            torch.cuda.set_device(encoders[0].device)  # compiled kernels go to this thread's current device
            uploads = torch.cuda.Stream(encoders[0].device)
        ahead: tuple[_Batch, torch.Tensor, Any] | None = None
        while True:
            batch = self._ready.get()
            with self._kept():
                if self._error is None:
                    # on a GPU the next batch goes up while this one is computed
                    after = (batch, *self._upload(batch, encoders[0].device, uploads)) if batch else None
                    if uploads is not None:
                        after, ahead = ahead, after
                    if after is not None:
                        self._compute(*after, encoders)
            if batch is None:
                return

    @staticmethod
    def _upload(batch: _Batch, device: "torch.device", stream: Any) -> tuple["torch.Tensor", Any]:
        """The pixels on the device, and the CUDA event after which they are available (None elsewhere)."""
        import torch

        pixels = torch.from_numpy(batch.pixels)
        batch.pixels = np.empty(0, np.uint8)  # held by the tensor as long as it is needed
        if stream is None:
            return pixels.to(device), None
        with torch.cuda.stream(stream):
            there = pixels.pin_memory().to(device, non_blocking=True)
            uploaded = torch.cuda.Event()
            uploaded.record(stream)
        return there, uploaded

    def _compute(
        self, batch: _Batch, pixels: "torch.Tensor", uploaded: Any, encoders: Sequence["Encoder"]
    ) -> None:
        import torch

        started = time.perf_counter()
        encoder = encoders[batch.lane.encoder]
        if uploaded is not None:
            stream = torch.cuda.current_stream(encoder.device)
            stream.wait_event(uploaded)
            pixels.record_stream(stream)
            batch.begun = torch.cuda.Event(enable_timing=True)
            batch.begun.record(stream)
        if self.resize != "pil":
            pixels = encoder.resize(pixels)
        batch.vectors = self._vectors(batch.lane, encoder, pixels, batch.rows)
        seconds = time.perf_counter() - started
        if uploaded is not None:  # the work has only been queued: its time is taken when it is done
            seconds = 0.0
            batch.ready = torch.cuda.Event(enable_timing=True)
            batch.ready.record(torch.cuda.current_stream(encoder.device))
        with self._lock:
            self.outcome.seconds["compute"] += seconds
            self.outcome.forwards += len(batch.rows) * len(batch.lane.orientations)
        self._done.put(batch)

    def _vectors(
        self, lane: Lane, encoder: "Encoder", pixels: "torch.Tensor", rows: np.ndarray
    ) -> dict[Target, "torch.Tensor"]:
        """One forward pass an orientation; means over orientations are sums in float32, in order."""
        vectors: dict[Target, Any] = {}
        for orientation in lane.orientations:
            wanted = [t for t in lane.targets if orientation in t.view.orientations]
            policies = list({target.policy.name: target.policy for target in wanted}.values())
            found = self._embed(encoder, orient(pixels, orientation), policies)
            for target in wanted:
                vector = found[target.policy.name]
                if target.view.orientation == MEAN:
                    vector = vectors[target] + vector / 8 if target in vectors else vector / 8
                vectors[target] = vector
            with self._lock:
                left = rows[self._passes[rows] > 0]
                self._passes[left] -= 1
            self.advance(len(left))
        return vectors

    def _embed(self, encoder: "Encoder", pixels: "torch.Tensor", policies: list[Policy]) -> dict[str, Any]:
        """`encoder.embed` in pieces of the batch size, halved for good where memory does not suffice."""
        import torch

        parts: list[dict[str, torch.Tensor]] = []
        start = 0
        while start < len(pixels):
            size = min(self.outcome.batch_size, len(pixels) - start)
            try:
                parts.append(encoder.embed(pixels[start : start + size], policies))
                start += size
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _out_of_memory(error) or size == 1:
                    raise
                if encoder.device.type == "cuda":
                    torch.cuda.empty_cache()
                with self._lock:
                    self.outcome.batch_size = min(self.outcome.batch_size, size // 2)
        if len(parts) == 1:
            return parts[0]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    # --- writer thread: from vectors to stores ---------------------------------------------------------

    def _write_all(self) -> None:
        published, broken = time.monotonic(), False
        outputs: dict[Target, _Output] = {}
        while True:
            batch = self._done.get()
            if batch is None:
                break
            started = time.perf_counter()
            if not broken:  # an error of another stage does not stop what is computed from being kept
                broken = True
                with self._kept():
                    if len(batch.rows):
                        self._write(batch, outputs)
                    if self._complete or time.monotonic() - published > PUBLISH_EVERY:
                        self._publish(outputs)
                        published = time.monotonic()
                    broken = False
            with self._lock:
                self.outcome.seconds["write"] += time.perf_counter() - started
        for output in outputs.values():
            with self._kept():
                try:
                    output.writer.close()
                finally:
                    self._count(output)

    def _write(self, batch: _Batch, outputs: "dict[Target, _Output]") -> None:
        rows = batch.rows
        keys = self.work.keys[rows]
        good = np.ones(len(rows), bool)
        vectors = {target: _to_host(batch, vector) for target, vector in batch.vectors.items()}
        if batch.ready is not None:
            with self._lock:
                self.outcome.seconds["compute"] += batch.begun.elapsed_time(batch.ready) / 1000
        for target, values in vectors.items():
            dtype = np.dtype(target.identity.dtype)
            fits = _finite(values, dtype)
            if not fits.all() and self.on_error == "skip":
                for row in rows[good & ~fits]:
                    message = f"its embedding does not fit {dtype} or is not finite"
                    self.outcome.failed.append((self.work.name(int(row)), message))
                good &= fits
        self._refused.update(rows[~good].tolist())
        self._waits[rows] -= 1
        for target, values in vectors.items():
            mask = good & self.work.todo[rows, target.number]
            if not mask.any():
                continue
            if target not in outputs:
                outputs[target] = _Output(target.make().writer())
            output = outputs[target]
            ids = [self.work.name(int(row)) for row in rows[mask]]
            self._unpublished[rows[mask]] += 1
            output.rows.append(rows[mask])
            try:
                output.writer.append(keys[mask], values[mask], ids)
            except VectorRefused as error:
                error.add_note(f"encoder {target.identity.encoder['id']}, view {target.view.name}")
                raise
            finally:
                self._count(output)
        self._settle(rows[self._waits[rows] == 0])

    def _publish(self, outputs: "dict[Target, _Output]") -> None:
        """Publish what was appended; give back the leases of the units that are complete."""
        with self._lock:
            complete, self._complete = self._complete, []
        for output in outputs.values():
            try:
                output.writer.flush()
            finally:
                self._count(output)
        for unit in complete:
            self._leases.pop(unit).release()

    def _count(self, output: "_Output") -> None:
        """Patches whose last row is published now. A writer publishes in the order of its rows."""
        for rows in output.take():
            self._unpublished[rows] -= 1
            through = rows[(self._unpublished[rows] == 0) & (self._waits[rows] == 0)]
            self.outcome.embedded += sum(int(row) not in self._refused for row in through)


@dataclass
class _Output:
    """The writer of one store, and the patches of its rows that are not published yet, in their order."""

    writer: StoreWriter
    rows: deque[np.ndarray] = field(default_factory=deque)
    counted: int = 0

    def take(self) -> list[np.ndarray]:
        """The patches of the rows that were published since the last call."""
        fresh, self.counted = self.writer.published - self.counted, self.writer.published
        taken = []
        while fresh:
            rows = self.rows.popleft()
            taken.append(rows[:fresh])
            if fresh < len(rows):
                self.rows.appendleft(rows[fresh:])
            fresh -= len(taken[-1])
        return taken


def _to_host(batch: _Batch, vector: "torch.Tensor") -> np.ndarray:
    """float32 on the CPU; a GPU's copy waits for the batch's own work, not for the next batch."""
    if batch.ready is None:
        return vector.cpu().numpy()
    import torch

    stream = torch.cuda.Stream(vector.device)
    with torch.cuda.stream(stream):
        stream.wait_event(batch.ready)
        vector.record_stream(stream)
        host = vector.to("cpu", non_blocking=True)
    stream.synchronize()
    return host.numpy()


def _finite(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """bool (n,): rows that can be stored as `dtype` without NaN or overflow."""
    with np.errstate(over="ignore"):
        return np.asarray(np.isfinite(values.astype(dtype, copy=False)).all(axis=1))


def _out_of_memory(error: BaseException) -> bool:
    """Did memory run out? Torch has a class for it on CUDA, and only the allocator's words on the CPU."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)

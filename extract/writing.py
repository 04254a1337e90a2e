"""The last stage: vectors into the stores, in a thread of its own that publishes behind the others."""

import queue
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..cache.store import StoreWriter
from ..errors import VectorRefused
from .progress import Batch, Progress
from .work import Target

if TYPE_CHECKING:
    import torch

PUBLISH_EVERY = 60.0  # seconds; what a power cut may cost where a unit takes longer


class Writing:
    """Checks, appends and publishes; gives back the leases of units whose rows are published."""

    def __init__(self, progress: Progress, done: "queue.Queue[Batch | None]", *, on_error: str) -> None:
        self.progress, self.on_error, self._done = progress, on_error, done
        self._outputs: dict[Target, _Output] = {}
        self._unpublished = np.zeros(len(progress.work), np.int16)  # rows of a patch appended, not published
        self._refused: set[int] = set()  # patches with a vector that cannot be stored

    def run(self) -> None:
        """Write the batches of `done` until one of them is None."""
        published, broken = time.monotonic(), False
        while True:
            batch = self._done.get()
            if batch is None:
                break
            started = time.perf_counter()
            if not broken:  # an error of another stage does not stop what is computed from being kept
                broken = True
                with self.progress.kept():
                    if len(batch.rows):
                        self._write(batch)
                    if self.progress.to_publish or time.monotonic() - published > PUBLISH_EVERY:
                        self._publish()
                        published = time.monotonic()
                    broken = False
            self.progress.busy("write", time.perf_counter() - started)
        for output in self._outputs.values():
            with self.progress.kept():
                try:
                    output.writer.close()
                finally:
                    self._count(output)

    def _write(self, batch: Batch) -> None:
        rows = batch.rows
        keys = self.progress.work.keys[rows]
        good = np.ones(len(rows), bool)
        vectors = {target: _to_host(batch, vector) for target, vector in batch.vectors.items()}
        if batch.ready is not None:
            self.progress.busy("compute", batch.begun.elapsed_time(batch.ready) / 1000)
        for target, values in vectors.items():
            dtype = np.dtype(target.identity.dtype)
            fits = _finite(values, dtype)
            if not fits.all() and self.on_error == "skip":
                for row in rows[good & ~fits]:
                    message = f"its embedding does not fit {dtype} or is not finite"
                    self.progress.outcome.failed.append((self.progress.work.name(int(row)), message))
                good &= fits
        self._refused.update(rows[~good].tolist())
        self.progress.waits[rows] -= 1
        for target, values in vectors.items():
            mask = good & self.progress.work.todo[rows, target.number]
            if not mask.any():
                continue
            if target not in self._outputs:
                self._outputs[target] = _Output(target.make().writer())
            output = self._outputs[target]
            ids = [self.progress.work.name(int(row)) for row in rows[mask]]
            self._unpublished[rows[mask]] += 1
            output.rows.append(rows[mask])
            try:
                output.writer.append(keys[mask], values[mask], ids)
            except VectorRefused as error:
                error.add_note(f"encoder {target.identity.encoder['id']}, view {target.view.name}")
                raise
            finally:
                self._count(output)
        self.progress.settle(rows[self.progress.waits[rows] == 0])

    def _publish(self) -> None:
        """Publish what was appended; give back the leases of the units that are complete."""
        complete = self.progress.take_complete()
        for output in self._outputs.values():
            try:
                output.writer.flush()
            finally:
                self._count(output)
        for unit in complete:
            self.progress.leases.pop(unit).release()

    def _count(self, output: "_Output") -> None:
        """Patches whose last row is published now. A writer publishes in the order of its rows."""
        for rows in output.take():
            self._unpublished[rows] -= 1
            through = rows[(self._unpublished[rows] == 0) & (self.progress.waits[rows] == 0)]
            self.progress.outcome.embedded += sum(int(row) not in self._refused for row in through)


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


def _to_host(batch: Batch, vector: "torch.Tensor") -> np.ndarray:
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

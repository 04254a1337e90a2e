"""What the threads of one extraction share: what is done, which error ends the run, which units are open."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cache.leases import Lease
from .work import Lane, Target, Work

if TYPE_CHECKING:
    import torch


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


@dataclass
class Batch:
    """Patches of one lane and one shape, on their way through the stages.

    Attributes
    ----------
    rows
        int (b,): numbers of the patches.
    pixels
        uint8 (b, h, w, 3), until they are on the device.
    vectors
        of each store, float (b, dim), once they are computed.
    begun, ready
        CUDA events around the forward passes; None on other devices.
    """

    lane: Lane
    rows: np.ndarray
    pixels: np.ndarray
    vectors: "dict[Target, torch.Tensor]" = field(default_factory=dict)
    begun: Any = None
    ready: Any = None


class Progress:
    """The state that the stages of one run share; every method may be called from any thread.

    Attributes
    ----------
    error
        the first error of any stage. From then on batches that wait are dropped, not computed.
    leases
        of the units that this run holds.
    opened
        of each unit that was begun: how many of its patches are not settled.
    waits
        int16 (n,): lanes that a patch still waits for. The feeding thread adds, the writing thread takes.
    """

    def __init__(
        self, work: Work, lanes: Sequence[Lane], *, batch_size: int, advance: Callable[[int], object]
    ) -> None:
        self.work, self.advance = work, advance
        self.outcome = Outcome(batch_size=batch_size)
        self.error: BaseException | None = None
        self.leases: dict[int, Lease] = {}
        self.opened: dict[int, int] = {}
        self.waits = np.zeros(len(work), np.int16)
        self._lock = threading.Lock()
        self._passes = work.passes(lanes)  # of each patch, not reported yet
        self._complete: list[int] = []  # units that are to be published

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keeps an error for the end of the run."""
        try:
            yield
        except BaseException as error:  # noqa: BLE001  `Pipeline.run` raises it
            with self._lock:
                self.error = self.error or error

    def check(self) -> None:
        """Raise the error of another stage."""
        if self.error is not None:
            raise self.error

    def busy(self, stage: str, seconds: float) -> None:
        with self._lock:
            self.outcome.seconds[stage] += seconds

    def computed(self, forwards: int) -> None:
        with self._lock:
            self.outcome.forwards += forwards

    def halve_batch(self, size: int) -> None:
        """Memory did not suffice for a batch of `size`."""
        with self._lock:
            self.outcome.batch_size = min(self.outcome.batch_size, size // 2)

    def passed(self, rows: np.ndarray) -> None:
        """One forward pass of each of these patches is done."""
        with self._lock:
            left = rows[self._passes[rows] > 0]
            self._passes[left] -= 1
        self.advance(len(left))

    def skip(self, rows: np.ndarray) -> None:
        """The passes of these patches that are not done are needless."""
        with self._lock:
            left = int(self._passes[rows].sum())
            self._passes[rows] = 0
        self.advance(left)

    def settle(self, rows: np.ndarray) -> bool:
        """These patches are through, embedded or not. True where a unit, to be published, is complete now."""
        complete = False
        with self._lock:
            for unit, count in zip(*np.unique(self.work.unit[rows], return_counts=True), strict=True):
                self.opened[int(unit)] -= int(count)
                if not self.opened[int(unit)]:
                    self._complete.append(int(unit))
                    complete = True
        self.skip(rows)
        return complete

    @property
    def to_publish(self) -> bool:
        return bool(self._complete)

    def take_complete(self) -> list[int]:
        """The complete units since the last call."""
        with self._lock:
            complete, self._complete = self._complete, []
        return complete

"""The stage between decoding and writing: the forward passes of one device, in a thread of its own."""

import queue
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .progress import Batch, Progress
from .tokens import Policy
from .views import MEAN, orient
from .work import Lane, Target

if TYPE_CHECKING:
    import torch

    from .encoders import Encoder


class Device:
    """Takes batches of pixels, gives batches of vectors.

    A pass that fails leaves its error in `progress`; the thread goes on emptying its queue, so that nobody
    waits for it.
    """

    def __init__(
        self,
        encoders: Sequence["Encoder"],
        progress: Progress,
        ready: "queue.Queue[Batch | None]",
        done: "queue.Queue[Batch | None]",
        *,
        resize: str,
    ) -> None:
        """
        Parameters
        ----------
        encoders
            on this device, by the number that a lane has of them.
        ready, done
            from which batches are taken, and where they go.
        resize
            "pil", or where the encoder resizes.
        """
        self.encoders, self.progress, self.resize = encoders, progress, resize
        self._ready, self._done = ready, done

    def run(self) -> None:
        """Compute the batches of `ready` until one of them is None."""
        import torch

        device, uploads = self.encoders[0].device, None
        if device.type == "cuda":
            torch.cuda.set_device(device)  # compiled kernels go to this thread's current device
            uploads = torch.cuda.Stream(device)
        ahead: tuple[Batch, torch.Tensor, Any] | None = None
        while True:
            batch = self._ready.get()
            with self.progress.kept():
                if self.progress.error is None:
                    # on a GPU the next batch goes up while this one is computed
                    after = (batch, *self._upload(batch, device, uploads)) if batch else None
                    if uploads is not None:
                        after, ahead = ahead, after
                    if after is not None:
                        self._compute(*after)
            if batch is None:
                return

    @staticmethod
    def _upload(batch: Batch, device: "torch.device", stream: Any) -> tuple["torch.Tensor", Any]:
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

    def _compute(self, batch: Batch, pixels: "torch.Tensor", uploaded: Any) -> None:
        import torch

        started = time.perf_counter()
        encoder = self.encoders[batch.lane.encoder]
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
        self.progress.busy("compute", seconds)
        self.progress.computed(len(batch.rows) * len(batch.lane.orientations))
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
            self.progress.passed(rows)
        return vectors

    def _embed(self, encoder: "Encoder", pixels: "torch.Tensor", policies: list[Policy]) -> dict[str, Any]:
        """`encoder.embed` in pieces of the batch size, halved for good where memory does not suffice."""
        import torch

        parts: list[dict[str, torch.Tensor]] = []
        start = 0
        while start < len(pixels):
            size = min(self.progress.outcome.batch_size, len(pixels) - start)
            try:
                parts.append(encoder.embed(pixels[start : start + size], policies))
                start += size
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _out_of_memory(error) or size == 1:
                    raise
                if encoder.device.type == "cuda":
                    torch.cuda.empty_cache()
                self.progress.halve_batch(size)
        if len(parts) == 1:
            return parts[0]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _out_of_memory(error: BaseException) -> bool:
    """Did memory run out? Torch has a class for it on CUDA, and only the allocator's words on the CPU."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)

"""The batch size: what fits on GPUs, what is fastest on a CPU."""

from collections.abc import Callable, Sequence
from time import thread_time

import torch

from .encoders import Encoder
from .tokens import Policy
from .work import Lane

LARGEST_BATCH = 512  # no encoder gets faster beyond; latency and memory only grow
SHARE = 0.7  # of the free memory that a batch may take
SPENT_ON_TRIALS = 0.02  # of a run's time on a CPU
FASTER = 1.03  # times as many images a second, to be worth another batch size


def batch_size_for(
    encoders: Sequence[Sequence[Encoder]],
    lanes: Sequence[Lane],
    *,
    default_cpu: int,
    passes: int = 0,
    clock: Callable[[], float] = thread_time,
) -> int:
    """On CUDA what fits, from the memory that a small batch takes; on a CPU the fastest of a few, timed.

    Two batches may be on the device at once; the engine halves the size where memory runs out all the same.

    passes : forward passes of the run, of whose time SPENT_ON_TRIALS may go into timing; few: the default
    clock : seconds of the calling thread, which computes alone
    """
    asked: dict[int, list[Policy]] = {}
    for lane in lanes:
        known = asked.setdefault(lane.encoder, [])
        known += [t.policy for t in lane.targets if t.policy not in known]
    kind = encoders[0][0].device.type
    if kind == "cpu":
        best = [_fastest(encoders[0][n], p, default_cpu, passes, clock) for n, p in asked.items()]
        return min(best, default=default_cpu)
    if kind != "cuda":
        return default_cpu
    sizes: list[int] = []
    for replicas in encoders:
        device = replicas[0].device
        for number, policies in asked.items():
            encoder = replicas[number]
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            probe = 8
            encoder.embed(_blank(encoder, probe), policies or None)
            torch.cuda.synchronize(device)
            each = max(1, (torch.cuda.max_memory_allocated(device) - before) // probe)
            free, _ = torch.cuda.mem_get_info(device)
            sizes.append(int(free * SHARE / each))
    fitting = max(1, min([*sizes, LARGEST_BATCH]))
    return 1 << (fitting.bit_length() - 1)  # a power of two


def _blank(encoder: Encoder, size: int) -> torch.Tensor:
    side = encoder.card.transform.size
    return torch.zeros(size, side, side, 3, dtype=torch.uint8)


def _fastest(
    encoder: Encoder, policies: Sequence[Policy], default: int, passes: int, clock: Callable[[], float]
) -> int:
    """The default or, where two batches are timed faster, twice or half of it, and so on in that direction.

    Whether larger batches win depends on cores and caches: ViT-S/14 takes 32 as well as 8, EfficientNet-Lite0
    loses a third.
    """
    spent = 0.0

    def seconds(size: int) -> float:
        """Of one image in batches of this size; the first batch is not timed: it chooses kernels."""
        nonlocal spent
        batch = _blank(encoder, size)
        began = clock()
        encoder.embed(batch, policies or None)
        started = clock()
        encoder.embed(batch, policies or None)
        ended = clock()
        spent += ended - began
        return (ended - started) / size

    if 2 * 2 * default > SPENT_ON_TRIALS * passes:  # the default's own two batches and as much again
        return default
    least, best = seconds(default), default
    budget = SPENT_ON_TRIALS * passes * least
    for factor in (2, 0.5):
        size = int(best * factor)
        while 1 <= size <= LARGEST_BATCH and spent + 2 * size * least <= budget:
            seconds_taken = seconds(size)
            if seconds_taken * FASTER > least:
                break
            least, best, size = seconds_taken, size, int(size * factor)
        if best != default:
            break
    return best

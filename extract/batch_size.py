"""The batch size that fits on the devices."""

from collections.abc import Sequence

import torch

from .encoders import Encoder
from .work import Lane

LARGEST_BATCH = 512  # no encoder gets faster beyond; latency and memory only grow
SHARE = 0.7  # of the free memory that a batch may take


def batch_size_for(encoders: Sequence[Sequence[Encoder]], lanes: Sequence[Lane], *, default_cpu: int) -> int:
    """A batch that fits: on CUDA from the memory that a small one takes, elsewhere the default.

    Two batches may be on the device at once; the engine halves the size where memory runs out all the same.
    """
    if encoders[0][0].device.type != "cuda":
        return default_cpu
    sizes: list[int] = []
    for replicas in encoders:
        device = replicas[0].device
        for number in {lane.encoder for lane in lanes}:
            encoder = replicas[number]
            policies = list(
                {
                    t.policy.name: t.policy for lane in lanes if lane.encoder == number for t in lane.targets
                }.values()
            )
            side = encoder.card.transform.size
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            probe = 8
            encoder.embed(torch.zeros(probe, side, side, 3, dtype=torch.uint8), policies or None)
            torch.cuda.synchronize(device)
            each = max(1, (torch.cuda.max_memory_allocated(device) - before) // probe)
            free, _ = torch.cuda.mem_get_info(device)
            sizes.append(int(free * SHARE / each))
    fitting = max(1, min([*sizes, LARGEST_BATCH]))
    return 1 << (fitting.bit_length() - 1)  # a power of two

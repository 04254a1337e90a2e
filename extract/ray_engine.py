"""`--engine ray`: the engine on every machine of a Ray cluster, over a file system that they share.

Each actor runs the ordinary local engine over the whole work, beginning at a place of its own. What keeps
them apart are the leases of the units in the store (engine.py), so that nothing is handed out from here: an
actor that dies leaves its units to the others (at once on the same machine, after the lease's time to live
from another), and is replaced. Manifests, bank and weights must have the same paths on all machines.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..datasets.manifest import Manifest
from ..errors import EncoderError, MissingDependency, PatchbankError
from .cards import Card
from .options import ExtractOptions

try:
    import ray
    from ray import exceptions
except ImportError as missing:
    raise MissingDependency("ray is not installed: pip install 'patchbank[ray]'") from missing

LOOK_EVERY = 1.0  # seconds


@dataclass
class Cluster:
    """How many actors, and what each of them gets."""

    actors: int
    cpus: float
    gpus: float


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, else start a local one."""
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)


def device_of_cluster() -> str:
    """The device of the actors, whatever the driver has: "cuda" where the cluster has GPUs, else "cpu"."""
    connect()
    return "cuda" if ray.cluster_resources().get("GPU", 0) else "cpu"


def size_up(actors: int | None) -> Cluster:
    """One actor a GPU with its share of the cores; without GPUs one actor a machine with all its cores."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    cpus = int(sum(node.get("CPU", 0) for node in nodes))
    if gpus:
        count = min(actors or gpus, gpus)
        return Cluster(count, max(1, cpus // gpus), 1)
    count = actors or len(nodes)
    return Cluster(count, max(1, cpus // count), 0)


class _Worker:
    """Runs the local engine in a process of its own."""

    def run(
        self,
        extract: Callable[..., Any],
        manifests: Sequence[Manifest],
        cards: Sequence[Card],
        bank: str,
        options: ExtractOptions,
    ) -> Any:
        return extract(manifests, encoder=cards, bank=bank, options=options, progress=False)


def run_actors(
    manifests: Sequence[Manifest],
    cards: Sequence[Card],
    bank: str,
    options: ExtractOptions,
    *,
    extract: Callable[..., Any],
    look: Callable[[], object],
) -> tuple[list[Any], int]:
    """Embed with a cluster.

    Parameters
    ----------
    options
        of the run; its actors are as many as there are GPUs (or machines) by default.
    extract
        `run_extract`, which every actor calls with the local engine.
    look
        called about every second, for a progress bar.

    Returns
    -------
    tuple[list[Any], int]
        (the actors' reports, how many actors died and were replaced).

    Raises
    ------
    EncoderError
        actors keep dying.
    PatchbankError
        what an actor raised.
    """
    connect()
    cluster = size_up(options.actors)
    worker: Any = ray.remote(num_cpus=cluster.cpus, num_gpus=cluster.gpus)(_Worker)
    shared = ray.put(list(manifests))
    running: dict[Any, tuple[Any, int]] = {}

    def start(number: int) -> None:
        actor = worker.remote()
        # the revision is in the cards by now
        own = options.replace(engine="local", revision=None, shift=number / cluster.actors)
        running[actor.run.remote(extract, shared, list(cards), bank, own)] = (actor, number)

    for number in range(cluster.actors):
        start(number)
    reports: list[Any] = []
    deaths = 0
    try:
        while running:
            done, _ = ray.wait(list(running), num_returns=1, timeout=LOOK_EVERY)
            look()
            for task in done:
                actor, number = running.pop(task)
                try:
                    reports.append(ray.get(task))
                    ray.kill(actor)
                except exceptions.RayActorError as error:
                    deaths += 1
                    if deaths > 3 * cluster.actors:
                        raise EncoderError(
                            f"{deaths} actors died, the last with: {error}; out of memory? (--batch-size)"
                        ) from error
                    time.sleep(LOOK_EVERY)
                    start(number)
                except exceptions.RayTaskError as error:
                    if isinstance(error.cause, PatchbankError):
                        raise error.cause from None
                    raise
    finally:
        for actor, _ in running.values():
            ray.kill(actor)
    return reports, deaths

"""Who runs the jobs: this process, or tasks on a Ray cluster. The jobs know nothing of it."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..errors import InvalidRequest, MissingDependency

ENGINES = ("local", "ray")


def run_all(function: Callable[[Any], Any], jobs: Sequence[Any], *, engine: str = "local") -> list[Any]:
    """Do every job; the results in the jobs' order.

    engine : "local": one after the other. "ray": independent tasks on the running cluster ($RAY_ADDRESS or
        one that was started with `ray start`), else on one of this machine; a job whose device is a GPU gets
        one for itself.
    A job that fails does not stop the others; the first error is raised at the end, a note names each of the
    rest.
    """
    if engine == "local":
        return [function(job) for job in jobs]
    if engine != "ray":
        raise InvalidRequest(f"engine {engine!r} is not one of {', '.join(ENGINES)}")
    try:
        import ray
    except ImportError as error:
        raise MissingDependency("the engine 'ray' needs Ray: pip install 'patchbank[ray]'") from error
    started = not ray.is_initialized()
    if started:
        # a cluster that is there is joined; log lines of workers would tear the progress bars
        ray.init(
            address=os.environ.get("RAY_ADDRESS"),
            log_to_driver=False,
            include_dashboard=False,
            configure_logging=False,
        )
    try:
        tasks = []
        for job in jobs:
            on_gpu = job.device.startswith("cuda")
            threads = job.threads or 1
            task = ray.remote(num_cpus=threads, num_gpus=1 if on_gpu else 0, max_retries=2)(function)
            # Ray shows a task its own GPU only, which is then number 0
            own = replace(job, device="cuda" if on_gpu else job.device, threads=threads, progress=False)
            tasks.append(task.remote(own))
        return _gather(ray, tasks, jobs)
    finally:
        if started:
            ray.shutdown()


def _gather(ray: Any, tasks: Sequence[Any], jobs: Sequence[Any]) -> list[Any]:
    results, failed = [], []
    for task, job in zip(tasks, jobs, strict=True):
        try:
            results.append(ray.get(task))
        except ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            failed.append((job, cause))
    if failed:
        first = failed[0][1]
        for job, error in failed:
            first.add_note(f"{job.folder}: {error}")
        raise first
    return results

"""Independent calls by several processes or threads, of which this one is one."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from threading import RLock
from typing import Any


def shared(tasks: Sequence[Any], *, jobs: int, processes: bool = True) -> Iterator[Any]:
    """The results of delayed calls (`joblib.delayed`), in order.

    jobs - 1 workers begin at once with the second call and those after it; whoever is free makes the next.
    This process makes the first, and what none has begun, when results are asked for: it has imported what
    is needed, and joblib's own loop would only wait here. processes : False: the workers are threads
    """
    if jobs == 1 or len(tasks) < 2:
        return (call(*args, **options) for call, args, options in tasks)
    return _Shared(tasks, jobs - 1, _pool(jobs - 1, processes=processes)).results()


def _pool(workers: int, *, processes: bool) -> Executor:
    if not processes:
        return ThreadPoolExecutor(workers)
    # joblib's own: workers that stay for the next call, and do not run the caller's script again
    from joblib.externals.loky import get_reusable_executor

    return get_reusable_executor(max_workers=workers, timeout=60)


class _Shared:
    """Tasks that wait, and those that workers have begun."""

    def __init__(self, tasks: Sequence[Any], workers: int, pool: Executor) -> None:
        self.tasks, self.pool = tasks, pool
        self.waiting = deque(range(1, len(tasks)))
        self.begun: dict[int, Future[Any]] = {}
        self.lock = RLock()
        for _ in range(workers):
            self.begin()

    def begin(self, _: Future[Any] | None = None) -> None:
        """Give a worker the next task; called again when it is done."""
        with self.lock:
            if self.waiting:
                call, args, options = self.tasks[self.waiting[0]]
                future = self.pool.submit(call, *args, **options)
                self.begun[self.waiting.popleft()] = future
                future.add_done_callback(self.begin)

    def results(self) -> Iterator[Any]:
        try:
            made: dict[int, Any] = {0: self.make(0)}
            for i in range(len(self.tasks)):
                while (own := self.next_own(i, made)) is not None:
                    made[own] = self.make(own)
                yield made.pop(i) if i in made else self.begun.pop(i).result()
        finally:
            with self.lock:
                self.waiting.clear()
            for future in self.begun.values():
                future.cancel()
            if isinstance(self.pool, ThreadPoolExecutor):
                self.pool.shutdown(wait=False)

    def next_own(self, wanted: int, made: Mapping[int, Any]) -> int | None:
        """What this process makes next until the result that is wanted is here; None: wait for it."""
        with self.lock:
            here = wanted in made or (wanted in self.begun and self.begun[wanted].done())
            return None if here or not self.waiting else self.waiting.popleft()

    def make(self, i: int) -> Any:
        call, args, options = self.tasks[i]
        return call(*args, **options)

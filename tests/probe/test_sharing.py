"""Calls that this process shares with its workers."""

import os
from threading import Event, current_thread, main_thread

import joblib
import pytest
from patchbank.probe.sharing import shared

double = joblib.delayed(lambda x: 2 * x)


@pytest.mark.parametrize("jobs", [1, 2, 3, 8])
@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_results_come_in_order(jobs, n):
    assert list(shared([double(i) for i in range(n)], jobs=jobs, processes=False)) == list(range(0, 2 * n, 2))


def test_workers_begin_before_a_result_is_asked_for_and_this_process_makes_the_rest():
    begun, go_on = Event(), Event()

    def blocked():
        begun.set()
        assert go_on.wait(60)
        return current_thread() is main_thread()

    def free():
        return current_thread() is main_thread()

    def last():
        go_on.set()
        return current_thread() is main_thread()

    tasks = [joblib.delayed(call)() for call in (free, blocked, free, last)]
    results = shared(tasks, jobs=2, processes=False)
    assert begun.wait(60)
    assert list(results) == [True, False, True, True]


@pytest.mark.parametrize("bad", [0, 1, 3])
def test_an_error_is_raised_where_its_result_is_due(bad):
    def call(i):
        if i == bad:
            raise ValueError(f"call {i}")
        return i

    results = shared([joblib.delayed(call)(i) for i in range(4)], jobs=3, processes=False)
    with pytest.raises(ValueError, match=f"call {bad}"):
        assert [next(results) for _ in range(4)] == list(range(bad))


def test_processes():
    first, *others = shared([joblib.delayed(os.getpid)() for _ in range(3)], jobs=2)
    assert first == os.getpid()
    assert others[0] != first
